// Role: tests of the first process of a container as supervisor, in PID namespaces: exit codes, order, grace, the death of its daemon, console.
// Runs in: go test.
// Owns: each container, and what lies in its directory.
// Uses: keep, kept, console, dialect, init, deps, failcall, init_test, observe, script, unit.

package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
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

	"golang.org/x/sys/unix"
)

// container is a run of diakonos-init as PID 1 of a namespace, with a home and a service directory of its own.
type container struct {
	t      *testing.T
	bin    string
	name   string // of the first process; "" = diakonos-init
	dir    string
	svc    string
	cmd    *exec.Cmd
	out    lockedBuffer
	stderr *os.File      // in the place of out; nil = out
	done   chan struct{} // closed when it has ended
	first  int           // the first process as seen from here; 0 = not seen yet
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newContainer makes the directory of a container with units by name; $SVC is the test service, $DIR the directory.
func newContainer(t *testing.T, bin string, units map[string]string) *container {
	t.Helper()
	svc, err := exec.LookPath("svc")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "diakonos-keep-") // shorter than t.TempDir: sockets lie in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := &container{t: t, bin: bin, dir: dir, svc: svc}
	if err := os.Mkdir(filepath.Join(c.dir, "services"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range units {
		c.unit(name, text)
	}
	return c
}

func (c *container) unit(name, text string) {
	c.t.Helper()
	text = strings.NewReplacer("$SVC", c.svc, "$DIR", c.dir).Replace(text)
	if err := os.WriteFile(filepath.Join(c.dir, "services", name+".service"), []byte(text), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

func (c *container) home() home { return home{filepath.Join(c.dir, "h")} }

// start starts diakonos-init with arguments. stdout nil = it is collected with stderr.
func (c *container) start(stdout *os.File, args ...string) {
	c.t.Helper()
	c.cmd = exec.Command("unshare", append([]string{"-m", "-p", "-f", "--mount-proc", "--kill-child", filepath.Join(c.bin, cmp.Or(c.name, initName))}, args...)...)
	c.cmd.Env = append(slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "DIAKONOS_") }), "DIAKONOS_HOME="+c.home().path,
		"DIAKONOS_SERVICE_DIR="+filepath.Join(c.dir, "services"), "OF_CONTAINER=yes", "PATH="+c.bin+":"+os.Getenv("PATH"))
	c.cmd.Dir = c.dir
	if stdout != nil {
		c.cmd.Stdout = stdout
	}
	c.begin()
}

// begin starts the command that makes the container.
func (c *container) begin() {
	c.t.Helper()
	c.cmd.Stderr = &c.out
	if c.stderr != nil {
		c.cmd.Stderr = c.stderr
	}
	if c.cmd.Stdout == nil {
		c.cmd.Stdout = &c.out
	}
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	defaultPipe()
	if err := c.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.done, c.first = make(chan struct{}), 0
	done, cmd := c.done, c.cmd
	go func() { cmd.Wait(); close(done) }()
	c.t.Cleanup(func() { cmd.Process.Kill(); <-done })
}

// wait waits for the end and returns the exit code.
func (c *container) wait() int {
	c.t.Helper()
	select {
	case <-c.done:
	case <-time.After(testPatience):
		c.t.Fatalf("the container does not end\n%s", c.out.String())
	}
	return c.cmd.ProcessState.ExitCode()
}

// endsWell ends the container as an engine does, which gives 0.
func (c *container) endsWell() {
	c.t.Helper()
	c.signal(unix.SIGTERM)
	if code := c.wait(); code != 0 {
		c.t.Errorf("it ends with %d\n%s", code, c.out.String())
	}
}

// pid1 is the first process as seen from here.
func (c *container) pid1() int {
	c.t.Helper()
	if c.first != 0 {
		return c.first
	}
	c.until("there is a first process", func() bool {
		list, _ := children(c.cmd.Process.Pid)
		if len(list) == 1 {
			c.first = list[0]
		}
		return c.first != 0
	})
	return c.first
}

func (c *container) until(what string, ok func() bool) {
	c.t.Helper()
	if !eventually(testPatience, ok) {
		c.t.Fatalf("not seen: %s\n%s", what, c.out.String())
	}
}

func (c *container) signal(sig syscall.Signal) {
	c.t.Helper()
	if err := syscall.Kill(c.pid1(), sig); err != nil {
		c.t.Fatal(err)
	}
}

// below are the processes of the container by the beginning of their command lines.
func (c *container) below(command string) (pids []int) {
	for _, p := range readProcesses() {
		if strings.HasPrefix(p.command, command) && c.holds(p.pid) {
			pids = append(pids, p.pid)
		}
	}
	slices.Sort(pids)
	return pids
}

// holds: a process is of the container's PID namespace.
func (c *container) holds(pid int) bool {
	var a, b unix.Stat_t
	return unix.Stat(fmt.Sprintf("/proc/%d/ns/pid", pid), &a) == nil && unix.Stat(fmt.Sprintf("/proc/%d/ns/pid", c.pid1()), &b) == nil && a.Ino == b.Ino
}

func (c *container) diakonos(args ...string) (string, error) {
	cmd := exec.Command("nsenter", append([]string{"-t", strconv.Itoa(c.pid1()), "-m", "-p", filepath.Join(c.bin, "diakonos")}, args...)...)
	cmd.Env = append(os.Environ(), "DIAKONOS_HOME="+c.home().path, "DIAKONOS_SERVICE_DIR="+filepath.Join(c.dir, "services"), "NO_COLOR=1")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (c *container) status(name string) (s unitStatus) {
	out, _ := c.diakonos("--json", "status", name)
	var list []unitStatus
	if json.Unmarshal([]byte(out), &list) == nil && len(list) == 1 {
		s = list[0]
	}
	return s
}

// has reads a file of the container's directory; "" = it is not there.
func (c *container) has(file string) string {
	text, _ := os.ReadFile(filepath.Join(c.dir, file))
	return string(text)
}

const simpleUnit = "[service]\nExecStart = \"$SVC -print up\"\n"

// TestContainerExitCodes: the code of the container tells what became of it.
func TestContainerExitCodes(t *testing.T) {
	needNamespace(t)
	bin := initPrograms(t)
	essential := func(end string) map[string]string {
		return map[string]string{"web": "[unit]\nRequires = [\"db\"]\nFailureAction = \"exit\"\nSuccessAction = \"exit\"\n[service]\nExecStart = [[\"sh\", \"-c\", \"" + end + "\"]]\n",
			"db": simpleUnit}
	}
	bad := "[service]\nExecStart = \"/nowhere\"\n"
	for _, x := range []struct {
		name  string
		units map[string]string
		args  string
		sig   syscall.Signal // when all is up
		want  int
		says  string
	}{
		{"an essential service ends well", essential("exit 0"), "", 0, 0, "SuccessAction"},
		{"with 1", essential("exit 1"), "", 0, 1, "FailureAction"},
		{"with 255", essential("exit 255"), "", 0, 255, ""},
		{"of a signal", essential("kill -SEGV $$"), "", 0, 139, ""},
		{"killed", essential("kill -KILL $$"), "", 0, 137, ""},
		{"a start limit", map[string]string{"web": "[service]\nRestart = \"always\"\nStartLimitBurst = 3\nStartLimitAction = \"exit\"\nExecStart = [[\"sh\", \"-c\", \"exit 9\"]]\n"}, "", 0, 9, "StartLimitAction"},
		{"SIGTERM", map[string]string{"web": simpleUnit}, "--start web", unix.SIGTERM, 0, ""},
		{"SIGINT", map[string]string{"web": simpleUnit}, "--start web", unix.SIGINT, 0, ""},
		{"SIGPWR", map[string]string{"web": simpleUnit}, "--start web", unix.SIGPWR, 0, ""},
		{"SIGRTMIN+3", map[string]string{"web": simpleUnit}, "--start web", 37, 0, ""},
		{"a failed start", map[string]string{"bad": bad}, "--start bad", 0, 1, `"bad" did not start: cannot execute /nowhere`},
		{"a failed start beside another", map[string]string{"bad": bad, "web": simpleUnit}, "", unix.SIGTERM, 1, `"bad" did not start`},
		{"no such unit", map[string]string{"web": simpleUnit}, "--start wev", 0, 1, `did you mean "web"?`},
		{"a broken unit", map[string]string{"web": "[service]\nExecStrat = \"x\"\n"}, "", 0, 1, "web.service:2:"},
		{"nothing to start", map[string]string{}, "--exit-when-idle", 0, 0, ""},
		{"a job is done", map[string]string{"job": "[service]\nType = \"oneshot\"\nExecStart = \"$SVC -exit-after 0s\"\n"}, "--exit-when-idle", 0, 0, ""},
		{"a job that remains", map[string]string{"job": "[service]\nType = \"oneshot\"\nRemainAfterExit = true\nExecStart = \"$SVC -exit-after 0s\"\n"}, "--exit-when-idle", 0, 0, ""},
		{"a job that fails", map[string]string{"job": "[service]\nType = \"oneshot\"\nExecStart = [\"sh -c 'exit 3'\"]\n"}, "--exit-when-idle", 0, 1, `"job" did not start`},
		{"the command ends", map[string]string{"web": simpleUnit}, "--start web -- sh -c,exit 7", 0, 7, ""},
		{"the command is killed", map[string]string{"web": simpleUnit}, "--start web -- sh -c,kill -KILL $$", 0, 137, ""},
		{"there is no such command", map[string]string{"web": simpleUnit}, "--start web -- nosuch", 0, 127, "cannot execute nosuch"},
		{"the command cannot be executed", map[string]string{"web": simpleUnit}, "--start web -- /etc", 0, 126, "cannot execute"},
		{"what the command needs does not start", map[string]string{"bad": bad}, "--start bad -- touch ran", 0, 1, "touch is not started"},
		{"a code of the command that is success", map[string]string{"web": simpleUnit}, "-e 7 --start web -- sh -c,exit 7", 0, 0, ""},
		{"SIGTERM ends the command", map[string]string{"web": simpleUnit}, "--start web -- sleep 1000", unix.SIGTERM, 143, ""},
		{"a side service ends it", essential("exit 4"), "--start web -- sleep 1000", 0, 4, ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			c := newContainer(t, bin, x.units)
			var args []string
			for i, part := range strings.Split(x.args, ",") {
				if i == 0 {
					args = append(args, strings.Fields(part)...)
				} else {
					args = append(args, part)
				}
			}
			c.start(nil, args...)
			if x.sig != 0 {
				c.until("web is up, and what is to be said is said", func() bool {
					return strings.Contains(c.out.String(), "web | up") && strings.Contains(c.out.String(), x.says)
				})
				if strings.Contains(x.args, "sleep") {
					c.until("the command runs", func() bool { return len(c.below("sleep 1000")) > 0 })
				}
				c.signal(x.sig)
			}
			if code := c.wait(); code != x.want || !strings.Contains(c.out.String(), x.says) {
				t.Errorf("the container ends with %d, want %d and %q\n%s", code, x.want, x.says, c.out.String())
			}
			if c.has("ran") != "" {
				t.Error("the command ran")
			}
		})
	}
}

// TestContainerOrder: side services start before the command in the order of their dependencies, and stop after it in reverse.
func TestContainerOrder(t *testing.T) {
	needNamespace(t)
	unit := func(needs, name string) string {
		return needs + "[service]\nExecStartPre = [[\"sh\", \"-c\", \"echo +" + name + " >>$DIR/order\"]]\nExecStart = \"$SVC\"\nExecStopPost = [[\"sh\", \"-c\", \"echo -" + name + " >>$DIR/order\"]]\n"
	}
	c := newContainer(t, initPrograms(t), map[string]string{"a": unit("", "a"), "b": unit("[unit]\nRequires = [\"a\"]\n", "b"), "c": unit("[unit]\nRequires = [\"b\"]\n", "c")})
	c.start(nil, "--start", "c", "--", "sh", "-c", "trap 'echo -main >>order; exit 5' TERM; echo +main >>order; while :; do sleep 0.01; done")
	c.until("the command runs", func() bool { return strings.Contains(c.has("order"), "+main") })
	c.signal(unix.SIGTERM)
	code := c.wait()
	if got := strings.ReplaceAll(c.has("order"), "\n", " "); code != 5 || got != "+a +b +c +main -main -c -b -a " {
		t.Errorf("it ended with %d, in the order %s\n%s", code, got, c.out.String())
	}
}

// TestContainerGrace: services that do not heed SIGTERM share the grace, and the last of them gets SIGTERM and its time before SIGKILL.
func TestContainerGrace(t *testing.T) {
	needNamespace(t)
	bin := initPrograms(t)
	unit := func(needs, name string) string {
		return needs + "[service]\nExecStart = [[\"sh\", \"-c\", \"trap 'echo term " + name + " >>$DIR/order' TERM; echo up; while :; do sleep 0.05; done\"]]\n"
	}
	units := map[string]string{"a": unit("", "a"), "b": unit("[unit]\nRequires = [\"a\"]\n", "b"), "c": unit("[unit]\nRequires = [\"b\"]\n", "c")}
	t.Run("whole", func(t *testing.T) {
		t.Parallel()
		c := newContainer(t, bin, units)
		c.start(nil, "--grace", "5", "--start", "c")
		c.until("all are up", func() bool { return strings.Contains(c.out.String(), "c | up") })
		c.signal(unix.SIGTERM)
		if code := c.wait(); code != 0 || c.has("order") != "term c\nterm b\nterm a\n" {
			t.Errorf("it ended with %d, after %q\n%s", code, c.has("order"), c.out.String())
		}
		for _, name := range []string{"a", "b", "c"} {
			if why, _ := exec.Command("strings", c.home().historyFile(name)).Output(); !bytes.Contains(why, []byte("sigkill")) {
				t.Errorf("%s: no SIGKILL in %s", name, why)
			}
		}
	})
	t.Run("hurried", func(t *testing.T) {
		t.Parallel()
		c := newContainer(t, bin, units)
		c.start(nil, "--grace", "1h", "--start", "c")
		c.until("all are up", func() bool { return strings.Contains(c.out.String(), "c | up") })
		c.signal(unix.SIGTERM)
		c.until("the first was told", func() bool { return c.has("order") == "term c\n" })
		c.signal(unix.SIGTERM)
		if code := c.wait(); code != 0 {
			t.Errorf("it ended with %d\n%s", code, c.out.String())
		}
	})
	t.Run("a command that does not heed it", func(t *testing.T) {
		t.Parallel()
		c := newContainer(t, bin, units)
		c.start(nil, "--grace", "3", "--start", "a", "--", "sh", "-c", "trap '' TERM; touch up; while :; do sleep 0.05; done")
		c.until("the command runs", func() bool { return exists(filepath.Join(c.dir, "up")) })
		c.signal(unix.SIGTERM)
		if code := c.wait(); code != 137 || c.has("order") != "term a\n" {
			t.Errorf("it ended with %d, after %q\n%s", code, c.has("order"), c.out.String())
		}
	})
	t.Run("a daemon that is stopped", func(t *testing.T) {
		t.Parallel()
		c := newContainer(t, bin, map[string]string{"a": simpleUnit})
		c.start(nil, "--grace", "1", "--start", "a")
		c.until("it is up", func() bool { return strings.Contains(c.out.String(), "a | up") })
		syscall.Kill(c.below(daemonName)[0], unix.SIGSTOP)
		c.signal(unix.SIGTERM)
		if code := c.wait(); code != 1 || !strings.Contains(c.out.String(), "the time for the end is over") {
			t.Errorf("it ended with %d\n%s", code, c.out.String())
		}
	})
}

// TestContainerSurvives: its daemon, shims and console may be killed at any time; services run on, the daemon comes back, and knows how what
// PID 1 has reaped meanwhile has ended.
func TestContainerSurvives(t *testing.T) {
	needNamespace(t)
	c := newContainer(t, initPrograms(t), map[string]string{
		"web": "[service]\nExecStart = \"$SVC -print up -lock $DIR/web.lock\"\n",
		"end": "[service]\nExecStart = [[\"sh\", \"-c\", \"echo up; until [ -e $DIR/go ]; do sleep 0.01; done; exit 23\"]]\n"})
	c.start(nil)
	c.until("both are up", func() bool {
		return strings.Contains(c.out.String(), "web | up") && strings.Contains(c.out.String(), "end | up")
	})
	first := c.has("web.lock")
	for range 5 {
		old := c.below(daemonName)
		syscall.Kill(old[0], unix.SIGKILL)
		c.until("there is another daemon", func() bool {
			now := c.below(daemonName)
			return len(now) == 1 && now[0] != old[0] && c.status("web").ActiveState == active
		})
	}
	for _, pid := range append(c.below(shimName), c.below(daemonName)...) {
		syscall.Kill(pid, unix.SIGKILL)
	}
	if err := os.WriteFile(filepath.Join(c.dir, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	c.until("the end of a service without a shim is known", func() bool {
		s := c.status("end")
		return s.ActiveState == failedUnit && s.ExitCode != nil && *s.ExitCode == 23
	})
	c.until("the other is supervised", func() bool { s := c.status("web"); return s.ActiveState == active && s.ShimPID != 0 })
	if now := c.has("web.lock"); now != first {
		t.Errorf("web was started again: %q, then %q", first, now)
	}
	if out, _ := c.diakonos("kill"); !strings.Contains(out, "stopped") { // it may be killed itself when the container ends
		t.Errorf("kill: %s", out)
	}
	if code := c.wait(); code != 0 {
		t.Errorf("after kill it ends with %d\n%s", code, c.out.String())
	}
}

// TestContainerHearsHangup: SIGHUP has the units read again, and starts and stops nothing. The command gets it too.
func TestContainerHearsHangup(t *testing.T) {
	needNamespace(t)
	c := newContainer(t, initPrograms(t), map[string]string{"web": simpleUnit, "side": simpleUnit})
	c.start(nil, "--start", "web,side", "--", "sh", "-c", "trap 'echo hup >>got' HUP; trap 'echo usr1 >>got' USR1; touch up; while :; do sleep 0.01; done")
	c.until("the command runs", func() bool { return exists(filepath.Join(c.dir, "up")) })
	c.unit("side", "[unit]\nPartOf = [\"web\"]\n"+simpleUnit)
	pid := c.status("side").MainPID
	c.signal(unix.SIGHUP)
	c.signal(unix.SIGUSR1)
	c.until("the signals have come", func() bool { return len(strings.Fields(c.has("got"))) == 2 })
	if now := c.status("side").MainPID; now != pid || pid == 0 {
		t.Errorf("side was process %d and is %d", pid, now)
	}
	c.until("side, now a part of web, is stopped with it", func() bool { // the word for the daemon has another way than ours
		if _, err := c.diakonos("stop", "web"); err == nil && c.status("side").ActiveState == inactive {
			return true
		}
		_, _ = c.diakonos("start", "web")
		return false
	})
	c.signal(unix.SIGKILL)
	c.wait()
}

// TestContainerEnvironment: services get the environment of the container, less what is ours, under what their units say.
func TestContainerEnvironment(t *testing.T) {
	needNamespace(t)
	c := newContainer(t, initPrograms(t), map[string]string{
		"web":    "[service]\nEnvironment = \"ADDED=1\"\nExecStart = \"$SVC -env\"\n",
		"nobody": "[service]\nUser = \"65534\"\nExecStart = \"$SVC -env\"\n"})
	c.start(nil)
	c.until("both have told", func() bool {
		return strings.Contains(c.out.String(), "nobody | env HOME=") && strings.Contains(c.out.String(), "web | env HOME=") && strings.Contains(c.out.String(), "web | env ADDED=1")
	})
	c.signal(unix.SIGTERM)
	c.wait()
	out := c.out.String()
	for _, want := range []string{"web | env OF_CONTAINER=yes", "nobody | env OF_CONTAINER=yes", "web | env PATH=" + c.bin, "nobody | env PATH=" + c.bin, "web | env ADDED=1", "web | env HOME=" + os.Getenv("HOME")} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q", want)
		}
	}
	for line := range strings.Lines(out) {
		name, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(line, "web | env "), "nobody | env "), "=")
		if strings.HasPrefix(name, "DIAKONOS_") && name != scopeVariable || name == "GOMAXPROCS" || strings.Contains(line, "nobody | env HOME="+os.Getenv("HOME")) {
			t.Errorf("a service has %s", line)
		}
	}
	if t.Failed() {
		t.Log(out)
	}
}

// TestContainerConsole: every line comes to the console, whatever dies.
func TestContainerConsole(t *testing.T) {
	needNamespace(t)
	bin := initPrograms(t)
	units := map[string]string{"web": "[service]\nLogMaxSize = \"10M\"\nExecStart = [[\"sh\", \"-c\", \"i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; echo error $i >&2; done; touch $DIR/through; sleep 1000\"]]\n"}
	lines := func(c *container, prefix string) (missing, twice int) {
		seen := map[string]int{}
		for line := range strings.Lines(c.out.String()) {
			seen[strings.TrimSuffix(line, "\n")]++
		}
		for i := range 3000 {
			n := seen[fmt.Sprintf("web | %s %d", prefix, i+1)]
			if n == 0 {
				missing++
			}
			twice += max(n-1, 0)
		}
		return missing, twice
	}
	t.Run("undisturbed", func(t *testing.T) {
		t.Parallel()
		c := newContainer(t, bin, units)
		c.start(nil)
		c.until("all is said", func() bool { return exists(filepath.Join(c.dir, "through")) })
		c.signal(unix.SIGTERM)
		c.wait()
		for _, prefix := range []string{"line", "error"} {
			if missing, twice := lines(c, prefix); missing+twice != 0 {
				t.Errorf("of 3000 lines %s, %d are missing, %d come twice", prefix, missing, twice)
			}
		}
	})
	t.Run("its process is killed", func(t *testing.T) {
		t.Parallel()
		c := newContainer(t, bin, units)
		c.start(nil)
		kills := 0
		c.until("all is said, and it was killed three times", func() bool {
			for _, pid := range c.below(initName + " " + consoleFlag) {
				if syscall.Kill(pid, unix.SIGKILL) == nil {
					kills++
				}
			}
			return kills >= 3 && exists(filepath.Join(c.dir, "through"))
		})
		c.until("it is there again", func() bool { return len(c.below(initName+" "+consoleFlag)) == 1 })
		c.signal(unix.SIGTERM)
		c.wait()
		for _, prefix := range []string{"line", "error"} {
			missing, twice := lines(c, prefix)
			if missing != 0 {
				t.Errorf("of 3000 lines %s, %d are missing", prefix, missing)
			}
			if most := kills * 64 << 10 / len("web | line 1\n"); twice > most {
				t.Errorf("after %d kills, %d lines %s come twice, want at most %d", kills, twice, prefix, most)
			}
		}
	})
	t.Run("as JSON", func(t *testing.T) {
		t.Parallel()
		c := newContainer(t, bin, map[string]string{"web": "[service]\nExecStart = \"$SVC -print up -eprint wrong\"\n"})
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		c.start(w, "--log-format", "json")
		w.Close()
		dec := json.NewDecoder(r)
		got := map[string]string{}
		for len(got) < 2 {
			var l logLine
			if err := dec.Decode(&l); err != nil {
				t.Fatalf("%v\n%s", err, c.out.String())
			}
			got[l.Stream] = l.Name + " " + l.Text
		}
		if got["stdout"] != "web up" || got["stderr"] != "web wrong" {
			t.Errorf("got %q", got)
		}
		c.signal(unix.SIGTERM)
		c.wait()
	})
	t.Run("nobody reads it", func(t *testing.T) {
		t.Parallel()
		c := newContainer(t, bin, map[string]string{"web": "[service]\nLogMaxSize = 65536\nExecStart = [[\"sh\", \"-c\", \"i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo line $i; done; touch $DIR/through; sleep 1000\"]]\n"})
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		c.start(w)
		w.Close()
		c.until("the service is not held up", func() bool { return exists(filepath.Join(c.dir, "through")) })
		var text lockedBuffer
		go func() {
			b := make([]byte, 4096)
			for {
				n, err := r.Read(b)
				text.Write(b[:n])
				if err != nil {
					return
				}
			}
		}()
		c.until("the last line comes, and the gap is told", func() bool {
			return strings.Contains(text.String(), "web | line 20000\n") && strings.Contains(text.String(), "may be missing")
		})
		c.signal(unix.SIGTERM)
		if code := c.wait(); code != 0 {
			t.Errorf("it ends with %d", code)
		}
	})
	t.Run("nobody reads it to the end", func(t *testing.T) {
		t.Parallel()
		c := newContainer(t, bin, units)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		c.start(w)
		w.Close()
		c.until("all is said", func() bool { return exists(filepath.Join(c.dir, "through")) })
		c.signal(unix.SIGTERM)
		if code := c.wait(); code != 0 {
			t.Errorf("it ends with %d\n%s", code, c.out.String())
		}
	})
}

// testKeep is a first process that keeps services, without its loop and without a daemon.
func testKeep(t *testing.T) *initLoop {
	t.Helper()
	c := newInitCall(initName, dialectOf(initName))
	if a := c.dialect.parse(c, []string{"-s", "--home", t.TempDir(), "--start", "web"}); a != nil {
		t.Fatal(a.err)
	}
	i := &initLoop{call: c}
	var err error
	if i.keep, err = newKeep(i); err != nil {
		t.Fatal(err)
	}
	return i
}

// TestKeepAllocatesNothing: orphans cost PID 1 no memory, also where it tells the daemon of each, and where nobody reads that.
func TestKeepAllocatesNothing(t *testing.T) {
	i := testKeep(t)
	orphan := func() {
		pid, err := syscall.ForkExec("/bin/true", []string{"true"}, &syscall.ProcAttr{})
		if err != nil {
			t.Fatal(err)
		}
		awaitChild(pid)
	}
	without := testing.AllocsPerRun(20, orphan)
	if n := testing.AllocsPerRun(20, func() { orphan(); i.reap() }); n > without {
		t.Errorf("an orphan allocates %v times", n-without)
	}
	if n := testing.AllocsPerRun(100, func() { i.keep.onSignal(unix.SIGHUP) }); n != 0 {
		t.Errorf("SIGHUP allocates %v times", n)
	}
	if n := testing.AllocsPerRun(100, func() { startTime(os.Getpid()) }); n != 0 {
		t.Errorf("the start time allocates %v times", n)
	}
	if got, want := startTime(os.Getpid()), refOf(os.Getpid()).Start; got != want {
		t.Errorf("the start time is %d, want %d", got, want)
	}
}

// TestStopUntil: each of the stops that follow keeps its second as far as there is time, the last before all.
func TestStopUntil(t *testing.T) {
	s := boottime(time.Second)
	for _, c := range []struct {
		now, end boottime
		behind   int
		want     boottime
	}{
		{0, 10 * s, 0, 10 * s},
		{0, 10 * s, 1, 9 * s},
		{0, 10 * s, 9, s},
		{0, 10 * s, 18, s / 2}, // 9 s for 18, then the last one
		{5 * s, 6 * s, 1, 5 * s},
		{7 * s, 6 * s, 3, 6 * s},
	} {
		if got := stopUntil(c.now, c.end, c.behind); got != c.want {
			t.Errorf("stopUntil(%v, %v, %d) = %v, want %v", time.Duration(c.now), time.Duration(c.end), c.behind, time.Duration(got), time.Duration(c.want))
		}
	}
}

// TestContainerEndsAtAnyTime: SIGTERM may come while half of the units are up, and daemon and shims may die in it. All that was started is
// stopped, in reverse order, and the exit code is that of an orderly end.
func TestContainerEndsAtAnyTime(t *testing.T) {
	needNamespace(t)
	bin := initPrograms(t)
	for round := range 24 {
		t.Run(strconv.Itoa(round), func(t *testing.T) {
			t.Parallel()
			units := map[string]string{}
			const chain = 8
			for i := range chain {
				needs := ""
				if i > 0 {
					needs = fmt.Sprintf("[unit]\nRequires = [\"u%d\"]\n", i-1)
				}
				units[fmt.Sprintf("u%d", i)] = needs + fmt.Sprintf("[service]\nExecStartPre = [[\"sh\", \"-c\", \"echo +%d >>$DIR/order\"]]\nExecStart = \"$SVC\"\nExecStopPost = [[\"sh\", \"-c\", \"echo -%d >>$DIR/order\"]]\n", i, i)
			}
			c := newContainer(t, bin, units)
			c.start(nil, "--start", fmt.Sprintf("u%d", chain-1))
			up := round % (chain + 1)
			c.until("so many have begun", func() bool { return strings.Count(c.has("order"), "+") >= up && len(c.below(daemonName)) == 1 })
			c.signal(unix.SIGTERM)
			if round%3 > 0 { // daemon, or all that are there
				list := c.below(daemonName)
				if round%3 == 2 {
					list = append(list, c.below(shimName+" u")...) // not the stages: their commands would be lost
				}
				for _, pid := range list {
					syscall.Kill(pid, unix.SIGKILL)
				}
			}
			if code := c.wait(); code != 0 {
				t.Errorf("it ends with %d\n%s", code, c.out.String())
			}
			var started, stopped []string
			for _, word := range strings.Fields(c.has("order")) {
				if word[0] == '+' {
					started = append(started, word[1:])
				} else if len(stopped) == 0 || stopped[len(stopped)-1] != word[1:] { // a killed shim may have run it
					stopped = append(stopped, word[1:])
				}
			}
			slices.Reverse(started)
			if len(stopped) == len(started)+1 { // the start that was under way was ended before its first command had done anything
				stopped = stopped[1:]
			}
			if !slices.Equal(started, stopped) {
				t.Errorf("started, newest first: %v; stopped: %v\n%s", started, stopped, c.out.String())
				for i := range chain {
					text, _ := exec.Command("strings", "-n", "20", c.home().historyFile(fmt.Sprintf("u%d", i))).Output()
					t.Logf("u%d: %s", i, text)
				}
			}
		})
	}
}

// TestContainerReaps: orphans of the command, and of services whose shims were killed, leave no zombies, and the daemon below is not disturbed.
func TestContainerReaps(t *testing.T) {
	needNamespace(t)
	script := fmt.Sprintf("i=0; while [ $i -lt %d ]; do (true &) ; i=$((i+1)); done; touch done; until [ -e go ]; do sleep 0.01; done; exit 42", *initOrphans)
	c := newContainer(t, initPrograms(t), map[string]string{"web": "[service]\nExecStart = \"$SVC -print up -lock $DIR/web.lock\"\n"})
	c.start(nil, "--start", "web", "--", "sh", "-c", script)
	if !eventually(10*time.Minute, func() bool { return exists(filepath.Join(c.dir, "done")) }) {
		t.Fatal("it does not come to an end")
	}
	c.until("no zombie is left", func() bool {
		list, ok := children(c.pid1())
		for _, pid := range list {
			if st, err := readStat(pid); err == nil && st.ended() {
				return false
			}
		}
		return ok
	})
	if s := c.status("web"); s.ActiveState != active || strings.Count(c.has("web.lock"), "\n") != 1 || strings.Contains(c.out.String(), "the daemon") {
		t.Errorf("web is %s, and was started so often: %s\n%s", s.ActiveState, c.has("web.lock"), c.out.String())
	}
	if err := os.WriteFile(filepath.Join(c.dir, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if code := c.wait(); code != 42 {
		t.Errorf("it ends with %d", code)
	}
}

// TestKeeperTellsEnds: what PID 1 has reaped comes to the daemon with its identity, waits for the next one where there is none, and is taken only
// once it was acted on. What is not the very process of a service is nobody's.
func TestKeeperTellsEnds(t *testing.T) {
	i := testKeep(t)
	pid, err := syscall.ForkExec("/bin/sh", []string{"sh", "-c", "exit 23"}, &syscall.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	ref := refOf(pid)
	awaitChild(pid)
	i.reap() // no daemon is there yet

	t.Setenv(orderVariable, string(encode(nil, &bootOrder{ServiceDir: "/"})))
	m := fuzzManager(t)
	fd, err := unix.FcntlInt(uintptr(i.keep.theirs), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if m.keeper, err = joinKeeper(fd); err != nil {
		t.Fatal(err)
	}
	defer m.keeper.f.Close()
	web, other := m.entry("web"), m.entry("other")
	web.record.Main = ref
	other.record.Main = pidRef{PID: ref.PID, Start: ref.Start + 1, Ino: ref.Ino + 1} // another process that had this PID
	f, err := m.keeper.look(false)
	if err != nil || f.Op != keeperExit {
		t.Fatalf("%+v, %v", f, err)
	}
	m.hearKeeper()
	if want := []exitNote{{ref, exitStatus{exitExited, 23}}}; !slices.Equal(web.exits, want) || len(other.exits) != 0 {
		t.Errorf("web has %+v, other %+v; want %+v", web.exits, other.exits, want)
	}
	if _, err := m.keeper.look(false); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("the packet is still there: %v", err)
	}
}

// TestContainerEnabled: without names the enabled units start, and beside a command too.
func TestContainerEnabled(t *testing.T) {
	needNamespace(t)
	c := newContainer(t, initPrograms(t), map[string]string{"web": simpleUnit, "other": simpleUnit})
	c.start(nil, "--start", "other")
	c.until("other is up", func() bool { return strings.Contains(c.out.String(), "other | up") })
	if out, err := c.diakonos("enable", "web"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	c.signal(unix.SIGTERM)
	c.wait()
	for _, args := range [][]string{nil, {"--", "sh", "-c", "touch up; sleep 1000"}} {
		c.out = lockedBuffer{}
		os.Remove(filepath.Join(c.dir, "up"))
		c.start(nil, args...)
		c.until("web is up, and the command", func() bool {
			return strings.Contains(c.out.String(), "web | up") && (args == nil || exists(filepath.Join(c.dir, "up")))
		})
		if s := c.status("other"); s.ActiveState != inactive {
			t.Errorf("%v: other is %s", args, s.ActiveState)
		}
		c.signal(unix.SIGTERM)
		c.wait()
	}
}

// TestContainerOfDiakonosd: diakonosd as PID 1 is the same first process, with a daemon below it.
func TestContainerOfDiakonosd(t *testing.T) {
	needNamespace(t)
	c := newContainer(t, initPrograms(t), map[string]string{"web": simpleUnit})
	if err := os.Symlink("diakonos", filepath.Join(c.bin, daemonName)); err != nil {
		t.Fatal(err)
	}
	c.name = daemonName
	c.start(nil, "--start", "web")
	c.until("web is up", func() bool { return strings.Contains(c.out.String(), "web | up") })
	first := c.pid1()
	if list := c.below(filepath.Join(c.bin, daemonName) + " --start web"); !slices.Equal(list, []int{first}) {
		t.Errorf("the first process is %d; with its own command line there is %v", first, list)
	}
	if list := c.below(daemonName); len(list) != 1 || list[0] == first {
		t.Errorf("the first process is %d, the daemons are %v", first, list)
	}
	c.endsWell()
}

// TestContainerWithoutReader: nobody reads standard output and standard error, which are one pipe, and it is full. PID 1 does its work all the same.
func TestContainerWithoutReader(t *testing.T) {
	needNamespace(t)
	c := newContainer(t, initPrograms(t), map[string]string{"web": "[service]\nExecStart = [[\"sh\", \"-c\", \"touch $DIR/up; exec sleep 1000\"]]\n"})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	full := int(w.Fd())
	if err := unix.SetNonblock(full, true); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := unix.Write(full, make([]byte, 4096)); err != nil {
			break
		}
	}
	if err := unix.SetNonblock(full, false); err != nil {
		t.Fatal(err)
	}
	c.stderr = w
	c.start(w)
	w.Close()
	c.until("web is up", func() bool { return exists(filepath.Join(c.dir, "up")) })
	for range 3 {
		old := c.below(daemonName)
		syscall.Kill(old[0], unix.SIGKILL)
		c.until("there is another daemon", func() bool {
			now := c.below(daemonName)
			return len(now) == 1 && now[0] != old[0] && c.status("web").ActiveState == active
		})
	}
	c.signal(unix.SIGTERM)
	if code := c.wait(); code != 0 {
		t.Errorf("it ends with %d", code)
	}
}

// TestContainerOtherKeeper: a first process that is not PID 1 can be there twice with one home in one boot of the machine. Each starts what is asked of it.
func TestContainerOtherKeeper(t *testing.T) {
	needNamespace(t)
	c := newContainer(t, initPrograms(t), map[string]string{"web": simpleUnit, "other": simpleUnit})
	for _, name := range []string{"web", "other", "web"} {
		c.out = lockedBuffer{}
		c.cmd = exec.Command(filepath.Join(c.bin, initName), "-s", "--start", name)
		c.cmd.Env = append(os.Environ(), "DIAKONOS_HOME="+c.home().path, "DIAKONOS_SERVICE_DIR="+filepath.Join(c.dir, "services"))
		c.begin()
		c.until(name+" is up", func() bool { return strings.Contains(c.out.String(), name+" | up") })
		c.cmd.Process.Signal(syscall.SIGTERM)
		if code := c.wait(); code != 0 {
			t.Errorf("%s: it ends with %d\n%s", name, code, c.out.String())
		}
	}
}

// TestResetIsNoEnd: reset-failed makes a failed service inactive; SuccessAction does not mean that.
func TestResetIsNoEnd(t *testing.T) {
	needNamespace(t)
	c := newContainer(t, initPrograms(t), map[string]string{"web": simpleUnit,
		"bad": "[unit]\nSuccessAction = \"exit\"\n[service]\nExecStart = [[\"sh\", \"-c\", \"exit 3\"]]\n"})
	c.start(nil)
	c.until("bad has failed", func() bool { return c.status("bad").ActiveState == failedUnit })
	if out, err := c.diakonos("reset-failed", "bad"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	old := c.below(daemonName)
	syscall.Kill(old[0], unix.SIGKILL)
	c.until("the next daemon has come up", func() bool { return c.status("web").ActiveState == active && c.status("bad").ActiveState == inactive })
	c.endsWell()
}

// TestContainerUpgrade: below PID 1 daemon and shims become another program, and the daemon that follows a killed one is of that program too.
func TestContainerUpgrade(t *testing.T) {
	needNamespace(t)
	c := newContainer(t, initPrograms(t), map[string]string{"web": "[service]\nExecStart = \"$SVC -print up -lock $DIR/web.lock\"\n"})
	c.start(nil)
	c.until("web is up", func() bool { return c.status("web").ActiveState == active })
	program := filepath.Join(c.bin, "diakonos")
	if err := errors.Join(copyFile(program, program+".new"), os.Rename(program+".new", program)); err != nil {
		t.Fatal(err)
	}
	if out, err := c.diakonos("daemon-upgrade"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	upgraded := func() bool { s := c.status("web"); return s.ActiveState == active && !s.ShimOutdated && s.ShimPID != 0 }
	c.until("the shim is of the new program", upgraded)
	old := c.below(daemonName)
	syscall.Kill(old[0], unix.SIGKILL)
	c.until("the next daemon is of it too", upgraded)
	if n := strings.Count(c.has("web.lock"), "\n"); n != 1 {
		t.Errorf("web was started %d times", n)
	}
	c.endsWell()
}
