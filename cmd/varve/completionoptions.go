package main

import (
	"strings"

	"github.com/spf13/cobra"
)

// completeOptions completes the last of the options of -o, which stand behind
// each other with commas between them.
func completeOptions(_ []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	before := prefix[:strings.LastIndexByte(prefix, ',')+1]
	var list []cobra.Completion
	for _, option := range []struct{ name, words string }{
		{"allow_other", "let other users in, as far as the modes do"},
		{"cache=", "memory for looked-up places"},
		{"disk=", "disk directory of an image"},
		{"format=qcow2", "the image's format"},
		{"format=raw", "the image's format"},
		{"gid=", "group of the files"},
		{"job_rate=", "bytes per second of deletes and flattens"},
		{"noatime", "mount(8)"},
		{"noexec", "mount(8)"},
		{"ro", "write nothing anywhere"},
		{"uid=", "owner of the files"},
		{"umask=", "bits taken from the modes, octal"},
	} {
		name, _, _ := strings.Cut(option.name, "=")
		given := strings.HasPrefix(before, name+"=") || strings.Contains(","+before, ","+name+",") || strings.Contains(before, ","+name+"=")
		if strings.HasPrefix(before+option.name, prefix) && !given {
			list = append(list, described(before+option.name, option.words))
		}
	}
	return list, goOnTyping
}
