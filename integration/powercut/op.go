package powercut

import "fmt"

// Kind says what a call does.
type Kind uint8

const (
	// Calls that change something, and are recorded.
	Create Kind = iota + 1
	Mkdir
	Rename
	Remove
	SyncDir
	Write
	Truncate
	Allocate
	Punch
	Datasync
	Sync
	DropCache
	// Calls that only a Hook sees.
	Open
	Stat
	ReadDir
	Read
	// Mark is no call: the test's own entry in the record.
	Mark
)

var kindNames = [...]string{
	Create: "create", Mkdir: "mkdir", Rename: "rename", Remove: "remove", SyncDir: "syncdir",
	Write: "write", Truncate: "truncate", Allocate: "allocate", Punch: "punch",
	Datasync: "fdatasync", Sync: "fsync", DropCache: "drop cache",
	Open: "open", Stat: "stat", ReadDir: "readdir", Read: "read", Mark: "mark",
}

func (k Kind) String() string { return kindNames[k] }

// Op is one call, as a Hook sees it and as the record keeps it.
type Op struct {
	Kind  Kind
	Path  string // as it was opened, for calls on a file
	To    string // Rename
	Off   int64  // Write, Allocate, Punch, Read: bytes
	N     int64  // the length of those; Truncate: the new size
	Data  []byte // Write
	Event any    // Mark: what the test noted

	node    uint64
	failed  bool // Datasync, Sync: what was pending is lost
	clock   int64
	survive uint64 // of a failed sync: seed of what reached the disk all the same
}

func (o Op) String() string {
	switch o.Kind {
	case Mark:
		return "mark " + o.Path
	case Rename:
		return fmt.Sprintf("rename %s %s", o.Path, o.To)
	case Write, Allocate, Punch, Read:
		return fmt.Sprintf("%v %s 0x%x+0x%x", o.Kind, o.Path, o.Off, o.N)
	case Truncate:
		return fmt.Sprintf("truncate %s 0x%x", o.Path, o.N)
	}
	s := fmt.Sprintf("%v %s", o.Kind, o.Path)
	if o.failed {
		s += " (failed)"
	}
	return s
}

// Changes says whether the call changes something on the host.
func (o Op) Changes() bool { return o.Kind < Open }

// half is where a write in part stops, in bytes: where a sector ends.
func (o Op) half() int64 {
	end := (o.Off + o.N/2) / SectorSize * SectorSize
	return max(0, end-o.Off)
}
