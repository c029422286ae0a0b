package script

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
)

// net is a made-up network: features are the mean and the spread of a picture, logits three multiples of its mean.
type net struct{ calls int }

func (*net) Labels() []string { return []string{"a", "b", "sneaker"} }
func (*net) Features() int    { return 2 }
func (n *net) Run(_ context.Context, x []float64, features, logits []float64) error {
	n.calls++
	rows := max(len(features)/2, len(logits)/3)
	w := len(x) / rows
	for k := range rows {
		mean := 0.0
		for _, v := range x[k*w : (k+1)*w] {
			mean += v / float64(w)
		}
		if features != nil {
			features[2*k], features[2*k+1] = mean, 1
		}
		if logits != nil {
			copy(logits[3*k:], []float64{0, mean, 2 * mean})
		}
	}
	return nil
}

func world(n *net) World {
	return World{Net: func(name string) (Net, error) {
		if name != "clf" {
			return nil, fmt.Errorf("unknown network %q", name)
		}
		return n, nil
	}, Load: func(file, member string) ([]float64, []int, error) {
		if file != "refs.npz" {
			return nil, nil, errors.New("no such file")
		}
		return []float64{1, 0, 0, 1}, []int{2, 2}, nil
	}}
}

func points(n int) []Point {
	at := make([]Point, n)
	for k := range at {
		at[k] = Point{Moment: Moment{Step: 3, Steps: 10, Sigma: 0.5, Alpha: 1, Progress: 0.3, Seed: 7, Particle: k, Class: 2}, Prompt: "shoe", Previous: float64(k), Lambda: 2}
	}
	return at
}

func TestRewards(t *testing.T) {
	ctx := context.Background()
	x := []float64{0.1, 0.2, 0.3, 0.4, -0.1, -0.2, -0.3, -0.4}
	shape := []int{1, 2, 2}
	lse := func(m float64) float64 { return math.Log(1 + math.Exp(m) + math.Exp(2*m)) }
	for _, c := range []struct {
		src  string
		want []float64
	}{
		{"mean(x0)", []float64{0.25, -0.25}},
		{"mean(im) - 0.5 * max(im)", []float64{0.05, -0.2}},
		{"x0[0, 1, 0]", []float64{0.3, -0.3}},
		{"logp('clf', class='sneaker') - 0.5*logp('clf', class='b')", []float64{0.5 - lse(0.25) - 0.5*(0.25-lse(0.25)), -0.5 - lse(-0.25) - 0.5*(-0.25-lse(-0.25))}},
		{"prob('clf', class=0)", []float64{math.Exp(-lse(0.25)), math.Exp(-lse(-0.25))}},
		{"cos(feat('clf'), load('refs.npz')) / 0.05", []float64{(0.25 + 1) / 2 / math.Hypot(0.25, 1) / 0.05, (-0.25 + 1) / 2 / math.Hypot(0.25, 1) / 0.05}},
		{"quantile(x0, 0.5)", []float64{0.25, -0.25}},
		{"logp('clf', class='b', of=-x0)", []float64{-0.25 - lse(-0.25), 0.25 - lse(0.25)}},
		{"ctx.class + (ctx.previous or 0) + ctx.step", []float64{5, 6}},
		{"-mean(x0) - 2", []float64{-2.25, -1.75}},
		{"mean(x0) ** 2 if ctx.prompt == 'shoe' else 0", []float64{0.0625, 0.0625}},
		{"mean(hsv(x0)[2]) + 0 * sum(rgb(x0))", []float64{0.625, 0.375}},
		{"log(exp(mean(x0)))", []float64{0.25, -0.25}},
	} {
		n := &net{}
		r, err := ParseReward(c.src, world(n))
		if err != nil {
			t.Fatalf("%s: %v", c.src, err)
		}
		if err := r.Check(ctx, shape, 2); err != nil {
			t.Fatalf("%s: %v", c.src, err)
		}
		n.calls = 0
		got, err := r.Score(ctx, points(2), x, shape, [][2]int{{0, 2}})
		if err != nil {
			t.Fatalf("%s: %v", c.src, err)
		}
		for k := range c.want {
			if math.Abs(got.Reward[k]-c.want[k]) > 1e-12 {
				t.Errorf("%s: %v, want %v", c.src, got.Reward, c.want)
			}
			sum := 0.0
			for _, v := range got.Terms[min(k, max(0, len(got.Terms)-1)):] {
				for _, u := range v {
					sum += u
				}
				break
			}
			if len(r.Terms()) > 0 && math.Abs(sum-got.Reward[k]) > 1e-12 {
				t.Errorf("%s: terms of picture %d sum to %g, reward %g", c.src, k, sum, got.Reward[k])
			}
		}
		if strings.Count(c.src, "'clf'") > 0 && !strings.Contains(c.src, "of=") && n.calls != 1 {
			t.Errorf("%s: the network was asked %d times", c.src, n.calls)
		}
	}
	r, err := ParseReward("logp('clf', class='sneaker') - 0.5*logp('clf', class='b')", world(&net{}))
	if err != nil || !slices.Equal(r.Terms(), []string{"logp('clf', class='sneaker')", "0.5*logp('clf', class='b')"}) {
		t.Errorf("terms %q, %v", r.Terms(), err)
	}
	for src, want := range map[string][]string{ // a line may end as on any system, a byte need not be UTF-8
		"(mean(im)\r) - 1 + 2":       {"(mean(im) )", "1", "2"},
		"(mean(im)\r\n) - 1":         {"(mean(im) )", "1"},
		"len('\xff\xbf') + 1":        {"len('\xff\xbf')", "1"},
		"len('\xbf\xbf\xbfé') - 1.5": {"len('\xbf\xbf\xbfé')", "1.5"},
	} {
		if r, err := ParseReward(src, World{}); err != nil {
			t.Errorf("%q: %v", src, err)
		} else if !slices.Equal(r.Terms(), want) {
			t.Errorf("%q: terms %q", src, r.Terms())
		}
	}
}

func TestRewardFiles(t *testing.T) {
	ctx := context.Background()
	x := []float64{0.1, 0.2, 0.3, 0.4, -0.1, -0.2, -0.3, -0.4}
	shape := []int{1, 2, 2}
	r, err := ParseRewards("bright.star", "def reward(im, ctx):            # im\n    log('spread', im.std())\n    return im.mean() - 0.2 * abs(im.std() - 0.5)\n", World{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := r.Score(ctx, points(2), x, shape, [][2]int{{0, 2}})
	if err != nil {
		t.Fatal(err)
	}
	sd := math.Sqrt((0.15*0.15 + 0.05*0.05) / 2)
	if want := 0.25 - 0.2*(0.5-sd); math.Abs(got.Reward[0]-want) > 1e-12 || math.Abs(got.Columns["spread"][1]-sd) > 1e-12 {
		t.Errorf("%+v, want %g", got, want)
	}
	// A reward of a group: how far each picture is from the others.
	r, err = ParseRewards("set.star", "def rewards(ims, ctx):\n    return [norm(ims[k] - ims[1 - k]) for k in range(2)]\n", World{})
	if err != nil || !r.Grouped() {
		t.Fatal(err)
	}
	if got, err = r.Score(ctx, points(2), x, shape, [][2]int{{0, 2}}); err != nil || math.Abs(got.Reward[0]-2*math.Sqrt(0.3)) > 1e-12 {
		t.Errorf("%+v, %v", got, err)
	}
	// Random numbers belong to (seed, step, particle).
	r, err = ParseRewards("dice.star", "def reward(im, ctx):\n    return ctx.rand() + ctx.rand()\n", World{})
	if err != nil {
		t.Fatal(err)
	}
	a, err := r.Score(ctx, points(2), x, shape, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := r.Score(ctx, points(2)[1:], x[4:], shape, nil)
	if err != nil || a.Reward[1] != b.Reward[0] || a.Reward[0] == a.Reward[1] {
		t.Errorf("%v and %v, %v", a.Reward, b.Reward, err)
	}
	if z, err := ParseRewards("z.star", "def reward_latent(z, ctx): return sum(z)", World{}); err != nil || !z.Latent() {
		t.Error(err)
	}
	// The gradient of a reward.
	r, err = ParseReward("mean(x0 ** 2) - x0[0, 0, 0] + mean(edges(x0))", World{})
	if err != nil {
		t.Fatal(err)
	}
	grad := make([]float64, 4)
	p := points(1)[0]
	if err := r.Gradient(ctx, []Point{p}, x[:4], shape, grad); err != nil {
		t.Fatal(err)
	}
	for i := range grad {
		const h = 1e-6
		var side [2]float64
		for j, d := range []float64{h, -h} {
			y := slices.Clone(x[:4])
			y[i] += d
			s, err := r.Score(ctx, []Point{p}, y, shape, nil)
			if err != nil {
				t.Fatal(err)
			}
			side[j] = s.Reward[0]
		}
		if want := (side[0] - side[1]) / (2 * h); math.Abs(grad[i]-want) > 1e-8 {
			t.Errorf("gradient %d: %g, differences say %g", i, grad[i], want)
		}
	}
}

func TestRewardMistakes(t *testing.T) {
	for _, c := range []struct{ src, want string }{
		{"mean(x0", "reward:1:8: "},
		{"mean(y)", "undefined: y"},
		{"x0", "tensor of shape"},
		{"logp('clf', class='shoe')", `unknown class "shoe"; known: a, b, sneaker`},
		{"logp('nope', class=1)", `unknown network "nope"`},
		{"cos(feat('clf'), load('gone.npz'))", "no such file"},
		{"quantile(x0, 2)", "q from 0 to 1"},
		{"ctx.nothing", "has no .nothing"},
	} {
		r, err := ParseReward(c.src, world(&net{}))
		if err == nil {
			err = r.Check(context.Background(), []int{1, 2, 2}, 2)
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.src, err, c.want)
		}
	}
	for src, want := range map[string]string{
		"x = 1":                          "defines no function reward",
		"def reward(im): return 1":       "takes 1 parameters, want reward(im, ctx)",
		"def reward(im, ctx)\n return 1": "want ':'",
		"def reward(im, ctx): return 1\ndef rewards(ims, ctx): return [1]": "defines 2 of",
	} {
		if _, err := ParseRewards("f.star", src, World{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", src, err, want)
		}
	}
	r, err := ParseRewards("f.star", "def rewards(ims, ctx): return [1]", World{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Check(context.Background(), []int{1, 2, 2}, 2); err == nil || !strings.Contains(err.Error(), "for 2 pictures") {
		t.Error(err)
	}
}

func TestControl(t *testing.T) {
	ctx := context.Background()
	c, err := ParseControl("plateau.star", `
def start(ctx): return {"best": -1e9, "flat": 0, "third": 1.0 / 3}
def step(state, ctx):
    state["flat"] = 0 if ctx.reward_max > state["best"] + 0.01 else state["flat"] + 1
    state["best"] = max(state["best"], ctx.reward_max)
    log("flat", state["flat"])
    return {"lambda": 1 + 3 * ctx.progress, "cfg_scale": 4 if ctx.sigma > 1 else 1.5, "stop": state["flat"] > 1}
`)
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Start(ctx, View{})
	if err != nil {
		t.Fatal(err)
	}
	for k, r := range []float64{1, 2, 2, 2} {
		text, err := c.Save(s)
		if err != nil {
			t.Fatal(err)
		}
		if s, err = c.Load(text); err != nil {
			t.Fatal(err)
		}
		if again, _ := c.Save(s); again != text {
			t.Errorf("state %s comes back as %s", text, again)
		}
		out, err := c.Step(ctx, s, View{Point: points(1)[0], RewardMax: r})
		if err != nil {
			t.Fatal(err)
		}
		stop := 0.0
		if k == 3 {
			stop = 1
		}
		if out.Values["lambda"] != 1+3*0.3 || out.Values["cfg_scale"] != 1.5 || out.Values["stop"] != stop || out.Columns["flat"] != float64(max(0, k-1)) {
			t.Errorf("step %d: %+v", k, out)
		}
	}
	for src, want := range map[string]string{
		"def start(ctx): return {}":                            "no function step",
		"def step(state, ctx): return 1":                       "want a dict or None",
		"def step(state, ctx): return {'lamda': 1}":            "did you mean lambda",
		"def step(state, ctx): return {'eta': 'x'}":            "want a finite number",
		"def step(state, ctx): return {'eta': ctx.reward_max}": "want a finite number",
	} {
		c, err := ParseControl("f.star", src)
		if err == nil {
			var s State
			if s, err = c.Start(ctx, View{}); err == nil {
				_, err = c.Step(ctx, s, View{RewardMax: math.NaN()})
			}
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", src, err, want)
		}
	}
}

func FuzzReward(f *testing.F) {
	for _, s := range []string{"mean(x0)", "x0[0] - ctx.rand()", "load('a')", "(a", "logp('x', class=1) - -1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, src string) {
		r, err := ParseReward(src, World{})
		if err == nil {
			r.e.Steps = 10000
			_ = r.Check(context.Background(), []int{1, 2, 2}, 1)
		}
	})
}
