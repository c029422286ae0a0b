package strictjson

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"drift/internal/refuse"
)

func TestParseRefuses(t *testing.T) {
	for name, c := range map[string]struct{ text, why string }{
		"empty":              {"", "ends early"},
		"blank":              {" \n", "ends early"},
		"array":              {"[1]", "expected an object"},
		"bom":                {"\xef\xbb\xbf{}", "byte order mark"},
		"single quotes":      {"{'a': 1}", "double quotes"},
		"bare key":           {"{a: 1}", "double quotes"},
		"comment":            {"{\n// hi\n\"a\":1}", "line 2: expected a string in double quotes, found '/': JSON has no comments"},
		"trailing comma":     {`{"a":1,}`, "double quotes"},
		"array comma":        {`{"a":[1,]}`, "expected a value"},
		"no colon":           {`{"a" 1}`, "':'"},
		"no comma":           {`{"a":1 "b":2}`, "','"},
		"twice":              {`{"a":1,"a":1}`, `"a" stands twice`},
		"twice by escape":    {`{"a":1,"\u0061":1}`, `"a" stands twice`},
		"twice below":        {`{"a":[{"b":1,"b":2}]}`, `"b" stands twice`},
		"nan":                {`{"a":NaN}`, "NaN and Infinity are not JSON"},
		"minus infinity":     {`{"a":-Infinity}`, "not a JSON number"},
		"leading zero":       {`{"a":01}`, "not a JSON number"},
		"plus":               {`{"a":+1}`, "expected a value"},
		"dot":                {`{"a":1.}`, "not a JSON number"},
		"exponent":           {`{"a":1e}`, "not a JSON number"},
		"long number":        {`{"a":` + strings.Repeat("9", 500) + `}`, "longer"},
		"word":               {`{"a":nul}`, "expected null"},
		"control":            {"{\"a\x01\":1}", "control character"},
		"bad escape":         {`{"\x":1}`, "not an escape"},
		"bad hex":            {`{"\u00g0":1}`, "hexadecimal"},
		"lone high":          {`{"\ud83d":1}`, "surrogate"},
		"lone low":           {`{"\ude00\ud83d":1}`, "surrogate"},
		"not utf-8":          {"{\"\xff\":1}", "UTF-8"},
		"surrogate in utf-8": {"{\"\xed\xa0\x80\":1}", "UTF-8"},
		"garbage":            {`{}{}`, "end of the text"},
		"nul padding":        {"{}\x00", "end of the text"},
		"deep":               {`{"a":` + strings.Repeat("[", 100), "nested deeper than 64"},
		"cut":                {`{"a":"b`, "ends early"},
	} {
		_, err := Parse("f.json", []byte(c.text), Limits{})
		var r *refuse.Error
		if !errors.As(err, &r) || r.Path != "f.json" || !strings.Contains(r.Reason, c.why) {
			t.Errorf("%s: %v, want a refusal with %q", name, err, c.why)
		}
	}
	for name, l := range map[string]Limits{"keys": {Keys: 2}, "depth": {Depth: 1}, "string": {String: 2}} {
		if _, err := Parse("", []byte(`{"aaa":[1,2,3],"b":1,"c":1}`), l); err == nil {
			t.Errorf("limit on %s: accepted", name)
		}
	}
}

func TestParseReads(t *testing.T) {
	o, err := Parse("", []byte(` {"b": [1, -2.5e-3, "x\n\u00e9\ud83d\ude00\/", true, false, null, {}, []], "a" : {"":0}} `+"\n"), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if got := o.Keys(); !reflect.DeepEqual(got, []string{"b", "a"}) {
		t.Errorf("keys %q", got)
	}
	b, _ := o.Get("b")
	l := b.([]any)
	want := []any{Number("1"), Number("-2.5e-3"), "x\né😀/", true, false, nil}
	if !reflect.DeepEqual(l[:6], want) {
		t.Errorf("b = %v", l)
	}
	if len(l[6].(*Object).Keys()) != 0 || len(l[7].([]any)) != 0 {
		t.Errorf("b ends with %v %v", l[6], l[7])
	}
	a, ok := o.Get("a")
	if v, _ := a.(*Object).Get(""); !ok || v != Number("0") {
		t.Errorf("a = %v", a)
	}
	if _, ok := o.Get("c"); ok {
		t.Error("c exists")
	}
}

func TestNumber(t *testing.T) {
	for _, c := range []struct {
		n  Number
		i  int64
		ok bool
	}{
		{"0", 0, true}, {"-0", 0, true}, {"7", 7, true}, {"2.0", 2, true}, {"1e3", 1000, true}, {"-9223372036854775808", -1 << 63, true},
		{"2.5", 0, false}, {"9223372036854775808", 0, false}, {"1e300", 0, false}, {"1e999", 0, false},
	} {
		if i, ok := c.n.Int(); i != c.i || ok != c.ok {
			t.Errorf("%s: %d %t", c.n, i, ok)
		}
	}
	if f, ok := Number("0.1").Float(); f != 0.1 || !ok {
		t.Error(f, ok)
	}
	if _, ok := Number("1e999").Float(); ok {
		t.Error("1e999 fits")
	}
}

func TestInfinity(t *testing.T) {
	o, err := Parse("", []byte(`{"a": -Infinity, "b": [Infinity,-1]}`), Limits{Infinity: true})
	if err != nil {
		t.Fatal(err)
	}
	a, _ := o.Get("a")
	b, _ := o.Get("b")
	if f, ok := a.(Number).Float(); !ok || !math.IsInf(f, -1) {
		t.Error(a)
	}
	if f, ok := b.([]any)[0].(Number).Float(); !ok || !math.IsInf(f, 1) {
		t.Error(b)
	}
	for _, text := range []string{`{"a":NaN}`, `{"a":-Inf}`, `{"a":Infinite}`, `{"a":--Infinity}`} {
		if _, err := Parse("", []byte(text), Limits{Infinity: true}); err == nil {
			t.Errorf("%s: accepted", text)
		}
	}
}

func TestSkip(t *testing.T) {
	for text, ok := range map[string]bool{`{"a":[1,{"b":null}],"c":"x"}`: true, `[true,false]`: true, `3`: true, `[1,}`: false, `{"a":1,"a":2}`: false, ``: false} {
		s := NewScanner("f", strings.NewReader(text), Limits{})
		err := s.Skip()
		if err == nil {
			err = s.End()
		}
		if (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestReadFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.json")
	if err := os.WriteFile(path, []byte(`{"a":1}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadFile(path, 7, Limits{}); err != nil {
		t.Error(err)
	}
	var r *refuse.Error
	if _, err := ReadFile(path, 6, Limits{}); !errors.As(err, &r) {
		t.Errorf("too large: %v", err)
	}
	if _, err := ReadFile(dir, 6, Limits{}); !errors.As(err, &r) {
		t.Errorf("folder: %v", err)
	}
	if _, err := ReadFile(path+"x", 6, Limits{}); !errors.Is(err, os.ErrNotExist) || errors.As(err, &r) {
		t.Errorf("absent: %v", err)
	}
}

// FuzzParse holds the parser against encoding/json: whatever is accepted here
// must be JSON there, with the same values.
func FuzzParse(f *testing.F) {
	seeds, err := filepath.Glob("../testdata/files/configs/*.json")
	if err != nil || len(seeds) == 0 {
		f.Fatal("no seeds", err)
	}
	for _, path := range seeds {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		o, err := Parse("f", text, Limits{})
		if err != nil {
			var r *refuse.Error
			if !errors.As(err, &r) {
				t.Fatalf("not a refusal: %v", err)
			}
			return
		}
		var want map[string]any
		d := json.NewDecoder(strings.NewReader(string(text)))
		d.UseNumber()
		if err := d.Decode(&want); err != nil {
			t.Fatalf("encoding/json refuses: %v", err)
		}
		if got := plain(o); !reflect.DeepEqual(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
	})
}

// plain turns a tree into what encoding/json builds.
func plain(v any) any {
	switch v := v.(type) {
	case *Object:
		m := map[string]any{}
		for _, k := range v.Keys() {
			m[k], _ = v.Get(k)
			m[k] = plain(m[k])
		}
		return m
	case []any:
		l := make([]any, len(v))
		for i := range v {
			l[i] = plain(v[i])
		}
		return l
	case Number:
		return json.Number(v)
	}
	return v
}

func ExampleParse() {
	o, err := Parse("config.json", []byte(`{"layers": 2, "act": "silu"}`), Limits{})
	fmt.Println(o.Keys(), err)
	_, err = Parse("config.json", []byte(`{"layers": 2, "layers": 3}`), Limits{})
	fmt.Println(err)
	// Output:
	// [layers act] <nil>
	// config.json: line 1: the key "layers" stands twice
}
