// Package procs names processes of this host in messages. It reads /proc, each time
// anew. All functions are safe for concurrent use, and what they give can be printed:
// control characters, which a process may have in its name, are question marks.
package procs

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"
)

// Command is the name of a program that runs (proc_pid_comm(5), at most 15 bytes), "" of
// a process that has ended.
func Command(pid int) string {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return ""
	}
	return Printable(strings.TrimSuffix(string(comm), "\n"))
}

const (
	mostArguments = 64 << 10 // bytes of a command line that are looked at
	mostName      = 64       // characters of a VM's name that a message has
)

// VM is the name of the virtual machine that a process runs: what QEMU was given with
// -name, which for libvirt is the domain. It is "" of any other process, of a machine
// without a name, and where /proc does not show the arguments within a second. A long name
// is cut: whoever can run a program can call it QEMU.
func VM(pid int) string { return arguments.ask(time.Second, func() string { return vm(pid) }) }

// arguments is held by who reads the arguments of a process. They stand in its memory, a
// page of which may be of a file system that hangs: nobody waits for that, and nobody else
// begins to.
var arguments = make(turn, 1)

// turn lets one ask at a time.
type turn chan struct{}

// ask gives the answer of what, or "" when that takes longer than limit, or the answer of
// who asked before is still out.
func (t turn) ask(limit time.Duration, what func() string) string {
	late := time.After(limit)
	select {
	case t <- struct{}{}:
	case <-late:
		return ""
	}
	answer := make(chan string, 1)
	go func() {
		answer <- what()
		<-t
	}()
	select {
	case text := <-answer:
		return text
	case <-late:
		return ""
	}
}

// vm is VM without the limit.
func vm(pid int) string {
	f, err := os.Open(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return ""
	}
	defer f.Close() // only read
	text, err := io.ReadAll(io.LimitReader(f, mostArguments))
	if err != nil {
		return ""
	}
	args := strings.Split(string(text), "\x00")
	if !isQEMU(filepath.Base(args[0])) && !isQEMU(Command(pid)) {
		return ""
	}
	for i := 1; i+1 < len(args); i++ {
		if args[i] == "-name" || args[i] == "--name" {
			name := []rune(Printable(guest(args[i+1])))
			if len(name) > mostName {
				name = append(name[:mostName-1], '…')
			}
			return string(name)
		}
	}
	return ""
}

// isQEMU goes by a program's name, which the kernel may have cut to 15 bytes.
func isQEMU(name string) bool {
	return strings.HasPrefix(name, "qemu-system-") || name == "qemu-kvm" || name == "kvm"
}

// guest reads QEMU's -name: NAME or guest=NAME, with more options behind a comma; two
// commas are one of the name.
func guest(option string) string {
	const comma = "\x00" // which no argument has in it
	for part := range strings.SplitSeq(strings.ReplaceAll(option, ",,", comma), ",") {
		key, value, given := strings.Cut(part, "=")
		if !given {
			value = key // the first one alone may leave out its key
		}
		if !given || key == "guest" {
			return strings.ReplaceAll(value, comma, ",")
		}
	}
	return ""
}

// Title is a process as a message names it: "pid 12 qemu-system-x86 of VM web". The
// command is given by who has it from elsewhere, such as of a process that has ended.
// A process of another PID namespace has the number 0.
func Title(pid int, command string) string {
	if pid == 0 {
		return "a process that cannot be seen from here"
	}
	title := strings.TrimSpace(fmt.Sprintf("pid %d %s", pid, Printable(command)))
	if vm := VM(pid); vm != "" {
		title += " of VM " + vm
	}
	return title
}

// Printable replaces what a terminal or a line of text must not be given.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
