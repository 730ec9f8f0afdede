// Package chain keeps a virtual disk's tree of layers: chain.json, the writable
// leaf, snapshot, revert, delete and flatten, and the jobs that run in the
// background. It knows no FUSE.
//
//	disk            a disk directory: chain.json and layers/
//	layer           one image file of it; foreign where it is not varve's own
//	leaf            the layer that the guest writes; all others are frozen
//	base            the bottom layer of the leaf's chain that was there first
//	snapshot        a frozen layer with a name; unnamed ones are kept for what stands on them
//	view            what a layer shows: itself over all layers below it (chain/view)
//	manifest        what chain.json says: layers, names, parents, the job to go on with
//	                (chain/manifest)
//	merge           a layer's content goes up into the one that stands on it, or that one's
//	                down into it; a delete is a merge, and then a file less
//	job             a delete or a flatten under way; a restart goes on with it
//	window          what a job copies before it makes the copy durable and gives the
//	                source back to the host
//	settle          make a written layer durable and its fingerprint right, so that it is
//	                frozen at rest; thaw is the way back
//	diff            the places at which two views have their bytes from different layers
//	                (diff.go); the command compares the bytes
//	clone           another disk directory, whose base is a snapshot of this disk. The clone
//	                names the files that it reads, and not the disk; the disk lists its clones
//	set aside       the leaf that a revert replaced, kept for undo
//	fingerprint     by which a layer that somebody else changed is known
//	reserve         blocks kept so that a full host can still commit chain.json
//	figures         what people are told of bytes (chain/figures)
//
// The order of locks stands at Disk.
package chain
