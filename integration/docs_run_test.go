package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"varve/integration/harness"
)

// coming are commands, flags and files of the mount that the pages may name before
// varve has them. A block that needs one is left out until then, and no longer.
var coming = []string{}

// block is a fenced block of a page.
type block struct {
	line   int    // of its first command, from 1
	info   string // what stands behind the fence: "sh", "xml", ""
	text   string // ends with a newline
	scene  string // where it is run: what the last <!-- scene: NAME --> above it says, or ""
	notRun string // the reason why no test runs it, or ""
}

var (
	sceneMark  = regexp.MustCompile(`^<!-- scene: ([a-z]+) -->$`)
	notRunMark = regexp.MustCompile(`^\*Not run by the tests: (.{20,})`)
)

// pageBlocks are the fenced blocks of a page in the checkout, in their order. A
// paragraph that begins with "*Not run by the tests: REASON" is about the next block.
func pageBlocks(t *testing.T, page string) []block {
	t.Helper()
	var blocks []block
	var scene, notRun string
	var open *block
	for i, line := range strings.Split(readPage(t, page), "\n") {
		if info, isFence := strings.CutPrefix(line, "```"); isFence {
			if open != nil {
				blocks, open, notRun = append(blocks, *open), nil, ""
				continue
			}
			open = &block{line: i + 2, info: info, scene: scene, notRun: notRun}
			continue
		}
		switch {
		case open != nil:
			open.text += line + "\n"
		case sceneMark.MatchString(line):
			scene = sceneMark.FindStringSubmatch(line)[1]
		case notRunMark.MatchString(line):
			notRun = notRunMark.FindStringSubmatch(line)[1]
		case strings.HasPrefix(line, "#"):
			notRun = ""
		}
	}
	if open != nil {
		t.Fatalf("%s:%d: a block is not closed", page, open.line)
	}
	return blocks
}

var (
	varveUse  = regexp.MustCompile(`(?m)(?:^|[^\w./-])varve ([a-z]+)\b([^\n|;&#)]*)`)
	flagUse   = regexp.MustCompile(`(^|\s)(--[a-z-]+|-[a-z])\b`)
	partition = regexp.MustCompile(`(layers/[^\s/]+|disk)\.d\b`)
)

// lacks gives what a text uses that varve does not have, in the words of coming.
func lacks(t *testing.T, text string) []string {
	t.Helper()
	var missing []string
	add := func(what string) {
		if !slices.Contains(missing, what) {
			missing = append(missing, what)
		}
	}
	for _, use := range varveUse.FindAllStringSubmatch(strings.ReplaceAll(text, "\\\n", " "), -1) {
		command := use[1]
		help := commandHelp(t, command)
		if help == "" {
			add("varve " + command)
			continue
		}
		for _, flag := range flagUse.FindAllStringSubmatch(use[2], -1) {
			if !regexp.MustCompile(`(?m)^ .*(^|\s)` + flag[2] + `\b`).MatchString(help) {
				add("varve " + command + " " + flag[2])
			}
		}
	}
	if partition.MatchString(text) && !hasPartitions(t) {
		add("layers/NAME.d")
	}
	return missing
}

// helps and parts remember what commandHelp and hasPartitions found out.
var (
	helps = map[string]string{}
	parts *bool
)

// commandHelp is the help of a command, "" when there is none of that name.
func commandHelp(t *testing.T, command string) string {
	t.Helper()
	if help, known := helps[command]; known {
		return help
	}
	listed := regexp.MustCompile(`(?m)^  ` + command + `  +[A-Z]`)
	help := ""
	if listed.MatchString(harness.Run(t, harness.Varve(), "--help")) {
		help = harness.Run(t, harness.Varve(), command, "--help")
	}
	helps[command] = help
	return help
}

// hasPartitions tells whether a mount shows partitions as files.
func hasPartitions(t *testing.T) bool {
	t.Helper()
	if parts == nil {
		image := filepath.Join(t.TempDir(), "vm.raw")
		harness.PartitionedImage(t, image, 8<<20, t.TempDir())
		m := harness.MountDisk(t, image)
		_, err := os.Stat(m.Path("disk.d"))
		m.Unmount()
		there := err == nil
		parts = &there
	}
	return *parts
}

// pageScript is the shell script of a page's blocks of one scene, in their order,
// without those that cannot be run, and what is missing where some are left out.
func pageScript(t *testing.T, page, scene string) (script string, commands int, left []string) {
	t.Helper()
	var out strings.Builder
	for _, b := range pageBlocks(t, page) {
		if b.info != "sh" || b.scene != scene || b.notRun != "" {
			continue
		}
		if missing := lacks(t, b.text); len(missing) > 0 {
			t.Logf("%s:%d: left out, varve does not have %s yet", page, b.line, strings.Join(missing, ", "))
			for _, what := range missing {
				if !slices.Contains(coming, what) {
					t.Errorf("%s:%d uses %s, which varve does not have", page, b.line, what)
				}
			}
			left = append(left, missing...)
			continue
		}
		fmt.Fprintf(&out, ": '%s:%d'\n%s", page, b.line, b.text)
		commands += strings.Count(b.text, "\n")
	}
	return out.String(), commands, left
}

// scratch is a directory as a reader has it: ubuntu.raw in it, and a bin directory
// for the PATH with varve and a QEMU that ends at once.
func scratch(t *testing.T) (dir, bin string) {
	t.Helper()
	dir, bin = t.TempDir(), t.TempDir()
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
	return dir, bin
}

// TestPages runs the commands of the pages, each page in a directory of its own, as
// a user does who goes through it from top to bottom.
func TestPages(t *testing.T) {
	for _, page := range []struct {
		file     string
		scene    string
		commands int      // at least that many lines
		shows    []string // what the commands print
	}{
		{"README.md", "", 10, []string{"before-upgrade"}},
		{"docs/concepts.md", "", 15, []string{"monday", "backing file: "}},
		{"docs/guide.md", "guide", 60, []string{"a-file", "before-upgrade", "virtual size: 40 GiB"}},
	} {
		t.Run(page.file, func(t *testing.T) {
			dir, bin := scratch(t)
			script, commands, _ := pageScript(t, page.file, page.scene)
			if commands < page.commands {
				t.Errorf("only %d lines of commands are run", commands)
			}
			out := harness.Shell(t, fmt.Sprintf("cd '%s'; PATH='%s':$PATH; set -x\n%s", dir, bin, script))
			for _, want := range page.shows {
				if !strings.Contains(out, want) {
					t.Errorf("the commands do not show %q:\n%s", want, out)
				}
			}
		})
	}
}

var anyCommand = regexp.MustCompile(`(?m)^\s*(\$ )?(sudo )?(varve|virsh|virt-install|qemu-[a-z-]+|losetup|mount|umount|cp|mv|rm) `)

// TestPagesAreRun: each command in a page stands in a block that is run, or that
// says why not; and what varve's commands are called in the text is right.
func TestPagesAreRun(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join(harness.Checkout(t), "docs/*.md"))
	if err != nil || len(pages) < 8 {
		t.Fatalf("the pages: %v, %v", pages, err)
	}
	run := []string{"README.md", "docs/concepts.md", "docs/guide.md", "docs/troubleshooting.md"}
	for _, page := range run {
		for _, b := range pageBlocks(t, page) {
			if b.notRun == "" && b.info != "sh" && anyCommand.MatchString(b.text) {
				t.Errorf("%s:%d: a block with commands is not marked sh, so no test runs it:\n%s", page, b.line, b.text)
			}
			if page == "docs/troubleshooting.md" && b.info == "sh" {
				t.Errorf("%s:%d: no test runs the blocks of this page", page, b.line)
			}
			if page == "docs/guide.md" && !slices.Contains(append([]string{"guide", "takeover"}, libvirtScenes...), b.scene) {
				t.Errorf("%s:%d: no test runs the scene %q", page, b.line, b.scene)
			}
		}
	}
	uses := 0
	for _, page := range append(run, "docs/reference.md", "docs/durability.md") {
		for i, line := range strings.Split(readPage(t, page), "\n") {
			for _, span := range regexp.MustCompile("`(varve [a-z][^`]*)`").FindAllStringSubmatch(line, -1) {
				uses++
				for _, what := range lacks(t, span[1]) {
					if !slices.Contains(coming, what) {
						t.Errorf("%s:%d: `%s`: varve has no %s", page, i+1, span[1], strings.TrimPrefix(what, "varve "))
					}
				}
			}
		}
	}
	if uses < 50 {
		t.Errorf("only %d commands found in the pages' text", uses)
	}
}
