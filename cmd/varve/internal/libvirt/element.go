package libvirt

import (
	"encoding/xml"
	"fmt"
	"slices"
	"strings"

	"varve/chain"
)

// element is an XML element with all that is in it; comments are left out.
type element struct {
	XMLName  xml.Name
	Attrs    []xml.Attr `xml:",any,attr"`
	Children []element  `xml:",any"`
	Text     string     `xml:",chardata"`
}

// child is the first element of a name in e, the zero value where there is none.
func (e element) child(name string) element {
	for _, c := range e.Children {
		if c.XMLName.Local == name {
			return c
		}
	}
	return element{}
}

func (e element) has(name string) bool { return e.child(name).XMLName.Local != "" }

func (e element) attribute(name string) string {
	for _, a := range e.Attrs {
		if a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}

// set gives e an attribute, in its place where it has it already.
func (e *element) set(name, value string) {
	for i, a := range e.Attrs {
		if a.Name.Local == name {
			e.Attrs[i].Value = value
			return
		}
	}
	e.Attrs = append(e.Attrs, xml.Attr{Name: xml.Name{Local: name}, Value: value})
}

func (e *element) drop(names ...string) {
	e.Children = slices.DeleteFunc(e.Children, func(c element) bool { return slices.Contains(names, c.XMLName.Local) })
}

func (e element) clone() element {
	e.Attrs = slices.Clone(e.Attrs)
	e.Children = slices.Clone(e.Children)
	for i, c := range e.Children {
		e.Children[i] = c.clone()
	}
	return e
}

// On gives the XML of the disk as the domain is to have it on a raw file: everything as
// it is, its target and its options too, but for what belongs to the file that it had.
func (d Disk) On(raw string) string {
	e := d.definition.clone()
	e.set("type", "file")
	if e.attribute("device") == "lun" { // which passes commands on to a SCSI device
		e.set("device", "disk")
	}
	e.Attrs = slices.DeleteFunc(e.Attrs, func(a xml.Attr) bool {
		return slices.Contains([]string{"rawio", "sgio"}, a.Name.Local)
	})
	driver := e.child("driver").clone()
	driver.XMLName.Local = "driver"
	driver.set("name", "qemu")
	driver.set("type", "raw")
	driver.drop("metadata_cache")
	driver.Attrs = slices.DeleteFunc(driver.Attrs, func(a xml.Attr) bool { return a.Name.Local == "discard_no_unref" })
	source := element{XMLName: xml.Name{Local: "source"}}
	source.set("file", raw)
	e.drop("driver", "source", "backingStore", "mirror", "encryption", "auth")
	e.Children = append([]element{driver, source}, e.Children...)
	var b strings.Builder
	e.write(&b, "")
	return b.String()
}

// write writes e as libvirt does, with a line for each element.
func (e element) write(b *strings.Builder, indent string) {
	name := e.XMLName.Local
	fmt.Fprintf(b, "%s<%s", indent, name)
	for _, a := range e.Attrs {
		fmt.Fprintf(b, " %s='%s'", a.Name.Local, escape(a.Value))
	}
	text := strings.TrimSpace(e.Text)
	switch {
	case len(e.Children) > 0:
		b.WriteString(">\n")
		for _, c := range e.Children {
			c.write(b, indent+"  ")
		}
		fmt.Fprintf(b, "%s</%s>\n", indent, name)
	case text != "":
		fmt.Fprintf(b, ">%s</%s>\n", escape(text), name)
	default:
		b.WriteString("/>\n")
	}
}

// escape writes text so that it is one line, for a shell to read too: the definition of
// a domain may be another user's.
func escape(text string) string {
	var b strings.Builder
	for _, r := range text {
		switch {
		case r < ' ' || r == 0x7f || strings.ContainsRune(`<>&'"!`, r):
			fmt.Fprintf(&b, "&#%d;", r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// Update is the command, for a shell, that puts a disk's XML in the place of the one that
// the domain has at the same target, for its next start. It ends with a newline.
func (d Domain) Update(xml string) string {
	const arguments = " /dev/stdin --config"
	command := d.Virsh("update-device " + chain.ShellWord(d.Name) + arguments)
	if d.as != "" {
		// virsh opens /dev/stdin anew, and what the shell of the caller made of the lines
		// below is the caller's alone. So it gets a pipe of its own user's.
		command = d.as + "sh -c 'cat | " + d.virsh + ` update-device "$1"` + arguments + "' sh " + chain.ShellWord(d.Name)
	}
	return command + " <<'END'\n" + xml + "END\n"
}
