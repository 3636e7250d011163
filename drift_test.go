// Role: drift: descriptors, memory and zombies of daemon and shims over many starts and stops, restarts, reloads and deaths.
// Runs in: go test.
// Owns: each test's home and services.
// Uses: edge, observe, scriptcmd, failpoint, trial, sabotage.

package main

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var leakCycles = flag.Int("leak-cycles", 10, "cycles of start and stop, of restarts and of reloads in TestNothingLeaks")

const (
	warmCycles  = 5
	mostMoreKiB = 8192 // private memory: Go collects nothing before the heap has 4 MiB, and doubles it
)

// resources are what a process has.
type resources struct {
	who     string
	pid     int
	fds     map[string]int // by kind
	kiB     int            // private memory
	zombies []int          // children that nobody has reaped
}

var anyNumber = regexp.MustCompile(`\d+`)

// resourcesOf reads what /proc tells of a process.
func resourcesOf(who string, pid int) resources {
	r := resources{who: who, pid: pid, fds: map[string]int{}}
	dir := fmt.Sprintf("/proc/%d/", pid)
	fds, _ := os.ReadDir(dir + "fd")
	for _, fd := range fds {
		target, err := os.Readlink(dir + "fd/" + fd.Name())
		if err == nil {
			r.fds[anyNumber.ReplaceAllString(target, "N")]++
		}
	}
	status, _ := os.ReadFile(dir + "status")
	_, rest, _ := strings.Cut(string(status), "\nRssAnon:")
	if f := strings.Fields(rest); len(f) > 0 {
		r.kiB, _ = strconv.Atoi(f[0])
	}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if st, err := readStat(n); err == nil && st.ppid == pid && st.state == 'Z' {
			r.zombies = append(r.zombies, n)
		}
	}
	return r
}

// driftFrom says what a process has more than before, "" = nothing.
func (r resources) driftFrom(before resources) string {
	switch {
	case r.pid != before.pid:
		return fmt.Sprintf("%s is process %d and was %d", r.who, r.pid, before.pid)
	case !maps.Equal(r.fds, before.fds):
		return fmt.Sprintf("%s has descriptors %v, and had %v", r.who, r.fds, before.fds)
	case len(r.zombies) > 0:
		return fmt.Sprintf("%s has zombies %v", r.who, r.zombies)
	case r.kiB > before.kiB+mostMoreKiB:
		return fmt.Sprintf("%s has %d KiB of memory, and had %d", r.who, r.kiB, before.kiB)
	}
	return ""
}

// driftHome is a home with services for all that is done again and again.
func driftHome(t *testing.T, w *failWatch) *testHome {
	h := newTestHome(t)
	if w != nil {
		h.bin = w.beside
	}
	h.unit("stays", "[service]\nExecReload = \"$SVC -exit-after 1ms\"\nExecStart = \"$SVC -seq "+h.dir+"/seq -seq-every 5ms\"\n")
	h.unit("again", "[service]\nRestart = \"always\"\nRestartSec = 0\nRestartMaxDelaySec = 0.01\nExecStart = \"$SVC -lock "+h.dir+"/again.lock\"\n")
	h.unit("plain", "[service]\nExecStart = \"$SVC -spawn 1 -print x\"\n")
	h.unit("ready", "[service]\nType = \"notify\"\nExecStart = \"$SVC -notify READY=1\"\n")
	h.unit("forks", "[service]\nType = \"forking\"\nPIDFile = \""+h.dir+"/forks.pid\"\nExecStart = \"$SVC -fork-away -pidfile "+h.dir+"/forks.pid\"\n")
	h.unit("once", "[service]\nType = \"oneshot\"\nExecStartPre = \"$SVC -exit-after 0s\"\nExecStart = \"$SVC -print x -exit-after 0s\"\n")
	h.unit("fails", "[service]\nExecStart = \"/nonexistent\"\n")
	h.diakonos("start", "stays", "again")
	return h
}

// drifted does something again and again and says how those who must not change have changed. more: what a process had more in the end.
func (h *testHome) drifted(what string, cycles int, patience time.Duration, who []string, cycle func()) (faults []string, more string) {
	h.t.Helper()
	measure := func() (list []resources) {
		for _, name := range who {
			p, err := find(h.home, name)
			if err != nil {
				h.t.Fatal(err)
			}
			list = append(list, resourcesOf(name, p.pid))
		}
		return list
	}
	for range warmCycles {
		cycle()
	}
	var before []resources
	eventually(testPatience/10, func() bool { // what a command leaves for a moment goes
		last := before
		before = measure()
		for i := range last {
			if !maps.Equal(last[i].fds, before[i].fds) {
				return false
			}
		}
		return last != nil
	})
	for range cycles {
		cycle()
	}
	var after []resources
	eventually(patience, func() bool {
		faults, after = nil, measure()
		for i := range after {
			if fault := after[i].driftFrom(before[i]); fault != "" {
				faults = append(faults, what+": "+fault)
			}
		}
		return faults == nil
	})
	for i := range after {
		more += fmt.Sprintf("; %s %+d KiB to %d, %d descriptors", after[i].who, after[i].kiB-before[i].kiB, after[i].kiB, len(after[i].fds))
	}
	return faults, fmt.Sprintf("%d times %s%s", cycles, what, more)
}

func (h *testHome) startAndStop() {
	h.diakonos("start", "plain", "ready", "forks", "once")
	if h.command("start", "fails").Run() == nil {
		h.t.Error("a program that does not exist was started")
	}
	h.diakonos("stop", "plain", "ready", "forks")
}

// killAndWait kills a process and waits for its end.
func killAndWait(t *testing.T, p seenProcess) {
	t.Helper()
	syscall.Kill(p.pid, syscall.SIGKILL)
	if !eventually(testPatience, func() bool { return isGone(p) }) {
		t.Fatalf("%s lives on", p)
	}
}

// replaced kills a process and waits for its successor.
func (h *testHome) replaced(who string) {
	h.t.Helper()
	p, err := find(h.home, who)
	if err != nil {
		h.t.Fatal(err)
	}
	syscall.Kill(p.pid, syscall.SIGKILL)
	if !eventually(testPatience, func() bool {
		if who == "@daemon" {
			h.command("list").Run()
		}
		now, err := find(h.home, who)
		return err == nil && (now.pid != p.pid || now.start != p.start)
	}) {
		h.t.Fatalf("%s has no successor", who)
	}
}

// TestNothingLeaks: after any number of starts and stops, restarts, reloads, and deaths of the other one, daemon and shims have the
// descriptors that they had, no zombie, and no memory to speak of more.
func TestNothingLeaks(t *testing.T) {
	h := driftHome(t, nil)
	daemonAndShim := []string{"@daemon", "shim:stays"}
	for _, c := range []struct {
		what  string
		each  int // cycles are divided by it
		who   []string
		cycle func()
	}{
		{"start and stop", 1, daemonAndShim, h.startAndStop},
		{"the end of a main process", 1, []string{"@daemon", "shim:again"}, func() { h.replaced("again") }},
		{"reload, status, logs", 1, daemonAndShim, func() {
			h.diakonos("reload", "stays")
			h.diakonos("status", "stays")
			h.diakonos("logs", "-n", "1", "stays")
		}},
		{"the death of a shim", 5, []string{"@daemon"}, func() {
			h.replaced("shim:again")
			if !eventually(testPatience, func() bool { return h.status("again")["supervised"] == true }) {
				t.Fatal("again stays unsupervised")
			}
		}},
		{"the death of the daemon", 5, []string{"shim:stays", "shim:again"}, func() { h.replaced("@daemon") }},
	} {
		faults, more := h.drifted(c.what, max(1, *leakCycles/c.each), testPatience, c.who, c.cycle)
		for _, f := range faults {
			t.Error(f)
		}
		t.Log(more)
	}
	if dirs, _ := filepath.Glob(filepath.Join(h.home, "run/*/*.old.*")); len(dirs) > 0 {
		t.Errorf("left in run/: %v", dirs)
	}
}

// TestDriftIsSeen: a leak in a real daemon or shim is a fault.
func TestDriftIsSeen(t *testing.T) {
	for _, c := range []struct{ role, point, action, want string }{
		{roleDaemon, "shim.start", "leak-a-descriptor", "@daemon has descriptors"},
		{roleShim, "stage.commit", "leak-a-descriptor", "shim:again has descriptors"},
		{roleDaemon, "shim.start", "leak-memory", "@daemon has"},
	} {
		t.Run(c.role+" "+c.action, func(t *testing.T) {
			t.Parallel()
			w := failpointBinaries(t)
			h := driftHome(t, w)
			w.give(failOrder{c.role, c.point, 0, c.action})
			faults, _ := h.drifted("it", 4, testPatience/10, []string{"@daemon", "shim:again"}, func() {
				h.startAndStop()
				h.replaced("again")
			})
			if all := strings.Join(faults, "\n"); !strings.Contains(all, c.want) {
				t.Errorf("got %q, want something with %q", all, c.want)
			}
		})
	}
}

// TestDriftObserver: descriptors, memory and zombies of a process of our own are seen.
func TestDriftObserver(t *testing.T) {
	before := resourcesOf("we", os.Getpid())
	fd, err := unix.Open("/dev/zero", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := resourcesOf("we", os.Getpid()); got.fds["/dev/zero"] != before.fds["/dev/zero"]+1 || got.driftFrom(before) == "" {
		t.Errorf("a descriptor is not seen: %v", got)
	}
	unix.Close(fd)
	m, err := unix.Mmap(-1, 0, 2*mostMoreKiB<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	for i := range m {
		m[i] = 1
	}
	if got := resourcesOf("we", os.Getpid()); got.kiB < before.kiB+mostMoreKiB {
		t.Errorf("memory is not seen: %d KiB, before %d", got.kiB, before.kiB)
	}
	unix.Munmap(m)
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if !eventually(testPatience, func() bool { return len(resourcesOf("we", os.Getpid()).zombies) > 0 }) {
		t.Error("a zombie is not seen")
	}
	cmd.Wait()
}
