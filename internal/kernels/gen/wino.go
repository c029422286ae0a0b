package main

import (
	"fmt"
	"math"
	"regexp"
)

// Winograd transforms over 8 channels at a time, 16 with zmm. The points of F(4x4) are
// 0, +-3/4, +-3/2 and infinity; of F(2x2) 0, +-1 and infinity. See winograd.go.

const (
	winoP = 0.75
	winoQ = 1.5
)

// winoInArgs and winoOutArgs mirror the Go declarations.
const (
	inSig  = "(dst, src *float32, dstStep, rowStep, pixStep, tileStep, c, tiles, skip int)"
	outSig = "(dst, m, bias, res *float32, mStep, rowStep, pixStep, rows, cols, c int)"
)

func winoFile(zmm bool) []byte {
	a := newFile()
	a.raw("\n")
	for _, c := range []struct {
		name string
		v    float64
	}{
		{"p", winoP}, {"q", winoQ}, {"p2", winoP * winoP}, {"q2", winoQ * winoQ}, {"p3", winoP * winoP * winoP}, {"q3", winoQ * winoQ * winoQ},
		{"s", winoP*winoP + winoQ*winoQ}, {"p2q2", winoP * winoP * winoQ * winoQ},
	} {
		fmt.Fprintf(a, "DATA wino_%s<>+0(SB)/4, $0x%08x\nGLOBL wino_%s<>(SB), RODATA|NOPTR, $4\n", c.name, math.Float32bits(float32(c.v)), c.name)
	}
	for _, m := range []int{2, 4} {
		w := wino{a, m, "Y", "AVX2", 32, 0}
		if zmm {
			w = wino{a, m, "Z", "AVX512", 64, 16}
		}
		w.in()
		w.out()
		winoWeights(a, m, false, zmm)
		winoWeights(a, m, true, zmm)
	}
	return a.Bytes()
}

// wino writes the transforms of F(m by m) with one kind of vector.
type wino struct {
	*asm
	m            int
	reg, suffix  string
	size, spares int // bytes of a vector, and registers from 16 on that hold values between rows and columns
}

// op writes an instruction whose registers are written as those of ymm.
func (a wino) op(format string, args ...any) {
	a.asm.op("%s", yRegister.ReplaceAllString(fmt.Sprintf(format, args...), a.reg+"$1"))
}

var yRegister = regexp.MustCompile(`\bY(\d+)\b`)

// put and get move a value between rows and columns.
func (a wino) put(r, i int) {
	if i < a.spares {
		a.op("VMOVAPS Y%d, Y%d", r, 16+i)
	} else {
		a.op("VMOVUPS Y%d, %d(SP)", r, (i-a.spares)*a.size)
	}
}

func (a wino) get(i, r int) {
	if i < a.spares {
		a.op("VMOVAPS Y%d, Y%d", 16+i, r)
	} else {
		a.op("VMOVUPS %d(SP), Y%d", (i-a.spares)*a.size, r)
	}
}

// frame is the stack that n values need.
func (a wino) frame(n int) int { return max(0, n-a.spares) * a.size }

func (a wino) constant(name string, r int) {
	a.op("VBROADCASTSS wino_%s<>+0(SB), Y%d", name, r)
}

// in1 transforms Y0..Y(m+1); it returns the registers of the results.
func (a wino) in1() []int {
	m := a.m
	if m == 2 {
		// d0-d2, d1+d2, d2-d1, d1-d3, the last with the sign of d3 - d1.
		a.op("VSUBPS Y2, Y0, Y4")
		a.op("VADDPS Y1, Y2, Y5")
		a.op("VSUBPS Y1, Y2, Y6")
		a.op("VSUBPS Y1, Y3, Y7")
		return []int{4, 5, 6, 7}
	}
	// Constants: Y10 p2q2, Y11 s, Y12 p2, Y13 q2, Y14 p, Y15 q.
	a.op("VFMADD213PS Y4, Y10, Y0") // d0*p2q2 + d4
	a.op("VFNMADD231PS Y11, Y2, Y0")
	a.op("VFMADD231PS Y10, Y1, Y5") // d5 + p2q2*d1
	a.op("VFNMADD231PS Y11, Y3, Y5")
	a.op("VMOVAPS Y4, Y6")
	a.op("VFNMADD231PS Y13, Y2, Y6") // e1
	a.op("VFNMADD231PS Y12, Y2, Y4") // e2
	a.op("VMOVAPS Y3, Y7")
	a.op("VFNMADD231PS Y13, Y1, Y7") // o1
	a.op("VFNMADD231PS Y12, Y1, Y3") // o2
	a.op("VMOVAPS Y6, Y8")
	a.op("VFMADD231PS Y14, Y7, Y8")
	a.op("VFNMADD231PS Y14, Y7, Y6")
	a.op("VMOVAPS Y4, Y9")
	a.op("VFMADD231PS Y15, Y3, Y9")
	a.op("VFNMADD231PS Y15, Y3, Y4")
	return []int{0, 8, 6, 9, 4, 5}
}

// winoIn transforms a row of tiles. The source of a tile is (m+2)^2 pixels,
// rowStep and pixStep bytes apart, tiles tileStep apart; value k of the result
// is at dst + k*dstStep, tiles c values and skip bytes apart.
func (a wino) in() {
	m, al := a.m, a.m+2
	a.text(fmt.Sprintf("winoIn%d%s", m, a.suffix), inSig, a.frame(al*al), 72)
	a.op("MOVQ dst+0(FP), DI")
	a.op("MOVQ src+8(FP), SI")
	a.op("MOVQ dstStep+16(FP), R8")
	a.op("MOVQ rowStep+24(FP), R9")
	a.op("MOVQ pixStep+32(FP), R10")
	a.op("MOVQ tiles+56(FP), R12")
	a.op("LEAQ (R10)(R10*2), R13") // 3 pixels
	a.op("LEAQ (R10)(R10*4), DX")  // 5 pixels
	if m == 4 {
		for i, c := range []string{"p2q2", "s", "p2", "q2", "p", "q"} {
			a.constant(c, 10+i)
		}
	}
	a.label("tile")
	a.op("MOVQ c+48(FP), R11")
	a.op("MOVQ SI, AX")
	a.label("channel")
	a.op("MOVQ AX, BX")
	mem := []string{"(BX)", "(BX)(R10*1)", "(BX)(R10*2)", "(BX)(R13*1)", "(BX)(R10*4)", "(BX)(DX*1)"}
	for i := range al {
		for j := range al {
			a.op("VMOVUPS %s, Y%d", mem[j], j)
		}
		for j, r := range a.in1() {
			a.put(r, i*al+j)
		}
		if i < al-1 {
			a.op("ADDQ R9, BX")
		}
	}
	// Columns: result (i, j) is value i*al + j.
	a.op("IMUL3Q $%d, R8, R15", al) // bytes between rows of values
	a.op("MOVQ DI, CX")
	for j := range al {
		for i := range al {
			a.get(i*al+j, i)
		}
		a.op("MOVQ CX, BX")
		for i, r := range a.in1() {
			a.op("VMOVUPS Y%d, (BX)", r)
			if i < al-1 {
				a.op("ADDQ R15, BX")
			}
		}
		if j < al-1 {
			a.op("ADDQ R8, CX")
		}
	}
	a.op("ADDQ $%d, AX", a.size)
	a.op("ADDQ $%d, DI", a.size)
	a.op("SUBQ $%d, R11", a.size/4)
	a.op("JNE channel")
	a.op("ADDQ tileStep+40(FP), SI")
	a.op("ADDQ skip+64(FP), DI")
	a.op("SUBQ $1, R12")
	a.op("JNE tile")
	a.op("VZEROUPPER")
	a.op("RET")
}

// out1 transforms Y0..Y(m+1) to m results.
func (a wino) out1() []int {
	if a.m == 2 {
		a.op("VADDPS Y1, Y2, Y4")
		a.op("VADDPS Y4, Y0, Y0") // m0 + m1 + m2
		a.op("VSUBPS Y2, Y1, Y5")
		a.op("VADDPS Y5, Y3, Y3") // m1 - m2 + m3
		return []int{0, 3}
	}
	// Constants: Y10 p, Y11 q, Y12 p2, Y13 q2, Y14 p3, Y15 q3.
	a.op("VADDPS Y2, Y1, Y6") // a
	a.op("VSUBPS Y2, Y1, Y7") // b
	a.op("VADDPS Y4, Y3, Y8") // c
	a.op("VSUBPS Y4, Y3, Y9") // d
	a.op("VADDPS Y6, Y0, Y0")
	a.op("VADDPS Y8, Y0, Y0")
	a.op("VMULPS Y10, Y7, Y1")
	a.op("VFMADD231PS Y11, Y9, Y1")
	a.op("VMULPS Y12, Y6, Y2")
	a.op("VFMADD231PS Y13, Y8, Y2")
	a.op("VFMADD231PS Y14, Y7, Y5")
	a.op("VFMADD231PS Y15, Y9, Y5")
	return []int{0, 1, 2, 5}
}

// winoOut transforms one tile to at most rows by cols of its m by m pixels
// and adds bias and, unless nil, res, which is laid out like dst.
func (a wino) out() {
	m, al := a.m, a.m+2
	a.text(fmt.Sprintf("winoOut%d%s", m, a.suffix), outSig, a.frame(m*al), 80)
	a.op("MOVQ dst+0(FP), DI")
	a.op("MOVQ m+8(FP), SI")
	a.op("MOVQ bias+16(FP), DX")
	a.op("MOVQ res+24(FP), R8")
	a.op("MOVQ mStep+32(FP), R9")
	a.op("MOVQ rowStep+40(FP), R10")
	a.op("MOVQ pixStep+48(FP), R11")
	a.op("MOVQ cols+64(FP), R12")
	a.op("MOVQ c+72(FP), R13")
	if m == 4 {
		for i, c := range []string{"p", "q", "p2", "q2", "p3", "q3"} {
			a.constant(c, 10+i)
		}
	}
	a.op("IMUL3Q $%d, R9, R15", al)
	a.label("channel")
	a.op("MOVQ SI, AX")
	for j := range al {
		a.op("MOVQ AX, BX")
		for i := range al {
			a.op("VMOVUPS (BX), Y%d", i)
			if i < al-1 {
				a.op("ADDQ R15, BX")
			}
		}
		for i, r := range a.out1() {
			a.put(r, i*al+j)
		}
		if j < al-1 {
			a.op("ADDQ R9, AX")
		}
	}
	a.op("MOVQ rows+56(FP), CX")
	a.op("MOVQ DI, AX") // row of dst
	a.op("MOVQ R8, R14")
	for i := range m {
		for j := range al {
			a.get(i*al+j, j)
		}
		rs := a.out1()
		a.op("VMOVUPS (DX), Y6")
		for _, r := range rs {
			a.op("VADDPS Y6, Y%d, Y%d", r, r)
		}
		end := fmt.Sprintf("end%d", i)
		plain := fmt.Sprintf("plain%d", i)
		a.op("TESTQ R14, R14")
		a.op("JEQ %s", plain)
		a.op("MOVQ R14, BX")
		for k, r := range rs {
			a.op("VADDPS (BX), Y%d, Y%d", r, r)
			if k < m-1 {
				a.op("CMPQ R12, $%d", k+1)
				a.op("JEQ %s", plain)
				a.op("ADDQ R11, BX")
			}
		}
		a.label(plain)
		a.op("MOVQ AX, BX")
		for k, r := range rs {
			a.op("VMOVUPS Y%d, (BX)", r)
			if k < m-1 {
				a.op("CMPQ R12, $%d", k+1)
				a.op("JEQ %s", end)
				a.op("ADDQ R11, BX")
			}
		}
		a.label(end)
		if i < m-1 {
			a.op("CMPQ CX, $%d", i+1)
			a.op("JEQ next")
			a.op("ADDQ R10, AX")
			a.op("TESTQ R14, R14")
			a.op("JEQ %s_nores", end)
			a.op("ADDQ R10, R14")
			a.label(end + "_nores")
		}
	}
	a.label("next")
	a.op("ADDQ $%d, DI", a.size)
	a.op("ADDQ $%d, SI", a.size)
	a.op("ADDQ $%d, DX", a.size)
	a.op("TESTQ R8, R8")
	a.op("JEQ nores")
	a.op("ADDQ $%d, R8", a.size)
	a.label("nores")
	a.op("SUBQ $%d, R13", a.size/4)
	a.op("JNE channel")
	a.op("VZEROUPPER")
	a.op("RET")
}

// winoWeights transforms kernels for n columns, a multiple of 4 (8 with zmm),
// by two rows of G g G^T: those of a pair of points a and -a, or of 0 and
// infinity. src has 9 rows of n taps; value k of the 2 (m+2) goes to
// dst + k*step bytes. matrix is that of G, (m+2) by 3, where rows 2p+1 and
// 2p+2 belong to a and -a: their even part is the same and their odd part the
// opposite. Row 0 takes the first value alone, the last row is (0, 0, 1).
func winoWeights(a *asm, m int, ends, zmm bool) {
	al, reg, size, suffix, bcast := m+2, "Y", 4, "AVX2", ""
	if zmm {
		reg, size, suffix, bcast = "Z", 8, "AVX512", ".BCST"
	}
	rows := "Pair"
	if ends {
		rows = "Ends"
	}
	a.text(fmt.Sprintf("winoWeights%d%s%s", m, rows, suffix), "(dst *float32, step int, src *float32, n int, matrix, pair *float64)", 0, 48)
	a.op("MOVQ dst+0(FP), DI")
	a.op("MOVQ step+8(FP), R8")
	a.op("MOVQ src+16(FP), SI")
	a.op("MOVQ n+24(FP), CX")
	a.op("MOVQ matrix+32(FP), DX")
	a.op("MOVQ pair+40(FP), BX")
	a.op("MOVQ CX, R9")
	a.op("SHLQ $2, R9") // bytes between taps
	a.op("LEAQ (R9)(R9*2), R10")
	// times is out = in * a constant.
	times := func(ptr string, at, in, out int) {
		if zmm {
			a.op("VMULPD%s %d(%s), Z%d, Z%d", bcast, at, ptr, in, out)
			return
		}
		a.op("VBROADCASTSD %d(%s), Y%d", at, ptr, 15)
		a.op("VMULPD Y15, Y%d, Y%d", in, out)
	}
	// pair multiplies a column by the two rows of G at at(ptr).
	pair := func(ptr string, at int, in [3]int, plus, minus, t int) {
		times(ptr, at, in[0], plus)
		times(ptr, at+8, in[1], t)
		if zmm {
			a.op("VFMADD231PD%s %d(%s), Z%d, Z%d", bcast, at+16, ptr, in[2], plus)
		} else {
			a.op("VBROADCASTSD %d(%s), Y15", at+16, ptr)
			a.op("VFMADD231PD Y15, Y%d, Y%d", in[2], plus)
		}
		a.op("VSUBPD %s%d, %s%d, %s%d", reg, t, reg, plus, reg, minus)
		a.op("VADDPD %s%d, %s%d, %s%d", reg, t, reg, plus, reg, plus)
	}
	a.label("columns")
	a.op("MOVQ SI, AX")
	for y := range 3 {
		for x := range 3 {
			if ends && y == 1 {
				continue
			}
			at := "(AX)"
			if x > 0 {
				at = fmt.Sprintf("(AX)(R9*%d)", x)
			}
			a.op("VCVTPS2PD %s, %s%d", at, reg, 3*y+x)
		}
		if y < 2 {
			a.op("ADDQ R10, AX")
		}
	}
	// The two rows: registers 0 to 2 and 6 to 8.
	for x := range 3 {
		if ends {
			times("DX", 0, x, x)
		} else {
			pair("BX", 0, [3]int{x, 3 + x, 6 + x}, 9, 6+x, 10)
			a.op("VMOVAPD %s9, %s%d", reg, reg, x)
		}
	}
	a.op("MOVQ DI, AX")
	store := func(r int, last bool) {
		if zmm {
			a.op("VCVTPD2PS Z%d, Y%d", r, r)
			a.op("VMOVUPS Y%d, (AX)", r)
		} else {
			a.op("VCVTPD2PSY Y%d, X%d", r, r)
			a.op("VMOVUPS X%d, (AX)", r)
		}
		if !last {
			a.op("ADDQ R8, AX")
		}
	}
	for row := 0; row <= 6; row += 6 {
		in := [3]int{row, row + 1, row + 2}
		times("DX", 0, in[0], 9)
		store(9, false)
		for i := 1; i < al-1; i += 2 {
			p, q, t := 9+(i-1)%4, 10+(i-1)%4, 13
			pair("DX", i*24, in, p, q, t)
			store(p, false)
			store(q, false)
		}
		store(in[2], row == 6)
	}
	a.op("ADDQ $%d, SI", 4*size)
	a.op("ADDQ $%d, DI", 4*size)
	a.op("SUBQ $%d, CX", size)
	a.op("JNE columns")
	a.op("VZEROUPPER")
	a.op("RET")
}
