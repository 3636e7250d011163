// Role: what the daemon answers: clients and their requests.
// Runs in: daemon.
// Owns: the connections of clients; the rest of the state is daemon.go's.
// Uses: wire, value, sys, unit, deps, supervise, state, daemon, upgrade.

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// clientBacklog is how much may wait for a client that does not read (bytes); then it is dropped, never waited for.
const clientBacklog = 8 << 20

// flushLimit bounds the wait for clients when the daemon ends.
const flushLimit = 2 * time.Second

// flushBrief bounds it below the first process of a container, whose time is nearly over then.
const flushBrief = 250 * time.Millisecond

// typicalReply is about how long the line for one unit is (bytes).
const typicalReply = 1 << 10

// session is one connection of a client. The loop gives what is to be written to a goroutine, which asks for more when it is through.
type session struct {
	conn    *conn
	backlog []byte        // owned by loop: not given to the writer yet
	out     chan []byte   // to the writer; one place. nil = there is none any more
	written chan struct{} // closed after the last answer was written, or could not be
	unsent  []byte        // the writer's, until it has ended: what it could not write
	kept    bool          // set before out is closed: the writer leaves the connection open, and says when it ends
}

// asker is one request that waits for jobs.
type asker struct {
	c       *session
	verb    string
	pending int
	failed  bool
	errors  []string
	hints   []string
	code    int // of the errors
}

// accept takes connections until the listener is closed. Without descriptors, the reserve is given up for a moment, so that the client
// gets an answer and nothing spins.
func (m *manager) accept(l *os.File) {
	for {
		f, err := acceptFrom(l)
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
			if err = m.turnAway(l); err == nil {
				continue
			}
		}
		switch {
		case isTemporary(err): // no memory, or no descriptor even so: a daemon that never accepts again would hang its clients
			time.AfterFunc(retryPause, func() { m.accept(l) })
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			m.inbox <- msgAcceptorRests{}
			return
		case err != nil: // closed
			return
		case !peerAllowed(f):
			f.Close()
			continue
		}
		m.inbox <- msgClient{newSession(f)}
	}
}

// turnAway runs in the accepting goroutine, the only user of the reserve after start-up.
func (m *manager) turnAway(l *os.File) error {
	if m.reserve >= 0 {
		unix.Close(m.reserve)
		m.reserve = -1
	}
	f, err := acceptFrom(l)
	if err == nil {
		c := newConn(f)
		reach("client.turn-away")
		_ = c.sendJSON(reply{Proto: protocolVersion, Build: version})
		reach("client.tell-why")
		_ = c.sendJSON(reply{Done: &outcome{Code: exitFailed, Error: "the daemon has no file descriptor left; raise its limit (ulimit -n)"}})
		c.close()
	}
	m.reserve, _ = openNothing()
	return err
}

func newSession(f *os.File) *session {
	return &session{conn: newConn(f), out: make(chan []byte, 1), written: make(chan struct{})}
}

// attend reads requests from one client and writes to it, in two goroutines that own nothing else.
func (m *manager) attend(c *session) {
	m.clients[c] = true
	f, out := c.conn.f, c.out
	go func() {
		for b := range out {
			reach("client.reply")
			if n, err := f.Write(b); err != nil {
				c.unsent = b[n:]
				_ = f.SetDeadline(time.Unix(1, 0)) // the reader ends
				for b := range out {
					c.unsent = append(c.unsent, b...)
				}
				break
			}
			m.inbox <- msgClientReads{c}
		}
		if c.kept {
			m.inbox <- msgClientRests{c}
			return
		}
		f.Close()
		close(c.written)
	}()
	go func() {
		for {
			var r request
			err := c.conn.readJSON(&r)
			if err != nil {
				m.inbox <- msgClientGone{c}
				return
			}
			m.inbox <- msgRequest{c, r}
		}
	}()
}

// send queues answers for a client.
func (m *manager) send(c *session, replies ...reply) {
	if !m.clients[c] {
		return
	}
	lines := bytes.NewBuffer(c.backlog)
	lines.Grow(len(replies) * typicalReply)
	enc := json.NewEncoder(lines)
	for i := range replies {
		if err := enc.Encode(&replies[i]); err != nil {
			m.say("internal error: cannot encode an answer: %v", err)
		}
	}
	c.backlog = lines.Bytes()
	c.give()
	if len(c.backlog) > clientBacklog && c.out != nil {
		_ = c.conn.f.SetDeadline(time.Unix(1, 0)) // its writer must not wait for ever either
		m.dropClient(c)
	}
}

// give hands the backlog to the writer, if that has nothing waiting.
func (c *session) give() {
	if len(c.backlog) == 0 {
		return
	}
	select {
	case c.out <- c.backlog:
		c.backlog = nil
	default:
	}
}

func (m *manager) dropClient(c *session) {
	if m.clients[c] {
		delete(m.clients, c)
		if c.out != nil {
			close(c.out)
		}
	}
}

func (m *manager) done(c *session, code int, text string, hints ...string) {
	m.send(c, reply{Done: &outcome{Code: code, Error: text, Hints: hints}})
}

// onRequest takes one request. It is answered once all shims of the daemon before us have told their state, so that no answer is
// half of the truth.
func (m *manager) onRequest(c *session, r request) {
	m.send(c, reply{Proto: protocolVersion, Build: version})
	if len(m.adopting) > 0 || m.resting() {
		m.parked = append(m.parked, msgRequest{c, r})
		return
	}
	m.answer(c, r)
}

// answer answers one request. A panic costs this request, not the daemon.
func (m *manager) answer(c *session, r request) {
	killer := m.killer
	defer func() {
		if p := recover(); p != nil {
			m.say("internal error: request %q: %v", r.Verb, p)
			if m.killer != killer {
				m.withdrawKill()
			}
			m.done(c, exitFailed, fmt.Sprintf("internal error: %v", p))
		}
	}()
	if m.serviceDir == "" {
		m.serviceDir = r.ServiceDir
	}
	if wrong := wrongNames(r); wrong != "" {
		m.done(c, exitUsage, wrong)
		return
	}
	switch r.Verb {
	case "list":
		m.answerList(c, r)
	case "status":
		m.answerStatus(c, r)
	case "daemon-status":
		m.answerDaemonStatus(c)
	case verbStart, verbStop, verbRestart, verbReload:
		m.answerDemand(c, r)
	case "kill":
		m.answerKill(c)
	case "enable":
		m.answerEach(c, r, m.enable)
	case "disable":
		m.answerEach(c, r, m.disable)
	case "reset-failed":
		m.answerReset(c, r)
	case "forget":
		m.answerForget(c, r)
	case upgradeVerb:
		m.answerUpgrade(c, r)
	default:
		m.done(c, exitUsage, fmt.Sprintf("this daemon (%s) does not know %q", version, r.Verb))
	}
}

// wrongNames checks what a client sent: names become paths.
func wrongNames(r request) string {
	if !filepath.IsAbs(r.ServiceDir) && r.ServiceDir != "" {
		return fmt.Sprintf("service directory %q is not an absolute path", r.ServiceDir)
	}
	for _, name := range r.Names {
		if valid, err := unitName(name); err != nil {
			return err.Error()
		} else if valid != name {
			return fmt.Sprintf("%q is not a unit name", name)
		}
	}
	return ""
}

// ---- list and status

// unitNames are the units of the service directory and of run/, sorted.
func (m *manager) unitNames(dir string) []string {
	names, _ := findUnits(dir) // a directory that is not there has no units
	for name := range m.services {
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (m *manager) answerList(c *session, r request) {
	names := m.unitNames(r.ServiceDir)
	enabled, _ := m.home.enabledUnits()
	replies := make([]reply, 0, len(names)+1)
	for _, name := range names {
		if s, known := m.statusOf(name, r.ServiceDir, enabled); known {
			replies = append(replies, reply{Unit: &s})
		}
	}
	m.send(c, append(replies, reply{Done: &outcome{}})...)
}

func (m *manager) answerStatus(c *session, r request) {
	if len(r.Names) == 0 {
		m.answerList(c, r)
		return
	}
	enabled, _ := m.home.enabledUnits()
	code := exitOK
	var replies []reply
	var missing []string
	for _, name := range r.Names {
		s, known := m.statusOf(name, r.ServiceDir, enabled)
		replies = append(replies, reply{Unit: &s})
		switch {
		case !known:
			missing = append(missing, m.noUnitText(name, r.ServiceDir))
			code = exitNoUnit
		case s.ActiveState != active && s.ActiveState != reloading && code == exitOK:
			code = exitNotActive
		}
	}
	m.send(c, append(replies, reply{Done: &outcome{Code: code, Error: strings.Join(missing, "\n")}})...)
}

func (m *manager) noUnitText(name, dir string) string {
	text := fmt.Sprintf("there is no unit %q in %s", name, dir)
	if near := nearest(name, m.unitNames(dir)); near != "" && near != name {
		text += fmt.Sprintf("; did you mean %q?", near)
	}
	return text
}

// statusOf composes the status of one unit. known = false: neither a file nor a trace of it.
func (m *manager) statusOf(name, dir string, enabled map[string]string) (s unitStatus, known bool) {
	e := m.services[name]
	x := statusFacts{loadState: "loaded", path: unitPath(dir, name)}
	_, x.enabled = enabled[name]
	var u *unit
	rec := runRecord{}
	if e != nil {
		u, rec, x.shimAlive, x.outdated = e.unit, e.record, e.hello, e.outdated
		if e.given != nil && !m.isDown(name) {
			u = e.given // its file may have been read again since
		}
	}
	f := m.fileOf(name, dir, u)
	switch {
	case errors.Is(f.err, fs.ErrNotExist):
		x.loadState = "not-found"
	case f.err != nil:
		x.loadState, x.loadError = "bad-setting", f.err.Error()
	case u == nil:
		u = f.unit
	default:
		x.changed = f.mod != u.ModTime || f.size != u.Size || f.ino != u.Inode
	}
	s = statusOf(name, u, rec, x)
	known = x.loadState != "not-found" || e != nil && (e.unit != nil || e.want.Job != "") || x.enabled
	return s, known
}

// fileOf looks at the file that a unit was loaded from, else at the one of that name in dir.
func (m *manager) fileOf(name, dir string, u *unit) *file {
	if u != nil {
		dir = filepath.Dir(u.Path)
	}
	return m.parsed(unitPath(dir, name), m.home.placeOf(dir))
}

func (m *manager) answerDaemonStatus(c *session) {
	started := m.startedAt.UTC().Format(time.RFC3339Nano)
	d := daemonStatus{Running: true, Version: version, PID: os.Getpid(), Mode: m.mode, Home: m.home.path, StartedAt: &started,
		Cgroup: m.cgroupBase, Weaker: m.weaker, ServiceDir: m.serviceDir, Units: len(m.unitNames(m.serviceDir))}
	for name, e := range m.services {
		if m.isUp(name) {
			d.Active++
		}
		if activeOf(e.record.Sub) == failedUnit {
			d.Failed++
		}
	}
	m.send(c, reply{Daemon: &d}, reply{Done: &outcome{}})
}

// ---- jobs

// answerDemand installs what start, stop, restart and reload ask for; the answer ends when all jobs have.
func (m *manager) answerDemand(c *session, r request) {
	if m.keeper != nil && (m.keeper.until != 0 || m.keeper.ending) || m.killer != nil && m.killer.c == nil {
		m.done(c, exitFailed, "everything is being stopped")
		return
	}
	if m.killer != nil && m.clients[m.killer.c] {
		m.done(c, exitFailed, "`diakonos kill` is under way")
		return
	}
	if m.killer != nil {
		m.killer.c = c // who asked first is gone
		return
	}
	a := &asker{c: c, verb: r.Verb}
	names := m.prepare(a, r)
	if len(names) > 0 {
		d := demand{Kind: jobKind(r.Verb), Names: names, By: byUser}
		if !r.NoBlock {
			d.Waiter = a
		}
		a.pending = 1 // until all answers are in
		m.answerSubmission(a, m.submit(d))
		a.pending--
		a.pending += m.jobs.waitedFor(a)
	}
	m.finishAsker(a)
}

// prepare loads the files of the names and tells which names can be worked on.
func (m *manager) prepare(a *asker, r request) (names []string) {
	if r.Verb != verbStop {
		m.loadClosure(r.Names, r.ServiceDir)
	}
	for _, name := range r.Names {
		if slices.Contains(names, name) {
			continue
		}
		if err := m.usable(name, r); err != nil {
			a.refuse(*err)
			continue
		}
		names = append(names, name)
	}
	return names
}

// refusal is why a name cannot be worked on.
type refusal struct {
	code int
	text string
	hint string // "" = none
}

func refusalOf(err error) *refusal { return &refusal{code: errorCode(err), text: err.Error()} }

func (m *manager) usable(name string, r request) *refusal {
	e := m.services[name]
	if r.Verb == verbStop {
		if e == nil || e.unit == nil && e.want.Job == "" {
			if m.fileOf(name, r.ServiceDir, nil).err != nil {
				return m.noUnit(name, r.ServiceDir)
			}
		}
		return nil
	}
	dir := r.ServiceDir
	if e != nil && e.unit != nil && filepath.Dir(e.unit.Path) != dir {
		return &refusal{code: exitFailed, text: fmt.Sprintf("%q is already loaded from %s, not from %s (`diakonos forget %s` lets go of it)",
			name, filepath.Dir(e.unit.Path), dir, name)}
	}
	err := m.broken[name]
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return m.noUnit(name, dir)
	case err != nil:
		return refusalOf(err)
	case r.Verb == verbReload && !m.isUp(name):
		return &refusal{code: exitNotActive, text: fmt.Sprintf("cannot reload %q: it is not active", name)}
	case r.Verb == verbReload && len(e.unit.ExecReload) == 0:
		return &refusal{code: exitFailed, text: fmt.Sprintf("cannot reload %q: it has no ExecReload", name)}
	}
	return nil
}

func (m *manager) noUnit(name, dir string) *refusal {
	return &refusal{code: exitNoUnit, text: m.noUnitText(name, dir)}
}

func (a *asker) refuse(r refusal) {
	a.errors = append(a.errors, r.text)
	if r.hint != "" {
		a.hints = append(a.hints, r.hint)
	}
	if a.code == 0 || a.code == exitFailed {
		a.code = r.code
	}
}

func (m *manager) answerSubmission(a *asker, s submission) {
	for _, x := range s.Answers {
		for _, w := range x.Warnings {
			m.send(a.c, reply{Warn: w})
		}
		switch {
		case x.Err != nil:
			a.refuse(refusal{code: exitFailed, text: x.Err.Error()})
		case x.Skipped:
			m.send(a.c, reply{Job: &jobLine{Unit: x.Name, Verb: a.verb, Outcome: outcomeSkipped, Text: m.skippedText(x.Name, a.verb),
				MainPID: m.entry(x.Name).record.Main.PID}})
		}
	}
	for _, x := range s.Ended {
		m.send(a.c, reply{Warn: fmt.Sprintf("the %s of %q, asked by %s, gives way to this %s", x.Job.Kind, x.Job.Unit, x.Job.By, a.verb)})
	}
	for _, w := range s.Warnings {
		m.send(a.c, reply{Warn: w})
	}
}

func (m *manager) skippedText(name, verb string) string {
	if verb == verbStop {
		return "already " + activeOf(m.entry(name).record.Sub)
	}
	return "already active"
}

// answerJob sends the line of one job to who waits for it.
func (m *manager) answerJob(a *asker, anchor bool, l jobLine) {
	if l.Outcome != outcomeDone && l.Outcome != outcomeSkipped && anchor {
		a.failed = true
	}
	m.send(a.c, reply{Job: &l})
	a.pending--
	m.finishAsker(a)
}

func (m *manager) finishAsker(a *asker) {
	if a.pending > 0 || a == m.killer {
		return
	}
	code := a.code
	if a.failed && code == 0 {
		code = exitFailed
	}
	m.send(a.c, reply{Done: &outcome{Code: code, Error: strings.Join(a.errors, "\n"), Hints: a.hints}})
}

// ---- kill

// answerKill stops everything; below the first process of a container that is the end of the container.
func (m *manager) answerKill(c *session) {
	if m.killer != nil {
		m.done(c, exitFailed, "`diakonos kill` is under way")
		return
	}
	a := &asker{c: c, verb: verbStop}
	if m.keeper != nil { // that ends the container
		if m.keeper.killer != nil {
			m.done(c, exitFailed, "`diakonos kill` is under way")
			return
		}
		m.keeper.killer = a
		m.endContainer(exitOK)
		return
	}
	m.stopAll(a, byKill, "")
}

// stopAll stops everything in order, then ends the daemon. "killed" is on disk before the first wish.
func (m *manager) stopAll(a *asker, by, other string) {
	wanted := wantedKilled
	if m.keeper != nil {
		wanted = wantedEnding
	}
	if err := m.writeSelf(wanted, 0); err != nil {
		m.say("%v", err) // this goes on; it will not survive a crash
	}
	m.endUpgrade("everything is being stopped")
	m.killer = a
	var names []string
	for name := range m.services {
		if !m.isDown(name) || m.jobs.job(name) != nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	m.submit(demand{Kind: stopJob, Names: names, By: by, For: other, Waiter: a})
	m.awaitAnswers(time.Now()) // of a stop that was under way and whose shim has been reported
}

// withdrawKill: a `kill` came to nothing before it had stopped anything.
func (m *manager) withdrawKill() {
	m.killer = nil
	if err := m.writeSelf(wantedRunning, 0); err != nil {
		m.say("%v", err)
	}
}

// checkKill ends the daemon once nothing runs: no job, no shim.
func (m *manager) checkKill() {
	if m.killer == nil || len(m.jobs.list()) > 0 {
		return
	}
	left, waits := []string{}, false
	for name, e := range m.services {
		if !m.isDown(name) && m.services[name].record.Sub != unknown {
			left = append(left, name)
		}
		if e.link != nil && m.isDown(name) {
			waits = true // its shim is about to end
			if !e.leave {
				e.leave = true
				m.expectAnswer(e)
				m.poke(e, shimFrame{Op: opLeave})
			}
		}
	}
	if waits {
		return
	}
	slices.Sort(left)
	code, text := exitOK, ""
	if m.killer.failed || len(left) > 0 {
		code = exitFailed
		text = "not everything could be stopped: " + strings.Join(left, " ")
	}
	if code == exitOK {
		m.home.tidy()
		reach("cgroup.remove-base")
		_ = sysRmdir(m.cgroupBase)
	}
	if text != "" && m.killer.c == nil {
		m.say("%s", text)
	}
	m.done(m.killer.c, code, text)
	m.flush(m.killer.c)
	if m.keeper != nil {
		if m.keeper.refused {
			code = exitFailed
		}
		m.keeper.say(keeperFrame{Op: keeperDone, Status: uint32(code)})
	}
	m.end()
}

// flush waits for the clients to get their last answers, within reason: one that hears nothing asks the next daemon, and so starts it.
func (m *manager) flush(first *session) {
	limit, most := make(chan struct{}), flushLimit
	if m.keeper != nil {
		most = flushBrief
	}
	defer time.AfterFunc(most, func() { close(limit) }).Stop()
	var list []*session
	if first != nil {
		list = append(list, first)
	}
	for c := range m.clients {
		c.give() // what one that does not read holds up is not the others'
		if c != first {
			list = append(list, c)
		}
	}
	for _, c := range list {
		_ = c.conn.f.SetWriteDeadline(time.Now().Add(flushLimit))
		if m.clients[c] && len(c.backlog) > 0 {
			select {
			case c.out <- c.backlog:
			case <-limit:
			}
		}
		m.dropClient(c)
	}
	for _, c := range list {
		select {
		case <-c.written:
		case <-limit: // its writer may wait for us
		}
	}
}

// ---- enable, disable, reset-failed, forget

// answerEach does to each of the names what needs no job, and tells what became of it. A name that is refused does not keep the others.
func (m *manager) answerEach(c *session, r request, do func(name string, r request) *refusal) {
	a := &asker{c: c, verb: r.Verb}
	for i, name := range r.Names {
		if slices.Contains(r.Names[:i], name) {
			continue
		}
		if refused := do(name, r); refused != nil {
			a.refuse(*refused)
			continue
		}
		m.send(c, reply{Job: &jobLine{Unit: name, Verb: r.Verb, Outcome: outcomeDone}})
	}
	m.finishAsker(a)
}

// enable records which file a unit is started from after a boot; it must outlive a power cut.
func (m *manager) enable(name string, r request) *refusal {
	_ = m.loadFile(name, r.ServiceDir) // usable tells what is wrong
	if refused := m.usable(name, r); refused != nil {
		return refused
	}
	path := m.home.enabledFile(name)
	reach("enabled.write")
	err := replaceFile(path, []byte(unitPath(r.ServiceDir, name)+"\n"))
	if err == nil {
		err = syncFile(path)
	}
	if err != nil {
		return refusalOf(err)
	}
	return nil
}

// disable is success too for a unit that is not enabled.
func (m *manager) disable(name string, r request) *refusal {
	reach("enabled.remove")
	err := os.Remove(m.home.enabledFile(name))
	switch {
	case err == nil:
		err = syncFile(m.home.enabledDir())
	case errors.Is(err, fs.ErrNotExist):
		err = nil
		if !m.isKnown(name, r.ServiceDir) {
			return m.noUnit(name, r.ServiceDir)
		}
	}
	if err != nil {
		return refusalOf(err)
	}
	return nil
}

// isKnown: there is a file or a trace of the unit.
func (m *manager) isKnown(name, dir string) bool {
	_, known := m.statusOf(name, dir, nil)
	return known
}

func (m *manager) answerReset(c *session, r request) {
	for _, name := range r.Names {
		if e := m.services[name]; e != nil && e.link != nil && e.pid == 0 { // its shim has said farewell, or not yet hello: either will wake us
			m.parked = append(m.parked, msgRequest{c, r})
			return
		}
	}
	m.answerEach(c, r, m.resetFailed)
}

func (m *manager) resetFailed(name string, r request) *refusal {
	e := m.services[name]
	switch {
	case !m.isKnown(name, r.ServiceDir):
		return m.noUnit(name, r.ServiceDir)
	case e == nil: // never started
	case e.hello:
		m.poke(e, shimFrame{Op: opReset})
	case e.record.Sub == failed || e.record.Restarts > 0 || e.record.ShortRuns > 0 || len(e.record.Starts) > 0:
		s := newService(e.unit, e.record)
		s.step(instant{wall: time.Now().UnixNano()}, evReset{})
		e.record = s.runRecord
		m.keepEvents(name, e.record.Events, s.events...)
		reach("state.reset")
		if err := writeRecord(m.home.stateFile(name), &e.record); err != nil {
			return refusalOf(err)
		}
	}
	return nil
}

func (m *manager) answerForget(c *session, r request) {
	for _, name := range r.Names {
		if m.isLeaving(name) { // its end will wake us
			m.parked = append(m.parked, msgRequest{c, r})
			return
		}
	}
	m.answerEach(c, r, m.forget)
}

// isLeaving: nothing of the unit runs, and its shim is on its way out.
func (m *manager) isLeaving(name string) bool {
	e := m.services[name]
	switch {
	case e == nil || !m.isDown(name) || m.jobs.job(name) != nil:
		return false
	case e.link != nil:
		return e.pid == 0
	}
	return e.child && lockIsTaken(m.home.runDir(name))
}

// forget removes run/ and log/ of a unit that does not run.
func (m *manager) forget(name string, r request) *refusal {
	e := m.services[name]
	why := ""
	switch {
	case e == nil:
		return m.noUnit(name, r.ServiceDir)
	case !m.isDown(name) || m.jobs.job(name) != nil:
		return &refusal{code: exitFailed, text: fmt.Sprintf("cannot forget %q: it is %s", name, activeOf(e.record.Sub)), hint: "diakonos stop " + name}
	case e.link != nil:
		why = "its shim still carries output of processes that its stop left"
	case lockIsTaken(m.home.runDir(name)):
		why = "its shim is still there"
	}
	if why != "" {
		return &refusal{code: exitFailed, text: fmt.Sprintf("cannot forget %q: %s", name, why)}
	}
	reach("forget.log")
	if err := os.RemoveAll(m.home.logDir(name)); err != nil {
		return refusalOf(err)
	}
	reach("forget.run") // last: as long as it is there, the unit is known and can be forgotten again
	if err := os.RemoveAll(m.home.runDir(name)); err != nil {
		return refusalOf(err)
	}
	e.letGo()
	delete(m.services, name)
	delete(m.broken, name)
	m.stale = true
	return nil
}

// unpark tries again what had to wait.
func (m *manager) unpark() {
	if len(m.adopting) > 0 || m.resting() {
		return
	}
	list := m.parked
	m.parked = nil
	for _, p := range list {
		if m.clients[p.c] {
			m.answer(p.c, p.r)
		}
	}
}

// errDaemonCame: killAlone is not alone any more.
var errDaemonCame = errors.New("a daemon has been started meanwhile")

// killAlone is `kill` where no daemon runs: the client holds the home's lock and does in its own process what a daemon would.
func killAlone(h home, report func(jobLine)) error {
	if _, err := os.Stat(h.path); errors.Is(err, fs.ErrNotExist) {
		return nil // nothing was ever started from this home
	}
	daemon, lock, err := h.search().next()
	if err != nil {
		return err
	}
	if daemon != nil {
		daemon.Close()
		return errDaemonCame
	}
	defer unix.Close(lock)
	closeInherited(3) // shims start here
	defer unix.Umask(unix.Umask(0o077))
	m, err := managerWithLock(h, modeAuto, lock)
	if err == nil {
		err = m.openLog()
	}
	if err != nil {
		return err
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return err
	}
	m.previous = daemonRecord{Boot: m.boot, Wanted: wantedStopped} // whatever it was: nothing is to be started now
	m.watchSignals()
	if err := m.adoptAll(); err != nil {
		return err
	}
	asks, err := pollable(ours, "kill")
	if err != nil {
		unix.Close(theirs)
		return err
	}
	c := newConn(asks)
	defer c.close()
	answers, err := pollable(theirs, "client")
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		m.loop()
		for c := range m.clients { // SIGTERM or Ctrl-C has ended it: nobody answers any more
			m.dropClient(c)
		}
		close(ended)
	}()
	defer func() { <-ended }()
	m.inbox <- msgClient{newSession(answers)}
	reach("kill.ask")
	if err := c.sendJSON(request{Proto: protocolVersion, Build: version, Verb: "kill"}); err != nil {
		return err
	}
	for {
		var r reply
		if err := c.readJSON(&r); err != nil {
			return fmt.Errorf("interrupted; not all services are stopped: %w", err)
		}
		if r.Job != nil {
			report(*r.Job)
		}
		if r.Done != nil && r.Done.Error != "" {
			return errors.New(r.Done.Error)
		}
		if r.Done != nil {
			return nil
		}
	}
}
