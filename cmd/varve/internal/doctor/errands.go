package doctor

import (
	"context"
	"encoding/json"
	"os"
	"slices"

	"varve/chain"
	"varve/cmd/varve/internal/aside"
	"varve/cmd/varve/internal/libvirt"
)

// ReadErrand reads a file of a mount.
const ReadErrand = "read"

// What else is asked in a process of its own.
const (
	statusErrand       = "status"
	statErrand         = "stat"
	bestErrand         = "best-delete"
	examineErrand      = "examine"
	examineImageErrand = "examine-image"
)

// Errands are what aside.Serve has to know, for this package and for all that asks
// mounts.
func Errands() map[string]aside.Errand {
	examination := func(found chain.Examination, err error) ([]byte, error) {
		if err != nil {
			return nil, err
		}
		return json.Marshal(found)
	}
	return map[string]aside.Errand{
		ReadErrand:   os.ReadFile,
		statusErrand: readStatus,
		bestErrand:   bestDelete,
		passErrand:   func(path string) ([]byte, error) { return tryPath(path, false) },
		useErrand:    func(path string) ([]byte, error) { return tryPath(path, true) },
		statErrand: func(path string) ([]byte, error) {
			_, err := os.Stat(path)
			return nil, err
		},
		examineErrand: func(dir string) ([]byte, error) {
			return examination(chain.Examine(context.Background(), dir, nil))
		},
		examineImageErrand: func(path string) ([]byte, error) {
			return examination(chain.ExamineImage(context.Background(), path, libvirt.ThisHost(), nil))
		},
	}
}

// readStatus reads a status.json, without who reads it.
func readStatus(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var st chain.Status
	if err := json.Unmarshal(text, &st); err != nil {
		return nil, err
	}
	st.Open = slices.DeleteFunc(st.Open, func(o chain.OpenStatus) bool { return o.PID == os.Getpid() })
	return json.Marshal(st)
}
