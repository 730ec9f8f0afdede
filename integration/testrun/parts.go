package main

import (
	"maps"
	"slices"
	"strings"
)

// part is one run of go test.
type part struct {
	title     string
	packages  []string
	flags     []string // of go test
	testFlags []string // of the test binaries
	env       []string
	alone     bool // nothing runs beside it
}

const crash = "PowerCut|Faults$"

// suites are what can be run. Of parts that run beside each other the longest come
// first, so that none is left for the end.
var suites = map[string][]part{
	"test": {
		// The power cuts and faults come at more places than in the unit tests, and
		// without the race detector: test-long has them with it.
		{title: "chain, with the race detector", packages: []string{"./chain/..."}, flags: []string{"-race", "-skip=PowerCut"}},
		{title: "overlay, with the race detector", packages: []string{"./overlay/..."}, flags: []string{"-race", "-skip=PowerCut"}},
		{title: "power cuts and faults of a disk", packages: []string{"./chain"}, flags: []string{"-run=" + crash},
			testFlags: []string{"-crash.stride=3", "-fault.stride=5"}},
		{title: "power cuts and faults of a layer", packages: []string{"./overlay"}, flags: []string{"-run=" + crash},
			testFlags: []string{"-crash.runs=4", "-crash.stride=1", "-fault.stride=1"}},
		{title: "the program, with the race detector", packages: []string{"./cmd/..."}, flags: []string{"-race"}},
		{title: "FUSE, with the race detector", packages: []string{"./fs/..."}, flags: []string{"-race"}},
		{title: "integration", packages: []string{"./integration/..."}},
	},
	"fast": {
		{title: "chain", packages: []string{"./chain/..."}, flags: []string{"-short"}},
		{title: "overlay", packages: []string{"./overlay/..."}, flags: []string{"-short"}},
		{title: "the program", packages: []string{"./cmd/..."}, flags: []string{"-short"}},
		{title: "FUSE", packages: []string{"./fs/..."}, flags: []string{"-short"}},
	},
	"long": {
		{title: "chain, with the race detector", packages: []string{"./chain/..."}, flags: []string{"-race"}, env: long},
		{title: "overlay, with the race detector", packages: []string{"./overlay/..."}, flags: []string{"-race"}, env: long},
		{title: "the program, with the race detector", packages: []string{"./cmd/..."}, flags: []string{"-race"}, env: long},
		{title: "FUSE, with the race detector", packages: []string{"./fs/..."}, flags: []string{"-race"}, env: long},
		{title: "integration, of a program with the race detector", packages: []string{"./integration/..."}, env: append(long, "VARVE_RACE=1")},
	},
}

var long = []string{"VARVE_LONG=1"}

func suiteNames() []string { return slices.Sorted(maps.Keys(suites)) }

// titled gives the parts whose title contains a text.
func titled(parts []part, text string) []part {
	return slices.DeleteFunc(slices.Clone(parts), func(p part) bool { return !strings.Contains(p.title, text) })
}
