// Package chain is an open disk: the views of its tree of layers, the writable leaf, snapshot,
// revert, delete and flatten, the jobs that run in the background, and what looks at a disk that
// is not open (Check, Examine). Package manifest is chain.json. Chain knows no FUSE.
package chain
