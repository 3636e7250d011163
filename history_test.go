// Role: tests of history.go: the ring of events; that no kill of a shim loses or doubles one.
// Runs in: go test.
// Owns: nothing.
// Uses: wire, state, history, shim, campaign, trial, edge, observe.

package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ringOf is the content of a history into which so many events were written; the text of each is its number.
func ringOf(t *testing.T, boot string, from, to uint64) []byte {
	t.Helper()
	ring := make([]byte, historyBytes)
	for seq := from; seq <= to; seq++ {
		at := seq % historySlots * historySlotBytes
		encodeEvent(ring[at:at+historySlotBytes], boot, seq, historyEvent{Time: int64(seq), Kind: eventStart, Text: fmt.Sprint(seq)})
	}
	return ring
}

// checkNumbers wants the events of these numbers, whole and in order.
func checkNumbers(t *testing.T, what string, got []historyEvent, from, to uint64) {
	t.Helper()
	if len(got) != int(to-from+1) && to >= from {
		t.Errorf("%s: got %d events, want %d to %d", what, len(got), from, to)
		return
	}
	for i, e := range got {
		want := from + uint64(i)
		if e != (historyEvent{Seq: want, Time: int64(want), Kind: eventStart, Text: fmt.Sprint(want)}) {
			t.Errorf("%s: event %d is %+v", what, want, e)
		}
	}
}

func TestHistoryRing(t *testing.T) {
	checkNumbers(t, "a new one", decodeHistory(ringOf(t, "b", 1, 5), "b", 5), 1, 5)
	checkNumbers(t, "filled", decodeHistory(ringOf(t, "b", 1, 64), "b", 64), 1, 64)
	checkNumbers(t, "wrapped", decodeHistory(ringOf(t, "b", 1, 1000), "b", 1000), 937, 1000)
	checkNumbers(t, "newer than the record says", decodeHistory(ringOf(t, "b", 1, 70), "b", 68), 7, 68)
	checkNumbers(t, "of a record that is lost", decodeHistory(ringOf(t, "b", 1, 70), "b", everyEvent), 7, 70)
	for what, got := range map[string][]historyEvent{
		"another boot": decodeHistory(ringOf(t, "a", 1, 5), "b", 5),
		"blank":        decodeHistory(make([]byte, historyBytes), "b", everyEvent),
		"empty":        decodeHistory(nil, "b", everyEvent),
		"all too new":  decodeHistory(ringOf(t, "b", 7, 9), "b", 6),
	} {
		if len(got) > 0 {
			t.Errorf("%s: got %v, want nothing", what, got)
		}
	}
	mixed := ringOf(t, "a", 1, 64)
	copy(mixed[historySlotBytes:], ringOf(t, "b", 1, 3)[historySlotBytes:4*historySlotBytes])
	checkNumbers(t, "slots of another boot beside it", decodeHistory(mixed, "b", 3), 1, 3)
	behind := ringOf(t, "b", 1, 64)
	copy(behind[9*historySlotBytes:], ringOf(t, "b", 1, 80)[9*historySlotBytes:17*historySlotBytes]) // 65 to 72 could not be written
	if got := decodeHistory(behind, "b", 80); got[0].Seq < 17 {
		t.Errorf("a slot that was to be overwritten is shown: %v", got[0])
	}
}

// TestTornHistory: what was cut, torn or damaged is left out, the rest is whole.
func TestTornHistory(t *testing.T) {
	ring := ringOf(t, "b", 1, 64)
	for cut := range len(ring) {
		if cut > 3*historySlotBytes && cut%97 != 0 {
			continue
		}
		got := decodeHistory(ring[:cut], "b", 64)
		if want := min(cut/historySlotBytes, historySlots); len(got) != want {
			t.Fatalf("cut at %d: %d events, want %d", cut, len(got), want)
		}
	}
	newer := ringOf(t, "b", 65, 128)
	at := 7 * historySlotBytes
	length := historySlotBytes
	for n := range length { // the write of number 71 over 7 was torn at each byte
		torn := bytes.Clone(ring)
		copy(torn[at:at+n], newer[at:])
		for _, e := range decodeHistory(torn, "b", 71) {
			if e.Text != fmt.Sprint(e.Seq) {
				t.Fatalf("torn at %d: %+v", n, e)
			}
		}
		if bytes.Equal(torn, ring) {
			continue
		}
		flipped := bytes.Clone(ring)
		flipped[at+n] ^= 0x10
		for _, e := range decodeHistory(flipped, "b", 64) {
			if e.Text != fmt.Sprint(e.Seq) || e.Kind != eventStart {
				t.Fatalf("flipped at %d: %+v", n, e)
			}
		}
	}
}

// TestEventFitsItsSlot: texts are cut, the numbers stay.
func TestEventFitsItsSlot(t *testing.T) {
	slot := make([]byte, historySlotBytes)
	for _, text := range []string{strings.Repeat("x", 1000), strings.Repeat("<", 1000), strings.Repeat("€", 300), strings.Repeat("\x00", 90), "short"} {
		for _, other := range []string{"", "web", strings.Repeat("u", 255)} {
			e := historyEvent{Time: 1 << 62, Kind: eventNotReload, By: "dependency", For: other, Exit: exitStatus{exitDumped, 11}, Result: resultStartLimitHit,
				PID: 4194304, Delay: 60000, Count: 123456, Alone: true, Late: true, Text: text}
			encodeEvent(slot, "b", 1<<40, e)
			ring := make([]byte, historyBytes)
			copy(ring, slot)
			got := decodeHistory(ring, "b", 1<<40)
			if len(got) != 1 {
				t.Errorf("%.10q for %.10q is unreadable", text, other)
				continue
			}
			if !strings.HasPrefix(e.Text, got[0].Text) || !strings.HasPrefix(e.For, got[0].For) {
				t.Errorf("%.10q for %.10q is read as %+v", text, other, got[0])
			}
			e.Text, e.For, e.Seq = got[0].Text, got[0].For, 1<<40
			if got[0] != e {
				t.Errorf("got %+v, want %+v", got[0], e)
			}
		}
	}
}

func TestHistoryFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	f := historyFile{path: path, boot: "b"}
	defer f.close()
	if err := f.write(0, nil); err != nil || exists(path) {
		t.Errorf("no event: %v, made %t", err, exists(path))
	}
	for last := uint64(2); last <= 130; last += 2 {
		if err := f.write(last, []historyEvent{{Time: int64(last - 1), Kind: eventStart, Text: fmt.Sprint(last - 1)}, {Time: int64(last), Kind: eventStart, Text: fmt.Sprint(last)}}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := readEvents(path, "b", 130)
	if err != nil {
		t.Fatal(err)
	}
	checkNumbers(t, "the file", got, 67, 130)
	if n := lastEvent(path, "b"); n != 130 {
		t.Errorf("the last is %d", n)
	}
	if st, err := os.Stat(path); err != nil || st.Size() != historyBytes || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
}

// TestNoHistoryStopsNothing: a history that cannot be written costs its events, and no state.
func TestNoHistoryStopsNothing(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.Mkdir("history", 0o700); err != nil {
		t.Fatal(err)
	}
	file, err := openRecord("state")
	if err != nil {
		t.Fatal(err)
	}
	defer file.close()
	s := &shim{svc: newService(new(unit), runRecord{}), state: file, history: historyFile{path: "history", boot: "b"}}
	defer s.own.end()
	s.svc.note(historyEvent{Kind: eventStart})
	if err := s.save(); err != nil {
		t.Error(err)
	}
	var rec runRecord
	if err := file.read(&rec); err != nil || rec.Events != 1 || len(s.svc.events) != 0 || s.complaint == "" {
		t.Errorf("%v, record counts %d events, %d wait, complaint %q", err, rec.Events, len(s.svc.events), s.complaint)
	}
}

// TestEventsBeforeTheState: a shim that dies between history and state has written numbers that its successor writes again.
func TestEventsBeforeTheState(t *testing.T) {
	t.Chdir(t.TempDir())
	file, err := openRecord("state")
	if err != nil {
		t.Fatal(err)
	}
	defer file.close()
	s := &shim{svc: newService(new(unit), runRecord{}), state: file, history: historyFile{path: "history", boot: "b"}}
	defer s.history.close()
	var died bool
	failpoint = func(name string) {
		if name == "state.write" {
			died = true
			got, err := readEvents("history", "b", everyEvent)
			if err != nil || len(got) != 1 || got[0].Text != "first" {
				t.Errorf("before the state the history holds %v, %v", got, err)
			}
			if got, _ := readEvents("history", "b", 0); len(got) != 0 {
				t.Errorf("and shows %v", got)
			}
		}
	}
	defer func() { failpoint = nil }()
	s.svc.note(historyEvent{Kind: eventStart, Text: "first"})
	if err := s.save(); err != nil || !died {
		t.Errorf("%v, state written: %t", err, died)
	}
}

// ---- out of memory

func TestOutOfMemory(t *testing.T) {
	dir := t.TempDir()
	say := func(text string) {
		if err := os.WriteFile(filepath.Join(dir, "memory.events"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	killed := exitStatus{exitKilled, int(syscall.SIGKILL)}
	s := &shim{svc: newService(new(unit), runRecord{Cgroup: dir, OOMKills: 2})}
	if s.outOfMemory(roleMain, killed) {
		t.Error("without the memory controller")
	}
	say("low 0\nhigh 0\nmax 9\noom 9\noom_kill 2\noom_group_kill 7\n")
	if s.outOfMemory(roleMain, killed) {
		t.Error("nothing was killed since the run began")
	}
	say("low 0\nhigh 0\nmax 9\noom 9\noom_kill 3\noom_group_kill 0\n")
	if !s.outOfMemory(roleMain, killed) {
		t.Error("a kill for lack of memory is overlooked")
	}
	if s.outOfMemory(roleMain, exitStatus{exitKilled, int(syscall.SIGTERM)}) || s.outOfMemory(roleMain, exitStatus{exitExited, 9}) || s.outOfMemory(roleControl, killed) {
		t.Error("another end counts as one")
	}
	for _, odd := range []string{"", "oom_kill", "oom_kill x\n", "oom_kill -1\n"} {
		if say(odd); s.outOfMemory(roleMain, killed) {
			t.Errorf("%q counts", odd)
		}
	}
}

// ---- what a history must show

// historyFault judges the events of a service up to number last: none is missing, none is there twice, and each run has one beginning
// and one end.
func historyFault(events []historyEvent, last uint64) string {
	var start, end *historyEvent // of the run that was seen last
	first := max(1, last-min(last, historyShown)+1)
	events = events[max(0, len(events)-historyShown):]
	for i := range events {
		e := &events[i]
		if e.Seq != first+uint64(i) {
			return fmt.Sprintf("event %d stands in the place of %d", e.Seq, first+uint64(i))
		}
		switch e.Kind {
		case eventStart:
			if start != nil && end == nil {
				return fmt.Sprintf("event %d begins a run, and that of event %d has no end", e.Seq, start.Seq)
			}
			if start != nil && e.By == causePolicy && e.Count != start.Count+1 && e.Count != 1 {
				return fmt.Sprintf("event %d is restart %d after restart %d", e.Seq, e.Count, start.Count)
			}
			if start != nil && e.By == causePolicy && e.Count == start.Count {
				return fmt.Sprintf("event %d is restart %d once more", e.Seq, e.Count)
			}
			start, end = e, nil
		case eventExit:
			if end != nil && end.Kind == eventExit && end.PID == e.PID {
				return fmt.Sprintf("event %d is the end of process %d once more", e.Seq, e.PID)
			}
			end = e
		case eventFailed, eventStop, eventRestart:
			if end == nil || end.Kind != eventExit {
				end = e
			}
		}
	}
	if n := int(last - first + 1); last > 0 && len(events) != n {
		return fmt.Sprintf("%d events of %d", len(events), n)
	}
	return ""
}

// checkHistories judges the histories of all services.
func (c *campaign) checkHistories() {
	c.t.Helper()
	boot, _, _ := bootIdentity()
	h := home{c.home}
	for _, s := range c.subjects {
		var rec runRecord
		var events []historyEvent
		var err error
		for again := true; again && err == nil; { // the shim may write meanwhile
			if rec, err = h.readState(s.name, boot); err == nil {
				events, err = readEvents(h.historyFile(s.name), boot, rec.Events)
			}
			now, _ := h.readState(s.name, boot)
			again = now.Events > rec.Events+historySlots-historyShown-1
		}
		if err != nil && exists(h.historyFile(s.name)) {
			c.fault("history of %s: %v", s.name, err)
		}
		if err != nil {
			continue // it was forgotten, or never started
		}
		fault := historyFault(events, rec.Events)
		if fault == "" && s.kind.short {
			fault = numberedFault(events, c.instances(s))
		}
		if fault != "" {
			c.fault("history of %s: %s\n%s", s.name, fault, historyText(events))
		}
	}
}

// numberedFault holds the ends in a history to the processes that ran by their own word: each ended once, but for the last one. Those
// before the first end that the history still has are not judged; their PIDs may have been given out again.
func numberedFault(events []historyEvent, instances string) string {
	lines := strings.Split(strings.TrimSuffix(instances, "\n"), "\n")
	ends, shown := map[int]int{}, -1
	for _, e := range events {
		if e.Kind != eventExit {
			continue
		}
		ends[e.PID]++
		for i := len(lines) - 1; i >= 0 && shown < 0; i-- {
			if lastPID(lines[i]) == e.PID {
				shown = i
			}
		}
	}
	for i, l := range lines {
		if pid := lastPID(l); shown >= 0 && i >= shown && i < len(lines)-1 && ends[pid] != 1 {
			return fmt.Sprintf("process %d has ended %d times", pid, ends[pid])
		}
	}
	return ""
}

func historyText(events []historyEvent) string {
	var b strings.Builder
	for i := range events {
		fmt.Fprintf(&b, "%+v\n", events[i])
	}
	return b.String()
}

func TestHistoryObserver(t *testing.T) {
	start := historyEvent{Kind: eventStart, By: "user"}
	again := func(n int) historyEvent { return historyEvent{Kind: eventStart, By: causePolicy, Count: n} }
	exit := func(pid int) historyEvent { return historyEvent{Kind: eventExit, PID: pid} }
	for _, c := range []struct {
		why    string
		events []historyEvent
		want   string
	}{
		{"runs one after the other", []historyEvent{start, exit(1), again(1), exit(2), again(2)}, ""},
		{"a start by hand", []historyEvent{start, exit(1), again(1), exit(2), start, exit(3), again(1)}, ""},
		{"a missing restart", []historyEvent{start, exit(1), again(2)}, "restart 2 after restart 0"},
		{"a doubled restart", []historyEvent{start, exit(1), again(1), exit(2), again(1)}, "once more"},
		{"a run without an end", []historyEvent{start, again(1)}, "has no end"},
		{"a doubled end", []historyEvent{start, exit(1), exit(1)}, "once more"},
	} {
		for i := range c.events {
			c.events[i].Seq = uint64(i + 1)
		}
		if got := historyFault(c.events, uint64(len(c.events))); c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s: got %q, want %q", c.why, got, c.want)
		}
	}
	if got := historyFault([]historyEvent{{Seq: 1}, {Seq: 3}}, 3); !strings.Contains(got, "in the place of 2") {
		t.Errorf("a gap: %q", got)
	}
	if got := historyFault([]historyEvent{{Seq: 1}}, 2); !strings.Contains(got, "1 events of 2") {
		t.Errorf("a missing end: %q", got)
	}
	if got := numberedFault([]historyEvent{exit(1), exit(3)}, "1 a b\n2 a b\n3 a b\n4 a b\n"); !strings.Contains(got, "process 2 has ended 0 times") {
		t.Errorf("an end that is not there: %q", got)
	}
	if got := numberedFault([]historyEvent{exit(2), exit(3)}, "1 a b\n2 a b\n3 a b\n4 a b\n"); got != "" {
		t.Errorf("all that is shown: %q", got)
	}
	if got := numberedFault([]historyEvent{exit(2), exit(3)}, "3 a b\n9 a b\n2 a c\n3 a c\n4 a c\n"); got != "" {
		t.Errorf("a PID that was given out again: %q", got)
	}
}

// briefKind crashes all the time.
var briefKind = subjectKind{name: "brief", short: true, unit: `Restart = "always"
RestartMaxDelaySec = 0.02
ExecStart = "$SVC -lock $FILE.lock -print up -exit-after 20ms -code 1"`}

// TestHistoryKilledAtEachWrite: the shim dies right before an event is written, and between the events and the state that counts them.
func TestHistoryKilledAtEachWrite(t *testing.T) {
	sc := &scenario{name: "a service that crashes all the time", kinds: []subjectKind{briefKind}, before: (*trial).startAll,
		do: func(r *trial) {
			s := r.subjects[0]
			until := strings.Count(r.instances(s), "\n") + 6
			r.until("it runs again and again", func() bool { return strings.Count(r.instances(s), "\n") >= until })
		}}
	for nth := 1; nth <= 4; nth++ {
		for _, point := range []string{"history.write", "state.write"} {
			t.Run(fmt.Sprintf("%s.%d", point, nth), func(t *testing.T) {
				if !newTrial(t, sc, uint64(nth)).run(failOrder{roleShim, point, nth, actKill}) {
					t.Error("nobody came to it")
				}
			})
		}
	}
}

// TestHistoryUnderKills: the shim of a service that crashes all the time is killed again and again, at any instant; the daemon now and then.
func TestHistoryUnderKills(t *testing.T) {
	h := newTestHome(t)
	seed := *campaignSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano()) % 1_000_000
	}
	c := campaignOf(h, seed)
	c.add(&briefKind, briefKind.name)
	h.diakonos("start", "brief")
	chance := rand.New(rand.NewPCG(seed, 1))
	kills := 0
	for kills < *campaignKills/2 && c.faults == 0 {
		time.Sleep(time.Duration(chance.IntN(60)) * time.Millisecond)
		who := "shim:brief"
		if chance.IntN(16) == 0 { // the pause before its next start doubles
			who = "@daemon"
		}
		p, err := find(h.home, who)
		if err != nil {
			continue
		}
		if unix.Kill(p.pid, syscall.SIGKILL) == nil {
			kills++
		}
		if !eventually(testPatience, func() bool { q, err := find(h.home, who); return err == nil && q.pid != p.pid }) {
			t.Fatalf("no successor of %s", p)
		}
		c.checkHistories()
	}
	h.diakonos("stop", "brief")
	c.checkHistories()
	boot, _, _ := bootIdentity()
	rec, err := home{h.home}.readState("brief", boot)
	if err != nil || rec.Events < uint64(kills) || reflect.DeepEqual(rec, runRecord{}) {
		t.Errorf("%d events, %v", rec.Events, err)
	}
	t.Logf("seed %d: %d kills, %d events", seed, kills, rec.Events)
}
