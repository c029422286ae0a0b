package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"drift/internal/spec"
)

func completionVerb(a *app) *cli.Command {
	shells := []string{"bash", "zsh", "fish"}
	return &cli.Command{
		Name: "completion", Usage: "print a completion script for a shell", UsageText: strings.Join(shells, "|"),
		Description: "For bash: source <(drift completion bash). For zsh: the same, after compinit. For fish: drift completion fish | source.",
		Action: func(c *cli.Context) error {
			shell, err := oneArg(c, "a shell: "+strings.Join(shells, ", "))
			if err != nil {
				return err
			}
			words, values := a.words()
			switch shell {
			case "bash", "zsh":
				if shell == "zsh" {
					fmt.Fprintln(a.out, "autoload -U +X bashcompinit && bashcompinit")
				}
				a.bash(words, values)
			case "fish":
				a.fish(words, values)
			default:
				return usagef("completion: unknown shell %q%s", shell, spec.Suggest(shell, shells))
			}
			return nil
		},
	}
}

// words lists what can follow each verb ("" for none yet, "model info" for a verb of a verb), and what can follow a flag.
func (a *app) words() (words, values map[string][]string) {
	words, values = map[string][]string{}, map[string][]string{}
	var walk func(path string, cmds []*cli.Command)
	walk = func(path string, cmds []*cli.Command) {
		for _, c := range cmds {
			words[path] = append(words[path], c.Name)
			full := strings.TrimSpace(path + " " + c.Name)
			words[full] = []string{}
			for _, f := range c.Flags {
				words[full] = append(words[full], "--"+f.Names()[0])
			}
			walk(full, c.Subcommands)
		}
	}
	walk("", a.cli().Commands)
	for _, l := range lists {
		words["list"] = append(words["list"], l.name)
		for _, e := range l.entries(a) {
			flag := strings.TrimSuffix(l.name, "s")
			values[flag] = append(values[flag], e.Name)
		}
	}
	values["dtype"] = []string{"f32", "bf16", "f64"}
	values["final"] = []string{"zero", "min"}
	values["rounding"] = []string{"floor", "diffusers"}
	return words, values
}

func sorted(m map[string][]string) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (a *app) bash(words, values map[string][]string) {
	fmt.Fprint(a.out, "_drift() {\n  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} path= w\n  COMPREPLY=()\n  case $prev in\n")
	for _, flag := range sorted(values) {
		fmt.Fprintf(a.out, "    --%s) COMPREPLY=($(compgen -W '%s' -- \"$cur\")); return;;\n", flag, strings.Join(values[flag], " "))
	}
	fmt.Fprint(a.out, "  esac\n  for w in \"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do\n    case \"$path $w\" in\n")
	for _, path := range sorted(words) {
		if path != "" {
			p := path
			if !strings.Contains(p, " ") {
				p = " " + p
			}
			fmt.Fprintf(a.out, "      '%s') path='%s';;\n", p, path)
		}
	}
	fmt.Fprint(a.out, "    esac\n  done\n  case $path in\n")
	for _, path := range sorted(words) {
		fmt.Fprintf(a.out, "    '%s') COMPREPLY=($(compgen -W '%s' -- \"$cur\"));;\n", path, strings.Join(words[path], " "))
	}
	fmt.Fprint(a.out, "  esac\n  [[ ${#COMPREPLY[@]} -gt 0 ]] || COMPREPLY=($(compgen -f -- \"$cur\"))\n}\ncomplete -o filenames -F _drift drift\n")
}

func (a *app) fish(words, values map[string][]string) {
	for _, path := range sorted(words) {
		verbs := strings.Fields(path)
		condition := "__fish_use_subcommand"
		if len(verbs) > 0 {
			condition = "__fish_seen_subcommand_from " + verbs[len(verbs)-1]
		}
		for _, w := range words[path] {
			if flag, ok := strings.CutPrefix(w, "--"); ok {
				fmt.Fprintf(a.out, "complete -c drift -n '%s' -l %s", condition, flag)
				if v := values[flag]; len(v) > 0 {
					fmt.Fprintf(a.out, " -x -a '%s'", strings.Join(v, " "))
				}
				fmt.Fprintln(a.out)
			} else {
				fmt.Fprintf(a.out, "complete -c drift -n '%s' -a %s\n", condition, w)
			}
		}
	}
}
