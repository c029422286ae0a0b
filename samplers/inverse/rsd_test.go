package inverse

import (
	"math"
	"testing"

	"drift/internal/operators"
	"drift/models/analytic"
	"drift/samplers/distill"
	"drift/schedules"
)

// TestRSD restores the first of two coordinates of a mixture whose second is undecided: without repulsion all particles
// of a set may take one answer, with it a set of four has both, in both forms, and each fits the measurement.
func TestRSD(t *testing.T) {
	target, err := analytic.New(analytic.Target{Weights: []float64{0.9, 0.1}, Means: [][]float64{{1, -2}, {1, 2}}, Vars: [][]float64{{0.1, 0.1}, {0.1, 0.1}}, Process: vp(), Prediction: schedules.Eps})
	if err != nil {
		t.Fatal(err)
	}
	a, err := operators.Parse("matrix:rows=1 0", []int{1, 1, 2}, nil)
	if err != nil {
		t.Fatal(err)
	}
	y := operators.Measurement{A: a, Y: []float64{1.2}}
	const sets, n = 40, 4
	var seeds []uint64
	for s := range sets {
		seeds = append(seeds, uint64(s))
	}
	both := map[string]float64{}
	for _, text := range []string{"rsd:gamma=0", "rsd:gamma=5,limit=0", "rsd:gamma=0,direct=false", "rsd:gamma=5,limit=0,direct=false", "rsd:gamma=5,limit=0,optimizer=adam,weight=one,strength=0.03,off=0.6", "rsd:relative=true,gamma=0.5,limit=0"} {
		mk, _, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		s, err := mk(y)
		if err != nil {
			t.Fatal(err)
		}
		if s.(RSD).Particles() != n || !s.Needs().Couples {
			t.Errorf("%s: %d particles, couples %v", text, s.(RSD).Particles(), s.Needs().Couples)
		}
		p := problem(target, 200, 1)
		p.Rows, p.Shape = distill.Rows(seeds, n), []int{2}
		x := sample(t, s, p)
		off := 0.0
		for g := range sets {
			signs := 0
			for i := g * n; i < (g+1)*n; i++ {
				off += math.Abs(x[2*i]-1.2) / (sets * n)
				if x[2*i+1] > 0 {
					signs++
				}
			}
			if signs > 0 && signs < n {
				both[text] += 1. / sets
			}
		}
		if off > 0.2 {
			t.Errorf("%s: the measurement is missed by %g", text, off)
		}
	}
	for _, c := range [][2]string{{"rsd:gamma=5,limit=0", "rsd:gamma=0"}, {"rsd:gamma=5,limit=0,direct=false", "rsd:gamma=0,direct=false"}, {"rsd:gamma=5,limit=0,optimizer=adam,weight=one,strength=0.03,off=0.6", "rsd:gamma=0"}} {
		if !(both[c[0]] > both[c[1]]+0.3) {
			t.Errorf("both answers in a set: %.2f with %s, %.2f with %s", both[c[0]], c[0], both[c[1]], c[1])
		}
	}
}
