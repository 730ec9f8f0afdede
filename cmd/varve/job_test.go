package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"varve/chain"
	"varve/chain/dirlock"
)

func TestJobInBackground(t *testing.T) {
	dir, fast := slowDisk(t)
	r := must(t, dir, "flatten", "mnt", "one", "--background")
	if r.stderr != "varve: flatten mnt: job 1 runs in the background; \"varve status mnt\" shows how far it is\n" {
		t.Errorf("says %q", r.stderr)
	}
	for _, c := range []string{"flatten mnt leaf", "delete mnt one", "revert mnt one"} {
		fails(t, dir, exitFailed, []string{"job 1 (flatten) is running; wait for it or cancel it"}, strings.Fields(c)...)
	}
	must(t, dir, "snapshot", "mnt", "two") // allowed beside a job
	if r := must(t, dir, "list"); !strings.Contains(r.stdout, "1 flatten") {
		t.Errorf("list says\n%s", r.stdout)
	}
	must(t, dir, "cancel", "mnt")
	if st := document(t, dir, "mnt"); st.Job == nil || st.Job.State != chain.JobCancelled {
		t.Errorf("the job: %+v", st.Job)
	}
	fails(t, dir, exitFailed, []string{"no job is under way"}, "cancel", "mnt")
	fast()
	must(t, dir, "flatten", "mnt", "one")
}

// A command that waits for a job which somebody cancels has failed.
func TestWaitingForACancelledJob(t *testing.T) {
	dir, _ := slowDisk(t)
	cmd := command(dir, "flatten", "mnt", "one")
	var words bytes.Buffer
	cmd.Stderr = &words
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the job runs", func() bool {
		st := document(t, dir, "mnt")
		return st.Job != nil && st.Job.State == chain.JobRunning
	})
	must(t, dir, "cancel", "mnt", "1")
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != exitFailed || notices.ReplaceAllString(words.String(), "") != "varve: flatten mnt: job 1 was cancelled\n" {
		t.Errorf("exit %d, says %q", code, words.String())
	}
}

// Ctrl-C ends the waiting only; the job goes on, at the next mount too.
func TestInterruptedWaitMounted(t *testing.T) {
	dir, fast := slowDisk(t)
	r := interrupt(t, dir, "flatten", "mnt", "one")
	if r.code != exitFailed || r.stderr != "varve: flatten mnt: interrupted; job 1 goes on in the background, \"varve cancel mnt 1\" stops it\n" {
		t.Errorf("exit %d, says %q", r.code, r.stderr)
	}
	if st := document(t, dir, "mnt"); st.Job == nil || st.Job.ID != "1" || st.Job.State != chain.JobRunning {
		t.Errorf("the job: %+v", st.Job)
	}
	must(t, dir, "umount", "mnt")
	fast()
	jobEnds(t, dir)
}

// On a disk that is not mounted the job stops in good order and goes on later.
func TestInterruptedWaitUnmounted(t *testing.T) {
	dir, fast := slowDisk(t)
	must(t, dir, "umount", "mnt")
	r := interrupt(t, dir, "flatten", "vm.varve", "one")
	if r.code != exitFailed || r.stderr != "varve: flatten vm.varve: interrupted; job 1 was stopped in good order and goes on when the disk is next mounted or worked on\n" {
		t.Errorf("exit %d, says %q", r.code, r.stderr)
	}
	if clean, err := dirlock.ClosedInOrder(dir + "/vm.varve"); !clean || err != nil {
		t.Errorf("closed in order: %v, %v", clean, err)
	}
	tool(t, dir, "qemu-img", "check", "-q", "vm.varve/layers/000002.qcow2")
	// What has nothing to do with the job does not wait for it.
	must(t, dir, "rename", "vm.varve", "one", "uno")
	fast()
	jobEnds(t, dir)
}

// interrupt runs varve and sends it what Ctrl-C sends, once its job is there.
func interrupt(t *testing.T, dir string, args ...string) result {
	t.Helper()
	cmd := command(dir, args...)
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &words
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waitRecorded(t, dir)
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	return result{cmd.ProcessState.ExitCode(), out.String(), notices.ReplaceAllString(words.String(), "")}
}

func waitRecorded(t *testing.T, dir string) {
	t.Helper()
	eventually(t, "the job is recorded", func() bool {
		b, err := os.ReadFile(dir + "/vm.varve/chain.json")
		return err == nil && bytes.Contains(b, []byte(`"kind": "flatten"`))
	})
}

// jobEnds mounts the disk and waits for job 1, then compares the flattened
// layer with its base.
func jobEnds(t *testing.T, dir string) {
	t.Helper()
	must(t, dir, "mount", "vm.varve", "mnt")
	eventually(t, "the job is done", func() bool {
		st := document(t, dir, "mnt")
		return st.Job != nil && st.Job.ID == "1" && st.Job.State == chain.JobDone
	})
	must(t, dir, "umount", "mnt")
	tool(t, dir, "qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", "host/vm.raw", "vm.varve/layers/000002.qcow2")
	tool(t, dir, "qemu-img", "check", "-q", "vm.varve/layers/000002.qcow2")
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

// A job that was recorded on an unmounted disk can be cancelled there.
func TestCancelUnmounted(t *testing.T) {
	dir, mnt := mounted(t, 8<<20, 8<<20)
	put(t, mnt, "hello", 1<<20)
	must(t, dir, "snapshot", "mnt", "one")
	must(t, dir, "umount", "mnt")
	must(t, dir, "flatten", "vm.raw", "one", "--background")
	must(t, dir, "cancel", "vm.raw")
	fails(t, dir, exitFailed, []string{"no job is under way"}, "cancel", "vm.raw")
	if st := document(t, dir, "vm.raw"); st.Layers[1].Parent == nil {
		t.Errorf("it was flattened all the same: %+v", st)
	}
}

// What a cancelled delete left goes on with --unnamed.
func TestDeleteUnnamed(t *testing.T) {
	for name, remount := range map[string]bool{"mounted": true, "not mounted": false} {
		t.Run(name, func(t *testing.T) {
			dir, mnt := mounted(t, 8<<20, 8<<20)
			put(t, mnt, "hello", 0)
			must(t, dir, "snapshot", "mnt", "one")
			must(t, dir, "snapshot", "mnt", "two")
			must(t, dir, "umount", "mnt")
			must(t, dir, "delete", "vm.raw", "one", "--background")
			must(t, dir, "cancel", "vm.raw")
			if st := document(t, dir, "vm.raw"); len(st.Layers) != 4 || st.Layers[1].State != chain.StateUnnamed {
				t.Fatalf("after the cancel: %+v", st)
			}
			if remount {
				must(t, dir, "mount", "vm.raw", "mnt")
			}
			for range 2 { // the second time there is nothing to do
				if r := must(t, dir, "delete", "vm.raw", "--unnamed"); !strings.HasPrefix(r.stderr, "delete vm.raw: done") || strings.Count(r.stderr, "\n") != 1 {
					t.Errorf("says %q", r.stderr)
				}
				if st := document(t, dir, "vm.raw"); len(st.Layers) != 3 || named(st) != "base two" {
					t.Errorf("after it: %+v", st)
				}
			}
		})
	}
}

// A rate holds from the mount's flag on, is changed by control/rate and by --rate,
// and a job under way follows it.
func TestJobRate(t *testing.T) {
	dir := hostDir(t)
	image(t, dir+"/vm.raw", 24<<20, 24<<20)
	must(t, dir, "create", "vm.varve", "--base", "vm.raw")
	if err := os.Mkdir(dir+"/mnt", 0o700); err != nil {
		t.Fatal(err)
	}
	fails(t, dir, exitUsage, []string{"a rate is bytes per second"}, "mount", "vm.varve", "mnt", "--job-rate", "fast")
	must(t, dir, "mount", "vm.varve", "mnt", "-o", "job_rate=64K")
	rate := func() string {
		b, err := os.ReadFile(dir + "/mnt/control/rate")
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if s := rate(); !strings.Contains(s, "\n# now: 65536 (64 KiB/s)\n") {
		t.Errorf("control/rate reads\n%s", s)
	}
	must(t, dir, "snapshot", "mnt", "one")
	must(t, dir, "flatten", "mnt", "one", "--background") // six minutes
	eventually(t, "it copies", func() bool {
		st := document(t, dir, "mnt")
		return st.Job != nil && st.Job.Rate > 0 && st.Job.RateLimit == 65536
	})
	if r := must(t, dir, "status", "mnt"); !strings.Contains(r.stdout, "/s (limit 64 KiB/s)") {
		t.Errorf("status says\n%s", r.stdout)
	}
	if st := document(t, dir, "mnt"); st.Job.State != chain.JobRunning {
		t.Errorf("the job is %s", st.Job.State)
	}
	if err := os.WriteFile(dir+"/mnt/control/rate", []byte("max\n"), 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it goes on without a limit", func() bool { return document(t, dir, "mnt").Job.State == chain.JobDone })
	if s := rate(); !strings.Contains(s, "\n# now: max\n") {
		t.Errorf("control/rate reads\n%s", s)
	}
	must(t, dir, "flatten", "mnt", "leaf", "--rate", "1G")
	if st := document(t, dir, "mnt"); st.Job.State != chain.JobDone || st.Job.RateLimit != 1<<30 {
		t.Errorf("the job: %+v", st.Job)
	}
}
