// Role: every format that crosses a process boundary: control frames, records in run/, the stage's
// order and report, notify messages, the objects of --json.
// Runs in: all personalities.
// Owns: nothing; pure values and codecs.
// Uses: codec.

package main

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
)

// version is what the program calls itself; the commit is added by --version.
const version = "0.1.0"

// protocolVersion is the version of control frames and of the records in run/. Both only ever grow: a
// reader ignores fields that it does not know, a writer never changes the meaning of one.
const protocolVersion = 1

// maxFrame bounds one line of the control protocols (bytes).
const maxFrame = 1 << 20

// Exit codes of the client (DESIGN.md, section 8).
const (
	exitOK        = 0
	exitFailed    = 1
	exitUsage     = 2
	exitNotActive = 3
	exitNoUnit    = 4
	exitNotPermit = 5
)

// errorCode is the exit code for an error of the system.
func errorCode(err error) int {
	if errors.Is(err, fs.ErrPermission) {
		return exitNotPermit
	}
	return exitFailed
}

// boottime is nanoseconds on CLOCK_BOOTTIME: it goes on during suspend, never jumps, and means the same in
// every process until the next boot, so it may lie on disk.
type boottime int64

// pidRef identifies a process within one boot and one PID namespace (both are fields of the record that
// holds it). A PID alone is never enough to send a signal.
type pidRef struct {
	PID   int    `json:"pid,omitempty"`
	Start uint64 `json:"start,omitempty"` // clock ticks since boot, field 22 of proc_pid_stat(5); 0 = hidden
	Ino   uint64 `json:"ino,omitempty"`   // inode of its pidfd, unique per boot since Linux 6.9; 0 = unknown
}

func (p *pidRef) fields(c *codec) {
	numberField(c, "pid", ifSet, &p.PID)
	numberField(c, "start", ifSet, &p.Start)
	numberField(c, "ino", ifSet, &p.Ino)
}

func (p pidRef) zero() bool { return p.PID == 0 }

// Ways in which a process ended, as systemd's EXIT_CODE has them, and ours.
const (
	exitExited = "exited"
	exitKilled = "killed"
	exitDumped = "dumped"
	exitLost   = "lost" // nobody was left to see it
)

// exitStatus tells how a process ended. The zero value: not yet.
type exitStatus struct {
	How    string `json:"how,omitempty"`    // exitExited, exitKilled, exitDumped or exitLost
	Status int    `json:"status,omitempty"` // exit code, or signal number
}

func (x *exitStatus) fields(c *codec) {
	textField(c, "how", ifSet, &x.How)
	numberField(c, "status", ifSet, &x.Status)
}

// jobRecord is the job that a shim works on, or the last one that it finished.
type jobRecord struct {
	ID      string   `json:"id,omitempty"`
	Verb    string   `json:"verb,omitempty"`    // start, stop, restart, reload
	Outcome string   `json:"outcome,omitempty"` // "" while it runs; then done, failed, canceled or dependency
	Text    string   `json:"text,omitempty"`    // why it failed, or what is worth knowing
	By      string   `json:"by,omitempty"`      // as in the wish
	For     string   `json:"for,omitempty"`     // likewise
	Until   boottime `json:"until,omitempty"`   // likewise
}

func (j *jobRecord) fields(c *codec) {
	textField(c, "id", ifSet, &j.ID)
	textField(c, "verb", ifSet, &j.Verb)
	textField(c, "outcome", ifSet, &j.Outcome)
	textField(c, "text", ifSet, &j.Text)
	textField(c, "by", ifSet, &j.By)
	textField(c, "for", ifSet, &j.For)
	numberField(c, "until", ifSet, &j.Until)
}

// wantRecord is run/NAME/want: the wish for one service, written by the daemon before anything is done.
type wantRecord struct {
	Version int      `json:"v"`
	Boot    string   `json:"boot"`
	Up      bool     `json:"up"`
	Job     string   `json:"job"`
	Verb    string   `json:"verb"`
	Then    string   `json:"then,omitempty"`  // start: this stop is the first stage of a restart that others stand between
	By      string   `json:"by"`              // user, dependency, enabled, kill, boot
	For     string   `json:"for,omitempty"`   // dependency: the unit that it goes with
	Until   boottime `json:"until,omitempty"` // of a stop: all of it is to be over by then; 0 = no bound but its own timeouts
}

func (w *wantRecord) fields(c *codec) {
	numberField(c, "v", always, &w.Version)
	textField(c, "boot", always, &w.Boot)
	flagField(c, "up", always, &w.Up)
	textField(c, "job", always, &w.Job)
	textField(c, "verb", always, &w.Verb)
	textField(c, "then", ifSet, &w.Then)
	textField(c, "by", always, &w.By)
	textField(c, "for", ifSet, &w.For)
	numberField(c, "until", ifSet, &w.Until)
}

// runRecord is run/NAME/state and the body of the shim's state frames: all that a successor must know.
type runRecord struct {
	Version    int        `json:"v"`
	Boot       string     `json:"boot"`
	PIDNS      uint64     `json:"pidns,omitempty"`
	Sub        string     `json:"sub"`
	Result     string     `json:"result,omitempty"`
	Reason     string     `json:"reason,omitempty"`  // one line: why it is in this state
	Since      int64      `json:"since,omitempty"`   // wall clock, ns: when Sub's active state was entered
	Started    int64      `json:"started,omitempty"` // wall clock, ns: start of the present or last run; 0 = never
	RunBegan   boottime   `json:"began,omitempty"`   // start of the present run, for back-off and RuntimeMaxSec
	Invocation string     `json:"inv,omitempty"`
	Main       pidRef     `json:"main,omitzero"`
	Control    pidRef     `json:"control,omitzero"`
	Spawning   string     `json:"spawning,omitempty"` // main or control: protocol P is between its steps 2 and 6
	Step       int        `json:"step,omitempty"`     // index of the command that runs in this state
	Exit       exitStatus `json:"exit,omitzero"`      // of the last main process
	Deadline   boottime   `json:"deadline,omitempty"` // 0 = none
	Job        jobRecord  `json:"job,omitzero"`
	Restarts   int        `json:"restarts,omitempty"` // automatic ones since the last start by hand
	ShortRuns  int        `json:"short,omitempty"`    // runs in a row that count for back-off
	Starts     []boottime `json:"starts,omitempty"`   // of the running start limit interval
	StatusText string     `json:"text,omitempty"`     // STATUS= of sd_notify(3)
	Cgroup     string     `json:"cgroup,omitempty"`   // absolute path of its cgroup directory; "" = none
	Orphans    []pidRef   `json:"orphans,omitempty"`  // handed over by the daemon that got them
	Left       []int      `json:"left,omitempty"`     // PIDs that a stop could not end
	Killed     bool       `json:"killed,omitempty"`   // the running stop needed SIGKILL
	Unheard    bool       `json:"unheard,omitempty"`  // nobody held the notify socket for a while: READY=1 of this start may be lost
	Retire     bool       `json:"retire,omitempty"`   // the FIFOs are to be renamed away: what the last run left may hold them
	ShimPID    int        `json:"shim,omitempty"`     // who wrote this
	Delay      boottime   `json:"delay,omitempty"`    // that was chosen before the next automatic start
	OOMKills   uint64     `json:"oom,omitempty"`      // of its cgroup when the run began
	Events     uint64     `json:"events,omitempty"`   // sequence number of the last event in its history
}

func (r *runRecord) fields(c *codec) {
	numberField(c, "v", always, &r.Version)
	textField(c, "boot", always, &r.Boot)
	numberField(c, "pidns", ifSet, &r.PIDNS)
	textField(c, "sub", always, &r.Sub)
	textField(c, "result", ifSet, &r.Result)
	textField(c, "reason", ifSet, &r.Reason)
	numberField(c, "since", ifSet, &r.Since)
	numberField(c, "started", ifSet, &r.Started)
	numberField(c, "began", ifSet, &r.RunBegan)
	textField(c, "inv", ifSet, &r.Invocation)
	recordField(c, "main", ifSet, &r.Main)
	recordField(c, "control", ifSet, &r.Control)
	textField(c, "spawning", ifSet, &r.Spawning)
	numberField(c, "step", ifSet, &r.Step)
	recordField(c, "exit", ifSet, &r.Exit)
	numberField(c, "deadline", ifSet, &r.Deadline)
	recordField(c, "job", ifSet, &r.Job)
	numberField(c, "restarts", ifSet, &r.Restarts)
	numberField(c, "short", ifSet, &r.ShortRuns)
	numbersField(c, "starts", ifSet, &r.Starts)
	textField(c, "text", ifSet, &r.StatusText)
	textField(c, "cgroup", ifSet, &r.Cgroup)
	recordsField(c, "orphans", ifSet, &r.Orphans)
	numbersField(c, "left", ifSet, &r.Left)
	flagField(c, "killed", ifSet, &r.Killed)
	flagField(c, "unheard", ifSet, &r.Unheard)
	flagField(c, "retire", ifSet, &r.Retire)
	numberField(c, "shim", ifSet, &r.ShimPID)
	numberField(c, "delay", ifSet, &r.Delay)
	numberField(c, "oom", ifSet, &r.OOMKills)
	numberField(c, "events", ifSet, &r.Events)
}

// Kinds of historyEvent: what happened.
const (
	eventStart     = "start"         // a run began
	eventReady     = "ready"         // its start is through
	eventExit      = "exit"          // the main process has ended
	eventFailed    = "failed"        // something else than that end makes the run a failure
	eventStop      = "stop"          // it is to end
	eventRestart   = "restart"       // it is to end and to start again
	eventSIGKILL   = "sigkill"       // the stop needed it
	eventReload    = "reload"        // it is to read its configuration again
	eventReloaded  = "reloaded"      // it has
	eventNotReload = "reload-failed" // it has not, and runs on
	eventAdopted   = "adopted"       // its shim was killed, another one has taken over
	eventReset     = "reset-failed"  // failures and counters were forgotten
)

// Causes of events, beside those who ask for a job: user, dependency, enabled, kill.
const (
	causePolicy  = "policy"  // a setting of the unit: Restart=, a timeout, a limit
	causeService = "service" // the service, by itself
	causeOOM     = "oom"     // the kernel, for lack of memory
	causeAbsent  = "absent"  // nothing of ours was there
	causeSystem  = "system"  // the machine did not give what a start needs
)

// historyEvent is one event of run/NAME/history.
type historyEvent struct {
	Seq    uint64     `json:"-"`                // its slot says it
	Time   int64      `json:"t"`                // wall clock, ns
	Kind   string     `json:"e"`                // eventStart …
	By     string     `json:"by,omitempty"`     // its cause
	For    string     `json:"for,omitempty"`    // dependency: the other unit
	Exit   exitStatus `json:"exit,omitzero"`    // exit
	Result string     `json:"result,omitempty"` // exit, failed
	PID    int        `json:"pid,omitempty"`    // ready, exit: of the main process
	Delay  int64      `json:"ms,omitempty"`     // start by policy: what was waited before, milliseconds
	Count  int        `json:"n,omitempty"`      // start by policy: which one since the last start by hand
	Alone  bool       `json:"alone,omitempty"`  // no daemon was connected to the shim
	Late   bool       `json:"late,omitempty"`   // no shim was there: Time is when the next one found it
	Text   string     `json:"text,omitempty"`   // start by policy: the setting; failed, reload-failed: why
}

func (e *historyEvent) fields(c *codec) {
	numberField(c, "t", always, &e.Time)
	textField(c, "e", always, &e.Kind)
	textField(c, "by", ifSet, &e.By)
	textField(c, "for", ifSet, &e.For)
	recordField(c, "exit", ifSet, &e.Exit)
	textField(c, "result", ifSet, &e.Result)
	numberField(c, "pid", ifSet, &e.PID)
	numberField(c, "ms", ifSet, &e.Delay)
	numberField(c, "n", ifSet, &e.Count)
	flagField(c, "alone", ifSet, &e.Alone)
	flagField(c, "late", ifSet, &e.Late)
	textField(c, "text", ifSet, &e.Text)
}

// daemonRecord is daemon.json.
type daemonRecord struct {
	Version  int      `json:"v"`
	Boot     string   `json:"boot"`
	PIDNS    uint64   `json:"pidns,omitempty"`
	Wanted   string   `json:"wanted"` // wantedRunning, wantedStopped, wantedEnding, wantedKilled
	Mode     string   `json:"mode"`   // modeAuto, modeForeground, modeInit
	Daemon   pidRef   `json:"daemon,omitzero"`
	Binary   string   `json:"binary"`
	Build    string   `json:"build"`
	Started  boottime `json:"started"`            // 0 while it is being started
	Attempts int      `json:"attempts,omitempty"` // starts by shims since a daemon last lived 10 s
	Keeper   pidRef   `json:"keeper,omitzero"`    // the first process whose units a boot has started
	Boots    bool     `json:"boots,omitempty"`    // the units that a boot starts are not all recorded as wished yet
}

func (d *daemonRecord) fields(c *codec) {
	numberField(c, "v", always, &d.Version)
	textField(c, "boot", always, &d.Boot)
	numberField(c, "pidns", ifSet, &d.PIDNS)
	textField(c, "wanted", always, &d.Wanted)
	textField(c, "mode", always, &d.Mode)
	recordField(c, "daemon", ifSet, &d.Daemon)
	textField(c, "binary", always, &d.Binary)
	textField(c, "build", always, &d.Build)
	numberField(c, "started", always, &d.Started)
	numberField(c, "attempts", ifSet, &d.Attempts)
	recordField(c, "keeper", ifSet, &d.Keeper)
	flagField(c, "boots", ifSet, &d.Boots)
}

const (
	wantedRunning = "running"
	wantedStopped = "stopped" // by SIGTERM: nobody revives it, services run on
	wantedEnding  = "ending"  // by the first process of a container: so does that
	wantedKilled  = "killed"  // by `kill`: the next daemon starts what is enabled

	modeAuto       = "auto"
	modeForeground = "foreground"
	modeInit       = "init"
)

// ---- slots: records that are overwritten in place

// slotBytes is the size of one slot; a record file has two. One page: the kernel copies it whole.
const slotBytes = 4096

// slotMagic opens each slot; its last byte is the layout's version.
const slotMagic = "DKS\x01"

// slotHeader: magic 4, sequence 8, length 4, crc32 4 (little endian), then the JSON text.
const slotHeader = 20

var (
	errNoRecord     = errors.New("no readable record")
	errNeverWritten = errors.New("record was never written") // its slots were allocated, and that is all
)

// encodeSlot fills one slot with the JSON text of a record under sequence number seq.
func encodeSlot(slot []byte, seq uint64, body []byte) error {
	if len(body) > len(slot)-slotHeader {
		return fmt.Errorf("cannot encode record: %d bytes do not fit a slot", len(body))
	}
	copy(slot, slotMagic)
	binary.LittleEndian.PutUint64(slot[4:], seq)
	binary.LittleEndian.PutUint32(slot[12:], uint32(len(body)))
	clear(slot[slotHeader+copy(slot[slotHeader:], body):])
	binary.LittleEndian.PutUint32(slot[16:], slotSum(slot, len(body)))
	return nil
}

// slotSum is the CRC-32 (IEEE) of the header (less the sum itself) and the body, half a byte at a time: hash/crc32 makes tables at the start
// of each process that links it (25 us, measured), and this needs sixteen numbers.
func slotSum(slot []byte, n int) uint32 {
	return ^addSum(addSum(^uint32(0), slot[:16]), slot[slotHeader:slotHeader+n])
}

func addSum[T []byte | string](sum uint32, part T) uint32 {
	for i := range len(part) {
		sum ^= uint32(part[i])
		sum = crcTable[sum&15] ^ sum>>4
		sum = crcTable[sum&15] ^ sum>>4
	}
	return sum
}

// crcTable is what four bits contribute to a CRC-32 with the reversed polynomial 0xedb88320.
var crcTable = [16]uint32{
	0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
	0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c,
}

// decodeSlots reads the newer readable slot of a record file into r and returns its sequence number.
// errNoRecord when neither is readable, errNeverWritten when both are blank.
func decodeSlots(file []byte, r record) (uint64, error) {
	body, seq, err := newestSlot(file)
	if err != nil {
		return 0, err
	}
	if err := decode(body, r); err != nil {
		return 0, fmt.Errorf("%w: %v", errNoRecord, err)
	}
	return seq, nil
}

// newestSlot returns the JSON text and the sequence number of the newer readable slot.
func newestSlot(file []byte) (best []byte, seq uint64, err error) {
	for off := 0; off+slotBytes <= len(file); off += slotBytes {
		slot := file[off : off+slotBytes]
		if body, n, ok := slotBody(slot); ok && (best == nil || n > seq) {
			best, seq = body, n
		}
	}
	if best == nil && len(file) == 2*slotBytes && file[0] == 0 && bytes.Equal(file[1:], file[:len(file)-1]) { // each byte is as the one before
		return nil, 0, errNeverWritten
	}
	if best == nil {
		return nil, 0, errNoRecord
	}
	return best, seq, nil
}

func slotBody(slot []byte) (body []byte, seq uint64, ok bool) {
	if string(slot[:4]) != slotMagic {
		return nil, 0, false
	}
	n := int(binary.LittleEndian.Uint32(slot[12:]))
	if n > len(slot)-slotHeader || slotSum(slot, n) != binary.LittleEndian.Uint32(slot[16:]) {
		return nil, 0, false
	}
	return slot[slotHeader : slotHeader+n], binary.LittleEndian.Uint64(slot[4:]), true
}

// ---- the stage's order (barrier pipe) and report (error pipe)

// stageOrder tells a stage what to become. It travels over the barrier pipe before the commit byte.
type stageOrder struct {
	Path   string // of the program
	Argv   []string
	Env    []string
	Dir    string
	Soft   string // directory to take when Dir cannot be entered; "" = that is an error
	UID    int    // -1 = as we are
	GID    int    // -1 = as we are
	Groups []int  // supplementary groups, only with UID or GID
	UMask  int
	Cgroup string // cgroup.procs to join; "" = already there, or none
}

// encodeStageOrder: a 4 byte little endian length, then strings that each end in NUL. No JSON: the stage is
// started for every process, and decoding must cost nothing.
func encodeStageOrder(o stageOrder) []byte {
	b := make([]byte, 4, 4096)
	str := func(s string) { b = append(append(b, s...), 0) }
	num := func(n int) { str(strconv.Itoa(n)) }
	list := func(l []string) {
		num(len(l))
		for _, s := range l {
			str(s)
		}
	}
	str(o.Path)
	list(o.Argv)
	list(o.Env)
	str(o.Dir)
	str(o.Soft)
	num(o.UID)
	num(o.GID)
	num(len(o.Groups))
	for _, g := range o.Groups {
		num(g)
	}
	num(o.UMask)
	str(o.Cgroup)
	binary.LittleEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

// decodeStageOrder reads what encodeStageOrder wrote, without the length.
func decodeStageOrder(b []byte) (o stageOrder, err error) {
	str := func() string {
		i := bytes.IndexByte(b, 0)
		if i < 0 {
			err = errors.New("cannot read stage order: cut short")
			b = nil
			return ""
		}
		s := string(b[:i])
		b = b[i+1:]
		return s
	}
	num := func() int {
		n, e := strconv.Atoi(str())
		if e != nil && err == nil {
			err = errors.New("cannot read stage order: bad number")
		}
		return n
	}
	list := func() []string {
		n := num()
		if n < 0 || n > len(b) {
			err = errors.New("cannot read stage order: bad count")
			return nil
		}
		l := make([]string, 0, n)
		for range n {
			l = append(l, str())
		}
		return l
	}
	o.Path, o.Argv, o.Env, o.Dir, o.Soft = str(), list(), list(), str(), str()
	o.UID, o.GID = num(), num()
	for _, g := range list() {
		n, e := strconv.Atoi(g)
		if e != nil && err == nil {
			err = errors.New("cannot read stage order: bad group")
		}
		o.Groups = append(o.Groups, n)
	}
	o.UMask, o.Cgroup = num(), str()
	return o, err
}

// notFoundPrefix begins the reason of a start whose program is not on the service's PATH: "cannot find NAME in PATH=…".
const notFoundPrefix = "cannot find "

// setupStage names a step between fork and execve, as systemd does.
type setupStage string

// The exit codes of systemd.exec(5), "Process Exit Codes".
var setupStageCodes = []struct {
	stage setupStage
	code  int
}{
	{stageChdir, 200}, {stageFDs, 202}, {stageExec, 203}, {stageLimits, 205}, {stageOOM, 206}, {stageSigmask, 207},
	{stageGroup, 216}, {stageUser, 217}, {stageCgroup, 219}, {stageSetsid, 220},
}

const (
	stageChdir   setupStage = "chdir"
	stageFDs     setupStage = "fds"
	stageExec    setupStage = "exec"
	stageLimits  setupStage = "limits"
	stageOOM     setupStage = "oom"
	stageSigmask setupStage = "sigmask"
	stageGroup   setupStage = "group"
	stageUser    setupStage = "user"
	stageCgroup  setupStage = "cgroup"
	stageSetsid  setupStage = "setsid"
)

func (s setupStage) exitCode() int {
	for _, c := range setupStageCodes {
		if c.stage == s {
			return c.code
		}
	}
	return exitFailed
}

// stageReportExec is what the stage writes to the error pipe right before execve; end of file after it means
// that execve succeeded. A failure is "STAGE ERRNO" instead.
const stageReportExec = "exec\n"

// stageFailure is a failed set-up step.
type stageFailure struct {
	Stage setupStage
	Errno int
}

func encodeStageFailure(f stageFailure) string { return fmt.Sprintf("%s %d\n", f.Stage, f.Errno) }

// decodeStageReport reads all that came through the error pipe until its end. ok: execve succeeded.
// Neither ok nor a failure: the stage died in set-up.
func decodeStageReport(b []byte) (ok bool, f stageFailure) {
	for line := range strings.Lines(string(b)) {
		if line == stageReportExec {
			ok = true
			continue
		}
		name, num, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if n, err := strconv.Atoi(num); err == nil {
			return false, stageFailure{setupStage(name), n}
		}
	}
	return ok, stageFailure{}
}

// ---- control protocol between daemon and shims

// Ops of shimFrame. From the shim: hello, state, upgrade. To the shim: hello, want, held, exit, orphans, reset, idle, leave, heal, upgrade.
const (
	opHello   = "hello"   // first frame of each side
	opState   = "state"   // State is new; Names label the descriptors that travel with it, to be held
	opWant    = "want"    // read `want`, if it still is that of Job
	opHeld    = "held"    // descriptors of a dead predecessor, labelled by Names
	opExit    = "exit"    // a process of this service ended and was reaped by the sender
	opOrphans = "orphans" // Refs: children of a dead predecessor
	opReset   = "reset"   // reset-failed
	opIdle    = "idle"    // the wish that may keep an idle shim is withdrawn
	opLeave   = "leave"   // `kill`: end, also if leftovers of KillMode=process still write
	opHeal    = "heal"    // start a daemon (asked by a client that runs inside this service)
	opUpgrade = "upgrade" // become Program; from the shim: it stays what it is, for Error
)

// shimFrame is one line between a shim and a daemon or client. The smallest protocol: it only grows.
type shimFrame struct {
	Op      string     `json:"op"`
	Proto   int        `json:"proto,omitempty"` // hello
	Build   string     `json:"build,omitempty"` // hello
	Role    string     `json:"role,omitempty"`  // hello to the shim: daemon or client
	Fresh   bool       `json:"fresh,omitempty"` // hello of a daemon that has just come: it has reaped nothing of this service
	Job     string     `json:"job,omitempty"`   // want
	State   *runRecord `json:"state,omitempty"`
	Names   []string   `json:"names,omitempty"`
	Exit    *exitNote  `json:"exit,omitempty"`
	Refs    []pidRef   `json:"refs,omitempty"`
	Program string     `json:"program,omitempty"` // upgrade: absolute path
	Inode   uint64     `json:"inode,omitempty"`   // of Program
	Error   string     `json:"error,omitempty"`
}

func (f *shimFrame) fields(c *codec) {
	textField(c, "op", always, &f.Op)
	numberField(c, "proto", ifSet, &f.Proto)
	textField(c, "build", ifSet, &f.Build)
	textField(c, "role", ifSet, &f.Role)
	flagField(c, "fresh", ifSet, &f.Fresh)
	textField(c, "job", ifSet, &f.Job)
	pointerField(c, "state", ifSet, &f.State)
	textsField(c, "names", ifSet, &f.Names)
	pointerField(c, "exit", ifSet, &f.Exit)
	recordsField(c, "refs", ifSet, &f.Refs)
	textField(c, "program", ifSet, &f.Program)
	numberField(c, "inode", ifSet, &f.Inode)
	textField(c, "error", ifSet, &f.Error)
}

// exitNote hands on the exit status of a process that the sender reaped.
type exitNote struct {
	Ref  pidRef     `json:"ref"`
	Exit exitStatus `json:"exit"`
}

func (n *exitNote) fields(c *codec) {
	recordField(c, "ref", always, &n.Ref)
	recordField(c, "exit", always, &n.Exit)
}

// Labels of held descriptors.
const (
	heldOut    = "out"
	heldErr    = "err"
	heldMain   = "main" // pidfd
	heldNotify = "notify"
)

// ---- control protocol between client and daemon

// request is the one line that a client sends.
type request struct {
	Proto      int      `json:"proto"`
	Build      string   `json:"build"`
	Verb       string   `json:"verb"` // as in DESIGN.md section 8
	ServiceDir string   `json:"service_dir,omitempty"`
	Names      []string `json:"names,omitempty"`
	NoBlock    bool     `json:"no_block,omitempty"`
	Program    string   `json:"program,omitempty"` // daemon-upgrade: absolute path of the client's own
}

// reply is one line of the daemon's answer; the last has Done. Exactly one field beside Proto and Build is set.
type reply struct {
	Proto  int           `json:"proto,omitempty"`
	Build  string        `json:"build,omitempty"`
	Job    *jobLine      `json:"job,omitempty"`
	Unit   *unitStatus   `json:"unit,omitempty"`
	Daemon *daemonStatus `json:"daemon,omitempty"`
	Warn   string        `json:"warn,omitempty"` // for stderr
	Done   *outcome      `json:"done,omitempty"`
}

// outcome ends an answer. Error is one or more lines without prefix; Hints are shown as `hint: ` lines.
type outcome struct {
	Code  int      `json:"code"` // exit code of the client
	Error string   `json:"error,omitempty"`
	Hints []string `json:"hints,omitempty"`
}

// jobLine reports one finished job, as it happens.
type jobLine struct {
	Unit    string `json:"unit"`
	Verb    string `json:"verb"`              // start, stop, restart, reload; enable, disable, reset-failed, forget
	Outcome string `json:"outcome"`           // done, failed, canceled, dependency, skipped (nothing to do)
	Text    string `json:"text,omitempty"`    // why it failed, or what is worth knowing ("needed SIGKILL")
	MainPID int    `json:"main_pid"`          // 0 = none
	Culprit string `json:"culprit,omitempty"` // dependency: the unit that failed
	Left    []int  `json:"left,omitempty"`    // stop failed: PIDs left
	Millis  int64  `json:"millis"`            // how long it took
	Missing string `json:"missing,omitempty"` // program that was not found on the service's PATH
}

// unitStatus is the public object of `list --json` and `status --json`. Every field is always present.
type unitStatus struct {
	Name          string   `json:"name"`
	Description   string   `json:"description"`
	Documentation string   `json:"documentation"` // separated by spaces
	UnitFile      string   `json:"unit_file"`
	LoadState     string   `json:"load_state"` // loaded, not-found, bad-setting
	LoadError     string   `json:"load_error"`
	ActiveState   string   `json:"active_state"`
	SubState      string   `json:"sub_state"`
	Result        string   `json:"result"`
	Reason        string   `json:"reason"` // one line: why it is in this state
	StatusText    string   `json:"status_text"`
	MainPID       int      `json:"main_pid"`
	ControlPID    int      `json:"control_pid"`
	ShimPID       int      `json:"shim_pid"`
	ShimOutdated  bool     `json:"shim_outdated"` // its shim runs another program than the daemon
	Supervised    bool     `json:"supervised"`    // false: it has processes or waits for its restart, and no shim
	Restarts      int      `json:"restarts"`
	StateSince    *string  `json:"state_since"` // RFC 3339
	StartedAt     *string  `json:"started_at"`  // RFC 3339
	NextStart     *string  `json:"next_start"`  // RFC 3339: end of the restart delay
	ExitCode      *int     `json:"exit_code"`
	ExitSignal    *string  `json:"exit_signal"` // SIGKILL
	MemoryBytes   *int64   `json:"memory_bytes"`
	CPUSeconds    *float64 `json:"cpu_seconds"`
	Enabled       bool     `json:"enabled"`
	ChangedOnDisk bool     `json:"changed_on_disk"`
	InvocationID  string   `json:"invocation_id"`
	Cgroup        string   `json:"cgroup"`
}

// daemonStatus is the public object of `daemon-status --json`.
type daemonStatus struct {
	Running    bool     `json:"running"`
	Version    string   `json:"version"`
	PID        int      `json:"pid"`
	Mode       string   `json:"mode"` // auto, foreground, init
	Home       string   `json:"home"`
	StartedAt  *string  `json:"started_at"`
	Units      int      `json:"units"`
	Active     int      `json:"active"`
	Failed     int      `json:"failed"`
	Cgroup     string   `json:"cgroup"`      // where services' cgroups are made; "" = none
	Weaker     []string `json:"weaker"`      // what this machine cannot give, a sentence each
	ServiceDir string   `json:"service_dir"` // of the first client
}

// ---- wills: what a daemon or a shim leaves to the program that it becomes (succession.go). Numbers named FD are descriptors that it inherits; 0 = none.

// shimWill is what a shim leaves beside its records.
type shimWill struct {
	Version    int    `json:"v"`
	Build      string `json:"build"`             // of the writer
	Refused    string `json:"refused,omitempty"` // why this is still the old program: it could not become the other one
	LockFD     int    `json:"lock_fd"`
	StateFD    int    `json:"state_fd"`
	ListenerFD int    `json:"listener_fd,omitempty"`
	DaemonFD   int    `json:"daemon_fd,omitempty"`
	Unread     string `json:"unread,omitempty"`    // hex: what came from the daemon and is no whole frame yet
	Received   []int  `json:"received,omitempty"`  // descriptors that came with it
	OutputFDs  []int  `json:"output_fds"`          // FIFOs: what is in them goes with the last of their readers
	MainFD     int    `json:"main_fd,omitempty"`   // pidfd of the main process
	NotifyFD   int    `json:"notify_fd,omitempty"` // socket of sd_notify
	Adopted    bool   `json:"adopted,omitempty"`   // processes of the service may not descend from the shim
}

func (w *shimWill) fields(c *codec) {
	numberField(c, "v", always, &w.Version)
	textField(c, "build", always, &w.Build)
	textField(c, "refused", ifSet, &w.Refused)
	numberField(c, "lock_fd", always, &w.LockFD)
	numberField(c, "state_fd", always, &w.StateFD)
	numberField(c, "listener_fd", ifSet, &w.ListenerFD)
	numberField(c, "daemon_fd", ifSet, &w.DaemonFD)
	textField(c, "unread", ifSet, &w.Unread)
	numbersField(c, "received", ifSet, &w.Received)
	numbersField(c, "output_fds", always, &w.OutputFDs)
	numberField(c, "main_fd", ifSet, &w.MainFD)
	numberField(c, "notify_fd", ifSet, &w.NotifyFD)
	flagField(c, "adopted", ifSet, &w.Adopted)
}

// bootOrder is what the first process of a container asks of the daemon that it keeps.
type bootOrder struct {
	Start      []string `json:"start,omitempty"`     // units by name; none = the enabled ones, else all of the service directory
	ServiceDir string   `json:"service_dir"`         // absolute
	Command    bool     `json:"command,omitempty"`   // it has a command of its own, which ends the container by its end
	WhenIdle   bool     `json:"when_idle,omitempty"` // the container ends when nothing runs any more
}

func (b *bootOrder) fields(c *codec) {
	textsField(c, "start", ifSet, &b.Start)
	textField(c, "service_dir", always, &b.ServiceDir)
	flagField(c, "command", ifSet, &b.Command)
	flagField(c, "when_idle", ifSet, &b.WhenIdle)
}

// keeperFrame is one packet between the first process and its daemon. Its layout is fixed, so that PID 1 needs no memory for it: op 1, padding
// 3, PID 4, status 4, padding 4, time 8, start 8, inode 8, little endian.
type keeperFrame struct {
	Op     keeperOp
	Status uint32   // keeperExit: as wait(2) has it; keeperEnd: the exit code
	Time   boottime // keeperStop: when all is to be over
	Ref    pidRef   // keeperExit
}

type keeperOp = byte

// Packets to the daemon, and to the first process.
const (
	keeperExit   keeperOp = 'x' // an orphan has ended
	keeperStop   keeperOp = 's' // stop all
	keeperReload keeperOp = 'r' // read the units again

	keeperHello  keeperOp = 'h' // the daemon is up
	keeperUp     keeperOp = 'u' // what is started at first has come up
	keeperFailed keeperOp = 'f' // likewise, but for some
	keeperEnd    keeperOp = 'e' // the container is to end
	keeperDone   keeperOp = 'd' // all is stopped
)

const keeperFrameBytes = 40

func (f *keeperFrame) put(b *[keeperFrameBytes]byte) {
	le := binary.LittleEndian
	*b = [keeperFrameBytes]byte{f.Op}
	le.PutUint32(b[4:], uint32(f.Ref.PID))
	le.PutUint32(b[8:], f.Status)
	le.PutUint64(b[16:], uint64(f.Time))
	le.PutUint64(b[24:], f.Ref.Start)
	le.PutUint64(b[32:], f.Ref.Ino)
}

// parse reads a packet; false = it is none.
func (f *keeperFrame) parse(b []byte) bool {
	if len(b) != keeperFrameBytes {
		return false
	}
	le := binary.LittleEndian
	*f = keeperFrame{Op: b[0], Status: le.Uint32(b[8:]), Time: boottime(le.Uint64(b[16:])),
		Ref: pidRef{int(int32(le.Uint32(b[4:]))), le.Uint64(b[24:]), le.Uint64(b[32:])}}
	return true
}

// daemonWill is what a daemon leaves that neither shims nor disk know.
type daemonWill struct {
	Version    int           `json:"v"`
	Build      string        `json:"build"` // of the writer
	Home       string        `json:"home"`
	Mode       string        `json:"mode"`
	ServiceDir string        `json:"service_dir,omitempty"` // of the first client
	Refused    string        `json:"refused,omitempty"`     // why this is still the old program: it could not become the other one
	LockFD     int           `json:"lock_fd"`
	LogFD      int           `json:"log_fd"`
	ListenerFD int           `json:"listener_fd"`
	KeeperFD   int           `json:"keeper_fd,omitempty"` // the connection to the first process
	Services   []serviceWill `json:"services"`
	Clients    []clientWill  `json:"clients"`
	Askers     []askerWill   `json:"askers"`
	Reloads    []string      `json:"reloads,omitempty"` // units whose reload waits for their present job, which alone has a wish on disk
}

func (w *daemonWill) fields(c *codec) {
	numberField(c, "v", always, &w.Version)
	textField(c, "build", always, &w.Build)
	textField(c, "home", always, &w.Home)
	textField(c, "mode", always, &w.Mode)
	textField(c, "service_dir", ifSet, &w.ServiceDir)
	textField(c, "refused", ifSet, &w.Refused)
	numberField(c, "lock_fd", always, &w.LockFD)
	numberField(c, "log_fd", always, &w.LogFD)
	numberField(c, "listener_fd", always, &w.ListenerFD)
	numberField(c, "keeper_fd", ifSet, &w.KeeperFD)
	recordsField(c, "services", always, &w.Services)
	recordsField(c, "clients", always, &w.Clients)
	recordsField(c, "askers", always, &w.Askers)
	textsField(c, "reloads", ifSet, &w.Reloads)
}

// serviceWill is what the daemon holds for a shim's successor.
type serviceWill struct {
	Name    string     `json:"name"`
	Labels  []string   `json:"labels,omitempty"`
	HeldFDs []int      `json:"held_fds,omitempty"` // as labelled
	Exits   []exitNote `json:"exits,omitempty"`    // that no state of a shim has shown yet
	Gone    []pidRef   `json:"gone,omitempty"`     // orphans of a dead shim
}

func (w *serviceWill) fields(c *codec) {
	textField(c, "name", always, &w.Name)
	textsField(c, "labels", ifSet, &w.Labels)
	numbersField(c, "held_fds", ifSet, &w.HeldFDs)
	recordsField(c, "exits", ifSet, &w.Exits)
	recordsField(c, "gone", ifSet, &w.Gone)
}

// clientWill is the connection of a client.
type clientWill struct {
	FD       int      `json:"fd"`
	Unread   string   `json:"unread,omitempty"`   // hex: no whole request yet
	Unsent   string   `json:"unsent,omitempty"`   // hex: of answers
	Requests []string `json:"requests,omitempty"` // read and not answered
}

func (w *clientWill) fields(c *codec) {
	numberField(c, "fd", always, &w.FD)
	textField(c, "unread", ifSet, &w.Unread)
	textField(c, "unsent", ifSet, &w.Unsent)
	textsField(c, "requests", ifSet, &w.Requests)
}

// askerWill is a request that waits for jobs.
type askerWill struct {
	Client int        `json:"client"` // index of daemonWill.Clients
	Verb   string     `json:"verb"`
	Jobs   []waitWill `json:"jobs,omitempty"`
	Failed bool       `json:"failed,omitempty"`
	Errors []string   `json:"errors,omitempty"`
	Hints  []string   `json:"hints,omitempty"`
	Code   int        `json:"code,omitempty"`
}

func (w *askerWill) fields(c *codec) {
	numberField(c, "client", always, &w.Client)
	textField(c, "verb", always, &w.Verb)
	recordsField(c, "jobs", ifSet, &w.Jobs)
	flagField(c, "failed", ifSet, &w.Failed)
	textsField(c, "errors", ifSet, &w.Errors)
	textsField(c, "hints", ifSet, &w.Hints)
	numberField(c, "code", ifSet, &w.Code)
}

// waitWill is a job that is waited for.
type waitWill struct {
	Unit   string `json:"unit"`
	Job    string `json:"job"` // its id, with which that of its wish begins
	Verb   string `json:"verb"`
	Anchor bool   `json:"anchor,omitempty"`
}

func (w *waitWill) fields(c *codec) {
	textField(c, "unit", always, &w.Unit)
	textField(c, "job", always, &w.Job)
	textField(c, "verb", always, &w.Verb)
	flagField(c, "anchor", ifSet, &w.Anchor)
}

// ---- sd_notify

// notifyBytes is the largest notify datagram that is read (man 3 sd_notify; R30).
const notifyBytes = 4096

// notifyMessage is what a datagram to NOTIFY_SOCKET says. Unknown assignments are ignored.
type notifyMessage struct {
	Ready, Stopping, Reloading bool
	Status                     string
	HasStatus                  bool
	MainPID                    int
	BadPID                     string // what MAINPID says where that is no PID
}

func parseNotify(b []byte) notifyMessage {
	var m notifyMessage
	for line := range strings.Lines(string(b)) {
		key, val, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		switch key {
		case "READY":
			m.Ready = m.Ready || val == "1"
		case "STOPPING":
			m.Stopping = m.Stopping || val == "1"
		case "RELOADING":
			m.Reloading = m.Reloading || val == "1"
		case "STATUS":
			m.Status, m.HasStatus = strings.ToValidUTF8(val, "\uFFFD"), true
		case "MAINPID":
			if n := parsePIDFile([]byte(val)); n != 0 {
				m.MainPID = n
			} else {
				m.BadPID = val
			}
		}
	}
	return m
}

// ---- small formats

// pidFileText is the content of daemon.pid, shim.pid and main.pid.
func pidFileText(pid int) []byte { return append(strconv.AppendInt(nil, int64(pid), 10), '\n') }

// parsePIDFile reads a decimal PID with surrounding white space, as we and services write it. 0 = none.
func parsePIDFile(b []byte) int {
	n, err := strconv.Atoi(string(bytes.TrimSpace(b)))
	if err != nil || n < 1 || n > 1<<22 {
		return 0
	}
	return n
}

// invocationText turns 128 random bits into INVOCATION_ID.
func invocationText(random [16]byte) string { return hex.EncodeToString(random[:]) }
