package preview

import (
	"bytes"
	"encoding/base64"
	"image"
	"image/png"
	"regexp"
	"strings"
	"testing"

	"github.com/mattn/go-sixel"
)

func gradient(w, h int) *image.Gray {
	m := image.NewGray(image.Rect(0, 0, w, h))
	for i := range m.Pix {
		m.Pix[i] = byte(255 * (i % w) / max(1, w-1))
	}
	return m
}

func sketch(t *testing.T, m image.Image, mode string, columns int) string {
	t.Helper()
	var b bytes.Buffer
	if err := Draw(&b, m, mode, columns); err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(b.String(), "\n") {
		t.Errorf("%s does not end its line", mode)
	}
	return b.String()
}

func TestCharacters(t *testing.T) {
	if got, want := sketch(t, gradient(10, 4), "ascii", 80), " .:-=+*#%@\n .:-=+*#%@\n"; got != want {
		t.Errorf("ascii drew %q, want %q", got, want)
	}
	m := image.NewGray(image.Rect(0, 0, 1, 3))
	copy(m.Pix, []byte{1, 2, 3})
	want := "\x1b[38;2;1;1;1;48;2;2;2;2m▀\x1b[0m\n\x1b[38;2;3;3;3m▀\x1b[0m\n"
	if got := sketch(t, m, "block", 80); got != want {
		t.Errorf("block drew %q, want %q", got, want)
	}
	for _, line := range strings.Split(strings.TrimSpace(sketch(t, gradient(100, 10), "ascii", 20)), "\n") {
		if len(line) > 20 {
			t.Errorf("a line of %d characters in 20 columns", len(line))
		}
	}
}

func TestProtocols(t *testing.T) {
	m := gradient(200, 100)
	var sent strings.Builder
	chunks := regexp.MustCompile("\x1b_G([^;]*);([^\x1b]*)\x1b\\\\").FindAllStringSubmatch(sketch(t, m, "kitty", 0), -1)
	for i, c := range chunks {
		if last := i == len(chunks)-1; strings.Contains(c[1], "m=1") == last || len(c[2]) > 4096 {
			t.Errorf("chunk %d of %d has keys %q and %d bytes", i, len(chunks), c[1], len(c[2]))
		}
		sent.WriteString(c[2])
	}
	same(t, sent.String(), 200)
	iterm := regexp.MustCompile("^\x1b]1337;File=inline=1;size=[0-9]+:([^\a]*)\a\n$").FindStringSubmatch(sketch(t, gradient(8, 4), "iterm", 0))
	if iterm == nil {
		t.Fatal("iterm did not draw")
	}
	same(t, iterm[1], 256)
	var back image.Image
	if err := sixel.NewDecoder(strings.NewReader(sketch(t, m, "sixel", 0))).Decode(&back); err != nil || back.Bounds().Dx() != 200 {
		t.Errorf("the sixels do not decode: %v", err)
	}
}

func same(t *testing.T, text string, width int) {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	m, err := png.Decode(bytes.NewReader(b))
	if err != nil || m.Bounds().Dx() != width {
		t.Errorf("decoded a picture %v, %v; want %d wide", m, err, width)
	}
}

func TestDetect(t *testing.T) {
	for _, c := range []struct{ env, want string }{
		{"TERM=xterm-256color", "block"}, {"TERM=dumb", "ascii"}, {"TERM=xterm-kitty", "kitty"}, {"TERM_PROGRAM=iTerm.app", "iterm"},
		{"TERM=foot", "sixel"}, {"NO_COLOR=1", "ascii"},
	} {
		key, value, _ := strings.Cut(c.env, "=")
		got := Detect(func(k string) string {
			if k == key {
				return value
			}
			return ""
		})
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.env, got, c.want)
		}
	}
	if err := Draw(&bytes.Buffer{}, gradient(2, 2), "braille", 0); err == nil {
		t.Error("an unknown mode drew")
	}
}
