// Role: files of a home that are deleted at run time, one at a time.
// Runs in: go test.
// Owns: its home and services.
// Uses: edge, observe, campaign, scriptcmd.

package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestDeletedFiles: whatever is deleted from a home at run time, the next command works, the service runs on, and there is one daemon; also
// if the daemon, or the shim, is killed after that.
func TestDeletedFiles(t *testing.T) {
	h := newTestHome(t)
	h.unit("web", "[service]\nExecStart = \"$SVC -lock "+h.dir+"/web.lock\"\n")
	h.unit("bystander", "[service]\nExecStart = \"$SVC -lock "+h.dir+"/bystander.lock\"\n")
	h.diakonos("enable", "web")
	h.diakonos("start", "web", "bystander")
	run, err := filepath.EvalSymlinks(filepath.Join(h.home, "run"))
	h.must(err)
	for _, file := range h.files(run) {
		for _, victim := range []string{"", "@daemon", "shim:web"} {
			t.Run(strings.ReplaceAll(file, "/", "_")+" "+victim, func(t *testing.T) {
				h := *h
				h.t = t
				h.deleted(filepath.Join(h.home, file), victim)
			})
		}
	}
}

// files are those of the home and of one service, without those that only this service's run makes for a moment.
func (h *testHome) files(run string) (list []string) {
	for _, root := range []string{h.home, filepath.Join(run, "web")} {
		h.must(filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || d.Name() == "run" {
				return err
			}
			rel, err := filepath.Rel(h.home, path)
			if rest, ok := strings.CutPrefix(path, run+"/"); ok {
				rel, err = "run/"+rest, nil
			}
			if !strings.Contains(rel, "bystander") {
				list = append(list, rel)
			}
			return err
		}))
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// deleted removes a file and looks what comes of it.
func (h *testHome) deleted(file, victim string) {
	h.t.Helper()
	web := func(cond func(st map[string]any) bool) (st map[string]any, ok bool) {
		ok = eventually(testPatience, func() bool { st = h.status("web"); return cond(st) })
		return st, ok
	}
	if h.command("start", "web").Run() != nil { // after a test that failed
		h.command("stop", "web").Run()
		h.diakonos("start", "web")
	}
	before := h.status("web")
	bystander := h.status("bystander")["main_pid"]
	daemon, err := find(h.home, "@daemon")
	if err != nil {
		daemon = daemonsOf(h.dir)[0]
	}
	p := daemon
	if victim == "shim:web" {
		p, _ = readProcess(int(before["shim_pid"].(float64)))
	}
	os.Remove(file)
	if victim != "" {
		killAndWait(h.t, p)
	}
	if st, ok := web(func(st map[string]any) bool {
		return st["main_pid"] == before["main_pid"] && st["active_state"] == active && st["supervised"] == true
	}); !ok {
		h.t.Errorf("the service was %v and is %v", before, st)
	}
	var found []seenProcess
	if !eventually(testPatience, func() bool { // what it forks has its name for a moment
		found = daemonsOf(h.dir)
		return len(found) == 1 && (victim == "@daemon" || found[0].pid == daemon.pid)
	}) {
		h.t.Errorf("got daemons %v, want one, %v", found, daemon)
	}
	for _, verb := range []string{"restart", "stop", "start"} {
		if out, err := h.command(verb, "web").CombinedOutput(); err != nil {
			h.t.Errorf("%s: %v\n%s", verb, err, out)
		}
	}
	if st, ok := web(func(st map[string]any) bool {
		return st["active_state"] == active && st["main_pid"] != before["main_pid"]
	}); !ok {
		h.t.Errorf("after another start it is %v", st)
	}
	if got := h.status("bystander")["main_pid"]; got != bystander {
		h.t.Errorf("the main process of another service was %v and is %v", bystander, got)
	}
	for _, name := range []string{"web", "bystander"} {
		text, _ := os.ReadFile(filepath.Join(h.dir, name+".lock"))
		if fault := instanceFault(string(text)); fault != "" {
			h.t.Errorf("%s %s", name, fault)
		}
	}
	if !eventually(testPatience, func() bool { found = daemonsOf(h.dir); return len(found) == 1 }) {
		h.t.Errorf("in the end there are daemons %v", found)
	}
}
