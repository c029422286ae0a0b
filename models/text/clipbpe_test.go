package text_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
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

// TestT5Tokenizer compares with tokenizers, and with sentencepiece where the text holds no special token.
func TestT5Tokenizer(t *testing.T) {
	raw, err := os.ReadFile("testdata/t5/expected.json")
	if err != nil {
		t.Fatal(err)
	}
	var rows []struct {
		Text     string
		IDs, SPM []int
	}
	if err := json.Unmarshal(raw, &rows); err != nil {
		t.Fatal(err)
	}
	fromJSON, err := text.OpenT5Tokenizer("testdata/t5")
	if err != nil {
		t.Fatal(err)
	}
	model, err := os.ReadFile("testdata/t5/spiece.model")
	if err != nil {
		t.Fatal(err)
	}
	fromModel, err := text.ParseSentencePiece("spiece.model", model)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if got := fromJSON.Encode(r.Text); !slices.Equal(got, r.IDs) {
			t.Errorf("tokenizer.json: %q: %v, want %v", r.Text, got, r.IDs)
		}
		if got := fromModel.Encode(r.Text); !strings.Contains(r.Text, "<") && !slices.Equal(got, r.SPM) {
			t.Errorf("spiece.model: %q: %v, want %v", r.Text, got, r.SPM)
		}
	}
	ids, mask := fromModel.Padded("a photo", 8)
	if len(ids) != 8 || len(mask) != 8 || ids[7] != fromModel.Pad || mask[7] != 0 || mask[0] != 1 {
		t.Errorf("padded: %v %v", ids, mask)
	}
	if ids, mask = fromModel.Padded("a photo of a fox", 3); len(ids) != 3 || ids[2] != fromModel.End || !slices.Equal(mask, []int{1, 1, 1}) {
		t.Errorf("cut: %v %v", ids, mask)
	}
}

func FuzzSentencePiece(f *testing.F) {
	model, err := os.ReadFile("testdata/t5/spiece.model")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(model[:4096], "a fox")
	f.Add([]byte{10, 5, 10, 1, 'a', 24, 1}, "aa")
	f.Fuzz(func(t *testing.T, raw []byte, s string) {
		tok, err := text.ParseSentencePiece("fuzz", raw)
		if err == nil {
			tok.Encode(s)
		}
	})
}
