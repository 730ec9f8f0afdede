package bounded

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestJSON(t *testing.T) {
	type wide struct{ A, B, C [16]int64 }
	var list []wide
	if err := JSON([]byte("[{},{}]"), &list); err != nil || len(list) != 2 {
		t.Errorf("%d, %v", len(list), err)
	}
	for _, many := range []string{"{},", "[],", "1,"} {
		var list []json.RawMessage
		text := "[" + strings.Repeat(many, mostValues+1) + "1]"
		if err := JSON([]byte(text), &list); err == nil || !strings.Contains(err.Error(), "are read") {
			t.Errorf("a list of %q gives %d values and %v", many, len(list), err)
		}
	}
}
