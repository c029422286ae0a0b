package features

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"

	"drift/internal/kernels"
	"drift/internal/refuse"
	"drift/metrics"
	"drift/models/dna"
)

// Sequences are kept as pictures of one row: (n, 1, length, 1) bytes, a token each. They come from FASTA files and from
// .npz files with an array tokens, and the extractor dna measures them.

const (
	mostSequences = 1 << 30 // letters of a FASTA file that is read
	longestLine   = 1 << 24
)

// openFASTA reads a FASTA file of sequences over A, C, G, T, all of one length. A comment class=NAME of every record, as drift
// sample writes it, gives the classes.
func openFASTA(path string) (*Set, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	seqs, classes, err := readFASTA(path, f)
	if err != nil {
		return nil, err
	}
	s := sequences(path, seqs)
	if slices.Contains(classes, "") {
		return s, nil
	}
	names := dna.Names()
	for _, c := range classes {
		k := slices.Index(names, c)
		if k < 0 {
			s.Labels = nil
			break
		}
		s.Labels = append(s.Labels, k)
	}
	return s, nil
}

// readFASTA returns the sequences and what their records' headers say of their class.
func readFASTA(path string, r io.Reader) (seqs [][]int, classes []string, err error) {
	in := bufio.NewScanner(io.LimitReader(r, mostSequences+1))
	in.Buffer(nil, longestLine)
	total := 0
	for line := 1; in.Scan(); line++ {
		text := strings.TrimSpace(in.Text())
		if total += len(in.Bytes()) + 1; total > mostSequences {
			return nil, nil, refuse.Errorf(path, "more than %d bytes", mostSequences)
		}
		switch {
		case text == "" || text[0] == ';':
		case text[0] == '>':
			class := ""
			for _, word := range strings.Fields(text) {
				if v, ok := strings.CutPrefix(word, "class="); ok {
					class = v
				}
			}
			seqs, classes = append(seqs, nil), append(classes, class)
		case len(seqs) == 0:
			return nil, nil, refuse.Errorf(path, "line %d: letters before the first record (>)", line)
		default:
			tokens, err := dna.Tokens(text)
			if err != nil {
				return nil, nil, refuse.Errorf(path, "line %d: %v", line, err)
			}
			seqs[len(seqs)-1] = append(seqs[len(seqs)-1], tokens...)
		}
	}
	if err := in.Err(); errors.Is(err, bufio.ErrTooLong) {
		return nil, nil, refuse.Errorf(path, "a line of more than %d bytes", longestLine)
	} else if err != nil {
		return nil, nil, err
	}
	if len(seqs) == 0 {
		return nil, nil, refuse.Errorf(path, "has no record")
	}
	for i, s := range seqs {
		if len(s) == 0 || len(s) != len(seqs[0]) {
			return nil, nil, refuse.Errorf(path, "record %d has %d letters, record 1 has %d: want one length for all", i+1, len(s), len(seqs[0]))
		}
	}
	return seqs, classes, nil
}

// sequences makes a set of tokens.
func sequences(name string, seqs [][]int) *Set {
	s := &Set{Name: name, Kind: Pictures, N: len(seqs), pix: Images{N: len(seqs), H: 1, W: len(seqs[0]), C: 1, Pix: make([]uint8, 0, len(seqs)*len(seqs[0]))}, tokens: true}
	for _, x := range seqs {
		for _, k := range x {
			s.pix.Pix = append(s.pix.Pix, uint8(k))
		}
	}
	return s
}

// Grammar is a set of n sequences of the embedded DNA grammar, of the given length: of one class, or, with class -1, of all
// in turn.
func Grammar(n, length, class int, seed uint64) *Set {
	seqs, labels := make([][]int, n), make([]int, n)
	for i := range seqs {
		labels[i] = class
		if class < 0 {
			labels[i] = i % len(dna.Classes())
		}
		seqs[i] = dna.Generate(rand.New(rand.NewPCG(seed, uint64(i))), labels[i], length)
	}
	name := "dna"
	if class >= 0 {
		name += ":" + dna.Names()[class]
	}
	s := sequences(fmt.Sprintf("%s (grammar, seed %d)", name, seed), seqs)
	s.Labels = labels
	return s
}

// Length is the length of the sequences of a set of tokens, 0 of every other set.
func (s *Set) Length() int {
	if !s.tokens {
		return 0
	}
	return s.pix.W
}

// Tokens returns the sequences of a set of tokens.
func (s *Set) Tokens() ([][]int, error) {
	if !s.tokens {
		return nil, refuse.Errorf(s.Name, "has no sequences")
	}
	out := make([][]int, s.N)
	for i := range out {
		for _, k := range s.pix.At(i).Pix {
			if int(k) >= len(dna.Letters) {
				return nil, refuse.Errorf(s.Name, "sequence %d has the token %d; want 0 to %d", i, k, len(dna.Letters)-1)
			}
			out[i] = append(out[i], int(k))
		}
	}
	return out, nil
}

// dnaNet is the embedded classifier of clean sequences: features are the outputs of its first linear layer, before the ReLU,
// as the Frechet biological distance takes them; logits those of the classes of the grammar.
type dnaNet struct {
	c    *dna.Classifier
	pool *kernels.Pool
}

func openDNA(opt Options) (Extractor, error) {
	if opt.Resize != "" {
		return nil, fmt.Errorf("features: the dna extractor does not resize")
	}
	pool := kernels.NewPool(opt.Tier, max(1, opt.Threads))
	c, err := dna.OpenClassifier(pool)
	if err != nil {
		pool.Close()
		return nil, err
	}
	return &dnaNet{c, pool}, nil
}

func (d *dnaNet) Identity() metrics.Identity {
	return metrics.Identity{Extractor: "dna/sha256:" + d.c.Hash[:16], Resize: "none"}
}

func (d *dnaNet) Dims() (features, classes int) { return d.c.Net.Hidden, d.c.Net.Classes }

func (d *dnaNet) Close() { d.pool.Close() }

func (d *dnaNet) Extract(ctx context.Context, im Images) (Vectors, error) {
	in := dna.Input{Rows: im.N, L: im.W}
	if im.H != 1 || im.C != 1 {
		return Vectors{}, &pictureError{0, fmt.Errorf("is %dx%d; the extractor dna takes sequences", im.W, im.H)}
	}
	for _, k := range im.Pix[:im.N*im.W] {
		in.Tokens = append(in.Tokens, int(k))
	}
	f, k := d.Dims()
	v := Vectors{metrics.Matrix{N: im.N, D: f, X: make([]float64, im.N*f)}, metrics.Matrix{N: im.N, D: k, X: make([]float64, im.N*k)}}
	err := d.c.Net.Classify(ctx, v.Features.X, v.Logits.X, in)
	return v, err
}
