package schedules

import (
	"archive/zip"
	"encoding/binary"
	"encoding/json"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func mustDiscrete(t testing.TB, b Betas) *VPDiscrete {
	t.Helper()
	p, err := NewVPDiscrete(b)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// near tells whether a and b agree to tol relative to b.
func near(a, b, tol float64) bool {
	return a == b || math.Abs(a-b) <= tol*math.Abs(b)
}

var sd = Betas{Schedule: "scaled_linear", Start: 0.00085, End: 0.012}

// every returns one process of each kind.
func every(t testing.TB) []Gaussian {
	zero := sd
	zero.ZeroSNR = true
	return []Gaussian{
		VPLinear{}, VPLinear{BetaMin: 0, BetaMax: 10}, VPLinear{BetaMin: 3, BetaMax: 3}, SubVP{}, Cosine{}, VE{}, EDM{}, GeometricVE{}, Flow{}, Trig{},
		mustDiscrete(t, Betas{}), mustDiscrete(t, sd), mustDiscrete(t, zero), mustDiscrete(t, Betas{Schedule: "cosine"}),
		Interpolant{Label: "quadratic path", Alpha: func(t float64) float64 { return (1 - t) * (1 - t) }, Sigma: func(t float64) float64 { return t * (2 - t) }},
	}
}

// slope returns d log(sigma/alpha)/dt.
func slope(p Gaussian, n Node) float64 {
	da, ds := p.Rates(n.T)
	return ds/n.Sigma - da/n.Alpha
}

// Every value here was computed with 60 digits from the float64 value of t.
func TestCoefficientsAtBothEnds(t *testing.T) {
	for _, c := range []struct {
		p               Gaussian
		t, alpha, sigma float64
	}{
		{Cosine{}, 1e-12, 0.99999999999998057, 1.9711995263572143e-07},
		{Cosine{}, 1e-06, 0.99999998057064798, 0.00019712611125517109},
		{Cosine{}, 0.001, 0.99997935767453627, 0.0064252801356655103},
		{Cosine{}, 0.5, 0.70274005894116898, 0.71144670184024483},
		{Cosine{}, 0.999, 0.0015584501618705914, 0.99999878561580913},
		{Cosine{}, 1 - 0x1p-30, 1.4514204045992988e-09, 1},
		{VPLinear{}, 1e-12, 0.99999999999995004, 3.1622776603256234e-07},
		{VPLinear{}, 1e-06, 0.99999994999502628, 0.00031624349005000103},
		{VPLinear{}, 0.001, 0.99994502651109762, 0.010485416335094895},
		{VPLinear{}, 0.5, 0.28118288079675235, 0.9596542020680362},
		{VPLinear{}, 1, 0.0065715864949296154, 0.99997840689233863},
		{SubVP{}, 1e-12, 0.99999999999995004, 1.00000000009945e-13},
		{SubVP{}, 1e-06, 0.99999994999502628, 1.0000994499900511e-07},
		{SubVP{}, 0.5, 0.28118288079675235, 0.92093618754683937},
		{SubVP{}, 1, 0.0065715864949296154, 0.99995681425093963},
		{Trig{}, 1e-12, 1, 1.5707963267948965e-12},
		{Trig{}, 1e-06, 0.99999999999876632, 1.5707963267942506e-06},
		{Trig{}, 0.3, 0.8910065241883679, 0.45399049973954675},
		{Trig{}, 1 - 0x1p-30, 1.4629180792671596e-09, 1},
		{Flow{}, 1, 0, 1},
		{Trig{}, 1, 0, 1},
		{Cosine{}, 1, 0, 1},
	} {
		n := c.p.At(c.t)
		tol := 4e-16 * (1 - math.Log(max(c.alpha, 1e-3))) // log alpha itself is rounded
		if n.T != c.t || !near(n.Alpha, c.alpha, tol) || !near(n.Sigma, c.sigma, 4e-16) {
			t.Errorf("%s at %v: %v, want alpha %v sigma %v", c.p.Name(), c.t, n, c.alpha, c.sigma)
		}
	}
}

// The printed goldens of the field, to their printed digits.
func TestPrintedGoldens(t *testing.T) {
	for _, c := range []struct{ t, alpha, sigma, lambda, sub, sb float64 }{
		{0.001, 0.9999450265, 0.0104854163, 4.5577149327, 0.0001099440, 0.01048599279},
		{0.25, 0.7236571851, 0.6901596036, 0.0473948985, 0.4763202785, 0.9537107043},
		{0.5, 0.2811828808, 0.9596542021, -1.2275677344, 0.9209361875, 3.412918309},
		{0.75, 0.0586635030, 0.9982778137, -2.8342138291, 0.9965585934, 17.01701676},
		{1.0, 0.0065715865, 0.9999784069, -5.0249784067, 0.9999568143, 152.1669703},
	} {
		n, s := VPLinear{}.At(c.t), SubVP{}.At(c.t)
		for name, v := range map[string][2]float64{"alpha": {n.Alpha, c.alpha}, "sigma": {n.Sigma, c.sigma}, "lambda": {n.Lambda(), c.lambda}, "sub-VP sigma": {s.Sigma, c.sub}} {
			if math.Abs(v[0]-v[1]) > 0.6e-10 {
				t.Errorf("t=%g: %s %v, want %v", c.t, name, v[0], v[1])
			}
		}
		if !near(n.Ratio(), c.sb, 1e-9) {
			t.Errorf("t=%g: ratio %v, want %v", c.t, n.Ratio(), c.sb)
		}
	}
	for at, want := range map[float64]float64{0.25: 0.9203326362, 0.5: 0.7027400589, 0.75: 0.3798316764} {
		if got := (Cosine{}).At(at).Alpha; math.Abs(got-want) > 0.6e-10 {
			t.Errorf("cosine alpha(%g) = %v, want %v", at, got, want)
		}
	}
	index := []int{0, 249, 499, 749, 999}
	for _, c := range []struct {
		b    Betas
		want []float64
	}{
		{Betas{}, []float64{0.9999, 0.5240853738, 0.07858724288, 0.003350550439, 4.035829765e-05}},
		{sd, []float64{0.99915, 0.6754324137, 0.2776696505, 0.0566234916, 0.004660098513}},
		{Betas{Schedule: "cosine"}, []float64{0.9999587158, 0.8470121613, 0.4938435904, 0.1442721024, 2.428766907e-09}},
	} {
		abar := mustDiscrete(t, c.b).AlphasCumprod()
		for i, k := range index {
			if !near(abar[k], c.want[i], 1e-9) {
				t.Errorf("%s: abar[%d] = %v, want %v", c.b.Schedule, k, abar[k], c.want[i])
			}
		}
	}
}

func TestTableGoldens(t *testing.T) {
	g := loadGoldens(t)
	stride := max(g.AbarStride, 1)
	base := map[string]Betas{"sd": sd, "ddpm": {}, "cosine": {Schedule: "squaredcos_cap_v2"}}
	if len(g.Abar) != 6 {
		t.Fatalf("%d tables", len(g.Abar))
	}
	for name, want := range g.Abar {
		kind, zero := strings.CutSuffix(name, "-zero-snr")
		b := base[kind]
		b.ZeroSNR = zero
		got := mustDiscrete(t, b).AlphasCumprod()
		for i, v := range want {
			if !near(got[i*stride], v, 1e-12) {
				t.Errorf("%s: abar[%d] = %v, want %v", name, i*stride, got[i*stride], v)
			}
		}
	}
	for name, c := range g.Processes {
		p, err := ParseProcess([]byte(`{"type":"` + name + `"}`))
		if err != nil {
			t.Fatal(err)
		}
		for i, at := range c.T {
			n := p.At(at)
			if !near(n.Alpha, c.Alpha[i], 1e-12) || !near(n.Sigma, c.Sigma[i], 1e-12) || math.Abs(n.Lambda()-c.Lambda[i]) > 1e-12 {
				t.Errorf("%s at %v: %v, want %v %v", name, at, n, c.Alpha[i], c.Sigma[i])
			}
		}
	}
}

// At and AtRatio undo each other, as far as the spacing of the floating-point times allows.
func TestInverses(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, p := range every(t) {
		noise, data := p.Ends()
		for range 2000 {
			n := p.At(data + (noise-data)*rng.Float64())
			if n.Sigma == 0 || n.Alpha == 0 {
				continue
			}
			back := p.AtRatio(n.Ratio())
			g := math.Abs(slope(p, n))
			if math.Abs(back.T-n.T) > 1e-12*math.Abs(n.T)+1e-15/g {
				t.Fatalf("%s: time %v has ratio %v, which has time %v", p.Name(), n.T, n.Ratio(), back.T)
			}
			if !near(back.Alpha, n.Alpha, 1e-12) || !near(back.Sigma, n.Sigma, 1e-12) {
				t.Fatalf("%s: %v came back as %v", p.Name(), n, back)
			}
		}
		hi, lo := usualRange(p)
		top, bottom := math.Log(min(p.At(hi).Ratio(), 1e6)), math.Log(max(p.At(lo).Ratio(), 1e-6))
		for range 2000 {
			sb := math.Exp(bottom + (top-bottom)*rng.Float64())
			n := p.AtRatio(sb)
			if !near(n.Ratio(), sb, 1e-15) {
				t.Fatalf("%s: ratio %v gave a node with %v", p.Name(), sb, n.Ratio())
			}
			again := p.At(n.T)
			tol := 1e-12 + 4*0x1p-53*math.Abs(n.T*slope(p, n))
			if !near(again.Ratio(), sb, tol) || !near(again.Alpha, n.Alpha, tol) || !near(again.Sigma, n.Sigma, tol) {
				t.Fatalf("%s: ratio %v lies at time %v, where it is %v", p.Name(), sb, n.T, again.Ratio())
			}
		}
	}
}

func TestEndNodes(t *testing.T) {
	for _, p := range every(t) {
		if n := p.AtRatio(0); n.Sigma != 0 || n.Alpha != 1 || !n.valid() {
			t.Errorf("%s: clean node %v", p.Name(), n)
		}
		noise, data := p.Ends()
		if p.At(noise).Ratio() <= p.At(data).Ratio() {
			t.Errorf("%s: ends %g and %g are the wrong way round", p.Name(), noise, data)
		}
	}
	for _, p := range []Gaussian{Flow{}, Trig{}, Cosine{}} {
		if n := p.AtRatio(math.Inf(1)); n != (Node{1, 0, 1}) {
			t.Errorf("%s: node without signal %v", p.Name(), n)
		}
	}
}

func TestRates(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, p := range every(t) {
		noise, data := p.Ends()
		for range 300 {
			at := data + (noise-data)*(0.02+0.96*rng.Float64())
			lo, hi := data, noise
			if _, ok := p.(*VPDiscrete); ok { // smooth between two entries only
				lo = max(math.Floor(at), 0)
				hi = lo + 1
				at = lo + 0.02 + 0.96*(at-math.Floor(at))
			}
			da, ds := p.Rates(at)
			wa := derivative(func(t float64) float64 { return p.At(t).Alpha }, at, lo, hi)
			ws := derivative(func(t float64) float64 { return p.At(t).Sigma }, at, lo, hi)
			if math.Abs(da-wa) > 1e-8*(1e-3+math.Abs(wa)) || math.Abs(ds-ws) > 1e-8*(1e-3+math.Abs(ws)) {
				t.Fatalf("%s at %v: rates %v %v, differences %v %v", p.Name(), at, da, ds, wa, ws)
			}
		}
	}
}

func TestRatesAtTheEnds(t *testing.T) {
	up := math.Inf(1)
	own := Interpolant{Alpha: func(t float64) float64 { return math.Cos(t) }, Sigma: func(t float64) float64 { return math.Exp(t) - 1 }}
	for _, c := range []struct {
		p          Gaussian
		t, da, ds  float64
		withinHere float64
	}{
		{VPLinear{}, 0, -0.05, up, 1e-15},
		{VPLinear{BetaMin: 0, BetaMax: 10}, 0, 0, math.Sqrt(5), 1e-15},
		{SubVP{}, 0, -0.05, 0.1, 1e-15},
		{Flow{}, 0, -1, 1, 0},
		{Trig{}, 1, -math.Pi / 2, 0, 1e-15},
		{EDM{}, 0, 0, 1, 0},
		{own, 0, 0, 1, 1e-9},
		{own, 1, -math.Sin(1), math.E, 1e-9},
		{mustDiscrete(t, sd), -1, 0, 0, 0},
		{mustDiscrete(t, sd), 5000, 0, 0, 0},
	} {
		da, ds := c.p.Rates(c.t)
		if math.Abs(da-c.da) > c.withinHere || ds != c.ds && math.Abs(ds-c.ds) > c.withinHere {
			t.Errorf("%s at %g: rates %v %v, want %v %v", c.p.Name(), c.t, da, ds, c.da, c.ds)
		}
	}
	if _, ds := (Cosine{}).Rates(0); ds != up {
		t.Errorf("cosine at 0: %v", ds)
	}
	// At an entry of a table: the piece towards noise.
	d := mustDiscrete(t, sd)
	_, ds := d.Rates(500)
	if want := (d.At(500.001).Sigma - d.At(500).Sigma) / 0.001; !near(ds, want, 1e-5) {
		t.Errorf("table at 500: %v, want %v", ds, want)
	}
}

func TestDiscreteTable(t *testing.T) {
	p := mustDiscrete(t, sd)
	if p.Len() != 1000 {
		t.Fatal(p.Len())
	}
	for k := range 1000 {
		n := p.At(float64(k))
		if back := p.AtRatio(n.Ratio()); math.Abs(back.T-float64(k)) > 1e-11 {
			t.Fatalf("entry %d came back as time %v", k, back.T)
		}
	}
	for at, want := range map[float64]float64{-7: -1, -1: -1, -0.5: 0, 999: 999, 1500: 999} {
		if got := p.At(at).T; got != want {
			t.Errorf("At(%g).T = %v, want %v", at, got, want)
		}
	}
	if n := p.AtRatio(1e-4); n.T != 0 || !near(n.Ratio(), 1e-4, 1e-15) {
		t.Errorf("below the table: %v", n)
	}
	if n := p.AtRatio(100); n.T != 999 || !near(n.Ratio(), 100, 1e-15) {
		t.Errorf("above the table: %v", n)
	}
	half := p.At(10.5)
	if want := math.Sqrt(p.At(10).Ratio() * p.At(11).Ratio()); !near(half.Ratio(), want, 1e-15) {
		t.Errorf("between entries: ratio %v, want the geometric mean %v", half.Ratio(), want)
	}
	if !math.IsNaN(p.At(math.NaN()).Alpha) {
		t.Error("NaN has a node")
	}

	zero := sd
	zero.ZeroSNR = true
	z := mustDiscrete(t, zero)
	if n := z.At(999); n != (Node{999, 0, 1}) {
		t.Errorf("zero terminal SNR ends at %v", n)
	}
	if n, m := z.At(0), p.At(0); !near(n.Alpha, m.Alpha, 1e-15) || !near(n.Sigma, m.Sigma, 1e-15) {
		t.Errorf("zero terminal SNR starts at %v, want %v", n, m)
	}
	if n := z.At(998.5); !near(n.Ratio(), 2*z.At(998).Ratio(), 1e-12) {
		t.Errorf("half-way to no signal: %v", n)
	}
	if n := z.AtRatio(math.Inf(1)); n != (Node{999, 0, 1}) {
		t.Errorf("AtRatio(+Inf) = %v", n)
	}
}

func TestBetas(t *testing.T) {
	plain := mustDiscrete(t, Betas{Steps: 10})
	table, err := Betas{Steps: 10}.Table()
	if err != nil {
		t.Fatal(err)
	}
	trained := mustDiscrete(t, Betas{Trained: table})
	if b := trained.Betas(); b.Steps != 10 || !slices.Equal(b.Trained, table) || b.Schedule != "linear" {
		t.Errorf("%+v", b)
	}
	for i, a := range plain.AlphasCumprod() {
		if trained.AlphasCumprod()[i] != a {
			t.Errorf("trained table differs at %d", i)
		}
	}
	// Closed forms: exp has alpha^2 = exp(-12 t); sigmoid runs from near Start to near End and is symmetric.
	e := mustDiscrete(t, Betas{Schedule: "exp", Steps: 50}).AlphasCumprod()
	for i, a := range e {
		if want := math.Exp(-12 * float64(i+1) / 50); !near(a, want, 1e-12) {
			t.Errorf("exp: abar[%d] = %v, want %v", i, a, want)
		}
	}
	s, err := Betas{Schedule: "sigmoid", Start: 0.1, End: 0.3, Steps: 7}.Table()
	if err != nil {
		t.Fatal(err)
	}
	if !near(s[0], 0.1+0.2/(1+math.Exp(6)), 1e-15) || !near(s[3], 0.2, 1e-15) || !near(s[1]+s[5], 0.4, 1e-15) {
		t.Errorf("sigmoid: %v", s)
	}
	bar := func(t float64) float64 { // the square root of snr/(1+snr), log snr = -sign(1/2-t) log(1-2|1/2-t|+1e-6)/2
		x := 1e-6 + min(2*t, 2-2*t)
		if t <= 0.5 {
			x = 1 / x
		}
		return math.Sqrt(1 / (1 + 1/math.Sqrt(x)))
	}
	for i, a := range mustDiscrete(t, Betas{Schedule: "laplace", Steps: 8}).AlphasCumprod()[:7] {
		if want := bar(float64(i+1)/8) / bar(0); !near(a, want, 1e-12) {
			t.Errorf("laplace: abar[%d] = %v, want %v", i, a, want)
		}
	}
	for want, b := range map[string]Betas{
		"unknown beta schedule": {Schedule: "linaer"},
		"steps":                 {Steps: 1},
		"beta 0 is":             {Start: -1, End: 0.5},
		"beta 2 is":             {Trained: []float64{0.1, 0.2, 1}},
		"3 trained betas for 4": {Trained: []float64{0.1, 0.2, 0.3}, Steps: 4},
		"beta 1 is NaN":         {Trained: []float64{0.1, math.NaN()}},
	} {
		if _, err := NewVPDiscrete(b); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: error %v, want %q", b, err, want)
		}
	}
}

// An interpolant given as functions agrees with the process written out, in either direction of time.
func TestInterpolant(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for _, p := range []Gaussian{Flow{}, Trig{}, VPLinear{}, Cosine{}} {
		alpha, sigma := func(t float64) float64 { return p.At(t).Alpha }, func(t float64) float64 { return p.At(t).Sigma }
		forms := []struct {
			q    Interpolant
			time func(t float64) float64
		}{
			{Interpolant{Alpha: alpha, Sigma: sigma, Slope: p.Rates}, func(t float64) float64 { return t }},
			{Interpolant{Alpha: alpha, Sigma: sigma}, func(t float64) float64 { return t }},
			{Interpolant{
				Alpha: func(t float64) float64 { return alpha(1 - t) }, Sigma: func(t float64) float64 { return sigma(1 - t) },
				Noise: 0, Data: 1,
			}, func(t float64) float64 { return 1 - t }},
		}
		for range 300 {
			sb := math.Exp(-4 + 8*rng.Float64())
			want := p.AtRatio(sb)
			for i, f := range forms {
				got := f.q.AtRatio(sb)
				tol := 1e-14 + 1e-15/math.Abs(slope(p, want))
				if math.Abs(got.T-f.time(want.T)) > tol || !near(got.Alpha, want.Alpha, 1e-13) || !near(got.Ratio(), sb, 1e-15) {
					t.Fatalf("%s, form %d: ratio %v at %v, want %v", p.Name(), i, sb, got, want)
				}
			}
		}
	}
	out := Interpolant{Alpha: func(float64) float64 { return 1 }, Sigma: func(t float64) float64 { return 1 + t }}
	if n := out.AtRatio(5); n.T != 1 || !near(n.Ratio(), 5, 1e-15) {
		t.Errorf("beyond the noise end: %v", n)
	}
	if n := out.AtRatio(0.5); n.T != 0 || !near(n.Ratio(), 0.5, 1e-15) {
		t.Errorf("beyond the data end: %v", n)
	}
}

// The exact values of the analytic targets: alpha and sigma at their times, for every process that they use.
func TestTargets(t *testing.T) {
	dir := os.Getenv("DRIFT_FIXTURES")
	if dir == "" {
		t.Skip("DRIFT_FIXTURES is not set")
	}
	files, err := filepath.Glob(filepath.Join(dir, "solvers", "targets", "*.json"))
	if err != nil || len(files) < 20 {
		t.Fatalf("%d targets, %v", len(files), err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var target struct{ Process json.RawMessage }
		if err := json.Unmarshal(text, &target); err != nil {
			t.Fatal(err)
		}
		p, err := ParseProcess(target.Process)
		if err != nil {
			t.Errorf("%s: %v", f, err)
			continue
		}
		check := strings.TrimSuffix(f, ".json") + ".check.npz"
		at, alpha, sigma := npy(t, check, "t"), npy(t, check, "alpha"), npy(t, check, "sigma")
		x0, eps, velocity := npy(t, check, "x0"), npy(t, check, "eps"), npy(t, check, "velocity")
		for i, v := range at {
			n := p.At(v)
			if !near(n.Alpha, alpha[i], 1e-12) || !near(n.Sigma, sigma[i], 1e-12) {
				t.Errorf("%s at %v: %v, want alpha %v sigma %v", filepath.Base(f), v, n, alpha[i], sigma[i])
			}
			if velocity == nil {
				continue
			}
			dim := len(x0) / len(at)
			da, ds := p.Rates(v)
			for j := i * dim; j < (i+1)*dim; j++ {
				a, b := da*x0[j], ds*eps[j]
				if math.Abs(a+b-velocity[j]) > 1e-11*(math.Abs(a)+math.Abs(b)) {
					t.Errorf("%s at %v: velocity %v, want %v", filepath.Base(f), v, a+b, velocity[j])
				}
			}
		}
	}
}

// npy reads a float64 member of an npz, nil when it is not there.
func npy(t *testing.T, path, name string) []float64 {
	t.Helper()
	z, err := zip.OpenReader(path)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	f, err := z.Open(name + ".npy")
	if err != nil {
		return nil
	}
	text, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	if string(text[:7]) != "\x93NUMPY\x01" {
		t.Fatalf("%s: %s is not npy version 1", path, name)
	}
	body := 10 + int(binary.LittleEndian.Uint16(text[8:]))
	if !strings.Contains(string(text[10:body]), "'<f8'") {
		t.Fatalf("%s: %s is not float64", path, name)
	}
	out := make([]float64, (len(text)-body)/8)
	for i := range out {
		out[i] = math.Float64frombits(binary.LittleEndian.Uint64(text[body+8*i:]))
	}
	return out
}

// Every node of every recorded run: alpha, sigma and time at its sigma/alpha.
func TestTrajectoryNodes(t *testing.T) {
	dir := os.Getenv("DRIFT_FIXTURES")
	if dir == "" {
		t.Skip("DRIFT_FIXTURES is not set")
	}
	text, err := os.ReadFile(filepath.Join(dir, "solvers", "trajectories", "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var index struct {
		Runs []struct {
			File    string
			Process json.RawMessage
		}
	}
	if err := json.Unmarshal(text, &index); err != nil {
		t.Fatal(err)
	}
	nodes := 0
	for _, r := range index.Runs {
		p, err := ParseProcess(r.Process)
		if err != nil {
			t.Fatalf("%s: %v", r.File, err)
		}
		path := filepath.Join(dir, "solvers", "trajectories", r.File)
		sb, at, alpha, sigma := npy(t, path, "sigmas"), npy(t, path, "t"), npy(t, path, "alpha"), npy(t, path, "sigma")
		for i := range sb {
			n := p.AtRatio(sb[i])
			if !near(n.Alpha, alpha[i], 1e-12) || !near(n.Sigma, sigma[i], 1e-12) || math.Abs(n.T-at[i]) > 1e-12*max(1, math.Abs(at[i])) {
				t.Errorf("%s: node %d at sigma/alpha %v is %v, recorded t %v alpha %v sigma %v", r.File, i, sb[i], n, at[i], alpha[i], sigma[i])
			}
			nodes++
		}
	}
	if nodes < 1000 {
		t.Errorf("%d nodes", nodes)
	}
}
