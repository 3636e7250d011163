// Role: tests of sys_linux.go on real processes, sockets and locks.
// Runs in: go test.
// Owns: nothing.
// Uses: sys, wire, script.

package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// testPair returns two connected sockets.
func testPair(t testing.TB) (a, b *os.File) {
	t.Helper()
	x, y, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	a, b = os.NewFile(uintptr(x), "a"), os.NewFile(uintptr(y), "b")
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// sleeper starts a process that lives until the test ends.
func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

func TestOpenProcessChecksIdentity(t *testing.T) {
	cmd := sleeper(t)
	right := refOf(cmd.Process.Pid)
	if right.Start == 0 || !processAlive(right) {
		t.Fatalf("%+v is not found", right)
	}
	for name, change := range map[string]func(*pidRef){
		"another start time":    func(r *pidRef) { r.Start++ },
		"another pidfd inode":   func(r *pidRef) { r.Ino += 5 },
		"nothing to compare":    func(r *pidRef) { r.Start, r.Ino = 0, 0 },
		"no process":            func(r *pidRef) { *r = pidRef{} },
		"a PID that is not had": func(r *pidRef) { r.PID = 1 << 22 },
	} {
		ref := right
		change(&ref)
		if right.Ino == 0 && name == "another pidfd inode" {
			continue // before Linux 6.9 all pidfds share one
		}
		if fd, err := openProcess(ref); !errors.Is(err, errGone) || fd >= 0 {
			t.Errorf("%s: %d, %v", name, fd, err)
		}
		if err := signalProcess(ref, syscall.SIGKILL); !errors.Is(err, errGone) {
			t.Errorf("%s: the signal is sent: %v", name, err)
		}
	}
	if !processAlive(right) {
		t.Error("the bystander was hit")
	}
}

func TestZombieIsGone(t *testing.T) {
	cmd := sleeper(t)
	ref := refOf(cmd.Process.Pid)
	fd, err := openProcess(ref)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := signalProcess(ref, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitReadable(t, fd)
	if processAlive(ref) {
		t.Error("a zombie is alive")
	}
	if st, err := readStat(ref.PID); err != nil || st.state != 'Z' || st.start != ref.Start || exitOf(unix.WaitStatus(st.exitCode)) != (exitStatus{exitKilled, 9}) {
		t.Errorf("%+v, %v: field 52 does not tell the signal", st, err)
	}
}

func waitReadable(t *testing.T, fd int) {
	t.Helper()
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(p, int(testPatience.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if n != 1 || err != nil {
			t.Fatalf("nothing came: %d, %v", n, err)
		}
		return
	}
}

// TestPidfdExit: the exit status of a process that somebody else has reaped.
func TestPidfdExit(t *testing.T) {
	cmd := exec.Command("sh", "-c", "exit 7")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, ok := pidfdExit(fd); ok {
		t.Error("a status before the reap")
	}
	_ = cmd.Wait()
	ws, ok := pidfdExit(fd)
	if !ok {
		skip(t, "this kernel has no PIDFD_INFO_EXIT (Linux 6.15)")
	}
	if exitOf(ws) != (exitStatus{exitExited, 7}) {
		t.Errorf("%v", exitOf(ws))
	}
}

func TestWhenReadable(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(cmd.Process.Pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	whenReadable(fd, func(f *os.File) { f.Close(); close(ended) })
	select {
	case <-ended:
	case <-time.After(testPatience):
		t.Error("the end of the process is not noticed")
	}
	_ = cmd.Wait()
}

// TestWhenReadableWithoutPoller: a descriptor that the poller does not take is waited for all the same.
func TestWhenReadableWithoutPoller(t *testing.T) {
	cmd := sleeper(t)
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0) // the runtime leaves one that blocks to its user
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan bool)
	whenReadable(fd, func(f *os.File) { ended <- pollIn(fd); f.Close() })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	select {
	case is := <-ended:
		if !is {
			t.Error("a living process is said to have ended")
		}
	case <-time.After(testPatience):
		t.Error("the end of the process is not noticed")
	}
}

func TestWhenUnpopulated(t *testing.T) {
	parent := writableCgroup2()
	if parent == "" {
		skip(t, "this machine gives no cgroup2")
	}
	dir := filepath.Join(parent, "diakonos-test-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(dir)
	cmd := sleeper(t)
	if err := os.WriteFile(dir+"/cgroup.procs", pidFileText(cmd.Process.Pid), 0); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(dir+"/cgroup.events", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	empty := make(chan bool)
	whenUnpopulated(fd, func() { empty <- cgroupEmpty(dir) })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	select {
	case is := <-empty:
		if !is {
			t.Error("a populated cgroup is said to be empty")
		}
	case <-time.After(testPatience):
		t.Error("the end of the last process is not noticed")
	}
	_ = cmd.Wait()
}

// TestSocketPaths: the path may be longer than sockaddr_un.
func TestSocketPaths(t *testing.T) {
	base := t.TempDir()
	for _, extra := range []int{0, 60, 107, 108, 240} {
		dir := base
		if extra > 0 {
			dir = filepath.Join(base, strings.Repeat("d", extra))
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second replaces the first
			l, err := listenAt(dir, "x.sock")
			if err != nil {
				t.Fatalf("%d bytes: %v", len(dir), err)
			}
			if st, err := os.Stat(dir + "/x.sock"); err != nil || st.Mode().Perm() != 0o600 {
				t.Errorf("%v, %v", st.Mode(), err)
			}
			talk(t, l, dir)
			l.Close()
		}
	}
	if _, err := dialAt(base, "none.sock"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("no socket: %v", err)
	}
}

func talk(t *testing.T, l *os.File, dir string) {
	t.Helper()
	near, err := dialAt(dir, "x.sock")
	if err != nil {
		t.Fatalf("%d bytes: %v", len(dir), err)
	}
	defer near.Close()
	far, err := acceptFrom(l)
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	if !peerAllowed(far) {
		t.Error("our own user is refused")
	}
	if err := newConn(near).sendJSON(request{Verb: "list"}); err != nil {
		t.Fatal(err)
	}
	var r request
	if err := newConn(far).readJSON(&r); err != nil || r.Verb != "list" {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestFramesWithDescriptors: each frame's descriptors are there when the frame is, in order, and close-on-exec.
func TestFramesWithDescriptors(t *testing.T) {
	a, b := testPair(t)
	from, to := newConn(a), newConn(b)
	defer to.close()
	var files []*os.File
	for _, text := range []string{"one", "two", "three"} {
		f, err := os.Create(filepath.Join(t.TempDir(), text))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	send := func(op string, names []string, fds ...int) {
		t.Helper()
		if err := from.send(shimFrame{Op: op, Names: names}, fds...); err != nil {
			t.Fatal(err)
		}
	}
	send("bare", nil)
	send("first", []string{"one"}, int(files[0].Fd()))
	send("both", []string{"two", "three"}, int(files[1].Fd()), int(files[2].Fd()))
	send("end", nil)
	var got []string
	for range 4 {
		var f shimFrame
		if err := to.readFrame(&f); err != nil {
			t.Fatal(err)
		}
		for i, fd := range to.claim(len(f.Names)) {
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("%s: flags %x, %v", f.Names[i], flags, err)
			}
			text := make([]byte, 10)
			n, _ := unix.Pread(fd, text, 0)
			got = append(got, f.Op+":"+f.Names[i]+"="+string(text[:n]))
			unix.Close(fd)
		}
	}
	if want := []string{"first:one=one", "both:two=two", "both:three=three"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if left := to.claim(9); len(left) > 0 {
		t.Errorf("%d descriptors are left", len(left))
	}
}

func TestFrameLimits(t *testing.T) {
	a, b := testPair(t)
	go func(a *os.File) {
		_, _ = a.Write(bytes.Repeat([]byte("x"), maxFrame+1<<16))
		a.Close()
	}(a)
	c := newConn(b)
	if _, err := c.readLine(); !errors.Is(err, errFrameTooLong) {
		t.Errorf("%v", err)
	}
	a, b = testPair(t)
	slow := newConn(a)
	for n := 0; ; n++ {
		if err := slow.sendJSON(reply{Warn: strings.Repeat("w", 1<<14)}); err != nil {
			if !errors.Is(err, errPeerSlow) {
				t.Errorf("a peer that does not read: %v", err)
			}
			break
		}
		if n > 1000 {
			t.Fatal("a peer that does not read never stops us")
		}
	}
	b.Close()
	if err := slow.sendJSON(reply{}); err == nil {
		t.Error("a peer that is gone is written to")
	}
	a, b = testPair(t)
	_, _ = a.WriteString(`{"op":"cut`)
	a.Close()
	if err := newConn(b).readFrame(new(shimFrame)); !errors.Is(err, io.EOF) {
		t.Errorf("a frame that is cut: %v", err)
	}
}

// TestGuard: the lock belongs to the open description: it lives in every copy, also one that a child inherits, and goes with the last.
func TestGuard(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	open := func() int {
		t.Helper()
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	first, second := open(), open()
	defer unix.Close(second)
	if err := lockByte(first, guardMain); err != nil {
		t.Fatal(err)
	}
	if lockByte(second, guardMain) != unix.EAGAIN || lockByte(second, guardControl) != nil {
		t.Error("the lock is not seen from another description")
	}
	cmd := exec.Command("sleep", "1000")
	cmd.Stdout = os.NewFile(uintptr(first), "out")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd.Stdout.(*os.File).Close()
	if lockByte(second, guardMain) != unix.EAGAIN {
		t.Error("the lock does not live in the child")
	}
	waited := make(chan error, 1)
	go func() { waited <- waitByte(second, guardMain) }()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	select {
	case err := <-waited:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(testPatience):
		t.Fatal("the lock outlives the last copy")
	}
	third := open()
	defer unix.Close(third)
	if lockByte(third, guardMain) != unix.EAGAIN {
		t.Error("waitByte does not take the lock")
	}
}

func TestDirectoryLock(t *testing.T) {
	dir := t.TempDir()
	if lockIsTaken(dir) || lockIsTaken(dir+"/none") {
		t.Error("taken before anybody took it")
	}
	fd, err := lockDirectory(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !lockIsTaken(dir) {
		t.Error("a lock is not seen")
	}
	if _, err := lockDirectory(dir); err != unix.EWOULDBLOCK {
		t.Errorf("a second lock: %v", err)
	}
	unix.Close(fd)
	if lockIsTaken(dir) {
		t.Error("the lock outlives its descriptor")
	}
	if _, err := lockDirectory(dir + "/none"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("no directory: %v", err)
	}
}

func TestStatOfStrangeNames(t *testing.T) {
	const tail = " S 3 4 5 0 -1 0 0 0 0 0 10 20 0 0 20 0 1 0 777 0 9"
	for _, name := range []string{"sh", "a b", "a) S 1 1 (b", ")", "((", ""} {
		s, err := parseStat([]byte("2 (" + name + ")" + tail + "\n"))
		if err != nil || s.comm != name || s.pid != 2 || s.ppid != 3 || s.session != 5 || s.start != 777 || s.cpuTicks != 30 || s.rssPages != 9 {
			t.Errorf("%q: %+v, %v", name, s, err)
		}
	}
	for _, text := range []string{"", "1", "1 (a", "1 (a)", "1 (a) S 1"} {
		if _, err := parseStat([]byte(text)); err == nil {
			t.Errorf("%q is read", text)
		}
	}
}

func TestMountOfCgroup(t *testing.T) {
	for _, c := range []struct{ name, text, mount, root string }{
		{"at the usual place", "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup", "/"},
		{"beside version 1", "1 2 3 / /sys/fs/cgroup rw - tmpfs x rw\n4 2 3 / /sys/fs/cgroup/unified rw - cgroup2 x rw\n", "/sys/fs/cgroup/unified", "/"},
		{"with a space", `4 2 3 /a\040b /m\011n rw - cgroup2 x rw`, "/m\tn", "/a b"},
		{"nowhere", "1 2 3 / /x rw - ext4 y rw\n", "", ""},
		{"a mount point that looks like it", "1 2 3 / /cgroup2 rw - ext4 cgroup2 rw\n", "", ""},
	} {
		if mount, root := cgroupMount([]byte(c.text)); mount != c.mount || root != c.root {
			t.Errorf("%s: %q %q", c.name, mount, root)
		}
	}
}

// TestProcessName: the process has the name that any of its threads has given it.
func TestProcessName(t *testing.T) {
	name := func() string {
		b, err := os.ReadFile("/proc/self/comm")
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	before := name()
	defer setProcessName(before)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	rename := func() { setProcessName("of-any-thread") }
	if unix.Gettid() == os.Getpid() { // the other thread cannot be the first then
		done := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			rename()
			close(done)
		}()
		<-done
	} else {
		rename()
	}
	if got := name(); got != "of-any-thread" {
		t.Errorf("the process is called %q", got)
	}
}
