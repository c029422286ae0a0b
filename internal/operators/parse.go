package operators

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/gonum/mat"

	"drift/internal/spec"
)

// Info is one row of the table of operators.
type Info struct {
	Name, Summary string
	Aliases       []string
	Linear        bool
	Options       []Option
	new           func(o *spec.Options, name string, in []int, known []bool) (Operator, error)
}

// Option describes one option of an operator.
type Option struct{ Name, Default, Help string }

// List returns the table of operators, in the order of the documentation.
func List() []Info { return slices.Clone(table) }

// Parse makes the operator that a text like "superres:factor=4" names, for images of shape in: (C, H, W), or (D) for
// vectors, which are images of one row. known marks the pixels that inpainting is given (H*W of them, nil without a mask).
func Parse(text string, in []int, known []bool) (Operator, error) {
	sp, err := spec.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("task: %w", err)
	}
	row, err := find(sp.Name)
	if err != nil {
		return nil, err
	}
	if len(in) == 1 {
		in = []int{1, 1, in[0]}
	}
	if _, _, _, err := image(in); err != nil {
		return nil, fmt.Errorf("task %s: %w", row.Name, err)
	}
	if known != nil && row.Name != "inpaint" {
		return nil, fmt.Errorf("task %s takes no mask: masks belong to inpaint", row.Name)
	}
	sp.Name = row.Name
	o := sp.Options()
	a, bad := row.new(o, sp.String(), in, known)
	if err := o.Err(); err != nil {
		return nil, fmt.Errorf("task: %w", err)
	}
	if bad != nil {
		return nil, fmt.Errorf("task %s: %w", row.Name, bad)
	}
	return a, nil
}

func find(name string) (Info, error) {
	var names []string
	for _, i := range table {
		if i.Name == name || slices.Contains(i.Aliases, name) {
			return i, nil
		}
		names = append(append(names, i.Name), i.Aliases...)
	}
	hint := spec.Suggest(name, names)
	if hint == "" {
		hint = "; known: "
		for k, i := range table {
			hint += []string{", ", ""}[b2i(k == 0)] + i.Name
		}
	}
	return Info{}, fmt.Errorf("unknown task %q%s", name, hint)
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// table is filled in init, because its functions look into it.
var table []Info

func init() {
	seed := Option{"seed", "0", "of the random choice"}
	table = []Info{
		{Name: "inpaint", Aliases: []string{"inpainting"}, Linear: true, Summary: "some pixels are not known: a mask, a box, or a random choice",
			Options: []Option{{"box", "", "X+Y+WxH: the rectangle that is not known; half = the right half; centre = the middle, half the sides"}, {"random", "", "share of pixels that are not known, chosen at random"}, seed},
			new:     newInpaint},
		{Name: "superres", Aliases: []string{"super-resolution", "sr", "superresolution"}, Linear: true, Summary: "smaller by an integer factor",
			Options: []Option{{"factor", "4", "of each side; sides of one pixel stay"}, {"kernel", "average", "average (pooling) or bicubic (antialiased)"}},
			new: func(o *spec.Options, name string, in []int, _ []bool) (Operator, error) {
				f, make1 := o.Int("factor", 4, 1, 1<<12), average
				if o.Choice("kernel", "average", "bicubic") == "bicubic" {
					make1 = bicubic
				}
				var m [2]*mat.Dense
				for i, n := range in[1:] {
					k := f
					if n == 1 {
						k = 1
					}
					if n%k != 0 {
						return nil, fmt.Errorf("factor %d does not divide the side of %d pixels", f, n)
					}
					m[i] = make1(n, k)
				}
				return newSeparable(name, in, m[0], m[1], 0)
			}},
		{Name: "deblur", Aliases: []string{"blur", "gaussian-blur", "deblurring"}, Linear: true, Summary: "Gaussian blur, mirrored at the edges",
			Options: []Option{{"std", "1.5", "of the kernel, in pixels"}, cutoffOption},
			new: func(o *spec.Options, name string, in []int, _ []bool) (Operator, error) {
				std := o.FloatIn("std", 1.5, 0.01, 1e3)
				return newSeparable(name, in, gaussian(in[1], std), gaussian(in[2], std), readCutoff(o))
			}},
		{Name: "motion-deblur", Aliases: []string{"motion", "motion-blur"}, Linear: true, Summary: "blur along a line, wrapped at the edges",
			Options: []Option{{"length", "7", "of the motion, in pixels"}, {"angle", "30", "degrees, anticlockwise from the x axis"}, cutoffOption},
			new: func(o *spec.Options, name string, in []int, _ []bool) (Operator, error) {
				return newCirculant(name, in, line(o.FloatIn("length", 7, 0.01, 1e4), o.Float("angle", 30)), readCutoff(o))
			}},
		{Name: "nonlinear-deblur", Aliases: []string{"nonlinear-blur"}, Summary: "Gaussian blur of light, pixels being its logarithm: y = 1/gain log(blur(exp(gain x)))",
			Options: []Option{{"std", "1.5", "of the kernel, in pixels"}, {"gain", "2", "range of light; towards 0 the blur is linear"}},
			new: func(o *spec.Options, name string, in []int, _ []bool) (Operator, error) {
				std := o.FloatIn("std", 1.5, 0.01, 1e3)
				return &lightBlur{base{name, in, in}, o.FloatIn("gain", 2, 1e-3, 50), gaussian(in[1], std), gaussian(in[2], std)}, nil
			}},
		{Name: "colorize", Aliases: []string{"colourise", "colourisation", "colorization", "colourization", "colorisation"}, Linear: true, Summary: "grey: the mean of the channels of every pixel",
			new: func(o *spec.Options, name string, in []int, _ []bool) (Operator, error) {
				if in[0] < 2 {
					return nil, fmt.Errorf("the images have one channel: there is no colour to restore")
				}
				m := mat.NewDense(1, in[0], nil)
				for i := range in[0] {
					m.Set(0, i, 1/float64(in[0]))
				}
				return newChannels(name, in, m)
			}},
		{Name: "compressed", Aliases: []string{"compressed-sensing", "cs"}, Linear: true, Summary: "some coefficients of a random orthogonal transform (signs, then cosines)",
			Options: []Option{{"ratio", "0.25", "share of coefficients measured"}, seed},
			new: func(o *spec.Options, name string, in []int, _ []bool) (Operator, error) {
				return newSensing(name, in, o.FloatIn("ratio", 0.25, 1e-9, 1), uint64(o.Int("seed", 0, 0, math.MaxInt)))
			}},
		{Name: "phase", Aliases: []string{"phase-retrieval"}, Summary: "moduli of the Fourier transform of the image padded with zeros",
			Options: []Option{{"oversample", "2", "size after padding, per side"}},
			new: func(o *spec.Options, name string, in []int, _ []bool) (Operator, error) {
				return newPhase(name, in, o.FloatIn("oversample", 2, 1, 16))
			}},
		{Name: "hdr", Aliases: []string{"clip"}, Summary: "a camera that saturates: min(max(factor x, -1), 1)",
			Options: []Option{{"factor", "2", "exposure"}},
			new: func(o *spec.Options, name string, in []int, _ []bool) (Operator, error) {
				return &clip{base{name, in, in}, o.FloatIn("factor", 2, 1e-6, 1e6)}, nil
			}},
		{Name: "jpeg", Summary: "blocks of 8 x 8 cosine coefficients, rounded by the tables of JPEG",
			Options: []Option{{"quality", "10", "1 (coarse) to 100"}},
			new: func(o *spec.Options, name string, in []int, _ []bool) (Operator, error) {
				return newJPEG(name, in, o.Int("quality", 10, 1, 100))
			}},
		{Name: "denoise", Aliases: []string{"identity"}, Linear: true, Summary: "nothing but noise: A = I",
			new: func(o *spec.Options, name string, in []int, _ []bool) (Operator, error) {
				return newMask(name, in, slices.Repeat([]bool{true}, in[1]*in[2]))
			}},
		{Name: "matrix", Linear: true, Summary: "a matrix written out, for small targets",
			Options: []Option{{"rows", "", "rows apart by ; and numbers by blanks, as in 1 0.5 0;0 1 -1"}},
			new: func(o *spec.Options, name string, in []int, _ []bool) (Operator, error) {
				return parseMatrix(name, in, o.Text("rows", ""))
			}},
	}
}

var cutoffOption = Option{"cutoff", "0.03", "singular values below this share of the largest count as zero in methods that divide by them"}

func readCutoff(o *spec.Options) float64 { return o.FloatIn("cutoff", 0.03, 0, 1) }

func newInpaint(o *spec.Options, name string, in []int, known []bool) (Operator, error) {
	c, h, w := in[0], in[1], in[2]
	text, random, seed := o.Text("box", ""), o.FloatIn("random", 0, 0, 1), uint64(o.Int("seed", 0, 0, math.MaxInt))
	given := b2i(known != nil) + b2i(text != "") + b2i(o.Has("random"))
	if given != 1 {
		return nil, fmt.Errorf("say what is not known, in one way: a mask, box=X+Y+WxH or random=SHARE")
	}
	switch {
	case known != nil:
	case text == "half":
		known = box(h, w, w/2, 0, w-w/2, h)
	case text == "centre" || text == "center":
		known = box(h, w, w/4, h/4, w-2*(w/4), h-2*(h/4))
	case text != "":
		var x, y, bw, bh int
		if n, err := fmt.Sscanf(text, "%d+%d+%dx%d", &x, &y, &bw, &bh); n != 4 || err != nil || text != fmt.Sprintf("%d+%d+%dx%d", x, y, bw, bh) {
			return nil, fmt.Errorf("box=%s: want X+Y+WxH (as in 8+8+12x12), half or centre", text)
		}
		if x < 0 || y < 0 || bw < 1 || bh < 1 || bw > w || bh > h || x > w-bw || y > h-bh {
			return nil, fmt.Errorf("box=%s does not lie inside %d x %d pixels", text, w, h)
		}
		known = box(h, w, x, y, bw, bh)
	default:
		known = make([]bool, h*w)
		n := h * w
		for _, i := range choose(n, n-int(math.Round(random*float64(n))), seed, 0) {
			known[i] = true
		}
	}
	return newMask(name, []int{c, h, w}, known)
}

// most is the largest side of a matrix written out.
const most = 4096

func parseMatrix(name string, in []int, text string) (Operator, error) {
	var data []float64
	n := Size(in)
	lines := strings.Split(text, ";")
	if strings.TrimSpace(text) == "" || n > most || len(lines) > most {
		return nil, fmt.Errorf("want rows=..., at most %d of them, for at most %d elements", most, most)
	}
	for i, line := range lines {
		fields := strings.Fields(line)
		if len(fields) != n {
			return nil, fmt.Errorf("row %d has %d numbers, the images have %d elements", i+1, len(fields), n)
		}
		for _, f := range fields {
			v, err := strconv.ParseFloat(f, 64)
			if err != nil || math.IsNaN(v) || math.Abs(v) > 1e100 {
				return nil, fmt.Errorf("row %d: %q is no finite number", i+1, f)
			}
			data = append(data, v)
		}
	}
	return newDense(name, in, mat.NewDense(len(lines), n, data))
}
