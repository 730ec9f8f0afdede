package fs

import (
	"bytes"
	"context"
	"io"
	"time"

	"varve/fs/show"
)

// textFile is an open of status, status.json, map.svg or metrics: its content is what
// it was when it was opened.
type textFile struct{ content []byte }

func (o *textFile) close() {}

// mapPatience is how long an open of map.svg looks at tables. What it does not come to
// is said in the picture, and the next open goes on there.
const mapPatience = 3 * time.Second

// isText says whether a node id is that of a file which is made when it is opened.
func isText(node uint64) bool { return node >= nodeStatus && node <= nodeMetrics }

func (f *fileSystem) openText(ctx context.Context, node uint64) (openFile, error) {
	var text bytes.Buffer
	if err := f.writeText(ctx, &text, node); err != nil {
		return nil, err
	}
	// Reads are not cut at st_size, but sendfile(2) is, which goes by the
	// size that a stat after the open gave.
	f.textSize[node-nodeStatus].Store(int64(text.Len()))
	return &textFile{text.Bytes()}, nil
}

func (f *fileSystem) writeText(ctx context.Context, w io.Writer, node uint64) error {
	switch node {
	case nodeMapSVG:
		m, err := f.disk.ExtentMap(ctx, mapPatience)
		if err != nil {
			return err
		}
		return show.MapSVG(w, m)
	case nodeMetrics:
		return f.writeMetrics(w)
	}
	st, err := f.disk.Status()
	if err != nil {
		return err
	}
	NameDamage(&st, f.peekView)
	if node == nodeStatusJSON {
		return show.JSON(w, st)
	}
	return show.Table(w, st, show.TreeOptions{})
}

func readText(content, buf []byte, off int64) []byte {
	return buf[:copy(buf, content[min(off, int64(len(content))):])]
}
