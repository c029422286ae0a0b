package ort

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"gorgonia.org/tensor"

	"drift/internal/npz"
	"drift/internal/refuse"
	"drift/internal/spec"
	"drift/models"
	"drift/schedules"
)

// Net is an opened network together with its sidecar.
type Net struct {
	*Session
	Sidecar *Sidecar
	Hash    string // of the network and, where it has a table of embeddings, of that
	Shape   []int  // of one row
	Notes   []string

	batch    int // rows of a call, 0 = any
	state    Port
	out      Port
	channels int         // of the output, where it has more than the state
	grad     *Session    // of the gradient, nil for most
	table    [][]float64 // embeddings by class
	code     []int       // shape of one
	classes  int
	labels   []string
}

// OpenNet opens an ONNX file and its sidecar, and compares what the two say. sidecar is nil for the one beside the file.
func (l *Library) OpenNet(ctx context.Context, path string, sidecar *Sidecar, o Options) (*Net, error) {
	f, err := ReadFile(path)
	if err != nil {
		return nil, err
	}
	if err := f.CheckExternal(); err != nil {
		return nil, err
	}
	hash, err := f.Hash()
	if err != nil {
		return nil, err
	}
	if sidecar == nil {
		if sidecar, err = FindSidecar(f, hash); err != nil {
			return nil, err
		}
	}
	n := &Net{Sidecar: sidecar, Hash: hash}
	if err := n.compare(f); err != nil {
		return nil, err
	}
	if n.Session, err = l.Open(ctx, path, o); err != nil {
		return nil, err
	}
	if err := n.openGrad(ctx, o); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// openGrad opens the graph of the gradient, where the sidecar names one.
func (n *Net) openGrad(ctx context.Context, o Options) error {
	v := n.Sidecar.VJP
	if v == nil {
		return nil
	}
	path := filepath.Join(filepath.Dir(n.Sidecar.Path), v.File)
	f, err := ReadFile(path)
	if err != nil {
		return err
	}
	for _, p := range f.Inputs {
		own, ok := n.File.Input(p.Name)
		if p.Name == v.Cotangent {
			own, ok = n.state, true
		}
		if !ok || own.Type != p.Type || len(own.Dims) != len(p.Dims) {
			return refuse.Errorf(path, "its input %s is none of %s, nor the cotangent %s", p, n.path, v.Cotangent)
		}
	}
	if _, ok := f.Input(v.Cotangent); !ok {
		return refuse.Errorf(path, "has no input %s for the cotangent; it has %s", v.Cotangent, f.Ports())
	}
	if _, ok := f.Output(v.Output); !ok {
		return refuse.Errorf(path, "has no output %s; it has %s", v.Output, f.Ports())
	}
	sum, err := f.Hash()
	if err != nil {
		return err
	}
	n.Hash = mix(n.Hash, sum)
	n.grad, err = n.lib.Open(ctx, path, o)
	return err
}

// Close gives back the sessions.
func (n *Net) Close() {
	if n.grad != nil {
		n.grad.Close()
	}
	n.Session.Close()
}

// compare holds the sidecar against the file.
func (n *Net) compare(f *File) error {
	s := n.Sidecar
	wrong := func(format string, args ...any) error {
		return refuse.Errorf(s.Path, "does not fit %s: %s", f.Path, fmt.Sprintf(format, args...))
	}
	var names []string
	for _, p := range f.Inputs {
		names = append(names, p.Name)
		if p.Type.size() == 0 {
			return refuse.Errorf(f.Path, "its input %s is of a type that is not supported", p)
		}
		if !slices.ContainsFunc(s.Inputs, func(i Input) bool { return i.Name == p.Name }) {
			return wrong("the input %s is not described", p)
		}
	}
	for _, i := range s.Inputs {
		p, ok := f.Input(i.Name)
		if !ok {
			return wrong("there is no input %q%s; there is %s", i.Name, spec.Suggest(i.Name, names), portList(f.Inputs))
		}
		if err := n.fit(i, p); err != nil {
			return wrong("%s is no %s: %v", p, i.Is, err)
		}
	}
	var ok bool
	if n.out, ok = f.Output(s.Output); !ok {
		return wrong("there is no output %q; there is %s", s.Output, portList(f.Outputs))
	}
	if s.Features != "" {
		if _, ok := f.Output(s.Features); !ok {
			return wrong("there is no output %q for the features; there is %s", s.Features, portList(f.Outputs))
		}
	}
	if n.out.Type.size() == 0 || n.out.Type.whole() {
		return wrong("the output %s is no number", n.out)
	}
	if n.Shape == nil {
		return wrong("shape is missing, and the graph leaves sizes free: %s", n.state)
	}
	if s.Type == "denoiser" {
		if err := n.fitOutput(); err != nil {
			return wrong("%v", err)
		}
	}
	return n.readTable()
}

// fit compares one input with its description.
func (n *Net) fit(i Input, p Port) error {
	rank := len(p.Dims)
	if len(p.Dims) > 0 && p.Dims[0] >= 0 && i.Is != "constant" {
		if p.Dims[0] == 0 || n.batch > 0 && n.batch != p.Dims[0] {
			return fmt.Errorf("its batch is %d, that of another input %d", p.Dims[0], n.batch)
		}
		n.batch = p.Dims[0]
	}
	switch {
	case i.Is == "state" || i.Is == "picture":
		n.state = p
		n.Shape = slices.Clone(n.Sidecar.Shape)
		if p.Type.whole() {
			return fmt.Errorf("it takes whole numbers")
		}
		if n.Shape == nil && p.Ranks && rank > 1 && !slices.Contains(p.Dims[1:], -1) {
			n.Shape = slices.Clone(p.Dims[1:])
		}
		if p.Ranks && n.Shape != nil {
			if rank != len(n.Shape)+1 && rank != 2 && rank != 3 {
				return fmt.Errorf("rows have the shape %v", n.Shape)
			}
			if rank == len(n.Shape)+1 {
				for k, d := range p.Dims[1:] {
					if d >= 0 && d != n.Shape[k] {
						return fmt.Errorf("rows have the shape %v", n.Shape)
					}
				}
			} else if free := slices.Contains(p.Dims[1:], -1); free || elements(p.Dims[1:]) != elements(n.Shape) {
				return fmt.Errorf("rows have the shape %v", n.Shape)
			}
		}
	case slices.Contains(timeKinds, i.Is):
		if p.Type.whole() {
			n.Notes = append(n.Notes, fmt.Sprintf("its input %s takes whole numbers: times between them are rounded", p.Name))
		}
		if rank == 0 && p.Ranks && n.batch != 1 {
			n.Notes = append(n.Notes, fmt.Sprintf("its input %s is one number for all rows: rows at different times go one by one", p.Name))
		}
		return perRow(p)
	case i.Is == "class":
		n.classes, n.labels = i.Classes, i.Labels
		return perRow(p)
	case i.Is == "scalar":
		n.classes, n.labels = i.Classes, i.Labels
		if p.Type.whole() && i.Range[1]-i.Range[0] != float64(i.Classes-1) {
			return fmt.Errorf("it takes whole numbers")
		}
		return perRow(p)
	case i.Is == "one-hot":
		n.classes, n.labels = i.Classes, i.Labels
		if p.Ranks && (rank != 2 || p.Dims[1] >= 0 && p.Dims[1] != i.Classes) {
			return fmt.Errorf("there are %d classes", i.Classes)
		}
	case i.Is == "constant":
		if n := fixed(p); len(i.Value) > 1 && n >= 0 && n != len(i.Value) {
			return fmt.Errorf("there are %d values", len(i.Value))
		}
	}
	return nil
}

// fixed is the number of values of a row where all sizes are known, else -1.
func fixed(p Port) int {
	if !p.Ranks || len(p.Dims) > 0 && slices.Contains(p.Dims[1:], -1) {
		return -1
	}
	if len(p.Dims) == 0 {
		return 1
	}
	return elements(p.Dims[1:])
}

// perRow wants one number per row: a scalar, (batch) or (batch, 1, ...).
func perRow(p Port) error {
	if p.Ranks && (len(p.Dims) > 4 || fixed(p) != 1) {
		return fmt.Errorf("it must be one number per row")
	}
	return nil
}

// fitOutput compares the output with the state: the same, or twice the channels.
func (n *Net) fitOutput() error {
	n.channels = n.Shape[0]
	if !n.out.Ranks || n.state.Ranks && len(n.state.Dims) != len(n.out.Dims) {
		return nil // looked at when it comes
	}
	for k, d := range n.out.Dims {
		switch {
		case k == 0 || d < 0 || len(n.out.Dims) != len(n.Shape)+1:
		case k == 1 && len(n.Shape) == 3 && d == 2*n.Shape[0]:
			n.channels = d // the variance, learned
		case d != n.Shape[k-1]:
			return fmt.Errorf("the output %s is no prediction for rows of shape %v", n.out, n.Shape)
		}
	}
	return nil
}

// readTable reads the embeddings of classes.
func (n *Net) readTable() error {
	i := n.Sidecar.of("embedding")
	if i == nil {
		return nil
	}
	path := filepath.Join(filepath.Dir(n.Sidecar.Path), i.Table)
	shape, data, err := tableOf(path)
	if err != nil {
		return err
	}
	if len(shape) < 2 || shape[0] < 1 {
		return refuse.Errorf(path, "an array of shape %v is no list of embeddings", shape)
	}
	n.code = shape[1:]
	w := elements(n.code)
	for k := range shape[0] {
		n.table = append(n.table, data[k*w:(k+1)*w])
	}
	n.classes, n.labels = shape[0], i.Labels
	if i.Null != nil {
		k := *i.Null
		if k != math.Trunc(k) || k < 0 || int(k) >= shape[0] {
			return refuse.Errorf(n.Sidecar.Path, "inputs: %q: null is %g of %d entries", i.Name, k, shape[0])
		}
		if int(k) == n.classes-1 {
			n.classes--
		}
	}
	if len(n.labels) > 0 && len(n.labels) != n.classes {
		return refuse.Errorf(n.Sidecar.Path, "inputs: %q: %d labels for %d classes", i.Name, len(n.labels), n.classes)
	}
	sum, err := (&File{Path: path}).Hash()
	if err != nil {
		return err
	}
	n.Hash = mix(n.Hash, sum)
	return nil
}

func tableOf(path string) ([]int, []float64, error) {
	arrays, err := npz.ReadAll(path)
	if err != nil {
		return nil, nil, err
	}
	a := arrays["codes"]
	if a == nil && len(arrays) == 1 {
		for _, only := range arrays {
			a = only
		}
	}
	if a == nil {
		return nil, nil, refuse.Errorf(path, "has no array codes")
	}
	v, err := a.Float64()
	if err != nil {
		return nil, nil, refuse.Errorf(path, "%v", err)
	}
	return a.Shape, v, nil
}

// Rows is how many rows a call takes, 0 = any number.
func (n *Net) Rows() int { return n.batch }

// DType names the arithmetic at the network's door: f32, f16 or f64.
func (n *Net) DType() string {
	return map[Type]string{Float32: "f32", Float16: "f16", Float64: "f64"}[n.state.Type]
}

// Runtime names the library, for manifests: results are its, to the last bit.
func (n *Net) Runtime() string { return "onnxruntime " + n.lib.version }

// call makes one call of a session for rows of a batch: fill gives the values of an input for row k.
func (n *Net) call(ctx context.Context, s *Session, inputs []Input, rows int, fill func(i Input, k int) ([]float64, error), want ...string) ([]Tensor, error) {
	size := rows
	if n.batch > 0 {
		size = n.batch
	}
	in := map[string]Tensor{}
	for _, i := range inputs {
		p, ok := s.File.Input(i.Name)
		if !ok { // a gradient may not depend on it
			continue
		}
		var values []float64
		if len(p.Dims) == 0 && p.Ranks {
			v, err := fill(i, 0)
			if err != nil {
				return nil, err
			}
			values = v[:1]
		} else {
			for k := range size {
				v, err := fill(i, min(k, rows-1)) // rows beyond the last repeat it
				if err != nil {
					return nil, err
				}
				if w := fixed(p); w > 1 && len(v) == 1 {
					v = slices.Repeat(v, w)
				}
				values = append(values, v...)
			}
		}
		shape, err := n.shape(i, p, size, len(values))
		if err != nil {
			return nil, err
		}
		if in[i.Name], err = NewTensor(p.Type, shape, values); err != nil {
			return nil, fmt.Errorf("ort: %s: input %s: %w", n.path, i.Name, err)
		}
	}
	return s.Run(ctx, in, want...)
}

// shape is the shape of a tensor for a port.
func (n *Net) shape(i Input, p Port, rows, values int) ([]int, error) {
	if len(p.Dims) == 0 && p.Ranks {
		return nil, nil
	}
	var row []int
	switch {
	case i.Is == "embedding" && (!p.Ranks || len(p.Dims) == len(n.code)+1):
		row = n.code
	case (i.Is == "state" || i.Is == "picture" || i.Is == "cotangent") && (!p.Ranks || len(p.Dims) == len(n.Shape)+1):
		row = n.Shape
	case p.Ranks && fixed(p) >= 0:
		row = p.Dims[1:]
	case p.Ranks && len(p.Dims) == 2:
		row = []int{values / rows}
	default:
		return nil, fmt.Errorf("ort: %s: input %s: %d values per row leave its shape open", n.path, p, values/rows)
	}
	return append([]int{rows}, row...), nil
}

// timeOf is what a network is told of a node.
func (i Input) timeOf(p schedules.Gaussian, n schedules.Node) (float64, error) {
	v := 0.0
	switch i.Is {
	case "time":
		v = n.T
		if _, discrete := p.(interface{ Len() int }); discrete && math.Abs(v-math.Round(v)) < 1e-9 {
			v = math.Round(v) // a listed timestep that came back from its noise level
		}
	case "sigma":
		v = n.Sigma
	case "ratio":
		v = n.Ratio()
	case "log-ratio":
		v = math.Log(n.Ratio())
	case "log-snr":
		v = 2 * n.Lambda()
	}
	v = i.Scale*v + i.Offset
	if v-v != 0 {
		return 0, fmt.Errorf("ort: the input %s (%s) is not finite at sigma %g, alpha %g: end the grid before (--final min)", i.Name, i.Is, n.Sigma, n.Alpha)
	}
	return v, nil
}

// condOf is what a network is told of a class.
func (n *Net) condOf(i Input, class int) ([]float64, error) {
	if class == models.NoClass {
		switch {
		case i.Is == "one-hot":
			return make([]float64, i.Classes), nil
		case i.Null == nil:
			return nil, fmt.Errorf("ort: %s has no value for \"no class\": give a class from 0 to %d", n.path, n.classes-1)
		case i.Is == "embedding":
			return n.table[int(*i.Null)], nil
		}
		return []float64{*i.Null}, nil
	}
	if class < 0 || class >= n.classes {
		return nil, fmt.Errorf("ort: no class %d; classes run from 0 to %d", class, n.classes-1)
	}
	switch i.Is {
	case "one-hot":
		v := make([]float64, i.Classes)
		v[class] = 1
		return v, nil
	case "embedding":
		return n.table[class], nil
	case "scalar":
		return []float64{i.Range[0] + (i.Range[1]-i.Range[0])*float64(class)/float64(max(i.Classes-1, 1))}, nil
	}
	return []float64{float64(class)}, nil
}

// Denoiser is a Net as a models.Denoiser. It has no gradients. A batch goes through in one call unless the graph says how
// many rows it takes, or takes one time for all rows and these have several.
type Denoiser struct {
	Net   *Net
	About models.Info
}

// Denoiser makes the Denoiser of a network whose sidecar is of one.
func (n *Net) Denoiser(name string) (*Denoiser, error) {
	s := n.Sidecar
	if s.Type != "denoiser" {
		return nil, refuse.Errorf(n.path, "its sidecar says that it is a %s, no denoiser", s.Type)
	}
	return &Denoiser{Net: n, About: models.Info{Name: name, Hash: n.Hash, Shape: slices.Clone(n.Shape), Classes: n.classes, Labels: n.labels, DType: n.DType(),
		Runtime: n.Runtime(), Params: n.File.Params}}, nil
}

// Process implements models.Denoiser.
func (d *Denoiser) Process() schedules.Process { return d.Net.Sidecar.Process }

// Info implements models.Described.
func (d *Denoiser) Info() models.Info { return d.About }

// Predict implements models.Denoiser.
func (d *Denoiser) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	n := d.Net
	if s := q.X.Shape(); !slices.Equal([]int(s[1:]), n.Shape) {
		return fmt.Errorf("ort: rows of shape %v, %s takes %v", s[1:], n.path, n.Shape)
	}
	if q.Hooks != nil && (len(q.Hooks.IdentityAttention) > 0 || len(q.Hooks.SkipLayers) > 0) {
		return fmt.Errorf("ort: %s: the layers of an ONNX network cannot be changed (perturbed attention, skipped layers)", n.path)
	}
	x, out := p.Fit(q.X, n.Sidecar.Prediction)
	var extra []float64
	if n.channels == 2*n.Shape[0] && len(n.Shape) == 3 {
		p.Extra = models.New(q.X.Shape()...)
		extra = models.Data(p.Extra)
	}
	w := elements(n.Shape)
	for at := 0; at < len(q.At); {
		k := n.together(q.At[at:])
		if err := d.some(ctx, q, at, k, x[at*w:(at+k)*w], out[at*w:(at+k)*w], extra); err != nil {
			return err
		}
		at += k
	}
	return nil
}

// together is how many of the rows go into one call.
func (n *Net) together(at []schedules.Node) int {
	k := len(at)
	if n.batch > 0 {
		k = min(k, n.batch)
	}
	if i := n.Sidecar.of(timeKinds...); i != nil {
		if p, _ := n.File.Input(i.Name); p.Ranks && len(p.Dims) == 0 {
			for j := range k {
				if at[j] != at[0] {
					return j
				}
			}
		}
	}
	return k
}

// fill gives the inputs of rows at, at+1, ... of a query, whose states are x.
func (d *Denoiser) fill(q *models.Query, at int, x []float64, edm schedules.Precondition) func(i Input, k int) ([]float64, error) {
	n, s := d.Net, d.Net.Sidecar
	w := elements(n.Shape)
	return func(i Input, k int) ([]float64, error) {
		node := q.At[at+k]
		switch i.Is {
		case "state":
			row := x[k*w : (k+1)*w]
			if edm == nil {
				return row, nil
			}
			in := edm(node.Ratio()).In / node.Alpha
			scaled := make([]float64, w)
			for j, v := range row {
				scaled[j] = in * v
			}
			return scaled, nil
		case "constant":
			return i.Value, nil
		case "class", "one-hot", "scalar", "embedding":
			return n.condOf(i, q.Cond.Class(at+k))
		}
		v, err := i.timeOf(s.Process, node)
		return []float64{v}, err
	}
}

// edm is the preconditioning of an inner network, nil of others.
func (d *Denoiser) edm() schedules.Precondition {
	if s := d.Net.Sidecar; s.SigmaData > 0 {
		return schedules.PreconditionEDM(s.SigmaData)
	}
	return nil
}

// some answers rows at, at+1, ... of a query.
func (d *Denoiser) some(ctx context.Context, q *models.Query, at, rows int, x, out, extra []float64) error {
	n, s := d.Net, d.Net.Sidecar
	w := elements(n.Shape)
	edm := d.edm()
	fill := d.fill(q, at, x, edm)
	answer, err := n.call(ctx, n.Session, s.Inputs, rows, fill, s.Output)
	if err != nil {
		return err
	}
	v := answer[0].Float64()
	size := max(rows, n.batch)
	ow := w * n.channels / n.Shape[0]
	if len(v) != size*ow {
		return fmt.Errorf("ort: %s: its output has the shape %v, %d rows of %v are wanted", n.path, answer[0].Shape, size, n.Shape)
	}
	for k := range rows {
		row := v[k*ow : (k+1)*ow]
		copy(out[k*w:(k+1)*w], row)
		if extra != nil {
			copy(extra[(at+k)*w:(at+k+1)*w], row[w:])
		}
		if edm != nil {
			node := q.At[at+k]
			c := edm(node.Ratio())
			for j, f := range row[:w] {
				out[k*w+j] = c.Skip*x[k*w+j]/node.Alpha + c.Out*f
			}
		}
	}
	return nil
}

// WithVJP is a Denoiser whose sidecar names a graph of its gradient (models.VJP).
type WithVJP struct{ *Denoiser }

// Denoised is d with the gradient that its sidecar names, if it does.
func (d *Denoiser) Denoised() models.Denoiser {
	if d.Net.grad == nil {
		return d
	}
	return WithVJP{d}
}

// VJP implements models.VJP.
func (d WithVJP) VJP(ctx context.Context, q *models.Query, p *models.Pred, cotangent, grad *tensor.Dense) error {
	if err := d.Predict(ctx, q, p); err != nil {
		return err
	}
	n, s := d.Net, d.Net.Sidecar
	w := elements(n.Shape)
	x, cot, out := models.Data(q.X), models.Data(cotangent), models.Data(grad)
	edm := d.edm()
	inputs := append(slices.Clone(s.Inputs), Input{Name: s.VJP.Cotangent, Is: "cotangent"})
	for at := 0; at < len(q.At); {
		rows := n.together(q.At[at:])
		fill := d.fill(q, at, x[at*w:], edm)
		answer, err := n.call(ctx, n.grad, inputs, rows, func(i Input, k int) ([]float64, error) {
			if i.Is == "cotangent" {
				return cot[(at+k)*w : (at+k+1)*w], nil
			}
			return fill(i, k)
		}, s.VJP.Output)
		if err != nil {
			return err
		}
		v := answer[0].Float64()
		if len(v) != max(rows, n.batch)*w {
			return fmt.Errorf("ort: %s: its output has the shape %v, %d rows of %v are wanted", n.grad.path, answer[0].Shape, max(rows, n.batch), n.Shape)
		}
		copy(out[at*w:(at+rows)*w], v)
		for k := range rows {
			if edm == nil {
				break
			}
			node := q.At[at+k] // out = Skip x/alpha + Out F(In x/alpha)
			c := edm(node.Ratio())
			for j := (at + k) * w; j < (at+k+1)*w; j++ {
				out[j] = (c.Skip*cot[j] + c.Out*c.In*out[j]) / node.Alpha
			}
		}
		at += rows
	}
	return nil
}

// Scale is how the data of the network lies to pictures: it implements the codec of a run (samplers.Codec) by
// data = lo + (hi - lo) (picture + 1)/2.
type Scale struct{ Lo, Hi float64 }

// Decode makes pictures of data.
func (s Scale) Decode(_ context.Context, z *tensor.Dense) (*tensor.Dense, error) {
	return mapped(z, func(v float64) float64 { return 2*(v-s.Lo)/(s.Hi-s.Lo) - 1 }), nil
}

// Encode makes data of pictures.
func (s Scale) Encode(_ context.Context, x *tensor.Dense) (*tensor.Dense, error) {
	return mapped(x, func(v float64) float64 { return s.Lo + (s.Hi-s.Lo)*(v+1)/2 }), nil
}

func mapped(x *tensor.Dense, f func(float64) float64) *tensor.Dense {
	out := models.New(x.Shape()...)
	for i, v := range models.Data(x) {
		models.Data(out)[i] = f(v)
	}
	return out
}

// Scale is nil where the network's data has the range of pictures.
func (n *Net) Scale() *Scale {
	if n.Sidecar.Range == [2]float64{-1, 1} {
		return nil
	}
	return &Scale{n.Sidecar.Range[0], n.Sidecar.Range[1]}
}

// Describe is the network in words, for people.
func (n *Net) Describe() string {
	var in []string
	for _, i := range n.Sidecar.Inputs {
		in = append(in, i.Name+" ("+i.Is+")")
	}
	return fmt.Sprintf("%s of shape %v, inputs %s, output %s", n.Sidecar.Type, n.Shape, strings.Join(in, ", "), n.Sidecar.Output)
}
