package guidance

import (
	"fmt"

	"drift/internal/spec"
)

// ParseRule reads a rule with its options into a composition that has no experts yet: product, average, anneal, or
// mixture:weights=exact|constant,choice=blend|top1|draw (see Composition).
func ParseRule(text string) (Composition, error) {
	sp, err := spec.Parse(text)
	if err != nil {
		return Composition{}, fmt.Errorf("guidance: compose: %w", err)
	}
	var names []string
	for _, r := range Rules() {
		names = append(names, string(r))
		if string(r) != sp.Name {
			continue
		}
		c, o := Composition{Rule: r}, sp.Options()
		if r == Mixture {
			c.Constant = o.Choice("weights", "exact", "constant") == "constant"
			if choice := o.Choice("choice", "blend", string(Top), string(Draw)); choice != "blend" {
				c.Choice = Choice(choice)
			}
		}
		if err := o.Err(); err != nil {
			return Composition{}, fmt.Errorf("guidance: compose: rule %w", err)
		}
		return c, nil
	}
	return Composition{}, fmt.Errorf("guidance: compose: unknown rule %q%s", sp.Name, spec.Suggest(sp.Name, names))
}
