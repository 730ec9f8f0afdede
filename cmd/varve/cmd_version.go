package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version and commit are set by the linker: -X main.version=v1.2.3. Without it the
// module's own version counts, and the commit that the go command has found, which
// finds none in a git worktree or a copy of the sources.
var version, commit string

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Say which varve this is",
		Long:    `Says the version, the commit that it was built from, and by which Go.`,
		Example: `  varve version`,
		Args:    takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), thisVersion())
			return err
		},
	}
}

// thisVersion words the program that runs.
func thisVersion() string {
	info, _ := debug.ReadBuildInfo()
	return versionLine(version, commit, info)
}

// versionLine words a build: info may be nil.
func versionLine(linked, commit string, info *debug.BuildInfo) string {
	modified := ""
	if info != nil {
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision":
				commit = s.Value
			case s.Key == "vcs.modified" && s.Value == "true":
				modified = ", modified"
			}
		}
	}
	if commit == "" {
		commit = "unknown"
	}
	return fmt.Sprintf("varve %s (commit %s%s) %s %s/%s", versionNumber(linked, info), commit, modified, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// versionNumber is what a build calls itself.
func versionNumber(linked string, info *debug.BuildInfo) string {
	switch {
	case linked != "":
		return linked
	case info != nil && info.Main.Version != "":
		return info.Main.Version
	}
	return "(devel)"
}
