package drift_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// floors are the rooms of the house, top to bottom. A room imports only rooms below it (see docs/design.md).
var floors = []string{"cmd", "notebooks", "metrics", "smc", "samplers", "guidance", "models", "schedules", "internal"}

func floor(path string) int {
	room, _, _ := strings.Cut(filepath.ToSlash(path), "/")
	for i, f := range floors {
		if f == room {
			return i
		}
	}
	return -1
}

// TestImportsGoDown holds the direction of imports: a package imports only rooms below its own, and packages of its
// own room that lie beside or below it in the tree.
func TestImportsGoDown(t *testing.T) {
	seen := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "tools") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || !strings.Contains(path, string(filepath.Separator)) {
			return nil
		}
		from := floor(path)
		if from < 0 {
			t.Errorf("%s lies in no room", path)
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, i := range f.Imports {
			name, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			to, ours := strings.CutPrefix(name, "drift/")
			if !ours {
				continue
			}
			seen++
			switch down := floor(to); {
			case down < 0:
				t.Errorf("%s imports %s, which lies in no room", path, name)
			case down < from:
				t.Errorf("%s imports %s: %s may not reach up to %s", path, name, floors[from], floors[down])
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 20 {
		t.Errorf("only %d imports seen", seen)
	}
}
