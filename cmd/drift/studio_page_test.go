package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"drift/cmd/drift/internal/studio"
)

// TestStudioPage uses the page in a browser as a person does, mostly by keys: the token goes from the address into a
// cookie, a run starts, previews arrive, it is cancelled, the queue is put in order, the gallery is there after a reload,
// and the command that is copied makes the same pixels.
func TestStudioPage(t *testing.T) {
	b := openBrowser(t)
	p := openStudio(t, t.TempDir(), "--token")
	b.size(1280, 900)
	b.visit(p.url)
	b.until(`document.querySelector("#link.on") && location.search === "" && catalog.models.length === 3`)
	if c := b.text(`document.cookie`); c != "" {
		t.Errorf("the page's script can read the cookie: %s", c)
	}
	// look holds a view to the window at both widths, and stores what it shows in the folder that DRIFT_SHOTS names.
	look := func(name string) {
		t.Helper()
		for _, w := range []int{390, 1280} {
			b.size(w, 900)
			b.until(`innerWidth === ` + strconv.Itoa(w))
			if over := b.text(`String(document.documentElement.scrollWidth - innerWidth)`); over != "0" && !strings.HasPrefix(over, "-") {
				t.Errorf("%s is %s pixels wider than a window of %d", name, over, w)
			}
			if dir := os.Getenv("DRIFT_SHOTS"); dir != "" {
				time.Sleep(300 * time.Millisecond)
				b.shot(filepath.Join(dir, name+"-"+strconv.Itoa(w)+".png"))
			}
		}
	}
	// A long run, started by keys.
	b.do(`(() => {
	 window.copied = [];
	 navigator.clipboard.writeText = async t => { window.copied.push(t); };
	 document.querySelector("#steps").value = 1000;
	 document.querySelector("#count").value = 4;
	 document.querySelector("#class").value = "bag";
	 document.querySelector("#form").dispatchEvent(new Event("input", {bubbles: true}));
	 document.querySelector("#start").focus();
	})()`)
	b.key("Enter", "Enter", 13)
	b.until(`document.querySelector("#now img") && Number(document.querySelector("#now img").dataset.version) >= 2 && document.querySelector("#now img").naturalWidth === 56`)
	b.until(`/^\d+ \/ 1000$/.test(jobParts && document.querySelectorAll("#now dd")[1].textContent)`)
	for _, stat := range []string{"pictures", "step", "sigma", "NFE each", "left"} {
		if v := b.text(`[...document.querySelectorAll("#now .stats div")].find(d => d.firstChild.textContent === ` + strconv.Quote(stat) + `).lastChild.textContent`); v == "" || v == "–" {
			t.Errorf("%s is %q while it runs", stat, v)
		}
	}
	look("create")
	// Two samplers on the same noise wait behind it; the second is moved up, and a third is removed.
	b.do(`(() => {
	 document.querySelector("#steps").value = 6;
	 document.querySelector("#count").value = 2;
	 document.querySelector("#add-sampler").click();
	 document.querySelector("#form").requestSubmit();
	})()`)
	b.until(`document.querySelectorAll("#queue li").length === 2`)
	b.do(`document.querySelector("#form").requestSubmit()`)
	b.until(`document.querySelectorAll("#queue li").length === 4`)
	b.do(`document.querySelector('#queue li:nth-child(4) [aria-label^="Remove"]').click()`)
	b.until(`document.querySelectorAll("#queue li").length === 3`)
	b.do(`document.querySelector('#queue li:nth-child(3) [aria-label^="Remove"]').click()`)
	b.until(`document.querySelectorAll("#queue li").length === 2`)
	b.do(`document.querySelector('#queue li:nth-child(2) [aria-label$="up"]').focus()`)
	b.key("Enter", "Enter", 13)
	b.until(`document.querySelector("#queue li b").textContent === "fashion-flow euler"`)
	b.do(`document.querySelector("#cancel").focus()`)
	b.key("Enter", "Enter", 13)
	b.until(`document.querySelector("#ended .cancelled") && document.querySelector("#queue-card").hidden && document.querySelectorAll("#ended .done").length === 2`)
	if text := b.text(`document.querySelector("#ended li:last-child").textContent`); !strings.Contains(text, "cancelled: 0 of 4 pictures are kept") {
		t.Error(text)
	}
	s := stateOf(b, t)
	if len(s.Jobs) != 3 || s.Jobs[1].Title != "fashion-flow euler" {
		t.Errorf("%+v", s)
	}
	// After a reload the gallery is the folder's, and the form keeps its settings.
	b.visit(strings.SplitN(p.url, "?", 2)[0] + "#gallery")
	b.do(`location.reload()`)
	time.Sleep(100 * time.Millisecond)
	b.until(`document.querySelectorAll("#runs .run").length === 3 && [...document.querySelectorAll("#runs .tiles img")].filter(i => i.complete && i.naturalWidth === 28).length === 4`)
	if v := b.text(`document.querySelector("#steps").value + " " + document.querySelectorAll(".sampler").length`); v != "6 2" {
		t.Errorf("the form has %s after the reload", v)
	}
	look("gallery")
	// One run, one of its pictures, by keys; the copied lines make the same pixels.
	run := s.Jobs[1].Run
	b.do(`window.copied = []; navigator.clipboard.writeText = async t => { window.copied.push(t); }; location.hash = "run/` + run + `"`)
	b.until(`document.querySelectorAll("#run .tile").length === 2`)
	b.do(`document.querySelector("#copy-run").focus()`)
	b.key("Enter", "Enter", 13)
	b.do(`document.querySelector("#run .tile").focus()`)
	b.key("Enter", "Enter", 13)
	b.until(`document.querySelector("#picture").open && document.querySelector("#facts dd").textContent && document.querySelector("#picture-title").textContent === "seed 0"`)
	b.key("ArrowRight", "ArrowRight", 39)
	b.until(`document.querySelector("#picture-title").textContent === "seed 1" && !document.querySelector("#copy-picture").disabled`)
	if facts := b.text(`document.querySelector("#facts").innerText`); !strings.Contains(facts, "euler") || !strings.Contains(facts, "bag") || !strings.Contains(facts, "cfg:w=2") {
		t.Errorf("the picture says %q", facts)
	}
	look("picture")
	b.do(`document.querySelector("#copy-picture").click()`)
	b.key("Escape", "Escape", 27)
	b.until(`!document.querySelector("#picture").open && window.copied.length === 2`)
	for i, name := range []string{"000000/000000.png", "000000/000001.png"} {
		line := b.text(`window.copied[` + strconv.Itoa(i) + `]`)
		if again := runLine(t, line); !reflect.DeepEqual(pixelsOf(t, filepath.Join(again, name)), pixelsOf(t, filepath.Join(p.dir, run, name))) {
			t.Errorf("%s makes another %s", line, name)
		}
	}
	// Side by side, with differences.
	b.do(`location.hash = "compare/" + ` + strconv.Quote(run) + ` + "/" + ` + strconv.Quote(s.Jobs[2].Run))
	b.until(`document.querySelectorAll(".cmp tbody tr").length === 2 && document.querySelectorAll(".cmp img").length === 4`)
	b.do(`document.querySelector("#difference").click()`)
	b.until(`document.querySelectorAll(".cmp canvas").length === 2 && [...document.querySelectorAll(".cmp td:last-child span")].every(s => /^RMS \d/.test(s.textContent))`)
	look("compare")
	// Steering: effective sample sizes while it runs and afterwards.
	b.do(`location.hash = "create"; fillForm({verb: "steer", model: "fashion-flow", samplers: [""], steps: 6, guidance: 2, class: "dress", seed: 0, count: 1, particles: 4, reward: "mean(x0)", lambda: "20"}); document.querySelector("#form").requestSubmit()`)
	b.until(`state.jobs.at(-1).request.verb === "steer" && state.jobs.at(-1).status === "done"`)
	b.do(`location.hash = "plots"`)
	b.until(`document.querySelectorAll("#steer-plot circle").length === 6`)
	look("plots")
	b.do(`location.hash = "run/" + state.jobs.at(-1).run`)
	b.until(`document.querySelectorAll("#run svg").length === 2`)
	look("run")
	// Everything can be reached by the tab key, and has a name.
	b.do(`location.hash = "create"`)
	b.until(`!document.querySelector("#view-create").hidden`)
	if bad := b.text(`[...document.querySelectorAll("input,select,textarea,button")].filter(e => !(e.labels && e.labels.length || e.getAttribute("aria-label") || e.textContent.trim())).map(e => e.outerHTML).join()`); bad != "" {
		t.Errorf("without a name: %s", bad)
	}
	b.do(`document.activeElement.blur(); document.querySelector(".brand").focus()`)
	seen := map[string]bool{}
	for range 40 {
		b.key("Tab", "Tab", 9)
		if b.text(`document.activeElement.tagName`) == "BODY" { // after the last one
			continue
		}
		seen[b.text(`document.activeElement.id || document.activeElement.textContent.trim().slice(0, 20)`)] = true
		if out := b.text(`getComputedStyle(document.activeElement).outlineStyle + getComputedStyle(document.activeElement.nextElementSibling || document.body).outlineStyle`); !strings.Contains(out, "solid") && !strings.Contains(out, "auto") {
			t.Errorf("no visible focus at %s", b.text(`document.activeElement.outerHTML.slice(0, 200)`))
		}
	}
	for _, id := range []string{"Gallery", "Plots", "theme", "model", "add-sampler", "steps", "guidance", "class", "seed", "dice", "count", "start", "copy-line"} {
		if !seen[id] {
			t.Errorf("the tab key does not reach %s: %v", id, seen)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.failed) > 0 {
		t.Errorf("the page's script failed: %v", b.failed)
	}
	home := strings.SplitN(p.url, "?", 2)[0]
	for _, u := range b.asked {
		if !strings.HasPrefix(u, home) && u != "about:blank" && !strings.HasPrefix(u, "data:") && !strings.HasPrefix(u, "blob:") {
			t.Errorf("the page asks for %s", u)
		}
	}
}

// stateOf is the state as the page has it.
func stateOf(b *browser, t *testing.T) studio.State {
	t.Helper()
	var s studio.State
	if err := b.eval(`state`, &s); err != nil {
		t.Fatal(err)
	}
	return s
}
