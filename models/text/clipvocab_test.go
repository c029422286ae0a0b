package text_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"drift/models/text"
)

// The embedded vocabulary gives the numbers of transformers (testdata/make_clip.py).
func TestCLIPVocabulary(t *testing.T) {
	raw, err := os.ReadFile("testdata/clip_expected.json")
	if err != nil {
		t.Fatal(err)
	}
	var rows []struct {
		Text string
		IDs  []int
	}
	if err := json.Unmarshal(raw, &rows); err != nil {
		t.Fatal(err)
	}
	tok, err := text.NewCLIPTokenizer()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if got := tok.Encode(r.Text); !slices.Equal(got, r.IDs) {
			t.Errorf("%q: %v, want %v", r.Text, got, r.IDs)
		}
	}
	if len(rows) != 39 || tok.Pad != 49407 {
		t.Errorf("%d strings, pad %d", len(rows), tok.Pad)
	}
	if err := tok.PadWith("!"); err != nil || tok.Pad != 0 {
		t.Fatal(err)
	}
	files, err := tok.Files()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	read, err := text.OpenCLIPTokenizer(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if got := read.Padded(r.Text); !slices.Equal(got, tok.Padded(r.Text)) {
			t.Errorf("read back: %q: %v", r.Text, got)
		}
	}
	if tok.PadWith("no token") == nil {
		t.Error("padded with what is no token")
	}
	if other, err := text.NewCLIPTokenizer(); err != nil || other.Pad != 49407 || slices.Equal(other.Encode("!"), tok.Encode("!")) {
		t.Errorf("a change of one tokenizer changes another: %v", err)
	}
}

func ExampleNewCLIPTokenizer() {
	t, err := text.NewCLIPTokenizer()
	if err != nil {
		panic(err)
	}
	fmt.Println(t.Encode("a photo of a cat"))
	// Output: [49406 320 1125 539 320 2368 49407]
}
