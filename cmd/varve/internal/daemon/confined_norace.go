//go:build !race

package daemon

// alsoWritable are places for what this program itself never writes.
func alsoWritable() []string { return nil }
