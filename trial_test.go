// Role: trials: a scenario on real processes, one of which is killed or stopped at a failpoint, judged as the kill campaign judges.
// Runs in: go test.
// Owns: each trial's home, its services, its binaries and the orders beside them.
// Uses: failpoint, scenario, campaign, edge, observe, script, state.

package main

import (
	"bytes"
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	failpointRounds = flag.Int("failpoint-rounds", 0, "kills and stops at each failpoint in TestFailpoints; 0 = one kill each. -seed repeats the choices")
	failpointOne    = flag.String("failpoint", "", "the one failpoint of TestFailpoints; empty = all")
	failpointPart   = flag.String("failpoint-part", "1/1", "K/N: the K-th of N parts of the failpoints, so that a long run can go on later")
)

// scenario is what is done while a process has orders.
type scenario struct {
	name   string
	needs  []string // of machineHas
	kinds  []subjectKind
	orders []failOrder  // that belong to it
	only   []string     // failpoints that it is there for; nil = all that it comes to
	user   string       // who gives the commands; "" = who runs the tests
	deep   bool         // the path of the home is longer than a socket's may be
	before func(*trial) // without orders
	do     func(*trial)
	after  func(*trial) // likewise
	blind  bool         // daemon and shim may be dead at the same time: what a service says last may be lost then, as promised
}

// trial is one run of a scenario.
type trial struct {
	*campaign
	*failWatch
	scenario *scenario
	fill     func()         // fills the home's disk
	hang     func()         // makes the home's disk hang
	thaw     func()         // ends that
	begun    map[string]int // PIDs by service when the orders came
}

// newTrial makes a home with the services of a scenario, and binaries that look out for orders.
func newTrial(t *testing.T, sc *scenario, seed uint64) *trial {
	t.Helper()
	w := failpointBinaries(t) // removed after the home
	h := newTestHome(t)
	h.bin = w.beside
	if sc.deep {
		h.home = filepath.Join(h.dir, strings.Repeat("deep", sunPathBytes/4), "h")
		h.must(os.Mkdir(filepath.Dir(h.home), 0o755))
	}
	r := &trial{failWatch: w, scenario: sc}
	r.campaign = campaignOf(h, seed)
	for i := range sc.kinds {
		r.add(&sc.kinds[i], sc.kinds[i].name)
	}
	if sc.user != "" {
		h.user = credentialOf(t, sc.user)
		for _, dir := range []string{h.dir, filepath.Dir(h.home)} {
			h.must(os.Chown(dir, int(h.user.Uid), int(h.user.Gid)))
		}
	}
	t.Cleanup(r.keep) // before the home goes
	return r
}

func (h *testHome) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// failpointBinaries makes a directory with the personalities, and with a file for orders that any of their users can write.
func failpointBinaries(t *testing.T) *failWatch {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "diakonos-bin-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, p := range personalities {
		if err := linkOrCopy(exe, filepath.Join(dir, p.name)); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, ordersFile)
	if err := errors.Join(os.WriteFile(file, nil, 0o666), os.Chmod(file, 0o666), os.Truncate(file, watchBytes)); err != nil {
		t.Fatal(err)
	}
	w, err := openWatch(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(w.m) })
	return w
}

// linkOrCopy gives a program another name, by which /proc/self/exe knows it.
func linkOrCopy(from, to string) error {
	if os.Link(from, to) == nil {
		return nil
	}
	return copyFile(from, to)
}

// copyFile copies a program. No process is forked meanwhile: it would have the copy open for writing for a moment, and the copy could not
// be executed (ETXTBSY).
func copyFile(from, to string) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// ---- orders

// arm gives orders: the one of this trial first, those of the scenario behind it.
func (r *trial) arm(o failOrder) {
	r.begun = r.mainPIDs()
	for _, s := range r.subjects {
		s.instance = lastLine(r.instances(s)) // only a command may change it from now on
	}
	r.note("orders: %s %s", o, r.scenario.orders)
	r.give(append([]failOrder{o}, r.scenario.orders...)...)
}

// fired is the process that has carried out an order; 0 = none yet.
func (r *trial) fired(number int) int { return int(r.pid(number).Load()) }

// stands: the process that has carried out an order to stop stands still.
func (r *trial) stands(number int) bool {
	st, err := readStat(r.fired(number))
	return err == nil && st.state == 'T'
}

// ended: a process that has carried out an order is gone. One that stops itself says so right before: only to be seen to stand, or gone, is
// enough to send it SIGCONT.
func (r *trial) ended(number int) bool {
	pid := r.fired(number)
	_, alive := readProcess(pid)
	return pid != 0 && !alive
}

// reachedOrFired tells whether a role has come to a failpoint since the orders came, or this trial's order was carried out.
func (r *trial) reachedOrFired(role, point string) bool {
	return r.passages()[passage{role, point}] > 0 || r.fired(0) != 0
}

// ---- steps of scenarios

func (r *trial) subject(name string) *subject {
	return r.subjects[slices.IndexFunc(r.subjects, func(s *subject) bool { return s.name == name })]
}

// order gives a command for each of the services, all at once, and waits until they are granted.
func (r *trial) order(verb string, names ...string) {
	r.t.Helper()
	var list []asked
	for _, name := range names {
		list = append(list, r.ask(r.subject(name), verb))
	}
	for _, a := range list {
		r.granted(a)
	}
}

// try gives a command until it succeeds: a kill may break it, but not for ever.
func (r *trial) try(args ...string) {
	r.t.Helper()
	var tries []string
	for range 4 {
		out, err := r.may(args...)
		if err == nil {
			return
		}
		r.again++
		tries = append(tries, fmt.Sprintf("%v: %s", err, out))
	}
	r.fault("diakonos %s fails: %s", strings.Join(args, " "), strings.Join(tries, "\n"))
}

// may gives a command that may fail.
func (r *trial) may(args ...string) ([]byte, error) {
	cmd, out := r.command(args...), new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = out, out
	r.note("command: %s", strings.Join(args, " "))
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stuck := time.AfterFunc(commandPatience, func() { cmd.Process.Signal(syscall.SIGINT) })
	err := cmd.Wait()
	if !stuck.Stop() {
		r.fault("diakonos %s hangs", strings.Join(args, " "))
	}
	return bytes.TrimSpace(out.Bytes()), err
}

// upAll and downAll say what the commands of a scenario have left.
func (r *trial) upAll() {
	for _, s := range r.subjects {
		s.up = true
	}
}

func (r *trial) downAll() {
	for _, s := range r.subjects {
		s.up, s.instance = false, ""
	}
}

// startAll starts all services with one command each.
func (r *trial) startAll() {
	var names []string
	for _, s := range r.subjects {
		names = append(names, s.name)
	}
	r.order("start", names...)
	for _, s := range r.subjects {
		r.until(s.name+" is on its way", func() bool {
			n, err := readCounter(s.file + ".seq")
			return r.instances(s) != "" && (!s.kind.lines || err == nil && n > 0)
		})
	}
}

// signal sends a signal to WHO, if it lives: @daemon, shim:UNIT or UNIT. SIGKILL and SIGTERM are waited for.
func (r *trial) signal(sig syscall.Signal, who string) {
	p, err := find(r.home, who)
	if err != nil {
		return
	}
	r.note("signal: %v to %s %s", sig, who, p)
	syscall.Kill(p.pid, sig)
	if sig == syscall.SIGKILL || sig == syscall.SIGTERM {
		r.await("the end of "+who, func() string {
			if isGone(p) {
				return ""
			}
			return p.String() + " lives"
		})
	}
}

// until waits for what a scenario is to bring about.
func (r *trial) until(what string, ok func() bool) {
	r.t.Helper()
	r.await(what, func() string {
		if ok() {
			return ""
		}
		return "it does not come to pass"
	})
}

// written waits until a service has counted so many lines more.
func (r *trial) written(name string, more uint64) {
	r.t.Helper()
	file := r.subject(name).file + ".seq"
	from, _ := readCounter(file)
	r.until(name+" writes on", func() bool { n, _ := readCounter(file); return n >= from+more })
}

// logGrows waits until something is appended to a log.
func (r *trial) logGrows(name string) {
	r.t.Helper()
	size := func() int64 {
		st, err := os.Stat(filepath.Join(r.home, "log", name, "current"))
		if err != nil {
			return 0
		}
		return st.Size()
	}
	before := size()
	r.until("the log of "+name+" grows", func() bool { return size() > before })
}

// instanceChanges waits until another process of a service has started than the one that began.
func (r *trial) instanceChanges(name string, each func()) {
	r.t.Helper()
	s := r.subject(name)
	s.instance = ""
	r.until(name+" starts again", func() bool {
		if each != nil {
			each()
		}
		r.command("list").Run() // it starts a daemon where no shim is left to do it
		return lastPID(r.instances(s)) != r.begun[name] && lives(r.instances(s))
	})
}

// ---- one trial

// run runs the scenario with an order. The result tells how the trial went on.
func (r *trial) run(o failOrder) (fired bool) {
	r.t.Helper()
	sc := r.scenario
	if sc.before != nil {
		sc.before(r)
	}
	from := bootNow()
	r.arm(o)
	done := make(chan struct{})
	var helped sync.WaitGroup
	if o.action == actStop || o.action == actAll {
		helped.Go(func() { r.help(o, done) })
	}
	sc.do(r)
	fired = r.fired(0) != 0
	if fired && o.action != actStop {
		r.until("the process with orders is dead", func() bool { _, lives := readProcess(r.fired(0)); return !lives })
	}
	if r.again > 0 && (o.action == actWatch || o.action == actKill && (o.role == roleShim || o.role == roleHelper)) {
		r.fault("a command failed though neither client nor daemon was killed")
	}
	r.give()
	close(done)
	helped.Wait()
	r.awaitDaemon(&struck{})
	r.awaitShims(&struck{})
	blind := sc.blind || o.action == actAll || o.action == actStop
	if log, _ := os.ReadFile(filepath.Join(r.home, "daemon.log")); !blind && bytes.Contains(log, []byte(unheardWarning)) {
		r.fault("a READY=1 was lost though not both who could hear it were killed")
	}
	if blind {
		for _, s := range r.subjects {
			s.blind = append(s.blind, blindTime{from, bootNow(), r.begun[s.name]})
		}
	}
	r.check()
	if sc.after != nil {
		sc.after(r)
	}
	r.finish()
	return fired
}

// help goes on when an order has been carried out: where daemon and shims are dead, a command starts a daemon; those whom a stopped
// process works with are killed and replaced, before it goes on with what it knew before.
func (r *trial) help(o failOrder, done chan struct{}) {
	over := func() bool {
		select {
		case <-done:
			return true
		default:
			return false
		}
	}
	until := func(ok func() bool) {
		for !ok() && !over() {
			time.Sleep(2 * time.Millisecond)
		}
	}
	until(func() bool { return r.fired(0) != 0 })
	if o.action == actAll {
		until(func() bool { _, lives := readProcess(r.fired(0)); return !lives })
		until(func() bool { return r.command("list").Run() == nil })
		return
	}
	pid := r.fired(0)
	until(func() bool { st, err := readStat(pid); return err != nil || st.state == 'T' })
	who := "@daemon"
	if o.role == roleDaemon {
		who = "shim:" + r.subjects[0].name
	}
	if p, err := find(r.home, who); err == nil && p.pid != pid {
		syscall.Kill(p.pid, syscall.SIGKILL)
		eventually(time.Second, func() bool { q, err := find(r.home, who); return err == nil && q.pid != p.pid }) // where somebody replaces it
	}
	until(func() bool { // a scenario that stops it too may have come between
		return pid == 0 || syscall.Kill(pid, syscall.SIGCONT) != nil
	})
}

// ---- all failpoints

// passed is what a scenario comes by.
type passed struct {
	scenario *scenario
	count    map[passage]int
}

// TestFailpoints runs each scenario once to see which failpoints it comes to, demands that each is reached, and runs a trial for
// each: a process is killed right before that effect. Afterwards each service runs once, as it was wished, and no line is lost.
func TestFailpoints(t *testing.T) {
	seed := *campaignSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano()) % 1_000_000
	}
	list := scenarios()
	var all []passed
	var missing []string
	complete := true
	for range 6 { // whether some are reached is a matter of time
		some, whole := watchAll(t, list, seed)
		all, complete = append(all, some...), complete && whole
		missing = slices.DeleteFunc(failpoints(t), func(name string) bool { return len(spotsOf(all, name)) > 0 || unreachable[name] != "" })
		if len(missing) == 0 || !complete || t.Failed() {
			break
		}
	}
	if len(missing) > 0 && complete {
		t.Errorf("no scenario comes to %s", strings.Join(missing, " "))
	} else if len(missing) > 0 {
		t.Logf("scenarios that this machine cannot run would come to %s", strings.Join(missing, " "))
	}
	var trials atomic.Int64
	t.Run("trial", func(t *testing.T) {
		for _, plan := range plans(t, all, failpoints(t), *failpointRounds, seed) {
			t.Run(plan.name(), func(t *testing.T) {
				t.Parallel()
				trials.Add(int64(plan.run(t)))
			})
		}
	})
	t.Logf("seed %d: %d failpoints, %d scenarios, %d trials", seed, len(failpoints(t)), len(list), trials.Load())
}

// unreachable are failpoints that no scenario comes to, and why.
var unreachable = map[string]string{
	"log.cut-again": "a truncation fails only where a disk is broken",
}

// onlyIn are passages that are hit in one scenario alone, and why.
var onlyIn = map[passage]string{
	{roleStage, "stage.exec"}: "a service that is to run for ever", // behind its report a stage counts as the service: Restart= brings it back
}

// watchAll runs each scenario without a kill. complete: the machine could run all.
func watchAll(t *testing.T, list []*scenario, seed uint64) (all []passed, complete bool) {
	var mu sync.Mutex
	t.Run("watch", func(t *testing.T) {
		for _, sc := range list {
			t.Run(sc.name, func(t *testing.T) {
				t.Parallel()
				for _, need := range sc.needs {
					if has, err := machineHas(need); err != nil || !has {
						skip(t, "this machine gives no "+need)
					}
				}
				r := newTrial(t, sc, seed)
				r.run(failOrder{"nobody", "nothing", 0, actWatch})
				mu.Lock()
				all = append(all, passed{sc, r.passages()})
				mu.Unlock()
			})
		}
	})
	slices.SortFunc(all, func(a, b passed) int { return cmp.Compare(a.scenario.name, b.scenario.name) })
	return all, len(all) == len(list)
}

// spot is a scenario in which a role comes to a failpoint so many times.
type spot struct {
	scenario *scenario
	role     string
	count    int
}

// spotsOf lists where a failpoint can be hit: first in the processes that outlive a command.
func spotsOf(all []passed, point string) (list []spot) {
	for _, p := range all {
		if only := p.scenario.only; only != nil && !slices.Contains(only, point) {
			continue
		}
		for _, at := range slices.SortedFunc(maps.Keys(p.count), func(a, b passage) int { return cmp.Compare(a.role, b.role) }) {
			if at.point == point {
				if only := onlyIn[at]; only == "" || only == p.scenario.name {
					list = append(list, spot{p.scenario, at.role, p.count[at]})
				}
			}
		}
	}
	slices.SortStableFunc(list, func(a, b spot) int {
		return cmp.Compare(slices.Index(rolesByWeight, a.role), slices.Index(rolesByWeight, b.role))
	})
	return list
}

var rolesByWeight = []string{roleShim, roleDaemon, roleStage, roleHelper, roleClient}

// plan is all that is to be done about one failpoint.
type plan struct {
	point  string
	spots  []spot
	rounds int
	seed   uint64
}

func (p plan) name() string { return p.point }

// partOf tells whether the i-th of a list belongs to part K/N.
func partOf(part string, i int) (bool, error) {
	var k, n int
	if got, err := fmt.Sscanf(part, "%d/%d", &k, &n); got != 2 || err != nil || k < 1 || k > n {
		return false, fmt.Errorf("%q is not K/N", part)
	}
	return i%n == k-1, nil
}

func plans(t *testing.T, all []passed, points []string, rounds int, seed uint64) (list []plan) {
	for i, point := range points {
		in, err := partOf(*failpointPart, i)
		if err != nil {
			t.Fatal(err)
		}
		if !in || *failpointOne != "" && *failpointOne != point {
			continue
		}
		if spots := spotsOf(all, point); len(spots) > 0 {
			list = append(list, plan{point, spots, rounds, seed})
		}
	}
	return list
}

// run does the trials of a failpoint and returns how many.
func (p plan) run(t *testing.T) int {
	if p.rounds == 0 {
		for n := range 4 { // whether some are reached is a matter of time
			if p.hit(t, p.spots[n%len(p.spots)], 1, actKill, p.seed+uint64(n)) || t.Failed() {
				return n + 1
			}
		}
		t.Errorf("it was reached when nobody had orders, and now it is not")
		return 0
	}
	h := uint64(0)
	for _, c := range p.point {
		h = 31*h + uint64(c)
	}
	chance := rand.New(rand.NewPCG(p.seed, h))
	done := 0
	for tries := 0; done < p.rounds && tries < 2*p.rounds+4 && !t.Failed(); tries++ {
		c := p.spots[chance.IntN(len(p.spots))]
		action := [...]string{actKill, actKill, actAll, actStop}[chance.IntN(4)]
		if p.hit(t, c, 1+chance.IntN(c.count), action, chance.Uint64N(1_000_000)) {
			done++
		}
	}
	if done < p.rounds && !t.Failed() {
		t.Errorf("%s was hit %d times, want %d", p.point, done, p.rounds)
	}
	return done
}

// hit runs one trial in a subtest of its own, so that its home goes with it.
func (p plan) hit(t *testing.T, c spot, nth int, action string, seed uint64) (fired bool) {
	o := failOrder{c.role, p.point, nth, action}
	t.Run(fmt.Sprintf("%s/%s.%d.%s", strings.ReplaceAll(c.scenario.name, " ", "_"), c.role, nth, action), func(t *testing.T) {
		fired = newTrial(t, c.scenario, seed).run(o)
	})
	return fired
}

// readyKind says READY=1 at once, and only once.
var readyKind = subjectKind{name: "ready", unit: `Type = "notify"
TimeoutStartSec = "infinity"
ExecStart = "$SVC -lock $FILE.lock -notify READY=1"`}

// TestReadyIsNotLost: a shim that is killed after it has read READY=1, before that is recorded, and before it is taken out of the socket.
func TestReadyIsNotLost(t *testing.T) {
	sc := &scenario{name: "a start", kinds: []subjectKind{readyKind}, do: (*trial).startAll}
	for point, times := range map[string]int{"state.write": 5, "notify.take": 1} {
		for nth := 1; nth <= times; nth++ {
			t.Run(fmt.Sprintf("%s.%d", point, nth), func(t *testing.T) {
				if !newTrial(t, sc, uint64(nth)).run(failOrder{roleShim, point, nth, actKill}) {
					t.Error("nobody came to it")
				}
			})
		}
	}
}

// ---- what scenarios do to files

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// foreground starts a daemon in the foreground, and again if it is killed meanwhile, until it serves.
func (r *trial) foreground() {
	r.t.Helper()
	var cmd *exec.Cmd
	ended := make(chan struct{})
	close(ended)
	r.until("a daemon in the foreground serves", func() bool {
		d, err := (home{r.home}).readDaemon()
		if err == nil && d.Mode == modeForeground && processAlive(d.Daemon) {
			return true
		}
		select {
		case <-ended:
			cmd, ended = r.program(daemonName), make(chan struct{})
			r.must(cmd.Start())
			go func() { cmd.Wait(); close(ended) }()
		default:
		}
		return r.fired(0) != 0 && d.Mode == modeForeground // it was killed right after
	})
	r.t.Cleanup(func() { cmd.Process.Kill(); <-ended })
}

// container runs the services below a first process, which has a daemon of its own, and ends it.
func (r *trial) container() {
	r.t.Helper()
	cmd := r.program(initName, "-s", "--start", "chatty,again")
	r.must(cmd.Start())
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	r.t.Cleanup(func() { cmd.Process.Kill(); <-ended })
	r.until("all are up", func() bool { return r.instances(r.subject("chatty")) != "" && r.instances(r.subject("again")) != "" })
	r.written("chatty", 20)
	r.signal(syscall.SIGKILL, "again")
	r.instanceChanges("again", nil)
	r.downAll()
	r.must(cmd.Process.Signal(syscall.SIGTERM))
	r.until("the first process ends", func() bool {
		select {
		case <-ended:
			return true
		default:
			return false
		}
	})
}
