package smc

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"drift/internal/rng"
	"drift/models"
)

func TestWeights(t *testing.T) {
	for _, g := range goldens(t, "fk.json") {
		if g.Method != "weights" {
			continue
		}
		in := decode[struct {
			LW []num `json:"log_weights"`
		}](t, g.Inputs)
		want := decode[struct {
			W       []num
			ESS     *float64
			LME     num      `json:"log_mean_exp"`
			Entropy *float64 `json:"entropy_normalised"`
			NaN     int      `json:"nan_count"`
		}](t, g.Expected)
		w, err := Weigh(floats(in.LW))
		if want.W == nil {
			if !errors.Is(err, ErrDead) || !math.IsInf(w.LogMean, -1) || w.ESS != 0 {
				t.Errorf("%s: %+v, %v", g.Name, w, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		g.close(t, "W", w.W, floats(want.W))
		if w.NaN != want.NaN {
			t.Errorf("%s: %d NaNs, want %d", g.Name, w.NaN, want.NaN)
		}
		if want.ESS != nil {
			g.close(t, "ESS, log mean, entropy", []float64{w.ESS, w.LogMean, w.Entropy}, []float64{*want.ESS, float64(want.LME), *want.Entropy})
		}
	}
}

// particles are goldens of another package.
func particles(t *testing.T) (file struct {
	Cases []struct {
		Set     string
		N, M    int
		LW, W   []num
		Schemes map[string]struct {
			U         []float64
			Ancestors []int
			Ties      []int    `json:"ancestors_if_ties_advance"`
			Distance  *float64 `json:"smallest_distance_to_a_cumulative_sum"`
		}
	}
	Weights []struct {
		Set     string
		LW      []num
		Rule    json.RawMessage `json:"lw_rule"`
		LSE     num             `json:"log_sum_exp"`
		LME     num             `json:"log_mean_exp"`
		ESS     num
		Entropy num `json:"normalised_entropy"`
	}
}) {
	data, err := os.ReadFile("testdata/resampling.json")
	if err == nil {
		err = json.Unmarshal(data, &file)
	}
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func TestWeightsOfParticles(t *testing.T) {
	n := 0
	for _, c := range particles(t).Weights {
		lw := floats(c.LW)
		if len(lw) == 0 {
			continue
		}
		w, err := Weigh(lw)
		if math.IsInf(slices.Max(lw), -1) {
			if !errors.Is(err, ErrDead) || !math.IsInf(w.LogMean, -1) {
				t.Errorf("%s: %+v, %v", c.Set, w, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(c.Set, err)
		}
		n++
		scale := max(1, math.Abs(slices.Max(lw)))
		if d := math.Abs(w.LogMean - float64(c.LME)); d > 1e-14*math.Abs(float64(c.LME))+4.5e-16*scale {
			t.Errorf("%s: log mean %.17g, want %.17g", c.Set, w.LogMean, float64(c.LME))
		}
		if d := math.Abs(w.ESS - float64(c.ESS)); d > 2e-14*float64(c.ESS) && scale < 100 || d > 1e-9*float64(c.ESS) {
			t.Errorf("%s: ESS %.17g, want %.17g", c.Set, w.ESS, float64(c.ESS))
		}
		if d := math.Abs(w.Entropy - float64(c.Entropy)); d > 1e-12 {
			t.Errorf("%s: entropy %.17g, want %.17g", c.Set, w.Entropy, float64(c.Entropy))
		}
	}
	if n < 8 {
		t.Errorf("only %d sets", n)
	}
}

func TestResamplersOfParticles(t *testing.T) {
	n := 0
	for _, c := range particles(t).Cases {
		w := floats(c.W)
		for name, s := range c.Schemes {
			r, err := ParseResampler(name)
			if err != nil {
				t.Fatal(err)
			}
			got, err := r.Ancestors(w, c.M, given(s.U))
			if err != nil {
				t.Fatal(c.Set, name, err)
			}
			n++
			want := s.Ancestors
			if s.Ties != nil {
				want = s.Ties
			}
			if s.Distance != nil && *s.Distance < 1e-15 { // round-off decides between neighbours
				for k, a := range got {
					if w[a] == 0 || a < want[k]-1 || a > want[k]+1 {
						t.Errorf("%s %s: %v, want about %v", c.Set, name, got, want)
						break
					}
				}
				continue
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s %s N=%d M=%d: %v, want %v", c.Set, name, c.N, c.M, got, want)
			}
		}
	}
	if n < 100 {
		t.Errorf("only %d cases", n)
	}
}

func TestResamplersGolden(t *testing.T) {
	for _, g := range goldens(t, "fk.json") {
		if g.Method != "resample" || g.Kind != "golden" {
			continue
		}
		o := decode[struct{ Resampler string }](t, g.Options)
		in := decode[struct {
			W    []float64
			Any  bool      `json:"any_uniforms"`
			Keep []float64 `json:"u_keep"`
			New  []float64 `json:"u_new"`
		}](t, g.Inputs)
		var lower struct {
			U []float64 `json:"u"`
		}
		fields := decode[map[string]json.RawMessage](t, g.Inputs)
		if raw, ok := fields["u"]; ok {
			lower.U = decode[[]float64](t, raw)
		}
		want := decode[struct{ Ancestors []int }](t, g.Expected).Ancestors
		r, err := ParseResampler(o.Resampler)
		if err != nil {
			t.Fatal(err)
		}
		// These goldens take the points of a multinomial draw as they are given.
		direct := func(rest []float64, n int) []int { return invert(rest, lower.U[:n]) }
		var got []int
		switch {
		case in.Any:
			got, err = r.Ancestors(in.W, len(in.W), uniforms(rng.Key{Seed: 5}))
		case r == Multinomial:
			got = direct(in.W, len(in.W))
		case r == Residual:
			got = residual(in.W, 1, len(in.W), direct)
		case r == Killing:
			all := invert(in.W, in.New)
			got = killing(in.W, in.Keep, func(n int) []int { return slices.Repeat([]int{-1}, n) })
			for i, a := range got {
				if a < 0 {
					got[i] = all[i]
				}
			}
		case r == SSP:
			got, err = r.Ancestors(in.W, len(in.W), given(lower.U))
		default:
			u := []float64{0}
			if raw := fields["U"]; raw[0] == '[' {
				u = decode[[]float64](t, raw)
			} else {
				u[0] = decode[float64](t, raw)
			}
			got, err = r.Ancestors(in.W, len(in.W), given(u))
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v (%v)", g.Name, got, want, err)
		}
	}
}

var everyResampler = []Resampler{Systematic, Stratified, SSP, Residual, Multinomial, Killing}

// TestResamplerMoments: offspring are unbiased, their variance is the scheme's, and those of systematic and SSP are
// the whole numbers next to K W.
func TestResamplerMoments(t *testing.T) {
	const runs = 40000
	for _, g := range goldens(t, "fk.json") {
		if g.Method != "resample" || g.Kind != "statistical" {
			continue
		}
		o := decode[struct {
			Resampler string
			W         []float64
		}](t, g.Options)
		r, err := ParseResampler(o.Resampler)
		if err != nil {
			t.Fatal(err)
		}
		k := len(o.W)
		sum, squares := make([]float64, k), make([]float64, k)
		index, index2 := 0.0, 0.0
		for run := range runs {
			a, err := r.Ancestors(o.W, k, uniforms(rng.Key{Seed: 9, Step: run}))
			if err != nil {
				t.Fatal(err)
			}
			n := make([]float64, k)
			m := 0.0
			for _, i := range a {
				n[i]++
				m += float64(i) / float64(k)
			}
			index += m / runs
			index2 += m * m / runs
			for i, c := range n {
				sum[i] += c / runs
				squares[i] += c * c / runs
				if e := float64(k) * o.W[i]; (r == Systematic || r == SSP) && (c < math.Floor(e+1e-9) || c > math.Ceil(e-1e-9)) {
					t.Fatalf("%s: %g offspring of a particle that has %g on average", r, c, e)
				}
			}
		}
		spread := 0.0
		for i := range sum {
			v := squares[i] - sum[i]*sum[i]
			spread += v
			if d := math.Abs(sum[i] - float64(k)*o.W[i]); d > 4.5*math.Sqrt(v/runs)+1e-9 {
				t.Errorf("%s: particle %d has %g offspring on average, want %g", r, i, sum[i], float64(k)*o.W[i])
			}
		}
		// The listed tolerances are for 100000 runs.
		widen := math.Sqrt(100000. / runs)
		for i, got := range []float64{spread, float64(k) * (index2 - index*index)} {
			if want := float64(*g.Stats[i].Value); math.Abs(got-want) > widen*g.Stats[i].Tol {
				t.Errorf("%s: %s is %g, want %g", r, g.Stats[i].Stat, got, want)
			}
		}
	}
}

func TestResamplerEdges(t *testing.T) {
	for _, r := range everyResampler {
		for _, w := range [][]float64{{3}, {0, 1}, {1, 0}, {0, 0, 5}, {1e-300, 0, 1e-300}, {0, 1e300, 0, 0}} {
			for step := range 200 {
				a, err := r.Ancestors(w, len(w), uniforms(rng.Key{Seed: 3, Step: step}))
				if err != nil || len(a) != len(w) {
					t.Fatalf("%s of %v: %v, %v", r, w, a, err)
				}
				for _, i := range a {
					if w[i] == 0 {
						t.Fatalf("%s of %v draws a dead particle: %v", r, w, a)
					}
				}
			}
		}
		for _, u := range []float64{0, 1 - 0x1p-53} { // the ends of the range
			a, err := r.Ancestors([]float64{0, 0.1, 0.2, 0.7, 0}, 5, func(n int) []float64 { return slices.Repeat([]float64{u}, n) })
			if err != nil || slices.Contains(a, 0) || slices.Contains(a, 4) || len(a) != 5 {
				t.Errorf("%s at u = %g: %v, %v", r, u, a, err)
			}
		}
		for _, w := range [][]float64{{}, {0, 0}, {-1, 2}, {math.NaN()}, {math.Inf(1), 1}} {
			if a, err := r.Ancestors(w, len(w), given(nil)); err == nil {
				t.Errorf("%s of %v: %v", r, w, a)
			}
		}
		if r == Multinomial {
			continue
		}
		for _, k := range []int{1, 2, 3, 5, 7, 64, 1000} {
			if a, err := r.Ancestors(slices.Repeat([]float64{1 / float64(k)}, k), k, uniforms(rng.Key{Seed: 4})); err != nil || !slices.Equal(a, identity(k)) {
				t.Errorf("%s of %d equal weights: %v, %v", r, k, a, err)
			}
		}
	}
	if _, err := Killing.Ancestors([]float64{1, 1}, 3, given(nil)); err == nil {
		t.Error("killing changed the number of particles")
	}
	if _, err := Resampler(9).Ancestors([]float64{1, 1}, 2, given(nil)); err == nil {
		t.Error("unknown resampler")
	}
}

// TestAlternating is the trap of systematic resampling: K W = 0.5, 1.5, 0.5 ... keeps all even particles or none.
func TestAlternating(t *testing.T) {
	const k, runs = 64, 4000
	w := make([]float64, k)
	for i := range w {
		w[i] = (0.5 + float64(i%2)) / k
	}
	spread := func(r Resampler) float64 {
		mean, square := 0.0, 0.0
		for run := range runs {
			a, err := r.Ancestors(w, k, uniforms(rng.Key{Seed: 6, Step: run}))
			if err != nil {
				t.Fatal(err)
			}
			even := 0.0
			for _, i := range a {
				if i%2 == 0 {
					even += 1. / k
				}
			}
			mean += even / runs
			square += even * even / runs
		}
		return k * (square - mean*mean)
	}
	for r, want := range map[Resampler]float64{Systematic: 4, Multinomial: 0.1875, SSP: 0.125, Stratified: 0.125} {
		if got := spread(r); math.Abs(got-want) > 0.15*want {
			t.Errorf("%s: K times the variance is %g, want %g", r, got, want)
		}
	}
}

func TestTemperature(t *testing.T) {
	for _, g := range goldens(t, "epf.json") {
		switch {
		case g.Name == "temperature-parity":
			in := decode[struct {
				Cases []struct {
					E, H, U float64
					Rule    string
				}
			}](t, g.Inputs)
			want := decode[struct{ T []float64 }](t, g.Expected).T
			for i, c := range in.Cases {
				rule, err := ParseTemperRule(c.Rule)
				if err != nil {
					t.Fatal(err)
				}
				g.close(t, c.Rule, []float64{rule.temperature(c.E, c.H, c.U)}, want[i:i+1])
			}
		case g.Method == "epf-temperature":
			in := decode[struct {
				LW       []float64 `json:"log_weights"`
				Progress float64
			}](t, g.Inputs)
			want := decode[struct{ T map[string]float64 }](t, g.Expected).T
			w, err := Weigh(in.LW)
			if err != nil {
				t.Fatal(err)
			}
			for name, v := range want {
				rule, err := ParseTemperRule(name)
				if err != nil {
					t.Fatal(err)
				}
				g.close(t, name, []float64{Temper{Rule: rule}.Temperature(w, in.Progress)}, []float64{v})
			}
		}
	}
}

// TestTemperedMean: a tempered draw leaves the expectation of exp(log Z) sum W phi as it is, for every rule, and the
// published form does not.
func TestTemperedMean(t *testing.T) {
	lw := []float64{0, -1, -2, -3, -6, -8, -4, -2.5}
	phi := []float64{3, 1, -2, 5, 0, 8, -4, 2}
	rows := Rows([]uint64{1}, len(lw))
	exact := 0.0
	for i, v := range lw {
		exact += math.Exp(v) * phi[i] / float64(len(lw))
	}
	for _, tc := range []Temper{{}, {Rule: TemperESS}, {Rule: TemperEntropy}, {Rule: TemperProgress}, {Rule: TemperESS, Drop: true}} {
		a := tally{}
		for run := range 20000 {
			p, err := newPopulation(rows)
			if err != nil {
				t.Fatal(err)
			}
			copy(p.LW, lw)
			parents, temps, err := p.resample(Policy{When: Always, Temper: tc}, run, 0.1, false)
			if err != nil {
				t.Fatal(err)
			}
			if (tc.Rule == TemperOff) != (temps[0] == 1) {
				t.Fatalf("temperature %g", temps[0])
			}
			sum := 0.0
			for j, i := range parents {
				sum += math.Exp(p.LW[j]) * phi[i] / float64(len(lw))
			}
			a.add("mean", math.Exp(p.Banked[0])*sum)
		}
		if !tc.Drop {
			a.near(t, "mean", exact)
		} else if m, sd := a.mean("mean"); math.Abs(m-exact) < 10*sd/math.Sqrt(20000) {
			t.Error("dropping the carried weights does not show")
		}
	}
}

func TestCarryGolden(t *testing.T) {
	for _, g := range goldens(t, "epf.json") {
		if g.Method != "epf-resample" {
			continue
		}
		in := decode[struct {
			LW   []float64 `json:"log_weights"`
			T, U float64
		}](t, g.Inputs)
		want := decode[struct {
			Ancestors []int
			After     []float64 `json:"log_weights_after"`
			LogZ      float64   `json:"log_Z_increment"`
		}](t, g.Expected)
		flat := make([]float64, len(in.LW))
		for i, v := range in.LW {
			flat[i] = v / in.T
		}
		w, err := Weigh(flat)
		if err != nil {
			t.Fatal(err)
		}
		a, err := Systematic.Ancestors(w.W, len(flat), given([]float64{in.U}))
		if err != nil || !slices.Equal(a, want.Ancestors) {
			t.Errorf("%s: %v, want %v (%v)", g.Name, a, want.Ancestors, err)
		}
		after := gather(in.LW, a)
		for i := range after {
			after[i] *= 1 - 1/in.T
		}
		g.close(t, "after", after, want.After)
		g.close(t, "log Z", []float64{w.LogMean}, []float64{want.LogZ})
	}
}

func TestPopulation(t *testing.T) {
	if _, err := newPopulation([]models.Row{{Seed: 1}, {Seed: 2}, {Seed: 1, Particle: 1}}); err == nil || !strings.Contains(err.Error(), "together") {
		t.Errorf("scattered group: %v", err)
	}
	if _, err := newPopulation([]models.Row{{Seed: 1}, {Seed: 1}}); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("one particle twice: %v", err)
	}
	p, err := newPopulation(append(Rows([]uint64{7, 3}, 3), models.Row{Seed: 9}))
	if err != nil {
		t.Fatal(err)
	}
	copy(p.LW, []float64{0, math.Inf(-1), math.Inf(-1), 1, 1, 1, 5})
	parents, _, err := p.resample(Policy{}, 4, 0.5, false)
	if err != nil || !slices.Equal(parents, []int{0, 0, 0, 3, 4, 5, 6}) {
		t.Fatalf("parents %v, %v", parents, err)
	}
	g := p.all()
	if g[0].Roots != 1 || g[0].Resampled != 1 || g[0].Diversity != 1 || math.Abs(g[0].LogZ+math.Log(3)) > 1e-15 || g[0].Variance != 1 {
		t.Errorf("dead group: %+v", g[0])
	}
	if g[1].Roots != 3 || g[1].Resampled != 0 || math.Abs(g[1].Diversity-3) > 1e-12 || g[1].LogZ != 1 || g[1].Variance != 0 || g[1].From != 3 || g[1].To != 6 {
		t.Errorf("group of equal weights: %+v", g[1])
	}
	if g[2].LogZ != 5 || !math.IsNaN(g[2].Variance) || g[2].ESS != 1 {
		t.Errorf("group of one: %+v", g[2])
	}
	for name, c := range map[string]struct {
		lw   []float64
		want error
	}{
		"dead": {[]float64{math.Inf(-1), math.Inf(-1)}, ErrDead},
		"inf":  {[]float64{0, math.Inf(1)}, ErrInfinite},
		"nan":  {[]float64{0, math.NaN()}, nil},
	} {
		p, _ := newPopulation(Rows([]uint64{11}, 2))
		copy(p.LW, c.lw)
		_, _, err := p.resample(Policy{}, 4, 0.5, false)
		var we *WeightError
		if !errors.As(err, &we) || we.Seed != 11 || we.Step != 5 || (c.want != nil && !errors.Is(err, c.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	p, _ = newPopulation(Rows([]uint64{11}, 3))
	copy(p.LW, []float64{0, 1e300, -1e308})
	if parents, _, err := p.resample(Policy{}, 0, 0, false); err != nil || !slices.Equal(parents, []int{1, 1, 1}) {
		t.Errorf("huge weight: %v, %v", parents, err)
	}
}

func TestPolicyRefused(t *testing.T) {
	for _, p := range []Policy{{When: 7}, {Resampler: -1}, {ESS: 1.5}, {ESS: math.NaN()}, {Temper: Temper{Rule: 9}}, {Temper: Temper{Phase: 2}}} {
		if p.check() == nil {
			t.Errorf("%+v passes", p)
		}
	}
	for _, s := range []string{"", "sys", "SYSTEMATIC"} {
		if _, err := ParseResampler(s); err == nil {
			t.Errorf("resampler %q", s)
		}
		if _, err := ParseWhen(s); err == nil {
			t.Errorf("policy %q", s)
		}
		if _, err := ParseTemperRule(s); err == nil {
			t.Errorf("rule %q", s)
		}
		if _, err := ParsePotential(s); err == nil {
			t.Errorf("potential %q", s)
		}
	}
	for s, want := range map[string]Potential{"diff": Difference, "add": Sum, "rt": Immediate, "max": Max, "none": None, "is": None} {
		if got, err := ParsePotential(s); got != want || err != nil {
			t.Errorf("potential %s: %v, %v", s, got, err)
		}
	}
}

func TestStrength(t *testing.T) {
	r := []float64{0.1, -0.4, 2, 1.5, 0.3, -3, math.Inf(-1), 0.9}
	for _, share := range []float64{0.2, 0.5, 0.8} {
		l, err := Strength(r, share)
		if err != nil {
			t.Fatal(err)
		}
		lw := make([]float64, len(r))
		for i, v := range r {
			lw[i] = l * v
		}
		if w, err := Weigh(lw); err != nil || math.Abs(w.ESS/8-share) > 1e-9 {
			t.Errorf("share %g: lambda %g has ESS %g of 8, %v", share, l, w.ESS, err)
		}
	}
	for _, c := range []struct {
		r     []float64
		share float64
	}{{[]float64{1, 1, 1}, 0.5}, {[]float64{2, 2, 1}, 0.5}, {r, 0}, {r, 1}, {r, math.NaN()}, {nil, 0.5}, {[]float64{math.NaN(), 1}, 0.5}, {[]float64{math.Inf(1), 1}, 0.5}} {
		if l, err := Strength(c.r, c.share); err == nil {
			t.Errorf("%v, %g: lambda %g", c.r, c.share, l)
		}
	}
}
