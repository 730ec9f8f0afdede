package fs

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// libvirt keeps in attributes of disk.raw whom it belonged to, as in those of any file.
func TestRememberedOwner(t *testing.T) {
	dir, _, _ := mounted(t, 4*mib, Options{})
	file := filepath.Join(dir, nameDisk)
	const name = rememberedPrefix + "security.dac"
	get := func() string {
		t.Helper()
		buf := make([]byte, 64)
		n, err := unix.Getxattr(file, name, buf)
		if err != nil {
			return err.Error()
		}
		return string(buf[:n])
	}
	none := unix.ENODATA.Error()
	for _, step := range []struct {
		what string
		err  error
		want error
	}{
		{"replace nothing", unix.Setxattr(file, name, []byte("+1:+1"), unix.XATTR_REPLACE), unix.ENODATA},
		{"remove nothing", unix.Removexattr(file, name), unix.ENODATA},
		{"set", unix.Setxattr(file, name, []byte("+1000:+1000"), 0), nil},
		{"create again", unix.Setxattr(file, name, []byte("+0:+0"), unix.XATTR_CREATE), unix.EEXIST},
		{"too much", unix.Setxattr(file, name, make([]byte, mostRememberedBytes+1), 0), unix.ENOSPC},
	} {
		if step.err != step.want {
			t.Errorf("%s: %v, want %v", step.what, step.err, step.want)
		}
	}
	if is := get(); is != "+1000:+1000" {
		t.Errorf("it is %q", is)
	}
	list := make([]byte, 4096)
	if n, err := unix.Listxattr(file, list); err != nil || strings.Contains(string(list[:n]), "trusted") {
		t.Errorf("%v, listed: %q", err, list[:n])
	}
	if err := unix.Removexattr(file, name); err != nil || get() != none {
		t.Errorf("removed: %v, %s", err, get())
	}
	var err error
	for i := 0; err == nil && i <= mostRemembered; i++ {
		err = unix.Setxattr(file, fmt.Sprint(rememberedPrefix, i), nil, 0)
	}
	if err != unix.ENOSPC {
		t.Errorf("more and more of them: %v", err)
	}
	if err := unix.Setxattr(file, "trusted.other", []byte("x"), 0); err != unix.EOPNOTSUPP {
		t.Errorf("another one: %v", err)
	}
}
