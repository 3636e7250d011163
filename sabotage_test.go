// Role: sabotage: what would happen if a rule of the protocols were broken, and that the campaign's observers see it.
// Runs in: go test; sabotages in daemons and shims of trials.
// Owns: nothing.
// Uses: trial, scenario, failpoint, campaign, log, state, sys.

package main

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// sabotages break one rule each, in the process that comes to a failpoint.
var sabotages map[string]func()

func init() { // their names stand in the orders that they are looked up by
	sabotages = map[string]func(){
		"skip-the-guard":      skipGuard,
		"keep-the-record":     keepRecord,
		"forget-the-process":  forgetProcess,
		"die-of-forgetting":   dieOfForgetting,
		"consume-first":       consumeFirst,
		"drop-the-dedup":      dropDedup,
		"trust-a-stale-pid":   trustStalePID,
		"lose-the-other-wish": loseOtherWish,
		"say-panic":           sayPanic,
		"never-go-on":         neverGoOn,
		"eat-output":          eatOutput,
		"leave-behind":        leaveBehind,
		"miss-an-end":         missEnd,
		"leak-a-descriptor":   leakDescriptor,
		"leak-memory":         leakMemory,
	}
}

// skipGuard gives back the guard of a stage that is about to be started.
func skipGuard() {
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		target, _ := os.Readlink("/proc/self/fd/" + e.Name())
		if name := filepath.Base(target); name != "out" && name != "err" {
			continue
		}
		fd, _ := strconv.Atoi(e.Name())
		lk := unix.Flock_t{Type: unix.F_UNLCK, Start: guardMain, Len: 2}
		_ = unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lk) // those of the pump have none
	}
}

// recordBefore is the record of a shim as it was before it started a process.
var recordBefore []byte

func keepRecord() { recordBefore, _ = os.ReadFile("state") }

// forgetProcess takes the identity of a process out of the record again, as if it were to be recorded only after the start.
func forgetProcess() {
	_ = os.WriteFile("state", recordBefore, 0o600)
	_ = os.Remove("main.pid")
	hasForgotten = true
}

var hasForgotten bool

// dieOfForgetting kills a shim before it can record the process after all.
func dieOfForgetting() {
	if hasForgotten {
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	}
}

// consumeFirst takes the bytes of an intent out of the FIFO before anything tells of it, and once dies then.
func consumeFirst() {
	m, err := os.ReadFile("pump")
	if err != nil || len(m) < pumpFileSize {
		return
	}
	in, err := getIntent(m)
	if err != nil || in.text == 0 || os.Mkdir("../consumed", 0o700) != nil {
		return
	}
	fd, err := unix.Open(fifoNames[in.stream], unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	_, _ = unix.Read(fd, make([]byte, in.n))
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}

// dropDedup makes a successor believe that nothing of an intent was consumed: want and area agree nowhere.
func dropDedup() {
	m, err := os.ReadFile("pump")
	if err != nil || len(m) < pumpFileSize || binary.LittleEndian.Uint32(m[pumpPhaseAt:]) != 1 {
		return
	}
	complement(m[pumpAreaAt:], m[pumpWantAt:][:batchBytes])
	f, err := os.OpenFile("pump", os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	_, _ = f.WriteAt(m[pumpAreaAt:], pumpAreaAt)
}

// trustStalePID takes whoever has the PID of the record for the process that the record means.
func trustStalePID() {
	var rec runRecord
	if readRecord("state", &rec) != nil || rec.Main.zero() {
		return
	}
	rec.Main = refOf(rec.Main.PID)
	_ = writeRecord("state", &rec)
}

// loseOtherWish forgets each wish but that of the service "first".
func loseOtherWish() {
	h := home{os.Getenv(homeVariable)}
	names, _ := h.runNames()
	for _, name := range names {
		if name != "first" {
			_ = os.WriteFile(h.wantFile(name), make([]byte, 2*slotBytes), 0o600)
		}
	}
}

// missEnd makes a shim deaf to the end of its processes.
func missEnd() { signal.Reset(unix.SIGCHLD) }

func leakDescriptor() { _, _ = unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0) }

// leaked is never read, and never freed.
var leaked [][]byte

func leakMemory() { leaked = append(leaked, bytes.Repeat([]byte{1}, 1<<20)) }

// TestSabotageIsSeen: each broken rule leads to a fault that the observers of the kill campaign report, and without it they report none.
func TestSabotageIsSeen(t *testing.T) {
	for _, c := range []struct {
		why    string
		orders []failOrder // the sabotage
		sc     scenario
		want   string // part of a fault
	}{
		{"skip the guard",
			[]failOrder{{roleShim, "stage.start", 0, "skip-the-guard"}, {roleShim, "stage.start-in-cgroup", 0, "skip-the-guard"}},
			scenario{kinds: []subjectKind{{name: "alone", unit: "KillMode = \"process\"\nExecStart = \"$SVC -lock $FILE.lock\""}}, do: (*trial).startTwice},
			"ran twice at once"},
		{"start before the record",
			[]failOrder{{roleShim, "spawn.guard", 0, "keep-the-record"}, {roleShim, "stage.commit", 0, "forget-the-process"},
				{roleShim, "state.write", 0, "die-of-forgetting"}},
			scenario{kinds: []subjectKind{kindOf("simple")}, do: (*trial).startAll},
			"simple"},
		{"consume before the append",
			[]failOrder{{roleShim, "pump.phase1", 0, "consume-first"}},
			scenario{kinds: []subjectKind{steadyKind()}, do: func(r *trial) {
				r.startAll()
				r.written("chatty", 50)
			}},
			"log of chatty"},
		{"drop the dedup",
			[]failOrder{{roleShim, "pump.create", 0, "drop-the-dedup"}},
			scenario{kinds: []subjectKind{{name: "equal", lines: true, same: sameLine,
				unit: `ExecStart = [["$SVC", "-lock", "$FILE.lock", "-seq", "$FILE.seq", "-same", "` + sameLine + `", "-seq-every", "1ms", "-seq-burst", "50", "-term-code", "0"]]`}},
				orders: []failOrder{{roleShim, "pump.begin-line", 2, actKill}},
				do: func(r *trial) {
					r.startAll()
					r.until("the shim is killed", func() bool { return r.fired(len(r.scenario.orders)) != 0 })
					r.written("equal", 5000)
				}},
			"log of equal"},
		{"trust a stale PID",
			[]failOrder{{roleShim, "shim.pid", 0, "trust-a-stale-pid"}},
			scenario{kinds: []subjectKind{{name: "recycled", unit: "KillMode = \"process\"\nExecStart = \"$SVC -lock $FILE.lock\""}}, do: (*trial).recyclePID},
			"a stranger got SIGTERM"},
		{"lose a wish",
			[]failOrder{{roleDaemon, "shim.start", 0, "lose-the-other-wish"}},
			scenario{kinds: []subjectKind{
				{name: "first", unit: "Type = \"notify\"\nExecStart = \"$SVC -lock $FILE.lock -wait-file $FILE.go -notify READY=1\""},
				{name: "second", unit: `ExecStart = "$SVC -lock $FILE.lock"`}}, do: (*trial).startChain},
			"second"},
		{"miss an end",
			[]failOrder{{roleShim, "stage.commit", 0, "miss-an-end"}},
			scenario{kinds: []subjectKind{{name: "short", unit: `ExecStart = "$SVC -lock $FILE.lock -wait-file $FILE.go -exit-after 0s"`}}, do: (*trial).endUnseen},
			"short is shown as running"},
	} {
		t.Run(c.why, func(t *testing.T) {
			t.Parallel()
			t.Run("kept", func(t *testing.T) {
				r := newTrial(t, &c.sc, 1)
				r.run(failOrder{"nobody", "nothing", 0, actWatch})
				r.finish()
			})
			t.Run("broken", func(t *testing.T) {
				sc := c.sc
				sc.orders = append(c.orders, sc.orders...)
				all := ""
				for n := 0; n < 3 && !strings.Contains(all, c.want); n++ { // a kill may come when nothing of it can be seen
					r := newTrial(t, &sc, 1)
					r.expects, r.patience = true, testPatience
					r.run(failOrder{"nobody", "nothing", 0, actWatch})
					all = strings.Join(r.hidden, "\n")
					r.endAll()
				}
				if !strings.Contains(all, c.want) {
					t.Errorf("the observers say %q, want something with %q", all, c.want)
				}
			})
		})
	}
}

// startTwice starts a service of which no record tells any more, beside the process that lives.
func (r *trial) startTwice() {
	s := r.subjects[0]
	r.startAll()
	r.signal(syscall.SIGKILL, "@daemon")
	r.signal(syscall.SIGKILL, "shim:"+s.name)
	r.must(os.WriteFile(filepath.Join(r.home, "run", s.name, "state"), make([]byte, 2*slotBytes), 0o600)) // as if it had never run
	if _, err := r.may("start", s.name); err == nil {                                                     // it should be refused
		r.until("the second one runs", func() bool { return strings.Count(r.instances(s), "\n") > 1 })
	}
	r.try("stop", s.name)
	s.up = false
	r.endAll()
}

// endUnseen starts a service and lets it end.
func (r *trial) endUnseen() {
	s := r.subjects[0]
	r.startAll()
	r.truth = r.watchTruth()
	r.must(os.WriteFile(s.file+".go", nil, 0o644))
	s.up, s.instance = false, ""
	ended := func() bool { list, _ := r.list(); return list[s.name].ActiveState == inactive }
	if r.expects {
		r.truth.limit = truthLimit
		eventually(3*truthLimit, ended)
		r.truth.end()
		r.signal(syscall.SIGKILL, "shim:short") // the next one sees it
	}
	r.until("its end is shown", ended)
	r.truth.end()
}

// endAll ends what a broken rule has left: services whose shims do not know of them.
func (r *trial) endAll() {
	for _, s := range r.subjects {
		for _, p := range readProcesses() {
			if bytes.Contains([]byte(p.command), []byte("-lock "+s.file+".lock")) {
				syscall.Kill(p.pid, syscall.SIGKILL)
				r.until("the end of "+p.String(), func() bool { return isGone(p) })
			}
		}
	}
}

// recyclePID lets the stranger have the PID of a service that has ended while nobody watched, then stops that service.
func (r *trial) recyclePID() {
	s := r.subjects[0]
	r.startAll()
	r.signal(syscall.SIGKILL, "@daemon")
	r.signal(syscall.SIGKILL, "shim:"+s.name)
	r.endAll()
	file := filepath.Join(r.home, "run", s.name, "state")
	var rec runRecord
	r.must(readRecord(file, &rec))
	rec.Main.PID = r.stranger.pid
	r.must(writeRecord(file, &rec))
	r.order("stop", s.name)
}

// startChain starts two services, of which the second waits for the first, and kills the daemon meanwhile.
func (r *trial) startChain() {
	file := filepath.Join(r.dir, "services/second.service")
	text, err := os.ReadFile(file)
	r.must(err)
	r.must(os.WriteFile(file, append([]byte("[unit]\nRequires = [\"first\"]\nAfter = [\"first\"]\n"), text...), 0o644))
	r.try("start", "--no-block", "second")
	r.upAll()
	r.until("the first one is being started", func() bool { list, _ := r.list(); return list["first"].MainPID != 0 })
	r.signal(syscall.SIGKILL, "@daemon")
	r.awaitDaemon(&struck{})
	r.must(os.WriteFile(r.subject("first").file+".go", nil, 0o644))
}
