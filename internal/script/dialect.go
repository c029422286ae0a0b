package script

import (
	"strings"
	"unicode/utf8"
)

// Scripts may write things that Starlark has not: a ** b, x[0, 2:5], ctx.class and f(class=...), load(...) of an array.
// translate turns them into pow(a, b), x[0, slice(2, 5, None)], ctx.label, f(label=...) and fetch(...), and remembers where every byte came from, so that errors are reported
// at the place in the user's own text. Everything else is left as it stands, mistakes included.
func translate(src string) (out string, from []int) {
	toks := scan(src)
	match := brackets(toks)
	type edit struct {
		text string
		drop int // bytes of src to leave out
	}
	before := map[int]string{} // inserted in front of a byte; later ones go outside
	after := map[int]string{}  // inserted behind the byte before
	swap := map[int]edit{}
	open := func(at int, s string) { before[at] = s + before[at] }
	shut := func(at int, s string) { after[at] += s }
	operand := func(i int) bool {
		return i >= 0 && (toks[i].kind == 'w' || toks[i].text == ")" || toks[i].text == "]")
	}
	for i, k := range toks {
		switch {
		case k.text == "class" && i > 0 && (toks[i-1].text == "." || (toks[i-1].text == "(" || toks[i-1].text == ",") && i+1 < len(toks) && toks[i+1].text == "="):
			swap[k.at] = edit{"label", len(k.text)}
		case k.text == "load" && i+1 < len(toks) && toks[i+1].text == "(" && strings.TrimSpace(src[strings.LastIndexByte(src[:k.at], '\n')+1:k.at]) != "": // no statement
			swap[k.at] = edit{"fetch", len(k.text)}
		case k.text == "**" && operand(i-1):
			lo, hi := first(toks, match, i-1), last(toks, match, i+1)
			if lo < 0 || hi < 0 {
				continue
			}
			open(toks[lo].at, "pow(")
			swap[k.at] = edit{",", 2}
			shut(toks[hi].at+len(toks[hi].text), ")")
		case k.text == "[" && operand(i-1) && match[i] > 0:
			// The parts between commas, and the colons in them.
			comma, colon := false, false
			top(toks, match, i, func(j int) {
				comma = comma || toks[j].text == ","
				colon = colon || toks[j].text == ":"
			})
			if !comma || !colon {
				continue
			}
			start, colons := i+1, []int(nil)
			finish := func(end int) { // toks[start:end] is one part
				if len(colons) == 0 {
					start = end + 1
					return
				}
				open(toks[start].at, "slice(")
				prev := start
				for _, c := range colons {
					text := ","
					if c == prev {
						text = "None,"
					}
					swap[toks[c].at] = edit{text, 1}
					prev = c + 1
				}
				tail := ")"
				if prev == end {
					tail = "None)"
				}
				shut(toks[end-1].at+len(toks[end-1].text), tail)
				start, colons = end+1, nil
			}
			top(toks, match, i, func(j int) {
				switch toks[j].text {
				case ":":
					colons = append(colons, j)
				case ",":
					finish(j)
				}
			})
			finish(match[i])
		}
	}
	var b strings.Builder
	put := func(s string, at int) {
		b.WriteString(s)
		for range len(s) {
			from = append(from, at)
		}
	}
	for i := 0; i <= len(src); {
		put(after[i], i)
		put(before[i], i)
		if e, ok := swap[i]; ok {
			put(e.text, i)
			i += e.drop
			continue
		}
		if i < len(src) {
			b.WriteByte(src[i])
			from = append(from, i)
		}
		i++
	}
	return b.String(), append(from, len(src))
}

type token struct {
	text string
	at   int
	kind byte // 'w' a word, number or text; 'k' a keyword; 'o' anything else
}

const keywords = " and break continue def elif else for if in lambda load not or pass return while "

func word(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= utf8.RuneSelf
}

// scan cuts a text into tokens, without blanks and comments.
func scan(s string) []token {
	var out []token
	for i := 0; i < len(s); {
		c, at := s[i], i
		switch {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\\':
			i++
			continue
		case c == '#':
			for i < len(s) && s[i] != '\n' {
				i++
			}
			continue
		case c == '"' || c == '\'':
			i = quoted(s, i)
			out = append(out, token{s[at:i], at, 'w'})
		case word(c) || c == '.' && i+1 < len(s) && s[i+1] >= '0' && s[i+1] <= '9':
			number := c == '.' || c >= '0' && c <= '9'
			for i++; i < len(s); i++ {
				sign := (s[i] == '+' || s[i] == '-') && (s[i-1] == 'e' || s[i-1] == 'E') && !strings.HasPrefix(s[at:], "0x")
				if !(word(s[i]) || number && (s[i] == '.' || sign)) {
					break
				}
			}
			kind := byte('w')
			if strings.Contains(keywords, " "+s[at:i]+" ") {
				kind = 'k'
			}
			out = append(out, token{s[at:i], at, kind})
		default:
			i++
			if c == '*' && i < len(s) && s[i] == '*' {
				i++
			}
			out = append(out, token{s[at:i], at, 'o'})
		}
	}
	return out
}

// quoted returns the end of the text that starts at i.
func quoted(s string, i int) int {
	quote := s[i : i+1]
	if strings.HasPrefix(s[i:], quote+quote+quote) {
		quote = s[i : i+3]
	}
	raw := i > 0 && s[i-1] == 'r'
	for i += len(quote); i < len(s); i++ {
		switch {
		case s[i] == '\\' && !raw:
			i++
		case strings.HasPrefix(s[i:], quote):
			return i + len(quote)
		case len(quote) == 1 && s[i] == '\n':
			return i
		}
	}
	return len(s)
}

// brackets pairs the brackets; 0 for one without a partner (token 0 is nobody's end, and an opener in place 0 is no
// suffix).
func brackets(toks []token) map[int]int {
	match, stack := map[int]int{}, []int(nil)
	for i, t := range toks {
		switch t.text {
		case "(", "[", "{":
			stack = append(stack, i)
		case ")", "]", "}":
			if n := len(stack); n > 0 {
				j := stack[n-1]
				stack = stack[:n-1]
				match[i], match[j] = j, i
			}
		}
	}
	return match
}

// top calls f with the tokens between bracket i and its partner that lie in no further bracket.
func top(toks []token, match map[int]int, i int, f func(j int)) {
	for j := i + 1; j < match[i]; j++ {
		f(j)
		if end := match[j]; end > j {
			j = end
		}
	}
}

// first returns the first token of the operand that ends with token i, -1 if it makes no sense.
func first(toks []token, match map[int]int, i int) int {
	for i >= 0 {
		if t := toks[i].text; t == ")" || t == "]" {
			j, ok := match[i]
			if !ok {
				return -1
			}
			if j == 0 || !(toks[j-1].kind == 'w' || toks[j-1].text == ")" || toks[j-1].text == "]") {
				return j
			}
			i = j - 1
			continue
		}
		if i < 2 || toks[i-1].text != "." {
			return i
		}
		i -= 2
	}
	return -1
}

// last returns the last token of the operand that starts with token i: signs, a primary with what follows it, and further
// powers, which bind from the right.
func last(toks []token, match map[int]int, i int) int {
	for i < len(toks) && (toks[i].text == "-" || toks[i].text == "+") {
		i++
	}
	if i >= len(toks) {
		return -1
	}
	switch {
	case toks[i].text == "(" || toks[i].text == "[":
		if i = match[i]; i == 0 {
			return -1
		}
	case toks[i].kind != 'w':
		return -1
	}
	for i+1 < len(toks) {
		switch next := toks[i+1].text; {
		case next == "." && i+2 < len(toks):
			i += 2
		case (next == "(" || next == "[") && match[i+1] > 0:
			i = match[i+1]
		case next == "**":
			return last(toks, match, i+2)
		default:
			return i
		}
	}
	return i
}
