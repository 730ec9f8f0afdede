package daemon

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"varve/chain"
	"varve/cmd/varve/internal/tell"
	"varve/fs"
)

// What a mount was told, the next one remembers: chain.json keeps the options of the
// last writable mount, in the words that -o takes. A mount that is told nothing uses
// them, so that one line brings back a disk whose daemon is gone as its VM needs it.
//
// A disk directory may be somebody else's. Words that another user can have put there
// are named, and not used.

// remembersFlags are the flags whose values are remembered. Those that are left out
// say what to do now (--foreground, --read-only) or are decided once (--format, --disk).
var remembersFlags = []string{"allow-other", "uid", "gid", "umask", "cache", "job-rate"}

// NoteTold notes which options were given, after the flags were parsed. -o counts also
// where it is empty: a service or a line of fstab that has no options means that.
func (m *Flags) NoteTold(f *pflag.FlagSet) {
	m.told = m.told || m.defaults || f.Changed("option")
	for _, name := range remembersFlags {
		if f.Changed(name) {
			m.told = true
			m.given(strings.ReplaceAll(name, "-", "_"))
		}
	}
}

// given notes that an option, by its name in -o, was given.
func (m *Flags) given(key string) { m.keys = append(m.keys, key) }

// words are the options that were given, as -o takes them, always in the same order.
func (m *Flags) words() string {
	var words []string
	for _, o := range []struct{ key, value string }{
		{"uid", fmt.Sprint(m.uid)}, {"gid", fmt.Sprint(m.gid)}, {"umask", m.umask.String()},
		{"cache", m.cache.String()}, {"job_rate", m.jobRate.String()},
	} {
		if slices.Contains(m.keys, o.key) && o.value != "" {
			words = append(words, o.key+"="+o.value)
		}
	}
	if m.allowOther {
		words = slices.Insert(words, 0, "allow_other")
	}
	for _, option := range m.options.passed {
		if !fs.MeantForOthers(option) {
			words = append(words, EscapeOption(option))
		}
	}
	return strings.Join(words, ",")
}

// recall takes words that words gave.
func (m *Flags) recall(words string) error {
	for _, option := range SplitOptions(words) {
		key, _, _ := strings.Cut(option, "=")
		if slices.Contains([]string{"ro", "rw", "foreground", "disk", "format"}, key) {
			return fmt.Errorf("%q is no option that is remembered", option)
		}
		if err := m.options.set(option); err != nil {
			return err
		}
	}
	return m.Check()
}

// recallMount lets a mount that was told no options have those of the last one, and
// says so.
func (m *server) recallMount() error {
	if m.flags.told || m.plan.dir == "" || m.plan.create {
		return nil
	}
	last, err := chain.LastMount(m.plan.dir)
	if err != nil || last.Options == "" {
		return nil // opening the disk says what is wrong with chain.json
	}
	for _, owner := range last.Owners {
		if owner != 0 && owner != os.Geteuid() {
			tell.Line(m.stderr, "mount %s: the options of its last mount are not used, for uid %d can have changed them; they were: -o %s", m.source, owner, chain.ShellWord(last.Options))
			return nil
		}
	}
	if err := m.flags.recall(last.Options); err != nil {
		return fmt.Errorf("the options of the last mount, %q in chain.json, cannot be used: %w; give others, or mount with --defaults", last.Options, err)
	}
	tell.Line(m.stderr, "mount %s: as it was last mounted, with -o %s (--defaults mounts it without)", m.source, chain.ShellWord(last.Options))
	return nil
}

// rememberMount keeps the options of a mount that stands. A disk that cannot keep them,
// on a full host for instance, is mounted all the same.
func (m *server) rememberMount(d *chain.Disk) {
	if d.ReadOnly() {
		return
	}
	if err := d.RememberMount(m.plan.mountpoint, m.flags.words()); err != nil {
		m.log.Warn("the options of this mount are not remembered for the next one", "error", err)
	}
}
