// Role: random operations of many clients at once: what they were answered is explained by a sequential model of one unit, and units that
// depend on each other are never seen in a state that their relation forbids.
// Runs in: go test.
// Owns: its home and its services.
// Uses: wire, sys, script, edge, campaign.

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var (
	modelOps     = flag.Int("ops", 400, "calls of TestModel; it says which -seed goes on after so many")
	modelHistory = flag.String("history", "", "TestModel explains the history in this file instead of making one")
)

const (
	modelClients = 16
	modelBatch   = 400       // calls that are explained together; each batch begins and ends at rest
	modelBudget  = 3_000_000 // configurations that are looked at for one unit, before the search is given up

	modelPatience = 2 * time.Minute // for one call, on a machine that does much else
)

// modelUnit is one service under test.
type modelUnit struct {
	name     string
	needs    []string // Requires or BindsTo, as text says
	fights   []string // Conflicts
	fails    bool     // its start always fails
	unit     string   // its [unit] section
	service  string   // its [service] section; $FILE becomes the path of its own files
	noReload bool
}

// The model knows each unit's relations, and that a start of one that fails, or needs one that fails, never succeeds.
var modelUnits = [...]modelUnit{
	{name: "plain", service: `ExecStart = "$SVC -lock $FILE.lock"`},
	{name: "ready", service: `Type = "notify"
ExecStart = "$SVC -lock $FILE.lock -notify READY=1"`},
	{name: "slow", service: `Type = "notify"
ExecStart = "$SVC -lock $FILE.lock -ready-after 30ms -notify READY=1"
ExecStop = "sleep 0.02"`},
	{name: "once", noReload: true, service: `Type = "oneshot"
RemainAfterExit = true
ExecStart = "true"`},
	{name: "base", service: `Type = "notify"
ExecStart = "$SVC -lock $FILE.lock -notify READY=1"`},
	{name: "app", needs: []string{"base"}, unit: `Requires = "base"`, service: `ExecStart = "$SVC -lock $FILE.lock"`},
	{name: "web", needs: []string{"app"}, unit: `BindsTo = "app"`, service: `ExecStart = "$SVC -lock $FILE.lock"`},
	{name: "red", needs: []string{"base"}, fights: []string{"blue"}, unit: `Requires = "base"
Conflicts = "blue"`, service: `ExecStart = "$SVC -lock $FILE.lock"`},
	{name: "blue", fights: []string{"red"}, service: `ExecStart = "$SVC -lock $FILE.lock"`},
	{name: "broken", fails: true, service: `Type = "oneshot"
ExecStart = "false"`},
	{name: "cursed", needs: []string{"broken"}, fails: true, unit: `Requires = "broken"`, service: `ExecStart = "$SVC -lock $FILE.lock"`},
}

// findUnit returns the unit of that name, or nil.
func findUnit(name string) *modelUnit {
	i := slices.IndexFunc(modelUnits[:], func(u modelUnit) bool { return u.name == name })
	if i < 0 {
		return nil
	}
	return &modelUnits[i]
}

func (u *modelUnit) text() string {
	text := "[unit]\n" + u.unit + "\n[service]\n" + u.service + "\n"
	if !u.noReload {
		text += "ExecReload = \"true\"\n"
	}
	return text
}

// needsAll are the units that a start of name pulls in.
func needsAll(name string) []string {
	return closureOf(name, func(n string) []string { return findUnit(n).needs })
}

// neededBy are the units that need name themselves.
func neededBy(name string) (list []string) {
	for _, u := range modelUnits {
		if slices.Contains(u.needs, name) {
			list = append(list, u.name)
		}
	}
	return list
}

// closureOf is all that next leads to from name, without name.
func closureOf(name string, next func(string) []string) []string {
	list := []string{name}
	for i := 0; i < len(list); i++ {
		for _, n := range next(list[i]) {
			if !slices.Contains(list, n) {
				list = append(list, n)
			}
		}
	}
	return list[1:]
}

// ---- history

// history is what clients did and were told.
type history struct {
	Before []seenUnit       // at rest before the first call
	Runs   map[string][]int // by unit: PIDs in the order in which the service itself says that it ran
	Calls  []modelCall
}

// modelCall is one command. Times are ns since the beginning of the history, on the monotonic clock.
type modelCall struct {
	Client     int
	Begin, End int64
	Verb       string
	Unit       string // "" = all
	Code       int
	Jobs       []heardJob `json:",omitempty"`
	Units      []seenUnit `json:",omitempty"`
	Stderr     string     `json:",omitempty"`
}

// heardJob is one line of an answer, and when it had come.
type heardJob struct {
	At                  int64
	Unit, Verb, Outcome string
	PID                 int
}

// seenUnit is one unit of an answer to status.
type seenUnit struct {
	Name  string `json:"name"`
	State string `json:"active_state"`
	PID   int    `json:"main_pid"`
}

func (c *modelCall) String() string {
	text := fmt.Sprintf("%.3f-%.3f ms client %d: %s %s = %d", float64(c.Begin)/1e6, float64(c.End)/1e6, c.Client, c.Verb, c.Unit, c.Code)
	for _, j := range c.Jobs {
		text += fmt.Sprintf("; %s %s %s pid %d at %.3f", j.Verb, j.Unit, j.Outcome, j.PID, float64(j.At)/1e6)
	}
	for _, u := range c.Units {
		text += fmt.Sprintf("; %s %s %d", u.Name, u.State, u.PID)
	}
	if c.Stderr != "" {
		text += "; stderr: " + strings.ReplaceAll(strings.TrimSpace(c.Stderr), "\n", " | ")
	}
	return text
}

// modelRun makes histories.
type modelRun struct {
	*testHome
	began time.Time
}

func newModelRun(t *testing.T) *modelRun {
	r := &modelRun{testHome: newTestHome(t), began: time.Now()}
	for i := range modelUnits {
		u := &modelUnits[i]
		r.unit(u.name, strings.ReplaceAll(u.text(), "$FILE", filepath.Join(r.dir, u.name)))
	}
	return r
}

func (r *modelRun) now() int64 { return time.Since(r.began).Nanoseconds() }

// record lets clients call at random, and returns what came of it. The last call looks at everything once more.
func (r *modelRun) record(seed uint64, clients, calls int) *history {
	old := map[string]int{} // lines of the runs before the present one: their PIDs come again
	for i := range modelUnits {
		text, _ := os.ReadFile(filepath.Join(r.dir, modelUnits[i].name+".lock"))
		old[modelUnits[i].name] = max(0, strings.Count(string(text), "\n")-1)
	}
	h := &history{Before: r.call(-1, "status", "").Units, Runs: map[string][]int{}}
	var each sync.WaitGroup
	lists := make([][]modelCall, clients)
	for i := range clients {
		each.Go(func() {
			chance := rand.New(rand.NewPCG(seed, uint64(i)))
			for range calls / clients {
				verb, unit := randomCall(chance)
				lists[i] = append(lists[i], r.call(i, verb, unit))
			}
		})
	}
	each.Wait()
	h.Calls = append(slices.Concat(lists...), r.call(-1, "status", ""))
	slices.SortFunc(h.Calls, func(a, b modelCall) int { return cmp.Compare(a.Begin, b.Begin) })
	for i := range modelUnits {
		name := modelUnits[i].name
		text, _ := os.ReadFile(filepath.Join(r.dir, name+".lock")) // one that never ran has none
		if fault := instanceFault(string(text)); fault != "" {
			r.t.Errorf("seed %d: %s %s", seed, name, fault)
		}
		for i, line := range slices.Collect(strings.Lines(string(text))) {
			if i >= old[name] {
				h.Runs[name] = append(h.Runs[name], lastPID(line))
			}
		}
	}
	return h
}

// randomCall picks a verb and a unit, "" = all.
func randomCall(chance *rand.Rand) (verb, unit string) {
	unit = modelUnits[chance.IntN(len(modelUnits))].name
	switch n := chance.IntN(100); {
	case n < 28:
		return "start", unit
	case n < 48:
		return "stop", unit
	case n < 60:
		return "restart", unit
	case n < 68:
		return "reload", unit
	case n < 76:
		return "reset-failed", unit
	case n < 88:
		return "status", unit
	}
	return "status", ""
}

// call runs one client and notes what it says as it says it.
func (r *modelRun) call(client int, verb, unit string) modelCall {
	c := modelCall{Client: client, Verb: verb, Unit: unit}
	cmd := r.command("--json", verb)
	if unit != "" {
		cmd.Args = append(cmd.Args, unit)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	c.Begin = r.now()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		r.t.Errorf("%s %s: %v", verb, unit, err)
		return c
	}
	stuck := time.AfterFunc(modelPatience, func() { cmd.Process.Signal(syscall.SIGINT) })
	err = r.hear(&c, bufio.NewReader(out))
	if ended := cmd.Wait(); ended != nil && !errors.As(ended, new(*exec.ExitError)) {
		err = ended
	}
	c.End, c.Code, c.Stderr = r.now(), cmd.ProcessState.ExitCode(), stderr.String()
	if !stuck.Stop() {
		err = fmt.Errorf("no answer within %s", modelPatience)
	}
	if err != nil {
		r.t.Errorf("%s %s: %v\n%s", verb, unit, err, c.Stderr)
	}
	return c
}

// hear reads an answer: a line for each job as it ends, or one array of units.
func (r *modelRun) hear(c *modelCall, out *bufio.Reader) error {
	if c.Verb == "status" {
		return json.NewDecoder(out).Decode(&c.Units)
	}
	for {
		line, err := out.ReadBytes('\n')
		if err != nil {
			return nil
		}
		var j jobLine
		if err := json.Unmarshal(line, &j); err != nil {
			return fmt.Errorf("%q: %v", line, err)
		}
		c.Jobs = append(c.Jobs, heardJob{r.now(), j.Unit, j.Verb, j.Outcome, j.MainPID})
	}
}

// ---- what one call means to one unit

// deed is the part of one call that concerns one unit. It takes effect between begin and end.
type deed struct {
	call       *modelCall
	kind       string // start, stop, restart, reload, reset, look
	begin, end int64
	outcome    string // of the job; skipped = there was nothing to do; refused = there was no job
	verb       string // what the job had become at its end
	show       string // look: the active state
	pid        int
	quiet      bool // no line tells of it: the unit was as it should be
	conflict   bool // a stop because of a conflict
}

// part is a unit that a command concerns.
type part struct {
	unit, kind string
	conflict   bool
	because    string // it is concerned only if that unit had a job; "" = in any case
}

// partsOf lists what a command means to do.
func partsOf(verb, unit string) []part {
	parts := []part{{unit: unit, kind: verb}}
	add := func(p part) {
		if !slices.ContainsFunc(parts, func(o part) bool { return o.unit == p.unit }) {
			parts = append(parts, p)
		}
	}
	start := func(name, because string) {
		for _, other := range findUnit(name).fights {
			add(part{unit: other, kind: verbStop, conflict: true, because: because})
		}
	}
	switch verb {
	case verbStop:
		for _, n := range closureOf(unit, neededBy) {
			add(part{unit: n, kind: verbStop})
		}
	case verbRestart:
		for i := 0; i < len(parts); i++ {
			from := parts[i].unit
			if from == unit {
				from = "" // the command itself
			}
			for _, n := range neededBy(parts[i].unit) {
				add(part{unit: n, kind: verbRestart, because: from})
			}
		}
		for _, p := range slices.Clone(parts) {
			because := p.unit
			if because == unit {
				because = ""
			}
			for _, n := range needsAll(p.unit) {
				add(part{unit: n, kind: verbStart, because: because})
			}
			start(p.unit, because)
		}
	case verbStart:
		for _, n := range needsAll(unit) {
			add(part{unit: n, kind: verbStart})
		}
		for _, p := range slices.Clone(parts) {
			start(p.unit, "")
		}
	}
	return parts
}

// deedsOf takes a call apart and appends to byUnit. It returns what is wrong with the answer in itself, "" = nothing.
func deedsOf(c *modelCall, byUnit map[string][]deed) string {
	add := func(unit string, d deed) {
		d.call, d.begin = c, c.Begin
		if d.end == 0 {
			d.end = c.End
		}
		byUnit[unit] = append(byUnit[unit], d)
	}
	switch c.Verb {
	case "status":
		for _, u := range c.Units {
			add(u.Name, deed{kind: "look", show: u.State, pid: u.PID})
		}
		return statusFault(c)
	case "reset-failed":
		add(c.Unit, deed{kind: "reset"})
		if c.Code != exitOK {
			return "reset-failed fails"
		}
		return ""
	}
	parts := partsOf(c.Verb, c.Unit)
	heard := map[string]heardJob{}
	for _, j := range c.Jobs {
		if _, twice := heard[j.Unit]; twice {
			return "two lines for " + j.Unit
		}
		if !slices.ContainsFunc(parts, func(p part) bool { return p.unit == j.Unit }) {
			return "a line for " + j.Unit + ", which it does not concern"
		}
		heard[j.Unit] = j
	}
	anchor, worked := heard[c.Unit]
	if good := anchor.Outcome == outcomeDone || anchor.Outcome == outcomeSkipped; good != (c.Code == exitOK) {
		return fmt.Sprintf("exit code %d with the outcome %q", c.Code, anchor.Outcome)
	}
	if !worked {
		if c.Verb != verbReload || len(heard) > 0 {
			return "no line for " + c.Unit
		}
		add(c.Unit, deed{kind: c.Verb, outcome: "refused"})
		return ""
	}
	for _, p := range parts {
		j, worked := heard[p.unit]
		_, caused := heard[p.because]
		switch {
		case worked:
			add(p.unit, deed{kind: p.kind, end: j.At, outcome: j.Outcome, verb: j.Verb, pid: j.PID, conflict: p.conflict})
		case p.because == "" || caused:
			add(p.unit, deed{kind: p.kind, outcome: outcomeSkipped, quiet: true, conflict: p.conflict})
		}
	}
	return ""
}

// statusFault compares the exit code of status with what it shows, and units with each other: one answer is one moment.
func statusFault(c *modelCall) string {
	states := map[string]string{}
	code := exitOK
	for _, u := range c.Units {
		states[u.Name] = u.State
		if u.State != active && u.State != reloading && c.Unit != "" {
			code = exitNotActive
		}
	}
	if c.Code != code {
		return fmt.Sprintf("exit code %d of status, want %d", c.Code, code)
	}
	if c.Unit != "" {
		return ""
	}
	for _, u := range modelUnits {
		state, known := states[u.name]
		if !known {
			return u.name + " is missing"
		}
		if state == inactive || state == failedUnit || u.fails {
			continue
		}
		for _, n := range u.needs {
			if s := states[n]; s != active && s != reloading {
				return fmt.Sprintf("%s is %s, and %s, which it needs, is %s", u.name, state, n, s)
			}
		}
		for _, n := range u.fights {
			if s := states[n]; s != inactive && s != failedUnit {
				return fmt.Sprintf("%s is %s, and %s, which conflicts with it, is %s", u.name, state, n, s)
			}
		}
	}
	return ""
}

// ---- the sequential model of one unit

// A command takes effect on a unit in two moments: when it is submitted, it becomes a job, joins or replaces the one that there is, or has
// nothing to do; when the job ends, all that wait for it are told. What is between two such moments, a look may show.

// unitLevel is what is known of the unit beside its job.
type unitLevel byte

const (
	isDownLevel   unitLevel = 'd'
	isFailedLevel unitLevel = 'f'
	isUpLevel     unitLevel = 'u'
	isMovingLevel unitLevel = 'm' // seen between two of these
)

// shows is what a look may see while a job is under way, beside the level itself.
type shows uint8

const (
	showInactive shows = 1 << iota
	showFailed
	showActivating
	showDeactivating
	showReloading
	showNewRun // active, with a run that the model has not heard of
)

// unitState is the state of the model. The waiting deeds are those of the present job.
type unitState struct {
	level unitLevel
	pid   int    // of the run that is up, else of the last one
	place int    // of the newest run that was known, in the service's own list
	job   string // verb; "" = none
	may   shows
}

// unitModel explains what happened to one unit.
type unitModel struct {
	unit  *modelUnit
	runs  map[int][]int // by PID: places in the service's own list
	deeds []deed        // by begin

	status  []deedStatus
	tried   map[string]bool
	budget  int
	deepest int // deeds done in the best attempt
	stuck   string
}

type deedStatus byte

const (
	toCome deedStatus = '.'
	waits  deedStatus = 'w' // submitted, and its job goes on
	isDone deedStatus = '!'
)

func newUnitModel(u *modelUnit, runs []int, deeds []deed) *unitModel {
	m := &unitModel{unit: u, runs: map[int][]int{}, deeds: deeds, tried: map[string]bool{}, budget: modelBudget}
	for i, pid := range runs {
		m.runs[pid] = append(m.runs[pid], i+1)
	}
	m.status = slices.Repeat([]deedStatus{toCome}, len(deeds))
	return m
}

// newer: the run of pid can be one that came after all that the state knows. A run that was killed before it could say that it runs has no place.
func (m *unitModel) newer(s unitState, pid int) bool {
	return pid == 0 || pid != s.pid && (len(m.runs[pid]) == 0 || m.placeAfter(s, pid) > 0)
}

func (m *unitModel) placeAfter(s unitState, pid int) int {
	for _, place := range m.runs[pid] {
		if place > s.place {
			return place
		}
	}
	return 0
}

// up is s with this run.
func (m *unitModel) up(s unitState, pid int) unitState {
	s.place = max(s.place, m.placeAfter(s, pid))
	s.level, s.pid = isUpLevel, pid
	return s
}

// see returns the states in which a look at s can show this.
func (m *unitModel) see(s unitState, show string, pid int) []unitState {
	is := func(l unitLevel) bool { return s.level == l }
	may := func(what shows) bool { return s.job != "" && s.may&what != 0 }
	to := func(l unitLevel) []unitState { s.level = l; return []unitState{s} }
	switch {
	case show == inactive && (is(isDownLevel) || may(showInactive)):
		return to(isDownLevel)
	case show == failedUnit && (is(isFailedLevel) || may(showFailed)):
		return to(isFailedLevel)
	case show == active && is(isUpLevel) && s.pid == pid:
		return to(isUpLevel)
	case show == active && may(showNewRun) && m.newer(s, pid):
		return []unitState{m.up(s, pid)}
	case show == activating && may(showActivating), show == deactivating && may(showDeactivating):
		return to(isMovingLevel)
	case show == reloading && may(showReloading):
		return []unitState{s}
	}
	return nil
}

// mayBeDown: a command that comes now may find the unit inactive or failed.
func (s unitState) mayBeDown() bool {
	return s.level == isDownLevel || s.level == isFailedLevel || s.job != "" && s.may&(showInactive|showFailed) != 0
}

func (s unitState) mayBeUp() bool {
	return s.level == isUpLevel || s.job != "" && s.may&showNewRun != 0
}

func (s unitState) mayNotBeUp() bool {
	return s.mayBeDown() || s.level == isMovingLevel || s.job != "" && s.may&(showActivating|showDeactivating) != 0
}

// consequence is what comes of a deed that is submitted.
type consequence int

const (
	settles  consequence = iota // it is told at once
	joins                       // it waits for the job that there is now
	replaces                    // likewise, and whoever waited is told "canceled"
)

// submit returns the states that a deed leads to when it is submitted in s.
func (m *unitModel) submit(s unitState, d *deed) (consequence, []unitState) {
	same := []unitState{s}
	switch {
	case d.kind == "look":
		return settles, m.see(s, d.show, d.pid)
	case d.kind == "reset":
		if s.level == isFailedLevel {
			same[0].level = isDownLevel
		}
		return settles, same
	case d.outcome == "refused":
		if m.refuses(s, d.call.Code) {
			return settles, same
		}
		return settles, nil
	case d.outcome == outcomeSkipped:
		if m.nothingToDo(s, d) {
			return settles, same
		}
		return settles, nil
	}
	how, next := m.order(s, d.kind)
	if next.job == "" {
		return how, nil
	}
	if m.renewed(next.job, d) {
		next.may |= showDeactivating | showInactive | showNewRun
	}
	return how, []unitState{next}
}

// renewed: the start of a unit that was not down has become a restart, because what it needs was about to be restarted.
func (m *unitModel) renewed(job string, d *deed) bool {
	return job == verbStart && d.verb == verbRestart && len(m.unit.needs) > 0
}

// refuses: a reload that comes now ends with this exit code, without a job.
func (m *unitModel) refuses(s unitState, code int) bool {
	if code == exitNotActive {
		return s.mayNotBeUp()
	}
	return code == exitFailed && s.mayBeUp() && (m.unit.noReload || s.job == verbStop)
}

// nothingToDo: the unit is as the deed wants it, and stays so.
func (m *unitModel) nothingToDo(s unitState, d *deed) bool {
	switch {
	case d.kind == verbStart:
		return s.level == isUpLevel && (s.job == "" || s.job == verbReload) && (d.quiet || d.pid == s.pid)
	case d.kind == verbRestart: // handed on from a unit that it needs
		return d.quiet && (s.mayBeDown() || s.job == verbStop)
	case d.conflict:
		return s.mayBeDown() && (s.job == "" || s.job == verbStop)
	case d.kind == verbStop:
		return s.mayBeDown() && s.job == ""
	}
	return false
}

// order makes, joins or replaces a job. No job in the answer: the command cannot be given here.
func (m *unitModel) order(s unitState, kind string) (consequence, unitState) {
	none := unitState{}
	was := s.job
	switch kind {
	case verbStart:
		switch was {
		case "":
			if s.level == isUpLevel {
				return joins, none
			}
			s.may = m.onTheWayUp()
		case verbStart, verbRestart:
			return joins, s
		case verbStop: // which may have begun
			s.may |= m.onTheWayUp() | showDeactivating | showInactive
		case verbReload:
			return joins, none
		}
	case verbStop:
		switch was {
		case "":
			if s.level != isUpLevel {
				return joins, none
			}
			s.may = showDeactivating
		case verbStop:
			return joins, s
		case verbStart, verbRestart: // which may have come up unheard of
			s.may |= m.onTheWayUp() | showDeactivating | showInactive | showNewRun
		case verbReload:
			s.may |= showDeactivating
		}
	case verbRestart:
		s.may |= m.onTheWayUp()
		if s.mayBeUp() || s.level == isMovingLevel || was != "" {
			s.may |= showDeactivating | showInactive
		}
		if was == verbStart || was == verbRestart || len(m.unit.needs) > 0 { // or it is begun anew because of what it needs
			s.may |= showNewRun
		}
	case verbReload:
		switch was {
		case "", verbReload:
			if s.level != isUpLevel || m.unit.noReload {
				return joins, none
			}
			s.may |= showReloading
		case verbStart, verbRestart:
			if !s.mayBeUp() {
				return joins, none
			}
			return joins, s
		case verbStop:
			return joins, none
		}
	}
	s.job = kind
	if was != "" && (was == verbStop) != (kind == verbStop) {
		return replaces, s
	}
	return joins, s
}

// onTheWayUp is what a start shows.
func (m *unitModel) onTheWayUp() shows {
	if m.unit.fails {
		return showActivating | showDeactivating | showFailed
	}
	return showActivating
}

// end returns the states that the end of the job can lead to, as the deed was told.
func (m *unitModel) end(s unitState, d *deed) []unitState {
	job := s.job
	if m.renewed(job, d) {
		job = verbRestart
	}
	if d.verb != job {
		return nil
	}
	s.job, s.may = "", 0
	to := func(levels ...unitLevel) (list []unitState) {
		for _, l := range levels {
			s.level = l
			list = append(list, s)
		}
		return list
	}
	starts := job == verbStart || job == verbRestart
	switch {
	case d.outcome == outcomeDone && starts && m.unit.fails:
	case d.outcome == outcomeDone && starts:
		if job == verbStart && s.level == isUpLevel && d.pid == s.pid { // a stop before had not begun
			return to(isUpLevel)
		}
		if m.newer(s, d.pid) {
			return []unitState{m.up(s, d.pid)}
		}
	case d.outcome == outcomeDone && job == verbStop && d.pid == 0 && m.unit.fails:
		return to(isDownLevel, isFailedLevel)
	case d.outcome == outcomeDone && job == verbStop && d.pid == 0:
		return to(isDownLevel)
	case d.outcome == outcomeDone && job == verbReload && s.level == isUpLevel && d.pid == s.pid:
		return to(isUpLevel)
	case d.outcome == outcomeFailed && starts && m.unit.fails:
		return to(isFailedLevel)
	case d.outcome == outcomeDependency && starts && m.unit.fails:
		if s.level == isMovingLevel {
			return to(isFailedLevel, isDownLevel)
		}
		return to(isFailedLevel, s.level)
	}
	return nil
}

// ---- the search

// errGivenUp: the search took more than its budget, and says nothing.
var errGivenUp = errors.New("the search was given up")

// explain looks for an order of all deeds' moments that the model can take, and that no deed's begin and end contradict. It is the search of
// Wing and Gong with Lowe's memory of configurations that led nowhere.
func (m *unitModel) explain(from unitState) error {
	if m.search(from, 0, 0) {
		return nil
	}
	if m.budget <= 0 {
		return errGivenUp
	}
	return fmt.Errorf("%s: no order explains what was seen; %d of %d moments fit, then\n%s", m.unit.name, m.deepest, len(m.deeds), m.stuck)
}

// search goes on from a state in which all deeds before first are done. done counts deeds.
func (m *unitModel) search(s unitState, first, done int) bool {
	for first < len(m.deeds) && m.status[first] == isDone {
		first++
	}
	if first == len(m.deeds) {
		return true
	}
	open := m.open(first)
	if !m.enter(s, first, open, done) {
		return false
	}
	ended := false
	for _, i := range open {
		d := &m.deeds[i]
		switch {
		case m.status[i] == toCome:
			how, states := m.submit(s, d)
			for _, next := range states {
				if m.take(i, how, next, first, done) {
					return true
				}
			}
		case s.job == verbReload: // one that came too late for the reload under way waits for another
			for _, next := range m.end(s, d) {
				if m.endReload(i, s, next, first, done) {
					return true
				}
			}
		case !ended:
			ended = true
			for _, next := range m.end(s, d) {
				if m.endAll(d, next, first, done) {
					return true
				}
			}
		}
	}
	return false
}

// open lists the deeds that may come next or wait, by their ends: none whose end is past when another begins.
func (m *unitModel) open(first int) (list []int) {
	limit := int64(1<<63 - 1)
	for i := first; i < len(m.deeds) && m.deeds[i].begin <= limit; i++ {
		if m.status[i] != isDone {
			list = append(list, i)
			limit = min(limit, m.deeds[i].end)
		}
	}
	list = slices.DeleteFunc(list, func(i int) bool { return m.deeds[i].begin > limit })
	slices.SortFunc(list, func(a, b int) int { return cmp.Compare(m.deeds[a].end, m.deeds[b].end) })
	return list
}

// enter reports whether this configuration is new, and notes how far it got.
func (m *unitModel) enter(s unitState, first int, open []int, done int) bool {
	m.budget--
	if m.budget <= 0 {
		return false
	}
	last := first
	for i := first; i < len(m.status); i++ {
		if m.status[i] != toCome {
			last = i
		}
	}
	key := fmt.Sprint(s.level, s.pid, s.place, s.job, s.may, first) + string(statusText(m.status[first:last+1]))
	if m.tried[key] {
		return false
	}
	m.tried[key] = true
	if done >= m.deepest {
		m.deepest = done
		m.stuck = fmt.Sprintf("level %c, run %d, job %q", s.level, s.pid, s.job)
		for _, i := range open {
			m.stuck += fmt.Sprintf("\n%c %s", m.status[i], m.deeds[i].String())
		}
	}
	return true
}

func statusText(list []deedStatus) []byte {
	text := make([]byte, len(list))
	for i, s := range list {
		text[i] = byte(s)
	}
	return text
}

func (d *deed) String() string {
	text := d.kind
	switch {
	case d.kind == "look":
		text += fmt.Sprintf(" %s %d", d.show, d.pid)
	case d.quiet:
		text += " nothing to do"
	default:
		text += fmt.Sprintf(" (as %s) %s pid %d", d.verb, d.outcome, d.pid)
	}
	return text + fmt.Sprintf(", until %.3f, of %s", float64(d.end)/1e6, d.call)
}

// take submits deed i and goes on.
func (m *unitModel) take(i int, how consequence, next unitState, first, done int) bool {
	was := slices.Clone(m.status)
	defer func() { copy(m.status, was) }()
	switch how {
	case settles:
		m.status[i] = isDone
		return m.search(next, first, done+1)
	case replaces:
		for k := range m.status {
			if m.status[k] != waits {
				continue
			}
			if m.deeds[k].outcome != outcomeCanceled {
				return false
			}
			m.status[k] = isDone
			done++
		}
	}
	m.status[i] = waits
	return m.search(next, first, done)
}

// endAll tells all who wait for the job the same as d, and goes on.
func (m *unitModel) endAll(d *deed, next unitState, first, done int) bool {
	was := slices.Clone(m.status)
	defer func() { copy(m.status, was) }()
	for k := range m.status {
		if m.status[k] != waits {
			continue
		}
		if o := &m.deeds[k]; o.outcome != d.outcome || o.verb != d.verb || o.pid != d.pid {
			return false
		}
		m.status[k] = isDone
		done++
	}
	return m.search(next, first, done)
}

// endReload tells deed i alone; the others wait for the reload after.
func (m *unitModel) endReload(i int, s, next unitState, first, done int) bool {
	m.status[i] = isDone
	defer func() { m.status[i] = waits }()
	if slices.Contains(m.status, waits) {
		next.job, next.may = s.job, s.may
	}
	return m.search(next, first, done+1)
}

// explain checks a whole history. nil = the model explains it.
func (h *history) explain() error {
	byUnit := map[string][]deed{}
	for i := range h.Calls {
		if fault := deedsOf(&h.Calls[i], byUnit); fault != "" {
			return fmt.Errorf("%s: %s", &h.Calls[i], fault)
		}
	}
	for _, seen := range h.Before {
		m := newUnitModel(findUnit(seen.Name), h.Runs[seen.Name], byUnit[seen.Name])
		from := unitState{level: isDownLevel}
		switch seen.State {
		case active:
			from = m.up(from, seen.PID)
		case failedUnit:
			from.level = isFailedLevel
		case inactive:
		default:
			return fmt.Errorf("%s is %s at the beginning", seen.Name, seen.State)
		}
		if err := m.explain(from); err != nil {
			return err
		}
	}
	return nil
}

// ---- tests

// TestModel: what many clients are told by commands at random is what a sequential service manager could have told them.
func TestModel(t *testing.T) {
	if *modelHistory != "" {
		h := readHistory(t, *modelHistory)
		if err := h.explain(); err != nil {
			t.Error(err)
		}
		return
	}
	seed := *campaignSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano()) % 1_000_000
	}
	r := newModelRun(t)
	for done := 0; done < *modelOps && !t.Failed(); seed++ {
		n := min(modelBatch, *modelOps-done)
		h := r.record(seed, modelClients, n)
		done += n
		if err := h.explain(); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		r.compare(h)
		if t.Failed() {
			r.keepHistory(h, seed)
		}
		t.Logf("%d calls are explained after %.0f s; -seed %d goes on", done, time.Since(r.began).Seconds(), seed+1)
	}
}

// compare looks at the processes: at rest each unit that is active runs as the process that it names, and no other runs. A program that was
// started a moment ago may still be about to say so.
func (r *modelRun) compare(h *history) {
	for _, u := range h.Calls[len(h.Calls)-1].Units {
		var text []byte
		if !eventually(testPatience, func() bool {
			text, _ = os.ReadFile(filepath.Join(r.dir, u.Name+".lock"))
			return u.PID == 0 && !lives(string(text)) || u.PID == lastPID(string(text)) && lives(string(text))
		}) {
			r.t.Errorf("%s is %s with process %d; its own last word is %q (lives: %t)", u.Name, u.State, u.PID, lastLine(string(text)), lives(string(text)))
		}
	}
}

// keepHistory saves a history that cannot be explained.
func (r *modelRun) keepHistory(h *history, seed uint64) {
	text, err := json.Marshal(h)
	if err != nil {
		r.t.Error(err)
		return
	}
	path := filepath.Join(os.TempDir(), fmt.Sprintf("diakonos-history-%d.json", seed))
	if err := os.WriteFile(path, text, 0o644); err != nil {
		r.t.Error(err)
	}
	log, _ := os.ReadFile(filepath.Join(r.home, "daemon.log"))
	r.t.Logf("the history is kept: -run TestModel -history %s\ndaemon.log:\n%s", path, tail(log, 3000))
}

func readHistory(t *testing.T, path string) *history {
	t.Helper()
	text, err := os.ReadFile(path)
	h := new(history)
	if err == nil {
		err = json.Unmarshal(text, h)
	}
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// ---- the checker sees what is wrong

// parseDeeds reads `BEGIN END WORDS` lines, separated by semicolons: `look STATE PID`, `reset`, or `KIND OUTCOME PID [VERB | = CODE]`.
func parseDeeds(t *testing.T, text string) (list []deed) {
	t.Helper()
	for line := range strings.SplitSeq(text, ";") {
		f := strings.Fields(line)
		begin, err1 := strconv.ParseInt(f[0], 10, 64)
		end, err2 := strconv.ParseInt(f[1], 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		d := deed{call: &modelCall{Verb: line}, kind: f[2], begin: begin, end: end, verb: f[2]}
		f = append(f, "", "", "")
		d.pid, _ = strconv.Atoi(f[4]) // 0 where there is none
		d.show, d.outcome = f[3], f[3]
		switch {
		case f[5] == "=":
			d.call.Code, _ = strconv.Atoi(f[6])
		case f[5] != "":
			d.verb = f[5]
		}
		list = append(list, d)
	}
	return list
}

// TestModelOfOneUnit: histories by hand. The unit has run as 7, 8 and 9, in this order.
func TestModelOfOneUnit(t *testing.T) {
	for _, c := range []struct {
		why   string
		deeds string
		good  bool
	}{
		{"one after the other", "0 1 start done 7; 2 3 look active 7; 4 5 stop done 0; 6 7 look inactive; 8 9 start done 8", true},
		{"a stop is missing", "0 1 start done 7; 2 3 look active 7; 6 7 look inactive", false},
		{"a start without end of the run before", "0 1 start done 7; 2 3 start done 8", false},
		{"nothing to do", "0 1 stop skipped 0; 2 3 start done 7; 4 5 start skipped 7; 6 7 stop done 0; 8 9 stop skipped 0", true},
		{"nothing to do, and it was down", "0 1 start skipped 7", false},
		{"nothing to do, and it was up", "0 1 start done 7; 2 3 stop skipped 0", false},
		{"two starts at once share one run", "0 3 start done 7; 1 4 start done 7; 5 6 look active 7", true},
		{"two starts at once with a run each", "0 3 start done 7; 1 4 start done 8", false},
		{"the second of two starts had nothing to do", "0 3 start done 7; 1 4 start skipped 7", true},
		{"a start that was replaced", "0 5 start canceled 0; 1 6 stop done 0; 7 8 look inactive", true},
		{"a start that was replaced by nothing", "0 1 start canceled 0; 2 3 look inactive", false},
		{"a start that was replaced by what came later", "0 1 start canceled 0; 2 3 stop done 0", false},
		{"a stop that was replaced before it had begun", "0 1 start done 7; 2 6 stop canceled 7; 3 7 start done 7; 8 9 look active 7", true},
		{"a stop that was replaced after it had begun", "0 1 start done 7; 2 6 stop canceled 7; 3 7 start done 8; 8 9 look active 8", true},
		{"the last wish was a stop", "0 5 start canceled 0; 1 6 stop done 0; 7 8 look active 7", false},
		{"of a start and a stop at once the stop was last", "0 5 start done 7; 1 6 stop done 0; 7 8 look inactive", true},
		{"of a start and a stop at once the start was last", "0 5 start done 7; 1 6 stop skipped 0; 7 8 look active 7", true},
		{"a restart", "0 1 start done 7; 2 3 restart done 8; 4 5 look active 8", true},
		{"a restart that did nothing", "0 1 start done 7; 2 3 restart done 7", false},
		{"a restart that went back", "0 1 start done 8; 2 3 restart done 7", false},
		{"a start that became part of a restart", "0 5 start done 8 restart; 1 6 restart done 8; 7 8 look active 8", true},
		{"a start that became part of no restart", "0 5 start done 8 restart; 7 8 look active 8", false},
		{"looks in the middle of a start", "0 9 start done 7; 1 2 look inactive; 3 4 look activating; 5 6 look activating; 10 11 look active 7", true},
		{"a look back to inactive", "0 9 start done 7; 1 2 look activating; 3 4 look inactive", false},
		{"a look in the middle of nothing", "0 1 start done 7; 2 3 look deactivating", false},
		{"a look before its cause", "0 1 look active 7; 2 3 start done 7", false},
		{"a look at the run before", "0 1 start done 7; 2 3 restart done 8; 4 5 look active 7", false},
		{"looks in the middle of a restart", "0 1 start done 7; 2 9 restart done 8; 3 4 look active 7; 5 6 look deactivating; 7 8 look inactive", true},
		{"the old run in the middle of a restart, after its end", "0 1 start done 7; 2 9 restart done 8; 3 4 look deactivating; 5 6 look active 7", false},
		{"a look that another look contradicts", "0 9 stop done 0; 1 2 look inactive; 3 4 look active 7", false},
		{"a reload", "0 1 start done 7; 2 5 reload done 7; 3 4 look reloading; 6 7 look active 7", true},
		{"a reload of what is down", "0 1 reload done 0", false},
		{"a reload that is refused", "0 1 reload refused 0 = 3; 2 3 start done 7", true},
		{"a reload that is refused for nothing", "0 1 start done 7; 2 3 reload refused 0 = 3", false},
		{"a reload that is refused because of a stop", "0 1 start done 7; 2 5 stop done 0; 3 4 reload refused 0 = 1", true},
		{"a reload that is refused because of no stop", "0 1 start done 7; 2 3 reload refused 0 = 1", false},
		{"a reload during a reload", "0 1 start done 7; 2 5 reload done 7; 3 8 reload done 7; 6 7 look reloading", true},
		{"failed, and nothing can fail here", "0 1 start failed 0", false},
		{"reset of what has not failed", "0 1 start done 7; 2 3 reset; 4 5 look active 7", true},
	} {
		err := newUnitModel(findUnit("plain"), []int{7, 8, 9}, parseDeeds(t, c.deeds)).explain(unitState{level: isDownLevel})
		if good := err == nil; good != c.good {
			t.Errorf("%s: explained: %t (%v)", c.why, good, err)
		}
	}
}

// TestModelOfAUnitThatFails has the deeds of a unit whose start always fails.
func TestModelOfAUnitThatFails(t *testing.T) {
	for _, c := range []struct {
		why   string
		deeds string
		good  bool
	}{
		{"it fails", "0 5 start failed 0; 1 2 look activating; 3 4 look deactivating; 6 7 look failed; 8 9 reset; 10 11 look inactive", true},
		{"a failure that went by itself", "0 1 start failed 0; 2 3 look inactive", false},
		{"a failure that a reset did not take", "0 1 start failed 0; 2 3 reset; 4 5 look failed", false},
		{"a start that is done", "0 1 start done 7", false},
		{"a reset at the same time, before", "0 5 start failed 0; 1 4 reset; 6 7 look failed", true},
		{"a reset at the same time, after", "0 5 start failed 0; 1 6 reset; 7 8 look inactive", true},
	} {
		err := newUnitModel(findUnit("broken"), nil, parseDeeds(t, c.deeds)).explain(unitState{level: isDownLevel})
		if good := err == nil; good != c.good {
			t.Errorf("%s: explained: %t (%v)", c.why, good, err)
		}
	}
}

// scene is a deed that overlaps no other one of its unit. before and after are its neighbours, nil where these overlap others.
type scene struct {
	unit                string
	before, deed, after *deed
	last                bool
}

// scenes lists all such deeds.
func (h *history) scenes() (list []scene) {
	byUnit := map[string][]deed{}
	for i := range h.Calls {
		deedsOf(&h.Calls[i], byUnit)
	}
	for _, u := range modelUnits {
		deeds := byUnit[u.name]
		var quiet []*deed // nil = it overlaps another
		ended := int64(-1)
		for i := range deeds {
			d := &deeds[i]
			if alone := d.begin > ended && (i+1 == len(deeds) || deeds[i+1].begin > d.end); alone {
				quiet = append(quiet, d)
			} else {
				quiet = append(quiet, nil)
			}
			ended = max(ended, d.end)
		}
		for i, d := range quiet {
			if d == nil {
				continue
			}
			s := scene{unit: u.name, deed: d, last: i+1 == len(quiet)}
			if i > 0 {
				s.before = quiet[i-1]
			}
			if !s.last {
				s.after = quiet[i+1]
			}
			list = append(list, s)
		}
	}
	return list
}

// tells reports whether a deed shows that the unit is up, or that it is not.
func (d *deed) tells(up bool) bool {
	switch {
	case d == nil:
		return false
	case d.kind == "look" && up:
		return d.show == active
	case d.kind == "look":
		return d.show == inactive
	case d.kind == verbStart && d.outcome == outcomeSkipped, d.kind == verbStop && d.outcome == outcomeDone && d.verb == verbStop:
		return up
	case d.kind == verbStop && d.outcome == outcomeSkipped && !d.conflict, d.kind == verbStart && d.outcome == outcomeDone && d.verb == verbStart:
		return !up
	}
	return false
}

// job returns the line of the deed's call that is about this unit.
func (s scene) job() *heardJob {
	i := slices.IndexFunc(s.deed.call.Jobs, func(j heardJob) bool { return j.Unit == s.unit })
	if i < 0 {
		return nil
	}
	return &s.deed.call.Jobs[i]
}

// seen returns what the deed's call shows of this unit.
func (s scene) seen() *seenUnit {
	i := slices.IndexFunc(s.deed.call.Units, func(u seenUnit) bool { return u.Name == s.unit })
	return &s.deed.call.Units[i]
}

// looks: the deed is a look that saw this.
func (s scene) looks(state string) bool { return s.deed.shows(state) }

func (d *deed) shows(state string) bool { return d != nil && d.kind == "look" && d.show == state }

// worked: a job was done for it.
func (d *deed) worked() bool { return !d.quiet && d.outcome == outcomeDone && d.verb == d.kind }

// canBeSilent: nothing else happens to the unit until the end of the deed's call.
func (s scene) canBeSilent() bool {
	return s.deed.worked() && s.after != nil && s.after.begin > s.deed.call.End
}

// silence drops the line of the unit from the deed's call.
func (s scene) silence() {
	s.deed.call.Jobs = slices.DeleteFunc(s.deed.call.Jobs, func(j heardJob) bool { return j.Unit == s.unit })
}

// is: the deed is the purpose of its call, with this verb and outcome.
func (s scene) is(verb, outcome string) bool {
	d := s.deed
	return d.kind == verb && d.outcome == outcome && d.call.Unit == s.unit && !d.quiet && (outcome == outcomeSkipped || d.verb == verb)
}

// show changes what a look saw.
func (s scene) show(state string, pid int) {
	u := s.seen()
	u.State, u.PID = state, pid
	if s.deed.call.Unit != "" {
		s.deed.call.Code = map[bool]int{true: exitOK, false: exitNotActive}[state == active]
	}
}

func (h *history) drop(c *modelCall) {
	i := slices.IndexFunc(h.Calls, func(o modelCall) bool { return o.Begin == c.Begin && o.Client == c.Client })
	h.Calls = slices.Delete(h.Calls, i, i+1)
}

// mutations are ways to make a history wrong. Each returns how to do it at this scene, nil where that would not make it wrong for certain.
var mutations = []struct {
	what string
	at   func(h *history, s scene) func()
}{
	{"an active unit is shown as inactive", func(h *history, s scene) func() {
		return when(s.looks(active), func() { s.show(inactive, 0) })
	}},
	{"an inactive unit is shown as active", func(h *history, s scene) func() {
		return when(s.looks(inactive) && len(h.Runs[s.unit]) > 0, func() { s.show(active, h.Runs[s.unit][0]) })
	}},
	{"the process of an earlier run is shown", func(h *history, s scene) func() {
		return when(s.looks(active) && s.deed.pid != 0 && s.deed.pid != h.Runs[s.unit][0], func() { s.show(active, h.Runs[s.unit][0]) })
	}},
	{"a process is shown that nobody started", func(h *history, s scene) func() {
		return when(s.looks(active) && s.deed.pid != 0, func() { s.show(active, 1<<22+1) })
	}},
	{"a start of what was up is done", told(verbStart, outcomeSkipped, outcomeDone)},
	{"a start of what was down had nothing to do", told(verbStart, outcomeDone, outcomeSkipped)},
	{"a stop of what was down is done", told(verbStop, outcomeSkipped, outcomeDone)},
	{"a stop of what was up had nothing to do", told(verbStop, outcomeDone, outcomeSkipped)},
	{"a start is canceled, and nothing was there to cancel it", told(verbStart, outcomeDone, outcomeCanceled)},
	{"a stop is canceled, and nothing was there to cancel it", told(verbStop, outcomeDone, outcomeCanceled)},
	{"a start that fails is done", told(verbStart, outcomeFailed, outcomeDone)},
	{"the exit code is another", func(h *history, s scene) func() {
		return when(s.is(verbStart, outcomeDone), func() { s.deed.call.Code = exitFailed })
	}},
	{"a stop is missing", func(h *history, s scene) func() {
		return when(s.is(verbStop, outcomeDone) && s.after.tells(false), func() { h.drop(s.deed.call) })
	}},
	{"a start is missing", func(h *history, s scene) func() {
		return when(s.is(verbStart, outcomeDone) && s.after.tells(true), func() { h.drop(s.deed.call) })
	}},
	{"a restart is missing", func(h *history, s scene) func() {
		return when(s.is(verbRestart, outcomeDone) && s.deed.pid != 0 && s.after.shows(active), func() { h.drop(s.deed.call) })
	}},
	{"a reset-failed is missing", func(h *history, s scene) func() {
		failed := s.before.shows(failedUnit) || s.before != nil && s.before.outcome == outcomeFailed
		return when(s.deed.kind == "reset" && failed && s.after.shows(inactive), func() { h.drop(s.deed.call) })
	}},
	{"a start is there twice", func(h *history, s scene) func() {
		room := s.after != nil && s.after.begin > s.deed.call.End+2
		return when(s.is(verbStart, outcomeDone) && len(s.deed.call.Jobs) == 1 && room, func() {
			again := *s.deed.call
			again.Begin, again.End = s.deed.call.End+1, s.deed.call.End+2
			again.Jobs = slices.Clone(again.Jobs)
			again.Jobs[0].At = again.End
			h.Calls = append(h.Calls, again)
		})
	}},
	{"a look comes before its cause", func(h *history, s scene) func() {
		room := s.before != nil && s.deed.begin > s.before.end+2
		return when(s.is(verbStart, outcomeDone) && room && s.after.shows(active), func() {
			s.after.call.Begin, s.after.call.End = s.before.end+1, s.before.end+2
		})
	}},
	{"two answers are exchanged", func(h *history, s scene) func() {
		if !s.looks(active) {
			return nil
		}
		for _, o := range h.scenes() {
			if o.unit == s.unit && o.looks(inactive) {
				return func() { s.show(inactive, 0); o.show(active, s.deed.pid) }
			}
		}
		return nil
	}},
	{"the line of a unit that it needs is missing", func(h *history, s scene) func() {
		d := s.deed
		return when(d.call.Verb == verbStart && d.call.Unit != s.unit && d.kind == verbStart && s.canBeSilent(), func() { s.silence() })
	}},
	{"the line of a unit that conflicts is missing", func(h *history, s scene) func() {
		return when(s.deed.conflict && s.canBeSilent(), func() { s.silence() })
	}},
	{"there is a line of a unit that it does not concern", func(h *history, s scene) func() {
		return when(s.unit == "plain" && s.is(verbStart, outcomeDone), func() {
			s.deed.call.Jobs = append(s.deed.call.Jobs, heardJob{s.deed.end, "ready", verbStart, outcomeDone, 1})
		})
	}},
	{"both of a conflict are active", func(h *history, s scene) func() {
		return when(s.unit == "red" && s.looks(active) && s.deed.call.Unit == "", func() {
			scene{unit: "blue", deed: s.deed}.show(active, h.Runs["blue"][0])
		})
	}},
	{"what an active unit needs is inactive", func(h *history, s scene) func() {
		return when(s.unit == "app" && s.looks(active) && s.deed.call.Unit == "", func() {
			scene{unit: "base", deed: s.deed}.show(inactive, 0)
		})
	}},
	{"a reload that was refused is done", func(h *history, s scene) func() {
		return when(s.deed.kind == verbReload && s.deed.outcome == "refused", func() {
			s.deed.call.Code = exitOK
			s.deed.call.Jobs = []heardJob{{s.deed.end, s.unit, verbReload, outcomeDone, 0}}
		})
	}},
	{"a reload that was done is refused", func(h *history, s scene) func() {
		return when(s.is(verbReload, outcomeDone), func() { s.deed.call.Code, s.deed.call.Jobs = exitNotActive, nil })
	}},
	{"the service itself says that it ran in another order", func(h *history, s scene) func() {
		known := slices.Contains(h.Runs[s.unit], s.deed.pid)
		return when(s.is(verbRestart, outcomeDone) && s.before.shows(active) && known, func() { slices.Reverse(h.Runs[s.unit]) })
	}},
	{"the last state is another", func(h *history, s scene) func() {
		runs := h.Runs[s.unit]
		switch {
		case s.last && s.looks(active):
			return func() { s.show(inactive, 0) }
		case s.last && s.looks(inactive) && len(runs) > 0:
			return func() { s.show(active, runs[len(runs)-1]) }
		}
		return nil
	}},
}

func when(ok bool, do func()) func() {
	if !ok {
		return nil
	}
	return do
}

// told changes the outcome of a command on one unit.
func told(verb, from, to string) func(*history, scene) func() {
	return func(h *history, s scene) func() {
		return when(s.is(verb, from), func() {
			s.job().Outcome = to
			s.deed.call.Code = exitOK
			if to == outcomeCanceled {
				s.deed.call.Code = exitFailed
			}
		})
	}
}

// TestModelRejects makes real histories wrong in each of these ways, at several places, and demands that each is seen.
func TestModelRejects(t *testing.T) {
	const (
		clients = 3 // so that many deeds overlap no other
		calls   = 240
		places  = 3  // at most, for one way
		most    = 12 // histories, until each way has found a place
	)
	r := newModelRun(t)
	found := make([]int, len(mutations))
	for seed := uint64(1); seed <= most && slices.Min(found) == 0; seed++ {
		h := r.record(seed, clients, calls)
		if err := h.explain(); err != nil {
			r.keepHistory(h, seed)
			t.Fatalf("seed %d, as it was: %v", seed, err)
		}
		scenes := h.scenes()
		for i, m := range mutations {
			for place := range scenes {
				if found[i] == places || m.at(h, scenes[place]) == nil {
					continue
				}
				found[i]++
				wrong := h.copy(t)
				m.at(wrong, wrong.scenes()[place])()
				slices.SortFunc(wrong.Calls, func(a, b modelCall) int { return cmp.Compare(a.Begin, b.Begin) })
				if err := wrong.explain(); err == nil || errors.Is(err, errGivenUp) {
					t.Errorf("%s, seed %d, place %d: got %v, want a fault", m.what, seed, place, err)
				}
			}
		}
	}
	for i, m := range mutations {
		if found[i] == 0 {
			t.Errorf("%s: no history has a place for it", m.what)
		}
	}
}

func (h *history) copy(t *testing.T) *history {
	t.Helper()
	text, err := json.Marshal(h)
	again := new(history)
	if err == nil {
		err = json.Unmarshal(text, again)
	}
	if err != nil {
		t.Fatal(err)
	}
	return again
}
