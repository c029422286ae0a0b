// Package studio is the page of drift studio: a form, a queue, live previews, and a gallery that is nothing but the
// output folder.
//
// A job is a child process: the program's own binary, on the very line that the page shows for copying. So there is no
// second implementation beside the command line, one job's memory and mistakes are gone with its process, and a
// cancelled job ends as one that got a Ctrl-C does, with everything that is finished kept. What the child tells with
// --json (steps, checks of steering, predicted pictures) goes to the page by server-sent events.
//
// The page is taken for hostile until proven otherwise: see guard for who may ask, Catalog.Lines for what may be asked,
// and gallery for what may be read.
package studio

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

//go:embed page
var files embed.FS

// Config describes a studio.
type Config struct {
	Dir     string // the gallery; it must be there
	Catalog Catalog
	Run     Runner
	Quote   func(string) string     // writes a word for a shell
	Reward  func(text string) error // refuses a reward before it waits; nil: none

	Token    string   // asked for unless ""
	Loopback bool     // the listener is on loopback: no other Host is served
	Hosts    []string // further names of this machine, where it is not
	Secure   bool     // TLS
}

// Studio serves the page and runs the queue.
type Studio struct {
	c       Config
	root    *os.Root
	gallery *gallery
	queue   *queue
	handler http.Handler
	ended   chan struct{} // closed when streams must end
	once    sync.Once
}

const eventsPath = "/api/events"

// New opens the gallery and the queue that an earlier studio left there.
func New(c Config) (*Studio, error) {
	root, err := os.OpenRoot(c.Dir)
	if err != nil {
		return nil, err
	}
	s := &Studio{c: c, root: root, ended: make(chan struct{})}
	s.gallery = &gallery{root: root, catalog: &s.c.Catalog, cache: map[string]cached{}}
	s.queue = &queue{
		dir: c.Dir, out: func(run string) string { return filepath.Join(c.Dir, run) }, quote: c.Quote, runner: c.Run, lines: s.lines,
		wake: make(chan struct{}, 1), watch: map[chan struct{}]bool{},
	}
	s.gallery.version = s.queue.changes
	var names []string
	for _, e := range s.gallery.list(".") {
		names = append(names, e.Name())
	}
	if err := s.queue.load(names); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	s.handler = &guard{token: c.Token, loopback: c.Loopback, hosts: c.Hosts, secure: c.Secure, slots: make(chan struct{}, maxInFlight), next: s.routes()}
	return s, nil
}

// Handler is the studio behind its guard.
func (s *Studio) Handler() http.Handler { return s.handler }

// Waiting counts the jobs that wait, one that was interrupted among them.
func (s *Studio) Waiting() int {
	n := 0
	for _, j := range s.queue.state().Jobs {
		if j.Status == waiting {
			n++
		}
	}
	return n
}

// Serve serves until ctx is done. Then it interrupts the job under way, waits for its end, and lets requests finish.
func (s *Studio) Serve(ctx context.Context, l net.Listener, cert, key string) error {
	srv := &http.Server{
		Handler: s.handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second, IdleTimeout: 60 * time.Second, MaxHeaderBytes: maxHeader,
		ErrorLog: log.New(io.Discard, "", 0), // what strangers send is not worth a line
	}
	work, stop := context.WithCancel(ctx)
	defer stop()
	worked := make(chan struct{})
	go func() {
		defer close(worked)
		s.queue.work(work)
	}()
	served := make(chan error, 1)
	go func() {
		limited := &limit{Listener: l, slots: make(chan struct{}, maxConns)}
		if cert != "" {
			served <- srv.ServeTLS(limited, cert, key)
			return
		}
		served <- srv.Serve(limited)
	}()
	var err error
	select {
	case err = <-served:
	case <-ctx.Done():
	}
	stop()
	s.once.Do(func() { close(s.ended) })
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	if srv.Shutdown(grace) != nil {
		_ = srv.Close() // slow clients are left behind
	}
	<-worked
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return errors.Join(err, s.root.Close())
}

// limit closes connections beyond a number at once.
type limit struct {
	net.Listener
	slots chan struct{}
}

func (l *limit) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			return &limited{Conn: c, free: func() { <-l.slots }}, nil
		default:
			_ = c.Close()
		}
	}
}

type limited struct {
	net.Conn
	once sync.Once
	free func()
}

func (c *limited) Close() error {
	c.once.Do(c.free)
	return c.Conn.Close()
}

func (s *Studio) routes() http.Handler {
	mux := http.NewServeMux()
	for name, kind := range map[string]string{"index.html": "text/html", "studio.css": "text/css", "studio.js": "text/javascript", "icon.svg": "image/svg+xml"} {
		b, err := files.ReadFile("page/" + name)
		if err != nil {
			panic("studio: " + err.Error())
		}
		at := "GET /" + name
		if name == "index.html" {
			at = "GET /{$}"
		}
		mux.HandleFunc(at, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind+"; charset=utf-8")
			_, _ = w.Write(b)
		})
	}
	mux.HandleFunc("GET /api/catalog", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, struct {
			Catalog
			Limits map[string]int `json:"limits"`
			Folder string         `json:"folder"`
		}{s.c.Catalog, map[string]int{"samplers": maxSamplers, "steps": maxSteps, "pictures": maxPictures, "particles": maxParticles, "bench": maxBench, "queue": maxQueue, "side": maxSide}, s.c.Dir})
	})
	mux.HandleFunc("GET /api/state", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, s.queue.state()) })
	mux.HandleFunc("GET "+eventsPath, s.events)
	mux.HandleFunc("POST /api/jobs", s.post)
	mux.HandleFunc("POST /api/command", s.command)
	mux.HandleFunc("DELETE /api/jobs/{id}", func(w http.ResponseWriter, r *http.Request) {
		if id, ok := number64(w, r); ok {
			s.ok(w, s.queue.remove(id))
		}
	})
	mux.HandleFunc("POST /api/jobs/{id}/move", func(w http.ResponseWriter, r *http.Request) {
		var to struct {
			To int `json:"to"`
		}
		id, ok := number64(w, r)
		if ok && body(w, r, &to) {
			s.ok(w, s.queue.move(id, to.To))
		}
	})
	mux.HandleFunc("POST /api/jobs/{id}/again", func(w http.ResponseWriter, r *http.Request) {
		id, ok := number64(w, r)
		if ok && body(w, r, &struct{}{}) {
			s.ok(w, s.queue.again(id))
		}
	})
	mux.HandleFunc("GET /api/jobs/{id}/preview.png", func(w http.ResponseWriter, r *http.Request) {
		id, ok := number64(w, r)
		if !ok {
			return
		}
		if b := s.queue.preview(id); b != nil {
			w.Header().Set("Content-Type", "image/png")
			_, _ = w.Write(b)
			return
		}
		deny(w, http.StatusNotFound, "no preview", "")
	})
	mux.HandleFunc("GET /api/runs", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, s.gallery.runs()) })
	mux.HandleFunc("GET /api/runs/{run}", func(w http.ResponseWriter, r *http.Request) {
		run, err := s.gallery.run(r.PathValue("run"), true)
		if err != nil {
			deny(w, http.StatusNotFound, "there is no such run in the gallery", "")
			return
		}
		run.Command = s.shell(run.Command, "again")
		answer(w, http.StatusOK, run)
	})
	mux.HandleFunc("GET /api/runs/{run}/about", s.about)
	mux.HandleFunc("GET /files/{run}", s.file)
	mux.HandleFunc("GET /files/{run}/{path...}", s.file)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		deny(w, http.StatusNotFound, "nothing is here", "")
	})
	return mux
}

// shell writes the words of a line for a shell.
func (s *Studio) shell(line, out string) string {
	if line == "" {
		return ""
	}
	words := append(strings.Split(line, "\x00"), "--out", out)
	for i := range words {
		words[i] = s.c.Quote(words[i])
	}
	return "drift " + strings.Join(words, " ")
}

// lines checks a request, its reward too.
func (s *Studio) lines(q Request) ([]Line, error) {
	lines, err := s.c.Catalog.Lines(q)
	if err == nil && q.Verb == "steer" && s.c.Reward != nil {
		if e := s.c.Reward(q.Reward); e != nil {
			err = badf("reward: %v", e)
		}
	}
	return lines, err
}

// post takes a request into the queue.
func (s *Studio) post(w http.ResponseWriter, r *http.Request) {
	var q Request
	if !body(w, r, &q) {
		return
	}
	jobs, err := s.queue.enqueue(q)
	var f full
	switch {
	case errors.As(err, &f):
		w.Header().Set("Retry-After", "10")
		deny(w, http.StatusTooManyRequests, err.Error(), "remove some, or wait")
	case isBad(err):
		deny(w, http.StatusBadRequest, err.Error(), "")
	case err != nil:
		deny(w, http.StatusInternalServerError, "the queue cannot be stored: "+plain(err), "")
	default:
		answer(w, http.StatusCreated, map[string]any{"jobs": jobs})
	}
}

// plain words an error of a file without its path.
func plain(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err.Error()
	}
	return err.Error()
}

// command says what a request would run.
func (s *Studio) command(w http.ResponseWriter, r *http.Request) {
	var q Request
	if !body(w, r, &q) {
		return
	}
	lines, err := s.lines(q)
	if err != nil {
		deny(w, http.StatusBadRequest, err.Error(), "")
		return
	}
	out := []string{}
	n := 0
	for i, l := range lines {
		name := "samples"
		if len(lines) > 1 {
			name += "-" + strconv.Itoa(i+1)
		}
		out = append(out, s.shell(strings.Join(l.Args, "\x00"), name))
		n += l.Pictures
	}
	answer(w, http.StatusOK, map[string]any{"commands": out, "pictures": n})
}

func (s *Studio) ok(w http.ResponseWriter, err error) {
	var f full
	switch {
	case errors.Is(err, errNoJob):
		deny(w, http.StatusNotFound, err.Error(), "")
	case errors.As(err, &f):
		deny(w, http.StatusTooManyRequests, err.Error(), "remove some, or wait")
	case err != nil:
		deny(w, http.StatusInternalServerError, "the queue cannot be stored: "+plain(err), "")
	default:
		answer(w, http.StatusOK, s.queue.state())
	}
}

// number64 reads the id of a path.
func number64(w http.ResponseWriter, r *http.Request) (int, bool) {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 32)
	if err != nil {
		deny(w, http.StatusNotFound, errNoJob.Error(), "")
		return 0, false
	}
	return int(id), true
}

// body reads the JSON of a request: one value, no field that is not known, of the right type, and said to be JSON, which
// no form of another site can say.
func body(w http.ResponseWriter, r *http.Request, v any) bool {
	if kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); strings.TrimSpace(strings.ToLower(kind)) != "application/json" {
		deny(w, http.StatusUnsupportedMediaType, "want Content-Type: application/json", "")
		return false
	}
	err := strict(r.Body, v)
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		deny(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("more than %d bytes", large.Limit), "")
	case err != nil:
		deny(w, http.StatusBadRequest, "the request does not read: "+strings.TrimPrefix(err.Error(), "json: "), "")
	}
	return err == nil
}

// strict decodes one JSON value with known fields.
func strict(r io.Reader, v any) error {
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		if err == nil {
			err = errors.New("something follows the value")
		}
		return err
	}
	return nil
}

// file serves a picture of the gallery.
func (s *Studio) file(w http.ResponseWriter, r *http.Request) {
	run, sub := r.PathValue("run"), r.PathValue("path")
	name, ok := within(run, sub)
	if !ok {
		deny(w, http.StatusNotFound, "there is no such picture in the gallery", "")
		return
	}
	f, info, err := s.gallery.open(name)
	if err != nil {
		deny(w, http.StatusNotFound, "there is no such picture in the gallery", "")
		return
	}
	defer f.Close()
	head := make([]byte, 8)
	if _, err := io.ReadFull(f, head); err != nil || string(head) != "\x89PNG\r\n\x1a\n" {
		deny(w, http.StatusNotFound, "there is no such picture in the gallery", "")
		return
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		deny(w, http.StatusInternalServerError, "the picture cannot be read", "")
		return
	}
	h := w.Header()
	h.Set("Content-Type", "image/png")
	h.Set("Cache-Control", "private, no-cache")
	h.Set("Etag", fmt.Sprintf(`"%x-%x"`, info.ModTime().UnixNano(), info.Size()))
	http.ServeContent(w, r, "", info.ModTime(), f)
}

// within is the path of a picture in the gallery, if it has the form of one.
func within(run, sub string) (string, bool) {
	if !runName.MatchString(run) {
		return "", false
	}
	if sub == "" {
		return run, strings.HasSuffix(run, ".png")
	}
	return path.Join(run, sub), pictureIs.MatchString(sub) || extras.MatchString(sub)
}

// about tells what a picture says of itself, and the line that makes it again.
func (s *Studio) about(w http.ResponseWriter, r *http.Request) {
	name, ok := within(r.PathValue("run"), r.URL.Query().Get("file"))
	if !ok {
		deny(w, http.StatusNotFound, "there is no such picture in the gallery", "")
		return
	}
	texts, err := s.gallery.texts(name)
	if err != nil {
		deny(w, http.StatusNotFound, "the picture says nothing about how it was made", "")
		return
	}
	out := struct {
		File       string          `json:"file"`
		Parameters string          `json:"parameters,omitempty"`
		Run        json.RawMessage `json:"drift,omitempty"`
		Command    string          `json:"command,omitempty"`
		Why        string          `json:"why,omitempty"`
		Seed       uint64          `json:"seed"`
		Class      string          `json:"class,omitempty"`
	}{File: name}
	for _, t := range texts {
		switch {
		case t.Keyword == "parameters":
			out.Parameters = t.Text
		case t.Keyword == ownKeyword && json.Valid([]byte(t.Text)):
			out.Run = json.RawMessage(t.Text)
			p, err := readPicture(name, t.Text)
			if err != nil {
				continue
			}
			out.Seed = p.Seed
			if len(p.Run.Sets) > 0 && len(p.Run.Sets[0].Classes) == 1 {
				out.Class = s.c.Catalog.label(p.Run.Model.Path, p.Run.Sets[0].Classes[0])
			}
			line, err := s.c.Catalog.Again(p.Run)
			if err != nil {
				out.Why = err.Error()
				continue
			}
			out.Command = s.shell(strings.Join(line, "\x00"), "again")
		}
	}
	answer(w, http.StatusOK, out)
}

// events streams the state whenever it changes, at most ten times a second. A message is the whole state, so a client
// may miss any number of them, and a slow one costs nothing but its own delay.
func (s *Studio) events(w http.ResponseWriter, r *http.Request) {
	c := s.queue.subscribe()
	if c == nil {
		w.Header().Set("Retry-After", "10")
		deny(w, http.StatusServiceUnavailable, "too many pages follow the studio", "close some; this one asks now and then")
		return
	}
	defer s.queue.unsubscribe(c)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{}) // that of the request would end the stream
	beat := time.NewTicker(15 * time.Second)
	defer beat.Stop()
	send := func(text string) bool {
		_ = control.SetWriteDeadline(time.Now().Add(10 * time.Second)) // not every ResponseWriter of a test has one
		if _, err := io.WriteString(w, text); err != nil {
			return false
		}
		return control.Flush() == nil
	}
	if !send("retry: 1000\n\n") {
		return
	}
	for {
		select {
		case <-c:
			b, err := json.Marshal(s.queue.state())
			if err != nil || !send("data: "+string(b)+"\n\n") {
				return
			}
			select {
			case <-time.After(100 * time.Millisecond):
			case <-r.Context().Done():
				return
			case <-s.ended:
				return
			}
		case <-beat.C:
			if !send(": still here\n\n") {
				return
			}
		case <-r.Context().Done():
			return
		case <-s.ended:
			return
		}
	}
}
