package bench

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"sync"
)

// records is a file of rows of bytes that only grows. Every row has a checksum,
// so a row that was half written when a machine died is noticed and written
// again. Layout: a header of 64 bytes (magic, bytes per row, the cell's key,
// checksum), then the rows, each followed by a checksum of 4 bytes.
type records struct {
	path  string
	f     *os.File
	width int // bytes per row
	n     int
}

const (
	recordMagic  = "driftrec1"
	recordHeader = 64
)

// openRecords opens or begins the file of a cell. A file of another key or
// width, or with a broken header, begins anew; broken rows at the end are cut.
func openRecords(path, key string, width int) (*records, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return nil, err
	}
	r := &records{path: path, f: f, width: width}
	if err := r.load(key); err != nil {
		return nil, errors.Join(fmt.Errorf("bench: %s: %w", path, err), f.Close())
	}
	return r, nil
}

func (r *records) header(key string) []byte {
	h := make([]byte, recordHeader)
	copy(h, recordMagic)
	binary.LittleEndian.PutUint32(h[12:], uint32(r.width))
	copy(h[16:60], key)
	binary.LittleEndian.PutUint32(h[60:], crc32.ChecksumIEEE(h[:60]))
	return h
}

func (r *records) row() int64 { return int64(r.width + 4) }

func (r *records) load(key string) error {
	want := r.header(key)
	have := make([]byte, recordHeader)
	if _, err := r.f.ReadAt(have, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if !bytes.Equal(want, have) {
		if err := r.f.Truncate(0); err != nil {
			return err
		}
		_, err := r.f.WriteAt(want, 0)
		return err
	}
	info, err := r.f.Stat()
	if err != nil {
		return err
	}
	rows := int((info.Size() - recordHeader) / r.row())
	b := make([]byte, r.row())
	in := io.NewSectionReader(r.f, recordHeader, int64(rows)*r.row())
	for r.n = 0; r.n < rows; r.n++ {
		if _, err := io.ReadFull(in, b); err != nil {
			return err
		}
		if crc32.ChecksumIEEE(b[:len(b)-4]) != binary.LittleEndian.Uint32(b[len(b)-4:]) {
			break
		}
	}
	return r.cut(r.n)
}

// cut keeps the first n rows.
func (r *records) cut(n int) error {
	r.n = n
	return r.f.Truncate(recordHeader + int64(n)*r.row())
}

// add appends rows. The system writes them to the disk when it likes: what a dying machine loses of them, their
// checksums tell.
func (r *records) add(rows []byte) error {
	if len(rows)%r.width != 0 {
		panic("bench: a part of a row")
	}
	n := len(rows) / r.width
	b := make([]byte, 0, int64(n)*r.row())
	for i := range n {
		row := rows[i*r.width : (i+1)*r.width]
		b = binary.LittleEndian.AppendUint32(append(b, row...), crc32.ChecksumIEEE(row))
	}
	if _, err := r.f.WriteAt(b, recordHeader+int64(r.n)*r.row()); err != nil {
		return fmt.Errorf("bench: %s: %w", r.path, err)
	}
	r.n += n
	return nil
}

// at reads row i.
func (r *records) at(i int) ([]byte, error) {
	b := make([]byte, r.width)
	_, err := r.f.ReadAt(b, recordHeader+int64(i)*r.row())
	return b, err
}

func (r *records) close() error { return r.f.Close() }

// columns is a view of some columns of the first n rows, which hold float64, as
// metrics.Samples: rows are read from the file when asked for, so memory does not depend on n.
// A row that cannot be read is NaN, which every score refuses.
func (r *records) columns(n, from, to int) *columns {
	return r.every(n, from, to, 1, 0)
}

// every is a view of several parts of the first n rows, m of them in each, stride apart: the result has n m rows.
func (r *records) every(n, from, to, m, stride int) *columns {
	return &columns{r: r, n: n * m, from: from, to: to, m: m, stride: stride}
}

type columns struct {
	r           *records
	n, from, to int
	m, stride   int
	pool        sync.Pool
}

func (c *columns) Dims() (int, int) { return c.n, c.to - c.from }

func (c *columns) Row(dst []float64, i int) {
	b, _ := c.pool.Get().(*[]byte)
	if b == nil {
		s := make([]byte, 8*(c.to-c.from))
		b = &s
	}
	defer c.pool.Put(b)
	at := recordHeader + int64(i/c.m)*c.r.row() + 8*int64(c.from+i%c.m*c.stride)
	if _, err := c.r.f.ReadAt(*b, at); err != nil {
		for j := range dst {
			dst[j] = math.NaN()
		}
		return
	}
	for j := range c.to - c.from {
		dst[j] = math.Float64frombits(binary.LittleEndian.Uint64((*b)[8*j:]))
	}
}
