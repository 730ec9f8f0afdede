// Package powercut simulates a host whose power can be cut.
//
// A Host is a host file system in memory, behind the interface through which
// overlay and chain do everything that they do to files. It records each call
// that changes something, and keeps apart what a completed sync made durable
// and what came after. A Player goes through such a record call by call and
// gives, at each place, the states in which a power cut could leave the disk:
//
//   - of every file all that its last completed fdatasync or fsync covered;
//   - of what was written after that, any part: nothing, all, any of the calls,
//     or pieces of 512 bytes or 4 KiB of them. A later write that is lost while
//     an earlier one to the same place is there stands for any other order;
//   - of the names in a directory what its last sync covered, and any part of
//     the creations, renames and removals after it.
//
// A Host can also fail calls, and it fails an fdatasync as Linux does: the
// pages stay in the cache, clean, and never reach the disk.
package powercut
