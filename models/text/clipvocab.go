package text

import (
	"bytes"
	"compress/gzip"
	_ "embed" // the vocabulary
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
)

// clipMerges is the list of merges of OpenAI's CLIP (clip/LICENSE), made by
// testdata/make_clip.py.
//
//go:embed clip/merges.txt.gz
var clipMerges []byte

// CLIPVocabulary is the number of tokens of CLIP's tokenizer.
const CLIPVocabulary = 49408

// NewCLIPTokenizer gives the tokenizer of CLIP, which all of Stable Diffusion 1,
// 2 and XL has. It pads with the end token.
func NewCLIPTokenizer() (*CLIPTokenizer, error) {
	t, err := clipTables()
	if err != nil {
		return nil, fmt.Errorf("text: the vocabulary of CLIP: %w", err)
	}
	own := *t // the tables are shared, and only read
	return &own, nil
}

// Files gives the tokenizer as the files of a folder that OpenCLIPTokenizer
// reads: vocab.json, merges.txt and special_tokens_map.json.
func (t *CLIPTokenizer) Files() (map[string][]byte, error) {
	vocab, err := json.Marshal(t.vocab)
	if err != nil {
		return nil, fmt.Errorf("text: writing a vocabulary: %w", err)
	}
	pairs := make([][2]string, len(t.rank))
	for p, i := range t.rank {
		pairs[i] = p
	}
	merges := []byte("#version: 0.2\n")
	for _, p := range pairs {
		merges = fmt.Appendf(merges, "%s %s\n", p[0], p[1])
	}
	pad := endToken
	for token, id := range t.vocab {
		if id == t.Pad {
			pad = token
		}
	}
	special, err := json.Marshal(map[string]string{"bos_token": startToken, "eos_token": endToken, "unk_token": endToken, "pad_token": pad})
	if err != nil {
		return nil, fmt.Errorf("text: writing special tokens: %w", err)
	}
	return map[string][]byte{"vocab.json": vocab, "merges.txt": merges, "special_tokens_map.json": special}, nil
}

// clipTables makes the tables once: 256 stand-ins of bytes in their printable
// order, the same at the end of a word, what the merges make, and two special
// tokens.
var clipTables = sync.OnceValues(func() (*CLIPTokenizer, error) {
	z, err := gzip.NewReader(bytes.NewReader(clipMerges))
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(z)
	if err != nil {
		return nil, err
	}
	t := &CLIPTokenizer{Length: 77, vocab: map[string]int{}, rank: map[[2]string]int{}, special: map[string]int{}, bytes: standIns()}
	add := func(token string) { t.vocab[token] = len(t.vocab) }
	for _, end := range []string{"", wordEnd} {
		for _, printable := range []bool{true, false} {
			for b, s := range t.bytes {
				if (s == string(rune(b))) == printable {
					add(s + end)
				}
			}
		}
	}
	for line := range strings.Lines(string(text)) {
		a, b, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if !ok {
			return nil, fmt.Errorf("%q is not a pair", line)
		}
		t.rank[[2]string{a, b}] = len(t.rank)
		add(a + b)
	}
	add(startToken)
	add(endToken)
	if len(t.vocab) != CLIPVocabulary {
		return nil, fmt.Errorf("%d tokens", len(t.vocab))
	}
	t.Start, t.End = t.vocab[startToken], t.vocab[endToken]
	t.Pad = t.End
	t.special[startToken], t.special[endToken] = t.Start, t.End
	return t, nil
})
