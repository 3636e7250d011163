// Role: kernel calls that the standard library lacks, and thin shapes over those that it has.
// Runs in: all personalities.
// Owns: nothing; every descriptor that it returns is close-on-exec and belongs to the caller.
// Uses: codec, wire.

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ---- failpoints

// failpoint is nil in the released program, where nothing sets it. A test sets it in processes of its own, to kill or stop them right
// before an effect: whatever a process does that outlives it, or that another one sees. Each effect has a name of its own;
// failpoint_test.go says what an effect is, finds those without a name, and hits each.
var failpoint func(name string)

// reach comes right before an effect. Inlined, 150 of it would make the binary 9 KB larger, to save 1 ns beside a kernel call.
//
//go:noinline
func reach(name string) {
	if failpoint != nil {
		failpoint(name)
	}
}

// ---- calls that a signal may interrupt

// again makes a call until no signal interrupts it. The handlers of the Go runtime have the kernel restart most calls by itself (SA_RESTART,
// man 7 signal), but not poll, nor connect to a socket with a time limit; and on FUSE and NFS each look at a path may be interrupted.
func again(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

// againFor does so with a call that returns a number.
func againFor(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); err != unix.EINTR {
			return n, err
		}
	}
}

func openRetry(path string, flags int, mode uint32) (int, error) {
	return againFor(func() (int, error) { return unix.Open(path, flags, mode) })
}

func sysRead(fd int, b []byte) (int, error) {
	return againFor(func() (int, error) { return unix.Read(fd, b) })
}

func sysWrite(fd int, b []byte) (int, error) {
	return againFor(func() (int, error) { return unix.Write(fd, b) })
}

func sysPread(fd int, b []byte, at int64) (int, error) {
	return againFor(func() (int, error) { return unix.Pread(fd, b, at) })
}

func sysPwrite(fd int, b []byte, at int64) (int, error) {
	return againFor(func() (int, error) { return unix.Pwrite(fd, b, at) })
}

func sysPoll(fds []unix.PollFd, ms int) (int, error) {
	return againFor(func() (int, error) { return unix.Poll(fds, ms) })
}

func sysStat(path string, st *unix.Stat_t) error {
	return again(func() error { return unix.Stat(path, st) })
}

func sysLstat(path string, st *unix.Stat_t) error {
	return again(func() error { return unix.Lstat(path, st) })
}

func sysFstat(fd int, st *unix.Stat_t) error {
	return again(func() error { return unix.Fstat(fd, st) })
}

func sysStatfs(path string, st *unix.Statfs_t) error {
	return again(func() error { return unix.Statfs(path, st) })
}

func sysFstatfs(fd int, st *unix.Statfs_t) error {
	return again(func() error { return unix.Fstatfs(fd, st) })
}

func sysAccess(path string, mode uint32) error {
	return again(func() error { return unix.Access(path, mode) })
}

func sysMkdir(path string, mode uint32) error {
	return again(func() error { return unix.Mkdir(path, mode) })
}

func sysMkfifo(path string, mode uint32) error {
	return again(func() error { return unix.Mkfifo(path, mode) })
}

func sysUnlink(path string) error {
	return again(func() error { return unix.Unlink(path) })
}

func sysRmdir(path string) error {
	return again(func() error { return unix.Rmdir(path) })
}

func sysRename(from, to string) error {
	return again(func() error { return unix.Rename(from, to) })
}

func sysChmod(path string, mode uint32) error {
	return again(func() error { return unix.Chmod(path, mode) })
}

func sysFchmod(fd int, mode uint32) error {
	return again(func() error { return unix.Fchmod(fd, mode) })
}

func sysLchown(path string, uid, gid int) error {
	return again(func() error { return unix.Lchown(path, uid, gid) })
}

func sysFchown(fd, uid, gid int) error {
	return again(func() error { return unix.Fchown(fd, uid, gid) })
}

func sysChdir(path string) error {
	return again(func() error { return unix.Chdir(path) })
}

func sysFchdir(fd int) error {
	return again(func() error { return unix.Fchdir(fd) })
}

func sysFtruncate(fd int, size int64) error {
	return again(func() error { return unix.Ftruncate(fd, size) })
}

func sysFlock(fd, how int) error {
	return again(func() error { return unix.Flock(fd, how) })
}

func sysFcntlFlock(fd uintptr, cmd int, lk *unix.Flock_t) error {
	return again(func() error { return unix.FcntlFlock(fd, cmd, lk) })
}

func sysBind(fd int, to unix.Sockaddr) error {
	return again(func() error { return unix.Bind(fd, to) })
}

func sysConnect(fd int, to unix.Sockaddr) error {
	return again(func() error { return unix.Connect(fd, to) })
}

// ---- clocks

// bootNow reads CLOCK_BOOTTIME: it counts suspend and never steps (man 2 clock_gettime).
func bootNow() boottime {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) // cannot fail with a valid clock and address
	return boottime(ts.Nano())
}

func randomBytes() (b [16]byte) {
	_, _ = unix.Getrandom(b[:], 0) // cannot fail for 16 bytes once the pool is initialised, and blocks until then
	return b
}

// ---- identity of processes

// errGone: the process that a pidRef names does not run any more (or is a zombie).
var errGone = errors.New("process is gone")

// isShortage: the call found no descriptor or no memory, or failed of something else that says nothing about what it was to look at. What is
// gone or hidden is no shortage.
func isShortage(err error) bool {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return false
	}
	switch errno {
	case unix.ENOENT, unix.ENOTDIR, unix.ESRCH, unix.EINVAL, unix.EACCES, unix.EPERM:
		return false
	}
	return true
}

// isUnread: the file may be there, but could not be read now; the next look may find more.
func isUnread(err error) bool {
	return errors.As(err, new(syscall.Errno)) && !errors.Is(err, fs.ErrNotExist)
}

// procStat is the part of proc_pid_stat(5) that we use.
type procStat struct {
	pid, ppid, pgrp, session int
	state                    byte
	comm                     string
	threads                  int    // field 20
	start                    uint64 // field 22, clock ticks since boot
	cpuTicks                 uint64 // fields 14 + 15
	rssPages                 int64  // field 24
	exitCode                 int    // field 52, only while a zombie; wait status
	exiting                  bool   // field 9, PF_EXITING: it is giving up its files and locks, or has
}

// readStat reads /proc/PID/stat. The name may hold spaces and parentheses: fields are counted from the last ')'.
func readStat(pid int) (procStat, error) {
	b, err := readSmall("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return procStat{}, err
	}
	return parseStat(b)
}

func parseStat(b []byte) (s procStat, err error) {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 1 || end < open || end+4 > len(b) {
		return s, errors.New("cannot read process status: unknown form")
	}
	s.pid, _ = strconv.Atoi(string(bytes.TrimSpace(b[:open])))
	s.comm = string(b[open+1 : end])
	f := strings.Fields(string(b[end+2:])) // f[0] is field 3
	if len(f) < 22 || len(f[0]) != 1 || f[0][0] < 'A' || f[0][0] > 'z' {
		return s, errors.New("cannot read process status: fields are missing")
	}
	num := func(field int) int64 {
		if field-3 >= len(f) {
			return 0
		}
		n, _ := strconv.ParseInt(f[field-3], 10, 64)
		return n
	}
	s.state = f[0][0]
	s.ppid, s.pgrp, s.session = int(num(4)), int(num(5)), int(num(6))
	s.cpuTicks, s.start, s.rssPages = uint64(num(14)+num(15)), uint64(num(22)), num(24)
	s.threads, s.exitCode = int(num(20)), int(num(52))
	s.exiting = num(9)&0x4 != 0 // PF_EXITING of linux/sched.h
	return s, nil
}

// ended: no thread of it lives. A process whose first thread has ended shows as a zombie too.
func (s procStat) ended() bool { return s.state == 'X' || s.state == 'Z' && s.threads <= 1 }

// readSmall reads a file of /proc or /sys in a few calls, without the poller. Most have less than 512 bytes.
func readSmall(path string) ([]byte, error) {
	fd, err := openRetry(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return readToEnd(fd)
}

// readToEnd reads on to the end.
func readToEnd(fd int) ([]byte, error) {
	b := make([]byte, 0, 512)
	for {
		n, err := sysRead(fd, b[len(b):cap(b)])
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return b, nil
		}
		b = b[:len(b)+n]
		if len(b) == cap(b) {
			b = append(make([]byte, 0, 4*cap(b)), b...)
		}
	}
}

// pidfdInode is unique per process and boot since Linux 6.9 (pidfs); before, all pidfds share one inode, so 0.
func pidfdInode(fd int) uint64 {
	var fs unix.Statfs_t
	if sysFstatfs(fd, &fs) != nil || fs.Type != unix.PID_FS_MAGIC {
		return 0
	}
	var st unix.Stat_t
	if sysFstat(fd, &st) != nil {
		return 0
	}
	return st.Ino
}

// identify completes the identity of the process behind pidfd. The pidfd pins it: what /proc says of the PID is true of this
// process as long as the pidfd has not been signalled afterwards.
func identify(pid, pidfd int) pidRef {
	ref := pidRef{PID: pid, Ino: pidfdInode(pidfd)}
	if s, err := readStat(pid); err == nil {
		ref.Start = s.start
	}
	return ref
}

// openProcess returns a pidfd of the process that ref names, or errGone. The pidfd is opened first and the
// identity is checked after, so a recycled PID is never taken for it.
func openProcess(ref pidRef) (int, error) {
	if ref.zero() {
		return -1, errGone
	}
	fd, err := unix.PidfdOpen(ref.PID, unix.PIDFD_NONBLOCK)
	if err == unix.ESRCH || err == unix.EINVAL { // EINVAL: the PID is now a thread of something else
		return -1, errGone
	}
	if err != nil {
		st, serr := readStat(ref.PID)
		if serr == nil && (st.ended() || ref.Start != 0 && st.start != ref.Start) || unix.Kill(ref.PID, 0) == unix.ESRCH {
			return -1, errGone // that can be told without
		}
		return -1, fmt.Errorf("cannot open process %d: %w", ref.PID, err)
	}
	if err := checkIdentity(fd, ref); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func checkIdentity(fd int, ref pidRef) error {
	ino := pidfdInode(fd)
	if ino != 0 && ref.Ino != 0 && ino != ref.Ino {
		return errGone
	}
	st, err := readStat(ref.PID)
	if err != nil {
		if ino != 0 && ino == ref.Ino { // /proc hidden or absent: the inode alone is proof
			return nil
		}
		if isShortage(err) {
			return fmt.Errorf("cannot look at process %d: %w", ref.PID, err)
		}
		return errGone
	}
	if st.ended() {
		return errGone
	}
	if ref.Start != 0 && st.start != ref.Start {
		return errGone
	}
	if ref.Start == 0 && (ino == 0 || ref.Ino == 0) {
		return errGone // nothing that could be compared: no identity, no signal
	}
	return nil
}

// refOf identifies a process that is known to be the right one at this moment; zero if it is gone.
func refOf(pid int) pidRef {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return pidRef{}
	}
	defer unix.Close(fd)
	return identify(pid, fd)
}

// processAlive tells whether the process runs that ref names; where that cannot be told, it does.
func processAlive(ref pidRef) bool {
	fd, err := openProcess(ref)
	switch {
	case err == nil:
		unix.Close(fd)
		return true
	case errors.Is(err, errGone):
		return false
	}
	// Not known for want of descriptors, or of pidfd_open: a PID and a start time are enough to say that it lives, not for a signal.
	st, serr := readStat(ref.PID)
	if serr != nil {
		return isShortage(serr)
	}
	return !st.ended() && (ref.Start == 0 || st.start == ref.Start)
}

// signalProcess sends sig to exactly the process that ref names.
func signalProcess(ref pidRef, sig syscall.Signal) error {
	fd, err := openProcess(ref)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return pidfdSignal(fd, sig)
}

func pidfdSignal(fd int, sig syscall.Signal) error {
	err := unix.PidfdSendSignal(fd, unix.Signal(sig), nil, 0)
	if err == unix.ESRCH {
		return errGone
	}
	return err
}

// pidfdInfo is struct pidfd_info of linux/pidfd.h, first version (64 bytes).
type pidfdInfo struct {
	mask, cgroup                                                    uint64
	pid, tgid, ppid, ruid, rgid, euid, egid, suid, sgid, fsuid, fsg uint32
	exitCode                                                        int32
}

const (
	pidfdGetInfo  = 0xC040FF0B // _IOWR(0xFF, 11, 64 bytes)
	pidfdInfoExit = 1 << 3
)

// pidfdExit returns the wait status of a process that was reaped by somebody else (PIDFD_INFO_EXIT, Linux 6.15).
func pidfdExit(fd int) (unix.WaitStatus, bool) {
	info := pidfdInfo{mask: pidfdInfoExit}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	if errno != 0 || info.mask&pidfdInfoExit == 0 {
		return 0, false
	}
	return unix.WaitStatus(info.exitCode), true
}

// exitOf turns a wait status into ours.
func exitOf(ws unix.WaitStatus) exitStatus {
	switch {
	case ws.Exited():
		return exitStatus{exitExited, ws.ExitStatus()}
	case ws.CoreDump():
		return exitStatus{exitDumped, int(ws.Signal())}
	default:
		return exitStatus{exitKilled, int(ws.Signal())}
	}
}

// whenReadable calls post once, from a goroutine of its own, when fd becomes readable (for a pidfd: when the process has ended).
// It owns fd, which must be non-blocking.
func whenReadable(fd int, post func(f *os.File)) {
	f := os.NewFile(uintptr(fd), "pidfd")
	go func() {
		raw, err := f.SyscallConn()
		if err == nil {
			err = raw.Read(func(fd uintptr) bool { return pollIn(int(fd)) })
		}
		for err != nil && !pollFor(fd, -1) { // the poller has no room (max_user_watches of man 7 epoll): this takes a thread
		}
		post(f)
	}()
}

// whenUnpopulated calls post once, from a goroutine of its own, when the cgroup is empty or removed whose cgroup.events is fd. The kernel
// wakes who polls that file at each change (man 7 cgroups). It owns fd, which must be non-blocking.
func whenUnpopulated(fd int, post func()) {
	f := os.NewFile(uintptr(fd), "cgroup.events")
	go func() {
		raw, err := f.SyscallConn()
		if err == nil {
			err = raw.Read(func(fd uintptr) bool { return unpopulated(int(fd)) })
		}
		f.Close()
		if err != nil { // the poller has no room
			time.AfterFunc(retryPause, post)
			return
		}
		post()
	}()
}

// unpopulated reads cgroup.events, which covers the cgroups below too. It can be read no more when the cgroup is removed.
func unpopulated(fd int) bool {
	var b [256]byte
	n, err := sysPread(fd, b[:], 0)
	return err != nil || bytes.Contains(b[:n], []byte("populated 0"))
}

func pollIn(fd int) bool { return pollFor(fd, 0) }

// pollFor waits so many ms, -1 = for ever, for fd to be readable; a signal begins the wait anew.
func pollFor(fd, ms int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := sysPoll(p, ms)
	return err == nil && n > 0
}

// closeFD closes what may be open; -1 = it is not.
func closeFD(fd *int) {
	if *fd >= 0 {
		unix.Close(*fd)
	}
	*fd = -1
}

// ---- children

// waitedChild is a child that has ended and was not reaped yet.
type waitedChild struct {
	pid  int
	exit exitStatus
}

// siginfoChild is siginfo_t as waitid(2) fills it, on 64-bit Linux.
type siginfoChild struct {
	signo, errno, code, _ int32
	pid                   int32
	uid                   uint32
	status                int32
	_                     [100]byte
}

// endedChild looks for a child that has ended, without reaping it. pid 0: none has; err ECHILD: there is no child at all.
func endedChild() (waitedChild, error) {
	var info siginfoChild
	for {
		_, _, errno := unix.Syscall6(unix.SYS_WAITID, unix.P_ALL, 0, uintptr(unsafe.Pointer(&info)),
			unix.WEXITED|unix.WNOWAIT|unix.WNOHANG, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return waitedChild{}, errno
		}
		break
	}
	const cldExited, cldDumped = 1, 3 // CLD_EXITED, CLD_DUMPED of man 2 sigaction
	how := exitKilled
	switch info.code {
	case cldExited:
		how = exitExited
	case cldDumped:
		how = exitDumped
	}
	return waitedChild{int(info.pid), exitStatus{how, int(info.status)}}, nil
}

// endedRef identifies a child that has ended and is not reaped, without allocating anything; PID -1 = there is none.
func endedRef() pidRef {
	var info siginfoChild
	if _, _, errno := unix.Syscall6(unix.SYS_WAITID, unix.P_ALL, 0, uintptr(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOWAIT|unix.WNOHANG, 0, 0); errno != 0 || info.pid == 0 {
		return pidRef{PID: -1}
	}
	ref := pidRef{PID: int(info.pid)}
	if fd, err := unix.PidfdOpen(ref.PID, 0); err == nil {
		ref.Ino = pidfdInode(fd)
		unix.Close(fd)
	}
	if ref.Ino == 0 {
		ref.Start = startTime(ref.PID)
	}
	return ref
}

// startTime is field 22 of /proc/PID/stat, read without allocating anything; 0 = not known.
func startTime(pid int) uint64 {
	var path [32]byte
	b := strconv.AppendInt(append(path[:0], "/proc/"...), int64(pid), 10)
	b = append(b, "/stat\x00"...)
	fd, _, errno := unix.Syscall6(unix.SYS_OPENAT, atCWD, uintptr(unsafe.Pointer(&b[0])), unix.O_RDONLY|unix.O_CLOEXEC, 0, 0, 0)
	if errno != 0 {
		return 0
	}
	var text [512]byte
	n, _, errno := unix.Syscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&text[0])), uintptr(len(text)))
	unix.Close(int(fd))
	if errno != 0 {
		return 0
	}
	rest := text[:n]
	rest = rest[bytes.LastIndexByte(rest, ')')+1:] // field 3 begins behind the name
	var start uint64
	for field := 2; len(rest) > 0; rest = rest[1:] {
		switch c := rest[0]; {
		case c == ' ':
			field++
		case field == 22 && c >= '0' && c <= '9':
			start = 10*start + uint64(c-'0')
		case field > 22:
			return start
		}
	}
	return start
}

// atCWD is AT_FDCWD as an argument of a raw system call.
const atCWD = ^uintptr(99)

// isChild: pid is a child of ours that runs, or has ended and was not reaped.
func isChild(pid int) bool {
	for {
		_, _, errno := unix.Syscall6(unix.SYS_WAITID, unix.P_PID, uintptr(pid), 0, unix.WEXITED|unix.WNOWAIT|unix.WNOHANG, 0, 0)
		if errno != unix.EINTR {
			return errno == 0
		}
	}
}

// hasChildren: there is one at least, whose end comes as SIGCHLD.
func hasChildren() bool {
	_, err := endedChild()
	return err != unix.ECHILD
}

// reapChild removes a zombie that endedChild has shown.
func reapChild(pid int) {
	for {
		_, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
		if err != unix.EINTR {
			return
		}
	}
}

// launch is one exec of our own binary; never of a service: syscall.ForkExec would freeze this process while an exec hangs on a
// dead file system.
type launch struct {
	argv   []string
	env    []string
	files  []uintptr // 0, 1, 2, …
	dir    string
	setsid bool
	parent bool   // CLONE_PARENT: the new process becomes our sibling
	path   string // program; "" = our own
	cgroup int    // directory descriptor to be born in (CLONE_INTO_CGROUP), -1 = ours
}

// start runs the launch and returns PID and pidfd (-1 where the kernel gives none).
func (l launch) start() (pid, pidfd int, err error) {
	pidfd = -1
	attr := &syscall.ProcAttr{Dir: l.dir, Env: l.env, Files: l.files,
		Sys: &syscall.SysProcAttr{Setsid: l.setsid, PidFD: &pidfd}}
	if l.parent {
		attr.Sys.Cloneflags = unix.CLONE_PARENT
	}
	if l.cgroup >= 0 {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, l.cgroup
	}
	path := l.path
	if path == "" {
		path = selfExe()
	}
	pid, err = againFor(func() (int, error) { return syscall.ForkExec(path, l.argv, attr) })
	if err != nil {
		return 0, -1, err
	}
	if pidfd < 0 {
		pidfd, _ = unix.PidfdOpen(pid, 0)
	}
	return pid, pidfd, nil
}

// binaryVariable hands the absolute path of the binary to our processes where there is no /proc/self/exe.
const binaryVariable = "DIAKONOS_BINARY"

// ownLink names our own program, also when the file was replaced or deleted.
const ownLink = "/proc/self/exe"

// selfExe names our own program for exec.
func selfExe() string {
	if sysAccess(ownLink, unix.X_OK) == nil {
		return ownLink
	}
	return os.Getenv(binaryVariable)
}

// programID names the file that a process runs, also after it was replaced or deleted. The zero value: not known.
type programID struct{ dev, ino uint64 }

// programOf looks at the program of a process; "self" is our own.
func programOf(pid string) programID {
	var st unix.Stat_t
	if sysStat("/proc/"+pid+"/exe", &st) != nil {
		return programID{}
	}
	return programID{st.Dev, st.Ino}
}

// setProcessName sets what ps(1) shows as the command (at most 15 bytes), and by what a tree knows daemons and shims. It is the name of
// the first thread, on which the runtime may not have us any more: prctl(2), which names the present one, is for want of /proc.
func setProcessName(name string) {
	fd, err := openRetry("/proc/self/comm", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = sysWrite(fd, []byte(name))
		unix.Close(fd)
	}
	if err != nil {
		b := append([]byte(name), 0)
		_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&b[0])), 0, 0, 0)
	}
}

// becomeSubreaper makes orphaned descendants our children (man 2 PR_SET_CHILD_SUBREAPER).
func becomeSubreaper() error { return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

// isSubreaper: orphaned descendants become our children; a process keeps that over execve.
func isSubreaper() bool {
	var is int32
	err := unix.Prctl(unix.PR_GET_CHILD_SUBREAPER, uintptr(unsafe.Pointer(&is)), 0, 0, 0)
	return err == nil && is == 1
}

// resetSignal gives a signal its default action. A zeroed struct sigaction is SIG_DFL on all architectures.
func resetSignal(sig syscall.Signal) {
	var action [4]uint64
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
}

// signalSet is a sigset_t of 64-bit Linux.
func signalSet(signals ...syscall.Signal) (set unix.Sigset_t) {
	for _, sig := range signals {
		set.Val[0] |= 1 << (sig - 1)
	}
	return set
}

// closeInherited marks all descriptors from first on close-on-exec: nothing that we inherited leaks into what we start.
func closeInherited(first int) {
	if unix.CloseRange(uint(first), ^uint(0)>>32, unix.CLOSE_RANGE_CLOEXEC) == nil { // Linux 5.11
		return
	}
	for fd := first; fd < 1024; fd++ {
		unix.CloseOnExec(fd)
	}
}

// raiseThreads makes sure that n threads exist. The Go runtime dies when it cannot make one, so they must be there before a
// service can exhaust the process limit (measured: then the shim survives a fork bomb). Goroutines locked to threads force
// the runtime to make the threads; when they end unlocked, the threads stay in its pool.
func raiseThreads(n int) {
	release, done := make(chan struct{}), make(chan struct{}, n)
	for range n {
		go func() {
			runtime.LockOSThread()
			done <- struct{}{}
			<-release
			runtime.UnlockOSThread()
		}()
	}
	for range n {
		<-done
	}
	close(release)
}

// ---- locks

// lockDirectory takes an exclusive flock on a directory: a lock that nobody can delete. EWOULDBLOCK when it is taken.
func lockDirectory(path string) (int, error) {
	fd, err := openRetry(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := sysFlock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// lockIsTaken tells whether somebody holds lockDirectory(path), without disturbing them for longer than the look.
// A shared lock is tried, so that several lookers do not see each other.
func lockIsTaken(path string) bool {
	fd, err := openRetry(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	reach("lock.look")
	return sysFlock(fd, unix.LOCK_SH|unix.LOCK_NB) == unix.EWOULDBLOCK
}

// Guard bytes: an OFD write lock on the FIFO description that becomes a process's stdout and stderr.
const (
	guardMain    = int64(1) << 62
	guardControl = guardMain + 1
)

// lockByte takes an OFD write lock on one byte. EAGAIN when it is taken.
func lockByte(fd int, at int64) error {
	lk := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: at, Len: 1}
	return sysFcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lk)
}

// waitByte waits until the byte is free, takes it and gives it back; it occupies a thread.
func waitByte(fd int, at int64) error {
	lk := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: at, Len: 1}
	return sysFcntlFlock(uintptr(fd), unix.F_OFD_SETLKW, &lk)
}

// errNoPoller: reads and writes that should wait would fail instead.
var errNoPoller = errors.New("the poller of the kernel does not take it (fs.epoll.max_user_watches of man 7 epoll, or no memory)")

// pollable gives a descriptor that does not block to the runtime's poller, without which who reads from it would not wait. It owns fd.
func pollable(fd int, name string) (*os.File, error) {
	f := os.NewFile(uintptr(fd), name)
	if f.SetDeadline(time.Time{}) != nil {
		f.Close()
		return nil, fmt.Errorf("cannot wait for %s: %w", name, errNoPoller)
	}
	return f, nil
}

// ---- Unix sockets, without package net (it costs every process 0.1 ms at start, measured)

// sunPathBytes is the longest socket path that fits sockaddr_un (man 7 unix).
const sunPathBytes = 107

// withSocketPath calls use with a path for DIR/NAME that fits sockaddr_un.
func withSocketPath(dir, name string, use func(path string) error) error {
	path := name
	if dir != "." {
		path = dir + "/" + name
	}
	if len(path) <= sunPathBytes {
		return use(path)
	}
	fd, err := openRetry(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	short := "/proc/self/fd/" + strconv.Itoa(fd)
	if sysAccess(short, unix.F_OK) == nil {
		return use(short + "/" + name)
	}
	return inDirectory(fd, func() error { return use(name) })
}

// inDirectory runs do on a thread whose working directory is dir, and of which nothing else is left afterwards.
func inDirectory(dir int, do func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = sysFchdir(dir)
		}
		if err == nil {
			err = do()
		}
		done <- err
	}()
	return <-done
}

func newSocket(kind int) (int, error) {
	return unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
}

// listenAt binds and listens on DIR/NAME, mode 0600, replacing what is there: the caller holds the lock that makes it the only one.
func listenAt(dir, name string) (*os.File, error) {
	fd, err := newSocket(unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	err = withSocketPath(dir, name, func(path string) error {
		reach("socket.unlink")
		_ = sysUnlink(path)
		reach("socket.bind")
		if err := sysBind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
			return err
		}
		reach("socket.mode")
		return sysChmod(path, 0o600)
	})
	if err == nil {
		reach("socket.listen")
		err = unix.Listen(fd, 4096)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("cannot listen on %s/%s: %w", dir, name, err)
	}
	return pollable(fd, name)
}

// connectTimeout bounds a connect to a socket whose owner does not accept.
const connectTimeout = 5 * time.Second

// dialAt connects to DIR/NAME.
func dialAt(dir, name string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	tv := unix.NsecToTimeval(int64(connectTimeout)) // connect waits while the backlog is full (man 7 socket)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)
	err = withSocketPath(dir, name, func(path string) error {
		return sysConnect(fd, &unix.SockaddrUnix{Name: path})
	})
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return pollable(fd, name)
}

// retryPause is the wait after a call that found no descriptor or no memory: nothing tells when there is some again.
const retryPause = 100 * time.Millisecond

// acceptFrom waits for the next connection. Temporary failures (EMFILE…) are returned: the caller decides when to try again.
func acceptFrom(l *os.File) (*os.File, error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return nil, err
	}
	nfd := -1
	var aerr error
	err = raw.Read(func(fd uintptr) bool {
		nfd, aerr = againFor(func() (int, error) {
			n, _, err := unix.Accept4(int(fd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			return n, err
		})
		return aerr != unix.EAGAIN && aerr != unix.ECONNABORTED
	})
	if err == nil {
		err = aerr
	}
	if err != nil {
		return nil, err
	}
	return pollable(nfd, "connection")
}

// isTemporary: what an accept has failed of may pass; else the listener is closed.
func isTemporary(err error) bool {
	return errors.As(err, new(syscall.Errno)) || errors.Is(err, errNoPoller)
}

// socketPair returns two connected stream sockets; both non-blocking.
func socketPair() (a, b int, err error) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	return p[0], p[1], err
}

// peerAllowed tells whether the other end runs as the same user or root (SO_PEERCRED, man 7 unix).
func peerAllowed(f *os.File) bool {
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	ok := false
	_ = raw.Control(func(fd uintptr) {
		c, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		ok = err == nil && (c.Uid == 0 || int(c.Uid) == os.Geteuid())
	})
	return ok
}

// openPeer returns a pidfd of the process at the other end, which for the end of a client is the one that listens; -1 where there is none
// that we can see.
func openPeer(f *os.File) int {
	pidfd := -1
	raw, err := f.SyscallConn()
	if err != nil {
		return -1
	}
	_ = raw.Control(func(fd uintptr) {
		c, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil || c.Pid <= 0 {
			return
		}
		if pidfd, err = unix.PidfdOpen(int(c.Pid), 0); err != nil {
			pidfd = -1
		}
	})
	return pidfd
}

// hungUp: the other end is closed; what it wrote may be unread yet.
func (c *conn) hungUp() bool {
	p := []unix.PollFd{{}}
	raw, err := c.f.SyscallConn()
	if err != nil {
		return true
	}
	err = raw.Control(func(fd uintptr) {
		p[0].Fd = int32(fd)
		_, _ = sysPoll(p, 0)
	})
	return err != nil || p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
}

// awaitEnd waits until a process has ended, or the limit has passed.
func awaitEnd(pidfd int, limit time.Duration) {
	if pidfd < 0 {
		return
	}
	p := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for until := time.Now().Add(limit); time.Now().Before(until); {
		if _, err := unix.Poll(p, int(time.Until(until).Milliseconds())+1); err != unix.EINTR {
			return
		}
	}
}

// conn is a connection that carries JSON lines, and descriptors with them. One goroutine reads; one at a time writes.
type conn struct {
	f   *os.File
	buf []byte // read, not yet consumed
	fds []int  // received, not yet claimed
}

func newConn(f *os.File) *conn { return &conn{f: f} }

var errFrameTooLong = errors.New("frame is longer than 1 MiB")

// readLine returns the next line without its newline; valid until the next call.
func (c *conn) readLine() ([]byte, error) {
	from := 0
	for {
		if i := bytes.IndexByte(c.buf[from:], '\n'); i >= 0 {
			line := c.buf[:from+i]
			c.buf = c.buf[from+i+1:]
			return line, nil
		}
		from = len(c.buf)
		if from > maxFrame {
			return nil, errFrameTooLong
		}
		if err := c.fill(); err != nil {
			return nil, err
		}
	}
}

// fill reads once. Descriptors arrive with the first byte of the frame that they were sent with.
func (c *conn) fill() error {
	if cap(c.buf)-len(c.buf) < 512 {
		c.buf = append(make([]byte, 0, 4*len(c.buf)+1024), c.buf...)
	}
	oob := make([]byte, unix.CmsgSpace(8*4))
	raw, err := c.f.SyscallConn()
	if err != nil {
		return err
	}
	var n, oobn int
	var rerr error
	err = raw.Read(func(fd uintptr) bool {
		n, rerr = againFor(func() (m int, err error) {
			m, oobn, _, _, err = unix.Recvmsg(int(fd), c.buf[len(c.buf):cap(c.buf)], oob, unix.MSG_CMSG_CLOEXEC)
			return m, err
		})
		return rerr != unix.EAGAIN // else the poller tells when there is more: it does so once for what is there
	})
	if err == nil {
		err = rerr
	}
	if err != nil {
		return err
	}
	c.fds = append(c.fds, receivedFDs(oob[:oobn])...)
	if n == 0 {
		return io.EOF
	}
	c.buf = c.buf[:len(c.buf)+n]
	return nil
}

func receivedFDs(oob []byte) (fds []int) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range msgs {
		if got, err := unix.ParseUnixRights(&m); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}

// readFrame reads one frame of the protocol between daemon and shims.
func (c *conn) readFrame(f *shimFrame) error {
	line, err := c.readLine()
	if err != nil {
		return err
	}
	return decode(line, f)
}

// readJSON reads one line of the protocol between client and daemon.
func (c *conn) readJSON(v any) error {
	line, err := c.readLine()
	if err != nil {
		return err
	}
	return json.Unmarshal(line, v)
}

// claim takes n received descriptors; fewer if fewer came.
func (c *conn) claim(n int) []int {
	n = min(n, len(c.fds))
	got := c.fds[:n:n]
	c.fds = c.fds[n:]
	return got
}

var errPeerSlow = errors.New("peer does not read")

// send writes one frame without ever waiting. errPeerSlow when the peer's buffer is full: the frame may be cut, so the connection
// must be closed.
func (c *conn) send(f shimFrame, fds ...int) error {
	return c.sendLine(append(encode(make([]byte, 0, 1024), &f), '\n'), fds...)
}

// sendJSON writes one line of the protocol between client and daemon, likewise.
func (c *conn) sendJSON(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.sendLine(append(b, '\n'))
}

func (c *conn) sendLine(b []byte, fds ...int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	raw, err := c.f.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	var serr error
	err = raw.Write(func(fd uintptr) bool {
		for {
			n, serr = unix.SendmsgN(int(fd), b, oob, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			if serr != unix.EINTR {
				return true
			}
		}
	})
	if err == nil {
		err = serr
	}
	if err == unix.EAGAIN || err == nil && n < len(b) {
		return errPeerSlow
	}
	return err
}

// close closes the connection and what was received and never claimed.
func (c *conn) close() {
	c.f.Close()
	for _, fd := range c.claim(len(c.fds)) {
		unix.Close(fd)
	}
}

// ---- notify sockets

// listenNotify binds a datagram socket that receives credentials (man 3 sd_notify, man 7 unix SO_PASSCRED).
func listenNotify(bind func(fd int) error) (int, error) {
	fd, err := newSocket(unix.SOCK_DGRAM)
	if err != nil {
		return -1, err
	}
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err == nil {
		err = bind(fd)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// peekNotify returns the first datagram, if there is one, with its sender, and leaves it where it is; copies of descriptors that came along
// are closed.
func peekNotify(fd int, buf []byte) (n int, sender unix.Ucred, err error) {
	oob := make([]byte, 256)
	n, oobn, _, _, err := unix.Recvmsg(fd, buf, oob, unix.MSG_PEEK|unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	for err == unix.EINTR {
		n, oobn, _, _, err = unix.Recvmsg(fd, buf, oob, unix.MSG_PEEK|unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	}
	if err != nil {
		return 0, sender, err
	}
	msgs, _ := unix.ParseSocketControlMessage(oob[:oobn])
	for _, m := range msgs {
		if c, err := unix.ParseUnixCredentials(&m); err == nil {
			sender = *c
		}
		if fds, err := unix.ParseUnixRights(&m); err == nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
		}
	}
	return n, sender, nil
}

// peekPacket returns the first packet, if there is one, and leaves it where it is; 0 = the other side has closed.
func peekPacket(fd int, buf []byte) (n int, err error) {
	for {
		n, _, err = unix.Recvfrom(fd, buf, unix.MSG_PEEK|unix.MSG_DONTWAIT|unix.MSG_TRUNC)
		if err != unix.EINTR {
			return n, err
		}
	}
}

// dropDatagram takes the first datagram away, with the descriptors that came along.
func dropDatagram(fd int) error {
	_, _, err := unix.Recvfrom(fd, nil, unix.MSG_DONTWAIT)
	for err == unix.EINTR {
		_, _, err = unix.Recvfrom(fd, nil, unix.MSG_DONTWAIT)
	}
	return err
}

// ---- machine

// bootIdentity names this boot as far as processes go: the kernel's boot id and the start of the PID namespace's first process
// (the inode of its pidfd, or of the namespace, where that is hidden). An error: it cannot be told now. Records of another boot are void, so a look that has failed must
// never pass for another boot.
func bootIdentity() (boot string, pidns uint64, err error) {
	pidns = pidNamespace()
	id, err := lookTwice(func() ([]byte, error) { return readSmall("/proc/sys/kernel/random/boot_id") })
	if err != nil {
		return "", 0, fmt.Errorf("cannot tell which boot this is: %w", err)
	}
	boot = string(bytes.TrimSpace(id))
	first, err := lookTwice(func() (procStat, error) { return readStat(1) })
	if err != nil {
		return "", 0, fmt.Errorf("cannot tell when process 1 was started: %w", err)
	}
	if first.pid == 0 { // hidden, or there is no /proc; its pidfd tells since Linux 6.9, while the number of a namespace comes again
		ino, err := firstInode()
		if err != nil {
			return "", 0, fmt.Errorf("cannot tell which process 1 this is: %w", err)
		}
		if ino != 0 {
			return boot + ".p" + strconv.FormatUint(ino, 10), pidns, nil
		}
		return boot + ".ns" + strconv.FormatUint(pidns, 10), pidns, nil
	}
	return boot + "." + strconv.FormatUint(first.start, 10), pidns, nil
}

// lookTwice looks at what may be hidden from us, which is no error: then the result is zero. What is hidden is so the second time too.
func lookTwice[T any](look func() (T, error)) (v T, err error) {
	for range 2 {
		if v, err = look(); err == nil {
			return v, nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || err == unix.ESRCH || err == unix.ENOTDIR {
		err = nil
	}
	var zero T
	return zero, err
}

// firstInode is that of the pidfd of process 1; 0 = this kernel or sandbox has none.
func firstInode() (uint64, error) {
	fd, err := unix.PidfdOpen(1, 0)
	for range 2 {
		if !isShortage(err) {
			break
		}
		fd, err = unix.PidfdOpen(1, 0)
	}
	switch {
	case isShortage(err):
		return 0, err
	case err != nil:
		return 0, nil
	}
	defer unix.Close(fd)
	return pidfdInode(fd), nil
}

func pidNamespace() uint64 {
	st, _ := lookTwice(func() (st unix.Stat_t, err error) { return st, sysStat("/proc/self/ns/pid", &st) })
	return st.Ino
}

// cgroupMount finds where cgroup v2 is mounted: /proc/self/mountinfo, whose fields man 5 proc explains. "" = nowhere.
func cgroupMount(mountinfo []byte) (mount, root string) {
	for line := range strings.Lines(string(mountinfo)) {
		head, tail, ok := strings.Cut(line, " - ")
		if !ok || !strings.HasPrefix(tail, "cgroup2 ") {
			continue
		}
		f := strings.Fields(head)
		if len(f) < 5 {
			continue
		}
		return unescapeMount(f[4]), unescapeMount(f[3])
	}
	return "", ""
}

// unescapeMount undoes the octal escapes of mountinfo.
func unescapeMount(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// ownCgroup is the directory of our own cgroup v2. "" = none is visible.
func ownCgroup() string {
	info, err := readSmall("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	mount, root := cgroupMount(info)
	member, err := readSmall("/proc/self/cgroup")
	if mount == "" || err != nil {
		return ""
	}
	for line := range strings.Lines(string(member)) {
		if path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			if root != "/" {
				path = strings.TrimPrefix(path, root)
			}
			return strings.TrimSuffix(mount+path, "/")
		}
	}
	return ""
}

// enterCgroup moves this process into a cgroup by its cgroup.procs (man 7 cgroups).
func enterCgroup(procs string) error {
	fd, err := openRetry(procs, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = sysWrite(fd, []byte("0"))
	return err
}

// isNetworkFileSystem: locks and records there are shared with other kernels.
func isNetworkFileSystem(path string) bool {
	var fs unix.Statfs_t
	if sysStatfs(path, &fs) != nil {
		return false
	}
	switch uint32(fs.Type) {
	case unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.V9FS_MAGIC,
		unix.AFS_SUPER_MAGIC, unix.CODA_SUPER_MAGIC, unix.CEPH_SUPER_MAGIC, unix.OCFS2_SUPER_MAGIC:
		return true
	}
	return false
}

func isTmpfs(path string) bool {
	var fs unix.Statfs_t
	return sysStatfs(path, &fs) == nil && fs.Type == unix.TMPFS_MAGIC
}

// openNothing is a standard input without anything in it: /dev/null, or where there is none, a pipe without a writer.
func openNothing() (int, error) {
	fd, err := openRetry("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		return fd, nil
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return -1, err
	}
	unix.Close(p[1])
	return p[0], nil
}

// canWrite: one short line can be written without waiting for a reader (man 7 pipe, PIPE_BUF).
func canWrite(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	n, err := sysPoll(p, 0)
	return err != nil || n > 0
}

// freeBytes is what an ordinary user can write to the file system of path.
func freeBytes(path string) int64 {
	var fs unix.Statfs_t
	if sysStatfs(path, &fs) != nil {
		return 0
	}
	return int64(fs.Bavail) * int64(fs.Bsize)
}

// setOOMScore writes /proc/self/oom_score_adj (man 5 proc): lower = less likely to be killed. Lowering needs CAP_SYS_RESOURCE.
func setOOMScore(score string) {
	fd, err := openRetry("/proc/self/oom_score_adj", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	_, _ = sysWrite(fd, []byte(score))
	unix.Close(fd)
}

// clockTicks is USER_HZ: the unit of times in /proc/PID/stat, 100 on every Linux that Go runs on.
const clockTicks = 100
