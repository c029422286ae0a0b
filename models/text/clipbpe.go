package text

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"drift/internal/refuse"
)

// CLIPTokenizer is CLIP's byte-pair encoding: lower case, words, and merges of
// the bytes of a word, whose last token ends in "</w>" (Radford et al. 2021).
type CLIPTokenizer struct {
	Start, End, Pad int
	Length          int // of a padded sequence

	vocab   map[string]int
	rank    map[[2]string]int
	special map[string]int // tokens that stand for themselves in a text
	bytes   [256]string    // the printable stand-in of every byte
}

const (
	startToken = "<|startoftext|>"
	endToken   = "<|endoftext|>"
	wordEnd    = "</w>"
)

// maxTokenizer is the most bytes of a tokenizer's file.
const maxTokenizer = 64 << 20

// OpenCLIPTokenizer reads vocab.json and merges.txt of a folder, and its
// special tokens.
func OpenCLIPTokenizer(dir string) (*CLIPTokenizer, error) {
	t := &CLIPTokenizer{Length: 77, vocab: map[string]int{}, rank: map[[2]string]int{}, special: map[string]int{}, bytes: standIns()}
	path := filepath.Join(dir, "vocab.json")
	text, err := readFile(path)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &t.vocab); err != nil {
		return nil, refuse.Errorf(path, "not a vocabulary: %v", err)
	}
	if err := t.readMerges(filepath.Join(dir, "merges.txt")); err != nil {
		return nil, err
	}
	pad := endToken
	for _, name := range []string{"tokenizer_config.json", "special_tokens_map.json"} {
		if err := specials(filepath.Join(dir, name), &pad, &t.Length); err != nil {
			return nil, err
		}
	}
	for _, s := range []struct {
		token string
		id    *int
	}{{startToken, &t.Start}, {endToken, &t.End}, {pad, &t.Pad}} {
		id, ok := t.vocab[s.token]
		if !ok {
			if id, ok = t.vocab[s.token+wordEnd]; !ok {
				return nil, refuse.Errorf(path, "has no token %q", s.token)
			}
		}
		*s.id = id
	}
	t.special[startToken], t.special[endToken], t.special[pad] = t.Start, t.End, t.Pad
	return t, nil
}

// PadWith makes a token the one that sequences are padded with. As in
// transformers, it then stands for itself in a text, too. The error is that of
// a token that the vocabulary does not have.
func (t *CLIPTokenizer) PadWith(token string) error {
	id, ok := t.vocab[token]
	if !ok {
		return fmt.Errorf("text: the vocabulary has no token %q to pad with", token)
	}
	t.Pad, t.special = id, maps.Clone(t.special)
	t.special[token] = id
	return nil
}

func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("text: reading a tokenizer: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxTokenizer {
		return nil, refuse.Errorf(path, "not a file of at most %d bytes", maxTokenizer)
	}
	return os.ReadFile(path)
}

// specials takes the pad token and the length from a configuration, which may
// be missing. A special token is a string or an object with content.
func specials(path string, pad *string, length *int) error {
	text, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var config struct {
		Pad    any      `json:"pad_token"`
		Length *float64 `json:"model_max_length"`
	}
	if err := json.Unmarshal(text, &config); err != nil {
		return refuse.Errorf(path, "%v", err)
	}
	switch p := config.Pad.(type) {
	case string:
		*pad = p
	case map[string]any:
		if s, ok := p["content"].(string); ok {
			*pad = s
		}
	}
	if l := config.Length; l != nil && *l >= 3 && *l < 1<<16 {
		*length = int(*l)
	}
	return nil
}

func (t *CLIPTokenizer) readMerges(path string) error {
	text, err := readFile(path)
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 0; lines.Scan(); n++ {
		line := lines.Text()
		if n == 0 && strings.HasPrefix(line, "#version") || line == "" {
			continue
		}
		a, b, ok := strings.Cut(line, " ")
		if !ok || a == "" || b == "" || strings.Contains(b, " ") {
			return refuse.Errorf(path, "line %d is not a pair of tokens: %.60q", n+1, line)
		}
		if _, twice := t.rank[[2]string{a, b}]; !twice {
			t.rank[[2]string{a, b}] = len(t.rank)
		}
	}
	if err := lines.Err(); err != nil {
		return refuse.Errorf(path, "%v", err)
	}
	return nil
}

// standIns are printable characters for the bytes, GPT-2's: a byte that is
// printable in Latin-1 stands for itself, the others for characters from U+0100
// on.
func standIns() (out [256]string) {
	next := rune(256)
	for b := range 256 {
		r := rune(b)
		if !(b >= '!' && b <= '~' || b >= 0xa1 && b <= 0xac || b >= 0xae) {
			r = next
			next++
		}
		out[b] = string(r)
	}
	return out
}

// Tokens gives the ids of a text without start and end token, of any number.
func (t *CLIPTokenizer) Tokens(text string) []int {
	var ids []int
	for len(text) > 0 {
		at, token := len(text), ""
		for s := range t.special {
			if i := strings.Index(text, s); i >= 0 && i < at {
				at, token = i, s
			}
		}
		for _, word := range words(clean(text[:at])) {
			ids = append(ids, t.word(word)...)
		}
		if token != "" {
			ids = append(ids, t.special[token])
		}
		text = text[at+len(token):]
	}
	return ids
}

// Encode gives the ids of a text between start and end token.
func (t *CLIPTokenizer) Encode(text string) []int {
	return append(append([]int{t.Start}, t.Tokens(text)...), t.End)
}

// Padded is Encode cut or padded to Length; the end token stays the last.
func (t *CLIPTokenizer) Padded(text string) []int { return t.Fit(t.Tokens(text)) }

// Fit puts ids between start and end token, and cuts or pads to Length.
func (t *CLIPTokenizer) Fit(ids []int) []int {
	ids = ids[:min(len(ids), t.Length-2)]
	out := append(append(append(make([]int, 0, t.Length), t.Start), ids...), t.End)
	for len(out) < t.Length {
		out = append(out, t.Pad)
	}
	return out
}

// clean composes characters, makes every run of white space one blank, and
// lowers the case character by character.
func clean(text string) string {
	var out strings.Builder
	blank := false
	for _, r := range norm.NFC.String(text) {
		if unicode.IsSpace(r) {
			blank = true
			continue
		}
		if blank {
			out.WriteByte(' ')
			blank = false
		}
		if r == 'İ' { // the only letter whose lower case is two characters
			out.WriteString("i\u0307")
			continue
		}
		out.WriteRune(unicode.ToLower(r))
	}
	if blank {
		out.WriteByte(' ')
	}
	return out.String()
}

// contractions split off from the word before them.
var contractions = []string{"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}

// words cuts a cleaned text into contractions, runs of letters, single digits,
// and runs of anything else but blanks.
func words(text string) []string {
	var out []string
next:
	for len(text) > 0 {
		for _, c := range contractions {
			if strings.HasPrefix(text, c) {
				out = append(out, c)
				text = text[len(c):]
				continue next
			}
		}
		r, size := utf8.DecodeRuneInString(text)
		switch {
		case unicode.IsSpace(r):
			text = text[size:]
			continue
		case unicode.IsNumber(r):
		case unicode.IsLetter(r):
			size = prefix(text, unicode.IsLetter)
		default:
			size = prefix(text, func(r rune) bool { return !unicode.IsSpace(r) && !unicode.IsLetter(r) && !unicode.IsNumber(r) })
		}
		out = append(out, text[:size])
		text = text[size:]
	}
	return out
}

// prefix is the length of the longest prefix of characters that are of a kind.
func prefix(text string, is func(rune) bool) int {
	if i := strings.IndexFunc(text, func(r rune) bool { return !is(r) }); i >= 0 {
		return i
	}
	return len(text)
}

// word merges the bytes of a word, the pair of the lowest rank first.
func (t *CLIPTokenizer) word(word string) []int {
	parts := make([]string, len(word))
	for i := range len(word) {
		parts[i] = t.bytes[word[i]]
	}
	parts[len(parts)-1] += wordEnd
	for len(parts) > 1 {
		best, at := -1, 0
		for i := range len(parts) - 1 {
			if r, ok := t.rank[[2]string{parts[i], parts[i+1]}]; ok && (best < 0 || r < best) {
				best, at = r, i
			}
		}
		if best < 0 {
			break
		}
		a, b := parts[at], parts[at+1]
		merged := parts[:0:0]
		for i := 0; i < len(parts); i++ {
			if i+1 < len(parts) && parts[i] == a && parts[i+1] == b {
				merged = append(merged, a+b)
				i++
			} else {
				merged = append(merged, parts[i])
			}
		}
		parts = merged
	}
	ids := make([]int, len(parts))
	for i, p := range parts {
		id, ok := t.vocab[p]
		if !ok {
			id = t.End // the unknown token
		}
		ids[i] = id
	}
	return ids
}
