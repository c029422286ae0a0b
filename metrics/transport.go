package metrics

import (
	"context"
	"fmt"
	"math"
)

// CostMatrix returns |x_i-y_j|^p, n x m, in float64. p is 1 or 2.
func CostMatrix(ctx context.Context, x, y Samples, p int) (Matrix, error) {
	if p != 1 && p != 2 {
		return Matrix{}, fmt.Errorf("metrics: cost |x-y|^%d is not offered", p)
	}
	if err := sameDims(x, y); err != nil {
		return Matrix{}, err
	}
	n, _ := x.Dims()
	m, _ := y.Dims()
	c := Matrix{n, m, make([]float64, n*m)}
	err := sqDists(ctx, x, y, false, func(i, j int, v []float64) {
		for k, d2 := range v {
			if p == 1 {
				d2 = math.Sqrt(d2)
			}
			c.X[i*m+j+k] = d2
		}
	})
	if err != nil {
		return c, fmt.Errorf("metrics: cost matrix: %w", err)
	}
	return c, nil
}

func checkCost(c Matrix) error {
	if c.N < 1 || c.D < 1 || len(c.X) != c.N*c.D {
		return fmt.Errorf("metrics: cost matrix: %w: %d x %d with %d entries", ErrDims, c.N, c.D, len(c.X))
	}
	if k := badEntry(c.X); k >= 0 {
		return fmt.Errorf("metrics: cost matrix: entry %d,%d: %w", k/c.D, k%c.D, ErrNaN)
	}
	return nil
}

// Assignment solves min Σ_i C[i, π(i)] over permutations π of a square cost
// matrix, by shortest augmenting paths (Jonker and Volgenant 1987; the dense
// form with potentials). It returns π and the sum. Time n³ at worst.
func Assignment(ctx context.Context, c Matrix) (perm []int, cost float64, err error) {
	perm, _, cost, err = assign(ctx, c)
	return perm, cost, err
}

// assign is Assignment, with the potentials of the rows.
func assign(ctx context.Context, c Matrix) (perm []int, rows []float64, cost float64, err error) {
	if err := checkCost(c); err != nil {
		return nil, nil, 0, err
	}
	if c.N != c.D {
		return nil, nil, 0, fmt.Errorf("metrics: assignment: %w: %d x %d is not square", ErrDims, c.N, c.D)
	}
	n := c.N
	u, v := make([]float64, n), make([]float64, n)
	owner := make([]int, n) // of column j
	for j := range owner {
		owner[j] = -1
	}
	short, from, done := make([]float64, n), make([]int, n), make([]bool, n)
	for start := range n {
		if err := ctx.Err(); err != nil {
			return nil, nil, 0, fmt.Errorf("metrics: assignment: %w", err)
		}
		for j := range n {
			short[j], done[j] = math.Inf(1), false
		}
		// Dijkstra over columns with reduced costs; row i enters at distance
		// dist through its own column.
		i, via, dist, end := start, -1, 0.0, -1
		for end < 0 {
			best, next := math.Inf(1), -1
			row := c.row(i)
			for j := range n {
				if done[j] {
					continue
				}
				if d := dist + row[j] - u[i] - v[j]; d < short[j] {
					short[j], from[j] = d, via
				}
				if short[j] < best {
					best, next = short[j], j
				}
			}
			dist = best
			done[next] = true
			if owner[next] < 0 {
				end = next
			} else {
				i, via = owner[next], next
			}
		}
		u[start] += dist
		for j := range n {
			if done[j] && j != end {
				u[owner[j]] += dist - short[j]
				v[j] -= dist - short[j]
			}
		}
		for j := end; j >= 0; {
			p := from[j]
			if p < 0 {
				owner[j] = start
			} else {
				owner[j] = owner[p]
			}
			j = p
		}
	}
	perm = make([]int, n)
	for j, i := range owner {
		perm[i] = j
	}
	for i, j := range perm {
		cost += c.At(i, j)
	}
	return perm, u, cost, nil
}

// Transport solves the transport problem
//
//	min Σ_ij P_ij C_ij  with  P ≥ 0, rows summing to a, columns to b
//
// exactly, by successive shortest paths. Weights are scaled to sum to one; nil
// means equal weights. For a square cost with equal weights Assignment is
// faster. Meant for up to about a thousand points.
func Transport(ctx context.Context, c Matrix, a, b []float64) (plan Matrix, cost float64, err error) {
	plan, _, cost, err = transport(ctx, c, a, b)
	return plan, cost, err
}

// transport is Transport, with the potentials of the rows.
func transport(ctx context.Context, c Matrix, a, b []float64) (plan Matrix, rows []float64, cost float64, err error) {
	if err := checkCost(c); err != nil {
		return Matrix{}, nil, 0, err
	}
	supply, err := shares("row weights", a, c.N)
	if err != nil {
		return Matrix{}, nil, 0, err
	}
	demand, err := shares("column weights", b, c.D)
	if err != nil {
		return Matrix{}, nil, 0, err
	}
	supply, demand = append([]float64(nil), supply...), append([]float64(nil), demand...)
	n, m := c.N, c.D
	plan = Matrix{n, m, make([]float64, n*m)}
	// Nodes 0..n-1 are rows, n..n+m-1 columns. pot keeps reduced costs
	// C - pot[row] ... non-negative along every usable arc.
	pot := make([]float64, n+m)
	for j := range m {
		low := math.Inf(1)
		for i := range n {
			low = min(low, c.At(i, j))
		}
		pot[n+j] = low
	}
	dist, from, done := make([]float64, n+m), make([]int, n+m), make([]bool, n+m)
	const dust = 1e-15 // of a total of one: rounding left over by the scaling
	for start := range n {
		for supply[start] > dust {
			if err := ctx.Err(); err != nil {
				return Matrix{}, nil, 0, fmt.Errorf("metrics: transport: %w", err)
			}
			for k := range dist {
				dist[k], done[k] = math.Inf(1), false
			}
			dist[start], from[start] = 0, -1
			end := -1
			for {
				k, best := -1, math.Inf(1)
				for q, d := range dist {
					if !done[q] && d < best {
						k, best = q, d
					}
				}
				if k < 0 {
					break
				}
				done[k] = true
				if k >= n && demand[k-n] > dust {
					end = k
					break
				}
				if k < n { // row: every column
					for j, cost := range c.row(k) {
						if d := best + max(0, cost+pot[k]-pot[n+j]); d < dist[n+j] {
							dist[n+j], from[n+j] = d, k
						}
					}
				} else { // column: back along the flow that uses it
					for i := range n {
						if plan.X[i*m+k-n] > 0 {
							if d := best + max(0, pot[k]-pot[i]-c.At(i, k-n)); d < dist[i] {
								dist[i], from[i] = d, k
							}
						}
					}
				}
			}
			if end < 0 { // demand is used up: what is left is rounding
				break
			}
			for k := range pot {
				if done[k] {
					pot[k] += dist[k] - dist[end]
				}
			}
			flow := min(supply[start], demand[end-n])
			for k := end; from[k] >= 0; k = from[k] {
				if k < n { // arc from column from[k] back to row k
					flow = min(flow, plan.X[k*m+from[k]-n])
				}
			}
			for k := end; from[k] >= 0; k = from[k] {
				if k < n {
					plan.X[k*m+from[k]-n] -= flow
				} else {
					plan.X[from[k]*m+k-n] += flow
				}
			}
			supply[start] -= flow
			demand[end-n] -= flow
		}
	}
	rows = make([]float64, n)
	for i := range rows {
		rows[i] = -pot[i]
	}
	for k, p := range plan.X {
		cost += p * c.X[k]
	}
	return plan, rows, cost, nil
}

// Wasserstein is the exact p-Wasserstein distance W_p between two small sets
// with Euclidean costs, (min Σ P |x-y|^p)^{1/p}: by Assignment for equal sizes
// (time n³, about 2000 points), else by Transport. Value is W_p; part "cost"
// is W_p^p. The error of Jackknifed is that of the dual potentials, whose mean over
// the rows W_p^p is, but for what it costs to solve again without every block (del
// Barrio and Loubes 2019). More than 8,192 points a side are refused: the costs of
// all pairs are held.
type Wasserstein struct {
	P int // 1 or 2; 2 if zero
}

// Compare implements Score.
func (s Wasserstein) Compare(ctx context.Context, reference, generated Samples) (Result, error) {
	r, _, err := s.without(ctx, reference, generated, 0)
	return r, err
}

func (s Wasserstein) without(ctx context.Context, reference, generated Samples, b int) (Result, []Result, error) {
	if s.P == 0 {
		s.P = 2
	}
	if err := checkPair(reference, generated, 2); err != nil {
		return Result{}, nil, err
	}
	if err := small(reference, generated); err != nil {
		return Result{}, nil, err
	}
	c, err := CostMatrix(ctx, generated, reference, s.P)
	if err != nil {
		return Result{}, nil, err
	}
	var potential []float64
	cost := 0.0
	if c.N == c.D {
		_, potential, cost, err = assign(ctx, c)
		cost /= float64(c.N)
	} else {
		_, potential, cost, err = transport(ctx, c, nil, nil)
	}
	if err != nil {
		return Result{}, nil, err
	}
	with := func(cost float64) Result {
		return Result{Value: math.Pow(max(cost, 0), 1/float64(s.P)), Parts: map[string]float64{"cost": cost}}
	}
	r := with(cost)
	r.Metric, r.N, r.NRef, r.Settings = fmt.Sprintf("w%d", s.P), c.N, c.D, "exact"
	_, r.D = generated.Dims()
	return r, linear(potential, b, func(change float64) Result { return with(cost + change) }), nil
}

// small refuses sets whose pairs are too many to hold.
func small(sets ...Samples) error {
	const most = 8192
	for _, s := range sets {
		if n, _ := s.Dims(); n > most {
			return fmt.Errorf("metrics: transport between %d points: at most %d are taken, thin the sets", n, most)
		}
	}
	return nil
}
