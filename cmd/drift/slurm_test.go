package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// slurm starts a cluster of this machine alone, in a folder: munged, slurmctld and slurmd of Debian. It skips without them.
func slurm(t *testing.T, dir string) (env []string) {
	t.Helper()
	for _, tool := range []string{"munged", "slurmctld", "slurmd", "sbatch", "sinfo"} {
		if _, err := exec.LookPath(tool); err != nil {
			if _, err := os.Stat("/usr/sbin/" + tool); err != nil {
				t.Skipf("no %s: shards are not run by a true Slurm", tool)
			}
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("Slurm's daemons want root: shards are not run by a true Slurm")
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	host, _, _ = strings.Cut(host, ".")
	write := func(name, text string, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	port := func() int {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().(*net.TCPAddr).Port
	}
	for _, d := range []string{"state", "spool"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write("munge.key", strings.Repeat("a key of the tests only ", 64), 0o600)
	write("slurm.conf", strings.ReplaceAll(fmt.Sprintf(`ClusterName=t
SlurmctldHost=HOST(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=DIR/munge.sock
SlurmctldPort=%d
SlurmdPort=%d
StateSaveLocation=DIR/state
SlurmdSpoolDir=DIR/spool
SlurmctldPidFile=DIR/ctld.pid
SlurmdPidFile=DIR/d.pid
SlurmctldLogFile=DIR/ctld.log
SlurmdLogFile=DIR/d.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
ReturnToService=2
NodeName=HOST NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=p Nodes=HOST Default=YES MaxTime=INFINITE State=UP
`, port(), port()), "DIR", dir), 0o644)
	conf, err := os.ReadFile(filepath.Join(dir, "slurm.conf"))
	if err != nil {
		t.Fatal(err)
	}
	write("slurm.conf", strings.ReplaceAll(string(conf), "HOST", host), 0o644)
	env = append(os.Environ(), "SLURM_CONF="+filepath.Join(dir, "slurm.conf"), "PATH="+os.Getenv("PATH")+":/usr/sbin")
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, argv := range [][]string{
		{"munged", "--foreground", "--force", "--key-file", at("munge.key"), "--socket", at("munge.sock"), "--pid-file", at("munged.pid"), "--log-file", at("munged.log"), "--seed-file", at("munge.seed")},
		{"slurmctld", "-D", "-f", at("slurm.conf")},
		{"slurmd", "-D", "-f", at("slurm.conf"), "-N", host},
	} {
		path, err := exec.LookPath(argv[0])
		if err != nil {
			path = "/usr/sbin/" + argv[0]
		}
		cmd := &exec.Cmd{Path: path, Args: argv, Env: env}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // it was killed
		})
		if argv[0] == "munged" {
			waitFor(10*time.Second, func() bool { return exists(at("munge.sock")) })
		}
	}
	up := false
	waitFor(20*time.Second, func() bool {
		cmd := exec.Command("sinfo", "-h", "-o", "%t")
		cmd.Env = env
		out, err := cmd.Output()
		up = err == nil && strings.TrimSpace(string(out)) == "idle"
		return up
	})
	if !up {
		log, _ := os.ReadFile(at("ctld.log"))
		t.Fatalf("the cluster does not come up: %s", log)
	}
	return env
}

// TestSlurm runs shards by a true Slurm, as the printed lines say: some, then those that are missing.
func TestSlurm(t *testing.T) {
	if os.Getenv("DRIFT_SLOW") == "" {
		t.Skip("DRIFT_SLOW is not set")
	}
	env := slurm(t, t.TempDir())
	w := newTown(t, 5, 100)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	if err := os.Symlink(exe, filepath.Join(bin, "drift")); err != nil {
		t.Fatal(err)
	}
	env = append(env, "PATH="+bin+":"+os.Getenv("PATH")+":/usr/sbin", "NO_COLOR=1")
	run := func(argv ...string) (string, string, int) {
		cmd := exec.Command(argv[0], argv[1:]...)
		if argv[0] == "drift" {
			cmd.Path, cmd.Err = filepath.Join(bin, "drift"), nil
		}
		var out, errs bytes.Buffer
		cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = env, w.dir, &out, &errs
		_ = cmd.Run() // the code tells
		return out.String(), errs.String(), cmd.ProcessState.ExitCode()
	}
	line, talk, code := run(append(append([]string{"drift", "shard", "plan", "--dir", "shards"}, w.line...), "--out", "many.npz")...)
	if code != 0 || !strings.HasPrefix(line, "sbatch --array=0-4 ") {
		t.Fatalf("plan: %q, %s", line, talk)
	}
	submit := func(line string) {
		t.Helper()
		line = strings.Replace(strings.TrimSpace(line), "sbatch ", "timeout 60 sbatch --wait -o "+filepath.Join(w.dir, "%a.log")+" ", 1)
		if out, errs, code := run("sh", "-c", line); code != 0 {
			log, _ := filepath.Glob(filepath.Join(w.dir, "*.log"))
			text := ""
			for _, l := range log {
				b, _ := os.ReadFile(l)
				text += string(b)
			}
			t.Fatalf("%s: exit code %d: %s%s%s", line, code, out, errs, text)
		}
	}
	submit(strings.Replace(line, "--array=0-4", "--array=0,3", 1))
	line, talk, code = run("drift", "shard", "merge", "--dir", "shards")
	if code != 1 || !strings.HasPrefix(line, "sbatch --array=1-2,4 ") {
		t.Fatalf("merge of two: exit code %d, %q, %s", code, line, talk)
	}
	submit(line)
	if _, talk, code = run("drift", "shard", "merge", "--dir", "shards"); code != 0 {
		t.Fatalf("merge: exit code %d: %s", code, talk)
	}
	w.check(t)
}
