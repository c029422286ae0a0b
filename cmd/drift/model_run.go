package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"drift/internal/kernels"
	"drift/internal/npz"
	"drift/internal/refuse"
	"drift/models"
	"drift/models/autoencoder"
	"drift/models/diffusers"
	"drift/models/engine"
	"drift/models/mmdit"
	"drift/models/native"
	"drift/schedules"
)

// openNet opens a bare network: a folder with config.json and weights, or a config.json alone, whose weights are then
// made up.
func openNet(name, dtype, tier string, opt diffusers.Options) (native.Network, error) {
	t, kind, err := tierAndType(dtype, tier)
	if err != nil {
		return nil, err
	}
	cfg, w, err := configAndWeights(name, opt)
	if err != nil {
		return nil, err
	}
	if err := native.Runs(cfg); err != nil {
		return nil, refuse.Errorf(name, "%s", err)
	}
	pool := kernels.NewPool(t, runtime.GOMAXPROCS(0))
	net, err := native.New(cfg, w, native.Options{Pool: pool, DType: kind})
	if err != nil {
		return nil, refuse.Errorf(name, "%s", trimPackage(err.Error()))
	}
	return net, nil
}

// configAndWeights reads a folder, or a config.json alone, which has no weights.
func configAndWeights(name string, opt diffusers.Options) (diffusers.Config, diffusers.Weights, error) {
	if filepath.Base(name) == "config.json" {
		cfg, err := diffusers.ReadConfig(name)
		return cfg, nil, err
	}
	m, err := diffusers.Open(name, opt)
	if err != nil {
		return nil, nil, err
	}
	return m.Config, m.Weights, nil
}

// tierAndType reads --tier and --dtype.
func tierAndType(dtype, tier string) (kernels.Tier, kernels.DType, error) {
	t := kernels.Detect()
	if tier != "" {
		var err error
		if t, err = kernels.ParseTier(tier); err != nil {
			return 0, 0, badUse("tier", err)
		}
		if !t.Supported() {
			return 0, 0, usagef("--tier %s: this machine has %v", t, kernels.Tiers())
		}
	}
	kind, ok := map[string]kernels.DType{"": kernels.F32, "f32": kernels.F32, "bf16": kernels.BF16}[dtype]
	if !ok {
		return 0, 0, usagef("--dtype %s: a network computes in f32 or bf16", dtype)
	}
	return t, kind, nil
}

// network finds the network that a name stands for (net), or the analytic target (den); done gives it back.
func (a *app) network(ctx context.Context, name, dtype, tier string, opt diffusers.Options) (net native.Network, den models.Denoiser, done func(), err error) {
	info, statErr := os.Stat(name)
	known := false
	if statErr == nil {
		if known, err = inOneFile(name); err != nil {
			return nil, nil, nil, err
		}
	}
	if statErr == nil && (filepath.Base(name) == "config.json" || info.IsDir() || known) {
		if net, err = openNet(name, dtype, tier, opt); err != nil {
			return nil, nil, nil, err
		}
		return net, nil, net.Close, nil
	}
	m, err := a.openModel(ctx, name, dtype, tier)
	if err != nil {
		return nil, nil, nil, err
	}
	return m.Net, m.Denoiser, m.Close, nil
}

func (a *app) modelRun(c *cli.Context) error {
	name, err := oneArg(c, "a model")
	if err != nil {
		return err
	}
	in, out := c.String("in"), c.String("out")
	if in == "" || out == "" {
		return usagef("model run needs --in and --out")
	}
	if !strings.EqualFold(filepath.Ext(out), ".npz") {
		return usagef("--out %s: want a name that ends in .npz", out)
	}
	if sameFile(in, out) {
		return usagef("%s is the input: it would be overwritten", out)
	}
	args, err := npz.ReadAll(in)
	if err != nil {
		return err
	}
	if path := graphFile(name); path != "" {
		for _, f := range []string{"vjp", "part", "dtype"} {
			if c.IsSet(f) {
				return usagef("--%s: ONNX Runtime runs %s: it has no gradients, parts or types to choose", f, path)
			}
		}
		return a.onnxRun(c, path, in, out, args)
	}
	if part, err := a.openPart(name, c.String("dtype"), c.String("tier"), c.String("part"), fileOptions(c)); err != nil {
		return err
	} else if part != nil { // an autoencoder or a text encoder
		defer part.Close()
		results, err := part.Run(c.Context, in, args)
		if err != nil {
			return err
		}
		if err := npz.Write(out, results...); err != nil {
			return err
		}
		a.say("drift: %s", out)
		return nil
	}
	if c.IsSet("part") {
		return usagef("--part is for autoencoders")
	}
	net, den, done, err := a.network(c.Context, name, c.String("dtype"), c.String("tier"), fileOptions(c))
	if err != nil {
		return err
	}
	defer done()
	pass := &pass{file: in, args: args}
	pass.unpack(net)
	pass.readCommon()
	if c.IsSet("vjp") {
		pass.readCotangent(c.String("vjp"))
	}
	if pass.err != nil {
		return pass.err
	}
	var results []npz.Array
	if net != nil {
		results, err = pass.network(c.Context, net)
	} else {
		results, err = pass.target(c.Context, den)
	}
	if reason, bad := native.BadInput(err); bad {
		return refuse.Errorf(in, "%s", reason)
	}
	if err != nil {
		return err
	}
	if err := npz.Write(out, results...); err != nil {
		return err
	}
	a.say("drift: %s", out)
	return nil
}

// pass is one forward pass from a file of arguments.
type pass struct {
	file      string
	args      map[string]*npz.Array
	sample    *npz.Array
	x         []float64
	times     []float64
	classes   []int
	cotangent []float64
	grid      [2]int // of Flux's tokens, 0 without
	err       error
}

// unpack turns Flux's tokens into latents.
func (p *pass) unpack(net native.Network) {
	ids, tokens := p.args["img_ids"], p.args["hidden_states"]
	if net == nil || ids == nil || tokens == nil || len(tokens.Shape) != 3 {
		return
	}
	x, err := tokens.Float64()
	if err != nil {
		p.fail("%v", err)
		return
	}
	at, err := ids.Float64()
	if err != nil {
		p.fail("%v", err)
		return
	}
	h, w, err := mmdit.Grid(at)
	if err != nil || tokens.Shape[1] != h*w || tokens.Shape[2]%4 != 0 {
		p.fail("img_ids and hidden_states of shape %v do not fit: %v", tokens.Shape, err)
		return
	}
	n, c := tokens.Shape[0], tokens.Shape[2]/4
	p.grid = [2]int{h, w}
	p.args["hidden_states"] = &npz.Array{Name: "hidden_states", Shape: []int{n, c, 2 * h, 2 * w}, Data: mmdit.Unpack(x, n, h, w, c)}
}

// inputs are the arrays besides images, times and labels.
func (p *pass) inputs() map[string]engine.Array {
	out := map[string]engine.Array{}
	for name, a := range p.args {
		switch name {
		case "sample", "hidden_states", "timestep", "class_labels", "img_ids", "txt_ids", "cotangent", "out", "out_onnxruntime", "vjp":
			continue
		}
		v, err := a.Float64()
		if err != nil {
			p.fail("%s: %v", name, err)
			continue
		}
		out[name] = engine.Array{Shape: a.Shape, Data: single(v)}
	}
	return out
}

func (p *pass) fail(format string, args ...any) {
	if p.err == nil {
		p.err = refuse.Errorf(p.file, format, args...)
	}
}

func (p *pass) readCommon() {
	if p.sample = p.args["sample"]; p.sample == nil {
		p.sample = p.args["hidden_states"]
	}
	t := p.args["timestep"]
	if p.sample == nil || t == nil {
		p.fail("wants arrays sample and timestep")
		return
	}
	if len(p.sample.Shape) < 2 || slices.Min(p.sample.Shape) < 1 {
		p.fail("sample has shape %v", p.sample.Shape)
		return
	}
	n := p.sample.Shape[0]
	var err error
	if p.x, err = p.sample.Float64(); err != nil {
		p.fail("%v", err)
	}
	if p.times, err = t.Float64(); err != nil {
		p.fail("%v", err)
	}
	if len(p.times) == 1 {
		p.times = slices.Repeat(p.times, n)
	}
	if len(p.times) != n {
		p.fail("timestep has shape %v for %d rows", t.Shape, n)
	}
	if l := p.args["class_labels"]; l != nil {
		v, err := l.Int64()
		if err != nil {
			p.fail("%v", err)
		}
		if len(v) != n {
			p.fail("class_labels has shape %v for %d rows", l.Shape, n)
		}
		for _, k := range v {
			p.classes = append(p.classes, int(k))
		}
	}
}

// readCotangent takes an array of the arguments, or cotangent of another file.
func (p *pass) readCotangent(name string) {
	a := p.args[name]
	if a == nil {
		if !strings.EqualFold(filepath.Ext(name), ".npz") {
			p.fail("has no array %q for --vjp", name)
			return
		}
		arrays, err := npz.ReadAll(name, "cotangent")
		if err != nil {
			p.err = cmp.Or(p.err, err)
			return
		}
		a = arrays["cotangent"]
	}
	var err error
	if p.cotangent, err = a.Float64(); err != nil {
		p.fail("the cotangent: %v", err)
	}
}

// checkCotangent compares it with the output.
func (p *pass) checkCotangent(out []int) error {
	want := 1
	for _, n := range out {
		want *= n
	}
	if p.cotangent != nil && len(p.cotangent) != want {
		return refuse.Errorf(p.file, "the cotangent has %d values, the output has shape %v", len(p.cotangent), out)
	}
	return nil
}

func (p *pass) network(ctx context.Context, net native.Network) ([]npz.Array, error) {
	s := p.sample.Shape
	in, channels := net.Channels()
	if len(s) != 4 || s[1] != in {
		return nil, refuse.Errorf(p.file, "sample has shape %v, the network takes (batch, %d, height, width)", s, in)
	}
	b := &native.Batch{H: s[2], W: s[3], T: p.times, Class: p.classes, Inputs: p.inputs(), Save: p.cotangent != nil}
	if p.classes == nil && net.Classes() > 0 {
		return nil, refuse.Errorf(p.file, "wants class_labels, 0 to %d", net.Classes()-1)
	}
	shape := []int{s[0], channels, s[2], s[3]}
	if err := p.checkCotangent(shape); err != nil {
		return nil, err
	}
	out := make([]float64, s[0]*channels*s[2]*s[3])
	if err := net.Forward(ctx, out, p.x, b); err != nil {
		return nil, err
	}
	results := []npz.Array{{Name: "out", Shape: shape, Data: single(out)}}
	if p.grid != [2]int{} {
		h, w := p.grid[0], p.grid[1]
		results[0] = npz.Array{Name: "out", Shape: []int{s[0], h * w, 4 * channels}, Data: single(mmdit.Pack(out, s[0], h, w, channels))}
	}
	if p.cotangent != nil {
		grad := make([]float64, len(p.x))
		if err := net.VJP(ctx, grad, p.cotangent); err != nil {
			return nil, err
		}
		results = append(results, npz.Array{Name: "vjp", Shape: s, Data: single(grad)})
	}
	return results, nil
}

// single narrows what a float32 network gave.
func single(v []float64) []float32 {
	out := make([]float32, len(v))
	for i, x := range v {
		out[i] = float32(x)
	}
	return out
}

func (p *pass) target(ctx context.Context, den models.Denoiser) ([]npz.Array, error) {
	gau, ok := den.Process().(schedules.Gaussian)
	if !ok {
		return nil, fmt.Errorf("the process %s has no times", den.Process().Name())
	}
	s := p.sample.Shape
	if d, ok := models.As[models.Described](den); ok && !slices.Equal(s[1:], d.Info().Shape) {
		return nil, refuse.Errorf(p.file, "sample has shape %v, the model wants rows of shape %v", s, d.Info().Shape)
	}
	if err := p.checkCotangent(s); err != nil {
		return nil, err
	}
	q := &models.Query{X: models.Wrap(p.x, s...)}
	for _, t := range p.times {
		g, err := schedules.FromTimes(gau, []float64{t, t})
		if err != nil {
			return nil, refuse.Errorf(p.file, "timestep: %s", trimPackage(err.Error()))
		}
		q.At = append(q.At, g[0])
		q.Rows = append(q.Rows, models.Row{})
	}
	if p.classes != nil {
		q.Cond = &models.Cond{Classes: p.classes}
	}
	var pred models.Pred
	results := []npz.Array{{Name: "out", Shape: s}}
	if p.cotangent != nil {
		v, ok := models.As[models.VJP](den)
		if !ok {
			return nil, fmt.Errorf("the model has no gradient")
		}
		grad := models.New(s...)
		if err := v.VJP(ctx, q, &pred, models.Wrap(p.cotangent, s...), grad); err != nil {
			return nil, err
		}
		results = append(results, npz.Array{Name: "vjp", Shape: s, Data: models.Data(grad)})
	} else if err := den.Predict(ctx, q, &pred); err != nil {
		return nil, err
	}
	results[0].Data = models.Data(pred.Out)
	return results, nil
}

func dtypeName(net native.Network) string {
	if net.DType() == kernels.BF16 {
		return "bf16"
	}
	return "f32"
}

// timed opens what model bench times: a network, or the decoder of an autoencoder.
func (a *app) timed(c *cli.Context, name string) (native.Network, func(), error) {
	path := name
	if filepath.Base(path) != "config.json" {
		path = filepath.Join(name, "config.json")
	}
	if cfg, err := diffusers.ReadConfig(path); err == nil {
		switch cfg.(type) {
		case *diffusers.AutoencoderKLConfig, *diffusers.AutoencoderTinyConfig:
			return openDecoder(name, c.String("dtype"), c.String("tier"), fileOptions(c))
		}
	}
	net, _, done, err := a.network(c.Context, name, c.String("dtype"), c.String("tier"), fileOptions(c))
	return net, done, err
}

// openDecoder opens the decoder of an autoencoder as openNet does a network.
func openDecoder(name, dtype, tier string, opt diffusers.Options) (native.Network, func(), error) {
	t, kind, err := tierAndType(dtype, tier)
	if err != nil {
		return nil, nil, err
	}
	cfg, w, err := configAndWeights(name, opt)
	if err != nil {
		return nil, nil, err
	}
	if w == nil {
		if w, err = diffusers.NewFormula(cfg); err != nil {
			return nil, nil, err
		}
	}
	pool := kernels.NewPool(t, runtime.GOMAXPROCS(0))
	ae, err := autoencoder.New(cfg, w, engine.Options{Pool: pool, DType: kind})
	if err != nil {
		pool.Close()
		return nil, nil, refuse.Errorf(name, "%s", trimPackage(err.Error()))
	}
	return native.Wrap(ae.Decoder), pool.Close, nil
}

func (a *app) modelBench(c *cli.Context) error {
	name, err := oneArg(c, "a model")
	if err != nil {
		return err
	}
	batch, rounds := c.Int("batch"), c.Int("rounds")
	if batch < 1 || batch > 1<<16 || rounds < 1 {
		return usagef("--batch and --rounds want 1 or more")
	}
	if path := graphFile(name); path != "" {
		return a.onnxBench(c, path, batch, rounds)
	}
	start := time.Now()
	net, done, err := a.timed(c, name)
	if err != nil {
		return err
	}
	defer done()
	load := time.Since(start)
	if net == nil {
		return usagef("model bench %s: an analytic target has no network to time", name)
	}
	in, channels := net.Channels()
	h, w := net.SampleSize()
	if h == 0 {
		h, w = 32, 32
	}
	x := make([]float32, batch*in*h*w)
	for i := range x {
		x[i] = float32(i%17)/8 - 1
	}
	oh, ow := h, w
	if n, ok := net.(interface {
		Output(h, w int) (int, int, error)
	}); ok {
		if oh, ow, err = n.Output(h, w); err != nil {
			return err
		}
	}
	out := make([]float32, batch*channels*oh*ow)
	b := &native.Batch{H: h, W: w, T: slices.Repeat([]float64{1}, batch), Inputs: net.Example(batch)}
	if net.Classes() > 0 {
		b.Class = make([]int, batch)
	}
	vjp := c.Bool("vjp")
	b.Save = vjp
	var times []time.Duration
	for i := range rounds + 1 {
		start := time.Now()
		if err := net.Forward32(c.Context, out, x, b); err != nil {
			return err
		}
		if vjp {
			if err := net.VJP32(c.Context, make([]float32, len(x)), out); err != nil {
				return err
			}
		}
		if i > 0 { // the first call lays out its memory
			times = append(times, time.Since(start))
		}
	}
	slices.Sort(times)
	ms := func(d time.Duration) float64 { return float64(d) / 1e6 }
	minimum, median := times[0], times[len(times)/2]
	macs, err := net.MACs(h, w)
	if err != nil {
		return err
	}
	rate := float64(macs) * float64(batch) / minimum.Seconds() / 1e9
	threads := runtime.GOMAXPROCS(0)
	peak := kernels.PeakRate(net.Tier(), net.DType()) * float64(threads)
	var layers []native.Layer
	if c.Bool("profile") {
		b.Save, b.Trace = false, func(l native.Layer) { layers = append(layers, l) }
		if err := net.Forward32(c.Context, out, x, b); err != nil {
			return err
		}
	}
	if a.json {
		event := map[string]any{"model": name, "batch": batch, "dtype": dtypeName(net), "tier": net.Tier().String(), "threads": threads, "rounds": rounds,
			"load_ms": ms(load), "min_ms": ms(minimum), "median_ms": ms(median), "macs_per_image": macs, "parameters": net.Parameters(), "memory": net.Memory()}
		if vjp {
			event["with"] = "vjp"
		} else {
			event["gmac_per_s"] = rate
			if peak > 0 {
				event["peak_gflop_per_s"], event["fraction_of_peak"] = peak, 2*rate/peak
			}
		}
		if layers != nil {
			event["layers"] = layers
		}
		a.emit(event)
		return nil
	}
	fmt.Fprintf(a.out, "loaded in %.3f s; batch %d, %s, %s, %d threads: min %.3f ms, median %.3f ms", load.Seconds(), batch, dtypeName(net), net.Tier(), threads, ms(minimum), ms(median))
	if !vjp {
		fmt.Fprintf(a.out, ", %.4g GMAC/s", rate)
		if peak > 0 {
			fmt.Fprintf(a.out, ", %.0f %% of the %.0f GFLOP/s of the registers", 200*rate/peak, peak)
		}
	}
	fmt.Fprintln(a.out)
	if layers != nil {
		w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "layer\tkind\toutput\tms\tGFLOP/s")
		for _, l := range layers {
			fmt.Fprintf(w, "%s\t%s\t%dx%dx%dx%d\t%.3f\t%.1f\n", l.Name, l.Kind, l.N, l.H, l.W, l.C, ms(l.Duration), 2*float64(l.MACs)/max(l.Duration.Seconds(), 1e-9)/1e9)
		}
		return w.Flush()
	}
	return nil
}
