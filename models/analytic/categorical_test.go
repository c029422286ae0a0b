package analytic

import (
	"strings"
	"testing"

	"drift/schedules"
)

const twoClasses = `{"type": "categorical", "weights": [0.5, 0.5], "probs": [[[0.7, 0.3]], [[0.1, 0.9]]], "labels": [0, 1], "process": {"type": "dirichlet", "end": 9}}`

func TestParseCategorical(t *testing.T) {
	s, err := ParseCategorical([]byte(twoClasses))
	if err != nil {
		t.Fatal(err)
	}
	if _, end := s.Process().Ends(); end != 9 || s.Classes() != 2 || s.Info().Shape[0] != 1 || s.Process().(schedules.Field).Categories() != 2 {
		t.Errorf("%+v", s.Info())
	}
	for _, c := range [][2]string{
		{`[0.5, 0.5]`, `[0.5, 0.6]`}, {`[0.7, 0.3]`, `[0.7, 0.2]`}, {`[0.7, 0.3]`, `[0.7, 0.3, 0]`}, {`[0, 1]`, `[0, 2]`}, {`[0, 1]`, `[0, -1]`},
		{`"dirichlet", "end": 9`, `"flow"`}, {`"end": 9`, `"end": 0`}, {`"end": 9`, `"beta": 9`}, {`"labels"`, `"label"`}, {`[[[0.7, 0.3]], `, `[[], `}, {`"categorical"`, `"mixture"`},
	} {
		if _, err := ParseCategorical([]byte(strings.Replace(twoClasses, c[0], c[1], 1))); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s in place of %s: %v", c[1], c[0], err)
		}
	}
}

func FuzzCategorical(f *testing.F) {
	f.Add([]byte(twoClasses))
	f.Add([]byte(`{"type": "categorical", "weights": [1], "probs": [[[1, 0]]], "process": {"type": "simplex-linear"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := ParseCategorical(b); err == nil && s.Info().Shape[1] < 2 {
			t.Errorf("%+v", s.Info())
		}
	})
}
