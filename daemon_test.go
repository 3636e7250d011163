// Role: tests of the daemon's decisions that need no daemon.
// Runs in: go test.
// Owns: nothing.
// Uses: wire, sys, supervise, state, daemon, api, script.

package main

import (
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// nextMessage waits for what comes to the loop.
func nextMessage[T any](t *testing.T, m *manager) T {
	t.Helper()
	select {
	case got := <-m.inbox:
		msg, ok := got.(T)
		if !ok {
			t.Fatalf("%T came, want %T", got, msg)
		}
		return msg
	case <-time.After(testPatience):
		t.Fatal("nothing came to the loop")
	}
	panic("unreachable")
}

// A shim that cannot be reached is looked for after a pause. When its connection breaks before its hello, it is replaced: the pause is over.
func TestShimLostBeforeItsHello(t *testing.T) {
	m := &manager{home: home{t.TempDir()}, inbox: make(chan any, 8), services: map[string]*supervised{}, bereaved: map[*supervised]bool{}}
	e := m.entry("web")
	e.record.Sub = running
	if err := os.Mkdir(m.home.runRoot(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := m.home.makeRunDir("web"); err != nil {
		t.Fatal(err)
	}
	lock, err := lockDirectory(m.home.runDir("web"))
	if err != nil {
		t.Fatal(err)
	}
	m.reachLater(e)
	retry := nextMessage[msgRetry](t, m)
	l, err := listenAt(m.home.runDir("web"), shimSocketName)
	if err != nil {
		t.Fatal(err)
	}
	m.handle(retry)
	if e.link == nil {
		t.Fatal("the shim has a socket and is not reached")
	}
	l.Close()
	unix.Close(lock)
	m.handle(nextMessage[msgShimGone](t, m))
	if len(m.pending) != 1 || m.pending[0] != e {
		t.Errorf("%d shims are about to be started, want a successor of this one", len(m.pending))
	}
}

// A daemon in the foreground meets one that a command is just starting: it holds the lock, and daemon.json tells of the one before it.
func TestTakeOverFromADaemonThatIsStarting(t *testing.T) {
	h := home{t.TempDir()}
	lock, err := lockDirectory(h.path)
	if err != nil {
		t.Fatal(err)
	}
	boot, pidns, _ := bootIdentity()
	before := daemonRecord{Boot: boot, PIDNS: pidns, Mode: modeForeground, Wanted: wantedRunning, Started: 1, Daemon: pidRef{PID: 1 << 30, Start: 1}}
	if err := h.writeDaemon(before); err != nil {
		t.Fatal(err)
	}
	other := exec.Command("sleep", "1000")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	taken := make(chan error, 1)
	go func() {
		taken <- func() error { _, err := takeHome(h); return err }()
		_ = other.Process.Kill()
	}()
	if err := h.writeDaemon(daemonRecord{Boot: boot, PIDNS: pidns, Mode: modeAuto, Wanted: wantedRunning, Started: bootNow(), Daemon: refOf(other.Process.Pid)}); err != nil {
		t.Fatal(err)
	}
	if err := other.Wait(); err == nil || other.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
		t.Errorf("the other one ends with %v, want SIGTERM", err)
	}
	unix.Close(lock)
	if err := <-taken; err != nil {
		t.Error(err)
	}
}

// An orphan whose service is not known yet costs one look at the record of each dead shim, however many orphans there are.
func TestOwnerOfAnOrphan(t *testing.T) {
	m := &manager{home: home{t.TempDir()}, boot: "boot", services: map[string]*supervised{}}
	e := m.entry("web")
	if err := os.MkdirAll(m.home.runDir("web"), 0o700); err != nil {
		t.Fatal(err)
	}
	record := func(pid int) {
		t.Helper()
		if err := writeRecord(m.home.stateFile("web"), &runRecord{Boot: m.boot, Sub: running, Main: pidRef{PID: pid}}); err != nil {
			t.Fatal(err)
		}
	}
	ours, theirs := testPair(t)
	e.link = newConn(ours)
	record(7)
	if m.ownerOf(7) != nil {
		t.Error("a child of a live shim is taken for an orphan")
	}
	theirs.Close()
	if m.ownerOf(6) != nil || m.ownerOf(7) != e || e.record.Main.PID != 7 {
		t.Error("the last record of a dead shim does not count")
	}
	e.record = runRecord{}
	record(8)
	if m.ownerOf(8) != nil {
		t.Error("the record of a dead shim is read again for each orphan")
	}
}

// What a dead shim said before its end, and we read after we have reaped its child, does not cost its successor that child's exit status.
func TestLateWordsOfADeadShim(t *testing.T) {
	m := fuzzManager(t)
	e := m.entry("web")
	ours, theirs := testPair(t)
	e.link = newConn(ours)
	ref := pidRef{PID: 1 << 30, Start: 1}
	e.record.Control = ref
	m.handExit(e, isPID(ref.PID), exitStatus{exitExited, exitNeverRan})
	before := runRecord{Sub: reload, Spawning: roleControl} // it names no process yet
	theirs.Close()
	m.onShim(msgShim{e: e, link: e.link, f: shimFrame{Op: opState, State: &before}})
	if len(e.exits) != 1 {
		t.Error("the exit status is lost")
	}
	ours, _ = testPair(t)
	e.link = newConn(ours)
	m.onShim(msgShim{e: e, link: e.link, f: shimFrame{Op: opState, State: &runRecord{Sub: running}}})
	if len(e.exits) != 0 {
		t.Error("the exit status is kept for ever")
	}
}

// A service had ended before its stop was resumed: there is nothing to do, and its shim, which knows the wish, is told so. It would wait for
// the word for ever.
func TestResumedStopOfWhatHasEnded(t *testing.T) {
	m := fuzzManager(t)
	e := m.entry("web")
	e.record = runRecord{Sub: failed, Result: resultLost, Job: jobRecord{ID: "old", Verb: verbStart, Outcome: outcomeDone}}
	e.want = wantRecord{Job: "new", Verb: verbStop, By: byUser}
	ours, theirs := testPair(t)
	e.link = newConn(ours)
	m.resume()
	if m.jobs.job("web") != nil {
		t.Fatal("there is a job")
	}
	var f shimFrame
	c := newConn(theirs)
	if err := theirs.SetReadDeadline(time.Now().Add(testPatience)); err != nil {
		t.Fatal(err)
	}
	if err := c.readFrame(&f); err != nil || f.Op != opIdle {
		t.Errorf("the shim is told %q (%v), want %q", f.Op, err, opIdle)
	}
}

// A shim that was given up is looked for again by one timer, whatever comes between; a service that was forgotten is not.
func TestLookedForAgainOnce(t *testing.T) {
	m := &manager{home: home{t.TempDir()}, inbox: make(chan any, 8), services: map[string]*supervised{}}
	e := m.entry("web")
	e.record.Sub, e.tries = running, shimTries
	m.retryShim(e, errNoHello)
	if e.later {
		t.Error("a new order waits for a shim that was given up")
	}
	given := e.retry
	m.lookLater(e, time.Hour)
	if given.Stop() {
		t.Error("two timers look for one shim")
	}
	e.retry.Stop()
	delete(m.services, "web")
	m.handle(msgRetry{e})
	if len(m.pending) > 0 {
		t.Error("a shim is started for a service that was forgotten")
	}
}

// When `kill` ends the daemon, who waited for something else has its answer too: without it a client would start the next daemon.
func TestLastAnswers(t *testing.T) {
	m := &manager{inbox: make(chan any, 64), clients: map[*session]bool{}}
	var list []*session
	var heard []chan string
	for range 3 {
		ours, theirs := testPair(t)
		list = append(list, newSession(ours))
		m.attend(list[len(list)-1])
		all := make(chan string, 1)
		go func() {
			b, _ := io.ReadAll(theirs)
			all <- string(b)
		}()
		heard = append(heard, all)
	}
	for _, c := range list {
		m.send(c, reply{Warn: strings.Repeat("x", 1<<19)}) // more than a socket holds
		m.done(c, exitOK, "")
	}
	m.flush(list[1])
	for i, c := range list {
		select {
		case <-c.written:
		default:
			t.Errorf("client %d has not all of its answer when the daemon ends", i)
			continue
		}
		if got := <-heard[i]; !strings.Contains(got, `"done"`) {
			t.Errorf("client %d is not told that it is done, after %d bytes", i, len(got))
		}
	}
}

// A wish that a new daemon resumes is still that of whoever had it first.
func TestResumedWishKeepsItsAsker(t *testing.T) {
	m := fuzzManager(t)
	m.loadClosure([]string{"web"}, m.serviceDir)
	m.entry("db").want = wantRecord{Up: true, Job: "j", Verb: verbStart, By: byDependency, For: "web"}
	m.entry("web").want = wantRecord{Up: true, Job: "k", Verb: verbStart, By: byEnabled}
	m.resume()
	for name, want := range map[string]wantRecord{"db": {Job: "j", By: byDependency, For: "web"}, "web": {Job: "k", By: byEnabled}} {
		if got := m.entry(name).want; got.By != want.By || got.For != want.For || got.Job != want.Job {
			t.Errorf("%s: got %+v, want job %s by %s %s", name, got, want.Job, want.By, want.For)
		}
	}
}

// What no shim is there to write is in the history before it is in the state.
func TestEventsOfADaemon(t *testing.T) {
	m := fuzzManager(t)
	m.loadClosure([]string{"web"}, m.serviceDir)
	e := m.entry("web")
	if err := m.home.makeRunDir("web"); err != nil {
		t.Fatal(err)
	}
	e.want = wantRecord{Up: true, Job: "j", Verb: verbStart, By: byUser}
	m.failDependency(e, ended{Result: jobDependency, Culprit: "db", Text: "\"db\" failed"})
	if refused := m.resetFailed("web", request{ServiceDir: m.serviceDir}); refused != nil {
		t.Fatal(refused.text)
	}
	got, err := readEvents(m.home.historyFile("web"), m.boot, e.record.Events)
	if err != nil || len(got) != 2 || got[0].Kind != eventFailed || got[0].For != "db" || got[1].Kind != eventReset || e.record.Sub != dead {
		t.Errorf("%v, %+v; %s", err, got, e.record.Sub)
	}
}

// TestResumedIDs: a job that is resumed has the id of its wish, so that a shim which works on it, or has done it meanwhile, does not do it
// again: a oneshot would run twice.
func TestResumedIDs(t *testing.T) {
	for _, c := range []struct {
		why    string
		want   wantRecord
		job    jobRecord // of the shim
		kind   jobKind
		wantID string // "" = a new one
	}{
		{"not begun", wantRecord{Job: "7", Verb: verbStart}, jobRecord{ID: "6", Outcome: outcomeDone}, startJob, "7"},
		{"begun", wantRecord{Job: "7", Verb: verbStart}, jobRecord{ID: "7", Verb: verbStart}, startJob, "7"},
		{"done", wantRecord{Job: "7", Verb: verbStart}, jobRecord{ID: "7", Verb: verbStart, Outcome: outcomeDone}, "", ""},
		{"a stop", wantRecord{Job: "7", Verb: verbStop}, jobRecord{ID: "7", Verb: verbStop}, stopJob, "7"},
		{"a restart", wantRecord{Job: "7", Verb: verbRestart}, jobRecord{ID: "7", Verb: verbRestart}, restartJob, "7"},
		{"a restart whose stop is through", wantRecord{Job: "7", Verb: verbRestart}, jobRecord{ID: "7", Verb: verbStart}, startJob, "7"},
		{"the stop of a restart in two", wantRecord{Job: "7/stop", Verb: verbStop, Then: verbStart}, jobRecord{ID: "7/stop", Verb: verbStop}, restartJob, "7"},
		{"its start is due", wantRecord{Job: "7/stop", Verb: verbStop, Then: verbStart}, jobRecord{ID: "7/stop", Verb: verbStop, Outcome: outcomeDone}, startJob, "7/start"},
		{"its start", wantRecord{Job: "7/start", Verb: verbStart}, jobRecord{ID: "7/start", Verb: verbStart}, startJob, "7/start"},
		{"no wish", wantRecord{}, jobRecord{}, "", ""},
	} {
		m := &manager{services: map[string]*supervised{}}
		e := m.entry("web")
		e.want, e.record.Job = c.want, c.job
		if got := e.openWish(); got != c.kind {
			t.Errorf("%s: got %q to be done, want %q", c.why, got, c.kind)
		}
		if got := m.resumedID("web"); got != c.wantID && (c.wantID != "" || len(got) != len(newJobID())) {
			t.Errorf("%s: got id %q, want %q", c.why, got, c.wantID)
		}
	}
}

// TestResumedJobThatHasEnded: the shim has told the end of a job before its turn comes again.
func TestResumedJobThatHasEnded(t *testing.T) {
	m := &manager{home: home{t.TempDir()}, inbox: make(chan any, 8), services: map[string]*supervised{}, clients: map[*session]bool{}}
	m.jobs = newJobs(m.isUp, m.isDown)
	e := m.entry("once")
	e.unit = &unit{Name: "once"}
	if err := os.Mkdir(m.home.runRoot(), 0o700); err != nil {
		t.Fatal(err)
	}
	m.stale = true
	e.want = wantRecord{Job: "7", Verb: verbStart}
	m.submit(demand{Kind: startJob, Names: []string{"once"}, By: byUser, NewID: m.resumedID})
	e.record.Job = jobRecord{ID: "7", Verb: verbStart, Outcome: outcomeDone}
	m.settle()
	if len(m.jobs.list()) > 0 || len(m.pending) > 0 || e.order != nil {
		t.Errorf("it is done again: jobs %v, shims %v, order %v", m.jobs.list(), m.pending, e.order)
	}
}
