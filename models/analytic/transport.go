package analytic

import (
	"fmt"
	"math"

	"drift/schedules"
)

// Transport writes into dst the exact solution at node to of the probability-flow ODE dx/dt = velocity(x, t) that is x
// at node from. It is known in two cases, any other is an error:
//
//   - one component, in any dimension: along each principal axis
//     x_to = a_to m + (x - a_from m) sqrt((a_to^2 C + s_to^2)/(a_from^2 C + s_from^2))
//   - one dimension, any number of components: the flow keeps the order of points, so it keeps the distribution
//     function, F_to(x_to) = F_from(x). The root is found to rounding, in the logarithm of the nearer tail.
func (m *Mixture) Transport(dst, x []float64, from, to schedules.Node, class int) error {
	members, _, err := m.of(class)
	switch {
	case err != nil:
	case len(x) != m.dim || len(dst) != m.dim:
		err = fmt.Errorf("rows of %d and %d numbers; the target has %d dimensions", len(x), len(dst), m.dim)
	case len(members) > 1 && m.dim > 1:
		err = fmt.Errorf("the exact flow is known for one component or one dimension; here are %d and %d", len(members), m.dim)
	}
	if err != nil {
		return fmt.Errorf("analytic: %w", err)
	}
	w, v := m.works.Get().(*work), m.works.Get().(*work)
	defer m.works.Put(w)
	defer m.works.Put(v)
	for _, side := range []struct {
		w *work
		n schedules.Node
	}{{w, from}, {v, to}} {
		if err := m.prepare(side.w, side.n, schedules.Score); err != nil {
			return fmt.Errorf("analytic: %w", err)
		}
	}
	if len(members) > 1 {
		dst[0], err = m.quantile(w, v, x[0], members)
		return err
	}
	k := members[0]
	m.locate(w, x, members)
	mean := m.target.Means[k]
	for i, y := range w.y[k] {
		w.back[i] = y * math.Sqrt(w.inv[k][i]/v.inv[k][i])
	}
	for i := range dst {
		dst[i] = to.Alpha * mean[i]
	}
	if q := m.axes[k]; q != nil {
		backward(dst, 1, q, w.back)
		return nil
	}
	for i, y := range w.back {
		dst[i] += y
	}
	return nil
}

// quantile finds the x of v's node that has the distribution function of x at w's.
func (m *Mixture) quantile(w, v *work, x float64, members []int) (float64, error) {
	side := -1.0 // the lower tail
	want := m.logTail(w, x, side, members)
	if up := m.logTail(w, x, 1, members); up < want {
		side, want = 1, up
	}
	if math.IsNaN(want) || math.IsInf(want, 0) {
		return 0, fmt.Errorf("analytic: no flow through x=%g", x)
	}
	// rise grows with x and is 0 at the root.
	rise := func(x float64) float64 { return side * (want - m.logTail(v, x, side, members)) }
	lo, hi := math.Inf(1), math.Inf(-1)
	for _, k := range members {
		mean, std := v.node.Alpha*m.target.Means[k][0], 1/math.Sqrt(v.inv[k][0])
		lo, hi = min(lo, mean-std), max(hi, mean+std)
	}
	for step := hi - lo; rise(lo) > 0; step *= 2 {
		lo -= step
	}
	for step := hi - lo; rise(hi) < 0; step *= 2 {
		hi += step
	}
	// Newton inside the bracket, bisection where Newton would leave it or is slow.
	at, last := lo+(hi-lo)/2, hi-lo
	for range 200 {
		r := rise(at)
		if r == 0 {
			return at, nil
		}
		if r < 0 {
			lo = at
		} else {
			hi = at
		}
		slope := math.Exp(m.locate(v, []float64{at}, members) - m.logTail(v, at, side, members))
		next := at - r/slope
		if !(next > lo && next < hi) || math.Abs(next-at) > last/2 {
			next = lo + (hi-lo)/2
		}
		last = math.Abs(next - at)
		if next == at || next == lo || next == hi || last <= 0x1p-53*math.Abs(at) {
			return next, nil
		}
		at = next
	}
	return at, nil
}

// logTail returns log of the weight of x' < x (side -1) or x' > x (side 1), one dimension.
func (m *Mixture) logTail(w *work, x, side float64, members []int) float64 {
	most := math.Inf(-1)
	for _, k := range members {
		z := (w.node.Alpha*m.target.Means[k][0] - x) * side * math.Sqrt(w.inv[k][0])
		w.dot[k] = m.logW[k] + logPhi(z)
		most = max(most, w.dot[k])
	}
	if math.IsInf(most, -1) {
		return most
	}
	sum := 0.0
	for _, k := range members {
		sum += math.Exp(w.dot[k] - most)
	}
	return most + math.Log(sum)
}

// logPhi is the log of the standard normal distribution function.
func logPhi(z float64) float64 {
	switch {
	case z > 0:
		return math.Log1p(-math.Erfc(z/math.Sqrt2) / 2)
	case z > -20:
		return math.Log(math.Erfc(-z/math.Sqrt2) / 2)
	}
	// The asymptotic series of Mills's ratio: phi(z)/|z| (1 - 1/z^2 + 3/z^4 - 15/z^6 + ...).
	sum, term := 0.0, 1.0
	for i := 1; i <= 9; i++ {
		term *= -float64(2*i-1) / (z * z)
		sum += term
	}
	return -z*z/2 - math.Log(-z) - 0.5*math.Log(2*math.Pi) + math.Log1p(sum)
}
