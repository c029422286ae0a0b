package kernels

import "unsafe"

// The tile kernels work on pairs of bfloat16: a 4-byte slot holds two
// neighbouring channels, and a pixel of the padded input is a whole number of
// slots (one for VDPBF16PS, 16 for AMX, whose tiles are 16 slots wide). The
// packed weights have the same order for both: [panel][slot][32 columns].

// amxArgs is what the tile kernel needs. The assembly knows its layout.
type amxArgs struct {
	config unsafe.Pointer // 64 bytes
	c      unsafe.Pointer // the sums start from what is there
	ldc    int64          // bytes between output pixels
	a      unsafe.Pointer
	step   int64 // bytes from one row of a tile to the next
	b      unsafe.Pointer
	segs   *segment // lengths in slots, multiples of 16
	nseg   int64
	tiles  *amxTile
	pairs  int64 // pairs of tiles
}

// amxTile is up to 16 output pixels side by side.
type amxTile struct {
	a int64 // offset in bytes of the first pixel's input
	c int64 // index of the first output pixel
}

const (
	tileRows  = 16
	slotBytes = 4
)

// amxLayout is how the output pixels of an item lie.
type amxLayout struct {
	th, tw   int // output rows and columns
	row, pix int // bytes of input between output rows and columns
	work     []float32
}

// amxWork gives the float32 that a layout needs for at most th by tw pixels.
func amxWork(th, tw int) int {
	return 2*(th*ceilDiv(tw, tileRows)+2)*2*2 + 2*16
}

// amxGroup is tiles of one height: pairs of them and their configuration.
type amxGroup struct {
	config unsafe.Pointer
	tiles  *amxTile
	pairs  int64
}

// groups divides every output row into tiles of two heights as equal as can
// be and pairs up those of one height.
func (l *amxLayout) groups() (g [2]amxGroup) {
	config := unsafe.Slice((*byte)(ptr(l.work)), 128)
	clear(config)
	n := ceilDiv(l.tw, tileRows)
	small, large := l.tw/n, l.tw%n
	tiles := unsafe.Slice((*amxTile)(unsafe.Pointer(&l.work[32])), (len(l.work)-32)/4)
	used := 0
	for i := range g {
		height, count, from := small+1, large, 0
		if i == 1 {
			height, count, from = small, n-large, large*(small+1)
		}
		if count == 0 {
			continue
		}
		first := used
		for y := range l.th {
			for q := range count {
				x := from + q*height
				tiles[used] = amxTile{a: int64(y*l.row + x*l.pix), c: int64(y*l.tw + x)}
				used++
			}
		}
		if (used-first)%2 == 1 {
			// The last one twice: both are read before either is written.
			tiles[used] = tiles[used-1]
			used++
		}
		cfg := config[64*i : 64*i+64]
		cfg[0] = 1
		for t := range 8 {
			cfg[16+2*t] = 64
			cfg[48+t] = byte(height)
			if t >= 6 {
				cfg[48+t] = tileRows
			}
		}
		g[i] = amxGroup{config: unsafe.Pointer(&cfg[0]), tiles: &tiles[first], pairs: int64(used-first) / 2}
	}
	return g
}

// runAMX is tilePass.run for the tile kernel.
func (t *tilePass) runAMX(first, last int) {
	nr := t.o.nr
	groups := t.amx.groups()
	toTail := t.gate != nil || t.half != nil
	whole := min(last*nr, t.cols/nr*nr)
	if n := whole - first*nr; n > 0 && !toTail {
		t.begin(t.dst[first*nr:], t.cols, n, first*nr, t.res)
	}
	for pn := first; pn < last; pn++ {
		j0 := pn * nr
		inPlace := j0+nr <= t.cols && !toTail
		a := amxArgs{a: t.base, step: int64(t.amx.pix), b: unsafe.Pointer(&t.w[pn*t.k*nr]),
			segs: (*segment)(unsafe.Pointer(&t.segs[0])), nseg: int64(len(t.segs) / 2)}
		if inPlace {
			a.c, a.ldc = unsafe.Pointer(&t.dst[j0]), int64(t.cols)*4
		} else {
			t.begin(t.tail, nr, min(nr, t.cols-j0), j0, nil)
			a.c, a.ldc = ptr(t.tail), int64(nr)*4
		}
		for _, g := range groups {
			if g.pairs > 0 {
				a.config, a.tiles, a.pairs = g.config, g.tiles, g.pairs
				amxTiles(t.o.tier, &a)
			}
		}
		t.finish(j0, inPlace)
	}
}

// begin writes the bias and res of n columns from column j0 on to dst.
func (t *tilePass) begin(dst []float32, ld, n, j0 int, res []float32) {
	for i := range t.m {
		row := dst[i*ld : i*ld+n]
		switch {
		case res != nil && t.bias != nil:
			t.o.add(row, res[i*t.cols+j0:i*t.cols+j0+n], t.bias[j0:j0+n], 1)
		case res != nil:
			copy(row, res[i*t.cols+j0:])
		case t.bias != nil:
			copy(row, t.bias[j0:])
		default:
			clear(row)
		}
	}
}

// gemmAMXGo is the portable twin of the tile kernel.
func gemmAMXGo(g *amxArgs) {
	config := unsafe.Slice((*byte)(g.config), 64)
	tiles := unsafe.Slice(g.tiles, 2*g.pairs)
	segs := unsafe.Slice(g.segs, g.nseg)
	var sums [2][tileRows][32]float32
	for p := 0; p < len(tiles); p += 2 {
		for h, t := range tiles[p : p+2] {
			for r := range int(config[48+2*h]) {
				sum := &sums[h][r]
				copy(sum[:], f32At(unsafe.Add(g.c, (t.c+int64(r))*g.ldc), 32))
				at := int64(0)
				for _, s := range segs {
					a := unsafe.Add(g.a, t.a+int64(r)*g.step+s.off)
					addPairs(sum[:], a, unsafe.Add(g.b, at), int(s.len))
					at += s.len * 32 * slotBytes
				}
			}
		}
		for h, t := range tiles[p : p+2] {
			for r := range int(config[48+2*h]) {
				copy(f32At(unsafe.Add(g.c, (t.c+int64(r))*g.ldc), 32), sums[h][r][:])
			}
		}
	}
}

// addPairs adds to the sums the products of n slots at a with n rows of slots
// at b.
func addPairs(sum []float32, a, b unsafe.Pointer, n int) {
	as := unsafe.Slice((*uint32)(a), n)
	bs := unsafe.Slice((*uint32)(b), n*len(sum))
	for k, av := range as {
		lo, hi := f32frombits(av<<16), f32frombits(av&^0xffff)
		for j, bv := range bs[k*len(sum) : (k+1)*len(sum)] {
			sum[j] += float32(lo * f32frombits(bv<<16))
			sum[j] += float32(hi * f32frombits(bv&^0xffff))
		}
	}
}

// gemmPairsGo is the portable twin of the VDPBF16PS kernels.
func gemmPairsGo(g *gemmArgs, mr, nr int) {
	rows := unsafe.Slice(g.rows, int(g.tiles)*mr)
	segs := unsafe.Slice(g.segs, int(g.nseg))
	var buf [64]float32
	for i, row := range rows {
		off := int64(i) * g.ldc
		out := f32At(unsafe.Add(g.c, off), nr)
		sum := buf[:nr]
		clear(sum)
		if g.acc != 0 {
			copy(sum, out)
		}
		at := int64(0)
		for _, s := range segs {
			addPairs(sum, unsafe.Add(g.a, row+s.off), unsafe.Add(g.b, at), int(s.len))
			at += s.len * int64(nr) * slotBytes
		}
		if g.bias != nil {
			for j, v := range unsafe.Slice(g.bias, nr) {
				sum[j] += v
			}
		}
		if g.res != nil {
			for j, v := range f32At(unsafe.Add(g.res, off), nr) {
				sum[j] += v
			}
		}
		copy(out, sum)
	}
}

// fillPairs is fillInput in slots: every padded row is made in tmp first.
func fillPairs(o *ops, dst []float32, slots int, tmp []float32, in *Input, n, hi, wi int, pad Pad, c, y0, y1, x0, x1, pitch int) {
	w := x1 - x0
	for y := y0; y < y1; y++ {
		fillInput(o, tmp, in, n, hi, wi, pad, c, y, y+1, x0, x1, w, F32)
		row := dst[(y-y0)*pitch*slots : ((y-y0)*pitch+w)*slots]
		half := unsafe.Slice((*uint16)(ptr(row)), 2*len(row))
		if 2*slots == c {
			o.toBF16(half, tmp[:w*c])
			continue
		}
		for x := range w {
			px := half[2*x*slots : 2*(x+1)*slots]
			o.toBF16(px[:c], tmp[x*c:(x+1)*c])
			clear(px[c:])
		}
	}
}
