package studio

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"drift/cmd/drift/internal/output"
	"drift/internal/refuse"
)

// A Runner runs a line of drift's command line, hands on every line of its standard output, and returns the exit code
// and the talk. A done ctx interrupts it as Ctrl-C does: finished pictures are kept.
type Runner func(ctx context.Context, args []string, line func([]byte)) (code int, talk string, err error)

// The states of a job.
const (
	waiting   = "waiting"
	running   = "running"
	finished  = "done"
	failed    = "failed"
	cancelled = "cancelled"
)

// Job is a line of the command line in the queue, as the page sees it.
type Job struct {
	ID      int     `json:"id"`
	Title   string  `json:"title"`
	Run     string  `json:"run"`     // its folder in the gallery
	Command string  `json:"command"` // what a shell would be told
	Request Request `json:"request"`
	Status  string  `json:"status"`
	Message string  `json:"message,omitempty"`
	Hint    string  `json:"hint,omitempty"`

	Pictures int     `json:"pictures"` // in all
	Made     int     `json:"made"`
	Progress float64 `json:"progress"`
	Step     int     `json:"step"`
	Steps    int     `json:"steps"`
	Sigma    any     `json:"sigma,omitempty"` // a number, or "inf"
	NFE      float64 `json:"nfe"`             // per picture, so far
	NFEAll   float64 `json:"nfe_all,omitempty"`
	Where    string  `json:"where,omitempty"`
	Seconds  float64 `json:"seconds"`
	Left     float64 `json:"left"`    // seconds, -1 = unknown
	Preview  int     `json:"preview"` // version of the picture, 0 = none
	Shown    int     `json:"shown,omitempty"`
	Columns  int     `json:"columns,omitempty"`
	Checks   []Check `json:"checks,omitempty"`

	line    Line
	png     []byte
	began   time.Time
	cancel  context.CancelFunc
	dropped bool // cancelled by the user, while it ran
}

// Check is a check of a steered run.
type Check struct {
	Step  int      `json:"step"`
	ESS   float64  `json:"ess"`
	Roots float64  `json:"roots"`
	Mean  *float64 `json:"mean,omitempty"`
	Most  *float64 `json:"max,omitempty"`
}

// shownChecks is how many checks of a run under way are told; of more, an even choice.
const shownChecks = 120

// keptJobs is how many ended jobs are told.
const keptJobs = 40

// queue runs jobs one after the other: a run uses all cores.
type queue struct {
	dir    string
	out    func(run string) string // path of a run's folder, for its command line
	quote  func(string) string
	runner Runner
	lines  func(Request) ([]Line, error)

	mu      sync.Mutex
	jobs    []*Job // ended, then the one that runs, then those that wait
	next    int
	number  int // of the last folder
	gallery int // grows when a run's folder has changed
	wake    chan struct{}
	watch   map[chan struct{}]bool
}

var runNumber = regexp.MustCompile(`^([0-9]{4,9})-`)

// load takes the numbers of the folders that are there, and the jobs that an earlier studio left waiting.
func (q *queue) load(names []string) error {
	for _, n := range names {
		if m := runNumber.FindStringSubmatch(n); m != nil {
			k, err := strconv.Atoi(m[1])
			if err == nil {
				q.number = max(q.number, k)
			}
		}
	}
	b, err := readSmall(filepath.Join(q.dir, queueName), 4<<20)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var list []saved
	if err := strict(bytes.NewReader(b), &list); err != nil {
		return refuse.Errorf(filepath.Join(q.dir, queueName), "not the queue of a studio: %v", err)
	}
	for i, s := range list {
		lines, err := q.lines(s.Request)
		if err != nil || len(lines) != 1 || !runName.MatchString(s.Run) || i >= maxQueue {
			continue // the studio was started with other models this time
		}
		q.add(s.Request, lines[0], s.Run)
	}
	return nil
}

// saved is a job that waits, on disk.
type saved struct {
	Run     string  `json:"run"`
	Request Request `json:"request"`
}

// queueName is the file of the jobs that wait.
const queueName = ".studio.json"

// save keeps what waits and what runs. Called with the lock.
func (q *queue) save() error {
	list := []saved{}
	for _, j := range q.jobs {
		if j.Status == waiting || j.Status == running && !j.dropped {
			list = append(list, saved{j.Run, j.Request})
		}
	}
	return output.Write(filepath.Join(q.dir, queueName), func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", " ")
		return e.Encode(list)
	})
}

var slug = regexp.MustCompile(`[^a-z0-9+]+`)

// folder names the folder of a new job.
func (q *queue) folder(verb, title string) string {
	q.number++
	words := strings.Fields(title)
	for i, w := range words {
		words[i] = strings.Trim(slug.ReplaceAllString(strings.ToLower(filepath.Base(filepath.ToSlash(w))), "-"), "-+")
	}
	if verb != "sample" {
		words = append([]string{verb}, slices.DeleteFunc(words, func(s string) bool { return s == verb })...)
	}
	name := fmt.Sprintf("%04d-%s", q.number, strings.Join(words, "-"))
	return strings.TrimRight(name[:min(len(name), 80)], "-+")
}

// add puts a job at the end. Called with the lock, or before the queue runs.
func (q *queue) add(r Request, l Line, run string) *Job {
	q.next++
	j := &Job{ID: q.next, Title: l.Title, Run: run, Request: r, Status: waiting, Pictures: l.Pictures, Left: -1, line: l}
	words := []string{"drift"}
	for _, w := range append(slices.Clone(l.Args), "--out", q.out(run)) {
		words = append(words, q.quote(w))
	}
	j.Command = strings.Join(words, " ")
	q.jobs = append(q.jobs, j)
	return j
}

// enqueue takes the jobs of a request.
func (q *queue) enqueue(r Request) ([]Job, error) {
	lines, err := q.lines(r)
	if err != nil {
		return nil, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.room(len(lines)); err != nil {
		return nil, err
	}
	var out []Job
	before := len(q.jobs)
	for i, l := range lines {
		one := r
		if r.Verb != "bench" && len(r.Samplers) > 0 {
			one.Samplers = r.Samplers[i : i+1]
		}
		out = append(out, *q.add(one, l, q.folder(r.Verb, l.Title)))
	}
	if err := q.save(); err != nil {
		q.jobs = q.jobs[:before]
		return nil, err
	}
	q.begin()
	return out, nil
}

// room refuses more jobs than may wait. Called with the lock.
func (q *queue) room(more int) error {
	n := 0
	for _, j := range q.jobs {
		if j.Status == waiting {
			n++
		}
	}
	if n+more > maxQueue {
		return full{n}
	}
	return nil
}

// begin tells the worker and the pages of new jobs. Called with the lock.
func (q *queue) begin() {
	q.changed()
	select {
	case q.wake <- struct{}{}:
	default: // told already
	}
}

// again puts a cancelled job back, in its folder: it goes on where it was.
func (q *queue) again(id int) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	k := slices.IndexFunc(q.jobs, func(j *Job) bool { return j.ID == id && j.Status == cancelled })
	if k < 0 {
		return errNoJob
	}
	if err := q.room(1); err != nil {
		return err
	}
	j := q.jobs[k]
	q.jobs = slices.Delete(q.jobs, k, k+1)
	q.add(j.Request, j.line, j.Run)
	q.begin()
	return q.save()
}

// full says that the queue is.
type full struct{ n int }

func (f full) Error() string {
	return fmt.Sprintf("%d jobs wait already: at most %d", f.n, maxQueue)
}

// errNoJob says that there is no such job.
var errNoJob = errors.New("there is no such job any more")

// remove cancels a job that runs, and drops one that waits or has ended.
func (q *queue) remove(id int) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	k := slices.IndexFunc(q.jobs, func(j *Job) bool { return j.ID == id })
	if k < 0 {
		return errNoJob
	}
	if j := q.jobs[k]; j.Status == running {
		j.dropped = true
		j.Message = "stopping after this step"
		j.cancel()
	} else {
		q.jobs = slices.Delete(q.jobs, k, k+1)
	}
	q.changed()
	return q.save()
}

// move puts a job that waits at place to among those that wait.
func (q *queue) move(id, to int) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	k := slices.IndexFunc(q.jobs, func(j *Job) bool { return j.ID == id && j.Status == waiting })
	if k < 0 {
		return errNoJob
	}
	j := q.jobs[k]
	q.jobs = slices.Delete(q.jobs, k, k+1)
	first := slices.IndexFunc(q.jobs, func(j *Job) bool { return j.Status == waiting })
	if first < 0 {
		first = len(q.jobs)
	}
	q.jobs = slices.Insert(q.jobs, min(first+max(to, 0), len(q.jobs)), j)
	q.changed()
	return q.save()
}

// changed tells everybody who watches. Called with the lock.
func (q *queue) changed() {
	for c := range q.watch {
		select {
		case c <- struct{}{}:
		default: // told already
		}
	}
}

// subscribe returns a channel that is told of changes, or nil when too many watch.
func (q *queue) subscribe() chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.watch) >= maxStreams {
		return nil
	}
	c := make(chan struct{}, 1)
	c <- struct{}{}
	q.watch[c] = true
	return c
}

func (q *queue) unsubscribe(c chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.watch, c)
}

// State is what the page follows.
type State struct {
	Jobs    []Job `json:"jobs"`
	Gallery int   `json:"gallery"`
}

// state copies what is.
func (q *queue) state() State {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := State{Jobs: []Job{}, Gallery: q.gallery}
	for _, j := range q.jobs {
		c := *j
		c.png = nil
		if j.Status == running {
			c.Seconds = time.Since(j.began).Seconds()
		}
		if n := len(j.Checks); n > shownChecks {
			c.Checks = nil
			for i := range shownChecks {
				c.Checks = append(c.Checks, j.Checks[i*(n-1)/(shownChecks-1)])
			}
		} else {
			c.Checks = slices.Clone(j.Checks)
		}
		s.Jobs = append(s.Jobs, c)
	}
	return s
}

// changes counts the changes of the gallery by jobs.
func (q *queue) changes() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.gallery
}

// preview returns the newest preview of a job.
func (q *queue) preview(id int) []byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, j := range q.jobs {
		if j.ID == id {
			return j.png
		}
	}
	return nil
}

// work runs jobs until ctx is done; the one under way is interrupted then, and stands first in the saved queue.
func (q *queue) work(ctx context.Context) {
	for ctx.Err() == nil {
		q.mu.Lock()
		k := slices.IndexFunc(q.jobs, func(j *Job) bool { return j.Status == waiting })
		if k < 0 {
			q.mu.Unlock()
			select {
			case <-q.wake:
			case <-ctx.Done():
			}
			continue
		}
		j := q.jobs[k]
		one, cancel := context.WithCancel(ctx)
		j.Status, j.began, j.cancel = running, time.Now(), cancel
		q.changed()
		q.mu.Unlock()
		q.one(one, j)
		cancel()
	}
}

// one runs a job.
func (q *queue) one(ctx context.Context, j *Job) {
	args := append(slices.Clone(j.line.Args), "--out", q.out(j.Run), "--json")
	if args[0] != "bench" {
		args = append(args, "--preview", "json")
	}
	if args[0] == "steer" {
		args = append(args, "--sealed")
	}
	code, talk, err := q.runner(ctx, args, func(line []byte) { q.event(j, line) })

	q.mu.Lock()
	defer q.mu.Unlock()
	j.Seconds, j.Left = time.Since(j.began).Seconds(), 0
	switch {
	case err == nil && code == 0:
		j.Status, j.Progress = finished, 1
	case ctx.Err() != nil && !j.dropped: // the studio ends: the job goes on next time
		j.Status = waiting
		return
	case ctx.Err() != nil:
		j.Status, j.Message, j.Hint = cancelled, fmt.Sprintf("cancelled: %d of %d pictures are kept", j.Made, j.Pictures), ""
	default:
		j.Status = failed
		if j.Message == "" {
			if j.Message = lastLine(talk); err != nil {
				j.Message = err.Error()
			}
		}
	}
	for len(q.jobs) > keptJobs && slices.Contains([]string{finished, failed, cancelled}, q.jobs[0].Status) {
		q.jobs = q.jobs[1:]
	}
	q.gallery++
	q.changed()
	_ = q.save() // the next change says so if it fails
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	for _, l := range lines {
		if e, ok := strings.CutPrefix(l, "drift: error: "); ok {
			return e
		}
	}
	return lines[len(lines)-1]
}

// event takes a line of a job's standard output.
func (q *queue) event(j *Job, line []byte) {
	var e struct {
		Event    string   `json:"event"`
		Step     int      `json:"step"`
		Steps    int      `json:"steps"`
		Sigma    any      `json:"sigma"`
		NFE      float64  `json:"nfe"`
		Progress float64  `json:"progress"`
		Stored   int      `json:"stored"`
		Where    string   `json:"where"`
		Message  string   `json:"message"`
		Hint     string   `json:"hint"`
		Path     string   `json:"path"`
		PNG      []byte   `json:"png"`
		Pictures int      `json:"pictures"`
		Columns  int      `json:"columns"`
		ESS      any      `json:"ess"`
		Roots    any      `json:"roots"`
		Mean     *float64 `json:"reward_mean"`
		Most     *float64 `json:"reward_max"`
	}
	if json.Unmarshal(line, &e) != nil {
		return // a number that is not finite stands as text: nothing that is shown
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	switch e.Event {
	case "start":
		j.Steps, j.NFEAll, j.Made = e.Steps, e.NFE, e.Stored
	case "step", "progress":
		j.Progress, j.Where = min(max(e.Progress, 0), 1), e.Where
		if e.Event == "step" {
			j.Step, j.Steps, j.Sigma, j.NFE = e.Step, e.Steps, e.Sigma, e.NFE
		}
		if s := time.Since(j.began).Seconds(); j.Progress > 0 {
			j.Left = s * (1 - j.Progress) / j.Progress
		}
	case "preview":
		j.png, j.Shown, j.Columns = e.PNG, e.Pictures, max(1, e.Columns)
		j.Preview++
	case "check":
		ess, ok := e.ESS.(float64)
		roots, _ := e.Roots.(float64)
		if ok && !math.IsNaN(ess) && len(j.Checks) < 100_000 {
			j.Checks = append(j.Checks, Check{e.Step, ess, roots, e.Mean, e.Most})
		}
	case "file":
		if strings.EqualFold(filepath.Ext(e.Path), ".png") {
			j.Made++
		}
		q.gallery++
	case "score":
		q.gallery++
	case "warning":
		j.Hint = e.Message
	case "error":
		j.Message, j.Hint = e.Message, e.Hint
	case "done":
		if e.NFE > 0 {
			j.NFE = e.NFE
		}
	default:
		return
	}
	q.changed()
}
