// Package kernels holds the compute kernels of the native inference engine:
// convolution, linear, matrix products, attention, normalisation and the
// elementwise functions between them, for one CPU and without cgo.
//
// # Layout
//
// Activations are float32 in NHWC order: the element (n, y, x, c) of a tensor
// of shape (N, H, W, C) is at ((n*H+y)*W+x)*C+c. Token tensors (N, T, C) are
// the same thing with H = 1. Weights arrive in the order of the published
// checkpoints (OIHW for convolutions, out-by-in for linears) and are packed
// once when a layer is made.
//
// # Tiers
//
// A [Tier] names an instruction set. The tier is fixed when a [Pool] and a
// layer are made, and the two must agree. [Detect] gives the best tier of the
// machine, [Portable] runs everywhere and is the twin every other tier is
// tested against.
//
// # Determinism
//
// Every output element is computed by one worker in one fixed order, so a
// result depends neither on the number of workers nor on the batch it was
// computed in: running N images at once equals running them one by one, bit
// for bit. Kernel paths are chosen by layer shape, data type and tier only.
// Different tiers round differently.
//
// # Memory
//
// No Run allocates. Whatever temporary memory a kernel needs is passed in as
// scratch, and a method or function whose name ends in Scratch tells how many
// float32 it must hold, so that a planner can own one arena.
package kernels

//go:generate go run ./gen
