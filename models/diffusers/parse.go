package diffusers

import (
	"fmt"

	"drift/internal/strictjson"
)

// ParseConfig is ReadConfig for a text in memory; name stands for the path.
func ParseConfig(name string, text []byte) (Config, error) {
	o, err := strictjson.Parse(name, text, strictjson.Limits{})
	if err != nil {
		return nil, fmt.Errorf("reading a network configuration: %w", err)
	}
	return parseConfig(name, o)
}
