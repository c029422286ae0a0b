package dna

import (
	"context"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"drift/internal/kernels"
	"drift/internal/safetensors"
)

var shapes = map[string]Shape{
	"denoiser":   {Categories: 4, Inputs: 8, Hidden: 16, Stacks: 1, Classes: 3},
	"free":       {Categories: 5, Inputs: 10, Hidden: 8, Stacks: 2},
	"student":    {Categories: 4, Inputs: 4, Hidden: 16, Stacks: 1, Classes: 3},
	"guide":      {Categories: 4, Inputs: 8, Hidden: 16, Stacks: 1, Classes: 3, Head: true},
	"classifier": {Categories: 4, Hidden: 16, Stacks: 1, Classes: 3, Head: true},
}

// example is an input of rows of l positions with targets.
func example(s Shape, rows, l int) (Input, []int) {
	r := rand.New(rand.NewPCG(3, uint64(l)))
	in := Input{Rows: rows, L: l}
	for k := range rows {
		if s.Inputs > 0 {
			in.Alpha = append(in.Alpha, 1+3*float64(k%3)*0.7)
			for range l * s.Inputs {
				in.X = append(in.X, float32(r.Float64()))
			}
		} else {
			for range l {
				in.Tokens = append(in.Tokens, r.IntN(s.Categories))
			}
		}
		if s.conditional() {
			in.Class = append(in.Class, k%(s.Classes+1))
		}
	}
	want := make([]int, rows*l)
	if s.Head {
		want = want[:rows]
	}
	for i := range want {
		want[i] = r.IntN(map[bool]int{true: max(s.Classes, 1), false: s.Categories}[s.Head])
	}
	return in, want
}

// plain computes the logits of one row in float64, from the description of the layout in the package comment.
func plain(s Shape, w Weights, in Input, row int) (out [][]float64, embedding, logits []float64) {
	h := s.Hidden
	get := func(name string, i int) float64 { return float64(w[name][i]) }
	conv := func(name string, x [][]float64, cout, k, d int) [][]float64 {
		y := make([][]float64, len(x))
		for p := range y {
			y[p] = make([]float64, cout)
			for o := range y[p] {
				sum := get(name+".bias", o)
				for t := range k {
					q := p + (t-k/2)*d
					if q < 0 || q >= len(x) {
						continue
					}
					for i, v := range x[q] {
						sum += get(name+".weight", (o*len(x[q])+i)*k+t) * v
					}
				}
				y[p][o] = sum
			}
		}
		return y
	}
	linear := func(name string, x []float64) []float64 {
		y := make([]float64, len(w[name+".bias"]))
		for o := range y {
			y[o] = get(name+".bias", o)
			for i, v := range x {
				y[o] += get(name+".weight", o*len(x)+i) * v
			}
		}
		return y
	}
	relu := func(x ...[]float64) {
		for _, r := range x {
			for i := range r {
				r[i] = max(r[i], 0)
			}
		}
	}
	f := make([][]float64, in.L)
	var e, class []float64
	for p := range f {
		if s.Inputs == 0 {
			for j := range h {
				f[p] = append(f[p], get("linear.weight", in.Tokens[row*in.L+p]*h+j))
			}
			continue
		}
		for c := range s.Inputs {
			f[p] = append(f[p], float64(in.X[(row*in.L+p)*s.Inputs+c]))
		}
	}
	if s.Inputs > 0 {
		f = conv("linear", f, h, 9, 1)
		relu(f...)
		four := make([]float64, h)
		for j := range h / 2 {
			four[j], four[h/2+j] = math.Sincos(2 * math.Pi * get("time_embedder.0.W", j) * in.Alpha[row])
		}
		e = linear("time_embedder.1", four)
		relu(e)
	}
	if s.conditional() {
		for j := range h {
			class = append(class, get("cls_embedder.weight", in.Class[row]*h+j))
		}
	}
	layer := 0
	for _, d := range []int{1, 1, 4, 16, 64} {
		for range s.Stacks {
			n := strconv.Itoa(layer)
			x := make([][]float64, len(f))
			for p := range x {
				x[p] = slices.Clone(f[p])
				if e != nil {
					for j, v := range linear("time_layers."+n+".dense", e) {
						x[p][j] += v
					}
				}
				if class != nil {
					for j, v := range linear("cls_layers."+n+".dense", class) {
						x[p][j] += v
					}
				}
				mean, sq := 0.0, 0.0
				for _, v := range x[p] {
					mean += v / float64(h)
				}
				for _, v := range x[p] {
					sq += (v - mean) * (v - mean) / float64(h)
				}
				for j, v := range x[p] {
					x[p][j] = (v-mean)/math.Sqrt(sq+1e-5)*get("norms."+n+".weight", j) + get("norms."+n+".bias", j)
				}
			}
			y := conv("convs."+n, x, h, 9, d)
			relu(y...)
			for p := range f {
				for j := range f[p] {
					f[p][j] += y[p][j]
				}
			}
			layer++
		}
	}
	f = conv("final_conv.0", f, h, 1, 1)
	relu(f...)
	f = conv("final_conv.2", f, s.outputs(), 1, 1)
	if !s.Head {
		return f, nil, nil
	}
	mean := make([]float64, h)
	for _, r := range f {
		for j, v := range r {
			mean[j] += v / float64(len(f))
		}
	}
	embedding = linear("cls_head.0", mean)
	act := slices.Clone(embedding)
	relu(act)
	return nil, embedding, linear("cls_head.2", act)
}

// lively moves norms and biases off their start, so that every weight matters.
func lively(s Shape, seed uint64) Weights {
	w := NewWeights(s, seed, 0.3)
	r := rand.New(rand.NewPCG(seed, 99))
	for _, p := range s.params() {
		if strings.HasPrefix(p.name, "norms.") {
			for i := range w[p.name] {
				w[p.name][i] += float32(0.3 * r.NormFloat64())
			}
		}
	}
	return w
}

func TestAgainstTheDescription(t *testing.T) {
	pool := kernels.NewPool(kernels.Detect(), 2)
	defer pool.Close()
	for name, s := range shapes {
		w := lively(s, 5)
		n := NewNet(s, w, pool)
		for _, l := range []int{1, 2, 37, 300} {
			in, _ := example(s, 3, l)
			var got, emb []float64
			if s.Head {
				got, emb = make([]float64, 3*s.Classes), make([]float64, 3*s.Hidden)
				if err := n.Classify(context.Background(), emb, got, in); err != nil {
					t.Fatal(err)
				}
			} else {
				got = make([]float64, 3*l*s.Categories)
				if err := n.Logits(context.Background(), got, in); err != nil {
					t.Fatal(err)
				}
			}
			for r := range 3 {
				out, e, logits := plain(s, w, in, r)
				want := slices.Concat(out...)
				if s.Head {
					want = logits
					for j, v := range e {
						if math.Abs(v-emb[r*s.Hidden+j]) > 2e-4 {
							t.Errorf("%s, %d positions: embedding %d is %g, want %g", name, l, j, emb[r*s.Hidden+j], v)
						}
					}
				}
				for j, v := range want {
					if math.Abs(v-got[r*len(want)+j]) > 2e-4*max(1, math.Abs(v)) {
						t.Fatalf("%s, %d positions, row %d: output %d is %g, want %g", name, l, r, j, got[r*len(want)+j], v)
					}
				}
			}
			// Rows for themselves, bit for bit.
			if !s.Head {
				one := make([]float64, l*s.Categories)
				for r := range 3 {
					part := Input{Rows: 1, L: l, X: in.X[r*l*s.Inputs : (r+1)*l*s.Inputs], Alpha: in.Alpha[r : r+1]}
					if s.conditional() {
						part.Class = in.Class[r : r+1]
					}
					if err := n.Logits(context.Background(), one, part); err != nil {
						t.Fatal(err)
					}
					if !slices.Equal(one, got[r*l*s.Categories:(r+1)*l*s.Categories]) {
						t.Errorf("%s, %d positions: row %d depends on its batch", name, l, r)
					}
				}
			}
		}
	}
}

// TestGradients compares the gradient of the loss by every tensor, along a random direction, and by the input, with
// differences of the loss computed in float64 from the description.
func TestGradients(t *testing.T) {
	pool := kernels.NewPool(kernels.Detect(), 1)
	defer pool.Close()
	for name, s := range shapes {
		s.Hidden = 8
		w := lively(s, 7)
		in, want := example(s, 3, 21)
		loss := func(w Weights, in Input) float64 {
			sum := 0.0
			for r := range in.Rows {
				out, _, logits := plain(s, w, in, r)
				if s.Head {
					out = [][]float64{logits}
				}
				for p, row := range out {
					top, z := slices.Max(row), 0.0
					for _, v := range row {
						z += math.Exp(v - top)
					}
					sum += top + math.Log(z) - row[want[r*len(out)+p]]
				}
			}
			return sum / float64(len(want))
		}
		grads := Weights{}
		for k, v := range w {
			grads[k] = make([]float32, len(v))
		}
		n := NewNet(s, w, pool)
		var g gradients
		got, err := n.learn(&g, Training{Part: func(int, int) (Batch, error) { return Batch{in, want}, nil }}, 0, 0, grads)
		if err != nil {
			t.Fatal(err)
		}
		if l := loss(w, in); math.Abs(got-l) > 1e-4 {
			t.Errorf("%s: loss %g, want %g", name, got, l)
		}
		r := rand.New(rand.NewPCG(1, 1))
		for _, p := range s.params() {
			if p.fan < 0 || p.name == "time_embedder.0.W" {
				continue
			}
			// Along the gradient and a random direction of half its length.
			dir, slope, norm := make([]float32, p.size()), 0.0, 0.0
			for _, v := range grads[p.name] {
				norm += float64(v) * float64(v)
			}
			norm = math.Sqrt(norm)
			for i := range dir {
				dir[i] = grads[p.name][i]/float32(norm+1e-9) + float32(0.5*r.NormFloat64()/math.Sqrt(float64(len(dir))))
				slope += float64(dir[i]) * float64(grads[p.name][i])
			}
			const h = 1e-5
			moved := func(by float32) float64 {
				v := Weights{}
				for k, x := range w {
					v[k] = x
				}
				v[p.name] = slices.Clone(w[p.name])
				for i := range dir {
					v[p.name][i] += by * dir[i]
				}
				return loss(v, in)
			}
			diff := (moved(h) - moved(-h)) / (2 * h)
			if math.Abs(diff-slope) > 0.01*norm+1e-5 {
				t.Errorf("%s: %s: slope %g, differences say %g", name, p.name, slope, diff)
			}
		}
		if !s.Head || s.Inputs == 0 {
			continue
		}
		logp, grad := make([]float64, 3), make([]float32, len(in.X))
		if err := n.LogProb(context.Background(), logp, grad, in, want); err != nil {
			t.Fatal(err)
		}
		slope, dir := 0.0, make([]float32, len(in.X))
		for i := range dir {
			dir[i] = float32(0.1 * r.NormFloat64())
			slope += float64(dir[i]) * float64(grad[i])
		}
		moved := func(by float32) float64 {
			v := in
			v.X = slices.Clone(in.X)
			for i := range dir {
				v.X[i] += by * dir[i]
			}
			return -3 * loss(w, v)
		}
		if diff := (moved(1e-3) - moved(-1e-3)) / 2e-3; math.Abs(diff-slope) > 0.01*math.Abs(diff)+1e-4 {
			t.Errorf("%s: slope by the input %g, differences say %g", name, slope, diff)
		}
	}
}

// TestTrainingIsReproducible: the same bits on one worker and on two, and the loss falls.
func TestTrainingIsReproducible(t *testing.T) {
	s := Shape{Categories: 4, Inputs: 8, Hidden: 16, Stacks: 1, Classes: 4}
	run := func(workers int) (Weights, []float64) {
		w := NewWeights(s, 1, 0.25)
		var losses []float64
		err := Train(context.Background(), s, w, Training{Steps: 60, Parts: 3, Rate: 5e-3, WarmUp: 5, Decay: 0.9,
			Part:     func(step, part int) (Batch, error) { return Flow(s, 4, 40, 11, step, part), nil },
			Progress: func(_ int, l float64) { losses = append(losses, l) }}, kernels.Detect(), workers)
		if err != nil {
			t.Fatal(err)
		}
		return w, losses
	}
	a, losses := run(1)
	b, _ := run(2)
	for name := range a {
		if !slices.Equal(a[name], b[name]) {
			t.Errorf("%s depends on the number of workers", name)
		}
	}
	if first, last := losses[0], (losses[57]+losses[58]+losses[59])/3; !(last < first-0.05) {
		t.Errorf("the loss goes from %.3f to %.3f", first, last)
	}
}

func TestReadAndWrite(t *testing.T) {
	for name, s := range shapes {
		if s.Categories != 4 && s.Head {
			continue
		}
		w := lively(s, 2)
		path := filepath.Join(t.TempDir(), name+".safetensors")
		if err := Write(path, s, w, map[string]string{"a": "b"}); err != nil {
			t.Fatal(err)
		}
		f, err := safetensors.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		got, v, err := Read(f)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got != s {
			t.Errorf("%s: read back as %+v, want %+v", name, got, s)
		}
		for k, x := range w {
			for i := range x {
				if d := math.Abs(float64(x[i] - v[k][i])); d > 1e-3*max(0.1, math.Abs(float64(x[i]))) {
					t.Fatalf("%s: %s[%d] is %g, was %g", name, k, i, v[k][i], x[i])
				}
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// rewrite stores the weights in float32 with a prefix, changed by f.
func rewrite(t *testing.T, s Shape, prefix string, f func([]safetensors.Tensor, Weights) []safetensors.Tensor) string {
	t.Helper()
	w := lively(s, 2)
	var list []safetensors.Tensor
	values := Weights{}
	for _, p := range s.params() {
		if p.fan >= 0 {
			list = append(list, safetensors.Tensor{Name: prefix + p.name, DType: safetensors.F32, Shape: p.shape})
			values[prefix+p.name] = w[p.name]
		}
	}
	if f != nil {
		list = f(list, values)
	}
	path := filepath.Join(t.TempDir(), "w.safetensors")
	o, err := safetensors.Create(path, nil, list)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range list {
		if err := o.Float32(values[x.Name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := o.Commit(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReadRefuses(t *testing.T) {
	s := shapes["denoiser"]
	for name, f := range map[string]func([]safetensors.Tensor, Weights) []safetensors.Tensor{
		"missing": func(l []safetensors.Tensor, _ Weights) []safetensors.Tensor { return l[:len(l)-1] },
		"unknown": func(l []safetensors.Tensor, w Weights) []safetensors.Tensor {
			w["odd"] = []float32{1}
			return append(l, safetensors.Tensor{Name: "odd", DType: safetensors.F32, Shape: []int{1}})
		},
		"shape": func(l []safetensors.Tensor, _ Weights) []safetensors.Tensor {
			for i := range l {
				if l[i].Name == "norms.0.weight" {
					l[i].Shape = []int{4, 4}
				}
			}
			return l
		},
		"nan": func(l []safetensors.Tensor, w Weights) []safetensors.Tensor {
			w["norms.0.weight"][0] = float32(math.NaN())
			return l
		},
	} {
		f, err := safetensors.Open(rewrite(t, s, "", f))
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := Read(f); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
		_ = f.Close()
	}
	f, err := safetensors.Open(rewrite(t, s, "model.", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, _, err := Read(f); err != nil || got != s {
		t.Errorf("a checkpoint with model. in front: %+v, %v", got, err)
	}
	if _, err := os.Stat(f.Path()); err != nil {
		t.Fatal(err)
	}
}
