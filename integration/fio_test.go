package integration

import (
	"fmt"
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
		"--verify=crc32c", "--verify_state_save=0", "--minimal",
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
	if r := harness.Try(t, "fio", s.args(file, "--verify_only", "--verify_fatal=1")...); r.Code != 0 {
		t.Errorf("fio --verify_only of %d+%d, pass %d, which it had written and fsynced: exit code %d\n%s", s.off, s.size, s.seed, r.Code, r.Stderr)
	}
}
