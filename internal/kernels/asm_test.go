package kernels

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unsafe"
)

// The tests here hold the assembly of processors that the machine at hand is
// not: an interpreter runs the committed text of the matrix kernels, and
// objdump reads the instructions that are written as bytes.

var encoded = regexp.MustCompile(`^BYTE .* // (.*)$`)

// routine is the lines of one assembly function.
type routine struct {
	lines  []string
	labels map[string]int
}

func routines(t *testing.T, file string) map[string]*routine {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*routine{}
	var cur *routine
	for _, l := range strings.Split(string(text), "\n") {
		l = strings.TrimSpace(l)
		switch {
		case strings.HasPrefix(l, "TEXT"):
			name := l[strings.Index(l, "·")+len("·") : strings.Index(l, "(SB)")]
			cur = &routine{labels: map[string]int{}}
			all[name] = cur
		case cur == nil || l == "" || strings.HasPrefix(l, "//"):
		case strings.HasSuffix(l, ":"):
			cur.labels[strings.TrimSuffix(l, ":")] = len(cur.lines)
		default:
			if m := encoded.FindStringSubmatch(l); m != nil {
				l = m[1]
			}
			cur.lines = append(cur.lines, l)
		}
	}
	return all
}

// tile is an AMX register of 16 rows of 64 bytes.
type tile [16][16]uint32

// machine is as much of a processor as the matrix kernels need.
type machine struct {
	t      *testing.T
	gpr    map[string]*int64
	vec    [32][16]float32
	tiles  [8]tile
	rows   [8]int // 0: not configured
	stack  [64]int64
	arg    int64
	result int64 // of the last operation that sets flags
}

// heap keeps what the interpreter knows by number only from lying on a stack,
// which may move.
var heap []any

// memory reaches real memory, as the kernel would.
func memory[T any](addr int64) *T { return *(**T)(unsafe.Pointer(&addr)) }

var (
	memForm   = regexp.MustCompile(`^(-?\d*)\((\w+)\)(?:\((\w+)\*(\d)\))?$`)
	vecForm   = regexp.MustCompile(`^([XYZ])(\d+)$`)
	instrForm = regexp.MustCompile(`^(\S+)\s*(.*)$`)
)

// address gives the address of a memory operand; slots of the stack are told
// apart.
func (m *machine) address(op string) (addr int64, onStack bool) {
	if op == "args+0(FP)" {
		return int64(uintptr(unsafe.Pointer(&m.arg))), false
	}
	f := memForm.FindStringSubmatch(op)
	if f == nil {
		m.t.Fatalf("operand %q is not understood", op)
	}
	disp, _ := strconv.ParseInt(f[1], 10, 64)
	if f[2] == "SP" {
		return disp / 8, true
	}
	addr = *m.reg(f[2]) + disp
	if f[3] != "" {
		scale, _ := strconv.ParseInt(f[4], 10, 64)
		addr += *m.reg(f[3]) * scale
	}
	return addr, false
}

// integer gives the place of an integer operand.
func (m *machine) integer(op string) *int64 {
	if strings.HasPrefix(op, "$") {
		v, err := strconv.ParseInt(op[1:], 0, 64)
		if err != nil {
			m.t.Fatal(err)
		}
		return &v
	}
	if strings.Contains(op, "(") {
		a, st := m.address(op)
		if st {
			return &m.stack[a]
		}
		return memory[int64](a)
	}
	return m.reg(op)
}

func (m *machine) reg(name string) *int64 {
	if m.gpr[name] == nil {
		if strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") != "" || len(name) > 3 {
			m.t.Fatalf("register %q", name)
		}
		m.gpr[name] = new(int64)
	}
	return m.gpr[name]
}

func (m *machine) vector(op string) (reg *[16]float32, n int) {
	f := vecForm.FindStringSubmatch(op)
	if f == nil {
		return nil, 0
	}
	i, _ := strconv.Atoi(f[2])
	return &m.vec[i], map[string]int{"X": 4, "Y": 8, "Z": 16}[f[1]]
}

// number gives the register number in an operand such as TMM3.
func number(op string) int {
	n, err := strconv.Atoi(strings.TrimPrefix(op, "TMM"))
	if err != nil {
		panic(err)
	}
	return n
}

// run interprets a routine with one pointer argument.
func (m *machine) run(r *routine, arg unsafe.Pointer) {
	m.arg = int64(uintptr(arg))
	heap = append(heap, m)
	for pc := 0; ; pc++ {
		f := instrForm.FindStringSubmatch(r.lines[pc])
		var ops []string
		if f[2] != "" {
			ops = strings.Split(f[2], ", ")
		}
		jump := func(taken bool) {
			if taken {
				at, ok := r.labels[ops[0]]
				if !ok {
					m.t.Fatalf("no label %q", ops[0])
				}
				pc = at - 1
			}
		}
		switch f[1] {
		case "MOVQ":
			*m.integer(ops[1]) = *m.integer(ops[0])
		case "ADDQ":
			p := m.integer(ops[1])
			*p += *m.integer(ops[0])
			m.result = *p
		case "SUBQ":
			p := m.integer(ops[1])
			*p -= *m.integer(ops[0])
			m.result = *p
		case "IMULQ":
			*m.integer(ops[1]) *= *m.integer(ops[0])
		case "CMPQ":
			m.result = *m.integer(ops[0]) - *m.integer(ops[1])
		case "TESTQ":
			m.result = *m.integer(ops[0]) & *m.integer(ops[1])
		case "JEQ":
			jump(m.result == 0)
		case "JNE":
			jump(m.result != 0)
		case "JLT":
			jump(m.result < 0)
		case "JGE":
			jump(m.result >= 0)
		case "JMP":
			jump(true)
		case "PREFETCHT1", "PCALIGN", "VZEROUPPER":
		case "VMOVUPS":
			if dst, n := m.vector(ops[1]); dst != nil {
				a, _ := m.address(ops[0])
				copy(dst[:n], memory[[16]float32](a)[:n])
			} else {
				src, n := m.vector(ops[0])
				a, _ := m.address(ops[1])
				copy(memory[[16]float32](a)[:n], src[:n])
			}
		case "VBROADCASTSS":
			a, _ := m.address(ops[0])
			dst, n := m.vector(ops[1])
			for i := range n {
				// Bits, not a number: it may be a pair.
				*(*uint32)(unsafe.Pointer(&dst[i])) = *memory[uint32](a)
			}
		case "VXORPS", "VPXORQ":
			dst, _ := m.vector(ops[2])
			if ops[0] != ops[1] {
				m.t.Fatalf("%s is no zero", r.lines[pc])
			}
			*dst = [16]float32{}
		case "VADDPS":
			x, n := m.vector(ops[0])
			y, _ := m.vector(ops[1])
			dst, dn := m.vector(ops[2])
			if x == nil {
				a, _ := m.address(ops[0])
				x, n = memory[[16]float32](a), dn
			}
			for i := range n {
				dst[i] = y[i] + x[i]
			}
		case "VFMADD231PS":
			x, n := m.vector(ops[0])
			y, _ := m.vector(ops[1])
			dst, _ := m.vector(ops[2])
			for i := range n {
				dst[i] = float32(math.FMA(float64(x[i]), float64(y[i]), float64(dst[i])))
			}
		case "VDPBF16PS":
			x, n := m.vector(ops[0])
			y, _ := m.vector(ops[1])
			dst, _ := m.vector(ops[2])
			for i := range n {
				dst[i] = dotPair(dst[i], *(*uint32)(unsafe.Pointer(&y[i])), *(*uint32)(unsafe.Pointer(&x[i])))
			}
		case "LDTILECFG":
			a, _ := m.address(ops[0])
			cfg := memory[[64]byte](a)
			if cfg[0] != 1 {
				m.t.Fatalf("palette %d", cfg[0])
			}
			for i := range m.rows {
				m.rows[i] = int(cfg[48+i])
				if cols := int(cfg[16+2*i]) | int(cfg[17+2*i])<<8; cols != 64 || m.rows[i] < 1 || m.rows[i] > 16 {
					m.t.Fatalf("tile %d is %d rows of %d bytes", i, m.rows[i], cols)
				}
			}
		case "TILERELEASE":
			m.rows = [8]int{}
		case "TILELOADD", "TILESTORED":
			mem, reg := ops[0], ops[len(ops)-1]
			if f[1] == "TILESTORED" {
				mem, reg = reg, mem
			}
			base, _ := m.address(mem)
			step := *m.reg(memForm.FindStringSubmatch(mem)[3])
			base -= step
			n := number(reg)
			for i := range m.configured(n) {
				row := memory[[16]uint32](base + int64(i)*step)
				if f[1] == "TILELOADD" {
					m.tiles[n][i] = *row
				} else {
					*row = m.tiles[n][i]
				}
			}
		case "TDPBF16PS":
			b, a, d := number(ops[0]), number(ops[1]), number(ops[2])
			if m.configured(b) != 16 || m.configured(a) != m.configured(d) {
				m.t.Fatalf("%s: tiles of %v rows", r.lines[pc], m.rows)
			}
			for i := range m.rows[d] {
				for k := range 16 {
					for j := range 16 {
						sum := (*float32)(unsafe.Pointer(&m.tiles[d][i][j]))
						*sum = dotPair(*sum, m.tiles[a][i][k], m.tiles[b][k][j])
					}
				}
			}
		case "RET":
			if m.rows != [8]int{} {
				m.t.Fatal("tiles are not released")
			}
			return
		default:
			m.t.Fatalf("instruction %q is not understood", r.lines[pc])
		}
	}
}

func (m *machine) configured(tile int) int {
	if m.rows[tile] == 0 {
		m.t.Fatalf("tile %d is used without configuration", tile)
	}
	return m.rows[tile]
}

func dotPair(sum float32, x, y uint32) float32 {
	s := float64(sum)
	s += float64(f32frombits(x<<16)) * float64(f32frombits(y<<16))
	s += float64(f32frombits(x&^0xffff)) * float64(f32frombits(y&^0xffff))
	return float32(s)
}

func newMachine(t *testing.T) *machine {
	m := &machine{t: t, gpr: map[string]*int64{}}
	for i := range m.vec {
		for j := range m.vec[i] {
			m.vec[i][j] = float32(math.NaN())
		}
	}
	return m
}

// TestGemmText interprets every matrix kernel and compares it with its twin.
func TestGemmText(t *testing.T) {
	for _, k := range []struct {
		file, name string
		mr, nr     int
		pairs      bool
	}{
		{"gemm_avx2_amd64.s", "gemmAVX2", 6, 16, false},
		{"gemm_narrow_amd64.s", "gemmNarrow", 12, 8, false},
		{"gemm_avx512_amd64.s", "gemmAVX512", 12, 32, false},
		{"gemm_bf16_amd64.s", "gemmBF16", 12, 32, true},
	} {
		rs := routines(t, k.file)
		r := rng(11)
		for mr := 1; mr <= k.mr; mr++ {
			for variant := range 8 {
				const tiles, lens = 2, 3
				lengths := []int64{1 + int64(variant), 4, 9}
				var total int64
				for _, n := range lengths {
					total += n
				}
				ldc := k.nr + 5
				rows := tiles * mr
				a := randoms(r, rows*40+40)
				b := randoms(r, int(total)*k.nr)
				if k.pairs {
					for _, s := range [][]float32{a, b} {
						for i := range s {
							lo, hi := roundBF16(s[i]), roundBF16(float32(r.NormFloat64()))
							s[i] = f32frombits(f32bits(hi) | f32bits(lo)>>16)
						}
					}
				}
				c := randoms(r, rows*ldc)
				want := append([]float32{}, c...)
				bias, res := randoms(r, k.nr), randoms(r, rows*ldc)
				offs := make([]int64, rows)
				for i := range offs {
					offs[i] = int64((i*7%rows)*40) * 4 // any order
				}
				segs := []segment{{12, lengths[0]}, {80, lengths[1]}, {96, lengths[2]}}
				g := &gemmArgs{ldc: int64(ldc) * 4, a: ptr(a), rows: &offs[0], tiles: tiles, b: ptr(b), segs: &segs[0], nseg: lens}
				if variant&1 != 0 {
					g.acc = 1
				}
				if variant&2 != 0 {
					g.bias = &bias[0]
				}
				if variant&4 != 0 {
					g.res = ptr(res)
				}
				g.c = ptr(want)
				if k.pairs {
					gemmPairsGo(g, mr, k.nr)
				} else {
					gemmPortable(g, mr, k.nr)
				}
				heap = []any{g, segs, offs, a, b, c, bias, res}
				g.c = ptr(c)
				newMachine(t).run(rs[fmt.Sprintf("%s_%d", k.name, mr)], unsafe.Pointer(g))
				within(t, fmt.Sprintf("%s_%d variant %d", k.name, mr, variant), c, wide(want), 1e-6)
			}
		}
	}
}

// TestTileText interprets the AMX kernel.
func TestTileText(t *testing.T) {
	kernel := routines(t, "gemm_amx_amd64.s")["gemmAMX"]
	r := rng(12)
	for _, c := range []struct{ th, tw int }{{1, 1}, {2, 7}, {3, 16}, {2, 17}, {1, 40}, {4, 28}} {
		const slots = 16
		pitch := c.tw + 2
		pairs := func(n int) []float32 {
			s := make([]float32, n)
			for i := range s {
				lo, hi := roundBF16(float32(r.NormFloat64())), roundBF16(float32(r.NormFloat64()))
				s[i] = f32frombits(f32bits(hi) | f32bits(lo)>>16)
			}
			return s
		}
		a, b := pairs((c.th+2)*pitch*slots), pairs(3*3*slots*32)
		l := amxLayout{th: c.th, tw: c.tw, row: pitch * slots * 4, pix: slots * 4, work: make([]float32, amxWork(c.th, c.tw))}
		segs := []segment{{0, 3 * slots}, {int64(pitch * slots * 4), 3 * slots}, {int64(2 * pitch * slots * 4), 3 * slots}}
		got := randoms(r, c.th*c.tw*32)
		want := append([]float32{}, got...)
		for _, g := range l.groups() {
			if g.pairs == 0 {
				continue
			}
			args := &amxArgs{config: g.config, c: ptr(want), ldc: 128, a: ptr(a), step: int64(l.pix), b: ptr(b),
				segs: &segs[0], nseg: 3, tiles: g.tiles, pairs: g.pairs}
			gemmAMXGo(args)
			heap = []any{args, segs, l.work, a, b, got}
			args.c = ptr(got)
			newMachine(t).run(kernel, unsafe.Pointer(args))
		}
		within(t, fmt.Sprintf("%+v", c), got, wide(want), 1e-6)
	}
}

// TestEncodings lets a disassembler read every instruction that is written as
// bytes and compares it with the comment beside it.
func TestEncodings(t *testing.T) {
	objdump, err := exec.LookPath("objdump")
	if err != nil {
		t.Skip("objdump of binutils is not installed")
	}
	files, _ := filepath.Glob("*_amd64.s")
	byteForm := regexp.MustCompile(`BYTE \$0x([0-9a-f]{2})`)
	var code []byte
	var want []string
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for _, l := range strings.Split(string(text), "\n") {
			m := encoded.FindStringSubmatch(strings.TrimSpace(l))
			if m == nil || seen[l] {
				continue
			}
			seen[l] = true
			for _, b := range byteForm.FindAllStringSubmatch(l, -1) {
				v, _ := strconv.ParseUint(b[1], 16, 8)
				code = append(code, byte(v))
			}
			want = append(want, intel(m[1]))
		}
	}
	if len(want) < 20 {
		t.Fatalf("only %d encoded instructions found", len(want))
	}
	bin := filepath.Join(t.TempDir(), "code")
	if err := os.WriteFile(bin, code, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(objdump, "-D", "-b", "binary", "-m", "i386:x86-64", "-M", "intel", "--no-show-raw-insn", bin).Output()
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(out, []byte("unrecognized")) {
		t.Fatal("objdump does not know the machine")
	}
	var got []string
	line := regexp.MustCompile(`^\s*[0-9a-f]+:\s+(.*)$`)
	for _, l := range strings.Split(string(out), "\n") {
		if m := line.FindStringSubmatch(l); m != nil {
			got = append(got, strings.Join(strings.Fields(m[1]), " "))
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%d instructions, objdump reads %d", len(want), len(got))
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("the comment says %q, the bytes say %q", want[i], got[i])
		}
	}
	t.Logf("%d encodings", len(want))
}

// intel turns a comment in Go's operand order into objdump's Intel syntax.
func intel(s string) string {
	f := instrForm.FindStringSubmatch(s)
	if f[2] == "" {
		return strings.ToLower(f[1])
	}
	var ops []string
	for _, op := range strings.Split(f[2], ", ") {
		if m := memForm.FindStringSubmatch(op); m != nil {
			low := func(r string) string {
				r = strings.ToLower(r)
				if r[0] != 'r' {
					r = "r" + r
				}
				return r
			}
			text := "[" + low(m[2])
			if m[3] != "" {
				text += "+" + low(m[3]) + "*" + m[4]
			}
			// r13 cannot be a base without displacement.
			if d, _ := strconv.Atoi(m[1]); d != 0 || m[2] == "R13" {
				text += fmt.Sprintf("+0x%x", d)
			}
			op = text + "]"
		}
		ops = append([]string{strings.ToLower(strings.Replace(op, "Z", "zmm", 1))}, ops...)
	}
	return strings.ToLower(f[1]) + " " + strings.Join(ops, ",")
}

// TestGenerated holds that the committed assembly is what the generator
// writes.
func TestGenerated(t *testing.T) {
	goTool, err := exec.LookPath("go")
	if err != nil {
		t.Skip("the go command is not on the path")
	}
	dir := t.TempDir()
	if out, err := exec.Command(goTool, "run", "./gen", "-dir", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*.s"))
	if len(files) < 5 {
		t.Fatalf("%d files", len(files))
	}
	for _, f := range files {
		want, _ := os.ReadFile(f)
		have, err := os.ReadFile(filepath.Base(f))
		if err != nil || !bytes.Equal(want, have) {
			t.Errorf("%s is stale: run go generate (%v)", filepath.Base(f), err)
		}
	}
}
