package show

import (
	"slices"

	"varve/chain"
)

// joinLayers makes rows of several layers that follow each other where there are more
// than most of them. The leaf and the lowest layer keep their own.
func joinLayers(m *chain.ExtentMap, most int) *chain.ExtentMap {
	if len(m.Layers) <= most {
		return m
	}
	joined := *m
	between := m.Layers[1 : len(m.Layers)-1]
	size := (len(between) + most - 3) / (most - 2)
	joined.Layers = []chain.MapLayer{m.Layers[0]}
	for group := range slices.Chunk(between, size) {
		joined.Layers = append(joined.Layers, joinGroup(group))
	}
	joined.Layers = append(joined.Layers, m.Layers[len(m.Layers)-1])
	return &joined
}

// joinGroup is one row for layers, the newest first. What several of them hold at one
// place counts several times.
func joinGroup(group []chain.MapLayer) chain.MapLayer {
	row := group[0]
	if len(group) == 1 {
		return row
	}
	last := group[len(group)-1]
	row.Name = row.Title() + " … " + last.Title()
	row.ID += " … " + last.ID
	row.Data, row.Zero, row.Seen = slices.Clone(row.Data), slices.Clone(row.Zero), slices.Clone(row.Seen)
	row.Lost = nil
	for _, l := range group {
		if len(l.Lost) == 0 {
			continue
		}
		if row.Lost == nil {
			row.Lost = make([]float32, len(row.Data))
		}
		for i := range l.Lost {
			row.Lost[i] += l.Lost[i]
		}
	}
	for _, l := range group[1:] {
		for i := range row.Data {
			row.Data[i] += l.Data[i]
			row.Zero[i] += l.Zero[i]
			row.Seen[i] += l.Seen[i]
		}
	}
	return row
}
