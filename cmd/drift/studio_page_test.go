package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestStudioShots draws screenshots of the page into the folder that DRIFT_SHOTS names, to be looked at.
func TestStudioShots(t *testing.T) {
	dir := os.Getenv("DRIFT_SHOTS")
	if dir == "" {
		t.Skip("DRIFT_SHOTS names no folder for screenshots")
	}
	b := openBrowser(t)
	at := os.Getenv("DRIFT_STUDIO")
	for _, size := range [][2]int{{1280, 900}, {390, 844}} {
		b.size(size[0], size[1])
		name := map[int]string{1280: "wide", 390: "narrow"}[size[0]]
		for _, v := range filepath.SplitList(os.Getenv("DRIFT_VIEWS")) {
			b.visit("about:blank")
			b.visit(at + "#" + v)
			b.until(`document.querySelector("#link.on")`)
			time.Sleep(1500 * time.Millisecond)
			v, _, _ = cutView(v)
			b.shot(filepath.Join(dir, name+"-"+v+".png"))
		}
	}
	if len(b.failed) > 0 {
		t.Error(b.failed)
	}
}

func cutView(v string) (string, string, bool) {
	for i, r := range v {
		if r == '/' {
			return v[:i], v[i+1:], true
		}
	}
	return v, "", false
}
