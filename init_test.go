// Role: tests of the first process of a container: beside tini and dumb-init, with every signal, on a terminal, as PID 1, with orphans.
// Runs in: go test.
// Owns: what each test starts.
// Uses: dialect, init, failcall, script, security.

package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

var initOrphans = flag.Int("init-orphans", 1000, "orphans of TestInitReaps")

// initPrograms is a directory with the released program under its names as a first process.
func initPrograms(t *testing.T) string {
	t.Helper()
	dir := releasedProgram(t)
	for _, name := range []string{initName, tiniName, dumbInitName} {
		if err := os.Symlink("diakonos", filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// ran is what became of a command.
type ran struct {
	code     int
	out, err string
}

func runInit(cmd *exec.Cmd) ran {
	defaultPipe()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run() // the code tells it
	return ran{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// TestInitTakesThePlace runs tini and dumb-init of Debian beside ours, with the same arguments: the same exit codes, the same words.
func TestInitTakesThePlace(t *testing.T) {
	ours := initPrograms(t)
	number := regexp.MustCompile(`\(\d+\)|PID \d+|pid:? '\d+'|pid=\d+`)
	timing := regexp.MustCompile(`(?m)^.*(Received SIGCHLD|No child to reap)\n`) // whether tini sees an end with the signal before that of it
	same := func(s, dir string) string {                                         // what differs by nature: PIDs, directories, the order of two processes' lines
		s = timing.ReplaceAllString(s, "")
		lines := strings.Split(number.ReplaceAllString(strings.ReplaceAll(s, dir+"/", ""), "N"), "\n")
		slices.Sort(lines)
		return strings.Join(lines, "\n")
	}
	help := regexp.MustCompile(`(?m)^(tini \(tini version|dumb-init v|Usage: )`)
	for _, c := range []struct {
		env  string
		call string // words; those in quotes are one
	}{
		{"", `tini true`}, {"", `tini`}, {"", `tini -s -- sh -c "exit 3"`}, {"", `tini -s nosuch`}, {"", `tini -s /etc/passwd`}, {"", `tini -s /`}, {"", `tini -s ""`},
		{"", `tini -s -e 3 -- sh -c "exit 3"`}, {"", `tini -s -e 143 -- sh -c "kill $$"`}, {"", `tini -s -e 127 nosuch`}, {"", `tini -e 300 true`}, {"", `tini -e x true`},
		{"", `tini -p SIGKILL -s true`}, {"", `tini -p TERM true`}, {"", `tini -p SIGNONE true`}, {"", `tini -x true`}, {"", `tini -p`}, {"", `tini -h`},
		{"", `tini --version`}, {"", `tini -- --version`}, {"", `tini true -s`}, {"", `tini true -- -s`}, {"", `tini -s -vvv true`},
		{"", `tini -s -vvv -- sh -c "kill -9 $$"`}, {"", `tini -s -- sh -c "kill -TERM $PPID; sleep 10"`}, {"", `tini -sw -- sh -c "(sleep 0.1 &); sleep 0.5"`},
		{"", `tini -sg -- sh -c "trap 'exit 9' TERM; sleep 10 & kill -TERM $PPID; wait; exit 8"`},
		{"TINI_SUBREAPER=", `tini -v true`}, {"TINI_VERBOSITY=3", `tini -s true`}, {"TINI_VERBOSITY=x", `tini true`}, {"POSIXLY_CORRECT=1", `tini sh -c "exit 4"`},
		{"PATH=/nowhere", `tini -s true`}, {"PATH=", `tini -s true`},
		{"", `dumb-init`}, {"", `dumb-init true`}, {"", `dumb-init -h`}, {"", `dumb-init -V`}, {"", `dumb-init nosuch`}, {"", `dumb-init /etc/passwd`},
		{"", `dumb-init -v sh -c "exit 4"`}, {"", `dumb-init -c -v true`}, {"", `dumb-init -x true`}, {"", `dumb-init --bogus`}, {"", `dumb-init --verb true`},
		{"", `dumb-init --verbose=1 true`}, {"", `dumb-init --rewrite`}, {"", `dumb-init -r`}, {"", `dumb-init -r 1 true`}, {"", `dumb-init -r 70:1 true`}, {"", `dumb-init -r 0:1 true`},
		{"DUMB_INIT_DEBUG=1 DUMB_INIT_SETSID=0", `dumb-init true`}, {"DUMB_INIT_SETSID=0", `dumb-init sh -c "exit 6"`},
		{"", `dumb-init -v -r 15:2 sh -c "trap 'exit 9' INT; kill -TERM $PPID; while :; do sleep 0.05; done"`},
		{"", `dumb-init -v --rewrite 15:0 sh -c "kill -TERM $PPID; sleep 0.2"`},
		{"", `dumb-init -v sh -c "kill -9 $$"`}, {"", `dumb-init sh -c "sleep 0.5; readlink /proc/$PPID/cwd; pwd"`},
		{"", `dumb-init sh -c "test $(ps -o sid= -p $$) = $$ && test $(ps -o pgid= -p $$) = $$"`}, {"", `dumb-init -c sh -c "test $(ps -o pgid= -p $$) = $(ps -o pgid= -p $PPID)"`},
		{"", `tini -s -- sh -c "test $(ps -o sid= -p $$) = $$ || test $(ps -o pgid= -p $$) = $$"`},
	} {
		t.Run(c.env+" "+c.call, func(t *testing.T) {
			t.Parallel()
			words := strings.Split(c.call, `"`)
			args := strings.Fields(words[0])
			if len(words) > 1 {
				args = append(args, words[1])
			}
			theirs, err := exec.LookPath("/usr/bin/" + args[0])
			if err != nil {
				skip(t, "there is no "+args[0]+" to compare with")
			}
			var got [2]ran
			for i, dir := range []string{filepath.Dir(theirs), ours} {
				cmd := exec.Command(filepath.Join(dir, args[0]), args[1:]...)
				cmd.Env = append(os.Environ(), strings.Fields(c.env)...)
				cmd.Dir = t.TempDir()
				got[i] = runInit(cmd)
				got[i].out, got[i].err = same(strings.ReplaceAll(got[i].out, cmd.Dir, "DIR"), dir), same(got[i].err, dir)
				for _, s := range []*string{&got[i].out, &got[i].err} { // the help is in our own words
					if help.MatchString(*s) && !strings.Contains(*s, "-r option takes") && !strings.Contains(*s, "full usage") {
						*s = "help"
					}
				}
			}
			if got[0] != got[1] {
				t.Errorf("it says %+v\nours %+v", got[0], got[1])
			}
		})
	}
}

// defaultPipe: code under test may have had this process ignore SIGPIPE, which its children would inherit; what is handled they do not.
func defaultPipe() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }

// startInit starts a first process and waits until its command has written its PID to the file `pid`.
func startInit(t *testing.T, dir string, cmd *exec.Cmd) (command int) {
	t.Helper()
	defaultPipe()
	cmd.Dir = dir
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if command != 0 {
			_ = syscall.Kill(command, syscall.SIGKILL)
		}
	})
	ok := eventually(testPatience, func() bool {
		text, err := os.ReadFile(filepath.Join(dir, "pid"))
		command, _ = strconv.Atoi(strings.TrimSpace(string(text)))
		return err == nil && strings.HasSuffix(string(text), "\n")
	})
	if !ok {
		t.Fatal("its command does not start")
	}
	return command
}

// trapping is a shell that writes down the signals that it gets, but for those that cannot be caught.
const trapping = `for s in $(seq 64); do case $s in 9|17|19|32|33|34) ;; *) trap "echo $s >>got" $s;; esac; done; echo $$ >pid; while :; do sleep 0.02; done`

// TestInitSendsEverySignal: each signal arrives. SIGPROF is the Go runtime's; it and those of the threads of libraries (32 to 34) do not arrive.
func TestInitSendsEverySignal(t *testing.T) {
	bin := initPrograms(t)
	left := map[string][]int{ // to whom it would have come by default, or who ignores it
		tiniName: {4, 5, 6, 7, 8, 11, 21, 22, 31},
	}
	for _, name := range []string{initName, tiniName, dumbInitName} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			cmd := exec.Command(filepath.Join(bin, name), "sh", "-c", trapping)
			if name == tiniName {
				cmd.Args = slices.Insert(cmd.Args, 1, "--")
			}
			startInit(t, dir, cmd)
			last := 64
			if name == dumbInitName {
				last = 31
			}
			var want []string // without SIGURG
			for sig := 1; sig <= last; sig++ {
				switch {
				case sig == 9 || sig == 17 || sig == 19 || sig == 27 || sig >= 32 && sig <= 34 || slices.Contains(left[name], sig):
					continue
				}
				syscall.Kill(cmd.Process.Pid, syscall.Signal(sig))
				stops := name != tiniName && sig >= 20 && sig <= 22
				if stops { // and it waits for SIGCONT
					if !eventually(testPatience, func() bool { st, err := readStat(cmd.Process.Pid); return err == nil && st.state == 'T' }) {
						t.Fatalf("signal %d does not stop it", sig)
					}
					syscall.Kill(cmd.Process.Pid, syscall.SIGCONT)
				}
				switch {
				case sig == 23:
				case stops && name == dumbInitName: // SIGSTOP, which no trap sees
					want = append(want, "18")
				case stops:
					want = append(want, strconv.Itoa(sig), "18")
				default:
					want = append(want, strconv.Itoa(sig))
				}
				ok := eventually(testPatience, func() bool {
					got, _ := os.ReadFile(filepath.Join(dir, "got"))
					f := strings.Fields(string(got))
					if sig == 23 {
						return slices.Contains(f, "23")
					}
					f = slices.DeleteFunc(f, func(s string) bool { return s == "23" }) // the runtime's own may come between
					if stops && name != dumbInitName && len(f) == len(want) {          // the shell may run both traps in any order
						slices.Sort(f[len(f)-2:])
						slices.Sort(want[len(want)-2:])
					}
					return slices.Equal(f, want)
				})
				if !ok {
					got, _ := os.ReadFile(filepath.Join(dir, "got"))
					t.Fatalf("after signal %d: got %q, want %q", sig, strings.Fields(string(got)), want)
				}
			}
		})
	}
}

// TestInitReaps: orphans become children of the first process and leave no zombie, however many there are.
func TestInitReaps(t *testing.T) {
	bin := initPrograms(t)
	dir := t.TempDir()
	script := fmt.Sprintf(`echo $$ >pid; i=0; while [ $i -lt %d ]; do (true &) ; i=$((i+1)); done; echo done >done; exec sleep 1000`, *initOrphans)
	cmd := exec.Command(filepath.Join(bin, initName), "-s", "sh", "-c", script)
	command := startInit(t, dir, cmd)
	if !eventually(10*time.Minute, func() bool { return exists(filepath.Join(dir, "done")) }) {
		t.Fatal("it does not come to an end")
	}
	ok := eventually(testPatience, func() bool {
		pids, ok := children(cmd.Process.Pid)
		return ok && slices.Equal(pids, []int{command})
	})
	if !ok {
		pids, _ := children(cmd.Process.Pid)
		t.Errorf("children are %v, want %d alone", pids, command)
	}
}

// TestInitOnATerminal: the command has it, before its first instruction, and the terminal's signals with it.
func TestInitOnATerminal(t *testing.T) {
	bin := initPrograms(t)
	for _, dir := range []string{bin, "/usr/bin"} { // theirs do the same
		for _, name := range []string{initName, tiniName, dumbInitName} {
			program := filepath.Join(dir, name)
			t.Run(program, func(t *testing.T) {
				if !exists(program) {
					if name != initName {
						skip(t, "there is no "+name+" to compare with")
					}
					return
				}
				home := t.TempDir()
				ours, theirs := openTerminal(t)
				args := []string{"sh", "-c", `set -- $(ps -o pid=,pgid=,tpgid=,sid= -p $$); [ $1 = $2 ] && [ $1 = $3 ] && echo foreground >front; [ $1 = $4 ] && echo leader >leads; trap 'echo interrupted >int; exit 7' INT; echo $$ >pid; read line; echo "$line" >line; while :; do sleep 0.02; done`}
				if name == tiniName {
					args = slices.Insert(args, 0, "--")
				}
				cmd := exec.Command(program, args...)
				cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, theirs
				cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
				startInit(t, home, cmd)
				theirs.Close()
				said := func(file string) string {
					text, _ := os.ReadFile(filepath.Join(home, file))
					return strings.TrimSpace(string(text))
				}
				if said("front") != "foreground" || (said("leads") == "leader") != (name == dumbInitName) {
					t.Errorf("front %q, leads a session %q", said("front"), said("leads"))
				}
				ours.WriteString("hello\n")
				if !eventually(testPatience, func() bool { return said("line") == "hello" }) {
					t.Error("it cannot read from the terminal")
				}
				ours.WriteString("\x03")
				if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 7 || said("int") != "interrupted" {
					t.Errorf("after ^C it ends with %v", err)
				}
			})
		}
	}
}

// TestInitPassesOn: what was ignored (man 1 nohup) and blocked stays so for the command; and its environment, directory and descriptors.
func TestInitPassesOn(t *testing.T) {
	defaultPipe()
	bin := initPrograms(t)
	for _, name := range []string{initName, tiniName, dumbInitName} {
		look := "cat /proc/self/status; env; pwd; ls -l /proc/self/fd | wc -l"
		through := exec.Command("sh", "-c", `trap "" HUP INT; exec "$@" 2>/dev/null`, "sh", filepath.Join(bin, name), "sh", "-c", look)
		if name == tiniName {
			through.Args = slices.Insert(through.Args, 5, "--")
		}
		direct := exec.Command("sh", "-c", `trap "" HUP INT; exec "$@" 2>/dev/null`, "sh", "sh", "-c", look)
		dir := t.TempDir()
		var got [2]string
		for i, cmd := range []*exec.Cmd{direct, through} {
			cmd.Dir = dir
			runtime.LockOSThread()
			set := signalSet(syscall.SIGUSR1, syscall.SIGTERM)
			if err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, nil); err != nil {
				t.Fatal(err)
			}
			out, err := cmd.Output() // a child has the mask of the thread that forks
			_ = unix.PthreadSigmask(unix.SIG_UNBLOCK, &set, nil)
			runtime.UnlockOSThread()
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(out)) {
				if strings.HasPrefix(line, "Sig") && !strings.HasPrefix(line, "SigQ") || !strings.Contains(line, ":\t") && !strings.HasPrefix(line, "_=") {
					got[i] += line
				}
			}
		}
		if got[0] != got[1] {
			t.Errorf("without %s\n%s\nwith\n%s", name, got[0], got[1])
		}
	}
}

// TestInitAsPID1: in a PID namespace of its own nothing ends it but the end of its command.
func TestInitAsPID1(t *testing.T) {
	if has, _ := machineHas("unshare"); !has || exec.Command("unshare", "-pf", "true").Run() != nil {
		skip(t, "cannot make a PID namespace")
	}
	bin := initPrograms(t)
	for _, name := range []string{initName, tiniName, dumbInitName} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			// A process of the namespace sends PID 1 all that a program can be killed by, then SIGTERM.
			script := `trap "" 1 2 3 4 5 6 7 8 10 11 12 13 14 16 24 25 26 29 30 31; trap "exit 42" TERM; echo 1 >pid; for s in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 16 19 24 25 26 27 29 30 31; do kill -$s 1; done; sleep 0.3; kill -TERM 1; while :; do sleep 0.02; done`
			cmd := exec.Command("unshare", "-pf", filepath.Join(bin, name), "sh", "-c", script)
			if name == tiniName {
				cmd.Args = slices.Insert(cmd.Args, 3, "--")
			}
			cmd.Dir = dir
			got := runInit(cmd)
			if got.code != 42 {
				t.Errorf("got %+v, want 42", got)
			}
			left := exec.Command("unshare", "-pf", filepath.Join(bin, name), "sh", "-c", "sleep 1000 & (sleep 1000 &); exit 3")
			if name == tiniName {
				left.Args = slices.Insert(left.Args, 3, "--")
			}
			if got := runInit(left); got.code != 3 {
				t.Errorf("with processes left it ends with %+v", got)
			}
		})
	}
}

// TestInitParentDeath: -p.
func TestInitParentDeath(t *testing.T) {
	bin := initPrograms(t)
	dir := t.TempDir()
	parent := exec.Command("sh", "-c", `"$0" -s -p USR1 sh -c 'trap "echo USR1 >got; exit 0" USR1; echo $$ >pid; while :; do sleep 0.02; done' & wait`, filepath.Join(bin, initName))
	startInit(t, dir, parent)
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if !eventually(testPatience, func() bool { return exists(filepath.Join(dir, "got")) }) {
		t.Error("the end of its parent is not told")
	}
}

// TestInitOptions is our own command line.
func TestInitOptions(t *testing.T) {
	for _, c := range []struct {
		args, want string // what it is to do, or the error
	}{
		{"true", "[true]"}, {"-gsw true -g", "g s w [true -g]"}, {"-- -x", "[-x]"}, {"-p TERM true", "p15 [true]"}, {"-pSIGKILL true", "p9 [true]"},
		{"-e 3 -e 143 true", "e3 e143 [true]"}, {"-r TERM:INT -r HUP:0 -r 10:12 true", "1:0 10:12 15:2 [true]"}, {"-vv true", "v3 [true]"},
		{"", "no command is given, and only the first process of a container (PID 1), or one with -s, keeps services"}, {"-e", "option requires an argument -- 'e'"}, {"-e 256 true", "-e wants an exit code from 0 to 255, not \"256\""},
		{"-r TERM true", "-r wants two signals, such as TERM:INT, not \"TERM\""}, {"-r TERM:FOO true", "-r: unknown signal \"FOO\""}, {"-p term true", "-p: unknown signal \"term\", did you mean \"TERM\"?"},
		{"-z true", "invalid option -- 'z'"}, {"--group true", "unrecognized option '--group'"},
	} {
		call := newInitCall(initName, ownDialect())
		a := parseOwn(call, strings.Fields(c.args))
		var got string
		if a != nil {
			got, _, _ = strings.Cut(strings.TrimPrefix(a.err, initName+": "), "\n")
		} else {
			got = call.text()
		}
		if got != c.want {
			t.Errorf("%q: got %q, want %q", c.args, got, c.want)
		}
	}
}

// text is a call in short.
func (c *initCall) text() string {
	var words []string
	for flag, set := range map[string]bool{"g": c.group, "s": c.subreaper, "w": c.tellsReaped, "p" + strconv.Itoa(int(c.parentDeath)): c.parentDeath != 0,
		"v" + strconv.Itoa(c.verbosity): c.verbosity != levelWarn} {
		if set {
			words = append(words, flag)
		}
	}
	slices.Sort(words)
	for code, set := range c.success {
		if set {
			words = append(words, "e"+strconv.Itoa(code))
		}
	}
	for from, to := range c.rewrite {
		if int(to) != from {
			words = append(words, fmt.Sprintf("%d:%d", from, to))
		}
	}
	return strings.Join(append(words, fmt.Sprint(c.command)), " ")
}

// awaitChild waits for the end of a child and does not reap it.
func awaitChild(pid int) {
	var info [128]byte
	_, _, _ = unix.Syscall6(unix.SYS_WAITID, unix.P_PID, uintptr(pid), uintptr(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOWAIT, 0, 0)
}

// TestInitAllocatesNothing: signals and orphans cost no memory, for ever.
func TestInitAllocatesNothing(t *testing.T) {
	for _, name := range []string{initName, tiniName, dumbInitName} {
		c := newInitCall(name, dialectOf(name))
		if a := c.dialect.parse(c, []string{"sleep"}); a != nil {
			t.Fatal(a.err)
		}
		cmd := exec.Command("sleep", "1000")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		i := initLoop{call: c, pid: cmd.Process.Pid}
		if n := testing.AllocsPerRun(100, func() { i.forward(unix.SIGWINCH) }); n != 0 {
			t.Errorf("%s: a signal allocates %v times", name, n)
		}
		orphan := func() {
			pid, err := syscall.ForkExec("/bin/true", []string{"true"}, &syscall.ProcAttr{})
			if err != nil {
				t.Fatal(err)
			}
			awaitChild(pid)
		}
		without := testing.AllocsPerRun(20, orphan)
		if n := testing.AllocsPerRun(20, func() { orphan(); i.reap() }); n > without {
			t.Errorf("%s: an orphan allocates %v times", name, n-without)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

// FuzzInitCall: whatever a first process is called with, it is a command or an answer, with an exit code.
func FuzzInitCall(f *testing.F) {
	for _, s := range []string{"-g true", "-e 3 -r TERM:INT -- x", "--version", "-r 15:0 x", "--rewrite=1:2 y", "-vvv", "-p SIGKILL -l", "-", "--", "-e", "--verb a", "-s", "-s --start a,b --grace 5s --exit-when-idle --log-format json -- x", "--grace x", "-s --start /"} {
		f.Add(s)
	}
	f.Setenv("HOME", f.TempDir()) // whose units are enabled does not matter
	f.Fuzz(func(t *testing.T, line string) {
		args := strings.Split(line, " ")
		for _, name := range []string{initName, tiniName, dumbInitName} {
			c := newInitCall(name, dialectOf(name))
			switch a := c.dialect.parse(c, args); {
			case a == nil && len(c.command) == 0 && !c.keeps:
				t.Errorf("%s %q is neither a command nor an answer, nor is anything kept", name, args)
			case a != nil && (a.code < 0 || a.code > 2 || a.code != 0 && a.err == ""):
				t.Errorf("%s %q ends with %+v", name, args, a)
			}
		}
	})
}
