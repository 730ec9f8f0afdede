package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"varve/integration/harness"
)

// TestQuickstart runs make quickstart in a copy of the checkout, every command
// that it says to try next, in order, and make quickstart-clean.
func TestQuickstart(t *testing.T) {
	dir, err := os.MkdirTemp("", "quickstart-")
	if err != nil {
		t.Fatal(err)
	}
	harness.Shell(t, fmt.Sprintf(
		"cd '%s'; git -c safe.directory='*' ls-files -z -co --exclude-standard | tar --null -T - -cf - | tar -x -C '%s'",
		harness.Checkout(t), dir))
	target := func(name string) harness.Result {
		t.Helper()
		return harness.Try(t, "make", "--no-print-directory", "-C", dir, name)
	}
	t.Cleanup(func() {
		if r := target("quickstart-clean"); r.Code != 0 {
			t.Errorf("make quickstart-clean: %s%s", r.Stdout, r.Stderr)
		}
	})

	r := target("quickstart")
	if r.Code != 0 {
		t.Fatalf("make quickstart: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	for _, want := range []string{"Hello from the changed disk.", "Hello from the base image.", "before-change"} {
		if !strings.Contains(r.Stdout, want) {
			t.Errorf("make quickstart does not show %q:\n%s", want, r.Stdout)
		}
	}
	if again := target("quickstart"); again.Code == 0 || !strings.Contains(again.Stderr, "quickstart-clean") {
		t.Errorf("a second make quickstart: exit code %d, %s", again.Code, again.Stderr)
	}

	_, list, found := strings.Cut(r.Stdout, "Try next")
	if !found {
		t.Fatalf("make quickstart names no commands to try:\n%s", r.Stdout)
	}
	tried := 0
	for line := range strings.Lines(list) {
		// "  COMMAND # what it shows"; the shell takes the comment too.
		command, isCommand := strings.CutPrefix(line, "  ")
		if !isCommand {
			continue
		}
		harness.Shell(t, fmt.Sprintf("cd '%s'; %s", dir, command))
		tried++
	}
	if tried < 8 {
		t.Errorf("tried only %d commands of\n%s", tried, list)
	}
	if _, err := os.Stat(filepath.Join(dir, "quickstart")); !os.IsNotExist(err) {
		t.Errorf("quickstart/ after the last command, make quickstart-clean: %v", err)
	}
}
