// Role: the kernel calls of the log protocol that the standard library lacks, and the seam to fake them.
// Runs in: shim.
// Owns: nothing.
// Uses: sys.

package main

import (
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kernel is the seam: the calls of the pump whose failures matter, so that a test can replace them one by one.
type kernel struct {
	tee      func(from, to, n int) (int, error) // tee(2), never blocks
	write    func(fd int, b []byte) (int, error)
	truncate func(fd int, size int64) error
	allocate func(fd int, size int64) error
	open     func(path string, flags int, mode uint32) (int, error)
	rename   func(from, to string) error // never replaces what is there
}

func realKernel() kernel {
	return kernel{
		tee:      sysTee,
		write:    sysWrite,
		truncate: sysFtruncate,
		allocate: sysAllocate,
		open:     sysOpen,
		rename:   sysRenameNew,
	}
}

func sysTee(from, to, n int) (int, error) {
	return againFor(func() (int, error) {
		m, err := unix.Tee(from, to, n, unix.SPLICE_F_NONBLOCK)
		return int(m), err
	})
}

func sysOpen(path string, flags int, mode uint32) (int, error) {
	return openRetry(path, flags|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NOFOLLOW, mode)
}

// sysAllocate gives a file its blocks, so that writing through a map cannot fail. Where the file system has no
// fallocate(2), zeros do it.
func sysAllocate(fd int, size int64) error {
	err := again(func() error { return unix.Fallocate(fd, 0, 0, size) })
	if err == unix.EOPNOTSUPP || err == unix.ENOSYS {
		return sysZero(fd, size)
	}
	return err
}

func sysZero(fd int, size int64) error {
	var st unix.Stat_t
	if err := sysFstat(fd, &st); err != nil {
		return err
	}
	zeros := make([]byte, 4096)
	for off := st.Size; off < size; {
		n, err := sysPwrite(fd, zeros[:min(size-off, 4096)], off)
		if err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// sysRenameNew is rename(2) that refuses to replace. Kernels and file systems without RENAME_NOREPLACE take the
// plain one.
func sysRenameNew(from, to string) error {
	err := again(func() error { return unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE) })
	if err == unix.ENOSYS || err == unix.EINVAL {
		return sysRename(from, to)
	}
	return err
}

// sysLstatText is lstat(2) of a path that is prepared once, without garbage: it runs for every batch.
func sysLstatText(path *byte, st *unix.Stat_t) error {
	at := unix.AT_FDCWD
	for {
		_, _, e := unix.Syscall6(unix.SYS_NEWFSTATAT, uintptr(at), uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(st)), unix.AT_SYMLINK_NOFOLLOW, 0, 0)
		switch e {
		case 0:
			return nil
		case unix.EINTR:
			continue
		}
		return e
	}
}

// pipeBytes is what a pipe holds if nobody has changed it (man 7 pipe).
const pipeBytes = 64 << 10

// sysReadable is how many bytes a pipe holds (FIONREAD). Where that cannot be told, it may be full: a look at it costs little, and what
// is not looked at is lost with its last reader.
func sysReadable(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		return pipeBytes
	}
	return n
}

// sysReadPipe reads from a pipe or FIFO. One that has bytes refuses none by what the kernel says of itself; a refusal all the same would
// leave bytes where they must not be (in the FIFO, when the log has them already), so it gets one more chance.
func sysReadPipe(fd int, b []byte) (int, error) {
	n, err := sysRead(fd, b)
	if err == nil || err == unix.EAGAIN {
		return n, err
	}
	return sysRead(fd, b)
}

// sysMapFile maps size bytes of a file, shared and writable.
func sysMapFile(fd, size int) ([]byte, error) {
	return unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

// sysMapMemory gives memory outside the Go heap: it costs nothing until it is touched and can be given back.
func sysMapMemory(size int) ([]byte, error) {
	return unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
}

func sysUnmap(b []byte) {
	if b != nil {
		_ = unix.Munmap(b)
	}
}

// sysGiveBack drops the pages of a mapping from this process; a shared file keeps its content.
func sysGiveBack(b []byte) {
	if len(b) > 0 {
		_ = unix.Madvise(b, unix.MADV_DONTNEED)
	}
}

// sysTouch makes the pages of a mapping present and writable in a system call (Linux 5.14). A page fault on a hung
// disk would keep the one processor of the shim; a system call gives it up. Older kernels: no harm.
func sysTouch(b []byte) {
	if len(b) > 0 {
		_ = unix.Madvise(b, unix.MADV_POPULATE_WRITE)
	}
}

// sysMakeFIFO makes and opens the FIFO at path for reading and writing, without blocking. Whatever else stands
// there is replaced, no link is followed. Others may write into it (0622): the directory is closed to strangers,
// and a worker under another user may open /dev/stdout anew. owner -1: ours.
func sysMakeFIFO(path string, owner int) (int, error) {
	for range 8 {
		reach("fifo.make")
		if err := sysMkfifo(path, 0o622); err != nil && err != unix.EEXIST {
			return -1, &os.PathError{Op: "mkfifo", Path: path, Err: err}
		}
		fd, err := sysOpenFIFO(path, unix.O_RDWR)
		if err == errNoFIFO {
			if err := sysMoveAway(path); err != nil {
				return -1, err
			}
			continue
		}
		if err == unix.ENOENT {
			continue
		}
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: path, Err: err}
		}
		if err := sysGiveFIFO(fd, owner); err != nil {
			_ = unix.Close(fd)
			return -1, &os.PathError{Op: "chown", Path: path, Err: err}
		}
		return fd, nil
	}
	return -1, &os.PathError{Op: "mkfifo", Path: path, Err: unix.EEXIST}
}

// errNoFIFO: something else is in its place.
const errNoFIFO = syscall.ENOSTR

// sysOpenFIFO opens an existing FIFO, never through a link. errNoFIFO if it is something else.
func sysOpenFIFO(path string, access int) (int, error) {
	fd, err := sysOpen(path, access|unix.O_NONBLOCK, 0)
	switch err {
	case nil:
	case unix.ELOOP, unix.EISDIR, unix.ENXIO, unix.ENODEV:
		return -1, errNoFIFO
	default:
		return -1, err
	}
	var st unix.Stat_t
	err = sysFstat(fd, &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFIFO {
		err = errNoFIFO
	}
	if err != nil { // one that cannot be looked at stays where it is
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func sysGiveFIFO(fd, owner int) error {
	var st unix.Stat_t
	if err := sysFstat(fd, &st); err != nil {
		return err
	}
	if owner >= 0 && st.Uid != uint32(owner) {
		reach("fifo.owner")
		if err := sysFchown(fd, owner, -1); err != nil {
			return err
		}
	}
	if st.Mode&0o7777 == 0o622 {
		return nil
	}
	reach("fifo.mode")
	return sysFchmod(fd, 0o622)
}

// sysMoveAway frees a path of ours from what a third party put there: a directory is renamed, since it may hold
// something; all else is unlinked, which never touches the target of a link.
func sysMoveAway(path string) error {
	reach("away.unlink")
	err := sysUnlink(path)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	reach("away.rmdir")
	if sysRmdir(path) == nil {
		return nil
	}
	for i := range 1000 {
		to := path + ".moved." + string(rune('0'+i/100)) + string(rune('0'+i/10%10)) + string(rune('0'+i%10))
		reach("away.rename")
		if e := sysRenameNew(path, to); e != unix.EEXIST && e != unix.ENOTEMPTY {
			if e == nil {
				return nil
			}
			break
		}
	}
	return &os.PathError{Op: "remove", Path: path, Err: err}
}
