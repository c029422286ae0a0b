// Package nb keeps the cells of the notebooks short: rows of a batch, sheets of pictures, plots, and Show, which puts them
// below a cell. It has no mathematics.
//
// Show speaks GoNB's protocol itself, so that what notebooks import is this module alone.
package nb

import (
	"bytes"
	"encoding/gob"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"os"
	"sync"

	"github.com/soniakeys/quant/median"

	"drift/models"
)

// Must returns v, or ends the cell with the error.
func Must[T any](v T, err error) T {
	Check(err)
	return v
}

// Check ends the cell with the error, if there is one.
func Check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// Rows are n rows of a batch: one per seed, from the first on.
func Rows(first uint64, n int) []models.Row {
	rows := make([]models.Row, n)
	for i := range rows {
		rows[i].Seed = first + uint64(i)
	}
	return rows
}

// Show puts pictures (image.Image) and plots (*Figure) below the cell, side by side. Outside of a notebook it prints
// their sizes.
func Show(items ...any) {
	pictures := make([]image.Image, len(items))
	for i, item := range items {
		switch v := item.(type) {
		case image.Image:
			pictures[i] = v
		case *Figure:
			pictures[i] = v.Image()
		default:
			panic(fmt.Sprintf("nb: cannot show a %T", item))
		}
	}
	m := Beside(pictures...)
	data, err := Encode(m)
	Check(err)
	path, back := os.Getenv("GONB_PIPE"), os.Getenv("GONB_PIPE_BACK")
	if path == "" {
		fmt.Printf("(a picture, %d x %d)\n", m.Bounds().Dx(), m.Bounds().Dy())
		return
	}
	Check(display(path, back, displayData{Data: map[string]any{"image/png": data}}))
}

// Encode writes a small PNG: one channel where everything is grey, else a palette.
func Encode(m image.Image) ([]byte, error) {
	b := m.Bounds()
	grey := image.NewGray(image.Rect(0, 0, b.Dx(), b.Dy()))
	seen := map[color.RGBA]bool{}
	colourless := true
	for y := range b.Dy() {
		for x := range b.Dx() {
			c := color.RGBAModel.Convert(m.At(b.Min.X+x, b.Min.Y+y)).(color.RGBA)
			colourless = colourless && c.R == c.G && c.G == c.B && c.A == 255
			grey.SetGray(x, y, color.Gray{Y: c.R})
			if len(seen) <= 256 {
				seen[c] = true
			}
		}
	}
	var out image.Image = grey
	if !colourless {
		palette := color.Palette{}
		if len(seen) <= 256 {
			p := image.NewPaletted(grey.Rect, nil)
			at := map[color.RGBA]uint8{}
			for y := range b.Dy() {
				for x := range b.Dx() {
					c := color.RGBAModel.Convert(m.At(b.Min.X+x, b.Min.Y+y)).(color.RGBA)
					if _, ok := at[c]; !ok {
						at[c] = uint8(len(palette))
						palette = append(palette, c)
					}
					p.SetColorIndex(x, y, at[c])
				}
			}
			p.Palette = palette
			out = p
		} else {
			out = median.Quantizer(96).Paletted(m)
		}
	}
	var buf bytes.Buffer
	err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&buf, out)
	return buf.Bytes(), err
}

// What a program under GoNB writes into its pipe: values of these two types, by gob. A request for a sync is answered
// in the other pipe once everything before it was shown, and a program may end only then.
type (
	displayData struct {
		Data      map[string]any
		Metadata  map[string]any
		DisplayID string
	}
	commValue struct {
		Address string
		Request bool
		Value   any
	}
)

var pipes struct {
	sync.Mutex
	to   *gob.Encoder
	from *gob.Decoder
	n    int
}

func init() {
	gob.RegisterName("github.com/janpfeifer/gonb/gonbui/protocol.CommValue", commValue{})
}

func display(path, back string, d displayData) error {
	pipes.Lock()
	defer pipes.Unlock()
	if pipes.to == nil { // the pipes stay open until the program ends
		w, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return fmt.Errorf("nb: opening the pipe to the notebook: %w", err)
		}
		r, err := os.OpenFile(back, os.O_RDONLY, 0)
		if err != nil {
			return errors.Join(fmt.Errorf("nb: opening the pipe from the notebook: %w", err), w.Close())
		}
		pipes.to, pipes.from = gob.NewEncoder(w), gob.NewDecoder(r)
	}
	pipes.n++
	for _, m := range []displayData{d, {Data: map[string]any{"gonb/comm_value": commValue{Address: "#gonbui/sync", Value: pipes.n}}}} {
		if err := pipes.to.Encode(m); err != nil {
			return fmt.Errorf("nb: writing to the notebook: %w", err)
		}
	}
	for {
		var answer commValue
		if err := pipes.from.Decode(&answer); err != nil {
			return fmt.Errorf("nb: waiting for the notebook: %w", err)
		}
		if answer.Address == "#gonbui/sync_ack" && answer.Value == pipes.n {
			return nil
		}
	}
}
