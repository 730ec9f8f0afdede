package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"varve/chain/dirlock"
	"varve/integration/harness"
)

// mountedApart mounts vm.varve at mnt in a mount namespace of its own, of which the process
// holds the namespace until end. unshareFlags are further ones.
func mountedApart(t *testing.T, unshareFlags ...string) (dir string, holder int, end func()) {
	t.Helper()
	dir = hostDir(t)
	if err := os.Mkdir(dir+"/mnt", 0o700); err != nil {
		t.Fatal(err)
	}
	must(t, dir, "create", "vm.varve", "--size", "4M")
	varve := command(dir)
	there := exec.Command("unshare", append(append([]string{"--mount", "--propagation", "private"}, unshareFlags...), "sh", "-c",
		varve.Path+" mount vm.varve mnt && echo ready && read line; "+varve.Path+" umount mnt 2>/dev/null")...)
	there.Dir, there.Env, there.Stderr = dir, varve.Env, os.Stderr
	end = harness.Keep(t, there)
	return dir, there.Process.Pid, end
}

// Every command that uses a mounted disk reaches it by its directory also where only
// another mount namespace shows the mount; umount unmounts it from here.
func TestMountedInAnotherNamespace(t *testing.T) {
	dir, _, end := mountedApart(t)
	pid := daemonOf(t, dir+"/vm.varve")
	const head = "of this disk alone"
	raw := fmt.Sprintf("/proc/%d/root%s/mnt/disk.raw", pid, dir)
	if err := os.WriteFile(raw, []byte(head), 0); err == nil || !strings.Contains(err.Error(), "permitted") {
		t.Fatalf("disk.raw was emptied: %v", err)
	}
	f, err := os.OpenFile(raw, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(head); err != nil {
		t.Fatal(err)
	}
	f.Close()
	for _, words := range []string{
		"snapshot vm.varve one", "snapshot vm.varve two", "hold vm.varve two", "release vm.varve two", "rename vm.varve two three",
		"list vm.varve", "status vm.varve", "tree vm.varve", "map vm.varve", "metrics vm.varve", "diff vm.varve one three",
		"delete vm.varve one --dry-run", "export vm.varve one out.raw", "import out.raw vm.varve", "flatten vm.varve one",
		"delete vm.varve one", "revert vm.varve three", "resize vm.varve 8M", "prune vm.varve --keep-last 1", "doctor vm.varve",
	} {
		r := vv(t, dir, strings.Fields(words)...)
		if r.code != exitDone {
			t.Errorf("varve %s: exit code %d, says %q", words, r.code, r.stderr)
		}
		if words == "doctor vm.varve" && !strings.Contains(strings.Join(strings.Fields(r.stdout), " "), "it is mounted at "+dir+"/mnt in the mount namespace of pid ") {
			t.Errorf("doctor says\n%s", r.stdout)
		}
	}
	if got, err := os.ReadFile(dir + "/out.raw"); err != nil || !strings.HasPrefix(string(got), head) || len(got) != 4<<20 {
		t.Errorf("the export has %d bytes, %.20q, %v", len(got), got, err)
	}
	if st := document(t, dir, "vm.varve"); named(st) != "three" || st.Size != 8<<20 {
		t.Errorf("the disk has %d bytes and the snapshots %q", st.Size, named(st))
	}
	if r := must(t, dir, "list"); !strings.Contains(r.stdout, fmt.Sprintf("%s/mnt (in the mount namespace of pid ", dir)) || strings.Count(r.stdout, dir+"/vm.varve") != 1 || !strings.Contains(r.stdout, "8 MiB") {
		t.Errorf("list says\n%s", r.stdout)
	}
	var doc mountsDocument
	if err := json.Unmarshal([]byte(must(t, dir, "list", "--json").stdout), &doc); err != nil || len(doc.Elsewhere) == 0 {
		t.Errorf("%+v, %v", doc, err)
	}
	for _, m := range doc.Elsewhere {
		if m.Disk == dir+"/vm.varve" && (m.Mountpoint != dir+"/mnt" || m.PID == 0 || m.Size != 8<<20 || m.Error != "") {
			t.Errorf("%+v", m)
		}
	}
	if r := must(t, dir, "metrics", "--all"); !strings.Contains(r.stdout, fmt.Sprintf(`varve_up{disk="%s/vm.varve",mountpoint="%s/mnt"} 1`, dir, dir)) {
		t.Errorf("metrics --all says\n%s", r.stdout)
	}
	fails(t, dir, exitFailed, []string{"check vm.varve: it is mounted at " + dir + "/mnt in the mount namespace of pid", `"varve umount ` + dir + `/vm.varve"`}, "check", "vm.varve")
	fails(t, dir, exitFailed, []string{"the disk " + dir + "/vm.varve is mounted there: name that"}, "status", "mnt")
	must(t, dir, "umount", "vm.varve")
	end()
	must(t, dir, "mount", "vm.varve", "mnt")
	must(t, dir, "umount", "mnt")
}

// What a user may not look into is said to be that, with the way out.
func TestNamespaceOfAnotherUser(t *testing.T) {
	dir, _, end := mountedApart(t)
	for _, path := range []string{dir, dir + "/vm.varve", dir + "/vm.varve/lock", dir + "/vm.varve/chain.json"} {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r := asUser(t, nobody, dir, dir, "snapshot", "vm.varve", "x")
	for _, want := range []string{
		"holds it for a mount at " + dir + "/mnt that cannot be seen from here (mounted in another mount namespace)",
		fmt.Sprintf("uid %d may not look into it: use root, or \"nsenter --target ", nobody),
	} {
		if r.code != exitFailed || strings.Count(r.stderr, "\n") != 1 || !strings.Contains(r.stderr, want) {
			t.Errorf("exit code %d, says %q, lacks %q", r.code, r.stderr, want)
		}
	}
	must(t, dir, "umount", "vm.varve")
	end()
}

// A daemon in a container has another pid there than here; nothing is done to who has that
// pid here.
func TestDaemonInAContainer(t *testing.T) {
	dir, _, end := mountedApart(t, "--pid", "--fork", "--mount-proc")
	pid, _, held, err := dirlock.Holder(dir + "/vm.varve")
	comm, commErr := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil || !held || commErr != nil || !strings.HasPrefix(string(comm), "varve") {
		t.Fatalf("the holder is pid %d (%s), %v, %v", pid, comm, err, commErr)
	}
	must(t, dir, "snapshot", "vm.varve", "one")
	must(t, dir, "umount", "vm.varve")
	end()
}

// What another namespace still has of a mount whose daemon has ended is no disk to name.
func TestCopyOfAMountThatIsGone(t *testing.T) {
	dir, mnt := mounted(t, 1<<20, 0)
	holder := namespace(t, dir, "true")
	must(t, dir, "umount", "mnt")
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", holder))
	if err != nil || !strings.Contains(string(table), mnt) {
		t.Fatalf("the namespace has no copy, %v", err)
	}
	if r := vv(t, dir, "status", "mnt"); r.code != exitFailed || strings.Contains(r.stderr, "name that") {
		t.Errorf("%+v", r)
	}
}
