// Role: the shim (`diakonos-run NAME`): supervisor of one service. It carries out the effects of the state machine.
// Runs in: shim; detachMain in the helper that starts a batch of shims.
// Owns: run/NAME while it holds its lock: state, history, shim.pid, main.pid, shim.sock, FIFOs, cgroup; all processes of the service.
// Uses: codec, visible, wire, sys, unit, log, supervise, state, history, environ, tree, child, pump, succession, spawn, renew.

package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	linkFD      = 3                      // the shim's end of the socket pair with the daemon that started it
	shimThreads = 2                      // beside those that the runtime has at once: 7 in all; with 6 a shim in fifty died of a fork bomb on a loaded machine
	shimGC      = 20                     // percent: with the default the heap would grow to 4 MiB before the first collection
	lockLimit   = 100 * time.Millisecond // for a predecessor to be gone; then the daemon looks again who has the lock
	helloLimit  = 2 * time.Second        // for the daemon's hello, which was written before we were started
	statusLimit = time.Second            // for the exit status of an adopted process to come from who reaped it
	busyLimit   = 5 * time.Second        // for leftovers to die of SIGKILL before a start is given up
	healForgets = 10 * time.Second       // a daemon that lived this long was a good one
	maxLeft     = 32                     // PIDs named in a record
	notifyBatch = 64                     // messages that are read before anything else is done
)

// shim is one supervisor. Everything below "loop" is touched by its owner goroutine alone.
type shim struct {
	// immutable
	name       string
	home       home
	boot       string
	pidns      uint64
	cgroupBase string
	lock       int
	will       shimWill // of the program that this process was before; zero = it is new
	listener   *os.File
	inbox      chan any
	hangups    chan os.Signal

	// loop
	svc       *service
	own       ownLog
	state     *recordFile
	history   historyFile
	saved     []byte // the record as it was last written and announced
	spare     []byte // room for its next text
	queue     []event
	pump      *pump
	drains    uint64 // token of the drain under way
	undrained uint64 // the drain that the pump has not answered; it may be slower than the drain's limit. 0 = none
	daemon    *conn  // nil = none is connected
	main      process
	control   process
	adopted   bool // processes may not be our descendants
	orphaned  bool // the shim before us was killed
	watching  *scope
	members   map[int]bool // processes of the tree that whenReadable looks at; 0 = the tree itself is looked at again
	waiting   *spawn       // main command that waits for leftovers to end
	owed      *kill        // signal that waits for a stage to become the service
	retiring  bool         // the pump is about to replace the FIFOs
	strays    bool         // a stage that no record names may not have seen yet that the shim before us is dead
	notify    notifySocket
	hold      []heldFD // descriptors to travel with the next state frame
	timer     *time.Timer
	healAt    boottime // 0 = no healing is due
	healWait  time.Duration
	spawns    uint64   // numbers the stages
	pidWatch  *os.File // inotify on the directory of PIDFile
	pidDir    int      // its watch descriptor of that directory, or of the nearest one above
	complaint string   // the last one about the service
	leaving   bool     // nobody is to wait for leftovers
	attaches  bool     // stages enter the cgroup by themselves: they cannot be born in it
	renewal   renewal  // the program that we are to become
	quitting  bool
}

// process is the main or control process while it runs.
type process struct {
	ref     pidRef
	fd      int           // pidfd
	child   bool          // ours to reap
	pending bool          // its stage has not reported yet
	failed  *stageFailure // its stage has reported that nothing runs, and is about to end
	seq     uint64
	gone    bool // an adopted one that has ended; its status is awaited
}

type heldFD struct {
	label string
	fd    int
}

// Messages to the loop.
type (
	msgFrame struct {
		from *conn
		f    shimFrame
	}
	msgClosed struct {
		from *conn
		err  error
	}
	msgReport struct {
		seq  uint64
		role role
		text []byte
	} // a stage's error pipe has ended
	msgGone struct {
		role role
		pid  int
	} // an adopted main or control process has ended
	msgLost struct {
		role role
		pid  int
	} // and nobody told its status
	msgMember   struct{ pid int }             // a process of the tree has ended; 0 = the tree is to be looked at again
	msgNotify   struct{ read chan struct{} }  // there are notify messages; read is answered when they are taken
	msgExecDone struct{ pid int }             // an adopted stage has let go of main.pid
	msgPIDFile  struct{}                      // something happened in the directory of PIDFile
	msgBusy     struct{ waited *spawn }       // leftovers did not end in time
	msgGuard    struct{ waited *spawn }       // the guard is free
	msgDrainEnd struct{ token uint64 }        // drain limit
	msgPump     struct{ pause time.Duration } // the pump could not be started
	msgKill     struct {
		e          kill
		try        int
		sub        string
		invocation string
	} // a signal could not be sent
	msgWant struct {
		job   string
		pause time.Duration
	} // the wish could not be read
	msgHealed struct {
		err   error
		asker *conn
	}
)

// detachMain starts one shim per name, each with its end of a socket pair (descriptor 3, 4, …), and ends, so that they belong to the
// daemon as subreaper, or to init. One helper serves a whole batch.
func detachMain(names []string) int {
	h := home{os.Getenv(homeVariable)}
	closeInherited(3)
	code := exitOK
	for i, name := range names {
		l := launch{argv: shimArguments(name), env: bare(os.Environ()), dir: h.runDir(name), setsid: true, cgroup: -1,
			files: []uintptr{0, 1, 2, uintptr(linkFD + i)}}
		reach("shim.detach")
		_, pidfd, err := l.start()
		if err != nil {
			fmt.Fprintf(os.Stderr, "diakonos-run: cannot start the shim of %q: %s\n", name, visible(err.Error()))
			code = exitFailed
			continue
		}
		unix.Close(pidfd)
	}
	return code
}

// shimMain runs `diakonos-run [--] NAME`, `-exec` or `-detach NAME…`.
func shimMain(args []string) int {
	switch {
	case len(args) == 1 && args[0] == "-exec":
		return stageMain()
	case len(args) > 1 && args[0] == "-detach":
		return detachMain(args[1:])
	case len(args) == 2 && args[0] == "--": // a name that begins with a dash
		args = args[1:]
		fallthrough
	case len(args) == 1 && !strings.HasPrefix(args[0], "-") && os.Getenv(homeVariable) != "":
		return superviseMain(args[0])
	default:
		fmt.Fprintln(os.Stderr, "diakonos-run: this is a part of diakonos and is started by its daemon")
		return exitUsage
	}
}

func superviseMain(name string) int {
	s := newShim(name)
	err := s.takePlace()
	if err == nil {
		err = s.open()
	}
	if err != nil {
		s.own.end() // what led to it comes first
		fmt.Fprintf(os.Stderr, "diakonos-run: %q: %s\n", name, visible(err.Error()))
		return exitFailed
	}
	return s.loop()
}

// newShim makes the shim, and the process fit for it.
func newShim(name string) *shim {
	setProcessName(shimName)
	unbare()
	debug.SetGCPercent(shimGC)
	closeInherited(linkFD)
	unix.Umask(0o077)
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGPIPE, syscall.SIGUSR1, syscall.SIGUSR2)
	s := &shim{name: name, home: home{os.Getenv(homeVariable)}, cgroupBase: os.Getenv(cgroupVariable),
		inbox: make(chan any, 16), members: map[int]bool{}, main: process{fd: -1}, control: process{fd: -1}}
	s.notify.fd, s.own.files = -1, []int{2}
	return s
}

// takePlace takes the lock and everything else that needs no knowledge of the service; a shim that was renewed has it already.
func (s *shim) takePlace() (err error) {
	if s.boot, s.pidns, err = bootIdentity(); err != nil {
		return err
	}
	switch err = readWill(&s.will); {
	case errors.Is(err, errNotHandedOver):
		err = s.takeLock()
	case err == nil:
		s.lock = s.will.LockFD
	}
	if err != nil {
		return err
	}
	setOOMScore("-900") // best effort: an out-of-memory kill of ours would cost supervision
	if err := becomeSubreaper(); err != nil {
		return fmt.Errorf("cannot become subreaper: %v", err)
	}
	reach("shim.pid")
	if err = rewriteFile("shim.pid", pidFileText(os.Getpid())); err != nil {
		s.warn("%v", err) // a full disk must not keep a service unsupervised
	}
	if s.will.StateFD != 0 { // its disk may be read-only by now
		s.state = openedRecord(s.will.StateFD)
	} else if s.state, err = openRecord("state"); err != nil {
		return err
	}
	s.history = historyFile{path: "history", boot: s.boot}
	if s.listener = inherited(s.will.ListenerFD, shimSocketName); s.listener != nil {
		return nil
	}
	if s.listener, err = listenAt(".", shimSocketName); err != nil {
		s.warn("%v", err)
	}
	return nil
}

// takeLock enters run/NAME and takes the lock on it, for ever. A predecessor that was killed may need a moment to be gone.
func (s *shim) takeLock() (err error) {
	if err := sysChdir(s.home.runDir(s.name)); err != nil {
		return fmt.Errorf("cannot enter %s: %w", s.home.runDir(s.name), err)
	}
	reach("shim.lock")
	s.lock, err = lockDirectory(".")
	if err != unix.EWOULDBLOCK {
		return err
	}
	s.lock, err = openRetry(".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	got := make(chan error, 1)
	reach("shim.await-lock")
	go func() { got <- sysFlock(s.lock, unix.LOCK_EX) }()
	select {
	case err := <-got:
		return err
	case <-time.After(lockLimit):
		return errors.New("another shim supervises it")
	}
}

// warn writes one line to daemon.log, which is our stderr.
func (s *shim) warn(format string, args ...any) {
	s.own.write(fmt.Sprintf("%s diakonos-run: %q: %s\n", time.Now().UTC().Format(time.RFC3339Nano), s.name, fmt.Sprintf(format, args...)))
}

// complain warns of what the service says, not twice in a row of the same: it may say it a thousand times a second.
func (s *shim) complain(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); text != s.complaint {
		s.complaint = text
		s.warn("%s", text)
	}
}

// open connects with the daemon, reads the records and resumes or begins. An error: what there is cannot be told now; nothing was done.
func (s *shim) open() error {
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	s.hangups = make(chan os.Signal, 1)
	signal.Notify(s.hangups, syscall.SIGHUP)
	go func() {
		for {
			select {
			case sig := <-children:
				s.inbox <- sig
			case sig := <-s.hangups:
				s.inbox <- sig
			}
		}
	}()
	handed, err := s.receive()
	if err != nil {
		return err
	}
	if s.listener != nil {
		go s.accept(s.listener)
	}
	raiseThreads(shimThreads)
	s.timer = time.NewTimer(time.Hour)
	s.timer.Stop()
	if err := s.readRecords(); err != nil {
		return err
	}
	s.ensurePump(retryPause)
	if err := s.adopt(handed); err != nil {
		return err
	}
	if fd, ok := handed.held[heldMain]; ok {
		unix.Close(fd) // it was for the exit status only
	}
	for _, fd := range s.will.OutputFDs { // the pump has its own
		unix.Close(fd)
	}
	if s.will.LockFD != 0 {
		s.reap() // what ended meanwhile
	}
	s.greetDaemon()
	s.settle()
	if s.will.Refused != "" {
		s.refuseRenewal(s.will.Refused)
	}
	return nil
}

// receive returns what is known of a predecessor: from the daemon, or from the program that this process was before.
func (s *shim) receive() (handover, error) {
	if s.will.LockFD != 0 {
		return s.inherit(), nil
	}
	return s.meetDaemon()
}

// handover is what the daemon knows of a predecessor.
type handover struct {
	held    map[string]int
	orphans []pidRef
	exits   []exitNote
	fresh   bool // no note about an exit is on the way
}

// meetDaemon reads what the daemon has to say before its hello; it wrote it before we were started. An error: we cannot listen.
func (s *shim) meetDaemon() (handover, error) {
	if err := unix.SetNonblock(linkFD, true); err != nil {
		return handover{}, fmt.Errorf("cannot listen to the daemon: %w", err)
	}
	f, err := pollable(linkFD, "daemon")
	if err != nil {
		return handover{}, err
	}
	return s.hear(newConn(f)), nil
}

// hear reads up to the daemon's hello, then has it read on.
func (s *shim) hear(c *conn) handover {
	got := handover{held: map[string]int{}}
	_ = c.f.SetReadDeadline(time.Now().Add(helloLimit))
	for {
		var f shimFrame
		if err := c.readFrame(&f); err != nil {
			c.close()
			s.lostDaemon()
			return got
		}
		switch f.Op {
		case opHeld:
			for i, fd := range c.claim(len(f.Names)) {
				got.held[f.Names[i]] = fd
			}
		case opOrphans:
			got.orphans = f.Refs
		case opExit:
			if f.Exit != nil {
				got.exits = append(got.exits, *f.Exit)
			}
		case opHello:
			_ = c.f.SetReadDeadline(time.Time{})
			got.fresh = f.Fresh
			s.daemon = c
			go s.read(c)
			return got
		}
	}
}

// accept takes connections until the listener is closed.
func (s *shim) accept(l *os.File) {
	for {
		f, err := acceptFrom(l)
		switch {
		case isTemporary(err): // for want of a descriptor or of memory; the next daemon must reach us all the same
			time.AfterFunc(retryPause, func() { s.accept(l) })
			return
		case err != nil: // closed
			return
		case !peerAllowed(f):
			f.Close()
		default:
			go s.read(newConn(f))
		}
	}
}

// read decodes the frames of one connection.
func (s *shim) read(c *conn) {
	for {
		var f shimFrame
		err := c.readFrame(&f)
		if err != nil {
			s.inbox <- msgClosed{c, err}
			return
		}
		s.inbox <- msgFrame{c, f}
	}
}

// readRecords makes the service out of unit.json and state.
func (s *shim) readRecords() error {
	var rec runRecord
	err := s.state.read(&rec)
	rec, err = ofBoot(rec, err, s.boot)
	u, uerr := s.home.readUnit(s.name)
	if uerr != nil {
		s.warn("%v", uerr)
		u = &unit{Name: s.name, KillMode: killControlGroup, KillSignal: syscall.SIGTERM, SendSIGKILL: true, TimeoutStopSec: 90 * time.Second,
			LogMaxSize: 10 << 20, LogMaxFiles: 5}
	}
	s.svc = newService(u, rec)
	never := errors.Is(err, errNeverWritten) && !s.state.made // else it was deleted
	if err != nil && !errors.Is(err, errOtherBoot) && !never {
		s.svc.Events = lastEvent("history", s.boot)
		if err := s.probe(); err != nil {
			return err
		}
	}
	s.orphaned = rec.ShimPID != 0 && rec.ShimPID != os.Getpid()
	s.svc.Version, s.svc.Boot, s.svc.PIDNS, s.svc.ShimPID = protocolVersion, s.boot, s.pidns, os.Getpid()
	return nil
}

// probe: the state cannot be read, so nothing is known. Something of this service may live: look, never assume.
func (s *shim) probe() error {
	t := tree{home: s.home, name: s.name, adopted: true}
	pids, err := t.closure()
	if isShortage(err) {
		return err
	}
	if len(pids) == 0 {
		return nil
	}
	b, _ := readSmall("main.pid")
	if pid := parsePIDFile(b); pid != 0 && slices.Contains(pids, pid) {
		s.svc.Main = refOf(pid)
		s.svc.Sub = running
		s.svc.Since, s.svc.Started = time.Now().UnixNano(), time.Now().UnixNano()
		s.warn("its state could not be read; process %d of main.pid belongs to it and is taken as its main process", pid)
		return nil
	}
	s.svc.Sub, s.svc.Reason, s.svc.Left = unknown, "its state could not be read, and processes of it are there: "+pidList(pids), pids
	s.warn("%s", s.svc.Reason)
	return nil
}

// ---- adoption

const unheardWarning = "its READY=1 may be lost"

// adopt takes over what a predecessor left: its processes if they live, else what became of them.
func (s *shim) adopt(h handover) (err error) {
	s.notify.adopt(h.held[heldNotify])
	s.svc.Orphans = append(s.svc.Orphans, h.orphans...)
	idle := s.svc.Sub == dead && s.svc.Spawning == ""
	s.adopted = !idle || s.svc.Retire
	if s.will.LockFD != 0 {
		s.adopted = s.will.Adopted
	}
	if s.svc.Retire {
		s.retire()
	}
	if idle {
		s.quitting = !s.wishWaits() // else nothing would ever end us
		return nil
	}
	ev := evAdopted{killed: s.orphaned, alone: h.fresh}
	deaf := s.notify.fd < 0
	if ev.main, err = s.takeOver(&s.main, roleMain, s.svc.Main, h); err != nil {
		return err
	}
	if ev.main != (exitStatus{}) && s.hasSuccessor() {
		ev.main = exitStatus{}
	}
	ev.oom = s.outOfMemory(roleMain, ev.main)
	if ev.control, err = s.takeOver(&s.control, roleControl, s.svc.Control, h); err != nil {
		return err
	}
	ev.nothingRan = s.nothingRan(ev)
	if ev.unheard = deaf && s.main.fd >= 0 && s.svc.Sub == starting && s.svc.unit.Type == typeNotify; ev.unheard {
		s.warn("nobody held its notify socket for a while: %s", unheardWarning)
	}
	s.strays = ev.nothingRan && s.svc.Main.zero() && s.svc.Control.zero()
	switch {
	case ev.nothingRan && s.svc.Spawning == roleMain:
		ev.main = exitStatus{}
	case ev.nothingRan:
		ev.control = exitStatus{}
	}
	if s.svc.Spawning == roleMain && s.main.fd >= 0 {
		s.main.pending = true
		s.awaitExec()
	}
	if s.svc.NotifyNeeded() {
		a, wrong := accountOf(s.svc.unit) // the socket is where it was for the predecessor
		if wrong != nil {
			a = account{uid: os.Geteuid(), gid: os.Getegid()}
		}
		if err := s.openNotify(a); err != nil {
			s.warn("%v", err)
		}
	}
	s.feed(ev)
	return nil
}

// takeOver watches a recorded process that lives, or tells how it ended. An error: which of both is not known.
func (s *shim) takeOver(p *process, r role, ref pidRef, h handover) (exitStatus, error) {
	if ref.zero() {
		return exitStatus{}, nil
	}
	if s.ownChild(ref) { // SIGCHLD tells its end, or reap finds it
		fd, err := unix.PidfdOpen(ref.PID, unix.PIDFD_NONBLOCK)
		*p = process{ref: ref, fd: fd, child: true}
		return exitStatus{}, err
	}
	fd, err := openProcess(ref)
	switch {
	case err == nil:
		s.watchProcess(p, r, ref, fd)
		return exitStatus{}, nil
	case errors.Is(err, errGone):
		return s.lateStatus(p, r, ref, h), nil
	}
	return exitStatus{}, err
}

// lateStatus tells how a process ended that is gone already.
func (s *shim) lateStatus(p *process, r role, ref pidRef, h handover) exitStatus {
	for _, x := range h.exits {
		if x.Ref.PID == ref.PID && (x.Ref.Start == 0 || x.Ref.Start == ref.Start) {
			return x.Exit
		}
	}
	if fd, ok := h.held[heldMain]; ok && r == roleMain && (ref.Ino == 0 || pidfdInode(fd) == ref.Ino) {
		if ws, ok := pidfdExit(fd); ok {
			return exitOf(ws)
		}
	}
	if st, err := readStat(ref.PID); err == nil && st.ended() && st.start == ref.Start {
		return exitOf(unix.WaitStatus(st.exitCode))
	}
	if !h.fresh && s.awaitNote(p, r, ref) {
		return exitStatus{}
	}
	return exitStatus{How: exitLost}
}

// awaitNote lets a process that is gone stand for as long as the daemon's note about its end may be on the way: it may have reaped it
// after it had started us. There is no pidfd of it any more; a descriptor of nothing keeps its place.
func (s *shim) awaitNote(p *process, r role, ref pidRef) bool {
	if s.daemon == nil {
		return false
	}
	fd, err := openRetry(".", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	*p = process{ref: ref, fd: fd, gone: true}
	time.AfterFunc(statusLimit, func() { s.inbox <- msgLost{r, ref.PID} })
	return true
}

// watchProcess sets p to a process that is not our child; its end comes as msgGone.
func (s *shim) watchProcess(p *process, r role, ref pidRef, fd int) {
	*p = process{ref: ref, fd: fd}
	s.awaitGone(p, r)
}

// awaitGone has the end of p told. Without a descriptor for that it is told too early, and onGone asks again.
func (s *shim) awaitGone(p *process, r role) {
	m := msgGone{r, p.ref.PID}
	watched, err := unix.FcntlInt(uintptr(p.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		time.AfterFunc(retryPause, func() { s.inbox <- m })
		return
	}
	_ = unix.SetNonblock(watched, true)
	whenReadable(watched, func(f *os.File) {
		f.Close()
		s.inbox <- m
	})
}

// nothingRan: the predecessor died within protocol P before the commit, so that the stage saw end of file.
func (s *shim) nothingRan(ev evAdopted) bool {
	switch s.svc.Spawning {
	case roleMain:
		if s.svc.Main.zero() {
			return true
		}
		return ev.main != exitStatus{} && s.neverRan(roleMain, ev.main)
	case roleControl:
		return s.svc.Control.zero() || s.neverRan(roleControl, ev.control)
	}
	return false
}

// neverRan tells of an adopted process that has ended whether it was a stage that saw no commit.
func (s *shim) neverRan(r role, x exitStatus) bool {
	if s.svc.Spawning != r {
		return false
	}
	if x == (exitStatus{exitExited, exitNeverRan}) {
		return true
	}
	b, err := readSmall("main.pid")
	return r == roleMain && err == nil && len(b) == 0 // the stage emptied it
}

// awaitExec waits for a stage that outlived its shim: it holds a lock on main.pid until execve.
func (s *shim) awaitExec() {
	fd, err := openRetry("main.pid", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	pid := s.main.ref.PID
	go func() {
		if err == nil { // without the file there is nothing to wait for
			reach("main-pid.await-lock")
			_ = waitByte(fd, 0)
			unix.Close(fd)
		}
		s.inbox <- msgExecDone{pid}
	}()
}

// onExecDone: an adopted stage has become the service, unless it is on its way out: then its end tells what was wrong.
func (s *shim) onExecDone(pid int) {
	if s.main.ref.PID != pid || s.main.gone || pollIn(s.main.fd) {
		return
	}
	if st, err := readStat(pid); err == nil && st.exiting {
		return
	}
	s.main.pending = false
	s.feed(evSpawned{roleMain})
	s.payOwed()
}

// ---- the loop

func (s *shim) loop() int {
	for !s.quitting {
		select {
		case m := <-s.inbox:
			s.handle(m)
		case <-s.timer.C:
		}
		s.onTime()
		s.settle()
	}
	s.leave()
	return exitOK
}

func (s *shim) handle(m any) {
	switch m := m.(type) {
	case syscall.Signal:
		if m == syscall.SIGHUP {
			s.bindAnew()
			return
		}
		s.reap()
	case msgFrame:
		s.onFrame(m.from, m.f)
	case msgClosed:
		s.onClosed(m)
	case msgReport:
		s.onReport(m)
	case msgGone:
		s.onGone(m)
	case msgLost:
		if p := s.process(m.role); p.gone && p.ref.PID == m.pid {
			s.ended(m.role, exitStatus{How: exitLost})
		}
	case msgMember:
		delete(s.members, m.pid)
		s.reap()
	case msgNotify:
		s.readNotify()
		m.read <- struct{}{}
	case msgExecDone:
		s.onExecDone(m.pid)
	case msgPIDFile:
		s.lookForMain()
	case msgBusy:
		if s.waiting == m.waited {
			s.waiting, s.watching = nil, nil
			s.feed(evBusy{m.waited.role, s.leftPIDs()})
		}
	case msgGuard:
		if s.waiting == m.waited {
			s.waiting = nil
			s.spawn(*m.waited)
		}
	case msgKill:
		if m.sub == s.svc.Sub && m.invocation == s.svc.Invocation {
			s.deliver(m.e, m.try)
		}
	case msgWant:
		s.readWant(m.job, m.pause)
	case msgPump:
		if s.pump == nil {
			s.ensurePump(m.pause)
			s.greetDaemon() // which holds the FIFOs
		}
	case msgDrainEnd:
		if m.token == s.drains {
			s.feed(evDrained{})
		}
	case msgHealed:
		s.onHealed(m)
	case pumpNote:
		s.onPump(m)
	}
}

func (s *shim) process(r role) *process {
	if r == roleMain {
		return &s.main
	}
	return &s.control
}

// now is the instant of a step.
func (s *shim) now() instant {
	n := instant{boot: bootNow(), wall: time.Now().UnixNano(), alone: s.daemon == nil || s.daemon.hungUp()}
	n.fresh = invocationText(randomBytes())
	return n
}

// feed gives one event to the state machine and carries out what it says; events that this causes follow in order.
func (s *shim) feed(ev event) {
	s.queue = append(s.queue, ev)
	if len(s.queue) > 1 {
		return // the call below us works the queue off
	}
	for len(s.queue) > 0 {
		effects := s.svc.step(s.now(), s.queue[0])
		s.carry(effects)
		s.queue = s.queue[1:]
	}
	s.queue = nil
}

func (s *shim) carry(effects []effect) {
	for _, e := range effects {
		switch e := e.(type) {
		case spawn:
			s.spawnWhenClear(e)
		case kill:
			s.kill(e)
		case killControl:
			_ = s.signalOne(&s.control, syscall.SIGKILL) // its own deadline is next
		case watch:
			s.watching, s.waiting = &e.scope, nil // what a start waited for does not matter any more
			s.checkTree()
		case findMain:
			s.lookForMain()
		case drain:
			s.drain(e)
		case removePIDFile:
			reach("pid-file.remove")
			_ = sysUnlink(e.path) // a service that ends in good order has removed it
		case retire:
			s.retire()
		case quit:
			s.quitting = !s.wishWaits()
		}
	}
}

// settle makes the present state durable, then visible, and sets the timer.
func (s *shim) settle() {
	if s.quitting = s.quitting && s.mayQuit(); s.quitting {
		s.dropCgroup()
		s.svc.ShimPID = 0 // who hears of the job's end sees that no shim is left
	}
	if s.save() == nil { // else the records do not tell a successor all
		s.renew()
	}
	s.armTimer()
}

// save writes the record if it changed, and announces it.
func (s *shim) save() error {
	s.trim()
	s.spare = encode(s.spare[:0], &s.svc.runRecord)
	if len(s.spare) > slotBytes-slotHeader { // texts full of characters that JSON escapes: what is only shown gives way
		s.svc.StatusText, s.svc.Reason, s.svc.Job.Text = "", cutTo(s.svc.Reason, maxText/8), cutTo(s.svc.Job.Text, maxText/8)
		s.spare = encode(s.spare[:0], &s.svc.runRecord)
	}
	if string(s.spare) == string(s.saved) && len(s.hold) == 0 {
		return nil
	}
	if err := s.history.write(s.svc.Events, s.svc.events); err != nil {
		s.complain("%v", err) // it is to be read by people: nothing waits for it
	}
	s.svc.events = s.svc.events[:0]
	reach("state.write")
	err := s.state.write(s.spare)
	if err != nil {
		s.warn("%v", err)
	} else {
		s.saved, s.spare = s.spare, s.saved
	}
	s.announce(opState)
	return err
}

// trim keeps the record within its slot whatever services say.
func (s *shim) trim() {
	r := &s.svc.runRecord
	r.Reason, r.StatusText, r.Job.Text = cutText(r.Reason), cutText(r.StatusText), cutText(r.Job.Text)
	r.Left = r.Left[:min(len(r.Left), maxLeft)]
	r.Orphans = r.Orphans[:min(len(r.Orphans), maxLeft)]
	r.Starts = r.Starts[max(0, len(r.Starts)-maxStartLimit):]
}

// announce sends the state to the daemon, with descriptors that it shall hold.
func (s *shim) announce(op string) {
	if s.daemon == nil {
		s.hold = nil // the next daemon is given everything
		return
	}
	f := shimFrame{Op: op, State: &s.svc.runRecord}
	if op == opHello {
		f.Proto, f.Build = protocolVersion, version
	}
	var fds []int
	for _, h := range s.hold {
		f.Names, fds = append(f.Names, h.label), append(fds, h.fd)
	}
	reach("state.send")
	err := s.daemon.send(f, fds...)
	if errors.Is(err, unix.ETOOMANYREFS) { // too many descriptors in flight for this user: the state must come through all the same
		f.Names = nil
		err = s.daemon.send(f)
	}
	s.hold = nil
	if err != nil {
		_ = unix.Shutdown(int(s.daemon.f.Fd()), unix.SHUT_RDWR) // its reader tells us that it is closed
	}
}

// greetDaemon sends the first frame of a connection, with everything that the daemon is to hold for our successor.
func (s *shim) greetDaemon() {
	s.hold = nil
	if s.pump != nil {
		for _, h := range []heldFD{{heldOut, s.pump.fifo(streamOut)}, {heldErr, s.pump.fifo(streamErr)}} {
			if h.fd >= 0 { // else the pump is about to replace it, after which we greet again
				s.hold = append(s.hold, h)
			}
		}
	}
	if s.main.fd >= 0 && !s.main.gone {
		s.hold = append(s.hold, heldFD{heldMain, s.main.fd})
	}
	if s.notify.fd >= 0 {
		s.hold = append(s.hold, heldFD{heldNotify, s.notify.fd})
	}
	s.announce(opHello)
}

// armTimer sets the one timer to what is due first.
func (s *shim) armTimer() {
	due := s.svc.Deadline
	if s.healAt != 0 && (due == 0 || s.healAt < due) {
		due = s.healAt
	}
	if due == 0 {
		s.timer.Stop()
		return
	}
	s.timer.Reset(max(time.Duration(due-bootNow()), 0))
}

// onTime does what is due now.
func (s *shim) onTime() {
	for due := s.svc.Deadline; due != 0 && bootNow() >= due; due = s.svc.Deadline {
		s.checkTree()
		if s.watching != nil {
			if left := s.leftPIDs(); len(left) > 0 { // an empty list is no proof
				s.feed(evTree{left})
			}
		}
		if s.svc.Deadline == due { // else that has moved it on
			s.feed(evTimeout{})
		}
	}
	if s.healAt != 0 && bootNow() >= s.healAt {
		s.heal(nil)
	}
}

// mayQuit: no process, no output and no job is left. Who was told to leave waits for no more than the job.
func (s *shim) mayQuit() bool {
	switch {
	case s.svc.openJob():
		return false
	case s.leaving && s.svc.idle():
		return true
	case s.main.fd >= 0 || s.control.fd >= 0 || s.svc.Sub == exited && !s.treeIsEmpty():
		return false
	}
	return s.pump == nil || !s.retiring && s.undrained == 0 && !s.pump.retired() && !s.pump.owes()
}

// dropCgroup comes before the last record, which names none.
func (s *shim) dropCgroup() {
	if s.svc.Cgroup == "" {
		return
	}
	removeCgroup(s.svc.Cgroup)
	if sysAccess(s.svc.Cgroup, unix.F_OK) != nil { // else something lives in it
		s.svc.Cgroup = ""
	}
}

// leave is the orderly end of the shim: the state on disk, which settle has written, is the last word.
func (s *shim) leave() {
	reach("leave.main-pid")
	_ = sysUnlink("main.pid")
	reach("leave.shim-pid")
	_ = sysUnlink("shim.pid")
	reach("leave.socket")
	_ = sysUnlink(shimSocketName)
	s.notify.remove()
	if s.pump != nil {
		s.pump.stop()
	}
	if written := s.own.end(); s.daemon != nil && (!written || s.pump != nil && s.pump.owes()) {
		_ = unix.Shutdown(int(s.daemon.f.Fd()), unix.SHUT_RDWR) // a thread that hangs at the disk keeps us from ending, and all descriptors open
	}
}

// removeCgroup removes a cgroup and those that the service made below it.
func removeCgroup(dir string) {
	reach("cgroup.remove")
	if sysRmdir(dir) == nil {
		return
	}
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			removeCgroup(dir + "/" + e.Name())
		}
	}
	reach("cgroup.remove-emptied")
	_ = sysRmdir(dir)
}

// ---- frames

func (s *shim) onFrame(c *conn, f shimFrame) {
	switch f.Op {
	case opHello:
		if f.Role == "daemon" {
			s.newDaemon(c)
		}
	case opWant:
		s.readWant(f.Job, retryPause)
	case opExit:
		if f.Exit != nil {
			s.onExitNote(*f.Exit)
		}
	case opOrphans:
		s.svc.Orphans = append(s.svc.Orphans, f.Refs...)
	case opReset:
		s.feed(evReset{})
	case opIdle:
		s.quitting = s.svc.idle()
	case opLeave:
		s.leaving, s.quitting = true, true
	case opHeal:
		s.heal(c)
	case opUpgrade:
		s.renewal.program, s.renewal.inode = f.Program, f.Inode
	}
}

// newDaemon: a new daemon has found us.
func (s *shim) newDaemon(c *conn) {
	if s.daemon != nil && s.daemon != c {
		_ = unix.Shutdown(int(s.daemon.f.Fd()), unix.SHUT_RDWR)
	}
	s.daemon, s.healAt, s.healWait = c, 0, 0
	s.greetDaemon()
}

func (s *shim) onClosed(m msgClosed) {
	if s.linkEnded(m) {
		return
	}
	if m.from == s.daemon {
		s.daemon = nil
		s.lostDaemon()
	}
	m.from.close()
}

// onExitNote: somebody reaped a process of ours and tells how it ended.
func (s *shim) onExitNote(n exitNote) {
	for _, r := range []role{roleMain, roleControl} {
		p := s.process(r)
		if p.fd >= 0 && !p.child && p.ref.PID == n.Ref.PID && (n.Ref.Start == 0 || n.Ref.Start == p.ref.Start) {
			s.ended(r, n.Exit)
		}
	}
}

// readWant turns a new wish into an event. job is the one that its turn has come for; "" = any. Another is there already when that one was
// replaced meanwhile, and has to wait for other units. pause is until the next look, should this one fail; it doubles.
func (s *shim) readWant(job string, pause time.Duration) {
	w, err := s.home.readWant(s.name, s.boot)
	if isUnread(err) {
		s.warn("cannot read the wish: %v", err)
		time.AfterFunc(pause, func() { s.inbox <- msgWant{job, min(2*pause, healMost)} })
		return
	}
	if err != nil || w.Job == "" || job != "" && w.Job != job {
		return // unreadable = leave as it is
	}
	ev := evJob{id: w.Job, verb: w.Verb, by: w.By, other: w.For, until: w.Until}
	if w.Job == s.svc.Job.ID {
		if w.Until != s.svc.Job.Until {
			s.feed(ev)
		}
		return
	}
	if w.Verb != verbStop {
		if ev.unit, err = s.home.readUnit(s.name); err != nil {
			s.warn("%v", err)
			ev.unit = s.svc.unit
		}
		if s.pump != nil {
			s.pump.configure(ev.unit.LogMaxSize, ev.unit.LogMaxFiles)
		}
	}
	if w.Verb == verbStop || w.Verb == verbRestart {
		s.waiting = nil // another wish leaves the start under way as it is
	}
	s.feed(ev)
}

// wishWaits: the wish on disk has not come to us yet; its frame may be on the way.
func (s *shim) wishWaits() bool {
	w, err := s.home.readWant(s.name, s.boot)
	return err == nil && w.Job != "" && w.Job != s.svc.Job.ID
}

// wantIsUp reads the wish again, as protocol P asks before the commit.
func (s *shim) wantIsUp() bool {
	w, err := s.home.readWant(s.name, s.boot)
	return err != nil || w.Up
}

// ---- healing the daemon

// lostDaemon plans to start a new one, if the last was to run and nothing else keeps it alive.
func (s *shim) lostDaemon() {
	d, err := s.home.readDaemon()
	if isUnread(err) { // heal looks again
		s.healWait = healFirst
		s.healLater()
		return
	}
	if err != nil || d.Wanted != wantedRunning || d.Mode != modeAuto {
		return
	}
	attempts := d.Attempts
	if d.Started != 0 && time.Duration(bootNow()-d.Started) >= healForgets {
		attempts = 0
	}
	s.healWait = healFirst
	for range attempts {
		s.healWait = min(2*s.healWait, healMost)
	}
	s.healLater()
}

// bindAnew is SIGHUP: makes our socket again if it was deleted. A daemon that finds our lock held and no socket asks for it.
func (s *shim) bindAnew() {
	if s.listener != nil && sysAccess(shimSocketName, unix.F_OK) == nil {
		return
	}
	l, err := listenAt(".", shimSocketName)
	if err != nil {
		s.warn("%v", err)
		return
	}
	if s.listener != nil {
		s.listener.Close()
	}
	s.listener = l
	go s.accept(l)
}

// healLater sets the time with 20 % jitter, so that a thousand shims do not try at once.
func (s *shim) healLater() {
	r := randomBytes()
	s.healAt = bootNow() + boottime(s.healWait) + boottime(s.healWait)/5*boottime(int(r[0])-128)/128
	s.healWait = min(2*s.healWait, healMost)
}

// heal starts a daemon if none holds the home's lock. asker is a client that waits for it; nil = our own time has come.
func (s *shim) heal(asker *conn) {
	s.healAt = 0
	if s.daemon != nil && !s.daemon.hungUp() { // else it is dead, and the word of that is on its way to us
		s.onHealed(msgHealed{nil, asker})
		return
	}
	d, err := s.home.readDaemon()
	if asker == nil && isUnread(err) {
		s.healLater()
		return
	}
	if asker == nil && (err != nil || d.Wanted != wantedRunning || d.Mode != modeAuto) {
		return
	}
	reach("heal.lock")
	lock, err := lockDirectory(s.home.path)
	if err != nil {
		s.onHealed(msgHealed{err, asker})
		return
	}
	if d.Started != 0 && time.Duration(bootNow()-d.Started) >= healForgets {
		d.Attempts = 0
	}
	d.Attempts++
	d.Started, d.Daemon = 0, pidRef{}
	if asker == nil {
		reach("heal.record")
		_ = s.home.writeDaemon(d) // without it the delay does not grow; that is all
	}
	l := launch{parent: true, env: daemonEnvironment(os.Environ())}
	if d.Attempts <= healNewer {
		l.path = d.newerBinary()
	}
	go func() {
		err := s.home.startDaemon(lock, l, s.hangups)
		unix.Close(lock)
		s.inbox <- msgHealed{err, asker}
	}()
}

func (s *shim) onHealed(m msgHealed) {
	if m.asker != nil {
		_ = unix.Shutdown(int(m.asker.f.Fd()), unix.SHUT_RDWR)
		return
	}
	if s.daemon != nil {
		return
	}
	if m.err != nil && m.err != unix.EWOULDBLOCK {
		s.warn("%v", m.err)
	}
	if s.healWait == 0 {
		s.healWait = healFirst
	}
	s.healLater() // until a daemon has connected
}

// ---- ends of processes

// reap looks at all children that have ended. Each is recorded before it is reaped, so that a killed shim loses no status.
func (s *shim) reap() {
	s.readNotify()
	for {
		c, err := endedChild()
		if err != nil && err != unix.ECHILD { // no other signal tells of the same end
			time.AfterFunc(retryPause, func() { s.inbox <- syscall.SIGCHLD })
		}
		if err != nil || c.pid == 0 {
			s.checkTree()
			return
		}
		r := s.roleOf(c.pid)
		if r == "" {
			reach("reap.stranger")
			reapChild(c.pid)
			continue
		}
		if s.process(r).pending {
			return // its stage's report is on the way; it says whether anything ran
		}
		s.endedChild(r, c)
	}
}

func (s *shim) roleOf(pid int) role {
	switch {
	case s.main.fd >= 0 && s.main.ref.PID == pid:
		return roleMain
	case s.control.fd >= 0 && s.control.ref.PID == pid:
		return roleControl
	}
	return ""
}

// endedChild: step, record, reap, and only then act.
func (s *shim) endedChild(r role, c waitedChild) {
	if r == roleMain && s.hasSuccessor() {
		reach("reap.replaced")
		reapChild(c.pid)
		return
	}
	var ev event = evExit{role: r, exit: c.exit, oom: s.outOfMemory(r, c.exit)}
	if failed := s.process(r).failed; failed != nil {
		ev = s.failedSpawn(r, *failed, c.exit)
	}
	s.forget(r)
	effects := s.svc.step(s.now(), ev)
	_ = s.save()
	reach("reap.recorded")
	reapChild(c.pid)
	s.act(effects)
}

// act carries out effects of a step that was taken outside of feed.
func (s *shim) act(effects []effect) {
	s.queue = append(s.queue, nil) // keeps events that they cause in order
	s.carry(effects)
	rest := s.queue[1:]
	s.queue = nil
	for _, ev := range rest {
		s.feed(ev)
	}
}

// ended: a process that is not our child has ended.
func (s *shim) ended(r role, x exitStatus) {
	if r == roleMain && s.hasSuccessor() {
		return
	}
	var ev event = evExit{role: r, exit: x, oom: s.outOfMemory(r, x)}
	if s.neverRan(r, x) {
		ev = evAdopted{nothingRan: true} // the stage outlived the shim before us by a moment
	}
	s.forget(r)
	s.feed(ev)
	s.checkTree()
}

// outOfMemory: SIGKILL has ended the main process, and since the run began the kernel has killed something of the service for lack of memory.
func (s *shim) outOfMemory(r role, x exitStatus) bool {
	return r == roleMain && x == exitStatus{exitKilled, int(syscall.SIGKILL)} && s.svc.Cgroup != "" && oomKills(s.svc.Cgroup) > s.svc.OOMKills
}

// forget closes the pidfd of a process that is gone.
func (s *shim) forget(r role) {
	p := s.process(r)
	if p.fd >= 0 {
		unix.Close(p.fd)
	}
	*p = process{fd: -1}
	if r == roleMain {
		reach("main-pid.remove")
		_ = sysUnlink("main.pid")
	}
	s.payOwed()
}

// onGone: a process has ended. SIGCHLD tells the end of a child too, but the kernel may give that to the thread which hangs at the disk.
// The status of an adopted one comes from whoever reaped it, from the zombie, or from its pidfd.
func (s *shim) onGone(m msgGone) {
	s.readNotify()
	p := s.process(m.role)
	if p.fd < 0 || p.ref.PID != m.pid || p.gone {
		return
	}
	if !pollIn(p.fd) {
		s.awaitGone(p, m.role)
		return
	}
	if p.child {
		s.reap()
		return
	}
	if ws, ok := pidfdExit(p.fd); ok {
		s.ended(m.role, exitOf(ws))
		return
	}
	if st, err := readStat(m.pid); err == nil && st.ended() && st.start == p.ref.Start && !s.daemonReaps(st.ppid) {
		s.ended(m.role, exitOf(unix.WaitStatus(st.exitCode)))
		return
	}
	if ws, ok := pidfdExit(p.fd); ok { // reaped between the two looks
		s.ended(m.role, exitOf(ws))
		return
	}
	dup, err := unix.FcntlInt(uintptr(p.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		time.AfterFunc(retryPause, func() { s.inbox <- m })
		return
	}
	p.gone = true
	go s.awaitStatus(m, dup)
}

// daemonReaps: the zombie is the daemon's child, so its note is on the way; it knows more than /proc may show us.
func (s *shim) daemonReaps(parent int) bool {
	return s.daemon != nil && (s.home.isDaemon(parent) || parent == keeperPID() && parent != 0)
}

// awaitStatus waits until the process is reaped (its pidfd hangs up), at most statusLimit.
func (s *shim) awaitStatus(m msgGone, fd int) {
	p := []unix.PollFd{{Fd: int32(fd), Events: 0}}
	_, _ = sysPoll(p, int(statusLimit.Milliseconds()))
	ws, ok := pidfdExit(fd)
	unix.Close(fd)
	if ok {
		x := exitOf(ws)
		s.inbox <- msgFrame{nil, shimFrame{Op: opExit, Exit: &exitNote{pidRef{PID: m.pid}, x}}}
		return
	}
	if st, err := readStat(m.pid); err == nil && st.ended() {
		x := exitOf(unix.WaitStatus(st.exitCode))
		s.inbox <- msgFrame{nil, shimFrame{Op: opExit, Exit: &exitNote{pidRef{PID: m.pid, Start: st.start}, x}}}
		return
	}
	s.inbox <- msgLost(m)
}

// ---- the tree

func (s *shim) tree() tree {
	return tree{home: s.home, name: s.name, cgroup: s.svc.Cgroup, shim: os.Getpid(), adopted: s.adopted,
		members: append([]pidRef{s.svc.Main, s.svc.Control}, s.svc.Orphans...)}
}

// signalTries bounds how often a signal is sent that could not be: one that we may never send is no reason to try for ever.
const signalTries = 5

// kill sends a signal to the main and control process or to the whole tree. A stage that is about to become the service would ignore
// it, or die of it in our name: its report comes first, unless the signal is SIGKILL.
func (s *shim) kill(e kill) {
	s.owed = nil
	if e.signal != syscall.SIGKILL && (s.main.pending || s.control.pending) {
		s.owed = &e
		return
	}
	s.deliver(e, 1)
}

// deliver sends a signal, and again after a pause where some may not have got it and the state that asked for it stands: without it a stop
// would last until its time is up. Others get it twice then.
func (s *shim) deliver(e kill, try int) {
	err := s.trySignal(e)
	if err == nil {
		return
	}
	s.warn("cannot send %s: %v", signalName(e.signal), err)
	if try < signalTries {
		m := msgKill{e, try + 1, s.svc.Sub, s.svc.Invocation}
		time.AfterFunc(retryPause, func() { s.inbox <- m })
	}
}

func (s *shim) trySignal(e kill) error {
	if e.scope == scopeMain {
		return errors.Join(s.signalOne(&s.main, e.signal), s.signalOne(&s.control, e.signal))
	}
	if s.treeIsEmpty() {
		return nil
	}
	return s.tree().signal(e.signal)
}

func (s *shim) signalOne(p *process, sig syscall.Signal) error {
	if p.fd < 0 {
		return nil
	}
	reach("main.signal")
	if err := signalAndContinue(p.fd, sig); err != errGone {
		return err
	}
	return nil
}

// treeIsEmpty answers without a walk where it can: no child is left, and the cgroup is empty. Where nothing can be listed for lack of
// /proc, known processes and children are all that there is; for lack of descriptors, that proves nothing.
func (s *shim) treeIsEmpty() bool {
	if s.main.fd >= 0 || s.control.fd >= 0 {
		return false
	}
	if s.svc.Cgroup != "" {
		return cgroupEmpty(s.svc.Cgroup)
	}
	childless := !hasChildren()
	if childless && !s.adopted {
		return true
	}
	pids, err := s.tree().look()
	return len(pids) == 0 && (err == nil || childless && !isShortage(err))
}

// checkTree answers a watch when nothing is left, and starts a spawn that has waited for that.
func (s *shim) checkTree() {
	if s.watching == nil {
		return
	}
	if *s.watching == scopeMain {
		if s.main.fd < 0 && s.control.fd < 0 {
			s.watching = nil
			s.feed(evTree{})
		}
		return
	}
	if !s.treeIsEmpty() {
		s.lookAtMembers()
		return
	}
	s.watching = nil
	if w := s.waiting; w != nil {
		s.waiting = nil
		s.spawn(*w)
		return
	}
	s.feed(evTree{})
}

// lookAtMembers makes sure that the end of each process of the tree wakes us, and kills what was forked while we killed. Of a cgroup the
// end of one is enough: until then it is not empty.
func (s *shim) lookAtMembers() {
	if s.svc.Sub == stopSigkill || s.svc.Sub == finalSigkill || s.waiting != nil {
		_ = s.tree().signal(syscall.SIGKILL) // whoever is left is looked at below
	}
	descendants := !s.adopted && s.svc.Cgroup == "" // the last end is an end of a child of ours, unless SIGCHLD hangs with the pump
	if s.members[0] || s.main.fd >= 0 || s.control.fd >= 0 || descendants && (s.pump == nil || !s.pump.owes()) {
		return // we are woken
	}
	pids, err := s.tree().look()
	watched := false
	for _, pid := range pids {
		if watched && s.svc.Cgroup != "" {
			break
		}
		if !s.members[pid] && !s.watchMember(pid, &err) {
			continue
		}
		watched = true
	}
	switch {
	case isShortage(err):
		s.lookAgain(retryPause)
	case watched:
	case s.svc.Cgroup != "": // it counts a process that it lists no more, for a moment
		s.watchCgroup()
	case err != nil && hasChildren(): // no /proc: what is left are children of ours
	default: // what was there has ended while we looked
		s.lookAgain(0)
	}
}

// watchMember has the end of a process told as msgMember. false: it has ended, or there was no descriptor, which err says then.
func (s *shim) watchMember(pid int, err *error) bool {
	fd, e := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if isShortage(e) {
		*err = e
	}
	if e != nil {
		return false
	}
	s.members[pid] = true
	whenReadable(fd, func(f *os.File) {
		f.Close()
		s.inbox <- msgMember{pid}
	})
	return true
}

// watchCgroup has it told that the cgroup has become empty.
func (s *shim) watchCgroup() {
	fd, err := openRetry(s.svc.Cgroup+"/cgroup.events", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		s.lookAgain(retryPause)
		return
	}
	s.members[0] = true
	whenUnpopulated(fd, func() { s.inbox <- msgMember{} })
}

// lookAgain has the tree looked at after a pause. 0: a look has found that it is about to change or has changed meanwhile.
func (s *shim) lookAgain(pause time.Duration) {
	s.members[0] = true
	time.AfterFunc(pause, func() { s.inbox <- msgMember{} })
}

// leftPIDs are the processes that a stop waits for.
func (s *shim) leftPIDs() []int {
	if s.watching != nil && *s.watching == scopeMain {
		var left []int
		for _, p := range []*process{&s.main, &s.control} {
			if p.fd >= 0 {
				left = append(left, p.ref.PID)
			}
		}
		return left
	}
	return s.tree().list()
}

// ---- output

func (s *shim) startPump() error {
	owner := -1
	if u := s.svc.unit; u.User != "" || u.Group != "" {
		if a, wrong := accountOf(u); wrong == nil && a.switched {
			owner = a.uid
		}
	}
	notes := make(chan pumpNote, 4)
	p, err := startPump(pumpConfig{RunDir: ".", LogDir: s.home.logDir(s.name), MaxSize: s.svc.unit.LogMaxSize,
		MaxFiles: s.svc.unit.LogMaxFiles, FIFOOwner: owner}, notes)
	if err != nil {
		return err
	}
	s.pump = p
	go func() {
		for n := range notes {
			s.inbox <- n
		}
	}()
	return nil
}

// ensurePump starts the pump, and again after a pause, which doubles, where that fails: a service that is adopted must not block.
func (s *shim) ensurePump(pause time.Duration) {
	err := s.startPump()
	if err != nil { // once more at once: what a service has written goes with its last descriptor of the FIFOs, should it end within the pause
		s.warn("%v", err)
		err = s.startPump()
	}
	if err != nil {
		time.AfterFunc(pause, func() { s.inbox <- msgPump{min(2*pause, healMost)} })
	}
}

func (s *shim) drain(e drain) {
	s.drains++
	if s.pump == nil { // what is in the FIFOs goes with us, so there is one more try
		if err := s.startPump(); err != nil {
			s.warn("%v", err)
			s.feed(evDrained{})
			return
		}
	}
	s.undrained = s.drains
	s.pump.drain(s.drains)
	if e.limit > 0 {
		token := s.drains
		time.AfterFunc(e.limit, func() { s.inbox <- msgDrainEnd{token} })
	}
}

// retire renames the FIFOs away if a process is left that may hold them. The record says so until it is done.
func (s *shim) retire() {
	if s.svc.Retire = s.pump != nil && !s.treeIsEmpty(); s.svc.Retire {
		s.retiring = true
		s.pump.retire()
	}
}

// outputStands: the FIFOs that a process would open are those that the pump reads; nobody has deleted or replaced them.
func (s *shim) outputStands() bool {
	if s.pump == nil {
		return true // opening them tells what is wrong
	}
	for stream, name := range fifoNames {
		var ours, there unix.Stat_t
		if sysFstat(s.pump.fifo(logStream(stream)), &ours) != nil || sysLstat(name, &there) != nil || ours.Ino != there.Ino {
			return false
		}
	}
	return true
}

// awaitChildren has the ends of our children told by their pidfds too while the disk hangs, when SIGCHLD may not come. Always, it would
// cost each shim 20 KB.
func (s *shim) awaitChildren() {
	if s.pump == nil || !s.pump.owes() {
		return
	}
	for _, r := range []role{roleMain, roleControl} {
		if p := s.process(r); p.fd >= 0 && p.child {
			s.awaitGone(p, r)
		}
	}
}

func (s *shim) onPump(n pumpNote) {
	if n.Text != "" {
		s.warn("%s", n.Text)
	}
	if n.Halted {
		s.renewal.step = renewalHalted
	}
	s.awaitChildren()
	if n.Retired {
		s.retiring, s.svc.Retire = false, false
		s.greetDaemon() // the daemon lets go of the old FIFOs, without which they have no end, and holds the new
		if w := s.waiting; w != nil && s.watching == nil {
			s.waiting = nil
			if s.outputStands() {
				s.spawnWhenClear(*w)
			} else {
				s.spawnFailed(w.role, "its output FIFOs are not there")
			}
		}
	}
	if n.Drained != 0 && n.Drained == s.undrained {
		s.undrained = 0
	}
	if n.Drained != 0 && n.Drained == s.drains {
		s.drains++ // the limit of this drain is void
		s.feed(evDrained{})
	}
	switch s.svc.Sub { // a retired FIFO may have been the last thing that kept us
	case dead, failed:
		s.quitting = !s.wishWaits()
	case exited:
		if n.Buried || n.Settled {
			s.drain(drain{drainLimit})
		}
	}
}
