// Package bounded decodes what a stranger may have written, in bounded memory.
package bounded

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// What a document of varve's own may have at most. 30,000 layers, which is what chain.json
// has room for, take a quarter of it.
const (
	mostContainers = 1 << 19 // objects and lists
	mostValues     = 1 << 21
)

// JSON is json.Unmarshal of a document whose length the caller has bounded. Its length
// alone is no bound: "{}," in a list of 16 MiB becomes some millions of structs.
func JSON(text []byte, v any) error {
	if err := Check(text); err != nil {
		return err
	}
	return json.Unmarshal(text, v)
}

// Check fails for a document that JSON would refuse by its bounds.
func Check(text []byte) error {
	// In strings they are counted too, which the bounds have room for.
	if n := bytes.Count(text, []byte("{")) + bytes.Count(text, []byte("[")); n > mostContainers {
		return fmt.Errorf("it has %d objects and lists, at most %d are read", n, mostContainers)
	}
	if n := bytes.Count(text, []byte(",")); n > mostValues {
		return fmt.Errorf("it has %d values, at most %d are read", n, mostValues)
	}
	return nil
}
