// Package figures counts what people are told of a disk's bytes: how many of a view are
// data, how many a layer maps, what a delete would give back, and the picture of it all.
//
//	Figures   what was counted, by node, and a pass that counts the rest in the background
//	Map       which bytes of the disk which layer holds, in bins
//
// It reads the layers' tables, never data, and makes nobody wait: until a figure is counted
// it gives the best one so far, with ok = false. Who changes what a layer maps, or what stands on
// what, tells it that a figure is not right any more (Settled, Replaced, Moving, ViewChanged,
// Froze). What was counted of a frozen layer goes into chain.json (Note) and comes from
// there (Believe). The package commits nothing itself and knows no jobs.
package figures
