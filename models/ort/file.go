package ort

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"drift/internal/refuse"
)

// mostBytes is the largest .onnx file: that of a protocol buffer. Larger networks have their weights in files beside it.
const mostBytes = 2 << 30

// File is what an .onnx file says of itself, read without the library.
type File struct {
	Path     string
	Producer string
	IR       int64            // version of the format
	Opsets   map[string]int64 // version by domain, "" = ONNX's own
	Inputs   []Port           // without those that have a default
	Outputs  []Port
	Nodes    int
	Params   int64             // values of all weights
	External []string          // files with weights, relative to the folder of Path
	Metadata map[string]string // metadata_props

	needs map[string]int64 // bytes that the weights ask of each external file
}

// ReadFile reads the file at path. What is malformed is a *refuse.Error.
func ReadFile(path string) (*File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > mostBytes {
		return nil, refuse.Errorf(path, "not a file of at most %d bytes", int64(mostBytes))
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f, err := Parse(data)
	if err != nil {
		return nil, refuse.Errorf(path, "not a sound ONNX file: %v", err)
	}
	f.Path = path
	return f, nil
}

// Parse reads the bytes of an .onnx file: a protocol buffer of the message ModelProto.
func Parse(data []byte) (*File, error) {
	f := &File{Opsets: map[string]int64{}, Metadata: map[string]string{}, needs: map[string]int64{}}
	var graph []byte
	err := message(data, "the model", func(n protowire.Number, v uint64, b []byte) (err error) {
		switch n {
		case 1:
			f.IR = int64(v)
		case 2:
			f.Producer = string(b)
		case 7:
			graph = b
		case 8:
			domain, version := "", int64(0)
			err = message(b, "an opset", func(n protowire.Number, v uint64, b []byte) error {
				switch n {
				case 1:
					domain = string(b)
				case 2:
					version = int64(v)
				}
				return nil
			})
			f.Opsets[domain] = version
		case 14:
			err = pair(b, "metadata", f.Metadata)
		}
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case graph == nil:
		return nil, errors.New("it has no graph")
	case f.IR < 1 || len(f.Opsets) == 0:
		return nil, errors.New("it names no version of the format or of the operators")
	}
	weights := map[string]bool{}
	var inputs []Port
	err = message(graph, "the graph", func(n protowire.Number, _ uint64, b []byte) error {
		switch n {
		case 1:
			f.Nodes++
			return message(b, "a node", func(protowire.Number, uint64, []byte) error { return nil })
		case 5:
			return f.weight(b, weights)
		case 11, 12:
			p, err := port(b)
			if err != nil {
				return err
			}
			if n == 11 {
				inputs = append(inputs, p)
			} else {
				f.Outputs = append(f.Outputs, p)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, p := range inputs { // old files list their weights among the inputs
		if !weights[p.Name] {
			f.Inputs = append(f.Inputs, p)
		}
	}
	for name := range f.needs {
		f.External = append(f.External, name)
	}
	slices.Sort(f.External)
	names := map[string]bool{}
	for _, p := range slices.Concat(f.Inputs, f.Outputs) {
		if p.Name == "" || names[p.Name] || strings.IndexByte(p.Name, 0) >= 0 {
			return nil, fmt.Errorf("an input or output is called %.60q", p.Name)
		}
		names[p.Name] = true
	}
	if len(f.Inputs) == 0 || len(f.Outputs) == 0 {
		return nil, errors.New("its graph has no inputs or no outputs")
	}
	return f, nil
}

// weight reads a TensorProto: its size, and where its values lie.
func (f *File) weight(b []byte, names map[string]bool) error {
	count, name, external := int64(1), "", false
	place := map[string]string{}
	dim := func(d uint64) error {
		if int64(d) < 0 || d > 1<<40 || d > 0 && count > 1<<50/int64(d) {
			return fmt.Errorf("a weight has a size of %d", int64(d))
		}
		count *= int64(d)
		return nil
	}
	err := message(b, "a weight", func(n protowire.Number, v uint64, b []byte) (err error) {
		switch {
		case n == 1 && b == nil:
			err = dim(v)
		case n == 1: // packed
			for len(b) > 0 {
				v, k := protowire.ConsumeVarint(b)
				if k < 0 {
					return errors.New("a weight's shape breaks off")
				}
				b = b[k:]
				if err := dim(v); err != nil {
					return err
				}
			}
		case n == 8:
			name = string(b)
		case n == 13:
			err = pair(b, "external data", place)
		case n == 14:
			external = v == 1
		}
		return err
	})
	if err != nil {
		return err
	}
	names[name] = true
	f.Params += count
	if !external {
		return nil
	}
	at := place["location"]
	if !filepath.IsLocal(at) {
		return fmt.Errorf("its weight %.60q lies in the file %.60q, outside its folder", name, at)
	}
	offset, length := int64(0), int64(0)
	for key, dst := range map[string]*int64{"offset": &offset, "length": &length} {
		if s, ok := place[key]; ok {
			if *dst, err = strconv.ParseInt(s, 10, 64); err != nil || *dst < 0 || *dst > 1<<50 {
				return fmt.Errorf("its weight %.60q has the %s %.30q", name, key, s)
			}
		}
	}
	f.needs[at] = max(f.needs[at], offset+length)
	return nil
}

// port reads a ValueInfoProto.
func port(b []byte) (p Port, err error) {
	tensor := false
	err = message(b, "an input or output", func(n protowire.Number, _ uint64, b []byte) error {
		switch n {
		case 1:
			p.Name = string(b)
		case 2: // TypeProto
			return message(b, "a type", func(n protowire.Number, _ uint64, b []byte) error {
				if n != 1 {
					return nil
				}
				tensor = true
				return message(b, "a tensor type", func(n protowire.Number, v uint64, b []byte) error {
					switch n {
					case 1:
						p.Type = Type(v)
					case 2:
						p.Ranks = true
						return message(b, "a shape", func(n protowire.Number, _ uint64, b []byte) error {
							if n != 1 {
								return nil
							}
							if len(p.Dims) == 64 {
								return errors.New("more than 64 dimensions")
							}
							size, name := int64(-1), ""
							err := message(b, "a dimension", func(n protowire.Number, v uint64, b []byte) error {
								switch n {
								case 1:
									size = int64(v)
								case 2:
									name = string(b)
								}
								return nil
							})
							if size < -1 || size > 1<<40 {
								return fmt.Errorf("a dimension of %d", size)
							}
							p.Dims, p.Free = append(p.Dims, int(size)), append(p.Free, name)
							return err
						})
					}
					return nil
				})
			})
		}
		return nil
	})
	if err == nil && !tensor {
		err = fmt.Errorf("%.60q is not a tensor", p.Name)
	}
	return p, err
}

// pair reads a StringStringEntryProto.
func pair(b []byte, what string, into map[string]string) error {
	key, value := "", ""
	err := message(b, what, func(n protowire.Number, _ uint64, b []byte) error {
		switch n {
		case 1:
			key = string(b)
		case 2:
			value = string(b)
		}
		return nil
	})
	into[key] = value
	return err
}

// message walks over the fields of a protocol buffer: numbers come as v, everything with a length as b (never nil then).
func message(data []byte, what string, field func(n protowire.Number, v uint64, b []byte) error) error {
	for len(data) > 0 {
		n, t, k := protowire.ConsumeTag(data)
		if k < 0 {
			return fmt.Errorf("%s breaks off or is no protocol buffer", what)
		}
		data = data[k:]
		var v uint64
		var b []byte
		switch t {
		case protowire.VarintType:
			v, k = protowire.ConsumeVarint(data)
		case protowire.BytesType:
			if b, k = protowire.ConsumeBytes(data); b == nil {
				b = []byte{}
			}
		default:
			k = protowire.ConsumeFieldValue(n, t, data)
		}
		if k < 0 {
			return fmt.Errorf("%s breaks off or is no protocol buffer", what)
		}
		data = data[k:]
		if err := field(n, v, b); err != nil {
			return err
		}
	}
	return nil
}

// CheckExternal looks whether the files with weights are there and long enough.
func (f *File) CheckExternal() error {
	for _, name := range f.External {
		info, err := os.Stat(filepath.Join(filepath.Dir(f.Path), name))
		switch {
		case errors.Is(err, os.ErrNotExist):
			return refuse.Errorf(f.Path, "its weights lie in %s beside it, which is not there", name)
		case err != nil:
			return err
		case !info.Mode().IsRegular() || info.Size() < f.needs[name]:
			return refuse.Errorf(f.Path, "its weights need %d bytes of %s, which has %d", f.needs[name], name, info.Size())
		}
	}
	return nil
}

// Hash is the SHA-256 of the file, followed by its files of weights in the order of their names.
func (f *File) Hash() (string, error) {
	h := sha256.New()
	for _, path := range append([]string{f.Path}, f.externalPaths()...) {
		r, err := os.Open(path)
		if err != nil {
			return "", err
		}
		_, err = io.Copy(h, r)
		if err := errors.Join(err, r.Close()); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func (f *File) externalPaths() []string {
	var out []string
	for _, name := range f.External {
		out = append(out, filepath.Join(filepath.Dir(f.Path), name))
	}
	return out
}

func find(ports []Port, name string) (Port, bool) {
	if i := slices.IndexFunc(ports, func(p Port) bool { return p.Name == name }); i >= 0 {
		return ports[i], true
	}
	return Port{}, false
}

// mix is the hash of two hashes.
func mix(a, b string) string {
	sum := sha256.Sum256([]byte(a + " " + b))
	return hex.EncodeToString(sum[:])
}

// Input finds an input by its name.
func (f *File) Input(name string) (Port, bool) { return find(f.Inputs, name) }

// Output finds an output by its name.
func (f *File) Output(name string) (Port, bool) { return find(f.Outputs, name) }

// Ports lists inputs and outputs for people.
func (f *File) Ports() string {
	return "inputs " + portList(f.Inputs) + ", outputs " + portList(f.Outputs)
}
