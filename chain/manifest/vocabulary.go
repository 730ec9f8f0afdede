package manifest

// State says what a layer is in its tree.
type State string

const (
	StateLeaf    State = "leaf"    // what disk.raw writes to
	StateBase    State = "base"    // the foreign file at the bottom
	StateFrozen  State = "frozen"  // a snapshot, or an adopted file above the base
	StateUnnamed State = "unnamed" // frozen, without a name: something stands on it, or it was set aside
)

func (s State) String() string { return string(s) }

// JobKind says what a job does.
type JobKind string

const (
	DeleteJob  JobKind = "delete"  // merges a layer with the one that stands on it
	FlattenJob JobKind = "flatten" // copies into a layer what it needs from below
)

func (k JobKind) String() string { return string(k) }

// known says whether this varve has jobs of the kind.
func (k JobKind) known() bool { return k == DeleteJob || k == FlattenJob }

// Direction says which of two layers a merge writes; "" while that is not decided.
type Direction string

const (
	Up   Direction = "up"   // the upper one takes what the lower one holds
	Down Direction = "down" // the lower one takes what the upper one holds
)

func (d Direction) String() string { return string(d) }

// known says whether a merge can go in the direction, or has not decided.
func (d Direction) known() bool { return d == "" || d == Up || d == Down }
