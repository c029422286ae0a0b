package ort

import (
	"embed"
	"path"
	"sync"
)

// Sidecars of published networks that have none, found by the hash in them.
//
//go:embed known/*.drift.json
var knownFiles embed.FS

var knownSidecars = sync.OnceValue(func() map[string]*Sidecar {
	out := map[string]*Sidecar{}
	list, err := knownFiles.ReadDir("known")
	if err != nil {
		panic(err) // embedded
	}
	for _, e := range list {
		text, err := knownFiles.ReadFile(path.Join("known", e.Name()))
		if err != nil {
			panic(err)
		}
		s, err := ParseSidecar(e.Name(), text)
		if err != nil {
			panic(err) // a test reads them all
		}
		out[s.SHA256] = s
	}
	return out
})

// known is the sidecar that drift carries for a network, nil for most.
func known(hash string) *Sidecar { return knownSidecars()[hash] }
