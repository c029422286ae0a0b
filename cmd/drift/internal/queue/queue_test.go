package queue

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"drift/cmd/drift/internal/shard"
)

// squares makes the squares of a range, and counts.
type squares struct {
	config string
	made   *atomic.Int64
	slow   time.Duration
}

func (s squares) Config() string { return s.config }
func (s squares) Close()         {}
func (s squares) Do(ctx context.Context, sp shard.Spec, step func(float64)) (*shard.Result, error) {
	var r shard.Range
	if err := json.Unmarshal(sp.Text, &r); err != nil {
		return nil, err
	}
	if r.From == 666 {
		return nil, errors.New("a bad number")
	}
	s.made.Add(1)
	sleep(ctx, s.slow)
	step(0.5)
	v := make([]float64, r.N)
	for i := range v {
		v[i] = math.Sqrt(float64(r.From+i)) * 7
	}
	return &shard.Result{Arrays: []shard.Array{{Name: "x", Floats: v}}}, ctx.Err()
}

const config = "squares"

func specs(n int) []shard.Spec {
	var out []shard.Spec
	for i, r := range shard.Cut(10*n, 10) {
		out = append(out, shard.New(i, r))
	}
	return out
}

func tens(r *shard.Result) error { _, err := r.Floats("x", 10); return err }

func start(t *testing.T, o Options) *Server {
	t.Helper()
	s, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func pool(t *testing.T, s *Server, job Job) *Pool {
	t.Helper()
	p, err := NewPool(t.Context(), s, job)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func connect(t *testing.T, s *Server) *nats.Conn {
	t.Helper()
	nc, err := s.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// hire runs a worker until the job is done.
func hire(ctx context.Context, t *testing.T, nc *nats.Conn, name string, d Doer) (wait func() (int, error)) {
	type end struct {
		n   int
		err error
	}
	ch := make(chan end, 1)
	w := &Worker{Name: name, Hello: "a test", Open: func(context.Context, Job) (Doer, error) { return d, nil }}
	go func() {
		n, err := w.Run(ctx, nc)
		ch <- end{n, err}
	}()
	return func() (int, error) {
		select {
		case e := <-ch:
			return e.n, e.err
		case <-time.After(20 * time.Second):
			t.Error(name + " does not end")
			return 0, errors.New("does not end")
		}
	}
}

// collect takes all results in order.
func collect(t *testing.T, p *Pool, list []shard.Spec) []float64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var out []float64
	for _, s := range list {
		r, err := p.Result(ctx, s, tens)
		if err != nil {
			t.Fatalf("shard %d: %v", s.ID, err)
		}
		v, _ := r.Floats("x", 10)
		out = append(out, v...)
	}
	return out
}

func wantSquares(t *testing.T, got []float64, n int) {
	t.Helper()
	if len(got) != n {
		t.Fatalf("%d numbers, want %d", len(got), n)
	}
	for i, v := range got {
		if v != math.Sqrt(float64(i))*7 {
			t.Fatalf("number %d is %v", i, v)
		}
	}
}

func TestWorkersShare(t *testing.T) {
	for _, workers := range []int{1, 3} {
		s := start(t, Options{})
		if s.Addr() != "" {
			t.Fatal("it listens though nobody asked")
		}
		p := pool(t, s, Job{Config: config})
		var events sync.Map
		p.Observe = func(e Event) { events.Store(fmt.Sprint(e.Kind, e.ID), e) }
		var made atomic.Int64
		list := specs(20)
		if err := p.Submit(t.Context(), list); err != nil {
			t.Fatal(err)
		}
		var wait []func() (int, error)
		for k := range workers {
			wait = append(wait, hire(t.Context(), t, connect(t, s), fmt.Sprint("w", k), squares{config, &made, 2 * time.Millisecond}))
		}
		wantSquares(t, collect(t, p, list), 200)
		if err := p.Forget(t.Context(), list...); err != nil {
			t.Fatal(err)
		}
		if err := p.Done(t.Context()); err != nil {
			t.Fatal(err)
		}
		sum := 0
		for _, f := range wait {
			n, err := f()
			if err != nil {
				t.Error(err)
			}
			sum += n
		}
		if sum != 20 || made.Load() != 20 {
			t.Errorf("%d workers made %d shards and stored %d, want 20", workers, made.Load(), sum)
		}
		for i := range 20 {
			if _, ok := events.Load(fmt.Sprint("shard", i)); !ok {
				t.Errorf("no event of shard %d", i)
			}
		}
	}
}

func TestFailure(t *testing.T) {
	s := start(t, Options{})
	p := pool(t, s, Job{Config: config})
	bad := shard.New(0, shard.Range{From: 666, N: 10})
	if err := p.Submit(t.Context(), []shard.Spec{bad}); err != nil {
		t.Fatal(err)
	}
	hire(t.Context(), t, connect(t, s), "w", squares{config, new(atomic.Int64), 0})
	_, err := p.Result(t.Context(), bad, tens)
	var f *shard.Failure
	if !errors.As(err, &f) || f.Kind != shard.Failed || f.Text != "a bad number" {
		t.Errorf("%v", err)
	}
}

func TestMismatch(t *testing.T) {
	s := start(t, Options{})
	pool(t, s, Job{Config: config})
	_, err := hire(t.Context(), t, connect(t, s), "w", squares{"another", new(atomic.Int64), 0})()
	var m *Mismatch
	if !errors.As(err, &m) {
		t.Errorf("a worker of another configuration: %v", err)
	}
}

// TestHostile: results that are not the shard's are refused, and made again by somebody else.
func TestHostile(t *testing.T) {
	s := start(t, Options{})
	p := pool(t, s, Job{Config: config})
	var refusals atomic.Int64
	p.Observe = func(e Event) {
		if e.Kind == "refused" {
			refusals.Add(1)
		}
	}
	nc := connect(t, s)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	list := specs(7)
	if err := p.Submit(t.Context(), list); err != nil {
		t.Fatal(err)
	}
	ten := make([]float64, 10)
	nan := slices.Clone(ten)
	nan[3] = math.NaN()
	put := func(i int, r *shard.Result) {
		key := list[i].Key(config)
		if r.Key == "" {
			r.Key = key
		}
		own := key
		if _, err := store(t.Context(), p.done, p.results, own, "evil", r); err != nil {
			t.Fatal(err)
		}
	}
	put(0, &shard.Result{Key: list[1].Key(config), Arrays: []shard.Array{{Name: "x", Floats: ten}}}) // of another shard
	put(1, &shard.Result{Arrays: []shard.Array{{Name: "x", Floats: ten[:9]}}})                       // of a wrong size
	put(2, &shard.Result{Arrays: []shard.Array{{Name: "x", Floats: nan}}})                           // not finite
	put(3, &shard.Result{Arrays: []shard.Array{{Name: "y", Floats: ten}}})                           // another name
	kv, err := js.KeyValue(t.Context(), done)
	if err != nil {
		t.Fatal(err)
	}
	for i, text := range map[int]string{4: `{"object":"nothing"}`, 5: `not JSON`, 6: `{"object":"` + list[6].Key(config) + `.absent"}`} {
		if _, err := kv.Create(t.Context(), list[i].Key(config), []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	hire(t.Context(), t, nc, "honest", squares{config, new(atomic.Int64), 0})
	wantSquares(t, collect(t, p, list), 70)
	if refusals.Load() != 7 {
		t.Errorf("%d refusals, want 7", refusals.Load())
	}
}

// TestAlwaysHostile: it does not go on for ever.
func TestAlwaysHostile(t *testing.T) {
	s := start(t, Options{})
	p := pool(t, s, Job{Config: config})
	list := specs(1)
	if err := p.Submit(t.Context(), list); err != nil {
		t.Fatal(err)
	}
	hire(t.Context(), t, connect(t, s), "w", squares{config, new(atomic.Int64), 0})
	_, err := p.Result(t.Context(), list[0], func(*shard.Result) error { return errors.New("never right") })
	if err == nil || !strings.Contains(err.Error(), "5 results refused") {
		t.Errorf("%v", err)
	}
}

// TestRestart: on the same folder the job goes on; nothing that is stored is made again.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	list := specs(8)
	var made atomic.Int64
	func() {
		s, err := Start(Options{Store: dir, Lost: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		p, err := NewPool(t.Context(), s, Job{Config: config})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if err := p.Submit(t.Context(), list[:6]); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		wait := hire(ctx, t, connect(t, s), "first", squares{config, &made, 0})
		collect(t, p, list[:6])
		cancel()
		if _, err := wait(); !errors.Is(err, context.Canceled) {
			t.Errorf("a worker that was cancelled: %v", err)
		}
		if err := p.Forget(t.Context(), list[0]); err != nil { // as if it were merged
			t.Fatal(err)
		}
	}()
	s := start(t, Options{Store: dir, Lost: time.Second})
	if _, err := NewPool(t.Context(), s, Job{Config: "another"}); !errors.Is(err, ErrOther) {
		t.Errorf("another job on the same folder: %v", err)
	}
	p := pool(t, s, Job{Config: config})
	if err := p.Submit(t.Context(), list); err != nil {
		t.Fatal(err)
	}
	info, err := p.stream.Info(t.Context())
	if err != nil || info.State.Msgs != 2 {
		t.Errorf("%d shards wait after the restart, want 2 (%v)", info.State.Msgs, err)
	}
	hire(t.Context(), t, connect(t, s), "second", squares{config, &made, 0})
	wantSquares(t, collect(t, p, list), 80)
	if n := made.Load(); n != 9 { // 8, and the forgotten one again
		t.Errorf("%d shards made, want 9", n)
	}
}

// TestLost: the shard of a silent worker goes to another; what the first one stores later is refused.
func TestLost(t *testing.T) {
	s := start(t, Options{Lost: 200 * time.Millisecond})
	p := pool(t, s, Job{Config: config})
	list := specs(2)
	if err := p.Submit(t.Context(), list); err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(connect(t, s))
	if err != nil {
		t.Fatal(err)
	}
	cons, err := js.Consumer(t.Context(), shards, consumer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cons.Next(); err != nil { // takes a shard and says nothing more
		t.Fatal(err)
	}
	var made atomic.Int64
	hire(t.Context(), t, connect(t, s), "w", squares{config, &made, 0})
	wantSquares(t, collect(t, p, list), 20)
	r := &shard.Result{Key: list[0].Key(config), Arrays: []shard.Array{{Name: "x", Floats: make([]float64, 10)}}}
	if first, err := store(t.Context(), p.done, p.results, r.Key, "late", r); first || err != nil {
		t.Errorf("a second result of a shard: %v, %v", first, err)
	}
	wantSquares(t, collect(t, p, list), 20)
}

// TestDoor: who listens wants a token or key; a worker may do what the work asks for and no more.
func TestDoor(t *testing.T) {
	for _, o := range []Options{{Listen: "127.0.0.1:0"}, {Listen: "0.0.0.0:0", Open: true}, {Listen: "nowhere", Token: "x"}, {Listen: "256.0.0.1:0", Token: "x"}} {
		if s, err := Start(o); err == nil {
			s.Close()
			t.Errorf("%+v starts", o)
		}
	}
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, Options{Listen: "127.0.0.1:0", Token: "secret", Keys: []string{public}})
	p := pool(t, s, Job{Config: config})
	list := specs(3)
	if err := p.Submit(t.Context(), list); err != nil {
		t.Fatal(err)
	}
	url := "nats://" + s.Addr()
	for what, opt := range map[string]nats.Option{
		"no token": nats.Name("x"), "a wrong token": nats.UserInfo(workerUser, "secreT"), "an empty token": nats.UserInfo(workerUser, ""), "the coordinator's name": nats.UserInfo(ownUser, "secret"),
	} {
		if nc, err := nats.Connect(url, opt); err == nil {
			nc.Close()
			t.Errorf("%s opens the door", what)
		}
	}
	key, err := nats.Connect(url, nats.Nkey(public, pair.Sign))
	if err != nil {
		t.Fatalf("a key: %v", err)
	}
	key.Close()
	nc, err := nats.Connect(url, nats.UserInfo(workerUser, "secret"), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	for _, subject := range []string{"$JS.API.STREAM.DELETE." + shards, "$JS.API.STREAM.PURGE." + shards, "$JS.API.STREAM.CREATE.mine", shards + ".x", "$KV." + jobs + "." + stateKey, "$O." + files + ".C.x"} {
		if m, err := nc.Request(subject, []byte("{}"), 200*time.Millisecond); err == nil {
			t.Errorf("a worker may use %s: %s", subject, m.Data)
		}
	}
	hire(t.Context(), t, nc, "remote", squares{config, new(atomic.Int64), 0})
	wantSquares(t, collect(t, p, list), 30)
}

func TestOpenDoor(t *testing.T) {
	s := start(t, Options{Listen: "127.0.0.1:0", Open: true})
	p := pool(t, s, Job{Config: config})
	nc, err := nats.Connect("nats://" + s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	list := specs(1)
	if err := p.Submit(t.Context(), list); err != nil {
		t.Fatal(err)
	}
	hire(t.Context(), t, nc, "w", squares{config, new(atomic.Int64), 0})
	wantSquares(t, collect(t, p, list), 10)
}

// TestFiles: files travel once, by hash, and nothing else does.
func TestFiles(t *testing.T) {
	src, cache := t.TempDir(), t.TempDir()
	text := strings.Repeat("weights ", 100_000)
	for name, s := range map[string]string{"a.bin": text, "sub/b.json": "{}", "c.bin": text} {
		at := filepath.Join(src, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(s), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	list, err := Files(src, "model")
	if err != nil || len(list) != 3 {
		t.Fatalf("%v, %v", list, err)
	}
	s := start(t, Options{Listen: "127.0.0.1:0", Token: "secret"})
	pool(t, s, Job{Config: config, Files: list})
	nc, err := nats.Connect("nats://"+s.Addr(), nats.UserInfo(workerUser, "secret"))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	objects, err := js.ObjectStore(t.Context(), files)
	if err != nil {
		t.Fatal(err)
	}
	for round, want := range []int{2, 0} { // a.bin and c.bin are the same
		came := 0
		room := t.TempDir()
		c := &Cache{Dir: cache, Room: room, Taken: func(File) { came++ }}
		if err := c.take(t.Context(), nc, objects, list); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"model/a.bin", "model/c.bin"} {
			if b, err := os.ReadFile(filepath.Join(room, name)); err != nil || string(b) != text {
				t.Errorf("%s: %d bytes, %v", name, len(b), err)
			}
		}
		if b, err := os.ReadFile(filepath.Join(room, "model/sub/b.json")); err != nil || string(b) != "{}" {
			t.Errorf("b.json: %q, %v", b, err)
		}
		if came != want {
			t.Errorf("round %d: %d files came, want %d", round, came, want)
		}
	}
	sum := func(s string) string { h := sha256.Sum256([]byte(s)); return hex.EncodeToString(h[:]) }
	for what, f := range map[string]File{
		"an unknown hash":     {Path: "x", SHA256: sum("nothing"), Size: 3},
		"a path that climbs":  {Path: "../x", SHA256: sum(text), Size: int64(len(text))},
		"an absolute path":    {Path: "/tmp/x", SHA256: sum(text), Size: int64(len(text))},
		"no hash":             {Path: "x", SHA256: "../../x", Size: 3},
		"a hash in capitals":  {Path: "x", SHA256: strings.ToUpper(sum(text)), Size: 3},
		"a negative size":     {Path: "x", SHA256: sum(text), Size: -1},
		"a size beyond bound": {Path: "x", SHA256: sum(text), Size: 1 << 50},
		"a wrong size":        {Path: "x", SHA256: sum("{}"), Size: 1},
	} {
		dir := t.TempDir()
		if err := (&Cache{Dir: dir, Room: t.TempDir()}).take(t.Context(), nc, objects, []File{f}); err == nil {
			t.Errorf("%s is taken", what)
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("%s leaves %s", what, left[0].Name())
		}
	}
	// bytes that are not those of the name
	own := connect(t, s)
	mine, err := jetstream.New(own)
	if err != nil {
		t.Fatal(err)
	}
	forge, err := mine.ObjectStore(t.Context(), files)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := forge.PutBytes(t.Context(), sum("{}"), []byte("[]")); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := (&Cache{Dir: dir, Room: t.TempDir()}).take(t.Context(), nc, objects, []File{{Path: "x", SHA256: sum("{}"), Size: 2}}); err == nil || !strings.Contains(err.Error(), "is not what the job names") {
		t.Errorf("forged bytes: %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("forged bytes leave %s", left[0].Name())
	}
}

// FuzzJob: what a coordinator says about files never leads out of the room.
func FuzzJob(f *testing.F) {
	b, _ := json.Marshal(Job{Config: config, Args: []string{"sample"}, Files: []File{{Path: "a/b", SHA256: strings.Repeat("0a", 32), Size: 3}}})
	f.Add(b)
	f.Fuzz(func(t *testing.T, text []byte) {
		var j Job
		if json.Unmarshal(text, &j) != nil || (&Cache{}).check(j.Files) != nil {
			return
		}
		for _, x := range j.Files {
			if at := filepath.Join("/room", filepath.FromSlash(x.Path)); !strings.HasPrefix(at, "/room") || len(x.SHA256) != 64 || x.Size < 0 {
				t.Fatalf("%+v is taken: %s", x, at)
			}
		}
	})
}
