package diffusers

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
)

// MarshalConfig writes a configuration as the config.json that ReadConfig reads
// it from.
func MarshalConfig(c Config) ([]byte, error) {
	var b bytes.Buffer
	put := func(key string, value any) error {
		text, err := json.Marshal(value)
		if err != nil {
			return fmt.Errorf("diffusers: writing %s of a %s: %w", key, c.ClassName(), err)
		}
		if b.Len() > 0 {
			b.WriteString(",\n")
		}
		fmt.Fprintf(&b, "  %q: %s", key, text)
		return nil
	}
	err := put("_class_name", c.ClassName())
	if stem := WeightsStem(c); stem == "model" { // of transformers
		b.Reset()
		err = put("architectures", []string{c.ClassName()})
	}
	if err != nil {
		return nil, err
	}
	v := reflect.ValueOf(c).Elem()
	for _, f := range reflect.VisibleFields(v.Type()) {
		tag := f.Tag.Get("key")
		if tag == "" || tag == "-" {
			continue
		}
		key, option, _ := strings.Cut(tag, ",")
		x := v.FieldByIndex(f.Index)
		var value any
		switch s, isSize := x.Interface().(Size); {
		case x.IsZero() && option == "null":
		case x.Kind() == reflect.Pointer && x.IsNil(), x.Kind() == reflect.Slice && x.IsNil(), x.Kind() == reflect.String && x.IsZero():
			continue // absent: the default
		case isSize && s.H == s.W:
			value = s.H
		case isSize:
			value = []int{s.H, s.W}
		default:
			value = x.Interface()
		}
		if err := put(key, value); err != nil {
			return nil, err
		}
	}
	return fmt.Appendf(nil, "{\n%s\n}\n", b.Bytes()), nil
}
