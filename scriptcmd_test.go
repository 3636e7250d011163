// Role: the commands of the scripts in testdata/script.
// Runs in: go test.
// Owns: nothing.
// Uses: observe, script, wire.

package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// scriptCommands. WHO is UNIT (its main process), shim:UNIT or @daemon. COND is a word that the active state or
// the sub-state must be, or FIELD=VALUE, FIELD!=VALUE, FIELD>=NUMBER over a field of status --json; all CONDs must hold.
//
//	require COND...              skip the script on a machine without
//	waitfor UNIT COND... [TIME]  until the status of the unit is so; starts no daemon
//	is UNIT COND...              the status is so now; may start a daemon, as any command
//	waitlog UNIT PATTERN [N]     until the log files hold N (1) lines that match
//	waitfile FILE [PATTERN [N]]  until the file exists, and N (1) lines of it match
//	waitdaemon [NAME]            until a daemon answers that is not the saved process NAME
//	crash daemon | all | shim UNIT | main UNIT   SIGKILL, and wait until gone
//	signal SIG WHO
//	save-pid NAME WHO            remember PID and start time; $NAME becomes the PID
//	[!] same-pid NAME WHO        is it the same process still?
//	[!] gone NAME                wait until the saved process is gone; with ! it must live
//	seq-whole UNIT COUNTER       the log holds each line of `svc -seq` once, in order, up to the counter
//	units N                      the last stdout is an array of N units with every field, sorted by name, as JSON
//	daemons N                    exactly N daemons of this home live
//	survivors N | any            what the script leaves running on purpose, for the harness to end
func scriptCommands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		"require": cmdRequire, "waitfor": cmdWaitfor, "is": cmdIs, "waitlog": cmdWaitlog, "waitfile": cmdWaitfile,
		"waitdaemon": cmdWaitdaemon, "crash": cmdCrash, "signal": cmdSignal, "save-pid": cmdSavePID,
		"same-pid": cmdSamePID, "gone": cmdGone, "seq-whole": cmdSeqWhole, "daemons": cmdDaemons, "units": cmdUnits, "survivors": cmdSurvivors,
	}
}

func checkUsage(ts *testscript.TestScript, ok bool, text string) {
	if !ok {
		ts.Fatalf("usage: %s", text)
	}
}

// scriptTest lets skip name the script.
type scriptTest struct {
	testscript.T
	name string
}

func (s scriptTest) Name() string { return "TestScript/" + s.name }
func (s scriptTest) Helper()      {}
func (s scriptTest) Fatalf(format string, a ...any) {
	s.T.Fatal(fmt.Sprintf(format, a...))
}

func cmdRequire(ts *testscript.TestScript, neg bool, args []string) {
	checkUsage(ts, !neg && len(args) > 0, "require COND...")
	s := stateOf(ts)
	for _, name := range args {
		has, err := machineHas(name)
		ts.Check(err)
		if !has {
			skip(scriptTest{s.t, s.name}, "this machine gives no "+name)
		}
	}
}

func cmdWaitfor(ts *testscript.TestScript, neg bool, args []string) {
	checkUsage(ts, !neg && len(args) > 1, "waitfor UNIT COND... [TIME]")
	limit := testPatience
	if d, err := time.ParseDuration(args[len(args)-1]); err == nil {
		limit, args = d, args[:len(args)-1]
	}
	var last, missing string
	ok := eventually(limit, func() bool {
		var st map[string]any
		st, last = unitJSON(ts, args[0], "DIAKONOS_NO_AUTOSTART=1")
		missing = unmet(st, args[1:])
		return st != nil && missing == ""
	})
	if !ok {
		log, _ := os.ReadFile(filepath.Join(stateOf(ts).home, "daemon.log"))
		ts.Fatalf("%s never became %s\nlast answer:\n%s\ndaemon.log:\n%s", args[0], missing, last, tail(log, 4000))
	}
}

func cmdIs(ts *testscript.TestScript, neg bool, args []string) {
	checkUsage(ts, !neg && len(args) > 1, "is UNIT COND...")
	st, text := unitJSON(ts, args[0], "")
	if st == nil {
		ts.Fatalf("cannot read the status of %s:\n%s", args[0], text)
	}
	if missing := unmet(st, args[1:]); missing != "" {
		ts.Fatalf("%s is not %s:\n%s", args[0], missing, text)
	}
}

// unitJSON asks for the status of one unit. nil: no single object came; the text says what did.
func unitJSON(ts *testscript.TestScript, unit, env string) (map[string]any, string) {
	cmd := diakonosCommand(ts, "--json", "status", "--", unit)
	if env != "" {
		cmd.Env = append(cmd.Env, env)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Run() // its exit code follows the state of the unit
	dec := json.NewDecoder(bytes.NewReader(stdout.Bytes()))
	dec.UseNumber()
	var list []map[string]any
	if dec.Decode(&list) != nil || len(list) != 1 {
		return nil, stdout.String() + stderr.String()
	}
	return list[0], stdout.String() + stderr.String()
}

// diakonosCommand is a client with the script's directory and environment.
func diakonosCommand(ts *testscript.TestScript, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(ts.Getenv("BIN"), "diakonos"), args...)
	cmd.Dir = ts.MkAbs(".")
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "WORK", "DIAKONOS_HOME", "DIAKONOS_SERVICE_DIR", "NO_COLOR"} {
		if value := ts.Getenv(name); value != "" {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	return cmd
}

// unmet returns the first condition that does not hold, or "".
func unmet(st map[string]any, conditions []string) string {
	for _, c := range conditions {
		if !holds(st, c) {
			return c
		}
	}
	return ""
}

func holds(st map[string]any, condition string) bool {
	field := func(name string) string {
		value, present := st[name]
		if !present {
			return "(no such field)"
		}
		return fmt.Sprint(value) // null prints as <nil>
	}
	if name, want, ok := strings.Cut(condition, "!="); ok {
		return field(name) != want
	}
	if name, want, ok := strings.Cut(condition, ">="); ok {
		got, err := strconv.ParseFloat(field(name), 64)
		least, _ := strconv.ParseFloat(want, 64)
		return err == nil && got >= least
	}
	if name, want, ok := strings.Cut(condition, "="); ok {
		return field(name) == want
	}
	return field("active_state") == condition || field("sub_state") == condition
}

// unitFields are the fields that every unit of --json has: programs read them.
var unitFields = map[string]string{
	"string":         "name description documentation unit_file load_state load_error active_state sub_state result reason status_text invocation_id cgroup",
	"number":         "main_pid control_pid shim_pid restarts",
	"bool":           "supervised enabled changed_on_disk",
	"null or string": "state_since started_at next_start exit_signal",
	"null or number": "exit_code memory_bytes cpu_seconds",
}

func cmdUnits(ts *testscript.TestScript, neg bool, args []string) {
	checkUsage(ts, !neg && len(args) == 1, "units N")
	var units []map[string]any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &units))
	if fmt.Sprint(len(units)) != args[0] {
		ts.Fatalf("%d units, want %s", len(units), args[0])
	}
	last := ""
	for _, u := range units {
		for kind, names := range unitFields {
			for _, name := range strings.Fields(names) {
				value, present := u[name]
				if got := jsonKind(value); !present || !slices.Contains(strings.Split(kind, " or "), got) {
					ts.Fatalf("%v: %s is %v (there: %t), want %s", u["name"], name, value, present, kind)
				}
			}
		}
		name := u["name"].(string)
		if name <= last {
			ts.Fatalf("%s stands after %s", name, last)
		}
		last = name
	}
}

func jsonKind(v any) string {
	switch v.(type) {
	case string:
		return "string"
	case float64:
		return "number"
	case bool:
		return "bool"
	case nil:
		return "null"
	}
	return "array or object"
}

func tail(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

func cmdWaitlog(ts *testscript.TestScript, neg bool, args []string) {
	checkUsage(ts, !neg && (len(args) == 2 || len(args) == 3), "waitlog UNIT PATTERN [N]")
	var lines []string
	waitLines(ts, args[1:], func() ([]string, error) {
		var err error
		lines, err = logText(stateOf(ts).home, args[0])
		return lines, err
	})
}

func cmdWaitfile(ts *testscript.TestScript, neg bool, args []string) {
	checkUsage(ts, !neg && len(args) > 0 && len(args) < 4, "waitfile FILE [PATTERN [N]]")
	waitLines(ts, append(args[1:], "")[:max(1, len(args)-1)], func() ([]string, error) {
		text, err := os.ReadFile(ts.MkAbs(args[0]))
		return strings.Split(string(text), "\n"), err
	})
}

// waitLines waits until args[1] (1) of the lines match args[0].
func waitLines(ts *testscript.TestScript, args []string, read func() ([]string, error)) {
	pattern, err := regexp.Compile(args[0])
	ts.Check(err)
	want := 1
	if len(args) > 1 {
		want, err = strconv.Atoi(args[1])
		ts.Check(err)
	}
	var lines []string
	ok := eventually(testPatience, func() bool {
		if lines, err = read(); err != nil {
			return false
		}
		n := 0
		for _, l := range lines {
			if pattern.MatchString(l) {
				n++
			}
		}
		return n >= want
	})
	if !ok {
		ts.Fatalf("no %d lines match %q (%v):\n%s", want, pattern, err, tail([]byte(strings.Join(lines, "\n")), 4000))
	}
}

// pidFile says where the PID of WHO stands.
func pidFile(home, who string) string {
	if who == "@daemon" {
		return filepath.Join(home, "daemon.pid")
	}
	if unit, ok := strings.CutPrefix(who, "shim:"); ok {
		return filepath.Join(home, "run", unit, "shim.pid")
	}
	return filepath.Join(home, "run", who, "main.pid")
}

// find returns the live process WHO.
func find(home, who string) (seenProcess, error) {
	text, err := os.ReadFile(pidFile(home, who))
	if err != nil {
		return seenProcess{}, err
	}
	p, live := readProcess(parsePIDFile(text))
	if !live {
		return seenProcess{}, fmt.Errorf("%s: process %q does not live", who, text)
	}
	return p, nil
}

// isGone: no live process has this PID and start time.
func isGone(p seenProcess) bool {
	now, live := readProcess(p.pid)
	return !live || now.start != p.start
}

func cmdCrash(ts *testscript.TestScript, neg bool, args []string) {
	checkUsage(ts, !neg && len(args) > 0, "crash daemon | all | shim UNIT | main UNIT")
	home := stateOf(ts).home
	var who []string
	switch {
	case args[0] == "daemon" && len(args) == 1:
		who = []string{"@daemon"}
	case args[0] == "all" && len(args) == 1:
		who = []string{"@daemon"}
		shims, _ := filepath.Glob(filepath.Join(home, "run", "*", "shim.pid"))
		for _, file := range shims {
			who = append(who, "shim:"+filepath.Base(filepath.Dir(file)))
		}
	case args[0] == "shim" && len(args) == 2:
		who = []string{"shim:" + args[1]}
	case args[0] == "main" && len(args) == 2:
		who = []string{args[1]}
	default:
		checkUsage(ts, false, "crash daemon | all | shim UNIT | main UNIT")
	}
	var victims []seenProcess
	for _, w := range who {
		p, err := find(home, w)
		if err != nil && args[0] == "all" {
			continue // a stopped unit has no shim
		}
		ts.Check(err)
		victims = append(victims, p)
	}
	for _, p := range victims {
		syscall.Kill(p.pid, syscall.SIGKILL)
	}
	for _, p := range victims {
		if !eventually(testPatience, func() bool { return isGone(p) }) {
			ts.Fatalf("process %s outlives SIGKILL", p)
		}
	}
}

func cmdSignal(ts *testscript.TestScript, neg bool, args []string) {
	checkUsage(ts, !neg && len(args) == 2, "signal SIG WHO")
	sig := unix.SignalNum("SIG" + strings.TrimPrefix(args[0], "SIG"))
	checkUsage(ts, sig != 0, "signal SIG WHO")
	p, err := find(stateOf(ts).home, args[1])
	ts.Check(err)
	ts.Check(syscall.Kill(p.pid, sig))
	if sig != syscall.SIGSTOP {
		return
	}
	if !eventually(testPatience, func() bool { return isStopped(p.pid) }) { // on a busy machine its other threads run on for milliseconds
		ts.Fatalf("%s does not stop", args[1])
	}
}

func isStopped(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, ok := strings.Cut(string(stat), ") ")
	return err == nil && ok && strings.HasPrefix(rest, "T")
}

func cmdSavePID(ts *testscript.TestScript, neg bool, args []string) {
	checkUsage(ts, !neg && len(args) == 2, "save-pid NAME WHO")
	s := stateOf(ts)
	p, err := find(s.home, args[1])
	ts.Check(err)
	s.saved[args[0]] = p
	ts.Setenv(args[0], strconv.Itoa(p.pid))
}

func cmdSamePID(ts *testscript.TestScript, neg bool, args []string) {
	checkUsage(ts, len(args) == 2, "[!] same-pid NAME WHO")
	s := stateOf(ts)
	old, saved := s.saved[args[0]]
	checkUsage(ts, saved, "save-pid NAME WHO first")
	now, err := find(s.home, args[1])
	same := err == nil && now.pid == old.pid && now.start == old.start
	if same == neg {
		ts.Fatalf("saved %s; now %s (%v)", old, now, err)
	}
}

func cmdGone(ts *testscript.TestScript, neg bool, args []string) {
	checkUsage(ts, len(args) == 1, "[!] gone NAME")
	p, saved := stateOf(ts).saved[args[0]]
	checkUsage(ts, saved, "save-pid NAME WHO first")
	if neg && isGone(p) {
		ts.Fatalf("%s is gone", p)
	}
	if !neg && !eventually(testPatience, func() bool { return isGone(p) }) {
		ts.Fatalf("%s still lives", p)
	}
}

func cmdWaitdaemon(ts *testscript.TestScript, neg bool, args []string) {
	checkUsage(ts, !neg && len(args) < 2, "waitdaemon [NAME]")
	s := stateOf(ts)
	ok := eventually(testPatience, func() bool {
		p, err := find(s.home, "@daemon")
		if err != nil {
			return false
		}
		if len(args) == 1 && s.saved[args[0]].pid == p.pid && s.saved[args[0]].start == p.start {
			return false
		}
		return diakonosCommand(ts, "daemon-status").Run() == nil
	})
	if !ok {
		ts.Fatalf("no daemon answers")
	}
}

// cmdDaemons counts by command line and open files, not by what the program says of itself.
func cmdDaemons(ts *testscript.TestScript, neg bool, args []string) {
	checkUsage(ts, !neg && len(args) == 1, "daemons N")
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	var found []seenProcess
	ok := eventually(testPatience, func() bool { found = daemonsOf(stateOf(ts).work); return len(found) == want })
	if !ok {
		ts.Fatalf("%d daemons, want %d: %v", len(found), want, found)
	}
}

// daemonsOf returns the live daemons with something of dir open.
func daemonsOf(dir string) []seenProcess {
	var found []seenProcess
	for _, p := range readProcesses() {
		name, _, _ := strings.Cut(p.command, " ")
		if filepath.Base(name) == "diakonosd" && p.mentions(dir) {
			found = append(found, p)
		}
	}
	slices.SortFunc(found, func(a, b seenProcess) int { return a.pid - b.pid })
	return found
}

func cmdSurvivors(ts *testscript.TestScript, neg bool, args []string) {
	checkUsage(ts, !neg && len(args) == 1, "survivors N | any")
	s := stateOf(ts)
	if args[0] == "any" {
		s.expected = -1
		return
	}
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	s.expected = n
}

// cmdSeqWhole: a line whose write returned is counted in the mapped file; it must be in the log, once, in order.
func cmdSeqWhole(ts *testscript.TestScript, neg bool, args []string) {
	checkUsage(ts, !neg && len(args) == 2, "seq-whole UNIT COUNTER")
	written, err := readCounter(ts.MkAbs(args[1]))
	ts.Check(err)
	var last uint64
	ok := eventually(testPatience, func() bool {
		lines, err := logText(stateOf(ts).home, args[0])
		ts.Check(err)
		last, err = wholeSequence(lines)
		ts.Check(err)
		return last >= written
	})
	if !ok {
		ts.Fatalf("%d lines were written, the log ends at %d", written, last)
	}
	if written == 0 {
		ts.Fatalf("the service wrote nothing")
	}
}

// readCounter reads what countTo wrote.
func readCounter(file string) (uint64, error) {
	b, err := os.ReadFile(file)
	if err != nil || len(b) < 8 {
		return 0, fmt.Errorf("cannot read counter %s: %v", file, err)
	}
	return binary.NativeEndian.Uint64(b), nil
}

// wholeSequence checks that the `seq N` lines count 1, 2, 3… and returns the last N.
func wholeSequence(lines []string) (uint64, error) {
	var last uint64
	for _, l := range lines {
		text, ok := strings.CutPrefix(l, "seq ")
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return last, fmt.Errorf("torn line %q after %d", l, last)
		}
		if n != last+1 {
			return last, fmt.Errorf("line %d follows %d", n, last)
		}
		last = n
	}
	return last, nil
}
