package analytic

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"

	"drift/internal/npz"
	"drift/models"
	"drift/schedules"
)

// targetFiles are all targets of the fixtures where DRIFT_FIXTURES is set, else the copies here.
func targetFiles(t testing.TB) []string {
	t.Helper()
	dir := filepath.Join("testdata", "targets")
	if root := os.Getenv("DRIFT_FIXTURES"); root != "" {
		dir = filepath.Join(root, "solvers", "targets")
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 20 {
		t.Fatalf("only %d targets in %s", len(files), dir)
	}
	return files
}

func openFile(t testing.TB, path string) *Mixture {
	t.Helper()
	m, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func target(t testing.TB, name string) *Mixture {
	t.Helper()
	return openFile(t, filepath.Join("testdata", "targets", name+".json"))
}

// predicting is m with another prediction.
func predicting(t testing.TB, m *Mixture, kind schedules.Kind) *Mixture {
	t.Helper()
	d := m.Target()
	d.Prediction = kind
	out, err := New(d)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// gap is the distance of two rows relative to the larger of 1e-3 and the row's largest number. (A component of a row may
// pass through zero, where its own relative error means nothing.)
func gap(got, want []float64) float64 {
	scale, worst := 1e-3, 0.0
	for i, w := range want {
		scale = max(scale, math.Abs(w))
		d := math.Abs(got[i] - w)
		if math.IsNaN(d) {
			return math.Inf(1)
		}
		worst = max(worst, d)
	}
	return worst / scale
}

// TestGoldens compares every quantity of every target, class by class, with values computed elsewhere.
func TestGoldens(t *testing.T) {
	worst, where := 0.0, ""
	for _, file := range targetFiles(t) {
		m := openFile(t, file)
		arrays, err := npz.ReadAll(file[:len(file)-len(".json")] + ".check.npz")
		if err != nil {
			t.Fatal(err)
		}
		get := func(name string) []float64 {
			a, ok := arrays[name]
			if !ok {
				return nil
			}
			v, err := a.Float64()
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		x, times, alpha, sigma := get("x"), get("t"), get("alpha"), get("sigma")
		if len(times) == 0 || len(x) != len(times)*m.Dim() {
			t.Fatalf("%s: %d numbers at %d times", file, len(x), len(times))
		}
		nodes := make([]schedules.Node, len(times))
		for i, at := range times {
			nodes[i] = schedules.Node{T: at, Alpha: alpha[i], Sigma: sigma[i]}
			own := m.target.Process.At(at)
			if gap([]float64{own.Alpha, own.Sigma}, []float64{alpha[i], sigma[i]}) > 1e-12 {
				t.Errorf("%s: node at t=%g: %v, want %v", file, at, own, nodes[i])
			}
		}
		kinds := []schedules.Kind{schedules.Eps, schedules.X0, schedules.V, schedules.Velocity, schedules.Score}
		for class := models.NoClass; class < m.Classes(); class++ {
			tag := ""
			if class >= 0 {
				tag = fmt.Sprintf("_class%d", class)
			}
			note := func(name string, i int, g, tol float64) {
				if g > worst {
					worst, where = g, fmt.Sprintf("%s %s%s row %d", filepath.Base(file), name, tag, i)
				}
				if g > tol {
					t.Errorf("%s %s%s row %d (%v): off by %.2g relative", filepath.Base(file), name, tag, i, nodes[i], g)
				}
			}
			logP := get("logp" + tag)
			if len(logP) != len(nodes) {
				t.Fatalf("%s has %d logp%s", file, len(logP), tag)
			}
			for i, n := range nodes {
				got, err := m.LogP(x[i*m.dim:][:m.dim], n, class)
				if err != nil {
					t.Fatal(err)
				}
				note("logp", i, gap([]float64{got}, logP[i:i+1]), 1e-12)
			}
			for _, kind := range kinds {
				want := get(kind.String() + tag)
				if want == nil {
					if _, discrete := m.target.Process.(*schedules.VPDiscrete); kind == schedules.Velocity && discrete {
						continue
					}
					t.Fatalf("%s has no %v%s", file, kind, tag)
				}
				// The whole batch through Predict, each row at its own node.
				one := predicting(t, m, kind)
				q := &models.Query{X: models.Wrap(x, len(nodes), m.dim), At: nodes}
				if class >= 0 {
					q.Cond = &models.Cond{}
					for range nodes {
						q.Cond.Classes = append(q.Cond.Classes, class)
					}
				}
				var p models.Pred
				if err := one.Predict(context.Background(), q, &p); err != nil {
					t.Fatal(err)
				}
				if p.Kind != kind {
					t.Fatalf("Predict answered %v, want %v", p.Kind, kind)
				}
				for i := range nodes {
					lo, hi := i*m.dim, (i+1)*m.dim
					note(kind.String(), i, gap(models.Data(p.Out)[lo:hi], want[lo:hi]), 1e-11)
				}
			}
		}
	}
	t.Logf("largest gap %.2g at %s", worst, where)
}
