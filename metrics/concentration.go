package metrics

import (
	"context"
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/gonum/mat"
)

// Psi2 is the empirical ψ2 (sub-Gaussian) norm of centred values,
//
//	inf{s > 0: mean exp((z - mean z)²/s²) ≤ 2},
//
// by bisection. N(0,σ²) has σ√(8/3); a sample's value grows with n where the
// tails are heavier than Gaussian, and is biased low below about 10^4 values.
// Values that are all equal, but for rounding, have norm 0.
func Psi2(z []float64) (float64, error) {
	if len(z) < 2 {
		return 0, fmt.Errorf("metrics: psi2 norm: %w: %d values", ErrTooFew, len(z))
	}
	if badEntry(z) >= 0 {
		return 0, fmt.Errorf("metrics: psi2 norm: %w", ErrNaN)
	}
	mean, top := meanOf(z), 0.0
	sq := make([]float64, len(z))
	for i, v := range z {
		sq[i] = (v - mean) * (v - mean)
		top = max(top, sq[i])
	}
	least, most := slices.Min(z), slices.Max(z)
	if most-least <= 8*0x1p-52*max(-least, most) || top == 0 {
		return 0, nil
	}
	// With m = max z²: mean exp(z²/s²) is at most exp(m/s²), which is 2 at
	// s² = m/log 2, and at least exp(m/s²)/n, which is 2 at s² = m/log 2n.
	excess := func(s float64) float64 {
		sum := 0.0
		for _, q := range sq {
			sum += math.Exp((q - top) / (s * s))
		}
		return math.Log(sum/float64(len(sq))) + top/(s*s) - math.Ln2
	}
	lo, hi := math.Sqrt(top/math.Log(2*float64(len(z))))/2, math.Sqrt(top/math.Ln2)*2
	for range 200 {
		mid := math.Sqrt(lo * hi)
		if mid <= lo || mid >= hi {
			break
		}
		if excess(mid) > 0 {
			lo = mid
		} else {
			hi = mid
		}
	}
	return math.Sqrt(lo * hi), nil
}

// HillIndex is the tail index of positive values from the k largest (Hill
// 1975): 1/mean_{i≤k} log(x_(n-i+1)/x_(n-k)). Student's t with ν degrees of
// freedom has index ν; for Gaussian tails it is large and grows as k falls.
func HillIndex(x []float64, k int) (float64, error) {
	if k < 1 || k >= len(x) {
		return 0, fmt.Errorf("metrics: Hill index: %w: the %d largest of %d", ErrTooFew, k, len(x))
	}
	if badEntry(x) >= 0 {
		return 0, fmt.Errorf("metrics: Hill index: %w", ErrNaN)
	}
	s := slices.Clone(x)
	slices.Sort(s)
	n := len(s)
	base := s[n-k-1]
	if base <= 0 {
		return 0, fmt.Errorf("metrics: Hill index: value %d from the top is %v", k+1, base)
	}
	sum := 0.0
	for _, v := range s[n-k:] {
		sum += math.Log(v / base)
	}
	return float64(k) / sum, nil
}

// Spectrum is the covariance spectrum of a sample.
type Spectrum struct {
	Eigenvalues []float64 // largest first; divisor n-1
	Condition   float64   // largest over smallest; +Inf where that is rounding, in a singular covariance
}

// SpectrumOf computes the covariance spectrum from moments, in time d³.
func SpectrumOf(s Stats) (Spectrum, error) {
	if err := checkStats("statistics", s); err != nil {
		return Spectrum{}, err
	}
	c := mat.NewSymDense(len(s.Mean), nil)
	c.CopySym(s.Cov)
	w, err := eigenvalues(c)
	if err != nil {
		return Spectrum{}, fmt.Errorf("metrics: spectrum: %w", err)
	}
	slices.Reverse(w)
	cond := math.Inf(1)
	if low := w[len(w)-1]; low > 0x1p-52*float64(len(w))*w[0] {
		cond = w[0] / low
	}
	return Spectrum{w, cond}, nil
}

// Concentration reports whether a sample behaves as sub-Gaussian, as the
// outputs of diffusion models must ("Concentration of Measure for
// Distributions Generated via Diffusion Models", 2025): heavy-tailed data
// cannot be matched, and shows here. SpectrumOf gives the covariance spectrum,
// whose nearly vanishing small eigenvalues belong to the same picture.
type Concentration struct {
	NormMean, NormStd float64             // of |x|; std with divisor n-1
	Psi2              []float64           // of the projections on the directions
	Psi2Max           float64             // largest of Psi2
	MaxRatio          []float64           // max|z|/(ψ2 √log n) per direction; near 1 or below for sub-Gaussian ones
	Hill              map[float64]float64 // tail index of |x| over the top share; NaN where the share holds no value
}

// Concentrate measures a set along random directions. 1000 directions and the
// shares 0.01, 0.02 and 0.05 of the largest norms are usual.
func Concentrate(ctx context.Context, x Samples, directions int, shares []float64, src Source) (Concentration, error) {
	if err := check("sample", x, 2); err != nil {
		return Concentration{}, err
	}
	if src == nil {
		return Concentration{}, fmt.Errorf("metrics: concentration: %w", errNoSource)
	}
	if directions < 1 {
		return Concentration{}, fmt.Errorf("metrics: concentration over %d directions", directions)
	}
	n, d := x.Dims()
	if err := refuseConstant("sample", x); err != nil {
		return Concentration{}, err
	}
	c := Concentration{Hill: map[float64]float64{}}
	norms, row := make([]float64, n), make([]float64, d)
	for i := range norms {
		x.Row(row, i)
		norms[i] = math.Sqrt(dot(row, row))
	}
	c.NormMean, c.NormStd = meanOf(norms), math.Sqrt(variance(norms, 1))
	for _, s := range shares {
		c.Hill[s] = math.NaN()
		if k := int(s * float64(n)); k >= 1 && k < n {
			h, err := HillIndex(norms, k)
			if err != nil {
				return Concentration{}, err
			}
			c.Hill[s] = h
		}
	}
	z, err := project(ctx, Directions(src, directions, d, false), x)
	if err != nil {
		return Concentration{}, err
	}
	for k := range directions {
		if err := ctx.Err(); err != nil {
			return Concentration{}, fmt.Errorf("metrics: concentration: %w", err)
		}
		p, err := Psi2(z.row(k))
		if err != nil {
			return Concentration{}, err
		}
		if p == 0 { // the sample is flat along this direction
			c.Psi2, c.MaxRatio = append(c.Psi2, 0), append(c.MaxRatio, 0)
			continue
		}
		mean, top := meanOf(z.row(k)), 0.0
		for _, v := range z.row(k) {
			top = max(top, math.Abs(v-mean))
		}
		c.Psi2 = append(c.Psi2, p)
		c.Psi2Max = max(c.Psi2Max, p)
		c.MaxRatio = append(c.MaxRatio, top/(p*math.Sqrt(math.Log(float64(n)))))
	}
	return c, nil
}

// Ridge is a linear classifier by penalised least squares on one-against-rest
// targets ±1:
//
//	min_β Σ_i (β·(x_i,1) - t_i)² + Lambda |β without its last entry|².
//
// Two classes need one vector, K classes K of them; the prediction is the
// largest score.
type Ridge struct {
	Lambda float64

	beta    [][]float64 // one per class (one for two classes), bias last
	classes int
}

// Fit trains on labels 0..K-1, all of which must occur, K at least 2.
func (r *Ridge) Fit(x Samples, labels []int) error {
	n, d := x.Dims()
	if err := check("training set", x, 2); err != nil {
		return err
	}
	classes, err := classCount(labels, n)
	if err != nil {
		return err
	}
	if r.Lambda < 0 {
		return fmt.Errorf("metrics: ridge penalty %v", r.Lambda)
	}
	positive := count(classes) // class with target +1, one vector each
	if classes == 2 {
		positive = []int{1}
	}
	a, b := mat.NewSymDense(d+1, nil), mat.NewDense(d+1, len(positive), nil)
	row := make([]float64, d+1)
	row[d] = 1
	for i, l := range labels {
		x.Row(row[:d], i)
		a.SymRankOne(a, 1, mat.NewVecDense(d+1, row))
		for k, class := range positive {
			t := -1.0
			if l == class {
				t = 1
			}
			for j, v := range row {
				b.Set(j, k, b.At(j, k)+t*v)
			}
		}
	}
	for j := range d {
		a.SetSym(j, j, a.At(j, j)+r.Lambda)
	}
	var chol mat.Cholesky
	if !chol.Factorize(a) {
		return fmt.Errorf("metrics: ridge: the normal equations are singular: raise Lambda")
	}
	var sol mat.Dense
	if err := chol.SolveTo(&sol, b); err != nil {
		return fmt.Errorf("metrics: ridge: %w", err)
	}
	r.beta, r.classes = make([][]float64, len(positive)), classes
	for k := range r.beta {
		r.beta[k] = mat.Col(nil, k, &sol)
	}
	return nil
}

// Predict returns the class of a vector.
func (r *Ridge) Predict(x []float64) int {
	best, class := math.Inf(-1), 0
	for k, b := range r.beta {
		s := dot(x, b[:len(x)]) + b[len(x)]
		if r.classes == 2 {
			if s > 0 {
				return 1
			}
			return 0
		}
		if s > best {
			best, class = s, k
		}
	}
	return class
}

// Error is the share of wrong predictions.
func (r *Ridge) Error(x Samples, labels []int) (float64, error) {
	n, d := x.Dims()
	if len(labels) != n || n == 0 || len(r.beta) == 0 || len(r.beta[0]) != d+1 {
		return 0, fmt.Errorf("metrics: ridge: %w: %d rows of %d features, %d labels", ErrDims, n, d, len(labels))
	}
	if err := check("held-out set", x, 1); err != nil {
		return 0, err
	}
	row, wrong := make([]float64, d), 0
	for i, l := range labels {
		if l < 0 || l >= r.classes {
			return 0, fmt.Errorf("metrics: held-out label %d is %d, the classes are 0 to %d", i, l, r.classes-1)
		}
		x.Row(row, i)
		if r.Predict(row) != l {
			wrong++
		}
	}
	return float64(wrong) / float64(n), nil
}

func classCount(labels []int, n int) (int, error) {
	if len(labels) != n {
		return 0, fmt.Errorf("metrics: labels: %w: %d for %d rows", ErrDims, len(labels), n)
	}
	classes := slices.Max(labels) + 1
	seen := make([]bool, max(classes, 0))
	for i, l := range labels {
		if l < 0 {
			return 0, fmt.Errorf("metrics: label %d is %d", i, l)
		}
		seen[l] = true
	}
	if k := slices.Index(seen, false); k >= 0 || classes < 2 {
		return 0, fmt.Errorf("metrics: labels must be 0..K-1 with K of at least 2, all present: %w", ErrTooFew)
	}
	return classes, nil
}

// Universality is the Gaussian universality gap of a labelled sample: a linear
// classifier trained on it and one trained on normal classes of the same means
// and covariances, tested on the same held-out samples. For diffusion outputs
// theory predicts equal errors.
type Universality struct {
	OnSamples, OnGaussian float64 // test errors
	Gap                   float64 // OnSamples - OnGaussian
}

// UniversalityGap trains both classifiers with penalty lambda. Every class
// needs at least two training rows. The Gaussian twin has as many rows per
// class as the sample.
func UniversalityGap(train Samples, labels []int, test Samples, testLabels []int, lambda float64, src Source) (Universality, error) {
	if src == nil {
		return Universality{}, fmt.Errorf("metrics: universality gap: %w", errNoSource)
	}
	own := Ridge{Lambda: lambda}
	if err := own.Fit(train, labels); err != nil {
		return Universality{}, err
	}
	n, d := train.Dims()
	twin := Matrix{n, d, make([]float64, n*d)}
	for class := range own.classes {
		var rows []int
		for i, l := range labels {
			if l == class {
				rows = append(rows, i)
			}
		}
		s, err := StatsOf(Pick(train, rows), Identity{})
		if err != nil {
			return Universality{}, fmt.Errorf("metrics: universality gap: class %d: %w", class, err)
		}
		root, err := factor(s.Cov)
		if err != nil {
			return Universality{}, fmt.Errorf("metrics: universality gap: class %d: %w", class, err)
		}
		z := make([]float64, root.Cols)
		for _, i := range rows {
			src.Randn(z)
			for j := range d {
				twin.X[i*d+j] = s.Mean[j] + dot(z, root.Data[j*root.Stride:j*root.Stride+root.Cols])
			}
		}
	}
	gauss := Ridge{Lambda: lambda}
	if err := gauss.Fit(twin, labels); err != nil {
		return Universality{}, err
	}
	var u Universality
	var err error
	if u.OnSamples, err = own.Error(test, testLabels); err != nil {
		return u, err
	}
	if u.OnGaussian, err = gauss.Error(test, testLabels); err != nil {
		return u, err
	}
	u.Gap = u.OnSamples - u.OnGaussian
	return u, nil
}
