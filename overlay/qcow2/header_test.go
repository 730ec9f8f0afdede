package qcow2_test

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"varve/integration/imagetest"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

func TestHeaderAgainstQEMU(t *testing.T) {
	for _, c := range []struct {
		options string
		want    qcow2.Header // of what the options set
	}{
		{"compat=0.10", qcow2.Header{Version: 2, ClusterBits: 16, RefcountOrder: 4, HeaderLength: 72}},
		{"", qcow2.Header{Version: 3, ClusterBits: 16, RefcountOrder: 4, HeaderLength: 112}},
		{"cluster_size=512", qcow2.Header{Version: 3, ClusterBits: 9, RefcountOrder: 4, HeaderLength: 112}},
		{"cluster_size=2M,refcount_bits=1", qcow2.Header{Version: 3, ClusterBits: 21, RefcountOrder: 0, HeaderLength: 112}},
		{"refcount_bits=64", qcow2.Header{Version: 3, ClusterBits: 16, RefcountOrder: 6, HeaderLength: 112}},
		{"lazy_refcounts=on", qcow2.Header{Version: 3, ClusterBits: 16, RefcountOrder: 4, HeaderLength: 112, Compatible: qcow2.CompatibleLazyRefcounts}},
		{"extended_l2=on", qcow2.Header{Version: 3, ClusterBits: 16, RefcountOrder: 4, HeaderLength: 112, Incompatible: qcow2.IncompatibleExtendedL2}},
		{"compression_type=zstd", qcow2.Header{Version: 3, ClusterBits: 16, RefcountOrder: 4, HeaderLength: 112, Incompatible: qcow2.IncompatibleCompression, CompressionType: qcow2.CompressionZstd}},
	} {
		t.Run(c.options, func(t *testing.T) {
			h, err := qcow2.ReadHeader(hostfs.OS(), imagetest.New(t, c.options, "3000320"))
			if err != nil {
				t.Fatal(err)
			}
			got := qcow2.Header{Version: h.Version, ClusterBits: h.ClusterBits, RefcountOrder: h.RefcountOrder, HeaderLength: h.HeaderLength,
				Incompatible: h.Incompatible, Compatible: h.Compatible, CompressionType: h.CompressionType}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
			if h.Size != 3000320 || h.BackingName != "" || h.HasBackingFormat {
				t.Errorf("size %d, backing %q", h.Size, h.BackingName)
			}
			// In a cluster of 512 bytes QEMU leaves the names out.
			if h.Version == 3 && h.ClusterBits > 9 && (len(h.Extensions) == 0 || h.Extensions[len(h.Extensions)-1].Type != qcow2.ExtensionFeatureNames) {
				t.Errorf("extensions %+v, want the feature names", h.Extensions)
			}
		})
	}
}

func TestHeaderBacking(t *testing.T) {
	dir := t.TempDir()
	base := filepath.Join(dir, "base.raw")
	if err := os.WriteFile(base, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ options, name string }{
		{"compat=0.10", "base.raw"},
		{"", base},
		{"cluster_size=512", "base.raw"},
		{"cluster_size=2M", "base.raw"},
	} {
		path := filepath.Join(dir, "overlay.qcow2")
		args := []string{"create", "-q", "-f", "qcow2", "-b", c.name, "-F", "raw"}
		if c.options != "" {
			args = append(args, "-o", c.options)
		}
		imagetest.QemuImg(t, append(args, path)...)
		h, err := qcow2.ReadHeader(hostfs.OS(), path)
		if err != nil {
			t.Fatal(err)
		}
		if h.BackingName != c.name || h.BackingFormat != "raw" || !h.HasBackingFormat {
			t.Errorf("%s: backing %q, format %q", c.options, h.BackingName, h.BackingFormat)
		}
		// Without a format, as old versions wrote it.
		imagetest.QemuImg(t, "rebase", "-u", "-b", "", path)
		if h, err = qcow2.ReadHeader(hostfs.OS(), path); err != nil || h.BackingName != "" {
			t.Errorf("%s: backing %q after it was taken away, %v", c.options, h.BackingName, err)
		}
	}
}

// badHeader is an image with something changed, and what must be said about it.
type badHeader struct {
	name    string
	options string
	at      int64
	bytes   []byte
	is      error
	says    []string
}

var hostileHeaders = []badHeader{
	{"magic", "", 0, []byte("QFI\xfa"), qcow2.ErrCorrupt, []string{"magic"}},
	{"version 1", "", 4, imagetest.BE32(1), qcow2.ErrUnsupported, []string{"version 1"}},
	{"version 4", "", 4, imagetest.BE32(4), qcow2.ErrUnsupported, []string{"version 4"}},
	{"cluster_bits 8", "", 20, imagetest.BE32(8), qcow2.ErrCorrupt, []string{"cluster_bits is 8"}},
	{"cluster_bits 22", "", 20, imagetest.BE32(22), qcow2.ErrCorrupt, []string{"cluster_bits is 22"}},
	{"cluster_bits huge", "", 20, imagetest.BE32(1 << 31), qcow2.ErrCorrupt, []string{"cluster_bits"}},
	{"negative size", "", 24, imagetest.BE64(1 << 63), qcow2.ErrCorrupt, []string{"size 0x8000000000000000"}},
	{"size beyond the L1 table", "", 24, imagetest.BE64(1 << 62), qcow2.ErrCorrupt, []string{"L1 table has 1 entries"}},
	{"AES", "", 32, imagetest.BE32(1), qcow2.ErrUnsupported, []string{"encrypted (AES)"}},
	{"LUKS", "", 32, imagetest.BE32(2), qcow2.ErrUnsupported, []string{"encrypted (LUKS)"}},
	{"unknown encryption", "", 32, imagetest.BE32(7), qcow2.ErrUnsupported, []string{"encrypted", "7"}},
	{"no L1 entries", "", 36, imagetest.BE32(0), qcow2.ErrCorrupt, []string{"needs 1"}},
	{"L1 over 32 MiB", "", 36, imagetest.BE32(4<<20 + 1), qcow2.ErrCorrupt, []string{"4194305 entries"}},
	{"L1 longer than the file", "", 36, imagetest.BE32(4 << 20), qcow2.ErrCorrupt, []string{"L1 table at 0x30000", "behind the end"}},
	{"L1 entries that overflow", "", 36, imagetest.BE32(0xffffffff), qcow2.ErrCorrupt, []string{"L1 table has"}},
	{"L1 not aligned", "", 40, imagetest.BE64(0x30200), qcow2.ErrCorrupt, []string{"L1 table", "0x30200"}},
	{"L1 in the header", "", 40, imagetest.BE64(0), qcow2.ErrCorrupt, []string{"L1 table", "header"}},
	{"L1 behind the end", "", 40, imagetest.BE64(1 << 40), qcow2.ErrCorrupt, []string{"L1 table at 0x10000000000"}},
	{"L1 offset negative", "", 40, imagetest.BE64(0xffffffffffff0000), qcow2.ErrCorrupt, []string{"0xffffffffffff0000"}},
	{"an empty L1 table with an offset negative", "", 24, append(imagetest.BE64(0), append(imagetest.BE32(0), append(imagetest.BE32(0), imagetest.BE64(0x80ffff0000000000)...)...)...), qcow2.ErrCorrupt, []string{"L1 table", "0x80ffff0000000000"}},
	{"no snapshots, not aligned", "", 60, append(imagetest.BE32(0), imagetest.BE64(77)...), qcow2.ErrCorrupt, []string{"snapshot table", "0x4d"}},
	{"refcount table not aligned", "", 48, imagetest.BE64(0x10001), qcow2.ErrCorrupt, []string{"refcount table", "0x10001"}},
	{"refcount table behind the end", "", 48, imagetest.BE64(1 << 50), qcow2.ErrCorrupt, []string{"refcount table at"}},
	{"no refcount table", "", 56, imagetest.BE32(0), qcow2.ErrCorrupt, []string{"no refcount table"}},
	{"refcount table over 8 MiB", "", 56, imagetest.BE32(129), qcow2.ErrCorrupt, []string{"129 clusters"}},
	{"refcount table that overflows", "", 56, imagetest.BE32(0xffffffff), qcow2.ErrCorrupt, []string{"refcount table"}},
	{"too many snapshots", "", 60, imagetest.BE32(65537), qcow2.ErrCorrupt, []string{"65537"}},
	{"snapshots behind the end", "", 60, append(imagetest.BE32(1), imagetest.BE64(1<<40)...), qcow2.ErrCorrupt, []string{"snapshot table at"}},
	{"corrupt bit", "", 72, imagetest.BE64(qcow2.IncompatibleCorrupt), qcow2.ErrCorrupt, []string{"marked corrupt", "qemu-img check"}},
	{"unknown features", "", 72, imagetest.BE64(1<<5 | 1<<63), qcow2.ErrUnsupported, []string{"bit 5", "bit 63"}},
	{"compression bit with zlib", "", 72, imagetest.BE64(qcow2.IncompatibleCompression), qcow2.ErrCorrupt, []string{"contradict"}},
	{"zstd without its bit", "", 104, []byte{1}, qcow2.ErrCorrupt, []string{"contradict"}},
	{"unknown compression", "", 104, []byte{2}, qcow2.ErrUnsupported, []string{"compression type 2"}},
	{"external data file, not named", "", 72, imagetest.BE64(qcow2.IncompatibleDataFile), qcow2.ErrUnsupported, []string{"external data file"}},
	{"subclusters in small clusters", "cluster_size=8k", 72, imagetest.BE64(qcow2.IncompatibleExtendedL2), qcow2.ErrCorrupt, []string{"cluster_bits 13"}},
	{"refcount_order 7", "", 96, imagetest.BE32(7), qcow2.ErrCorrupt, []string{"refcount_order is 7"}},
	{"short header_length", "", 100, imagetest.BE32(96), qcow2.ErrCorrupt, []string{"length is 96"}},
	{"long header_length", "", 100, imagetest.BE32(0xffffffff), qcow2.ErrCorrupt, []string{"length is 4294967295"}},
	{"extension too long", "", 112, append(imagetest.BE32(0x12345678), imagetest.BE32(0xffffffff)...), qcow2.ErrCorrupt, []string{"0x12345678 at 0x70"}},
	{"extension length that wraps", "", 112, append(imagetest.BE32(0x12345678), imagetest.BE32(0xfffffff9)...), qcow2.ErrCorrupt, []string{"0x12345678"}},
	{"backing format too long", "", 112, append(imagetest.BE32(qcow2.ExtensionBackingFormat), imagetest.BE32(16)...), qcow2.ErrCorrupt, []string{"backing format"}},
	{"backing name outside", "", 8, append(imagetest.BE64(1<<40), imagetest.BE32(5)...), qcow2.ErrCorrupt, []string{"0x10000000000"}},
	{"backing name too long", "", 8, append(imagetest.BE64(0x400), imagetest.BE32(1024)...), qcow2.ErrCorrupt, []string{"1024 bytes"}},
	{"backing name over the cluster's end", "", 8, append(imagetest.BE64(0xfffe), imagetest.BE32(5)...), qcow2.ErrCorrupt, []string{"5 bytes"}},
	{"backing name with NUL", "", 8, append(imagetest.BE64(0x4000), imagetest.BE32(5)...), qcow2.ErrCorrupt, []string{"NUL"}},
}

func TestHostileHeader(t *testing.T) {
	made := map[string]string{}
	for _, c := range hostileHeaders {
		if made[c.options] == "" {
			made[c.options] = imagetest.New(t, c.options, "4M")
		}
		t.Run(c.name, func(t *testing.T) {
			path := imagetest.CopyOf(t, made[c.options])
			imagetest.Patch(t, path, c.at, c.bytes...)
			_, err := qcow2.ReadHeader(hostfs.OS(), path)
			imagetest.JudgeError(t, err, c.is, append(c.says, path)...)
			if _, err := qcow2.OpenImage(hostfs.OS(), path, "qcow2", hostfs.LockFrozen); !errors.Is(err, c.is) {
				t.Errorf("OpenImage: %v", err)
			}
		})
	}
}

// TestFeatureNames: an unknown bit is called what the file calls it.
func TestFeatureNames(t *testing.T) {
	path := imagetest.New(t, "", "4M")
	h, err := qcow2.ReadHeader(hostfs.OS(), path)
	if err != nil {
		t.Fatal(err)
	}
	at := int64(h.HeaderLength)
	for _, e := range h.Extensions {
		if e.Type == qcow2.ExtensionFeatureNames {
			imagetest.Patch(t, path, at+8, append([]byte{0, 40}, "time travel\x00"...)...)
		}
		at += 8 + int64(len(e.Data)+7)&^7
	}
	imagetest.Patch(t, path, 72, imagetest.BE64(1<<40|1<<41)...)
	_, err = qcow2.ReadHeader(hostfs.OS(), path)
	imagetest.JudgeError(t, err, qcow2.ErrUnsupported, `"time travel" (bit 40)`, "bit 41")
}

func TestUnsupportedByQEMU(t *testing.T) {
	dir := t.TempDir()
	data := imagetest.New(t, "data_file="+filepath.Join(dir, "guest.data"), "4M")
	_, err := qcow2.ReadHeader(hostfs.OS(), data)
	imagetest.JudgeError(t, err, qcow2.ErrUnsupported, "external data file", "guest.data")

	// Not LUKS: qemu-img measures the machine to make one, and fails on a fast
	// one now and then ("Unable to get accurate CPU usage").
	secret := filepath.Join(dir, "aes.qcow2")
	imagetest.QemuImg(t, "create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=abc",
		"-o", "encrypt.format=aes,encrypt.key-secret=s", secret, "4M")
	_, err = qcow2.ReadHeader(hostfs.OS(), secret)
	imagetest.JudgeError(t, err, qcow2.ErrUnsupported, "AES")
}

func TestDirtyIsReadable(t *testing.T) {
	path := imagetest.New(t, "lazy_refcounts=on", "4M")
	imagetest.QemuIO(t, path, "write -P 1 0 64k")
	imagetest.Patch(t, path, 72, imagetest.BE64(qcow2.IncompatibleDirty)...)
	im := openImage(t, path, "qcow2")
	judgeContent(t, im, imagetest.Truth(t, path))
}

func TestNotAnImage(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for name, content := range map[string]string{"empty": "", "short": "QF", "magic": "QFI\xfb", "almost": "QFI\xfb\x00\x00\x00\x03" + strings.Repeat("\x00", 60)} {
		if err := os.WriteFile(path(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := qcow2.OpenImage(hostfs.OS(), path(name), "qcow2", hostfs.LockFrozen)
		imagetest.JudgeError(t, err, qcow2.ErrCorrupt, path(name))
		is, err := qcow2.Is(hostfs.OS(), path(name))
		if want := strings.HasPrefix(content, "QFI\xfb"); is != want || err != nil {
			t.Errorf("IsQcow2(%s) = %v, %v", name, is, err)
		}
	}
	if err := unix.Mkfifo(path("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".", "fifo"} {
		_, err := qcow2.OpenImage(hostfs.OS(), path(name), "raw", hostfs.LockFrozen)
		imagetest.JudgeError(t, err, qcow2.ErrUnsupported, path(name))
	}
	_, err := qcow2.OpenImage(hostfs.OS(), path("missing"), "raw", hostfs.LockFrozen)
	imagetest.JudgeError(t, err, os.ErrNotExist, path("missing"))
	_, err = qcow2.OpenImage(hostfs.OS(), path("empty"), "vmdk", hostfs.LockFrozen)
	imagetest.JudgeError(t, err, qcow2.ErrUnsupported, "vmdk")
}

func FuzzParseHeader(f *testing.F) {
	for _, options := range []string{"compat=0.10", "", "cluster_size=512", "extended_l2=on", "compression_type=zstd"} {
		content, err := os.ReadFile(imagetest.New(f, options, "4M"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(content[:512], int64(len(content)))
	}
	f.Fuzz(func(t *testing.T, data []byte, fileSize int64) {
		h, err := qcow2.ParseHeader("fuzz", data, fileSize)
		if err != nil {
			if !errors.Is(err, qcow2.ErrCorrupt) && !errors.Is(err, qcow2.ErrUnsupported) {
				t.Fatalf("error %v is neither", err)
			}
			return
		}
		if h.L1Offset < 0 || h.L1Offset+int64(h.L1Entries)*8 > fileSize && h.L1Entries > 0 {
			t.Errorf("L1 table at 0x%x with %d entries in %d bytes", h.L1Offset, h.L1Entries, fileSize)
		}
		if n := h.L1EntriesFor(h.Size); h.Size < 0 || n > int64(h.L1Entries) {
			t.Errorf("size %d needs %d L1 entries of %d", h.Size, n, h.L1Entries)
		}
		if len(h.BackingName) > 1023 || h.ClusterBits < 9 || h.ClusterBits > 21 {
			t.Errorf("%+v", h)
		}
	})
}
