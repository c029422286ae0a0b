//go:build !(((linux && !android) || darwin || windows) && (amd64 || arm64)) || noort

package ort

import "errors"

const supported = false

func libraryNames() []string { return nil }

func entry(string) (uintptr, error) { return 0, errors.New("not in this build") }

func hostPath(path string) []byte { return append([]byte(path), 0) }

func invoke(uintptr, ...uintptr) uintptr { panic("ort: no library") }
