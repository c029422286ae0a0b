package ort

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestReadFile(t *testing.T) {
	for name, want := range map[string]string{
		"gauss64":  "noisy float64 [batch, 1, 4, 4]; sigma float64 [batch]; label int64 [batch] -> denoised float64 [batch, 1, 4, 4]",
		"half":     "noisy16 float16 [batch, 1, 4, 4]; sigma float32 [batch]; label int32 [batch] -> denoised16 float16 [batch, 1, 4, 4]",
		"eps":      "sample float64 [batch, 1, 4, 4]; timestep int64 [] -> out_sample float64 [batch, 1, 4, 4]",
		"two":      "noisy float64 [2, 1, 4, 4]; sigma float64 [2] -> denoised float64 [2, 1, 4, 4]",
		"external": "noisy float64 [batch, 1, 4, 4]; sigma float64 [batch]; label int64 [batch] -> denoised float64 [batch, 1, 4, 4]",
	} {
		f, err := ReadFile(filepath.Join("testdata", name+".onnx"))
		if err != nil {
			t.Fatal(err)
		}
		if got := portList(f.Inputs) + " -> " + portList(f.Outputs); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
		if f.Producer != "drift tests" || f.Opsets[""] != 17 || f.Metadata["made"] != "by make.py" || f.Nodes == 0 || f.Params == 0 {
			t.Errorf("%s: %+v", name, f)
		}
		if ext := name == "external"; ext != slices.Equal(f.External, []string{"external.bin"}) {
			t.Errorf("%s: external files %v", name, f.External)
		}
	}
	a, err := ReadFile("testdata/external.onnx")
	if err != nil {
		t.Fatal(err)
	}
	h, err := a.Hash()
	if err != nil || len(h) != 64 {
		t.Error(h, err)
	}
}

func TestParseRefuses(t *testing.T) {
	raw, err := os.ReadFile("testdata/external.onnx")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		data []byte
		want string
	}{
		{nil, "no graph"}, {[]byte("hello"), "no protocol buffer"}, {raw[:len(raw)-3], "breaks off"},
		{[]byte(strings.ReplaceAll(string(raw), "external.bin", "../ernal.bin")), "outside its folder"},
	} {
		if _, err := Parse(c.data); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.onnx")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		raw, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Parse(data)
		if (err == nil) != (file != nil) {
			t.Error(err)
		}
	})
}
