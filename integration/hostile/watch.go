package hostile

import (
	"runtime/metrics"
	"testing"
	"time"

	"varve/integration/patience"
)

// hangLimit is how long one input may take before it counts as a hang. It is
// far above what any takes, on a busy machine too.
var hangLimit = patience.Hang

// readLimit is how many reads of the file one input may cause.
const readLimit = 1 << 20

// WatchedFile is a BytesFile that looks at what is read of it.
type WatchedFile struct {
	BytesFile
	T     *testing.T
	reads int
}

// ReadAt: what starts in the file's last cluster may be asked for up to that
// cluster's end.
func (f *WatchedFile) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > int64(len(f.Data))+1<<21 {
		f.T.Fatalf("a read of %d bytes at 0x%x of a file of 0x%x", len(p), off, len(f.Data))
	}
	if f.reads++; f.reads > readLimit {
		f.T.Fatalf("more than %d reads", readLimit)
	}
	return f.BytesFile.ReadAt(p, off)
}

// WatchForHang makes a test that does not end in time say where it stands.
func WatchForHang(t *testing.T) {
	timer := time.AfterFunc(hangLimit, func() { panic("hang: this input takes more than " + hangLimit.String()) })
	t.Cleanup(func() { timer.Stop() })
}

// allocated is how many bytes this process has ever allocated on its heap.
func allocated() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// MayAllocate fails the test when f allocates more than limit bytes. What others of the
// process allocate meanwhile, such as the fuzzing engine, counts too: f is called up to
// three times, and its least counts.
func MayAllocate(t *testing.T, what string, limit int, f func()) {
	t.Helper()
	var used uint64
	for range 3 {
		before := allocated()
		f()
		if used = allocated() - before; used <= uint64(limit) {
			return
		}
	}
	t.Fatalf("%s allocates %d bytes, at most %d are allowed", what, used, limit)
}
