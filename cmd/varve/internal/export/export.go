// Package export writes what a layer shows into an image of its own: a file, which has its name
// only when it is whole, a block device or a stream.
//
// It refuses a place where something would be lost, says what could not be read, and shows how
// far it is. The view comes from package client, the image is written by overlay.Export.
package export

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"varve/chain/mounts"
	"varve/cmd/varve/internal/client"
	"varve/cmd/varve/internal/output"
	"varve/cmd/varve/internal/progress"
	"varve/cmd/varve/internal/tell"
	"varve/cmd/varve/internal/waiting"
	"varve/cmd/varve/internal/where"
	"varve/fs/show"
	"varve/overlay"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// Options are what an export is asked for, and where it speaks.
type Options struct {
	Format   string // raw or qcow2
	Compress bool   // the clusters of a qcow2
	Force    bool   // replace a file, or overwrite a device
	Skip     bool   // write zeros for what cannot be read

	Command string // the command's name, with which its lines begin
	Stdout  io.Writer
	Stderr  io.Writer // for people
}

// ErrSkipped is that something could not be read and is zeros; that was said already.
var ErrSkipped = errors.New("something could not be read")

// Run writes the view of a layer to OUT: a snapshot's, "base" or "leaf".
func Run(ctx context.Context, t where.Target, name, out string, o Options) (err error) {
	device, isDevice := blockDevice{}, false
	var place output.Place
	stream := out == output.Stdout
	if !stream {
		if device, isDevice, err = findDevice(out); err != nil {
			return err
		}
		if isDevice {
			err = checkDevice(t, device, o)
		} else if place, err = output.Find(out); err == nil {
			stream = place.Direct()
			err = checkPlace(t, place, o)
		}
		if err != nil {
			return err
		}
	}
	share := !stream && !isDevice && !o.Compress && !o.Skip
	disk, err := client.Open(t, client.Options{Log: tell.Warnings(o.Stderr), ReadOnly: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	view, err := disk.View(name, share)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, view.Close()) }()
	e := overlay.Export{Source: view.Source, Size: view.Size}
	var salvage *overlay.Salvage
	if o.Skip {
		salvage = overlay.NewSalvage(e.Source, e.Size)
		e.Source = salvage
	}
	bar := progress.New(o.Stderr, o.Command+" "+t.Name())
	e.Progress = bar.Update
	var rest int64
	switch {
	case out == output.Stdout:
		err = e.Stream(ctx, o.Stdout)
	case isDevice:
		rest, err = exportDevice(ctx, e, device)
	case stream:
		err = exportStream(ctx, e, place)
	default:
		err = exportFile(ctx, e, place.Path, o)
	}
	bar.Clear()
	switch {
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("interrupted; %s was not made", out)
	case err != nil:
		if !o.Skip {
			err = damageHint(err)
		}
		return err
	}
	bar.Finish(e.Size)
	if rest > 0 {
		tell.Line(o.Stderr, "%s is larger; its last %s are as they were", out, show.Size(rest))
	}
	if salvage != nil {
		return sayLost(o.Stderr, o.Command+" "+t.Arg, out, salvage, e.Size)
	}
	return nil
}

// checkPlace refuses a place that cannot take an export.
func checkPlace(t where.Target, place output.Place, o Options) error {
	if !place.Direct() {
		return CheckOut(t, place.Path, o.Force)
	}
	if o.Format == "qcow2" {
		return errors.New("a qcow2 cannot be written there: its tables come first in the file and are written last; name a regular file")
	}
	return nil
}

// exportStream writes the view to a pipe, a device of characters or an open file.
func exportStream(ctx context.Context, e overlay.Export, place output.Place) error {
	f, err := place.Open(ctx)
	if err != nil {
		return err
	}
	err = errors.Join(e.Stream(ctx, f), f.Close())
	if err != nil && !errors.Is(err, context.Canceled) {
		if !qcow2.IsDamage(err) { // which says where it is
			err = output.Underlying(err)
		}
		return fmt.Errorf("write %s: %w; only a part was written", f.Name(), err)
	}
	return err
}

// CheckOut refuses an OUT that is there, or where it would be in the way.
func CheckOut(t where.Target, out string, force bool) error {
	dir, err := mounts.Resolve(filepath.Dir(out))
	if err != nil {
		return err
	}
	if err := t.RefuseInside(dir, out); err != nil {
		return err
	}
	for _, above := range []string{dir, filepath.Dir(dir)} {
		if where.IsDiskDirectory(above) {
			return fmt.Errorf("%s lies in %s, which holds only that disk's own files; name another place", out, above)
		}
	}
	info, err := os.Stat(out)
	switch {
	case errors.Is(err, os.ErrNotExist) && ofDevices(dir):
		return fmt.Errorf("there is no device %s, and a file in %s would be in memory; name another place", out, dir)
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !force:
		return alreadyThere(out)
	}
	return checkReplaced(t, out, info)
}

// ofDevices says whether a directory is one of devices: whoever names something new
// there has mistyped a device's name. /dev/shm is a file system of its own.
func ofDevices(dir string) bool {
	var devices, st unix.Stat_t
	return mounts.Within(dir, "/dev") && unix.Stat("/dev", &devices) == nil && unix.Stat(dir, &st) == nil && st.Dev == devices.Dev
}

func alreadyThere(out string) error {
	return fmt.Errorf("%s exists already; name another file, or replace it with --force", out)
}

// exportFile writes OUT under another name beside it, which it gets at the end.
func exportFile(ctx context.Context, e overlay.Export, out string, o Options) (err error) {
	host := hostfs.OS()
	partial := output.Partial(out)
	f, err := host.Open(partial, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return fmt.Errorf("make %s: %w", out, output.Underlying(err))
	}
	done := false
	// An interrupt while the mount gives no answer ends this process without what is deferred.
	defer waiting.Finally(func() { _ = host.Remove(partial) })()
	defer func() {
		if !done {
			err = errors.Join(err, host.Remove(partial))
		}
	}()
	if o.Format == "qcow2" {
		err = e.Qcow2(ctx, f, o.Compress)
	} else {
		err = e.Raw(ctx, f)
	}
	err = errors.Join(err, f.Close())
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("write %s: %w; what was written is removed again, name a place with more room", out, unix.ENOSPC)
	case errors.Is(err, unix.EFBIG):
		return fmt.Errorf("write %s: %w; the file system there, or a limit of this process (ulimit -f), allows no file of that size: name another place, or take --format qcow2, which leaves out what is zeros", out, unix.EFBIG)
	case err != nil:
		return fmt.Errorf("write %s: %w", out, err)
	}
	if err := publish(partial, out, o.Force); err != nil {
		return err
	}
	done = true
	return host.SyncDir(filepath.Dir(out))
}

// publish gives a complete file its name, over another one only by force.
func publish(partial, out string, force bool) error {
	flag := uint(unix.RENAME_NOREPLACE)
	if force {
		flag = 0
	}
	err := unix.Renameat2(unix.AT_FDCWD, partial, unix.AT_FDCWD, out, flag)
	if errors.Is(err, unix.EINVAL) && !force { // NFS cannot do that at once
		if _, err := os.Lstat(out); err == nil {
			return alreadyThere(out)
		}
		err = unix.Rename(partial, out)
	}
	switch {
	case errors.Is(err, unix.EEXIST):
		return alreadyThere(out)
	case err != nil:
		return fmt.Errorf("make %s: %w", out, err)
	}
	return nil
}
