// Package check says what in an image contradicts its format or itself, as qemu-img check
// does: Run goes through all tables and refcounts, CutOff only looks whether the file ends
// before what it holds.
//
// It reads, and repairs nothing: the refcounts of varve's own layers are mended by package
// overlay when it opens one. It knows one image, and no chain.
package check
