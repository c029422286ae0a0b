package queue

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"drift/cmd/drift/internal/shard"
)

// The names on the server.
const (
	shards   = "shards" // stream of work, subjects shards.KEY
	consumer = "workers"
	done     = "done"    // bucket of markers, by key
	jobs     = "job"     // bucket with the job
	results  = "results" // objects
	files    = "files"   // objects, by SHA-256
	want     = "drift.want"
	progress = "drift.progress"
	over     = "drift.over" // there is no more work

	jobKey   = "job"
	stateKey = "state"
)

// long bounds what may take long: an object of any size.
const long = 6 * time.Hour

// Job is what a worker has to know.
type Job struct {
	Config  string   `json:"config"` // hash of all that decides results
	Version string   `json:"version"`
	Tier    string   `json:"tier"`
	Arch    string   `json:"arch"`
	Args    []string `json:"args"` // the command line that the worker opens
	Files   []File   `json:"files"`
	Lost    float64  `json:"lost_seconds"`
}

// marker says that a shard is done.
type marker struct {
	Object string  `json:"object"`
	Worker string  `json:"worker"`
	Took   float64 `json:"seconds"`
	Failed bool    `json:"failed,omitempty"`
}

// report is a worker's word on what it does.
type report struct {
	Worker string  `json:"worker"`
	Hello  string  `json:"hello,omitempty"` // at the start: what it is
	Key    string  `json:"key,omitempty"`
	Done   float64 `json:"done,omitempty"`
}

// Event is what happens in a job.
type Event struct {
	Kind    string  // "worker", "shard", "refused", "progress"
	Worker  string  // who
	Text    string  // what a worker is, why a result was refused
	ID      int     // of the shard
	Seconds float64 // that it took
	Done    float64 // shards done, with parts of those under way ...
	Of      int     // ... of those submitted
}

// Pool is the coordinator's end: shards go out, results come in.
type Pool struct {
	Observe func(Event) // may be nil; not called concurrently

	job     Job
	nc      *nats.Conn
	js      jetstream.JetStream
	stream  jetstream.Stream
	done    jetstream.KeyValue
	jobs    jetstream.KeyValue
	results jetstream.ObjectStore
	files   jetstream.ObjectStore
	cancel  context.CancelFunc
	tell    sync.Mutex

	mu      sync.Mutex
	news    chan struct{} // closed and made anew whenever a marker comes
	have    map[string]marker
	open    map[string]shard.Spec // submitted and not finished
	queued  map[string]bool       // in the stream
	refused map[string]int
	parts   map[string]report // by worker
	total   int
	putting map[string]string // files under way: "wait", "ready", or an error
}

// ErrOther says that a store belongs to another job.
var ErrOther = errors.New("queue: the store holds another job")

// NewPool begins a job, or goes on with it.
func NewPool(ctx context.Context, s *Server, job Job) (*Pool, error) {
	p := &Pool{job: job, have: map[string]marker{}, open: map[string]shard.Spec{}, queued: map[string]bool{}, refused: map[string]int{}, parts: map[string]report{}, putting: map[string]string{}, news: make(chan struct{})}
	p.job.Lost = s.o.lost().Seconds()
	var err error
	if p.nc, err = s.Connect(); err != nil {
		return nil, err
	}
	inner, cancel := context.WithCancel(ctx)
	p.cancel = cancel
	if err := p.begin(inner, s); err != nil {
		p.Close()
		return nil, fmt.Errorf("queue: %w", err)
	}
	return p, nil
}

func (p *Pool) begin(ctx context.Context, s *Server) (err error) {
	store := jetstream.FileStorage
	if s.memory {
		store = jetstream.MemoryStorage
	}
	if p.js, err = jetstream.New(p.nc, jetstream.WithDefaultTimeout(30*time.Second)); err != nil {
		return err
	}
	if p.jobs, err = p.js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: jobs, Storage: store}); err != nil {
		return err
	}
	if old, err := p.jobs.Get(ctx, jobKey); err == nil {
		var j Job
		if json.Unmarshal(old.Value(), &j) != nil || j.Config != p.job.Config {
			return ErrOther
		}
	}
	if p.stream, err = p.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{Name: shards, Subjects: []string{shards + ".*"}, Retention: jetstream.WorkQueuePolicy, Storage: store}); err != nil {
		return err
	}
	if _, err = p.stream.CreateOrUpdateConsumer(ctx, jetstream.ConsumerConfig{Durable: consumer, AckPolicy: jetstream.AckExplicitPolicy, AckWait: s.o.lost(), MaxAckPending: -1}); err != nil {
		return err
	}
	if p.done, err = p.js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: done, Storage: store}); err != nil {
		return err
	}
	if p.results, err = p.js.CreateOrUpdateObjectStore(ctx, jetstream.ObjectStoreConfig{Bucket: results, Storage: store}); err != nil {
		return err
	}
	if p.files, err = p.js.CreateOrUpdateObjectStore(ctx, jetstream.ObjectStoreConfig{Bucket: files, Storage: store}); err != nil {
		return err
	}
	info, err := p.stream.Info(ctx, jetstream.WithSubjectFilter(shards+".*"))
	if err != nil {
		return err
	}
	for subject := range info.State.Subjects {
		p.queued[strings.TrimPrefix(subject, shards+".")] = true
	}
	if err := p.watch(ctx); err != nil {
		return err
	}
	if _, err := p.nc.Subscribe(progress, p.hear); err != nil {
		return err
	}
	if _, err := p.nc.Subscribe(want, func(m *nats.Msg) { _ = m.Respond([]byte(p.wanted(ctx, string(m.Data)))) }); err != nil {
		return err
	}
	text, err := json.Marshal(p.job)
	if err != nil {
		return err
	}
	if _, err := p.jobs.Put(ctx, stateKey, []byte("running")); err != nil {
		return err
	}
	_, err = p.jobs.Put(ctx, jobKey, text) // last: now workers find all of it
	return err
}

// watch follows the markers, those of an earlier process first. Failures of then are tried again.
func (p *Pool) watch(ctx context.Context) error {
	w, err := p.done.WatchAll(ctx)
	if err != nil {
		return err
	}
	for e := range w.Updates() {
		if e == nil {
			break
		}
		var m marker
		if e.Operation() != jetstream.KeyValuePut {
			continue
		}
		if json.Unmarshal(e.Value(), &m) != nil || m.Failed {
			if err := p.done.Purge(ctx, e.Key()); err != nil {
				return err
			}
			continue
		}
		p.have[e.Key()] = m
	}
	go func() {
		for e := range w.Updates() {
			if e == nil || e.Operation() != jetstream.KeyValuePut {
				continue
			}
			var m marker
			if json.Unmarshal(e.Value(), &m) != nil {
				m = marker{} // no object of that name: it will be refused
			}
			p.mu.Lock()
			p.have[e.Key()] = m
			spec, ours := p.open[e.Key()]
			delete(p.open, e.Key())
			maps.DeleteFunc(p.parts, func(_ string, r report) bool { return r.Key == e.Key() })
			close(p.news)
			p.news = make(chan struct{})
			ev := Event{Kind: "shard", Worker: m.Worker, ID: spec.ID, Seconds: m.Took}
			ev.Done, ev.Of = p.sum()
			p.mu.Unlock()
			if ours {
				p.emit(ev)
			}
		}
	}()
	return nil
}

func (p *Pool) emit(e Event) {
	p.tell.Lock()
	defer p.tell.Unlock()
	if p.Observe != nil {
		p.Observe(e)
	}
}

// sum is the work done, of all that was submitted. The lock is held.
func (p *Pool) sum() (float64, int) {
	n := float64(p.total - len(p.open))
	for _, r := range p.parts {
		if _, ok := p.open[r.Key]; ok {
			n += min(max(r.Done, 0), 1)
		}
	}
	return n, p.total
}

// hear takes the word of a worker.
func (p *Pool) hear(m *nats.Msg) {
	var r report
	if len(m.Data) > 4096 || json.Unmarshal(m.Data, &r) != nil {
		return
	}
	if r.Hello != "" {
		p.emit(Event{Kind: "worker", Worker: r.Worker, Text: r.Hello})
		return
	}
	p.mu.Lock()
	if _, ok := p.open[r.Key]; ok && len(p.parts) < 10_000 {
		p.parts[r.Worker] = r
	}
	e := Event{Kind: "progress", Worker: r.Worker}
	e.Done, e.Of = p.sum()
	p.mu.Unlock()
	p.emit(e)
}

// Submit publishes shards that are neither done nor waiting.
func (p *Pool) Submit(ctx context.Context, specs []shard.Spec) error {
	for _, s := range specs {
		key := s.Key(p.job.Config)
		p.mu.Lock()
		_, have := p.have[key]
		waiting := p.queued[key]
		if _, known := p.open[key]; !have && !known {
			p.open[key] = s
			p.total++
		}
		p.queued[key] = true
		p.mu.Unlock()
		if have || waiting {
			continue
		}
		if err := p.publish(ctx, key, s); err != nil {
			return err
		}
	}
	return nil
}

func (p *Pool) publish(ctx context.Context, key string, s shard.Spec) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if _, err := p.js.Publish(ctx, shards+"."+key, text); err != nil {
		return fmt.Errorf("queue: shard %d: %w", s.ID, err)
	}
	return nil
}

// mostRefusals of a shard's results end the job.
const mostRefusals = 5

// Result waits for the result of a submitted shard and holds it to its key and to check. What is refused is made again.
func (p *Pool) Result(ctx context.Context, s shard.Spec, check func(*shard.Result) error) (*shard.Result, error) {
	key := s.Key(p.job.Config)
	for {
		p.mu.Lock()
		m, ok := p.have[key]
		news := p.news
		p.mu.Unlock()
		if !ok {
			select {
			case <-news:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			continue
		}
		r, err := p.fetch(ctx, key, m)
		if err == nil && r.Fail == nil {
			err = check(r)
		}
		if err == nil {
			if r.Fail != nil {
				return nil, r.Fail
			}
			return r, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		p.mu.Lock()
		p.refused[key]++
		n := p.refused[key]
		p.mu.Unlock()
		p.emit(Event{Kind: "refused", Worker: m.Worker, ID: s.ID, Text: err.Error()})
		if n >= mostRefusals {
			return nil, fmt.Errorf("queue: shard %d: %d results refused, the last of %s: %w", s.ID, n, m.Worker, err)
		}
		p.mu.Lock()
		delete(p.have, key)
		p.open[key] = s
		p.mu.Unlock()
		if err := p.drop(ctx, m); err != nil {
			return nil, err
		}
		if err := p.done.Purge(ctx, key); err != nil {
			return nil, fmt.Errorf("queue: %w", err)
		}
		if err := p.publish(ctx, key, s); err != nil {
			return nil, err
		}
	}
}

func (p *Pool) fetch(ctx context.Context, key string, m marker) (*shard.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, long)
	defer cancel()
	if !strings.HasPrefix(m.Object, key) {
		return nil, fmt.Errorf("queue: result: the marker names %.60q", m.Object)
	}
	info, err := p.results.GetInfo(ctx, m.Object)
	if err != nil {
		return nil, fmt.Errorf("queue: result: %w", err)
	}
	if info.Size > maxResult {
		return nil, fmt.Errorf("queue: result: %d bytes", info.Size)
	}
	b, err := p.results.GetBytes(ctx, m.Object)
	if err != nil {
		return nil, fmt.Errorf("queue: result: %w", err)
	}
	return shard.Decode(b, key)
}

// maxResult bounds a result.
const maxResult = 1 << 30

func (p *Pool) drop(ctx context.Context, m marker) error {
	if err := p.results.Delete(ctx, m.Object); err != nil && !errors.Is(err, jetstream.ErrObjectNotFound) && m.Object != "" {
		return fmt.Errorf("queue: %w", err)
	}
	return nil
}

// Forget gives the room of a merged result back. Its marker stays: whoever makes the shard again is refused.
func (p *Pool) Forget(ctx context.Context, specs ...shard.Spec) error {
	for _, s := range specs {
		p.mu.Lock()
		m, ok := p.have[s.Key(p.job.Config)]
		p.mu.Unlock()
		if ok {
			if err := p.drop(ctx, m); err != nil {
				return err
			}
		}
	}
	return nil
}

// Done tells the workers that there is no more work.
func (p *Pool) Done(ctx context.Context) error {
	if _, err := p.jobs.Put(ctx, stateKey, []byte("done")); err != nil {
		return fmt.Errorf("queue: %w", err)
	}
	if err := errors.Join(p.nc.Publish(over, nil), p.nc.Flush()); err != nil {
		return fmt.Errorf("queue: %w", err)
	}
	return nil
}

// Close ends the pool. Shards that are not done stay in the store.
func (p *Pool) Close() {
	p.cancel()
	p.nc.Close()
}

// wanted answers a worker that asks for a file.
func (p *Pool) wanted(ctx context.Context, sum string) string {
	var f *File
	for i := range p.job.Files {
		if p.job.Files[i].SHA256 == sum {
			f = &p.job.Files[i]
		}
	}
	if f == nil {
		return "no such file in this job"
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if s, ok := p.putting[sum]; ok {
		return s
	}
	p.putting[sum] = "wait"
	go func() {
		state := "ready"
		if err := p.put(ctx, f); err != nil {
			state = "failed: " + err.Error()
		}
		p.mu.Lock()
		p.putting[sum] = state
		p.mu.Unlock()
	}()
	return "wait"
}

func (p *Pool) put(ctx context.Context, f *File) error {
	ctx, cancel := context.WithTimeout(ctx, long)
	defer cancel()
	if info, err := p.files.GetInfo(ctx, f.SHA256); err == nil && info.Size == uint64(f.Size) {
		return nil
	}
	in, err := os.Open(f.source)
	if err != nil {
		return err
	}
	defer in.Close()
	_, err = p.files.Put(ctx, jetstream.ObjectMeta{Name: f.SHA256}, io.LimitReader(in, f.Size))
	return err
}

// store puts a result under its key unless one is there; first tells whether it was put.
func store(ctx context.Context, done jetstream.KeyValue, objects jetstream.ObjectStore, key, unique string, r *shard.Result) (first bool, err error) {
	if _, err := done.Get(ctx, key); err == nil {
		return false, nil
	}
	b, err := r.Encode()
	if err != nil {
		return false, err
	}
	name := key + "." + unique
	if _, err := objects.Put(ctx, jetstream.ObjectMeta{Name: name}, bytes.NewReader(b)); err != nil {
		return false, err
	}
	text, err := json.Marshal(marker{Object: name, Worker: r.Worker, Took: r.Seconds, Failed: r.Fail != nil})
	if err != nil {
		return false, err
	}
	_, err = done.Create(ctx, key, text)
	if errors.Is(err, jetstream.ErrKeyExists) {
		return false, nil
	}
	return err == nil, err
}
