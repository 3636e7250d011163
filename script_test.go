// Role: the test harness: an init over all tests, testscript with the real personalities, script commands.
// Runs in: go test.
// Owns: each script's DIAKONOS_HOME and every process that a script leaves behind.
// Uses: observe, scriptcmd, svc, state, main.

package main

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// testPatience bounds every wait of a test. It is long because a loaded machine is no failure: a test that
// passes never waits for it.
const testPatience = 10 * time.Second

// underInit is set in the environment of the process that runs the tests below testInit.
const underInit = "DIAKONOS_TEST_UNDER_INIT"

// TestMain starts the test binary a second time below itself and becomes the init of that tree: every daemon,
// shim and service whose parent dies falls to it and is reaped at once, as on a real machine. The second
// process runs the tests. A copy of the test binary under a personality's name is that personality.
func TestMain(m *testing.M) {
	commands := map[string]func(){
		"diakonos": main, "diakonosctl": main, "diakonosd": main, "diakonos-run": main, initName: main, tiniName: main, dumbInitName: main,
		"svc": svcMain, "rogue": rogueMain, filteredName: filteredMain,
	}
	_, personality := commands[filepath.Base(os.Args[0])]
	if !personality && os.Getenv(underInit) == "" && !fuzzWorker(os.Args) {
		os.Exit(testInit())
	}
	if personality {
		watchFailpoints()
	} else {
		os.Unsetenv(underInit)
		for _, name := range []string{"DIAKONOS_HOME", "DIAKONOS_SERVICE_DIR", "DIAKONOS_SCOPE", "DIAKONOS_NO_AUTOSTART"} {
			os.Unsetenv(name)
		}
	}
	testscript.Main(openedBin{m}, commands)
}

// fuzzWorker: go test gives workers descriptors 3 and 4, which would not reach a second process.
func fuzzWorker(args []string) bool {
	return slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "-test.fuzzworker") })
}

// openedBin lets other users run the personalities: testscript keeps them in a 0700 directory, and a service
// with User= starts from there.
type openedBin struct{ m testscript.TestingM }

func (b openedBin) Run() int {
	svc, err := exec.LookPath("svc")
	if err != nil {
		panic(err)
	}
	for dir := filepath.Dir(svc); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			panic(err)
		}
	}
	return b.m.Run()
}

// testInit runs the tests in a child, reaps whatever falls to it, and fails the run when a process is left.
func testInit() int {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	runtime.LockOSThread() // Pdeathsig follows the thread (prctl(2)), and this one lives as long as the tests
	child, err := syscall.ForkExec("/proc/self/exe", os.Args, &syscall.ProcAttr{
		Env:   append(os.Environ(), underInit+"=1"),
		Files: []uintptr{0, 1, 2},
		Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		panic(err)
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	go func() {
		for s := range signals {
			syscall.Kill(child, s.(syscall.Signal))
		}
	}()
	code := reapUntil(child)
	if left := reapLeftovers(); left > 0 && code == 0 {
		fmt.Printf("FAIL: %d processes were left when all tests were done\n", left)
		return 1
	}
	return code
}

// reapUntil reaps every child until the one with this PID ends, and returns its exit code.
func reapUntil(child int) int {
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case err == syscall.EINTR || err == nil && pid != child:
			continue
		case err != nil:
			return 1
		case ws.Signaled():
			return 128 + int(ws.Signal())
		}
		return ws.ExitStatus()
	}
}

// reapLeftovers kills and reaps all descendants and returns how many there were at first.
func reapLeftovers() int {
	first := -1
	for {
		left := seenBelow(readProcesses(), []int{os.Getpid()})
		if first < 0 {
			first = len(left)
			for _, p := range left {
				fmt.Printf("left when all tests were done: %s\n", p)
			}
		}
		for _, p := range left {
			syscall.Kill(p.pid, syscall.SIGKILL)
		}
		if _, err := syscall.Wait4(-1, nil, 0, nil); err == syscall.ECHILD {
			return first
		}
	}
}

// skip skips a test for a reason that lies in the machine. Where everything must run (DIAKONOS_TEST_ALL=1) it
// is a failure unless .ci/skips names the test.
func skip(t interface {
	Name() string
	Helper()
	Skip(...any)
	Fatalf(string, ...any)
}, reason string) {
	t.Helper()
	if os.Getenv("DIAKONOS_TEST_ALL") == "1" && !skipAllowed(t.Name()) {
		t.Fatalf("skipped, and .ci/skips does not allow it: %s", reason)
	}
	t.Skip(reason)
}

// skipAllowed: a line of .ci/skips is `TestName reason`.
func skipAllowed(test string) bool {
	text, err := os.ReadFile(".ci/skips")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		name, reason, _ := strings.Cut(strings.TrimSpace(line), " ")
		if name == test && strings.TrimSpace(reason) != "" {
			return true
		}
	}
	return false
}

// TestScript runs the scripts of testdata/script on real processes. A word that starts with [ is a condition.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		Setup:               setupScript,
		Condition:           func(name string) (bool, error) { return machineHas(name) },
		Cmds:                scriptCommands(),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       os.Getenv("DIAKONOS_TEST_UPDATE") == "1",
	})
}

// TestScriptsSkipByRequire: the built-in skip would pass unseen where everything must run.
func TestScriptsSkipByRequire(t *testing.T) {
	files, _ := filepath.Glob("testdata/script/*.txtar")
	if len(files) == 0 {
		t.Fatal("no scripts")
	}
	builtin := regexp.MustCompile(`(?m)^(\[[^\]]*\]\s*)*(skip|stop)\b`)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		commands, _, _ := strings.Cut(string(text), "\n-- ")
		if found := builtin.FindString(commands); found != "" {
			t.Errorf("%s: %q: use `require CONDITION`", file, found)
		}
	}
}

// machineHas tells whether the machine gives what a script needs.
func machineHas(name string) (bool, error) {
	switch name {
	case "root":
		return os.Geteuid() == 0, nil
	case "cgroup2":
		return writableCgroup2() != "", nil
	case "user": // a second user, to whom root can change
		_, err := user.Lookup("nobody")
		_, noTool := exec.LookPath("setpriv")
		return os.Geteuid() == 0 && err == nil && noTool == nil, nil
	case "coredump": // a process of ours that dies of SIGSEGV leaves one
		cmd := exec.Command("sh", "-c", "ulimit -c unlimited; kill -SEGV $$")
		dir, err := os.MkdirTemp("", "")
		if err != nil {
			return false, err
		}
		defer os.RemoveAll(dir)
		cmd.Dir = dir
		cmd.Run()
		return cmd.ProcessState != nil && cmd.ProcessState.Sys().(syscall.WaitStatus).CoreDump(), nil
	case "mount": // a small file system
		return os.Geteuid() == 0 && exec.Command("unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt").Run() == nil, nil
	case "freeze": // a file system that can be frozen, while run/ lies elsewhere
		_, err := exec.LookPath("mkfs.ext4")
		return os.Geteuid() == 0 && err == nil && memoryDirectory() != "" && exists("/dev/loop-control"), nil
	case "unshare": // a private mount namespace
		return os.Geteuid() == 0 && exec.Command("unshare", "-m", "true").Run() == nil, nil
	}
	return false, fmt.Errorf("unknown condition %q", name)
}

// writableCgroup2 returns our own directory in the cgroup2 hierarchy where a child can be made, or "".
func writableCgroup2() string {
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	own, _ := os.ReadFile("/proc/self/cgroup")
	_, path, _ := strings.Cut("\n"+string(own), "\n0::")
	path, _, _ = strings.Cut(path, "\n")
	for line := range strings.Lines(string(mounts)) {
		before, after, _ := strings.Cut(line, " - ")
		if f := strings.Fields(before); strings.HasPrefix(after, "cgroup2 ") && len(f) > 4 {
			dir := filepath.Join(f[4], path)
			if probe, err := os.MkdirTemp(dir, "diakonos-test-"); err == nil {
				os.Remove(probe)
				return dir
			}
		}
	}
	return ""
}

// ---- one script

// scriptState is what the harness knows of one script.
type scriptState struct {
	t        testscript.T
	name     string
	work     string
	home     string
	saved    map[string]seenProcess // by save-pid
	expected int                    // by survivors; -1 = any number
}

type scriptStateKey struct{}

func stateOf(ts *testscript.TestScript) *scriptState {
	s := ts.Value(scriptStateKey{}).(*scriptState)
	s.home = ts.Getenv("DIAKONOS_HOME")
	return s
}

// setupScript gives a script its own home and makes its unit files runnable: $SVC, $BIN and $WORK in files with
// ".service" in their name become paths.
func setupScript(env *testscript.Env) error {
	name := strings.TrimPrefix(filepath.Base(env.WorkDir), "script-")
	s := &scriptState{t: env.T(), name: name, work: env.WorkDir, home: filepath.Join(env.WorkDir, "h"), saved: map[string]seenProcess{}}
	env.Values[scriptStateKey{}] = s
	env.Defer(s.finish)
	svc, err := exec.LookPath("svc")
	if err != nil {
		return err
	}
	env.Setenv("SVC", svc)
	env.Setenv("BIN", filepath.Dir(svc))
	env.Setenv("HOME", filepath.Join(env.WorkDir, "user"))
	env.Setenv("DIAKONOS_HOME", s.home)
	env.Setenv("NO_COLOR", "1")
	for _, dir := range []string{filepath.Dir(env.WorkDir), env.WorkDir} {
		if err := os.Chmod(dir, 0o755); err != nil {
			return err
		}
	}
	if err := os.Mkdir(filepath.Join(env.WorkDir, "user"), 0o755); err != nil {
		return err
	}
	fill := strings.NewReplacer("$SVC", svc, "$WORK", env.WorkDir, "$BIN", filepath.Dir(svc))
	return filepath.WalkDir(env.WorkDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.Contains(d.Name(), ".service") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(path, []byte(fill.Replace(string(text))), 0o644)
	})
}

// finish ends whatever the script left behind, and fails it for processes that it did not declare.
func (s *scriptState) finish() {
	left := s.leftovers()
	eventually(testPatience, func() bool {
		now := s.leftovers()
		for _, p := range now {
			syscall.Kill(p.pid, syscall.SIGKILL)
		}
		return len(now) == 0
	})
	dropMemory(s.work)
	if s.expected < 0 || len(left) == s.expected {
		return
	}
	for _, p := range left {
		s.t.Log("left behind: " + p.String())
	}
	s.t.Fatal(fmt.Sprintf("%d processes were left behind, the script declares %d", len(left), s.expected))
}

// dropMemory removes what the homes below dir have on a tmpfs: it outlives a home that is just deleted.
func dropMemory(dir string) {
	base := memoryDirectory()
	if base == "" {
		return
	}
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error { // best effort
		if err != nil || d.Name() != "run" || d.Type()&fs.ModeSymlink == 0 {
			return nil
		}
		if target, err := os.Readlink(path); err == nil && strings.HasPrefix(target, base+"/diakonos/") {
			os.RemoveAll(target)
		}
		return nil
	})
}

// leftovers finds the live processes of this script by what mentions its directory, and their descendants.
func (s *scriptState) leftovers() []seenProcess {
	marks := []string{s.work}
	if dir, err := os.Readlink(filepath.Join(s.home, "run")); err == nil && !strings.HasPrefix(dir, s.work) {
		marks = append(marks, dir)
	}
	all := readProcesses()
	var found []int
	for pid := range all {
		if pid != os.Getpid() && pid != os.Getppid() && slices.ContainsFunc(marks, all[pid].mentions) {
			found = append(found, pid)
		}
	}
	list := seenBelow(all, found)
	for _, pid := range found {
		if !slices.ContainsFunc(list, func(p seenProcess) bool { return p.pid == pid }) {
			list = append(list, all[pid])
		}
	}
	return list
}
