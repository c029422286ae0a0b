package schedules

import (
	"math"
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
