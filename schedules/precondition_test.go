package schedules

import (
	"math"
	"testing"
)

func TestPreconditionEDM(t *testing.T) {
	f := PreconditionEDM(0.5)
	for sb, want := range map[float64]Coefficients{
		0.002: {0.9999840003, 0.001999984, 1.999984, -1.553652025},
		0.5:   {0.5, 0.3535533906, 1.414213562, -0.1732867951},
		80:    {3.906097418e-05, 0.4999902347, 0.01249975587, 1.095506659},
	} {
		got := f(sb)
		if !near(got.Skip, want.Skip, 1e-9) || !near(got.Out, want.Out, 1e-9) || !near(got.In, want.In, 1e-9) || !near(got.Noise, want.Noise, 1e-9) {
			t.Errorf("sb=%g: %+v, want %+v", sb, got, want)
		}
	}
}

// A perfect network of each kind, wrapped, gives back the data. In the scaled space x/alpha = x0 + sb eps.
func TestPreconditionIdentities(t *testing.T) {
	x0, eps := 0.7, -1.3
	d := mustDiscrete(t, sd)
	for _, sb := range []float64{0.01, 0.5, 1, 7, 14} {
		x := x0 + sb*eps
		alpha, sigma := 1/math.Hypot(1, sb), sb/math.Hypot(1, sb)
		for _, c := range []struct {
			name string
			f    Precondition
			out  float64 // what the network says
		}{
			{"eps", PreconditionEps(VPLinear{}, 999), eps},
			{"iddpm", PreconditionIDDPM(d), eps},
			{"ve", PreconditionVE(), -eps}, // sb times the score -eps/sb
			{"v", PreconditionV(d, 1), alpha*eps - sigma*x0},
			{"flow", PreconditionFlow(1000), eps - x0},
		} {
			k := c.f(sb)
			if got := k.Skip*x + k.Out*c.out; math.Abs(got-x0) > 1e-13*(1+sb) {
				t.Errorf("%s at %g: %v, want %v", c.name, sb, got, x0)
			}
		}
		// v is EDM with unit data up to the sign of the network.
		v, edm := PreconditionV(d, 1)(sb), PreconditionEDM(1)(sb)
		if !near(v.Skip, edm.Skip, 1e-15) || !near(v.Out, -edm.Out, 1e-15) || !near(v.In, edm.In, 1e-15) {
			t.Errorf("v %+v, edm %+v", v, edm)
		}
		// EDM's closed form of the VP network's time.
		b, bd := 0.1, 19.9
		if want := 999 * (math.Sqrt(b*b+2*bd*math.Log1p(sb*sb)) - b) / bd; !near(PreconditionEps(VPLinear{}, 999)(sb).Noise, want, 1e-11) {
			t.Errorf("VP time at %g: %v, want %v", sb, PreconditionEps(VPLinear{}, 999)(sb).Noise, want)
		}
		if got := PreconditionFlow(1000)(sb).Noise; !near(got, 1000*sb/(1+sb), 1e-15) {
			t.Errorf("flow time at %g: %v", sb, got)
		}
	}
}

// The table that EDM writes down for iDDPM, u_0 ... u_M = 0 from noise to data, and its rule 999 - argmin |u_j - sb|.
func TestPreconditionIDDPM(t *testing.T) {
	const m = 1000
	abar := func(j int) float64 { s := math.Sin(math.Pi / 2 * float64(j) / m / 1.008); return s * s }
	u := make([]float64, m+1)
	for j := m; j > 0; j-- {
		u[j-1] = math.Sqrt((u[j]*u[j]+1)/max(abar(j-1)/abar(j), 0.001) - 1)
	}
	p := mustDiscrete(t, Betas{Schedule: "cosine"})
	f := PreconditionIDDPM(p)
	for i := range 1000 {
		sb := math.Exp(-7 + 18*float64(i)/1000)
		best := 0
		for j := range u {
			if math.Abs(u[j]-sb) < math.Abs(u[best]-sb) {
				best = j
			}
		}
		if got := f(sb).Noise; got != float64(999-best) {
			t.Errorf("sb=%g: timestep %v, want %v", sb, got, 999-best)
		}
	}
	for j := range m {
		if !near(p.At(float64(999-j)).Ratio(), u[j], 1e-9) {
			t.Fatalf("u[%d] = %v, table %v", j, u[j], p.At(float64(999-j)).Ratio())
		}
	}
}
