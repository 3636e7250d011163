// Role: the stage, the service's own process before execve: it waits at the barrier, sets itself up, becomes the service.
// Runs in: stage (`diakonos-run -exec`).
// Owns: its own process.
// Uses: wire, sys.

package main

import (
	"encoding/binary"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Descriptors of a stage. 0, 1 and 2 are the service's.
const (
	barrierFD = 3 // order, then one byte: the commit
	reportFD  = 4 // close-on-exec from the start: its end of file tells that execve succeeded
	pidFileFD = 5 // description of main.pid with an OFD lock; absent for control processes
)

// exitNeverRan is the status of a stage that saw no commit. None of systemd's, and rare: it counts only while the record says "spawning".
const exitNeverRan = 199

// stageMain never returns to the caller in good order: it becomes the service or exits.
func stageMain() int {
	reach("stage.wait")
	order, ok := readOrder()
	if !ok {
		// End of file: the shim died or thought better of it. The empty main.pid and the status tell a successor that nothing ran.
		reach("stage.void")
		_ = sysFtruncate(pidFileFD, 0)
		return exitNeverRan
	}
	for fd := barrierFD; fd <= pidFileFD; fd++ {
		unix.CloseOnExec(fd)
	}
	closeInherited(barrierFD) // these too: a report that the service inherits would have no end
	if order.UID >= 0 || order.GID >= 0 {
		runtime.LockOSThread() // credentials belong to the thread, and execve keeps this one's; the lock costs a start one more thread
	}
	f := becomeService(order)
	reach("stage.fail")
	_, _ = sysWrite(reportFD, []byte(encodeStageFailure(f)))
	return f.Stage.exitCode()
}

// readOrder reads the order and waits for the commit byte. ok = false: no commit will come.
func readOrder() (stageOrder, bool) {
	var size [4]byte
	if !readFull(size[:]) {
		return stageOrder{}, false
	}
	body := make([]byte, binary.LittleEndian.Uint32(size[:]))
	if !readFull(body) {
		return stageOrder{}, false
	}
	order, err := decodeStageOrder(body)
	var commit [1]byte
	return order, readFull(commit[:]) && err == nil
}

func readFull(b []byte) bool {
	for len(b) > 0 {
		n, err := sysRead(barrierFD, b)
		if err != nil || n == 0 {
			return false
		}
		b = b[n:]
	}
	return true
}

// becomeService takes the set-up steps in order and returns only on failure.
func becomeService(o stageOrder) stageFailure {
	steps := []struct {
		stage setupStage
		take  func(stageOrder) error
	}{
		{stageSetsid, enterSession}, {stageCgroup, joinCgroup}, {stageOOM, restoreOOMScore}, {stageGroup, setGroups},
		{stageUser, setUser}, {stageChdir, enterDirectory},
	}
	for _, s := range steps {
		reach("stage.step")
		if err := s.take(o); err != nil {
			return stageFailure{s.stage, int(errnoOf(err))}
		}
	}
	unix.Umask(o.UMask)
	reach("stage.report")
	if _, err := sysWrite(reportFD, []byte(stageReportExec)); err != nil && err != unix.EPIPE { // before SIGPIPE has its default action: the shim may be dead
		return stageFailure{stageExec, int(errnoOf(err))}
	}
	reach("stage.exec")
	resetSignals()
	err := again(func() error { return syscall.Exec(o.Path, o.Argv, o.Env) }) // also gives NOFILE its original soft limit back
	return stageFailure{stageExec, int(errnoOf(err))}
}

func errnoOf(err error) syscall.Errno {
	if errno, ok := err.(syscall.Errno); ok {
		return errno
	}
	return syscall.EIO
}

func enterSession(stageOrder) error {
	_, err := unix.Setsid()
	return err
}

func joinCgroup(o stageOrder) error {
	if o.Cgroup == "" {
		return nil
	}
	reach("stage.join-cgroup")
	return enterCgroup(o.Cgroup)
}

// restoreOOMScore undoes what the shim did for itself; it is best effort there, so here too.
func restoreOOMScore(stageOrder) error {
	if os.Geteuid() == 0 {
		setOOMScore("0")
	}
	return nil
}

func setGroups(o stageOrder) error {
	if o.GID < 0 {
		return nil
	}
	gids := make([]uint32, len(o.Groups)+1) // one more, so that there is an address to take
	for i, g := range o.Groups {
		gids[i] = uint32(g)
	}
	_, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(o.Groups)), uintptr(unsafe.Pointer(&gids[0])), 0)
	if errno != 0 {
		return errno
	}
	g := uintptr(o.GID)
	_, _, errno = unix.RawSyscall(unix.SYS_SETRESGID, g, g, g)
	return errnoOrNil(errno)
}

func setUser(o stageOrder) error {
	if o.UID < 0 {
		return nil
	}
	u := uintptr(o.UID)
	_, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, u, u, u)
	return errnoOrNil(errno)
}

func errnoOrNil(errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

// enterDirectory comes after the change of user: the directory must be open to the service, not to us.
func enterDirectory(o stageOrder) error {
	err := sysChdir(o.Dir)
	if err == nil || o.Soft == "" {
		return err
	}
	if sysChdir(o.Soft) == nil {
		return nil
	}
	return sysChdir("/")
}

// resetSignals gives every signal its default action and empties the mask: what a caller ignored (nohup) or blocked must not reach a
// service. The mask is this thread's, which execve keeps: from here to there only raw system calls are made, which let go of no thread.
func resetSignals() {
	for sig := syscall.Signal(1); sig <= 64; sig++ {
		if sig != syscall.SIGKILL && sig != syscall.SIGSTOP {
			resetSignal(sig)
		}
	}
	var none uint64
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&none)), 0, 8, 0, 0)
}
