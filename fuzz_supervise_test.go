// Role: random events against the state machine of a service.
// Runs in: go test.
// Owns: nothing.
// Uses: supervise, unit, wire.

package main

import (
	"slices"
	"strconv"
	"testing"
	"time"
)

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
		return "command ends", evExit{roleControl, code}
	case !s.Main.zero() && b&1 == 0:
		return "main ends", evExit{roleMain, code}
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
			default:
				if c := allEvents[int(b)%len(allEvents)]; !isJob(c.ev) {
					w.step(c.name, c.ev)
				}
			}
		}
	})
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
