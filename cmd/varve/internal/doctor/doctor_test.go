package doctor

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"testing"
)

func TestSpace(t *testing.T) {
	const gib = 1 << 30
	for _, c := range []struct {
		name   string
		room   room
		growth int64
		want   []Severity
		words  string
	}{
		{"plenty", room{50 * gib, 100 * gib, 1e6, 1e7}, 40 * gib, nil, ""},
		{"file system that makes inodes as needed", room{50 * gib, 100 * gib, 0, 0}, 0, nil, ""},
		{"more promised than there", room{50 * gib, 100 * gib, 1e6, 1e7}, 60 * gib, []Severity{Note}, "60 GiB"},
		{"below 5 %", room{4 * gib, 100 * gib, 1e6, 1e7}, gib, []Severity{Warning}, "4 GiB of 100 GiB free"},
		{"below 5 % of much", room{400 * gib, 10000 * gib, 1e6, 1e7}, gib, nil, ""},
		{"full", room{1 << 20, 100 * gib, 1e6, 1e7}, 0, []Severity{Problem}, "ENOSPC"},
		{"no inodes", room{50 * gib, 100 * gib, 3, 1e7}, 0, []Severity{Problem}, "3 inodes left"},
		{"neither", room{0, 100 * gib, 0, 1e7}, 0, []Severity{Problem, Problem}, ""},
	} {
		got := spaceFindings(c.room, c.growth)
		if len(got) != len(c.want) {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
			continue
		}
		for i, f := range got {
			if f.Severity != c.want[i] || !strings.Contains(f.What, c.words) || f.Fix == "" {
				t.Errorf("%s: got %+v", c.name, f)
			}
		}
	}
}

func TestRunOrder(t *testing.T) {
	r := Report{}
	for _, f := range []Finding{
		{Note, "a", "/one", "1", ""}, {Warning, "b", "/two", "2", ""}, {Problem, "c", "/three", "3", ""},
		{Problem, "d", "/one", "4", ""}, {Note, "a", "/one", "1", ""},
	} {
		r.add(f)
	}
	r.sort()
	var got []string
	for _, f := range r.Findings {
		got = append(got, f.What)
	}
	if s := strings.Join(got, " "); s != "4 1 3 2" || r.Problems != 2 || r.Warnings != 1 {
		t.Errorf("got %s, %d problems, %d warnings", s, r.Problems, r.Warnings)
	}
}

// What could not be seen is one note, whoever of the checks says so.
func TestUnseen(t *testing.T) {
	s := &Scope{Subject: "vm1.varve", Directory: t.TempDir() + "/gone"}
	s.Unseen("open files of other users")
	s.Unseen("open files of other users")
	r, err := Run(context.Background(), []*Scope{s})
	if err != nil || len(r.Findings) != 1 || r.Findings[0].Check != notSeen || r.Findings[0].Subject != "vm1.varve" {
		t.Fatalf("got %+v, %v", r, err)
	}
	if what := r.Findings[0].What; strings.Count(what, "open files of other users") != 1 || !strings.Contains(what, "/gone") {
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

func TestCheckTable(t *testing.T) {
	seen := map[string]bool{notSeen: true}
	for _, c := range checks() {
		if !regexp.MustCompile(`^[a-z]+(-[a-z]+)*$`).MatchString(c.id) || seen[c.id] || c.about == "" || c.of == 0 || c.look == nil {
			t.Errorf("%+v", c)
		}
		seen[c.id] = true
	}
}
