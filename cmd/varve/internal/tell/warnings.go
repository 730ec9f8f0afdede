package tell

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// Warnings is a log for a command that works on a directory itself: what
// matters comes out as a line like the command's own, the rest is dropped.
func Warnings(w io.Writer) *slog.Logger {
	return slog.New(&handler{w: w})
}

// handler writes records of level Warn and above with say.
type handler struct {
	w     io.Writer
	attrs []slog.Attr
}

func (h *handler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn
}

func (h *handler) Handle(_ context.Context, r slog.Record) error {
	var words []string
	add := func(a slog.Attr) bool {
		words = append(words, fmt.Sprintf("%s %v", a.Key, a.Value))
		return true
	}
	for _, a := range h.attrs {
		add(a)
	}
	r.Attrs(add)
	if len(words) == 0 {
		Line(h.w, "%s", r.Message)
		return nil
	}
	Line(h.w, "%s (%s)", r.Message, strings.Join(words, ", "))
	return nil
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &handler{w: h.w, attrs: append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)}
}

// WithGroup keeps the attributes flat: they are read by people.
func (h *handler) WithGroup(string) slog.Handler { return h }
