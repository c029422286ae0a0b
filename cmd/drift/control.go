package main

import (
	"strings"

	"drift/cmd/drift/internal/job"
	"drift/guidance"
	"drift/internal/refuse"
	"drift/internal/script"
	"drift/models"
	"drift/schedules"
)

// openControl reads the script of --control.
func openControl(name string, print func(string)) (*script.Control, error) {
	text, err := job.ReadSmall(name)
	if err != nil {
		return nil, err
	}
	c, err := script.ParseControl(name, string(text))
	if err != nil {
		return nil, refuse.Errorf(name, "%s", strings.TrimPrefix(err.Error(), name+":"))
	}
	c.Print(print)
	return c, nil
}

// guideLive is guide with the scale of the first cfg guider in the caller's hands: live is what it is now. Without one
// there is nothing to set, and live is nil.
func guideLive(d, second models.Denoiser, specs []string, grid schedules.Grid, say tell) (out models.Denoiser, live *float64, err error) {
	for i, text := range specs {
		g, err := guidance.Parse(text)
		if err != nil {
			return nil, nil, err
		}
		c, ok := g.(guidance.CFG)
		if !ok {
			continue
		}
		if out, err = guide(d, second, specs[:i], grid, say); err != nil {
			return nil, nil, err
		}
		scale, set := c.Scale, c.W
		live, first := &set, c.W
		c.Scale = func(n schedules.Node, s models.Step) float64 {
			if scale != nil && *live == first { // nothing was set yet
				return scale(n, s)
			}
			return *live
		}
		out, err = guide(c.Guide(out), second, specs[i+1:], grid, say)
		return out, live, err
	}
	out, err = guide(d, second, specs, grid, say)
	return out, nil, err
}
