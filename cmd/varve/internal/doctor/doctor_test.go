package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/chain/mounts"
	"varve/cmd/varve/internal/aside"
	"varve/cmd/varve/internal/mountfile"
	"varve/integration/patience"
)

func TestSpace(t *testing.T) {
	const gib = 1 << 30
	for _, c := range []struct {
		name   string
		room   room
		growth growth
		want   []Severity
		words  string
	}{
		{"plenty", room{50 * gib, 100 * gib, 1e6, 1e7, false}, growth{40 * gib, 1 << 40, 1}, nil, ""},
		{"file system that makes inodes as needed", room{50 * gib, 100 * gib, 0, 0, false}, growth{}, nil, ""},
		{"more promised than there", room{50 * gib, 100 * gib, 1e6, 1e7, false}, growth{60 * gib, 0, 1}, []Severity{Note}, "60 GiB"},
		{"below 5 %", room{4 * gib, 100 * gib, 1e6, 1e7, false}, growth{5 * gib, 0, 1}, []Severity{Warning}, "4 GiB of 100 GiB free"},
		{"below 5 % of much", room{400 * gib, 10000 * gib, 1e6, 1e7, false}, growth{500 * gib, 0, 1}, []Severity{Note}, ""},
		{"below 5 %, more than the guest can write", room{4 * gib, 100 * gib, 1e6, 1e7, false}, growth{gib, 0, 1}, nil, ""},
		{"a day's writes do not fit", room{50 * gib, 100 * gib, 1e6, 1e7, false}, growth{60 * gib, 1 << 20, 1}, []Severity{Warning}, "nearly full"},
		{"an hour's writes do not fit", room{2 * gib, 100 * gib, 1e6, 1e7, false}, growth{60 * gib, 1 << 20, 1}, []Severity{Problem}, "within an hour"},
		{"full", room{1 << 20, 100 * gib, 1e6, 1e7, false}, growth{gib, 0, 1}, []Severity{Problem}, "ENOSPC"},
		{"full, and the disk has all its blocks", room{1 << 20, 100 * gib, 1e6, 1e7, false}, growth{}, nil, ""},
		{"full by what two disks need", room{50 * gib, 100 * gib, 1e6, 1e7, false}, growth{40 * gib, 0, 1}.and(growth{20 * gib, 0, 1}), []Severity{Note}, "the guests of 2 disks there can still write 60 GiB"},
		{"full within an hour by what two disks write", room{5 * gib, 100 * gib, 1e6, 1e7, false}, growth{4 * gib, 1 << 20, 1}.and(growth{4 * gib, 1 << 20, 1}), []Severity{Problem}, "as the guests of 2 disks there have written so far"},
		{"no inodes", room{50 * gib, 100 * gib, 3, 1e7, false}, growth{}, []Severity{Problem}, "3 inodes left"},
		{"neither", room{0, 100 * gib, 0, 1e7, false}, growth{gib, 0, 1}, []Severity{Problem, Problem}, ""},
	} {
		got := spaceFindings(c.room, c.growth)
		if len(got) != len(c.want) {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
			continue
		}
		for i, f := range got {
			if f.Severity != c.want[i] || !strings.Contains(f.What, c.words) {
				t.Errorf("%s: got %+v", c.name, f)
			}
		}
	}
}

func TestRunOrder(t *testing.T) {
	r := Report{}
	for _, f := range []Finding{
		{Note, "a", "/one", "1", "", ""}, {Warning, "b", "/two", "2", "", ""}, {Problem, "c", "/three", "3", "", ""},
		{Problem, "d", "/one", "4", "", ""}, {Note, "a", "/one", "1", "", ""},
	} {
		r.add(f)
	}
	r.sort()
	var got []string
	for _, f := range r.Findings {
		got = append(got, f.What)
	}
	if s := strings.Join(got, " "); s != "4 1 3 2" || r.Problems != 2 || r.Warnings != 1 || r.Notes != 1 {
		t.Errorf("got %s, %d problems, %d warnings, %d notes", s, r.Problems, r.Warnings, r.Notes)
	}
}

// What could not be seen is one note, whoever of the checks says so.
func TestUnseen(t *testing.T) {
	s := &Scope{Subject: "vm1.varve"}
	s.Unseen("open files of %s", "other users")
	s.Unseen("open files of other users")
	s.Unseen("/img/base.raw")
	r, err := Run(context.Background(), []*Scope{s})
	if err != nil || len(r.Findings) != 1 || r.Findings[0].Check != notSeen || r.Findings[0].Subject != "vm1.varve" {
		t.Fatalf("got %+v, %v", r, err)
	}
	if what := r.Findings[0].What; what != "not looked at, for want of rights: open files of other users; /img/base.raw" {
		t.Errorf("says %q", what)
	}
}

func TestRunEndsEarly(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Run(ctx, []*Scope{{Subject: "d", Directory: t.TempDir()}}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestMain lets this program be the process that asks what may hang.
func TestMain(m *testing.M) {
	if code, ok := aside.Serve(os.Args, Errands()); ok {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// The table in the reference is that of the checks.
func TestCheckTable(t *testing.T) {
	want := "| `" + notSeen + "` | what it may not look at, as it was not asked by root or the disk's owner |\n"
	seen := map[string]bool{notSeen: true}
	for _, c := range checks() {
		if !regexp.MustCompile(`^[a-z]+(-[a-z]+)*$`).MatchString(c.id) || seen[c.id] || c.about == "" || c.of == 0 || c.look == nil {
			t.Errorf("%+v", c)
		}
		seen[c.id] = true
		want += "| `" + c.id + "` | " + c.about + " |\n"
	}
	reference, err := os.ReadFile("../../../../docs/reference.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(reference), "\n### doctor\n")
	_, table, _ := strings.Cut(section, "| check | looks for |\n| --- | --- |\n")
	table, _, _ = strings.Cut(table, "\n\n")
	got := slices.Sorted(strings.SplitSeq(table, "\n"))
	if w := slices.Sorted(strings.SplitSeq(strings.TrimSpace(want), "\n")); !slices.Equal(got, w) {
		t.Errorf("the table of docs/reference.md has\n%s\nthe checks are\n%s", strings.Join(got, "\n"), strings.Join(w, "\n"))
	}
}

func TestMountFindings(t *testing.T) {
	m := mounts.Mount{Mountpoint: "/mnt/vm1", Source: "/img/vm1.varve", UID: 4}
	for _, c := range []struct {
		name   string
		answer mountAnswer
		want   string
	}{
		{"fine", mountAnswer{}, ""},
		{"gone", mountAnswer{err: unix.ENOTCONN}, "problem stale-mount /mnt/vm1: its daemon is gone"},
		{"ended by force", mountAnswer{err: unix.ECONNABORTED}, "problem stale-mount /mnt/vm1"},
		{"hangs", mountAnswer{err: aside.ErrNoAnswer}, "problem no-answer /mnt/vm1: its daemon gives no answer within 5s"},
		{"no status", mountAnswer{err: unix.EIO}, "problem no-answer /mnt/vm1: its status cannot be read: input/output error"},
		{"another's", mountAnswer{err: unix.EACCES}, ""},
		{"hidden", mountAnswer{err: errHidden}, ""},
		{"unmounted meanwhile", mountAnswer{err: errGone}, ""},
		{"job done", mountAnswer{status: chain.Status{Job: &chain.JobStatus{State: "done"}}}, ""},
		{"job failed", mountAnswer{status: chain.Status{Job: &chain.JobStatus{ID: "7", Kind: "delete", State: "failed", Error: "no space left on device"}}}, "problem failed-job /mnt/vm1: job 7 (delete) failed: no space left on device; every snapshot is as it was; remove that cause, then varve delete /mnt/vm1 --unnamed goes on with it"},
		{"flatten failed", mountAnswer{status: chain.Status{Job: &chain.JobStatus{ID: "7", Kind: "flatten", State: "failed", Error: "no space left on device"}}}, "problem failed-job /mnt/vm1: job 7 (flatten) failed: no space left on device; every snapshot is as it was; remove that cause, then do it again"},
		{"damaged", mountAnswer{status: chain.Status{Layers: []chain.LayerStatus{{ID: "000001", Name: "s1", File: "/img/vm1.varve/layers/000001.qcow2",
			Damage: []chain.Damage{{Start: 5 << 20, Length: 64 << 10, Reason: "reserved bit", Partition: "p1"}, {Start: 1 << 30, Length: 512}}}}}},
			"problem damaged-layer /mnt/vm1: layer s1 (/img/vm1.varve/layers/000001.qcow2) is damaged: 65536 bytes at 5242880 (p1), and 1 more places of the disk cannot be read from it: reserved bit; all else can be read"},
	} {
		s := &Scope{Mounts: []mounts.Mount{m}, answers: []mountAnswer{c.answer}}
		lines := ""
		for _, check := range mountChecks()[:4] {
			for _, f := range check.look(context.Background(), s) {
				lines += fmt.Sprintf("%s %s %s: %s; %s\n", f.Severity, check.id, f.Subject, f.What, f.Fix)
			}
		}
		if c.want == "" && lines != "" || !strings.HasPrefix(lines, c.want) || strings.Count(lines, "\n") > 1 {
			t.Errorf("%s: got %q", c.name, lines)
		}
	}
}

// A mount that was for reading only is not made a disk that is written.
func TestStaleMountsOptions(t *testing.T) {
	for want, m := range map[string]mounts.Mount{
		"varve mount /img/ro.raw '/mnt/my disk'; a service: systemctl restart varve@NAME; ": {},
		"varve mount -o ro,allow_other /img/ro.raw '/mnt/my disk'; a service: ":             {ReadOnly: true, AllowOther: true},
	} {
		m.Mountpoint, m.Source = "/mnt/my disk", "/img/ro.raw"
		s := &Scope{Mounts: []mounts.Mount{m}, answers: []mountAnswer{{err: unix.ENOTCONN}}}
		if found := lookAtStale(context.Background(), s); len(found) != 1 || !strings.HasPrefix(found[0].Fix, "mount it anew with the options that it had: "+want) {
			t.Errorf("%+v: %+v", m, found)
		}
	}
}

// Nothing waits for what is no file, and what is not there is told apart.
func TestAskMount(t *testing.T) {
	dir := t.TempDir()
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	at := mountfile.Place{Root: dir, Device: st.Dev, Name: "/mnt/vm1"}
	if a := askMount(context.Background(), at, patience.Hang); !errors.Is(a.err, os.ErrNotExist) {
		t.Errorf("got %v", a.err)
	}
	if err := unix.Mkfifo(dir+"/status.json", 0o600); err != nil {
		t.Fatal(err)
	}
	if a := askMount(context.Background(), at, patience.Hang); a.err == nil || !strings.Contains(a.err.Error(), "/mnt/vm1/status.json is no regular file") {
		t.Errorf("got %v", a.err)
	}
}

// A mount that went away since the table was read is no trouble.
func TestUnmountedMeanwhile(t *testing.T) {
	s := &Scope{Mounts: []mounts.Mount{{Mountpoint: t.TempDir(), Source: "/img/vm1.varve"}}}
	s.ask(context.Background())
	if !errors.Is(s.answers[0].err, errHidden) && !errors.Is(s.answers[0].err, errGone) {
		t.Errorf("got %v", s.answers[0].err)
	}
	if found := lookAtHung(context.Background(), s); len(found) > 0 {
		t.Errorf("got %v", found)
	}
}

// What the disks of one file system can still take adds up, and what is on another does not.
func TestGrowthAddsUp(t *testing.T) {
	scope := func(dir string, size int64) *Scope {
		leaf := filepath.Join(dir, fmt.Sprint(size))
		if err := os.WriteFile(leaf, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		return &Scope{Directory: dir, Size: size, Layers: []Layer{{State: "leaf", File: leaf}}}
	}
	other, err := os.MkdirTemp("/dev/shm", "")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(other)
	here := t.TempDir()
	a, b, c := scope(here, 1<<30), scope(here, 2<<30), scope(other, 4<<30)
	addUp([]*Scope{a, b, c, {Subject: "host", Host: true}})
	if a.neighbours != (growth{2 << 30, 0, 1}) || b.neighbours != (growth{1 << 30, 0, 1}) || c.neighbours != (growth{}) {
		t.Errorf("beside them %+v, %+v and %+v", a.neighbours, b.neighbours, c.neighbours)
	}
}
