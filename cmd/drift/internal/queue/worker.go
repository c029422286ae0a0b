package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"drift/cmd/drift/internal/shard"
)

// Doer makes shards.
type Doer interface {
	// Config is the hash of all that decides results, as this process sees it.
	Config() string
	// Do makes a shard; step is told how much of it is done.
	Do(ctx context.Context, s shard.Spec, step func(done float64)) (*shard.Result, error)
	// Close gives back what it holds.
	Close()
}

// Worker takes shards from a server, one at a time, until the job is done.
type Worker struct {
	Name  string
	Hello string                                           // what it is, for people
	Open  func(ctx context.Context, job Job) (Doer, error) // opens the job; called once
	Files *Cache                                           // where files of the job go; nil: they are here already
	// Begun is told that a shard begins; may be nil.
	Begun func(s shard.Spec)
	// Stored is told that a result is in the store, and whether it was the first, before the shard is acknowledged; may be nil.
	Stored func(s shard.Spec, r *shard.Result, first bool)
	// Sort makes a Failure of an error; nil: all are Failed.
	Sort func(error) *shard.Failure
}

// Mismatch says that this process would not make the same bits.
type Mismatch struct{ Reason string }

func (m *Mismatch) Error() string { return "queue: " + m.Reason }

// errOver ends a worker whose job is done.
var errOver = errors.New("queue: the job is done")

// Run works until the job is done, and returns the number of shards that it made. What is under way then is not finished:
// another made it before.
func (w *Worker) Run(ctx context.Context, nc *nats.Conn) (int, error) {
	own, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	sub, err := nc.Subscribe(over, func(*nats.Msg) { cancel(errOver) })
	if err != nil {
		return 0, fmt.Errorf("queue: %w", err)
	}
	n, err := w.run(own, nc)
	if err != nil && context.Cause(own) == errOver {
		err = nil
	}
	_ = sub.Unsubscribe() // fails on a connection that is closed
	return n, err
}

func (w *Worker) run(ctx context.Context, nc *nats.Conn) (n int, err error) {
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(5*time.Second))
	if err != nil {
		return 0, fmt.Errorf("queue: %w", err)
	}
	var job Job
	var state jetstream.KeyValue
	if err := retry(ctx, func() error { // the coordinator may not be up yet
		if state, err = js.KeyValue(ctx, jobs); err != nil {
			return err
		}
		e, err := state.Get(ctx, jobKey)
		if err != nil {
			return err
		}
		return json.Unmarshal(e.Value(), &job)
	}); err != nil {
		return 0, err
	}
	var cons jetstream.Consumer
	var marks jetstream.KeyValue
	var objects jetstream.ObjectStore
	if err := retry(ctx, func() (err error) {
		if cons, err = js.Consumer(ctx, shards, consumer); err != nil {
			return err
		}
		if marks, err = js.KeyValue(ctx, done); err != nil {
			return err
		}
		objects, err = js.ObjectStore(ctx, results)
		return err
	}); err != nil {
		return 0, err
	}
	if w.Files != nil {
		store, err := js.ObjectStore(ctx, files)
		if err != nil {
			return 0, fmt.Errorf("queue: %w", err)
		}
		if err := w.Files.take(ctx, nc, store, job.Files); err != nil {
			return 0, err
		}
	}
	doer, err := w.Open(ctx, job)
	if err != nil {
		return 0, err
	}
	defer doer.Close()
	if doer.Config() != job.Config {
		return 0, &Mismatch{"this worker would not make the same bits as the coordinator: the model, a file or a setting differs"}
	}
	w.say(nc, report{Hello: w.Hello})
	lost := time.Duration(job.Lost * float64(time.Second))
	for {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		// While work waits, the answer is at once; the wait only bounds how long the end of the job stays unseen.
		wait, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		msg, err := cons.Next(jetstream.FetchContext(wait))
		cancel()
		if err != nil {
			if ctx.Err() != nil {
				return n, ctx.Err()
			}
			if !errors.Is(err, nats.ErrTimeout) && !errors.Is(err, context.DeadlineExceeded) {
				sleep(ctx, 100*time.Millisecond)
			}
			if e, err := state.Get(ctx, stateKey); err == nil && string(e.Value()) == "done" {
				return n, nil
			}
			if nc.IsClosed() {
				return n, fmt.Errorf("queue: %w", nats.ErrConnectionClosed)
			}
			continue
		}
		made, err := w.one(ctx, nc, doer, marks, objects, job, msg, lost)
		if err != nil {
			return n, err
		}
		if made {
			n++
		}
	}
}

// one makes the shard of a message.
func (w *Worker) one(ctx context.Context, nc *nats.Conn, doer Doer, marks jetstream.KeyValue, objects jetstream.ObjectStore, job Job, msg jetstream.Msg, lost time.Duration) (bool, error) {
	var spec shard.Spec
	if err := json.Unmarshal(msg.Data(), &spec); err != nil {
		return false, fmt.Errorf("queue: a shard that does not read: %w", err)
	}
	key := spec.Key(job.Config)
	if msg.Subject() != shards+"."+key {
		return false, &Mismatch{fmt.Sprintf("shard %d is not of this job", spec.ID)}
	}
	if _, err := marks.Get(ctx, key); err == nil { // made already, by one that was lost before it could say so
		return false, retry(ctx, func() error { return ack(ctx, msg) })
	}
	beat, end := context.WithCancel(ctx)
	var part atomic.Uint64
	go func() {
		t := time.NewTicker(max(lost/4, 10*time.Millisecond))
		defer t.Stop()
		show := time.NewTicker(250 * time.Millisecond)
		defer show.Stop()
		for {
			select {
			case <-t.C:
				_ = msg.InProgress() // while there is no connection the shard may be lost: then another makes it, too
			case <-show.C:
				w.say(nc, report{Key: key, Done: float64(part.Load()) / 1e6})
			case <-beat.Done():
				return
			}
		}
	}()
	if w.Begun != nil {
		w.Begun(spec)
	}
	began := time.Now()
	r, err := doer.Do(ctx, spec, func(done float64) { part.Store(uint64(1e6 * min(max(done, 0), 1))) })
	if err != nil {
		if ctx.Err() != nil {
			end()
			_ = msg.Nak() // another may take it at once
			return false, ctx.Err()
		}
		f := &shard.Failure{Kind: shard.Failed, Text: err.Error()}
		if w.Sort != nil {
			f = w.Sort(err)
		}
		r = &shard.Result{Fail: f}
	}
	r.Key, r.Worker, r.Seconds = key, w.Name, time.Since(began).Seconds()
	ctx, stop := after(ctx, 2*time.Second) // a result that is there is stored, even when the job is over
	defer stop()
	first := false
	err = retry(ctx, func() (err error) {
		c, cancel := context.WithTimeout(ctx, long)
		defer cancel()
		first, err = store(c, marks, objects, key, nuid.Next(), r)
		return err
	})
	end()
	if err != nil {
		return false, err
	}
	if w.Stored != nil {
		w.Stored(spec, r, first)
	}
	return first, retry(ctx, func() error { return ack(ctx, msg) })
}

// ack says that a shard is done. One that is not taken does no harm: the shard comes again and its marker is found.
func ack(ctx context.Context, msg jetstream.Msg) error {
	err := msg.DoubleAck(ctx)
	if errors.Is(err, nats.ErrTimeout) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, jetstream.ErrMsgAlreadyAckd) {
		return nil
	}
	return err
}

func (w *Worker) say(nc *nats.Conn, r report) {
	r.Worker = w.Name
	if text, err := json.Marshal(r); err == nil {
		_ = nc.Publish(progress, text)
	}
}

// retry tries until it works: a coordinator may be away and come back. The connection's owner ends the context when it
// has had enough.
func retry(ctx context.Context, f func() error) error {
	wait := 20 * time.Millisecond
	for {
		err := f()
		if err == nil {
			return nil
		}
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) || errors.Is(err, nats.ErrConnectionClosed) {
			return fmt.Errorf("queue: %w", err)
		}
		if sleep(ctx, wait); ctx.Err() != nil {
			return context.Cause(ctx)
		}
		wait = min(2*wait, time.Second)
	}
}

// after is a context that ends some time after another.
func after(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	late, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		time.AfterFunc(d, func() { cancel(context.Cause(ctx)) })
	})
	return late, func() { stop(); cancel(nil) }
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
