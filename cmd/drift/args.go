package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"drift/internal/spec"
)

// aliases are the names that other tools give to our flags (stable-diffusion.cpp, edm, diff-sampler, k-diffusion,
// diffusers). Underscores and capitals are evened out before.
var aliases = map[string]string{
	"m": "model", "network": "model", "net": "model", "diffusion-model": "model", "model-path": "model", "checkpoint": "model",
	"gnet": "guide-model",
	"s":    "seed", "n": "count", "b": "count", "batch-count": "count", "num-images": "count", "n-samples": "count",
	"batch-size": "batch", "max-batch": "batch", "max-batch-size": "batch",
	"o": "out", "output": "out", "outdir": "out", "t": "threads",
	"sampling-method": "sampler", "sample-method": "sampler", "solver": "sampler",
	"scheduler": "schedule", "disc": "schedule", "schedule-type": "schedule",
	"num-steps": "steps", "num-inference-steps": "steps", "sampling-steps": "steps",
	"cfg": "cfg-scale", "guidance": "cfg-scale", "guidance-scale": "cfg-scale", "guidance-rate": "cfg-scale",
	"p": "prompt", "type": "dtype", "precision": "dtype", "i": "init-image", "init-img": "init-image", "denoise": "strength",
	"labels": "classes", "class-labels": "classes", "label": "class", "q": "quiet", "disable-image-metadata": "no-metadata",
	"schedule-rho": "rho", "preview-interval": "preview",
}

// arrange puts the arguments into the order that urfave/cli reads: verbs, flags, the rest. Flags may stand anywhere
// after the verb, in any accepted spelling.
func arrange(root *cli.App, args []string, env func(string) string) ([]string, error) {
	var verbs, flags, rest []string
	cmds, known := root.Commands, root.Flags
	given := map[string]bool{}
	args = slices.Clone(args)
	leaf := (*cli.Command)(nil)
	for i := 0; i < len(args); i++ {
		arg := args[i]
		switch {
		case arg == "--":
			rest = append(rest, args[i+1:]...)
			i = len(args)
		case arg == "--version" && leaf == nil:
			args[i] = "version"
			i--
		case len(arg) > 1 && arg[0] == '-' && !number(arg):
			name, value, has := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-"), "=")
			f, canonical := find(known, leaf, name)
			if f == nil {
				return nil, unknownFlag(arg, known, leaf, verbs)
			}
			if _, isBool := f.(*cli.BoolFlag); isBool {
				if !has {
					value = "true"
				}
			} else if !has {
				if i+1 == len(args) {
					return nil, usagef("--%s needs a value", canonical)
				}
				i++
				value = args[i]
			}
			if given[canonical] && !repeatable(f) { // the last one wins
				flags = slices.DeleteFunc(flags, func(s string) bool { return strings.HasPrefix(s, "--"+canonical+"=") })
			}
			given[canonical] = true
			flags = append(flags, "--"+canonical+"="+value)
		default:
			if k := slices.IndexFunc(cmds, func(c *cli.Command) bool { return c.HasName(arg) }); k >= 0 && len(rest) == 0 {
				leaf = cmds[k]
				verbs = append(verbs, leaf.Name)
				cmds, known = leaf.Subcommands, leaf.Flags
				continue
			}
			if leaf != nil && slices.Contains(takesLine, leaf.Name) { // the rest is another line
				rest = append(rest, args[i:]...)
				i = len(args)
				continue
			}
			if len(cmds) > 0 {
				var names []string
				for _, c := range cmds {
					names = append(names, c.Name)
				}
				what := "verb"
				if leaf != nil {
					what = leaf.Name + " verb"
				}
				return nil, usagef("unknown %s %q%s", what, arg, spec.Suggest(arg, names))
			}
			rest = append(rest, arg)
		}
	}
	if leaf != nil {
		for _, v := range environment {
			if v.flag == "" || given[v.flag] || env(v.name) == "" {
				continue
			}
			if f, _ := find(leaf.Flags, leaf, v.flag); f != nil {
				flags = append(flags, "--"+v.flag+"="+env(v.name))
			}
		}
	}
	// flags given before the verb belong to it: find has checked them against the root, whose flags every verb has
	out := append(verbs, flags...)
	if len(rest) > 0 {
		out = append(append(out, "--"), rest...)
	}
	return out, nil
}

// takesLine are the verbs that take another line of drift.
var takesLine = []string{"serve", "plan"}

// number tells a negative number from a flag.
func number(s string) bool {
	return len(s) > 1 && (s[1] >= '0' && s[1] <= '9' || s[1] == '.')
}

func repeatable(f cli.Flag) bool {
	_, ok := f.(*cli.StringSliceFlag)
	return ok
}

// find looks a flag up by any accepted spelling.
func find(known []cli.Flag, leaf *cli.Command, name string) (cli.Flag, string) {
	even := strings.ReplaceAll(name, "_", "-")
	if len(even) > 1 {
		even = strings.ToLower(even)
	}
	for _, n := range []string{even, aliases[even]} {
		if n == "" {
			continue
		}
		for _, f := range known {
			if slices.Contains(f.Names(), n) {
				return f, f.Names()[0]
			}
		}
	}
	if even == "help" || even == "h" {
		return cli.HelpFlag, "help"
	}
	return nil, ""
}

func unknownFlag(arg string, known []cli.Flag, leaf *cli.Command, verbs []string) error {
	name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	var names []string
	for _, f := range known {
		names = append(names, f.Names()[0])
	}
	near := spec.Nearest(name, names, 3)
	for i := range near {
		near[i] = "--" + near[i]
	}
	text := ""
	if len(near) > 0 {
		text = "; did you mean " + strings.Join(near, ", ") + "?"
	}
	where := "drift"
	if len(verbs) > 0 {
		where = strings.Join(verbs, " ")
	}
	return usagef("%s has no flag %q%s", where, arg, text)
}
