package diffusers

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// The layout of the programs that Stable Diffusion was trained with: one file,
// whose names say where a module stands in lists (input_blocks.4.1), and
// OpenCLIP's names of a text encoder. Below, the names of diffusers are turned
// into those names, so that a configuration finds its tensors there.

// A piece is where a tensor stands in another layout.
type piece struct {
	name string
	// Part part of parts equal ones along the first dimension; 0: all.
	part, parts int
	transposed  bool
}

// A naming gives the piece that a tensor of diffusers is; an empty name where
// the layout has no such tensor.
type naming func(name string) piece

func whole(name string) piece { return piece{name: name} }

// under puts a prefix before the names of a layout.
func under(prefix string, f naming) naming {
	return func(name string) piece {
		p := f(name)
		if p.name != "" {
			p.name = prefix + p.name
		}
		return p
	}
}

// swap replaces the first of the pairs that a name begins with.
func swap(name string, pairs ...string) (string, bool) {
	for i := 0; i < len(pairs); i += 2 {
		if rest, ok := strings.CutPrefix(name, pairs[i]); ok {
			return pairs[i+1] + rest, true
		}
	}
	return "", false
}

// resnetNames are the parts of a ResnetBlock2D.
var resnetNames = []string{
	"norm1.", "in_layers.0.", "conv1.", "in_layers.2.", "time_emb_proj.", "emb_layers.1.",
	"norm2.", "out_layers.0.", "conv2.", "out_layers.3.", "conv_shortcut.", "skip_connection.",
}

var inBlock = regexp.MustCompile(`^(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)$`)

// unetNaming is the U-Net of Stable Diffusion. input_blocks counts conv_in,
// every layer and every downsampler; output_blocks every layer, whose
// upsampler stands behind its residual block and attention.
func unetNaming(c *UNet2DConditionConfig) naming {
	last := len(c.BlockOutChannels) - 1
	down, up := make([]int, last+1), make([]int, last+1) // number of a level's first block
	for i := range last {
		down[i+1] = down[i] + c.LayersPerBlock[i] + 1
		up[i+1] = up[i] + c.LayersPerBlock[last-i] + 1
	}
	return func(name string) piece {
		if n, ok := swap(name,
			"conv_in.", "input_blocks.0.0.", "time_embedding.linear_1.", "time_embed.0.", "time_embedding.linear_2.", "time_embed.2.",
			"add_embedding.linear_1.", "label_emb.0.0.", "add_embedding.linear_2.", "label_emb.0.2.",
			"class_embedding.linear_1.", "label_emb.0.0.", "class_embedding.linear_2.", "label_emb.0.2.",
			"conv_norm_out.", "out.0.", "conv_out.", "out.2.", "mid_block.attentions.0.", "middle_block.1."); ok {
			return whole(n)
		}
		for i, at := range []string{"middle_block.0.", "middle_block.2."} {
			if rest, ok := strings.CutPrefix(name, fmt.Sprintf("mid_block.resnets.%d.", i)); ok {
				rest, _ = swap(rest, resnetNames...)
				return whole(at + rest)
			}
		}
		m := inBlock.FindStringSubmatch(name)
		if m == nil {
			return piece{}
		}
		level, _ := strconv.Atoi(m[2])
		layer, _ := strconv.Atoi(m[4])
		if level > last {
			return piece{}
		}
		block := fmt.Sprintf("input_blocks.%d.", 1+down[level]+layer)
		if m[1] == "up" {
			block = fmt.Sprintf("output_blocks.%d.", up[level]+layer)
		}
		switch m[3] {
		case "resnets":
			rest, _ := swap(m[5], resnetNames...)
			return whole(block + "0." + rest)
		case "attentions":
			return whole(block + "1." + m[5])
		case "downsamplers":
			return whole(fmt.Sprintf("input_blocks.%d.0.op.", 1+down[level]+c.LayersPerBlock[level]) + strings.TrimPrefix(m[5], "conv."))
		}
		at := 1
		if c.UpBlockTypes[level] == "CrossAttnUpBlock2D" {
			at = 2
		}
		return whole(fmt.Sprintf("output_blocks.%d.%d.", up[level]+c.LayersPerBlock[last-level], at) + m[5])
	}
}

// attentionNames are the parts of an autoencoder's attention.
var attentionNames = []string{"group_norm.", "norm.", "to_q.", "q.", "to_k.", "k.", "to_v.", "v.", "to_out.0.", "proj_out."}

// vaeNaming is the autoencoder; its decoder counts levels from the finest.
func vaeNaming(c *AutoencoderKLConfig) naming {
	last := len(c.BlockOutChannels) - 1
	return func(name string) piece {
		if strings.HasPrefix(name, "quant_conv.") || strings.HasPrefix(name, "post_quant_conv.") {
			return whole(name)
		}
		side, rest, ok := strings.Cut(name, ".")
		if !ok {
			return piece{}
		}
		short := func(rest string) string { return strings.Replace(rest, "conv_shortcut.", "nin_shortcut.", 1) }
		if n, ok := swap(rest, "conv_in.", "conv_in.", "conv_out.", "conv_out.", "conv_norm_out.", "norm_out.",
			"mid_block.resnets.0.", "mid.block_1.", "mid_block.resnets.1.", "mid.block_2."); ok {
			return whole(side + "." + short(n))
		}
		if part, ok := strings.CutPrefix(rest, "mid_block.attentions.0."); ok {
			part, _ = swap(part, attentionNames...)
			return whole(side + ".mid.attn_1." + part)
		}
		m := inBlock.FindStringSubmatch(rest)
		if m == nil {
			return piece{}
		}
		level, _ := strconv.Atoi(m[2])
		if m[1] == "up" {
			level = last - level
		}
		block := fmt.Sprintf("%s.%s.%d.", side, m[1], level)
		switch m[3] {
		case "resnets":
			return whole(block + "block." + m[4] + "." + short(m[5]))
		case "downsamplers":
			return whole(block + "downsample." + m[5])
		case "upsamplers":
			return whole(block + "upsample." + m[5])
		}
		return piece{}
	}
}

// fusedProjection is one of the projections that OpenCLIP has in one.
var fusedProjection = regexp.MustCompile(`[qkv]_proj\.`)

var clipLayer = regexp.MustCompile(`^encoder\.layers\.(\d+)\.(.+)$`)

// openCLIPNaming is the text encoder of OpenCLIP: queries, keys and values in
// one matrix, and a projection that multiplies from the right.
func openCLIPNaming(name string) piece {
	switch name {
	case "embeddings.token_embedding.weight":
		return whole("token_embedding.weight")
	case "embeddings.position_embedding.weight":
		return whole("positional_embedding")
	case "text_projection.weight":
		return piece{name: "text_projection", transposed: true}
	}
	if n, ok := swap(name, "final_layer_norm.", "ln_final."); ok {
		return whole(n)
	}
	m := clipLayer.FindStringSubmatch(name)
	if m == nil {
		return piece{}
	}
	block := "transformer.resblocks." + m[1] + "."
	for i, p := range []string{"q", "k", "v"} {
		if suffix, ok := strings.CutPrefix(m[2], "self_attn."+p+"_proj."); ok {
			return piece{name: block + "attn.in_proj_" + suffix, part: i + 1, parts: 3}
		}
	}
	n, _ := swap(m[2], "self_attn.out_proj.", "attn.out_proj.", "layer_norm1.", "ln_1.", "layer_norm2.", "ln_2.",
		"mlp.fc1.", "mlp.c_fc.", "mlp.fc2.", "mlp.c_proj.")
	if n == "" {
		return piece{}
	}
	return whole(block + n)
}
