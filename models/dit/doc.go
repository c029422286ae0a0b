// Package dit runs diffusers' DiTTransformer2DModel on drift's native engine:
// the diffusion transformer of Peebles and Xie, "Scalable Diffusion Models
// with Transformers" (2023, arXiv:2212.09748), whose blocks see the time and
// the class only through adaptive layer norms (adaLN-Zero).
//
// [New] checks a configuration, packs the weights of a checkpoint and gives a
// [Net], whose Forward maps square images (N, C, S, S), times and classes to
// (N, C_out, S, S). With p by p patches, D channels and T = (S/p)^2 tokens:
//
//	x = W patch(image) + position
//	per block, of its own embedders:
//	  [shift, scale, gate, shift', scale', gate'] = W SiLU(MLP(sinusoid t) + E[class])
//	  x += gate  * attention(LN(x)(1 + scale) + shift)
//	  x += gate' * W2 gelu(W1 (LN(x)(1 + scale') + shift'))
//	out = unpatch(W (LN(x)(1 + scale) + shift))
//
// A network with twice as many output channels as input channels learned its
// variance too; its channels are all returned. Class num_embeds_ada_norm, the
// last row of the tables, stands for no class.
//
// A checkpoint with prompt_embeddings, gate.weight and gate.bias is a patched
// network (Diffusion Model Patching, arXiv 2405.17825): before block l
//
//	x += softmax(W [time + class embedding; l] + b)[token] P[l][token]
//
// and it takes pictures of one size only. The softmax is over all tokens.
//
// # Sizes
//
// An image of another size than sample_size keeps the extent of the position
// grid: token i of n is at i*base/n, base being the number of tokens on a side
// at sample_size. Only squares are accepted, as in diffusers.
//
// # Memory and determinism
//
// Activations are token-major float32 in one arena, laid out once per image
// size: the residual stream, a tensor as wide as it and one four times as
// wide. What a gradient needs is kept beside them. Nothing is allocated from
// the second Forward of a shape on. Images do not see each other: the result
// for an image depends neither on the batch it is in nor on the number of
// threads, bit for bit.
//
// # Precision
//
// The sinusoid of t and the position table are computed in float64 and rounded
// once. With BF16 the weights and inputs of the blocks' matrices are rounded to
// bfloat16, while sums, norms, the residual stream, softmax, the time
// embedding, the patches' first layer and the last layer stay in float32.
package dit
