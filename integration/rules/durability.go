package main

var durabilityMutants = []mutant{
	one("M10", "an L2 table has no blocks before it is written", "overlay/slice.go",
		"	if err := o.reserve(host, o.clusterSize()); err != nil {\n		o.alloc.giveBack(host)\n		return fmt.Errorf(\"reserve L2 table at 0x%x of %s: %w\", host, o.file.Name(), err)\n	}\n", "",
		"overlay.TestTablesAreReserved"),
	one("M10", "Create gives the L1 table no blocks", "overlay/create.go",
		"if err := f.Allocate(h.L1Offset, max(1, entries)*8); err != nil &&", "if err := error(nil); err != nil &&",
		"overlay.TestTablesAreReserved"),
	one("M10", "a moved L1 table has no blocks before it is written", "overlay/rewrite.go",
		"		err = o.reserve(host, want*cs)\n		if err == nil {", "		if err == nil {",
		"overlay.TestTablesAreReserved"),
	one("M10", "an L1 table that grows in its place has no blocks", "overlay/rewrite.go",
		"} else if err := o.reserve(h.L1Offset, n*8); err != nil {", "} else if err := error(nil); err != nil {",
		"overlay.TestTablesAreReserved"),
	one("M10", "a failed fdatasync is not sticky", "overlay/overlay.go",
		"	o.failed.CompareAndSwap(nil, &err)\n", "",
		"overlay.TestFailedSyncIsSticky"),
	one("M10", "a write does not look whether the layer has failed", "overlay/write.go",
		"	if err := o.Failed(); err != nil {\n		return err\n	}\n	return o.byCluster", "	return o.byCluster",
		"overlay.TestFailedSyncIsSticky"),
	one("M10", "an fdatasync without room can be tried again", "overlay/flush.go",
		" && !errors.Is(err, errSync)", "",
		"overlay.TestSyncWithoutRoom"),
	one("M10", "recovery believes the cache", "overlay/overlay.go",
		"		if err := f.DropCache(); err != nil {", "		if err := error(nil); err != nil {",
		"overlay.TestRecoveryDropsTheCache"),
}
var readingMutants, treeMutants, namesMutants, outsideMutants []mutant
