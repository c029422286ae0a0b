package guidance

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"gorgonia.org/tensor"

	"drift/internal/kernels"
	"drift/internal/npz"
	"drift/internal/refuse"
	"drift/internal/script"
	"drift/internal/spec"
	"drift/models"
	"drift/models/zoo"
	"drift/schedules"
)

// embedded is the embedded classifier, opened once, when a script or an energy first asks for it.
var embedded = sync.OnceValues(func() (*zoo.Classifier, error) {
	return zoo.OpenClassifier(kernels.NewPool(kernels.Detect(), runtime.GOMAXPROCS(0)))
})

// Networks lists the networks that energies may ask: logp, prob and feat of scripts, and Network.
func Networks() []string { return []string{"fashion-classifier"} }

// classifierNet makes the embedded classifier a script.GradNet.
type classifierNet struct{ *zoo.Classifier }

func (c classifierNet) Labels() []string { return c.Classifier.Labels }
func (c classifierNet) Features() int    { return zoo.Features }

func (c classifierNet) Run(ctx context.Context, x []float64, features, logits []float64) error {
	if len(x)%(28*28) != 0 {
		return fmt.Errorf("fashion-classifier takes pictures of 1 x 28 x 28")
	}
	return c.Classifier.Run(ctx, x, features, logits)
}

func openNet(name string) (classifierNet, error) {
	if name != "fashion-classifier" && name != "fashion" {
		return classifierNet{}, fmt.Errorf("unknown network %q%s; known: %s", name, spec.Suggest(name, Networks()), strings.Join(Networks(), ", "))
	}
	c, err := embedded()
	return classifierNet{c}, err
}

// world is what a script in a folder reaches: the embedded networks, and arrays of .npz files in that folder or below it,
// read once. Nothing else.
func world(dir string) script.World {
	return script.World{
		Net: func(name string) (script.Net, error) { return openNet(name) },
		Load: func(file, member string) ([]float64, []int, error) {
			if !filepath.IsLocal(file) || !strings.EqualFold(filepath.Ext(file), ".npz") {
				return nil, nil, fmt.Errorf("load(%q): want a .npz file in the script's folder", file)
			}
			return loadArray(filepath.Join(dir, file), member)
		},
	}
}

func loadArray(path, member string) ([]float64, []int, error) {
	arrays, err := npz.ReadAll(path)
	if err != nil {
		return nil, nil, err
	}
	var names []string
	for name := range arrays {
		names = append(names, name)
	}
	slices.Sort(names)
	if member == "" {
		for _, name := range append([]string{"features", "x"}, names...) {
			if arrays[name] != nil {
				member = name
				break
			}
		}
	}
	a := arrays[member]
	if a == nil {
		return nil, nil, refuse.Errorf(path, "has no array %q; it has %s", member, strings.Join(names, ", "))
	}
	v, err := a.Float64()
	if err != nil {
		return nil, nil, refuse.Errorf(path, "%s: %v", member, err)
	}
	return v, a.Shape, nil
}

// Network is a ClassGradient of an embedded classifier. It knows clean data only: use it in a ClassEnergy, on the predicted
// data.
type Network struct {
	Name string // fashion-classifier
}

// LogProb implements ClassGradient.
func (n Network) LogProb(ctx context.Context, x *tensor.Dense, at []schedules.Node, classes []int, logp []float64, grad *tensor.Dense) error {
	c, err := openNet(n.Name)
	if err != nil {
		return fmt.Errorf("guidance: %w", err)
	}
	k := len(c.Labels())
	logits, cot := make([]float64, len(at)*k), make([]float64, len(at)*k)
	if err := c.Run(ctx, models.Data(x), nil, logits); err != nil {
		return fmt.Errorf("guidance: %w", err)
	}
	for i, class := range classes {
		logp[i] = 0
		if class == models.NoClass {
			continue
		}
		if class < 0 || class >= k {
			return fmt.Errorf("guidance: no class %d; %s has %d", class, n.Name, k)
		}
		row := logits[i*k : (i+1)*k]
		top, sum := slices.Max(row), 0.0
		for _, v := range row {
			sum += math.Exp(v - top)
		}
		l := top + math.Log(sum)
		logp[i] = row[class] - l
		for j, v := range row {
			cot[i*k+j] = -math.Exp(v - l)
		}
		cot[i*k+class]++
	}
	if grad == nil {
		return nil
	}
	return c.VJP(ctx, models.Data(x), nil, cot, models.Data(grad))
}
