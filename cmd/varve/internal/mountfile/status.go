package mountfile

import (
	"fmt"

	"varve/chain"
	"varve/chain/bounded"
)

// mostLayers is more than chain.json has room for.
const mostLayers = 40_000

// Status decodes a status.json. In what it gives no two layers have the same id: who goes
// from layer to layer comes to an end.
func Status(text []byte) (chain.Status, error) {
	var st chain.Status
	if err := bounded.JSON(text, &st); err != nil {
		return chain.Status{}, err
	}
	if n := len(st.Layers); n > mostLayers {
		return chain.Status{}, fmt.Errorf("it has %d layers, at most %d are read", n, mostLayers)
	}
	seen := make(map[string]bool, len(st.Layers))
	for _, l := range st.Layers {
		if seen[l.ID] {
			return chain.Status{}, fmt.Errorf("it has two layers %.100q", l.ID)
		}
		seen[l.ID] = true
	}
	return st, nil
}
