// Package fs shows a disk as a mounted directory: it maps FUSE requests to the
// chain and errors to errnos. It knows no image format and keeps nothing that
// outlives a mount.
//
// It implements go-fuse's RawFileSystem rather than its node API, because the
// tree is small and fixed, because a node's method there hides the method of
// an open file, and because only the raw requests show the flags of a write,
// which synchronous writes need (M9).
//
// Every operation of the protocol is answered in this package on purpose;
// where the answer is "not implemented", the kernel then goes on without us,
// and the method says why that is right. "M1" to "M22" are the rules in
// docs/inside.md.
//
// What is shown of a disk, as text or as a picture, is package show's. What is written to control
// files and read back is package control's language.
//
// A handler holds no lock of this package while it calls the chain, and never
// touches a path inside its own mount.
package fs
