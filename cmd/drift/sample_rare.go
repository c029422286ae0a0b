package main

import (
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"gonum.org/v1/gonum/stat/distuv"
	"gorgonia.org/tensor"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/output"
	"drift/cmd/drift/internal/runlog"
	"drift/internal/pixels"
	"drift/metrics"
	"drift/metrics/features"
	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/schedules"
)

// neighbours is the k of avg_knn.
const neighbours = 5

// measure fills the columns that look at the finished samples: avg_knn, the mean distance to the nearest samples of a plain
// run with the same seeds (without minority guidance), in features; plain_knn, that of the plain sample with the same seed;
// logp, the exact log density of analytic targets, which also tells how many samples have left the support.
func (l *stepLog) measure() error {
	s := l.s
	if m, ok := models.As[*analytic.Mixture](s.plan.Model); ok && l.log.Wants("logp") {
		if err := l.density(m); err != nil {
			return err
		}
	} else if slices.Contains(l.log.Columns(), "logp") {
		return usagef("--columns logp: %s does not know its density", s.desc.Model.Path)
	}
	if !l.log.Wants("avg_knn") && !l.log.Wants("plain_knn") {
		return nil
	}
	if len(s.items) < neighbours+1 {
		return usagef("avg_knn needs %d samples or more", neighbours+1)
	}
	plain, err := l.plain()
	if err != nil {
		return err
	}
	near, err := l.features(plain)
	if err != nil {
		return err
	}
	own, err := l.features(l.x)
	if err != nil {
		return err
	}
	for k := range s.items {
		l.log.Put(k, runlog.Whole, map[string]any{"avg_knn": meanNearest(own, near, k), "plain_knn": meanNearest(near, near, k)})
	}
	if m, ok := models.As[*analytic.Mixture](s.plan.Model); ok {
		if err := l.density(m); err != nil {
			return err
		}
	}
	return l.sheet(plain)
}

// plain draws the same seeds without what makes samples rare.
func (l *stepLog) plain() ([]float64, error) {
	s := l.s
	p := *s.plan
	rest := slices.DeleteFunc(slices.Clone(s.desc.Guiders), func(g string) bool { return strings.HasPrefix(g, "minority") })
	if p.Wrap != nil {
		var second models.Denoiser
		if s.second != nil {
			second = s.second.Denoiser
		}
		p.Wrap = func(d models.Denoiser) (models.Denoiser, error) { return guide(d, second, rest, p.Grid, nil) }
	}
	var x []float64
	s.say("drift: drawing %d plain samples of the same seeds to compare with", len(s.items))
	_, err := p.Run(l.ctx, s.stop, s.items, s.batch(), job.Hooks{Done: func(_ job.Batch, _, pictures *tensor.Dense, _ samplers.Stats) error {
		x = append(x, models.Data(pictures)...)
		return nil
	}})
	return x, err
}

// features turns samples into vectors: those of the embedded classifier for pictures of its size, else the pictures' own
// values.
func (l *stepLog) features(x []float64) (metrics.Matrix, error) {
	s := l.s
	n := len(s.items)
	own := metrics.Matrix{N: n, D: len(x) / n, X: x}
	if !slices.Equal(s.info.Shape, []int{1, 28, 28}) {
		return own, nil
	}
	ex, err := features.Open("fashion", features.Options{})
	if err != nil {
		return own, err
	}
	defer ex.Close()
	im := features.Images{N: n, H: 28, W: 28, C: 1, Pix: make([]byte, n*28*28)}
	for k := range n {
		pixels.Bytes(im.Pix[k*784:(k+1)*784], x[k*784:(k+1)*784], s.info.Shape, pixels.Rounding(s.desc.Rounding))
	}
	v, err := ex.Extract(l.ctx, im)
	return v.Features, err
}

// meanNearest is the mean distance from row k of a to the nearest rows of b other than its own.
func meanNearest(a, b metrics.Matrix, k int) float64 {
	row := a.X[k*a.D : (k+1)*a.D]
	var d []float64
	for i := range b.N {
		if i == k {
			continue
		}
		sq := 0.0
		for j, v := range b.X[i*b.D : (i+1)*b.D] {
			sq += (v - row[j]) * (v - row[j])
		}
		d = append(d, math.Sqrt(sq))
	}
	slices.Sort(d)
	sum := 0.0
	for _, v := range d[:neighbours] {
		sum += v
	}
	return sum / neighbours
}

// density fills logp, and warns where samples have left the support: they lie beyond 3 standard deviations (the ball that
// holds as much of a Gaussian as 3 standard deviations do of one number) of every component.
func (l *stepLog) density(m *analytic.Mixture) error {
	clean := schedules.Node{Alpha: 1}
	n := m.Dim()
	t := m.Target()
	limit := distuv.ChiSquared{K: float64(n)}.Quantile(0.9973)
	beyond := 0
	for k, it := range l.s.items {
		x := l.x[k*n : (k+1)*n]
		class := l.s.desc.Sets[it.Set].Class(it.Place - l.s.plan.Offset)
		v, err := m.LogP(x, clean, class)
		if err != nil {
			return err
		}
		l.log.Put(k, runlog.Whole, map[string]any{"logp": v})
		near := math.Inf(1)
		for c := range t.Weights {
			near = min(near, m.Mahalanobis(x, c))
		}
		if near > limit {
			beyond++
		}
	}
	if share := float64(beyond) / float64(len(l.s.items)); share > 0.05 {
		l.s.warn("%.0f %% of the samples have left the support (beyond 3 standard deviations of every component): a smaller scale keeps them", 100*share)
	}
	return nil
}

// sheet draws the first 64 of the sorted pictures, and on the right the plain ones of the same seeds.
func (l *stepLog) sheet(plain []float64) error {
	s := l.s
	shape := s.info.Shape
	if !pixels.Picture(shape) || s.c.String("sort") == "" {
		return nil
	}
	of := map[any]int{}
	for k, it := range s.items {
		of[fmt.Sprint(it.Seed, " ", it.Set)] = k
	}
	w := shape[0] * shape[1] * shape[2]
	var left, right [][]byte
	seen := map[int]bool{}
	for _, row := range l.log.Rows() {
		k, ok := of[fmt.Sprint(row["seed"], " ", row["set"])]
		if !ok || seen[k] {
			continue
		}
		seen[k] = true
		for _, side := range []struct {
			to *[][]byte
			x  []float64
		}{{&left, l.x}, {&right, plain}} {
			p := make([]byte, w)
			pixels.Bytes(p, side.x[k*w:(k+1)*w], shape, pixels.Rounding(s.desc.Rounding))
			*side.to = append(*side.to, p)
		}
		if len(left) == 64 {
			break
		}
	}
	cols := min(8, int(math.Ceil(math.Sqrt(float64(len(left))))))
	rows := (len(left) + cols - 1) / cols
	a, b := pixels.Sheet(left, shape, cols, rows), pixels.Sheet(right, shape, cols, rows)
	path := strings.TrimSuffix(s.path, filepath.Ext(s.path)) + "-sorted.png"
	if output.Kind(s.path) == "folder" {
		path = filepath.Join(s.path, "sorted.png")
	}
	gap := shape[2] / 2
	both := image.NewRGBA(image.Rect(0, 0, a.Bounds().Dx()+gap+b.Bounds().Dx(), a.Bounds().Dy()))
	fill(both, color.White)
	paste(both, a, 0, 0)
	paste(both, b, a.Bounds().Dx()+gap, 0)
	if err := output.Write(path, func(w io.Writer) error { return png.Encode(w, both) }); err != nil {
		return err
	}
	s.say("drift: the first %d by %s, beside plain pictures of the same seeds: %s", len(left), s.c.String("sort"), path)
	s.stored([]string{path})
	return nil
}

func fill(dst *image.RGBA, c color.Color) {
	for y := range dst.Bounds().Dy() {
		for x := range dst.Bounds().Dx() {
			dst.Set(x, y, c)
		}
	}
}

func paste(dst *image.RGBA, m image.Image, x0, y0 int) {
	for y := range m.Bounds().Dy() {
		for x := range m.Bounds().Dx() {
			dst.Set(x0+x, y0+y, m.At(m.Bounds().Min.X+x, m.Bounds().Min.Y+y))
		}
	}
}
