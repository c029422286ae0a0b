package main

import "fmt"

// isa describes a vector unit as the matrix kernels see it.
type isa struct {
	name string
	reg  string // vector register prefix
	vl   int    // float32 per register
	vecs int    // registers per tile row
	mr   int    // most rows of a tile
	es   int    // bytes per left element that is broadcast
	fma  func(a *asm, x, y, acc int)
	zero string // how a register is cleared
}

var avx2 = isa{name: "AVX2", reg: "Y", vl: 8, vecs: 2, mr: 6, es: 4, zero: "VXORPS"}

// avx2Narrow is for layers of few output channels.
var avx2Narrow = isa{name: "Narrow", reg: "Y", vl: 8, vecs: 1, mr: 12, es: 4, zero: "VXORPS"}

var avx512 = isa{name: "AVX512", reg: "Z", vl: 16, vecs: 2, mr: 12, es: 4, zero: "VPXORQ"}

// avx512bf16 multiplies pairs: a lane holds two neighbouring k of bfloat16.
var avx512bf16 = isa{name: "BF16", reg: "Z", vl: 16, vecs: 2, mr: 12, es: 4, zero: "VPXORQ", fma: dpbf16}

// dpbf16 writes VDPBF16PS, which the assembler does not know.
func dpbf16(a *asm, x, y, acc int) {
	a.bytes(evexDPBF16(acc, y, x), "VDPBF16PS Z%d, Z%d, Z%d", x, y, acc)
}

// evexDPBF16 encodes VDPBF16PS zmm(dst), zmm(a), zmm(b):
// EVEX.512.F3.0F38.W0 52 /r.
func evexDPBF16(dst, a, b int) []byte {
	inv := func(v, bit int) byte { return byte(^v >> bit & 1) }
	p0 := inv(dst, 3)<<7 | inv(b, 4)<<6 | inv(b, 3)<<5 | inv(dst, 4)<<4 | 2
	p1 := byte(^a&15)<<3 | 4 | 2
	p2 := byte(2<<5) | inv(a, 4)<<3
	return []byte{0x62, p0, p1, p2, 0x52, byte(0xc0 | dst&7<<3 | b&7)}
}

// Offsets in gemmArgs.
const (
	argC = 8 * iota
	argLdc
	argA
	argRows
	argTiles
	argB
	argSegs
	argNseg
	argBias
	argRes
	argAcc
	argAhead
)

// Stack slots of the kernels.
const (
	slotRows = 8 * iota
	slotTiles
	slotC
	slotRes
	slotSeg
	slotNseg
	frameBytes
)

// rowRegs hold the addresses of a tile's rows. AX is the offset that is added
// to all of them, BX walks the panel, CX counts.
var rowRegs = []string{"R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15", "SI", "DI", "DX", "BP"}

// farAhead is the prefetch distance in bytes of the largest tiles.
const farAhead = 32 << 10

func gemmFile(v isa) []byte {
	a := newFile()
	for m := 1; m <= v.mr; m++ {
		v.kernel(a, m)
	}
	if v.vecs == 2 {
		v.peak(a)
	}
	return a.Bytes()
}

func (v *isa) r(i int) string { return fmt.Sprintf("%s%d", v.reg, i) }

// kernel writes the function for tiles of m rows: see gemmArgs.
func (v *isa) kernel(a *asm, m int) {
	name := fmt.Sprintf("gemm%s_%d", v.name, m)
	bytes := v.vl * 4
	b0 := v.vecs * m // registers of the panel's row
	bc := b0 + v.vecs
	bcasts := min(2, map[string]int{"Y": 16, "Z": 32}[v.reg]-bc)
	acc := func(i, j int) string { return v.r(i*v.vecs + j) }

	a.text(name, "(args *gemmArgs)", frameBytes, 8)
	a.op("MOVQ args+0(FP), CX")
	for _, s := range []struct{ arg, slot int }{{argRows, slotRows}, {argTiles, slotTiles}, {argC, slotC}, {argRes, slotRes}} {
		a.op("MOVQ %d(CX), AX", s.arg)
		a.op("MOVQ AX, %d(SP)", s.slot)
	}
	a.label("tile")
	a.op("MOVQ args+0(FP), CX")
	a.op("MOVQ %d(CX), AX", argSegs)
	a.op("MOVQ AX, %d(SP)", slotSeg)
	a.op("MOVQ %d(CX), AX", argNseg)
	a.op("MOVQ AX, %d(SP)", slotNseg)
	// Start of the sums.
	a.op("CMPQ %d(CX), $0", argAcc)
	a.op("JEQ zero")
	a.op("MOVQ %d(SP), BX", slotC)
	a.op("MOVQ %d(CX), AX", argLdc)
	for i := range m {
		for j := range v.vecs {
			a.op("VMOVUPS %d(BX), %s", j*bytes, acc(i, j))
		}
		if i < m-1 {
			a.op("ADDQ AX, BX")
		}
	}
	a.op("JMP addresses")
	a.label("zero")
	for i := range m {
		for j := range v.vecs {
			r := acc(i, j)
			a.op("%s %s, %s, %s", v.zero, r, r, r)
		}
	}
	a.label("addresses")
	a.op("MOVQ %d(SP), BX", slotRows)
	a.op("MOVQ %d(CX), AX", argA)
	for i := range m {
		a.op("MOVQ %d(BX), %s", 8*i, rowRegs[i])
		a.op("ADDQ AX, %s", rowRegs[i])
	}
	a.op("ADDQ $%d, BX", 8*m)
	a.op("MOVQ BX, %d(SP)", slotRows)
	a.op("MOVQ %d(CX), BX", argB)

	ahead := m <= len(rowRegs)-2
	if ahead {
		a.op("MOVQ args+0(FP), DX")
		a.op("MOVQ %d(DX), DX", argAhead)
	}
	a.label("segment")
	a.op("MOVQ %d(SP), CX", slotSeg)
	a.op("MOVQ (CX), AX")
	a.op("MOVQ 8(CX), CX")
	a.op("SUBQ $4, CX")
	a.op("JLT rest")
	step := func(u int) {
		for j := range v.vecs {
			a.op("VMOVUPS %d(BX), %s", (u*v.vecs+j)*bytes, v.r(b0+j))
		}
		for i := range m {
			t := bc + i%bcasts
			a.op("VBROADCASTSS %d(%s)(AX*1), %s", u*4, rowRegs[i], v.r(t))
			for j := range v.vecs {
				v.multiply(a, b0+j, t, i*v.vecs+j)
			}
		}
	}
	a.op("PCALIGN $32")
	a.label("loop4")
	for u := range 4 {
		if !ahead {
			// No register is left for the distance: any further part of the
			// panels will be wanted soon.
			for l := range v.vecs * bytes / 64 {
				a.op("PREFETCHT1 %d(BX)", u*v.vecs*bytes+64*l+farAhead)
			}
		}
		if ahead {
			for l := range v.vecs * bytes / 64 {
				a.op("PREFETCHT1 %d(BX)(DX*1)", (u*v.vecs*bytes/64+l)*64)
			}
		}
		step(u)
	}
	a.op("ADDQ $%d, BX", 4*v.vecs*bytes)
	a.op("ADDQ $16, AX")
	a.op("SUBQ $4, CX")
	a.op("JGE loop4")
	a.label("rest")
	a.op("ADDQ $4, CX")
	a.op("JEQ next")
	a.label("loop1")
	step(0)
	a.op("ADDQ $%d, BX", v.vecs*bytes)
	a.op("ADDQ $4, AX")
	a.op("SUBQ $1, CX")
	a.op("JNE loop1")
	a.label("next")
	a.op("ADDQ $16, %d(SP)", slotSeg)
	a.op("SUBQ $1, %d(SP)", slotNseg)
	a.op("JNE segment")

	// The row registers are free from here on.
	a.op("MOVQ args+0(FP), CX")
	a.op("MOVQ %d(CX), DX", argLdc)
	a.op("MOVQ %d(CX), BX", argBias)
	a.op("TESTQ BX, BX")
	a.op("JEQ residual")
	for j := range v.vecs {
		a.op("VMOVUPS %d(BX), %s", j*bytes, v.r(b0+j))
	}
	for i := range m {
		for j := range v.vecs {
			a.op("VADDPS %s, %s, %s", v.r(b0+j), acc(i, j), acc(i, j))
		}
	}
	a.label("residual")
	a.op("MOVQ %d(SP), BX", slotRes)
	a.op("TESTQ BX, BX")
	a.op("JEQ store")
	for i := range m {
		for j := range v.vecs {
			a.op("VADDPS %d(BX), %s, %s", j*bytes, acc(i, j), acc(i, j))
		}
		a.op("ADDQ DX, BX")
	}
	a.op("MOVQ BX, %d(SP)", slotRes)
	a.label("store")
	a.op("MOVQ %d(SP), BX", slotC)
	for i := range m {
		for j := range v.vecs {
			a.op("VMOVUPS %s, %d(BX)", acc(i, j), j*bytes)
		}
		a.op("ADDQ DX, BX")
	}
	a.op("MOVQ BX, %d(SP)", slotC)
	a.op("SUBQ $1, %d(SP)", slotTiles)
	a.op("JNE tile")
	a.op("VZEROUPPER")
	a.op("RET")
}

func (v *isa) multiply(a *asm, x, y, acc int) {
	if v.fma != nil {
		v.fma(a, x, y, acc)
		return
	}
	a.op("VFMADD231PS %s, %s, %s", v.r(x), v.r(y), v.r(acc))
}

// peak writes a loop of n rounds of 12 independent multiply-adds.
func (v *isa) peak(a *asm) {
	a.text("fmaPeak"+v.name, "(n int)", 0, 8)
	a.op("MOVQ n+0(FP), CX")
	for i := range 14 {
		a.op("%s %s, %s, %s", v.zero, v.r(i), v.r(i), v.r(i))
	}
	a.label("loop")
	for i := range 12 {
		v.multiply(a, 12, 13, i)
	}
	a.op("SUBQ $1, CX")
	a.op("JNE loop")
	a.op("VZEROUPPER")
	a.op("RET")
}

// dgemmFile writes the float64 kernel: a 6-by-8 tile += a^T b.
func dgemmFile() []byte {
	a := newFile()
	a.text("dgemmAVX2", "(c *float64, ldc int, a *float64, lda int, b *float64, k int)", 0, 48)
	a.op("MOVQ c+0(FP), DI")
	a.op("MOVQ ldc+8(FP), SI")
	a.op("MOVQ a+16(FP), AX")
	a.op("MOVQ lda+24(FP), DX")
	a.op("MOVQ b+32(FP), BX")
	a.op("MOVQ k+40(FP), CX")
	a.op("SHLQ $3, SI")
	a.op("SHLQ $3, DX")
	for i := range 12 {
		a.op("VXORPD Y%d, Y%d, Y%d", i, i, i)
	}
	a.op("TESTQ CX, CX")
	a.op("JEQ done")
	a.label("loop")
	a.op("VMOVUPD (BX), Y12")
	a.op("VMOVUPD 32(BX), Y13")
	for i := range 6 {
		t := 14 + i%2
		a.op("VBROADCASTSD %d(AX), Y%d", 8*i, t)
		a.op("VFMADD231PD Y12, Y%d, Y%d", t, 2*i)
		a.op("VFMADD231PD Y13, Y%d, Y%d", t, 2*i+1)
	}
	a.op("ADDQ $64, BX")
	a.op("ADDQ DX, AX")
	a.op("SUBQ $1, CX")
	a.op("JNE loop")
	a.label("done")
	for i := range 6 {
		for j := range 2 {
			a.op("VADDPD %d(DI), Y%d, Y%d", 32*j, 2*i+j, 2*i+j)
			a.op("VMOVUPD Y%d, %d(DI)", 2*i+j, 32*j)
		}
		a.op("ADDQ SI, DI")
	}
	a.op("VZEROUPPER")
	a.op("RET")
	return a.Bytes()
}
