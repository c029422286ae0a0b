package metrics

import (
	"context"
	"fmt"
)

// Embedder maps token sequences to the embeddings of a classifier.
type Embedder func(ctx context.Context, sequences [][]int) (Samples, error)

// FBD is the Fréchet biological distance between two sets of sequences (Stark
// et al., "Dirichlet Flow Matching with Applications to DNA Sequence Design",
// 2024): FID on the embeddings of a classifier trained on clean sequences.
func FBD(ctx context.Context, embed Embedder, reference, generated [][]int, id Identity) (Result, error) {
	var stats [2]Stats
	for k, set := range [][][]int{reference, generated} {
		s, err := embed(ctx, set)
		if err != nil {
			return Result{}, fmt.Errorf("metrics: fbd: embedding: %w", err)
		}
		if stats[k], err = StatsOf(s, id); err != nil {
			return Result{}, fmt.Errorf("metrics: fbd: %w", err)
		}
	}
	r, err := CompareStats(stats[0], stats[1], false)
	r.Metric = "fbd"
	return r, err
}

// RandomSequences draws n sequences of uniform tokens below alphabet: the
// baseline of FBD, to be embedded like any other set.
func RandomSequences(src Source, n, length, alphabet int) [][]int {
	draw := make([]int64, n*length)
	src.RandInt(draw, 0, int64(alphabet))
	out := make([][]int, n)
	for i := range out {
		out[i] = make([]int, length)
		for j := range out[i] {
			out[i][j] = int(draw[i*length+j])
		}
	}
	return out
}
