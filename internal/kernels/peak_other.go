//go:build !amd64 || noasm

package kernels

// PeakRate measures the register-only multiply-add rate of one core on a tier
// in GFLOP/s. It is 0 here: there is no such loop in portable Go.
func PeakRate(Tier, DType) float64 { return 0 }
