package diffusers

import (
	"cmp"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"drift/internal/refuse"
	"drift/internal/strictjson"
)

// The score networks of EDM and ADM in one file. Their tensors say nearly all
// of their configuration; a file NAME.drift.json beside NAME.safetensors, or
// Options.Config, says the rest, with the keys of a config.json.

// isEDM gives the prefix of the tensors of an EDM network.
func isEDM(src Source) (prefix string, ok bool) {
	for _, p := range []string{"", edmPrefix} {
		if _, ok := src.Tensor(p + "map_layer0.weight"); ok {
			return p, true
		}
	}
	return "", false
}

func isADM(src Source) bool {
	_, ok := src.Tensor("middle_block.1.qkv.weight")
	return ok
}

// SidecarEnd stands in place of the end of a file's name in that of its
// sidecar.
const SidecarEnd = ".drift.json"

func sidecarOf(path string) string { return strings.TrimSuffix(path, filepath.Ext(path)) + SidecarEnd }

// sidecar finds what is said beside a file; nil for nothing.
func sidecar(path string, opt Options) (*strictjson.Object, string, error) {
	name := sidecarOf(path)
	if opt.Config != "" {
		name = opt.Config
		if info, err := os.Stat(name); err == nil && info.IsDir() {
			name = filepath.Join(name, "config.json")
		}
	} else if !isFile(name) {
		return nil, "", nil
	}
	o, err := strictjson.ReadFile(name, maxConfig, strictjson.Limits{})
	if err != nil {
		return nil, "", fmt.Errorf("reading what is said of %s: %w", path, err)
	}
	return o, name, nil
}

// overlay sets what a sidecar says; keys that mean nothing are refused.
func overlay(c Config, o *strictjson.Object, path string) (said map[string]bool, err error) {
	said = map[string]bool{}
	if o == nil {
		return said, nil
	}
	if v, ok := o.Get("_class_name"); ok && v != c.ClassName() {
		return nil, refuse.Errorf(path, "says %v, but the tensors are those of a %s", show(v), c.ClassName())
	}
	for _, key := range o.Keys() {
		said[key] = true
	}
	d := decoder{path: path, object: o, dst: c, info: &Info{}, unknown: func(key string, value any) error {
		return refuse.Errorf(path, "unknown key %q of %s with the value %v", key, c.ClassName(), show(value))
	}}
	return said, d.decode()
}

// readScore finds a network of EDM or ADM; false if the file holds none.
func (s *single) readScore(src Source, opt Options) (bool, error) {
	in := &inferred{src: src}
	prefix, edm := isEDM(src)
	var cfg Config
	var levels []int // of ADM's attention
	var err error
	switch {
	case edm && in.has(prefix+"out_norm.weight"):
		cfg, err = in.dhariwal(prefix)
	case edm:
		cfg, err = in.song(prefix)
	case isADM(src):
		cfg, levels, err = in.adm()
	default:
		return false, nil
	}
	if err != nil {
		return true, err
	}
	o, path, err := sidecar(s.path, opt)
	if err != nil {
		return true, err
	}
	said, err := overlay(cfg, o, path)
	if err != nil {
		return true, err
	}
	if a, ok := cfg.(*ADMConfig); ok {
		if err := s.finishADM(a, levels, said); err != nil {
			return true, err
		}
	} else if !said["precond"] {
		s.notes = append(s.notes, "taken as preconditioned by EDM; "+filepath.Base(sidecarOf(s.path))+` beside it with {"precond": "vp"} or "ve" says otherwise`)
	}
	if f, ok := cfg.(interface{ finish() }); ok {
		f.finish()
	}
	if err := cfg.Validate(); err != nil {
		return true, refuse.Errorf(cmp.Or(path, s.path), "what its shapes say of a %s: %v", cfg.ClassName(), err)
	}
	s.parts["unet"] = &singlePart{config: cfg, name: under(prefix, whole), own: func(string) bool { return true }, spare: func(name string) bool {
		return cfg.(stored).ignores(name)
	}}
	return true, nil
}

var edmName = regexp.MustCompile(`^enc\.(\d+)x(\d+)_(conv|down|block(\d+))\.`)

// edmShapes reads what the networks of EDM have in common; conv tells the
// model's channels from the width of the first convolution.
func (in *inferred) edmShapes(c *EDMConfig, prefix string, channels func(conv int) int) error {
	blocks := map[int]int{} // of a resolution
	for _, t := range in.src.Tensors() {
		name, ok := strings.CutPrefix(t.Name, prefix)
		m := edmName.FindStringSubmatch(name)
		if !ok || m == nil {
			continue
		}
		res, err := strconv.Atoi(m[1])
		if err != nil || m[1] != m[2] || res < 1 || res > maxWidth {
			return refuse.Errorf(in.src.Path(), "tensor %q: no resolution of a network of EDM", t.Name)
		}
		blocks[res] += 0
		if k, err := strconv.Atoi(m[4]); err == nil && k < maxDepth {
			blocks[res] = max(blocks[res], k+1)
		}
	}
	var sides []int
	for res := range blocks {
		sides = append(sides, res)
	}
	slices.Sort(sides)
	slices.Reverse(sides)
	if len(sides) == 0 || len(sides) > maxLevels {
		return refuse.Errorf(in.src.Path(), "an encoder of EDM has 1 to %d resolutions, here are %d", maxLevels, len(sides))
	}
	first := fmt.Sprintf("%senc.%dx%d_conv.weight", prefix, sides[0], sides[0])
	c.ImgResolution, c.InChannels, c.ModelChannels = sides[0], in.at(first, 1), channels(in.at(first, 0))
	if c.ModelChannels < 1 {
		return refuse.Errorf(in.src.Path(), "has no %s that says how wide the network is", first)
	}
	c.ChannelMult, c.AttnResolution, c.NumBlocks = nil, nil, blocks[sides[0]]
	for _, res := range sides {
		block := fmt.Sprintf("%senc.%dx%d_block0.", prefix, res, res)
		c.ChannelMult = append(c.ChannelMult, in.at(block+"conv0.weight", 0)/c.ModelChannels)
		if in.has(block + "qkv.weight") {
			c.AttnResolution = append(c.AttnResolution, res)
		}
	}
	c.LabelDim, c.AugmentDim = in.at(prefix+"map_label.weight", 1), in.at(prefix+"map_augment.weight", 1)
	c.ChannelMultEmb = in.at(prefix+"map_layer0.weight", 0) / c.ModelChannels
	return nil
}

func (in *inferred) dhariwal(prefix string) (*DhariwalUNetConfig, error) {
	c := newDhariwalUNet()
	noise := in.at(prefix+"map_layer0.weight", 1)
	c.OutChannels = in.at(prefix+"out_conv.weight", 0)
	return c, in.edmShapes(&c.EDMConfig, prefix, func(int) int { return noise })
}

func (in *inferred) song(prefix string) (*SongUNetConfig, error) {
	c := newSongUNet()
	if err := in.edmShapes(&c.EDMConfig, prefix, func(conv int) int { return conv }); err != nil {
		return nil, err
	}
	c.ChannelMultNoise = in.at(prefix+"map_layer0.weight", 1) / c.ModelChannels
	if in.has(prefix + "map_noise.freqs") {
		c.EmbeddingType, c.ResampleFilter = "fourier", []float64{1, 3, 3, 1}
	}
	at := func(half string, level int, part string) string {
		res := c.ImgResolution >> level
		return fmt.Sprintf("%s%s.%dx%d_aux_%s.weight", prefix, half, res, res, part)
	}
	c.OutChannels = in.at(at("dec", 0, "conv"), 0)
	switch {
	case in.has(at("enc", 1, "skip")):
		c.EncoderType = "skip"
	case in.has(at("enc", 1, "residual")):
		c.EncoderType = "residual"
	}
	if in.has(at("dec", 1, "conv")) {
		c.DecoderType = "skip"
	}
	for _, t := range in.src.Tensors() { // all of one network are the same
		if n := len(t.Shape); !strings.HasSuffix(t.Name, ".resample_filter") || n < 2 || t.Len() != t.Shape[n-1]*t.Shape[n-1] || t.Len() > 64 {
			continue
		}
		v, err := in.src.Float32(t.Name)
		if err != nil {
			return nil, err
		}
		c.ResampleFilter = make([]float64, t.Shape[len(t.Shape)-1])
		for i, x := range v {
			c.ResampleFilter[i/len(c.ResampleFilter)] += float64(x)
		}
		break
	}
	return c, nil
}

// admModels are the published networks of ADM by number of channels, residual
// blocks and multipliers: what their tensors do not say.
var admModels = map[string]ADMConfig{
	"192 3 [1 2 3 4]":         {ImageSize: 64, NumHeadChannels: 64, NewAttentionOrder: true, NoiseSchedule: "cosine"},
	"256 2 [1 1 2 3 4]":       {ImageSize: 128, NumHeads: 4, NumHeadChannels: -1, NoiseSchedule: "linear"},
	"256 2 [1 1 2 2 4 4]":     {ImageSize: 256, NumHeadChannels: 64, NoiseSchedule: "linear"},
	"256 2 [0.5 1 1 2 2 4 4]": {ImageSize: 512, NumHeadChannels: 64, NoiseSchedule: "linear"},
}

func (in *inferred) adm() (*ADMConfig, []int, error) {
	c := newADM()
	if !in.has("output_blocks.0.0.in_layers.0.weight") {
		return nil, nil, refuse.Errorf(in.src.Path(), "is a classifier of ADM, an encoder alone, which is not read")
	}
	c.ModelChannels, c.InChannels, c.OutChannels = in.at("time_embed.0.weight", 1), in.at("input_blocks.0.0.weight", 1), in.at("out.2.weight", 0)
	c.NumClasses = in.at("label_emb.weight", 0)
	width := in.at("input_blocks.1.0.in_layers.2.weight", 0)
	c.UseScaleShiftNorm = width > 0 && in.at("input_blocks.1.0.emb_layers.1.weight", 0) == 2*width
	if c.ModelChannels < 1 || width < 1 {
		return nil, nil, refuse.Errorf(in.src.Path(), "the shapes of time_embed.0 and input_blocks.1.0 are not those of ADM's U-Net")
	}
	if c.InChannels == 6 && c.OutChannels != 6 {
		return nil, nil, refuse.Errorf(in.src.Path(), "takes 6 channels: an upsampler of ADM, which is not read")
	}
	// The first block of the way up with something behind its residual block and attention ends the lowest level.
	c.NumResBlocks = -1
	inputs := 0
	for in.has(fmt.Sprintf("input_blocks.%d.0.in_layers.0.weight", inputs+1)) || in.has(fmt.Sprintf("input_blocks.%d.0.op.weight", inputs+1)) {
		inputs++
	}
	for n := 0; n <= inputs && c.NumResBlocks < 0; n++ {
		for k := 1; k <= 2; k++ {
			at := fmt.Sprintf("output_blocks.%d.%d.", n, k)
			if in.has(at + "in_layers.0.weight") {
				c.NumResBlocks, c.ResblockUpdown = n, true
			} else if in.has(at + "conv.weight") {
				c.NumResBlocks = n
			}
		}
	}
	if c.NumResBlocks < 0 {
		c.NumResBlocks = inputs // one level
	}
	if c.NumResBlocks < 1 || (inputs+1)%(c.NumResBlocks+1) != 0 {
		return nil, nil, refuse.Errorf(in.src.Path(), "its %d input blocks are no levels of %d residual blocks each", inputs, c.NumResBlocks)
	}
	var attention []int
	c.ChannelMult = nil
	for level := range (inputs + 1) / (c.NumResBlocks + 1) {
		block := fmt.Sprintf("input_blocks.%d.", 1+level*(c.NumResBlocks+1))
		c.ChannelMult = append(c.ChannelMult, float64(in.at(block+"0.in_layers.2.weight", 0))/float64(c.ModelChannels))
		if in.has(block + "1.qkv.weight") {
			attention = append(attention, level)
		}
	}
	c.ImageSize, c.NumHeadChannels, c.NumHeads = 0, headWidth, 4
	if m, ok := admModels[fmt.Sprint(c.ModelChannels, c.NumResBlocks, c.ChannelMult)]; ok {
		c.ImageSize, c.NumHeadChannels, c.NewAttentionOrder, c.NoiseSchedule = m.ImageSize, m.NumHeadChannels, m.NewAttentionOrder, m.NoiseSchedule
		c.NumHeads = max(m.NumHeads, 1)
	}
	return c, attention, nil
}

// finishADM asks for what is in no tensor.
func (s *single) finishADM(c *ADMConfig, attention []int, said map[string]bool) error {
	if c.ImageSize == 0 {
		return refuse.Errorf(s.path, `none of the published networks of ADM; %s beside it must say what no tensor does: {"image_size": 64, "num_head_channels": 64 (or "num_heads"), "use_new_attention_order": false, "noise_schedule": "linear"}`,
			filepath.Base(sidecarOf(s.path)))
	}
	if said["num_heads"] && !said["num_head_channels"] {
		c.NumHeadChannels = -1
	}
	if !said["attention_resolutions"] {
		c.AttentionResolutions = nil
		for _, level := range attention {
			c.AttentionResolutions = append(c.AttentionResolutions, c.ImageSize>>level)
		}
	}
	if len(said) == 0 {
		s.notes = append(s.notes, fmt.Sprintf("ADM at %d pixels, told from names and shapes; noise schedule %s", c.ImageSize, c.NoiseSchedule))
	}
	var err error
	s.sched, err = c.Scheduler(s.path)
	return err
}

// finish fills in the usual range of noise levels.
func (c *EDMConfig) finish() {
	lo, hi := 0.002, 80.0
	if c.Precond == "ve" {
		lo, hi = 0.02, 100
	}
	if c.SigmaMin == 0 {
		c.SigmaMin = lo
	}
	if c.SigmaMax == 0 {
		c.SigmaMax = max(hi, math.Nextafter(c.SigmaMin, math.Inf(1)))
	}
}
