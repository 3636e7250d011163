// Role: tests of state.go: records on full disks, paths, what is refused, what a daemon's starter hands on.
// Runs in: go test.
// Owns: nothing.
// Uses: codec, state, wire, unit, sys, script, observe.

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestRecordFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	var got wantRecord
	if err := readRecord(path, &got); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	r, err := openRecord(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := readRecord(path, &got); !errors.Is(err, errNeverWritten) {
		t.Errorf("allocated only: %v", err)
	}
	for n := range 7 {
		if n == 4 { // a successor goes on where the file is
			r.close()
			if r, err = openRecord(path); err != nil {
				t.Fatal(err)
			}
		}
		want := numbered(n)
		before, _ := os.ReadFile(path)
		if err := r.write(encode(nil, &want)); err != nil {
			t.Fatal(err)
		}
		after, _ := os.ReadFile(path)
		if len(after) != 2*slotBytes {
			t.Errorf("the file grows to %d bytes", len(after))
		}
		if bytes.Equal(before[:slotBytes], after[:slotBytes]) == bytes.Equal(before[slotBytes:], after[slotBytes:]) {
			t.Errorf("write %d changes both slots or none", n)
		}
		if err := readRecord(path, &got); err != nil || got != want {
			t.Errorf("write %d reads as %+v, %v", n, got, err)
		}
	}
	r.close()
}

func numbered(n int) wantRecord { return wantRecord{Version: 1, Job: strings.Repeat("j", n)} }

// TestRecordOfABrokenSlot: what cannot be read is overwritten first, the readable slot stays.
func TestRecordOfABrokenSlot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "want")
	for n := range 2 {
		if err := writeRecord(path, &wantRecord{Job: string(rune('a' + n))}); err != nil {
			t.Fatal(err)
		}
	}
	file, _ := os.ReadFile(path)
	file[40] ^= 1 // slot 0 holds the second write
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	var got wantRecord
	if err := readRecord(path, &got); err != nil || got.Job != "a" {
		t.Errorf("%+v, %v", got, err)
	}
	if err := writeRecord(path, &wantRecord{Job: "c"}); err != nil {
		t.Fatal(err)
	}
	now, _ := os.ReadFile(path)
	if !bytes.Equal(now[slotBytes:], file[slotBytes:]) {
		t.Error("the only readable slot was overwritten")
	}
	if err := readRecord(path, &got); err != nil || got.Job != "c" {
		t.Errorf("%+v, %v", got, err)
	}
}

// smallDisk mounts a file system of so many KiB at dir; fill leaves it without a free byte.
func smallDisk(t *testing.T, dir string, size int) (fill func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "only root can mount a small file system")
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dk", size)); err != nil {
		skip(t, "a small file system cannot be mounted here: "+err.Error())
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return func() {
		t.Helper()
		f, err := os.Create(dir + "/filler")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for n := 4096; n > 0; {
			if _, err := f.Write(make([]byte, n)); err != nil {
				n /= 2
			}
		}
	}
}

func TestRecordsOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	fill := smallDisk(t, dir, 32)
	r, err := openRecord(dir + "/want")
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	if err := replaceFile(dir+"/json", []byte("old")); err != nil {
		t.Fatal(err)
	}
	fill()
	for n := range 4 {
		if err := r.write(encode(nil, &wantRecord{Job: string(rune('a' + n))})); err != nil {
			t.Errorf("an allocated record cannot be written: %v", err)
		}
	}
	var got wantRecord
	if err := readRecord(dir+"/want", &got); err != nil || got.Job != "d" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := openRecord(dir + "/other"); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a record without room: %v", err)
	}
	if err := replaceFile(dir+"/json", []byte("new")); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a file without room: %v", err)
	}
	checkFile(t, dir+"/json", "old")
	for _, text := range []string{"newer", "n", "newest of all"} {
		if err := rewriteFile(dir+"/json", []byte(text)); err != nil {
			t.Errorf("a file that may be overwritten: %v", err)
		}
		checkFile(t, dir+"/json", text)
	}
	if err := rewriteFile(dir+"/none", []byte("new")); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a file that was not there: %v", err)
	}
	for _, name := range []string{"json", "none"} {
		if _, err := os.Lstat(dir + "/" + name + temporarySuffix); err == nil {
			t.Errorf("the temporary file of %s stays", name)
		}
	}
}

// TestReplaceFileIsWhole: when only a part fits, the old content stays.
func TestReplaceFileIsWhole(t *testing.T) {
	dir := t.TempDir()
	smallDisk(t, dir, 32)
	if err := replaceFile(dir+"/json", []byte("old")); err != nil {
		t.Fatal(err)
	}
	if err := replaceFile(dir+"/json", bytes.Repeat([]byte("n"), 64<<10)); err == nil {
		t.Error("64 KiB are written to 32 KiB")
	}
	checkFile(t, dir+"/json", "old")
}

// TestEnabledUnits: any name that a unit may have is found again, also one that looks like a temporary file, and nothing else is.
func TestEnabledUnits(t *testing.T) {
	h := home{t.TempDir()}
	if err := os.Mkdir(h.enabledDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for _, name := range []string{"web.new", "web", "a@b:c_d.e-f", `back\slash`, "-x"} {
		want[name] = "/s/" + name + ".service"
		if err := replaceFile(h.enabledFile(name), []byte(want[name]+"\n")); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"half" + temporarySuffix, "no unit", "x.service"} {
		if err := os.WriteFile(h.enabledFile(name), []byte("/s/x.service\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := h.enabledUnits(); err != nil || !maps.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
}

func checkFile(t *testing.T, path, want string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%s is %.40q, %v; want %q", filepath.Base(path), got, err, want)
	}
}

func TestReplaceFileFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/victim", []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("victim", dir+"/x"+temporarySuffix); err != nil {
		t.Fatal(err)
	}
	if err := replaceFile(dir+"/x", []byte("theirs")); err == nil {
		t.Error("a link in the place of the temporary file is followed")
	}
	checkFile(t, dir+"/victim", "mine")
	if err := os.Symlink("victim", dir+"/y"); err != nil {
		t.Fatal(err)
	}
	if err := replaceFile(dir+"/y", []byte("theirs")); err != nil { // the link itself is replaced
		t.Error(err)
	}
	checkFile(t, dir+"/victim", "mine")
	checkFile(t, dir+"/y", "theirs")
}

func TestFindHome(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(dir+"/real", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, flag, variable, user, runtime, want string }{
		{"the flag comes first", dir + "/a", dir + "/b", dir, "", dir + "/a"},
		{"then the variable", "", dir + "/b/", dir, "", dir + "/b"},
		{"then the user's home", "", "", dir, "/run/user/1", dir + "/.diakonos"},
		{"a link is resolved", dir + "/link", "", "", "", dir + "/real"},
	} {
		t.Setenv(homeVariable, c.variable)
		t.Setenv("HOME", c.user)
		t.Setenv("XDG_RUNTIME_DIR", c.runtime)
		if h, err := findHome(c.flag); err != nil || h.path != c.want {
			t.Errorf("%s: %q, %v; want %q", c.name, h.path, err, c.want)
		}
	}
	t.Setenv(homeVariable, "")
	for _, none := range []string{"", "/"} {
		t.Setenv("HOME", none)
		t.Setenv("XDG_RUNTIME_DIR", "/run/user/1")
		want := "/run/user/1/diakonos"
		if os.Geteuid() == 0 {
			want = "/run/diakonos"
		}
		if got := homePlaces()[0]; got != want {
			t.Errorf("HOME=%q: %q, want %q", none, got, want)
		}
	}
}

func TestHomeIsOurs(t *testing.T) {
	h := home{t.TempDir() + "/a/h"}
	for range 2 { // it may exist
		if err := h.make(); err != nil {
			t.Fatal(err)
		}
	}
	if target, err := os.Readlink(h.runRoot()); err == nil {
		t.Cleanup(func() { _ = os.RemoveAll(target) })
	}
	if st, err := os.Stat(h.path); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if err := os.Chmod(h.path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := h.make(); err != nil {
		t.Fatal(err)
	}
	if st, _ := os.Stat(h.path); st.Mode().Perm() != 0o700 {
		t.Errorf("an open home stays %v", st.Mode())
	}
	for _, name := range []string{"daemon.log", "daemon.json" + temporarySuffix, "services"} {
		if err := os.WriteFile(h.path+"/"+name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chmod(h.path, 0o755), h.make()); err != nil {
		t.Errorf("with our own files: %v", err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(h.path, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		if err := h.make(); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("the home of another user: %v", err)
		}
	}
}

// TestHomeOfOthersStaysOpen: who names /tmp as home must not have it closed to everybody else.
func TestHomeOfOthersStaysOpen(t *testing.T) {
	for _, c := range []struct {
		name string
		mode fs.FileMode
		file string
		ok   bool
	}{
		{"an empty directory", 0o755, "", true},
		{"an empty directory of all users", 0o777 | fs.ModeSticky, "", true},
		{"a directory of all users that holds something", 0o777 | fs.ModeSticky, "x", false},
		{"one that holds something else", 0o755, "etc", false},
		{"one that is closed already", 0o700, "etc", true},
	} {
		h := home{t.TempDir()}
		if c.file != "" {
			if err := os.Mkdir(h.path+"/"+c.file, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chmod(h.path, c.mode); err != nil {
			t.Fatal(err)
		}
		err := h.make()
		if target, linkErr := os.Readlink(h.runRoot()); linkErr == nil {
			t.Cleanup(func() { _ = os.RemoveAll(target) })
		}
		st, statErr := os.Stat(h.path)
		if statErr != nil {
			t.Fatal(statErr)
		}
		want := c.mode
		if c.ok {
			want = 0o700 | fs.ModeDir
		}
		if (err == nil) != c.ok || st.Mode()&^fs.ModeDir != want&^fs.ModeDir {
			t.Errorf("%s: %v, mode %v", c.name, err, st.Mode())
		}
	}
}

// TestRunRootIsOurs: where run/ is a link, what it leads to must be a directory of ours, and no link again.
func TestRunRootIsOurs(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(dir string) error
		ok   bool
	}{
		{"a directory of ours", func(dir string) error { return os.Mkdir(dir+"/target", 0o700) }, true},
		{"nothing yet", func(dir string) error { return nil }, true},
		{"a file", func(dir string) error { return os.WriteFile(dir+"/target", nil, 0o600) }, false},
		{"a link to a directory of ours", func(dir string) error { return os.Symlink("..", dir+"/target") }, false},
		{"a directory of another user", func(dir string) error {
			return errors.Join(os.Mkdir(dir+"/target", 0o777), os.Chown(dir+"/target", 65534, 65534))
		}, false},
	} {
		if strings.Contains(c.name, "another user") && os.Geteuid() != 0 {
			continue // only root can make one
		}
		dir := t.TempDir()
		h := home{dir + "/h"}
		if err := errors.Join(os.Mkdir(h.path, 0o700), c.make(dir), os.Symlink(dir+"/target", h.runRoot())); err != nil {
			t.Fatal(err)
		}
		if err := h.makeRunRoot(); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// TestRunRootMadeAtOnce: many that make one home at once all succeed, and all use the same run/.
func TestRunRootMadeAtOnce(t *testing.T) {
	for range 50 {
		h := home{t.TempDir() + "/h"}
		var together sync.WaitGroup
		for range 8 {
			together.Go(func() {
				if err := h.make(); err != nil {
					t.Error(err)
				}
			})
		}
		together.Wait()
		if target, err := os.Readlink(h.runRoot()); err == nil {
			_ = os.RemoveAll(target)
		}
	}
}

// TestScopeNames: what a service carries in its environment leads back to its name, whatever the name.
func TestScopeNames(t *testing.T) {
	h, other := home{t.TempDir()}, home{t.TempDir()}
	for _, name := range []string{"web", "a@b-c_d.e", "a:b", ":", "::a:", `x\x2dy`} {
		if _, err := unitName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
		scope := h.scopeID(name)
		if got := h.serviceOf(scope); got != name {
			t.Errorf("%q comes back from %q as %q", name, scope, got)
		}
		if got := h.serviceOf(other.scopeID("outer") + ":" + scope + ":" + other.scopeID("inner")); got != name {
			t.Errorf("%q between others comes back as %q", name, got)
		}
		if got := other.serviceOf(scope); got != "" {
			t.Errorf("%q is taken for a service of another home: %q", scope, got)
		}
	}
	if _, err := unitName("a%3Ab"); err == nil {
		t.Error("a name with % is ambiguous in a scope")
	}
	if got := h.serviceOf(""); got != "" {
		t.Errorf("no scope gives %q", got)
	}
}

func TestDaemonEnvironment(t *testing.T) {
	env := []string{"PATH=/bin", "LANG=C", "DIAKONOS_HOME=/h", "DIAKONOS_SCOPE=1-2/web:3-4/x", "INVOCATION_ID=1", "NOTIFY_SOCKET=/n", "LISTEN_FDS=2",
		"LISTEN_PID=3", "WATCHDOG_USEC=4", "WATCHDOG_PID=5", "DIAKONOS_START=auto", "DIAKONOS_CGROUP=/c", "TOKEN=secret", "EMPTY=", "DIAKONOS_OUTER=old"}
	want := []string{"PATH=/bin", "LANG=C", "TOKEN=secret", "EMPTY=", "DIAKONOS_OUTER=1-2/web:3-4/x"}
	if got := daemonEnvironment(env); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if got := daemonEnvironment([]string{"A=1", "DIAKONOS_OUTER=old"}); !slices.Equal(got, []string{"A=1", "DIAKONOS_OUTER=old"}) {
		t.Errorf("what the daemon itself runs in is forgotten: %q", got)
	}
}

// TestBareEnvironment: what spares the runtime work is undone, so that PassEnvironment sees what was there.
func TestBareEnvironment(t *testing.T) {
	was := map[string]string{"TZ": "Europe/Athens", "HOME": "/x"}
	env := bare([]string{"TZ=Europe/Athens", "HOME=/x"})
	if !slices.Contains(env, "TZ=") || slices.Contains(env, "TZ=Europe/Athens") {
		t.Errorf("%q", env)
	}
	t.Setenv("TZ", "")
	t.Setenv("HOME", "")
	t.Setenv("GOMAXPROCS", "")
	t.Setenv(savedPrefix+"TZ", "")
	for _, e := range env {
		name, v, _ := strings.Cut(e, "=")
		os.Setenv(name, v)
	}
	unbare()
	for name, want := range was {
		if got := os.Getenv(name); got != want {
			t.Errorf("%s=%s, want %s", name, got, want)
		}
	}
	for _, name := range []string{"GOMAXPROCS", savedPrefix + "TZ"} {
		if v, ok := os.LookupEnv(name); ok {
			t.Errorf("%s=%s stays", name, v)
		}
	}
}

func TestNewerBinary(t *testing.T) {
	path := filepath.Join(t.TempDir(), "diakonos")
	write := func() {
		t.Helper()
		_ = os.RemoveAll(path)
		if err := os.WriteFile(path, []byte("x"), 0o755); err != nil {
			t.Fatal(err)
		}
		later := time.Now().Add(time.Hour)
		if err := os.Chtimes(path, later, later); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name   string
		change func() error
		ok     bool
	}{
		{"newer and ours", func() error { return nil }, true},
		{"older", func() error { old := time.Unix(1e9, 0); return os.Chtimes(path, old, old) }, false},
		{"gone", func() error { return os.Remove(path) }, false},
		{"writable by others", func() error { return os.Chmod(path, 0o757) }, false},
		{"writable by its group", func() error { return os.Chmod(path, 0o775) }, false},
		{"a directory", func() error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o755)) }, false},
		{"of another user", func() error { return os.Chown(path, 65534, 65534) }, false},
	} {
		if c.name == "of another user" && os.Geteuid() != 0 {
			continue // only root can make one
		}
		write()
		if err := c.change(); err != nil {
			t.Fatal(err)
		}
		if got := (daemonRecord{Binary: path}).newerBinary(); (got != "") != c.ok {
			t.Errorf("%s: %q", c.name, got)
		}
	}
	if got := (daemonRecord{}).newerBinary(); got != "" {
		t.Errorf("no binary in the record: %q", got)
	}
}

// TestRecordsOfAnotherBoot mean nothing.
func TestRecordsOfAnotherBoot(t *testing.T) {
	h := home{t.TempDir()}
	if err := errors.Join(os.MkdirAll(h.runRoot(), 0o700), h.makeRunDir("web")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(writeRecord(h.stateFile("web"), &runRecord{Boot: "old", Sub: running}), writeRecord(h.wantFile("web"), &wantRecord{Boot: "old", Up: true})); err != nil {
		t.Fatal(err)
	}
	if rec, err := h.readState("web", "new"); !errors.Is(err, errOtherBoot) || rec.Sub != "" {
		t.Errorf("%+v, %v", rec, err)
	}
	if w, err := h.readWant("web", "new"); !errors.Is(err, errOtherBoot) || w.Up {
		t.Errorf("%+v, %v", w, err)
	}
	if rec, err := h.readState("web", "old"); err != nil || rec.Sub != running {
		t.Errorf("%+v, %v", rec, err)
	}
	if err := h.makeRunDir("web"); err != nil {
		t.Fatal(err)
	}
	if rec, err := h.readState("web", "old"); err != nil || rec.Sub != running {
		t.Errorf("making it again loses the record: %+v, %v", rec, err)
	}
	for pidns, want := range map[uint64]error{pidNamespace(): nil, pidNamespace() + 1: errOtherBoot} {
		if err := writeRecord(h.stateFile("web"), &runRecord{Boot: "old", PIDNS: pidns, Sub: running}); err != nil {
			t.Fatal(err)
		}
		if _, err := h.readState("web", "old"); err != want {
			t.Errorf("PID namespace %d, ours is %d: got %v, want %v", pidns, pidNamespace(), err, want)
		}
	}
}

// TestLiveDaemon: PID and start time alone do not make it the daemon; after a boot they may be those of another process.
func TestLiveDaemon(t *testing.T) {
	h := home{t.TempDir()}
	boot, pidns, _ := bootIdentity()
	ours := daemonRecord{Boot: boot, PIDNS: pidns, Started: 1, Daemon: refOf(os.Getpid())}
	starting, otherBoot, otherNamespace, dead := ours, ours, ours, ours
	starting.Started = 0
	otherBoot.Boot = "another"
	otherNamespace.PIDNS++
	dead.Daemon.Start++
	dead.Daemon.Ino++
	for _, c := range []struct {
		name string
		d    daemonRecord
		want bool
	}{{"it lives", ours, true}, {"it is being started", starting, false}, {"of another boot", otherBoot, false},
		{"of another PID namespace", otherNamespace, false}, {"of another process", dead, false}} {
		if err := h.writeDaemon(c.d); err != nil {
			t.Fatal(err)
		}
		if _, up := h.liveDaemon(); up != c.want || h.isDaemon(os.Getpid()) != c.want {
			t.Errorf("%s: got %v, want %v", c.name, up, c.want)
		}
	}
}

// TestSomeoneElseStarts: only a daemon that was to run, and that something other than our commands keeps alive, is waited for.
func TestSomeoneElseStarts(t *testing.T) {
	h := home{t.TempDir()}
	if h.someoneElseStarts() {
		t.Error("where there never was a daemon, one is waited for")
	}
	for _, mode := range []string{modeAuto, modeForeground, modeInit} {
		for _, wanted := range []string{wantedRunning, wantedStopped, wantedKilled} {
			if err := h.writeDaemon(daemonRecord{Mode: mode, Wanted: wanted}); err != nil {
				t.Fatal(err)
			}
			if got, want := h.someoneElseStarts(), mode != modeAuto && wanted == wantedRunning; got != want {
				t.Errorf("mode %s, wanted %s: got %v, want %v", mode, wanted, got, want)
			}
		}
	}
}

// TestHangupDuringADaemonsStart: who starts a daemon and takes SIGHUP itself goes on taking it while the daemon comes up.
func TestHangupDuringADaemonsStart(t *testing.T) {
	h := home{t.TempDir()}
	program, heard := filepath.Join(h.path, "daemon"), filepath.Join(h.path, "heard")
	script := "#!/bin/sh\nwhile [ ! -e " + heard + " ] && kill -HUP $PPID; do :; done\necho ok >&4\n"
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := lockDirectory(h.path)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(lock)
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, unix.SIGHUP)
	defer signal.Stop(hangups)
	started := make(chan error)
	go func() { started <- h.startDaemon(lock, launch{path: program}, hangups) }()
	select {
	case <-hangups:
	case <-time.After(testPatience):
		t.Error("the signals were lost")
	}
	if err := os.WriteFile(heard, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := <-started; err != nil {
		t.Error(err)
	}
}

// TestOwnLogNeverWaits: lines for a disk that hangs are kept, then dropped and counted, and the process can end.
func TestOwnLogNeverWaits(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	full := make([]byte, 1<<16)
	if n, err := unix.Write(int(w.Fd()), full); n != len(full) || err != nil { // Fd makes it a blocking one
		t.Fatal(n, err)
	}
	stuck := ownLog{files: []int{int(w.Fd())}}
	for n := range 10 * ownLogLines {
		stuck.write(fmt.Sprintf("line %d\n", n))
	}
	stuck.end()

	l := ownLog{files: []int{int(w.Fd())}}
	for n := range 2 * ownLogLines {
		l.write(fmt.Sprintf("other %d\n", n))
	}
	if l.dropped == 0 {
		t.Error("nothing was dropped")
	}
	text := make(chan string)
	go func() { b, _ := io.ReadAll(r); text <- string(b[len(full):]) }()
	<-stuck.written
	if !eventually(testPatience, func() bool { return len(l.lines) == 0 }) {
		t.Fatal("what was kept is not written when the disk works again")
	}
	l.write("last\n")
	l.end()
	w.Close()
	got := <-text
	for _, want := range []string{"line 0\n", "line 63\n", "other 0\n", "other 1\n", "messages could not be written and are missing here\nlast\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in %q", want, got)
		}
	}
}

// TestClientInsideAsksAgain: the shim that a client inside a service asks to start the daemon may not know yet that the old one is dead. The
// client asks again, and does not start a daemon that would belong to the service.
func TestClientInsideAsksAgain(t *testing.T) {
	h := home{t.TempDir()}
	t.Setenv(scopeVariable, h.scopeID("web"))
	dir := h.runDir("web")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	shim, err := listenAt(dir, shimSocketName)
	if err != nil {
		t.Fatal(err)
	}
	defer shim.Close()
	go func() {
		for ask := 1; ; ask++ {
			f, err := acceptFrom(shim)
			if err != nil {
				return
			}
			c := newConn(f)
			var hello, heal shimFrame
			if err := errors.Join(c.readFrame(&hello), c.readFrame(&heal)); err != nil || heal.Op != opHeal {
				t.Errorf("the client says %q and %q: %v", hello.Op, heal.Op, err)
			}
			if ask == 2 {
				daemon, err := listenAt(h.path, socketName)
				if err != nil {
					t.Error(err)
				}
				t.Cleanup(func() { daemon.Close() })
			}
			f.Close()
		}
	}()
	f, err := h.connectOrStart()
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := os.Stat(h.daemonLog()); err == nil {
		t.Error("the client has started a daemon itself")
	}
}
