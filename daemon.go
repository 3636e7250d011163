// Role: the daemon: start-up and adoption, shims and what is held for them, jobs, wishes. It only plans; supervision is the shims'.
// Runs in: daemon; the client for `kill` without a daemon.
// Owns: the home's lock, daemon.sock, daemon.pid, daemon.json, the wishes in run/; its state belongs to loop.
// Uses: visible, wire, sys, unit, deps, supervise, state, history, tree, succession, api, upgrade, kept.

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	shimBatch   = 64                     // shims that one helper starts: bounded by descriptors, not by time
	shimPause   = 10 * time.Second       // then it is tried again, if something runs unsupervised
	adoptMax    = 2 * time.Second        // for live shims to answer; then what was interrupted goes on without them
	shimTries   = 5                      // starts of a shim in a row that did not come to its hello
	shimFirst   = 100 * time.Millisecond // pause before the next try, doubling to shimPause
	shimBrief   = time.Second            // a shim that ends sooner after its hello may do so for ever
	answerMax   = 5 * time.Second        // for a shim to take an order; one that does not is stopped (SIGSTOP), or hangs
	takeOverMax = 10 * time.Second       // for an auto-started daemon to come up, and then to give way to one in the foreground
)

// manager is the daemon's state. Everything below "loop" is touched by its owner goroutine alone.
type manager struct {
	// immutable
	home       home
	boot       string
	pidns      uint64
	mode       string
	started    boottime
	startedAt  time.Time
	cgroupBase string
	weaker     []string  // what this machine cannot give
	program    programID // that we run; zero where there is no /proc
	lock       int       // on the home
	log        int       // daemon.log, for shims and helpers
	listener   *os.File
	inbox      chan any
	signals    chan os.Signal

	// loop
	own        ownLog
	services   map[string]*supervised
	broken     map[string]error // units whose file cannot be used
	files      map[string]*file // parsed unit files by path
	jobs       *jobs
	stale      bool // the graph does not show the catalogue
	shims      map[int]*supervised
	helpers    map[int]bool
	bereaved   map[*supervised]bool // their shims died in this round
	pending    []*supervised        // shims to start at the end of this round
	clients    map[*session]bool
	serviceDir string
	killer     *asker // `kill` is under way
	ending     bool
	answers    *time.Timer          // of msgAnswersDue
	answersDue time.Time            // when that comes; zero = it does not
	previous   daemonRecord         // what daemon.json said before us
	parked     []msgRequest         // that came before all shims had said hello, or wait for a shim to end (`forget`)
	adopting   map[*supervised]bool // those whose shims have not said hello since we started
	reserve    int                  // descriptor that is given up to answer when there is no other
	bequest    *bequest             // of the program that this process was before, until its jobs are resumed; nil = it is new
	upgrade    *upgrade             // `daemon-upgrade` is under way
	keeper     *keeper              // the first process of a container, which keeps us; nil = there is none
	keptBy     pidRef               // the first process that this boot is of
	exitCode   int                  // that we end with
}

// supervised is one service of the catalogue.
type supervised struct {
	name   string
	unit   *unit // as its file was read last
	given  *unit // as it was given to the shim last, in unit.json
	record runRecord
	last   *runRecord // of a dead shim, as it is on disk; nil = not read
	link   *conn      // to its shim
	hello  bool       // the shim has said hello on link
	pid    int        // of its shim
	child  bool       // the shim is our child
	held   map[string]int
	exits  []exitNote // of processes that we reaped and whose end no state of a shim has shown yet
	gone   []pidRef   // orphans of a dead shim, for its successor
	tries  int
	met    time.Time     // hello of the present shim
	brief  int           // shims in a row that ended soon after it
	pause  time.Duration // before the shim was looked for last; it doubles
	retry  *time.Timer   // of msgRetry
	later  bool          // until msgRetry nothing is done for the shim
	leave  bool          // it was told to leave

	outdated bool // the shim runs another program than we do

	order  *carried  // what its shim is to carry out now
	due    time.Time // when its shim must have said more; zero = nothing is expected of it
	deaf   deafness
	worked string // the job that was begun last
	began  time.Time
	before wantRecord
	want   wantRecord
}

// deafness is what was done about a shim that does not answer.
type deafness int

const (
	hearing  deafness = iota
	reported          // its clients know
	killed            // only `kill` does that
)

// carried is an order of the queue that has been given to a shim.
type carried struct {
	id   string // as in the wish
	job  *job
	verb jobKind
}

// file is a parsed unit file.
type file struct {
	unit    *unit
	err     error
	changed int64 // of the inode: a chmod counts, since modes are checked too
	mod     int64
	size    int64
	ino     uint64
}

// Messages to the loop.
type (
	msgClient  struct{ c *session }
	msgRequest struct {
		c *session
		r request
	}
	msgClientGone    struct{ c *session }
	msgClientReads   struct{ c *session } // its writer is through
	msgClientRests   struct{ c *session } // its writer has ended
	msgAcceptorRests struct{}
	msgUpgradeDue    struct{ u *upgrade }
	msgShim          struct {
		e    *supervised
		link *conn
		f    shimFrame
		fds  []int
	}
	msgShimGone struct {
		e    *supervised
		link *conn
	}
	msgRetry      struct{ e *supervised }
	msgAdoptEnd   struct{}
	msgAnswersDue struct{}
)

// daemonMain runs the daemon: `diakonosd`, `diakonos daemon`, or started by one of us.
func daemonMain(h home, serviceDir string) int {
	setProcessName(daemonName)
	unix.Umask(0o077)
	will := new(daemonWill)
	if err := readWill(will); err == nil {
		return heirMain(will)
	} else if !errors.Is(err, errNotHandedOver) {
		return reporter{}.fail(err)
	}
	mode := modeForeground
	if started := os.Getenv(startedVariable); started == modeAuto || started == modeInit {
		mode = started
	}
	ready := readyReporter(mode)
	m, err := newManager(h, mode)
	if err != nil {
		return ready.fail(err)
	}
	m.serviceDir = serviceDir
	if mode == modeInit {
		if m.keeper, err = joinKeeper(keeperFD); err != nil {
			return ready.fail(err)
		}
		m.serviceDir = m.keeper.ServiceDir
	}
	if err := m.listen(); err != nil {
		return ready.fail(err)
	}
	m.watchSignals()
	if err := m.announceSelf(); err != nil {
		return ready.fail(err)
	}
	if err := m.adoptAll(); err != nil {
		return ready.fail(err)
	}
	ready.ok()
	go m.accept(m.listener)
	m.loop()
	return m.exitCode
}

func (m *manager) watchSignals() {
	signal.Notify(m.signals, syscall.SIGCHLD, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	signal.Ignore(syscall.SIGPIPE)
}

// reporter tells the starter how the start went: through the ready pipe, or on stderr in the foreground.
type reporter struct{ pipe *os.File }

func readyReporter(mode string) reporter {
	if mode != modeAuto {
		return reporter{}
	}
	unix.CloseOnExec(lockFD)
	unix.CloseOnExec(readyFD)
	return reporter{os.NewFile(readyFD, "ready")}
}

func (r reporter) ok() {
	if r.pipe != nil {
		reach("daemon.ready")
		_, _ = io.WriteString(r.pipe, "ok\n") // the starter may have been killed
		r.pipe.Close()
	}
}

// fail returns the exit code.
func (r reporter) fail(err error) int {
	fmt.Fprintf(os.Stderr, "diakonosd: %s\n", visible(err.Error()))
	if r.pipe != nil {
		reach("daemon.fail")
		_, _ = fmt.Fprintf(r.pipe, "%v\n", err)
		r.pipe.Close()
	}
	return errorCode(err)
}

// newManager takes the home's lock and prepares everything that needs no socket.
func newManager(h home, mode string) (*manager, error) {
	lock := lockFD
	if mode != modeAuto {
		if err := h.make(); err != nil {
			return nil, err
		}
		var err error
		if lock, err = takeHome(h); err != nil {
			return nil, err
		}
		first := 3
		if mode == modeInit {
			first = keeperFD + 1
		}
		closeInherited(first)
	} else {
		closeInherited(lockFD) // a shim that had the lock or the ready pipe would keep them
	}
	if err := h.makeRunRoot(); err != nil { // again: before we had the lock, a `kill` may have removed it
		return nil, err
	}
	m, err := managerWithLock(h, mode, lock)
	if err != nil {
		return nil, err
	}
	return m, m.openLog()
}

// managerWithLock makes the manager for who holds the home's lock.
func managerWithLock(h home, mode string, lock int) (*manager, error) {
	m := &manager{home: h, mode: mode, lock: lock, program: programOf("self"), started: bootNow(), startedAt: time.Now(), inbox: make(chan any, 256),
		services: map[string]*supervised{}, broken: map[string]error{}, files: map[string]*file{}, shims: map[int]*supervised{}, helpers: map[int]bool{}, adopting: map[*supervised]bool{}, bereaved: map[*supervised]bool{},
		clients: map[*session]bool{}, reserve: -1, signals: make(chan os.Signal, 16)}
	var err error
	if m.boot, m.pidns, err = bootIdentity(); err != nil {
		return nil, err
	}
	m.jobs = newJobs(m.isUp, m.isDown)
	if err := becomeSubreaper(); err != nil {
		return nil, fmt.Errorf("cannot become subreaper: %v", err)
	}
	setOOMScore("-900") // best effort
	m.findCgroup()
	m.findWeaknesses()
	return m, nil
}

// openLog opens daemon.log.
func (m *manager) openLog() error {
	reach("daemon.open-log")
	fd, err := openRetry(m.home.daemonLog(), unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NOCTTY, 0o600)
	if err != nil {
		return fmt.Errorf("cannot open %s: %w", m.home.daemonLog(), err)
	}
	m.writeTo(fd)
	return nil
}

// writeTo has our messages written there, and in the foreground to stderr too.
func (m *manager) writeTo(log int) {
	m.log, m.own.files = log, []int{log}
	if m.mode != modeAuto {
		m.own.files = append(m.own.files, 2)
	}
}

// takeHome takes the lock of a daemon that something else keeps alive: an auto-started one gives way, one of its own kind does not. One that
// is just starting is not in daemon.json yet.
func takeHome(h home) (lock int, err error) {
	for s := h.search(); ; s.wait() {
		reach("daemon.lock")
		lock, err = lockDirectory(h.path)
		if err != unix.EWOULDBLOCK {
			return lock, err
		}
		switch d, up := h.liveDaemon(); {
		case up && d.Mode == modeAuto:
			return takeOver(h, d)
		case up:
			return -1, fmt.Errorf("a daemon of %s runs already (mode %s, process %d)", h.path, d.Mode, d.Daemon.PID)
		case time.Since(s.began) > takeOverMax:
			return -1, fmt.Errorf("a process that is not in %s holds the lock of %s, and does not let go of it", h.daemonFile(), h.path)
		}
	}
}

// takeOver ends an auto-started daemon and takes its lock.
func takeOver(h home, d daemonRecord) (lock int, err error) {
	reach("daemon.oust")
	if err := signalProcess(d.Daemon, syscall.SIGTERM); err != nil && !errors.Is(err, errGone) {
		return -1, fmt.Errorf("cannot end the auto-started daemon of %s: %w", h.path, err)
	}
	lock, err = openRetry(h.path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	got := make(chan error, 1)
	reach("daemon.await-lock")
	go func() { got <- sysFlock(lock, unix.LOCK_EX) }()
	select {
	case err := <-got:
		return lock, err
	case <-time.After(takeOverMax):
		return -1, fmt.Errorf("the auto-started daemon of %s (process %d) does not end", h.path, d.Daemon.PID)
	}
}

func (m *manager) listen() (err error) {
	m.listener, err = listenAt(m.home.path, socketName)
	return err
}

// announceSelf writes daemon.pid and daemon.json: from now on SIGHUP may come, and shims may heal us.
func (m *manager) announceSelf() error {
	m.reserve, _ = openNothing()
	reach("daemon.pid")
	if err := rewriteFile(m.home.path+"/daemon.pid", pidFileText(os.Getpid())); err != nil {
		m.say("%v", err) // a full disk must not keep the daemon away; daemon.json names it too
	}
	m.previous, _ = m.home.readDaemon()
	wanted := wantedRunning
	switch k := m.keeper; {
	case k != nil:
		if k.ending = m.previous.Boot == m.boot && m.previous.Keeper == k.ref && m.previous.Wanted == wantedEnding; k.ending {
			wanted = wantedEnding
		}
		m.keptBy = k.ref
	case m.previous.Boot == m.boot:
		m.keptBy = m.previous.Keeper
	}
	return m.writeSelf(wanted, m.previous.Attempts)
}

func (m *manager) writeSelf(wanted string, attempts int) error {
	exe, _ := os.Readlink("/proc/self/exe")
	reach("daemon.record")
	return m.home.writeDaemon(daemonRecord{Version: protocolVersion, Boot: m.boot, PIDNS: m.pidns, Wanted: wanted, Mode: m.mode,
		Daemon: refOf(os.Getpid()), Binary: exe, Build: version, Started: m.started, Attempts: attempts, Keeper: m.keptBy, Boots: m.boots()})
}

// say writes one line of ours: to daemon.log, and in the foreground to stderr too.
func (m *manager) say(format string, args ...any) {
	m.own.write(time.Now().UTC().Format(time.RFC3339Nano) + " diakonosd: " + fmt.Sprintf(format, args...) + "\n")
}

// ---- what the machine gives

// findCgroup looks where services' cgroups can be made, by making one.
func (m *manager) findCgroup() {
	own := ownCgroup()
	if own == "" {
		m.weaker = append(m.weaker, "no cgroup v2 is visible: a process that sheds its session, its environment and its parent escapes `stop`")
		return
	}
	name := "/diakonos-" + m.home.id()
	if outside, _, within := strings.Cut(own, name+"/"); within { // a client inside a service has started us, for want of a shim to do it
		reach("cgroup.leave")
		if err := enterCgroup(outside + "/cgroup.procs"); err != nil {
			m.weaker = append(m.weaker, fmt.Sprintf("the daemon belongs to the service that has started it, and ends with it: it cannot leave its cgroup %s: %v", own, err))
		}
		own = outside
	}
	base := own + name
	probe := base + "/.probe"
	reach("cgroup.probe")
	err := os.MkdirAll(probe, 0o755)
	if err == nil {
		err = sysAccess(probe+"/cgroup.procs", unix.W_OK)
		reach("cgroup.probed")
		_ = sysRmdir(probe)
	}
	if err != nil {
		m.weaker = append(m.weaker, fmt.Sprintf("cgroup v2 is not writable (%v): a process that sheds its session, its environment and its parent escapes `stop`", err))
		return
	}
	m.cgroupBase = base
}

func (m *manager) findWeaknesses() {
	if fd, err := unix.PidfdOpen(os.Getpid(), 0); err == unix.ENOSYS {
		m.weaker = append(m.weaker, "this kernel has no pidfd_open (Linux 5.3): without it no single process gets a signal, and a service whose shim was killed stays unsupervised")
	} else if err == nil {
		unix.Close(fd)
	}
	if !kernelAtLeast(6, 15) {
		m.weaker = append(m.weaker, "this kernel has no PIDFD_INFO_EXIT (Linux 6.15): exit statuses of services whose daemon and shim were both killed are lost")
	}
	if sysAccess("/proc/self/stat", unix.R_OK) != nil {
		m.weaker = append(m.weaker, "/proc is not there: processes are found by their pidfd alone; what a service has forked away gets no signal, and a stop waits for it")
	}
	if os.Geteuid() != 0 {
		m.weaker = append(m.weaker, "not root: daemon and shims cannot lower their OOM score, and User= is refused")
	}
}

func kernelAtLeast(major, minor int) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	f := strings.FieldsFunc(unix.ByteSliceToString(u.Release[:]), func(r rune) bool { return r < '0' || r > '9' })
	if len(f) < 2 {
		return false
	}
	a, _ := strconv.Atoi(f[0])
	b, _ := strconv.Atoi(f[1])
	return a > major || a == major && b >= minor
}

// ---- the loop

func (m *manager) loop() {
	if m.keeper != nil {
		m.keeper.say(keeperFrame{Op: keeperHello})
		go m.readKeeper()
	}
	for !m.ending {
		m.handle(m.next())
		for len(m.inbox) > 0 && !m.ending { // what came together is settled together
			m.handle(m.next())
		}
		m.settle()
	}
	m.own.end()
}

func (m *manager) next() any {
	select {
	case msg := <-m.inbox:
		return msg
	case sig := <-m.signals:
		return sig
	}
}

// settle does what has come together in one round: new orders, and shims for them.
func (m *manager) settle() {
	m.refreshGraph()
	if m.keeper != nil {
		m.keeper.behind = nil
	}
	for {
		orders := m.jobs.dispatch()
		for _, o := range orders {
			m.carryOut(o)
		}
		if len(orders) == 0 {
			break
		}
	}
	m.collectOrphans()
	m.startShims()
	m.unpark()
	m.checkKill()
	m.tellKeeper()
	m.checkRest()
}

func (m *manager) handle(msg any) {
	switch msg := msg.(type) {
	case os.Signal:
		m.onSignal(msg.(syscall.Signal))
	case msgShim:
		m.onShim(msg)
	case msgShimGone:
		m.onShimGone(msg)
	case msgRetry:
		if m.services[msg.e.name] == msg.e { // else it was forgotten
			msg.e.later = false
			m.reachShim(msg.e)
		}
	case msgAnswersDue:
		m.checkAnswers()
	case msgAdoptEnd:
		if len(m.adopting) > 0 { // one that is stopped (SIGSTOP) must not hold up the others
			clear(m.adopting)
			m.resume()
		}
	case msgClient:
		m.attend(msg.c)
		if m.resting() {
			m.putToRest(msg.c)
		}
	case msgRequest:
		m.onRequest(msg.c, msg.r)
	case msgClientReads:
		if m.clients[msg.c] {
			msg.c.give()
		}
	case msgClientGone:
		if !m.readerRests(msg.c) {
			m.dropClient(msg.c)
		}
	case msgClientRests:
		m.writerRests(msg.c)
	case msgKeeper:
		m.onKeeper(msg.f)
		m.keeper.taken <- struct{}{}
	case msgKeeperGone:
		m.say("the first process has ended")
		m.end() // services run on
	case msgAcceptorRests:
		m.upgrade.rest.accepts = false
	case msgUpgradeDue:
		m.upgradeDue(msg.u)
	}
}

func (m *manager) onSignal(sig syscall.Signal) {
	switch sig {
	case syscall.SIGCHLD:
		m.reap()
	case syscall.SIGHUP:
		m.readAgain()
	case syscall.SIGTERM, syscall.SIGINT:
		if m.killer == nil { // else "killed" stands there, and what was begun goes on without us
			if err := m.writeSelf(wantedStopped, 0); err != nil {
				m.say("%v", err)
			}
		}
		m.end()
	}
}

// end leaves in good order: services and shims run on.
func (m *manager) end() {
	reach("daemon.remove-pid")
	_ = sysUnlink(m.home.path + "/daemon.pid")
	if m.listener != nil {
		reach("daemon.remove-socket")
		_ = withSocketPath(m.home.path, socketName, sysUnlink)
	}
	m.ending = true
}

// readAgain is SIGHUP: read units again, start and stop nothing; bind the socket anew if its path was deleted.
func (m *manager) readAgain() {
	if m.listener != nil && !m.resting() && sysAccess(m.home.path+"/"+socketName, unix.F_OK) != nil {
		old := m.listener
		if err := m.listen(); err != nil {
			m.listener = old
			m.say("%v", err)
		} else {
			old.Close()
			go m.accept(m.listener)
		}
	}
	for name, e := range m.services {
		if e.unit != nil {
			m.loadFile(name, filepath.Dir(e.unit.Path))
		}
	}
}

// ---- catalogue

func (m *manager) entry(name string) *supervised {
	e := m.services[name]
	if e == nil {
		e = &supervised{name: name, held: map[string]int{}, record: runRecord{Sub: dead, Result: resultSuccess}}
		m.services[name] = e
	}
	return e
}

func (m *manager) isUp(name string) bool {
	e := m.services[name]
	if e == nil {
		return false
	}
	return isUp(e.record.Sub)
}

func (m *manager) isDown(name string) bool {
	e := m.services[name]
	if e == nil {
		return true
	}
	a := activeOf(e.record.Sub)
	return a == inactive || a == failedUnit && e.record.Sub != unknown
}

// parsed reads a unit file, or returns what was read before if the file is the same.
func (m *manager) parsed(path string, at place) *file {
	var st unix.Stat_t
	err := sysStat(path, &st)
	old := m.files[path]
	if err == nil && old != nil && old.changed == st.Ctim.Nano() && old.mod == st.Mtim.Nano() && old.size == st.Size && old.ino == st.Ino {
		return old
	}
	f := &file{changed: st.Ctim.Nano(), mod: st.Mtim.Nano(), size: st.Size, ino: st.Ino}
	f.unit, f.err = loadUnit(path, at)
	if f.err != nil && !errors.As(f.err, new(unitError)) { // not a mistake in it, so the next look may find more
		delete(m.files, path)
		return f
	}
	m.files[path] = f
	return f
}

// loadFile takes the unit of name from dir into the catalogue. The unit that runs now stays as it is if the file is broken.
func (m *manager) loadFile(name, dir string) error {
	e := m.services[name]
	if e != nil && e.unit != nil && filepath.Dir(e.unit.Path) != dir {
		err := fmt.Errorf("%q is already loaded from %s, not from %s (`diakonos forget %s` lets go of it)", name, filepath.Dir(e.unit.Path), dir, name)
		return err
	}
	f := m.parsed(unitPath(dir, name), m.home.placeOf(dir))
	if f.err != nil {
		if m.broken[name] == nil || m.broken[name].Error() != f.err.Error() {
			m.stale = true
		}
		m.broken[name] = f.err
		return f.err
	}
	if m.broken[name] != nil {
		delete(m.broken, name)
		m.stale = true
	}
	e = m.entry(name)
	if e.unit != f.unit {
		e.unit = f.unit
		m.stale = true
	}
	return nil
}

// loadClosure loads name and everything that a start of it pulls in.
func (m *manager) loadClosure(names []string, dir string) {
	seen := map[string]bool{}
	for queue := slices.Clone(names); len(queue) > 0; queue = queue[1:] {
		name := queue[0]
		if seen[name] {
			continue
		}
		seen[name] = true
		from := dir
		if e := m.services[name]; e != nil && e.unit != nil && !slices.Contains(names, name) {
			from = filepath.Dir(e.unit.Path)
		}
		if err := m.loadFile(name, from); err == nil {
			queue = append(queue, pulledIn(m.services[name].unit)...)
		}
	}
}

func (m *manager) refreshGraph() {
	if !m.stale {
		return
	}
	m.stale = false
	units := make(map[string]*unit, len(m.services))
	for name, e := range m.services {
		if e.unit != nil {
			units[name] = e.unit
		}
	}
	for _, w := range m.jobs.use(newGraph(units, m.broken)) {
		m.say("%s", w)
	}
}

// ---- jobs and wishes

// submit installs what a demand asks for. Every wish is on disk before anything is done.
func (m *manager) submit(d demand) submission {
	if d.NewID == nil {
		d.NewID = func(string) string { return newJobID() }
	}
	m.refreshGraph()
	have := map[string]bool{}
	for _, j := range m.jobs.list() {
		have[j.ID] = true
	}
	s := m.jobs.submit(d)
	for _, w := range s.Warnings {
		m.say("%s", w)
	}
	m.tell(s.Ended)
	for _, j := range m.jobs.list() {
		if have[j.ID] {
			continue
		}
		if err := m.wish(j); err != nil {
			m.tell(m.refuse(j, err))
		}
	}
	return s
}

func newJobID() string { return invocationText(randomBytes())[:16] }

// refuse ends a job that could not be made durable: a start fails, a stop goes on and says so.
func (m *manager) refuse(j *job, err error) []ended {
	m.say("cannot record the wish for %q: %v", j.Unit, err)
	if j.Kind == stopJob {
		m.say("the stop of %q will not survive a crash", j.Unit)
		return nil
	}
	return m.jobs.abandon(j.Unit, err.Error())
}

// wish records a job: run/NAME with unit.json and want. What was under way there for another job is not wanted any more.
func (m *manager) wish(j *job) error {
	e := m.entry(j.Unit)
	e.order, e.due = nil, time.Time{}
	if err := m.home.makeRunDir(j.Unit); err != nil {
		return err
	}
	if j.Kind != stopJob && e.unit != nil {
		reach("unit.write")
		if err := writeJSON(m.home.unitFile(j.Unit), e.unit); err != nil {
			return err
		}
		e.given = e.unit
	}
	e.before = e.want
	return m.writeWant(e, wantRecord{Up: j.Kind != stopJob, Job: j.ID, Verb: string(j.Kind), By: j.By, For: j.For})
}

func (m *manager) writeWant(e *supervised, w wantRecord) error {
	w.Version, w.Boot = protocolVersion, m.boot
	reach("want.write")
	if err := writeRecord(m.home.wantFile(e.name), &w); err != nil {
		return err
	}
	e.want = w
	return nil
}

// carryOut gives an order to the shim of its unit, and starts one where there is none.
func (m *manager) carryOut(o order) {
	e := m.entry(o.Job.Unit)
	c := &carried{id: o.Job.ID, job: o.Job, verb: o.Verb}
	if e.worked != o.Job.ID { // else it is the start that follows the stop of a restart
		e.worked, e.began = o.Job.ID, time.Now()
	}
	w := wantRecord{Up: o.Verb != stopJob, Job: c.id, Verb: string(o.Verb), By: o.Job.By, For: o.Job.For}
	if o.Job.Kind == restartJob && o.Verb != restartJob { // one stage of a restart that others stand between
		c.id += "/" + string(o.Verb)
		w.Job = c.id
		if o.Verb == stopJob {
			w.Then = verbStart
		}
	}
	if o.Verb == stopJob {
		w.Until = m.stopUntil(o.Job)
	}
	e.order = c
	if e.record.Job.ID == c.id && e.record.Job.Outcome != "" { // a resumed one that has come to its end meanwhile
		m.finish(e, resultOfOutcome(e.record.Job.Outcome), e.record.Job.Text)
		return
	}
	if e.want.Job != w.Job || e.want.Verb != w.Verb || e.want.Until != w.Until {
		if err := m.writeWant(e, w); err != nil && o.Verb != stopJob {
			m.finish(e, jobFailed, err.Error())
			return
		} else if err != nil {
			m.say("the stop of %q will not survive a crash: %v", e.name, err)
		}
	}
	if e.hasAnswered() { // a resumed one that its shim works on: it says no more than how that ends
		m.expectOutcome(e)
	} else {
		m.expectAnswer(e)
	}
	if e.link == nil {
		m.startShim(e)
		return
	}
	m.poke(e, e.wantFrame()) // also before its hello: it reads our frames in order
}

// wantFrame tells the shim that the turn of its order has come.
func (e *supervised) wantFrame() shimFrame { return shimFrame{Op: opWant, Job: e.order.id} }

// expectAnswer: the shim is being told something, which it takes at once.
func (m *manager) expectAnswer(e *supervised) {
	e.deaf = hearing
	m.expectWithin(e, answerMax)
}

// expectOutcome: the shim has taken what it was told, and says more at the end of the time that it gives the present step.
func (m *manager) expectOutcome(e *supervised) {
	e.due, e.deaf = time.Time{}, hearing
	if e.order != nil && e.record.Deadline != 0 {
		m.expectWithin(e, time.Duration(e.record.Deadline-bootNow())+answerMax)
	}
}

func (m *manager) expectWithin(e *supervised, limit time.Duration) {
	e.due = time.Now().Add(limit)
	m.awaitAnswers(e.due)
}

// awaitAnswers sees to it that checkAnswers runs then, or earlier. One timer serves all.
func (m *manager) awaitAnswers(due time.Time) {
	if !m.answersDue.IsZero() && !due.Before(m.answersDue) {
		return
	}
	m.answersDue = due
	if m.answers == nil {
		m.answers = time.AfterFunc(time.Until(due), func() { m.inbox <- msgAnswersDue{} })
		return
	}
	m.answers.Reset(time.Until(due))
}

// checkAnswers looks for shims that owe us a word: that they have taken what they were told, or how a step with a deadline has ended.
// Their clients hear of it. `kill` has such a shim replaced, since the successor knows everything, and goes on without one that outlives
// even that.
func (m *manager) checkAnswers() {
	m.answersDue = time.Time{}
	now := time.Now()
	for _, e := range m.services {
		switch {
		case e.due.IsZero():
		case e.due.After(now):
			m.awaitAnswers(e.due)
		case m.killer != nil:
			m.endDeaf(e)
		case e.deaf == hearing:
			e.deaf = reported
			m.reportDeaf(e)
		}
	}
}

// reportDeaf tells who waits for a shim why it takes so long.
func (m *manager) reportDeaf(e *supervised) {
	text := fmt.Sprintf("the shim of %q does not answer", e.name)
	if e.hello { // else its PID is not known
		text += fmt.Sprintf("; if it is stopped, `kill -CONT %d` lets it go on", e.record.ShimPID)
	}
	m.say("%s", text)
	if e.order == nil {
		return
	}
	for _, w := range e.order.job.Waiters {
		if a, ok := w.Token.(*asker); ok {
			m.send(a.c, reply{Warn: text})
		}
	}
}

// endDeaf ends a shim that holds up `kill`.
func (m *manager) endDeaf(e *supervised) {
	switch {
	case !lockIsTaken(m.home.runDir(e.name)): // it is about to be started
		m.expectAnswer(e)
	case e.deaf != killed && m.home.signalShim(e.name, e.record.ShimPID, syscall.SIGKILL):
		m.say("the shim of %q does not answer: it is replaced", e.name)
		m.expectAnswer(e)
		e.deaf = killed
	default:
		m.say("the shim of %q does not answer and cannot be ended", e.name)
		e.due = time.Time{}
		if link := e.link; link != nil {
			e.link = nil
			_ = unix.Shutdown(int(link.f.Fd()), unix.SHUT_RDWR) // its reader closes it
		}
		m.finish(e, jobFailed, "its shim does not answer and cannot be ended")
	}
}

// finish reports the end of the order under way.
func (m *manager) finish(e *supervised, result jobResult, text string) {
	c := e.order
	e.order, e.due = nil, time.Time{}
	if c != nil {
		m.tell(m.jobs.finished(e.name, c.job.ID, c.verb, result, text))
	}
}

// tell lets everybody know who waits for these jobs, and closes the wishes of those that no shim has carried out.
func (m *manager) tell(list []ended) {
	for _, x := range list {
		e := m.entry(x.Job.Unit)
		m.closeWish(e, x)
		for _, w := range x.Job.Waiters {
			if a, ok := w.Token.(*asker); ok {
				m.answerJob(a, w.Anchor, m.lineOf(e, x))
			}
		}
	}
}

// closeWish: a job that ended otherwise than by its shim leaves a wish that nobody will answer, and that an idle shim may wait for.
func (m *manager) closeWish(e *supervised, x ended) {
	carriedOut := strings.HasPrefix(e.record.Job.ID, x.Job.ID) && e.record.Job.Outcome != ""
	switch {
	case !strings.HasPrefix(e.want.Job, x.Job.ID) || carriedOut && e.want.Then == "":
		return
	case carriedOut: // the stop of a restart; its start comes to nothing
		w := e.want
		w.Then = ""
		if err := m.writeWant(e, w); err != nil {
			m.say("%v", err)
		}
		return
	}
	if x.Result == jobDependency && m.isDown(e.name) && e.link == nil {
		m.failDependency(e, x)
		return
	}
	if x.Result == jobCanceled || x.Result == jobDependency {
		if err := m.writeWant(e, e.before); err != nil {
			m.say("%v", err)
		}
		if e.link != nil {
			m.poke(e, shimFrame{Op: opIdle})
		}
	}
}

// failDependency records the failure of a unit that was never started. No shim runs, so the record is ours.
func (m *manager) failDependency(e *supervised, x ended) {
	r := &e.record
	r.Version, r.Boot, r.PIDNS = protocolVersion, m.boot, m.pidns
	r.Sub, r.Result, r.Reason, r.Since = failed, resultDependency, cutText(x.Text), time.Now().UnixNano()
	r.Job = jobRecord{ID: e.want.Job, Verb: e.want.Verb, Outcome: outcomeDependency, Text: r.Reason, By: e.want.By, For: e.want.For}
	r.Events++
	m.keepEvents(e.name, r.Events, historyEvent{Time: r.Since, Kind: eventFailed, By: byDependency, For: x.Culprit, Result: r.Result, Text: r.Reason})
	reach("state.write-for-none")
	if err := writeRecord(m.home.stateFile(e.name), r); err != nil {
		m.say("%v", err)
	}
}

// keepEvents writes events of a unit that no shim runs for; last is the number of the last. The state that carries it is written after.
func (m *manager) keepEvents(name string, last uint64, events ...historyEvent) {
	f := historyFile{path: m.home.historyFile(name), boot: m.boot}
	defer f.close()
	if err := f.write(last, events); err != nil {
		m.say("%v", err)
	}
}

// lineOf makes the line for a client.
func (m *manager) lineOf(e *supervised, x ended) jobLine {
	l := jobLine{Unit: e.name, Verb: string(x.Job.Kind), Outcome: string(x.Result), Text: x.Text, Culprit: x.Culprit,
		MainPID: e.record.Main.PID}
	if e.worked == x.Job.ID {
		l.Millis = time.Since(e.began).Milliseconds() // the wait for other units is theirs
	}
	if x.Job.Kind == stopJob && x.Result == jobFailed {
		l.Left = e.record.Left
	}
	if program, _, ok := strings.Cut(strings.TrimPrefix(x.Text, notFoundPrefix), " in PATH="); ok && strings.HasPrefix(x.Text, notFoundPrefix) {
		l.Missing = program
	}
	return l
}

// ---- shims

// startShim plans to start a shim at the end of this round.
func (m *manager) startShim(e *supervised) {
	if e.link == nil && !e.later && !slices.Contains(m.pending, e) {
		m.pending = append(m.pending, e)
	}
}

// lookLater looks for the shim after a pause, and lets it alone until then.
func (m *manager) lookLater(e *supervised, pause time.Duration) {
	e.pause, e.later = pause, true
	m.retryAfter(e, pause)
}

// retryAfter sends msgRetry, in place of one that is on the way.
func (m *manager) retryAfter(e *supervised, pause time.Duration) {
	if e.retry != nil {
		e.retry.Stop()
	}
	e.retry = time.AfterFunc(pause, func() { m.inbox <- msgRetry{e} })
}

// startShims starts the planned shims, in batches, each by one helper that detaches them.
func (m *manager) startShims() {
	for len(m.pending) > 0 { // a start that failed at once is planned anew
		list := m.pending
		m.pending = nil
		for batch := range slices.Chunk(list, shimBatch) {
			m.startBatch(batch)
		}
	}
}

// startBatch halves a batch that does not start: what is scarce may suffice for some.
func (m *manager) startBatch(batch []*supervised) {
	err := m.detach(batch)
	switch half := len(batch) / 2; {
	case err == nil:
	case half > 0:
		m.startBatch(batch[:half])
		m.startBatch(batch[half:])
	default:
		m.retryShim(batch[0], err)
	}
}

// detach makes a socket pair for each shim, writes into it what the shim must know, and lets a helper start them.
func (m *manager) detach(batch []*supervised) error {
	null, err := openNothing()
	if err != nil {
		dropLinks(batch)
		return err
	}
	defer unix.Close(null)
	l := launch{argv: []string{shimName, "-detach"}, files: []uintptr{uintptr(null), uintptr(m.log), uintptr(m.log)}, cgroup: -1,
		env: m.shimEnvironment(), dir: m.home.path}
	if len(batch) == 1 { // its own parent at once: a helper would cost a start of its own (1 ms), and as subreaper we get the shim all the same
		l.argv, l.dir, l.setsid, l.env = shimArguments(batch[0].name), m.home.runDir(batch[0].name), true, bare(l.env)
	}
	for _, e := range batch {
		ours, theirs, err := socketPair()
		if err != nil {
			dropLinks(batch)
			return err
		}
		defer unix.Close(theirs)
		f, err := pollable(ours, "shim")
		if err != nil {
			dropLinks(batch)
			return err
		}
		e.link, e.hello, e.child, e.pid, e.leave = newConn(f), false, true, 0, false
		e.last = nil
		if err := m.handOver(e); err != nil {
			dropLinks(batch)
			return fmt.Errorf("cannot talk to it: %w", err)
		}
		l.files = append(l.files, uintptr(theirs))
		if len(batch) > 1 {
			l.argv = append(l.argv, e.name)
		}
	}
	reach("shim.start")
	pid, pidfd, err := l.start()
	if err != nil {
		dropLinks(batch)
		return err
	}
	closeFD(&pidfd)
	m.helpers[pid] = true
	for _, e := range batch {
		e.gone = nil
		go m.readShim(e, e.link)
	}
	return nil
}

// dropLinks: no shim was started. What was handed over is still ours.
func dropLinks(batch []*supervised) {
	for _, e := range batch {
		if e.link != nil {
			e.link.close()
			e.link = nil
		}
	}
}

// shimEnvironment is our own, less what belongs to a service that we may run in, and what shims need.
func (m *manager) shimEnvironment() []string {
	env := append(daemonEnvironment(os.Environ()), homeVariable+"="+m.home.path)
	if m.cgroupBase != "" {
		env = append(env, cgroupVariable+"="+m.cgroupBase)
	}
	if m.keeper != nil {
		env = append(env, keeperVariable+"="+strconv.Itoa(m.keeper.ref.PID))
	}
	return env
}

// handOver tells a new shim what we hold of its predecessor, then greets it, then gives it its order. An empty socket takes all of it; what
// it does not take would be waited for in vain.
func (m *manager) handOver(e *supervised) error {
	var names []string
	var fds []int
	for _, label := range []string{heldMain, heldNotify} {
		if fd, ok := e.held[label]; ok {
			names, fds = append(names, label), append(fds, fd)
		}
	}
	if len(fds) > 0 {
		reach("hand-over.held")
		err := e.link.send(shimFrame{Op: opHeld, Names: names}, fds...)
		if err != nil && !errors.Is(err, unix.ETOOMANYREFS) { // too many descriptors in flight for this user: rather without them than not at all
			return err
		}
	}
	if len(e.gone) > 0 {
		reach("hand-over.orphans")
		if err := e.link.send(shimFrame{Op: opOrphans, Refs: e.gone}); err != nil {
			return err
		}
	}
	for _, x := range e.exits {
		reach("hand-over.exit")
		if err := e.link.send(shimFrame{Op: opExit, Exit: &x}); err != nil {
			return err
		}
	}
	fresh := m.adopting[e] && e.tries == 0 && m.bequest == nil && m.keeper == nil // its predecessor was started by a daemon before us
	reach("hand-over.hello")
	err := e.link.send(shimFrame{Op: opHello, Proto: protocolVersion, Build: version, Role: "daemon", Fresh: fresh})
	if err != nil || e.order == nil {
		return err
	}
	reach("hand-over.want")
	return e.link.send(e.wantFrame())
}

// poke sends a frame to a shim without waiting. A shim that does not read is left alone until it does.
func (m *manager) poke(e *supervised, f shimFrame) {
	reach("shim.send")
	if err := e.link.send(f); err != nil {
		_ = unix.Shutdown(int(e.link.f.Fd()), unix.SHUT_RDWR)
	}
}

// readShim decodes the frames of one shim.
func (m *manager) readShim(e *supervised, link *conn) {
	for {
		var f shimFrame
		if err := link.readFrame(&f); err != nil {
			m.inbox <- msgShimGone{e, link}
			return
		}
		m.inbox <- msgShim{e, link, f, link.claim(len(f.Names))}
	}
}

func (m *manager) onShim(msg msgShim) {
	e := msg.e
	if msg.link != e.link {
		for _, fd := range msg.fds {
			unix.Close(fd)
		}
		return
	}
	for i, fd := range msg.fds {
		e.keep(msg.f.Names[i], fd)
	}
	if msg.f.Op == opHello {
		e.hello, e.met, e.tries, e.pause = true, time.Now(), 0, 0
	}
	if msg.f.State != nil {
		e.child = e.child || msg.f.Op == opHello && isChild(msg.f.State.ShimPID) // of the program that we were before
		m.onState(e, *msg.f.State)
	}
	switch msg.f.Op {
	case opHello:
		e.outdated = m.isOutdated(msg.f)
		m.shimSaysHello(e)
	case opUpgrade:
		m.shimRefuses(e, msg.f.Error)
	}
	if e.hasAnswered() {
		m.expectOutcome(e)
	}
	if msg.f.Op == opHello {
		m.adopted(e) // with the state that came along
	}
}

// hasAnswered: the shim has taken what it was told last. A frame may be older than that; who was told to leave answers by its end.
func (e *supervised) hasAnswered() bool {
	if e.order != nil {
		return e.record.Job.ID == e.order.id
	}
	return !e.leave
}

// keep holds a descriptor in place of an older one with the same label.
func (e *supervised) keep(label string, fd int) {
	if old, ok := e.held[label]; ok {
		unix.Close(old)
	}
	e.held[label] = fd
}

func (e *supervised) letGo() {
	for label, fd := range e.held {
		unix.Close(fd)
		delete(e.held, label)
	}
}

// onState takes the new state of a service: its order may have an outcome, and others may depend on it.
func (m *manager) onState(e *supervised, rec runRecord) {
	wasUp, wasDown, sub, invocation := m.isUp(e.name), m.isDown(e.name), e.record.Sub, e.record.Invocation
	e.record = rec
	if len(e.exits) > 0 && !e.link.hungUp() { // what a dead shim said last is older than what we reaped after it
		e.exits = slices.DeleteFunc(e.exits, func(x exitNote) bool { return x.Ref != rec.Main && x.Ref != rec.Control })
	}
	e.pid = rec.ShimPID
	if e.child && e.pid != 0 {
		m.shims[e.pid] = e
	}
	if c := e.order; c != nil && rec.Job.ID == c.id && rec.Job.Outcome != "" {
		m.finish(e, resultOfOutcome(rec.Job.Outcome), rec.Job.Text)
	}
	isUp, isDown := m.isUp(e.name), m.isDown(e.name)
	if wasUp && !isUp || !wasDown && isDown { // what was up for a moment only may never have been seen up
		m.wentDown(e)
	}
	if isUp && !wasUp {
		m.checkBinding(e)
	}
	m.actOnEnd(e, sub, invocation)
}

func resultOfOutcome(outcome string) jobResult {
	if outcome == outcomeDone {
		return jobDone
	}
	return jobFailed
}

// wentDown stops what is bound to a unit that went down by itself (BindsTo).
func (m *manager) wentDown(e *supervised) {
	open := e.record.Job.Outcome == "" && e.record.Job.ID != ""
	if j := m.jobs.job(e.name); j != nil && j.Kind != startJob || e.record.Job.Verb == verbStop || open && e.record.Job.Verb != verbStart {
		return // asked for: its transaction has taken care of the others
	}
	m.refreshGraph()
	if bound := m.jobs.g.bindingBroken(e.name, m.isUp); len(bound) > 0 {
		m.say("%q is no longer active: what is bound to it is stopped: %s", e.name, strings.Join(bound, " "))
		m.submit(demand{Kind: stopJob, Names: bound, By: byDependency, For: e.name})
	}
}

// onShimGone: the connection has ended. An orderly end was announced; after anything else a successor is due at once.
func (m *manager) onShimGone(msg msgShimGone) {
	e := msg.e
	msg.link.close()
	if msg.link != e.link {
		return
	}
	met := e.hello
	e.link, e.hello = nil, false
	if met && e.record.ShimPID == 0 && e.pid == 0 && e.orderly() {
		e.letGo()
		m.shimEnded(e)
		if e.order != nil {
			m.startShim(e) // a wish that came while it was leaving
		}
		return
	}
	if lockIsTaken(m.home.runDir(e.name)) {
		switch {
		case m.connectShim(e): // it lives, and had dropped us; or an earlier daemon had started one too
			return
		case !met: // that other one is about to bind its socket
			m.reachLater(e)
			return
		}
	}
	m.bereaved[e] = true
	if e.endsInHaste(met) {
		m.lookLater(e, shimFirst)
		return
	}
	m.retryShim(e, errNoHello)
}

// endsInHaste: one shim after the other comes up and ends. Then there is a pause between them, or nothing else would run.
func (e *supervised) endsInHaste(met bool) bool {
	if !met {
		return false // retryShim counts those
	}
	if time.Since(e.met) >= shimBrief {
		e.brief = 0
	}
	e.brief++
	return e.brief > shimTries
}

// orderly: the last state of the shim was its farewell.
func (e *supervised) orderly() bool {
	switch e.record.Sub {
	case dead, failed:
		return true
	case exited:
		return e.record.Main.zero() && e.record.Control.zero()
	}
	return false
}

// errNoHello: a shim was started and ended, or was killed.
var errNoHello = errors.New("it ends at once")

// retryShim starts a successor at once, and gives up on one that never comes to its hello.
func (m *manager) retryShim(e *supervised, cause error) {
	e.tries++
	if e.tries < shimTries {
		m.startShim(e)
		return
	}
	m.say("the shim of %q does not come up (%v): it is unsupervised", e.name, cause)
	m.adopted(e) // nothing waits for it any more
	if e.order != nil {
		m.finish(e, jobFailed, fmt.Sprintf("its shim cannot be started: %v; see %s", cause, m.home.daemonLog()))
	}
	e.tries = 0
	if !e.orderly() {
		m.retryAfter(e, shimPause) // not lookLater: a new order may try at once
	}
}

// connectShim connects to a live shim of an earlier daemon.
func (m *manager) connectShim(e *supervised) bool {
	reach("shim.connect")
	f, err := dialAt(m.home.runDir(e.name), shimSocketName)
	if err != nil {
		return false
	}
	link := newConn(f)
	reach("shim.greet")
	err = link.send(shimFrame{Op: opHello, Proto: protocolVersion, Build: version, Role: "daemon"})
	if err == nil && e.order != nil {
		reach("shim.order")
		err = link.send(e.wantFrame())
	}
	if err != nil {
		link.close()
		return false
	}
	e.link, e.hello, e.child, e.leave, e.last = link, false, false, false, nil
	go m.readShim(e, e.link)
	return true
}

// reachShim connects to a shim that could not be reached before, or starts one where none is left.
func (m *manager) reachShim(e *supervised) {
	switch {
	case e.link != nil:
	case !lockIsTaken(m.home.runDir(e.name)):
		e.pause = 0
		m.startShim(e)
	case !m.connectShim(e):
		m.reachLater(e)
	}
}

// reachLater: a shim that holds its lock but cannot be reached is about to bind its socket, or to bind it anew after it was deleted.
func (m *manager) reachLater(e *supervised) {
	m.home.signalShim(e.name, e.record.ShimPID, syscall.SIGHUP)
	if e.pause == shimPause && e.order != nil {
		m.finish(e, jobFailed, "its shim does not answer; see "+m.home.daemonLog())
	}
	m.lookLater(e, min(max(2*e.pause, shimFirst), shimPause))
}

// collectOrphans finds our new children, which dead shims have left: we are their subreaper. One walk serves all shims that died in this
// round. A process belongs to the service that its scope or its session names.
func (m *manager) collectOrphans() {
	if len(m.bereaved) == 0 {
		return
	}
	byMain := map[int]*supervised{}
	for e := range m.bereaved {
		byMain[e.record.Main.PID] = e
	}
	delete(byMain, 0)
	t := tree{home: m.home}
	pids, _ := children(os.Getpid())
	for _, pid := range pids {
		if m.shims[pid] != nil || byMain[pid] != nil {
			continue
		}
		st, err := readStat(pid)
		if err != nil || t.isOurs(pid, st.comm) {
			continue
		}
		e := m.services[m.home.serviceOf(scopeOf(pid))]
		if e == nil {
			e = byMain[st.session]
		}
		if e != nil && m.bereaved[e] && pid != e.record.Control.PID {
			e.gone = append(e.gone, refOf(pid))
		}
	}
	clear(m.bereaved)
}

// reap takes the exit status of every child that has ended: helpers, shims, and orphans of dead shims, whose status their new shim wants.
func (m *manager) reap() {
	for {
		c, err := endedChild()
		if err != nil && err != unix.ECHILD { // no other signal tells of the same end
			time.AfterFunc(retryPause, func() { m.inbox <- syscall.SIGCHLD })
		}
		if err != nil || c.pid == 0 {
			return
		}
		if e := m.ownerOf(c.pid); e != nil {
			m.handExit(e, isPID(c.pid), c.exit)
		}
		reach("daemon.reap")
		reapChild(c.pid)
	}
}

// ownerOf finds the service whose main or control process this child of ours is; nil = it is a shim, a helper, or foreign.
func (m *manager) ownerOf(pid int) *supervised {
	if m.shims[pid] != nil || m.helpers[pid] {
		delete(m.shims, pid) // only now: until it is reaped nobody else has its PID
		delete(m.helpers, pid)
		return nil
	}
	return m.serviceOf(isPID(pid))
}

func isPID(pid int) func(pidRef) bool { return func(ref pidRef) bool { return ref.PID == pid } }

// serviceOf finds the service whose main or control process is meant. A shim may have died between its record and its frame.
func (m *manager) serviceOf(same func(pidRef) bool) *supervised {
	for _, e := range m.services {
		if same(e.record.Main) || same(e.record.Control) {
			return e
		}
	}
	for name, e := range m.services {
		if e.last == nil {
			if e.link != nil && !e.link.hungUp() {
				continue // a live shim keeps its children
			}
			rec, _ := m.home.readState(name, m.boot)
			e.last = &rec
		}
		if same(e.last.Main) || same(e.last.Control) {
			e.record = *e.last
			return e
		}
	}
	return nil
}

func (m *manager) handExit(e *supervised, same func(pidRef) bool, exit exitStatus) {
	ref := e.record.Main
	if !same(ref) {
		ref = e.record.Control
	}
	note := exitNote{ref, exit}
	e.exits = append(e.exits, note) // kept for its successor, should this shim die before it has recorded it
	if e.link != nil {
		m.poke(e, shimFrame{Op: opExit, Exit: &note})
	}
}

// ---- adoption

// adoptAll is the one way to start: read run/, connect to each live shim, start shims for what has none, then resume open wishes.
// An error: it cannot be told what there is. Who went on with that would take what runs for stopped.
func (m *manager) adoptAll() error {
	names, err := m.home.runNames()
	if err != nil {
		return fmt.Errorf("cannot read %s: %w", m.home.runRoot(), err)
	}
	for _, name := range names {
		m.adoptOne(name)
	}
	if m.bequest != nil {
		m.reap() // what ended while we became another program
	}
	if m.keeper != nil {
		m.hearKeeper() // what ended while there was no daemon
	}
	m.stale = true
	m.refreshGraph()
	if len(m.adopting) == 0 {
		m.resume()
	} else {
		time.AfterFunc(adoptMax, func() { m.inbox <- msgAdoptEnd{} })
	}
	m.settle()
	return nil
}

func (m *manager) adoptOne(name string) {
	e := m.entry(name)
	if u, err := m.home.readUnit(name); err == nil {
		e.unit, e.given = u, u
	}
	rec, err := m.home.readState(name, m.boot)
	if err == nil {
		e.record = rec
	}
	if w, err := m.home.readWant(name, m.boot); err == nil {
		e.want = w
	}
	switch {
	case lockIsTaken(m.home.runDir(name)):
		if !m.connectShim(e) {
			m.say("the shim of %q holds its lock but does not answer: it is looked for again", name)
			m.reachLater(e)
			return
		}
	case m.needsShim(e, err):
		if m.bequest != nil {
			m.bereaved[e] = true // its orphans are our children
		}
		m.startShim(e)
	default:
		return
	}
	m.adopting[e] = true
}

// needsShim: the record tells of something to supervise, or cannot be read.
func (m *manager) needsShim(e *supervised, err error) bool {
	switch {
	case errors.Is(err, errOtherBoot), errors.Is(err, errNeverWritten):
		return false
	case err != nil:
		return true
	}
	return !e.orderly() || !e.record.Main.zero() || !e.record.Control.zero()
}

// adopted notes that a shim has said hello; after the last, what was interrupted goes on.
func (m *manager) adopted(e *supervised) {
	if !m.adopting[e] {
		return
	}
	delete(m.adopting, e)
	if len(m.adopting) == 0 {
		m.resume()
	}
}

// resume installs the jobs of open wishes again, in the order that the graph gives now, then the enabled units if this is the first
// daemon of a boot, or after `kill`.
func (m *manager) resume() {
	if m.keeper != nil && m.ends() || m.killer != nil {
		m.resumeAskers()
		m.unpark()
		return
	}
	open := map[jobKind][]string{}
	for name, e := range m.services {
		if kind := e.openWish(); kind != "" {
			open[kind] = append(open[kind], name)
		}
	}
	for _, kind := range []jobKind{stopJob, restartJob, startJob, reloadJob} {
		if names := open[kind]; len(names) > 0 {
			slices.Sort(names)
			for _, a := range m.submit(demand{Kind: kind, Names: names, By: byUser, Origin: m.askedBy, NewID: m.resumedID}).Answers {
				if a.Err != nil {
					m.say("%v", a.Err)
				}
			}
		}
	}
	for _, names := range open {
		for _, name := range names {
			if e := m.services[name]; e.link != nil && m.jobs.job(name) == nil { // nothing is left to be done: its idle shim need not wait for the word
				m.poke(e, shimFrame{Op: opIdle})
			}
		}
	}
	m.resumeAskers()
	m.checkBindings()
	m.checkActions()
	var units []string
	if m.keeper != nil || m.boots() {
		units = m.bootUnits()
	}
	if m.keeper != nil {
		m.keeper.units = units
	}
	if m.boots() {
		m.startBoot(units)
		m.previous = daemonRecord{Boot: m.boot, Wanted: wantedRunning, Keeper: m.keptBy} // once
		if err := m.writeSelf(wantedRunning, 0); err != nil {
			m.say("%v", err)
		}
	}
	m.unpark()
}

// resumedID gives a resumed job the id that its wish has, so that a shim which works on it, or has done it meanwhile, knows it for the same.
func (m *manager) resumedID(name string) string {
	e := m.services[name]
	if e == nil {
		return newJobID()
	}
	whole, _, _ := strings.Cut(e.want.Job, "/")
	switch e.openWish() {
	case "":
		return newJobID()
	case restartJob:
		return whole
	case startJob:
		if e.want.Then == verbStart { // the stop of a restart is done
			return whole + "/" + verbStart
		}
	}
	return e.want.Job
}

// askedBy tells who is behind the wish of a service.
func (m *manager) askedBy(name string) (by, other string) {
	w := m.services[name].want
	return w.By, w.For
}

// openWish is what is still to be done for a service; "" = nothing.
func (e *supervised) openWish() jobKind {
	w, done := e.want, e.record.Job.ID == e.want.Job && e.record.Job.Outcome != ""
	switch {
	case w.Job == "":
		return ""
	case !done && e.record.Job.ID == w.Job && e.record.Job.Verb == verbStart:
		return startJob // also of a restart whose stop is through: not once more
	case !done && w.Then == verbStart, !done && w.Verb == verbRestart:
		return restartJob
	case !done:
		return jobKind(w.Verb)
	case w.Then == verbStart:
		return startJob
	}
	return ""
}

// checkBindings is BindsTo after adoption: what broke while no daemon ran.
func (m *manager) checkBindings() {
	for name, e := range m.services {
		if m.isUp(name) {
			m.checkBinding(e)
		}
	}
}

// checkBinding stops a unit that is up without one that it is bound to: that went down while this one was started.
func (m *manager) checkBinding(e *supervised) {
	if e.unit == nil {
		return
	}
	for _, other := range e.unit.BindsTo {
		if m.isDown(other) && m.jobs.job(other) == nil {
			m.say("%q is stopped: it is bound to %q, which is not active", e.name, other)
			m.submit(demand{Kind: stopJob, Names: []string{e.name}, By: byDependency, For: other})
			return
		}
	}
}

// boots: this daemon starts what a boot starts. No daemon of this boot was there before us, or the last one was ended by `kill`, or one died
// before all of that was a wish, or it was not that of our first process.
func (m *manager) boots() bool {
	return m.previous.Boot != m.boot || m.previous.Wanted == wantedKilled || m.previous.Boots || m.keeper != nil && m.previous.Keeper != m.keeper.ref
}
