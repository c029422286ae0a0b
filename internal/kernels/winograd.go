package kernels

import "unsafe"

// Winograd's minimal filtering of 3 by 3 kernels (Lavin and Gray 2015,
// arXiv:1509.09308): an m by m tile of the output is A^T [(G g G^T) .
// (B^T d B)] A, d being (m+2)^2 input pixels, so that 9 m^2 multiply-adds per
// channel pair become (m+2)^2. The rows of the matrices belong to the points
// of a Toom-Cook interpolation. F(2x2) uses 0, 1, -1 and infinity. F(4x4) uses
// 0, +-3/4, +-3/2 and infinity: with them the relative error in float32 stays
// within about twice that of the direct sum, a third of what the usual
// 0, +-1, +-2 give (compare Barabasz et al. 2020, arXiv:1803.10986).
//
// The transformed weights are 16/9 and 4 times as many as the plain ones, so
// large layers make them where they are used: for few tiles a block of channels
// at a time that stays in the second level cache, for many tiles once per run.

// method is how a layer is computed.
type method uint8

const (
	direct method = iota
	wino2         // F(2x2, 3x3)
	wino4         // F(4x4, 3x3)
)

// methodOf chooses by shape, type and tier, never by batch or workers. Larger
// tiles mean fewer multiply-adds but more to do for the transform of the
// weights, which has to pay off in one picture. AMX multiplies
// bfloat16 more than ten times as fast as float32 and VDPBF16PS twice as fast;
// F(4x4) in float32 on rounded inputs lies between the two.
func methodOf(tier Tier, dtype DType, s ConvSpec) method {
	if s.KH != 3 || s.KW != 3 || s.Stride != 1 || s.Dilation != 1 || s.Cin%8 != 0 || s.Cout%8 != 0 ||
		s.Cin < 16 || s.Cout < 16 || dtype == BF16 && tier == AMX {
		return direct
	}
	px, weights := s.H*s.W, s.Cin*s.Cout
	if px == 0 {
		px = 1 << 20
	}
	switch {
	case px >= 200, px > 100 && weights <= 1<<20, px >= 36 && weights <= 1<<14:
		return wino4
	case px >= 9 && weights <= px<<10:
		if dtype == F32 || tier != AVX512BF16 {
			return wino2
		}
	}
	return direct
}

// The matrices, used to transform the weights in float64 and by the portable
// kernels. Index: value, pixel.
type winoMatrices struct {
	bt [6][6]float64 // (m+2) by (m+2)
	g  [6][3]float64
	at [4][6]float64 // m by (m+2)
}

// The first is of m = 2, the second of m = 4.
var winoTables = [2]winoMatrices{winoMatricesOf(2), winoMatricesOf(4)}

// winoMatricesOf builds the matrices from the points by Toom-Cook: row i of
// B^T holds the coefficients of the product of (x - a_j) over the other
// points, row i of G the powers of a_i over the product of (a_i - a_j).
func winoMatricesOf(m int) winoMatrices {
	points := []float64{0, 1, -1}
	if m == 4 {
		points = []float64{0, 0.75, -0.75, 1.5, -1.5}
	}
	al := m + 2
	var t winoMatrices
	for i := range al {
		poly := []float64{1}
		norm := 1.0
		for j, p := range points {
			if j == i {
				continue
			}
			next := make([]float64, len(poly)+1)
			for k, v := range poly {
				next[k+1] += v
				next[k] -= p * v
			}
			poly = next
			if i < len(points) {
				norm *= points[i] - p
			}
		}
		copy(t.bt[i][:], poly)
		if i == len(points) {
			t.g[i][2] = 1
			t.at[m-1][i] = 1
			continue
		}
		pow := 1.0
		for k := range al {
			if k < 3 {
				t.g[i][k] = pow / norm
			}
			if k < m {
				t.at[k][i] = pow
			}
			pow *= points[i]
		}
		if i == 0 && m == 2 {
			// x^2 - 1 for the point 0: turn the signs as usual.
			for k := range 4 {
				t.bt[0][k] = -t.bt[0][k]
			}
			for k := range 3 {
				t.g[0][k] = -t.g[0][k]
			}
		}
	}
	return t
}

// wino gives the size of a layer's output tiles.
func (c *Conv) wino() (m int) {
	if c.method == wino2 {
		return 2
	}
	return 4
}

// winoRows gives the rows of values that are transformed together as number
// pair: those of 0 and infinity, and those of a point and its opposite.
func winoRows(m, pair int) (first, second int) {
	if pair == 0 {
		return 0, m + 1
	}
	return 2*pair - 1, 2 * pair
}

// winoTiles is about how many tiles an item covers. With all weights
// transformed: enough to use a panel of weights often, few enough that the
// transformed input stays in the second level cache or close to it. Else as
// many as pay for transforming the weights.
func winoTiles(m, cin int, whole bool) int {
	size := (m + 2) * (m + 2) * cin * 4
	if whole {
		return min(max((768<<10)/size, 24), 96)
	}
	return min(max((8<<20)/size, 64), 512/m)
}

const (
	// winoWhole is from how many tiles on all weights are transformed first.
	winoWhole = 600
	// winoWeights is about how many transformed weights are made at a time.
	winoWeights = 96 << 10
	// winoSum is the most channels of a sum: sums of more are added up from
	// sums of about so many, which keeps their errors small.
	winoSum = 256
	// winoChannels is how many channels of a row of tiles are transformed at
	// a time, so that a tile and its result share the first level cache.
	winoChannels = 128
)

type winoPlan struct {
	n, hi, wi, ho, wo int
	pad               Pad
	tx, ty            int // tiles of an image
	rows              int // rows of tiles of an item
	items             int
	pitch             int // pixels between rows of the padded input
	bufRows           int
	whole             bool // all weights are transformed first
	shared            bool // so is the input, by all
	cb, blocks        int  // channels of a block, and blocks
	sum               int  // channels of a sum
	per, groups       int  // panels of a group of columns, and groups
	uStep             int  // float32 between the values of transformed weights
	vStep, mStep      int  // the same of a tile, and of its products
	uSize             int  // float32 of all transformed weights
	vSize, mSize      int  // float32 of an item
	perWorker         int
}

func winoPlanOf(c *Conv, workers, n, h, wd int, pad Pad, in *Input) winoPlan {
	s, m, nr := c.spec, c.wino(), c.ops.nr
	s.Pad = pad
	p := winoPlan{n: n, pad: pad}
	p.hi, p.wi = in.size(h, wd)
	p.ho, p.wo = s.OutSize(p.hi, p.wi)
	p.tx, p.ty = ceilDiv(p.wo, m), ceilDiv(p.ho, m)
	total := n * p.ty
	values := (m + 2) * (m + 2)
	p.whole = c.u != nil || total*p.tx >= winoWhole || values*s.Cin*c.panels*nr <= winoWeights
	p.rows = min(max(winoTiles(m, s.Cin, p.whole)/p.tx, 1), total)
	p.items = ceilDiv(total, p.rows)
	p.rows = ceilDiv(total, p.items)
	p.items = ceilDiv(total, p.rows)
	p.pitch = p.tx*m + 2
	p.shared = !p.whole || workers > 1 && p.items < 3*workers
	p.bufRows = m + 2
	if !p.shared {
		p.bufRows = min(p.rows, p.ty)*m + 2
	}
	p.sum = roundUp(ceilDiv(s.Cin, ceilDiv(s.Cin, winoSum)), 8)
	p.cb, p.per = s.Cin, max(1, 64/nr)
	if !p.whole {
		p.per = max(1, 32/nr)
		p.cb = p.sum * max(winoWeights/(2*(m+2)*p.per*nr*p.sum), 1)
		p.cb = min(p.cb, roundUp(s.Cin, p.sum))
	}
	p.blocks = ceilDiv(s.Cin, p.cb)
	p.groups = ceilDiv(c.panels, p.per)
	tiles := p.rows * p.tx
	// A line more, lest all values of a tile fall into one set of the cache.
	p.vStep = roundUp(tiles*p.cb*p.blocks, 16) + 16
	p.mStep = tiles*p.per*nr + 16
	p.uStep = p.cb*nr + 16
	p.vSize, p.mSize = values*p.vStep, values*p.mStep
	p.perWorker = roundUp(p.bufRows*p.pitch*s.Cin, 16) + p.mSize
	if !p.shared {
		p.perWorker += p.vSize
	}
	switch {
	case c.u != nil:
	case p.whole:
		p.uSize = c.panels * values * p.uStep
	default:
		p.perWorker += p.per * 2 * (m + 2) * p.uStep
	}
	if c.w16 != nil {
		p.perWorker += roundUp(9*p.cb*nr, 16)
	}
	return p
}

func (c *Conv) biasStride() int { return roundUp(c.panels*c.ops.nr, 16) }

func (p *winoPlan) total(c *Conv, workers int) int {
	tiles := p.rows * p.tx
	n := alignSlack + workers*p.perWorker + p.n*c.biasStride() + p.uSize +
		roundUp(2*tiles, 16)
	if p.shared {
		n += p.items * p.vSize
	}
	return n
}

type winoJob struct {
	c     *Conv
	in    Input
	ep    Epilogue
	dst   []float32
	plan  winoPlan
	phase uint8
	u     []float32 // [panel][pair of rows of values][value][channel][nr], of all weights
	v     []float32 // [value][block][tile][channel of the block]
	work  []float32
	bias  []float32
	rows  []int64
	segs  [2]segment // of a sum, and of the last one
}

const (
	winoExpand uint8 = iota // transform the weights
	winoBoth                // transform the input and multiply
	winoBefore              // transform into the shared buffer
	winoAfter               // multiply one group of columns
)

func (j *winoJob) run(p *Pool, c *Conv, dst []float32, in *Input, n, h, wd int, pad Pad, scratch []float32, ep *Epilogue) {
	j.c, j.in, j.ep, j.dst = c, *in, *ep, dst
	j.plan = winoPlanOf(c, p.workers, n, h, wd, pad, in)
	pl := &j.plan
	need("scratch", scratch, pl.total(c, p.workers))
	cv := carve(scratch)
	j.u = cv.take(pl.uSize)
	if pl.shared {
		j.v = cv.take(pl.items * pl.vSize)
	}
	j.work = cv.take(p.workers * pl.perWorker)
	bs := c.biasStride()
	j.bias = cv.take(n * bs)
	for i := range n {
		row := j.bias[i*bs : (i+1)*bs]
		clear(row[copy(row, c.bias):])
		if ep.RowBias != nil {
			for q, v := range ep.RowBias[i*c.spec.Cout : (i+1)*c.spec.Cout] {
				row[q] += v
			}
		}
	}
	tiles := pl.rows * pl.tx
	j.rows = int64s(cv.take(2*tiles), tiles)
	for i := range j.rows {
		j.rows[i] = int64(i) * int64(pl.cb) * 4
	}
	j.segs = [2]segment{{len: int64(pl.sum)}, {len: int64(c.spec.Cin - (ceilDiv(c.spec.Cin, pl.sum)-1)*pl.sum)}}
	switch {
	case c.u != nil:
		j.u = c.u
	case pl.whole:
		j.phase = winoExpand
		p.run(c.panels, j)
	}
	if !pl.shared {
		j.phase = winoBoth
		p.run(pl.items, j)
		return
	}
	j.phase = winoBefore
	p.run(pl.n*pl.ty, j)
	j.phase = winoAfter
	p.run(pl.items*pl.groups, j)
}

func (j *winoJob) do(worker, item int) {
	pl, c := &j.plan, j.c
	work := carver{s: j.work[worker*pl.perWorker : (worker+1)*pl.perWorker]}
	buf := work.take(pl.bufRows * pl.pitch * c.spec.Cin)
	m := work.take(pl.mSize)
	switch j.phase {
	case winoExpand:
		al := c.wino() + 2
		for pair := range al / 2 {
			c.weights(&work, j.u[(item*al/2+pair)*2*al*pl.uStep:], pl.uStep, item, pair, 0, c.spec.Cin)
		}
	case winoBoth:
		v := work.take(pl.vSize)
		first := item * pl.rows
		last := min(first+pl.rows, pl.n*pl.ty)
		j.transform(v, buf, first, first, last)
		for g := range pl.groups {
			j.multiply(&work, v, m, g, first, last)
		}
	case winoBefore:
		it := item / pl.rows
		first := it * pl.rows
		j.transform(j.v[it*pl.vSize:], buf, first, item, item+1)
	case winoAfter:
		it, g := item/pl.groups, item%pl.groups
		first := it * pl.rows
		last := min(first+pl.rows, pl.n*pl.ty)
		j.multiply(&work, j.v[it*pl.vSize:], m, g, first, last)
	}
}

// weights transforms the kernels of a panel's columns for n channels from c0
// on, a pair of rows of values, into u, [value][channel][nr].
func (c *Conv) weights(work *carver, u []float32, uStep, pn, pair, c0, n int) {
	nr, m := c.ops.nr, c.wino()
	at := (pn*c.spec.Cin + c0) * 9 * nr
	var taps []float32
	if c.w16 != nil {
		rest := *work
		taps = rest.take(9 * n * nr)
		c.widen()(taps, c.w16[at:at+9*n*nr])
	} else {
		taps = c.w[at : at+9*n*nr]
	}
	for ch := range n {
		c.ops.winoWeights(m, pair, &u[ch*nr], uStep*4, &taps[9*ch*nr], nr)
	}
}

// keeps tells whether a layer keeps its transformed weights instead of the
// plain ones: small ones for small pictures, where they stay in the caches and
// a transform per run would cost a good part of it. 16-bit weights stay as they
// are.
func (c *Conv) keeps() bool {
	s := &c.spec
	return c.method != direct && !c.dtype.widened() && s.H*s.W > 0 && s.H*s.W <= 1<<10 && s.Cin*s.Cout <= 1<<17
}

// keep transforms all weights.
func (c *Conv) keep() {
	al, step := c.wino()+2, c.spec.Cin*c.ops.nr+16
	u := alignedFloats(c.panels * al * al * step)
	var work carver
	if c.w16 != nil {
		work.s = alignedFloats(9 * c.spec.Cin * c.ops.nr)
	}
	for pn := range c.panels {
		for pair := range al / 2 {
			c.weights(&work, u[(pn*al/2+pair)*2*al*step:], step, pn, pair, 0, c.spec.Cin)
		}
	}
	c.u, c.w, c.w16 = u, nil, nil
}

// transform fills the tile rows [from, to) of the item that begins at tile
// row first. Tile rows are counted over all images.
func (j *winoJob) transform(v, buf []float32, first, from, to int) {
	pl, c := &j.plan, j.c
	cin, m := c.spec.Cin, c.wino()
	tiles := pl.rows * pl.tx
	for r := from; r < to; {
		n, y := r/pl.ty, r%pl.ty
		cnt := min(to-r, pl.ty-y)
		fillInput(c.ops, buf, &j.in, n, pl.hi, pl.wi, pl.pad, cin,
			y*m, (y+cnt)*m+2, 0, pl.pitch, pl.pitch, c.dtype)
		for q := range cnt {
			for b := range pl.blocks {
				block := v[(b*tiles+(r+q-first)*pl.tx)*pl.cb:]
				for ch := b * pl.cb; ch < min((b+1)*pl.cb, cin); ch += winoChannels {
					some := min(winoChannels, (b+1)*pl.cb-ch, cin-ch)
					c.ops.winoIn(m, &block[ch-b*pl.cb], &buf[q*m*pl.pitch*cin+ch],
						pl.vStep*4, pl.pitch*cin*4, cin*4, m*cin*4, some, pl.tx, (pl.cb-some)*4)
				}
			}
		}
		r += cnt
	}
}

// multiply computes one group of output columns of the tile rows [first, last).
func (j *winoJob) multiply(work *carver, v, m []float32, group, first, last int) {
	pl, c := &j.plan, j.c
	o, s, wm := c.ops, &c.spec, c.wino()
	tiles := (last - first) * pl.tx
	panels := min(pl.per, c.panels-group*pl.per)
	cols := panels * o.nr
	al := wm + 2
	step := 2 * al * pl.uStep // of a pair of rows of values
	rest := *work
	u := j.u
	if !pl.whole {
		u = rest.take(pl.per * step)
	}
	for part := range al / 2 * pl.blocks {
		pair, b := part/pl.blocks, part%pl.blocks
		channels := min(pl.cb, s.Cin-b*pl.cb)
		if !pl.whole {
			for pn := range panels {
				c.weights(&rest, u[pn*step:], pl.uStep, group*pl.per+pn, pair, b*pl.cb, channels)
			}
		}
		first, second := winoRows(wm, pair)
		for k := range 2 * al {
			value := first*al + k
			if k >= al {
				value = second*al + k - al
			}
			a := unsafe.Pointer(&v[value*pl.vStep+b*pl.rows*pl.tx*pl.cb])
			for pn := range panels {
				g := gemmArgs{
					c: unsafe.Pointer(&m[value*pl.mStep+pn*o.nr]), ldc: int64(cols) * 4,
					a: a, rows: &j.rows[0], nseg: 1,
				}
				at := pn*step + k*pl.uStep
				if pl.whole {
					at += (group*pl.per*(al/2) + pn*(al/2-1) + pair) * step
				}
				for ch := 0; ch < channels; ch += pl.sum {
					g.a, g.b, g.segs = unsafe.Add(a, ch*4), unsafe.Pointer(&u[at+ch*o.nr]), &j.segs[0]
					if ch+pl.sum >= channels && b == pl.blocks-1 {
						g.segs = &j.segs[1]
					}
					if b > 0 || ch > 0 {
						g.res = g.c
					}
					o.gemmRows(&g, tiles)
				}
			}
		}
	}
	j0 := group * pl.per * o.nr
	real := min(cols, s.Cout-j0)
	bs := c.biasStride()
	for r := first; r < last; r++ {
		n, y := r/pl.ty, r%pl.ty*wm
		rows := min(wm, pl.ho-y)
		for x := range pl.tx {
			out := ((n*pl.ho+y)*pl.wo+x*wm)*s.Cout + j0
			var res *float32
			if j.ep.Residual != nil {
				res = &j.ep.Residual[out]
			}
			o.winoOut(wm, &j.dst[out], &m[((r-first)*pl.tx+x)*cols], &j.bias[n*bs+j0], res,
				pl.mStep*4, pl.wo*s.Cout*4, s.Cout*4, rows, min(wm, pl.wo-x*wm), real)
		}
		if j.ep.after() {
			for q := range rows {
				for x := range pl.wo {
					at := ((n*pl.ho+y+q)*pl.wo+x)*s.Cout + j0
					finish(o, &j.ep, j.dst[at:], 1, s.Cout, 0, real)
				}
			}
		}
	}
}

// winoWeightsGo is the portable twin of the weight transform.
func winoWeightsGo(m, pair int, dst *float32, step int, src *float32, n int) {
	al, t := m+2, &winoTables[m/4]
	taps := unsafe.Slice(src, 9*n)
	one, two := winoRows(m, pair)
	for lane := range n {
		for k, i := range [2]int{one, two} {
			var half [3]float64
			for x := range 3 {
				for y := range 3 {
					half[x] += t.g[i][y] * float64(taps[(3*y+x)*n+lane])
				}
			}
			for j := range al {
				v := half[0]*t.g[j][0] + half[1]*t.g[j][1] + half[2]*t.g[j][2]
				*(*float32)(unsafe.Add(unsafe.Pointer(dst), (k*al+j)*step+lane*4)) = float32(v)
			}
		}
	}
}

// winoInGo is the portable twin of the input transform.
func winoInGo(m int, dst, src *float32, dstStep, rowStep, pixStep, tileStep, c, tiles, skip int) {
	t := &winoTables[m/4]
	al := m + 2
	var d, e [6][6]float32
	for tile := range tiles {
		for ch := range c {
			base := unsafe.Add(unsafe.Pointer(src), tile*tileStep+ch*4)
			for y := range al {
				for x := range al {
					d[y][x] = *(*float32)(unsafe.Add(base, y*rowStep+x*pixStep))
				}
			}
			for y := range al {
				for i := range al {
					var s float32
					for x := range al {
						s += float32(d[y][x] * float32(t.bt[i][x]))
					}
					e[y][i] = s
				}
			}
			out := unsafe.Add(unsafe.Pointer(dst), tile*skip+(tile*c+ch)*4)
			for i := range al {
				for x := range al {
					var s float32
					for y := range al {
						s += float32(e[y][x] * float32(t.bt[i][y]))
					}
					*(*float32)(unsafe.Add(out, (i*al+x)*dstStep)) = s
				}
			}
		}
	}
}

// winoOutGo is the portable twin of the output transform.
func winoOutGo(m int, dst, src, bias, res *float32, mStep, rowStep, pixStep, rows, cols, c int) {
	t := &winoTables[m/4]
	al := m + 2
	var e [4][6]float32
	for ch := range c {
		in := unsafe.Add(unsafe.Pointer(src), ch*4)
		for x := range al {
			for i := range m {
				var s float32
				for y := range al {
					s += float32(*(*float32)(unsafe.Add(in, (y*al+x)*mStep)) * float32(t.at[i][y]))
				}
				e[i][x] = s
			}
		}
		b := *(*float32)(unsafe.Add(unsafe.Pointer(bias), ch*4))
		for y := range rows {
			for i := range cols {
				var s float32
				for x := range al {
					s += float32(e[y][x] * float32(t.at[i][x]))
				}
				s += b
				off := y*rowStep + i*pixStep + ch*4
				if res != nil {
					s += *(*float32)(unsafe.Add(unsafe.Pointer(res), off))
				}
				*(*float32)(unsafe.Add(unsafe.Pointer(dst), off)) = s
			}
		}
	}
}
