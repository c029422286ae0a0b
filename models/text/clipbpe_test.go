package text_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"drift/models/engine/enginetest"
	"drift/models/text"
)

func TestCLIPTokenizer(t *testing.T) {
	for _, name := range []string{"tokenizer-clip", "tokenizer-clip-pad"} {
		dir := enginetest.Dir(t, "models", name)
		tok, err := text.OpenCLIPTokenizer(dir)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(filepath.Join(dir, "expected.json"))
		if err != nil {
			t.Fatal(err)
		}
		var rows []struct {
			Text        string
			IDs, Padded []int
		}
		if err := json.Unmarshal(raw, &rows); err != nil {
			t.Fatal(err)
		}
		for _, r := range rows {
			if got := tok.Encode(r.Text); !slices.Equal(got, r.IDs) {
				t.Errorf("%s: %q: %v, want %v", name, r.Text, got, r.IDs)
			}
			if got := tok.Padded(r.Text); !slices.Equal(got, r.Padded) {
				t.Errorf("%s: %q padded: %v, want %v", name, r.Text, got, r.Padded)
			}
		}
		if len(rows) < 30 {
			t.Errorf("%s: only %d strings", name, len(rows))
		}
	}
}
