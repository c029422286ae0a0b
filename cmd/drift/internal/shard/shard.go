// Package shard cuts a job into parts that can be made anywhere, in any order, by anyone: a shard's result is a function
// of the job's configuration and the shard's own description, and of nothing else. A job merges results in the order of
// its shards, so it comes to the same bits for any number of workers.
package shard

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"slices"
)

// Spec describes a shard of a job.
type Spec struct {
	ID   int             `json:"id"`   // place in the job; people see it, the key does not know it
	Text json.RawMessage `json:"spec"` // what the verb needs to make it, on one line
}

// New makes the Spec of a value.
func New(id int, v any) Spec {
	text, err := json.Marshal(v)
	if err != nil {
		panic("shard: " + err.Error()) // numbers that are not finite: a programmer's error
	}
	return Spec{id, text}
}

// Key is the shard's name in a job of that configuration: the hash of both, 32 hex digits. The configuration stands for
// everything that decides results: version, model, settings, kernel tier.
func (s Spec) Key(config string) string {
	sum := sha256.Sum256(append([]byte(config+"\x00"), s.Text...))
	return hex.EncodeToString(sum[:16])
}

// KeyLen is the length of a key.
const KeyLen = 32

// Failure is an error that a shard gave where it was made.
type Failure struct {
	Kind string `json:"kind"` // "not finite", "refused" or "failed"
	Text string `json:"text"`
}

// The kinds of a Failure.
const (
	NotFinite = "not finite"
	Refused   = "refused"
	Failed    = "failed"
)

func (f *Failure) Error() string { return f.Text }

// Result is what came of a shard.
type Result struct {
	Key     string
	Worker  string   // who made it
	Seconds float64  // that it took there ...
	Model   float64  // ... and those of them inside the model
	Fail    *Failure // in place of arrays, or nil
	Arrays  []Array
}

// Array is a named array of a result: Floats or Bytes.
type Array struct {
	Name   string
	Floats []float64
	Bytes  []byte
}

type header struct {
	Key     string       `json:"key"`
	Worker  string       `json:"worker"`
	Seconds float64      `json:"seconds"`
	Model   float64      `json:"model"`
	Fail    *Failure     `json:"fail,omitempty"`
	Arrays  []headerItem `json:"arrays"`
}

type headerItem struct {
	Name string `json:"name"`
	Kind string `json:"kind"` // f8, f4 (float64 that float32 holds exactly), u1
	N    int    `json:"n"`
}

const (
	magic     = "drshard1"
	maxHeader = 1 << 20
	maxArrays = 64
)

// width is the size of an element.
func width(kind string) int {
	switch kind {
	case "f8":
		return 8
	case "f4":
		return 4
	case "u1":
		return 1
	}
	return 0
}

// Encode writes a result: magic (8 bytes), length of the header (4), header in JSON, the arrays, little endian, and the
// SHA-256 of all before it. Numbers that float32 holds exactly are written so.
func (r *Result) Encode() ([]byte, error) {
	h := header{r.Key, r.Worker, r.Seconds, r.Model, r.Fail, []headerItem{}}
	size := 0
	for _, a := range r.Arrays {
		it := headerItem{a.Name, "u1", len(a.Bytes)}
		if a.Bytes == nil {
			it.Kind, it.N = "f4", len(a.Floats)
			if slices.ContainsFunc(a.Floats, func(v float64) bool { return math.Float64bits(float64(float32(v))) != math.Float64bits(v) }) {
				it.Kind = "f8"
			}
		}
		size += it.N * width(it.Kind)
		h.Arrays = append(h.Arrays, it)
	}
	text, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("shard: %w", err)
	}
	b := make([]byte, 0, len(magic)+4+len(text)+size+sha256.Size)
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(text)))
	b = append(b, text...)
	for i, a := range r.Arrays {
		switch h.Arrays[i].Kind {
		case "u1":
			b = append(b, a.Bytes...)
		case "f4":
			for _, v := range a.Floats {
				b = binary.LittleEndian.AppendUint32(b, math.Float32bits(float32(v)))
			}
		default:
			for _, v := range a.Floats {
				b = binary.LittleEndian.AppendUint64(b, math.Float64bits(v))
			}
		}
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:]...), nil
}

// Decode reads a result and holds it to its key. Arrays that are no numbers of the size they claim, broken bytes and
// results of another shard are refused.
func Decode(b []byte, key string) (*Result, error) {
	bad := func(format string, args ...any) (*Result, error) {
		return nil, fmt.Errorf("shard: result: "+format, args...)
	}
	if len(b) < len(magic)+4+sha256.Size || string(b[:len(magic)]) != magic {
		return bad("not one")
	}
	body := b[:len(b)-sha256.Size]
	if sha256.Sum256(body) != [sha256.Size]byte(b[len(body):]) {
		return bad("its checksum is wrong")
	}
	n := int64(binary.LittleEndian.Uint32(body[len(magic):]))
	body = body[len(magic)+4:]
	if n > maxHeader || n > int64(len(body)) {
		return bad("a header of %d bytes", n)
	}
	var h header
	d := json.NewDecoder(bytes.NewReader(body[:n]))
	d.DisallowUnknownFields()
	if err := d.Decode(&h); err != nil {
		return bad("header: %v", err)
	}
	body = body[n:]
	switch {
	case h.Key != key:
		return bad("it is of shard %.40q, not %s", h.Key, key)
	case len(h.Arrays) > maxArrays:
		return bad("%d arrays", len(h.Arrays))
	case h.Fail != nil && (len(h.Arrays) > 0 || !slices.Contains([]string{NotFinite, Refused, Failed}, h.Fail.Kind)):
		return bad("a failure of kind %.40q with %d arrays", h.Fail.Kind, len(h.Arrays))
	case !(h.Seconds >= 0) || !(h.Model >= 0):
		return bad("times of %g and %g s", h.Seconds, h.Model)
	}
	r := &Result{Key: h.Key, Worker: h.Worker, Seconds: h.Seconds, Model: h.Model, Fail: h.Fail}
	for _, it := range h.Arrays {
		w := width(it.Kind)
		if w == 0 || it.N < 0 || it.N > len(body)/w {
			return bad("array %.40q claims %d of %.10q", it.Name, it.N, it.Kind)
		}
		if _, err := r.find(it.Name); err == nil {
			return bad("two arrays %.40q", it.Name)
		}
		a := Array{Name: it.Name}
		data := body[:it.N*w]
		body = body[it.N*w:]
		switch it.Kind {
		case "u1":
			a.Bytes = append([]byte{}, data...)
		case "f4":
			a.Floats = make([]float64, it.N)
			for i := range a.Floats {
				a.Floats[i] = float64(math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:])))
			}
		default:
			a.Floats = make([]float64, it.N)
			for i := range a.Floats {
				a.Floats[i] = math.Float64frombits(binary.LittleEndian.Uint64(data[8*i:]))
			}
		}
		r.Arrays = append(r.Arrays, a)
	}
	if len(body) > 0 {
		return bad("%d bytes too many", len(body))
	}
	return r, nil
}

func (r *Result) find(name string) (*Array, error) {
	for i := range r.Arrays {
		if r.Arrays[i].Name == name {
			return &r.Arrays[i], nil
		}
	}
	return nil, fmt.Errorf("shard: result: no array %q", name)
}

// Has tells whether there is an array of that name.
func (r *Result) Has(name string) bool {
	_, err := r.find(name)
	return err == nil
}

// Floats returns n numbers, all finite, or an error. n < 0 takes any number of them.
func (r *Result) Floats(name string, n int) ([]float64, error) {
	v, err := r.Numbers(name, n)
	for i, x := range v {
		if x-x != 0 {
			return nil, fmt.Errorf("shard: result: %s[%d] is %g", name, i, x)
		}
	}
	return v, err
}

// Numbers is Floats where some may be infinite or no number at all.
func (r *Result) Numbers(name string, n int) ([]float64, error) {
	a, err := r.find(name)
	if err != nil {
		return nil, err
	}
	if a.Bytes != nil || n >= 0 && len(a.Floats) != n {
		return nil, fmt.Errorf("shard: result: %s has %d numbers, want %d", name, len(a.Floats), n)
	}
	return a.Floats, nil
}

// Raw returns n bytes, or an error. n < 0 takes any number of them.
func (r *Result) Raw(name string, n int) ([]byte, error) {
	a, err := r.find(name)
	if err != nil {
		return nil, err
	}
	if a.Bytes == nil || n >= 0 && len(a.Bytes) != n {
		return nil, fmt.Errorf("shard: result: %s has %d bytes, want %d", name, len(a.Bytes), n)
	}
	return a.Bytes, nil
}

// Cut cuts n things into ranges of at most size.
func Cut(n, size int) []Range {
	var out []Range
	for at := 0; at < n; at += size {
		out = append(out, Range{at, min(size, n-at)})
	}
	return out
}

// Range is some things of many, From and the following ones, N in all.
type Range struct {
	From int `json:"from"`
	N    int `json:"n"`
}

// In tells whether the range lies in 0 to n.
func (r Range) In(n int) bool { return r.From >= 0 && r.N > 0 && r.N <= n && r.From <= n-r.N }
