package integration

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"varve/integration/harness"
	"varve/integration/patience"
	"varve/integration/stamps"
)

// judgeFiles judges what lies there after a kill, with qemu-img. It gives a copy
// of the leaf's view and what the record says of it.
func (r *killRun) judgeFiles(manifest harness.Manifest) (leaf string, verdict stamps.Verdict) {
	r.Helper()
	names := map[string]bool{}
	for _, l := range manifest.Layers {
		names[l.Name] = true
		if l.Format == "qcow2" {
			harness.CheckImageAfterCrash(r.T, l.File)
		}
		switch {
		case l.ID == manifest.Leaf:
			leaf = filepath.Join(r.TempDir(), "leaf.raw")
			harness.Convert(r.T, l.File, l.Format, leaf, "raw")
		case l.Name == "":
		case r.views[l.Name] != "":
			harness.SameContent(r.T, r.views[l.Name], "raw", l.File, l.Format)
		default:
			r.judgeSnapshot(l)
		}
	}
	for _, s := range r.taken {
		if s.returned && !names[s.name] {
			r.Errorf("snapshot %s was reported done, and is not there", s.name)
		}
	}
	for name, done := range r.gone {
		if done && names[name] {
			r.Errorf("the delete of %s was reported done, and it is still there", name)
		}
		if !names[name] {
			delete(r.views, name)
		}
	}
	for name := range r.views {
		if !names[name] {
			r.Errorf("snapshot %s is no longer there", name)
		}
	}
	verdict, err := r.area.Judge(leaf, r.first)
	if err != nil {
		r.Errorf("the leaf: %v", err)
	}
	if !bytes.Equal(load(r.T, leaf)[bulkArea:bulkArea+bulkBytes], r.bulk) {
		r.Error("the leaf's bulk area is not what was fsynced")
	}
	return leaf, verdict
}

// judgeSnapshot looks at a view for the first time.
func (r *killRun) judgeSnapshot(l harness.ManifestLayer) {
	r.Helper()
	i := slices.IndexFunc(r.taken, func(s *snapshot) bool { return s.name == l.Name })
	if i < 0 {
		r.Errorf("there is a snapshot %s that nobody asked for", l.Name)
		return
	}
	s := r.taken[i]
	if _, err := r.area.JudgeSnapshot(r.keep(l), r.first, s.before, s.after, s.returned); err != nil {
		r.Errorf("snapshot %s (reported done: %v): %v", l.Name, s.returned, err)
	}
}

// judgeMount judges the disk after it was mounted again: at once, and when the
// job that was under way has ended. It gives the number of slots that fio judged.
func (r *killRun) judgeMount(leaf string) (verified int) {
	r.Helper()
	r.judgeViews(leaf)
	r.m.FinishJob(patience.Hang)
	harness.Eventually(r.T, time.Minute, func() error {
		if j := harness.ReadManifest(r.T, r.disk).Job; j != nil {
			return fmt.Errorf("chain.json still has job %s (%s)", j.ID, j.Kind)
		}
		return nil
	})
	for _, l := range r.m.Status().Layers {
		if l.State == "unnamed" {
			r.Errorf("layer %s is still there, unnamed, after the job ended", l.ID)
		}
	}
	r.judgeViews(leaf)
	for _, s := range r.slots {
		if s != nil {
			s.verify(r.T, r.m.Raw())
			verified++
		}
	}
	return verified
}

func (r *killRun) judgeViews(leaf string) {
	r.Helper()
	compare := func(want, got string) {
		r.Helper()
		if c := harness.Try(r.T, "cmp", want, got); c.Code != 0 {
			r.Errorf("%s is not what it was: %s%s", got, c.Stdout, c.Stderr)
		}
	}
	compare(leaf, r.m.Raw())
	for name, file := range r.views {
		compare(file, r.m.Layer(name))
	}
}
