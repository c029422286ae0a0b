package machine

import (
	"os"
	"testing"
	"testing/fstest"
)

func system(files map[string]string) fstest.MapFS {
	out := fstest.MapFS{}
	for name, text := range files {
		out[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return out
}

const meminfo = "MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:    8000000 kB\n"

func TestMachine(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		mem   Memory
		cpus  float64
	}{
		"nothing": {nil, Memory{}, 0},
		"plain":   {map[string]string{"proc/meminfo": meminfo}, Memory{Total: 16_384_000_000, Available: 8_192_000_000}, 0},
		"a container, version 2": {map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/a/b\n",
			"sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
			"sys/fs/cgroup/a/memory.max": "1000000\n", "sys/fs/cgroup/a/memory.current": "400\n", "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
		}, Memory{16_384_000_000, 8_192_000_000, 1_000_000, 400}, 1.5},
		"version 1": {map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "9:name=systemd:/\n4:memory:/x\n2:cpu,cpuacct:/x\n",
			"sys/fs/cgroup/memory/x/memory.limit_in_bytes": "2000000\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
			"sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "50000\n", "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
			"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
		}, Memory{16_384_000_000, 8_192_000_000, 2_000_000, 0}, 0.5},
		"nonsense": {map[string]string{
			"proc/meminfo": "MemTotal: many kB\nMemAvailable: -3 kB\n:\n", "proc/self/cgroup": "0::/../../..\nx\n::\n4:memory:\n",
			"sys/fs/cgroup/memory.max": "-5", "sys/fs/cgroup/cpu.max": "1 0",
		}, Memory{}, 0},
	} {
		sys := system(c.files)
		if m := MemoryOf(sys); m != c.mem {
			t.Errorf("%s: memory %+v, want %+v", name, m, c.mem)
		}
		if n := CPUs(sys); n != c.cpus {
			t.Errorf("%s: %g processors, want %g", name, n, c.cpus)
		}
	}
	if got := CPU(system(map[string]string{"proc/cpuinfo": "processor\t: 0\nmodel name\t: A Chip: fast\n"})); got != "A Chip: fast" {
		t.Errorf("%q", got)
	}
}

// TestHere reads this machine: whatever it is, nothing breaks.
func TestHere(t *testing.T) {
	sys := os.DirFS("/")
	if m := MemoryOf(sys); m.Available > m.Total || m.Limit < 0 {
		t.Errorf("%+v", m)
	}
	if n := CPUs(sys); n < 0 {
		t.Errorf("%g processors", n)
	}
}

func FuzzGroups(f *testing.F) {
	f.Add("0::/a\n", "100\n", "5 10\n", meminfo)
	f.Add("4:memory:/x\n", "max", "max 1", "")
	f.Fuzz(func(t *testing.T, cgroup, limit, cpu, mem string) {
		sys := system(map[string]string{"proc/self/cgroup": cgroup, "proc/meminfo": mem, "sys/fs/cgroup/memory.max": limit, "sys/fs/cgroup/cpu.max": cpu})
		if m := MemoryOf(sys); m.Total < 0 || m.Available < 0 || m.Limit < 0 || m.Used < 0 {
			t.Fatalf("%+v", m)
		}
		if n := CPUs(sys); !(n >= 0) {
			t.Fatalf("%g", n)
		}
	})
}
