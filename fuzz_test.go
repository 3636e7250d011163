// Role: all fuzz targets: what is read from outside, and random input for the pure files.
// Runs in: go test.
// Owns: nothing.
// Uses: visible, command, unit, value, deps, supervise, state, wire, sys, log, pump, shim, daemon, api, client.

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// ---- unit files, commands, environment files

// FuzzUnit: no text makes the parser panic; every mistake has a line of the text; a unit survives JSON; every
// key that TOML sees has a line; a command that is shown reads as the same command.
func FuzzUnit(f *testing.F) {
	shipped, _ := filepath.Glob("testdata/services/*.service")
	for _, path := range shipped {
		if text, err := os.ReadFile(path); err == nil {
			f.Add(text)
		}
	}
	for _, text := range []string{
		"service.ExecStart = [['sh', \"-c\", '''\nx''']]\n[unit]\n\"Aft\\u0065r\" = ['a'] # x",
		"[service]\nExecStart = \"-@:a b \\\\x41 ; c \\\\;\"\nType='oneshot'\nUMask=0o22\nRestartSec=1e3\n",
		"service = { ExecStart = 'x', RestartSec = '2min 3s' }\nunit = {Wants = \"a b\"}",
		"[[service]]\nx = 1979-05-27 07:32:00\n[[service]]\n", "[a.b.c]\n'x'.\"y\" = \"\"\"a\\\n \"\"\"\"\"\n",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 64<<10 {
			return
		}
		checkLines(t, text)
		u, err := parseUnit(testPath, text, testPlace)
		if err != nil {
			checkMistakes(t, err, text)
			return
		}
		checkJSON(t, u)
		checkShownCommands(t, u)
	})
}

func checkLines(t *testing.T, text []byte) {
	doc, places, wrong := readTOML(text)
	if wrong != nil {
		return
	}
	p := unitParser{places: places}
	for section, v := range doc {
		if at := p.find(section); !reflect.DeepEqual(at.path[:1], []string{section}) || at.path == nil {
			t.Errorf("section %q has no line: %+v", section, places)
		}
		keys, _ := v.(map[string]any)
		for key := range keys {
			if at := p.find(section, key); len(at.path) < 2 && !strings.Contains(string(text), `\`) {
				t.Errorf("key %q of %q has no line: %+v", key, section, places)
			}
		}
	}
}

func checkMistakes(t *testing.T, err error, text []byte) {
	wrong, ok := err.(unitError)
	if !ok || len(wrong.Mistakes) == 0 {
		t.Fatalf("error is %#v", err)
	}
	last := strings.Count(string(text), "\n") + 1
	for _, m := range wrong.Mistakes {
		if m.Line < 1 || m.Line > last || m.Text == "" || strings.Contains(m.Text, "BUG") {
			t.Errorf("mistake %+v in a text of %d lines", m, last)
		}
	}
}

func checkJSON(t *testing.T, u *unit) {
	checkTravels(t, u)
}

func checkShownCommands(t *testing.T, u *unit) {
	for _, c := range u.ExecStart {
		again, err := parseCommands(c.String())
		if err != nil || len(again) != 1 || !reflect.DeepEqual(again[0], c) {
			t.Errorf("%+v is shown as %q, which reads as %+v, %v", c, c.String(), again, err)
		}
		expandCommand(c, func(string) (string, bool) { return ` a "b`, true })
	}
}

// FuzzEnvironmentFile: no panic; every entry is an assignment to a valid name; no error shows a word of the file.
func FuzzEnvironmentFile(f *testing.F) {
	for _, text := range []string{"A=1\n# c\nB='x\ny' \"z\"\n", "A=a\\\nb \\ \nexport C=1", "A=\"\\\"\\$\\x\"\r\n;", "A=\\"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		entries, err := parseEnvironmentFile(text)
		if err != nil && entries != nil {
			t.Errorf("entries %q beside error %v", entries, err)
		}
		for _, e := range entries {
			name, _, ok := strings.Cut(e, "=")
			if !ok || !validName(name) {
				t.Errorf("entry %q", e)
			}
		}
	})
}

// ---- random graphs and commands against the queue of jobs

// gauntlet is one random run: the input decides the units, the commands and what fails. Input that ends reads as zeros.
type gauntlet struct {
	t     *testing.T
	input []byte
	w     *world
	open  map[*job]bool // installed and not yet ended
	ended map[*job]bool
	log   strings.Builder

	acyclic bool // the present graph has no ordering cycle at all
}

const fuzzUnits = 7

func (f *gauntlet) byte() int {
	if len(f.input) == 0 {
		return 0
	}
	b := f.input[0]
	f.input = f.input[1:]
	return int(b)
}

func (f *gauntlet) unit() string { return string(rune('a' + f.byte()%fuzzUnits)) }

// catalogue makes units with up to three relations each; some are missing, some broken.
func (f *gauntlet) catalogue() string {
	relations := []string{"after", "before", "requires", "wants", "bindsto", "partof", "conflicts"}
	var units strings.Builder
	for i := range fuzzUnits {
		b := f.byte()
		if b == 255 {
			continue
		}
		fmt.Fprintf(&units, "%c", 'a'+i)
		if b == 254 {
			units.WriteString(" broken\n")
			continue
		}
		for n := range b % 4 {
			if n > 0 {
				units.WriteString(",")
			}
			fmt.Fprintf(&units, " %s %s", relations[f.byte()%len(relations)], f.unit())
		}
		units.WriteString("\n")
	}
	return units.String()
}

func (f *gauntlet) run() string {
	f.w = newWorld(f.catalogue(), "")
	f.judge()
	f.open, f.ended = map[*job]bool{}, map[*job]bool{}
	for len(f.input) > 0 {
		switch f.byte() % 16 {
		case 0:
			f.w.load(f.catalogue())
			f.judge()
		case 1, 2:
			f.w.up[f.unit()] = f.byte()%2 == 0
		case 3, 4, 5, 6:
			f.dispatch()
		case 7, 8, 9, 10:
			f.finish(f.byte())
		default:
			f.ask()
		}
		f.check()
	}
	for range 20 * fuzzUnits {
		f.dispatch()
		f.finish(1)
		f.check()
	}
	for j := range f.open {
		f.t.Errorf("dead-lock: %s of %s never ended", j.Kind, j.Unit)
	}
	return f.log.String()
}

func (f *gauntlet) judge() { f.acyclic = !strings.Contains(fmt.Sprint(f.w.q.g.problems()), "cycle") }

func (f *gauntlet) ask() {
	kinds := []jobKind{startJob, startJob, stopJob, restartJob, reloadJob}
	d := demand{Kind: kinds[f.byte()%len(kinds)], By: byUser, Waiter: &f.log, NewID: f.w.newID}
	for range 1 + f.byte()%3 {
		d.Names = append(d.Names, f.unit())
	}
	s := f.w.q.submit(d)
	fmt.Fprintln(&f.log, d.Kind, d.Names)
	for _, a := range s.Answers {
		fmt.Fprintln(&f.log, a)
		if a.Err != nil && d.Kind == stopJob {
			f.t.Errorf("stop of %s refused: %v", a.Name, a.Err)
		}
		if a.Err == nil && !a.Skipped && f.w.q.job(a.Name) == nil {
			f.later(a.Name, d, s)
		}
	}
	f.note(s.Ended)
}

// later: an anchor without a job is right only if a later name of the same demand took it.
func (f *gauntlet) later(name string, d demand, s submission) {
	for _, e := range s.Ended {
		if e.Job.Unit == name {
			return
		}
	}
	f.t.Errorf("%s %s was accepted, but has no job", d.Kind, name)
}

// note counts what ended: each job once.
func (f *gauntlet) note(list []ended) {
	fmt.Fprintln(&f.log, tell(list))
	for _, e := range list {
		if f.ended[e.Job] {
			f.t.Errorf("%s of %s ended twice", e.Job.Kind, e.Job.Unit)
		}
		if e.Result == jobDependency && e.Culprit == "" {
			f.t.Errorf("%s of %s: dependency without a culprit", e.Job.Kind, e.Job.Unit)
		}
		f.ended[e.Job] = true
		delete(f.open, e.Job)
	}
}

// check looks at the queue after each step.
func (f *gauntlet) check() {
	for _, j := range f.w.q.list() {
		f.open[j] = true
		if f.ended[j] || f.w.q.byUnit[j.Unit] != j || f.w.q.at[j.id] != j {
			f.t.Errorf("%s of %s: not installed as it should be", j.Kind, j.Unit)
		}
	}
	for j := range f.open {
		if f.w.q.job(j.Unit) != j {
			f.t.Errorf("%s of %s is gone and was not told", j.Kind, j.Unit)
		}
	}
}

// dispatch checks each order against the graph: nothing that comes first may still be open.
func (f *gauntlet) dispatch() {
	orders := f.w.q.dispatch()
	for _, o := range orders {
		fmt.Fprintln(&f.log, "dispatch", o.Verb, o.Job.Unit)
		f.ordered(o)
	}
}

func (f *gauntlet) ordered(o order) {
	q := f.w.q
	n := &q.g.nodes[o.Job.id]
	if !f.acyclic { // the jobs of several commands may wait in a circle, which is broken, with a warning
		return
	}
	if o.Verb != startJob && o.Verb != reloadJob {
		f.orderedStop(o)
		return
	}
	for _, id := range n.after {
		if k := q.at[id]; k != nil && k.hasStart() {
			f.t.Errorf("%s of %s before %s of %s", o.Verb, o.Job.Unit, k.Kind, k.Unit)
		}
	}
	for _, id := range slices.Concat(n.after, n.before, n.conflicts) {
		if k := q.at[id]; k != nil && k.hasStop() && k != o.Job {
			f.t.Errorf("%s of %s before the stop of %s", o.Verb, o.Job.Unit, k.Unit)
		}
	}
}

// orderedStop: cycles among stops are broken, so only a graph without any keeps the order for sure.
func (f *gauntlet) orderedStop(o order) {
	q := f.w.q
	for _, id := range q.g.nodes[o.Job.id].before {
		if k := q.at[id]; f.acyclic && k != nil && k.hasStop() {
			f.t.Errorf("%s of %s before the stop of %s", o.Verb, o.Job.Unit, k.Unit)
		}
	}
}

// finish ends one of the running orders; how says which and how.
func (f *gauntlet) finish(how int) {
	var running []*job
	for _, j := range f.w.q.list() {
		if j.running != "" {
			running = append(running, j)
		}
	}
	if len(running) == 0 {
		return
	}
	j := running[how/8%len(running)]
	verb, result := j.running, jobDone
	if how%8 == 0 {
		result = jobFailed
	}
	if result == jobDone && verb != reloadJob {
		f.w.up[j.Unit] = verb != stopJob
	}
	f.note(f.w.q.finished(j.Unit, j.ID, verb, result, ""))
}

// FuzzTransaction: order is kept, every job ends once, nothing dead-locks, and the same input says the same.
func FuzzTransaction(f *testing.F) {
	f.Add([]byte("\x01\x02\x01\x01\x02\x02\x00\x00\x00\x00\x02\x03\x01"))
	f.Add([]byte("\x03\x00\x01\x02\x02\x06\x03\x02\x00\x02\x01\x03\x04\x00\x05\x01\x00\x00\x02\x00\x01\x02\x02\x03\x00\x01\x02\x02\x00\x02\x03"))
	f.Fuzz(func(t *testing.T, input []byte) {
		if len(input) > 300 {
			return
		}
		first := (&gauntlet{t: t, input: input}).run()
		second := (&gauntlet{t: t, input: input}).run()
		if first != second {
			t.Errorf("the same input said first\n%s\nthen\n%s", first, second)
		}
	})
}

// ---- random events against the state machine

var fuzzStepUnits = []string{
	``, `Type="notify"`, `Type="forking"`, `Type="forking";PIDFile="/run/x"`, `Type="oneshot";ExecStart=["a", "-b"]`,
	`Type="oneshot";ExecStart="a";RemainAfterExit=true;ExecReload="r"`, `RemainAfterExit=true`,
	`ExecStartPre=["a", "b"];ExecStartPost="p";ExecReload="r";ExecStop="x";ExecStopPost="y";Restart="always"`,
	`Type="notify";ExecReload="r";ExecStop="x";Restart="on-failure";StartLimitBurst=2`, `KillMode="mixed";Restart="always";ExecStopPost="y"`,
	`KillMode="process";ExecStopPost="y"`, `KillMode="none";ExecStop="x"`, `SendSIGKILL=false;ExecStopPost="y"`, `KillMode="mixed";SendSIGKILL=false`,
	`Type="notify";TimeoutStartSec="infinity";TimeoutStopSec="infinity";Restart="always"`,
}

// stepper drives a service with anything and checks what must hold whatever happens.
type stepper struct {
	t       *testing.T
	s       *service
	now     instant
	log     []string
	jobs    int
	answers map[string]string
	stopped bool // the last job was a stop, and it is done
}

func (f *stepper) step(name string, ev event) {
	f.now.boot += boottime(time.Millisecond)
	f.now.fresh = strconv.FormatInt(int64(f.now.boot)*7919, 16) + "0000"
	effects := f.s.step(f.now, ev)
	f.log = append(f.log, name)
	f.checkState()
	f.checkJob()
	f.checkEffects(effects)
	for _, e := range effects {
		if e, ok := e.(spawn); ok {
			f.record(e)
		}
	}
}

// record does what the shim records when it starts a process.
func (f *stepper) record(e spawn) {
	f.s.Spawning = e.role
	ref := pidRef{PID: 100 + len(f.log), Start: 5}
	if e.role == roleMain {
		f.s.Main = ref
	} else {
		f.s.Control = ref
	}
}

func (f *stepper) fail(format string, args ...any) {
	f.t.Helper()
	f.t.Logf("after %q; unit %+v", f.log, f.s.unit)
	f.t.Fatalf(format, args...)
}

func (f *stepper) checkState() {
	s := f.s
	none := s.Main.zero() && s.Control.zero()
	switch activeOf(s.Sub) {
	case inactive, failedUnit:
		if !none && s.Sub != unknown {
			f.fail("%s has processes %v %v", s.Sub, s.Main, s.Control)
		}
	case deactivating:
		if s.Deadline == 0 && s.unit.TimeoutStopSec != infinity {
			f.fail("%s has no deadline", s.Sub)
		}
	}
	if (s.Sub == exited || s.Sub == autoRestart) && !none {
		f.fail("%s has processes %v %v", s.Sub, s.Main, s.Control)
	}
	if s.Sub == autoRestart && s.Deadline == 0 {
		f.fail("no restart is due")
	}
	if s.Sub == failed && s.Result == resultSuccess || s.Sub == dead && s.Result != resultSuccess {
		f.fail("%s with result %s", s.Sub, s.Result)
	}
	if (s.Sub == dead || s.Sub == failed) && s.openJob() {
		f.fail("%s with the open job %+v", s.Sub, s.Job)
	}
}

// checkJob: a job is answered once and for all.
func (f *stepper) checkJob() {
	j := f.s.Job
	if old := f.answers[j.ID]; old != "" && old != j.Outcome {
		f.fail("job %s is answered %s after %s", j.ID, j.Outcome, old)
	}
	f.answers[j.ID] = j.Outcome
	if j.Outcome == "" {
		f.stopped = false
	} else if j.Verb == verbStop {
		f.stopped = true
	}
}

func (f *stepper) checkEffects(effects []effect) {
	spawns := 0
	for i, e := range effects {
		switch e.(type) {
		case spawn:
			spawns++
		case quit:
			if i < len(effects)-1 {
				f.fail("something is to be done after the end: %v", effects)
			}
		}
	}
	if spawns > 1 {
		f.fail("two spawns at a time: %v", effects)
	}
	if spawns > 0 && f.stopped {
		f.fail("something is started after a stop: %v", effects)
	}
}

// plausible is what can follow the present state: else random events would hardly get anywhere.
func (f *stepper) plausible(b byte) (string, event) {
	s := f.s
	code := exitStatus{exitExited, int(b>>6) & 1}
	switch {
	case s.Spawning != "" && b&3 != 0:
		return "runs", evSpawned{s.Spawning}
	case s.Spawning != "":
		return "cannot run", evSpawnFailed{role: s.Spawning, failure: stageFailure{stageExec, 2}}
	case !s.Control.zero() && b&3 != 0:
		return "command ends", evExit{role: roleControl, exit: code}
	case !s.Main.zero() && b&1 == 0:
		return "main ends", evExit{role: roleMain, exit: code}
	case s.Sub == starting:
		return "ready", evNotify{msg: notifyMessage{Ready: true}}
	case b&2 != 0 && (s.Sub == finalSigterm || s.Sub == finalSigkill || s.Sub == exited):
		return "drained", evDrained{}
	case s.Deadline != 0 && b&1 == 0:
		f.now.boot = max(f.now.boot, s.Deadline)
		return "timeout", evTimeout{}
	case b&4 != 0:
		return "tree left", evTree{[]int{50}}
	}
	return "tree empty", evTree{}
}

func FuzzStep(f *testing.F) {
	for i := range fuzzStepUnits {
		f.Add(byte(i), []byte("\x01\x81\x83\x85\x87\x80\x02\x81\x80\x85\x8a\x81\x80\x03\x81\x04\xc5\x81\x80"))
		f.Add(byte(i), []byte("\x01\x81\x83\x85\x06\x81\x07\x80\x82\x81\x80"))
		f.Add(byte(i), []byte("\x01\x02\x81\x83\x82\x04\x03\x83\x1a\x81\x85\x1b\x90\x1c\x80\x17\x18\x81\x83"))
	}
	f.Fuzz(func(t *testing.T, which byte, input []byte) {
		if len(input) > 300 {
			return
		}
		d := drive(t, events(fuzzStepUnits[int(which)%len(fuzzStepUnits)])...)
		w := &stepper{t: t, s: d.s, now: d.now, answers: map[string]string{}}
		verbs := []string{verbStart, verbStop, verbRestart, verbReload}
		for _, b := range input {
			switch {
			case b >= 0x80:
				w.step(w.plausible(b))
			case b >= 1 && b <= 4:
				w.jobs++
				w.step(verbs[b-1], evJob{id: strconv.Itoa(w.jobs), verb: verbs[b-1], unit: d.s.unit})
			case b == 5:
				w.s = newService(w.s.unit, w.s.runRecord) // the shim was killed
				w.step("adopted", evAdopted{nothingRan: w.s.Spawning != "" && w.now.boot%2 == 0})
			case b == 6 || b == 7: // a stop within a shutdown, or the one under way with less time
				w.jobs += int(7 - b)
				w.step(verbStop, evJob{id: strconv.Itoa(w.jobs), verb: verbStop, until: w.now.after(time.Duration(b-5) * time.Second)})
			default:
				if c := allEvents[int(b)%len(allEvents)]; !isJob(c.ev) && w.possible(c.ev) {
					w.step(c.name, c.ev)
				}
			}
		}
	})
}

// possible: a guard is busy before the command of the present state is started, of which nothing is recorded then.
func (f *stepper) possible(ev event) bool {
	busy, ok := ev.(evBusy)
	if !ok {
		return true
	}
	if busy.role != f.s.presentRole() {
		return false
	}
	if f.s.Spawning == busy.role {
		f.s.Spawning = ""
		if busy.role == roleMain {
			f.s.Main = pidRef{}
		} else {
			f.s.Control = pidRef{}
		}
	}
	return busy.role == roleMain && f.s.Main.zero() || busy.role == roleControl && f.s.Control.zero()
}

func isJob(ev event) bool { _, ok := ev.(evJob); return ok }

// TestFuzzStepReaches: the seeds lead into every state, so that the checks mean something.
func TestFuzzStepReaches(t *testing.T) {
	var seen []subState
	for which := range fuzzStepUnits {
		d := drive(t, events(fuzzStepUnits[which])...)
		w := &stepper{t: t, s: d.s, now: d.now, answers: map[string]string{}}
		x := uint32(which + 1)
		for range 3000 {
			x = x*1664525 + 1013904223
			b := byte(x >> 24)
			if b < 12 {
				w.jobs++
				verb := []string{verbStart, verbStart, verbStop, verbRestart, verbReload}[int(b)%5]
				w.step(verb, evJob{id: strconv.Itoa(w.jobs), verb: verb, unit: d.s.unit})
			} else {
				w.step(w.plausible(b))
			}
			if !slices.Contains(seen, w.s.Sub) {
				seen = append(seen, w.s.Sub)
			}
		}
	}
	for _, sub := range subStates {
		if sub != unknown && !slices.Contains(seen, sub) {
			t.Errorf("%s is never reached", sub)
		}
	}
}

// ---- the log

// FuzzRecord: whatever stands in a log file, reading gives no panic, and the last N are the end of all.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(rec(1, "stdout", "P", "a")+rec(2, "stderr", "F", "b")+"oops\n"), uint8(1))
	f.Add([]byte(rec(1, "stderr", "F", string(gapText(lostCount{1, 2, 3, 4})))+"\n\n"), uint8(2))
	f.Fuzz(func(t *testing.T, text []byte, n uint8) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, currentName), text, 0o600); err != nil {
			t.Fatal(err)
		}
		count := func(lines int) (k int) {
			err := readLogs([]logSource{{"x", dir}}, logQuery{Lines: lines}, func(_ string, r logRecord) error {
				k++
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			return k
		}
		if all, last := count(-1), count(int(n)); last != min(all, int(n)) {
			t.Errorf("%d records, the last %d are %d", all, n, last)
		}
	})
}

// FuzzLogFile: whatever stands in the log that a writer opens, it keeps the lines that are whole, and what it appends is read as it was written.
func FuzzLogFile(f *testing.F) {
	f.Add([]byte(rec(1, "stdout", "F", "a") + "torn"))
	f.Add([]byte("\x00\n\n" + rec(2, "stderr", "P", "b")))
	f.Add(bytes.Repeat([]byte("x"), 3*maxRecordText))
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		path := filepath.Join(dir, currentName)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		k := realKernel()
		l := newLogWriter(pumpConfig{LogDir: dir, MaxSize: 1 << 30, MaxFiles: 5}, &k)
		defer l.close()
		if err := l.open(); err != nil {
			t.Fatal(err)
		}
		whole := text[:bytes.LastIndexByte(text, '\n')+1]
		got, err := os.ReadFile(path)
		if err != nil || !bytes.HasPrefix(got, whole) || len(got) > 0 && got[len(got)-1] != '\n' || int64(len(got)) != l.size {
			t.Fatalf("%q became %q (%d bytes), %v", text, got, l.size, err)
		}
		record := rec(3, "stdout", "F", "appended")
		if _, err := k.write(l.fd, []byte(record)); err != nil {
			t.Fatal(err)
		}
		if got, _ = os.ReadFile(path); !bytes.HasSuffix(got, []byte(record)) {
			t.Errorf("got %q at the end, want %q", tail(got, 100), record)
		}
	})
}

// FuzzFrame: framing keeps every byte, and the same bytes in two steps make the same records.
func FuzzFrame(f *testing.F) {
	f.Add([]byte("a\nbb\n\nccc"), uint8(3), uint16(100), true)
	f.Fuzz(func(t *testing.T, data []byte, most uint8, limit uint16, end bool) {
		fr := framing{stamp: day0, max: max(1, int(most)), end: end}
		whole, taken := fr.frame(nil, data, 1<<30)
		if taken != len(data) {
			t.Fatalf("%d of %d bytes taken", taken, len(data))
		}
		var back []byte
		for line := range bytes.Lines(whole) {
			r, ok := parseRecord(bytes.TrimSuffix(line, []byte("\n")))
			if !ok || len(r.text) > fr.max {
				t.Fatalf("bad record %q", line)
			}
			if back = append(back, r.text...); !r.partial {
				back = append(back, '\n')
			}
		}
		want := data
		if end && len(data) > 0 && data[len(data)-1] != '\n' {
			want = append(bytes.Clone(data), '\n')
		}
		if !bytes.Equal(back, want) {
			t.Errorf("%q became %q", want, back)
		}
		first, n := fr.frame(nil, data, int(limit))
		rest, _ := fr.frame(nil, data[n:], 1<<30)
		if !bytes.Equal(append(first, rest...), whole) {
			t.Error("two steps make other records")
		}
	})
}

// FuzzIntent: no header makes a reader panic, and what passes survives being written.
func FuzzIntent(f *testing.F) {
	f.Add(make([]byte, pumpLostAt))
	f.Fuzz(func(t *testing.T, head []byte) {
		header := make([]byte, 4096)
		copy(header, head)
		in, err := getIntent(header)
		if err != nil {
			return
		}
		again := make([]byte, 4096)
		in.put(again)
		copy(again[pumpFlagsAt:pumpIntentAt], header[pumpFlagsAt:])
		if back, err := getIntent(again); err != nil || back != in {
			t.Errorf("%+v became %+v, %v", in, back, err)
		}
	})
}

// ---- formats that cross processes, and what /proc says

// FuzzSlots: no file makes a record of what was not written as one; a good slot survives any neighbour that is older or broken.
func FuzzSlots(f *testing.F) {
	good, _ := newSlot(5, encode(nil, &wantNew))
	f.Add([]byte("x"), uint16(0))
	f.Add(good, uint16(slotBytes))
	f.Add(good[:100], uint16(20))
	f.Fuzz(func(t *testing.T, noise []byte, at uint16) {
		file := make([]byte, 2*slotBytes)
		copy(file, noise)
		var got wantRecord
		_, err := decodeSlots(file, &got)
		if err != nil && got != (wantRecord{}) && !strings.Contains(err.Error(), "want ") {
			t.Errorf("%+v beside %v", got, err)
		}
		copy(file, good)
		copy(file[slotBytes:], noise)
		if n := int(at) % slotBytes; len(noise) > 0 {
			file[slotBytes+n] ^= noise[0]
		}
		got = wantRecord{}
		if seq, err := decodeSlots(file, &got); err != nil || seq == 5 && got != wantNew || seq < 5 {
			if _, _, other := slotBody(file[slotBytes:]); !other {
				t.Errorf("%d %+v, %v", seq, got, err)
			}
		}
	})
}

// FuzzHistory: no file makes an event of what was not written as one; good slots survive any noise in the others.
func FuzzHistory(f *testing.F) {
	f.Add([]byte("x"), uint16(0), uint64(3), "user", "text")
	f.Add(bytes.Repeat([]byte{0xff}, 3*historySlotBytes), uint16(100), uint64(64), "<\x00", strings.Repeat("€", 200))
	f.Fuzz(func(t *testing.T, noise []byte, at uint16, seq uint64, by, text string) {
		if seq == 0 || seq > 1<<62 {
			return
		}
		file := make([]byte, historyBytes)
		copy(file[int(at)%len(file):], noise)
		decodeHistory(file, "b", everyEvent)
		slot := seq % historySlots * historySlotBytes
		encodeEvent(file[slot:slot+historySlotBytes], "b", seq, historyEvent{Time: 7, Kind: eventFailed, By: by, Text: text})
		got := decodeHistory(file, "b", seq)
		i := slices.IndexFunc(got, func(e historyEvent) bool { return e.Seq == seq })
		if i < 0 || got[i].Time != 7 || utf8.ValidString(text) && len(by) < 16 && !strings.HasPrefix(text, got[i].Text) {
			t.Errorf("%d: %+v", seq, got)
		}
		for i := range got {
			if eventText(&got[i]) == "" && got[i].Kind != "" {
				t.Errorf("%+v has no words", got[i])
			}
		}
	})
}

// FuzzStageOrder: no order makes the stage panic or take more memory than the order has; what is read is written the same.
func FuzzStageOrder(f *testing.F) {
	f.Add(encodeStageOrder(stageOrder{Path: "/x", Argv: []string{"x"}, Env: []string{"A=b"}, Dir: "/", UID: 1, GID: -1, Groups: []int{3}})[4:])
	f.Add([]byte("p\x002000000000\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := decodeStageOrder(bytes.Clone(b))
		if err != nil {
			return
		}
		again, err := decodeStageOrder(encodeStageOrder(o)[4:])
		if err != nil || !reflect.DeepEqual(again, o) {
			t.Errorf("%v\nfrom %+v\nto   %+v", err, o, again)
		}
	})
}

// FuzzNotify: no datagram makes a PID or a text that could not be.
func FuzzNotify(f *testing.F) {
	for _, text := range []string{"READY=1\nSTATUS=x\nMAINPID=7", "STATUS=\xff", "MAINPID=99999999999999999999", "\n=\n\x00"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := parseNotify(b)
		if m.MainPID < 0 || !utf8.ValidString(m.Status) || strings.Contains(m.Status, "\n") || m.Ready && !bytes.Contains(b, []byte("READY=1")) {
			t.Errorf("%q: %+v", b, m)
		}
	})
}

// FuzzControlFrame: whatever comes over a socket in whatever pieces, the reader takes line by line, ends, and panics at nothing.
func FuzzControlFrame(f *testing.F) {
	f.Add([]byte(`{"op":"hello","proto":1}`+"\n"+`{"op":"exit","exit":{"ref":{"pid":1},"exit":{}}}`+"\n"), uint8(3))
	f.Add([]byte("\n\n{}\n[1]\nnull\n\"\\ud800\"\n{\"state\":{\"starts\":[1,2]}}\n{"), uint8(1))
	f.Add([]byte(`{"verb":"start","names":["a","b"],"no_block":true}`+"\nx"), uint8(200))
	f.Fuzz(func(t *testing.T, b []byte, piece uint8) {
		if len(b) > 1<<14 {
			return
		}
		lines := bytes.Count(b, []byte("\n"))
		ours, theirs := testPair(t)
		go func() {
			defer theirs.Close()
			for len(b) > 0 {
				n := min(len(b), int(piece)+1)
				if _, err := theirs.Write(b[:n]); err != nil {
					return
				}
				b = b[n:]
			}
		}()
		c := newConn(ours)
		defer c.close()
		for n := 0; ; n++ {
			if n > lines {
				t.Fatalf("more frames than the %d lines", lines)
			}
			line, err := c.readLine()
			if err != nil {
				if n != lines {
					t.Fatalf("%d of %d lines, then %v", n, lines, err)
				}
				return
			}
			readBoth(line)
		}
	})
}

// readBoth reads a line as either side of both control protocols would.
func readBoth(line []byte) {
	whole := append(bytes.Clone(line), '\n')
	_ = (&conn{buf: whole}).readFrame(new(shimFrame))
	for _, v := range []any{new(request), new(reply)} {
		_ = (&conn{buf: whole}).readJSON(v)
	}
}

// FuzzHandover: whatever a daemon writes into the socket of a new shim before its hello, the shim comes through.
func FuzzHandover(f *testing.F) {
	f.Add([]byte(`{"op":"held","names":["main"]}` + "\n" + `{"op":"orphans","refs":[{"pid":7}]}` + "\n" + `{"op":"exit","exit":{"ref":{"pid":7},"exit":{}}}` + "\n" + `{"op":"hello"}` + "\n"))
	f.Add([]byte(`{"op":"exit"}` + "\n" + `{"op":"held"}` + "\n" + `{"op":"hello","fresh":true}` + "\n" + `{"op":"want"}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<14 {
			return
		}
		ours, theirs := testPair(t)
		if _, err := theirs.Write(b); err != nil {
			t.Fatal(err)
		}
		theirs.Close()
		s := &shim{home: home{t.TempDir()}, inbox: make(chan any, bytes.Count(b, []byte("\n"))+1)}
		got := s.hear(newConn(ours))
		if greeted := s.daemon != nil; greeted != greets(b) {
			t.Errorf("greeted: %t, %+v", greeted, got)
		}
		for s.daemon != nil { // until the reader of the connection has ended
			if _, closed := (<-s.inbox).(msgClosed); closed {
				break
			}
		}
	})
}

// greets: among the whole lines there is a hello, and none before it that is no frame.
func greets(text []byte) bool {
	for line := range bytes.Lines(text) {
		var f shimFrame
		if !bytes.HasSuffix(line, []byte("\n")) || decode(line[:len(line)-1], &f) != nil {
			return false
		}
		if f.Op == opHello {
			return true
		}
	}
	return false
}

// FuzzShimFrame: no frames make a shim panic, whatever state it is in. It has no processes and no commands, so nothing is started.
func FuzzShimFrame(f *testing.F) {
	f.Add([]byte(`{"op":"hello","role":"daemon"}`+"\n"+`{"op":"want","job":"new"}`+"\n"+`{"op":"reset"}`+"\n"+`{"op":"idle"}`+"\n"+`{"op":"leave"}`), uint8(0))
	f.Add([]byte(`{"op":"exit","exit":{"ref":{"pid":1},"exit":{"how":"exited"}}}`+"\n"+`{"op":"exit"}`+"\n"+`{"op":"orphans","refs":[{},{"pid":-1}]}`+"\n"+`{"op":"heal"}`), uint8(4))
	f.Fuzz(func(t *testing.T, b []byte, state uint8) {
		s := shimWithWish(t, runRecord{Sub: subStates[int(state)%len(subStates)]}, wantRecord{Job: "new", Verb: verbStop})
		ours, theirs := testPair(t)
		s.daemon, s.notify.fd = newConn(ours), -1
		for line := range bytes.SplitSeq(b, []byte("\n")) {
			var frame shimFrame
			if decode(line, &frame) == nil {
				s.onFrame(newConn(theirs), frame)
			}
			if s.daemon == nil {
				s.daemon = newConn(ours)
			}
		}
		if !slices.Contains(subStates[:], s.svc.Sub) {
			t.Errorf("state %q", s.svc.Sub)
		}
	})
}

// fuzzManager is a daemon without a loop: nothing that it plans is carried out, so no process is started.
func fuzzManager(t *testing.T) *manager {
	t.Helper()
	dir := t.TempDir()
	m := &manager{home: home{dir + "/h"}, boot: "b", inbox: make(chan any, 64), services: map[string]*supervised{}, broken: map[string]error{},
		files: map[string]*file{}, shims: map[int]*supervised{}, helpers: map[int]bool{}, adopting: map[*supervised]bool{}, bereaved: map[*supervised]bool{},
		clients: map[*session]bool{}, reserve: -1, serviceDir: dir}
	m.jobs = newJobs(m.isUp, m.isDown)
	for _, d := range []string{m.home.path, m.home.enabledDir(), m.home.runRoot()} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"web": "[unit]\nRequires = 'db'\n[service]\nExecStart = 'x'\nExecReload = 'y'\n", "db": "[service]\nExecStart = 'x'\n", "bad": "x"} {
		if err := os.WriteFile(unitPath(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if m.answers != nil {
			m.answers.Stop()
		}
		m.own.end()
	})
	return m
}

// ask answers one request and returns the lines of the answer.
func (m *manager) ask(c *session, r request) (lines []byte) {
	m.answer(c, r)
	select {
	case lines = <-c.out:
	default:
	}
	lines = append(lines, c.backlog...)
	c.backlog = nil
	return lines
}

// FuzzRequest: whatever clients ask for, in whatever order, each answer is lines of the protocol and no handler panics.
func FuzzRequest(f *testing.F) {
	for _, text := range []string{
		`{"verb":"start","service_dir":"DIR","names":["web"]}` + "\n" + `{"verb":"list","service_dir":"DIR"}` + "\n" + `{"verb":"stop","names":["db","web"]}`,
		`{"verb":"enable","service_dir":"DIR","names":["web","bad","none"]}` + "\n" + `{"verb":"status","names":["web"],"service_dir":"DIR"}` + "\n" + `{"verb":"disable","names":["web"]}`,
		`{"verb":"kill"}` + "\n" + `{"verb":"start","names":["web"],"service_dir":"DIR"}` + "\n" + `{"verb":"daemon-status"}`,
		`{"verb":"restart","names":["web","web"],"service_dir":"DIR","no_block":true}` + "\n" + `{"verb":"reload","names":["web"]}` + "\n" + `{"verb":"forget","names":["db"]}`,
		`{"verb":"reset-failed"}` + "\n" + `{"verb":"x"}` + "\n" + `{"verb":"start","names":["../x"],"service_dir":"relative"}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<12 {
			return
		}
		m := fuzzManager(t)
		ours, _ := testPair(t)
		c := &session{conn: newConn(ours), out: make(chan []byte, 1)}
		m.clients[c] = true
		for line := range bytes.SplitSeq(bytes.ReplaceAll(b, []byte("DIR"), []byte(m.serviceDir)), []byte("\n")) {
			var r request
			if json.Unmarshal(line, &r) != nil {
				continue
			}
			m.refreshGraph()
			for text := range bytes.Lines(m.ask(c, r)) {
				var answer reply
				if err := json.Unmarshal(text, &answer); err != nil || answer.Done != nil && strings.Contains(answer.Done.Error, "internal error") {
					t.Errorf("%s is answered %s, %v", line, text, err)
				}
			}
		}
	})
}

// FuzzDaemonFrame: no frames of a shim make the daemon panic, nor spoil what it says of the service.
func FuzzDaemonFrame(f *testing.F) {
	f.Add([]byte(`{"op":"hello","proto":1,"state":{"v":1,"boot":"b","sub":"dead","shim":7}}` + "\n" + `{"op":"state","state":{"sub":"running","main":{"pid":9},"job":{"id":"1","verb":"start","outcome":"done"},"shim":7}}`))
	f.Add([]byte(`{"op":"state","names":["out","err"]}` + "\n" + `{"op":"state","state":{"sub":"","left":[1],"exit":{"how":"killed","status":99}}}` + "\n" + `{"op":"hello"}`))
	f.Add([]byte(`{"op":"state","state":{"sub":"running"}}` + "\n" + `{"op":"state","state":{"sub":"failed","job":{"id":"1","outcome":"x"},"deadline":-1}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<12 {
			return
		}
		m := fuzzManager(t)
		m.loadClosure([]string{"web"}, m.serviceDir)
		m.submit(demand{Kind: startJob, Names: []string{"web"}, By: byUser})
		e := m.entry("db")
		ours, _ := testPair(t)
		e.link = newConn(ours)
		for _, o := range m.jobs.dispatch() {
			m.carryOut(o)
		}
		e.order.id = "1"
		for line := range bytes.SplitSeq(b, []byte("\n")) {
			var frame shimFrame
			if decode(line, &frame) == nil {
				m.onShim(msgShim{e, e.link, frame, nil})
			}
			if e.link == nil {
				e.link = newConn(ours)
			}
		}
		s, known := m.statusOf("db", m.serviceDir, nil)
		if _, err := json.Marshal(s); err != nil || !known || s.ActiveState == "" {
			t.Errorf("%+v, %v", s, err)
		}
	})
}

// FuzzCommandLine: no arguments make the client panic; what it takes is well formed, and what it says against the others is safe to show.
func FuzzCommandLine(f *testing.F) {
	for _, text := range []string{"start a b", "--json status", "-fn5 logs web", "logs --since 2h -n 3 -- -x", "--home= list", "status --no-block x", "kill x", "install --hard-links /x",
		"--service-dir", "-n", "--lines=-1 logs a", "help start", "check ./x.service", "logs \x1b[31m", "--version", "-", "-- -- -", "start a.service a \xff", "start " + strings.Repeat("\x80", 100)} {
		f.Add(strings.ReplaceAll(text, " ", "\x00"))
	}
	f.Fuzz(func(t *testing.T, line string) {
		v, buf := testView(80)
		c := &client{out: v, err: v}
		var err error
		c.clientCall, err = parseCall(strings.Split(line, "\x00"))
		switch known := findVerb(c.verb) != nil; {
		case err == nil && c.verb != "" && !known:
			t.Errorf("%q: verb %q", line, c.verb)
		case err == nil && known:
			err = c.check()
		}
		names, wrong := c.unitNames()
		for i, name := range names {
			if again, err := unitName(name); err != nil || again != name || slices.Contains(names[:i], name) {
				t.Errorf("%q: unit %q, %v", line, name, err)
			}
		}
		if _, since := parseSince(c.since, testNow); since != nil && c.since != "" {
			wrong = errors.Join(wrong, since)
		}
		for _, e := range []error{err, wrong} {
			if e != nil && c.usage(e) != exitUsage {
				t.Errorf("%q: %v is no mistake of the caller", line, e)
			}
		}
		if i := strings.IndexFunc(flushed(v, buf), func(r rune) bool { return r != '\n' && hidden(r) }); i >= 0 {
			t.Errorf("%q: a hidden character is shown", line)
		}
	})
}

// FuzzStat: no process name confuses the reader of /proc/PID/stat.
func FuzzStat(f *testing.F) {
	own, _ := os.ReadFile("/proc/self/stat")
	f.Add(own)
	f.Add([]byte("1 (a) b) (c) S 0 1 1 0 -1 4194560 1 1 1 1 1 1 1 1 20 0 1 0 9 1 1 1"))
	f.Add([]byte(") ("))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseStat(b)
		if err == nil && (s.state == 0 || !bytes.Contains(b, []byte("("+s.comm+")"))) {
			t.Errorf("%q: %+v", b, s)
		}
	})
}

// FuzzMountinfo: what is found as the mount of cgroup v2 stands in the text.
func FuzzMountinfo(f *testing.F) {
	own, _ := os.ReadFile("/proc/self/mountinfo")
	f.Add(own)
	f.Add([]byte("30 23 0:26 /a\\040b /sys/fs\\134cgroup rw - cgroup2 cgroup2 rw\n"))
	f.Add([]byte("x - cgroup2 y\n1 2 3 4\\04 \\ - cgroup2 z"))
	f.Fuzz(func(t *testing.T, b []byte) {
		mount, root := cgroupMount(b)
		if mount == "" && root != "" || mount != "" && !bytes.Contains(b, []byte(" - cgroup2 ")) {
			t.Errorf("%q: %q %q", b, mount, root)
		}
		if !strings.Contains(mount, `\`) && mount != "" && !bytes.Contains(b, []byte(`\`)) && !bytes.Contains(b, []byte(mount)) {
			t.Errorf("%q: %q", b, mount)
		}
	})
}
