//go:build !amd64 || noasm

package kernels

func peakRate(Tier) float64 { return 0 }
