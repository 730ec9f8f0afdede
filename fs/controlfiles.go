package fs

// ControlFile is a file of control/, in words.
type ControlFile struct {
	Name    string
	Usage   string // completes "write …"
	Example string // a line to write
}

// ControlFiles lists the files of control/, for documents that name them.
func ControlFiles() []ControlFile {
	var list []ControlFile
	for _, c := range commands() {
		list = append(list, ControlFile{c.name, c.usage, c.example})
	}
	return list
}
