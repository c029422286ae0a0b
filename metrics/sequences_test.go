package metrics

import (
	"math"
	"strings"
	"testing"

	"drift/models/dna"
)

func tokens(s string) []int {
	out := make([]int, len(s))
	for i := range s {
		out[i] = strings.IndexByte(dna.Letters, s[i])
	}
	return out
}

// Two sequences whose motifs are counted by hand: both have a TATA box, one an initiator 30 letters behind it.
func TestSequencesByHand(t *testing.T) {
	both := tokens("TATAAAAG" + strings.Repeat("A", 22) + "TCAGTCC" + strings.Repeat("A", 8)) // 45 letters
	one := tokens("TATAAAAG" + strings.Repeat("A", 37))
	s, err := StatsOfSequences([][]int{both, one})
	if err != nil {
		t.Fatal(err)
	}
	if s.N != 2 || s.Letters != 90 || s.Pairs["TATA-Inr@28-32"] != 0.5 || !math.IsNaN(s.Pairs["Inr-DPE@28-28"]) {
		t.Errorf("%+v", s)
	}
	near(t, "share of G and C", s.GC, 6./90, 1e-15)
	for name, want := range map[string]float64{"TATA": 2000. / 90, "Inr": 1000. / 90, "DPE": 0, "GC-box": 0} {
		near(t, name, s.PerKB[name], want, 1e-12)
	}
	near(t, "the word TATA", s.Kmers[0b11_00_11_00], 2./84, 1e-15)
	near(t, "all words", total(s.Kmers), 1, 1e-14)

	// Against the first alone: TATA is as often, the initiator half as often, and each of the four missing motifs counts as
	// half a match in 90 letters against half a match in 45.
	r, err := CompareSequences([][]int{both}, [][]int{both, one})
	if err != nil {
		t.Fatal(err)
	}
	near(t, "motifs", r.Value, 5./6, 1e-14)
	if r.Parts["TATA-Inr@28-32"] != 0.5 || r.Parts["TATA-Inr@28-32_ref"] != 1 || !(r.Parts["words_js"] > 0) {
		t.Errorf("%v", r.Parts)
	}
	if r, err := CompareSequences([][]int{both}, [][]int{both}); err != nil || r.Value != 0 || r.Parts["words_js"] != 0 {
		t.Errorf("a set against itself: %+v, %v", r, err)
	}
	near(t, "divergence of other words", jensenShannon([]float64{1, 0}, []float64{0, 1}), 1, 1e-15)
	near(t, "divergence of half the words", jensenShannon([]float64{1, 0}, []float64{.5, .5}), .5*math.Log2(4./3)+.25*math.Log2(2./3)+.25, 1e-15)
	for _, bad := range [][][]int{nil, {{}}, {{0, 4}}, {{-1}}} {
		if _, err := StatsOfSequences(bad); err == nil {
			t.Errorf("%v was accepted", bad)
		}
	}
}
