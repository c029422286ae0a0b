package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/reward"
	"drift/cmd/drift/internal/studio"
	"drift/guidance"
	"drift/internal/pixels"
	"drift/samplers"
	"drift/schedules"
)

func studioVerb(a *app) *cli.Command {
	return &cli.Command{
		Name: "studio", Usage: "a page in the browser: samples, steering and benches, with previews and a gallery",
		Description: "Serves one page, on loopback unless --listen says otherwise, and prints its address. Every job is a line of drift's own command line, which the page shows for copying, run as a child process: one after the other, results in a folder of their own below --out. " +
			"The gallery is that folder: what drift sample, steer and bench put there is shown too. Ctrl-C ends the studio; the job under way keeps what is finished, and the same line again goes on with the queue. " +
			"Off loopback a token is asked for, which stands in the printed address.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "out", Value: "studio", Usage: "`DIR` of the gallery"},
			&cli.StringFlag{Name: "listen", Value: "127.0.0.1:8380", Usage: "`ADDRESS` to listen on; port 0 takes a free one"},
			&cli.StringSliceFlag{Name: "model", Usage: "diffusers folder to offer beside the embedded models (`X`); repeatable"},
			&cli.StringSliceFlag{Name: "host", Usage: "further `NAME` of this machine in addresses, off loopback; repeatable"},
			&cli.BoolFlag{Name: "token", Usage: "ask for a token on loopback too"},
			&cli.StringFlag{Name: "token-file", Usage: "read the token from `FILE` in place of drawing one"},
			&cli.StringFlag{Name: "tls-cert", Usage: "serve TLS with this certificate (`FILE`)"},
			&cli.StringFlag{Name: "tls-key", Usage: "its key (`FILE`)"},
			&cli.BoolFlag{Name: "open", Usage: "open the page in the browser"},
		},
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			return a.studio(c)
		},
	}
}

// studio serves the page until it is interrupted.
func (a *app) studio(c *cli.Context) error {
	dir, cert, key := c.String("out"), c.String("tls-cert"), c.String("tls-key")
	if dir == "" {
		return usagef("--out needs a name")
	}
	if (cert == "") != (key == "") {
		return usagef("--tls-cert and --tls-key belong together")
	}
	if cert != "" {
		if _, err := tls.LoadX509KeyPair(cert, key); err != nil {
			return fmt.Errorf("--tls-cert %s: %w", cert, err)
		}
	}
	host, _, err := net.SplitHostPort(c.String("listen"))
	if err != nil {
		return usagef("--listen %s: want HOST:PORT, such as 127.0.0.1:8380", c.String("listen"))
	}
	catalog, err := a.studioCatalog(c.Context, c.StringSlice("model"))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	l, err := net.Listen("tcp", c.String("listen"))
	if err != nil {
		return &hint{fmt.Errorf("--listen: %w", err), "another studio may run; --listen 127.0.0.1:0 takes a free port"}
	}
	defer l.Close()
	at := l.Addr().(*net.TCPAddr)
	loopback := at.IP.IsLoopback()
	token, err := studioToken(c, loopback)
	if err != nil {
		return err
	}
	hosts := c.StringSlice("host")
	if name, err := os.Hostname(); err == nil {
		hosts = append(hosts, name)
	}
	if host != "" {
		hosts = append(hosts, host)
	}
	for i := range hosts {
		hosts[i] = strings.ToLower(hosts[i])
	}
	run, err := a.children(c.Context, c.Int("threads"))
	if err != nil {
		return err
	}
	s, err := studio.New(studio.Config{
		Dir: dir, Catalog: catalog, Run: run, Quote: quote, Reward: sealedReward,
		Token: token, Loopback: loopback, Hosts: hosts, Secure: cert != "",
	})
	if err != nil {
		return err
	}
	address := studioURL(at, host, cert != "", token)
	if a.json {
		a.emit(map[string]any{"event": "listening", "url": address, "out": dir})
	}
	fmt.Fprintf(a.err, "drift: the studio is at %s\n", address) // with --quiet too: nobody could find it
	a.say("drift: pictures go to %s; Ctrl-C ends it", dir)
	if !loopback && cert == "" {
		a.warn("the page is not encrypted: whoever sees the network sees the token; --tls-cert and --tls-key help")
	}
	if n := s.Waiting(); n > 0 {
		a.say("drift: %d jobs of the last time go on", n)
	}
	if c.Bool("open") {
		a.browse(c.Context, address)
	}
	ctx, cancel := context.WithCancel(c.Context)
	defer cancel()
	go func() {
		select {
		case <-a.stop:
			a.say("drift: ending")
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := s.Serve(ctx, l, cert, key); err != nil {
		return err
	}
	if n := s.Waiting(); n > 0 {
		words := []string{"drift"}
		for _, w := range a.args {
			words = append(words, quote(w))
		}
		jobs := "jobs wait"
		if n == 1 {
			jobs = "job waits"
		}
		return &hint{fmt.Errorf("%w: %d %s, finished pictures are kept", job.ErrStopped, n, jobs), "go on with: " + strings.Join(words, " ")}
	}
	return nil
}

// studioToken is the token to ask for: none on loopback unless a flag wants one.
func studioToken(c *cli.Context, loopback bool) (string, error) {
	if name := c.String("token-file"); name != "" {
		b, err := job.ReadSmall(name)
		if err != nil {
			return "", err
		}
		t := strings.TrimSpace(string(b))
		if len(t) < 16 || len(t) > 200 || strings.ContainsFunc(t, func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
		}) {
			return "", usagef("--token-file %s: want 16 to 200 letters, digits, - and _", name)
		}
		return t, nil
	}
	if loopback && !c.Bool("token") {
		return "", nil
	}
	b := make([]byte, 24)
	if _, err := rand.Read(b); err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(b), nil
}

// studioURL is where a browser finds the page.
func studioURL(at *net.TCPAddr, host string, secure bool, token string) string {
	u := url.URL{Scheme: "http", Path: "/"}
	if secure {
		u.Scheme = "https"
	}
	if at.IP.IsUnspecified() {
		host = "localhost"
		if name, err := os.Hostname(); err == nil {
			host = name
		}
	} else if host == "" {
		host = at.IP.String()
	}
	u.Host = net.JoinHostPort(host, fmt.Sprint(at.Port))
	if token != "" {
		u.RawQuery = url.Values{"token": {token}}.Encode()
	}
	return u.String()
}

// browse opens the page; a machine without a browser is told so.
func (a *app) browse(ctx context.Context, address string) {
	name, args := "xdg-open", []string{address}
	switch runtime.GOOS {
	case "darwin":
		name = "open"
	case "windows":
		name, args = "rundll32", []string{"url.dll,FileProtocolHandler", address}
	}
	cmd := exec.CommandContext(ctx, name, args...)
	if err := cmd.Start(); err != nil {
		a.warn("--open: no browser was started: %v", err)
		return
	}
	go func() { _ = cmd.Wait() }() // how it ends is its own affair
}

// sealedReward says what is wrong with a reward, before it waits in the queue.
func sealedReward(text string) error {
	r, err := reward.Open(text, reward.Options{Sealed: true})
	if err != nil {
		return errors.New(trimPackage(err.Error()))
	}
	r.Close()
	return nil
}

// children runs lines of the command line in processes of this same binary. They get an interrupt when ctx is done,
// which ends them with everything kept; hard is for those that do not listen.
func (a *app) children(hard context.Context, threads int) (studio.Runner, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, args []string, line func([]byte)) (int, string, error) {
		if threads > 0 {
			args = append(slices.Clone(args), "--threads", fmt.Sprint(threads))
		}
		cmd := exec.CommandContext(ctx, exe, args...)
		cmd.Args[0] = "drift"
		cmd.Env = append(slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "DRIFT_MODEL=") }), "DRIFT_PROGRESS_EVERY=3600", "NO_COLOR=1")
		cmd.Cancel = func() error { return interruptProcess(cmd.Process) }
		cmd.WaitDelay = 30 * time.Second
		ownGroup(cmd) // a Ctrl-C in the terminal is for the studio, which passes one on
		out, err := cmd.StdoutPipe()
		if err != nil {
			return exitFailed, "", err
		}
		var talk tail
		cmd.Stderr = &talk
		if err := cmd.Start(); err != nil {
			return exitFailed, "", err
		}
		stop := context.AfterFunc(hard, func() { _ = cmd.Process.Kill() }) // interrupted twice
		defer stop()
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 32<<20) // previews are lines
		for lines.Scan() {
			line(lines.Bytes())
		}
		_, _ = io.Copy(io.Discard, out) // after a line that is too long
		err = cmd.Wait()
		var exit *exec.ExitError
		if errors.As(err, &exit) || errors.Is(err, context.Canceled) {
			err = nil
		}
		return cmd.ProcessState.ExitCode(), talk.String(), err
	}, nil
}

// tail keeps the end of what is written to it.
type tail struct{ b bytes.Buffer }

func (t *tail) Write(p []byte) (int, error) {
	const most = 16 << 10
	t.b.Write(p)
	if n := t.b.Len(); n > most {
		t.b.Next(n - most)
	}
	return len(p), nil
}

func (t *tail) String() string { return t.b.String() }

// studioCatalog lists what the page offers. A model is opened once for its classes and defaults, and closed again.
func (a *app) studioCatalog(ctx context.Context, folders []string) (studio.Catalog, error) {
	c := studio.Catalog{Version: release}
	names := map[string]string{}
	var order []string
	for _, e := range a.modelEntries() {
		names[e.Name] = e.Summary
		order = append(order, e.Name)
	}
	for _, f := range folders {
		if _, ok := names[f]; !ok {
			names[f] = ""
			order = append(order, f)
		}
	}
	for _, name := range order {
		m, err := a.openModel(ctx, name, "", "")
		if err != nil {
			return c, err
		}
		i, d := m.Info, m.Defaults
		m.Close()
		if !pixels.Picture(i.Image()) {
			if slices.Contains(folders, name) {
				return c, usagef("--model %s gives arrays of shape %v: the studio shows pictures", name, i.Shape)
			}
			continue
		}
		summary := names[name]
		if summary == "" {
			summary = fmt.Sprintf("%s, %dx%d", filepath.Base(filepath.Clean(name)), i.Image()[2], i.Image()[1])
		}
		rounding, err := pixels.ParseRounding(d.Rounding)
		if err != nil {
			return c, err
		}
		sampler, _, err := samplers.Resolve(d.Sampler)
		if err != nil {
			return c, err
		}
		steps := d.Steps
		if steps == 0 {
			steps = 20
		}
		c.Models = append(c.Models, studio.Model{
			Name: name, Summary: summary, Hash: i.Hash, Shape: i.Image(), Classes: i.Classes, Labels: i.Labels, Text: i.Text, AnySize: i.Picture != nil,
			Sampler: sampler, Schedule: d.Schedule, Steps: steps, Scale: max(d.CFGScale, 1), Guiders: d.Guiders, Own: d.OwnGuiders, Rounding: string(rounding),
			DType: i.DType, Tier: i.Tier, Bench: embedded(name),
		})
	}
	debug.FreeOSMemory() // the children need it
	for _, i := range samplers.List() {
		s, err := samplers.Parse(i.Name)
		if err != nil || s.Needs().VJP || s.Needs().Couples { // usf without its file, and what needs more than a model
			continue
		}
		n := studio.Name{Name: i.Name, Summary: i.Summary, Source: i.Source, Order: i.Order, NFE: i.NFE, OwnGrid: s.Needs().OwnGrid}
		for _, o := range i.Options {
			n.Options = append(n.Options, studio.Option{Name: o.Name, Default: o.Default, Help: o.Help})
		}
		c.Samplers = append(c.Samplers, n)
	}
	c.Schedules = append(c.Schedules, studio.Name{Name: "model", Summary: "what the model's own scheduler file says"})
	for _, i := range schedules.Schedules() {
		n := studio.Name{Name: i.Name, Summary: i.Doc, Source: i.Source}
		for _, o := range i.Options {
			n.Options = append(n.Options, studio.Option{Name: o.Name, Default: o.Default, Help: o.Doc})
		}
		c.Schedules = append(c.Schedules, n)
	}
	for _, i := range guidance.List() {
		w := slices.ContainsFunc(i.Options, func(o guidance.Option) bool { return o.Name == "w" })
		if !w || i.VJP || i.Model || i.Hooks || i.Name == "classifier" { // which need more than this model
			continue
		}
		c.Guiders = append(c.Guiders, studio.Name{Name: i.Name, Summary: i.Summary, Source: i.Source, NFE: i.NFE})
	}
	return c, nil
}
