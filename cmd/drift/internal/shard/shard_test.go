package shard

import (
	"bytes"
	"crypto/sha256"
	"math"
	"reflect"
	"strings"
	"testing"
)

var key = New(3, Range{128, 64}).Key("config")

func example() *Result {
	return &Result{Key: key, Worker: "w", Seconds: 1.5, Model: 1.25, Arrays: []Array{
		{Name: "x", Floats: []float64{1.0 / 3, -2, 0}},
		{Name: "f", Floats: []float64{0.5, math.Inf(1), math.Copysign(0, -1)}},
		{Name: "pix", Bytes: []byte{1, 2, 255}},
		{Name: "none", Bytes: []byte{}},
	}}
}

func TestRoundTrip(t *testing.T) {
	for name, r := range map[string]*Result{
		"arrays": example(), "empty": {Key: key}, "failure": {Key: key, Fail: &Failure{NotFinite, "at step 3"}},
	} {
		b, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(b, key)
		if err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	r := example()
	if v, err := r.Floats("x", 3); err != nil || len(v) != 3 {
		t.Errorf("x: %v, %v", v, err)
	}
	if _, err := r.Numbers("f", 3); err != nil {
		t.Error(err)
	}
	for what, err := range map[string]error{
		"an infinity":   second(r.Floats("f", 3)),
		"a wrong size":  second(r.Floats("x", 4)),
		"no such array": second(r.Floats("y", 3)),
		"bytes":         second(r.Floats("pix", 3)),
		"floats":        second(r.Raw("x", 3)),
		"too few bytes": second(r.Raw("pix", 4)),
	} {
		if err == nil {
			t.Errorf("%s is taken", what)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// TestKey: a shard's name is a function of configuration and description only.
func TestKey(t *testing.T) {
	if key != New(7, Range{128, 64}).Key("config") || len(key) != KeyLen {
		t.Error("the place changes the key")
	}
	if key == New(3, Range{128, 63}).Key("config") || key == New(3, Range{128, 64}).Key("other") {
		t.Error("description or configuration do not count")
	}
	const frozen = "ea1894391b0d3b6a2e8ed3f9eb65f30a"
	if key != frozen {
		t.Errorf("key %s, was %s: stored results would be lost", key, frozen)
	}
}

// sealed is a result of any bytes with a right checksum.
func sealed(b []byte) []byte {
	sum := sha256.Sum256(b)
	return append(bytes.Clone(b), sum[:]...)
}

func TestDecodeRefuses(t *testing.T) {
	good, err := example().Encode()
	if err != nil {
		t.Fatal(err)
	}
	body := good[:len(good)-sha256.Size]
	edit := func(old, new string) []byte {
		b := []byte(strings.Replace(string(body), old, new, 1))
		b[8] += byte(len(new) - len(old))
		return sealed(b)
	}
	if _, err := Decode(edit("1.5", "1.6"), key); err != nil {
		t.Fatalf("a harmless edit: %v", err)
	}
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 1
	for what, b := range map[string][]byte{
		"nothing":           nil,
		"noise":             bytes.Repeat([]byte{7}, 200),
		"a cut":             good[:len(good)-1],
		"a flipped bit":     flipped,
		"another shard":     edit(key[:4], "0000"),
		"too large a claim": edit(`"f8","n":3`, `"f8","n":9`),
		"a negative size":   edit(`"f8","n":3`, `"f8","n":-3`),
		"a huge size":       edit(`"f8","n":3`, `"f8","n":4611686018427387904`),
		"an unknown kind":   edit(`"f8"`, `"c9"`),
		"two of one name":   edit(`"name":"f"`, `"name":"x"`),
		"an unknown field":  edit(`"worker"`, `"hacker"`),
		"a negative time":   edit(`1.25`, `-1.2`),
		"bytes too many":    sealed(append(bytes.Clone(body), 0)),
		"a huge header":     sealed(append([]byte(magic), 255, 255, 255, 255)),
		"failure and data":  edit(`"arrays"`, `"fail":{"kind":"failed","text":"x"},"arrays"`),
	} {
		if r, err := Decode(b, key); err == nil {
			t.Errorf("%s is taken: %+v", what, r)
		}
	}
}

func TestCut(t *testing.T) {
	for _, c := range []struct {
		n, size int
		want    []Range
	}{
		{0, 4, nil}, {1, 4, []Range{{0, 1}}}, {4, 4, []Range{{0, 4}}}, {9, 4, []Range{{0, 4}, {4, 4}, {8, 1}}},
	} {
		if got := Cut(c.n, c.size); !reflect.DeepEqual(got, c.want) {
			t.Errorf("Cut(%d, %d) = %v", c.n, c.size, got)
		}
	}
	for r, in := range map[Range]bool{{0, 9}: true, {8, 1}: true, {9, 1}: false, {-1, 2}: false, {0, 0}: false, {3, 7}: false, {math.MaxInt, 1}: false, {1, math.MaxInt}: false} {
		if r.In(9) != in {
			t.Errorf("%v in 9: %v", r, !in)
		}
	}
}

func FuzzDecode(f *testing.F) {
	b, _ := example().Encode()
	f.Add(b[:len(b)-sha256.Size])
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := Decode(sealed(body), key)
		if err != nil {
			return
		}
		b, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := Decode(b, key)
		if err != nil {
			t.Fatalf("a result that was read does not read again: %v", err)
		}
		c, err := again.Encode()
		if err != nil || !bytes.Equal(b, c) {
			t.Fatalf("encoded twice: %v", err)
		}
	})
}
