package diffusers

// A Config is the typed configuration of one network class.
type Config interface {
	// ClassName is the name of the class in diffusers, e.g. "UNet2DModel".
	ClassName() string
	// Tensors lists every tensor of the network, in module order: what a
	// weights file must hold, no more and no less.
	Tensors() []Tensor
}

// A Tensor is a name and a shape that a configuration asks for.
type Tensor struct {
	Name  string
	Shape []int
}

// Info says how a configuration file was read.
type Info struct {
	Class     string   // _class_name as the file has it (legacy names included)
	Version   string   // _diffusers_version, empty when absent
	Defaulted []string // keys absent from the file: the class default was taken
	Ignored   []string // unknown keys whose value is null or false
	Renamed   []string // legacy names that were translated, as "old -> new"
	Warnings  []string // legal but unusual settings
}

// UNet2DConfig is the configuration of UNet2DModel. Absent keys have the
// defaults of diffusers 0.42. Zero stands for JSON null where a comment says
// so; a 0 written in the file is refused there.
type UNet2DConfig struct {
	SampleSize           Size     `json:"sample_size,null"` // zero: null, any size
	InChannels           int      `json:"in_channels"`
	OutChannels          int      `json:"out_channels"`
	CenterInputSample    bool     `json:"center_input_sample"`
	TimeEmbeddingType    string   `json:"time_embedding_type"`     // "positional", "fourier" or "learned"
	TimeEmbeddingDim     int      `json:"time_embedding_dim,null"` // 0: null, 4 BlockOutChannels[0]
	FreqShift            float64  `json:"freq_shift"`
	FlipSinToCos         bool     `json:"flip_sin_to_cos"`
	DownBlockTypes       []string `json:"down_block_types"`
	MidBlockType         string   `json:"mid_block_type,null"` // "": null, no middle block
	UpBlockTypes         []string `json:"up_block_types"`
	BlockOutChannels     []int    `json:"block_out_channels"`
	LayersPerBlock       int      `json:"layers_per_block"`
	MidBlockScaleFactor  float64  `json:"mid_block_scale_factor"`
	DownsamplePadding    int      `json:"downsample_padding"`
	DownsampleType       string   `json:"downsample_type"` // "conv" or "resnet", Attn blocks only
	UpsampleType         string   `json:"upsample_type"`   // "conv" or "resnet", Attn blocks only
	Dropout              float64  `json:"dropout"`
	ActFn                string   `json:"act_fn"`
	AttentionHeadDim     int      `json:"attention_head_dim,null"` // 0: null, one head as wide as the block
	NormNumGroups        int      `json:"norm_num_groups,null"`    // 0: null, only for Skip blocks (NCSN++)
	AttnNormNumGroups    int      `json:"attn_norm_num_groups,null"`
	NormEps              float64  `json:"norm_eps"`
	ResnetTimeScaleShift string   `json:"resnet_time_scale_shift"` // "default" or "scale_shift"
	AddAttention         bool     `json:"add_attention"`
	ClassEmbedType       string   `json:"class_embed_type,null"`    // "": null; "timestep" or "identity"
	NumClassEmbeds       int      `json:"num_class_embeds,null"`    // 0: null
	NumTrainTimesteps    int      `json:"num_train_timesteps,null"` // 0: null; rows of the learned time embedding

	Info Info `json:"-"`
}

// A Size is a height and a width; a single number in the file means both.
type Size struct{ H, W int }
