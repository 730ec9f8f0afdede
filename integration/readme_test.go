package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"varve/integration/harness"
)

// vmScript stands in for QEMU: the VM that it is asked for is made, so it opens
// its disk as told, and ended before it runs.
const vmScript = `#!/bin/sh
set -e
%s "$@" -S -display none -daemonize -pidfile vm.pid
pid=$(cat vm.pid)
kill "$pid"
while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
`

// TestReadme runs the commands of the README's shell blocks, in their order, as
// a user does: in one directory with an image in it, and varve on the PATH.
func TestReadme(t *testing.T) {
	dir, bin := t.TempDir(), t.TempDir()
	if err := os.Symlink(harness.Varve(), filepath.Join(bin, "varve")); err != nil {
		t.Fatal(err)
	}
	const vm = "qemu-system-x86_64"
	qemu, err := exec.LookPath(vm)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, vm), []byte(fmt.Sprintf(vmScript, qemu)), 0o755); err != nil {
		t.Fatal(err)
	}
	tree := t.TempDir()
	if err := os.WriteFile(filepath.Join(tree, "a-file"), []byte("hello\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(dir, "ubuntu.raw")
	harness.PartitionedImage(t, image, 32<<20, tree)
	harness.Guard(t, image)

	var script strings.Builder
	fmt.Fprintf(&script, "cd '%s'; PATH='%s':$PATH; set -x\n", dir, bin)
	commands := 0
	for _, block := range shellBlocks(t, "README.md") {
		script.WriteString(block)
		commands += strings.Count(block, "\n")
	}
	if commands < 30 {
		t.Fatalf("only %d lines of commands in the README", commands)
	}
	out := harness.Shell(t, script.String())
	for _, want := range []string{"a-file", "after-upgrade", "before-cleanup", "virtual size: 40 GiB"} {
		if !strings.Contains(out, want) {
			t.Errorf("the README's commands do not show %q:\n%s", want, out)
		}
	}
}

// shellBlocks are the blocks of a page in the checkout that are marked sh.
func shellBlocks(t *testing.T, page string) []string {
	t.Helper()
	var blocks []string
	rest := readPage(t, page)
	for {
		_, after, found := strings.Cut(rest, "\n```sh\n")
		if !found {
			return blocks
		}
		block, after, closed := strings.Cut(after, "\n```\n")
		if !closed {
			t.Fatalf("%s: a block is not closed", page)
		}
		blocks = append(blocks, block+"\n")
		rest = "\n" + after
	}
}

func readPage(t *testing.T, page string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(harness.Checkout(t), page))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestReference looks for every command, every flag and every field of
// status.json and chain.json in the reference.
func TestReference(t *testing.T) {
	reference := readPage(t, "docs/reference.md")
	found := 0
	help := harness.Run(t, harness.Varve(), "--help")
	for _, c := range regexp.MustCompile(`(?m)^  ([a-z]+)  +[A-Z]`).FindAllStringSubmatch(help, -1) {
		command := c[1]
		if command == "help" {
			continue
		}
		found++
		if !strings.Contains(reference, "`varve "+command+" ") && !strings.Contains(reference, "`varve "+command+"`") {
			t.Errorf("the reference has no varve %s", command)
		}
		for _, flag := range regexp.MustCompile(`(?m)^ +(?:-[a-z], )?(--[a-z-]+)`).FindAllStringSubmatch(
			harness.Run(t, harness.Varve(), command, "--help"), -1) {
			if flag[1] != "--help" && !strings.Contains(reference, flag[1]) {
				t.Errorf("the reference has no %s of varve %s", flag[1], command)
			}
		}
	}
	if found < 15 {
		t.Errorf("only %d commands found in\n%s", found, help)
	}

	disk := filepath.Join(t.TempDir(), "blank.varve")
	harness.Run(t, harness.Varve(), "create", disk, "--size", "1M")
	for _, document := range []string{
		harness.Run(t, harness.Varve(), "status", disk, "--json"),
		harness.Run(t, "cat", filepath.Join(disk, "chain.json")),
	} {
		fields := regexp.MustCompile(`(?m)^ *"([a-z_]+)":`).FindAllStringSubmatch(document, -1)
		if len(fields) < 15 {
			t.Errorf("only %d fields in\n%s", len(fields), document)
		}
		for _, field := range fields {
			if !strings.Contains(reference, "`"+field[1]+"`") && !strings.Contains(reference, "`."+field[1]+"`") &&
				!strings.Contains(reference, "`layers[]."+field[1]+"`") && !strings.Contains(reference, "`"+field[1]+"[]`") {
				t.Errorf("the reference has no field %s", field[1])
			}
		}
	}
}
