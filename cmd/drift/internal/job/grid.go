package job

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"

	"drift/cmd/drift/internal/manifest"
	"drift/internal/refuse"
	"drift/internal/spec"
	"drift/schedules"
)

// ReadSmall reads a text file of at most 16 MiB.
func ReadSmall(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	const most = 16 << 20
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && len(b) > most {
		err = refuse.Errorf(name, "more than %d bytes", most)
	}
	return b, err
}

// Scripts reads the files that guiders name: their text decides the result.
func Scripts(guiders []string) (out []manifest.Script, err error) {
	for _, g := range guiders {
		sp, err := spec.Parse(g)
		if err != nil {
			return nil, fmt.Errorf("guider %q: %w", g, err)
		}
		for _, a := range sp.Args {
			if a.Key != "file" {
				continue
			}
			text, err := ReadSmall(a.Value)
			if err != nil {
				return nil, err
			}
			out = append(out, manifest.Script{Name: filepath.Base(a.Value), Text: string(text)})
		}
	}
	return out, nil
}

// ParseGrid reads {"sigmas": [...]} or {"times": [...]}; a sigma may be "inf".
func ParseGrid(p schedules.Path, text []byte) (schedules.Grid, error) {
	var f struct {
		Sigmas []looseFloat `json:"sigmas"`
		Times  []looseFloat `json:"times"`
	}
	if err := json.Unmarshal(text, &f); err != nil {
		return nil, err
	}
	switch {
	case len(f.Sigmas) > 0 && len(f.Times) == 0:
		return schedules.FromRatios(p, floats(f.Sigmas))
	case len(f.Times) > 0 && len(f.Sigmas) == 0:
		return schedules.FromTimes(p, floats(f.Times))
	}
	return nil, fmt.Errorf(`want {"sigmas": [...]} or {"times": [...]}`)
}

type looseFloat float64

func (f *looseFloat) UnmarshalJSON(b []byte) error {
	var v float64
	if err := json.Unmarshal(b, &v); err == nil {
		*f = looseFloat(v)
		return nil
	}
	var s string
	if err := json.Unmarshal(b, &s); err != nil || s != "inf" {
		return fmt.Errorf("%s is not a number", b)
	}
	*f = looseFloat(math.Inf(1))
	return nil
}

func floats(v []looseFloat) []float64 {
	out := make([]float64, len(v))
	for i, x := range v {
		out[i] = float64(x)
	}
	return out
}
