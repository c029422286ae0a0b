// Package machine reads what a Linux system says about its processor, its memory, and the limits that a control group
// (of a container or a batch system) puts on this process. Where it says nothing, nothing is known.
package machine

import (
	"bufio"
	"bytes"
	"io"
	"io/fs"
	"math"
	"path"
	"strconv"
	"strings"
)

// Memory is in bytes; zero = not known.
type Memory struct {
	Total, Available int64
	Limit            int64 // of the control group; 0 = none
	Used             int64 // of the control group, where it has a limit
}

// read returns a small file, nil where it cannot be read.
func read(sys fs.FS, name string) []byte {
	f, err := sys.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return nil
	}
	return b
}

// lines are the lines of a text as key and value.
func lines(text []byte) (out [][2]string) {
	for sc := bufio.NewScanner(bytes.NewReader(text)); sc.Scan(); {
		if key, value, ok := strings.Cut(sc.Text(), ":"); ok {
			out = append(out, [2]string{strings.TrimSpace(key), strings.TrimSpace(value)})
		}
	}
	return out
}

// CPU is the name of the processor, empty where unknown.
func CPU(sys fs.FS) string {
	for _, l := range lines(read(sys, "proc/cpuinfo")) {
		if l[0] == "model name" {
			return l[1]
		}
	}
	return ""
}

// MemoryOf reads the memory of the machine and the limit of this process.
func MemoryOf(sys fs.FS) Memory {
	var m Memory
	for _, l := range lines(read(sys, "proc/meminfo")) {
		kb, err := strconv.ParseInt(strings.TrimSuffix(l[1], " kB"), 10, 64)
		if err != nil || kb < 0 || kb > math.MaxInt64/1024 {
			continue
		}
		switch l[0] {
		case "MemTotal":
			m.Total = kb * 1024
		case "MemAvailable":
			m.Available = kb * 1024
		}
	}
	groups(sys, "memory", func(dir string, v2 bool) {
		limit, used := "memory.limit_in_bytes", "memory.usage_in_bytes"
		if v2 {
			limit, used = "memory.max", "memory.current"
		}
		n := number(read(sys, path.Join(dir, limit)))
		if n <= 0 || m.Total > 0 && n >= m.Total || m.Limit > 0 && n >= m.Limit {
			return // none, or one that says nothing
		}
		m.Limit, m.Used = n, max(0, number(read(sys, path.Join(dir, used))))
	})
	return m
}

// CPUs is the number of processors that the control group lets this process use, 0 = all.
func CPUs(sys fs.FS) float64 {
	out := 0.0
	groups(sys, "cpu", func(dir string, v2 bool) {
		var quota, period int64
		if v2 {
			f := strings.Fields(string(read(sys, path.Join(dir, "cpu.max"))))
			if len(f) == 2 {
				quota, period = number([]byte(f[0])), number([]byte(f[1]))
			}
		} else {
			quota, period = number(read(sys, path.Join(dir, "cpu.cfs_quota_us"))), number(read(sys, path.Join(dir, "cpu.cfs_period_us")))
		}
		if quota > 0 && period > 0 {
			if n := float64(quota) / float64(period); out == 0 || n < out {
				out = n
			}
		}
	})
	return out
}

// number reads a whole number, -1 for anything else, such as max.
func number(b []byte) int64 {
	n, err := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// groups visits the folders of this process's control group for a controller, and those above it, of both versions.
func groups(sys fs.FS, controller string, visit func(dir string, v2 bool)) {
	for sc := bufio.NewScanner(bytes.NewReader(read(sys, "proc/self/cgroup"))); sc.Scan(); {
		part := strings.SplitN(sc.Text(), ":", 3) // number, controllers, path
		if len(part) != 3 {
			continue
		}
		root, v2 := "sys/fs/cgroup", part[0] == "0" && part[1] == ""
		if !v2 {
			found := false
			for name := range strings.SplitSeq(part[1], ",") {
				found = found || name == controller
			}
			if !found {
				continue
			}
			root = path.Join(root, part[1])
		}
		dir := path.Join(root, path.Clean("/"+part[2]))
		for n := 0; n < 64; n++ {
			visit(dir, v2)
			if dir == root {
				break
			}
			dir = path.Dir(dir)
		}
	}
}
