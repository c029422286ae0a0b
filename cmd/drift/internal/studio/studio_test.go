package studio

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/png"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"drift/cmd/drift/internal/manifest"
	"drift/internal/pngmeta"
	"drift/schedules"
)

var testCatalog = Catalog{
	Version: "test",
	Models: []Model{
		{Name: "m", Shape: []int{1, 2, 2}, Classes: 2, Labels: []string{"cat", "dog"}, Sampler: "euler", Schedule: "time", Steps: 4, Scale: 2, Rounding: "floor", Bench: true},
		{Name: "words", Shape: []int{3, 2, 2}, Text: true, AnySize: true, Sampler: "euler", Steps: 4, Scale: 7},
	},
	Samplers:  []Name{{Name: "euler"}, {Name: "heun", Options: []Option{{Name: "churn", Default: "0"}}}, {Name: "dpm-adaptive", OwnGrid: true}},
	Schedules: []Name{{Name: "model"}, {Name: "karras", Options: []Option{{Name: "rho", Default: "7"}}}},
	Guiders:   []Name{{Name: "cfg"}, {Name: "apg"}},
}

// fake is a command line that makes pictures of nothing, in steps that the test allows.
type fake struct {
	mu    sync.Mutex
	lines [][]string
	gate  chan struct{} // a token for every step; nil: at once
	fail  bool
}

func (f *fake) run(ctx context.Context, args []string, line func([]byte)) (int, string, error) {
	f.mu.Lock()
	f.lines = append(f.lines, args)
	f.mu.Unlock()
	if f.fail {
		return 1, "drift: error: it does not work\ndrift: hint: no", nil
	}
	say := func(v any) {
		b, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		line(b)
	}
	out := ""
	for i, a := range args {
		if a == "--out" {
			out = args[i+1]
		}
	}
	say(map[string]any{"event": "start", "steps": 3, "nfe": 6})
	line([]byte(`{"event":"step","sigma":"inf","step":0,"steps":3}`))
	line([]byte("not JSON"))
	for k := range 3 {
		if f.gate != nil {
			select {
			case <-f.gate:
			case <-ctx.Done():
				return 130, "drift: interrupted", nil
			}
		}
		say(map[string]any{"event": "step", "step": k + 1, "steps": 3, "sigma": 1.5, "nfe": 2 * k, "progress": float64(k+1) / 3})
		say(map[string]any{"event": "preview", "png": picture(uint8(k)), "pictures": 4, "columns": 2})
		say(map[string]any{"event": "check", "step": k, "ess": 3.5, "roots": 2, "reward_mean": 0.5, "reward_max": 1})
	}
	dir := filepath.Join(out, "000000")
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return 1, "", err
	}
	if err := manifest.Save(out, testRun(args[0])); err != nil {
		return 1, "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "000003.png"), described(testRun(args[0]), 3), 0o666); err != nil {
		return 1, "", err
	}
	say(map[string]any{"event": "file", "path": filepath.Join(dir, "000003.png")})
	say(map[string]any{"event": "done", "nfe": 6})
	return 0, "", nil
}

func testRun(verb string) manifest.Run {
	g := schedules.Grid{{T: 1, Alpha: 0, Sigma: 1}, {T: 0.5, Alpha: 0.5, Sigma: 0.5}, {T: 0, Alpha: 1, Sigma: 0}}
	return manifest.Run{Format: manifest.Format, Version: "test", Verb: verb, Model: manifest.Model{Path: "m", Hash: "abc", Shape: []int{1, 2, 2}}, Sampler: "euler", Schedule: "time",
		Grid: manifest.NewGrid(g), NFE: 4, Guiders: []string{"cfg:w=2"}, Seeds: "3", Sets: []manifest.Set{{Classes: []int{1}}}, Rounding: "floor"}
}

func picture(v uint8) []byte {
	m := image.NewGray(image.Rect(0, 0, 2, 2))
	m.Pix[0] = v
	var b bytes.Buffer
	if err := png.Encode(&b, m); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func described(r manifest.Run, seed uint64) []byte {
	own, err := json.Marshal(manifest.Picture{Run: r, Of: r.Hash(), Seed: seed})
	if err != nil {
		panic(err)
	}
	var b bytes.Buffer
	if err := pngmeta.Insert(&b, bytes.NewReader(picture(9)), pngmeta.Text{Keyword: "parameters", Text: "Steps: 2"}, pngmeta.Text{Keyword: "drift", Text: string(own)}); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// world is a studio that answers on loopback.
type world struct {
	t    testing.TB
	s    *Studio
	f    *fake
	dir  string
	url  string
	stop context.CancelFunc
	done chan error
}

func start(t testing.TB, c Config, f *fake) *world {
	t.Helper()
	if c.Dir == "" {
		c.Dir = t.TempDir()
	}
	if f == nil {
		f = &fake{}
	}
	c.Catalog, c.Run, c.Quote, c.Loopback = testCatalog, f.run, strconv.Quote, true
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &world{t: t, s: s, f: f, dir: c.Dir, url: "http://" + l.Addr().String(), stop: cancel, done: make(chan error, 1)}
	go func() { w.done <- s.Serve(ctx, l, "", "") }()
	t.Cleanup(func() { w.end() })
	return w
}

func (w *world) end() {
	w.t.Helper()
	w.stop()
	select {
	case err := <-w.done:
		if err != nil {
			w.t.Error(err)
		}
		w.done <- nil
	case <-time.After(20 * time.Second):
		w.t.Fatal("the studio does not end")
	}
}

// do makes a request and returns status, head and body.
func (w *world) do(method, path, body string, head ...string) (int, http.Header, string) {
	w.t.Helper()
	r, err := http.NewRequest(method, w.url+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(head); i += 2 {
		if head[i] == "Host" {
			r.Host = head[i+1]
			continue
		}
		r.Header.Set(head[i], head[i+1])
	}
	res, err := (&http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}).Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return res.StatusCode, res.Header, string(b)
}

func (w *world) state() State {
	w.t.Helper()
	code, _, body := w.do("GET", "/api/state", "")
	var s State
	if err := json.Unmarshal([]byte(body), &s); err != nil || code != 200 {
		w.t.Fatalf("%d %v %s", code, err, body)
	}
	return s
}

// until waits for a state.
func (w *world) until(what string, ok func(State) bool) State {
	w.t.Helper()
	for range 1000 {
		if s := w.state(); ok(s) {
			return s
		}
		time.Sleep(5 * time.Millisecond)
	}
	w.t.Fatalf("never: %s; %+v", what, w.state())
	return State{}
}

const good = `{"verb":"sample","model":"m","samplers":["euler"],"steps":4,"guidance":2,"class":"dog","seed":3,"count":1}`

func all(status string) func(State) bool {
	return func(s State) bool {
		return len(s.Jobs) > 0 && !slices.ContainsFunc(s.Jobs, func(j Job) bool { return j.Status != status })
	}
}

// TestRun takes a job through its life: queued, previews, done, in the gallery, described, and there after a restart.
func TestRun(t *testing.T) {
	t.Parallel()
	f := &fake{gate: make(chan struct{}, 10)}
	w := start(t, Config{}, f)
	code, _, body := w.do("POST", "/api/jobs", good)
	if code != 201 || !strings.Contains(body, `"run":"0001-m-euler"`) || !strings.Contains(body, `\"--class\" \"dog\"`) {
		t.Fatalf("%d %s", code, body)
	}
	f.gate <- struct{}{}
	s := w.until("a preview", func(s State) bool { return len(s.Jobs) == 1 && s.Jobs[0].Preview == 1 && len(s.Jobs[0].Checks) == 1 })
	if j := s.Jobs[0]; j.Status != running || j.Step != 1 || j.Steps != 3 || j.Sigma != 1.5 || j.NFEAll != 6 || j.Left < 0 || *j.Checks[0].Mean != 0.5 {
		t.Errorf("%+v", j)
	}
	if code, head, body := w.do("GET", "/api/jobs/1/preview.png?v=1", ""); code != 200 || head.Get("Content-Type") != "image/png" || body != string(picture(0)) {
		t.Errorf("preview: %d", code)
	}
	f.gate <- struct{}{}
	f.gate <- struct{}{}
	s = w.until("the end", all(finished))
	if j := s.Jobs[0]; j.Made != 1 || j.Progress != 1 || j.NFE != 6 {
		t.Errorf("%+v", j)
	}
	want := []string{"sample", "--model", "m", "--sampler", "euler", "--steps", "4", "--cfg-scale", "2", "--class", "dog", "--seeds", "3", "--out", filepath.Join(w.dir, "0001-m-euler"), "--json", "--preview", "json"}
	if !slices.Equal(f.lines[0], want) {
		t.Errorf("the line is %q", f.lines[0])
	}
	check := func(w *world) {
		t.Helper()
		_, _, body := w.do("GET", "/api/runs", "")
		var runs []Run
		if err := json.Unmarshal([]byte(body), &runs); err != nil || len(runs) != 1 {
			t.Fatalf("%v %s", err, body)
		}
		r := runs[0]
		if r.Name != "0001-m-euler" || r.Kind != "sample" || r.Class != "dog" || r.Steps != 2 || r.Wanted != 1 || !slices.Equal(r.Pictures, []string{"000000/000003.png"}) {
			t.Errorf("%+v", r)
		}
		if code, _, body := w.do("GET", "/api/runs/0001-m-euler", ""); code != 200 || !strings.Contains(body, `"command":"drift \"sample\" \"--model\" \"m\"`[:30]) {
			t.Errorf("%d %s", code, body)
		}
		code, _, body := w.do("GET", "/api/runs/0001-m-euler/about?file=000000/000003.png", "")
		if code != 200 || !strings.Contains(body, `"parameters":"Steps: 2"`) || !strings.Contains(body, `"class":"dog"`) || !strings.Contains(body, `\"--cfg-scale\" \"2\"`) {
			t.Errorf("about: %d %s", code, body)
		}
		if code, head, body := w.do("GET", "/files/0001-m-euler/000000/000003.png", ""); code != 200 || body != string(described(testRun("sample"), 3)) || head.Get("X-Content-Type-Options") != "nosniff" || !strings.Contains(head.Get("Content-Security-Policy"), "default-src 'self'") {
			t.Errorf("file: %d %v", code, head)
		}
	}
	check(w)
	w.end()
	again := start(t, Config{Dir: w.dir}, nil)
	check(again)
	if _, _, body := again.do("POST", "/api/jobs", good); !strings.Contains(body, `"run":"0002-m-euler"`) {
		t.Error(body) // numbers go on
	}
}

// TestQueue: order, removal, cancelling, failures, the bound, and what a studio that ends leaves for the next.
func TestQueue(t *testing.T) {
	t.Parallel()
	f := &fake{gate: make(chan struct{}, 100)}
	w := start(t, Config{}, f)
	post := func(seed int) {
		t.Helper()
		if code, _, body := w.do("POST", "/api/jobs", strings.Replace(good, `"seed":3`, `"seed":`+strconv.Itoa(seed), 1)); code != 201 {
			t.Fatalf("%d %s", code, body)
		}
	}
	order := func() (ids []int) {
		for _, j := range w.state().Jobs {
			if j.Status == waiting {
				ids = append(ids, j.ID)
			}
		}
		return ids
	}
	for k := range 5 {
		post(k)
	}
	w.until("the first runs", func(s State) bool { return s.Jobs[0].Status == running })
	for _, m := range []struct {
		id, to int
		want   []int
	}{{5, 0, []int{5, 2, 3, 4}}, {5, 2, []int{2, 3, 5, 4}}, {2, 99, []int{3, 5, 4, 2}}, {2, -4, []int{2, 3, 5, 4}}} {
		if code, _, body := w.do("POST", fmt.Sprintf("/api/jobs/%d/move", m.id), fmt.Sprintf(`{"to":%d}`, m.to)); code != 200 {
			t.Fatalf("%d %s", code, body)
		}
		if got := order(); !slices.Equal(got, m.want) {
			t.Errorf("%v, want %v", got, m.want)
		}
	}
	if code, _, _ := w.do("DELETE", "/api/jobs/3", ""); code != 200 || !slices.Equal(order(), []int{2, 5, 4}) {
		t.Errorf("%d %v", code, order())
	}
	for _, path := range []string{"/api/jobs/3", "/api/jobs/99", "/api/jobs/x", "/api/jobs/99999999999999999999"} {
		if code, _, _ := w.do("DELETE", path, ""); code != 404 {
			t.Errorf("%s: %d", path, code)
		}
	}
	if code, _, _ := w.do("POST", "/api/jobs/1/move", `{"to":0}`); code != 404 {
		t.Errorf("moving the one that runs: %d", code)
	}
	w.do("DELETE", "/api/jobs/1", "") // it runs: cancelled
	s := w.until("the next runs", func(s State) bool { return s.Jobs[0].Status == cancelled && s.Jobs[1].Status == running })
	if s.Jobs[1].ID != 2 || s.Jobs[0].Message != "cancelled: 0 of 1 pictures are kept" {
		t.Errorf("%+v", s.Jobs)
	}
	for k := range maxQueue {
		code, head, body := w.do("POST", "/api/jobs", good)
		if k < maxQueue-2 && code != 201 || k >= maxQueue-2 && (code != 429 || head.Get("Retry-After") == "" || !strings.Contains(body, "32 jobs wait already")) {
			t.Fatalf("%d: %d %s", k, code, body)
		}
	}
	if code, _, _ := w.do("POST", "/api/jobs", `{"verb":"sample","model":"m","samplers":["euler","heun"],"count":1}`); code != 429 {
		t.Errorf("two jobs into a full queue: %d", code)
	}
	w.end() // the one that runs goes back to the head of the queue
	b, err := os.ReadFile(filepath.Join(w.dir, queueName))
	if err != nil {
		t.Fatal(err)
	}
	var list []saved
	if err := json.Unmarshal(b, &list); err != nil || len(list) != maxQueue+1 || list[0].Request.Seed != 1 || list[1].Request.Seed != 4 || list[2].Request.Seed != 3 {
		t.Errorf("%d jobs are saved: %+v", len(list), list[:3])
	}
	// A queue that was written by hand is held to the same rules.
	list = list[:1]
	list = append(list, saved{Run: "../evil", Request: list[0].Request}, saved{Run: "0009-x", Request: Request{Verb: "sample", Model: "/etc/passwd"}}, saved{Run: "0010-y", Request: Request{Verb: "sample", Model: "m", Count: 1}})
	if b, err = json.Marshal(list); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.dir, queueName), b, 0o666); err != nil {
		t.Fatal(err)
	}
	f2 := &fake{}
	again := start(t, Config{Dir: w.dir}, f2)
	again.until("both are done", func(s State) bool { return len(s.Jobs) == 2 && all(finished)(s) })
	if !strings.HasPrefix(list[0].Run, "0002-m-euler") || f2.lines[0][len(f2.lines[0])-4] != filepath.Join(w.dir, list[0].Run) {
		t.Errorf("%q", f2.lines)
	}
	again.end()
	if err := os.WriteFile(filepath.Join(w.dir, queueName), []byte(`{"no":"list"}`), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{Dir: w.dir, Catalog: testCatalog}); err == nil || !strings.Contains(err.Error(), queueName) {
		t.Error(err)
	}
	broken := start(t, Config{}, &fake{fail: true})
	broken.do("POST", "/api/jobs", good)
	s = broken.until("it fails", all(failed))
	if s.Jobs[0].Message != "it does not work" {
		t.Errorf("%+v", s.Jobs[0])
	}
}

// TestAgain: a cancelled job goes on in its folder, and only a cancelled one.
func TestAgain(t *testing.T) {
	t.Parallel()
	f := &fake{gate: make(chan struct{}, 100)}
	w := start(t, Config{}, f)
	w.do("POST", "/api/jobs", good)
	w.until("it runs", all(running))
	if code, _, _ := w.do("POST", "/api/jobs/1/again", "{}"); code != 404 {
		t.Errorf("one that runs: %d", code)
	}
	w.do("DELETE", "/api/jobs/1", "")
	w.until("it is cancelled", all(cancelled))
	for range 3 {
		f.gate <- struct{}{}
	}
	if code, _, body := w.do("POST", "/api/jobs/1/again", "{}"); code != 200 {
		t.Errorf("%d %s", code, body)
	}
	s := w.until("it is done", all(finished))
	if len(s.Jobs) != 1 || s.Jobs[0].Run != "0001-m-euler" || !slices.Equal(f.lines[0], f.lines[1]) {
		t.Errorf("%+v %q", s.Jobs, f.lines)
	}
	if code, _, _ := w.do("POST", fmt.Sprintf("/api/jobs/%d/again", s.Jobs[0].ID), "{}"); code != 404 {
		t.Errorf("one that is done: %d", code)
	}
	if code, _, _ := w.do("POST", "/api/jobs/2/again", ""); code != 415 {
		t.Errorf("without a body: %d", code)
	}
}

// TestRefused: requests that are wrong in any way get a code and a line, and nothing else happens.
func TestRefused(t *testing.T) {
	t.Parallel()
	w := start(t, Config{Reward: func(s string) error {
		if s == "bad(" {
			return errors.New("does not read")
		}
		return nil
	}}, nil)
	with := func(from, to string) string {
		if !strings.Contains(good, from) {
			t.Fatal(from)
		}
		return strings.Replace(good, from, to, 1)
	}
	steer := `{"verb":"steer","model":"m","samplers":[""],"steps":4,"count":1,"particles":4,"reward":"mean(x0)","lambda":"2"}`
	bench := `{"verb":"bench","model":"m","samplers":["euler"],"nfe":[4],"count":16}`
	for _, c := range []struct {
		body string
		code int
		want string
	}{
		{good, 201, ""}, {steer, 201, ""}, {bench, 201, ""},
		{`{"verb":"sample","model":"words","prompt":"a (red:1.3) fox; $(rm -rf /)","negative":"--out /etc","width":64,"height":64,"seeds":"1-2,9"}`, 201, ""},
		{"", 415, "want Content-Type"}, {"{", 400, "unexpected EOF"}, {"null", 400, "unknown model"}, {"[]", 400, "cannot unmarshal array"}, {`"x"`, 400, "cannot unmarshal string"},
		{good + good, 400, "something follows"}, {good + "x", 400, "invalid character"}, {with(`"seed":3`, `"seed":3,"out":"/etc"`), 400, "unknown field"},
		{with(`"seed":3`, `"seed":"3"`), 400, "cannot unmarshal string"}, {with(`"seed":3`, `"seed":-1`), 400, "cannot unmarshal number"}, {with(`"seed":3`, `"seed":18446744073709551615`), 400, "beyond the last"},
		{with(`"seed":3`, `"seed":1e99`), 400, "cannot unmarshal number"}, {with(`"count":1`, `"count":0`), 400, "0 pictures"}, {with(`"count":1`, `"count":257`), 400, "257 pictures"}, {with(`"count":1`, `"count":[1]`), 400, "cannot unmarshal array"},
		{with(`"m"`, `"../m"`), 400, "unknown model"}, {with(`"m"`, `"/etc/passwd"`), 400, "unknown model"}, {with(`"sample"`, `"restore"`), 400, "want sample"}, {with(`"sample"`, `"studio"`), 400, "want sample"},
		{with(`["euler"]`, `["usf:schedule=/etc/passwd"]`), 400, "unknown sampler"}, {with(`["euler"]`, `["@/etc/passwd"]`), 400, "unknown sampler"}, {with(`["euler"]`, `["heun:churn=/etc/passwd"]`), 400, "no plain value"},
		{with(`["euler"]`, `["heun:file=x"]`), 400, "no option"}, {with(`["euler"]`, `["euler","euler"]`), 400, "twice"}, {with(`["euler"]`, `["a","b","c","d","e","f","g"]`), 400, "7 samplers"}, {with(`["euler"]`, `["heun:churn=1\u0000"]`), 400, "cannot be shown"},
		{with(`["euler"]`, `"euler"`), 400, "cannot unmarshal string"},
		{with(`"steps":4`, `"steps":1001`), 400, "1001 steps"}, {with(`"steps":4`, `"steps":-1`), 400, "-1 steps"}, {with(`"guidance":2`, `"guidance":1e9`), 400, "at most 1000"}, {with(`"guidance":2`, `"guidance":2,"guider":"energy:file=x"`), 400, "unknown guidance"},
		{with(`"dog"`, `"cow"`), 400, "unknown class"}, {with(`"dog"`, `"2"`), 400, "unknown class"}, {with(`"dog"`, `"dog\n"`), 400, "cannot be shown"}, {with(`"seed":3`, `"prompt":"x"`), 400, "takes no text"}, {with(`"seed":3`, `"width":64`), 400, "one size"},
		{with(`"seed":3`, `"schedule":"@/etc/passwd"`), 400, "unknown schedule"}, {with(`"seed":3`, `"schedule":"karras:rho=../x"`), 400, "no plain value"}, {with(`"seed":3`, `"reward":"mean(x0)"`), 400, "belong to steering"}, {with(`"seed":3`, `"nfe":[3]`), 400, "belong to the bench"},
		{with(`"seed":3,"count":1`, `"seeds":"0-18446744073709551615"`), 400, "at most 256"}, {with(`"seed":3,"count":1`, `"seeds":"5-1"`), 400, "want numbers"}, {with(`"seed":3,"count":1`, `"seeds":"1,1"`), 400, "twice"}, {with(`"seed":3`, `"seeds":"1"`), 400, "not both"},
		{`{"verb":"sample","model":"words","prompt":"` + strings.Repeat("x", maxText+1) + `","count":1}`, 400, "2001 bytes"}, {`{"verb":"sample","model":"words","width":4096,"count":1}`, 400, "at most 2048"},
		{strings.Replace(steer, `"mean(x0)"`, `"bad("`, 1), 400, "reward: does not read"}, {strings.Replace(steer, `"mean(x0)"`, `" "`, 1), 400, "needs a reward"}, {strings.Replace(steer, `"particles":4`, `"particles":65`, 1), 400, "65 particles"}, {strings.Replace(steer, `"lambda":"2"`, `"lambda":2`, 1), 400, "cannot unmarshal number"},
		{strings.Replace(strings.Replace(steer, `"count":1`, `"count":256`, 1), `"particles":4`, `"particles":64`, 1), 400, "at most 4096 rows"},
		{strings.Replace(bench, `"m"`, `"words"`, 1), 400, "no reference set"}, {strings.Replace(bench, `[4]`, `[]`, 1), 400, "0 budgets"}, {strings.Replace(bench, `[4]`, `[4,4]`, 1), 400, "twice"}, {strings.Replace(bench, `[4]`, `[501]`, 1), 400, "budget of 501"}, {strings.Replace(bench, `16`, `5001`, 1), 400, "5001 pictures"},
		{`{"verb":"` + strings.Repeat("x", maxBody) + `"}`, 413, "more than 65536 bytes"}, {strings.Repeat("[", 30000), 400, "exceeded max depth"},
	} {
		for _, path := range []string{"/api/jobs", "/api/command"} {
			want := c.code
			if path == "/api/command" && want == 201 {
				want = 200
			}
			code, head, body := w.do("POST", path, c.body)
			if code != want || want >= 400 && !strings.Contains(body, c.want) {
				t.Errorf("%s %.80s: %d %s, want %d %s", path, c.body, code, body, want, c.want)
			}
			if !strings.HasPrefix(head.Get("Content-Type"), "application/json") || !json.Valid([]byte(body)) {
				t.Errorf("%s %.80s: %s is no JSON", path, c.body, body)
			}
		}
	}
	w.until("four jobs and no more", func(s State) bool { return len(s.Jobs) == 4 && all(finished)(s) })
	for _, l := range w.f.lines { // no word of a request is a flag
		if i := slices.Index(l, "--negative-prompt"); i > 0 && (l[i+1] != "--out /etc" || l[i-1] != "a (red:1.3) fox; $(rm -rf /)") {
			t.Errorf("%q", l)
		}
		if l[0] == "steer" && !slices.Contains(l, "--sealed") {
			t.Errorf("a reward that is not sealed: %q", l)
		}
	}
	for _, c := range []struct{ method, path string }{{"GET", "/api/jobs"}, {"PUT", "/api/jobs"}, {"POST", "/api/state"}, {"DELETE", "/api/runs/x"}, {"POST", "/"}, {"TRACE", "/"}, {"PATCH", "/files/x"}} {
		if code, _, _ := w.do(c.method, c.path, ""); code != 404 && code != 405 {
			t.Errorf("%s %s: %d", c.method, c.path, code)
		}
	}
	if code, _, _ := w.do("POST", "/api/jobs", good, "Content-Type", "text/plain"); code != 415 {
		t.Errorf("text/plain: %d", code)
	}
	if code, _, _ := w.do("POST", "/api/jobs", good, "Content-Type", "application/x-www-form-urlencoded"); code != 415 {
		t.Errorf("a form: %d", code)
	}
}

// TestStrangers: who is not of this page gets nothing, whatever he asks for.
func TestStrangers(t *testing.T) {
	t.Parallel()
	const token = "0123456789abcdef"
	w := start(t, Config{Token: token}, nil)
	plain := start(t, Config{}, nil)
	for _, path := range []string{"/", "/studio.js", "/api/state", "/api/catalog", "/api/events", "/api/runs", "/files/x.png", "/?token=", "/?token=wrong", "/?token=0123456789abcde", "/?token=0123456789abcdef0", "/api/state?token=" + token, "/?Token=" + token, "/nothing"} {
		code, head, body := w.do("GET", path, "")
		if code != 401 || len(head.Values("Set-Cookie")) > 0 || !strings.Contains(body, "token") {
			t.Errorf("%s without the token: %d %s", path, code, body)
		}
	}
	if code, _, _ := w.do("POST", "/api/jobs", good); code != 401 {
		t.Errorf("a job without the token: %d", code)
	}
	if code, _, _ := w.do("POST", "/?token="+token, "{}"); code != 401 {
		t.Errorf("a token in a POST: %d", code)
	}
	code, head, body := w.do("GET", "/?token="+token, "")
	cookie := head.Get("Set-Cookie")
	if code != 200 || !strings.Contains(body, "drift studio") || !strings.Contains(cookie, "HttpOnly") || !strings.Contains(cookie, "SameSite=Strict") {
		t.Fatalf("%d %s", code, cookie)
	}
	pair, _, _ := strings.Cut(cookie, ";")
	if code, _, _ := w.do("GET", "/api/state", "", "Cookie", pair); code != 200 {
		t.Errorf("with the cookie: %d", code)
	}
	if code, _, _ := w.do("GET", "/api/state", "", "Cookie", pair[:len(pair)-1]); code != 401 {
		t.Errorf("with a cookie that is too short: %d", code)
	}
	if code, _, _ := w.do("GET", "/api/state", "", "Authorization", "Bearer "+token); code != 200 {
		t.Errorf("with a bearer: %d", code)
	}
	if code, _, _ := w.do("GET", "/api/state", "", "Authorization", "Basic "+token); code != 401 {
		t.Errorf("with a wrong scheme: %d", code)
	}

	port := plain.url[strings.LastIndexByte(plain.url, ':')+1:]
	for host, want := range map[string]int{
		"localhost:" + port: 200, "127.0.0.1:" + port: 200, "[::1]:" + port: 200, "LOCALHOST": 200, "127.9.9.9": 200, "localhost.:1": 200,
		"evil.example": 421, "evil.example:" + port: 421, "127.0.0.1.evil.example": 421, "localhost.evil.example": 421, "10.0.0.1": 421, "0.0.0.0": 421, "[::ffff:10.0.0.1]": 421, "2130706433": 421, "x@localhost": 421,
	} {
		if code, _, _ := plain.do("GET", "/api/state", "", "Host", host); code != want && !(code == 400 && want == 421) {
			t.Errorf("Host %s: %d, want %d", host, code, want)
		}
	}
	for _, c := range []struct {
		name string
		head []string
		want int
	}{
		{"same origin", []string{"Origin", plain.url, "Sec-Fetch-Site", "same-origin"}, 200}, {"no browser", nil, 200},
		{"cross site", []string{"Sec-Fetch-Site", "cross-site"}, 403}, {"same site", []string{"Sec-Fetch-Site", "same-site"}, 403}, {"nonsense", []string{"Sec-Fetch-Site", "x"}, 403},
		{"foreign origin", []string{"Origin", "http://evil.example"}, 403}, {"other port", []string{"Origin", "http://127.0.0.1:1"}, 403}, {"null", []string{"Origin", "null"}, 403}, {"empty", []string{"Origin", ""}, 403},
		{"origin as a path", []string{"Origin", "http://evil.example/" + plain.url}, 403}, {"origin with user", []string{"Origin", "http://127.0.0.1:" + port + "@evil.example"}, 403},
	} {
		if code, _, _ := plain.do("POST", "/api/command", good, c.head...); code != c.want {
			t.Errorf("POST, %s: %d, want %d", c.name, code, c.want)
		}
		if code, _, _ := plain.do("DELETE", "/api/jobs/1", "", c.head...); code != map[int]int{200: 404, 403: 403}[c.want] {
			t.Errorf("DELETE, %s: %d", c.name, code)
		}
	}
	if code, _, _ := plain.do("GET", "/api/runs", "", "Sec-Fetch-Site", "cross-site"); code != 403 {
		t.Errorf("a picture for another site: %d", code)
	}
	if code, _, _ := plain.do("GET", "/", "", "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate"); code != 200 {
		t.Errorf("a link to the page: %d", code)
	}
	if code, _, _ := plain.do("GET", "/", "", "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "no-cors"); code != 403 {
		t.Errorf("the page inside another: %d", code)
	}
	off := &guard{hosts: []string{"box"}}
	for host, want := range map[string]bool{"box": true, "BOX:80": true, "10.1.2.3:80": true, "localhost": true, "[fe80::1]:80": true, "evil.example": false, "box.evil.example": false, "": false} {
		if off.ours(host) != want {
			t.Errorf("off loopback, Host %q: %v", host, !want)
		}
	}
	_, head, _ = plain.do("GET", "/", "")
	for k, v := range map[string]string{"X-Frame-Options": "DENY", "Cross-Origin-Resource-Policy": "same-origin", "Referrer-Policy": "no-referrer", "Access-Control-Allow-Origin": ""} {
		if head.Get(k) != v {
			t.Errorf("%s: %q", k, head.Get(k))
		}
	}
}

// TestTraversal: nothing outside the gallery is read, no link is followed, and of what is inside only pictures.
func TestTraversal(t *testing.T) {
	t.Parallel()
	outer := t.TempDir()
	dir := filepath.Join(outer, "gallery")
	secret := []byte("\x89PNG\r\n\x1a\nSECRET")
	put := func(name string, b []byte) {
		t.Helper()
		name = filepath.Join(outer, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, b, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	link := func(to, name string) {
		t.Helper()
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	put("secret.png", secret)
	put("000000/000000.png", secret)
	put("gallery/run/000000/000000.png", described(testRun("sample"), 0))
	put("gallery/run/000000/notes.txt", secret)
	put("gallery/run/secret.png", secret)
	put("gallery/run/weights.npz", secret)
	put("gallery/run/000000/000009.png", []byte("no picture, SECRET"))
	put("gallery/.hidden.png", secret)
	put("gallery/whole.png", described(testRun("sample"), 7))
	if err := manifest.Save(filepath.Join(dir, "run"), testRun("sample")); err != nil {
		t.Fatal(err)
	}
	link("../secret.png", "link.png")
	link("../secret.png", "run/000000/000001.png")
	link("whole.png", "inside.png")
	link("..", "up")
	link("run", "alias")
	link("../../000000", "run/001000")
	link("000000", "run/002000")
	link("/etc", "etc")
	if err := os.Mkdir(filepath.Join(dir, "folder.png"), 0o777); err != nil {
		t.Fatal(err)
	}
	w := start(t, Config{Dir: dir}, nil)
	for _, ok := range []string{"/files/run/000000/000000.png", "/files/whole.png"} {
		if code, _, _ := w.do("GET", ok, ""); code != 200 {
			t.Errorf("%s: %d", ok, code)
		}
	}
	addr := strings.TrimPrefix(w.url, "http://")
	raw := func(target string) string {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", target)
		b, err := io.ReadAll(c)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	n := 0
	dots := []string{"..", "%2e%2e", "%2E.", ".%2e", "%252e%252e", "%c0%ae%c0%ae", "..%00", "...", "....", ". .", "..;"}
	slashes := []string{"/", "%2f", "%5c", "\\", "%252f", "%c0%af", "//"}
	var targets []string
	for _, d := range dots {
		for _, s := range slashes {
			up := d + s
			targets = append(targets, "/files/"+up+"secret.png", "/files/run/"+up+up+"secret.png", "/files/run/000000/"+up+up+up+"secret.png", "/files/"+up+"000000/000000.png", "/files/run"+s+d+s+d+s+"secret.png",
				"/api/runs/"+d+"/about?file="+up+"secret.png", "/api/runs/run/about?file="+up+up+"secret.png", "/api/runs/run/about?file=000000/"+up+up+up+"secret.png", "/api/runs/"+up+"x", "/"+up+"secret.png", "/studio.css"+s+d+s+d+s+"secret.png")
		}
	}
	targets = append(targets, "/files/link.png", "/files/inside.png", "/files/run/000000/000001.png", "/files/run/001000/000000.png", "/files/run/002000/000000.png", "/files/up/secret.png", "/files/up/000000/000000.png", "/files/alias/000000/000000.png", "/files/etc/passwd",
		"/files/.hidden.png", "/files/.studio.json", "/files/run/manifest.json", "/files/run/weights.npz", "/files/run/secret.png", "/files/run/000000/notes.txt", "/files/run/000000/000009.png", "/files/folder.png", "/files/", "/files/run", "/files/run/", "/files/run/000000/", "/files//etc/passwd",
		"/files/%2fetc%2fpasswd", "/files/C:%5cx.png", "/files/run/000000/000000.png%00.png", "/files/run/000000/000000.png/x", "/files/run/000000/000000.PNG", "/files/run//000000/000000.png", "http://localhost/files/../secret.png", "file:///etc/passwd", "//etc/passwd",
		"/api/runs/up", "/api/runs/alias", "/api/runs/etc", "/api/runs/link.png", "/api/runs/alias/about?file=000000/000000.png", "/api/runs/run/about?file=000000/000001.png", "/api/runs/run/about", "/api/runs/run/about?file=manifest.json", "/page/studio.js", "/index.html", "/page/")
	for _, target := range targets {
		got := raw(target)
		n++
		if strings.Contains(got, "SECRET") || strings.Contains(got, "root:") {
			t.Errorf("%s: %.400q", target, got)
		}
		if m := regexp.MustCompile(`^HTTP/1.1 (\d+)`).FindStringSubmatch(got); m == nil || m[1] != "404" && m[1] != "400" && m[1] != "301" && m[1] != "307" && m[1] != "421" {
			t.Errorf("%s: %.60q", target, got)
		}
	}
	if n < 800 {
		t.Errorf("only %d targets", n)
	}
	_, _, body := w.do("GET", "/api/runs", "")
	var runs []Run
	if err := json.Unmarshal([]byte(body), &runs); err != nil || len(runs) != 2 || strings.Contains(body, outer) {
		t.Errorf("%v %s", err, body)
	}
	for _, r := range runs {
		if r.Name == "run" && !slices.Equal(r.Pictures, []string{"000000/000000.png", "000000/000009.png"}) {
			t.Errorf("%q", r.Pictures)
		}
	}
}

// TestBrokenGallery: files that are not what their names say make no entry, and no harm.
func TestBrokenGallery(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a/manifest.json": "{", "b/manifest.json": `{"run":{}}`, "c/results.json": `{"matrix":{"count":"x"}}`, "d/results.json": `[]`, "e/manifest.json": strings.Repeat(" ", maxManifest+1), "f.png": "no", "g/000000/000000.png": "x",
		"h/results.json": `{"matrix":{"models":["m"],"samplers":["euler"],"schedules":[""],"guiders":["cfg:w=2"],"nfe":[4,8],"metrics":["fid"],"count":16,"seed":0},"cells":[{"model":"m","sampler":"euler","nfe":4,"n":16,"scores":[{"metric":"fid","value":3.5,"stderr":0.5}]}]}`,
		"i/trace.csv":    "step,ess\n1,2\n",
	} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	run := testRun("steer")
	if err := manifest.Save(filepath.Join(dir, "i"), run); err != nil {
		t.Fatal(err)
	}
	table := "seed,step,ess,roots,reward_mean,reward_max\n0,1,2,4,0.5,1\n1,1,4,2,1.5,3\n0,2,NaN,1,,\n1,2,3,1,x,y\n0,z,3,1,1,1\n"
	if err := os.WriteFile(filepath.Join(dir, "i/trace.csv"), []byte(table), 0o666); err != nil {
		t.Fatal(err)
	}
	w := start(t, Config{Dir: dir}, nil)
	_, _, body := w.do("GET", "/api/runs", "")
	var runs []Run
	if err := json.Unmarshal([]byte(body), &runs); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range runs {
		names = append(names, r.Name)
	}
	slices.Sort(names)
	if !slices.Equal(names, []string{"f.png", "h", "i"}) { // a sheet is told by its name, and says nothing
		t.Errorf("%v", names)
	}
	_, _, body = w.do("GET", "/api/runs/h", "")
	if !strings.Contains(body, `"scores":[{"name":"euler","metric":"fid","nfe":4,"steps":0,"n":16,"value":3.5,"stderr":0.5}]`) || !strings.Contains(body, `\"--guiders\" \"cfg:w=2\" \"--nfe\" \"4,8\"`) {
		t.Error(body)
	}
	_, _, body = w.do("GET", "/api/runs/i", "")
	if !strings.Contains(body, `"checks":[{"step":1,"ess":3,"roots":3,"mean":1,"max":3},{"step":2,"ess":3,"roots":1}]`) {
		t.Error(body)
	}
	if code, _, _ := w.do("GET", "/files/f.png", ""); code != 404 {
		t.Errorf("a file that is no PNG: %d", code)
	}
}

// TestCrowd: 200 clients at once are served or told to wait, streams have a bound, and all is free again afterwards.
func TestCrowd(t *testing.T) {
	t.Parallel()
	f := &fake{gate: make(chan struct{})}
	w := start(t, Config{}, f)
	w.do("POST", "/api/jobs", good)
	var wg sync.WaitGroup
	var mu sync.Mutex
	codes := map[int]int{}
	for range 200 {
		wg.Go(func() {
			for _, path := range []string{"/", "/api/state", "/api/runs"} {
				res, err := http.Get(w.url + path)
				if err != nil {
					t.Error(err)
					return
				}
				_, err = io.Copy(io.Discard, res.Body)
				res.Body.Close()
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				codes[res.StatusCode]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if codes[200]+codes[503] != 600 || codes[200] < 300 {
		t.Errorf("%v", codes)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	codes = map[int]int{}
	var events []*bufio.Reader
	for range 200 {
		wg.Go(func() {
			r, err := http.NewRequestWithContext(ctx, "GET", w.url+"/api/events", nil)
			if err != nil {
				t.Error(err)
				return
			}
			res, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			codes[res.StatusCode]++
			if res.StatusCode == 200 {
				events = append(events, bufio.NewReader(res.Body)) // held until ctx ends
				return
			}
			b, err := io.ReadAll(res.Body)
			if err != nil || !strings.Contains(string(b), "too many pages") || res.Header.Get("Retry-After") == "" {
				t.Errorf("%v %s", err, b)
			}
			res.Body.Close()
		})
	}
	wg.Wait()
	if codes[200] != maxStreams || codes[503] != 200-maxStreams {
		t.Errorf("streams: %v", codes)
	}
	for _, e := range events { // every stream has the state, and then what changes
		for {
			l, err := e.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(l, "data: ") {
				if !strings.Contains(l, `"status":"running"`) {
					t.Error(l)
				}
				break
			}
		}
	}
	f.gate <- struct{}{}
	for {
		l, err := events[0].ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(l, `"preview":1`) {
			break
		}
	}
	if code, _, _ := w.do("GET", "/api/state", ""); code != 200 {
		t.Errorf("beside full streams: %d", code)
	}
	cancel()
	for range 1000 {
		if c := w.s.queue.subscribe(); c != nil {
			w.s.queue.unsubscribe(c)
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	w.s.queue.mu.Lock()
	left := len(w.s.queue.watch)
	w.s.queue.mu.Unlock()
	if left == maxStreams {
		t.Error("streams of clients that have gone are still held")
	}
	w.s.queue.remove(1)
}

// TestInFlight: more requests at a time than are served are told so.
func TestInFlight(t *testing.T) {
	t.Parallel()
	hold := make(chan struct{})
	g := &guard{loopback: true, slots: make(chan struct{}, 2), next: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { <-hold })}
	var wg sync.WaitGroup
	ask := func() int {
		r := httptest.NewRequest("GET", "/api/state", nil)
		r.Host = "localhost"
		w := httptest.NewRecorder()
		g.ServeHTTP(w, r)
		return w.Code
	}
	for range 2 {
		wg.Go(func() { ask() })
	}
	for len(g.slots) < 2 {
		time.Sleep(time.Millisecond)
	}
	if code := ask(); code != 503 {
		t.Errorf("the third of two: %d", code)
	}
	close(hold)
	wg.Wait()
	if code := ask(); code != 200 {
		t.Errorf("afterwards: %d", code)
	}
}

// TestSlow: clients that never finish their request are dropped, and cost others nothing meanwhile.
func TestSlow(t *testing.T) {
	t.Parallel()
	w := start(t, Config{}, nil)
	addr := strings.TrimPrefix(w.url, "http://")
	var conns []net.Conn
	for k := range 64 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		text := "GET /api/state HTTP/1.1\r\nHost: localhost\r\nX-A: "
		if k%2 == 1 {
			text = ""
		}
		fmt.Fprint(c, text)
		conns = append(conns, c)
	}
	if code, _, _ := w.do("GET", "/api/state", ""); code != 200 {
		t.Errorf("beside slow ones: %d", code)
	}
	big, err := net.Dial("tcp", addr) // a head without an end
	if err != nil {
		t.Fatal(err)
	}
	defer big.Close()
	fmt.Fprint(big, "GET /api/state HTTP/1.1\r\nHost: localhost\r\n")
	for range 200 {
		if _, err := fmt.Fprintf(big, "X-%s: x\r\n", strings.Repeat("a", 1000)); err != nil {
			break
		}
	}
	if b, err := io.ReadAll(big); err == nil && !strings.HasPrefix(string(b), "HTTP/1.1 431") {
		t.Errorf("%.100q", b)
	}
	for _, c := range conns {
		if err := c.SetReadDeadline(time.Now().Add(15 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(c); err != nil {
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				t.Fatal("a slow client is never dropped")
			}
		}
	}
}

// TestConnections: more connections than are held are closed at once; those that end make room.
func TestConnections(t *testing.T) {
	t.Parallel()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	l := &limit{Listener: inner, slots: make(chan struct{}, 2)}
	accepted := make(chan net.Conn, 10)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	dial()
	dial()
	a, b := <-accepted, <-accepted
	third := dial()
	if _, err := third.Read(make([]byte, 1)); err == nil {
		t.Error("a third of two")
	}
	a.Close()
	a.Close() // twice frees one
	dial()
	<-accepted
	b.Close()
}

// FuzzAPI sends requests of any kind: the server survives, answers each with JSON or its own files, and never with what
// lies outside the gallery.
func FuzzAPI(f *testing.F) {
	for _, s := range [][3]string{
		{"POST", "/api/jobs", good}, {"POST", "/api/command", `{"verb":"bench","model":"m","nfe":[4],"count":16}`}, {"POST", "/api/jobs", `{"verb":"steer","model":"m","samplers":["heun:churn=1"],"particles":4,"reward":"mean(x0)","seeds":"0-3,9","schedule":"karras:rho=5"}`},
		{"DELETE", "/api/jobs/1", ""}, {"POST", "/api/jobs/2/move", `{"to":-1}`}, {"GET", "/api/runs/run", ""}, {"GET", "/api/runs/run/about?file=000000/000000.png", ""}, {"GET", "/files/run/000000/000000.png", ""}, {"GET", "/files/..%2fsecret.png", ""}, {"GET", "/api/jobs/1/preview.png?v=1", ""}, {"GET", "/?token=x", ""},
	} {
		f.Add(s[0], s[1], s[2])
	}
	outer := f.TempDir()
	dir := filepath.Join(outer, "gallery")
	if err := os.MkdirAll(filepath.Join(dir, "run", "000000"), 0o777); err != nil {
		f.Fatal(err)
	}
	for name, b := range map[string][]byte{"secret.png": []byte("\x89PNG\r\n\x1a\nSECRET"), "gallery/run/000000/000000.png": described(testRun("sample"), 0)} {
		if err := os.WriteFile(filepath.Join(outer, name), b, 0o666); err != nil {
			f.Fatal(err)
		}
	}
	if err := manifest.Save(filepath.Join(dir, "run"), testRun("sample")); err != nil {
		f.Fatal(err)
	}
	s, err := New(Config{Dir: dir, Catalog: testCatalog, Quote: strconv.Quote, Loopback: true, Run: (&fake{}).run})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.root.Close() })
	method := regexp.MustCompile(`^[A-Z]{1,10}$`)
	f.Fuzz(func(t *testing.T, verb, target, body string) {
		if !method.MatchString(verb) || !strings.HasPrefix(target, "/") || strings.HasPrefix(target, eventsPath) {
			return
		}
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(fmt.Sprintf("%s %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", verb, target, len(body), body))))
		if err != nil {
			return
		}
		w := httptest.NewRecorder()
		s.handler.ServeHTTP(w, r)
		if w.Code >= 500 || w.Code == 0 {
			t.Fatalf("%s %q: %d %s", verb, target, w.Code, w.Body)
		}
		if strings.Contains(w.Body.String(), "SECRET") {
			t.Fatalf("%s %q reads what lies outside", verb, target)
		}
		if strings.HasPrefix(w.Header().Get("Content-Type"), "application/json") && r.Method != "HEAD" && !json.Valid(w.Body.Bytes()) {
			t.Fatalf("%s %q: %s", verb, target, w.Body)
		}
		s.queue.mu.Lock()
		if n := len(s.queue.jobs); n > maxQueue {
			t.Errorf("%d jobs", n)
		}
		if len(s.queue.jobs) == maxQueue {
			s.queue.jobs = nil
		}
		s.queue.mu.Unlock()
	})
}
