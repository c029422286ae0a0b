package features

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"drift/internal/kernels"
	"drift/internal/npz"
	"drift/metrics"
)

func TestFASTA(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.fasta")
	if err := os.WriteFile(path, []byte("; a comment\n>1 class=cpg\nACGT\nacgt\n\n>2 x class=tata\nTTTT\nTTTT\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	s, err := OpenSet(path)
	if err != nil {
		t.Fatal(err)
	}
	seqs, err := s.Tokens()
	if err != nil || s.N != 2 || s.Length() != 8 || !slices.Equal(seqs[0], []int{0, 1, 2, 3, 0, 1, 2, 3}) || !slices.Equal(s.Labels, []int{2, 0}) {
		t.Errorf("%d sequences %v of classes %v, %v", s.N, seqs, s.Labels, err)
	}
	bad := filepath.Join(t.TempDir(), "t.npz")
	if err := npz.Write(bad, npz.Array{Name: "tokens", Shape: []int{1, 3}, Data: []uint8{0, 9, 1}}); err != nil {
		t.Fatal(err)
	}
	if s, err = OpenSet(bad); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Tokens(); err == nil {
		t.Error("token 9 was taken")
	}
	ex, err := Open("dna", Options{Tier: kernels.Detect()})
	if err != nil {
		t.Fatal(err)
	}
	defer ex.Close()
	if _, err := s.Stats(context.Background(), ex, true); err == nil {
		t.Error("token 9 was embedded")
	}
	if _, err := ex.Extract(context.Background(), Images{N: 1, H: 28, W: 28, C: 1, Pix: make([]uint8, 784)}); err == nil {
		t.Error("a picture was taken for a sequence")
	}
}

// TestFBD: two halves of the grammar are near, classes are far from each other, and metrics.FBD says the same as the moments.
func TestFBD(t *testing.T) {
	ctx := context.Background()
	ex, err := Open("dna", Options{Tier: kernels.Detect(), Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer ex.Close()
	a, b, c := Grammar(120, 200, 0, 1), Grammar(120, 200, 0, 2), Grammar(120, 200, 2, 3)
	distance := func(x, y *Set) float64 {
		p, err := x.Stats(ctx, ex, true)
		if err != nil {
			t.Fatal(err)
		}
		q, err := y.Stats(ctx, ex, true)
		if err != nil {
			t.Fatal(err)
		}
		r, err := metrics.CompareStats(p, q, false)
		if err != nil {
			t.Fatal(err)
		}
		return r.Value
	}
	same, other := distance(a, b), distance(a, c)
	if other < 20*same {
		t.Errorf("the distance of a class to itself is %g, to another %g", same, other)
	}
	embed := func(ctx context.Context, seqs [][]int) (metrics.Samples, error) {
		s := sequences("x", seqs)
		v, err := ex.Extract(ctx, s.pix)
		return v.Features, err
	}
	x, _ := a.Tokens()
	y, _ := b.Tokens()
	r, err := metrics.FBD(ctx, embed, x, y, ex.Identity())
	if err != nil || r.Metric != "fbd" || r.Value < 0.999*same || r.Value > 1.001*same {
		t.Errorf("metrics.FBD says %v (%v), the moments %g", r.Value, err, same)
	}
}

func FuzzFASTA(f *testing.F) {
	f.Add([]byte(">1\nACGT\n"))
	f.Add([]byte(">1 class=tata\nAC\nGT\n;c\n>2\nTTTT"))
	f.Fuzz(func(t *testing.T, b []byte) {
		seqs, classes, err := readFASTA("x", bytes.NewReader(b))
		if err == nil && (len(seqs) == 0 || len(seqs) != len(classes)) {
			t.Errorf("%d sequences, %d classes", len(seqs), len(classes))
		}
	})
}
