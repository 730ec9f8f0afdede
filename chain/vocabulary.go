package chain

import (
	"varve/chain/manifest"
	"varve/chain/shellword"
	"varve/overlay/qcow2"
)

// The words of status.json, of what the commands print as JSON, and of metrics stand here and in
// package manifest, and nowhere else.

// State says what a layer is in its tree.
type State = manifest.State

// Names of views that no snapshot has.
const (
	BaseName = manifest.BaseName
	LeafName = manifest.LeafName
)

// States of a layer.
const (
	StateLeaf    = manifest.StateLeaf
	StateBase    = manifest.StateBase
	StateFrozen  = manifest.StateFrozen
	StateUnnamed = manifest.StateUnnamed
)

// States lists all there are, from the bottom of a tree to its top.
func States() []State { return []State{StateBase, StateFrozen, StateUnnamed, StateLeaf} }

// JobKind says what a job does.
type JobKind = manifest.JobKind

// Kinds of a job.
const (
	DeleteJob  = manifest.DeleteJob
	FlattenJob = manifest.FlattenJob
)

// JobState says how far a job has come.
type JobState string

const (
	JobRunning   JobState = "running" // or waiting for the next mount
	JobDone      JobState = "done"
	JobCancelled JobState = "cancelled"
	JobFailed    JobState = "failed"
)

func (s JobState) String() string { return string(s) }

// Operation is one that Plan makes a plan of.
type Operation string

const (
	OpDelete  Operation = "delete"
	OpFlatten Operation = "flatten"
	OpRevert  Operation = "revert"
)

func (o Operation) String() string { return string(o) }

// ParseOperation is the operation that a word names: ErrInvalid where none has that name.
func ParseOperation(word string) (Operation, error) {
	switch o := Operation(word); o {
	case OpDelete, OpFlatten, OpRevert:
		return o, nil
	}
	return "", invalidf("no plan is made for %q; for delete, flatten and revert there is one", word)
}

// Severity says how bad a finding of Check is.
type Severity string

const (
	SeverityError Severity = "error" // a promise is broken
	SeverityLeak  Severity = "leak"  // space on the host is lost, nothing else
	SeverityNote  Severity = "note"  // worth knowing; the next mount deals with it
)

func (s Severity) String() string { return string(s) }

// FindingKind tells those findings of Check of which one cause makes many; "" for one that comes
// alone.
type FindingKind string

const (
	KindRefcount FindingKind = "refcount" // a refcount is wrong
	KindTable    FindingKind = "table"    // an entry of a table is
)

func (k FindingKind) String() string { return string(k) }

// TroubleSeverity says how bad it is what Examine noticed.
type TroubleSeverity string

const (
	TroubleProblem TroubleSeverity = "problem"
	TroubleWarning TroubleSeverity = "warning"
	TroubleNote    TroubleSeverity = "note"
)

func (s TroubleSeverity) String() string { return string(s) }

// Formats of layers as chain.json and headers name them.
const (
	formatRaw   = qcow2.FormatRaw
	formatQcow2 = qcow2.FormatQcow2
)

// CheckName says whether a snapshot may have a name: ErrInvalid with the reason.
func CheckName(name string) error { return manifest.CheckName(name) }

// ShellWord is a path or a name as a word of a command to paste into a shell.
func ShellWord(s string) string { return shellword.Quote(s) }
