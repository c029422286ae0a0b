package ort

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"drift/internal/refuse"
	"drift/internal/spec"
	"drift/internal/strictjson"
	"drift/schedules"
)

// Sidecar is what an ONNX file does not say of itself: NAME.drift.json beside NAME.onnx, a JSON object.
//
// Of a denoiser:
//
//	{"type": "denoiser",
//	 "process": {"type": "edm", "sigma_min": 0.002, "sigma_max": 80},
//	 "prediction": "x0", "shape": [1, 128, 128], "range": [-1, 1],
//	 "inputs": {"noisy": {"is": "state"}, "sigma": {"is": "sigma"},
//	            "difficulty": {"is": "scalar", "classes": 100, "range": [0, 1]}},
//	 "output": "denoised",
//	 "sampler": "lcm", "schedule": "karras", "steps": 1}
//
// process is what schedules.ParseProcess reads, prediction what the output is: eps, x0, v, velocity, score, or edm, the
// inner network F of Karras et al. 2022 with sigma_data (0.5),
//
//	E[x0|x] = c_skip x + c_out F(c_in x)
//
// shape is that of one row, range the values that the network's data have where pictures have [-1, 1]: a picture p is the
// data lo + (hi - lo) (p + 1)/2. inputs says of every input of the graph what it is:
//
//	{"is": "state"}                          the rows (needed, once)
//	{"is": "time", "scale": 1, "offset": 0}  scale times the process's own time plus offset; likewise sigma (of the node),
//	                                         ratio (sigma/alpha), log-ratio (its logarithm) and log-snr (-2 log-ratio)
//	{"is": "class", "classes": 10, "null": 10, "labels": [...]}   a whole number per row; null is the one of no class
//	{"is": "one-hot", "classes": 10}         a row of classes numbers, all 0 without a class
//	{"is": "scalar", "classes": 100, "range": [0, 1], "null": -1} a number per row: class k is lo + (hi-lo) k/(classes-1)
//	{"is": "embedding", "table": "FILE.npz", "null": 3}  class k is entry k of the array in a file beside the sidecar
//	{"is": "constant", "value": [1, 2]}      the same for every row (of a scalar input: for the call)
//
// Of a classifier, a scorer or a network of features, whose input is a picture:
//
//	{"type": "classifier", "shape": [3, 224, 224], "range": [0, 1], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
//	 "inputs": {"image": {"is": "picture"}}, "output": "logits", "gives": "logits", "features": "pooled", "labels": [...]}
//
// The network sees (v - mean)/std of the values v in range, channel by channel. gives is logits, log-probabilities or
// probabilities; a scorer ("type": "scorer") has one number per picture as output, a network of features ("type":
// "features") a vector. With a process and inputs of a time a classifier knows noise.
//
// A denoiser may have its gradient in a second graph, exported for it: "vjp": {"file": "NAME.vjp.onnx", "cotangent":
// "cotangent", "output": "grad"} names a file beside the sidecar that takes the same inputs and a cotangent of the
// output's prediction, and gives the gradient of sum(output * cotangent) by the state.
//
// sha256, if given, is the hash of the network the sidecar belongs to (File.Hash).
type Sidecar struct {
	Path       string
	Type       string // denoiser, classifier, scorer, features
	Process    schedules.Gaussian
	Prediction schedules.Kind
	SigmaData  float64 // of prediction edm; 0 = another prediction
	Shape      []int
	Range      [2]float64
	Mean, Std  []float64
	Inputs     []Input // in the order of the file
	Output     string
	Features   string // output with features of a classifier, "" = none
	Gives      string // logits, log-probabilities, probabilities
	Labels     []string
	Sampler    string
	Schedule   string
	Steps      int
	VJP        *VJP
	SHA256     string
}

// VJP is the graph of a denoiser's gradient.
type VJP struct{ File, Cotangent, Output string }

// Input says what an input of a graph is.
type Input struct {
	Name          string
	Is            string
	Scale, Offset float64
	Classes       int
	Labels        []string
	Range         [2]float64
	Null          *float64
	Table         string
	Value         []float64
}

var (
	sidecarTypes = []string{"denoiser", "classifier", "scorer", "features"}
	timeKinds    = []string{"time", "sigma", "ratio", "log-ratio", "log-snr"}
	condKinds    = []string{"class", "one-hot", "scalar", "embedding"}
	inputKinds   = slices.Concat([]string{"state", "picture"}, timeKinds, condKinds, []string{"constant"})
	givesKinds   = []string{"logits", "log-probabilities", "probabilities"}
)

const sidecarEnd = ".drift.json"

// SidecarPaths are the files in which the sidecar of an ONNX file may lie.
func SidecarPaths(onnx string) []string {
	return []string{strings.TrimSuffix(onnx, filepath.Ext(onnx)) + sidecarEnd, onnx + sidecarEnd}
}

// SidecarMissingError says that a network has no sidecar, what it takes, and how one may look.
type SidecarMissingError struct {
	Path     string // the sidecar that is not there
	File     *File
	Template string // a sidecar to fill in
}

func (e *SidecarMissingError) Error() string {
	return fmt.Sprintf("ort: %s does not say what its inputs mean: describe it in %s; its inputs: %s; its outputs: %s", e.File.Path, filepath.Base(e.Path), portList(e.File.Inputs), portList(e.File.Outputs))
}

// FindSidecar reads the sidecar beside an ONNX file, or the one that drift carries for the file's hash.
func FindSidecar(f *File, hash string) (*Sidecar, error) {
	for _, path := range SidecarPaths(f.Path) {
		s, err := ReadSidecar(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && s.SHA256 != "" && hash != "" && s.SHA256 != hash {
			return nil, refuse.Errorf(path, "describes a network with the hash %.12s..., %s has %.12s...", s.SHA256, f.Path, hash)
		}
		return s, err
	}
	if s := known(hash); s != nil {
		return s, nil
	}
	return nil, &SidecarMissingError{Path: SidecarPaths(f.Path)[0], File: f, Template: f.Template()}
}

// ReadSidecar reads the sidecar at path.
func ReadSidecar(path string) (*Sidecar, error) {
	o, err := strictjson.ReadFile(path, 4<<20, strictjson.Limits{})
	if err != nil {
		return nil, err
	}
	return sidecarOf(path, o)
}

// ParseSidecar reads the text of a sidecar; path names it in errors.
func ParseSidecar(path string, text []byte) (*Sidecar, error) {
	o, err := strictjson.Parse(path, text, strictjson.Limits{})
	if err != nil {
		return nil, err
	}
	return sidecarOf(path, o)
}

func sidecarOf(path string, o *strictjson.Object) (*Sidecar, error) {
	r := &fields{path: path, o: o}
	s := &Sidecar{Path: path, Type: r.choice("type", "", sidecarTypes...), SHA256: strings.ToLower(r.text("sha256"))}
	if p, ok := r.object("process"); ok && r.err == nil {
		if s.Process, r.err = schedules.ProcessOf(path, p); r.err != nil {
			return nil, r.err
		}
	}
	s.Shape = r.wholes("shape")
	s.Range = r.span("range", [2]float64{-1, 1})
	s.Output = r.text("output")
	switch {
	case s.Output == "" && !r.has("output"):
		r.fail("output is missing: the name of the graph's output")
	case s.Type == "denoiser":
		s.denoiser(r)
	default:
		s.judge(r)
	}
	s.inputs(r)
	r.end()
	if r.err != nil {
		return nil, r.err
	}
	if err := s.check(); err != nil {
		return nil, refuse.Errorf(path, "%v", err)
	}
	return s, nil
}

// denoiser reads what only a denoiser has.
func (s *Sidecar) denoiser(r *fields) {
	if s.Process == nil {
		r.fail("process is missing: one of the types %s, such as {\"type\": \"edm\"}", strings.Join(schedules.ProcessTypes(), ", "))
	}
	switch p := r.text("prediction"); {
	case p == "edm":
		s.Prediction, s.SigmaData = schedules.X0, r.number("sigma_data", 0.5)
		if r.err == nil && !(s.SigmaData > 0) {
			r.fail("sigma_data: want more than 0")
		}
	case p == "":
		r.fail("prediction is missing: eps, x0, v, velocity, score or edm")
	default:
		k, err := schedules.ParseKind(p)
		if err != nil || k > schedules.Score {
			r.fail("prediction: unknown %q%s", p, spec.Suggest(p, []string{"eps", "x0", "v", "velocity", "score", "edm"}))
		}
		s.Prediction = k
	}
	if o, ok := r.object("vjp"); ok {
		f := &fields{path: r.path, o: o, where: "vjp: "}
		s.VJP = &VJP{f.text("file"), f.text("cotangent"), f.text("output")}
		if !filepath.IsLocal(s.VJP.File) || s.VJP.Cotangent == "" || s.VJP.Output == "" {
			f.fail("want file (an .onnx file beside the sidecar), cotangent and output (names of its input and output)")
		}
		f.end()
		if f.err != nil && r.err == nil {
			r.err = f.err
		}
	}
	s.Sampler, s.Schedule, s.Steps = r.text("sampler"), r.text("schedule"), r.whole("steps", 0)
	if r.err == nil && (s.Steps < 0 || s.Steps > 1<<20) {
		r.fail("steps: want 1 or more")
	}
}

// judge reads what only networks of pictures have.
func (s *Sidecar) judge(r *fields) {
	s.Mean, s.Std = r.numbers("mean"), r.numbers("std")
	s.Labels = r.texts("labels")
	if s.Type == "classifier" {
		s.Gives = r.choice("gives", "logits", givesKinds...)
		s.Features = r.text("features")
	}
}

func (s *Sidecar) inputs(r *fields) {
	o, ok := r.object("inputs")
	if !ok {
		r.fail("inputs is missing: an object with every input of the graph")
		return
	}
	for _, name := range o.Keys() {
		v, _ := o.Get(name)
		in, ok := v.(*strictjson.Object)
		if !ok {
			r.fail("inputs: %q: want an object such as {\"is\": \"state\"}", name)
			return
		}
		f := &fields{path: r.path, o: in, where: fmt.Sprintf("inputs: %q: ", name)}
		i := Input{Name: name, Is: f.choice("is", "", inputKinds...), Scale: 1}
		switch {
		case slices.Contains(timeKinds, i.Is):
			i.Scale, i.Offset = f.number("scale", 1), f.number("offset", 0)
		case i.Is == "class", i.Is == "one-hot", i.Is == "scalar":
			i.Classes = f.whole("classes", 0)
			if f.err == nil && (i.Classes < 1 || i.Classes > 1<<20) {
				f.fail("classes: want their number, 1 or more")
			}
			i.Labels = f.texts("labels")
			if i.Is != "one-hot" {
				i.Null = f.maybe("null")
			}
			if i.Is == "scalar" {
				i.Range = f.span("range", [2]float64{0, 1})
			}
			if i.Is == "class" && i.Null != nil && (*i.Null != math.Trunc(*i.Null) || math.Abs(*i.Null) > 1<<30) {
				f.fail("null: want a whole number")
			}
		case i.Is == "embedding":
			i.Table, i.Null, i.Labels = f.text("table"), f.maybe("null"), f.texts("labels")
			if !filepath.IsLocal(i.Table) {
				f.fail("table: want the name of a .npz file beside the sidecar")
			}
		case i.Is == "constant":
			i.Value = f.numbers("value")
			if len(i.Value) == 0 {
				f.fail("value is missing: a number or a list of them")
			}
		}
		f.end()
		if f.err != nil && r.err == nil {
			r.err = f.err
		}
		s.Inputs = append(s.Inputs, i)
	}
}

// check looks at the whole.
func (s *Sidecar) check() error {
	count := map[string]int{}
	conds := 0
	for _, i := range s.Inputs {
		count[i.Is]++
		if slices.Contains(condKinds, i.Is) {
			conds++
		}
		if len(i.Labels) > 0 && i.Is != "embedding" && len(i.Labels) != i.Classes {
			return fmt.Errorf("inputs: %q: %d labels for %d classes", i.Name, len(i.Labels), i.Classes)
		}
		if s.Process == nil && slices.Contains(timeKinds, i.Is) {
			return fmt.Errorf("inputs: %q: a %s means nothing without a process", i.Name, i.Is)
		}
	}
	main, other := "picture", "state"
	if s.Type == "denoiser" {
		main, other = other, main
	}
	switch {
	case count[main] != 1:
		return fmt.Errorf("inputs: one of them must be the %s of a %s, {\"is\": %q}", main, s.Type, main)
	case count[other] > 0:
		return fmt.Errorf("inputs: a %s has no %s", s.Type, other)
	case s.Type != "denoiser" && conds > 0:
		return fmt.Errorf("inputs: a %s takes no class", s.Type)
	case conds > 1:
		return errors.New("inputs: more than one of them stands for the class")
	case len(s.Mean) != len(s.Std):
		return errors.New("mean and std: want both, a number per channel")
	case len(s.Mean) > 1 && len(s.Shape) > 0 && len(s.Mean) != s.Shape[0]:
		return fmt.Errorf("mean: %d numbers for %d channels", len(s.Mean), s.Shape[0])
	case slices.ContainsFunc(s.Std, func(v float64) bool { return !(v > 0) }):
		return errors.New("std: want more than 0")
	case s.SHA256 != "" && len(s.SHA256) != 64:
		return errors.New("sha256: want 64 hexadecimal digits")
	}
	n := 1
	for _, d := range s.Shape {
		if d < 1 || d > 1<<24 || n > 1<<28/d {
			return fmt.Errorf("shape: %v is no shape of a row", s.Shape)
		}
		n *= d
	}
	return nil
}

// of finds the input that is one of the kinds.
func (s *Sidecar) of(kinds ...string) *Input {
	for i := range s.Inputs {
		if slices.Contains(kinds, s.Inputs[i].Is) {
			return &s.Inputs[i]
		}
	}
	return nil
}

// Template is a sidecar for a file, guessed from names and shapes, to be filled in.
func (f *File) Template() string {
	var inputs []string
	state := slices.IndexFunc(f.Inputs, func(p Port) bool { return len(p.Dims) >= 3 })
	if state < 0 {
		state = 0
	}
	cond := false // there is one already
	for i, p := range f.Inputs {
		is := `"constant", "value": 0`
		low := strings.ToLower(p.Name)
		switch {
		case i == state:
			is = `"state"`
		case strings.Contains(low, "sigma"):
			is = `"sigma"`
		case strings.Contains(low, "time"), low == "t":
			is = `"time"`
		case cond:
		case strings.Contains(low, "class"), strings.Contains(low, "label"), p.Type.whole():
			is = `"class", "classes": 10`
		case len(p.Dims) >= 2:
			is = `"embedding", "table": "codes.npz"`
		case len(p.Dims) == 1:
			is = `"scalar", "classes": 11, "range": [0, 1]`
		}
		cond = cond || strings.Contains(is, "class") || strings.Contains(is, "table")
		name, _ := json.Marshal(p.Name) // a text
		inputs = append(inputs, fmt.Sprintf("%s: {\"is\": %s}", name, is))
	}
	shape := "[1, 32, 32]"
	if d := f.Inputs[state].Dims; len(d) > 1 && !slices.Contains(d[1:], -1) {
		shape = strings.ReplaceAll(fmt.Sprint(d[1:]), " ", ", ")
	}
	output, _ := json.Marshal(f.Outputs[0].Name)
	return fmt.Sprintf(`{"type": "denoiser", "process": {"type": "vp-discrete"}, "prediction": "eps", "shape": %s, "range": [-1, 1], "inputs": {%s}, "output": %s}`,
		shape, strings.Join(inputs, ", "), output)
}

// fields reads the keys of an object and keeps the first thing that is wrong.
type fields struct {
	path, where string
	o           *strictjson.Object
	used        []string
	err         error
}

func (r *fields) fail(format string, args ...any) {
	if r.err == nil {
		r.err = refuse.Errorf(r.path, "%s%s", r.where, fmt.Sprintf(format, args...))
	}
}

func (r *fields) get(key string) (any, bool) {
	r.used = append(r.used, key)
	return r.o.Get(key)
}

func (r *fields) has(key string) bool {
	_, ok := r.o.Get(key)
	return ok
}

// end refuses keys that nobody asked for.
func (r *fields) end() {
	for _, k := range r.o.Keys() {
		if !slices.Contains(r.used, k) {
			r.fail("there is no %q here%s", k, spec.Suggest(k, r.used))
		}
	}
}

func (r *fields) text(key string) string {
	v, ok := r.get(key)
	if !ok {
		return ""
	}
	s, ok := v.(string)
	if !ok || s == "" {
		r.fail("%s: want a text", key)
	}
	return s
}

func (r *fields) choice(key, def string, allowed ...string) string {
	s := r.text(key)
	switch {
	case s == "" && !r.has(key) && def != "":
		return def
	case s == "" && !r.has(key):
		r.fail("%s is missing: one of %s", key, strings.Join(allowed, ", "))
	case !slices.Contains(allowed, s):
		r.fail("%s: unknown %q%s; known: %s", key, s, spec.Suggest(s, allowed), strings.Join(allowed, ", "))
	}
	return s
}

func (r *fields) object(key string) (*strictjson.Object, bool) {
	v, ok := r.get(key)
	if !ok {
		return nil, false
	}
	o, ok := v.(*strictjson.Object)
	if !ok {
		r.fail("%s: want an object", key)
	}
	return o, ok
}

func number(v any) (float64, bool) {
	n, ok := v.(strictjson.Number)
	if !ok {
		return 0, false
	}
	return n.Float()
}

func (r *fields) number(key string, def float64) float64 {
	v, ok := r.get(key)
	if !ok {
		return def
	}
	f, ok := number(v)
	if !ok {
		r.fail("%s: want a number", key)
	}
	return f
}

func (r *fields) maybe(key string) *float64 {
	if !r.has(key) {
		r.get(key)
		return nil
	}
	f := r.number(key, 0)
	return &f
}

func (r *fields) whole(key string, def int) int {
	f := r.number(key, float64(def))
	if f != math.Trunc(f) || math.Abs(f) > 1<<40 {
		r.fail("%s: want a whole number", key)
		return def
	}
	return int(f)
}

// numbers reads a list, or one number as a list of one.
func (r *fields) numbers(key string) []float64 {
	v, ok := r.get(key)
	if !ok {
		return nil
	}
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	var out []float64
	for _, e := range list {
		f, ok := number(e)
		if !ok {
			r.fail("%s: want numbers", key)
			return nil
		}
		out = append(out, f)
	}
	return out
}

func (r *fields) wholes(key string) []int {
	var out []int
	for _, f := range r.numbers(key) {
		if f != math.Trunc(f) || math.Abs(f) > 1<<40 {
			r.fail("%s: want whole numbers", key)
			return nil
		}
		out = append(out, int(f))
	}
	return out
}

func (r *fields) span(key string, def [2]float64) [2]float64 {
	v := r.numbers(key)
	if v == nil && !r.has(key) {
		return def
	}
	if len(v) != 2 || v[0] == v[1] {
		r.fail("%s: want two numbers, low and high", key)
		return def
	}
	return [2]float64(v)
}

func (r *fields) texts(key string) []string {
	v, ok := r.get(key)
	if !ok {
		return nil
	}
	list, ok := v.([]any)
	if !ok {
		r.fail("%s: want a list of texts", key)
		return nil
	}
	var out []string
	for _, e := range list {
		s, ok := e.(string)
		if !ok {
			r.fail("%s: want texts", key)
			return nil
		}
		out = append(out, s)
	}
	return out
}
