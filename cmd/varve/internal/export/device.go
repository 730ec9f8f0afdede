package export

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"varve/cmd/varve/internal/client"
	"varve/cmd/varve/internal/output"
	"varve/cmd/varve/internal/waiting"
	"varve/cmd/varve/internal/where"
	"varve/fs/show"
	"varve/overlay"
	"varve/overlay/hostfs"
)

// blockDevice is a block device that an export is to be written over.
type blockDevice struct {
	name string // as the user wrote it
	sys  string // its directory in /sys
	rdev uint64
}

// findDevice gives the block device OUT; ok is false where it is none.
func findDevice(out string) (d blockDevice, ok bool, err error) {
	var st unix.Stat_t
	if err := unix.Stat(out, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return d, false, nil //nolint:nilerr // who makes or opens OUT says what is wrong with it
	}
	dir, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
	if err != nil {
		return d, false, fmt.Errorf("%s: no such block device: %w", out, err)
	}
	return blockDevice{name: out, sys: dir, rdev: st.Rdev}, true, nil
}

// sysText reads a file of a device in /sys, "" where there is none.
func sysText(dir, name string) string {
	text, _ := os.ReadFile(filepath.Join(dir, name))
	return strings.Join(strings.Fields(string(text)), " ")
}

// backingFiles are the paths of the files behind the device and behind what it stands on,
// such as the loop device below a logical volume. As they are: a name may have blanks in it.
func (d blockDevice) backingFiles() []string {
	var files []string
	for _, dir := range d.below() {
		if text, err := os.ReadFile(filepath.Join(dir, "loop/backing_file")); err == nil {
			files = append(files, strings.TrimSuffix(string(text), "\n"))
		}
	}
	return files
}

// below are the directories in /sys of the device's whole disk and of all that it stands
// on: device-mapper and md name theirs in slaves/.
func (d blockDevice) below() []string {
	dirs := []string{d.disk()}
	for i := 0; i < len(dirs); i++ {
		slaves, _ := filepath.Glob(filepath.Join(dirs[i], "slaves", "*"))
		for _, link := range slaves {
			dir, err := filepath.EvalSymlinks(link)
			if err != nil {
				continue // it has gone meanwhile
			}
			if dir = (blockDevice{sys: dir}).disk(); !slices.Contains(dirs, dir) {
				dirs = append(dirs, dir)
			}
		}
	}
	return dirs
}

// disk is the directory in /sys of the whole disk.
func (d blockDevice) disk() string {
	if _, err := os.Stat(filepath.Join(d.sys, "partition")); err == nil {
		return filepath.Dir(d.sys)
	}
	return d.sys
}

// describe tells a person which device it is: its model or its backing file, and size.
func (d blockDevice) describe() string {
	disk := d.disk()
	words := []string{filepath.Base(d.sys)}
	for _, name := range []string{"device/vendor", "device/model", "dm/name", "loop/backing_file"} {
		if text := sysText(disk, name); text != "" && !strings.HasPrefix(text, "0x") {
			words = append(words, text)
		}
	}
	var sectors int64
	if _, err := fmt.Sscan(sysText(d.sys, "size"), &sectors); err == nil {
		words = append(words, show.Size(sectors*512))
	}
	return strings.Join(words, ", ")
}

// parts are the directories in /sys of the device, of its partitions, and, of a
// partition, of its disk.
func (d blockDevice) parts() []string {
	dirs := []string{d.sys}
	if disk := d.disk(); disk != d.sys {
		return append(dirs, disk)
	}
	list, _ := filepath.Glob(filepath.Join(d.sys, "*", "partition"))
	for _, p := range list {
		dirs = append(dirs, filepath.Dir(p))
	}
	return dirs
}

// users names what uses the device, as far as the kernel shows it.
func (d blockDevice) users() string {
	swaps, _ := os.ReadFile("/proc/swaps")
	var users []string
	for _, dir := range d.parts() {
		name := filepath.Base(dir)
		number := sysText(dir, "dev")
		mounts, _ := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
			return fmt.Sprintf("%d:%d", i.Major, i.Minor) != number, false
		})
		for _, m := range mounts {
			users = append(users, fmt.Sprintf("%s is mounted at %s", name, m.Mountpoint))
		}
		holders, _ := filepath.Glob(filepath.Join(dir, "holders", "*"))
		for _, h := range holders {
			users = append(users, fmt.Sprintf("%s is part of %s", name, filepath.Base(h)))
		}
		for _, line := range strings.Split(string(swaps), "\n") {
			if fields := strings.Fields(line); len(fields) > 0 && fields[0] == "/dev/"+name {
				users = append(users, name+" is swap")
			}
		}
	}
	if len(users) == 0 {
		return "the kernel does not say by whom"
	}
	return strings.Join(slices.Compact(users), ", ")
}

// checkDevice refuses a device that was not asked for by force, or that is a part of
// the disk itself.
func checkDevice(t where.Target, d blockDevice, o Options) error {
	if o.Format == "qcow2" {
		return fmt.Errorf("%s is a block device, which takes a raw image; leave out --format", d.name)
	}
	if !o.Force {
		return fmt.Errorf("%s is a block device (%s); --force overwrites what is on it", d.name, d.describe())
	}
	for _, backing := range d.backingFiles() {
		info, err := os.Stat(backing)
		if err != nil {
			continue // a file that is gone is nobody's
		}
		err = t.RefuseInside(filepath.Dir(backing), backing)
		if err == nil {
			err = checkLayer(t, backing, info)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
	}
	layers, err := client.Layers(t)
	if err != nil {
		return err
	}
	numbers := map[string]bool{fmt.Sprintf("%d:%d", unix.Major(d.rdev), unix.Minor(d.rdev)): true}
	for _, dir := range append(d.parts(), d.below()...) {
		numbers[sysText(dir, "dev")] = true
	}
	for _, l := range layers {
		var st unix.Stat_t
		if err := unix.Stat(l.File, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && numbers[fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))] {
			return fmt.Errorf("%s: %s is a file of this disk (%s); name another one", d.name, l.File, client.Titles(layers)[l.ID])
		}
	}
	return nil
}

// exportDevice writes the view over the beginning of a block device.
func exportDevice(ctx context.Context, e overlay.Export, d blockDevice) (rest int64, err error) {
	// O_EXCL is EBUSY for a device that is mounted, swap, or part of another one, and
	// keeps it from becoming that.
	f, err := hostfs.OS().Open(d.name, os.O_RDWR|unix.O_EXCL, 0)
	switch {
	case errors.Is(err, unix.EBUSY):
		return 0, fmt.Errorf("%s (%s) is in use: %s", d.name, d.describe(), d.users())
	case err != nil:
		return 0, fmt.Errorf("%s (%s) cannot be written: %w", d.name, d.describe(), output.Underlying(err))
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if sysText(d.sys, "ro") == "1" { // which an open does not mind
		return 0, fmt.Errorf("%s (%s) cannot be written: %w", d.name, d.describe(), unix.EROFS)
	}
	if err := f.Lock(hostfs.LockWritable); err != nil { // against a VM that has it
		return 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if info.Size < e.Size {
		return 0, fmt.Errorf("%s (%s) has %d bytes, and the image %d", d.name, d.describe(), info.Size, e.Size)
	}
	forget := waiting.Leaves(d.name + " is half written")
	err = e.Device(ctx, f)
	forget()
	switch {
	case errors.Is(err, context.Canceled):
		return 0, fmt.Errorf("interrupted; %s is half written", d.name)
	case err != nil:
		return 0, fmt.Errorf("write %s: %w; it is half written", d.name, err)
	}
	return info.Size - e.Size, nil
}
