package main

import (
	"github.com/urfave/cli/v2"
)

func modelVerb(a *app) *cli.Command {
	return &cli.Command{
		Name: "model", Usage: "look into, check, run and time models",
		Subcommands: []*cli.Command{},
	}
}
