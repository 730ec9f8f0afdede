// Package manifest is chain.json: the record of a disk's layers.
//
// It knows the schema and its versions, the layers with their files, names, states, fingerprints
// and counts, which tree is in order and which is not, what a tree allows (which snapshot can be
// deleted, which layer can be merged with which), how chain.json is parsed within bounds, written
// always in the same form, and replaced so that a power cut leaves the old one or the new one
// (M15, D17). Fields that this varve does not know stay in the file.
//
// It does not know what an open image holds, a view, a job under way, or how a disk is locked or
// mounted: package chain does all that, on a Manifest that it edits as a copy, commits, and only
// then puts in force. Of a layer's file the package reads a fingerprint and nothing else.
package manifest
