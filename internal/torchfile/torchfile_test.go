package torchfile

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"drift/internal/half"
	"drift/internal/refuse"
	"drift/internal/safetensors"
)

const corpus = "../testdata/files/pickle"

type expected struct {
	Valid   bool
	Why     string
	Tensors map[string]struct {
		Shape  []int
		DType  string
		Values []float64
	}
}

func index(t testing.TB) map[string]expected {
	text, err := os.ReadFile(filepath.Join(corpus, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var x struct{ Files map[string]expected }
	if err := json.Unmarshal(text, &x); err != nil {
		t.Fatal(err)
	}
	if len(x.Files) != 39 {
		t.Fatalf("%d files in the corpus, want 39", len(x.Files))
	}
	return x.Files
}

var dtypes = map[string]safetensors.DType{"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64", "int8": "I8", "uint8": "U8",
	"int16": "I16", "int32": "I32", "int64": "I64", "bool": "BOOL"}

// values widens the elements of a tensor.
func values(d safetensors.DType, b []byte) []float64 {
	le := binary.LittleEndian
	var out []float64
	for w := d.Bits() / 8; len(b) > 0; b = b[w:] {
		var v float64
		switch d {
		case "F16":
			v = float64(half.Float16(le.Uint16(b)))
		case "BF16":
			v = float64(half.BFloat16(le.Uint16(b)))
		case "F32":
			v = float64(math.Float32frombits(le.Uint32(b)))
		case "F64":
			v = math.Float64frombits(le.Uint64(b))
		case "I8":
			v = float64(int8(b[0]))
		case "U8", "BOOL":
			v = float64(b[0])
		case "I16":
			v = float64(int16(le.Uint16(b)))
		case "I32":
			v = float64(int32(le.Uint32(b)))
		case "I64":
			v = float64(int64(le.Uint64(b)))
		}
		out = append(out, v)
	}
	return out
}

// readAll opens a file and reads all of its tensors.
func readAll(path string) (map[string][]float64, *File, error) {
	f, err := Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	all := map[string][]float64{}
	for _, t := range f.Tensors() {
		b, err := f.Bytes(t)
		if err != nil {
			return nil, nil, err
		}
		all[t.Name()] = values(t.DType, b)
	}
	return all, f, nil
}

func TestCorpus(t *testing.T) {
	for file, want := range index(t) {
		t.Run(file, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			got, f, err := readAll(filepath.Join(corpus, file))
			took := time.Since(start)
			runtime.ReadMemStats(&after)
			// All that was ever allocated, which the peak cannot exceed.
			if spent := after.TotalAlloc - before.TotalAlloc; spent > 64<<20 || took > 10*time.Second { // hangs are looked for, not speed
				t.Errorf("took %v and %d bytes", took, spent)
			}
			if !want.Valid {
				var r *refuse.Error
				if !errors.As(err, &r) {
					t.Fatalf("not refused though %s: %v", want.Why, err)
				}
				if strings.Contains(r.Reason, "\n") || r.Path == "" {
					t.Errorf("refused with %q", r.Reason)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != len(want.Tensors) {
				t.Errorf("%d tensors, want %d", len(got), len(want.Tensors))
			}
			if f.Legacy() != strings.HasSuffix(file, ".pt") {
				t.Errorf("Legacy() = %v", f.Legacy())
			}
			for _, x := range f.Tensors() {
				w, ok := want.Tensors[x.Name()]
				if !ok || !slices.Equal(x.Shape, w.Shape) || x.DType != dtypes[w.DType] || !slices.Equal(got[x.Name()], w.Values) {
					t.Errorf("%s: %s %v %v, want %+v", x.Name(), x.DType, x.Shape, got[x.Name()], w)
				}
			}
		})
	}
}

// What hostile files name must be in the message: who reads it wants to know.
func TestRefusalsName(t *testing.T) {
	for file, want := range map[string]string{
		"invalid-os-system.bin":              "names posix.system",
		"invalid-os-system-legacy.pt":        "names posix.system",
		"invalid-builtins-eval.bin":          "names __builtin__.eval",
		"invalid-custom-class.bin":           "names my.module.Thing",
		"invalid-function-only.bin":          "names os.system",
		"invalid-numel-huge.bin":             "its pickle says",
		"invalid-torchscript.pt":             "TorchScript",
		"invalid-byteorder-big.bin":          `"big"`,
		"invalid-crc.bin":                    "checksum",
		"invalid-same-basename-twice.bin":    `"evil/data/0"`,
		"invalid-long-string-length.bin":     "cut",
		"invalid-stride-negative.bin":        "negative",
		"invalid-storage-member-short.bin":   "has 8 bytes, its pickle says 48",
		"invalid-deep-tuples.bin":            "no dictionary",
		"invalid-plain-pickle.bin":           "torch's number",
		"invalid-plain-pickle-os-system.bin": "neither",
	} {
		if _, _, err := readAll(filepath.Join(corpus, file)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", file, err, want)
		}
	}
}

// archive makes a zip of members in the folder x.
func archive(members ...string) []byte {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for i := 0; i < len(members); i += 2 {
		h := &zip.FileHeader{Name: "x/" + members[i], Method: zip.Store}
		w, _ := z.CreateHeader(h)
		_, _ = io.WriteString(w, members[i+1])
	}
	_ = z.Close()
	return b.Bytes()
}

// unsaid is an archive with more members than its end record says, modulo 65536,
// and a directory of another size.
func unsaid(n int) []byte {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for i := range n {
		_, _ = z.CreateRaw(&zip.FileHeader{Name: fmt.Sprint("x/", i), Method: zip.Store})
	}
	_ = z.Close()
	data := b.Bytes()
	at := binary.LittleEndian.Uint64(data[len(data)-22-20-56+48:])
	cut := data[:len(data)-22-20-56]
	end := binary.LittleEndian.AppendUint32([]byte("PK\x05\x06"), 0)
	end = binary.LittleEndian.AppendUint16(end, uint16(n%65536))
	end = binary.LittleEndian.AppendUint16(end, uint16(n%65536))
	end = binary.LittleEndian.AppendUint32(end, 4096)
	end = binary.LittleEndian.AppendUint32(end, uint32(at))
	return append(cut, append(end, 0, 0)...)
}

// Pieces of pickles.
const (
	proto   = "\x80\x02"
	rebuild = "ctorch._utils\n_rebuild_tensor_v2\n"
	ordered = "ccollections\nOrderedDict\n"
)

func text(s string) string {
	return "X" + string(binary.LittleEndian.AppendUint32(nil, uint32(len(s)))) + s
}

func number(n int64) string {
	return "\x8a\x08" + string(binary.LittleEndian.AppendUint64(nil, uint64(n)))
}

func numbers(n ...int64) string {
	s := "("
	for _, v := range n {
		s += number(v)
	}
	return s + "t"
}

// tensor is a pickled tensor over the storage "0" of class, numel elements.
func tensor(class string, numel, offset int64, shape, stride []int64) string {
	return rebuild + "((" + text("storage") + "ctorch\n" + class + "\n" + text("0") + text("cpu") + number(numel) + "tQ" + number(offset) + numbers(shape...) + numbers(stride...) +
		"\x89" + ordered + ")Rt" + "R"
}

func open(b []byte) (*File, error) { return Read("x", bytes.NewReader(b), int64(len(b))) }

func TestRead(t *testing.T) {
	four := string(make([]byte, 16))
	of := func(value string) []byte { return archive("data.pkl", proto+"}("+text("w")+value+"u.", "data/0", four) }
	ok := tensor("FloatStorage", 4, 0, []int64{2, 2}, []int64{2, 1})
	big := int64(1) << 62
	for what, c := range map[string]struct {
		file []byte
		want string // "" opens
	}{
		"matrix":                 {of(ok), ""},
		"scalar at the end":      {of(tensor("FloatStorage", 4, 3, nil, nil)), ""},
		"scalar past the end":    {of(tensor("FloatStorage", 4, 4, nil, nil)), "does not fit"},
		"empty at the end":       {of(tensor("FloatStorage", 4, 4, []int64{0}, []int64{1})), ""},
		"empty past the end":     {of(tensor("FloatStorage", 4, 5, []int64{0}, []int64{1})), "does not fit"},
		"empty but huge":         {of(tensor("FloatStorage", 4, 0, []int64{big, 0, big}, []int64{1, 1, 1})), "does not fit"},
		"negative offset":        {of(tensor("FloatStorage", 4, -1, []int64{1}, []int64{1})), "does not fit"},
		"negative size":          {of(tensor("FloatStorage", 4, 0, []int64{-1}, []int64{1})), "negative"},
		"one too many":           {of(tensor("FloatStorage", 4, 0, []int64{2, 2}, []int64{3, 1})), "does not fit"},
		"stride overflows":       {of(tensor("FloatStorage", 4, 0, []int64{5}, []int64{big})), "does not fit"},
		"shape overflows":        {of(tensor("FloatStorage", 4, 0, []int64{big, big}, []int64{0, 0})), "does not fit"},
		"expands without end":    {of(tensor("FloatStorage", 4, 0, []int64{1 << 20}, []int64{0})), "does not fit"},
		"offset overflows":       {of(tensor("FloatStorage", 4, math.MaxInt64, []int64{2}, []int64{1})), "does not fit"},
		"ranks differ":           {of(tensor("FloatStorage", 4, 0, []int64{2}, []int64{1, 1})), "dimensions"},
		"rank 9":                 {of(tensor("FloatStorage", 4, 0, make([]int64, 9), make([]int64, 9))), "dimensions"},
		"storage too long":       {of(tensor("FloatStorage", math.MaxInt64, 0, nil, nil)), "declares"},
		"negative storage":       {of(tensor("FloatStorage", -4, 0, nil, nil)), "unknown way"},
		"class of another size":  {of(tensor("DoubleStorage", 4, 0, nil, nil)), "its pickle says 32"},
		"complex":                {of(tensor("ComplexFloatStorage", 4, 0, nil, nil)), "names torch.ComplexFloatStorage"},
		"name as storage":        {of(strings.Replace(ok, "ctorch\nFloatStorage\n", ordered, 1)), "unknown way"},
		"two descriptions":       {of("(" + ok + tensor("FloatStorage", 2, 0, nil, nil) + "t"), "in two ways"},
		"storage is called":      {of("ctorch\nFloatStorage\n)R"), "calls"},
		"text is called":         {of(text("eval") + ")R"), "calls"},
		"dictionary of garbage":  {of(ordered + "K\x01\x85R"), "unknown way"},
		"dictionary of pairs":    {of(ordered + "](](" + text("a") + ok + "ee\x85R"), ""},
		"attributes":             {of(ordered + ")R(" + text("a") + ok + "u}(" + text("_metadata") + "Nu" + "b"), ""},
		"attributes of a list":   {of("]}b"), "attributes"},
		"same name twice":        {of(ok + text("w") + ok), "two tensors"},
		"dots make it the same":  {archive("data.pkl", proto+"}("+text("a.b")+ok+text("a")+"}("+text("b")+ok+"uu.", "data/0", four), "two tensors"},
		"key is a float":         {of("}(G\x00\x00\x00\x00\x00\x00\x00\x00" + ok + "u"), "neither text nor"},
		"integer keys":           {of("}(K\x07" + ok + "u"), ""},
		"contains itself":        {archive("data.pkl", proto+"}q\x00("+text("w")+"h\x00u."), "nested"},
		"stack empty":            {archive("data.pkl", proto+"."), "0 values"},
		"mark as value":          {archive("data.pkl", proto+"(."), "mark"},
		"no mark":                {archive("data.pkl", proto+"}u."), "no mark"},
		"odd items":              {archive("data.pkl", proto+"}(Nu."), "sets items"},
		"items of a tensor":      {of(ok + "(NNu"), "sets items"},
		"never stored":           {archive("data.pkl", proto+"h\x01."), "never stored"},
		"bytes follow":           {archive("data.pkl", proto+"}.N"), "follow"},
		"protocol 1":             {archive("data.pkl", "\x80\x01}."), "protocol"},
		"instance":               {archive("data.pkl", proto+"(ios\nsystem\n."), "opcode"},
		"new object":             {archive("data.pkl", proto+ordered+")\x81."), "opcode"},
		"stack global":           {archive("data.pkl", "\x80\x04\x8c\x02os\x8c\x06system\x93."), "names os.system"},
		"list":                   {archive("data.pkl", proto+"]."), "no dictionary"},
		"script inside":          {archive("data.pkl", proto+"}.", "code/x.py", ""), "TorchScript"},
		"member twice":           {archive("data.pkl", proto+"}.", "data.pkl", proto+"}."), "two members"},
		"more members than said": {unsaid(70_000), "another size"},
		"something behind":       {append(archive("data.pkl", proto+"}."), 0), "follows"},
	} {
		f, err := open(c.file)
		if c.want == "" {
			if err != nil || len(f.Tensors()) != 1 {
				t.Errorf("%s: %v", what, err)
			} else if _, err := f.Bytes(f.Tensors()[0]); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			continue
		}
		var r *refuse.Error
		if !errors.As(err, &r) || !strings.Contains(r.Reason, c.want) {
			t.Errorf("%s: %v, want %q", what, err, c.want)
		}
	}
	z := archive("data.pkl", proto+"}.")
	z[bytes.Index(z, []byte("PK\x01\x02"))+10] = 8 // says deflated
	if _, err := open(z); err == nil {
		t.Error("a compressed member went through")
	}
}

// Pickles that are small and want much memory.
func TestBombs(t *testing.T) {
	lists := proto + strings.Repeat("]", 1<<20) + "."
	var memo strings.Builder
	memo.WriteString(proto + "]")
	for i := range 1 << 19 {
		memo.WriteString("r" + string(binary.LittleEndian.AppendUint32(nil, uint32(i))))
	}
	grow := proto + "]q\x00(" + strings.Repeat("N", 60_000) + "t" + strings.Repeat("q\x01(h\x01h\x01h\x01h\x01t", 3000) + "."
	shared := proto + "}q\x00"
	for i := range 100 {
		shared += "}(" + text("a") + "h" + string(rune(i)) + text("b") + "h" + string(rune(i)) + "uq" + string(rune(i+1))
	}
	// A long stride that many tensors share, and a version whose text doubles 64 times.
	one := "((" + text("storage") + "ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(4) + "tQ" + number(0) + "("
	strides := proto + rebuild + one + strings.Repeat("K\x00", 60_000) + "tq\x00h\x00\x89" + ordered + ")RtR"
	strides += strings.Repeat(rebuild+one+"th\x00\x89"+ordered+")RtR", 2000) + "."
	version := "\x80\x02\x8a\x0a" + string(legacyMagic) + "." + proto + ")" + strings.Repeat("q\x00h\x00\x86", 64) + "."
	for what, data := range map[string][]byte{
		"lists": archive("data.pkl", lists), "memo": archive("data.pkl", memo.String()+"."), "tuples": archive("data.pkl", grow),
		"shared": archive("data.pkl", shared+"."), "strides": archive("data.pkl", strides), "version": []byte(version),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := open(data)
		runtime.ReadMemStats(&after)
		var r *refuse.Error
		if !errors.As(err, &r) || len(r.Reason) > 1000 {
			t.Errorf("%s: %v", what, err)
		}
		if spent := after.TotalAlloc - before.TotalAlloc; spent > 96<<20 {
			t.Errorf("%s: allocated %d bytes in all", what, spent)
		}
	}
}

// counted counts the bytes that are read.
type counted struct {
	io.ReaderAt
	n int
}

func (c *counted) ReadAt(b []byte, at int64) (int, error) {
	c.n += len(b)
	return c.ReaderAt.ReadAt(b, at)
}

// Small views of large storages, by turns, read each storage once.
func TestViewsReadLittle(t *testing.T) {
	const size = 1 << 18
	in := func(key string, offset int64, shape, stride []int64) string {
		return strings.Replace(tensor("ByteStorage", size, offset, shape, stride), text("0"), text(key), 1)
	}
	items := ""
	for i := range 200 {
		items += text(fmt.Sprintf("%03d", i)) + in(fmt.Sprint(i%2), int64(i), nil, nil)
	}
	items += text("far") + in("1", 3, []int64{2}, []int64{size - 5}) + text("wide") + in("0", 1, []int64{2, 3}, []int64{4, 8})
	zeros := string(make([]byte, size))
	data := archive("data.pkl", proto+"}("+items+"u.", "data/0", strings.Repeat("01234567", size/8), "data/1", zeros[:size-2]+"z"+zeros[:1])
	r := &counted{ReaderAt: bytes.NewReader(data)}
	f, err := Read("x", r, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	r.n = 0
	got := map[string]string{}
	for _, x := range f.Tensors() {
		b, err := f.Bytes(x)
		if err != nil {
			t.Fatal(err)
		}
		got[x.Name()] = string(b)
	}
	if r.n > 2*size+1000 {
		t.Errorf("%d bytes read of storages of %d", r.n, 2*size)
	}
	if got["far"] != "\x00z" || got["wide"] != "111555" || got["010"] != "2" || got["011"] != "\x00" {
		t.Errorf("far %q, wide %q, 010 %q, 011 %q", got["far"], got["wide"], got["010"], got["011"])
	}
}

func TestStateDict(t *testing.T) {
	ok := tensor("FloatStorage", 4, 0, []int64{4}, []int64{1})
	nest := func(items ...string) string {
		s := "}("
		for i := 0; i < len(items); i += 2 {
			s += text(items[i]) + items[i+1]
		}
		return s + "u"
	}
	one := nest("a.w", ok)
	for what, c := range map[string]struct {
		root, key string
		names     []string
		under     string // or the error
	}{
		"plain":         {one, "", []string{"a.w"}, ""},
		"wrapped":       {nest("state_dict", one, "epoch", "K\x01"), "", []string{"a.w"}, "state_dict"},
		"twice":         {nest("model", nest("state_dict", one), "optimizer", nest("s", ok)), "", []string{"a.w"}, "model.state_dict"},
		"two":           {nest("model", one, "ema", one), "", nil, "model or ema"},
		"two, chosen":   {nest("model", one, "ema", nest("b", ok)), "ema", []string{"b"}, "ema"},
		"deep, chosen":  {nest("x", nest("y", one)), "x.y", []string{"a.w"}, "x.y"},
		"dotted key":    {nest("x.y", one), "x.y", []string{"a.w"}, "x.y"},
		"no such key":   {nest("x", one), "y", nil, `the outermost keys are "x"`},
		"tensor beside": {nest("w", ok, "model", one), "", []string{"w", "model.a.w"}, ""},
		"model is one":  {nest("model", ok, "ema", one), "", []string{"model", "ema.a.w"}, ""},
		"others":        {nest("unet", one, "vae", one), "", []string{"unet.a.w", "vae.a.w"}, ""},
		"empty":         {"}", "", nil, ""},
	} {
		f, err := open(archive("data.pkl", proto+c.root+".", "data/0", string(make([]byte, 16))))
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		list, under, err := f.StateDict(c.key)
		var names []string
		for _, x := range list {
			names = append(names, x.Name())
		}
		if err != nil {
			under = err.Error()
		}
		if !slices.Equal(names, c.names) || !strings.Contains(under, c.under) {
			t.Errorf("%s: %q under %q, want %q under %q", what, names, under, c.names, c.under)
		}
	}
}

func TestWriteSafetensors(t *testing.T) {
	for file, want := range index(t) {
		if !want.Valid {
			continue
		}
		f, err := Open(filepath.Join(corpus, file))
		if err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(t.TempDir(), "x.safetensors")
		list, under, err := f.StateDict("")
		if err != nil {
			t.Fatal(err)
		}
		if err := f.WriteSafetensors(context.Background(), out, list, "", map[string]string{"format": "pt"}); err != nil {
			t.Fatal(file, err)
		}
		_ = f.Close()
		r, err := safetensors.Open(out)
		if err != nil {
			t.Fatal(file, err)
		}
		if len(r.Tensors()) != len(want.Tensors) || r.Metadata()["format"] != "pt" {
			t.Errorf("%s: %v", file, r.Tensors())
		}
		for name, w := range want.Tensors {
			name = strings.TrimPrefix(name, under+".")
			x, _ := r.Tensor(name)
			b, err := r.Bytes(name)
			if err != nil || !slices.Equal(x.Shape, w.Shape) || x.DType != dtypes[w.DType] || !slices.Equal(values(x.DType, b), w.Values) {
				t.Errorf("%s: %s: %v %v", file, name, x, err)
			}
		}
		_ = r.Close()
	}
	// A failure leaves nothing.
	f, err := Open(filepath.Join(corpus, "invalid-crc.bin"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dir := t.TempDir()
	err = f.WriteSafetensors(context.Background(), filepath.Join(dir, "x"), f.Tensors(), "", nil)
	var r *refuse.Error
	if !errors.As(err, &r) {
		t.Errorf("a wrong checksum: %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

func TestTied(t *testing.T) {
	for file, want := range map[string][][]string{
		"valid-shared.bin":              {{"a", "b"}},
		"valid-state-dict.bin":          nil,
		"valid-strided-views-legacy.pt": {{"transposed", "every_other", "offset", "slice", "whole"}},
	} {
		f, err := Open(filepath.Join(corpus, file))
		if err != nil {
			t.Fatal(err)
		}
		if got := Tied(f.Tensors()); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %q, want %q", file, got, want)
		}
		_ = f.Close()
	}
}

// Every single byte of small files is changed: nothing may panic or take long,
// and what still opens has the right number of bytes.
func TestChangedBytes(t *testing.T) {
	for _, file := range []string{"valid-strided-views.bin", "valid-strided-views-legacy.pt", "valid-state-dict.bin"} {
		data, err := os.ReadFile(filepath.Join(corpus, file))
		if err != nil {
			t.Fatal(err)
		}
		for i := range data {
			for _, v := range []byte{0, 1, data[i] ^ 0x80, data[i] + 1, 0xff} {
				changed := bytes.Clone(data)
				changed[i] = v
				checkForeign(t, changed)
			}
			checkForeign(t, data[:i])
		}
	}
}

// checkForeign reads bytes that anybody may have made.
func checkForeign(t *testing.T, data []byte) {
	f, err := open(data)
	var r *refuse.Error
	if err != nil {
		if !errors.As(err, &r) {
			t.Fatalf("not a refusal: %v", err)
		}
		return
	}
	total := 0
	for _, x := range f.Tensors() {
		b, err := f.Bytes(x)
		if err != nil {
			if !errors.As(err, &r) {
				t.Fatalf("not a refusal: %v", err)
			}
			return
		}
		if len(b) != x.Len()*x.DType.Bits()/8 {
			t.Fatalf("%d bytes for %s %v", len(b), x.DType, x.Shape)
		}
		total += len(b)
	}
	if total > maxRepeat*len(data) {
		t.Fatalf("%d bytes of tensors in a file of %d", total, len(data))
	}
	if _, _, err := f.StateDict(""); err != nil && !strings.Contains(err.Error(), "choose the key") {
		t.Fatal(err)
	}
}

func FuzzRead(f *testing.F) {
	files, err := filepath.Glob(filepath.Join(corpus, "*valid-*"))
	if err != nil || len(files) != 39 {
		f.Fatal(len(files), err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(checkForeign)
}

// FuzzPickle wraps the pickle, so that checksums do not hide it.
func FuzzPickle(f *testing.F) {
	f.Add(proto + "}(" + text("w") + tensor("FloatStorage", 4, 0, []int64{2, 2}, []int64{2, 1}) + "u.")
	f.Add("\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x01aK\x01\x8c\x01b]\x94(NJ\x00\x00\x00\x80eu.")
	f.Fuzz(func(t *testing.T, pickle string) {
		checkForeign(t, archive("data.pkl", pickle, "data/0", strings.Repeat("\x00", 16)))
	})
}

func Example() {
	f, err := Open(filepath.Join(corpus, "valid-nested-state-dict.bin"))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer f.Close()
	tensors, under, err := f.StateDict("")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("under", under)
	for _, t := range tensors {
		fmt.Println(t.Name(), t.DType, t.Shape)
	}
	// Output:
	// under state_dict
	// a.weight F32 [3 4]
	// a.bias F32 [3]
	// n I64 []
}

// EDM's snapshots are refused by name, with what to do.
func TestSnapshot(t *testing.T) {
	text := []byte("\x80\x03}q\x00X\x03\x00\x00\x00emaq\x01ctorch_utils.persistence\n_reconstruct_persistent_obj\nq\x02}\x85R.")
	_, err := Read("edm.pkl", bytes.NewReader(text), int64(len(text)))
	var r *refuse.Error
	if !errors.As(err, &r) || !strings.Contains(err.Error(), "save_file") {
		t.Error(err)
	}
}
