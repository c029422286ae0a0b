// Package cells reads notebooks: the code of their cells as one program that can be built without Jupyter, and what an
// executed notebook says of its run.
package cells

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"os"
	"path"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// Notebook is what is read of a file in nbformat 4.
type Notebook struct {
	Cells []Cell `json:"cells"`
}

// Cell is one of its cells.
type Cell struct {
	Type    string   `json:"cell_type"`
	Source  Text     `json:"source"`
	Outputs []Output `json:"outputs"`
	Count   *int     `json:"execution_count"`
}

// Output is what running a cell left.
type Output struct {
	Type  string          `json:"output_type"`
	Name  string          `json:"name"` // of a stream
	Text  Text            `json:"text"`
	Error string          `json:"ename"`
	Value string          `json:"evalue"`
	Data  map[string]Text `json:"data"`
}

// Text is a string, or a list of lines that make one.
type Text string

// UnmarshalJSON implements json.Unmarshaler.
func (t *Text) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) == nil {
		*t = Text(s)
		return nil
	}
	var lines []string
	if err := json.Unmarshal(b, &lines); err != nil {
		return err
	}
	*t = Text(strings.Join(lines, ""))
	return nil
}

// Open reads a notebook.
func Open(name string) (*Notebook, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	n := &Notebook{}
	if err := json.Unmarshal(b, n); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return n, nil
}

// Program makes one file of package name out of the code cells, in the way of GoNB: lines that begin with % or ! are the
// kernel's own, what follows %% is a main (here cell1, cell2, ...), everything else is declared once for all cells, and imports
// that no cell needs are dropped. A notebook may not declare a name twice, which GoNB would allow.
func (n *Notebook) Program(name string) ([]byte, error) {
	imports := map[string]string{} // by path
	var decls, mains strings.Builder
	number := 0
	for i, c := range n.Cells {
		if c.Type != "code" {
			continue
		}
		number++
		var head, body strings.Builder
		into, isMain := &head, false
		for line := range strings.Lines(string(c.Source)) {
			switch trimmed := strings.TrimSpace(line); {
			case strings.HasPrefix(trimmed, "%%"), trimmed == "%main":
				into, isMain = &body, true
			case strings.HasPrefix(line, "%"), strings.HasPrefix(line, "!"):
			default:
				into.WriteString(line)
			}
		}
		src := "package p\n" + head.String()
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, fmt.Sprintf("cell %d", i+1), src, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		for _, s := range f.Imports {
			p, err := strconv.Unquote(s.Path.Value)
			if err != nil {
				return nil, err
			}
			as := ""
			if s.Name != nil {
				as = s.Name.Name
			}
			imports[p] = as
		}
		for _, d := range f.Decls {
			if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.IMPORT {
				continue
			}
			from, to := d.Pos(), d.End()
			decls.WriteString(src[fset.Position(from).Offset:fset.Position(to).Offset] + "\n\n")
		}
		if isMain {
			fmt.Fprintf(&mains, "func cell%d() {\n%s}\n\n", number, strings.TrimRight(body.String(), "\n")+"\n")
		}
	}
	code := decls.String() + mains.String()
	f, err := parser.ParseFile(token.NewFileSet(), "the cells", "package p\n"+code, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	ast.Inspect(f, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := s.X.(*ast.Ident); ok {
				used[x.Name] = true
			}
		}
		return true
	})
	var out strings.Builder
	fmt.Fprintf(&out, "package %s\n\nimport (\n", name)
	paths := make([]string, 0, len(imports))
	for p := range imports {
		paths = append(paths, p)
	}
	sort.Strings(paths)
	for _, p := range paths {
		if as := imports[p]; used[base(p)] || used[as] {
			fmt.Fprintf(&out, "%s %q\n", as, p)
		}
	}
	fmt.Fprintf(&out, ")\n\n%s\nvar _ = []func(){", code)
	for i := range number {
		if strings.Contains(code, fmt.Sprintf("func cell%d()", i+1)) {
			fmt.Fprintf(&out, "cell%d, ", i+1)
		}
	}
	out.WriteString("}\n")
	return format.Source([]byte(out.String()))
}

// base is the name of the package at an import path, as far as the path tells.
func base(p string) string {
	b := path.Base(p)
	if strings.HasPrefix(b, "v") && len(b) > 1 && strings.Trim(b[1:], "0123456789") == "" {
		b = path.Base(path.Dir(p))
	}
	return b
}

// Imports lists the packages that the cells import.
func (n *Notebook) Imports() ([]string, error) {
	var out []string
	for _, c := range n.Cells {
		if c.Type != "code" {
			continue
		}
		var head strings.Builder
		for line := range strings.Lines(string(c.Source)) {
			if strings.HasPrefix(line, "%%") {
				break
			}
			if !strings.HasPrefix(line, "%") && !strings.HasPrefix(line, "!") {
				head.WriteString(line)
			}
		}
		f, err := parser.ParseFile(token.NewFileSet(), "", "package p\n"+head.String(), parser.ImportsOnly)
		if err != nil {
			return nil, err
		}
		for _, s := range f.Imports {
			p, err := strconv.Unquote(s.Path.Value)
			if err != nil {
				return nil, err
			}
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// Clear tells whether the notebook holds neither outputs nor counts.
func (n *Notebook) Clear() bool {
	for _, c := range n.Cells {
		if len(c.Outputs) > 0 || c.Count != nil {
			return false
		}
	}
	return true
}

// Problems lists what went wrong in an executed notebook: errors, cells that were not run, and panics and exits of cells,
// which nbconvert takes for success.
func (n *Notebook) Problems() []string {
	var out []string
	for i, c := range n.Cells {
		if c.Type != "code" {
			continue
		}
		if c.Count == nil && strings.TrimSpace(string(c.Source)) != "" {
			out = append(out, fmt.Sprintf("cell %d was not run", i+1))
		}
		for _, o := range c.Outputs {
			switch {
			case o.Type == "error":
				out = append(out, fmt.Sprintf("cell %d: %s: %s", i+1, o.Error, o.Value))
			case o.Name == "stderr" && (strings.Contains(string(o.Text), "panic:") || strings.Contains(string(o.Text), "exit status") || strings.Contains(string(o.Text), "error:")):
				out = append(out, fmt.Sprintf("cell %d: %s", i+1, strings.TrimSpace(string(o.Text))))
			}
		}
	}
	return out
}

// Pictures counts the pictures in the outputs, and their bytes.
func (n *Notebook) Pictures() (count, bytes int) {
	for _, c := range n.Cells {
		for _, o := range c.Outputs {
			if p, ok := o.Data["image/png"]; ok {
				count++
				bytes += base64.StdEncoding.DecodedLen(len(strings.TrimSpace(string(p))))
			}
		}
	}
	return count, bytes
}
