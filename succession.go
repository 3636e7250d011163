// Role: how a process becomes another program: execve that keeps PID, children, locks and open descriptors, and a will that tells the
// new program what they are.
// Runs in: shim, daemon.
// Owns: nothing.
// Uses: codec, sys.

package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// willVariable names, in the environment of the new program, the descriptor of the will that its predecessor left.
const willVariable = "DIAKONOS_WILL"

// succession is the exec of another program by a process that goes on: the daemon, or a shim.
type succession struct {
	program string
	argv    []string
	env     []string
	keep    []int       // descriptors that stay open
	will    record      // what the new program is told of them
	hold    func() bool // called last, when no signal is handled any more; false = there is something to do first
}

// errHeld: something was still to be done.
var errHeld = errors.New("a signal came in between")

// carryOut becomes the other program. It returns only if that fails. Then the limit of descriptors is what it was before the Go runtime raised
// it (syscall.Exec), so this process has to become its own program anew, which raises it again.
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
		err = x.exec(willVariable + "=" + strconv.Itoa(fd))
	}
	for _, fd := range keep {
		_ = setCloseOnExec(fd, true) // it was so before
	}
	return err
}

// exec is execve. What is handled now has its default action from then until the new program has handlers too: SIGTERM ends us. It cannot
// wait, for the Go runtime blocks it in no thread, and lets it through before its handlers stand.
func (x succession) exec(will string) error {
	if x.hold != nil && !x.hold() {
		return errHeld
	}
	env := slices.Clone(x.env)
	for i, e := range env {
		if strings.HasPrefix(e, binaryVariable+"=") {
			env[i] = binaryVariable + "=" + x.program
		}
	}
	reach("succession.exec")
	return fmt.Errorf("cannot execute %s: %w", x.program, syscall.Exec(x.program, x.argv, append(env, will)))
}

// writeWill writes the record into memory that has a descriptor (man 2 memfd_create), so that no disk can be too full for it.
func (x succession) writeWill() (int, error) {
	fd, err := unix.MemfdCreate("will", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, err
	}
	for text := encode(nil, x.will); len(text) > 0 && err == nil; {
		var n int
		reach("succession.will")
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
	text, ok := os.LookupEnv(willVariable)
	if !ok {
		return errNotHandedOver
	}
	_ = os.Unsetenv(willVariable) // cannot fail for a valid name
	fd, err := strconv.Atoi(text)
	if err != nil || fd <= 2 {
		return fmt.Errorf("cannot take over: %s names no descriptor: %q", willVariable, text)
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
