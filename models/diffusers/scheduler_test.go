package diffusers

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestSchedulerCorpus(t *testing.T) {
	n := 0
	for name, want := range readCorpus(t) {
		if !strings.HasSuffix(name, ".scheduler.json") {
			continue
		}
		n++
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(corpus, name)
			var c *SchedulerConfig
			var err error
			bounded(t, func() { c, err = ReadScheduler(path) })
			if strings.HasPrefix(want.Expect, "refuse") {
				mustRefuse(t, path, err, want.Expect)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if warned := len(c.Warnings) > 0; warned != strings.HasPrefix(want.Expect, "warn") {
				t.Errorf("warnings %q, want: %s", c.Warnings, want.Expect)
			}
			ignored := slices.Sorted(slices.Values(c.Ignored))
			if !slices.Equal(ignored, want.Diffusers.UnknownKeys) {
				t.Errorf("ignored %q, want %q", ignored, want.Diffusers.UnknownKeys)
			}
			checkDefaults(t, c, c.Defaulted, want.Diffusers.Defaults)
		})
	}
	if n != 35 {
		t.Errorf("%d scheduler configurations in the corpus", n)
	}
}

// All defaults of all classes, as the constructors of diffusers 0.42.1 have them.
func TestSchedulerDefaults(t *testing.T) {
	text, err := os.ReadFile("testdata/scheduler_defaults.json")
	if err != nil {
		t.Fatal(err)
	}
	var want map[string]map[string]any
	if err := json.Unmarshal(text, &want); err != nil {
		t.Fatal(err)
	}
	if len(want) != len(Schedulers()) {
		t.Errorf("%d classes, want %d", len(Schedulers()), len(want))
	}
	for name, defaults := range want {
		t.Run(name, func(t *testing.T) {
			c, err := ParseScheduler("s.json", []byte(fmt.Sprintf(`{"_class_name":%q}`, name)))
			if err != nil {
				t.Fatal(err)
			}
			for key := range c.keys {
				if _, ok := defaults[key]; !ok {
					t.Errorf("the class has no key %s", key)
				}
			}
			v := reflect.ValueOf(*c)
			for key, w := range defaults {
				if !c.Has(key) {
					t.Errorf("the class lacks the key %s", key)
				}
				if w == "-Infinity" {
					w = math.Inf(-1)
				}
				f, ok := fieldByKey(v, key)
				if !ok {
					if w != nil || key != "solver_p" && key != "tau_func" {
						t.Errorf("no field for %s", key)
					}
					continue
				}
				if f.Kind() == reflect.Pointer && !f.IsNil() {
					f = f.Elem()
				}
				got := fmt.Sprint(f.Interface())
				if w == nil && !f.IsZero() || w != nil && got != fmt.Sprint(w) {
					t.Errorf("%s: %s, want %v", key, got, w)
				}
			}
			// Keys that the class does not have are zero.
			for i := range v.NumField() {
				key, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("key"), ",")
				if key != "" && key != "-" && !c.Has(key) && !v.Field(i).IsZero() {
					t.Errorf("%s is not a key of the class, but %v", key, v.Field(i).Interface())
				}
			}
			if !slices.Equal(slices.Sorted(slices.Values(c.Defaulted)), sortedFields(v, c)) {
				t.Errorf("defaulted %q", c.Defaulted)
			}
		})
	}
}

func fieldByKey(v reflect.Value, key string) (reflect.Value, bool) {
	for i := range v.NumField() {
		if k, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("key"), ","); k == key {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

func sortedFields(v reflect.Value, c *SchedulerConfig) []string {
	var keys []string
	for key := range c.keys {
		if _, ok := fieldByKey(v, key); ok {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

func TestSchedulerChecks(t *testing.T) {
	s := func(class, rest string) string { return `{"_class_name":"` + class + `Scheduler"` + rest + "}" }
	for _, c := range []struct{ text, why string }{ // why "": accepted
		{s("DDIM", ``), ""},
		{s("DDIM", `,"trained_betas":[0.1,0.2],"num_train_timesteps":2`), ""},
		{s("DDIM", `,"trained_betas":[0.1,1],"num_train_timesteps":2`), "trained_betas"},
		{s("DDIM", `,"beta_start":0`), "beta_start"},
		{s("DDIM", `,"beta_schedule":"squaredcos_cap_v2","beta_start":0`), ""},
		{s("DDIM", `,"beta_schedule":"sigmoid"`), "beta_schedule"},
		{s("DDPM", `,"beta_schedule":"sigmoid"`), ""},
		{s("DDIM", `,"beta_start":1e999`), "beta_start: must be a finite number"},
		{s("DDIM", `,"beta_start":-Infinity`), "beta_start: must be a finite number"},
		{s("DDIM", `,"steps_offset":1000`), "steps_offset"},
		{s("DDIM", `,"steps_offset":-1`), "steps_offset"},
		{s("DDIM", `,"timestep_spacing":"quadratic"`), "timestep_spacing"},
		{s("DDIM", `,"prediction_type":"flow_prediction"`), "prediction_type"},
		{s("DDIM", `,"rescale_betas_zero_snr":true,"prediction_type":"v_prediction"`), ""},
		{s("DDIM", `,"dynamic_thresholding_ratio":1.5`), "dynamic_thresholding_ratio"},
		{s("DDIM", `,"clip_sample_range":0`), "clip_sample_range"},
		{s("DDIM", `,"use_karras_sigmas":true`), ""}, // of another scheduler: noted
		{s("PNDM", `,"prediction_type":"sample"`), "prediction_type"},
		{s("DDPM", `,"variance_type":"large"`), "variance_type"},
		{s("DDPM", `,"variance_type":null`), "variance_type"},
		{s("EulerDiscrete", `,"sigma_min":0`), "sigma_min"},
		{s("EulerDiscrete", `,"sigma_min":10,"sigma_max":1`), "sigma_min: 10 is not supported: it must be below sigma_max, 1"},
		{s("EulerDiscrete", `,"interpolation_type":"cubic"`), "interpolation_type"},
		{s("EulerDiscrete", `,"timestep_type":"other"`), "timestep_type"},
		{s("EulerDiscrete", `,"final_sigmas_type":"one"`), "final_sigmas_type"},
		{s("LCM", `,"original_inference_steps":2000`), "original_inference_steps"},
		{s("LCM", `,"timestep_scaling":0`), "timestep_scaling"},
		{s("DPMSolverMultistep", `,"lambda_min_clipped":-Infinity`), ""},
		{s("DPMSolverMultistep", `,"lambda_min_clipped":Infinity`), "lambda_min_clipped"},
		{s("DPMSolverMultistep", `,"lambda_min_clipped":-5.1`), ""},
		{s("DPMSolverMultistep", `,"algorithm_type":"dpmsolver"`), "final_sigmas_type: zero is not supported: it must be sigma_min with algorithm_type dpmsolver"},
		{s("DPMSolverMultistep", `,"algorithm_type":"dpmsolver","final_sigmas_type":"sigma_min"`), ""},
		{s("DPMSolverMultistep", `,"algorithm_type":"magic"`), "algorithm_type"},
		{s("DPMSolverMultistep", `,"solver_order":4`), "solver_order"},
		{s("DPMSolverMultistep", `,"prediction_type":"flow_prediction"`), "use_flow_sigmas"},
		{s("DPMSolverMultistep", `,"prediction_type":"flow_prediction","use_flow_sigmas":true,"flow_shift":3`), ""},
		{s("DPMSolverMultistep", `,"use_flow_sigmas":true,"use_karras_sigmas":true`), "several grids"},
		{s("UniPCMultistep", `,"disable_corrector":[0,1]`), ""},
		{s("UniPCMultistep", `,"disable_corrector":[-1]`), "disable_corrector"},
		{s("UniPCMultistep", `,"solver_p":{}`), "solver_p: an object is not supported, only null"},
		{s("UniPCMultistep", `,"shift_terminal":1`), "shift_terminal"},
		{s("SASolver", `,"tau_func":null`), ""},
		{s("SASolver", `,"predictor_order":0`), "predictor_order"},
		{s("FlowMatchEulerDiscrete", `,"shift":-1`), "shift"},
		{s("FlowMatchEulerDiscrete", `,"time_shift_type":"cosine"`), "time_shift_type"},
		{s("FlowMatchEulerDiscrete", `,"base_image_seq_len":5000`), "base_image_seq_len"},
		{s("EDMEuler", `,"sigma_min":null`), "sigma_min: null is not allowed"},
		{s("EDMEuler", `,"sigma_data":0`), "sigma_data"},
		{s("EDMEuler", `,"rho":0`), "rho"},
		{s("CMStochasticIterative", `,"s_noise":-1`), "s_noise"},
		{s("DDIM", `,"predict_epsilon":1`), "predict_epsilon"},
		{s("DDIM", `,"predict_epsilon":true,"prediction_type":"epsilon"`), "both there"},
		{s("DDIM", `,"tensor_format":"pt"`), ""},
		{s("DDIM", `,"my_key":"x"`), `unknown key "my_key" with the value "x"`},
	} {
		got, err := ParseScheduler("s.json", []byte(c.text))
		if c.why == "" {
			if err != nil {
				t.Errorf("%s: %v", c.text, err)
			} else if len(got.Warnings) > 0 {
				t.Errorf("%s: %q", c.text, got.Warnings)
			}
			continue
		}
		mustRefuse(t, "s.json", err, c.text)
		if err != nil && !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v, want %q", c.text, err, c.why)
		}
	}
}

func TestSchedulerTranslations(t *testing.T) {
	for text, want := range map[string]string{
		`{"_class_name":"DPMSolverMultistepScheduler","algorithm_type":"deis","solver_type":"logrho"}`: "[algorithm_type deis -> dpmsolver++ solver_type logrho -> midpoint]",
		`{"_class_name":"UniPCMultistepScheduler","solver_type":"midpoint"}`:                           "[solver_type midpoint -> bh2]",
		`{"_class_name":"DEISMultistepScheduler","algorithm_type":"dpmsolver++"}`:                      "[algorithm_type dpmsolver++ -> deis]",
		`{"_class_name":"DDPMScheduler","predict_epsilon":false}`:                                      "[predict_epsilon false -> prediction_type sample]",
		`{"_class_name":"DDPMScheduler","predict_epsilon":true}`:                                       "[predict_epsilon true -> prediction_type epsilon]",
	} {
		c, err := ParseScheduler("s.json", []byte(text))
		if err != nil {
			t.Error(err)
			continue
		}
		if got := fmt.Sprint(c.Renamed); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
		if strings.Contains(text, "predict_epsilon") && !strings.HasSuffix(want, c.PredictionType+"]") {
			t.Errorf("%s: prediction_type %s", text, c.PredictionType)
		}
	}
	// Each configuration owns what it points to.
	a, err := ParseScheduler("s.json", []byte(`{"_class_name":"EDMEulerScheduler"}`))
	if err != nil {
		t.Fatal(err)
	}
	*a.SigmaMin = 7
	b, err := ParseScheduler("s.json", []byte(`{"_class_name":"EDMEulerScheduler"}`))
	if err != nil || *b.SigmaMin != 0.002 {
		t.Error(*b.SigmaMin, err)
	}
}

func FuzzParse(f *testing.F) {
	seeds, err := filepath.Glob(filepath.Join(corpus, "*.json"))
	if err != nil || len(seeds) == 0 {
		f.Fatal("no seeds", err)
	}
	for _, path := range seeds {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if s, err := ParseScheduler("f.json", text); err != nil {
			mustRefuse(t, "f.json", err, "a refusal")
		} else if !slices.Contains(Schedulers(), s.ClassName) || s.NumTrainTimesteps < 1 {
			t.Fatalf("%+v", s)
		}
		c, err := ParseConfig("f.json", text)
		if err != nil {
			mustRefuse(t, "f.json", err, "a refusal")
			return
		}
		if len(c.Tensors()) == 0 || Parameters(c) < 1 {
			t.Fatalf("%d tensors, %d parameters", len(c.Tensors()), Parameters(c))
		}
	})
}

func ExampleReadScheduler() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "scheduler_config.json")
	text := `{"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1, "skip_prk_steps": true}`
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		fmt.Println(err)
		return
	}
	c, err := ReadScheduler(path)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(c.ClassName, c.BetaSchedule, c.PredictionType, c.Ignored)
	// Output: DDIMScheduler scaled_linear epsilon [skip_prk_steps]
}
