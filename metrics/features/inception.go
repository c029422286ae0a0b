package features

import (
	"context"
	"fmt"
	"strings"

	"drift/internal/kernels"
	"drift/metrics"
	"drift/metrics/inception"
)

// inceptionNet is the network of FID, whose weights stand in a file. The tap is
// the last pool, with logits, or the seventeen by seventeen pixels of sFID.
type inceptionNet struct {
	net     *inception.Net
	pool    *kernels.Pool
	resize  string
	spatial bool
}

// The names inception:FILE and inception-spatial:FILE.
const (
	inceptionName        = "inception"
	inceptionSpatialName = "inception-spatial"
)

// openInception opens the extractors of that name; ok tells whether the name is
// theirs.
func openInception(name string, opt Options) (ex Extractor, ok bool, err error) {
	kind, file, _ := strings.Cut(name, ":")
	if kind != inceptionName && kind != inceptionSpatialName {
		return nil, false, nil
	}
	if file == "" {
		return nil, true, fmt.Errorf("features: the extractor %s needs its weights: %s:FILE.safetensors, made once of pt_inception-2015-12-05-6726825d.pth by drift model convert", kind, kind)
	}
	pool := kernels.NewPool(opt.Tier, max(1, opt.Threads))
	net, err := inception.Open(file, pool)
	if err != nil {
		pool.Close()
		return nil, true, err
	}
	return &inceptionNet{net, pool, opt.Resize, kind == inceptionSpatialName}, true, nil
}

func (e *inceptionNet) Identity() metrics.Identity {
	tap := "pool3"
	if e.spatial {
		tap = "mixed_6-conv-7"
	}
	resize := "none"
	if e.resize != "" {
		resize = fmt.Sprintf("%s-%d", e.resize, inception.Side)
	}
	return metrics.Identity{Extractor: "inception/sha256:" + e.net.Hash[:16] + "/" + tap, Resize: resize + " " + inception.Scale(e.resize)}
}

func (e *inceptionNet) Dims() (int, int) {
	if e.spatial {
		return inception.Spatial, 0
	}
	return inception.Features, inception.Classes
}

func (e *inceptionNet) Close() { e.pool.Close() }

func (e *inceptionNet) Extract(ctx context.Context, im Images) (Vectors, error) {
	const size, at = inception.Side * inception.Side * 3, 16 // pictures at a time
	rule := e.resize
	if rule == "" {
		if rule = metrics.ResizeTF1; im.H != inception.Side || im.W != inception.Side { // which leaves that size alone
			return Vectors{}, &pictureError{0, fmt.Errorf("is %dx%d; the extractor inception takes %dx%d (name a resize rule to bring it there; %s is that of torch-fidelity, ADM and EDM)",
				im.W, im.H, inception.Side, inception.Side, metrics.ResizeTF1)}
		}
	}
	d, k := e.Dims()
	v := Vectors{metrics.Matrix{N: im.N, D: d, X: make([]float64, im.N*d)}, metrics.Matrix{D: k}}
	if k > 0 {
		v.Logits = metrics.Matrix{N: im.N, D: k, X: make([]float64, im.N*k)}
	}
	x, features, logits := make([]float32, min(at, im.N)*size), make([]float32, min(at, im.N)*d), make([]float32, min(at, im.N)*k)
	bad := make([]error, at)
	for lo := 0; lo < im.N; lo += at {
		n := min(at, im.N-lo)
		e.pool.Do(n, func(_, i int) { bad[i] = inception.Prepare(x[i*size:(i+1)*size], im.At(lo+i), rule) })
		for i, err := range bad[:n] {
			if err != nil {
				return Vectors{}, &pictureError{lo + i, err}
			}
		}
		taps := inception.Taps{Features: features[:n*d], Logits: logits[:n*k]}
		if e.spatial {
			taps = inception.Taps{Spatial: features[:n*d]}
		}
		if err := e.net.Run(ctx, x[:n*size], taps); err != nil {
			return Vectors{}, err
		}
		widen(v.Features.X[lo*d:], features[:n*d])
		widen(v.Logits.X[lo*k:], logits[:n*k])
	}
	return v, nil
}

func widen(dst []float64, src []float32) {
	for i, v := range src {
		dst[i] = float64(v)
	}
}
