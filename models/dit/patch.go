package dit

import (
	"fmt"
	"math"

	"drift/models/diffusers"
)

// prompts are the learned additions of a patched DiT (Diffusion Model Patching, Ham et al. 2024, arXiv 2405.17825, section 4):
// before block l, while there are prompts for it, every token's prompt is added by a gate of the time and the class,
//
//	g = softmax(W [c; l] + b),  c = time embedding + class embedding
//	x += g[token] P[l][token]
//
// They come with the checkpoint as prompt_embeddings (blocks, tokens, width), gate.weight (tokens, width+1) and gate.bias (tokens);
// w_noise belongs to training. Prompts of zeros, as training starts with, change nothing. The softmax is over all tokens, the
// published setting. They are tied to the size of the pictures they were made for.
type prompts struct {
	blocks, tokens, width int
	add, weight, bias     []float32
}

// promptTensors lists the tensors that a patched network has beside those of its configuration; none without prompts.
func promptTensors(cfg diffusers.DiTConfig, w diffusers.Weights) ([]diffusers.Tensor, error) {
	shape, ok := w.Shape(diffusers.DiTPrompts)
	if !ok {
		return nil, nil
	}
	more, err := cfg.Prompts(shape)
	if err != nil {
		return nil, fmt.Errorf("dit: %w", err)
	}
	return more, nil
}

// loadPrompts reads them.
func (n *Net) loadPrompts() error {
	shape, ok := n.weights.Shape(diffusers.DiTPrompts)
	if !ok {
		return nil
	}
	p := &prompts{blocks: shape[0], tokens: shape[1], width: shape[2]}
	for name, dst := range map[string]*[]float32{diffusers.DiTPrompts: &p.add, "gate.weight": &p.weight, "gate.bias": &p.bias} {
		var err error
		if *dst, err = n.read("", []string{name}); err != nil {
			return err
		}
	}
	n.prompts = p
	return nil
}

// gates writes the gates of a block for one image into dst, one per token.
func (p *prompts) gates(dst []float64, c []float32, block int) {
	top, sum := math.Inf(-1), 0.0
	for t := range dst {
		row := p.weight[t*(p.width+1) : (t+1)*(p.width+1)]
		v := float64(p.bias[t]) + float64(float64(row[p.width])*float64(block))
		for j, x := range c {
			v += float64(float64(row[j]) * float64(x))
		}
		dst[t] = v
		top = max(top, v)
	}
	for t, v := range dst {
		dst[t] = math.Exp(v - top)
		sum += dst[t]
	}
	for t := range dst {
		dst[t] /= sum
	}
}

// step adds a block's prompts to the tokens x of one image; g is room for the gates.
func (p *prompts) step(x, c []float32, block int, g []float64) {
	p.gates(g, c, block)
	add := p.add[block*p.tokens*p.width:]
	for t, w := range g {
		for j := t * p.width; j < (t+1)*p.width; j++ {
			x[j] += float32(w * float64(add[j]))
		}
	}
}

// prompts adds those of a block to x.
func (g *graph) prompts(block int, x buf) {
	p := g.net.prompts
	if p == nil || block >= p.blocks {
		return
	}
	c, room := g.cond, make([]float64, p.tokens)
	g.add(node{name: diffusers.DiTPrompts, kind: "prompts", tokens: p.tokens, c: p.width, macs: p.tokens * (2*p.width + 1), run: func(e *env) {
		tokens, cond := e.at(x), e.at(c)
		for i := range e.n {
			p.step(tokens[i*p.tokens*p.width:(i+1)*p.tokens*p.width], cond[i*p.width:(i+1)*p.width], block, room)
		}
	}})
}
