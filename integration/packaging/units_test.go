package packaging

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"varve/integration/harness"
)

// TestUnits: systemd understands the units, and what its generator makes of the
// line for /etc/fstab in docs/install.md.
func TestUnits(t *testing.T) {
	deb, _ := firstDeb(t)
	s := newSystem(t)
	s.copyIn(deb, "/varve.deb")
	s.run("dpkg -i /varve.deb; printf 'DISK=/srv/vm1.raw\\nMOUNTPOINT=/mnt/vm1\\n' >/etc/varve/vm1.conf")
	for _, unit := range []string{"varve@vm1.service", "varve-prune@vm1.service", "varve-prune@vm1.timer", "varve-metrics.service", "varve-metrics.timer"} {
		if r := s.try("systemd-analyze verify --man=no " + unit); r.Code != 0 || complaints(r) != "" {
			t.Errorf("%s: exit code %d\n%s", unit, r.Code, complaints(r))
		}
	}
	// Tried with a unit that is wrong, so that it is known to complain.
	if r := s.try("sed 's/^TimeoutStopSec=.*/TimeoutStopSec=never/' /usr/lib/systemd/system/varve@.service >/etc/systemd/system/wrong.service; systemd-analyze verify --man=no wrong.service"); !strings.Contains(complaints(r), "Failed to parse time value") {
		t.Errorf("systemd-analyze does not see a mistake: %s", complaints(r))
	}

	page, err := os.ReadFile(filepath.Join(harness.Checkout(t), "docs/install.md"))
	if err != nil {
		t.Fatal(err)
	}
	line := ""
	for l := range strings.Lines(string(page)) {
		if strings.HasPrefix(l, "/srv/vm1.varve ") && strings.Contains(l, "x-systemd.before") {
			line = strings.TrimSpace(l)
		}
	}
	if line == "" {
		t.Fatal("docs/install.md has no such line")
	}
	unit := s.run(fmt.Sprintf(`
echo '%s' >/etc/fstab
mkdir -p /run/made
/usr/lib/systemd/system-generators/systemd-fstab-generator /run/made /run/made /run/made
cat /run/made/mnt-vm1.mount`, line))
	for _, want := range []string{"What=/srv/vm1.varve", "Where=/mnt/vm1", "Type=fuse.varve", "TimeoutSec=infinity", "libvirtd.service", "libvirt-guests.service"} {
		if !strings.Contains(unit, want) {
			t.Errorf("the generator's unit lacks %s:\n%s", want, unit)
		}
	}
}

// complaints is what systemd-analyze says, but for what it says of the machine.
func complaints(r harness.Result) string {
	var words []string
	for line := range strings.Lines(r.Stdout + r.Stderr) {
		if strings.Contains(line, "varve") || strings.Contains(line, "wrong.service") {
			words = append(words, line)
		}
	}
	return strings.Join(words, "")
}

// directives reads a unit of the checkout: the values of each directive, in order.
func directives(t *testing.T, unit string) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(harness.Checkout(t), "packaging/systemd", unit))
	if err != nil {
		t.Fatal(err)
	}
	values := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(line, "#") {
			values[key] = append(values[key], value)
		}
	}
	return values
}

// commandLine makes the words of an Exec line as systemd does: ${X} is one word,
// $X as many as it has (systemd.service(5), "Command lines").
func commandLine(line string, variables map[string]string) []string {
	line = strings.TrimPrefix(line, "-")
	var words []string
	for _, word := range strings.Fields(line) {
		switch {
		case strings.HasPrefix(word, "${"):
			words = append(words, variables[strings.Trim(word, "${}")])
		case strings.HasPrefix(word, "$"):
			words = append(words, strings.Fields(variables[word[1:]])...)
		default:
			words = append(words, word)
		}
	}
	return words
}

// confined is a command in front of another that takes from it what a unit says, as far as
// it can be had without systemd.
func confined(t *testing.T, unit map[string][]string) []string {
	t.Helper()
	if unit["NoNewPrivileges"] == nil || len(unit["CapabilityBoundingSet"]) != 1 {
		t.Fatalf("NoNewPrivileges=%v, CapabilityBoundingSet=%v", unit["NoNewPrivileges"], unit["CapabilityBoundingSet"])
	}
	set := "-all"
	for name := range strings.FieldsSeq(unit["CapabilityBoundingSet"][0]) {
		set += ",+" + strings.ToLower(strings.TrimPrefix(name, "CAP_"))
	}
	return []string{"setpriv", "--no-new-privs", "--bounding-set", set, "--"}
}

// No unit has what makes a mount namespace of its own, in which the mounts would be that it
// makes or copies of those that are there; and each gives up what it can without that.
func TestUnitsMakeNoMountNamespace(t *testing.T) {
	// exec_needs_mount_namespace() of systemd 252, src/core/execute.c, and what closes devices.
	forbidden := []string{"RootDirectory", "RootImage", "ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths", "ExecPaths", "NoExecPaths",
		"BindPaths", "BindReadOnlyPaths", "TemporaryFileSystem", "MountImages", "ExtensionImages", "ExtensionDirectories", "MountFlags",
		"PrivateTmp", "PrivateDevices", "PrivateMounts", "PrivateUsers", "PrivateIPC", "PrivateNetwork", "ProtectSystem", "ProtectHome",
		"ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups", "ProtectProc", "ProcSubset",
		"DynamicUser", "LogNamespace", "DeviceAllow", "DevicePolicy", "ProtectClock"}
	for _, name := range []string{"varve@.service", "varve-prune@.service", "varve-metrics.service"} {
		unit := directives(t, name)
		for _, key := range forbidden {
			if unit[key] != nil {
				t.Errorf("%s: %s=%s", name, key, unit[key])
			}
		}
		for _, key := range []string{"NoNewPrivileges", "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID", "LockPersonality", "MemoryDenyWriteExecute", "ProtectHostname"} {
			if got := strings.Join(unit[key], " "); got != "yes" {
				t.Errorf("%s: %s=%s", name, key, got)
			}
		}
		if filter := strings.Join(unit["SystemCallFilter"], " "); !strings.HasPrefix(filter, "~@") || strings.Contains(filter, "@mount") != (name != "varve@.service") {
			t.Errorf("%s: SystemCallFilter=%s", name, filter)
		}
	}
}

// TestServiceLines runs the lines of varve@.service as systemd would, and listens
// to what they tell it: ready when the mount can be used, a stop that waits for
// the VM and says so, and the end when all is written.
func TestServiceLines(t *testing.T) {
	unit := directives(t, "varve@.service")
	for key, want := range map[string]string{
		"Type": "notify", "NotifyAccess": "exec", "SendSIGKILL": "no", "TimeoutStopSec": "infinity", "Restart": "no",
		"Before": "libvirtd.service virtqemud.service libvirt-guests.service",
	} {
		if got := strings.Join(unit[key], "; "); got != want {
			t.Errorf("%s=%s, want %s", key, got, want)
		}
	}
	if !strings.HasPrefix(unit["OOMScoreAdjust"][0], "-") {
		t.Errorf("OOMScoreAdjust=%s", unit["OOMScoreAdjust"])
	}

	dir := t.TempDir()
	image := filepath.Join(dir, "vm 1.raw")
	harness.Shell(t, fmt.Sprintf("truncate -s 8M '%s'", image))
	harness.Guard(t, image)
	mountpoint := filepath.Join(dir, "a mount")
	variables := map[string]string{"DISK": image, "MOUNTPOINT": mountpoint, "OPTIONS": "umask=022"}

	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	told := func() string {
		t.Helper()
		if err := socket.SetReadDeadline(time.Now().Add(limit)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4096)
		n, err := socket.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	line := func(key string) *exec.Cmd {
		t.Helper()
		if len(unit[key]) != 1 {
			t.Fatalf("%s: %q", key, unit[key])
		}
		words := commandLine(unit[key][0], variables)
		if words[0] == "/usr/bin/varve" {
			words[0] = harness.Varve()
		}
		words = slices.Concat(confined(t, unit), words)
		c := exec.Command(words[0], words[1:]...)
		c.Env = append(os.Environ(), "NOTIFY_SOCKET="+filepath.Join(dir, "notify"))
		c.Stderr = os.Stderr
		return c
	}
	for range 2 { // the second time all is there already
		if err := line("ExecStartPre").Run(); err != nil {
			t.Fatal(err)
		}
		service := line("ExecStart")
		if err := service.Start(); err != nil {
			t.Fatal(err)
		}
		if got := told(); !strings.HasPrefix(got, "READY=1\n") {
			t.Fatalf("told %q", got)
		}
		vm, err := os.OpenFile(filepath.Join(mountpoint, "disk.raw"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		stop := line("ExecStop")
		if err := stop.Start(); err != nil {
			t.Fatal(err)
		}
		if got := told(); !strings.HasPrefix(got, "STATUS=in use, waiting to unmount: disk.raw is open (pid ") {
			t.Errorf("told %q", got)
		}
		// The VM goes on until it is off.
		if _, err := vm.WriteAt([]byte("last words"), 0); err != nil {
			t.Fatal(err)
		}
		if err := vm.Close(); err != nil {
			t.Fatal(err)
		}
		if got := told(); got != "STOPPING=1" {
			t.Errorf("told %q", got)
		}
		if err := stop.Wait(); err != nil {
			t.Errorf("ExecStop: %v", err)
		}
		if err := service.Wait(); err != nil {
			t.Errorf("ExecStart ended with %v", err)
		}
		harness.Run(t, harness.Varve(), "check", image)
	}
	out := filepath.Join(dir, "copy.raw")
	harness.Run(t, harness.Varve(), "export", image, "leaf", out)
	if text, err := os.ReadFile(out); err != nil || string(text[:10]) != "last words" {
		t.Errorf("the disk has %.10q (%v)", text, err)
	}
}

// TestTimerLines runs the lines of the services that timers start: a snapshot with
// a name of its time and a prune, where the disk is mounted and not elsewhere; and
// metrics for node_exporter.
func TestTimerLines(t *testing.T) {
	unit := directives(t, "varve-prune@.service")
	m := harness.MountDisk(t, blank(t))
	_, keep, _ := strings.Cut(strings.Trim(unit["Environment"][0], `"`), "=")
	line := func(text, mountpoint string) harness.Result {
		t.Helper()
		words := commandLine(text, map[string]string{"MOUNTPOINT": mountpoint, "KEEP": keep})
		if words[0] == "/usr/bin/varve" {
			words[0] = harness.Varve()
		}
		words = slices.Concat(confined(t, unit), words)
		return harness.Try(t, words[0], words[1:]...)
	}
	if r := line(unit["ExecCondition"][0], m.Point); r.Code != 0 {
		t.Errorf("of a mounted disk the condition gives %d", r.Code)
	}
	if r := line(unit["ExecCondition"][0], t.TempDir()); r.Code != 1 {
		t.Errorf("of a directory that is no mount the condition gives %d", r.Code)
	}
	m.Do("snapshot", "mine")
	if len(unit["ExecStart"]) != 2 {
		t.Fatalf("%q", unit["ExecStart"])
	}
	for range 3 {
		for _, text := range unit["ExecStart"] {
			if r := line(text, m.Point); r.Code != 0 {
				t.Fatalf("%s: exit code %d\n%s%s", text, r.Code, r.Stdout, r.Stderr)
			}
		}
		m.FinishJob(limit)
		time.Sleep(1100 * time.Millisecond) // the names have seconds
	}
	automatic, own := 0, 0
	for _, l := range m.Status().Layers {
		switch {
		case strings.HasPrefix(l.Name, "auto-"):
			automatic++
		case l.Name == "mine":
			own++
		}
	}
	// Of one hour the newest is kept, and the oldest of all for the days and weeks.
	if automatic < 1 || automatic > 2 || own != 1 {
		t.Errorf("%d automatic snapshots and %d others are left:\n%s", automatic, own, harness.Run(t, harness.Varve(), "list", m.Point))
	}

	folder := t.TempDir()
	metrics := directives(t, "varve-metrics.service")
	unit = metrics
	text := strings.ReplaceAll(metrics["ExecStart"][0], metrics["ConditionPathIsDirectory"][0], folder)
	if r := line(text, ""); r.Code != 0 {
		t.Fatalf("%s: exit code %d, %s", text, r.Code, r.Stderr)
	}
	if page, err := os.ReadFile(filepath.Join(folder, "varve.prom")); err != nil || !strings.Contains(string(page), `mountpoint="`+m.Point+`"} 1`) {
		t.Errorf("the metrics do not name the mount (%v):\n%.2000s", err, page)
	}
}

// blank makes a small blank disk.
func blank(t *testing.T) string {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "blank.varve")
	harness.Run(t, harness.Varve(), "create", disk, "--size", "4M")
	return disk
}
