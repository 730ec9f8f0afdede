package doctor

import (
	"cmp"
	"context"
	"slices"
	"sync"
)

// kind says what a check is made for; kinds add up.
type kind int

const (
	ofDisk kind = 1 << iota
	ofMount
	ofImage
	ofHost
	ofClaim
)

// check looks for one trouble.
type check struct {
	id    string // kebab-case
	about string // what it looks for, as docs/reference.md has it
	of    kind
	look  func(context.Context, *Scope) []Finding
}

// notSeen is the id of the note about what could not be looked at.
const notSeen = "not-seen"

// checks are all checks, in the order in which they run.
func checks() []check {
	return slices.Concat(diskChecks(), mountChecks(), stakeChecks(), []check{
		{"host-space", "the host's file system below a disk is nearly full, in bytes by what the disks on it that are looked at can still take together, or in inodes; or it takes no more writes", ofDisk, lookAtSpace},
		{vmLayer, "a VM, running or defined in libvirt, that has the file of the base, of a snapshot or of the leaf instead of disk.raw", ofDisk | ofImage, lookAtVMs(vmLayer)},
		{vmOptions, "a VM that has disk.raw without format=raw or on a backing file, ignores flushes or takes no lock, or has a layer of the mount to write", ofMount, lookAtVMs(vmOptions)},
		{vmAccess, "a mount, or a directory above it, that does not let in the user as whom libvirt runs a VM", ofMount, lookAtVMs(vmAccess)},
		{"vm-snapshots", "snapshots in libvirt's list whose files are layers of the disk", ofDisk, func(_ context.Context, s *Scope) []Finding { return lookAtSnapshots(s) }},
		{"open-files", "who has which layer, or which file of the mount, open and how; a layer that somebody can write", ofDisk | ofMount | ofImage, lookAtOpenFiles},
		{"apparmor", "AppArmor in force, with the rule for the mount", ofMount, lookAtAppArmor},
		{"selinux", "SELinux in force, and VMs of libvirt are refused the mount", ofMount, lookAtSELinux},
		{vmLost, "a VM whose disk.raw is in no mount, or in one that is gone", ofHost | ofMount, lookAtLostDisks},
		{"fuse", "/dev/fuse or fusermount3 missing or not to be used", ofHost, lookAtFUSE},
		{"allow-other", "allow_other not permitted to ordinary users in /etc/fuse.conf", ofHost, lookAtAllowOther},
	})
}

// Report is what was found, and the document of "varve doctor --json". Fields are
// added, never changed in meaning.
type Report struct {
	Version  int       `json:"version"` // 1
	Checks   int       `json:"checks"`  // how many checks had something to look at
	Problems int       `json:"problems"`
	Warnings int       `json:"warnings"`
	Notes    int       `json:"notes"`
	Findings []Finding `json:"findings"`
}

// Run makes all checks of all scopes. Findings of a subject stand together, the
// worst subject and in it the worst finding first. It ends early when ctx does,
// with ctx's error.
func Run(ctx context.Context, scopes []*Scope) (Report, error) {
	r := Report{Version: 1, Findings: []Finding{}}
	m := newMachine("/")
	// What may have to be waited for is waited for once.
	examined := make([][]Finding, len(scopes))
	var looking sync.WaitGroup
	for i, s := range scopes {
		if s.machine == nil {
			s.machine = m
		}
		looking.Go(func() { examined[i] = s.examine(ctx) })
		looking.Go(func() { s.ask(ctx) })
	}
	looking.Wait()
	for i, s := range scopes {
		for _, f := range examined[i] {
			r.add(f)
		}
		s.refused()
	}
	addUp(scopes)
	for _, c := range checks() {
		looked := false
		for _, s := range scopes {
			if err := ctx.Err(); err != nil {
				return r, err
			}
			if !s.has(c.of) {
				continue
			}
			looked = true
			for _, f := range c.look(ctx, s) {
				f.Check = cmp.Or(f.Check, c.id)
				f.Subject = cmp.Or(f.Subject, s.Subject)
				r.add(f)
			}
		}
		if looked {
			r.Checks++
		}
	}
	for _, s := range scopes {
		for _, f := range s.notSeen() {
			r.add(f)
		}
	}
	r.sort()
	return r, nil
}

// add adds a finding unless it is there already: disks share bases.
func (r *Report) add(f Finding) {
	if slices.Contains(r.Findings, f) {
		return
	}
	r.Findings = append(r.Findings, f)
	switch f.Severity {
	case Problem:
		r.Problems++
	case Warning:
		r.Warnings++
	default:
		r.Notes++
	}
}

func (r *Report) sort() {
	worst, first := make(map[string]int), make(map[string]int)
	for i, f := range r.Findings {
		if _, known := first[f.Subject]; !known {
			first[f.Subject], worst[f.Subject] = i, f.Severity.rank()
		}
		worst[f.Subject] = min(worst[f.Subject], f.Severity.rank())
	}
	slices.SortStableFunc(r.Findings, func(a, b Finding) int {
		return cmp.Or(worst[a.Subject]-worst[b.Subject], first[a.Subject]-first[b.Subject], a.Severity.rank()-b.Severity.rank())
	})
}
