package progress

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestLines(t *testing.T) {
	var b bytes.Buffer
	clock := time.Unix(1000, 0)
	m := New(&b, "sample", Style{Every: 5 * time.Second})
	m.now = func() time.Time { return clock }
	m.start, m.last = clock, clock
	for i := range 13 { // one call a second
		m.Set(float64(i)/24, "step")
		clock = clock.Add(time.Second)
	}
	m.Close()
	want := "sample:  21% step, 19s left\nsample:  42% step, 14s left\n"
	if b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

func TestBar(t *testing.T) {
	var b bytes.Buffer
	m := New(&b, "sample", Style{Terminal: true, Width: 80})
	m.Set(0.5, "step 5/10")
	m.Print("hello")
	m.Close()
	if s := b.String(); !strings.Contains(s, "50%") || !strings.Contains(s, "hello\n") || strings.Contains(s, "\n\n") {
		t.Errorf("drew %q", s)
	}
}

func TestQuiet(t *testing.T) {
	var m *Meter
	m.Set(1, "x")
	m.Print("x")
	m.Close()
	new(Meter).Set(1, "x")
	new(Meter).Print("x")
}

func TestLeft(t *testing.T) {
	for _, c := range []struct {
		elapsed time.Duration
		done    float64
		want    string
	}{
		{0, 0, "time left unknown"},
		{time.Second, 0, "time left unknown"},
		{10 * time.Second, 0.5, "10s left"},
		{10 * time.Second, 1, "0s left"},
		{time.Minute, 0.25, "3m00s left"},
		{time.Minute, 0.4, "1m30s left"},
		{time.Hour, 0.25, "3h00m left"},
		{24 * time.Hour, 0.1, "9 days left"},
	} {
		if got := Left(c.elapsed, c.done); got != c.want {
			t.Errorf("Left(%v, %g) = %q, want %q", c.elapsed, c.done, got, c.want)
		}
	}
}
