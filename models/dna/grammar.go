package dna

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// Letters are the categories of a position, in order.
const Letters = "ACGT"

// iupac gives the letters that a code of a consensus stands for.
var iupac = map[byte]string{
	'A': "A", 'C': "C", 'G': "G", 'T': "T", 'R': "AG", 'Y': "CT", 'S': "CG", 'W': "AT", 'K': "GT", 'M': "AC",
	'B': "CGT", 'D': "AGT", 'H': "ACT", 'V': "ACG", 'N': "ACGT",
}

// Motif is a consensus in IUPAC codes.
type Motif struct{ Name, Consensus string }

// The motifs of the grammar, after the elements of eukaryotic core promoters.
var (
	TATA  = Motif{"TATA", "TATAWAWR"}
	Inr   = Motif{"Inr", "TCAGTYY"}
	DPE   = Motif{"DPE", "RGWCGTG"}
	GCBox = Motif{"GC-box", "GGGGCGGR"}
	CCAAT = Motif{"CCAAT", "RRCCAATS"}
	EBox  = Motif{"E-box", "SCACGTGS"}
)

// Motifs lists the motifs of the grammar.
func Motifs() []Motif { return []Motif{TATA, Inr, DPE, GCBox, CCAAT, EBox} }

// Mismatches counts the letters at the start of s (tokens) that the consensus does not allow; letters that are missing count.
func (m Motif) Mismatches(s []int) int {
	n := 0
	for i := range len(m.Consensus) {
		if i >= len(s) || strings.IndexByte(iupac[m.Consensus[i]], Letters[s[i]]) < 0 {
			n++
		}
	}
	return n
}

// Matches tells whether the motif stands at the start of s.
func (m Motif) Matches(s []int) bool {
	if len(s) < len(m.Consensus) {
		return false
	}
	for i := range len(m.Consensus) {
		if allowed[m.Consensus[i]]>>s[i]&1 == 0 {
			return false
		}
	}
	return true
}

// allowed has a bit for every letter of a code.
var allowed = func() (t [128]uint8) {
	for code, letters := range iupac {
		for k := range len(Letters) {
			if strings.IndexByte(letters, Letters[k]) >= 0 {
				t[code] |= 1 << k
			}
		}
	}
	return t
}()

// element is a motif of a module, which starts from least to most letters after the start of the element before it.
type element struct {
	motif       Motif
	least, most int
}

// Class is a kind of promoter: a composition of the background and a module of motifs that comes again and again.
type Class struct {
	Name     string
	GC       float64 // share of G and C in the background
	elements []element
}

// First is the motif that a module of the class starts with.
func (c Class) First() Motif { return c.elements[0].motif }

// Pair is the rule that two motifs of a class keep: the second starts Least to Most letters after the first.
type Pair struct {
	First, Second Motif
	Least, Most   int
}

// Pairs lists the rules of the class, as MeasureMotifs counts them.
func (c Class) Pairs() []Pair {
	var out []Pair
	for i, e := range c.elements[1:] {
		out = append(out, Pair{c.elements[i].motif, e.motif, e.least, e.most})
	}
	return out
}

// Classes are the classes of the grammar, in the order of their numbers.
func Classes() []Class {
	return []Class{
		{"tata", 0.40, []element{{TATA, 0, 0}, {Inr, 28, 32}}},
		{"dpe", 0.47, []element{{Inr, 0, 0}, {DPE, 28, 28}}},
		{"cpg", 0.62, []element{{GCBox, 0, 0}, {GCBox, 14, 20}, {GCBox, 14, 20}}},
		{"ccaat", 0.50, []element{{CCAAT, 0, 0}, {EBox, 36, 40}}},
	}
}

// Names returns the names of the classes.
func Names() []string {
	var out []string
	for _, c := range Classes() {
		out = append(out, c.Name)
	}
	return out
}

const (
	leastGap, mostGap = 25, 65 // letters between two modules
	mutation          = 0.02   // of a letter of a motif, to one of the background
	before            = 300    // letters that are made and dropped, so that a sequence starts anywhere in the grammar
)

// Generate draws a sequence of tokens of a class. The grammar is stationary: any window of a sequence is a sequence, so
// that every length makes sense.
//
//	sequence   = gap module gap module ...
//	gap        = 25 to 65 letters of the background, independent, G and C with the share of the class
//	module     = the class's motifs at their distances, background between
//	motif      = its consensus, every code one of its letters; 2 % of the letters are of the background
//
// Class tata: TATAWAWR, 28 to 32 after its start TCAGTYY, GC 0.40. dpe: TCAGTYY, 28 after RGWCGTG, GC 0.47. cpg: three
// GGGGCGGR, 14 to 20 apart, GC 0.62. ccaat: RRCCAATS, 36 to 40 after SCACGTGS, GC 0.50.
func Generate(r *rand.Rand, class, length int) []int {
	c := Classes()[class]
	letter := func() int {
		at := r.Float64()
		strong := at < c.GC
		if !strong {
			at -= c.GC
		}
		second := 0
		if share := map[bool]float64{true: c.GC, false: 1 - c.GC}[strong]; at >= share/2 {
			second = 1
		}
		if strong {
			return 1 + second // C or G
		}
		return 3 * second // A or T
	}
	drop := r.IntN(before)
	out := make([]int, 0, drop+length+200)
	background := func(to int) {
		for len(out) < to {
			out = append(out, letter())
		}
	}
	for len(out) < drop+length {
		start := len(out) + leastGap + r.IntN(mostGap-leastGap+1)
		for _, e := range c.elements {
			start += e.least + r.IntN(e.most-e.least+1)
			background(start)
			for i := range len(e.motif.Consensus) {
				of := iupac[e.motif.Consensus[i]]
				k := strings.IndexByte(Letters, of[r.IntN(len(of))])
				if r.Float64() < mutation {
					k = letter()
				}
				out = append(out, k)
			}
		}
	}
	return out[drop : drop+length]
}

// Text writes tokens as letters.
func Text(s []int) string {
	b := make([]byte, len(s))
	for i, k := range s {
		b[i] = Letters[k]
	}
	return string(b)
}

// Tokens reads letters, of either case. It refuses all but A, C, G and T.
func Tokens(text string) ([]int, error) {
	out := make([]int, len(text))
	for i := range len(text) {
		k := strings.IndexByte(Letters, text[i]&^0x20)
		if k < 0 {
			return nil, fmt.Errorf("letter %d is %q; want A, C, G or T", i+1, text[i])
		}
		out[i] = k
	}
	return out, nil
}
