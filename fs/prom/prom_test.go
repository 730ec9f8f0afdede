package prom

import (
	"bytes"
	"math"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"varve/overlay/measure"
)

// parsed is a page as the client library reads it.
func parsed(t *testing.T, page []byte) map[string]*dto.MetricFamily {
	t.Helper()
	p := expfmt.NewTextParser(model.UTF8Validation)
	families, err := p.TextToMetricFamilies(bytes.NewReader(page))
	if err != nil {
		t.Fatalf("%v\n%s", err, page)
	}
	return families
}

func page(t *testing.T, text *Text) []byte {
	t.Helper()
	var out bytes.Buffer
	if _, err := text.WriteTo(&out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// What is written is what the client library reads, whatever a value holds.
func TestText(t *testing.T) {
	var text Text
	names := []string{"", "plain", `C:\new`, "two\nlines", `"quoted"`, "ä{},=", "\xff\xfe", `\n`}
	f := text.Family("a_bytes", Gauge, "Help with \\ and\na second line.")
	for i, n := range names {
		f.Int(int64(i)<<40, Label{"path", n}, Label{"more", "x"})
	}
	text.Family("nothing_total", Counter, "No sample, no word.")
	text.Family("b_seconds", Gauge, "A duration.").Seconds(1500 * time.Microsecond)
	text.Family("c_time_seconds", Gauge, "A moment.").Time(time.UnixMilli(1_795_000_000_250))
	on := text.Family("d_on", Gauge, "Yes or no.")
	on.Bool(true, Label{"which", "a"})
	on.Bool(false, Label{"which", "b"})
	written := page(t, &text)
	got := parsed(t, written)
	if len(got) != 4 {
		t.Errorf("%d families, want 4:\n%s", len(got), written)
	}
	a := got["a_bytes"]
	if a.GetHelp() != "Help with \\ and\na second line." || a.GetType() != dto.MetricType_GAUGE || len(a.Metric) != len(names) {
		t.Fatalf("%v", a)
	}
	for i, m := range a.Metric {
		if got, want := m.Label[0].GetValue(), strings.ToValidUTF8(names[i], "\uFFFD"); got != want || m.GetGauge().GetValue() != float64(int64(i)<<40) {
			t.Errorf("%q: read as %q with %v", want, got, m.GetGauge().GetValue())
		}
	}
	if v := got["b_seconds"].Metric[0].GetGauge().GetValue(); v != 0.0015 {
		t.Error(v)
	}
	if v := got["c_time_seconds"].Metric[0].GetGauge().GetValue(); v != 1_795_000_000.25 {
		t.Error(v)
	}
	if d := got["d_on"].Metric; d[0].GetGauge().GetValue() != 1 || d[1].GetGauge().GetValue() != 0 {
		t.Error(d)
	}
}

func TestDistribution(t *testing.T) {
	var h measure.Histogram
	for _, d := range []time.Duration{0, 15 * time.Microsecond, 15 * time.Microsecond, time.Second, time.Minute} {
		h.Observe(d)
	}
	var text Text
	f := text.Family("t_seconds", Histogram, "Durations.")
	f.Distribution(h.Load(), Label{"op", "read"})
	f.Distribution(measure.Distribution{}, Label{"op", "write"})
	m := parsed(t, page(t, &text))["t_seconds"].Metric
	if len(m) != 2 {
		t.Fatal(m)
	}
	got := m[0].GetHistogram()
	if got.GetSampleCount() != 5 || got.GetSampleSum() != 61.00003 || len(got.Bucket) != measure.Buckets {
		t.Errorf("%v", got)
	}
	for _, b := range got.Bucket {
		want := uint64(0)
		switch le := b.GetUpperBound(); {
		case math.IsInf(le, 1):
			want = 5
		case le >= 1:
			want = 4
		case le >= 20e-6:
			want = 3
		case le >= 10e-6:
			want = 1
		}
		if b.GetCumulativeCount() != want {
			t.Errorf("up to %v: %d, want %d", b.GetUpperBound(), b.GetCumulativeCount(), want)
		}
	}
	if n := m[1].GetHistogram().GetSampleCount(); n != 0 {
		t.Errorf("an empty one has %d", n)
	}
}
