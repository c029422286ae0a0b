package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// enoughMemory refuses what cannot fit into the memory that is free now (where the system says how much that is).
func enoughMemory(need float64, what string) error {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		rest, ok := strings.CutPrefix(sc.Text(), "MemAvailable:")
		if !ok {
			continue
		}
		kb, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(rest, "kB")), 64)
		if err == nil && need > 1024*kb {
			return fmt.Errorf("%s would take %.1f GB of memory, and %.1f GB are free", what, need/1e9, kb/1e6)
		}
	}
	return nil
}
