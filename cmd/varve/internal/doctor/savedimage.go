package doctor

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/cmd/varve/internal/libvirt"
)

// savedImage is the memory of a VM that libvirt keeps to resume it: what "virsh
// managedsave" leaves, and libvirt-guests at shutdown. The next start goes on with it,
// whatever its disks hold by then.
type savedImage struct {
	vm          // as it was when it was saved
	File string // absolute
	User string // whose libvirt it is, "" for the system's
	Of   int    // that user's uid; 0 for the system's
}

// savedImages finds the images that libvirt would resume. hidden says that there are
// directories that may not be looked at. libvirt looks for a domain's image under the domain's
// name, and refuses one that is another domain's by its content (libvirt,
// src/qemu/qemu_driver.c: qemuDomainManagedSavePath, qemuDomainObjRestore): a file under another
// name, such as a copy, is never resumed.
func (m *machine) savedImages() (list []savedImage, hidden bool) {
	for _, dir := range m.saveDirectories() {
		if !m.answers(dir.path) {
			continue
		}
		path := filepath.Join(m.root, dir.path)
		entries, err := os.ReadDir(path)
		hidden = hidden || errors.Is(err, os.ErrPermission)
		for _, e := range entries {
			if filepath.Ext(e.Name()) != ".save" {
				continue
			}
			v, err := readSavedImage(filepath.Join(path, e.Name()))
			hidden = hidden || errors.Is(err, os.ErrPermission)
			if err == nil && e.Name() == v.Name+".save" {
				list = append(list, savedImage{vm: v, File: filepath.Join(dir.path, e.Name()), User: dir.user, Of: dir.uid})
			}
		}
	}
	return list, hidden
}

// saveDirectory is where a libvirtd keeps managed-save images.
type saveDirectory struct {
	path, user string
	uid        int
}

// saveDirectories are those of the system's libvirtd and of each user's own (libvirt,
// src/qemu/qemu_conf.c: saveDir).
func (m *machine) saveDirectories() []saveDirectory {
	list := []saveDirectory{{"/var/lib/libvirt/qemu/save", "", 0}}
	for line := range strings.Lines(m.read("etc/passwd")) {
		f := strings.Split(strings.TrimSpace(line), ":") // name:password:uid:gid:gecos:home:shell
		if len(f) < 7 || !filepath.IsAbs(f[5]) || f[5] == "/" || f[5] == "/nonexistent" {
			continue
		}
		if uid, err := strconv.Atoi(f[2]); err == nil {
			list = append(list, saveDirectory{filepath.Join(f[5], ".config/libvirt/qemu/save"), f[0], uid})
		}
	}
	return list
}

// The header of a saved image (libvirt, src/qemu/qemu_saveimage.h: virQEMUSaveHeader): the
// magic, then 32-bit numbers in the byte order of the host that saved it: the version, the
// length of the domain's XML that follows the header, and 17 more.
const (
	savedMagic      = "LibvirtQemudSave"
	savedHeaderSize = len(savedMagic) + 19*4
	maxSavedXML     = 4 << 20
)

// readSavedImage reads the domain of a saved image.
func readSavedImage(path string) (vm, error) {
	// A user's directory may hold anything: an open of a FIFO would wait for its writer.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return vm{}, err
	}
	defer f.Close() // read only
	info, err := f.Stat()
	if err != nil {
		return vm{}, err
	}
	if !info.Mode().IsRegular() {
		return vm{}, fmt.Errorf("%s is no file", path)
	}
	return parseSavedImage(f, path)
}

func parseSavedImage(r io.Reader, path string) (vm, error) {
	header := make([]byte, savedHeaderSize)
	if _, err := io.ReadFull(r, header); err != nil || !bytes.HasPrefix(header, []byte(savedMagic)) {
		return vm{}, fmt.Errorf("%s is no saved image of libvirt", path)
	}
	numbers := header[len(savedMagic):]
	order := binary.ByteOrder(binary.LittleEndian)
	if order.Uint32(numbers) > 0xffff { // versions are small
		order = binary.BigEndian
	}
	length := order.Uint32(numbers[4:])
	if length == 0 || length > maxSavedXML {
		return vm{}, fmt.Errorf("%s says that its domain has %d bytes", path, length)
	}
	text := make([]byte, length)
	if _, err := io.ReadFull(r, text); err != nil {
		return vm{}, fmt.Errorf("read the domain of %s: %w", path, err)
	}
	if end := bytes.IndexByte(text, 0); end >= 0 {
		text = text[:end]
	}
	d, ok := libvirt.ParseDomain(text)
	if !ok {
		return vm{}, fmt.Errorf("%s has no domain", path)
	}
	return vmOf(d), nil
}

// remove is the command that gives up a saved image.
func (i savedImage) remove() []string {
	if i.User == "" {
		return []string{"virsh", "-c", "qemu:///system", "managedsave-remove", i.Name}
	}
	return []string{"virsh", "-c", "qemu:///session", "managedsave-remove", i.Name}
}

// removal is remove in words for a shell of the user with a uid.
func (i savedImage) removal(uid int) string {
	var words []string
	for _, word := range i.remove() {
		words = append(words, chain.ShellWord(word))
	}
	text := strings.Join(words, " ")
	if i.User != "" && i.Of != uid {
		text = "runuser -u " + chain.ShellWord(i.User) + " -- " + text
	}
	return text
}
