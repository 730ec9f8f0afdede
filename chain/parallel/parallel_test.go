package parallel

import (
	"fmt"
	"sync/atomic"
	"testing"
)

func TestDo(t *testing.T) {
	for _, workers := range []int{1, 2, 9} {
		var done [50]atomic.Int32
		err := Do(workers, len(done), func(i int) error {
			done[i].Add(1)
			if i == 20 || i == 33 || i == 21 {
				return fmt.Errorf("number %d", i)
			}
			return nil
		})
		if err == nil || err.Error() != "number 20" {
			t.Errorf("%d workers: %v, not the lowest number's error", workers, err)
		}
		for i := range done {
			if n := done[i].Load(); n > 1 || i <= 20 && n != 1 {
				t.Errorf("%d workers: number %d was done %d times", workers, i, n)
			}
		}
		if err := Do(workers, 0, nil); err != nil {
			t.Error(err)
		}
	}
}
