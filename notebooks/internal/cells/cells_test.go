package cells

import (
	"encoding/json"
	"strings"
	"testing"
)

func parse(t *testing.T, text string) *Notebook {
	t.Helper()
	n := &Notebook{}
	if err := json.Unmarshal([]byte(text), n); err != nil {
		t.Fatal(err)
	}
	return n
}

func code(lines ...string) string {
	b, err := json.Marshal(strings.Join(lines, "\n"))
	if err != nil {
		panic(err)
	}
	return `{"cell_type":"code","execution_count":null,"outputs":[],"source":` + string(b) + `}`
}

func TestProgram(t *testing.T) {
	n := parse(t, `{"cells":[{"cell_type":"markdown","source":["# 1. Title\n","text"]},`+
		code("%noautoget", "!*go mod edit -require drift@v0.0.0")+","+
		code("import (", "\t\"fmt\"", "\t\"math\"", "\t\"os\"", ")", "", "// two is even.", "func two() float64 { return 2 }", "", "%%", "fmt.Println(two())")+","+
		code("import r \"math/rand/v2\"", "%%", "fmt.Println(math.Sqrt(two()), r.Int())", "fmt.Println(\"%%\")")+`]}`)
	src, err := n.Program("p")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"package p\n", "\"fmt\"", "\"math\"\n", "r \"math/rand/v2\"", "func two()", "func cell2() {\n\tfmt.Println(two())", "func cell3()", "func(){cell2, cell3}"} {
		if !strings.Contains(string(src), want) && !strings.Contains(string(src), strings.ReplaceAll(want, "(){", "() {")) {
			t.Errorf("no %q in\n%s", want, src)
		}
	}
	for _, not := range []string{"\"os\"", "noautoget", "mod edit", "cell1"} {
		if strings.Contains(string(src), not) {
			t.Errorf("%q in\n%s", not, src)
		}
	}
	imports, err := n.Imports()
	if got := strings.Join(imports, " "); err != nil || got != "fmt math math/rand/v2 os" {
		t.Errorf("imports %q, %v", got, err)
	}
	if !n.Clear() {
		t.Error("outputs where there are none")
	}
	for _, bad := range []string{"func f( {", "%%\nx := (", "var x = "} {
		if _, err := parse(t, `{"cells":[`+code(bad)+`]}`).Program("p"); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// TestProblems: what nbconvert takes for success is seen here.
func TestProblems(t *testing.T) {
	cell := func(count, outputs string) string {
		return `{"cells":[{"cell_type":"code","execution_count":` + count + `,"source":"%%","outputs":[` + outputs + `]}]}`
	}
	for _, c := range []struct {
		name, notebook string
		want           string // in the only problem; empty: none
	}{
		{"fine", cell("1", `{"output_type":"stream","name":"stdout","text":["panic: is only printed\n"]},{"output_type":"display_data","data":{"image/png":"QUJD\n"}}`), ""},
		{"talk", cell("1", `{"output_type":"stream","name":"stderr","text":"downloading"}`), ""},
		{"panic", cell("1", `{"output_type":"stream","name":"stderr","text":["panic: index out of range\n","goroutine 1"]}`), "index out of range"},
		{"exit", cell("1", `{"output_type":"stream","name":"stderr","text":"exit status 1"}`), "exit status 1"},
		{"error", cell("1", `{"output_type":"error","ename":"ERROR","evalue":"undefined: x","traceback":[]}`), "undefined: x"},
		{"not run", cell("null", ``), "was not run"},
	} {
		got := parse(t, c.notebook).Problems()
		if c.want == "" && len(got) > 0 || c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	n := parse(t, cell("1", `{"output_type":"display_data","data":{"image/png":"QUJD\n"}}`))
	if count, bytes := n.Pictures(); count != 1 || bytes != 3 || n.Clear() {
		t.Errorf("%d pictures of %d bytes", count, bytes)
	}
	if err := json.Unmarshal([]byte(`{"cells":[{"source":1}]}`), &Notebook{}); err == nil {
		t.Error("a source that is a number was taken")
	}
}
