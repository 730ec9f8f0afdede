package turn

import "testing"

func TestTurns(t *testing.T) {
	for _, c := range []struct {
		value             string
		number            uint64
		of, window, whole int
	}{{"", 0, 3, 0, 0}, {"x", 0, 3, 0, 0}, {"4", 4, 2, 40, 0}, {"13", 13, 1, 30, 0}} {
		t.Setenv(Variable, c.value)
		if Number() != c.number || Of(3, 5) != c.of || Window(10, 100) != c.window || Window(10, 10) != c.whole {
			t.Errorf("%q: %d, %d, %d, %d", c.value, Number(), Of(3, 5), Window(10, 100), Window(10, 10))
		}
	}
}
