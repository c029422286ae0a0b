package pixels

import (
	"bytes"
	"image"
	"math"
	"testing"
)

func TestByte(t *testing.T) {
	for _, c := range []struct {
		r    Rounding
		x    float64
		want byte
	}{
		{Floor, -1, 0}, {Floor, 1, 255}, {Floor, 0, 128}, {Floor, -0.001, 127}, {Floor, 2, 255}, {Floor, -2, 0},
		{Floor, math.Inf(1), 255}, {Floor, math.Inf(-1), 0}, {Floor, math.NaN(), 0}, {"", 0, 128},
		{Diffusers, -1, 0}, {Diffusers, 1, 255}, {Diffusers, 0, 128}, {Diffusers, 1.0 / 255, 128}, {Diffusers, -2.0 / 255, 126},
		{Diffusers, 5, 255}, {Diffusers, math.NaN(), 0},
	} {
		if got := c.r.Byte(c.x); got != c.want {
			t.Errorf("%s.Byte(%g) = %d, want %d", c.r, c.x, got, c.want)
		}
	}
	// every level comes back from the middle of its interval, under both rules
	for v := range 256 {
		x := float64(v)/127.5 - 1
		if got := Diffusers.Byte(x); got != byte(v) {
			t.Errorf("diffusers: level %d became %d", v, got)
		}
		if got := Floor.Byte(x); got != byte(v) && got != byte(v)+1 { // 127.5 x + 128 = v + 0.5
			t.Errorf("floor: level %d became %d", v, got)
		}
	}
}

func TestArray(t *testing.T) {
	for _, c := range []int{1, 3} {
		shape := []int{c, 4, 5}
		b := make([]byte, c*4*5)
		for i := range b {
			b[i] = byte(7 * i)
		}
		x, resized := Array(Image(b, shape), shape)
		got := make([]byte, len(b))
		Bytes(got, x, shape, Diffusers)
		if resized || !bytes.Equal(got, b) {
			t.Errorf("%d channels: there and back changed %v to %v (resized %v)", c, b, got, resized)
		}
	}
	if x, resized := Array(image.NewNRGBA(image.Rect(0, 0, 9, 6)), []int{3, 2, 2}); !resized || len(x) != 12 || x[0] != -1 {
		t.Errorf("resize gave %v, %v", x, resized)
	}
}

func TestSheet(t *testing.T) {
	m := Sheet([][]byte{{1, 2}, {3, 4}, {5, 6}}, []int{1, 1, 2}, 2, 2).(*image.Gray)
	if want := []byte{1, 2, 3, 4, 5, 6, 0, 0}; !bytes.Equal(m.Pix, want) || m.Rect.Dx() != 4 || m.Rect.Dy() != 2 {
		t.Errorf("%v %v, want %v", m.Pix, m.Rect, want)
	}
}

func TestPicture(t *testing.T) {
	for _, s := range [][]int{{2}, {4, 8, 8}, {3, 0, 2}, nil, {1, 28}} {
		if Picture(s) {
			t.Errorf("%v is taken for a picture", s)
		}
	}
	if !Picture([]int{1, 28, 28}) || !Picture([]int{3, 32, 32}) {
		t.Error("a picture is not taken for one")
	}
}

// TestMiddle: bytes come back by every rule.
func TestMiddle(t *testing.T) {
	shape := []int{3, 16, 16}
	b, x, back := make([]byte, 768), make([]float64, 768), make([]byte, 768)
	for i := range b {
		b[i] = byte(i)
	}
	for _, r := range []Rounding{Floor, Diffusers, ""} {
		Middle(x, b, shape)
		Bytes(back, x, shape, r)
		if !bytes.Equal(b, back) {
			t.Errorf("%q: bytes do not come back", r)
		}
	}
}
