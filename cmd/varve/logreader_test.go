package main

import (
	"bufio"
	"os"
	"strings"
	"testing"
)

// TestDaemonOutlivesTheReaderOfItsLog: "varve mount -f … 2>&1 | head -1", a tee that is
// killed, a journal that is restarted. Go ends a program that writes to a broken pipe on
// stderr, and a VM would lose its disk.
func TestDaemonOutlivesTheReaderOfItsLog(t *testing.T) {
	for _, how := range []string{"foreground", "background"} {
		t.Run(how, func(t *testing.T) {
			dir := hostDir(t)
			image(t, dir+"/vm.raw", 8<<20, 1<<20)
			if err := os.Mkdir(dir+"/mnt", 0o700); err != nil {
				t.Fatal(err)
			}
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			args := []string{"mount", "vm.raw", "mnt"}
			if how == "foreground" {
				args = append(args, "--foreground")
			} else {
				r.Close() // nobody reads even the first word
			}
			cmd := command(dir, args...)
			cmd.Stderr = w
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			w.Close()
			if how == "foreground" {
				lines := bufio.NewReader(r)
				for line := ""; !strings.Contains(line, "msg=mounted"); {
					if line, err = lines.ReadString('\n'); err != nil {
						t.Fatalf("the log ends: %v", err)
					}
				}
				r.Close()
			} else if err := cmd.Wait(); err != nil {
				t.Fatalf("mount: %v", err)
			}
			put(t, dir+"/mnt", "hello", 0)
			must(t, dir, "snapshot", "mnt", "one") // the daemon logs that
			must(t, dir, "snapshot", "mnt", "two")
			if got := get(t, dir+"/mnt/disk.raw", 0, 5); got != "hello" {
				t.Errorf("read %q", got)
			}
			must(t, dir, "umount", "mnt")
			if how == "foreground" {
				if err := cmd.Wait(); err != nil {
					t.Errorf("the daemon ended with %v", err)
				}
			}
		})
	}
}
