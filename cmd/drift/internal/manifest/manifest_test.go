package manifest

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"drift/internal/refuse"
	"drift/schedules"
)

func example() Run {
	return Run{
		Format: Format, Version: "test", Verb: "sample",
		Model:   Model{Path: "a.json", Hash: "abc", DType: "f64", Shape: []int{2}},
		Sampler: "euler", Schedule: "karras",
		Grid:  NewGrid(schedules.Grid{{T: 80, Alpha: 1, Sigma: 80}, {T: 0.002, Alpha: 1, Sigma: 0.002}, {T: 0, Alpha: 1, Sigma: 0}}),
		NFE:   2,
		Seeds: "0-49,60", Sets: []Set{{Classes: []int{0, 1, 2}}},
	}
}

func TestHash(t *testing.T) {
	a, b := example(), example()
	b.Model.Path = "elsewhere/a.json"
	if a.Hash() != b.Hash() {
		t.Error("the place of the model's file changes the hash")
	}
	for name, change := range map[string]func(*Run){
		"hash":    func(r *Run) { r.Model.Hash = "abd" },
		"sampler": func(r *Run) { r.Sampler = "heun" },
		"grid":    func(r *Run) { r.Grid.Sigma[1] = 0.0021 },
		"seeds":   func(r *Run) { r.Seeds = "0-50" },
		"class":   func(r *Run) { r.Sets[0].Classes[1] = 2 },
		"tier":    func(r *Run) { r.Model.Tier = "avx2" },
		"noise":   func(r *Run) { r.Noise = "torch" },
		"version": func(r *Run) { r.Version = "other" },
	} {
		c := example()
		change(&c)
		if c.Hash() == a.Hash() {
			t.Errorf("another %s has the same hash", name)
		}
		if d := Diff(a, c); len(d) != 1 {
			t.Errorf("another %s differs in %q", name, d)
		}
	}
	const frozen = `{"format":1,"version":"test","verb":"sample","model":{"path":"","hash":"abc","dtype":"f64","shape":[2]},"sampler":"euler","schedule":"karras","grid":{"t":[80,0.002,0],"alpha":[1,1,1],"sigma":[80,0.002,0]},"nfe":2,"seeds":"0-49,60","sets":[{"classes":[0,1,2]}]}`
	if got := string(a.Canonical()); got != frozen {
		t.Errorf("canonical form changed:\n%s\nwas\n%s", got, frozen)
	}
}

func TestClaim(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load of an empty folder: %v", err)
	}
	if found, err := Claim(dir, example()); found || err != nil {
		t.Fatalf("first claim: %v, %v", found, err)
	}
	if found, err := Claim(dir, example()); !found || err != nil {
		t.Fatalf("second claim: %v, %v", found, err)
	}
	other := example()
	other.Sampler = "heun"
	_, err := Claim(dir, other)
	var d *Different
	if !errors.As(err, &d) || !strings.Contains(err.Error(), `sampler: "euler" there, "heun" here`) {
		t.Errorf("another run: %v", err)
	}
	got, err := Load(dir)
	if err != nil || got.Hash() != example().Hash() || got.Model.Path != "a.json" {
		t.Errorf("loaded %+v, %v", got, err)
	}
}

func TestLoadRefuses(t *testing.T) {
	dir := t.TempDir()
	if err := Save(dir, example()); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(filepath.Join(dir, Name))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"changed":  strings.Replace(string(good), "0-49,60", "0-49,61", 1),
		"cut":      string(good[:len(good)/2]),
		"empty":    "",
		"format":   strings.Replace(string(good), `"format": 1`, `"format": 2`, 1),
		"no nodes": `{"hash":"","run":{"format":1,"sets":[{}]}}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, Name), []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
		var r *refuse.Error
		if _, err := Load(dir); !errors.As(err, &r) {
			t.Errorf("%s: %v, want a refusal", name, err)
		}
	}
}

func TestSeeds(t *testing.T) {
	for s, want := range map[string][]uint64{
		"7":        {7},
		"0-3,60":   {0, 1, 2, 3, 60},
		" 5 , 1-2": {5, 1, 2},
		"18446744073709551614-18446744073709551615": {1<<64 - 2, 1<<64 - 1},
	} {
		got, err := ParseSeeds(s)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("ParseSeeds(%q) = %v, %v", s, got, err)
		}
		again, err := ParseSeeds(FormatSeeds(got))
		if err != nil || !slices.Equal(again, want) {
			t.Errorf("%v became %q and %v, %v", got, FormatSeeds(got), again, err)
		}
	}
	for _, s := range []string{"", ",", "a", "3-1", "1,1", "0-4,2", "-1", "1-", "0-18446744073709551615", "1.5", "0-9999999,20000000"} {
		if got, err := ParseSeeds(s); err == nil {
			t.Errorf("ParseSeeds(%q) = %d seeds, want an error", s, len(got))
		}
	}
}

func FuzzParse(f *testing.F) {
	b, _ := json.Marshal(Picture{Run: example(), Of: "x", Seed: 3})
	f.Add(b)
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if r, err := Parse("x", text); err == nil {
			r.Hash()
		}
	})
}
