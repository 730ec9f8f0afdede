package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// display prints lines and keeps, on a terminal, a last one that says what is going
// on. Safe for concurrent use.
type display struct {
	mu     sync.Mutex
	out    io.Writer
	width  func() int // of the terminal; nil for none
	status string     // that is on the terminal now
	last   time.Time  // when a status line was printed where there is no terminal
}

// statusEvery is how often a status line is printed where there is no terminal.
const statusEvery = time.Minute

func newDisplay(out io.Writer, width func() int) *display {
	return &display{out: out, width: width, last: time.Now()}
}

// print prints whole lines.
func (d *display) print(text string) {
	if text == "" {
		return
	}
	if !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.width == nil {
		fmt.Fprint(d.out, text)
		return
	}
	fmt.Fprint(d.out, "\r\x1b[K", text, d.status)
}

// say shows what is going on; "" takes the line away.
func (d *display) say(status string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.width != nil {
		if width := d.width() - 1; len([]rune(status)) > width {
			status = string([]rune(status)[:width])
		}
		fmt.Fprint(d.out, "\r\x1b[K", status)
		d.status = status
		return
	}
	if status != "" && time.Since(d.last) >= statusEvery {
		d.last = time.Now()
		fmt.Fprintln(d.out, status)
	}
}

// clock writes a duration as minutes and seconds.
func clock(d time.Duration) string {
	s := int(d.Seconds())
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}
