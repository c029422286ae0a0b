package shard

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"drift/internal/refuse"
)

func plan() *Plan {
	p := &Plan{Format: planFormat, Config: "config", Version: "1", Tier: "avx2", Arch: "amd64", Args: []string{"sample", "--count=9"}}
	for i, r := range Cut(9, 4) {
		p.Shards = append(p.Shards, New(i, r))
	}
	return p
}

func TestFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "shards")
	ctx := context.Background()
	pl := &Planner{Dir: dir, Plan: *plan()}
	if err := pl.Submit(ctx, plan().Shards); !errors.Is(err, ErrPlanned) {
		t.Fatal(err)
	}
	p, err := ReadPlan(dir)
	if err != nil || p.Config != "config" || !slices.Equal(p.IDs(), []int{0, 1, 2}) {
		t.Fatalf("%+v, %v", p, err)
	}
	for i, s := range p.Shards { // keys survive the file
		if s.Key("config") != plan().Shards[i].Key("config") {
			t.Errorf("shard %d has another key", i)
		}
	}
	other := &Planner{Dir: dir, Plan: *plan()}
	other.Plan.Config = "another"
	if err := other.Submit(ctx, nil); err == nil || errors.Is(err, ErrPlanned) {
		t.Errorf("another job's plan: %v", err)
	}
	f := &Folder{Dir: dir, Config: p.Config}
	var m *Missing
	if err := f.Submit(ctx, p.Shards); !errors.As(err, &m) || m.Error() != "3 of 3 shards are missing: 0-2" {
		t.Fatalf("%v", err)
	}
	for _, s := range p.Shards {
		for k, want := range []bool{true, false} {
			first, err := Store(dir, p, s, &Result{Arrays: []Array{{Name: "x", Floats: []float64{float64(s.ID), float64(k)}}}})
			if first != want || err != nil {
				t.Errorf("shard %d, time %d: %v, %v", s.ID, k, first, err)
			}
		}
	}
	if err := f.Submit(ctx, p.Shards); err != nil {
		t.Fatal(err)
	}
	for _, s := range p.Shards {
		r, err := f.Result(ctx, s, func(r *Result) error { return second(r.Floats("x", 2)) })
		if err != nil {
			t.Fatal(err)
		}
		if v, _ := r.Floats("x", 2); v[0] != float64(s.ID) || v[1] != 0 {
			t.Errorf("shard %d: %v", s.ID, v)
		}
	}
	// a file that was damaged is set aside, and missing
	name := file(dir, p.Config, p.Shards[1])
	if err := os.WriteFile(name, []byte("damaged"), 0o666); err != nil {
		t.Fatal(err)
	}
	var bad *refuse.Error
	if _, err := f.Result(ctx, p.Shards[1], func(*Result) error { return nil }); !errors.As(err, &bad) {
		t.Errorf("a damaged file: %v", err)
	}
	if err := f.Submit(ctx, p.Shards); !errors.As(err, &m) || !slices.Equal(m.IDs, []int{1}) {
		t.Errorf("after it: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.tmp*")); len(left) > 0 {
		t.Errorf("%v are left", left)
	}
}

func TestFormatIDs(t *testing.T) {
	for want, ids := range map[string][]int{"": nil, "3": {3}, "0-2": {0, 1, 2}, "0-1,4,6-8": {0, 1, 4, 6, 7, 8}} {
		if got := FormatIDs(ids); got != want {
			t.Errorf("%v: %q, want %q", ids, got, want)
		}
	}
}

func FuzzPlan(f *testing.F) {
	f.Add([]byte(`{"format":1,"config":"c","version":"1","tier":"avx2","arch":"amd64","args":["sample"],"shards":[{"id":0,"spec":{"from":0,"n":4}},{"id":1,"spec": {"from":4, "n":4}}]}`))
	f.Add([]byte(`{"format":1}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := ParsePlan("x", text)
		if err != nil {
			var r *refuse.Error
			if !errors.As(err, &r) {
				t.Fatalf("%v is no refusal", err)
			}
			return
		}
		for i, s := range p.Shards {
			if i > 0 && s.ID <= p.Shards[i-1].ID || len(s.Key(p.Config)) != KeyLen {
				t.Fatalf("shard %+v", s)
			}
		}
	})
}
