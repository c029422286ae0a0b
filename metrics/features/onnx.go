package features

import (
	"context"
	"fmt"
	"path/filepath"

	"drift/metrics"
	"drift/models/ort"
)

// graph is a network in an ONNX file, which its sidecar calls a classifier, a scorer or a network of features. Pictures are
// v/127.5 - 1 before its own range, mean and std.
type graph struct {
	judge   *ort.Judge
	name    string
	resize  string
	c, h, w int
}

func openONNX(path string, opt Options) (Extractor, error) {
	if opt.ORT == nil {
		opt.ORT = func() (*ort.Library, error) { return ort.Load(ort.Places{}) }
	}
	lib, err := opt.ORT()
	if err != nil {
		return nil, err
	}
	ctx := context.Background() // opening is short
	net, err := lib.OpenNet(ctx, path, nil, ort.Options{Threads: opt.Threads})
	if err != nil {
		return nil, err
	}
	j, err := net.Judge(ctx)
	s := []int(nil)
	if err == nil {
		s = j.Shape()
	}
	switch {
	case err != nil:
	case j.Noisy():
		err = fmt.Errorf("features: %s is told a time: it judges states of a run, not pictures", path)
	case j.Features() == 0:
		err = fmt.Errorf("features: %s gives no features: its sidecar names none", path)
	case len(s) != 3 || s[0] != 1 && s[0] != 3:
		err = fmt.Errorf("features: %s takes arrays of shape %v, not pictures of 1 or 3 channels", path, s)
	}
	if err != nil {
		net.Close()
		return nil, err
	}
	return &graph{j, filepath.Base(path), opt.Resize, s[0], s[1], s[2]}, nil
}

func (g *graph) Identity() metrics.Identity {
	resize := "none"
	if g.resize != "" {
		resize = fmt.Sprintf("%s-%dx%d", g.resize, g.w, g.h)
	}
	return metrics.Identity{Extractor: g.name + "/sha256:" + g.judge.Net.Hash[:16], Resize: resize + " v/127.5-1"}
}

func (g *graph) Dims() (int, int) { return g.judge.Features(), len(g.judge.Labels()) }

func (g *graph) Close() { g.judge.Net.Close() }

func (g *graph) Extract(ctx context.Context, im Images) (Vectors, error) {
	const at = 16 // pictures at a time
	d, k := g.Dims()
	v := Vectors{Features: metrics.Matrix{N: im.N, D: d, X: make([]float64, im.N*d)}, Logits: metrics.Matrix{D: k}}
	if k > 0 {
		v.Logits = metrics.Matrix{N: im.N, D: k, X: make([]float64, im.N*k)}
	}
	size := g.c * g.h * g.w
	x := make([]float64, min(at, im.N)*size)
	for lo := 0; lo < im.N; lo += at {
		n := min(at, im.N-lo)
		for i := range n {
			if err := g.prepare(x[i*size:(i+1)*size], im.At(lo+i)); err != nil {
				return Vectors{}, &pictureError{lo + i, err}
			}
		}
		var logits []float64
		if k > 0 {
			logits = v.Logits.X[lo*k : (lo+n)*k]
		}
		if err := g.judge.Run(ctx, x[:n*size], v.Features.X[lo*d:(lo+n)*d], logits); err != nil {
			return Vectors{}, fmt.Errorf("features: %w", err)
		}
	}
	return v, nil
}

// prepare makes planes in [-1, 1] of a picture: the size by the resize rule, three equal channels of a grey picture.
func (g *graph) prepare(dst []float64, m metrics.Image[uint8]) error {
	if m.C != g.c && m.C != 1 {
		for j := 0; j < len(m.Pix); j += m.C {
			if m.Pix[j] != m.Pix[j+1] || m.Pix[j] != m.Pix[j+2] {
				return fmt.Errorf("has colours; %s takes grey pictures", g.name)
			}
		}
	}
	pix := make([]float32, m.H*m.W*m.C)
	for i, v := range m.Pix[:len(pix)] {
		pix[i] = float32(v)
	}
	if m.H != g.h || m.W != g.w {
		var r metrics.Image[float32]
		var err error
		switch g.resize {
		case "":
			return fmt.Errorf("is %dx%d; %s takes %dx%d (name a resize rule to bring it there)", m.W, m.H, g.name, g.w, g.h)
		case metrics.ResizeTF1:
			r, err = metrics.TF1Bilinear(m, g.h, g.w)
		case metrics.ResizeTorch:
			r, err = metrics.TorchBilinear(m, g.h, g.w)
		default:
			r, err = metrics.Pillow{}.Float(m, g.h, g.w, true)
		}
		if err != nil {
			return err
		}
		pix = r.Pix
	}
	plane := g.h * g.w
	for i := range plane {
		for c := range g.c {
			dst[c*plane+i] = float64(pix[i*m.C+min(c, m.C-1)])/127.5 - 1
		}
	}
	return nil
}
