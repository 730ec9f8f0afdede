package fs

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sys/unix"
)

// samples are those of a page by what they are written as.
type samples map[string]float64

// metricsOf reads a page with the client library and holds it against its linter.
func metricsOf(t *testing.T, page []byte) samples {
	t.Helper()
	problems, err := promlint.New(bytes.NewReader(page)).Lint()
	if err != nil {
		t.Fatalf("%v\n%s", err, page)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(page))
	if err != nil {
		t.Fatalf("%v\n%s", err, page)
	}
	got := samples{}
	for name, f := range families {
		for _, m := range f.Metric {
			labels := ""
			for _, l := range m.Label {
				labels += "," + l.GetName() + "=" + l.GetValue()
			}
			key := name + "{" + strings.TrimPrefix(labels, ",") + "}"
			switch f.GetType() {
			case dto.MetricType_COUNTER:
				got[key] = m.GetCounter().GetValue()
			case dto.MetricType_GAUGE:
				got[key] = m.GetGauge().GetValue()
			case dto.MetricType_HISTOGRAM:
				h := m.GetHistogram()
				got[key] = float64(h.GetSampleCount())
				last := uint64(0)
				for _, b := range h.Bucket {
					if b.GetCumulativeCount() < last {
						t.Errorf("%s falls to %d at %v", key, b.GetCumulativeCount(), b.GetUpperBound())
					}
					last = b.GetCumulativeCount()
				}
				if last != h.GetSampleCount() || last == 0 && h.GetSampleSum() != 0 {
					t.Errorf("%s: %d up to infinity, count %d, sum %v", key, last, h.GetSampleCount(), h.GetSampleSum())
				}
			}
		}
	}
	return got
}

func readMetrics(t *testing.T, dir string) samples {
	t.Helper()
	page, err := os.ReadFile(filepath.Join(dir, "metrics"))
	if err != nil {
		t.Fatal(err)
	}
	return metricsOf(t, page)
}

// Requests are counted by what they are, with their bytes and errors. A request is
// counted after its answer.
func TestRequestMetrics(t *testing.T) {
	for _, debug := range []bool{false, true} { // which goes another way
		t.Run(map[bool]string{false: "quick", true: "by go-fuse"}[debug], func(t *testing.T) {
			dir, d, _ := mounted(t, mib, Options{Debug: debug, Version: "v1.2.3"})
			f, err := os.OpenFile(filepath.Join(dir, "disk.raw"), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			p := make([]byte, 4096)
			for i := range int64(5) {
				if _, err := f.WriteAt(p, i*4096); err != nil {
					t.Fatal(err)
				}
			}
			for i := range int64(3) {
				if _, err := f.ReadAt(p[:512], i*4096); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				if err := f.Sync(); err != nil {
					t.Fatal(err)
				}
			}
			const keep = unix.FALLOC_FL_KEEP_SIZE
			for _, mode := range []uint32{unix.FALLOC_FL_PUNCH_HOLE | keep, unix.FALLOC_FL_ZERO_RANGE | keep, keep} {
				if err := unix.Fallocate(int(f.Fd()), mode, 0, 8192); err != nil {
					t.Fatal(err)
				}
			}
			layer, err := os.OpenFile(filepath.Join(dir, "layers", "base.raw"), os.O_RDONLY|unix.O_DIRECT, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer layer.Close()
			if _, err := layer.ReadAt(aligned(make([]byte, 3*4096))[:4096], 0); err != nil {
				t.Fatal(err)
			}
			d.failWith("WriteAt", unix.ENOSPC)
			if _, err := f.WriteAt(p, 0); !errors.Is(err, unix.ENOSPC) {
				t.Fatal(err)
			}
			d.failWith("Flush", unix.EIO)
			if err := f.Sync(); !errors.Is(err, unix.EIO) {
				t.Fatal(err)
			}
			d.panicIn("ReadAt", true)
			if _, err := f.ReadAt(p, 0); !errors.Is(err, unix.EIO) {
				t.Fatal(err)
			}
			want := samples{
				"varve_request_duration_seconds{op=read,file=disk}":    4,
				"varve_request_duration_seconds{op=write,file=disk}":   6,
				"varve_request_duration_seconds{op=flush,file=disk}":   3,
				"varve_request_duration_seconds{op=discard,file=disk}": 2,
				"varve_request_duration_seconds{op=read,file=layer}":   1,
				"varve_request_bytes_total{op=read,file=disk}":         3 * 512,
				"varve_request_bytes_total{op=write,file=disk}":        5 * 4096,
				"varve_request_bytes_total{op=discard,file=disk}":      2 * 8192,
				"varve_request_bytes_total{op=read,file=layer}":        4096,
				"varve_request_errors_total{op=read,file=disk}":        1,
				"varve_request_errors_total{op=write,file=disk}":       1,
				"varve_request_errors_total{op=flush,file=disk}":       1,
				"varve_request_errors_total{op=discard,file=disk}":     0,
				"varve_request_errors_total{op=read,file=layer}":       0,
				"varve_request_errors_total{op=other,file=any}":        0,
			}
			var got samples
			waitFor(t, "the last requests to be counted", func() bool {
				got = readMetrics(t, dir)
				for key, n := range want {
					if got[key] < n {
						return false
					}
				}
				return true
			})
			for key, n := range want {
				if value, ok := got[key]; !ok || value != n {
					t.Errorf("%s is %v, %v; want %v", key, value, ok, n)
				}
			}
			others := "varve_request_duration_seconds{op=other,file=any}"
			if n := readMetrics(t, dir)[others]; n <= got[others] {
				t.Errorf("reading the metrics makes no request of op=other: %v, then %v", got[others], n)
			}
			if _, err := os.Stat(filepath.Join(dir, "nothing")); !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			if n := readMetrics(t, dir)["varve_request_errors_total{op=other,file=any}"]; n != 0 {
				t.Errorf("a name that is not there is an error: %v", n)
			}
		})
	}
}

// The file has what it had when it was opened, and its size is told.
func TestMetricsFile(t *testing.T) {
	dir, _, s := mounted(t, mib, Options{Version: "v1.2.3"})
	out, err := shell(t, dir, "cat metrics > /dev/null && exec 3<metrics && stat -c %s metrics && cat <&3 | wc -c")
	if err != nil {
		t.Fatal(err, out)
	}
	if n := strings.Fields(out); len(n) != 2 || n[0] != n[1] || n[0] == "0" {
		t.Errorf("size and bytes: %q", out)
	}
	if _, err := os.OpenFile(filepath.Join(dir, "metrics"), os.O_WRONLY, 0); !errors.Is(err, os.ErrPermission) {
		t.Errorf("opened for writing: %v", err)
	}
	got := readMetrics(t, dir)
	for key, ok := range map[string]func(v float64) bool{
		"varve_mount_time_seconds{}":                    func(v float64) bool { return int64(v) == s.fs.mounted.Unix() },
		"varve_process_cpu_seconds_total{}":             func(v float64) bool { return v > 0 && v < 10_000 },
		"varve_process_resident_memory_bytes{}":         func(v float64) bool { return v > 1<<20 && v < 1<<36 },
		"varve_request_errors_total{op=other,file=any}": func(v float64) bool { return v == 0 },
	} {
		if v, there := got[key]; !there || !ok(v) {
			t.Errorf("%s is %v, %v", key, v, there)
		}
	}
	build := 0
	for key := range got {
		if strings.HasPrefix(key, "varve_build_info{version=v1.2.3,goversion=go1.") {
			build++
		}
	}
	if build != 1 {
		t.Errorf("%d times build info", build)
	}
}

// It can be read while requests come by the thousand, and its counters never fall.
func TestMetricsUnderLoad(t *testing.T) {
	dir, _, _ := mounted(t, mib, Options{})
	stop := make(chan struct{})
	var load sync.WaitGroup
	for i := range 4 {
		f, err := os.OpenFile(filepath.Join(dir, "disk.raw"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		load.Go(func() {
			defer f.Close()
			p := make([]byte, 4096)
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := f.WriteAt(p, int64(i)*4096); err != nil {
					t.Error(err)
					return
				}
				if _, err := f.ReadAt(p, int64(i)*4096); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	last := samples{}
	for range 100 {
		now := readMetrics(t, dir)
		for key, n := range last {
			if (strings.Contains(key, "_total{") || strings.Contains(key, "_duration_seconds{")) && now[key] < n {
				t.Errorf("%s fell from %v to %v", key, n, now[key])
			}
		}
		last = now
	}
	close(stop)
	load.Wait()
	if last["varve_request_duration_seconds{op=write,file=disk}"] < 10 {
		t.Errorf("no load: %v", last)
	}
}

// Every metric has a name of ours and words that stand on one line.
func TestMetricNames(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range Metrics() {
		if !strings.HasPrefix(m.Name, "varve_") || seen[m.Name] || m.Help == "" || strings.Contains(m.Help, "\n") || !strings.HasSuffix(m.Help, ".") {
			t.Errorf("%+v", m)
		}
		seen[m.Name] = true
	}
}
