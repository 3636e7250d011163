// Role: the state machine of one service, and its restart and start-limit policy. Pure: no I/O, no clock, no goroutine.
// Runs in: shim (the daemon and the client use its words and its table of active states).
// Owns: the values of a service; the shim's owner goroutine calls step.
// Uses: wire, value, command, unit.

package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// subState is systemd's service sub-state. It is the only state that is stored.
type subState = string

const (
	dead         subState = "dead"
	startPre     subState = "start-pre"
	starting     subState = "start"
	startPost    subState = "start-post"
	running      subState = "running"
	exited       subState = "exited"
	autoRestart  subState = "auto-restart"
	reload       subState = "reload"
	stopping     subState = "stop"
	stopSigterm  subState = "stop-sigterm"
	stopSigkill  subState = "stop-sigkill"
	stopPost     subState = "stop-post"
	finalSigterm subState = "final-sigterm"
	finalSigkill subState = "final-sigkill"
	failed       subState = "failed"
	unknown      subState = "unknown" // there may be processes that we cannot tell from foreign ones: hands off
)

var subStates = [...]subState{dead, startPre, starting, startPost, running, exited, autoRestart, reload, stopping, stopSigterm,
	stopSigkill, stopPost, finalSigterm, finalSigkill, failed, unknown}

// activeState is systemd's unit active state: computed, never stored.
type activeState = string

const (
	inactive     activeState = "inactive"
	activating   activeState = "activating"
	active       activeState = "active"
	reloading    activeState = "reloading"
	deactivating activeState = "deactivating"
	failedUnit   activeState = "failed"
)

// activeOf maps a sub-state to the active state.
func activeOf(sub subState) activeState {
	switch sub {
	case startPre, starting, startPost, autoRestart:
		return activating
	case running, exited:
		return active
	case reload:
		return reloading
	case stopping, stopSigterm, stopSigkill, stopPost, finalSigterm, finalSigkill:
		return deactivating
	case failed, unknown:
		return failedUnit
	}
	return inactive
}

// isUp: what requires the unit may run.
func isUp(sub subState) bool {
	a := activeOf(sub)
	return a == active || a == reloading
}

// Results, as systemd's service result strings, and `lost`.
const (
	resultSuccess       = "success"
	resultExitCode      = "exit-code"
	resultSignal        = "signal"
	resultCoreDump      = "core-dump"
	resultTimeout       = "timeout"
	resultStartLimitHit = "start-limit-hit"
	resultDependency    = "dependency"
	resultResources     = "resources"
	resultProtocol      = "protocol"
	resultLost          = "lost"
	resultOOMKill       = "oom-kill"
)

// Verbs and outcomes of jobs.
const (
	verbStart   = "start"
	verbStop    = "stop"
	verbRestart = "restart"
	verbReload  = "reload"

	outcomeDone       = "done"
	outcomeFailed     = "failed"
	outcomeCanceled   = "canceled"
	outcomeDependency = "dependency"
	outcomeSkipped    = "skipped"
)

// Policy constants of the restart delay (DESIGN.md, section 5); RestartSec and RestartMaxDelaySec override them.
const (
	backoffFirst   = 100 * time.Millisecond
	backoffForgets = 10 * time.Second // a run of this length starts the growing delay anew
	shortRun       = time.Second      // with RestartSec given: runs below it count as short
	shortRunsFree  = 5                // after so many short runs the growing delay joins in
)

// lastMoment is what each step of a stop after SIGTERM gets, also when the time that a shutdown leaves is over.
const lastMoment = 250 * time.Millisecond

// drainLimit bounds the wait for the last output when something that we may not end still holds the FIFO.
const drainLimit = 2 * time.Second

// role tells the two processes of a service apart.
type role = string

const (
	roleMain    role = "main"
	roleControl role = "control"
)

// instant is the time of one step, and a random invocation id that it may use.
type instant struct {
	boot  boottime
	wall  int64 // ns
	fresh string
	alone bool // no daemon is connected
}

func (n instant) after(d time.Duration) boottime {
	if d == infinity || d <= 0 {
		return 0
	}
	return n.boot + boottime(d)
}

// ---- events

// event is something that happened to the service.
type event interface{ isEvent() }

// evJob is a wish: start, stop, restart or reload, and whose. unit is the file as it was read for start, restart and reload.
type evJob struct {
	id, verb  string
	unit      *unit
	by, other string   // as By and For of the wish
	until     boottime // likewise
}

// evSpawned: execve of the main or control process has succeeded.
type evSpawned struct{ role role }

// evSpawnFailed: no run of the program. Stage and errno as the stage reported them; text says more where there is no errno.
type evSpawnFailed struct {
	role    role
	failure stageFailure
	text    string
}

// evBusy: the spawn did not take place, because something of an earlier run is still there.
type evBusy struct {
	role role
	left []int
}

// evExit: the main or control process has ended (never before evSpawned or instead of evSpawnFailed).
type evExit struct {
	role role
	exit exitStatus
	oom  bool // the kernel has killed something of the service for lack of memory
	found
}

// found tells of an end that no shim saw.
type found struct {
	late  bool // a new shim found it
	alone bool // nor was there a daemon
}

// evMain answers findMain of a forking service: the main process, or zero with how many processes there are instead. Without having been
// asked for it tells that PIDFile names another process.
type evMain struct {
	ref  pidRef
	left int
	text string
}

// evNotify is a notify message from a process that NotifyAccess admits. main is the process that MAINPID names, if it is ours.
type evNotify struct {
	msg  notifyMessage
	main pidRef
}

// evTree: what was watched has left processes; 0 = all are gone.
type evTree struct{ left []int }

// evDrained: all output of the run is in the log.
type evDrained struct{}

// evTimeout: the deadline has passed.
type evTimeout struct{}

// evReset is reset-failed.
type evReset struct{}

// evAdopted: a new shim has taken over. It tells what became of the recorded processes meanwhile; zero = still alive or there was none.
type evAdopted struct {
	main, control exitStatus
	nothingRan    bool // the shim before us died within protocol P, and no program was started
	oom           bool // as in evExit
	alone         bool // there was no daemon either
	killed        bool // the shim before us did not end in good order
	unheard       bool // the main process lives and was to say READY=1, but the notify socket went with those who held it
}

func (evJob) isEvent()         {}
func (evSpawned) isEvent()     {}
func (evSpawnFailed) isEvent() {}
func (evBusy) isEvent()        {}
func (evExit) isEvent()        {}
func (evMain) isEvent()        {}
func (evNotify) isEvent()      {}
func (evTree) isEvent()        {}
func (evDrained) isEvent()     {}
func (evTimeout) isEvent()     {}
func (evReset) isEvent()       {}
func (evAdopted) isEvent()     {}

// ---- effects

// effect is something that the shim must do, in order.
type effect interface{ isEffect() }

// spawn starts a command by protocol P. step is its index in the list of the state.
type spawn struct {
	role role
	cmd  command
}

// scope is what a signal goes to or what is waited for.
type scope int

const (
	scopeTree scope = iota // all processes of the service
	scopeMain              // main and control process
)

// kill sends a signal; SIGCONT follows a signal other than SIGKILL.
type kill struct {
	scope  scope
	signal syscall.Signal
}

// killControl ends the control process alone.
type killControl struct{}

// watch asks for evTree when nothing is left of the scope; at once if that is so now.
type watch struct{ scope scope }

// findMain asks for evMain.
type findMain struct{}

// drain asks for evDrained. limit bounds it when processes are left on purpose.
type drain struct{ limit time.Duration }

// removePIDFile removes what a service that is over may have left, or its next start would take it for a running one.
type removePIDFile struct{ path string }

// retire renames the FIFOs away: leftovers keep them.
type retire struct{}

// quit: the service needs no shim any more.
type quit struct{}

func (spawn) isEffect()         {}
func (kill) isEffect()          {}
func (killControl) isEffect()   {}
func (watch) isEffect()         {}
func (findMain) isEffect()      {}
func (drain) isEffect()         {}
func (removePIDFile) isEffect() {}
func (retire) isEffect()        {}
func (quit) isEffect()          {}

// ---- the service

// service is the long-lived runtime object of one unit in its shim.
type service struct {
	unit *unit
	next *unit // takes the place of unit at the next start
	runRecord
	effects []effect       // of the step under way
	events  []historyEvent // not written yet; Events counts them already
}

func newService(u *unit, rec runRecord) *service {
	if rec.Sub == "" {
		rec.Sub = dead
	}
	if rec.Result == "" {
		rec.Result = resultSuccess
	}
	return &service{unit: u, runRecord: rec}
}

// step takes one event and returns what is to be done about it.
func (s *service) step(now instant, ev event) []effect {
	s.effects = nil
	switch e := ev.(type) {
	case evJob:
		s.onJob(now, e)
	case evSpawned:
		s.onSpawned(now, e)
	case evSpawnFailed:
		s.onSpawnFailed(now, e)
	case evBusy:
		s.onBusy(now, e)
	case evExit:
		s.onExit(now, e)
	case evMain:
		s.onMain(now, e)
	case evNotify:
		s.onNotify(now, e)
	case evTree:
		s.onTree(now, e)
	case evDrained:
		s.onDrained(now)
	case evTimeout:
		s.onTimeout(now)
	case evReset:
		s.onReset(now)
	case evAdopted:
		s.onAdopted(now, e)
	}
	for i := range s.events {
		if e := &s.events[i]; e.Time == 0 {
			e.Time, e.Alone = now.wall, e.Alone || now.alone
		}
	}
	return s.effects
}

// note puts an event into the history; the step that notes it stamps it.
func (s *service) note(e historyEvent) {
	s.events = append(s.events, e)
	s.Events++
}

// noteJob notes what a job asks for.
func (s *service) noteJob(kind string) {
	s.note(historyEvent{Kind: kind, By: s.Job.By, For: s.Job.For})
}

func (s *service) do(e effect) { s.effects = append(s.effects, e) }

// setState is the only place that writes Sub.
func (s *service) setState(now instant, sub subState) {
	reloads := isUp(sub) && isUp(s.Sub) // the unit has been active all the time
	if activeOf(sub) != activeOf(s.Sub) && !reloads || s.Since == 0 {
		s.Since = now.wall
	}
	s.Sub, s.Deadline, s.Step, s.Delay = sub, 0, 0, 0
}

// fail notes why the run fails; the first reason stays.
func (s *service) fail(result, reason string) {
	if s.Result != resultSuccess || result == resultSuccess {
		return
	}
	s.Result, s.Reason = result, reason
	if n := len(s.events); n > 0 && s.events[n-1].Time == 0 && s.events[n-1].Kind == eventExit && s.events[n-1].Result == result {
		return // the end of the main process is in the history, in this step
	}
	s.note(historyEvent{Kind: eventFailed, By: causeOf(result), Result: result, Text: reason})
}

func causeOf(result string) string {
	switch result {
	case resultTimeout, resultStartLimitHit:
		return causePolicy
	case resultResources:
		return causeSystem
	case resultLost:
		return causeAbsent
	case resultOOMKill:
		return causeOOM
	}
	return causeService
}

// ---- jobs

func (s *service) openJob() bool { return s.Job.ID != "" && s.Job.Outcome == "" }

func (s *service) finishJob(outcome, text string) {
	if s.openJob() {
		s.Job.Outcome, s.Job.Text = outcome, text
	}
}

func (s *service) takeJob(e evJob) {
	s.Job = jobRecord{ID: e.id, Verb: e.verb, By: e.by, For: e.other, Until: e.until}
	if e.unit != nil && e.verb != verbReload {
		s.next = e.unit
	}
}

func (s *service) onJob(now instant, e evJob) {
	if e.id == s.Job.ID && e.id != "" { // the same wish, read again
		s.hurry(now, e.until)
		return
	}
	switch e.verb {
	case verbStart:
		s.onStart(now, e)
	case verbStop:
		s.onStop(now, e)
	case verbRestart:
		s.onRestart(now, e)
	case verbReload:
		s.onReload(now, e)
	}
}

func (s *service) onStart(now instant, e evJob) {
	s.takeJob(e)
	switch s.Sub {
	case dead, failed, autoRestart:
		s.beginByHand(now)
	case unknown: // a start must not end, nor double, what may be there; stop and restart may
		s.finishJob(outcomeFailed, "cannot start: "+s.Reason)
	case startPre, starting, startPost:
		s.next = nil // the start under way answers this job
	case running, exited, reload:
		s.next = nil
		s.finishJob(outcomeDone, "already active")
		s.quitIfIdle()
	case stopping, stopSigterm, stopSigkill, stopPost, finalSigterm, finalSigkill:
		s.Job.Verb = verbRestart // starts when the stop is through
	}
}

func (s *service) onStop(now instant, e evJob) {
	s.takeEnding(e, eventStop)
	switch s.Sub {
	case dead, failed:
		s.finishJob(outcomeDone, "already inactive")
		s.do(quit{})
	case autoRestart:
		s.Result, s.Reason = resultSuccess, "stopped during the restart delay"
		s.enterInactive(now, dead)
		s.finishJob(outcomeDone, "")
		s.do(quit{})
	case startPre, starting, startPost, reload, unknown:
		s.enterSignal(now, stopSigterm)
	case running, exited:
		s.enterStop(now)
	case stopping, stopSigterm, stopSigkill, stopPost, finalSigterm, finalSigkill:
		s.boundStep(now) // on its way; the job is answered at the end
	}
}

// hurry: a shutdown leaves less time for the stop under way.
func (s *service) hurry(now instant, until boottime) {
	if s.openJob() && until != 0 && (s.Job.Until == 0 || until < s.Job.Until) {
		s.Job.Until = until
		s.boundStep(now)
	}
}

// boundStep lets the present step of a stop take no longer than a shutdown leaves.
func (s *service) boundStep(now instant) {
	if activeOf(s.Sub) != deactivating {
		return
	}
	if by := s.stopBy(now); s.Deadline == 0 || by != 0 && by < s.Deadline {
		s.Deadline = by
	}
}

// stopBy is when the present step of a stop has to end: after TimeoutStopSec, or with the time that a shutdown leaves for the whole stop.
func (s *service) stopBy(now instant) boottime {
	by, until := now.after(s.unit.TimeoutStopSec), s.Job.Until
	if until == 0 || !s.openJob() {
		return by
	}
	if s.Sub != stopping && s.Sub != stopSigterm {
		until = max(until, now.after(lastMoment))
	}
	if by == 0 || until < by {
		return until
	}
	return by
}

// stopLimit tells what stopBy was.
func (s *service) stopLimit(now instant) string {
	if s.openJob() && s.Job.Until != 0 && now.boot >= s.Job.Until {
		return "the time that the shutdown leaves"
	}
	return fmt.Sprintf("%s (TimeoutStopSec)", s.unit.TimeoutStopSec)
}

// takeEnding takes a job that ends what is there, and notes it: not again one that a new daemon resumes under another id.
func (s *service) takeEnding(e evJob, kind string) {
	resumed := s.openJob() && s.Job.Verb == e.verb && s.Job.By == e.by && s.Job.For == e.other
	s.takeJob(e)
	begins := kind == eventRestart && s.Sub == autoRestart
	if s.Sub != dead && s.Sub != failed && !resumed && !begins {
		s.noteJob(kind)
	}
}

func (s *service) onRestart(now instant, e evJob) {
	s.takeEnding(e, eventRestart)
	switch s.Sub {
	case dead, failed, autoRestart:
		s.beginByHand(now)
	case startPre, starting, startPost, reload, unknown:
		s.enterSignal(now, stopSigterm)
	case running, exited:
		s.enterStop(now)
	case stopping, stopSigterm, stopSigkill, stopPost, finalSigterm, finalSigkill:
		// starts when the stop is through
	}
}

func (s *service) onReload(now instant, e evJob) {
	switch s.Sub {
	case running, exited:
		s.takeJob(e)
		if e.unit != nil {
			s.unit = e.unit
		}
		if len(s.unit.ExecReload) == 0 {
			s.finishJob(outcomeFailed, "the unit has no ExecReload")
			s.quitIfIdle()
			return
		}
		s.noteJob(eventReload)
		s.setState(now, reload)
		s.runControl(now, s.unit.ExecReload)
	case dead, startPre, starting, startPost, autoRestart, reload, stopping, stopSigterm, stopSigkill, stopPost,
		finalSigterm, finalSigkill, failed, unknown:
		if s.openJob() {
			s.Job.ID = e.id // the job under way keeps its verb, or a stop would be forgotten; its end answers this one too
			return
		}
		s.takeJob(e)
		s.finishJob(outcomeFailed, "cannot reload: the unit is "+s.Sub)
		s.quitIfIdle()
	}
}

func (s *service) onReset(now instant) {
	if s.Sub == failed || s.Restarts > 0 || s.ShortRuns > 0 || len(s.Starts) > 0 {
		s.note(historyEvent{Kind: eventReset, By: "user"})
	}
	s.Restarts, s.ShortRuns, s.Starts = 0, 0, nil
	if s.Sub == failed {
		s.Result, s.Reason, s.Invocation = resultSuccess, "", "" // no end of a run: SuccessAction is not meant
		s.setState(now, dead)
		s.do(quit{})
	}
}

// ---- starting

// beginByHand starts because somebody asked: limits and counters begin anew.
func (s *service) beginByHand(now instant) {
	s.Restarts, s.ShortRuns, s.Starts = 0, 0, nil
	s.begin(now, historyEvent{Kind: eventStart, By: s.Job.By, For: s.Job.For})
}

// begin opens a new run; why is its event.
func (s *service) begin(now instant, why historyEvent) {
	if s.next != nil {
		s.unit, s.next = s.next, nil
	}
	if s.openJob() && s.Job.Verb == verbRestart {
		s.Job.Verb = verbStart // its stop is done
	}
	last := s.Exit
	s.Exit, s.StatusText, s.Left, s.Killed, s.Unheard, s.Reason = exitStatus{}, "", nil, false, false, ""
	s.Main, s.Control, s.Spawning, s.Orphans = pidRef{}, pidRef{}, "", nil
	s.Result = resultSuccess
	s.RunBegan = now.boot
	if !s.startAllowed(now) {
		s.Exit = last // that is how it ended
		s.fail(resultStartLimitHit, fmt.Sprintf("started %d times within %s (StartLimitBurst)", len(s.Starts), s.unit.StartLimitIntervalSec))
		s.enterInactive(now, failed)
		s.finishJob(outcomeFailed, s.Reason)
		s.do(quit{})
		return
	}
	s.note(why)
	s.Invocation, s.Started = now.fresh, 0
	s.setState(now, startPre)
	if !s.runControl(now, s.unit.ExecStartPre) {
		s.enterStart(now)
	}
}

// startAllowed counts this start against StartLimitBurst.
func (s *service) startAllowed(now instant) bool {
	if s.unit.StartLimitBurst <= 0 {
		return true
	}
	from := now.boot - boottime(s.unit.StartLimitIntervalSec)
	s.Starts = slices.DeleteFunc(s.Starts, func(t boottime) bool { return t <= from })
	if len(s.Starts) >= s.unit.StartLimitBurst {
		return false
	}
	s.Starts = append(s.Starts, now.boot)
	return true
}

func (s *service) enterStart(now instant) {
	s.setState(now, starting)
	s.RunBegan = now.boot
	if len(s.unit.ExecStart) == 0 { // oneshot with nothing but ExecStop
		s.enterStartPost(now)
		return
	}
	s.run(now, s.startRole(), s.unit.ExecStart[0])
}

// startRole: the parent of a forking service is a control process; what it leaves becomes the main process.
func (s *service) startRole() role {
	if s.unit.Type == typeForking {
		return roleControl
	}
	return roleMain
}

// presentRole is that of the commands of the present state.
func (s *service) presentRole() role {
	if s.Sub == starting {
		return s.startRole()
	}
	return roleControl
}

func (s *service) enterStartPost(now instant) {
	s.setState(now, startPost)
	s.Started, s.RunBegan = now.wall, now.boot // RuntimeMaxSec counts from here
	if !s.runControl(now, s.unit.ExecStartPost) {
		s.enterRunning(now)
	}
}

// enterRunning is where a start, a reload or start-post ends: what is there decides what comes.
func (s *service) enterRunning(now instant) {
	switch {
	case s.Result != resultSuccess && s.Sub == startPost: // the start has failed, so ExecStop is not run
		s.enterSignal(now, stopSigterm)
	case s.Result != resultSuccess:
		s.enterStop(now)
	case !s.Main.zero():
		s.noteReady()
		s.setState(now, running)
		s.Deadline = s.runtimeDeadline()
		s.finishJob(outcomeDone, "")
	case s.unit.Type == typeForking && s.Exit == (exitStatus{}): // no main process known: its tree stands for it
		s.noteReady()
		s.setState(now, running)
		s.Deadline = s.runtimeDeadline()
		s.finishJob(outcomeDone, "main process unknown")
		s.do(watch{scopeTree})
	case s.unit.RemainAfterExit:
		s.noteReady()
		s.enterExited(now)
	default:
		s.enterStop(now)
	}
}

const unheardText = "taken for ready when TimeoutStartSec was over, for nobody could hear it for a while"

// noteReady notes that a start is through; a reload comes the same way.
func (s *service) noteReady() {
	if s.Sub == startPost {
		e := historyEvent{Kind: eventReady, PID: s.Main.PID}
		if s.Unheard {
			e.Text, s.Unheard = unheardText, false
		}
		s.note(e)
	}
}

// enterExited: active without a process. The job is answered, and the shim goes, when the last output is in the log.
func (s *service) enterExited(now instant) {
	s.setState(now, exited)
	s.do(drain{drainLimit})
}

func (s *service) runtimeDeadline() boottime {
	return instant{boot: s.RunBegan}.after(s.unit.RuntimeMaxSec)
}

// runControl starts the first command of a list; false = there is none.
func (s *service) runControl(now instant, list []command) bool {
	if len(list) == 0 {
		return false
	}
	s.run(now, roleControl, list[0])
	return true
}

// run starts a command of the present state. Each has its full timeout, as in systemd (man 5 systemd.service, TimeoutStopSec=).
func (s *service) run(now instant, r role, cmd command) {
	if activeOf(s.Sub) == deactivating {
		s.Deadline = s.stopBy(now)
	} else {
		s.Deadline = now.after(s.unit.TimeoutStartSec)
	}
	s.do(spawn{r, cmd})
}

// commands is the list that the present state works through.
func (s *service) commands() []command {
	switch s.Sub {
	case startPre:
		return s.unit.ExecStartPre
	case starting:
		return s.unit.ExecStart
	case startPost:
		return s.unit.ExecStartPost
	case reload:
		return s.unit.ExecReload
	case stopping:
		return s.unit.ExecStop
	case stopPost:
		return s.unit.ExecStopPost
	}
	return nil
}

// command is the one that runs or ran last in this state.
func (s *service) command() (command, bool) {
	if l := s.commands(); s.Step < len(l) {
		return l[s.Step], true
	}
	return command{}, false
}

// nextCommand starts the next command of the state's list; false = that was the last.
func (s *service) nextCommand(now instant, r role) bool {
	list := s.commands()
	if s.Step+1 >= len(list) {
		return false
	}
	s.Step++
	s.run(now, r, list[s.Step])
	return true
}

// spawned: protocol P is over for this role.
func (s *service) spawned(r role) {
	if s.Spawning == r {
		s.Spawning = ""
	}
}

func (s *service) onSpawned(now instant, e evSpawned) {
	s.spawned(e.role)
	if e.role != roleMain {
		return
	}
	switch s.Sub {
	case starting:
		if s.unit.Type == typeSimple || s.unit.Type == typeExec {
			s.enterStartPost(now)
		}
	case dead, startPre, startPost, running, exited, autoRestart, reload, stopping, stopSigterm, stopSigkill, stopPost,
		finalSigterm, finalSigkill, failed, unknown:
		// a stop has overtaken the start
	}
}

func (s *service) onSpawnFailed(now instant, e evSpawnFailed) {
	s.spawned(e.role)
	cmd, wanted := s.command()
	if e.role == roleMain {
		s.Main, wanted = pidRef{}, s.Sub == starting
	} else {
		s.Control = pidRef{}
	}
	if !wanted { // a stop has overtaken the start: that nothing ran is as it should be
		return
	}
	if e.failure.Stage == "" {
		s.endRole(now, e.role, resultResources, e.text)
		return
	}
	reason := fmt.Sprintf("cannot execute %s: %s", cmd.Path, syscall.Errno(e.failure.Errno))
	switch {
	case e.failure.Stage == stageChdir && s.unit.WorkingDirectory != "":
		reason = fmt.Sprintf("cannot enter WorkingDirectory %s: %s", s.unit.WorkingDirectory, syscall.Errno(e.failure.Errno))
	case e.failure.Stage != stageExec:
		reason = fmt.Sprintf("cannot set up %s: %s", e.failure.Stage, syscall.Errno(e.failure.Errno))
	}
	if e.text != "" {
		reason = e.text
	}
	exit := exitStatus{exitExited, e.failure.Stage.exitCode()}
	if e.role == roleMain {
		s.Exit = exit
	}
	if cmd.IgnoreFailure {
		s.endRole(now, e.role, resultSuccess, "")
		return
	}
	s.endRole(now, e.role, resultExitCode, fmt.Sprintf("%s (%d/%s)", reason, exit.Status, strings.ToUpper(string(e.failure.Stage))))
}

// onBusy: a start fails whose way is not clear, and a command of another step is left out.
func (s *service) onBusy(now instant, e evBusy) {
	s.spawned(e.role)
	reason := "processes of an earlier run are left: " + pidList(e.left)
	switch s.Sub {
	case startPre, starting, startPost, stopping:
		s.Left = e.left
		s.fail(resultResources, reason)
		s.enterSignal(now, stopSigterm)
	case reload:
		s.endReload(now, resultResources, reason)
	case stopPost:
		s.fail(resultResources, reason)
		s.enterFinal(now)
	case dead, running, exited, autoRestart, stopSigterm, stopSigkill, finalSigterm, finalSigkill, failed, unknown:
		// a stop has overtaken it
	}
}

func (s *service) onMain(now instant, e evMain) {
	switch {
	case (s.Sub == running || s.Sub == reload) && !e.ref.zero(): // it has put another one into its place
		s.Main = e.ref
	case s.Sub != starting || s.unit.Type != typeForking:
		// an answer that came late
	case !e.ref.zero():
		s.Main = e.ref
		s.enterStartPost(now)
	case s.unit.PIDFile == "": // what is left of the tree stands for it; if nothing is, the run is over
		s.enterStartPost(now)
	default:
		s.fail(resultProtocol, e.text)
		s.enterSignal(now, stopSigterm)
	}
}

func (s *service) onNotify(now instant, e evNotify) {
	if e.msg.HasStatus {
		s.StatusText = e.msg.Status
	}
	if !e.main.zero() && s.mayChangeMain() {
		s.Main = e.main
	}
	switch s.Sub {
	case starting:
		if e.msg.Ready && s.unit.Type == typeNotify {
			s.Unheard = false
			s.enterStartPost(now)
		}
	case running:
		switch {
		case e.msg.Stopping:
			s.Reason = "the service said that it is stopping"
			s.note(historyEvent{Kind: eventStop, By: causeService})
			s.setState(now, stopSigterm)
			s.Deadline = s.stopBy(now)
			s.do(watch{scopeMain})
		case e.msg.Reloading && !e.msg.Ready: // else it is done with it already
			s.note(historyEvent{Kind: eventReload, By: causeService})
			s.setState(now, reload)
			s.Deadline = now.after(s.unit.TimeoutStartSec)
		}
	case reload:
		if e.msg.Ready && s.Control.zero() {
			s.note(historyEvent{Kind: eventReloaded})
			s.finishJob(outcomeDone, "")
			s.enterRunning(now)
		}
	case dead, startPre, startPost, exited, autoRestart, stopping, stopSigterm, stopSigkill, stopPost, finalSigterm,
		finalSigkill, failed, unknown:
		// only the status text counts here
	}
}

// mayChangeMain: MAINPID of sd_notify(3) counts in these states.
func (s *service) mayChangeMain() bool {
	switch s.Sub {
	case starting, startPost, running, reload, stopping, stopSigterm:
		return true
	}
	return false
}

// ---- ends of processes

func (s *service) onExit(now instant, e evExit) {
	result, reason := s.judge(e)
	if e.role == roleMain {
		ev := historyEvent{Kind: eventExit, Exit: e.exit, Result: result, PID: s.Main.PID, Late: e.late, Alone: e.alone}
		ev.By, ev.For = s.endedBy(e, result)
		s.note(ev)
		s.Main, s.Exit = pidRef{}, e.exit
	} else {
		s.Control = pidRef{}
	}
	s.spawned(e.role)
	s.endRole(now, e.role, result, reason)
}

// endedBy is the cause of the end of the main process.
func (s *service) endedBy(e evExit, result string) (by, other string) {
	ending := activeOf(s.Sub) == deactivating
	switch {
	case result == resultOOMKill:
		return causeOOM, ""
	case e.exit.How == exitLost:
		return causeAbsent, ""
	case ending && s.openJob() && (s.Job.Verb == verbStop || s.Job.Verb == verbRestart):
		return s.Job.By, s.Job.For
	case ending && s.Result != resultSuccess:
		return causePolicy, ""
	}
	return causeService, ""
}

// judge tells what an exit means: result and one line.
func (s *service) judge(e evExit) (result, reason string) {
	cmd, _ := s.command()
	if e.role == roleMain && len(s.unit.ExecStart) > 0 && s.Sub != starting {
		cmd = s.unit.ExecStart[len(s.unit.ExecStart)-1]
	}
	if cmd.IgnoreFailure || s.cleanExit(e) {
		return resultSuccess, ""
	}
	what := "main process"
	if e.role == roleControl {
		what = s.keyOfState()
	}
	if e.oom && s.Sub != stopSigkill && s.Sub != finalSigkill { // there the signal was ours
		return resultOOMKill, what + " was killed by the kernel for lack of memory"
	}
	return resultOf(e.exit), what + " " + exitText(e.exit)
}

// keyOfState names the Exec key whose commands the present state runs.
func (s *service) keyOfState() string {
	switch s.Sub {
	case startPre:
		return "ExecStartPre"
	case startPost:
		return "ExecStartPost"
	case reload:
		return "ExecReload"
	case stopping:
		return "ExecStop"
	case stopPost:
		return "ExecStopPost"
	}
	return "ExecStart"
}

// cleanExit: exit code 0, what SuccessExitStatus lists, or the death of a daemon by HUP, INT, TERM or PIPE: no command of an Exec key but
// ExecStart is one, nor is a oneshot (systemd, src/core/service.c, service_sigchld_event).
func (s *service) cleanExit(e evExit) bool {
	x, set := e.exit, s.unit.SuccessExitStatus
	switch x.How {
	case exitExited:
		return x.Status == 0 || slices.Contains(set.Codes, x.Status)
	case exitKilled:
		sig := syscall.Signal(x.Status)
		if slices.Contains(set.Signals, sig) {
			return true
		}
		if s.unit.Type == typeOneshot || e.role == roleControl && s.Sub != starting {
			return false
		}
		return sig == syscall.SIGHUP || sig == syscall.SIGINT || sig == syscall.SIGTERM || sig == syscall.SIGPIPE
	}
	return false
}

func resultOf(x exitStatus) string {
	switch x.How {
	case exitKilled:
		return resultSignal
	case exitDumped:
		return resultCoreDump
	case exitLost:
		return resultLost
	}
	return resultExitCode
}

// endRole goes on after the end of the main or control process, or after it could not be started.
func (s *service) endRole(now instant, r role, result, reason string) {
	if r == roleMain {
		s.endMain(now, result, reason)
		return
	}
	s.endControl(now, result, reason)
}

func (s *service) endMain(now instant, result, reason string) {
	switch s.Sub {
	case starting:
		s.endMainInStart(now, result, reason)
	case startPost, reload:
		s.fail(result, reason)
		s.noteMainEnd()
		if s.Control.zero() && s.Spawning == "" {
			s.endReloadJob()
			s.enterRunning(now)
		}
	case stopping:
		s.fail(result, reason)
	case running:
		s.fail(result, reason)
		s.noteMainEnd()
		s.enterAfterMain(now)
	case stopSigterm, stopSigkill:
		s.failUnlessAsked(result, reason)
	case dead, failed: // KillMode=none had left it
		s.quitIfIdle()
	case startPre, exited, autoRestart, stopPost, finalSigterm, finalSigkill, unknown:
		// nothing waits for it here
	}
}

// noteMainEnd tells why the service goes down, also when it ended well.
func (s *service) noteMainEnd() {
	if s.Reason == "" {
		s.Reason = "main process " + exitText(s.Exit)
	}
}

// endReloadJob: the main process has ended under a reload.
func (s *service) endReloadJob() {
	if s.Job.Verb == verbReload {
		s.finishJob(outcomeFailed, s.Reason)
	}
}

// failUnlessAsked: how a process ends that we have just told to end is no news, unless it did so uncleanly by itself.
func (s *service) failUnlessAsked(result, reason string) {
	asked := s.unit.KillSignal
	if s.Sub == stopSigkill {
		asked = syscall.SIGKILL
	}
	if result == resultSignal && s.Exit.Status == int(asked) {
		return
	}
	s.fail(result, reason)
}

// enterAfterMain: the main process has ended by itself.
func (s *service) enterAfterMain(now instant) {
	if s.Result == resultSuccess && s.unit.RemainAfterExit {
		s.enterExited(now)
		return
	}
	s.enterStop(now)
}

func (s *service) endMainInStart(now instant, result, reason string) {
	s.fail(result, reason)
	switch {
	case s.Result != resultSuccess:
		s.enterSignal(now, stopSigterm)
	case s.unit.Type == typeOneshot:
		if !s.nextCommand(now, roleMain) {
			s.enterStartPost(now)
		}
	case s.unit.Type == typeNotify:
		s.fail(resultProtocol, "main process ended before READY=1")
		s.enterSignal(now, stopSigterm)
	default: // adopted in the middle of its start, and ended cleanly
		s.enterStartPost(now)
	}
}

func (s *service) endControl(now instant, result, reason string) {
	switch s.Sub {
	case startPre:
		s.endStep(now, result, reason, s.enterStart)
	case starting:
		s.fail(result, reason)
		if s.Result != resultSuccess {
			s.enterSignal(now, stopSigterm)
			return
		}
		s.do(findMain{})
	case startPost:
		s.endStep(now, result, reason, s.enterRunning)
	case reload:
		s.endReload(now, result, reason)
	case stopping:
		s.fail(result, reason)
		if result != resultSuccess || !s.nextCommand(now, roleControl) {
			s.enterSignal(now, stopSigterm)
		}
	case stopPost:
		s.fail(result, reason)
		if result != resultSuccess || !s.nextCommand(now, roleControl) {
			s.enterFinal(now)
		}
	case dead, failed: // KillMode=none had left it
		s.quitIfIdle()
	case running, exited, autoRestart, stopSigterm, stopSigkill, finalSigterm, finalSigkill, unknown:
		// it was told to end
	}
}

// endStep goes to the next command of a start, or on to the next state, or fails the start.
func (s *service) endStep(now instant, result, reason string, onward func(instant)) {
	s.fail(result, reason)
	switch {
	case result != resultSuccess:
		s.enterSignal(now, stopSigterm)
	case !s.nextCommand(now, roleControl):
		onward(now)
	}
}

// endReload: a reload that fails leaves the service running.
func (s *service) endReload(now instant, result, reason string) {
	if result == resultSuccess && s.nextCommand(now, roleControl) {
		return
	}
	if result == resultSuccess {
		s.note(historyEvent{Kind: eventReloaded})
		s.finishJob(outcomeDone, "")
	} else {
		s.noteNotReloaded(causeOf(result), reason)
		s.finishJob(outcomeFailed, reason)
	}
	s.enterRunning(now)
}

func (s *service) noteNotReloaded(cause, reason string) {
	s.note(historyEvent{Kind: eventNotReload, By: cause, Text: reason})
}

// ---- stopping

func (s *service) enterStop(now instant) {
	s.setState(now, stopping)
	if !s.runControl(now, s.unit.ExecStop) {
		s.enterSignal(now, stopSigterm)
	}
}

// enterSignal ends the processes of the service: stopSigterm, then stopSigkill. KillMode=none leaves them as they are.
func (s *service) enterSignal(now instant, sub subState) {
	s.setState(now, sub)
	s.Spawning = ""
	s.Deadline = s.stopBy(now)
	if s.unit.KillMode == killNone {
		s.enterStopPost(now)
		return
	}
	s.signalFor(sub)
}

// signalFor carries out KillMode for one of the four signal states.
func (s *service) signalFor(sub subState) {
	force := sub == stopSigkill || sub == finalSigkill
	sig := s.unit.KillSignal
	if force {
		sig = syscall.SIGKILL
	}
	to, until := scopeTree, scopeTree
	switch mode := s.unit.KillMode; {
	case mode == killProcess:
		to, until = scopeMain, scopeMain
	case mode == killMixed && !force:
		to = scopeMain
		if s.unit.SendSIGKILL { // which ends the rest as soon as the main process is gone
			until = scopeMain
		}
	}
	s.do(kill{to, sig})
	s.do(watch{until})
}

func (s *service) onTree(now instant, e evTree) {
	s.Left = e.left
	if len(e.left) > 0 {
		return
	}
	killRest := s.unit.KillMode == killMixed && s.unit.SendSIGKILL
	switch s.Sub {
	case stopSigterm:
		if killRest {
			s.enterSignal(now, stopSigkill) // at once
			return
		}
		s.enterStopPost(now)
	case stopSigkill:
		s.enterStopPost(now)
	case finalSigterm:
		if killRest {
			s.enterFinalSigkill(now)
			return
		}
		s.do(drain{s.drainLimit()})
	case finalSigkill:
		s.do(drain{s.drainLimit()})
	case starting:
		if s.unit.Type == typeForking && s.Control.zero() { // nobody is left to write PIDFile
			s.do(findMain{})
		}
	case running:
		if s.Main.zero() { // forking, main process never known
			s.note(historyEvent{Kind: eventExit, By: causeService, Result: resultSuccess})
			s.enterAfterMain(now)
		}
	case exited:
		s.quitIfIdle()
	case dead, startPre, startPost, autoRestart, reload, stopping, stopPost, failed, unknown:
		// an answer that came late
	}
}

func (s *service) drainLimit() time.Duration {
	if s.leavesProcesses() || len(s.Left) > 0 {
		return drainLimit
	}
	return 0
}

// leavesProcesses: this KillMode may leave processes on purpose.
func (s *service) leavesProcesses() bool {
	return s.unit.KillMode == killProcess || s.unit.KillMode == killNone
}

func (s *service) enterStopPost(now instant) {
	s.setState(now, stopPost)
	if !s.runControl(now, s.unit.ExecStopPost) {
		s.enterFinal(now)
	}
}

// enterFinal ends what is still there after ExecStopPost, then waits for the last output.
func (s *service) enterFinal(now instant) {
	s.setState(now, finalSigterm)
	s.Deadline = s.stopBy(now)
	s.signalFinal()
}

// signalFinal signals no process that SIGKILL could not end, or that is to live on.
func (s *service) signalFinal() {
	if s.unit.KillMode == killNone || s.Control.zero() && (s.leavesProcesses() || len(s.Left) > 0) {
		s.do(drain{s.drainLimit()})
		return
	}
	s.signalFor(s.Sub)
}

func (s *service) enterFinalSigkill(now instant) {
	s.setState(now, finalSigkill)
	s.Deadline = s.stopBy(now)
	s.signalFor(finalSigkill)
}

func (s *service) onDrained(now instant) {
	switch s.Sub {
	case finalSigterm, finalSigkill:
		s.enterDead(now)
	case exited:
		s.finishJob(outcomeDone, "")
		s.do(watch{scopeTree})
	case dead, startPre, starting, startPost, running, autoRestart, reload, stopping, stopSigterm, stopSigkill, stopPost,
		failed, unknown:
		// an answer that came late
	}
}

// enterDead closes the run: answers the job, and decides what comes next.
func (s *service) enterDead(now instant) {
	s.Main, s.Control, s.Spawning = pidRef{}, pidRef{}, "" // a process that has not reported by now is none of this run
	if s.unit.PIDFile != "" {
		s.do(removePIDFile{s.unit.PIDFile})
	}
	if s.leavesProcesses() || len(s.Left) > 0 {
		s.Retire = true
		s.do(retire{})
	}
	job := s.Job
	if !s.openJob() {
		job.Verb = ""
	}
	switch job.Verb {
	case verbRestart:
		s.beginByHand(now)
		return
	case verbStop:
		s.enterEnd(now)
		s.finishStop()
		s.do(quit{})
		return
	case verbStart:
		s.finishStart()
	case verbReload:
		s.finishJob(outcomeFailed, s.Reason)
	}
	if s.shouldRestart() {
		s.enterAutoRestart(now)
		return
	}
	s.enterEnd(now)
	s.do(quit{})
}

// enterEnd: no next start.
func (s *service) enterEnd(now instant) {
	if s.Result == resultSuccess {
		s.enterInactive(now, dead)
		return
	}
	s.enterInactive(now, failed)
}

func (s *service) enterInactive(now instant, sub subState) { s.setState(now, sub) }

func (s *service) finishStop() {
	switch {
	case len(s.Left) > 0:
		s.finishJob(outcomeFailed, "processes are left: "+pidList(s.Left))
	case s.Killed:
		s.finishJob(outcomeDone, "needed SIGKILL")
	default:
		s.finishJob(outcomeDone, "")
	}
}

// finishStart: the run is over before the start was answered: a oneshot that is done, or a failed attempt.
func (s *service) finishStart() {
	switch {
	case s.Result == resultSuccess && s.Started != 0:
		s.finishJob(outcomeDone, "")
	case s.shouldRestart():
		s.finishJob(outcomeFailed, s.Reason+"; Restart="+string(s.unit.Restart)+" goes on trying")
	default:
		s.finishJob(outcomeFailed, s.Reason)
	}
}

// ---- restart policy

// shouldRestart follows the order of systemd's decision (man 5 systemd.service, Restart=). A stop job never comes here.
func (s *service) shouldRestart() bool {
	if s.Exit != (exitStatus{}) && inExitSet(s.unit.RestartPreventExitStatus, s.Exit) {
		return false
	}
	if s.unit.Type == typeOneshot && s.Result == resultSuccess {
		return false
	}
	if s.Exit != (exitStatus{}) && inExitSet(s.unit.RestartForceExitStatus, s.Exit) {
		return true
	}
	return restartTable(s.unit.Restart, s.Result)
}

func inExitSet(set exitSet, x exitStatus) bool {
	if x.How == exitExited {
		return slices.Contains(set.Codes, x.Status)
	}
	return (x.How == exitKilled || x.How == exitDumped) && slices.Contains(set.Signals, syscall.Signal(x.Status))
}

// restartTable is the table of man 5 systemd.service. resources, protocol and lost count as failures.
func restartTable(p restartPolicy, result string) bool {
	switch p {
	case restartAlways:
		return true
	case restartOnSuccess:
		return result == resultSuccess
	case restartOnFailure:
		return result != resultSuccess
	case restartOnAbnormal:
		return result != resultSuccess && result != resultExitCode
	case restartOnAbort:
		return result == resultSignal || result == resultCoreDump
	}
	return false // no; on-watchdog, as long as there is no watchdog
}

func (s *service) enterAutoRestart(now instant) {
	delay := s.restartDelay(now)
	s.setState(now, autoRestart)
	s.Deadline = now.boot + boottime(max(delay, 1)) // 0 would mean: no deadline
	s.Delay = boottime(delay)
}

// restartSetting is what the automatic start after this run goes back to.
func (s *service) restartSetting() string {
	if restartTable(s.unit.Restart, s.Result) {
		return "Restart=" + string(s.unit.Restart)
	}
	return "RestartForceExitStatus"
}

// restartDelay grows with the failures in a row (DESIGN.md, section 5).
func (s *service) restartDelay(now instant) time.Duration {
	lasted := time.Duration(now.boot - s.RunBegan)
	given := s.unit.RestartSec != omitted
	forgets := backoffForgets
	if given {
		forgets = shortRun
	}
	if lasted >= forgets {
		s.ShortRuns = 0
	}
	if given && lasted >= shortRun {
		return s.unit.RestartSec
	}
	s.ShortRuns++
	if !given {
		return s.jitter(backoff(s.ShortRuns-1, s.unit.RestartMaxDelaySec))
	}
	if s.ShortRuns < shortRunsFree {
		return s.unit.RestartSec
	}
	return max(s.unit.RestartSec, s.jitter(backoff(s.ShortRuns-shortRunsFree, s.unit.RestartMaxDelaySec)))
}

// backoff is 100 ms doubled n times, at most limit.
func backoff(n int, limit time.Duration) time.Duration {
	d := backoffFirst
	for range n {
		if d >= limit/2 {
			return limit
		}
		d *= 2
	}
	return min(d, limit)
}

// jitter spreads a delay by 10 % either way, so that services that failed together do not start together.
// The invocation id is its random source.
func (s *service) jitter(d time.Duration) time.Duration {
	n, err := strconv.ParseUint(s.Invocation[:min(4, len(s.Invocation))], 16, 16)
	if err != nil {
		return d
	}
	return d + time.Duration(float64(d)/10*(float64(n)/(1<<15)-1))
}

// ---- time

func (s *service) onTimeout(now instant) {
	switch s.Sub {
	case startPre, starting, startPost:
		if s.Unheard && s.Sub == starting { // to end a healthy service for our own deafness would be worse
			s.enterStartPost(now)
			return
		}
		s.fail(resultTimeout, fmt.Sprintf("did not start within %s (TimeoutStartSec, in %s)", s.unit.TimeoutStartSec, s.Sub))
		s.enterSignal(now, stopSigterm)
	case running:
		s.fail(resultTimeout, fmt.Sprintf("ran for %s (RuntimeMaxSec)", s.unit.RuntimeMaxSec))
		s.enterStop(now)
	case reload:
		s.do(killControl{})
		reason := fmt.Sprintf("reload did not end within %s (TimeoutStartSec)", s.unit.TimeoutStartSec)
		s.noteNotReloaded(causePolicy, reason)
		s.finishJob(outcomeFailed, reason)
		s.Control, s.Spawning = pidRef{}, ""
		s.enterRunning(now)
	case stopping:
		s.fail(resultTimeout, "ExecStop did not end within "+s.stopLimit(now))
		s.enterSignal(now, stopSigterm)
	case stopSigterm:
		s.onStopTimeout(now)
	case stopSigkill:
		s.fail(resultTimeout, "processes did not end after SIGKILL")
		s.enterStopPost(now)
	case stopPost:
		s.fail(resultTimeout, "ExecStopPost did not end within "+s.stopLimit(now))
		s.enterFinal(now)
	case finalSigterm:
		s.failIfLeft(now)
		if len(s.Left) > 0 && s.unit.SendSIGKILL && s.unit.KillMode != killNone {
			s.enterFinalSigkill(now)
			return
		}
		s.enterDead(now) // also where only the last output is missing
	case finalSigkill:
		s.failIfLeft(now)
		s.enterDead(now)
	case autoRestart:
		s.Restarts++
		s.begin(now, historyEvent{Kind: eventStart, By: causePolicy, Text: s.restartSetting(), Count: s.Restarts,
			Delay: time.Duration(s.Delay).Milliseconds()})
	case dead, exited, failed, unknown:
		// these have no deadline
	}
}

// failIfLeft: the shim tells what is left before it tells the timeout.
func (s *service) failIfLeft(now instant) {
	if len(s.Left) > 0 {
		s.fail(resultTimeout, fmt.Sprintf("processes did not end after ExecStopPost within %s", s.stopLimit(now)))
	}
}

func (s *service) onStopTimeout(now instant) {
	s.fail(resultTimeout, "did not stop within "+s.stopLimit(now))
	if !s.unit.SendSIGKILL {
		s.enterStopPost(now)
		return
	}
	s.Killed = true
	s.note(historyEvent{Kind: eventSIGKILL, By: causePolicy})
	s.enterSignal(now, stopSigkill)
}

// idle: a service of which nothing runs needs no shim, also when it is active.
func (s *service) idle() bool {
	return s.Sub == dead || s.Sub == failed || s.Sub == exited && s.Main.zero() && s.Control.zero()
}

func (s *service) quitIfIdle() {
	if s.idle() {
		s.do(quit{})
	}
}

// ---- adoption

// onAdopted continues where the shim before us was killed. What the record says is taken as it stands; what was being waited for
// is asked for again.
func (s *service) onAdopted(now instant, e evAdopted) {
	sub := s.Sub
	if e.killed {
		s.note(historyEvent{Kind: eventAdopted, By: causeAbsent, Alone: e.alone})
	}
	s.emitExit(now, evExit{roleMain, e.main, e.oom, found{true, e.alone}})
	s.emitExit(now, evExit{roleControl, e.control, false, found{true, e.alone}})
	switch {
	case s.Sub != sub || len(s.effects) > 0: // that has moved it on
	case s.Spawning != "" && e.nothingRan:
		s.respawn(now)
	default:
		if e.unheard {
			s.giveUpHearing(now)
		}
		s.resume(now)
	}
}

// resume asks again for what the present state waits for.
func (s *service) resume(now instant) {
	switch s.Sub {
	case startPre, startPost, stopping, stopPost:
		if s.Control.zero() {
			s.respawn(now)
		}
	case reload:
		if s.Control.zero() && s.openJob() { // without a job the service reloads of its own accord
			s.respawn(now)
		}
	case starting:
		s.adoptStart(now)
	case running:
		if s.Main.zero() {
			s.do(watch{scopeTree})
		}
	case exited:
		s.do(drain{drainLimit})
	case stopSigterm, stopSigkill:
		s.signalFor(s.Sub) // again: the shim before us may have died before it sent the signal
	case finalSigterm:
		s.signalFinal()
	case finalSigkill:
		s.signalFor(finalSigkill)
	case dead, autoRestart, failed, unknown:
		s.quitIfIdle()
	}
}

// giveUpHearing: READY=1 of this start may be lost, so it ends with its time, which may not be for ever.
func (s *service) giveUpHearing(now instant) {
	s.Unheard = true
	if s.Deadline == 0 {
		s.Deadline = now.after(defaultTimeout)
	}
}

func (s *service) adoptStart(now instant) {
	switch {
	case s.unit.Type == typeForking && s.Control.zero() && s.Spawning == "":
		s.do(findMain{})
	case s.Main.zero() && s.Control.zero():
		s.respawn(now)
	}
}

// respawn starts the command of the present step again: it is known that it did not run.
func (s *service) respawn(now instant) {
	s.Spawning = ""
	r := s.presentRole()
	if r == roleMain {
		s.Main = pidRef{}
	} else {
		s.Control = pidRef{}
	}
	if cmd, ok := s.command(); ok {
		s.run(now, r, cmd)
		return
	}
	s.enterSignal(now, stopSigterm)
}

// emitExit feeds the end of a process that nobody of us saw, or that another has reported.
func (s *service) emitExit(now instant, e evExit) {
	if e.exit == (exitStatus{}) || e.role == roleMain && s.Main.zero() || e.role == roleControl && s.Control.zero() {
		return
	}
	s.onExit(now, e)
}

// ---- texts

// exitText tells an exit in words.
func exitText(x exitStatus) string {
	switch x.How {
	case exitExited:
		return "exited with status " + strconv.Itoa(x.Status)
	case exitKilled:
		return "was killed by " + signalName(syscall.Signal(x.Status))
	case exitDumped:
		return "dumped core on " + signalName(syscall.Signal(x.Status))
	case exitLost:
		return "ended while nobody watched: its exit status is lost"
	}
	return "has not ended"
}

// signalName: SIGKILL for 9, SIGRTMIN+3 for 37.
func signalName(sig syscall.Signal) string {
	if name := unix.SignalName(sig); name != "" {
		return name
	}
	if sig >= 34 && sig <= 64 {
		return "SIGRTMIN+" + strconv.Itoa(int(sig)-34)
	}
	return "signal " + strconv.Itoa(int(sig))
}

func pidList(pids []int) string {
	words := make([]string, len(pids))
	for i, p := range pids {
		words[i] = strconv.Itoa(p)
	}
	return strings.Join(words, " ")
}
