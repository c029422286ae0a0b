package pngmeta

import (
	"bytes"
	"compress/zlib"
	"errors"
	"fmt"
	"image"
	"image/png"
	"slices"
	"strings"
	"testing"

	"drift/internal/refuse"
)

func picture(t testing.TB) []byte {
	t.Helper()
	m := image.NewGray(image.Rect(0, 0, 5, 3))
	for i := range m.Pix {
		m.Pix[i] = byte(17 * i)
	}
	var b bytes.Buffer
	if err := png.Encode(&b, m); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRoundTrip(t *testing.T) {
	texts := []Text{
		{"parameters", "a shoe\nSteps: 20, Sampler: dpmpp-2m, Seed: 3"},
		{"drift", `{"seed":3,"prompt":"naïve"}`},
		{"unicode", "ключ 鍵 \U0001f45f"},
		{"empty", ""},
	}
	var out bytes.Buffer
	if err := Insert(&out, bytes.NewReader(picture(t)), texts...); err != nil {
		t.Fatal(err)
	}
	got, err := Read("x.png", bytes.NewReader(out.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, texts) {
		t.Errorf("read %q, wrote %q", got, texts)
	}
	m, err := png.Decode(&out)
	if err != nil {
		t.Fatalf("image/png does not read it any more: %v", err)
	}
	if want := byte(17 * 7); m.(*image.Gray).Pix[7] != want {
		t.Errorf("pixel 7 is %d, want %d", m.(*image.Gray).Pix[7], want)
	}
	if s, ok := Find(got, "drift"); !ok || s != texts[1].Text {
		t.Errorf("Find(drift) = %q, %v", s, ok)
	}
	if _, ok := Find(got, "absent"); ok {
		t.Error("found an absent keyword")
	}
}

func TestChunkKind(t *testing.T) {
	for _, c := range []struct{ text, kind string }{{"caf\u00e9", "tEXt"}, {"\u0416", "iTXt"}} {
		kind, _, err := encode(Text{"k", c.text})
		if err != nil || kind != c.kind {
			t.Errorf("%q: %s, %v; want %s", c.text, kind, err, c.kind)
		}
	}
}

func TestInsertRefuses(t *testing.T) {
	for _, c := range []Text{{"", "x"}, {" k", "x"}, {strings.Repeat("k", 80), "x"}, {"k\n", "x"}, {"k", "a\x00b"}, {"k", "\xff"}} {
		if err := Insert(&bytes.Buffer{}, bytes.NewReader(picture(t)), c); err == nil {
			t.Errorf("%q was written", c)
		}
	}
	if err := Insert(&bytes.Buffer{}, strings.NewReader(strings.Repeat("GIF89a", 10))); err == nil {
		t.Error("a GIF was taken for a PNG")
	}
}

// withChunk returns a PNG with one raw chunk after IHDR.
func withChunk(t testing.TB, kind string, data []byte) []byte {
	p := picture(t)
	var b bytes.Buffer
	b.Write(p[:33])
	if err := writeChunk(&b, kind, data); err != nil {
		t.Fatal(err)
	}
	b.Write(p[33:])
	return b.Bytes()
}

func pack(s string) []byte {
	var b bytes.Buffer
	z := zlib.NewWriter(&b)
	fmt.Fprint(z, s)
	z.Close()
	return b.Bytes()
}

func TestReadCompressed(t *testing.T) {
	for _, c := range []struct {
		kind string
		data []byte
		want string
	}{
		{"zTXt", append([]byte("k\x00\x00"), pack("caf\xe9")...), "café"},
		{"iTXt", append([]byte("k\x00\x01\x00en\x00key\x00"), pack("жар")...), "жар"},
	} {
		got, err := Read("x.png", bytes.NewReader(withChunk(t, c.kind, c.data)))
		if err != nil || len(got) != 1 || got[0].Text != c.want {
			t.Errorf("%s: %q, %v; want %q", c.kind, got, err, c.want)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	flipped := withChunk(t, "tEXt", []byte("k\x00hello"))
	flipped[33+8+3] ^= 1
	for name, data := range map[string][]byte{
		"empty":           {},
		"text":            []byte("hello, world"),
		"cut":             picture(t)[:40],
		"checksum":        flipped,
		"no keyword":      withChunk(t, "tEXt", []byte("hello")),
		"bad utf-8":       withChunk(t, "iTXt", []byte("k\x00\x00\x00\x00\x00\xff")),
		"bad compression": withChunk(t, "zTXt", []byte("k\x00\x07abc")),
		"not packed":      withChunk(t, "zTXt", []byte("k\x00\x00abc")),
		"bomb":            withChunk(t, "zTXt", append([]byte("k\x00\x00"), pack(strings.Repeat("a", maxText+1))...)),
		"huge length":     append(picture(t)[:33], 0xff, 0xff, 0xff, 0xff, 't', 'E', 'X', 't'),
	} {
		_, err := Read(name, bytes.NewReader(data))
		var r *refuse.Error
		if !errors.As(err, &r) {
			t.Errorf("%s: error %v, want a refusal", name, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(picture(f))
	f.Add(withChunk(f, "tEXt", []byte("k\x00hello")))
	f.Add(withChunk(f, "zTXt", append([]byte("k\x00\x00"), pack("x")...)))
	f.Add(withChunk(f, "iTXt", []byte("k\x00\x00\x00en\x00key\x00text")))
	f.Fuzz(func(t *testing.T, data []byte) {
		texts, err := Read("x.png", bytes.NewReader(data))
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := Insert(&out, bytes.NewReader(data), texts...); err != nil {
			return // a text with a zero byte reads but does not write
		}
		again, err := Read("x.png", &out)
		if err != nil || !slices.Equal(again, append(slices.Clone(texts), texts...)) {
			t.Fatalf("%q became %q, %v", texts, again, err)
		}
	})
}
