package metrics

import (
	"errors"

	"drift/internal/rng"
)

// Source is where random choices come from. All draws are in a documented
// order, so a seeded source gives the same number again.
type Source interface {
	Choice(n, k int) []int             // k different indices of 0..n-1
	RandInt(dst []int64, lo, hi int64) // uniform integers lo <= v < hi
	Randn(dst []float64)               // standard normals
}

// NewSource returns numpy's legacy generator RandomState(seed), the one behind
// the subsets of torch-fidelity.
func NewSource(seed uint32) Source { return rng.NewRandomState(seed) }

// fresh is a copy of a source of NewSource; another one is used as it is.
func fresh(src Source) Source {
	if r, ok := src.(*rng.RandomState); ok {
		return r.Clone()
	}
	return src
}

var errNoSource = errors.New("needs a Source (NewSource(seed)) for its random choices")
