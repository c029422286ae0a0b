package gguf

import (
	"encoding/binary"

	"drift/internal/half"
)

// The blocks of ggml. d is a scale and m a minimum, in float16; every product
// is rounded to float32 before it is added to something, as ggml and its Python
// package do it.

func f16(b []byte) float32 { return half.Float16(binary.LittleEndian.Uint16(b)) }

// q4_0: d (q - 8); low halves of the bytes are the first 16 numbers.
func q4_0(dst []float32, b []byte) {
	d, q := f16(b), b[2:]
	for i, v := range q[:16] {
		dst[i] = d * float32(int(v&15)-8)
		dst[i+16] = d * float32(int(v>>4)-8)
	}
}

// q4_1: d q + m.
func q4_1(dst []float32, b []byte) {
	d, m, q := f16(b), f16(b[2:]), b[4:]
	for i, v := range q[:16] {
		dst[i] = float32(d*float32(v&15)) + m
		dst[i+16] = float32(d*float32(v>>4)) + m
	}
}

// q5_0: d (q - 16), the fifth bits in a word of their own.
func q5_0(dst []float32, b []byte) {
	d, high, q := f16(b), binary.LittleEndian.Uint32(b[2:]), b[6:]
	for i, v := range q[:16] {
		dst[i] = d * float32(int(v&15)|int(high>>i&1)<<4-16)
		dst[i+16] = d * float32(int(v>>4)|int(high>>(i+16)&1)<<4-16)
	}
}

// q5_1: d q + m.
func q5_1(dst []float32, b []byte) {
	d, m, high, q := f16(b), f16(b[2:]), binary.LittleEndian.Uint32(b[4:]), b[8:]
	for i, v := range q[:16] {
		dst[i] = float32(d*float32(uint32(v&15)|high>>i&1<<4)) + m
		dst[i+16] = float32(d*float32(uint32(v>>4)|high>>(i+16)&1<<4)) + m
	}
}

// q8_0: d q.
func q8_0(dst []float32, b []byte) {
	d := f16(b)
	for i, v := range b[2:34] {
		dst[i] = d * float32(int8(v))
	}
}

// q2K: 16 numbers at a time have a scale and a minimum of four bits each; 32
// bytes hold two bits of four runs of 32.
func q2K(dst []float32, b []byte) {
	scales, d, m := b[:16], f16(b[80:]), f16(b[82:])
	for run := range 16 {
		s := scales[run]
		scale, low, shift := d*float32(s&15), m*float32(s>>4), run%8/2*2
		q := b[16+run/8*32+run%2*16:][:16]
		for i, v := range q {
			dst[run*16+i] = float32(scale*float32(v>>shift&3)) - low
		}
	}
}

// q3K: 16 numbers at a time have a scale of six bits; the third bits stand in
// a mask of their own.
func q3K(dst []float32, b []byte) {
	mask, q, packed, d := b[:32], b[32:96], b[96:108], f16(b[108:])
	var scales [16]int
	for i := range scales {
		scales[i] = int(packed[i%8]>>(i/8*4)&15) | int(packed[8+i%4]>>(i/4*2)&3)<<4 - 32
	}
	for run := range 16 {
		scale, shift := d*float32(scales[run]), run%8/2*2
		part, high := q[run/8*32+run%2*16:][:16], mask[run%2*16:][:16]
		for i, v := range part {
			dst[run*16+i] = scale * float32(int(v>>shift&3)-4+int(high[i]>>(run/2)&1)<<2)
		}
	}
}

// scaleMin unpacks scale and minimum i of the eight of Q4_K and Q5_K, six bits
// each.
func scaleMin(b []byte, i int) (s, m float32) {
	if i < 4 {
		return float32(b[i] & 63), float32(b[i+4] & 63)
	}
	return float32(b[i+4]&15 | b[i-4]>>6<<4), float32(b[i+4]>>4 | b[i]>>6<<4)
}

// q4K: 32 numbers at a time have a scale and a minimum; 32 bytes are the low
// halves of one such run and the high halves of the next.
func q4K(dst []float32, b []byte) {
	d, m, scales, q := f16(b), f16(b[2:]), b[4:16], b[16:144]
	for run := range 8 {
		s, low := scaleMin(scales, run)
		s, low = d*s, m*low
		for i, v := range q[run/2*32:][:32] {
			dst[run*32+i] = float32(s*float32(v>>(run%2*4)&15)) - low
		}
	}
}

// q5K is q4K with the fifth bits of run k in bit k of 32 bytes.
func q5K(dst []float32, b []byte) {
	d, m, scales, high, q := f16(b), f16(b[2:]), b[4:16], b[16:48], b[48:176]
	for run := range 8 {
		s, low := scaleMin(scales, run)
		s, low = d*s, m*low
		for i, v := range q[run/2*32:][:32] {
			dst[run*32+i] = float32(s*float32(v>>(run%2*4)&15|high[i]>>run&1<<4)) - low
		}
	}
}

// q6K: d s (q - 32); 16 numbers at a time have a scale of eight bits. Of every
// 128, 64 bytes hold the low halves, and 32 bytes two more bits of four runs of
// 32.
func q6K(dst []float32, b []byte) {
	d := f16(b[208:])
	for run := range 16 {
		at := run % 8 / 2 // run of 32 among 128
		scale := d * float32(int8(b[192+run]))
		low, high := b[run/8*64+at%2*32+run%2*16:][:16], b[128+run/8*32+run%2*16:][:16]
		shift, two := at/2*4, at*2
		for i, v := range low {
			dst[run*16+i] = scale * float32(int(v>>shift&15|high[i]>>two&3<<4)-32)
		}
	}
}
