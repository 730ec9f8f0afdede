// Package view reads a chain of layers at any depth as if it were one file.
//
//	Layer    an open layer file: frozen, or being written
//	Node     a layer's place in the tree, and its view: the layer over all below it
//	Region   what a view's layers say of 16 MiB of guest space, looked up once
//	Cache    bounds the memory of the regions of a disk
//	Grace    lets who takes something out of sight wait for those who still look at it
//
// A read costs the same at any depth since the layers are asked once for each region, from
// the top down, and what they say is kept. A layer that is being written is asked at each
// read instead (ReadLive), and a view that a job changes is not kept while it does
// (SetAbsorbing); who changes what a layer says drops the regions that have
// it (Cache.Drop) and waits for their readers (Grace.Synchronize) before anything goes on
// the host (M1 in docs/inside.md).
//
// The package knows no chain.json, no names and no jobs: which layers there are, and when
// one stops being written, chain says. It opens no file.
package view
