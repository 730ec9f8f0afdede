package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"varve/chain"
	"varve/chain/bounded"
	"varve/chain/mounts"
	"varve/cmd/varve/internal/claim"
	"varve/cmd/varve/internal/mountfile"
	"varve/cmd/varve/internal/tell"
	"varve/cmd/varve/internal/where"
)

// completeDisk offers what DISK can be: the varve mounts of this host, and in
// the directory that is being typed disk directories, images that have one, and
// directories to go on into.
func completeDisk(_ []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	mounted, err := mounts.List()
	if err != nil {
		return nil, filesToo
	}
	// The shell has replaced a "~" before it asked, and would throw away what
	// does not begin with one; itself it knows better.
	if home, err := os.UserHomeDir(); err == nil && home != "/" && strings.HasPrefix(prefix, home+"/") {
		return nil, filesToo
	}
	candidates, allOpen := disksIn(prefix, mounted)
	for _, m := range mounted {
		if tell.Visible(m.Mountpoint) == m.Mountpoint && strings.HasPrefix(m.Mountpoint, prefix) && !shownIn(prefix, m.Mountpoint) {
			candidates = append(candidates, described(m.Mountpoint, "mount of "+m.Source))
			allOpen = false
		}
	}
	switch {
	case len(candidates) == 0:
		return nil, filesToo
	case allOpen:
		return candidates, goOnTyping
	}
	return candidates, onlyThese
}

// shownIn says whether a mountpoint lies in the directory that is being typed,
// where it was offered by a shorter name.
func shownIn(prefix, mountpoint string) bool {
	dir, err := mounts.Resolve(directoryOf(prefix))
	return err == nil && filepath.Dir(mountpoint) == dir
}

// directoryOf is the directory part of a path that is being typed.
func directoryOf(prefix string) string {
	if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
		return prefix[:i+1]
	}
	return "."
}

// disksIn offers the entries of the directory that is being typed. allOpen says
// that all of them are directories to go on into.
func disksIn(prefix string, mounted []mounts.Mount) (candidates []cobra.Completion, allOpen bool) {
	dir := directoryOf(prefix)
	typed := prefix[:strings.LastIndexByte(prefix, '/')+1]
	first := strings.TrimPrefix(prefix, typed)
	resolved, err := mounts.Resolve(dir)
	if err != nil {
		return nil, false
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, false
	}
	allOpen = true
	for _, e := range entries {
		name := e.Name()
		if !strings.HasPrefix(name, first) || first == "" && name[0] == '.' {
			continue
		}
		path := filepath.Join(resolved, name)
		// A mountpoint is not looked into: its daemon may not answer.
		at := slices.IndexFunc(mounted, func(m mounts.Mount) bool { return m.Mountpoint == path })
		isDir := e.IsDir()
		if at < 0 && e.Type()&os.ModeSymlink != 0 {
			if info, err := os.Stat(path); err == nil {
				isDir = info.IsDir()
			}
		}
		switch {
		case at >= 0:
			candidates = append(candidates, described(typed+name, "mount of "+mounted[at].Source))
			allOpen = false
		case isDir && where.IsDiskDirectory(path):
			candidates = append(candidates, described(typed+name, "disk directory"))
			allOpen = false
		case isDir:
			candidates = append(candidates, typed+name+"/")
		case where.IsDiskDirectory(path + ".varve"):
			candidates = append(candidates, described(typed+name, "image with a disk directory"))
			allOpen = false
		}
	}
	return candidates, allOpen && len(candidates) > 0
}

// described is a candidate with what the shell shows beside it, where it does.
func described(candidate, words string) cobra.Completion {
	return cobra.CompletionWithDesc(candidate, tell.Visible(words))
}

// completeNames offers the snapshots of the disk that the first argument names,
// newest first, and the given words.
func completeNames(words ...string) completer {
	return func(args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return nil, onlyThese
		}
		var list []cobra.Completion
		offer := func(name, words string) {
			if strings.HasPrefix(name, prefix) && !slices.Contains(args[1:], name) {
				list = append(list, described(name, words))
			}
		}
		for _, s := range snapshotsOf(args[0]) {
			offer(s.name, s.words)
		}
		for _, w := range words {
			offer(w, map[string]string{"base": "the layer at the bottom", "leaf": "the disk as it is now"}[w])
		}
		// The order is that of time, not of the alphabet.
		return list, onlyThese | cobra.ShellCompDirectiveKeepOrder
	}
}

// completeJob offers the job that is under way.
func completeJob(args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return nil, onlyThese
	}
	dir, _ := whereIs(args[0])
	c, err := readChainFile(dir)
	if err != nil || c.Job == nil || !strings.HasPrefix(c.Job.ID, prefix) {
		return nil, onlyThese
	}
	if tell.Visible(c.Job.ID) != c.Job.ID {
		return nil, onlyThese
	}
	return []cobra.Completion{described(c.Job.ID, fmt.Sprintf("%s of layer %s", c.Job.Kind, c.Job.Layer))}, onlyThese
}

// snapshotName is a name that a command can be given, and when it was frozen.
type snapshotName struct{ name, words string }

// snapshotsOf lists the snapshots of a disk, newest first. It reads chain.json,
// as it does not need the daemon of a mount for that; where it may not, the mount
// of another user, it lists what the mount shows.
func snapshotsOf(disk string) []snapshotName {
	dir, mountpoint := whereIs(disk)
	var list []snapshotName
	if c, err := readChainFile(dir); err == nil {
		for _, l := range c.Layers {
			if chain.CheckName(l.Name) != nil || c.Base != nil && l.ID == *c.Base || l.ID == c.Leaf {
				continue
			}
			words := "snapshot"
			if l.Frozen != nil {
				words = "frozen " + l.Frozen.Local().Format("2006-01-02 15:04")
			}
			list = append(list, snapshotName{l.Name, words})
		}
		slices.Reverse(list)
		return list
	}
	if mountpoint == "" {
		return nil
	}
	m, ok, err := mounts.At(mountpoint)
	if err != nil || !ok {
		return nil
	}
	names, err := mountfile.At(m).Names("layers")
	if err != nil {
		return nil
	}
	slices.Sort(names)
	for _, file := range names {
		if name, ok := strings.CutSuffix(file, ".raw"); ok && chain.CheckName(name) == nil {
			list = append(list, snapshotName{name, "snapshot"})
		}
	}
	return list
}

// whereIs finds the disk directory and the mountpoint of a disk, each "" when it
// is not known. Unlike where.Find it waits for nobody and needs no rights.
func whereIs(disk string) (dir, mountpoint string) {
	path, err := mounts.Resolve(disk)
	if err != nil {
		return "", ""
	}
	if m, ok, err := mounts.At(path); err == nil && ok {
		if main, ok, err := mounts.Main(m.Device); err == nil && ok {
			m = main
		}
		if !claim.BelievedSoon(context.Background(), m, time.Second) {
			return "", m.Mountpoint
		}
		return m.Source, m.Mountpoint
	}
	if dir, err = where.DiskDirectory(path); err != nil {
		return "", ""
	}
	if m, ok, err := claim.MountOf(dir); err == nil && ok {
		mountpoint = m.Mountpoint
	}
	return dir, mountpoint
}

// chainFile is what completion needs of chain.json.
type chainFile struct {
	Leaf   string  `json:"leaf"`
	Base   *string `json:"base"`
	Layers []struct {
		ID     string     `json:"id"`
		Name   string     `json:"name"`
		Frozen *time.Time `json:"frozen"`
	} `json:"layers"`
	Job *struct {
		ID    string `json:"id"`
		Kind  string `json:"kind"`
		Layer string `json:"layer"`
	} `json:"job"`
}

// readChainFile reads the chain.json of a disk directory. It is replaced as a
// whole, so it needs no lock.
func readChainFile(dir string) (c chainFile, err error) {
	text, err := chain.ManifestText(dir)
	if err != nil {
		return c, err
	}
	err = bounded.JSON(text, &c)
	return c, err
}
