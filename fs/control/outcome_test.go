package control

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestOutcomeRoundTrip(t *testing.T) {
	at := time.Date(2026, 11, 22, 18, 30, 0, 0, time.UTC)
	for _, c := range []struct {
		o    Outcome
		text string
	}{
		{Outcome{Time: at, PID: 4242, Line: "before-upgrade"}, `# last: 2026-11-22T18:30:00Z pid 4242: "before-upgrade": ok`},
		{Outcome{Time: at, PID: 1, Line: "old", Job: "3"}, `# last: 2026-11-22T18:30:00Z pid 1: "old": ok job 3`},
		{Outcome{Time: at, Line: `x": ok job 7`, Errno: unix.EBUSY, Reason: "disk.raw is open (pid 4242 qemu): busy"},
			`# last: 2026-11-22T18:30:00Z pid 0: "x\": ok job 7": error EBUSY: disk.raw is open (pid 4242 qemu): busy`},
		{Outcome{Time: at, Line: "a\n\x1b", Errno: unix.EINVAL, Reason: "no"},
			`# last: 2026-11-22T18:30:00Z pid 0: "a\n\x1b": error EINVAL: no`},
	} {
		if got := c.o.String(); got != c.text {
			t.Errorf("%s\nwant %s", got, c.text)
		}
		got, ok := ParseOutcome("# snapshot: write NAME\n# example: x\n" + c.text + "\n")
		if !ok || got != c.o {
			t.Errorf("%+v, %v; want %+v", got, ok, c.o)
		}
	}
	two := Outcome{Time: at, Errno: unix.EIO, Reason: "first\nsecond\tthird"}
	if o, ok := ParseOutcome(two.String()); !ok || o.Reason != "first second third" {
		t.Errorf("%+v", o)
	}
	for _, bad := range []string{
		"", "# last: ", "# last: now pid 1: \"x\": ok", "# last: 2026-11-22T18:30:00Z pid x: \"x\": ok",
		"# last: 2026-11-22T18:30:00Z pid 1: x: ok", "# last: 2026-11-22T18:30:00Z pid 1: \"x\": maybe",
		"# last: 2026-11-22T18:30:00Z pid 1: \"x\": ok job ", "# last: 2026-11-22T18:30:00Z pid 1: \"x\": error EWHAT: y",
	} {
		if o, ok := ParseOutcome(bad); ok {
			t.Errorf("%q gave %+v", bad, o)
		}
	}
}

func FuzzParseOutcome(f *testing.F) {
	f.Add("# last: 2026-11-22T18:30:00Z pid 4242: \"x\": ok job 3\n")
	f.Add("# last: 2026-11-22T18:30:00Z pid 4242: \"x\": error EBUSY: y\n")
	f.Fuzz(func(t *testing.T, text string) {
		o, ok := ParseOutcome(text)
		if !ok {
			return
		}
		// What was understood is understood again the same.
		again, ok := ParseOutcome(o.String())
		if !ok || again.Line != o.Line || again.Errno != o.Errno || again.Job != o.Job {
			t.Errorf("%+v, then %+v", o, again)
		}
	})
}
