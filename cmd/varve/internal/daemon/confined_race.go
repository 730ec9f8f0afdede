//go:build race

package daemon

import (
	"os"
	"path/filepath"
	"strings"
)

// alsoWritable is where the race detector puts its reports, if that is a file.
func alsoWritable() []string {
	for option := range strings.FieldsSeq(os.Getenv("GORACE")) {
		if path, ok := strings.CutPrefix(option, "log_path="); ok && filepath.IsAbs(path) {
			return []string{filepath.Dir(path)}
		}
	}
	return nil
}
