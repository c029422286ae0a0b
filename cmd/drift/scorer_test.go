package main

import (
	"bufio"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strconv"
	"time"
)

// scorer is a reward program for scripts: scorer MODE [FILE [N]]. The reward is the first number of the state. Modes that
// fail do so at request N, once where FILE does not exist yet (they make it), or for ever without one.
//
//	ok  crash  hang  nan  wrong (an id that was not asked)  twice (answers one request two times)  garbage  backwards
func scorer() {
	mode, file, at := "ok", "", 5
	if len(os.Args) > 1 {
		mode = os.Args[1]
	}
	if len(os.Args) > 2 {
		file = os.Args[2]
	}
	if len(os.Args) > 3 {
		at, _ = strconv.Atoi(os.Args[3])
	}
	if _, err := os.Stat(file); file != "" && file != "-" && err == nil {
		mode = "ok" // it has failed before
	}
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)
	out := bufio.NewWriter(os.Stdout)
	var held []string
	for n := 1; in.Scan(); n++ {
		var q struct {
			ID     int    `json:"id"`
			Shape  []int  `json:"shape"`
			Pixels string `json:"pixels_b64"`
		}
		if err := json.Unmarshal(in.Bytes(), &q); err != nil {
			os.Exit(7)
		}
		raw, err := base64.StdEncoding.DecodeString(q.Pixels)
		if err != nil || len(raw) < 4 || len(q.Shape) == 0 {
			os.Exit(8)
		}
		r := fmt.Sprint(math.Float32frombits(binary.LittleEndian.Uint32(raw)))
		if mode != "ok" && mode != "backwards" && n >= at {
			if file != "" && file != "-" {
				if err := os.WriteFile(file, nil, 0o666); err != nil {
					os.Exit(9)
				}
			}
			switch mode {
			case "crash":
				os.Exit(3)
			case "hang":
				time.Sleep(time.Hour)
			case "nan":
				r = "NaN"
			case "wrong":
				q.ID += 1000000
			case "twice":
				fmt.Fprintf(out, "{\"id\": %d, \"reward\": %s}\n", q.ID, r)
			case "garbage":
				fmt.Fprintln(out, "hello")
			}
		}
		line := fmt.Sprintf("{\"id\": %d, \"reward\": %s}\n", q.ID, r)
		if mode == "backwards" { // answers in the other order, once four are there
			if held = append(held, line); len(held) < 4 {
				continue
			}
			for i := len(held) - 1; i >= 0; i-- {
				fmt.Fprint(out, held[i])
			}
			held = nil
		} else {
			fmt.Fprint(out, line)
		}
		_ = out.Flush()
	}
}
