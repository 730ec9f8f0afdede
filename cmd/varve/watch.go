package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"varve/chain"
	"varve/cmd/varve/internal/client"
	"varve/cmd/varve/internal/progress"
	"varve/cmd/varve/internal/tell"
	"varve/cmd/varve/internal/where"
	"varve/fs/show"
)

// Control sequences of a terminal (ECMA-48, and xterm's for the alternate screen).
const (
	enterScreen = "\x1b[?1049h\x1b[?25l" // another screen, no cursor
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	toHome      = "\x1b[H"
	restOfLine  = "\x1b[K" // is cleared
	restOfPage  = "\x1b[J"
)

// watchStatus shows a disk until it is interrupted.
func watchStatus(cmd *cobra.Command, arg string, asJSON bool, every time.Duration) error {
	ctx, stop := interruptible(cmd)
	defer stop()
	w := &statusWatch{disk: arg, asJSON: asJSON, out: cmd.OutOrStdout(), stderr: cmd.ErrOrStderr()}
	if !asJSON && progress.IsTerminal(w.out) && os.Getenv("TERM") != "dumb" {
		w.screen = w.out.(*os.File)
	}
	return w.run(ctx, every)
}

// statusWatch is one run of status --watch.
type statusWatch struct {
	disk   string // as the user wrote it
	asJSON bool
	out    io.Writer
	stderr io.Writer
	screen *os.File // nil when out is no terminal that can be drawn on

	last   string // what was shown
	recent client.Recent
}

func (w *statusWatch) run(ctx context.Context, every time.Duration) (err error) {
	text, err := w.look(ctx)
	if err != nil {
		return err // nothing was drawn yet
	}
	if w.screen != nil {
		if _, err := io.WriteString(w.screen, enterScreen); err != nil {
			return err
		}
		defer func() {
			// What was there last stays on the screen that the user comes back to.
			_, failed := io.WriteString(w.screen, leaveScreen+w.last)
			err = errors.Join(err, failed)
		}()
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := w.show(text, every); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil // that is how it ends
		case <-tick.C:
		}
		// A disk that is mounted or unmounted in the middle of a look shows neither state.
		for tries := 1; ; tries++ {
			if text, err = w.look(ctx); ctx.Err() != nil {
				return nil
			} else if err == nil {
				break
			} else if tries == watchTries {
				return err
			}
			time.Sleep(watchPause)
		}
	}
}

// How often a look that failed is tried again before the watch ends, and after how long.
const (
	watchTries = 5
	watchPause = 100 * time.Millisecond
)

// look is what there is to be said of the disk now.
func (w *statusWatch) look(ctx context.Context) (string, error) {
	st, err := w.status(ctx)
	if errors.Is(err, chain.ErrInUse) {
		// A command works on the directory, and will let it go.
		return fmt.Sprintf("%s: %v\n", w.disk, err), nil
	}
	if err != nil {
		return "", err
	}
	var text bytes.Buffer
	if !w.asJSON {
		o := treeOptions(w.out)
		o.Color = false // a page is cut by its characters
		err = show.Table(&text, st, o)
		return text.String(), err
	}
	line, err := compactJSON(st)
	return line, err
}

func compactJSON(st chain.Status) (string, error) {
	var long, line bytes.Buffer
	if err := show.JSON(&long, st); err != nil {
		return "", err
	}
	err := json.Compact(&line, show.PrintableJSON(long.Bytes()))
	return line.String() + "\n", err
}

func (w *statusWatch) status(ctx context.Context) (chain.Status, error) {
	t, err := where.Find(w.disk)
	if err != nil {
		return chain.Status{}, err
	}
	defer t.Mount.Release()
	return w.recent.Status(ctx, t, client.Options{ReadOnly: true, Log: tell.Warnings(w.stderr)})
}

// show draws the screen anew, or prints what has changed.
func (w *statusWatch) show(text string, every time.Duration) error {
	if w.screen == nil {
		if text == w.last {
			return nil
		}
		head := ""
		if !w.asJSON {
			if w.last != "" {
				head = "\n"
			}
			head += time.Now().Format("2006-01-02 15:04:05") + "\n"
		}
		w.last = text
		_, err := io.WriteString(w.out, head+text)
		return err
	}
	w.last = text
	width, height, err := term.GetSize(int(w.screen.Fd()))
	if err != nil || width <= 0 || height <= 0 {
		width, height = 80, 24
	}
	title := fmt.Sprintf("varve status %s, every %s; Ctrl-C ends it", w.disk, every)
	_, err = io.WriteString(w.screen, page(title, time.Now().Format("15:04:05"), text, width, height))
	return err
}

// page is a screen of text, cut to its size, with a title and a clock above.
func page(title, clock, text string, width, height int) string {
	gap := width - len([]rune(title)) - len(clock)
	if gap < 2 {
		title, gap = cutLine(title, width-len(clock)-2), 2
	}
	lines := []string{title + strings.Repeat(" ", max(0, gap)) + clock, ""}
	lines = append(lines, strings.Split(strings.TrimSuffix(text, "\n"), "\n")...)
	lines = cutLines(lines, height)
	var out strings.Builder
	out.WriteString(toHome)
	for i, line := range lines {
		if i > 0 {
			out.WriteString("\r\n")
		}
		line = cutLine(line, width)
		out.WriteString(line)
		if len([]rune(line)) < width { // behind the last column it would clear that
			out.WriteString(restOfLine)
		}
	}
	out.WriteString(restOfPage)
	return out.String()
}

// cutLines cuts a page to the height of a screen. The oldest layers go first: what
// changes is said above the table, and at its end.
func cutLines(lines []string, height int) []string {
	over := len(lines) - height
	if over <= 0 {
		return lines
	}
	table := slices.IndexFunc(lines, func(line string) bool { return strings.HasPrefix(line, "LAYER ") })
	layers := len(lines)
	if table >= 0 {
		open := func(line string) bool { return strings.HasPrefix(line, "OPEN ") }
		if i := slices.IndexFunc(lines, open); i > table { // with an empty line before it
			layers = i - 1
		}
	}
	if table < 0 || over+1 > layers-table-2 { // the leaf's line stays
		return append(lines[:height-1], fmt.Sprintf("(%d more lines)", over+1))
	}
	note := fmt.Sprintf("(%d lines not shown)", over+1)
	return slices.Replace(lines, table+1, table+1+over+1, note)
}

func cutLine(line string, width int) string {
	runes := []rune(line)
	if len(runes) <= width {
		return line
	}
	return string(runes[:max(0, width)])
}
