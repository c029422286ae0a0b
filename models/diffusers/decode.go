package diffusers

import (
	"fmt"
	"math"
	"reflect"
	"strings"

	"drift/internal/refuse"
	"drift/internal/strictjson"
)

// A decoder fills a struct from a JSON object by the key tags of its fields.
// The option ",null" allows null, which becomes the zero value; a number 0
// written in the file is then refused, since it would mean the same (but a
// fraction, where 0 is as good as null). ",inf" allows an infinite number.
type decoder struct {
	path    string
	object  *strictjson.Object
	dst     any               // pointer to a struct that holds the defaults
	only    map[string]bool   // the keys the class has; nil: all of the struct
	legacy  map[string]string // old key -> key
	unknown func(key string, value any) error
	info    *Info
}

func (d *decoder) refuse(key, format string, args ...any) error {
	return refuse.Errorf(d.path, "%s: %s", key, fmt.Sprintf(format, args...))
}

func (d *decoder) decode() error {
	fields := map[string]field{}
	var order []string
	v := reflect.ValueOf(d.dst).Elem()
	for _, f := range reflect.VisibleFields(v.Type()) { // those of embedded structs, too
		tag := f.Tag.Get("key")
		if tag == "" || tag == "-" {
			continue
		}
		key, option, _ := strings.Cut(tag, ",")
		if d.only == nil || d.only[key] {
			fields[key] = field{v.FieldByIndex(f.Index), option == "null", option == "inf"}
			order = append(order, key)
		}
	}
	seen := map[string]string{} // key -> the name it had in the file
	for _, name := range d.object.Keys() {
		value, _ := d.object.Get(name)
		if strings.HasPrefix(name, "_") {
			continue
		}
		key := name
		if now, ok := d.legacy[name]; ok {
			key = now
			d.info.Renamed = append(d.info.Renamed, name+" -> "+now)
		}
		f, ok := fields[key]
		if !ok {
			if err := d.unknown(name, value); err != nil {
				return err
			}
			continue
		}
		if before, twice := seen[key]; twice {
			return d.refuse(name, "the same as %s, which is there, too", before)
		}
		seen[key] = name
		if why := f.set(value); why != "" {
			return d.refuse(name, "%s, not %v", why, show(value))
		}
	}
	for _, key := range order {
		if _, ok := seen[key]; !ok {
			d.info.Defaulted = append(d.info.Defaulted, key)
		}
	}
	d.info.Class, _ = getString(d.object, "_class_name")
	d.info.Version, _ = getString(d.object, "_diffusers_version")
	return nil
}

func getString(o *strictjson.Object, key string) (string, bool) {
	v, _ := o.Get(key)
	s, ok := v.(string)
	return s, ok
}

type field struct {
	v         reflect.Value
	null, inf bool
}

// set stores a JSON value, or says what should stand there.
func (f field) set(value any) string {
	if value == nil {
		if !f.null {
			return "null is not allowed here: give a value"
		}
		f.v.SetZero()
		return ""
	}
	switch dst := f.v.Addr().Interface().(type) {
	case *bool:
		b, ok := value.(bool)
		if !ok {
			return "must be true or false"
		}
		*dst = b
	case *string:
		s, ok := value.(string)
		if !ok {
			return "must be a string"
		}
		if s == "" {
			return "must not be empty"
		}
		*dst = s
	case *int:
		n, ok := integer(value)
		if !ok {
			return "must be a whole number"
		}
		if n == 0 && f.null {
			return "must be null or a number other than 0"
		}
		*dst = n
	case *float64:
		x, ok := number(value)
		if !ok || math.IsInf(x, 0) && !f.inf {
			return "must be a finite number"
		}
		*dst = x
	case **bool:
		b, ok := value.(bool)
		if !ok {
			return "must be true or false"
		}
		*dst = &b
	case **float64:
		x, ok := number(value)
		if !ok || math.IsInf(x, 0) {
			return "must be a finite number"
		}
		*dst = &x
	case **int:
		n, ok := integer(value)
		if !ok {
			return "must be a whole number"
		}
		*dst = &n
	case *Size:
		n, ok := integers(value)
		if one, isOne := integer(value); isOne {
			n, ok = []int{one, one}, true
		}
		if !ok || len(n) != 2 || n[0] < 1 || n[1] < 1 || n[0] > maxWidth || n[1] > maxWidth {
			return "must be a size, or two"
		}
		*dst = Size{n[0], n[1]}
	case *PerLevel:
		n, ok := integers(value)
		if one, isOne := integer(value); isOne {
			n, ok = []int{one}, true
		}
		if !ok || len(n) == 0 {
			return "must be a whole number, or one for each level"
		}
		*dst = n
	case *[]int:
		n, ok := integers(value)
		if !ok {
			return "must be a list of whole numbers"
		}
		*dst = n
	case *[]float64:
		list, ok := value.([]any)
		if !ok {
			return "must be a list of numbers"
		}
		out := make([]float64, len(list))
		for i, v := range list {
			if out[i], ok = number(v); !ok || math.IsInf(out[i], 0) {
				return "must be a list of finite numbers"
			}
		}
		*dst = out
	case *[]string:
		list, ok := value.([]any)
		if !ok {
			return "must be a list of strings"
		}
		out := make([]string, len(list))
		for i, v := range list {
			if out[i], ok = v.(string); !ok {
				return "must be a list of strings"
			}
		}
		*dst = out
	default:
		panic(fmt.Sprintf("diffusers: no rule for fields of type %s", f.v.Type()))
	}
	return ""
}

func integer(v any) (int, bool) {
	n, ok := v.(strictjson.Number)
	if !ok {
		return 0, false
	}
	i, ok := n.Int()
	return int(i), ok && int64(int(i)) == i
}

func integers(v any) ([]int, bool) {
	list, ok := v.([]any)
	if !ok {
		return nil, false
	}
	out := make([]int, len(list))
	for i := range list {
		if out[i], ok = integer(list[i]); !ok {
			return nil, false
		}
	}
	return out, true
}

func number(v any) (float64, bool) {
	n, ok := v.(strictjson.Number)
	if !ok {
		return 0, false
	}
	return n.Float()
}

// show prints a JSON value briefly.
func show(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case string:
		return fmt.Sprintf("%.60q", v)
	case []any:
		if len(v) > 8 {
			return fmt.Sprintf("a list of %d", len(v))
		}
		parts := make([]string, len(v))
		for i := range v {
			parts[i] = show(v[i])
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case *strictjson.Object:
		return "an object"
	}
	return fmt.Sprintf("%.60v", v)
}
