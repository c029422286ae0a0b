// Package pngmeta puts text into PNG files and reads it back: Go's image/png neither writes nor reads text chunks.
//
// A text whose characters all lie in Latin-1 is written as tEXt, any other as iTXt (UTF-8), both uncompressed, right
// after IHDR; reading also knows zTXt and compressed iTXt. PNG specification (third edition), 11.3.3.
package pngmeta

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"unicode/utf8"

	"drift/internal/refuse"
)

// Text is one text chunk.
type Text struct{ Keyword, Text string }

const signature = "\x89PNG\r\n\x1a\n"

// Limits of what Read believes.
const (
	maxText  = 16 << 20 // bytes of one text, unpacked
	maxTexts = 256
)

// Insert writes the PNG of r to w with the texts put after IHDR.
func Insert(w io.Writer, r io.Reader, texts ...Text) error {
	head := make([]byte, len(signature)+8+13+4)
	if _, err := io.ReadFull(r, head); err != nil {
		return fmt.Errorf("pngmeta: reading the header: %w", err)
	}
	if string(head[:8]) != signature || string(head[12:16]) != "IHDR" || binary.BigEndian.Uint32(head[8:]) != 13 {
		return errors.New("pngmeta: not a PNG")
	}
	if _, err := w.Write(head); err != nil {
		return err
	}
	for _, t := range texts {
		kind, data, err := encode(t)
		if err != nil {
			return err
		}
		if err := writeChunk(w, kind, data); err != nil {
			return err
		}
	}
	_, err := io.Copy(w, r)
	return err
}

func encode(t Text) (kind string, data []byte, err error) {
	if err := checkKeyword(t.Keyword); err != nil {
		return "", nil, err
	}
	if !utf8.ValidString(t.Text) {
		return "", nil, fmt.Errorf("pngmeta: the text of %q is not UTF-8", t.Keyword)
	}
	latin := make([]byte, 0, len(t.Text))
	for _, r := range t.Text {
		if r > 0xff || r == 0 {
			if strings.ContainsRune(t.Text, 0) {
				return "", nil, fmt.Errorf("pngmeta: the text of %q has a zero byte", t.Keyword)
			}
			// keyword, 0, not compressed (2 bytes), no language tag, no translated keyword
			return "iTXt", append([]byte(t.Keyword+"\x00\x00\x00\x00\x00"), t.Text...), nil
		}
		latin = append(latin, byte(r))
	}
	return "tEXt", append([]byte(t.Keyword+"\x00"), latin...), nil
}

func checkKeyword(k string) error {
	if len(k) == 0 || len(k) > 79 || k != strings.TrimSpace(k) {
		return fmt.Errorf("pngmeta: keyword %q: want 1 to 79 characters without spaces around", k)
	}
	for i := range len(k) {
		if k[i] < 32 || k[i] > 126 {
			return fmt.Errorf("pngmeta: keyword %q: want printable ASCII", k)
		}
	}
	return nil
}

func writeChunk(w io.Writer, kind string, data []byte) error {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(data)))
	b = append(append(b, kind...), data...)
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b[4:]))
	_, err := w.Write(b)
	return err
}

// Read returns the texts of the PNG in r, in the order of the file, up to the end of the picture. name is the file's
// name for errors; a file that is no PNG or is broken is refused with a *refuse.Error.
func Read(name string, r io.Reader) ([]Text, error) {
	head := make([]byte, 8)
	if _, err := io.ReadFull(r, head); err != nil && !short(err) {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if string(head) != signature {
		return nil, refuse.Errorf(name, "not a PNG file")
	}
	var texts []Text
	for first := true; ; first = false {
		if _, err := io.ReadFull(r, head); err != nil {
			return nil, broken(name, err)
		}
		n, kind := int64(binary.BigEndian.Uint32(head)), string(head[4:])
		if first && kind != "IHDR" {
			return nil, refuse.Errorf(name, "the first chunk is %q, want IHDR", kind)
		}
		switch kind {
		case "IEND":
			return texts, nil
		case "tEXt", "zTXt", "iTXt":
			if n > maxText || len(texts) == maxTexts {
				return nil, refuse.Errorf(name, "more text than is believable (%d bytes in one %s chunk, %d texts so far)", n, kind, len(texts))
			}
			data := make([]byte, n+4)
			if _, err := io.ReadFull(r, data); err != nil {
				return nil, broken(name, err)
			}
			sum := crc32.Update(crc32.ChecksumIEEE(head[4:]), crc32.IEEETable, data[:n])
			if sum != binary.BigEndian.Uint32(data[n:]) {
				return nil, refuse.Errorf(name, "a %s chunk with a wrong checksum", kind)
			}
			t, err := decode(kind, data[:n])
			if err != nil {
				return nil, refuse.Errorf(name, "a %s chunk %v", kind, err)
			}
			texts = append(texts, t)
		default:
			if _, err := io.CopyN(io.Discard, r, n+4); err != nil {
				return nil, broken(name, err)
			}
		}
	}
}

func short(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

func broken(name string, err error) error {
	if short(err) {
		return refuse.Errorf(name, "the PNG ends in the middle")
	}
	return fmt.Errorf("reading %s: %w", name, err)
}

func decode(kind string, data []byte) (Text, error) {
	key, rest, ok := bytes.Cut(data, []byte{0})
	if !ok {
		return Text{}, errors.New("without a keyword")
	}
	t := Text{Keyword: string(key)}
	if err := checkKeyword(t.Keyword); err != nil {
		return t, errors.New("with a bad keyword")
	}
	packed, latin := false, true
	switch kind {
	case "zTXt":
		if len(rest) < 1 || rest[0] != 0 {
			return t, errors.New("with an unknown compression")
		}
		packed, rest = true, rest[1:]
	case "iTXt":
		if len(rest) < 2 || rest[0] > 1 || rest[1] != 0 {
			return t, errors.New("with an unknown compression")
		}
		packed, latin = rest[0] == 1, false
		rest = rest[2:]
		for range 2 { // language tag and translated keyword
			if _, rest, ok = bytes.Cut(rest, []byte{0}); !ok {
				return t, errors.New("cut short")
			}
		}
	}
	if packed {
		z, err := zlib.NewReader(bytes.NewReader(rest))
		if err != nil {
			return t, errors.New("that does not unpack")
		}
		if rest, err = io.ReadAll(io.LimitReader(z, maxText+1)); err != nil {
			return t, errors.New("that does not unpack")
		}
		if len(rest) > maxText {
			return t, errors.New("that unpacks to more than is believable")
		}
	}
	if !latin {
		if !utf8.Valid(rest) {
			return t, errors.New("that is not UTF-8")
		}
		t.Text = string(rest)
		return t, nil
	}
	runes := make([]rune, len(rest))
	for i, b := range rest {
		runes[i] = rune(b)
	}
	t.Text = string(runes)
	return t, nil
}

// Find returns the first text with the keyword.
func Find(texts []Text, keyword string) (string, bool) {
	for _, t := range texts {
		if t.Keyword == keyword {
			return t.Text, true
		}
	}
	return "", false
}
