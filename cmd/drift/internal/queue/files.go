package queue

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"drift/internal/atomicfile"
)

// File is a file that a job reads, by the name that its line has for it.
type File struct {
	Path   string `json:"path"` // relative, with slashes, below the folder in which the worker runs
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`

	source string // where the coordinator has it
}

// mostFiles bounds the files of a job.
const mostFiles = 1_000_000

// Files lists the files at a path (one, or all of a folder), which workers will find at name.
func Files(source, name string) ([]File, error) {
	var out []File
	err := filepath.WalkDir(source, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Stat(path) // through links: hubs keep weights behind them
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return nil
		}
		rel, err := filepath.Rel(source, path)
		if err != nil {
			return err
		}
		sum, err := hashFile(path)
		if err != nil {
			return err
		}
		if out = append(out, File{filepath.ToSlash(filepath.Join(name, rel)), sum, info.Size(), path}); len(out) > mostFiles {
			return fmt.Errorf("%s: more than %d files", source, mostFiles)
		}
		return nil
	})
	return out, err
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Cache keeps the files of jobs by their hashes, and lays those of one job out in a folder.
type Cache struct {
	Dir  string // kept
	Room string // of this job
	Max  int64  // bytes of a file that are taken; 0 = 64 GiB
	// Taken is told about files that travelled; may be nil.
	Taken func(File)
}

// check refuses lists of files that reach out of the room or are no hashes.
func (c *Cache) check(list []File) error {
	most := c.Max
	if most == 0 {
		most = 64 << 30
	}
	if len(list) > mostFiles {
		return fmt.Errorf("queue: a job of %d files", len(list))
	}
	for _, f := range list {
		sum, err := hex.DecodeString(f.SHA256)
		switch {
		case err != nil || len(sum) != sha256.Size || hex.EncodeToString(sum) != f.SHA256:
			return fmt.Errorf("queue: file %.100q: %.70q is no hash", f.Path, f.SHA256)
		case !filepath.IsLocal(filepath.FromSlash(f.Path)):
			return fmt.Errorf("queue: file %.100q does not lie below the folder of the job", f.Path)
		case f.Size < 0 || f.Size > most:
			return fmt.Errorf("queue: file %.100q has %d bytes, at most %d are taken", f.Path, f.Size, most)
		}
	}
	return nil
}

// take brings the files that are lacking and lays all out.
func (c *Cache) take(ctx context.Context, nc *nats.Conn, store jetstream.ObjectStore, list []File) error {
	if err := c.check(list); err != nil {
		return err
	}
	if err := os.MkdirAll(c.Dir, 0o777); err != nil {
		return err
	}
	for _, f := range list {
		kept := filepath.Join(c.Dir, f.SHA256)
		if info, err := os.Stat(kept); err != nil || info.Size() != f.Size {
			if err := c.bring(ctx, nc, store, f, kept); err != nil {
				return fmt.Errorf("queue: file %s: %w", f.Path, err)
			}
			if c.Taken != nil {
				c.Taken(f)
			}
		}
		at := filepath.Join(c.Room, filepath.FromSlash(f.Path))
		if err := os.MkdirAll(filepath.Dir(at), 0o777); err != nil {
			return err
		}
		err := os.Link(kept, at)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			err = os.Symlink(kept, at)
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// bring fetches a file; it appears under its name when it is whole and its hash is right.
func (c *Cache) bring(ctx context.Context, nc *nats.Conn, store jetstream.ObjectStore, f File, kept string) error {
	for {
		var answer string
		if err := retry(ctx, func() error {
			c, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			m, err := nc.RequestWithContext(c, want, []byte(f.SHA256))
			if err == nil {
				answer = string(m.Data)
			}
			return err
		}); err != nil {
			return err
		}
		if answer == "ready" {
			break
		}
		if answer != "wait" {
			return errors.New(answer)
		}
		if sleep(ctx, 100*time.Millisecond); ctx.Err() != nil {
			return ctx.Err()
		}
	}
	ctx, cancel := context.WithTimeout(ctx, long)
	defer cancel()
	in, err := store.Get(ctx, f.SHA256)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := atomicfile.Create(kept)
	if err != nil {
		return err
	}
	defer out.Discard()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(out, h), io.LimitReader(in, f.Size+1))
	if err != nil {
		return err
	}
	if n != f.Size || hex.EncodeToString(h.Sum(nil)) != f.SHA256 {
		return fmt.Errorf("what came (%d bytes) is not what the job names (%d bytes of hash %.12s)", n, f.Size, f.SHA256)
	}
	return out.Commit()
}
