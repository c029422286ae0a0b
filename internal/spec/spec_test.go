package spec

import (
	"slices"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, c := range []struct{ in, out, err string }{
		{"euler", "euler", ""},
		{" unipc : order = 3 , corrector ", "unipc:order=3,corrector=true", ""},
		{"a:b=c=d", "a:b=c=d", ""},
		{"cfg:w=min(7,3*progress),from=0.2", "cfg:w=min(7,3*progress),from=0.2", ""},
		{"a:b=),c=1", "a:b=),c=1", ""},
		{"", "", "empty name"},
		{"a:", "", "empty option"},
		{"a:x=1,x=2", "", "twice"},
		{"a:=3", "", "empty option"},
	} {
		s, err := Parse(c.in)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("Parse(%q) error %v, want %q", c.in, err, c.err)
			}
			continue
		}
		if err != nil || s.String() != c.out {
			t.Errorf("Parse(%q) = %q, %v, want %q", c.in, s, err, c.out)
		}
	}
}

func TestOptions(t *testing.T) {
	s, _ := Parse("x:order=3,eta=0.5,flag,kind=b")
	o := s.Options()
	if o.Int("order", 1, 1, 5) != 3 || o.Float("eta", 1) != 0.5 || !o.Bool("flag", false) || o.Choice("kind", "a", "b") != "b" || o.Float("absent", 7) != 7 {
		t.Fatal("wrong values")
	}
	if err := o.Err(); err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{
		"x:order=9":    "an integer from 1 to 5",
		"x:order=two":  "an integer",
		"x:oder=2":     `unknown option "oder"; did you mean order?`,
		"x:eta=nan":    "a finite number",
		"x:eta=-1":     "from 0 to 1",
		"x:kind=c":     "one of a, b",
		"x:flag=maybe": "true or false",
	} {
		s, _ := Parse(in)
		o := s.Options()
		o.Int("order", 1, 1, 5)
		o.FloatIn("eta", 1, 0, 1)
		o.Bool("flag", false)
		o.Choice("kind", "a", "b")
		if err := o.Err(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", in, err, want)
		}
	}
}

func TestNearest(t *testing.T) {
	names := []string{"euler", "euler-ancestral", "heun", "dpmpp-2m", "dpmpp-2m-sde", "unipc"}
	for in, want := range map[string][]string{
		"eular":   {"euler"},
		"dpmpp2m": {"dpmpp-2m"},
		"zzzzzz":  nil,
		"huen":    {"heun"},
	} {
		if got := Nearest(in, names, 1); !slices.Equal(got, want) {
			t.Errorf("Nearest(%q) = %v, want %v", in, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("unipc:order=3,variant=bh2")
	f.Fuzz(func(t *testing.T, in string) {
		s, err := Parse(in)
		if err != nil {
			return
		}
		again, err := Parse(s.String())
		if err != nil || again.String() != s.String() {
			t.Fatalf("%q -> %q -> %q, %v", in, s, again, err)
		}
	})
}
