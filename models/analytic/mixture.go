// Package analytic brings targets about which everything is known: mixtures of Gaussians. Noise added to a mixture
// leaves a mixture, so the density, the score, every kind of prediction, their Jacobians and the class posterior have
// closed forms at every noise level, and solvers, guidance and steering can be checked against them.
//
// With data x0 ~ sum_k w_k N(m_k, C_k) and x = a x0 + s eps at a node (a, s) of a process,
//
//	V_k = a^2 C_k + s^2 I        covariance of component k
//	r_k ∝ w_k N(x; a m_k, V_k)   posterior of component k, by log-sum-exp
//	e_k = V_k^-1 (x - a m_k)
//
//	log p   = log sum_k w_k N(x; a m_k, V_k)
//	score   = -sum_k r_k e_k
//	eps     = sum_k r_k s e_k
//	x0      = sum_k r_k (m_k + a C_k e_k)
//	v       = a eps - s x0
//	velocity = a' x0 + s' eps,  a' and s' the process's rates
//
// (Bayes' rule for a Gaussian seen through Gaussian noise, and the conversions of package schedules.) Each C_k is diagonalised once, so V_k is at hand at every node, and each prediction is evaluated as one linear map
// along the principal axes, never as a difference of two others. That keeps float64 accuracy at both ends: at s = 0
// the answers are the limits x0 = x/a, eps = 0 and the data's own score, at a = 0 they are x0 = the mean of the
// mixture and eps = x/s.
package analytic

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync"

	"gonum.org/v1/gonum/mat"

	"drift/models"
	"drift/schedules"
)

// Target describes a mixture.
type Target struct {
	// Weights are positive and sum to 1; a sum off by at most 1e-6 is taken for rounding and divided out, any other is
	// an error.
	Weights []float64
	Means   [][]float64 // one per component, all of the same length
	// Vars are diagonal covariances, one variance per dimension; Covs are full ones. Exactly one of the two is given.
	Vars [][]float64
	Covs [][][]float64
	// Labels says which class each component answers to, nil when there are no classes. The classes are 0, 1, ...
	// without a gap; several components may share one.
	Labels     []int
	Process    schedules.Gaussian
	Prediction schedules.Kind // what Mixture.Predict answers
}

// The magnitudes that keep every square and product inside float64, and the largest full covariance.
const (
	mostMean    = 1e100
	leastVar    = 1e-100
	mostVar     = 1e100
	weightSlack = 1e-6
	mostFullDim = 1024
)

// Mixture is a target made ready. It is a models.Denoiser, models.VJP and models.Described; its methods may be called
// from several goroutines.
type Mixture struct {
	target  Target
	dim     int
	logW    []float64   // log weight of each component
	vars    [][]float64 // of each component, along its axes
	axes    [][]float64 // row-major D x D, column j is axis j; nil where the axes are the coordinates
	all     []int       // 0, 1, ... K-1
	members [][]int     // the components of each class
	logC    []float64   // log weight of each class
	vp      bool        // a^2 + s^2 = 1 all along the process
	name    string      // the file
	text    []byte      // canonical JSON, nil if the process cannot be written down
	textErr error       // why
	works   sync.Pool   // *work
}

var (
	_ models.Denoiser  = (*Mixture)(nil)
	_ models.VJP       = (*Mixture)(nil)
	_ models.Described = (*Mixture)(nil)
)

// New checks t and makes it ready. The mixture keeps t's slices: they must not change afterwards. Errors: weights that
// are not positive or do not sum to 1, lengths that disagree, covariances that are not symmetric and positive definite
// (an eigenvalue below rounding, D 2^-52 of the largest, counts as zero), NaN and magnitudes beyond 1e100, variances
// below 1e-100, classes with a gap, no process.
func New(t Target) (*Mixture, error) {
	m, err := newMixture(t)
	if err != nil {
		return nil, fmt.Errorf("analytic: %w", err)
	}
	return m, nil
}

func newMixture(t Target) (*Mixture, error) {
	if err := t.checkForm(); err != nil {
		return nil, err
	}
	m := &Mixture{target: t, dim: len(t.Means[0])}
	sum := 0.0
	for _, w := range t.Weights {
		sum += w
	}
	if !(math.Abs(sum-1) <= weightSlack) {
		return nil, fmt.Errorf("weights sum to %.9g; want 1", sum)
	}
	for k, w := range t.Weights {
		m.logW = append(m.logW, math.Log(w/sum))
		m.all = append(m.all, k)
	}
	if err := m.diagonalise(); err != nil {
		return nil, err
	}
	if err := m.classify(); err != nil {
		return nil, err
	}
	noise, data := t.Process.Ends()
	mid := t.Process.At(noise + (data-noise)/2)
	m.vp = math.Abs(mid.Alpha*mid.Alpha+mid.Sigma*mid.Sigma-1) < 1e-9
	m.text, m.textErr = t.marshal()
	m.works.New = func() any { return newWork(len(m.all), m.dim) }
	return m, nil
}

// checkForm refuses lengths that disagree and numbers out of range.
func (t *Target) checkForm() error {
	n := len(t.Weights)
	if n == 0 {
		return fmt.Errorf("weights: there is no component")
	}
	for k, w := range t.Weights {
		if !(w > 0 && w <= 1+weightSlack) {
			return fmt.Errorf("weights[%d] is %g; want a positive number, at most 1", k, w)
		}
	}
	if len(t.Means) != n {
		return fmt.Errorf("%d weights but %d means", n, len(t.Means))
	}
	dim := len(t.Means[0])
	if dim == 0 {
		return fmt.Errorf("means[0] is empty")
	}
	for k, mean := range t.Means {
		if len(mean) != dim {
			return fmt.Errorf("means[%d] has %d numbers, means[0] has %d", k, len(mean), dim)
		}
		for i, v := range mean {
			if !(math.Abs(v) <= mostMean) {
				return fmt.Errorf("means[%d][%d] is %g; want a number within %g", k, i, v, mostMean)
			}
		}
	}
	switch {
	case t.Vars != nil && t.Covs != nil:
		return fmt.Errorf("vars and covs are both given; want one of them")
	case t.Vars == nil && t.Covs == nil:
		return fmt.Errorf("neither vars nor covs are given")
	case t.Vars != nil:
		if len(t.Vars) != n {
			return fmt.Errorf("%d weights but %d vars", n, len(t.Vars))
		}
		for k, vars := range t.Vars {
			if len(vars) != dim {
				return fmt.Errorf("vars[%d] has %d numbers, the means have %d", k, len(vars), dim)
			}
			for i, v := range vars {
				if !(v >= leastVar && v <= mostVar) {
					return fmt.Errorf("vars[%d][%d] is %g; want a number from %g to %g", k, i, v, leastVar, mostVar)
				}
			}
		}
	default:
		if len(t.Covs) != n {
			return fmt.Errorf("%d weights but %d covs", n, len(t.Covs))
		}
		if dim > mostFullDim {
			return fmt.Errorf("covs of %d dimensions; want at most %d, or vars", dim, mostFullDim)
		}
		for k, cov := range t.Covs {
			if err := checkCov(cov, dim); err != nil {
				return fmt.Errorf("covs[%d]%w", k, err)
			}
		}
	}
	if t.Labels != nil && len(t.Labels) != n {
		return fmt.Errorf("%d weights but %d labels", n, len(t.Labels))
	}
	if t.Process == nil {
		return fmt.Errorf("there is no process")
	}
	if t.Prediction < schedules.Eps || t.Prediction > schedules.Score {
		return fmt.Errorf("unknown prediction %v", t.Prediction)
	}
	return nil
}

func checkCov(cov [][]float64, dim int) error {
	if len(cov) != dim {
		return fmt.Errorf(" has %d rows, the means have %d numbers", len(cov), dim)
	}
	for i, row := range cov {
		if len(row) != dim {
			return fmt.Errorf("[%d] has %d numbers, the means have %d", i, len(row), dim)
		}
		for j, v := range row {
			if !(math.Abs(v) <= mostVar) {
				return fmt.Errorf("[%d][%d] is %g; want a number within %g", i, j, v, mostVar)
			}
		}
		if !(row[i] >= leastVar) {
			return fmt.Errorf("[%d][%d] is %g; a variance is at least %g", i, i, row[i], leastVar)
		}
	}
	for i, row := range cov {
		for j := range i {
			slack := 1e-9 * math.Sqrt(cov[i][i]*cov[j][j])
			if math.Abs(row[j]-cov[j][i]) > slack {
				return fmt.Errorf(" is not symmetric: [%d][%d] is %g, [%d][%d] is %g", i, j, row[j], j, i, cov[j][i])
			}
		}
	}
	return nil
}

// diagonalise finds the variances of every component and the axes that they belong to.
func (m *Mixture) diagonalise() error {
	m.axes = make([][]float64, len(m.all))
	if m.target.Vars != nil {
		m.vars = m.target.Vars
		return nil
	}
	for k, cov := range m.target.Covs {
		vars := make([]float64, m.dim)
		sym, diagonal := mat.NewSymDense(m.dim, nil), true
		for i, row := range cov {
			vars[i] = row[i]
			for j := range i + 1 {
				c := row[j]/2 + cov[j][i]/2
				sym.SetSym(i, j, c)
				diagonal = diagonal && (c == 0 || i == j)
			}
		}
		if !diagonal {
			var eig mat.EigenSym
			if !eig.Factorize(sym, true) {
				return fmt.Errorf("covs[%d]: its eigenvalues could not be found", k)
			}
			eig.Values(vars)
			if least, most := vars[0], vars[m.dim-1]; !(least > float64(m.dim)*0x1p-52*most) || least < leastVar {
				return fmt.Errorf("covs[%d] is not positive definite: its eigenvalues go from %g to %g", k, least, most)
			}
			var q mat.Dense
			eig.VectorsTo(&q)
			m.axes[k] = q.RawMatrix().Data
		}
		m.vars = append(m.vars, vars)
	}
	return nil
}

// classify collects the components of every class.
func (m *Mixture) classify() error {
	classes := 0
	for k, c := range m.target.Labels {
		if c < 0 || c >= len(m.all) {
			return fmt.Errorf("labels[%d] is %d; classes are 0, 1, ... without a gap, at most one per component", k, c)
		}
		classes = max(classes, c+1)
	}
	m.members = make([][]int, classes)
	for k, c := range m.target.Labels {
		m.members[c] = append(m.members[c], k)
	}
	for c, members := range m.members {
		if len(members) == 0 {
			return fmt.Errorf("labels: no component has class %d; classes are 0, 1, ... without a gap", c)
		}
		sum := 0.0
		for _, k := range members {
			sum += math.Exp(m.logW[k])
		}
		m.logC = append(m.logC, math.Log(sum))
	}
	return nil
}

// of returns the components of a class and the log of their weight.
func (m *Mixture) of(class int) (members []int, logWeight float64, err error) {
	switch {
	case class == models.NoClass:
		return m.all, 0, nil
	case len(m.members) == 0:
		return nil, 0, fmt.Errorf("class %d: the target has no classes", class)
	case class < 0 || class >= len(m.members):
		return nil, 0, fmt.Errorf("unknown class %d; the target has 0 to %d", class, len(m.members)-1)
	}
	return m.members[class], m.logC[class], nil
}

// Dim returns the number of dimensions D of one row.
func (m *Mixture) Dim() int { return m.dim }

// Classes returns the number of classes, 0 when the components have no labels.
func (m *Mixture) Classes() int { return len(m.members) }

// Target returns the description that the mixture was made from. Its slices are the mixture's own: do not change them.
func (m *Mixture) Target() Target { return m.target }

// Process returns the noise process.
func (m *Mixture) Process() schedules.Process { return m.target.Process }

// Info describes the target: shape (D), the classes with their numbers as names, float64, the SHA-256 of JSON (empty
// where the process cannot be written down), and as name the path given to Open.
func (m *Mixture) Info() models.Info {
	out := models.Info{Name: m.name, Shape: []int{m.dim}, Classes: len(m.members), DType: "f64"}
	for c := range m.members {
		out.Labels = append(out.Labels, strconv.Itoa(c))
	}
	if m.textErr == nil {
		sum := sha256.Sum256(m.text)
		out.Hash = hex.EncodeToString(sum[:])
	}
	out.Params = int64(len(m.all)) * int64(1+m.dim)
	for _, v := range m.target.Vars {
		out.Params += int64(len(v))
	}
	for range m.target.Covs {
		out.Params += int64(m.dim * m.dim)
	}
	return out
}

// JSON returns the canonical text of the target, which Parse reads: fixed order of keys, every parameter of the process
// spelled out, shortest digits that give the same float64. Equal targets have equal text however their files were
// written. It fails where the process has no written form.
func (m *Mixture) JSON() ([]byte, error) { return slices.Clone(m.text), m.textErr }

func (t *Target) marshal() ([]byte, error) {
	process, err := schedules.MarshalProcess(t.Process)
	if err != nil {
		return nil, fmt.Errorf("analytic: %w", err)
	}
	text, err := json.Marshal(struct {
		Type       string          `json:"type"`
		Weights    []float64       `json:"weights"`
		Means      [][]float64     `json:"means"`
		Vars       [][]float64     `json:"vars,omitempty"`
		Covs       [][][]float64   `json:"covs,omitempty"`
		Labels     []int           `json:"labels,omitempty"`
		Process    json.RawMessage `json:"process"`
		Prediction string          `json:"prediction"`
	}{"mixture", t.Weights, t.Means, t.Vars, t.Covs, t.Labels, process, t.Prediction.String()})
	if err != nil {
		return nil, fmt.Errorf("analytic: writing the target: %w", err)
	}
	return text, nil
}
