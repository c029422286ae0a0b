package schedules

import (
	"fmt"
	"math"
	"slices"

	"drift/internal/spec"
)

// DiffusersConfig is what a diffusers scheduler_config.json says about the process and the grid, one field per key.
// Start from DiffusersDefaults, since the classes differ in what an absent key means.
type DiffusersConfig struct {
	ClassName              string    `json:"_class_name"`
	NumTrainTimesteps      int       `json:"num_train_timesteps"`
	BetaStart              float64   `json:"beta_start"`
	BetaEnd                float64   `json:"beta_end"`
	BetaSchedule           string    `json:"beta_schedule"`
	TrainedBetas           []float64 `json:"trained_betas"`
	RescaleBetasZeroSNR    bool      `json:"rescale_betas_zero_snr"`
	PredictionType         string    `json:"prediction_type"`
	TimestepSpacing        string    `json:"timestep_spacing"`
	TimestepType           string    `json:"timestep_type"`
	InterpolationType      string    `json:"interpolation_type"`
	StepsOffset            int       `json:"steps_offset"`
	SetAlphaToOne          bool      `json:"set_alpha_to_one"`
	UseKarrasSigmas        bool      `json:"use_karras_sigmas"`
	UseExponentialSigmas   bool      `json:"use_exponential_sigmas"`
	UseBetaSigmas          bool      `json:"use_beta_sigmas"`
	UseLuLambdas           bool      `json:"use_lu_lambdas"`
	UseFlowSigmas          bool      `json:"use_flow_sigmas"`
	FlowShift              float64   `json:"flow_shift"`
	FinalSigmasType        string    `json:"final_sigmas_type"`
	LambdaMinClipped       float64   `json:"lambda_min_clipped"` // -Inf: not clipped
	SigmaMin               *float64  `json:"sigma_min"`
	SigmaMax               *float64  `json:"sigma_max"`
	SigmaSchedule          string    `json:"sigma_schedule"`
	Rho                    float64   `json:"rho"`
	Shift                  float64   `json:"shift"`
	ShiftTerminal          float64   `json:"shift_terminal"` // 0: none
	UseDynamicShifting     bool      `json:"use_dynamic_shifting"`
	TimeShiftType          string    `json:"time_shift_type"`
	InvertSigmas           bool      `json:"invert_sigmas"`
	OriginalInferenceSteps int       `json:"original_inference_steps"`
}

// DiffusersRun is what set_timesteps is called with: the number of steps, the exponent mu of dynamic shifting where
// the class wants one, or, for the flow classes, the sigmas before the shift (Steps is then their number).
type DiffusersRun struct {
	Steps  int
	Mu     *float64
	Sigmas []float64
	// Strength leaves out that much of the noise end of a consistency distillation's timesteps, from which image to image
	// takes its Steps; 0 = 1.
	Strength float64
}

// diffusersRule is how a class makes its grid.
type diffusersRule int

const (
	ruleTable   diffusersRule = iota // whole timesteps of the table: DDIM and its kin
	ruleEuler                        // sigmas interpolated at timesteps that may be fractions
	ruleDPM                          // n+1 timesteps without the last, or a rule over the whole table
	ruleDistill                      // every k-th timestep of the distillation's own list
	ruleEDM                          // sigmas of the EDM range
	ruleFlow                         // shifted flow sigmas
)

type diffusersClass struct {
	rule         diffusersRule
	zeroCap      bool // a table without terminal signal ends with alpha^2 = 2^-24 instead
	lastRepeated bool // karras, exponential, beta and flow sigmas end with the last one twice
	lastOwn      bool // final_sigmas_type=sigma_min means the last of those sigmas, not of the table
	ownEnds      bool // sigma_min and sigma_max override the ends of those sigmas
}

var diffusersClasses = map[string]diffusersClass{
	"DDIMScheduler":                   {rule: ruleTable},
	"DDPMScheduler":                   {rule: ruleTable},
	"PNDMScheduler":                   {rule: ruleTable},
	"LCMScheduler":                    {rule: ruleDistill},
	"TCDScheduler":                    {rule: ruleDistill},
	"EulerDiscreteScheduler":          {rule: ruleEuler, zeroCap: true, ownEnds: true},
	"EulerAncestralDiscreteScheduler": {rule: ruleEuler, zeroCap: true},
	"LMSDiscreteScheduler":            {rule: ruleEuler},
	"HeunDiscreteScheduler":           {rule: ruleEuler},
	"DPMSolverMultistepScheduler":     {rule: ruleDPM, zeroCap: true},
	"DPMSolverSinglestepScheduler":    {rule: ruleDPM},
	"UniPCMultistepScheduler":         {rule: ruleDPM, zeroCap: true, lastOwn: true, ownEnds: true},
	"DEISMultistepScheduler":          {rule: ruleDPM, lastRepeated: true},
	"SASolverScheduler":               {rule: ruleDPM, lastRepeated: true},
	"EDMEulerScheduler":               {rule: ruleEDM},
	"EDMDPMSolverMultistepScheduler":  {rule: ruleEDM},
	"FlowMatchEulerDiscreteScheduler": {rule: ruleFlow},
	"FlowMatchHeunDiscreteScheduler":  {rule: ruleFlow},
}

// DiffusersClasses returns the names of the classes that DiffusersDefaults knows, sorted.
func DiffusersClasses() []string {
	var out []string
	for name := range diffusersClasses {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// DiffusersDefaults returns what a scheduler_config.json of that class means when it says nothing else.
func DiffusersDefaults(class string) (DiffusersConfig, error) {
	return prefixed(diffusersDefaults(class))
}

func diffusersDefaults(class string) (DiffusersConfig, error) {
	known, ok := diffusersClasses[class]
	if !ok {
		return DiffusersConfig{}, fmt.Errorf("unknown diffusers scheduler %q%s", class, spec.Suggest(class, DiffusersClasses()))
	}
	c := DiffusersConfig{
		ClassName: class, NumTrainTimesteps: 1000, BetaStart: 0.0001, BetaEnd: 0.02, BetaSchedule: "linear",
		PredictionType: "epsilon", TimestepSpacing: "linspace", TimestepType: "discrete", InterpolationType: "linear",
		SetAlphaToOne: true, FlowShift: 1, FinalSigmasType: "zero", LambdaMinClipped: math.Inf(-1),
		SigmaSchedule: "karras", Rho: 7, Shift: 1, TimeShiftType: "exponential", OriginalInferenceSteps: 50,
	}
	switch known.rule {
	case ruleTable:
		c.TimestepSpacing = "leading"
		c.SetAlphaToOne = class != "PNDMScheduler"
	case ruleDistill:
		c.TimestepSpacing = "leading"
		c.BetaStart, c.BetaEnd, c.BetaSchedule = 0.00085, 0.012, "scaled_linear"
	case ruleEDM:
		lo, hi := 0.002, 80.0
		c.SigmaMin, c.SigmaMax = &lo, &hi
	}
	if class == "HeunDiscreteScheduler" {
		c.BetaStart, c.BetaEnd = 0.00085, 0.012
	}
	return c, nil
}

func (c DiffusersConfig) class() diffusersClass { return diffusersClasses[c.ClassName] }

// Process returns the process of the configuration: EDM, Flow, or the table of betas.
func (c DiffusersConfig) Process() (Gaussian, error) { return prefixed(c.process()) }

func (c DiffusersConfig) process() (Gaussian, error) {
	if _, err := diffusersDefaults(c.ClassName); err != nil {
		return nil, err
	}
	switch {
	case c.class().rule == ruleFlow || c.UseFlowSigmas:
		return Flow{}, nil
	case c.class().rule == ruleEDM:
		lo, hi, err := c.edmEnds()
		return EDM{SigmaMin: lo, SigmaMax: hi}, err
	}
	return c.table()
}

func (c DiffusersConfig) table() (*VPDiscrete, error) {
	return newVPDiscrete(Betas{
		Schedule: c.BetaSchedule, Start: c.BetaStart, End: c.BetaEnd, Steps: c.NumTrainTimesteps,
		Trained: c.TrainedBetas, ZeroSNR: c.RescaleBetasZeroSNR,
	})
}

// Grid returns the nodes that diffusers' set_timesteps makes (version 0.42), in float64, and the timestep that the
// network is asked at on each node but the last. A node's T is that timestep too, except for EDM and flow classes,
// where it is sigma. Heun and PNDM classes ask more than once on some nodes; their nodes stand here once.
//
// DDIM, DDPM and PNDM step from t to t - T/N rounded down. With spacing leading that is the next node of the grid; with
// linspace or trailing it can differ from it by the rounding, which this grid does not imitate.
func (c DiffusersConfig) Grid(run DiffusersRun) (Grid, []float64, error) {
	g, timesteps, err := c.grid(run)
	if err == nil {
		err = g.check()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("schedules: %s: %w", c.ClassName, err)
	}
	return g, timesteps, nil
}

func (c DiffusersConfig) grid(run DiffusersRun) (Grid, []float64, error) {
	if len(run.Sigmas) > 0 {
		if run.Steps != 0 && run.Steps != len(run.Sigmas) {
			return nil, nil, fmt.Errorf("%d steps, but %d sigmas", run.Steps, len(run.Sigmas))
		}
		run.Steps = len(run.Sigmas)
	}
	count := 0
	for _, on := range []bool{c.UseKarrasSigmas, c.UseExponentialSigmas, c.UseBetaSigmas} {
		if on {
			count++
		}
	}
	p, err := c.process()
	switch {
	case err != nil:
		return nil, nil, err
	case run.Steps < 1 || run.Steps > MaxSteps:
		return nil, nil, fmt.Errorf("%d steps; want 1 to %d", run.Steps, MaxSteps)
	case count > 1:
		return nil, nil, fmt.Errorf("only one of use_karras_sigmas, use_exponential_sigmas and use_beta_sigmas can be on")
	case c.FinalSigmasType != "zero" && c.FinalSigmasType != "sigma_min":
		return nil, nil, fmt.Errorf("final_sigmas_type %q; want zero or sigma_min", c.FinalSigmasType)
	case c.InvertSigmas:
		return nil, nil, fmt.Errorf("invert_sigmas turns the run from data to noise, which is not supported")
	case len(run.Sigmas) > 0 && p != Gaussian(Flow{}):
		return nil, nil, fmt.Errorf("sigmas can be given to flow schedulers only")
	case run.Mu != nil && !c.UseDynamicShifting:
		return nil, nil, fmt.Errorf("mu is given, but use_dynamic_shifting is off")
	}
	switch c.class().rule {
	case ruleEDM:
		return c.edmGrid(run.Steps)
	case ruleFlow:
		return c.flowGrid(run)
	}
	if c.UseFlowSigmas {
		return c.dpmFlowGrid(run)
	}
	return c.tableGrid(p.(*VPDiscrete), run.Steps, run.Strength)
}

// tableGrid serves every class that lives on a table of betas.
func (c DiffusersConfig) tableGrid(p *VPDiscrete, n int, share float64) (Grid, []float64, error) {
	table := make([]float64, p.Len())
	for i := range table {
		table[i] = p.At(float64(i)).Ratio()
	}
	last := len(table) - 1
	if c.RescaleBetasZeroSNR && c.class().zeroCap {
		table[last] = math.Sqrt(1<<24 - 1)
	}
	timesteps, err := c.timesteps(p, n, share)
	if err != nil {
		return nil, nil, err
	}
	sigmas := make([]float64, len(timesteps))
	for i, t := range timesteps {
		if t < 0 || t > float64(last) {
			return nil, nil, fmt.Errorf("timestep %g is not in the table of %d (steps_offset %d)", t, len(table), c.StepsOffset)
		}
		k := min(int(t), last-1)
		switch f := t - float64(k); f {
		case 0:
			sigmas[i] = table[k]
		case 1:
			sigmas[i] = table[k+1]
		default:
			sigmas[i] = table[k] + f*(table[k+1]-table[k])
		}
	}
	final := 0.0
	if c.FinalSigmasType == "sigma_min" {
		final = table[0]
	}
	switch c.class().rule {
	case ruleTable:
		if final = 0; !c.SetAlphaToOne {
			final = table[0]
		}
	case ruleDistill: // TCD's last step goes to timestep 0
		if final = 0; c.ClassName == "TCDScheduler" {
			final = table[0]
		}
	case ruleEuler:
		switch c.InterpolationType {
		case "linear":
		case "log_linear":
			sigmas = exps(linspace(math.Log(table[last]), math.Log(table[0]), n+1))
			if !c.reshapes() { // the sigma that diffusers appends is never reached
				final, sigmas = sigmas[n], sigmas[:n]
			}
		default:
			return nil, nil, fmt.Errorf("unknown interpolation_type %q", c.InterpolationType)
		}
		if c.reshapes() {
			sigmas, timesteps = c.reshape(sigmas[0], sigmas[len(sigmas)-1], n, p)
		}
		if c.TimestepType == "continuous" && c.PredictionType == "v_prediction" {
			for i, s := range sigmas {
				timesteps[i] = 0.25 * math.Log(s)
			}
		}
	case ruleDPM:
		reshaped := c.reshapes()
		if reshaped {
			sigmas, timesteps = c.reshape(table[last], table[0], n, p)
			if (c.UseKarrasSigmas || c.UseLuLambdas) && (c.BetaSchedule != "squaredcos_cap_v2" || c.ClassName != "DPMSolverMultistepScheduler") {
				for i, t := range timesteps {
					timesteps[i] = math.RoundToEven(t)
				}
			}
			for i, t := range timesteps { // cut to whole numbers; t is one up to rounding where sigma stands in the table
				if timesteps[i] = math.Trunc(t); math.Abs(t-math.RoundToEven(t)) < 1e-9 {
					timesteps[i] = math.RoundToEven(t)
				}
			}
		}
		if c.class().lastRepeated && reshaped || c.class().lastOwn && reshaped && c.FinalSigmasType == "sigma_min" {
			final = sigmas[len(sigmas)-1]
		} else if c.class().lastRepeated {
			final = table[0]
		}
	}
	g := make(Grid, len(sigmas), len(sigmas)+1)
	for i, s := range sigmas {
		g[i] = vpNode(timesteps[i], s)
	}
	return append(g, p.AtRatio(final)), timesteps, nil
}

// timesteps returns the whole (ruleEuler: possibly fractional) timesteps of the table.
func (c DiffusersConfig) timesteps(p *VPDiscrete, n int, share float64) ([]float64, error) {
	T := p.Len()
	if c.class().rule == ruleDistill {
		return c.distilled(T, n, share)
	}
	count, round := n, c.class().rule != ruleEuler
	end := T // one past the last timestep
	if c.class().rule == ruleDPM {
		count = n + 1
		if c.ClassName != "UniPCMultistepScheduler" && c.ClassName != "DEISMultistepScheduler" {
			for end > 0 && -p.logSB[end-1] < c.LambdaMinClipped {
				end--
			}
			if end == 0 {
				return nil, fmt.Errorf("lambda_min_clipped %g leaves no timestep", c.LambdaMinClipped)
			}
		}
	} else if c.class().rule == ruleTable && n > T {
		return nil, fmt.Errorf("%d steps, but only %d timesteps", n, T)
	}
	var out []float64
	spacing := c.TimestepSpacing
	if c.ClassName == "DPMSolverSinglestepScheduler" {
		spacing = "linspace"
	}
	switch spacing {
	case "linspace":
		for _, t := range linspace(0, float64(end-1), count) {
			if round {
				t = math.RoundToEven(t)
			}
			out = append(out, t)
		}
		slices.Reverse(out)
	case "leading":
		for i := count - 1; i >= 0; i-- {
			out = append(out, float64(end/count*i+c.StepsOffset))
		}
	case "trailing": // numpy's arange(end, 0, -T/n), which takes as stride what is left of it beside the start
		ratio := float64(T) / float64(n)
		stride := float64(float64(end)-ratio) - float64(end)
		for i := range min(int(math.Ceil(float64(end)/ratio)), n) { // for some n, 61 of 1000 say, arange gives a -1 too many
			out = append(out, math.RoundToEven(float64(float64(i)*stride)+float64(end))-1)
		}
		return out, nil
	default:
		return nil, fmt.Errorf("timestep_spacing %q; want linspace, leading or trailing", spacing)
	}
	return out[:n], nil
}

// distilled picks n timesteps from the first share of the original_inference_steps ones of a consistency distillation.
func (c DiffusersConfig) distilled(T, n int, share float64) ([]float64, error) {
	m, ratio := c.OriginalInferenceSteps, 0
	if m >= 1 {
		ratio = T / m
	}
	if share > 0 {
		m = int(float64(m) * share)
	}
	if m < 1 || m > T || n > m {
		return nil, fmt.Errorf("%d steps of original_inference_steps %d of %d timesteps", n, m, T)
	}
	out := make([]float64, n)
	for i := range out {
		k := int(float64(float64(i) * (float64(m) / float64(n))))
		out[i] = float64((m-k)*ratio - 1)
	}
	return out, nil
}

func (c DiffusersConfig) reshapes() bool {
	return c.UseKarrasSigmas || c.UseExponentialSigmas || c.UseBetaSigmas || c.class().rule == ruleDPM && c.UseLuLambdas
}

// reshape returns n sigmas from hi to lo by the rule that is on, and their times in p.
func (c DiffusersConfig) reshape(hi, lo float64, n int, p *VPDiscrete) (sigmas, timesteps []float64) {
	if c.class().ownEnds {
		hi, lo = orElse(c.SigmaMax, hi), orElse(c.SigmaMin, lo)
	}
	sigmas = c.spread(hi, lo, n)
	for _, s := range sigmas {
		timesteps = append(timesteps, p.AtRatio(s).T)
	}
	return sigmas, timesteps
}

// spread returns n sigmas from hi to lo: karras with rho 7, beta with 0.6 and 0.6, or log-linear.
func (c DiffusersConfig) spread(hi, lo float64, n int) []float64 {
	switch {
	case c.UseKarrasSigmas:
		return karrasSigmas(hi, lo, n, 7)
	case c.UseBetaSigmas:
		out := linspace(0, 1, n)
		for i, u := range out {
			out[i] = mix(betaQuantile(1-u, 0.6, 0.6), lo, hi)
		}
		return out
	}
	return exps(linspace(math.Log(hi), math.Log(lo), n))
}

func orElse(v *float64, def float64) float64 {
	if v == nil {
		return def
	}
	return *v
}

func (c DiffusersConfig) edmEnds() (lo, hi float64, err error) {
	lo, hi = orElse(c.SigmaMin, 0.002), orElse(c.SigmaMax, 80)
	if !(lo > 0 && hi > lo && !math.IsInf(hi, 1)) {
		err = fmt.Errorf("sigma_min %g and sigma_max %g; want 0 < sigma_min < sigma_max", lo, hi)
	}
	return lo, hi, err
}

func (c DiffusersConfig) edmGrid(n int) (Grid, []float64, error) {
	lo, hi, err := c.edmEnds()
	if err != nil {
		return nil, nil, err
	}
	var sigmas []float64
	switch c.SigmaSchedule {
	case "karras":
		if !(c.Rho > 0) {
			return nil, nil, fmt.Errorf("rho %g; want a positive number", c.Rho)
		}
		sigmas = karrasSigmas(hi, lo, n, c.Rho)
	case "exponential": // laid out from the low end: a single step starts there
		sigmas = exps(linspace(math.Log(lo), math.Log(hi), n))
		slices.Reverse(sigmas)
	default:
		return nil, nil, fmt.Errorf("sigma_schedule %q; want karras or exponential", c.SigmaSchedule)
	}
	timesteps := make([]float64, n)
	for i, s := range sigmas {
		timesteps[i] = 0.25 * math.Log(s)
	}
	final := 0.0
	if c.FinalSigmasType == "sigma_min" {
		if final = lo; c.ClassName == "EDMEulerScheduler" {
			final = sigmas[n-1]
		}
	}
	g, err := fromRatios(EDM{}, append(sigmas, final))
	return g, timesteps, err
}

// flowGrid is that of the flow matching classes. Without given sigmas the low end has been shifted once before it is
// shifted again.
func (c DiffusersConfig) flowGrid(run DiffusersRun) (Grid, []float64, error) {
	n, T := run.Steps, float64(c.NumTrainTimesteps)
	if T < 1 || !(c.Shift > 0) {
		return nil, nil, fmt.Errorf("num_train_timesteps %g and shift %g; want positive numbers", T, c.Shift)
	}
	if c.ClassName == "FlowMatchHeunDiscreteScheduler" {
		c.UseDynamicShifting, c.ShiftTerminal = false, 0
		c.UseKarrasSigmas, c.UseExponentialSigmas, c.UseBetaSigmas = false, false, false
	}
	sigmas := slices.Clone(run.Sigmas)
	if sigmas == nil {
		low := 1 / T
		if !c.UseDynamicShifting {
			low = shiftFlow(low, c.Shift)
		}
		for _, t := range linspace(T, low*T, n) {
			sigmas = append(sigmas, t/T)
		}
	}
	if err := c.shiftAll(sigmas, c.Shift, run.Mu); err != nil {
		return nil, nil, err
	}
	if c.UseKarrasSigmas || c.UseExponentialSigmas || c.UseBetaSigmas {
		sigmas = c.spread(sigmas[0], sigmas[n-1], n)
	}
	return flowNodes(sigmas, 0, T, false)
}

// dpmFlowGrid is that of the other classes with use_flow_sigmas.
func (c DiffusersConfig) dpmFlowGrid(run DiffusersRun) (Grid, []float64, error) {
	n, T := run.Steps, float64(c.NumTrainTimesteps)
	p, err := c.table()
	switch {
	case err != nil:
		return nil, nil, err
	case c.class().rule != ruleDPM:
		return nil, nil, fmt.Errorf("use_flow_sigmas is not an option of this class")
	case c.UseExponentialSigmas || c.UseBetaSigmas || c.UseLuLambdas || c.UseKarrasSigmas:
		return nil, nil, fmt.Errorf("use_flow_sigmas with another rule for sigmas is not supported")
	case !(c.FlowShift > 0):
		return nil, nil, fmt.Errorf("flow_shift %g; want a positive number", c.FlowShift)
	}
	var sigmas []float64
	if c.ClassName == "UniPCMultistepScheduler" {
		if sigmas = slices.Clone(run.Sigmas); sigmas == nil {
			sigmas = linspace(1, 1/T, n+1)[:n]
		}
		if err := c.shiftAll(sigmas, c.FlowShift, run.Mu); err != nil {
			return nil, nil, err
		}
		if math.Abs(sigmas[0]-1) < 1e-6 { // where lambda is finite
			sigmas[0] -= 1e-6
		}
	} else {
		if run.Sigmas != nil {
			return nil, nil, fmt.Errorf("sigmas cannot be given to this class")
		}
		shift := c.FlowShift
		if run.Mu != nil {
			shift = math.Exp(*run.Mu)
		}
		for _, a := range linspace(1, 1/T, n+1)[1:] {
			sigmas = append(sigmas, shiftFlow(1-a, shift))
		}
		slices.Reverse(sigmas)
	}
	final := 0.0
	if c.class().lastRepeated || c.class().lastOwn && c.FinalSigmasType == "sigma_min" {
		final = sigmas[n-1]
	} else if c.FinalSigmasType == "sigma_min" {
		final = p.At(0).Ratio() // diffusers takes it from the table of betas
	}
	return flowNodes(sigmas, final, T, true)
}

// shiftAll shifts flow sigmas in place, by mu where dynamic shifting is on, and stretches them to the terminal.
func (c DiffusersConfig) shiftAll(sigmas []float64, shift float64, mu *float64) error {
	if c.UseDynamicShifting {
		if mu == nil {
			return fmt.Errorf("use_dynamic_shifting wants a mu")
		}
		switch c.TimeShiftType {
		case "exponential":
			shift = math.Exp(*mu)
		case "linear":
			shift = *mu
		default:
			return fmt.Errorf("time_shift_type %q; want exponential or linear", c.TimeShiftType)
		}
		for i, s := range sigmas {
			sigmas[i] = shift / (shift + (1/s - 1))
		}
	} else {
		for i, s := range sigmas {
			sigmas[i] = shiftFlow(s, shift)
		}
	}
	if c.ShiftTerminal == 0 {
		return nil
	}
	n := len(sigmas)
	scale := (1 - sigmas[n-1]) / (1 - c.ShiftTerminal)
	if scale == 0 {
		return fmt.Errorf("shift_terminal %g cannot be reached in %d steps: diffusers divides by zero here", c.ShiftTerminal, n)
	}
	for i, s := range sigmas {
		sigmas[i] = 1 - (1-s)/scale
	}
	return nil
}

// shiftFlow keeps the order of diffusers' operations, since timesteps are cut to whole numbers after it; the
// conversions forbid fused multiply-add.
func shiftFlow(s, shift float64) float64 {
	return float64(shift*s) / (1 + float64((shift-1)*s))
}

func flowNodes(sigmas []float64, final, T float64, whole bool) (Grid, []float64, error) {
	timesteps := make([]float64, len(sigmas))
	for i, s := range sigmas {
		if timesteps[i] = s * T; whole {
			timesteps[i] = math.Trunc(timesteps[i])
		}
	}
	g, err := fromTimes(Flow{}, append(sigmas, final))
	return g, timesteps, err
}

func karrasSigmas(hi, lo float64, n int, rho float64) []float64 {
	out := linspace(0, 1, n)
	for i, u := range out {
		out[i] = math.Pow(mix(u, math.Pow(hi, 1/rho), math.Pow(lo, 1/rho)), rho)
	}
	return out
}

func exps(v []float64) []float64 {
	for i := range v {
		v[i] = math.Exp(v[i])
	}
	return v
}

// linspace is numpy's: n values from a to b, a alone when n is 1.
func linspace(a, b float64, n int) []float64 {
	out := make([]float64, n)
	step := (b - a) / float64(n-1)
	for i := range out {
		out[i] = float64(float64(i)*step) + a
	}
	out[n-1] = b
	out[0] = a
	return out
}
