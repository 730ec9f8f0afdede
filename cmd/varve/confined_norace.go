//go:build !race

package main

// alsoWritable are places for what this program itself never writes.
func alsoWritable() []string { return nil }
