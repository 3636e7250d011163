// Role: the first process of a container: starts one command, sends it every signal, reaps all orphans, and ends as the command ends.
// Runs in: init.
// Owns: the command's process, and what falls to this process because its parent has died.
// Uses: wire, value, sys, dialect, console, keep.

package main

import (
	"errors"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mattn/go-isatty"
	"golang.org/x/sys/unix"
)

const (
	initStageFlag = "-exec" // the first argument of a process that becomes the command on a terminal
	initSignals   = 256     // that can wait while one is sent on
)

// initMain is the first process, called by any of its names.
func initMain(args []string) int {
	name := os.Args[0]
	if len(args)+1 < len(os.Args) { // `diakonos diakonos-init …`
		name = os.Args[1]
	}
	c := newInitCall(name, dialectOf(filepath.Base(name)))
	if len(args) > 0 && args[0] == consoleFlag {
		return consoleMain(args[1:])
	}
	if len(args) > 3 && args[0] == initStageFlag {
		return initStage(c, args[1:])
	}
	if a := c.dialect.parse(c, args); a != nil {
		_, _ = io.WriteString(os.Stdout, a.out)
		_, _ = io.WriteString(os.Stderr, a.err)
		return a.code
	}
	debug.SetGCPercent(-1) // nothing is allocated any more, so nothing is to be collected
	i := initLoop{call: c, children: make(chan os.Signal, 1), signals: make(chan os.Signal, initSignals)}
	return i.run()
}

// initLoop is the one loop of the process.
type initLoop struct {
	call     *initCall
	children chan os.Signal         // SIGCHLD
	signals  chan os.Signal         // all others
	handOff  [lastRTSignal + 1]bool // signals that come of giving the terminal away
	pid      int                    // of the command; 0 = it does not run
	keep     *upkeep                // the daemon; nil = there is only the command
	ended    bool
	code     int
}

func (i *initLoop) finish(code int) { i.ended, i.code = true, code }

func (i *initLoop) run() int {
	c := i.call
	var kept []os.Signal // ignored when we were started: the command is to find them so (man 1 nohup)
	for _, sig := range [...]syscall.Signal{unix.SIGHUP, unix.SIGINT} {
		if signal.Ignored(sig) {
			kept = append(kept, sig)
		}
	}
	signal.Notify(i.children, unix.SIGCHLD)
	// The Go runtime sends SIGURG to its own threads, to have a goroutine give way, and package os/signal does not tell who sent a signal. Later
	// that happens only when this process does not get the processor for 10 ms in the midst of its work.
	for sig := syscall.Signal(1); sig < firstRTSignal; sig++ {
		if sig != unix.SIGCHLD && sig != unix.SIGURG && !slices.Contains(kept, os.Signal(sig)) {
			signal.Notify(i.signals, sig)
		}
	}
	if err := i.prepare(); err != nil {
		c.say(sayPrepare, errorText(err))
		return 1
	}
	var frames <-chan keeperFrame
	var due <-chan time.Time
	if c.keeps {
		var err error
		if i.keep, err = newKeep(i); err != nil {
			c.say(sayPrepare, errorText(err))
			return 1
		}
		frames, due = i.keep.frames, i.keep.timer.C
		i.keep.startDaemon()
		i.keep.startConsole()
	} else if code, ok := i.start(); !ok {
		return c.told(code)
	}
	signal.Notify(i.signals, append(kept, unix.SIGURG)...)
	for sig := syscall.Signal(firstRTSignal); sig <= lastRTSignal; sig++ { // each costs 50 µs, for which the command need not wait
		signal.Notify(i.signals, sig)
	}
	for !i.ended {
		select {
		case <-i.children:
			c.say(sayChild)
			i.reap()
		case sig := <-i.signals:
			if sig, ok := sig.(syscall.Signal); ok && i.keep != nil {
				i.keep.onSignal(sig)
			} else if ok {
				i.forward(sig)
			}
		case f := <-frames:
			i.keep.onFrame(f)
		case <-due:
			i.keep.onTime()
		}
	}
	c.say(sayBye)
	return i.code
}

// prepare makes this process the one that options ask for.
func (i *initLoop) prepare() error {
	c := i.call
	if c.parentDeath != 0 {
		if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(c.parentDeath), 0, 0, 0); err != nil {
			return err
		}
	}
	if c.subreaper {
		if err := becomeSubreaper(); err != nil {
			return err
		}
		c.say(saySubreaper)
	} else if os.Getpid() != 1 && !isSubreaper() {
		c.say(sayNoReaper)
	}
	return nil
}

// told is an exit code as -e has it.
func (c *initCall) told(code int) int {
	if c.success[code] {
		return 0
	}
	return code
}

// ---- the command

// start starts the command. On a terminal that takes a process of ours, which becomes the command: only from within can it be given the
// terminal before its first instruction, and without a signal.
func (i *initLoop) start() (code int, ok bool) {
	c := i.call
	terminal := c.place != ourGroup && isatty.IsTerminal(0)
	if c.place == ownSession {
		i.untie()
	}
	attr := &syscall.ProcAttr{Env: commandEnvironment(), Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{}}
	var err syscall.Errno
	if terminal {
		mode := initStageGroup
		if c.place == ownSession {
			mode = initStageSession
		}
		argv := append([]string{c.name, initStageFlag, mode, strconv.Itoa(c.verbosity)}, c.command...)
		i.pid, err = forkExec(selfExe(), argv, attr)
	} else {
		attr.Sys.Setsid, attr.Sys.Setpgid = c.place == ownSession, c.place == ownGroup
		err = searchExec(c.command, func(path string, argv []string) (err syscall.Errno) {
			i.pid, err = forkExec(path, argv, attr)
			return err
		})
	}
	if err != 0 {
		c.say(sayExec, c.command[0], errorText(err))
		return c.dialect.noExec(err), false
	}
	c.say(sayStarted, i.pid, c.command[0])
	if c.place == ownSession && !terminal {
		c.say(sayNoTerminal, int(unix.ENOTTY), errorText(unix.ENOTTY))
		c.say(saySession)
	}
	if c.dialect.toRoot {
		_ = os.Chdir("/") // best effort
	}
	if c.dialect.deafToTerminal {
		signal.Ignore(unix.SIGTTIN, unix.SIGTTOU)
	}
	return 0, true
}

// untie lets go of the terminal, so that the command's session can have it.
func (i *initLoop) untie() {
	c := i.call
	if err := unix.IoctlSetInt(0, unix.TIOCNOTTY, 0); err != nil {
		errno, _ := err.(syscall.Errno)
		c.say(sayUntied, int(errno), errorText(err))
		return
	}
	if sid, err := unix.Getsid(0); err != nil || sid != os.Getpid() {
		c.say(sayNotLed)
		return
	}
	i.handOff[unix.SIGHUP], i.handOff[unix.SIGCONT] = true, true // man 4 tty_ioctl, TIOCNOTTY
	c.say(sayLed)
}

// commandEnvironment is ours, without what main adds to it where there is no /proc.
func commandEnvironment() []string {
	return slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, binaryVariable+"=") })
}

func forkExec(path string, argv []string, attr *syscall.ProcAttr) (int, syscall.Errno) {
	pid, err := syscall.ForkExec(path, argv, attr)
	var errno syscall.Errno
	if err != nil && !errors.As(err, &errno) {
		errno = unix.EINVAL // a NUL in an argument
	}
	return pid, errno
}

// searchExec has exec try what execvp(3) tries: the directories of PATH in turn, and the shell for what has no format that the kernel knows.
func searchExec(command []string, exec func(path string, argv []string) syscall.Errno) syscall.Errno {
	name := command[0]
	try := func(path string) syscall.Errno {
		if err, _ := sysAccess(path, unix.F_OK).(syscall.Errno); err == unix.ENOENT || err == unix.ENOTDIR {
			return err // without a process that only finds this out
		}
		err := exec(path, command)
		if err == unix.ENOEXEC {
			err = exec("/bin/sh", append([]string{"/bin/sh", path}, command[1:]...))
		}
		return err
	}
	switch {
	case name == "":
		return unix.ENOENT
	case strings.Contains(name, "/"):
		return try(name)
	}
	path, ok := os.LookupEnv("PATH")
	if !ok {
		path = "/bin:/usr/bin"
	}
	worst := unix.ENOENT
	for dir := range strings.SplitSeq(path, ":") {
		full := name
		if dir != "" {
			full = dir + "/" + name
		}
		switch err := try(full); err {
		case unix.EACCES:
			worst = err
		case unix.ENOENT, unix.ENOTDIR, unix.ESTALE, unix.ENODEV, unix.ETIMEDOUT:
		default:
			return err
		}
	}
	return worst
}

// ---- on a terminal

// Modes of the stage.
const (
	initStageGroup   = "group"   // the command leads the terminal's foreground process group
	initStageSession = "session" // it leads a session with the terminal
)

// initStage is the process that becomes the command on a terminal: MODE VERBOSITY COMMAND….
func initStage(c *initCall, args []string) int {
	c.verbosity, _ = strconv.Atoi(args[1])
	c.command = args[2:]
	var err error
	switch args[0] {
	case initStageGroup:
		err = takeForeground()
	case initStageSession:
		if _, err = unix.Setsid(); err != nil {
			break
		}
		if err := unix.IoctlSetInt(0, unix.TIOCSCTTY, 0); err != nil {
			errno, _ := err.(syscall.Errno)
			c.say(sayNoTerminal, int(errno), errorText(err))
		}
		c.say(saySession)
	}
	if err != nil {
		c.say(sayPrepare, errorText(err))
		return 1
	}
	env := commandEnvironment()
	errno := searchExec(c.command, func(path string, argv []string) syscall.Errno {
		errno, _ := syscall.Exec(path, argv, env).(syscall.Errno)
		return errno
	})
	c.say(sayExec, c.command[0], errorText(errno))
	return c.dialect.noExec(errno)
}

// takeForeground makes this process the leader of the terminal's foreground group. Who does that from the background gets SIGTTOU, unless
// that is blocked (man 3 tcsetpgrp).
func takeForeground() error {
	runtime.LockOSThread()
	if err := unix.Setpgid(0, 0); err != nil {
		return err
	}
	set, before := signalSet(unix.SIGTTOU), unix.Sigset_t{}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, &before); err != nil {
		return err
	}
	err := unix.IoctlSetPointerInt(0, unix.TIOCSPGRP, os.Getpid())
	if e := unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil); e != nil {
		return e
	}
	if err == unix.ENOTTY || err == unix.ENXIO {
		return nil
	}
	return err
}

// ---- signals

// forward sends the command what was sent to us.
func (i *initLoop) forward(sig syscall.Signal) {
	c := i.call
	switch {
	case c.dialect.leaves[sig]:
		i.dieOf(sig)
		return
	case i.handOff[sig]:
		i.handOff[sig] = false
		c.tell(sayHandOff, sig)
		return
	}
	if c.tells(sayGot) {
		c.say(sayGot, int(sig), signalText(sig))
	}
	i.send(sig)
	if c.dialect.suspends && (sig == unix.SIGTSTP || sig == unix.SIGTTIN || sig == unix.SIGTTOU) {
		c.say(sayStopped)
		_ = unix.Kill(os.Getpid(), unix.SIGSTOP) // the kernel does not let PID 1 stop
	}
}

// send sends the command a signal, as -r has it.
func (i *initLoop) send(sig syscall.Signal) {
	c := i.call
	to := c.rewrite[sig]
	if to != sig && c.tells(sayRewritten) {
		c.say(sayRewritten, int(sig), int(to))
	}
	if to == 0 {
		c.tell(sayDropped, to)
		return
	}
	whom := i.pid
	if c.group {
		whom = -i.pid
	}
	switch err := unix.Kill(whom, to); {
	case err == unix.ESRCH:
		c.say(sayNoCommand)
	case err != nil:
		c.say(sayNotSent, errorText(err))
		if c.dialect.strict {
			i.ended, i.code = true, 1
		}
		return
	}
	c.tell(saySent, to)
}

// tell says something of one signal.
func (c *initCall) tell(what int, sig syscall.Signal) {
	if c.tells(what) {
		c.say(what, int(sig))
	}
}

// dieOf has a signal do what it does to a program that does not catch it. PID 1 has nothing to fear of it (man 2 kill, NOTES).
func (i *initLoop) dieOf(sig syscall.Signal) {
	if os.Getpid() == 1 {
		return
	}
	resetSignal(sig)
	_ = unix.Kill(os.Getpid(), sig)
	i.ended, i.code = true, 128+int(sig)
}

// ---- ends

// reap takes all children that have ended: the command, and orphans of this PID namespace.
func (i *initLoop) reap() {
	c := i.call
	for {
		var ws unix.WaitStatus
		ref := pidRef{PID: -1}
		if i.keep != nil {
			if ref = endedRef(); ref.PID < 0 {
				return
			}
		}
		pid, err := unix.Wait4(ref.PID, &ws, unix.WNOHANG, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			c.say(sayNothing)
			return
		case pid == 0:
			c.say(sayNoneYet)
			return
		}
		if c.tells(sayReaped) {
			c.say(sayReaped, pid)
		}
		if pid == i.pid || c.dialect.tellsAll {
			c.tellEnd(pid, ws)
		}
		if i.keep != nil && pid == i.keep.daemon {
			i.keep.daemonEnded(ws)
			continue
		}
		if i.keep != nil && pid == i.keep.console {
			i.keep.consoleEnded(ws)
			continue
		}
		if pid != i.pid {
			if c.tellsReaped && c.tells(sayOrphan) {
				c.say(sayOrphan, pid)
			}
			if i.keep != nil {
				i.keep.orphanEnded(ref, uint32(ws))
			}
			continue
		}
		i.ended, i.code = true, ws.ExitStatus()
		if ws.Signaled() {
			i.code = 128 + int(ws.Signal())
		}
		if i.keep != nil {
			i.ended, i.pid = false, 0
			i.keep.commandEnded(c.told(i.code))
			continue
		}
		if c.dialect.parting {
			i.send(unix.SIGTERM)
			c.say(sayEnded, i.code)
			return
		}
		i.code = c.told(i.code)
	}
}

func (c *initCall) tellEnd(pid int, ws unix.WaitStatus) {
	if ws.Signaled() && c.tells(saySignal) {
		c.say(saySignal, pid, int(ws.Signal()), signalText(ws.Signal()))
	}
	if ws.Exited() && c.tells(sayExit) {
		c.say(sayExit, pid, ws.ExitStatus())
	}
}
