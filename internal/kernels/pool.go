package kernels

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// spinFor is how long an idle worker and a waiting caller poll before they
// sleep. Waking a sleeping thread costs tens of microseconds on a virtual
// machine, as much as a small layer.
const spinFor = 50 * time.Microsecond

// Pool is a set of workers that share the items of one job at a time. The
// goroutine that calls a kernel is worker 0 and works too, so a pool of one
// worker starts no goroutine.
//
// A Pool runs one kernel at a time: calls from several goroutines wait for
// each other. A job must not call the pool again.
type Pool struct {
	tier    Tier
	ops     *ops
	workers int

	mu   sync.Mutex // one job at a time
	job  task
	n    int64
	next atomic.Int64

	// state is the job number in the upper 32 bits, an open flag in bit 31
	// and the number of workers inside the job below. A worker may enter
	// only while the flag is set, so a late one never sees a finished job.
	state  atomic.Uint64
	closed atomic.Bool
	wake   []sleeper
	done   sync.WaitGroup

	funcJob funcTask
	conv    convJob
	wino    winoJob
	attn    attnJob
	matmul  matmulJob
	norm    normJob
	ffn     ffnJob
	depth   depthJob
	taps    [][maxTaps]tapAt // of depthJob, by worker
	values  []vjpValues      // of rowJob, by worker
	row     rowJob
}

type sleeper struct {
	asleep atomic.Bool
	ch     chan struct{}
	_      [64]byte
}

type task interface{ do(worker, item int) }

type funcTask struct{ f func(worker, item int) }

func (t *funcTask) do(worker, item int) { t.f(worker, item) }

const poolOpen = 1 << 31

// NewPool starts a pool for a tier. workers < 1 means one per GOMAXPROCS.
// It panics if the machine does not run the tier: see [Tier.Supported].
func NewPool(tier Tier, workers int) *Pool {
	if !tier.Supported() {
		panic(fmt.Sprintf("kernels: tier %v is not supported by this machine or build", tier))
	}
	if workers < 1 {
		workers = runtime.GOMAXPROCS(0)
	}
	p := &Pool{tier: tier, ops: opsOf(tier), workers: workers, wake: make([]sleeper, workers)}
	for w := 1; w < workers; w++ {
		p.wake[w].ch = make(chan struct{}, 1)
		p.done.Add(1)
		go p.work(w)
	}
	return p
}

// Tier gives the tier the pool was made for.
func (p *Pool) Tier() Tier { return p.tier }

// Workers gives the number of workers, the caller included.
func (p *Pool) Workers() int { return p.workers }

// Close stops the workers. The pool must be idle and is dead afterwards.
func (p *Pool) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed.Swap(true) {
		return
	}
	p.rouse()
	p.done.Wait()
}

// Do calls f(worker, i) once for every i in [0, n), on all workers, and
// returns when all calls have. worker is in [0, Workers()) and no two calls
// with the same worker overlap. Which worker gets which item is not defined.
func (p *Pool) Do(n int, f func(worker, i int)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.funcJob.f = f
	p.run(n, &p.funcJob)
	p.funcJob.f = nil
}

// run is Do for a job kept in the pool: it does not allocate. p.mu is held.
func (p *Pool) run(n int, job task) {
	if p.closed.Load() {
		panic("kernels: use of a closed pool")
	}
	if n <= 0 {
		return
	}
	if n == 1 || p.workers == 1 {
		for i := range n {
			job.do(0, i)
		}
		return
	}
	p.job, p.n = job, int64(n)
	p.next.Store(0)
	gen := p.state.Load()>>32 + 1
	p.state.Store(gen<<32 | poolOpen)
	p.rouse()
	p.drain(0)
	for {
		s := p.state.Load()
		if p.state.CompareAndSwap(s, s&^poolOpen) {
			break
		}
	}
	for i := 0; p.state.Load()&(poolOpen-1) != 0; i++ {
		spinPause()
		if i > 2000 {
			runtime.Gosched()
		}
	}
	p.job = nil
}

func (p *Pool) rouse() {
	for w := 1; w < p.workers; w++ {
		s := &p.wake[w]
		if s.asleep.Load() && s.asleep.CompareAndSwap(true, false) {
			s.ch <- struct{}{}
		}
	}
}

func (p *Pool) drain(worker int) {
	for {
		i := p.next.Add(1) - 1
		if i >= p.n {
			return
		}
		p.job.do(worker, int(i))
	}
}

func (p *Pool) work(w int) {
	defer p.done.Done()
	last := uint64(0)
	for {
		s, ok := p.await(w, last)
		if !ok {
			return
		}
		last = s >> 32
		for s&poolOpen != 0 && s>>32 == last {
			if p.state.CompareAndSwap(s, s+1) {
				p.drain(w)
				p.state.Add(^uint64(0))
				break
			}
			s = p.state.Load()
		}
	}
}

// await returns the state once its job number differs from last.
func (p *Pool) await(w int, last uint64) (uint64, bool) {
	me := &p.wake[w]
	for {
		start := time.Now()
		for i := 1; ; i++ {
			if p.closed.Load() {
				return 0, false
			}
			if s := p.state.Load(); s>>32 != last {
				return s, true
			}
			spinPause()
			if i%64 == 0 && time.Since(start) > spinFor {
				break
			}
		}
		me.asleep.Store(true)
		if p.closed.Load() || p.state.Load()>>32 != last {
			if me.asleep.CompareAndSwap(true, false) {
				continue
			}
		}
		<-me.ch
	}
}
