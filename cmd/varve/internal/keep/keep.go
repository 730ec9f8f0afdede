// Package keep decides which snapshots a policy keeps. Its words mean what they mean
// to restic's forget command.
package keep

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Unlimited as a count keeps all that a rule can keep.
const Unlimited = -1

// Policy says how many snapshots of which kind are kept; a rule that is 0 keeps none.
// One snapshot may be kept by several rules, and counts for each.
//
// Hours, days, weeks (of ISO 8601), months and years are those of the calendar, in the
// times' own zones. Of each that has snapshots the newest one is kept, from the newest
// period on, until the count is reached. Where it is not reached the oldest snapshot is
// kept too, so that a young series reaches back as far as it can.
type Policy struct {
	Last, Hourly, Daily, Weekly, Monthly, Yearly int
	Within                                       Duration // before the newest snapshot
	Names                                        []string // patterns as of path.Match
}

// Snapshot is what a policy looks at.
type Snapshot struct {
	Name string
	Time time.Time
}

// Decision is a snapshot with the rules that keep it; none: it goes.
type Decision struct {
	Snapshot
	Reasons []string
}

// Empty says whether a policy has no rule.
func (p Policy) Empty() bool {
	return p.Last == 0 && p.Hourly == 0 && p.Daily == 0 && p.Weekly == 0 && p.Monthly == 0 && p.Yearly == 0 &&
		p.Within.zero() && len(p.Names) == 0
}

// rule keeps the newest snapshot of each of its periods.
type rule struct {
	left   int
	reason string
	period func(t time.Time, n int) string
	last   string
}

// Apply decides on snapshots, newest first. now tells which of them are in the future,
// as a clock that was wrong leaves them: these stay, count for no rule, and are not the
// newest for Within. Otherwise each of them would take the place of a newer snapshot
// for as long as its time has not come. An error for a pattern that is none,
// or that no snapshot matches.
func (p Policy) Apply(list []Snapshot, now time.Time) ([]Decision, error) {
	if err := p.checkNames(list); err != nil {
		return nil, err
	}
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b Snapshot) int { return b.Time.Compare(a.Time) })
	rules := []*rule{
		{left: p.Last, reason: "last", period: func(_ time.Time, n int) string { return strconv.Itoa(n) }},
		{left: p.Hourly, reason: "hourly", period: func(t time.Time, _ int) string { return t.Format("2006-01-02 15") }},
		{left: p.Daily, reason: "daily", period: func(t time.Time, _ int) string { return t.Format("2006-01-02") }},
		{left: p.Weekly, reason: "weekly", period: func(t time.Time, _ int) string {
			year, week := t.ISOWeek()
			return fmt.Sprintf("%d-%d", year, week)
		}},
		{left: p.Monthly, reason: "monthly", period: func(t time.Time, _ int) string { return t.Format("2006-01") }},
		{left: p.Yearly, reason: "yearly", period: func(t time.Time, _ int) string { return t.Format("2006") }},
	}
	newest := newestOf(list, now)
	decisions := make([]Decision, len(list))
	for n, s := range list {
		d := Decision{Snapshot: s}
		for _, pattern := range p.Names {
			if ok, _ := path.Match(pattern, s.Name); ok {
				d.Reasons = append(d.Reasons, "name")
				break
			}
		}
		if !p.Within.zero() && s.Time.After(p.Within.Before(newest)) {
			d.Reasons = append(d.Reasons, "within "+p.Within.String())
		}
		if s.Time.After(now) {
			d.Reasons = append(d.Reasons, "in the future")
			decisions[n] = d
			continue
		}
		for _, r := range rules {
			if r.keeps(s.Time, n, n == len(list)-1) {
				d.Reasons = append(d.Reasons, r.reason)
			}
		}
		decisions[n] = d
	}
	return decisions, nil
}

func (r *rule) keeps(t time.Time, n int, oldest bool) bool {
	if r.left == 0 {
		return false
	}
	period := r.period(t, n)
	if period == r.last && !oldest {
		return false
	}
	r.last = period
	if r.left > 0 {
		r.left--
	}
	return true
}

func (p Policy) checkNames(list []Snapshot) error {
	for _, pattern := range p.Names {
		matched := false
		for _, s := range list {
			ok, err := path.Match(pattern, s.Name)
			if err != nil {
				return fmt.Errorf("%q is no pattern: a [ is not closed, or a \\ ends it", pattern)
			}
			matched = matched || ok
		}
		if !matched {
			return fmt.Errorf("no snapshot has a name like %q; nothing was done", pattern)
		}
	}
	return nil
}

// newestOf is the time of the newest snapshot that is not in the future.
func newestOf(list []Snapshot, now time.Time) (newest time.Time) {
	for _, s := range list {
		if s.Time.After(newest) && !s.Time.After(now) {
			newest = s.Time
		}
	}
	return newest
}

// Duration is a length of time of the calendar.
type Duration struct{ Years, Months, Days, Hours int }

func (d Duration) zero() bool { return d == Duration{} }

// Before is the time a duration before another one.
func (d Duration) Before(t time.Time) time.Time {
	return t.AddDate(-d.Years, -d.Months, -d.Days).Add(-time.Duration(d.Hours) * time.Hour)
}

// String writes a duration as ParseDuration reads it.
func (d Duration) String() string {
	text := ""
	for _, part := range []struct {
		n    int
		unit string
	}{{d.Years, "y"}, {d.Months, "m"}, {d.Days, "d"}, {d.Hours, "h"}} {
		if part.n != 0 {
			text += strconv.Itoa(part.n) + part.unit
		}
	}
	return text
}

var errDuration = errors.New("write years, months, days and hours as in 1y5m7d2h")

// ParseDuration reads numbers of years (y), months (m), days (d) and hours (h), each
// once at most, such as 1y5m7d2h or 36h.
func ParseDuration(s string) (d Duration, err error) {
	if s == "" {
		return Duration{}, errDuration
	}
	for rest := s; rest != ""; {
		end := strings.IndexAny(rest, "ymdh")
		if end <= 0 {
			return Duration{}, fmt.Errorf("%q is no length of time; %w", s, errDuration)
		}
		n, err := strconv.ParseUint(rest[:end], 10, 16)
		field := map[byte]*int{'y': &d.Years, 'm': &d.Months, 'd': &d.Days, 'h': &d.Hours}[rest[end]]
		if err != nil || *field != 0 {
			return Duration{}, fmt.Errorf("%q is no length of time; %w", s, errDuration)
		}
		*field = int(n)
		rest = rest[end+1:]
	}
	return d, nil
}
