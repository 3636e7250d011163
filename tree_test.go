// Role: tests of tree.go on real processes that fork away.
// Runs in: go test.
// Owns: the processes that it starts.
// Uses: tree, state, sys, wire, svc, script, observe.

package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// grove starts svc with these arguments and environment, and waits until it has started all of its children.
func grove(t *testing.T, env []string, args ...string) *exec.Cmd {
	t.Helper()
	file := filepath.Join(t.TempDir(), "up")
	cmd := exec.Command("svc", append(args, "-append", file, "up")...)
	cmd.Env = env
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if !eventually(testPatience, func() bool { b, _ := os.ReadFile(file); return len(b) > 0 }) {
		t.Fatal("svc does not come up")
	}
	if slices.Contains(args, "-fork-away") {
		_ = cmd.Wait() // the first parent
	}
	return cmd
}

// marked lists the live processes that have the mark on their command line.
func marked(mark string) (pids []int) {
	all, _ := processes()
	for _, p := range all {
		if p.state != 'Z' && strings.Contains(commandLine(p), mark) {
			pids = append(pids, p.pid)
		}
	}
	slices.Sort(pids)
	return pids
}

// endMarked ends them and waits until they are gone.
func endMarked(t *testing.T, mark string) {
	t.Helper()
	until(t, mark, func() {
		for _, pid := range marked(mark) {
			_ = signalProcess(refOf(pid), syscall.SIGKILL)
		}
	})
}

// until waits until the processes that have the mark now are gone; end is to end them.
func until(t *testing.T, mark string, end func()) {
	t.Helper()
	for _, pid := range marked(mark) {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		defer unix.Close(fd)
		defer waitReadable(t, fd)
	}
	end()
}

func TestClosureFindsTheTree(t *testing.T) {
	h := home{t.TempDir()}
	base := []string{"PATH=" + os.Getenv("PATH")}
	scoped := append(slices.Clone(base), scopeVariable+"=9-9/outer:"+h.scopeID("web"))
	for _, c := range []struct {
		name    string
		env     []string
		args    []string
		members bool // the record names the main process
		all     bool // every process must be found
	}{
		{"children, by their parent", base, []string{"-spawn", "2"}, true, true},
		{"children in sessions of their own, by their parent", base, []string{"-spawn", "2", "-setsid"}, true, true},
		{"forked away twice, by the environment", scoped, []string{"-fork-away", "-spawn", "2", "-setsid"}, false, true},
		{"children whose parent is not known, by the environment", scoped, []string{"-spawn", "3"}, false, true},
		{"of another service", append(slices.Clone(base), scopeVariable+"="+h.scopeID("web2")), []string{"-spawn", "1"}, false, false},
		{"of the same name in another home", append(slices.Clone(base), scopeVariable+"=9-9/web"), []string{"-spawn", "1"}, false, false},
		{"of nobody", base, []string{"-spawn", "1"}, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			mark := "grove-" + strconv.Itoa(os.Getpid()) + "-" + filepath.Base(t.TempDir()) + strconv.Itoa(len(c.name))
			cmd := grove(t, c.env, append(c.args, "-mark", mark)...)
			defer func() { endMarked(t, mark); _ = cmd.Wait() }()
			tr := tree{home: h, name: "web", adopted: true}
			if c.members {
				tr.members = []pidRef{refOf(cmd.Process.Pid)}
			}
			want := marked(mark)
			if len(want) < 2 {
				t.Fatalf("only %v live", want)
			}
			if !c.all {
				want = nil
			}
			if got, err := tr.closure(); err != nil || !slices.Equal(got, want) {
				t.Errorf("found %v, want %v", got, want)
			}
			if got := tr.list(); !slices.Equal(got, want) {
				t.Errorf("listed %v, want %v", got, want)
			}
		})
	}
}

// TestClosureOfASession: what has shed parent and environment is found by its session while its leader is known.
func TestClosureOfASession(t *testing.T) {
	cmd := exec.Command("sh", "-c", "(sleep 1000 &); (sleep 1000 &); echo up; read x")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	tr := tree{home: home{t.TempDir()}, name: "web", adopted: true, members: []pidRef{refOf(cmd.Process.Pid)}}
	found, _ := tr.closure()
	orphans := 0
	for _, pid := range found {
		if st, err := readStat(pid); err == nil && pid != cmd.Process.Pid && st.ppid != cmd.Process.Pid && st.session == cmd.Process.Pid {
			orphans++
		}
	}
	if orphans != 2 {
		t.Errorf("%d orphans of the session in %v, want 2", orphans, found)
	}
	tr.signal(syscall.SIGKILL)
	in.Close()
	_ = cmd.Wait()
	for _, pid := range found {
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			waitReadable(t, fd)
			unix.Close(fd)
		}
	}
}

// TestSignalReachesAll and spares everybody else.
func TestSignalReachesAll(t *testing.T) {
	h := home{t.TempDir()}
	mark := "all-" + strconv.Itoa(os.Getpid())
	env := []string{"PATH=" + os.Getenv("PATH"), scopeVariable + "=" + h.scopeID("web")}
	cmd := grove(t, env, "-fork-away", "-spawn", "3", "-setsid", "-mark", mark)
	defer cmd.Wait()
	defer endMarked(t, mark)
	bystander := sleeper(t)
	tr := tree{home: h, name: "web", adopted: true}
	if n := len(tr.list()); n != 4 {
		t.Fatalf("%d processes, want the main process and 3 children", n)
	}
	until(t, mark, func() { tr.signal(syscall.SIGKILL) })
	if left := tr.list(); len(left) > 0 {
		t.Errorf("%v are left", left)
	}
	if !processAlive(refOf(bystander.Process.Pid)) {
		t.Error("a bystander was hit")
	}
}

// TestSignalWakesTheStopped: SIGTERM is followed by SIGCONT, or a stopped process would never hear it.
func TestSignalWakesTheStopped(t *testing.T) {
	cmd := sleeper(t)
	ref := refOf(cmd.Process.Pid)
	if err := signalProcess(ref, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	fd, err := openProcess(ref)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	tree{home: home{t.TempDir()}, name: "x", adopted: true, members: []pidRef{ref}}.signal(syscall.SIGTERM)
	waitReadable(t, fd)
}

// TestOursAreNobodysService: a live daemon or shim of this home is never part of a tree, whoever started it; an impostor is.
func TestOursAreNobodysService(t *testing.T) {
	h := home{t.TempDir()}
	if err := os.MkdirAll(h.runDir("web"), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := sleeper(t)
	pid := cmd.Process.Pid
	tr := tree{home: h, name: "web"}
	if tr.isOurs(pid, daemonName) || tr.isOurs(pid, shimName) || tr.isOurs(pid, "sleep") {
		t.Error("a name alone makes it ours")
	}
	if err := os.WriteFile(h.path+"/daemon.pid", pidFileText(pid), 0o600); err != nil {
		t.Fatal(err)
	}
	if !tr.isOurs(pid, daemonName) || tr.isOurs(pid, "sleep") {
		t.Error("the daemon of daemon.pid is not ours")
	}
	boot, _, _ := bootIdentity()
	d := daemonRecord{Boot: boot, Daemon: refOf(pid), Started: 1}
	if err := errors.Join(os.Remove(h.path+"/daemon.pid"), h.writeDaemon(d)); err != nil {
		t.Fatal(err)
	}
	if !tr.isOurs(pid, daemonName) || tr.isOurs(os.Getpid(), daemonName) {
		t.Error("the daemon of daemon.json is not ours, or another is")
	}
	shim := exec.Command("sleep", "1000")
	shim.Dir = h.runDir("web")
	if err := shim.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = shim.Process.Kill(); _ = shim.Wait() }()
	if err := os.WriteFile(h.shimPID("web"), pidFileText(shim.Process.Pid), 0o600); err != nil {
		t.Fatal(err)
	}
	if !tr.isOurs(shim.Process.Pid, shimName) || (tree{home: home{t.TempDir()}}).isOurs(shim.Process.Pid, shimName) {
		t.Error("a shim belongs to the home that it works in, and to no other")
	}
}
