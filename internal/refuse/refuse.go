// Package refuse holds the error that says an input file was refused: what it
// holds is malformed, hostile, contradictory or not supported. It is told
// apart from errors of the system (no such file, no permission), which stay
// what they are.
package refuse

import "fmt"

// Error says which file was refused and why, in one line.
type Error struct {
	Path   string // the file, as the caller named it; may be empty
	Reason string
}

// Error returns "PATH: REASON".
func (e *Error) Error() string {
	if e.Path == "" {
		return oneLine(e.Reason)
	}
	return oneLine(e.Path) + ": " + oneLine(e.Reason)
}

// Errorf returns an *Error for the file at path.
func Errorf(path, format string, args ...any) error {
	return &Error{Path: path, Reason: fmt.Sprintf(format, args...)}
}

// oneLine replaces control characters, so that a name taken from a hostile
// file can neither break the line nor write to the terminal, and cuts what is
// too long to read.
func oneLine(s string) string {
	const most = 100_000
	out := make([]rune, 0, len(s))
	for _, r := range s {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' {
			r = '?'
		}
		if len(out) == most {
			return string(out) + " ..."
		}
		out = append(out, r)
	}
	return string(out)
}
