package export

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"varve/cmd/varve/internal/client"
	"varve/overlay"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// Ctrl-C in the middle says that the device is half written.
func TestInterruptedExportToADevice(t *testing.T) {
	const size = 4 << 20
	dir := t.TempDir()
	want, was := bytes.Repeat([]byte("view"), size/4), bytes.Repeat([]byte{0xee}, size)
	for name, content := range map[string][]byte{"view": want, "device": was} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("losetup", "--find", "--show", filepath.Join(dir, "device")).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v\n%s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v\n%s", err, out)
		}
	})
	view, err := qcow2.OpenImage(hostfs.OS(), dir+"/view", "raw", hostfs.LockNone)
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	ctx, stop := context.WithCancel(t.Context())
	d, ok, err := findDevice(device)
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	e := overlay.Export{Source: client.FileView(view).Source, Size: 4 << 20, Progress: func(done, _ int64) {
		if done >= 2<<20 {
			stop()
		}
	}}
	_, err = exportDevice(ctx, e, d)
	if err == nil || errors.Is(err, context.Canceled) || err.Error() != "interrupted; "+device+" is half written" {
		t.Errorf("says %v", err)
	}
	got, err := os.ReadFile(device)
	if err != nil || !bytes.Equal(got[:2<<20], want[:2<<20]) || !bytes.Equal(got[3<<20:], was[3<<20:]) {
		t.Errorf("the device has not the first half alone (%v)", err)
	}
}

// What a device-mapper device stands on is found as the kernel shows it: a volume on a
// partition of a loop device is of the loop device's file.
func TestFilesBelowADevice(t *testing.T) {
	sys := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(sys, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sys, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := func(name, to string) {
		t.Helper()
		write(filepath.Join(filepath.Dir(name), "dev"), "253:0\n")
		if err := os.MkdirAll(filepath.Join(sys, filepath.Dir(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(sys, to), filepath.Join(sys, name)); err != nil {
			t.Fatal(err)
		}
	}
	write("loop0/loop/backing_file", "/images/a b.raw\n")
	write("loop0/loop0p2/partition", "2\n")
	write("loop1/loop/backing_file", "/images/c.raw\n")
	link("dm-0/slaves/loop0p2", "loop0/loop0p2")
	link("dm-1/slaves/dm-0", "dm-0")
	link("dm-1/slaves/loop1", "loop1")
	for device, want := range map[string]string{
		"dm-1":          "/images/c.raw /images/a b.raw",
		"dm-0":          "/images/a b.raw",
		"loop0/loop0p2": "/images/a b.raw",
		"loop1":         "/images/c.raw",
	} {
		if got := strings.Join(blockDevice{sys: filepath.Join(sys, device)}.backingFiles(), " "); got != want {
			t.Errorf("%s: %q, want %q", device, got, want)
		}
	}
}
