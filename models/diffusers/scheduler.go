package diffusers

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"drift/internal/refuse"
	"drift/internal/strictjson"
)

// SchedulerConfig is a scheduler_config.json: how noise and grid of a model
// are meant. It has the keys of all supported classes; a key that the class
// does not have is left at zero, Has tells. Absent keys of the class have the
// defaults of diffusers 0.42.
type SchedulerConfig struct {
	ClassName string `key:"-"`

	// The process.
	NumTrainTimesteps   int       `key:"num_train_timesteps"`
	BetaStart           float64   `key:"beta_start"`
	BetaEnd             float64   `key:"beta_end"`
	BetaSchedule        string    `key:"beta_schedule"`      // "linear", "scaled_linear", "squaredcos_cap_v2", ...
	TrainedBetas        []float64 `key:"trained_betas,null"` // nil: null
	RescaleBetasZeroSNR bool      `key:"rescale_betas_zero_snr"`
	PredictionType      string    `key:"prediction_type"` // "epsilon", "sample", "v_prediction" or "flow_prediction"
	SigmaData           float64   `key:"sigma_data"`

	// The grid.
	TimestepSpacing        string   `key:"timestep_spacing"` // "leading", "linspace" or "trailing"
	TimestepType           string   `key:"timestep_type"`    // "discrete" or "continuous"
	StepsOffset            int      `key:"steps_offset"`
	SetAlphaToOne          bool     `key:"set_alpha_to_one"`
	InterpolationType      string   `key:"interpolation_type"` // "linear" or "log_linear"
	UseKarrasSigmas        bool     `key:"use_karras_sigmas"`
	UseExponentialSigmas   bool     `key:"use_exponential_sigmas"`
	UseBetaSigmas          bool     `key:"use_beta_sigmas"`
	UseLuLambdas           bool     `key:"use_lu_lambdas"`
	UseFlowSigmas          bool     `key:"use_flow_sigmas"`
	FlowShift              float64  `key:"flow_shift"`
	FinalSigmasType        string   `key:"final_sigmas_type"`      // "zero" or "sigma_min"
	LambdaMinClipped       float64  `key:"lambda_min_clipped,inf"` // -Inf: not clipped
	SigmaMin               *float64 `key:"sigma_min,null"`         // nil: null
	SigmaMax               *float64 `key:"sigma_max,null"`         // nil: null
	SigmaSchedule          string   `key:"sigma_schedule"`         // "karras" or "exponential"
	Rho                    float64  `key:"rho"`
	OriginalInferenceSteps int      `key:"original_inference_steps"`
	TimestepScaling        float64  `key:"timestep_scaling"`

	// The grid of flows.
	Shift              float64  `key:"shift"`
	UseDynamicShifting bool     `key:"use_dynamic_shifting"` // sampling then needs mu
	BaseShift          float64  `key:"base_shift"`
	MaxShift           float64  `key:"max_shift"`
	BaseImageSeqLen    int      `key:"base_image_seq_len"`
	MaxImageSeqLen     int      `key:"max_image_seq_len"`
	InvertSigmas       bool     `key:"invert_sigmas"`
	ShiftTerminal      *float64 `key:"shift_terminal,null"` // nil: null
	TimeShiftType      string   `key:"time_shift_type"`     // "exponential" or "linear"
	StochasticSampling bool     `key:"stochastic_sampling"`

	// The step.
	VarianceType             string  `key:"variance_type,null"` // "": null
	ClipSample               bool    `key:"clip_sample"`
	ClipSampleRange          float64 `key:"clip_sample_range"`
	ClipDenoised             bool    `key:"clip_denoised"`
	Thresholding             bool    `key:"thresholding"`
	DynamicThresholdingRatio float64 `key:"dynamic_thresholding_ratio"`
	SampleMaxValue           float64 `key:"sample_max_value"`
	SkipPRKSteps             bool    `key:"skip_prk_steps"`
	SolverOrder              int     `key:"solver_order"`
	PredictorOrder           int     `key:"predictor_order"`
	CorrectorOrder           int     `key:"corrector_order"`
	AlgorithmType            string  `key:"algorithm_type"`
	SolverType               string  `key:"solver_type"`
	LowerOrderFinal          bool    `key:"lower_order_final"`
	EulerAtFinal             bool    `key:"euler_at_final"`
	PredictX0                bool    `key:"predict_x0"`
	DisableCorrector         []int   `key:"disable_corrector"`
	NoiseSamplerSeed         *int    `key:"noise_sampler_seed,null"` // nil: null
	Eta                      float64 `key:"eta"`
	SNoise                   float64 `key:"s_noise"`
	SNR                      float64 `key:"snr"`
	SamplingEps              float64 `key:"sampling_eps"`
	CorrectSteps             int     `key:"correct_steps"`

	Info `key:"-"`

	keys map[string]bool
}

// Has reports whether the class of the scheduler has a key, by its JSON name.
func (c *SchedulerConfig) Has(key string) bool { return c.keys[key] }

// ReadScheduler reads and checks a scheduler_config.json. Keys of other
// schedulers, which nearly all published files carry, are noted in Ignored; a
// key that no scheduler has is refused unless its value is null or false.
// Settings that contradict each other or cannot be sampled with are refused.
func ReadScheduler(path string) (*SchedulerConfig, error) {
	o, err := strictjson.ReadFile(path, maxConfig, schedulerLimits)
	if err != nil {
		return nil, fmt.Errorf("reading a scheduler configuration: %w", err)
	}
	return parseScheduler(path, o)
}

// ParseScheduler is ReadScheduler for text in memory; path names it in errors.
func ParseScheduler(path string, text []byte) (*SchedulerConfig, error) {
	if len(text) > maxConfig {
		return nil, refuse.Errorf(path, "%d bytes, more than the %d allowed for such a file", len(text), maxConfig)
	}
	o, err := strictjson.Parse(path, text, schedulerLimits)
	if err != nil {
		return nil, err
	}
	return parseScheduler(path, o)
}

// diffusers writes lambda_min_clipped as -Infinity.
var schedulerLimits = strictjson.Limits{Infinity: true}

func parseScheduler(path string, o *strictjson.Object) (*SchedulerConfig, error) {
	name, err := className(path, o)
	if err != nil {
		return nil, err
	}
	class, ok := schedulers[name]
	if !ok {
		return nil, refuse.Errorf(path, "scheduler class %q is not supported; supported: %s", name, strings.Join(Schedulers(), ", "))
	}
	c := class.new(name)
	predictEpsilon := false
	d := decoder{path: path, object: o, dst: c, only: c.keys, info: &c.Info}
	d.unknown = func(key string, value any) error {
		switch {
		case c.keys[key]: // a key without a field: solver_p and tau_func take Python objects
			if value != nil {
				return d.refuse(key, "%v is not supported, only null", show(value))
			}
		case key == "predict_epsilon" && c.keys["prediction_type"]: // before prediction_type there was this
			predictEpsilon = true
			switch value {
			case true:
				c.PredictionType = "epsilon"
			case false:
				c.PredictionType = "sample"
			default:
				return d.refuse(key, "must be true or false, not %v", show(value))
			}
			c.Renamed = append(c.Renamed, fmt.Sprintf("%s %v -> prediction_type %s", key, value, c.PredictionType))
		case isSchedulerKey(key):
			c.Ignored = append(c.Ignored, key)
		case value == nil || value == false:
			c.Ignored = append(c.Ignored, key)
			c.Warnings = append(c.Warnings, fmt.Sprintf("unknown key %q with the value %v", key, show(value)))
		default:
			return refuse.Errorf(path, "unknown key %q with the value %v", key, show(value))
		}
		return nil
	}
	if err := d.decode(); err != nil {
		return nil, err
	}
	if _, both := o.Get("prediction_type"); both && predictEpsilon {
		return nil, refuse.Errorf(path, "predict_epsilon and prediction_type are both there")
	}
	c.translate(class)
	if err := c.validate(class); err != nil {
		return nil, refuse.Errorf(path, "%v", err)
	}
	return c, nil
}

// translate replaces solver names that belong to another class by the
// class's own, as diffusers does when one class reads the file of another.
func (c *SchedulerConfig) translate(class schedulerClass) {
	for _, f := range []struct {
		key    string
		value  *string
		own    []string
		others []string
	}{
		{"algorithm_type", &c.AlgorithmType, class.algorithms, []string{"deis", "dpmsolver", "dpmsolver++"}},
		{"solver_type", &c.SolverType, class.solvers, []string{"midpoint", "heun", "logrho", "bh1", "bh2"}},
	} {
		if c.keys[f.key] && len(f.own) > 0 && !slices.Contains(f.own, *f.value) && slices.Contains(f.others, *f.value) {
			c.Renamed = append(c.Renamed, fmt.Sprintf("%s %s -> %s", f.key, *f.value, f.own[0]))
			*f.value = f.own[0]
		}
	}
}

// validate says what is contradictory or not supported, naming the key.
func (c *SchedulerConfig) validate(class schedulerClass) error {
	rules := []rule{between("num_train_timesteps", c.NumTrainTimesteps, 1, 1_000_000)}
	when := func(key string, more ...rule) {
		if c.keys[key] {
			rules = append(rules, more...)
		}
	}
	value := func(x *float64) float64 { return *x }
	when("beta_schedule", oneOf("beta_schedule", c.BetaSchedule, class.betaSchedules...))
	if c.keys["beta_start"] && c.TrainedBetas == nil && c.BetaSchedule != "squaredcos_cap_v2" && c.BetaSchedule != "laplace" {
		rules = append(rules, isBeta("beta_start", c.BetaStart), isBeta("beta_end", c.BetaEnd))
		if c.BetaEnd < c.BetaStart {
			c.Warnings = append(c.Warnings, fmt.Sprintf("betas decrease, from %g to %g", c.BetaStart, c.BetaEnd))
		}
	}
	if c.TrainedBetas != nil {
		rules = append(rules, rule{len(c.TrainedBetas) == c.NumTrainTimesteps, "trained_betas",
			fmt.Sprintf("a list of %d", len(c.TrainedBetas)), fmt.Sprintf("as long as num_train_timesteps, %d", c.NumTrainTimesteps)})
		for _, b := range c.TrainedBetas {
			rules = append(rules, isBeta("trained_betas", b))
		}
	}
	when("prediction_type", oneOf("prediction_type", c.PredictionType, class.predictions...))
	if c.PredictionType == "flow_prediction" {
		rules = append(rules, rule{c.UseFlowSigmas, "prediction_type", c.PredictionType, "used together with use_flow_sigmas"})
	}
	if c.RescaleBetasZeroSNR && c.PredictionType == "epsilon" {
		if !class.zeroCap {
			return keyError("rescale_betas_zero_snr", "alpha is 0 at the last timestep, where epsilon says nothing about the picture: prediction_type must be v_prediction or sample")
		}
		c.Warnings = append(c.Warnings, "rescale_betas_zero_snr with prediction_type epsilon: the last alpha is 2^-12 instead of 0")
	}
	when("timestep_spacing", oneOf("timestep_spacing", c.TimestepSpacing, "leading", "linspace", "trailing"))
	when("timestep_type", oneOf("timestep_type", c.TimestepType, "discrete", "continuous"))
	when("steps_offset", between("steps_offset", c.StepsOffset, 0, max(c.NumTrainTimesteps-1, 0)))
	when("interpolation_type", oneOf("interpolation_type", c.InterpolationType, "linear", "log_linear"))
	when("final_sigmas_type", oneOf("final_sigmas_type", c.FinalSigmasType, "zero", "sigma_min"))
	when("sigma_schedule", oneOf("sigma_schedule", c.SigmaSchedule, "karras", "exponential"))
	when("time_shift_type", oneOf("time_shift_type", c.TimeShiftType, "exponential", "linear"))
	var grids []string
	for _, g := range []struct {
		key string
		on  bool
	}{{"use_karras_sigmas", c.UseKarrasSigmas}, {"use_exponential_sigmas", c.UseExponentialSigmas}, {"use_beta_sigmas", c.UseBetaSigmas},
		{"use_lu_lambdas", c.UseLuLambdas}, {"use_flow_sigmas", c.UseFlowSigmas}} {
		if g.on {
			grids = append(grids, g.key)
		}
	}
	if len(grids) > 1 {
		return keyError(grids[0], "%s ask for several grids at once", strings.Join(grids, " and "))
	}
	if defaults := class.new(c.ClassName); defaults.SigmaMin != nil && (c.SigmaMin == nil || c.SigmaMax == nil) {
		return keyError("sigma_min", "null is not allowed for %s, nor for sigma_max", c.ClassName)
	}
	if c.SigmaMin != nil {
		rules = append(rules, positive("sigma_min", value(c.SigmaMin)))
	}
	if c.SigmaMax != nil {
		rules = append(rules, positive("sigma_max", value(c.SigmaMax)))
	}
	if c.SigmaMin != nil && c.SigmaMax != nil {
		rules = append(rules, rule{value(c.SigmaMin) < value(c.SigmaMax), "sigma_min", value(c.SigmaMin), fmt.Sprintf("below sigma_max, %g", value(c.SigmaMax))})
	}
	if c.ShiftTerminal != nil {
		z := value(c.ShiftTerminal)
		rules = append(rules, rule{z > 0 && z < 1, "shift_terminal", z, "between 0 and 1"})
	}
	if c.keys["base_image_seq_len"] {
		rules = append(rules, between("base_image_seq_len", c.BaseImageSeqLen, 1, 1<<30), between("max_image_seq_len", c.MaxImageSeqLen, 1, 1<<30),
			rule{c.BaseImageSeqLen < c.MaxImageSeqLen, "base_image_seq_len", c.BaseImageSeqLen, fmt.Sprintf("below max_image_seq_len, %d", c.MaxImageSeqLen)})
	}
	for key, x := range map[string]float64{"shift": c.Shift, "flow_shift": c.FlowShift, "rho": c.Rho, "sigma_data": c.SigmaData, "timestep_scaling": c.TimestepScaling,
		"clip_sample_range": c.ClipSampleRange, "sample_max_value": c.SampleMaxValue, "snr": c.SNR, "sampling_eps": c.SamplingEps} {
		when(key, positive(key, x))
	}
	when("dynamic_thresholding_ratio", rule{c.DynamicThresholdingRatio > 0 && c.DynamicThresholdingRatio <= 1, "dynamic_thresholding_ratio", c.DynamicThresholdingRatio, "above 0 and at most 1"})
	when("original_inference_steps", between("original_inference_steps", c.OriginalInferenceSteps, 1, max(c.NumTrainTimesteps, 1)))
	when("lambda_min_clipped", rule{c.LambdaMinClipped < math.Inf(1), "lambda_min_clipped", c.LambdaMinClipped, "finite or -Infinity"})
	when("variance_type", oneOf("variance_type", c.VarianceType, class.variances...))
	when("solver_order", between("solver_order", c.SolverOrder, 1, class.maxOrder))
	when("predictor_order", between("predictor_order", c.PredictorOrder, 1, 4))
	when("corrector_order", between("corrector_order", c.CorrectorOrder, 0, 4))
	when("algorithm_type", oneOf("algorithm_type", c.AlgorithmType, class.algorithms...))
	when("solver_type", oneOf("solver_type", c.SolverType, class.solvers...))
	when("disable_corrector", eachBetween("disable_corrector", c.DisableCorrector, 0, 1<<20))
	when("correct_steps", between("correct_steps", c.CorrectSteps, 0, 1<<10))
	for key, x := range map[string]float64{"eta": c.Eta, "s_noise": c.SNoise} {
		when(key, rule{x >= 0, key, x, "not negative"})
	}
	if c.keys["algorithm_type"] && c.keys["final_sigmas_type"] {
		rules = append(rules, rule{c.FinalSigmasType != "zero" || strings.HasSuffix(c.AlgorithmType, "++"), "final_sigmas_type", c.FinalSigmasType,
			"sigma_min with algorithm_type " + c.AlgorithmType})
	}
	return check(rules...)
}

// isBeta checks a variance of a step: at 1 nothing of the picture is left.
func isBeta(key string, b float64) rule {
	return rule{b > 0 && b < 1, key, b, "above 0 and below 1"}
}

// Schedulers lists the scheduler classes that ReadScheduler knows.
func Schedulers() []string { return slices.Sorted(maps.Keys(schedulers)) }
