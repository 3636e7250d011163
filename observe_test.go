// Role: what tests see of processes and logs from outside, without asking the program.
// Runs in: go test.
// Owns: nothing.
// Uses: script, scriptcmd.

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"

	"github.com/rogpeppe/go-internal/testscript"
)

// process is a live process: PID and start time identify it.
type seenProcess struct {
	pid, parent int
	start       string // clock ticks since boot, field 22 of proc_pid_stat(5)
	command     string
}

func (p seenProcess) String() string { return fmt.Sprintf("%d %s", p.pid, p.command) }

// mentions tells whether command line, environment, working directory or an open file of p names the path.
func (p seenProcess) mentions(path string) bool {
	dir := fmt.Sprintf("/proc/%d/", p.pid)
	environ, _ := os.ReadFile(dir + "environ")
	cwd, _ := os.Readlink(dir + "cwd")
	if namesPath(p.command, path) || namesPath(string(environ), path) || namesPath(cwd, path) {
		return true
	}
	fds, _ := os.ReadDir(dir + "fd")
	return slices.ContainsFunc(fds, func(fd os.DirEntry) bool {
		target, _ := os.Readlink(dir + "fd/" + fd.Name())
		return namesPath(target, path)
	})
}

// namesPath: the text has the path, or one below it; /tmp/web_2 is neither for /tmp/web.
func namesPath(text, path string) bool {
	for {
		_, rest, found := strings.Cut(text, path)
		if !found || rest == "" || !unicode.IsLetter(rune(rest[0])) && !unicode.IsDigit(rune(rest[0])) && !strings.ContainsRune("_-.", rune(rest[0])) {
			return found
		}
		text = rest
	}
}

// readProcess reads one process; a zombie is gone.
func readProcess(pid int) (seenProcess, bool) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	end := strings.LastIndexByte(string(stat), ')')
	if err != nil || end < 0 {
		return seenProcess{}, false
	}
	f := strings.Fields(string(stat[end+1:])) // f[0] is field 3, the state
	if len(f) < 20 || f[0] == "Z" || f[0] == "X" {
		return seenProcess{}, false
	}
	parent, _ := strconv.Atoi(f[1])
	line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	command := strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " "))
	return seenProcess{pid: pid, parent: parent, start: f[19], command: command}, true
}

func readProcesses() map[int]seenProcess {
	all := map[int]seenProcess{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			if p, ok := readProcess(pid); ok {
				all[pid] = p
			}
		}
	}
	return all
}

// descendants returns the live descendants of roots, without the roots.
func seenBelow(all map[int]seenProcess, roots []int) []seenProcess {
	in := map[int]bool{}
	for _, r := range roots {
		in[r] = true
	}
	var list []seenProcess
	for grown := true; grown; {
		grown = false
		for _, pid := range slices.Sorted(maps.Keys(all)) {
			if !in[pid] && in[all[pid].parent] {
				in[pid], grown = true, true
				list = append(list, all[pid])
			}
		}
	}
	return list
}

// eventually polls until ok, in tests only: what is waited for must hold within testPatience.
func eventually(limit time.Duration, ok func() bool) bool {
	for deadline := time.Now().Add(limit); ; time.Sleep(2 * time.Millisecond) {
		if ok() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// logText returns the text of all records of a unit, oldest first.
func logText(home, unit string) ([]string, error) {
	var r logReading
	rotated, err := r.readRotated(home, unit)
	if err != nil {
		return nil, err
	}
	current, err := r.readCurrent()
	return append(rotated, current...), err
}

// logReading is how far a log has been read, from the files themselves. Rotated files never change, so each is read once.
type logReading struct {
	newest  string            // name of the newest rotated file that was read; "" = none
	partial map[string]string // by stream: what a line has so far
	current *os.File          // as it was before the others were listed; nil = there was none
}

// readRotated returns the lines of the rotated files that were not read yet. Names are times, so name order is age order. `current` is
// opened first: what is rotated while we read is newer than it, and not part of this reading.
func (r *logReading) readRotated(home, unit string) (lines []string, err error) {
	if r.partial == nil {
		r.partial = map[string]string{}
	}
	dir := filepath.Join(home, "log", unit)
	var present os.FileInfo
	if r.current, err = os.Open(filepath.Join(dir, "current")); err == nil {
		present, err = r.current.Stat()
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.Name() <= r.newest || e.Name() == "current" {
			continue
		}
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // only so many are kept
		}
		if err != nil {
			return nil, err
		}
		if st, err := f.Stat(); err == nil && present != nil && os.SameFile(st, present) {
			f.Close()
			break
		}
		some, err := r.lines(f)
		if err != nil {
			return nil, err
		}
		lines, r.newest = append(lines, some...), e.Name()
	}
	return lines, nil
}

// readCurrent returns the lines of the file that was the current one. What it has read is not rotated yet, so r is of no use afterwards.
func (r *logReading) readCurrent() ([]string, error) {
	if r.current == nil {
		return nil, nil
	}
	return r.lines(r.current)
}

// lines reads records to the end of a file, and closes it.
func (r *logReading) lines(f *os.File) (lines []string, err error) {
	defer f.Close()
	in := bufio.NewReaderSize(f, 1<<20)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return lines, nil
		}
		part := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4) // stamp stream F text
		if len(part) != 4 {
			return nil, fmt.Errorf("%s: not a record: %q", f.Name(), line)
		}
		r.partial[part[1]] += part[3]
		if part[2] != "P" {
			lines, r.partial[part[1]] = append(lines, r.partial[part[1]]), ""
		}
	}
}

// TestLeftovers: what left its parent and session is found by its directory, its command line or its
// environment, together with its children; other processes are not.
func TestLeftovers(t *testing.T) {
	svc, err := exec.LookPath("svc")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		why  string
		args []string
		cwd  bool
		env  string
		want int
	}{
		{"its working directory", []string{"-fork-away"}, true, "", 1},
		{"its command line", []string{"-fork-away", "-mark", "DIR/x"}, false, "", 1},
		{"its environment", []string{"-fork-away"}, false, "HERE=DIR/y", 1},
		{"its parent", []string{"-fork-away", "-spawn", "2", "-setsid"}, true, "", 3},
		{"nothing", []string{"-fork-away", "-pidfile", "/proc/self/nowhere"}, false, "", 0},
	} {
		dir := t.TempDir()
		cmd := exec.Command(svc)
		for _, a := range c.args {
			cmd.Args = append(cmd.Args, strings.Replace(a, "DIR", dir, 1))
		}
		cmd.Env = []string{strings.Replace(c.env, "DIR", dir, 1)}
		cmd.Dir = "/"
		if c.cwd {
			cmd.Dir = dir
		}
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		failures := &countFailures{}
		s := &scriptState{t: failures, work: dir, home: filepath.Join(dir, "h")}
		if got := len(s.leftovers()); got != c.want {
			t.Errorf("by %s: got %d processes, want %d", c.why, got, c.want)
		}
		s.finish()
		if failures.n != min(c.want, 1) {
			t.Errorf("by %s: got %d failures, want %d", c.why, failures.n, min(c.want, 1))
		}
		if left := s.leftovers(); len(left) != 0 {
			t.Errorf("by %s: still there: %v", c.why, left)
		}
	}
	if !eventually(testPatience, func() bool { // the one that nothing gives away, once it has come to its new parent
		for _, p := range readProcesses() {
			above := p.parent == os.Getppid() || p.parent == os.Getpid() // a test may have made us a subreaper
			if strings.Contains(p.command, "/proc/self/nowhere") && above {
				return syscall.Kill(p.pid, syscall.SIGKILL) == nil
			}
		}
		return false
	}) {
		t.Error("the process that nothing gives away is nowhere")
	}
}

// countFailures is a testscript.T that notes failures.
type countFailures struct {
	testscript.T
	n int
}

func (c *countFailures) Log(...any)   {}
func (c *countFailures) Fatal(...any) { c.n++ }

// TestObservers: the tests' own view of logs and sequences, on files made by hand.
func TestObservers(t *testing.T) {
	home := t.TempDir()
	dir := filepath.Join(home, "log/web")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	stamp := "2026-11-22T18:00:00.123456789Z "
	for name, text := range map[string]string{
		"20261122T180000.123456789Z": stamp + "stdout F seq 1\n" + stamp + "stdout P se",
		"20261122T190000.123456789Z": stamp + "stdout F seq 3\n",
		"current":                    stamp + "stderr F \n" + stamp + "stdout P a b\n" + stamp + "stderr F other\n" + stamp + "stdout F  c\n" + stamp + "stdout F unfinished",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	lines, err := logText(home, "web")
	if want := []string{"seq 1", "seq 3", "", "other", "a b c"}; err != nil || !slices.Equal(lines, want) {
		t.Errorf("got %q (%v), want %q", lines, err, want)
	}
	for _, c := range []struct {
		why   string
		lines []string
		last  uint64
		bad   bool
	}{
		{"whole", []string{"up", "seq 1", "x", "seq 2"}, 2, false},
		{"doubled", []string{"seq 1", "seq 1"}, 1, true},
		{"lost", []string{"seq 1", "seq 3"}, 1, true},
		{"torn", []string{"seq 1", "seq 2seq 3"}, 1, true},
		{"not from the start", []string{"seq 2"}, 0, true},
	} {
		if last, err := wholeSequence(c.lines); last != c.last || (err != nil) != c.bad {
			t.Errorf("%s: got %d, %v", c.why, last, err)
		}
	}
}
