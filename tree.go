// Role: the process tree of a service: who belongs to it, what it uses, and how to signal all of it.
// Runs in: shim (stop), client (status).
// Owns: nothing.
// Uses: wire, sys, state.

package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// tree tells how to find the processes of one service.
type tree struct {
	home    home
	name    string
	cgroup  string   // directory of its cgroup; "" = none
	shim    int      // its shim: all descendants belong to it, for the shim is a subreaper; 0 = none
	members []pidRef // processes known by record: main, control, handed-over orphans
	adopted bool     // members are not (all) descendants of the shim
}

// list returns the PIDs of the tree. They may be gone the next moment; signal checks again.
func (t tree) list() []int {
	pids, _ := t.look()
	return pids
}

// look is list, with an error where it sees less than there is: /proc is not there (ENOENT), or cannot be read now.
func (t tree) look() ([]int, error) {
	if t.cgroup != "" {
		if pids, err := cgroupMembers(t.cgroup); err == nil {
			return pids, nil
		}
	}
	if !t.adopted && t.shim != 0 {
		if pids, ok := descendants(t.shim); ok {
			return t.withoutOurs(pids)
		}
	}
	return t.closure()
}

// cgroupMembers lists the processes of a cgroup and of those below it.
func cgroupMembers(dir string) ([]int, error) {
	b, err := readSmall(dir + "/cgroup.procs")
	if err != nil {
		return nil, err
	}
	var pids []int
	for f := range bytes.FieldsSeq(b) {
		if n, err := strconv.Atoi(string(f)); err == nil && n > 0 {
			pids = append(pids, n)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return pids, nil
	}
	for _, e := range entries {
		if e.IsDir() {
			sub, _ := cgroupMembers(dir + "/" + e.Name())
			pids = append(pids, sub...)
		}
	}
	return pids, nil
}

// oomKills is how many processes of a cgroup the kernel has killed for lack of memory so far; 0 without the memory controller.
func oomKills(dir string) uint64 {
	b, _ := readSmall(dir + "/memory.events")
	_, text, _ := strings.Cut("\n"+string(b), "\noom_kill ")
	text, _, _ = strings.Cut(text, "\n")
	n, _ := strconv.ParseUint(text, 10, 64) // 0 of what is no number
	return n
}

// cgroupEmpty reads cgroup.events, which covers the cgroups below too.
func cgroupEmpty(dir string) bool {
	b, err := readSmall(dir + "/cgroup.events")
	return errors.Is(err, unix.ENOENT) || err == nil && bytes.Contains(b, []byte("populated 0"))
}

// descendants lists the processes below pid, without pid. false: this kernel does not tell (CONFIG_PROC_CHILDREN), or not now.
func descendants(pid int) (all []int, ok bool) {
	all, ok = children(pid)
	for i := 0; i < len(all) && ok; i++ {
		var more []int
		more, ok = children(all[i])
		all = append(all, more...)
	}
	return all, ok
}

// children lists the live children of all threads of a process; none of one that is gone.
func children(pid int) (pids []int, ok bool) {
	dir := "/proc/" + strconv.Itoa(pid) + "/task"
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return nil, errors.Is(err, unix.ENOENT) && sysAccess("/proc/self/stat", unix.F_OK) == nil
	}
	for _, t := range tasks {
		b, err := readSmall(dir + "/" + t.Name() + "/children")
		if errors.Is(err, unix.ENOENT) && sysAccess(dir+"/"+t.Name(), unix.F_OK) == nil {
			return nil, false
		}
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ESRCH) {
			return nil, false
		}
		for f := range bytes.FieldsSeq(b) {
			if n, err := strconv.Atoi(string(f)); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids, true
}

// closure finds the tree over all processes: {members}, their descendants and the shim's, sessions led by a live member, and processes
// with the service's id in DIAKONOS_SCOPE, to a fixed point (DESIGN.md, section 3). Where it cannot look, it gives the members.
func (t tree) closure() ([]int, error) {
	all, err := processes()
	in := make(map[int]bool)
	for _, m := range t.members {
		if processAlive(m) {
			in[m.PID] = true
		}
	}
	mark := t.home.scopeID(t.name)
	for grown := true; grown; {
		grown = false
		for _, p := range all {
			if in[p.pid] || p.pid == t.shim || p.pid == os.Getpid() || p.ended() {
				continue
			}
			if in[p.ppid] || in[p.session] || t.shim != 0 && p.ppid == t.shim || inScope(p.pid, mark) {
				if !t.isOurs(p.pid, p.comm) {
					in[p.pid] = true
					grown = true
				}
			}
		}
	}
	var pids []int
	for pid := range in {
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids, err
}

// inScope tells whether the environment of a process names the service's id.
func inScope(pid int, id string) bool {
	for part := range strings.SplitSeq(scopeOf(pid), ":") {
		if part == id {
			return true
		}
	}
	return false
}

// scopeOf reads DIAKONOS_SCOPE from the environment that a process was started with. "" = none, or not ours to read.
func scopeOf(pid int) string {
	env, err := readSmall("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return ""
	}
	for assignment := range bytes.SplitSeq(env, []byte{0}) {
		if scope, ok := bytes.CutPrefix(assignment, []byte(scopeVariable+"=")); ok {
			return string(scope)
		}
	}
	return ""
}

// processes lists what /proc shows, in one pass.
func processes() ([]procStat, error) {
	names, err := readDirNames("/proc")
	if err == nil {
		err = sysAccess("/proc/self/stat", unix.F_OK) // the directory may be there without the file system
	}
	if err != nil {
		return nil, err
	}
	var all []procStat
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		s, err := readStat(pid)
		if isShortage(err) {
			return nil, err
		}
		if err == nil {
			all = append(all, s)
		}
	}
	return all, nil
}

func readDirNames(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// withoutOurs drops daemons and shims of this home: they are nobody's service. An error: of some it could not be told.
func (t tree) withoutOurs(pids []int) (list []int, wrong error) {
	for _, pid := range pids {
		s, err := readStat(pid)
		switch {
		case isShortage(err):
			wrong = err
		case err == nil && !s.ended() && !t.isOurs(pid, s.comm):
			list = append(list, pid)
		}
	}
	return list, wrong
}

// isOurs: a daemon or shim of this home. Its name may be anybody's; its working directory and PID file are not. One that has just become another
// program has the name of that file for a moment.
func (t tree) isOurs(pid int, comm string) bool {
	if !strings.HasPrefix(comm, "diakonos") {
		return false
	}
	if comm != shimName && t.home.isDaemon(pid) {
		return true
	}
	dir, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/cwd")
	if err != nil {
		return false
	}
	b, _ := readSmall(dir + "/shim.pid")
	return parsePIDFile(b) == pid && t.inRunRoot(dir)
}

func (t tree) inRunRoot(dir string) bool {
	var a, b unix.Stat_t
	i := strings.LastIndexByte(dir, '/')
	return i > 0 && sysStat(dir[:i], &a) == nil && sysStat(t.home.runRoot(), &b) == nil && a.Ino == b.Ino && a.Dev == b.Dev
}

// signal sends sig to every process of the tree. Each is pinned by a pidfd first and looked for again after, so that a PID which was
// recycled in between is spared. With SIGKILL and a cgroup the kernel does it in one go.
// An error: some may not have got it.
func (t tree) signal(sig syscall.Signal) error {
	if sig == syscall.SIGKILL && t.cgroup != "" && killCgroup(t.cgroup) {
		return nil
	}
	var wrong error
	note := func(err error) {
		if isShortage(err) || errors.Is(err, unix.EPERM) {
			wrong = err
		}
	}
	fds := make(map[int]int)
	pids, err := t.look()
	note(err)
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		note(err)
		if err == nil {
			fds[pid] = fd
		}
	}
	again, err := t.look()
	note(err)
	for pid, fd := range fds {
		if slices.Contains(again, pid) {
			reach("tree.signal")
			note(signalAndContinue(fd, sig))
		}
		unix.Close(fd)
	}
	return wrong
}

// killCgroup ends all processes of a cgroup and of those below it, in one go. false: this kernel cannot (before 5.14), or it is gone.
func killCgroup(dir string) bool {
	reach("cgroup.kill")
	return os.WriteFile(dir+"/cgroup.kill", []byte("1"), 0) == nil
}

// signalAndContinue: a stopped process could not act on the signal (systemd sends SIGCONT likewise).
func signalAndContinue(fd int, sig syscall.Signal) error {
	err := pidfdSignal(fd, sig)
	if err == nil && sig != syscall.SIGKILL && sig != syscall.SIGCONT {
		reach("signal.continue")
		_ = pidfdSignal(fd, syscall.SIGCONT)
	}
	return err
}

// ---- what is shown

// procInfo is one process for display.
type procInfo struct {
	PID, PPID   int
	Command     string
	State       byte
	MemoryBytes int64
	CPUSeconds  float64
}

// tree lists the processes of a service, parents first.
func (h home) tree(s unitStatus) []procInfo {
	boot, _, err := bootIdentity()
	if err != nil {
		return nil
	}
	rec, err := h.readState(s.Name, boot)
	if err != nil {
		return nil
	}
	t := tree{home: h, name: s.Name, cgroup: rec.Cgroup, shim: s.ShimPID, members: append([]pidRef{rec.Main, rec.Control}, rec.Orphans...), adopted: true}
	var list []procInfo
	for _, pid := range t.list() {
		st, err := readStat(pid)
		if err != nil {
			continue
		}
		list = append(list, procInfo{pid, st.ppid, commandLine(st), st.state, st.rssPages * int64(os.Getpagesize()), float64(st.cpuTicks) / clockTicks})
	}
	return list
}

func commandLine(st procStat) string {
	b, err := readSmall("/proc/" + strconv.Itoa(st.pid) + "/cmdline")
	if err != nil || len(b) == 0 {
		return "[" + st.comm + "]"
	}
	return string(bytes.ReplaceAll(bytes.TrimRight(b, "\x00"), []byte{0}, []byte{' '}))
}

// memoryMeter reads the memory of many services. It asks each parent cgroup once whether its children have a count, for an open that
// fails costs nearly as much as one that does not: 1.5 µs each.
type memoryMeter map[string]bool

// usage returns the memory of a service in bytes: of its cgroup, else of its main process. nil = not known.
func (m memoryMeter) usage(s unitStatus) *int64 {
	b, scale := []byte(nil), int64(1)
	if s.Cgroup != "" && m.counts(filepath.Dir(s.Cgroup)) {
		b, _ = readSmall(s.Cgroup + "/memory.current")
	}
	if len(b) == 0 && s.MainPID != 0 {
		statm, _ := readSmall("/proc/" + strconv.Itoa(s.MainPID) + "/statm") // man 5 proc: size, resident, …
		_, b, _ = bytes.Cut(statm, []byte(" "))
		b, _, _ = bytes.Cut(b, []byte(" "))
		scale = int64(os.Getpagesize())
	}
	n, err := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
	if err != nil {
		return nil
	}
	n *= scale
	return &n
}

// counts tells whether parent hands the memory controller to its children (kernel: cgroup-v2.rst, cgroup.subtree_control).
func (m memoryMeter) counts(parent string) bool {
	yes, asked := m[parent]
	if !asked {
		b, err := readSmall(parent + "/cgroup.subtree_control")
		yes = err != nil || slices.Contains(strings.Fields(string(b)), "memory")
		m[parent] = yes
	}
	return yes
}

// cpuUsage returns the CPU time of a service in seconds, likewise. The kernel sums it up over all processors when it is asked for.
func cpuUsage(s unitStatus) *float64 {
	if s.Cgroup != "" {
		b, _ := readSmall(s.Cgroup + "/cpu.stat")
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(line, "usage_usec "); ok {
				if n, err := strconv.ParseFloat(strings.TrimSpace(v), 64); err == nil {
					n /= 1e6
					return &n
				}
			}
		}
	}
	if s.MainPID == 0 {
		return nil
	}
	st, err := readStat(s.MainPID)
	if err != nil {
		return nil
	}
	n := float64(st.cpuTicks) / clockTicks
	return &n
}
