package inception

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"drift/internal/kernels"
	"drift/internal/npz"
	"drift/internal/refuse"
	"drift/internal/safetensors"
	"drift/metrics"
)

// formula is the value of a tensor by the formula of the goldens: a splitmix64
// stream seeded by the FNV-1a hash of the name.
func formula(name string, shape []int) []float32 {
	h := fnv.New64a()
	h.Write([]byte(name))
	seed, v := h.Sum64(), make([]float32, product(shape))
	for k := range v {
		z := seed + uint64(k+1)*0x9E3779B97F4A7C15
		z ^= z >> 30
		z *= 0xBF58476D1CE4E5B9
		z ^= z >> 27
		z *= 0x94D049BB133111EB
		z ^= z >> 31
		u := 2*(float64(z>>40)/(1<<24)) - 1
		switch {
		case strings.HasSuffix(name, "conv.weight"), name == "fc.weight":
			u *= math.Sqrt(6 / float64(len(v)/shape[0]))
		case strings.HasSuffix(name, "bn.weight"):
			u = 1 + 0.1*u
		case strings.HasSuffix(name, "running_var"):
			u = 1 + 0.1*math.Abs(u)
		default:
			u *= 0.05
		}
		v[k] = float32(u)
	}
	return v
}

// weights are made once.
var weights = sync.OnceValue(func() map[string][]float32 {
	all := map[string][]float32{}
	for _, t := range Tensors() {
		all[t.Name] = formula(t.Name, t.Shape)
	}
	return all
})

func open(t testing.TB, tier kernels.Tier, workers int) *Net {
	pool := kernels.NewPool(tier, workers)
	t.Cleanup(pool.Close)
	n, err := New(func(name string) ([]float32, error) { return weights()[name], nil }, pool)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// portable tells that passes take seconds each, and that nobody asked for all
// of them.
func portable() bool { return kernels.Detect() == kernels.Portable && os.Getenv("DRIFT_SLOW") == "" }

type summary struct {
	Shape       []int
	Mean, Std   float64
	First, Last []float64
}

type goldens struct {
	FirstWeights map[string][]float64 `json:"first_weights"`
	Parameters   int
	RunningStats int `json:"running_stats"`
	Images       map[string]struct{ Blocks map[string]summary }
}

func golden(t testing.TB) (goldens, map[string]*npz.Array) {
	text, err := os.ReadFile("testdata/inception.json")
	if err != nil {
		t.Fatal(err)
	}
	var g goldens
	if err := json.Unmarshal(text, &g); err != nil {
		t.Fatal(err)
	}
	arrays, err := npz.ReadAll("testdata/inception.npz")
	if err != nil {
		t.Fatal(err)
	}
	return g, arrays
}

func floats(t testing.TB, a *npz.Array) []float64 {
	v, err := a.Float64()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func picture(t testing.TB, a *npz.Array) metrics.Image[uint8] {
	v, err := a.Uint8()
	if err != nil {
		t.Fatal(err)
	}
	return metrics.Image[uint8]{H: a.Shape[0], W: a.Shape[1], C: a.Shape[2], Pix: v}
}

func input(t testing.TB, m metrics.Image[uint8], rule string) []float32 {
	x := make([]float32, Side*Side*3)
	if err := Prepare(x, m, rule); err != nil {
		t.Fatal(err)
	}
	return x
}

// off is the largest difference over the largest value.
func off(a []float32, b []float64) float64 {
	var d, most float64
	for i := range b {
		d = max(d, math.Abs(float64(a[i])-b[i]))
		most = max(most, math.Abs(b[i]))
	}
	if len(a) != len(b) {
		return math.Inf(1)
	}
	return d / most
}

func TestTensors(t *testing.T) {
	g, _ := golden(t)
	text, err := os.ReadFile("testdata/inception_tensors.json")
	if err != nil {
		t.Fatal(err)
	}
	var list [][2]any
	if err := json.Unmarshal(text, &list); err != nil {
		t.Fatal(err)
	}
	have, params, stats := Tensors(), 0, 0
	if len(have) != 472 || len(list) != 472 {
		t.Fatalf("%d tensors, %d in the file", len(have), len(list))
	}
	for i, want := range list {
		if have[i].Name != want[0] || fmt.Sprint(have[i].Shape) != fmt.Sprint(want[1]) {
			t.Errorf("tensor %d is %v, want %v", i, have[i], want)
		}
		if strings.Contains(have[i].Name, "running") {
			stats += product(have[i].Shape)
		} else {
			params += product(have[i].Shape)
		}
	}
	if params != g.Parameters || stats != g.RunningStats || params != 23_850_960 {
		t.Errorf("%d parameters and %d statistics", params, stats)
	}
	for name, want := range g.FirstWeights {
		for i, v := range want {
			if have := weights()[name][i]; float64(have) != v {
				t.Errorf("the formula gives %s[%d] = %v, want %v", name, i, have, v)
			}
		}
	}
	if m := float64(MACs()) / 1e9; math.Abs(m-5.713) > 5e-4 {
		t.Errorf("%.4f billion multiply-adds", m)
	}
}

// TestGolden compares every block, tap and front end with torch-fidelity, pytorch-fid and clean-fid on the same
// weights; the taps with their float64 runs.
func TestGolden(t *testing.T) {
	g, arrays := golden(t)
	n := open(t, kernels.Detect(), 2)
	worst := map[string]float64{}
	check := func(what string, have []float32, want []float64, ask float64) {
		d := off(have, want)
		_, kind, _ := strings.Cut(what, ".")
		worst[kind] = max(worst[kind], d)
		if !(d <= ask) {
			t.Errorf("%s: off by %.2g of the largest, asked for %.2g", what, d, ask)
		}
	}
	for name, im := range g.Images {
		if portable() && name != "i96x64" {
			continue
		}
		m := picture(t, arrays[name])
		seen := 0
		n.trace = func(block string, h, w, c int, x []float32) {
			want := im.Blocks[block]
			seen++
			if !reflect.DeepEqual(want.Shape, []int{c, h, w}) {
				t.Errorf("%s: %d x %d x %d, want %v", block, c, h, w, want.Shape)
			}
			var s, ss float64
			for _, v := range x {
				s += float64(v)
				ss += float64(v) * float64(v)
			}
			mean := s / float64(len(x))
			std := math.Sqrt(ss/float64(len(x)) - mean*mean)
			if d := max(math.Abs(mean-want.Mean)/want.Std, math.Abs(std/want.Std-1)); !(d <= 2e-6) {
				t.Errorf("%s: %s: mean %.9g, deviation %.9g, want %.9g, %.9g", name, block, mean, std, want.Mean, want.Std)
			}
			for i := range 3 {
				a, b := float64(x[i*c]), float64(x[(h*w-3+i)*c+c-1])
				if d := max(math.Abs(a-want.First[i]), math.Abs(b-want.Last[i])); !(d <= 1e-5*want.Std) {
					t.Errorf("%s: %s: corners %v %v, want %v %v", name, block, a, b, want.First[i], want.Last[i])
				}
			}
			if tap := map[string]string{"MaxPool_1": "64", "MaxPool_2": "192", "Mixed_6e": "768"}[block]; tap != "" {
				pooled := make([]float32, c)
				for k := range c {
					s := 0.0
					for p := range h * w {
						s += float64(x[p*c+k])
					}
					pooled[k] = float32(s / float64(h*w))
				}
				check(name+"."+tap, pooled, floats(t, arrays[name+".float64."+tap]), 5e-6)
			}
		}
		features, logits := make([]float32, Features), make([]float32, Classes)
		if err := n.Run(context.Background(), input(t, m, metrics.ResizeTF1), Taps{Features: features, Logits: logits}); err != nil {
			t.Fatal(err)
		}
		if seen != 18 {
			t.Errorf("saw %d blocks", seen)
		}
		n.trace = nil
		check(name+".2048", features, floats(t, arrays[name+".float64.2048"]), 5e-6)
		check(name+".logits_unbiased", logits, floats(t, arrays[name+".float64.logits_unbiased"]), 5e-6)
		for k := range logits {
			logits[k] += n.Bias[k]
		}
		check(name+".logits", logits, floats(t, arrays[name+".float64.logits"]), 5e-6)
		for rule, tool := range map[string]string{metrics.ResizeTorch: "pytorch_fid", metrics.ResizePIL: "clean_fid"} {
			if portable() {
				continue
			}
			if err := n.Run(context.Background(), input(t, m, rule), Taps{Features: features}); err != nil {
				t.Fatal(err)
			}
			check(name+"."+tool, features, floats(t, arrays[name+"."+tool+".2048"]), 5e-6)
		}
	}
	t.Logf("largest difference over largest value: %v", worst)
}

// Numbers of a picture do not depend on its neighbours, the number of workers
// or what else is asked for.
func TestBatch(t *testing.T) {
	_, arrays := golden(t)
	a, b := input(t, picture(t, arrays["i32"]), metrics.ResizeTF1), input(t, picture(t, arrays["i96x64"]), metrics.ResizeTF1)
	if portable() {
		t.Skip("many passes of portable kernels; set DRIFT_SLOW=1")
	}
	two := open(t, kernels.Detect(), 2)
	const count = chunk + 1
	var x []float32
	for i := range count {
		x = append(x, [][]float32{a, b}[i%2]...)
	}
	all := Taps{make([]float32, count*Features), make([]float32, count*Classes), make([]float32, count*Spatial)}
	if err := two.Run(context.Background(), x, all); err != nil {
		t.Fatal(err)
	}
	one := open(t, kernels.Detect(), 1)
	single := Taps{make([]float32, Features), make([]float32, Classes), make([]float32, Spatial)}
	for i := range 2 {
		if err := one.Run(context.Background(), [][]float32{a, b}[i], single); err != nil {
			t.Fatal(err)
		}
		early := Taps{Spatial: make([]float32, Spatial)} // stops in the middle
		if err := one.Run(context.Background(), [][]float32{a, b}[i], early); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(early.Spatial, single.Spatial) {
			t.Error("spatial features alone differ")
		}
		for j := i; j < count; j += 2 {
			if !reflect.DeepEqual(single.Features, all.Features[j*Features:(j+1)*Features]) || !reflect.DeepEqual(single.Logits, all.Logits[j*Classes:(j+1)*Classes]) ||
				!reflect.DeepEqual(single.Spatial, all.Spatial[j*Spatial:(j+1)*Spatial]) {
				t.Errorf("picture %d differs from the same alone", j)
			}
		}
	}
	// The spatial features are the head of the block's output: its first branch
	// comes first.
	two.trace = func(block string, h, w, c int, x []float32) {
		if block == "Mixed_6d" {
			for p := range h * w {
				if !reflect.DeepEqual(x[p*c:p*c+7], all.Spatial[p*7:p*7+7]) {
					t.Fatal("the spatial features are not the first channels of Mixed_6d")
				}
			}
		}
	}
	if err := two.Run(context.Background(), a, single); err != nil {
		t.Fatal(err)
	}
	two.trace = nil
	stopped, stop := context.WithCancel(context.Background())
	stop()
	if err := two.Run(stopped, a, single); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	for what, err := range map[string]error{
		"values": two.Run(context.Background(), a[1:], Taps{}),
		"taps":   two.Run(context.Background(), a, Taps{Logits: make([]float32, Classes-1)}),
		"rule":   Prepare(a, picture(t, arrays["i32"]), "nearest"),
		"chans":  Prepare(a, metrics.Image[uint8]{H: 1, W: 1, C: 2, Pix: make([]uint8, 2)}, metrics.ResizeTF1),
		"empty":  Prepare(a, metrics.Image[uint8]{H: 0, W: 1, C: 1}, metrics.ResizeTF1),
	} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

// Grey pictures are RGB pictures with three equal channels.
func TestGrey(t *testing.T) {
	grey := metrics.Image[uint8]{H: 3, W: 2, C: 1, Pix: []uint8{0, 10, 20, 200, 255, 7}}
	rgb := metrics.Image[uint8]{H: 3, W: 2, C: 3}
	for _, v := range grey.Pix {
		rgb.Pix = append(rgb.Pix, v, v, v)
	}
	for _, rule := range []string{metrics.ResizeTF1, metrics.ResizePIL, metrics.ResizeTorch} {
		a, b := input(t, grey, rule), input(t, rgb, rule)
		if !reflect.DeepEqual(a, b) {
			t.Errorf("%s: grey differs", rule)
		}
		if rule != metrics.ResizePIL && a[0] != -1 { // the corner of both bilinear rules is the pixel itself
			t.Errorf("%s: black is %v", rule, a[0])
		}
	}
}

// The pools against their definition.
func TestPools(t *testing.T) {
	pool := kernels.NewPool(kernels.Portable, 2)
	defer pool.Close()
	n := &Net{pool: pool, row: make([][]float32, 2)}
	for _, s := range []struct{ h, w int }{{1, 1}, {1, 4}, {2, 2}, {3, 3}, {5, 4}, {8, 7}} {
		const images, c, ld, at = 2, 3, 5, 1
		src := make([]float32, images*s.h*s.w*c)
		for i := range src {
			src[i] = float32((i*7919)%101) - 50
		}
		for _, kind := range []pooling{avgPool, maxPool, maxPool2} {
			stride, pad := 1, 1
			if kind == maxPool2 {
				stride, pad = 2, 0
			}
			ho, wo := (s.h+2*pad-3)/stride+1, (s.w+2*pad-3)/stride+1
			if s.h+2*pad < 3 || s.w+2*pad < 3 {
				continue
			}
			dst := make([]float32, images*ho*wo*ld)
			if kind == avgPool {
				n.avgInto(dst, ld, at, src, images, s.h, s.w, c)
			} else {
				n.maxInto(dst, ld, at, src, images, s.h, s.w, c, stride)
			}
			for i := range images * ho * wo {
				image, y, x := i/(ho*wo), i/wo%ho, i%wo
				for k := range c {
					sum, count, most := 0.0, 0, float32(math.Inf(-1))
					for dy := range 3 {
						for dx := range 3 {
							if v, u := y*stride-pad+dy, x*stride-pad+dx; v >= 0 && v < s.h && u >= 0 && u < s.w {
								p := src[((image*s.h+v)*s.w+u)*c+k]
								sum, count, most = sum+float64(p), count+1, max(most, p)
							}
						}
					}
					want := most
					if kind == avgPool {
						want = float32(max(sum/float64(count), 0))
					}
					if have := dst[i*ld+at+k]; math.Abs(float64(have-want)) > 1e-5 {
						t.Fatalf("%dx%d, pool %d, pixel %d: %v, want %v", s.h, s.w, kind, i, have, want)
					}
				}
				if dst[i*ld] != 0 || dst[i*ld+ld-1] != 0 {
					t.Fatal("wrote channels of others")
				}
			}
		}
	}
}

// save writes the formula's weights as a file.
func save(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "x.safetensors")
	var list []safetensors.Tensor
	for _, x := range Tensors() {
		list = append(list, safetensors.Tensor{Name: x.Name, DType: safetensors.F32, Shape: x.Shape})
	}
	list = append(list, safetensors.Tensor{Name: "Mixed_7a.branch3x3_1.bn.num_batches_tracked", DType: safetensors.I64})
	w, err := safetensors.Create(path, nil, list)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range list[:len(list)-1] {
		if err := w.Float32(weights()[x.Name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Int64([]int64{7}); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestOpen(t *testing.T) {
	pool := kernels.NewPool(kernels.Detect(), 2)
	defer pool.Close()
	if _, err := Open("x.pth", pool); err == nil || !strings.Contains(err.Error(), "drift model convert") {
		t.Error(err)
	}
	path := save(t)
	n, err := Open(path, pool)
	if err != nil {
		t.Fatal(err)
	}
	if want := open(t, kernels.Detect(), 1); n.Hash != want.Hash || len(n.Hash) != 64 {
		t.Errorf("hash %s, want %s", n.Hash, want.Hash)
	}
	// What stands in the file is changed in place.
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	head := make([]byte, 64<<10)
	if _, err := f.ReadAt(head, 0); err != nil {
		t.Fatal(err)
	}
	data := int64(8 + binary.LittleEndian.Uint64(head)) // of the first tensor, a convolution
	for _, c := range []struct{ old, with, want string }{
		{`"fc.bias"`, `"fc.bibs"`, "fc.bias is missing; fc.bibs is not expected"},
		{`[32,3,3,3]`, `[3,32,3,3]`, "Conv2d_1a_3x3.conv.weight is [3 32 3 3], not [32 3 3 3]"},
		{`Mixed_7a.branch3x3_1.bn.num_batches_tracked`, `AuxLogits_branch3x3_1.bn.num_batches_trackEd`[:43], "AuxLogits_branch3x3_1.bn.num_batches_track"},
		{"", "\x00\x00\xc0\x7f", "value 0 of Conv2d_1a_3x3.conv.weight is NaN"},
	} {
		at := data
		old := head[data : data+4]
		if c.old != "" {
			at = int64(bytes.Index(head, []byte(c.old)))
			old = []byte(c.old)
		}
		if _, err := f.WriteAt([]byte(c.with), at); err != nil || at < 0 {
			t.Fatal(at, err)
		}
		_, err := Open(path, pool)
		var r *refuse.Error
		if !errors.As(err, &r) || !strings.Contains(r.Reason, c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
		if _, err := f.WriteAt(old, at); err != nil {
			t.Fatal(err)
		}
	}
}

func BenchmarkNet(b *testing.B) {
	n := open(b, kernels.Detect(), 2)
	for _, count := range []int{1, chunk, 4 * chunk} {
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			x := make([]float32, count*Side*Side*3)
			for i := range x {
				x[i] = float32(i%255)/128 - 1
			}
			out := Taps{Features: make([]float32, count*Features), Logits: make([]float32, count*Classes)}
			for b.Loop() {
				if err := n.Run(context.Background(), x, out); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(count*b.N)/b.Elapsed().Seconds(), "images/s")
		})
	}
}
