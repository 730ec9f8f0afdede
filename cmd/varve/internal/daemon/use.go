package daemon

import (
	"os"
	"runtime/metrics"
)

// tellUse logs what this process uses of memory each time that it is asked, by SIGUSR1,
// until stop is called: whether a daemon that has run for weeks has grown, and by what, its
// log then says.
func (m *server) tellUse(asked <-chan os.Signal) (stop func()) {
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-asked:
				m.log.Info("in use", use()...)
			case <-done:
				return
			}
		}
	}()
	return func() { close(done) }
}

// use is what the Go runtime knows of this process, as attributes for the log:
// goroutines, bytes that were live at the last collection, bytes of the heap with
// what waits for the next one, bytes had from the kernel and not given back.
func use() []any {
	samples := []metrics.Sample{
		{Name: "/sched/goroutines:goroutines"},
		{Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/released:bytes"},
	}
	metrics.Read(samples)
	value := func(i int) uint64 { return samples[i].Value.Uint64() }
	return []any{"goroutines", value(0), "live_bytes", value(1), "heap_bytes", value(2), "memory_bytes", value(3) - value(4)}
}
