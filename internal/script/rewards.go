package script

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"

	"drift/internal/rng"
)

// Net is a network that scripts ask about pictures: logp, prob and feat. One that is a GradNet too can stand in energies.
type Net interface {
	Labels() []string
	Features() int
	// Run writes features and logits of n images; either may be nil.
	Run(ctx context.Context, x []float64, features, logits []float64) error
}

// ShapedNet is a Net that says which pictures it takes: others are refused.
type ShapedNet interface {
	Net
	Shape() []int
}

// GradNet is a Net with gradients: VJP writes that of sum(features*dFeatures) + sum(logits*dLogits) by the images into grad;
// either cotangent may be nil.
type GradNet interface {
	Net
	VJP(ctx context.Context, x, dFeatures, dLogits, grad []float64) error
}

// World is what scripts reach beyond the picture. Both are asked before the run, so that nothing is missing in the middle
// of it; nil refuses.
type World struct {
	Net  func(name string) (Net, error)
	Load func(file, member string) (v []float64, shape []int, err error)
}

// Point is what ctx shows to a reward beside the Moment.
type Point struct {
	Moment
	Prompt   string
	NFE      float64 // evaluations per image so far
	Lambda   float64
	Previous float64 // this particle's reward at the check before; NaN at the first
	Last     bool    // the picture is the sample, not an estimate
}

// Rewards is a script that scores pictures for steering: reward(im, ctx) of one picture, rewards(ims, ctx) of the
// pictures of one group at once, or reward_latent(z, ctx) of one state in the model's own space; or an expression of im
// (also called x0) and ctx. Beside the functions of Energy it has
//
//	logp(net, class=K) prob(net, class=K)   log probability and probability of a class by name or number; of the picture,
//	                                        or of another one: logp(net, class=K, of=x)
//	feat(net) features(net)                 features of the picture, or of another one: feat(net, of=x)
//	cos(a, b)                               cosine of the angle between two tensors; b of one more axis: the mean over its rows
//	load(file) load(file, member)           an array of a .npz file, read before the run
//	quantile(x, q) edges(x) rgb(x) hsv(x)
//	log(name, value)                        a column of the log
//	ctx.rand()                              a uniform number, keyed by (seed, step, particle)
//
// and ctx has prompt, nfe, strength (lambda), previous (reward), last and group (= seed) too. A network is asked once for
// all pictures of a check.
type Rewards struct {
	e      Energy
	one    *starlark.Function // reward
	many   *starlark.Function // rewards
	latent bool
	terms  []term
	text   string // as the user wrote it
}

// term is an additive part of an expression.
type term struct {
	text string
	sign float64
	fn   *starlark.Function
}

// ParseRewards reads a script.
func ParseRewards(file, src string, w World) (*Rewards, error) {
	r := &Rewards{text: src}
	globals, err := r.e.load(file, src, names(w))
	if err != nil {
		return nil, err
	}
	latent, err := r.e.function(globals, "reward_latent(z, ctx)")
	if err != nil {
		return nil, err
	}
	if r.one, err = r.e.function(globals, "reward(im, ctx)"); err != nil {
		return nil, err
	}
	if r.many, err = r.e.function(globals, "rewards(ims, ctx)"); err != nil {
		return nil, err
	}
	n := 0
	for _, f := range []*starlark.Function{latent, r.one, r.many} {
		if f != nil {
			n++
		}
	}
	switch {
	case n == 0:
		return nil, fmt.Errorf("%s:1:1: the script defines no function reward(im, ctx), rewards(ims, ctx) or reward_latent(z, ctx)", file)
	case n > 1:
		return nil, fmt.Errorf("%s:1:1: the script defines %d of reward, rewards and reward_latent: want one", file, n)
	}
	if latent != nil {
		r.one, r.latent = latent, true
	}
	return r, nil
}

// ParseReward reads an expression of im, x0 (the same) and ctx. Its additive terms are columns.
func ParseReward(src string, w World) (*Rewards, error) {
	r := &Rewards{}
	const file = "reward"
	out, _ := translate(src)
	tree, err := (&syntax.FileOptions{}).ParseExpr(file, out, 0)
	var parse syntax.Error
	if errors.As(err, &parse) {
		return nil, fmt.Errorf("%s:%d:%d: %s", file, parse.Pos.Line, parse.Pos.Col, parse.Msg)
	} else if err != nil {
		return nil, err
	}
	var text strings.Builder
	sign, ops := []float64{1}, []int(nil)
	for e := tree; ; { // where the top-level signs stand, from the right
		b, ok := e.(*syntax.BinaryExpr)
		if !ok || b.Op != syntax.PLUS && b.Op != syntax.MINUS {
			break
		}
		ops = append(ops, offset(out, b.OpPos))
		e = b.X
	}
	slices.Reverse(ops)
	start := 0
	for i, end := range append(slices.Clone(ops), len(out)) {
		if i > 0 {
			sign = append(sign, 1)
			if out[start-1] == '-' {
				sign[i] = -1
			}
		}
		part := strings.TrimSpace(out[start:end])
		fmt.Fprintf(&text, "def term%d(im, ctx):\n    x0 = im\n    return (%s)\n", i, part)
		r.terms = append(r.terms, term{text: strings.Join(strings.Fields(part), " "), sign: sign[i]})
		start = end + 1
	}
	text.WriteString("def reward(im, ctx):\n    return ")
	for i, s := range sign {
		switch {
		case s < 0:
			text.WriteString(" - ")
		case i > 0:
			text.WriteString(" + ")
		}
		fmt.Fprintf(&text, "term%d(im, ctx)", i)
	}
	text.WriteString("\n")
	globals, err := r.e.load(file, text.String(), names(w))
	if err != nil {
		return nil, fmt.Errorf("expression %q: %w", src, err)
	}
	r.e.whole, r.text = true, src
	r.one, _ = r.e.function(globals, "reward(im, ctx)")
	for i := range r.terms {
		r.terms[i].fn, _ = r.e.function(globals, fmt.Sprintf("term%d(im, ctx)", i))
		r.terms[i].text = strings.ReplaceAll(r.terms[i].text, "label=", "class=")
	}
	if len(r.terms) == 1 {
		r.terms = nil
	}
	return r, nil
}

// offset is where a position stands in s: a line ends with \n, \r\n or \r, a column is a rune, a byte that is not UTF-8 is one too.
func offset(s string, p syntax.Position) int {
	off := 0
	for line, col := int32(1), int32(1); off < len(s) && (line < p.Line || col < p.Col); {
		r, n := utf8.DecodeRuneInString(s[off:])
		if r == '\r' && strings.HasPrefix(s[off+1:], "\n") {
			n = 2
		}
		if off += n; r == '\r' || r == '\n' {
			line, col = line+1, 1
		} else {
			col++
		}
	}
	return off
}

// Text returns the script as it was given.
func (r *Rewards) Text() string { return r.text }

// Latent tells that pictures are wanted in the model's own space.
func (r *Rewards) Latent() bool { return r.latent }

// Terms names the additive terms of an expression of several.
func (r *Rewards) Terms() []string {
	var out []string
	for _, t := range r.terms {
		out = append(out, t.text)
	}
	return out
}

// Grouped tells that the script scores the pictures of a group together.
func (r *Rewards) Grouped() bool { return r.many != nil }

// Print sets what is told what the script prints.
func (r *Rewards) Print(f func(text string)) { r.e.Print = f }

// Scores is what a script says of the pictures of a check.
type Scores struct {
	Reward  []float64
	Terms   [][]float64          // of each picture, as Terms names them
	Columns map[string][]float64 // what log() was told, NaN where it was not
}

// check is one question to a script, shared by its images.
type check struct {
	ctx   context.Context
	x     []float64 // all images
	n     int
	shape []int
	mu    sync.Mutex
	nets  map[string]*answers
	world *Rewards
}

type answers struct {
	features, logits []float64
	nf, nl           int
}

// pictured is what a script under way finds on its thread.
type pictured struct {
	*check
	k       int // image, -1 = all of a group
	key     rng.Key
	drawn   int
	grad    bool // the gradient is wanted
	columns map[string]float64
}

// Score scores n images of the given shape; groups are ranges of images [from, to), which rewards() sees together. The
// result depends on the arguments alone.
func (r *Rewards) Score(ctx context.Context, at []Point, x []float64, shape []int, groups [][2]int) (*Scores, error) {
	n := len(at)
	w := size(shape)
	if len(x) != n*w {
		return nil, fmt.Errorf("script: %d values for %d images of shape %v", len(x), n, shape)
	}
	c := &check{ctx: ctx, x: x, n: n, shape: shape, nets: map[string]*answers{}, world: r}
	out := &Scores{Reward: make([]float64, n)}
	if len(r.terms) > 0 {
		out.Terms = make([][]float64, n)
	}
	columns := make([]map[string]float64, n)
	if r.many != nil {
		for _, g := range groups {
			v, cols, err := r.together(c, at[g[0]:g[1]], g[0], g[1])
			if err != nil {
				return nil, err
			}
			copy(out.Reward[g[0]:], v)
			for k := g[0]; k < g[1]; k++ {
				columns[k] = cols
			}
		}
		out.collect(columns)
		return out, nil
	}
	one := func(k int) error {
		p := &pictured{check: c, k: k, key: keyOf(at[k])}
		var err error
		im := x[k*w : (k+1)*w]
		if len(r.terms) == 0 {
			out.Reward[k], err = r.e.eval(ctx, r.one, point{at[k], p}, im, shape, nil, p)
		}
		for i, t := range r.terms {
			v, e := r.e.eval(ctx, t.fn, point{at[k], p}, im, shape, nil, p)
			if e != nil {
				err = e
				break
			}
			if i == 0 {
				out.Reward[k] = v
				if t.sign < 0 {
					out.Reward[k] = -v
				}
			} else {
				out.Reward[k] += t.sign * v
			}
			out.Terms[k] = append(out.Terms[k], t.sign*v)
		}
		columns[k] = p.columns
		return err
	}
	if err := spread(n, one); err != nil {
		return nil, err
	}
	out.collect(columns)
	return out, nil
}

// spread calls f with 0 ... n-1, on all processors. Of errors it returns the first by place, whoever was quicker.
func spread(n int, f func(k int) error) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	var next atomic.Int64
	for range min(n, runtime.GOMAXPROCS(0)) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for k := int(next.Add(1)) - 1; k < n; k = int(next.Add(1)) - 1 {
				errs[k] = f(k)
			}
		}()
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Scores) collect(columns []map[string]float64) {
	for k, m := range columns {
		for name, v := range m {
			if s.Columns == nil {
				s.Columns = map[string][]float64{}
			}
			if s.Columns[name] == nil {
				s.Columns[name] = slices.Repeat([]float64{math.NaN()}, len(columns))
			}
			s.Columns[name][k] = v
		}
	}
}

// purposeScript is ctx.rand() of scripts.
const purposeScript rng.Purpose = 1<<16 + 1

func keyOf(p Point) rng.Key {
	return rng.Key{Seed: p.Seed, Image: uint64(p.Particle), Step: p.Step, Purpose: purposeScript}
}

// together asks rewards() about a group.
func (r *Rewards) together(c *check, at []Point, from, to int) (v []float64, columns map[string]float64, err error) {
	defer func() {
		if e := recover(); e != nil {
			bad, ok := e.(failure)
			if !ok {
				panic(e)
			}
			err = fmt.Errorf("%s: %w", r.e.place(r.many.Position()), bad.error)
		}
	}()
	w := size(c.shape)
	ims := &Tensor{shape: append([]int{to - from}, c.shape...), v: c.x[from*w : to*w]}
	group := at[0]
	group.Particle = 0
	p := &pictured{check: c, k: -1, key: keyOf(group)}
	t := &tape{}
	t.reset()
	th := r.e.thread(c.ctx, t)
	th.SetLocal("local", p)
	out, err := starlark.Call(th, r.many, starlark.Tuple{ims, point{group, p}}, nil)
	if err != nil {
		return nil, nil, r.e.explain(err)
	}
	list, err := literal(out)
	if err != nil || len(list.v) != to-from || len(list.shape) == 0 {
		return nil, nil, fmt.Errorf("%s: rewards returned %s for %d pictures, want one number each", r.e.place(r.many.Position()), out.Type(), to-from)
	}
	return list.v, p.columns, nil
}

// Gradient writes the gradient of the reward of every image by that image.
func (r *Rewards) Gradient(ctx context.Context, at []Point, x []float64, shape []int, grad []float64) error {
	if r.many != nil {
		return fmt.Errorf("%s: rewards(ims, ctx) of a group has no gradient by one picture: define reward(im, ctx)", r.e.file)
	}
	w := size(shape)
	return spread(len(at), func(k int) error {
		im := x[k*w : (k+1)*w]
		c := &check{ctx: ctx, x: im, n: 1, shape: shape, nets: map[string]*answers{}, world: r}
		p := &pictured{check: c, k: 0, key: keyOf(at[k]), grad: true}
		_, err := r.e.eval(ctx, r.one, point{at[k], p}, im, shape, grad[k*w:(k+1)*w], p)
		return err
	})
}

// Check runs the script once on n made-up images, so that its mistakes are found before any work is done.
func (r *Rewards) Check(ctx context.Context, shape []int, n int) error {
	w := size(shape)
	x := make([]float64, n*w)
	for i := range x {
		x[i] = 0.8 * math.Sin(1+2.4*float64(i))
	}
	at := make([]Point, n)
	for k := range at {
		at[k] = Point{Moment: Moment{Steps: 1, T: 0.5, Sigma: 0.5, Alpha: 0.9, Progress: 0.5, Particle: k, Class: -1}, Previous: math.NaN()}
	}
	_, err := r.Score(ctx, at, x, shape, [][2]int{{0, n}})
	return err
}

// names are the functions that reach beyond the picture, and log.
func names(w World) starlark.StringDict {
	nets := &sync.Map{}
	net := func(name string) (Net, error) {
		if v, ok := nets.Load(name); ok {
			return v.(Net), nil
		}
		if w.Net == nil {
			return nil, fmt.Errorf("no network can be asked here")
		}
		n, err := w.Net(name)
		if err != nil {
			return nil, err
		}
		v, _ := nets.LoadOrStore(name, n)
		return v.(Net), nil
	}
	type loaded struct {
		t   *Tensor
		err error
	}
	var mu sync.Mutex
	arrays := map[[2]string]loaded{}
	out := starlark.StringDict{}
	add := func(name string, f func(th *starlark.Thread, p *pictured, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error)) {
		out[name] = starlark.NewBuiltin(name, func(th *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (v starlark.Value, err error) {
			defer caught(&err)
			p, ok := th.Local("local").(*pictured)
			if !ok {
				return nil, fmt.Errorf("%s is for the inside of a reward or an energy", name)
			}
			if err := p.ctx.Err(); err != nil {
				return nil, err
			}
			if v, err = f(th, p, args, kwargs); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			return v, nil
		})
	}
	classed := func(log bool) func(*starlark.Thread, *pictured, starlark.Tuple, []starlark.Tuple) (starlark.Value, error) {
		return func(th *starlark.Thread, p *pictured, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
			var name string
			var label, of starlark.Value
			if err := starlark.UnpackArgs("", args, kwargs, "net", &name, "label", &label, "of?", &of); err != nil {
				return nil, errors.New(strings.ReplaceAll(strings.TrimPrefix(err.Error(), ": "), "label", "class"))
			}
			n, err := net(name)
			if err != nil {
				return nil, err
			}
			k, err := classOf(n.Labels(), label)
			if err != nil {
				return nil, err
			}
			if x, ok := recorded(th, of); ok {
				return p.logpOf(x, n, k, log)
			}
			rows, nl, err := p.logits(name, n, of)
			if err != nil {
				return nil, err
			}
			var v []float64
			for len(rows) > 0 {
				v = append(v, logSoftmax(rows[:nl], k))
				rows = rows[nl:]
			}
			if !log {
				for i := range v {
					v[i] = math.Exp(v[i])
				}
			}
			if p.k < 0 {
				return &Tensor{shape: []int{len(v)}, v: v}, nil
			}
			return starlark.Float(v[0]), nil
		}
	}
	add("logp", classed(true))
	add("prob", classed(false))
	add("feat", func(th *starlark.Thread, p *pictured, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
		var name string
		var of starlark.Value
		if err := starlark.UnpackArgs("", args, kwargs, "net", &name, "of?", &of); err != nil {
			return nil, errors.New(strings.TrimPrefix(err.Error(), ": "))
		}
		n, err := net(name)
		if err != nil {
			return nil, err
		}
		if x, ok := recorded(th, of); ok {
			return p.featuresOf(x, n)
		}
		rows, nf, err := p.features(name, n, of)
		if err != nil {
			return nil, err
		}
		if p.k < 0 {
			return &Tensor{shape: []int{len(rows) / nf, nf}, v: rows}, nil
		}
		return &Tensor{shape: []int{nf}, v: rows}, nil
	})
	out["features"] = out["feat"]
	out["fetch"] = starlark.NewBuiltin("load", func(_ *starlark.Thread, _ *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
		var file, member string
		if err := starlark.UnpackArgs("load", args, kwargs, "file", &file, "member?", &member); err != nil {
			return nil, err
		}
		mu.Lock()
		defer mu.Unlock()
		key := [2]string{file, member}
		if a, ok := arrays[key]; ok {
			return a.t, a.err
		}
		if w.Load == nil {
			return nil, fmt.Errorf("load: no files can be read here")
		}
		v, shape, err := w.Load(file, member)
		a := loaded{&Tensor{shape: shape, v: v}, err}
		arrays[key] = a
		if err != nil {
			return nil, err
		}
		return a.t, nil
	})
	out["log"] = starlark.NewBuiltin("log", func(th *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
		if len(args) != 2 {
			return call(th, b, args, kwargs)
		}
		name, ok := starlark.AsString(args[0])
		v, isNumber := operand(args[1])
		p, inside := th.Local("local").(*pictured)
		if !ok || name == "" || !isNumber || len(v.v) != 1 || !inside {
			return nil, fmt.Errorf("log: want log(x) of a tensor or number, or log(name, value) of a number inside a reward or an energy")
		}
		if p.columns == nil {
			p.columns = map[string]float64{}
		}
		p.columns[name] = v.v[0]
		return starlark.None, nil
	})
	return out
}

// recorded is the picture that a network is asked about, where its gradient is wanted: that of the script, or another one
// computed from it.
func recorded(th *starlark.Thread, of starlark.Value) (*Tensor, bool) {
	x, _ := th.Local("picture").(*Tensor)
	if of != nil {
		x, _ = of.(*Tensor)
	}
	return x, x != nil && x.tape != nil
}

// picture checks that a network can be asked about x, with a gradient.
func (p *pictured) picture(x *Tensor, n Net) (GradNet, error) {
	g, ok := n.(GradNet)
	if !ok {
		return nil, errNoGradient
	}
	if len(x.v) != size(p.shape) {
		return nil, fmt.Errorf("of=: want a picture of shape %v", p.shape)
	}
	return g, nil
}

// logpOf is log p(k | x), or p(k | x), on the tape.
func (p *pictured) logpOf(x *Tensor, n Net, k int, log bool) (starlark.Value, error) {
	g, err := p.picture(x, n)
	if err != nil {
		return nil, err
	}
	logits := make([]float64, len(n.Labels()))
	if err := n.Run(p.ctx, x.v, nil, logits); err != nil {
		return nil, err
	}
	value := logSoftmax(logits, k)
	scale := 1.0
	if !log {
		value = math.Exp(value)
		scale = value
	}
	out := x.tape.make(nil, func(d []float64) {
		cot, grad := make([]float64, len(logits)), make([]float64, len(x.v))
		for j := range logits { // d log p_k/d logit_j = [j = k] - p_j
			cot[j] = -scale * d[0] * math.Exp(logSoftmax(logits, j))
		}
		cot[k] += scale * d[0]
		if err := g.VJP(p.ctx, x.v, nil, cot, grad); err != nil {
			panic(failure{err})
		}
		into := x.grad()
		for j, v := range grad {
			into[j] += v
		}
	}, x)
	out.v[0] = value
	return out, nil
}

// featuresOf is the features of x on the tape.
func (p *pictured) featuresOf(x *Tensor, n Net) (starlark.Value, error) {
	g, err := p.picture(x, n)
	if err != nil {
		return nil, err
	}
	out := x.tape.make([]int{n.Features()}, func(d []float64) {
		grad := make([]float64, len(x.v))
		if err := g.VJP(p.ctx, x.v, d, nil, grad); err != nil {
			panic(failure{err})
		}
		into := x.grad()
		for j, v := range grad {
			into[j] += v
		}
	}, x)
	if err := n.Run(p.ctx, x.v, out.v, nil); err != nil {
		return nil, err
	}
	return out, nil
}

// of is the other picture that a network is asked about.
func (p *pictured) other(of starlark.Value) ([]float64, error) {
	t, ok := operand(of)
	if !ok || len(t.v) != size(p.shape) {
		return nil, fmt.Errorf("of=: want a picture of shape %v", p.shape)
	}
	if t.tape != nil {
		return nil, errNoGradient
	}
	return t.v, nil
}

var errNoGradient = errors.New("has no gradient: it can stand in rewards only")

// fits compares the shape of pictures with that of a ShapedNet.
func fits(n Net, shape []int) error {
	if s, ok := n.(ShapedNet); ok && !slices.Equal(s.Shape(), shape) {
		return fmt.Errorf("the network takes pictures of shape %v, these have %v", s.Shape(), shape)
	}
	return nil
}

// ask runs a network, once for all pictures of a check.
func (p *pictured) ask(name string, n Net) (*answers, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a, ok := p.nets[name]; ok {
		return a, nil
	}
	if err := fits(n, p.shape); err != nil {
		return nil, err
	}
	a := &answers{nf: n.Features(), nl: len(n.Labels())}
	a.features, a.logits = make([]float64, p.n*a.nf), make([]float64, p.n*a.nl)
	if err := n.Run(p.ctx, p.x, a.features, a.logits); err != nil {
		return nil, err
	}
	p.nets[name] = a
	return a, nil
}

func (p *pictured) logits(name string, n Net, of starlark.Value) ([]float64, int, error) {
	if p.grad {
		return nil, 0, errNoGradient
	}
	nl := len(n.Labels())
	if of != nil {
		x, err := p.other(of)
		if err != nil {
			return nil, 0, err
		}
		if err := fits(n, p.shape); err != nil {
			return nil, 0, err
		}
		out := make([]float64, nl)
		return out, nl, n.Run(p.ctx, x, nil, out)
	}
	a, err := p.ask(name, n)
	if err != nil || p.k < 0 {
		if err != nil {
			return nil, 0, err
		}
		return a.logits, nl, nil
	}
	return a.logits[p.k*nl : (p.k+1)*nl], nl, nil
}

func (p *pictured) features(name string, n Net, of starlark.Value) ([]float64, int, error) {
	if p.grad {
		return nil, 0, errNoGradient
	}
	nf := n.Features()
	if of != nil {
		x, err := p.other(of)
		if err != nil {
			return nil, 0, err
		}
		if err := fits(n, p.shape); err != nil {
			return nil, 0, err
		}
		out := make([]float64, nf)
		return out, nf, n.Run(p.ctx, x, out, nil)
	}
	a, err := p.ask(name, n)
	if err != nil {
		return nil, 0, err
	}
	if p.k < 0 {
		return a.features, nf, nil
	}
	return a.features[p.k*nf : (p.k+1)*nf], nf, nil
}

func classOf(labels []string, v starlark.Value) (int, error) {
	switch v := v.(type) {
	case starlark.String:
		for k, l := range labels {
			if strings.EqualFold(l, string(v)) {
				return k, nil
			}
		}
		return 0, fmt.Errorf("unknown class %q; known: %s", string(v), strings.Join(labels, ", "))
	case starlark.Int:
		if k, err := starlark.AsInt32(v); err == nil && k >= 0 && k < len(labels) {
			return k, nil
		}
	}
	return 0, fmt.Errorf("class %v: want a name or 0 to %d", v, len(labels)-1)
}

func logSoftmax(v []float64, k int) float64 {
	top, sum := slices.Max(v), 0.0
	for _, x := range v {
		sum += math.Exp(x - top)
	}
	return v[k] - top - math.Log(sum)
}

// point is ctx of a reward.
type point struct {
	Point
	p *pictured
}

func (m point) String() string        { return "ctx" }
func (m point) Type() string          { return "ctx" }
func (m point) Freeze()               {}
func (m point) Truth() starlark.Bool  { return true }
func (m point) Hash() (uint32, error) { return 0, fmt.Errorf("ctx is no key") }

func (m point) Attr(name string) (starlark.Value, error) {
	switch name {
	case "prompt":
		return starlark.String(m.Prompt), nil
	case "nfe":
		return starlark.Float(m.NFE), nil
	case "strength":
		return starlark.Float(m.Lambda), nil
	case "previous":
		if math.IsNaN(m.Previous) {
			return starlark.None, nil
		}
		return starlark.Float(m.Previous), nil
	case "last":
		return starlark.Bool(m.Last), nil
	case "group":
		return starlark.MakeUint64(m.Seed), nil
	case "rand":
		return starlark.NewBuiltin("rand", func(_ *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
			if len(args)+len(kwargs) > 0 {
				return nil, fmt.Errorf("rand takes no arguments")
			}
			u := make([]float64, m.p.drawn+1)
			rng.Uniform(u, m.p.key)
			m.p.drawn++
			return starlark.Float(u[len(u)-1]), nil
		}), nil
	}
	return moment(m.Moment).Attr(name)
}

func (m point) AttrNames() []string {
	return append([]string{"group", "last", "nfe", "previous", "prompt", "rand", "strength"}, moment(m.Moment).AttrNames()...)
}
