package show

import (
	"fmt"

	"varve/chain"
)

// titleOf is what people call the layer with an id.
func titleOf(st chain.Status, id string) string {
	for i := range st.Layers {
		if st.Layers[i].ID == id {
			return st.Layers[i].Title()
		}
	}
	return chain.Title("", "", id)
}

// ownSize is what a layer holds itself, marked where it is not counted to the end. Of a
// damaged one nobody knows whether it is more.
func ownSize(l chain.LayerStatus) string {
	if len(l.Damage) > 0 {
		return "at least " + Size(l.OwnBytes)
	}
	if !l.Counted {
		return "~" + Size(l.OwnBytes)
	}
	return Size(l.OwnBytes)
}

// frees is what deleting a layer would give back on the host, in words.
func frees(l *chain.LayerStatus) string {
	switch {
	case l.State == chain.StateLeaf || l.Foreign:
		return "-"
	case l.Frees == nil:
		return "?"
	}
	return Size(*l.Frees)
}

// mostDamagesShown is how many damaged places a table names of a layer.
const mostDamagesShown = 3

// damageNotes say of a layer that its file was removed, and what of it cannot be read.
func damageNotes(l *chain.LayerStatus) (notes []string) {
	if l.Lost {
		notes = append(notes, "its file was removed: do not unmount, see \"varve doctor\"")
	}
	for i, d := range l.Damage {
		if i == mostDamagesShown {
			return append(notes, fmt.Sprintf("damaged: %d more places, see status.json", len(l.Damage)-i))
		}
		where := ""
		if d.Partition != "" {
			where = " (" + d.Partition + ")"
		}
		notes = append(notes, fmt.Sprintf("damaged: %s at %d%s cannot be read", Size(d.Length), d.Start, where))
	}
	return notes
}
