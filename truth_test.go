// Role: an observer that compares `list --json` with the process table and with what services wrote themselves, all the time.
// Runs in: go test, in a goroutine of its own beside a kill campaign.
// Owns: nothing.
// Uses: observe, campaign, script, scriptcmd.

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	truthEvery = 100 * time.Millisecond
	truthLimit = time.Second // for a disagreement, in a run that is reported; elsewhere testPatience: a busy machine is no failure
)

// truthWatch looks for disagreements, and how long they last: from the first look that sees one to the first that does not.
type truthWatch struct {
	c       *campaign
	frozen  atomic.Bool // who would have to see a change stands still: nothing counts
	limit   time.Duration
	stop    func()
	longest time.Duration
	what    string // the longest one
	looks   int
}

func (c *campaign) watchTruth() *truthWatch {
	w, over := &truthWatch{c: c, limit: testPatience}, make(chan struct{})
	if *campaignReport != "" {
		w.limit = truthLimit
	}
	var done sync.WaitGroup
	w.stop = sync.OnceFunc(func() { close(over); done.Wait() })
	done.Go(func() { w.run(over) })
	return w
}

// end ends it and judges; it may be called again.
func (w *truthWatch) end() {
	w.c.t.Helper()
	w.stop()
	if w.longest > w.limit {
		w.c.fault("for %v: %s", w.longest, w.what)
		w.longest = 0
	}
}

func (w *truthWatch) run(over chan struct{}) {
	since, last := map[*subject]time.Time{}, map[*subject]string{}
	for tick := time.NewTicker(truthEvery); ; {
		select {
		case <-over:
			tick.Stop()
			return
		case <-tick.C:
		}
		before := w.glance()
		list, err := w.c.list()
		after := w.glance()
		if w.frozen.Load() {
			clear(since)
			continue
		}
		w.looks++
		for s, seen := range after {
			fault := ""
			if err != nil {
				fault = "list: " + err.Error()
			} else if fault = truthFault(s, list[s.name], seen); fault != "" {
				fault = truthFault(s, list[s.name], before[s]) // it may have changed between
			}
			if fault != "" && since[s].IsZero() {
				since[s] = time.Now()
				last[s] = s.name + " " + fault
			}
			if since[s].IsZero() {
				continue
			}
			if d := time.Since(since[s]); d > w.longest {
				w.longest, w.what = d, last[s]
			}
			if fault == "" {
				delete(since, s)
			}
		}
	}
}

// seenSubject is what is seen of a service.
type seenSubject struct {
	all       map[int]seenProcess
	instances string // its lock file
}

func (w *truthWatch) glance() map[*subject]seenSubject {
	all, found := readProcesses(), map[*subject]seenSubject{}
	for _, s := range w.c.subjects {
		text, _ := os.ReadFile(s.file + ".lock")
		found[s] = seenSubject{all, string(text)}
	}
	return found
}

// truthFault says what is wrong with a state that is shown, "" = nothing.
func truthFault(s *subject, st unitStatus, seen seenSubject) string {
	main, alive := seen.all[st.MainPID]
	switch {
	case st.Name == "":
		return "is not listed"
	case st.ActiveState == "active" && st.SubState == "running" && !alive:
		return fmt.Sprintf("is shown as running with PID %d, which does not live", st.MainPID)
	case st.ActiveState == "active" && st.SubState == "running" && !strings.Contains(main.command, s.file+"."):
		return fmt.Sprintf("is shown as running with PID %d, which is %s", st.MainPID, main)
	case st.ActiveState == "active" && st.SubState == "running" && lastPID(seen.instances) != st.MainPID:
		return fmt.Sprintf("is shown as running with PID %d, and wrote %q", st.MainPID, lastLine(seen.instances))
	case st.ActiveState != "inactive" && st.ActiveState != "failed":
		return ""
	case st.MainPID != 0:
		return fmt.Sprintf("is shown as %s with PID %d", st.ActiveState, st.MainPID)
	}
	for _, p := range seen.all {
		if first, _, _ := strings.Cut(p.command, " "); filepath.Base(first) == "svc" && strings.Contains(p.command, s.file+".") {
			return fmt.Sprintf("is shown as %s, and %s lives", st.ActiveState, p)
		}
	}
	return ""
}

func TestTruthObserver(t *testing.T) {
	s := &subject{name: "web", file: "/d/web"}
	all := map[int]seenProcess{7: {pid: 7, command: "/b/svc -lock /d/web.lock"}, 8: {pid: 8, command: "/b/svc -lock /d/web2.lock"}}
	for _, c := range []struct {
		why               string
		name, active, sub string
		pid               int
		instances         string
		all               map[int]seenProcess
		fault             bool
	}{
		{"runs", "web", "active", "running", 7, "7 1 b\n", all, false},
		{"has ended", "web", "inactive", "dead", 0, "7 1 b\n", map[int]seenProcess{8: all[8]}, false},
		{"is about to start", "web", "activating", "auto-restart", 0, "7 1 b\n", nil, false},
		{"is no unit", "", "", "", 0, "", all, true},
		{"is dead and shown as running", "web", "active", "running", 9, "9 1 b\n", all, true},
		{"has another main process", "web", "active", "running", 7, "7 1 b\n9 1 b\n", all, true},
		{"has the PID of another service", "web", "active", "running", 8, "8 1 b\n", all, true},
		{"lives and is shown as dead", "web", "inactive", "dead", 0, "7 1 b\n", all, true},
		{"lives and is shown as failed", "web", "failed", "failed", 0, "7 1 b\n", all, true},
		{"is shown as dead with a PID", "web", "inactive", "dead", 9, "", nil, true},
	} {
		st := unitStatus{Name: c.name, ActiveState: c.active, SubState: c.sub, MainPID: c.pid}
		if got := truthFault(s, st, seenSubject{c.all, c.instances}); (got != "") != c.fault {
			t.Errorf("%s: got %q, want a fault: %t", c.why, got, c.fault)
		}
	}
}

// TestCookieObserver: what has the cookie of a service is found, whatever it is called, and nothing else is.
func TestCookieObserver(t *testing.T) {
	for _, c := range []struct {
		cookie, env string
		want        bool
	}{
		{"TREE_COOKIE=12", "TREE_COOKIE=12", true},
		{"TREE_COOKIE=12", "TREE_COOKIE=123", false},
		{"TREE_COOKIE=12", "X=TREE_COOKIE=12", false},
		{"", "TREE_COOKIE=12", false},
	} {
		cmd := exec.Command("sleep", "1000")
		cmd.Env = []string{"A=b", c.env}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		environ := fmt.Sprintf("/proc/%d/environ", cmd.Process.Pid) // is there a moment after the execve is done
		if !eventually(testPatience, func() bool { text, err := os.ReadFile(environ); return err == nil && len(text) > 0 }) {
			t.Fatal("a process without an environment")
		}
		if got := carries(cmd.Process.Pid, c.cookie); got != c.want {
			t.Errorf("%q in %q: got %t", c.cookie, c.env, got)
		}
		cmd.Process.Kill()
		cmd.Wait()
	}
}
