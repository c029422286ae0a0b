// Package progress tells a user how a long job stands: a bar with the time left on a terminal, a line every few
// seconds elsewhere, nothing when quiet. Lines that matter are printed through it, so that they do not break the bar.
package progress

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
)

// Meter shows how far a job is. Its zero value shows nothing. It is safe for concurrent use.
type Meter struct {
	mu    sync.Mutex
	w     io.Writer
	bar   *progressbar.ProgressBar
	every time.Duration
	start time.Time
	last  time.Time
	title string
	now   func() time.Time
}

// Style says how a Meter shows itself.
type Style struct {
	Terminal bool          // draw a bar (w must be a terminal)
	Color    bool          // of the bar
	Every    time.Duration // between lines when not on a terminal; 0 = 5 s
	Width    int           // of the terminal, 0 = unknown
}

// resolution of the bar: a job counts in fractions.
const resolution = 10_000

// New starts to show a job on w.
func New(w io.Writer, title string, s Style) *Meter {
	m := &Meter{w: w, every: s.Every, title: title, now: time.Now}
	if m.every <= 0 {
		m.every = 5 * time.Second
	}
	m.start = m.now()
	m.last = m.start
	if s.Terminal {
		width := 30
		if s.Width > 0 {
			width = min(40, max(5, s.Width-60))
		}
		theme := progressbar.Theme{Saucer: "█", SaucerHead: "█", SaucerPadding: "░", BarStart: "", BarEnd: ""}
		m.bar = progressbar.NewOptions(resolution,
			progressbar.OptionSetWriter(w), progressbar.OptionSetDescription(title), progressbar.OptionSetWidth(width),
			progressbar.OptionSetTheme(theme), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionEnableColorCodes(s.Color),
			progressbar.OptionSetPredictTime(false), progressbar.OptionSetElapsedTime(false))
	}
	return m
}

// Set says that a fraction of the job is done, in [0, 1], with a word on where it is ("step 3/20, 12 images").
func (m *Meter) Set(done float64, where string) {
	if m == nil || m.w == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	left := Left(now.Sub(m.start), done)
	if m.bar != nil {
		_ = m.bar.Set(int(min(max(done, 0), 1) * resolution)) // a bar that cannot be drawn does not stop a job
		m.bar.Describe(m.title + " " + where + ", " + left)
		return
	}
	if now.Sub(m.last) >= m.every {
		m.last = now
		fmt.Fprintf(m.w, "%s: %3.0f%% %s, %s\n", m.title, 100*done, where, left)
	}
}

// Left words the time left, guessed from the time that a fraction took.
func Left(elapsed time.Duration, done float64) string {
	if done <= 0 || elapsed <= 0 {
		return "time left unknown"
	}
	left := time.Duration(float64(elapsed) * (1 - min(done, 1)) / done)
	switch {
	case left >= 100*time.Hour:
		return fmt.Sprintf("%.0f days left", left.Hours()/24)
	case left >= time.Minute:
		left = left.Round(time.Second)
		h, m, sec := left/time.Hour, left%time.Hour/time.Minute, left%time.Minute/time.Second
		if h > 0 {
			return fmt.Sprintf("%dh%02dm left", h, m)
		}
		return fmt.Sprintf("%dm%02ds left", m, sec)
	}
	return fmt.Sprintf("%.0fs left", left.Seconds())
}

// Print writes a line of talk, below which the bar goes on.
func (m *Meter) Print(line string) {
	if m == nil || m.w == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bar != nil {
		_ = m.bar.Clear()
	}
	fmt.Fprintln(m.w, line)
}

// Draw hands the writer to draw, below the bar.
func (m *Meter) Draw(draw func(io.Writer) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bar != nil {
		_ = m.bar.Clear()
	}
	return draw(m.w)
}

// Close removes the bar.
func (m *Meter) Close() {
	if m == nil || m.bar == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	_ = m.bar.Clear()
}
