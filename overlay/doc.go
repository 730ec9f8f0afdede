// Package overlay writes a layer of a chain: an Overlay is one qcow2 file of varve's own
// making (version 3, extended L2 entries), open for reading and writing. The package
// creates layers, maps, writes, discards, flushes, grows and mends them, copies into them
// what other layers hold, and exports a view as an image. The order and durability of its
// writes are rules M3 to M11 and M15 of docs/inside.md.
//
// It imports qcow2, which reads every image, extent, the vocabulary for guest space, and
// hostfs, the host's files and their locks. Package check, which judges an image, stands
// beside it: neither needs the other. Overlay knows no chain and no names.
//
// "qcow2 specification" in comments means QEMU's docs/interop/qcow2.rst; "M1" to "M22"
// are the rules in docs/inside.md.
package overlay
