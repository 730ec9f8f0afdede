package show

import (
	"encoding/json"
	"io"
	"slices"

	"varve/chain"
)

// JSON writes the document of status.json.
func JSON(w io.Writer, st chain.Status) error {
	// Readers expect lists, never null.
	if st.Layers == nil {
		st.Layers = []chain.LayerStatus{}
	}
	if st.Open == nil {
		st.Open = []chain.OpenStatus{}
	}
	st.Layers = slices.Clone(st.Layers)
	for i := range st.Layers {
		if st.Layers[i].Children == nil {
			st.Layers[i].Children = []string{}
		}
		if st.Layers[i].Clones == nil {
			st.Layers[i].Clones = []string{}
		}
		if st.Layers[i].Damage == nil {
			st.Layers[i].Damage = []chain.Damage{}
		}
	}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(st)
}
