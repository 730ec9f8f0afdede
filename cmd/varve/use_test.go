package main

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"varve/cmd/varve/internal/logfile"
)

// SIGUSR1 gives a line in the log and does no harm.
func TestUse(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	pid := daemonOf(t, dir+"/vm.raw.varve")
	for n := 1; n <= 2; n++ {
		if err := syscall.Kill(pid, syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the log says what is in use", func() bool {
			log, err := os.ReadFile(dir + "/vm.raw.varve/" + logfile.Name)
			if err != nil {
				t.Fatal(err)
			}
			return strings.Count(string(log), `msg="in use" goroutines=`) == n
		})
	}
	log, _ := os.ReadFile(dir + "/vm.raw.varve/" + logfile.Name)
	for _, word := range []string{" goroutines=0", " heap_bytes=0", " memory_bytes=0"} {
		if strings.Contains(string(log), word) {
			t.Errorf("the log says%s:\n%s", word, log)
		}
	}
	put(t, mnt, "serves", 0)
}
