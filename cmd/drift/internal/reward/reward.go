// Package reward opens what --reward names: an expression, a Starlark file, a classifier, or a program that speaks JSON
// lines. A reward depends on the picture and the moment of the run alone, so that runs can be repeated.
package reward

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"drift/internal/kernels"
	"drift/internal/npz"
	"drift/internal/refuse"
	"drift/internal/script"
	"drift/internal/spec"
	"drift/models/ort"
	"drift/models/zoo"
	"drift/smc"
)

// Options says how a reward is opened.
type Options struct {
	Threads int
	Timeout time.Duration // of a program's answer; 0 = one minute
	Retries int           // of a program that failed
	Stderr  io.Writer     // what a program says; nil drops it
	Print   func(text string)
	// Sealed refuses whatever reads files or runs programs: for rewards that others write.
	Sealed bool
	// ORT loads ONNX Runtime for .onnx networks; nil looks for it in the system's path.
	ORT func() (*ort.Library, error)
	// Gone is told when a program is started again, and why.
	Gone func(why error)
}

// Point is what a reward is told about a picture.
type Point = script.Point

// Scores is what a reward says.
type Scores = script.Scores

// Reward scores the pictures of a check.
type Reward struct {
	Spec   string            // as it was given
	Script string            // text of the script or expression, "" for a program
	Files  map[string]string // SHA-256 of the files and networks it uses, by name

	rules   *script.Rewards
	program *program

	mu   sync.Mutex // pictures are scored on several goroutines, each of which may be the first to open a file
	pool *kernels.Pool
	nets map[string]script.Net
	// graphs are the ONNX networks among them, to be closed.
	graphs []*ort.Net
}

// Form is a way to write a reward.
type Form struct{ Name, Summary string }

// Forms lists what Open knows.
func Forms() []Form {
	return []Form{
		{"EXPR", `one line of im (or x0: the predicted picture, channels x height x width in [-1, 1]) and ctx, such as "mean(x0) - 0.2*std(x0)"; its additive terms are columns of the log`},
		{"FILE.star", "Starlark with reward(im, ctx), rewards(ims, ctx) of a whole group, or reward_latent(z, ctx) without the decoder; log(name, value) makes a column"},
		{"classifier:NET:CLASS", "log probability of a class, by name or number: classifier:fashion:sneaker; the same as logp('fashion-classifier', class='sneaker'); NET may be a .onnx file with a sidecar of type classifier"},
		{"FILE.onnx", "an ONNX network that gives one number per picture, described by FILE.drift.json of type scorer"},
		{"exec:COMMAND", `a program that reads {"id","shape","dtype","pixels_b64","prompt","class","step","last"} (float32, little endian, C x H x W) and writes {"id","reward"}, a JSON object per line; asked again after a crash or timeout`},
	}
}

// Networks lists the networks of logp, prob and feat.
func Networks() []string { return []string{"fashion-classifier"} }

// Open opens a reward. Errors about the text are plain, those about files are *fs.PathError or *refuse.Error.
func Open(text string, o Options) (*Reward, error) {
	r := &Reward{Spec: text, Files: map[string]string{}}
	fail := func(err error) (*Reward, error) {
		r.Close()
		return nil, err
	}
	file := strings.EqualFold(filepath.Ext(text), ".star") || strings.EqualFold(filepath.Ext(text), ".onnx")
	switch {
	case o.Sealed && (file || strings.HasPrefix(text, "exec:")):
		return nil, errors.New("only expressions and classifier:NET:CLASS are taken here, no files and no programs")
	case strings.TrimSpace(text) == "":
		return nil, errors.New("a reward needs an expression, a .star or .onnx file, classifier:NET:CLASS or exec:COMMAND")
	case strings.HasPrefix(text, "exec:"):
		p, err := newProgram(strings.TrimPrefix(text, "exec:"), o)
		if err != nil {
			return nil, err
		}
		r.program = p
		return r, nil
	case strings.HasPrefix(text, "classifier:"):
		rest := strings.TrimPrefix(text, "classifier:")
		k := strings.LastIndexByte(rest, ':')
		if k < 0 {
			return nil, fmt.Errorf("%s: want classifier:NET:CLASS, such as classifier:fashion:sneaker", text)
		}
		class := rest[k+1:]
		if _, err := strconv.Atoi(class); err != nil {
			class = strconv.Quote(class)
		}
		if strings.EqualFold(filepath.Ext(rest[:k]), ".onnx") { // what is wrong with it is said here, not by a script
			if _, err := r.net(rest[:k], o); err != nil {
				return fail(err)
			}
		}
		text = fmt.Sprintf("logp(%q, class=%s)", rest[:k], class)
	case strings.EqualFold(filepath.Ext(text), ".onnx"):
		if err := r.scorer(text, o); err != nil {
			return fail(err)
		}
		text = fmt.Sprintf("sum(feat(%q))", text)
	}
	w := script.World{
		Net:  func(name string) (script.Net, error) { return r.net(name, o) },
		Load: r.load,
	}
	if o.Sealed {
		w.Load = nil
	}
	var err error
	if strings.EqualFold(filepath.Ext(text), ".star") {
		src, e := readSmall(text)
		if e != nil {
			return nil, e
		}
		r.Files[filepath.Base(text)] = hash(src)
		r.rules, err = script.ParseRewards(filepath.Base(text), string(src), w)
	} else {
		r.rules, err = script.ParseReward(text, w)
	}
	if err != nil {
		return fail(err)
	}
	if o.Print != nil {
		var mu sync.Mutex
		r.rules.Print(func(text string) {
			mu.Lock()
			defer mu.Unlock()
			o.Print(text)
		})
	}
	r.Script = r.rules.Text()
	return r, nil
}

// scorer opens an ONNX file whose sidecar says that it is a scorer.
func (r *Reward) scorer(name string, o Options) error {
	n, err := r.net(name, o)
	if err != nil {
		return err
	}
	if j := n.(*ort.Judge); j.Net.Sidecar.Type != "scorer" {
		return fmt.Errorf("%s is a %s: use classifier:%s:CLASS, or logp and feat in an expression; a scorer gives one number", name, j.Net.Sidecar.Type, name)
	}
	return nil
}

// graph opens a network in an ONNX file. r.mu is held.
func (r *Reward) graph(name string, o Options) (script.Net, error) {
	if o.Sealed {
		return nil, fmt.Errorf("%s: no files are read here", name)
	}
	if o.ORT == nil {
		o.ORT = func() (*ort.Library, error) { return ort.Load(ort.Places{}) }
	}
	if _, err := os.Stat(name); err != nil {
		return nil, err
	}
	lib, err := o.ORT()
	if err != nil {
		return nil, err
	}
	ctx := context.Background() // opening is short
	net, err := lib.OpenNet(ctx, name, nil, ort.Options{Threads: o.Threads})
	if err != nil {
		return nil, err
	}
	j, err := net.Judge(ctx)
	if err == nil && j.Noisy() {
		err = refuse.Errorf(name, "is told a time: it judges the states of a run (--classifier), not pictures")
	}
	if err != nil {
		net.Close()
		return nil, err
	}
	r.graphs = append(r.graphs, net)
	r.Files[filepath.Base(name)] = net.Hash
	return j, nil
}

func hash(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func readSmall(name string) ([]byte, error) {
	const most = 1 << 20
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && len(b) > most {
		err = refuse.Errorf(name, "more than %d bytes", most)
	}
	return b, err
}

// classifier makes the embedded network a script.Net.
type classifier struct{ *zoo.Classifier }

func (c classifier) Labels() []string { return c.Classifier.Labels }
func (c classifier) Features() int    { return zoo.Features }
func (c classifier) Run(ctx context.Context, x []float64, features, logits []float64) error {
	if len(x)%(28*28) != 0 || features != nil && len(features)/zoo.Features != len(x)/(28*28) || logits != nil && len(logits)/len(c.Classifier.Labels) != len(x)/(28*28) {
		return errors.New("fashion-classifier takes pictures of 1 x 28 x 28")
	}
	return c.Classifier.Run(ctx, x, features, logits)
}

func (r *Reward) net(name string, o Options) (script.Net, error) {
	threads := o.Threads
	if strings.EqualFold(filepath.Ext(name), ".onnx") {
		r.mu.Lock()
		defer r.mu.Unlock()
		if n := r.nets[name]; n != nil {
			return n, nil
		}
		n, err := r.graph(name, o)
		if err == nil {
			r.keep(name, n)
		}
		return n, err
	}
	if name != "fashion-classifier" && name != "fashion" {
		return nil, fmt.Errorf("unknown network %q%s; known: %s, or a .onnx file", name, spec.Suggest(name, Networks()), strings.Join(Networks(), ", "))
	}
	if threads < 1 {
		threads = runtime.GOMAXPROCS(0)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := r.nets["fashion-classifier"]; n != nil {
		return n, nil
	}
	if r.pool == nil {
		tiers := kernels.Tiers()
		r.pool = kernels.NewPool(tiers[len(tiers)-1], threads)
	}
	c, err := zoo.OpenClassifier(r.pool)
	if err != nil {
		return nil, err
	}
	r.Files["fashion-classifier"] = c.Hash
	r.keep("fashion-classifier", classifier{c})
	return r.nets["fashion-classifier"], nil
}

// keep holds an opened network. r.mu is held.
func (r *Reward) keep(name string, n script.Net) {
	if r.nets == nil {
		r.nets = map[string]script.Net{}
	}
	r.nets[name] = n
}

// load reads an array for a script: the named member, or features, x, images, or the only one.
func (r *Reward) load(file, member string) ([]float64, []int, error) {
	arrays, err := npz.ReadAll(file)
	if err != nil {
		return nil, nil, err
	}
	if member == "" {
		for _, name := range []string{"features", "x", "images"} {
			if arrays[name] != nil {
				member = name
				break
			}
		}
		if member == "" && len(arrays) == 1 {
			for name := range arrays {
				member = name
			}
		}
	}
	a := arrays[member]
	if a == nil {
		var names []string
		for name := range arrays {
			names = append(names, name)
		}
		slices.Sort(names)
		return nil, nil, refuse.Errorf(file, "has no array %q; it has %s", member, strings.Join(names, ", "))
	}
	v, err := a.Float64()
	if err != nil {
		b, e := a.Uint8()
		if e != nil {
			return nil, nil, refuse.Errorf(file, "%s: %v", member, err)
		}
		v = make([]float64, len(b))
		for i := range b {
			v[i] = float64(b[i])
		}
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, err
	}
	r.mu.Lock()
	r.Files[filepath.Base(file)] = hash(raw)
	r.mu.Unlock()
	return slices.Clone(v), slices.Clone(a.Shape), nil
}

// Latent tells that the reward wants states of the model's own space.
func (r *Reward) Latent() bool { return r.rules != nil && r.rules.Latent() }

// Grouped tells that the reward scores the pictures of a group together.
func (r *Reward) Grouped() bool { return r.rules != nil && r.rules.Grouped() }

// Terms names the additive terms of an expression.
func (r *Reward) Terms() []string {
	if r.rules == nil {
		return nil
	}
	return r.rules.Terms()
}

// Check finds mistakes before any work is done: a script is run on n made-up pictures, a program is started.
func (r *Reward) Check(ctx context.Context, shape []int, n int) error {
	if r.program != nil {
		return r.program.start()
	}
	return r.rules.Check(ctx, shape, n)
}

// Score scores pictures; groups are ranges of them that belong together.
func (r *Reward) Score(ctx context.Context, at []Point, x []float64, shape []int, groups [][2]int) (*Scores, error) {
	if r.program != nil {
		v, err := r.program.score(ctx, at, x, shape)
		return &Scores{Reward: v}, err
	}
	return r.rules.Score(ctx, at, x, shape, groups)
}

// Gradient writes the gradient of the reward of every picture by that picture.
func (r *Reward) Gradient(ctx context.Context, at []Point, x []float64, shape []int, grad []float64) error {
	if r.program != nil {
		return fmt.Errorf("%s is a program: it has no gradient", r.Spec)
	}
	return r.rules.Gradient(ctx, at, x, shape, grad)
}

// Asked is how many pictures a program was asked about, what a cache answered left out.
func (r *Reward) Asked() int {
	if r.program == nil {
		return 0
	}
	return r.program.asked
}

// Close ends the program and the workers.
func (r *Reward) Close() {
	if r.program != nil {
		r.program.close()
	}
	for _, g := range r.graphs {
		g.Close()
	}
	r.graphs = nil
	if r.pool != nil {
		r.pool.Close()
		r.pool = nil
	}
}

// Points describes the rows of a check to a reward.
func Points(l *smc.Look, steps int, lambda, nfe float64) []Point {
	out := make([]Point, len(l.Rows))
	for k, row := range l.Rows {
		p := Point{NFE: nfe, Lambda: lambda, Previous: math.NaN(), Last: l.Last}
		p.Step, p.Steps, p.T, p.Sigma, p.Alpha, p.Progress = l.Step, steps, l.At.T, l.At.Ratio(), l.At.Alpha, l.Progress
		p.Seed, p.Particle, p.Class = row.Seed, row.Particle, l.Cond.Class(k)
		if l.Cond != nil && len(l.Cond.Prompts) > k {
			p.Prompt = l.Cond.Prompts[k]
		}
		if l.Previous != nil {
			p.Previous = l.Previous[k]
		}
		out[k] = p
	}
	return out
}
