package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"drift/cmd/drift/internal/job"
	"drift/guidance"
	"drift/internal/refuse"
	"drift/internal/rng"
	"drift/models"
	"drift/schedules"
)

// goodGradient is how far a gradient may be off finite differences: those of float64 energies see about 1e-9 of the curvature,
// networks compute in float32 and have kinks.
const goodGradient = 1e-3

func checkVerb(a *app) *cli.Command {
	return &cli.Command{
		Name: "check", Usage: "hold the gradient of a scripted energy to finite differences", UsageText: "FILE.star [flags]",
		Description: "Runs energy(x0, ctx) on made-up pictures and compares its gradient with central differences; a script that fails is named with file:line:column. Exit code 1 where they differ.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "expr", Usage: "an expression in place of a file (`E`)"},
			&cli.StringFlag{Name: "shape", Usage: "channels, height and width of a picture (`C,H,W`)", Value: "1,28,28"},
			&cli.IntFlag{Name: "count", Usage: "pictures (`N`)", Value: 4},
			&cli.Float64Flag{Name: "sigma", Usage: "ctx.sigma, the noise level sigma/alpha (`S`)", Value: 1},
			&cli.IntFlag{Name: "class", Usage: "ctx.class (`K`)", Value: models.NoClass},
			&cli.Uint64Flag{Name: "seed", Usage: "of the pictures (`N`)"},
		},
		Action: func(c *cli.Context) error { return a.check(c.Context, c) },
	}
}

func (a *app) check(ctx context.Context, c *cli.Context) error {
	var e guidance.Energy
	name := "the expression"
	switch {
	case c.IsSet("expr") && c.NArg() > 0:
		return usagef("check takes a file or --expr, not both")
	case c.IsSet("expr"):
		var err error
		if e, err = guidance.Expr(c.String("expr")); err != nil {
			return badUse("expr", err)
		}
	default:
		file, err := oneArg(c, "a .star file")
		if err != nil {
			return err
		}
		src, err := job.ReadSmall(file)
		if err != nil {
			return err
		}
		name = filepath.Base(file)
		if e, err = guidance.Script(file, string(src)); err != nil {
			at, what, _ := strings.Cut(err.Error(), ": ") // file:line:column
			return refuse.Errorf(at, "%s", what)
		}
	}
	var shape []int
	for part := range strings.SplitSeq(c.String("shape"), ",") {
		n, err := strconv.Atoi(strings.TrimSpace(part))
		if err != nil || n < 1 || n > 1<<14 {
			return usagef("--shape %s: want positive lengths, such as 1,28,28", c.String("shape"))
		}
		shape = append(shape, n)
	}
	rows, sigma := c.Int("count"), c.Float64("sigma")
	if rows < 1 || rows > 1024 || !(sigma >= 0) || math.IsInf(sigma, 1) {
		return usagef("--count %d --sigma %g: want 1 to 1024 pictures and a level of 0 or more", rows, sigma)
	}
	alpha := 1 / math.Sqrt(1+sigma*sigma)
	x := models.New(append([]int{rows}, shape...)...)
	q := &models.Query{X: x, Cond: &models.Cond{}, Step: models.Step{I: 5, N: 10, Progress: 0.5}}
	d := models.Data(x)
	w := len(d) / rows
	for k := range rows {
		rng.Normal(d[k*w:(k+1)*w], rng.Key{Seed: c.Uint64("seed"), Image: uint64(k), Purpose: rng.PurposeProbe})
		q.At = append(q.At, schedules.Node{T: 0.5, Alpha: alpha, Sigma: alpha * sigma})
		q.Rows = append(q.Rows, models.Row{Seed: c.Uint64("seed") + uint64(k)})
		q.Cond.Classes = append(q.Cond.Classes, c.Int("class"))
	}
	for j := range d {
		d[j] = math.Tanh(0.7 * d[j]) // inside [-1, 1], without ties
	}
	energies, worst, err := guidance.CheckEnergy(ctx, e, q, x)
	if err != nil {
		return err
	}
	good := worst <= goodGradient
	if a.json {
		a.emit(map[string]any{"event": "check", "name": name, "shape": shape, "energies": energies, "worst": finite(worst), "good": good})
	} else {
		fmt.Fprintf(a.out, "%s on %d pictures of %s at sigma %g: energy %.6g, gradient off finite differences by at most %.2g\n", name, rows, c.String("shape"), sigma, energies[0], worst)
	}
	for k, v := range energies {
		if v-v != 0 {
			return fmt.Errorf("%s: the energy of picture %d is %g", name, k, v)
		}
	}
	if !good {
		return &hint{errors.New(name + ": the gradient is not that of finite differences"), "abs, max, min, clip and relu have kinks: look for a value that lies on one; else report it"}
	}
	return nil
}
