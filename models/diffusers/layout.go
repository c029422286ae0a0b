package diffusers

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Bounds that no published network comes near. They keep a hostile
// configuration from asking for memory before it is refused.
const (
	maxWidth   = 1 << 16 // channels, features, table rows, image sides
	maxLevels  = 16
	maxDepth   = 1 << 10 // layers of one level, or transformer blocks
	maxTensors = 100_000
)

// A PerLevel is one number for each level; a single number in the file means
// the same everywhere. After reading it has as many elements as levels.
type PerLevel []int

func (p *PerLevel) expand(levels int) {
	if len(*p) == 1 {
		*p = slices.Repeat(*p, max(levels, 1))
	}
}

// keyError names the key that is wrong.
func keyError(key, format string, args ...any) error {
	return fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...))
}

// A rule is one check of a configuration: ok, or the key and why not.
type rule struct {
	ok    bool
	key   string
	value any
	want  string
}

// check returns the first rule that does not hold.
func check(rules ...rule) error {
	for _, r := range rules {
		if !r.ok {
			return keyError(r.key, "%v is not supported: it must be %s", r.value, r.want)
		}
	}
	return nil
}

func between(key string, n, low, high int) rule {
	return rule{n >= low && n <= high, key, n, fmt.Sprintf("between %d and %d", low, high)}
}

// nullOr is between, with 0 for null.
func nullOr(key string, n, low, high int) rule {
	r := between(key, n, low, high)
	r.ok = r.ok || n == 0
	r.want += ", or null"
	return r
}

func oneOf(key, s string, allowed ...string) rule {
	return rule{slices.Contains(allowed, s), key, fmt.Sprintf("%.60q", s), "one of " + strings.Join(quoteAll(allowed), ", ")}
}

func quoteAll(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = fmt.Sprintf("%q", s)
		if s == "" {
			out[i] = "null"
		}
	}
	return out
}

func positive(key string, x float64) rule {
	return rule{x > 0 && !math.IsInf(x, 0), key, x, "a positive number"}
}

// unset is for features of a class that are not supported here.
func unset(key string, isDefault bool, value any) rule {
	return rule{isDefault, key, show(value), "left at its default, since only that is implemented"}
}

// widths checks a list of channel counts.
func widths(key string, list []int) rule {
	ok := len(list) > 0 && len(list) <= maxLevels
	for _, n := range list {
		ok = ok && n >= 1 && n <= maxWidth
	}
	return rule{ok, key, fmt.Sprintf("%.100v", list), fmt.Sprintf("1 to %d numbers between 1 and %d", maxLevels, maxWidth)}
}

// sameLength checks a list that has one element for each level.
func sameLength[T any](key string, list []T, levels int) rule {
	return rule{len(list) == levels, key, fmt.Sprintf("a list of %d", len(list)), fmt.Sprintf("as long as block_out_channels, which has %d", levels)}
}

func eachOf(key string, list []string, allowed ...string) rule {
	for _, s := range list {
		if r := oneOf(key, s, allowed...); !r.ok {
			return r
		}
	}
	return rule{ok: true}
}

func eachBetween(key string, list []int, low, high int) rule {
	for _, n := range list {
		if r := between(key, n, low, high); !r.ok {
			return r
		}
	}
	return rule{ok: true}
}

var activations = []string{"silu", "swish", "mish", "gelu", "relu"}

// A layout lists the tensors of a network. The first fault stays in err.
type layout struct {
	tensors []Tensor
	err     error
}

func (l *layout) fail(key, format string, args ...any) {
	if l.err == nil {
		l.err = keyError(key, format, args...)
	}
}

// full reports whether building should stop: after a fault, or with more
// tensors than a file may hold.
func (l *layout) full() bool {
	if len(l.tensors) > maxTensors {
		l.fail("layers", "the network would have more than %d tensors", maxTensors)
	}
	return l.err != nil
}

func (l *layout) add(name string, shape ...int) {
	l.tensors = append(l.tensors, Tensor{name, shape})
}

func (l *layout) linear(name string, in, out int, bias bool) {
	l.add(name+".weight", out, in)
	if bias {
		l.add(name+".bias", out)
	}
}

func (l *layout) conv(name string, in, out, kernel int) {
	l.add(name+".weight", out, in, kernel, kernel)
	l.add(name+".bias", out)
}

// norm is a norm with weight and bias over n channels.
func (l *layout) norm(name string, n int) {
	l.add(name+".weight", n)
	l.add(name+".bias", n)
}

// groupNorm is a norm whose groups must divide its channels.
func (l *layout) groupNorm(name string, n, groups int) {
	if groups < 1 || n%groups != 0 {
		l.fail("norm_num_groups", "%d groups do not divide the %d channels of %s", groups, n, name)
	}
	l.norm(name, n)
}

// embedding is the two-layer network of TimestepEmbedding.
func (l *layout) embedding(name string, in, width, cond int) {
	l.linear(name+".linear_1", in, width, true)
	if cond > 0 {
		l.linear(name+".cond_proj", cond, in, false)
	}
	l.linear(name+".linear_2", width, width, true)
}

// A resnet describes a ResnetBlock2D.
type resnet struct {
	in, out    int
	temb       int // width of the time embedding, 0: none
	groups     int // of norm1
	groupsOut  int // of norm2, 0: as norm1
	scaleShift bool
	shortcut   bool // also where in equals out
}

func (l *layout) resnet(name string, r resnet) {
	if r.groupsOut == 0 {
		r.groupsOut = r.groups
	}
	l.groupNorm(name+".norm1", r.in, r.groups)
	l.conv(name+".conv1", r.in, r.out, 3)
	if r.temb > 0 {
		width := r.out
		if r.scaleShift {
			width *= 2
		}
		l.linear(name+".time_emb_proj", r.temb, width, true)
	}
	l.groupNorm(name+".norm2", r.out, r.groupsOut)
	l.conv(name+".conv2", r.out, r.out, 3)
	if r.shortcut || r.in != r.out {
		l.conv(name+".conv_shortcut", r.in, r.out, 1)
	}
}

// attention is self-attention over width channels with biases; groups 0
// leaves the norm before it out, headDim 0 is one head.
func (l *layout) attention(name string, width, groups, headDim int) {
	if headDim > 0 && width%headDim != 0 {
		l.fail("attention_head_dim", "%d does not divide the %d channels of %s", headDim, width, name)
	}
	if groups > 0 {
		l.groupNorm(name+".group_norm", width, groups)
	}
	for _, part := range []string{".to_q", ".to_k", ".to_v", ".to_out.0"} {
		l.linear(name+part, width, width, true)
	}
}

// midBlock is UNetMidBlock2D: two resnets around an optional attention.
func (l *layout) midBlock(name string, r resnet, attention bool, attnGroups, headDim int) {
	if attention {
		l.attention(name+".attentions.0", r.in, attnGroups, headDim)
	}
	l.resnet(name+".resnets.0", r)
	l.resnet(name+".resnets.1", r)
}
