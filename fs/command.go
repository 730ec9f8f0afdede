package fs

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/fs/control"
	"varve/fs/show"
)

// command is a control file: what writing a line to it does.
type command struct {
	name    string
	usage   string // completes "write …"
	example string // a line to write
	// run carries a line out. job is the id of a job that goes on in the
	// background, or "". It is nil where answer stands.
	run func(d disk, line string) (job string, err error)
	// now says in a few words what is in force; nil where there is no such thing.
	now func(d disk) string
	// answer carries out a line that asks for something: what it gives, one line, can
	// be read from the same open file behind the outcome.
	answer func(d disk, line string) (text string, err error)
}

// commands lists the control files. Their order decides their node ids: new
// ones go to the end.
func commands() []command {
	return []command{
		{
			control.Snapshot, "NAME to freeze the leaf under that name and go on in a new leaf", "before-upgrade",
			func(d disk, line string) (string, error) { return "", d.Snapshot(line) }, nil, nil,
		}, {
			control.Revert, "NAME to set the leaf aside and start a new one on that snapshot, or on base", "before-upgrade",
			func(d disk, line string) (string, error) { return "", d.Revert(line) }, nil, nil,
		}, {
			control.Delete, "NAME, or several, to remove snapshots; what newer layers need of them is merged into them", "before-upgrade",
			func(d disk, line string) (string, error) {
				if line == control.Unnamed {
					return d.DeleteUnnamed()
				}
				return d.Delete(control.Words(line)...)
			}, nil, nil,
		}, {
			control.Flatten, "NAME of a snapshot, or leaf, to copy into it all that it needs of the layers below", "leaf",
			func(d disk, line string) (string, error) { return d.Flatten(line) }, nil, nil,
		}, {
			control.Rename, "OLD NEW to rename a snapshot", "before-upgrade upgrade-1",
			func(d disk, line string) (string, error) {
				words := control.Words(line)
				if len(words) != 2 {
					return "", refuse(unix.EINVAL, "rename takes two names with one space between them")
				}
				return "", d.Rename(words[0], words[1])
			}, nil, nil,
		}, {
			control.Resize, "a size in bytes, or with K, M, G or T, to grow the disk", "40G",
			func(d disk, line string) (string, error) {
				size, err := chain.ParseSize(line)
				if err != nil {
					return "", err
				}
				return "", d.Resize(size)
			}, nil, nil,
		}, {
			control.Cancel, "the number of a job to stop it", "3",
			func(d disk, line string) (string, error) { return "", d.Cancel(line) }, nil, nil,
		}, {
			control.Rate, "a size to let jobs copy no more than that in a second, or 0 or max for no limit", "100M",
			func(d disk, line string) (string, error) {
				rate, err := chain.ParseRate(line)
				if err != nil {
					return "", err
				}
				return "", d.SetJobRate(rate)
			},
			func(d disk) string { return rateWords(d.JobRate()) }, nil,
		}, {
			control.Undo, "leaf to make the leaf that the last revert set aside the leaf again, or --forget to remove it", "leaf",
			func(d disk, line string) (string, error) {
				switch line {
				case control.Leaf:
					return "", d.Undo()
				case control.ForgetAside:
					return d.Forget()
				}
				return "", refuse(unix.EINVAL, "write leaf, or "+control.ForgetAside)
			}, nil, nil,
		}, {
			control.Hold, "NAME to keep a snapshot from being deleted", "before-upgrade",
			func(d disk, line string) (string, error) { return "", d.Hold(line) }, nil, nil,
		}, {
			control.Release, "NAME to let a snapshot that is held be deleted again", "before-upgrade",
			func(d disk, line string) (string, error) { return "", d.Release(line) }, nil, nil,
		}, {
			control.Clone, "NAME DIR to make a new disk directory, by its absolute path, on that snapshot", "golden /srv/vm2.varve",
			func(d disk, line string) (string, error) {
				name, dir, ok := strings.Cut(line, " ")
				if !ok {
					return "", refuse(unix.EINVAL, "clone takes a name and an absolute path with one space between them")
				}
				_, err := d.Clone(name, dir)
				return "", err
			}, nil, nil,
		}, {
			control.Plan, "delete NAME, flatten NAME or revert NAME and read what that would do; it does nothing", "delete before-upgrade", nil, nil,
			func(d disk, line string) (string, error) {
				words := control.Words(line)
				if line == "" || words[0] != chain.OpDelete.String() && len(words) != 2 {
					return "", refuse(unix.EINVAL, "plan takes delete and names, or none for the best one, or flatten or revert and one name")
				}
				operation, err := chain.ParseOperation(words[0])
				if err != nil {
					return "", err
				}
				p, err := d.Plan(operation, words[1:])
				if err != nil {
					return "", err
				}
				text, err := json.Marshal(p)
				return string(text), err
			},
		}, {
			control.Diff, "A B, two of base, leaf and the snapshots, and read on for where they differ", "before-upgrade leaf",
			func(d disk, line string) (string, error) { return "", nil }, nil, nil, // see beginDiff
		},
	}
}

// maxCommand is the longest command in bytes, its newline included: a delete of some
// hundred names, in one request of any kernel's.
const maxCommand = 64 << 10

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
		return line, refuse(unix.EINVAL, "the line begins with '#', as the lines do that are read from this file; no command does")
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
	return fmt.Sprintf("%d (%s/s)", bytes, show.Size(bytes))
}
