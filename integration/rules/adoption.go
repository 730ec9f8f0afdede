package main

// adoptionMutants: M20, and what M16 says of a disk that is made.
var adoptionMutants = []mutant{
	one("M20", "a qcow2 header decides", "chain/topformat.go",
		"	case found.Qcow2 && (said == formatQcow2 || namedQcow2(path)):", "	case found.Qcow2:",
		"chain.TestGuestsQcow2"),
	one("M20", "a name decides against the VM's definition", "chain/topformat.go",
		"	case format == formatRaw && found.Qcow2 && namedQcow2(path):", "	case false && format == formatRaw && found.Qcow2 && namedQcow2(path):",
		"chain.TestGuestsQcow2"),
	one("M20", "of claims that differ the first decides", "chain/topformat.go",
		"	case other != Claim{}:", "	case false && other != Claim{}:",
		"chain.TestGuestsQcow2"),
	one("M20", "a definition that others can write is believed", "cmd/varve/internal/libvirt/witness.go",
		"			if d.Trusted && h.Resolve(disk.Path) == path {", "			if h.Resolve(disk.Path) == path {",
		"cmd/varve/internal/libvirt.TestFormats"),
	one("M20", "a layer is named by the overlay above it alone", "cmd/varve/internal/libvirt/witness.go",
		"d.Before != \"\" && hasOver && hasBefore && before == over+1 {\n				found = before", "hasOver && over+1 < len(files) {\n				found = over + 1 + 0*before",
		"cmd/varve/internal/libvirt.TestStates"),
	one("M20", "a layer is named after its file's snapshot", "chain/adoptnames.go",
		"			given, layers[i].about, known = s.Name, s.By, true\n", "			given, layers[max(i-1, 0)].about, known = s.Name, s.By, true\n			layers[max(i-1, 0)].name = s.Name\n",
		"chain.TestAdoptedNames"),
	one("M16", "a snapshot that is made with the disk is not durable with its time", "chain/create.go",
		"			if err := syncFile(fs, path); err != nil {", "			if err := error(nil); err != nil {",
		"chain.TestPowerCutCreate"),
}
