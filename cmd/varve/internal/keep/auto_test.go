package keep

import (
	"sync"
	"testing"
	"testing/synctest"

	"varve/chain"
)

// Whoever takes snapshots by time at once with others gets one, each in a second of its own.
func TestManySnapshotsByTimeAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		taken := map[string]bool{}
		var takers sync.WaitGroup
		for range 12 {
			takers.Go(func() {
				_, err := ByTime(func(name string) error {
					mu.Lock()
					defer mu.Unlock()
					if taken[name] {
						return chain.ErrExist
					}
					taken[name] = true
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		takers.Wait()
		if len(taken) != 12 {
			t.Errorf("%d snapshots", len(taken))
		}
	})
}
