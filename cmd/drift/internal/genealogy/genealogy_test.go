package genealogy

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"image/png"
	"testing"
)

func family(k, checks int, pictures bool) Family {
	f := Family{Title: "seed 1", Particles: k}
	if pictures {
		f.Shape = []int{1, 4, 4}
	}
	for i := range checks {
		c := Check{Step: i + 1, ESS: float64(k)}
		for j := range k {
			c.Parents = append(c.Parents, j*2%k)
			c.LogWeights = append(c.LogWeights, -float64(j))
			for range 16 {
				c.X0 = append(c.X0, float32(j)/float32(k))
			}
		}
		f.Checks = append(f.Checks, c)
	}
	return f
}

// TestAnimate: the file is a PNG that any viewer opens, and its chunks are those of an animation: one control chunk that
// counts the frames, frame controls and data with numbers in order, right checksums.
func TestAnimate(t *testing.T) {
	for _, c := range []struct{ k, checks, frames int }{{8, 5, 5}, {3, 1, 1}, {6, 60, mostFrames}, {4, 0, 0}} {
		f := family(c.k, c.checks, c.k == 8)
		var b bytes.Buffer
		if err := Animate(&b, f); err != nil {
			t.Fatal(err)
		}
		m, err := png.Decode(bytes.NewReader(b.Bytes()))
		if err != nil {
			t.Fatal(err)
		}
		if want := Draw(f).Bounds(); m.Bounds() != want {
			t.Errorf("%d particles: %v, want %v", c.k, m.Bounds(), want)
		}
		data := b.Bytes()[8:]
		sequence, controls, announced := uint32(0), 0, 0
		for len(data) > 0 {
			n := binary.BigEndian.Uint32(data)
			kind, body := string(data[4:8]), data[8:8+n]
			if binary.BigEndian.Uint32(data[8+n:]) != crc32.ChecksumIEEE(data[4:8+n]) {
				t.Fatalf("checksum of %s", kind)
			}
			data = data[12+n:]
			switch kind {
			case "acTL":
				announced = int(binary.BigEndian.Uint32(body))
			case "fcTL", "fdAT":
				if got := binary.BigEndian.Uint32(body); got != sequence {
					t.Fatalf("%s has number %d, want %d", kind, got, sequence)
				}
				sequence++
				if kind == "fcTL" {
					controls++
				}
			}
		}
		if announced != c.frames || controls != c.frames {
			t.Errorf("%d checks: %d frames announced, %d there, want %d", c.checks, announced, controls, c.frames)
		}
	}
}
