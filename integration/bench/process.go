package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// clockTick is USER_HZ, which Linux gives user space as 100 a second everywhere
// that Go runs.
const clockTick = 10 * time.Millisecond

// cpu is the processor time of the serving processes so far.
func (s *server) cpu() (time.Duration, error) {
	var sum time.Duration
	for _, pid := range s.pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, err
		}
		// After the name in parentheses: utime and stime are fields 14 and 15.
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(fields) < 13 {
			return 0, fmt.Errorf("/proc/%d/stat is short", pid)
		}
		for _, field := range fields[11:13] {
			ticks, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				return 0, err
			}
			sum += time.Duration(ticks) * clockTick
		}
	}
	return sum, nil
}

// memory is a field of /proc/PID/status such as VmHWM or VmRSS in MiB, over all
// serving processes.
func (s *server) memory(field string) (float64, error) {
	var sum float64
	for _, pid := range s.pids {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return 0, err
		}
		_, rest, ok := strings.Cut(string(status), field+":")
		var kib float64
		if _, err := fmt.Sscan(rest, &kib); !ok || err != nil {
			return 0, fmt.Errorf("no %s in /proc/%d/status", field, pid)
		}
		sum += kib / 1024
	}
	return sum, nil
}
