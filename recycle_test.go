// Role: PIDs that come again, in a PID namespace of the tests' own: recorded ones that others have now, and those of another boot.
// Runs in: go test, of which a part runs in the namespace.
// Owns: each test's home, services and namespace.
// Uses: edge, observe, campaign, script, scriptcmd, state.

package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

var recyclings = flag.Int("recyclings", 20, "PIDs that come again in TestRecycledPIDs")

// Environment of the part that runs in the namespace.
const (
	inNamespace   = "DIAKONOS_TEST_NAMESPACE" // its directory
	namespacePIDs = 300                       // from here on PIDs may come again: those of the tests themselves are below
	helperPIDs    = 20_000                    // of those who start processes with PIDs of old
)

// namespace starts this test once more, as PID 1 of a namespace of its own, with a /proc of that.
func namespace(t *testing.T, h *testHome, args ...string) (cmd *exec.Cmd, out *strings.Builder) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	name, _, _ := strings.Cut(t.Name(), "/")
	cmd = exec.Command("unshare", append([]string{"-m", "-p", "-f", "--mount-proc", "--kill-child", exe, "-test.run", "^" + name + "$", "-test.v", "-test.timeout", "1h"}, args...)...)
	cmd.Env = append(os.Environ(), inNamespace+"="+h.dir, "TMPDIR="+h.dir)
	out = new(strings.Builder)
	cmd.Stdout, cmd.Stderr = out, out
	return cmd, out
}

func needNamespace(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "only root can make a PID namespace and choose PIDs")
	}
	if out, err := exec.Command("unshare", "-m", "-p", "-f", "--mount-proc", "sh", "-c", "echo 300 >/proc/sys/kernel/ns_last_pid").CombinedOutput(); err != nil {
		skip(t, fmt.Sprintf("this machine gives no PID namespace: %v: %s", err, out))
	}
}

// insideHome is the home of the part that runs in the namespace.
func insideHome(t *testing.T) *testHome {
	t.Helper()
	dir := os.Getenv(inNamespace)
	svc, err := os.ReadFile(filepath.Join(dir, "svc.path"))
	if err != nil {
		t.Fatal(err)
	}
	return &testHome{t: t, dir: dir, home: filepath.Join(dir, "h"), svc: string(svc), bin: filepath.Dir(string(svc))}
}

// outsideHome makes a home for the namespace.
func outsideHome(t *testing.T) *testHome {
	t.Helper()
	h := newTestHome(t)
	h.must(os.WriteFile(filepath.Join(h.dir, "svc.path"), []byte(h.svc), 0o644))
	return h
}

// nextPID lets the next process have this PID, or one soon after.
func (h *testHome) nextPID(pid int) {
	h.t.Helper()
	h.must(os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0))
}

// recordedPIDs are those of the daemon, the shims and the main processes, as the files say.
func (h *testHome) recordedPIDs() (pids []int) {
	files, _ := filepath.Glob(filepath.Join(h.home, "run/*/*.pid"))
	for _, file := range append(files, filepath.Join(h.home, "daemon.pid")) {
		text, _ := os.ReadFile(file)
		if pid := parsePIDFile(text); pid > 0 {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids)
}

// TestRecycledPIDs: daemon, shims and services are killed, and all their PIDs are given to strangers. No command does anything to these.
func TestRecycledPIDs(t *testing.T) {
	if os.Getenv(inNamespace) != "" {
		recyclePIDs(insideHome(t))
		return
	}
	needNamespace(t)
	h := outsideHome(t)
	cmd, out := namespace(t, h, "-recyclings", strconv.Itoa(*recyclings))
	if err := cmd.Run(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	t.Log(lastLine(strings.TrimSpace(strings.Split(out.String(), "\n--- ")[0])))
}

func recyclePIDs(h *testHome) {
	var names []string
	for i, mode := range []string{"control-group", "mixed", "process", "none", "control-group", "mixed", "process"} {
		names = append(names, fmt.Sprintf("s%d", i))
		kind := "ExecStart = \"$SVC -lock " + h.dir + "/" + names[i] + ".lock"
		switch i {
		case 4:
			kind = "Type = \"notify\"\n" + kind + " -notify READY=1\""
		case 5:
			kind = "Type = \"forking\"\nPIDFile = \"" + h.dir + "/s5.pid\"\n" + kind + " -fork-away -pidfile " + h.dir + "/s5.pid\""
		case 6:
			kind = "Restart = \"always\"\n" + kind + "\""
		default:
			kind += "\""
		}
		h.unit(names[i], "[service]\nKillMode = \""+mode+"\"\n"+kind+"\n")
	}
	done := 0
	for round := 0; done < *recyclings && !h.t.Failed(); round++ {
		h.t.Run(fmt.Sprint(round), func(t *testing.T) {
			h := *h
			h.t = t
			done += h.recycle(round, names)
		})
	}
	h.t.Logf("%d PIDs came again", done)
}

// recycle is one round.
func (h *testHome) recycle(round int, names []string) int {
	h.nextPID(namespacePIDs)
	h.diakonos(append([]string{"start"}, names...)...)
	pids := h.recordedPIDs()
	h.killAll(pids)
	h.nextPID(helperPIDs)
	s := newStrangers(h.t, pids...)
	for _, args := range [][][]string{
		{append([]string{"start"}, names...), append([]string{"restart"}, names...), {"kill"}},
		{{"list"}, append([]string{"stop"}, names...), {"kill"}},
		{{"kill"}},
		{append([]string{"status"}, names...), append([]string{"reset-failed"}, names...), append([]string{"stop"}, names...), {"kill"}},
	}[round%4] {
		out, err := h.command(args...).CombinedOutput()
		if err != nil && args[0] != "status" {
			h.t.Errorf("%s: %v\n%s", args[0], err, out)
		}
		if fault := s.fault(); fault != "" {
			h.t.Errorf("after %s a stranger %s", args[0], fault)
		}
	}
	var left []int // KillMode=none leaves them
	for pid, p := range readProcesses() {
		if isNamed(p, "svc") && strings.Contains(p.command, "-lock "+h.dir) {
			left = append(left, pid)
		}
	}
	h.killAll(left)
	return len(pids)
}

// killAll kills all of these and waits for their ends: all at once, for nobody may heal anything.
func (h *testHome) killAll(pids []int) {
	for _, sig := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGKILL} {
		for _, pid := range pids {
			syscall.Kill(pid, sig)
		}
	}
	for _, pid := range pids {
		if !eventually(testPatience, func() bool { return syscall.Kill(pid, 0) != nil }) {
			h.t.Fatalf("process %d lives on", pid)
		}
	}
}

// TestAnotherBoot: a container ends and is started anew, with the same files, and strangers have the PIDs of old. Exactly the enabled
// units start, oneshots too, also where they were stopped by hand before; and within one boot another daemon starts neither what was
// stopped nor what is finished.
func TestAnotherBoot(t *testing.T) {
	if os.Getenv(inNamespace) != "" {
		h := insideHome(t)
		if _, err := os.Stat(filepath.Join(h.dir, "up")); err != nil {
			h.firstBoot()
		} else {
			h.secondBoot()
		}
		return
	}
	needNamespace(t)
	h := outsideHome(t)
	for name, text := range map[string]string{
		"on":      "ExecStart = \"$SVC -lock DIR/on.lock\"",
		"off":     "ExecStart = \"$SVC -lock DIR/off.lock\"",
		"stopped": "ExecStart = \"$SVC -lock DIR/stopped.lock\"",
		"once":    "Type = \"oneshot\"\nExecStart = \"$SVC -append DIR/once.ran -exit-after 0s x\"",
		"remains": "Type = \"oneshot\"\nRemainAfterExit = true\nExecStart = \"$SVC -append DIR/remains.ran -exit-after 0s x\"",
		"never":   "ExecStart = \"$SVC -lock DIR/never.lock\"",
	} {
		h.unit(name, "[service]\n"+strings.ReplaceAll(text, "DIR", h.dir)+"\n")
	}
	first, out := namespace(t, h)
	h.must(first.Start())
	if !eventually(3*testPatience, func() bool { return exists(filepath.Join(h.dir, "up")) || first.ProcessState != nil }) {
		t.Errorf("the first boot does not come up")
	}
	first.Process.Kill() // and with it its child, PID 1 of the namespace
	first.Wait()
	if t.Failed() {
		t.Fatal(out)
	}
	second, out := namespace(t, h)
	if err := second.Run(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func (h *testHome) started(file string) int {
	text, _ := os.ReadFile(filepath.Join(h.dir, file))
	return strings.Count(string(text), "\n")
}

// is checks states, and how often services were started.
func (h *testHome) is(when string, want map[string]string) {
	h.t.Helper()
	for name, w := range want {
		var got string
		if !eventually(testPatience, func() bool {
			got = fmt.Sprintf("%v %d", h.status(name)["active_state"], max(h.started(name+".lock"), h.started(name+".ran")))
			return got == w
		}) {
			h.t.Errorf("%s: %s is %s, want %s", when, name, got, w)
		}
	}
}

func (h *testHome) firstBoot() {
	h.nextPID(namespacePIDs)
	h.diakonos("start", "on", "off", "stopped", "once", "remains")
	h.diakonos("enable", "on", "stopped", "once", "remains")
	h.diakonos("stop", "stopped")
	want := map[string]string{"on": "active 1", "off": "active 1", "stopped": "inactive 1", "once": "inactive 1", "remains": "active 1", "never": "inactive 0"}
	h.is("at first", want)
	for range 3 {
		h.replaced("@daemon")
		h.is("after the death of the daemon", want)
	}
	if h.t.Failed() {
		return
	}
	h.must(os.WriteFile(filepath.Join(h.dir, "up"), nil, 0o644))
	select {} // until the end of the container
}

func (h *testHome) secondBoot() {
	pids := h.recordedPIDs()
	if len(pids) < 4 {
		h.t.Fatalf("only %v are recorded", pids)
	}
	h.nextPID(helperPIDs)
	s := newStrangers(h.t, pids...)
	h.diakonos("list")
	want := map[string]string{"on": "active 2", "off": "inactive 1", "stopped": "active 2", "once": "inactive 2", "remains": "active 2", "never": "inactive 0"}
	h.is("after the boot", want)
	h.diakonos("stop", "stopped")
	want["stopped"] = "inactive 2"
	h.replaced("@daemon")
	h.is("after the boot, and the death of the daemon", want)
	h.diakonos("kill")
	if fault := s.fault(); fault != "" {
		h.t.Errorf("a stranger with a PID of the first boot %s", fault)
	}
}
