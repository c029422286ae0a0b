package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/manifest"
	"drift/cmd/drift/internal/output"
	"drift/internal/npz"
	"drift/internal/pixels"
	"drift/internal/refuse"
	"drift/internal/spec"
	"drift/models"
)

func (s *sampling) resolveSeeds(_ context.Context, base *manifest.Run) error {
	if s.c.IsSet("batch") && s.c.Int("batch") < 1 {
		return usagef("--batch %d: want 1 or more", s.c.Int("batch"))
	}
	count := s.c.Int("count")
	if s.c.IsSet("count") && (count < 1 || count > manifest.MaxImages) {
		return usagef("--count %d: want 1 to %d", count, manifest.MaxImages)
	}
	switch {
	case s.c.IsSet("seeds"):
		seeds, err := manifest.ParseSeeds(s.c.String("seeds"))
		if err != nil {
			return badUse("seeds", err)
		}
		s.seeds = seeds
	case base != nil && !s.c.IsSet("seed") && !s.c.IsSet("count"):
		seeds, err := manifest.ParseSeeds(base.Seeds)
		if err != nil {
			return refuse.Errorf("the earlier run", "%v", err)
		}
		s.seeds, s.plan.Offset = seeds, base.Offset
	default:
		first := s.c.Uint64("seed")
		if base != nil && !s.c.IsSet("seed") {
			old, err := manifest.ParseSeeds(base.Seeds)
			if err != nil {
				return refuse.Errorf("the earlier run", "%v", err)
			}
			first = old[0]
		}
		if count == 0 {
			n, err := s.defaultCount(base)
			if err != nil {
				return err
			}
			count = n
		}
		if first > math.MaxUint64-uint64(count-1) {
			return usagef("--seed %d: %d images need streams beyond the last", first, count)
		}
		for k := range count {
			s.seeds = append(s.seeds, first+uint64(k))
		}
	}
	s.desc.Seeds, s.desc.Offset = manifest.FormatSeeds(s.seeds), s.plan.Offset
	return nil
}

// defaultCount is the number of images when nothing says it: the rows of --init, the cells of a sheet, 1 with a seed.
func (s *sampling) defaultCount(base *manifest.Run) (int, error) {
	if name := s.c.String("init"); s.c.IsSet("init") {
		a, err := npz.Read(name)
		if err != nil {
			return 0, err
		}
		defer a.Close()
		if x, ok := a.Info("x"); ok && len(x.Shape) > 0 && x.Shape[0] > 0 {
			return x.Shape[0], nil
		}
		return 0, refuse.Errorf(name, "has no array x with rows")
	}
	if s.c.IsSet("sheet") {
		cols, rows, err := parseSheet(s.c.String("sheet"))
		return cols * rows, err
	}
	kind := "png"
	if s.c.IsSet("out") {
		kind = output.Kind(s.c.String("out"))
	}
	if s.info.Text || s.info.Picture != nil {
		return 1, nil
	}
	if kind == "png" && !s.c.IsSet("seed") && base == nil && pixels.Picture(s.info.Shape) {
		return 64, nil
	}
	if kind == "folder" {
		return 16, nil
	}
	return 1, nil
}

func parseSheet(v string) (cols, rows int, err error) {
	a, b, ok := strings.Cut(strings.ToLower(v), "x")
	cols, e1 := strconv.Atoi(a)
	rows, e2 := strconv.Atoi(b)
	if !ok || e1 != nil || e2 != nil || cols < 1 || rows < 1 || cols > 1000 || rows > 1000 {
		return 0, 0, usagef("--sheet %s: want columns x rows, such as 8x8", v)
	}
	return cols, rows, nil
}

// resolveSets finds the condition of every image.
func (s *sampling) resolveSets(_ context.Context, base *manifest.Run) error {
	var sets []manifest.Set
	switch {
	case s.c.IsSet("prompts"):
		lines, err := readLines(s.c.String("prompts"))
		if err != nil {
			return err
		}
		for i, line := range lines {
			set, err := s.set(line)
			if err != nil {
				return usagef("--prompts: line %d of %s: %w", i+1, s.c.String("prompts"), err)
			}
			sets = append(sets, set)
		}
	case s.c.IsSet("class"), s.c.IsSet("classes"):
		var set manifest.Set
		flag := "class"
		if s.c.IsSet("classes") {
			flag = "classes"
		}
		for part := range strings.SplitSeq(s.c.String(flag), ",") {
			if s.info.Text && s.bare && part == "none" { // no text either
				break
			}
			k, err := s.class(part)
			if err != nil {
				return badUse(flag, err)
			}
			set.Classes = append(set.Classes, k)
		}
		if flag == "class" && len(set.Classes) > 1 {
			return usagef("--class takes one class; --classes takes a list")
		}
		sets = append(sets, set)
	case s.c.IsSet("prompt"):
		set, err := s.set(s.c.String("prompt"))
		if err != nil {
			return badUse("prompt", err)
		}
		sets = append(sets, set)
	case base != nil && !(s.c.IsSet("model") && base.Model.Hash != s.info.Hash):
		sets = base.Sets
	default:
		var set manifest.Set
		if s.info.Classes > 0 && (s.model.TakesClasses() || s.desc.Compose != nil) {
			for k := range s.info.Classes {
				set.Classes = append(set.Classes, k)
			}
		}
		sets = append(sets, set)
	}
	if s.c.IsSet("negative-prompt") {
		if !s.info.Text {
			return usagef("--negative-prompt: %s takes no text", s.desc.Model.Path)
		}
		for i := range sets {
			sets[i].Negative = s.c.String("negative-prompt")
		}
	}
	if s.model.Cut != nil {
		for _, set := range sets {
			for _, text := range []string{set.Prompt, set.Negative} {
				if n, most := s.model.Cut(text); n > most {
					s.warn("%.40q has %d tokens, of which the text encoder reads %d", text, n, most)
				}
			}
		}
	}
	s.desc.Sets, s.plan.Sets = sets, sets
	s.items = job.Items(len(sets), s.seeds, s.plan.Offset)
	if len(s.items) > manifest.MaxImages {
		return usagef("%d sets of %d images are more than %d", len(sets), len(s.seeds), manifest.MaxImages)
	}
	if output.Kind(s.path) == "png" && s.cols == 0 {
		n := len(s.items)
		s.cols = int(math.Ceil(math.Sqrt(float64(n))))
		s.rows = (n + s.cols - 1) / s.cols
	}
	if output.Kind(s.path) == "png" && s.cols*s.rows < len(s.items) {
		return usagef("%d images do not fit on a sheet of %dx%d", len(s.items), s.cols, s.rows)
	}
	return nil
}

// set is the condition that a word names: for class models a class.
func (s *sampling) set(word string) (manifest.Set, error) {
	if s.info.Text {
		return manifest.Set{Prompt: word}, nil
	}
	if s.info.Classes == 0 {
		return manifest.Set{}, fmt.Errorf("%s has no classes and takes no text", s.desc.Model.Path)
	}
	k, err := s.class(word)
	return manifest.Set{Classes: []int{k}}, err
}

// class reads a class by number or name.
func (s *sampling) class(word string) (int, error) {
	return classOf(s.info, s.desc.Model.Path, word)
}

// classOf reads a class of a model by number or name.
func classOf(info modelInfo, model, word string) (int, error) {
	word = strings.TrimSpace(word)
	if word == "none" {
		return models.NoClass, nil
	}
	if info.Classes == 0 {
		return 0, fmt.Errorf("%s has no classes", model)
	}
	if k, err := strconv.Atoi(word); err == nil {
		if k < 0 || k >= info.Classes {
			return 0, fmt.Errorf("class %d: the model has 0 to %d", k, info.Classes-1)
		}
		return k, nil
	}
	for k, label := range info.Labels {
		if strings.EqualFold(label, word) {
			return k, nil
		}
	}
	return 0, fmt.Errorf("unknown class %q%s", word, spec.Suggest(word, info.Labels))
}

// readLines reads the lines of a text file that are not blank.
func readLines(name string) ([]string, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []string
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		if t := strings.TrimSpace(sc.Text()); t != "" {
			out = append(out, t)
		}
	}
	if err := sc.Err(); errors.Is(err, bufio.ErrTooLong) {
		return nil, refuse.Errorf(name, "a line of more than 1 MiB")
	} else if err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, refuse.Errorf(name, "has no line")
	}
	return out, nil
}
