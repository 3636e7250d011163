// Role: the client: verbs, flags, help, one conversation with the daemon, exit codes.
// Runs in: client.
// Owns: its connection and its two outputs.
// Uses: visible, wire, value, sys, unit, log, deps, state, tree, api, upgrade, render, why.

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// clientCall is one parsed command line.
type clientCall struct {
	verb      string
	args      []string
	homeFlag  string
	dirFlag   string
	since     string
	lines     int // -1 = all
	json      bool
	noBlock   bool
	follow    bool
	hardLinks bool
	help      bool
	version   bool
}

// client is one run of the program as client.
type client struct {
	clientCall
	out  *view
	err  *view
	home home
	dir  string // service directory, absolute

	// seams: h.connect and h.connectOrStart, and how long a silent daemon is waited for
	connect        func() (*os.File, error)
	connectOrStart func() (*os.File, error)
	patience       time.Duration
	interrupt      chan os.Signal

	warned string // the last warning: a second conversation does not repeat it
}

// helloPatience is how long a daemon may take for its first line, and between the lines of an answer that
// needs no waiting. A daemon that answers nothing for 5 s is stopped, or the machine is beyond help.
const helloPatience = 5 * time.Second

// clientMain runs one command line (without argv[0]) and returns the exit code.
func clientMain(args []string, stdout, stderr *os.File) int {
	c := &client{out: newView(stdout), err: newView(stderr), patience: helloPatience}
	code := c.main(args)
	c.err.w.Flush()
	if err := c.out.w.Flush(); err != nil && !errors.Is(err, syscall.EPIPE) {
		failed := c.fail(exitFailed, fmt.Sprintf("cannot write output: %v", err))
		c.err.w.Flush()
		if code == exitOK {
			code = failed
		}
	}
	return code
}

func (c *client) main(args []string) int {
	var err error
	if c.clientCall, err = parseCall(args); err != nil {
		return c.usage(err)
	}
	if c.verb == "" && !c.help {
		c.writeHelp(c.err)
		return exitUsage
	}
	if c.json && (c.help || c.verb == "help") {
		return c.usage(usageError{text: "help takes no --json"})
	}
	if c.help || c.verb == "help" {
		return c.runHelp()
	}
	if err := c.check(); err != nil {
		return c.usage(err)
	}
	v := findVerb(c.verb)
	if v.run == nil {
		return c.fail(exitFailed, fmt.Sprintf("internal error: verb %q is not the client's", c.verb))
	}
	if v.bare {
		return v.run(c)
	}
	if err := c.findPlaces(); err != nil {
		return c.fail(errorCode(err), err.Error())
	}
	return v.run(c)
}

// findPlaces settles the home and the service directory.
func (c *client) findPlaces() (err error) {
	if c.home, err = findHome(c.homeFlag); err != nil {
		return err
	}
	if c.dir, err = findServiceDir(c.dirFlag, c.home); err != nil {
		return err
	}
	c.connect, c.connectOrStart = c.home.connect, c.home.connectOrStart
	if os.Getenv("DIAKONOS_NO_AUTOSTART") == "1" {
		c.connectOrStart = c.home.connect
	}
	return nil
}

// ---- messages

// fail writes an error of one or more lines and its hints to stderr, and returns the exit code.
func (c *client) fail(code int, text string, hints ...string) int {
	for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		c.err.line(c.err.paint(inkBad, "diakonos:"), " ", visible(line))
	}
	for _, h := range hints {
		c.hint(h)
	}
	return code
}

func (c *client) hint(text string) { c.err.line(c.err.paint(inkStrong, "hint:"), " ", visible(text)) }

func (c *client) warn(text string) {
	if text == c.warned {
		return
	}
	c.warned = text
	c.err.line(c.err.paint(inkMoving, "diakonos: warning:"), " ", visible(text))
}

// usageError is a command line that says nothing that can be done.
type usageError struct {
	text string
	hint string
}

func (e usageError) Error() string { return e.text }

func (c *client) usage(err error) int {
	var u usageError
	if errors.As(err, &u) && u.hint != "" {
		return c.fail(exitUsage, u.text, u.hint)
	}
	return c.fail(exitUsage, err.Error(), "`diakonos help` shows verbs and flags")
}

// ---- the command line

// parseCall reads flags before and after the verb; `--` ends them.
func parseCall(args []string) (clientCall, error) {
	c := clientCall{lines: -1}
	var words []string
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		switch {
		case arg == "--":
			words, args = append(words, args...), nil
		case strings.HasPrefix(arg, "--"):
			name, val, hasVal := strings.Cut(arg[2:], "=")
			if !hasVal && flagTakes(name) {
				if len(args) == 0 {
					return c, usageError{text: "--" + name + " needs a value"}
				}
				val, args = args[0], args[1:]
			}
			if hasVal && !flagTakes(name) && isFlag(name) {
				return c, usageError{text: "--" + name + " takes no value"}
			}
			if err := c.setFlag(name, val); err != nil {
				return c, err
			}
		case len(arg) > 1 && arg[0] == '-':
			rest, err := c.shortFlags(arg[1:], args)
			if err != nil {
				return c, err
			}
			args = rest
		default:
			words = append(words, arg)
		}
	}
	if len(words) > 0 {
		c.verb, c.args = words[0], words[1:]
	}
	if c.version { // a verb, written as programs have it
		c.verb, c.args = "version", nil
	}
	return c, c.checkVerb()
}

// shortFlags reads -f, -n 5, -n5, -fn5; it returns the arguments that are left.
func (c *clientCall) shortFlags(letters string, args []string) ([]string, error) {
	for i, l := range letters {
		f, ok := shortFlag(string(l))
		if !ok {
			return nil, usageError{text: fmt.Sprintf("unknown flag -%c", l)}
		}
		if f.value == "" {
			if err := c.setFlag(f.name, ""); err != nil {
				return nil, err
			}
			continue
		}
		if val := letters[i+1:]; val != "" {
			return args, c.setFlag(f.name, val)
		}
		if len(args) == 0 {
			return nil, usageError{text: fmt.Sprintf("-%c needs a value", l)}
		}
		return args[1:], c.setFlag(f.name, args[0])
	}
	return args, nil
}

func (c *clientCall) setFlag(name, val string) error {
	switch name {
	case "home", "service-dir", "since":
		if val == "" {
			return usageError{text: "--" + name + " needs a value"}
		}
	}
	switch name {
	case "home":
		c.homeFlag = val
	case "service-dir":
		c.dirFlag = val
	case "since":
		c.since = val
	case "lines":
		n, err := strconv.Atoi(val)
		if err != nil || n < 0 {
			return usageError{text: fmt.Sprintf("--lines: %q is not a number of lines", val)}
		}
		c.lines = n
	case "json":
		c.json = true
	case "no-block":
		c.noBlock = true
	case "follow":
		c.follow = true
	case "hard-links":
		c.hardLinks = true
	case "help":
		c.help = true
	case "version":
		c.version = true
	default:
		return usageError{text: "unknown flag --" + name, hint: nearestHint("--", name, flagNames())}
	}
	return nil
}

// checkVerb refuses a verb that does not exist.
func (c *clientCall) checkVerb() error {
	if c.verb == "" || findVerb(c.verb) != nil {
		return nil
	}
	var names []string
	for _, v := range clientVerbs() {
		names = append(names, v.name)
	}
	return usageError{text: fmt.Sprintf("unknown verb %q", c.verb), hint: nearestHint("diakonos ", c.verb, names)}
}

func nearestHint(prefix, word string, choices []string) string {
	if n := nearest(word, choices); n != "" {
		return "did you mean `" + prefix + n + "`?"
	}
	return ""
}

// check refuses flags and names that the verb does not take.
func (c *clientCall) check() error {
	v := findVerb(c.verb)
	for _, f := range []struct {
		name string
		set  bool
	}{{"no-block", c.noBlock}, {"follow", c.follow}, {"lines", c.lines >= 0}, {"since", c.since != ""}, {"hard-links", c.hardLinks}} {
		if f.set && !slices.Contains(v.flags, f.name) {
			return usageError{text: fmt.Sprintf("%s takes no --%s", v.name, f.name), hint: "diakonos help " + v.name}
		}
	}
	switch {
	case len(c.args) > 0 && v.name == "kill":
		return usageError{text: "kill takes no name: it ends all services and the daemon", hint: "diakonos stop " + strings.Join(c.args, " ")}
	case len(c.args) > 0 && v.args == "":
		return usageError{text: v.name + " takes no argument", hint: "diakonos help " + v.name}
	case len(c.args) > 1 && !strings.Contains(v.args, "..."):
		return usageError{text: v.name + " takes one argument", hint: "diakonos help " + v.name}
	case len(c.args) == 0 && v.args == needsNames:
		return usageError{text: v.name + " needs the name of a unit", hint: "`diakonos list` shows them"}
	}
	return nil
}

// unitNames are the arguments as names of units, each once.
func (c *client) unitNames() ([]string, error) {
	var names []string
	for _, arg := range c.args {
		name, err := unitName(arg)
		if err != nil && strings.Contains(arg, "/") {
			return nil, usageError{text: err.Error(), hint: "a unit is named without its directory; the directory is --service-dir"}
		}
		if err != nil {
			return nil, usageError{text: err.Error()}
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names, nil
}

// ---- the conversation

var (
	errSilent      = errors.New("it does not answer")
	errLost        = errors.New("the connection broke")
	errInterrupted = errors.New("interrupted")
)

// urgency tells whether an answer may take long once the daemon has said hello.
type urgency int

const (
	atOnce  urgency = iota // a question: every line comes within the patience
	mayWait                // a job: the daemon waits for services; Ctrl-C leaves it running
)

func (c *client) request(names []string) request {
	return request{Proto: protocolVersion, Build: buildText(), Verb: c.verb, ServiceDir: c.dir, Names: names, NoBlock: c.noBlock}
}

// converse sends one request and hands each line of the answer to on, until the result line.
func (c *client) converse(conn *os.File, req request, u urgency, on func(*reply)) (outcome, error) {
	defer conn.Close()
	var interrupted atomic.Bool
	if u == mayWait {
		defer c.onInterrupt(func() {
			interrupted.Store(true)
			conn.SetReadDeadline(time.Unix(1, 0))
		})()
	}
	line, err := json.Marshal(req)
	if err != nil {
		return outcome{}, fmt.Errorf("cannot encode request: %v", err)
	}
	conn.SetDeadline(time.Now().Add(c.patience)) // an error: not in the poller, then there is no time-out
	if _, err := conn.Write(append(line, '\n')); err != nil {
		return outcome{}, connError(err)
	}
	r := bufio.NewReaderSize(conn, 64<<10)
	for first := true; ; first = false {
		// The deadline may be moved only before the flag is read: a signal sets the flag first.
		switch {
		case u == mayWait && !first:
			conn.SetReadDeadline(time.Time{})
		case r.Buffered() == 0:
			conn.SetReadDeadline(time.Now().Add(c.patience))
		}
		if interrupted.Load() {
			return outcome{}, errInterrupted
		}
		var p reply
		err := readReply(r, &p)
		if err != nil && interrupted.Load() {
			return outcome{}, errInterrupted
		}
		if err != nil {
			return outcome{}, err
		}
		c.checkProtocol(&p)
		on(&p)
		if p.Done != nil {
			return *p.Done, nil
		}
	}
}

// checkProtocol says it when the daemon is of another make; the conversation goes on, since both only grow.
func (c *client) checkProtocol(p *reply) {
	if p.Proto != 0 && p.Proto != protocolVersion {
		c.warn(fmt.Sprintf("the daemon speaks protocol %d, this client %d: some of its answers may be missing here", p.Proto, protocolVersion))
	}
	if p.Warn != "" {
		c.warn(p.Warn)
	}
}

// readReply reads and decodes one line, at most maxFrame long.
func readReply(r *bufio.Reader, p *reply) error {
	line, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		long := bytes.Clone(line)
		for errors.Is(err, bufio.ErrBufferFull) {
			if len(long) > maxFrame {
				return fmt.Errorf("cannot read the daemon's answer: a line of more than %d bytes", maxFrame)
			}
			line, err = r.ReadSlice('\n')
			long = append(long, line...)
		}
		line = long
	}
	if err != nil {
		return connError(err)
	}
	if s := new(unitStatus); decodeUnitLine(line, s) {
		p.Unit = s
		return nil
	}
	if err := json.Unmarshal(line, p); err != nil {
		return fmt.Errorf("cannot read the daemon's answer: %v", err)
	}
	return nil
}

// decodeUnitLine reads a reply that is one unit, in the plain form in which our daemon writes it; false: leave
// it to encoding/json, which takes 11 us for such a line where this takes 2 us (measured); a list may have 1,000.
func decodeUnitLine(line []byte, s *unitStatus) bool {
	const begin = `{"unit":{`
	if !bytes.HasPrefix(line, []byte(begin)) {
		return false
	}
	sc := lineScanner{text: string(line[len(begin):])}
	if !utf8.ValidString(sc.text) {
		return false
	}
	for {
		if !sc.field(sc.str(), s) {
			return false
		}
		if sc.literal(",") {
			continue
		}
		return sc.literal("}}") && (sc.text == "" || sc.text == "\n")
	}
}

// lineScanner takes values off the front of text. failed: what stood there is not of the plain form.
type lineScanner struct {
	text   string
	failed bool
}

func (sc *lineScanner) field(key string, s *unitStatus) bool {
	if sc.failed || !sc.literal(":") {
		return false
	}
	switch key {
	case "name":
		s.Name = sc.str()
	case "description":
		s.Description = sc.str()
	case "documentation":
		s.Documentation = sc.str()
	case "unit_file":
		s.UnitFile = sc.str()
	case "load_state":
		s.LoadState = sc.str()
	case "load_error":
		s.LoadError = sc.str()
	case "active_state":
		s.ActiveState = sc.str()
	case "sub_state":
		s.SubState = sc.str()
	case "result":
		s.Result = sc.str()
	case "reason":
		s.Reason = sc.str()
	case "status_text":
		s.StatusText = sc.str()
	case "main_pid":
		s.MainPID = sc.number()
	case "control_pid":
		s.ControlPID = sc.number()
	case "shim_pid":
		s.ShimPID = sc.number()
	case "shim_outdated":
		s.ShimOutdated = sc.boolean()
	case "supervised":
		s.Supervised = sc.boolean()
	case "restarts":
		s.Restarts = sc.number()
	case "state_since":
		s.StateSince = orNull(sc, sc.str)
	case "started_at":
		s.StartedAt = orNull(sc, sc.str)
	case "next_start":
		s.NextStart = orNull(sc, sc.str)
	case "exit_code":
		s.ExitCode = orNull(sc, sc.number)
	case "exit_signal":
		s.ExitSignal = orNull(sc, sc.str)
	case "memory_bytes":
		s.MemoryBytes = orNull(sc, func() int64 { return int64(sc.number()) })
	case "cpu_seconds":
		// A fraction is left to encoding/json: the daemon sends null here.
		s.CPUSeconds = orNull(sc, func() float64 { return float64(sc.number()) })
	case "enabled":
		s.Enabled = sc.boolean()
	case "changed_on_disk":
		s.ChangedOnDisk = sc.boolean()
	case "invocation_id":
		s.InvocationID = sc.str()
	case "cgroup":
		s.Cgroup = sc.str()
	default:
		return false
	}
	return !sc.failed
}

func orNull[T any](sc *lineScanner, value func() T) *T {
	if sc.literal("null") {
		return nil
	}
	v := value()
	return &v
}

func (sc *lineScanner) literal(word string) bool {
	rest, ok := strings.CutPrefix(sc.text, word)
	sc.text = rest
	return ok
}

// str takes a string without escapes.
func (sc *lineScanner) str() string {
	if !sc.literal(`"`) {
		sc.failed = true
		return ""
	}
	for i := range len(sc.text) {
		switch c := sc.text[i]; {
		case c == '"':
			val := sc.text[:i]
			sc.text = sc.text[i+1:]
			return val
		case c == '\\' || c < 0x20:
			sc.failed = true
			return ""
		}
	}
	sc.failed = true
	return ""
}

// number takes a number of up to 18 digits; what follows it is for the next to refuse.
func (sc *lineScanner) number() int {
	const most = 18 // digits that fit 64 bits for sure
	digits := sc.text[:len(sc.text)-len(strings.TrimLeft(sc.text, "0123456789"))]
	n, err := strconv.Atoi(digits)
	if err != nil || len(digits) > most || len(digits) > 1 && digits[0] == '0' {
		sc.failed = true
		return 0
	}
	sc.text = sc.text[len(digits):]
	return n
}

func (sc *lineScanner) boolean() bool {
	if sc.literal("true") {
		return true
	}
	sc.failed = sc.failed || !sc.literal("false")
	return false
}

// connError sorts what went wrong on the connection.
func connError(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errSilent
	case errors.Is(err, io.EOF), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
		return errLost
	}
	return fmt.Errorf("cannot talk to the daemon: %w", err)
}

// onInterrupt calls f at Ctrl-C; the returned function ends that.
func (c *client) onInterrupt(f func()) (release func()) {
	signals := c.interrupt
	if signals == nil {
		signals = make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGINT)
	}
	done := make(chan struct{})
	go func() {
		select {
		case <-signals:
			f()
		case <-done:
		}
	}()
	return func() {
		signal.Stop(signals)
		close(done)
	}
}

// noDaemon reports why there is no answer, and what helps.
func (c *client) noDaemon(err error) int {
	switch {
	case errors.Is(err, errNoDaemon) && os.Getenv("DIAKONOS_NO_AUTOSTART") == "1":
		return c.fail(exitFailed, "no daemon runs for "+c.home.path+", and DIAKONOS_NO_AUTOSTART forbids to start one",
			"`diakonos daemon` runs one in the foreground")
	case errors.Is(err, errSilent):
		return c.fail(exitFailed, fmt.Sprintf("the daemon does not answer within %s; services are not affected", spanText(c.patience)), c.silentHint())
	case errors.Is(err, errLost):
		return c.fail(exitFailed, "the daemon ends the connection again and again; services are not affected",
			"the end of "+filepath.Join(c.home.path, "daemon.log")+" may tell why")
	}
	return c.fail(errorCode(err), err.Error())
}

func (c *client) silentHint() string {
	d, up := c.home.liveDaemon()
	if !up {
		return "see " + c.home.daemonLog()
	}
	return fmt.Sprintf("it may be stopped: `kill -CONT %d` lets it go on, `kill -KILL %d` has it replaced, services run on", d.Daemon.PID, d.Daemon.PID)
}

// ---- jobs

// resendLimit bounds how often a request is sent again after a broken connection: each time, a daemon was there.
const resendLimit = 5

// runJobs runs start, stop, restart, reload, enable, disable, reset-failed and forget.
func (c *client) runJobs() int {
	names, err := c.unitNames()
	if err != nil {
		return c.usage(err)
	}
	t := c.newTeller(names)
	o, err := c.ask(c.request(names), t.reply)
	switch {
	case errors.Is(err, errInterrupted):
		c.out.w.Flush()
		return c.fail(exitFailed, fmt.Sprintf("interrupted; the %s of %s goes on", c.verb, strings.Join(names, ", ")),
			"`diakonos status "+strings.Join(names, " ")+"` shows it")
	case errors.Is(err, errLost) && !resent(c.verb):
		return c.fail(exitFailed, fmt.Sprintf("lost the connection to the daemon; the %s of %s goes on", c.verb, strings.Join(names, ", ")),
			"`diakonos status "+strings.Join(names, " ")+"` shows how it ended")
	case err != nil:
		return c.noDaemon(err)
	}
	t.finish()
	return c.result(o)
}

// ask sends the request, and sends it again when the daemon died over it: the wish is on disk by then or
// it is not, and asking twice merges.
func (c *client) ask(req request, on func(*reply)) (o outcome, err error) {
	for range resendLimit {
		conn, err := c.connectOrStart()
		if err != nil {
			return outcome{}, err
		}
		o, err = c.converse(conn, req, mayWait, on)
		if !errors.Is(err, errLost) || !resent(c.verb) {
			return o, err
		}
	}
	return outcome{}, errLost
}

// resent tells whether asking twice does the same as asking once. A second restart or reload would be
// another one, a second forget finds nothing.
func resent(verb string) bool {
	switch verb {
	case "start", "stop", "kill", "enable", "disable", "reset-failed", upgradeVerb:
		return true
	}
	return false
}

// result shows the daemon's last word.
func (c *client) result(o outcome) int {
	if o.Error != "" {
		return c.fail(o.Code, o.Error, o.Hints...)
	}
	for _, h := range o.Hints {
		c.hint(h)
	}
	return o.Code
}

// teller shows jobs as they end.
type teller struct {
	c       *client
	began   time.Time
	width   int      // of the name column
	told    []string // "verb unit" of each job shown
	failed  []string // culprits, each once
	missing []string // programs explained, each once
}

// leastJobName is where the name column begins (cells): short lists of jobs look alike.
const leastJobName = 8

func (c *client) newTeller(names []string) *teller {
	t := &teller{c: c, began: time.Now(), width: leastJobName}
	for _, n := range names {
		t.width = max(t.width, cells(n))
	}
	return t
}

func (t *teller) reply(p *reply) {
	if p.Job != nil {
		t.job(*p.Job)
	}
}

// job shows one job: what went well on stdout, what did not on stderr, a failure with its reason and last log lines.
func (t *teller) job(j jobLine) {
	key := j.Verb + " " + j.Unit
	if j.Outcome == "skipped" && slices.Contains(t.told, key) {
		return // the request was sent twice
	}
	t.told = append(t.told, key)
	failed := j.Outcome == "failed" || j.Outcome == "dependency"
	t.width = max(t.width, cells(j.Unit))
	c := t.c
	switch {
	case c.json:
		c.out.w.Write(append(jsonText(&j), '\n'))
	case failed, j.Outcome == "canceled":
		c.err.line(c.err.jobText(&j, t.width))
	default:
		c.out.line(c.out.jobText(&j, t.width))
	}
	if failed && !c.json {
		t.explain(&j)
	}
	// Each line as it happens; a reader of both streams finds them in order.
	c.out.w.Flush()
	c.err.w.Flush()
}

// culpritLogs is how many culprits' last lines are shown: 200 failures at once are one failure 200 times.
const culpritLogs = 5

// excerptLines is how many of its last log lines a failure and a status screen show.
const excerptLines = 10

// explain adds to a failed job what the culprit wrote since the job began, and where a missing program is.
func (t *teller) explain(j *jobLine) {
	culprit := j.Unit
	if j.Culprit != "" {
		culprit = j.Culprit
	}
	if !slices.Contains(t.failed, culprit) {
		t.failed = append(t.failed, culprit)
		began := time.Now().Add(-time.Duration(j.Millis) * time.Millisecond)
		if began.After(t.began) {
			began = t.began
		}
		if len(t.failed) <= culpritLogs {
			t.c.excerpt(t.c.err, culprit, logQuery{Lines: excerptLines, Since: began}, logPrinter{indent: logIndent})
		}
	}
	if j.Missing != "" && !slices.Contains(t.missing, j.Missing) {
		t.missing = append(t.missing, j.Missing)
		t.c.explainMissing(j.Missing)
	}
}

// excerpt shows log lines of one unit, placed as form says; a log that cannot be read is no second failure.
func (c *client) excerpt(v *view, name string, q logQuery, form logPrinter) {
	p := newLogPrinter(v, []string{name})
	p.indent, p.lead, p.exact = form.indent, form.lead, false
	err := readLogs([]logSource{{name, c.home.logDir(name)}}, q, p.write)
	p.finish()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.warn(fmt.Sprintf("cannot read log of %q: %v", name, err))
	}
}

// explainMissing tells where the caller has a program that the service's PATH lacks.
func (c *client) explainMissing(program string) {
	path := lookPath(program)
	if path == "" {
		return
	}
	c.hint(fmt.Sprintf("%q is at %s on your PATH, which services do not get: write the full path into the unit", program, path))
}

// lookPath finds a program on the caller's PATH; "" = not there.
func lookPath(program string) string {
	if program == "" || strings.Contains(program, "/") {
		return ""
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		path, err := filepath.Abs(filepath.Join(dir, program))
		if err != nil {
			continue
		}
		const anyExecute = 0o111
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode()&anyExecute != 0 {
			return path
		}
	}
	return ""
}

// finish points at where to look after failures.
func (t *teller) finish() {
	const named = 3
	switch n := len(t.failed); {
	case n == 0:
	case n <= named:
		list := strings.Join(t.failed, " ")
		t.c.hint("`diakonos status " + list + "` shows more, `diakonos logs " + list + "` all that was written")
	default:
		t.c.hint("`diakonos list` shows all units, `diakonos logs NAME` what one wrote")
	}
}

// runKill ends all services and the daemon; without a daemon this process does it.
func (c *client) runKill() int {
	t := c.newTeller(nil)
	for range resendLimit {
		conn, err := c.connect()
		if errors.Is(err, errNoDaemon) {
			if err = killAlone(c.home, t.job); !errors.Is(err, errDaemonCame) {
				return c.killedAlone(t, err)
			}
			continue
		}
		if err != nil {
			return c.noDaemon(err)
		}
		daemon := openPeer(conn)
		o, err := c.converse(conn, c.request(nil), mayWait, t.reply)
		if err == nil {
			awaitEnd(daemon, c.patience)
		}
		closeFD(&daemon)
		switch {
		case errors.Is(err, errInterrupted):
			return c.fail(exitFailed, "interrupted; services are still being stopped", "`diakonos kill` again waits for the end")
		case errors.Is(err, errLost):
			continue
		case err != nil:
			return c.noDaemon(err)
		}
		t.finish()
		return c.result(o)
	}
	return c.noDaemon(errLost)
}

// runUpgrade has the daemon and all shims become the program that this process runs.
func (c *client) runUpgrade() int {
	program, err := filepath.EvalSymlinks(selfExe())
	if err != nil {
		return c.fail(errorCode(err), fmt.Sprintf("cannot find the program's own file: %v", err))
	}
	t := c.newTeller([]string{daemonName})
	req := c.request(nil)
	req.Program = program
	o, err := c.ask(req, t.reply)
	switch {
	case errors.Is(err, errInterrupted):
		return c.fail(exitFailed, "interrupted; the upgrade goes on", "`diakonos list` tells which shims run another program")
	case err != nil:
		return c.noDaemon(err)
	}
	return c.result(o)
}

func (c *client) killedAlone(t *teller, err error) int {
	t.finish()
	if err != nil {
		return c.fail(errorCode(err), err.Error())
	}
	if len(t.failed) > 0 {
		return exitFailed
	}
	return exitOK
}

// ---- list, status, daemon-status

// units asks the daemon for the state of units; without an answer it is read from shims and files.
// No name = all.
func (c *client) units(names []string) ([]unitStatus, outcome) {
	var units []unitStatus
	var o outcome
	var err error
	for range 2 { // a daemon that dies under one question has a successor for the next
		units = units[:0]
		var conn *os.File
		if conn, err = c.connectOrStart(); err != nil {
			break
		}
		o, err = c.converse(conn, c.request(names), atOnce, func(p *reply) {
			if p.Unit != nil {
				units = append(units, *p.Unit)
			}
		})
		if !errors.Is(err, errLost) {
			break
		}
	}
	if err == nil {
		return units, o
	}
	if errors.Is(err, fs.ErrPermission) && sysAccess(c.home.path, unix.R_OK|unix.X_OK) != nil {
		return nil, outcome{Code: exitNotPermit, Error: err.Error()}
	}
	c.warnFiles(err)
	return c.unitsFromFiles(names)
}

func (c *client) warnFiles(err error) {
	text := err.Error()
	if errors.Is(err, errSilent) {
		text = fmt.Sprintf("the daemon does not answer within %s", spanText(c.patience))
	}
	c.warn(text + "; this is from the files in " + c.home.path)
	if errors.Is(err, errSilent) {
		c.hint(c.silentHint())
	}
}

func (c *client) unitsFromFiles(names []string) ([]unitStatus, outcome) {
	if len(names) == 0 {
		var err error
		if names, err = c.knownNames(); err != nil {
			return nil, outcome{Code: errorCode(err), Error: err.Error()}
		}
	}
	units := make([]unitStatus, 0, len(names))
	for _, n := range names {
		units = append(units, c.home.statusFromFiles(n, c.dir))
	}
	return units, outcome{}
}

// knownNames are all units of the service directory and of run/, sorted.
func (c *client) knownNames() ([]string, error) {
	names, err := findUnits(c.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	more, err := c.home.runNames()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	names = append(names, more...)
	slices.Sort(names)
	return slices.Compact(names), nil
}

// measureUnit fills in memory and CPU time, which the daemon leaves to its clients.
func measureUnit(s *unitStatus, meter memoryMeter) {
	if s.MemoryBytes != nil || s.CPUSeconds != nil || s.MainPID == 0 && s.Cgroup == "" {
		return
	}
	s.MemoryBytes, s.CPUSeconds = meter.usage(*s), cpuUsage(*s)
}

// measureTree is measureUnit for `status`: without a cgroup it counts every process of the service.
func measureTree(s *unitStatus, procs []procInfo) {
	if s.Cgroup != "" || len(procs) == 0 {
		measureUnit(s, memoryMeter{})
		return
	}
	var memory int64
	var cpu float64
	for _, p := range procs {
		memory += p.MemoryBytes
		cpu += p.CPUSeconds
	}
	s.MemoryBytes, s.CPUSeconds = &memory, &cpu
}

func (c *client) runList() int {
	c.warnServiceDir()
	c.verb = "list"
	units, o := c.units(nil)
	if o.Error != "" {
		return c.result(o)
	}
	meter := memoryMeter{}
	switch {
	case c.json:
		for i := range units {
			measureUnit(&units[i], meter)
		}
		jsonArray(c.out, units)
	case len(units) == 0:
		c.out.noUnits(c.dir)
	default:
		for i := range units {
			if s := &units[i]; s.MemoryBytes == nil {
				s.MemoryBytes = meter.usage(*s) // the table shows no CPU time
			}
		}
		c.out.listScreen(units)
	}
	return c.result(o)
}

// warnServiceDir says it when units may be missing from a list. One that was not asked for may be missing itself.
func (c *client) warnServiceDir() {
	asked := c.dirFlag != "" || os.Getenv("DIAKONOS_SERVICE_DIR") != ""
	d, err := os.Open(c.dir)
	if err == nil {
		_, err = d.Readdirnames(1)
		d.Close()
	}
	if err == nil || err == io.EOF || !asked && errors.Is(err, fs.ErrNotExist) {
		return
	}
	c.warn(fmt.Sprintf("cannot read service directory %s: %v", c.dir, errors.Unwrap(err)))
}

func (c *client) runStatus() int {
	names, err := c.unitNames()
	if err != nil {
		return c.usage(err)
	}
	if len(names) == 0 {
		return c.runList()
	}
	units, o := c.units(names)
	if o.Error != "" && len(units) == 0 {
		return c.result(o)
	}
	lead := ""
	for i := range units {
		procs := c.home.tree(units[i])
		measureTree(&units[i], procs)
		if c.json || unknownUnit(&units[i]) {
			continue
		}
		c.out.print(lead)
		lead = "\n"
		c.out.statusScreen(&units[i], procs)
		c.excerpt(c.out, units[i].Name, logQuery{Lines: excerptLines}, logPrinter{lead: "\n"})
	}
	if c.json {
		jsonArray(c.out, units)
	}
	if o.Error != "" {
		return c.result(o)
	}
	return c.statusCode(units)
}

// unknownUnit: neither a unit file nor anything that it ever did.
func unknownUnit(s *unitStatus) bool {
	return s.LoadState == "not-found" && s.ActiveState == "inactive" && s.StateSince == nil && s.StartedAt == nil
}

// statusCode is 4 if a unit is unknown, else 3 if one is not active, else 0.
func (c *client) statusCode(units []unitStatus) int {
	code := exitOK
	for i := range units {
		s := &units[i]
		switch {
		case unknownUnit(s):
			code = exitNoUnit
			c.noUnit(s.Name)
		case code == exitOK && s.ActiveState != "active" && s.ActiveState != "reloading":
			code = exitNotActive
		}
	}
	return code
}

// noUnit reports a name that nothing is known of.
func (c *client) noUnit(name string) int {
	known, _ := c.knownNames() // without them there is no nearest one
	if hint := nearestHint("", name, known); hint != "" {
		return c.fail(exitNoUnit, fmt.Sprintf("no unit %q", name), hint)
	}
	return c.fail(exitNoUnit, fmt.Sprintf("no unit %q", name), "units are looked for in "+c.dir)
}

func (c *client) runDaemonStatus() int {
	var d *daemonStatus
	var o outcome
	conn, err := c.connect()
	if err == nil {
		o, err = c.converse(conn, c.request(nil), atOnce, func(p *reply) {
			if p.Daemon != nil {
				d = p.Daemon
			}
		})
	}
	if errors.Is(err, errNoDaemon) || errors.Is(err, errLost) {
		s := c.home.daemonStatusFromFiles()
		s.Running = false
		c.showDaemon(&s)
		return exitNotActive
	}
	if err != nil {
		return c.noDaemon(err)
	}
	if d == nil {
		return c.result(o)
	}
	c.showDaemon(d)
	return c.result(o)
}

func (c *client) showDaemon(d *daemonStatus) {
	if d.Weaker == nil {
		d.Weaker = []string{} // an array, also when empty
	}
	if c.json {
		c.out.w.Write(append(jsonText(d), '\n'))
		return
	}
	c.out.daemonScreen(d)
	if own := version; d.Running && d.Version != own {
		c.warn("this client is of another version: " + own)
	}
}

// ---- logs

func (c *client) runLogs() int {
	names, err := c.unitNames()
	if err != nil {
		return c.usage(err)
	}
	q, err := c.logQuery(time.Now())
	if err != nil {
		return c.usage(err)
	}
	var sources []logSource
	for _, n := range names {
		switch known, err := c.hasTrace(n); {
		case err != nil:
			return c.fail(errorCode(err), fmt.Sprintf("cannot read log of %q: %v", n, err))
		case !known:
			return c.noUnit(n)
		}
		sources = append(sources, logSource{n, c.home.logDir(n)})
	}
	err = c.showLogs(names, sources, q)
	if err != nil && !errors.Is(err, syscall.EPIPE) { // the reader has seen enough
		return c.fail(errorCode(err), err.Error())
	}
	return exitOK
}

// runWhy needs no daemon and starts none: what it tells lies in files.
func (c *client) runWhy() int {
	names, err := c.unitNames()
	if err != nil {
		return c.usage(err)
	}
	var answers []whyAnswer
	for _, n := range names {
		switch known, err := c.hasTrace(n); {
		case err != nil:
			return c.fail(errorCode(err), fmt.Sprintf("cannot read the records of %q: %v", n, err))
		case !known:
			return c.noUnit(n)
		}
		k, err := c.home.readWhy(n, c.dir)
		if errors.Is(err, fs.ErrPermission) {
			return c.fail(errorCode(err), fmt.Sprintf("cannot read the history of %q: %v", n, err))
		} else if err != nil {
			c.warn(fmt.Sprintf("cannot read the history of %q: %v", n, err))
		}
		k.now, k.zone = c.out.now, c.out.zone
		answers = append(answers, k.answer(c.lines))
	}
	if c.json {
		jsonArray(c.out, answers)
		return exitOK
	}
	for i := range answers {
		if i > 0 {
			c.out.line()
		}
		c.out.whyScreen(&answers[i])
	}
	return exitOK
}

// logQuery turns -n and --since into a query.
func (c *client) logQuery(now time.Time) (q logQuery, err error) {
	q.Lines = c.lines
	if c.since != "" {
		if q.Since, err = parseSince(c.since, now); err != nil {
			return q, err
		}
	}
	return q, nil
}

// hasTrace: a log, a unit file or a record in run/. A unit that was never started has an empty log and history.
func (c *client) hasTrace(name string) (known bool, err error) {
	for _, path := range []string{c.home.logDir(name), unitPath(c.dir, name), c.home.runDir(name)} {
		_, err := os.Stat(path)
		if err == nil {
			return true, nil
		}
		if errors.Is(err, fs.ErrPermission) { // somebody else's home, most likely
			return false, err
		}
	}
	return false, nil
}

func (c *client) showLogs(names []string, sources []logSource, q logQuery) error {
	p := newLogPrinter(c.out, names)
	emit := p.write
	if c.json {
		emit = c.out.logJSON
	}
	if !c.follow {
		err := readLogs(sources, q, emit)
		p.finish()
		return err
	}
	stop := make(chan struct{})
	defer c.onInterrupt(func() { close(stop) })()
	return followLogs(sources, q, func(name string, r logRecord) error {
		if err := emit(name, r); err != nil {
			return err
		}
		return c.out.w.Flush()
	}, stop)
}

// parseSince reads a point in time: RFC 3339, a local date with or without a time, today, yesterday, or how
// long ago.
func parseSince(text string, now time.Time) (time.Time, error) {
	midnight := time.Date(now.Year(), now.Month(), now.Day(), 0, 0, 0, 0, now.Location())
	switch text {
	case "now":
		return now, nil
	case "today":
		return midnight, nil
	case "yesterday":
		return midnight.AddDate(0, 0, -1), nil
	}
	if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return t, nil
	}
	for _, layout := range []string{"2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02", "2006-01-02T15:04:05"} {
		if t, err := time.ParseInLocation(layout, text, now.Location()); err == nil {
			return t, nil
		}
	}
	if d, ok := parseAgo(strings.TrimSpace(strings.TrimSuffix(text, "ago"))); ok {
		return now.Add(-d), nil
	}
	return time.Time{}, usageError{text: fmt.Sprintf("--since: cannot read time %q", text),
		hint: `examples: "10min", "2h 30min ago", "today", "2026-11-22 18:00", "2026-11-22T18:00:00Z"`}
}

// parseAgo reads "2h 30min", "90 s", "3 days".
func parseAgo(text string) (sum time.Duration, ok bool) {
	const letters = "abcdefghijklmnopqrstuvwxyz"
	for text != "" {
		digits := text[:len(text)-len(strings.TrimLeft(text, "0123456789"))]
		text = strings.TrimLeft(text[len(digits):], " ")
		word := text[:len(text)-len(strings.TrimLeft(text, letters))]
		text = strings.TrimLeft(text[len(word):], " ")
		n, err := strconv.Atoi(digits)
		size := agoUnit(word)
		if err != nil || size == 0 || time.Duration(n) > (infinity-sum)/size {
			return 0, false
		}
		sum += time.Duration(n) * size
		ok = true
	}
	return sum, ok
}

func agoUnit(word string) time.Duration {
	switch word {
	case "s", "sec", "second", "seconds":
		return time.Second
	case "m", "min", "minute", "minutes":
		return time.Minute
	case "h", "hr", "hour", "hours":
		return time.Hour
	case "d", "day", "days":
		return 24 * time.Hour
	case "w", "week", "weeks":
		return 7 * 24 * time.Hour
	}
	return 0
}

// ---- check

// checkMistake is the object of `check --json`. Line 0: it belongs to no line.
type checkMistake struct {
	File string `json:"file"`
	Line int    `json:"line"`
	Text string `json:"text"`
}

// checker reads units and gathers what is wrong with them.
type checker struct {
	home     string
	good     []string // paths
	mistakes []checkMistake
	units    map[string]*unit
	paths    map[string]string // of the units, as they were given
	failed   error             // a file that could not be read: its exit code
}

func (c *client) runCheck() int {
	k := &checker{home: c.home.path, units: map[string]*unit{}, paths: map[string]string{}}
	paths, err := c.checkPaths()
	if err != nil {
		return c.failCheck(err)
	}
	for _, path := range paths {
		k.load(path)
	}
	if len(c.args) > 0 {
		k.loadNeeded()
	}
	for _, p := range newGraph(k.units, nil).problems() {
		k.mistakes = append(k.mistakes, checkMistake{File: k.paths[p.Unit], Text: p.Text})
	}
	c.showCheck(k)
	switch {
	case k.failed != nil && len(c.args) == 1 && errors.Is(k.failed, fs.ErrNotExist):
		return exitNoUnit
	case len(k.mistakes) > 0:
		return exitFailed
	}
	return exitOK
}

func (c *client) failCheck(err error) int {
	var u usageError
	if errors.As(err, &u) {
		return c.usage(err)
	}
	return c.fail(errorCode(err), err.Error())
}

// checkPaths: an argument with / or ending in .service is a file, else a name; none = the whole directory.
func (c *client) checkPaths() ([]string, error) {
	var paths []string
	if len(c.args) == 0 {
		names, err := findUnits(c.dir)
		for _, n := range names {
			paths = append(paths, unitPath(c.dir, n))
		}
		return paths, err
	}
	for _, arg := range c.args {
		if strings.Contains(arg, "/") || strings.HasSuffix(arg, ".service") {
			paths = append(paths, arg)
			continue
		}
		name, err := unitName(arg)
		if err != nil {
			return nil, usageError{text: err.Error()}
		}
		paths = append(paths, unitPath(c.dir, name))
	}
	return paths, nil
}

// load reads one file. A broken one is known by name all the same, so that it is not also called missing.
func (k *checker) load(path string) {
	full, err := filepath.Abs(path)
	if err != nil {
		full = path
	}
	u, err := loadUnit(path, placeOf(filepath.Dir(full), k.home, os.Geteuid(), os.Getenv("XDG_RUNTIME_DIR"), false))
	if err == nil {
		k.good = append(k.good, path)
		k.units[u.Name], k.paths[u.Name] = u, path
		return
	}
	var wrong unitError
	if !errors.As(err, &wrong) {
		k.failed = err
		k.mistakes = append(k.mistakes, checkMistake{File: path, Text: err.Error()})
		return
	}
	for _, m := range wrong.Mistakes {
		k.mistakes = append(k.mistakes, checkMistake{File: path, Line: m.Line, Text: m.Text})
	}
	if name, err := unitName(filepath.Base(path)); err == nil {
		k.units[name], k.paths[name] = &unit{Name: name, Path: full}, path
	}
}

// loadNeeded reads what the named units refer to, from the directory of the unit that does; what is not there
// is left to checkGraph.
func (k *checker) loadNeeded() {
	queue := make([]*unit, 0, len(k.units))
	for _, u := range k.units {
		queue = append(queue, u)
	}
	slices.SortFunc(queue, func(a, b *unit) int { return strings.Compare(a.Name, b.Name) })
	for len(queue) > 0 {
		u := queue[0]
		queue = queue[1:]
		for _, name := range slices.Concat(u.Requires, u.BindsTo, u.Wants, u.After, u.Before, u.PartOf, u.Conflicts) {
			path := unitPath(filepath.Dir(u.Path), name)
			if _, err := os.Lstat(path); err != nil || k.units[name] != nil {
				continue
			}
			good := len(k.good)
			k.load(path)
			k.good = k.good[:good] // only what was asked for is reported as good
			if k.units[name] != nil {
				queue = append(queue, k.units[name])
			}
		}
	}
}

func (m checkMistake) String() string {
	if m.Line == 0 {
		return m.File + ": " + m.Text
	}
	return fmt.Sprintf("%s:%d: %s", m.File, m.Line, m.Text)
}

func (c *client) showCheck(k *checker) {
	if c.json {
		jsonArray(c.out, k.mistakes)
		return
	}
	for _, path := range k.good {
		c.out.line(visible(path), ": ", c.out.paint(inkGood, "ok"))
	}
	c.out.w.Flush()
	for _, m := range k.mistakes {
		c.err.line(visible(m.String())) // no prefix: editors and CI read FILE:LINE:
	}
	if len(k.good) == 0 && len(k.mistakes) == 0 {
		c.out.noUnits(c.dir)
	}
}

// ---- help

// clientVerb is one row of the help.
type clientVerb struct {
	name  string
	args  string            // as in the usage line; "" = takes none
	brief string            // its line in `help`
	more  string            // the rest of `help VERB`
	flags []string          // beside those that all take
	bare  bool              // needs neither home nor service directory
	run   func(*client) int // nil: help, and the daemon, which main.go has
}

// needsNames as args: a unit must be named.
const needsNames = "NAME..."

// clientVerbs is the table of all verbs. A function: it costs nothing to those who do not ask.
func clientVerbs() []clientVerb {
	wait := []string{"no-block"}
	return []clientVerb{
		{name: "list", brief: "every unit: state, PID, restarts, memory", run: (*client).runList,
			more: `Shows the units of the service directory and all that has run, sorted by name.
Before the table it tells of services that nothing supervises, after it what is
broken, failed, changed on disk or has lost its file. Exit code 0.`},
		{name: "status", args: "[NAME...]", brief: "all about a unit: why, since when, processes, last log lines", run: (*client).runStatus,
			more: `Exit code 0 if all named units are active or reloading, else 3; 4 if one is
unknown. Without a name it is like list.`},
		{name: "start", args: needsNames, brief: "start units and what they require", run: (*client).runJobs, flags: wait,
			more: `Reads the unit files as they are now and waits until each unit is up: simple
once its program runs, oneshot once it has ended, notify at READY=1, forking
once the parent has exited. The first failed attempt fails the command, also
where Restart= goes on trying. A unit that is active already is left alone.
Ctrl-C leaves the start running; the exit code is then 1.`},
		{name: "stop", args: needsNames, brief: "stop units and what requires them", run: (*client).runJobs, flags: wait,
			more: `Waits until no process of a unit is left. What does not end in time gets
SIGKILL; PIDs that survive even that are named, and the exit code is 1.
Ctrl-C leaves the stop running; the exit code is then 1.`},
		{name: "restart", args: needsNames, brief: "stop and start units, with the files as they are now", run: (*client).runJobs, flags: wait,
			more: `A broken unit file is refused with its line, and the running service is left
alone. A unit that does not run is started.`},
		{name: "reload", args: needsNames, brief: "run ExecReload= of units", run: (*client).runJobs, flags: wait},
		{name: "logs", args: needsNames, brief: "what units wrote, oldest first", run: (*client).runLogs, flags: []string{"follow", "lines", "since"},
			more: `Read from the files, so it works without a daemon. Several units are merged by
time. ! marks lines of stderr, # marks gaps. On a terminal control characters
are spelled out; anything else gets the bytes as they were written.
T is "10min", "2h ago", "today", "yesterday", "2026-11-22 18:00" or RFC 3339.`},
		{name: "why", args: needsNames, brief: "why a unit is in its state, and its last 50 events", run: (*client).runWhy, flags: []string{"lines"},
			more: `Sentences, then what happened, oldest first, with cause, exit code or signal and
delay; also what happened while no daemon ran. Read from the files, so it works
without a daemon and starts none. Records of another boot are void.
--json: an array of objects; docs/protocols.md lists their fields. Exit code 0.`},
		{name: "enable", args: needsNames, brief: "start units whenever the daemon starts after a boot", run: (*client).runJobs},
		{name: "disable", args: needsNames, brief: "undo enable; what runs goes on", run: (*client).runJobs},
		{name: "reset-failed", args: needsNames, brief: "forget failures, restart delays and start limits of units", run: (*client).runJobs},
		{name: "forget", args: needsNames, brief: "drop logs and records of units that have no file and no process", run: (*client).runJobs},
		{name: "check", args: "[FILE or NAME...]", brief: "find mistakes, cycles and missing requirements in unit files", run: (*client).runCheck,
			more: `An argument with a / or ending in .service is a file, anything else a name; none
means the whole service directory. Mistakes are FILE:LINE: on stderr, and the
exit code is 1.`},
		{name: "kill", brief: "stop all services, then the daemon", run: (*client).runKill,
			more: `Works without a daemon too. The next command starts the daemon again, and that
starts the enabled units.`},
		{name: "daemon-status", brief: "the daemon: version, uptime, home, what this machine cannot give", run: (*client).runDaemonStatus,
			more: `Exit code 0 if a daemon runs, else 3. Starts none.`},
		{name: upgradeVerb, brief: "daemon and shims become this program; services run on", run: (*client).runUpgrade,
			more: `For after a new version was put in place: the daemon, then each shim, goes on as
the program that this command is, with its PID, its children and its clients. No
service is restarted, and no line of a log is lost. A shim that cannot at this
moment, because its service is stopping, is named and follows later. It works in
both directions. Exit code 0 if all of them run this program now.`},
		{name: "daemon", brief: "run the daemon in the foreground",
			more: `As diakonosd does. Without it the first command starts one in the background.
SIGTERM ends the daemon; services run on.`},
		{name: "install", args: "[DIR]", brief: "make the links diakonos, diakonosctl, diakonosd, diakonos-run, diakonos-init",
			flags: []string{"hard-links"}, bare: true, run: (*client).runInstall,
			more: `They lie beside the binary, or in DIR, which is made if it is not there.`},
		{name: "help", args: "[VERB]", brief: "this text, or more on a verb; `help keys` lists all keys of unit files", bare: true},
		{name: "version", brief: "version, commit, Go version", bare: true, run: (*client).runVersion},
	}
}

func findVerb(name string) *clientVerb {
	for _, v := range clientVerbs() {
		if v.name == name {
			return &v
		}
	}
	return nil
}

// flagRow is one flag.
type flagRow struct {
	name  string // without --
	short string // "" = none
	value string // what it takes; "" = nothing
	brief string
	all   bool // every verb takes it
}

func clientFlags() []flagRow {
	return []flagRow{
		{name: "home", value: "DIR", all: true, brief: "state and sockets (DIAKONOS_HOME, else ~/.diakonos)"},
		{name: "service-dir", value: "DIR", all: true, brief: "unit files (DIAKONOS_SERVICE_DIR, else ./services, HOME/services, /etc/diakonos)"},
		{name: "json", all: true, brief: "one JSON document on stdout, JSON lines for jobs and logs"},
		{name: "no-block", brief: "do not wait for the job"},
		{name: "follow", short: "f", brief: "go on with what is written from now on"},
		{name: "lines", short: "n", value: "N", brief: "only the last N lines"},
		{name: "since", value: "T", brief: "only what was written since then"},
		{name: "hard-links", brief: "hard links instead of symbolic ones"},
		{name: "help", short: "h", all: true, brief: "this text, after a verb more on it"},
		{name: "version", brief: "as the verb"},
	}
}

func findFlag(name string) (flagRow, bool) {
	for _, f := range clientFlags() {
		if f.name == name {
			return f, true
		}
	}
	return flagRow{}, false
}

func shortFlag(letter string) (flagRow, bool) {
	for _, f := range clientFlags() {
		if f.short == letter {
			return f, true
		}
	}
	return flagRow{}, false
}

func isFlag(name string) bool {
	_, ok := findFlag(name)
	return ok
}

func flagTakes(name string) bool {
	f, _ := findFlag(name)
	return f.value != ""
}

func flagNames() []string {
	var names []string
	for _, f := range clientFlags() {
		names = append(names, f.name)
	}
	return names
}

// usage is how a flag is written: -n, --lines N.
func (f flagRow) usage() string {
	text := "    --" + f.name
	if f.short != "" {
		text = "-" + f.short + ", --" + f.name
	}
	if f.value != "" {
		text += " " + f.value
	}
	return text
}

const (
	helpExamples = `Diakonos keeps services running: one unit file each, no root, no set-up.

  diakonos start web          start the unit web.service, and what it requires
  diakonos list               every unit and its state
  diakonos status web         why it is in its state, its processes, its last words
  diakonos logs -f web        what it writes
  diakonos enable web         start it again after a boot
  diakonos stop web           stop it, with all its processes

usage: diakonos [FLAGS] VERB [NAME...]
`
	helpExitCodes = `
exit codes:
  0 done    1 failed    2 usage    3 not active    4 no such unit    5 not permitted
`
)

func (c *client) writeHelp(v *view) {
	v.print(helpExamples, "\nverbs:\n")
	for _, verb := range clientVerbs() {
		v.line("  ", padRight(verb.name, 14), " ", verb.brief)
	}
	v.print("\nflags:\n")
	for _, f := range clientFlags() {
		v.line("  ", padRight(f.usage(), 22), " ", f.brief)
	}
	v.print(helpExitCodes)
}

// runHelp: `help`, `help VERB`, `help keys`, `VERB --help`.
func (c *client) runHelp() int {
	topic := c.verb
	if c.verb == "help" || c.verb == "" {
		topic = strings.Join(c.args, " ")
	}
	switch {
	case topic == "" || topic == "help":
		c.writeHelp(c.out)
		return exitOK
	case topic == "keys":
		c.out.print(strings.TrimRight(keyReference(), "\n"), "\n")
		return exitOK
	}
	v := findVerb(topic)
	if v == nil {
		return c.usage((&clientCall{verb: topic}).checkVerb())
	}
	c.writeVerbHelp(v)
	return exitOK
}

func (c *client) writeVerbHelp(v *clientVerb) {
	c.out.line(strings.TrimRight("usage: diakonos "+v.name+" "+v.args, " "))
	c.out.line()
	c.out.line(v.brief)
	if v.more != "" {
		c.out.line()
		c.out.line(v.more)
	}
	c.out.line()
	for _, f := range clientFlags() {
		if f.all || slices.Contains(v.flags, f.name) {
			c.out.line("  ", padRight(f.usage(), 22), " ", f.brief)
		}
	}
}

// buildFacts is the object of `version --json`.
type buildFacts struct {
	Version  string `json:"version"`
	Commit   string `json:"commit"`   // "" = not known
	Modified bool   `json:"modified"` // there were changes that the commit does not have
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func (c *client) runVersion() int {
	if c.json {
		c.out.w.Write(append(jsonText(ownBuild()), '\n'))
		return exitOK
	}
	c.out.line(buildText())
	return exitOK
}

func ownBuild() buildFacts {
	b := buildFacts{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				b.Commit = s.Value
			case "vcs.modified":
				b.Modified = s.Value == "true"
			}
		}
	}
	return b
}

// buildText is version, commit and Go version in one line.
func buildText() string {
	b := ownBuild()
	commit := "unknown commit"
	if b.Commit != "" {
		commit = "commit " + b.Commit[:min(12, len(b.Commit))]
	}
	if b.Modified {
		commit += " (modified)"
	}
	return fmt.Sprintf("diakonos %s, %s, %s %s", b.Version, commit, b.Go, b.Platform)
}

// ---- install

// runInstall makes the links of all personalities beside the binary, or in the directory that is named.
func (c *client) runInstall() int {
	made, err := makeLinks(c.args, c.hardLinks)
	if c.json {
		jsonArray(c.out, made)
	}
	for _, path := range made {
		if !c.json {
			c.out.line(visible(path))
		}
	}
	if err != nil {
		return c.fail(errorCode(err), fmt.Sprintf("cannot install: %v", err))
	}
	return exitOK
}

func makeLinks(args []string, hard bool) (made []string, err error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("cannot find the program's own file: %w", err)
	}
	dir := filepath.Dir(exe)
	if len(args) > 0 {
		dir = args[0]
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	for _, name := range [...]string{"diakonos", "diakonosctl", daemonName, shimName, initName} {
		path := filepath.Join(dir, name)
		if isProgram(path, exe) {
			continue
		}
		if err := link(exe, path, hard); err != nil {
			return made, err
		}
		made = append(made, path)
	}
	return made, nil
}

// isProgram: path is the very file, not a link to it.
func isProgram(path, exe string) bool {
	a, err1 := os.Lstat(path)
	b, err2 := os.Stat(exe)
	return err1 == nil && err2 == nil && os.SameFile(a, b)
}

// link makes one link under a temporary name and renames it, so that a name never points to nothing. What is no link of ours stays.
func link(exe, path string, hard bool) error {
	if st, err := os.Lstat(path); err == nil && st.Mode()&fs.ModeSymlink == 0 && !hard {
		return fmt.Errorf("%s is there and is not a link", path)
	}
	tmp := path + temporarySuffix
	_ = os.Remove(tmp)
	err := os.Symlink(exe, tmp)
	if hard {
		err = errors.Join(os.Remove(tmp), os.Link(exe, tmp))
	}
	if err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
