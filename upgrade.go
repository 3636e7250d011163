// Role: `daemon-upgrade`: the daemon becomes another program and keeps its clients, their jobs, and what it holds; then every shim does.
// Runs in: daemon.
// Owns: nothing beside what daemon.go and api.go own.
// Uses: wire, sys, deps, supervise, state, handover, daemon, api.

package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
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

// upgrade is a `daemon-upgrade` under way. Its first part ends with an exec, so rest and the other fields are never in use at once.
type upgrade struct {
	program string
	askers  []*asker
	rest    *rest

	queue []*supervised             // shims that are to be told
	told  map[*supervised]time.Time // and that were
	timer *time.Timer
}

// rest is the daemon before its exec: nothing more is read from clients, nor written to them.
type rest struct {
	accepts bool // the acceptor has not ended yet
	clients []*restingClient
	until   time.Time // for shims that come up
}

// restingClient is a client whose connection is kept, by a second descriptor.
type restingClient struct {
	session       *session
	fd            int
	reads, writes bool // its goroutines have not ended yet
}

// ---- asking

func (m *manager) answerUpgrade(c *session, r request) {
	switch {
	case m.killer != nil:
		m.done(c, exitFailed, "`diakonos kill` is under way")
		return
	case m.upgrade != nil && m.upgrade.program != r.Program:
		m.done(c, exitFailed, "an upgrade to "+m.upgrade.program+" is under way")
		return
	}
	a := &asker{c: c, verb: r.Verb}
	if m.upgrade != nil {
		m.upgrade.askers = append(m.upgrade.askers, a)
		return
	}
	st, err := trustedProgram(r.Program)
	if err != nil {
		m.done(c, exitFailed, err.Error())
		return
	}
	m.upgrade = &upgrade{program: r.Program, askers: []*asker{a}}
	if m.program == (programID{st.Dev, st.Ino}) {
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
	if u.timer != nil {
		u.timer.Stop()
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
	x := &restingClient{session: c, reads: true, writes: true}
	var err error
	if x.fd, err = unix.FcntlInt(c.conn.f.Fd(), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		m.say("a client is lost, for its connection cannot be kept: %v", err)
		m.dropClient(c)
		return
	}
	m.upgrade.rest.clients = append(m.upgrade.rest.clients, x)
	_ = c.conn.f.SetDeadline(time.Unix(1, 0))
	close(c.out)
	c.out = nil
	go func() {
		<-c.written
		m.inbox <- msgClientRests{c}
	}()
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

func (m *manager) acceptorRests() {
	if m.resting() {
		m.upgrade.rest.accepts = false
		return
	}
	go m.accept() // it has seen the deadline of an upgrade that was given up
}

// checkRest becomes the other program once all is at rest, and no shim is on its way up: of that the disk may not know yet.
func (m *manager) checkRest() {
	if !m.resting() || m.upgrade.rest.accepts {
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

// becomeHeir becomes the other program. If that fails, the clients are attended to again.
func (m *manager) becomeHeir() {
	will := m.makeWill()
	m.own.end()
	err := succession{program: m.upgrade.program, argv: []string{daemonName}, env: os.Environ(), keep: will.descriptors(), will: will}.carryOut()
	m.own = ownLog{files: m.own.files}
	m.say("%v", err)
	m.arise()
	m.endUpgrade(err.Error())
}

// arise undoes comeToRest: each client has a new session.
func (m *manager) arise() {
	old := m.upgrade.rest
	m.upgrade.rest = nil
	renewed := map[*session]*session{}
	for _, x := range old.clients {
		w := x.leave()
		renewed[x.session] = m.attendAgain(&w)
		delete(m.clients, x.session)
	}
	for i := range m.parked {
		m.parked[i].c = renewed[m.parked[i].c]
	}
	for a := range m.askers() {
		a.c = renewed[a.c]
	}
	for _, a := range m.upgrade.askers {
		a.c = renewed[a.c]
	}
	_ = m.listener.SetReadDeadline(time.Time{})
	go m.accept()
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
	w := &daemonWill{Version: protocolVersion, Build: version, Home: m.home.path, Mode: m.mode, ServiceDir: m.serviceDir, LockFD: m.lock,
		ListenerFD: int(m.listener.Fd())}
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
	return clientWill{FD: x.fd, Unread: hex.EncodeToString(c.conn.buf), Unsent: hex.EncodeToString(slices.Concat(c.unsent, c.backlog))}
}

// descriptors are those that a will names.
func (w *daemonWill) descriptors() []int {
	fds := []int{w.LockFD, w.ListenerFD}
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
	m.will, m.serviceDir = will, will.ServiceDir
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
	m.previous = daemonRecord{Boot: m.boot, Wanted: wantedRunning} // whatever could be read: this is no first daemon
	m.inherit()
	if err := m.adoptAll(); err != nil {
		return ready.fail(err) // the shims start another one
	}
	go m.accept()
	m.loop()
	return exitOK
}

// inherit takes what was held for shims, and the connections of clients, whose requests wait until all shims have said hello.
func (m *manager) inherit() {
	for _, s := range m.will.Services {
		e := m.entry(s.Name)
		e.exits, e.gone = s.Exits, s.Gone
		for i, fd := range s.HeldFDs[:min(len(s.HeldFDs), len(s.Labels))] {
			e.keep(s.Labels[i], fd)
		}
	}
	sessions := make([]*session, len(m.will.Clients))
	for i := range m.will.Clients {
		sessions[i] = m.attendAgain(&m.will.Clients[i])
	}
	m.upgrade = &upgrade{}
	for _, w := range m.will.Askers {
		if w.Client < 0 || w.Client >= len(sessions) {
			continue
		}
		if w.Verb == upgradeVerb {
			m.upgrade.askers = append(m.upgrade.askers, &asker{c: sessions[w.Client], verb: w.Verb})
		}
	}
	m.upgrade.program, _ = os.Readlink(ownLink)
	if m.upgrade.program == "" {
		m.upgrade.program = os.Getenv(binaryVariable)
	}
	for i, w := range m.will.Clients {
		for _, text := range w.Requests {
			var r request
			if err := json.Unmarshal([]byte(text), &r); err != nil {
				m.done(sessions[i], exitFailed, fmt.Sprintf("internal error: cannot read a request that was handed over: %v", err))
				continue
			}
			m.parked = append(m.parked, msgRequest{sessions[i], r})
		}
	}
}

// attendAgain makes a session for a client whose connection was kept.
func (m *manager) attendAgain(w *clientWill) *session {
	c := newSession(os.NewFile(uintptr(w.FD), "client")) // without a poller for it there would be none for the daemon's own either
	c.conn.buf, _ = hex.DecodeString(w.Unread)
	c.backlog, _ = hex.DecodeString(w.Unsent)
	m.clients[c] = true
	m.attend(c)
	c.give()
	return c
}

// wishedJobs are the jobs of the wishes that open ones begin with, by unit, before they get new jobs.
func (m *manager) wishedJobs() map[string]string {
	if m.will == nil {
		return nil
	}
	wishes := map[string]string{}
	for name, e := range m.services {
		if e.openWish() != "" {
			wishes[name] = e.want.Job
		}
	}
	return wishes
}

// resumeAskers goes on with the requests of the program before this one, whose open wishes have jobs again: each waits for these, or hears
// how its job has ended meanwhile. Then the shims follow.
func (m *manager) resumeAskers(wishes map[string]string) {
	if m.will == nil {
		return
	}
	will := m.will
	m.will = nil
	byFD := map[int]*session{}
	for c := range m.clients {
		byFD[int(c.conn.f.Fd())] = c
	}
	for _, name := range will.Reloads {
		if !m.jobs.reloadAfter(name, byUser, newJobID()) {
			m.submit(demand{Kind: reloadJob, Names: []string{name}, By: byUser})
		}
	}
	for _, w := range will.Askers {
		if w.Verb == upgradeVerb || w.Client < 0 || w.Client >= len(will.Clients) {
			continue
		}
		a := &asker{c: byFD[will.Clients[w.Client].FD], verb: w.Verb, failed: w.Failed, errors: w.Errors, hints: w.Hints, code: w.Code}
		a.pending = len(w.Jobs) + 1 // until all are in
		for _, x := range w.Jobs {
			m.resumeWait(a, x, wishes)
		}
		a.pending--
		m.finishAsker(a)
	}
	m.tellUpgrade(jobLine{Outcome: outcomeDone, MainPID: os.Getpid(), Text: "version " + version})
	m.renewShims()
}

// resumeWait lets a wait for the job that its unit's wish has now, or ends the wait.
func (m *manager) resumeWait(a *asker, x waitWill, wishes map[string]string) {
	j := m.jobs.job(x.Unit)
	open := strings.HasPrefix(wishes[x.Unit], x.Job) && wishes[x.Unit] != ""
	if x.Verb == verbReload && !open { // it has waited for another job, and does again
		for ; j != nil && j.then != nil; j = j.then {
		}
		open = j != nil && j.Kind == reloadJob
	}
	if j != nil && open {
		j.hear(waiter{a, x.Anchor})
		return
	}
	e := m.entry(x.Unit)
	l := jobLine{Unit: x.Unit, Verb: x.Verb, Outcome: outcomeCanceled, Text: "another command has replaced it", MainPID: e.record.Main.PID}
	switch {
	case strings.HasPrefix(e.record.Job.ID, x.Job) && e.record.Job.Outcome != "":
		l.Outcome, l.Text = e.record.Job.Outcome, e.record.Job.Text
	case open && (x.Verb == verbStart && m.isUp(x.Unit) || x.Verb == verbStop && m.isDown(x.Unit)):
		l.Outcome, l.Text = outcomeDone, ""
	case open:
		l.Outcome, l.Text = outcomeFailed, "it could not be taken up again; see "+m.home.daemonLog()
	}
	m.answerJob(a, x.Anchor, l)
}

// ---- the shims

// isOutdated: the shim that says hello runs another program than we do.
func (m *manager) isOutdated(hello shimFrame) bool {
	pid := 0
	if hello.State != nil {
		pid = hello.State.ShimPID
	}
	other := programOf(strconv.Itoa(pid))
	if pid == 0 || other == (programID{}) || m.program == (programID{}) {
		return hello.Build != version
	}
	return other != m.program
}

// renewShims tells the shims to become the program that we are, so many at a time: a service is not read from for the moment that takes.
func (m *manager) renewShims() {
	u := m.upgrade
	u.told = map[*supervised]time.Time{}
	for _, e := range m.services {
		if e.hello && e.outdated {
			u.queue = append(u.queue, e)
		}
	}
	slices.SortFunc(u.queue, byName)
	u.timer = time.AfterFunc(upgradePatience, func() { m.inbox <- msgUpgradeDue{u} })
	m.tellShims(shimBatch)
}

// tellShims has at most so many at work on it, and ends the upgrade when there is none left.
func (m *manager) tellShims(most int) {
	u := m.upgrade
	for len(u.queue) > 0 && len(u.told) < most {
		e := u.queue[0]
		u.queue = u.queue[1:]
		if e.hello && e.outdated {
			u.told[e] = time.Now()
			m.poke(e, shimFrame{Op: opUpgrade, Program: u.program, Inode: m.program.ino})
		}
	}
	if len(u.told) == 0 {
		m.endUpgrade("")
	}
}

// shimRenewed: a shim has said hello. One that still runs another program has said it for another reason.
func (m *manager) shimRenewed(e *supervised) {
	if !e.outdated {
		m.settleShim(e, outcomeDone, "")
	}
}

func (m *manager) shimRefuses(e *supervised, why string) {
	m.settleShim(e, outcomeFailed, "its shim goes on as it is: "+why)
}

// shimEnded: its service has ended, and needs none.
func (m *manager) shimEnded(e *supervised) { m.settleShim(e, outcomeSkipped, "it has ended") }

func (m *manager) settleShim(e *supervised, outcome, text string) {
	if m.upgrade == nil {
		return
	}
	began, told := m.upgrade.told[e]
	if !told {
		return
	}
	delete(m.upgrade.told, e)
	m.tellUpgrade(jobLine{Unit: e.name, Outcome: outcome, Text: text, MainPID: e.record.Main.PID, Millis: time.Since(began).Milliseconds()})
	m.upgrade.timer.Reset(upgradePatience)
	m.tellShims(shimBatch)
}

// upgradeDue: the time is up for shims that come up, before our exec; or for shims to follow us. Those will when what they are at is over.
func (m *manager) upgradeDue(u *upgrade) {
	if m.upgrade != u || u.rest != nil {
		return // checkRest is next
	}
	m.tellShims(len(m.services))
	for _, e := range slices.SortedFunc(maps.Keys(u.told), byName) {
		m.tellUpgrade(jobLine{Unit: e.name, Outcome: outcomeFailed, MainPID: e.record.Main.PID,
			Text: "its shim goes on as it is until that can be: the unit is " + activeOf(e.record.Sub) + "/" + e.record.Sub})
	}
	m.endUpgrade("")
}

func byName(a, b *supervised) int { return strings.Compare(a.name, b.name) }
