// Package inception is the Inception-v3 network in the flavour that the Frechet
// inception distance is measured with: the weights and the graph of TensorFlow's
// inception-2015-12-05, as pytorch-fid and torch-fidelity rebuilt them (Heusel
// et al. 2017, arXiv:1706.08500; the network: Szegedy et al. 2016,
// arXiv:1512.00567).
//
// Names and shapes of the tensors are those of torchvision's inception_v3, but
// for fc, which has 1008 outputs. The graph differs in three places:
//
//   - the average pools in Mixed_5b to Mixed_6e and Mixed_7b divide by the
//     number of pixels that lie in the image, not by nine;
//   - Mixed_7c has a max pool where torchvision has an average pool;
//   - there is no auxiliary head, and fc has 1008 outputs, of which the classes
//     of ImageNet are 1000.
//
// A network is made of the well-known file pt_inception-2015-12-05-6726825d.pth
// after `drift model convert` turned it into safetensors. Batch norms are folded
// into their convolutions: w gamma/sqrt(var + 0.001), beta - mean gamma/sqrt(var +
// 0.001).
package inception

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"drift/internal/kernels"
	"drift/internal/refuse"
	"drift/internal/safetensors"
	"drift/metrics"
)

// Sizes of the network.
const (
	Side     = 299         // of the pictures it reads
	Features = 2048        // of the last pool: FID, KID, precision and recall
	Classes  = 1008        // logits: inception score
	Spatial  = 17 * 17 * 7 // first channels of a middle layer: sFID
)

// Net is the network, on a pool of workers. Runs of several goroutines wait for
// each other.
type Net struct {
	// Hash is the SHA-256 of names, shapes and values (as float32) of the
	// tensors in the order of their names: it does not depend on the file
	// that holds them.
	Hash string
	// Bias is fc.bias: Logits plus Bias are the logits of the classifier.
	Bias []float32

	mu      sync.Mutex
	pool    *kernels.Pool
	stem    []stage
	blocks  []block
	fc      *kernels.Linear
	buf     [4][]float32 // two of stages and blocks, two of branches
	row     [][]float32  // of a worker
	scratch []float32
	trace   func(name string, h, w, c int, x []float32) // for tests
}

// stage is a convolution, or a max pool of 3 by 3 with stride 2.
type stage struct {
	name string
	conv *kernels.Conv
}

// block is a set of branches whose outputs are joined along the channels.
type block struct {
	name     string
	branches []branch
	cout     int
}

// branch is a chain of convolutions on one input, of which the last may be two
// side by side, with perhaps a pool.
type branch struct {
	pool  pooling
	chain []*kernels.Conv
	split []*kernels.Conv
}

type pooling int

const (
	noPool   pooling = iota
	avgPool          // 3 by 3, stride 1, padding not counted
	maxPool          // 3 by 3, stride 1
	maxPool2         // 3 by 3, stride 2, no padding
)

// spatialBlock is the block whose first branch is tapped: mixed_6/conv in the
// graph of 2015, where 6b is mixed_4.
const spatialBlock = "Mixed_6d"

// chunk is the number of pictures that a pass takes.
const chunk = 4

// Open reads a network from a safetensors file, or refuses it.
func Open(path string, pool *kernels.Pool) (*Net, error) {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".pth", ".pt", ".bin":
		return nil, refuse.Errorf(path, "a torch file, which is not loaded: make safetensors of it once with `drift model convert`")
	}
	r, err := safetensors.Open(path)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	shapes, wrong := map[string][]int{}, []string{}
	for _, t := range r.Tensors() {
		if !strings.HasSuffix(t.Name, ".num_batches_tracked") { // counts of training
			shapes[t.Name] = t.Shape
		}
	}
	for _, want := range Tensors() {
		switch have, ok := shapes[want.Name]; {
		case !ok:
			wrong = append(wrong, want.Name+" is missing")
		case !slices.Equal(have, want.Shape):
			wrong = append(wrong, fmt.Sprintf("%s is %v, not %v", want.Name, have, want.Shape))
		}
		delete(shapes, want.Name)
	}
	for name := range shapes {
		wrong = append(wrong, name+" is not expected")
	}
	if len(wrong) > 0 {
		slices.Sort(wrong)
		const most = 10
		more := ""
		if len(wrong) > most {
			more = fmt.Sprintf(", and %d more", len(wrong)-most)
		}
		return nil, refuse.Errorf(path, "is not the Inception network of FID: %s%s", strings.Join(wrong[:min(len(wrong), most)], "; "), more)
	}
	n, err := New(r.Float32, pool)
	var bad *valueError
	if errors.As(err, &bad) {
		return nil, refuse.Errorf(path, "%v", bad)
	}
	return n, err
}

// valueError is a value that no weight can have.
type valueError struct {
	name  string
	at    int
	value float32
}

func (e *valueError) Error() string {
	return fmt.Sprintf("value %d of %s is %v", e.at, e.name, e.value)
}

// New makes a network of the tensors that Tensors lists; get returns the values
// of one. A variance that is negative, or any value that is not finite, is an
// error.
func New(get func(name string) ([]float32, error), pool *kernels.Pool) (*Net, error) {
	b := builder{net: &Net{pool: pool, row: make([][]float32, pool.Workers())}, values: map[string][]float32{}}
	list := Tensors()
	slices.SortFunc(list, func(a, b Tensor) int { return strings.Compare(a.Name, b.Name) })
	sum := sha256.New()
	var raw []byte
	for _, t := range list {
		v, err := get(t.Name)
		if err != nil {
			return nil, err
		}
		if size := product(t.Shape); len(v) != size {
			return nil, fmt.Errorf("inception: %s has %d values, not %d", t.Name, len(v), size)
		}
		fmt.Fprintf(sum, "%s %v\n", t.Name, t.Shape)
		raw = raw[:0]
		for i, x := range v {
			if math.IsNaN(float64(x)) || math.IsInf(float64(x), 0) || x < 0 && strings.HasSuffix(t.Name, "running_var") {
				return nil, fmt.Errorf("inception: %w", &valueError{t.Name, i, x})
			}
			raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(x))
		}
		sum.Write(raw)
		b.values[t.Name] = v
	}
	b.net.Hash = hex.EncodeToString(sum.Sum(nil))
	b.build()
	return b.net, nil
}

func product(shape []int) int {
	n := 1
	for _, d := range shape {
		n *= d
	}
	return n
}

// Taps is what a run writes; nil fields are left out, and what only they need
// is not computed.
type Taps struct {
	Features []float32 // (n, Features): mean over the 8 by 8 pixels of Mixed_7c
	// Logits are (n, Classes): features times fc.weight, without fc.bias, as
	// the inception score of torch-fidelity and of the evaluator of
	// guided-diffusion have them.
	Logits []float32
	// Spatial is (n, 17, 17, 7): the first seven channels of the first branch
	// of Mixed_6d after its ReLU, mixed_6/conv of the graph of 2015.
	Spatial []float32
}

// Run measures n pictures of (Side, Side, 3) values as Prepare makes them. The
// numbers of a picture do not depend on the pictures beside it.
func (n *Net) Run(ctx context.Context, x []float32, out Taps) error {
	const px = Side * Side * 3
	count := len(x) / px
	for what, s := range map[string]struct {
		have []float32
		each int
	}{"features": {out.Features, Features}, "logits": {out.Logits, Classes}, "spatial features": {out.Spatial, Spatial}} {
		if s.have != nil && len(s.have) != count*s.each {
			return fmt.Errorf("inception: %d %s for %d pictures", len(s.have), what, count)
		}
	}
	if len(x)%px != 0 {
		return fmt.Errorf("inception: %d values, not a multiple of %d x %d x 3", len(x), Side, Side)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for lo := 0; lo < count; lo += chunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		hi := min(count, lo+chunk)
		part := Taps{}
		if out.Features != nil {
			part.Features = out.Features[lo*Features : hi*Features]
		}
		if out.Logits != nil {
			part.Logits = out.Logits[lo*Classes : hi*Classes]
		}
		if out.Spatial != nil {
			part.Spatial = out.Spatial[lo*Spatial : hi*Spatial]
		}
		n.pass(x[lo*px:hi*px], hi-lo, part)
	}
	return nil
}

// size makes a slice at least that long.
func size(s *[]float32, n int) []float32 {
	if len(*s) < n {
		*s = make([]float32, n)
	}
	return (*s)[:n]
}

func (n *Net) pass(x []float32, images int, out Taps) {
	h, w, c := Side, Side, 3
	for i, s := range n.stem {
		to := &n.buf[i%2]
		if s.conv == nil {
			ho, wo := (h-3)/2+1, (w-3)/2+1
			y := size(to, images*ho*wo*c)
			n.maxInto(y, c, 0, x, images, h, w, c, 2)
			x, h, w = y, ho, wo
		} else {
			x, h, w = n.conv(to, s.conv, x, images, h, w, kernels.ReLU)
			c = s.conv.Spec().Cout
		}
		n.seen(s.name, h, w, c, x)
	}
	for i, b := range n.blocks {
		last := out.Features == nil && out.Logits == nil && b.name == spatialBlock
		x, h, w = n.block(&n.buf[(len(n.stem)+i)%2], b, x, images, h, w, c, out.Spatial, last)
		if last {
			return
		}
		c = b.cout
		n.seen(b.name, h, w, c, x)
	}
	features := out.Features
	if features == nil {
		features = size(&n.buf[2], images*Features)
	}
	for i := range images { // in the order of the pixels, in float64
		for k := range Features {
			s := 0.0
			for p := range h * w {
				s += float64(x[(i*h*w+p)*c+k])
			}
			features[i*Features+k] = float32(s / float64(h*w))
		}
	}
	if out.Logits != nil {
		n.fc.Run(n.pool, out.Logits, features, images, size(&n.scratch, n.fc.Scratch(n.pool.Workers(), images)), kernels.Epilogue{})
	}
}

func (n *Net) seen(name string, h, w, c int, x []float32) {
	if n.trace != nil {
		n.trace(name, h, w, c, x)
	}
}

// conv runs a convolution into *to.
func (n *Net) conv(to *[]float32, conv *kernels.Conv, x []float32, images, h, w int, act kernels.Activation) (y []float32, ho, wo int) {
	s := conv.Spec()
	ho, wo = s.OutSize(h, w)
	y = size(to, images*ho*wo*s.Cout)
	conv.Run(n.pool, y, kernels.Input{X: x, C: s.Cin}, images, h, w, size(&n.scratch, conv.Scratch(n.pool.Workers(), images, h, w, false)), kernels.Epilogue{Act: act})
	return y, ho, wo
}

// block runs all branches of one, or only the first if that is all that is
// wanted.
func (n *Net) block(to *[]float32, b block, in []float32, images, h, w, cin int, spatial []float32, first bool) ([]float32, int, int) {
	ho, wo := h, w
	for _, br := range b.branches {
		if br.pool == maxPool2 {
			ho, wo = (h-3)/2+1, (w-3)/2+1
		}
	}
	y := size(to, images*ho*wo*b.cout)
	at := 0 // channel
	for i, br := range b.branches {
		x, xh, xw, c := in, h, w, cin
		if br.pool == maxPool {
			x = size(&n.buf[3], images*h*w*c)
			n.maxInto(x, c, 0, in, images, h, w, c, 1)
		}
		for k, conv := range br.chain {
			act := kernels.ReLU
			if br.pool == avgPool {
				act = kernels.Identity // after the pool
			}
			x, xh, xw = n.conv(&n.buf[2+k%2], conv, x, images, xh, xw, act)
			c = conv.Spec().Cout
		}
		if i == 0 && b.name == spatialBlock && spatial != nil {
			for p := range images * h * w {
				copy(spatial[p*7:(p+1)*7], x[p*c:])
			}
			if first {
				return nil, 0, 0
			}
		}
		switch {
		case br.pool == maxPool2:
			n.maxInto(y, b.cout, at, in, images, h, w, c, 2)
			at += c
		case br.pool == avgPool:
			n.avgInto(y, b.cout, at, x, images, h, w, c)
			at += c
		case br.split != nil:
			for _, conv := range br.split {
				z, _, _ := n.conv(&n.buf[2+len(br.chain)%2], conv, x, images, xh, xw, kernels.ReLU)
				c = conv.Spec().Cout
				n.join(y, b.cout, at, z, images*ho*wo, c)
				at += c
			}
		default:
			n.join(y, b.cout, at, x, images*ho*wo, c)
			at += c
		}
	}
	return y, ho, wo
}

// Prepare makes the input of one picture of any size, grey or RGB: resized to
// 299 x 299 by the rule of a tool, and scaled as that tool does. Rules are
// metrics.ResizeTF1 (bilinear of TensorFlow 1, (v-128)/128: torch-fidelity,
// the evaluators of ADM and EDM), metrics.ResizePIL (antialiased bicubic,
// (v-128)/128: clean-fid) and metrics.ResizeTorch (bilinear of torch,
// v/127.5 - 1: pytorch-fid). dst has Side*Side*3 values.
func Prepare(dst []float32, m metrics.Image[uint8], rule string) error {
	if m.C != 1 && m.C != 3 {
		return fmt.Errorf("inception: a picture of %d channels, want 1 or 3", m.C)
	}
	var r metrics.Image[float32]
	var err error
	switch rule {
	case metrics.ResizeTF1:
		r, err = metrics.TF1Bilinear(m, Side, Side)
	case metrics.ResizePIL:
		r, err = metrics.Pillow{}.Float(m, Side, Side, true)
	case metrics.ResizeTorch:
		r, err = metrics.TorchBilinear(m, Side, Side)
	default:
		return fmt.Errorf("inception: unknown resize rule %q", rule)
	}
	if err != nil {
		return err
	}
	for p := range Side * Side {
		for k := range 3 {
			v := r.Pix[p*m.C+k%m.C]
			if rule == metrics.ResizeTorch {
				v = v/127.5 - 1
			} else {
				v = (v - 128) / 128
			}
			dst[p*3+k] = v
		}
	}
	return nil
}

// Scale says how Prepare scales under a rule.
func Scale(rule string) string {
	if rule == metrics.ResizeTorch {
		return "v/127.5-1"
	}
	return "(v-128)/128"
}
