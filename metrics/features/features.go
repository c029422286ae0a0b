// Package features turns pictures into the vectors that metrics compare, and
// reads the sets of pictures, vectors and statistics that people keep in files.
//
// Pictures are bytes when they are measured, as they would be read back from a
// PNG: a value x of a network in [-1, 1] is rounded by a recorded rule first
// (see pixels.Rounding), because scores see the difference.
package features

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strings"
	"sync"

	"drift/internal/kernels"
	"drift/internal/spec"
	"drift/metrics"
	"drift/models/ort"
	"drift/models/zoo"
)

// Images is n pictures of one size, (n, H, W, C) bytes; C is 1 or 3.
type Images struct {
	N, H, W, C int
	Pix        []uint8
}

// At is picture i.
func (im Images) At(i int) metrics.Image[uint8] {
	w := im.H * im.W * im.C
	return metrics.Image[uint8]{H: im.H, W: im.W, C: im.C, Pix: im.Pix[i*w : (i+1)*w]}
}

// Vectors is what an Extractor says about n pictures.
type Vectors struct {
	Features metrics.Matrix
	Logits   metrics.Matrix // N is 0 where the extractor has no classes
}

// Extractor turns pictures into vectors. The vectors of a picture do not depend
// on the pictures beside it.
type Extractor interface {
	// Identity is the hash of the weights and the resize rule, which every
	// score carries.
	Identity() metrics.Identity
	// Dims is the number of features and of classes (0 = none).
	Dims() (features, classes int)
	// Extract measures pictures; it refuses sizes that it has no rule for.
	Extract(ctx context.Context, im Images) (Vectors, error)
	// Close gives back its workers.
	Close()
}

// pictureError is what an extractor has against picture i of a batch; Each names the picture.
type pictureError struct {
	i   int
	err error
}

func (e *pictureError) Error() string { return fmt.Sprintf("features: picture %d: %v", e.i, e.err) }
func (e *pictureError) Unwrap() error { return e.err }

// Options says how an extractor runs. None of it changes its vectors, but for
// Resize, and the last bits by Tier.
type Options struct {
	Threads int          // 0 = 1
	Tier    kernels.Tier // of the kernels; the zero value is the portable one
	// ORT loads ONNX Runtime for the extractor FILE.onnx; nil looks for it in the system's path.
	ORT    func() (*ort.Library, error)
	Resize string // "" refuses other sizes; else metrics.ResizeTF1, ResizeTorch or ResizePIL
}

// Names lists the extractors that need no file: fashion (the embedded
// classifier of clothes, 64 features and 10 classes), pixels (the bytes
// themselves) and dna (the embedded classifier of sequences). Open also knows inception:FILE (the network of FID in a
// safetensors file, 2048 features and 1008 classes) and inception-spatial:FILE
// (its 2023 features of sFID), and FILE.onnx (a network described by the sidecar beside it, see package ort).
func Names() []string { return []string{"fashion", "pixels", "dna"} }

// Open makes the extractor of that name.
func Open(name string, opt Options) (Extractor, error) {
	switch opt.Resize {
	case "", metrics.ResizeTF1, metrics.ResizeTorch, metrics.ResizePIL:
	default:
		return nil, fmt.Errorf("features: unknown resize %q; known: %s, %s, %s", opt.Resize, metrics.ResizeTF1, metrics.ResizeTorch, metrics.ResizePIL)
	}
	if ex, ok, err := openInception(name, opt); ok {
		return ex, err
	}
	if strings.EqualFold(filepath.Ext(name), ".onnx") {
		return openONNX(name, opt)
	}
	switch name {
	case "fashion":
		pool := kernels.NewPool(opt.Tier, max(1, opt.Threads))
		c, err := zoo.OpenClassifier(pool)
		if err != nil {
			pool.Close()
			return nil, err
		}
		return &fashion{net: c, pool: pool, resize: opt.Resize}, nil
	case "dna":
		return openDNA(opt)
	case "pixels":
		if opt.Resize != "" {
			return nil, fmt.Errorf("features: the pixels extractor does not resize")
		}
		return &pixels{}, nil
	}
	return nil, fmt.Errorf("features: unknown extractor %q%s", name, spec.Suggest(name, append(Names(), inceptionName+":FILE", inceptionSpatialName+":FILE", "FILE.onnx")))
}

// fashion is the embedded classifier: features are the 64 values after fc1's
// ReLU, logits those of 10 classes. It reads v/127.5 - 1.
type fashion struct {
	net    *zoo.Classifier
	pool   *kernels.Pool
	resize string
}

const side = 28 // of the classifier's pictures

func (f *fashion) Identity() metrics.Identity {
	resize := "none"
	if f.resize != "" {
		resize = f.resize + "-28"
	}
	return metrics.Identity{Extractor: "fashion/sha256:" + f.net.Hash[:16], Resize: resize + " v/127.5-1"}
}

func (f *fashion) Dims() (int, int) { return zoo.Features, len(f.net.Labels) }

func (f *fashion) Close() { f.pool.Close() }

func (f *fashion) Extract(ctx context.Context, im Images) (Vectors, error) {
	d, k := f.Dims()
	v := Vectors{metrics.Matrix{N: im.N, D: d, X: make([]float64, im.N*d)}, metrics.Matrix{N: im.N, D: k, X: make([]float64, im.N*k)}}
	x := make([]float64, im.N*side*side)
	for i := range im.N {
		if err := f.prepare(x[i*side*side:(i+1)*side*side], im.At(i)); err != nil {
			return Vectors{}, &pictureError{i, err}
		}
	}
	err := f.net.Run(ctx, x, v.Features.X, v.Logits.X)
	return v, err
}

// prepare makes a 28 x 28 grey picture in [-1, 1] of m.
func (f *fashion) prepare(dst []float64, m metrics.Image[uint8]) error {
	grey := m
	if m.C != 1 {
		grey = metrics.Image[uint8]{H: m.H, W: m.W, C: 1, Pix: make([]uint8, m.H*m.W)}
		for j := range grey.Pix {
			p := m.Pix[j*m.C : (j+1)*m.C]
			for _, v := range p {
				if v != p[0] {
					return fmt.Errorf("has colours; the extractor fashion takes grey pictures")
				}
			}
			grey.Pix[j] = p[0]
		}
	}
	if m.H == side && m.W == side {
		for j, v := range grey.Pix {
			dst[j] = float64(v)/127.5 - 1
		}
		return nil
	}
	var r metrics.Image[float32]
	var err error
	switch f.resize {
	case "":
		return fmt.Errorf("is %dx%d; the extractor fashion takes %dx%d (name a resize rule to bring it there)", m.W, m.H, side, side)
	case metrics.ResizeTF1:
		r, err = metrics.TF1Bilinear(grey, side, side)
	case metrics.ResizeTorch:
		r, err = metrics.TorchBilinear(grey, side, side)
	default:
		r, err = metrics.Pillow{}.Float(grey, side, side, true)
	}
	if err != nil {
		return err
	}
	for j, v := range r.Pix {
		dst[j] = float64(v)/127.5 - 1
	}
	return nil
}

// pixels has the bytes themselves as features, v/127.5 - 1, in the order
// (H, W, C). The first picture settles the size.
type pixels struct {
	mu      sync.Mutex
	h, w, c int
}

func (*pixels) Identity() metrics.Identity {
	return metrics.Identity{Extractor: "pixels", Resize: "none v/127.5-1"}
}

func (p *pixels) Dims() (int, int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.h * p.w * p.c, 0
}

func (*pixels) Close() {}

func (p *pixels) Extract(ctx context.Context, im Images) (Vectors, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.h == 0 {
		p.h, p.w, p.c = im.H, im.W, im.C
	}
	if im.H != p.h || im.W != p.w || im.C != p.c {
		return Vectors{}, &pictureError{0, fmt.Errorf("is %dx%dx%d after pictures of %dx%dx%d", im.W, im.H, im.C, p.w, p.h, p.c)}
	}
	d := p.h * p.w * p.c
	v := Vectors{Features: metrics.Matrix{N: im.N, D: d, X: make([]float64, im.N*d)}}
	for j, b := range im.Pix[:im.N*d] {
		v.Features.X[j] = float64(b)/127.5 - 1
	}
	return v, ctx.Err()
}

// Digest is a short hash of a reference: of the numbers that scores are
// compared with.
func Digest(parts ...string) string {
	s := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(s[:8])
}
