package daemon

import (
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func parseMountFlags(args ...string) (*Flags, error) {
	m := NewFlags()
	set := pflag.NewFlagSet("mount", pflag.ContinueOnError)
	m.Register(set)
	if err := set.Parse(args); err != nil {
		return nil, err
	}
	m.NoteTold(set)
	return m, m.Check()
}

func TestMountOptions(t *testing.T) {
	m, err := parseMountFlags("-o", `allow_other,ro,uid=107,gid=108,umask=027,,noatime`, "-o", `disk=/a\,b\\c,format=qcow2,cache=64M,default_permissions,nodev,nosuid,x-systemd.automount,_netdev`)
	if err != nil {
		t.Fatal(err)
	}
	if !m.allowOther || !m.readOnly || m.uid != 107 || m.gid != 108 || m.umask != 0o027 || m.disk != `/a,b\c` || m.format != "qcow2" || m.cache != 64<<20 {
		t.Errorf("got %+v", m)
	}
	if want := strings.Split("noatime,default_permissions,nodev,nosuid,x-systemd.automount,_netdev", ","); !slices.Equal(m.options.passed, want) {
		t.Errorf("passed on %v, want %v", m.options.passed, want)
	}
	if m, err := parseMountFlags("-r", "-o", "rw"); err != nil || m.readOnly {
		t.Errorf("the last one counts: %+v, %v", m, err)
	}
}

func TestMountDefaults(t *testing.T) {
	m, err := parseMountFlags()
	if err != nil {
		t.Fatal(err)
	}
	if m.umask != 0o077 || m.allowOther || m.readOnly || m.Foreground || m.cache != 0 {
		t.Errorf("got %+v", m)
	}
}

func TestBadMountOptions(t *testing.T) {
	for option, words := range map[string]string{
		"fsname=x":       "fsname is always the disk's path",
		"subtype=x":      "subtype is always varve",
		"allow_root":     "allow_root is not supported",
		"frob":           `unknown mount option "frob"`,
		"max_read=4096":  `unknown mount option "max_read=4096"`,
		"uid":            "uid needs a value",
		"uid=":           "uid needs a value",
		"uid=root":       "uid=root is not a number",
		"gid=-1":         "gid=-1 is not a number",
		"uid=4294967296": "uid=4294967296 is not a number",
		"umask=8":        `"8" is not an octal number`,
		"umask=1777":     `"1777" is not an octal number`,
		"cache=lots":     "is no size",
		"disk=":          "disk needs a value",
		"format=vmdk":    `the format "vmdk" is neither raw nor qcow2`,
		"ro=1":           "ro takes no value",
		"=x":             `"=x" has no name`,
	} {
		if _, err := parseMountFlags("-o", option); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("-o %s: %v, want %q", option, err, words)
		}
	}
}

func TestSplitOptions(t *testing.T) {
	for in, want := range map[string][]string{
		"":        {""},
		"a":       {"a"},
		"a,b":     {"a", "b"},
		`a\,b`:    {"a,b"},
		`a\\,b`:   {`a\`, "b"},
		`a,b\`:    {"a", `b\`},
		",a,":     {"", "a", ""},
		`d=\\\,x`: {`d=\,x`},
	} {
		if got := SplitOptions(in); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
