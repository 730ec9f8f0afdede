package figures

import "testing"

func TestMapBins(t *testing.T) {
	for _, c := range []struct {
		size   int64
		layers int
		bin    int64
	}{
		{4096, 1, 4 << 10}, {1 << 20, 3, 4 << 10}, {20 << 30, 12, 32 << 20}, {20 << 30, 1, 32 << 20},
		{1 << 40, 128, 1 << 30}, {1<<40 + 1, 128, 2 << 30}, {1 << 40, 1000, 4 << 30}, {1 << 60, 5000, 1 << 55},
	} {
		if bin := int64(1) << mapBinBits(c.size, c.layers); bin != c.bin {
			t.Errorf("%d bytes, %d layers: bins of %d, want %d", c.size, c.layers, bin, c.bin)
		}
	}
}
