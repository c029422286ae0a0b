package samplers

import (
	"drift/models"
)

// Purpose separates the draws of one step.
type Purpose uint32

// The purposes of draws. Their numbers are part of the streams: never renumber them.
const (
	DrawStart   Purpose = iota // start of the run
	DrawStep                   // the noise of a step
	DrawStage                  // the second draw of a step with an inner node
	DrawChurn                  // noise put in before a step
	DrawForward                // forward noise of a rising hop
)

// Draw says what a row of noise is for. From and To are the ratios sigma/alpha of the interval it belongs to (a
// Brownian path needs them); Slot is the row's place in the batch, which only recorded noise looks at.
type Draw struct {
	Row      models.Row
	Slot     int
	Step     int // -1 for the start
	Purpose  Purpose
	From, To float64
}

// Noise is where a run gets its unit normals: dst is one row, and what it gets depends on the Draw alone.
type Noise interface {
	Normal(dst []float64, d Draw)
}
