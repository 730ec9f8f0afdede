// Package guest boots a small Linux from an image and talks to it: a Debian
// kernel under QEMU's software CPU, an initramfs with the modules for a virtio
// disk, and a root file system, made without a mount, whose init takes
// commands over a serial line.
package guest

import (
	"bytes"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"varve/integration/harness"
)

//go:embed files/initramfs.sh
var initramfsInit []byte

//go:embed files/init.sh
var rootInit []byte

// modules are the drivers that the Debian kernel does not have built in: of the disk,
// and of the power button.
var modules = []string{"virtio_pci", "virtio_blk", "button", "evdev"}

// powerButton is what the guest does when its power button is pressed, as virsh shutdown
// does; acpid(8) of busybox runs it.
const powerButton = "#!/bin/sh\nsync\nmount -o remount,ro /\npoweroff -f\n"

// initramfs builds, in a directory, the archive that QEMU gives the kernel, and
// gives its path.
func initramfs(t testing.TB, dir string) string {
	t.Helper()
	tree := filepath.Join(dir, "tree")
	for _, d := range []string{"bin", "dev", "proc", "root", "modules"} {
		mkdir(t, filepath.Join(tree, d))
	}
	files := harness.GuestFiles(t)
	harness.Run(t, "cp", "-L", filepath.Join(files, "busybox"), filepath.Join(tree, "bin/busybox"))
	write(t, filepath.Join(tree, "init"), initramfsInit, 0o755)

	var order bytes.Buffer
	for _, file := range moduleFiles(t, filepath.Join(files, "modules")) {
		name := filepath.Base(file)
		target := filepath.Join(tree, "modules", name)
		if strings.HasSuffix(name, ".xz") { // later Debian kernels; busybox reads .ko only
			name = strings.TrimSuffix(name, ".xz")
			harness.Shell(t, fmt.Sprintf("xz -dc '%s' >'%s'", file, strings.TrimSuffix(target, ".xz")))
		} else {
			harness.Run(t, "cp", "-L", file, target)
		}
		order.WriteString(name + "\n")
	}
	write(t, filepath.Join(tree, "modules/order"), order.Bytes(), 0o644)

	archive := filepath.Join(dir, "initramfs.gz")
	harness.Shell(t, fmt.Sprintf("cd '%s'; find . | cpio --quiet -o -H newc | gzip -1 >'%s'", tree, archive))
	return archive
}

// moduleFiles gives the files of the modules and of all that they need, in the
// order in which they must be loaded, from depmod's modules.dep. A module that
// is not listed is built into the kernel.
func moduleFiles(t testing.TB, dir string) []string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		t.Fatal(err)
	}
	// A line is "FILE: NEEDED NEEDED ...", the most basic one last.
	needs := map[string][]string{}
	files := map[string]string{}
	for line := range strings.Lines(string(data)) {
		file, rest, _ := strings.Cut(line, ":")
		needs[file] = strings.Fields(rest)
		name, _, _ := strings.Cut(filepath.Base(file), ".ko")
		files[strings.ReplaceAll(name, "-", "_")] = file
	}
	var order []string
	for _, name := range modules {
		file, ok := files[name]
		if !ok {
			continue
		}
		load := append([]string{file}, needs[file]...)
		slices.Reverse(load)
		for _, f := range load {
			if path := filepath.Join(dir, f); !slices.Contains(order, path) {
				order = append(order, path)
			}
		}
	}
	return order
}

// RootTree makes a directory with the files of the guest's root file system:
// busybox with its applets, the init, and data/ with a few files, whose digests
// are in data/sums.
func RootTree(t testing.TB) string {
	t.Helper()
	tree := t.TempDir()
	for _, d := range []string{"bin", "sbin", "dev", "proc", "sys", "run", "data"} {
		mkdir(t, filepath.Join(tree, d))
	}
	busybox := filepath.Join(tree, "bin/busybox")
	harness.Run(t, "cp", "-L", filepath.Join(harness.GuestFiles(t), "busybox"), busybox)
	for applet := range strings.Lines(harness.Run(t, busybox, "--list")) {
		applet = strings.TrimSpace(applet)
		if applet == "busybox" {
			continue
		}
		if err := os.Symlink("busybox", filepath.Join(tree, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(tree, "sbin/init"), rootInit, 0o755)
	mkdir(t, filepath.Join(tree, "etc/acpi/PWRF"))
	write(t, filepath.Join(tree, "etc/acpi/PWRF/00000080"), []byte(powerButton), 0o755)
	var sums strings.Builder
	for i := range 20 {
		name := fmt.Sprintf("first.%d", i)
		path := filepath.Join(tree, "data", name)
		write(t, path, bytes.Repeat([]byte(fmt.Sprintf("%s of the base\n", name)), 1000+i*997), 0o644)
		fmt.Fprintf(&sums, "%s  /data/%s\n", harness.Digest(t, path), name)
	}
	write(t, filepath.Join(tree, "data/sums"), []byte(sums.String()), 0o644)
	return tree
}

// Image makes a raw disk image that the guest boots from.
func Image(t testing.TB, file string, size int64) {
	t.Helper()
	harness.PartitionedImage(t, file, size, RootTree(t))
}

// kernel copies the kernel to a directory and gives the copy's path: the user
// who runs QEMU may have no way into the checkout.
func kernel(t testing.TB, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "vmlinuz")
	harness.Run(t, "cp", "-L", filepath.Join(harness.GuestFiles(t), "vmlinuz"), path)
	return path
}

func mkdir(t testing.TB, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, file string, data []byte, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(file, data, mode); err != nil {
		t.Fatal(err)
	}
}

// lookPath is exec.LookPath that must find.
func lookPath(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}
