// Package atomicfile writes a file under a temporary name beside the final one
// and renames it when it is complete, so that nobody ever sees half a file.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// A File is open for writing under a temporary name.
type File struct {
	*os.File
	path string
	done bool
}

// Create opens a new temporary file beside path. The folder must exist.
func Create(path string) (*File, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return nil, &fs.PathError{Op: "create", Path: path, Err: errors.New("is a folder")}
	}
	for i := 0; ; i++ {
		f, err := os.OpenFile(fmt.Sprintf("%s.tmp%d", path, i), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
		if errors.Is(err, fs.ErrExist) && i < 10_000 {
			continue
		}
		var p *fs.PathError
		if errors.As(err, &p) { // the name that the user knows
			return nil, &fs.PathError{Op: "create", Path: path, Err: p.Err}
		}
		if err != nil {
			return nil, err
		}
		return &File{File: f, path: path}, nil
	}
}

// Commit flushes the file to the disk and gives it its final name, replacing
// what was there. On failure the temporary file is removed.
func (f *File) Commit() error {
	if f.done {
		return fmt.Errorf("%s: committed or discarded before", f.path)
	}
	f.done = true
	err := errors.Join(f.Sync(), f.File.Close())
	if err == nil {
		err = os.Rename(f.Name(), f.path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// Discard removes the temporary file; after Commit it does nothing, so it can
// be deferred.
func (f *File) Discard() error {
	if f.done {
		return nil
	}
	f.done = true
	return errors.Join(f.File.Close(), os.Remove(f.Name()))
}
