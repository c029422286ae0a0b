package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"drift/internal/pngmeta"
)

func metadataVerb(a *app) *cli.Command {
	return &cli.Command{
		Name: "metadata", Usage: "print what a picture says about how it was made", UsageText: "IMG.png",
		Description: "Prints the text that other tools read (keyword \"parameters\") and drift's own description (keyword \"drift\", JSON), which sample --from reruns.",
		Action: func(c *cli.Context) error {
			name, err := oneArg(c, "a PNG file")
			if err != nil {
				return err
			}
			texts, err := readTexts(name)
			if err != nil {
				return err
			}
			if len(texts) == 0 {
				return fmt.Errorf("%s says nothing about how it was made", name)
			}
			if a.json {
				event := map[string]any{}
				for _, t := range texts {
					event[t.Keyword] = t.Text
					if t.Keyword == ownKeyword && json.Valid([]byte(t.Text)) {
						event[t.Keyword] = json.RawMessage(t.Text)
					}
				}
				a.emit(event)
				return nil
			}
			for _, t := range texts {
				var b bytes.Buffer
				if t.Keyword != ownKeyword || json.Indent(&b, []byte(t.Text), "", "  ") != nil {
					b.Reset()
					b.WriteString(t.Text)
				}
				fmt.Fprintf(a.out, "%s:\n%s\n", oneLine(t.Keyword), printable(b.String()))
			}
			return nil
		},
	}
}

func readTexts(name string) ([]pngmeta.Text, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return pngmeta.Read(name, bufio.NewReader(f))
}

// printable keeps text of a foreign file away from the terminal's controls.
func printable(s string) string {
	return string(bytes.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, []byte(s)))
}
