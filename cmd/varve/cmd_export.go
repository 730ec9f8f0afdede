package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/chain/mounts"
	"varve/cmd/varve/internal/output"
	"varve/cmd/varve/internal/progress"
	"varve/cmd/varve/internal/waiting"
	"varve/fs/show"
	"varve/overlay"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// toStdout is OUT for a pipe.
const toStdout = "-"

type exportFlags struct {
	format   string
	compress bool
	force    bool
	skip     bool
}

func newExportCommand() *cobra.Command {
	var flags exportFlags
	c := &cobra.Command{
		Use:   "export DISK (NAME | base | leaf) OUT",
		Short: "Copy a layer's view into an image of its own",
		Long: `Writes the disk as it was at a snapshot, at the base, or as it is now (leaf),
into OUT: one image that needs no other file and no varve. What is zeros takes
no space. OUT appears under its name when it is complete and durable.

A qcow2 is of the plain kind that every program reads. With "-" for OUT a raw
image goes to standard output, zeros included. OUT can be a block device too,
with --force: it is overwritten from its beginning on, unless something uses it.

A place that cannot be read, since a table or the host's disk is damaged, ends
the export. With --skip-damaged there are zeros in its stead, all such places
are listed on standard error, and the exit code is 4 when there were any.

Snapshots can be exported while the disk is mounted. The leaf of a mounted disk
changes while it is read: take a snapshot and export that.`,
		Example: `  varve export vm1.varve before-upgrade old.raw
  varve export /mnt/vm1 golden golden.qcow2 --format qcow2 --compress
  varve export vm1.varve leaf - | zstd > vm1.raw.zst`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := takes("DISK", "NAME", "OUT")(cmd, args); err != nil {
				return err
			}
			if err := checkFormat(flags.format); err != nil {
				return wrongUse(cmd, "%w", err)
			}
			switch {
			case flags.compress && flags.format != "qcow2":
				return wrongUse(cmd, "--compress needs --format qcow2")
			case args[2] == toStdout && progress.IsTerminal(cmd.OutOrStdout()):
				return wrongUse(cmd, "standard output is a terminal; send the image into a pipe or a file")
			case args[2] == toStdout && flags.format == "qcow2":
				return wrongUse(cmd, "a qcow2 cannot be written into a pipe: its tables come first in the file and are written last")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return wrapped(cmd, args[0], export(cmd, args[0], args[1], args[2], flags))
		},
	}
	c.Flags().StringVar(&flags.format, "format", "raw", "`FORMAT` of OUT: raw or qcow2")
	c.Flags().BoolVar(&flags.compress, "compress", false, "compress the clusters of a qcow2 (zlib)")
	c.Flags().BoolVar(&flags.force, "force", false, "replace a file OUT that is there, or overwrite a block device")
	c.Flags().BoolVar(&flags.skip, "skip-damaged", false, "write zeros for what cannot be read, and list the places")
	return c
}

func export(cmd *cobra.Command, arg, name, out string, flags exportFlags) (err error) {
	t, err := findTarget(arg)
	if err != nil {
		return err
	}
	ctx, stop := interruptible(cmd)
	defer stop()
	device, isDevice := blockDevice{}, false
	var place output.Place
	stream := out == toStdout
	if !stream {
		if device, isDevice, err = findDevice(out); err != nil {
			return err
		}
		if isDevice {
			err = t.checkDevice(device, flags)
		} else if place, err = output.Find(out); err == nil {
			stream = place.Direct()
			err = t.checkPlace(place, flags)
		}
		if err != nil {
			return err
		}
	}
	e, closeSource, err := t.exportSource(name, !stream && !isDevice && !flags.compress && !flags.skip, warnings(cmd.ErrOrStderr()))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeSource()) }()
	var salvage *overlay.Salvage
	if flags.skip {
		salvage = overlay.NewSalvage(e.Source, e.Size)
		e.Source = salvage
	}
	bar := progress.New(cmd.ErrOrStderr(), cmd.Name()+" "+t.name())
	e.Progress = bar.Update
	var rest int64
	switch {
	case out == toStdout:
		err = e.Stream(ctx, cmd.OutOrStdout())
	case isDevice:
		rest, err = exportDevice(ctx, e, device)
	case stream:
		err = exportStream(ctx, e, place)
	default:
		err = exportFile(ctx, e, place.Path, flags)
	}
	bar.Clear()
	switch {
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("interrupted; %s was not made", out)
	case err != nil:
		if !flags.skip {
			err = damageHint(err)
		}
		return err
	}
	bar.Finish(e.Size)
	if rest > 0 {
		say(cmd.ErrOrStderr(), "%s is larger; its last %s are as they were", out, show.Size(rest))
	}
	if salvage != nil {
		return sayLost(cmd.ErrOrStderr(), cmd.Name()+" "+arg, out, salvage, e.Size)
	}
	return nil
}

// checkPlace refuses a place that cannot take an export.
func (t target) checkPlace(place output.Place, flags exportFlags) error {
	if !place.Direct() {
		return t.checkOut(place.Path, flags.force)
	}
	if flags.format == "qcow2" {
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
			err = underlying(err)
		}
		return fmt.Errorf("write %s: %w; only a part was written", f.Name(), err)
	}
	return err
}

// checkOut refuses an OUT that is there, or where it would be in the way.
func (t target) checkOut(out string, force bool) error {
	dir, err := mounts.Resolve(filepath.Dir(out))
	if err != nil {
		return err
	}
	if err := t.refuseInside(dir, out); err != nil {
		return err
	}
	for _, above := range []string{dir, filepath.Dir(dir)} {
		if isDiskDirectory(above) {
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
	return t.checkReplaced(out, info)
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

// exportSource opens the view of a layer. Of a mounted disk it is read through
// the mount: the daemon alone knows where content stands while its jobs move it,
// and an open layer is not deleted. With share its blocks are shared when they rest.
func (t target) exportSource(name string, share bool, log *slog.Logger) (e overlay.Export, closeSource func() error, err error) {
	if t.mountpoint == "" {
		d, err := t.open(chain.OpenOptions{Log: log, ReadOnly: true})
		if err != nil {
			return e, nil, err
		}
		source, size, err := d.ExportSource(name)
		if err != nil {
			return e, nil, errors.Join(err, d.Close())
		}
		return overlay.Export{Source: source, Size: size}, d.Close, nil
	}
	file := []string{"layers", name + ".raw"}
	if name == "leaf" {
		if !t.readOnly {
			return e, nil, fmt.Errorf("the leaf of a mounted disk changes while it is read; take a snapshot with \"varve snapshot %s NAME\" and export that", chain.ShellWord(t.arg))
		}
		file = []string{"disk.raw"}
	} else if err := chain.CheckName(name); err != nil && name != "base" {
		return e, nil, err
	}
	image, err := t.openView(file...)
	if errors.Is(err, os.ErrNotExist) {
		return e, nil, fmt.Errorf("snapshot %s: %w", name, chain.ErrNotExist)
	}
	if err != nil {
		return e, nil, t.explain(err)
	}
	view := newRawView(image)
	e = overlay.Export{Source: view, Size: image.Size()}
	// Which files are shared another user's daemon must not say.
	if !share || t.owner != 0 && t.owner != os.Geteuid() {
		return e, image.Close, nil
	}
	shared := &sharedView{rawView: view, file: image.File()}
	e.Source = shared
	return e, shared.Close, nil
}

// openView opens a file of the mount. With O_DIRECT it does not go into the page
// cache a second time, and is read in larger pieces.
func (t target) openView(elements ...string) (*qcow2.Image, error) {
	f, err := t.place().OpenDirect(t.readWait(), elements...)
	if err != nil {
		return nil, err
	}
	image, err := qcow2.NewImage(f, "raw")
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return image, nil
}

// exportFile writes OUT under another name beside it, which it gets at the end.
func exportFile(ctx context.Context, e overlay.Export, out string, flags exportFlags) (err error) {
	host := hostfs.OS()
	partial := partialBeside(out)
	f, err := host.Open(partial, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return fmt.Errorf("make %s: %w", out, underlying(err))
	}
	done := false
	// An interrupt while the mount gives no answer ends this process without what is deferred.
	defer waiting.Finally(func() { _ = host.Remove(partial) })()
	defer func() {
		if !done {
			err = errors.Join(err, host.Remove(partial))
		}
	}()
	if flags.format == "qcow2" {
		err = e.Qcow2(ctx, f, flags.compress)
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
	if err := publish(partial, out, flags.force); err != nil {
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

// underlying leaves out the name of a file that the user has not named.
func underlying(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}
