// Role: what other users, services, names and texts must not be able to do; and that a panic costs one request.
// Runs in: go test; rogueMain as processes that misbehave on purpose.
// Owns: each test's home and services.
// Uses: wire, sys, state, supervise, daemon, api, observe, script, scriptcmd, edge.

package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rogueMain is a process that does what it should not: `rogue VERB ARGUMENTS`.
func rogueMain() {
	args := os.Args[2:]
	switch os.Args[1] {
	case "ask":
		rogueAsk(args[0])
	case "flood":
		n, err := strconv.Atoi(args[1])
		check(err)
		rogueFlood(args[0], n)
	case "swap":
		n, err := strconv.Atoi(args[0])
		check(err)
		rogueSwap(n, args[1], args[2:])
	case "soil":
		rogueSoil(args)
	case "panic":
		roguePanic(args[0])
	case "without":
		rogueWithout(strings.Split(args[0], ","), args[1:])
	default:
		check(fmt.Errorf("no such verb: %s", os.Args[1]))
	}
}

// anotherUser is somebody whom root can become; the test is skipped for others.
func anotherUser(t *testing.T) *syscall.Credential {
	t.Helper()
	u, err := user.Lookup("nobody")
	if err != nil || os.Geteuid() != 0 {
		skip(t, "only root can act as another user")
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// rogue is a process of another user.
func rogue(as *syscall.Credential, args ...string) *exec.Cmd {
	cmd := exec.Command("rogue", args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	return cmd
}

// ---- other users

// rogueAsk connects, asks for the list of units, and prints what comes back.
func rogueAsk(socket string) {
	f, err := rogueDial(socket)
	if err != nil {
		fmt.Println(err)
		return
	}
	// Both protocols in one: either end would answer its own. A refusal may come before we have written.
	_, _ = io.WriteString(f, `{"op":"hello","proto":1,"role":"daemon","verb":"list"}`+"\n")
	text, err := bufio.NewReader(f).ReadString('\n')
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		err = nil
	}
	fmt.Printf("answer %q %v\n", text, err)
}

func rogueDial(socket string) (*os.File, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	patience := syscall.NsecToTimeval(int64(testPatience))
	err = syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &patience)
	if err == nil {
		err = syscall.Connect(fd, &syscall.SockaddrUnix{Name: socket})
	}
	if err != nil {
		syscall.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), socket), nil
}

// rogueFlood makes n connections, keeps as many open as it can, and writes a byte into each from time to time.
func rogueFlood(socket string, n int) {
	signal.Ignore(syscall.SIGPIPE)
	var limit syscall.Rlimit
	check(syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	most := int(min(limit.Cur, 1<<14)) - 64
	var kept []*os.File
	refused := 0
	for i := range n {
		f, err := rogueDial(socket)
		if err != nil {
			refused++ // the queue is full
			continue
		}
		if kept = append(kept, f); len(kept) > most {
			kept[0].Close()
			kept = kept[1:]
		}
		_, _ = kept[i%len(kept)].Write([]byte("{")) // to one that is refused it fails
	}
	fmt.Printf("connected %d\n", n-refused)
}

// TestOtherUser: another user cannot come to the sockets; where somebody has opened the way, it is refused by who it is; and while it makes
// 10,000 connections and writes slow bytes, the owner's commands are answered.
func TestOtherUser(t *testing.T) {
	other := anotherUser(t)
	h := newTestHome(t)
	h.unit("web", "[service]\nExecStart = \"$SVC\"\n")
	h.diakonos("start", "web")
	run, err := filepath.EvalSymlinks(filepath.Join(h.home, "run"))
	if err != nil {
		t.Fatal(err)
	}
	sockets := []string{filepath.Join(h.home, socketName), filepath.Join(run, "web", shimSocketName)}
	ask := func(socket string) string {
		out, err := rogue(other, "ask", socket).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return strings.TrimSpace(string(out))
	}
	for _, s := range sockets {
		if got := ask(s); got != "permission denied" {
			t.Errorf("%s: got %q, want permission denied", s, got)
		}
	}
	for _, path := range []string{h.home, run, filepath.Join(run, "web")} {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range sockets {
		if err := os.Chmod(s, 0o666); err != nil {
			t.Fatal(err)
		}
		if got := ask(s); got != `answer "" <nil>` {
			t.Errorf("%s: got %q, want no answer", s, got)
		}
	}
	before := h.status("web")
	daemon, err := find(h.home, "@daemon")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sockets {
		flood := rogue(other, "flood", s, "10000")
		var out bytes.Buffer
		flood.Stdout, flood.Stderr = &out, &out
		if err := flood.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- flood.Wait() }()
		for asked := 0; ; asked++ {
			if st := h.status("web"); st["main_pid"] != before["main_pid"] || st["shim_pid"] != before["shim_pid"] {
				t.Fatalf("got %v, want as before the flood: %v", st, before)
			}
			if asked == 0 {
				continue // once at least while it lasts
			}
			select {
			case err := <-ended:
				if want := "connected 10000\n"; err != nil || out.String() != want {
					t.Errorf("flood of %s: %v, got %q, want %q", s, err, out.String(), want)
				}
			default:
				continue
			}
			break
		}
	}
	if isGone(daemon) {
		t.Error("the daemon is another one")
	}
	few := func(pid int) bool { fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid)); return len(fds) < 64 }
	for _, pid := range []int{daemon.pid, int(before["shim_pid"].(float64))} {
		if !eventually(testPatience, func() bool { return few(pid) }) {
			t.Errorf("process %d keeps the descriptors of connections that it has refused", pid)
		}
	}
}

// ---- links where root writes

// rogueSwap puts links to foreign files, and other things, where somebody else writes, n times, then prints how many links it could make.
func rogueSwap(n int, dir string, args []string) {
	names, targets := args[:slices.Index(args, "--")], args[slices.Index(args, "--")+1:]
	made := 0
	for i := range n {
		path, target := filepath.Join(dir, names[i%len(names)]), targets[i/3%len(targets)]
		var err error
		switch i % 7 {
		case 0, 1, 2:
			os.Remove(path)
			err = os.Symlink(target, path)
		case 3: // in one step, as a rename does it
			os.Symlink(target, path+".link")
			err = os.Rename(path+".link", path)
		case 4:
			os.Remove(path)
			err = os.Link(target, path)
		case 5:
			os.Remove(path)
			err = syscall.Mkfifo(path, 0o666)
		case 6:
			os.Remove(path)
			err = os.Mkdir(path, 0o777)
		}
		if err == nil {
			made++
		}
		if i%64 == 0 {
			time.Sleep(time.Millisecond) // else the others would hardly ever meet an ordinary file
		}
	}
	fmt.Printf("made %d\n", made)
}

// decoys makes files that nobody may touch, and returns their paths and a look at all of them.
func decoys(t *testing.T, dir string) (files []string, look func() string) {
	t.Helper()
	for name, mode := range map[string]fs.FileMode{"secret": 0o600, "open": 0o666, "program": 0o755 | fs.ModeSetuid, "sub/deep": 0o640} {
		path, what := filepath.Join(dir, name), "decoy"
		if name == "open" { // to which anybody may make a hard link, since he may write to it: then it is a log like any other
			what = "known"
		}
		text := []byte("2026-11-22T18:00:00.123456789Z stdout F " + what + "\nunfinished " + what)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.WriteFile(path, text, 0o600), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		files = append(files, path)
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(filepath.Join(dir, "pid"), []byte("1\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	files = append(files, filepath.Join(dir, "pid"), filepath.Join(dir, "sub"), filepath.Join(dir, "missing"))
	slices.Sort(files)
	return files, func() string {
		var b strings.Builder
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil {
				return err
			}
			var sum [sha256.Size]byte
			if d.Type().IsRegular() {
				content, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				sum = sha256.Sum256(content)
			}
			fmt.Fprintf(&b, "%s %o %d:%d %d %x\n", path, st.Mode, st.Uid, st.Gid, st.Mtim.Nano(), sum[:8])
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		return b.String()
	}
}

// TestLinkRace: the service's user owns the directory of its log, as an administrator may have given it, and that of its PID file. While it
// puts links to foreign files there as fast as it can, root logs, rotates, reads the log, starts, stops and recovers; no foreign file changes, and
// none is shown.
func TestLinkRace(t *testing.T) {
	other := anotherUser(t)
	const swaps = 100_000
	h := newTestHome(t)
	targets, look := decoys(t, filepath.Join(h.dir, "decoys"))
	theirs := filepath.Join(h.dir, "theirs")
	if err := errors.Join(os.Mkdir(theirs, 0o755), os.Chown(theirs, int(other.Uid), int(other.Gid))); err != nil {
		t.Fatal(err)
	}
	h.unit("chatty", "[service]\nUser = \"nobody\"\nLogMaxSize = \"64K\"\nLogMaxFiles = 3\nExecStart = \"$SVC -seq "+theirs+"/seq -seq-every 5ms -seq-burst 50\"\n")
	h.unit("filed", "[service]\nUser = \"nobody\"\nType = \"forking\"\nPIDFile = \""+theirs+"/pid\"\nTimeoutStartSec = \"300ms\"\n"+
		"ExecStart = \"$SVC -fork-away -pidfile "+theirs+"/pid.written\"\n")
	h.diakonos("start", "chatty")
	log := filepath.Join(h.home, "log", "chatty")
	if !eventually(testPatience, func() bool { _, err := os.Stat(filepath.Join(log, currentName)); return err == nil }) {
		t.Fatal("the service logs nothing")
	}
	for _, dir := range []string{h.home, filepath.Join(h.home, "log"), log} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(log, int(other.Uid), int(other.Gid)); err != nil {
		t.Fatal(err)
	}
	before := look()

	var out [2]bytes.Buffer
	ended := make(chan error, len(out))
	for i, args := range [][]string{{log, currentName, "20261122T180000.123456789Z", currentName + ".new"}, {theirs, "pid"}} {
		cmd := rogue(other, append(append([]string{"swap", strconv.Itoa(swaps)}, append(args, "--")...), targets...)...)
		cmd.Stdout, cmd.Stderr = &out[i], &out[i]
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		go func() { ended <- cmd.Wait() }()
	}
	for n, left := 0, len(out); left > 0; n++ {
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("rogue: %v: %s %s", err, out[0].String(), out[1].String())
			}
			left--
		default:
		}
		switch n % 4 {
		case 0: // a PID file that the service's user made names no process of it, so most of these fail
			_ = h.command("start", "filed").Run()
			_ = h.command("stop", "filed").Run()
		case 1:
			h.diakonos("restart", "chatty")
		case 2:
			shim, err := find(h.home, "shim:chatty")
			if err != nil {
				t.Fatal(err)
			}
			syscall.Kill(shim.pid, syscall.SIGKILL)
			if !eventually(testPatience, func() bool {
				now, err := find(h.home, "shim:chatty")
				return err == nil && now.pid != shim.pid && h.status("chatty")["supervised"] == true
			}) {
				t.Fatal("no shim comes after the one that was killed")
			}
		case 3:
			if text := h.diakonos("logs", "chatty"); strings.Contains(text, "decoy") && !linkable() {
				at := strings.Index(text, "decoy")
				t.Errorf("the log shows what is not its own:\n%s", text[max(0, at-300):min(len(text), at+300)])
			}
		}
	}
	h.diakonos("stop", "chatty", "filed")
	h.diakonos("forget", "chatty", "filed")
	if after := look(); after != before {
		t.Errorf("foreign files were\n%sand are\n%s", before, after)
	}
	for i := range out {
		var made int
		if n, _ := fmt.Sscanf(out[i].String(), "made %d", &made); n != 1 || made < swaps/2 {
			t.Errorf("rogue said %q: most of %d should have gone well", out[i].String(), swaps)
		}
	}
}

// linkable: anybody may make a hard link to a file of somebody else (fs.protected_hardlinks of man 5 proc): then it cannot be told from one's own.
func linkable() bool {
	text, _ := os.ReadFile("/proc/sys/fs/protected_hardlinks")
	return strings.TrimSpace(string(text)) != "1"
}

// ---- terminals

// openTerminal returns the two ends of a new pseudo-terminal (man 7 pty).
func openTerminal(t *testing.T) (ours, theirs *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		skip(t, "no pseudo-terminal: "+err.Error())
	}
	t.Cleanup(func() { ours.Close() })
	unlock := 0
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, ours.Fd(), unix.TIOCSPTLCK, uintptr(unsafe.Pointer(&unlock))); e != 0 {
		t.Fatal(e)
	}
	n, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if theirs, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|syscall.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(theirs.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 100}); err != nil {
		t.Fatal(err)
	}
	return ours, theirs
}

// onTerminal runs a command whose three descriptors are a terminal, and returns all that it wrote there.
func onTerminal(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	ours, theirs := openTerminal(t)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, theirs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	cmd.Env = append(slices.DeleteFunc(cmd.Env, func(e string) bool { return strings.HasPrefix(e, "NO_COLOR=") }), "TERM=xterm-256color", "LANG=C.UTF-8")
	err := cmd.Start()
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	stuck := time.AfterFunc(commandPatience, func() { cmd.Process.Kill() })
	text, _ := io.ReadAll(ours) // EIO when the last process of the terminal has ended
	_ = cmd.Wait()              // many of these fail as they should
	if !stuck.Stop() {
		t.Errorf("%q does not end", cmd.Args)
	}
	return string(text)
}

// ownInk is what our own colours look like: SGR sequences, nothing else (ECMA-48).
var ownInk = regexp.MustCompile(`\x1b\[[0-9]{1,2}(;[0-9]{1,2})*m`)

// ownGlyphs are the characters beyond ASCII that our own screens draw with.
const ownGlyphs = "●○…├└─│"

// foreignIn returns the first thing in what a terminal got that is none of ours; "" = there is none. Texts of services are plain ASCII here, so
// that all that is neither that nor ours has come through unseen.
func foreignIn(text string) string {
	text = strings.ReplaceAll(ownInk.ReplaceAllString(text, ""), "\r\n", "\n")
	for i, r := range text {
		switch {
		case r == '\n' || r == '\t' || r >= ' ' && r <= '~':
		case r == utf8.RuneError, !strings.ContainsRune(ownGlyphs, r):
			return fmt.Sprintf("%q at %d of %q", r, i, text[max(0, i-60):min(len(text), i+60)])
		}
	}
	return ""
}

func TestTerminalObserver(t *testing.T) {
	for _, c := range []struct {
		text string
		good bool
	}{
		{"plain\r\n\x1b[1mbold\x1b[0m \x1b[31;1m●\x1b[22m\r\n\ttab", true},
		{"\x1b]0;title\x07", false}, {"\x1b[2J", false}, {"\x1b[31", false}, {"a\rb", false}, {"\x9b31m", false}, {"\u009b31m", false},
		{"\u202egpj.exe", false}, {"\x1b[38;5;200;1;300m", false}, {"\x7f", false}, {"\x00", false}, {"\xff", false}, {"\x1bc", false},
	} {
		if got := foreignIn(c.text); (got == "") != c.good {
			t.Errorf("%q: got %q", c.text, got)
		}
	}
}

// hostile is what a terminal must never get from us: title, clipboard, hyperlink, screen, colour, reports, C1, return, backspace, bidi, bad UTF-8.
const hostile = "\x1b]0;t\x07\x1b]52;c;QQ==\x07\x1b]8;;http://x\x1b\\\x1b[2J\x1b[31m\x1b[6n\u009b31m\r\b\u202e\u2066\u200b\x7f"

// TestHostileTexts: names, paths, arguments, states and log lines with control characters go through every screen; a terminal gets nothing
// but text and our own colours.
func TestHostileTexts(t *testing.T) {
	h := newTestHome(t)
	h.home = filepath.Join(h.dir, "h\x1b[31m\u202e")
	services := filepath.Join(h.dir, "services\x1b]0;t\x07")
	if err := os.Mkdir(services, 0o755); err != nil {
		t.Fatal(err)
	}
	quoted := func(s string) string { // as a TOML string
		var b strings.Builder
		for _, r := range s {
			fmt.Fprintf(&b, `\u%04x`, r)
		}
		return `"` + b.String() + `"`
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(services, name), []byte(strings.ReplaceAll(text, "$SVC", h.svc)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	evil := quoted(hostile)
	write("told.service", "[unit]\nDescription = "+evil+"\nDocumentation = [\"https://x/\"]\n[service]\nType = \"notify\"\n"+
		`ExecStart = [["$SVC", "-mark", `+evil+`, "-spawn", "1", "-print", `+evil+`, "-eprint", `+evil+`, "-part", `+quoted("\x1b[2Jno newline")+
		`, "-notify", `+quoted("STATUS="+hostile+";READY=1")+"]]\n")
	write("failing.service", "[service]\nType = \"oneshot\"\nExecStart = [[\"sh\", \"-c\", \"printf '\\\\033[2J\\\\377\\\\n'; exit 3\"]]\n")
	write("lost.service", "[service]\nWorkingDirectory = "+quoted("/nowhere"+hostile)+"\nExecStart = \"$SVC\"\n")
	write("file.service", "[service]\nEnvironmentFile = "+quoted("/nowhere"+hostile)+"\nExecStart = \"$SVC\"\n")
	write("keys.service", "[service]\nExecStart = "+evil+"\n"+evil+" = 1\n["+evil+"]\nType = "+evil+"\n")
	write("after.service", "[unit]\nAfter = ["+evil+"]\nWants = ["+evil+"]\n[service]\nUser = "+evil+"\nExecStart = [["+evil+"]]\n")
	write("torn.service", "[service\n"+hostile)
	write("bad\x1b[31m\u202e.service", "[service]\n")
	if err := os.Symlink("/nowhere"+hostile, filepath.Join(services, "dangling.service")); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		t.Helper()
		got := onTerminal(t, h.command(append([]string{"--service-dir", services}, args...)...))
		if foreign := foreignIn(got); foreign != "" {
			t.Errorf("diakonos %q: %s", args, foreign)
		}
		return got
	}
	if got := run("start", "told"); !strings.Contains(got, "\x1b[") || !strings.Contains(got, "started") {
		t.Errorf("start: got %q, want the line of a job in colour", got)
	}
	for _, args := range [][]string{
		{"list"}, {"status"}, {"status", "told"}, {"logs", "told"}, {"logs", "told", "failing"}, {"--json", "status", "told"}, {"--json", "logs", "told"},
		{"--json", "list"}, {"daemon-status"}, {"--json", "daemon-status"}, {"check"}, {"start", "failing"}, {"status", "failing"}, {"start", "lost"}, {"start", "file"},
		{"start", "keys"}, {"start", "after"}, {"start", "torn"}, {"start", "dangling"}, {"start", "nothere"}, {"restart", "told", "lost"}, {"reload", "told"}, {"enable", "told"},
		{"--json", "start", "lost"}, {"list"}, {"status", "lost", "file"}, {"reset-failed", "lost"}, {"disable", "told"}, {"forget", "told"},
		{hostile}, {"--" + hostile}, {"-" + hostile}, {"status", hostile}, {"start", hostile}, {"logs", "--since", hostile, "told"}, {"logs", "-n", hostile, "told"},
		{"help", hostile}, {"check", "/nowhere/" + hostile + ".service"}, {"check", hostile}, {"check", services + "/keys.service"}, {"--home", "/dev/null/" + hostile, "list"},
		{"--home", "/dev/null/" + hostile, "daemon"}, {"--service-dir", "/nowhere/" + hostile, "list"}, {"--service-dir", "/nowhere/" + hostile, "start", "told"},
		{"install", "/dev/null/" + hostile}, {"daemon", hostile}, {"kill", hostile}, {"status", "told"}, {"list"}, {"daemon-status"}, {"kill"},
	} {
		if got := run(args...); got == "" {
			t.Errorf("diakonos %q says nothing", args)
		}
	}
	h.hostileForeground(services)
}

// hostileForeground lets a daemon in the foreground tell on its terminal of a unit that it cannot start.
func (h *testHome) hostileForeground(services string) {
	t := h.t
	if err := os.WriteFile(filepath.Join(h.home, "enabled", "keys"), []byte(services+"/keys.service\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ended := make(chan string, 1)
	go func() { ended <- onTerminal(t, h.command("--service-dir", services, "daemon")) }()
	if !eventually(testPatience, func() bool { return h.command("daemon-status").Run() == nil }) {
		t.Error("no daemon in the foreground")
	}
	h.diakonos("kill")
	got := <-ended
	if foreign := foreignIn(got); foreign != "" || !strings.Contains(got, "keys.service") {
		t.Errorf("the daemon says %q: %s", got, foreign)
	}
}

// ---- secrets

// TestSecrets: values from EnvironmentFile and PassEnvironment are in no file of ours and in no output, values from Environment only in the
// unit as it was written; not even after daemon and shim were made to crash with their stacks shown.
func TestSecrets(t *testing.T) {
	const (
		inline = "INLINE-CANARY-4711"
		file   = "FILE-CANARY-4712"
		passed = "PASSED-CANARY-4713"
	)
	h := newTestHome(t)
	for name, text := range map[string]string{"env": "SECRET=" + file + "\n", "env.torn": "SECRET " + file + "\nX='" + file + "\n"} {
		if err := os.WriteFile(filepath.Join(h.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	environment := "Environment = [\"INLINE=" + inline + "\"]\nPassEnvironment = [\"PASSED\"]\nEnvironmentFile = "
	h.unit("web", "[service]\nType = \"notify\"\n"+environment+"\""+h.dir+"/env\"\nExecStart = \"$SVC -lock "+h.dir+"/web.lock -notify STATUS=fine;READY=1\"\n"+
		"ExecStartPre = [[\"$SVC\", \"-exit-after\", \"0s\"]]\nExecReload = \"true\"\nExecStop = \"true\"\nExecStopPost = \"false\"\n")
	h.unit("torn", "[service]\n"+environment+"\""+h.dir+"/env.torn\"\nExecStart = \"$SVC\"\n")
	h.unit("failing", "[service]\nType = \"oneshot\"\n"+environment+"\""+h.dir+"/env\"\nExecStart = \"$SVC -exit-after 0s -code 3\"\n")
	h.unit("nowhere", "[service]\n"+environment+"\""+h.dir+"/env\"\nExecStart = \"no-such-program $SECRET $INLINE $PASSED\"\n")
	var said bytes.Buffer
	run := func(args ...string) {
		cmd := h.command(args...)
		cmd.Env = append(cmd.Env, "PASSED="+passed)
		out, _ := cmd.CombinedOutput() // some fail as they should
		fmt.Fprintf(&said, "diakonos %q: %s\n", args, out)
	}
	all := func() {
		for _, args := range [][]string{{"list"}, {"status"}, {"status", "web", "torn", "failing", "nowhere"}, {"--json", "status", "web", "torn"}, {"--json", "list"}, {"daemon-status"},
			{"--json", "daemon-status"}, {"logs", "web", "failing"}, {"--json", "logs", "web"}, {"check"}, {"check", "torn"}, {"help", "keys"}} {
			run(args...)
		}
	}
	for _, args := range [][]string{{"start", "web", "torn", "failing", "nowhere"}, {"--json", "start", "torn", "nowhere"}, {"enable", "web"}, {"reload", "web"}, {"restart", "web"}} {
		run(args...)
	}
	main, err := find(h.home, "web")
	if err != nil {
		t.Fatalf("%v; said:\n%s", err, said.String())
	}
	environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", main.pid))
	for _, secret := range []string{inline, file, passed} {
		if !bytes.Contains(environ, []byte(secret)) {
			t.Errorf("the service does not have %s", secret)
		}
	}
	all()
	for _, who := range []string{"shim:web", "@daemon"} {
		p, err := find(h.home, who)
		if err != nil {
			t.Fatal(err)
		}
		syscall.Kill(p.pid, syscall.SIGSEGV)
		if !eventually(testPatience, func() bool {
			now, err := find(h.home, who)
			return err == nil && now.pid != p.pid && h.status("web")["supervised"] == true
		}) {
			t.Fatalf("nothing comes after %s, which has crashed", p)
		}
	}
	log, _ := os.ReadFile(filepath.Join(h.home, "daemon.log"))
	if n := bytes.Count(log, []byte("\ngoroutine ")); n < 2 {
		t.Errorf("daemon.log shows %d stacks, want those of both crashes", n)
	}
	all()
	run("stop", "web")
	all()
	for _, secret := range []string{inline, file, passed} {
		if strings.Contains(said.String(), secret) {
			t.Errorf("%s is in what was said:\n%s", secret, said.String())
		}
	}
	h.searchHome(t, []string{file, passed}, nil)
	h.searchHome(t, []string{inline}, regexp.MustCompile(`/run/[^/]*/unit\.json$|/[0-9a-f]{16}/[^/]*/unit\.json$`))
}

// searchHome fails the test for each file of the home that holds a secret and is not one of the allowed, and for an allowed one that others may read.
func (h *testHome) searchHome(t *testing.T, secrets []string, allowed *regexp.Regexp) {
	t.Helper()
	run, err := filepath.EvalSymlinks(filepath.Join(h.home, "run"))
	if err != nil {
		t.Fatal(err)
	}
	files := 0
	for _, dir := range []string{h.home, run} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			files++
			info, err := d.Info()
			if err != nil {
				return err
			}
			for _, secret := range secrets {
				if !bytes.Contains(text, []byte(secret)) {
					continue
				}
				if allowed == nil || !allowed.MatchString(path) || info.Mode().Perm() != 0o600 {
					t.Errorf("%s (%s) holds %s", path, info.Mode(), secret)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if files < 10 {
		t.Errorf("only %d files were looked at", files)
	}
}

// ---- foreign processes

// TestForeignProcesses: a service names all kinds of processes as its main process, by MAINPID and by PIDFile. None that is not its own is taken,
// each is reported, and none gets a signal, neither then nor at the stop.
func TestForeignProcesses(t *testing.T) {
	h := newTestHome(t)
	trap := filepath.Join(h.dir, "trapped")
	bystander := exec.Command(h.svc, "-trap", trap, "-print", "up")
	out, err := bystander.StdoutPipe()
	if err == nil {
		err = bystander.Start()
	}
	if err == nil {
		_, err = out.Read(make([]byte, 3)) // its handlers stand
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bystander.Process.Kill(); bystander.Wait() })
	h.unit("other", "[service]\nExecStart = \"$SVC -trap "+trap+"\"\n")
	h.diakonos("start", "other")
	other := h.status("other")
	daemon, err := find(h.home, "@daemon")
	if err != nil {
		t.Fatal(err)
	}
	number := func(v any) string { return strconv.Itoa(int(v.(float64))) }
	named := []string{"0", "-1", "1", "2147483648", "99999999999999999999", "nobody", "PPID", strconv.Itoa(bystander.Process.Pid), number(other["main_pid"]),
		number(other["shim_pid"]), strconv.Itoa(daemon.pid), strconv.Itoa(os.Getpid())}
	for i, pid := range named {
		h.checkNotified(fmt.Sprintf("notified%d", i), pid)
		h.checkFiled(fmt.Sprintf("filed%d", i), pid)
	}
	for _, how := range []string{"ln -s FILE pid", "ln FILE pid", "mkfifo pid", "mkdir pid", "head -c 100000 /dev/zero >pid", "printf '%s' \"$(cat FILE)\" >real; ln -s real pid"} {
		h.checkFiledBy("linked", strings.ReplaceAll(how, "FILE", filepath.Join(h.dir, "foreign.pid")), bystander.Process.Pid)
	}
	if text, _ := os.ReadFile(trap); len(text) > 0 {
		t.Errorf("a foreign process got %q", text)
	}
	if now := h.status("other"); now["main_pid"] != other["main_pid"] || now["shim_pid"] != other["shim_pid"] || now["active_state"] != active {
		t.Errorf("the other service is %v, was %v", now, other)
	}
	if isGone(daemon) || syscall.Kill(bystander.Process.Pid, 0) != nil {
		t.Error("daemon or bystander is gone")
	}
}

// reported waits until daemon.log says of a service that such a key names a process, or something that is none.
func (h *testHome) reported(name, key, pid string) {
	h.t.Helper()
	if pid == "PPID" { // only the service knows it
		pid = "[0-9]+"
	}
	want := regexp.MustCompile(fmt.Sprintf(`"%s": %s( .*)? names (process %s|"%s"), .*: ignored\n`, name, key, pid, pid))
	var log []byte
	if !eventually(testPatience, func() bool { log, _ = os.ReadFile(filepath.Join(h.home, "daemon.log")); return want.Match(log) }) {
		h.t.Errorf("nothing in daemon.log matches %s:\n%s", want, tail(log, 2000))
	}
}

// checkNotified starts a service that says MAINPID=pid; PPID is its shim.
func (h *testHome) checkNotified(name, pid string) {
	h.t.Helper()
	h.unit(name, "[service]\nType = \"notify\"\nNotifyAccess = \"all\"\nExecStart = [[\"$SVC\", \"-lock\", \""+h.dir+"/"+name+".lock\", \"-notify\", \"MAINPID="+pid+";READY=1\"]]\n")
	h.diakonos("start", name)
	lock, _ := os.ReadFile(filepath.Join(h.dir, name+".lock"))
	if st := h.status(name); st["main_pid"] != float64(lastPID(string(lock))) {
		h.t.Errorf("MAINPID=%s: the main process is %v, want %d", pid, st["main_pid"], lastPID(string(lock)))
	}
	h.reported(name, "MAINPID", pid)
	h.diakonos("stop", name)
}

// checkFiled starts a forking service that leaves a process and writes another PID into its PIDFile.
func (h *testHome) checkFiled(name, pid string) {
	h.t.Helper()
	h.startFiled(name, "echo "+strings.Replace(pid, "PPID", "$PPID", 1)+" >pid")
	h.reported(name, "PIDFile", pid)
}

func (h *testHome) checkFiledBy(name, how string, foreign int) {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(h.dir, "foreign.pid"), fmt.Appendln(nil, foreign), 0o644); err != nil {
		h.t.Fatal(err)
	}
	h.startFiled(name, how)
}

// startFiled demands that the start fails, since PIDFile never names a process of the service, and that nothing is left of it.
func (h *testHome) startFiled(name, how string) {
	h.t.Helper()
	dir := filepath.Join(h.dir, name+".d")
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o755)); err != nil {
		h.t.Fatal(err)
	}
	h.unit(name, "[service]\nType = \"forking\"\nWorkingDirectory = \""+dir+"\"\nPIDFile = \""+dir+"/pid\"\nTimeoutStartSec = \"300ms\"\n"+
		"ExecStart = [[\"sh\", \"-c\", '''"+how+"; exec $SVC -fork-away -mark "+dir+"''']]\n")
	if out, err := h.command("start", name).CombinedOutput(); err == nil {
		h.t.Errorf("%s: the start goes well: %s", how, out)
	}
	if st := h.status(name); st["active_state"] != failedUnit || st["main_pid"] != 0.0 {
		h.t.Errorf("%s: %v", how, st)
	}
	for _, p := range readProcesses() {
		if isNamed(p, filepath.Base(h.svc)) && strings.HasSuffix(p.command, "-mark "+dir) {
			h.t.Errorf("%s: %s is left", how, p)
		}
	}
}

// ---- panics

// roguePanic is a daemon in the foreground whose state is spoilt while it handles a request that says so: the handler panics.
func roguePanic(serviceDir string) {
	m, err := newManager(home{os.Getenv(homeVariable)}, modeForeground)
	check(err)
	m.serviceDir = serviceDir
	check(m.listen())
	m.watchSignals()
	check(m.announceSelf())
	m.adoptAll()
	go m.accept(m.listener)
	for !m.ending { // loop, with what is spoilt put right afterwards
		msg := m.next()
		if r, ok := msg.(msgRequest); ok && r.r.Build == "spoil" {
			jobs, files := m.jobs, m.files
			m.jobs, m.files, m.services["spoilt"] = nil, nil, nil
			m.handle(msg)
			m.jobs, m.files = jobs, files
			delete(m.services, "spoilt")
		} else {
			m.handle(msg)
		}
		m.settle()
	}
	m.own.end()
}

// TestPanicCostsOneRequest: whichever handler panics, its client is told, and daemon, services and other clients do not notice.
func TestPanicCostsOneRequest(t *testing.T) {
	h := newTestHome(t)
	h.unit("web", "[service]\nExecStart = \"$SVC -lock "+h.dir+"/web.lock\"\nExecReload = \"true\"\n")
	h.unit("idle", "[service]\nExecStart = \"$SVC\"\n")
	services := filepath.Join(h.dir, "services")
	daemon := exec.Command("rogue", "panic", services)
	daemon.Env = append(os.Environ(), homeVariable+"="+h.home)
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { daemon.Process.Kill(); daemon.Wait() })
	if !eventually(testPatience, func() bool { return h.command("daemon-status").Run() == nil }) {
		t.Fatal("no daemon answers")
	}
	h.diakonos("start", "web", "idle")
	h.diakonos("stop", "idle")
	before := h.status("web")
	// disable only removes a file.
	for _, verb := range []string{"list", "status", "daemon-status", verbStart, verbStop, verbRestart, verbReload, "enable", "reset-failed", "forget", "kill"} {
		r := request{Proto: protocolVersion, Build: "spoil", Verb: verb, ServiceDir: services, Names: []string{"web"}}
		switch verb {
		case "forget":
			r.Names = []string{"idle"}
		case "list", "daemon-status", "kill":
			r.Names = nil
		}
		c := newConn(dial(t, filepath.Join(h.home, socketName)))
		if err := c.sendJSON(r); err != nil {
			t.Fatal(err)
		}
		var answer reply
		for answer.Done == nil {
			if err := c.readJSON(&answer); err != nil {
				t.Fatalf("%s: %v", verb, err)
			}
		}
		if answer.Done.Code != exitFailed || !strings.Contains(answer.Done.Error, "internal error") {
			t.Errorf("%s: got %+v, want an internal error", verb, answer.Done)
		}
		for _, open := range []bool{true, false} { // with the connection of the request that failed, and without
			if syscall.Kill(daemon.Process.Pid, 0) != nil || len(daemonsOf(h.dir)) > 0 {
				t.Fatalf("%s: then the daemon is gone", verb)
			}
			if st := h.status("web"); st["main_pid"] != before["main_pid"] || st["shim_pid"] != before["shim_pid"] || st["active_state"] != active {
				t.Fatalf("%s: then web is %v, was %v", verb, st, before)
			}
			h.diakonos("start", "idle")
			h.diakonos("stop", "idle")
			if open {
				c.close()
			}
		}
	}
	d, err := home{h.home}.readDaemon()
	if err != nil || d.Wanted != wantedRunning || d.Daemon.PID != daemon.Process.Pid {
		t.Errorf("daemon.json says %+v, %v", d, err)
	}
	h.diakonos("kill")
}

// ---- what a service inherits

// rogueSoil becomes another program with all that a careless parent may leave to it: open descriptors, ignored and blocked signals, a umask. With
// "closed" before the command it has no standard descriptors at all.
func rogueSoil(args []string) {
	closed := args[0] == "closed"
	if closed {
		args = args[1:]
	}
	path, err := exec.LookPath(args[0])
	check(err)
	null, err := unix.Open("/dev/null", unix.O_RDWR, 0)
	check(err)
	for _, fd := range []int{7, 63, 500} {
		check(unix.Dup3(null, fd, 0))
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	check(err)
	_ = pair // inherited, as is null
	unix.Umask(0o027)
	runtime.LockOSThread()
	action := [4]uint64{1} // SIG_IGN of struct sigaction
	for sig := 1; sig <= 64; sig++ {
		_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0) // not of SIGKILL and SIGSTOP
	}
	every := ^uint64(0)
	_, _, e := unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&every)), 0, 8, 0, 0)
	if e != 0 {
		check(e)
	}
	if closed {
		_, _, _ = unix.RawSyscall(unix.SYS_CLOSE_RANGE, 0, 2, 0)
	}
	check(syscall.Exec(path, args, os.Environ()))
}

// TestServiceStartsClean: however the daemon was started and whoever started the service, each of its commands has descriptors 0, 1 and 2, an
// empty mask, default dispositions, a session of its own and the umask of its unit.
func TestServiceStartsClean(t *testing.T) {
	look := `["$SVC -fds -exit-after 0s", "cat /proc/self/status"]`
	text := "[service]\nType = \"oneshot\"\nRemainAfterExit = true\nUMask = \"0026\"\n"
	commands := []string{"ExecStartPre", "ExecStart", "ExecStartPost", "ExecReload", "ExecStop", "ExecStopPost"}
	for _, key := range commands {
		text += key + " = " + look + "\n"
	}
	foreground := func(h *testHome, args ...string) {
		daemon := h.command("daemon")
		daemon.Path, _ = exec.LookPath("rogue")
		daemon.Args = append([]string{"rogue", "soil"}, args...)
		if err := daemon.Start(); err != nil {
			h.t.Fatal(err)
		}
		h.t.Cleanup(func() { daemon.Process.Kill(); daemon.Wait() })
	}
	soiled := func(h *testHome, args ...string) {
		cmd := h.command()
		cmd.Path, _ = exec.LookPath("rogue")
		cmd.Args = append([]string{"rogue", "soil"}, args...)
		if err := cmd.Run(); err != nil {
			h.t.Errorf("%q: %v", args, err)
		}
	}
	for _, c := range []struct {
		why   string
		begin func(h *testHome)
	}{
		{"a command", func(h *testHome) {}},
		{"a careless command", func(h *testHome) { soiled(h, "diakonos", "start", "keeper") }},
		{"a command without standard descriptors", func(h *testHome) { soiled(h, "closed", "diakonos", "start", "keeper") }},
		{"a careless parent, in the foreground", func(h *testHome) { foreground(h, daemonName) }},
		{"a parent that leaves no standard descriptors, in the foreground", func(h *testHome) { foreground(h, "closed", daemonName) }},
		{"a shim of a careless command", func(h *testHome) {
			soiled(h, "diakonos", "start", "keeper")
			old, err := find(h.home, "@daemon")
			if err != nil {
				h.t.Fatal(err)
			}
			syscall.Kill(old.pid, syscall.SIGKILL)
			if !eventually(testPatience, func() bool { now, err := find(h.home, "@daemon"); return err == nil && now.pid != old.pid }) {
				h.t.Fatal("no shim starts a daemon")
			}
		}},
	} {
		t.Run(c.why, func(t *testing.T) {
			h := newTestHome(t)
			h.unit("looks", text)
			h.unit("keeper", "[service]\nExecStart = \"$SVC\"\n")
			c.begin(h)
			if !eventually(testPatience, func() bool { return h.command("start", "looks").Run() == nil }) {
				h.diakonos("start", "looks")
			}
			h.diakonos("reload", "looks")
			h.diakonos("stop", "looks")
			lines, err := logText(h.home, "looks")
			if err != nil {
				t.Fatal(err)
			}
			for want, like := range map[string]string{"fds 0 1 2": "fds ", "leader session=true group=true": "leader ", "umask 0026": "umask ",
				"SigBlk:\t0000000000000000": "SigBlk:", "SigIgn:\t0000000000000000": "SigIgn:", "SigPnd:\t0000000000000000": "SigPnd:"} {
				var got []string
				for _, l := range lines {
					if strings.HasPrefix(l, like) {
						got = append(got, l)
					}
				}
				if !slices.Equal(got, slices.Repeat([]string{want}, len(commands))) {
					t.Errorf("got %q, want %q for each of %q", got, want, commands)
				}
			}
		})
	}
}
