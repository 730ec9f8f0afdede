package integration

import (
	"fmt"
	"path/filepath"
	"testing"

	"varve/integration/harness"
)

// fioSlot is a piece of a disk that fio writes as a whole, with fsyncs on the
// way and one at the end. When it has ended well every block of it was
// acknowledged, and fio can judge it at any later time: each block has a
// checksum, its place, and the number of the pass that wrote it.
type fioSlot struct {
	off, size int64
	seed      uint64 // of the pass
	block     string
}

func (s fioSlot) args(file string, more ...string) []string {
	return append([]string{
		"--name=slot", "--filename=" + file, "--allow_file_create=0", "--thread",
		fmt.Sprintf("--offset=%d", s.off), fmt.Sprintf("--size=%d", s.size),
		"--rw=randwrite", "--bs=" + s.block, "--ioengine=libaio", "--iodepth=8", "--direct=1",
		"--fsync=16", "--end_fsync=1", fmt.Sprintf("--randseed=%d", s.seed),
		"--verify=pattern", fmt.Sprintf("--verify_pattern=0x%08x%%o", s.seed), "--verify_state_save=0", "--minimal",
	}, more...)
}

// write does a pass over the slot; an exit code other than 0 means that the disk
// refused.
func (s fioSlot) write(t testing.TB, file string) harness.Result {
	t.Helper()
	return harness.Try(t, "fio", s.args(file, "--do_verify=0")...)
}

// verify reads the slot and fails the test when it has anything else than what
// the pass wrote.
func (s fioSlot) verify(t testing.TB, file string) {
	t.Helper()
	if r := s.read(t, file); r.Code != 0 {
		t.Errorf("fio --verify_only of %d+%d, pass %d, which it had written and fsynced: exit code %d\n%s", s.off, s.size, s.seed, r.Code, r.Stderr)
	}
}

func (s fioSlot) read(t testing.TB, file string) harness.Result {
	t.Helper()
	return harness.Try(t, "fio", s.args(file, "--verify_only", "--verify_fatal=1")...)
}

// TestFioJudges shows that fio notices a lost write, an older pass, and a block in
// another's place, with the options that it is given here.
func TestFioJudges(t *testing.T) {
	for _, block := range []string{"512", "16k"} {
		t.Run(block, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "file")
			harness.Run(t, "truncate", "-s", "2M", file)
			s := fioSlot{off: 1 << 20, size: 512 << 10, seed: 5, block: block}
			written := func() {
				t.Helper()
				if r := s.write(t, file); r.Code != 0 {
					t.Fatalf("fio: exit code %d\n%s", r.Code, r.Stderr)
				}
				s.verify(t, file)
			}
			notices := func(what string, judge fioSlot) {
				t.Helper()
				if r := judge.read(t, file); r.Code == 0 {
					t.Errorf("fio does not notice %s", what)
				}
			}
			written()
			later := s
			later.seed++
			notices("an older pass", later)
			harness.Shell(t, "dd if=/dev/zero of='"+file+"' bs=512 seek=2500 count=1 conv=notrunc status=none")
			notices("a lost sector", s)
			written()
			harness.Shell(t, "dd if='"+file+"' of='"+file+"' bs=16k skip=70 seek=71 count=1 conv=notrunc status=none")
			notices("blocks in another's place", s)
		})
	}
}
