// Role: svc, the service that the scripts run: says, notifies, forks, hangs, locks and dies as told.
// Runs in: go test, as a service of its own.
// Owns: nothing.
// Uses: observe, sys.

package main

import (
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// svcFlags: what svc does, in this order. Without -exit-after, -die or -seq-lines it lives until a signal ends it.
type svcFlags struct {
	forkAway   bool
	forkCode   int
	pidfile    string
	ignoreTerm bool
	termCode   int
	trap       string
	record     string
	pids       string
	lazyInit   string
	lock       string
	spawn      int
	setsid     bool
	mark       string
	say        []string // stream letter and text
	env        bool
	fds        bool
	readyAfter time.Duration
	notify     []string
	firstExits bool
	waitFor    string
	then       string
	seq        string
	seqLines   uint64
	seqEvery   time.Duration
	seqBurst   uint64
	seqRun     uint64
	same       string
	ends       string
	exitAfter  time.Duration
	exits      bool
	code       int
	die        string
}

func svcMain() {
	f := parseSvc()
	if f.forkAway {
		forkAway(f)
	}
	if f.lazyInit != "" {
		beLazyInit(f.lazyInit)
	}
	if f.record != "" {
		recordSignals(f.record, f.pids)
	}
	handleSignals(f)
	if f.lock != "" {
		takeLock(f.lock)
	}
	spawnMany(f)
	report(f)
	if f.pidfile != "" {
		os.WriteFile(f.pidfile, fmt.Appendf(nil, "%d\n", os.Getpid()), 0o644)
	}
	released()
	if f.waitFor != "" {
		for _, err := os.Stat(f.waitFor); err != nil; _, err = os.Stat(f.waitFor) {
			time.Sleep(2 * time.Millisecond)
		}
	}
	if f.firstExits {
		exitFirstThread()
	}
	time.Sleep(f.readyAfter)
	for _, text := range f.notify {
		notify(strings.NewReplacer("PPID", strconv.Itoa(os.Getppid()), "PID=SELF", "PID="+strconv.Itoa(os.Getpid())).Replace(text))
	}
	if f.then != "" {
		appendLine(f.then, strings.Join(flag.Args(), " "))
	}
	if f.seq != "" {
		countTo(f)
	}
	end(f)
}

func parseSvc() svcFlags {
	var f svcFlags
	add := func(list *[]string, prefix string) func(string) error {
		return func(s string) error { *list = append(*list, prefix+s); return nil }
	}
	flag.BoolVar(&f.forkAway, "fork-away", false, "become a daemon by double fork; the parent exits when it is ready")
	flag.IntVar(&f.forkCode, "fork-code", 0, "exit code of the parent of -fork-away")
	flag.StringVar(&f.pidfile, "pidfile", "", "write the PID here")
	flag.BoolVar(&f.ignoreTerm, "ignore-term", false, "ignore SIGTERM")
	flag.IntVar(&f.termCode, "term-code", -1, "exit with this code on SIGTERM")
	flag.StringVar(&f.trap, "trap", "", "append the names of HUP, INT, QUIT, USR1, USR2 and TERM to this file; TERM and INT end svc")
	flag.StringVar(&f.record, "record", "", "start another process, print its PID, and append each signal that it gets to this file, as `NAME from PID PROGRAM`")
	flag.StringVar(&f.lazyInit, "lazy-init", "", "be the subreaper of the command in the arguments, and reap nothing until this file exists")
	flag.StringVar(&f.pids, "pids", "0", "start such processes of -record with these PIDs, as 1,2,3")
	flag.StringVar(&f.lock, "lock", "", "take this file's lock and append `PID START BOOT`; append DUP if it is taken")
	flag.IntVar(&f.spawn, "spawn", 0, "start so many children that live for ever")
	flag.BoolVar(&f.setsid, "setsid", false, "the children of -spawn lead sessions of their own and ignore SIGTERM")
	flag.StringVar(&f.mark, "mark", "", "for pgrep: the children of -spawn have it too")
	flag.Func("print", "print this line (may be repeated)", add(&f.say, "o"))
	flag.Func("eprint", "print this line to stderr (may be repeated)", add(&f.say, "e"))
	flag.Func("part", "print this text without newline (may be repeated)", add(&f.say, "p"))
	flag.BoolVar(&f.env, "env", false, "print the environment as `env NAME=value`")
	flag.BoolVar(&f.fds, "fds", false, "print descriptors, signals, session, umask, directory, user and limits")
	flag.StringVar(&f.waitFor, "wait-file", "", "wait until this file exists")
	flag.BoolVar(&f.firstExits, "first-thread-exits", false, "end the first thread after -wait-file, and print `first thread ended`")
	flag.DurationVar(&f.readyAfter, "ready-after", 0, "wait so long before -notify and -append")
	flag.Func("notify", "send this to NOTIFY_SOCKET (may be repeated); PID=SELF and PPID are filled in", add(&f.notify, ""))
	flag.StringVar(&f.then, "append", "", "append the arguments as one line to this file")
	flag.StringVar(&f.seq, "seq", "", "print `seq N` for ever and count in this mapped file")
	flag.Uint64Var(&f.seqLines, "seq-lines", 0, "end after so many lines of -seq")
	flag.DurationVar(&f.seqEvery, "seq-every", 0, "pause between lines of -seq")
	flag.Uint64Var(&f.seqBurst, "seq-burst", 1, "pause only after so many lines of -seq")
	flag.Uint64Var(&f.seqRun, "seq-run", 0, "end after so many lines of -seq in this run")
	flag.StringVar(&f.same, "same", "", "print this line instead of `seq N`")
	flag.StringVar(&f.ends, "ends", "", "right before the end append `PID N BOOTTIME` to this file; N is the counter of -seq")
	flag.Func("exit-after", "exit after this time", func(s string) (err error) {
		f.exits = true
		f.exitAfter, err = time.ParseDuration(s)
		return err
	})
	flag.IntVar(&f.code, "code", 0, "exit code")
	flag.StringVar(&f.die, "die", "", "die by this signal after -exit-after")
	flag.Parse()
	return f
}

// exitFirstThread ends the thread whose number is the PID, as pthread_exit(3) in main does. /proc shows a zombie then, which lives.
func exitFirstThread() {
	for range 64 { // each takes a thread for itself until one has the first
		go func() {
			runtime.LockOSThread()
			if unix.Gettid() == os.Getpid() {
				syscall.Syscall(syscall.SYS_EXIT, 0, 0, 0)
			}
			select {}
		}()
	}
	for {
		if st, err := readStat(os.Getpid()); err == nil && st.state == 'Z' {
			fmt.Println("first thread ended")
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// forkedMark holds the number of the pipe's descriptor in the environment of the forked ones.
const forkedMark = "SVC_FORKED"

// forkAway does what daemon(3) programs do: fork, setsid, fork; the first parent leaves when the last child is
// ready. It returns in the last child.
func forkAway(f svcFlags) {
	switch os.Getenv(forkedMark) {
	case "":
		r, w, err := os.Pipe()
		check(err)
		check(forkSelf("middle", w, &syscall.SysProcAttr{Setsid: true}).Wait())
		w.Close()
		io.ReadAll(r)
		os.Exit(f.forkCode)
	case "middle":
		forkSelf("last", os.NewFile(3, "ready"), nil)
		os.Exit(0)
	}
	os.Unsetenv(forkedMark)
	syscall.CloseOnExec(3) // the children of -spawn must not hold the pipe
}

func forkSelf(mark string, ready *os.File, attr *syscall.SysProcAttr) *exec.Cmd {
	exe, err := os.Executable()
	check(err)
	cmd := exec.Command(exe, os.Args[1:]...)
	cmd.Env = append(os.Environ(), forkedMark+"="+mark)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{ready}
	cmd.SysProcAttr = attr
	check(cmd.Start())
	return cmd
}

// released closes the pipe to the first parent, if there is one: closing a descriptor that is not open does nothing.
func released() {
	for _, arg := range os.Args {
		if arg == "-fork-away" {
			syscall.Close(3)
		}
	}
}

// endCount asks countTo to end, for it must not be between a line and its count.
var endCount = make(chan struct{}, 16)

func handleSignals(f svcFlags) {
	if f.ignoreTerm {
		signal.Ignore(syscall.SIGTERM)
	}
	if f.termCode < 0 && f.trap == "" {
		return
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	if !f.ignoreTerm {
		signal.Notify(signals, syscall.SIGTERM)
	}
	go func() {
		for s := range signals {
			if f.trap != "" {
				appendLine(f.trap, unix.SignalName(s.(syscall.Signal)))
			}
			if s != syscall.SIGTERM && s != syscall.SIGINT {
				continue
			}
			if f.seq == "" {
				os.Exit(max(f.termCode, 0))
			}
			endCount <- struct{}{}
		}
	}()
}

// beLazyInit leaves the zombies that fall to it as they are for a while.
func beLazyInit(file string) {
	check(unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
	cmd := exec.Command(flag.Arg(0), flag.Args()[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	check(cmd.Run())
	for _, err := os.Stat(file); err != nil; _, err = os.Stat(file) {
		time.Sleep(2 * time.Millisecond)
	}
	for {
		if _, err := syscall.Wait4(-1, nil, 0, nil); err != nil && err != syscall.EINTR {
			os.Exit(0)
		}
	}
}

// recordSignals starts `sleep`, prints its PID, and traces it: each signal that it gets is written down with its sender, and not delivered.
// Only a tracer learns of all, SIGSTOP among them; the Go runtime would take some for itself. With PIDs, as `1,2,3`, it starts one for
// each, which has it.
func recordSignals(file, pids string) {
	runtime.LockOSThread() // a thread is the tracer
	for want := range strings.SplitSeq(pids, ",") {
		n, _ := strconv.Atoi(want) // 0 = any
		fmt.Println(startTraced(n))
	}
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WALL, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil { // none is left
			os.Exit(0)
		}
		if !ws.Stopped() {
			appendLine(file, fmt.Sprintf("%s, and is dead (%d)", unix.SignalName(ws.Signal()), pid))
			continue
		}
		name := unix.SignalName(ws.StopSignal())
		if name == "" {
			name = fmt.Sprintf("signal %d", ws.StopSignal())
		}
		var info [128]byte // siginfo_t: sigaction(2)
		syscall.Syscall6(syscall.SYS_PTRACE, unix.PTRACE_GETSIGINFO, uintptr(pid), 0, uintptr(unsafe.Pointer(&info)), 0, 0)
		from := int(binary.NativeEndian.Uint32(info[16:]))
		sender, _ := readProcess(from) // 0 = the kernel, or one of another PID namespace
		appendLine(file, fmt.Sprintf("%s from %d %s (%d)", name, from, sender.command, pid))
		syscall.PtraceCont(pid, 0) // fails if it is gone
	}
}

// startTraced starts `sleep` with this PID, 0 = any. Others may start processes meanwhile, so it may take several attempts.
func startTraced(want int) int {
	for range 50 {
		if want != 0 {
			check(os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(want-1)), 0))
		}
		cmd := exec.Command("sleep", "infinity")
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL}
		check(cmd.Start())
		pid := cmd.Process.Pid
		var ws syscall.WaitStatus
		_, err := syscall.Wait4(pid, &ws, 0, nil) // its execve
		check(err)
		if want == 0 || want == pid {
			check(syscall.PtraceSetOptions(pid, unix.PTRACE_O_EXITKILL))
			check(syscall.PtraceCont(pid, 0))
			return pid
		}
		cmd.Process.Kill()
		syscall.Wait4(pid, &ws, syscall.WALL, nil)
	}
	check(fmt.Errorf("PID %d is not to be had", want))
	return 0
}

// takeLock proves from outside that a service runs once: the lock goes with the process that holds it.
func takeLock(file string) {
	fd, err := syscall.Open(file, syscall.O_RDWR|syscall.O_CREAT|syscall.O_APPEND, 0o644) // inherited by -spawn on purpose: no O_CLOEXEC
	check(err)
	line := "DUP\n"
	if syscall.Flock(fd, syscall.LOCK_EX|syscall.LOCK_NB) == nil {
		boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
		self, _ := readProcess(os.Getpid())
		line = fmt.Sprintf("%d %s %s", os.Getpid(), self.start, boot)
	}
	syscall.Write(fd, []byte(line))
}

func spawnMany(f svcFlags) {
	for range f.spawn {
		exe, err := os.Executable()
		check(err)
		cmd := exec.Command(exe, "-mark", f.mark)
		if f.setsid {
			cmd.Args = append(cmd.Args, "-ignore-term")
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		}
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		check(cmd.Start())
	}
}

func report(f svcFlags) {
	if f.fds {
		reportProcess()
	}
	if f.env {
		for _, e := range os.Environ() {
			fmt.Println("env " + e)
		}
	}
	for _, s := range f.say {
		switch s[0] {
		case 'o':
			fmt.Println(s[1:])
		case 'e':
			fmt.Fprintln(os.Stderr, s[1:])
		case 'p':
			fmt.Print(s[1:])
		}
	}
}

// reportProcess prints what a service inherits. Descriptors that came through execve are those without
// FD_CLOEXEC; the Go runtime's own have it.
func reportProcess() {
	var fds []string
	for fd := range 4096 {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			fds = append(fds, strconv.Itoa(fd))
		}
	}
	fmt.Println("fds " + strings.Join(fds, " "))
	sid, _ := unix.Getsid(0)
	fmt.Printf("leader session=%t group=%t\n", sid == os.Getpid(), unix.Getpgrp() == os.Getpid())
	umask := syscall.Umask(0)
	syscall.Umask(umask)
	cwd, _ := os.Getwd()
	groups, _ := os.Getgroups()
	fmt.Printf("umask %04o\ncwd %s\nuid %d\ngid %d\ngroups %v\n", umask, cwd, os.Getuid(), os.Getgid(), groups)
	fmt.Printf("argv %q\n", os.Args)
}

// notify sends one datagram; without a socket it says so and goes on.
func notify(text string) {
	addr := os.Getenv("NOTIFY_SOCKET")
	if addr == "" {
		fmt.Println("no NOTIFY_SOCKET")
		return
	}
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	check(err)
	defer syscall.Close(fd)
	check(syscall.Sendto(fd, []byte(strings.ReplaceAll(text, ";", "\n")), 0, &syscall.SockaddrUnix{Name: addr}))
}

func appendLine(file, line string) {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	check(err)
	defer f.Close()
	f.WriteString(line + "\n")
}

// countTo prints numbered lines; a number is stored only after its write returned. A service that is killed
// itself may repeat one line when it starts again; one that only loses its supervisors repeats none, nor does
// one with -term-code or -trap that is asked to end.
func countTo(f svcFlags) {
	fd, err := syscall.Open(f.seq, syscall.O_RDWR|syscall.O_CREAT|syscall.O_CLOEXEC, 0o644)
	check(err)
	check(syscall.Ftruncate(fd, 8))
	m, err := syscall.Mmap(fd, 0, 8, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	check(err)
	first := binary.NativeEndian.Uint64(m) + 1
	for n := first; (f.seqLines == 0 || n <= f.seqLines) && (f.seqRun == 0 || n < first+f.seqRun); n++ {
		select {
		case <-endCount:
			leave(f, n-1, max(f.termCode, 0))
		default:
		}
		line := f.same + "\n"
		if f.same == "" {
			line = fmt.Sprintf("seq %d\n", n)
		}
		if _, err := syscall.Write(1, []byte(line)); err != nil {
			os.Exit(90)
		}
		binary.NativeEndian.PutUint64(m, n)
		if n%f.seqBurst == 0 {
			select {
			case <-endCount:
				leave(f, n, max(f.termCode, 0))
			case <-time.After(f.seqEvery):
			}
		}
	}
	if f.seqRun > 0 {
		leave(f, binary.NativeEndian.Uint64(m), f.code)
	}
}

// leave says when it ends, and at which line.
func leave(f svcFlags, n uint64, code int) {
	if f.ends != "" {
		appendLine(f.ends, fmt.Sprintf("%d %d %d", os.Getpid(), n, bootNow()))
	}
	os.Exit(code)
}

func end(f svcFlags) {
	if !f.exits && f.die == "" && (f.seq == "" || f.seqLines == 0) {
		for {
			time.Sleep(time.Hour) // select{} would be a dead-lock to the runtime
		}
	}
	time.Sleep(f.exitAfter)
	if f.die != "" {
		sig := unix.SignalNum("SIG" + strings.TrimPrefix(f.die, "SIG"))
		signal.Reset(sig)
		unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
		dieBy(sig)
	}
	os.Exit(f.code)
}

// dieBy gives the signal its default action back past the Go runtime, which handles SIGABRT and SIGSEGV itself.
func dieBy(sig syscall.Signal) {
	if sig == syscall.SIGKILL {
		syscall.Kill(os.Getpid(), sig)
	}
	check(syscall.Exec("/bin/sh", []string{"sh", "-c", "kill -" + strconv.Itoa(int(sig)) + " $$"}, os.Environ()))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "svc: "+err.Error())
		os.Exit(99)
	}
}
