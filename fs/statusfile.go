package fs

import (
	"bytes"
)

// textFile is an open of status or status.json: its content is what it was
// when it was opened.
type textFile struct{ content []byte }

func (o *textFile) close() {}

func (f *fileSystem) openStatus(node uint64) (openFile, error) {
	st, err := f.disk.Status()
	if err != nil {
		return nil, err
	}
	write := Table
	if node == nodeStatusJSON {
		write = JSON
	}
	var text bytes.Buffer
	if err := write(&text, st); err != nil {
		return nil, err
	}
	// Reads are not cut at st_size, but sendfile(2) is, which goes by the
	// size that a stat after the open gave.
	f.textSize[node-nodeStatus].Store(int64(text.Len()))
	return &textFile{text.Bytes()}, nil
}

func readText(content, buf []byte, off int64) []byte {
	return buf[:copy(buf, content[min(off, int64(len(content))):])]
}
