package manifest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// MaxImages bounds the number of images of one run.
const MaxImages = 10_000_000

// ParseSeeds reads "0-49,60" into the list of seeds in the order given. A seed may not come twice.
func ParseSeeds(s string) ([]uint64, error) {
	var out []uint64
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		a, b, span := strings.Cut(part, "-")
		lo, err := strconv.ParseUint(strings.TrimSpace(a), 10, 64)
		hi := lo
		if err == nil && span {
			hi, err = strconv.ParseUint(strings.TrimSpace(b), 10, 64)
		}
		if err != nil || hi < lo {
			return nil, fmt.Errorf("seeds %q: %q is neither a seed nor a range like 0-49", s, part)
		}
		if hi-lo >= MaxImages || uint64(len(out))+hi-lo >= MaxImages {
			return nil, fmt.Errorf("seeds %q: more than %d images", s, MaxImages)
		}
		for k := lo; ; k++ {
			out = append(out, k)
			if k == hi {
				break
			}
		}
	}
	sorted := slices.Clone(out)
	slices.Sort(sorted)
	for i := 1; i < len(sorted); i++ {
		if sorted[i] == sorted[i-1] {
			return nil, fmt.Errorf("seeds %q: seed %d comes twice", s, sorted[i])
		}
	}
	return out, nil
}

// FormatSeeds is the inverse of ParseSeeds.
func FormatSeeds(seeds []uint64) string {
	var b strings.Builder
	for i := 0; i < len(seeds); {
		j := i
		for j+1 < len(seeds) && seeds[j+1] == seeds[j]+1 {
			j++
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.FormatUint(seeds[i], 10))
		if j > i {
			b.WriteString("-" + strconv.FormatUint(seeds[j], 10))
		}
		i = j + 1
	}
	return b.String()
}
