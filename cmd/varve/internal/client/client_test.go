package client

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"varve/chain"
	"varve/cmd/varve/internal/where"
)

// Everything that a Disk does, in a row, on a disk that is mounted and on one that is not:
// each call gives the same, and the errors are of the same kind.
func TestMountedOrNot(t *testing.T) {
	rows := map[bool][]string{}
	for _, isMounted := range []bool{true, false} {
		dir := disk(t, 8<<20)
		arg := dir
		if isMounted {
			arg, _ = mount(t, dir)
		}
		var row []string
		note := func(what string, err error, more ...any) {
			kind := "done"
			for name, is := range map[string]error{"exists": chain.ErrExist, "not there": chain.ErrNotExist, "invalid": chain.ErrInvalid} {
				if errors.Is(err, is) {
					kind = name
				}
			}
			if err != nil && kind == "done" {
				kind = "failed: " + err.Error()
			}
			row = append(row, fmt.Sprint(what, ": ", kind, " ", fmt.Sprint(more...)))
		}
		with := func(o Options, do func(d Disk)) {
			t.Helper()
			d, err := Open(found(t, arg), o)
			done(t, err)
			do(d)
			done(t, d.Close())
		}
		wait := func(d Disk, job Job, err error) (int64, error) {
			if err != nil || job.ID == "" {
				return 0, err
			}
			return d.Wait(t.Context(), job, func(_, _ int64) {})
		}
		rate := int64(1 << 30)
		with(Options{JobRate: &rate}, func(d Disk) {
			note("snapshot", d.Snapshot("one"))
			err := d.Snapshot("one")
			note("snapshot again", err)
			note("snapshot of no name", d.Snapshot("a b"))
			note("hold", d.Hold("one"))
			_, err = d.Delete("one")
			note("delete of a held one", nil, err != nil)
			note("release", d.Release("one"))
			note("rename", d.Rename("one", "two"))
			note("rename to two names", d.Rename("two", "a b"))
			note("resize", d.Resize(12<<20))
			note("snapshot", d.Snapshot("three"))
			note("revert", d.Revert("two"))
			note("undo", d.Undo())
			note("clone", d.Clone("two", filepath.Join(filepath.Dir(dir), "clone.varve")))
			note("cancel", nil, d.Cancel("") != nil)
		})
		with(Options{ReadOnly: true}, func(d Disk) {
			layers, err := d.Layers()
			names := []string{}
			for _, l := range layers {
				names = append(names, l.Title())
			}
			note("layers", err, names)
			st, err := d.Status(t.Context())
			note("status", err, st.Size, len(st.Layers), st.Job == nil)
			text, err := d.Document(t.Context())
			note("document", err, strings.Contains(string(text), `"name": "three"`))
			p, err := d.Plan("delete", []string{"three"})
			note("plan", err, p.Operation, len(p.Gone), p.CopyBytes, p.Before, p.After)
			picture, err := d.Map(t.Context())
			note("map", err, strings.HasPrefix(string(picture), "<svg"))
			x, err := d.Diff("two", "three")
			done(t, err)
			a, b := x.Views()
			list, _, _, err := x.Next()
			note("diff", err, a.Size, b.Size, list, x.Titles()[a.ID])
			done(t, x.Close())
			_, err = d.Diff("two", "a b")
			note("diff of no name", err)
			view, err := d.View("two", false)
			done(t, err)
			p4 := make([]byte, 4)
			note("view", view.Source.ReadAt(p4, 0), string(p4), view.Size)
			done(t, view.Close())
			_, err = d.View("nobody", false)
			note("view of nothing", err)
		})
		with(Options{}, func(d Disk) {
			job, err := d.Flatten("leaf")
			copied, err := wait(d, job, err)
			note("flatten", err, job.ID, copied)
			job, err = d.Delete("three")
			_, err = wait(d, job, err)
			note("delete", err)
			job, err = d.Forget()
			_, err = wait(d, job, err)
			note("forget", nil, err != nil)
			job, err = d.DeleteUnnamed()
			_, err = wait(d, job, err)
			note("delete of the unnamed", nil, err != nil)
		})
		rows[isMounted] = row
	}
	if !slices.Equal(rows[true], rows[false]) {
		t.Errorf("mounted:\n%s\nnot mounted:\n%s", strings.Join(rows[true], "\n"), strings.Join(rows[false], "\n"))
	}
	t.Log(strings.Join(rows[true], "\n"))
}

// A name with a space is one name, on the line of a control file too: nothing else is deleted.
func TestANameIsNotTwo(t *testing.T) {
	dir := disk(t, 4<<20)
	mnt, _ := mount(t, dir)
	d := opened(t, mnt)
	done(t, d.Snapshot("one"))
	done(t, d.Snapshot("two"))
	if _, err := d.Delete("one two"); !errors.Is(err, chain.ErrInvalid) {
		t.Errorf("delete: %v", err)
	}
	if _, err := d.Plan("delete", []string{"one two"}); !errors.Is(err, chain.ErrInvalid) {
		t.Errorf("plan: %v", err)
	}
	layers, err := d.Layers()
	if names := Titles(layers); err != nil || len(names) != 4 {
		t.Errorf("left are %v, %v", names, err)
	}
}

// What is asked again and again of a disk that is not mounted is what it is by now.
func TestRecent(t *testing.T) {
	dir := disk(t, 4<<20)
	var recent Recent
	look := func(t *testing.T, at where.Target) int {
		st, err := recent.Status(context.Background(), at, Options{ReadOnly: true})
		done(t, err)
		return len(st.Layers)
	}
	if n := look(t, found(t, dir)); n != 2 {
		t.Errorf("%d layers at first", n)
	}
	d := opened(t, dir)
	done(t, d.Snapshot("one"))
	done(t, d.Close())
	if n := look(t, found(t, dir)); n != 3 {
		t.Errorf("%d layers after a snapshot", n)
	}
	mnt, ended := mount(t, dir)
	done(t, opened(t, mnt).Snapshot("two"))
	if n := look(t, found(t, mnt)); n != 4 {
		t.Errorf("%d layers after a snapshot of the mounted disk", n)
	}
	ended()
	if n := look(t, found(t, dir)); n != 4 {
		t.Errorf("%d layers after the unmount", n)
	}
}
