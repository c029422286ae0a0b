//go:build !amd64 || noasm

package kernels

func tierSupported(Tier) bool { return false }

func tierOps(Tier) *ops { return &portableOps }

func spinPause() {}

func fewOps() *ops { return &portableOps }

func bf16Ops(Tier) *ops { return &portableOps }

func pairOps() *ops { return &portableOps }

func gemmTiles(t Tier, m int, g *gemmArgs) {
	if t == twinBF16 {
		gemmPairsGo(g, m, 32)
		return
	}
	gemmPortable(g, m, portableNR)
}

func amxTiles(_ Tier, g *amxArgs) { gemmAMXGo(g) }
