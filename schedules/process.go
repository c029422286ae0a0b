// Package schedules is the arithmetic of noise: how noise mixes with data (Process), which times a run visits
// (Grid), and how one kind of prediction turns into another (Convert). Everything is float64 and imports nothing
// else of drift's rooms.
//
// Notation: x_t = alpha(t) x0 + sigma(t) eps with eps ~ N(0, I); lambda = log(alpha/sigma) grows towards data;
// the ratio sb = sigma/alpha is the noise level in the scale of the data (EDM's sigma).
package schedules

import "math"

// Process says how noise mixes with data along its own time. Ends returns the times of pure noise and of clean data:
// a run goes from the first to the second.
type Process interface {
	Name() string
	Ends() (noise, data float64)
}

// Gaussian is a Process of the form x_t = alpha(t) x0 + sigma(t) eps. It is what the ODE and SDE solvers ask for.
type Gaussian interface {
	// AtRatio(0) is the clean end, AtRatio(+Inf) the end without signal (where the process has one).
	Path
	// Rates returns d alpha/dt and d sigma/dt at t.
	Rates(t float64) (dAlpha, dSigma float64)
}

// Node is one time of a process with its two coefficients.
type Node struct{ T, Alpha, Sigma float64 }

// Ratio returns sb = sigma/alpha, in [0, +Inf].
func (n Node) Ratio() float64 { return n.Sigma / n.Alpha }

// Lambda returns log(alpha/sigma), half the log signal-to-noise ratio, in [-Inf, +Inf].
func (n Node) Lambda() float64 { return math.Log(n.Alpha / n.Sigma) }

// Grid is the nodes of a run, noise to data. A grid of n steps has n+1 nodes.
type Grid []Node

// Ratios returns sb of every node.
func (g Grid) Ratios() []float64 {
	out := make([]float64, len(g))
	for i, n := range g {
		out[i] = n.Ratio()
	}
	return out
}
