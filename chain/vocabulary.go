package chain

import (
	"varve/chain/manifest"
	"varve/chain/shellword"
	"varve/overlay/qcow2"
)

// Formats of layers as chain.json and headers name them.
const (
	formatRaw   = qcow2.FormatRaw
	formatQcow2 = qcow2.FormatQcow2
)

// CheckName says whether a snapshot may have a name: ErrInvalid with the reason.
func CheckName(name string) error { return manifest.CheckName(name) }

// ShellWord is a path or a name as a word of a command to paste into a shell.
func ShellWord(s string) string { return shellword.Quote(s) }
