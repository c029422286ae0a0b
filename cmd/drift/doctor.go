package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/machine"
	"drift/cmd/drift/internal/manifest"
	"drift/cmd/drift/internal/preview"
	"drift/internal/kernels"
	"drift/models/ort"
	"drift/samplers"
)

func doctorVerb(a *app) *cli.Command {
	return &cli.Command{
		Name: "doctor", Usage: "look at this machine: kernel tiers, threads, memory, disks, and the optional parts",
		Description: "One line for each thing. What is marked ! is wrong and makes the exit code 1; what is marked - is absent and only asked for by some verbs. The last line makes a picture with the embedded model.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "tier", Usage: "kernel tier that is to be used (`TIER`)"},
			&cli.StringFlag{Name: "cache", Usage: "folder of drift worker to look at (`DIR`), default ~/.cache/drift"},
		},
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			d := &doctor{app: a}
			return d.examine(c.Context, c)
		},
	}
}

// finding is a line of the doctor.
type finding struct {
	Event  string         `json:"event"` // "check"
	Name   string         `json:"name"`
	Status string         `json:"status"` // ok, absent, problem
	Text   string         `json:"text"`
	Hint   string         `json:"hint,omitempty"`
	Facts  map[string]any `json:"facts,omitempty"`
}

type doctor struct {
	*app
	problems []string
}

func (d *doctor) tell(f finding) {
	f.Event = "check"
	if f.Status == "" {
		f.Status = "ok"
	}
	if f.Status == "problem" {
		d.problems = append(d.problems, f.Name)
	}
	if d.json {
		d.emit(f)
		return
	}
	mark := map[string]string{"ok": " ", "absent": "-", "problem": "!"}[f.Status]
	fmt.Fprintf(d.out, "%s %-13s %s\n", mark, f.Name, oneLine(f.Text))
	if f.Hint != "" {
		fmt.Fprintf(d.out, "  %-13s %s\n", "", oneLine(f.Hint))
	}
}

// gb words a number of bytes.
func gb(n int64) string { return fmt.Sprintf("%.1f GB", float64(n)/1e9) }

func (d *doctor) examine(ctx context.Context, c *cli.Context) error {
	sys := os.DirFS("/")
	d.tell(finding{Name: "drift", Text: fmt.Sprintf("%s, %s, %s/%s", release, runtime.Version(), runtime.GOOS, runtime.GOARCH),
		Facts: map[string]any{"version": release, "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH}})
	d.tier(c, sys)
	d.threadsOf(sys)
	d.memoryOf(sys)
	d.disks(c)
	d.runtime()
	d.terminal()
	for _, t := range []struct{ name, command, use string }{
		{"chromium", "chromium", "opens the pages of bench in tests"},
		{"slurm", "sbatch", "runs drift shard on a cluster"},
	} {
		if path, err := exec.LookPath(t.command); err == nil {
			d.tell(finding{Name: t.name, Text: path, Facts: map[string]any{"path": path}})
		} else {
			d.tell(finding{Name: t.name, Status: "absent", Text: "not found; it " + t.use})
		}
	}
	d.picture(ctx, c)
	if d.json {
		d.emit(map[string]any{"event": "done", "problems": len(d.problems)})
	}
	if len(d.problems) > 0 {
		return fmt.Errorf("%d of these are wrong: %s", len(d.problems), strings.Join(d.problems, ", "))
	}
	return nil
}

// tier tells the kernel tiers: those of the machine, the chosen one, and whether it was forced.
func (d *doctor) tier(c *cli.Context, sys fs.FS) {
	var names []string
	for _, t := range kernels.Tiers() {
		names = append(names, t.String())
	}
	chosen, forced := kernels.Detect().String(), c.String("tier") != ""
	f := finding{Name: "kernels", Facts: map[string]any{"cpu": machine.CPU(sys), "tiers": names, "best": chosen, "forced": forced}}
	if forced {
		chosen = c.String("tier")
		t, err := kernels.ParseTier(chosen)
		switch {
		case err != nil:
			f.Status, f.Hint = "problem", trimPackage(err.Error())
		case !t.Supported():
			f.Status, f.Hint = "problem", "this machine and build do not run the forced tier "+chosen+": leave --tier and DRIFT_TIER out"
		}
	}
	f.Facts["chosen"] = chosen
	f.Text = fmt.Sprintf("tier %s of %s", chosen, strings.Join(names, ", "))
	if forced {
		f.Text += " (forced)"
	}
	if cpu := machine.CPU(sys); cpu != "" {
		f.Text += "; " + cpu
	}
	d.tell(f)
}

func (d *doctor) threadsOf(sys fs.FS) {
	n, cores, limit := runtime.GOMAXPROCS(0), runtime.NumCPU(), machine.CPUs(sys)
	f := finding{Name: "threads", Text: fmt.Sprintf("%d of %d processors", n, cores), Facts: map[string]any{"threads": n, "processors": cores, "limit": limit}}
	if limit > 0 {
		f.Text += fmt.Sprintf("; the control group allows %.3g", limit)
	}
	if n > cores {
		f.Hint = fmt.Sprintf("more threads than processors slow networks down: --threads %d", cores)
	}
	d.tell(f)
}

func (d *doctor) memoryOf(sys fs.FS) {
	m := machine.MemoryOf(sys)
	f := finding{Name: "memory", Text: "unknown", Facts: map[string]any{"total": m.Total, "available": m.Available, "limit": m.Limit}}
	if m.Total > 0 {
		f.Text = fmt.Sprintf("%s available of %s", gb(m.Available), gb(m.Total))
		free := m.Available
		if m.Limit > 0 {
			f.Text += fmt.Sprintf("; the control group allows %s, %s are used", gb(m.Limit), gb(m.Used))
			free = min(free, m.Limit-m.Used)
		}
		if free < 256<<20 {
			f.Status, f.Hint = "problem", "less than 0.27 GB are free: even small models may not fit"
		}
	}
	d.tell(f)
}

// disks tells about the folders that drift writes to or reads from.
func (d *doctor) disks(c *cli.Context) {
	cache, err := d.cacheDir(c)
	if err != nil {
		cache = ""
	}
	for _, p := range []struct{ name, dir string }{{"folder", "."}, {"temporary", os.TempDir()}, {"cache", cache}, {"hub", d.hub()}} {
		if p.dir == "" {
			d.tell(finding{Name: p.name, Status: "absent", Text: "there is no home folder"})
			continue
		}
		f := finding{Name: p.name, Text: p.dir, Facts: map[string]any{"path": p.dir}}
		if _, err := os.Stat(p.dir); errors.Is(err, fs.ErrNotExist) {
			f.Status, f.Text = "absent", p.dir+" is not there yet"
			if p.name == "hub" {
				f.Text = p.dir + " is not there: no model of diffusers was downloaded"
			}
			d.tell(f)
			continue
		}
		if free, ok := freeSpace(p.dir); ok {
			f.Facts["free"] = free
			f.Text += ", " + gb(free) + " free"
			if free < 100<<20 && p.name != "hub" {
				f.Status, f.Hint = "problem", "less than 0.1 GB are free"
			}
		}
		if p.name == "cache" || p.name == "hub" {
			n, size := sizeOf(p.dir)
			f.Facts["files"], f.Facts["bytes"] = n, size
			f.Text += fmt.Sprintf(", %d files of %s", n, gb(size))
		} else if err := writable(p.dir); err != nil {
			f.Status, f.Hint = "problem", err.Error()
		}
		d.tell(f)
	}
}

// sizeOf counts the files below a folder, the first million of them.
func sizeOf(dir string) (n int, size int64) {
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error { // what cannot be read is not counted
		if err != nil || !e.Type().IsRegular() {
			return nil
		}
		if info, err := e.Info(); err == nil {
			n, size = n+1, size+info.Size()
		}
		if n >= 1_000_000 {
			return fs.SkipAll
		}
		return nil
	})
	return n, size
}

// writable tries to make a file.
func writable(dir string) error {
	f, err := os.CreateTemp(dir, ".drift-doctor-*")
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

func (d *doctor) runtime() {
	lib, err := d.ort()
	if err != nil {
		f := finding{Name: "onnxruntime", Status: "absent", Text: "not found; only .onnx files need it", Hint: ort.HowTo()}
		if d.ortLib != "" { // asked for by name
			f.Status, f.Text, f.Hint = "problem", trimPackage(err.Error()), ""
		}
		d.tell(f)
		return
	}
	d.tell(finding{Name: "onnxruntime", Text: lib.Version() + " at " + lib.Path(), Facts: map[string]any{"version": lib.Version(), "path": lib.Path()}})
}

func (d *doctor) terminal() {
	f, isFile := d.err.(*os.File)
	tty := isFile && term.IsTerminal(int(f.Fd()))
	mode := preview.Detect(d.getenv)
	text := "no terminal"
	if tty {
		text = fmt.Sprintf("a terminal of %d columns", d.columns())
	}
	d.tell(finding{Name: "terminal", Text: text + "; --preview auto draws by " + mode, Facts: map[string]any{"terminal": tty, "preview": mode}})
}

// picture makes one picture with the embedded model in four steps.
func (d *doctor) picture(ctx context.Context, c *cli.Context) {
	began := time.Now()
	err := func() error {
		tier := c.String("tier")
		m, err := d.openModel(ctx, defaultModel(), "", tier)
		if err != nil {
			return err
		}
		defer m.Close()
		g, err := m.Defaults.Grid(4)
		if err != nil {
			return err
		}
		p := &job.Plan{Model: m.Denoiser, Shape: m.Info.Shape, Sampler: samplers.Euler{}, Grid: g, Sets: []manifest.Set{{Classes: []int{0}}}}
		_, err = p.Run(ctx, d.stop, job.Items(1, []uint64{0}, 0), 1, job.Hooks{})
		return err
	}()
	if err != nil {
		d.tell(finding{Name: "a picture", Status: "problem", Text: "the embedded model does not run: " + trimPackage(err.Error())})
		return
	}
	took := time.Since(began)
	d.tell(finding{Name: "a picture", Text: fmt.Sprintf("%s, 4 steps in %v with opening", defaultModel(), took.Round(time.Millisecond)), Facts: map[string]any{"seconds": took.Seconds()}})
}
