package daemon

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"varve/cmd/varve/internal/flagvalue"
	"varve/fs"
)

// Flags is what "varve mount" was asked for, from flags and from -o.
type Flags struct {
	Foreground bool
	disk       string
	newDisk    bool // a new disk may be made for an image that a symbolic link leads to
	format     string
	readOnly   bool
	allowOther bool
	uid, gid   uint32
	umask      umaskValue
	cache      flagvalue.Size
	jobRate    flagvalue.Rate
	options    optionsValue
	defaults   bool     // nothing of the last mount's options
	told       bool     // some option was given
	keys       []string // which, by their names in -o
}

// defaultUmask leaves nothing to others.
const defaultUmask = 0o077

func NewFlags() *Flags {
	return &Flags{uid: uint32(os.Getuid()), gid: uint32(os.Getgid()), umask: defaultUmask}
}

// Register defines the flags.
func (m *Flags) Register(f *pflag.FlagSet) {
	m.options.into = m
	f.BoolVarP(&m.Foreground, "foreground", "f", false, "stay, and log to stderr; SIGTERM asks for an unmount")
	f.StringVar(&m.disk, "disk", "", "keep the disk directory of an image at `DIR`")
	f.BoolVar(&m.newDisk, "new", false, "make a new disk also for an image that is named by a symbolic link")
	f.StringVar(&m.format, "format", "", "the image's `FORMAT`: raw or qcow2")
	f.BoolVarP(&m.readOnly, "read-only", "r", false, "write nothing anywhere")
	f.BoolVar(&m.allowOther, "allow-other", false, "let other users in, as far as the file modes do")
	f.Uint32Var(&m.uid, "uid", m.uid, "owner `UID` of the files")
	f.Uint32Var(&m.gid, "gid", m.gid, "group `GID` of the files")
	f.Var(&m.umask, "umask", "bits taken from the files' modes, octal")
	f.Var(&m.cache, "cache", "`SIZE` of the memory for looked-up places, with K, M, G")
	f.Var(&m.jobRate, "job-rate", "let deletes and flattens copy `RATE` bytes per second at most, with K, M, G")
	f.VarP(&m.options, "option", "o", "mount `OPTIONS` as of mount(8), separated by commas")
	f.BoolVar(&m.defaults, "defaults", false, "do not use the options of the disk's last mount")
}

// Check looks for what single flags cannot see.
func (m *Flags) Check() error {
	if err := flagvalue.CheckFormat(m.format); err != nil {
		return err
	}
	return fs.CheckMountOptions(m.options.passed)
}

// umaskValue is an octal umask.
type umaskValue uint32

func (u *umaskValue) Set(s string) error {
	n, err := strconv.ParseUint(s, 8, 32)
	if err != nil || n > 0o777 {
		return fmt.Errorf("%q is not an octal number up to 777", s)
	}
	*u = umaskValue(n)
	return nil
}

func (u *umaskValue) String() string { return fmt.Sprintf("%03o", uint32(*u)) }
func (*umaskValue) Type() string     { return "UMASK" }

// optionsValue is -o. It may be given several times. What it does not know
// itself it passes on.
type optionsValue struct {
	into   *Flags
	passed []string
}

func (o *optionsValue) String() string { return strings.Join(o.passed, ",") }
func (*optionsValue) Type() string     { return "OPTIONS" }

func (o *optionsValue) Set(s string) error {
	for _, option := range SplitOptions(s) {
		if err := o.set(option); err != nil {
			return err
		}
	}
	return nil
}

func (o *optionsValue) set(option string) error {
	key, value, valued := strings.Cut(option, "=")
	m := o.into
	switch key {
	case "":
		if valued {
			return fmt.Errorf("%q has no name", option)
		}
		return nil // "-o a,,b", as mount(8) allows it
	case "uid", "gid", "umask", "cache", "disk", "format", "job_rate":
		if !valued || value == "" {
			return fmt.Errorf("%s needs a value: %s=…", key, key)
		}
	case "allow_other", "ro", "rw", "foreground":
		if valued {
			return fmt.Errorf("%s takes no value", key)
		}
	}
	m.given(key)
	switch key {
	case "allow_other":
		m.allowOther = true
	case "allow_root":
		return errors.New("allow_root is not supported; use allow_other, with a umask that keeps other users out")
	case "ro":
		m.readOnly = true
	case "rw":
		m.readOnly = false
	case "uid":
		return setID(&m.uid, key, value)
	case "gid":
		return setID(&m.gid, key, value)
	case "umask":
		return m.umask.Set(value)
	case "cache":
		return m.cache.Set(value)
	case "job_rate":
		return m.jobRate.Set(value)
	case "disk":
		m.disk = value
	case "format":
		m.format = value
	case "fsname":
		return errors.New("fsname is always the disk's path: commands find the disk of a mount by it")
	case "subtype":
		return errors.New("subtype is always varve: commands know their mounts by it")
	default:
		o.passed = append(o.passed, option)
	}
	return nil
}

func setID(id *uint32, key, value string) error {
	n, err := strconv.ParseUint(value, 10, 32)
	if err != nil {
		return fmt.Errorf("%s=%s is not a number", key, value)
	}
	*id = uint32(n)
	return nil
}

// EscapeOption writes an option so that SplitOptions gives it back whole.
func EscapeOption(option string) string {
	return strings.NewReplacer(`\`, `\\`, ",", `\,`).Replace(option)
}

// SplitOptions parts options at commas; a backslash takes the meaning from the
// comma or backslash behind it, as in other FUSE file systems.
func SplitOptions(s string) []string {
	var options []string
	var one strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			i++
			one.WriteByte(s[i])
		case s[i] == ',':
			options = append(options, one.String())
			one.Reset()
		default:
			one.WriteByte(s[i])
		}
	}
	return append(options, one.String())
}

// KnownOption says whether -o takes an option.
func KnownOption(option string) bool {
	flags := NewFlags()
	flags.options.into = flags
	return flags.options.set(option) == nil && flags.Check() == nil
}
