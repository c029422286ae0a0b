package metrics

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"testing"
)

// smoothImage: ramps that bounce at 0 and 255, plus 3-bit noise.
func smoothImage(seed uint64, h, w, c int) Image[uint8] {
	m := Image[uint8]{h, w, c, make([]uint8, h*w*c)}
	for i := range m.Pix {
		y, x, k := i/(w*c), i/c%w, i%c
		v := (x*7 + y*(4+k) + int(seed%97)*3) % 496
		if v > 248 {
			v = 496 - v
		}
		m.Pix[i] = uint8(min(v+int(splitmix(seed, i)>>61), 255))
	}
	return m
}

// wrapImage: slow ramps plus 4-bit noise, wrapped at 256.
func wrapImage(seed uint64, h, w, c int) Image[uint8] {
	m := Image[uint8]{h, w, c, make([]uint8, h*w*c)}
	for i := range m.Pix {
		y, x, k := i/(w*c), i/c%w, i%c
		m.Pix[i] = uint8(x*3 + y*(5+2*k) + (x*y*(1+k))/16 + int(splitmix(seed, i)>>60) + int(seed%64))
	}
	return m
}

func noisyImage(src Image[uint8], seed uint64, amp int) Image[uint8] {
	m := Image[uint8]{src.H, src.W, src.C, make([]uint8, len(src.Pix))}
	for i, v := range src.Pix {
		m.Pix[i] = uint8(min(max(int(v)+int(splitmix(seed, i)>>56)*amp/128-amp, 0), 255))
	}
	return m
}

type pairGolden struct {
	MSE     float64         `json:"mse_u8"`
	PSNR    json.RawMessage `json:"psnr_255"`
	PIQ     float64         `json:"ssim_piq"`
	SSIM    float64         `json:"ssim_gauss11_sigma1.5_biased_valid"`
	Uniform float64         `json:"ssim_skimage_default_uniform7_samplecov"`
}

func TestImagePairGoldens(t *testing.T) {
	var g struct {
		Pairs map[string]struct {
			PerImage []pairGolden `json:"per_image"`
			SSIM     float64      `json:"mean_ssim"`
		}
		MS map[string]struct {
			Five  float64    `json:"piq_5_scales"`
			Three float64    `json:"piq_3_scales_weights_0.2_0.3_0.5"`
			One   pairGolden `json:"ssim_one_scale"`
		} `json:"ms_ssim"`
	}
	loadJSON(t, "images.json", &g)
	pair := func(what string, a, b Image[uint8], want pairGolden) float64 {
		t.Helper()
		p, err := PSNR(a, b, 255)
		if err != nil {
			t.Fatal(err)
		}
		if s := string(want.PSNR); s == `"Infinity"` {
			if !math.IsInf(p, 1) {
				t.Errorf("%s: PSNR %v, want +Inf", what, p)
			}
		} else {
			near(t, what+": PSNR", p, parseFloat(t, s), 1e-12)
		}
		s, err := SSIM(a, b, 255)
		if err != nil {
			t.Fatal(err)
		}
		near(t, what+": SSIM", s, want.SSIM, 1e-12)
		near(t, what+": SSIM of piq", s, want.PIQ, 1e-11)
		return s
	}
	for name, c := range map[string]struct{ h, w, c int }{"rgb32": {32, 32, 3}, "gray28": {28, 28, 1}} {
		mean := 0.0
		rows := g.Pairs[name].PerImage
		for i, want := range rows {
			a := smoothImage(uint64(300+i), c.h, c.w, c.c)
			b := noisyImage(a, uint64(7000+i), []int{0, 2, 8, 20, 60}[i%5])
			mean += pair(fmt.Sprintf("%s %d", name, i), a, b, want) / float64(len(rows))
		}
		near(t, name+": mean SSIM", mean, g.Pairs[name].SSIM, 1e-12)
	}
	for i, c := range []struct{ h, w, c int }{{176, 180, 1}, {192, 176, 3}} {
		a := smoothImage(uint64(500+i), c.h, c.w, c.c)
		b := noisyImage(a, uint64(8000+i), 25)
		want := g.MS[fmt.Sprintf("ms%d", i)]
		pair(fmt.Sprintf("ms%d", i), a, b, want.One)
		got, err := MSSSIM(a, b, 255, nil)
		if err != nil {
			t.Fatal(err)
		}
		near(t, "MS-SSIM, 5 scales", got, want.Five, 1e-13)
		got, err = MSSSIM(a, b, 255, []float64{.2, .3, .5})
		if err != nil {
			t.Fatal(err)
		}
		near(t, "MS-SSIM, 3 scales", got, want.Three, 1e-13)
	}
}

func TestImageClosedForms(t *testing.T) {
	flat := func(v float64) Image[float64] {
		m := Image[float64]{12, 13, 2, make([]float64, 12*13*2)}
		for i := range m.Pix {
			m.Pix[i] = v
		}
		return m
	}
	s, err := SSIM(flat(100), flat(120), 255)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "SSIM of constants", s, (2*100*120+6.5025)/(100*100+120*120+6.5025), 1e-12)
	near(t, "SSIM of constants", s, 0.9836109250, 1e-10)
	p, err := PSNR(flat(100), flat(101), 255)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "PSNR of one level", p, 48.1308036, 1e-8)
	if p, err = PSNR(flat(1), flat(1), 2); err != nil || !math.IsInf(p, 1) {
		t.Errorf("PSNR of equal images: %v, %v", p, err)
	}
	a := smoothImage(1, 180, 177, 1)
	if s, err = SSIM(a, a, 255); err != nil || s != 1 {
		t.Errorf("SSIM(x,x) = %v, %v", s, err)
	}
	if s, err = MSSSIM(a, a, 255, nil); err != nil || math.Abs(s-1) > 1e-15 {
		t.Errorf("MS-SSIM(x,x) = %v, %v", s, err)
	}
	small := smoothImage(1, 10, 40, 1)
	if _, err := SSIM(small, small, 255); err == nil {
		t.Error("SSIM of 10 rows was accepted")
	}
	mid := smoothImage(1, 175, 300, 1)
	if _, err := MSSSIM(mid, mid, 255, nil); err == nil {
		t.Error("MS-SSIM of 175 rows was accepted")
	}
	if _, err := PSNR(a, small, 255); !errors.Is(err, ErrDims) {
		t.Errorf("sizes: %v", err)
	}
	bad := flat(1)
	bad.Pix[5] = math.NaN()
	if _, err := SSIM(flat(1), bad, 255); !errors.Is(err, ErrNaN) {
		t.Errorf("NaN: %v", err)
	}
	if _, err := PSNR(a, a, 0); err == nil {
		t.Error("peak 0 was accepted")
	}
	if _, err := PSNR(a, Image[uint8]{180, 177, 1, a.Pix[1:]}, 255); !errors.Is(err, ErrDims) {
		t.Errorf("short image: %v", err)
	}
}

func hashOf[T Pixel](m Image[T]) string {
	h := sha256.New()
	if err := binary.Write(h, binary.LittleEndian, m.Pix); err != nil {
		panic(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func moments1(m Image[float32]) (mean, square float64) {
	for _, v := range m.Pix {
		mean += float64(v) / float64(len(m.Pix))
		square += float64(v) * float64(v) / float64(len(m.Pix))
	}
	return mean, square
}

func TestResizeGoldens(t *testing.T) {
	var g struct {
		Resize map[string]struct {
			Modes map[string]struct {
				Hash   string `json:"sha256_le_bytes_hwc"`
				Mean   float64
				Square float64 `json:"mean_square"`
			}
		}
	}
	loadJSON(t, "images.json", &g)
	const size = 299
	for name, src := range map[string]Image[uint8]{
		"up32": wrapImage(60, 32, 32, 3), "up48x20": smoothImage(61, 48, 20, 3),
		"down400x320": wrapImage(62, 400, 320, 3), "mixed350x150": smoothImage(63, 350, 150, 3),
	} {
		modes := g.Resize[name].Modes
		float := map[string]func() (Image[float32], error){
			"tf1_bilinear":                func() (Image[float32], error) { return TF1Bilinear(src, size, size) },
			"torch_bilinear_no_antialias": func() (Image[float32], error) { return TorchBilinear(src, size, size) },
			"pil_bicubic_float_noclip_channel0": func() (Image[float32], error) {
				one := Image[uint8]{src.H, src.W, 1, nil}
				for i := 0; i < len(src.Pix); i += 3 {
					one.Pix = append(one.Pix, src.Pix[i])
				}
				return Pillow{}.Float(one, size, size, false)
			},
		}
		for f, mode := range map[Filter]string{Bicubic: "bicubic", Box: "box", Bilinear: "bilinear", Lanczos: "lanczos"} {
			float["pil_"+mode+"_float_clip"] = func() (Image[float32], error) { return Pillow{Filter: f}.Float(src, size, size, true) }
		}
		for mode, resize := range float {
			m, err := resize()
			if err != nil {
				t.Fatal(err)
			}
			want := modes[mode]
			mean, square := moments1(m)
			near(t, name+" "+mode+": mean", mean, want.Mean, 1e-7)
			near(t, name+" "+mode+": mean square", square, want.Square, 1e-7)
			if hashOf(m) != want.Hash {
				t.Errorf("%s %s: some sample differs from the reference", name, mode)
			}
		}
		b, err := Pillow{}.Byte(src, size, size)
		if err != nil {
			t.Fatal(err)
		}
		if hashOf(b) != modes["pil_bicubic_uint8"].Hash {
			t.Errorf("%s pil_bicubic_uint8: some sample differs from the reference", name)
		}
	}
}

// Hashes of the RGB bytes made by running Pillow 12.0.0 and 13.0.0 on a
// 400 x 320 image and a 32 x 32 one; sizes are (w, h) as Pillow takes them.
func TestPillowVersions(t *testing.T) {
	big := wrapImage(62, 400, 320, 3)
	for _, c := range []struct {
		before      bool
		byte, float string
	}{
		{true, "c1d90c014db9fcf6d976faad553d6f3f9566e5aec4aabb1bf6b396af3b8ed98c", "b97c43d414a0b86df336d8cc51ad43da80572f8e0e3cd61ca3d0c71c2b6d3b9c"},
		{false, "833c15fdb3e3882c2e26f84949683658626fbfe15fba653f03c4ae587cc3af33", "f9ff20eed012ae2f61bed05153dc120851100c541dc5a9c0c91d0eb684afb0c6"},
	} {
		b, err := Pillow{Before13: c.before}.Byte(big, 299, 299)
		if err != nil {
			t.Fatal(err)
		}
		f, err := Pillow{Before13: c.before}.Float(big, 299, 299, false)
		if err != nil {
			t.Fatal(err)
		}
		if hashOf(b) != c.byte || hashOf(f) != c.float {
			t.Errorf("before 13 %t: bytes equal %t, floats equal %t", c.before, hashOf(b) == c.byte, hashOf(f) == c.float)
		}
	}
	small := wrapImage(60, 32, 32, 3)
	for _, c := range []struct {
		w, h                            int
		bicubic, box, bilinear, lanczos string
	}{
		{32, 17, "4e4953bb38b55578", "292a46db5579889f", "dfa7e488531e1995", "31522e4995884a03"},
		{17, 32, "f4e41ebb10469406", "f4d6b0c764863337", "f38311ad2bfbc032", "d465e4c8523d09ec"},
		{7, 5, "e313ec7e9990b8db", "0ac8e770b466a6cb", "719513487bd9786c", "d21bd3343c72c861"},
		{1, 1, "f4f166405a25245f", "11ca468c8aea312f", "7622bcbf35091076", "ffc202e9d69b386e"},
		{3, 64, "f1d55c3cc776646d", "35265790422b849c", "4ce4cf56c918fc32", "384e60ccf591d853"},
		{32, 32, "ec6d29318bab5176", "ec6d29318bab5176", "ec6d29318bab5176", "ec6d29318bab5176"},
		{64, 3, "ca8295dcdcc92313", "fd6fd9d8b3e875e2", "d53cec4f02b3d50d", "bd25b01318aeac90"},
	} {
		for f, want := range map[Filter]string{Bicubic: c.bicubic, Box: c.box, Bilinear: c.bilinear, Lanczos: c.lanczos} {
			m, err := Pillow{Filter: f}.Byte(small, c.h, c.w)
			if err != nil {
				t.Fatal(err)
			}
			if got := hashOf(m)[:16]; got != want {
				t.Errorf("%d x %d, filter %d: %s, want %s", c.w, c.h, f, got, want)
			}
		}
	}
}

// One row, repeated: the rules in one dimension.
func TestResizeRules(t *testing.T) {
	row := func(v ...uint8) Image[uint8] {
		m := Image[uint8]{2, len(v), 1, nil}
		m.Pix = append(append(m.Pix, v...), v...)
		return m
	}
	for _, c := range []struct {
		name   string
		resize func() (Image[float32], error)
		want   []float64
	}{
		{"TF1", func() (Image[float32], error) { return TF1Bilinear(row(0, 100, 200), 2, 5) }, []float64{0, 60, 120, 180, 200}},
		{"torch", func() (Image[float32], error) { return TorchBilinear(row(0, 100, 200), 2, 5) }, []float64{0, 40, 100, 160, 200}},
		{"Pillow up", func() (Image[float32], error) { return Pillow{}.Float(row(0, 100, 200), 2, 5, false) }, []float64{-7.5471698, 30.5970149, 100, 169.4029851, 207.5471698}},
		{"Pillow clipped", func() (Image[float32], error) { return Pillow{}.Float(row(0, 0, 255, 255), 2, 8, true) }, []float64{0, 0, 0, 51.796875, 203.203125, 255, 255, 255}},
		{"Pillow down", func() (Image[float32], error) { return Pillow{}.Float(row(0, 10, 20, 100, 200, 255), 2, 4, false) }, []float64{2.3139159, 16.5849923, 128.0168453, 241.5453074}},
	} {
		m, err := c.resize()
		if err != nil {
			t.Fatal(err)
		}
		for i, w := range c.want {
			near(t, c.name, float64(m.Pix[i]), w, 3e-7)
		}
	}
	if _, err := TF1Bilinear(row(1), 0, 1); err == nil {
		t.Error("resize to no rows was accepted")
	}
	if _, err := (Pillow{}).Byte(Image[uint8]{1, 1, 1, nil}, 1, 1); !errors.Is(err, ErrDims) {
		t.Errorf("image without samples: %v", err)
	}
	if _, err := (Pillow{Filter: 9}).Float(row(1), 1, 1, true); err == nil {
		t.Error("unknown filter was accepted")
	}
}
