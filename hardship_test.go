// Role: hardships: output right before the end, hostile trees, orphans without end, a process that no signal ends, a long chain whose
// daemons die, kernels that lack calls.
// Runs in: go test.
// Owns: each test's home and services.
// Uses: edge, observe, campaign, script, scriptcmd, drift.

package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

var (
	lastWords    = flag.Int("last-words", 30, "runs in TestLastWords")
	hostileTrees = flag.Int("hostile-trees", 4, "trees in TestHostileTrees")
)

// TestLastWords: a service that prints as fast as it can and ends at once: its last line is in the log when the answer comes.
func TestLastWords(t *testing.T) {
	const services, each = 5, 1000
	h := newTestHome(t)
	var wg sync.WaitGroup
	for n := range services {
		name := fmt.Sprintf("w%d", n)
		seq := filepath.Join(h.dir, name+".seq")
		h.unit(name, "[service]\nType = \"oneshot\"\nExecStart = \"$SVC -seq "+seq+fmt.Sprintf(" -seq-run %d\"\n", each))
		wg.Go(func() {
			for run := range max(1, *lastWords/services) {
				if out, err := h.command("start", name).CombinedOutput(); err != nil {
					t.Errorf("%s: %v\n%s", name, err, out)
					return
				}
				log, err := os.ReadFile(filepath.Join(h.home, "log", name, "current"))
				written, err2 := readCounter(seq)
				want := fmt.Sprintf(" stdout F seq %d\n", (run+1)*each)
				if end := string(tail(log, 60)); err != nil || err2 != nil || written != uint64(run+1)*each || !strings.HasSuffix(end, want) {
					t.Errorf("%s: run %d ends with %q (%v, %v), want %q", name, run, end, err, err2, want)
					return
				}
			}
			lines, err := logText(h.home, name)
			if last, err2 := wholeSequence(lines); err != nil || err2 != nil || last != uint64(max(1, *lastWords/services)*each) {
				t.Errorf("%s: the log ends at line %d (%v, %v)", name, last, err, err2)
			}
		})
	}
	wg.Wait()
}

// TestHostileTrees: a service whose processes ignore SIGTERM, lead sessions of their own, leave their parents and go on forking while they
// are killed. When `stop` succeeds nothing has its cookie any more; also if its shim was killed before.
func TestHostileTrees(t *testing.T) {
	h := newTestHome(t)
	h.unit("forest", `[service]
TimeoutStopSec = 0.2
Environment = ["TREE_COOKIE=`+h.dir+`"]
ExecStart = [["sh", "-c", "trap '' TERM; for i in 1 2 3; do setsid sh -c \"trap '' TERM; while :; do (setsid sleep 0.3 &); sleep 0.01; done\" & done; $SVC -fork-away -ignore-term -spawn 3 -setsid; echo up; while :; do setsid sleep 0.2 & sleep 0.01; done"]]
`)
	left := func() (list []seenProcess) {
		for pid, p := range readProcesses() {
			if carries(pid, "TREE_COOKIE="+h.dir) {
				list = append(list, p)
			}
		}
		return list
	}
	for n := range *hostileTrees {
		h.diakonos("start", "forest")
		if !eventually(testPatience, func() bool { return len(left()) > 15 }) {
			t.Fatalf("the tree has only %v", left())
		}
		if n%2 == 1 {
			h.replaced("shim:forest")
		}
		h.diakonos("stop", "forest")
		if found := left(); len(found) > 0 {
			t.Fatalf("tree %d: after the stop there is %v", n, found)
		}
	}
}

// TestOrphans: a service whose processes leave their parents by the hundred: none stays a zombie, and no exit that matters is missed.
func TestOrphans(t *testing.T) {
	h := newTestHome(t)
	const many = "i=0; while [ $i -lt 300 ]; do (true &); i=$((i+1)); done"
	h.unit("source", "[service]\nExecStart = [[\"sh\", \"-c\", \""+many+"; exec $SVC -term-code 7 -print done\"]]\n")
	h.unit("ends", "[service]\nExecStart = [[\"sh\", \"-c\", \"("+many+") & "+many+"; exit 5\"]]\n")
	for _, killed := range []bool{false, true} {
		h.diakonos("start", "source", "ends")
		if killed {
			h.replaced("shim:source")
		}
		if !eventually(testPatience, func() bool { st := h.status("ends"); return st["active_state"] == failedUnit && st["exit_code"] == 5.0 }) {
			t.Errorf("ends is %v", h.status("ends"))
		}
		if !eventually(testPatience, func() bool {
			lines, _ := logText(h.home, "source")
			return strings.Count(strings.Join(lines, "\n"), "done") == map[bool]int{false: 1, true: 2}[killed]
		}) {
			t.Fatal("source does not come to its end")
		}
		for _, who := range []string{"@daemon", "shim:source"} {
			p, err := find(h.home, who)
			h.must(err)
			var r resources
			if !eventually(testPatience, func() bool { r = resourcesOf(who, p.pid); return len(r.zombies) == 0 }) {
				t.Errorf("%s has zombies %v", who, r.zombies)
			}
		}
		p, err := find(h.home, "source")
		h.must(err)
		syscall.Kill(p.pid, syscall.SIGTERM)
		if !eventually(testPatience, func() bool {
			st := h.status("source")
			return st["active_state"] == failedUnit && st["exit_code"] == 7.0
		}) {
			t.Errorf("source is %v", h.status("source"))
		}
	}
}

// TestUninterruptible: a process that hangs in the kernel, which no signal ends: its stop fails and names it, and other services go on.
// Once the kernel lets it go it is gone.
func TestUninterruptible(t *testing.T) {
	h := newTestHome(t)
	disk := filepath.Join(h.dir, "disk")
	h.must(os.Mkdir(disk, 0o755))
	freeze, thaw := hungDisk(t, disk)
	t.Cleanup(func() { thaw(); h.diakonos("kill") }) // before the disk goes
	h.unit("hangs", "[service]\nTimeoutStopSec = 0.3\nExecStart = [[\"sh\", \"-c\", \"while :; do echo x >"+disk+"/file; done\"]]\n")
	h.unit("other", "[service]\nExecStart = \"$SVC\"\n")
	h.diakonos("start", "hangs", "other")
	p, err := find(h.home, "hangs")
	h.must(err)
	freeze()
	if !eventually(testPatience, func() bool { st, err := readStat(p.pid); return err == nil && st.state == 'D' }) {
		t.Fatal("the process does not hang")
	}
	out, err := h.command("stop", "hangs").CombinedOutput()
	if err == nil || !strings.Contains(string(out), fmt.Sprint(p.pid)) {
		t.Errorf("stop: %v, got %q, want a failure that names process %d", err, out, p.pid)
	}
	if st := h.status("hangs"); st["active_state"] != failedUnit {
		t.Errorf("its state is %v", st)
	}
	if out, err := h.command("start", "hangs").CombinedOutput(); err == nil || isGone(p) {
		t.Errorf("a second one is started beside it: %v\n%s", err, out)
	}
	h.diakonos("restart", "other")
	thaw()
	if !eventually(testPatience, func() bool { return isGone(p) }) {
		t.Errorf("%s outlives SIGKILL", p)
	}
	h.diakonos("start", "hangs")
	h.diakonos("stop", "hangs")
}

// TestLongChain: 50 units, each of which requires the one before. The daemon is killed again and again while they are started, and while
// they are stopped: the next ones finish it, and each unit is started once, and asked to end once.
func TestLongChain(t *testing.T) {
	const length, every = 50, 12
	h := newTestHome(t)
	name := func(n int) string { return fmt.Sprintf("u%02d", n) }
	file := func(n int, what string) string { return filepath.Join(h.dir, name(n)+"."+what) }
	for n := range length {
		unit := ""
		if n > 0 {
			unit = fmt.Sprintf("[unit]\nRequires = [%q]\nAfter = [%q]\n", name(n-1), name(n-1))
		}
		wait := ""
		if n%every == every-1 {
			wait = " -wait-file " + file(n, "go")
		}
		h.unit(name(n), unit+"[service]\nType = \"notify\"\nExecStart = \"$SVC -trap "+file(n, "signals")+" -lock "+file(n, "lock")+wait+" -notify READY=1\"\n"+
			"ExecStop = \"$SVC -append "+file(n, "stops")+" -exit-after 0s x\"\n")
	}
	kill := func() { h.replaced("@daemon") }
	h.diakonos("start", "--no-block", name(length-1))
	for n := every - 1; n < length; n += every {
		if !eventually(testPatience, func() bool { return exists(file(n, "lock")) }) {
			t.Fatalf("%s is not started", name(n))
		}
		kill()
		h.must(os.WriteFile(file(n, "go"), nil, 0o644))
	}
	if !eventually(3*testPatience, func() bool { return h.status(name(length - 1))["active_state"] == active }) {
		t.Fatalf("the last one is %v", h.status(name(length-1)))
	}
	h.diakonos("stop", "--no-block", name(0))
	for n := length - 1; n > 0; n -= every {
		if !eventually(3*testPatience, func() bool { return exists(file(n, "stops")) }) {
			t.Fatalf("%s is not stopped", name(n))
		}
		kill()
	}
	for n := range length {
		if !eventually(3*testPatience, func() bool { return h.status(name(n))["active_state"] == inactive }) {
			t.Fatalf("%s is %v", name(n), h.status(name(n)))
		}
		if starts := h.started(name(n) + ".lock"); starts != 1 {
			t.Errorf("%s was started %d times", name(n), starts)
		}
		if stops := h.started(name(n) + ".stops"); stops != 1 {
			t.Errorf("%s was stopped %d times", name(n), stops)
		}
		if text, _ := os.ReadFile(file(n, "signals")); strings.TrimSpace(string(text)) != "SIGTERM" {
			t.Errorf("%s got %q, want one SIGTERM", name(n), text)
		}
	}
}

// TestEightWriters: eight processes share one output, which is rotated every 64 KiB while shims are killed: each line of each is in the log
// once, and whole.
func TestEightWriters(t *testing.T) {
	h := newTestHome(t)
	seq := func(n int) string { return fmt.Sprintf("%s/writer%d", h.dir, n) }
	var command strings.Builder
	for n := range 8 {
		fmt.Fprintf(&command, "$SVC -seq %s -same 'line of writer %d' -seq-every 2ms -seq-burst 20 -term-code 0 & ", seq(n), n)
	}
	h.unit("many", "[service]\nLogMaxSize = \"64K\"\nLogMaxFiles = 100000\nExecStart = [[\"sh\", \"-c\", \""+command.String()+"trap 'wait; exit 0' TERM; wait\"]]\n")
	h.diakonos("start", "many")
	for range 8 {
		from, _ := readCounter(seq(7))
		if !eventually(testPatience, func() bool { n, _ := readCounter(seq(7)); return n > from+300 }) {
			t.Fatal("the writers do not go on")
		}
		h.replaced("shim:many")
	}
	h.diakonos("stop", "many")
	lines, err := logText(h.home, "many")
	h.must(err)
	count := map[string]uint64{}
	for _, l := range lines {
		count[l]++
	}
	for n := range 8 {
		line := fmt.Sprintf("line of writer %d", n)
		if written, err := readCounter(seq(n)); err != nil || count[line] != written {
			t.Errorf("writer %d wrote %d lines (%v), the log has %d", n, written, err, count[line])
		}
		delete(count, line)
	}
	if files, _ := filepath.Glob(filepath.Join(h.home, "log/many/2*")); len(count) > 0 || len(files) < 3 {
		t.Errorf("%d rotated files; torn lines: %v", len(files), count)
	}
}

// TestOddLines: what a service prints is logged to the byte: empty, long and very long lines, NUL, bytes that are no UTF-8, no newline at the
// end; a reader that stalls holds up neither the service nor other readers.
func TestOddLines(t *testing.T) {
	h := newTestHome(t)
	h.unit("odd", `[service]
Type = "oneshot"
LogMaxSize = "100M"
ExecStart = [["sh", "-c", "echo; head -c 65536 /dev/zero | tr '\\000' y; echo; head -c 16777216 /dev/zero | tr '\\000' x; echo; printf 'a\\000\\377b'"]]
`)
	h.diakonos("start", "odd")
	lines, err := logText(h.home, "odd")
	h.must(err)
	want := []string{"", strings.Repeat("y", 1<<16), strings.Repeat("x", 1<<24), "a\x00\xffb"}
	if len(lines) != len(want) {
		t.Fatalf("got %d lines, want %d", len(lines), len(want))
	}
	for i := range want {
		if lines[i] != want[i] {
			t.Errorf("line %d: got %d bytes, want %d, %.20q", i, len(lines[i]), len(want[i]), want[i])
		}
	}
	h.unit("web", "[service]\nExecStart = \"$SVC -seq "+h.dir+"/seq -seq-every 1ms -seq-burst 20\"\n")
	h.diakonos("start", "web")
	stalled := h.command("logs", "-f", "web")
	out, err := stalled.StdoutPipe() // nobody reads it
	h.must(err)
	h.must(stalled.Start())
	defer func() { stalled.Process.Kill(); out.Close(); stalled.Wait() }()
	if !eventually(3*testPatience, func() bool { n, _ := readCounter(h.dir + "/seq"); return n > 20_000 }) {
		t.Error("the service does not go on")
	}
	if text := h.diakonos("logs", "-n", "1", "web"); !strings.Contains(text, "seq ") {
		t.Errorf("another reader gets %q", text)
	}
}

// TestCrashLoop: starts follow the table of delays, as the services' own start times say, and daemon.log does not grow with them. Of 50
// services that fail together at the longest delay no tenth of a second has a third.
func TestCrashLoop(t *testing.T) {
	h := newTestHome(t)
	h.unit("loop", "[service]\nRestart = \"always\"\nExecStart = \"$SVC -lock "+h.dir+"/lock -exit-after 0s -code 1\"\n")
	h.command("start", "loop").Run()
	h.diakonos("list")
	before, _ := os.ReadFile(filepath.Join(h.home, "daemon.log"))
	const starts = 5
	if !eventually(3*testPatience, func() bool { return h.started("lock") >= starts }) {
		t.Fatalf("only %d starts", h.started("lock"))
	}
	after, _ := os.ReadFile(filepath.Join(h.home, "daemon.log"))
	text, _ := os.ReadFile(h.dir + "/lock")
	var last, pid, ticks int64
	for n, line := range strings.Split(strings.TrimSpace(string(text)), "\n")[:starts] {
		if _, err := fmt.Sscan(line, &pid, &ticks); err != nil {
			t.Fatal(err)
		}
		least := 90 << max(0, n-1) // ms: 100 doubling, less the jitter
		if gap := (ticks - last) * 1000 / clockTicks; n > 0 && gap < int64(least)-1000/clockTicks {
			t.Errorf("start %d came %d ms after the one before, want at least %d", n, gap, least)
		} else {
			t.Logf("start %d: %d ms", n, gap)
		}
		last = ticks
	}
	if lines := strings.Count(string(after), "\n") - strings.Count(string(before), "\n"); lines > 1 {
		t.Errorf("%d lines more in daemon.log:\n%s", lines, tail(after, 1000))
	}
	at := map[int64]int{}
	for n := range 50 {
		s := service{runRecord: runRecord{Invocation: fmt.Sprintf("%04x%028x", n*1307, 0)}}
		at[s.jitter(time.Minute).Milliseconds()/100]++
	}
	for tenth, n := range at {
		if n > 50*30/100 {
			t.Errorf("%d of 50 start within the same tenth of a second, %d", n, tenth)
		}
	}
}

// TestLongHomes: a home of any length works, or the message says that its path is too long.
func TestLongHomes(t *testing.T) {
	for _, length := range []int{50, 100, 107, 108, 250, 1000, 4000, 4090} {
		t.Run(fmt.Sprint(length), func(t *testing.T) {
			h := newTestHome(t)
			h.unit("web", "[service]\nType = \"notify\"\nExecStart = \"$SVC -notify READY=1\"\n")
			for len(h.home) < length {
				h.home += "/" + strings.Repeat("d", max(1, min(200, length-len(h.home)-1)))
			}
			out, err := h.command("start", "web").CombinedOutput()
			switch {
			case err == nil:
				h.replaced("shim:web")
				h.diakonos("stop", "web")
			case length < 3000 || !strings.Contains(string(out), "too long"):
				t.Errorf("%d bytes: %v\n%s", length, err, out)
			}
			if err != nil {
				h.home = filepath.Join(h.dir, "h") // for the end
			}
		})
	}
}

// TestBrokenServiceDirectory: the service directory of a running service is filled with rubbish: what runs is left alone, each broken
// unit is named with file and line, and the others can be used.
func TestBrokenServiceDirectory(t *testing.T) {
	h := newTestHome(t)
	h.unit("web", "[unit]\nDescription = \"as it was\"\n[service]\nExecStart = \"$SVC\"\n")
	h.unit("good", "[service]\nExecStart = \"$SVC\"\n")
	h.diakonos("start", "web")
	main := h.status("web")["main_pid"]
	h.unit("huge", strings.Repeat("# comment\n", 1<<20)+"[service]\nExecStart = \"$SVC\"\n")
	h.unit("binary", "\x00\xff\x1b[2J")
	h.unit("snake", "[unit]\nRequires = [\"tail\"]\n[service]\nExecStart = \"$SVC\"\n")
	h.unit("tail", "[unit]\nRequires = [\"snake\"]\n[service]\nExecStart = \"$SVC\"\n")
	for n := range 100 {
		h.unit(fmt.Sprintf("deep%02d", n), fmt.Sprintf("[unit]\nWants = [\"deep%02d\"]\n[service]\nExecStart = \"$SVC\"\n", min(n+1, 99)))
	}
	for _, text := range []string{"[service]\nExecStart = \"half", "", strings.Repeat("[a]\n", 100_000), strings.Repeat("x = [", 100_000)} {
		h.unit("web", text)
		if st := h.status("web"); st["main_pid"] != main || st["active_state"] != active || st["description"] != "as it was" {
			t.Errorf("with %.30q: %v", text, st)
		}
		for _, verb := range []string{"restart", "reload"} {
			out, err := h.command(verb, "web").CombinedOutput()
			if err == nil || !strings.Contains(string(out), "web.service") {
				t.Errorf("%s with %.30q: %v, got %q, want a mistake of web.service", verb, text, err, out)
			}
		}
		if now := h.status("web")["main_pid"]; now != main {
			t.Fatalf("with %.30q: process %v is %v", text, main, now)
		}
	}
	for _, name := range []string{"huge", "binary", "snake"} {
		if out, err := h.command("start", name).CombinedOutput(); err == nil || !strings.Contains(string(out), name) || len(out) > 5000 {
			t.Errorf("%s: %v, got %d bytes: %.300q", name, err, len(out), out)
		}
	}
	h.diakonos("start", "good")
	h.diakonos("list")
}

// ---- kernels that lack calls

// lackingCalls are what old kernels and sandboxes do without.
var lackingCalls = map[string]uint32{
	"tee": unix.SYS_TEE, "splice": unix.SYS_SPLICE, "pidfd_open": unix.SYS_PIDFD_OPEN, "pidfd_send_signal": unix.SYS_PIDFD_SEND_SIGNAL,
	"renameat2": unix.SYS_RENAMEAT2, "close_range": unix.SYS_CLOSE_RANGE, "openat2": unix.SYS_OPENAT2, "clone3": unix.SYS_CLONE3,
	"fallocate": unix.SYS_FALLOCATE,
}

// rogueWithout runs a command for which these calls do not exist: seccomp(2) answers ENOSYS.
func rogueWithout(calls, args []string) {
	runtime.LockOSThread()
	program := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}} // the number of the call
	for _, name := range calls {
		nr, known := lackingCalls[name]
		if !known {
			check(fmt.Errorf("no such call: %s", name))
		}
		program = append(program, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: nr},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)})
	}
	program = append(program, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	check(unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
	if _, _, e := syscall.RawSyscall6(syscall.SYS_PRCTL, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0, 0); e != 0 {
		check(e)
	}
	path, err := exec.LookPath(args[0])
	check(err)
	check(syscall.Exec(path, args, os.Environ()))
}

// TestLackingCalls: where the kernel lacks a call, services are started, logged, adopted after the death of daemon and shim, and stopped with
// all their processes; nobody else gets a signal. Without pidfds the daemon says what that costs: a service whose shim was killed
// lives on unsupervised; it is neither shown as ended nor started again, and nobody guesses who is to get a signal.
func TestLackingCalls(t *testing.T) {
	for _, calls := range []string{"tee,splice", "pidfd_open,pidfd_send_signal", "renameat2,openat2,close_range,clone3,fallocate"} {
		t.Run(calls, func(t *testing.T) {
			t.Parallel()
			h := newTestHome(t)
			stranger := newStranger(t)
			if out, err := h.program("rogue", "without", calls, "true").CombinedOutput(); err != nil {
				skip(t, fmt.Sprintf("calls cannot be forbidden here: %v: %s", err, out))
			}
			h.unit("web", "[service]\nTimeoutStopSec = 1\nEnvironment = [\"TREE_COOKIE="+h.dir+"\"]\nExecStart = \"$SVC -lock "+h.dir+"/web.lock -spawn 2 -setsid -seq "+h.dir+"/seq -seq-every 1ms -term-code 0\"\n")
			if out, err := h.program("rogue", "without", calls, "diakonos", "start", "web").CombinedOutput(); err != nil {
				t.Fatalf("start: %v\n%s", err, out)
			}
			main := h.status("web")["main_pid"]
			wait := func(what string, ok func() bool) {
				t.Helper()
				if !eventually(testPatience, ok) {
					log, _ := os.ReadFile(filepath.Join(h.home, "daemon.log"))
					t.Fatalf("%s: %v\n%s", what, h.status("web"), tail(log, 2000))
				}
			}
			wait("lines", func() bool { n, _ := readCounter(h.dir + "/seq"); return n > 50 })
			for _, victims := range [][]string{{"@daemon"}, {"shim:web"}, {"@daemon", "shim:web"}} {
				for _, who := range victims {
					p, err := find(h.home, who)
					h.must(err)
					killAndWait(t, p)
				}
				h.program("rogue", "without", calls, "diakonos", "list").Run()
				if victims[0] == "shim:web" && strings.Contains(calls, "pidfd_open") {
					h.withoutPidfds(main)
					return
				}
				wait("after the death of "+strings.Join(victims, " and "), func() bool {
					st := h.status("web")
					shim, err := find(h.home, "shim:web")
					return st["main_pid"] == main && st["active_state"] == active && st["supervised"] == true && err == nil && float64(shim.pid) == st["shim_pid"]
				})
			}
			h.diakonos("stop", "web")
			for pid, p := range readProcesses() {
				if carries(pid, "TREE_COOKIE="+h.dir) {
					t.Errorf("after the stop there is %v", p)
				}
			}
			written, err := readCounter(h.dir + "/seq")
			h.must(err)
			lines, err := logText(h.home, "web")
			h.must(err)
			if fault := logFault(lines, "", written, nil); fault != "" {
				t.Errorf("the log: %s", fault)
			}
			text, _ := os.ReadFile(h.dir + "/web.lock")
			if fault := instanceFault(string(text)); fault != "" || strings.Count(string(text), "\n") != 1 {
				t.Errorf("starts: %q", text)
			}
			if fault := stranger.fault(); fault != "" {
				t.Errorf("a stranger %s", fault)
			}
		})
	}
}

// withoutPidfds looks at a service whose shim was killed.
func (h *testHome) withoutPidfds(main any) {
	h.t.Helper()
	if out := h.diakonos("daemon-status"); !strings.Contains(out, "pidfd_open") {
		h.t.Errorf("daemon-status does not say what is missing: %s", out)
	}
	if !eventually(testPatience, func() bool { st := h.status("web"); return st["supervised"] == false && st["main_pid"] == main }) {
		h.t.Errorf("the service is %v, want process %v unsupervised", h.status("web"), main)
	}
	h.command("--no-block", "start", "web").Run()
	text, _ := os.ReadFile(h.dir + "/web.lock")
	if strings.Count(string(text), "\n") != 1 {
		h.t.Errorf("starts: %q", text)
	}
	p, alive := readProcess(lastPID(string(text)))
	if !alive || float64(p.pid) != main {
		h.t.Errorf("process %v is gone", main)
	}
	syscall.Kill(p.pid, syscall.SIGKILL)
	for pid, p := range readProcesses() { // only we may
		if carries(pid, "TREE_COOKIE="+h.dir) {
			killAndWait(h.t, p)
		}
	}
}
