// Role: upgrade in place on real processes: old and new programs in turn, what waits meanwhile, what cannot be.
// Runs in: go test.
// Owns: its homes and the programs that it builds.
// Uses: wire, state, upgrade, campaign, edge, observe, script, trial.

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// recordedCommit is the commit whose frames and records testdata/wire keeps. Its tree names the same files when its hash is another one,
// after a change of authors say.
type recordedCommit struct{ hash, tree string }

func readRecordedCommit(t *testing.T, version string) (c recordedCommit) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata/wire", version, "commit"))
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := fmt.Sscanf(string(text), "commit %s\ntree %s\n", &c.hash, &c.tree); n != 2 {
		t.Fatalf("testdata/wire/%s/commit is not `commit HASH`, `tree HASH`: %q", version, text)
	}
	return c
}

// buildRecorded builds the program of a recorded commit.
func buildRecorded(t *testing.T, version string) string {
	t.Helper()
	c := readRecordedCommit(t, version)
	if _, err := exec.LookPath("git"); err != nil {
		skip(t, "git is not here")
	}
	if err := exec.Command("git", "cat-file", "-e", c.tree+"^{tree}").Run(); err != nil {
		skip(t, "this is no clone with the history of the project")
	}
	source := t.TempDir()
	archive := exec.Command("git", "archive", "--format=tar", c.tree)
	unpack := exec.Command("tar", "-x", "-C", source)
	var err error
	if unpack.Stdin, err = archive.StdoutPipe(); err == nil {
		err = archive.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := unpack.CombinedOutput(); err != nil {
		t.Fatalf("cannot unpack tree %s: %v\n%s", c.tree, err, out)
	}
	if err := archive.Wait(); err != nil {
		t.Fatalf("cannot read tree %s: %v", c.tree, err)
	}
	return buildProgram(t, source)
}

// buildProgram builds the program as it is released.
func buildProgram(t *testing.T, source string) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "diakonos")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, ".")
	cmd.Dir, cmd.Env = source, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cannot build %s: %v\n%s", source, err, out)
	}
	return binary
}

// install puts a copy of a program in the place of the one that commands run.
func (h *testHome) install(program string) {
	h.t.Helper()
	path := filepath.Join(h.bin, "diakonos")
	h.must(copyFile(program, path+".next"))
	h.must(os.Rename(path+".next", path))
}

// newInstallation is a home whose commands run a copy of a program.
func newInstallation(t *testing.T, program string) *testHome {
	t.Helper()
	dir := t.TempDir() // removed after the home
	h := newTestHome(t)
	h.bin = dir
	h.install(program)
	return h
}

// background runs a command; the result is its output and its end.
func (h *testHome) background(args ...string) <-chan string {
	h.t.Helper()
	cmd, out := h.command(args...), new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = out, out
	h.must(cmd.Start())
	done := make(chan string, 1)
	go func() {
		err := cmd.Wait()
		done <- fmt.Sprintf("%s(%v)", out, err)
	}()
	return done
}

// ends wants a command in the background to end well, with this in its output.
func (h *testHome) ends(what string, done <-chan string, want string) {
	h.t.Helper()
	select {
	case got := <-done:
		if !strings.HasSuffix(got, "(<nil>)") || !strings.Contains(got, want) {
			h.t.Errorf("%s: got %q, want %q and no error", what, got, want)
		}
	case <-time.After(testPatience):
		h.t.Errorf("%s does not end", what)
	}
}

// identities are main and shim process of all units, which no upgrade may change.
func (c *campaign) identities() string {
	c.t.Helper()
	list, err := c.list()
	c.must(err)
	var lines []string
	for _, u := range list {
		lines = append(lines, fmt.Sprintf("%s main %d shim %d restarts %d run %s", u.Name, u.MainPID, u.ShimPID, u.Restarts, u.InvocationID))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// upgradeTo runs daemon-upgrade, after which all run the program that commands run, with the PIDs that they had.
func (c *campaign) upgradeTo(program string) {
	c.t.Helper()
	before, daemon := c.identities(), daemonsOf(c.dir)
	c.install(program)
	out := c.diakonos("daemon-upgrade")
	if n := strings.Count(out, "upgraded "); n != len(c.subjects)+1 {
		c.t.Errorf("daemon-upgrade tells of %d processes, want %d:\n%s", n, len(c.subjects)+1, out)
	}
	want := programAt(c.t, filepath.Join(c.bin, "diakonos"))
	for _, p := range append(daemonsOf(c.dir), shimsBelow(c.home)...) {
		if got := programOf(fmt.Sprint(p.pid)); got != want {
			c.t.Errorf("%s runs %v, want %v", p, got, want)
		}
	}
	if after := c.identities(); after != before {
		c.t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if after := daemonsOf(c.dir); len(after) != 1 || len(daemon) != 1 || after[0].pid != daemon[0].pid {
		c.t.Errorf("daemons: %v, were %v", after, daemon)
	}
	c.check()
}

func programAt(t *testing.T, path string) programID {
	t.Helper()
	st, err := trustedProgram(path)
	if err != nil {
		t.Fatal(err)
	}
	return programID{st.Dev, st.Ino}
}

// shimsBelow are the live shims of a home.
func shimsBelow(home string) (list []seenProcess) {
	all := readProcesses()
	names, _ := os.ReadDir(filepath.Join(home, "run"))
	for _, name := range names {
		list = append(list, shimsOf(all, home, name.Name())...)
	}
	return list
}

// TestUpgrade goes from the recorded program to this one and back, under 100 services that write, while commands wait: no service is
// restarted, no line is lost or doubled, no command loses its answer.
func TestUpgrade(t *testing.T) {
	old, now := buildRecorded(t, "0.1.0"), buildProgram(t, ".")
	h := newInstallation(t, old)
	c := campaignOf(h, 1)
	t.Cleanup(c.keep)
	writer := subjectKind{name: "writer", lines: true, unit: `ExecStart = "$SVC -lock $FILE.lock -seq $FILE.seq -seq-every 20ms -term-code 0"`}
	args := []string{"start"}
	for i := range 100 {
		c.add(&writer, fmt.Sprintf("writer%d", i))
		args = append(args, c.subjects[i].name)
	}
	h.diakonos(args...)
	for _, s := range c.subjects {
		s.up = true
	}
	c.awaitShims(&struck{})
	h.unit("late", "[service]\nType = \"notify\"\nExecStart = \"$SVC -wait-file "+h.dir+"/go -notify READY=1\"\n")
	h.unit("slow", "[service]\nType = \"oneshot\"\nExecStart = \"$SVC -wait-file "+h.dir+"/go -exit-after 0s\"\nRemainAfterExit = true\n")
	h.unit("after", "[unit]\nRequires = [\"late\", \"slow\"]\n[service]\nExecStart = \"$SVC\"\n")
	waits := h.background("start", "after")
	installed := h.background("start", "--no-block", "after")
	c.await("the start of what after requires", func() string {
		list, err := c.list()
		if err != nil || list["late"].SubState != starting || list["slow"].SubState != starting {
			return fmt.Sprintf("%v %v", list["late"], list["slow"])
		}
		return ""
	})
	h.ends("start --no-block", installed, "")
	c.subjects = append(c.subjects, &subject{kind: &subjectKind{}, name: "late", file: h.dir + "/late"}, &subject{kind: &subjectKind{}, name: "slow", file: h.dir + "/slow"})
	c.upgradeTo(now)
	c.upgradeTo(old)
	c.upgradeTo(now)
	c.subjects = c.subjects[:100]
	h.must(os.WriteFile(h.dir+"/go", nil, 0o644))
	h.ends("start after", waits, "started    after")
	c.finish()
}

// TestUpgradeOfWhatEnds: a service that ends while its shim becomes another program is seen to end as it did, whenever that is: its shim is
// stopped (SIGSTOP) right before the exec, and goes on when the service is dead.
func TestUpgradeOfWhatEnds(t *testing.T) {
	for _, c := range []struct{ why, unit, end, sub, result string }{
		{"main process, exit code", `ExecStart = "$SVC -wait-file $FILE.go -exit-after 0s -code 7"`, "", failed, resultExitCode},
		{"main process, signal", `ExecStart = "$SVC"`, "main", failed, resultSignal},
		{"main process that is started again", "Restart = \"always\"\nRestartSec = 0\nExecStart = \"$SVC\"", "main", running, resultSuccess},
		{"oneshot", "Type = \"oneshot\"\nRemainAfterExit = true\nExecStart = \"$SVC -wait-file $FILE.go -exit-after 0s\"", "", exited, resultSuccess},
		{"ExecStartPost", "ExecStart = \"$SVC\"\nExecStartPost = \"$SVC -wait-file $FILE.go -exit-after 0s\"", "", running, resultSuccess},
	} {
		t.Run(c.why, func(t *testing.T) {
			t.Parallel()
			r := newTrial(t, &scenario{name: c.why}, 1)
			file := filepath.Join(r.dir, "s")
			r.unit("s", "[service]\n"+strings.ReplaceAll(c.unit, "$FILE", file)+"\n")
			start := r.background("start", "s")
			r.until("it runs", func() bool {
				p, err := find(r.home, "s")
				return err == nil && p.pid != 0 || r.status("s")["control_pid"] != 0.0
			})
			if c.end == "main" {
				r.ends("start", start, "started")
			}
			r.replaceProgram()
			r.arm(failOrder{roleShim, "succession.exec", 1, actStop})
			upgrade := r.background("daemon-upgrade")
			r.until("the shim is about to become another program", func() bool {
				select {
				case got := <-upgrade:
					t.Fatalf("daemon-upgrade ends: %s", got)
				default:
				}
				return r.stands(0)
			})
			before := r.fired(0)
			r.give()
			r.must(os.WriteFile(file+".go", nil, 0o644))
			if c.end == "main" {
				r.signal(syscall.SIGKILL, "s")
			}
			r.until("it has ended", func() bool {
				return !slices.ContainsFunc(seenBelow(readProcesses(), []int{before}), func(p seenProcess) bool {
					return strings.Contains(p.command, file) || c.end == "main" && isNamed(p, "svc")
				})
			})
			r.must(syscall.Kill(before, syscall.SIGCONT))
			r.ends("daemon-upgrade", upgrade, "upgraded   s")
			r.until("its end is known", func() bool {
				s := r.status("s")
				return s["sub_state"] == c.sub && s["result"] == c.result && (c.end != "main" || c.sub != running || s["restarts"] == 1.0)
			})
		})
	}
}

// TestUpgradeThatFails: the exec of a daemon or a shim is refused, which costs nothing but the upgrade: commands that wait get their
// answers from the daemon that stays, and so does what was asked meanwhile.
func TestUpgradeThatFails(t *testing.T) {
	h := newTestHome(t)
	h.unit("late", "[service]\nType = \"notify\"\nExecStart = \"$SVC -wait-file "+h.dir+"/go -notify READY=1\"\n")
	h.unit("up", "[service]\nExecStart = \"$SVC\"\n")
	h.diakonos("start", "up")
	waits := h.background("start", "late")
	if !eventually(testPatience, func() bool { return h.status("late")["sub_state"] == starting }) {
		t.Fatal("late is not started")
	}
	pid := h.status("late")["main_pid"]
	descriptors := func() (limit unix.Rlimit) {
		daemon, err := find(h.home, "@daemon")
		h.must(err)
		h.must(unix.Prlimit(daemon.pid, unix.RLIMIT_NOFILE, nil, &limit))
		return limit
	}
	limit := descriptors()
	ask := func(program string) string {
		var last reply
		lines := strings.Split(answerOf(t, h.asked(request{Proto: protocolVersion, Verb: upgradeVerb, Program: program})), "\n")
		h.must(json.Unmarshal([]byte(lines[len(lines)-1]), &last))
		return fmt.Sprintf("%d %s", last.Done.Code, last.Done.Error)
	}
	cannot := filepath.Join(h.dir, "cannot")
	h.must(os.WriteFile(cannot, []byte("no program"), 0o700))
	open := filepath.Join(h.dir, "open")
	h.must(os.WriteFile(open, nil, 0o700))
	h.must(os.Chmod(open, 0o777))
	for program, want := range map[string]string{
		cannot:          "1 cannot execute " + cannot + ": exec format error",
		open:            "1 cannot use program " + open + ": it has to be a file of ours or root's that others cannot write",
		h.dir:           "1 cannot use program " + h.dir + ": it has to be a file of ours or root's that others cannot write",
		h.dir + "/gone": "1 cannot use program " + h.dir + "/gone: no such file or directory",
	} {
		var meanwhile []<-chan string
		for range 8 {
			meanwhile = append(meanwhile, h.background("list"))
		}
		if got := ask(program); got != want {
			t.Errorf("%s: got %q, want %q", program, got, want)
		}
		for _, m := range meanwhile {
			h.ends("list", m, "up ")
		}
	}
	if got := descriptors(); got != limit {
		t.Errorf("the daemon may open %v descriptors, before it was %v", got, limit)
	}
	if got := h.status("late")["main_pid"]; got != pid {
		t.Errorf("main process %v, was %v", got, pid)
	}
	h.must(os.WriteFile(h.dir+"/go", nil, 0o644))
	h.ends("start late", waits, "started    late")
}

// asked sends a request, and returns when the daemon has taken it.
func (h *testHome) asked(r request) *conn {
	h.t.Helper()
	f, err := dialAt(h.home, socketName)
	h.must(err)
	c := newConn(f)
	h.must(c.sendJSON(r))
	var first reply
	h.must(c.readJSON(&first))
	return c
}

// answerOf reads the lines of an answer that follow the first one.
func answerOf(t *testing.T, c *conn) string {
	t.Helper()
	defer c.close()
	_ = c.f.SetReadDeadline(time.Now().Add(testPatience))
	var lines []string
	for {
		line, err := c.readLine()
		if err != nil {
			t.Fatalf("%v after %q", err, lines)
		}
		lines = append(lines, string(line))
		if strings.HasPrefix(string(line), `{"done":`) {
			return strings.Join(lines, "\n")
		}
	}
}

// TestUpgradeKeepsJobs: whatever commands wait for goes on: a start, a restart whose second half stands behind others, a reload and the one
// that waits for it, what was asked without waiting. The shim of a unit that is stopping is named, and follows later.
func TestUpgradeKeepsJobs(t *testing.T) {
	t.Parallel()
	r := newTrial(t, &scenario{name: "jobs"}, 1)
	wait := func(name string) string { return "$SVC -wait-file " + r.dir + "/" + name }
	r.unit("base", "[service]\nExecStart = \"$SVC\"\nExecStop = \""+wait("stop")+" -exit-after 0s\"\n")
	r.unit("top", "[unit]\nRequires = [\"base\"]\n[service]\nExecStart = \"$SVC\"\n")
	r.unit("late", "[service]\nType = \"notify\"\nExecStart = \""+wait("ready")+" -notify READY=1\"\n")
	r.unit("behind", "[unit]\nRequires = [\"late\"]\n[service]\nExecStart = \"$SVC\"\n")
	r.unit("reads", "[service]\nExecStart = \"$SVC\"\nExecReload = \""+wait("reload")+" -append "+r.dir+"/reloads -exit-after 0s again\"\n")
	sub := func(name, want string) {
		t.Helper()
		r.until(name+" is in "+want, func() bool { return r.status(name)["sub_state"] == want })
	}
	r.diakonos("start", "top", "reads")
	restart := r.background("restart", "base")
	start := r.background("start", "late")
	r.diakonos("start", "--no-block", "behind")
	first := r.background("reload", "reads")
	sub("base", stopping)
	sub("late", starting)
	sub("reads", reload)
	second := r.asked(request{Proto: protocolVersion, Verb: verbReload, ServiceDir: r.dir + "/services", Names: []string{"reads"}})
	r.replaceProgram()
	out, err := r.command("daemon-upgrade").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "base") || !strings.Contains(string(out), "its shim goes on as it is until that can be: the unit is deactivating/stop") {
		t.Errorf("daemon-upgrade: %v\n%s", err, out)
	}
	for unit, want := range map[string]bool{"base": true, "reads": false, "late": false} {
		if got := r.status(unit)["shim_outdated"]; got != want {
			t.Errorf("%s: shim_outdated is %v, want %v", unit, got, want)
		}
	}
	for _, name := range []string{"stop", "ready", "reload"} {
		r.must(os.WriteFile(r.dir+"/"+name, nil, 0o644))
	}
	r.ends("restart", restart, "restarted  base")
	r.ends("start", start, "started    late")
	r.ends("reload", first, "reloaded   reads")
	if got := answerOf(t, second); !strings.Contains(got, `"outcome":"done"`) || !strings.HasSuffix(got, `{"done":{"code":0}}`) {
		t.Errorf("the second reload: %s", got)
	}
	sub("behind", running)
	sub("top", running)
	sub("base", running)
	if text, _ := os.ReadFile(r.dir + "/reloads"); string(text) != "again\nagain\n" {
		t.Errorf("ExecReload ran: %q, want twice", text)
	}
	r.until("the shim of base has followed", func() bool { return r.status("base")["shim_outdated"] == false })
}

// TestUpgradeHearsSignals: SIGTERM ends the daemon whenever it comes while that becomes another program.
func TestUpgradeHearsSignals(t *testing.T) {
	t.Parallel()
	programs := [2]string{buildProgram(t, "."), filepath.Join(t.TempDir(), "diakonos")}
	if err := copyFile(programs[0], programs[1]); err != nil {
		t.Fatal(err)
	}
	h := newInstallation(t, programs[0])
	h.unit("up", "[service]\nExecStart = \"$SVC\"\n")
	h.diakonos("start", "up")
	for i := range 25 {
		h.diakonos("list")
		daemon, err := find(h.home, "@daemon")
		h.must(err)
		h.install(programs[(i+1)%2])
		upgrade := h.background("daemon-upgrade")
		time.Sleep(time.Duration(i) * time.Millisecond / 2)
		h.must(syscall.Kill(daemon.pid, syscall.SIGTERM))
		if !eventually(testPatience, func() bool { return isGone(daemon) }) {
			t.Fatalf("SIGTERM %d is lost", i)
		}
		<-upgrade // it starts a daemon where it finds none
	}
	h.diakonos("stop", "up")
}

// TestUpgradeNamesWhoIsDeaf: a shim that is stopped (SIGSTOP) is named, keeps no other, and is shown by list until it follows.
func TestUpgradeNamesWhoIsDeaf(t *testing.T) {
	t.Parallel()
	r := newTrial(t, &scenario{name: "deaf"}, 1)
	for _, name := range []string{"deaf", "well"} {
		r.unit(name, "[service]\nExecStart = \"$SVC\"\n")
	}
	r.diakonos("start", "deaf", "well")
	r.signal(syscall.SIGSTOP, "shim:deaf")
	r.replaceProgram()
	upgrade := r.background("daemon-upgrade")
	r.until("the others have followed", func() bool { return r.status("well")["shim_outdated"] == false })
	r.replaceProgram()
	if out, err := r.command("daemon-upgrade").CombinedOutput(); err == nil || !strings.Contains(string(out), "an upgrade to another program is under way") {
		t.Errorf("another program meanwhile: %v, %s", err, out)
	}
	select {
	case got := <-upgrade:
		if !strings.Contains(got, "exit status 1") || !strings.Contains(got, "deaf") || !strings.Contains(got, "its shim goes on as it is until that can be: it does not answer") {
			t.Errorf("got %q", got)
		}
	case <-time.After(2 * upgradePatience):
		t.Error("daemon-upgrade does not end")
	}
	r.signal(syscall.SIGCONT, "shim:deaf")
	r.until("it is seen", func() bool { return r.status("deaf")["shim_outdated"] == true })
	r.upgrade()
}
