package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// fioJob is one run of fio on one file.
type fioJob struct {
	rw       string
	block    int64
	depth    int
	buffered bool
	fsync    bool   // after each write
	bytes    int64  // to transfer; 0 means for -seconds
	log      string // an I/O log to replay instead of rw, see touches
	latency  string // prefix of a log with each request's latency
	seconds  int    // 0 for -seconds
	rate     int    // requests a second; 0 for as many as go
	offset   int64  // where the range begins in which it works
	span     int64  // its length; 0 for the disk's
}

// fioResult is what one run did.
type fioResult struct {
	iops, bandwidth  float64 // requests and bytes a second
	operations       float64
	p50, p999, worst float64 // completion latency, µs
}

func (b *bench) fio(file string, j fioJob) (fioResult, error) {
	direct := "1"
	if j.buffered {
		direct = "0"
	}
	engine := "libaio"
	if info, err := os.Stat(file); err == nil && j.rw == "randtrim" && info.Mode().IsRegular() {
		engine = "falloc" // the others trim devices only
	}
	args := []string{
		"--name=bench", "--filename=" + file, "--ioengine=" + engine, "--direct=" + direct,
		"--iodepth=" + strconv.Itoa(j.depth), "--output-format=json", "--norandommap", "--randrepeat=0",
		"--fallocate=none", "--allow_file_create=0", "--thread",
		// Otherwise fio empties the page cache of the raw file, and of nobody else's.
		"--invalidate=0",
	}
	if j.log != "" {
		args = append(args, "--read_iolog="+j.log, "--replay_no_stall=1")
	} else {
		args = append(args, "--rw="+j.rw, "--bs="+strconv.FormatInt(j.block, 10), "--offset="+strconv.FormatInt(j.offset, 10),
			"--size="+strconv.FormatInt(cmp.Or(j.span, b.size()), 10))
		if j.bytes > 0 {
			args = append(args, "--io_size="+strconv.FormatInt(j.bytes, 10))
		} else {
			args = append(args, "--time_based", "--runtime="+strconv.Itoa(b.secondsOf(j)))
		}
	}
	if j.fsync {
		args = append(args, "--fsync=1")
	}
	if j.rate > 0 {
		args = append(args, "--rate_iops="+strconv.Itoa(j.rate))
	}
	if j.latency != "" {
		args = append(args, "--write_lat_log="+j.latency, "--log_unix_epoch=1", "--per_job_logs=0")
	}
	out, err := b.command("", "fio", args...)
	if err != nil {
		return fioResult{}, err
	}
	return parseFio(out)
}

func (b *bench) secondsOf(j fioJob) int {
	if j.seconds > 0 {
		return j.seconds
	}
	return b.seconds
}

// parseFio reads fio's JSON, which may follow a line of notes.
func parseFio(out string) (fioResult, error) {
	type side struct {
		IOPS  float64 `json:"iops"`
		Bytes float64 `json:"bw_bytes"`
		Total float64 `json:"total_ios"`
		Clat  struct {
			Max        float64            `json:"max"`
			Percentile map[string]float64 `json:"percentile"`
		} `json:"clat_ns"`
	}
	var parsed struct {
		Jobs []struct {
			Error int  `json:"error"`
			Read  side `json:"read"`
			Write side `json:"write"`
			Trim  side `json:"trim"`
		} `json:"jobs"`
	}
	if start := strings.IndexByte(out, '{'); start >= 0 {
		out = out[start:]
	}
	if err := json.Unmarshal([]byte(out), &parsed); err != nil {
		return fioResult{}, fmt.Errorf("fio's output: %w", err)
	}
	if len(parsed.Jobs) != 1 || parsed.Jobs[0].Error != 0 {
		return fioResult{}, fmt.Errorf("fio: %d jobs, want 1 without an error", len(parsed.Jobs))
	}
	s := parsed.Jobs[0].Read
	for _, other := range []side{parsed.Jobs[0].Write, parsed.Jobs[0].Trim} {
		if s.Total == 0 {
			s = other
		}
	}
	if s.Total == 0 {
		return fioResult{}, fmt.Errorf("fio did nothing")
	}
	return fioResult{
		iops: s.IOPS, bandwidth: s.Bytes, operations: s.Total, worst: s.Clat.Max / 1000,
		p50: s.Clat.Percentile["50.000000"] / 1000, p999: s.Clat.Percentile["99.900000"] / 1000,
	}, nil
}

// touches is an I/O log of fio's that writes 4 KiB to every 64 KiB of the disk
// in random order: each write is the first to its cluster of QEMU's.
func (b *bench) touches(file string, limit int64, order []int) (string, error) {
	path := filepath.Join(b.dir, "touches.log")
	var log strings.Builder
	fmt.Fprintf(&log, "fio version 2 iolog\n%s add\n%s open\n", file, file)
	for _, cluster := range order[:min(limit, int64(len(order)))] {
		fmt.Fprintf(&log, "%s write %d 4096\n", file, int64(cluster)*qemuCluster)
	}
	fmt.Fprintf(&log, "%s close\n", file)
	return path, os.WriteFile(path, []byte(log.String()), 0o600)
}
