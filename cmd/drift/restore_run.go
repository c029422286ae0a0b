package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/manifest"
	"drift/cmd/drift/internal/output"
	"drift/internal/npz"
	"drift/internal/operators"
	"drift/internal/refuse"
	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
)

// drawn is what one method made of one input so far, rows in the order of the seeds, particles of a seed together.
type drawn struct {
	seeds  []uint64 // of the rows that are there
	x      []float64
	cost   samplers.Stats // per row, mean over the rows
	scores []score
}

// run restores the inputs by all methods, stores everything, and tells the scores.
func (r *restoring) run(ctx context.Context) error {
	per := operators.Size(r.info.Shape)
	rows := 0
	for _, m := range r.methods {
		rows += m.group * len(r.seeds)
	}
	if err := enoughMemory(float64(8*per*len(r.inputs))*float64(rows+1), "--out "+r.path); err != nil {
		return &hint{err, "take fewer inputs or seeds at a time"}
	}
	if err := r.claim(); err != nil {
		return err
	}
	if err := r.writeMeasurement(); err != nil {
		return err
	}
	if r.json {
		r.emit(map[string]any{"event": "start", "hash": r.about.hash(), "model": r.desc.Model.Path, "task": r.op.Name(), "noise_sigma": r.about.NoiseSigma, "inputs": len(r.inputs),
			"samples": len(r.seeds), "steps": len(r.plan.Grid) - 1, "out": r.path})
	}
	began := time.Now()
	all := make([][]*drawn, len(r.methods))
	total, done := float64(len(r.methods)*len(r.inputs)), 0.0
	bar := r.start("drift")
	var err error
	for i, m := range r.methods {
		for _, in := range r.inputs {
			var d *drawn
			d, err = r.restore(ctx, m, in, func(part float64, where string) { bar.Set((done+part)/total, m.text+", "+where) })
			if err != nil {
				break
			}
			done++
			all[i] = append(all[i], d)
		}
		if err != nil {
			break
		}
	}
	bar.Close()
	r.bar = nil
	if err != nil {
		return r.stopped(err)
	}
	if err := r.report(ctx, all); err != nil {
		return err
	}
	if err := os.Remove(r.state()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if r.json {
		r.emit(map[string]any{"event": "done", "out": r.path, "seconds": time.Since(began).Seconds(), "hash": r.about.hash()})
	}
	r.say("drift: restored %d x %d samples by %d methods in %v: %s", len(r.inputs), len(r.seeds), len(r.methods), time.Since(began).Round(time.Millisecond), r.path)
	return nil
}

// stopped words an error of the run.
func (r *restoring) stopped(err error) error {
	switch exitCode(err) {
	case exitInterrupted:
		return &hint{fmt.Errorf("%w: what is finished is kept in %s", job.ErrStopped, r.path), "go on with: " + r.again()}
	case exitNotFinite:
		return &hint{err, "try more steps, a smaller step of the method (zeta, w, lambda), or its option clip; other methods and finished samples are kept"}
	}
	return err
}

// claim makes sure that the folder belongs to this run.
func (r *restoring) claim() error {
	type file struct {
		Hash string          `json:"hash"`
		Run  json.RawMessage `json:"run"`
	}
	if err := os.MkdirAll(r.path, 0o777); err != nil {
		return err
	}
	name := filepath.Join(r.path, manifest.Name)
	text, err := job.ReadSmall(name)
	if errors.Is(err, fs.ErrNotExist) {
		own, err := json.Marshal(r.about)
		if err != nil {
			return err
		}
		return output.Write(name, func(w io.Writer) error {
			e := json.NewEncoder(w)
			e.SetIndent("", " ")
			return e.Encode(file{r.about.hash(), own})
		})
	}
	if err != nil {
		return err
	}
	var old file
	if err := json.Unmarshal(text, &old); err != nil {
		return refuse.Errorf(name, "%v", err)
	}
	if old.Hash == r.about.hash() {
		return nil
	}
	var a, b map[string]json.RawMessage
	if err := errors.Join(json.Unmarshal(old.Run, &a), json.Unmarshal(r.about.Canonical(), &b)); err != nil {
		return refuse.Errorf(name, "%v", err)
	}
	var fields []string
	for k := range b {
		var p, q bytes.Buffer
		if k == "model" || k == "guide_model" { // of the two, the file's has a path
			continue
		}
		_ = json.Compact(&p, a[k])
		_ = json.Compact(&q, b[k])
		if p.String() != q.String() {
			fields = append(fields, fmt.Sprintf("%s: %.40s there, %.40s here", k, p.String(), q.String()))
		}
	}
	slices.Sort(fields)
	if len(fields) == 0 {
		fields = []string{"another model"}
	}
	return &hint{&manifest.Different{Dir: r.path, Fields: fields}, "choose another --out, or remove " + r.path}
}

// writeMeasurement stores what was measured and what is true.
func (r *restoring) writeMeasurement() error {
	n := len(r.inputs)
	var y, truth []float64
	for _, in := range r.inputs {
		y = append(y, in.y.Y...)
		truth = append(truth, in.truth...)
	}
	arrays := []npz.Array{
		{Name: "y", DType: npz.F8, Shape: append([]int{n}, r.op.Out()...), Data: y},
		{Name: "sigma", DType: npz.F8, Shape: []int{}, Data: []float64{r.about.NoiseSigma}},
	}
	if len(truth) > 0 {
		arrays = append(arrays, npz.Array{Name: "truth", DType: npz.F8, Shape: append([]int{n}, r.info.Shape...), Data: truth})
	}
	name := filepath.Join(r.path, "measurement.npz")
	if err := npz.Write(name, arrays...); err != nil {
		return err
	}
	r.stored([]string{name})
	if !r.picture {
		return nil
	}
	for _, in := range r.inputs {
		if in.truth != nil {
			if err := r.savePicture(filepath.Join("truth", fmt.Sprintf("%04d.png", in.place)), in.truth, r.info.Shape); err != nil {
				return err
			}
		}
		if pix, shape := r.measured(in); pix != nil {
			if err := r.savePicture(filepath.Join("measured", fmt.Sprintf("%04d.png", in.place)), pix, shape); err != nil {
				return err
			}
		}
	}
	return nil
}

// state is the file of a batch that was stopped in the middle.
func (r *restoring) state() string { return filepath.Join(r.path, "state.run") }

// file holds what a method made of an input.
func (r *restoring) file(m *restorer, in *subject) string {
	return filepath.Join(r.path, m.slug, fmt.Sprintf("%04d.npz", in.place))
}

// restore draws the samples of one input by one method, those that are not there yet.
func (r *restoring) restore(ctx context.Context, m *restorer, in *subject, tell func(float64, string)) (*drawn, error) {
	d, err := r.load(m, in)
	if err != nil {
		return nil, err
	}
	var missing []uint64
	for _, s := range r.seeds {
		if !slices.Contains(d.seeds, s) {
			missing = append(missing, s)
		}
	}
	size := r.c.Int("batch")
	if size == 0 {
		size = max(1, r.plan.Batch()/m.group)
	}
	for from := 0; from < len(missing); from += size {
		seeds := missing[from:min(from+size, len(missing))]
		res, err := r.batch(ctx, m, in, seeds, func(st *samplers.State) {
			tell((float64(from)+st.Done*float64(len(seeds)))/float64(len(missing)), fmt.Sprintf("%s, step %d/%d", in.name, st.I, st.N))
		})
		if err != nil {
			return nil, err
		}
		d.add(res, seeds, m.group)
		d.sort(r.seeds, m.group)
		if err := r.save(m, in, d); err != nil {
			return nil, err
		}
	}
	if d.scores, err = r.scores(ctx, in, d.x); err != nil {
		return nil, err
	}
	if r.json {
		for k, s := range d.scores {
			r.emit(map[string]any{"event": "sample", "method": m.text, "input": in.name, "seed": d.seeds[k/m.group], "particle": k % m.group,
				"misfit": finite(s.Misfit), "psnr": finite(s.PSNR), "ssim": finite(s.SSIM), "features": finite(s.Features)})
		}
	}
	return d, nil
}

// batch runs some seeds.
func (r *restoring) batch(ctx context.Context, m *restorer, in *subject, seeds []uint64, tell func(*samplers.State)) (*samplers.Result, error) {
	s, err := m.make(in.y)
	if err != nil {
		return nil, err
	}
	p, err := r.problem(in, rowsOf(seeds, m.group))
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(fmt.Append(nil, r.about.hash(), m.text, in.place, seeds))
	stopped := func() bool {
		select {
		case <-r.stop:
			return true
		default:
			return false
		}
	}
	p.Observe = func(st *samplers.State) error {
		tell(st)
		if stopped() && st.Done < 1 {
			return job.ErrStopped
		}
		return nil
	}
	if stopped() {
		return nil, job.ErrStopped
	}
	var run samplers.Run
	var before samplers.Stats
	text, err := os.ReadFile(r.state())
	head := len(sum) + 3*8 // the batch, and what it has cost
	switch {
	case err == nil && len(text) >= head && [sha256.Size]byte(text) == sum:
		f := func(k int) float64 {
			return math.Float64frombits(binary.LittleEndian.Uint64(text[len(sum)+8*k:]))
		}
		before = samplers.Stats{NFE: f(0), VJPs: f(1), Wall: time.Duration(f(2))}
		run, err = samplers.Resume(ctx, s, p, bytes.NewReader(text[head:]))
	case err == nil || errors.Is(err, fs.ErrNotExist):
		run, err = s.Begin(ctx, p)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", m.text, err)
	}
	res, err := samplers.Drive(ctx, run, p)
	res.Stats.NFE, res.Stats.VJPs, res.Stats.Wall = res.Stats.NFE+before.NFE, res.Stats.VJPs+before.VJPs, res.Stats.Wall+before.Wall
	if save, ok := run.(samplers.Saver); ok && errors.Is(err, job.ErrStopped) {
		e := output.Write(r.state(), func(w io.Writer) error {
			if _, err := w.Write(sum[:]); err != nil {
				return err
			}
			if err := binary.Write(w, binary.LittleEndian, []float64{res.Stats.NFE, res.Stats.VJPs, float64(res.Stats.Wall)}); err != nil {
				return err
			}
			return save.Save(w)
		})
		return nil, errors.Join(err, e)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", m.text, err)
	}
	return res, nil
}

// rowsOf are the rows of seeds: particles of a seed one after another.
func rowsOf(seeds []uint64, group int) []models.Row {
	var rows []models.Row
	for _, s := range seeds {
		for k := range group {
			rows = append(rows, models.Row{Seed: s, Particle: k})
		}
	}
	return rows
}

// add puts a batch to what is there.
func (d *drawn) add(res *samplers.Result, seeds []uint64, group int) {
	a, b := float64(len(d.seeds)), float64(len(seeds))
	mean := func(x, y float64) float64 { return (a*x + b*y) / (a + b) }
	rows := float64(len(seeds) * group)
	d.cost.NFE, d.cost.VJPs = mean(d.cost.NFE, res.Stats.NFE), mean(d.cost.VJPs, res.Stats.VJPs)
	d.cost.Wall = time.Duration(mean(float64(d.cost.Wall), float64(res.Stats.Wall)/rows))
	d.seeds = append(d.seeds, seeds...)
	d.x = append(d.x, models.Data(res.X)...)
}

// sort puts the samples into the order of the seeds.
func (d *drawn) sort(order []uint64, group int) {
	w := len(d.x) / len(d.seeds)
	var seeds []uint64
	x := make([]float64, 0, len(d.x))
	for _, s := range order {
		if k := slices.Index(d.seeds, s); k >= 0 {
			seeds = append(seeds, s)
			x = append(x, d.x[k*w:(k+1)*w]...)
		}
	}
	d.seeds, d.x = seeds, x
}

// save stores the samples and, of pictures, the PNGs.
func (r *restoring) save(m *restorer, in *subject, d *drawn) error {
	name := r.file(m, in)
	if err := os.MkdirAll(filepath.Dir(name), 0o777); err != nil {
		return err
	}
	if r.picture {
		n := operators.Size(r.info.Shape)
		for k := range len(d.x) / n {
			file := fmt.Sprintf("%06d", d.seeds[k/m.group])
			if m.group > 1 {
				file += fmt.Sprintf("-%d", k%m.group)
			}
			dir := m.slug
			if len(r.inputs) > 1 {
				dir = filepath.Join(m.slug, fmt.Sprintf("%04d", in.place))
			}
			if err := r.savePicture(filepath.Join(dir, file+".png"), d.x[k*n:(k+1)*n], r.info.Shape); err != nil {
				return err
			}
		}
	}
	err := npz.Write(name,
		npz.Array{Name: "x", DType: npz.F8, Shape: append([]int{len(d.seeds) * m.group}, r.info.Shape...), Data: d.x},
		npz.Array{Name: "seeds", DType: npz.U8, Shape: []int{len(d.seeds)}, Data: d.seeds},
		npz.Array{Name: "cost", DType: npz.F8, Shape: []int{3}, Data: []float64{d.cost.NFE, d.cost.VJPs, d.cost.Wall.Seconds()}})
	if err == nil {
		r.stored([]string{name})
	}
	return err
}

// load reads what is there.
func (r *restoring) load(m *restorer, in *subject) (*drawn, error) {
	name := r.file(m, in)
	arrays, err := npz.ReadAll(name, "x", "seeds", "cost")
	if errors.Is(err, fs.ErrNotExist) {
		return &drawn{}, nil
	}
	if err != nil {
		return nil, err
	}
	seeds, ok := arrays["seeds"].Data.([]uint64)
	x, e1 := arrays["x"].Float64()
	cost, e2 := arrays["cost"].Float64()
	if !ok || e1 != nil || e2 != nil || len(cost) != 3 || len(x) != len(seeds)*m.group*operators.Size(r.info.Shape) {
		return nil, refuse.Errorf(name, "not what this run stores: remove it")
	}
	return &drawn{seeds: seeds, x: x, cost: samplers.Stats{NFE: cost[0], VJPs: cost[1], Wall: time.Duration(cost[2] * float64(time.Second))}}, nil
}

// estimate is a mean over inputs (or, of one input, over its samples) with its standard error. Absent numbers are NaN.
type estimate struct{ Mean, SE float64 }

// MarshalJSON writes null for what is not known.
func (n estimate) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]any{"mean": finite(n.Mean), "se": finite(n.SE)})
}

func meanOf(v []float64) estimate {
	n := float64(len(v))
	m, s := 0.0, 0.0
	for _, x := range v {
		m += x / n
	}
	for _, x := range v {
		s += (x - m) * (x - m)
	}
	if len(v) < 2 {
		return estimate{m, math.NaN()}
	}
	return estimate{m, math.Sqrt(s / (n - 1) / n)}
}

// row is one line of the results.
type resultRow struct {
	Method   string   `json:"method"`
	Gradient string   `json:"gradient"`
	NFE      float64  `json:"nfe"`
	VJPs     float64  `json:"vjps"`
	Seconds  float64  `json:"seconds_per_sample"`
	Samples  int      `json:"samples"`
	Misfit   estimate `json:"misfit"`
	PSNR     estimate `json:"psnr"`
	SSIM     estimate `json:"ssim"`
	Features estimate `json:"features"`
	Spread   estimate `json:"spread"` // mean over pixels of the standard deviation over samples
	// MeanError and SDError compare the samples' mean and standard deviation with the exact posterior's (root mean square
	// over elements), where it is known.
	MeanError estimate `json:"posterior_mean_error"`
	SDError   estimate `json:"posterior_sd_error"`
}

// report writes tables and pictures of everything.
func (r *restoring) report(ctx context.Context, all [][]*drawn) error {
	n := operators.Size(r.info.Shape)
	mix, exact := models.As[*analytic.Mixture](r.model.Denoiser)
	spreads := make([][][]float64, len(r.methods)) // method, input, pixel
	var rows []resultRow
	for i, m := range r.methods {
		row := resultRow{Method: m.text, Gradient: m.gradient()}
		var cols [7][]float64
		for k, in := range r.inputs {
			d := all[i][k]
			mean, sd := momentsOf(d.x, n)
			spreads[i] = append(spreads[i], sd)
			row.NFE += d.cost.NFE / float64(len(r.inputs))
			row.VJPs += d.cost.VJPs / float64(len(r.inputs))
			row.Seconds += d.cost.Wall.Seconds() / float64(len(r.inputs))
			row.Samples += len(d.scores)
			var own [4][]float64
			for _, s := range d.scores {
				for c, v := range [4]float64{s.Misfit, s.PSNR, s.SSIM, s.Features} {
					own[c] = append(own[c], v)
				}
			}
			for c := range own {
				if len(r.inputs) > 1 { // samples of one input are no independent inputs
					own[c] = []float64{meanOf(own[c]).Mean}
				}
				cols[c] = append(cols[c], own[c]...)
			}
			cols[4] = append(cols[4], meanOf(sd).Mean)
			cols[5], cols[6] = append(cols[5], math.NaN()), append(cols[6], math.NaN())
			if post, err := posterior(mix, exact, in); err == nil {
				pm, pv := post.Moments()
				var a, b float64
				for j := range pm {
					a += sq(mean[j]-pm[j]) / float64(n)
					b += sq(sd[j]-math.Sqrt(max(0, pv[j]))) / float64(n)
				}
				cols[5][k], cols[6][k] = math.Sqrt(a), math.Sqrt(b)
			}
		}
		for c, dst := range []*estimate{&row.Misfit, &row.PSNR, &row.SSIM, &row.Features, &row.Spread, &row.MeanError, &row.SDError} {
			*dst = meanOf(cols[c])
		}
		rows = append(rows, row)
	}
	if err := r.writeResults(rows, all); err != nil {
		return err
	}
	if r.picture {
		if err := r.sheets(all, spreads); err != nil {
			return err
		}
	}
	r.printTable(rows, exact)
	return ctx.Err()
}

func sq(x float64) float64 { return x * x }

func posterior(m *analytic.Mixture, ok bool, in *subject) (*analytic.Posterior, error) {
	if !ok {
		return nil, errors.New("no exact posterior")
	}
	return m.Given(in.y)
}

// momentsOf gives mean and standard deviation of every element over rows (n-1 in the denominator; 0 of one row).
func momentsOf(x []float64, n int) (mean, sd []float64) {
	rows := len(x) / n
	mean, sd = make([]float64, n), make([]float64, n)
	for i, v := range x {
		mean[i%n] += v / float64(rows)
	}
	if rows < 2 {
		return mean, sd
	}
	for i, v := range x {
		sd[i%n] += sq(v-mean[i%n]) / float64(rows-1)
	}
	for i, v := range sd {
		sd[i] = math.Sqrt(v)
	}
	return mean, sd
}

func (r *restoring) writeResults(rows []resultRow, all [][]*drawn) error {
	name := filepath.Join(r.path, "results.json")
	err := output.Write(name, func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", " ")
		return e.Encode(map[string]any{"hash": r.about.hash(), "run": r.about, "noise_norm": r.noiseNorm(), "methods": rows})
	})
	if err != nil {
		return err
	}
	table := filepath.Join(r.path, "results.csv")
	err = output.Write(table, func(w io.Writer) error {
		c := csv.NewWriter(w)
		text := func(v float64) string {
			if math.IsNaN(v) {
				return ""
			}
			return strconv.FormatFloat(v, 'g', -1, 64)
		}
		if err := c.Write([]string{"method", "gradient", "input", "seed", "particle", "misfit", "psnr", "ssim", "features", "nfe", "vjps", "seconds"}); err != nil {
			return err
		}
		for i, m := range r.methods {
			for k, in := range r.inputs {
				d := all[i][k]
				for j, s := range d.scores {
					if err := c.Write([]string{m.text, m.gradient(), in.name, strconv.FormatUint(d.seeds[j/m.group], 10), strconv.Itoa(j % m.group), text(s.Misfit), text(s.PSNR), text(s.SSIM), text(s.Features),
						text(d.cost.NFE), text(d.cost.VJPs), text(d.cost.Wall.Seconds())}); err != nil {
						return err
					}
				}
			}
		}
		c.Flush()
		return c.Error()
	})
	if err == nil {
		r.stored([]string{name, table})
	}
	return err
}

// noiseNorm is what |y - A(x)| is about for the true x.
func (r *restoring) noiseNorm() float64 {
	return r.about.NoiseSigma * math.Sqrt(float64(operators.Size(r.op.Out())))
}

// printTable writes the means to stdout.
func (r *restoring) printTable(rows []resultRow, exact bool) {
	if r.json {
		for _, row := range rows {
			r.emit(struct {
				Event string `json:"event"`
				resultRow
			}{"method", row})
		}
		return
	}
	text := func(n estimate, digits int) string {
		if math.IsNaN(n.Mean) {
			return "-"
		}
		form := "%.*f"
		if math.Abs(n.Mean) >= 1e5 { // it went astray
			form = "%.*g"
		}
		out := fmt.Sprintf(form, digits, n.Mean)
		if !math.IsNaN(n.SE) {
			out += " ±" + fmt.Sprintf(form, digits, n.SE)
		}
		return out
	}
	head := []string{"method", "gradient", "NFE", "VJPs", "s/sample", "|y-Ax|"}
	if exact {
		head = append(head, "spread", "mean error", "sd error")
	} else {
		head = append(head, "PSNR", "SSIM", "features", "spread")
	}
	lines := [][]string{head}
	for _, row := range rows {
		line := []string{row.Method, row.Gradient, fmt.Sprintf("%g", row.NFE), fmt.Sprintf("%g", row.VJPs), fmt.Sprintf("%.3g", row.Seconds), text(row.Misfit, 3)}
		if exact {
			line = append(line, text(row.Spread, 4), text(row.MeanError, 4), text(row.SDError, 4))
		} else {
			line = append(line, text(row.PSNR, 2), text(row.SSIM, 3), text(row.Features, 2), text(row.Spread, 3))
		}
		lines = append(lines, line)
	}
	width := make([]int, len(head))
	for _, l := range lines {
		for k, cell := range l {
			width[k] = max(width[k], len([]rune(cell)))
		}
	}
	fmt.Fprintf(r.out, "# %s, noise %g: |noise| is about %.3f; %d input(s), %d sample(s) each\n", r.op.Name(), r.about.NoiseSigma, r.noiseNorm(), len(r.inputs), len(r.seeds))
	for _, l := range lines {
		for k, cell := range l {
			if k > 0 {
				fmt.Fprint(r.out, "  ")
			}
			fmt.Fprintf(r.out, "%-*s", width[k], cell)
		}
		fmt.Fprintln(r.out)
	}
}

// dryRun prints what the methods would cost.
func (r *restoring) dryRun(context.Context) error {
	n := len(r.inputs) * len(r.seeds)
	for _, m := range r.methods {
		count := float64(n * m.group)
		if r.json {
			r.emit(map[string]any{"event": "estimate", "method": m.text, "gradient": m.gradient(), "samples": n * m.group, "steps": len(r.plan.Grid) - 1, "nfe_per_sample": finite(m.cost.NFE), "vjps_per_sample": finite(m.cost.VJPs),
				"evaluations": finite(count * m.cost.NFE), "vjps": finite(count * m.cost.VJPs)})
			continue
		}
		if m.group > 1 {
			fmt.Fprintf(r.out, "%-24s gradient %-6s %d samples, %d of a seed: what they cost the run tells\n", m.text, m.gradient(), n*m.group, m.group)
			continue
		}
		fmt.Fprintf(r.out, "%-24s gradient %-6s %d samples of %g NFE and %g VJPs: %g evaluations, %g VJPs\n", m.text, m.gradient(), n, m.cost.NFE, m.cost.VJPs, count*m.cost.NFE, count*m.cost.VJPs)
	}
	return nil
}
