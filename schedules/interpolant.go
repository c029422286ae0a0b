package schedules

import "math"

// Interpolant is a Gaussian process given by two functions of time: x_t = Alpha(t) x0 + Sigma(t) eps, with
// Sigma/Alpha growing from the data end to the noise end (Albergo, Boffi and Vanden-Eijnden 2023, "Stochastic
// Interpolants").
type Interpolant struct {
	Alpha, Sigma func(t float64) float64
	// Slope returns d Alpha/dt and d Sigma/dt. When it is nil they are taken numerically, to about 1e-9.
	Slope func(t float64) (dAlpha, dSigma float64)
	// Noise and Data are the two ends; both 0 mean 1 and 0.
	Noise, Data float64
	// Label is the name, "interpolant" when empty.
	Label string
}

// Name returns Label.
func (p Interpolant) Name() string {
	if p.Label == "" {
		return "interpolant"
	}
	return p.Label
}

// Ends returns Noise and Data.
func (p Interpolant) Ends() (noise, data float64) {
	if p.Noise == p.Data {
		return 1, 0
	}
	return p.Noise, p.Data
}

// Range returns the noise end and the time a thousandth of the way from the data end.
func (p Interpolant) Range() (noise, data float64) {
	noise, data = p.Ends()
	return noise, data + 1e-3*(noise-data)
}

// At returns the node at time t.
func (p Interpolant) At(t float64) Node { return Node{t, p.Alpha(t), p.Sigma(t)} }

// AtRatio returns the node whose sigma/alpha is sb, found by Newton's method inside a bracket; a ratio outside those
// of the two ends gives a node at that end's time, with the coefficient of that end and the exact ratio.
func (p Interpolant) AtRatio(sb float64) Node {
	noise, data := p.Ends()
	// The sign of f(t) = c Sigma(t) - s Alpha(t), with (c, s) = (1, sb) normalised, is that of Sigma/Alpha - sb.
	dir := vpNode(0, sb)
	f := func(t float64) float64 { return dir.Alpha*p.Sigma(t) - dir.Sigma*p.Alpha(t) }
	t := 0.0
	switch {
	case f(data) >= 0:
		t = data
	case f(noise) <= 0:
		t = noise
	default:
		lo, hi := data, noise // f(lo) < 0 < f(hi), lo and hi in either order
		t = lo + 0.5*(hi-lo)
		for range 200 {
			v := f(t)
			if v == 0 {
				break
			}
			if v < 0 {
				lo = t
			} else {
				hi = t
			}
			da, ds := p.Rates(t)
			next := t - v/(dir.Alpha*ds-dir.Sigma*da)
			if !(next > min(lo, hi) && next < max(lo, hi)) {
				next = lo + 0.5*(hi-lo)
			}
			if next == t || next == lo || next == hi {
				break
			}
			t = next
		}
	}
	n := p.At(t)
	if sb <= 1 {
		return Node{t, n.Alpha, sb * n.Alpha}
	}
	return Node{t, n.Sigma / sb, n.Sigma}
}

// Rates returns d Alpha/dt and d Sigma/dt, from Slope or by differences.
func (p Interpolant) Rates(t float64) (dAlpha, dSigma float64) {
	if p.Slope != nil {
		return p.Slope(t)
	}
	noise, data := p.Ends()
	lo, hi := min(noise, data), max(noise, data)
	return derivative(p.Alpha, t, lo, hi), derivative(p.Sigma, t, lo, hi)
}

// derivative is f'(t) by Richardson extrapolation of central differences, of one-sided ones at the ends of [lo, hi].
func derivative(f func(float64) float64, t, lo, hi float64) float64 {
	width := (hi - lo) / 64
	side := min(t-lo, hi-t)
	step, order := func(h float64) float64 { return (f(t+h) - f(t-h)) / (2 * h) }, 2.0
	h := min(width, side)
	if side < 1e-6*(hi-lo) {
		sign := 1.0
		if t-lo > hi-t {
			sign = -1
		}
		step, order, h = func(h float64) float64 { return sign * (f(t+sign*h) - f(t)) / h }, 1, width
	}
	// Ridders: keep the entry of the extrapolation table whose neighbours agree best.
	best, spread := step(h), math.Inf(1)
	prev := []float64{best}
	for range 10 {
		h /= 2
		row := []float64{step(h)}
		w := math.Pow(2, order)
		for j := range prev {
			row = append(row, (w*row[j]-prev[j])/(w-1))
			if e := max(math.Abs(row[j+1]-row[j]), math.Abs(row[j+1]-prev[j])); e < spread {
				best, spread = row[j+1], e
			}
			w *= math.Pow(2, order)
		}
		prev = row
	}
	return best
}
