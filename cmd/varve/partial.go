package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// partialBeside is the path at which a file is written until it is whole: beside
// path, hidden, with this process's number. Of a name that is nearly as long as a
// name can be (NAME_MAX) only the beginning is in it.
func partialBeside(path string) string {
	name, suffix := filepath.Base(path), fmt.Sprintf(".%d.partial", os.Getpid())
	if most := unix.NAME_MAX - len(".") - len(suffix); len(name) > most {
		name = strings.ToValidUTF8(name[:most], "")
	}
	return filepath.Join(filepath.Dir(path), "."+name+suffix)
}
