package keep

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

func at(t *testing.T, s string) time.Time {
	t.Helper()
	for _, layout := range []string{"2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02"} {
		if when, err := time.Parse(layout, s); err == nil {
			return when
		}
	}
	t.Fatalf("no time: %s", s)
	return time.Time{}
}

// What the words mean, each with what restic's documentation says of it.
func TestApply(t *testing.T) {
	sundays := []string{
		"2025-09-07 11:00", "2025-09-14 11:00", "2025-09-21 11:00", "2025-09-28 11:00", "2025-10-05 11:00",
		"2025-10-12 11:00", "2025-10-19 11:00", "2025-10-26 11:00", "2025-11-02 11:00", "2025-11-09 11:00",
	}
	hours := []string{"2025-11-09 08:10", "2025-11-09 08:50", "2025-11-09 09:20", "2025-11-09 12:00", "2025-11-10 00:01"}
	for _, c := range []struct {
		name   string
		policy Policy
		times  []string
		keep   []string // indices of times, as they are; all others go
	}{
		{"the last ones", Policy{Last: 2}, sundays, sundays[8:]},
		{"more than there are", Policy{Last: 99}, sundays, sundays},
		{"unlimited", Policy{Last: Unlimited}, sundays, sundays},
		{"one of each hour", Policy{Hourly: 3}, hours, []string{hours[2], hours[3], hours[4]}},
		{"hours without one do not count", Policy{Hourly: 4}, hours, []string{hours[1], hours[2], hours[3], hours[4]}},
		{"and the oldest where there are fewer", Policy{Hourly: 5}, hours, []string{hours[0], hours[1], hours[2], hours[3], hours[4]}},
		{"one of each day", Policy{Daily: 2}, hours, []string{hours[3], hours[4]}},
		{"days without one do not count", Policy{Daily: 4}, sundays, sundays[6:]},
		{"one of each week", Policy{Weekly: 3}, sundays, sundays[7:]},
		{"one of each month", Policy{Monthly: 2}, sundays, []string{sundays[7], sundays[9]}},
		{"the last of each month, and the oldest", Policy{Monthly: 9}, sundays, []string{sundays[0], sundays[3], sundays[7], sundays[9]}},
		{"one of a year, and the oldest", Policy{Yearly: 2}, sundays, []string{sundays[0], sundays[9]}},
		{"a snapshot counts for each rule", Policy{Daily: 2, Weekly: 2}, sundays, sundays[8:]},
		{"rules add up", Policy{Last: 1, Monthly: 2}, sundays, []string{sundays[7], sundays[9]}},
		{"within", Policy{Within: Duration{Days: 21}}, sundays, sundays[7:]},
		{"within, in months", Policy{Within: Duration{Months: 1, Days: 1}}, sundays, sundays[5:]},
		{"within, in hours", Policy{Within: Duration{Hours: 15}}, hours, hours[2:]},
		{"nothing", Policy{Weekly: 1}, nil, nil},
		{"one that is newest and oldest", Policy{Yearly: 3}, sundays[:1], sundays[:1]},
		{"ISO weeks go over the end of a year", Policy{Weekly: 1}, []string{"2024-12-28", "2024-12-30", "2025-01-05"}, []string{"2025-01-05"}},
		{"the newest in the future is no measure", Policy{Within: Duration{Days: 1}}, []string{"2025-11-01", "2025-11-02", "2031-01-01"}, []string{"2025-11-02", "2031-01-01"}},
		{"what is in the future takes no place of the last", Policy{Last: 1}, []string{"2025-11-01", "2025-11-02", "2031-01-01", "2099-01-01"}, []string{"2025-11-02", "2031-01-01", "2099-01-01"}},
		{"nor of a day's", Policy{Daily: 2}, []string{"2025-11-01 10:00", "2025-11-01 11:00", "2025-11-02 11:00", "2031-01-01", "2099-01-01"}, []string{"2025-11-01 11:00", "2025-11-02 11:00", "2031-01-01", "2099-01-01"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var list []Snapshot
			for _, s := range c.times {
				list = append(list, Snapshot{s, at(t, s)})
			}
			rand.Shuffle(len(list), func(i, k int) { list[i], list[k] = list[k], list[i] })
			decisions, err := c.policy.Apply(list, at(t, "2025-12-01"))
			if err != nil || len(decisions) != len(list) {
				t.Fatal(err, len(decisions))
			}
			var kept []string
			for i, d := range decisions {
				if i > 0 && d.Time.After(decisions[i-1].Time) {
					t.Error("not newest first")
				}
				if len(d.Reasons) > 0 {
					kept = append(kept, d.Name)
				}
			}
			slices.Sort(kept)
			if !slices.Equal(kept, c.keep) {
				t.Errorf("kept %q\nwant %q", kept, c.keep)
			}
		})
	}
}

func TestNames(t *testing.T) {
	list := []Snapshot{{"before-a", at(t, "2025-01-01")}, {"before-b", at(t, "2025-01-02")}, {"after", at(t, "2025-01-03")}}
	decisions, err := Policy{Names: []string{"before-*"}}.Apply(list, at(t, "2025-12-01"))
	if err != nil || decisions[0].Reasons != nil || decisions[1].Reasons[0] != "name" || decisions[2].Reasons[0] != "name" {
		t.Errorf("%v %v", decisions, err)
	}
	for pattern, words := range map[string]string{"beyond-*": `no snapshot has a name like "beyond-*"; nothing was done`, "before-[": "is no pattern"} {
		if _, err := (Policy{Names: []string{"after", pattern}}).Apply(list, time.Now()); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", pattern, err)
		}
	}
}

// Reasons name the rules, for people.
func TestReasons(t *testing.T) {
	p := Policy{Last: 1, Hourly: 1, Daily: 1, Weekly: 1, Monthly: 1, Yearly: 1, Within: Duration{Years: 1, Months: 5, Days: 7, Hours: 2}, Names: []string{"*"}}
	d, err := p.Apply([]Snapshot{{"x", at(t, "2025-01-01")}}, time.Now())
	if want := "name, within 1y5m7d2h, last, hourly, daily, weekly, monthly, yearly"; err != nil || strings.Join(d[0].Reasons, ", ") != want {
		t.Errorf("%v %v", d, err)
	}
}

func TestParseDuration(t *testing.T) {
	for s, want := range map[string]Duration{
		"1y5m7d2h": {1, 5, 7, 2}, "36h": {Hours: 36}, "0h": {}, "7d1y": {Years: 1, Days: 7},
	} {
		if d, err := ParseDuration(s); err != nil || d != want {
			t.Errorf("%s: %v %v", s, d, err)
		}
	}
	for _, s := range []string{"", "7", "d", "7w", "-1d", "1d1d", "1.5h", "99999999999y", "7d ", "1s"} {
		if d, err := ParseDuration(s); err == nil || !strings.Contains(err.Error(), "1y5m7d2h") {
			t.Errorf("%q: %v %v", s, d, err)
		}
	}
}
