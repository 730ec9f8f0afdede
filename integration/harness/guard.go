package harness

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"testing"
	"time"
)

// state is what must not change of a foreign file.
type state struct {
	digest string
	size   int64
	mtime  time.Time
}

// Guard fails the test at its end when a file's content, size or mtime is not
// what it is now. Call it before the file is mounted, so that it looks after
// the mount is gone.
func Guard(t testing.TB, files ...string) {
	t.Helper()
	for _, file := range files {
		before := stateOf(t, file)
		t.Cleanup(func() {
			if after := stateOf(t, file); after != before {
				t.Errorf("%s was changed: sha256 %s, %d bytes, mtime %v; now sha256 %s, %d bytes, mtime %v", file,
					before.digest, before.size, before.mtime, after.digest, after.size, after.mtime)
			}
		})
	}
}

func stateOf(t testing.TB, file string) state {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return state{digest: Digest(t, file), size: info.Size(), mtime: info.ModTime()}
}

// Digest is the SHA-256 of a file, in hexadecimal.
func Digest(t testing.TB, file string) string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatalf("read %s: %v", file, err)
	}
	return hex.EncodeToString(h.Sum(nil))
}
