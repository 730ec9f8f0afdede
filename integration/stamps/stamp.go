// Package stamps writes sectors that say what they are, keeps a record of which
// of them were acknowledged, and judges a disk by that record.
//
// It knows nothing of varve: it writes to a file and reads from a file. The
// record is kept by the process that writes, outside of the disk and durable, so
// that whatever happens to the disk, its daemon or the writer, it says what must
// be there:
//
//	issued, nothing more     the sector may have it, or what it had before
//	done (write returned)    as issued after a crash; a snapshot taken later has it
//	acked (fsync returned,   the sector has it, or a later one that was issued
//	  or written with DSYNC)
package stamps

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
)

// Sector is the unit of the record, in bytes.
const Sector = 512

// header is how many bytes of a stamp come before its noise: magic, sector
// number, sequence number, checksum of these and the noise.
const header = 4 + 8 + 8 + 4

var magic = [4]byte{'v', 'r', 'v', '1'}

// stamp fills one sector with what the write with that sequence number puts there.
func stamp(p []byte, sector int64, seq uint64) {
	copy(p, magic[:])
	binary.LittleEndian.PutUint64(p[4:], uint64(sector))
	binary.LittleEndian.PutUint64(p[12:], seq)
	noise := rand.NewPCG(uint64(sector), seq)
	for at := header; at < Sector; at += 8 {
		binary.LittleEndian.PutUint64(p[at:], noise.Uint64())
	}
	binary.LittleEndian.PutUint32(p[20:], checksum(p))
}

func checksum(p []byte) uint32 {
	return crc32.Update(crc32.ChecksumIEEE(p[:20]), crc32.IEEETable, p[header:Sector])
}

// read gives the sequence number in a sector's stamp; false when the sector has
// no whole stamp of its own.
func read(p []byte, sector int64) (seq uint64, ok bool) {
	if !bytes.Equal(p[:4], magic[:]) ||
		binary.LittleEndian.Uint64(p[4:]) != uint64(sector) ||
		binary.LittleEndian.Uint32(p[20:]) != checksum(p) {
		return 0, false
	}
	return binary.LittleEndian.Uint64(p[12:]), true
}

var zeros [Sector]byte

func isZero(p []byte) bool { return bytes.Equal(p, zeros[:]) }
