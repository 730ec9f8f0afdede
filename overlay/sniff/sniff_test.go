package sniff

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func sh(t testing.TB, dir, script string) string {
	t.Helper()
	cmd := exec.Command("sh", "-ec", script)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

func fileIs(t testing.TB, path string) (Format, bool) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	found, ok, err := File(f, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	return found, ok
}

// source makes src.raw, a disk of 1 MiB that holds something at both ends.
func source(t testing.TB, dir string) {
	t.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	d := make([]byte, 1<<20)
	for i := range 4096 {
		d[i], d[len(d)-1-i] = byte(random.Uint32()), byte(random.Uint32())
	}
	if err := os.WriteFile(filepath.Join(dir, "src.raw"), d, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestRealFiles: what qemu-img, packers and archivers make is recognised, and the way out
// that is given makes the disk of it that went in.
func TestRealFiles(t *testing.T) {
	for _, c := range []struct{ make, name, file, qemu string }{
		{"qemu-img convert -O vmdk src.raw a.vmdk", "a VMDK image (VMware)", "a.vmdk", "vmdk"},
		{"qemu-img convert -O vmdk -o subformat=streamOptimized src.raw a.vmdk", "a VMDK image (VMware)", "a.vmdk", "vmdk"},
		{"qemu-img convert -O vmdk -o subformat=monolithicFlat src.raw a.vmdk", "the descriptor of a VMDK", "a.vmdk", "vmdk"},
		{"qemu-img convert -O vmdk -o subformat=twoGbMaxExtentSparse src.raw a.vmdk", "the descriptor of a VMDK", "a.vmdk", "vmdk"},
		{"qemu-img convert -O vdi src.raw a.vdi", "a VDI image", "a.vdi", "vdi"},
		{"qemu-img convert -O vpc -o force_size src.raw a.vhd", "a VHD image (Hyper-V", "a.vhd", "vpc"},
		{"qemu-img convert -O vpc -o subformat=fixed,force_size src.raw a.vhd", "a VHD image of a fixed size", "a.vhd", ""},
		{"qemu-img convert -O vhdx src.raw a.vhdx", "a VHDX image", "a.vhdx", "vhdx"},
		{"qemu-img convert -O qed src.raw a.qed", "a QED image", "a.qed", "qed"},
		{"qemu-img convert -O parallels src.raw a.hds", "a Parallels image", "a.hds", "parallels"},
		{"qemu-img convert -O qcow src.raw a.qcow", "a qcow image (version 1)", "a.qcow", "qcow"},
		{"gzip -c src.raw > a.raw.gz", "compressed with gzip", "a.raw.gz", ""},
		{"xz -c src.raw > a.raw.xz", "compressed with xz", "a.raw.xz", ""},
		{"zstd -q src.raw -o a.raw.zst", "compressed with zstd", "a.raw.zst", ""},
		{"bzip2 -c src.raw > a.img", "compressed with bzip2", "a.img", ""},
		{"lz4 -q src.raw a.lz4", "compressed with lz4", "a.lz4", ""},
		{"lzop src.raw -o a.lzo", "compressed with lzop", "a.lzo", ""},
		{"cp src.raw disk.raw; tar -cf a.tar disk.raw; rm disk.raw", "a tar archive", "a.tar", ""},
		{"cp src.raw disk.raw; zip -q a.zip disk.raw; rm disk.raw", "a zip archive", "a.zip", ""},
	} {
		t.Run(c.make, func(t *testing.T) {
			dir := t.TempDir()
			source(t, dir)
			sh(t, dir, c.make)
			found, ok := fileIs(t, filepath.Join(dir, c.file))
			if !ok || found.Raw || found.Qcow2 || !strings.HasPrefix(found.Name, c.name) {
				t.Fatalf("%v, %+v", ok, found)
			}
			if info := sh(t, dir, "qemu-img info "+c.file); c.qemu != "" && !strings.Contains(info, "file format: "+c.qemu+"\n") {
				t.Errorf("qemu-img says %s", info)
			}
			sh(t, dir, found.WayOut(c.file, "made.raw"))
			made := sh(t, dir, "ls | grep -v '^src.raw$' | grep '\\.raw$'")
			sh(t, dir, "qemu-img compare -f raw -F raw src.raw "+made)
		})
	}
}

func TestQcow2(t *testing.T) {
	dir := t.TempDir()
	sh(t, dir, "qemu-img create -q -f qcow2 a 1M; qemu-img create -q -f qcow2 -o compat=0.10 b 1M")
	for _, file := range []string{"a", "b"} {
		if got, ok := fileIs(t, filepath.Join(dir, file)); !ok || !got.Qcow2 {
			t.Errorf("%s: %+v", file, got)
		}
	}
}

// TestRawDisks: what a raw disk begins and ends with is not taken for anything.
func TestRawDisks(t *testing.T) {
	for _, script := range []string{
		"true",
		"echo 'label: dos\nstart=2048' | sfdisk -q d",
		"echo 'label: gpt\nstart=2048' | sfdisk -q d",
		"mke2fs -q -F d", "mkfs.xfs -q -f d", "mkfs.vfat d", "mkswap d",
		"printf '\\001CD001\\001' | dd of=d bs=1 seek=32768 conv=notrunc", // an ISO image is a raw disk
		"printf 'ustar' | dd of=d bs=1 seek=257 conv=notrunc",             // by its words alone
		"printf '# Disk DescriptorFile' | dd of=d conv=notrunc",
		"printf 'BZh9' | dd of=d conv=notrunc",
		"printf 'conectix' | dd of=d bs=512 seek=1 conv=notrunc",
		"printf 'koly' | dd of=d bs=512 conv=notrunc",
		"head -c 1M d | tr '\\0' '\\377' | dd of=e; mv e d",
	} {
		t.Run(script, func(t *testing.T) {
			dir := t.TempDir()
			sh(t, dir, "truncate -s 300M d; "+strings.ReplaceAll(script, "\n", `\n`)+" >out 2>&1")
			if got, ok := fileIs(t, filepath.Join(dir, "d")); ok {
				t.Errorf("taken for %s", got.Name)
			}
		})
	}
}

// TestForged are formats that no program here makes, by what their specifications say.
func TestForged(t *testing.T) {
	tarOf := func(name string) string {
		b := make([]byte, 1024)
		copy(b, name)
		copy(b[257:], "ustar\x0000")
		copy(b[148:], "        ")
		sum := 0
		for _, c := range b[:512] {
			sum += int(c)
		}
		copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
		return string(b)
	}
	pad := strings.Repeat("\x00", 512)
	for content, want := range map[string]string{
		"LUKS\xba\xbe\x00\x01aes" + pad:                                "a LUKS container",
		"LUKS\xba\xbe\x00\x02" + pad:                                   "a LUKS container",
		"COWD\x01\x00\x00\x00" + pad:                                   "a VMDK image (VMware ESX)",
		"\xbe\xba\xfe\xca\x00\x00\x00\x00\x01\x00\x00\x00" + pad:       "a part of a VMDK image",
		"\r\n# comment\n# Disk DescriptorFile\r\n\r\nversion=3\r\nCID": "the descriptor of a VMDK",
		"WithoutFreeSpace\x02" + pad:                                   "a Parallels image",
		"Bochs Virtual HD Image" + pad:                                 "a Bochs image",
		"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0":              "a cloop image",
		pad + "koly\x00\x00\x00\x04" + pad[8:]:                         "a DMG image",
		pad + "conectix" + pad[8:]:                                     "a VHD image of a fixed size (Hyper-V",
		pad + "conectix" + pad[9:]:                                     "a VHD image of a fixed size (Virtual PC 2004)",
		"conectix" + pad[16:]:                                          "a VHD image (Hyper-V",
		"VMA\x00\x00\x00\x00\x01" + pad:                                "a backup of Proxmox",
		"MSWIM\x00\x00\x00\xd0" + pad:                                  "a WIM archive",
		"partclone-image0.3.6" + pad:                                   "an image of partclone",
		"\x00ntfsclone-image" + pad:                                    "an image of ntfsclone",
		"EVF\x09\x0d\x0a\xff\x00\x01" + pad:                            "an EWF image",
		"EVF2\x0d\x0a\x81\x00" + pad:                                   "an EWF image (EnCase 7)",
		"AFF10\x0d\x0a\x00" + pad:                                      "an AFF image",
		"\x3a\xff\x26\xed\x01\x00\x00\x00\x1c\x00\x0c\x00" + pad:       "a sparse image of Android",
		"QEVM\x00\x00\x00\x03" + pad:                                   "the state of a VM (QEMU)",
		"LibvirtQemudSave\x02" + pad:                                   "the state of a VM (virsh save)",
		tarOf("vm.ovf"):                                                "an OVA",
		tarOf("vm.vmdk"):                                               "a tar archive",
		"\x52\x2a\x4d\x18\x04\x00\x00\x00" + pad:                       "compressed with zstd",
		"\x02\x21\x4c\x18" + pad:                                       "compressed with lz4",
		"LZIP\x01\x0c" + pad:                                           "compressed with lzip",
		"7z\xbc\xaf\x27\x1c\x00\x04" + pad:                             "a 7z archive",
		"Rar!\x1a\x07\x01\x00" + pad:                                   "a rar archive",
		"<?xml version=\"1.0\"?>\n<Envelope>":                          "a page of the web",
		"<!DOCTYPE html>":                                              "a page of the web",
	} {
		got, ok, err := File(strings.NewReader(content), int64(len(content)))
		if err != nil || !ok || !strings.HasPrefix(got.Name, want) || got.Raw != strings.Contains(want, "LUKS") {
			t.Errorf("%.30q: %+v, %v, %v; want %q", content, got, ok, err, want)
		}
	}
}

func TestWayOut(t *testing.T) {
	if got := (Format{wayOut: converts("vpc")}).WayOut("'OUT IN'", "b"); got != "qemu-img convert -f vpc -O raw 'OUT IN' b" {
		t.Errorf("%s", got)
	}
	for _, e := range formats {
		if e.Name == "" || (e.wayOut == "") != (e.Raw || e.Qcow2) {
			t.Errorf("%+v", e)
		}
	}
}

// FuzzFile recognises files of any content and any size that is said of them, by what
// stands in their first 4 KiB and their last 512 bytes alone.
func FuzzFile(f *testing.F) {
	for _, e := range formats {
		if e.at >= 0 {
			f.Add(append(make([]byte, e.at), e.magic...), []byte{}, int64(512))
		} else {
			f.Add([]byte{}, append([]byte(e.magic), make([]byte, -e.at-len(e.magic))...), int64(1<<40))
		}
	}
	f.Fuzz(func(t *testing.T, front, end []byte, size int64) {
		size &= 1<<50 - 1
		read := 0
		got, ok, err := File(readerFunc(func(p []byte, off int64) (int, error) {
			if off < 0 || off+int64(len(p)) > size {
				t.Fatalf("%d bytes at %d of %d", len(p), off, size)
			}
			read += len(p)
			for i := range p {
				p[i] = 0
				switch at := off + int64(i); {
				case at < int64(len(front)):
					p[i] = front[at]
				case size-at <= int64(len(end)):
					p[i] = end[int64(len(end))-(size-at)]
				}
			}
			return len(p), nil
		}), size)
		if err != nil || ok != (got.Name != "") || read > frontBytes+endBytes {
			t.Fatalf("%+v, %v, %v after %d bytes", got, ok, err, read)
		}
		if ok && bytes.Trim(front, "\x00") == nil && bytes.Trim(end, "\x00") == nil {
			t.Fatalf("a blank disk is %s", got.Name)
		}
	})
}

type readerFunc func(p []byte, off int64) (int, error)

func (f readerFunc) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }
