package doctor

import (
	"context"
	"encoding/json"
	"os"
	"slices"

	"varve/chain"
	"varve/cmd/varve/internal/aside"
	"varve/cmd/varve/internal/claim"
	"varve/cmd/varve/internal/libvirt"
	"varve/cmd/varve/internal/mountfile"
)

// ReadErrand reads a file of a mount, which it is told as mountfile's Errand.
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
		ReadErrand:   readFile,
		statusErrand: readStatus,
		bestErrand:   bestDelete,
		claim.Errand: claim.Answer,
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

// readFile reads a file of a mount.
func readFile(word string) ([]byte, error) {
	at, elements, err := mountfile.ParseErrand(word)
	if err != nil {
		return nil, err
	}
	most := int64(mountfile.MostStatus)
	if slices.Equal(elements, []string{"metrics"}) {
		most = mountfile.MostMetrics
	}
	return at.Read(most, elements...)
}

// readStatus reads a status.json, without who reads it.
func readStatus(word string) ([]byte, error) {
	text, err := readFile(word)
	if err != nil {
		return nil, err
	}
	st, err := mountfile.Status(text)
	if err != nil {
		return nil, err
	}
	st.Open = slices.DeleteFunc(st.Open, func(o chain.OpenStatus) bool { return o.PID == os.Getpid() })
	return json.Marshal(st)
}
