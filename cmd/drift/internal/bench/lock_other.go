//go:build !unix

package bench

// lock does nothing on systems without file locks.
type lock struct{}

func lockDir(string) (*lock, error) { return &lock{}, nil }

func (*lock) release() {}
