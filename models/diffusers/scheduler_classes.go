package diffusers

import (
	"math"
	"slices"
	"strings"
)

// A schedulerClass says which keys a class has, which defaults differ from
// those of most, and which names it understands.
type schedulerClass struct {
	keys          string
	set           func(*SchedulerConfig)
	betaSchedules []string
	predictions   []string
	variances     []string
	algorithms    []string
	solvers       []string
	maxOrder      int
	zeroCap       bool // rescale_betas_zero_snr leaves the last alpha^2 at 2^-24
}

// new returns a configuration with the defaults of the class.
func (s schedulerClass) new(name string) *SchedulerConfig {
	c := &SchedulerConfig{ClassName: name, keys: map[string]bool{}}
	for _, key := range strings.Fields(s.keys) {
		c.keys[key] = true
	}
	defaultIf := func(key string, set func()) {
		if c.keys[key] {
			set()
		}
	}
	defaultIf("num_train_timesteps", func() { c.NumTrainTimesteps = 1000 })
	defaultIf("beta_start", func() { c.BetaStart, c.BetaEnd, c.BetaSchedule = 0.0001, 0.02, "linear" })
	defaultIf("prediction_type", func() { c.PredictionType = "epsilon" })
	defaultIf("sigma_data", func() { c.SigmaData = 0.5 })
	defaultIf("timestep_spacing", func() { c.TimestepSpacing = "linspace" })
	defaultIf("timestep_type", func() { c.TimestepType = "discrete" })
	defaultIf("interpolation_type", func() { c.InterpolationType = "linear" })
	defaultIf("flow_shift", func() { c.FlowShift = 1 })
	defaultIf("final_sigmas_type", func() { c.FinalSigmasType = "zero" })
	defaultIf("lambda_min_clipped", func() { c.LambdaMinClipped = math.Inf(-1) })
	defaultIf("sigma_schedule", func() { c.SigmaSchedule = "karras" })
	defaultIf("rho", func() { c.Rho = 7 })
	defaultIf("original_inference_steps", func() { c.OriginalInferenceSteps = 50 })
	defaultIf("timestep_scaling", func() { c.TimestepScaling = 10 })
	defaultIf("shift", func() { c.Shift = 1 })
	defaultIf("base_shift", func() { c.BaseShift, c.MaxShift, c.BaseImageSeqLen, c.MaxImageSeqLen = 0.5, 1.15, 256, 4096 })
	defaultIf("time_shift_type", func() { c.TimeShiftType = "exponential" })
	defaultIf("clip_sample_range", func() { c.ClipSampleRange = 1 })
	defaultIf("dynamic_thresholding_ratio", func() { c.DynamicThresholdingRatio = 0.995 })
	defaultIf("sample_max_value", func() { c.SampleMaxValue = 1 })
	defaultIf("solver_order", func() { c.SolverOrder = 2 })
	defaultIf("lower_order_final", func() { c.LowerOrderFinal = true })
	if s.set != nil {
		s.set(c)
	}
	return c
}

// Groups of keys that classes share.
const (
	tableKeys     = "num_train_timesteps beta_start beta_end beta_schedule trained_betas "
	spacingKeys   = "timestep_spacing steps_offset "
	gridKeys      = "use_karras_sigmas use_exponential_sigmas use_beta_sigmas "
	flowGridKeys  = gridKeys + "use_flow_sigmas flow_shift "
	thresholdKeys = "thresholding dynamic_thresholding_ratio sample_max_value "
	multistepKeys = tableKeys + thresholdKeys + "solver_order prediction_type algorithm_type solver_type lower_order_final "
	edmKeys       = "sigma_min sigma_max sigma_data sigma_schedule num_train_timesteps prediction_type rho final_sigmas_type "
)

var (
	tables = []string{"linear", "scaled_linear", "squaredcos_cap_v2"}

	epsV     = []string{"epsilon", "v_prediction"}
	epsVX    = []string{"epsilon", "v_prediction", "sample"}
	epsVXAll = []string{"epsilon", "v_prediction", "sample", "flow_prediction"}

	learnedVariances = []string{"", "learned", "learned_range"}
)

func startingAt85(c *SchedulerConfig) { c.BetaStart, c.BetaEnd = 0.00085, 0.012 }

func latentDistilled(c *SchedulerConfig) {
	startingAt85(c)
	c.BetaSchedule, c.SetAlphaToOne, c.TimestepSpacing = "scaled_linear", true, "leading"
}

func leading(c *SchedulerConfig) { c.TimestepSpacing = "leading" }

func ddim(c *SchedulerConfig) {
	c.ClipSample, c.SetAlphaToOne, c.TimestepSpacing = true, true, "leading"
}

func sigmaRange(low, high float64) func(*SchedulerConfig) {
	return func(c *SchedulerConfig) {
		l, h := low, high // each configuration has its own
		c.SigmaMin, c.SigmaMax = &l, &h
	}
}

// schedulers are the supported classes, with the keys and defaults of
// diffusers 0.42.
var schedulers = map[string]schedulerClass{
	"DDIMScheduler": {
		keys:          tableKeys + spacingKeys + thresholdKeys + "clip_sample clip_sample_range set_alpha_to_one prediction_type rescale_betas_zero_snr",
		set:           ddim,
		betaSchedules: tables, predictions: epsVX,
	},
	"DDIMInverseScheduler": {
		keys:          tableKeys + spacingKeys + "clip_sample clip_sample_range set_alpha_to_one prediction_type rescale_betas_zero_snr",
		set:           ddim,
		betaSchedules: tables, predictions: epsVX,
	},
	"DDPMScheduler": {
		keys: tableKeys + spacingKeys + thresholdKeys + "variance_type clip_sample clip_sample_range prediction_type rescale_betas_zero_snr",
		set: func(c *SchedulerConfig) {
			c.VarianceType, c.ClipSample, c.TimestepSpacing = "fixed_small", true, "leading"
		},
		betaSchedules: append(slices.Clone(tables), "sigmoid", "laplace"), predictions: epsVX,
		variances: []string{"fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"},
	},
	"PNDMScheduler": {
		keys:          tableKeys + spacingKeys + "skip_prk_steps set_alpha_to_one prediction_type",
		set:           leading,
		betaSchedules: tables, predictions: epsV,
	},
	"RePaintScheduler": {
		keys:          tableKeys + "eta clip_sample",
		set:           func(c *SchedulerConfig) { c.ClipSample = true },
		betaSchedules: append(slices.Clone(tables), "sigmoid"),
	},
	"LCMScheduler": {
		keys:          tableKeys + spacingKeys + thresholdKeys + "original_inference_steps clip_sample clip_sample_range set_alpha_to_one prediction_type timestep_scaling rescale_betas_zero_snr",
		set:           latentDistilled,
		betaSchedules: tables, predictions: epsVX,
	},
	"TCDScheduler": {
		keys:          tableKeys + spacingKeys + thresholdKeys + "original_inference_steps clip_sample clip_sample_range set_alpha_to_one prediction_type timestep_scaling rescale_betas_zero_snr",
		set:           latentDistilled,
		betaSchedules: tables, predictions: epsVX,
	},
	"EulerDiscreteScheduler": {
		keys:          tableKeys + spacingKeys + gridKeys + "prediction_type interpolation_type sigma_min sigma_max timestep_type rescale_betas_zero_snr final_sigmas_type",
		betaSchedules: tables, predictions: epsVX, zeroCap: true,
	},
	"EulerAncestralDiscreteScheduler": {
		keys:          tableKeys + spacingKeys + "prediction_type rescale_betas_zero_snr",
		betaSchedules: tables, predictions: epsV, zeroCap: true,
	},
	"HeunDiscreteScheduler": {
		keys:          tableKeys + spacingKeys + gridKeys + "prediction_type clip_sample clip_sample_range",
		set:           startingAt85,
		betaSchedules: append(slices.Clone(tables), "exp"), predictions: epsV,
	},
	"KDPM2DiscreteScheduler":          {keys: tableKeys + spacingKeys + gridKeys + "prediction_type", set: startingAt85, betaSchedules: tables, predictions: epsV},
	"KDPM2AncestralDiscreteScheduler": {keys: tableKeys + spacingKeys + gridKeys + "prediction_type", set: startingAt85, betaSchedules: tables, predictions: epsV},
	"LMSDiscreteScheduler":            {keys: tableKeys + spacingKeys + gridKeys + "prediction_type", betaSchedules: tables, predictions: epsVX},
	"DPMSolverSDEScheduler": {
		keys:          tableKeys + spacingKeys + gridKeys + "prediction_type noise_sampler_seed",
		set:           startingAt85,
		betaSchedules: tables, predictions: epsV,
	},
	"DPMSolverMultistepScheduler": {
		keys: multistepKeys + spacingKeys + flowGridKeys +
			"euler_at_final use_lu_lambdas final_sigmas_type lambda_min_clipped variance_type rescale_betas_zero_snr use_dynamic_shifting time_shift_type",
		set:           func(c *SchedulerConfig) { c.AlgorithmType, c.SolverType = "dpmsolver++", "midpoint" },
		betaSchedules: tables, predictions: epsVXAll, variances: learnedVariances, zeroCap: true, maxOrder: 3,
		algorithms: []string{"dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"}, solvers: []string{"midpoint", "heun"},
	},
	"DPMSolverSinglestepScheduler": {
		keys: multistepKeys + flowGridKeys + "final_sigmas_type lambda_min_clipped variance_type use_dynamic_shifting time_shift_type",
		set: func(c *SchedulerConfig) {
			c.AlgorithmType, c.SolverType, c.LowerOrderFinal = "dpmsolver++", "midpoint", false
		},
		betaSchedules: tables, predictions: epsVXAll, variances: learnedVariances, maxOrder: 3,
		algorithms: []string{"dpmsolver++", "dpmsolver", "sde-dpmsolver++"}, solvers: []string{"midpoint", "heun"},
	},
	"DEISMultistepScheduler": {
		keys:          multistepKeys + spacingKeys + flowGridKeys + "use_dynamic_shifting time_shift_type",
		set:           func(c *SchedulerConfig) { c.AlgorithmType, c.SolverType = "deis", "logrho" },
		betaSchedules: tables, predictions: epsVXAll, maxOrder: 3,
		algorithms: []string{"deis"}, solvers: []string{"logrho"},
	},
	"UniPCMultistepScheduler": {
		keys: tableKeys + thresholdKeys + spacingKeys + flowGridKeys + "solver_order prediction_type predict_x0 solver_type lower_order_final disable_corrector solver_p " +
			"final_sigmas_type rescale_betas_zero_snr use_dynamic_shifting time_shift_type sigma_min sigma_max shift_terminal",
		set:           func(c *SchedulerConfig) { c.PredictX0, c.SolverType, c.DisableCorrector = true, "bh2", []int{} },
		betaSchedules: tables, predictions: epsVXAll, zeroCap: true, maxOrder: 9,
		solvers: []string{"bh2", "bh1"},
	},
	"SASolverScheduler": {
		keys: tableKeys + thresholdKeys + spacingKeys + flowGridKeys +
			"predictor_order corrector_order prediction_type tau_func algorithm_type lower_order_final lambda_min_clipped variance_type",
		set: func(c *SchedulerConfig) {
			c.PredictorOrder, c.CorrectorOrder, c.AlgorithmType = 2, 2, "data_prediction"
		},
		betaSchedules: tables, predictions: epsVXAll, variances: learnedVariances,
		algorithms: []string{"data_prediction", "noise_prediction"},
	},
	"IPNDMScheduler": {keys: "num_train_timesteps trained_betas"},
	"FlowMatchEulerDiscreteScheduler": {
		keys: gridKeys + "num_train_timesteps shift use_dynamic_shifting base_shift max_shift base_image_seq_len max_image_seq_len " +
			"invert_sigmas shift_terminal time_shift_type stochastic_sampling",
	},
	"FlowMatchHeunDiscreteScheduler": {keys: "num_train_timesteps shift"},
	"EDMEulerScheduler":              {keys: edmKeys, set: sigmaRange(0.002, 80), predictions: epsV},
	"EDMDPMSolverMultistepScheduler": {
		keys: edmKeys + thresholdKeys + "solver_order algorithm_type solver_type lower_order_final euler_at_final",
		set: func(c *SchedulerConfig) {
			sigmaRange(0.002, 80)(c)
			c.AlgorithmType, c.SolverType = "dpmsolver++", "midpoint"
		},
		predictions: epsV, maxOrder: 3,
		algorithms: []string{"dpmsolver++", "sde-dpmsolver++"}, solvers: []string{"midpoint", "heun"},
	},
	"CMStochasticIterativeScheduler": {
		keys: "num_train_timesteps sigma_min sigma_max sigma_data s_noise rho clip_denoised",
		set: func(c *SchedulerConfig) {
			sigmaRange(0.002, 80)(c)
			c.NumTrainTimesteps, c.SNoise, c.ClipDenoised = 40, 1, true
		},
	},
	"ScoreSdeVeScheduler": {
		keys: "num_train_timesteps snr sigma_min sigma_max sampling_eps correct_steps",
		set: func(c *SchedulerConfig) {
			sigmaRange(0.01, 1348)(c)
			c.NumTrainTimesteps, c.SNR, c.SamplingEps, c.CorrectSteps = 2000, 0.15, 1e-5, 1
		},
	},
}

// otherSchedulerKeys are the keys of the schedulers of diffusers that are not
// supported here, and of releases long ago. They, and the keys of the
// supported ones, mean nothing to a class that does not have them.
const otherSchedulerKeys = "alpha_cum_end alpha_cum_start beta_max beta_min block_length corrector_k corrector_selection corrector_selection_tau corrector_steps " +
	"editing_threshold entropy_bound eps final_step_size_scale gamma gamma_cum_end gamma_cum_start mask_token_id masking_schedule minimal_topk n_grid noise_mode " +
	"num_inference_steps num_policy_substeps num_vec_classes s s_churn s_max s_min scale_factors scaler schedule_mode scheduler_type snr_shift_scale stage_range stages " +
	"t_lim_ode t_lim_ode_below t_max t_min tail_step_multiplier tail_steps threshold tsr_k tsr_sigma upscale_mode tensor_format timestep_values"

// isSchedulerKey reports whether any scheduler of diffusers has the key.
func isSchedulerKey(key string) bool {
	if slices.Contains(strings.Fields(otherSchedulerKeys), key) {
		return true
	}
	for _, s := range schedulers {
		if slices.Contains(strings.Fields(s.keys), key) {
			return true
		}
	}
	return false
}
