// Role: edges that a script cannot reach: many clients at once, clients that misbehave, a full disk or one that hangs, a daemon without
// descriptors, a thousand units.
// Runs in: go test.
// Owns: each test's home and services.
// Uses: observe, script, scriptcmd.

package main

import (
	"encoding/json"
	"flag"
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

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// testHome is a home with a service directory for a test in Go.
type testHome struct {
	t    *testing.T
	dir  string // holds h and services
	home string
	svc  string              // absolute path of the fixture service
	bin  string              // directory of the program; "" = the one of PATH
	user *syscall.Credential // who gives commands; nil = we
}

func newTestHome(t *testing.T) *testHome {
	t.Helper()
	svc, err := exec.LookPath("svc")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "diakonos-test-") // shorter than t.TempDir: sockets lie in it
	if err != nil {
		t.Fatal(err)
	}
	h := &testHome{t: t, dir: dir, home: filepath.Join(dir, "h"), svc: svc}
	t.Cleanup(h.end)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "services"), 0o755); err != nil {
		t.Fatal(err)
	}
	return h
}

// unit writes one unit file; $SVC becomes the fixture service.
func (h *testHome) unit(name, text string) {
	h.t.Helper()
	file := filepath.Join(h.dir, "services", name+".service")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(text, "$SVC", h.svc)), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

// command is a client of this home.
func (h *testHome) command(args ...string) *exec.Cmd {
	return h.program("diakonos", args...)
}

// program is a personality of the binary.
func (h *testHome) program(name string, args ...string) *exec.Cmd {
	if h.bin != "" {
		name = filepath.Join(h.bin, name)
	}
	cmd := exec.Command(name, args...)
	cmd.Dir = h.dir
	cmd.Env = append(os.Environ(), "DIAKONOS_HOME="+h.home, "NO_COLOR=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: h.user}
	return cmd
}

// diakonos runs a command that must succeed and returns all its output.
func (h *testHome) diakonos(args ...string) string {
	h.t.Helper()
	out, err := h.command(args...).CombinedOutput()
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(h.home, "daemon.log"))
		h.t.Fatalf("diakonos %s: %v\n%s\ndaemon.log:\n%s", strings.Join(args, " "), err, out, tail(log, 4000))
	}
	return string(out)
}

// status returns the unit's object of status --json.
func (h *testHome) status(unit string) map[string]any {
	h.t.Helper()
	out, _ := h.command("--json", "status", unit).Output()
	var list []map[string]any
	if err := json.Unmarshal(out, &list); err != nil || len(list) != 1 {
		h.t.Fatalf("cannot read status of %s: %v\n%s", unit, err, out)
	}
	return list[0]
}

// end stops everything of the test, and fails it when something is left.
func (h *testHome) end() {
	if out, err := h.command("kill").CombinedOutput(); err != nil {
		h.t.Errorf("diakonos kill: %v\n%s", err, out)
	}
	s := &scriptState{t: goTest{h.t}, name: h.t.Name(), work: h.dir, home: h.home}
	s.finish()
	os.RemoveAll(h.dir)
}

// goTest lets the scripts' reaper fail an ordinary test.
type goTest struct{ *testing.T }

func (t goTest) Run(string, func(testscript.T)) {}
func (t goTest) Verbose() bool                  { return testing.Verbose() }

var coldStarts = flag.Int("cold-starts", 1, "homes in TestColdStart")

// TestColdStart: 50 commands at once on a home that does not exist start one daemon, and all succeed.
func TestColdStart(t *testing.T) {
	for n := range *coldStarts {
		t.Run(strconv.Itoa(n), coldStart)
	}
}

func coldStart(t *testing.T) {
	h := newTestHome(t)
	units := []string{"a", "b", "c", "d", "e"}
	for _, u := range units {
		h.unit(u, "[service]\nExecStart = \"$SVC -lock inst."+u+"\"\n")
	}
	commands := [][]string{{"list"}, {"status"}, {"start", "a"}, {"start", "b"}, {"start", "c"}, {"start", "d"}, {"start", "e"}, {"start", "e", "a"}, {"enable", "a"}, {"reset-failed", "b"}}
	var wg sync.WaitGroup
	for n := range 50 {
		args := commands[n%len(commands)]
		wg.Go(func() {
			if out, err := h.command(args...).CombinedOutput(); err != nil {
				t.Errorf("diakonos %s: %v\n%s", strings.Join(args, " "), err, out)
			}
		})
	}
	wg.Wait()
	if found := daemonsOf(h.dir); len(found) != 1 {
		t.Errorf("got daemons %v, want one", found)
	}
	for _, u := range units {
		if st := h.status(u); st["active_state"] != "active" {
			t.Errorf("%s: got %v, want active", u, st["active_state"])
		}
		inst, _ := os.ReadFile(filepath.Join(h.dir, "inst."+u))
		if lines := strings.Count(string(inst), "\n"); lines != 1 || strings.Contains(string(inst), "DUP") {
			t.Errorf("%s: got starts %q, want one", u, inst)
		}
	}
}

// dial connects to a Unix socket; its path may be longer than an address can be, so it goes by a descriptor.
func dial(t *testing.T, socket string) *os.File {
	t.Helper()
	dir, err := os.Open(filepath.Dir(socket))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(socket))}); err != nil {
		t.Fatalf("cannot connect to %s: %v", socket, err)
	}
	return os.NewFile(uintptr(fd), socket)
}

// TestRubbish: whatever a client sends, and however little it reads, daemon and shim serve the next one.
func TestRubbish(t *testing.T) {
	h := newTestHome(t)
	h.unit("web", "[service]\nExecStart = \"$SVC\"\n")
	h.diakonos("start", "web")
	main := h.status("web")["main_pid"]
	daemons := daemonsOf(h.dir)
	request := `{"proto":1,"verb":"list","service_dir":"` + h.dir + `/services"}` + "\n"
	for _, c := range []struct{ why, text string }{
		{"nothing", ""},
		{"no JSON", "GET / HTTP/1.1\r\n\r\n"},
		{"bytes of every kind", "\x00\xff\x1b\n\x00\n"},
		{"an unfinished line", `{"proto":1,"verb":"li`},
		{"a line over the limit", strings.Repeat("x", 2<<20)},
		{"wrong types", `{"proto":"one","verb":7,"names":{}}` + "\n"},
		{"deep nesting", strings.Repeat("[", 100000) + "\n"},
		{"an unknown verb", `{"proto":1,"verb":"explode"}` + "\n"},
		{"names that are none", `{"proto":1,"verb":"start","names":["../../x","","/etc/passwd"],"service_dir":"/"}` + "\n"},
		{"another protocol version", `{"proto":99,"verb":"list"}` + "\n"},
		{"requests without end, nothing read", strings.Repeat(request, 20000)},
	} {
		for _, socket := range []string{"daemon.sock", "run/web/shim.sock"} {
			conn := dial(t, filepath.Join(h.home, socket))
			syscall.SetNonblock(int(conn.Fd()), true) // a full socket is left full, as by a client that hangs
			for rest := []byte(c.text); len(rest) > 0; {
				n, err := syscall.Write(int(conn.Fd()), rest)
				if err != nil {
					break
				}
				rest = rest[n:]
			}
			t.Cleanup(func() { conn.Close() }) // open until the end: it reads nothing meanwhile
		}
		if st := h.status("web"); st["main_pid"] != main || st["active_state"] != "active" {
			t.Fatalf("after %s: %v", c.why, st)
		}
	}
	if now := daemonsOf(h.dir); !slices.Equal(now, daemons) {
		t.Errorf("got daemons %v, want still %v", now, daemons)
	}
	log, _ := os.ReadFile(filepath.Join(h.home, "daemon.log"))
	if strings.Contains(string(log), "goroutine ") {
		t.Errorf("daemon.log shows a panic:\n%s", tail(log, 4000))
	}
}

// TestFullDisk: with the home on a full disk, run/ on it too or elsewhere, daemon and shims come back, and what runs can be stopped.
func TestFullDisk(t *testing.T) {
	for _, runThere := range []bool{false, true} {
		t.Run(fmt.Sprintf("run=%t", runThere), func(t *testing.T) {
			h := newTestHome(t)
			if err := os.Mkdir(h.home, 0o700); err != nil {
				t.Fatal(err)
			}
			fill := smallDisk(t, h.home, 1024)
			t.Cleanup(func() { h.diakonos("kill") }) // before the disk goes
			if runThere {
				if err := os.Mkdir(filepath.Join(h.home, "run"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			h.unit("web", "[service]\nExecStart = \"$SVC -lock inst.web\"\n")
			h.unit("late", "[service]\nExecStart = \"$SVC\"\n")
			h.diakonos("start", "web")
			first := h.status("web")
			fill()
			for _, victims := range [][]string{{"@daemon"}, {"shim:web"}, {"@daemon", "shim:web"}} {
				for _, who := range victims {
					p, err := find(h.home, who)
					if err != nil {
						t.Fatal(err)
					}
					syscall.Kill(p.pid, syscall.SIGKILL)
				}
				var now map[string]any
				if !eventually(testPatience, func() bool {
					now = h.status("web")
					return now["shim_pid"] != first["shim_pid"] && now["shim_pid"] != 0.0 || victims[0] == "@daemon" && len(victims) == 1
				}) || now["main_pid"] != first["main_pid"] || now["supervised"] == false {
					t.Errorf("after the death of %s: got %v, want main process %v and another shim than %v", victims, now, first["main_pid"], first["shim_pid"])
				}
				first["shim_pid"] = now["shim_pid"]
			}
			out, err := h.command("start", "late").CombinedOutput()
			if failed := err != nil; failed != runThere || failed && !strings.Contains(string(out), "no space left on device") {
				t.Errorf("start late: %v\n%s", err, out)
			}
			h.diakonos("stop", "web")
			if st := h.status("web"); st["active_state"] != "inactive" {
				t.Errorf("after stop: got %v", st)
			}
		})
	}
}

// hungDisk mounts a file system at dir; freeze makes all that writes to it hang, until the test ends or thaw is called.
func hungDisk(t *testing.T, dir string) (freeze, thaw func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "only root can mount and freeze a file system")
	}
	image := dir + ".img"
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 16<<20); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"mkfs.ext4", "-q", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			skip(t, fmt.Sprintf("a file system to freeze cannot be made here: %s: %v: %s", args[0], err, out))
		}
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	ioctl := func(request uint) error { // FIFREEZE, FITHAW: linux/fs.h
		d, err := os.Open(dir)
		if err != nil {
			return err
		}
		defer d.Close()
		return unix.IoctlSetInt(int(d.Fd()), request, 0)
	}
	thaw = func() { _ = ioctl(0xc0045878) } // it may have thawed already
	t.Cleanup(thaw)
	return func() {
		t.Helper()
		if err := ioctl(0xc0045877); err != nil {
			skip(t, "a file system cannot be frozen here: "+err.Error())
		}
	}, thaw
}

// TestHungDisk: while the home's disk hangs, a service that prints goes on, is seen, can be stopped and started again, and what it printed is logged.
func TestHungDisk(t *testing.T) {
	h := newTestHome(t)
	if err := os.Mkdir(h.home, 0o700); err != nil {
		t.Fatal(err)
	}
	freeze, thaw := hungDisk(t, h.home)
	if memoryDirectory() == "" {
		skip(t, "run/ cannot lie on another disk here")
	}
	t.Cleanup(func() { thaw(); h.diakonos("kill") }) // before the disk goes
	h.unit("web", "[service]\nExecStart = \"$SVC -seq "+h.dir+"/seq -seq-every 10ms -seq-burst 100\"\n")
	h.diakonos("start", "web")
	freeze()
	frozen, err := readCounter(h.dir + "/seq")
	if err != nil {
		t.Fatal(err)
	}
	const more = 10_000 // lines: more than a pipe takes
	if !eventually(3*testPatience, func() bool { n, err := readCounter(h.dir + "/seq"); return err == nil && n > frozen+more }) {
		n, _ := readCounter(h.dir + "/seq")
		t.Errorf("the service is blocked after %d lines", n-frozen)
	}
	for _, verb := range []string{"status", "stop", "start", "stop"} {
		cmd := h.command(verb, "web")
		hangs := time.AfterFunc(testPatience, func() { cmd.Process.Kill() })
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", verb, err, out)
		}
		hangs.Stop()
	}
	thaw()
	h.diakonos("start", "web")
	if !eventually(testPatience, func() bool {
		return strings.Contains(h.diakonos("logs", "web"), "seq "+strconv.FormatUint(frozen, 10)+"\n")
	}) {
		t.Errorf("the log lacks line %d, written before the disk hung", frozen)
	}
}

// TestThousandUnits: the catalogue of a large directory is answered whole and in order.
func TestThousandUnits(t *testing.T) {
	h := newTestHome(t)
	for n := range 1000 {
		h.unit(fmt.Sprintf("unit-%04d", n), "[service]\nExecStart = \"$SVC\"\n")
	}
	h.diakonos("check")
	out, err := h.command("--json", "list").Output()
	if err != nil {
		t.Fatal(err)
	}
	var list []struct {
		Name        string `json:"name"`
		ActiveState string `json:"active_state"`
	}
	if err := json.Unmarshal(out, &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 1000 {
		t.Fatalf("got %d units, want 1000", len(list))
	}
	for n, u := range list {
		if want := fmt.Sprintf("unit-%04d", n); u.Name != want || u.ActiveState != "inactive" {
			t.Fatalf("unit %d: got %s %s, want %s inactive", n, u.Name, u.ActiveState, want)
		}
	}
	h.diakonos("start", "unit-0500")
}

// TestFewDescriptors: a daemon that has none left says so, lives, and works again when there are some.
func TestFewDescriptors(t *testing.T) {
	h := newTestHome(t)
	if _, err := exec.LookPath("prlimit"); err != nil {
		skip(t, "prlimit is not installed")
	}
	var names []string
	for n := range 20 {
		names = append(names, fmt.Sprintf("unit-%02d", n))
		h.unit(names[n], "[service]\nExecStart = \"$SVC\"\n")
	}
	daemon := h.command("daemon")
	daemon.Path, _ = exec.LookPath("prlimit")
	daemon.Args = []string{"prlimit", "--nofile=48:48", "diakonosd"}
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { daemon.Process.Kill(); daemon.Wait() })
	if !eventually(testPatience, func() bool { return h.command("daemon-status").Run() == nil }) {
		t.Fatal("no daemon answers")
	}
	out, err := h.command(append([]string{"start"}, names...)...).CombinedOutput()
	if text := string(out); err != nil && !strings.Contains(text, "too many open files") || strings.Contains(text, "goroutine ") {
		t.Errorf("20 services with 48 descriptors: got %q, want success or a plain message", text)
	}
	if syscall.Kill(daemon.Process.Pid, 0) != nil {
		t.Fatal("the daemon is gone")
	}
	h.diakonos(append([]string{"stop"}, names...)...)
	if !eventually(testPatience, func() bool { // once it has closed what the last shims left
		out, err = h.command("start", names[0]).CombinedOutput()
		return err == nil
	}) {
		t.Errorf("after the stop: %v\n%s", err, out)
	}
	h.diakonos("kill")
}
