package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"varve/chain"
)

// examineTime is how long looking at the files of one disk may take. A file on a
// network that is gone would take for ever.
const examineTime = 30 * time.Second

// noAnswer is the id of the finding about what gave none in time.
const noAnswer = "no-answer"

// diskChecks are the checks of a disk's or an image's files, which chain makes all at
// once.
func diskChecks() []check {
	var list []check
	for _, e := range chain.Examinations() {
		list = append(list, check{e[0], e[1], ofDisk | ofImage, examinedFor(e[0])})
	}
	return list
}

// examine has chain look at a scope's files.
func (s *Scope) examine(ctx context.Context) []Finding {
	if s.Directory == "" && s.Image == "" {
		return nil
	}
	path := s.Directory + s.Image
	type answer struct {
		found chain.Examination
		err   error
	}
	given := make(chan answer, 1)
	go func() {
		var a answer
		if s.Directory != "" {
			a.found, a.err = chain.Examine(ctx, s.Directory, nil)
		} else {
			a.found, a.err = chain.ExamineImage(ctx, s.Image, nil)
		}
		given <- a
	}()
	var a answer
	select {
	case a = <-given:
	case <-time.After(examineTime):
		return []Finding{{Problem, noAnswer, path, fmt.Sprintf("looking at its files took more than %s; one of them may be on a file system that hangs", examineTime), "look whether the host's and the network's disks answer"}}
	case <-ctx.Done():
		return nil
	}
	switch {
	case errors.Is(a.err, os.ErrPermission):
		s.Unseen("%s", path)
	case errors.Is(a.err, os.ErrNotExist) && s.Directory != "":
		return []Finding{{Problem, "chain-json", s.Directory, "its chain.json is not there", "copy the whole directory somewhere first, then put the newest chain.json back from a backup"}}
	case a.err != nil && ctx.Err() == nil:
		return []Finding{{Problem, "layer-file", path, "it cannot be looked at: " + a.err.Error(), "make it readable"}}
	}
	s.Size = a.found.Size
	for _, l := range a.found.Layers {
		s.Layers = append(s.Layers, Layer(l))
	}
	for _, path := range a.found.Unseen {
		s.Unseen("%s", path)
	}
	s.examined = a.found.Troubles
	return nil
}

// examinedFor gives what chain found for one of its checks.
func examinedFor(id string) func(context.Context, *Scope) []Finding {
	return func(_ context.Context, s *Scope) []Finding {
		var found []Finding
		for _, t := range s.examined {
			if t.Check == id {
				found = append(found, Finding{Severity(t.Severity), id, t.File, t.Text, t.WayOut})
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
