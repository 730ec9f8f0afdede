// Package qcow2 reads images: every qcow2 that qemu-img writes without encryption or an
// external data file, and raw ones, which stand at the bottom of a chain. An Image maps
// guest bytes to extents, and reads them. What it reads may be damaged or made by an
// attacker: nothing in an image makes it panic, loop, or take memory beyond what the file
// could need.
//
// It knows the format: the header, L1 and L2 tables, compressed clusters; Walk goes
// through the tables for whoever judges them. It writes nothing, judges no refcounts
// (package check does), and knows neither what varve's own layers look like (package
// overlay does) nor chains.
//
// "qcow2 specification" in comments means QEMU's docs/interop/qcow2.rst.
package qcow2
