package main

import (
	"context"
	"errors"
	"fmt"
	"image/color"
	"io"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"

	"drift/cmd/drift/internal/reward"
	"drift/guidance"
	"drift/models"
	"drift/models/analytic"
	"drift/schedules"
	"drift/smc"
)

// weightedMean is the mean of r by softmax of lw.
func weightedMean(r, lw []float64) float64 {
	if len(lw) != len(r) {
		m, _ := moments(r)
		return m
	}
	w, err := smc.Weigh(lw)
	if err != nil {
		return math.NaN()
	}
	sum := 0.0
	for i, v := range w.W {
		if v > 0 {
			sum += v * r[i]
		}
	}
	return sum
}

// curves draws quantities over the steps: every group thin, their mean thick; weights are a histogram.
func (s *steering) curves(w io.Writer, name string, all []outcome) error {
	p := plot.New()
	p.Add(plotter.NewGrid())
	p.X.Label.Text = "step"
	type curve struct {
		label string
		of    func(c *record) float64
		col   color.NRGBA
	}
	blue, red := color.NRGBA{31, 90, 180, 255}, color.NRGBA{200, 60, 40, 255}
	var curves []curve
	switch name {
	case "ess":
		p.Title.Text, p.Y.Label.Text = "effective sample size and roots", fmt.Sprintf("of %d particles", s.width())
		curves = []curve{{"ESS before resampling", func(c *record) float64 { return c.ESS[0] }, blue}, {"roots", func(c *record) float64 { return float64(c.Roots[0]) }, red}}
		p.Y.Min = 0
	case "log_z":
		p.Title.Text, p.Y.Label.Text = "log Z", "log Z so far"
		curves = []curve{{"log Z", func(c *record) float64 { return c.LogZ[0] }, blue}}
	case "reward":
		p.Title.Text, p.Y.Label.Text = "reward", "reward of the estimates"
		curves = []curve{{"mean by weight", func(c *record) float64 {
			if c.Rewards == nil {
				return math.NaN()
			}
			return weightedMean(c.Rewards, c.Before)
		}, blue}, {"largest", func(c *record) float64 {
			if c.Rewards == nil {
				return math.NaN()
			}
			return slices.Max(c.Rewards)
		}, red}}
	case "weights":
		return s.weightHistogram(w, all)
	}
	p.Legend.Top, p.Legend.ThumbnailWidth = true, 16
	p.Legend.TextStyle.Font.Size = 8
	for _, cu := range curves {
		sum, count := map[int]float64{}, map[int]float64{}
		for g := range all {
			var xy plotter.XYs
			for i := range all[g].Log {
				c := &all[g].Log[i]
				v := cu.of(c)
				if v-v != 0 {
					continue
				}
				xy = append(xy, plotter.XY{X: float64(c.Step), Y: v})
				sum[c.Step] += v
				count[c.Step]++
			}
			if len(xy) == 0 || g >= 32 {
				continue
			}
			line, err := plotter.NewLine(xy)
			if err != nil {
				return err
			}
			line.Color, line.Width = color.NRGBA{cu.col.R, cu.col.G, cu.col.B, 60}, 0.6
			p.Add(line)
		}
		var mean plotter.XYs
		var steps []int
		for k := range sum {
			steps = append(steps, k)
		}
		slices.Sort(steps)
		for _, k := range steps {
			mean = append(mean, plotter.XY{X: float64(k), Y: sum[k] / count[k]})
		}
		if len(mean) == 0 {
			continue
		}
		line, dots, err := plotter.NewLinePoints(mean)
		if err != nil {
			return err
		}
		line.Color, line.Width, dots.Color, dots.Radius, dots.Shape = cu.col, 1.6, cu.col, 1.6, draw.CircleGlyph{}
		p.Add(line, dots)
		p.Legend.Add(cu.label, line)
	}
	if p.X.Max <= p.X.Min {
		p.X.Min, p.X.Max = 0, max(1, p.X.Max+1)
	}
	if name == "ess" {
		p.Y.Min, p.Y.Max = 0, float64(s.width())*1.18
	}
	if !(p.Y.Max > p.Y.Min) {
		p.Y.Min, p.Y.Max = p.Y.Min-1, p.Y.Min+1
	}
	return drawTo(w, p)
}

// weightHistogram shows how the final weights are spread, in units of the mean weight.
func (s *steering) weightHistogram(w io.Writer, all []outcome) error {
	var v plotter.Values
	for _, o := range all {
		g, err := smc.Weigh(o.LogWeights)
		if err != nil {
			continue
		}
		for _, x := range g.W {
			v = append(v, x*float64(len(g.W)))
		}
	}
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = "weights at the end", "weight, in units of the mean weight", "particles"
	if len(v) > 0 {
		h, err := plotter.NewHist(v, 24)
		if err != nil {
			return err
		}
		h.FillColor = color.NRGBA{120, 160, 220, 255}
		p.Add(h)
		if slices.Max(v)-slices.Min(v) < 1e-9 {
			p.X.Min, p.X.Max = v[0]-1, v[0]+1
		}
	}
	return drawTo(w, p)
}

func drawTo(w io.Writer, p *plot.Plot) error {
	c := vgimg.PngCanvas{Canvas: vgimg.NewWith(vgimg.UseWH(420, 260), vgimg.UseDPI(120))}
	p.Draw(draw.Crop(draw.New(c), 4, -8, 4, -4))
	_, err := c.WriteTo(w)
	return err
}

// exact prints the exact answers of an analytic target beside the estimates: log Z, and mean and variance of every
// coordinate under the tilted law.
func (s *steering) exact(ctx context.Context, all []outcome, summary map[string]any) {
	if s.conf.Method == "svdd" || s.plan.Particles == 1 || s.plan.First != 0 || s.plan.Last != 0 {
		return
	}
	experts := s.factors()
	if experts == nil || s.conf.Method != "fkc" && (s.reward == nil && s.conf.Method != "dgfs" || s.reward != nil && (s.reward.Grouped() || s.conf.Script == "") || len(s.desc.Guiders) > 0) {
		return
	}
	m := experts[0].of
	class := all[0].Class
	for _, o := range all {
		if o.Class != class {
			return
		}
	}
	e, err := s.tilt(ctx, experts, class)
	if err != nil {
		s.say("drift: no exact answer: %v", err)
		return
	}
	dim := m.Dim()
	mean, sd := make([]float64, dim), make([]float64, dim)
	var perGroup [][]float64
	for i := range all {
		perGroup = append(perGroup, all[i].Mean)
	}
	for d := range dim {
		var v []float64
		for _, g := range perGroup {
			v = append(v, g[d])
		}
		mean[d], sd[d] = moments(v)
		sd[d] /= math.Sqrt(float64(max(1, len(v)-1)))
	}
	var z []float64
	for _, o := range all {
		z = append(z, math.Exp(o.LogZ-e.logZ))
	}
	ratio, zsd := moments(z)
	zsd /= math.Sqrt(float64(max(1, len(z)-1)))
	show := min(dim, 4)
	how := e.how
	s.say("drift: exact (%s): log Z %.5g; mean %s", how, e.logZ, vector(e.mean[:show]))
	s.say("drift: estimate: Z/exact Z %.4g ± %.2g; mean %s ± %s over %d groups", ratio, zsd, vector(mean[:show]), vector(sd[:show]), len(all))
	summary["exact"] = map[string]any{"log_z": finite(e.logZ), "mean": e.mean, "how": how}
	summary["estimate"] = map[string]any{"z_ratio": finite(ratio), "z_ratio_se": finite(zsd), "mean": mean, "mean_se": sd}
}

func vector(v []float64) string {
	out := ""
	for i, x := range v {
		if i > 0 {
			out += ", "
		}
		out += fmt.Sprintf("%.4g", x)
	}
	if len(v) > 1 {
		return "(" + out + ")"
	}
	return out
}

// tilted is the exact law p exp(lambda r) / Z of an analytic target.
type tilted struct {
	logZ float64
	mean []float64
	how  string
}

// factor is a part of the law that is sampled: of^power.
type factor struct {
	of    *analytic.Mixture
	class *int // nil: that of the row
	power float64
}

// factors are the parts of the law before the reward, nil where they are not all known.
func (s *steering) factors() []factor {
	power := 1.0
	if s.conf.Method == "fkc" && s.c.IsSet("power") {
		power = s.c.Float64("power")
	}
	if c := s.desc.Compose; c != nil {
		if s.conf.Method != "fkc" {
			return nil
		}
		terms, err := guidance.ParseTerms(c.Models, c.Weights)
		if err != nil {
			return nil
		}
		sum := 0.0
		for _, t := range terms {
			sum += t.Weight
		}
		if strings.HasPrefix(c.Rule, "product") {
			sum = 1
		} else if !strings.HasPrefix(c.Rule, "average") {
			return nil
		}
		var out []factor
		for _, t := range terms {
			if !strings.EqualFold(filepath.Ext(t.Model), ".json") || t.Class != "" {
				return nil
			}
			m, err := analytic.Open(t.Model)
			if err != nil {
				return nil
			}
			out = append(out, factor{m, nil, power * t.Weight / sum})
		}
		return out
	}
	m, ok := models.As[*analytic.Mixture](s.model.Denoiser)
	if !ok {
		return nil
	}
	if s.conf.Method == "fkc" && len(s.desc.Guiders) == 1 {
		g, err := guidance.Parse(s.desc.Guiders[0])
		c, is := g.(guidance.CFG)
		if err != nil || !is || c.Scale != nil || c.Negative != 0 || c.Rescale != 0 || c.Span != (guidance.Span{}) {
			return nil
		}
		none := models.NoClass
		return []factor{{m, &none, power * (1 - c.W)}, {m, nil, power * c.W}}
	}
	return []factor{{m, nil, power}}
}

// tilt integrates: a grid in one and two dimensions, exact draws of the target in more.
func (s *steering) tilt(ctx context.Context, factors []factor, class int) (tilted, error) {
	m := factors[0].of
	dim := m.Dim()
	lambda := *s.conf.Lambda
	if s.reward == nil {
		lambda = 0
	}
	if s.fk.Schedule != nil {
		lambda *= s.fk.Schedule(1)
	}
	clean := m.Process().(schedules.Gaussian).AtRatio(0)
	logP := func(x []float64) (float64, error) {
		sum := 0.0
		for _, f := range factors {
			c := class
			if f.class != nil {
				c = *f.class
			}
			lp, err := f.of.LogP(x, clean, c)
			if err != nil {
				return 0, err
			}
			sum += f.power * lp
		}
		return sum, nil
	}
	var x, base []float64 // points and log weights, p times the volume
	how := "grid"
	if dim <= 2 {
		n := 4001
		if dim == 2 {
			n = 301
		}
		lo, hi := make([]float64, dim), make([]float64, dim)
		for d := range dim {
			lo[d], hi[d] = math.Inf(1), math.Inf(-1)
			for _, f := range factors {
				t := f.of.Target()
				for k, mu := range t.Means {
					sd := 0.0
					if t.Covs != nil {
						sd = math.Sqrt(t.Covs[k][d][d])
					} else {
						sd = math.Sqrt(t.Vars[k][d])
					}
					lo[d], hi[d] = min(lo[d], mu[d]-10*sd), max(hi[d], mu[d]+10*sd)
				}
			}
			wide := (hi[d] - lo[d]) * 0.25
			lo[d], hi[d] = lo[d]-wide, hi[d]+wide
		}
		volume := 1.0
		for d := range dim {
			volume *= (hi[d] - lo[d]) / float64(n-1)
		}
		total := n
		if dim == 2 {
			total = n * n
		}
		p := make([]float64, dim)
		for i := range total {
			k := i
			for d := range dim {
				p[d] = lo[d] + (hi[d]-lo[d])*float64(k%n)/float64(n-1)
				k /= n
			}
			lp, err := logP(p)
			if err != nil {
				return tilted{}, err
			}
			if !(lp > -700) {
				continue
			}
			x, base = append(x, p...), append(base, lp+math.Log(volume))
		}
	} else {
		if len(factors) > 1 || factors[0].power != 1 {
			return tilted{}, errors.New("products in more than two dimensions have no grid")
		}
		const draws = 200_000
		how = fmt.Sprintf("%d exact draws", draws)
		p := make([]float64, dim)
		for i := range draws {
			if err := m.Sample(p, class, uint64(i)); err != nil {
				return tilted{}, err
			}
			x, base = append(x, p...), append(base, -math.Log(draws))
		}
	}
	n := len(base)
	out := &reward.Scores{Reward: make([]float64, n)}
	if s.reward != nil {
		at := make([]reward.Point, n)
		for k := range at {
			at[k].Steps, at[k].Step, at[k].Alpha, at[k].Progress, at[k].Last, at[k].Class, at[k].Previous = s.steps(), s.steps(), 1, 1, true, class, math.NaN()
		}
		var err error
		if out, err = s.reward.Score(ctx, at, x, []int{dim}, nil); err != nil {
			return tilted{}, err
		}
	}
	top := math.Inf(-1)
	for k := range base {
		if lambda != 0 {
			base[k] += lambda * out.Reward[k]
		}
		top = max(top, base[k])
	}
	res := tilted{mean: make([]float64, dim), how: how}
	sum := 0.0
	for k, v := range base {
		w := math.Exp(v - top)
		sum += w
		for d := range dim {
			res.mean[d] += w * x[k*dim+d]
		}
	}
	for d := range dim {
		res.mean[d] /= sum
	}
	res.logZ = top + math.Log(sum)
	if s.fk.Potential == smc.Difference && s.fk.Init != nil && (s.conf.Method == "fk" || s.conf.Method == "epf") {
		res.logZ -= lambda * *s.fk.Init
	}
	return res, nil
}
