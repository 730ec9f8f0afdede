package overlay

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestHeaderAgainstQEMU(t *testing.T) {
	for _, c := range []struct {
		options string
		want    Header // of what the options set
	}{
		{"compat=0.10", Header{Version: 2, ClusterBits: 16, RefcountOrder: 4, HeaderLength: 72}},
		{"", Header{Version: 3, ClusterBits: 16, RefcountOrder: 4, HeaderLength: 112}},
		{"cluster_size=512", Header{Version: 3, ClusterBits: 9, RefcountOrder: 4, HeaderLength: 112}},
		{"cluster_size=2M,refcount_bits=1", Header{Version: 3, ClusterBits: 21, RefcountOrder: 0, HeaderLength: 112}},
		{"refcount_bits=64", Header{Version: 3, ClusterBits: 16, RefcountOrder: 6, HeaderLength: 112}},
		{"lazy_refcounts=on", Header{Version: 3, ClusterBits: 16, RefcountOrder: 4, HeaderLength: 112, Compatible: CompatibleLazyRefcounts}},
		{"extended_l2=on", Header{Version: 3, ClusterBits: 16, RefcountOrder: 4, HeaderLength: 112, Incompatible: IncompatibleExtendedL2}},
		{"compression_type=zstd", Header{Version: 3, ClusterBits: 16, RefcountOrder: 4, HeaderLength: 112, Incompatible: IncompatibleCompression, CompressionType: CompressionZstd}},
	} {
		t.Run(c.options, func(t *testing.T) {
			h, err := ReadHeader(HostFS(), newQcow2(t, c.options, "3000320"))
			if err != nil {
				t.Fatal(err)
			}
			got := Header{Version: h.Version, ClusterBits: h.ClusterBits, RefcountOrder: h.RefcountOrder, HeaderLength: h.HeaderLength,
				Incompatible: h.Incompatible, Compatible: h.Compatible, CompressionType: h.CompressionType}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
			if h.Size != 3000320 || h.BackingName != "" || h.HasBackingFormat {
				t.Errorf("size %d, backing %q", h.Size, h.BackingName)
			}
			// In a cluster of 512 bytes QEMU leaves the names out.
			if h.Version == 3 && h.ClusterBits > 9 && (len(h.Extensions) == 0 || h.Extensions[len(h.Extensions)-1].Type != ExtensionFeatureNames) {
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
		qemuImg(t, append(args, path)...)
		h, err := ReadHeader(HostFS(), path)
		if err != nil {
			t.Fatal(err)
		}
		if h.BackingName != c.name || h.BackingFormat != "raw" || !h.HasBackingFormat {
			t.Errorf("%s: backing %q, format %q", c.options, h.BackingName, h.BackingFormat)
		}
		// Without a format, as old versions wrote it.
		qemuImg(t, "rebase", "-u", "-b", "", path)
		if h, err = ReadHeader(HostFS(), path); err != nil || h.BackingName != "" {
			t.Errorf("%s: backing %q after it was taken away, %v", c.options, h.BackingName, err)
		}
	}
}

// hostile is an image with something changed, and what must be said about it.
type hostile struct {
	name    string
	options string
	at      int64
	bytes   []byte
	is      error
	says    []string
}

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
func be64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

var hostileHeaders = []hostile{
	{"magic", "", 0, []byte("QFI\xfa"), ErrCorrupt, []string{"magic"}},
	{"version 1", "", 4, be32(1), ErrUnsupported, []string{"version 1"}},
	{"version 4", "", 4, be32(4), ErrUnsupported, []string{"version 4"}},
	{"cluster_bits 8", "", 20, be32(8), ErrCorrupt, []string{"cluster_bits is 8"}},
	{"cluster_bits 22", "", 20, be32(22), ErrCorrupt, []string{"cluster_bits is 22"}},
	{"cluster_bits huge", "", 20, be32(1 << 31), ErrCorrupt, []string{"cluster_bits"}},
	{"negative size", "", 24, be64(1 << 63), ErrCorrupt, []string{"size 0x8000000000000000"}},
	{"size beyond the L1 table", "", 24, be64(1 << 62), ErrCorrupt, []string{"L1 table has 1 entries"}},
	{"AES", "", 32, be32(1), ErrUnsupported, []string{"encrypted (AES)"}},
	{"LUKS", "", 32, be32(2), ErrUnsupported, []string{"encrypted (LUKS)"}},
	{"unknown encryption", "", 32, be32(7), ErrUnsupported, []string{"encrypted", "7"}},
	{"no L1 entries", "", 36, be32(0), ErrCorrupt, []string{"needs 1"}},
	{"L1 over 32 MiB", "", 36, be32(4<<20 + 1), ErrCorrupt, []string{"4194305 entries"}},
	{"L1 longer than the file", "", 36, be32(4 << 20), ErrCorrupt, []string{"L1 table at 0x30000", "behind the end"}},
	{"L1 entries that overflow", "", 36, be32(0xffffffff), ErrCorrupt, []string{"L1 table has"}},
	{"L1 not aligned", "", 40, be64(0x30200), ErrCorrupt, []string{"L1 table", "0x30200"}},
	{"L1 in the header", "", 40, be64(0), ErrCorrupt, []string{"L1 table", "header"}},
	{"L1 behind the end", "", 40, be64(1 << 40), ErrCorrupt, []string{"L1 table at 0x10000000000"}},
	{"L1 offset negative", "", 40, be64(0xffffffffffff0000), ErrCorrupt, []string{"0xffffffffffff0000"}},
	{"an empty L1 table with an offset negative", "", 24, append(be64(0), append(be32(0), append(be32(0), be64(0x80ffff0000000000)...)...)...), ErrCorrupt, []string{"L1 table", "0x80ffff0000000000"}},
	{"no snapshots, not aligned", "", 60, append(be32(0), be64(77)...), ErrCorrupt, []string{"snapshot table", "0x4d"}},
	{"refcount table not aligned", "", 48, be64(0x10001), ErrCorrupt, []string{"refcount table", "0x10001"}},
	{"refcount table behind the end", "", 48, be64(1 << 50), ErrCorrupt, []string{"refcount table at"}},
	{"no refcount table", "", 56, be32(0), ErrCorrupt, []string{"no refcount table"}},
	{"refcount table over 8 MiB", "", 56, be32(129), ErrCorrupt, []string{"129 clusters"}},
	{"refcount table that overflows", "", 56, be32(0xffffffff), ErrCorrupt, []string{"refcount table"}},
	{"too many snapshots", "", 60, be32(65537), ErrCorrupt, []string{"65537"}},
	{"snapshots behind the end", "", 60, append(be32(1), be64(1<<40)...), ErrCorrupt, []string{"snapshot table at"}},
	{"corrupt bit", "", 72, be64(IncompatibleCorrupt), ErrCorrupt, []string{"marked corrupt", "qemu-img check"}},
	{"unknown features", "", 72, be64(1<<5 | 1<<63), ErrUnsupported, []string{"bit 5", "bit 63"}},
	{"compression bit with zlib", "", 72, be64(IncompatibleCompression), ErrCorrupt, []string{"contradict"}},
	{"zstd without its bit", "", 104, []byte{1}, ErrCorrupt, []string{"contradict"}},
	{"unknown compression", "", 104, []byte{2}, ErrUnsupported, []string{"compression type 2"}},
	{"external data file, not named", "", 72, be64(IncompatibleDataFile), ErrUnsupported, []string{"external data file"}},
	{"subclusters in small clusters", "cluster_size=8k", 72, be64(IncompatibleExtendedL2), ErrCorrupt, []string{"cluster_bits 13"}},
	{"refcount_order 7", "", 96, be32(7), ErrCorrupt, []string{"refcount_order is 7"}},
	{"short header_length", "", 100, be32(96), ErrCorrupt, []string{"length is 96"}},
	{"long header_length", "", 100, be32(0xffffffff), ErrCorrupt, []string{"length is 4294967295"}},
	{"extension too long", "", 112, append(be32(0x12345678), be32(0xffffffff)...), ErrCorrupt, []string{"0x12345678 at 0x70"}},
	{"extension length that wraps", "", 112, append(be32(0x12345678), be32(0xfffffff9)...), ErrCorrupt, []string{"0x12345678"}},
	{"backing format too long", "", 112, append(be32(ExtensionBackingFormat), be32(16)...), ErrCorrupt, []string{"backing format"}},
	{"backing name outside", "", 8, append(be64(1<<40), be32(5)...), ErrCorrupt, []string{"0x10000000000"}},
	{"backing name too long", "", 8, append(be64(0x400), be32(1024)...), ErrCorrupt, []string{"1024 bytes"}},
	{"backing name over the cluster's end", "", 8, append(be64(0xfffe), be32(5)...), ErrCorrupt, []string{"5 bytes"}},
	{"backing name with NUL", "", 8, append(be64(0x4000), be32(5)...), ErrCorrupt, []string{"NUL"}},
}

func TestHostileHeader(t *testing.T) {
	made := map[string]string{}
	for _, c := range hostileHeaders {
		if made[c.options] == "" {
			made[c.options] = newQcow2(t, c.options, "4M")
		}
		t.Run(c.name, func(t *testing.T) {
			path := copyOf(t, made[c.options])
			patch(t, path, c.at, c.bytes...)
			_, err := ReadHeader(HostFS(), path)
			judgeError(t, err, c.is, append(c.says, path)...)
			if _, err := OpenImage(HostFS(), path, "qcow2", LockFrozen); !errors.Is(err, c.is) {
				t.Errorf("OpenImage: %v", err)
			}
		})
	}
}

func judgeError(t *testing.T, err, is error, says ...string) {
	t.Helper()
	if !errors.Is(err, is) {
		t.Fatalf("error %v, want %v", err, is)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("error %q does not say %q", err, s)
		}
	}
}

// TestFeatureNames: an unknown bit is called what the file calls it.
func TestFeatureNames(t *testing.T) {
	path := newQcow2(t, "", "4M")
	h, err := ReadHeader(HostFS(), path)
	if err != nil {
		t.Fatal(err)
	}
	at := int64(h.HeaderLength)
	for _, e := range h.Extensions {
		if e.Type == ExtensionFeatureNames {
			patch(t, path, at+8, append([]byte{0, 40}, "time travel\x00"...)...)
		}
		at += 8 + int64(len(e.Data)+7)&^7
	}
	patch(t, path, 72, be64(1<<40|1<<41)...)
	_, err = ReadHeader(HostFS(), path)
	judgeError(t, err, ErrUnsupported, `"time travel" (bit 40)`, "bit 41")
}

func TestUnsupportedByQEMU(t *testing.T) {
	dir := t.TempDir()
	data := newQcow2(t, "data_file="+filepath.Join(dir, "guest.data"), "4M")
	_, err := ReadHeader(HostFS(), data)
	judgeError(t, err, ErrUnsupported, "external data file", "guest.data")

	// Not LUKS: qemu-img measures the machine to make one, and fails on a fast
	// one now and then ("Unable to get accurate CPU usage").
	secret := filepath.Join(dir, "aes.qcow2")
	qemuImg(t, "create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=abc",
		"-o", "encrypt.format=aes,encrypt.key-secret=s", secret, "4M")
	_, err = ReadHeader(HostFS(), secret)
	judgeError(t, err, ErrUnsupported, "AES")
}

func TestDirtyIsReadable(t *testing.T) {
	path := newQcow2(t, "lazy_refcounts=on", "4M")
	qemuIO(t, path, "write -P 1 0 64k")
	patch(t, path, 72, be64(IncompatibleDirty)...)
	im := openImage(t, path, "qcow2")
	judgeContent(t, im, truth(t, path))
}

func TestNotAnImage(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for name, content := range map[string]string{"empty": "", "short": "QF", "magic": "QFI\xfb", "almost": "QFI\xfb\x00\x00\x00\x03" + strings.Repeat("\x00", 60)} {
		if err := os.WriteFile(path(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := OpenImage(HostFS(), path(name), "qcow2", LockFrozen)
		judgeError(t, err, ErrCorrupt, path(name))
		is, err := IsQcow2(HostFS(), path(name))
		if want := strings.HasPrefix(content, "QFI\xfb"); is != want || err != nil {
			t.Errorf("IsQcow2(%s) = %v, %v", name, is, err)
		}
	}
	if err := unix.Mkfifo(path("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".", "fifo"} {
		_, err := OpenImage(HostFS(), path(name), "raw", LockFrozen)
		judgeError(t, err, ErrUnsupported, path(name))
	}
	_, err := OpenImage(HostFS(), path("missing"), "raw", LockFrozen)
	judgeError(t, err, os.ErrNotExist, path("missing"))
	_, err = OpenImage(HostFS(), path("empty"), "vmdk", LockFrozen)
	judgeError(t, err, ErrUnsupported, "vmdk")
}

func FuzzParseHeader(f *testing.F) {
	for _, options := range []string{"compat=0.10", "", "cluster_size=512", "extended_l2=on", "compression_type=zstd"} {
		content, err := os.ReadFile(newQcow2(f, options, "4M"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(content[:512], int64(len(content)))
	}
	f.Fuzz(func(t *testing.T, data []byte, fileSize int64) {
		h, err := ParseHeader("fuzz", data, fileSize)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
				t.Fatalf("error %v is neither", err)
			}
			return
		}
		if h.L1Offset < 0 || h.L1Offset+int64(h.L1Entries)*8 > fileSize && h.L1Entries > 0 {
			t.Errorf("L1 table at 0x%x with %d entries in %d bytes", h.L1Offset, h.L1Entries, fileSize)
		}
		if n := h.l1EntriesFor(h.Size); h.Size < 0 || n > int64(h.L1Entries) {
			t.Errorf("size %d needs %d L1 entries of %d", h.Size, n, h.L1Entries)
		}
		if len(h.BackingName) > 1023 || h.ClusterBits < 9 || h.ClusterBits > 21 {
			t.Errorf("%+v", h)
		}
	})
}
