package fs

import (
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/fs/device"
	"varve/fs/prom"
)

// Metric is what the file metrics has under one name.
type Metric struct {
	Name string
	Kind string // counter, gauge or histogram
	Help string
}

// Metrics lists all that the file metrics may have, in its order.
func Metrics() []Metric {
	var list []Metric
	for _, m := range metrics() {
		list = append(list, m.Metric)
	}
	return list
}

// metric is a Metric with the way to its samples, none where there is nothing to be
// told. Names and labels stay what they are: a dashboard knows them.
type metric struct {
	Metric
	samples func(s *scrape, to *prom.Family)
}

// scrape is what one open of the file tells of.
type scrape struct {
	f    *fileSystem
	disk chain.Metrics
	host *syscall.Statfs_t // nil when it cannot be asked
}

func metrics() []metric {
	return slices.Concat(requestMetrics(), diskMetrics(), jobMetrics(), layerMetrics(), hostMetrics(), processMetrics())
}

// writeMetrics writes the file metrics.
func (f *fileSystem) writeMetrics(w io.Writer) error {
	s := scrape{f: f, disk: f.disk.Metrics()}
	if st, err := f.hostSpace(); err == nil {
		s.host = st
	}
	var text prom.Text
	for _, m := range metrics() {
		m.samples(&s, text.Family(m.Name, m.Kind, m.Help))
	}
	_, err := text.WriteTo(w)
	return err
}

// ops are the classes of requests, as labels.
var ops = [device.Ops][]prom.Label{
	device.DiskRead:    {{Name: "op", Value: "read"}, {Name: "file", Value: "disk"}},
	device.DiskWrite:   {{Name: "op", Value: "write"}, {Name: "file", Value: "disk"}},
	device.DiskFlush:   {{Name: "op", Value: "flush"}, {Name: "file", Value: "disk"}},
	device.DiskDiscard: {{Name: "op", Value: "discard"}, {Name: "file", Value: "disk"}},
	device.LayerRead:   {{Name: "op", Value: "read"}, {Name: "file", Value: "layer"}},
	device.Other:       {{Name: "op", Value: "other"}, {Name: "file", Value: "any"}},
}

func requestMetrics() []metric {
	each := func(sample func(to *prom.Family, m device.Figures, labels []prom.Label), of ...device.Op) func(s *scrape, to *prom.Family) {
		return func(s *scrape, to *prom.Family) {
			for _, op := range of {
				sample(to, s.f.requests.Load(op), ops[op])
			}
		}
	}
	all := []device.Op{device.DiskRead, device.DiskWrite, device.DiskFlush, device.DiskDiscard, device.LayerRead, device.Other}
	moved := []device.Op{device.DiskRead, device.DiskWrite, device.DiskDiscard, device.LayerRead}
	return []metric{
		{Metric{"varve_request_duration_seconds", prom.Histogram,
			"How long requests were with varve: file=disk is disk.raw, file=layer the files in layers/ and partitions. " +
				"A raw layer that the kernel reads from the host itself (root, Linux 6.9) makes none."},
			each(func(to *prom.Family, m device.Figures, labels []prom.Label) { to.Distribution(m.Took, labels...) }, all...)},
		{Metric{"varve_request_bytes_total", prom.Counter, "Bytes read, written and discarded by requests that succeeded."},
			each(func(to *prom.Family, m device.Figures, labels []prom.Label) { to.Int(m.Bytes, labels...) }, moved...)},
		{Metric{"varve_request_errors_total", prom.Counter, "Requests answered with an error; of op=other I/O errors only."},
			each(func(to *prom.Family, m device.Figures, labels []prom.Label) { to.Int(m.Errors, labels...) }, all...)},
	}
}

func processMetrics() []metric {
	return []metric{
		{Metric{"varve_build_info", prom.Gauge, "Always 1; the labels say which varve serves the disk."},
			func(s *scrape, to *prom.Family) {
				to.Int(1, prom.Label{Name: "version", Value: s.f.version}, prom.Label{Name: "goversion", Value: runtime.Version()})
			}},
		{Metric{"varve_mount_time_seconds", prom.Gauge, "When the disk was mounted, and counters began at 0, in seconds since 1970."},
			func(s *scrape, to *prom.Family) { to.Time(s.f.mounted) }},
		{Metric{"varve_process_cpu_seconds_total", prom.Counter, "Processor time that varve has used for this disk."},
			func(_ *scrape, to *prom.Family) {
				if used, ok := processorTime(); ok {
					to.Seconds(used)
				}
			}},
		{Metric{"varve_process_resident_memory_bytes", prom.Gauge, "Memory that varve has in use for this disk."},
			func(_ *scrape, to *prom.Family) {
				if bytes, ok := residentMemory(); ok {
					to.Int(bytes)
				}
			}},
	}
}

func processorTime() (used time.Duration, ok bool) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0, false
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), true
}

// residentMemory reads the second field of proc(5)'s statm, in pages.
func residentMemory() (bytes int64, ok bool) {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, false
	}
	fields := strings.Fields(string(text))
	if len(fields) < 2 {
		return 0, false
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize()), err == nil
}

// Content says what a node holds, for the meter of requests.
func (f *fileSystem) Content(node uint64) device.Content {
	switch {
	case node == nodeDisk:
		return device.Disk
	case isLayer(node), isPart(node):
		return device.Layer
	}
	return device.Words
}
