// Role: protocol P, the start of one process of a service; the notify socket and the search for a forked main process.
// Runs in: shim.
// Owns: nothing beside what shim.go owns.
// Uses: wire, sys, command, unit, supervise, state, environ, tree, shim.

package main

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// spawnWhenClear starts a command of ExecStartPre, and the first of ExecStart, only when nothing of an earlier run or command is left
// where KillMode ends it. SendSIGKILL=no forbids to end it: then there is no start.
func (s *shim) spawnWhenClear(e spawn) {
	begins := s.starts() || s.svc.Sub == startPre
	if begins && s.pump == nil {
		if err := s.startPump(); err != nil { // nobody would read what it prints
			s.spawnFailed(e.role, "%v", err)
			return
		}
		s.greetDaemon()
	}
	if begins && !s.retiring && !s.outputStands() {
		s.retiring = true
		s.pump.retire()
	}
	if s.retiring {
		s.waiting, s.watching = &e, nil // its FIFOs are not there yet
		return
	}
	mode := s.svc.unit.KillMode
	if begins && mode == killProcess && s.main.fd >= 0 { // a stop could not end it: there is no second one beside it
		s.feed(evBusy{e.role, []int{s.main.ref.PID}})
		return
	}
	if !begins || mode == killProcess || mode == killNone {
		s.spawn(e)
		return
	}
	if s.treeIsEmpty() {
		s.adopted = false // all that there will be descends from us: no more walks over all processes
		s.spawn(e)
		return
	}
	if !s.svc.unit.SendSIGKILL {
		s.feed(evBusy{e.role, s.tree().list()})
		return
	}
	all := scopeTree
	s.waiting, s.watching = &e, &all
	_ = s.tree().signal(syscall.SIGKILL) // checkTree looks at whoever is left
	waited := s.waiting
	time.AfterFunc(busyLimit, func() { s.inbox <- msgBusy{waited} })
	s.checkTree()
}

// spawn is protocol P (DESIGN.md, section 3). A failure before the stage runs is fed as evSpawnFailed, later ones come as its report.
func (s *shim) spawn(e spawn) {
	order, wrong := s.order(e)
	if wrong != nil {
		s.feed(evSpawnFailed{e.role, stageFailure{Stage: wrong.stage}, wrong.text})
		return
	}
	s.svc.Spawning = e.role
	if err := s.save(); err != nil && !s.ending() {
		s.spawnFailed(e.role, "%v", err)
		return
	}
	files, err := s.openStageFiles(e.role)
	defer files.close()
	if errors.Is(err, unix.EAGAIN) && s.strays {
		s.strays = false
		s.spawnWhenFree(&e)
		return
	}
	if errors.Is(err, unix.EAGAIN) {
		s.feed(evBusy{e.role, s.leftPIDs()})
		return
	}
	if err != nil {
		s.spawnFailed(e.role, "cannot prepare the start: %v", err)
		return
	}
	if err := s.launchStage(e.role, files, &order); err != nil {
		s.spawnFailed(e.role, "cannot start a process: %v", err)
		return
	}
	files.closeChildEnds()
	s.awaitReport(e.role, files)
	if err := s.recordProcess(e.role, files); err != nil && !s.ending() {
		s.warn("%v", err)
		return // the barrier closes with files: the stage exits, and its end is told as a failed start
	}
	if !s.ending() && !s.wantIsUp() {
		s.giveWay()
		return // likewise
	}
	files.commit(order)
}

// giveWay: what was about to run is not wanted any more. A start turns to the new wish at once; for a service that is up the turn of that wish
// has to come, since others may need it.
func (s *shim) giveWay() {
	if !isUp(s.svc.Sub) {
		s.readWant("", retryPause)
	}
}

// spawnWhenFree lets a start wait for its guard, which a stage has that is about to end. That takes a thread for so long.
func (s *shim) spawnWhenFree(e *spawn) {
	s.waiting, s.watching = e, nil
	time.AfterFunc(busyLimit, func() { s.inbox <- msgBusy{e} })
	go func() {
		for _, name := range []string{"out", "err"} {
			if fd, err := openRetry(name, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NOFOLLOW, 0); err == nil {
				reach("spawn.await-guard")
				_ = waitByte(fd, guardMain)
				unix.Close(fd)
			}
		}
		s.inbox <- msgGuard{e}
	}()
}

// starts: the present step is the first command of ExecStart, which must never run beside another run of the service.
func (s *shim) starts() bool { return s.svc.Sub == starting && s.svc.Step == 0 }

// ending: the present step belongs to a stop, which goes on whatever the wish or the disk says.
func (s *shim) ending() bool { return s.svc.Sub == stopping || s.svc.Sub == stopPost }

func (s *shim) spawnFailed(r role, format string, args ...any) {
	s.feed(evSpawnFailed{role: r, text: fmt.Sprintf(format, args...)})
}

// order says what the stage has to become.
func (s *shim) order(e spawn) (stageOrder, *stageFailureText) {
	u := s.svc.unit
	a, wrong := accountOf(u)
	if wrong != nil {
		return stageOrder{}, wrong
	}
	if s.svc.NotifyNeeded() {
		if err := s.openNotify(a); err != nil {
			return stageOrder{}, &stageFailureText{stageFDs, err.Error()}
		}
	}
	scope := s.home.scopeID(s.name)
	if outer := os.Getenv(outerVariable); outer != "" {
		scope = outer + ":" + scope
	}
	env, wrong := buildEnvironment(u, a, scope, s.processEnvironment())
	if wrong != nil {
		return stageOrder{}, wrong
	}
	argv := expandCommand(e.cmd, env.get)
	path, _ := env.get("PATH")
	program := searchPath(e.cmd.Path, path)
	if program == "" {
		return stageOrder{}, &stageFailureText{stageExec, notFoundText(e.cmd.Path, path)}
	}
	o := stageOrder{Path: program, Argv: argv, Env: env.list, Dir: u.WorkingDirectory, UID: -1, GID: -1, UMask: int(u.UMask)}
	if o.Dir == "~" {
		o.Dir = a.home
	}
	if !u.WorkingDirectorySet {
		o.Dir, o.Soft = softDirectory(o.Dir, a)
	}
	if a.switched {
		o.UID, o.GID, o.Groups = a.uid, a.gid, a.groups
	}
	return o, nil
}

// notFoundText has the form that the client knows, to look the program up on its own PATH.
func notFoundText(program, path string) string {
	return notFoundPrefix + program + " in PATH=" + path
}

// softDirectory is the default working directory, and where to go when that is closed to the user.
func softDirectory(dir string, a account) (want, instead string) {
	instead = a.home
	if a.uid == 0 {
		instead = "/"
	}
	if dir == "" {
		return instead, "/"
	}
	return dir, instead
}

// processEnvironment is what systemd sets for this very process.
func (s *shim) processEnvironment() []string {
	env := []string{"INVOCATION_ID=" + s.svc.Invocation}
	if s.notify.path != "" {
		env = append(env, "NOTIFY_SOCKET="+s.notify.path)
	}
	if !s.svc.Main.zero() {
		env = append(env, "MAINPID="+strconv.Itoa(s.svc.Main.PID))
	}
	if s.ending() {
		env = append(env, "SERVICE_RESULT="+s.svc.Result)
		if x := s.svc.Exit; x.How != "" && x.How != exitLost {
			status := strconv.Itoa(x.Status)
			if x.How != exitExited {
				status = strings.TrimPrefix(signalName(syscall.Signal(x.Status)), "SIG")
			}
			env = append(env, "EXIT_CODE="+x.How, "EXIT_STATUS="+status)
		}
	}
	return env
}

// ---- the stage

// stageFiles are the descriptors of one spawn; -1 = not open.
type stageFiles struct {
	out, err, null    int      // of the stage
	barrierR, reportW int      // of the stage
	barrierW          int      // ours
	report            *os.File // likewise
	pidFile           int
	pid, pidfd        int
}

func (f *stageFiles) closeChildEnds() {
	for _, fd := range []*int{&f.out, &f.err, &f.null, &f.barrierR, &f.reportW} {
		closeFD(fd)
	}
}

func (f *stageFiles) close() {
	f.closeChildEnds()
	for _, fd := range []*int{&f.barrierW, &f.pidFile} {
		closeFD(fd)
	}
	if f.report != nil {
		f.report.Close()
	}
}

// openStageFiles opens fresh descriptions of the FIFOs, takes the guard on them, and makes the pipes. EAGAIN: the guard is taken, which
// matters to a start only: what another command left, or a forked main process, may hold the guard of commands.
func (s *shim) openStageFiles(r role) (f *stageFiles, err error) {
	f = &stageFiles{out: -1, err: -1, null: -1, barrierR: -1, reportW: -1, barrierW: -1, pidFile: -1, pidfd: -1}
	guard := guardControl
	if r == roleMain || s.starts() {
		guard = guardMain
	}
	for _, end := range []struct {
		fd   *int
		name string
	}{{&f.out, "out"}, {&f.err, "err"}} {
		if *end.fd, err = openGuarded(end.name, guard); err != nil && (s.starts() || !errors.Is(err, unix.EAGAIN)) {
			return f, err
		}
	}
	if f.null, err = openNothing(); err != nil {
		return f, err
	}
	if r == roleMain {
		reach("main-pid.create")
		if f.pidFile, err = openRetry("main.pid.new", unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600); err == nil {
			reach("main-pid.lock")
			err = lockByte(f.pidFile, 0)
		}
		if err != nil {
			return f, err
		}
	}
	var p [2]int
	if err = unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return f, err
	}
	f.barrierR, f.barrierW = p[0], p[1]
	if err = unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return f, err
	}
	f.reportW = p[1]
	if err = unix.SetNonblock(p[0], true); err != nil {
		unix.Close(p[0])
		return f, err
	}
	f.report, err = pollable(p[0], "report")
	return f, err
}

// openGuarded opens a FIFO as the service will have it (never through os.File, which would make it non-blocking) and locks its guard byte.
// With EAGAIN it returns the descriptor all the same, without the lock.
func openGuarded(name string, guard int64) (int, error) {
	fd, err := openRetry(name, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, fmt.Errorf("cannot open %s: %w", name, err)
	}
	reach("spawn.guard")
	err = lockByte(fd, guard)
	if err != nil && err != unix.EAGAIN {
		unix.Close(fd)
		return -1, fmt.Errorf("cannot lock %s: %w", name, err)
	}
	return fd, err
}

// launchStage starts the stage, inside the service's cgroup where there can be one.
func (s *shim) launchStage(r role, f *stageFiles, order *stageOrder) (err error) {
	l := launch{argv: []string{shimName, "-exec"}, env: bareEnvironment[:], cgroup: -1}
	if exe := os.Getenv(binaryVariable); exe != "" {
		l.env = append(slices.Clip(l.env), binaryVariable+"="+exe)
	}
	l.files = []uintptr{uintptr(f.null), uintptr(f.out), uintptr(f.err), uintptr(f.barrierR), uintptr(f.reportW)}
	if r == roleMain {
		l.files = append(l.files, uintptr(f.pidFile))
	}
	dir := s.makeCgroup()
	if dir >= 0 && !s.attaches {
		l.cgroup = dir
		reach("stage.start-in-cgroup")
		f.pid, f.pidfd, err = l.start()
		unix.Close(dir)
		if err == nil {
			return nil
		}
		l.cgroup, s.attaches = -1, true
	} else {
		closeFD(&dir)
	}
	if s.svc.Cgroup != "" {
		order.Cgroup = s.svc.Cgroup + "/cgroup.procs"
	}
	reach("stage.start")
	f.pid, f.pidfd, err = l.start()
	return err
}

// makeCgroup makes the service's cgroup and returns its directory, or -1 where there can be none.
func (s *shim) makeCgroup() int {
	if s.svc.Cgroup == "" {
		if s.cgroupBase == "" || s.adopted {
			return -1
		}
		dir := s.cgroupBase + "/" + s.name + ".service"
		reach("cgroup.make")
		if err := sysMkdir(dir, 0o755); err != nil && err != unix.EEXIST {
			return -1
		}
		s.svc.Cgroup = dir
	}
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC
	fd, err := openRetry(s.svc.Cgroup, flags, 0)
	if errors.Is(err, unix.ENOENT) { // somebody has removed it, empty as it was
		reach("cgroup.make-again")
		if sysMkdir(s.svc.Cgroup, 0o755) == nil {
			fd, err = openRetry(s.svc.Cgroup, flags, 0)
		}
	}
	if err != nil {
		s.svc.Cgroup = ""
		return -1
	}
	return fd
}

// recordProcess is step 5: the identity is durable before anything of the service can run.
func (s *shim) recordProcess(r role, f *stageFiles) error {
	ref := identify(f.pid, f.pidfd)
	p := s.process(r)
	closeFD(&p.fd) // of one that KillMode=none or a reload left behind
	*p = process{ref: ref, fd: f.pidfd, child: true, pending: true, seq: p.seq}
	s.awaitChildren()
	f.pidfd = -1
	if s.starts() && s.svc.Cgroup != "" {
		s.svc.OOMKills = oomKills(s.svc.Cgroup)
	}
	if r == roleControl {
		s.svc.Control = ref
		return s.save()
	}
	s.svc.Main = ref
	s.hold = append(s.hold, heldFD{heldMain, p.fd})
	reach("main-pid.write")
	if _, err := sysWrite(f.pidFile, pidFileText(f.pid)); err != nil {
		s.warn("cannot write main.pid: %v", err) // it only says where to look
	}
	reach("main-pid.rename")
	if err := sysRename("main.pid.new", "main.pid"); err != nil {
		s.warn("cannot write main.pid: %v", err)
	}
	closeFD(&f.pidFile)
	return s.save()
}

// commit is step 6: the order, and with its last byte the word to go. A pipe holds a page at least; a larger order is written by a
// goroutine, which the stage reads from as fast as it comes.
func (f *stageFiles) commit(order stageOrder) {
	b := append(encodeStageOrder(order), '!')
	if len(b) <= os.Getpagesize() {
		reach("stage.commit")
		_, _ = sysWrite(f.barrierW, b) // EPIPE: the stage is gone, which its end tells
		return
	}
	_ = unix.SetNonblock(f.barrierW, true)
	w := os.NewFile(uintptr(f.barrierW), "barrier")
	f.barrierW = -1
	go func() {
		reach("stage.commit-large")
		_, _ = w.Write(b)
		w.Close()
	}()
}

// awaitReport reads the stage's report until its end.
func (s *shim) awaitReport(r role, f *stageFiles) {
	s.spawns++
	p, seq := s.process(r), s.spawns
	p.seq = seq
	report := f.report
	f.report = nil
	go func() {
		text, err := io.ReadAll(report)
		if err != nil { // as with sysReadPipe: its end is still to come
			var more []byte
			more, _ = io.ReadAll(report)
			text = append(text, more...)
		}
		report.Close()
		s.inbox <- msgReport{seq, r, text}
	}()
}

// onReport tells the state machine that the spawn went well, then looks at the end of the process, which waited for this. Of one that went
// wrong it is told at the end of the stage.
func (s *shim) onReport(m msgReport) {
	p := s.process(m.role)
	if p.seq != m.seq || !p.pending {
		return
	}
	p.pending = false
	ok, failure := decodeStageReport(m.text)
	if ok {
		s.feed(evSpawned{m.role})
	} else {
		p.failed = &failure
		if failure.Stage == "" { // it has died; should it not, for its word was lost, nothing else would end this start
			_ = s.signalOne(p, syscall.SIGKILL)
		}
	}
	s.payOwed()
	s.reap()
}

// failedSpawn is what the end of a stage means that has not become the program.
func (s *shim) failedSpawn(r role, failure stageFailure, end exitStatus) event {
	switch {
	case failure.Stage != "":
		return evSpawnFailed{r, failure, ""}
	case s.diedOfCgroup(r, end):
		s.attaches = true
		return evAdopted{nothingRan: true}
	}
	return evSpawnFailed{r, failure, "the process died while it was set up"}
}

// diedOfCgroup: a process that is born into a cgroup which was ended by cgroup.kill before is killed at once, since Linux 6.14 compares how
// often that happened to the cgroups of parent and child (kernel/cgroup/cgroup.c, cgroup_post_fork). One that enters it by itself is not.
func (s *shim) diedOfCgroup(r role, end exitStatus) bool {
	return s.svc.Cgroup != "" && !s.attaches && s.svc.Spawning == r && end == exitStatus{exitKilled, int(syscall.SIGKILL)}
}

// payOwed sends the signal that has waited for this report.
func (s *shim) payOwed() {
	if s.owed != nil {
		s.kill(*s.owed)
	}
}

// ---- notify

// notifySocket receives sd_notify messages. The daemon holds it beside us, so that messages survive our death.
type notifySocket struct {
	fd   int // -1 = none
	path string
	file *os.File
}

// NotifyNeeded: some process of the unit may notify.
func (s *service) NotifyNeeded() bool {
	return s.unit.NotifyAccess != notifyNone && s.unit.NotifyAccess != ""
}

// adopt takes the predecessor's socket.
func (n *notifySocket) adopt(fd int) {
	if fd > 0 {
		n.fd = fd
	}
}

// openNotify makes the socket if there is none, and reads from it.
func (s *shim) openNotify(a account) error {
	n := &s.notify
	if n.file != nil {
		return nil
	}
	n.path = s.notifyPath(a)
	if n.fd < 0 {
		fd, err := listenNotify(func(fd int) error { return bindNotify(fd, n.path, a) })
		if err != nil {
			return fmt.Errorf("cannot make notify socket %s: %v", n.path, err)
		}
		n.fd = fd
		s.hold = append(s.hold, heldFD{heldNotify, fd})
	}
	own, err := unix.FcntlInt(uintptr(n.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot read notify socket: %v", err)
	}
	if n.file, err = pollable(own, "notify socket"); err != nil {
		return err
	}
	raw, err := n.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("cannot read notify socket: %v", err)
	}
	go func() {
		m := msgNotify{make(chan struct{}, 1)}
		for raw.Read(func(fd uintptr) bool { return pollIn(int(fd)) }) == nil {
			s.inbox <- m
			<-m.read
		}
	}()
	return nil
}

// readNotify takes what was sent so far. The loop does so before it looks at the end of a process: what that has sent before counts,
// and is still known to be its own. A message is taken away once its effect is recorded, so that our successor reads it if we are killed in
// between; each is harmless when it comes twice.
func (s *shim) readNotify() {
	if s.notify.file == nil {
		return
	}
	buf := make([]byte, notifyBytes)
	for range notifyBatch {
		size, sender, err := peekNotify(s.notify.fd, buf)
		if err != nil {
			return
		}
		s.onNotify(sender, parseNotify(buf[:size]))
		_ = s.save() // on a full disk it counts all the same
		reach("notify.take")
		if dropDatagram(s.notify.fd) != nil {
			return
		}
	}
}

// notifyPath: run/NAME/notify, unless that is too long or closed to the service's user; then a per-home directory under /run or
// $XDG_RUNTIME_DIR; else the abstract namespace ('@').
func (s *shim) notifyPath(a account) string {
	path := s.home.runDir(s.name) + "/notify"
	if len(path) <= sunPathBytes && !a.switched {
		return path
	}
	sum := fnv.New64a()
	_, _ = io.WriteString(sum, s.name) // a hash never fails
	file := "notify-" + strconv.FormatUint(sum.Sum64(), 16)
	dir := s.home.notifyDir()
	if dir != "" && len(dir)+len(file)+1 <= sunPathBytes {
		reach("notify.directory")
		if err := os.Mkdir(dir, 0o711); err == nil || errors.Is(err, os.ErrExist) {
			reach("notify.open-directory")
			if sysChmod(dir, 0o711) == nil {
				return dir + "/" + file
			}
		}
	}
	return "@diakonos/" + s.home.id() + "/" + file
}

func bindNotify(fd int, path string, a account) error {
	if strings.HasPrefix(path, "@") {
		reach("notify.bind-abstract")
		return sysBind(fd, &unix.SockaddrUnix{Name: path}) // x/sys turns the @ into the abstract namespace
	}
	reach("notify.unlink")
	_ = sysUnlink(path)
	reach("notify.bind")
	if err := sysBind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return err
	}
	if a.switched {
		reach("notify.owner")
		if err := sysLchown(path, a.uid, a.gid); err != nil {
			return err
		}
	}
	reach("notify.mode")
	return sysChmod(path, 0o600)
}

func (n *notifySocket) remove() {
	if n.path != "" && !strings.HasPrefix(n.path, "@") {
		reach("notify.remove")
		_ = sysUnlink(n.path)
	}
}

// onNotify admits a message by NotifyAccess and by where its sender belongs.
func (s *shim) onNotify(sender unix.Ucred, msg notifyMessage) {
	if !s.mayNotify(sender) {
		s.complain("notify message from process %d is ignored (NotifyAccess=%s)", sender.Pid, s.svc.unit.NotifyAccess)
		return
	}
	if msg.BadPID != "" {
		s.complain("MAINPID names %.40q, which is no process: ignored", msg.BadPID)
	}
	ev := evNotify{msg: msg}
	if pid := msg.MainPID; pid != 0 && pid != s.main.ref.PID && s.svc.mayChangeMain() {
		ev.main = s.adoptMain(pid, "MAINPID")
	}
	s.feed(ev)
}

func (s *shim) mayNotify(sender unix.Ucred) bool {
	pid := int(sender.Pid)
	isMain := s.main.fd >= 0 && pid == s.main.ref.PID
	isControl := s.control.fd >= 0 && pid == s.control.ref.PID
	switch s.svc.unit.NotifyAccess {
	case notifyMain:
		return isMain
	case notifyExec:
		return isMain || isControl
	case notifyAll:
		return isMain || isControl || slices.Contains(s.tree().list(), pid) || s.isPastSender(sender)
	}
	return false
}

// isPastSender: a short-lived helper (`tool READY=1; exec program` in a shell script) is gone before anybody can tell whose it was. It has
// been told the path of the socket and has the service's user; where there is no cgroup a living one shows no more.
func (s *shim) isPastSender(sender unix.Ucred) bool {
	if st, err := readStat(int(sender.Pid)); err == nil && !st.exiting && st.state != 'Z' { // on its way out it is in no list any more
		return false
	}
	a, wrong := accountOf(s.svc.unit)
	return wrong == nil && (int(sender.Uid) == a.uid || sender.Uid == 0)
}

// ---- main process of a forking service

// adoptMain takes a process of the tree as the main process. what names where its PID came from. Zero: it is not ours.
func (s *shim) adoptMain(pid int, what string) pidRef {
	if pid == os.Getpid() || !slices.Contains(s.tree().list(), pid) {
		s.complain("%s names process %d, which does not belong to this service: ignored", what, pid)
		return pidRef{}
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return pidRef{}
	}
	ref := identify(pid, fd)
	st, err := readStat(pid)
	if err != nil || st.ended() {
		unix.Close(fd)
		return pidRef{}
	}
	if s.main.fd >= 0 {
		unix.Close(s.main.fd)
	}
	if st.ppid == os.Getpid() {
		s.main = process{ref: ref, fd: fd, child: true}
		s.awaitChildren()
	} else {
		s.watchProcess(&s.main, roleMain, ref, fd)
	}
	s.hold = append(s.hold, heldFD{heldMain, fd})
	reach("main-pid.adopt")
	if err := rewriteFile("main.pid", pidFileText(pid)); err != nil {
		s.warn("%v", err)
	}
	return ref
}

// lookForMain answers findMain: from PIDFile, which the service may write only after its parent has gone, or by a guess.
func (s *shim) lookForMain() {
	if s.svc.Sub != starting || s.svc.unit.Type != typeForking || s.control.fd >= 0 {
		s.unwatchPIDFile()
		return
	}
	if path := s.svc.unit.PIDFile; path != "" {
		s.lookAtPIDFile(path)
		return
	}
	left := s.tree().list()
	if s.svc.unit.GuessMainPID {
		if pid := onlyChild(left); pid != 0 {
			if ref := s.adoptMain(pid, "the guess"); !ref.zero() {
				s.feed(evMain{ref: ref})
				return
			}
		}
	}
	s.feed(evMain{left: len(left), text: "no process is left after its parent has ended"})
}

// onlyChild is the one process among pids that is our child, for orphans come to us. 0 = none or several.
func onlyChild(pids []int) int {
	found := 0
	for _, pid := range pids {
		if st, err := readStat(pid); err == nil && st.ppid == os.Getpid() && !st.ended() {
			if found != 0 {
				return 0
			}
			found = pid
		}
	}
	return found
}

func (s *shim) lookAtPIDFile(path string) {
	if pid := s.readPIDFile(path); pid != 0 {
		if ref := s.adoptMain(pid, "PIDFile"); !ref.zero() {
			s.unwatchPIDFile()
			s.feed(evMain{ref: ref})
			return
		}
	}
	if s.treeIsEmpty() {
		s.feed(evMain{text: "no process is left, and PIDFile " + path + " names none"})
		return
	}
	s.watchPIDFile(path)
	all := scopeTree
	s.watching = &all
	s.lookAtMembers()
}

// hasSuccessor: the main process has ended, and PIDFile names another one, which is recorded in its place. So a daemon replaces itself, by
// a new version of its program for instance.
func (s *shim) hasSuccessor() bool {
	u := s.svc.unit
	if u.Type != typeForking || u.PIDFile == "" || s.svc.Sub != running && s.svc.Sub != reload {
		return false
	}
	pid := s.readPIDFile(u.PIDFile)
	if pid == 0 || pid == s.svc.Main.PID {
		return false
	}
	ref := s.adoptMain(pid, "PIDFile")
	if ref.zero() {
		return false
	}
	s.feed(evMain{ref: ref})
	_ = s.save()
	return true
}

// readPIDFile reads a file that the service wrote, so it is not to be trusted: no link, no device, few bytes.
func (s *shim) readPIDFile(path string) int {
	fd, err := openRetry(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	b := make([]byte, 64)
	n, _ := sysRead(fd, b)
	text := bytes.TrimSpace(b[:max(n, 0)])
	pid := parsePIDFile(text)
	if pid == 0 && len(text) > 0 { // else it is about to be written
		s.complain("PIDFile %s names %.40q, which is no process: ignored", path, text)
	}
	return pid
}

// unwatchPIDFile: the directory may be a busy one, and the next start may have another.
func (s *shim) unwatchPIDFile() {
	if s.pidWatch != nil {
		s.pidWatch.Close() // its reader ends
		s.pidWatch = nil
	}
}

// watchPIDFile wakes us when something happens in the directory of PIDFile (man 7 inotify); as long as that is not there, in the nearest one
// above it. After each that is new to the watch there is one more look, for what has happened before.
func (s *shim) watchPIDFile(path string) {
	if s.pidWatch == nil {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
		if err != nil {
			s.warn("cannot watch for PIDFile %s: %v", path, err)
			return
		}
		f := os.NewFile(uintptr(fd), "inotify")
		s.pidWatch, s.pidDir = f, -1
		go func() {
			buf := make([]byte, 4096)
			for _, err := f.Read(buf); err == nil; _, err = f.Read(buf) {
				s.inbox <- msgPIDFile{}
			}
		}()
	}
	wd, err := watchNearest(int(s.pidWatch.Fd()), filepath.Dir(path))
	if err != nil {
		s.warn("cannot watch for PIDFile %s: %v", path, err)
		return
	}
	if wd != s.pidDir {
		s.pidDir = wd
		go func() { s.inbox <- msgPIDFile{} }()
	}
}

// watchNearest watches dir, or what there is of the path to it.
func watchNearest(fd int, dir string) (wd int, err error) {
	for {
		wd, err = unix.InotifyAddWatch(fd, dir, unix.IN_CLOSE_WRITE|unix.IN_MOVED_TO|unix.IN_CREATE)
		if err != unix.ENOENT || dir == "/" {
			return wd, err
		}
		dir = filepath.Dir(dir)
	}
}
