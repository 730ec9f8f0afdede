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

// Tests that run in parts of their own, by their names. What the parts leave out of the race
// detector test-long has with it.
const (
	// The simulated power cuts and faults: at more places than in the unit tests.
	crash = "PowerCut|Faults$"
	// Nothing, or nothing but a job, runs beside what these try, and they touch much
	// memory or wait for qemu-img.
	single = "AgainstQEMU|DiskAgainstModel|OverlayAgainstModel|DamagedLayers|DiffOfRandomChains|FaultsInARow|CrashDuring|WriteDuringFlush|^Fuzz|" +
		"FreesIs|GoneLayers|StepsDoNotGrow|DeleteCopiesOnce|MergeKeepsZeros|MergeNeedsLittle|DirectionOfAMerge|MergesOnAFullHost|" +
		"TestExamine|TestPlan|TestAdopt|TestAccept|TestCheck|DiffPlaces|AfterACrash|CommitRefuses|OldDisk|" +
		"WindowThatCannotSettle|FailedRevert|EveryCallOfAJob|TestShrink|FailedSyncIsSticky|LargestFile|FlushWithoutRoom|TestCutOff|" +
		"RefcountTableGrows|TestHostile|TestHeader|TestExportToADevice"
	// The like of these, of which most of the time with the race detector is copying and
	// comparing: what is refused, counted, written down, adopted, cloned or undone, and what a
	// single job or request makes of an image.
	sequential = "TestCreate(WithoutRights|Modes|Refuses|AfterCrash)|GoBackToABase|GuestsQcow2|UsedNumbers|LeafThatIsNotPlain|MarkedLayers|" +
		"EmptyLeafWith|Unreadable|AllocateNothing|OrderOfHostCalls|TestRepair|TestCounts$|TestCountsOf|CountingPanics|Damage|DiffTells|DiffRefused|" +
		"PeekAndCount|TestFlatten$|ShrunkLeaf|LeafChanged|HolesAndBlocks|TestReadOnly|TestModTime|RemovalAfterCrash|TestSetAside|BranchingPoint|" +
		"BlankDisk|ExtentMap|MapBins|TooManyLayers|Fingerprint|ForeignHeader|FreesOf|TestFullHost|TestNoRoom|DeleteOnAFullHost|ScanAgainstSectors|" +
		"TestClone(CutShort|OfTheBase|Refused|OfA)|TestRebase|OtherChain|CloneThatMayStand|HolesBehind|ShorterLayer|PartsOfSubclusters|" +
		"LockOfAWrittenLayer|FailedMergeKeeps|MergeOfAChangedLeaf|TestManifest|TestUndo|UnevenDisk|GrowthOfAShrunk|ShrunkBlank|Sectors|UnevenQcow2|" +
		"MetricsMove|MergeMetrics|LayerMetrics|MetricsCountNothing|OpenAndCacheMetrics|FlushErrorsAreCounted|HiddenBadEntry|" +
		"LayerClips|EndOfALayer|CloneRange|PageCache|TestSalvage|ExportFinds|EachRun|TestGrow|TestHostF|RewritesStay|MemoryForClaims|FarCluster|" +
		"ZeroBits|TestTruncated|CompressedAt|InternalSnapshot|UnallocatedIs|NoAllocations|LargeImage|TestRaw|TestTableIndex|ClusterSet|LeaksAre|" +
		"LowRefcounts|ReservedClusters|TestRealFiles|TestForged|NextAgainstMap|ChangesOutlive|StreamIsInterrupted|UnevenLayer|CountedBehind"
	// These wait for a guest that boots or for a daemon that starts, more than they work.
	guests = "Guest|Guide|Libvirt|Kill|VM|Pages|OneMountWins"
	// Of the program, where one does something while another does: a daemon and its job,
	// its signals, its log and its other users. Otherwise a command runs alone, and most of
	// its time with the race detector is its start.
	beside = "Job|InterruptedWait|UmountWaits|UmountLazily|TestWatch|Service|LetsGo|TestSection|AtOnce|Outlives|TestMetricsFile|" +
		"HangingHost|WaitsForTheLastOne|InTheMiddle|AndOthers|CheckOfAMounted|TestInterrupt"
	// What the fast suite leaves out: many random images and disks, with qemu-img as judge;
	// what has to go on for a time, or copies much.
	slow = "AgainstQEMU|AgainstModel|DamagedLayers|DiffOfRandomChains|DuringMerges|DuringAFlatten|DuringJobs|CrashDuring|WriteDuringFlush|" +
		"FaultsInARow|MergesOnAFullHost|MergeNeedsLittle|EveryCallOfAJob|EverythingAtOnce|StepsDoNotGrow|GoneLayers|PunchInFlight|" +
		"ExportToADevice|TestModes|TestDomains|TestRealVMs|TestRedefinition|ManyLayersWithPartitions|" +
		"TestCheck$|FreesIs|FreesOf|TestExamine|TestPlanOf|^Fuzz|AcceptRefuses|AdoptDepth|TestAdopt$|CreateFaults|RepairPowerCut|PowerCutCreate|OldDisk|" +
		"FindsWrittenZeros|TestRealFiles|TestCheckDamage$|TestShrink|DeleteCopiesOnce|RefcountTableGrows|TestCutOff|MergeMetrics|HeadersFollowAfter"
	// Of the program: each command once or twice, and what needs no mount.
	basics = "FirstAndNext|CommandsMountedOrNot|TestCreate$|TestAccept$|ExportOverAPart|ImportFromAnotherDisk|DiffRefused|JobInBackground|CheckInOrder|" +
		"SaysWhoUsesIt|MountModes|StatusIsOneDocument|TestTree|TestMap$|TestUse$|Sizes|EmptyArgument|" +
		"TestHelp$|TestReport|Messages|Quotes|ManPages$|ManDate|Plan|CheckMountpoint|UsersOf|HelperArgs|MountOptions$|Defaults|" +
		"SplitOptions|KnowsAllWords|RawView|TestWriteMounts|VersionLine"
)

// suites are what can be run. Of parts that run beside each other the longest come
// first, so that none is left for the end.
var suites = map[string][]part{
	"test": {
		{title: "integration", packages: []string{"./integration"}, flags: []string{"-skip=" + guests}},
		{title: "the program", packages: []string{"./cmd/..."}},
		{title: "guests and libvirt", packages: []string{"./integration"}, flags: []string{"-run=" + guests}},
		{title: "chain and overlay, one thing at a time", packages: []string{"./chain/...", "./overlay/..."}, flags: []string{"-run=" + single + "|" + sequential, "-skip=" + crash}},
		{title: "overlay, with the race detector", packages: []string{"./overlay/..."}, flags: []string{"-race", "-skip=" + crash + "|" + single + "|" + sequential}},
		{title: "chain, with the race detector", packages: []string{"./chain/..."}, flags: []string{"-race", "-skip=" + crash + "|" + single + "|" + sequential}},
		{title: "integration and the views of a mount, one piece each", packages: []string{
			"./fs/control", "./fs/partition", "./fs/prom", "./fs/show",
			"./integration/bench", "./integration/bigchain", "./integration/bulk", "./integration/guest", "./integration/harness",
			"./integration/packaging", "./integration/patience", "./integration/powercut", "./integration/rules", "./integration/stamps",
			"./integration/testrun", "./integration/turn", "./integration/words",
		}},
		{title: "power cuts and faults of a disk", packages: []string{"./chain"}, flags: []string{"-run=" + crash},
			testFlags: []string{"-crash.stride=16", "-fault.stride=32"}, env: crashes},
		{title: "faults while chain.json is written", packages: []string{"./chain/manifest"}, flags: []string{"-run=" + crash}},
		{title: "the program, with the race detector", packages: []string{"./cmd/varve"}, flags: []string{"-race", "-run=" + beside}},
		{title: "FUSE, with the race detector", packages: []string{"./fs", "./fs/device"}, flags: []string{"-race"}},
		{title: "the program's packages, with the race detector", packages: []string{
			"./cmd/varve/internal/aside", "./cmd/varve/internal/background", "./cmd/varve/internal/client", "./cmd/varve/internal/holders", "./cmd/varve/internal/keep",
			"./cmd/varve/internal/logfile", "./cmd/varve/internal/output", "./cmd/varve/internal/progress", "./cmd/varve/internal/session",
			"./cmd/varve/internal/waiting",
		}, flags: []string{"-race"}},
		{title: "power cuts and faults of a layer", packages: []string{"./overlay"}, flags: []string{"-run=" + crash},
			testFlags: []string{"-crash.runs=4", "-crash.stride=2", "-fault.stride=2"}, env: crashes},
		{title: "a disk against the model, with the race detector", packages: []string{"./chain"}, flags: []string{"-race", "-run=DiskAgainstModel"},
			testFlags: []string{"-model.seed=1", "-model.steps=60"}},
	},
	"fast": {
		{title: "the program", packages: []string{"./cmd/varve"}, flags: []string{"-short", "-run=" + basics}},
		{title: "chain", packages: []string{"./chain/..."}, flags: []string{"-short", "-skip=" + crash + "|" + slow}},
		{title: "overlay", packages: []string{"./overlay/..."}, flags: []string{"-short", "-skip=" + crash + "|" + slow}},
		{title: "FUSE and the program's packages", packages: []string{"./fs/...", "./cmd/varve/internal/..."}, flags: []string{"-short", "-skip=" + slow}},
		{title: "power cuts and faults", packages: []string{"./chain", "./overlay"}, flags: []string{"-short", "-run=" + crash, "-skip=" + slow},
			testFlags: []string{"-crash.stride=250", "-fault.stride=250"}, env: crashes},
	},
	"long": {
		{title: "chain, with the race detector", packages: []string{"./chain/..."}, flags: []string{"-race"}, env: long},
		{title: "overlay, with the race detector", packages: []string{"./overlay/..."}, flags: []string{"-race"}, env: long},
		{title: "the program, with the race detector", packages: []string{"./cmd/..."}, flags: []string{"-race"}, env: long},
		{title: "FUSE, with the race detector", packages: []string{"./fs/..."}, flags: []string{"-race"}, env: long},
		{title: "integration, of a program with the race detector", packages: []string{"./integration/..."}, env: append(long, "VARVE_RACE=1")},
	},
}

var (
	long = []string{"VARVE_LONG=1"}
	// A host in memory makes garbage by the gigabyte.
	crashes = []string{"GOGC=400"}
)

func suiteNames() []string { return slices.Sorted(maps.Keys(suites)) }

// titled gives the parts whose title contains a text.
func titled(parts []part, text string) []part {
	return slices.DeleteFunc(slices.Clone(parts), func(p part) bool { return !strings.Contains(p.title, text) })
}
