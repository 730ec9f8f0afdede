package sniff

import (
	"bytes"
	"encoding/binary"
	"strconv"
	"strings"
)

// converts is the command for what qemu-img reads.
func converts(format string) string { return "qemu-img convert -f " + format + " -O raw IN OUT" }

// formats are looked through in this order: what stands at the front comes first. Each
// has the source of what it is recognised by. The ways out of qemu-img are those of
// the formats that it reads.
var formats = []entry{
	// Images. QEMU's block drivers, block/NAME.c, *_probe.
	{Format{Name: "a qcow image (version 1)", wayOut: converts("qcow")}, "QFI\xfb\x00\x00\x00\x01", 0, nil},                                           // qcow.c
	{Format{Name: "a qcow2 image", Qcow2: true}, "QFI\xfb", 0, nil},                                                                                   // qcow2.c
	{Format{Name: "a QED image", wayOut: converts("qed")}, "QED\x00", 0, nil},                                                                         // qed.h
	{Format{Name: "a VMDK image (VMware)", wayOut: converts("vmdk")}, "KDMV", 0, nil},                                                                 // vmdk.c, VMDK4_MAGIC; streamOptimized too
	{Format{Name: "a VMDK image (VMware ESX)", wayOut: converts("vmdk")}, "COWD", 0, nil},                                                             // vmdk.c, VMDK3_MAGIC
	{Format{Name: "a part of a VMDK image (VMware, seSparse)", wayOut: seSparse}, "\xbe\xba\xfe\xca\x00\x00\x00\x00", 0, nil},                         // vmdk.c, SESPARSE_CONST_HEADER_MAGIC
	{Format{Name: "the descriptor of a VMDK image (VMware), a text that names the files with the data", wayOut: converts("vmdk")}, "", 0, descriptor}, // vmdk.c, vmdk_probe
	{Format{Name: "a VDI image (VirtualBox)", wayOut: converts("vdi")}, "\x7f\x10\xda\xbe", 0x40, nil},                                                // vdi.c, VDI_SIGNATURE
	{Format{Name: "a VHDX image (Hyper-V)", wayOut: converts("vhdx")}, "vhdxfile", 0, nil},                                                            // vhdx.h
	{Format{Name: "a VHD image (Hyper-V, Azure)", wayOut: converts("vpc")}, "conectix", 0, nil},                                                       // vpc.c; a dynamic one has its footer here too
	{Format{Name: "a Parallels image", wayOut: converts("parallels")}, "WithoutFreeSpace", 0, nil},                                                    // parallels.c
	{Format{Name: "a Parallels image", wayOut: converts("parallels")}, "WithouFreSpacExt", 0, nil},                                                    // parallels.c
	{Format{Name: "a Bochs image", wayOut: converts("bochs")}, "Bochs Virtual HD Image", 0, nil},                                                      // bochs.c
	{Format{Name: "a cloop image", wayOut: converts("cloop")}, "#!/bin/sh\n#V2.0 Format\nmodprobe cloop", 0, nil},                                     // cloop.c
	// A guest can encrypt a whole disk, and QEMU can decrypt disk.raw.
	{Format{Name: "a LUKS container", Raw: true}, "LUKS\xba\xbe", 0, nil}, // crypto/block-luks.c; cryptsetup's luks2-format, both versions

	// What holds an image, or is made of one.
	{Format{Name: "a backup of Proxmox (VMA)", wayOut: "vma extract IN DIR"}, "VMA\x00", 0, nil},                                                                    // pve-qemu, vma_spec.txt
	{Format{Name: "a WIM archive (Windows)", wayOut: "it is no disk; wimapply of wimtools writes it to a file system"}, "MSWIM\x00\x00\x00", 0, nil},                // wimlib, header.h
	{Format{Name: "an image of partclone", wayOut: "partclone.restore -C -s IN -O OUT"}, "partclone-image", 0, nil},                                                 // partclone, IMAGE_FORMATS.md
	{Format{Name: "an image of ntfsclone", wayOut: "ntfsclone --restore-image --overwrite OUT IN"}, "\x00ntfsclone-image", 0, nil},                                  // ntfs-3g, ntfsclone.c
	{Format{Name: "an EWF image (EnCase)", wayOut: "ewfexport -f raw IN"}, "EVF\x09\x0d\x0a\xff\x00", 0, nil},                                                       // libewf, EWF specification
	{Format{Name: "an EWF image (EnCase 7)", wayOut: "ewfexport -f raw IN"}, "EVF2\x0d\x0a\x81\x00", 0, nil},                                                        // libewf, EWF2 specification
	{Format{Name: "an AFF image", wayOut: "affconvert -r IN"}, "AFF10\x0d\x0a\x00", 0, nil},                                                                         // afflib, afflib_i.h
	{Format{Name: "a sparse image of Android", wayOut: "simg2img IN OUT"}, "\x3a\xff\x26\xed", 0, androidSparse},                                                    // AOSP libsparse, sparse_format.h
	{Format{Name: "the state of a VM (QEMU), no disk", wayOut: "its disks are other files"}, "QEVM", 0, nil},                                                        // QEMU, migration/savevm.h
	{Format{Name: "the state of a VM (virsh save), no disk", wayOut: "its disks are other files; virsh save-image-dumpxml names them"}, "LibvirtQemudSave", 0, nil}, // libvirt, qemu_saveimage.h

	// Archives and compressed files.
	{Format{Name: "an OVA (a tar archive with images in it)", wayOut: "tar -xf IN, then qemu-img convert -f vmdk -O raw of the .vmdk in it"}, "ustar", 257, ova}, // POSIX pax; DMTF DSP0243
	{Format{Name: "a tar archive", wayOut: "tar -xf IN"}, "ustar", 257, tar},
	{Format{Name: "compressed with gzip", wayOut: "gzip -dc IN > OUT"}, "\x1f\x8b\x08", 0, nil},                             // RFC 1952
	{Format{Name: "compressed with xz", wayOut: "xz -dc IN > OUT"}, "\xfd7zXZ\x00", 0, nil},                                 // xz-file-format.txt
	{Format{Name: "compressed with zstd", wayOut: "zstd -d IN -o OUT"}, "\x28\xb5\x2f\xfd", 0, nil},                         // RFC 8878
	{Format{Name: "compressed with zstd", wayOut: "zstd -d IN -o OUT"}, "\x2a\x4d\x18", 1, skippable},                       // RFC 8878, skippable frame; pzstd begins with one
	{Format{Name: "compressed with bzip2", wayOut: "bzip2 -dc IN > OUT"}, "BZh", 0, bzip2},                                  // bzip2, compress.c
	{Format{Name: "compressed with lz4", wayOut: "lz4 -d IN OUT"}, "\x04\x22\x4d\x18", 0, nil},                              // lz4_Frame_format.md
	{Format{Name: "compressed with lz4", wayOut: "lz4 -d IN OUT"}, "\x02\x21\x4c\x18", 0, nil},                              // the same, legacy
	{Format{Name: "compressed with lzop", wayOut: "lzop -d IN -o OUT"}, "\x89LZO\x00\x0d\x0a\x1a\x0a", 0, nil},              // lzop.c
	{Format{Name: "compressed with lzip", wayOut: "lzip -dc IN > OUT"}, "LZIP\x01", 0, nil},                                 // lzip.texi
	{Format{Name: "a zip archive", wayOut: "unzip IN"}, "PK\x03\x04", 0, nil},                                               // APPNOTE.TXT
	{Format{Name: "a 7z archive", wayOut: "7z x IN"}, "7z\xbc\xaf\x27\x1c", 0, nil},                                         // 7zFormat.txt
	{Format{Name: "a rar archive", wayOut: "unrar x IN"}, "Rar!\x1a\x07", 0, nil},                                           // technote.txt
	{Format{Name: "a page of the web, or another text in XML or HTML", wayOut: "download the image again"}, "<", 0, markup}, // an .ovf, or what a server says instead of an image

	// What stands at the end.
	{Format{Name: "a VHD image of a fixed size (Hyper-V, Azure)", wayOut: converts("vpc")}, "conectix", -512, nil},  // vpc.c
	{Format{Name: "a VHD image of a fixed size (Virtual PC 2004)", wayOut: converts("vpc")}, "conectix", -511, nil}, // vpc.c: its footer had 511 bytes
	{Format{Name: "a DMG image (macOS)", wayOut: converts("dmg")}, "koly", -512, nil},                               // dmg.c
}

const seSparse = "name the file with the descriptor, which names this one: qemu-img convert -f vmdk -O raw DESCRIPTOR.vmdk OUT"

// descriptor does as vmdk_probe: behind comments and empty lines stands the version.
func descriptor(p pieces) bool {
	comment := false
	for line := range strings.Lines(string(p.front[:min(len(p.front), 2048)])) {
		switch line = strings.TrimRight(line, "\r\n"); {
		case strings.HasPrefix(line, "#"):
			comment = comment || strings.EqualFold(strings.TrimSpace(strings.TrimPrefix(line, "#")), "disk descriptorfile")
		case strings.TrimSpace(line) == "":
		default:
			return comment && strings.HasPrefix(strings.ToLower(line), "version=")
		}
	}
	return false
}

// androidSparse checks the version and the length of the header.
func androidSparse(p pieces) bool {
	return len(p.front) >= 28 && binary.LittleEndian.Uint16(p.front[4:]) == 1 && binary.LittleEndian.Uint16(p.front[8:]) == 28
}

// tar checks the sum over the first header (POSIX pax, "ustar Interchange Format"): two
// words that stand in the first sector of a disk are no archive.
func tar(p pieces) bool {
	const at, length = 148, 8
	if len(p.front) < 512 {
		return false
	}
	said, err := strconv.ParseInt(strings.Trim(string(p.front[at:at+length]), " \x00"), 8, 64)
	sum := int64(0)
	for i, b := range p.front[:512] {
		if i >= at && i < at+length {
			b = ' '
		}
		sum += int64(b)
	}
	return err == nil && said == sum
}

// ova is a tar archive whose first file is the description.
func ova(p pieces) bool {
	name, _, _ := bytes.Cut(p.front[:min(len(p.front), 100)], []byte{0})
	return strings.HasSuffix(strings.ToLower(string(name)), ".ovf") && tar(p)
}

// skippable is a frame of zstd that holds nothing of the data.
func skippable(p pieces) bool { return p.front[0]&0xf0 == 0x50 }

// bzip2 checks the block size and the first block's magic, or that of the end.
func bzip2(p pieces) bool {
	return len(p.front) >= 10 && p.front[3] >= '1' && p.front[3] <= '9' &&
		(string(p.front[4:10]) == "1AY&SY" || string(p.front[4:10]) == "\x17\x72\x45\x38\x50\x90")
}

// markup is a text that begins as XML or HTML.
func markup(p pieces) bool {
	start := strings.ToLower(string(p.front[:min(len(p.front), 16)]))
	return strings.HasPrefix(start, "<?xml ") || strings.HasPrefix(start, "<!doctype html") || strings.HasPrefix(start, "<html")
}
