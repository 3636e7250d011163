// Role: tests of wire.go: what is torn, flipped or new is never taken for something else.
// Runs in: go test.
// Owns: nothing.
// Uses: codec, wire.

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// newSlot fills a slot that was used before.
func newSlot(seq uint64, body []byte) ([]byte, error) {
	b := bytes.Repeat([]byte("x"), slotBytes)
	return b, encodeSlot(b, seq, body)
}

func slotOf(t *testing.T, seq uint64, w wantRecord) []byte {
	t.Helper()
	b, err := newSlot(seq, encode(nil, &w))
	if err != nil || len(b) != slotBytes {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	return b
}

// slotFile puts each slot where its number says.
func slotFile(slots map[uint64][]byte) []byte {
	file := make([]byte, 2*slotBytes)
	for seq, b := range slots {
		copy(file[seq%2*slotBytes:], b)
	}
	return file
}

var (
	wantOld = wantRecord{Version: 1, Boot: "b", Up: true, Job: "7", Verb: verbStart, By: "user"}
	wantNew = wantRecord{Version: 1, Boot: "b", Job: "8", Verb: verbStop, By: "kill"}
)

func checkSlots(t *testing.T, what string, file []byte, seq uint64, want wantRecord) {
	t.Helper()
	var got wantRecord
	if n, err := decodeSlots(file, &got); err != nil || n != seq || got != want {
		t.Errorf("%s: %d %+v, %v; want %d %+v", what, n, got, err, seq, want)
	}
}

func TestSlotsNewerWins(t *testing.T) {
	checkSlots(t, "in order", slotFile(map[uint64][]byte{1: slotOf(t, 1, wantOld), 2: slotOf(t, 2, wantNew)}), 2, wantNew)
	checkSlots(t, "wrapped", slotFile(map[uint64][]byte{3: slotOf(t, 3, wantNew), 2: slotOf(t, 2, wantOld)}), 3, wantNew)
	checkSlots(t, "one only", slotFile(map[uint64][]byte{1: slotOf(t, 1, wantOld)}), 1, wantOld)
}

// TestSlotsTorn: a write that was cut anywhere leaves the old record or the whole new one.
func TestSlotsTorn(t *testing.T) {
	before := slotFile(map[uint64][]byte{1: slotOf(t, 1, wantRecord{Job: strings.Repeat("older", 99)}), 2: slotOf(t, 2, wantOld)})
	slot := slotOf(t, 3, wantNew)
	whole := 0
	for cut := range slotBytes + 1 {
		file := slices.Clone(before)
		copy(file[slotBytes:], slot[:cut])
		var got wantRecord
		n, err := decodeSlots(file, &got)
		switch {
		case err == nil && n == 2 && got == wantOld:
		case err == nil && n == 3 && got == wantNew:
			whole++
		default:
			t.Fatalf("cut at %d: %d %+v, %v", cut, n, got, err)
		}
	}
	if whole == 0 {
		t.Error("the whole write is never seen")
	}
}

func TestSlotsFlipped(t *testing.T) {
	slots := map[uint64][]byte{1: slotOf(t, 1, wantOld), 2: slotOf(t, 2, wantNew)}
	good := slotFile(slots)
	lost := 0
	for bit := range 8 * 400 { // header and body, and some of the padding
		file := slices.Clone(good)
		file[bit/8] ^= 1 << (bit % 8)
		var got wantRecord
		n, err := decodeSlots(file, &got)
		if err != nil || !(n == 1 && got == wantOld || n == 2 && got == wantNew) {
			t.Fatalf("bit %d: %d %+v, %v", bit, n, got, err)
		}
		if n == 1 {
			lost++
		}
	}
	body := encode(nil, &wantNew)
	if lost != 8*(slotHeader+len(body)) {
		t.Errorf("%d flipped bits are noticed, want those of header and body", lost)
	}
	file := slices.Clone(good)
	file[30] ^= 1
	file[slotBytes+30] ^= 1
	var got wantRecord
	if _, err := decodeSlots(file, &got); !errors.Is(err, errNoRecord) || got != (wantRecord{}) {
		t.Errorf("both broken: %+v, %v", got, err)
	}
}

func TestSlotsWithoutRecord(t *testing.T) {
	for _, c := range []struct {
		name string
		file []byte
		want error
	}{
		{"blank slots", make([]byte, 2*slotBytes), errNeverWritten}, {"nothing", nil, errNoRecord}, {"less than a slot", []byte(slotMagic), errNoRecord},
		{"garbage", bytes.Repeat([]byte("x"), 2*slotBytes), errNoRecord}, {"one blank slot", make([]byte, slotBytes), errNoRecord},
		{"a length beyond the slot", append([]byte(slotMagic+"\x01\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff"), make([]byte, 2*slotBytes)...), errNoRecord},
	} {
		var got wantRecord
		if _, err := decodeSlots(c.file, &got); !errors.Is(err, c.want) || got != (wantRecord{}) {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
	if _, err := newSlot(1, make([]byte, slotBytes-slotHeader+1)); err == nil {
		t.Error("a record that does not fit a slot is written")
	}
}

// TestSlotLayout: the layout is that of all versions of this protocol.
func TestSlotLayout(t *testing.T) {
	slot, err := newSlot(7, []byte(`{"v":1}`))
	if err != nil {
		t.Fatal(err)
	}
	sum := crc32.ChecksumIEEE([]byte("DKS\x01\x07\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00" + `{"v":1}`))
	want := "DKS\x01\x07\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00" + string(binary.LittleEndian.AppendUint32(nil, sum)) + `{"v":1}`
	if string(slot) != want+strings.Repeat("\x00", slotBytes-len(want)) {
		t.Errorf("got %q", slot[:64])
	}
}

// TestRecordsOfOtherVersions: an older or newer program has fields that we do not know, and lacks some.
func TestRecordsOfOtherVersions(t *testing.T) {
	const future = `{"v":9,"boot":"b","hue":"blue","list":[1,{"x":2}],"up":true,"job":"5","verb":"start","by":"user"}`
	var w wantRecord
	slot, err := newSlot(4, []byte(future))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decodeSlots(append(slot, make([]byte, slotBytes)...), &w); err != nil || w != (wantRecord{Version: 9, Boot: "b", Up: true, Job: "5", Verb: "start", By: "user"}) {
		t.Errorf("%+v, %v", w, err)
	}
	var r runRecord
	if err := decode([]byte(`{"v":2,"sub":"running","main":{"pid":7,"start":8,"tint":9},"job":{"id":"a","mood":1},"new":{}}`), &r); err != nil ||
		r.Sub != running || r.Main != (pidRef{PID: 7, Start: 8}) || r.Job.ID != "a" {
		t.Errorf("%+v, %v", r, err)
	}
	var d daemonRecord
	if err := decode([]byte(`{"v":3,"wanted":"running","mode":"auto","daemon":{"pid":2},"extra":null}`), &d); err != nil ||
		d.Wanted != wantedRunning || d.Daemon.PID != 2 || d.Started != 0 {
		t.Errorf("%+v, %v", d, err)
	}
	var f shimFrame
	if err := decode([]byte(`{"op":"dance","steps":[1,2]}`), &f); err != nil || f.Op != "dance" {
		t.Errorf("%+v, %v", f, err)
	}
}

// TestRunRecordKeepsEverything: no field is forgotten on the way to a successor.
func TestRunRecordKeepsEverything(t *testing.T) {
	r := runRecord{Version: 1, Boot: "b", PIDNS: 1, Sub: running, Result: resultSuccess, Reason: "r", Since: 1, Started: 2, RunBegan: 3, Invocation: "i",
		Main: pidRef{1, 2, 3}, Control: pidRef{4, 5, 6}, Spawning: roleMain, Step: 1, Exit: exitStatus{exitKilled, 9}, Deadline: 4,
		Job: jobRecord{"a", "b", "c", "d", "e", "f", 7}, Restarts: 1, ShortRuns: 2, Starts: []boottime{1}, StatusText: "s", Cgroup: "/c",
		Orphans: []pidRef{{7, 8, 9}}, Left: []int{5}, Killed: true, Unheard: true, Retire: true, ShimPID: 6, Delay: 7, OOMKills: 8, Events: 9}
	v := reflect.ValueOf(r)
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("the test does not set %s", v.Type().Field(i).Name)
		}
	}
	slot, err := newSlot(1, encode(nil, &r))
	if err != nil {
		t.Fatal(err)
	}
	var got runRecord
	if _, err := decodeSlots(append(slot, make([]byte, slotBytes)...), &got); err != nil || !reflect.DeepEqual(got, r) {
		t.Errorf("%v\ngot  %+v\nwant %+v", err, got, r)
	}
}

func TestStageOrder(t *testing.T) {
	huge := slices.Repeat([]string{"NAME=" + strings.Repeat("v", 100<<10)}, 30)
	for _, o := range []stageOrder{
		{Path: "/bin/x", Argv: []string{"x"}, Env: []string{}, UID: -1, GID: -1},
		{Path: "/bin/x y", Argv: []string{"", "a b", "\xff\n"}, Env: []string{"A=", "B=1"}, Dir: "/d", Soft: "/", UID: 0, GID: 65534, Groups: []int{1, 2}, UMask: 0o22, Cgroup: "/c/cgroup.procs"},
		{Path: "/bin/x", Argv: []string{"x"}, Env: huge, UID: 1, GID: 1},
	} {
		b := encodeStageOrder(o)
		got, err := decodeStageOrder(b[4:])
		if err != nil || !reflect.DeepEqual(got, o) {
			t.Errorf("%v\ngot  %.200v\nwant %.200v", err, got, o)
		}
		if n := int(b[0]) | int(b[1])<<8 | int(b[2])<<16 | int(b[3])<<24; n != len(b)-4 {
			t.Errorf("length is %d of %d", n, len(b)-4)
		}
		for cut := 4; cut < min(len(b), 300); cut++ {
			if o, err := decodeStageOrder(b[4:cut]); err == nil {
				t.Fatalf("cut at %d of %d it reads as %.200v", cut, len(b), o)
			}
		}
	}
}

func TestStageReport(t *testing.T) {
	for _, c := range []struct {
		name, text string
		ok         bool
		failure    stageFailure
	}{
		{"execve has succeeded", stageReportExec, true, stageFailure{}},
		{"it died in set-up", "", false, stageFailure{}},
		{"a failed step", encodeStageFailure(stageFailure{stageChdir, 2}), false, stageFailure{stageChdir, 2}},
		{"execve itself failed", stageReportExec + encodeStageFailure(stageFailure{stageExec, 13}), false, stageFailure{stageExec, 13}},
		{"a report that was cut", "exe", false, stageFailure{}},
	} {
		if ok, f := decodeStageReport([]byte(c.text)); ok != c.ok || f != c.failure {
			t.Errorf("%s: %v %v", c.name, ok, f)
		}
	}
	for _, c := range setupStageCodes {
		if c.code < 200 || c.code > 245 || c.stage.exitCode() != c.code {
			t.Errorf("stage %s has code %d, %d", c.stage, c.code, c.stage.exitCode())
		}
	}
	if setupStage("unheard").exitCode() != exitFailed {
		t.Error("an unknown stage has a code of its own")
	}
}

func TestNotifyMessage(t *testing.T) {
	for _, c := range []struct {
		text string
		want notifyMessage
	}{
		{"READY=1", notifyMessage{Ready: true}},
		{"READY=1\nSTATUS=up and well\nMAINPID=42\n", notifyMessage{Ready: true, Status: "up and well", HasStatus: true, MainPID: 42}},
		{"RELOADING=1\nMONOTONIC_USEC=5\n", notifyMessage{Reloading: true}},
		{"STOPPING=1", notifyMessage{Stopping: true}},
		{"READY=0\nREADY=yes", notifyMessage{}},
		{"STATUS=", notifyMessage{HasStatus: true}},
		{"STATUS=a=b\xff", notifyMessage{Status: "a=b\uFFFD", HasStatus: true}},
		{"MAINPID=-4\nMAINPID=x\nMAINPID=0", notifyMessage{BadPID: "0"}},
		{"MAINPID=4194305", notifyMessage{BadPID: "4194305"}},
		{"X_UNKNOWN=1\n\n=\nREADY", notifyMessage{}},
		{"", notifyMessage{}},
	} {
		if got := parseNotify([]byte(c.text)); got != c.want {
			t.Errorf("%q: %+v, want %+v", c.text, got, c.want)
		}
	}
}

func TestPIDFile(t *testing.T) {
	for text, want := range map[string]int{"1\n": 1, " 42 \n\n": 42, "4194304": 4194304, "4194305": 0, "0": 0, "-1": 0, "": 0, "1 2": 0, "x": 0, "9999999999999999999999": 0} {
		if got := parsePIDFile([]byte(text)); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
	if got := string(pidFileText(42)); got != "42\n" {
		t.Errorf("%q", got)
	}
	if got := invocationText([16]byte{0xab, 15: 1}); got != "ab000000000000000000000000000001" {
		t.Error(got)
	}
}
