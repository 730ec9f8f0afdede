package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"varve/chain"
	"varve/chain/dirlock"
	"varve/chain/mounts"
	"varve/cmd/varve/internal/aside"
	"varve/cmd/varve/internal/claim"
	"varve/cmd/varve/internal/doctor"
	"varve/cmd/varve/internal/tell"
	"varve/cmd/varve/internal/where"
)

func newDoctorCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "doctor [DISK | IMAGE | MOUNTPOINT]",
		Short: "Look for the usual troubles, and say the way out",
		Long: `Looks for the usual troubles of a disk and its mount, or of an image and what it
stands on: a missing or changed base, a backing file without a format, a file
that was cut off, files that nobody needs, a mount whose daemon is gone or
hangs, a VM that writes past the mount, a host that is nearly full. Each
finding comes with the way out.

Without an argument it looks at every varve mount of this host, at disks that
are not mounted and of which a VM has a file, and at the host.

It writes nothing and takes no lock, so it may be asked at any time, also while
a VM runs. It reads no content: "varve check" looks through every table of a
disk that is not mounted. What it may not look at it says in a note.

Exit code 0: no problem, at most warnings and notes; 1: problems.`,
		Example: `  varve doctor
  varve doctor vm1.varve
  varve doctor snap2.qcow2               # before it is mounted
  varve doctor --json | jq -r '.findings[] | select(.severity == "problem")'`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return takes("DISK")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			err := consult(cmd, args, asJSON)
			switch {
			case err == nil:
				return nil
			case len(args) == 0:
				return commandError{cmd.Name(), err}
			}
			return wrapped(cmd, args[0], err)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func consult(cmd *cobra.Command, args []string, asJSON bool) error {
	var scopes []*doctor.Scope
	var err error
	if len(args) == 0 {
		scopes, err = hostScopes()
	} else {
		var s *doctor.Scope
		s, err = findScope(args[0])
		scopes = []*doctor.Scope{s}
	}
	if err != nil {
		return err
	}
	ctx, stop := interruptible(cmd)
	defer stop()
	report, err := doctor.Run(ctx, scopes)
	if errors.Is(err, context.Canceled) {
		return errors.New("interrupted before it had looked at everything")
	}
	if err != nil {
		return err
	}
	if out := cmd.OutOrStdout(); asJSON {
		err = writeJSON(out, report)
	} else {
		err = writeDoctor(out, report, scopes)
	}
	if err == nil && report.Problems > 0 {
		err = fmt.Errorf("%s; each says the way out", tell.Count(int64(report.Problems), "problem", "problems"))
	}
	return err
}

// hostScopes are all disks that are mounted, those that are not and of which a VM has
// a file, and the host.
func hostScopes() ([]*doctor.Scope, error) {
	list, err := mounts.List()
	if err != nil {
		return nil, err
	}
	var scopes []*doctor.Scope
	seen := make(map[string]bool)
	looked := lookAtSources(list)
	for _, m := range list {
		if !looked[m.Source].believed[m.Device] {
			scopes = append(scopes, claimScope(m))
		} else if !seen[m.Source] {
			seen[m.Source] = true
			scopes = append(scopes, sourceScope(m.Source, list, looked))
		}
	}
	for _, path := range doctor.FilesOfVMs() {
		if dir := diskOfFile(path); dir != "" && !seen[dir] {
			seen[dir] = true
			scopes = append(scopes, sourceScope(dir, list, looked))
		}
	}
	return append(scopes, &doctor.Scope{Subject: "host", Host: true}), nil
}

// diskOfFile is the disk directory that a file lies in, or that was made for it; ""
// for none.
func diskOfFile(path string) string {
	// A file in a disk directory, or in layers/ there.
	for dir, up := filepath.Dir(path), 0; up < 2; dir, up = filepath.Dir(dir), up+1 {
		if where.IsDiskDirectory(dir) {
			return dir
		}
	}
	if dir, err := chain.DirFor(path); err == nil && where.IsDiskDirectory(dir) {
		return dir
	}
	return ""
}

// look is what a limited look at a path gave.
type look struct {
	info     os.FileInfo // nil with an error
	err      error
	believed map[uint64]bool // of the mounts that have this source, by device
}

func lookSoon(path string) look {
	info, err := doctor.StatSoon(path)
	return look{info: info, err: err}
}

// lookAtSources looks at the sources of mounts, all at once: by the source's name.
func lookAtSources(list []mounts.Mount) map[string]look {
	looks, believed := make([]look, len(list)), make([]bool, len(list))
	var looking sync.WaitGroup
	for i, m := range list {
		looking.Go(func() {
			looks[i] = lookSoon(m.Source)
			believed[i] = claim.BelievedSoon(context.Background(), m, where.AnswerTime)
		})
	}
	looking.Wait()
	looked := make(map[string]look)
	for i, m := range list {
		looks[i].believed = looked[m.Source].believed
		if looks[i].believed == nil {
			looks[i].believed = make(map[uint64]bool)
		}
		looks[i].believed[m.Device] = believed[i]
		looked[m.Source] = looks[i]
	}
	return looked
}

// sourceScope is what a mount's source names: a disk directory, also one that is
// gone or cannot be reached, or the image of a read-only mount without one.
func sourceScope(source string, list []mounts.Mount, looked map[string]look) *doctor.Scope {
	this, ok := looked[source]
	if !ok {
		this = lookSoon(source)
	}
	own := this.info
	s := &doctor.Scope{Subject: source, Directory: source, Unreachable: errors.Is(this.err, aside.ErrNoAnswer)}
	if own != nil && !own.IsDir() {
		s.Directory, s.Image = "", source
	}
	for _, m := range list {
		same := m.Source == source
		if other := looked[m.Source].info; own != nil && other != nil {
			same = os.SameFile(own, other) // it may have several names
		}
		if same && looked[m.Source].believed[m.Device] {
			s.Mounts = append(s.Mounts, m)
		}
	}
	if s.Directory != "" && own != nil && len(s.Mounts) == 0 {
		lookElsewhere(s)
	}
	return s
}

// claimScope is a mount of another user's whose disk is no more than that user's word: nothing
// else of it is looked at.
func claimScope(m mounts.Mount) *doctor.Scope {
	return &doctor.Scope{Subject: m.Mountpoint, Claimed: &m}
}

// lookElsewhere finds a mount of a disk that other mount namespaces alone show.
func lookElsewhere(s *doctor.Scope) {
	pid, mountpoint, held, err := dirlock.Holder(s.Directory)
	if err != nil || !held || mountpoint == "" {
		return
	}
	err = where.HeldElsewhere(s.Directory, pid, mountpoint)
	unseen := where.Unseen{}
	if !errors.As(err, &unseen) {
		return
	}
	s.OutOfSight = unseen.How
	if t, err := unseen.Reach(s.Directory, err); err == nil {
		s.Mounts = append(s.Mounts, t.Mount)
	}
}

// findScope finds what an argument names, also where where.Find refuses: a mount that
// hangs or is gone, a file in one, a layer's own file, any image.
func findScope(arg string) (*doctor.Scope, error) {
	abs, err := filepath.Abs(arg)
	if err != nil {
		return nil, err
	}
	list, err := mounts.List()
	if err != nil {
		return nil, err
	}
	slow, err := mounts.Remote()
	if err != nil {
		return nil, err
	}
	scopeOf := func(dir string) (*doctor.Scope, error) { return sourceScope(dir, list, lookAtSources(list)), nil }
	mountScope := func(m mounts.Mount) (*doctor.Scope, error) {
		if !claim.BelievedSoon(context.Background(), m, where.AnswerTime) {
			return claimScope(m), nil
		}
		return scopeOf(m.Source)
	}
	// The mount table comes first, and links are resolved up to the first file system
	// that may not answer: looking at a mount that hangs never ends.
	path := mounts.ResolveUpTo(abs, slow)
	for _, path := range []string{abs, path} {
		if m, ok, err := mounts.Around(path); err != nil {
			return nil, err
		} else if ok {
			return mountScope(m)
		}
	}
	if _, err := doctor.StatSoon(path); errors.Is(err, aside.ErrNoAnswer) {
		return &doctor.Scope{Subject: path, Directory: path, Unreachable: true}, nil
	}
	if path, err = mounts.Resolve(path); err != nil {
		return nil, err
	}
	if m, ok, err := mounts.Around(path); err != nil {
		return nil, err
	} else if ok {
		return mountScope(m)
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, errors.New("no such disk directory, mountpoint or image")
	case err != nil:
		return nil, err
	case !info.IsDir() && !info.Mode().IsRegular() && info.Mode()&(os.ModeDevice|os.ModeCharDevice) != os.ModeDevice:
		return nil, errors.New("it is neither a file nor a block device")
	case info.IsDir():
		for _, dir := range []string{path, filepath.Dir(path)} {
			if where.IsDiskDirectory(dir) {
				return scopeOf(dir)
			}
		}
		if _, err := os.Stat(filepath.Join(path, "chain.json")); errors.Is(err, os.ErrPermission) {
			return nil, err
		}
		return nil, errors.New("it is neither a disk directory (it has no chain.json) nor a varve mount")
	}
	if dir := diskOfFile(path); dir != "" {
		return scopeOf(dir)
	}
	// As the user gave it: a relative backing name is looked for beside that.
	return &doctor.Scope{Subject: abs, Image: abs}, nil
}

// writeDoctor writes findings for people: those of a subject below it, and the sum.
func writeDoctor(out io.Writer, r doctor.Report, scopes []*doctor.Scope) error {
	w := &reportWriter{out: out}
	color := treeOptions(out).Color
	for i, f := range r.Findings {
		if i == 0 || f.Subject != r.Findings[i-1].Subject {
			w.line(tell.Visible(titleOf(f.Subject, scopes)))
		}
		word := fmt.Sprintf("%-7s", f.Severity)
		w.wrappedAs("  "+word+"  ", "  "+severityColor(f.Severity, word, color)+"  ", f.What)
		if f.Fix != "" {
			w.wrapped("           → ", f.Fix)
		}
		// For a shell: nothing before a line, and none is cut.
		for line := range strings.Lines(f.Commands) {
			w.line(tell.Visible(strings.TrimSuffix(line, "\n")))
		}
	}
	if len(r.Findings) == 0 {
		w.line("no trouble found (" + tell.Count(int64(r.Checks), "check", "checks") + ")")
		return w.err
	}
	w.line(fmt.Sprintf("%s, %s, %s", tell.Count(int64(r.Problems), "problem", "problems"),
		tell.Count(int64(r.Warnings), "warning", "warnings"), tell.Count(int64(r.Notes), "note", "notes")))
	return w.err
}

func titleOf(subject string, scopes []*doctor.Scope) string {
	for _, s := range scopes {
		if title := s.Title(subject); title != "" {
			return title
		}
	}
	return subject
}

// severityColor colours a finding's first word.
func severityColor(s doctor.Severity, word string, color bool) string {
	switch {
	case !color:
		return word
	case s == doctor.Problem:
		return "\x1b[1;31m" + word + "\x1b[0m"
	case s == doctor.Warning:
		return "\x1b[33m" + word + "\x1b[0m"
	}
	return "\x1b[2m" + word + "\x1b[0m"
}
