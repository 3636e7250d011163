// Role: how a process becomes another program: execve that keeps PID, children, locks and open descriptors, and a record that tells
// the new program what they are.
// Runs in: shim, daemon.
// Owns: nothing.
// Uses: codec, sys.

package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// handoverVariable names, in the environment of the new program, the descriptor of the record that its predecessor left.
const handoverVariable = "DIAKONOS_HANDOVER"

// succession is the exec of another program by a process that goes on: the daemon, or a shim.
type succession struct {
	program string
	argv    []string
	env     []string
	keep    []int  // descriptors that stay open
	will    record // what the new program is told of them
}

// carryOut becomes the other program. It returns only if that fails, and then all is as it was.
func (x succession) carryOut() error {
	fd, err := x.writeWill()
	if err != nil {
		return fmt.Errorf("cannot hand over to %s: %w", x.program, err)
	}
	defer unix.Close(fd)
	keep := append([]int{fd}, x.keep...)
	for _, fd := range keep {
		if err = setCloseOnExec(fd, false); err != nil {
			err = fmt.Errorf("cannot keep descriptor %d: %w", fd, err)
			break
		}
	}
	if err == nil {
		err = execHoldingSignals(x.program, x.argv, append(x.env, handoverVariable+"="+strconv.Itoa(fd)))
		err = fmt.Errorf("cannot execute %s: %w", x.program, err)
	}
	for _, fd := range keep {
		_ = setCloseOnExec(fd, true) // it was so before
	}
	return err
}

// writeWill writes the record into memory that has a descriptor (man 2 memfd_create), so that no disk can be too full for it.
func (x succession) writeWill() (int, error) {
	fd, err := unix.MemfdCreate("handover", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, err
	}
	for text := encode(nil, x.will); len(text) > 0 && err == nil; {
		var n int
		reach("hand-over.will")
		n, err = sysWrite(fd, text)
		text = text[max(n, 0):]
	}
	if err == nil {
		_, err = unix.Seek(fd, 0, unix.SEEK_SET)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// errNotHandedOver: this process was started in the ordinary way.
var errNotHandedOver = errors.New("nothing was handed over")

// readWill reads what the program before this one left, if this process had one. The record's descriptors are close-on-exec again only
// after closeInherited.
func readWill(will record) error {
	text, ok := os.LookupEnv(handoverVariable)
	if !ok {
		return errNotHandedOver
	}
	_ = os.Unsetenv(handoverVariable) // cannot fail for a valid name
	fd, err := strconv.Atoi(text)
	if err != nil || fd <= 2 {
		return fmt.Errorf("cannot take over: %s names no descriptor: %q", handoverVariable, text)
	}
	defer unix.Close(fd)
	body, err := readToEnd(fd)
	if err == nil {
		err = decode(body, will)
	}
	if err != nil {
		return fmt.Errorf("cannot take over: %w", err)
	}
	return nil
}

// inherited makes a file of a descriptor of a will that is to be waited for; nil = there is none, or no poller for it.
func inherited(fd int, name string) *os.File {
	if fd == 0 {
		return nil
	}
	f, err := pollable(fd, name)
	if err != nil {
		return nil
	}
	return f
}

func setCloseOnExec(fd int, on bool) error {
	flags := 0
	if on {
		flags = unix.FD_CLOEXEC
	}
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, flags)
	return err
}

// execHoldingSignals is execve. What is handled now has its default action from the exec until the new program has handlers too, and
// that would end us: signals that come meanwhile wait, blocked in the one thread that goes on. The runtime of the new program unblocks
// them when it gets handlers for them.
func execHoldingSignals(program string, argv, env []string) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var held, before unix.Sigset_t
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM} {
		held.Val[(sig-1)/64] |= 1 << ((sig - 1) % 64)
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &held, &before); err != nil {
		return err
	}
	reach("hand-over.exec")
	err := syscall.Exec(program, argv, env)
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil) // cannot fail for what it gave itself
	return err
}
