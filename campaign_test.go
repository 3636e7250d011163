// Role: the kill campaign: random SIGKILL of daemon and shims under load, judged by what processes and logs show.
// Runs in: go test.
// Owns: its home, its services and what they write beside it.
// Uses: wire, state, sys, observe, script, scriptcmd, edge, failpoint, trial, report, history.

package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
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
	campaignKills    = flag.Int("kills", 40, "rounds of TestKillCampaign, each with at least one SIGKILL")
	campaignSeed     = flag.Uint64("seed", 0, "seed of TestKillCampaign; 0 = another one each time")
	campaignKept     = flag.Bool("kept", false, "TestKillCampaign below a first process (diakonos-init -s), which keeps the daemon")
	campaignServices = flag.Int("services", 0, "services of TestKillCampaign; 0 = 12, or 50 from 300 kills on")
)

const (
	campaignPatience = 30 * time.Second        // for what must come to pass in the end: a loaded machine is no failure
	killPatience     = 60 * time.Second        // for the last `kill`: less than TimeoutStopSec, which no service here needs
	commandPatience  = 15 * time.Second        // for a command; it is interrupted then
	healPatience     = 1500 * time.Millisecond // for shims to start a daemon, before a client does it
	journalTail      = 40                      // events shown with a fault
	faultsEnough     = 3
	campaignPart     = 500                    // rounds with the same services and the same seed
	orderPatience    = 300 * time.Millisecond // for a process to come to the failpoint that it has orders for
)

// subjectKind is one sort of service under test. $FILE in unit becomes the path of the service's own files.
type subjectKind struct {
	name  string
	short bool   // its main process ends by itself and is started again
	same  string // it prints this line again and again
	lines bool   // it prints counted lines
	unit  string
}

const (
	sameLine     = "the same line"
	fiveThousand = "-seq-every 10ms -seq-burst 50" // lines a second
)

var subjectKinds = [...]subjectKind{
	{name: "chatty", lines: true, unit: `LogMaxSize = "1M"
ExecReload = "$SVC -exit-after 1ms"
ExecStart = "$SVC -lock $FILE.lock -seq $FILE.seq ` + fiveThousand + ` -term-code 0 -ends $FILE.ends"`},
	{name: "rotating", lines: true, unit: `LogMaxSize = "64K"
ExecReload = "$SVC -exit-after 1ms"
ExecStart = "$SVC -lock $FILE.lock -seq $FILE.seq -seq-every 20ms -seq-burst 25 -term-code 0 -ends $FILE.ends"`},
	{name: "same", lines: true, same: sameLine, unit: `LogMaxSize = "64K"
ExecStart = [["$SVC", "-lock", "$FILE.lock", "-seq", "$FILE.seq", "-same", "` + sameLine + `", "-seq-every", "10ms", "-seq-burst", "5", "-term-code", "0", "-ends", "$FILE.ends"]]`},
	{name: "ending", lines: true, short: true, unit: `Restart = "always"
RestartSec = 0.05
RestartMaxDelaySec = 0.3
ExecStart = "$SVC -lock $FILE.lock -ready-after 300ms -seq $FILE.seq -seq-run 30 -term-code 0 -ends $FILE.ends"`},
	{name: "crashing", short: true, unit: `Restart = "always"
RestartSec = 0.05
RestartMaxDelaySec = 0.3
ExecStart = "$SVC -lock $FILE.lock -print up -exit-after 200ms -code 1"`},
	{name: "tree", unit: `ExecStart = "$SVC -lock $FILE.lock -spawn 2 -setsid -mark $FILE.mark"
TimeoutStopSec = 1`},
	{name: "forking", unit: `Type = "forking"
PIDFile = "$FILE.pid"
ExecStart = "$SVC -fork-away -lock $FILE.lock -pidfile $FILE.pid"`},
	{name: "notify", unit: `Type = "notify"
ExecReload = "$SVC -exit-after 1ms"
ExecStart = "$SVC -lock $FILE.lock -ready-after 5ms -notify READY=1"` + soonReady},
	{name: "simple", unit: `ExecReload = "$SVC -exit-after 1ms"
ExecStart = "$SVC -lock $FILE.lock"`},
}

// subject is one service under test, with what is known of it from outside.
type subject struct {
	kind     *subjectKind
	name     string
	file     string // begins the paths of its own files
	cookie   string // stands in the environment of each process of it; "" = it may leave some behind
	up       bool   // the last wish that was granted
	busy     bool   // a command for it is under way
	instance string // the last line of its lock file
	read     logReading
	judged   logJudge // of the lines that were read
	blind    []blindTime
}

// blindTime is a time in which daemon and shim of a service were dead. Its process was alive at the beginning (0 = it had none).
type blindTime struct {
	from, to boottime
	pid      int
}

// campaign is one run.
type campaign struct {
	*testHome
	seed     uint64
	chance   *rand.Rand
	subjects []*subject
	journal  []string
	began    time.Time
	faults   int
	hidden   []string      // faults that are expected: they fail no test
	expects  bool          // faults are expected
	patience time.Duration // for what must come to pass in the end; 0 = campaignPatience
	stranger *stranger
	watch    *failWatch       // nil = no failpoints
	known    map[passage]int  // how often the processes came to failpoints, while they had orders
	hit      map[passage]bool // at which one was killed or stopped
	truth    *truthWatch

	strikes                                         int // rounds with a kill
	daemons, shims, stages, helpers, fired, frozen  int // signals
	commands, reloads, again, heals, lines, excused int
	upgrades                                        int
	attachDaemon, attachShim                        []time.Duration
}

// TestKillCampaign goes on until it has killed often enough, in parts that say how to go on after each.
func TestKillCampaign(t *testing.T) {
	seed := *campaignSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano()) % 1_000_000
	}
	for done := 0; done < *campaignKills && !t.Failed(); seed++ {
		n := min(campaignPart, *campaignKills-done)
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) { campaignPartOf(t, seed, n) })
		done += n
		t.Logf("%d of %d rounds are done; -kills %d -seed %d goes on", done, *campaignKills, *campaignKills-done, seed+1)
	}
}

func campaignPartOf(t *testing.T, seed uint64, rounds int) {
	c := newCampaign(t, seed)
	t.Cleanup(c.keep) // before the home goes
	c.run("start", c.subjects...)
	c.truth = c.watchTruth()
	defer c.truth.end()
	for n, last := 1, 0; c.strikes < rounds && c.faults < faultsEnough; n++ {
		c.round()
		if n%15 == 0 {
			c.checkLogs()
		}
		if n%100 == 0 {
			t.Logf("%d rounds with a kill after %.0f s", c.strikes, time.Since(c.began).Seconds()) // for a run that is cut off
			if c.strikes == last {
				t.Fatal("100 rounds in a row have killed nothing")
			}
			last = c.strikes
		}
	}
	c.truth.end()
	c.finish()
	f := c.figures()
	t.Log(f.summary())
	if *campaignReport != "" {
		if err := f.report(*campaignReport); err != nil {
			t.Error(err)
		}
	}
}

func newCampaign(t *testing.T, seed uint64) *campaign {
	n := *campaignServices
	switch {
	case n == 0 && *campaignKills >= 300:
		n = 50
	case n == 0:
		n = 12
	}
	w := failpointBinaries(t) // removed after the home
	c := campaignOf(newTestHome(t), seed)
	c.watch, c.bin = w, w.beside
	for i := range n {
		k := &subjectKinds[i%len(subjectKinds)]
		c.add(k, fmt.Sprintf("%s%d", k.name, i))
	}
	if *campaignKept {
		c.contain()
	}
	return c
}

// contain starts a first process, which starts nothing but a unit of its own.
func (c *campaign) contain() {
	c.unit("first", "[service]\nType = \"oneshot\"\nRemainAfterExit = true\nExecStart = \"true\"\n")
	cmd := c.program(initName, "-s", "--start", "first")
	cmd.Env = append(cmd.Env, "DIAKONOS_SERVICE_DIR="+filepath.Join(c.dir, "services"))
	c.must(cmd.Start())
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	c.t.Cleanup(func() { cmd.Process.Kill(); <-ended })
	if !eventually(testPatience, func() bool {
		d, err := (home{c.home}).readDaemon()
		return err == nil && d.Mode == modeInit && !d.Boots
	}) {
		c.t.Fatal("the first process keeps no daemon")
	}
}

func campaignOf(h *testHome, seed uint64) *campaign {
	return &campaign{testHome: h, seed: seed, chance: rand.New(rand.NewPCG(seed, seed)), began: time.Now(), stranger: newStranger(h.t),
		known: map[passage]int{}, hit: map[passage]bool{}}
}

// add makes a service under test.
func (c *campaign) add(k *subjectKind, name string) {
	s := &subject{kind: k, name: name, file: filepath.Join(c.dir, name)}
	text := strings.ReplaceAll(k.unit, "$FILE", s.file)
	if !strings.Contains(text, "LogMaxFiles") {
		text = "LogMaxFiles = 100000\n" + text
	}
	if !strings.Contains(text, `KillMode = "process"`) {
		s.cookie = fmt.Sprintf("TREE_COOKIE=%016x", rand.Uint64())
		text = withEnvironment(text, s.cookie)
	}
	c.unit(name, "[service]\n"+text+"\n")
	c.subjects = append(c.subjects, s)
}

// withEnvironment gives a unit one variable more.
func withEnvironment(unit, variable string) string {
	if before, after, ok := strings.Cut(unit, "Environment = ["); ok {
		return fmt.Sprintf("%sEnvironment = [%q, %s", before, variable, after)
	}
	return fmt.Sprintf("Environment = [%q]\n%s", variable, unit)
}

// ---- journal and verdict

func (c *campaign) note(format string, args ...any) {
	c.journal = append(c.journal, fmt.Sprintf("%8.3f ", time.Since(c.began).Seconds())+fmt.Sprintf(format, args...))
}

func (c *campaign) fault(format string, args ...any) {
	c.t.Helper()
	c.faults++
	c.note("FAULT: "+format, args...)
	if c.expects {
		c.hidden = append(c.hidden, fmt.Sprintf(format, args...))
		return
	}
	c.t.Errorf("seed %d, after %d kills: %s", c.seed, c.strikes, fmt.Sprintf(format, args...))
}

// keep saves what tells of a fault.
func (c *campaign) keep() {
	if !c.t.Failed() {
		return
	}
	dir, err := os.MkdirTemp("", fmt.Sprintf("diakonos-campaign-%d-", c.seed))
	if err != nil {
		c.t.Error(err)
		return
	}
	os.WriteFile(filepath.Join(dir, "journal"), []byte(strings.Join(c.journal, "\n")+"\n"), 0o644)
	run, _ := filepath.EvalSymlinks(filepath.Join(c.home, "run"))
	for from, to := range map[string]string{c.dir: dir, run: filepath.Join(dir, "run")} {
		if err := keepFiles(from, to); err != nil {
			c.t.Error(err)
		}
	}
	log, _ := os.ReadFile(filepath.Join(c.home, "daemon.log"))
	c.t.Logf("seed %d; kept in %s\n%s\ndaemon.log:\n%s", c.seed, dir,
		strings.Join(c.journal[max(0, len(c.journal)-journalTail):], "\n"), tail(log, 3000))
}

// keepFiles copies regular files; what cannot be read is not kept.
func keepFiles(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		text, _ := os.ReadFile(path)
		rel, _ := filepath.Rel(from, path)
		os.MkdirAll(filepath.Dir(filepath.Join(to, rel)), 0o755)
		return os.WriteFile(filepath.Join(to, rel), text, 0o644)
	})
}

// ---- one round

// round gives commands, kills in the midst of them, and waits until everything stands again.
func (c *campaign) round() {
	k := new(struck)
	from := bootNow()
	if c.chance.IntN(5) == 0 {
		c.armStrike(k)
	}
	asked := c.commandSome()
	upgrade := c.upgradeSometimes()
	c.pause(60)
	if !k.ordered {
		from = bootNow()
	}
	alive := c.mainPIDs()
	killed := c.killed()
	c.strike(k)
	after := bootNow()
	c.awaitDaemon(k)
	if k.ordered { // all may die even now, when nobody is left to start a daemon
		c.disarmStrike(k)
		c.awaitDaemon(k)
	}
	c.awaitShims(k)
	if k.ordered {
		c.note("all stands again")
	} else if began := c.daemonBegan(); began >= from-boottime(time.Second/clockTicks) {
		c.attachDaemon = append(c.attachDaemon, time.Duration(bootNow()-max(after, began)))
	} else {
		c.attachShim = append(c.attachShim, time.Duration(bootNow()-after))
	}
	for _, a := range asked {
		c.granted(a)
	}
	c.upgraded(upgrade)
	c.awaitShims(k)
	c.truth.frozen.Store(false)
	if k.daemon {
		for _, s := range k.subjects {
			s.blind = append(s.blind, blindTime{from, bootNow(), alive[s.name]})
		}
	}
	if c.killed() > killed {
		c.strikes++
	}
	c.check()
}

// killed counts SIGKILLs.
func (c *campaign) killed() int { return c.daemons + c.shims + c.stages + c.helpers + c.fired }

// daemonBegan is when the present daemon was started, to 10 ms.
func (c *campaign) daemonBegan() boottime {
	p, _ := find(c.home, "@daemon")
	ticks, _ := strconv.ParseInt(p.start, 10, 64)
	return boottime(ticks * (int64(time.Second) / clockTicks))
}

// pause makes the moment of a kill random: 0 to most milliseconds.
func (c *campaign) pause(most int) {
	time.Sleep(time.Duration(c.chance.IntN(most*1000)) * time.Microsecond)
}

// asked is a command under way.
type asked struct {
	s      *subject
	verb   string
	result chan asked // with the fields below
	tries  []string   // what failed attempts said
	hangs  bool       // the last attempt did not end by itself
	err    error
}

// ask runs a client until it succeeds: kills may break a command, but not for ever.
func (c *campaign) ask(s *subject, verb string) asked {
	a := asked{s: s, verb: verb, result: make(chan asked, 1)}
	s.busy = true
	c.commands++
	if verb == "reload" {
		c.reloads++
	}
	c.note("command: %s %s", verb, s.name)
	given := a
	go func() { // it has its own copy
		a := given
		for range 5 { // a round may kill more than one daemon under it
			cmd, out := c.command(verb, s.name), new(bytes.Buffer)
			cmd.Stdout, cmd.Stderr = out, out
			if a.err = cmd.Start(); a.err != nil {
				break
			}
			stuck := time.AfterFunc(commandPatience, func() { cmd.Process.Signal(syscall.SIGINT) })
			a.err = cmd.Wait()
			a.hangs = !stuck.Stop()
			if a.err == nil {
				break
			}
			a.tries = append(a.tries, fmt.Sprintf("%v: %s", a.err, bytes.TrimSpace(out.Bytes())))
			if a.hangs {
				break
			}
		}
		a.result <- a
	}()
	return a
}

// commandSome lets clients start, stop, restart and reload up to two services.
func (c *campaign) commandSome() (list []asked) {
	for range c.chance.IntN(3) {
		up := c.chance.IntN(2) == 0 // half of the commands are starts
		s := c.pick(func(s *subject) bool { return s.up == up && !s.busy })
		if s.busy {
			continue
		}
		verb := "start"
		if s.up {
			verb = [...]string{"stop", "restart"}[c.chance.IntN(2)]
			if strings.Contains(s.kind.unit, "ExecReload") && c.chance.IntN(2) == 0 {
				verb = "reload"
			}
		}
		list = append(list, c.ask(s, verb))
	}
	return list
}

// upgradeSometimes puts another file in the place of the program in one round of eight, and has daemon and shims become it while they are
// killed. nil = not in this round.
func (c *campaign) upgradeSometimes() <-chan string {
	if c.chance.IntN(8) != 0 {
		return nil
	}
	c.replaceProgram()
	c.upgrades++
	c.note("command: daemon-upgrade")
	return c.background("daemon-upgrade")
}

// upgraded waits for the end of an upgrade. Kills may break it, and a shim that is stopped does not follow in time.
func (c *campaign) upgraded(upgrade <-chan string) {
	if upgrade == nil {
		return
	}
	select {
	case out := <-upgrade:
		c.note("done: daemon-upgrade: %s", lastLine(out))
	case <-time.After(campaignPatience):
		c.fault("daemon-upgrade hangs")
	}
}

// granted waits for the end of a command and notes what the service is to be from now on.
func (c *campaign) granted(a asked) {
	r := <-a.result
	c.again += len(r.tries)
	for _, text := range r.tries {
		c.note("%s %s failed: %s", a.verb, a.s.name, text)
		first, _, _ := strings.Cut(text, "\n")
		c.t.Logf("after %d kills: %s %s has to be given again: %s", c.strikes, a.verb, a.s.name, first)
	}
	if r.err != nil || r.hangs {
		c.fault("%s %s fails or hangs: %s\n%s", a.verb, a.s.name, strings.Join(r.tries, "\n"), c.facts(a.s))
	}
	a.s.busy, a.s.up = false, a.verb != "stop"
	if a.verb != "reload" { // that must not change it
		a.s.instance = ""
	}
	c.note("done: %s %s", a.verb, a.s.name)
	if !a.s.up {
		c.checkEmpty(a.s)
	}
}

// facts are the records of a service, for a report.
func (c *campaign) facts(s *subject) string {
	var want wantRecord
	var state runRecord
	for file, to := range map[string]record{"want": &want, "state": &state} {
		b, _ := os.ReadFile(filepath.Join(c.home, "run", s.name, file))
		decodeSlots(b, to) // what cannot be read shows as empty
	}
	list, err := c.list()
	return fmt.Sprintf("want %+v\nstate %+v\nstatus %+v %v\nshims %v", want, state, list[s.name], err, shimsOf(readProcesses(), c.home, s.name))
}

// run gives one command to services, a few at a time, without kills.
func (c *campaign) run(verb string, list ...*subject) {
	for some := range slices.Chunk(list, 4) {
		var asked []asked
		for _, s := range some {
			asked = append(asked, c.ask(s, verb))
		}
		for _, a := range asked {
			c.granted(a)
		}
	}
	c.awaitShims(&struck{})
	c.check()
}

// ---- kills

// struck is what a round killed.
type struck struct {
	daemon   bool
	subjects []*subject    // whose shims died
	dead     []seenProcess // none of these may be taken for its successor
	heal     bool          // no client starts the daemon until the shims had time to
	ordered  bool          // a process has orders
	order    failOrder
	stood    bool          // who was ordered to stop did, or is gone
	over     chan struct{} // closed = orders are withdrawn
	helped   sync.WaitGroup
}

// strike kills daemon, shims, or both, at once or one right after the other; stops them for a while; or kills what lives for moments
// only. Where a process has orders it may also leave the killing to that.
func (c *campaign) strike(k *struck) {
	if k.ordered && c.chance.IntN(3) == 0 {
		return
	}
	one := c.pick(func(s *subject) bool { return s.up || s.busy })
	switch n := c.chance.IntN(130); {
	case n < 25:
		k.heal = c.chance.IntN(3) == 0 && !slices.ContainsFunc(c.subjects, func(s *subject) bool { return s.busy })
		c.kill(k, nil)
	case n < 45:
		c.kill(k, one)
	case n < 55: // and its successor, as soon as it comes
		c.kill(k, one)
		c.pause(30)
		c.kill(k, one)
	case n < 75:
		c.kill(k, nil, one)
	case n < 85:
		c.kill(k, nil)
		c.pause(40)
		c.kill(k, one)
	case n < 90:
		c.kill(k, one)
		c.pause(20)
		c.kill(k, nil)
	case n < 95:
		c.kill(k, c.some(3)...)
	case n < 100:
		c.kill(k, append(c.some(len(c.subjects)), nil)...)
	case n < 106: // a shim dies, and who replaces it stands still
		thaw := c.freeze(nil)
		c.pause(200)
		c.kill(k, one)
		c.pause(300)
		thaw()
	case n < 112: // the daemon dies, and the next one meets a shim that stands still
		thaw := c.freeze(one)
		c.pause(200)
		c.kill(k, nil)
		c.pause(400)
		thaw()
	case n < 116: // SIGKILL reaches what stands still, too
		thaw := c.freeze(one)
		c.pause(100)
		c.kill(k, one)
		thaw()
	case n < 123:
		c.killStage(k, c.pick(func(s *subject) bool { return s.up && s.kind.short }))
	default: // the daemon replaces several shims by one helper
		c.kill(k, c.some(5)...)
		c.killHelper(k)
	}
}

// pick returns any of those services that are so, or any at all.
func (c *campaign) pick(so func(*subject) bool) *subject {
	list := c.some(len(c.subjects))
	return list[max(0, slices.IndexFunc(list, so))]
}

// some returns up to n services.
func (c *campaign) some(n int) (list []*subject) {
	for _, i := range c.chance.Perm(len(c.subjects))[:min(n, len(c.subjects))] {
		list = append(list, c.subjects[i])
	}
	return list
}

// victims finds the shims of the services, nil = the daemon.
func (c *campaign) victims(list []*subject) (found []seenProcess) {
	for _, s := range list {
		who, command := "@daemon", daemonName
		if s != nil {
			who, command = "shim:"+s.name, shimName
		}
		if p, err := find(c.home, who); err == nil && isNamed(p, command) {
			found = append(found, p)
		}
	}
	return found
}

// kill sends SIGKILL to the shims of the services, nil = to the daemon, all in the same moment.
func (c *campaign) kill(k *struck, list ...*subject) {
	victims := c.victims(list)
	for _, s := range list {
		if s == nil {
			k.daemon = true
		} else {
			k.subjects = append(k.subjects, s)
		}
	}
	for _, p := range victims {
		syscall.Kill(p.pid, syscall.SIGKILL)
		if isNamed(p, daemonName) {
			c.daemons++
		} else {
			c.shims++
		}
	}
	k.dead = append(k.dead, victims...)
	c.note("kill: %v", victims)
}

// freeze stops the shims of the services, nil = the daemon, until thaw.
func (c *campaign) freeze(list ...*subject) (thaw func()) {
	victims := c.victims(list)
	for _, p := range victims {
		syscall.Kill(p.pid, syscall.SIGSTOP)
		c.frozen++
	}
	if c.truth != nil {
		c.truth.frozen.Store(true) // until the end of the round
	}
	c.note("stop: %v", victims)
	return func() {
		for _, p := range victims {
			if !isGone(p) {
				syscall.Kill(p.pid, syscall.SIGCONT)
			}
		}
		c.note("continue: %v", victims)
	}
}

// killStage waits until the shim of a service that is started again and again has a stage, and kills that.
func (c *campaign) killStage(k *struck, s *subject) {
	c.killChild(k, "shim:"+s.name, shimName+" -exec", 500*time.Millisecond, &c.stages)
}

// killHelper kills the process that detaches several shims at once, if the daemon makes one now.
func (c *campaign) killHelper(k *struck) {
	c.killChild(k, "@daemon", shimName+" -detach", 50*time.Millisecond, &c.helpers)
}

// killChild kills a child of ours that lives for a few milliseconds. It looks for one without a pause, for it would miss it otherwise.
func (c *campaign) killChild(k *struck, parent, command string, limit time.Duration, count *int) {
	p, err := find(c.home, parent)
	if err != nil {
		return
	}
	for end := time.Now().Add(limit); time.Now().Before(end) && !isGone(p); {
		for _, child := range childrenOf(p.pid) {
			first, rest, _ := strings.Cut(child.command, " ")
			if !strings.HasPrefix(filepath.Base(first)+" "+rest, command) {
				continue
			}
			c.pause(2)
			if now, live := readProcess(child.pid); live && now == child { // else it has become the service
				syscall.Kill(child.pid, syscall.SIGKILL)
				*count++
				k.dead = append(k.dead, child)
				c.note("kill: %v", child)
			}
			return
		}
	}
}

// armStrike lets a process of ours be killed, or stopped while those it works with die, right before some effect that processes were seen
// to come to. The first round only looks on.
func (c *campaign) armStrike(k *struck) {
	k.ordered, k.over = true, make(chan struct{})
	k.order = failOrder{"nobody", "nothing", 0, actWatch}
	if len(c.known) > 0 {
		list := slices.SortedFunc(maps.Keys(c.known), func(a, b passage) int {
			return cmp.Or(cmp.Compare(a.role, b.role), cmp.Compare(a.point, b.point))
		})
		at := list[c.chance.IntN(len(list))]
		nth := 1 + c.chance.IntN(min(c.known[at], 20))
		k.order = failOrder{at.role, at.point, nth, [...]string{actKill, actKill, actKill, actAll, actStop}[c.chance.IntN(5)]}
	}
	c.note("orders: %s", k.order)
	c.watch.word(traceAt).Store(0)
	c.watch.give(k.order)
	if k.order.action == actStop {
		if c.truth != nil {
			c.truth.frozen.Store(true)
		}
		k.helped.Go(func() { c.helpStopped(k) })
	}
}

// helpStopped kills those whom a process works with that stands still at a failpoint, and lets it go on when they are replaced, or
// when there was time for that.
func (c *campaign) helpStopped(k *struck) {
	pid, over := 0, false
	until := func(limit time.Duration, ok func() bool) {
		eventually(limit, func() bool {
			select {
			case <-k.over:
				over = true
			default:
			}
			return over || ok()
		})
	}
	until(campaignPatience, func() bool { pid = int(c.watch.pid(0).Load()); return pid != 0 })
	if pid == 0 {
		return
	}
	until(testPatience, func() bool { k.stood = standsOrGone(pid); return k.stood })
	who := "@daemon"
	if k.order.role == roleDaemon {
		who = "shim:" + c.subjects[int(k.order.nth)%len(c.subjects)].name
	}
	if p, err := find(c.home, who); err == nil && p.pid != pid {
		syscall.Kill(p.pid, syscall.SIGKILL)
		until(time.Second, func() bool { q, err := find(c.home, who); return err == nil && q.pid != p.pid })
	}
	syscall.Kill(pid, syscall.SIGCONT)
}

func standsOrGone(pid int) bool {
	st, err := readStat(pid)
	return err != nil || st.ended() || st.state == 'T'
}

// disarmStrike withdraws the orders and notes what came of them.
func (c *campaign) disarmStrike(k *struck) {
	eventually(orderPatience, func() bool { return c.watch.pid(0).Load() != 0 })
	c.watch.give()
	close(k.over)
	k.helped.Wait()
	for at, n := range c.watch.passages() {
		// Behind its report a stage counts as the service: services here are not started again.
		if at != (passage{roleStage, "stage.exec"}) {
			c.known[at] = max(c.known[at], n)
		}
	}
	pid := int(c.watch.pid(0).Load())
	if pid == 0 {
		return
	}
	if k.order.action == actStop {
		if !k.stood { // it says that it will stop before it does
			eventually(testPatience, func() bool { return standsOrGone(pid) })
		}
		syscall.Kill(pid, syscall.SIGCONT)
	} else if !eventually(testPatience, func() bool { _, alive := readProcess(pid); return !alive }) {
		c.fault("process %d lives on after %s", pid, k.order)
	}
	c.fired++
	c.hit[passage{k.order.role, k.order.point}] = true
	c.note("it was process %d", pid)
	if k.order.role == roleDaemon || k.order.action != actKill || k.daemon {
		k.daemon, k.subjects = true, c.subjects // of some, daemon and shim may have been dead at the same time
	}
}

// childrenOf reads what the kernel lists (CONFIG_PROC_CHILDREN).
func childrenOf(pid int) (list []seenProcess) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, file := range files {
		text, _ := os.ReadFile(file)
		for _, field := range strings.Fields(string(text)) {
			n, _ := strconv.Atoi(field)
			if p, live := readProcess(n); live {
				list = append(list, p)
			}
		}
	}
	return list
}

// isNamed: the base of argv[0].
func isNamed(p seenProcess, name string) bool {
	first, _, _ := strings.Cut(p.command, " ")
	return filepath.Base(first) == name
}

// ---- until all stands again

// await polls for what must come to pass.
func (c *campaign) await(what string, ok func() string) {
	c.t.Helper()
	var missing string
	if !eventually(cmp.Or(c.patience, campaignPatience), func() bool { missing = ok(); return missing == "" }) {
		c.fault("%s: %s", what, missing)
	}
}

// awaitDaemon waits until a daemon answers. Where no shim is left to start one, and mostly otherwise too, a command starts it.
func (c *campaign) awaitDaemon(k *struck) {
	for _, p := range k.dead {
		c.await("SIGKILL", func() string {
			if !isGone(p) {
				return p.String() + " lives on"
			}
			return ""
		})
	}
	if k.heal && eventually(healPatience, c.answers) {
		c.heals++
		return
	}
	c.await("a daemon answers", func() string {
		if out, err := c.command("list").CombinedOutput(); err != nil {
			return string(out)
		}
		return ""
	})
}

func (c *campaign) answers() bool { return c.command("daemon-status").Run() == nil }

// awaitShims waits until each service that shall run is supervised by a live shim, and no other is.
func (c *campaign) awaitShims(k *struck) {
	c.t.Helper()
	c.await("supervision", func() string {
		list, err := c.list()
		if err != nil {
			return err.Error()
		}
		all := readProcesses()
		for _, s := range c.subjects {
			if s.busy {
				continue
			}
			if text := c.unsupervised(s, list[s.name], shimsOf(all, c.home, s.name)); text != "" {
				return s.name + " " + text + "\n" + c.facts(s)
			}
		}
		return ""
	})
}

// unsupervised says what is wrong with the supervision of a service, "" = nothing.
func (c *campaign) unsupervised(s *subject, st unitStatus, shims []seenProcess) string {
	switch {
	case !s.up && len(shims) > 0:
		return fmt.Sprintf("is stopped and has shims: %v", shims)
	case !s.up && st.ActiveState != "inactive" && st.ActiveState != "failed":
		return "is stopped, and its state is " + st.ActiveState
	case !s.up:
		return ""
	case len(shims) != 1:
		return fmt.Sprintf("has shims %v, not one", shims)
	case !st.Supervised || st.ShimPID != shims[0].pid:
		return fmt.Sprintf("has shim %d, its status says %d, supervised %t", shims[0].pid, st.ShimPID, st.Supervised)
	case !s.kind.short && st.ActiveState != "active":
		return fmt.Sprintf("is %s (%s)", st.ActiveState, st.SubState)
	case !s.kind.short && lastPID(c.instances(s)) != st.MainPID:
		return fmt.Sprintf("has main process %d in its status, and wrote %q", st.MainPID, lastLine(c.instances(s)))
	}
	return ""
}

// list is `diakonos list` by name; it starts no daemon.
func (c *campaign) list() (map[string]unitStatus, error) {
	cmd := c.command("--json", "list")
	cmd.Env = append(cmd.Env, noStartVariable+"=1")
	out, err := cmd.Output()
	var units []unitStatus
	if err == nil {
		err = json.Unmarshal(out, &units)
	}
	byName := map[string]unitStatus{}
	for _, u := range units {
		byName[u.Name] = u
	}
	return byName, err
}

// ---- observers

// instances reads the lock file of a service: one line for each start.
func (c *campaign) instances(s *subject) string {
	text, err := os.ReadFile(s.file + ".lock")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.fault("%v", err)
	}
	return string(text)
}

func lastLine(text string) string {
	text = strings.TrimSuffix(text, "\n")
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// lastPID is the process that started last, 0 = none.
func lastPID(instances string) int {
	first, _, _ := strings.Cut(lastLine(instances), " ")
	pid, _ := strconv.Atoi(first)
	return pid
}

// instanceFault looks for a second instance, which found the lock taken.
func instanceFault(instances string) string {
	if n := strings.Count(instances, "DUP"); n > 0 {
		return fmt.Sprintf("ran twice at once, %d times", n)
	}
	return ""
}

// lives: the process of the last line lives. Its start time must be the one that it wrote.
func lives(instances string) bool {
	f := strings.Fields(lastLine(instances))
	if len(f) != 3 {
		return false
	}
	p, ok := readProcess(lastPID(instances))
	return ok && p.start == f[1]
}

// mainPIDs are the live processes of all services by their own word.
func (c *campaign) mainPIDs() map[string]int {
	pids := map[string]int{}
	for _, s := range c.subjects {
		if text := c.instances(s); lives(text) {
			pids[s.name] = lastPID(text)
		}
	}
	return pids
}

// shimsOf finds the live shims of a service of this home: by command line and working directory.
func shimsOf(all map[int]seenProcess, home, name string) (list []seenProcess) {
	run, _ := filepath.EvalSymlinks(filepath.Join(home, "run", name))
	for _, p := range all {
		if !isNamed(p, shimName) || !strings.HasSuffix(p.command, " "+name) {
			continue
		}
		if cwd, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", p.pid)); cwd == run {
			list = append(list, p)
		}
	}
	return list
}

// checkEmpty: after a stop no process of a service is left.
func (c *campaign) checkEmpty(s *subject) {
	for _, p := range readProcesses() {
		if isNamed(p, filepath.Base(c.svc)) && strings.Contains(p.command, s.file+".") || carries(p.pid, s.cookie) {
			c.fault("%s is stopped, and %s lives", s.name, p)
		}
	}
}

// carries tells whether a process has the cookie of a service in its environment, "" = nobody has.
func carries(pid int, cookie string) bool {
	if cookie == "" {
		return false
	}
	environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	return slices.Contains(strings.Split(string(environ), "\x00"), cookie)
}

// check looks at all services between two rounds: each runs once, as the very process that ran before unless a command was given.
func (c *campaign) check() {
	for _, s := range c.subjects {
		text := c.instances(s)
		if fault := instanceFault(text); fault != "" {
			c.fault("%s %s", s.name, fault)
		}
		if !s.up || s.kind.short {
			continue
		}
		if s.instance != "" && lastLine(text) != s.instance {
			c.fault("%s was %q and is %q, and no command asked for that", s.name, s.instance, lastLine(text))
		}
		if !lives(text) {
			c.fault("%s shall run, and its last process %q is gone", s.name, lastLine(text))
		}
		s.instance = lastLine(text)
	}
	c.checkHistories()
	if found := daemonsOf(c.dir); len(found) != 1 {
		c.fault("got daemons %v, want one", found)
	}
	if fault := c.stranger.fault(); fault != "" {
		c.fault("a stranger %s", fault)
	}
}

// stranger is a process that is nobody's service, or several: it must get no signal from us. Who watches it writes down each with its sender.
type stranger struct {
	pid  int // of the last one
	all  []int
	file string // a line for each signal that it got
}

func newStranger(t *testing.T) *stranger { return newStrangers(t, 0) }

// newStrangers starts one for each of these PIDs, 0 = any.
func newStrangers(t *testing.T, pids ...int) *stranger {
	t.Helper()
	svc, err := exec.LookPath("svc")
	if err != nil {
		t.Fatal(err)
	}
	s := &stranger{file: filepath.Join(t.TempDir(), "signals")}
	cmd := exec.Command(svc, "-record", s.file, "-pids", strings.Trim(strings.ReplaceAll(fmt.Sprint(pids), " ", ","), "[]"))
	cmd.Dir, cmd.Stderr = "/", os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		for _, pid := range s.all { // they die of its death, a moment later
			eventually(testPatience, func() bool { p, lives := readProcess(pid); return !lives || !isNamed(p, "sleep") })
		}
	})
	for range pids {
		if _, err := fmt.Fscanln(out, &s.pid); err != nil {
			t.Fatal(err)
		}
		s.all = append(s.all, s.pid)
	}
	return s
}

func (s *stranger) fault() string {
	if text, _ := os.ReadFile(s.file); len(text) > 0 {
		return "got " + strings.Join(strings.Split(strings.TrimSpace(string(text)), "\n"), ", ")
	}
	for _, pid := range s.all {
		p, alive := readProcess(pid)
		switch {
		case !alive:
			return fmt.Sprintf("(process %d) is dead", pid)
		case !isNamed(p, "sleep"):
			return "is another process: " + p.String()
		}
	}
	return ""
}

// ---- logs

// ending is what a service wrote right before its end.
type ending struct {
	pid int
	n   uint64 // lines written until then
	at  boottime
}

func (s *subject) endings() (list []ending) {
	text, _ := os.ReadFile(s.file + ".ends")
	for line := range strings.Lines(string(text)) {
		var e ending
		if n, _ := fmt.Sscan(line, &e.pid, &e.n, &e.at); n == 3 {
			list = append(list, e)
		}
	}
	return list
}

// unseen are the line numbers at which the service ended while neither daemon nor shim was there: what was unread then is lost, as promised.
func (s *subject) unseen() map[uint64]bool {
	found := map[uint64]bool{}
	for _, e := range s.endings() {
		for _, b := range s.blind {
			if e.at >= b.from && e.at <= b.to || e.pid == b.pid && e.at <= b.to {
				found[e.n] = true
			}
		}
	}
	return found
}

// logFault checks lines against the number of those written. excused are the numbers up to which lines may be missing.
func logFault(lines []string, same string, written uint64, excused map[uint64]bool) string {
	j := logJudge{same: same}
	if fault := j.take(lines, excused); fault != "" {
		return fault
	}
	return j.end(written, excused)
}

// logJudge has seen the lines of a log up to last. same: they are all equal, so last is their count.
type logJudge struct {
	same string
	last uint64
	lost uint64 // lines that are missing, and excused
}

func (j *logJudge) take(lines []string, excused map[uint64]bool) string {
	for _, l := range lines {
		n := j.last + 1
		if j.same == "" {
			text, ok := strings.CutPrefix(l, "seq ")
			var err error
			if n, err = strconv.ParseUint(text, 10, 64); !ok || err != nil {
				return fmt.Sprintf("%q follows line %d", l, j.last)
			}
		} else if l != j.same {
			return fmt.Sprintf("%q is line %d", l, n)
		}
		if n != j.last+1 && (n <= j.last || !excused[n-1]) {
			return fmt.Sprintf("line %d follows line %d", n, j.last)
		}
		j.lost += n - j.last - 1
		j.last = n
	}
	return ""
}

// end judges that there are no more lines.
func (j *logJudge) end(written uint64, excused map[uint64]bool) string {
	switch {
	case j.same != "" && (j.last > written || j.last < written && len(excused) == 0):
		return fmt.Sprintf("got %d equal lines, %d were written", j.last, written)
	case j.same == "" && j.last < written && !excused[written]:
		return fmt.Sprintf("the log ends at line %d, %d were written", j.last, written)
	}
	return ""
}

// checkLogs compares logs and counters while services run: a log may be ahead by what was written since the counter was read, so only
// what stays wrong is a fault.
func (c *campaign) checkLogs() {
	c.t.Helper()
	for _, s := range c.subjects {
		if !s.kind.lines {
			continue
		}
		var fault string
		if !eventually(testPatience, func() bool { fault = c.logFault(s, true); return fault == "" }) {
			c.fault("log of %s: %s", s.name, fault)
		}
	}
}

// logFault checks the log of one service; open: it goes on writing.
// logFault judges what was written to the log since it was judged last.
func (c *campaign) logFault(s *subject, open bool) string {
	written, err := readCounter(s.file + ".seq")
	if err != nil {
		return err.Error()
	}
	excused := s.unseen()
	read, judged := s.read, s.judged
	judged.same, read.partial = s.kind.same, maps.Clone(read.partial)
	rotated, err := read.readRotated(c.home, s.name)
	if errors.Is(err, fs.ErrNotExist) && written == 0 { // it was stopped before its first line, which makes the log
		return ""
	}
	if err != nil {
		return err.Error()
	}
	fault := judged.take(rotated, excused)
	if fault == "" {
		s.read, s.judged = read, judged
		s.read.partial = maps.Clone(read.partial)
		c.dropRead(s)
	}
	current, err := read.readCurrent()
	if err != nil {
		return err.Error()
	}
	if fault == "" {
		fault = judged.take(current, excused)
	}
	if fault != "" {
		return fault
	}
	if s.kind.same != "" && open {
		later, _ := readCounter(s.file + ".seq")
		written = min(max(written, judged.last), later+1) // one line may be out before it is counted
	}
	if !open {
		c.lines += int(judged.last - judged.lost)
		c.excused += int(judged.lost + written - min(written, judged.last))
	}
	return judged.end(written, excused)
}

// dropRead removes rotated files that were judged, for they grow by gigabytes; the newest one stays, as does what fails the judge.
func (c *campaign) dropRead(s *subject) {
	dir := filepath.Join(c.home, "log", s.name)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.Name() < s.read.newest {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

func (c *campaign) finish() {
	for _, s := range c.subjects {
		if !s.up || !s.kind.short {
			continue
		}
		starts := strings.Count(c.instances(s), "\n")
		c.await(s.name, func() string {
			if strings.Count(c.instances(s), "\n") == starts {
				return "shall run, and is not started again\n" + c.facts(s)
			}
			return ""
		})
	}
	c.checkLogs()
	c.checkHistories()
	kill := c.command("kill")
	stuck := time.AfterFunc(killPatience, func() { kill.Process.Kill() })
	if out, err := kill.CombinedOutput(); err != nil {
		c.fault("kill: %v\n%s", err, out)
	}
	stuck.Stop()
	rest := &scriptState{work: c.dir, home: c.home}
	if *campaignKept { // the first process lets the console come to its end
		eventually(testPatience, func() bool { return len(rest.leftovers()) == 0 })
	}
	for _, p := range rest.leftovers() {
		c.fault("after kill there is %s", p)
	}
	if fault := c.stranger.fault(); fault != "" {
		c.fault("a stranger %s", fault)
	}
	for _, s := range c.subjects {
		if fault := instanceFault(c.instances(s)); fault != "" {
			c.fault("%s %s", s.name, fault)
		}
		if !s.kind.lines {
			continue
		}
		if fault := c.logFault(s, false); fault != "" {
			c.fault("log of %s after kill: %s", s.name, fault)
		}
	}
}

// ---- the observers see faults

// TestStrangerObserver: each signal is seen, and who sent it; of SIGKILL that it came.
func TestStrangerObserver(t *testing.T) {
	for sig, want := range map[syscall.Signal]string{
		0: "", syscall.SIGTERM: "got SIGTERM from SELF", syscall.SIGUSR1: "got SIGUSR1 from SELF", syscall.SIGCONT: "got SIGCONT from SELF",
		syscall.SIGTSTP: "got SIGTSTP from SELF", 40: "got signal 40 from SELF", syscall.SIGSTOP: "got SIGSTOP from SELF",
		syscall.SIGCHLD: "got SIGCHLD from SELF", syscall.SIGKILL: "got SIGKILL, and is dead",
	} {
		s := newStranger(t)
		if fault := s.fault(); fault != "" {
			t.Errorf("before any signal: got %q", fault)
		}
		if sig == 0 {
			continue
		}
		syscall.Kill(s.pid, sig)
		want = strings.Replace(want, "SELF", strconv.Itoa(os.Getpid())+" ", 1)
		if !eventually(testPatience, func() bool { return strings.Contains(s.fault(), want) }) {
			t.Errorf("%v is not seen: got %q, want %q", sig, s.fault(), want)
		}
	}
}

func TestCampaignLogObserver(t *testing.T) {
	for _, c := range []struct {
		why     string
		lines   string
		same    string
		written uint64
		excused map[uint64]bool
		fault   bool
	}{
		{"whole", "seq 1,seq 2,seq 3", "", 3, nil, false},
		{"ahead of the counter", "seq 1,seq 2", "", 1, nil, false},
		{"doubled", "seq 1,seq 2,seq 2,seq 3", "", 3, nil, true},
		{"lost in the middle", "seq 1,seq 3", "", 3, nil, true},
		{"lost at the end", "seq 1,seq 2", "", 3, nil, true},
		{"lost at the beginning", "seq 2", "", 2, nil, true},
		{"swapped", "seq 1,seq 3,seq 2", "", 3, nil, true},
		{"torn", "seq 1,seq 2seq 3", "", 3, nil, true},
		{"not a line of the service", "seq 1,sq 2", "", 2, nil, true},
		{"lost up to an end that nobody saw", "seq 1,seq 5", "", 5, map[uint64]bool{4: true}, false},
		{"lost beyond an end that nobody saw", "seq 1,seq 6", "", 6, map[uint64]bool{4: true}, true},
		{"doubled after an end that nobody saw", "seq 5,seq 5", "", 5, map[uint64]bool{4: true}, true},
		{"its last lines lost with an end that nobody saw", "seq 1", "", 4, map[uint64]bool{4: true}, false},
		{"equal lines", "x,x,x", "x", 3, nil, false},
		{"equal lines, one doubled", "x,x,x,x", "x", 3, nil, true},
		{"equal lines, one lost", "x,x", "x", 3, nil, true},
		{"equal lines, one torn", "x,xx", "x", 3, nil, true},
		{"equal lines, some lost with an end that nobody saw", "x,x", "x", 3, map[uint64]bool{2: true}, false},
		{"equal lines, doubled after an end that nobody saw", "x,x,x,x", "x", 3, map[uint64]bool{3: true}, true},
	} {
		if got := logFault(strings.Split(c.lines, ","), c.same, c.written, c.excused); (got != "") != c.fault {
			t.Errorf("%s: got %q, want a fault: %t", c.why, got, c.fault)
		}
	}
}

// TestCampaignEndObserver: only an end between the death of daemon and shim and their return is excused.
func TestCampaignEndObserver(t *testing.T) {
	s := &subject{file: filepath.Join(t.TempDir(), "s"), blind: []blindTime{{100, 200, 7}}}
	for _, c := range []struct {
		why  string
		line string
		want bool
	}{
		{"before", "5 11 99", false},
		{"said before, but lived at the beginning", "7 12 99", true},
		{"within", "8 13 150", true},
		{"after", "7 14 201", false},
	} {
		if err := os.WriteFile(s.file+".ends", []byte(c.line+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := len(s.unseen()) == 1; got != c.want {
			t.Errorf("%s: got %t, want %t", c.why, got, c.want)
		}
	}
}

// TestCampaignInstanceObserver: a second instance of a real service is seen, also after the first has died and left a child.
func TestCampaignInstanceObserver(t *testing.T) {
	svc, err := exec.LookPath("svc")
	if err != nil {
		t.Fatal(err)
	}
	lock := filepath.Join(t.TempDir(), "lock")
	read := func() string { text, _ := os.ReadFile(lock); return string(text) }
	start := func(lines int, args ...string) *exec.Cmd {
		cmd := exec.Command(svc, append([]string{"-lock", lock}, args...)...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if !eventually(testPatience, func() bool { return strings.Count(read(), "\n") == lines }) {
			t.Fatalf("no %d lines: %q", lines, read())
		}
		return cmd
	}
	end := func(cmd *exec.Cmd) { cmd.Process.Kill(); cmd.Wait() }
	first := start(1)
	if got := read(); instanceFault(got) != "" || !lives(got) || lastPID(got) != first.Process.Pid {
		t.Errorf("one instance: got %q", got)
	}
	end(first)
	if lives(read()) {
		t.Errorf("a dead instance lives")
	}
	second := start(2)
	if got := read(); instanceFault(got) != "" {
		t.Errorf("one after the other: got %q", got)
	}
	end(start(3))
	if got := read(); instanceFault(got) == "" {
		t.Errorf("two at once: got %q", got)
	}
	end(second)

	parent := start(4, "-spawn", "1", "-mark", lock)
	if !eventually(testPatience, func() bool {
		return slices.ContainsFunc(seenBelow(readProcesses(), []int{parent.Process.Pid}), func(p seenProcess) bool { return strings.HasSuffix(p.command, "-mark "+lock) })
	}) {
		t.Fatal("no child")
	}
	end(parent)
	end(start(5))
	if got := read(); strings.Count(got, "DUP") != 2 {
		t.Errorf("beside a child of a dead instance: got %q", got)
	}
	for _, p := range readProcesses() {
		if strings.HasSuffix(p.command, "-mark "+lock) {
			syscall.Kill(p.pid, syscall.SIGKILL)
		}
	}
}

// TestCampaignShimObserver: two shims of one service are seen, and those of other services and homes are not counted.
func TestCampaignShimObserver(t *testing.T) {
	home := t.TempDir()
	for _, dir := range []string{"run/web", "run/other"} {
		if err := os.MkdirAll(filepath.Join(home, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	svc, err := exec.LookPath("svc")
	if err != nil {
		t.Fatal(err)
	}
	all := map[int]seenProcess{}
	add := func(dir, argument string) {
		cmd := exec.Command(svc)
		cmd.Dir = filepath.Join(home, dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		all[cmd.Process.Pid] = seenProcess{pid: cmd.Process.Pid, command: filepath.Join(filepath.Dir(exe), shimName) + " " + argument}
	}
	add("run/web", "web")
	add("run/other", "other")
	add("", "web") // of another home
	if got := shimsOf(all, home, "web"); len(got) != 1 {
		t.Errorf("got %v, want one", got)
	}
	add("run/web", "web")
	if got := shimsOf(all, home, "web"); len(got) != 2 {
		t.Errorf("got %v, want two", got)
	}
}
