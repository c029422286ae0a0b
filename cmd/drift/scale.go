package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/queue"
	"drift/cmd/drift/internal/shard"
	"drift/internal/kernels"
)

// scaleFlags are the flags of verbs that are cut into shards.
func scaleFlags(what string, size int) []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{Name: "workers", Usage: "cut the work into shards, made by `N` workers at a time that share the threads; never changes a result"},
		&cli.IntFlag{Name: "shard", Usage: fmt.Sprintf("%s of a shard (`N`), default %d", what, size)},
	}
}

// notShards are flags of a line that a worker has no use for.
var notShards = []string{"workers", "threads", "json", "quiet", "ort-lib"}

// shardSize is what --shard says.
func shardSize(c *cli.Context, def int) (int, error) {
	if !c.IsSet("shard") {
		return def, nil
	}
	if n := c.Int("shard"); n >= 1 && n <= 1<<20 {
		return n, nil
	}
	return 0, usagef("--shard %d: want 1 to %d", c.Int("shard"), 1<<20)
}

// works opens the verbs that are cut into shards, by their lines.
var works map[string]func(a *app, c *cli.Context) (queue.Doer, error)

func init() {
	works = map[string]func(*app, *cli.Context) (queue.Doer, error){
		"sample":        openSampleWork,
		"bench":         openBenchWork,
		"metrics stats": openStatsWork,
		"search boss":   openSearchWork, "search gits": openSearchWork, "search s3": openSearchWork, "search s4s": openSearchWork, "search compare": openSearchWork,
	}
}

// leafOf finds the verb of an arranged line, and its name with the verbs above it.
func leafOf(root *cli.App, line []string) (*cli.Command, string) {
	var leaf *cli.Command
	var names []string
	cmds := root.Commands
	for _, w := range line {
		k := slices.IndexFunc(cmds, func(c *cli.Command) bool { return c.Name == w })
		if k < 0 {
			break
		}
		leaf = cmds[k]
		names = append(names, w)
		cmds = leaf.Subcommands
	}
	return leaf, strings.Join(names, " ")
}

// sharded refuses lines of verbs that are not cut into shards.
func (a *app) sharded(line []string) error {
	_, name := leafOf(a.cli(), line)
	if _, ok := works[name]; !ok {
		return usagef("%s is not cut into shards; sample, bench, search and metrics stats are", cmp.Or(name, strings.Join(line, " ")))
	}
	return nil
}

// openWork opens an arranged line for a worker: all is read and checked, nothing is written.
func (a *app) openWork(ctx context.Context, line []string) (queue.Doer, error) {
	own := &app{in: strings.NewReader(""), out: io.Discard, err: io.Discard, getenv: a.getenv, stop: make(chan struct{}), share: a.share, ortLib: a.ortLib, quiet: true}
	c, name, err := own.read(ctx, line)
	if err != nil {
		return nil, err
	}
	return works[name](own, c)
}

// reading is held while a line is read: the command table has variables of its package.
var reading sync.Mutex

// read reads an arranged line of a verb that is cut into shards.
func (a *app) read(ctx context.Context, line []string) (read *cli.Context, name string, err error) {
	reading.Lock()
	defer reading.Unlock()
	root := a.cli()
	leaf, name := leafOf(root, line)
	if works[name] == nil {
		return nil, name, a.sharded(line)
	}
	leaf.Action = func(c *cli.Context) error { read = c; return nil }
	err = root.RunContext(ctx, append([]string{"drift"}, line...))
	if err == nil && read == nil {
		err = usagef("%s is not a line to run", strings.Join(line, " "))
	}
	return read, name, err
}

// configOf hashes what decides the results of a job.
func configOf(parts ...any) string {
	h := sha256.New()
	for _, p := range append([]any{release, runtime.GOARCH}, parts...) {
		fmt.Fprintf(h, "%v\x00", p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// tierOf is the kernel tier of a line.
func tierOf(c *cli.Context) string {
	if t := c.String("tier"); t != "" {
		return t
	}
	return kernels.Detect().String()
}

// threads is the number of threads of a model or extractor: all, or a worker's share.
func (a *app) threads() int {
	if a.share > 0 {
		return a.share
	}
	return runtime.GOMAXPROCS(0)
}

// failureOf sorts the error of a shard.
func failureOf(err error) *shard.Failure {
	f := &shard.Failure{Kind: shard.Failed, Text: oneLine(err.Error())}
	switch exitCode(err) {
	case exitNotFinite:
		f.Kind = shard.NotFinite
	case exitRefused:
		f.Kind = shard.Refused
	}
	return f
}

// source is where the results of shards come from: a queue.Pool, or a folder of files.
type source interface {
	Submit(ctx context.Context, specs []shard.Spec) error
	Result(ctx context.Context, s shard.Spec, check func(*shard.Result) error) (*shard.Result, error)
	Forget(ctx context.Context, specs ...shard.Spec) error
}

// crew makes the shards of a job.
type crew struct {
	a      *app
	source source
	ctx    context.Context // ends with the job, an interrupt, or the error of a worker
	cancel context.CancelCauseFunc
	close  func(ok bool) error
	events chan queue.Event // told by the goroutine that waits for results
}

// wantsCrew tells whether the line is to be made in shards.
func (a *app) wantsCrew(c *cli.Context) bool { return c.IsSet("workers") || a.hiring != nil }

// hire finds who makes the shards of this line: what serve and shard say, and --workers of this process, the first of
// which uses the work that is open already.
func (a *app) hire(ctx context.Context, c *cli.Context, open queue.Doer) (*crew, error) {
	if n := c.Int("workers"); n < 0 || n > 1024 || n == 0 && c.IsSet("workers") {
		return nil, usagef("--workers %d: want 1 to 1024", n)
	}
	k := &crew{a: a, events: make(chan queue.Event, 256)}
	k.ctx, k.cancel = context.WithCancelCause(ctx)
	go func() {
		select {
		case <-a.stop:
			k.cancel(job.ErrStopped)
		case <-k.ctx.Done():
		}
	}()
	hire := a.hiring
	if hire == nil {
		hire = a.inProcess
	}
	if err := hire(k, c, open); err != nil {
		k.cancel(nil)
		return nil, err
	}
	return k, nil
}

// observe hands an event on; progress may be dropped.
func (k *crew) observe(e queue.Event) {
	if e.Kind == "progress" {
		select {
		case k.events <- e:
		default:
		}
		return
	}
	select {
	case k.events <- e:
	case <-k.ctx.Done():
	}
}

// result waits for a shard and tells meanwhile what happens. check runs while the caller waits.
func (k *crew) result(s shard.Spec, check func(*shard.Result) error) (r *shard.Result, err error) {
	end := make(chan struct{})
	go func() {
		defer close(end)
		r, err = k.source.Result(k.ctx, s, check)
	}()
	for waiting := true; waiting; {
		select {
		case e := <-k.events:
			k.a.watchCrew(e)
		case <-end:
			waiting = false
		}
	}
	for len(k.events) > 0 {
		k.a.watchCrew(<-k.events)
	}
	return r, k.cause(err)
}

// cause tells the error of an interrupt or of a worker in place of a context's.
func (k *crew) cause(err error) error {
	if err != nil && k.ctx.Err() != nil {
		return context.Cause(k.ctx)
	}
	return err
}

func (k *crew) submit(specs []shard.Spec) error { return k.cause(k.source.Submit(k.ctx, specs)) }
func (k *crew) forget(specs ...shard.Spec) error {
	return k.cause(k.source.Forget(k.ctx, specs...))
}

// end ends the job; ok tells that it is complete.
func (k *crew) end(ok bool) error {
	err := k.close(ok)
	k.cancel(nil)
	return err
}

// inProcess is --workers: a server without a port, in memory.
func (a *app) inProcess(k *crew, c *cli.Context, open queue.Doer) error {
	s, err := queue.Start(queue.Options{})
	if err != nil {
		return err
	}
	return a.staff(k, c, open, s, queue.Job{Args: a.shardLine()}, func(bool) error { s.Close(); return nil })
}

// shardLine is the arranged line without what workers have no use for.
func (a *app) shardLine() []string {
	return slices.DeleteFunc(slices.Clone(a.line), func(w string) bool {
		name, _, ok := strings.Cut(w, "=")
		return ok && slices.Contains(notShards, strings.TrimPrefix(name, "--"))
	})
}

// staff begins the job on a server and starts the workers of this process.
func (a *app) staff(k *crew, c *cli.Context, open queue.Doer, s *queue.Server, j queue.Job, closed func(ok bool) error) error {
	j.Config, j.Version, j.Tier, j.Arch = open.Config(), release, tierOf(c), runtime.GOARCH
	p, err := queue.NewPool(k.ctx, s, j)
	if err != nil {
		return errors.Join(err, closed(false))
	}
	p.Observe = k.observe
	k.source = p
	var staff sync.WaitGroup
	n := c.Int("workers")
	host, err := os.Hostname()
	if err != nil {
		host = "here"
	}
	for i := range n {
		staff.Go(func() {
			nc, err := s.Connect()
			if err != nil {
				k.cancel(err)
				return
			}
			defer nc.Close()
			w := &queue.Worker{Name: fmt.Sprintf("%s/%d.%d", host, os.Getpid(), i), Hello: fmt.Sprintf("%d threads", a.threads()), Sort: failureOf}
			w.Open = func(ctx context.Context, j queue.Job) (queue.Doer, error) {
				if l, ok := open.(lender); ok && i == 0 {
					return borrowed{l}, nil
				}
				return a.openWork(ctx, j.Args)
			}
			if _, err := w.Run(k.ctx, nc); err != nil && k.ctx.Err() == nil {
				k.cancel(fmt.Errorf("a worker: %w", err))
			}
		})
	}
	k.close = func(ok bool) error {
		var err error
		if ok {
			err = p.Done(k.ctx)
		}
		k.cancel(nil)
		staff.Wait()
		p.Close()
		return errors.Join(err, closed(ok))
	}
	return nil
}

// lender is work that the coordinator does not use itself while a job runs, so that its first worker may.
type lender interface {
	queue.Doer
	lends()
}

// borrowed is work that another closes.
type borrowed struct{ queue.Doer }

func (borrowed) Close() {}

// watchCrew shows what happens among the workers.
func (a *app) watchCrew(e queue.Event) {
	switch e.Kind {
	case "worker":
		if a.hiring != nil {
			a.say("drift: worker %s is here: %s", e.Worker, e.Text)
		}
		if a.json {
			a.emit(map[string]any{"event": "worker", "worker": e.Worker, "about": e.Text})
		}
		return
	case "refused":
		a.warn("the result of shard %d by %s is refused, and made again: %s", e.ID, e.Worker, oneLine(e.Text))
		return
	case "shard":
		if a.json {
			a.emit(map[string]any{"event": "shard", "shard": e.ID, "worker": e.Worker, "seconds": e.Seconds, "done": e.Done, "of": e.Of})
		}
	}
	if a.crewBar && e.Of > 0 {
		a.bar.Set(e.Done/float64(e.Of), fmt.Sprintf("%d of %d shards", int(e.Done), e.Of))
	}
}

// storeOf is the folder that keeps the queue of a line that is served.
func storeOf(c *cli.Context, serve *cli.Context) string {
	if d := serve.String("store"); d != "" {
		return d
	}
	return filepath.Clean(cmp.Or(c.String("out"), "drift")) + ".queue"
}

// waitFor waits until f or for at most d.
func waitFor(d time.Duration, f func() bool) {
	for end := time.Now().Add(d); time.Now().Before(end) && !f(); {
		time.Sleep(20 * time.Millisecond)
	}
}

// contextOf is a context that an interrupt ends too.
func contextOf(ctx context.Context, stop <-chan struct{}) (context.Context, context.CancelFunc) {
	out, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-stop:
			cancel()
		case <-out.Done():
		}
	}()
	return out, cancel
}

// stoppable is an action that ends at once, with nothing written, when it is asked to stop.
func (a *app) stoppable(action cli.ActionFunc) cli.ActionFunc {
	return func(c *cli.Context) error {
		ctx, cancel := contextOf(c.Context, a.stop)
		defer cancel()
		c.Context = ctx
		err := action(c)
		if err != nil && errors.Is(err, context.Canceled) {
			return job.ErrStopped
		}
		return err
	}
}
