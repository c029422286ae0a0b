package output

import (
	"drift/models/dna/logo"
)

// writeLogos draws the logos of the sequences: of the motifs they hold, or position by position.
func (t *single) writeLogos() error {
	seqs := make([][]int, len(t.o.Items))
	for i := range seqs {
		for _, k := range t.image(i) {
			seqs[i] = append(seqs[i], int(k))
		}
	}
	m, err := logo.Sheet(seqs, t.o.Letters)
	if err != nil {
		return err
	}
	return writePNG(t.o.Path, m, t.o.texts(nil))
}
