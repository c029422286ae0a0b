package metrics

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Metric is a score that takes its samples in batches. Value may be called
// between batches, does not disturb what follows, and called twice gives the
// same number.
type Metric interface {
	Add(batch Samples) error
	Value(ctx context.Context) (Result, error)
}

// Score is a score that needs both sets at once. One with a Source of
// NewSource draws from a copy of it, so that the same sets give the same number
// again; another Source moves on.
type Score interface {
	Compare(ctx context.Context, reference, generated Samples) (Result, error)
}

// Result is a number together with what is needed to read it.
type Result struct {
	Metric   string             // name, e.g. "fid"
	Value    float64            // the number
	Std      float64            // spread over subsets or splits as the field prints it; 0 where there is none
	StdErr   float64            // standard error of Value; 0 where it is not estimated
	N, NRef  int                // generated and reference samples
	D        int                // features
	Identity string             // who made the generated features
	Settings string             // exact settings, e.g. "subsets=100 size=1000"
	Parts    map[string]float64 // terms and companions of Value; "monte_carlo" is the error of the score's own random choices
	PartErr  map[string]float64 // standard errors of parts, where they are estimated
	Warnings []Warning          // named reasons to distrust Value
}

// Warning is a named remark about a Result.
type Warning struct{ Name, Text string }

// Names of warnings.
const (
	WarnFewSamples      = "few-samples"          // fewer samples than dimensions
	WarnUnknownSize     = "size-unknown"         // a statistics file that does not say how many samples it saw
	WarnUnknownIdentity = "identity-unknown"     // one side does not say who made it
	WarnForcedIdentity  = "identity-forced"      // identities differ and the caller insisted
	WarnConstant        = "constant-features"    // some features never change
	WarnSingular        = "singular"             // a covariance without full rank
	WarnNotConverged    = "not-converged"        // an iteration ended above its tolerance
	WarnOverlap         = "overlapping-draws"    // subsets overlap: the spread is not a standard error
	WarnSizes           = "sizes-not-comparable" // a score that needs equal sizes got others
)

func (r *Result) warn(name, format string, args ...any) {
	r.Warnings = append(r.Warnings, Warning{name, fmt.Sprintf(format, args...)})
}

// Warned tells whether the result carries the named warning.
func (r Result) Warned(name string) bool {
	return slices.ContainsFunc(r.Warnings, func(w Warning) bool { return w.Name == name })
}

// Identity names what turned images into features. Two sets are comparable
// only when their identities are equal.
type Identity struct {
	Extractor string // hash of the weights and the tap, e.g. "sha256:6726825d/pool3"
	Resize    string // resize and scale rule, e.g. "tf1-bilinear-299 (v-128)/128"
}

// With writes the identity and the number of samples in one line:
// "extractor=... resize=... n=...", "unknown" standing for what is empty or
// zero.
func (id Identity) With(n int) string {
	q := func(s string) string {
		if s == "" {
			return "unknown"
		}
		return strings.Join(strings.Fields(s), "_")
	}
	size := "unknown"
	if n > 0 {
		size = strconv.Itoa(n)
	}
	return fmt.Sprintf("extractor=%s resize=%s n=%s", q(id.Extractor), q(id.Resize), size)
}

// compareIdentity refuses or remarks on two identities. An empty field is
// unknown: that cannot be refused (the field's files carry no identity), so it
// is a warning.
func compareIdentity(r *Result, a, b Identity, force bool) error {
	unknown := false
	for _, f := range []struct{ what, a, b string }{{"extractor", a.Extractor, b.Extractor}, {"resize", a.Resize, b.Resize}} {
		switch {
		case f.a == "" || f.b == "":
			unknown = true
		case f.a != f.b && force:
			r.warn(WarnForcedIdentity, "%s differs: %q and %q", f.what, f.a, f.b)
		case f.a != f.b:
			return fmt.Errorf("metrics: %w: %s %q and %q (force to compare anyway)", ErrIdentity, f.what, f.a, f.b)
		}
	}
	if unknown {
		r.warn(WarnUnknownIdentity, "a set does not say which extractor and resize made it")
	}
	return nil
}

// Collector streams a Score: it keeps the generated samples (float32 while all
// batches are Matrix32, else float64) and compares them with Reference when
// asked.
type Collector struct {
	Score       Score
	Reference   Samples // nil for scores without one
	ReferenceID Identity
	ID          Identity // of the batches
	Force       bool     // compare although identities differ

	n, d int
	x32  []float32
	x64  []float64
}

// Add copies a batch. A batch with a NaN or another dimension is refused whole.
func (c *Collector) Add(batch Samples) error {
	n, d := batch.Dims()
	if n == 0 {
		return nil
	}
	if err := check("batch", batch, 1); err != nil {
		return err
	}
	if c.d == 0 {
		c.d = d
	}
	if d != c.d {
		return fmt.Errorf("metrics: batch: %w: %d, before it %d", ErrDims, d, c.d)
	}
	m32, ok := batch.(Matrix32)
	if ok && c.x64 == nil {
		c.x32 = append(c.x32, m32.X[:n*d]...)
	} else {
		for _, v := range c.x32 {
			c.x64 = append(c.x64, float64(v))
		}
		c.x32 = nil
		for i := range n {
			c.x64 = append(c.x64, make([]float64, d)...)
			batch.Row(c.x64[len(c.x64)-d:], i)
		}
	}
	c.n += n
	return nil
}

// Value compares all batches so far with the reference.
func (c *Collector) Value(ctx context.Context) (Result, error) {
	var gen Samples = Matrix32{c.n, c.d, c.x32}
	if c.x64 != nil {
		gen = Matrix{c.n, c.d, c.x64}
	}
	var ids Result
	if c.Reference != nil {
		if err := compareIdentity(&ids, c.ReferenceID, c.ID, c.Force); err != nil {
			return Result{}, err
		}
	}
	r, err := c.Score.Compare(ctx, c.Reference, gen)
	if err != nil {
		return Result{}, err
	}
	r.Identity = c.ID.With(c.n)
	r.Warnings = append(r.Warnings, ids.Warnings...)
	return r, nil
}
