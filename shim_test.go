// Role: tests of the shim's decisions that need no process.
// Runs in: go test.
// Owns: nothing.
// Uses: wire, sys, pump, log, supervise, unit, state, child, shim, spawn, script.

package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestStageWithoutCommitNeverRan(t *testing.T) {
	refused, ended := exitStatus{exitExited, exitNeverRan}, exitStatus{exitExited, 1}
	for _, c := range []struct {
		what     string
		spawning role
		of       role
		exit     exitStatus
		pidFile  string
		never    bool
	}{
		{"the stage of a control process saw no commit", roleControl, roleControl, refused, "", true},
		{"the stage of the main process saw no commit", roleMain, roleMain, refused, "7\n", true},
		{"its status is lost, but it emptied main.pid", roleMain, roleMain, exitStatus{How: exitLost}, "", true},
		{"a program ended with the same status later", "", roleControl, refused, "7\n", false},
		{"a command ended before its start was noted", roleControl, roleControl, ended, "", false},
		{"the main process ended before its start was noted", roleMain, roleMain, ended, "7\n", false},
		{"the main process ended while a command was started", roleControl, roleMain, refused, "7\n", false},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Chdir(t.TempDir())
			if err := os.WriteFile("main.pid", []byte(c.pidFile), 0o600); err != nil {
				t.Fatal(err)
			}
			s := &shim{svc: newService(new(unit), runRecord{Spawning: c.spawning})}
			if got := s.neverRan(c.of, c.exit); got != c.never {
				t.Errorf("never ran = %v, want %v", got, c.never)
			}
		})
	}
}

func TestGreetingLeavesOutMissingFIFOs(t *testing.T) {
	p := new(pump)
	p.handles[streamOut].Store(-1)
	p.handles[streamErr].Store(2)
	ours, theirs := testPair(t)
	s := &shim{svc: newService(new(unit), runRecord{}), pump: p, main: process{fd: -1}, notify: notifySocket{fd: -1}, daemon: newConn(ours)}
	s.greetDaemon()
	c := newConn(theirs)
	var f shimFrame
	if err := c.readFrame(&f); err != nil {
		t.Fatalf("the greeting is lost: %v", err)
	}
	if len(f.Names) != 1 || f.Names[0] != heldErr {
		t.Errorf("descriptors of %v travel, want those of err alone", f.Names)
	}
	c.close()
}

func TestRecordFitsItsSlot(t *testing.T) {
	t.Chdir(t.TempDir())
	file, err := openRecord("state")
	if err != nil {
		t.Fatal(err)
	}
	defer file.close()
	odd := strings.Repeat("<", 2*maxText) // six bytes each in JSON
	s := &shim{svc: newService(new(unit), runRecord{StatusText: odd, Reason: odd}), state: file}
	s.svc.Job.Text = odd
	for i := range 2 * maxLeft {
		s.svc.Left = append(s.svc.Left, 4000000+i)
		s.svc.Starts = append(s.svc.Starts, 1<<60)
	}
	if err := s.save(); err != nil {
		t.Errorf("a service that says odd things cannot be recorded: %v", err)
	}
}

// withoutDescriptors calls do while this process can open nothing.
func withoutDescriptors(t *testing.T, do func()) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
	}()
	do()
}

// next is the message that comes within testPatience.
func (s *shim) next(t *testing.T) any {
	t.Helper()
	select {
	case m := <-s.inbox:
		return m
	case <-time.After(testPatience):
		t.Fatal("no message came")
		return nil
	}
}

func TestShimIsReachedAfterAWantOfDescriptors(t *testing.T) {
	dir := t.TempDir()
	l, err := listenAt(dir, shimSocketName)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := dialAt(dir, shimSocketName)
	if err != nil {
		t.Fatal(err)
	}
	s := &shim{inbox: make(chan any, 1)}
	withoutDescriptors(t, func() { s.accept(l) })
	f.Close()
	if m, ok := s.next(t).(msgClosed); ok {
		m.from.close()
	}
}

func TestNoProcessIsGoneForWantOfDescriptors(t *testing.T) {
	ref := refOf(sleeper(t).Process.Pid)
	s := &shim{inbox: make(chan any, 1), svc: newService(new(unit), runRecord{})}
	fd, err := openProcess(ref)
	if err != nil {
		t.Fatal(err)
	}
	withoutDescriptors(t, func() {
		if !processAlive(ref) {
			t.Error("it is said to be gone")
		}
		if _, err := s.takeOver(&s.control, roleControl, ref, handover{}); err == nil {
			t.Error("a new shim takes it as gone")
		}
		s.watchProcess(&s.main, roleMain, ref, fd)
		if m, ok := s.next(t).(msgGone); ok {
			s.handle(m)
		}
	})
	if s.main.fd < 0 || s.main.gone {
		t.Fatal("its shim takes it as gone")
	}
	s.handle(s.next(t))
	if err := signalProcess(ref, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if m, ok := s.next(t).(msgGone); !ok || !pollIn(s.main.fd) {
		t.Errorf("%v came before the end", m)
	}
	s.forget(roleMain)
}

// stoppingShim waits for the tree of a service to end, whose cgroup dir stands for.
func stoppingShim(t *testing.T, dir string) *shim {
	all := scopeTree
	s := &shim{home: home{t.TempDir()}, inbox: make(chan any, 1), members: map[int]bool{}, main: process{fd: -1}, control: process{fd: -1},
		svc: newService(new(unit), runRecord{Sub: stopSigterm, Cgroup: dir}), adopted: true, watching: &all}
	s.notify.fd = -1
	return s
}

// TestStopSeesAnEmptyCgroup: a cgroup may count a process that it lists no more, or that is gone when its pidfd is to be opened.
func TestStopSeesAnEmptyCgroup(t *testing.T) {
	ended := exec.Command("true")
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	for _, listed := range []string{"", strconv.Itoa(ended.Process.Pid) + "\n"} {
		dir := t.TempDir()
		for name, text := range map[string]string{"cgroup.procs": listed, "cgroup.events": "populated 1\n"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s := stoppingShim(t, dir)
		s.checkTree()
		if s.watching == nil {
			t.Fatal("a populated cgroup is taken as empty")
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.events"), []byte("populated 0\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if s.handle(s.next(t)); s.watching != nil {
			t.Errorf("listed %q: the stop goes on", listed)
		}
	}
}

// TestStopLooksAgain: what was seen as alive is gone when it is to be watched.
func TestStopLooksAgain(t *testing.T) {
	s := stoppingShim(t, "")
	s.lookAtMembers()
	if m, ok := s.next(t).(msgMember); !ok {
		t.Errorf("%v came", m)
	}
}

// TestStopWaitsForDescriptors: without any nothing is seen, which is no end.
func TestStopWaitsForDescriptors(t *testing.T) {
	s := stoppingShim(t, "")
	s.svc.Main = refOf(sleeper(t).Process.Pid)
	withoutDescriptors(t, func() {
		if s.treeIsEmpty() {
			t.Error("a tree is empty that cannot be looked at")
		}
		s.lookAtMembers()
	})
	s.handle(s.next(t))
	if s.watching == nil || !s.members[s.svc.Main.PID] {
		t.Error("the process is not waited for")
	}
	_ = signalProcess(s.svc.Main, unix.SIGKILL)
	s.next(t)
}

// TestStageThatDoesNotEnd: a stage that was stopped, or is traced, after it has said what went wrong keeps nobody waiting.
func TestStageThatDoesNotEnd(t *testing.T) {
	t.Chdir(t.TempDir())
	file, err := openRecord("state")
	if err != nil {
		t.Fatal(err)
	}
	defer file.close()
	ref := refOf(sleeper(t).Process.Pid)
	fd, err := openProcess(ref)
	if err != nil {
		t.Fatal(err)
	}
	s := &shim{svc: newService(new(unit), runRecord{Sub: starting, Main: ref}), state: file, control: process{fd: -1}}
	s.main = process{ref: ref, fd: fd, child: true, pending: true, seq: 1}
	told := make(chan bool)
	go func() {
		s.onReport(msgReport{1, roleMain, []byte(string(stageExec) + " 2\n")})
		close(told)
	}()
	select {
	case <-told:
	case <-time.After(testPatience):
		t.Fatal("its shim waits for its end")
	}
	if s.svc.Sub != starting || s.main.fd < 0 {
		t.Error("the start has failed while its process lives")
	}
	s.endedChild(roleMain, waitedChild{pid: ref.PID, exit: exitStatus{exitExited, stageExec.exitCode()}})
	if s.svc.Sub == starting || !strings.Contains(s.svc.Reason, "cannot execute") {
		t.Errorf("%s (%s), want a failed start", s.svc.Sub, s.svc.Reason)
	}
}

// shimWithWish is a shim in some state whose daemon has written a wish. Nothing is started: KillMode is none, and there are no commands.
func shimWithWish(t *testing.T, rec runRecord, w wantRecord) *shim {
	t.Helper()
	t.Chdir(t.TempDir())
	h := home{t.TempDir()}
	if err := os.MkdirAll(h.runDir("web"), 0o700); err != nil {
		t.Fatal(err)
	}
	u := &unit{Name: "web", Type: typeOneshot, KillMode: killNone, TimeoutStartSec: time.Minute, TimeoutStopSec: time.Minute}
	w.Version, w.Boot = protocolVersion, "b"
	if err := errors.Join(writeJSON(h.unitFile("web"), u), writeRecord(h.wantFile("web"), &w)); err != nil {
		t.Fatal(err)
	}
	return &shim{name: "web", home: h, boot: "b", inbox: make(chan any, 9), main: process{fd: -1}, control: process{fd: -1}, notify: notifySocket{fd: -1},
		svc: newService(u, rec)}
}

// TestStartThatWaits: a start that waits for leftovers goes on when a new daemon asks for it again, or somebody for a reload; it is
// dropped for a stop or a restart.
func TestStartThatWaits(t *testing.T) {
	for _, c := range []struct {
		verb  string
		waits bool
	}{{verbStart, true}, {verbReload, true}, {verbStop, false}, {verbRestart, false}} {
		s := shimWithWish(t, runRecord{Sub: starting, Job: jobRecord{ID: "old", Verb: verbStart}}, wantRecord{Up: true, Job: "new", Verb: c.verb})
		s.waiting = &spawn{role: roleMain}
		s.readWant("", retryPause)
		if waits := s.waiting != nil; waits != c.waits || s.svc.Job.ID != "new" {
			t.Errorf("%s: the start waits: %t, job %q; want %t, new", c.verb, waits, s.svc.Job.ID, c.waits)
		}
	}
}

// TestHealing: which shim that has lost its daemon starts a new one, and when.
func TestHealing(t *testing.T) {
	long := boottime(healForgets) // ago
	for _, c := range []struct {
		name string
		d    *daemonRecord
		want time.Duration // 0 = never
	}{
		{"it was to run", &daemonRecord{Wanted: wantedRunning, Mode: modeAuto, Started: bootNow()}, healFirst},
		{"after three starts in a row", &daemonRecord{Wanted: wantedRunning, Mode: modeAuto, Started: bootNow(), Attempts: 3}, 8 * healFirst},
		{"after many", &daemonRecord{Wanted: wantedRunning, Mode: modeAuto, Started: bootNow(), Attempts: 1000}, healMost},
		{"after many, of which the last was a good one", &daemonRecord{Wanted: wantedRunning, Mode: modeAuto, Started: bootNow() - long, Attempts: 1000}, healFirst},
		{"it was stopped", &daemonRecord{Wanted: wantedStopped, Mode: modeAuto, Started: bootNow()}, 0},
		{"it was killed", &daemonRecord{Wanted: wantedKilled, Mode: modeAuto, Started: bootNow()}, 0},
		{"systemd or a terminal keeps it", &daemonRecord{Wanted: wantedRunning, Mode: modeForeground, Started: bootNow()}, 0},
		{"PID 1 keeps it", &daemonRecord{Wanted: wantedRunning, Mode: modeInit, Started: bootNow()}, 0},
		{"nobody knows", nil, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &shim{home: home{t.TempDir()}}
			if c.d != nil {
				if err := s.home.writeDaemon(*c.d); err != nil {
					t.Fatal(err)
				}
			}
			before := bootNow()
			s.lostDaemon()
			least, most := before+boottime(c.want)*8/10, bootNow()+boottime(c.want)*12/10
			if c.want == 0 {
				least, most = 0, 0
			}
			if s.healAt < least || s.healAt > most {
				t.Errorf("due in %v, want %v with 20 %% of jitter", time.Duration(s.healAt-before), c.want)
			}
			if c.want > 0 && s.healWait != min(2*c.want, healMost) {
				t.Errorf("the next pause is %v, want %v", s.healWait, min(2*c.want, healMost))
			}
		})
	}
}

// TestHealingIsWithdrawn: the wish may have changed until the time comes, and a daemon that somebody else starts holds the lock.
func TestHealingIsWithdrawn(t *testing.T) {
	s := &shim{home: home{t.TempDir()}, healAt: 1}
	if err := s.home.writeDaemon(daemonRecord{Wanted: wantedStopped, Mode: modeAuto}); err != nil {
		t.Fatal(err)
	}
	s.heal(nil)
	if s.healAt != 0 {
		t.Error("a daemon that was stopped meanwhile is started")
	}
	running := daemonRecord{Wanted: wantedRunning, Mode: modeAuto, Attempts: 2}
	if err := s.home.writeDaemon(running); err != nil {
		t.Fatal(err)
	}
	lock, err := lockDirectory(s.home.path)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(lock)
	s.heal(nil)
	if d, err := s.home.readDaemon(); err != nil || d.Attempts != 2 {
		t.Errorf("while somebody holds the lock there is an attempt: %+v, %v", d, err)
	}
	if s.healAt == 0 {
		t.Error("it does not look again")
	}
}

// TestWishOutOfTurn: the wish is on disk before its turn comes, for it may have to wait for other units. A word that was sent for the one
// before, and comes late, does not begin it. A daemon of before that rule names no job.
func TestWishOutOfTurn(t *testing.T) {
	for _, c := range []struct{ frame, taken string }{{"old", ""}, {"new", "new"}, {"", "new"}} {
		s := shimWithWish(t, runRecord{Sub: dead}, wantRecord{Job: "new", Verb: verbStop})
		s.onFrame(nil, shimFrame{Op: opWant, Job: c.frame})
		if got := s.svc.Job.ID; got != c.taken {
			t.Errorf("told of %q: took %q, want %q", c.frame, got, c.taken)
		}
	}
	for sub, taken := range map[subState]string{starting: "new", startPre: "new", reload: ""} { // a command of it was about to run
		s := shimWithWish(t, runRecord{Sub: sub, Job: jobRecord{ID: "old", Verb: verbStart, Outcome: outcomeDone}}, wantRecord{Job: "new", Verb: verbStop})
		s.giveWay()
		if got := strings.TrimPrefix(s.svc.Job.ID, "old"); got != taken {
			t.Errorf("%s: took %q, want %q", sub, got, taken)
		}
	}
}
