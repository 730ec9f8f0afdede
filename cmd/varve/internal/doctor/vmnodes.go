package doctor

import (
	"encoding/json"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// blockNode is a node of QEMU's block layer as options describe it. The values
// are strings, "on" and "off" for booleans, or the options of a node below it.
type blockNode map[string]any

// text is a value that is a string, "" when there is none.
func (n blockNode) text(key string) string {
	s, _ := n[key].(string)
	return s
}

// below is a value that has options itself.
func (n blockNode) below(key string) blockNode {
	sub, _ := n[key].(blockNode)
	return sub
}

// on is a boolean, absent when it is not given.
func (n blockNode) on(key string, absent bool) bool {
	switch n.text(key) {
	case "on", "yes", "true", "y":
		return true
	case "off", "no", "false", "n":
		return false
	}
	return absent
}

// nest makes nodes of keys with dots in them.
func nest[V any](flat map[string]V) blockNode {
	n := blockNode{}
	// The shorter key first: what is a string cannot have options too.
	for _, key := range slices.Sorted(maps.Keys(flat)) {
		at, rest := n, key
		for {
			name, more, dotted := strings.Cut(rest, ".")
			if !dotted {
				at[name] = flat[key]
				break
			}
			sub := at.below(name)
			if sub == nil {
				if at[name] != nil {
					break
				}
				sub = blockNode{}
				at[name] = sub
			}
			at, rest = sub, more
		}
	}
	return n
}

// parseJSONNode reads a node from JSON, in which dots may stand for nesting too.
func parseJSONNode(s string) (n blockNode, ok bool) {
	var object map[string]any
	if json.Unmarshal([]byte(s), &object) != nil {
		return nil, false
	}
	return fromJSON(object), true
}

func fromJSON(object map[string]any) blockNode {
	flat := map[string]any{}
	for key, value := range object {
		switch v := value.(type) {
		case string:
			flat[key] = v
		case bool:
			flat[key] = map[bool]string{true: "on", false: "off"}[v]
		case map[string]any:
			flat[key] = fromJSON(v)
		}
	}
	return nest(flat)
}

// driveNode makes a node of the options of a -drive, which has words of its own
// beside those of nodes.
func (c *commandLine) driveNode(options map[string]string) blockNode {
	options = maps.Clone(options)
	// These may stand beside options of the same node: file=x,file.locking=off.
	file, cache := options["file"], options["cache"]
	delete(options, "file")
	delete(options, "cache")
	n := nest(options)
	if format := n.text("format"); format != "" {
		n["driver"] = format
	}
	if n.on("readonly", false) || n.text("media") == "cdrom" {
		n["read-only"] = "on"
	}
	if cache == "unsafe" {
		n["cache"] = blockNode{"no-flush": "on"}
	}
	if file != "" {
		sub := n.below("file")
		if sub == nil {
			sub = blockNode{}
			n["file"] = sub
		}
		sub["filename"] = file
	}
	return n
}

// inherited is what a node has from the one above it.
type inherited struct {
	format   string // of the file; "" when it is guessed
	readOnly bool
	noFlush  bool
}

// maxOptions limits how many options of nodes are looked at: names may make a circle
// of them.
const maxOptions = 100_000

// resolve finds the files of all drives and nodes.
func (c *commandLine) resolve() {
	for _, n := range c.drives {
		from := inherited{readOnly: c.snapshot || n.on("snapshot", false)}
		if n.text("driver") == "file" {
			from.format = "raw"
		}
		c.walk(n, from)
	}
	named, referred := map[string]blockNode{}, map[string]bool{}
	for _, n := range c.nodes {
		named[n.text("node-name")] = n
	}
	delete(named, "")
	for _, n := range c.nodes {
		n.refer(named, referred)
	}
	for _, n := range c.nodes {
		// A file that a device or an export has directly is raw.
		if !referred[n.text("node-name")] {
			c.walk(n, inherited{format: "raw"})
		}
	}
}

// refer puts the nodes that are named in place of their names.
func (n blockNode) refer(named map[string]blockNode, referred map[string]bool) {
	for key, value := range n {
		switch v := value.(type) {
		case blockNode:
			v.refer(named, referred)
		case string:
			if sub := named[v]; sub != nil && isChild(key) {
				n[key] = reference(sub)
				referred[v] = true
			}
		}
	}
}

// reference is a node that another names: it inherits no options.
type reference blockNode

// isChild says whether an option names a node below.
func isChild(key string) bool {
	switch key {
	case "file", "backing", "image", "raw", "test", "target", "top", "bottom", "data-file":
		return true
	}
	return false
}

// maxDisks is how many disks of a VM are looked at.
const maxDisks = 1000

// walk finds the files of a node and of those below it.
func (c *commandLine) walk(n blockNode, from inherited) {
	if c.visited += 1 + len(n); c.visited > maxOptions {
		return
	}
	from.readOnly = n.on("read-only", from.readOnly)
	from.noFlush = n.below("cache").on("no-flush", from.noFlush)
	driver := n.text("driver")
	switch driver {
	case "raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx", "vpc", "luks", "parallels", "dmg", "bochs", "cloop":
		from.format = driver
	case "", "file", "host_device", "host_cdrom":
		if name := n.text("filename"); name != "" {
			c.file(n, name, from)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(n)) {
		below := from
		if key == "backing" {
			below.readOnly, below.format = true, ""
		}
		switch sub := n[key].(type) {
		case blockNode:
			c.walk(sub, below)
		case reference:
			// What is read only when it can be is that below a reader.
			alone := inherited{format: below.format}
			alone.readOnly = below.readOnly && blockNode(sub).on("auto-read-only", false)
			c.walk(blockNode(sub), alone)
		}
	}
}

// file takes the file of a node.
func (c *commandLine) file(n blockNode, name string, from inherited) {
	if object, ok := strings.CutPrefix(name, "json:"); ok && n.text("driver") == "" {
		if sub, ok := parseJSONNode(object); ok {
			c.walk(sub, from)
		}
		return
	}
	if n.text("driver") == "" {
		// A colon before the first slash parts a protocol from the rest.
		for _, protocol := range []string{"file:", "host_device:", "host_cdrom:"} {
			name = strings.TrimPrefix(name, protocol)
		}
		if before, _, found := strings.Cut(name, ":"); found && !strings.Contains(before, "/") {
			return
		}
	}
	if !filepath.IsAbs(name) {
		if c.cwd == "" {
			return
		}
		name = filepath.Join(c.cwd, name)
	}
	d := vmDisk{Path: filepath.Clean(name), Format: from.format, ReadOnly: from.readOnly, NoFlush: from.noFlush}
	d.NoLock = n.text("locking") == "off"
	for i, known := range c.Disks {
		// Two nodes on one file: what one of them does is done.
		if known.Path == d.Path {
			c.Disks[i].ReadOnly = known.ReadOnly && d.ReadOnly
			c.Disks[i].NoFlush = known.NoFlush || d.NoFlush
			c.Disks[i].NoLock = known.NoLock || d.NoLock
			return
		}
	}
	if len(c.Disks) < maxDisks {
		c.Disks = append(c.Disks, d)
	}
}
