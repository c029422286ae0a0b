package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"image/png"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"drift/cmd/drift/internal/manifest"
	"drift/cmd/drift/internal/studio"
	"drift/internal/pngmeta"
)

// page is a drift studio, a process of its own.
type page struct {
	t    *testing.T
	cmd  *exec.Cmd
	url  string
	dir  string
	talk *bytes.Buffer
}

// drift is a command of this binary: testscript.Main runs main for this name.
func drift(args ...string) (*exec.Cmd, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(exe, args...)
	cmd.Args[0] = "drift"
	return cmd, nil
}

func openStudio(t *testing.T, dir string, flags ...string) *page {
	t.Helper()
	cmd, err := drift(append([]string{"studio", "--json", "--listen", "127.0.0.1:0", "--out", dir}, flags...)...)
	if err != nil {
		t.Fatal(err)
	}
	p := &page{t: t, cmd: cmd, dir: dir, talk: &bytes.Buffer{}}
	cmd.Stderr = p.talk
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	var e struct{ Event, URL string }
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil || json.Unmarshal(line, &e) != nil || e.Event != "listening" {
		t.Fatalf("%v %s %s", err, line, p.talk)
	}
	p.url = e.URL
	return p
}

// end interrupts the studio and returns its exit code.
func (p *page) end() int {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
		p.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = p.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(60 * time.Second):
		p.t.Fatal("the studio does not end")
	}
	return p.cmd.ProcessState.ExitCode()
}

// ask makes a request and decodes the answer.
func (p *page) ask(method, path string, body, into any) int {
	p.t.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		p.t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(context.Background(), method, strings.TrimSuffix(p.url, "/")+path, bytes.NewReader(raw))
	if err != nil {
		p.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		p.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	if into != nil && res.StatusCode < 300 {
		if err := json.Unmarshal(b, into); err != nil {
			p.t.Fatalf("%v: %s", err, b)
		}
	}
	if res.StatusCode >= 400 {
		p.t.Logf("%s %s: %d %s", method, path, res.StatusCode, b)
	}
	return res.StatusCode
}

// until waits until all jobs are as they should.
func (p *page) until(ok func(studio.State) bool) studio.State {
	p.t.Helper()
	var s studio.State
	for range 1500 {
		if p.ask("GET", "/api/state", nil, &s); ok(s) {
			return s
		}
		time.Sleep(20 * time.Millisecond)
	}
	p.t.Fatalf("never: %+v", s)
	return s
}

func done(s studio.State) bool {
	return !slices.ContainsFunc(s.Jobs, func(j studio.Job) bool { return j.Status != "done" })
}

// runLine runs a line as a shell does, in a folder of its own, and returns what its --out holds.
func runLine(t *testing.T, line string) string {
	t.Helper()
	dir := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(exe, filepath.Join(dir, "drift")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", line)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+dir+string(filepath.ListSeparator)+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", line, err, out)
	}
	return filepath.Join(dir, "again")
}

func pixelsOf(t *testing.T, name string) any {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestStudioCommands: the line that the page offers for copying makes the very pixels of the gallery: the line of the
// form, that of a run, and that of a single picture, read back from the PNG.
func TestStudioCommands(t *testing.T) {
	p := openStudio(t, filepath.Join(t.TempDir(), "it's a gallery"))
	for _, q := range []studio.Request{
		{Verb: "sample", Model: "fashion-flow", Samplers: []string{"", "euler-ancestral:eta=0.5"}, Steps: 2, Scale: 2, Seed: 3, Count: 3},
		{Verb: "sample", Model: "fashion", Samplers: []string{"", "dpmpp-2m"}, Schedule: "karras:rho=5", Steps: 2, Scale: 1.5, Guider: "apg", Class: "ankle-boot", Seeds: "7,2-3"},
		{Verb: "steer", Model: "fashion-flow", Samplers: []string{""}, Steps: 3, Scale: 2, Class: "dress", Seed: 1, Count: 2, Particles: 3, Reward: "mean(x0) - 0.2*abs(std(x0) - 0.5)", Lambda: "20"},
	} {
		if code := p.ask("POST", "/api/jobs", q, nil); code != 201 {
			t.Fatalf("%d for %+v", code, q)
		}
	}
	s := p.until(done)
	for _, j := range s.Jobs {
		var run studio.Run
		if p.ask("GET", "/api/runs/"+j.Run, nil, &run); run.Command == "" || run.Count != j.Pictures {
			t.Fatalf("%+v", run)
		}
		var form struct{ Commands []string }
		p.ask("POST", "/api/command", j.Request, &form)
		last := run.Pictures[len(run.Pictures)-1]
		var about struct{ Command string }
		p.ask("GET", "/api/runs/"+j.Run+"/about?file="+last, nil, &about)
		one := runLine(t, about.Command)
		whole := runLine(t, run.Command)
		typed := filepath.Join(filepath.Dir(runLine(t, form.Commands[0])), "samples")
		for _, pic := range run.Pictures {
			want := pixelsOf(t, filepath.Join(p.dir, j.Run, pic))
			for _, dir := range []string{whole, typed} {
				if !reflect.DeepEqual(pixelsOf(t, filepath.Join(dir, pic)), want) {
					t.Errorf("%s: %s is another picture (%s)", run.Command, pic, dir)
				}
			}
			_, err := os.Stat(filepath.Join(one, pic))
			switch {
			case pic != last && err == nil:
				t.Errorf("%s makes more than one picture", about.Command)
			case pic == last && (err != nil || !reflect.DeepEqual(pixelsOf(t, filepath.Join(one, pic)), want)):
				t.Errorf("%s makes another picture, or none: %v", about.Command, err)
			}
		}
		var steps int
		if j.Request.Verb == "steer" {
			if steps = len(run.Checks); steps != 3 || run.Checks[0].ESS <= 0 || run.Checks[0].Mean == nil || run.Lambda != "20" {
				t.Errorf("%+v", run)
			}
		}
	}
	// A bench: its scores, and the line that makes the same report.
	q := studio.Request{Verb: "bench", Model: "fashion-flow", Samplers: []string{"euler", "heun"}, NFE: []int{2, 4}, Scale: 1, Count: 16, Seed: 5}
	if code := p.ask("POST", "/api/jobs", q, nil); code != 201 {
		t.Fatalf("%d for %+v", code, q)
	}
	p.until(done)
	var bench studio.Run
	p.ask("GET", "/api/runs/0006-bench-fashion-flow", nil, &bench)
	if len(bench.Scores) != 8 || bench.Scores[0].Metric != "fid" || bench.Scores[0].NFE != 2 || bench.Scores[0].N != 16 || !(bench.Scores[0].Value > 1) {
		t.Errorf("%+v", bench)
	}
	there, err := os.ReadFile(filepath.Join(p.dir, bench.Name, "results.json"))
	if err != nil {
		t.Fatal(err)
	}
	here, err := os.ReadFile(filepath.Join(runLine(t, bench.Command), "results.json"))
	if err != nil || !bytes.Equal(here, there) {
		t.Errorf("%s makes another report (%v)", bench.Command, err)
	}
	if code := p.end(); code != 0 {
		t.Errorf("exit code %d: %s", code, p.talk)
	}
}

// TestStudioAgain: lines made of descriptions alone describe the same run again, by its hash; what does not fit a line is
// refused.
func TestStudioAgain(t *testing.T) {
	a := &app{out: io.Discard, err: io.Discard, getenv: func(string) string { return "" }, quiet: true}
	catalog, err := a.studioCatalog(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	made := func(name string, args []string) manifest.Run {
		t.Helper()
		out := filepath.Join(dir, name+".png")
		if code, _, talk := world(nil, append(slices.Clone(args), "--quiet", "--out", out)...); code != 0 {
			t.Fatalf("%q: %d %s", args, code, talk)
		}
		texts, err := readTexts(out)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := pngmeta.Find(texts, ownKeyword)
		run, err := manifest.Parse(out, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return run
	}
	for i, c := range []struct {
		line string
		want string // in the line made of it; "!x": refused for x
	}{
		{"sample --steps 1 --count 1", "--cfg-scale 2"},
		{"sample --model fashion --steps 3 --count 2 --sampler dpm-fast", "--sampler dpm-fast:nfe=3 --schedule"},
		{"sample --model fashion --steps 1 --seed 9 --guider none --guider cfg:w=3,rescale=0.7", "--guider cfg:w=3,rescale=0.7"},
		{"sample --model fashion --steps 1 --seed 9 --cfg-scale 3", "sample --model fashion --schedule model --steps 1 --cfg-scale 3"},
		{"sample --model fashion --sampler ddim --steps 1 --seed 9", "sample --model fashion --sampler ddim --schedule model --steps 1 --seeds 9"},
		{"sample --model fashion --steps 1 --seed 9 --class none", "--class none"},
		{"sample --model fashion-flow --steps 1 --seeds 5,1-2 --classes 9,none,1", "--classes 9,none,1"},
		{"sample --model fashion --steps 2 --seed 1 --sigma-max 20 --t-end 5 --final min --schedule karras", "--t-end 5 --sigma-max 20 --final min"},
		{"sample --model fashion-flow --steps 3 --seed 1 --start-step 1 --end-step 3 --init-image IMG", "!made of a file"},
		{"sample --model fashion-flow --steps 2 --seed 1 --noise torch --sampler ddpm --rounding diffusers", "--noise torch --rounding diffusers"},
		{"sample --model fashion-flow --seed 1 --sigmas 3,1,0", "!nodes of its own"},
		{"sample --compose a:fashion:bag,b:fashion:coat --rule product --steps 1 --seed 1", "!composition"},
		{"sample --model fashion --dtype bf16 --steps 1 --seed 2 --sampler heun:churn=1", "--dtype bf16"},
		{"steer --model fashion-flow --steps 2 --particles 2 --reward classifier:fashion:bag --lambda 2*progress --resampler residual --ess 0.9 --keep resampled", "--lambda 2*progress --resampler residual --keep resampled --ess 0.9"},
		{"steer --model fashion-flow --steps 2 --particles 2 --reward mean(x0) --checks 0,1", "!steered by more"},
	} {
		line := strings.Fields(c.line)
		for k := range line {
			if line[k] == "IMG" {
				line[k] = filepath.Join(dir, "0.png")
				line = append(line, "--width", "28")[:len(line)]
			}
		}
		run := made(fmt.Sprint(i), line)
		again, err := catalog.Again(run)
		if no, refused := strings.CutPrefix(c.want, "!"); refused {
			if err == nil || !strings.Contains(err.Error(), no) {
				t.Errorf("%s: %v, want %s", c.line, err, no)
			}
			continue
		}
		if err != nil || !strings.Contains(strings.Join(again, " "), c.want) {
			t.Errorf("%s: %q, want %s (%v)", c.line, again, c.want, err)
			continue
		}
		if other := made(fmt.Sprint(i)+"-again", again); other.Hash() != run.Hash() {
			t.Errorf("%s: %q is another run: %v", c.line, again, manifest.Diff(run, other))
		}
	}
}

// TestStudioInterrupted: Ctrl-C stops the job under way and keeps what is finished; the same line goes on with it and
// makes the same bits.
func TestStudioInterrupted(t *testing.T) {
	dir := t.TempDir()
	q := studio.Request{Verb: "sample", Model: "fashion-flow", Samplers: []string{""}, Steps: 80, Class: "bag", Count: 2}
	p := openStudio(t, dir)
	p.ask("POST", "/api/jobs", q, nil)
	p.until(func(s studio.State) bool { return len(s.Jobs) == 1 && s.Jobs[0].Preview > 0 })
	if code := p.end(); code != exitInterrupted || !strings.Contains(p.talk.String(), "1 job waits, finished pictures are kept") || !strings.Contains(p.talk.String(), "go on with: drift studio") {
		t.Errorf("exit code %d: %s", code, p.talk)
	}
	if _, err := os.Stat(filepath.Join(dir, "0001-fashion-flow-unipc", "state.run")); err != nil {
		t.Error(err) // the batch in its middle
	}
	p = openStudio(t, dir)
	s := p.until(func(s studio.State) bool { return len(s.Jobs) == 1 && s.Jobs[0].Status == "done" })
	var run studio.Run
	if p.ask("GET", "/api/runs/"+s.Jobs[0].Run, nil, &run); run.Count != 2 {
		t.Errorf("%+v", run)
	}
	again := runLine(t, run.Command)
	for _, pic := range run.Pictures {
		if !reflect.DeepEqual(pixelsOf(t, filepath.Join(again, pic)), pixelsOf(t, filepath.Join(dir, s.Jobs[0].Run, pic))) {
			t.Errorf("%s is another picture after the interruption", pic)
		}
	}
	if code := p.end(); code != 0 {
		t.Errorf("exit code %d: %s", code, p.talk)
	}
}

// TestStudioListen: off loopback there is a token, over TLS the cookie is for TLS alone, and a token can be asked for
// or given on loopback.
func TestStudioListen(t *testing.T) {
	dir := t.TempDir()
	cert, key := selfSigned(t, dir)
	secret := filepath.Join(dir, "token")
	if err := os.WriteFile(secret, []byte("a-token-of-some-length\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	insecure := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} // the test's own certificate
	get := func(address, host string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(context.Background(), "GET", address, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		res, err := insecure.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, res.Header.Get("Set-Cookie")
	}
	for _, c := range []struct {
		flags       []string
		scheme      string
		token, warn bool
	}{
		{nil, "http", false, false},
		{[]string{"--token"}, "http", true, false},
		{[]string{"--token-file", secret}, "http", true, false},
		{[]string{"--listen", "0.0.0.0:0", "--host", "box.example"}, "http", true, true},
		{[]string{"--listen", "0.0.0.0:0", "--tls-cert", cert, "--tls-key", key}, "https", true, false},
	} {
		p := openStudio(t, filepath.Join(dir, "g"), c.flags...)
		u, err := url.Parse(p.url)
		if err != nil {
			t.Fatal(err)
		}
		token := u.Query().Get("token")
		if u.Scheme != c.scheme || (len(token) >= 16) != c.token || slices.Contains(c.flags, secret) && token != "a-token-of-some-length" {
			t.Errorf("%v: %s", c.flags, p.url)
		}
		base := c.scheme + "://127.0.0.1:" + u.Port() + "/"
		want := map[bool]int{true: 401, false: 200}[c.token]
		if code, _ := get(base, ""); code != want {
			t.Errorf("%v: without the token %d", c.flags, code)
		}
		code, cookie := get(base+"?token="+token, "")
		if code != 200 || (cookie != "") != c.token || strings.Contains(cookie, "; Secure") != (c.scheme == "https") {
			t.Errorf("%v: %d %s", c.flags, code, cookie)
		}
		if code, _ := get(base+"?token="+token, "evil.example"); code != 421 {
			t.Errorf("%v: another host %d", c.flags, code)
		}
		if code, _ := get(base+"?token="+token, "box.example:"+u.Port()); (code == 200) != slices.Contains(c.flags, "box.example") {
			t.Errorf("%v: a further host %d", c.flags, code)
		}
		if code := p.end(); code != 0 || strings.Contains(p.talk.String(), "not encrypted") != c.warn {
			t.Errorf("%v: exit code %d: %s", c.flags, code, p.talk)
		}
	}
}

// selfSigned makes a certificate.
func selfSigned(t *testing.T, dir string) (cert, key string) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &priv.PublicKey, priv)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for name, b := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "EC PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}
