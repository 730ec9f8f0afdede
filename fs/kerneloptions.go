package fs

import "github.com/hanwen/go-fuse/v2/fuse"

// Limits of the connection: the largest request that the kernel sends unless
// told otherwise by its administrator, and room for more than a guest's usual
// queue of 32.
const (
	maxRequest    = 1 << 20 // bytes of one read or write
	maxBackground = 64      // asynchronous requests in flight
)

// DiskOpenFlags are the kernel's for an open of disk.raw. The page cache is left
// out, so that a completed write is in the chain, where a snapshot finds it, and
// so that writers do not wait for each other.
const DiskOpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES

// KernelOptions is what a mount asks of the kernel that decides how fast it is.
// It stands apart so that a file system with nothing behind it can be measured
// beside varve under the same terms.
func KernelOptions() fuse.MountOptions {
	return fuse.MountOptions{
		MaxWrite:      maxRequest,
		MaxBackground: maxBackground,
		MaxStackDepth: 1,
		// For go-fuse's own server, which varve does not use: a splice costs more
		// than the copy that it saves.
		DisableSplice:        true,
		DisableReadDirPlus:   true,
		DisabledCapabilities: fuse.CAP_NO_OPEN_SUPPORT,
		// Without ASYNC_DIO direct reads and writes of a file come one at a
		// time; without KILLPRIV_V2 a question for security.capability comes
		// before each write.
		ExtraCapabilities: fuse.CAP_ASYNC_DIO | fuse.CAP_DIRECT_IO_ALLOW_MMAP | fuse.CAP_HANDLE_KILLPRIV_V2,
	}
}
