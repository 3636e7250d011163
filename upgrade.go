// Role: `daemon-upgrade`: the daemon becomes another program and keeps its clients, their jobs, and what it holds; then every shim does.
// Runs in: daemon.
// Owns: nothing beside what daemon.go and api.go own.
// Uses: wire, sys, deps, supervise, state, succession, daemon, api, kept.

package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// upgradeVerb asks for all of this.
const upgradeVerb = "daemon-upgrade"

const (
	upgradePatience = 10 * time.Second // for the next shim to have become the other program; then those that have not are named
	restPatience    = 2 * time.Second  // for shims that are just coming up, before the daemon becomes the other program
)

// upgrade is a `daemon-upgrade` under way: first the daemon comes to rest and becomes the other program, then that has the shims follow.
type upgrade struct {
	program string
	id      programID
	askers  []*asker
	rest    *rest      // the first part
	shims   *followers // the second one
}

// rest is the daemon before its exec: nothing more is read from clients, nor written to them.
type rest struct {
	accepts bool // the acceptor has not ended yet
	clients []*restingClient
	until   time.Time // for shims that come up
}

// restingClient is a client whose connection is kept.
type restingClient struct {
	session       *session
	reads, writes bool // its goroutines have not ended yet
}

// followers are the shims that are to become the program too.
type followers struct {
	queue []*supervised             // to be told
	told  map[*supervised]time.Time // told, or not known yet: they have not said hello
	timer *time.Timer
}

// bequest is what the program before this one has left, and the sessions of its clients.
type bequest struct {
	will     *daemonWill
	sessions []*session
}

// ---- asking

func (m *manager) answerUpgrade(c *session, r request) {
	st, err := trustedProgram(r.Program)
	id := programID{st.Dev, st.Ino}
	switch {
	case m.killer != nil:
		m.done(c, exitFailed, "`diakonos kill` is under way")
		return
	case err != nil:
		m.done(c, exitFailed, err.Error())
		return
	case m.upgrade != nil && m.upgrade.id != id:
		m.done(c, exitFailed, "an upgrade to another program is under way: "+m.upgrade.program)
		return
	}
	a := &asker{c: c, verb: r.Verb}
	if m.upgrade != nil {
		m.upgrade.askers = append(m.upgrade.askers, a)
		return
	}
	if !m.own.end() {
		err = errors.New("a message cannot be written: the disk hangs, and would hold up the exec")
	}
	m.own = ownLog{files: m.own.files}
	if err != nil {
		m.done(c, exitFailed, err.Error())
		return
	}
	m.upgrade = &upgrade{program: r.Program, id: id, askers: []*asker{a}}
	if m.program == id {
		m.tellUpgrade(jobLine{Outcome: outcomeSkipped, Text: "it runs this program already", MainPID: os.Getpid()})
		m.renewShims()
		return
	}
	m.comeToRest()
}

// tellUpgrade sends one line to all who asked for the upgrade. A line without a unit is about the daemon.
func (m *manager) tellUpgrade(l jobLine) {
	l.Verb = upgradeVerb
	for _, a := range m.upgrade.askers {
		a.failed = a.failed || l.Outcome == outcomeFailed
		m.send(a.c, reply{Job: &l})
	}
}

// endUpgrade answers who asked. why = "": it is through.
func (m *manager) endUpgrade(why string) {
	u := m.upgrade
	if u == nil {
		return
	}
	m.upgrade = nil
	if u.shims != nil {
		u.shims.timer.Stop()
	}
	for _, a := range u.askers {
		if why != "" {
			a.refuse(refusal{code: exitFailed, text: why})
		}
		m.finishAsker(a)
	}
}

// ---- coming to rest

func (m *manager) resting() bool { return m.upgrade != nil && m.upgrade.rest != nil }

// comeToRest has all goroutines end that read requests or write answers. The loop goes on meanwhile; what comes is parked.
func (m *manager) comeToRest() {
	u := m.upgrade
	u.rest = &rest{accepts: true, until: time.Now().Add(restPatience)}
	_ = m.listener.SetReadDeadline(time.Unix(1, 0)) // cannot fail for a socket in the poller
	for c := range m.clients {
		m.putToRest(c)
	}
	time.AfterFunc(restPatience, func() { m.inbox <- msgUpgradeDue{u} })
}

func (m *manager) putToRest(c *session) {
	m.upgrade.rest.clients = append(m.upgrade.rest.clients, &restingClient{session: c, reads: true, writes: true})
	_ = c.conn.f.SetDeadline(time.Unix(1, 0))
	c.kept = true
	close(c.out)
	c.out = nil
}

func (m *manager) restingClient(c *session) *restingClient {
	if m.resting() {
		for _, x := range m.upgrade.rest.clients {
			if x.session == c {
				return x
			}
		}
	}
	return nil
}

// readerRests: a reader has ended; whether it came to its deadline or to the end of its client, the next reader will find out.
func (m *manager) readerRests(c *session) bool {
	x := m.restingClient(c)
	if x != nil {
		x.reads = false
	}
	return x != nil
}

func (m *manager) writerRests(c *session) {
	if x := m.restingClient(c); x != nil {
		x.writes = false
	}
}

// checkRest becomes the other program once all is at rest, and no shim is on its way up: of that the disk may not know yet.
func (m *manager) checkRest() {
	if m.ending || !m.resting() || m.upgrade.rest.accepts {
		return
	}
	for _, x := range m.upgrade.rest.clients {
		if x.reads || x.writes {
			return
		}
	}
	if time.Now().Before(m.upgrade.rest.until) {
		for _, e := range m.services {
			if e.link != nil && !e.hello {
				return
			}
		}
	}
	m.becomeHeir()
}

// ---- the exec

// becomeHeir becomes the other program. Should that fail, it becomes its own program anew, which then has all that the other one would have
// had, and tells why. A signal that has come meanwhile is handled first.
func (m *manager) becomeHeir() {
	will := m.makeWill()
	m.own.end()
	m.own = ownLog{files: m.own.files}
	x := succession{program: m.upgrade.program, argv: []string{daemonName}, env: os.Environ(), keep: will.descriptors(), will: will,
		hold: m.holdSignals}
	err := x.carryOut()
	if err == errHeld { // the loop takes it, and then comes back to this
		m.reap() // the end of a child may have been told to nobody
		return
	}
	will.Refused, x.program, x.hold = err.Error(), selfExe(), nil
	err = x.carryOut()
	m.say("%v", err)
	m.ending = true // the shims start another one
}

// holdSignals ends the handling of signals. false: one was handled before, and waits to be heard.
func (m *manager) holdSignals() bool {
	signal.Stop(m.signals) // until it returns, some may still come
	if len(m.signals) == 0 {
		return true
	}
	m.watchSignals()
	return false
}

// askers are the requests that wait for jobs, with what each waits for.
func (m *manager) askers() map[*asker][]waitWill {
	all := map[*asker][]waitWill{}
	for _, j := range m.jobs.list() {
		for ; j != nil; j = j.then {
			for _, w := range j.Waiters {
				if a, ok := w.Token.(*asker); ok {
					all[a] = append(all[a], waitWill{Unit: j.Unit, Job: j.ID, Verb: string(j.Kind), Anchor: w.Anchor})
				}
			}
		}
	}
	return all
}

// makeWill writes down what neither shims nor disk know.
func (m *manager) makeWill() *daemonWill {
	keeperFD := 0
	if m.keeper != nil {
		keeperFD = int(m.keeper.f.Fd())
	}
	w := &daemonWill{KeeperFD: keeperFD, Version: protocolVersion, Build: version, Home: m.home.path, Mode: m.mode, ServiceDir: m.serviceDir, LockFD: m.lock,
		LogFD: m.log, ListenerFD: int(m.listener.Fd())}
	for name, e := range m.services {
		s := serviceWill{Name: name, Exits: e.exits, Gone: e.gone}
		for label, fd := range e.held {
			s.Labels, s.HeldFDs = append(s.Labels, label), append(s.HeldFDs, fd)
		}
		if len(s.HeldFDs)+len(s.Exits)+len(s.Gone) > 0 {
			w.Services = append(w.Services, s)
		}
	}
	index := map[*session]int{}
	for i, x := range m.upgrade.rest.clients {
		index[x.session] = i
		w.Clients = append(w.Clients, x.leave())
	}
	for _, p := range m.parked {
		if i, ok := index[p.c]; ok {
			text, err := json.Marshal(p.r)
			if err != nil {
				m.say("internal error: cannot encode a request: %v", err)
			}
			w.Clients[i].Requests = append(w.Clients[i].Requests, string(text))
		}
	}
	leave := func(a *asker, jobs []waitWill) {
		if i, ok := index[a.c]; ok {
			w.Askers = append(w.Askers, askerWill{Client: i, Verb: a.verb, Jobs: jobs, Failed: a.failed, Errors: a.errors, Hints: a.hints, Code: a.code})
		}
	}
	for a, jobs := range m.askers() {
		leave(a, jobs)
	}
	for _, a := range m.upgrade.askers {
		leave(a, nil)
	}
	for _, j := range m.jobs.list() {
		if j.then != nil {
			w.Reloads = append(w.Reloads, j.Unit)
		}
	}
	return w
}

// leave is what a client at rest leaves: what was read of it and is no request yet, and what was not sent.
func (x *restingClient) leave() clientWill {
	c := x.session
	return clientWill{FD: int(c.conn.f.Fd()), Unread: hex.EncodeToString(c.conn.buf), Unsent: hex.EncodeToString(slices.Concat(c.unsent, c.backlog))}
}

// descriptors are those that a will names.
func (w *daemonWill) descriptors() []int {
	fds := []int{w.LockFD, w.LogFD, w.ListenerFD}
	if w.KeeperFD != 0 {
		fds = append(fds, w.KeeperFD)
	}
	for _, s := range w.Services {
		fds = append(fds, s.HeldFDs...)
	}
	for _, c := range w.Clients {
		fds = append(fds, c.FD)
	}
	return fds
}

// ---- the heir

// heirMain runs the daemon that a process has become which was one before: it adopts all, as any daemon does, and has in addition what its
// predecessor left.
func heirMain(will *daemonWill) int {
	closeInherited(3)
	ready := reporter{}
	h := home{will.Home}
	if err := h.makeRunRoot(); err != nil {
		return ready.fail(err)
	}
	m, err := managerWithLock(h, will.Mode, will.LockFD)
	if err != nil {
		return ready.fail(err)
	}
	m.writeTo(will.LogFD)
	m.serviceDir = will.ServiceDir
	if will.KeeperFD != 0 {
		if m.keeper, err = joinKeeper(will.KeeperFD); err != nil {
			return ready.fail(err)
		}
	}
	m.listener = inherited(will.ListenerFD, socketName)
	if m.listener == nil || sysAccess(h.path+"/"+socketName, unix.F_OK) != nil { // it may have been deleted just before
		if err := m.listen(); err != nil {
			return ready.fail(err)
		}
	}
	m.watchSignals()
	if err := m.announceSelf(); err != nil {
		m.say("%v", err) // the record of the program before us stands, and names this process
	}
	m.previous = daemonRecord{Boot: m.boot, Wanted: wantedRunning, Keeper: m.keptBy} // whatever could be read: this is no first daemon
	m.inherit(will)
	if err := m.adoptAll(); err != nil {
		return ready.fail(err) // the shims start another one
	}
	go m.accept(m.listener)
	m.loop()
	return m.exitCode
}

// inherit takes what was held for shims, and the connections of clients, whose requests wait until all shims have said hello.
func (m *manager) inherit(will *daemonWill) {
	for _, s := range will.Services {
		e := m.entry(s.Name)
		e.exits, e.gone = s.Exits, s.Gone
		for i, fd := range s.HeldFDs[:min(len(s.HeldFDs), len(s.Labels))] {
			e.keep(s.Labels[i], fd)
		}
	}
	m.bequest = &bequest{will: will}
	for i := range will.Clients {
		c := m.attendAgain(&will.Clients[i])
		m.bequest.sessions = append(m.bequest.sessions, c)
		for _, text := range will.Clients[i].Requests {
			var r request
			if err := json.Unmarshal([]byte(text), &r); err != nil {
				m.done(c, exitFailed, fmt.Sprintf("internal error: cannot read a request that was handed over: %v", err))
				continue
			}
			m.parked = append(m.parked, msgRequest{c, r})
		}
	}
}

// attendAgain makes a session for a client whose connection was kept.
func (m *manager) attendAgain(w *clientWill) *session {
	c := newSession(os.NewFile(uintptr(w.FD), "client")) // without a poller for it there would be none for the daemon's own socket either
	c.conn.buf, _ = hex.DecodeString(w.Unread)
	c.backlog, _ = hex.DecodeString(w.Unsent)
	m.attend(c)
	c.give()
	return c
}

// resumeAskers goes on with the requests of the program before this one, whose open wishes have jobs again: each waits for these, or hears
// how its job has ended meanwhile. Then the shims follow.
func (m *manager) resumeAskers() {
	if m.bequest == nil {
		return
	}
	will, sessions := m.bequest.will, m.bequest.sessions
	m.bequest = nil
	for _, name := range will.Reloads {
		if !m.jobs.reloadAfter(name, byUser, newJobID()) {
			m.submit(demand{Kind: reloadJob, Names: []string{name}, By: byUser})
		}
	}
	u := &upgrade{program: ownProgram(), id: m.program}
	for _, w := range will.Askers {
		if w.Client < 0 || w.Client >= len(sessions) {
			continue
		}
		a := &asker{c: sessions[w.Client], verb: w.Verb, failed: w.Failed, errors: w.Errors, hints: w.Hints, code: w.Code}
		if w.Verb == upgradeVerb {
			u.askers = append(u.askers, a)
			continue
		}
		a.pending = len(w.Jobs) + 1 // until all are in
		for _, x := range w.Jobs {
			m.resumeWait(a, x)
		}
		a.pending--
		m.finishAsker(a)
	}
	m.upgrade = u
	if will.Refused != "" {
		m.say("it does not become another program: %s", will.Refused)
		m.endUpgrade(will.Refused)
		return
	}
	m.tellUpgrade(jobLine{Outcome: outcomeDone, MainPID: os.Getpid(), Text: "version " + version})
	m.renewShims()
}

// ownProgram is the path of the program that this process runs.
func ownProgram() string {
	if path, err := os.Readlink(ownLink); err == nil {
		return path
	}
	return selfExe()
}

// resumeWait lets a wait for the job that it has waited for, or ends the wait.
func (m *manager) resumeWait(a *asker, x waitWill) {
	same := func(id string) bool { return id == x.Job || strings.HasPrefix(id, x.Job+"/") } // also one stage of a restart
	for j := m.jobs.job(x.Unit); j != nil; j = j.then {
		if same(j.ID) || x.Verb == verbReload && j.Kind == reloadJob && j.then == nil { // that one has waited for another job, and does again
			j.hear(waiter{a, x.Anchor})
			return
		}
	}
	e := m.entry(x.Unit)
	l := jobLine{Unit: x.Unit, Verb: x.Verb, Outcome: outcomeFailed, Text: "it could not be taken up again; see " + m.home.daemonLog(),
		MainPID: e.record.Main.PID}
	switch {
	case same(e.record.Job.ID) && e.record.Job.Outcome != "":
		l.Outcome, l.Text = e.record.Job.Outcome, e.record.Job.Text
	case x.Verb == verbStart && m.isUp(x.Unit), x.Verb == verbStop && m.isDown(x.Unit):
		l.Outcome, l.Text = outcomeDone, ""
	}
	m.answerJob(a, x.Anchor, l)
}

// ---- the shims

// isOutdated: the shim that says hello runs another program than we do. Where its process cannot be seen, its build tells.
func (m *manager) isOutdated(hello shimFrame) bool {
	other := programID{}
	if s := hello.State; s != nil && s.ShimPID != 0 && s.PIDNS == m.pidns {
		other = programOf(strconv.Itoa(s.ShimPID))
	}
	if other == (programID{}) || m.program == (programID{}) {
		return hello.Build != version
	}
	return other != m.program
}

// renewShims tells the shims to become the program that we are, so many at a time: a service is not read from for the moment that takes.
// Those that have not said hello yet are told when they do.
func (m *manager) renewShims() {
	u := m.upgrade
	u.shims = &followers{told: map[*supervised]time.Time{}}
	for _, e := range m.services {
		switch {
		case e.hello && e.outdated:
			u.shims.queue = append(u.shims.queue, e)
		case !e.hello && (e.link != nil || e.later) && lockIsTaken(m.home.runDir(e.name)):
			u.shims.told[e] = time.Now()
		}
	}
	slices.SortFunc(u.shims.queue, byName)
	u.shims.timer = time.AfterFunc(upgradePatience, func() { m.inbox <- msgUpgradeDue{u} })
	m.tellShims()
}

func byName(a, b *supervised) int { return strings.Compare(a.name, b.name) }

// tellShims has at most one batch at work on it, and ends the upgrade when there is none left.
func (m *manager) tellShims() {
	s := m.upgrade.shims
	for len(s.queue) > 0 && len(s.told) < shimBatch {
		e := s.queue[0]
		s.queue = s.queue[1:]
		if e.hello && e.outdated {
			s.told[e] = time.Now()
			m.tellShim(e)
		}
	}
	if len(s.told) == 0 {
		m.endUpgrade("")
	}
}

func (m *manager) tellShim(e *supervised) {
	m.poke(e, shimFrame{Op: opUpgrade, Program: m.upgrade.program, Inode: m.program.ino})
}

// shimSaysHello: it has become the program, or has to be told, for it could not be before.
func (m *manager) shimSaysHello(e *supervised) {
	switch {
	case m.upgrade == nil || m.upgrade.shims == nil:
	case !e.outdated:
		m.settleShim(e, outcomeDone, "")
	case !m.upgrade.shims.told[e].IsZero():
		m.tellShim(e)
	}
}

func (m *manager) shimRefuses(e *supervised, why string) {
	m.settleShim(e, outcomeFailed, "its shim goes on as it is: "+why)
}

// shimEnded: its service has ended, and needs none.
func (m *manager) shimEnded(e *supervised) { m.settleShim(e, outcomeSkipped, "it has ended") }

func (m *manager) settleShim(e *supervised, outcome, text string) {
	if m.upgrade == nil || m.upgrade.shims == nil {
		return
	}
	s := m.upgrade.shims
	began, told := s.told[e]
	if !told {
		return
	}
	delete(s.told, e)
	m.tellUpgrade(jobLine{Unit: e.name, Outcome: outcome, Text: text, MainPID: e.record.Main.PID, Millis: time.Since(began).Milliseconds()})
	s.timer.Reset(upgradePatience)
	m.tellShims()
}

// upgradeDue: the time is up for shims that come up, before our exec; or for shims to follow us. These will when what they are at is over,
// and do not hold up the others any more.
func (m *manager) upgradeDue(u *upgrade) {
	if m.upgrade != u || u.shims == nil {
		return // checkRest is next
	}
	for _, e := range slices.SortedFunc(maps.Keys(u.shims.told), byName) {
		why := "the unit is " + activeOf(e.record.Sub) + "/" + e.record.Sub
		if !e.hello {
			why = "it does not answer"
		}
		m.tellUpgrade(jobLine{Unit: e.name, Outcome: outcomeFailed, MainPID: e.record.Main.PID, Text: "its shim goes on as it is until that can be: " + why})
	}
	clear(u.shims.told)
	u.shims.timer.Reset(upgradePatience)
	m.tellShims()
}
