package metrics

import (
	"fmt"
	"math"
)

// Modes describes a sample of a known mixture of isotropic components.
type Modes struct {
	Covered int     // modes with at least ⌈0.1 n/K⌉ samples within three standard deviations
	Counts  []int   // samples nearest to each centre and within three standard deviations of it
	KL      float64 // Σ h log(h/w), h the shares of nearest centres, w the true weights
	Outside float64 // share of samples beyond three standard deviations of their nearest centre
}

// ModeCoverage counts which of the K modes (rows of centres, standard
// deviations std per dimension) a sample reached. Samples belong to the nearest
// centre. nil weights are equal.
func ModeCoverage(x Samples, centres Matrix, std, weights []float64) (Modes, error) {
	n, d := x.Dims()
	k := centres.N
	if err := check("sample", x, 1); err != nil {
		return Modes{}, err
	}
	if err := check("centres", centres, 1); err != nil {
		return Modes{}, err
	}
	if centres.D != d || len(std) != k {
		return Modes{}, fmt.Errorf("metrics: modes: %w: %d centres of %d, %d deviations, samples of %d", ErrDims, k, centres.D, len(std), d)
	}
	for c, v := range std {
		if !(v > 0) || math.IsInf(v, 0) {
			return Modes{}, fmt.Errorf("metrics: modes: standard deviation %d is %v", c, v)
		}
	}
	w, err := shares("mode weights", weights, k)
	if err != nil {
		return Modes{}, err
	}
	m := Modes{Counts: make([]int, k)}
	hist := make([]int, k)
	row := make([]float64, d)
	out := 0
	for i := range n {
		x.Row(row, i)
		best, at := math.Inf(1), 0
		for c := range k {
			if q := sqDist(row, centres.row(c)); q < best {
				best, at = q, c
			}
		}
		hist[at]++
		if math.Sqrt(best) <= 3*std[at] {
			m.Counts[at]++
		} else {
			out++
		}
	}
	need := (n + 10*k - 1) / (10 * k)
	for c, got := range m.Counts {
		if got >= need {
			m.Covered++
		}
		if h := float64(hist[c]) / float64(n); h > 0 {
			m.KL += h * math.Log(h/w[c]) // +Inf where samples sit on a mode of weight zero
		}
	}
	m.Outside = float64(out) / float64(n)
	return m, nil
}

// CategoricalKL returns KL(empirical ‖ p) and KL(p ‖ empirical) in nats, with
// smooth added to every count (0 for none; 1/n is usual). Without smoothing the
// first is finite where counts are zero and the second infinite.
func CategoricalKL(counts []int, p []float64, smooth float64) (forward, reverse float64, err error) {
	w, err := shares("probabilities", p, len(counts))
	if err != nil {
		return 0, 0, err
	}
	h := make([]float64, len(counts))
	for i, c := range counts {
		if c < 0 || !(smooth >= 0) {
			return 0, 0, fmt.Errorf("metrics: categorical KL: count %d, smoothing %v", c, smooth)
		}
		h[i] = float64(c) + smooth
	}
	if h, err = shares("counts", h, len(h)); err != nil {
		return 0, 0, err
	}
	for i := range h {
		if h[i] > 0 {
			forward += h[i] * math.Log(h[i]/w[i])
		}
		if w[i] > 0 {
			reverse += w[i] * math.Log(w[i]/h[i])
		}
	}
	return forward, reverse, nil
}
