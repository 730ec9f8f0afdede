package mounts

import (
	"os"
	"strings"
)

// OthersAllowed says whether an ordinary user may use allow_other (fuse.conf, mount.fuse3(8)).
func OthersAllowed(conf string) bool {
	text, err := os.ReadFile(conf)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		if strings.TrimSpace(line) == "user_allow_other" {
			return true
		}
	}
	return false
}
