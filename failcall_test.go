// Role: failing calls: the nth kernel call of a process fails, for each n; judged by what processes and logs show.
// Runs in: go test.
// Owns: each trial's home and services.
// Uses: seccomp, campaign, edge, failpoint, observe, script, scriptcmd, state, log.

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	failCalls    = flag.Int("fail-calls", 150, "trials of TestFailingCalls, at random: -seed chooses others; 0 = each call of each series once")
	failSeries   = flag.String("fail-call", "", "the series of TestFailingCalls that begin so, or one trial: SCENARIO/ROLE/ERROR/N")
	failProgress = flag.String("fail-progress", "", "TestFailingCalls leaves out what this file says is done, and adds what it does")
	failProgram  = flag.String("fail-program", "", "the program of TestFailingCalls, a file named diakonos; empty = it is built")
	failParallel = flag.Int("fail-parallel", 4, "trials of TestFailingCalls at once")
)

const (
	hangLimit   = 10 * time.Second      // for whatever must come to pass with a failing call
	callsQuiet  = 15 * time.Millisecond // without a call: what was asked for is through
	quietLimit  = 3 * time.Second       // for that
	failService = "web"
)

// failScenario is what is done while calls are counted.
type failScenario struct {
	name   string
	roles  []string // whose calls are failed
	lines  uint64   // that the service prints in a burst
	unit   string   // more keys
	held   bool     // the service prints only when the file FILE.go is there
	begin  func(*failTrial)
	do     func(*failTrial) // gives at most one command
	again  []string         // brings the wished state, should it not hold
	down   bool             // the wished state: else it runs
	same   bool             // no command asks for another process
	pruned bool             // the log lacks its beginning
	kills  bool             // the shim: without tee it has read what is in no safe place
}

// failScenarios are made anew for each run of the tests.
func failScenarios() []*failScenario {
	all := []string{roleClient, roleDaemon, roleShim, roleStage}
	started := func(r *failTrial) { r.begun("start", failService) }
	kill := func(r *failTrial, who ...string) {
		var dead []seenProcess
		for _, w := range who {
			if p, err := find(r.home, w); err == nil {
				syscall.Kill(p.pid, syscall.SIGKILL)
				dead = append(dead, p)
			}
		}
		for _, p := range dead {
			r.within("the end of "+p.String(), func() string { return unless(isGone(p), "it lives") })
		}
	}
	others := func(r *failTrial, who string) (list []seenProcess) { // by the process table: a PID file may be what could not be written
		if who == "@daemon" {
			return daemonsOf(r.home)
		}
		return shimsOf(readProcesses(), r.home, failService)
	}
	successor := func(r *failTrial, who string) {
		before := others(r, who)
		kill(r, who)
		r.within("a successor of "+who, func() string {
			now := others(r, who)
			return unless(len(now) == 1 && len(before) == 1 && now[0] != before[0], fmt.Sprintf("there is %v", now))
		})
	}
	return []*failScenario{
		{name: "start", roles: all, again: []string{"start", failService},
			do: func(r *failTrial) { r.command("start", failService) }},
		{name: "stop", roles: all[:3], begin: started, again: []string{"stop", failService}, down: true,
			do: func(r *failTrial) { r.command("stop", failService) }},
		{name: "restart", roles: all, begin: started, again: []string{"restart", failService},
			do: func(r *failTrial) { r.command("restart", failService) }},
		{name: "rotate", roles: all[2:3], begin: started, held: true, lines: 200, unit: "LogMaxSize = \"4K\"\n", same: true,
			do: (*failTrial).printAll},
		{name: "prune", roles: all[2:3], begin: started, held: true, lines: 200, unit: "LogMaxSize = \"4K\"\nLogMaxFiles = 1\n", same: true, pruned: true,
			do: (*failTrial).printAll},
		{name: "adopt-daemon", roles: all[:3], begin: started, again: []string{"status", failService}, same: true,
			do: func(r *failTrial) { kill(r, "@daemon"); r.command("status", failService) }},
		{name: "adopt-shim", roles: []string{roleDaemon, roleShim}, begin: started, again: []string{"status", failService}, same: true, kills: true,
			do: func(r *failTrial) { successor(r, "shim:"+failService) }},
		{name: "adopt-both", roles: all[:3], begin: started, again: []string{"status", failService}, same: true, kills: true,
			do: func(r *failTrial) { kill(r, "@daemon", "shim:"+failService); r.command("status", failService) }},
		{name: "heal", roles: []string{roleShim, roleDaemon}, begin: started, again: []string{"status", failService}, same: true,
			do: func(r *failTrial) { successor(r, "@daemon") }},
	}
}

func unless(ok bool, text string) string {
	if ok {
		return ""
	}
	return text
}

// failTrial is one run of a scenario.
type failTrial struct {
	*campaign
	*callWatch
	scenario *failScenario
	s        *subject
	order    callOrder
	failed   string        // the call
	code     int           // of the command, -1 = it hung
	out, err string        // what it said
	told     bool          // a command was given
	limit    time.Duration // for whatever must come to pass
	late     int           // faults that are a matter of time
}

// newFailTrial makes the home of a trial. It leaves t nothing to clean up, for there are thousands of trials.
func newFailTrial(t *testing.T, sc *failScenario, o callOrder, str *stranger, bin string) (*failTrial, error) {
	svc, err := exec.LookPath("svc")
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "diakonos-test-")
	if err != nil {
		return nil, err
	}
	h := &testHome{t: t, dir: dir, home: filepath.Join(dir, "h"), svc: svc, bin: bin}
	if err := os.Mkdir(filepath.Join(dir, "services"), 0o755); err != nil {
		return nil, err
	}
	kind := subjectKind{name: sc.name, lines: true}
	r := &failTrial{callWatch: newCallWatch(), scenario: sc, order: o, limit: hangLimit,
		campaign: &campaign{testHome: h, began: time.Now(), stranger: str, expects: true}}
	wait := ""
	if sc.held {
		wait = " -wait-file $FILE.go"
	}
	kind.unit = sc.unit + "ExecStart = \"$SVC -lock $FILE.lock" + wait + " -seq $FILE.seq -seq-every 1h -seq-burst " +
		strconv.FormatUint(r.burst(), 10) + " -term-code 0\"\n"
	r.add(&kind, failService)
	r.s = r.subjects[0]
	return r, nil
}

func (r *failTrial) burst() uint64 { return cmp.Or(r.scenario.lines, 3) }

// within waits for what must come to pass although a call fails.
func (r *failTrial) within(what string, ok func() string) bool {
	var missing string
	if !eventually(r.limit, func() bool { missing = ok(); return missing == "" }) {
		r.late++
		r.fault("%s: %s", what, missing)
		return false
	}
	return true
}

// ---- commands

// command gives the scenario's command, whose calls are among those that may fail.
func (r *failTrial) command(args ...string) {
	r.told = true
	r.code, r.out, r.err = r.give(r.callWatch.start, args...)
}

// begun gives a command that must succeed, before any call fails; what it starts has the filter.
func (r *failTrial) begun(args ...string) {
	code, out, err := r.give(r.callWatch.start, args...)
	if code != 0 {
		r.fault("diakonos %s, with no call failed: %d: %s%s", strings.Join(args, " "), code, out, err)
	}
	r.settled("before any call fails", false)
}

// plain gives a command whose own calls are not failed.
func (r *failTrial) plain(args ...string) (code int, out, err string) {
	return r.give((*exec.Cmd).Start, args...)
}

// give runs a command; -1: it hung.
func (r *failTrial) give(start func(*exec.Cmd) error, args ...string) (code int, out, err string) {
	r.note("command: %s", strings.Join(args, " "))
	cmd := r.program("diakonos", args...)
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	if path, err := exec.LookPath(cmd.Path); err == nil {
		cmd.Path = path
	}
	if err := start(cmd); err != nil {
		r.fault("cannot run diakonos %s: %v", strings.Join(args, " "), err)
		return 1, "", err.Error()
	}
	hung := time.AfterFunc(r.limit, func() { cmd.Process.Kill() })
	cmd.WaitDelay = time.Second
	_ = cmd.Wait() // its state tells all
	code = cmd.ProcessState.ExitCode()
	if !hung.Stop() {
		code = -1
		r.late++
		r.fault("diakonos %s hangs: %s%s", strings.Join(args, " "), o.String(), e.String())
	}
	r.note("exit code %d: %s%s", code, o.String(), e.String())
	return code, o.String(), e.String()
}

// printAll lets the service print, and gives the log time to have it all.
func (r *failTrial) printAll() {
	r.must(os.WriteFile(r.s.file+".go", nil, 0o644))
	r.within("the service", func() string {
		n, _ := readCounter(r.s.file + ".seq")
		return unless(n == r.burst(), fmt.Sprintf("it has counted %d lines", n))
	})
	eventually(time.Second, func() bool { return r.logIsWhole() == "" }) // a gap is told with the next record, or when the service ends
}

// ---- one trial

// run does one trial. reached: the order was carried out.
func (r *failTrial) run() (reached bool) {
	sc := r.scenario
	if sc.begin != nil {
		sc.begin(r)
	}
	was := lastLine(r.instances(r.s))
	if r.faults == 0 {
		r.arm(r.order)
		sc.do(r)
		r.awaitQuiet()
		r.failed = r.disarm()
		r.note("failed: %s", r.failed)
		r.judge(was)
	}
	r.end()
	return r.failed != ""
}

// awaitQuiet waits until the processes in question rest: what follows an answer counts too.
func (r *failTrial) awaitQuiet() {
	eventually(quietLimit, func() bool {
		since, done := r.quiet()
		return done || since > callsQuiet
	})
}

// judge tells whether the outcome is right, then whether the next command finds nothing wrong.
func (r *failTrial) judge(was string) {
	if fault := callFault(r.order.errno, r.failed != "", r.told, r.code, r.err); fault != "" {
		r.fault("%s: %s%s", fault, r.out, r.err)
	}
	if r.told && r.code == 0 {
		r.wished(was)
	}
	r.agreement()
	if r.told && r.code > 0 || r.scenario.same && r.scenario.again != nil { // an adoption may answer from the files
		if code, out, err := r.plain(r.scenario.again...); code != 0 {
			r.fault("the next command, diakonos %s, fails too: %d: %s%s", strings.Join(r.scenario.again, " "), code, out, err)
		}
	}
	r.settled("afterwards", true)
	if r.scenario.same && lastLine(r.instances(r.s)) != was {
		r.fault("it was %q and is %q, and no command asked for that", was, lastLine(r.instances(r.s)))
	}
}

// callFault judges exit code and message of the command.
func callFault(errno syscall.Errno, failed, told bool, code int, message string) string {
	switch {
	case !told:
		return ""
	case code < 0:
		return "" // it was reported where it hung
	case !failed && code != 0:
		return fmt.Sprintf("exit code %d, and no call was failed", code)
	case errno == unix.EINTR && code != 0:
		return fmt.Sprintf("exit code %d for an interrupted call", code)
	case code > exitNotPermit:
		return fmt.Sprintf("exit code %d", code)
	case code != 0 && strings.TrimSpace(message) == "":
		return fmt.Sprintf("exit code %d without a message", code)
	}
	return ""
}

// wished: exit code 0 says that the wish holds.
func (r *failTrial) wished(was string) {
	if r.scenario.down {
		r.checkEmpty(r.s)
		return
	}
	r.within("the service runs, as the exit code says", func() string {
		text := r.instances(r.s) // it writes its line a moment after the execve
		return unless(lives(text) && (r.scenario.same || lastLine(text) != was), "its last process is "+strconv.Quote(lastLine(text)))
	})
}

// agreement: `list` says of the service what the process table shows.
func (r *failTrial) agreement() {
	r.within("list --json agrees with the processes", func() string {
		list, err := r.list()
		if err != nil {
			return fmt.Sprintf("list fails: %v", err)
		}
		st, text := list[failService], r.instances(r.s)
		switch {
		case lives(text) != (st.ActiveState == "active"):
			return fmt.Sprintf("it is %s (%s), and its process %q lives: %t", st.ActiveState, st.SubState, lastLine(text), lives(text))
		case lives(text) && st.MainPID != lastPID(text):
			return fmt.Sprintf("its main process is %d, and it wrote %q", st.MainPID, lastLine(text))
		}
		return ""
	})
}

// settled: the wished state holds, and one shim supervises the service, or none.
func (r *failTrial) settled(when string, wish bool) {
	r.s.up = !wish || !r.scenario.down
	r.within("its state "+when, func() string {
		list, err := r.list()
		if err != nil {
			return fmt.Sprintf("list fails: %v", err)
		}
		if text := r.unsupervised(r.s, list[failService], shimsOf(readProcesses(), r.home, failService)); text != "" {
			return text
		}
		if n, _ := readCounter(r.s.file + ".seq"); r.s.up && (!r.scenario.held || exists(r.s.file+".go")) && (n == 0 || n%r.burst() != 0) {
			return fmt.Sprintf("it has counted %d lines", n) // it must not be stopped within a burst
		}
		return ""
	})
	if r.scenario.down && wish {
		r.checkEmpty(r.s)
	}
	if fault := instanceFault(r.instances(r.s)); fault != "" {
		r.fault("%s", fault)
	}
}

// end ends everything, and looks at what is left and at what was written.
func (r *failTrial) end() {
	r.disarm()
	code, out, err := r.plain("kill")
	if code != 0 {
		r.fault("kill fails: %d: %s%s", code, out, err)
	}
	rest := &scriptState{t: goTest{r.t}, name: r.scenario.name, work: r.dir, home: r.home}
	var left []seenProcess
	if !eventually(time.Second, func() bool { left = rest.leftovers(); return len(left) == 0 }) {
		r.fault("after kill there is %v", left)
		eventually(hangLimit, func() bool {
			for _, p := range rest.leftovers() {
				syscall.Kill(p.pid, syscall.SIGKILL)
			}
			return len(rest.leftovers()) == 0
		})
	}
	if r.instances(r.s) != "" {
		if fault := r.logIsWhole(); fault != "" {
			r.fault("the log after kill: %s", fault)
		}
	}
	log, _ := os.ReadFile(filepath.Join(r.home, "daemon.log"))
	if fault := ownLogFault(string(log)+r.out+r.err, r.order.errno); fault != "" {
		r.fault("daemon.log: %s", fault)
	}
	if fault := r.stranger.fault(); fault != "" {
		r.fault("a stranger %s", fault)
	}
	r.served.Wait()
}

var panicText = regexp.MustCompile(`internal error|panic|fatal error|goroutine \d`)

// ownLogFault looks for what must never be said.
func ownLogFault(text string, errno syscall.Errno) string {
	for line := range strings.Lines(text) {
		if panicText.MatchString(line) || errno == unix.EINTR && strings.Contains(line, unix.EINTR.Error()) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// logIsWhole compares the log with the counter of the service.
func (r *failTrial) logIsWhole() string {
	if r.scenario.kills && strings.HasPrefix(r.failed, "tee(") {
		return "" // such a shim says that it may lose lines when it is killed
	}
	written, err := readCounter(r.s.file + ".seq")
	if err != nil {
		written = 0
	}
	if r.scenario.held && exists(r.s.file+".go") && written < r.burst() {
		return fmt.Sprintf("it has counted %d lines", written)
	}
	lines, err := logText(r.home, failService)
	if err != nil && written > 0 {
		return err.Error()
	}
	return failLogFault(lines, written, r.scenario.pruned)
}

// failLogFault judges numbered lines, of which some may be missing where a record says so, and how many.
func failLogFault(lines []string, written uint64, pruned bool) string {
	var last, missing uint64
	for _, l := range lines {
		if gap, ok := parseGap([]byte(l)); ok {
			missing += gap.lines
			continue
		}
		text, ok := strings.CutPrefix(l, "seq ")
		n, err := strconv.ParseUint(text, 10, 64)
		switch {
		case !ok || err != nil:
			return fmt.Sprintf("%q follows line %d", l, last)
		case last == 0 && pruned: // also where a record of missing ones comes first
		case n <= last:
			return fmt.Sprintf("line %d follows line %d", n, last)
		case n-last-1 != missing:
			return fmt.Sprintf("line %d follows line %d, and a record tells of %d missing ones", n, last, missing)
		}
		last, missing = n, 0
	}
	if last+missing != written {
		return fmt.Sprintf("the log ends at line %d with %d missing, %d were written", last, missing, written)
	}
	return ""
}

// clear removes the home. keep: what tells of a fault stays.
func (r *failTrial) clear(t *testing.T) {
	if r.faults > 0 {
		if dir, err := os.MkdirTemp("", "diakonos-fail-call-"); err == nil {
			text := strings.Join(r.journal, "\n") + "\n"
			run, _ := filepath.EvalSymlinks(filepath.Join(r.home, "run"))
			err = errors.Join(os.WriteFile(filepath.Join(dir, "journal"), []byte(text), 0o644), keepFiles(r.dir, dir), keepFiles(run, filepath.Join(dir, "run")))
			log, _ := os.ReadFile(filepath.Join(r.home, "daemon.log"))
			t.Logf("kept in %s (%v)\n%sdaemon.log:\n%s", dir, err, text, tail(log, 3000))
		}
	}
	dropMemory(r.dir)
	os.RemoveAll(r.dir)
}

// ---- all trials

// callSeries are the trials for one error in one role.
type callSeries struct {
	scenario *failScenario
	role     string
	errno    syscall.Errno
	calls    int // as they were counted without a failure
}

func (c callSeries) name() string {
	return c.scenario.name + "/" + c.role + "/" + unix.ErrnoName(c.errno)
}

// failRun is one run of the test.
type failRun struct {
	t        *testing.T
	bin      string
	stranger *stranger
	trials   atomic.Int64
	failing  atomic.Int64 // commands that failed, as they should
	bad      atomic.Int64
	mu       sync.Mutex
	done     map[string]int // by series: up to here; -1 = all
	progress *os.File
	calls    map[string]int // failed calls by name
	late     []string       // trials that were done again
}

// TestFailingCalls fails the nth kernel call of a client, the daemon, a shim or a stage, through start, stop, restart, rotation and
// adoption. No command hangs, none lies, no state is wrong afterwards, and the next command finds nothing wrong.
func TestFailingCalls(t *testing.T) {
	f := newFailRun(t)
	seed := cmp.Or(*campaignSeed, 1) // the same ones each time: the long run takes all
	began := time.Now()
	one, only := f.only()
	list := f.count(one)
	chance := rand.New(rand.NewPCG(seed, seed))
	switch {
	case only > 0:
		for _, c := range list {
			f.trial(c, only)
		}
	case *failCalls > 0 && one == "":
		f.sample(list, *failCalls, chance)
	default:
		f.whole(list)
	}
	for _, name := range slices.Sorted(maps.Keys(f.calls)) {
		t.Logf("%6d %s", f.calls[name], name)
	}
	if len(f.late) > 0 {
		t.Logf("done again: %s", strings.Join(f.late, " "))
	}
	t.Logf("seed %d: %d trials, %d commands failed, %d faults, %.0f s", seed, f.trials.Load(), f.failing.Load(), f.bad.Load(), time.Since(began).Seconds())
}

func newFailRun(t *testing.T) *failRun {
	f := &failRun{t: t, stranger: newStranger(t), done: map[string]int{}, calls: map[string]int{}}
	f.bin = releasedProgram(t)
	cmd := exec.Command("true")
	if err := newCallWatch().start(cmd); err != nil {
		skip(t, "a filter of calls cannot be had here, "+filterNeedsKernel+": "+err.Error())
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	f.readProgress()
	return f
}

// releasedProgram is a directory with the program as it is released: the binary of the tests may be linked with the C library, whose loader
// and threads make calls of their own.
func releasedProgram(t *testing.T) (dir string) {
	t.Helper()
	if *failProgram != "" {
		path, err := filepath.Abs(*failProgram)
		if err != nil {
			t.Fatal(err)
		}
		return filepath.Dir(path)
	}
	if _, err := exec.LookPath("go"); err != nil {
		skip(t, "there is no `go` to build the program with; -fail-program names one")
	}
	dir, err := os.MkdirTemp("", "diakonos-bin-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "diakonos"), ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("cannot build the program: %v\n%s", err, out)
	}
	return dir
}

// only is what -fail-call names: the beginning of series, and the one call.
func (f *failRun) only() (prefix string, n int) {
	part := strings.Split(*failSeries, "/")
	if len(part) < 4 {
		return *failSeries, 0
	}
	n, err := strconv.Atoi(part[3])
	if err != nil {
		f.t.Fatal(err)
	}
	return strings.Join(part[:3], "/"), n
}

// readProgress: lines are `SERIES N`; end instead of N tells that the series is done.
func (f *failRun) readProgress() {
	if *failProgress == "" {
		return
	}
	file, err := os.OpenFile(*failProgress, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { file.Close() })
	f.progress = file
	in := bufio.NewScanner(file)
	for in.Scan() {
		series, number, _ := strings.Cut(in.Text(), " ")
		n, err := strconv.Atoi(number)
		if err != nil {
			n = -1
		}
		f.done[series] = n
	}
}

func (f *failRun) note(series, number string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.progress != nil {
		fmt.Fprintln(f.progress, series, number)
	}
}

// count runs each scenario without a failure, and lists its series.
func (f *failRun) count(prefix string) (list []callSeries) {
	for _, sc := range failScenarios() {
		if !strings.HasPrefix(sc.name, prefix) && !strings.HasPrefix(prefix, sc.name+"/") {
			continue
		}
		r := f.start(sc, callOrder{})
		r.run()
		f.report(r, sc.name+" without a failure")
		var text []string
		for _, role := range sc.roles {
			text = append(text, fmt.Sprintf("%s %d", role, r.counted(role, unix.EIO)))
			for _, errno := range callErrors {
				c := callSeries{sc, role, errno, r.counted(role, errno)}
				if strings.HasPrefix(c.name(), prefix) {
					list = append(list, c)
				}
			}
		}
		f.t.Logf("%s: calls: %s", sc.name, strings.Join(text, ", "))
	}
	return list
}

func (f *failRun) start(sc *failScenario, o callOrder) *failTrial {
	r, err := newFailTrial(f.t, sc, o, f.stranger, f.bin)
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

// trial fails one call. reached: there is such a call.
func (f *failRun) trial(c callSeries, n int) (reached bool) { return f.try(c, n, false) }

// try does so; what comes late is tried again once.
func (f *failRun) try(c callSeries, n int, again bool) (reached bool) {
	r := f.start(c.scenario, callOrder{c.role, c.errno, n})
	reached = r.run()
	f.trials.Add(1)
	if r.late > 0 && !again {
		f.t.Logf("%s/%d: %s: it is tried again, for a busy machine is late too: %s", c.name(), n, r.failed, strings.Join(r.hidden, "; "))
		f.mu.Lock()
		f.late = append(f.late, fmt.Sprintf("%s/%d", c.name(), n))
		f.mu.Unlock()
		r.faults = 0 // shown if they come again
		r.clear(f.t)
		return f.try(c, n, true)
	}
	if r.told && r.code > 0 {
		f.failing.Add(1)
	}
	if reached {
		f.mu.Lock()
		f.calls[failableCalls[r.row].name]++
		f.mu.Unlock()
	}
	f.report(r, fmt.Sprintf("%s/%d: %s", c.name(), n, r.failed))
	return reached
}

func (f *failRun) report(r *failTrial, what string) {
	for _, fault := range r.hidden {
		f.t.Errorf("%s: %s", what, fault)
	}
	if r.faults > 0 {
		f.bad.Add(1)
	}
	r.clear(f.t)
}

// parallel runs work until it has no more, or time is short.
func (f *failRun) parallel(work func() bool) {
	deadline, limited := f.t.Deadline()
	var wg sync.WaitGroup
	for range *failParallel {
		wg.Go(func() {
			for !limited || time.Until(deadline) > 4*hangLimit {
				if !work() {
					return
				}
			}
		})
	}
	wg.Wait()
}

// sample does trials at random: first a series, so that the few calls of a stage count as much as the many of a daemon.
func (f *failRun) sample(list []callSeries, n int, chance *rand.Rand) {
	type pick struct {
		c callSeries
		n int
	}
	picks := make(chan pick, n)
	for range n {
		if c := list[chance.IntN(len(list))]; c.calls > 0 {
			picks <- pick{c, 1 + chance.IntN(c.calls)}
		}
	}
	close(picks)
	f.parallel(func() bool {
		p, more := <-picks
		if more {
			f.trial(p.c, p.n)
		}
		return more
	})
}

// whole does each call of each series, until one is not reached.
func (f *failRun) whole(list []callSeries) {
	next := make(chan callSeries, len(list))
	for _, c := range list {
		if f.done[c.name()] >= 0 {
			next <- c
		}
	}
	close(next)
	deadline, limited := f.t.Deadline()
	f.parallel(func() bool {
		c, more := <-next
		if !more {
			return false
		}
		for n := f.done[c.name()] + 1; ; n++ {
			if limited && time.Until(deadline) < 4*hangLimit {
				f.t.Logf("%s: time is up at %d", c.name(), n)
				return false
			}
			if !f.trial(c, n) && n > c.calls {
				f.note(c.name(), "end")
				f.t.Logf("%s: %d calls; %d trials so far", c.name(), n-1, f.trials.Load())
				return true
			}
			f.note(c.name(), strconv.Itoa(n))
		}
	})
}

// ---- the judge sees faults

func TestFailingCallsJudge(t *testing.T) {
	for _, c := range []struct {
		why     string
		errno   syscall.Errno
		failed  bool
		told    bool
		code    int
		message string
		fault   bool
	}{
		{"success", unix.EIO, true, true, 0, "", false},
		{"a failure that is told", unix.EIO, true, true, 1, "cannot do it", false},
		{"no command", unix.EIO, true, false, 0, "", false},
		{"a failure without a message", unix.EIO, true, true, 1, " \n", true},
		{"a failure without a failed call", unix.EIO, false, true, 1, "cannot do it", true},
		{"an interrupted call is seen", unix.EINTR, true, true, 1, "cannot do it", true},
		{"the exit code of a panic that nobody caught", unix.EIO, true, true, 134, "x", true},
		{"the loader of another program", unix.EIO, true, true, 127, "x", true},
	} {
		if got := callFault(c.errno, c.failed, c.told, c.code, c.message); (got != "") != c.fault {
			t.Errorf("%s: got %q, want a fault: %t", c.why, got, c.fault)
		}
	}
	gap := func(lines uint64) string { return string(gapText(lostCount{lines: lines, bytes: 6 * lines})) }
	for _, c := range []struct {
		why     string
		lines   []string
		written uint64
		pruned  bool
		fault   bool
	}{
		{"whole", []string{"seq 1", "seq 2"}, 2, false, false},
		{"nothing", nil, 0, false, false},
		{"a gap that is told", []string{"seq 1", gap(2), "seq 4"}, 4, false, false},
		{"one that is told at the end", []string{"seq 1", gap(2)}, 3, false, false},
		{"one that is told late", []string{"seq 1", "seq 4", gap(2)}, 4, false, true},
		{"one that is told wrong", []string{"seq 1", gap(1), "seq 4"}, 4, false, true},
		{"one that is not told", []string{"seq 1", "seq 4"}, 4, false, true},
		{"none that is told", []string{"seq 1", gap(1), "seq 2"}, 2, false, true},
		{"doubled", []string{"seq 1", "seq 1"}, 1, false, true},
		{"torn", []string{"seq 1", "se"}, 2, false, true},
		{"cut at the end", []string{"seq 1"}, 2, false, true},
		{"cut at the beginning", []string{"seq 2"}, 2, false, true},
		{"pruned", []string{"seq 7", "seq 8"}, 8, true, false},
		{"pruned up to a gap", []string{gap(2), "seq 7"}, 7, true, false},
		{"pruned, and lost", []string{"seq 7", "seq 9"}, 9, true, true},
	} {
		if got := failLogFault(c.lines, c.written, c.pruned); (got != "") != c.fault {
			t.Errorf("%s: got %q, want a fault: %t", c.why, got, c.fault)
		}
	}
	for _, c := range []struct {
		text  string
		errno syscall.Errno
		fault bool
	}{
		{"cannot open x: too many open files\n", unix.EMFILE, false},
		{"cannot open x: interrupted system call\n", unix.EMFILE, false},
		{"cannot open x: interrupted system call\n", unix.EINTR, true},
		{"x\npanic: y\n", unix.EIO, true},
		{"fatal error: all goroutines are asleep\n", unix.EIO, true},
		{"diakonosd: internal error: z\n", unix.EIO, true},
	} {
		if got := ownLogFault(c.text, c.errno); (got != "") != c.fault {
			t.Errorf("%q: got %q, want a fault: %t", c.text, got, c.fault)
		}
	}
}

// Bugs that are planted into processes of trials.

func sayPanic() { _, _ = unix.Write(2, []byte("panic: planted\n")) }

func neverGoOn() { select {} }

// eatOutput takes output away that the pump has not seen.
func eatOutput() {
	if fd, err := unix.Open("out", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err == nil {
		_, _ = unix.Read(fd, make([]byte, 512))
		unix.Close(fd)
	}
}

// leaveBehind starts a process that `kill` knows nothing of.
func leaveBehind() {
	_, _ = syscall.ForkExec("/bin/sleep", []string{"sleep", "60"}, &syscall.ProcAttr{Env: os.Environ(), Sys: &syscall.SysProcAttr{Setsid: true}})
}

// TestFailingCallsSeesFaults: each planted bug leads to a fault that a trial reports, and a trial without one reports none.
func TestFailingCallsSeesFaults(t *testing.T) {
	for _, c := range []struct {
		why, scenario string
		order         failOrder
		want          string // part of a fault; "" = there is none
	}{
		{"nothing", "restart", failOrder{"nobody", "nothing", 0, actWatch}, ""},
		{"a panic", "start", failOrder{roleDaemon, "daemon.ready", 0, "say-panic"}, "panic: planted"},
		{"a hang", "start", failOrder{roleClient, "home.make", 0, "never-go-on"}, "diakonos start web hangs"},
		{"a lost line", "rotate", failOrder{roleShim, "pump.consume", 0, "eat-output"}, "line"},
		{"a process that is left", "start", failOrder{roleDaemon, "daemon.ready", 0, "leave-behind"}, "after kill there is"},
	} {
		t.Run(c.why, func(t *testing.T) {
			f := newFailRun(t)
			w := failpointBinaries(t)
			w.give(c.order)
			list := failScenarios()
			sc := list[slices.IndexFunc(list, func(sc *failScenario) bool { return sc.name == c.scenario })]
			r, err := newFailTrial(t, sc, callOrder{}, f.stranger, w.beside)
			if err != nil {
				t.Fatal(err)
			}
			if c.want != "" {
				r.limit = 2 * time.Second
			}
			r.run()
			all := strings.Join(r.hidden, "\n")
			if !strings.Contains(all, c.want) || c.want == "" && all != "" {
				t.Errorf("the trial says %q, want something with %q", all, c.want)
			}
			r.faults = 0 // they were wanted
			r.clear(t)
		})
	}
}
