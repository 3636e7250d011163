// Role: the first process of a container as supervisor: it keeps one daemon alive, hands on to it how orphans ended, and ends the container.
// Runs in: init.
// Owns: the daemon's process, and the connection to it.
// Uses: codec, wire, sys, state, dialect, console, init.

package main

import (
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	daemonFirst     = 100 * time.Millisecond // pause before the daemon is started again, after it was started again at once; it doubles
	daemonMost      = 10 * time.Second
	daemonForgets   = 10 * time.Second // a daemon that lived so long is started again at once
	daemonTries     = 10               // of which none came up
	hurriedGrace    = time.Second      // what a second signal leaves
	commandReserve  = 2 * time.Second  // of the grace, for the services that are stopped after the command, or half of it
	consolePatience = time.Second      // for the last words of services
	killReserve     = time.Second      // of the time, for the end after the last SIGKILL, or a tenth of it
)

// keepPhase is how far the container is.
type keepPhase int

const (
	keepBooting  keepPhase = iota // what is started at first has not come up
	keepServing                   // the command runs, if there is one
	keepParting                   // the command was told to end
	keepStopping                  // the daemon stops all services
	keepEmptying                  // all are stopped; their last words go to the console
)

// upkeep is the first process with a daemon. All of it belongs to the one loop of the process.
type upkeep struct {
	loop    *initLoop
	phase   keepPhase
	ours    int              // our end of the connection
	theirs  int              // the daemon's: each daemon inherits it, so what one did not take waits for the next
	frames  chan keeperFrame // from the daemon
	env     []string         // of the daemon
	daemon  int              // its PID; 0 = none runs
	began   boottime         // when it was started
	pause   time.Duration    // before the next one
	hello   bool             // there was one that came up
	died    int              // so many have ended
	upAt    int              // so many when the last one came up
	home    home
	told    bool        // a signal has asked for the end
	coded   bool        // the exit code is settled
	code    int         // of the container
	failed  bool        // what is started at first did not come up whole
	console int         // PID of what copies logs to our standard output; 0 = it does not run
	argv    []string    // of that
	mouth   int         // the other end of its standard input, whose end tells it to come to an end; below 0 = none
	spoke   boottime    // when it was started
	timer   *time.Timer // for the times below
	speak   boottime    // when the console is started again; 0 = not now
	restart boottime    // of the daemon; 0 = not now
	partBy  boottime    // when the command gets SIGKILL; 0 = never
	until   boottime    // when all has to be over; 0 = not now
	packet  [keeperFrameBytes]byte
}

// newKeep prepares the start of daemons.
func newKeep(i *initLoop) (*upkeep, error) {
	k := &upkeep{loop: i, mouth: -1, frames: make(chan keeperFrame, 16), timer: time.NewTimer(time.Hour)}
	k.timer.Stop()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	k.ours, k.theirs = fds[0], fds[1]
	c := i.call
	h, err := makeHome(c.homeFlag)
	if err != nil {
		return nil, err
	}
	dir, err := findServiceDir(c.dirFlag, h)
	if err != nil {
		return nil, err
	}
	order := bootOrder{Start: c.starts, ServiceDir: dir, Command: len(c.command) > 0, WhenIdle: c.whenIdle}
	k.env = append(daemonEnvironment(os.Environ()), homeVariable+"="+h.path, startedVariable+"="+modeInit,
		orderVariable+"="+string(encode(nil, &order)), keeperVariable+"="+strconv.Itoa(os.Getpid()))
	k.home = h
	k.argv = consoleArguments(c.logFormat, h, time.Now())
	go k.read()
	return k, nil
}

// read hands on what daemons say. The connection never ends: we have both ends.
func (k *upkeep) read() {
	var b [keeperFrameBytes]byte
	for {
		var f keeperFrame
		n, err := unix.Read(k.ours, b[:])
		if err == nil && f.parse(b[:n]) {
			k.frames <- f
		}
	}
}

// send tells the daemon. A daemon that reads nothing loses what does not fit into the connection; the ends of orphans are for want of better.
func (k *upkeep) send(f *keeperFrame) {
	f.put(&k.packet)
	_ = unix.Send(k.ours, k.packet[:], unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
}

// startDaemon starts a daemon in a session of its own, without our standard input.
func (k *upkeep) startDaemon() {
	k.restart = 0
	if k.began != 0 {
		runtime.GC() // nothing else collects what starts leave
	}
	null, err := openNothing()
	if err != nil {
		k.loop.call.say(sayNoDaemon, errorText(err))
		k.plan()
		return
	}
	defer unix.Close(null)
	attr := &syscall.ProcAttr{Dir: "/", Env: k.env, Files: []uintptr{uintptr(null), 1, 2, uintptr(k.theirs)}, Sys: &syscall.SysProcAttr{Setsid: true}}
	pid, errno := forkExec(k.program(), []string{daemonName}, attr)
	k.began = bootNow()
	if errno != 0 {
		k.loop.call.say(sayNoDaemon, errorText(errno))
		k.plan()
		return
	}
	k.daemon = pid
	if k.phase == keepStopping { // the one before may have taken the word for that
		k.sendStop()
	}
}

// program is what the next daemon runs: what the last one was upgraded to, unless that does not come up, else our own.
func (k *upkeep) program() string {
	d, err := k.home.readDaemon()
	if newer := d.newerBinary(); err == nil && newer != "" && k.died-k.upAt < healNewer {
		return newer
	}
	return selfExe()
}

// plan sets the time of the next start of a daemon: at once, then with growing pauses.
func (k *upkeep) plan() {
	now := bootNow()
	if now-k.began >= boottime(daemonForgets) {
		k.pause = 0
	}
	k.restart = now + max(boottime(k.pause), 1)
	k.pause = min(max(2*k.pause, daemonFirst), daemonMost)
	k.arm()
}

// daemonEnded: a daemon may die as it likes. One that gives up before any has come up cannot work here, nor can one that is killed again and again.
func (k *upkeep) daemonEnded(ws unix.WaitStatus) {
	k.daemon = 0
	k.died++
	switch {
	case k.phase == keepEmptying:
		return
	case !k.hello && (ws.Exited() && ws.ExitStatus() != 0 || k.died >= daemonTries):
		k.settle(exitFailed)
		k.finish()
		return
	case ws.Signaled():
		k.loop.call.say(sayDaemonKilled, signalText(ws.Signal()))
	case k.phase == keepStopping:
		k.pause = daemonFirst // its last word may be on the way
	default:
		k.loop.call.say(sayDaemonEnded, ws.ExitStatus())
	}
	k.plan()
}

// startConsole starts the process that copies the logs to our standard output.
func (k *upkeep) startConsole() {
	k.speak, k.spoke = 0, bootNow()
	k.hush()
	var p [2]int
	err := unix.Pipe2(p[:], unix.O_CLOEXEC)
	if err == nil {
		attr := &syscall.ProcAttr{Dir: "/", Env: k.env, Files: []uintptr{uintptr(p[0]), 1, 2}, Sys: &syscall.SysProcAttr{Setsid: true}}
		pid, errno := forkExec(selfExe(), k.argv, attr)
		unix.Close(p[0])
		if k.mouth = p[1]; errno == 0 {
			k.console = pid
			return
		}
		err = errno
	}
	k.loop.call.say(sayExec, k.argv[0], errorText(err))
	k.speak = k.spoke + boottime(daemonMost)
	k.arm()
}

// hush tells the console to copy what is there and to end.
func (k *upkeep) hush() {
	if k.mouth >= 0 {
		unix.Close(k.mouth)
		k.mouth = -1
	}
}

// consoleEnded: it is started again, at most every second, unless it cannot write.
func (k *upkeep) consoleEnded(ws unix.WaitStatus) {
	k.console = 0
	switch {
	case ws.Exited() && ws.ExitStatus() == exitFailed: // it cannot write
		if k.phase == keepEmptying {
			k.finish()
			return
		}
		k.loop.call.say(sayConsole)
	case k.phase == keepEmptying && ws.Signaled(): // for the last words there is a little time
		k.startConsole()
		k.hush()
	case k.phase == keepEmptying:
		k.finish()
	default:
		runtime.GC()
		k.speak = max(k.spoke+boottime(time.Second), bootNow()+1)
		k.arm()
	}
}

// orphanEnded tells the daemon of an orphan that was reaped.
func (k *upkeep) orphanEnded(ref pidRef, status uint32) {
	k.send(&keeperFrame{Op: keeperExit, Ref: ref, Status: status})
}

// settle settles the exit code, once.
func (k *upkeep) settle(code int) {
	if !k.coded {
		k.coded, k.code = true, code
	}
}

// ---- events

func (k *upkeep) onFrame(f keeperFrame) {
	switch f.Op {
	case keeperHello:
		k.hello, k.upAt = true, k.died
		if k.phase == keepStopping { // when it was started, the connection may have been full
			k.sendStop()
		}
	case keeperUp:
		if k.phase == keepBooting {
			k.serve()
		}
	case keeperFailed:
		k.failed = true
		switch {
		case k.phase != keepBooting:
		case len(k.loop.call.command) > 0: // what it needs is not there
			k.loop.call.say(sayNotUp, k.loop.call.command[0])
			k.settle(exitFailed)
			k.end(unix.SIGTERM)
		default:
			k.serve()
		}
	case keeperEnd: // `kill`, an action of a unit, or nothing is left
		k.settle(int(f.Status & 0xff))
		k.end(unix.SIGTERM)
	case keeperDone:
		k.failed = f.Status != 0
		k.empty()
	}
}

// serve starts the command, now that what it needs is there.
func (k *upkeep) serve() {
	k.phase = keepServing
	if len(k.loop.call.command) == 0 {
		return
	}
	if code, ok := k.loop.start(); !ok {
		k.settle(code)
		k.end(unix.SIGTERM)
	}
}

// commandEnded: the container ends with its command.
func (k *upkeep) commandEnded(code int) {
	k.settle(code)
	switch k.phase {
	case keepBooting, keepServing:
		k.until = k.deadline()
		k.stopServices()
	case keepParting:
		k.stopServices()
	case keepStopping, keepEmptying:
	}
}

// onSignal: four signals end the container, a second one in haste; SIGHUP has the units read again. All others are for the command.
func (k *upkeep) onSignal(sig syscall.Signal) {
	hasCommand := k.loop.pid != 0 && k.phase < keepStopping
	switch sig {
	case unix.SIGTERM, unix.SIGINT, unix.SIGPWR, sigrtmin + 3:
		if k.told {
			k.hurry()
			return
		}
		k.told = true
		if sig != unix.SIGINT {
			sig = unix.SIGTERM
		}
		k.end(sig)
		return
	case unix.SIGHUP:
		k.send(&keeperFrame{Op: keeperReload})
	case unix.SIGPIPE: // it may be of our own message, which nobody reads
		return
	}
	if hasCommand {
		k.loop.forward(sig)
	}
}

// sigrtmin is SIGRTMIN as libc counts: it keeps two for itself. With 3 more it asks systemd for a shutdown, and engines of containers use that.
const sigrtmin syscall.Signal = 34

// ---- the end

func (k *upkeep) deadline() boottime { return bootNow() + boottime(k.loop.call.grace) }

// end ends the container: the command first, which gets sig, then the services.
func (k *upkeep) end(sig syscall.Signal) {
	if k.phase >= keepParting {
		return
	}
	k.until = k.deadline()
	if k.loop.pid == 0 {
		k.stopServices()
		return
	}
	k.phase = keepParting
	k.partBy = k.until - boottime(min(commandReserve, k.loop.call.grace/2))
	k.loop.send(sig)
	k.arm()
}

// hurry leaves little of the grace.
func (k *upkeep) hurry() {
	k.until = min(k.until, bootNow()+boottime(hurriedGrace))
	switch k.phase {
	case keepEmptying:
		k.finish()
		return
	case keepParting:
		k.partBy = min(k.partBy, k.until-boottime(hurriedGrace)/2)
	default:
		k.sendStop()
	}
	k.arm()
}

// stopServices has the daemon stop all of them.
func (k *upkeep) stopServices() {
	k.phase, k.partBy = keepStopping, 0
	k.sendStop()
	if k.daemon == 0 {
		k.startDaemon()
	}
	k.arm()
}

// sendStop tells the daemon when all has to be over.
func (k *upkeep) sendStop() {
	reserve := min(killReserve, time.Duration(k.until-bootNow())/10)
	k.send(&keeperFrame{Op: keeperStop, Time: max(k.until-boottime(reserve), 1)})
}

// onTime does what is due.
func (k *upkeep) onTime() {
	now := bootNow()
	if k.partBy != 0 && now >= k.partBy {
		k.partBy = 0
		_ = unix.Kill(k.loop.pid, unix.SIGKILL)
	}
	if k.until != 0 && now >= k.until {
		if k.phase != keepEmptying {
			k.failed = true
			defer k.loop.call.say(sayOvertime)
		}
		k.finish()
		return
	}
	if k.speak != 0 && now >= k.speak {
		k.startConsole()
	}
	if k.restart != 0 && now >= k.restart {
		k.startDaemon()
	}
	k.arm()
}

// arm sets the timer to what is due first.
func (k *upkeep) arm() {
	var due boottime
	for _, t := range [...]boottime{k.restart, k.speak, k.partBy, k.until} {
		if t != 0 && (due == 0 || t < due) {
			due = t
		}
	}
	if due == 0 {
		k.timer.Stop()
		return
	}
	k.timer.Reset(max(time.Duration(due-bootNow()), 0))
}

// empty lets the console come to the end of the logs, as far as somebody reads it.
func (k *upkeep) empty() {
	if k.speak != 0 { // it was killed just now
		k.startConsole()
	}
	if k.console == 0 {
		k.finish()
		return
	}
	k.phase, k.restart = keepEmptying, 0
	k.hush()
	k.until = min(k.until, bootNow()+boottime(consolePatience))
	k.arm()
}

// finish is the end of this process. What still lives in a container ends with its PID 1.
func (k *upkeep) finish() {
	code := exitOK
	if k.failed {
		code = exitFailed
	}
	k.settle(code)
	if os.Getpid() == 1 {
		_ = unix.Kill(-1, unix.SIGKILL)
	} else {
		for _, pid := range [...]int{k.daemon, k.console, k.loop.pid} {
			if pid != 0 {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
	}
	k.loop.finish(k.code)
}
