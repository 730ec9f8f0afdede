package patience

import (
	"testing"
	"time"
)

func TestHang(t *testing.T) {
	for value, want := range map[string]time.Duration{"": usual, "1m30s": 90 * time.Second, "soon": usual, "-1s": usual, "0s": usual} {
		if got := hang(value); got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	}
}
