package metrics

import (
	"context"
	"fmt"
	"math"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/lapack"
	"gonum.org/v1/gonum/lapack/lapack64"
	"gonum.org/v1/gonum/mat"
)

// Frechet holds the terms of a Fréchet distance between two normal
// distributions.
type Frechet struct {
	Distance     float64 // MeanTerm + Trace1 + Trace2 - 2 TraceRoot, in squared feature units
	MeanTerm     float64 // |m1-m2|²
	Trace1       float64 // tr S1
	Trace2       float64 // tr S2
	TraceRoot    float64 // tr (S1 S2)^{1/2}
	Rank1, Rank2 int     // numerical ranks of S1 and S2
}

// FrechetDistance is the squared 2-Wasserstein distance of N(m1,S1) and
// N(m2,S2) (Dowson and Landau 1982; Heusel et al. 2017, "FID"):
//
//	|m1-m2|² + tr S1 + tr S2 - 2 tr (S1^{1/2} S2 S1^{1/2})^{1/2}
//
// No matrix root and no complex number is formed: with S = R Rᵀ (pivoted
// Cholesky, so singular covariances are welcome) the eigenvalues of the
// symmetric matrix in the last term are the squared singular values of R1ᵀR2,
// and those are computed from R1ᵀR2 itself. Squaring it first would lose half
// of the digits of the small ones.
//
// It refuses different dimensions, non-finite entries and covariances that are
// not positive semi-definite. Time grows with d³.
func FrechetDistance(a, b Stats) (Frechet, error) {
	if err := checkStats("first statistics", a); err != nil {
		return Frechet{}, err
	}
	if err := checkStats("second statistics", b); err != nil {
		return Frechet{}, err
	}
	if len(a.Mean) != len(b.Mean) {
		return Frechet{}, fmt.Errorf("metrics: %w: %d and %d", ErrDims, len(a.Mean), len(b.Mean))
	}
	ra, err := factor(a.Cov)
	if err != nil {
		return Frechet{}, fmt.Errorf("metrics: first statistics: %w", err)
	}
	return frechet(a, ra, b)
}

// frechet is FrechetDistance with the factor of a at hand.
func frechet(a Stats, ra blas64.General, b Stats) (Frechet, error) {
	rb, err := factor(b.Cov)
	if err != nil {
		return Frechet{}, fmt.Errorf("metrics: second statistics: %w", err)
	}
	f := Frechet{Trace1: mat.Trace(a.Cov), Trace2: mat.Trace(b.Cov), Rank1: ra.Cols, Rank2: rb.Cols}
	for i, m := range a.Mean {
		f.MeanTerm += (m - b.Mean[i]) * (m - b.Mean[i])
	}
	m := product(ra, rb)
	if badEntry(m.Data) >= 0 {
		return Frechet{}, fmt.Errorf("metrics: the covariances overflow: %w", ErrNaN)
	}
	f.TraceRoot = nuclear(m)
	f.Distance = f.MeanTerm + f.Trace1 + f.Trace2 - 2*f.TraceRoot
	return f, nil
}

func checkStats(what string, s Stats) error {
	d := len(s.Mean)
	if s.Cov == nil || d == 0 || s.Cov.SymmetricDim() != d {
		return fmt.Errorf("metrics: %s: %w: mean and covariance", what, ErrDims)
	}
	if badEntry(s.Mean) >= 0 {
		return fmt.Errorf("metrics: %s: mean: %w", what, ErrNaN)
	}
	raw := s.Cov.RawSymmetric()
	trace := 0.0
	for i := range d {
		if badEntry(raw.Data[i*raw.Stride+i:i*raw.Stride+d]) >= 0 {
			return fmt.Errorf("metrics: %s: covariance: %w", what, ErrNaN)
		}
		if v := raw.Data[i*raw.Stride+i]; v < 0 {
			return fmt.Errorf("metrics: %s: %w: variance %d is %v", what, ErrIndefinite, i, v)
		}
		trace += raw.Data[i*raw.Stride+i]
	}
	if trace == 0 {
		return fmt.Errorf("metrics: %s: %w", what, ErrConstant)
	}
	return nil
}

// factor returns R (d x rank) with S = R Rᵀ by Cholesky with diagonal pivots,
// stopping where the remaining diagonal is rounding noise.
func factor(s *mat.SymDense) (blas64.General, error) {
	d := s.SymmetricDim()
	t := mat.NewSymDense(d, nil)
	t.CopySym(s)
	raw := t.RawSymmetric()
	piv := make([]int, d)
	u, rank, _ := lapack64.Pstrf(raw, piv, -1, make([]float64, 2*d))
	// u is upper: S[piv[i],piv[j]] = Σ_k u[k,i] u[k,j].
	r := blas64.General{Rows: d, Cols: rank, Stride: max(rank, 1), Data: make([]float64, d*max(rank, 1))}
	for k := range rank {
		for i := k; i < d; i++ {
			r.Data[piv[i]*r.Stride+k] = u.Data[k*u.Stride+i]
		}
	}
	if rank == d {
		return r, nil
	}
	// What the factor leaves out must be noise: a matrix that is not positive
	// semi-definite leaves more.
	left := blas64.General{Rows: d - rank, Cols: max(rank, 1), Stride: max(rank, 1), Data: make([]float64, (d-rank)*max(rank, 1))}
	rest := blas64.General{Rows: d - rank, Cols: d - rank, Stride: d - rank, Data: make([]float64, (d-rank)*(d-rank))}
	for i := range d - rank {
		copy(left.Data[i*left.Stride:(i+1)*left.Stride], r.Data[piv[rank+i]*r.Stride:])
		for j := range d - rank {
			rest.Data[i*rest.Stride+j] = s.At(piv[rank+i], piv[rank+j])
		}
	}
	blas64.Gemm(blas.NoTrans, blas.Trans, -1, left, left, 1, rest)
	worst := 0.0
	for _, v := range rest.Data {
		worst = max(worst, math.Abs(v))
	}
	if limit := 1e-6 * mat.Trace(s) / float64(d); worst > limit {
		return r, fmt.Errorf("%w: its factor leaves out %.3g of a mean variance %.3g", ErrIndefinite, worst, mat.Trace(s)/float64(d))
	}
	return r, nil
}

// product returns aᵀb.
func product(a, b blas64.General) blas64.General {
	out := blas64.General{Rows: a.Cols, Cols: b.Cols, Stride: max(b.Cols, 1), Data: make([]float64, a.Cols*max(b.Cols, 1))}
	if a.Cols > 0 && b.Cols > 0 {
		// Transposed copies feed the faster row-by-row product.
		blas64.Gemm(blas.NoTrans, blas.Trans, 1, transpose(a), transpose(b), 0, out)
	}
	return out
}

func transpose(a blas64.General) blas64.General {
	out := blas64.General{Rows: a.Cols, Cols: a.Rows, Stride: a.Rows, Data: make([]float64, a.Rows*a.Cols)}
	for i := range a.Rows {
		for j := range a.Cols {
			out.Data[j*out.Stride+i] = a.Data[i*a.Stride+j]
		}
	}
	return out
}

// nuclear is the sum of the singular values of m, which it overwrites.
func nuclear(m blas64.General) float64 {
	if m.Rows == 0 || m.Cols == 0 {
		return 0
	}
	s := singular(m)
	sum := 0.0
	for i := len(s) - 1; i >= 0; i-- { // small ones first
		sum += s[i]
	}
	return sum
}

// singular returns the singular values of m, largest first, overwriting m.
func singular(m blas64.General) []float64 {
	s := make([]float64, min(m.Rows, m.Cols))
	none := blas64.General{Stride: 1}
	work := make([]float64, 1)
	lapack64.Gesvd(lapack.SVDNone, lapack.SVDNone, m, none, none, s, work, -1)
	work = make([]float64, int(work[0]))
	if !lapack64.Gesvd(lapack.SVDNone, lapack.SVDNone, m, none, none, s, work, len(work)) {
		panic("metrics: singular values did not converge on a finite matrix")
	}
	return s
}

// CompareStats is the Fréchet distance of two statistics as a Result: what
// FID prints from two statistics files. Identities that differ are refused
// unless force is set.
func CompareStats(reference, generated Stats, force bool) (Result, error) {
	r := Result{Metric: "fid", N: generated.N, NRef: reference.N, D: len(generated.Mean), Identity: generated.Identity()}
	if err := compareIdentity(&r, reference.ID, generated.ID, force); err != nil {
		return Result{}, err
	}
	f, err := FrechetDistance(reference, generated)
	if err != nil {
		return Result{}, err
	}
	r.Value = f.Distance
	r.Parts = map[string]float64{"mean": f.MeanTerm, "trace_ref": f.Trace1, "trace": f.Trace2, "trace_root": f.TraceRoot}
	for _, s := range []struct {
		what string
		st   Stats
		rank int
	}{{"reference", reference, f.Rank1}, {"generated", generated, f.Rank2}} {
		d := len(s.st.Mean)
		if s.st.N <= 0 {
			r.warn(WarnUnknownSize, "the %s statistics do not say how many samples they saw", s.what)
		}
		if s.st.N > 0 && s.st.N <= d {
			r.warn(WarnFewSamples, "%s set: %d samples for %d features: the covariance is singular and the distance biased upward", s.what, s.st.N, d)
		} else if s.rank < d {
			r.warn(WarnSingular, "%s covariance has rank %d of %d", s.what, s.rank, d)
		}
		flat := 0
		for i := range d {
			if s.st.Cov.At(i, i) == 0 {
				flat++
			}
		}
		if flat > 0 {
			r.warn(WarnConstant, "%s set: %d of %d features never change", s.what, flat, d)
		}
	}
	return r, nil
}

// FID is the Fréchet distance between a stream of generated features and the
// statistics of a reference set (Heusel et al., "GANs Trained by a Two
// Time-Scale Update Rule", 2017). The same type serves sFID (features from
// Spatial) and the Fréchet biological distance (embeddings of sequences):
// only the extractor differs, and Name says which.
//
// Values are comparable only at equal sample count, resize, rounding to bytes
// and reference. For normal features the bias at N samples against exact
// moments is about d/N + d(d+1)/(4N).
type FID struct {
	Name      string // of the metric, "fid" if empty
	Reference Stats
	Force     bool // compare although identities differ
	Moments        // of the generated samples; set ID to their extractor
}

// Value is the distance of everything added so far.
func (f *FID) Value(ctx context.Context) (Result, error) {
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	gen, err := f.Stats()
	if err != nil {
		return Result{}, err
	}
	r, err := CompareStats(f.Reference, gen, f.Force)
	if err == nil && f.Name != "" {
		r.Metric = f.Name
	}
	return r, err
}

// Spatial flattens the first keep channels of feature maps x (n, c, h, w) to
// rows in the order (h, w, channel): with keep 7 and 17 x 17 maps, the 2023
// features of sFID (Nash et al., "Generating images with sparse
// representations", 2021; ADM evaluator).
func Spatial(x []float32, n, c, h, w, keep int) (Matrix32, error) {
	if n < 0 || c < 1 || h < 1 || w < 1 || keep < 1 || keep > c || len(x) != n*c*h*w {
		return Matrix32{}, fmt.Errorf("metrics: spatial: %d values are not %d maps of %d x %d x %d with %d channels kept", len(x), n, c, h, w, keep)
	}
	out := Matrix32{n, h * w * keep, make([]float32, n*h*w*keep)}
	for i := range n {
		for k := range keep {
			for p := range h * w {
				out.X[(i*h*w+p)*keep+k] = x[(i*c+k)*h*w+p]
			}
		}
	}
	return out, nil
}
