//go:build !unix

package main

// ignoreSizeLimit has nothing to do: there is no such signal here.
func ignoreSizeLimit() {}
