package native_test

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"drift/internal/kernels"
	"drift/models"
	"drift/models/diffusers"
	"drift/models/native"
	"drift/schedules"
)

func parse(t testing.TB, config string) diffusers.Config {
	t.Helper()
	cfg, err := diffusers.ParseConfig("test", []byte(config))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

const (
	ditConfig = `{"_class_name": "DiTTransformer2DModel", "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 1, "out_channels": 2,
		"num_layers": 2, "sample_size": 4, "num_embeds_ada_norm": 3}`
	unetConfig = `{"_class_name": "UNet2DModel", "sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 4,
		"block_out_channels": [8, 16], "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "num_class_embeds": 3}`
)

// denoiser is a network of three classes with made-up weights on the process of DDPM.
func denoiser(t testing.TB, config string) (*native.Denoiser, native.Network) {
	t.Helper()
	pool := kernels.NewPool(kernels.Detect(), 2)
	t.Cleanup(pool.Close)
	net, err := native.New(parse(t, config), nil, native.Options{Pool: pool})
	if err != nil {
		t.Fatal(err)
	}
	grid, err := schedules.DiffusersDefaults("DDPMScheduler")
	if err != nil {
		t.Fatal(err)
	}
	proc, err := grid.Process()
	if err != nil {
		t.Fatal(err)
	}
	return &native.Denoiser{Net: net, Proc: proc, Kind: schedules.Eps, NullClass: net.NoClass(), Conditional: true, About: models.Info{Classes: 3}}, net
}

func query(t testing.TB, m *native.Denoiser, classes ...int) *models.Query {
	t.Helper()
	h, w := m.Net.SampleSize()
	x := make([]float64, len(classes)*h*w)
	for i := range x {
		x[i] = math.Sin(float64(i))
	}
	q := &models.Query{X: models.Wrap(x, len(classes), 1, h, w), Cond: &models.Cond{Classes: classes}}
	for range classes {
		g, err := schedules.FromTimes(m.Proc, []float64{500, 500})
		if err != nil {
			t.Fatal(err)
		}
		q.At = append(q.At, g[0])
	}
	return q
}

// A network that learned its variance predicts with its first channels, and its gradient is theirs.
func TestLearnedVariance(t *testing.T) {
	m, net := denoiser(t, ditConfig)
	q := query(t, m, 1, models.NoClass)
	x := models.Data(q.X)
	n, w := len(x), len(x)/2
	b := &native.Batch{H: 4, W: 4, T: []float64{500, 500}, Class: []int{1, 3}, Save: true}
	all, grad := make([]float64, 2*n), make([]float64, n)
	if err := net.Forward(context.Background(), all, x, b); err != nil {
		t.Fatal(err)
	}
	cot := make([]float64, n)
	both := make([]float64, 2*n)
	for i := range cot {
		cot[i] = math.Cos(float64(i))
		both[i/w*2*w+i%w] = cot[i]
	}
	if err := net.VJP(context.Background(), grad, both); err != nil {
		t.Fatal(err)
	}

	var p models.Pred
	g := models.New(q.X.Shape()...)
	for _, ask := range []func() error{
		func() error { return m.Predict(context.Background(), q, &p) },
		func() error { return m.VJP(context.Background(), q, &p, models.Wrap(cot, q.X.Shape()...), g) },
	} {
		if err := ask(); err != nil {
			t.Fatal(err)
		}
		for i := range 2 {
			if !slices.Equal(models.Data(p.Out)[i*w:(i+1)*w], all[2*i*w:(2*i+1)*w]) {
				t.Errorf("row %d: not the prediction", i)
			}
			if !slices.Equal(models.Data(p.Extra)[i*w:(i+1)*w], all[(2*i+1)*w:(2*i+2)*w]) {
				t.Errorf("row %d: not the variance", i)
			}
		}
	}
	if !slices.Equal(models.Data(g), grad) {
		t.Error("the gradient is not that of the prediction")
	}
}

// The same questions to networks of both classes.
func TestNetworks(t *testing.T) {
	for _, c := range []struct {
		config                string
		size, out, all, noOne int
	}{{ditConfig, 4, 2, 4, 3}, {unetConfig, 8, 1, 3, models.NoClass}} {
		m, net := denoiser(t, c.config)
		in, out := net.Channels()
		h, w := net.SampleSize()
		if in != 1 || out != c.out || h != c.size || w != c.size || net.Classes() != c.all || net.NoClass() != c.noOne {
			t.Errorf("%T: channels %d and %d, size %dx%d, %d classes, none is %d", net, in, out, h, w, net.Classes(), net.NoClass())
		}
		if macs, err := net.MACs(h, w); err != nil || macs == 0 || net.Parameters() == 0 || net.Memory().Weights < 4*net.Parameters()/2 {
			t.Errorf("%T: %d multiply-adds (%v), %d parameters, %+v", net, macs, err, net.Parameters(), net.Memory())
		}
		var p models.Pred
		for _, class := range []int{-2, 3} {
			if err := m.Predict(context.Background(), query(t, m, class), &p); err == nil || !strings.Contains(err.Error(), "classes run from 0 to 2") {
				t.Errorf("%T: class %d: %v", net, class, err)
			}
		}
		if err := m.Predict(context.Background(), query(t, m, models.NoClass), &p); (err == nil) != (c.noOne >= 0) {
			t.Errorf("%T: no class: %v", net, err)
		}
		q := query(t, m, 0)
		q.Hooks = &models.Hooks{SkipLayers: []string{"nowhere"}}
		if err := m.Predict(context.Background(), q, &p); err == nil || !strings.Contains(err.Error(), "nowhere") {
			t.Errorf("%T: hook: %v", net, err)
		}

		x := make([]float32, c.size*c.size)
		err := net.Forward32(context.Background(), make([]float32, c.out*len(x)), x, &native.Batch{H: c.size, W: c.size, T: []float64{1}, Class: []int{9}})
		if reason, ok := native.BadInput(err); !ok || !strings.HasPrefix(reason, "class 9 is not in") {
			t.Errorf("%T: class 9: %v", net, err)
		}
	}
	if _, ok := native.BadInput(fmt.Errorf("other")); ok {
		t.Error("another error is bad input")
	}
	cfg := parse(t, `{"_class_name": "AutoencoderKL"}`)
	for _, err := range []error{native.Runs(cfg), func() error { _, err := native.New(cfg, nil, native.Options{}); return err }()} {
		if err == nil || !strings.Contains(err.Error(), "a AutoencoderKL, which this engine does not run as a denoiser") {
			t.Errorf("%v", err)
		}
	}
}

// ExampleNew asks a network of made-up weights at half noise.
func ExampleNew() {
	cfg, err := diffusers.ParseConfig("config.json", []byte(ditConfig))
	if err != nil {
		fmt.Println(err)
		return
	}
	net, err := native.New(cfg, nil, native.Options{}) // the weights of a checkpoint in earnest
	if err != nil {
		fmt.Println(err)
		return
	}
	defer net.Close()
	out := make([]float64, 2*4*4) // prediction and variance
	err = net.Forward(context.Background(), out, make([]float64, 4*4), &native.Batch{H: 4, W: 4, T: []float64{500}, Class: []int{net.NoClass()}})
	fmt.Println(err, net.Parameters(), "parameters")
	// Output: <nil> 19352 parameters
}
