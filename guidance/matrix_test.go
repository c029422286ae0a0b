package guidance_test

import (
	"context"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"drift/guidance"
	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/schedules"
)

// raised samples class 1 and returns the mean of log p(class | x) and its standard error.
func raised(t *testing.T, d models.Denoiser, s samplers.Sampler, m *analytic.Mixture, rows, steps int) (mean, se float64, err error) {
	t.Helper()
	gau := m.Process().(schedules.Gaussian)
	g, err := schedules.NewGrid(gau, schedules.DefaultGrid(gau), steps, schedules.Ends{})
	if err != nil {
		t.Fatal(err)
	}
	p := &samplers.Problem{Model: d, Grid: g, Shape: []int{2}, Cond: &models.Cond{}}
	for k := range rows {
		p.Rows = append(p.Rows, models.Row{Seed: uint64(k)})
		p.Cond.Classes = append(p.Cond.Classes, 1)
	}
	res, err := samplers.Sample(context.Background(), s, p)
	if err != nil {
		return 0, 0, err
	}
	logs, sq := make([]float64, 2), 0.0
	for k := range rows {
		if err := m.LogPosterior(logs, models.Data(res.X)[2*k:2*k+2], schedules.Node{Alpha: 1}); err != nil {
			t.Fatal(err)
		}
		if math.IsNaN(logs[1]) {
			return 0, 0, fmt.Errorf("NaN in row %d", k)
		}
		mean, sq = mean+logs[1], sq+logs[1]*logs[1]
	}
	n := float64(rows)
	mean /= n
	return mean, math.Sqrt((sq/n - mean*mean) / n), nil
}

// tableHead begins the document of TestEveryPair, down to the first row.
const tableHead = `# Every guider with every sampler

Made by a test (TestEveryPair in package guidance, which fails when this file is not current; DRIFT_UPDATE=1 writes it).
Every pair was run on a labelled mixture with the guider's defaults: yes: it runs and every number is finite. The others are
refused by a message that names both:

- noise: the guider puts back a noise of its own (CFG++), and the sampler has no form for that
- memory: the guider remembers earlier steps (APG's momentum), and the sampler may go back behind them
- parts: the sampler needs a guider that tells its conditional from its unconditional part

Samplers that need more than a mixture has (a schedule file) are left out.

| |`

// current holds the document to what was found.
func current(t *testing.T, table string) {
	t.Helper()
	const path = "../docs/guiders.md"
	if os.Getenv("DRIFT_UPDATE") != "" {
		if err := os.WriteFile(path, []byte(table), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != table {
		t.Errorf("%s is not current: run this test with DRIFT_UPDATE=1", path)
	}
}

// TestEveryPair: every guider with every sampler either runs, all numbers finite, or is refused by a message that names
// the sampler and what it lacks. Samplers that cannot run on this target without guidance are listed, so that none is
// left out unseen.
func TestEveryPair(t *testing.T) {
	alone := map[string]bool{}
	pairs, refused := 0, map[string]int{}
	var table strings.Builder
	table.WriteString(tableHead)
	for _, i := range guidance.List() {
		table.WriteString(" " + i.Name + " |")
	}
	table.WriteString("\n|---" + strings.Repeat("|---", len(guidance.List())) + "|\n")
	for _, row := range samplers.List() {
		s, err := samplers.Parse(row.Name)
		if err != nil {
			alone[row.Name] = true
			continue
		}
		base := layers(t)
		if s.Needs().Parts { // runs on a guided model only
			base = guide(t, base, "cfg")
		}
		m := target(t)
		if _, _, err := raised(t, base, s, m, 4, 6); err != nil {
			t.Logf("%s alone: %v", row.Name, err)
			alone[row.Name] = true
			continue
		}
		var cells []string
		for _, i := range guidance.List() {
			pairs++
			d := guide(t, layers(t), i.Name)
			_, _, err := raised(t, d, s, m, 4, 6)
			if err == nil {
				cells = append(cells, "yes")
				continue
			}
			_, memory := models.As[models.Selector](d)
			text := err.Error()
			switch {
			case i.Renoise && strings.Contains(text, "no form for a separate noise"):
				cells = append(cells, "noise")
			case memory && strings.Contains(text, "the model remembers earlier answers"):
				cells = append(cells, "memory")
			case s.Needs().Parts && strings.Contains(text, "needs a guided model that tells its conditional from its unconditional part"):
				cells = append(cells, "parts")
			default:
				cells = append(cells, "no")
				t.Errorf("%s with %s: %v", i.Name, row.Name, err)
			}
			if !strings.HasPrefix(text, "samplers: ") { // and the label follows
				t.Errorf("%s with %s is refused without a name: %v", i.Name, row.Name, err)
			}
			refused[i.Name]++
		}
		table.WriteString("| " + row.Name + " | " + strings.Join(cells, " | ") + " |\n")
	}
	current(t, table.String())
	t.Logf("%d pairs, refused %v; not on this target: %v", pairs, refused, alone)
	if pairs < 300 {
		t.Errorf("%d pairs only", pairs)
	}
}

// TestRaises: on a labelled mixture, guiders that claim it raise the mean of log p(class | x) by more than 4 standard
// errors over 4096 samples, with solvers of every kind and the guider's own defaults. (At 10 steps some do not: CFG++ is
// weaker than the conditional model where steps are few, and extrapolating solvers overshoot at scale 10.)
func TestRaises(t *testing.T) {
	const across = `{"type":"mixture","weights":[0.5,0.5],"means":[[2,-0.6],[2,0.6]],"vars":[[0.25,0.25],[0.25,0.25]],"labels":[0,1],"process":{"type":"vp-linear"},"prediction":"eps"}`
	m, err := analytic.Parse([]byte(across))
	if err != nil {
		t.Fatal(err)
	}
	wide := m.Target()
	wide.Vars = [][]float64{{0.6, 0.6}, {0.6, 0.6}}
	worse, err := analytic.New(wide)
	if err != nil {
		t.Fatal(err)
	}
	const rows, steps = 4096, 24
	for _, name := range []string{"euler", "heun", "dpmpp-2m", "unipc", "ghvb", "dpmpp-2m-sde"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := samplers.Parse(name)
			if err != nil {
				t.Fatal(err)
			}
			plain, se, err := raised(t, models.Metered(m), s, m, rows, steps)
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range guidance.List() {
				if !i.Class {
					continue
				}
				g, err := guidance.Parse(i.Name)
				if err != nil {
					t.Fatal(err)
				}
				if n, ok := g.(guidance.Needer); ok {
					g = n.With(models.Metered(worse))
				}
				have, e, err := raised(t, g.Guide(models.Metered(m)), s, m, rows, steps)
				if err != nil {
					if !(i.Renoise && name != "euler" && strings.Contains(err.Error(), name+" has no form for a separate noise")) {
						t.Errorf("%s: %v", i.Name, err)
					}
					continue
				}
				z := (have - plain) / math.Hypot(se, e)
				t.Logf("%-10s mean log p(class | x) %.4f -> %.4f, %.1f standard errors", i.Name, plain, have, z)
				if !(z > 4) {
					t.Errorf("%s: mean log p(class | x) %.4f against %.4f, %.1f standard errors", i.Name, have, plain, z)
				}
			}
		})
	}
}
