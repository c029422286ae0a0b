package text

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"drift/internal/refuse"
)

// T5Tokenizer is the unigram model of SentencePiece (Kudo 2018,
// arXiv:1804.10959), as T5 uses it: a text is normalised, blanks become
// U+2581, and of all ways to cut it into pieces the one with the largest sum
// of log probabilities is taken.
type T5Tokenizer struct {
	End, Pad, Unknown int

	pieces  map[string]piece
	longest int     // bytes of a piece
	unknown float64 // score of a character that no piece covers
	special map[string]int
	chars   *charsMap // nil: the text is taken as it is
}

type piece struct {
	id    int
	score float64
}

// unknownPenalty is how far below the worst piece an unknown character scores.
const unknownPenalty = 10

const blankMark = "▁"

// OpenT5Tokenizer reads spiece.model or tokenizer.json of a folder.
func OpenT5Tokenizer(dir string) (*T5Tokenizer, error) {
	path := filepath.Join(dir, "tokenizer.json")
	raw, err := readFile(path)
	if err == nil {
		return parseUnigramJSON(path, raw)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	path = filepath.Join(dir, "spiece.model")
	if raw, err = readFile(path); err != nil {
		return nil, err
	}
	return ParseSentencePiece(path, raw)
}

func newUnigram() *T5Tokenizer {
	return &T5Tokenizer{End: -1, Pad: -1, Unknown: -1, pieces: map[string]piece{}, special: map[string]int{}}
}

// add takes a piece of the vocabulary that texts are cut into.
func (t *T5Tokenizer) add(text string, id int, score float64) {
	if text == "" {
		return
	}
	t.pieces[text] = piece{id, score}
	t.longest = max(t.longest, len(text))
}

// finish checks what was read.
func (t *T5Tokenizer) finish(path string) (*T5Tokenizer, error) {
	if t.End < 0 || t.Pad < 0 || t.Unknown < 0 {
		return nil, refuse.Errorf(path, "lacks one of the tokens </s>, <pad> and <unk>")
	}
	least := 0.0
	for _, p := range t.pieces {
		if math.IsNaN(p.score) || math.IsInf(p.score, 0) {
			return nil, refuse.Errorf(path, "a piece has the score %g", p.score)
		}
		least = min(least, p.score)
	}
	t.unknown = least - unknownPenalty
	return t, nil
}

func parseUnigramJSON(path string, raw []byte) (*T5Tokenizer, error) {
	var file struct {
		Added []struct {
			ID      int
			Content string
		} `json:"added_tokens"`
		Normalizer json.RawMessage
		Model      struct {
			Type  string
			Vocab [][2]any
			UnkID *int `json:"unk_id"`
		}
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		return nil, refuse.Errorf(path, "not a tokenizer: %v", err)
	}
	if file.Model.Type != "Unigram" && file.Model.Type != "" {
		return nil, refuse.Errorf(path, "a %.40q tokenizer, Unigram is needed", file.Model.Type)
	}
	t := newUnigram()
	for id, entry := range file.Model.Vocab {
		text, ok1 := entry[0].(string)
		score, ok2 := entry[1].(float64)
		if !ok1 || !ok2 {
			return nil, refuse.Errorf(path, "piece %d is not a text and a score", id)
		}
		t.known(text, id)
		if file.Model.UnkID == nil || id != *file.Model.UnkID {
			t.add(text, id, score)
		}
	}
	if file.Model.UnkID != nil {
		t.Unknown = *file.Model.UnkID
	}
	for _, a := range file.Added {
		t.special[a.Content] = a.ID
		t.known(a.Content, a.ID)
		delete(t.pieces, a.Content)
	}
	var err error
	if t.chars, err = normalizer(path, file.Normalizer); err != nil {
		return nil, err
	}
	return t.finish(path)
}

// known notes the tokens that have a part to play.
func (t *T5Tokenizer) known(text string, id int) {
	switch text {
	case "</s>":
		t.End = id
	case "<pad>":
		t.Pad = id
	case "<unk>":
		t.Unknown = id
	}
}

// normalizer reads the precompiled map, alone or in a sequence beside rules
// for blanks, which every text gets anyway.
func normalizer(path string, raw json.RawMessage) (*charsMap, error) {
	var n struct {
		Type        string
		Map         string `json:"precompiled_charsmap"`
		Normalizers []json.RawMessage
	}
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	if err := json.Unmarshal(raw, &n); err != nil {
		return nil, refuse.Errorf(path, "normalizer: %v", err)
	}
	switch n.Type {
	case "Precompiled":
		blob, err := base64.StdEncoding.DecodeString(n.Map)
		if err != nil {
			return nil, refuse.Errorf(path, "precompiled_charsmap: %v", err)
		}
		return parseCharsMap(path, blob)
	case "Sequence":
		var found *charsMap
		for _, part := range n.Normalizers {
			m, err := normalizer(path, part)
			if err != nil {
				return nil, err
			}
			if m != nil {
				found = m
			}
		}
		return found, nil
	case "Replace", "Strip", "Prepend":
		return nil, nil
	}
	return nil, refuse.Errorf(path, "the normalizer %.40q is not supported", n.Type)
}

// Types of the pieces in a SentencePiece model.
const (
	pieceNormal, pieceUnknown, pieceControl, pieceUser, pieceUnused = 1, 2, 3, 4, 5
)

// ParseSentencePiece reads a SentencePiece model (a protocol buffer); path
// names it in errors.
func ParseSentencePiece(path string, raw []byte) (*T5Tokenizer, error) {
	t := newUnigram()
	bad := func(err error) error { return refuse.Errorf(path, "not a SentencePiece model: %v", err) }
	id := 0
	err := fields(raw, func(num protowire.Number, _ protowire.Type, value []byte, _ uint64) error {
		switch num {
		case 1: // a piece
			text, score, kind := "", float32(0), uint64(pieceNormal)
			err := fields(value, func(num protowire.Number, _ protowire.Type, v []byte, n uint64) error {
				switch num {
				case 1:
					text = string(v)
				case 2:
					score = math.Float32frombits(uint32(n))
				case 3:
					kind = n
				}
				return nil
			})
			if err != nil {
				return err
			}
			t.known(text, id)
			switch kind {
			case pieceNormal:
				t.add(text, id, float64(score))
			case pieceUnknown:
				t.Unknown = id
			case pieceControl, pieceUser:
				t.special[text] = id
			}
			id++
		case 2: // how it was trained
			return fields(value, func(num protowire.Number, _ protowire.Type, _ []byte, n uint64) error {
				if num == 3 && n != 1 {
					return fmt.Errorf("a model of kind %d, unigram is 1", n)
				}
				return nil
			})
		case 3: // how texts are normalised
			return fields(value, func(num protowire.Number, _ protowire.Type, v []byte, _ uint64) error {
				if num != 2 || len(v) == 0 {
					return nil
				}
				var err error
				t.chars, err = parseCharsMap(path, v)
				return err
			})
		}
		return nil
	})
	if err != nil {
		return nil, bad(err)
	}
	return t.finish(path)
}

// fields calls f for every field of a message: value is that of a field with a
// length, n that of a number.
func fields(raw []byte, f func(num protowire.Number, kind protowire.Type, value []byte, n uint64) error) error {
	for len(raw) > 0 {
		num, kind, size := protowire.ConsumeTag(raw)
		if size < 0 {
			return protowire.ParseError(size)
		}
		raw = raw[size:]
		var value []byte
		var n uint64
		switch kind {
		case protowire.VarintType:
			n, size = protowire.ConsumeVarint(raw)
		case protowire.Fixed32Type:
			var v uint32
			v, size = protowire.ConsumeFixed32(raw)
			n = uint64(v)
		case protowire.Fixed64Type:
			n, size = protowire.ConsumeFixed64(raw)
		case protowire.BytesType:
			value, size = protowire.ConsumeBytes(raw)
		default:
			size = protowire.ConsumeFieldValue(num, kind, raw)
		}
		if size < 0 {
			return protowire.ParseError(size)
		}
		raw = raw[size:]
		if err := f(num, kind, value, n); err != nil {
			return err
		}
	}
	return nil
}

// charsMap replaces the longest sequence of bytes that a trie knows by another
// text: a double array (Aoe 1989) in the layout of Darts-clone, then the texts.
type charsMap struct {
	units []uint32
	texts string
}

func parseCharsMap(path string, blob []byte) (*charsMap, error) {
	if len(blob) < 4 {
		return nil, refuse.Errorf(path, "a precompiled_charsmap of %d bytes", len(blob))
	}
	size := binary.LittleEndian.Uint32(blob)
	if size%4 != 0 || uint64(size) > uint64(len(blob)-4) || size == 0 {
		return nil, refuse.Errorf(path, "precompiled_charsmap: a trie of %d bytes in %d", size, len(blob))
	}
	m := &charsMap{units: make([]uint32, size/4), texts: string(blob[4+size:])}
	for i := range m.units {
		m.units[i] = binary.LittleEndian.Uint32(blob[4+4*i:])
	}
	return m, nil
}

// longest finds the replacement of the longest prefix that has one, and the
// length of that prefix, 0 for none.
func (m *charsMap) longest(s string) (text string, n int) {
	at := m.jump(0, m.units[0])
	for i := range len(s) {
		at ^= uint32(s[i])
		if uint64(at) >= uint64(len(m.units)) {
			break
		}
		unit := m.units[at]
		if unit&(1<<31|0xff) != uint32(s[i]) {
			break
		}
		at = m.jump(at, unit)
		if unit>>8&1 == 0 || uint64(at) >= uint64(len(m.units)) {
			continue
		}
		start := m.units[at] &^ (1 << 31)
		if uint64(start) > uint64(len(m.texts)) {
			continue
		}
		text, _, _ = strings.Cut(m.texts[start:], "\x00")
		n = i + 1
	}
	return text, n
}

// jump is the place of a unit's children.
func (m *charsMap) jump(at, unit uint32) uint32 { return at ^ unit>>10<<(unit&(1<<9)>>6) }

func (m *charsMap) normalize(s string) string {
	if m == nil {
		return s
	}
	var out strings.Builder
	for len(s) > 0 {
		if text, n := m.longest(s); n > 0 {
			out.WriteString(text)
			s = s[n:]
			continue
		}
		r, n := utf8.DecodeRuneInString(s)
		out.WriteRune(r) // U+FFFD for a byte that is no character
		s = s[n:]
	}
	return out.String()
}

// Tokens gives the ids of a text without the end token.
func (t *T5Tokenizer) Tokens(text string) []int {
	var ids []int
	for len(text) > 0 {
		at, token := len(text), ""
		for s := range t.special {
			if i := strings.Index(text, s); s != "" && i >= 0 && (i < at || i == at && len(s) > len(token)) {
				at, token = i, s
			}
		}
		for _, word := range strings.FieldsFunc(t.chars.normalize(text[:at]), unicode.IsSpace) {
			ids = append(ids, t.word(blankMark+word)...)
		}
		if token != "" {
			ids = append(ids, t.special[token])
		}
		text = text[at+len(token):]
	}
	return ids
}

// word cuts a word into the pieces of the largest score (Viterbi). Characters
// that no piece covers are the unknown token, neighbours as one.
func (t *T5Tokenizer) word(s string) []int {
	type step struct {
		score float64
		from  int
		id    int
	}
	best := make([]step, len(s)+1)
	for i := range best {
		best[i].score = math.Inf(-1)
	}
	best[0].score = 0
	for i := 0; i < len(s); {
		_, size := utf8.DecodeRuneInString(s[i:])
		whole := false // a piece covers the character alone
		for j := i + 1; j <= min(len(s), i+t.longest); j++ {
			p, ok := t.pieces[s[i:j]]
			if !ok {
				continue
			}
			whole = whole || j == i+size
			if v := best[i].score + p.score; v > best[j].score {
				best[j] = step{v, i, p.id}
			}
		}
		if v := best[i].score + t.unknown; !whole && v > best[i+size].score {
			best[i+size] = step{v, i, t.Unknown}
		}
		i += size
	}
	var back []int
	for i := len(s); i > 0; i = best[i].from {
		if n := len(back); n > 0 && best[i].id == t.Unknown && back[n-1] == t.Unknown {
			continue
		}
		back = append(back, best[i].id)
	}
	for i, j := 0, len(back)-1; i < j; i, j = i+1, j-1 {
		back[i], back[j] = back[j], back[i]
	}
	return back
}

// Encode gives the ids of a text and the end token.
func (t *T5Tokenizer) Encode(text string) []int { return append(t.Tokens(text), t.End) }

// Padded is Encode cut or padded to a length, and the mask that is 1 for the
// text and its end.
func (t *T5Tokenizer) Padded(text string, length int) (ids, mask []int) {
	ids = t.Tokens(text)
	ids = append(ids[:min(len(ids), length-1)], t.End)
	for i := range length {
		if i >= len(ids) {
			ids = append(ids, t.Pad)
			mask = append(mask, 0)
		} else if len(mask) < len(ids) {
			mask = append(mask, 1)
		}
	}
	return ids, mask
}
