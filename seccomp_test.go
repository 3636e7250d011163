// Role: kernel calls of the program's processes, seen one by one from outside, and one of them failed: seccomp(2) with user notification.
// Runs in: go test; filteredMain in a process that installs the filter and becomes a client, all of whose descendants have it.
// Owns: the listener of each filter.
// Uses: failpoint, observe.

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// failableCalls are the calls that our code makes on purpose. Left out is
//
//   - what the Go runtime lives by: futex, mmap of memory, munmap, madvise, rt_sig*, sigaltstack, sched_*, nanosleep, clone of a thread,
//     tgkill, timers, epoll_create1, epoll_pwait, eventfd2, arch_prctl, set_robust_list, rseq, exit*: a failure there ends any Go program;
//   - fcntl(F_GETFD), for the runtime looks at descriptors 0, 1 and 2 with it, and ends the process if that fails;
//   - what cannot fail and whose result we ignore for that: getpid and its like, umask, clock_gettime, getrandom for 16 bytes;
//   - close: Linux closes the descriptor whatever it returns (close(2)), which a filter cannot do, so each would be a leak that no
//     kernel makes;
//   - prlimit64: the runtime raises the limit of descriptors as it begins, and takes what it gets.
//
// argument: an index into the arguments, -1 = the call is failable whatever they are. Else it is so only where argument&mask has the
// value want.
var failableCalls = []struct {
	nr         int
	name       string
	argument   int
	mask, want uint32
	path       int // which argument is a path, -1 = none
	fd         int // which argument is a descriptor, -1 = none
}{
	{unix.SYS_OPENAT, "openat", -1, 0, 0, 1, -1},
	{unix.SYS_READ, "read", -1, 0, 0, -1, 0},
	{unix.SYS_WRITE, "write", -1, 0, 0, -1, 0},
	{unix.SYS_PREAD64, "pread64", -1, 0, 0, -1, 0},
	{unix.SYS_PWRITE64, "pwrite64", -1, 0, 0, -1, 0},
	{unix.SYS_FLOCK, "flock", -1, 0, 0, -1, 0},
	{unix.SYS_FTRUNCATE, "ftruncate", -1, 0, 0, -1, 0},
	{unix.SYS_FALLOCATE, "fallocate", -1, 0, 0, -1, 0},
	{unix.SYS_FSYNC, "fsync", -1, 0, 0, -1, 0},
	{unix.SYS_RENAMEAT, "renameat", -1, 0, 0, 1, -1},
	{unix.SYS_RENAMEAT2, "renameat2", -1, 0, 0, 1, -1},
	{unix.SYS_UNLINKAT, "unlinkat", -1, 0, 0, 1, -1},
	{unix.SYS_MKDIRAT, "mkdirat", -1, 0, 0, 1, -1},
	{unix.SYS_MKNODAT, "mknodat", -1, 0, 0, 1, -1},
	{unix.SYS_SYMLINKAT, "symlinkat", -1, 0, 0, 0, -1},
	{unix.SYS_READLINKAT, "readlinkat", -1, 0, 0, 1, -1},
	{unix.SYS_FCHMOD, "fchmod", -1, 0, 0, -1, 0},
	{unix.SYS_FCHMODAT, "fchmodat", -1, 0, 0, 1, -1},
	{unix.SYS_FCHOWN, "fchown", -1, 0, 0, -1, 0},
	{unix.SYS_FCHOWNAT, "fchownat", -1, 0, 0, 1, -1},
	{unix.SYS_FACCESSAT, "faccessat", -1, 0, 0, 1, -1},
	{unix.SYS_FACCESSAT2, "faccessat2", -1, 0, 0, 1, -1},
	{unix.SYS_FSTAT, "fstat", -1, 0, 0, -1, 0},
	{unix.SYS_NEWFSTATAT, "newfstatat", -1, 0, 0, 1, -1},
	{unix.SYS_STATFS, "statfs", -1, 0, 0, 0, -1},
	{unix.SYS_FSTATFS, "fstatfs", -1, 0, 0, -1, 0},
	{unix.SYS_GETDENTS64, "getdents64", -1, 0, 0, -1, 0},
	{unix.SYS_CHDIR, "chdir", -1, 0, 0, 0, -1},
	{unix.SYS_FCHDIR, "fchdir", -1, 0, 0, -1, 0},
	{unix.SYS_SOCKET, "socket", -1, 0, 0, -1, -1},
	{unix.SYS_SOCKETPAIR, "socketpair", -1, 0, 0, -1, -1},
	{unix.SYS_BIND, "bind", -1, 0, 0, -1, 0},
	{unix.SYS_LISTEN, "listen", -1, 0, 0, -1, 0},
	{unix.SYS_CONNECT, "connect", -1, 0, 0, -1, 0},
	{unix.SYS_ACCEPT4, "accept4", -1, 0, 0, -1, 0},
	{unix.SYS_SENDMSG, "sendmsg", -1, 0, 0, -1, 0},
	{unix.SYS_RECVMSG, "recvmsg", -1, 0, 0, -1, 0},
	{unix.SYS_SHUTDOWN, "shutdown", -1, 0, 0, -1, 0},
	{unix.SYS_GETSOCKOPT, "getsockopt", -1, 0, 0, -1, 0},
	{unix.SYS_SETSOCKOPT, "setsockopt", -1, 0, 0, -1, 0},
	{unix.SYS_PIPE2, "pipe2", -1, 0, 0, -1, -1},
	{unix.SYS_TEE, "tee", -1, 0, 0, -1, 0},
	{unix.SYS_DUP3, "dup3", -1, 0, 0, -1, 0},
	{unix.SYS_IOCTL, "ioctl", -1, 0, 0, -1, 0},
	{unix.SYS_PPOLL, "ppoll", -1, 0, 0, -1, -1},
	{unix.SYS_EPOLL_CTL, "epoll_ctl", -1, 0, 0, -1, 2},
	{unix.SYS_INOTIFY_INIT1, "inotify_init1", -1, 0, 0, -1, -1},
	{unix.SYS_INOTIFY_ADD_WATCH, "inotify_add_watch", -1, 0, 0, 1, -1},
	{unix.SYS_EXECVE, "execve", -1, 0, 0, 0, -1},
	{unix.SYS_CLONE3, "clone3", -1, 0, 0, -1, -1}, // of processes only: the runtime makes threads by clone
	{unix.SYS_CLONE, "clone", 0, unix.CLONE_THREAD, 0, -1, -1},
	{unix.SYS_WAITID, "waitid", -1, 0, 0, -1, -1},
	{unix.SYS_WAIT4, "wait4", -1, 0, 0, -1, -1},
	{unix.SYS_PIDFD_OPEN, "pidfd_open", -1, 0, 0, -1, -1},
	{unix.SYS_PIDFD_SEND_SIGNAL, "pidfd_send_signal", -1, 0, 0, -1, 0},
	{unix.SYS_KILL, "kill", -1, 0, 0, -1, -1},
	{unix.SYS_SETSID, "setsid", -1, 0, 0, -1, -1},
	{unix.SYS_PRCTL, "prctl", -1, 0, 0, -1, -1},
	{unix.SYS_UNAME, "uname", -1, 0, 0, -1, -1},
	{unix.SYS_UNSHARE, "unshare", -1, 0, 0, -1, -1},
	{unix.SYS_CLOSE_RANGE, "close_range", -1, 0, 0, -1, -1},
	{unix.SYS_SETGROUPS, "setgroups", -1, 0, 0, -1, -1},
	{unix.SYS_SETRESGID, "setresgid", -1, 0, 0, -1, -1},
	{unix.SYS_SETRESUID, "setresuid", -1, 0, 0, -1, -1},
	{unix.SYS_FCNTL, "fcntl dup", 1, ^uint32(0), unix.F_DUPFD_CLOEXEC, -1, 0},
	{unix.SYS_FCNTL, "fcntl getfl", 1, ^uint32(0), unix.F_GETFL, -1, 0},
	{unix.SYS_FCNTL, "fcntl setfl", 1, ^uint32(0), unix.F_SETFL, -1, 0},
	{unix.SYS_FCNTL, "fcntl setfd", 1, ^uint32(0), unix.F_SETFD, -1, 0},
	{unix.SYS_FCNTL, "fcntl lock", 1, ^uint32(0), unix.F_OFD_SETLK, -1, 0},
	{unix.SYS_FCNTL, "fcntl wait-lock", 1, ^uint32(0), unix.F_OFD_SETLKW, -1, 0},
	{unix.SYS_MMAP, "mmap", 3, unix.MAP_ANONYMOUS, 0, -1, 4},
	{unix.SYS_MADVISE, "madvise populate", 2, ^uint32(0), unix.MADV_POPULATE_WRITE, -1, -1},
}

// callFilter is the program in classic BPF (seccomp(2), linux/seccomp.h): it tells of the calls above, all others take place. The
// arguments are 64-bit little-endian words, of which the lower half is looked at.
func callFilter() []unix.SockFilter {
	const argumentsAt, archAt = 16, 4 // of struct seccomp_data
	arch := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[runtime.GOARCH]
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	equal := func(k uint32, otherwise uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: otherwise, K: k}
	}
	end := func(action uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action}
	}
	program := []unix.SockFilter{load(archAt), {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: arch}, end(unix.SECCOMP_RET_ALLOW), load(0)}
	for _, c := range failableCalls {
		if c.argument < 0 {
			program = append(program, equal(uint32(c.nr), 1), end(unix.SECCOMP_RET_USER_NOTIF))
			continue
		}
		program = append(program, equal(uint32(c.nr), 5), load(argumentsAt+8*uint32(c.argument)),
			unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: c.mask},
			equal(c.want, 1), end(unix.SECCOMP_RET_USER_NOTIF), load(0))
	}
	return append(program, end(unix.SECCOMP_RET_ALLOW))
}

// rowOfCall tells which row of failableCalls a call is; -1 = none.
func rowOfCall(c *seccompData) int {
	for i, f := range failableCalls {
		if f.nr == int(c.nr) && (f.argument < 0 || uint32(c.args[f.argument])&f.mask == f.want) {
			return i
		}
	}
	return -1
}

// seccompData, seccompNotif and seccompAnswer are struct seccomp_data, seccomp_notif and seccomp_notif_resp of linux/seccomp.h.
type (
	seccompData struct {
		nr      int32
		arch    uint32
		pointer uint64
		args    [6]uint64
	}
	seccompNotif struct {
		id         uint64
		pid, flags uint32
		data       seccompData
	}
	seccompAnswer struct {
		id    uint64
		value int64
		errno int32
		flags uint32
	}
)

const (
	callTakesPlace    = 1                                   // SECCOMP_USER_NOTIF_FLAG_CONTINUE
	syncWakeUp        = 0x40082104                          // SECCOMP_IOCTL_NOTIF_SET_FLAGS, Linux 6.6: half the time of a call
	filteredName      = "filtered"                          // the personality below
	filteredSocket    = 3                                   // its end of a socket pair
	filterNeedsKernel = "Linux 5.19 (seccomp notification)" // SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV: a signal does not repeat a call
)

// filteredMain runs `filtered PROGRAM ARGUMENT…`: one thread installs the filter, another one, which has none, hands its listener over,
// then the first becomes the program. So nothing needs a call that somebody has to answer already.
func filteredMain() {
	unix.CloseOnExec(filteredSocket)
	listeners, sent := make(chan int), make(chan error)
	go func() {
		fd := <-listeners
		sent <- unix.Sendmsg(filteredSocket, []byte{'l'}, unix.UnixRights(fd), nil, 0)
	}()
	runtime.LockOSThread()
	fd, err := installFilter()
	if err != nil {
		_ = unix.Sendmsg(filteredSocket, []byte(err.Error()), nil, nil, 0)
		os.Exit(1)
	}
	listeners <- fd
	if err := <-sent; err != nil {
		os.Exit(1)
	}
	err = syscall.Exec(os.Args[1], append([]string{filepath.Base(os.Args[1])}, os.Args[2:]...), os.Environ())
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// installFilter gives the calling thread the filter. Only root may do so and still gain privileges by execve.
func installFilter() (listener int, err error) {
	filter := callFilter()
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	const flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	for range 2 {
		fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&program)))
		if errno == 0 {
			return int(fd), nil
		}
		if errno != unix.EACCES {
			return -1, errno
		}
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return -1, err
		}
	}
	return -1, unix.EACCES
}

// ---- the watcher

// callErrors are what calls are failed with.
var callErrors = []syscall.Errno{unix.EINTR, unix.EAGAIN, unix.EMFILE, unix.ENOMEM, unix.ENOSPC, unix.EIO, unix.EPERM, unix.ENOSYS}

// callOrder is to fail the nth call of a role.
type callOrder struct {
	role  string
	errno syscall.Errno
	nth   int // 0 = none; all are counted
}

// callWatch answers for the calls of all processes of a trial.
type callWatch struct {
	served sync.WaitGroup

	mu     sync.Mutex
	armed  bool
	order  callOrder
	count  map[string][]int // of calls by role and by error, while armed
	failed string           // the call that was failed, "" = none yet
	row    int              // which it was
	last   time.Time        // of the last call of the role
}

func newCallWatch() *callWatch { return &callWatch{count: map[string][]int{}} }

// start is exec.Cmd.Start for a program that has the filter from its first call on.
func (w *callWatch) start(cmd *exec.Cmd) error {
	launcher, err := exec.LookPath(filteredName)
	if err != nil {
		return err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "filtered")
	cmd.Args = append([]string{launcher, cmd.Path}, cmd.Args[1:]...)
	cmd.Path, cmd.ExtraFiles = launcher, []*os.File{theirs}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return err
	}
	text, oob := make([]byte, 256), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(pair[0], text, oob, unix.MSG_CMSG_CLOEXEC)
	for err == unix.EINTR {
		n, oobn, _, _, err = unix.Recvmsg(pair[0], text, oob, unix.MSG_CMSG_CLOEXEC)
	}
	fds := receivedFDs(oob[:oobn])
	if err == nil && len(fds) != 1 {
		err = fmt.Errorf("no filter can be installed: %s", text[:n])
	}
	if err != nil {
		return errors.Join(err, cmd.Wait())
	}
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(fds[0]), syncWakeUp, unix.SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)
	w.served.Go(func() { w.serve(fds[0]) })
	return nil
}

// serve answers until no process has the filter any more.
func (w *callWatch) serve(listener int) {
	defer unix.Close(listener)
	poll := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(poll, -1); err == unix.EINTR {
			continue
		}
		if poll[0].Revents&unix.POLLIN == 0 {
			return // POLLHUP
		}
		var n seccompNotif
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n)))
		switch errno {
		case 0:
		case unix.ENOENT, unix.EINTR: // who called was killed
			continue
		default:
			return
		}
		a := seccompAnswer{id: n.id, flags: callTakesPlace}
		if errno := w.verdict(&n); errno != 0 {
			a.errno, a.flags = -int32(errno), 0
		}
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&a)))
	}
}

// verdict is the error that a call gets, 0 = it takes place.
func (w *callWatch) verdict(n *seccompNotif) syscall.Errno {
	role := roleOfCaller(n.pid)
	row := rowOfCall(&n.data)
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.armed || role == "" || row < 0 || isOfRuntime(n, row) {
		return 0
	}
	if w.count[role] == nil {
		w.count[role] = make([]int, len(callErrors))
	}
	if w.order.role == role || w.order.nth == 0 {
		w.last = time.Now()
	}
	for i, errno := range callErrors {
		if isLie(row, errno) {
			continue
		}
		w.count[role][i]++
		if w.order.role == role && w.order.errno == errno && w.order.nth == w.count[role][i] {
			w.failed, w.row = describeCall(n, row), row
			return errno
		}
	}
	return 0
}

// roleOfCaller is by the command line at the time of the call; "" = not one of ours, or not ours to fail.
func roleOfCaller(tid uint32) string {
	text := readRaw(fmt.Sprintf("/proc/%d/cmdline", tid), 256)
	args := strings.Split(string(text), "\x00")
	switch filepath.Base(args[0]) {
	case "diakonos", daemonName, shimName:
		return processRole(args)
	}
	return ""
}

// isOfRuntime: calls of the runtime and of syscall.ForkExec among those that are ours else. The poller adds its own eventfd, and ends the
// process if that fails. ForkExec reads an error (8 bytes) from its own pipe, which no kernel refuses, and would wait for the child then.
func isOfRuntime(n *seccompNotif, row int) bool {
	switch failableCalls[row].name {
	case "epoll_ctl":
		return strings.Contains(linkOfDescriptor(n.pid, n.data.args[2]), "[eventfd]")
	case "write": // wakes the poller
		return strings.Contains(linkOfDescriptor(n.pid, n.data.args[0]), "[eventfd]")
	case "read":
		return strings.Contains(linkOfDescriptor(n.pid, n.data.args[0]), "[eventfd]") || n.data.args[2] == 8 && strings.HasPrefix(linkOfDescriptor(n.pid, n.data.args[0]), "pipe:")
	}
	return false
}

// isLie: the kernel never says that, and who believes it is not wrong. EAGAIN of a descriptor that does not block means that there is
// nothing, and that the poller will tell when there is. EINTR comes from calls that wait or look at a path (man 7 signal): the others here
// never do.
func isLie(row int, errno syscall.Errno) bool {
	name := failableCalls[row].name
	switch errno {
	case unix.EAGAIN:
		return slices.Contains([]string{"read", "write", "recvmsg", "accept4", "tee"}, name)
	case unix.EINTR:
		return slices.Contains([]string{"socket", "socketpair", "listen", "shutdown", "getsockopt", "setsockopt", "pipe2", "ioctl", "epoll_ctl", "inotify_init1",
			"pidfd_open", "pidfd_send_signal", "kill", "setsid", "prctl", "uname", "unshare", "close_range", "setgroups", "setresgid", "setresuid", "fcntl dup",
			"fcntl getfl", "fcntl setfl", "fcntl setfd", "mmap"}, name)
	}
	return false
}

func linkOfDescriptor(tid uint32, fd uint64) string {
	link, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", tid, int32(fd)))
	return link
}

// readRaw reads the beginning of a file in three calls.
func readRaw(path string, most int) []byte {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	b := make([]byte, most)
	n, _ := unix.Read(fd, b)
	return b[:max(n, 0)]
}

// describeCall names a call and what it is about.
func describeCall(n *seccompNotif, row int) string {
	c, about := failableCalls[row], ""
	switch {
	case c.path >= 0:
		about = readMemory(n.pid, n.data.args[c.path])
	case c.fd >= 0:
		about = linkOfDescriptor(n.pid, n.data.args[c.fd])
	case c.name == "ppoll":
		var p [8]byte
		copy(p[:], readMemory(n.pid, n.data.args[0]))
		about = linkOfDescriptor(n.pid, uint64(binary.NativeEndian.Uint32(p[:])))
	}
	if c.name == "ioctl" {
		about += fmt.Sprintf(" %#x", n.data.args[1])
	}
	return fmt.Sprintf("%s(%s)", c.name, about)
}

// readMemory reads a string of another process.
func readMemory(tid uint32, at uint64) string {
	b := make([]byte, 256)
	local := []unix.Iovec{{Base: &b[0]}}
	local[0].SetLen(len(b))
	n, err := unix.ProcessVMReadv(int(tid), local, []unix.RemoteIovec{{Base: uintptr(at), Len: len(b)}}, 0)
	if err != nil {
		return "?"
	}
	text, _, _ := bytes.Cut(b[:n], []byte{0})
	return string(text)
}

// arm begins to count, and to look out for the call of the order.
func (w *callWatch) arm(o callOrder) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.armed, w.order, w.count, w.failed, w.last = true, o, map[string][]int{}, "", time.Now()
}

// disarm ends that, and tells which call was failed.
func (w *callWatch) disarm() (failed string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.armed = false
	return w.failed
}

// quiet is how long the role has made no call; done: its order is carried out.
func (w *callWatch) quiet() (since time.Duration, done bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Since(w.last), w.failed != ""
}

// counted are the calls of a role that could be failed with an error.
func (w *callWatch) counted(role string, errno syscall.Errno) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, e := range callErrors {
		if e == errno && w.count[role] != nil {
			return w.count[role][i]
		}
	}
	return 0
}
