package main

import (
	"fmt"
	"strings"
)

// envVar is an environment variable. Those with a flag give its value where the command line does not.
type envVar struct{ name, flag, help string }

// environment is every variable that drift looks at. Nothing below this command reads the environment.
var environment = []envVar{
	{"DRIFT_MODEL", "model", "model to use"},
	{"DRIFT_DTYPE", "dtype", "arithmetic of networks: f32, bf16, f64"},
	{"DRIFT_THREADS", "threads", "CPU threads"},
	{"DRIFT_TIER", "tier", "kernel tier"},
	{"DRIFT_BATCH", "batch", "images at a time"},
	{"DRIFT_ORT_LIB", "ort-lib", "library of ONNX Runtime, or its folder"},
	{"DRIFT_QUIET", "quiet", "1: no talk and no progress"},
	{"DRIFT_PROGRESS_EVERY", "", "seconds between progress lines when not on a terminal (5)"},
	{"HF_HUB_CACHE", "", "cache in which --model org/name looks for what diffusers downloaded"},
	{"HF_HOME", "", "its parent, when HF_HUB_CACHE is not set"},
	{"HOME", "", "where that cache is when neither is set"},
	{"DRIFT_CACHE", "cache", "folder in which workers keep files that came from elsewhere"},
	{"XDG_CACHE_HOME", "", "its parent, when that is not set; else ~/.cache"},
	{"NO_COLOR", "", "set: no colours and no bar"},
	{"TERM", "", "dumb: no colours and no bar; else what --preview auto draws with"},
	{"TERM_PROGRAM", "", "what --preview auto draws with"},
	{"KITTY_WINDOW_ID", "", "what --preview auto draws with"},
	{"COLUMNS", "", "width of the terminal"},
}

func environmentHelp() string {
	var b strings.Builder
	b.WriteString("ENVIRONMENT:\n")
	for _, v := range environment {
		help := v.help
		if v.flag != "" {
			help += " (--" + v.flag + ")"
		}
		fmt.Fprintf(&b, "   %-22s %s\n", v.name, help)
	}
	return b.String()
}
