package fs

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"varve/chain"
)

// command is a control file: what writing a line to it does.
type command struct {
	name    string
	usage   string // completes "write …"
	example string // a line to write
	// run carries a line out. job is the id of a job that goes on in the
	// background, or "".
	run func(d disk, line string) (job string, err error)
	// now says in a few words what is in force; nil where there is no such thing.
	now func(d disk) string
}

// unnamedLayers is what delete takes instead of a name; a name cannot begin
// with '-'.
const unnamedLayers = "--unnamed"

// commands lists the control files. Their order decides their node ids: new
// ones go to the end.
func commands() []command {
	return []command{
		{
			"snapshot", "NAME to freeze the leaf under that name and go on in a new leaf", "before-upgrade",
			func(d disk, line string) (string, error) { return "", d.Snapshot(line) }, nil,
		}, {
			"revert", "NAME to set the leaf aside and start a new one on that snapshot, or on base", "before-upgrade",
			func(d disk, line string) (string, error) { return "", d.Revert(line) }, nil,
		}, {
			"delete", "NAME to remove a snapshot; what newer layers need of it is merged into them", "before-upgrade",
			func(d disk, line string) (string, error) {
				if line == unnamedLayers {
					return d.DeleteUnnamed()
				}
				return d.Delete(line)
			}, nil,
		}, {
			"flatten", "NAME of a snapshot, or leaf, to copy into it all that it needs of the layers below", "leaf",
			func(d disk, line string) (string, error) { return d.Flatten(line) }, nil,
		}, {
			"rename", "OLD NEW to rename a snapshot", "before-upgrade upgrade-1",
			func(d disk, line string) (string, error) {
				words := strings.Split(line, " ")
				if len(words) != 2 {
					return "", refuse(unix.EINVAL, "rename takes two names with one space between them")
				}
				return "", d.Rename(words[0], words[1])
			}, nil,
		}, {
			"resize", "a size in bytes, or with K, M, G or T, to grow the disk", "40G",
			func(d disk, line string) (string, error) {
				size, err := chain.ParseSize(line)
				if err != nil {
					return "", err
				}
				return "", d.Resize(size)
			}, nil,
		}, {
			"cancel", "the number of a job to stop it", "3",
			func(d disk, line string) (string, error) { return "", d.Cancel(line) }, nil,
		}, {
			"rate", "a size to let jobs copy no more than that in a second, or 0 or max for no limit", "100M",
			func(d disk, line string) (string, error) {
				rate, err := chain.ParseRate(line)
				if err != nil {
					return "", err
				}
				return "", d.SetJobRate(rate)
			},
			func(d disk) string { return rateWords(d.JobRate()) },
		}, {
			diffCommand, "A B, two of base, leaf and the snapshots, and read on for where they differ", "before-upgrade leaf",
			func(d disk, line string) (string, error) { return "", nil }, nil, // see beginDiff
		},
	}
}

// maxCommand is the longest command in bytes, its newline included. Two names
// of the longest kind fit many times.
const maxCommand = 4096

// parseCommand takes the line out of one write.
func parseCommand(data []byte) (line string, err error) {
	if len(data) > maxCommand {
		return "", refuse(unix.EINVAL, fmt.Sprintf("the command has %d bytes, at most %d are allowed", len(data), maxCommand))
	}
	line = strings.TrimSuffix(string(data), "\n")
	switch {
	case strings.Contains(line, "\n"):
		return line, refuse(unix.EINVAL, "more than one line; write one command at a time")
	case strings.TrimSpace(line) == "":
		return line, refuse(unix.EINVAL, "the line is empty")
	case line[0] == '#':
		return line, refuse(unix.EINVAL, "the line begins with '#', as what is read from here does")
	case !utf8.ValidString(line):
		return line, refuse(unix.EINVAL, "the line is not UTF-8 text")
	case strings.ContainsFunc(line, unicode.IsControl):
		return line, refuse(unix.EINVAL, "the line has a control character in it")
	}
	return line, nil
}

// usageText is the head of what a control file reads.
func (c command) usageText(d disk) string {
	text := fmt.Sprintf("# %s: write %s.\n# example: echo %s > control/%s\n", c.name, c.usage, c.example, c.name)
	if c.now != nil {
		text += "# now: " + c.now(d) + "\n"
	}
	return text
}

// rateWords is a limit for people and programs.
func rateWords(bytes int64) string {
	if bytes == 0 {
		return "max"
	}
	return fmt.Sprintf("%d (%s/s)", bytes, HumanSize(bytes))
}
