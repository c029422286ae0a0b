package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/png"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"drift/internal/npz"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"drift": main, "scorer": scorer, "halting": halting})
}

// TestScripts runs the real binary on the scripts in testdata.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			e.Setenv("NO_COLOR", "1")
			zoo, err := filepath.Abs("../../models/zoo/data")
			e.Setenv("ZOO", zoo)
			graphs, e2 := filepath.Abs("../../models/ort/testdata")
			e.Setenv("ONNX", graphs)
			e.Setenv("TERRAIN", os.Getenv("DRIFT_TERRAIN"))
			e.Setenv("DRIFT_ORT_LIB", os.Getenv("DRIFT_ORT_LIB"))
			return errors.Join(err, e2)
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "ort": // ONNX Runtime is there
				return os.Getenv("DRIFT_ORT_LIB") != "", nil
			case "terrain": // and a published network
				return os.Getenv("DRIFT_TERRAIN") != "", nil
			}
			return false, fmt.Errorf("unknown condition %s", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"rc": rc, "npzeq": npzEqual, "npzshape": npzShape, "npznear": npzNear, "samepixels": samePixels, "interrupt": interrupt, "goon": goOn, "pngsize": pngSize,
			"nanweight": nanWeight, "npzwrite": npzWrite,
		},
	})
}

// rc CODE COMMAND...: the command must end with this very exit code.
func rc(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: rc CODE COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
	if out := ts.ReadFile("stderr"); strings.Contains(out, "panic") || strings.Contains(out, "goroutine ") {
		ts.Fatalf("a panic reached the user")
	}
}

// npzeq A B [member...]: equal arrays, bit for bit. [!] at least one member differs.
func npzEqual(ts *testscript.TestScript, neg bool, args []string) {
	a, err := npz.ReadAll(ts.MkAbs(args[0]))
	ts.Check(err)
	b, err := npz.ReadAll(ts.MkAbs(args[1]))
	ts.Check(err)
	names := args[2:]
	if len(names) == 0 {
		for n := range a {
			names = append(names, n)
		}
		if len(a) != len(b) {
			ts.Fatalf("%d and %d members", len(a), len(b))
		}
	}
	equal := true
	for _, n := range names {
		x, y := a[n], b[n]
		if x == nil || y == nil {
			ts.Fatalf("no member %q in one of them", n)
		}
		if !slices.Equal(x.Shape, y.Shape) || !reflect.DeepEqual(x.Data, y.Data) {
			equal = false
			ts.Logf("%s differs: %s %v and %s %v", n, x.DType, x.Shape, y.DType, y.Shape)
		}
	}
	if equal == neg {
		ts.Fatalf("equal: %v", equal)
	}
}

// npznear A B member TOL: arrays that differ by at most TOL.
func npzNear(ts *testscript.TestScript, neg bool, args []string) {
	var v [2][]float64
	for i := range v {
		a, err := npz.ReadAll(ts.MkAbs(args[i]), args[2])
		ts.Check(err)
		v[i], err = a[args[2]].Float64()
		ts.Check(err)
	}
	tol, err := strconv.ParseFloat(args[3], 64)
	ts.Check(err)
	gap := math.Inf(1)
	if len(v[0]) == len(v[1]) {
		gap = 0
		for i, x := range v[0] {
			gap = max(gap, math.Abs(x-v[1][i]))
		}
	}
	if (gap <= tol) == neg {
		ts.Fatalf("%s differs by %g", args[2], gap)
	}
}

// npzshape FILE member DTYPE SHAPE, as in: npzshape o.npz x f8 3,2
func npzShape(ts *testscript.TestScript, _ bool, args []string) {
	a, err := npz.ReadAll(ts.MkAbs(args[0]), args[1])
	ts.Check(err)
	x := a[args[1]]
	got := string(x.DType) + " " + strings.ReplaceAll(strings.Trim(fmt.Sprint(x.Shape), "[]"), " ", ",")
	if want := args[2] + " " + args[3]; got != want {
		ts.Fatalf("%s is %s, want %s", args[1], got, want)
	}
}

// npzwrite FILE member SHAPE V,V,...: writes float64, the values again and again.
func npzWrite(ts *testscript.TestScript, _ bool, args []string) {
	a, n := npz.Array{Name: args[1]}, 1
	for d := range strings.SplitSeq(args[2], ",") {
		k, err := strconv.Atoi(d)
		ts.Check(err)
		a.Shape, n = append(a.Shape, k), n*k
	}
	x, list := make([]float64, n), strings.Split(args[3], ",")
	for i := range x {
		v, err := strconv.ParseFloat(list[i%len(list)], 64)
		ts.Check(err)
		x[i] = v
	}
	a.Data = x
	ts.Check(npz.Write(ts.MkAbs(args[0]), a))
}

func decode(ts *testscript.TestScript, name string) image.Image {
	m, err := png.Decode(bytes.NewReader([]byte(ts.ReadFile(name))))
	ts.Check(err)
	return m
}

// samepixels A B: two PNG files of equal pixels.
func samePixels(ts *testscript.TestScript, neg bool, args []string) {
	if reflect.DeepEqual(decode(ts, args[0]), decode(ts, args[1])) == neg {
		ts.Fatalf("equal pixels: %v", !neg)
	}
}

// pngsize FILE WxH
func pngSize(ts *testscript.TestScript, _ bool, args []string) {
	b := decode(ts, args[0]).Bounds()
	if got := fmt.Sprintf("%dx%d", b.Dx(), b.Dy()); got != args[1] {
		ts.Fatalf("%s, want %s", got, args[1])
	}
}

// nanweight FILE TENSOR: makes the first value of a float16 tensor of a safetensors file not a number.
func nanWeight(ts *testscript.TestScript, _ bool, args []string) {
	b := []byte(ts.ReadFile(args[0]))
	at := 8 + binary.LittleEndian.Uint64(b)
	var header map[string]struct {
		DType       string
		DataOffsets [2]uint64 `json:"data_offsets"`
	}
	ts.Check(json.Unmarshal(b[8:at], &header))
	t, ok := header[args[1]]
	if !ok || t.DType != "F16" {
		ts.Fatalf("no float16 tensor %s", args[1])
	}
	binary.LittleEndian.PutUint16(b[at+t.DataOffsets[0]:], 0x7e00)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o666))
}

// interrupt SIGNAL GLOB N COMMAND...: sends the signal once N files match the pattern; stderr in its place: once N lines
// of that are there. The command must not be done before. It leaves stdout and stderr in the files out and err, and the exit code in the variable code.
func interrupt(ts *testscript.TestScript, _ bool, args []string) {
	signal := map[string]syscall.Signal{"INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL}[args[0]]
	n, err := strconv.Atoi(args[2])
	ts.Check(err)
	cmd := exec.Command(args[3], args[4:]...)
	path, err := exec.LookPath(filepath.Join(strings.Split(ts.Getenv("PATH"), ":")[0], args[3]))
	ts.Check(err)
	cmd.Path, cmd.Err, cmd.Dir = path, nil, ts.MkAbs(".")
	cmd.Env = []string{"PATH=" + ts.Getenv("PATH"), "HOME=" + ts.MkAbs("."), "DRIFT_PROGRESS_EVERY=" + ts.Getenv("DRIFT_PROGRESS_EVERY")}
	stderr := &lines{}
	cmd.Stderr = stderr
	ts.Check(cmd.Start())
	deadline := time.Now().Add(20 * time.Second)
	for {
		list, err := filepath.Glob(ts.MkAbs(args[1]))
		ts.Check(err)
		if len(list) >= n || args[1] == "stderr" && stderr.n.Load() >= int64(n) {
			break
		}
		if time.Now().After(deadline) {
			_ = cmd.Process.Kill()
			ts.Fatalf("%d of %d files after 20 s: %s", len(list), n, stderr.text.String())
		}
		time.Sleep(time.Millisecond)
	}
	ts.Check(cmd.Process.Signal(signal))
	err = cmd.Wait()
	if err == nil {
		ts.Fatalf("the command was done before the signal")
	}
	ts.Setenv("code", strconv.Itoa(cmd.ProcessState.ExitCode()))
	ts.Check(os.WriteFile(ts.MkAbs("err"), stderr.text.Bytes(), 0o666))
}

// lines counts the lines that are written.
type lines struct {
	text bytes.Buffer
	n    atomic.Int64
}

func (l *lines) Write(b []byte) (int, error) {
	n, err := l.text.Write(b)
	l.n.Add(int64(bytes.Count(b, []byte("\n"))))
	return n, err
}

// goon: runs the command line that the hint in the file err names.
func goOn(ts *testscript.TestScript, _ bool, _ []string) {
	_, line, ok := strings.Cut(ts.ReadFile("err"), "go on with: ")
	if !ok {
		ts.Fatalf("no hint on how to go on in %q", ts.ReadFile("err"))
	}
	line, _, _ = strings.Cut(line, "\n")
	ts.Check(ts.Exec("sh", "-c", line))
}

// world runs a command line inside this process.
func world(env map[string]string, args ...string) (code int, stdout, stderr string) {
	var out, err bytes.Buffer
	a := &app{in: strings.NewReader(""), out: &out, err: &err, getenv: func(k string) string { return env[k] }, stop: make(chan struct{})}
	code = a.main(context.Background(), args)
	return code, out.String(), err.String()
}
