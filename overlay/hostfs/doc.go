// Package hostfs is the host's files as varve uses them: every call that touches a file
// of a disk goes through its interfaces FS and File, so that a test can record the call,
// fail it, or cut the power under it. OS is the host's own file system.
//
// It knows what Linux promises about a file: holes, blocks that two files share, what is
// durable when, which errors mean a bad sector, and the locks by which QEMU and varve
// keep off each other's images (M18). It knows no image format, no layer and no disk
// directory, and imports none of varve but the names of processes.
package hostfs
