package overlay

import (
	"math/bits"

	"varve/overlay/measure"
)

// Activity counts what layers do. The layers of a disk
// share one, so that it goes on over their lives. Safe for concurrent use.
type Activity struct {
	Clusters  measure.Counter // host clusters given to guest clusters
	Allocated measure.Counter // bytes of subclusters that became data of their layer
	Discarded measure.Counter // bytes of subclusters that were data and became zeros
	Punched   measure.Counter // bytes given back to the host

	Flushes     measure.Histogram // those that had something to make durable
	FlushErrors measure.Counter   // how many of them failed
}

// changed counts the change of an entry.
func (a *Activity) changed(oldHost, oldBitmap, host, bitmap uint64, subSize int64) {
	if oldHost == 0 && host != 0 {
		a.Clusters.Inc()
	}
	was, is, zero := uint32(oldBitmap), uint32(bitmap), uint32(bitmap>>32)
	if more := is &^ was; more != 0 {
		a.Allocated.Add(int64(bits.OnesCount32(more)) * subSize)
	}
	if less := was & zero; less != 0 {
		a.Discarded.Add(int64(bits.OnesCount32(less)) * subSize)
	}
}
