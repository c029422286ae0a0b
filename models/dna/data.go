package dna

import "math/rand/v2"

// Examples of the grammar. Everything depends on (seed, step, part, row) alone.

// Stream is the source of one row.
func Stream(seed uint64, step, part, row int) *rand.Rand {
	return rand.New(rand.NewPCG(seed, uint64(step)<<32|uint64(part)<<16|uint64(row)))
}

const (
	timeScale = 2.0 // t is timeScale times an exponential number, as in the reference
	dropClass = 0.3 // share of rows whose class is "none"
)

// Flow makes examples for a denoiser: sequences of the grammar, seen through Dir(1 + t e) at a time of their own.
func Flow(s Shape, rows, length int, seed uint64, step, part int) Batch {
	b := Batch{Input: Input{Rows: rows, L: length, X: make([]float32, rows*length*s.Inputs)}}
	x := make([]float64, length*s.Categories)
	for i := range rows {
		r := Stream(seed, step, part, i)
		class := r.IntN(len(Classes()))
		tokens := Generate(r, class, length)
		t := timeScale * r.ExpFloat64()
		Noise(r, x, tokens, s.Categories, t)
		Expand(b.X[i*length*s.Inputs:(i+1)*length*s.Inputs], x, s.Categories, t)
		if !s.Head && r.Float64() < dropClass {
			b.Class = append(b.Class, len(Classes()))
		} else {
			b.Class = append(b.Class, class)
		}
		b.Alpha = append(b.Alpha, 1+t)
		if s.Head {
			b.Want = append(b.Want, class)
		} else {
			b.Want = append(b.Want, tokens...)
		}
	}
	return b
}

// Clean makes examples for a classifier of tokens.
func Clean(rows, length int, seed uint64, step, part int) Batch {
	b := Batch{Input: Input{Rows: rows, L: length}}
	for i := range rows {
		r := Stream(seed, step, part, i)
		class := r.IntN(len(Classes()))
		b.Tokens = append(b.Tokens, Generate(r, class, length)...)
		b.Want = append(b.Want, class)
	}
	return b
}
