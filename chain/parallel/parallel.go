// Package parallel does numbered pieces of work from several goroutines, with one outcome however
// they are scheduled.
package parallel

import "sync"

// Do calls do with 0 to n-1, in this order, from several goroutines. Its
// error is that of the lowest number that fails, however they are scheduled; what
// comes after it may not be done.
func Do(workers, n int, do func(i int) error) error {
	var (
		mu     sync.Mutex
		next   int
		failed = n
		first  error
		all    sync.WaitGroup
	)
	take := func() (int, bool) {
		mu.Lock()
		defer mu.Unlock()
		i := next
		next++
		return i, i < failed
	}
	work := func() {
		for i, ok := take(); ok; i, ok = take() {
			if err := do(i); err != nil {
				mu.Lock()
				if i < failed {
					failed, first = i, err
				}
				mu.Unlock()
			}
		}
	}
	for range min(workers, n) - 1 {
		all.Go(work)
	}
	work()
	all.Wait()
	return first
}
