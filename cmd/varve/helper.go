package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"varve/chain/mounts"
	"varve/cmd/varve/internal/daemon"
)

// mount(8) and umount(8) leave a file system type that the kernel does not know
// by itself to a program of that type's name. varve is both of these programs
// when it is called by one of their names, which are links to it.
const (
	mountHelper  = "mount." + mounts.FSType
	umountHelper = "umount." + mounts.FSType
)

// Exit codes of mount(8) and its helpers.
const (
	exitMountUsage  = 1  // wrong use
	exitMountFailed = 32 // the mount or the unmount failed
)

// asHelper runs varve as the helper that it was called as; ok is false when it
// was called by its own name. The daemon of a mount is started with the words of
// the command line, which are those of varve from then on.
func asHelper(called []string, stdout, stderr io.Writer) (code int, ok bool) {
	var args []string
	var err error
	switch filepath.Base(called[0]) {
	case mountHelper:
		args, err = mountHelperArgs(called[1:])
	case umountHelper:
		args, err = umountHelperArgs(called[1:])
	default:
		return 0, false
	}
	if err != nil {
		report(stderr, usageError{err})
		return exitMountUsage, true
	}
	if args == nil {
		return exitDone, true
	}
	os.Args = append([]string{"varve"}, args...)
	switch code = run(args, stdout, stderr); code {
	case exitFailed:
		code = exitMountFailed
	case exitUsage:
		code = exitMountUsage
	}
	return code, true
}

// mountHelperArgs makes the arguments of varve out of those that mount(8) gives:
// SOURCE MOUNTPOINT [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]. They are nil
// when there is nothing to do.
func mountHelperArgs(given []string) ([]string, error) {
	f := pflag.NewFlagSet(mountHelper, pflag.ContinueOnError)
	f.Usage = func() {}
	sloppy := f.BoolP("sloppy", "s", false, "")
	fake := f.BoolP("fake", "f", false, "")
	f.BoolP("no-mtab", "n", false, "")
	f.BoolP("verbose", "v", false, "")
	f.StringP("type", "t", "", "")
	options := f.StringArrayP("options", "o", nil, "")
	namespace := f.StringP("namespace", "N", "", "")
	if err := f.Parse(given); err != nil {
		return nil, helperUsage(mountHelper, "%w", err)
	}
	if f.NArg() != 2 {
		return nil, helperUsage(mountHelper, "it takes SOURCE and MOUNTPOINT")
	}
	if *namespace != "" {
		return nil, helperUsage(mountHelper, "another mount namespace is not supported; use nsenter(1)")
	}
	if *fake {
		return nil, nil
	}
	args := []string{"mount"}
	if len(*options) == 0 {
		args = append(args, "--defaults") // what fstab says counts, also where it says nothing
	}
	for _, list := range *options {
		kept, err := helperOptions(list, *sloppy)
		if err != nil {
			return nil, helperUsage(mountHelper, "%w", err)
		}
		args = append(args, "-o", kept)
	}
	return append(args, "--", f.Arg(0), f.Arg(1)), nil
}

// helperOptions leaves out what mount(8) says of itself, and with sloppy all
// that varve does not know.
func helperOptions(list string, sloppy bool) (string, error) {
	var kept []string
	for _, option := range daemon.SplitOptions(list) {
		key, _, valued := strings.Cut(option, "=")
		switch {
		case key == "remount":
			return "", errors.New("a mount cannot be changed; unmount the disk and mount it again")
		case valued && (key == "user" || key == "uhelper" || key == "helper"):
			continue
		case sloppy && !daemon.KnownOption(option):
			continue
		}
		kept = append(kept, daemon.EscapeOption(option))
	}
	return strings.Join(kept, ","), nil
}

// umountHelperArgs does the same for umount(8): MOUNTPOINT [-flnrv]
// [-N NAMESPACE] [-t TYPE].
func umountHelperArgs(given []string) ([]string, error) {
	f := pflag.NewFlagSet(umountHelper, pflag.ContinueOnError)
	f.Usage = func() {}
	force := f.BoolP("force", "f", false, "")
	lazy := f.BoolP("lazy", "l", false, "")
	f.BoolP("no-mtab", "n", false, "")
	f.BoolP("read-only", "r", false, "")
	f.BoolP("verbose", "v", false, "")
	f.StringP("type", "t", "", "")
	namespace := f.StringP("namespace", "N", "", "")
	if err := f.Parse(given); err != nil {
		return nil, helperUsage(umountHelper, "%w", err)
	}
	if f.NArg() != 1 {
		return nil, helperUsage(umountHelper, "it takes one MOUNTPOINT")
	}
	if *namespace != "" {
		return nil, helperUsage(umountHelper, "another mount namespace is not supported; use nsenter(1)")
	}
	args := []string{"umount"}
	if *force {
		args = append(args, "--force")
	}
	if *lazy {
		args = append(args, "--lazy")
	}
	return append(args, "--", f.Arg(0)), nil
}

func helperUsage(helper, format string, args ...any) error {
	return fmt.Errorf("%s: %w; it is for mount(8) to call, \"varve help\" says more", helper, fmt.Errorf(format, args...))
}
