package chain

import (
	"time"

	"varve/chain/view"
)

// Status is the document of status.json and of every --json listing. Fields
// are added, never changed in meaning.
type Status struct {
	Version int           `json:"version"` // 1
	Disk    string        `json:"disk"`    // the disk directory's path
	Size    int64         `json:"size"`    // guest bytes
	Leaf    string        `json:"leaf"`    // layer id
	Layers  []LayerStatus `json:"layers"`  // in the order of their ids
	Open    []OpenStatus  `json:"open"`
	Job     *JobStatus    `json:"job"`
}

// LayerStatus describes one layer.
type LayerStatus struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"` // "" for an unnamed layer and the leaf
	State     State     `json:"state"`
	Foreign   bool      `json:"foreign"`
	Parent    *string   `json:"parent"`
	Children  []string  `json:"children"`
	Format    string    `json:"format"` // raw or qcow2
	File      string    `json:"file"`   // absolute path
	Created   time.Time `json:"created"`
	Frozen    time.Time `json:"frozen,omitzero"` // when the view became what it is; zero for the leaf
	Size      int64     `json:"size"`            // guest bytes
	OwnBytes  int64     `json:"own_bytes"`       // guest bytes that the layer itself maps
	Counted   bool      `json:"counted"`         // false: own_bytes is the figure so far; counting goes on
	HostBytes int64     `json:"host_bytes"`      // its file's blocks on the host, in bytes
	Depth     int       `json:"depth"`           // 1 for the bottom
	// Held: it cannot be deleted. Clones are the disks that were made on it, by path.
	// SetAside: it is the leaf that the last revert set aside.
	Held     bool     `json:"held"`
	Clones   []string `json:"clones"`
	SetAside bool     `json:"set_aside"`
	// Lost: the file was removed, or replaced by another one, while the disk is mounted.
	// What is in it is lost with the unmount. A file that was moved elsewhere is not
	// counted as lost here: that would need a look at the path of each file.
	Lost bool `json:"lost"`
	// Frees is how many bytes of the host a delete would give back, 0 where nothing can
	// be deleted; nil while it is not known.
	Frees *int64 `json:"frees_bytes"`
	// Damage are the guest bytes that cannot be read from this layer, as far as
	// somebody has looked. OwnBytes is what it has at least, then.
	Damage []view.Damage `json:"damage"`
}

// Title is what people call a layer: "leaf", its name, or its id in parentheses.
func Title(state State, name, id string) string {
	switch {
	case state == StateLeaf:
		return LeafName
	case name != "":
		return name
	}
	return "(" + id + ")"
}

// Title is what people call the layer.
func (l *LayerStatus) Title() string { return Title(l.State, l.Name, l.ID) }

// Since is when the layer's view became what it is.
func (l *LayerStatus) Since() time.Time {
	if l.Frozen.IsZero() {
		return l.Created
	}
	return l.Frozen
}

// DamagedBytes is how many guest bytes cannot be read from the layer.
func (l *LayerStatus) DamagedBytes() (total int64) {
	for _, d := range l.Damage {
		total += d.Length
	}
	return total
}

// Damage is a run of guest bytes that cannot be read from a layer.
type Damage = view.Damage

// OpenStatus describes one open file of the mount.
type OpenStatus struct {
	File    string `json:"file"` // disk.raw, layers/NAME.raw, or a partition of these: layers/NAME.d/p1.raw
	PID     int    `json:"pid"`
	Command string `json:"command"`
	Write   bool   `json:"write"`
}

// JobStatus describes the job under way or the last one.
type JobStatus struct {
	ID         string   `json:"id"`
	Kind       JobKind  `json:"kind"`
	Layer      string   `json:"layer"` // layer id
	State      JobState `json:"state"`
	DoneBytes  int64    `json:"done_bytes"`
	TotalBytes int64    `json:"total_bytes"`
	Error      string   `json:"error"`
	// Rate is bytes copied per second: in the last seconds while it runs, over all
	// of it when it has ended, 0 when nothing was copied.
	Rate int64 `json:"rate"`
	// RateLimit is how many it may copy, 0 for as many as it can (SetJobRate).
	RateLimit int64 `json:"rate_limit"`
	// SecondsLeft is how long it will take from now on; nil when that is not known.
	SecondsLeft *int64 `json:"seconds_left"`
}
