// Package pipeline puts the parts of a text-to-image model together: tokenizers
// and text encoders make of a prompt what the network attends to, and an
// autoencoder makes pictures of its latents.
package pipeline

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"drift/internal/graph"
	"drift/models"
	"drift/models/engine"
	"drift/models/text"
)

// Text encodes prompts for one class of pipelines.
type Text interface {
	// Prompt gives the inputs of one row of the network, shapes with a batch of
	// one. negative says that the text stands for "no prompt" in a guider.
	Prompt(ctx context.Context, prompt string, negative bool) (map[string]engine.Array, error)
	Close()
}

// Conditioner answers native.Denoiser.Inputs from the prompts of a question.
// It remembers what it encoded. A Conditioner is for one goroutine.
type Conditioner struct {
	Text
	// More gives inputs that depend on the size of the latents; may be nil.
	More func(n, h, w int) map[string]engine.Array
	// Encoded is called when prompts were encoded and are remembered; may be
	// nil.
	Encoded func()

	rows map[string]map[string]engine.Array // by prompt
	last []string
	size [2]int
	all  map[string]engine.Array
}

// Inputs stacks the rows of a question's prompts.
func (c *Conditioner) Inputs(ctx context.Context, q *models.Query) (map[string]engine.Array, error) {
	n := len(q.At)
	keys := make([]string, n)
	for i := range keys {
		keys[i] = "-" // nothing said
		if q.Cond != nil && len(q.Cond.Prompts) > 0 {
			keys[i] = "+" + q.Cond.Prompts[i]
		}
	}
	size := [2]int(q.X.Shape()[2:4])
	if slices.Equal(keys, c.last) && size == c.size {
		return c.all, nil
	}
	if c.rows == nil {
		c.rows = map[string]map[string]engine.Array{}
	}
	all := map[string]engine.Array{}
	encoded := false
	for i, key := range keys {
		row, ok := c.rows[key]
		if !ok {
			encoded = true
			var err error
			if row, err = c.Prompt(ctx, key[1:], key == "-"); err != nil {
				return nil, fmt.Errorf("pipeline: prompt %.60q: %w", key[1:], err)
			}
			c.rows[key] = row
		}
		for name, a := range row {
			whole := all[name]
			if i == 0 {
				whole.Shape = append([]int{n}, a.Shape[1:]...)
			}
			if !slices.Equal(whole.Shape[1:], a.Shape[1:]) {
				return nil, fmt.Errorf("pipeline: prompt %.60q: %s has shape %v, that of another row %v", key[1:], name, a.Shape[1:], whole.Shape[1:])
			}
			whole.Data = append(whole.Data, a.Data...)
			all[name] = whole
		}
	}
	if c.More != nil {
		for name, a := range c.More(n, size[0], size[1]) {
			all[name] = a
		}
	}
	if encoded && c.Encoded != nil {
		c.Encoded()
	}
	c.last, c.size, c.all = keys, size, all
	return all, nil
}

// Clip is a tokenizer and its encoder.
type Clip struct {
	Tokenizer *text.CLIPTokenizer
	Encoder   Encoder
}

// Encoder encodes rows of tokens: text.Encoder, or a network in an ONNX file.
// mask may be nil; skip is how many of the last layers are left out.
type Encoder interface {
	EncodeSkip(ctx context.Context, ids, mask [][]int, skip int) (*text.Output, error)
	Close()
}

// encode encodes a prompt with weighted parts. skip is how many of the last
// layers are left out.
func (c Clip) encode(ctx context.Context, prompt string, skip int) (*text.Output, []float64, error) {
	var ids []int
	weights := []float64{1}
	for _, part := range Parts(prompt) {
		more := c.Tokenizer.Tokens(part.Text)
		ids = append(ids, more...)
		for range more {
			weights = append(weights, part.Weight)
		}
	}
	row := c.Tokenizer.Fit(ids)
	weights = weights[:min(len(weights), len(row)-1)]
	for len(weights) < len(row) {
		weights = append(weights, 1)
	}
	out, err := c.Encoder.EncodeSkip(ctx, [][]int{row}, nil, skip)
	return out, weights, err
}

// Cut tells how many tokens a prompt has, and how many of them are read.
func (c Clip) Cut(prompt string) (tokens, read int) {
	for _, part := range Parts(prompt) {
		tokens += len(c.Tokenizer.Tokens(part.Text))
	}
	return tokens, c.Tokenizer.Length - 2
}

// weigh multiplies the state of every token by its weight, and all states by
// what keeps their mean.
func weigh(states []float32, weights []float64) []float32 {
	if !slices.ContainsFunc(weights, func(w float64) bool { return w != 1 }) {
		return states
	}
	out := make([]float32, len(states))
	width := len(states) / len(weights)
	var before, after float64
	for i, v := range states {
		u := float64(v) * weights[i/width]
		before, after = before+float64(v), after+u
		out[i] = float32(u)
	}
	if after != 0 {
		for i := range out {
			out[i] = float32(float64(out[i]) * before / after)
		}
	}
	return out
}

// Weighted is a part of a prompt and the weight of its tokens.
type Weighted struct {
	Text   string
	Weight float64
}

// Parts cuts a prompt at (text:weight), with a number for the weight.
// Everything else, other parentheses included, has the weight 1.
func Parts(prompt string) []Weighted {
	var out []Weighted
	plain := func(s string) {
		if s != "" {
			out = append(out, Weighted{s, 1})
		}
	}
	for {
		open, shut, w, ok := weighted(prompt)
		if !ok {
			plain(prompt)
			return out
		}
		plain(prompt[:open])
		body := prompt[open+1 : shut]
		out = append(out, Weighted{body[:strings.LastIndexByte(body, ':')], w})
		prompt = prompt[shut+1:]
	}
}

// weighted finds the first (text:weight).
func weighted(s string) (open, shut int, w float64, ok bool) {
	for shut = 0; shut < len(s); shut++ {
		if s[shut] != ')' {
			continue
		}
		open = strings.LastIndexByte(s[:shut], '(')
		if open < 0 {
			continue
		}
		colon := strings.LastIndexByte(s[open:shut], ':')
		if colon < 2 {
			continue
		}
		var rest string
		if n, err := fmt.Sscanf(s[open+colon+1:shut]+"|", "%g%s", &w, &rest); n == 2 && err == nil && rest == "|" && w >= 0 && w < 100 {
			return open, shut, w, true
		}
	}
	return 0, 0, 0, false
}

// SD is the text of Stable Diffusion 1 and 2: the last state of one CLIP.
type SD struct {
	Clip
	Skip int // layers left out at the end ("clip skip" minus 1 of other tools)
}

// Prompt implements Text.
func (t SD) Prompt(ctx context.Context, prompt string, _ bool) (map[string]engine.Array, error) {
	out, w, err := t.encode(ctx, prompt, t.Skip)
	if err != nil {
		return nil, err
	}
	return map[string]engine.Array{"encoder_hidden_states": {Shape: []int{1, out.Tokens, out.Width}, Data: weigh(out.Last, w)}}, nil
}

// Close implements Text.
func (t SD) Close() { t.Encoder.Close() }

// SDXL is the text of Stable Diffusion XL: the last state but one of two CLIPs
// side by side, and the projected text of the second.
type SDXL struct {
	First, Second Clip
	Skip          int
	ZeroEmpty     bool // "no prompt" is all zeros, not the empty text
}

// Prompt implements Text.
func (t SDXL) Prompt(ctx context.Context, prompt string, negative bool) (map[string]engine.Array, error) {
	states, pooled, err := pair(ctx, t.First, t.Second, prompt, t.Skip)
	if err != nil {
		return nil, err
	}
	p := pooled[1]
	if t.ZeroEmpty && negative {
		clear(states.Data)
		p = make([]float32, len(p))
	}
	return map[string]engine.Array{"encoder_hidden_states": states, "added_text_embeds": {Shape: []int{1, len(p)}, Data: p}}, nil
}

// Cut is Clip.Cut.
func (t SDXL) Cut(prompt string) (tokens, read int) { return t.First.Cut(prompt) }

// Close implements Text.
func (t SDXL) Close() { t.First.Encoder.Close(); t.Second.Encoder.Close() }

// pair is the last hidden state but one of two encoders side by side, and both
// pooled vectors (projected where the encoder projects).
func pair(ctx context.Context, a, b Clip, prompt string, skip int) (states engine.Array, pooled [2][]float32, err error) {
	var parts [2][]float32
	var widths [2]int
	tokens := 0
	for i, c := range []Clip{a, b} {
		out, w, err := c.encode(ctx, prompt, 0)
		if err != nil {
			return states, pooled, err
		}
		layer := len(out.Hidden) - 2 - skip
		if layer < 0 {
			return states, pooled, fmt.Errorf("clip skip %d of %d layers", skip, len(out.Hidden)-1)
		}
		parts[i], widths[i], tokens = weigh(out.Hidden[layer], w), out.Width, out.Tokens
		if pooled[i] = out.Projected; pooled[i] == nil {
			pooled[i] = out.Pooled
		}
	}
	states = engine.Array{Shape: []int{1, tokens, widths[0] + widths[1]}}
	for t := range tokens {
		for i, p := range parts {
			states.Data = append(states.Data, p[t*widths[i]:(t+1)*widths[i]]...)
		}
	}
	return states, pooled, nil
}

// T5 is a tokenizer and encoder of T5, with the number of tokens that a text
// is padded to.
type T5 struct {
	Tokenize func(prompt string, length int) (ids, mask []int) // nil: no T5, all states are zero
	Encoder  Encoder
	Length   int
}

// Cut is Clip.Cut.
func (t T5) Cut(prompt string) (tokens, read int) {
	if t.Tokenize == nil {
		return 0, 0
	}
	const most = 1 << 14
	_, mask := t.Tokenize(plain(prompt), most)
	for _, m := range mask {
		tokens += m
	}
	return tokens - 1, t.Length - 1
}

// plain is a prompt without its weights.
func plain(prompt string) string {
	var b strings.Builder
	for _, p := range Parts(prompt) {
		b.WriteString(p.Text)
	}
	return b.String()
}

// states are the states of all tokens, the padding's included.
func (t T5) states(ctx context.Context, prompt string, width int, masked bool) (a engine.Array, mask []int, err error) {
	a.Shape = []int{1, t.Length, width}
	if t.Tokenize == nil {
		a.Data = make([]float32, t.Length*width)
		return a, nil, nil
	}
	ids, mask := t.Tokenize(plain(prompt), t.Length)
	var masks [][]int
	if masked {
		masks = [][]int{mask}
	}
	out, err := t.Encoder.EncodeSkip(ctx, [][]int{ids}, masks, 0)
	if err != nil {
		return a, nil, err
	}
	if out.Width != width {
		return a, nil, fmt.Errorf("the text encoder is %d wide, the network reads %d", out.Width, width)
	}
	a.Data = out.Last
	return a, mask, nil
}

func (t T5) close() {
	if t.Encoder != nil {
		t.Encoder.Close()
	}
}

// SD3 is the text of Stable Diffusion 3: the last states but one of two CLIPs
// side by side, padded to the network's width, then the states of T5.
type SD3 struct {
	First, Second Clip
	T5            T5
	Skip          int
	Width         int // joint_attention_dim
}

// Prompt implements Text.
func (t SD3) Prompt(ctx context.Context, prompt string, _ bool) (map[string]engine.Array, error) {
	states, pooled, err := pair(ctx, t.First, t.Second, prompt, t.Skip)
	if err != nil {
		return nil, err
	}
	long, _, err := t.T5.states(ctx, prompt, t.Width, false)
	if err != nil {
		return nil, err
	}
	tokens, width := states.Shape[1], states.Shape[2]
	if width > t.Width {
		return nil, fmt.Errorf("the text encoders are %d wide together, the network reads %d", width, t.Width)
	}
	all := make([]float32, tokens*t.Width, (tokens+t.T5.Length)*t.Width)
	for i := range tokens {
		copy(all[i*t.Width:], states.Data[i*width:(i+1)*width])
	}
	vector := slices.Concat(pooled[0], pooled[1])
	return map[string]engine.Array{
		"encoder_hidden_states": {Shape: []int{1, tokens + t.T5.Length, t.Width}, Data: append(all, long.Data...)},
		"pooled_projections":    {Shape: []int{1, len(vector)}, Data: vector},
	}, nil
}

// Cut is Clip.Cut of the encoder that reads more.
func (t SD3) Cut(prompt string) (tokens, read int) {
	if t.T5.Tokenize != nil {
		return t.T5.Cut(prompt)
	}
	return t.First.Cut(prompt)
}

// Close implements Text.
func (t SD3) Close() {
	t.First.Encoder.Close()
	t.Second.Encoder.Close()
	t.T5.close()
}

// Flux is the text of Flux: the states of T5, and CLIP's pooled vector.
type Flux struct {
	Clip  Clip
	T5    T5
	Width int
}

// Prompt implements Text.
func (t Flux) Prompt(ctx context.Context, prompt string, _ bool) (map[string]engine.Array, error) {
	out, _, err := t.Clip.encode(ctx, prompt, 0)
	if err != nil {
		return nil, err
	}
	long, _, err := t.T5.states(ctx, prompt, t.Width, false)
	if err != nil {
		return nil, err
	}
	return map[string]engine.Array{
		"encoder_hidden_states": long,
		"pooled_projections":    {Shape: []int{1, len(out.Pooled)}, Data: out.Pooled},
	}, nil
}

// Cut is T5.Cut.
func (t Flux) Cut(prompt string) (tokens, read int) { return t.T5.Cut(prompt) }

// Close implements Text.
func (t Flux) Close() { t.Clip.Encoder.Close(); t.T5.close() }

// PixArt is the text of PixArt: the states of one long encoder and the mask of
// its padding. The text is in small letters, without blanks around it.
type PixArt struct {
	T5    T5
	Width int
}

// Prompt implements Text.
func (t PixArt) Prompt(ctx context.Context, prompt string, _ bool) (map[string]engine.Array, error) {
	long, mask, err := t.T5.states(ctx, strings.TrimSpace(strings.ToLower(prompt)), t.Width, true)
	if err != nil {
		return nil, err
	}
	m := engine.Array{Shape: []int{1, len(mask)}}
	for _, v := range mask {
		m.Data = append(m.Data, float32(v))
	}
	return map[string]engine.Array{"encoder_hidden_states": long, "encoder_attention_mask": m}, nil
}

// Cut is T5.Cut.
func (t PixArt) Cut(prompt string) (tokens, read int) { return t.T5.Cut(prompt) }

// Close implements Text.
func (t PixArt) Close() { t.T5.close() }

// Size is SDXL's condition on sizes: the picture as it is wanted, uncut.
func Size(factor int) func(n, h, w int) map[string]engine.Array {
	return func(n, h, w int) map[string]engine.Array {
		a := engine.Array{Shape: []int{n, 6}}
		for range n {
			ph, pw := float32(h*factor), float32(w*factor)
			a.Data = append(a.Data, ph, pw, 0, 0, ph, pw)
		}
		return map[string]engine.Array{"added_time_ids": a}
	}
}

// PixArtSize is the condition of PixArt at 1024 pixels: height and width of the
// picture, and height by width.
func PixArtSize(factor int) func(n, h, w int) map[string]engine.Array {
	return func(n, h, w int) map[string]engine.Array {
		size, ratio := engine.Array{Shape: []int{n, 2}}, engine.Array{Shape: []int{n, 1}}
		for range n {
			size.Data = append(size.Data, float32(h*factor), float32(w*factor))
			ratio.Data = append(ratio.Data, float32(float64(h)/float64(w)))
		}
		return map[string]engine.Array{"resolution": size, "aspect_ratio": ratio}
	}
}

// Constant is an input that is the same for every row.
func Constant(name string, row ...float32) func(n, h, w int) map[string]engine.Array {
	return func(n, _, _ int) map[string]engine.Array {
		a := engine.Array{Shape: []int{n, len(row)}, Data: slices.Repeat(row, n)}
		if len(row) == 1 && name == "guidance" {
			a.Shape = []int{n}
		}
		return map[string]engine.Array{name: a}
	}
}

// Both gives the inputs of two functions; the first may be nil.
func Both(a, b func(n, h, w int) map[string]engine.Array) func(n, h, w int) map[string]engine.Array {
	if a == nil {
		return b
	}
	return func(n, h, w int) map[string]engine.Array {
		all := a(n, h, w)
		for name, v := range b(n, h, w) {
			all[name] = v
		}
		return all
	}
}

// GuidanceCode is the code of a guidance scale minus 1 that a latent
// consistency model reads (Luo et al. 2023, arXiv:2310.04378): the sinusoid of
// 1000 w.
func GuidanceCode(w float64, width int) []float32 {
	code := make([]float32, width)
	graph.Sinusoid(code, 1000*w, 1, false)
	return code
}
