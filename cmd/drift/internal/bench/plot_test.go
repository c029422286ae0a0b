package bench

import (
	"strings"
	"testing"

	"gonum.org/v1/plot"
)

// TestTicks: axes are labelled at the measured costs where there is room, else at round numbers.
func TestTicks(t *testing.T) {
	labels := func(ts []plot.Tick) string {
		var out []string
		for _, k := range ts {
			out = append(out, k.Label)
		}
		return strings.Join(out, " ")
	}
	at := func(xs ...float64) (all []point) {
		for _, x := range xs {
			all = append(all, point{x: x}, point{x: x})
		}
		return all
	}
	for _, c := range []struct{ have, want string }{
		{labels(costTicks(at(20, 5, 10, 8, 15), 4.6, 22)), "5 8 10 15 20"},
		{labels(costTicks(at(5), 3.8, 6.5)), "5"},
		{labels(costTicks(at(5, 5.1, 20), 4.6, 22)), "5 6 7 8 9 10 15 20"},
		{labels(logTicks(0.915, 2.05)), "1 1.2 1.4 1.6 1.8 2"},
		{labels(logTicks(0.3, 40)), "0.5 1 2 5 10 20"},
		{labels(logTicks(0.0101, 0.0104)), "0.0101 0.01015 0.0102 0.01025 0.0103 0.01035"},
	} {
		if c.have != c.want {
			t.Errorf("labels %q, want %q", c.have, c.want)
		}
	}
}
