package diffusers

import (
	"reflect"
	"strings"
	"testing"
)

// The published networks have the published numbers of parameters, with the 9 inputs of augmentation.
func TestScoreNetworkParameters(t *testing.T) {
	for text, want := range map[string]int64{
		// EDM, CIFAR-10: DDPM++ without and with classes, NCSN++
		`{"_class_name": "SongUNet", "channel_mult": [2, 2, 2], "augment_dim": 9}`:                  55733891,
		`{"_class_name": "SongUNet", "channel_mult": [2, 2, 2], "augment_dim": 9, "label_dim": 10}`: 55735299,
		`{"_class_name": "SongUNet", "channel_mult": [2, 2, 2], "augment_dim": 9, "embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual",
			"resample_filter": [1, 3, 3, 1]}`: 56397827 + 128, // a buffer of 128 frequencies
		// EDM and ADM, ImageNet-64: 296M parameters (Dhariwal and Nichol 2021, table 10)
		`{"_class_name": "DhariwalUNet", "label_dim": 1000}`: 295899267,
		`{"_class_name": "ADMUNet", "image_size": 64, "num_channels": 192, "num_res_blocks": 3, "attention_resolutions": [32, 16, 8], "num_classes": 1000,
			"num_head_channels": 64, "resblock_updown": true}`: 295904454,
		// ADM, ImageNet-256: 554M
		`{"_class_name": "ADMUNet", "image_size": 256, "num_channels": 256, "channel_mult": [1, 1, 2, 2, 4, 4], "attention_resolutions": [32, 16, 8], "num_classes": 1000,
			"num_head_channels": 64, "resblock_updown": true}`: 553838086,
	} {
		c, err := ParseConfig("config.json", []byte(text))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		got := Parameters(c)
		if s, ok := c.(*SongUNetConfig); ok {
			got += int64(s.AugmentDim * s.ModelChannels * s.ChannelMultNoise)
		}
		if got != want {
			t.Errorf("%s: %d parameters, want %d", text, got, want)
		}
	}
}

// What is written is read back as it was, for every class.
func TestMarshalConfig(t *testing.T) {
	for class, of := range networks {
		c := of()
		if f, ok := c.(interface{ finish() }); ok {
			f.finish()
		}
		if err := c.Validate(); err != nil {
			t.Logf("%s: its defaults are not a network: %v", class, err)
			continue
		}
		text, err := MarshalConfig(c)
		if err != nil {
			t.Fatal(err)
		}
		back, err := ParseConfig("c", text)
		if err != nil {
			t.Errorf("%s: %v\n%s", class, err, text)
			continue
		}
		*back.FileInfo(), *c.FileInfo() = Info{}, Info{}
		if !reflect.DeepEqual(back, c) {
			t.Errorf("%s:\n%+v\nwant\n%+v", class, back, c)
		}
	}
}

func TestScoreNetworkRefusals(t *testing.T) {
	for text, want := range map[string]string{
		`{"_class_name": "SongUNet", "channel_mult": []}`:                        "channel_mult",
		`{"_class_name": "SongUNet", "img_resolution": 4}`:                       "img_resolution",
		`{"_class_name": "SongUNet", "resample_filter": [1, -1]}`:                "resample_filter",
		`{"_class_name": "SongUNet", "precond": "ddpm"}`:                         "precond",
		`{"_class_name": "SongUNet", "sigma_min": 3, "sigma_max": 2}`:            "sigma_max",
		`{"_class_name": "SongUNet", "num_blocks": 2000}`:                        "num_blocks",
		`{"_class_name": "DhariwalUNet", "out_channels": 6}`:                     "out_channels",
		`{"_class_name": "ADMUNet", "num_channels": 48}`:                         "32 groups do not divide",
		`{"_class_name": "ADMUNet", "num_heads": 5, "num_channels": 32}`:         "5 heads do not divide",
		`{"_class_name": "ADMUNet", "channel_mult": [1e300, 1]}`:                 "channel_mult",
		`{"_class_name": "ADMUNet", "noise_schedule": "sigmoid"}`:                "noise_schedule",
		`{"_class_name": "ADMUNet", "num_head_channels": 0}`:                     "num_head_channels",
		`{"_class_name": "ADMUNet", "diffusion_steps": 1}`:                       "diffusion_steps",
		`{"_class_name": "ADMUNet", "channel_mult": [1, "2"]}`:                   "channel_mult",
		`{"_class_name": "ADMUNet", "num_channels": 64, "channel_mult": [0.01]}`: "channel_mult",
	} {
		if _, err := ParseConfig("config.json", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
