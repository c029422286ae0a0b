package text_test

import (
	"encoding/json"
	"fmt"
	"os"
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
	tok.Pad = 0
	if other, err := text.NewCLIPTokenizer(); err != nil || other.Pad != 49407 {
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
