// Package rng holds every source of randomness of drift. No draw comes from
// anywhere else, and none depends on batch size, thread count or order.
//
//   - [Torch] repeats torch's CPU generator, so that a run starts from the same
//     noise as the same seed gives elsewhere.
//   - [Normal] and [Uniform] are counter based: element i of a row is a function
//     of (seed, image, step, purpose, i) and of nothing else.
//   - [Brownian] is a Wiener path that can be asked at any times in any order.
//   - [RandomState] repeats the part of numpy's legacy generator that published
//     scores draw subsets with.
//   - [TorchCUDA] repeats the layout that other tools use to imitate torch.randn
//     on a CUDA device.
//
// The same seed gives the same bits on every architecture. Two things see to
// that. Go may fuse x*y + z where the hardware can, so a product that feeds a sum
// is converted explicitly, or fused on purpose by math.FMA, unless it is exact.
// And log, sin and cos are those of this package, because those of package math
// differ between architectures.
package rng
