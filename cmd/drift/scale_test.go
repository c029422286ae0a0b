package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nkeys"

	"drift/cmd/drift/internal/bench"
	"drift/cmd/drift/internal/queue"
	"drift/cmd/drift/internal/shard"
	"drift/internal/kernels"
)

// halting is a worker that dies between storing its first result and saying so.
func halting() {
	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr, getenv: os.Getenv, stop: make(chan struct{})}
	a.afterStore = func() { _ = syscall.Kill(os.Getpid(), syscall.SIGKILL); select {} }
	os.Exit(a.main(context.Background(), os.Args[1:]))
}

// process is a real one of drift, whose events are read.
type process struct {
	t    *testing.T
	name string
	cmd  *exec.Cmd
	err  bytes.Buffer

	mu     sync.Mutex
	events []event
	more   chan struct{}
	ended  chan struct{}
}

type event struct {
	Event   string `json:"event"`
	Shard   int    `json:"shard"`
	First   bool   `json:"first"`
	Address string `json:"address"`
	Worker  string `json:"worker"`
}

// launch starts argv[0] (drift, or halting) in a folder.
func launch(t *testing.T, dir string, argv ...string) *process {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, name: strings.Join(argv, " "), more: make(chan struct{}, 1), ended: make(chan struct{})}
	p.cmd = &exec.Cmd{Path: exe, Args: argv, Dir: dir, Stderr: &p.err, Env: append(os.Environ(), "NO_COLOR=1", "HOME="+dir, "DRIFT_CACHE="+filepath.Join(dir, "cache"))}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		in := bufio.NewScanner(out)
		for in.Scan() {
			var e event
			if json.Unmarshal(in.Bytes(), &e) != nil {
				continue
			}
			p.mu.Lock()
			p.events = append(p.events, e)
			p.mu.Unlock()
			select {
			case p.more <- struct{}{}:
			default:
			}
		}
		_, _ = io.Copy(io.Discard, out)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Signal(syscall.SIGCONT)
		_ = p.cmd.Process.Kill()
	})
	return p
}

// patience bounds every wait.
const testPatience = 60 * time.Second

// await waits for n events that match, and returns the last of them.
func (p *process) await(n int, match func(event) bool) event {
	p.t.Helper()
	end := time.After(testPatience)
	for {
		k := 0
		p.mu.Lock()
		for _, e := range p.events {
			if match(e) {
				if k++; k == n {
					p.mu.Unlock()
					return e
				}
			}
		}
		p.mu.Unlock()
		select {
		case <-p.more:
		case <-p.ended:
			p.t.Fatalf("%s ended: %s", p.name, p.err.String())
		case <-end:
			p.t.Fatalf("%s: waiting for an event: %s", p.name, p.err.String())
		}
	}
}

func of(kind string) func(event) bool { return func(e event) bool { return e.Event == kind } }

// shards lists the shards of events of that kind.
func (p *process) shards(match func(event) bool) (out []int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.events {
		if match(e) {
			out = append(out, e.Shard)
		}
	}
	return out
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// wait waits for the end and returns the exit code, -1 for a signal.
func (p *process) wait() int {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(testPatience):
		p.t.Fatalf("%s does not end: %s", p.name, p.err.String())
	}
	_ = p.cmd.Wait() // the code tells
	return p.cmd.ProcessState.ExitCode()
}

func (p *process) done() {
	p.t.Helper()
	if code := p.wait(); code != 0 {
		p.t.Fatalf("%s: exit code %d: %s", p.name, code, p.err.String())
	}
}

const slowMixture = `{"type": "mixture", "weights": [0.4, 0.6], "means": [[-1, 0], [1.5, 1]], "vars": [[0.0625, 0.1], [0.25, 0.2]], "process": {"type": "vp-linear"}, "prediction": "eps"}`

// town is a folder with a job, and what one process makes of it.
type town struct {
	dir  string
	line []string
	n    int // shards
	want []byte
}

// newTown makes a job of n shards; more steps make them slower.
func newTown(t *testing.T, n, steps int) *town {
	t.Helper()
	w := &town{dir: t.TempDir(), n: n}
	for name, text := range map[string]string{"mix.json": slowMixture, "token": "a secret of the tests\n"} {
		if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	w.line = []string{"sample", "--model", "mix.json", "--count", fmt.Sprint(8 * n), "--sampler", "ddpm", "--steps", fmt.Sprint(steps), "--shard", "8"}
	launch(t, w.dir, append(append([]string{"drift"}, w.line...), "--out", "one.npz")...).done()
	var err error
	if w.want, err = os.ReadFile(filepath.Join(w.dir, "one.npz")); err != nil {
		t.Fatal(err)
	}
	return w
}

// serve starts the coordinator; where tells its workers the way.
func (w *town) serve(t *testing.T, listen string) (p *process, where string) {
	t.Helper()
	argv := append([]string{"drift", "serve", "--listen", listen, "--token-file", "token", "--lost-after", "500ms"}, w.line...)
	p = launch(t, w.dir, append(argv, "--out", "many.npz", "--json")...)
	return p, p.await(1, of("listen")).Address
}

func (w *town) worker(t *testing.T, kind, where, name string) *process {
	t.Helper()
	return launch(t, w.dir, kind, "worker", "--url", "nats://"+where, "--token-file", "token", "--name", name, "--json", "--threads", "1")
}

// check holds the result to that of one process, and the queue's folder to be gone.
func (w *town) check(t *testing.T) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(w.dir, "many.npz"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, w.want) {
		t.Error("the workers' result is not that of one process, bit for bit")
	}
	for _, left := range []string{"many.npz.queue", "many.npz.part"} {
		if exists(filepath.Join(w.dir, left)) {
			t.Errorf("%s is left", left)
		}
	}
}

// once checks that every shard was stored exactly once, over all workers.
func (w *town) once(t *testing.T, workers ...*process) {
	t.Helper()
	count := map[int]int{}
	for _, p := range workers {
		for _, k := range p.shards(func(e event) bool { return e.Event == "shard" && e.First }) {
			count[k]++
		}
	}
	for k := range w.n {
		if count[k] > 1 {
			t.Errorf("shard %d was stored %d times", k, count[k])
		}
	}
	if len(count) != w.n {
		t.Errorf("%d shards stored, want %d", len(count), w.n)
	}
}

// TestWorkerKilled: a worker is killed in the middle of a shard; another between storing a result and saying so.
func TestWorkerKilled(t *testing.T) {
	t.Parallel()
	w := newTown(t, 5, 20_000)
	serve, where := w.serve(t, "127.0.0.1:0")
	first := w.worker(t, "drift", where, "killed")
	first.await(1, of("begin"))
	first.signal(syscall.SIGKILL)
	if first.wait() != -1 {
		t.Error("the worker was done before it was killed")
	}
	half := w.worker(t, "halting", where, "halted")
	if half.wait() != -1 {
		t.Errorf("the halting worker did not halt: %s", half.err.String())
	}
	if made := half.shards(of("shard")); len(made) != 0 {
		t.Errorf("the halting worker told of shards %v", made)
	}
	last := w.worker(t, "drift", where, "last")
	serve.done()
	last.done()
	w.check(t)
	// The shard of the halted worker is in the store, so the last one makes all but that.
	if made := last.shards(func(e event) bool { return e.Event == "shard" && e.First }); len(made) != w.n-1 {
		t.Errorf("the last worker made %v, want %d shards", made, w.n-1)
	}
	if told := serve.shards(of("shard")); len(told) != w.n {
		t.Errorf("the coordinator took %v, want each of %d once", told, w.n)
	}
}

// TestCoordinatorKilled: the coordinator is killed and started again on the same store; the workers stay.
func TestCoordinatorKilled(t *testing.T) {
	if os.Getenv("DRIFT_SLOW") == "" {
		t.Skip("DRIFT_SLOW is not set")
	}
	t.Parallel()
	w := newTown(t, 10, 60_000)
	serve, where := w.serve(t, "127.0.0.1:0")
	a, b := w.worker(t, "drift", where, "a"), w.worker(t, "drift", where, "b")
	serve.await(3, of("shard"))
	serve.signal(syscall.SIGKILL)
	if serve.wait() != -1 {
		t.Error("the coordinator was done before it was killed")
	}
	again, _ := w.serve(t, where)
	again.done()
	a.done()
	b.done()
	w.check(t)
	w.once(t, a, b)
}

// TestWorkerPaused: a worker is stopped for longer than the coordinator waits; what it stores later is refused.
func TestWorkerPaused(t *testing.T) {
	if os.Getenv("DRIFT_SLOW") == "" {
		t.Skip("DRIFT_SLOW is not set")
	}
	t.Parallel()
	w := newTown(t, 12, 60_000)
	serve, where := w.serve(t, "127.0.0.1:0")
	paused := w.worker(t, "drift", where, "paused")
	its := paused.await(1, of("begin")).Shard
	paused.signal(syscall.SIGSTOP)
	other := w.worker(t, "drift", where, "other")
	other.await(1, func(e event) bool { return e.Event == "shard" && e.Shard == its })
	paused.signal(syscall.SIGCONT)
	late := paused.await(1, func(e event) bool { return e.Event == "shard" && e.Shard == its })
	if late.First {
		t.Error("the paused worker's result was taken though another had made it")
	}
	serve.done()
	paused.done()
	other.done()
	w.check(t)
	w.once(t, paused, other)
}

// TestFilesTravel: a worker in another folder gets what the line names, once.
func TestFilesTravel(t *testing.T) {
	t.Parallel()
	w := newTown(t, 2, 50)
	elsewhere, far := t.TempDir(), t.TempDir()
	target := filepath.Join(elsewhere, "mix.json")
	for name, text := range map[string]string{target: slowMixture, filepath.Join(w.dir, "grid.json"): `{"times": [1, 0.8, 0.5, 0.2, 0.01]}`, filepath.Join(far, "token"): "a secret of the tests\n"} {
		if err := os.WriteFile(name, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	w.line = []string{"sample", "--model", target, "--count", "16", "--schedule", "@grid.json", "--shard", "8"}
	launch(t, w.dir, append(append([]string{"drift"}, w.line...), "--out", "one.npz")...).done()
	var err error
	if w.want, err = os.ReadFile(filepath.Join(w.dir, "one.npz")); err != nil {
		t.Fatal(err)
	}
	for _, came := range []bool{true, false} {
		serve, where := w.serve(t, "127.0.0.1:0")
		p := launch(t, far, "drift", "worker", "--url", "nats://"+where, "--token-file", "token", "--cache", "kept", "--json")
		serve.done()
		p.done()
		w.check(t)
		if strings.Contains(p.err.String(), "grid.json came") != came || strings.Contains(p.err.String(), "mix.json came") != came {
			t.Errorf("files came: want %v: %s", came, p.err.String())
		}
		if err := os.Remove(filepath.Join(w.dir, "many.npz")); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := os.ReadDir(filepath.Join(far, "kept", "files"))
	if err != nil || len(kept) != 2 {
		t.Errorf("%d files are kept, want 2 (%v)", len(kept), err)
	}
	if left, _ := filepath.Glob(filepath.Join(far, "kept", "job-*")); len(left) > 0 {
		t.Errorf("%v are left", left)
	}
}

// TestKeys: a worker that holds a key in place of a token.
func TestKeys(t *testing.T) {
	t.Parallel()
	w := newTown(t, 2, 50)
	write := func(name string, text []byte) {
		if err := os.WriteFile(filepath.Join(w.dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var public [2]string
	for i := range public {
		k, err := nkeys.CreateUser()
		if err != nil {
			t.Fatal(err)
		}
		seed, err := k.Seed()
		if err != nil {
			t.Fatal(err)
		}
		write(fmt.Sprintf("seed%d", i), seed)
		if public[i], err = k.PublicKey(); err != nil {
			t.Fatal(err)
		}
	}
	write("keys", []byte("# workers\n"+public[0]+" # the first\n\n"))
	argv := append([]string{"drift", "serve", "--listen", "127.0.0.1:0", "--keys-file", "keys"}, w.line...)
	serve := launch(t, w.dir, append(argv, "--out", "many.npz", "--json")...)
	url := "nats://" + serve.await(1, of("listen")).Address
	if p := launch(t, w.dir, "drift", "worker", "--url", url, "--key-file", "seed1", "--patience", "1s"); p.wait() != 1 {
		t.Errorf("a key that the server does not know: %s", p.err.String())
	}
	p := launch(t, w.dir, "drift", "worker", "--url", url, "--key-file", "seed0")
	serve.done()
	p.done()
	w.check(t)
}

// TestWorkersInProcess: networks side by side in one process share nothing (for the race detector).
func TestWorkersInProcess(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, line := range []string{
		"sample --count 6 --steps 2 --out one.npz", "sample --count 6 --steps 2 --out many.npz --workers 2 --shard 2",
		"sample --count 6 --steps 1 --out set", "metrics stats set --out one.stats.npz", "metrics stats set --out many.stats.npz --workers 2 --shard 2",
		"bench --samplers euler,heun --nfe 4 --count 4 --metric fid --out bench --workers 2 --shard 2",
	} {
		if code, _, talk := world(nil, strings.Fields(line)...); code != 0 {
			t.Fatalf("%s: exit code %d: %s", line, code, talk)
		}
	}
	for a, b := range map[string]string{"one.npz": "many.npz", "one.stats.npz": "many.stats.npz"} {
		x, err := os.ReadFile(a)
		if err != nil {
			t.Fatal(err)
		}
		if y, err := os.ReadFile(b); err != nil || !bytes.Equal(x, y) {
			t.Errorf("%s is not %s (%v)", b, a, err)
		}
	}
}

// TestOpenJob: what would give other bits, or is no work of a worker, is refused before anything is opened.
func TestOpenJob(t *testing.T) {
	a := &app{in: strings.NewReader(""), out: io.Discard, err: io.Discard, getenv: func(string) string { return "" }, stop: make(chan struct{})}
	good := queue.Job{Version: release, Arch: runtime.GOARCH, Tier: "portable", Args: []string{"sample", "--count=2", "--steps=1", "--out=x.npz"}}
	d, err := a.openJob(t.Context(), good)
	if err != nil {
		t.Fatal(err)
	}
	first := d.Config()
	d.Close()
	for what, change := range map[string]func(*queue.Job){
		"another version":      func(j *queue.Job) { j.Version = "0.0.1" },
		"another architecture": func(j *queue.Job) { j.Arch = "vax" },
		"an unknown tier":      func(j *queue.Job) { j.Tier = "amx2" },
		"another verb":         func(j *queue.Job) { j.Args = []string{"model", "info"} },
		"a served line":        func(j *queue.Job) { j.Args = []string{"serve", "--", "sample"} },
		"no verb":              func(j *queue.Job) { j.Args = []string{"--count=3"} },
		"nothing":              func(j *queue.Job) { j.Args = nil },
	} {
		j := good
		change(&j)
		var m *queue.Mismatch
		if d, err := a.openJob(t.Context(), j); !errors.As(err, &m) {
			t.Errorf("%s: %v, %v", what, d, err)
		}
	}
	if best := kernels.Detect(); best != kernels.Portable { // the tier is part of every shard's key
		j := good
		j.Tier = best.String()
		d, err := a.openJob(t.Context(), j)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if d.Config() == first {
			t.Error("two tiers have one configuration: their shards would mix")
		}
	}
}

// TestHostileResults: what the verbs refuse of results that are whole and of the right shard.
func TestHostileResults(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.WriteFile("mix.json", []byte(slowMixture), 0o666); err != nil {
		t.Fatal(err)
	}
	a := &app{in: strings.NewReader(""), out: io.Discard, err: io.Discard, getenv: func(string) string { return "" }, stop: make(chan struct{})}
	open := func(line ...string) queue.Doer {
		d, err := a.openWork(t.Context(), line)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(d.Close)
		return d
	}
	arrays := func(r *shard.Result, name string) *shard.Array {
		for i := range r.Arrays {
			if r.Arrays[i].Name == name {
				return &r.Arrays[i]
			}
		}
		t.Fatalf("no array %s", name)
		return nil
	}
	make := func(d queue.Doer, spec any) *shard.Result {
		r, err := d.Do(t.Context(), shard.New(0, spec), func(float64) {})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	type change struct {
		array string
		do    func(*shard.Array)
	}
	cut := func(x *shard.Array) { x.Floats = x.Floats[1:] }
	nan := func(x *shard.Array) { x.Floats[0] = math.NaN() }
	hold := func(what string, fresh func() *shard.Result, check func(*shard.Result) error, changes map[string]change) {
		if err := check(fresh()); err != nil {
			t.Errorf("%s: an honest result: %v", what, err)
		}
		for name, c := range changes {
			r := fresh()
			c.do(arrays(r, c.array))
			if check(r) == nil {
				t.Errorf("%s: %s is taken", what, name)
			}
		}
	}

	states := open("sample", "--model=mix.json", "--count=4", "--steps=2", "--out=x.npz").(*sampleWork)
	hold("sample of states", func() *shard.Result { return make(states, sampleShard{shard.Range{N: 4}, 4}) }, states.check(4), map[string]change{
		"a state too few": {"x", cut}, "no number": {"x", nan}, "a negative count": {"stats", func(x *shard.Array) { x.Floats[0] = -1 }}, "another name": {"x", func(x *shard.Array) { x.Name = "y" }},
	})
	pictures := open("sample", "--count=2", "--steps=1", "--out=x.png").(*sampleWork)
	hold("sample of pictures", func() *shard.Result { return make(pictures, sampleShard{shard.Range{N: 2}, 2}) }, pictures.check(2), map[string]change{
		"a byte too many": {"pix", func(x *shard.Array) { x.Bytes = append(x.Bytes, 0) }},
	})
	for _, bad := range []any{sampleShard{shard.Range{From: 3, N: 2}, 2}, sampleShard{shard.Range{N: 2}, 0}, sampleShard{shard.Range{From: -1, N: 1}, 1}, "x"} {
		if _, err := states.Do(t.Context(), shard.New(0, bad), func(float64) {}); err == nil {
			t.Errorf("shard %v of 4 images is made", bad)
		}
	}

	cells := open("bench", "--model=mix.json", "--samplers=euler", "--nfe=3", "--count=6", "--metric=energy", "--out=b").(*benchWork)
	cell := cells.cells[0]
	wanted := bench.Want{Cell: cell, N: 6, Batch: 6}
	hold("bench", func() *shard.Result { return make(cells, benchShard{cell.Key, shard.Range{N: 6}, 6, 0}) }, func(r *shard.Result) error {
		_, err := cells.piece(r, wanted)
		return err
	}, map[string]change{
		"a number too few": {"rows", cut}, "no number": {"rows", nan}, "a feature that is none": {"rows", func(x *shard.Array) { x.Floats[1] = math.Inf(1) }},
		"negative evaluations": {"rows", func(x *shard.Array) { x.Floats[0] = -3 }}, "pictures of states": {"pix", func(x *shard.Array) { x.Bytes = []byte{1} }}, "a negative cost": {"cost", func(x *shard.Array) { x.Floats[2] = -1 }},
	})
	for _, bad := range []benchShard{{"other", shard.Range{N: 6}, 6, 0}, {cell.Key, shard.Range{N: 7}, 6, 0}, {cell.Key, shard.Range{N: 6}, 0, 0}} {
		if _, err := cells.Do(t.Context(), shard.New(0, bad), func(float64) {}); err == nil {
			t.Errorf("shard %v of a bench is made", bad)
		}
	}
}

// TestTravel: names of files in a line, in every place where they stand.
func TestTravel(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	far := t.TempDir()
	for _, name := range []string{"a.json", "sub/b.star", "grid.json", filepath.Join(far, "w.safetensors"), "out.npz"} {
		if err := os.MkdirAll(filepath.Dir(name), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(name), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	a := &app{getenv: func(string) string { return "" }, out: io.Discard, err: io.Discard}
	line, files, err := a.travel([]string{"sample", "--model=a.json", "--guider=energy:file=sub/b.star,scale=2", "--schedule=@grid.json", "--lora=" + filepath.Join(far, "w.safetensors") + ":0.8", "--out=out.npz", "--steps=10"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		names = append(names, f.Path)
	}
	slices.Sort(names)
	if len(names) != 4 || names[0] != "a.json" || !strings.HasPrefix(names[1], "files/") || names[2] != "grid.json" || names[3] != "sub/b.star" {
		t.Errorf("files %v", names)
	}
	want := []string{"sample", "--model=a.json", "--guider=energy:file=sub/b.star,scale=2", "--schedule=@grid.json", "--lora=" + names[1] + ":0.8", "--out=out.npz", "--steps=10"}
	if !slices.Equal(line, want) {
		t.Errorf("line %q, want %q", line, want)
	}
}

// certify writes the certificate and key of a name, signed by an authority that it writes too.
func certify(t *testing.T, dir string, names ...string) {
	t.Helper()
	write := func(name, kind string, der []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	rootKey := key()
	der, err := x509.CreateCertificate(rand.Reader, root, root, rootKey.Public(), rootKey)
	if err != nil {
		t.Fatal(err)
	}
	write("ca.pem", "CERTIFICATE", der)
	for i, name := range names {
		c := &x509.Certificate{SerialNumber: big.NewInt(int64(i + 2)), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
		k := key()
		if der, err = x509.CreateCertificate(rand.Reader, c, root, k.Public(), rootKey); err != nil {
			t.Fatal(err)
		}
		write(name+".pem", "CERTIFICATE", der)
		if der, err = x509.MarshalPKCS8PrivateKey(k); err != nil {
			t.Fatal(err)
		}
		write(name+".key", "PRIVATE KEY", der)
	}
}

// TestTLS: certificates of both sides; who has none, or does not know the authority, stays outside. A wrong token does too.
func TestTLS(t *testing.T) {
	t.Parallel()
	w := newTown(t, 2, 50)
	certify(t, w.dir, "server", "worker")
	if err := os.WriteFile(filepath.Join(w.dir, "wrong"), []byte("another secret\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	argv := append([]string{"drift", "serve", "--listen", "127.0.0.1:0", "--token-file", "token", "--tls-cert", "server.pem", "--tls-key", "server.key", "--tls-ca", "ca.pem"}, w.line...)
	serve := launch(t, w.dir, append(argv, "--out", "many.npz", "--json")...)
	url := "tls://" + serve.await(1, of("listen")).Address
	own := []string{"--tls-cert", "worker.pem", "--tls-key", "worker.key"}
	for what, flags := range map[string][]string{
		"no certificate":       {"--tls-ca", "ca.pem", "--token-file", "token"},
		"an unknown authority": append([]string{"--token-file", "token"}, own...),
		"a wrong token":        append([]string{"--tls-ca", "ca.pem", "--token-file", "wrong"}, own...),
		"no token":             append([]string{"--tls-ca", "ca.pem"}, own...),
	} {
		p := launch(t, w.dir, append([]string{"drift", "worker", "--url", url, "--patience", "1s", "--json"}, flags...)...)
		if code := p.wait(); code != 1 || len(p.shards(of("begin"))) > 0 {
			t.Errorf("%s: exit code %d: %s", what, code, p.err.String())
		}
	}
	p := launch(t, w.dir, append([]string{"drift", "worker", "--url", url, "--tls-ca", "ca.pem", "--token-file", "token", "--json"}, own...)...)
	serve.done()
	p.done()
	w.check(t)
}

// TestTravelONNX: an ONNX file takes its sidecar and its weights along.
func TestTravelONNX(t *testing.T) {
	from, err := filepath.Abs("../../models/ort/testdata")
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	for _, name := range []string{"external.onnx", "external.bin", "external.drift.json"} {
		b, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, b, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	a := &app{getenv: func(string) string { return "" }, out: io.Discard, err: io.Discard}
	_, files, err := a.travel([]string{"sample", "--model=external.onnx", "--out=x.npz"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		names = append(names, f.Path)
	}
	slices.Sort(names)
	if want := []string{"external.bin", "external.drift.json", "external.onnx"}; !slices.Equal(names, want) {
		t.Errorf("files %v, want %v", names, want)
	}
}

func FuzzKeys(f *testing.F) {
	f.Add([]byte("UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4 # a worker\n\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		keys, err := parseKeys(text)
		if err == nil && len(keys) == 0 {
			t.Fatal("no keys and no error")
		}
	})
}

// BenchmarkShard makes shards of 64 images by one worker of one thread, through the whole queue. overhead-% is what of the
// time is not spent inside the model.
func BenchmarkShard(b *testing.B) {
	a := &app{in: strings.NewReader(""), out: io.Discard, err: io.Discard, getenv: func(string) string { return "" }, stop: make(chan struct{}), share: 1}
	d, err := a.openWork(b.Context(), []string{"sample", fmt.Sprintf("--count=%d", 64*b.N), "--steps=10", "--sampler=euler", "--cfg-scale=1", "--out=x.npz"})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	s, err := queue.Start(queue.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	p, err := queue.NewPool(b.Context(), s, queue.Job{Config: d.Config()})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	nc, err := s.Connect()
	if err != nil {
		b.Fatal(err)
	}
	defer nc.Close()
	ready := make(chan struct{})
	go func() {
		w := &queue.Worker{Name: "w", Open: func(context.Context, queue.Job) (queue.Doer, error) { close(ready); return borrowed{d}, nil }}
		_, _ = w.Run(b.Context(), nc) // ends with the benchmark
	}()
	<-ready
	var specs []shard.Spec
	for i, r := range shard.Cut(64*b.N, 64) {
		specs = append(specs, shard.New(i, sampleShard{r, 32}))
	}
	b.ResetTimer()
	if err := p.Submit(b.Context(), specs); err != nil {
		b.Fatal(err)
	}
	model := 0.0
	for _, sp := range specs {
		r, err := p.Result(b.Context(), sp, d.(*sampleWork).check(64))
		if err != nil {
			b.Fatal(err)
		}
		model += r.Model
		if err := p.Forget(b.Context(), sp); err != nil {
			b.Fatal(err)
		}
	}
	wall := b.Elapsed().Seconds()
	b.ReportMetric(100*(wall-model)/wall, "overhead-%")
	b.ReportMetric(64*float64(b.N)/wall, "images/s")
}
