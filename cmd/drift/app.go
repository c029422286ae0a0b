package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"drift/cmd/drift/internal/progress"
	"drift/cmd/drift/internal/queue"
)

// app is the world that a verb sees.
type app struct {
	in     io.Reader
	out    io.Writer // data
	err    io.Writer // talk
	getenv func(string) string
	stop   chan struct{} // closed on the first interrupt
	args   []string      // as the user wrote them

	ortLib string // where ONNX Runtime's library is, "" = beside the program or in the system

	json  bool // stdout has one JSON object per line
	quiet bool
	bar   *progress.Meter // running, or nil
	lost  error           // the first event that could not be written

	line       []string                                          // args as urfave/cli reads them
	share      int                                               // threads of one of several workers; 0 = all
	crewBar    bool                                              // the bar counts shards
	afterStore func()                                            // called by a worker between storing a result and saying so; for tests
	hiring     func(*crew, *cli.Context, queue.Doer) (err error) // who makes shards; nil: the workers of --workers
}

// main runs the command line and returns the exit code. Nothing that goes wrong in it reaches the user as a panic.
func (a *app) main(ctx context.Context, args []string) (code int) {
	a.args = args
	data := bufio.NewWriter(a.out)
	raw := a.out
	a.out = data
	defer func() {
		if p := recover(); p != nil {
			a.report(fmt.Errorf("internal error: %v (please report this, with the command line)", p), data)
			if a.getenv("DRIFT_DEBUG") != "" {
				fmt.Fprintf(a.err, "%s\n", debug.Stack())
			}
			code = exitFailed
		}
	}()
	err := a.run(ctx, args)
	if err == nil && data.Flush() == nil {
		err = a.lost
	}
	if err != nil {
		a.report(err, data)
	}
	if e := data.Flush(); e != nil && err == nil {
		err = fmt.Errorf("writing to standard output: %w", e)
		a.out = io.Discard
		a.report(err, data)
	}
	a.out = raw
	return exitCode(err)
}

// run arranges the arguments and hands them to urfave/cli.
func (a *app) run(ctx context.Context, args []string) error {
	root := a.cli()
	for _, s := range args {
		if s == "--" {
			break
		}
		if s == "--json" { // errors about the command line itself are events too
			a.json = true
		}
	}
	arranged, err := arrange(root, args, a.getenv)
	if err != nil {
		return &hint{err, "drift --help and drift VERB --help list everything"}
	}
	a.line = arranged
	err = root.RunContext(ctx, append([]string{"drift"}, arranged...))
	var u *usage
	if err != nil && !errors.As(err, &u) && flagError(err) {
		return usagef("%s", trimFlagError(err.Error()))
	}
	return err
}

// flagError recognises the errors of the flag package, which have no type.
func flagError(err error) bool {
	s := err.Error()
	return strings.HasPrefix(s, "invalid value ") || strings.HasPrefix(s, "invalid boolean value ") || strings.HasPrefix(s, "flag provided but not defined")
}

func trimFlagError(s string) string {
	s, _, _ = strings.Cut(s, ": strconv.")
	s = strings.ReplaceAll(s, "flag -", "--")
	return strings.TrimSuffix(s, ": parse error")
}

// report says what went wrong: one line, and perhaps a hint.
func (a *app) report(err error, data *bufio.Writer) {
	a.bar.Close()
	text, tip := trimPackage(oneLine(err.Error())), ""
	var h *hint
	if errors.As(err, &h) {
		tip = h.hint
	}
	if a.json {
		a.out = data
		a.emit(map[string]any{"event": "error", "code": exitCode(err), "message": text, "hint": tip})
	}
	if exitCode(err) == exitInterrupted {
		fmt.Fprintf(a.err, "drift: %s\n", text)
	} else {
		fmt.Fprintf(a.err, "drift: error: %s\n", text)
	}
	if tip != "" {
		fmt.Fprintf(a.err, "drift: hint: %s\n", tip)
	}
}

// oneLine keeps a message on its line and away from the terminal's controls.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n':
			return ';'
		case r < ' ' || r == 0x7f:
			return '?'
		}
		return r
	}, strings.TrimSpace(s))
}

// emit writes an event: one JSON object on a line of stdout.
func (a *app) emit(event any) {
	e := json.NewEncoder(a.out)
	e.SetEscapeHTML(false)
	if err := e.Encode(event); err != nil && a.lost == nil {
		a.lost = fmt.Errorf("an event cannot be written: %w", err) // main reports it
	}
	if b, ok := a.out.(*bufio.Writer); ok {
		_ = b.Flush() // sticky: main reports it
	}
}

// say writes a line of talk unless quiet.
func (a *app) say(format string, args ...any) {
	if a.quiet {
		return
	}
	line := fmt.Sprintf(format, args...)
	if a.bar != nil {
		a.bar.Print(line)
		return
	}
	fmt.Fprintln(a.err, line)
}

// warn writes a warning, quiet or not.
func (a *app) warn(format string, args ...any) {
	line := "drift: warning: " + fmt.Sprintf(format, args...)
	if a.json {
		a.emit(map[string]any{"event": "warning", "message": line[len("drift: warning: "):]})
	}
	if a.bar != nil {
		a.bar.Print(line)
		return
	}
	fmt.Fprintln(a.err, line)
}

// start shows the progress of a job on stderr; Close of what it returns ends that.
func (a *app) start(title string) *progress.Meter {
	if a.quiet {
		return nil
	}
	s := progress.Style{Every: 5 * time.Second}
	if v, err := strconv.ParseFloat(a.getenv("DRIFT_PROGRESS_EVERY"), 64); err == nil && v > 0 && v < 1e6 {
		s.Every = time.Duration(v * float64(time.Second))
	}
	if f, ok := a.err.(*os.File); ok && term.IsTerminal(int(f.Fd())) && a.getenv("TERM") != "dumb" && a.getenv("NO_COLOR") == "" {
		s.Terminal = true
		s.Width = a.columns()
	}
	a.bar = progress.New(a.err, title, s)
	return a.bar
}

// columns is the width of the terminal, 0 when unknown.
func (a *app) columns() int {
	if n, err := strconv.Atoi(a.getenv("COLUMNS")); err == nil && n > 0 {
		return n
	}
	if f, ok := a.err.(*os.File); ok {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil {
			return w
		}
	}
	return 0
}

// verbs makes the table of verbs; each stands in a file of its own.
func (a *app) verbs() []*cli.Command {
	return []*cli.Command{
		sampleVerb(a),
		steerVerb(a),
		tuneVerb(a),
		inspectVerb(a),
		distillVerb(a),
		benchVerb(a),
		checkVerb(a),
		contactVerb(a),
		invertVerb(a),
		likelihoodVerb(a),
		metricsVerb(a),
		searchVerb(a),
		restoreVerb(a),
		studioVerb(a),
		modelVerb(a),
		listVerb(a),
		serveVerb(a),
		workerVerb(a),
		shardVerb(a),
		doctorVerb(a),
		metadataVerb(a),
		versionVerb(a),
		completionVerb(a),
	}
}

// common are the flags that every verb has.
func common() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "json", Usage: "stdout carries one JSON object per line"},
		&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "no talk and no progress"},
		&cli.StringFlag{Name: "ort-lib", Usage: "library of ONNX Runtime, for .onnx files (`PATH` of it or its folder); default: beside drift, then the system's"},
		&cli.IntFlag{Name: "threads", Aliases: []string{"t"}, Usage: "CPU threads to use (`T`); never changes a result"},
	}
}

// cli makes the command table.
func (a *app) cli() *cli.App {
	cli.FlagStringer = flagLine
	root := &cli.App{
		Name: "drift", Usage: "draw samples from diffusion and flow models",
		HideVersion: true, HideHelpCommand: true,
		Writer: a.out, ErrWriter: a.err,
		Flags:                     common(),
		DisableSliceFlagSeparator: true, // guiders have commas in them
		ExitErrHandler:            func(*cli.Context, error) {},
		OnUsageError:              func(_ *cli.Context, err error, _ bool) error { return err },
		CustomAppHelpTemplate:     appHelp + exitCodes + "\n" + environmentHelp(),
		Commands:                  a.verbs(),
		Action: func(c *cli.Context) error {
			return cli.ShowAppHelp(c)
		},
	}
	finish(a, root.Commands)
	return root
}

var placeholder = regexp.MustCompile("`([^`]*)`")

// flagLine describes a flag in a verb's help. The word in backquotes in its usage is the name of its value.
func flagLine(f cli.Flag) string {
	d, ok := f.(cli.DocGenerationFlag)
	if !ok {
		return f.String()
	}
	name, usage := "--"+f.Names()[0], d.GetUsage()
	if m := placeholder.FindStringSubmatch(usage); m != nil {
		name += " " + m[1]
		usage = strings.Replace(usage, " (`"+m[1]+"`)", "", 1)
		usage = placeholder.ReplaceAllString(usage, "$1")
	}
	for _, alias := range f.Names()[1:] {
		name += ", -" + alias
	}
	return fmt.Sprintf("%-28s %s", name, usage)
}

// finish gives every verb the common flags, the exit codes in its help, and our ways with errors.
func finish(a *app, cmds []*cli.Command) {
	for _, c := range cmds {
		c.Flags = append(c.Flags, common()...)
		c.HideHelpCommand = true
		c.CustomHelpTemplate = verbHelp + exitCodes
		c.OnUsageError = func(_ *cli.Context, err error, _ bool) error { return err }
		c.UseShortOptionHandling = false
		if act := c.Action; act != nil {
			c.Action = func(ctx *cli.Context) error {
				a.json, a.quiet, a.ortLib = ctx.Bool("json"), ctx.Bool("quiet"), ctx.String("ort-lib")
				switch n := ctx.Int("threads"); {
				case ctx.IsSet("threads") && (n < 1 || n > 1<<16):
					return usagef("--threads %d: want 1 to %d", n, 1<<16)
				case n > 0:
					runtime.GOMAXPROCS(n)
				}
				if n := ctx.Int("workers"); n > 0 {
					a.share = max(1, runtime.GOMAXPROCS(0)/n)
				}
				return act(ctx)
			}
		}
		if len(c.Subcommands) > 0 {
			verb := c
			c.Action = func(*cli.Context) error {
				cli.HelpPrinter(a.out, verb.CustomHelpTemplate, verb)
				return nil
			}
			finish(a, c.Subcommands)
		}
	}
}

const appHelp = `NAME:
   {{.Name}} - {{.Usage}}

USAGE:
   drift VERB [flags] [arguments]

VERBS:
{{range .Commands}}   {{printf "%-12s" .Name}} {{.Usage}}
{{end}}
   drift VERB --help tells more. Flags may stand anywhere after the verb; names of other tools' flags
   (-m, -s, -o, -n, -t, --sampling-method, --scheduler, --cfg, ...) are understood.
   Equal settings give equal bits, whatever --batch and --threads are, on one kernel tier.

`

const verbHelp = `NAME:
   {{.HelpName}} - {{.Usage}}

USAGE:
   {{.HelpName}} {{if .UsageText}}{{.UsageText}}{{else}}[flags]{{end}}
{{if .Description}}
DESCRIPTION:
   {{wrap .Description 3}}
{{end}}{{if .Subcommands}}
VERBS:
{{range .Subcommands}}   {{printf "%-12s" .Name}} {{.Usage}}
{{end}}{{end}}{{if .VisibleFlags}}
FLAGS:
{{range .VisibleFlags}}   {{.}}
{{end}}{{end}}
`
