package fs

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"varve/chain"
)

// What is done to a real disk through its mount stands in its metrics, and they say
// of its layers what status.json says.
func TestRealMetrics(t *testing.T) {
	top := t.TempDir()
	disk := filepath.Join(top, "vm.varve")
	if _, err := chain.Create(disk, chain.CreateOptions{Size: 64 * mib}); err != nil {
		t.Fatal(err)
	}
	dir, _ := realMount(t, disk)
	before := readMetrics(t, dir)
	f := open(t, filepath.Join(dir, nameDisk), os.O_RDWR)
	const piece = 256 << 10
	p := make([]byte, piece)
	for i := range p {
		p[i] = byte(i)
	}
	for i := range int64(4) {
		if _, err := f.WriteAt(p, i*mib); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := write(t, filepath.Join(dir, "control/snapshot"), "one"); err != nil {
		t.Fatal(err)
	}
	for i := range int64(4) {
		if _, err := f.ReadAt(p, i*mib); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, piece/2); err != nil {
		t.Fatal(err)
	}
	layer := open(t, filepath.Join(dir, "layers", "one.raw"), os.O_RDONLY)
	var st chain.Status
	if err := json.Unmarshal(content(t, filepath.Join(dir, nameStatusJSON)), &st); err != nil { // and has all counted
		t.Fatal(err)
	}
	want := samples{
		"varve_request_bytes_total{op=write,file=disk}":   5 * piece,
		"varve_request_bytes_total{op=read,file=disk}":    4 * piece,
		"varve_request_bytes_total{op=discard,file=disk}": piece / 2,
		"varve_allocated_bytes_total{}":                   5 * piece,
		"varve_discarded_bytes_total{}":                   piece / 2,
		"varve_snapshot_stall_seconds{}":                  1,
		"varve_disk_size_bytes{}":                         64 * mib,
		"varve_disk_read_only{}":                          0,
		"varve_disk_failed{}":                             0,
		"varve_flush_errors_total{}":                      0,
		"varve_open_files{file=disk,mode=write}":          1,
		"varve_open_files{file=disk,mode=read}":           0,
		"varve_open_files{file=layer,mode=read}":          1,
		"varve_layers{state=frozen}":                      1,
		"varve_layers{state=leaf}":                        1,
		"varve_layers{state=base}":                        0,
		"varve_layers{state=unnamed}":                     0,
		"varve_chain_depth{}":                             2,
		"varve_set_aside_bytes{}":                         0,
		"varve_job_running{}":                             0,
		"varve_jobs_total{kind=delete,state=done}":        0,
		"varve_jobs_total{kind=flatten,state=failed}":     0,
	}
	for _, l := range st.Layers {
		name := l.Name
		if l.State == chain.StateLeaf {
			name = "leaf"
		}
		labels := fmt.Sprintf("{layer=%s,name=%s}", l.ID, name)
		want["varve_layer_own_bytes"+labels] = float64(l.OwnBytes)
		want["varve_layer_host_bytes"+labels] = float64(l.HostBytes)
		if l.Frees != nil {
			want["varve_layer_frees_bytes"+labels] = float64(*l.Frees)
		}
	}
	var got samples
	waitFor(t, "the last requests to be counted", func() bool {
		got = readMetrics(t, dir)
		const written = "varve_request_bytes_total{op=write,file=disk}" // each request is counted after its reply
		return got["varve_request_bytes_total{op=discard,file=disk}"] > 0 && got[written]-before[written] >= want[written]
	})
	for key, n := range want {
		value, ok := got[key]
		if strings.Contains(key, "_total{") || strings.Contains(key, "_stall_") {
			value -= before[key]
		}
		if !ok || value != n {
			t.Errorf("%s is %v, %v; want %v", key, value, ok, n)
		}
	}
	for _, key := range []string{
		"varve_flush_duration_seconds{}", "varve_cache_hits_total{}", "varve_cache_misses_total{}", "varve_cache_bytes{}", "varve_cache_limit_bytes{}",
		"varve_allocated_clusters_total{}", "varve_host_free_bytes{}", "varve_host_size_bytes{}",
	} {
		if got[key] <= 0 {
			t.Errorf("%s is %v", key, got[key])
		}
	}
	if free, size := got["varve_host_free_bytes{}"], got["varve_host_size_bytes{}"]; free >= size {
		t.Errorf("%v bytes of %v are free", free, size)
	}
	for key := range got {
		if strings.HasPrefix(key, "varve_job_done_bytes") || strings.HasPrefix(key, "varve_job_size_bytes") {
			t.Errorf("%s without a job", key)
		}
	}
	// A job is told of while it runs, and counted when it has ended.
	layer.Close()
	if err := write(t, filepath.Join(dir, "control/rate"), "64K"); err != nil {
		t.Fatal(err)
	}
	if err := write(t, filepath.Join(dir, "control/flatten"), "leaf"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the job", func() bool {
		got = readMetrics(t, dir)
		return got["varve_job_running{}"] == 1 && got["varve_job_size_bytes{kind=flatten}"] > 0
	})
	if n := got["varve_job_limit_bytes_per_second{kind=flatten}"]; n != 64<<10 {
		t.Errorf("limit %v", n)
	}
	if err := write(t, filepath.Join(dir, "control/rate"), "max"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "its end", func() bool {
		got = readMetrics(t, dir)
		return got["varve_jobs_total{kind=flatten,state=done}"] == 1 && got["varve_job_running{}"] == 0
	})
	if _, there := got["varve_job_size_bytes{kind=flatten}"]; there {
		t.Error("a job that has ended has a size")
	}
}
