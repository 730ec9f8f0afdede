// Package overlay reads and writes one image file: a layer of a chain.
//
// It reads raw images and every qcow2 that qemu-img writes without encryption
// or an external data file (Image), and writes only varve's own layers: qcow2
// version 3 with extended L2 entries (Overlay). It knows clusters, L1 and L2
// tables, refcounts and the locks on a file. It knows no chain and no names.
//
// "qcow2 specification" in comments means QEMU's docs/interop/qcow2.rst; "M1"
// to "M19" are the rules in docs/inside.md.
package overlay
