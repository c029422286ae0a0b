package schedules

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
)

// Every schedule on every process for small and larger n, with both ends of the grid and with ends of one's own: n+1
// usable nodes, never rising, each on its process.
func TestEveryScheduleEveryProcess(t *testing.T) {
	for _, p := range every(t) {
		for _, s := range Schedules() {
			for _, n := range []int{1, 2, 3, 4, 7, 20} {
				for _, final := range []string{"", "zero", "min"} {
					at := fmt.Sprintf("%s on %s, n=%d, final %q", s.Name, p.Name(), n, final)
					g, err := NewGrid(p, s.Name, n, Ends{Final: final})
					if err != nil {
						t.Errorf("%s: %v", at, err)
						continue
					}
					if g.Steps() != n || g.Check() != nil {
						t.Errorf("%s: %v", at, g)
					}
					for i, node := range g {
						if i > 0 && !(node.Ratio() <= g[i-1].Ratio()) {
							t.Errorf("%s: rises at %d: %v", at, i, g.Ratios())
							break
						}
						if back := p.AtRatio(node.Ratio()); !near(back.Alpha, node.Alpha, 1e-9) || !near(back.Sigma, node.Sigma, 1e-9) {
							t.Errorf("%s: node %v is not on the process: %v", at, node, back)
						}
					}
					if clean := g[n].Sigma == 0; clean != (final != "min") {
						t.Errorf("%s: last node %v", at, g[n])
					}
				}
				// Ends of one's own are taken exactly.
				if strings.HasPrefix(s.Name, "ays") {
					continue
				}
				hi, lo := 5.0, 0.5
				g, err := NewGrid(p, s.Name, n, Ends{SigmaMax: &hi, SigmaMin: &lo, Final: "min"})
				if err != nil {
					t.Errorf("%s on %s: %v", s.Name, p.Name(), err)
					continue
				}
				if first := g[0].Ratio(); !near(first, hi, 1e-9) && s.Name != "leading" || first > hi*(1+1e-9) {
					t.Errorf("%s on %s, n=%d: starts at %v, want %v", s.Name, p.Name(), n, first, hi)
				}
				if last := g[n].Ratio(); !near(last, lo, 1e-9) {
					t.Errorf("%s on %s, n=%d: ends at %v, want %v", s.Name, p.Name(), n, last, lo)
				}
				g, err = NewGrid(p, s.Name, n, Ends{SigmaMax: &hi, SigmaMin: &lo, Final: "zero"})
				if err != nil || g[n].Sigma != 0 || len(g) != n+1 {
					t.Errorf("%s on %s, n=%d: %v, %v", s.Name, p.Name(), n, g, err)
				}
			}
		}
	}
}

// A process without signal at its end is met there by schedules in time, and a thousandth further in by those in sigma.
func TestStartWithoutSignal(t *testing.T) {
	for name, start := range map[string]float64{"time": 1, "flow:shift=3": 1, "trailing": 1, "linear-quadratic": 1, "sgm-uniform": 1, "karras": 0.999, "lambda": 0.999, "beta": 0.999} {
		g, err := NewGrid(Flow{}, name, 4, Ends{})
		if err != nil || g[0].T != start {
			t.Errorf("%s starts at %v, %v", name, g[0], err)
		}
	}
	if _, err := NewGrid(Flow{}, "karras", 4, Ends{TStart: ptr(1)}); err == nil || !strings.Contains(err.Error(), "no finite sigma") {
		t.Errorf("karras from t=1: %v", err)
	}
	zero := sd
	zero.ZeroSNR = true
	z := mustDiscrete(t, zero)
	for name, start := range map[string]float64{"trailing": 999, "karras": 998} {
		g, err := NewGrid(z, name, 4, Ends{})
		if err != nil || g[0].T != start {
			t.Errorf("%s starts at %v, %v", name, g[0], err)
		}
	}
}

// Printed grids: the EDM paper's, the discrete spacings, the flow shift, the linear-quadratic one, the test problem's.
func TestPrintedGrids(t *testing.T) {
	d := mustDiscrete(t, sd)
	for _, c := range []struct {
		p    Gaussian
		name string
		e    Ends
		time bool // compare times, else sigma/alpha
		want []float64
	}{
		{EDM{}, "edm", Ends{}, false, []float64{80, 57.585985, 40.785574, 28.374585, 19.352453, 12.910082, 8.4009353, 5.3151945, 3.2568215, 1.9233398, 1.0881706, 0.58534812, 0.29644228, 0.13951647, 0.059947311, 0.022934518, 0.00752802, 0.002, 0}},
		{EDM{}, "karras", Ends{}, false, []float64{80, 42.41518932, 21.10867674, 9.723201355, 4.066123603, 1.501741979, 0.469979058, 0.1166385635, 0.02043533455, 0.002, 0}},
		{VPLinear{}, "edm", Ends{TEnd: ptr(0.001)}, false, []float64{80, 3.496237, 0.01048599279, 0}},
		{d, "Karras", Ends{}, false, []float64{14.6146412, 4.796535, 1.2741002, 0.247950, 0.0291671582, 0}},
		{d, "exponential", Ends{}, false, []float64{14.6146412, 3.088977, 0.6528917, 0.1379964, 0.0291671582, 0}},
		{d, "beta", Ends{}, false, []float64{14.6146412, 12.052260, 7.321904, 2.591549, 0.0291671582, 0}},
		{d, "trailing", Ends{}, true, []float64{999, 799, 599, 399, 199, -1}},
		{d, "linspace", Ends{Final: "min"}, true, []float64{999, 799, 599, 400, 200, 0}},
		{d, "leading:offset=1", Ends{}, true, []float64{801, 601, 401, 201, 1, -1}},
		{d, "time", Ends{}, true, []float64{999, 799, 599, 399, 199, -1}},
		{d, "sgm_uniform", Ends{}, true, []float64{999, 749.25, 499.5, 249.75, -1}},
		{d, "simple", Ends{}, true, []float64{999, 666, 333, -1}},
		{Flow{}, "flow:shift=3", Ends{}, true, []float64{1, 0.964286, 0.923077, 0.875, 0.818182, 0.75, 0.666667, 0.5625, 0.428571, 0.25, 0}},
		{Flow{}, "flow", Ends{}, true, []float64{1, 0.75, 0.5, 0.25, 0}},
		{Flow{}, "flow:shift=3,terminal=0.1", Ends{}, true, []float64{1, 0.6785714, 0.1, 0}},
		{Flow{}, "flow-dynamic:mu=0", Ends{}, true, []float64{1, 0.5, 0}},
		{Flow{}, "flow-dynamic:tokens=4096", Ends{}, true, []float64{1, 0.759511, 0}},
		{Flow{}, "flow-dynamic:mu=3,kind=linear", Ends{}, true, []float64{1, 0.75, 0}},
		{Flow{}, "linear-quadratic", Ends{}, true, []float64{1, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0}},
		{Flow{}, "linear-quadratic", Ends{}, true, []float64{1, 0}},
		{VPLinear{}, "time", Ends{TStart: ptr(1), TEnd: ptr(0.001)}, true, []float64{1, 0.75025, 0.5005, 0.25075, 0.001}},
		{VPLinear{}, "time", Ends{TStart: ptr(1), TEnd: ptr(0.001), Final: "zero"}, true, []float64{1, 0.5005, 0.001, 0}},
		{VPLinear{}, "time", Ends{}, true, []float64{1, 0.5, 0}},
		{VPLinear{}, "quadratic", Ends{TEnd: ptr(0.25)}, true, []float64{1, 0.5625, 0.25}},
		{EDM{}, "lambda", Ends{SigmaMax: ptr(100), SigmaMin: ptr(0.01)}, false, []float64{100, 10, 1, 0.1, 0.01}},
		{EDM{}, "karras:rho=1", Ends{TStart: ptr(3), SigmaMin: ptr(1)}, false, []float64{3, 2, 1, 0}},
		{EDM{}, "karras:rho=1", Ends{SigmaMax: ptr(3), SigmaMin: ptr(0)}, false, []float64{3, 2, 1, 0}},
		{EDM{}, "beta:alpha=1,beta=1", Ends{SigmaMax: ptr(3), SigmaMin: ptr(1)}, false, []float64{3, 2, 1, 0}},
		{VPLinear{}, "time", Ends{TStart: ptr(0.0004)}, true, []float64{0.0004, 0.0002, 0}}, // below the usual last noisy node
		{EDM{}, "karras", Ends{SigmaMax: ptr(0.001)}, false, []float64{0.001, 0}},
		{d, "trailing", Ends{TEnd: ptr(-1)}, true, []float64{999, 499, -1}}, // the clean end named
		{d, "linspace", Ends{TEnd: ptr(-1)}, true, []float64{999, 500, 0, -1}},
		{d, "trailing", Ends{TStart: ptr(499), TEnd: ptr(100)}, true, []float64{499, 299, -1}},
		{d, "trailing", Ends{TStart: ptr(0)}, true, []float64{0, -1}},
		{d, "beta:alpha=1,beta=1,in=time", Ends{}, true, []float64{999, 666, 333, -1}},
	} {
		n := len(c.want) - 1
		g, err := NewGrid(c.p, c.name, n, c.e)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		for i, node := range g {
			got := node.Ratio()
			if c.time {
				got = node.T
			}
			if math.Abs(got-c.want[i]) > 1e-6*math.Abs(c.want[i])+1e-12 {
				t.Errorf("%s: node %d is %v, want %v", c.name, i, got, c.want[i])
			}
		}
	}
}

func TestNewGridRefuses(t *testing.T) {
	d := mustDiscrete(t, sd)
	nan := math.NaN()
	for _, c := range []struct {
		p    Gaussian
		name string
		n    int
		e    Ends
		want string
	}{
		{EDM{}, "karas", 5, Ends{}, `unknown schedule "karas"; did you mean karras`},
		{EDM{}, "", 5, Ends{}, "empty name"},
		{EDM{}, "karras:", 5, Ends{}, "empty option"},
		{EDM{}, "karras:rho=0", 5, Ends{}, "rho=0: want a number from"},
		{EDM{}, "karras:rho=x", 5, Ends{}, "want a finite number"},
		{EDM{}, "karras:roh=7", 5, Ends{}, `unknown option "roh"; did you mean rho`},
		{EDM{}, "lambda:rho=7", 5, Ends{}, `unknown option "rho"`},
		{EDM{}, "karras", 0, Ends{}, "0 steps; want 1"},
		{EDM{}, "karras", -1, Ends{}, "-1 steps"},
		{EDM{}, "karras", 1 << 30, Ends{}, "steps; want 1"},
		{EDM{}, "karras", 5, Ends{Final: "max"}, `final "max"; want zero or min`},
		{EDM{}, "karras", 5, Ends{TStart: ptr(80), SigmaMax: ptr(80)}, "start: give a time or a sigma, not both"},
		{EDM{}, "karras", 5, Ends{TEnd: ptr(1), SigmaMin: ptr(1)}, "end: give a time or a sigma, not both"},
		{EDM{}, "karras", 5, Ends{SigmaMax: &nan}, "sigma is NaN"},
		{EDM{}, "karras", 5, Ends{SigmaMin: ptr(-1)}, "sigma is -1"},
		{EDM{}, "karras", 5, Ends{SigmaMax: ptr(math.Inf(1))}, "no node at sigma +Inf"},
		{EDM{}, "karras", 5, Ends{SigmaMax: ptr(1), SigmaMin: ptr(1)}, "must be noisier than the end"},
		{EDM{}, "lambda", 5, Ends{SigmaMin: ptr(0)}, "the end must have sigma > 0"},
		{Flow{}, "time", 5, Ends{TStart: ptr(1.5)}, "1.5 is not a time of flow, which runs from 1 (noise) to 0 (data)"},
		{Flow{}, "time", 5, Ends{TEnd: ptr(-0.5)}, "-0.5 is not a time of flow"},
		{Flow{}, "time", 5, Ends{TStart: &nan}, "NaN is not a time"},
		{d, "time", 5, Ends{TStart: ptr(1000)}, "1000 is not a time of vp-discrete, which runs from 999 (noise) to -1 (data)"},
		{d, "trailing", 1001, Ends{}, "1001 whole timesteps where there are only 1000"},
		{d, "leading:offset=500", 2, Ends{}, "offset 500 leads beyond the last of 1000 timesteps"},
		{d, "ays-sd15", 10, Ends{SigmaMax: ptr(10)}, "a fixed table"},
		{EDM{}, "trailing", 5, Ends{TStart: ptr(0.001)}, "the start (t=0.001) lies below timestep 0 (t=0.002)"},
		{EDM{}, "karras", 5, Ends{SigmaMax: ptr(0.001), Final: "min"}, "must be noisier than the end"},
		{Flow{}, "flow:shift=0", 5, Ends{}, "shift=0"},
		{Flow{}, "flow:shift=3,terminal=0.9", 5, Ends{TStart: ptr(0.5)}, "terminal=0.9 is not below the start"},
		{Flow{}, "flow-dynamic:mu=1,tokens=4096", 5, Ends{}, "mu or tokens, not both"},
		{Flow{}, "flow-dynamic:mu=-1,kind=linear", 5, Ends{}, "wants mu > 0"},
		{Flow{}, "linear-quadratic:linear-steps=5", 5, Ends{}, "linear-steps=5: want an integer from 0 to 4"},
	} {
		g, err := NewGrid(c.p, c.name, c.n, c.e)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") || g != nil {
			t.Errorf("%s: %v, %v, want %q", c.name, g, err, c.want)
		}
	}
}

func TestExplicitGrids(t *testing.T) {
	// Repeated and rising nodes are legal, as are no signal and no noise.
	g, err := FromRatios(Flow{}, []float64{math.Inf(1), 3, 3, 5, 0.2, 0})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []float64{math.Inf(1), 3, 3, 5, 0.2, 0} {
		if got := g.Ratios()[i]; !near(got, want, 4e-16) {
			t.Errorf("ratio %d is %v, want %v", i, got, want)
		}
	}
	g, err = FromTimes(Flow{}, []float64{1, 0.5, 0.75, 0})
	if err != nil || g[0] != (Node{1, 0, 1}) || g[2] != (Node{0.75, 0.25, 0.75}) || g[3] != (Node{0, 1, 0}) || g.Steps() != 3 {
		t.Errorf("%v, %v", g, err)
	}
	d := mustDiscrete(t, sd)
	g, err = FromTimes(d, []float64{999, 0, -1})
	if err != nil || g[2] != (Node{-1, 1, 0}) {
		t.Errorf("%v, %v", g, err)
	}
	for want, f := range map[string]func() (Grid, error){
		"sigma 1 is NaN":              func() (Grid, error) { return FromRatios(EDM{}, []float64{1, math.NaN()}) },
		"sigma 0 is -1":               func() (Grid, error) { return FromRatios(EDM{}, []float64{-1, 0}) },
		"node 0 is not usable":        func() (Grid, error) { return FromRatios(EDM{}, []float64{math.Inf(1), 0}) },
		"a grid of 1 nodes":           func() (Grid, error) { return FromRatios(EDM{}, []float64{1}) },
		"a grid of 0 nodes":           func() (Grid, error) { return FromTimes(EDM{}, nil) },
		"time 1: NaN is not":          func() (Grid, error) { return FromTimes(EDM{}, []float64{1, math.NaN()}) },
		"time 0: +Inf is not":         func() (Grid, error) { return FromTimes(EDM{}, []float64{math.Inf(1), 0}) },
		"time 0: 1000 is not a time":  func() (Grid, error) { return FromTimes(d, []float64{1000, 0}) },
		"time 1: -0.5 is not a time":  func() (Grid, error) { return FromTimes(d, []float64{999, -0.5}) },
		"time 0: -1 is not a time of": func() (Grid, error) { return FromTimes(Cosine{}, []float64{-1, 0}) },
		"time 0: 4.5 is not a time":   func() (Grid, error) { return FromTimes(Trig{}, []float64{4.5, 0}) },
		"time 1: -0.1 is not a time":  func() (Grid, error) { return FromTimes(EDM{}, []float64{100, -0.1}) },
	} {
		if _, err := f(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

func TestRegistry(t *testing.T) {
	listed := strings.Fields("karras exponential polyexponential lambda time quadratic linspace leading trailing lcm beta ays-sd15 ays-sdxl ays-svd sgm-uniform simple flow flow-dynamic linear-quadratic edm")
	seen := map[string]bool{}
	d := mustDiscrete(t, sd)
	for _, s := range Schedules() {
		if !slices.Contains(listed, s.Name) || s.Doc == "" || s.Source == "" {
			t.Errorf("%+v", s)
		}
		for _, n := range append([]string{s.Name}, s.Aliases...) {
			if seen[n] || n != canonical(n) {
				t.Errorf("name %q is taken or not canonical", n)
			}
			seen[n] = true
			if got, err := Lookup(strings.ToUpper(strings.ReplaceAll(n, "-", "_"))); err != nil || got.Name != s.Name {
				t.Errorf("Lookup(%q) = %v, %v", n, got.Name, err)
			}
		}
		// The listed options exist with the listed defaults.
		plain, err := NewGrid(d, s.Name, 6, Ends{})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range s.Options {
			value := o.Default
			switch {
			case value == "":
				continue
			case value == "n/2":
				value = "3"
			}
			g, err := NewGrid(d, s.Name+":"+o.Name+"="+value, 6, Ends{})
			if err != nil || !slices.Equal(g, plain) {
				t.Errorf("%s: option %s=%s: %v, %v, without it %v", s.Name, o.Name, value, g, err, plain)
			}
		}
	}
	for _, n := range listed {
		if !seen[n] {
			t.Errorf("%s is missing", n)
		}
	}
	zero := sd
	zero.ZeroSNR = true
	for _, c := range []struct {
		p    Process
		want string
	}{{Flow{}, "flow"}, {Trig{}, "time"}, {EDM{}, "karras"}, {VPLinear{}, "karras"}, {d, "karras"}, {mustDiscrete(t, zero), "trailing"}, {Interpolant{}, "time"}, {&Interpolant{}, "time"}} {
		if got := DefaultGrid(c.p); got != c.want {
			t.Errorf("DefaultGrid(%s) = %s, want %s", c.p.Name(), got, c.want)
		}
	}
	for _, p := range every(t) {
		if g, err := NewGrid(p, DefaultGrid(p), 5, Ends{}); err != nil || len(g) != 6 {
			t.Errorf("%s: %v", p.Name(), err)
		}
	}
}
