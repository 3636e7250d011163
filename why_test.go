// Role: tests of why.go: sentences about each state. Scripts have them from real services.
// Runs in: go test.
// Owns: nothing.
// Uses: wire, unit, supervise, state, why.

package main

import (
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// caseOf is a service in a state at 14:03:12, told of at 14:05:12.
func caseOf(t *testing.T, sub subState, events ...historyEvent) *whyCase {
	t.Helper()
	entered := time.Date(2026, 11, 22, 14, 3, 12, 0, time.UTC)
	k := &whyCase{rec: runRecord{Sub: sub, Since: entered.UnixNano()}, unit: parseTest(t, "[service]\nExecStart=\"x\"\n"), events: events, daemon: true,
		now: entered.Add(2 * time.Minute), zone: time.UTC}
	for i := range events {
		events[i].Seq, events[i].Time = uint64(i+1), entered.Add(time.Duration(i-len(events))*time.Second).UnixNano()
	}
	k.status = statusOf("web", k.unit, k.rec, statusFacts{loadState: "loaded", shimAlive: true})
	return k
}

func TestSentences(t *testing.T) {
	start := historyEvent{Kind: eventStart, By: "user"}
	up := historyEvent{Kind: eventReady, PID: 7}
	crash := historyEvent{Kind: eventExit, By: causeService, Exit: exitStatus{exitKilled, 11}, Result: resultSignal, PID: 7}
	again := historyEvent{Kind: eventStart, By: causePolicy, Text: "Restart=on-failure", Delay: 400, Count: 3}
	stop := historyEvent{Kind: eventStop, By: "dependency", For: "db"}
	for _, c := range []struct {
		name   string
		state  subState
		events []historyEvent
		with   func(*whyCase)
		want   string
	}{
		{"running", running, []historyEvent{start, up}, nil, "web is running since 14:03:12 (2min ago): it was started by the user."},
		{"restarted", running, []historyEvent{start, up, crash, again, up}, func(k *whyCase) { k.status.Restarts = 3 },
			"web is running since 14:03:12 (2min ago): it was started by the user at 14:03:07, and restarted 3 times since, the last time at 14:03:10 after its main process was killed by SIGSEGV; Restart=on-failure waited 400 ms."},
		{"restarted, and its start has gone from the ring", running, []historyEvent{crash, again, up}, func(k *whyCase) { k.status.Restarts = 30 },
			"web is running since 14:03:12 (2min ago): it was started, and restarted 30 times since, the last time at 14:03:10 after its main process was killed by SIGSEGV; Restart=on-failure waited 400 ms."},
		{"without a history", running, nil, nil, "web is running since 14:03:12 (2min ago)."},
		{"another day", running, nil, func(k *whyCase) { k.now = k.now.Add(24 * time.Hour) }, "web is running since Sun 2026-11-22 14:03:12 (1d ago)."},
		{"out of memory", running, []historyEvent{start, {Kind: eventExit, By: causeOOM, Exit: exitStatus{exitKilled, 9}, Result: resultOOMKill}, again}, func(k *whyCase) { k.status.Restarts = 1 },
			"web is running since 14:03:12 (2min ago): it was started by the user at 14:03:09, and restarted once since, at 14:03:11 after its main process was killed by the kernel for lack of memory; Restart=on-failure waited 400 ms."},
		{"not ready", starting, []historyEvent{start}, func(k *whyCase) { k.unit.Type = typeNotify },
			"web is being started since 14:03:12 (2min ago): it was started by the user. It has not said yet that it is ready (READY=1)."},
		{"not heard", starting, []historyEvent{start}, func(k *whyCase) { k.unit.Type, k.rec.Unheard, k.rec.Deadline = typeNotify, true, bootNow() }, "web is being started since 14:03:12 (2min ago): it was started by the user. " +
			"It has not said yet that it is ready (READY=1). It may have done so while daemon and shim were dead: at 14:05:11 it is taken for ready (TimeoutStartSec)."},
		{"before its start", startPre, []historyEvent{start}, nil, "web is being started since 14:03:12 (2min ago): it was started by the user. ExecStartPre is running."},
		{"reloading", reload, []historyEvent{start, up, {Kind: eventReload, By: causeService}}, nil,
			"web is reloading since 14:03:12 (2min ago): it was told to reload by the service itself. It was started by the user."},
		{"stopping", stopSigkill, []historyEvent{start, up, stop}, func(k *whyCase) { k.rec.Killed = true },
			`web is being stopped since 14:03:12 (2min ago): it was told to stop because of "db". It did not stop in time and got SIGKILL.`},
		{"going down by itself", stopPost, []historyEvent{start, up, crash}, func(k *whyCase) { k.status.Reason = "main process was killed by SIGSEGV" },
			"web is being stopped since 14:03:12 (2min ago): main process was killed by SIGSEGV."},
		{"failed", failed, []historyEvent{start, up, crash}, func(k *whyCase) { k.status.Result = resultSignal },
			"web has failed since 14:03:12 (2min ago): its main process was killed by SIGSEGV. It was started by the user. Restart=no does not start it again after result signal."},
		{"a status that must not be restarted", failed, []historyEvent{start, crash}, func(k *whyCase) {
			k.status.Result, k.rec.Exit, k.unit.RestartPreventExitStatus = resultSignal, crash.Exit, exitSet{Signals: []syscall.Signal{11}}
		}, "web has failed since 14:03:12 (2min ago): its main process was killed by SIGSEGV. It was started by the user. It is not started again, as RestartPreventExitStatus says."},
		{"unknown", unknown, nil, func(k *whyCase) { k.status.Reason = "its state could not be read" },
			"web is in an unknown state since 14:03:12 (2min ago): its state could not be read. `diakonos stop web` ends the processes, `diakonos restart web` also starts it again."},
		{"stopped", dead, []historyEvent{start, up, stop}, nil, `web is inactive since 14:03:12 (2min ago): it was stopped because of "db" at 14:03:11.`},
		{"done", dead, []historyEvent{start, {Kind: eventExit, By: causeService, Exit: exitStatus{exitExited, 0}, Result: resultSuccess}}, func(k *whyCase) { k.unit.Type = typeOneshot },
			"web is inactive since 14:03:12 (2min ago): its main process exited with status 0 at 14:03:11. It was started by the user. Its work is done (Type=oneshot)."},
		{"never started", dead, nil, func(k *whyCase) { k.status.StateSince = nil }, "web is inactive: it has not been started since boot."},
		{"a wish that waits", dead, nil, func(k *whyCase) { k.want = wantRecord{Job: "j", Verb: verbStart, By: "enabled"} },
			"web is inactive since 14:03:12 (2min ago). A start, asked because it is enabled, has not begun: it waits for other units."},
		{"a wish without a daemon", dead, nil, func(k *whyCase) { k.want, k.daemon = wantRecord{Job: "j", Verb: verbStart, By: "user"}, false },
			"web is inactive since 14:03:12 (2min ago). A start, asked by the user, has not begun: no daemon runs; the next one sees to it."},
		{"unsupervised", running, []historyEvent{start, up}, func(k *whyCase) { k.status.Supervised = false },
			"web is running since 14:03:12 (2min ago): it was started by the user. No shim supervises it: nothing restarts it or takes its output, until a command starts a daemon (`diakonos list`)."},
		{"its file is gone", running, []historyEvent{start, up}, func(k *whyCase) { k.status.LoadState = "not-found" },
			"web is running since 14:03:12 (2min ago): it was started by the user. It has no unit file any more."},
	} {
		k := caseOf(t, c.state, slices.Clone(c.events)...)
		if c.with != nil {
			c.with(k)
		}
		if got := strings.Join(k.answer(-1).Sentences, " "); got != c.want {
			t.Errorf("%s:\ngot  %s\nwant %s", c.name, got, c.want)
		}
	}
}

// TestWhyHasAllStates: each state and each event has words of its own.
func TestWhyHasAllStates(t *testing.T) {
	for _, sub := range subStates {
		if sub != dead && stateWords(sub) == stateWords(dead) {
			t.Errorf("%s has no words", sub)
		}
	}
	for _, kind := range []string{eventStart, eventReady, eventExit, eventFailed, eventStop, eventRestart, eventSIGKILL, eventReload, eventReloaded, eventNotReload, eventAdopted, eventReset} {
		if text := eventWords(&historyEvent{Kind: kind}); text == kind && kind != eventReloaded || text == "" {
			t.Errorf("%s has no words", kind)
		}
	}
}
