package packaging

import (
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"varve/integration/harness"
	"varve/integration/patience"
	"varve/integration/turn"
)

var limit = patience.Hang

// checkoutCopy is a copy of the checkout to run make in: bin/ of the checkout is
// what other tests run.
func checkoutCopy(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	harness.Shell(t, fmt.Sprintf(
		"cd '%s'; git -c safe.directory='*' ls-files -z -co --exclude-standard | tar --null -T - -cf - | tar -x -C '%s'",
		harness.Checkout(t), dir))
	return dir
}

// commit is of which commit a package is made here.
const commit = "7661727665000000000000000000000000000000"

// makeDeb makes the package of a version and gives its path.
func makeDeb(t testing.TB, checkout, version string) string {
	t.Helper()
	out := harness.Shell(t, fmt.Sprintf(
		"cd '%s'; SOURCE_DATE_EPOCH=1764000000 make --no-print-directory -s deb VERSION=v%s COMMIT=%s", checkout, version, commit))
	deb := filepath.Join(checkout, strings.TrimSpace(lastLine(out)))
	if filepath.Base(deb) != "varve_"+version+"_amd64.deb" && !strings.HasPrefix(filepath.Base(deb), "varve_"+version+"_") {
		t.Fatalf("make deb says %q", out)
	}
	return deb
}

// first is the package of version 1.0.0, which several tests use.
var first struct {
	sync.Once
	deb, checkout string // paths; of the checkout that it was made in
}

// firstDeb makes the package of version 1.0.0, once for all tests, and gives its path and
// that of the checkout that it was made in.
func firstDeb(t testing.TB) (deb, checkout string) {
	t.Helper()
	first.Do(func() {
		made := checkoutCopy(t)
		dir, err := os.MkdirTemp("", "deb-") // goes with everything that this run leaves
		if err != nil {
			t.Fatal(err)
		}
		deb := makeDeb(t, made, "1.0.0")
		harness.Run(t, "cp", "--preserve=timestamps", deb, dir)
		first.deb, first.checkout = filepath.Join(dir, filepath.Base(deb)), made
	})
	if first.deb == "" {
		t.Fatal("an earlier test could not make the package")
	}
	return first.deb, first.checkout
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// TestPackageIsInOrder: lintian finds nothing in the package; the program in it is
// static and says its version; the same sources make the same package.
func TestPackageIsInOrder(t *testing.T) {
	deb, checkout := firstDeb(t)
	// Where Go puts its strings one behind the other, words come out that no text has.
	const lintian = "lintian --allow-root --display-info --pedantic --suppress-tags spelling-error-in-binary --fail-on none"
	if said := harness.Shell(t, fmt.Sprintf("%s '%s' 2>&1", lintian, deb)); said != "" {
		t.Errorf("lintian:\n%s", said)
	}
	// In another directory, too.
	if harness.Digest(t, makeDeb(t, checkoutCopy(t), "1.0.0")) != harness.Digest(t, deb) {
		t.Error("the same sources made another package")
	}

	root := t.TempDir()
	harness.Run(t, "dpkg-deb", "-x", deb, root)
	program := filepath.Join(root, "usr/bin/varve")
	static(t, program)
	if v := harness.Run(t, program, "version"); !strings.HasPrefix(v, "varve v1.0.0 (commit "+commit+")") || !strings.Contains(v, " go1.") {
		t.Errorf("varve version: %s", v)
	}
	if paths := harness.Run(t, "strings", program); strings.Contains(paths, checkout) {
		t.Error("the program has the path of the checkout in it")
	}
	notices, err := os.ReadFile(filepath.Join(root, "usr/share/doc/varve/copyright"))
	if err != nil {
		t.Fatal(err)
	}
	for _, module := range []string{"github.com/hanwen/go-fuse/v2", "github.com/spf13/cobra", "golang.org/x/sys", "Go's standard library"} {
		if !strings.Contains(string(notices), "Comment: "+module+" ") {
			t.Errorf("the copyright file does not name %s, which is linked into the program", module)
		}
	}
	fields := harness.Run(t, "dpkg-deb", "-f", deb)
	for _, want := range []string{"Package: varve\n", "Version: 1.0.0\n", "Depends: fuse3\n", "Recommends: qemu-utils\n"} {
		if !strings.Contains(fields, want) {
			t.Errorf("the package lacks %q:\n%s", want, fields)
		}
	}
}

// static fails unless a program needs no other file: no interpreter, no library.
func static(t testing.TB, program string) {
	t.Helper()
	f, err := elf.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("%s is not static: it has a segment %v", program, p.Type)
		}
	}
}

// TestDebVersions: versions sort as releases and the builds between them do.
func TestDebVersions(t *testing.T) {
	script, err := os.ReadFile(filepath.Join(harness.Checkout(t), "packaging/deb.sh"))
	if err != nil {
		t.Fatal(err)
	}
	_, function, found := strings.Cut(string(script), "deb_version() {")
	function, _, closed := strings.Cut(function, "\n}\n")
	if !found || !closed {
		t.Fatal("packaging/deb.sh has no deb_version")
	}
	before := ""
	for _, version := range []string{"472ecf9", "v0.9.0-rc1", "v0.9.0", "v0.9.0-1-gabcdef0", "v0.9.0-12-gabcdef0", "v0.9.0-12-gabcdef0-dirty", "v0.10.0"} {
		deb := strings.TrimSpace(harness.Shell(t, "deb_version() {"+function+"\n}\ncd /; deb_version "+version))
		if before != "" && harness.Try(t, "dpkg", "--compare-versions", before, "lt", deb).Code != 0 {
			t.Errorf("%s is %s, which is not newer than %s", version, deb, before)
		}
		before = deb
	}
}

// TestMakeInstall: make install puts files below PREFIX, the units with the
// program's path in them, and make uninstall takes all of them away again. Two prefixes
// take turns.
func TestMakeInstall(t *testing.T) {
	checkout := checkoutCopy(t)
	prefixes := []string{"/usr/local", "/opt/varve"}
	if !harness.Long() {
		at := turn.Of(0, len(prefixes))
		prefixes = prefixes[at : at+1]
	}
	for _, prefix := range prefixes {
		root := t.TempDir()
		target := func(name string) {
			t.Helper()
			harness.Shell(t, fmt.Sprintf("cd '%s'; make --no-print-directory -s %s VERSION=v1.0.0 PREFIX=%s DESTDIR='%s'", checkout, name, prefix, root))
		}
		target("install")
		program := filepath.Join(root, prefix, "bin/varve")
		static(t, program)
		harness.Run(t, program, "version")
		for _, file := range []string{
			"share/man/man1/varve-mount.1", "share/man/man5/varve.5", "share/bash-completion/completions/varve",
			"share/fish/vendor_completions.d/varve.fish", "lib/systemd/system/varve@.service", "share/doc/varve/install.md",
		} {
			if _, err := os.Stat(filepath.Join(root, prefix, file)); err != nil {
				t.Error(err)
			}
		}
		unit, err := os.ReadFile(filepath.Join(root, prefix, "lib/systemd/system/varve@.service"))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(unit), "ExecStart="+prefix+"/bin/varve mount") || strings.Contains(string(unit), "/usr/bin/varve") {
			t.Errorf("the unit calls another program:\n%s", unit)
		}
		for _, link := range []string{"mount.fuse.varve", "umount.fuse.varve"} {
			at := filepath.Join(root, "usr/sbin", link)
			resolved, err := filepath.EvalSymlinks(at)
			if err != nil || resolved != program {
				t.Errorf("%s leads to %s (%v)", at, resolved, err)
			}
		}
		// What the administrator wrote there stays, twice.
		own := filepath.Join(root, "etc/varve/vm1.conf")
		readme := filepath.Join(root, "etc/varve/README")
		for _, file := range []string{own, readme} {
			if err := os.WriteFile(file, []byte("mine\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		target("install")
		if text, err := os.ReadFile(readme); err != nil || string(text) != "mine\n" {
			t.Errorf("install wrote over %s: %q, %v", readme, text, err)
		}
		target("uninstall")
		left := harness.Run(t, "find", root, "!", "-type", "d")
		if strings.TrimSpace(left) != own {
			t.Errorf("uninstall leaves\n%s", left)
		}
	}
	r := harness.Try(t, "sh", "-c", fmt.Sprintf("cd '%s'; PREFIX=usr packaging/install.sh install", checkout))
	if r.Code != 2 || r.Stderr != "install: PREFIX is usr; it must begin with /\n" {
		t.Errorf("a relative PREFIX: exit code %d, %q", r.Code, r.Stderr)
	}
}
