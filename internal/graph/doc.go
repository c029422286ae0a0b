// Package graph writes a network down as a list of kernel calls and runs it.
//
// A network is a function that calls the operations of a Graph in order, as
// it would be written in a framework that computes at once:
//
//	x := g.Input(h, w, 4)
//	y := g.Conv(l.Conv("conv_in", spec), graph.From(x), graph.Epilogue{})
//	...
//	g.Output(y)
//
// The graph notes what every call reads and writes; from that a Plan gives
// each buffer its place in one arena, such that buffers whose lives do not
// overlap share memory. Places are counted per image, so one plan serves every
// batch. With gradients asked for, the graph appends the calls of the
// vector-Jacobian product with respect to the Input, found by walking the
// operations backwards; only what depends on that input has one.
//
// An Engine runs plans: it owns arena and scratch, which grow to the largest
// plan and batch seen, and nothing is allocated from the second run of a plan
// on. Results do not depend on the batch size or the number of threads: no
// operation mixes images.
//
// Activations are NHWC float32. A sequence of tokens is an image of height 1.
package graph
