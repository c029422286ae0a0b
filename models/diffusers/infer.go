package diffusers

import (
	"cmp"
	"fmt"
	"strings"

	"drift/internal/refuse"
)

// inferred reads configurations off the names and shapes of tensors.
type inferred struct {
	src   Source
	found map[string]place
	kind  string // of the pipeline, for people
}

// at gives the size of a dimension of a tensor, 0 where there is none.
func (in *inferred) at(name string, dim int) int {
	t, ok := in.src.Tensor(name)
	if !ok || dim >= len(t.Shape) {
		return 0
	}
	return t.Shape[dim]
}

func (in *inferred) has(name string) bool {
	_, ok := in.src.Tensor(name)
	return ok
}

// config gives the configuration of a component.
func (in *inferred) config(component string, p place) (Config, error) {
	var c Config
	switch component {
	case "unet":
		c = in.unet(p)
	case "vae":
		c = in.vae(p)
	default:
		c = in.clip(p, component == "text_encoder_2")
	}
	if f, ok := c.(interface{ finish() }); ok {
		f.finish()
	}
	if err := c.Validate(); err != nil {
		return nil, refuse.Errorf(in.src.Path(), "what its shapes say of a %s: %v", c.ClassName(), err)
	}
	return c, nil
}

// A unetLevel is one level of a U-Net.
type unetLevel struct {
	width, layers, depth int // depth 0: no attention
	context              int
	linear               bool // proj_in is a matrix
}

// depth counts the transformer blocks of an attention layer.
func (in *inferred) depth(l *unetLevel, attention string) {
	for l.depth <= maxDepth && in.has(fmt.Sprintf("%s.transformer_blocks.%d.norm1.weight", attention, l.depth)) {
		l.depth++
	}
	if t, ok := in.src.Tensor(attention + ".proj_in.weight"); ok {
		l.linear = len(t.Shape) == 2
	}
	l.context = in.at(attention+".transformer_blocks.0.attn2.to_k.weight", 1)
}

// levels walks down the encoder's half and returns its levels and the middle.
func (in *inferred) levels(p place) (list []unetLevel, middle unetLevel) {
	if !p.original {
		for i := 0; i < maxLevels; i++ {
			l := unetLevel{}
			for l.layers < maxDepth {
				block := fmt.Sprintf("%sdown_blocks.%d.", p.prefix, i)
				w := in.at(fmt.Sprintf("%sresnets.%d.conv1.weight", block, l.layers), 0)
				if w == 0 {
					break
				}
				if l.width = w; l.layers == 0 {
					in.depth(&l, block+"attentions.0")
				}
				l.layers++
			}
			if l.layers == 0 {
				break
			}
			list = append(list, l)
		}
		in.depth(&middle, p.prefix+"mid_block.attentions.0")
		return list, middle
	}
	l := unetLevel{}
	for n := 1; n < maxDepth; n++ {
		block := fmt.Sprintf("%sinput_blocks.%d.", p.prefix, n)
		if in.has(block + "0.op.weight") {
			list = append(list, l)
			l = unetLevel{}
			continue
		}
		w := in.at(block+"0.in_layers.2.weight", 0)
		if w == 0 {
			break
		}
		if l.width = w; l.layers == 0 {
			in.depth(&l, block+"1")
		}
		l.layers++
	}
	if l.layers > 0 {
		list = append(list, l)
	}
	in.depth(&middle, p.prefix+"middle_block.1")
	return list, middle
}

// headWidth is that of the attention heads of SD 2, SDXL and CLIP; SD 1 has
// sdHeads heads of any width.
const headWidth, sdHeads = 64, 8

func (in *inferred) unet(p place) *UNet2DConditionConfig {
	c := newUNet2DCondition()
	name := func(original, diffusers string) string {
		if p.original {
			return p.prefix + original
		}
		return p.prefix + diffusers
	}
	c.InChannels = in.at(name("input_blocks.0.0.weight", "conv_in.weight"), 1)
	c.OutChannels = in.at(name("out.2.weight", "conv_out.weight"), 0)
	levels, middle := in.levels(p)
	c.DownBlockTypes, c.UpBlockTypes, c.BlockOutChannels = nil, nil, nil
	c.LayersPerBlock, c.AttentionHeadDim, c.TransformerLayersPerBlock = nil, nil, nil
	for i, l := range levels {
		down, up := "DownBlock2D", "UpBlock2D"
		if l.depth > 0 {
			down, up = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
			c.UseLinearProjection = l.linear
		}
		if i == len(levels)-1 && l.depth == 0 {
			l.depth = middle.depth // that of the middle, which shares the level's number
		}
		if l.context > 0 {
			c.CrossAttentionDim = PerLevel{l.context}
		}
		c.DownBlockTypes = append(c.DownBlockTypes, down)
		c.UpBlockTypes = append([]string{up}, c.UpBlockTypes...)
		c.BlockOutChannels = append(c.BlockOutChannels, l.width)
		c.LayersPerBlock = append(c.LayersPerBlock, l.layers)
		c.TransformerLayersPerBlock = append(c.TransformerLayersPerBlock, max(l.depth, 1))
	}
	if middle.depth == 0 {
		c.MidBlockType = "UNetMidBlock2D"
	}
	for _, w := range c.BlockOutChannels {
		heads := sdHeads
		if c.UseLinearProjection {
			heads = max(w/headWidth, 1)
		}
		c.AttentionHeadDim = append(c.AttentionHeadDim, heads)
	}
	c.SampleSize, in.kind = Size{64, 64}, "Stable Diffusion 1"
	if c.UseLinearProjection {
		in.kind = "Stable Diffusion 2"
	}
	if n := in.at(name("label_emb.0.0.weight", "add_embedding.linear_1.weight"), 1); n > 0 {
		c.AdditionEmbedType, c.ProjectionClassEmbeddingsDim, c.AdditionTimeEmbedDim = "text_time", n, 256
		if text, ok := in.found["text_encoder_2"]; ok {
			if pooled := in.clip(text, true).ProjectionDim; pooled < n && (n-pooled)%6 == 0 {
				c.AdditionTimeEmbedDim = (n - pooled) / 6
			}
		}
		c.SampleSize, in.kind = Size{128, 128}, "Stable Diffusion XL"
	}
	if n := in.at(p.prefix+"time_embedding.cond_proj.weight", 1); n > 0 && !p.original {
		c.TimeCondProjDim = n
	}
	return c
}

func (in *inferred) vae(p place) *AutoencoderKLConfig {
	c := newAutoencoderKL()
	at := func(i, j int) string {
		if p.original {
			return fmt.Sprintf("%sencoder.down.%d.block.%d.conv1.weight", p.prefix, i, j)
		}
		return fmt.Sprintf("%sencoder.down_blocks.%d.resnets.%d.conv1.weight", p.prefix, i, j)
	}
	c.InChannels = in.at(p.prefix+"encoder.conv_in.weight", 1)
	c.OutChannels = in.at(p.prefix+"decoder.conv_out.weight", 0)
	c.LatentChannels = in.at(p.prefix+"decoder.conv_in.weight", 1)
	c.UseQuantConv, c.UsePostQuantConv = in.has(p.prefix+"quant_conv.weight"), in.has(p.prefix+"post_quant_conv.weight")
	c.MidBlockAddAttention = in.has(p.prefix+"encoder.mid.attn_1.norm.weight") || in.has(p.prefix+"encoder.mid_block.attentions.0.group_norm.weight")
	c.BlockOutChannels, c.DownBlockTypes, c.UpBlockTypes = nil, nil, nil
	for i := range maxLevels {
		w := in.at(at(i, 0), 0)
		if w == 0 {
			break
		}
		c.BlockOutChannels = append(c.BlockOutChannels, w)
		c.DownBlockTypes = append(c.DownBlockTypes, "DownEncoderBlock2D")
		c.UpBlockTypes = append(c.UpBlockTypes, "UpDecoderBlock2D")
	}
	for c.LayersPerBlock = 0; c.LayersPerBlock < maxDepth && in.has(at(0, c.LayersPerBlock)); c.LayersPerBlock++ {
	}
	c.SampleSize = Size{512, 512}
	switch _, xl := in.found["text_encoder_2"]; {
	case xl:
		c.SampleSize, c.ScalingFactor = Size{1024, 1024}, 0.13025
	case in.found["unet"] == (place{}) && c.LatentChannels == 4:
		c.Warnings = append(c.Warnings, "the scaling factor of latents, 0.18215 of SD 1 and 2, is taken: the file does not say it")
	}
	return c
}

func (in *inferred) clip(p place, projected bool) *CLIPTextConfig {
	f := whole
	if p.original {
		f = openCLIPNaming
	}
	of := func(name string, dim int) int { return in.at(p.prefix+f(name).name, dim) }
	c := newCLIPText(projected)
	c.VocabSize, c.HiddenSize = of("embeddings.token_embedding.weight", 0), of("embeddings.token_embedding.weight", 1)
	c.MaxPositionEmbeddings = of("embeddings.position_embedding.weight", 0)
	c.IntermediateSize = of("encoder.layers.0.mlp.fc1.weight", 0)
	c.NumAttentionHeads = max(c.HiddenSize/headWidth, 1)
	for c.NumHiddenLayers = 0; c.NumHiddenLayers <= maxDepth && of(fmt.Sprintf("encoder.layers.%d.layer_norm1.weight", c.NumHiddenLayers), 0) > 0; c.NumHiddenLayers++ {
	}
	argmax := 2 // of the ids, as the configurations of SD 1, 2 and XL say it
	c.EOSTokenID = &argmax
	if p.original || c.HiddenSize > 768 {
		c.HiddenAct = "gelu"
		if !projected {
			c.NumHiddenLayers-- // SD 2 takes the last state but one
		}
	}
	if projected {
		c.ProjectionDim = of("text_projection.weight", 0)
		if p.original {
			c.ProjectionDim = in.at(p.prefix+"text_projection", 1)
		}
		beside := strings.TrimSuffix(p.prefix, clipPrefix) + "text_projection.weight" // not below text_model
		c.ProjectionDim = cmp.Or(c.ProjectionDim, in.at(p.prefix+"text_projection", 1), in.at(beside, 0), c.HiddenSize)
	}
	return c
}

// The schedulers that were published with the models.
const (
	sdBetas   = `"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "steps_offset": 1`
	pndmText  = `{"_class_name": "PNDMScheduler", ` + sdBetas + `, "set_alpha_to_one": false, "skip_prk_steps": true, "prediction_type": %q}`
	ddimText  = `{"_class_name": "DDIMScheduler", ` + sdBetas + `, "set_alpha_to_one": false, "clip_sample": false, "prediction_type": %q, "rescale_betas_zero_snr": %v}`
	eulerText = `{"_class_name": "EulerDiscreteScheduler", ` + sdBetas + `, "timestep_spacing": "leading", "prediction_type": %q, "rescale_betas_zero_snr": %v}`
)

// predictions are the words for what a network predicts.
var predictions = map[string]string{"eps": "epsilon", "epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}

// scheduler is the one that such a model was published with. What SD 2
// predicts is not to be seen in the file.
func (in *inferred) scheduler(path string, src Source, unet *UNet2DConditionConfig, asked string) (*SchedulerConfig, []byte, error) {
	kind := predictions[asked]
	if asked != "" && kind == "" {
		return nil, nil, &PredictionError{fmt.Sprintf("--prediction %s: want eps or v", asked)}
	}
	_, v := src.Tensor("v_pred")
	_, zero := src.Tensor("ztsnr")
	switch {
	case kind != "":
	case v:
		kind = "v_prediction"
	case in.kind == "Stable Diffusion 2":
		return nil, nil, &PredictionError{path + " does not say what Stable Diffusion 2 predicts here: add --prediction v (the models for 768 pixels) or --prediction eps (base, 512, inpainting)"}
	default:
		kind = "epsilon"
	}
	text := fmt.Sprintf(pndmText, kind)
	switch in.kind {
	case "Stable Diffusion 2":
		text = fmt.Sprintf(ddimText, kind, zero)
		if kind == "v_prediction" {
			unet.SampleSize = Size{96, 96}
		}
	case "Stable Diffusion XL":
		text = fmt.Sprintf(eulerText, kind, zero)
	}
	c, err := ParseScheduler(path, []byte(text))
	return c, []byte(text), err
}

// PredictionError says that it must be said what a network predicts.
type PredictionError struct{ Reason string }

func (e *PredictionError) Error() string { return e.Reason }
