package doctor

import (
	"path/filepath"
	"strings"

	"varve/cmd/varve/internal/libvirt"
)

// vmDisk is an image file that the command line of a VM names.
type vmDisk struct {
	Path     string // absolute and clean, as the VM's own file system has it
	Format   string // "" when the VM guesses it from the content
	ReadOnly bool   // never written by the VM; also with snapshot=on
	NoFlush  bool   // flushes are ignored (cache=unsafe)
	NoLock   bool   // opened without a lock (file.locking=off)

	Below   []string      // what it stands on, as far as libvirt's XML says, top first
	defined *libvirt.Disk // of a domain that is defined
}

// commandLine is what the command line of a VM, or of another program of QEMU's,
// says of its disks.
type commandLine struct {
	Name  string // of the VM; "" where none is given
	Disks []vmDisk

	cwd      string
	snapshot bool        // -snapshot: all drives
	drives   []blockNode // of -drive and its kin
	nodes    []blockNode // of -blockdev
	visited  int
}

// program is a kind of program that opens images, by its options.
type program int

const (
	noProgram program = iota
	qemuSystem
	qemuStorageDaemon
	qemuNBD
	cloudHypervisor
)

// programOf tells what a program is by its name, which may be one that the
// kernel has cut to 15 bytes.
func programOf(name string) program {
	switch name = filepath.Base(name); {
	case strings.HasPrefix(name, "qemu-system-"), name == "qemu-kvm", name == "kvm", name == "qemu":
		return qemuSystem
	case strings.HasPrefix(name, "qemu-storage-da"):
		return qemuStorageDaemon
	case name == "qemu-nbd":
		return qemuNBD
	case strings.HasPrefix(name, "cloud-hyperviso"):
		return cloudHypervisor
	}
	return noProgram
}

// parseCommandLine reads the arguments of a program that runs in the directory
// cwd. What it does not understand it leaves out.
func parseCommandLine(p program, args []string, cwd string) commandLine {
	c := commandLine{cwd: cwd}
	if len(args) == 0 {
		return c
	}
	switch args = args[1:]; p {
	case qemuSystem:
		c.system(args)
	case qemuStorageDaemon:
		c.storageDaemon(args)
	case qemuNBD:
		c.nbd(args)
	case cloudHypervisor:
		c.cloudHypervisor(args)
	}
	c.resolve()
	return c
}

// system reads the arguments of qemu-system-*.
func (c *commandLine) system(args []string) {
	for i := 0; i < len(args); i++ {
		name, isOption := strings.CutPrefix(args[i], "-")
		if !isOption || name == "" {
			c.hardDisk(args[i])
			continue
		}
		name = strings.TrimPrefix(name, "-") // --drive is -drive
		if name == "snapshot" {
			c.snapshot = true
		}
		if noValue[name] || i+1 == len(args) {
			continue
		}
		i++
		switch value := args[i]; name {
		case "drive":
			c.drive(value)
		case "blockdev":
			c.blockdev(value)
		case "name":
			c.Name = keyValues(value, "guest")["guest"]
		case "hda", "hdb", "hdc", "hdd", "sd", "mtdblock", "fda", "fdb", "pflash":
			c.hardDisk(value)
		case "cdrom":
			c.drives = append(c.drives, c.driveNode(map[string]string{"file": value, "media": "cdrom"}))
		}
	}
}

// hardDisk is a file name alone, in which no character has a meaning of its own.
func (c *commandLine) hardDisk(file string) {
	c.drives = append(c.drives, c.driveNode(map[string]string{"file": file}))
}

func (c *commandLine) drive(value string) {
	c.drives = append(c.drives, c.driveNode(keyValues(value, "")))
}

func (c *commandLine) blockdev(value string) {
	if strings.HasPrefix(value, "{") {
		if n, ok := parseJSONNode(value); ok {
			c.nodes = append(c.nodes, n)
		}
		return
	}
	c.nodes = append(c.nodes, nest(keyValues(value, "driver")))
}

// storageDaemon reads the arguments of qemu-storage-daemon.
func (c *commandLine) storageDaemon(args []string) {
	for i := 0; i < len(args); i++ {
		if value, ok := strings.CutPrefix(args[i], "--blockdev="); ok {
			c.blockdev(value)
		} else if args[i] == "--blockdev" && i+1 < len(args) {
			i++
			c.blockdev(args[i])
		}
	}
}

// nbd reads the arguments of qemu-nbd: options in any order, and one image.
func (c *commandLine) nbd(args []string) {
	drive, image, isNode := map[string]string{}, "", false
	take := func(name, value string) {
		switch name {
		case "f", "format":
			drive["format"] = value
		case "r", "read-only":
			drive["readonly"] = "on"
		case "s", "snapshot", "l", "load-snapshot":
			drive["snapshot"] = "on"
		case "cache":
			drive["cache"] = value
		case "image-opts":
			isNode = true
		}
	}
	for i := 0; i < len(args); i++ {
		arg := args[i]
		long, isLong := strings.CutPrefix(arg, "--")
		switch {
		case isLong:
			name, value, given := strings.Cut(long, "=")
			if !given && strings.Contains(nbdLong, " "+name+" ") && i+1 < len(args) {
				i++
				value = args[i]
			}
			take(name, value)
		case len(arg) > 1 && arg[0] == '-':
			for j := 1; j < len(arg); j++ { // -rf raw, -fraw
				name, value := arg[j:j+1], ""
				if strings.Contains(nbdShort, name) {
					if value = arg[j+1:]; value == "" && i+1 < len(args) {
						i++
						value = args[i]
					}
					take(name, value)
					break
				}
				take(name, "")
			}
		default:
			image = arg
		}
	}
	switch {
	case image == "":
	case isNode:
		n := keyValues(image, "file")
		for key, value := range drive {
			n[key] = value
		}
		c.drives = append(c.drives, c.driveNode(n))
	default:
		drive["file"] = image
		c.drives = append(c.drives, c.driveNode(drive))
	}
}

// Options of qemu-nbd that take a value, as of QEMU 7.2.
const (
	nbdShort = "bpokefxDBTcdl"
	nbdLong  = " port bind socket shared export-name description offset bitmap object tls-creds tls-authz tls-hostname trace" +
		" pid-file selinux-label connect disconnect format load-snapshot cache aio discard detect-zeroes "
)

// cloudHypervisor reads the arguments of cloud-hypervisor: --disk takes all words
// up to the next option.
func (c *commandLine) cloudHypervisor(args []string) {
	ofDisk := false
	for _, arg := range args {
		if strings.HasPrefix(arg, "--") {
			name, value, given := strings.Cut(arg[2:], "=")
			if ofDisk = name == "disk"; !ofDisk || !given {
				continue
			}
			arg = value
		}
		if !ofDisk {
			continue
		}
		disk := keyValues(arg, "")
		if path := disk["path"]; path != "" {
			c.drives = append(c.drives, c.driveNode(map[string]string{
				"file": path, "format": strings.ToLower(disk["image_type"]), "readonly": disk["readonly"],
			}))
		}
	}
}

// keyValues parts options at commas, of which two stand for one that parts
// nothing. What has no = is the value of the key first when it comes first, and
// switched on otherwise.
func keyValues(s, first string) map[string]string {
	pairs := map[string]string{}
	for i := 0; s != ""; i++ {
		var pair string
		pair, s = cutOption(s)
		key, value, given := strings.Cut(pair, "=")
		switch {
		case pair == "":
		case given:
			pairs[key] = value
		case i == 0 && first != "":
			pairs[first] = key
		default:
			pairs[key] = "on"
		}
	}
	return pairs
}

// cutOption cuts off what stands before the first comma that parts.
func cutOption(s string) (option, rest string) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == ',' {
			if i+1 == len(s) || s[i+1] != ',' {
				return b.String(), s[i+1:]
			}
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String(), ""
}

// noValue are the options of qemu-system-* that take no value; all others do, also
// those that newer versions have (qemu-options.hx, versions 2.0 to 10.0).
var noValue = func() map[string]bool {
	set := map[string]bool{}
	for name := range strings.FieldsSeq(`h help version S s snapshot nographic curses sdl full-screen portrait no-frame alt-grab
		ctrl-grab no-quit usb win2k-hack no-fd-bootchk no-acpi no-hpet enable-kvm enable-hax no-kvm no-kvm-irqchip no-kvm-pit
		no-kvm-pit-reinjection xen-attach xen-create xen-domid-restrict no-reboot no-shutdown daemonize singlestep
		one-insn-per-tb preconfig only-migratable mem-prealloc nodefaults no-user-config nouserconfig enable-fips semihosting
		old-param enable-sync-profile tdf rtc-td-hack audio-help`) {
		set[name] = true
	}
	return set
}()
