package half

import (
	"math"
	"testing"
)

func TestFloat16(t *testing.T) {
	for h, want := range map[uint16]float64{
		0x0000: 0, 0x3c00: 1, 0xbe00: -1.5, 0x7bff: 65504, 0x0001: 0x1p-24, 0x03ff: 1023 * 0x1p-24, 0x0400: 0x1p-14, 0x3555: 0.333251953125, 0xfc00: math.Inf(-1),
	} {
		if got := Float16(h); float64(got) != want {
			t.Errorf("%#04x: %g, want %g", h, got, want)
		}
	}
}

// Every 16-bit pattern survives the way there and back, and the midpoint of
// two neighbours goes to the even one.
func TestRoundTrip(t *testing.T) {
	type format struct {
		name   string
		widen  func(uint16) float32
		narrow func(float32) uint16
	}
	for _, f := range []format{{"float16", Float16, ToFloat16}, {"bfloat16", BFloat16, ToBFloat16}} {
		for i := range 1 << 16 {
			h := uint16(i)
			x := f.widen(h)
			back := f.narrow(x)
			if x != x {
				if y := f.widen(back); y == y {
					t.Fatalf("%s %#04x: NaN became %g", f.name, h, y)
				}
				continue
			}
			if back != h {
				t.Fatalf("%s %#04x = %g came back as %#04x", f.name, h, x, back)
			}
			next := float64(f.widen(h + 1))
			if next != next || math.IsInf(next, 0) || math.IsInf(float64(x), 0) || h == 0x7fff {
				continue
			}
			mid := (float64(x) + next) / 2
			if float64(float32(mid)) != mid { // not a float32: bfloat16 subnormals
				continue
			}
			if got, want := f.narrow(float32(mid)), h+h&1; got != want {
				t.Fatalf("%s: midpoint %g of %#04x went to %#04x", f.name, mid, h, got)
			}
			if got := f.narrow(math.Nextafter32(float32(mid), x)); got != h {
				t.Fatalf("%s: just before the midpoint of %#04x went to %#04x", f.name, h, got)
			}
		}
	}
	if got := ToFloat16(65519.996); got != 0x7bff {
		t.Errorf("65519.996 -> %#04x", got)
	}
	if got := ToFloat16(65520); got != 0x7c00 {
		t.Errorf("65520 -> %#04x", got)
	}
	if got := ToBFloat16(math.MaxFloat32); got != 0x7f80 {
		t.Errorf("max -> %#04x", got)
	}
}
