package main

// Offsets in amxArgs.
const (
	amxConfig = 8 * iota
	amxC
	amxLdc
	amxA
	amxStep
	amxB
	amxSegs
	amxNseg
	amxTiles
	amxPairs
)

// Register numbers of the encodings.
var regNumber = map[string]int{
	"AX": 0, "CX": 1, "DX": 2, "BX": 3, "SP": 4, "BP": 5, "SI": 6, "DI": 7,
	"R8": 8, "R9": 9, "R10": 10, "R11": 11, "R12": 12, "R13": 13, "R14": 14, "R15": 15,
}

// vex encodes a three-byte VEX prefix of map 0F38, W 0, 128 bits. pp: 0 none,
// 1 66, 2 F3, 3 F2.
func vex(r, x, b, vvvv, pp int) []byte {
	inv := func(v int) byte { return byte(^v & 1) }
	return []byte{0xc4, inv(r)<<7 | inv(x)<<6 | inv(b)<<5 | 2, byte(^vvvv&15)<<3 | byte(pp)}
}

// tileMem encodes TILELOADD, TILELOADDT1 (pp 3, 1) and TILESTORED (2) with
// memory [base + index + disp].
func tileMem(pp, tmm int, base, index string, disp int) []byte {
	bn, xn := regNumber[base], regNumber[index]
	code := append(vex(0, xn>>3, bn>>3, 0, pp), 0x4b)
	sib := byte(xn&7<<3 | bn&7)
	if disp == 0 && bn&7 != 5 {
		return append(code, byte(tmm<<3|4), sib)
	}
	return append(code, byte(0x40|tmm<<3|4), sib, byte(int8(disp)))
}

func tileLoad(a *asm, tmm int, base, index string, disp int) {
	a.bytes(tileMem(3, tmm, base, index, disp), "TILELOADD %d(%s)(%s*1), TMM%d", disp, base, index, tmm)
}

func tileStore(a *asm, tmm int, base, index string, disp int) {
	a.bytes(tileMem(2, tmm, base, index, disp), "TILESTORED TMM%d, %d(%s)(%s*1)", tmm, disp, base, index)
}

// tileDot encodes TDPBF16PS: dst += x y.
func tileDot(a *asm, dst, x, y int) {
	a.bytes(append(vex(0, 0, 0, y, 2), 0x5c, byte(0xc0|dst<<3|x)), "TDPBF16PS TMM%d, TMM%d, TMM%d", y, x, dst)
}

// amxFile writes the tile kernel: pairs of tiles of up to 16 output pixels by
// 32 columns. Tile state belongs to the thread, so it is set up and released
// in one function, which the Go scheduler never interrupts.
func amxFile() []byte {
	a := newFile()
	a.text("gemmAMX", "(args *amxArgs)", 0, 8)
	a.op("MOVQ args+0(FP), DI")
	a.op("MOVQ %d(DI), AX", amxConfig)
	a.bytes([]byte{0xc4, 0xe2, 0x78, 0x49, 0x00}, "LDTILECFG (AX)")
	a.op("MOVQ %d(DI), SI", amxTiles)
	a.op("MOVQ %d(DI), R14", amxPairs)
	a.op("MOVQ %d(DI), R10", amxStep)
	a.op("MOVQ %d(DI), R11", amxLdc)
	a.op("MOVQ $128, R9")
	a.label("pair")
	a.op("MOVQ 8(SI), R12")
	a.op("IMULQ R11, R12")
	a.op("ADDQ %d(DI), R12", amxC)
	a.op("MOVQ 24(SI), R13")
	a.op("IMULQ R11, R13")
	a.op("ADDQ %d(DI), R13", amxC)
	tileLoad(a, 0, "R12", "R11", 0)
	tileLoad(a, 1, "R12", "R11", 64)
	tileLoad(a, 2, "R13", "R11", 0)
	tileLoad(a, 3, "R13", "R11", 64)
	a.op("MOVQ %d(DI), BX", amxB)
	a.op("MOVQ %d(DI), DX", amxSegs)
	a.op("MOVQ %d(DI), R15", amxNseg)
	a.label("segment")
	a.op("MOVQ (DX), R8")
	a.op("ADDQ %d(DI), R8", amxA)
	a.op("MOVQ R8, AX")
	a.op("ADDQ (SI), R8")
	a.op("ADDQ 16(SI), AX")
	a.op("MOVQ 8(DX), CX")
	a.label("loop")
	tileLoad(a, 6, "BX", "R9", 0)
	tileLoad(a, 4, "R8", "R10", 0)
	tileDot(a, 0, 4, 6)
	tileLoad(a, 7, "BX", "R9", 64)
	tileDot(a, 1, 4, 7)
	tileLoad(a, 5, "AX", "R10", 0)
	tileDot(a, 2, 5, 6)
	tileDot(a, 3, 5, 7)
	a.op("ADDQ $2048, BX")
	a.op("ADDQ $64, R8")
	a.op("ADDQ $64, AX")
	a.op("SUBQ $16, CX")
	a.op("JNE loop")
	a.op("ADDQ $16, DX")
	a.op("SUBQ $1, R15")
	a.op("JNE segment")
	tileStore(a, 0, "R12", "R11", 0)
	tileStore(a, 1, "R12", "R11", 64)
	tileStore(a, 2, "R13", "R11", 0)
	tileStore(a, 3, "R13", "R11", 64)
	a.op("ADDQ $32, SI")
	a.op("SUBQ $1, R14")
	a.op("JNE pair")
	a.bytes([]byte{0xc4, 0xe2, 0x78, 0x49, 0xc0}, "TILERELEASE")
	a.op("RET")
	return a.Bytes()
}
