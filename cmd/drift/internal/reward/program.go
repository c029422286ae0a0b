package reward

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os/exec"
	"strings"
	"time"
)

// program is a reward that another process computes. Requests and answers are JSON objects, one per line; answers may come
// in any order. A process that crashes, answers nonsense or takes too long is started again, and asked again for what is
// missing. Answers are kept by what was asked.
type program struct {
	words []string
	o     Options
	asked int

	cmd     *exec.Cmd
	in      io.WriteCloser
	answers chan answer
	cache   map[[sha256.Size]byte]float64
	next    int // id of the next request
}

type request struct {
	ID     int    `json:"id"`
	Shape  []int  `json:"shape"`
	DType  string `json:"dtype"`
	Pixels string `json:"pixels_b64"`
	Prompt string `json:"prompt"`
	Class  int    `json:"class"`
	Step   int    `json:"step"`
	Last   bool   `json:"last"`
}

type answer struct {
	id     int
	reward float64
	err    error
}

// mostCached bounds the answers that are kept.
const mostCached = 1 << 20

func newProgram(command string, o Options) (*program, error) {
	words, err := split(command)
	if err != nil {
		return nil, err
	}
	if len(words) == 0 {
		return nil, errors.New("exec: needs a command, such as exec:python3 score.py")
	}
	if _, err := exec.LookPath(words[0]); err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	return &program{words: words, o: o, cache: map[[sha256.Size]byte]float64{}}, nil
}

// split cuts a command line into words; quotes keep blanks.
func split(s string) ([]string, error) {
	var out []string
	var word strings.Builder
	in, quote := false, rune(0)
	for _, c := range s {
		switch {
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(c)
		case c == '\'' || c == '"':
			quote, in = c, true
		case c == ' ' || c == '\t' || c == '\n':
			if in {
				out = append(out, word.String())
				word.Reset()
				in = false
			}
		default:
			in = true
			word.WriteRune(c)
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("exec: a quote %c is not closed", quote)
	}
	if in {
		out = append(out, word.String())
	}
	return out, nil
}

// start runs the process unless it runs.
func (p *program) start() error {
	if p.cmd != nil {
		return nil
	}
	cmd := exec.Command(p.words[0], p.words[1:]...)
	cmd.Stderr = p.o.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	p.cmd, p.in, p.answers = cmd, in, make(chan answer, 64)
	go read(out, p.answers)
	return nil
}

// read turns lines into answers until the process closes its end.
func read(r io.Reader, to chan<- answer) {
	defer close(to)
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		if strings.TrimSpace(sc.Text()) == "" {
			continue
		}
		to <- parse(sc.Bytes())
	}
	if err := sc.Err(); err != nil {
		to <- answer{err: fmt.Errorf("its answers cannot be read: %w", err)}
	}
}

// parse reads one answer. Python writes NaN and Infinity, which JSON has not.
func parse(line []byte) answer {
	var a struct {
		ID     *int            `json:"id"`
		Reward json.RawMessage `json:"reward"`
		Error  string          `json:"error"`
	}
	text := string(line)
	for _, bad := range []string{"NaN", "-Infinity", "Infinity"} {
		if err := json.Unmarshal(line, &a); err == nil {
			break
		}
		text = strings.ReplaceAll(text, bad, `"`+strings.ToLower(bad)+`"`)
		line = []byte(text)
	}
	if err := json.Unmarshal(line, &a); err != nil || a.ID == nil {
		return answer{err: fmt.Errorf("answered %q, want {\"id\": ..., \"reward\": ...}", short(text))}
	}
	if a.Error != "" {
		return answer{id: *a.ID, err: fmt.Errorf("says: %s", short(a.Error))}
	}
	var v float64
	if err := json.Unmarshal(a.Reward, &v); err == nil && string(a.Reward) != "null" {
		return answer{id: *a.ID, reward: v}
	}
	switch strings.Trim(string(a.Reward), `"`) {
	case "nan", "null":
		return answer{id: *a.ID, reward: math.NaN()}
	case "-infinity":
		return answer{id: *a.ID, reward: math.Inf(-1)}
	case "infinity":
		return answer{id: *a.ID, reward: math.Inf(1)}
	}
	return answer{err: fmt.Errorf("answered reward %s, want a number", short(string(a.Reward)))}
}

func short(s string) string {
	if len(s) > 100 {
		return s[:100] + "..."
	}
	return s
}

// score asks for the rewards of pictures that are not known yet.
func (p *program) score(ctx context.Context, at []Point, x []float64, shape []int) ([]float64, error) {
	n := len(at)
	w := len(x) / max(1, n)
	out, keys := make([]float64, n), make([][sha256.Size]byte, n)
	requests := make([]request, n)
	first := map[[sha256.Size]byte]int{} // copies of a picture are asked once
	for k := range n {
		raw := make([]byte, 4*w)
		for i, v := range x[k*w : (k+1)*w] {
			binary.LittleEndian.PutUint32(raw[4*i:], math.Float32bits(float32(v)))
		}
		requests[k] = request{Shape: shape, DType: "float32", Pixels: base64.StdEncoding.EncodeToString(raw), Prompt: at[k].Prompt, Class: at[k].Class, Step: at[k].Step, Last: at[k].Last}
		keys[k] = sha256.Sum256(fmt.Appendf(raw, "%v %q %d", shape, at[k].Prompt, at[k].Class))
		if _, known := p.cache[keys[k]]; !known {
			if _, there := first[keys[k]]; !there {
				first[keys[k]] = k
			}
		}
	}
	missing := map[int]bool{}
	for _, k := range first {
		missing[k] = true
	}
	var err error
	for try := 0; len(missing) > 0; try++ {
		if try > 0 {
			if try > p.o.Retries {
				return nil, fmt.Errorf("program %s: %w (after %d tries)", p.words[0], err, try)
			}
			if p.o.Gone != nil {
				p.o.Gone(fmt.Errorf("program %s: %w: starting it again", p.words[0], err))
			}
		}
		if err = p.round(ctx, requests, keys, missing); err != nil {
			p.kill()
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			continue
		}
	}
	for k := range n {
		out[k] = p.cache[keys[k]]
	}
	return out, nil
}

// round asks for all that is missing and takes answers off the list.
func (p *program) round(ctx context.Context, requests []request, keys [][sha256.Size]byte, missing map[int]bool) error {
	if err := p.start(); err != nil {
		return err
	}
	if len(p.cache) > mostCached {
		clear(p.cache)
	}
	place := map[int]int{}
	var lines [][]byte
	for k := range requests {
		if !missing[k] {
			continue
		}
		q := requests[k]
		q.ID = p.next
		place[q.ID] = k
		p.next++
		b, err := json.Marshal(q)
		if err != nil {
			return err
		}
		lines = append(lines, append(b, '\n'))
	}
	p.asked += len(lines)
	in := p.in
	go func() { // a process may answer before it has read everything
		for _, b := range lines {
			if _, err := in.Write(b); err != nil {
				return // the reader sees the end
			}
		}
	}()
	timer := time.NewTimer(p.o.Timeout)
	defer timer.Stop()
	for len(place) > 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			return fmt.Errorf("no answer within %v, %d of %d rewards missing", p.o.Timeout, len(place), len(lines))
		case a, ok := <-p.answers:
			if !ok {
				state := "closed its output"
				if err := p.wait(); err != nil {
					state = err.Error()
				}
				return fmt.Errorf("ended (%s) with %d of %d rewards missing", state, len(place), len(lines))
			}
			if a.err != nil {
				return a.err
			}
			k, known := place[a.id]
			if !known {
				return fmt.Errorf("answered about id %d, which was not asked or is answered already", a.id)
			}
			if math.IsNaN(a.reward) || math.IsInf(a.reward, 1) {
				return fmt.Errorf("the reward is %g, want a number", a.reward)
			}
			p.cache[keys[k]] = a.reward
			delete(place, a.id)
			delete(missing, k)
			timer.Reset(p.o.Timeout)
		}
	}
	return nil
}

// wait collects a process whose output has ended; one that goes on without it is killed.
func (p *program) wait() error {
	cmd := p.cmd
	p.cmd = nil
	p.in.Close()
	timer := time.AfterFunc(2*time.Second, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	return cmd.Wait()
}

// kill ends the process at once.
func (p *program) kill() {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	p.drain()
	_ = p.wait()
}

// drain lets the reader end.
func (p *program) drain() {
	go func(c <-chan answer) {
		for range c {
		}
	}(p.answers)
}

// close lets the process end by itself.
func (p *program) close() {
	if p.cmd == nil {
		return
	}
	p.in.Close()
	p.drain()
	_ = p.wait()
}
