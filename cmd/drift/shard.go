package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/manifest"
	"drift/cmd/drift/internal/queue"
	"drift/cmd/drift/internal/shard"
)

func shardVerb(a *app) *cli.Command {
	dir := &cli.StringFlag{Name: "dir", Value: "shards", Usage: "folder of the plan and the results, which all machines see (`DIR`), default shards"}
	return &cli.Command{
		Name: "shard", Usage: "make a line in shards by a cluster's own scheduler, such as Slurm: plan, run, merge",
		Description: "plan writes down the shards of a line of sample, bench, search (boss, gits, compare) or metrics stats, and prints the sbatch line; run makes some of them, anywhere that sees the folder; merge puts the results together, or lists those that are missing with the line that makes them. The result is that of the line alone, bit for bit.",
		Subcommands: []*cli.Command{
			{
				Name: "plan", Usage: "write down the shards of a line", UsageText: "[flags] VERB [flags of the verb]",
				Flags:  []cli.Flag{dir},
				Action: a.planShards,
			},
			{
				Name: "run", Usage: "make shards of a plan",
				Flags:  []cli.Flag{dir, &cli.StringFlag{Name: "id", Usage: "shards to make, such as $SLURM_ARRAY_TASK_ID or 0-3,7 (`LIST`)"}},
				Action: a.runShards,
			},
			{
				Name: "merge", Usage: "put the results of a plan together",
				Flags:  []cli.Flag{dir},
				Action: a.mergeShards,
			},
		},
	}
}

// planShards writes a plan.
func (a *app) planShards(c *cli.Context) error {
	line := c.Args().Slice()
	if len(line) == 0 {
		return usagef("shard plan wants a line, such as: drift shard plan --dir DIR sample --count 50000 --out SET.npz")
	}
	dir := c.String("dir")
	arranged, err := arrange(a.cli(), line, a.getenv)
	if err != nil {
		return err
	}
	if err := a.sharded(arranged); err != nil {
		return err
	}
	_, verb := leafOf(a.cli(), arranged)
	if verb == "search s3" || verb == "search s4s" {
		return usagef("%s proposes from what it has evaluated, so its shards cannot be planned ahead: use --workers or drift serve", verb)
	}
	asJSON := a.json
	var p *shard.Planner
	a.hiring = func(k *crew, inner *cli.Context, open queue.Doer) error {
		p = &shard.Planner{Dir: dir, Plan: shard.Plan{Config: open.Config(), Version: release, Tier: tierOf(inner), Arch: runtime.GOARCH, Args: a.shardLine()}}
		k.source, k.close = p, func(bool) error { return nil }
		return nil
	}
	err = a.run(c.Context, append(slices.Clone(line), "--quiet"))
	a.json, a.quiet = asJSON, c.Bool("quiet")
	if p == nil && err == nil {
		return fmt.Errorf("%s has nothing to cut into shards", verb)
	}
	if !errors.Is(err, shard.ErrPlanned) {
		return err
	}
	ids := p.Plan.IDs()
	if a.json {
		a.emit(map[string]any{"event": "planned", "dir": dir, "shards": len(ids), "array": shard.FormatIDs(ids), "config": p.Plan.Config})
		return nil
	}
	if len(ids) == 0 {
		a.say("drift: nothing to do, the output is complete")
		return nil
	}
	fmt.Fprintln(a.out, sbatch(dir, ids))
	a.say("drift: %d shards are planned in %s; afterwards: drift shard merge --dir %s", len(ids), dir, quote(dir))
	if len(ids) > 1000 {
		a.say("drift: many clusters take arrays of 1000 tasks at most: a larger --shard makes fewer")
	}
	return nil
}

// sbatch is the line that has Slurm make shards.
func sbatch(dir string, ids []int) string {
	return fmt.Sprintf("sbatch --array=%s --wrap %s", shard.FormatIDs(ids), quote("drift shard run --dir "+quote(dir)+" --id $SLURM_ARRAY_TASK_ID"))
}

// openPlan reads a plan and opens its work, held to this machine.
func (a *app) openPlan(c *cli.Context, dir string) (*shard.Plan, queue.Doer, error) {
	p, err := shard.ReadPlan(dir)
	if err != nil {
		return nil, nil, err
	}
	d, err := a.openJob(c.Context, queue.Job{Version: p.Version, Arch: p.Arch, Tier: p.Tier, Args: p.Args})
	var m *queue.Mismatch
	if errors.As(err, &m) {
		return nil, nil, usagef("%s", m.Reason)
	}
	if err != nil {
		return nil, nil, err
	}
	if d.Config() != p.Config {
		d.Close()
		return nil, nil, usagef("%s: a model, a file or a setting is not what it was when this was planned", dir)
	}
	return p, d, nil
}

// runShards makes shards of a plan.
func (a *app) runShards(c *cli.Context) error {
	if err := noArgs(c); err != nil {
		return err
	}
	ids, err := manifest.ParseSeeds(c.String("id"))
	if err != nil {
		return usagef("--id %s: want a number or a list such as 0-3,7", c.String("id"))
	}
	dir := c.String("dir")
	p, d, err := a.openPlan(c, dir)
	if err != nil {
		return err
	}
	defer d.Close()
	ctx, cancel := contextOf(c.Context, a.stop)
	defer cancel()
	bar := a.start("drift shard run")
	defer func() { bar.Close(); a.bar = nil }()
	host, err := os.Hostname()
	if err != nil {
		host = "here"
	}
	for i, id := range ids {
		s, err := p.Find(int(min(id, 1<<40)))
		if err != nil {
			return usagef("--id %d: %w (%s)", id, err, shard.FormatIDs(p.IDs()))
		}
		if shard.Stored(dir, p.Config, s) {
			a.say("drift: shard %d is there already", id)
			continue
		}
		began := time.Now()
		r, err := d.Do(ctx, s, func(done float64) {
			bar.Set((float64(i)+done)/float64(len(ids)), fmt.Sprintf("shard %d", id))
		})
		if err != nil && ctx.Err() != nil {
			return fmt.Errorf("%w: shard %d is not made", job.ErrStopped, id)
		}
		if err != nil {
			return fmt.Errorf("shard %d: %w", id, err)
		}
		r.Worker, r.Seconds = fmt.Sprintf("%s/%d", host, os.Getpid()), time.Since(began).Seconds()
		first, err := shard.Store(dir, p, s, r)
		if err != nil {
			return err
		}
		if a.json {
			a.emit(map[string]any{"event": "shard", "shard": id, "first": first, "seconds": r.Seconds, "model_seconds": r.Model})
		}
		a.say("drift: shard %d in %.1f s", id, r.Seconds)
	}
	return nil
}

// mergeShards puts results together.
func (a *app) mergeShards(c *cli.Context) error {
	if err := noArgs(c); err != nil {
		return err
	}
	dir := c.String("dir")
	p, err := shard.ReadPlan(dir)
	if err != nil {
		return err
	}
	if err := a.sharded(p.Args); err != nil {
		return err
	}
	a.hiring = func(k *crew, _ *cli.Context, open queue.Doer) error {
		if open.Config() != p.Config {
			return usagef("%s: a model, a file or a setting is not what it was when this was planned", dir)
		}
		k.source, k.close = &shard.Folder{Dir: dir, Config: p.Config}, func(bool) error { return nil }
		return nil
	}
	line := slices.Clone(p.Args)
	_, verb := leafOf(a.cli(), line)
	n := len(strings.Fields(verb))
	for _, flag := range []string{"json", "quiet"} {
		if c.Bool(flag) {
			line = slices.Insert(line, n, "--"+flag)
		}
	}
	if a.ortLib != "" {
		line = slices.Insert(line, n, "--ort-lib="+a.ortLib)
	}
	if !slices.ContainsFunc(line, func(w string) bool { return strings.HasPrefix(w, "--tier=") }) {
		line = slices.Insert(line, n, "--tier="+p.Tier)
	}
	err = a.run(c.Context, line)
	var m *shard.Missing
	if errors.As(err, &m) {
		if a.json {
			a.emit(map[string]any{"event": "missing", "shards": m.IDs, "of": m.Of, "sbatch": sbatch(dir, m.IDs)})
		} else {
			fmt.Fprintln(a.out, sbatch(dir, m.IDs))
		}
		return &hint{m, "make them with: " + sbatch(dir, m.IDs) + "; then merge again"}
	}
	if err == nil {
		a.say("drift: %s is not needed any more", filepath.Clean(dir))
	}
	return err
}
