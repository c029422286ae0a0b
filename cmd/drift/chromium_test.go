package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"
)

// browser is a page in a headless Chromium, driven over a pipe by the DevTools protocol: JSON messages with a zero byte
// after each. It needs no port and no library.
type browser struct {
	t       *testing.T
	in      *os.File
	session string

	mu     sync.Mutex
	next   int
	wait   map[int]chan answerCDP
	failed []string // what went wrong in the page's script
	asked  []string // addresses that the page asked for
}

type answerCDP struct {
	Result json.RawMessage
	Error  *struct{ Message string }
}

// openBrowser starts Chromium, or skips where there is none.
func openBrowser(t *testing.T) *browser {
	t.Helper()
	bin := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell"} {
		if p, err := exec.LookPath(name); err == nil {
			bin = p
			break
		}
	}
	if bin == "" {
		t.Skip("no Chromium here: the page of the studio was not opened in a browser")
	}
	toR, toW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	fromR, fromW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "--headless", "--no-sandbox", "--remote-debugging-pipe", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--user-data-dir="+t.TempDir())
	cmd.ExtraFiles = []*os.File{toR, fromW}
	var talk bytes.Buffer
	cmd.Stderr = &talk
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	toR.Close()
	fromW.Close()
	b := &browser{t: t, in: toW, wait: map[int]chan answerCDP{}}
	go b.read(fromR)
	t.Cleanup(func() {
		b.send("", "Browser.close", nil)
		done := make(chan struct{})
		go func() { _ = cmd.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			_ = cmd.Process.Kill()
			<-done
		}
		toW.Close()
		fromR.Close()
	})
	var target struct{ TargetID string }
	b.call("", "Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	b.call("", "Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	for _, domain := range []string{"Page.enable", "Runtime.enable", "Network.enable"} {
		b.call(b.session, domain, nil, nil)
	}
	return b
}

func (b *browser) read(f *os.File) {
	r := bufio.NewReaderSize(f, 1<<20)
	for {
		raw, err := r.ReadBytes(0)
		if err != nil {
			return
		}
		var m struct {
			ID     int
			Method string
			Params json.RawMessage
			answerCDP
		}
		if json.Unmarshal(raw[:len(raw)-1], &m) != nil {
			continue
		}
		b.mu.Lock()
		switch {
		case m.ID != 0:
			if c := b.wait[m.ID]; c != nil {
				c <- m.answerCDP
				delete(b.wait, m.ID)
			}
		case m.Method == "Runtime.exceptionThrown":
			b.failed = append(b.failed, string(m.Params))
		case m.Method == "Network.requestWillBeSent":
			var p struct{ Request struct{ URL string } }
			if json.Unmarshal(m.Params, &p) == nil {
				b.asked = append(b.asked, p.Request.URL)
			}
		}
		b.mu.Unlock()
	}
}

func (b *browser) send(session, method string, params any) (chan answerCDP, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.next++
	c := make(chan answerCDP, 1)
	b.wait[b.next] = c
	m := map[string]any{"id": b.next, "method": method}
	if params != nil {
		m["params"] = params
	}
	if session != "" {
		m["sessionId"] = session
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	_, err = b.in.Write(append(raw, 0))
	return c, err
}

func (b *browser) call(session, method string, params, result any) {
	b.t.Helper()
	c, err := b.send(session, method, params)
	if err != nil {
		b.t.Fatalf("%s: %v", method, err)
	}
	select {
	case a := <-c:
		if a.Error != nil {
			b.t.Fatalf("%s: %s", method, a.Error.Message)
		}
		if result != nil {
			if err := json.Unmarshal(a.Result, result); err != nil {
				b.t.Fatalf("%s: %v", method, err)
			}
		}
	case <-time.After(60 * time.Second):
		b.t.Fatalf("%s: no answer from the browser", method)
	}
}

// visit opens an address, or the same one again.
func (b *browser) visit(address string) {
	b.t.Helper()
	b.call(b.session, "Page.navigate", map[string]any{"url": address}, nil)
	b.until(`document.readyState === "complete"`)
}

// eval evaluates an expression in the page; a promise is waited for.
func (b *browser) eval(js string, result any) error {
	b.t.Helper()
	var out struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails *struct {
			Text      string
			Exception struct{ Description string }
		}
	}
	b.call(b.session, "Runtime.evaluate", map[string]any{"expression": js, "awaitPromise": true, "returnByValue": true, "userGesture": true}, &out)
	if e := out.ExceptionDetails; e != nil {
		return errors.New(e.Text + " " + e.Exception.Description)
	}
	if result == nil || out.Result.Value == nil {
		return nil
	}
	return json.Unmarshal(out.Result.Value, result)
}

func (b *browser) do(js string) {
	b.t.Helper()
	if err := b.eval(js, nil); err != nil {
		b.t.Fatalf("%s: %v", js, err)
	}
}

func (b *browser) text(js string) string {
	b.t.Helper()
	var s string
	if err := b.eval(js, &s); err != nil {
		b.t.Fatalf("%s: %v", js, err)
	}
	return s
}

// until waits until an expression is true.
func (b *browser) until(js string) {
	b.t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for {
		ok := false
		err := b.eval("!!("+js+")", &ok)
		if ok {
			return
		}
		if time.Now().After(deadline) {
			page := ""
			_ = b.eval("document.body.innerText", &page)
			b.t.Fatalf("never true: %s (%v); the page: %.1500s", js, err, page)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// key presses a key.
func (b *browser) key(name, code string, virtual int) {
	b.t.Helper()
	for _, kind := range []string{"keyDown", "keyUp"} {
		p := map[string]any{"type": kind, "key": name, "code": code, "windowsVirtualKeyCode": virtual}
		if name == "Enter" && kind == "keyDown" {
			p["text"] = "\r"
		}
		b.call(b.session, "Input.dispatchKeyEvent", p, nil)
	}
}

// size makes the window that large.
func (b *browser) size(w, h int) {
	b.t.Helper()
	b.call(b.session, "Emulation.setDeviceMetricsOverride", map[string]any{"width": w, "height": h, "deviceScaleFactor": 1, "mobile": w < 600}, nil)
}

// shot stores what the window shows.
func (b *browser) shot(name string) {
	b.t.Helper()
	var out struct{ Data []byte }
	b.call(b.session, "Page.captureScreenshot", map[string]any{"format": "png"}, &out)
	if err := os.WriteFile(name, out.Data, 0o666); err != nil {
		b.t.Fatal(fmt.Errorf("%s: %w", name, err))
	}
}
