package harness

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

// recorder takes the complaints of a judge in a test of the judge.
type recorder struct {
	testing.TB
	said []string
}

func (r *recorder) Errorf(format string, args ...any) {
	r.said = append(r.said, fmt.Sprintf(format, args...))
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

// complaints runs a judge and gives what it said.
func complaints(t *testing.T, judge func(t testing.TB)) string {
	t.Helper()
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		judge(r)
	}()
	<-done
	return strings.Join(r.said, "\n")
}

// TestJudge shows that Judge is content with a good disk and notices what it is
// there to notice.
func TestJudge(t *testing.T) {
	tests := []struct {
		name   string
		damage func(t *testing.T, disk, leaf, view string)
		want   string // part of the complaint; "" for none
	}{
		{"nothing", func(*testing.T, string, string, string) {}, ""},
		{"a file of no layer", func(t *testing.T, disk, _, _ string) {
			writeAt(t, filepath.Join(disk, "layers", "stray"), 0, []byte("x"))
		}, "belongs to no layer"},
		{"a view with one bit changed", func(t *testing.T, _, _, view string) {
			writeAt(t, view, 3<<20, []byte{'v' ^ 1})
		}, "qemu-img compare"},
		{"a view of another size", func(t *testing.T, _, _, view string) {
			if err := os.Truncate(view, 9<<20); err != nil {
				t.Fatal(err)
			}
		}, "guest bytes"},
		{"refcounts of 0", func(t *testing.T, _, leaf, _ string) {
			// qcow2 specification, "Header": the refcount table's offset.
			var table, block [8]byte
			readAt(t, leaf, 48, table[:])
			readAt(t, leaf, int64(binary.BigEndian.Uint64(table[:])), block[:])
			writeAt(t, leaf, int64(binary.BigEndian.Uint64(block[:])), make([]byte, 16))
		}, "qemu-img check"},
		{"another backing file", func(t *testing.T, disk, leaf, _ string) {
			other := filepath.Join(filepath.Dir(disk), "other.raw")
			Run(t, "truncate", "-s", "8M", other)
			Run(t, "qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", other, leaf)
		}, "qemu-img finds"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			base := filepath.Join(t.TempDir(), "base.raw")
			Run(t, "truncate", "-s", "8M", base)
			m := MountDisk(t, base)
			writeAt(t, m.Raw(), 1<<20, []byte(strings.Repeat("u", 64<<10)))
			m.Do("snapshot", "one")
			writeAt(t, m.Raw(), 3<<20, []byte(strings.Repeat("v", 64<<10)))
			views, status := m.SaveViews(), m.Status()
			m.Unmount()
			var leaf string
			for _, layer := range status.Layers {
				if layer.ID == status.Leaf {
					leaf = layer.File
				}
			}
			test.damage(t, m.Disk, leaf, views[status.Leaf])
			said := complaints(t, func(t testing.TB) { Judge(t, m.Disk, views) })
			switch {
			case test.want == "" && said != "":
				t.Errorf("Judge complains of a good disk:\n%s", said)
			case !strings.Contains(said, test.want):
				t.Errorf("Judge says nothing of %q:\n%s", test.want, said)
			}
		})
	}
}

func readAt(t *testing.T, file string, off int64, p []byte) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.ReadAt(p, off); err != nil {
		t.Fatal(err)
	}
}

func writeAt(t *testing.T, file string, off int64, p []byte) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}
