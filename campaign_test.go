// Role: the kill campaign: random SIGKILL of daemon and shims under load, judged by what processes and logs show.
// Runs in: go test.
// Owns: its home, its services and what they write beside it.
// Uses: wire, state, sys, observe, script, scriptcmd, edge, history.

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
	"syscall"
	"testing"
	"time"
)

var (
	campaignKills    = flag.Int("kills", 40, "rounds of SIGKILL in TestKillCampaign")
	campaignSeed     = flag.Uint64("seed", 0, "seed of TestKillCampaign; 0 = another one each time")
	campaignServices = flag.Int("services", 0, "services of TestKillCampaign; 0 = 12, or 50 from 300 kills on")
)

const (
	campaignPatience = 30 * time.Second        // for what must come to pass in the end: a loaded machine is no failure
	commandPatience  = 15 * time.Second        // for a command; it is interrupted then
	healPatience     = 1500 * time.Millisecond // for shims to start a daemon, before a client does it
	journalTail      = 40                      // events shown with a fault
	faultsEnough     = 3
)

// subjectKind is one sort of service under test. $FILE in unit becomes the path of the service's own files.
type subjectKind struct {
	name  string
	short bool   // its main process ends by itself and is started again
	same  string // it prints this line again and again
	lines bool   // it prints counted lines
	unit  string
}

const sameLine = "the same line"

var subjectKinds = [...]subjectKind{
	{name: "chatty", lines: true, unit: `ExecStart = "$SVC -lock $FILE.lock -seq $FILE.seq -seq-every 4ms -term-code 0 -ends $FILE.ends"`},
	{name: "rotating", lines: true, unit: `LogMaxSize = "64K"
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
ExecStart = "$SVC -lock $FILE.lock -ready-after 5ms -notify READY=1"`},
	{name: "simple", unit: `ExecStart = "$SVC -lock $FILE.lock"`},
}

// subject is one service under test, with what is known of it from outside.
type subject struct {
	kind     *subjectKind
	name     string
	file     string // begins the paths of its own files
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

	strikes, daemons, shims, stages, helpers, frozen, commands, again, heals, lines int
	attach                                                                          []time.Duration
}

func TestKillCampaign(t *testing.T) {
	c := newCampaign(t)
	t.Cleanup(c.keep) // before the home goes
	c.run("start", c.subjects...)
	for c.strikes < *campaignKills && c.faults < faultsEnough {
		c.round()
		if c.strikes%15 == 0 {
			c.checkLogs()
			t.Logf("%d kills after %.0f s", c.strikes, time.Since(c.began).Seconds()) // for a run that is cut off
		}
	}
	c.finish()
	t.Log(c.summary())
}

func newCampaign(t *testing.T) *campaign {
	n := *campaignServices
	switch {
	case n == 0 && *campaignKills >= 300:
		n = 50
	case n == 0:
		n = 12
	}
	seed := *campaignSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano()) % 1_000_000
	}
	c := campaignOf(newTestHome(t), seed)
	for i := range n {
		k := &subjectKinds[i%len(subjectKinds)]
		c.add(k, fmt.Sprintf("%s%d", k.name, i))
	}
	return c
}

func campaignOf(h *testHome, seed uint64) *campaign {
	return &campaign{testHome: h, seed: seed, chance: rand.New(rand.NewPCG(seed, seed)), began: time.Now(), stranger: newStranger(h.t)}
}

// add makes a service under test.
func (c *campaign) add(k *subjectKind, name string) {
	s := &subject{kind: k, name: name, file: filepath.Join(c.dir, name)}
	text := strings.ReplaceAll(k.unit, "$FILE", s.file)
	if !strings.Contains(text, "LogMaxFiles") {
		text = "LogMaxFiles = 100000\n" + text
	}
	c.unit(name, "[service]\n"+text+"\n")
	c.subjects = append(c.subjects, s)
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

func (c *campaign) summary() string {
	slices.Sort(c.attach)
	at := func(p int) time.Duration {
		if len(c.attach) == 0 {
			return 0
		}
		return c.attach[min(len(c.attach)*p/100, len(c.attach)-1)].Round(time.Millisecond)
	}
	unseen := 0
	for _, s := range c.subjects {
		unseen += len(s.unseen())
	}
	return fmt.Sprintf("seed %d: %d rounds (killed: daemon %d, shim %d, stage %d, helper %d; stopped for a while: %d) over %d services, "+
		"%d commands (%d again), daemon healed by shims %d times, "+
		"attached %v p50, %v p99 after the last kill or the start of the next daemon; %d lines checked, %d ends that nobody was left to see; %d faults; %.0f s",
		c.seed, c.strikes, c.daemons, c.shims, c.stages, c.helpers, c.frozen, len(c.subjects), c.commands, c.again, c.heals, at(50), at(99), c.lines, unseen, c.faults,
		time.Since(c.began).Seconds())
}

// ---- one round

// round gives commands, kills in the midst of them, and waits until everything stands again.
func (c *campaign) round() {
	asked := c.commandSome()
	c.pause(60)
	from := bootNow()
	alive := c.mainPIDs()
	struck := c.strike()
	after := bootNow()
	c.awaitDaemon(struck)
	c.awaitShims(struck)
	c.attach = append(c.attach, time.Duration(bootNow()-max(after, c.daemonBegan())))
	for _, a := range asked {
		c.granted(a)
	}
	c.awaitShims(struck)
	if struck.daemon {
		for _, s := range struck.subjects {
			s.blind = append(s.blind, blindTime{from, bootNow(), alive[s.name]})
		}
	}
	c.check()
}

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
	c.note("command: %s %s", verb, s.name)
	go func() {
		for range 3 {
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

// commandSome lets clients start, stop and restart up to two services.
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
		}
		list = append(list, c.ask(s, verb))
	}
	return list
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
	a.s.busy, a.s.up, a.s.instance = false, a.verb != "stop", ""
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
	c.awaitShims(struck{})
	c.check()
}

// ---- kills

// struck is what a round killed.
type struck struct {
	daemon   bool
	subjects []*subject    // whose shims died
	dead     []seenProcess // none of these may be taken for its successor
	heal     bool          // no client starts the daemon until the shims had time to
}

// strike kills daemon, shims, or both, at once or one right after the other; stops them for a while; or kills what lives for moments only.
func (c *campaign) strike() struck {
	var k struck
	one := c.pick(func(s *subject) bool { return s.up || s.busy })
	switch n := c.chance.IntN(130); {
	case n < 25:
		k.heal = c.chance.IntN(3) == 0 && !slices.ContainsFunc(c.subjects, func(s *subject) bool { return s.busy })
		c.kill(&k, nil)
	case n < 45:
		c.kill(&k, one)
	case n < 55: // and its successor, as soon as it comes
		c.kill(&k, one)
		c.pause(30)
		c.kill(&k, one)
	case n < 75:
		c.kill(&k, nil, one)
	case n < 85:
		c.kill(&k, nil)
		c.pause(40)
		c.kill(&k, one)
	case n < 90:
		c.kill(&k, one)
		c.pause(20)
		c.kill(&k, nil)
	case n < 95:
		c.kill(&k, c.some(3)...)
	case n < 100:
		c.kill(&k, append(c.some(len(c.subjects)), nil)...)
	case n < 106: // a shim dies, and who replaces it stands still
		thaw := c.freeze(nil)
		c.pause(200)
		c.kill(&k, one)
		c.pause(300)
		thaw()
	case n < 112: // the daemon dies, and the next one meets a shim that stands still
		thaw := c.freeze(one)
		c.pause(200)
		c.kill(&k, nil)
		c.pause(400)
		thaw()
	case n < 116: // SIGKILL reaches what stands still, too
		thaw := c.freeze(one)
		c.pause(100)
		c.kill(&k, one)
		thaw()
	case n < 123:
		c.killStage(&k, c.pick(func(s *subject) bool { return s.up && s.kind.short }))
	default: // the daemon replaces several shims by one helper
		c.kill(&k, c.some(5)...)
		c.killHelper(&k)
	}
	c.strikes++
	return k
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
func (c *campaign) awaitDaemon(k struck) {
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
func (c *campaign) awaitShims(k struck) {
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
		if isNamed(p, filepath.Base(c.svc)) && strings.Contains(p.command, s.file+".") {
			c.fault("%s is stopped, and %s lives", s.name, p)
		}
	}
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

// stranger is a process that is nobody's service: it must get no signal from us.
type stranger struct {
	cmd  *exec.Cmd
	file string // names of the signals that it got
}

func newStranger(t *testing.T) *stranger {
	t.Helper()
	svc, err := exec.LookPath("svc")
	if err != nil {
		t.Fatal(err)
	}
	s := &stranger{file: filepath.Join(t.TempDir(), "signals")}
	s.cmd = exec.Command(svc, "-trap", s.file, "-print", "ready")
	s.cmd.Dir = "/"
	out, err := s.cmd.StdoutPipe()
	if err == nil {
		err = s.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	t.Cleanup(func() { s.cmd.Process.Kill(); <-ended })
	if _, err := out.Read(make([]byte, 16)); err != nil { // its handlers stand
		t.Error(err)
	}
	go func() { s.cmd.Wait(); close(ended) }() // no zombie is left of it
	return s
}

func (s *stranger) fault() string {
	text, _ := os.ReadFile(s.file)
	p, alive := readProcess(s.cmd.Process.Pid)
	switch {
	case len(text) > 0:
		return "got " + strings.Join(strings.Fields(string(text)), " ")
	case !alive:
		return fmt.Sprintf("(process %d) is dead", s.cmd.Process.Pid)
	case !isNamed(p, "svc"):
		return "is another process: " + p.String()
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
	if err != nil {
		return err.Error()
	}
	fault := judged.take(rotated, excused)
	if fault == "" {
		s.read, s.judged = read, judged
		s.read.partial = maps.Clone(read.partial)
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
		c.lines += int(judged.last)
	}
	return judged.end(written, excused)
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
	if out, err := c.command("kill").CombinedOutput(); err != nil {
		c.fault("kill: %v\n%s", err, out)
	}
	for _, p := range (&scriptState{work: c.dir, home: c.home}).leftovers() {
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

func TestStrangerObserver(t *testing.T) {
	for _, sig := range []syscall.Signal{0, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGKILL} {
		s := newStranger(t)
		if fault := s.fault(); fault != "" {
			t.Errorf("before any signal: got %q", fault)
		}
		s.cmd.Process.Signal(sig)
		if sig == 0 {
			continue
		}
		if !eventually(testPatience, func() bool { return s.fault() != "" }) {
			t.Errorf("%v is not seen", sig)
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
