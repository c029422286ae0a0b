package metrics

import (
	"errors"
	"fmt"
	"math"
)

// Samples is a set of n vectors of d features. Row writes vector i into dst,
// which has length d; it may be called from several goroutines.
type Samples interface {
	Dims() (n, d int)
	Row(dst []float64, i int)
}

// Matrix is a row-major float64 matrix: entry (i, j) is X[i*D+j].
type Matrix struct {
	N, D int
	X    []float64
}

// Dims returns the number of rows and columns.
func (m Matrix) Dims() (n, d int) { return m.N, m.D }

// Row copies row i into dst.
func (m Matrix) Row(dst []float64, i int) { copy(dst, m.X[i*m.D:(i+1)*m.D]) }

// At returns entry (i, j).
func (m Matrix) At(i, j int) float64 { return m.X[i*m.D+j] }

func (m Matrix) row(i int) []float64 { return m.X[i*m.D : (i+1)*m.D] }

// Matrix32 is a row-major float32 matrix, the form in which networks hand out
// features: entry (i, j) is X[i*D+j].
type Matrix32 struct {
	N, D int
	X    []float32
}

// Dims returns the number of rows and columns.
func (m Matrix32) Dims() (n, d int) { return m.N, m.D }

// Row copies row i into dst.
func (m Matrix32) Row(dst []float64, i int) {
	for j, v := range m.X[i*m.D : (i+1)*m.D] {
		dst[j] = float64(v)
	}
}

// Pick is a view of some rows of a set: row i is row idx[i] of s. Indices may
// repeat.
func Pick(s Samples, idx []int) Samples { return picked{s, idx} }

type picked struct {
	s   Samples
	idx []int
}

func (p picked) Dims() (n, d int) {
	_, d = p.s.Dims()
	return len(p.idx), d
}

func (p picked) Row(dst []float64, i int) { p.s.Row(dst, p.idx[i]) }

// Errors that name why a set of samples was refused; test with errors.Is.
var (
	ErrNaN        = errors.New("a feature is NaN or infinite")
	ErrConstant   = errors.New("all samples are equal")
	ErrDims       = errors.New("the sets have different dimensions")
	ErrIdentity   = errors.New("the sets were made by different extractors")
	ErrTooFew     = errors.New("too few samples")
	ErrIndefinite = errors.New("the covariance is not positive semi-definite")
)

// dense returns rows lo..hi-1 as float64, without a copy when it can.
func dense(s Samples, lo, hi int) Matrix {
	if m, ok := s.(Matrix); ok {
		return Matrix{hi - lo, m.D, m.X[lo*m.D : hi*m.D]}
	}
	_, d := s.Dims()
	out := Matrix{hi - lo, d, make([]float64, (hi-lo)*d)}
	for i := lo; i < hi; i++ {
		s.Row(out.row(i-lo), i)
	}
	return out
}

// all is dense over the whole set.
func all(s Samples) Matrix {
	n, _ := s.Dims()
	return dense(s, 0, n)
}

// check refuses what no score is defined on: fewer than min rows, no columns,
// non-finite entries.
func check(what string, s Samples, min int) error {
	n, d := s.Dims()
	if n < min {
		return fmt.Errorf("metrics: %s: %w: %d, needs at least %d", what, ErrTooFew, n, min)
	}
	if d < 1 {
		return fmt.Errorf("metrics: %s: %w: no features", what, ErrDims)
	}
	row := make([]float64, d)
	for i := range n {
		s.Row(row, i)
		if j := badEntry(row); j >= 0 {
			return fmt.Errorf("metrics: %s: row %d, feature %d is %v: %w", what, i, j, row[j], ErrNaN)
		}
	}
	return nil
}

// checkPair checks both sets, that not all of their rows are equal, and that
// their dimensions agree.
func checkPair(reference, generated Samples, min int) error {
	for _, s := range []struct {
		what string
		s    Samples
	}{{"reference set", reference}, {"generated set", generated}} {
		if s.s == nil {
			return fmt.Errorf("metrics: %s: %w: none", s.what, ErrTooFew)
		}
		if err := check(s.what, s.s, min); err != nil {
			return err
		}
		if err := refuseConstant(s.what, s.s); err != nil {
			return err
		}
	}
	return sameDims(reference, generated)
}

func sameDims(x, y Samples) error {
	_, d := x.Dims()
	if _, e := y.Dims(); d != e {
		return fmt.Errorf("metrics: %w: %d and %d", ErrDims, d, e)
	}
	return nil
}

// refuseConstant refuses a set whose rows are all equal: a broken extractor.
func refuseConstant(what string, s Samples) error {
	n, d := s.Dims()
	first, row := make([]float64, d), make([]float64, d)
	s.Row(first, 0)
	for i := 1; i < n; i++ {
		s.Row(row, i)
		for j, v := range row {
			if v != first[j] {
				return nil
			}
		}
	}
	return fmt.Errorf("metrics: %s: %w (%d rows)", what, ErrConstant, n)
}

// badEntry is the index of the first NaN or infinity, or -1.
func badEntry(x []float64) int {
	for j, v := range x {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return j
		}
	}
	return -1
}
