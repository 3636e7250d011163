// Role: the scenarios of trials: together they come to every failpoint.
// Runs in: go test.
// Owns: nothing; all belongs to the trial.
// Uses: trial, campaign, edge, observe, script, log, state.

package main

import (
	"bytes"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// kindOf is one of the kill campaign's kinds of service.
func kindOf(name string) subjectKind {
	i := slices.IndexFunc(subjectKinds[:], func(k subjectKind) bool { return k.name == name })
	return subjectKinds[i]
}

// steadyKind is the chatty one at 250 lines a second: each of them passes many failpoints.
func steadyKind() subjectKind {
	k := kindOf("chatty")
	k.unit = strings.Replace(k.unit, fiveThousand, "-seq-every 4ms", 1)
	return k
}

// orphaned has a process beside its main process whose parent is gone.
const orphaned = `ExecStart = [["sh", "-c", "($SVC -mark $FILE-orphan &); exec $SVC -lock $FILE.lock"]]`

// soonReady is for services whose READY=1 may be lost: it goes with the socket when both who hold that are killed.
const soonReady = `
TimeoutStartSec = 3`

// Kinds of service that the kill campaign has no need of.
var (
	hooksKind = subjectKind{name: "hooks", unit: `ExecStartPre = "$SVC -exit-after 1ms"
ExecStart = "$SVC -lock $FILE.lock"
ExecStartPost = "$SVC -exit-after 1ms"
ExecReload = "$SVC -exit-after 1ms"
ExecStop = "$SVC -exit-after 1ms"
ExecStopPost = "$SVC -exit-after 1ms"`}
	mixedKind = subjectKind{name: "mixed", unit: `KillMode = "mixed"
ExecStart = "$SVC -lock $FILE.lock -spawn 1 -mark $FILE.mark"`}
	orphanedKind = subjectKind{name: "orphaned", unit: orphaned}
	leavingKind  = subjectKind{name: "leaving", unit: "KillMode = \"process\"\n" + orphaned}
	againKind    = subjectKind{name: "again", unit: `Restart = "always"
RestartSec = 0.3
ExecStart = "$SVC -lock $FILE.lock"`}
	prunedKind = subjectKind{name: "pruned", unit: `LogMaxSize = "64K"
LogMaxFiles = 1
ExecStart = "$SVC -lock $FILE.lock -seq $FILE.seq -seq-every 2ms -seq-burst 50"`}
	rotatedKind = subjectKind{name: "rotated", lines: true, unit: `LogMaxSize = "64K"
ExecStart = "$SVC -lock $FILE.lock -seq $FILE.seq -seq-every 5ms -seq-burst 50 -term-code 0 -ends $FILE.ends"`}
	largeKind = subjectKind{name: "large", unit: `Environment = ["LARGE=` + strings.Repeat("x", 8000) + `"]
ExecStart = "$SVC -lock $FILE.lock"`}
	userKind = subjectKind{name: "user", unit: `Type = "notify"
User = "nobody"
ExecStart = "$SVC -lock $FILE.lock -ready-after 5ms -notify READY=1"` + soonReady}
	insideKind = subjectKind{name: "inside", unit: `Environment = ["DIAKONOS_HOME=$HOME"]
ExecStart = [["sh", "-c", "(while ! test -e $FILE.go; do :; done; until $BIN/diakonos list >$FILE.out 2>&1; do :; done; echo asked >$FILE.asked) & exec $SVC -lock $FILE.lock"]]`}
	renewedKind = subjectKind{name: "renewed", unit: `Type = "forking"
PIDFile = "$FILE.pid"
ExecStart = [["sh", "-c", "sh $FILE.sh & until [ -e $FILE.pid ]; do sleep 0.01; done"]]`}
	// Of these the log may lack lines: its disk or its descriptors give out.
	lossyKind = subjectKind{name: "lossy", unit: `ExecStart = "$SVC -lock $FILE.lock -seq $FILE.seq -seq-every 4ms"`}
	floodKind = subjectKind{name: "flood", unit: `ExecStart = "$SVC -lock $FILE.lock -seq $FILE.seq -seq-every 1ms -seq-burst 200"`}
	lateKind  = subjectKind{name: "late", unit: `ExecStart = "$SVC -lock $FILE.lock -wait-file $FILE.go -seq $FILE.seq -seq-every 4ms"`}
)

// renewedScript is the main process of renewedKind, and the one that comes in its place, which is the first to take the lock.
const renewedScript = `echo $$ >$FILE.new && mv $FILE.new $FILE.pid
if [ -e $FILE.second ]; then
	while kill -0 $1; do sleep 0.01; done
	exec $SVC -lock $FILE.lock
fi
until [ -e $FILE.second ]; do sleep 0.01; done
sh $FILE.sh $$ &
until [ "$(cat $FILE.pid)" = $! ]; do sleep 0.01; done
`

// scenarios are made anew for each run of the tests.
func scenarios() []*scenario {
	chatty, tree, simple, forking := steadyKind(), kindOf("tree"), kindOf("simple"), kindOf("forking")
	notify := kindOf("notify")
	return []*scenario{
		{name: "cold start", kinds: []subjectKind{chatty, notify, forking, hooksKind}, blind: true,
			before: func(r *trial) { // an open home is closed
				r.must(os.Mkdir(r.home, 0o755))
				r.must(os.Chmod(r.home, 0o755))
			},
			do: func(r *trial) {
				r.startAll()
				r.written("chatty", 20)
			}},
		{name: "a service that is to run for ever", kinds: []subjectKind{againKind}, do: (*trial).startAll},
		{name: "many at once", kinds: []subjectKind{chatty, notify, simple, hooksKind},
			do: func(r *trial) {
				r.try("start", "chatty", "notify", "simple", "hooks")
				r.upAll()
			}},
		{name: "stop", kinds: []subjectKind{chatty, notify, tree, forking, mixedKind, hooksKind, orphanedKind},
			before: func(r *trial) {
				r.startAll()
				if cgroup, _ := r.status("chatty")["cgroup"].(string); cgroup != "" {
					r.must(os.Mkdir(cgroup+"/below", 0o755))
				}
			},
			do: func(r *trial) { r.order("stop", "chatty", "notify", "tree", "forking", "mixed", "hooks", "orphaned") }},
		{name: "restart", kinds: []subjectKind{chatty, tree, hooksKind, largeKind}, before: (*trial).startAll,
			do: func(r *trial) { r.order("restart", "chatty", "tree", "hooks", "large") }},
		{name: "reload", kinds: []subjectKind{chatty, hooksKind}, before: (*trial).startAll,
			do: func(r *trial) { r.try("reload", "hooks") }},
		{name: "rotate", kinds: []subjectKind{rotatedKind, prunedKind}, before: (*trial).startAll,
			do: func(r *trial) {
				for _, s := range r.subjects {
					r.rotations(s.name, 3)
				}
			}},
		{name: "shims die", kinds: []subjectKind{chatty, notify, forking, tree, orphanedKind}, before: (*trial).startAll,
			do: func(r *trial) {
				for _, s := range r.subjects {
					r.signal(syscall.SIGKILL, "shim:"+s.name)
				}
				r.awaitDaemon(&struck{})
				r.awaitShims(&struck{})
				r.written("chatty", 20)
			}},
		{name: "daemon dies", kinds: []subjectKind{chatty, notify, forking}, before: (*trial).startAll, blind: true,
			do: func(r *trial) {
				r.signal(syscall.SIGKILL, "@daemon")
				eventually(healPatience, r.answers)
				r.awaitDaemon(&struck{})
				r.awaitShims(&struck{})
			}},
		{name: "all die", kinds: []subjectKind{chatty, notify, forking, tree, orphanedKind}, before: (*trial).startAll, blind: true,
			do: func(r *trial) {
				for _, s := range r.subjects {
					r.signal(syscall.SIGKILL, "shim:"+s.name)
				}
				r.signal(syscall.SIGKILL, "@daemon")
				r.awaitDaemon(&struck{})
				r.awaitShims(&struck{})
			}},
		{name: "an end that only the daemon sees", kinds: []subjectKind{againKind}, before: (*trial).startAll, blind: true,
			only:   []string{"hand-over.exit"},
			orders: []failOrder{{roleShim, "shim.pid", 1, actKill}}, // so that the daemon has reaped the main process when the next one comes
			do: func(r *trial) {
				r.signal(syscall.SIGSTOP, "@daemon")
				r.signal(syscall.SIGKILL, "shim:again")
				r.signal(syscall.SIGKILL, "again")
				r.signal(syscall.SIGCONT, "@daemon")
				r.instanceChanges("again", nil)
			}},
		{name: "a cgroup is removed", needs: []string{"cgroup2"}, kinds: []subjectKind{againKind}, before: (*trial).startAll,
			do: func(r *trial) {
				cgroup, _ := r.status("again")["cgroup"].(string)
				r.signal(syscall.SIGKILL, "again")
				r.instanceChanges("again", func() { os.Remove(cgroup) }) // it cannot be removed while something lives in it
			}},
		{name: "upgrade", kinds: []subjectKind{chatty, notify, forking, tree, orphanedKind, againKind}, before: (*trial).startAll, blind: true,
			do: func(r *trial) {
				r.replaceProgram()
				r.upgrade()
				r.written("chatty", 20)
			}},
		{name: "upgrade while much is under way", kinds: []subjectKind{rotatedKind, againKind, hooksKind, notify}, before: (*trial).startAll, blind: true,
			do: func(r *trial) {
				r.replaceProgram()
				var list []asked
				for _, s := range r.subjects {
					list = append(list, r.ask(s, "restart"))
				}
				r.upgrade()
				for _, a := range list {
					r.granted(a)
				}
				r.upgrade()
				r.rotations("rotated", 1)
			}},
		{name: "a shim that cannot be upgraded", kinds: []subjectKind{leavingKind, chatty},
			before: func(r *trial) {
				r.startAll()
				r.order("restart", "leaving")
				r.until("each run leaves a process", func() bool {
					return len(r.orphans("leaving")) >= 2 && lives(r.instances(r.subject("leaving")))
				})
				old, _ := filepath.Glob(filepath.Join(r.home, "run/leaving/*"+retiredMark+"*"))
				for _, path := range old {
					r.must(os.Remove(path))
				}
			},
			do: func(r *trial) {
				r.replaceProgram()
				r.until("the shim of leaving alone goes on as it is", func() bool {
					r.may("daemon-upgrade")
					list, _ := r.list()
					return !list["chatty"].ShimOutdated && (list["leaving"].ShimOutdated || r.fired(0) != 0)
				})
			},
			after: func(r *trial) { r.killOrphans("leaving") }},
		{name: "kill", kinds: []subjectKind{chatty, notify, tree}, before: (*trial).startAll,
			do: func(r *trial) {
				r.try("kill")
				r.downAll()
			}},
		{name: "kill without a daemon", kinds: []subjectKind{chatty, notify}, blind: true,
			before: func(r *trial) {
				r.startAll()
				r.signal(syscall.SIGTERM, "@daemon")
			},
			do: func(r *trial) {
				r.try("kill")
				r.downAll()
			}},
		{name: "the first daemon of a boot", kinds: []subjectKind{chatty, simple, notify}, blind: true,
			before: func(r *trial) {
				r.diakonos("enable", "chatty", "simple", "notify")
				r.diakonos("kill")
			},
			do: func(r *trial) {
				r.upAll()
				r.try("list")
			}},
		{name: "the daemon ends", kinds: []subjectKind{chatty}, before: (*trial).startAll,
			do: func(r *trial) {
				r.signal(syscall.SIGTERM, "@daemon")
				r.try("list")
			}},
		{name: "a service replaces its main process", kinds: []subjectKind{renewedKind},
			before: func(r *trial) {
				s := r.subject("renewed")
				text := strings.NewReplacer("$FILE", s.file, "$SVC", r.svc).Replace(renewedScript)
				r.must(os.WriteFile(s.file+".sh", []byte(text), 0o644))
				r.order("start", "renewed")
			},
			do: func(r *trial) {
				s := r.subject("renewed")
				r.must(os.WriteFile(s.file+".second", nil, 0o644))
				r.until("the second one runs", func() bool { return lives(r.instances(s)) })
			}},
		{name: "enable, fail, forget", kinds: []subjectKind{chatty},
			before: func(r *trial) {
				r.unit("bad", "[service]\nWorkingDirectory = \"/nowhere\"\nExecStart = \"$SVC\"\n")
				r.unit("dependent", "[unit]\nRequires = [\"bad\"]\nAfter = [\"bad\"]\n[service]\nExecStart = \"$SVC\"\n")
				r.unit("once", "[service]\nType = \"oneshot\"\nExecStart = \"$SVC -print x -exit-after 0s\"\n")
				r.startAll()
				r.diakonos("start", "once")
			},
			do: (*trial).enableAndForget},
		{name: "another user", needs: []string{"user"}, kinds: []subjectKind{userKind},
			before: func(r *trial) {
				lock := r.subject("user").file + ".lock"
				r.must(os.WriteFile(lock, nil, 0o666))
				r.must(os.Chmod(lock, 0o666))
			},
			do: func(r *trial) {
				r.order("start", "user")
				r.order("restart", "user")
			}},
		{name: "an ordinary user, a long path", needs: []string{"user"}, user: "nobody", deep: true, kinds: []subjectKind{chatty, notify},
			do: func(r *trial) {
				r.startAll()
				r.order("restart", "notify")
			}},
		{name: "sockets are deleted", kinds: []subjectKind{chatty}, before: (*trial).startAll, blind: true,
			do: func(r *trial) {
				os.Remove(filepath.Join(r.home, socketName))
				r.try("list")
				os.Remove(filepath.Join(r.home, "run/chatty", shimSocketName))
				r.signal(syscall.SIGKILL, "@daemon")
				r.order("stop", "chatty")
				r.order("start", "chatty")
			}},
		{name: "a command inside a service", kinds: []subjectKind{chatty, insideKind}, blind: true,
			before: (*trial).readyInside,
			do:     (*trial).askFromInside},
		{name: "a command inside a service without a shim", kinds: []subjectKind{chatty, insideKind}, blind: true,
			before: func(r *trial) {
				r.readyInside()
				r.signal(syscall.SIGKILL, "shim:inside")
			},
			do: (*trial).askFromInside},
		{name: "a daemon in the foreground", kinds: []subjectKind{chatty}, before: (*trial).startAll, blind: true,
			do: (*trial).foreground},
		{name: "a container", kinds: []subjectKind{chatty, againKind}, blind: true,
			do: (*trial).container},
		{name: "leftovers", kinds: []subjectKind{leavingKind}, before: (*trial).startAll,
			do: func(r *trial) {
				leaves := func(n int) {
					r.until("each run leaves a process", func() bool { return len(r.orphans("leaving")) >= n })
				}
				leaves(1)
				r.order("restart", "leaving")
				leaves(2)
				r.order("stop", "leaving")
				r.order("start", "leaving")
				leaves(3)
				r.until("the old FIFOs are given up", func() bool {
					r.killOrphans("leaving")
					old, _ := filepath.Glob(filepath.Join(r.home, "run/leaving/*"+retiredMark+"*"))
					return len(old) == 0
				})
			},
			after: func(r *trial) { r.killOrphans("leaving") }},
		{name: "FIFOs and pump are replaced", kinds: []subjectKind{lossyKind},
			before: func(r *trial) {
				r.startAll()
				r.written("lossy", 5)
				r.order("stop", "lossy")
				dir := filepath.Join(r.home, "run/lossy")
				for _, name := range []string{"out", "err", "pump"} {
					r.must(os.Remove(filepath.Join(dir, name)))
				}
				r.must(os.WriteFile(filepath.Join(dir, "out"), []byte("no FIFO"), 0o600))
				r.must(os.MkdirAll(filepath.Join(dir, "err/within"), 0o700))
				r.must(os.Mkdir(filepath.Join(dir, "pump"), 0o700))
			},
			do: func(r *trial) {
				r.order("start", "lossy")
				r.logGrows("lossy")
			}},
		{name: "a log ends within a record", kinds: []subjectKind{lossyKind},
			before: func(r *trial) { r.spoilLog([]byte("2026-11-22T18:00:00.123456789Z stdout F torn")) },
			do: func(r *trial) {
				r.order("start", "lossy")
				r.logGrows("lossy")
			}},
		{name: "log and pump hold something else", kinds: []subjectKind{lossyKind},
			before: func(r *trial) {
				r.spoilLog(bytes.Repeat([]byte{'x'}, 4*maxRecordText))
				pump := filepath.Join(r.home, "run/lossy/pump")
				text, err := os.ReadFile(pump)
				r.must(err)
				copy(text[pumpFlagsAt:], bytes.Repeat([]byte{0xff}, 250))
				copy(text[pumpPhaseAt:], []byte{1, 0, 0, 0})
				r.must(os.WriteFile(pump, text, 0o600))
			},
			do: func(r *trial) {
				r.order("start", "lossy")
				r.logGrows("lossy")
			}},
		{name: "the daemon has no descriptor", kinds: []subjectKind{chatty}, before: (*trial).startAll,
			do: func(r *trial) {
				const reserved = 16 // is above the one that it keeps in reserve
				lift := r.limitDescriptors("@daemon", reserved)
				var open []*os.File
				for range 64 {
					if f, err := dialAt(r.home, socketName); err == nil {
						open = append(open, f)
					}
					if r.reachedOrFired(roleDaemon, "client.tell-why") {
						break
					}
				}
				r.may("list")
				for _, f := range open {
					f.Close()
				}
				lift()
			}},
		{name: "the shim has no descriptor", kinds: []subjectKind{lateKind}, before: (*trial).startAll,
			do: func(r *trial) {
				lift := r.limitDescriptors("shim:late", 0)
				r.must(os.WriteFile(r.subject("late").file+".go", nil, 0o644))
				r.until("output is read", func() bool { return r.reachedOrFired(roleShim, "pump.read") })
				lift()
			}},
		{name: "a daemon cannot start", kinds: []subjectKind{chatty},
			before: func(r *trial) { r.must(os.MkdirAll(filepath.Join(r.home, "daemon.json/within"), 0o700)) },
			do: func(r *trial) {
				r.may("list")
				r.must(os.RemoveAll(filepath.Join(r.home, "daemon.json")))
				r.order("start", "chatty")
			}},
		{name: "a full disk", needs: []string{"mount"}, kinds: []subjectKind{lossyKind}, blind: true,
			before: func(r *trial) {
				r.must(os.Mkdir(r.home, 0o700))
				r.fill = smallDisk(r.t, r.home, 2048)
				r.t.Cleanup(func() { r.command("kill").Run() }) // before the disk goes
				r.startAll()
			},
			do: func(r *trial) {
				r.fill()
				r.signal(syscall.SIGKILL, "@daemon")
				r.awaitDaemon(&struck{})
				r.written("lossy", 100)
				r.must(os.Remove(filepath.Join(r.home, "filler")))
				r.logGrows("lossy")
			}},
		{name: "a disk hangs", needs: []string{"freeze"}, kinds: []subjectKind{floodKind}, blind: true,
			before: func(r *trial) {
				r.must(os.Mkdir(r.home, 0o700))
				r.hang, r.thaw = hungDisk(r.t, r.home)
				r.t.Cleanup(func() { r.thaw(); r.command("kill").Run() }) // before the disk goes
				r.startAll()
			},
			do: func(r *trial) {
				r.hang()
				from, _ := readCounter(r.subject("flood").file + ".seq")
				r.until("the service goes on", func() bool {
					n, _ := readCounter(r.subject("flood").file + ".seq")
					return n > from+100_000 || r.fired(0) != 0
				})
				r.thaw()
				r.until("the gap is told", func() bool {
					lines, _ := logText(r.home, "flood")
					return r.fired(0) != 0 || slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, "diakonos: lost ") })
				})
				r.logGrows("flood")
			}},
		{name: "a shim dies before a stage is ready", kinds: []subjectKind{chatty}, blind: true,
			only: []string{"main-pid.await-lock"}, orders: []failOrder{{roleStage, "stage.step", 1, actStop}},
			do: func(r *trial) {
				a := r.ask(r.subject("chatty"), "start")
				r.until("the stage is stopped", func() bool { return r.stands(1) || r.ended(1) })
				r.signal(syscall.SIGKILL, "shim:chatty")
				r.until("the next shim waits for it", func() bool { return r.reachedOrFired(roleShim, "main-pid.await-lock") })
				if stage := r.fired(1); stage != 0 {
					syscall.Kill(stage, syscall.SIGCONT)
				}
				r.granted(a)
			}},
		{name: "a shim dies before its stage has begun", kinds: []subjectKind{chatty}, blind: true,
			only: []string{"spawn.await-guard"}, orders: []failOrder{{roleStage, "stage.wait", 1, actStop}, {roleShim, "main-pid.write", 1, actKill}},
			do: func(r *trial) {
				a := r.ask(r.subject("chatty"), "start")
				r.until("the stage is stopped, its shim dead", func() bool { return r.fired(2) != 0 && (r.stands(1) || r.ended(1)) })
				r.until("the next shim waits for the guard", func() bool { return r.reachedOrFired(roleShim, "spawn.await-guard") })
				if stage := r.fired(1); stage != 0 {
					syscall.Kill(stage, syscall.SIGCONT)
				}
				r.granted(a)
			}},
		{name: "a shim dies before the commit", kinds: []subjectKind{chatty}, blind: true,
			only: []string{"stage.void"}, orders: []failOrder{{roleShim, "stage.commit", 1, actKill}},
			do: (*trial).startAll},
		{name: "a shim dies within an intent", kinds: []subjectKind{chatty},
			only: []string{"pump.consume-rest"}, orders: []failOrder{{roleShim, "pump.consume", 3, actKill}},
			do: func(r *trial) {
				r.startAll()
				r.written("chatty", 50)
			}},
		{name: "a dead shim's lock is held", kinds: []subjectKind{chatty}, before: (*trial).startAll, blind: true,
			only: []string{"shim.await-lock"},
			do: func(r *trial) {
				r.signal(syscall.SIGSTOP, "@daemon")
				r.signal(syscall.SIGKILL, "shim:chatty")
				var lock int
				r.until("its last thread is gone", func() (free bool) {
					var err error
					lock, err = lockDirectory(filepath.Join(r.home, "run/chatty"))
					return err == nil
				})
				r.signal(syscall.SIGCONT, "@daemon")
				r.until("a shim waits for it", func() bool { return r.reachedOrFired(roleShim, "shim.await-lock") })
				unix.Close(lock)
			}},
	}
}

// readyInside starts a service that will give a command, and ends the daemon.
func (r *trial) readyInside() {
	file := filepath.Join(r.dir, "services/inside.service")
	text, err := os.ReadFile(file)
	r.must(err)
	r.must(os.WriteFile(file, []byte(strings.NewReplacer("$HOME", r.home, "$BIN", r.bin).Replace(string(text))), 0o644))
	r.startAll()
	r.signal(syscall.SIGTERM, "@daemon")
}

func (r *trial) askFromInside() {
	s := r.subject("inside")
	r.must(os.WriteFile(s.file+".go", nil, 0o644))
	r.until("the service has asked", func() bool { return exists(s.file + ".asked") })
}

// replaceProgram puts another file in the place of the one that commands run, as an installation does.
func (h *testHome) replaceProgram() {
	h.t.Helper()
	h.install(filepath.Join(h.bin, "diakonos"))
}

// upgrade has daemon and shims become the program that commands run.
func (r *trial) upgrade() {
	r.t.Helper()
	r.until("all run the new program", func() bool {
		r.may("daemon-upgrade")
		list, err := r.list()
		for _, u := range list {
			if u.ShimOutdated {
				return false
			}
		}
		return err == nil
	})
}

// rotations waits until a log was rotated so many times.
func (r *trial) rotations(name string, n int) {
	r.t.Helper()
	seen := map[uint64]bool{}
	r.until("the log of "+name+" is rotated", func() bool {
		var st unix.Stat_t
		if unix.Stat(filepath.Join(r.home, "log", name, currentName), &st) == nil {
			seen[st.Ino] = true
		}
		return len(seen) > n
	})
}

// enableAndForget uses the verbs that the daemon carries out alone.
func (r *trial) enableAndForget() {
	r.try("enable", "chatty")
	r.try("disable", "chatty")
	r.may("start", "bad")
	r.may("start", "dependent") // it fails with bad, which it requires
	r.until("bad has failed", func() bool {
		r.may("start", "bad")
		list, _ := r.list()
		return list["bad"].ActiveState == "failed" && list["bad"].ShimPID == 0
	})
	r.try("reset-failed", "bad")
	r.until("all is forgotten", func() bool {
		r.may("forget", "once")
		return !exists(filepath.Join(r.home, "run/once")) && !exists(filepath.Join(r.home, "log/once"))
	})
}

// spoilLog ends the log of the lossy service with this text.
func (r *trial) spoilLog(text []byte) {
	r.startAll()
	r.written("lossy", 5)
	r.order("stop", "lossy")
	f, err := os.OpenFile(filepath.Join(r.home, "log/lossy", currentName), os.O_WRONLY|os.O_APPEND, 0)
	r.must(err)
	defer f.Close()
	_, err = f.Write(text)
	r.must(err)
}

// orphans are what a service of that kind leaves behind.
func (r *trial) orphans(name string) (list []seenProcess) {
	for _, p := range readProcesses() {
		if isNamed(p, filepath.Base(r.svc)) && strings.HasSuffix(p.command, "-mark "+r.subject(name).file+"-orphan") {
			list = append(list, p)
		}
	}
	return list
}

func (r *trial) killOrphans(name string) {
	for _, p := range r.orphans(name) {
		syscall.Kill(p.pid, syscall.SIGKILL)
	}
}

// limitDescriptors lets a process open none from the first on that is free and not below least, until lift is called.
func (r *trial) limitDescriptors(who string, least int) (lift func()) {
	p, err := find(r.home, who)
	if err != nil {
		return func() {} // it was killed
	}
	limit := least
	for exists("/proc/" + strconv.Itoa(p.pid) + "/fd/" + strconv.Itoa(limit)) {
		limit++
	}
	var was unix.Rlimit // each call fails if it is gone
	unix.Prlimit(p.pid, unix.RLIMIT_NOFILE, nil, &was)
	unix.Prlimit(p.pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(limit), Max: was.Max}, nil)
	return func() { unix.Prlimit(p.pid, unix.RLIMIT_NOFILE, &was, nil) }
}

// credentialOf is what a command of another user runs with.
func credentialOf(t *testing.T, name string) *syscall.Credential {
	t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}
