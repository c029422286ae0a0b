package schedules_test

import (
	"fmt"
	"math"

	"drift/schedules"
)

func ExampleVPLinear() {
	p := schedules.VPLinear{} // beta from 0.1 to 20
	n := p.At(0.5)
	fmt.Printf("alpha %.6f sigma %.6f lambda %.6f\n", n.Alpha, n.Sigma, n.Lambda())
	fmt.Printf("sigma/alpha = 1 at t = %.6f\n", p.AtRatio(1).T)
	// Output:
	// alpha 0.281183 sigma 0.959654 lambda -1.227568
	// sigma/alpha = 1 at t = 0.258960
}

func ExampleNewVPDiscrete() {
	// The table of Stable Diffusion.
	p, err := schedules.NewVPDiscrete(schedules.Betas{Schedule: "scaled_linear", Start: 0.00085, End: 0.012})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%d steps, sigma/alpha from %.4f to %.4f\n", p.Len(), p.At(999).Ratio(), p.At(0).Ratio())
	// Output: 1000 steps, sigma/alpha from 14.6146 to 0.0292
}

func ExampleInterpolant() {
	// A process of one's own: x_t = (1-t)^2 x0 + t eps.
	p := schedules.Interpolant{
		Label: "quadratic",
		Alpha: func(t float64) float64 { return (1 - t) * (1 - t) },
		Sigma: func(t float64) float64 { return t },
	}
	n := p.AtRatio(2)
	da, ds := p.Rates(n.T)
	fmt.Printf("t %.3f alpha %.3f sigma %.3f, rates %.3f %.3f\n", n.T, n.Alpha, n.Sigma, da, ds)
	// Output: t 0.500 alpha 0.250 sigma 0.500, rates -1.000 1.000
}

func ExampleNewGrid() {
	g, err := schedules.NewGrid(schedules.EDM{}, "karras:rho=7", 5, schedules.Ends{})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%.4f\n", g.Ratios())

	_, err = schedules.NewGrid(schedules.EDM{}, "karas", 5, schedules.Ends{})
	fmt.Println(err)
	// Output:
	// [80.0000 17.5278 2.5152 0.1698 0.0020 0.0000]
	// schedules: unknown schedule "karas"; did you mean karras?
}

func ExampleNewGrid_flow() {
	start := 0.8 // image to image: the run begins with a fifth of the signal
	g, err := schedules.NewGrid(schedules.Flow{}, "flow:shift=3", 4, schedules.Ends{TStart: &start})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, n := range g {
		fmt.Printf("%.4f ", n.T)
	}
	fmt.Println()
	// Output: 0.8000 0.6923 0.5455 0.3333 0.0000
}

func ExampleFromTimes() {
	// Down, up again and down: a rising hop adds noise (RePaint, Restart).
	g, err := schedules.FromTimes(schedules.Flow{}, []float64{1, 0.5, 0.75, 0.25, 0})
	fmt.Println(g.Steps(), g[2], err)
	// Output: 4 {0.75 0.25 0.75} <nil>
}

func ExampleConvert() {
	// A flow network said v at t = 0.25; what is the data?
	p := schedules.Flow{}
	n := p.At(0.25)
	x, v := 0.7, -1.2
	cx, co, err := schedules.Convert(p, schedules.Velocity, schedules.X0, n)
	fmt.Printf("x0 = %.2f %v\n", cx*x+co*v, err)

	_, _, err = schedules.Convert(p, schedules.Eps, schedules.X0, p.At(1))
	fmt.Println(err)
	// Output:
	// x0 = 1.00 <nil>
	// schedules: x0 cannot be had from eps at t=1 (alpha=0, sigma=1)
}

func ExampleParseProcess() {
	p, err := schedules.ParseProcess([]byte(`{"type": "vp-linear", "beta_max": 10}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	text, err := schedules.MarshalProcess(p)
	fmt.Println(string(text), err)

	_, err = schedules.ParseProcess([]byte(`{"type": "vp-linear", "beta_mx": 10}`))
	fmt.Println(err)
	// Output:
	// {"type":"vp-linear","beta_min":0.1,"beta_max":10} <nil>
	// process: process vp-linear has no parameter "beta_mx"; did you mean beta_max, beta_min?
}

func ExampleDiffusersConfig_Grid() {
	c, err := schedules.DiffusersDefaults("DPMSolverMultistepScheduler")
	if err != nil {
		fmt.Println(err)
		return
	}
	c.BetaSchedule, c.BetaStart, c.BetaEnd = "scaled_linear", 0.00085, 0.012
	c.UseKarrasSigmas = true
	g, timesteps, err := c.Grid(schedules.DiffusersRun{Steps: 5})
	fmt.Printf("%.4f %v %v\n", g.Ratios(), timesteps, err)
	// Output: [14.6146 4.7965 1.2741 0.2479 0.0292 0.0000] [999 786 427 59 0] <nil>
}

func ExamplePreconditionEDM() {
	// A network F of Karras et al. at sigma = 80: E[x0|x] = Skip x + Out F(In x; Noise).
	k := schedules.PreconditionEDM(0.5)(80)
	fmt.Printf("%.3e %.6f %.6f %.6f\n", k.Skip, k.Out, k.In, k.Noise)
	// Output: 3.906e-05 0.499990 0.012500 1.095507
}

func ExampleSchedules() {
	for _, s := range schedules.Schedules()[:3] {
		fmt.Println(s.Name+":", s.Doc)
	}
	// Output:
	// karras: sigma^(1/rho) linear, then 0
	// exponential: log sigma linear, then 0
	// polyexponential: log sigma along (1-u)^rho, then 0
}

func ExampleNode_Lambda() {
	n := schedules.Flow{}.At(0.25)
	fmt.Printf("%.4f = log %.0f\n", n.Lambda(), math.Exp(n.Lambda()))
	// Output: 1.0986 = log 3
}

// A stochastic interpolant between two densities: its coefficients, and one field by two others.
func ExampleBridge() {
	b, err := schedules.NewBridge("linear", "brownian", 1)
	if err != nil {
		fmt.Println(err)
		return
	}
	m := b.Mix(0.25)
	fmt.Printf("x = %g x0 + %g x1 + %.3f z\n", m.A, m.B, m.Gamma)
	cx, c1, c2, err := b.Convert(schedules.Transport, schedules.Score, schedules.Velocity, 0.25)
	fmt.Printf("velocity = %g x + %g transport + %g score, %v\n", cx, c1, c2, err)
	// Output:
	// x = 0.75 x0 + 0.25 x1 + 0.433 z
	// velocity = 0 x + 1 transport + -0.25 score, <nil>
}
