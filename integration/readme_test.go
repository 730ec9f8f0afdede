package integration

import (
	"os"
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
