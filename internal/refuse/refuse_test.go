package refuse

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestErrorIsOneShortLine(t *testing.T) {
	err := Errorf("a\nb", "name %s\x1b[31m\u2028\u0085%s", "é", strings.Repeat("x", 200_000))
	text := err.Error()
	if strings.ContainsAny(text, "\n\x1b\u2028\u0085") {
		t.Errorf("%.80q", text)
	}
	if !strings.HasPrefix(text, "a?b: name é?[31m??xxx") || !strings.HasSuffix(text, "x ...") || len(text) > 110_000 {
		t.Errorf("%.80q, %d bytes", text, len(text))
	}
	if got := Errorf("", "why").Error(); got != "why" {
		t.Error(got)
	}
}

func ExampleErrorf() {
	err := fmt.Errorf("opening the model: %w", Errorf("model.safetensors", "a header of %d bytes", 10))
	var refused *Error
	fmt.Println(errors.As(err, &refused), refused.Path)
	fmt.Println(err)
	// Output:
	// true model.safetensors
	// opening the model: model.safetensors: a header of 10 bytes
}
