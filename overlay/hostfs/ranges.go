package hostfs

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// CloneUnit is what the ends of a range must be multiples of before the host is
// asked to share it: a block of most file systems, in bytes. One with larger
// blocks refuses by itself.
const CloneUnit = 4096

// CloneRange is FICLONERANGE. Measured on ext4, copy_file_range(2) was slower
// than reading and writing 1 MiB at a time, so the host only shares, and never
// copies.
func (h *hostFile) CloneRange(src File, srcOff, off, length int64) error {
	s, ok := src.(*hostFile)
	if !ok || (srcOff|off|length)%CloneUnit != 0 || h.noClone.Load() || h.cloneApart.Load() == s {
		return fmt.Errorf("clone into %s: %w", h.f.Name(), errors.ErrUnsupported)
	}
	arg := unix.FileCloneRange{Src_offset: uint64(srcOff), Src_length: uint64(length), Dest_offset: uint64(off)}
	err := h.control("clone", func(fd int) error {
		return s.control("clone", func(from int) error {
			arg.Src_fd = int64(from)
			return unix.IoctlFileCloneRange(fd, &arg)
		})
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EXDEV):
		h.cloneApart.Store(s)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.ENOSYS):
		h.noClone.Store(true)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EPERM), errors.Is(err, unix.ETXTBSY):
		// Larger blocks, a range that ends behind the source's end, a swap file,
		// an immutable one: this range not, another perhaps.
	default:
		return err
	}
	return fmt.Errorf("%w: %w", err, errors.ErrUnsupported)
}

// WriteBack is sync_file_range(2) without the waiting.
func (h *hostFile) WriteBack(off, length int64) error {
	return h.control("write back", func(fd int) error {
		return unix.SyncFileRange(fd, off, length, unix.SYNC_FILE_RANGE_WRITE)
	})
}

// Cached is cachestat(2), of Linux 6.5.
func (h *hostFile) Cached(off, length int64) (int64, error) {
	var stat unix.Cachestat_t
	err := h.control("cachestat", func(fd int) error {
		span := unix.CachestatRange{Off: uint64(off), Len: uint64(length)}
		return unix.Cachestat(uint(fd), &span, &stat, 0)
	})
	if errors.Is(err, unix.ENOSYS) {
		err = fmt.Errorf("%w: %w", err, errors.ErrUnsupported)
	}
	return int64(stat.Cache) * int64(os.Getpagesize()), err
}

// WillNeed is posix_fadvise(2) with POSIX_FADV_WILLNEED.
func (h *hostFile) WillNeed(off, length int64) error {
	return h.control("read ahead", func(fd int) error {
		return unix.Fadvise(fd, off, length, unix.FADV_WILLNEED)
	})
}

// DropRange is posix_fadvise(2) with POSIX_FADV_DONTNEED.
func (h *hostFile) DropRange(off, length int64) error {
	return h.control("drop cache", func(fd int) error {
		return unix.Fadvise(fd, off, length, unix.FADV_DONTNEED)
	})
}
