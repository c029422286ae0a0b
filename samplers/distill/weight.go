package distill

import (
	"fmt"
	"math"
	"slices"

	"drift/internal/spec"
	"drift/schedules"
)

// Weight is w(node), the weight of an iteration; p is the model's process.
//
// eps_hat - eps is (alpha/sigma) (z - x0_hat): with weight 1 low noise levels speak loudest, with rho = sigma/alpha every
// level moves z towards x0_hat alike.
type Weight func(n schedules.Node, p schedules.Process) float64

// WeightInfo is one row of the table of weights.
type WeightInfo struct {
	Name, Summary string
	Of            Weight
}

func ratio(f func(rho float64) float64) Weight {
	return func(n schedules.Node, _ schedules.Process) float64 { return f(n.Ratio()) }
}

var weights = []WeightInfo{
	{"one", "1", ratio(func(float64) float64 { return 1 })},
	{"rho", "rho = sigma/alpha: every level moves towards its x0 alike; the published weight", ratio(func(r float64) float64 { return r })},
	{"sqrt", "rho^(1/2)", ratio(math.Sqrt)},
	{"cbrt2", "rho^(2/3)", ratio(func(r float64) float64 { return math.Cbrt(r * r) })},
	{"square", "rho^2", ratio(func(r float64) float64 { return r * r })},
	{"log", "log(1 + rho)", ratio(math.Log1p)},
	{"clip", "min(rho, 1)", ratio(func(r float64) float64 { return min(r, 1) })},
	{"sigma2", "sigma^2 (1 - alpha^2 where the process keeps the variance)", func(n schedules.Node, _ schedules.Process) float64 { return n.Sigma * n.Sigma }},
	{"dreamtime", "1 on the middle of the time axis, 500 to 800 of 1000, with Gaussian tails of 100 below and 300 above", dreamtime},
}

// dreamtime is the weight of Huang et al. 2023 (arXiv 2306.12422) as the published code has it.
func dreamtime(n schedules.Node, p schedules.Process) float64 {
	noise, data := p.Ends()
	t := 1000 * (n.T - data) / (noise - data)
	switch {
	case t < 500:
		return math.Exp(-sq((t - 500) / 100 / math.Sqrt2))
	case t > 800:
		return math.Exp(-sq((t - 800) / 300 / math.Sqrt2))
	}
	return 1
}

func sq(v float64) float64 { return v * v }

// Weights returns the table of weights.
func Weights() []WeightInfo { return slices.Clone(weights) }

// ParseWeight returns the weight of that name; "1" is "one".
func ParseWeight(name string) (Weight, error) {
	if name == "1" {
		name = "one"
	}
	var names []string
	for _, w := range weights {
		if w.Name == name {
			return w.Of, nil
		}
		names = append(names, w.Name)
	}
	return nil, fmt.Errorf("distill: unknown weight %q%s", name, spec.Suggest(name, names))
}
