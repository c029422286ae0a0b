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
type winograd struct {
	m      int       // output pixels of a tile along an axis
	u      []float32 // weights: [group][value][panel][cin][nr]
	per    int       // panels of a group
	groups int
}

// method is how a layer is computed.
type method uint8

const (
	direct method = iota
	wino2         // F(2x2, 3x3)
	wino4         // F(4x4, 3x3)
)

// methodOf chooses by shape, type and tier, never by batch or workers. Larger
// tiles mean fewer multiply-adds but 16/9 (F(2x2)) and 4 times (F(4x4)) the
// weights, which have to come from memory for every forward pass: that costs
// more than it saves when a picture has few tiles to share them. The bounds
// also keep the weights of a whole network below twice their plain size (in
// ddpm-cifar10, 1.9 times). AMX multiplies
// bfloat16 more than ten times as fast as float32 and VDPBF16PS twice as fast;
// F(4x4) in float32 on rounded inputs lies between the two.
func methodOf(tier Tier, dtype DType, s ConvSpec) method {
	if s.KH != 3 || s.KW != 3 || s.Stride != 1 || s.Dilation != 1 || s.Cin%8 != 0 || s.Cout%8 != 0 ||
		s.Cin < 16 || s.Cout < 16 || dtype == BF16 && tier == AMX || dtype.widened() {
		return direct
	}
	px, weights := s.H*s.W, s.Cin*s.Cout
	if px == 0 {
		px = 1 << 20
	}
	switch {
	case px > 100 && weights <= 1<<20, px >= 36 && weights <= 1<<14:
		return wino4
	case px >= 200 || px >= 9 && weights <= px<<10:
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

var winoTables = map[int]*winoMatrices{2: winoMatricesOf(2), 4: winoMatricesOf(4)}

// winoMatricesOf builds the matrices from the points by Toom-Cook: row i of
// B^T holds the coefficients of the product of (x - a_j) over the other
// points, row i of G the powers of a_i over the product of (a_i - a_j).
func winoMatricesOf(m int) *winoMatrices {
	points := []float64{0, 1, -1}
	if m == 4 {
		points = []float64{0, 0.75, -0.75, 1.5, -1.5}
	}
	al := m + 2
	t := new(winoMatrices)
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

func newWinograd(o *ops, m int, s ConvSpec, weight []float32, bf16 bool) *winograd {
	al := m + 2
	w := &winograd{m: m}
	panels := ceilDiv(s.Cout, o.nr)
	w.per = max(1, 64/o.nr)
	w.groups = ceilDiv(panels, w.per)
	w.u = alignedFloats(panels * o.nr * s.Cin * al * al)
	t := winoTables[m]
	g := make([]float64, 0, 18)
	for i := range al {
		g = append(g, t.g[i][:]...)
	}
	taps := make([]float32, 9*o.nr)
	for pn := range panels {
		j0, group := pn*o.nr, pn/w.per
		have := min(o.nr, s.Cout-j0)
		first := w.at(o, s.Cin, panels, group, 0, pn-group*w.per)
		step := w.at(o, s.Cin, panels, group, 1, pn-group*w.per) - first
		for ci := range s.Cin {
			for lane := range have {
				k := weight[((j0+lane)*s.Cin+ci)*9:][:9]
				for i, v := range k {
					taps[i*o.nr+lane] = v
				}
			}
			if bf16 {
				o.roundBF16(taps)
			}
			o.winoWeights(m, &w.u[first+ci*o.nr], step*4, &taps[0], o.nr, &g[0])
		}
		if have < o.nr {
			clear(taps)
		}
	}
	return w
}

// at gives the place of a panel in u.
func (w *winograd) at(o *ops, cin, panels, g, value, pn int) int {
	al := w.m + 2
	here := min(w.per, panels-g*w.per)
	return (g*w.per*al*al + value*here + pn) * cin * o.nr
}

// winoTiles is about how many tiles an item covers: enough to use a panel of
// weights often, few enough that the transformed input stays in the second
// level cache or close to it.
func winoTiles(m, cin int) int {
	al := m + 2
	return min(max((768<<10)/(al*al*cin*4), 24), 96)
}

// winoChannels is how many channels of a row of tiles are transformed at a
// time, so that a tile and its result share the first level cache.
const winoChannels = 128

type winoPlan struct {
	n, hi, wi, ho, wo int
	pad               Pad
	tx, ty            int // tiles of an image
	rows              int // rows of tiles of an item
	items             int
	pitch             int // pixels between rows of the padded input
	bufRows           int
	shared            bool // transformed input is made first, by all
	vStep, mStep      int  // float32 between the values of a tile
	vSize, mSize      int  // float32 of an item
	perWorker         int
}

func (w *winograd) plan(c *Conv, workers, n, h, wd int, pad Pad, in *Input) winoPlan {
	s := c.spec
	s.Pad = pad
	p := winoPlan{n: n, pad: pad}
	p.hi, p.wi = in.size(h, wd)
	p.ho, p.wo = s.OutSize(p.hi, p.wi)
	p.tx, p.ty = ceilDiv(p.wo, w.m), ceilDiv(p.ho, w.m)
	total := n * p.ty
	p.rows = min(max(winoTiles(w.m, s.Cin)/p.tx, 1), total)
	p.items = ceilDiv(total, p.rows)
	p.rows = ceilDiv(total, p.items)
	p.items = ceilDiv(total, p.rows)
	p.pitch = p.tx*w.m + 2
	p.bufRows = min(p.rows, p.ty)*w.m + 2
	al := w.m + 2
	tiles := p.rows * p.tx
	// A line more, lest all values of a tile fall into one set of the cache.
	p.vStep = roundUp(tiles*s.Cin, 16) + 16
	p.mStep = tiles*w.per*c.ops.nr + 16
	p.vSize, p.mSize = al*al*p.vStep, al*al*p.mStep
	p.shared = workers > 1 && p.items < 3*workers
	p.perWorker = roundUp(p.bufRows*p.pitch*s.Cin, 16) + p.mSize
	if !p.shared {
		p.perWorker += p.vSize
	}
	return p
}

func (w *winograd) biasStride(c *Conv) int { return roundUp(c.panels*c.ops.nr, 16) }

func (p *winoPlan) total(w *winograd, c *Conv, workers int) int {
	tiles := p.rows * p.tx
	n := alignSlack + workers*p.perWorker + p.n*w.biasStride(c) +
		roundUp(2*tiles, 16) + roundUp(4*ceilDiv(c.spec.Cin, c.ops.kc), 16)
	if p.shared {
		n += p.items * p.vSize
	}
	return n
}

func (w *winograd) scratch(c *Conv, workers, n, h, wd int, pad Pad, in *Input) int {
	p := w.plan(c, workers, n, h, wd, pad, in)
	return p.total(w, c, workers)
}

type winoJob struct {
	c      *Conv
	in     Input
	ep     Epilogue
	dst    []float32
	plan   winoPlan
	phase  uint8
	groups int // column groups per item of the last phase
	v      []float32
	work   []float32
	bias   []float32
	rows   []int64
	segs   []int64
}

const (
	winoWhole  uint8 = iota // transform and multiply
	winoBefore              // transform into the shared buffer
	winoAfter               // multiply one group of columns
)

func (j *winoJob) run(p *Pool, c *Conv, dst []float32, in *Input, n, h, wd int, pad Pad, scratch []float32, ep *Epilogue) {
	w := c.wino
	j.c, j.in, j.ep, j.dst = c, *in, *ep, dst
	j.plan = w.plan(c, p.workers, n, h, wd, pad, in)
	pl := &j.plan
	need("scratch", scratch, pl.total(w, c, p.workers))
	cv := carve(scratch)
	if pl.shared {
		j.v = cv.take(pl.items * pl.vSize)
	}
	j.work = cv.take(p.workers * pl.perWorker)
	bs := w.biasStride(c)
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
		j.rows[i] = int64(i) * int64(c.spec.Cin) * 4
	}
	parts := ceilDiv(c.spec.Cin, c.ops.kc)
	step := ceilDiv(c.spec.Cin, parts)
	j.segs = int64s(cv.take(4*parts), 2*parts)
	for i := range parts {
		j.segs[2*i], j.segs[2*i+1] = int64(i*step*4), int64(min(step, c.spec.Cin-i*step))
	}
	if !pl.shared {
		j.phase, j.groups = winoWhole, 1
		p.run(pl.items, j)
		return
	}
	j.phase = winoBefore
	p.run(pl.n*pl.ty, j)
	j.phase, j.groups = winoAfter, w.groups
	p.run(pl.items*j.groups, j)
}

func (j *winoJob) do(worker, item int) {
	pl, w, c := &j.plan, j.c.wino, j.c
	work := carver{s: j.work[worker*pl.perWorker : (worker+1)*pl.perWorker]}
	buf := work.take(pl.bufRows * pl.pitch * c.spec.Cin)
	m := work.take(pl.mSize)
	switch j.phase {
	case winoWhole:
		v := work.take(pl.vSize)
		first := item * pl.rows
		last := min(first+pl.rows, pl.n*pl.ty)
		j.transform(v, buf, first, first, last)
		for g := range w.groups {
			j.multiply(v, m, g, first, last)
		}
	case winoBefore:
		it := item / pl.rows
		first := it * pl.rows
		j.transform(j.v[it*pl.vSize:], buf, first, item, item+1)
	case winoAfter:
		it, g := item/j.groups, item%j.groups
		first := it * pl.rows
		last := min(first+pl.rows, pl.n*pl.ty)
		j.multiply(j.v[it*pl.vSize:], m, g, first, last)
	}
}

// transform fills the tile rows [from, to) of the item that begins at tile
// row first. Tile rows are counted over all images.
func (j *winoJob) transform(v, buf []float32, first, from, to int) {
	pl, w, c := &j.plan, j.c.wino, j.c
	cin, m := c.spec.Cin, w.m
	for r := from; r < to; {
		n, y := r/pl.ty, r%pl.ty
		cnt := min(to-r, pl.ty-y)
		fillInput(c.ops, buf, &j.in, n, pl.hi, pl.wi, pl.pad, cin,
			y*m, (y+cnt)*m+2, 0, pl.pitch, pl.pitch, c.dtype)
		for q := range cnt {
			for ch := 0; ch < cin; ch += winoChannels {
				some := min(winoChannels, cin-ch)
				c.ops.winoIn(m, &v[(r+q-first)*pl.tx*cin+ch], &buf[q*m*pl.pitch*cin+ch],
					pl.vStep*4, pl.pitch*cin*4, cin*4, m*cin*4, some, pl.tx, (cin-some)*4)
			}
		}
		r += cnt
	}
}

// multiply computes one group of output columns of the tile rows [first, last).
func (j *winoJob) multiply(v, m []float32, group, first, last int) {
	pl, w, c := &j.plan, j.c.wino, j.c
	o, s := c.ops, &c.spec
	tiles := (last - first) * pl.tx
	panels := min(w.per, c.panels-group*w.per)
	cols := panels * o.nr
	al := w.m + 2
	for value := range al * al {
		a := unsafe.Pointer(&v[value*pl.vStep])
		for pn := range panels {
			g := gemmArgs{
				c: unsafe.Pointer(&m[value*pl.mStep+pn*o.nr]), ldc: int64(cols) * 4,
				a: a, rows: &j.rows[0], nseg: 1,
			}
			at := w.at(o, s.Cin, c.panels, group, value, pn)
			for i := 0; i < len(j.segs); i += 2 {
				g.b = unsafe.Pointer(&w.u[at])
				g.segs = (*segment)(unsafe.Pointer(&j.segs[i]))
				o.gemmRows(&g, tiles)
				g.acc = 1
				at += int(j.segs[i+1]) * o.nr
			}
		}
	}
	j0 := group * w.per * o.nr
	real := min(cols, s.Cout-j0)
	bs := w.biasStride(c)
	for r := first; r < last; r++ {
		n, y := r/pl.ty, r%pl.ty*w.m
		rows := min(w.m, pl.ho-y)
		for x := range pl.tx {
			out := ((n*pl.ho+y)*pl.wo+x*w.m)*s.Cout + j0
			var res *float32
			if j.ep.Residual != nil {
				res = &j.ep.Residual[out]
			}
			o.winoOut(w.m, &j.dst[out], &m[((r-first)*pl.tx+x)*cols], &j.bias[n*bs+j0], res,
				pl.mStep*4, pl.wo*s.Cout*4, s.Cout*4, rows, min(w.m, pl.wo-x*w.m), real)
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
func winoWeightsGo(m int, dst *float32, step int, src *float32, n int, g *float64) {
	al := m + 2
	gm := unsafe.Slice(g, 3*al)
	taps := unsafe.Slice(src, 9*n)
	for lane := range n {
		var half [6][3]float64
		for i := range al {
			for x := range 3 {
				for y := range 3 {
					half[i][x] += gm[3*i+y] * float64(taps[(3*y+x)*n+lane])
				}
			}
		}
		for i := range al {
			for j := range al {
				v := half[i][0]*gm[3*j] + half[i][1]*gm[3*j+1] + half[i][2]*gm[3*j+2]
				*(*float32)(unsafe.Add(unsafe.Pointer(dst), (i*al+j)*step+lane*4)) = float32(v)
			}
		}
	}
}

// winoInGo is the portable twin of the input transform.
func winoInGo(m int, dst, src *float32, dstStep, rowStep, pixStep, tileStep, c, tiles, skip int) {
	t := winoTables[m]
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
	t := winoTables[m]
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
