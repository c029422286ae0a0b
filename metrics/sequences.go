package metrics

import (
	"fmt"
	"math"

	"drift/models/dna"
)

// SequenceStats are the motif statistics of a set of DNA sequences.
type SequenceStats struct {
	N, Letters int
	GC         float64            // share of G and C
	PerKB      map[string]float64 // exact matches of each motif per 1,000 letters
	// Pairs is, for every rule of the grammar, the share of its first motifs (with room for the second behind them) that
	// the second follows at the rule's distance.
	Pairs map[string]float64
	Kmers []float64 // shares of the 256 words of 4 letters
}

// word is the length of the words of SequenceStats.Kmers.
const word = 4

// StatsOfSequences counts the motifs, pairs and words of sequences (tokens of A, C, G, T).
func StatsOfSequences(seqs [][]int) (SequenceStats, error) {
	s := SequenceStats{N: len(seqs), PerKB: map[string]float64{}, Pairs: map[string]float64{}, Kmers: make([]float64, 1<<(2*word))}
	strong, words := 0, 0.0
	for i, seq := range seqs {
		s.Letters += len(seq)
		w := 0
		for p, k := range seq {
			if k < 0 || k >= len(dna.Letters) {
				return s, fmt.Errorf("metrics: sequence %d has the token %d", i, k)
			}
			if k == 1 || k == 2 {
				strong++
			}
			if w = (w<<2 | k) & (len(s.Kmers) - 1); p >= word-1 {
				s.Kmers[w]++
				words++
			}
		}
		for _, m := range dna.Motifs() {
			for p := range seq {
				if m.Matches(seq[p:]) {
					s.PerKB[m.Name]++
				}
			}
		}
	}
	if s.Letters == 0 {
		return s, fmt.Errorf("metrics: there are no sequences")
	}
	s.GC = float64(strong) / float64(s.Letters)
	for _, m := range dna.Motifs() {
		s.PerKB[m.Name] *= 1000 / float64(s.Letters)
	}
	for k := range s.Kmers {
		s.Kmers[k] /= max(words, 1)
	}
	for _, c := range dna.Classes() {
		for _, r := range c.Pairs() {
			name := pairName(r)
			if _, done := s.Pairs[name]; done {
				continue
			}
			first, both := 0.0, 0.0
			for _, seq := range seqs {
				for p := 0; p+r.Most+len(r.Second.Consensus) <= len(seq); p++ {
					if !r.First.Matches(seq[p:]) {
						continue
					}
					first++
					for d := r.Least; d <= r.Most; d++ {
						if r.Second.Matches(seq[p+d:]) {
							both++
							break
						}
					}
				}
			}
			s.Pairs[name] = math.NaN()
			if first > 0 {
				s.Pairs[name] = both / first
			}
		}
	}
	return s, nil
}

func pairName(r dna.Pair) string {
	return fmt.Sprintf("%s-%s@%d-%d", r.First.Name, r.Second.Name, r.Least, r.Most)
}

// CompareSequences compares the motifs of two sets. Its value is the mean over the motifs of the grammar of
// |log2(generated per kb/reference per kb)|, a motif that is missing counting as half a match; 0 is as often as in the
// reference. Parts has both sides' counts, the pairs' shares (where the first motif occurs), and the Jensen-Shannon divergence
// of the words of 4 letters, in bits.
func CompareSequences(reference, generated [][]int) (Result, error) {
	a, err := StatsOfSequences(reference)
	if err != nil {
		return Result{}, fmt.Errorf("metrics: motifs: reference: %w", err)
	}
	b, err := StatsOfSequences(generated)
	if err != nil {
		return Result{}, fmt.Errorf("metrics: motifs: %w", err)
	}
	r := Result{Metric: "motifs", N: b.N, NRef: a.N, Settings: "exact IUPAC matches, words of 4", Parts: map[string]float64{
		"gc": b.GC, "gc_ref": a.GC, "words_js": jensenShannon(a.Kmers, b.Kmers),
	}}
	half := func(v float64, letters int) float64 { return max(v, 500/float64(letters)) }
	for _, m := range dna.Motifs() {
		r.Parts[m.Name+"_per_kb"], r.Parts[m.Name+"_per_kb_ref"] = b.PerKB[m.Name], a.PerKB[m.Name]
		r.Value += math.Abs(math.Log2(half(b.PerKB[m.Name], b.Letters)/half(a.PerKB[m.Name], a.Letters))) / float64(len(dna.Motifs()))
	}
	for name, v := range b.Pairs {
		if v == v {
			r.Parts[name] = v
		}
		if w := a.Pairs[name]; w == w {
			r.Parts[name+"_ref"] = w
		}
	}
	return r, nil
}

// jensenShannon is the divergence of two distributions in bits.
func jensenShannon(p, q []float64) float64 {
	sum := 0.0
	for i := range p {
		m := (p[i] + q[i]) / 2
		if p[i] > 0 {
			sum += p[i] * math.Log2(p[i]/m) / 2
		}
		if q[i] > 0 {
			sum += q[i] * math.Log2(q[i]/m) / 2
		}
	}
	return max(sum, 0)
}
