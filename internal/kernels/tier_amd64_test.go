//go:build amd64 && !noasm

package kernels

import "testing"

// TestDetect plays processors and operating systems.
func TestDetect(t *testing.T) {
	const (
		c1AVX   = 1<<12 | 1<<27 | 1<<28 | 1<<29
		b7AVX2  = 1 << 5
		b7Z     = b7AVX2 | 1<<16 | 1<<17 | 1<<30 | 1<<31
		d7AMX   = 1<<22 | 1<<24
		a71BF16 = 1 << 5
		xcrY    = 0x7
		xcrZ    = 0xe7
		xcrT    = 0x600e7
	)
	for _, c := range []struct {
		name                 string
		top, c1, b7, d7, a71 uint32
		xcr                  uint32
		allowed              bool
		want                 Tier
	}{
		{"very old", 1, 0, 0, 0, 0, 0, true, Portable},
		{"no OSXSAVE", 7, c1AVX &^ (1 << 27), b7AVX2, 0, 0, xcrY, true, Portable},
		{"no F16C", 7, c1AVX &^ (1 << 29), b7AVX2, 0, 0, xcrY, true, Portable},
		{"no ymm state", 7, c1AVX, b7AVX2, 0, 0, 1, true, Portable},
		{"Zen 3", 7, c1AVX, b7AVX2, 0, 0, xcrY, true, AVX2},
		{"no zmm state", 7, c1AVX, b7Z, d7AMX, a71BF16, xcrY, true, AVX2},
		{"Skylake-X", 7, c1AVX, b7Z, 0, 0, xcrZ, true, AVX512},
		{"Zen 5", 7, c1AVX, b7Z, 0, a71BF16, xcrZ, true, AVX512BF16},
		{"Sapphire Rapids", 7, c1AVX, b7Z, d7AMX, a71BF16, xcrT, true, AMX},
		{"no tile state", 7, c1AVX, b7Z, d7AMX, a71BF16, xcrZ, true, AVX512BF16},
		{"no permission", 7, c1AVX, b7Z, d7AMX, a71BF16, xcrT, false, AVX512BF16},
	} {
		s := detect(func(leaf, sub uint32) (uint32, uint32, uint32, uint32) {
			switch {
			case leaf == 0:
				return c.top, 0, 0, 0
			case leaf == 1:
				return 0, 0, c.c1, 0
			case leaf == 7 && sub == 0:
				return 1, c.b7, 0, c.d7
			case leaf == 7 && sub == 1:
				return c.a71, 0, 0, 0
			}
			return 0, 0, 0, 0
		}, func() uint32 { return c.xcr }, func() bool { return c.allowed })
		best := Portable
		for i, ok := range s {
			if ok {
				best = Tier(i)
			}
		}
		if best != c.want {
			t.Errorf("%s: %v, want %v", c.name, best, c.want)
		}
	}
	if !Detect().Supported() {
		t.Error("the detected tier is not supported")
	}
}
