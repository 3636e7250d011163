// Role: tests of supervise.go: behaviour in sentences, every event in every state, adoption.
// Runs in: go test.
// Owns: testdata/transitions.golden.
// Uses: supervise, unit, wire, command.

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ---- a driver that plays shim and processes

// driver feeds events to a service and carries its effects out on processes that are played. By default a process obeys its signals,
// a command of an Exec key goes on until a test ends it, and output is drained at once.
type driver struct {
	t     *testing.T
	s     *service
	now   instant
	queue []event
	trace []string // what was spawned and signalled, in order
	jobs  int
	runs  int
	quits bool

	// what the played processes do
	main, control bool   // they live
	others        int    // further processes of the tree
	deaf          bool   // nothing obeys KillSignal
	immortal      bool   // nor SIGKILL
	quick         bool   // commands exit 0 at once
	failure       event  // answers the next spawn
	watching      *scope // asked for, not yet answered
	wait          bool   // output is not drained
	cut           bool   // effects are not carried out
}

func drive(t *testing.T, lines ...string) *driver {
	t.Helper()
	text := "[service]\n" + strings.Join(lines, "\n") + "\n"
	if !strings.Contains(text, "\nExecStart=") && !strings.Contains(text, "oneshot") {
		text += "ExecStart=\"main\"\n"
	}
	d := &driver{t: t, s: newService(parseTest(t, text), runRecord{})}
	d.now = instant{boot: boottime(time.Hour), wall: 1e18}
	return d
}

// feed gives one event and everything that it causes.
func (d *driver) feed(ev event) {
	d.t.Helper()
	d.queue = append(d.queue, ev)
	for n := 0; len(d.queue) > 0; n++ {
		if n > 200 {
			d.t.Fatalf("endless: %s", d.trace[len(d.trace)-10:])
		}
		ev := d.queue[0]
		d.queue = d.queue[1:]
		d.runs++
		d.now.fresh = fmt.Sprintf("%016x%016x", uint64(d.runs)*0x9e3779b97f4a7c15, d.runs)
		effects := d.s.step(d.now, ev)
		if d.cut {
			continue
		}
		for _, e := range effects {
			d.carry(e)
		}
		d.answerWatch()
	}
}

func (d *driver) carry(e effect) {
	d.trace = append(d.trace, effectText(e))
	switch e := e.(type) {
	case spawn:
		d.spawn(e)
	case kill:
		d.signal(e)
	case killControl:
		d.endControl(exitStatus{exitKilled, 9})
	case watch:
		d.watching = &e.scope
	case drain:
		if !d.wait {
			d.queue = append(d.queue, evDrained{})
		}
	case quit:
		d.quits = true
	}
}

func (d *driver) spawn(e spawn) {
	d.quits = false
	if d.failure != nil {
		d.queue = append(d.queue, d.failure)
		d.failure = nil
		return
	}
	d.runs++
	ref := pidRef{PID: 1000 + d.runs, Start: 7}
	if e.role == roleMain {
		d.s.Main, d.main = ref, true
	} else {
		d.s.Control, d.control = ref, true
	}
	d.queue = append(d.queue, evSpawned{e.role})
	if d.quick && e.role == roleControl {
		d.endControl(exitStatus{exitExited, 0})
	}
}

func (d *driver) endMain(x exitStatus) {
	if d.main {
		d.main = false
		d.queue = append(d.queue, evExit{role: roleMain, exit: x})
	}
}

func (d *driver) endControl(x exitStatus) {
	if d.control {
		d.control = false
		d.queue = append(d.queue, evExit{role: roleControl, exit: x})
	}
}

func (d *driver) signal(e kill) {
	if d.immortal || d.deaf && e.signal != syscall.SIGKILL {
		return
	}
	x := exitStatus{exitKilled, int(e.signal)}
	d.endMain(x)
	d.endControl(x)
	if e.scope == scopeTree {
		d.others = 0
	}
}

func (d *driver) left() (pids []int) {
	if d.main {
		pids = append(pids, d.s.Main.PID)
	}
	if d.control {
		pids = append(pids, d.s.Control.PID)
	}
	if d.watching != nil && *d.watching == scopeTree {
		for i := range d.others {
			pids = append(pids, 50+i)
		}
	}
	return pids
}

func (d *driver) answerWatch() {
	if d.watching != nil && len(d.left()) == 0 {
		d.watching = nil
		d.queue = append(d.queue, evTree{})
	}
}

// act does what the words say, one after another.
func (d *driver) act(sentences ...string) *driver {
	d.t.Helper()
	for _, words := range sentences {
		d.actOne(words)
	}
	return d
}

func (d *driver) actOne(words string) {
	d.t.Helper()
	f := strings.Fields(words)
	switch {
	case slices.Contains([]string{verbStart, verbStop, verbRestart, verbReload}, words):
		d.jobs++
		ev := evJob{id: "job" + strconv.Itoa(d.jobs), verb: words, by: "user"}
		if words != verbStop {
			ev.unit = d.s.unit
		}
		d.feed(ev)
	case f[0] == "main" && len(f) > 1 && f[1] != "lost":
		d.endMain(exitOfWords(d.t, f[1:]))
		d.feed(nil)
	case f[0] == "command":
		d.endControl(exitOfWords(d.t, f[1:]))
		d.feed(nil)
	case f[0] == "after":
		d.now.boot += boottime(duration(d.t, f[1]))
	case words == "timeout":
		d.timeout()
	case words == "tree ends":
		d.others = 0
		d.answerWatch()
		d.feed(nil)
	case words == "drained":
		d.feed(evDrained{})
	case words == "READY":
		d.feed(evNotify{msg: notifyMessage{Ready: true}})
	case words == "RELOADING":
		d.feed(evNotify{msg: notifyMessage{Reloading: true}})
	case words == "STOPPING":
		d.feed(evNotify{msg: notifyMessage{Stopping: true}})
	case words == "found":
		d.main = true
		d.feed(evMain{ref: pidRef{PID: 77, Start: 7}})
	case words == "not found":
		d.feed(evMain{left: d.others, text: "no process is left"})
	case words == "reset":
		d.feed(evReset{})
	default:
		d.t.Fatalf("no such words: %q", words)
	}
}

// timeout lets the deadline pass, as the shim does: what is left first.
func (d *driver) timeout() {
	d.t.Helper()
	due := d.s.Deadline
	if due == 0 {
		d.t.Fatalf("%s has no deadline", d.s.Sub)
	}
	d.now.boot = max(d.now.boot, due)
	if d.watching != nil {
		d.feed(evTree{d.left()})
	}
	if d.s.Deadline == due {
		d.feed(evTimeout{})
	}
}

func duration(t *testing.T, text string) time.Duration {
	t.Helper()
	v, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func exitOfWords(t *testing.T, f []string) exitStatus {
	t.Helper()
	switch f[0] {
	case "exits":
		n, err := strconv.Atoi(f[1])
		if err != nil {
			t.Fatal(err)
		}
		return exitStatus{exitExited, n}
	case "dies":
		return exitStatus{exitKilled, int(unix.SignalNum("SIG" + f[2]))}
	case "dumps":
		return exitStatus{exitDumped, int(syscall.SIGSEGV)}
	case "is":
		return exitStatus{How: exitLost}
	}
	t.Fatalf("no such end: %q", f)
	return exitStatus{}
}

// effectText tells an effect in few words.
func effectText(e effect) string {
	switch e := e.(type) {
	case spawn:
		if e.role == roleControl {
			return "run " + e.cmd.Path
		}
		return "start " + e.cmd.Path
	case kill:
		to := "tree"
		if e.scope == scopeMain {
			to = "main"
		}
		return strings.TrimPrefix(signalName(e.signal), "SIG") + " " + to
	case killControl:
		return "KILL command"
	case watch:
		if e.scope == scopeMain {
			return "watch main"
		}
		return "watch tree"
	case findMain:
		return "find main"
	case drain:
		if e.limit > 0 {
			return "drain in " + e.limit.String()
		}
		return "drain"
	case removePIDFile:
		return "remove " + e.path
	case retire:
		return "retire"
	case quit:
		return "quit"
	}
	return fmt.Sprintf("%T", e)
}

// deeds is the trace without what only asks.
func (d *driver) deeds() string {
	var list []string
	for _, e := range d.trace {
		if !strings.HasPrefix(e, "watch") && !strings.HasPrefix(e, "drain") && e != "find main" {
			list = append(list, e)
		}
	}
	return strings.Join(list, ", ")
}

func (d *driver) forget() *driver { d.trace = nil; return d }

// is checks state, and result if given.
func (d *driver) is(sub subState, result ...string) {
	d.t.Helper()
	if d.s.Sub != sub || len(result) > 0 && d.s.Result != result[0] {
		d.t.Errorf("state is %s (%s, %q), want %s %v; did: %s", d.s.Sub, d.s.Result, d.s.Reason, sub, result, d.deeds())
	}
}

func (d *driver) did(want string) {
	d.t.Helper()
	if got := d.deeds(); got != want {
		d.t.Errorf("did  %s\nwant %s", got, want)
	}
}

func (d *driver) answered(outcome string) {
	d.t.Helper()
	if d.s.Job.Outcome != outcome {
		d.t.Errorf("job %s is answered %q (%s), want %q; state %s", d.s.Job.Verb, d.s.Job.Outcome, d.s.Job.Text, outcome, d.s.Sub)
	}
}

func events(text string) []string {
	var list []string
	for s := range strings.SplitSeq(text, ";") {
		if s = strings.TrimSpace(s); s != "" {
			list = append(list, s)
		}
	}
	return list
}

// ---- starting

func TestStart(t *testing.T) {
	for _, c := range []struct {
		name, unit, events string
		state, result      string
		outcome            string
		did                string
	}{
		{"simple is up when execve has succeeded", `Type="simple"`, "start", running, "success", "done", "start main"},
		{"exec likewise", `Type="exec"`, "start", running, "success", "done", "start main"},
		{"notify waits for READY", `Type="notify"`, "start", starting, "success", "", "start main"},
		{"notify is up at READY", `Type="notify"`, "start; READY", running, "success", "done", "start main"},
		{"notify that ends well without READY breaks the protocol", `Type="notify"`, "start; main exits 0", failed, "protocol", "failed",
			"start main, TERM tree, TERM tree, quit"},
		{"notify that ends badly failed", `Type="notify"`, "start; main exits 3", failed, "exit-code", "failed",
			"start main, TERM tree, TERM tree, quit"},
		{"oneshot is activating while it runs", "Type=\"oneshot\"\nExecStart=\"a\"", "start", starting, "success", "", "start a"},
		{"oneshot is done when it has ended", "Type=\"oneshot\"\nExecStart=\"a\"", "start; main exits 0", dead, "success", "done",
			"start a, TERM tree, TERM tree, quit"},
		{"oneshot runs several commands", "Type=\"oneshot\"\nExecStart=[\"a\", \"b\"]", "start; main exits 0", starting, "success", "", "start a, start b"},
		{"oneshot leaves out what follows a failure", "Type=\"oneshot\"\nExecStart=[\"a\", \"b\"]", "start; main exits 1", failed, "exit-code", "failed",
			"start a, TERM tree, TERM tree, quit"},
		{"oneshot goes on after a failure that is to be ignored", "Type=\"oneshot\"\nExecStart=[\"-a\", \"b\"]", "start; main exits 1", starting, "success", "",
			"start a, start b"},
		{"oneshot with RemainAfterExit stays active", "Type=\"oneshot\"\nExecStart=\"a\"\nRemainAfterExit=true", "start; main exits 0", exited, "success", "done",
			"start a, quit"},
		{"oneshot with nothing but ExecStop is active at once", "Type=\"oneshot\"\nExecStop=\"z\"\nRemainAfterExit=true", "start", exited, "success", "done", "quit"},
		{"oneshot dies uncleanly of a signal that is clean for a daemon", "Type=\"oneshot\"\nExecStart=\"a\"", "start; main dies of TERM", failed, "signal", "failed",
			"start a, TERM tree, TERM tree, quit"},
		{"simple with RemainAfterExit stays active after a clean end", `RemainAfterExit=true`, "start; main exits 0", exited, "success", "done", "start main, quit"},
		{"but not after a failure", `RemainAfterExit=true`, "start; main exits 1", failed, "exit-code", "done", "start main, TERM tree, TERM tree, quit"},
		{"forking runs a parent", `Type="forking"`, "start", starting, "success", "", "run main"},
		{"forking is up when the main process is found", `Type="forking"`, "start; command exits 0; found", running, "success", "done", "run main"},
		{"forking fails with its parent", `Type="forking"`, "start; command exits 1", failed, "exit-code", "failed", "run main, TERM tree, TERM tree, quit"},
		{"forking whose parent was ended by a clean signal goes on", `Type="forking"`, "start; command dies of TERM; found", running, "success", "done", "run main"},
		{"forking with nothing left is over", `Type="forking"`, "start; command exits 0; not found", dead, "success", "done",
			"run main, TERM tree, TERM tree, quit"},
		{"forking with nothing left and RemainAfterExit stays active", "Type=\"forking\"\nRemainAfterExit=true", "start; command exits 0; not found", exited, "success", "done",
			"run main, quit"},
		{"forking with PIDFile and nothing left breaks the protocol", "Type=\"forking\"\nPIDFile=\"/run/x.pid\"", "start; command exits 0; not found", failed, "protocol", "failed",
			"run main, TERM tree, TERM tree, remove /run/x.pid, quit"},
		{"forking whose main process ends badly failed", `Type="forking"`, "start; command exits 0; found; main exits 2", failed, "exit-code", "done",
			"run main, TERM tree, TERM tree, quit"},
		{"ExecStartPre runs first, one after another", `ExecStartPre=["a", "b"]`, "start; command exits 0", startPre, "success", "", "run a, run b"},
		{"then ExecStart", `ExecStartPre=["a", "b"]`, "start; command exits 0; command exits 0", running, "success", "done", "run a, run b, start main"},
		{"a failed ExecStartPre fails the start", "ExecStartPre=[\"a\", \"b\"]\nExecStop=\"z\"\nExecStopPost=\"y\"", "start; command exits 1", stopPost, "exit-code", "", "run a, TERM tree, run y"},
		{"ExecStartPre with - may fail", `ExecStartPre=["-a", "b"]`, "start; command exits 1", startPre, "success", "", "run a, run b"},
		{"a clean signal is none for ExecStartPre", `ExecStartPre="a"`, "start; command dies of TERM", failed, "signal", "failed", "run a, TERM tree, TERM tree, quit"},
		{"ExecStartPost delays the answer", `ExecStartPost="p"`, "start", startPost, "success", "", "start main, run p"},
		{"and ends it", `ExecStartPost="p"`, "start; command exits 0", running, "success", "done", "start main, run p"},
		{"a failed ExecStartPost ends the service without ExecStop", "ExecStartPost=\"p\"\nExecStop=\"z\"", "start; command exits 1", failed, "exit-code", "failed",
			"start main, run p, TERM tree, TERM tree, quit"},
		{"a main process that fails under ExecStartPost fails the start", "ExecStartPost=\"p\"\nExecStop=\"z\"", "start; main exits 1; command exits 0", failed, "exit-code", "failed",
			"start main, run p, TERM tree, TERM tree, quit"},
		{"a start of what is up is done", "", "start; start", running, "success", "done", "start main"},
		{"a start of what is starting waits for it", `Type="notify"`, "start; start; READY", running, "success", "done", "start main"},
		{"main process unknown: the tree stands for it", `Type="forking"`, "start; command exits 0; not found; tree ends", dead, "success", "done",
			"run main, TERM tree, TERM tree, quit"},
	} {
		d := drive(t, events(strings.ReplaceAll(c.unit, "\n", ";"))...).act(events(c.events)...)
		if d.s.Sub != c.state || d.s.Result != c.result || d.s.Job.Outcome != c.outcome || d.deeds() != c.did {
			t.Errorf("%s:\ngot  %s %s %q; %s\nwant %s %s %q; %s", c.name, d.s.Sub, d.s.Result, d.s.Job.Outcome, d.deeds(), c.state, c.result, c.outcome, c.did)
		}
	}
}

func TestProgramThatCannotRun(t *testing.T) {
	missing := evSpawnFailed{role: roleMain, failure: stageFailure{stageExec, int(syscall.ENOENT)}}
	for _, c := range []struct {
		name, unit    string
		failure       event
		state, result string
		exit          exitStatus
		reason        string
	}{
		{"a missing program fails the start", "", missing, failed, "exit-code", exitStatus{exitExited, 203},
			"cannot execute main: no such file or directory (203/EXEC)"},
		{"also of a notify service", `Type="notify"`, missing, failed, "exit-code", exitStatus{exitExited, 203},
			"cannot execute main: no such file or directory (203/EXEC)"},
		{"a working directory", "", evSpawnFailed{roleMain, stageFailure{stageChdir, int(syscall.ENOENT)}, ""}, failed, "exit-code", exitStatus{exitExited, 200},
			"cannot enter WorkingDirectory /srv/app: no such file or directory (200/CHDIR)"},
		{"a user that is not there", "", evSpawnFailed{roleMain, stageFailure{Stage: stageUser}, "there is no user x"}, failed, "exit-code", exitStatus{exitExited, 217},
			"there is no user x (217/USER)"},
		{"a fork that fails is no fault of the program", "", evSpawnFailed{role: roleMain, text: "cannot start a process: EAGAIN"}, failed, "resources", exitStatus{},
			"cannot start a process: EAGAIN"},
		{"with - it does not matter", `ExecStart="-main"`, missing, dead, "success", exitStatus{exitExited, 203}, ""},
		{"something of an earlier run", "", evBusy{roleMain, []int{5, 6}}, failed, "resources", exitStatus{}, "processes of an earlier run are left: 5 6"},
	} {
		d := drive(t, c.unit)
		d.failure = c.failure
		d.act("start")
		if d.s.Sub != c.state || d.s.Result != c.result || d.s.Exit != c.exit || d.s.Reason != c.reason || !d.quits {
			t.Errorf("%s:\ngot  %s %s %v %q\nwant %s %s %v %q", c.name, d.s.Sub, d.s.Result, d.s.Exit, d.s.Reason, c.state, c.result, c.exit, c.reason)
		}
	}
}

func TestBusyCommand(t *testing.T) {
	d := drive(t, `ExecReload="r"`, `ExecStop="z"`, `ExecStopPost="y"`).act("start")
	d.failure = evBusy{roleControl, []int{5}}
	d.act("reload")
	d.is(running, resultSuccess)
	d.answered(outcomeFailed)
	d.failure = evBusy{roleControl, []int{5}}
	d.act("stop")
	d.is(stopPost, resultResources)
	d.act("command exits 0")
	d.answered(outcomeDone)
}

// TestStopOvertakesStart: that a stage was called off before the commit is no failure.
func TestStopOvertakesStart(t *testing.T) {
	d := drive(t)
	d.failure = evJob{id: "stop1", verb: verbStop}
	d.act("start")
	d.feed(evSpawnFailed{role: roleMain, text: "the process died while it was set up"})
	d.is(dead, resultSuccess)
	d.answered(outcomeDone)
}

// ---- restart

// causes are the rows of the table of man 5 systemd.service, with the columns always, on-success, on-failure, on-abnormal, on-abort,
// on-watchdog.
var causes = []struct {
	name, unit, events, restarts string
}{
	{"clean exit code", "", "start; main exits 0", "always on-success"},
	{"clean signal HUP", "", "start; main dies of HUP", "always on-success"},
	{"clean signal INT", "", "start; main dies of INT", "always on-success"},
	{"clean signal TERM", "", "start; main dies of TERM", "always on-success"},
	{"clean signal PIPE", "", "start; main dies of PIPE", "always on-success"},
	{"unclean exit code", "", "start; main exits 1", "always on-failure"},
	{"unclean signal", "", "start; main dies of KILL", "always on-failure on-abnormal on-abort"},
	{"core dump", "", "start; main dumps core", "always on-failure on-abnormal on-abort"},
	{"start timeout", `Type="notify"`, "start; timeout", "always on-failure on-abnormal"},
	{"run timeout", `RuntimeMaxSec=5`, "start; timeout", "always on-failure on-abnormal"},
	{"a stop that the service began, timeout", `Type="notify"`, "start; READY; STOPPING; timeout", "always on-failure on-abnormal"},
	{"protocol", `Type="notify"`, "start; main exits 0", "always on-failure on-abnormal"},
	{"exit status that nobody saw", "", "start; main is lost", "always on-failure on-abnormal"},
	{"failed command of the start", `ExecStartPre="a"`, "start; command exits 1", "always on-failure"},
}

func TestRestartTable(t *testing.T) {
	for _, policy := range []string{"no", "always", "on-success", "on-failure", "on-abnormal", "on-abort", "on-watchdog"} {
		for _, c := range causes {
			d := drive(t, `Restart="`+policy+`"`, c.unit).act(events(c.events)...)
			want := slices.Contains(strings.Fields(c.restarts), policy)
			if got := d.s.Sub == autoRestart; got != want {
				t.Errorf("Restart=%s after %s: restarts is %v, want %v (%s, %s)", policy, c.name, got, want, d.s.Sub, d.s.Result)
			}
			d.act("stop")
			if d.s.Sub == autoRestart || d.s.Job.Outcome != outcomeDone || !d.quits {
				t.Errorf("Restart=%s after %s: a stop leaves it %s, %q", policy, c.name, d.s.Sub, d.s.Job.Outcome)
			}
		}
	}
}

func TestRestartExceptions(t *testing.T) {
	for _, c := range []struct{ name, unit, events, state string }{
		{"RestartPreventExitStatus rules over always", `Restart="always";RestartPreventExitStatus=[3, "KILL"]`, "start; main exits 3", failed},
		{"also by signal", `Restart="always";RestartPreventExitStatus=[3, "KILL"]`, "start; main dies of KILL", failed},
		{"another status restarts", `Restart="always";RestartPreventExitStatus=[3, "KILL"]`, "start; main exits 4", autoRestart},
		{"RestartForceExitStatus rules over no", `Restart="no";RestartForceExitStatus=[3]`, "start; main exits 3", autoRestart},
		{"also for a success", `Restart="no";RestartForceExitStatus=[0]`, "start; main exits 0", autoRestart},
		{"but not for the success of a oneshot", `Type="oneshot";ExecStart="a";RestartForceExitStatus=[0]`, "start; main exits 0", dead},
		{"yet for the failure of a oneshot", `Type="oneshot";ExecStart="a";RestartForceExitStatus=[2]`, "start; main exits 2", autoRestart},
		{"Prevent rules over Force", `Restart="always";RestartForceExitStatus=[3];RestartPreventExitStatus=[3]`, "start; main exits 3", failed},
		{"both look at the main process alone", `ExecStartPre="a";RestartForceExitStatus=[3]`, "start; command exits 3", failed},
		{"SuccessExitStatus makes a code clean", `Restart="on-failure";SuccessExitStatus=["TEMPFAIL"]`, "start; main exits 75", dead},
		{"and a signal", `Restart="on-failure";SuccessExitStatus=["USR1"]`, "start; main dies of USR1", dead},
		{"also for a oneshot", `Type="oneshot";ExecStart="a";SuccessExitStatus=[7]`, "start; main exits 7", dead},
		{"a core dump is never clean", `Restart="on-failure";SuccessExitStatus=["SEGV"]`, "start; main dumps core", autoRestart},
		{"a failure that is to be ignored is a success", `Restart="on-failure";ExecStart="-main"`, "start; main exits 1", dead},
		{"which always restarts", `Restart="always";ExecStart="-main"`, "start; main exits 1", autoRestart},
		{"oneshot restarts on failure", `Type="oneshot";ExecStart="a";Restart="on-failure"`, "start; main exits 1", autoRestart},
		{"a program that cannot be found is tried again", `Restart="on-failure"`, "start; main exits 203", autoRestart},
	} {
		d := drive(t, events(c.unit)...).act(events(c.events)...)
		if d.s.Sub != c.state {
			t.Errorf("%s: state is %s (%s), want %s", c.name, d.s.Sub, d.s.Result, c.state)
		}
	}
}

func TestStartLimit(t *testing.T) {
	d := drive(t, `Restart="always"`, `RestartSec=0`, `StartLimitBurst=3`, `StartLimitIntervalSec=10`).act("start")
	for range 2 {
		d.act("main exits 1", "timeout")
		d.is(running)
	}
	d.act("main exits 1", "timeout")
	d.is(failed, resultStartLimitHit)
	if !d.quits || d.s.Restarts != 3 || !d.s.Main.zero() {
		t.Errorf("quits %v, restarts %d, main %v", d.quits, d.s.Restarts, d.s.Main)
	}
	d.act("start")
	d.is(running, resultSuccess)
	if d.s.Restarts != 0 || len(d.s.Starts) != 1 {
		t.Errorf("a start by hand leaves restarts %d, starts %v", d.s.Restarts, d.s.Starts)
	}
	for range 5 { // the window moves on
		d.act("after 5s", "main exits 1", "timeout")
		d.is(running)
	}
	d.act("main exits 1", "timeout", "main exits 1", "timeout")
	d.is(failed, resultStartLimitHit)
	d.act("reset")
	d.is(dead, resultSuccess)
	if len(d.s.Starts) != 0 || d.s.Restarts != 0 {
		t.Errorf("reset-failed leaves restarts %d, starts %v", d.s.Restarts, d.s.Starts)
	}
}

// delays lets the main process crash after each run and collects the delays.
func delays(d *driver, runs ...string) (list []time.Duration) {
	d.act("start")
	for _, lasts := range runs {
		d.act("after "+lasts, "main exits 1")
		list = append(list, time.Duration(d.s.Deadline-d.now.boot))
		d.act("timeout")
	}
	return list
}

func checkDelays(t *testing.T, what string, got []time.Duration, want ...string) {
	t.Helper()
	for i, w := range want {
		text, jitter := strings.CutPrefix(w, "~")
		middle, spread := duration(t, text), time.Duration(0)
		if jitter {
			spread = middle / 10
		}
		if got[i] < middle-spread || got[i] > middle+spread {
			t.Errorf("%s: delay %d is %s, want %s", what, i+1, got[i], w)
		}
	}
}

func TestRestartDelay(t *testing.T) {
	const short, long = "0s", "10s"
	always := `Restart="always"`
	checkDelays(t, "omitted: doubles", delays(drive(t, always), short, short, short, short, "9s", long, short),
		"~100ms", "~200ms", "~400ms", "~800ms", "~1600ms", "~100ms", "~200ms")
	many := slices.Repeat([]string{short}, 70)
	got := delays(drive(t, always), many...)
	checkDelays(t, "omitted: up to a minute", got[9:12], "~51200ms", "~60s", "~60s")
	checkDelays(t, "and no further", got[69:], "~60s")
	checkDelays(t, "up to RestartMaxDelaySec", delays(drive(t, always, `RestartMaxDelaySec="300ms"`), short, short, short, short),
		"~100ms", "~200ms", "~300ms", "~300ms")
	checkDelays(t, "below the first step", delays(drive(t, always, `RestartMaxDelaySec="50ms"`), short, short), "~50ms", "~50ms")
	checkDelays(t, "given: fixed while runs last a second", delays(drive(t, always, `RestartSec="250ms"`), slices.Repeat([]string{"1s"}, 9)...),
		slices.Repeat([]string{"250ms"}, 9)...)
	checkDelays(t, "given: after five short runs it grows", delays(drive(t, always, `RestartSec="250ms"`), short, short, short, short, short, short, short, short, "1s", short),
		"250ms", "250ms", "250ms", "250ms", "250ms", "250ms", "~400ms", "~800ms", "250ms", "250ms")
	checkDelays(t, "also from 0", delays(drive(t, always, `RestartSec=0`), short, short, short, short, short, short, short),
		"1ns", "1ns", "1ns", "1ns", "~100ms", "~200ms", "~400ms")
	d := drive(t, always)
	delays(d, short, short, short)
	checkDelays(t, "a start by hand begins anew", delays(d.act("stop"), short), "~100ms")
}

// TestJitter: services that failed together spread over 10 % either way.
func TestJitter(t *testing.T) {
	least, most := time.Hour, time.Duration(0)
	for n := 0; n < 1<<16; n += 101 {
		s := service{runRecord: runRecord{Invocation: fmt.Sprintf("%04x%028x", n, 0)}}
		d := s.jitter(time.Second)
		least, most = min(least, d), max(most, d)
	}
	if least < 900*time.Millisecond || least > 901*time.Millisecond || most < 1099*time.Millisecond || most > 1100*time.Millisecond {
		t.Errorf("from %s to %s", least, most)
	}
}

func TestRestartsByHandAndAutomatic(t *testing.T) {
	d := drive(t, `Restart="always"`).act("start", "main exits 1", "timeout", "main exits 1", "timeout")
	if d.is(running); d.s.Restarts != 2 {
		t.Errorf("restarts %d, want 2", d.s.Restarts)
	}
	d.act("main exits 1")
	d.is(autoRestart, resultExitCode)
	d.act("start")
	d.is(running)
	d.answered(outcomeDone)
	if d.s.Restarts != 0 {
		t.Errorf("restarts %d after a start by hand", d.s.Restarts)
	}
	first := d.s.Invocation
	d.act("restart")
	d.is(running)
	d.answered(outcomeDone)
	if first == d.s.Invocation {
		t.Error("a restart keeps the invocation id")
	}
}

// ---- who is signalled

func TestKillMode(t *testing.T) {
	for _, c := range []struct{ unit, nature, events, did string }{
		{`KillMode="control-group"`, "", "stop", "TERM tree, TERM tree, quit"},
		{`KillMode="control-group"`, "deaf", "stop; timeout", "TERM tree, KILL tree, TERM tree, quit"},
		{`KillMode="control-group";SendSIGKILL=false`, "deaf", "stop; timeout", "TERM tree, retire, quit"},
		{`KillMode="control-group";KillSignal="INT"`, "", "stop", "INT tree, INT tree, quit"},
		{`KillMode="mixed"`, "child", "stop", "TERM main, KILL tree, TERM main, KILL tree, quit"},
		{`KillMode="mixed"`, "deaf child", "stop; timeout", "TERM main, KILL tree, TERM main, KILL tree, quit"},
		{`KillMode="mixed";SendSIGKILL=false`, "child", "stop; tree ends", "TERM main, TERM main, quit"},
		{`KillMode="mixed";SendSIGKILL=false`, "child", "stop; timeout", "TERM main, retire, quit"},
		{`KillMode="process"`, "child", "stop", "TERM main, retire, quit"},
		{`KillMode="process"`, "deaf child", "stop; timeout", "TERM main, KILL main, retire, quit"},
		{`KillMode="process";SendSIGKILL=false`, "deaf child", "stop; timeout", "TERM main, retire, quit"},
		{`KillMode="none"`, "child", "stop", "retire, quit"},
		{`KillMode="none";ExecStop="z"`, "child", "stop; command exits 0", "run z, retire, quit"},
		{`KillMode="process";ExecStop="z"`, "deaf", "stop; timeout; timeout", "run z, TERM main, KILL main, retire, quit"},
		{`KillMode="process";ExecStopPost="y"`, "", "stop; timeout", "TERM main, run y, TERM main, retire, quit"},
		{`KillMode="control-group";ExecStopPost="y"`, "", "stop; timeout", "TERM tree, run y, TERM tree, quit"},
		{`KillMode="mixed";ExecStopPost="y"`, "", "stop; timeout", "TERM main, KILL tree, run y, TERM main, KILL tree, quit"},
		{`KillMode="control-group"`, "immortal", "stop; timeout; timeout", "TERM tree, KILL tree, retire, quit"},
		{`KillMode="control-group";Type="notify";NotifyAccess="all"`, "child", "READY; STOPPING; main exits 0", "TERM tree, quit"},
		{`KillMode="process"`, "child", "main exits 0", "TERM main, retire, quit"},
		{`KillMode="control-group"`, "child", "main exits 0", "TERM tree, TERM tree, quit"},
		{`KillMode="control-group";ExecStartPost="p"`, "", "stop", "TERM tree, TERM tree, quit"},
	} {
		d := drive(t, events(c.unit)...).act("start")
		if strings.Contains(c.nature, "child") {
			d.others = 1
		}
		d.deaf, d.immortal = strings.Contains(c.nature, "deaf"), strings.Contains(c.nature, "immortal")
		d.forget().act(events(c.events)...)
		if got := d.deeds(); got != c.did {
			t.Errorf("%s, %s main, %s:\ndid  %s\nwant %s", c.unit, c.nature, c.events, got, c.did)
		}
		if d.s.Sub != dead && d.s.Sub != failed {
			t.Errorf("%s, %s main, %s: state is %s", c.unit, c.nature, c.events, d.s.Sub)
		}
	}
}

func TestStopTellsWhatWasNeeded(t *testing.T) {
	d := drive(t).act("start")
	d.deaf = true
	d.act("stop", "timeout")
	d.is(failed, resultTimeout)
	d.answered(outcomeDone)
	if d.s.Job.Text != "needed SIGKILL" {
		t.Errorf("text %q", d.s.Job.Text)
	}
	d = drive(t, `SendSIGKILL=false`).act("start")
	d.deaf = true
	d.act("stop", "timeout")
	d.is(failed, resultTimeout)
	d.answered(outcomeFailed)
	if want := "processes are left: " + strconv.Itoa(d.s.Left[0]); d.s.Job.Text != want {
		t.Errorf("text %q, want %q", d.s.Job.Text, want)
	}
}

// ---- stopping, hooks

func TestHooksOfStop(t *testing.T) {
	hooks := `ExecStop=["x", "y"];ExecStopPost=["-u", "v"]`
	for _, c := range []struct{ name, unit, events, state, result, did string }{
		{"ExecStop, then the signal, then ExecStopPost", hooks, "start; stop; command exits 0; command exits 0; command exits 0; command exits 0", dead, "success",
			"start main, run x, run y, TERM tree, run u, run v, TERM tree, quit"},
		{"ExecStop runs also when the main process ended well by itself", hooks, "start; main exits 0", stopping, "success", "start main, run x"},
		{"or badly", hooks, "start; main exits 1", stopping, "exit-code", "start main, run x"},
		{"a failed ExecStop ends the list and fails the service", hooks, "start; stop; command exits 1", stopPost, "exit-code", "start main, run x, TERM tree, run u"},
		{"unless it is to be ignored", `ExecStop=["-x", "y"]`, "start; stop; command exits 1", stopping, "success", "start main, run x, run y"},
		{"each ExecStop has the whole timeout", `ExecStop=["x", "y"];TimeoutStopSec=5`, "start; stop; after 4s; command exits 0; after 4s; command exits 0", dead, "success",
			"start main, run x, run y, TERM tree, TERM tree, quit"},
		{"one that hangs is ended with the service", hooks + `;TimeoutStopSec=5`, "start; stop; timeout", stopPost, "timeout", "start main, run x, TERM tree, run u"},
		{"a failed ExecStopPost fails the service", `ExecStopPost=["u", "v"]`, "start; stop; command exits 1", failed, "exit-code",
			"start main, TERM tree, run u, TERM tree, quit"},
		{"ExecStopPost runs after a failed start too, ExecStop does not", hooks + `;Type="notify"`, "start; main exits 1", stopPost, "exit-code",
			"start main, TERM tree, run u"},
		{"after a start timeout likewise", hooks + `;Type="notify"`, "start; timeout", stopPost, "timeout", "start main, TERM tree, run u"},
		{"a stop in the middle of a start skips ExecStop", hooks + `;Type="notify"`, "start; stop", stopPost, "success", "start main, TERM tree, run u"},
		{"a stop of an exited service runs ExecStop", `Type="oneshot";ExecStart="a";RemainAfterExit=true;ExecStop="x"`, "start; main exits 0; stop; command exits 0", dead, "success",
			"start a, quit, run x, TERM tree, TERM tree, quit"},
		{"a oneshot runs ExecStop when it is done", `Type="oneshot";ExecStart="a";ExecStop="x"`, "start; main exits 0", stopping, "success", "start a, run x"},
		{"an unclean end on KillSignal is what we asked for", `KillSignal="USR1"`, "start; stop", dead, "success", "start main, USR1 tree, USR1 tree, quit"},
	} {
		d := drive(t, events(c.unit)...).act(events(c.events)...)
		if d.s.Sub != c.state || d.s.Result != c.result || d.deeds() != c.did {
			t.Errorf("%s:\ngot  %s %s; %s\nwant %s %s; %s", c.name, d.s.Sub, d.s.Result, d.deeds(), c.state, c.result, c.did)
		}
	}
	d := drive(t, `TimeoutStopSec=5`).act("start")
	d.deaf = true
	d.act("stop", "main exits 9")
	d.is(failed, resultExitCode)
	d = drive(t, `KillSignal="TERM"`).act("start")
	d.deaf = true
	d.act("stop", "main dies of KILL")
	d.is(failed, resultSignal) // by somebody else
}

func TestReload(t *testing.T) {
	for _, c := range []struct{ name, unit, events, state, outcome, did string }{
		{"runs ExecReload", `ExecReload=["r", "q"]`, "start; reload", reload, "", "start main, run r"},
		{"one after another", `ExecReload=["r", "q"]`, "start; reload; command exits 0", reload, "", "start main, run r, run q"},
		{"and is done with the last", `ExecReload=["r", "q"]`, "start; reload; command exits 0; command exits 0", running, "done", "start main, run r, run q"},
		{"a failure leaves the service running", `ExecReload=["r", "q"]`, "start; reload; command exits 1", running, "failed", "start main, run r"},
		{"so does a timeout", `ExecReload="r";TimeoutStartSec=5`, "start; reload; timeout", running, "failed", "start main, run r, KILL command"},
		{"without ExecReload it fails", "", "start; reload", running, "failed", "start main"},
		{"the main process ends well under it", `ExecReload="r"`, "start; reload; main exits 0; command exits 0", dead, "done", "start main, run r, TERM tree, TERM tree, quit"},
		{"or badly", `ExecReload="r"`, "start; reload; main exits 1; command exits 0", failed, "done", "start main, run r, TERM tree, TERM tree, quit"},
		{"a stop ends both", `ExecReload="r"`, "start; reload; stop", dead, "done", "start main, run r, TERM tree, TERM tree, quit"},
		{"a service may reload of its own accord", `Type="notify"`, "start; READY; RELOADING", reload, "done", "start main"},
		{"until it is ready", `Type="notify"`, "start; READY; RELOADING; READY", running, "done", "start main"},
		{"or its time is up", `Type="notify"`, "start; READY; RELOADING; timeout", running, "done", "start main, KILL command"},
		{"or it has ended", `Type="notify"`, "start; READY; RELOADING; main exits 0", dead, "done", "start main, TERM tree, TERM tree, quit"},
		{"of an exited service", `Type="oneshot";ExecStart="a";RemainAfterExit=true;ExecReload="r"`, "start; main exits 0; reload; command exits 0", exited, "done",
			"start a, quit, run r, quit"},
		{"of an exited service without ExecReload", `Type="oneshot";ExecStart="a";RemainAfterExit=true`, "start; main exits 0; reload", exited, "failed", "start a, quit, quit"},
	} {
		d := drive(t, events(c.unit)...).act(events(c.events)...)
		if d.s.Sub != c.state || d.s.Job.Outcome != c.outcome || d.deeds() != c.did {
			t.Errorf("%s:\ngot  %s %q; %s\nwant %s %q; %s", c.name, d.s.Sub, d.s.Job.Outcome, d.deeds(), c.state, c.outcome, c.did)
		}
	}
}

// TestActiveSince: a reload does not make a service younger, as in systemd (ActiveEnterTimestamp); a restart does.
func TestActiveSince(t *testing.T) {
	d := drive(t, `ExecReload="r"`).act("start")
	began := d.s.Since
	d.now.wall++
	if d.act("reload", "command exits 0"); d.s.Since != began {
		t.Errorf("after a reload: since %d, want %d", d.s.Since, began)
	}
	if d.act("restart"); d.s.Since != d.now.wall {
		t.Errorf("after a restart: since %d, want %d", d.s.Since, d.now.wall)
	}
}

// TestReloadForgetsNoStop: a reload that comes too late must not take the stop's place, or Restart=always would start it again.
func TestReloadForgetsNoStop(t *testing.T) {
	d := drive(t, `Restart="always"`).act("start")
	d.deaf = true
	d.act("stop", "reload", "timeout")
	d.is(failed, resultTimeout)
	d.answered(outcomeDone)
}

func TestNotify(t *testing.T) {
	d := drive(t, `Type="notify"`).act("start")
	d.feed(evNotify{msg: notifyMessage{Status: "half way", HasStatus: true}})
	if d.is(starting); d.s.StatusText != "half way" {
		t.Errorf("status text %q", d.s.StatusText)
	}
	next := pidRef{PID: 88, Start: 9}
	d.feed(evNotify{msg: notifyMessage{Ready: true, MainPID: 88}, main: next})
	if d.is(running); d.s.Main != next {
		t.Errorf("main is %v, want that of MAINPID", d.s.Main)
	}
	d.act("STOPPING")
	d.is(stopSigterm)
	d.did("start main") // no signal: it stops by itself
	d.act("main exits 0")
	d.is(dead, resultSuccess)
	d.feed(evNotify{msg: notifyMessage{MainPID: 88}, main: next})
	if !d.s.Main.zero() {
		t.Errorf("a dead service takes %v for its main process", d.s.Main)
	}
}

func TestRuntimeMaxSec(t *testing.T) {
	d := drive(t, `Type="notify"`, `RuntimeMaxSec=10`, `ExecReload="r"`).act("start", "after 20s", "READY")
	d.is(running) // it counts from here
	due := d.s.Deadline
	if want := d.now.boot + boottime(10*time.Second); due != want {
		t.Fatalf("deadline %d, want %d", due, want)
	}
	d.act("after 3s", "reload", "command exits 0")
	if d.s.Deadline != due {
		t.Errorf("a reload moves the deadline from %d to %d", due, d.s.Deadline)
	}
	d.act("timeout")
	d.is(failed, resultTimeout)
}

// TestTimeoutPerCommand: each command has the whole timeout, as man 5 systemd.service says of ExecStop.
func TestTimeoutPerCommand(t *testing.T) {
	d := drive(t, `ExecStartPre=["a", "b"]`, `ExecStop=["x", "y"]`, `TimeoutStartSec=5`, `TimeoutStopSec=7`)
	check := func(want time.Duration) {
		t.Helper()
		if got := time.Duration(d.s.Deadline - d.now.boot); got != want {
			t.Errorf("%s command %d has %s, want %s", d.s.Sub, d.s.Step, got, want)
		}
	}
	d.act("start", "after 4s", "command exits 0")
	check(5 * time.Second)
	d.act("command exits 0", "stop", "after 4s", "command exits 0")
	check(7 * time.Second)
}

// ---- every state

// stateUnit has everything that a state can hang on.
const stateUnit = `Type="notify";ExecStartPre=["a", "b"];ExecStartPost="p";ExecReload="r";ExecStop="x";ExecStopPost="y"
Restart="always";RestartSec=1;TimeoutStartSec=30;TimeoutStopSec=20`

// inState makes a service in the given state.
func inState(t *testing.T, sub subState) *driver {
	t.Helper()
	unitText := strings.ReplaceAll(stateUnit, "\n", ";")
	if sub == exited {
		unitText = `Type="oneshot";ExecStart="main";RemainAfterExit=true;ExecReload="r";ExecStop="x";ExecStopPost="y";TimeoutStopSec=20`
	}
	if sub == failed {
		unitText = strings.Replace(unitText, "always", "no", 1)
	}
	d := drive(t, events(unitText)...)
	up := []string{"start", "command exits 0", "command exits 0", "READY", "command exits 0"}
	path := map[subState][]string{
		startPre: up[:1], starting: up[:3], startPost: up[:4], running: up,
		exited:      {"start", "main exits 0"},
		autoRestart: append(slices.Clone(up), "main exits 1", "command exits 0", "command exits 0"),
		failed:      append(slices.Clone(up), "main exits 1", "command exits 0", "command exits 0"),
		reload:      append(slices.Clone(up), "reload"),
		stopping:    append(slices.Clone(up), "stop"),
		stopSigterm: append(slices.Clone(up), "stop", "command exits 0"),
		stopSigkill: append(slices.Clone(up), "stop", "command exits 0", "timeout"),
	}
	d.deaf = sub == stopSigterm || sub == stopSigkill
	d.immortal = d.deaf
	switch sub {
	case unknown:
		d.s.Sub, d.s.Left, d.s.Reason, d.others = unknown, []int{50}, "its state could not be read", 1
	case stopPost, finalSigterm, finalSigkill:
		d.act(append(slices.Clone(up), "stop", "command exits 0")...)
		if sub != stopPost {
			d.others, d.deaf, d.immortal = 1, true, true
			d.act("command exits 0")
		}
		if sub == finalSigkill {
			d.act("timeout")
		}
	default:
		d.act(path[sub]...)
	}
	if d.s.Sub != sub {
		t.Fatalf("cannot reach %s, only %s", sub, d.s.Sub)
	}
	return d.forget()
}

// finish lets the processes obey and all commands succeed, until the service rests.
func (d *driver) finish() {
	d.t.Helper()
	d.deaf, d.immortal, d.quick = false, false, true
	for range 20 {
		switch {
		case d.s.Sub == dead || d.s.Sub == failed || d.s.Sub == running || d.s.Sub == exited:
			return
		case d.control:
			d.act("command exits 0")
		case d.s.Sub == starting:
			d.act("READY")
			if d.s.unit.Type == typeOneshot {
				d.act("main exits 0")
			}
		case d.watching != nil && d.s.Sub != autoRestart:
			d.endMain(exitStatus{exitKilled, 15})
			d.act("tree ends")
		default:
			d.timeout()
		}
	}
	d.t.Errorf("does not come to rest: %s", d.s.Sub)
}

func TestStopInEveryState(t *testing.T) {
	for _, sub := range subStates {
		d := inState(t, sub).act("stop")
		d.finish()
		if d.s.Sub != dead && d.s.Sub != failed || !d.quits || d.main || d.control {
			t.Errorf("stop in %s: %s, quits %v, main lives %v", sub, d.s.Sub, d.quits, d.main)
		}
		d.answered(outcomeDone)
	}
}

// TestStopWithinAShutdown: whatever a stop is at, it is over with the time that a shutdown leaves, but for a moment for each step after SIGTERM.
func TestStopWithinAShutdown(t *testing.T) {
	bound := func(d *driver, id string, left time.Duration) boottime {
		until := d.now.boot + boottime(left)
		d.feed(evJob{id: id, verb: verbStop, by: "boot", until: until})
		return until
	}
	for _, sub := range subStates {
		for _, hurried := range []bool{false, true} {
			d := inState(t, sub)
			d.deaf, d.immortal = true, false
			until := bound(d, "s", 5*time.Second)
			if hurried {
				until = bound(d, "s", time.Second)
				bound(d, "s", time.Hour) // which changes nothing
			}
			for range 20 {
				if d.s.Sub == dead || d.s.Sub == failed || d.s.Deadline == 0 {
					break
				}
				d.timeout()
			}
			if d.s.Sub != dead && d.s.Sub != failed || d.main || d.control {
				t.Errorf("%s, hurried %v: ends in %s, main lives %v", sub, hurried, d.s.Sub, d.main)
			}
			if late := time.Duration(d.now.boot - until); late > 4*lastMoment {
				t.Errorf("%s, hurried %v: %v late", sub, hurried, late)
			}
			if sub != finalSigkill { // there SIGKILL was sent in vain
				d.answered(outcomeDone)
			}
		}
	}
	d := drive(t, `ExecStop="x"`, `ExecStopPost="y"`).act("start")
	d.deaf = true
	bound(d, "s", 3*time.Second)
	d.timeout()
	d.is(stopSigterm, resultTimeout)
	if want := "ExecStop did not end within the time that the shutdown leaves"; d.s.Reason != want {
		t.Errorf("the reason is %q, want %q", d.s.Reason, want)
	}
	d = drive(t, `TimeoutStopSec=2`).act("start")
	d.deaf = true
	bound(d, "s", time.Hour)
	if d.s.Deadline != d.now.after(2*time.Second) {
		t.Error("TimeoutStopSec does not count in a shutdown")
	}
}

func TestRestartInEveryState(t *testing.T) {
	for _, sub := range subStates {
		d := inState(t, sub)
		old := d.s.Invocation
		d.act("restart")
		d.finish()
		if d.s.Sub != running && d.s.Sub != exited || d.s.Invocation == old {
			t.Errorf("restart in %s: %s", sub, d.s.Sub)
		}
		d.answered(outcomeDone)
	}
}

func TestStartInEveryState(t *testing.T) {
	for _, sub := range subStates {
		d := inState(t, sub).act("start")
		if sub == unknown {
			d.is(unknown)
			d.answered(outcomeFailed)
			d.did("")
			continue
		}
		d.finish()
		if d.s.Sub != running && d.s.Sub != exited {
			t.Errorf("start in %s: %s", sub, d.s.Sub)
		}
		d.answered(outcomeDone)
	}
}

func TestTimeoutInEveryState(t *testing.T) {
	next := map[subState]subState{startPre: stopPost, starting: stopPost, startPost: stopPost, reload: running, stopping: stopPost,
		stopSigterm: stopSigkill, stopSigkill: stopPost, stopPost: failed, finalSigterm: finalSigkill, finalSigkill: failed, autoRestart: startPre}
	for _, sub := range subStates {
		d := inState(t, sub)
		want, limited := next[sub]
		if !limited {
			if d.s.Deadline != 0 {
				t.Errorf("%s has a deadline", sub)
			}
			continue
		}
		d.timeout()
		if d.s.Sub != want {
			t.Errorf("timeout in %s leads to %s (%s), want %s", sub, d.s.Sub, d.deeds(), want)
		}
		if sub != autoRestart && sub != reload && d.s.Result != resultTimeout {
			t.Errorf("timeout in %s gives result %s", sub, d.s.Result)
		}
	}
}

// TestNoTimeouts: with infinity nothing ever ends by itself.
func TestNoTimeouts(t *testing.T) {
	d := drive(t, `Type="notify"`, `TimeoutStartSec="infinity"`, `TimeoutStopSec="infinity"`, `ExecStartPre="a"`, `ExecStop="x"`).act("start")
	for _, next := range []string{"command exits 0", "READY", "stop", "command exits 0"} {
		if d.s.Deadline != 0 {
			t.Errorf("%s has a deadline", d.s.Sub)
		}
		d.deaf = true
		d.act(next)
	}
	if d.is(stopSigterm); d.s.Deadline != 0 {
		t.Errorf("%s has a deadline", d.s.Sub)
	}
}

// ---- adoption

// successor is a service made of the record, as a new shim makes it.
func (d *driver) successor() *driver {
	next := &driver{t: d.t, s: newService(d.s.unit, d.s.runRecord), now: d.now, runs: d.runs, jobs: d.jobs}
	next.main, next.control, next.others, next.deaf, next.immortal = d.main, d.control, d.others, d.deaf, d.immortal
	return next
}

func TestAdoptionWithLivingProcesses(t *testing.T) {
	want := map[subState]string{
		stopSigterm: "TERM tree", stopSigkill: "KILL tree", finalSigterm: "TERM tree", finalSigkill: "KILL tree",
		exited: "quit", dead: "quit", failed: "quit",
	}
	for _, sub := range subStates {
		d := inState(t, sub).successor()
		due := d.s.Deadline
		d.feed(evAdopted{})
		if d.s.Sub != sub || d.s.Deadline != due {
			t.Errorf("adoption in %s leads to %s, deadline from %d to %d", sub, d.s.Sub, due, d.s.Deadline)
		}
		if got := d.deeds(); got != want[sub] {
			t.Errorf("adoption in %s did %q, want %q", sub, got, want[sub])
		}
	}
}

// TestAdoptionOfTheEnded: main and control process are gone when the new shim comes.
func TestAdoptionOfTheEnded(t *testing.T) {
	for _, c := range []struct {
		sub           subState
		main, control exitStatus
		state, did    string
	}{
		{startPre, exitStatus{}, exitStatus{exitExited, 0}, startPre, "run b"},
		{startPre, exitStatus{}, exitStatus{How: exitLost}, stopPost, "TERM tree, run y"},
		{starting, exitStatus{exitExited, 1}, exitStatus{}, stopPost, "TERM tree, run y"},
		{startPost, exitStatus{}, exitStatus{exitExited, 0}, running, ""},
		{startPost, exitStatus{exitExited, 1}, exitStatus{}, startPost, ""},
		{startPost, exitStatus{exitExited, 1}, exitStatus{exitExited, 0}, stopPost, "TERM tree, run y"},
		{running, exitStatus{exitKilled, 9}, exitStatus{}, stopping, "run x"},
		{running, exitStatus{How: exitLost}, exitStatus{}, stopping, "run x"},
		{reload, exitStatus{}, exitStatus{exitExited, 0}, running, ""},
		{reload, exitStatus{exitExited, 0}, exitStatus{exitExited, 0}, stopping, "run x"},
		{stopping, exitStatus{}, exitStatus{exitExited, 0}, stopPost, "TERM tree, run y"},
		{stopping, exitStatus{exitExited, 0}, exitStatus{}, stopping, ""},
		{stopping, exitStatus{exitExited, 0}, exitStatus{exitExited, 0}, stopPost, "TERM tree, run y"},
		{stopSigterm, exitStatus{exitKilled, 15}, exitStatus{}, stopPost, "TERM tree, run y"},
		{stopSigkill, exitStatus{exitKilled, 9}, exitStatus{}, stopPost, "KILL tree, run y"},
		{stopPost, exitStatus{}, exitStatus{exitExited, 0}, dead, "TERM tree, quit"},
	} {
		d := inState(t, c.sub).successor()
		d.deaf, d.immortal = false, false
		d.main, d.control = d.main && c.main == (exitStatus{}), d.control && c.control == (exitStatus{})
		d.feed(evAdopted{main: c.main, control: c.control})
		if d.s.Sub != c.state || d.deeds() != c.did {
			t.Errorf("in %s with main %v, control %v: %s did %q, want %s %q", c.sub, c.main, c.control, d.s.Sub, d.deeds(), c.state, c.did)
		}
	}
}

// TestAdoptionWithinTheStart: the shim died within protocol P, so the command is known not to have run.
func TestAdoptionWithinTheStart(t *testing.T) {
	for _, c := range []struct {
		sub  subState
		role role
		did  string
	}{
		{startPre, roleControl, "run a"}, {starting, roleMain, "start main"}, {startPost, roleControl, "run p"}, {reload, roleControl, "run r"},
		{stopping, roleControl, "run x"}, {stopPost, roleControl, "run y"},
	} {
		for _, mainEnded := range []bool{false, true} {
			d := inState(t, c.sub)
			d.s.Spawning = c.role
			d.control = false
			d.s.Control = pidRef{}
			if c.role == roleMain {
				d.main = false
				d.s.Main = pidRef{}
			}
			ev := evAdopted{nothingRan: true}
			if mainEnded && d.main {
				d.main = false
				ev.main = exitStatus{exitExited, 1}
			}
			d = d.successor()
			d.feed(ev)
			if d.s.Sub != c.sub || d.deeds() != c.did || d.s.Spawning != "" {
				t.Errorf("in %s: %s did %q, want %q; spawning %q", c.sub, d.s.Sub, d.deeds(), c.did, d.s.Spawning)
			}
			if ev.main != (exitStatus{}) && (d.s.Exit != ev.main || !d.s.Main.zero()) {
				t.Errorf("in %s the end of the main process is overlooked", c.sub)
			}
		}
	}
}

// TestAdoptionOfAReload: one that the service began needs no command.
func TestAdoptionOfAReload(t *testing.T) {
	d := drive(t, `Type="notify"`, `ExecReload="r"`).act("start", "READY", "RELOADING").successor()
	d.feed(evAdopted{})
	d.is(reload)
	d.did("")
	d.act("READY")
	d.is(running)
}

// TestAdoptionUnheard: a service whose READY=1 may be lost is not ended for it, but taken for ready in the end; one that ends is not.
func TestAdoptionUnheard(t *testing.T) {
	for _, setting := range []string{"TimeoutStartSec=5", "TimeoutStartSec=\"infinity\""} {
		d := drive(t, `Type="notify"`, setting, `ExecStartPost="p"`).act("start").successor()
		d.feed(evAdopted{unheard: true})
		d.is(starting)
		if d.s.Deadline == 0 {
			t.Errorf("%s: it would wait for ever", setting)
		}
		d.feed(evTimeout{})
		d.is(startPost)
		d.did("run p")
		d.control = false
		d.feed(evExit{role: roleControl, exit: exitStatus{exitExited, 0}})
		d.is(running)
		d.answered("done")
		if e := d.s.events[len(d.s.events)-1]; e.Kind != eventReady || e.Text != unheardText || d.s.Unheard {
			t.Errorf("%s: its history says %+v", setting, e)
		}
	}
	d := drive(t, `Type="notify"`).act("start").successor()
	d.feed(evAdopted{unheard: true})
	d.act("READY")
	d.is(running)
	if d.s.Unheard {
		t.Error("it was heard after all")
	}
	d = drive(t, `Type="notify"`).act("start").successor()
	d.feed(evAdopted{})
	d.feed(evTimeout{})
	if d.s.Result != resultTimeout {
		t.Errorf("one that was heard all the time is %s (%s) after its time", d.s.Sub, d.s.Result)
	}
}

// TestAdoptionBetweenCommands: the end of a command was recorded, the next was not yet begun.
func TestAdoptionBetweenCommands(t *testing.T) {
	d := inState(t, startPre)
	d.cut = true
	d.control = false
	d.feed(evExit{role: roleControl, exit: exitStatus{exitExited, 0}})
	d = d.successor()
	d.feed(evAdopted{})
	d.is(startPre)
	d.did("run b")
	d = inState(t, stopping)
	d.s.Control, d.control = pidRef{}, false
	d.main = false
	d = d.successor()
	d.feed(evAdopted{main: exitStatus{exitExited, 0}})
	d.is(stopping)
	d.did("run x")
	d.answered("")
}

// ---- the history

// told is the history in few words.
func (d *driver) told() string {
	var list []string
	for i := range d.s.events {
		e := &d.s.events[i]
		words := []string{e.Kind}
		for _, w := range []string{e.By, e.For, e.Result} {
			if w != "" {
				words = append(words, w)
			}
		}
		if e.Exit != (exitStatus{}) {
			words = append(words, exitText(e.Exit))
		}
		if e.Count > 0 {
			words = append(words, fmt.Sprintf("%d after %dms", e.Count, e.Delay))
		}
		if e.Late {
			words = append(words, "late")
		}
		if e.Alone {
			words = append(words, "alone")
		}
		if e.Text != "" {
			words = append(words, "("+e.Text+")")
		}
		list = append(list, strings.Join(words, " "))
	}
	return strings.Join(list, "; ")
}

func TestEvents(t *testing.T) {
	const up = "start user; ready; "
	for _, c := range []struct{ name, unit, events, told string }{
		{"a start", "", "start", "start user; ready"},
		{"a start that is not through", `Type="notify"`, "start", "start user"},
		{"a stop", "", "start; stop", up + "stop user; exit user success was killed by SIGTERM"},
		{"a stop of what is down", "", "stop", ""},
		{"a stop that is asked twice", "", "start; deaf; stop; stop; timeout", up + "stop user; failed policy timeout (did not stop within 1m30s (TimeoutStopSec)); sigkill policy; exit user signal was killed by SIGKILL"},
		{"a restart", "", "start; restart", up + "restart user; exit user success was killed by SIGTERM; start user; ready"},
		{"a crash", `Restart="no"`, "start; main exits 3", up + "exit service exit-code exited with status 3"},
		{"a clean end", "", "start; main exits 0", up + "exit service success exited with status 0"},
		{"a crash and a restart", `Restart="on-failure";RestartSec="250ms"`, "start; main dies of SEGV; timeout; main exits 1; timeout",
			up + "exit service signal was killed by SIGSEGV; start policy 1 after 250ms (Restart=on-failure); ready; exit service exit-code exited with status 1; start policy 2 after 250ms (Restart=on-failure); ready"},
		{"a forced restart", `Restart="no";RestartForceExitStatus=[3];RestartSec=1`, "start; main exits 3; timeout",
			up + "exit service exit-code exited with status 3; start policy 1 after 1000ms (RestartForceExitStatus); ready"},
		{"a stop within the delay", `Restart="always";RestartSec=1`, "start; main exits 0; stop", up + "exit service success exited with status 0; stop user"},
		{"a start within the delay", `Restart="always";RestartSec=1`, "start; main exits 0; start", up + "exit service success exited with status 0; start user; ready"},
		{"the start limit", `Restart="always";RestartSec=1;StartLimitBurst=1;StartLimitIntervalSec=10`, "start; main exits 0; timeout",
			up + "exit service success exited with status 0; failed policy start-limit-hit (started 1 times within 10s (StartLimitBurst))"},
		{"a start that takes too long", `Type="notify";TimeoutStartSec=5`, "start; timeout",
			"start user; failed policy timeout (did not start within 5s (TimeoutStartSec, in start)); exit policy success was killed by SIGTERM"},
		{"a run that takes too long", `RuntimeMaxSec=5`, "start; timeout", up + "failed policy timeout (ran for 5s (RuntimeMaxSec)); exit policy success was killed by SIGTERM"},
		{"a broken protocol", `Type="notify"`, "start; main exits 0", "start user; exit service success exited with status 0; failed service protocol (main process ended before READY=1)"},
		{"a hook that fails", `ExecStartPre="a"`, "start; command exits 1", "start user; failed service exit-code (ExecStartPre exited with status 1)"},
		{"an end that nobody saw", "", "start; main is lost", up + "exit absent lost ended while nobody watched: its exit status is lost"},
		{"a reload", `ExecReload="r"`, "start; reload; command exits 0", up + "reload user; reloaded"},
		{"a reload that fails", `ExecReload="r"`, "start; reload; command exits 1", up + "reload user; reload-failed service (ExecReload exited with status 1)"},
		{"a reload that takes too long", `ExecReload="r";TimeoutStartSec=5`, "start; reload; timeout", up + "reload user; reload-failed policy (reload did not end within 5s (TimeoutStartSec))"},
		{"a reload of its own accord", `Type="notify"`, "start; READY; RELOADING; READY", up + "reload service; reloaded"},
		{"a stop of its own accord", `Type="notify"`, "start; READY; STOPPING; main exits 0", up + "stop service; exit service success exited with status 0"},
		{"reset-failed", "", "start; main exits 1; reset", up + "exit service exit-code exited with status 1; reset-failed user"},
		{"reset-failed of nothing", "", "reset", ""},
		{"a oneshot", "Type=\"oneshot\";ExecStart=[\"a\", \"b\"]", "start; main exits 0; main exits 0",
			"start user; exit service success exited with status 0; exit service success exited with status 0"},
		{"a oneshot that remains", "Type=\"oneshot\";ExecStart=\"a\";RemainAfterExit=true", "start; main exits 0", "start user; exit service success exited with status 0; ready"},
		{"a main process that is not known", `Type="forking"`, "start; command exits 0; not found; tree ends", up + "exit service success"},
		{"out of memory", `Restart="on-abnormal";RestartSec=1`, "start; main runs out of memory; timeout",
			up + "exit oom oom-kill was killed by SIGKILL; start policy 1 after 1000ms (Restart=on-abnormal); ready"},
	} {
		d := drive(t, events(c.unit)...)
		for _, words := range events(c.events) {
			switch words {
			case "deaf":
				d.deaf = true
			case "main runs out of memory":
				d.main = false
				d.feed(evExit{role: roleMain, exit: exitStatus{exitKilled, 9}, oom: true})
			default:
				d.act(words)
			}
		}
		if got := d.told(); got != c.told {
			t.Errorf("%s:\ngot  %s\nwant %s", c.name, got, c.told)
		}
		if d.s.Events != uint64(len(d.s.events)) {
			t.Errorf("%s: the record counts %d events of %d", c.name, d.s.Events, len(d.s.events))
		}
	}
}

// TestWhoAskedIsKept: also by a restart whose stop takes its time, and by a new shim.
func TestWhoAskedIsKept(t *testing.T) {
	d := drive(t).act("start")
	d.wait = true
	d.feed(evJob{id: "r", verb: verbRestart, unit: d.s.unit, by: "dependency", other: "web"})
	d = d.successor()
	d.feed(evDrained{})
	if got, want := d.told(), "start dependency web; ready"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestResumedStopIsToldOnce: a new daemon gives the wish another id.
func TestResumedStopIsToldOnce(t *testing.T) {
	d := drive(t).act("start")
	d.deaf = true
	d.feed(evJob{id: "a", verb: verbStop, by: "user"})
	d.feed(evJob{id: "b", verb: verbStop, by: "user"})
	d.feed(evJob{id: "c", verb: verbStop, by: "kill"})
	if got, want := d.told(), "start user; ready; stop user; stop kill"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestEventsTellWhoWasThere: daemon, shim, both or none.
func TestEventsTellWhoWasThere(t *testing.T) {
	d := drive(t, `Restart="always"`, `RestartSec=1`).act("start")
	d.now.alone = true
	d.act("main exits 1", "timeout")
	if got, want := d.told(), "start user; ready; exit service exit-code exited with status 1 alone; start policy 1 after 1000ms alone (Restart=always); ready alone"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for alone, want := range map[bool]string{false: "adopted absent; exit service exit-code exited with status 1 late", true: "adopted absent alone; exit service exit-code exited with status 1 late alone"} {
		next := d.successor()
		next.main, next.now.alone = false, false
		next.feed(evAdopted{main: exitStatus{exitExited, 1}, killed: true, alone: alone})
		if got := next.told(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	next := d.successor()
	next.feed(evAdopted{})
	if got := next.told(); got != "" {
		t.Errorf("a shim that follows one which went in good order tells %s", got)
	}
}

// TestOutOfMemoryResult: it is a failure of its own, unless the signal was ours.
func TestOutOfMemoryResult(t *testing.T) {
	oom := evExit{role: roleMain, exit: exitStatus{exitKilled, 9}, oom: true}
	for policy, want := range map[string]subState{"always": autoRestart, "on-failure": autoRestart, "on-abnormal": autoRestart, "on-abort": failed, "on-success": failed, "no": failed} {
		d := drive(t, `Restart="`+policy+`"`).act("start")
		d.main = false
		d.feed(oom)
		d.is(want, resultOOMKill)
	}
	d := drive(t).act("start")
	d.deaf, d.immortal = true, true
	d.act("stop", "timeout")
	d.main = false
	d.feed(oom)
	d.is(failed, resultTimeout)
	if strings.Contains(d.told(), "oom") {
		t.Errorf("our own SIGKILL is told as the kernel's: %s", d.told())
	}
	d = drive(t, `SuccessExitStatus=["KILL"]`).act("start")
	d.main = false
	d.feed(oom)
	d.is(dead, resultSuccess)
}

// ---- all transitions

// allEvents are what the golden table tries in every state.
var allEvents = []struct {
	name string
	ev   event
}{
	{"start", evJob{id: "j", verb: verbStart}}, {"stop", evJob{id: "j", verb: verbStop}},
	{"restart", evJob{id: "j", verb: verbRestart}}, {"reload", evJob{id: "j", verb: verbReload}},
	{"main runs", evSpawned{roleMain}}, {"command runs", evSpawned{roleControl}},
	{"main cannot run", evSpawnFailed{role: roleMain, failure: stageFailure{stageExec, 2}}},
	{"command cannot run", evSpawnFailed{role: roleControl, failure: stageFailure{stageExec, 2}}},
	{"main busy", evBusy{roleMain, []int{9}}}, {"command busy", evBusy{roleControl, []int{9}}},
	{"main exits 0", evExit{role: roleMain, exit: exitStatus{exitExited, 0}}}, {"main exits 1", evExit{role: roleMain, exit: exitStatus{exitExited, 1}}},
	{"main killed", evExit{role: roleMain, exit: exitStatus{exitKilled, 9}}}, {"main out of memory", evExit{role: roleMain, exit: exitStatus{exitKilled, 9}, oom: true}},
	{"command exits 0", evExit{role: roleControl, exit: exitStatus{exitExited, 0}}}, {"command exits 1", evExit{role: roleControl, exit: exitStatus{exitExited, 1}}},
	{"main found", evMain{ref: pidRef{PID: 77, Start: 7}}}, {"main not found", evMain{text: "none"}},
	{"READY", evNotify{msg: notifyMessage{Ready: true}}}, {"RELOADING", evNotify{msg: notifyMessage{Reloading: true}}},
	{"STOPPING", evNotify{msg: notifyMessage{Stopping: true}}}, {"MAINPID", evNotify{main: pidRef{PID: 88, Start: 8}}},
	{"tree empty", evTree{}}, {"tree left", evTree{[]int{50}}}, {"drained", evDrained{}}, {"timeout", evTimeout{}}, {"reset", evReset{}},
	{"adopted", evAdopted{}}, {"adopted, main lost", evAdopted{main: exitStatus{How: exitLost}}},
	{"adopted, command lost", evAdopted{control: exitStatus{How: exitLost}}}, {"adopted, nothing ran", evAdopted{nothingRan: true}},
}

func TestTransitions(t *testing.T) {
	var b strings.Builder
	b.WriteString("# state, event -> state (result) job: effects. Written by `go test -run TestTransitions -update`.\n")
	for _, sub := range subStates {
		var idle []string
		for _, c := range allEvents {
			d := inState(t, sub)
			d.s.Job.ID = "before"
			before := transitionText(d.s, nil)
			effects := d.s.step(d.now, c.ev)
			if text := transitionText(d.s, effects); text != before {
				fmt.Fprintf(&b, "%-13s %-21s -> %s\n", sub, c.name, text)
			} else {
				idle = append(idle, c.name)
			}
		}
		fmt.Fprintf(&b, "%-13s unmoved by: %s\n\n", sub, strings.Join(idle, "; "))
	}
	path := filepath.Join("testdata", "transitions.golden")
	if *updateDocs {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got, want := strings.Split(b.String(), "\n"), strings.Split(string(golden), "\n")
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			t.Fatalf("%s:%d differs (go test -run TestTransitions -update)\ngot  %q\nwant %q", path, i+1, at(got, i), at(want, i))
		}
	}
}

func transitionText(s *service, effects []effect) string {
	var texts []string
	for _, e := range effects {
		texts = append(texts, effectText(e))
	}
	text := fmt.Sprintf("%s (%s)", s.Sub, s.Result)
	if s.Job.ID == "j" {
		text += strings.TrimRight(" "+s.Job.Verb+" "+s.Job.Outcome, " ")
	} else if s.Job.Outcome != "" {
		text += " " + s.Job.Outcome
	}
	return strings.TrimRight(text+": "+strings.Join(texts, ", "), " :")
}

func at(list []string, i int) string {
	if i < len(list) {
		return list[i]
	}
	return ""
}

// TestWords: each sub-state belongs to one of systemd's active states.
func TestWords(t *testing.T) {
	for sub, want := range map[subState]activeState{dead: inactive, startPre: activating, autoRestart: activating, running: active, exited: active,
		reload: reloading, stopPost: deactivating, finalSigkill: deactivating, failed: failedUnit, unknown: failedUnit} {
		if got := activeOf(sub); got != want {
			t.Errorf("%s is %s, want %s", sub, got, want)
		}
	}
	if got := signalName(37) + " " + signalName(9) + " " + signalName(99); got != "SIGRTMIN+3 SIGKILL signal 99" {
		t.Error(got)
	}
}
