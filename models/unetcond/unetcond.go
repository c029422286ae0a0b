// Package unetcond is UNet2DConditionModel, the network of Stable Diffusion 1,
// 2 and XL, on the native engine: a U-Net whose blocks attend to a text.
package unetcond

import (
	"fmt"
	"slices"
	"strings"

	"drift/internal/graph"
	"drift/internal/kernels"
	"drift/models/diffusers"
	"drift/models/engine"
)

// Inputs besides the images, by the reference's argument names.
const (
	Context     = "encoder_hidden_states"  // (N, tokens, cross_attention_dim): the text
	ContextMask = "encoder_attention_mask" // (N, tokens): 1 for tokens to attend to, 0 for others
	TimeCond    = "timestep_cond"          // (N, time_cond_proj_dim): the guidance scale of LCM networks
	AddedText   = "added_text_embeds"      // (N, width): the pooled text of SDXL
	AddedTimes  = "added_time_ids"         // (N, 6): original size, crop, target size of SDXL
	ClassInput  = "class_labels"           // (N, width), for class_embed_type identity and projection
)

type unet struct {
	*diffusers.UNet2DConditionConfig
	act  kernels.Activation
	temb int
}

var activations = map[string]kernels.Activation{
	"silu": kernels.SiLU, "swish": kernels.SiLU, "gelu": kernels.GELU, "relu": kernels.ReLU,
}

// New checks the configuration and packs the weights.
func New(cfg *diffusers.UNet2DConditionConfig, w diffusers.Weights, opt engine.Options) (*engine.Net, error) {
	act, ok := activations[strings.ToLower(cfg.ActFn)]
	if !ok {
		return nil, fmt.Errorf("unetcond: config act_fn = %q is not supported: only silu, swish, gelu, relu", cfg.ActFn)
	}
	u := &unet{cfg, act, cfg.TimeEmbeddingDim}
	if u.temb == 0 {
		u.temb = 4 * cfg.BlockOutChannels[0]
	}
	return engine.New(u, w, opt)
}

// usual is the size of the images that the network was made for.
func (u *unet) usual() (h, w int) {
	if u.SampleSize.H == 0 || u.SampleSize.W == 0 {
		return 64, 64
	}
	return u.SampleSize.H, u.SampleSize.W
}

// Usual implements engine.Network.
func (u *unet) Usual() (h, w int, inputs map[string][]int) {
	inputs = map[string][]int{}
	if u.attends() {
		inputs[Context] = []int{77, u.CrossAttentionDim[0]}
	}
	if u.TimeCondProjDim > 0 {
		inputs[TimeCond] = []int{u.TimeCondProjDim}
	}
	if u.AdditionEmbedType == "text_time" {
		inputs[AddedText] = []int{u.ProjectionClassEmbeddingsDim - timeIDs*u.AdditionTimeEmbedDim}
		inputs[AddedTimes] = []int{timeIDs}
	}
	switch u.ClassEmbedType {
	case "identity":
		inputs[ClassInput] = []int{u.temb}
	case "projection", "simple_projection":
		inputs[ClassInput] = []int{u.ProjectionClassEmbeddingsDim}
	}
	h, w = u.usual()
	return h, w, inputs
}

// timeIDs is the number of SDXL's sizes and crops.
const timeIDs = 6

// Config implements engine.Network.
func (u *unet) Config() diffusers.Config { return u.UNet2DConditionConfig }

// Channels implements engine.Network.
func (u *unet) Channels() (in, out int) { return u.InChannels, u.OutChannels }

// Output implements engine.Network.
func (u *unet) Output(h, w int) (int, int, error) {
	if least := 1 << (len(u.BlockOutChannels) - 1); h < least || w < least {
		return 0, 0, engine.BadInput("images of %dx%d are too small for %d levels", h, w, len(u.BlockOutChannels))
	}
	return h, w, nil
}

func (u *unet) attends() bool {
	return u.MidBlockType == "UNetMidBlock2DCrossAttn" || slices.Contains(u.DownBlockTypes, "CrossAttnDownBlock2D") ||
		slices.Contains(u.UpBlockTypes, "CrossAttnUpBlock2D")
}

// Check implements engine.Network.
func (u *unet) Check(b *engine.Batch) error {
	known := []string{}
	want := func(name string, needed bool, shape ...int) error {
		if !needed {
			return nil
		}
		known = append(known, name)
		return b.Want(name, shape...)
	}
	_, masked := b.Inputs[ContextMask]
	_, timed := b.Inputs[TimeCond]
	text, ids := 0, timeIDs
	if u.AdditionEmbedType == "text_time" {
		if a, ok := b.Inputs[AddedTimes]; ok && len(a.Shape) == 2 {
			ids = a.Shape[1]
		}
		text = u.ProjectionClassEmbeddingsDim - ids*u.AdditionTimeEmbedDim
	}
	for _, err := range []error{
		want(Context, u.attends(), 0, u.CrossAttentionDim[0]),
		want(ContextMask, masked && u.attends(), 0),
		want(TimeCond, timed && u.TimeCondProjDim > 0, u.TimeCondProjDim),
		want(AddedText, u.AdditionEmbedType == "text_time", text),
		want(AddedTimes, u.AdditionEmbedType == "text_time", 0),
		want(ClassInput, u.ClassEmbedType == "identity", u.temb),
		want(ClassInput, strings.HasSuffix(u.ClassEmbedType, "projection"), u.ProjectionClassEmbeddingsDim),
		b.Refuse(known...),
	} {
		if err != nil {
			return err
		}
	}
	if masked && b.Inputs[ContextMask].Shape[1] != b.Inputs[Context].Shape[1] {
		return engine.BadInput("%d mask values for %d tokens", b.Inputs[ContextMask].Shape[1], b.Inputs[Context].Shape[1])
	}
	table := u.ClassEmbedType == "" && u.NumClassEmbeds > 0
	switch labels := table || u.ClassEmbedType == "timestep"; {
	case labels && len(b.Class) != len(b.T):
		return engine.BadInput("%d class labels for %d images", len(b.Class), len(b.T))
	case !labels && len(b.Class) > 0:
		return engine.BadInput("class labels given, the network has no class embedding for them")
	}
	for _, c := range b.Class {
		if table && (c < 0 || c >= u.NumClassEmbeds) {
			return engine.BadInput("class %d is not in [0, %d)", c, u.NumClassEmbeds)
		}
	}
	return nil
}

// Key implements engine.Network.
func (u *unet) Key(b *engine.Batch) string {
	_, masked := b.Inputs[ContextMask]
	_, timed := b.Inputs[TimeCond]
	return fmt.Sprint(tokens(b), masked, timed)
}

func tokens(b *engine.Batch) int {
	if c, ok := b.Inputs[Context]; ok {
		return c.Shape[1]
	}
	return 0
}

// Fill implements engine.Network.
func (u *unet) Fill(e *graph.Env, b *engine.Batch, lo, hi int) {
	width := u.BlockOutChannels[0]
	times := e.Fed("time")
	for i, t := range b.T[lo:hi] {
		graph.Sinusoid(times[i*width:(i+1)*width], t, u.FreqShift, u.FlipSinToCos)
	}
	if u.CenterInputSample {
		x := e.Fed("")
		for i, v := range x {
			x[i] = 2*v - 1
		}
	}
	b.Fill(e, Context, lo, hi)
	b.Fill(e, TimeCond, lo, hi)
	b.Fill(e, ClassInput, lo, hi)
	if bias := e.Fed(ContextMask); bias != nil {
		n := len(bias) / (hi - lo)
		for i := lo; i < hi; i++ {
			for j, m := range b.Inputs[ContextMask].Row(i) {
				bias[(i-lo)*n+j] = (1 - m) * -10000
			}
		}
	}
	if rows := e.Fed("added"); rows != nil {
		n := u.ProjectionClassEmbeddingsDim
		for i := lo; i < hi; i++ {
			row := rows[(i-lo)*n : (i-lo+1)*n]
			row = row[copy(row, b.Inputs[AddedText].Row(i)):]
			for _, id := range b.Inputs[AddedTimes].Row(i) {
				graph.Sinusoid(row[:u.AdditionTimeEmbedDim], float64(id), u.FreqShift, u.FlipSinToCos)
				row = row[u.AdditionTimeEmbedDim:]
			}
		}
	}
	if rows := e.Fed("class"); rows != nil {
		n := len(rows) / (hi - lo)
		for i, c := range b.Class[lo:hi] {
			if u.ClassEmbedType == "timestep" {
				graph.Sinusoid(rows[i*n:(i+1)*n], float64(c), u.FreqShift, u.FlipSinToCos)
			}
		}
	}
	if rows := e.Fed("label"); rows != nil { // numbers of rows of the table
		for i, c := range b.Class[lo:hi] {
			rows[i] = float32(c)
		}
	}
}

// builder writes the network down.
type builder struct {
	*unet
	engine.Blocks
	emb     graph.Value // act(time embedding), a row per image
	context graph.Value
	mask    graph.Value
}

// Build implements engine.Network.
func (u *unet) Build(g *graph.Graph, b *engine.Batch) {
	h0, w0 := u.usual()
	n := &builder{unet: u, Blocks: engine.Blocks{Graph: g, Groups: u.NormNumGroups, Eps: u.NormEps, Act: u.act, H: h0, W: w0}}
	x := g.Input(b.H, b.W, u.InChannels)
	if t := tokens(b); t > 0 {
		n.context = g.Feed(Context, 1, t, u.CrossAttentionDim[0])
		if _, ok := b.Inputs[ContextMask]; ok {
			n.mask = g.Feed(ContextMask, 1, t, 1)
		}
	}
	_, timed := b.Inputs[TimeCond]
	n.embedding(timed)

	width, last := u.BlockOutChannels, len(u.BlockOutChannels)-1
	h := n.Conv("conv_in", graph.From(x), width[0], u.ConvInKernel, graph.Exact)
	skips := []graph.Value{h}
	resnet := func(name string, skip graph.Value, out int, scale float64) graph.Value {
		return n.Resnet(name, h, out, engine.Resnet{Skip: skip, Time: n.emb, ScaleShift: u.ResnetTimeScaleShift == "scale_shift", Scale: scale})
	}
	for i, kind := range u.DownBlockTypes {
		n.Level = i
		name := fmt.Sprintf("down_blocks.%d", i)
		for j := range u.LayersPerBlock[i] {
			h = resnet(fmt.Sprintf("%s.resnets.%d", name, j), graph.Value{}, width[i], 1)
			if kind == "CrossAttnDownBlock2D" {
				h = n.transformer(fmt.Sprintf("%s.attentions.%d", name, j), h, i)
			}
			skips = append(skips, h)
		}
		if i < last {
			h = n.Down(name+".downsamplers.0.conv", h, width[i], u.DownsamplePadding)
			skips = append(skips, h)
		}
	}
	n.Level = last
	if u.MidBlockType != "" {
		h = resnet("mid_block.resnets.0", graph.Value{}, width[last], u.MidBlockScaleFactor)
		if u.MidBlockType == "UNetMidBlock2DCrossAttn" {
			h = n.transformer("mid_block.attentions.0", h, last)
			h = resnet("mid_block.resnets.1", graph.Value{}, width[last], u.MidBlockScaleFactor)
		}
	}
	for i, kind := range u.UpBlockTypes {
		name, level := fmt.Sprintf("up_blocks.%d", i), last-i
		n.Level = level
		for j := range u.LayersPerBlock[level] + 1 {
			skip := skips[len(skips)-1]
			skips = skips[:len(skips)-1]
			h = resnet(fmt.Sprintf("%s.resnets.%d", name, j), skip, width[level], 1)
			if kind == "CrossAttnUpBlock2D" {
				h = n.transformer(fmt.Sprintf("%s.attentions.%d", name, j), h, level)
			}
		}
		if i < last {
			n.Level = level - 1
			in := graph.Source{X: h, Up: true}
			if to := skips[len(skips)-1]; to.H != 2*h.H || to.W != 2*h.W { // odd sizes
				in = graph.From(g.Resize(name+".upsamplers.0", h, to.H, to.W))
			}
			h = n.Conv(name+".upsamplers.0.conv", in, width[level], 3)
		}
	}
	n.Level = 0
	in := graph.Source{X: h, Norm: n.Norm("conv_norm_out", h, graph.Value{}), Act: n.act}
	g.Output(n.Conv("conv_out", in, u.OutChannels, u.ConvOutKernel, graph.Exact))
}

// embedding is the row of every image that all residual blocks read.
func (n *builder) embedding(timed bool) {
	g, l := n.Graph, n.Layers
	two := func(name string, x graph.Value, ep graph.Epilogue) graph.Value {
		h := g.Linear(l.ExactLinear(name+".linear_1", x.C, n.temb), graph.From(x), graph.Epilogue{Act: n.act})
		return g.Linear(l.ExactLinear(name+".linear_2", n.temb, n.temb), graph.From(h), ep)
	}
	time := g.Feed("time", 1, 1, n.BlockOutChannels[0])
	if timed {
		cond := g.Feed(TimeCond, 1, 1, n.TimeCondProjDim)
		time = g.Linear(l.ExactLinear("time_embedding.cond_proj", cond.C, time.C), graph.From(cond), graph.Epilogue{Residual: time})
	}
	var more graph.Value
	switch {
	case n.ClassEmbedType == "timestep":
		more = two("class_embedding", g.Feed("class", 1, 1, n.BlockOutChannels[0]), graph.Epilogue{})
	case n.ClassEmbedType == "projection":
		more = two("class_embedding", g.Feed(ClassInput, 1, 1, n.ProjectionClassEmbeddingsDim), graph.Epilogue{})
	case n.ClassEmbedType == "simple_projection":
		in := g.Feed(ClassInput, 1, 1, n.ProjectionClassEmbeddingsDim)
		more = g.Linear(l.ExactLinear("class_embedding", in.C, n.temb), graph.From(in), graph.Epilogue{})
	case n.ClassEmbedType == "identity":
		more = g.Feed(ClassInput, 1, 1, n.temb)
	case n.NumClassEmbeds > 0:
		table, label := l.Tensor("class_embedding.weight"), g.Feed("label", 1, 1, 1)
		more = g.Rows("class_embedding", label, table, n.temb)
	}
	if n.AdditionEmbedType == "text_time" {
		more = two("add_embedding", g.Feed("added", 1, 1, n.ProjectionClassEmbeddingsDim), graph.Epilogue{Residual: more})
	}
	n.emb = two("time_embedding", time, graph.Epilogue{Residual: more, Act: n.act})
}

// transformerEps is the epsilon of a transformer's norms, whatever the
// configuration says of the residual blocks'.
const transformerEps, blockEps = 1e-6, 1e-5

// transformer is Transformer2DModel: attention among the pixels and to the
// text.
func (n *builder) transformer(name string, x graph.Value, level int) graph.Value {
	l, c := n.Layers, x.C
	proj := func(name string, in graph.Source, ep graph.Epilogue) graph.Value {
		if n.UseLinearProjection {
			return n.Linear(l.Linear(name, c, c), in, ep)
		}
		return n.Graph.Conv(l.Conv(name, n.Spec(c, c, 1)), in, ep)
	}
	norm := n.GroupNorm(l.Norm(name+".norm"), x, graph.Value{}, n.Groups, transformerEps, graph.Modulation{})
	h := proj(name+".proj_in", graph.Source{X: x, Norm: norm}, graph.Epilogue{})
	for i := range n.TransformerLayersPerBlock[level] {
		h = n.block(fmt.Sprintf("%s.transformer_blocks.%d", name, i), h, n.AttentionHeadDim[level], n.CrossAttentionDim[level])
	}
	return proj(name+".proj_out", graph.From(h), graph.Epilogue{Residual: x})
}

// block is BasicTransformerBlock: self-attention, attention to the text, and a
// feed-forward part with GEGLU, each after a layer norm and added to x.
func (n *builder) block(name string, x graph.Value, heads, contextWidth int) graph.Value {
	l, c := n.Layers, x.C
	norm := func(part string) graph.Value {
		return n.LayerNorm(l.Norm(name+part), x, blockEps, graph.Modulation{})
	}
	if attn := name + ".attn1"; !n.Skips(attn) {
		qkv := n.Linear(l.Linear(attn+".to_qkv", c, 3*c, attn+".to_q", attn+".to_k", attn+".to_v"), graph.From(norm(".norm1")), graph.Epilogue{})
		a := n.SelfAttention(graph.Attention{Name: attn, Heads: heads, Dim: c / heads}, qkv.Cols(0, c), qkv.Cols(c, c), qkv.Cols(2*c, c))
		x = n.Linear(l.Linear(attn+".to_out.0", c, c), graph.From(a), graph.Epilogue{Residual: x})
	}
	if attn := name + ".attn2"; !n.Skips(attn) {
		q := n.Linear(l.Linear(attn+".to_q", c, c), graph.From(norm(".norm2")), graph.Epilogue{})
		kv := n.Linear(l.Linear(attn+".to_kv", contextWidth, 2*c, attn+".to_k", attn+".to_v"), graph.From(n.context), graph.Epilogue{})
		a := n.Attention(graph.Attention{Name: attn, Heads: heads, Dim: c / heads, KeyBias: n.mask}, q.All(), kv.Cols(0, c), kv.Cols(c, c))
		x = n.Linear(l.Linear(attn+".to_out.0", c, c), graph.From(a), graph.Epilogue{Residual: x})
	}
	if ff := name + ".ff"; !n.Skips(ff) {
		h := n.Linear(l.Linear(ff+".net.0.proj", c, 8*c), graph.From(norm(".norm3")), graph.Epilogue{})
		x = n.Linear(l.Linear(ff+".net.2", 4*c, c), graph.From(n.GLU(ff, h, kernels.GELU)), graph.Epilogue{Residual: x})
	}
	return x
}
