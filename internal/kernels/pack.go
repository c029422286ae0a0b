package kernels

import (
	"fmt"
	"sync"
)

// Rows gives a layer's weight as a checkpoint has it: it fills dst with whole
// rows, one per output channel and each of Cin*KH*KW values, from row first on.
type Rows func(dst []float32, first int) error

// PackConv packs a layer whose weight, (Cout, Cin, KH, KW), is read a panel at
// a time: beside what the layer keeps, no more than that is in memory. bias is
// (Cout) or nil. The error is that of rows. It panics if spec or bias make no
// sense.
func PackConv(tier Tier, dtype DType, spec ConvSpec, rows Rows, bias []float32) (*Conv, error) {
	spec = spec.normal()
	return packConv(tier, dtype, spec, rows, bias, methodOf(tier, dtype, spec))
}

// PackLinear is PackConv for the layer of [NewLinear].
func PackLinear(tier Tier, dtype DType, in, out int, rows Rows, bias []float32) (*Linear, error) {
	c, err := PackConv(tier, dtype, ConvSpec{Cin: in, Cout: out, KH: 1, KW: 1}, rows, bias)
	if err != nil {
		return nil, err
	}
	return &Linear{c}, nil
}

func packConv(tier Tier, dtype DType, spec ConvSpec, rows Rows, bias []float32, how method) (*Conv, error) {
	o := opsOf(tier)
	if how == direct {
		o = layerOps(tier, dtype, spec.Cout)
	}
	return packConvOn(o, tier, dtype, spec, rows, bias, how)
}

func packConvOn(o *ops, tier Tier, dtype DType, spec ConvSpec, rows Rows, bias []float32, how method) (*Conv, error) {
	if spec.Cin < 1 || spec.Cout < 1 || spec.KH < 1 || spec.KW < 1 {
		panic(fmt.Sprintf("kernels: convolution of shape %+v", spec))
	}
	if bias != nil && len(bias) != spec.Cout {
		panic(fmt.Sprintf("kernels: convolution bias has %d values for %d channels", len(bias), spec.Cout))
	}
	c := &Conv{spec: spec, tier: tier, dtype: dtype, ops: o, hasB: bias != nil, slots: spec.Cin, method: how}
	if o.pairs > 0 {
		c.slots = roundUp(spec.Cin, o.pairs) / 2
	}
	c.k = spec.KH * spec.KW * c.slots
	c.panels = ceilDiv(spec.Cout, o.nr)
	c.bias = alignedFloats(c.panels * o.nr)
	copy(c.bias, bias)
	c.cut()
	if dtype.widened() || how != direct && dtype == BF16 {
		c.w16 = make([]uint16, c.panels*o.nr*c.k)
	} else {
		c.w = alignedFloats(c.panels * o.nr * c.k)
	}
	if err := c.pack(rows); err != nil {
		return nil, err
	}
	if c.keeps() {
		c.keep()
	}
	return c, nil
}

// packFloats is about how many values are turned at a time: they stay in the
// first level cache.
const packFloats = 8 << 10

// packBuffers keeps buffers from layer to layer.
var packBuffers = sync.Pool{New: func() any { return new([]float32) }}

// pack turns the weight, a panel of nr rows at a time, into [k][nr], k being
// (channel, tap), and stores that as the method wants it.
func (c *Conv) pack(rows Rows) error {
	o, s := c.ops, &c.spec
	nr, taps := o.nr, s.KH*s.KW
	width := s.Cin * taps
	step := max(roundUp(packFloats/(taps*nr), 2), 2)
	size := (step + 1) * taps * nr
	hold := packBuffers.Get().(*[]float32)
	defer packBuffers.Put(hold)
	if need := nr*width + size + size/2 + 1; len(*hold) < need {
		*hold = make([]float32, need)
	}
	turned, stored := (*hold)[:size], bfloats((*hold)[size:][:size/2+1])
	in := (*hold)[size+size/2+1:][:nr*width]
	for pn := range c.panels {
		have := min(nr, s.Cout-pn*nr)
		if err := rows(in[:have*width], pn*nr); err != nil {
			return err
		}
		for c0 := 0; c0 < s.Cin; c0 += step {
			n := min(step, s.Cin-c0)
			part := turned[:n*taps*nr]
			packPanel(o, part, in[c0*taps:], n*taps, have, 0, width, true)
			c.store(pn, c0, n, turned, stored)
		}
	}
	return nil
}

// store keeps n channels from c0 on of a panel; part has room for one more.
func (c *Conv) store(pn, c0, n int, part []float32, stored []uint16) {
	o, s := c.ops, &c.spec
	nr, taps := o.nr, s.KH*s.KW
	at := pn * c.k * nr
	if o.pairs > 0 { // [tap][pair of channels][nr]
		if n%2 != 0 {
			clear(part[n*taps*nr : (n+1)*taps*nr])
		}
		for pair := range ceilDiv(n, 2) {
			for tap := range taps {
				to := at + (tap*c.slots+c0/2+pair)*nr
				o.pairRows(uint32At(c.w, to), &part[(2*pair*taps+tap)*nr], taps*nr*4, 1, nr)
			}
		}
		return
	}
	part = part[:n*taps*nr]
	stored = stored[:len(part)]
	switch c.dtype {
	case BF16:
		if c.w16 != nil {
			o.toBF16(stored, part)
		} else {
			o.roundBF16(part)
		}
	case F32OnBF16:
		o.toBF16(stored, part)
	case F32OnF16:
		o.toF16(stored, part)
	}
	if c.w16 == nil {
		c.place(pn, c0, n, func(to, from, n int) { copy(c.w[to:to+n], part[from:from+n]) })
	} else {
		c.place(pn, c0, n, func(to, from, n int) { copy(c.w16[to:to+n], stored[from:from+n]) })
	}
}

// place moves the channels' values to [tap][channel][nr], or leaves the order
// for Winograd's transform.
func (c *Conv) place(pn, c0, n int, move func(to, from, n int)) {
	nr, taps := c.ops.nr, c.spec.KH*c.spec.KW
	at := pn * c.k * nr
	if taps == 1 || c.method != direct {
		move(at+c0*taps*nr, 0, n*taps*nr)
		return
	}
	for ch := range n {
		for tap := range taps {
			move(at+(tap*c.slots+c0+ch)*nr, (ch*taps+tap)*nr, nr)
		}
	}
}

// rowsOf reads a weight that lies in memory.
func rowsOf(weight []float32, width int) Rows {
	return func(dst []float32, first int) error {
		copy(dst, weight[first*width:])
		return nil
	}
}
