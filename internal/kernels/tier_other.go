//go:build !amd64 || noasm

package kernels

func tierSupported(Tier) bool { return false }

func tierOps(Tier) *ops { return &portableOps }

func spinPause() {}

func gemmTiles(_ Tier, m int, g *gemmArgs) { gemmPortable(g, m, portableNR) }
