package torchfile

import (
	"encoding/binary"
	"fmt"
	"math"
	"unicode/utf8"

	"drift/internal/safetensors"
)

// The pickle machine: a stack, a memo and the opcodes that torch.save writes
// (protocol 2, and what protocols 3 to 5 add for the same values). It holds
// plain data, names from a fixed list, and descriptions of tensors; no opcode
// looks anything up, calls or imports.

// Limits of one pickle.
const (
	maxPickle = 16 << 20 // bytes
	maxHeap   = 24 << 20 // bytes that its values and its memo take
	maxStack  = 1 << 16  // values
)

// The values of the machine: nil, bool, int64, float64, string, and these.
type (
	long  string // an integer beyond 64 bits: little-endian two's complement
	tuple []any
	list  struct{ items []any }
	dict  struct{ items []entry } // in the order of the file
	entry struct{ key, value any }
	mark  struct{}
	name  string // of the list in names
)

// get returns the value of a key, nil if it is not there.
func (d *dict) get(key string) any {
	for _, e := range d.items {
		if e.key == key {
			return e.value
		}
	}
	return nil
}

// storageID is what the file says about a storage.
type storageID struct {
	class name
	key   string
	numel int64
}

// view is a tensor as the file describes it, not yet checked.
type view struct {
	storage       storageID
	offset        int64
	shape, stride []int64
}

// names lists what a pickle may mention. Everything else is refused where it
// is mentioned, before anything is made of it.
var names = map[string]name{
	"collections.OrderedDict":         "OrderedDict",
	"torch._utils._rebuild_tensor_v2": "rebuild tensor",
	"torch._utils._rebuild_parameter": "rebuild parameter",
	"torch.HalfStorage":               "F16",
	"torch.BFloat16Storage":           "BF16",
	"torch.FloatStorage":              "F32",
	"torch.DoubleStorage":             "F64",
	"torch.CharStorage":               "I8",
	"torch.ByteStorage":               "U8",
	"torch.ShortStorage":              "I16",
	"torch.IntStorage":                "I32",
	"torch.LongStorage":               "I64",
	"torch.BoolStorage":               "BOOL",
}

// bad is an error about what a file holds; Open makes refusals of it.
type bad string

func (b bad) Error() string { return string(b) }

func badf(format string, args ...any) error { return bad(fmt.Sprintf(format, args...)) }

type machine struct {
	in    []byte
	at    int
	stack []any
	memo  map[uint64]any
	known map[string]storageID
	heap  int
	pickle
}

// pickle is what a pickle said.
type pickle struct {
	value    any
	length   int         // bytes that it took
	storages []storageID // in the order of their mention
}

// unpickle reads the pickle that in begins with.
func unpickle(in []byte) (*pickle, error) {
	m := machine{in: in, memo: map[uint64]any{}, known: map[string]storageID{}}
	for {
		op, err := m.byte()
		if err != nil {
			return nil, err
		}
		if op == '.' {
			break
		}
		if err := m.step(op); err != nil {
			return nil, err
		}
	}
	if len(m.stack) != 1 {
		return nil, badf("the pickle ends with %d values, not one", len(m.stack))
	}
	var err error
	m.value, err = m.pop()
	m.length = m.at
	return &m.pickle, err
}

func (m *machine) take(n uint64) ([]byte, error) {
	if n > uint64(len(m.in)-m.at) {
		if len(m.in) >= maxPickle {
			return nil, badf("the pickle has more than %d bytes", maxPickle)
		}
		return nil, badf("the pickle is cut: it wants %d bytes more, there are %d", n, len(m.in)-m.at)
	}
	b := m.in[m.at : m.at+int(n)]
	m.at += int(n)
	return b, nil
}

func (m *machine) byte() (byte, error) {
	b, err := m.take(1)
	if err != nil {
		return 0, err
	}
	return b[0], nil
}

// uint reads an unsigned little-endian number.
func (m *machine) uint(width uint64) (uint64, error) {
	b, err := m.take(width)
	if err != nil {
		return 0, err
	}
	var full [8]byte
	copy(full[:], b)
	return binary.LittleEndian.Uint64(full[:]), nil
}

// counted reads as many bytes as the number of that width before them says.
func (m *machine) counted(width uint64) ([]byte, error) {
	n, err := m.uint(width)
	if err != nil {
		return nil, err
	}
	return m.take(n)
}

// line reads to the next newline.
func (m *machine) line() (string, error) {
	const longest = 256
	for i := m.at; i < len(m.in) && i < m.at+longest; i++ {
		if m.in[i] == '\n' {
			s := string(m.in[m.at:i])
			m.at = i + 1
			return s, nil
		}
	}
	return "", badf("a name in the pickle does not end")
}

// charge counts the memory of a new value.
func (m *machine) charge(bytes int) error {
	if m.heap += bytes; m.heap > maxHeap {
		return badf("the values of the pickle take more than %d bytes", maxHeap)
	}
	return nil
}

// push puts a new value on the stack and charges it; what its parts take is
// charged where they are made.
func (m *machine) push(v any) error {
	switch v.(type) {
	case int64, float64, string, long, *list, *dict, tuple:
		if err := m.charge(24); err != nil {
			return err
		}
	}
	return m.stacked(v)
}

func (m *machine) stacked(v any) error {
	if len(m.stack) == maxStack {
		return badf("the pickle stacks more than %d values", maxStack)
	}
	m.stack = append(m.stack, v)
	return nil
}

func (m *machine) pop() (any, error) {
	if len(m.stack) == 0 {
		return nil, badf("the pickle takes a value from an empty stack")
	}
	v := m.stack[len(m.stack)-1]
	if _, ok := v.(mark); ok {
		return nil, badf("the pickle takes a mark for a value")
	}
	m.stack = m.stack[:len(m.stack)-1]
	return v, nil
}

// popMark returns a copy of the values above the last mark and removes both.
func (m *machine) popMark() ([]any, error) {
	for i := len(m.stack) - 1; i >= 0; i-- {
		if _, ok := m.stack[i].(mark); ok {
			items := append([]any(nil), m.stack[i+1:]...)
			m.stack = m.stack[:i]
			return items, m.charge(16 * len(items))
		}
	}
	return nil, badf("the pickle has no mark where it needs one")
}

// top returns the value on the stack that the next opcodes fill.
func (m *machine) top() (any, error) {
	v, err := m.pop()
	if err == nil {
		m.stack = append(m.stack, v)
	}
	return v, err
}

// remember stores the top of the stack in the memo.
func (m *machine) remember(at uint64, err error) error {
	if err != nil {
		return err
	}
	v, err := m.top()
	if err != nil {
		return err
	}
	m.memo[at] = v
	return m.charge(64)
}

// recall pushes a value of the memo.
func (m *machine) recall(at uint64, err error) error {
	if err != nil {
		return err
	}
	v, ok := m.memo[at]
	if !ok {
		return badf("the pickle recalls value %d, which it never stored", at)
	}
	return m.stacked(v)
}

func (m *machine) text(b []byte, err error) error {
	if err != nil {
		return err
	}
	if !utf8.Valid(b) {
		return badf("a text in the pickle is not valid UTF-8")
	}
	if err := m.charge(len(b)); err != nil {
		return err
	}
	return m.push(string(b))
}

func (m *machine) number(v uint64, err error) error {
	if err != nil {
		return err
	}
	return m.push(int64(v))
}

// long reads an integer of any length.
func (m *machine) long(b []byte, err error) error {
	if err != nil {
		return err
	}
	if len(b) > 8 {
		if err := m.charge(len(b)); err != nil {
			return err
		}
		return m.push(long(b))
	}
	var full [8]byte
	if len(b) > 0 && b[len(b)-1] >= 0x80 {
		full = [8]byte{255, 255, 255, 255, 255, 255, 255, 255}
	}
	copy(full[:], b)
	return m.push(int64(binary.LittleEndian.Uint64(full[:])))
}

// global pushes a name of the list.
func (m *machine) global(module, attribute string) error {
	n, ok := names[module+"."+attribute]
	if !ok {
		return badf("the pickle names %s.%s: only names that rebuild tensors are allowed, and nothing is ever run", module, attribute)
	}
	return m.push(n)
}

func (m *machine) tuple(n int) error {
	t := make(tuple, n)
	for i := n - 1; i >= 0; i-- {
		var err error
		if t[i], err = m.pop(); err != nil {
			return err
		}
	}
	if err := m.charge(16 * n); err != nil {
		return err
	}
	return m.push(t)
}

// step runs one opcode.
func (m *machine) step(op byte) error {
	switch op {
	case 0x80: // PROTO
		if v, err := m.byte(); err != nil || v < 2 || v > 5 {
			return orBad(err, "pickle protocol %d, 2 to 5 are read", v)
		}
		return nil
	case 0x95: // FRAME
		_, err := m.take(8)
		return err
	case 'N':
		return m.push(nil)
	case 0x88, 0x89: // NEWTRUE, NEWFALSE
		return m.push(op == 0x88)
	case 'K': // BININT1
		return m.number(m.uint(1))
	case 'M': // BININT2
		return m.number(m.uint(2))
	case 'J': // BININT
		v, err := m.uint(4)
		return m.number(uint64(int64(int32(v))), err)
	case 0x8a: // LONG1
		return m.long(m.counted(1))
	case 'G': // BINFLOAT
		b, err := m.take(8)
		if err != nil {
			return err
		}
		return m.push(math.Float64frombits(binary.BigEndian.Uint64(b)))
	case 'U', 0x8c: // SHORT_BINSTRING, SHORT_BINUNICODE
		return m.text(m.counted(1))
	case 'T', 'X': // BINSTRING, BINUNICODE
		return m.text(m.counted(4))
	case 0x8d: // BINUNICODE8
		return m.text(m.counted(8))
	case '(':
		return m.push(mark{})
	case ')':
		return m.tuple(0)
	case 0x85, 0x86, 0x87: // TUPLE1 to TUPLE3
		return m.tuple(int(op) - 0x84)
	case 't':
		items, err := m.popMark()
		if err != nil {
			return err
		}
		return m.push(tuple(items))
	case ']':
		return m.push(&list{})
	case '}':
		return m.push(&dict{})
	case 'a', 'e': // APPEND, APPENDS
		return m.appendItems(op == 'e')
	case 's', 'u': // SETITEM, SETITEMS
		return m.setItems(op == 'u')
	case 'q': // BINPUT
		return m.remember(m.uint(1))
	case 'r': // LONG_BINPUT
		return m.remember(m.uint(4))
	case 0x94: // MEMOIZE
		return m.remember(uint64(len(m.memo)), nil)
	case 'h': // BINGET
		return m.recall(m.uint(1))
	case 'j': // LONG_BINGET
		return m.recall(m.uint(4))
	case 'c': // GLOBAL
		module, err := m.line()
		if err != nil {
			return err
		}
		attribute, err := m.line()
		if err != nil {
			return err
		}
		return m.global(module, attribute)
	case 0x93: // STACK_GLOBAL
		attribute, err := m.pop()
		if err != nil {
			return err
		}
		module, err := m.pop()
		if err != nil {
			return err
		}
		a, ok := attribute.(string)
		b, too := module.(string)
		if !ok || !too {
			return badf("a name in the pickle is no text")
		}
		return m.global(b, a)
	case 'Q': // BINPERSID
		return m.persistent()
	case 'R':
		return m.reduce()
	case 'b':
		return m.build()
	}
	return badf("pickle opcode %#02x at %d is not one that holds tensors", op, m.at-1)
}

func orBad(err error, format string, args ...any) error {
	if err != nil {
		return err
	}
	return badf(format, args...)
}

func (m *machine) appendItems(many bool) error {
	items, err := m.items(many, 1)
	if err != nil {
		return err
	}
	v, err := m.top()
	if err != nil {
		return err
	}
	l, ok := v.(*list)
	if !ok {
		return badf("the pickle appends to %T", v)
	}
	l.items = append(l.items, items...)
	return m.charge(16 * len(items))
}

func (m *machine) setItems(many bool) error {
	items, err := m.items(many, 2)
	if err != nil {
		return err
	}
	v, err := m.top()
	if err != nil {
		return err
	}
	d, ok := v.(*dict)
	if !ok || len(items)%2 != 0 {
		return badf("the pickle sets items of %T", v)
	}
	for i := 0; i < len(items); i += 2 {
		d.items = append(d.items, entry{items[i], items[i+1]})
	}
	return m.charge(16 * len(items))
}

// items takes n values, or all above the mark.
func (m *machine) items(many bool, n int) ([]any, error) {
	if many {
		return m.popMark()
	}
	items := make([]any, n)
	for i := n - 1; i >= 0; i-- {
		var err error
		if items[i], err = m.pop(); err != nil {
			return nil, err
		}
	}
	return items, nil
}

// persistent makes a storage of ("storage", class, key, device, numel), which
// the legacy form follows with a view, None where there is none.
func (m *machine) persistent() error {
	v, err := m.pop()
	if err != nil {
		return err
	}
	t, _ := v.(tuple)
	if len(t) != 5 && len(t) != 6 || t[0] != "storage" {
		return badf("the pickle refers to something outside that is no storage")
	}
	if len(t) == 6 && t[5] != nil {
		return badf("the pickle has a view of a storage; such files of old torch versions are not read")
	}
	class, ok := t[1].(name)
	key, ok2 := t[2].(string)
	_, ok3 := t[3].(string)
	numel, ok4 := t[4].(int64)
	if !ok || !ok2 || !ok3 || !ok4 || width(class) == 0 || numel < 0 {
		return badf("the pickle describes a storage in an unknown way")
	}
	id := storageID{class, key, numel}
	switch old, ok := m.known[key]; {
	case !ok:
		if err := m.charge(128); err != nil {
			return err
		}
		m.known[key] = id
		m.storages = append(m.storages, id)
	case old != id:
		return badf("the pickle describes storage %q in two ways", key)
	}
	return m.push(id)
}

// reduce makes an ordered dictionary or a tensor; there is nothing else to
// call.
func (m *machine) reduce() error {
	v, err := m.pop()
	if err != nil {
		return err
	}
	args, ok := v.(tuple)
	if !ok {
		return badf("the pickle calls with %T", v)
	}
	f, err := m.pop()
	if err != nil {
		return err
	}
	switch f {
	case name("OrderedDict"):
		d, err := orderedDict(args)
		if err != nil {
			return err
		}
		if err := m.charge(32 * len(d.items)); err != nil {
			return err
		}
		return m.push(d)
	case name("rebuild tensor"):
		t, err := rebuildTensor(args)
		if err != nil {
			return err
		}
		if err := m.charge(128 + 16*len(t.shape)); err != nil {
			return err
		}
		return m.push(t)
	case name("rebuild parameter"): // (tensor, requires_grad, hooks)
		if len(args) == 3 {
			if t, ok := args[0].(*view); ok {
				return m.push(t)
			}
		}
		return badf("the pickle rebuilds a parameter of something that is no tensor")
	}
	return badf("the pickle calls %T", f)
}

// orderedDict makes a dictionary of () or, as Python 2 wrote it, of a list of
// pairs.
func orderedDict(args tuple) (*dict, error) {
	d := &dict{}
	if len(args) == 0 {
		return d, nil
	}
	if l, ok := args[0].(*list); ok && len(args) == 1 {
		for _, item := range l.items {
			var pair []any
			switch p := item.(type) {
			case tuple:
				pair = p
			case *list:
				pair = p.items
			}
			if len(pair) != 2 {
				return nil, badf("the pickle makes a dictionary of something else than pairs")
			}
			d.items = append(d.items, entry{pair[0], pair[1]})
		}
		return d, nil
	}
	return nil, badf("the pickle makes a dictionary in an unknown way")
}

// rebuildTensor reads (storage, offset, size, stride, requires_grad, hooks)
// and, in newer files, a dictionary that must be empty.
func rebuildTensor(args tuple) (*view, error) {
	if len(args) != 6 && len(args) != 7 {
		return nil, badf("the pickle rebuilds a tensor of %d values, not 6 or 7", len(args))
	}
	if len(args) == 7 && args[6] != nil {
		if d, ok := args[6].(*dict); !ok || len(d.items) > 0 {
			return nil, badf("the pickle has a tensor with metadata, which is not read")
		}
	}
	s, ok := args[0].(storageID)
	offset, ok2 := args[1].(int64)
	for _, v := range args[2:4] { // many tensors may share a tuple, of which each gets a copy
		if t, ok := v.(tuple); ok && len(t) > safetensors.MaxRank {
			return nil, badf("the pickle has a tensor of %d dimensions, at most %d are read", len(t), safetensors.MaxRank)
		}
	}
	shape, ok3 := integers(args[2])
	stride, ok4 := integers(args[3])
	if !ok || !ok2 || !ok3 || !ok4 {
		return nil, badf("the pickle rebuilds a tensor in an unknown way")
	}
	return &view{s, offset, shape, stride}, nil
}

func integers(v any) ([]int64, bool) {
	t, ok := v.(tuple)
	out := make([]int64, len(t))
	for i := range t {
		var is bool
		out[i], is = t[i].(int64)
		ok = ok && is
	}
	return out, ok
}

// build sets the attributes of an ordered dictionary: state_dict() gives it
// version numbers of modules, which mean nothing here.
func (m *machine) build() error {
	if _, err := m.pop(); err != nil {
		return err
	}
	v, err := m.top()
	if err != nil {
		return err
	}
	if _, ok := v.(*dict); !ok {
		return badf("the pickle sets attributes of %T", v)
	}
	return nil
}
