package main

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

// slow is how much a job has to copy that a test wants to meet under way.
const slow = 768 << 20

func TestJobInBackground(t *testing.T) {
	dir, _ := mounted(t, slow, slow)
	must(t, dir, "snapshot", "mnt", "one")
	r := must(t, dir, "flatten", "mnt", "one", "--background")
	if !regexp.MustCompile(`^varve: flatten mnt: job 1 runs in the background; "varve status mnt" shows how far it is\n$`).MatchString(r.stderr) {
		t.Errorf("says %q", r.stderr)
	}
	for _, c := range []struct{ args, words string }{
		{"flatten mnt leaf", "job 1 (flatten) is running"},
		{"delete mnt one", "job 1 (flatten) is running"},
		{"revert mnt one", "job 1 (flatten) is running"},
	} {
		fails(t, dir, exitFailed, []string{c.words}, strings.Fields(c.args)...)
	}
	must(t, dir, "snapshot", "mnt", "two") // allowed beside a job
	if r := must(t, dir, "list"); !strings.Contains(r.stdout, "1 flatten") {
		t.Errorf("list says\n%s", r.stdout)
	}
	must(t, dir, "cancel", "mnt")
	if st := document(t, dir, "mnt"); st.Job == nil || st.Job.State != jobCancelled {
		t.Errorf("the job: %+v", st.Job)
	}
	fails(t, dir, exitFailed, []string{"no job is under way"}, "cancel", "mnt")
}

// A command that waits can be interrupted; on a mounted disk the job goes on.
func TestInterruptedWaitMounted(t *testing.T) {
	dir, mnt := mounted(t, slow, slow)
	must(t, dir, "snapshot", "mnt", "one")
	r := interrupt(t, dir, "flatten", "mnt", "one")
	if r.code != exitFailed || r.stderr != "varve: flatten mnt: interrupted; job 1 goes on in the background, \"varve cancel mnt 1\" stops it\n" {
		t.Errorf("exit %d, says %q", r.code, r.stderr)
	}
	if st := document(t, dir, "mnt"); st.Job == nil || st.Job.ID != "1" || st.Job.State != jobRunning {
		t.Errorf("the job: %+v", st.Job)
	}
	// It goes on at the next mount.
	must(t, dir, "umount", "mnt")
	must(t, dir, "mount", "vm.raw", "mnt")
	eventually(t, "the job is done", func() bool {
		st := document(t, dir, "mnt")
		return st.Job != nil && st.Job.ID == "1" && st.Job.State == jobDone
	})
	if got := get(t, mnt+"/layers/one.raw", slow-4096, 4096); got != get(t, dir+"/vm.raw", slow-4096, 4096) {
		t.Error("the flattened layer has other content than the base")
	}
}

// On a disk that is not mounted the job stops in good order and goes on later.
func TestInterruptedWaitUnmounted(t *testing.T) {
	dir, _ := mounted(t, slow, slow)
	must(t, dir, "snapshot", "mnt", "one")
	must(t, dir, "umount", "mnt")
	r := interrupt(t, dir, "flatten", "vm.raw", "one")
	if r.code != exitFailed || r.stderr != "varve: flatten vm.raw: interrupted; job 1 was stopped in good order and goes on when the disk is next mounted or worked on\n" {
		t.Errorf("exit %d, says %q", r.code, r.stderr)
	}
	tool(t, dir, "qemu-img", "check", "-q", "vm.raw.varve/layers/000002.qcow2")
	must(t, dir, "mount", "vm.raw", "mnt")
	eventually(t, "the job is done", func() bool {
		st := document(t, dir, "mnt")
		return st.Job != nil && st.Job.ID == "1" && st.Job.State == jobDone
	})
}

// interrupt runs varve and sends it what Ctrl-C sends, once the job is there.
func interrupt(t *testing.T, dir string, args ...string) result {
	t.Helper()
	cmd := command(dir, args...)
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &words
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the job is recorded", func() bool {
		b, err := os.ReadFile(dir + "/vm.raw.varve/chain.json")
		return err == nil && bytes.Contains(b, []byte(`"kind": "flatten"`))
	})
	time.Sleep(50 * time.Millisecond)
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	return result{cmd.ProcessState.ExitCode(), out.String(), words.String()}
}

func TestJobRecordedUnmounted(t *testing.T) {
	dir, mnt := mounted(t, 8<<20, 8<<20)
	put(t, mnt, "hello", 1<<20)
	must(t, dir, "snapshot", "mnt", "one")
	put(t, mnt, "world", 2<<20)
	must(t, dir, "snapshot", "mnt", "two")
	must(t, dir, "umount", "mnt")
	r := must(t, dir, "delete", "vm.raw", "one", "--background")
	if r.stderr != "varve: delete vm.raw: job 1 is recorded; the disk is not mounted, so it goes on at the next mount\n" {
		t.Errorf("says %q", r.stderr)
	}
	// Nothing has been copied yet, and commands that have to do with other
	// things do not begin to.
	must(t, dir, "snapshot", "vm.raw", "three")
	if st := document(t, dir, "vm.raw"); named(st) != "base two three" || len(st.Layers) != 5 {
		t.Errorf("status says %+v", st)
	}
	must(t, dir, "mount", "vm.raw", "mnt")
	eventually(t, "the layer is gone", func() bool { return len(document(t, dir, "mnt").Layers) == 4 })
	for off, want := range map[int64]string{1 << 20: "hello", 2 << 20: "world"} {
		if got := get(t, mnt+"/layers/two.raw", off, 5); got != want {
			t.Errorf("two has %q at %d, want %q", got, off, want)
		}
	}
}

func TestDeleteUnnamed(t *testing.T) {
	for _, background := range []bool{true, false} {
		dir, mnt := mounted(t, 8<<20, 8<<20)
		must(t, dir, "snapshot", "mnt", "one")
		put(t, mnt, "aside", 0)
		must(t, dir, "umount", "mnt")
		must(t, dir, "revert", "vm.raw", "one")
		must(t, dir, "delete", "vm.raw", "one", "--background")
		if background {
			must(t, dir, "mount", "vm.raw", "mnt")
		}
		r := must(t, dir, "delete", "vm.raw", "--unnamed")
		if !strings.HasPrefix(r.stderr, "delete vm.raw: done") {
			t.Errorf("says %q", r.stderr)
		}
	}
}
