package search

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"drift/models"
	"drift/samplers"
)

// TestStudents: what S4S may start from ends where the samplers of those names do, with first order in the last step.
func TestStudents(t *testing.T) {
	ctx := context.Background()
	for process, kind := range map[string]string{`{"type":"flow"}`: "velocity", `{"type":"vp-linear"}`: "eps", `{"type":"edm"}`: "x0"} {
		dist, space := plane(t, process, kind)
		space.Steps, space.Noise = 6, true
		names, all, err := space.students()
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for i, name := range names {
			method, grid, _ := strings.Cut(name, " on ")
			seen[method+" "+grid] = true
			schedule, err := space.multistep(all[i])
			if err != nil {
				t.Fatal(err)
			}
			ends := func(s samplers.Sampler) []float64 {
				p := dist.Problem
				if p.Grid, err = (samplers.USF{Schedule: schedule}).Grid(space.Process); err != nil {
					t.Fatal(err)
				}
				res, err := samplers.Sample(ctx, s, &p)
				if err != nil {
					t.Fatal(name, err)
				}
				return slices.Clone(models.Data(res.X))
			}
			if strings.HasPrefix(method, "dpmpp") {
				method += ":lower-order-final=false,euler-at-final=true"
			}
			named, err := samplers.Parse(method)
			if err != nil {
				t.Fatal(err)
			}
			want, have := ends(named), ends(samplers.USF{Schedule: schedule})
			for k, v := range want {
				if d := have[k] - v; max(d, -d) > 1e-8 {
					t.Errorf("%s on %s: number %d is %.12g, of the sampler %.12g", name, process, k, have[k], v)
					break
				}
			}
			if again, err := space.Known(names[i][:strings.Index(names[i], " on ")], grid); err != nil || !slices.Equal(again.Times, schedule.Times) || again.Steps[2].Noise != schedule.Steps[2].Noise {
				t.Errorf("%s: known as %+v %v", name, again, err)
			}
			read, err := space.parameters(schedule)
			if err != nil || !slices.Equal(read.noise, all[i].noise) {
				t.Errorf("%s read again: %v, noise %v, want %v", name, err, read.noise, all[i].noise)
			}
		}
		if _, err := space.Known("heun", "time"); !errors.Is(err, ErrStart) {
			t.Errorf("heun is known: %v", err)
		}
		if len(seen) != 16 {
			t.Errorf("students: %v", slices.Sorted(maps.Keys(seen)))
		}
	}
}
