package dirlock

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A session (D30) is one time that a disk directory is held for writing: by the daemon of a
// mount, or by a command. The lock file tells who holds it, and how the last sessions
// ended; a holder writes that when it lets go, and the next one keeps it. So whoever knew a
// session while it went on finds its end in the lock file, although the disk may have been
// mounted again meanwhile, and wherever the directory is by then.
//
// Nothing of this is made durable: who asks for the end of a session does not survive a
// power cut either.

// lockWords are what a lock file says.
type lockWords struct {
	PID        int          `json:"pid"`        // 0: nobody holds it
	Mountpoint string       `json:"mountpoint"` // "" for work on the directory
	Session    string       `json:"session"`    // "" of a holder of an earlier version
	Ended      []sessionEnd `json:"ended"`      // the newest first
}

type sessionEnd struct {
	Session string `json:"session"`
	Error   string `json:"error"` // why it was not closed in order; "" when it was
	Died    bool   `json:"died"`  // it left no word: the holder was killed, or the host
}

const (
	mostEnded  = 8       // sessions that a lock file tells of
	mostWords  = 1 << 16 // bytes
	mostReason = 512     // bytes of an error
	mostName   = 64      // bytes of a session's name
)

// readWords reads the first JSON value of a lock file: a longer one may have stood
// there. ok is false where there is none, as in an empty file, which a holder of an earlier
// version leaves that closed in order.
func readWords(f io.ReaderAt) (words lockWords, ok bool) {
	err := json.NewDecoder(io.NewSectionReader(f, 0, mostWords)).Decode(&words)
	return words, err == nil
}

// follow makes the words of a new holder from those that stood there.
func (w lockWords) follow(old lockWords) lockWords {
	list := old.Ended
	if old.Session != "" {
		list = append([]sessionEnd{{Session: old.Session, Died: true}}, list...)
	}
	for _, e := range list {
		// Somebody else may have written them.
		if len(w.Ended) < mostEnded && len(e.Session) <= mostName && len(e.Error) <= mostReason {
			w.Ended = append(w.Ended, e)
		}
	}
	return w
}

// ended are the words after the end of a session.
func (w lockWords) ended(failed error) lockWords {
	end := sessionEnd{Session: w.Session}
	if failed != nil {
		end.Error = strings.ToValidUTF8(failed.Error()[:min(len(failed.Error()), mostReason)], "")
	}
	list := append([]sessionEnd{end}, w.Ended...)
	return lockWords{Ended: list[:min(len(list), mostEnded)]}
}

func newSession() string { return rand.Text() }

// End is how a session ended.
type End int

// Ends of a session.
const (
	// EndUnknown: its holder was of an earlier version, or too much has happened since.
	EndUnknown End = iota
	EndInOrder     // all that was written is durable, and the files are at rest
	EndFailed      // it could not be closed in order
	EndDied        // the holder was killed
)

// Session is a session that went on when it was asked for. Not safe for concurrent use.
type Session struct {
	f     *os.File
	pid   int
	words lockWords // when it was asked for
}

// SessionOf gives the session of a process, by the lock that it holds: also where the
// directory was moved since. os.ErrNotExist when it holds none, exclusively, that this user
// may look at.
func SessionOf(pid int) (*Session, error) {
	infos, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil {
		return nil, err
	}
	for _, info := range infos {
		fd := strings.Replace(info, "/fdinfo/", "/fd/", 1)
		path, err := os.Readlink(fd)
		if err != nil || filepath.Base(strings.TrimSuffix(path, " (deleted)")) != Name || !locksToWrite(info) {
			continue
		}
		f, err := openLockedBy(fd)
		if err != nil {
			continue
		}
		words, ok := readWords(f)
		if !ok || words.PID == 0 {
			words = lockWords{}
		}
		return &Session{f, pid, words}, nil
	}
	return nil, fmt.Errorf("the lock that pid %d holds: %w", pid, os.ErrNotExist)
}

// openLockedBy opens the file of a descriptor of another process.
func openLockedBy(fd string) (*os.File, error) {
	f, err := os.OpenFile(fd, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a file", fd)
	}
	if err != nil {
		f.Close() // read only
		return nil, err
	}
	return f, nil
}

// locksToWrite says whether the description in /proc/PID/fdinfo has an exclusive lock.
func locksToWrite(fdinfo string) bool {
	text, err := os.ReadFile(fdinfo)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		// lock:	1: OFDLCK  ADVISORY  WRITE -1 fe:00:9980029 0 EOF
		if field := strings.Fields(line); len(field) >= 7 && field[0] == "lock:" && field[2] == "OFDLCK" && field[4] == "WRITE" {
			return true
		}
	}
	return false
}

// SessionAt gives the session of a disk directory; os.ErrNotExist when nobody holds it.
func SessionAt(dir string) (*Session, error) {
	f, err := openFile(filepath.Join(dir, Name), os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	holder, held := findHolder(f, dir)
	if !held {
		f.Close() // read only
		return nil, fmt.Errorf("a holder of %s: %w", dir, os.ErrNotExist)
	}
	words, ok := readWords(f)
	if !ok || words.PID == 0 {
		words = lockWords{}
	}
	return &Session{f, holder.PID, words}, nil
}

// PID is that of the process whose session it is; 0 where it cannot be told.
func (s *Session) PID() int { return s.pid }

// Close lets go of what Session needs to look.
func (s *Session) Close() error { return s.f.Close() }

// Dir is where the disk directory of the session is now; "" where it was removed.
func (s *Session) Dir() string {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", s.f.Fd()))
	if err != nil || strings.HasSuffix(path, " (deleted)") {
		return ""
	}
	return filepath.Dir(path)
}

// Ended says whether the session has ended, whoever holds the disk directory since.
func (s *Session) Ended() (bool, error) {
	test := unix.Flock_t{Type: unix.F_WRLCK}
	if err := fcntlLock(s.f, unix.F_OFD_GETLK, &test); err != nil {
		return false, fmt.Errorf("look whether the lock of a disk directory is free: %w", err)
	}
	if test.Type == unix.F_UNLCK {
		return true, nil
	}
	if test.Type != unix.F_WRLCK {
		return true, nil // somebody reads the disk by now
	}
	now, ok := readWords(s.f)
	switch {
	case !ok || now.PID == 0:
		return false, nil // the next holder has not written its words yet, or it is ours
	case s.words.Session != "":
		return now.Session != s.words.Session, nil
	}
	// A holder of an earlier version, or one that could write no words.
	known, holds := holds(s.pid, s.f)
	return known && !holds, nil
}

// End is how the session ended; reason says in words why it was not in order. It is meant
// for after Ended has said so.
func (s *Session) End() (end End, reason string) {
	now, ok := readWords(s.f)
	if s.words.Session == "" {
		return s.endWithoutWords(now, ok)
	}
	for _, e := range now.Ended {
		if e.Session == s.words.Session {
			return e.how()
		}
	}
	switch {
	case now.Session == s.words.Session:
		return EndDied, "" // its words stand there as if it went on
	case s.emptied():
		return EndInOrder, ""
	}
	return EndUnknown, ""
}

// emptied says whether the lock file says nothing: a host that is too full for words is not
// too full to take the old ones away, or to remove the file.
func (s *Session) emptied() bool {
	var st unix.Stat_t
	return unix.Fstat(int(s.f.Fd()), &st) == nil && (st.Size == 0 || st.Nlink == 0)
}

// endWithoutWords is End of a session that has no name. A holder of an earlier version
// leaves an empty file after a close in order, and its words otherwise.
func (s *Session) endWithoutWords(now lockWords, ok bool) (End, string) {
	switch {
	case s.emptied():
		return EndInOrder, ""
	case ok && now.PID != 0 && now.PID == s.words.PID:
		return EndFailed, ""
	case ok && now.PID == 0 && len(now.Ended) > 0: // on a full host it found room for its end alone
		return now.Ended[0].how()
	}
	return EndUnknown, ""
}

func (e sessionEnd) how() (end End, reason string) {
	switch {
	case e.Died:
		return EndDied, ""
	case e.Error != "":
		return EndFailed, e.Error
	}
	return EndInOrder, ""
}
