//go:build amd64 && !noasm

package kernels

func tierSupported(Tier) bool { return false }

func tierOps(Tier) *ops { return &portableOps }

// spinPause tells the processor that this is a waiting loop.
//
//go:noescape
func spinPause()
