// Package chain keeps a virtual disk's tree of layers: chain.json, the views,
// the writable leaf, snapshot, revert, delete and flatten, and the jobs that
// run in the background. It knows no FUSE.
package chain
