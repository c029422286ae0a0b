// Package unet2d runs diffusers' UNet2DModel on drift's native engine: the
// unconditional or class-conditional convolutional network of DDPM, DDIM and
// NCSN++ checkpoints.
//
// [New] checks a configuration, packs the weights of a checkpoint and gives a
// [Net], whose Forward maps images (N, C, H, W) and times to a prediction of
// the same shape. What is predicted (noise, sample, velocity) is not the
// network's business.
//
// # Memory and determinism
//
// Activations are NHWC float32 in one arena that is planned once per image
// size: every activation has a place that is reused as soon as its last reader
// has run. A place is proportional to the number of images, and a large batch
// goes through in groups whose activations are about as large as the weights.
// Nothing is allocated from the second Forward of a shape on. Images do not
// see each other: the result for an image depends neither on the batch it is
// in nor on the number of threads, bit for bit.
//
// # Precision
//
// The sinusoid of t is computed in float64 and rounded once. With BF16 the
// weights and inputs of convolutions and attention projections are rounded to
// bfloat16, while sums, normalisation, the time embedding and the first and
// the last convolution stay in float32.
package unet2d
