package ort

import (
	"context"
	"fmt"
	"math"
	"slices"

	"drift/internal/refuse"
	"drift/models"
	"drift/schedules"
)

// Judge is a network that looks at pictures: a classifier, a scorer or an extractor of features, as its sidecar says. It
// may be used from several goroutines.
type Judge struct {
	Net      *Net
	features int // per picture, 0 = none
	logits   int
}

// Judge makes the Judge of a network. It runs the network once, on a made-up picture, to see the sizes of its outputs.
func (n *Net) Judge(ctx context.Context) (*Judge, error) {
	s := n.Sidecar
	if s.Type == "denoiser" {
		return nil, refuse.Errorf(n.path, "its sidecar says that it is a denoiser, not a classifier, a scorer or a network of features")
	}
	j := &Judge{Net: n}
	var at []schedules.Node
	if s.Process != nil {
		g, ok := s.Process.(schedules.Path)
		if !ok {
			return nil, refuse.Errorf(s.Path, "its process has no times")
		}
		at = []schedules.Node{g.AtRatio(1)}
	}
	out, err := j.call(ctx, make([]float64, elements(n.Shape)), at)
	if err != nil {
		return nil, refuse.Errorf(n.path, "a picture of shape %v cannot be judged: %s", n.Shape, brief(err))
	}
	width := len(out[0])
	switch s.Type {
	case "classifier":
		j.logits = width
		if len(s.Labels) > 0 && len(s.Labels) != width {
			return nil, refuse.Errorf(s.Path, "%d labels for %d outputs", len(s.Labels), width)
		}
		if s.Features != "" {
			j.features = len(out[1])
		}
	case "scorer":
		if j.features = 1; width != 1 {
			return nil, refuse.Errorf(s.Path, "the output %s gives %d numbers per picture; a scorer has one", n.out, width)
		}
	default:
		j.features = width
	}
	return j, nil
}

// Labels names the classes, by their numbers where the sidecar has no names; empty without classes.
func (j *Judge) Labels() []string {
	if len(j.Net.Sidecar.Labels) > 0 {
		return j.Net.Sidecar.Labels
	}
	var out []string
	for k := range j.logits {
		out = append(out, fmt.Sprint(k))
	}
	return out
}

// Features is the length of the vector of a picture, 0 without: 1 of a scorer, whose score it is.
func (j *Judge) Features() int { return j.features }

// Shape is that of a picture: channels, height, width.
func (j *Judge) Shape() []int { return j.Net.Shape }

// Noisy tells that the network knows noise: it is told a time.
func (j *Judge) Noisy() bool { return j.Net.Sidecar.of(timeKinds...) != nil }

// Run writes features and log probabilities of the pictures x, values in [-1, 1]; either may be nil.
func (j *Judge) Run(ctx context.Context, x []float64, features, logits []float64) error {
	w := elements(j.Net.Shape)
	if len(x)%w != 0 {
		return fmt.Errorf("ort: %s takes pictures of shape %v", j.Net.path, j.Net.Shape)
	}
	if j.Noisy() {
		return fmt.Errorf("ort: %s is told a time: it judges states of a run, not pictures", j.Net.path)
	}
	n := len(x) / w
	if features != nil && len(features) != n*j.features || logits != nil && len(logits) != n*j.logits {
		return fmt.Errorf("ort: %s gives %d features and %d classes", j.Net.path, j.features, j.logits)
	}
	return j.each(ctx, x, nil, func(at, rows int, out [][]float64) {
		if logits != nil && j.logits > 0 {
			copy(logits[at*j.logits:], out[0])
		}
		if features != nil && j.features > 0 {
			copy(features[at*j.features:], out[len(out)-1])
		}
	})
}

// LogProb writes log p(k | x) of the n classes for every row of a query (guidance.Sources): the classifier sees the state,
// and is told the time where its sidecar says how.
func (j *Judge) LogProb(ctx context.Context, q *models.Query, n int, out []float64) error {
	switch {
	case j.Net.Sidecar.Type != "classifier":
		return fmt.Errorf("ort: %s is a %s, no classifier", j.Net.path, j.Net.Sidecar.Type)
	case n != j.logits:
		return fmt.Errorf("ort: %s has %d classes for %d models", j.Net.path, j.logits, n)
	case !slices.Equal([]int(q.X.Shape()[1:]), j.Net.Shape):
		return fmt.Errorf("ort: %s judges rows of shape %v, the run has %v", j.Net.path, j.Net.Shape, q.X.Shape()[1:])
	}
	return j.each(ctx, models.Data(q.X), q.At, func(at, rows int, v [][]float64) { copy(out[at*n:(at+rows)*n], v[0]) })
}

// each judges rows in calls that the graph takes.
func (j *Judge) each(ctx context.Context, x []float64, at []schedules.Node, take func(first, rows int, out [][]float64)) error {
	w := elements(j.Net.Shape)
	n := len(x) / w
	if j.Noisy() && at == nil {
		return fmt.Errorf("ort: %s is told a time, and there is none", j.Net.path)
	}
	for first := 0; first < n; {
		rows := n - first
		if j.Net.batch > 0 {
			rows = min(rows, j.Net.batch)
		}
		var nodes []schedules.Node
		if at != nil {
			rows = min(rows, j.Net.together(at[first:]))
			nodes = at[first : first+rows]
		}
		out, err := j.call(ctx, x[first*w:(first+rows)*w], nodes)
		if err != nil {
			return err
		}
		take(first, rows, out)
		first += rows
	}
	return nil
}

// call judges the rows of one call: outputs as log probabilities, or numbers of the network.
func (j *Judge) call(ctx context.Context, x []float64, at []schedules.Node) ([][]float64, error) {
	n, s := j.Net, j.Net.Sidecar
	w := elements(n.Shape)
	rows := len(x) / w
	fill := func(i Input, k int) ([]float64, error) {
		switch i.Is {
		case "picture":
			return j.prepare(x[k*w : (k+1)*w]), nil
		case "constant":
			return i.Value, nil
		}
		v, err := i.timeOf(s.Process, at[k])
		return []float64{v}, err
	}
	want := []string{s.Output}
	if s.Features != "" {
		want = append(want, s.Features)
	}
	answer, err := n.call(ctx, n.Session, s.Inputs, rows, fill, want...)
	if err != nil {
		return nil, err
	}
	size := max(rows, n.batch)
	var out [][]float64
	for i, a := range answer {
		v := a.Float64()
		if len(v) == 0 || len(v)%size != 0 || len(a.Shape) > 0 && a.Shape[0] != size {
			return nil, fmt.Errorf("ort: %s: its output %s has the shape %v for %d pictures", n.path, want[i], a.Shape, size)
		}
		d := len(v) / size
		v = v[:rows*d]
		if i == 0 && s.Type == "classifier" {
			for k := range rows {
				logs(v[k*d:(k+1)*d], s.Gives)
			}
		}
		out = append(out, v)
	}
	return out, nil
}

// prepare brings a picture in [-1, 1] into the network's values: (lo + (hi-lo)(p+1)/2 - mean)/std.
func (j *Judge) prepare(p []float64) []float64 {
	s := j.Net.Sidecar
	if s.Process != nil || s.Range == [2]float64{-1, 1} && s.Mean == nil {
		return p
	}
	out := make([]float64, len(p))
	plane := len(p) / j.Net.Shape[0]
	for i, v := range p {
		v = s.Range[0] + (s.Range[1]-s.Range[0])*(v+1)/2
		if s.Mean != nil {
			c := 0
			if len(s.Mean) > 1 {
				c = i / plane
			}
			v = (v - s.Mean[c]) / s.Std[c]
		}
		out[i] = v
	}
	return out
}

// logs makes log probabilities of what a classifier gives.
func logs(v []float64, gives string) {
	switch gives {
	case "log-probabilities":
		return
	case "probabilities":
		for i := range v {
			v[i] = math.Log(v[i])
		}
		return
	}
	top := slices.Max(v)
	sum := 0.0
	for _, x := range v {
		sum += math.Exp(x - top)
	}
	for i := range v {
		v[i] -= top + math.Log(sum)
	}
}
