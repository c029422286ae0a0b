// Command check looks through executed notebooks, because nbconvert takes a Go program that panicked or left with an error
// for a cell that ran.
//
//	go run ./notebooks/check EXECUTED.ipynb...
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"drift/notebooks/internal/cells"
)

func main() {
	bad := len(os.Args) < 2
	for _, name := range os.Args[1:] {
		n, err := cells.Open(name)
		if err != nil {
			fmt.Fprintln(os.Stderr, "check:", err)
			os.Exit(1)
		}
		name = filepath.Base(name)
		problems := n.Problems()
		pictures, bytes := n.Pictures()
		if len(problems) == 0 && pictures == 0 {
			problems = append(problems, "no picture was shown")
		}
		for _, p := range problems {
			fmt.Fprintf(os.Stderr, "check: %s: %s\n", name, p)
			bad = true
		}
		fmt.Printf("%s: %d cells, %d pictures (%d kB), %d problems\n", name, len(n.Cells), pictures, bytes/1000, len(problems))
	}
	if bad {
		os.Exit(1)
	}
}
