package qcow2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"

	"varve/overlay/hostfs"
)

// compressedReader reads the compressed clusters of one image. It remembers
// the last few, since readers come in pieces smaller than a cluster. Safe for
// concurrent use; two that miss the same cluster both decompress it, so that
// nobody waits for another.
type compressedReader struct {
	file        hostfs.File
	format      *EntryFormat
	compression uint8

	mu    sync.Mutex         // guards cache; never held while decompressing
	cache []decompressedData // most recently used first

	input    sync.Pool // *[]byte: compressed data
	inflater sync.Pool // io.ReadCloser of flate

	zstdOnce sync.Once // the decoder costs memory: only made when needed
	zstd     *zstd.Decoder
	zstdErr  error
}

// decompressedData is a cluster's content, which nobody changes any more.
type decompressedData struct {
	descriptor uint64
	data       []byte
}

const (
	maxCachedClusters = 4
	maxCachedBytes    = 1 << 20 // more only for a single cluster of 2 MiB
)

// read fills p from offset within of the cluster that the descriptor names.
func (c *compressedReader) read(p []byte, descriptor uint64, within int64) error {
	if data := c.lookup(descriptor); data != nil {
		copy(p, data[within:])
		return nil
	}
	size := 1 << c.format.ClusterBits
	if len(p) == size {
		// Nothing of it is left for a later reader: no need to remember it.
		return c.decompress(p[:size:size], descriptor)
	}
	data := make([]byte, size)
	if err := c.decompress(data, descriptor); err != nil {
		return err
	}
	copy(p, data[within:])
	c.remember(descriptor, data)
	return nil
}

func (c *compressedReader) lookup(descriptor uint64) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, e := range c.cache {
		if e.descriptor == descriptor {
			copy(c.cache[1:i+1], c.cache[:i])
			c.cache[0] = e
			return e.data
		}
	}
	return nil
}

func (c *compressedReader) remember(descriptor uint64, data []byte) {
	limit := max(1, min(maxCachedClusters, maxCachedBytes/len(data)))
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.cache {
		if e.descriptor == descriptor {
			return // another reader came first
		}
	}
	if len(c.cache) < limit {
		c.cache = append(c.cache, decompressedData{})
	}
	copy(c.cache[1:], c.cache)
	c.cache[0] = decompressedData{descriptor: descriptor, data: data}
}

// decompress fills out, the size of a cluster, with exactly one cluster.
func (c *compressedReader) decompress(out []byte, descriptor uint64) error {
	offset, length := c.format.CompressedRange(descriptor)
	// The last sector may be cut by the end of the file: the data ends before.
	length = min(length, c.format.FileSize-offset)
	if length <= 0 {
		return fmt.Errorf("compressed data at 0x%x of %s is behind its end: %w", offset, c.file.Name(), ErrCorrupt)
	}
	input, ok := c.input.Get().(*[]byte)
	if !ok {
		input = new([]byte)
	}
	defer c.input.Put(input)
	if int64(cap(*input)) < length {
		*input = make([]byte, length)
	}
	data := (*input)[:length]
	if err := hostfs.ReadWhole(c.file, data, offset); err != nil {
		return fmt.Errorf("read %d bytes of compressed data at 0x%x of %s: %w", length, offset, c.file.Name(), err)
	}
	inflate := c.inflate
	if c.compression == CompressionZstd {
		inflate = c.unzstd
	}
	if err := inflate(out, data); err != nil {
		return fmt.Errorf("decompress the cluster at 0x%x of %s: %w: %w", offset, c.file.Name(), err, ErrCorrupt)
	}
	return nil
}

var errTooLong = errors.New("it is longer than a cluster")

// inflate decompresses a raw deflate stream; what follows it in its last
// sector belongs to other clusters.
func (c *compressedReader) inflate(out, data []byte) error {
	source := bytes.NewReader(data)
	stream, ok := c.inflater.Get().(io.ReadCloser)
	if !ok {
		stream = flate.NewReader(source)
	} else if err := stream.(flate.Resetter).Reset(source, nil); err != nil {
		return err
	}
	defer c.inflater.Put(stream)
	if _, err := io.ReadFull(stream, out); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	if n, _ := stream.Read(make([]byte, 1)); n != 0 {
		return errTooLong
	}
	return nil
}

// unzstd decompresses zstd frames until out is full. A frame is cut out first:
// what follows it in its last sector may be the next cluster's, which begins
// with a valid frame of its own.
func (c *compressedReader) unzstd(out, data []byte) error {
	c.zstdOnce.Do(func() {
		c.zstd, c.zstdErr = zstd.NewReader(nil,
			zstd.WithDecoderConcurrency(min(4, runtime.GOMAXPROCS(0))),
			zstd.WithDecoderLowmem(true),
			zstd.WithDecodeAllCapLimit(true)) // writes into out, and never past it
	})
	if c.zstdErr != nil {
		return c.zstdErr
	}
	for len(out) > 0 {
		frame, err := zstdFrame(data)
		if err != nil {
			return err
		}
		part, err := c.zstd.DecodeAll(frame, out[:0:len(out)])
		if errors.Is(err, zstd.ErrDecoderSizeExceeded) || err == nil && len(part) > len(out) {
			return errTooLong
		}
		if err != nil {
			return err
		}
		// The decoder fills the space it is given, but does not promise it.
		if len(part) > 0 && &part[0] != &out[0] {
			copy(out, part)
		}
		out, data = out[len(part):], data[len(frame):]
	}
	return nil
}

// zstdFrame gives the first frame of data (RFC 8878, section 3.1.1): its
// header, blocks with a header of three bytes each, and a checksum.
func zstdFrame(data []byte) ([]byte, error) {
	var h zstd.Header
	if err := h.Decode(data); err != nil {
		return nil, err
	}
	if h.Skippable {
		return nil, errors.New("it is a skippable zstd frame")
	}
	at := h.HeaderSize
	for last := false; !last; {
		if len(data)-at < 3 {
			return nil, io.ErrUnexpectedEOF
		}
		block := int(data[at]) | int(data[at+1])<<8 | int(data[at+2])<<16
		last = block&1 != 0
		size := block >> 3
		if block>>1&3 == 1 { // one byte, repeated size times
			size = 1
		}
		at += 3 + size
	}
	if h.HasCheckSum {
		at += 4
	}
	if at > len(data) {
		return nil, io.ErrUnexpectedEOF
	}
	return data[:at], nil
}
