package samplers

import (
	"math"

	"drift/models"
	"drift/schedules"
)

// Simplex is a product of simplices: rows of positions of K numbers each, x >= 0 and SUM x = 1 at every position. It is
// the space of a schedules.Field.
type Simplex struct{ K int }

// Prior implements Space: every position is uniform on the simplex, Dir(1, ..., 1), whatever the node. Position by
// position x_k = E_k/SUM_j E_j with exponentials E_k = (z_k^2 + z'_k^2)/2 of unit normals, z being the first half of the
// row's start noise and z' the second. Without noise (Zero) it is the centre.
func (s Simplex) Prior(dst []float64, n schedules.Node, slot int, row models.Row, noise Noise) {
	z := make([]float64, 2*len(dst))
	noise.Normal(z, Draw{Row: row, Slot: slot, Step: -1, Purpose: DrawStart, From: math.Inf(1), To: n.Ratio()})
	for k := range dst {
		dst[k] = (z[k]*z[k] + z[len(dst)+k]*z[len(dst)+k]) / 2
	}
	for at := 0; at < len(dst); at += s.K {
		x, sum := dst[at:at+s.K], 0.0
		for _, v := range x {
			sum += v
		}
		for k := range x {
			if sum == 0 {
				x[k] = 1 / float64(s.K)
			} else {
				x[k] /= sum
			}
		}
	}
}

// Project implements Space: every position goes to the nearest point of its simplex.
func (s Simplex) Project(x []float64) {
	for at := 0; at < len(x); at += s.K {
		schedules.ProjectSimplex(x[at : at+s.K])
	}
}
