package prom

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"varve/overlay/measure"
)

func TestMerge(t *testing.T) {
	one := `# HELP a_bytes What \\ is.
# TYPE a_bytes gauge
a_bytes 1
# a comment

# HELP h_seconds Durations.
# TYPE h_seconds histogram
h_seconds_bucket{op="read",le="+Inf"} 2
h_seconds_sum{op="read"} 0.5
h_seconds_count{op="read"} 2
`
	two := "# TYPE a_bytes gauge\na_bytes{layer=\"x} y\"} 2 1700000000000\n# TYPE only_total counter\nonly_total{} 3\nbare 4\n# TYPE empty_total counter\n"
	a, err := Parse([]byte(one), Label{"disk", `/d "1"`})
	if err != nil {
		t.Fatal(err)
	}
	b, err := Parse([]byte(two), Label{"disk", "/2"})
	if err != nil {
		t.Fatal(err)
	}
	want := `# HELP a_bytes What \\ is.
# TYPE a_bytes gauge
a_bytes{disk="/d \"1\""} 1
a_bytes{disk="/2",layer="x} y"} 2 1700000000000
# HELP h_seconds Durations.
# TYPE h_seconds histogram
h_seconds_bucket{disk="/d \"1\"",op="read",le="+Inf"} 2
h_seconds_sum{disk="/d \"1\"",op="read"} 0.5
h_seconds_count{disk="/d \"1\"",op="read"} 2
# TYPE only_total counter
only_total{disk="/2"} 3
bare{disk="/2"} 4
`
	got := Merge(a, b)
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	parsed(t, got)
	if again, err := Parse(got); err != nil || !bytes.Equal(Merge(again), got) {
		t.Errorf("without labels it does not stay the same: %v\n%s", err, Merge(again))
	}
	if len(Merge()) != 0 {
		t.Error("nothing is something")
	}
}

func TestParseRefuses(t *testing.T) {
	for _, bad := range []string{"a", "a{", "a{b=\"c\"", "1a 2", "<svg>", "a 1 2 3", "\x00\x01"} {
		if p, err := Parse([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, p)
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// What was understood is understood again, and no sample is lost or changed.
func FuzzMerge(f *testing.F) {
	var text Text
	to := text.Family("t_seconds", Histogram, "Durations.")
	to.Distribution(measure.Distribution{}, Label{"op", "read"})
	text.Family("a_bytes", Gauge, "Bytes.").Int(1, Label{"name", "x\"}\\\n"})
	var page bytes.Buffer
	if _, err := text.WriteTo(&page); err != nil {
		f.Fatal(err)
	}
	f.Add(page.Bytes())
	f.Add([]byte("a{b=\"c\",} 1\n"))
	f.Add([]byte("# HELP a\n# TYPE a gauge\na 1\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := Parse(text, Label{"mount", "1"})
		if err != nil {
			return
		}
		once := Merge(p)
		again, err := Parse(once)
		if err != nil {
			t.Fatalf("%v\n%s", err, once)
		}
		if twice := Merge(again); !slices.Equal(lines(once), lines(twice)) {
			t.Errorf("%q became %q", once, twice)
		}
	})
}

// lines are those of a page, in order of their text.
func lines(page []byte) []string {
	return slices.Sorted(strings.Lines(string(page)))
}
