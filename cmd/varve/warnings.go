package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// warnings is a log for a command that works on a directory itself: what
// matters comes out as a line like the command's own, the rest is dropped.
func warnings(w io.Writer) *slog.Logger {
	return slog.New(&sayHandler{w: w})
}

// sayHandler writes records of level Warn and above with say.
type sayHandler struct {
	w     io.Writer
	attrs []slog.Attr
}

func (h *sayHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn
}

func (h *sayHandler) Handle(_ context.Context, r slog.Record) error {
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
		say(h.w, "%s", r.Message)
		return nil
	}
	say(h.w, "%s (%s)", r.Message, strings.Join(words, ", "))
	return nil
}

func (h *sayHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &sayHandler{w: h.w, attrs: append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)}
}

// WithGroup keeps the attributes flat: they are read by people.
func (h *sayHandler) WithGroup(string) slog.Handler { return h }
