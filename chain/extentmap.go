package chain

import (
	"context"
	"slices"
	"time"
)

// ExtentMap is a picture's worth of where the layers of the leaf's chain hold what:
// the disk cut into bins of equal size, from the tables alone. It is a value of the
// moment, which nobody changes.
type ExtentMap struct {
	Disk     string // the disk directory's path
	Size     int64  // guest bytes
	BinBytes int64  // guest bytes of a bin, a power of two
	Layers   []MapLayer
	Beside   int    // how many layers do not belong to the leaf's chain
	Known    []bool // of each bin: its figures are there
}

// MapLayer is a layer of an ExtentMap, the leaf being the first one. The slices have
// one figure for each bin, in guest bytes.
type MapLayer struct {
	LayerStatus           // as Layers gives it
	Data        []float32 // data that the layer itself maps
	Zero        []float32 // zeros that it maps: discarded or written
	Seen        []float32 // of the leaf's view: data that comes from this layer
	Lost        []float32 // what cannot be read since an entry of its tables is damaged; nil for nothing
}

// Complete says whether the figures of all bins are there.
func (m *ExtentMap) Complete() bool { return !slices.Contains(m.Known, false) }

// ExtentMap makes a map, in about that time at most; 0 is as long as it takes. What it
// did not come to is not Known; the next call goes on there. Errors: those of reading
// the tables, and ctx's cause. It opens no file and reads no data.
func (d *Disk) ExtentMap(ctx context.Context, most time.Duration) (*ExtentMap, error) {
	drawn, err := d.figures.DrawMap(ctx, most)
	if err != nil {
		return nil, err
	}
	m := &ExtentMap{Disk: d.dir, Size: drawn.Size, BinBytes: drawn.BinBytes, Known: drawn.Known}
	listed := d.Layers()
	byID := make(map[string]LayerStatus, len(listed))
	for _, l := range listed {
		byID[l.ID] = l
		if l.File != "" { // what is not there is no layer
			m.Beside++
		}
	}
	for _, row := range drawn.Layers {
		m.Layers = append(m.Layers, MapLayer{LayerStatus: byID[row.ID], Data: row.Data, Zero: row.Zero, Seen: row.Seen, Lost: row.Lost})
	}
	m.Beside -= len(m.Layers)
	return m, nil
}
