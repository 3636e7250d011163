// Role: `why`: why a service is in the state it is in, in sentences, from its records and its history.
// Runs in: client.
// Owns: nothing.
// Uses: visible, wire, sys, unit, supervise, state, history, render.

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// whyAnswer is the object of `why --json`. Every field is always present.
type whyAnswer struct {
	Unit          string     `json:"unit"`
	ActiveState   string     `json:"active_state"`
	SubState      string     `json:"sub_state"`
	Result        string     `json:"result"`
	StateSince    *string    `json:"state_since"` // RFC 3339
	StartedAt     *string    `json:"started_at"`  // RFC 3339
	NextStart     *string    `json:"next_start"`  // RFC 3339: end of the restart delay
	Restarts      int        `json:"restarts"`
	MainPID       int        `json:"main_pid"`
	Supervised    bool       `json:"supervised"`
	DaemonRunning bool       `json:"daemon_running"`
	Sentences     []string   `json:"sentences"`
	Events        []whyEvent `json:"events"` // oldest first
}

// whyEvent is one of its events.
type whyEvent struct {
	Seq          uint64  `json:"seq"`
	Time         string  `json:"time"`       // RFC 3339
	Event        string  `json:"event"`      // start, ready, exit, failed, stop, restart, sigkill, reload, reloaded, reload-failed, adopted, reset-failed
	Cause        string  `json:"cause"`      // user, enabled, dependency, kill, policy, service, oom, absent, system; "" = what went before
	CauseUnit    string  `json:"cause_unit"` // dependency: the other unit
	Result       string  `json:"result"`     // exit, failed
	PID          int     `json:"pid"`        // ready, exit: of the main process
	ExitCode     *int    `json:"exit_code"`
	ExitSignal   *string `json:"exit_signal"`
	DelayMS      *int64  `json:"delay_ms"`      // of an automatic start
	Restart      int     `json:"restart"`       // number of an automatic start; 0 = it is none
	DaemonAbsent bool    `json:"daemon_absent"` // no daemon ran
	FoundLate    bool    `json:"found_late"`    // no shim was there either; time is when the next one found it
	Text         string  `json:"text"`          // the event in words
}

// whyCase is all that is known of a service.
type whyCase struct {
	status unitStatus
	rec    runRecord
	want   wantRecord
	unit   *unit // nil = it was never started, or cannot be read
	events []historyEvent
	daemon bool // one runs
	now    time.Time
	zone   *time.Location
}

// readWhy reads the case of a service. The state comes first: the events that it counts are then in the history.
func (h home) readWhy(name, serviceDir string) (k whyCase, err error) {
	boot, _, err := bootIdentity()
	if err != nil {
		return k, err
	}
	rec, err := h.readState(name, boot)
	last := rec.Events
	switch {
	case err == nil, errors.Is(err, errOtherBoot), errors.Is(err, errNeverWritten), errors.Is(err, fs.ErrNotExist):
	default:
		last = everyEvent
	}
	k.rec = rec
	k.events, err = readEvents(h.historyFile(name), boot, last)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		err = nil
	}
	if len(k.events) > historyShown {
		k.events = k.events[len(k.events)-historyShown:]
	}
	k.status = h.statusFromFiles(name, serviceDir)
	k.want, _ = h.readWant(name, boot) // without one there is no wish
	k.unit, _ = h.readUnit(name)
	_, k.daemon = h.liveDaemon()
	return k, err
}

// answer puts the case into words. lines is how many events are told, -1 = all.
func (k *whyCase) answer(lines int) whyAnswer {
	s := &k.status
	a := whyAnswer{Unit: s.Name, ActiveState: s.ActiveState, SubState: s.SubState, Result: s.Result, StateSince: s.StateSince, StartedAt: s.StartedAt,
		NextStart: s.NextStart, Restarts: s.Restarts, MainPID: s.MainPID, Supervised: s.Supervised, DaemonRunning: k.daemon,
		Sentences: k.sentences(), Events: []whyEvent{}}
	events := k.events
	if lines >= 0 && lines < len(events) {
		events = events[len(events)-lines:]
	}
	for i := range events {
		a.Events = append(a.Events, eventOf(&events[i]))
	}
	return a
}

func eventOf(e *historyEvent) whyEvent {
	w := whyEvent{Seq: e.Seq, Time: time.Unix(0, e.Time).UTC().Format(time.RFC3339Nano), Event: e.Kind, Cause: e.By, CauseUnit: e.For, Result: e.Result,
		PID: e.PID, Restart: e.Count, DaemonAbsent: e.Alone, FoundLate: e.Late, Text: eventText(e)}
	switch e.Exit.How {
	case exitExited:
		w.ExitCode = &e.Exit.Status
	case exitKilled, exitDumped:
		name := signalName(syscall.Signal(e.Exit.Status))
		w.ExitSignal = &name
	}
	if e.Kind == eventStart && e.By == causePolicy {
		w.DelayMS = &e.Delay
	}
	return w
}

// ---- one event in words

// byWhom ends a sentence about what was asked for: ` by the user`, ` because of "web"`.
func byWhom(by, other string) string {
	switch by {
	case "user":
		return " by the user"
	case "enabled":
		return " because it is enabled"
	case "kill":
		return " by `diakonos kill`"
	case "boot":
		return " with the container"
	case "dependency":
		if other == "" {
			return " because of another unit"
		}
		return fmt.Sprintf(" because of %q", other)
	case causeService:
		return " by the service itself"
	case causePolicy:
		return " as its unit says"
	}
	return ""
}

func eventText(e *historyEvent) string {
	text := eventWords(e)
	switch {
	case e.Late && e.Alone:
		text += " (found later: neither daemon nor shim was there)"
	case e.Late:
		text += " (found by the next shim)"
	case e.Alone:
		text += " (while no daemon ran)"
	}
	return text
}

func eventWords(e *historyEvent) string {
	switch e.Kind {
	case eventStart:
		if e.By == causePolicy {
			return fmt.Sprintf("restarted by %s after %s (restart %d)", e.Text, millis(e.Delay), e.Count)
		}
		return "started" + byWhom(e.By, e.For)
	case eventReady:
		text := "is up"
		if e.PID != 0 {
			text += ", main process " + strconv.Itoa(e.PID)
		}
		if e.Text != "" {
			text += "; " + e.Text
		}
		return text
	case eventExit:
		return endOf(e)
	case eventFailed:
		return fmt.Sprintf("failed (%s): %s", e.Result, e.Text)
	case eventStop:
		return "told to stop" + byWhom(e.By, e.For)
	case eventRestart:
		return "told to restart" + byWhom(e.By, e.For)
	case eventSIGKILL:
		return "did not stop in time and got SIGKILL"
	case eventReload:
		return "told to reload" + byWhom(e.By, e.For)
	case eventReloaded:
		return "reloaded"
	case eventNotReload:
		return "could not reload: " + e.Text
	case eventAdopted:
		return "its shim was gone; another took over"
	case eventReset:
		return "failures and counters forgotten by the user (reset-failed)"
	}
	return e.Kind // of a newer version
}

// endOf tells how a main process ended: `main process was killed by SIGKILL`.
func endOf(e *historyEvent) string {
	text := "main process " + exitText(e.Exit)
	switch {
	case e.By == causeOOM:
		text = "main process was killed by the kernel for lack of memory"
	case e.Exit.How == "":
		return "last process ended"
	}
	switch e.By {
	case "user", "enabled", "dependency", "kill", causePolicy:
		text += ", after it was told to end"
	}
	return text
}

// ---- sentences

// states in words, as they follow the name of the unit.
func stateWords(sub subState) string {
	switch sub {
	case running:
		return "is running"
	case exited:
		return "is active without a process"
	case startPre, starting, startPost:
		return "is being started"
	case autoRestart:
		return "waits for its next start"
	case reload:
		return "is reloading"
	case stopping, stopSigterm, stopSigkill, stopPost, finalSigterm, finalSigkill:
		return "is being stopped"
	case failed:
		return "has failed"
	case unknown:
		return "is in an unknown state"
	}
	return "is inactive"
}

func (k *whyCase) sentences() []string {
	s := &k.status
	first := s.Name + " " + stateWords(s.SubState)
	if since := wireTime(s.StateSince); !since.IsZero() {
		first += fmt.Sprintf(" since %s (%s)", k.clock(since), k.ago(since))
	}
	why, more := k.reasons()
	if why != "" {
		first += ": " + why
	}
	list := append([]string{first + "."}, more...)
	return append(list, k.circumstances()...)
}

// reasons tells why the state is what it is: the rest of the first sentence, and further ones.
func (k *whyCase) reasons() (why string, more []string) {
	switch k.status.SubState {
	case running, exited:
		return k.whyUp(), nil
	case startPre, starting, startPost:
		return k.whyUp(), k.awaited()
	case autoRestart:
		return k.whyWaiting()
	case reload:
		if e := k.last(eventReload); e != nil {
			return "it was told to reload" + byWhom(e.By, e.For), k.history()
		}
		return k.whyUp(), nil
	case stopping, stopSigterm, stopSigkill, stopPost, finalSigterm, finalSigkill:
		return k.whyStopping()
	case failed:
		return k.whyFailed()
	case unknown:
		return k.status.Reason, []string{fmt.Sprintf("`diakonos stop %s` ends the processes, `diakonos restart %s` also starts it again.", k.status.Name, k.status.Name)}
	}
	return k.whyDown()
}

// last returns the latest event of one of the kinds, or nil.
func (k *whyCase) last(kinds ...string) *historyEvent { return k.before(math.MaxUint64, kinds...) }

// before returns the latest event of one of the kinds that came before number seq.
func (k *whyCase) before(seq uint64, kinds ...string) *historyEvent {
	for i := len(k.events) - 1; i >= 0; i-- {
		for _, kind := range kinds {
			if k.events[i].Kind == kind && k.events[i].Seq < seq {
				return &k.events[i]
			}
		}
	}
	return nil
}

// origin is the latest start that was asked for.
func (k *whyCase) origin() *historyEvent {
	e := k.last(eventStart)
	for e != nil && e.By == causePolicy {
		e = k.before(e.Seq, eventStart)
	}
	return e
}

// whyUp tells how the present run came about.
func (k *whyCase) whyUp() string {
	start, origin := k.last(eventStart), k.origin()
	text := "it was started"
	switch {
	case origin == nil && k.status.Restarts == 0:
		return ""
	case origin != nil && k.status.Restarts > 0:
		text += byWhom(origin.By, origin.For) + k.at(origin)
	case origin != nil:
		text += byWhom(origin.By, origin.For)
	}
	if k.status.Restarts == 0 {
		return text
	}
	text += fmt.Sprintf(", and restarted %s since", times(k.status.Restarts))
	if start == nil || start.By != causePolicy {
		return text
	}
	if k.status.Restarts > 1 {
		text += ", the last time" + k.at(start)
	} else {
		text += "," + k.at(start)
	}
	if end := k.before(start.Seq, eventExit, eventFailed); end != nil && (origin == nil || end.Seq > origin.Seq) {
		text += " after " + k.endOf(end)
	}
	return text + fmt.Sprintf("; %s waited %s", start.Text, millis(start.Delay))
}

// endOf tells the end of a run as a fact: `its main process was killed by SIGSEGV`.
func (k *whyCase) endOf(e *historyEvent) string {
	if e.Kind == eventExit {
		text := "its " + endOf(e)
		if e.Alone {
			text += " while no daemon ran"
		}
		return text
	}
	return "it had failed (" + e.Text + ")"
}

// awaited tells what a start waits for.
func (k *whyCase) awaited() []string {
	what := ""
	switch sub := k.status.SubState; {
	case sub == startPre:
		what = "ExecStartPre is running."
	case sub == startPost:
		what = "ExecStartPost is running."
	case k.unit == nil:
		return nil
	case k.unit.Type == typeNotify:
		what = "It has not said yet that it is ready (READY=1)."
	case k.unit.Type == typeForking:
		what = "Its first process has not gone into the background yet."
	case k.unit.Type == typeOneshot:
		what = "It counts as started once its commands are done."
	default:
		return nil
	}
	list := []string{what}
	switch {
	case k.rec.Unheard && k.rec.Deadline != 0:
		list = append(list, fmt.Sprintf("It may have done so while daemon and shim were dead: at %s it is taken for ready (TimeoutStartSec).", k.clock(k.due())))
	case k.rec.Deadline != 0:
		list = append(list, fmt.Sprintf("The start is given up at %s (TimeoutStartSec).", k.clock(k.due())))
	}
	return list
}

// due is the deadline of the record on the wall clock.
func (k *whyCase) due() time.Time { return k.now.Add(time.Duration(k.rec.Deadline - bootNow())) }

// whyWaiting: it is in its restart delay.
func (k *whyCase) whyWaiting() (why string, more []string) {
	why = k.status.Reason
	if e := k.last(eventExit, eventFailed); e != nil && (why == "" || e.Kind == eventExit && e.Result == k.status.Result) {
		why = k.endOf(e)
	} else if why != "" {
		why = "it failed: " + why
	}
	if k.rec.Delay > 0 && k.unit != nil {
		if why != "" {
			why += "; "
		}
		s := newService(k.unit, k.rec)
		why += fmt.Sprintf("%s chose a delay of %s", s.restartSetting(), millis(time.Duration(k.rec.Delay).Milliseconds()))
	}
	if next := wireTime(k.status.NextStart); !next.IsZero() {
		due := fmt.Sprintf("The next start is due at %s (in %s).", k.clock(next), spanText(next.Sub(k.now)))
		if !next.After(k.now) {
			due = fmt.Sprintf("The next start has been due since %s.", k.clock(next))
		}
		more = append(more, due)
	}
	if k.status.Restarts > 0 {
		more = append(more, fmt.Sprintf("It was restarted %s before.", times(k.status.Restarts)))
	}
	return why, more
}

func (k *whyCase) whyStopping() (why string, more []string) {
	e := k.last(eventStop, eventRestart)
	start := k.last(eventStart)
	if e != nil && (start == nil || e.Seq > start.Seq) {
		verb := "stop"
		if e.Kind == eventRestart {
			verb = "restart"
		}
		why = "it was told to " + verb + byWhom(e.By, e.For)
	} else {
		why = k.status.Reason
	}
	if k.rec.Killed {
		more = append(more, "It did not stop in time and got SIGKILL.")
	}
	if k.rec.Deadline != 0 {
		more = append(more, fmt.Sprintf("The present step (%s) is given up at %s (TimeoutStopSec).", k.status.SubState, k.clock(k.due())))
	}
	return why, more
}

func (k *whyCase) whyFailed() (why string, more []string) {
	s := &k.status
	why = s.Reason
	if e := k.last(eventExit, eventFailed); e != nil && e.Kind == eventExit && e.Result == s.Result {
		why = k.endOf(e)
	}
	switch {
	case s.Result == resultDependency:
		if e := k.last(eventFailed); e != nil && e.For != "" {
			return "it was not started, for " + why, []string{fmt.Sprintf("`diakonos why %s` tells more.", e.For)}
		}
		return "it was not started, for " + why, nil
	case s.Result == resultStartLimitHit:
		return why, append(k.history(), fmt.Sprintf("`diakonos start %s` starts it all the same.", s.Name))
	}
	return why, append(k.history(), k.notAgain()...)
}

// history tells in one sentence where a run that is over came from.
func (k *whyCase) history() []string {
	if text := k.whyUp(); text != "" {
		return []string{"I" + text[1:] + "."} // it begins with "it"
	}
	return nil
}

// notAgain tells why nothing starts it again.
func (k *whyCase) notAgain() []string {
	u, s := k.unit, &k.status
	stop, start := k.last(eventStop), k.last(eventStart)
	switch {
	case stop != nil && (start == nil || stop.Seq > start.Seq) && stop.By != causeService:
		return []string{"It is not started again, for it was told to stop" + byWhom(stop.By, stop.For) + k.at(stop) + "."}
	case u == nil:
		return nil
	case k.rec.Exit != (exitStatus{}) && inExitSet(u.RestartPreventExitStatus, k.rec.Exit):
		return []string{"It is not started again, as RestartPreventExitStatus says."}
	case u.Type == typeOneshot && s.Result == resultSuccess:
		return []string{"Its work is done (Type=oneshot)."}
	case restartTable(u.Restart, s.Result):
		return nil
	}
	return []string{fmt.Sprintf("Restart=%s does not start it again after result %s.", u.Restart, s.Result)}
}

// whyDown: it is inactive.
func (k *whyCase) whyDown() (why string, more []string) {
	start, end := k.last(eventStart), k.last(eventExit)
	stop, reset := k.last(eventStop), k.last(eventReset)
	newest := k.last(eventStart, eventStop, eventReset)
	switch {
	case k.waits():
		return "", nil
	case len(k.events) == 0 && k.status.StateSince == nil:
		return "it has not been started since boot", nil
	case newest != nil && newest == reset && k.before(reset.Seq, eventExit, eventFailed) != nil:
		return "it had failed, and the user has reset that" + k.at(reset), nil
	case newest != nil && newest == stop && stop.By != causeService:
		return "it was stopped" + byWhom(stop.By, stop.For) + k.at(stop), nil
	case end != nil && (start == nil || end.Seq > start.Seq):
		return k.endOf(end) + k.at(end), append(k.history(), k.notAgain()...)
	case k.status.Reason != "":
		return k.status.Reason, nil
	}
	return "", k.history()
}

// waits: there is a wish that has not come to the service yet.
func (k *whyCase) waits() bool {
	w := &k.want
	return w.Job != "" && w.Job != k.rec.Job.ID && w.Verb != verbStop && !strings.HasPrefix(k.rec.Job.ID, w.Job+"/")
}

// circumstances are what stands beside the reason.
func (k *whyCase) circumstances() (list []string) {
	s := &k.status
	say := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	if k.waits() {
		waits := "it waits for other units"
		if !k.daemon {
			waits = "no daemon runs; the next one sees to it"
		}
		say("A %s, asked%s, has not begun: %s.", k.want.Verb, byWhom(k.want.By, k.want.For), waits)
	}
	if s.StatusText != "" && activeOf(s.SubState) != inactive && s.SubState != failed {
		say("It says of itself: %s", s.StatusText)
	}
	switch {
	case !s.Supervised:
		say("No shim supervises it: nothing restarts it or takes its output, until a command starts a daemon (`diakonos list`).")
	case !k.daemon && s.ShimPID != 0:
		say("No daemon runs; its shim supervises it all the same.")
	}
	switch {
	case s.LoadState == "bad-setting":
		say("Its unit file cannot be used: %s", s.LoadError)
	case s.LoadState == "not-found":
		say("It has no unit file any more.")
	case s.ChangedOnDisk:
		say("Its unit file has changed since it was read; a start or restart reads it.")
	}
	return list
}

func times(n int) string {
	switch n {
	case 1:
		return "once"
	case 2:
		return "twice"
	}
	return strconv.Itoa(n) + " times"
}

func (k *whyCase) at(e *historyEvent) string { return " at " + k.clock(time.Unix(0, e.Time)) }

// clock shows the date only of another day.
func (k *whyCase) clock(t time.Time) string {
	t = t.In(k.zone)
	now := k.now.In(k.zone)
	if t.Year() == now.Year() && t.YearDay() == now.YearDay() {
		return t.Format("15:04:05")
	}
	return t.Format("Mon 2006-01-02 15:04:05")
}

func (k *whyCase) ago(t time.Time) string { return spanText(k.now.Sub(t)) + " ago" }

// ---- the screen

func (v *view) whyScreen(a *whyAnswer) {
	for _, s := range a.Sentences {
		v.wrapped("", visible(s))
	}
	if len(a.Events) > 0 {
		v.line()
	}
	for _, e := range a.Events {
		stamp := wireTime(&e.Time).In(v.zone).Format(logStamp)
		v.wrapped("  "+v.paint(inkDim, stamp)+"  ", visible(e.Text))
	}
}
