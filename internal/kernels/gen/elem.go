package main

import (
	"fmt"
	"math"
	"strings"
)

// The elementwise functions work on whole vectors of 8; a tail of channels is
// read and written under a mask.

var elemConsts = []struct {
	name string
	v    float64
}{
	{"log2e", math.Log2E},
	{"ln2hi", 0.693359375},
	{"ln2lo", -2.12194440e-4},
	{"expTop", 88},
	{"expBottom", -87.3},
	{"exp0", 1.9875691500e-4},
	{"exp1", 1.3981999507e-3},
	{"exp2", 8.3334519073e-3},
	{"exp3", 4.1665795894e-2},
	{"exp4", 1.6666665459e-1},
	{"exp5", 5.0000001201e-1},
	{"one", 1},
	{"half", 0.5},
	{"minus1", -1},
	{"minusQuick", -1.702},
	{"tanh1", -2 * 0.7978845608028654},
	{"tanh3", -2 * 0.7978845608028654 * 0.044715},
	{"quick", 1.702},
	{"slope1", 2 * 0.7978845608028654},
	{"slope3", 3 * 0.044715}, // over slope1
	{"far", 100},
	{"rsqrt2", math.Sqrt2 / 2},
	{"lowest", -100},
	{"erfTop", 4},
	{"erfBottom", -4},
	{"a1", -1.60960333262415e-02}, {"a3", -2.95459980854025e-03}, {"a5", -7.34990630326855e-04},
	{"a7", -5.69250639462346e-05}, {"a9", -2.10102402082508e-06}, {"a11", 2.77068142495902e-08},
	{"a13", -2.72614225801306e-10},
	{"b0", -1.42647390514189e-02}, {"b2", -7.37332916720468e-03}, {"b4", -1.68282697438203e-03},
	{"b6", -2.13374055278905e-04}, {"b8", -1.45660718464996e-05},
	{"negInf", math.Inf(-1)},
}

func cst(name string) string { return "elem_" + name + "<>+0(SB)" }

func elemFile() []byte {
	a := newFile()
	a.raw("\n")
	for _, c := range elemConsts {
		bits := math.Float32bits(float32(c.v))
		for i := range 8 {
			fmt.Fprintf(a, "DATA elem_%s<>+%d(SB)/4, $0x%08x\n", c.name, 4*i, bits)
		}
		fmt.Fprintf(a, "GLOBL elem_%s<>(SB), RODATA|NOPTR, $32\n", c.name)
	}
	for i := range 8 {
		fmt.Fprintf(a, "DATA elem_bias127<>+%d(SB)/4, $127\n", 4*i)
	}
	a.raw("GLOBL elem_bias127<>(SB), RODATA|NOPTR, $32\n")
	for _, c := range []struct{ name, v string }{{"int1", "1"}, {"half16", "0x7fff"}, {"quiet", "0x7fc00000"}, {"high16", "0xffff0000"}} {
		for i := range 8 {
			fmt.Fprintf(a, "DATA elem_%s<>+%d(SB)/4, $%s\n", c.name, 4*i, c.v)
		}
		fmt.Fprintf(a, "GLOBL elem_%s<>(SB), RODATA|NOPTR, $32\n", c.name)
	}
	for i := range 16 {
		v := "0xffffffff"
		if i >= 8 {
			v = "0"
		}
		fmt.Fprintf(a, "DATA elem_mask<>+%d(SB)/4, $%s\n", 4*i, v)
	}
	a.raw("GLOBL elem_mask<>(SB), RODATA|NOPTR, $64\n")

	for _, f := range []string{"SiLU", "QuickGELU", "GELUTanh", "GELU", "ReLU"} {
		actFunc(a, f)
	}
	for _, f := range []string{"SiLU", "QuickGELU", "GELUTanh"} {
		actVJP(a, f)
	}
	affineFunc(a, "affine", true, false)
	affineFunc(a, "affineSiLU", true, true)
	affineFunc(a, "rowsSiLU", false, true)
	chanSums(a)
	expRow(a)
	maxRow(a)
	softmaxRows(a)
	transpose8(a)
	binary(a)
	mulAddRows(a)
	depthwise(a)
	moments(a)
	normRow(a)
	bf16Funcs(a)
	widenFuncs(a)
	toF16(a)
	pairRows(a)
	return a.Bytes()
}

// Several vectors are worked on side by side: one alone would wait for its own
// long chain of operations, more than the processor looks ahead. Lane i has
// its value in Y[i] and the temporaries Y[4+i] and Y[8+i]; Y12 to Y14 hold
// constants for a moment. Frames of functions that use activate or exp begin
// with spillBytes of room.
const (
	lanesMax   = 4
	spillBytes = lanesMax * 32
)

// each writes an instruction per lane; in format, %[1]d is the value's
// register, %[2]d and %[3]d the temporaries, %[4]d the lane's spill offset.
func each(a *asm, lanes int, format string) {
	for i := range lanes {
		a.op(format+"%[5]s", i, 4+i, 8+i, 32*i, "")
	}
}

func load(a *asm, c string, r int) { a.op("VMOVUPS %s, Y%d", cst(c), r) }

// exp replaces the lanes by their exponentials; they must be at most 88. Below
// -87.3 the result is about 1e-38, not 0. A NaN stays.
// Cody-Waite reduction and the polynomial of Cephes' expf, 1e-7 relative.
func exp(a *asm, lanes int) {
	load(a, "expBottom", 12)
	each(a, lanes, "VMAXPS Y%[1]d, Y12, Y%[1]d")
	load(a, "log2e", 13)
	each(a, lanes, "VMULPS Y13, Y%[1]d, Y%[2]d")
	each(a, lanes, "VROUNDPS $0, Y%[2]d, Y%[2]d")
	load(a, "ln2hi", 12)
	each(a, lanes, "VFNMADD231PS Y12, Y%[2]d, Y%[1]d")
	load(a, "ln2lo", 13)
	each(a, lanes, "VFNMADD231PS Y13, Y%[2]d, Y%[1]d")
	load(a, "exp0", 12)
	each(a, lanes, "VMOVAPS Y12, Y%[3]d")
	for i := 1; i < 6; i++ {
		load(a, fmt.Sprint("exp", i), 12+i%2)
		each(a, lanes, fmt.Sprintf("VFMADD213PS Y%d, Y%%[1]d, Y%%[3]d", 12+i%2))
	}
	// p*x*x + x + 1
	each(a, lanes, "VMULPS Y%[1]d, Y%[3]d, Y%[3]d")
	each(a, lanes, "VFMADD213PS Y%[1]d, Y%[3]d, Y%[1]d") // x = p*x + x
	load(a, "one", 12)
	each(a, lanes, "VADDPS Y12, Y%[1]d, Y%[1]d")
	each(a, lanes, "VCVTPS2DQ Y%[2]d, Y%[2]d")
	a.op("VMOVDQU elem_bias127<>+0(SB), Y13")
	each(a, lanes, "VPADDD Y13, Y%[2]d, Y%[2]d")
	each(a, lanes, "VPSLLD $23, Y%[2]d, Y%[2]d")
	each(a, lanes, "VMULPS Y%[2]d, Y%[1]d, Y%[1]d")
}

// activate replaces the lanes by f of them.
func activate(a *asm, f string, lanes int) {
	switch f {
	case "SiLU", "QuickGELU", "GELUTanh":
		// x / (1 + exp(-g(x)))
		load(a, "lowest", 12)
		each(a, lanes, "VMAXPS Y%[1]d, Y12, Y%[2]d") // -1e38 is far below zero over 1 + exp(88)
		each(a, lanes, "VMOVUPS Y%[2]d, %[4]d(SP)")
		switch f {
		case "SiLU":
			load(a, "minus1", 13)
			each(a, lanes, "VMULPS Y13, Y%[1]d, Y%[1]d")
		case "QuickGELU":
			load(a, "minusQuick", 13)
			each(a, lanes, "VMULPS Y13, Y%[1]d, Y%[1]d")
		default:
			load(a, "tanh3", 12)
			load(a, "tanh1", 13)
			each(a, lanes, "VMULPS Y%[1]d, Y%[1]d, Y%[2]d")
			each(a, lanes, "VFMADD213PS Y13, Y12, Y%[2]d")
			each(a, lanes, "VMULPS Y%[2]d, Y%[1]d, Y%[1]d")
		}
		load(a, "expTop", 12)
		each(a, lanes, "VMINPS Y12, Y%[1]d, Y%[1]d")
		exp(a, lanes)
		load(a, "one", 12)
		each(a, lanes, "VADDPS Y12, Y%[1]d, Y%[1]d")
		each(a, lanes, "VMOVUPS %[4]d(SP), Y%[2]d")
		each(a, lanes, "VDIVPS Y%[1]d, Y%[2]d, Y%[1]d")
	case "GELU":
		load(a, "rsqrt2", 12)
		load(a, "erfTop", 13)
		load(a, "erfBottom", 14)
		each(a, lanes, "VMOVUPS Y%[1]d, %[4]d(SP)")
		each(a, lanes, "VMULPS Y12, Y%[1]d, Y%[1]d")
		each(a, lanes, "VMINPS Y13, Y%[1]d, Y%[1]d")
		each(a, lanes, "VMAXPS Y14, Y%[1]d, Y%[1]d")
		each(a, lanes, "VMULPS Y%[1]d, Y%[1]d, Y%[2]d")
		load(a, "a13", 12)
		each(a, lanes, "VMOVAPS Y12, Y%[3]d")
		for i, k := range []string{"a11", "a9", "a7", "a5", "a3", "a1"} {
			load(a, k, 13+i%2)
			each(a, lanes, fmt.Sprintf("VFMADD213PS Y%d, Y%%[2]d, Y%%[3]d", 13+i%2))
		}
		each(a, lanes, "VMULPS Y%[1]d, Y%[3]d, Y%[3]d")
		load(a, "b8", 12)
		each(a, lanes, "VMOVAPS Y12, Y%[1]d")
		for i, k := range []string{"b6", "b4", "b2", "b0"} {
			load(a, k, 13+i%2)
			each(a, lanes, fmt.Sprintf("VFMADD213PS Y%d, Y%%[2]d, Y%%[1]d", 13+i%2))
		}
		each(a, lanes, "VDIVPS Y%[1]d, Y%[3]d, Y%[3]d")
		load(a, "half", 12)
		each(a, lanes, "VMULPS %[4]d(SP), Y12, Y%[1]d")
		each(a, lanes, "VFMADD231PS Y%[3]d, Y%[1]d, Y%[1]d")
	case "ReLU":
		a.op("VXORPS Y12, Y12, Y12")
		each(a, lanes, "VMAXPS Y%[1]d, Y12, Y%[1]d")
	}
}

// lanesLoop writes a loop over CX values, a multiple of 8, of which body
// treats lanes*8; step moves the pointers by that many bytes.
func lanesLoop(a *asm, name string, body func(lanes int), step func(bytes int)) {
	for _, lanes := range []int{lanesMax, 1} {
		l := fmt.Sprintf("%s%d", name, lanes)
		a.label(l)
		a.op("CMPQ CX, $%d", 8*lanes)
		a.op("JLT %s_end", l)
		body(lanes)
		step(32 * lanes)
		a.op("SUBQ $%d, CX", 8*lanes)
		a.op("JMP %s", l)
		a.label(l + "_end")
	}
}

// actFunc writes dst[i] = f(src[i]) for a multiple of 8 values.
func actFunc(a *asm, f string) {
	a.text("act"+f+"AVX2", "(dst, src *float32, n int)", spillBytes, 24)
	a.op("MOVQ dst+0(FP), DI")
	a.op("MOVQ src+8(FP), SI")
	a.op("MOVQ n+16(FP), CX")
	lanesLoop(a, "loop", func(lanes int) {
		each(a, lanes, "VMOVUPS %[4]d(SI), Y%[1]d")
		activate(a, f, lanes)
		each(a, lanes, "VMOVUPS Y%[1]d, %[4]d(DI)")
	}, func(bytes int) {
		a.op("ADDQ $%d, SI", bytes)
		a.op("ADDQ $%d, DI", bytes)
	})
	a.op("VZEROUPPER")
	a.op("RET")
}

// actVJP writes dst = dy*s*(1 + x*g'(x)*(1-s)), s = 1/(1 + exp(-g(x))), for a
// multiple of 8 values: the gradient of x*s, whatever g is.
func actVJP(a *asm, f string) {
	a.text("vjp"+f+"AVX2", "(dst, dy, x *float32, n int)", 0, 32)
	a.op("MOVQ dst+0(FP), DI")
	a.op("MOVQ dy+8(FP), R8")
	a.op("MOVQ x+16(FP), SI")
	a.op("MOVQ n+24(FP), CX")
	lanesLoop(a, "loop", func(lanes int) {
		switch f {
		case "SiLU":
			load(a, "minus1", 12)
			each(a, lanes, "VMULPS %[4]d(SI), Y12, Y%[1]d")
		case "QuickGELU":
			load(a, "minusQuick", 12)
			each(a, lanes, "VMULPS %[4]d(SI), Y12, Y%[1]d")
		case "GELUTanh":
			load(a, "tanh3", 12)
			load(a, "tanh1", 13)
			each(a, lanes, "VMOVUPS %[4]d(SI), Y%[1]d")
			each(a, lanes, "VMULPS Y%[1]d, Y%[1]d, Y%[2]d")
			each(a, lanes, "VFMADD213PS Y13, Y12, Y%[2]d")
			each(a, lanes, "VMULPS Y%[2]d, Y%[1]d, Y%[1]d")
		}
		load(a, "expTop", 13)
		each(a, lanes, "VMINPS Y%[1]d, Y13, Y%[1]d") // a NaN stays
		exp(a, lanes)
		load(a, "one", 12)
		each(a, lanes, "VADDPS Y12, Y%[1]d, Y%[1]d")
		each(a, lanes, "VDIVPS Y%[1]d, Y12, Y%[1]d") // s
		each(a, lanes, "VSUBPS Y%[1]d, Y12, Y%[2]d") // 1 - s
		load(a, "lowest", 13)
		each(a, lanes, "VMOVUPS %[4]d(SI), Y%[3]d")
		each(a, lanes, "VMAXPS Y%[3]d, Y13, Y%[3]d")
		switch f { // (1 - s) g'
		case "QuickGELU":
			load(a, "quick", 14)
			each(a, lanes, "VMULPS Y14, Y%[2]d, Y%[2]d")
		case "GELUTanh":
			// x g' = x (p + q x^2); far out 1 - s or s is 0 and x^3 must not overflow.
			load(a, "far", 15)
			each(a, lanes, "VMINPS Y%[3]d, Y15, Y%[3]d")
			load(a, "slope1", 14)
			each(a, lanes, "VMULPS Y14, Y%[2]d, Y%[2]d")
			load(a, "slope3", 15)
			for i := range lanes {
				a.op("VMULPS Y%d, Y%d, Y14", 8+i, 8+i)
				a.op("VFMADD213PS Y12, Y15, Y14")
				a.op("VMULPS Y14, Y%d, Y%d", 4+i, 4+i)
			}
		}
		each(a, lanes, "VFMADD213PS Y12, Y%[3]d, Y%[2]d") // 1 + x g' (1-s)
		each(a, lanes, "VMULPS Y%[2]d, Y%[1]d, Y%[1]d")
		each(a, lanes, "VMULPS %[4]d(R8), Y%[1]d, Y%[1]d")
		each(a, lanes, "VMOVUPS Y%[1]d, %[4]d(DI)")
	}, func(bytes int) {
		for _, r := range []string{"DI", "SI", "R8"} {
			a.op("ADDQ $%d, %s", bytes, r)
		}
	})
	a.op("VZEROUPPER")
	a.op("RET")
}

// tailMask loads the mask of the low CX (1 to 7) lanes into Y15.
func tailMask(a *asm, count, tmp string) {
	a.op("LEAQ elem_mask<>+32(SB), %s", tmp)
	a.op("SHLQ $2, %s", count)
	a.op("SUBQ %s, %s", count, tmp)
	a.op("VMOVUPS (%s), Y15", tmp)
}

// affineFunc writes rows of c values, n of them: dst = f(src*scale + shift).
func affineFunc(a *asm, name string, affine, silu bool) {
	a.text(name+"AVX2", "(dst, src *float32, dstStride, srcStride, n, c int, scale, shift *float32)", spillBytes, 64)
	a.op("MOVQ dst+0(FP), DI")
	a.op("MOVQ src+8(FP), SI")
	a.op("MOVQ dstStride+16(FP), R8")
	a.op("MOVQ srcStride+24(FP), R9")
	a.op("MOVQ n+32(FP), R10")
	a.op("MOVQ c+40(FP), R11")
	if affine {
		a.op("MOVQ scale+48(FP), R12")
		a.op("MOVQ shift+56(FP), R13")
	}
	a.op("SHLQ $2, R8")
	a.op("SHLQ $2, R9")
	a.op("MOVQ R11, DX")
	a.op("ANDQ $7, DX")
	a.op("ANDQ $~7, R11") // values in whole vectors
	a.op("TESTQ DX, DX")
	a.op("JEQ row")
	a.op("MOVQ DX, CX")
	tailMask(a, "CX", "AX")
	a.label("row")
	a.op("XORQ AX, AX")
	a.op("MOVQ R11, CX")
	lanesLoop(a, "loop", func(lanes int) {
		each(a, lanes, "VMOVUPS %[4]d(SI)(AX*1), Y%[1]d")
		if affine {
			each(a, lanes, "VMOVUPS %[4]d(R12)(AX*1), Y%[2]d")
			each(a, lanes, "VFMADD213PS %[4]d(R13)(AX*1), Y%[2]d, Y%[1]d")
		}
		if silu {
			activate(a, "SiLU", lanes)
		}
		each(a, lanes, "VMOVUPS Y%[1]d, %[4]d(DI)(AX*1)")
	}, func(bytes int) { a.op("ADDQ $%d, AX", bytes) })
	a.op("TESTQ DX, DX")
	a.op("JEQ next")
	a.op("VMASKMOVPS (SI)(AX*1), Y15, Y0")
	if affine {
		a.op("VMASKMOVPS (R12)(AX*1), Y15, Y4")
		a.op("VMASKMOVPS (R13)(AX*1), Y15, Y8")
		a.op("VFMADD213PS Y8, Y4, Y0")
	}
	if silu {
		activate(a, "SiLU", 1)
	}
	a.op("VMASKMOVPS Y0, Y15, (DI)(AX*1)")
	a.label("next")
	a.op("ADDQ R8, DI")
	a.op("ADDQ R9, SI")
	a.op("SUBQ $1, R10")
	a.op("JNE row")
	a.op("VZEROUPPER")
	a.op("RET")
}

// chanSums adds rows of c values: 32 channels at a time, then 8, then a tail.
func chanSums(a *asm) {
	a.text("chanSumsAVX2", "(sum, sq, src, shift *float32, stride, n, c int)", 0, 56)
	for i, r := range []string{"DI", "R8", "SI", "R9", "R10", "R11", "R12"} {
		names := strings.Fields("sum sq src shift stride n c")
		a.op("MOVQ %s+%d(FP), %s", names[i], 8*i, r)
	}
	a.op("SHLQ $2, R10")
	block := func(label string, vecs int, masked bool) {
		width := vecs * 8
		a.label(label)
		if masked {
			a.op("CMPQ R12, $0")
			a.op("JEQ done")
			a.op("MOVQ R12, CX")
			tailMask(a, "CX", "AX")
		} else {
			a.op("CMPQ R12, $%d", width)
			a.op("JLT %s_end", label)
		}
		load := func(mem string, r int) {
			if masked {
				a.op("VMASKMOVPS %s, Y15, Y%d", mem, r)
			} else {
				a.op("VMOVUPS %s, Y%d", mem, r)
			}
		}
		for v := range vecs {
			load(fmt.Sprintf("%d(R9)", 32*v), v)
			a.op("VXORPS Y%d, Y%d, Y%d", 4+v, 4+v, 4+v)
			a.op("VXORPS Y%d, Y%d, Y%d", 8+v, 8+v, 8+v)
		}
		a.op("MOVQ SI, AX")
		a.op("MOVQ R11, CX")
		a.label(label + "_px")
		for v := range vecs {
			load(fmt.Sprintf("%d(AX)", 32*v), 12)
			a.op("VSUBPS Y%d, Y12, Y12", v)
			a.op("VADDPS Y12, Y%d, Y%d", 4+v, 4+v)
			a.op("VFMADD231PS Y12, Y12, Y%d", 8+v)
		}
		a.op("ADDQ R10, AX")
		a.op("SUBQ $1, CX")
		a.op("JNE %s_px", label)
		for v := range vecs {
			if masked {
				a.op("VMASKMOVPS Y%d, Y15, %d(DI)", 4+v, 32*v)
				a.op("VMASKMOVPS Y%d, Y15, %d(R8)", 8+v, 32*v)
			} else {
				a.op("VMOVUPS Y%d, %d(DI)", 4+v, 32*v)
				a.op("VMOVUPS Y%d, %d(R8)", 8+v, 32*v)
			}
		}
		if !masked {
			for _, r := range []string{"DI", "R8", "R9", "SI"} {
				a.op("ADDQ $%d, %s", 4*width, r)
			}
			a.op("SUBQ $%d, R12", width)
			a.op("JMP %s", label)
			a.label(label + "_end")
		}
	}
	block("wide", 4, false)
	block("narrow", 1, false)
	block("last", 1, true)
	a.label("done")
	a.op("VZEROUPPER")
	a.op("RET")
}

// sumLanes adds the lanes of Y[r] into the low lane of X[r].
func sumLanes(a *asm, r, t int) {
	a.op("VEXTRACTF128 $1, Y%d, X%d", r, t)
	a.op("VADDPS X%d, X%d, X%d", t, r, r)
	a.op("VMOVHLPS X%d, X%d, X%d", r, r, t)
	a.op("VADDPS X%d, X%d, X%d", t, r, r)
	a.op("VMOVSHDUP X%d, X%d", r, t)
	a.op("VADDSS X%d, X%d, X%d", t, r, r)
}

// expLoop writes exp(x*scale - m) over the CX values at SI, a multiple of 8,
// 0 below -87.3, and the sum into X0. It wants scale at 128(SP) and m at
// 160(SP), 8 times each; the sums are kept at 192(SP).
func expLoop(a *asm) {
	a.op("VXORPS Y0, Y0, Y0")
	a.op("VMOVUPS Y0, 192(SP)")
	lanesLoop(a, "exp", func(lanes int) {
		a.op("VMOVUPS 128(SP), Y12")
		a.op("VMOVUPS 160(SP), Y13")
		each(a, lanes, "VMOVUPS %[4]d(SI), Y%[1]d")
		each(a, lanes, "VFMSUB213PS Y13, Y12, Y%[1]d")
		load(a, "expTop", 14)
		load(a, "expBottom", 15)
		each(a, lanes, "VMINPS Y%[1]d, Y14, Y%[1]d") // a NaN stays
		each(a, lanes, "VCMPPS $9, Y%[1]d, Y15, Y%[2]d")
		each(a, lanes, "VMOVUPS Y%[2]d, %[4]d(SP)") // not bottom >= x
		exp(a, lanes)
		each(a, lanes, "VANDPS %[4]d(SP), Y%[1]d, Y%[1]d")
		each(a, lanes, "VMOVUPS Y%[1]d, %[4]d(SI)")
		if lanes == 4 {
			a.op("VADDPS Y1, Y0, Y0")
			a.op("VADDPS Y3, Y2, Y2")
			a.op("VADDPS Y2, Y0, Y0")
		}
		a.op("VADDPS 192(SP), Y0, Y0")
		a.op("VMOVUPS Y0, 192(SP)")
	}, func(bytes int) { a.op("ADDQ $%d, SI", bytes) })
	a.op("VMOVUPS 192(SP), Y0")
	sumLanes(a, 0, 1)
}

// expRow writes x = exp(x*scale - m) over a multiple of 8 values and gives
// the sum. Arguments below -87.3 give 0.
func expRow(a *asm) {
	a.text("expRowAVX2", "(x *float32, n int, scale, m float32) float32", 224, 28)
	a.op("MOVQ x+0(FP), SI")
	a.op("MOVQ n+8(FP), CX")
	a.op("VBROADCASTSS scale+16(FP), Y4")
	a.op("VMOVUPS Y4, 128(SP)")
	a.op("VBROADCASTSS m+20(FP), Y4")
	a.op("VMOVUPS Y4, 160(SP)")
	expLoop(a)
	a.op("VMOVSS X0, ret+24(FP)")
	a.op("VZEROUPPER")
	a.op("RET")
}

func maxLanes(a *asm) {
	a.op("VEXTRACTF128 $1, Y0, X1")
	a.op("VMAXPS X1, X0, X0")
	a.op("VMOVHLPS X0, X0, X1")
	a.op("VMAXPS X1, X0, X0")
	a.op("VMOVSHDUP X0, X1")
	a.op("VMAXSS X1, X0, X0")
}

// softmaxRows treats rows of n values, a multiple of 8 and pitch bytes apart:
// m = max(top, largest*scale), x = exp(x*scale - m), sum of x. m goes to top,
// the sum to sum. Every row must have a finite m.
func softmaxRows(a *asm) {
	a.text("softmaxRowsAVX2", "(x *float32, pitch, rows, n int, scale float32, top, sum *float32)", 224, 56)
	a.op("MOVQ x+0(FP), DI")
	a.op("MOVQ pitch+8(FP), R8")
	a.op("MOVQ rows+16(FP), R9")
	a.op("MOVQ top+40(FP), R10")
	a.op("MOVQ sum+48(FP), R11")
	a.op("VBROADCASTSS scale+32(FP), Y4")
	a.op("VMOVUPS Y4, 128(SP)")
	a.label("row")
	a.op("MOVQ n+24(FP), CX")
	a.op("MOVQ DI, SI")
	a.op("VMOVUPS (SI), Y0")
	a.label("max")
	a.op("VMAXPS (SI), Y0, Y0")
	a.op("ADDQ $32, SI")
	a.op("SUBQ $8, CX")
	a.op("JNE max")
	maxLanes(a)
	a.op("VMULSS 128(SP), X0, X0")
	a.op("VMAXSS (R10), X0, X0")
	a.op("VMOVSS X0, (R10)")
	a.op("VBROADCASTSS X0, Y4")
	a.op("VMOVUPS Y4, 160(SP)")
	a.op("MOVQ n+24(FP), CX")
	a.op("MOVQ DI, SI")
	expLoop(a)
	a.op("VMOVSS X0, (R11)")
	a.op("ADDQ $4, R10")
	a.op("ADDQ $4, R11")
	a.op("ADDQ R8, DI")
	a.op("SUBQ $1, R9")
	a.op("JNE row")
	a.op("VZEROUPPER")
	a.op("RET")
}

// transpose8 writes the 8 rows of n values at src, a multiple of 8 and
// srcStride bytes apart, as n rows of 8 at dst, dstStride bytes apart.
func transpose8(a *asm) {
	a.text("transpose8AVX2", "(dst, src *float32, dstStride, srcStride, n int)", 0, 40)
	a.op("MOVQ dst+0(FP), DI")
	a.op("MOVQ src+8(FP), SI")
	a.op("MOVQ dstStride+16(FP), R8")
	a.op("MOVQ srcStride+24(FP), R9")
	a.op("MOVQ n+32(FP), CX")
	a.op("LEAQ (R9)(R9*2), R10")
	a.op("LEAQ (R8)(R8*2), R11")
	a.label("loop")
	a.op("LEAQ (SI)(R9*4), AX")
	a.op("LEAQ (DI)(R8*4), BX")
	for i, m := range []string{"(SI)", "(SI)(R9*1)", "(SI)(R9*2)", "(SI)(R10*1)", "(AX)", "(AX)(R9*1)", "(AX)(R9*2)", "(AX)(R10*1)"} {
		a.op("VMOVUPS %s, Y%d", m, i)
	}
	for i := range 4 {
		a.op("VUNPCKLPS Y%d, Y%d, Y%d", 2*i+1, 2*i, 8+2*i)
		a.op("VUNPCKHPS Y%d, Y%d, Y%d", 2*i+1, 2*i, 9+2*i)
	}
	// Y8: r0r1 low, Y9: r0r1 high, Y10: r2r3 low ...
	for h := range 2 {
		x := 8 + 4*h
		a.op("VUNPCKLPD Y%d, Y%d, Y%d", x+2, x, 4*h)
		a.op("VUNPCKHPD Y%d, Y%d, Y%d", x+2, x, 4*h+1)
		a.op("VUNPCKLPD Y%d, Y%d, Y%d", x+3, x+1, 4*h+2)
		a.op("VUNPCKHPD Y%d, Y%d, Y%d", x+3, x+1, 4*h+3)
	}
	mem := []string{"(DI)", "(DI)(R8*1)", "(DI)(R8*2)", "(DI)(R11*1)", "(BX)", "(BX)(R8*1)", "(BX)(R8*2)", "(BX)(R11*1)"}
	for i := range 4 {
		a.op("VPERM2F128 $0x20, Y%d, Y%d, Y8", 4+i, i)
		a.op("VPERM2F128 $0x31, Y%d, Y%d, Y9", 4+i, i)
		a.op("VMOVUPS Y8, %s", mem[i])
		a.op("VMOVUPS Y9, %s", mem[4+i])
	}
	a.op("ADDQ $32, SI")
	a.op("LEAQ (DI)(R8*8), DI")
	a.op("SUBQ $8, CX")
	a.op("JNE loop")
	a.op("VZEROUPPER")
	a.op("RET")
}

func maxRow(a *asm) {
	a.text("maxRowAVX2", "(x *float32, n int) float32", 0, 20)
	a.op("MOVQ x+0(FP), DI")
	a.op("MOVQ n+8(FP), CX")
	a.op("VMOVUPS %s, Y0", cst("negInf"))
	a.label("loop")
	a.op("VMAXPS (DI), Y0, Y0")
	a.op("ADDQ $32, DI")
	a.op("SUBQ $8, CX")
	a.op("JNE loop")
	maxLanes(a)
	a.op("VMOVSS X0, ret+16(FP)")
	a.op("VZEROUPPER")
	a.op("RET")
}

func binary(a *asm) {
	a.text("addAVX2", "(dst, a, b *float32, n int, scale float32)", 0, 36)
	a.op("MOVQ dst+0(FP), DI")
	a.op("MOVQ a+8(FP), SI")
	a.op("MOVQ b+16(FP), DX")
	a.op("MOVQ n+24(FP), CX")
	a.op("VBROADCASTSS scale+32(FP), Y2")
	a.label("loop")
	a.op("VMOVUPS (SI), Y0")
	a.op("VADDPS (DX), Y0, Y0")
	a.op("VMULPS Y2, Y0, Y0")
	a.op("VMOVUPS Y0, (DI)")
	a.op("ADDQ $32, DI")
	a.op("ADDQ $32, SI")
	a.op("ADDQ $32, DX")
	a.op("SUBQ $8, CX")
	a.op("JNE loop")
	a.op("VZEROUPPER")
	a.op("RET")

	a.text("scaleAVX2", "(dst *float32, n int, s float32)", 0, 20)
	a.op("MOVQ dst+0(FP), DI")
	a.op("MOVQ n+8(FP), CX")
	a.op("VBROADCASTSS s+16(FP), Y2")
	a.label("loop")
	a.op("VMULPS (DI), Y2, Y0")
	a.op("VMOVUPS Y0, (DI)")
	a.op("ADDQ $32, DI")
	a.op("SUBQ $8, CX")
	a.op("JNE loop")
	a.op("VZEROUPPER")
	a.op("RET")
}

// mulAddRows writes rows of c values, a multiple of 8: dst = x + y*g, or y*g
// where x is nil. Row lengths are in bytes.
func mulAddRows(a *asm) {
	a.text("mulAddRowsAVX2", "(dst, x, y, gate *float32, ldDst, ldX, ldY, ldGate, rows, c int)", 0, 80)
	for i, r := range []string{"DI", "SI", "DX", "BX", "R8", "R9", "R10", "R11", "R12", "CX"} {
		names := strings.Fields("dst x y gate ldDst ldX ldY ldGate rows c")
		a.op("MOVQ %s+%d(FP), %s", names[i], 8*i, r)
	}
	a.op("SHLQ $2, CX")
	for _, plain := range []bool{false, true} {
		name := "row"
		if plain {
			name = "plain"
		} else {
			a.op("TESTQ SI, SI")
			a.op("JEQ plain")
		}
		a.label(name)
		a.op("XORQ AX, AX")
		a.label(name + "_loop")
		a.op("VMOVUPS (DX)(AX*1), Y0")
		a.op("VMULPS (BX)(AX*1), Y0, Y0")
		if !plain {
			a.op("VADDPS (SI)(AX*1), Y0, Y0")
		}
		a.op("VMOVUPS Y0, (DI)(AX*1)")
		a.op("ADDQ $32, AX")
		a.op("CMPQ AX, CX")
		a.op("JLT %s_loop", name)
		a.op("ADDQ R8, DI")
		a.op("ADDQ R9, SI")
		a.op("ADDQ R10, DX")
		a.op("ADDQ R11, BX")
		a.op("SUBQ $1, R12")
		a.op("JNE %s", name)
		a.op("VZEROUPPER")
		a.op("RET")
	}
}

// moments gives the sum of (x - k) and of its square over a multiple of 8.
func moments(a *asm) {
	a.text("momentsAVX2", "(x *float32, n int, k float32) (sum, sq float32)", 0, 32)
	a.op("MOVQ x+0(FP), SI")
	a.op("MOVQ n+8(FP), CX")
	a.op("VBROADCASTSS k+16(FP), Y12")
	for i := range lanesMax {
		a.op("VXORPS Y%d, Y%d, Y%d", 4+i, 4+i, 4+i)
		a.op("VXORPS Y%d, Y%d, Y%d", 8+i, 8+i, 8+i)
	}
	lanesLoop(a, "loop", func(lanes int) {
		each(a, lanes, "VMOVUPS %[4]d(SI), Y%[1]d")
		each(a, lanes, "VSUBPS Y12, Y%[1]d, Y%[1]d")
		each(a, lanes, "VADDPS Y%[1]d, Y%[2]d, Y%[2]d")
		each(a, lanes, "VFMADD231PS Y%[1]d, Y%[1]d, Y%[3]d")
	}, func(bytes int) { a.op("ADDQ $%d, SI", bytes) })
	for _, r := range []int{4, 8} {
		a.op("VADDPS Y%d, Y%d, Y%d", r+1, r, r)
		a.op("VADDPS Y%d, Y%d, Y%d", r+3, r+2, r+2)
		a.op("VADDPS Y%d, Y%d, Y%d", r+2, r, r)
		sumLanes(a, r, 3)
	}
	a.op("VMOVSS X4, sum+24(FP)")
	a.op("VMOVSS X8, sq+28(FP)")
	a.op("VZEROUPPER")
	a.op("RET")
}

// normRow writes (x - mean)*rstd*gamma + beta over a multiple of 8.
func normRow(a *asm) {
	a.text("normRowAVX2", "(dst, x, gamma, beta *float32, n int, mean, rstd float32)", 0, 48)
	a.op("MOVQ dst+0(FP), DI")
	a.op("MOVQ x+8(FP), SI")
	a.op("MOVQ gamma+16(FP), R8")
	a.op("MOVQ beta+24(FP), R9")
	a.op("MOVQ n+32(FP), CX")
	a.op("VBROADCASTSS mean+40(FP), Y12")
	a.op("VBROADCASTSS rstd+44(FP), Y13")
	a.op("XORQ AX, AX")
	lanesLoop(a, "loop", func(lanes int) {
		each(a, lanes, "VMOVUPS %[4]d(SI)(AX*1), Y%[1]d")
		each(a, lanes, "VSUBPS Y12, Y%[1]d, Y%[1]d")
		each(a, lanes, "VMULPS Y13, Y%[1]d, Y%[1]d")
		a.op("TESTQ R8, R8")
		a.op("JEQ plain%d", lanes)
		each(a, lanes, "VMULPS %[4]d(R8)(AX*1), Y%[1]d, Y%[1]d")
		a.label(fmt.Sprintf("plain%d", lanes))
		a.op("TESTQ R9, R9")
		a.op("JEQ store%d", lanes)
		each(a, lanes, "VADDPS %[4]d(R9)(AX*1), Y%[1]d, Y%[1]d")
		a.label(fmt.Sprintf("store%d", lanes))
		each(a, lanes, "VMOVUPS Y%[1]d, %[4]d(DI)(AX*1)")
	}, func(bytes int) { a.op("ADDQ $%d, AX", bytes) })
	a.op("VZEROUPPER")
	a.op("RET")
}

// roundBits turns Y0 into the upper halves of its bfloat16 rounding, to
// nearest even; a NaN becomes the quiet one. Y1 to Y3 are used.
func roundBits(a *asm) {
	a.op("VPSRLD $16, Y0, Y1")
	a.op("VPAND elem_int1<>+0(SB), Y1, Y1")
	a.op("VPADDD elem_half16<>+0(SB), Y1, Y1")
	a.op("VCMPPS $3, Y0, Y0, Y2") // unordered
	a.op("VPADDD Y0, Y1, Y0")
	a.op("VMOVDQU elem_quiet<>+0(SB), Y3")
	a.op("VBLENDVPS Y2, Y3, Y0, Y0")
}

// bf16Funcs writes the two forms of rounding: n values, a multiple of 16, to
// n bfloat16, and n values, a multiple of 8, in place.
func bf16Funcs(a *asm) {
	a.text("toBF16AVX2", "(dst *uint16, src *float32, n int)", 0, 24)
	a.op("MOVQ dst+0(FP), DI")
	a.op("MOVQ src+8(FP), SI")
	a.op("MOVQ n+16(FP), CX")
	a.label("loop")
	a.op("VMOVUPS (SI), Y0")
	roundBits(a)
	a.op("VPSRLD $16, Y0, Y4")
	a.op("VMOVUPS 32(SI), Y0")
	roundBits(a)
	a.op("VPSRLD $16, Y0, Y0")
	a.op("VPACKUSDW Y0, Y4, Y0")
	a.op("VPERMQ $0xd8, Y0, Y0")
	a.op("VMOVDQU Y0, (DI)")
	a.op("ADDQ $64, SI")
	a.op("ADDQ $32, DI")
	a.op("SUBQ $16, CX")
	a.op("JNE loop")
	a.op("VZEROUPPER")
	a.op("RET")

	a.text("roundBF16AVX2", "(x *float32, n int)", 0, 16)
	a.op("MOVQ x+0(FP), DI")
	a.op("MOVQ n+8(FP), CX")
	a.op("VMOVDQU elem_high16<>+0(SB), Y4")
	a.label("loop")
	a.op("VMOVUPS (DI), Y0")
	roundBits(a)
	a.op("VPAND Y4, Y0, Y0")
	a.op("VMOVUPS Y0, (DI)")
	a.op("ADDQ $32, DI")
	a.op("SUBQ $8, CX")
	a.op("JNE loop")
	a.op("VZEROUPPER")
	a.op("RET")
}

// widenFuncs writes the way from 16 bits to float32, n values, a multiple of
// 8: of bfloat16, and of IEEE half precision.
func widenFuncs(a *asm) {
	for _, half := range []bool{false, true} {
		name := "widenBF16AVX2"
		if half {
			name = "widenF16AVX2"
		}
		a.text(name, "(dst *float32, src *uint16, n int)", 0, 24)
		a.op("MOVQ dst+0(FP), DI")
		a.op("MOVQ src+8(FP), SI")
		a.op("MOVQ n+16(FP), CX")
		a.label("loop")
		if half {
			a.op("VCVTPH2PS (SI), Y0")
		} else {
			a.op("VPMOVZXWD (SI), Y0")
			a.op("VPSLLD $16, Y0, Y0")
		}
		a.op("VMOVDQU Y0, (DI)")
		a.op("ADDQ $16, SI")
		a.op("ADDQ $32, DI")
		a.op("SUBQ $8, CX")
		a.op("JNE loop")
		a.op("VZEROUPPER")
		a.op("RET")
	}
}

// toF16 rounds n values, a multiple of 8, to IEEE half precision.
func toF16(a *asm) {
	a.text("toF16AVX2", "(dst *uint16, src *float32, n int)", 0, 24)
	a.op("MOVQ dst+0(FP), DI")
	a.op("MOVQ src+8(FP), SI")
	a.op("MOVQ n+16(FP), CX")
	a.label("loop")
	a.op("VMOVUPS (SI), Y0")
	a.op("VCVTPS2PH $0, Y0, (DI)")
	a.op("ADDQ $32, SI")
	a.op("ADDQ $16, DI")
	a.op("SUBQ $8, CX")
	a.op("JNE loop")
	a.op("VZEROUPPER")
	a.op("RET")
}

// pairRows writes rows of n slots, a multiple of 8, of two bfloat16: the lower
// halves hold a row of x, the upper ones the next row, ld bytes further.
func pairRows(a *asm) {
	a.text("pairRowsAVX2", "(dst *uint32, x *float32, ld, rows, n int)", 0, 40)
	a.op("MOVQ dst+0(FP), DI")
	a.op("MOVQ x+8(FP), SI")
	a.op("MOVQ ld+16(FP), R8")
	a.op("MOVQ rows+24(FP), R9")
	a.op("MOVQ n+32(FP), R10")
	a.op("SHLQ $2, R10")
	a.op("VMOVDQU elem_high16<>+0(SB), Y5")
	a.label("row")
	a.op("LEAQ (SI)(R8*1), DX")
	a.op("LEAQ (DX)(R8*8), R11")
	a.op("LEAQ (SI)(R8*8), BX") // rows far apart are not foreseen by the processor
	a.op("XORQ AX, AX")
	a.label("loop")
	a.op("PREFETCHT0 (BX)(AX*1)")
	a.op("VMOVUPS (SI)(AX*1), Y0")
	roundBits(a)
	a.op("VPSRLD $16, Y0, Y4")
	a.op("PREFETCHT0 (R11)(AX*1)")
	a.op("VMOVUPS (DX)(AX*1), Y0")
	roundBits(a)
	a.op("VPAND Y5, Y0, Y0")
	a.op("VPOR Y4, Y0, Y0")
	a.op("VMOVDQU Y0, (DI)")
	a.op("ADDQ $32, DI")
	a.op("ADDQ $32, AX")
	a.op("CMPQ AX, R10")
	a.op("JLT loop")
	a.op("LEAQ (SI)(R8*2), SI")
	a.op("SUBQ $1, R9")
	a.op("JNE row")
	a.op("VZEROUPPER")
	a.op("RET")
}

// depthwise writes one pixel of c channels, a multiple of 8:
// dst = bias + sum over n taps of the value at src + at[i] times w + wAt[i],
// offsets in bytes.
func depthwise(a *asm) {
	a.text("depthwiseAVX2", "(dst, src, w, bias *float32, taps *tapAt, n, c int)", 0, 56)
	for i, r := range []string{"DI", "SI", "R8", "R9", "R10", "R11", "R12"} {
		names := strings.Fields("dst src w bias taps n c")
		a.op("MOVQ %s+%d(FP), %s", names[i], 8*i, r)
	}
	for _, vecs := range []int{4, 1} {
		l := fmt.Sprintf("vec%d", vecs)
		a.label(l)
		a.op("CMPQ R12, $%d", 8*vecs)
		a.op("JLT %s_end", l)
		for v := range vecs {
			a.op("VMOVUPS %d(R9), Y%d", 32*v, v)
		}
		a.op("MOVQ R10, DX")
		a.op("MOVQ R11, CX")
		a.op("TESTQ CX, CX")
		a.op("JEQ %s_store", l)
		a.label(l + "_tap")
		a.op("MOVQ (DX), AX")
		a.op("MOVQ 8(DX), BX")
		for v := range vecs {
			a.op("VMOVUPS %d(R8)(BX*1), Y%d", 32*v, 4+v)
			a.op("VFMADD231PS %d(SI)(AX*1), Y%d, Y%d", 32*v, 4+v, v)
		}
		a.op("ADDQ $16, DX")
		a.op("SUBQ $1, CX")
		a.op("JNE %s_tap", l)
		a.label(l + "_store")
		for v := range vecs {
			a.op("VMOVUPS Y%d, %d(DI)", v, 32*v)
		}
		for _, r := range []string{"DI", "SI", "R8", "R9"} {
			a.op("ADDQ $%d, %s", 32*vecs, r)
		}
		a.op("SUBQ $%d, R12", 8*vecs)
		a.op("JMP %s", l)
		a.label(l + "_end")
	}
	a.op("VZEROUPPER")
	a.op("RET")
}
