// Package diff writes where two views of a disk differ, for people or as JSON, as it is found.
//
// It goes by what a client.Differences gives, which compares tables, and with Options.Exact
// compares the data there too. It knows neither how a disk is opened nor the command line.
package diff

import (
	"bufio"
	"context"
	"errors"
	"io"

	"varve/chain"
	"varve/cmd/varve/internal/client"
)

// Options are how differences are written.
type Options struct {
	Exact  bool // compare the data too
	JSON   bool // a document, and not a table
	All    bool // the whole table, on a screen too
	Screen bool // the table is for a terminal

	// Progress is told how far it is, in bytes, and Clear takes away what Progress shows
	// where the table comes.
	Progress func(done, total int64)
	Clear    func()
}

// Write goes through all differences and writes them to out.
func Write(ctx context.Context, out io.Writer, source client.Differences, o Options) error {
	if o.Exact {
		source = &exact{Differences: source}
	}
	var w writer
	switch buffer := bufio.NewWriter(out); {
	case o.JSON:
		w = &document{out: buffer}
	case o.Screen && o.All:
		w = &table{out: buffer, titles: source.Titles(), width: screenWidth}
		o.Progress = func(_, _ int64) {} // the list shows it
	case o.Screen:
		w = &table{out: buffer, titles: source.Titles(), width: screenWidth, most: shortList, clear: o.Clear}
	default:
		w = &table{out: buffer, titles: source.Titles()}
	}
	err := write(ctx, w, source, o.Progress)
	if errors.Is(err, context.Canceled) {
		return errors.New("interrupted; the list is not complete")
	}
	return err
}

func write(ctx context.Context, out writer, source client.Differences, shown func(done, total int64)) error {
	a, b := source.Views()
	compared, isExact := source.(*exact)
	if err := out.begin(head{a: a, b: b, disk: source.Disk(), exact: isExact}); err != nil {
		return err
	}
	var s sum
	for more := true; more; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var list []chain.Difference
		var done int64
		var err error
		if list, done, more, err = source.Next(); err != nil {
			return err
		}
		shown(done, max(a.Size, b.Size))
		for _, d := range list {
			s.count++
			s.bytes += d.Length
			if err := out.add(d); err != nil {
				return err
			}
		}
	}
	if isExact {
		s.differing = compared.differing
	}
	return out.end(s)
}
