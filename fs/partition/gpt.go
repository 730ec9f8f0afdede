package partition

import (
	"encoding/binary"
	"fmt"

	"github.com/diskfs/go-diskfs/partition/gpt"
)

// Of a GPT header (UEFI specification, 5.3.2).
const (
	gptSignature  = "EFI PART"
	gptCountAt    = 80
	gptSizeAt     = 84
	gptHeaderSize = 92
	gptEntrySize  = 128
	// gptMostEntries bounds what is read of entries to 1 MiB. The usual table has
	// 128 of them.
	gptMostEntries = 8192
)

// readGPT reads a GPT for sectors of 512 bytes, or else one for 4,096. Where the
// header at the front is broken the one at the disk's end counts; it is not looked
// at otherwise, and so may lie where the end was before the disk grew.
func (r *reader) readGPT() ([]Partition, error) {
	for _, size := range []int64{sector, 4096} {
		if r.size < 2*size {
			continue
		}
		table, err := gpt.Read(&gptFile{reader: r, sector: size}, int(size), int(size))
		if err == nil {
			return r.fromGPT(table, size), nil
		}
		if r.failed != nil {
			return nil, r.failed
		}
	}
	return nil, fmt.Errorf("%w: no valid GPT at the beginning or the end of the disk", ErrBroken)
}

// fromGPT takes the entries that lie within the disk, as Linux does.
func (r *reader) fromGPT(table *gpt.Table, size int64) []Partition {
	var list []Partition
	for _, p := range table.Partitions {
		if p.End < p.Start || p.End >= uint64(r.size/size) {
			continue
		}
		if q, ok := r.within(p.Index, bytesOf(p.Start, size), bytesOf(p.End-p.Start+1, size)); ok {
			list = append(list, q)
		}
	}
	return list
}

// gptFile is the disk as the library reads it. It makes room for as many entries as
// a header says before it reads the first: a header that says too many is shown as
// none.
type gptFile struct {
	*reader
	sector int64
}

func (f *gptFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.reader.ReadAt(p, off)
	last := (f.size/f.sector - 1) * f.sector
	for _, at := range []int64{f.sector, last} {
		if at >= off && at+gptHeaderSize <= off+int64(n) {
			if h := p[at-off:]; string(h[:len(gptSignature)]) == gptSignature && !bounded(h) {
				clear(h[:len(gptSignature)])
			}
		}
	}
	return n, err
}

func bounded(header []byte) bool {
	count, size := binary.LittleEndian.Uint32(header[gptCountAt:]), binary.LittleEndian.Uint32(header[gptSizeAt:])
	return size == gptEntrySize && count <= gptMostEntries
}
