package smc

import (
	"context"
	"math"
	"strings"
	"testing"
)

// gaussian is exp(logZ) N(mu, v) in one dimension.
func gaussian(mu, v, logZ float64) Density {
	return Density{Dim: 1, Log: func(x, grad []float64) float64 {
		if grad != nil {
			grad[0] = -(x[0] - mu) / v
		}
		return logZ - 0.5*math.Log(2*math.Pi*v) - 0.5*(x[0]-mu)*(x[0]-mu)/v
	}}
}

// quadraticLog is exp(-(x-mu)^2/(2 v)), not normalised.
func quadraticLog(mu, v float64) Density {
	return Density{Dim: 1, Log: func(x, grad []float64) float64 {
		if grad != nil {
			grad[0] = -(x[0] - mu) / v
		}
		return -0.5 * (x[0] - mu) * (x[0] - mu) / v
	}}
}

func gmm(w []float64, m, v []float64) Density {
	return Density{Dim: 1, Log: func(x, grad []float64) float64 {
		lw := make([]float64, len(w))
		for c := range w {
			lw[c] = math.Log(w[c]) - 0.5*math.Log(2*math.Pi*v[c]) - 0.5*(x[0]-m[c])*(x[0]-m[c])/v[c]
		}
		q, err := Weigh(lw)
		if err != nil {
			return math.Inf(-1)
		}
		if grad != nil {
			grad[0] = 0
			for c, p := range q.W {
				grad[0] -= p * (x[0] - m[c]) / v[c]
			}
		}
		return q.LogMean + math.Log(float64(len(w)))
	}}
}

type bridgeCase struct {
	Mu, Var, Sigma, T float64
	LogZ              float64 `json:"log_Z"`
	Control           string
	Xi                [][]float64
	XInit             []float64 `json:"x_init"`
	A                 float64
	X, W              []float64
	H, Lambda         float64
	Steps, Particles  int
}

func (c bridgeCase) bridge(steps int) Bridge {
	b := Bridge{Sigma: c.Sigma, T: c.T, Steps: steps}
	if c.Control == "optimal" {
		b.Control = b.GaussianControl([]float64{c.Mu}, []float64{c.Var})
	}
	return b
}

func TestPathGoldens(t *testing.T) {
	ctx := context.Background()
	n := 0
	for _, g := range goldens(t, "logz.json") {
		if g.Kind != "golden" {
			continue
		}
		n++
		in := decode[bridgeCase](t, g.Inputs)
		want := decode[struct {
			LogPB []float64   `json:"log_PB"`
			LogPF []float64   `json:"log_PF"`
			LW    []float64   `json:"log_weights"`
			Path  [][]float64 `json:"trajectory"`
			X, Y  []float64
			DS    []float64 `json:"delta_S"`
			U     []float64 `json:"u_difference"`
			Log   []float64 `json:"mala_log_accept"`
			Well  float64   `json:"manywell_1d_integral"`
			Many  float64   `json:"manywell_32_log_Z"`
		}](t, g.Expected)
		given := func(z []float64, j, k int) { z[0] = in.Xi[k][j] }
		switch g.Method {
		case "dgfs":
			out, err := in.bridge(len(in.Xi)).sample(ctx, gaussian(in.Mu, in.Var, in.LogZ), len(in.Xi[0]), given)
			if err != nil {
				t.Fatal(err)
			}
			g.close(t, "x", out.X, want.Path[len(want.Path)-1])
			g.close(t, "log_PB", out.LogPB, want.LogPB)
			g.close(t, "log_PF", out.LogPF, want.LogPF)
			g.close(t, "log_weights", out.LogWeights, want.LW)
			// The same weights against Brownian motion without control.
			ref := in.Sigma * in.Sigma * in.T
			for j, x := range out.X {
				lw := gaussian(in.Mu, in.Var, in.LogZ).Log([]float64{x}, nil) + 0.5*math.Log(2*math.Pi*ref) + 0.5*x*x/ref + out.Girsanov[j]
				if math.Abs(lw-want.LW[j]) > 1e-9 {
					t.Errorf("%s: the other form of the weight is %.12g, want %.12g", g.Name, lw, want.LW[j])
				}
			}
		case "dds":
			s := Denoising{Sigma: in.Sigma, A: in.A, Steps: len(in.Xi), Control: func(_ float64, x, u []float64) { u[0] = 0.1 * (in.Mu - x[0]) / (in.Sigma * in.Sigma) }}
			out, err := s.sample(ctx, gaussian(in.Mu, in.Var, 0), len(in.XInit), func(x []float64, j int) { x[0] = in.XInit[j] }, given)
			if err != nil {
				t.Fatal(err)
			}
			g.close(t, "x", out.X, want.X)
			g.close(t, "log_weights", out.LogWeights, want.LW)
		case "langevin-block":
			a := Anneal{From: quadraticLog(0, 1), To: quadraticLog(1, 0.25)}
			level := a.mix(in.Lambda)
			var y, dS, du, log []float64
			for i, x := range in.X {
				to, back, f, h := Langevin{Step: in.H}.propose([]float64{x}, in.W[i:i+1], level)
				y = append(y, to[0])
				dS = append(dS, 0.5*(in.W[i]*in.W[i]-back[0]*back[0]))
				du = append(du, f-h)
				log = append(log, min(0, h-f+0.5*(in.W[i]*in.W[i]-back[0]*back[0])))
			}
			g.close(t, "y", y, want.Y)
			g.close(t, "delta_S", dS, want.DS)
			g.close(t, "u_difference", du, want.U)
			g.close(t, "mala_log_accept", log, want.Log)
		case "log-Z":
			sum := 0.0
			const h = 1e-3
			for i := -6000; i <= 6000; i++ {
				x := float64(i) * h
				sum += h * math.Exp(-x*x*x*x+6*x*x+x/2)
			}
			g.close(t, "well", []float64{sum, 16 * (math.Log(sum) + 0.5*math.Log(2*math.Pi))}, []float64{want.Well, want.Many})
		default:
			t.Errorf("unknown case %s", g.Name)
		}
	}
	if n != 7 {
		t.Errorf("%d cases, want 7", n)
	}
}

func startNormal(sd float64) func([]float64, *Draws) {
	return func(x []float64, d *Draws) {
		d.Normal(x)
		for i := range x {
			x[i] *= sd
		}
	}
}

func TestDensityFixtures(t *testing.T) {
	ctx := context.Background()
	n := 0
	tenth := []float64{0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1}
	for _, g := range goldens(t, "logz.json") {
		if g.Kind != "statistical" {
			continue
		}
		n++
		opt := decode[struct {
			bridgeCase
			Levels any
			Start  float64 `json:"start_variance"`
		}](t, g.Options)
		runs := g.Runs
		if !isSlow() {
			runs = max(12, runs/20)
		}
		logZ := 0.0
		var run func(seed uint64) (logZ, elbo float64, err error)
		anneal := func(a Anneal) func(uint64) (float64, float64, error) {
			return func(seed uint64) (float64, float64, error) {
				out, err := a.Run(ctx, seed, opt.Particles)
				if err != nil {
					return 0, 0, err
				}
				return out.LogZ, out.ELBO, nil
			}
		}
		never := Policy{When: Never}
		snf := Anneal{From: quadraticLog(0, 1), To: quadraticLog(1, 0.25), Start: startNormal(1), Levels: tenth, Policy: never}
		switch {
		case g.Method == "dgfs":
			logZ = opt.LogZ
			run = func(seed uint64) (float64, float64, error) {
				out, err := opt.bridge(opt.Steps).Sample(ctx, gaussian(opt.Mu, opt.Var, opt.LogZ), seed, opt.Particles)
				if err != nil {
					return 0, 0, err
				}
				return out.LogZ, out.ELBO, nil
			}
		case g.Name == "snf-langevin":
			logZ = math.Log(0.5)
			snf.Blocks = []Block{Langevin{Step: opt.H}, Langevin{Step: opt.H}}
			run = anneal(snf)
		case g.Name == "snf-metropolis":
			logZ = math.Log(0.5)
			snf.Blocks = []Block{Metropolis{SD: 0.25}, Metropolis{SD: 0.25}}
			run = anneal(snf)
		case strings.HasPrefix(g.Name, "snf-without"):
			logZ = math.Log(0.5)
			forget := func(x []float64, l Density, d *Draws) float64 { Langevin{Step: opt.H}.Apply(x, l, d); return 0 }
			snf.Blocks = []Block{blockFunc(forget), blockFunc(forget)}
			run = anneal(snf)
		case strings.HasPrefix(g.Name, "ais"):
			a := Anneal{From: gaussian(0, opt.Start, 0), To: gmm([]float64{0.5, 0.5}, []float64{-2, 2}, []float64{0.09, 0.36}), Start: startNormal(math.Sqrt(opt.Start)), Policy: never}
			for k := range 50 {
				a.Levels = append(a.Levels, float64(k+1)/50)
			}
			for range 4 {
				if g.Name == "ais-mala" {
					a.Blocks = append(a.Blocks, MALA{Step: opt.H})
				} else {
					a.Blocks = append(a.Blocks, Langevin{Step: opt.H, Biased: true})
				}
			}
			run = anneal(a)
		default:
			t.Fatalf("unknown case %s", g.Name)
		}
		got := tally{}
		for r := range runs {
			z, elbo, err := run(uint64(r + 1))
			if err != nil {
				t.Fatal(err)
			}
			got.add("Z", math.Exp(z-logZ))
			got.add("ELBO", elbo)
		}
		t.Run(g.Name, func(t *testing.T) {
			for _, s := range g.Stats {
				name := "Z"
				if strings.Contains(s.Stat, "ELBO") {
					name = "ELBO"
				}
				m, _ := got.mean(name)
				s.hold(t, m, runs)
			}
		})
	}
	if n != 8 {
		t.Errorf("%d cases, want 8", n)
	}
}

type blockFunc func(x []float64, l Density, d *Draws) float64

func (f blockFunc) Apply(x []float64, l Density, d *Draws) float64 { return f(x, l, d) }

// TestBlocks: every block keeps E exp(lw) = Z1/Z0 on the way from N(0, 1) to a shifted Gaussian in two dimensions, alone or
// between flows; with flows only the weight is the change of variables; AIS, SMC and adaptive levels agree.
func TestBlocks(t *testing.T) {
	ctx := context.Background()
	two := func(mu, v float64) Density {
		return Density{Dim: 2, Log: func(x, grad []float64) float64 {
			sum := 0.0
			for i := range x {
				e := x[i] - mu
				sum -= 0.5 * e * e / v
				if grad != nil {
					grad[i] = -e / v
				}
			}
			return sum
		}}
	}
	base := Anneal{From: two(0, 1), To: two(1, 0.25), Start: startNormal(1)}
	want := math.Log(0.25) // (0.25)^(2/2)
	scale := Flow(func(x []float64) float64 {
		for i := range x {
			x[i] = 0.9*x[i] + 0.05
		}
		return 2 * math.Log(0.9)
	})
	levels := []float64{0.1, 0.2, 0.35, 0.5, 0.7, 1}
	for name, a := range map[string]Anneal{
		"langevin":    {Blocks: []Block{Langevin{Step: 0.05}}, Levels: levels, Policy: Policy{When: Never}},
		"underdamped": {Blocks: []Block{Underdamped{Step: 0.2, Gamma: 1}}, Levels: levels, Policy: Policy{When: Never}},
		"mala":        {Blocks: []Block{MALA{Step: 0.1}}, Levels: levels, Policy: Policy{When: Never}},
		"hmc":         {Blocks: []Block{HMC{Step: 0.2, Leaps: 4}}, Levels: levels, Policy: Policy{When: Never}},
		"metropolis":  {Blocks: []Block{Metropolis{SD: 0.4}}, Levels: levels, Policy: Policy{When: Never}},
		"flow":        {Blocks: []Block{scale, MALA{Step: 0.1}}, Levels: levels, Policy: Policy{When: Never}},
		"smc":         {Blocks: []Block{HMC{Step: 0.2, Leaps: 4}}, Levels: levels},
		"every":       {Blocks: []Block{MALA{Step: 0.1}}, Levels: levels, Policy: Policy{When: Always, Resampler: SSP}},
		"tempered":    {Blocks: []Block{MALA{Step: 0.1}}, Levels: levels, Policy: Policy{When: Always, Temper: Temper{Rule: TemperESS, Threshold: 1}}},
		"adaptive":    {Blocks: []Block{HMC{Step: 0.3, Leaps: 3}}},
	} {
		a.From, a.To, a.Start = base.From, base.To, base.Start
		got := tally{}
		for r := range 150 {
			out, err := a.Run(ctx, uint64(r+1), 40)
			if err != nil {
				t.Fatal(name, err)
			}
			got.add(name, math.Exp(out.LogZ-want))
			if last := out.Levels[len(out.Levels)-1]; last != 1 {
				t.Fatalf("%s ends at level %g", name, last)
			}
		}
		if name == "adaptive" { // levels that look at the particles leave a bias of order 1/K
			m, _ := got.mean(name)
			if math.Abs(m-1) > 0.05 {
				t.Errorf("adaptive levels: Z %.3f of the truth", m)
			}
			continue
		}
		got.near(t, name, 1)
	}
	// A flow alone, exactly: from N(0, 1) by y = x/2 + 1 to the target, all weights are Z1/Z0.
	exact := Anneal{From: base.From, To: base.To, Start: base.Start, Levels: []float64{1}, Policy: Policy{When: Never}, First: []Block{Flow(func(x []float64) float64 {
		for i := range x {
			x[i] = 0.5*x[i] + 1
		}
		return 2 * math.Log(0.5)
	})}}
	out, err := exact.Run(ctx, 5, 20)
	if err != nil {
		t.Fatal(err)
	}
	for _, lw := range out.LogWeights {
		if math.Abs(lw-want) > 1e-12 {
			t.Errorf("the exact flow has weight %g, want %g", lw, want)
		}
	}
	if _, err := (Anneal{From: base.From, To: base.To, Start: base.Start, Levels: []float64{0.5, 0.4, 1}}).Run(ctx, 1, 4); err == nil {
		t.Error("levels that fall")
	}
}

// TestBridge: the control of a mixture makes weights light in two dimensions; no control is importance sampling; the
// normaliser is unbiased for any control.
func TestBridge(t *testing.T) {
	ctx := context.Background()
	w, m, v := []float64{0.3, 0.7}, [][]float64{{-1.5, 1}, {1, -0.5}}, [][]float64{{0.2, 0.3}, {0.3, 0.1}}
	target := Density{Dim: 2, Log: func(x, _ []float64) float64 {
		lw := make([]float64, len(w))
		for c := range w {
			lw[c] = math.Log(w[c])
			for i := range x {
				lw[c] += -0.5*math.Log(2*math.Pi*v[c][i]) - 0.5*(x[i]-m[c][i])*(x[i]-m[c][i])/v[c][i]
			}
		}
		q, err := Weigh(lw)
		if err != nil {
			return math.Inf(-1)
		}
		return 0.7 + q.LogMean + math.Log(2)
	}}
	b := Bridge{Sigma: 1.5, T: 1, Steps: 200}
	b.Control = b.MixtureControl(w, m, v)
	out, err := b.Sample(ctx, target, 1, 400)
	if err != nil {
		t.Fatal(err)
	}
	if out.ESS < 340 || math.Abs(out.LogZ-0.7) > 0.05 || out.ELBO > out.LogZ || out.LogZ-out.ELBO > 0.1 {
		t.Errorf("log Z %.4f (exact 0.7), ELBO %.4f, ESS %.1f of 400", out.LogZ, out.ELBO, out.ESS)
	}
	for name, c := range map[string]Control{"none": nil, "wrong": func(t float64, x, u []float64) { u[0], u[1] = 0.5-t, -0.3*x[1] }} {
		got := tally{}
		for r := range 60 {
			o := Bridge{Sigma: 1.5, T: 1, Steps: 15, Control: c}
			out, err := o.Sample(ctx, target, uint64(r), 200)
			if err != nil {
				t.Fatal(err)
			}
			got.add(name, math.Exp(out.LogZ-0.7))
		}
		got.near(t, name, 1)
	}
	if _, err := (Bridge{}).Sample(ctx, target, 1, 1); err == nil {
		t.Error("a bridge of nothing")
	}
	if _, err := (Denoising{Sigma: 1, A: 2, Steps: 1}).Sample(ctx, target, 1, 1); err == nil {
		t.Error("a share of noise of 2")
	}
	got := tally{}
	for r := range 60 {
		out, err := Denoising{Sigma: 1.5, A: 0.1, Steps: 20, Control: func(_ float64, x, u []float64) { u[0] = 0.05 * x[0] }}.Sample(ctx, target, uint64(r), 200)
		if err != nil {
			t.Fatal(err)
		}
		got.add("denoising", math.Exp(out.LogZ-0.7))
	}
	got.near(t, "denoising", 1)
}
