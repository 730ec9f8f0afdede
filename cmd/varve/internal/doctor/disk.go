package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"varve/chain"
	"varve/cmd/varve/internal/aside"
)

// examineTime is how long looking at the files of one disk may take. A file on a
// network that is gone would take for ever.
const examineTime = 30 * time.Second

// noAnswer is the id of the finding about what gave none in time.
const noAnswer = "no-answer"

const lookAtHost = "look whether the host's and the network's disks answer (dmesg)"

// diskChecks are the checks of a disk's or an image's files, which chain makes all at
// once.
func diskChecks() []check {
	var list []check
	for _, e := range chain.Examinations() {
		list = append(list, check{e[0], e[1], ofDisk | ofImage, examinedFor(e[0])})
	}
	return list
}

// examine has chain look at a scope's files, where their file system answers at all.
func (s *Scope) examine(ctx context.Context) []Finding {
	if s.Directory == "" && s.Image == "" {
		return nil
	}
	path, errand := s.Directory, examineErrand
	if path == "" {
		path, errand = s.Image, examineImageErrand
	}
	if !s.Unreachable {
		_, err := aside.Ask(ctx, statErrand, path, answerTime)
		s.Unreachable = errors.Is(err, aside.ErrNoAnswer)
	}
	if s.Unreachable {
		return []Finding{{Problem, noAnswer, path, fmt.Sprintf("the file system that it is on gives no answer within %s; nothing more could be looked at there", answerTime), lookAtHost, ""}}
	}
	text, err := aside.Ask(ctx, errand, path, examineTime)
	var found chain.Examination
	if err == nil {
		err = json.Unmarshal(text, &found)
	}
	switch {
	case ctx.Err() != nil:
		return nil
	case errors.Is(err, aside.ErrNoAnswer):
		s.Unreachable = true
		return []Finding{{Problem, noAnswer, path, fmt.Sprintf("looking at its files took more than %s; one of them may be on a file system that hangs", examineTime), lookAtHost, ""}}
	case errors.Is(err, os.ErrPermission):
		s.Unseen("%s", path)
	case errors.Is(err, os.ErrNotExist) && s.Directory != "":
		return []Finding{{Problem, "chain-json", s.Directory, "its chain.json is not there", "copy the whole directory somewhere first, then put the newest chain.json back from a backup", ""}}
	case err != nil:
		return []Finding{{Problem, "layer-file", path, "it cannot be looked at: " + err.Error(), "make it readable", ""}}
	}
	s.Size = found.Size
	for _, l := range found.Layers {
		s.Layers = append(s.Layers, Layer(l))
	}
	for _, path := range found.Unseen {
		s.Unseen("%s", path)
	}
	s.examined = found.Troubles
	return nil
}

// examinedFor gives what chain found for one of its checks.
func examinedFor(id string) func(context.Context, *Scope) []Finding {
	return func(_ context.Context, s *Scope) []Finding {
		var found []Finding
		for _, t := range s.examined {
			if t.Check == id {
				found = append(found, Finding{Severity(t.Severity), id, t.File, t.Text, t.WayOut, ""})
			}
		}
		return found
	}
}

// Title is what a subject is headed by: a layer's file with the layer's name.
func (s *Scope) Title(subject string) string {
	for _, l := range s.Layers {
		if l.File == subject && l.ID != "" && s.Directory != "" {
			return fmt.Sprintf("%s (%s)", filepath.Clean(subject), l.Label())
		}
	}
	return ""
}
