package zoo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"sync"

	"drift/internal/kernels"
	"drift/internal/safetensors"
)

// Classifier is the embedded classifier of clothes: 28x28 images in [-1, 1] to 64 features and the logits of 10 classes.
// Its accuracy on the 10,000 test images of Fashion-MNIST is 0.9166.
type Classifier struct {
	Labels []string
	Hash   string // SHA-256 of the weights, hex

	mu      sync.Mutex
	pool    *kernels.Pool
	conv    [4]*kernels.Conv
	fc      [2]*kernels.Linear
	buf     [2][]float32
	scratch []float32
	weights [6][]float32 // as the layers take them, for the gradient
	back    *backward    // nil until a gradient is asked for
}

// Features is the number of features of the classifier.
const Features = 64

// chunk is the number of images a pass takes.
const chunk = 64

// OpenClassifier loads the classifier onto a pool of workers.
func OpenClassifier(pool *kernels.Pool) (*Classifier, error) {
	folder, err := Folder("fashion-classifier")
	if err != nil {
		return nil, err
	}
	raw, err := fs.ReadFile(folder, "model.safetensors")
	if err != nil {
		return nil, err
	}
	w, err := safetensors.NewReader("fashion-classifier", raw)
	if err != nil {
		return nil, err
	}
	text, err := fs.ReadFile(folder, "config.json")
	if err != nil {
		return nil, err
	}
	var cfg struct{ Labels []string }
	if err := json.Unmarshal(text, &cfg); err != nil {
		return nil, fmt.Errorf("zoo: fashion-classifier: %w", err)
	}
	sum := sha256.Sum256(raw)
	c := &Classifier{Labels: cfg.Labels, Hash: hex.EncodeToString(sum[:]), pool: pool}
	tensors := map[string][]float32{}
	for _, t := range w.Tensors() {
		if tensors[t.Name], err = w.Float32(t.Name); err != nil {
			return nil, err
		}
	}
	for i, io := range [4][2]int{{1, 32}, {32, 32}, {32, 64}, {64, 64}} {
		size := 28 >> (i / 2)
		spec := kernels.ConvSpec{Cin: io[0], Cout: io[1], KH: 3, KW: 3, Stride: 1, Pad: kernels.Same(1), H: size, W: size}
		name := fmt.Sprintf("conv%d.", i+1)
		c.weights[i] = tensors[name+"weight"]
		c.conv[i] = kernels.NewConv(pool.Tier(), kernels.F32, spec, tensors[name+"weight"], tensors[name+"bias"])
	}
	// fc1 takes (C, H, W); the engine's images are (H, W, C).
	const ch, hw = 64, 49
	w1, perm := tensors["fc1.weight"], make([]float32, Features*ch*hw)
	for o := range Features {
		for k := range ch {
			for p := range hw {
				perm[(o*hw+p)*ch+k] = w1[(o*ch+k)*hw+p]
			}
		}
	}
	c.weights[4], c.weights[5] = perm, tensors["fc2.weight"]
	c.fc[0] = kernels.NewLinear(pool.Tier(), kernels.F32, ch*hw, Features, perm, tensors["fc1.bias"])
	c.fc[1] = kernels.NewLinear(pool.Tier(), kernels.F32, Features, 10, tensors["fc2.weight"], tensors["fc2.bias"])
	return c, nil
}

// Run writes the features (n x 64, after the ReLU) and logits (n x 10) of n images of 28x28 values; either may be nil.
func (c *Classifier) Run(ctx context.Context, x []float64, features, logits []float64) error {
	const px = 28 * 28
	n := len(x) / px
	if len(x)%px != 0 || (features != nil && len(features) != n*Features) || (logits != nil && len(logits) != n*len(c.Labels)) {
		return fmt.Errorf("zoo: classifier: %d values for images of 28x28, %d features, %d logits", len(x), len(features), len(logits))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for lo := 0; lo < n; lo += chunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		hi := min(n, lo+chunk)
		f, l := c.pass(x[lo*px:hi*px], hi-lo)
		for i, v := range f {
			if features != nil {
				features[lo*Features+i] = float64(v)
			}
		}
		for i, v := range l {
			if logits != nil {
				logits[lo*len(c.Labels)+i] = float64(v)
			}
		}
	}
	return nil
}

func (c *Classifier) pass(x []float64, n int) (features, logits []float32) {
	if c.buf[0] == nil {
		c.buf[0], c.buf[1] = make([]float32, chunk*28*28*32), make([]float32, chunk*28*28*32)
	}
	a, b := c.buf[0], c.buf[1]
	kernels.NCHWToNHWC(a, x, n, 1, 28*28)
	size := 28
	for i, conv := range c.conv {
		s := conv.Spec()
		c.grow(conv.Scratch(c.pool.Workers(), n, size, size, false))
		conv.Run(c.pool, b[:n*size*size*s.Cout], kernels.Input{X: a[:n*size*size*s.Cin], C: s.Cin}, n, size, size, c.scratch, kernels.Epilogue{Act: kernels.ReLU})
		if i%2 == 1 {
			maxPool(a, b, n, size, s.Cout)
			size /= 2
		} else {
			a, b = b, a
		}
	}
	c.grow(max(c.fc[0].Scratch(c.pool.Workers(), n), c.fc[1].Scratch(c.pool.Workers(), n)))
	features, logits = b[:n*Features], b[n*Features:n*Features+n*10]
	c.fc[0].Run(c.pool, features, a[:n*c.fc[0].In()], n, c.scratch, kernels.Epilogue{Act: kernels.ReLU})
	c.fc[1].Run(c.pool, logits, features, n, c.scratch, kernels.Epilogue{})
	return features, logits
}

func (c *Classifier) grow(n int) {
	if len(c.scratch) < n {
		c.scratch = make([]float32, n)
	}
}

// maxPool takes the largest of every 2x2 pixels of n images of size x size.
func maxPool(dst, src []float32, n, size, ch int) {
	half := size / 2
	for i := range n {
		for y := range half {
			for x := range half {
				at := ((i*size+2*y)*size + 2*x) * ch
				to := ((i*half+y)*half + x) * ch
				for k := range ch {
					dst[to+k] = max(src[at+k], src[at+ch+k], src[at+size*ch+k], src[at+size*ch+ch+k])
				}
			}
		}
	}
}
