package main

import (
	"fmt"
	"math"
	"strings"
)

// The elementwise functions that cost most, for AVX-512: twice the lanes,
// VSCALEFPS for powers of two, masks for tails, and constants as broadcast
// operands. Value i of a group lies in Z[i] with temporaries Z[8+i] and
// Z[16+i]; Z30 and Z31 hold what a function needs throughout.

var elem512Consts = []struct {
	name string
	v    float64
}{
	// Below bottom exp is 0 in float32, whatever the polynomial says.
	{"bottom", -104},
	{"minusQuick", -1.702},
}

func cst512(name string) string {
	for _, c := range elem512Consts {
		if c.name == name {
			return "e512_" + name + "<>+0(SB)"
		}
	}
	for _, c := range elemConsts {
		if c.name == name {
			return "e512_" + name + "<>+0(SB)"
		}
	}
	panic("no constant " + name)
}

func elem512File() []byte {
	a := newFile()
	a.raw("\n")
	seen := map[string]bool{}
	for _, list := range [][]struct {
		name string
		v    float64
	}{elem512Consts, elemConsts} {
		for _, c := range list {
			if !seen[c.name] {
				seen[c.name] = true
				fmt.Fprintf(a, "DATA e512_%s<>+0(SB)/4, $0x%08x\nGLOBL e512_%s<>(SB), RODATA|NOPTR, $4\n", c.name, math.Float32bits(float32(c.v)), c.name)
			}
		}
	}
	for _, f := range []string{"SiLU", "QuickGELU", "GELUTanh", "GELU"} {
		rowsFunc512(a, "rows"+f, f, false)
	}
	rowsFunc512(a, "affineSiLU", "SiLU", true)
	softmaxRows512(a, "softmaxRowsAVX512", false)
	softmaxRows512(a, "softmaxRowsBF16", true)
	toBF16(a)
	return a.Bytes()
}

// each512 is each for the registers of this file.
func each512(a *asm, lanes int, format string) {
	for i := range lanes {
		a.op(format+"%[5]s", i, 8+i, 16+i, 64*i, "")
	}
}

// exp512 replaces the lanes by their exponentials: exact powers of two times
// the polynomial of Cephes' expf, 1e-7 relative, 0 below -104. A NaN stays.
func exp512(a *asm, lanes int) {
	each512(a, lanes, "VMAXPS Z%[1]d, Z31, Z%[1]d")
	each512(a, lanes, "VMULPS.BCST "+cst512("log2e")+", Z%[1]d, Z%[2]d")
	each512(a, lanes, "VRNDSCALEPS $8, Z%[2]d, Z%[2]d")
	each512(a, lanes, "VFNMADD231PS.BCST "+cst512("ln2hi")+", Z%[2]d, Z%[1]d")
	each512(a, lanes, "VFNMADD231PS.BCST "+cst512("ln2lo")+", Z%[2]d, Z%[1]d")
	each512(a, lanes, "VBROADCASTSS "+cst512("exp0")+", Z%[3]d")
	for i := 1; i < 6; i++ {
		each512(a, lanes, fmt.Sprintf("VFMADD213PS.BCST %s, Z%%[1]d, Z%%[3]d", cst512(fmt.Sprint("exp", i))))
	}
	// p*x*x + x + 1
	each512(a, lanes, "VMULPS Z%[1]d, Z%[3]d, Z%[3]d")
	each512(a, lanes, "VFMADD213PS Z%[1]d, Z%[3]d, Z%[1]d")
	each512(a, lanes, "VADDPS.BCST "+cst512("one")+", Z%[1]d, Z%[1]d")
	each512(a, lanes, "VSCALEFPS Z%[2]d, Z%[1]d, Z%[1]d")
}

func prepare512(a *asm) { a.op("VBROADCASTSS %s, Z31", cst512("bottom")) }

// activate512 replaces the lanes by f of them; Z24 on are used.
func activate512(a *asm, f string, lanes int) {
	keep := func(i int) int { return 24 + i } // room for the argument
	switch f {
	case "SiLU", "QuickGELU", "GELUTanh":
		// x / (1 + exp(-g(x)))
		for i := range lanes {
			// -1e38 is far below zero over 1 + exp(88). A NaN stays.
			a.op("VBROADCASTSS %s, Z%d", cst512("lowest"), keep(i))
			a.op("VMAXPS Z%d, Z%d, Z%d", i, keep(i), keep(i))
		}
		switch f {
		case "SiLU":
			each512(a, lanes, "VMULPS.BCST "+cst512("minus1")+", Z%[1]d, Z%[1]d")
		case "QuickGELU":
			each512(a, lanes, "VMULPS.BCST "+cst512("minusQuick")+", Z%[1]d, Z%[1]d")
		default:
			each512(a, lanes, "VMULPS Z%[1]d, Z%[1]d, Z%[2]d")
			each512(a, lanes, "VBROADCASTSS "+cst512("tanh3")+", Z%[3]d")
			each512(a, lanes, "VFMADD213PS.BCST "+cst512("tanh1")+", Z%[3]d, Z%[2]d")
			each512(a, lanes, "VMULPS Z%[2]d, Z%[1]d, Z%[1]d")
		}
		each512(a, lanes, "VBROADCASTSS "+cst512("expTop")+", Z%[2]d")
		each512(a, lanes, "VMINPS Z%[1]d, Z%[2]d, Z%[1]d")
		exp512(a, lanes)
		each512(a, lanes, "VADDPS.BCST "+cst512("one")+", Z%[1]d, Z%[1]d")
		for i := range lanes {
			a.op("VDIVPS Z%d, Z%d, Z%d", i, keep(i), i)
		}
	case "GELU":
		for i := range lanes {
			a.op("VMOVAPS Z%d, Z%d", i, keep(i))
		}
		each512(a, lanes, "VMULPS.BCST "+cst512("rsqrt2")+", Z%[1]d, Z%[1]d")
		each512(a, lanes, "VBROADCASTSS "+cst512("erfTop")+", Z%[2]d")
		each512(a, lanes, "VMINPS Z%[1]d, Z%[2]d, Z%[1]d")
		each512(a, lanes, "VBROADCASTSS "+cst512("erfBottom")+", Z%[2]d")
		each512(a, lanes, "VMAXPS Z%[1]d, Z%[2]d, Z%[1]d")
		each512(a, lanes, "VMULPS Z%[1]d, Z%[1]d, Z%[2]d")
		each512(a, lanes, "VBROADCASTSS "+cst512("a13")+", Z%[3]d")
		for _, k := range []string{"a11", "a9", "a7", "a5", "a3", "a1"} {
			each512(a, lanes, "VFMADD213PS.BCST "+cst512(k)+", Z%[2]d, Z%[3]d")
		}
		each512(a, lanes, "VMULPS Z%[1]d, Z%[3]d, Z%[3]d")
		each512(a, lanes, "VBROADCASTSS "+cst512("b8")+", Z%[1]d")
		for _, k := range []string{"b6", "b4", "b2", "b0"} {
			each512(a, lanes, "VFMADD213PS.BCST "+cst512(k)+", Z%[2]d, Z%[1]d")
		}
		each512(a, lanes, "VDIVPS Z%[1]d, Z%[3]d, Z%[3]d")
		for i := range lanes {
			a.op("VMULPS.BCST %s, Z%d, Z%d", cst512("half"), keep(i), i)
		}
		each512(a, lanes, "VFMADD231PS Z%[3]d, Z%[1]d, Z%[1]d")
	}
}

// mask512 sets K1 to the low lanes that the register count, 1 to 15, names;
// CX must be free.
func mask512(a *asm, count string) {
	if count != "CX" {
		a.op("MOVQ %s, CX", count)
	}
	a.op("MOVL $1, AX")
	a.op("SHLL CX, AX")
	a.op("SUBL $1, AX")
	a.op("KMOVW AX, K1")
}

// rowsFunc512 writes rows of c values, n of them: dst = f(src), or with affine
// f(src*scale + shift). Strides are in values.
func rowsFunc512(a *asm, name, f string, affine bool) {
	args, names := "dst, src *float32, dstStride, srcStride, n, c int", strings.Fields("dst src dstStride srcStride n c")
	if affine {
		args, names = args+", scale, shift *float32", append(names, "scale", "shift")
	}
	a.text(name+"AVX512", "("+args+")", 0, 8*len(names))
	for i, n := range names {
		a.op("MOVQ %s+%d(FP), %s", n, 8*i, []string{"DI", "SI", "R8", "R9", "R10", "R11", "R12", "R13"}[i])
	}
	a.op("SHLQ $2, R8")
	a.op("SHLQ $2, R9")
	prepare512(a)
	a.op("MOVQ R11, DX")
	a.op("ANDQ $15, DX")
	a.op("ANDQ $~15, R11") // values in whole vectors
	mask512(a, "DX")
	a.label("row")
	a.op("XORQ AX, AX")
	a.op("MOVQ R11, CX")
	for _, lanes := range []int{4, 1} {
		l := fmt.Sprintf("loop%d", lanes)
		a.label(l)
		a.op("CMPQ CX, $%d", 16*lanes)
		a.op("JLT %s_end", l)
		each512(a, lanes, "VMOVUPS %[4]d(SI)(AX*1), Z%[1]d")
		if affine {
			each512(a, lanes, "VMOVUPS %[4]d(R12)(AX*1), Z%[2]d")
			each512(a, lanes, "VFMADD213PS %[4]d(R13)(AX*1), Z%[2]d, Z%[1]d")
		}
		activate512(a, f, lanes)
		each512(a, lanes, "VMOVUPS Z%[1]d, %[4]d(DI)(AX*1)")
		a.op("ADDQ $%d, AX", 64*lanes)
		a.op("SUBQ $%d, CX", 16*lanes)
		a.op("JMP %s", l)
		a.label(l + "_end")
	}
	a.op("TESTQ DX, DX")
	a.op("JEQ next")
	a.op("VMOVUPS.Z (SI)(AX*1), K1, Z0")
	if affine {
		a.op("VMOVUPS.Z (R12)(AX*1), K1, Z8")
		a.op("VMOVUPS.Z (R13)(AX*1), K1, Z16")
		a.op("VFMADD213PS Z16, Z8, Z0")
	}
	activate512(a, f, 1)
	a.op("VMOVUPS Z0, K1, (DI)(AX*1)")
	a.label("next")
	a.op("ADDQ R8, DI")
	a.op("ADDQ R9, SI")
	a.op("SUBQ $1, R10")
	a.op("JNE row")
	a.op("VZEROUPPER")
	a.op("RET")
}

// reduce512 folds Z[r] to X[r] with a two-operand instruction; Z9 is used.
func reduce512(a *asm, ins string, r int) {
	a.op("VEXTRACTF64X4 $1, Z%d, Y9", r)
	a.op("V%sPS Y9, Y%d, Y%d", ins, r, r)
	a.op("VEXTRACTF128 $1, Y%d, X9", r)
	a.op("V%sPS X9, X%d, X%d", ins, r, r)
	a.op("VMOVHLPS X%d, X%d, X9", r, r)
	a.op("V%sPS X9, X%d, X%d", ins, r, r)
	a.op("VMOVSHDUP X%d, X9", r)
	a.op("V%sSS X9, X%d, X%d", ins, r, r)
}

// softmaxRows512 is softmaxRows for rows of a multiple of 32 values. With half
// the row is written over by as many bfloat16; the sum is of the float32.
func softmaxRows512(a *asm, name string, half bool) {
	a.text(name, "(x *float32, pitch, rows, n int, scale float32, top, sum *float32)", 0, 56)
	a.op("MOVQ x+0(FP), DI")
	a.op("MOVQ pitch+8(FP), R8")
	a.op("MOVQ rows+16(FP), R9")
	a.op("MOVQ n+24(FP), R12")
	a.op("VBROADCASTSS scale+32(FP), Z30")
	a.op("MOVQ top+40(FP), R10")
	a.op("MOVQ sum+48(FP), R11")
	prepare512(a)
	a.label("row")
	a.op("MOVQ R12, CX")
	a.op("MOVQ DI, SI")
	a.op("VMOVUPS (SI), Z0")
	a.op("VMOVUPS 64(SI), Z1")
	a.label("max")
	a.op("VMAXPS (SI), Z0, Z0")
	a.op("VMAXPS 64(SI), Z1, Z1")
	a.op("ADDQ $128, SI")
	a.op("SUBQ $32, CX")
	a.op("JNE max")
	a.op("VMAXPS Z1, Z0, Z0")
	reduce512(a, "MAX", 0)
	a.op("VMULSS X30, X0, X0")
	a.op("VMAXSS (R10), X0, X0")
	a.op("VMOVSS X0, (R10)")
	a.op("VBROADCASTSS X0, Z29")
	a.op("VPXORQ Z28, Z28, Z28")
	a.op("MOVQ R12, CX")
	a.op("MOVQ DI, SI")
	a.op("MOVQ DI, DX")
	for _, lanes := range []int{8, 2} {
		l := fmt.Sprintf("exp%d", lanes)
		a.label(l)
		a.op("CMPQ CX, $%d", 16*lanes)
		a.op("JLT %s_end", l)
		each512(a, lanes, "VMOVUPS %[4]d(SI), Z%[1]d")
		each512(a, lanes, "VFMSUB213PS Z29, Z30, Z%[1]d")
		exp512(a, lanes)
		if half {
			for i := 0; i < lanes; i += 2 {
				narrowPair(a, 8+i, i, i+1)
				a.op("VMOVDQU64 Z%d, %d(DX)", 8+i, 32*i)
			}
			a.op("ADDQ $%d, DX", 32*lanes)
		} else {
			each512(a, lanes, "VMOVUPS Z%[1]d, %[4]d(SI)")
		}
		for w := lanes / 2; w > 0; w /= 2 {
			for i := range w {
				a.op("VADDPS Z%d, Z%d, Z%d", i+w, i, i)
			}
		}
		a.op("VADDPS Z0, Z28, Z28")
		a.op("ADDQ $%d, SI", 64*lanes)
		a.op("SUBQ $%d, CX", 16*lanes)
		a.op("JMP %s", l)
		a.label(l + "_end")
	}
	a.op("VMOVAPS Z28, Z0")
	reduce512(a, "ADD", 0)
	a.op("VMOVSS X0, (R11)")
	a.op("ADDQ $4, R10")
	a.op("ADDQ $4, R11")
	a.op("ADDQ R8, DI")
	a.op("SUBQ $1, R9")
	a.op("JNE row")
	a.op("VZEROUPPER")
	a.op("RET")
}

// toBF16 writes rows of c values, a multiple of 32, as bfloat16. Row lengths
// are in bytes.
func toBF16(a *asm) {
	a.text("toBF16RowsBF16", "(dst *uint16, src *float32, ldDst, ldSrc, rows, c int)", 0, 48)
	for i, r := range []string{"DI", "SI", "R8", "R9", "R10", "R11"} {
		names := strings.Fields("dst src ldDst ldSrc rows c")
		a.op("MOVQ %s+%d(FP), %s", names[i], 8*i, r)
	}
	a.op("MOVQ R9, R12")
	a.op("SHLQ $3, R12") // rows far apart are not foreseen by the processor
	a.label("row")
	a.op("MOVQ DI, DX")
	a.op("MOVQ SI, BX")
	a.op("MOVQ R11, CX")
	a.label("loop")
	a.op("PREFETCHT0 (BX)(R12*1)")
	a.op("PREFETCHT0 64(BX)(R12*1)")
	a.op("VMOVUPS (BX), Z0")
	a.op("VMOVUPS 64(BX), Z1")
	narrowPair(a, 2, 0, 1)
	a.op("VMOVDQU64 Z2, (DX)")
	a.op("ADDQ $128, BX")
	a.op("ADDQ $64, DX")
	a.op("SUBQ $32, CX")
	a.op("JNE loop")
	a.op("ADDQ R8, DI")
	a.op("ADDQ R9, SI")
	a.op("SUBQ $1, R10")
	a.op("JNE row")
	a.op("VZEROUPPER")
	a.op("RET")
}

// narrowPair writes VCVTNE2PS2BF16, which the assembler does not know: the
// lower half of dst becomes low, the upper half high. Registers below 16.
// EVEX.512.F2.0F38.W0 72 /r.
func narrowPair(a *asm, dst, low, high int) {
	inv := func(v int) byte { return byte(^v & 1) }
	code := []byte{0x62, inv(dst>>3)<<7 | 1<<6 | inv(low>>3)<<5 | 1<<4 | 2, byte(^high&15)<<3 | 4 | 3, 0x48, 0x72, byte(0xc0 | dst&7<<3 | low&7)}
	a.bytes(code, "VCVTNE2PS2BF16 Z%d, Z%d, Z%d", low, high, dst)
}
