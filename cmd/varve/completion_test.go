package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// completed asks as a shell does, in dir: the candidates without what is said
// beside them, and the directive's number.
func completed(t *testing.T, dir string, words ...string) (candidates []string, directive string) {
	t.Helper()
	r := must(t, dir, append([]string{"__complete"}, words...)...)
	lines := strings.Split(strings.TrimSuffix(r.stdout, "\n"), "\n")
	for _, line := range lines[:len(lines)-1] {
		candidate, _, _ := strings.Cut(line, "\t")
		candidates = append(candidates, candidate)
	}
	for line := range strings.Lines(r.stderr) {
		if !strings.HasPrefix(line, "Completion ended with directive: ") {
			t.Errorf("completing %q says %s", words, line)
		}
	}
	return candidates, strings.TrimPrefix(lines[len(lines)-1], ":")
}

const (
	filesDirective  = "0"
	noneDirective   = "4"
	openDirective   = "6"  // no space behind it, no files
	dirsDirective   = "16" // directories only
	sortedDirective = "36" // no files, in this order
)

func TestCompletion(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	must(t, dir, "create", "other.varve", "--size", "1M")
	must(t, dir, "snapshot", "other.varve", "only")
	if err := os.MkdirAll(dir+"/sub/inner", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/notes.txt", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"one", "two", "three"} {
		must(t, dir, "snapshot", "mnt", name)
	}
	for _, c := range []struct {
		words      string // separated by spaces; the last is being typed, "_" for nothing yet
		candidates string
		directive  string
	}{
		{"snap", "snapshot", noneDirective},
		{"list _", "mnt other.varve sub/ vm.raw vm.raw.varve", noneDirective},
		{"list v", "vm.raw vm.raw.varve", noneDirective},
		{"list su", "sub/", openDirective},
		{"list sub/", "sub/inner/", openDirective},
		{"list " + dir + "/m", dir + "/mnt", noneDirective},
		{"list zzz", "", filesDirective},
		{"doctor v", "vm.raw vm.raw.varve", noneDirective},
		{"doctor su", "sub/", openDirective},
		{"doctor m", "mnt", noneDirective},
		{"doctor not", "", filesDirective},
		{"doctor mnt _", "", noneDirective},
		{"list mnt _", "", noneDirective},
		{"umount m", "mnt", noneDirective},
		{"revert mnt _", "three two one base", sortedDirective},
		{"revert " + mnt + " t", "three two", sortedDirective},
		{"revert vm.raw _", "three two one base", sortedDirective},
		{"revert other.varve _", "only base", sortedDirective},
		{"delete mnt _", "three two one", sortedDirective},
		{"delete mnt two _", "three one", sortedDirective},
		{"hold mnt th", "three", sortedDirective},
		{"clone mnt one _", "", dirsDirective},
		{"diff mnt _", "three two one base leaf", sortedDirective},
		{"delete nowhere _", "", sortedDirective},
		{"snapshot mnt _", "", noneDirective},
		{"rename mnt tw", "two", sortedDirective},
		{"rename mnt two _", "", noneDirective},
		{"flatten mnt l", "leaf", sortedDirective},
		{"flatten mnt _", "three two one leaf", sortedDirective},
		{"export mnt _", "three two one base leaf", sortedDirective},
		{"export mnt one _", "", filesDirective},
		{"export mnt one out --format _", "raw qcow2", noneDirective},
		{"export --format q", "qcow2", noneDirective},
		{"accept mnt b", "base", sortedDirective},
		{"cancel mnt _", "", noneDirective},
		{"resize mnt _", "", noneDirective},
		{"mount _", "", filesDirective},
		{"mount vm.raw _", "", dirsDirective},
		{"mount --disk _", "", dirsDirective},
		{"mount --umask _", "", noneDirective},
		{"mount -o no", "noatime noexec", openDirective},
		{"mount -o ro,uid=3,al", "ro,uid=3,allow_other", openDirective},
		{"mount -o ro,r", "", openDirective},
		{"create _", "", dirsDirective},
		{"create a --base _", "", filesDirective},
		{"version _", "", noneDirective},
	} {
		words := strings.Fields(c.words)
		if words[len(words)-1] == "_" {
			words[len(words)-1] = ""
		}
		candidates, directive := completed(t, dir, words...)
		if c.words == "list _" { // mounts elsewhere on this host are offered too
			candidates = slices.DeleteFunc(candidates, func(s string) bool { return s[0] == '/' })
		}
		if got := strings.Join(candidates, " "); got != c.candidates || directive != c.directive {
			t.Errorf("%s: %q (%s), want %q (%s)", c.words, got, directive, c.candidates, c.directive)
		}
	}
}

// A job that runs is offered to cancel by its number.
func TestCompletionOfAJob(t *testing.T) {
	dir, _ := mounted(t, 16<<20, 8<<20)
	must(t, dir, "flatten", "mnt", "leaf", "--background", "--rate", "1K")
	candidates, _ := completed(t, dir, "cancel", "mnt", "")
	if st := document(t, dir, "mnt"); st.Job == nil || !slices.Equal(candidates, []string{st.Job.ID}) {
		t.Errorf("offered %q, the job is %+v", candidates, st.Job)
	}
	must(t, dir, "cancel", "mnt")
}

// Whoever presses the tabulator is answered at once, and with no error, also
// where a daemon hangs or is gone.
func TestCompletionNeverHangs(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	must(t, dir, "snapshot", "mnt", "one")
	pid := daemonOf(t, dir+"/vm.raw.varve")
	ask := func(words ...string) []string {
		t.Helper()
		candidates, _ := completed(t, dir, words...)
		return candidates
	}
	goOn := stopped(t, pid)
	for _, disk := range []string{"mnt", mnt, "vm.raw", "vm.raw.varve"} {
		ask("delete", disk, "")
	}
	if got := ask("list", "m"); !slices.Equal(got, []string{"mnt"}) {
		t.Errorf("with a daemon that hangs: %q", got)
	}
	goOn()
	killed(t, dir+"/vm.raw.varve")
	if got := ask("list", "m"); !slices.Equal(got, []string{"mnt"}) {
		t.Errorf("with a daemon that is gone: %q", got)
	}
	if got := ask("delete", "mnt", ""); !slices.Equal(got, []string{"one"}) {
		t.Errorf("with a daemon that is gone: %q", got)
	}
	ask("delete", "mnt/layers", "")
	must(t, dir, "umount", "mnt")
}

func TestUsedArguments(t *testing.T) {
	for _, c := range []struct{ use, want string }{
		{"x", ""},
		{"x DISK NAME", "DISK;NAME"},
		{"x DISK (NAME | base | leaf) OUT", "DISK;NAME base leaf;OUT"},
		{"x DISK (NAME | --unnamed)", "DISK;NAME"},
		{"x DISK NAME|leaf", "DISK;NAME leaf"},
		{"x DIR (--size SIZE | --base IMAGE)", "DIR"},
		{"x DISK --base PATH", "DISK"},
		{"x [DISK | IMAGE | MOUNTPOINT]...", "DISK IMAGE MOUNTPOINT;..."},
		{"x [DISK...] [--all]", "DISK;..."},
		{"x DISK [JOB]", "DISK;JOB"},
		{"revert DISK NAME", "DISK;NAME base"},
		{"snapshot DISK (NAME | --auto)", "DISK;NEW"},
	} {
		positions, repeated := usedArguments(&cobra.Command{Use: c.use})
		var words []string
		for _, p := range positions {
			words = append(words, strings.Join(p, " "))
		}
		if repeated {
			words = append(words, "...")
		}
		if got := strings.Join(words, ";"); got != c.want {
			t.Errorf("%s: %q, want %q", c.use, got, c.want)
		}
	}
}

// Every argument and every flag's value of every command is of a kind that
// completion knows, or one of which nothing can be known.
func TestCompletionKnowsAllWords(t *testing.T) {
	unknown := []string{"NEW", "SIZE", "RATE", "UID", "GID", "UMASK", "TIME", "UINT32", "N", "SECONDS", "DURATION", "PATTERN", "NAME-PATTERN"}
	known := []string{"DISK", "NAME", "OLD", "LAYER", "A", "B", "JOB", "MOUNTPOINT", "DIR", "NEWDISK", "SOURCE", "IMAGE", "OUT", "FILE", "PATH"}
	root := newRootCommand()
	for _, c := range root.Commands() {
		positions, _ := usedArguments(c)
		for _, words := range positions {
			for _, word := range words {
				if word == strings.ToUpper(word) && !slices.Contains(known, word) && !slices.Contains(unknown, word) {
					t.Errorf("%s takes %s, which completion does not know", c.CommandPath(), word)
				}
			}
		}
	}
}
