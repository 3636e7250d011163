// Role: tests of client.go and render.go: command lines, what is shown, conversations with a fake daemon.
// Runs in: go test.
// Owns: nothing.
// Uses: client, log, render, state, unit, wire.

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ---- fixtures

var testNow = time.Date(2026, 11, 22, 18, 5, 3, 0, time.UTC)

// testView writes into the returned buffer; width 0 = not a terminal.
func testView(width int) (*view, *bytes.Buffer) {
	var buf bytes.Buffer
	return &view{w: bufio.NewWriter(&buf), terminal: width > 0, width: width, now: testNow, zone: time.UTC}, &buf
}

func flushed(v *view, buf *bytes.Buffer) string {
	v.w.Flush()
	return buf.String()
}

func sameText(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// runCommand runs one command line on a home and service directory of its own.
func runCommand(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	dir := t.TempDir()
	out, err := os.Create(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	errs, err := os.Create(filepath.Join(dir, "err"))
	if err != nil {
		t.Fatal(err)
	}
	code = clientMain(args, out, errs)
	a, _ := os.ReadFile(out.Name())
	b, _ := os.ReadFile(errs.Name())
	return code, string(a), string(b)
}

// fakeClient is a client whose daemon is played by the scripts, one for each connection.
type fakeClient struct {
	*client
	out, err *bytes.Buffer
	asked    chan request
}

type fakeScript func(req request, say func(reply))

func newFake(t *testing.T, scripts ...fakeScript) *fakeClient {
	t.Helper()
	f := &fakeClient{client: &client{patience: time.Minute}, asked: make(chan request, 16)}
	f.client.out, f.out = testView(0)
	f.client.err, f.err = testView(0)
	f.client.home = home{t.TempDir()}
	f.client.dir = t.TempDir()
	f.interrupt = make(chan os.Signal, 1)
	f.connect = func() (*os.File, error) {
		if len(scripts) == 0 {
			return nil, errNoDaemon
		}
		play := scripts[0]
		scripts = scripts[1:]
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		go f.serve(os.NewFile(uintptr(fds[1]), "daemon"), play)
		return os.NewFile(uintptr(fds[0]), "client"), nil
	}
	f.connectOrStart = f.connect
	return f
}

func (f *fakeClient) serve(conn *os.File, play fakeScript) {
	defer conn.Close()
	line, err := bufio.NewReader(conn).ReadBytes('\n')
	if err != nil {
		return
	}
	var req request
	if json.Unmarshal(line, &req) != nil {
		return
	}
	f.asked <- req
	play(req, func(p reply) {
		b, _ := json.Marshal(p)
		conn.Write(append(b, '\n'))
	})
}

// run runs a verb with names and returns the exit code and both outputs.
func (f *fakeClient) run(verb string, names ...string) (int, string, string) {
	f.clientCall = clientCall{verb: verb, args: names, lines: -1, json: f.json}
	code := findVerb(verb).run(f.client)
	return code, flushed(f.client.out, f.out), flushed(f.client.err, f.err)
}

var helloReply = reply{Proto: protocolVersion, Build: "test"}

func doneReply(code int) reply { return reply{Done: &outcome{Code: code}} }

func jobReply(verb, unit, outcome, text string, pid int, ms int64) reply {
	return reply{Job: &jobLine{Verb: verb, Unit: unit, Outcome: outcome, Text: text, MainPID: pid, Millis: ms}}
}

// writeLog makes the log of a service.
func writeLog(t *testing.T, h home, name string, lines ...string) {
	t.Helper()
	if err := os.MkdirAll(h.logDir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	text := strings.Join(lines, "\n") + "\n"
	if err := os.WriteFile(filepath.Join(h.logDir(name), "current"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// criLine is one line of a log file, written this many seconds after 18:00.
func criLine(second int, stream, tag, text string) string {
	return fmt.Sprintf("2026-11-22T18:00:%02d.123456789Z %s %s %s", second, stream, tag, text)
}

// ---- command lines

func TestHelpWhole(t *testing.T) {
	code, out, errs := runCommand(t, "help")
	sameText(t, out, `Diakonos keeps services running: one unit file each, no root, no set-up.

  diakonos start web          start the unit web.service, and what it requires
  diakonos list               every unit and its state
  diakonos status web         why it is in its state, its processes, its last words
  diakonos logs -f web        what it writes
  diakonos enable web         start it again after a boot
  diakonos stop web           stop it, with all its processes

usage: diakonos [FLAGS] VERB [NAME...]

verbs:
  list           every unit: state, PID, restarts, memory
  status         all about a unit: why, since when, processes, last log lines
  start          start units and what they require
  stop           stop units and what requires them
  restart        stop and start units, with the files as they are now
  reload         run ExecReload= of units
  logs           what units wrote, oldest first
  why            why a unit is in its state, and its last 50 events
  enable         start units whenever the daemon starts after a boot
  disable        undo enable; what runs goes on
  reset-failed   forget failures, restart delays and start limits of units
  forget         drop logs and records of units that have no file and no process
  check          find mistakes, cycles and missing requirements in unit files
  kill           stop all services, then the daemon
  daemon-status  the daemon: version, uptime, home, what this machine cannot give
  daemon-upgrade daemon and shims become this program; services run on
  daemon         run the daemon in the foreground
  install        make the links diakonos, diakonosctl, diakonosd, diakonos-run, diakonos-init
  help           this text, or more on a verb; `+"`help keys`"+` lists all keys of unit files
  version        version, commit, Go version

flags:
      --home DIR         state and sockets (DIAKONOS_HOME, else ~/.diakonos)
      --service-dir DIR  unit files (DIAKONOS_SERVICE_DIR, else ./services, HOME/services, /etc/diakonos)
      --json             one JSON document on stdout, JSON lines for jobs and logs
      --no-block         do not wait for the job
  -f, --follow           go on with what is written from now on
  -n, --lines N          only the last N lines
      --since T          only what was written since then
      --hard-links       hard links instead of symbolic ones
  -h, --help             this text, after a verb more on it
      --version          as the verb

exit codes:
  0 done    1 failed    2 usage    3 not active    4 no such unit    5 not permitted
`)
	if code != exitOK || errs != "" {
		t.Errorf("exit code %d, stderr %q", code, errs)
	}
}

func TestHelpOfVerbWhole(t *testing.T) {
	const want = `usage: diakonos logs NAME...

what units wrote, oldest first

Read from the files, so it works without a daemon. Several units are merged by
time. ! marks lines of stderr, # marks gaps. On a terminal control characters
are spelled out; anything else gets the bytes as they were written.
T is "10min", "2h ago", "today", "yesterday", "2026-11-22 18:00" or RFC 3339.

      --home DIR         state and sockets (DIAKONOS_HOME, else ~/.diakonos)
      --service-dir DIR  unit files (DIAKONOS_SERVICE_DIR, else ./services, HOME/services, /etc/diakonos)
      --json             one JSON document on stdout, JSON lines for jobs and logs
  -f, --follow           go on with what is written from now on
  -n, --lines N          only the last N lines
      --since T          only what was written since then
  -h, --help             this text, after a verb more on it
`
	for _, args := range [][]string{{"help", "logs"}, {"logs", "--help"}, {"-h", "logs"}} {
		if _, out, _ := runCommand(t, args...); out != want {
			t.Errorf("%v: got:\n%s\nwant:\n%s", args, out, want)
		}
	}
}

func TestHelpKeysPrintsTheKeyReference(t *testing.T) {
	_, out, _ := runCommand(t, "help", "keys")
	sameText(t, out, strings.TrimRight(keyReference(), "\n")+"\n")
}

func TestEveryVerbHasHelpAndAnOwner(t *testing.T) {
	for _, v := range clientVerbs() {
		code, out, errs := runCommand(t, "help", v.name)
		if code != exitOK || out == "" || errs != "" {
			t.Errorf("help %s: code %d, stderr %q", v.name, code, errs)
		}
		mains := v.name == "daemon" || v.name == "help"
		if (v.run == nil) != mains {
			t.Errorf("%s: run is nil: %v", v.name, v.run == nil)
		}
	}
}

func TestCommandLines(t *testing.T) {
	for _, row := range []struct {
		args string
		want clientCall
	}{
		{"list", clientCall{verb: "list", lines: -1}},
		{"start a b", clientCall{verb: "start", args: []string{"a", "b"}, lines: -1}},
		{"--home /h start a --no-block", clientCall{verb: "start", args: []string{"a"}, homeFlag: "/h", noBlock: true, lines: -1}},
		{"start --service-dir=/s a", clientCall{verb: "start", args: []string{"a"}, dirFlag: "/s", lines: -1}},
		{"logs -f -n 5 a", clientCall{verb: "logs", args: []string{"a"}, follow: true, lines: 5}},
		{"logs -fn5 a", clientCall{verb: "logs", args: []string{"a"}, follow: true, lines: 5}},
		{"logs a --lines=0 --since today", clientCall{verb: "logs", args: []string{"a"}, since: "today"}},
		{"stop -- --json -x", clientCall{verb: "stop", args: []string{"--json", "-x"}, lines: -1}},
		{"-- stop a", clientCall{verb: "stop", args: []string{"a"}, lines: -1}},
		{"status --json", clientCall{verb: "status", json: true, lines: -1}},
		{"--version", clientCall{verb: "version", version: true, lines: -1}},
	} {
		got, err := parseCall(strings.Fields(row.args))
		if err != nil {
			t.Errorf("%s: %v", row.args, err)
		}
		if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", row.want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", row.args, got, row.want)
		}
	}
}

func TestUsageErrors(t *testing.T) {
	const help = "hint: `diakonos help` shows verbs and flags\n"
	_, slashed := unitName("services/web.service")
	for _, row := range []struct{ args, stderr string }{
		{"strat", "diakonos: unknown verb \"strat\"\nhint: did you mean `diakonos start`?\n"},
		{"zzzzzzzzzz", "diakonos: unknown verb \"zzzzzzzzzz\"\n" + help},
		{"help lost", "diakonos: unknown verb \"lost\"\nhint: did you mean `diakonos list`?\n"},
		{"list --jsin", "diakonos: unknown flag --jsin\nhint: did you mean `--json`?\n"},
		{"list -x", "diakonos: unknown flag -x\n" + help},
		{"list --json=yes", "diakonos: --json takes no value\n" + help},
		{"list --home", "diakonos: --home needs a value\n" + help},
		{"logs a -n", "diakonos: -n needs a value\n" + help},
		{"logs a -n many", "diakonos: --lines: \"many\" is not a number of lines\n" + help},
		{"logs a -n -1", "diakonos: --lines: \"-1\" is not a number of lines\n" + help},
		{"start", "diakonos: start needs the name of a unit\nhint: `diakonos list` shows them\n"},
		{"logs", "diakonos: logs needs the name of a unit\nhint: `diakonos list` shows them\n"},
		{"list a", "diakonos: list takes no argument\nhint: diakonos help list\n"},
		{"version web", "diakonos: version takes no argument\nhint: diakonos help version\n"},
		{"daemon web", "diakonos: daemon takes no argument\nhint: diakonos help daemon\n"},
		{"daemon -f", "diakonos: daemon takes no --follow\nhint: diakonos help daemon\n"},
		{"install a b", "diakonos: install takes one argument\nhint: diakonos help install\n"},
		{"install -f", "diakonos: install takes no --follow\nhint: diakonos help install\n"},
		{"help --json", "diakonos: help takes no --json\n" + help},
		{"list --json --help", "diakonos: help takes no --json\n" + help},
		{"kill web", "diakonos: kill takes no name: it ends all services and the daemon\nhint: diakonos stop web\n"},
		{"start a --follow", "diakonos: start takes no --follow\nhint: diakonos help start\n"},
		{"start services/web.service", "diakonos: " + slashed.Error() + "\n" +
			"hint: a unit is named without its directory; the directory is --service-dir\n"},
	} {
		code, out, errs := runCommand(t, strings.Fields(row.args)...)
		if code != exitUsage || out != "" || errs != row.stderr {
			t.Errorf("%s: code %d, stdout %q\ngot  %q\nwant %q", row.args, code, out, errs, row.stderr)
		}
	}
}

func TestNoVerbIsAUsageErrorThatHelps(t *testing.T) {
	code, out, errs := runCommand(t)
	if code != exitUsage || out != "" || !strings.HasPrefix(errs, "Diakonos keeps services running") {
		t.Errorf("code %d, stdout %q, stderr %q", code, out, errs)
	}
}

func TestServiceDirectory(t *testing.T) {
	h := home{t.TempDir()}
	t.Chdir(t.TempDir())
	here, _ := os.Getwd()
	t.Setenv("DIAKONOS_SERVICE_DIR", "")
	expect := func(why, flag, want string) {
		t.Helper()
		if got, err := findServiceDir(flag, h); got != want || err != nil {
			t.Errorf("%s: got %q, %v; want %q", why, got, err, want)
		}
	}
	expect("nothing anywhere", "", "/etc/diakonos")
	os.Mkdir(filepath.Join(h.path, "services"), 0o700)
	expect("one in the home", "", filepath.Join(h.path, "services"))
	os.Mkdir("services", 0o700)
	expect("one beside the caller", "", filepath.Join(here, "services"))
	t.Setenv("DIAKONOS_SERVICE_DIR", "env")
	expect("the environment names one", "", filepath.Join(here, "env"))
	expect("the flag names one", "flag", filepath.Join(here, "flag"))
}

func TestSince(t *testing.T) {
	now := testNow
	for _, row := range []struct {
		text string
		want time.Time
	}{
		{"10min", now.Add(-10 * time.Minute)},
		{"10min ago", now.Add(-10 * time.Minute)},
		{"2h 30min ago", now.Add(-150 * time.Minute)},
		{"3 days", now.Add(-72 * time.Hour)},
		{"today", time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)},
		{"yesterday", time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)},
		{"2026-11-22 18:00", time.Date(2026, 11, 22, 18, 0, 0, 0, time.UTC)},
		{"2026-11-22", time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)},
		{"2026-11-22T18:00:00+01:00", time.Date(2026, 11, 22, 17, 0, 0, 0, time.UTC)},
	} {
		if got, err := parseSince(row.text, now); err != nil || !got.Equal(row.want) {
			t.Errorf("%q: got %v, %v; want %v", row.text, got, err, row.want)
		}
	}
	for _, text := range []string{"", "ago", "min", "10", "10 parsecs", "-5min", "99999999999999 weeks", "noon"} {
		if got, err := parseSince(text, now); err == nil {
			t.Errorf("%q: accepted as %v", text, got)
		}
	}
}

// ---- the list

func testUnits() []unitStatus {
	return []unitStatus{
		{Name: "database", LoadState: "loaded", ActiveState: "active", SubState: "running", MainPID: 4711, Supervised: true,
			StateSince: new("2026-11-22T18:00:00.5Z"), MemoryBytes: new(int64(12_345_678)), Description: "The database of the shop"},
		{Name: "mailer@eu-west_1.queue", LoadState: "loaded", ActiveState: "activating", SubState: "auto-restart", Supervised: true,
			Restarts: 12, StateSince: new("2026-11-22T18:05:01Z"), Description: "Sends\x1b[31m mail"},
		{Name: "web", LoadState: "loaded", ActiveState: "failed", SubState: "failed", Supervised: true, Result: "exit-code",
			ExitCode: new(1), StateSince: new("2026-11-20T18:00:00Z"), ChangedOnDisk: true, Description: "Front end"},
	}
}

func TestListForAProgram(t *testing.T) {
	v, buf := testView(0)
	v.listScreen(testUnits())
	sameText(t, flushed(v, buf), `NAME                    STATE                     PID  RESTARTS  MEMORY  SINCE     DESCRIPTION
database                active/running           4711         0     12M  5min ago  The database of the shop
mailer@eu-west_1.queue  activating/auto-restart     -        12       -  2s ago    Sends^[[31m mail
web                     failed/failed               -         0       -  2d ago    Front end

web: failed: exit code 1 (exit-code)
web: its unit file has changed; `+"`diakonos restart web`"+` applies it
`)
}

func TestListFitsTheTerminal(t *testing.T) {
	v, buf := testView(100)
	v.listScreen(testUnits()[:2])
	sameText(t, flushed(v, buf), `NAME                    STATE                       PID  RESTARTS  MEMORY  SINCE     DESCRIPTION
database                ● active/running           4711         0     12M  5min ago  The database o…
mailer@eu-west_1.queue  ● activating/auto-restart     -        12       -  2s ago    Sends^[[31m ma…
`)
	v, buf = testView(60)
	v.field("Reason", "main process was killed by SIGKILL, which nobody here has sent")
	sameText(t, flushed(v, buf), `     Reason: main process was killed by SIGKILL, which
             nobody here has sent
`)
	v, buf = testView(60)
	v.listScreen(testUnits()[:2])
	sameText(t, flushed(v, buf), `NAME              STATE                       PID  RESTARTS
database          ● active/running           4711         0
mailer@e…1.queue  ● activating/auto-restart     -        12
`)
	for width := 30; width < 140; width++ {
		v, buf := testView(width)
		units := testUnits()
		units[1].MainPID, units[1].Supervised = 7, false
		units[2].Reason = "cannot execute /srv/an/uncommonly/long/path/to/the/program/of/this/service: No such file or directory"
		units[2].UnitFile, units[2].LoadState, units[2].LoadError = "/srv/shop/services/web.service", "bad-setting", "/srv/shop/services/web.service:3: unknown key"
		v.listScreen(units)
		for i := range units {
			v.statusScreen(&units[i], nil)
		}
		v.daemonScreen(&daemonStatus{Running: true, Weaker: []string{"not root: daemon and shims cannot lower their OOM score", "and more of that kind"}})
		for line := range strings.Lines(flushed(v, buf)) {
			if n := cells(strings.TrimSuffix(line, "\n")); n > max(width, 43) { // 43: name and state alone
				t.Errorf("width %d: a line of %d cells: %q", width, n, line)
			}
		}
	}
}

func TestListInColour(t *testing.T) {
	v, buf := testView(200)
	v.colour = true
	v.listScreen(testUnits())
	got := flushed(v, buf)
	for _, want := range []string{
		"\x1b[32m●\x1b[0m \x1b[32mactive/running\x1b[0m",
		"\x1b[33m●\x1b[0m \x1b[33mactivating/auto-restart\x1b[0m",
		"\x1b[31m●\x1b[0m \x1b[31mfailed/failed\x1b[0m",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%q", want, got)
		}
	}
}

func TestListSaysFirstWhatIsUnsupervised(t *testing.T) {
	units := testUnits()
	units[0].Supervised = false
	v, buf := testView(0)
	v.listScreen(units)
	got := flushed(v, buf)
	if !strings.HasPrefix(got, "unsupervised: database (nothing restarts or logs it)\n\nNAME") {
		t.Errorf("got:\n%s", got)
	}
	exited := unitStatus{ActiveState: "active", SubState: "exited"}
	if unsupervised(&exited) || unsupervised(&unitStatus{ActiveState: "inactive"}) {
		t.Error("units without processes count as unsupervised")
	}
}

func TestListSaysLastWhichShimsAreOutdated(t *testing.T) {
	units := testUnits()
	for i := range units {
		units[i].ShimOutdated = i < 2
	}
	v, buf := testView(0)
	v.listScreen(units)
	got := flushed(v, buf)
	want := "shims of another program than the daemon: " + units[0].Name + ", " + units[1].Name + " (`diakonos daemon-upgrade` makes all run one)\n"
	if !strings.HasSuffix(got, "\n\n"+want) {
		t.Errorf("got:\n%s\nwant at its end:\n%s", got, want)
	}
}

func TestListFootnotes(t *testing.T) {
	for _, row := range []struct {
		why, want string
		s         unitStatus
	}{
		{"a unit file with mistakes", "a: cannot be loaded: /s/a.service:3: unknown key (and 2 more, see `diakonos check a`)",
			unitStatus{LoadState: "bad-setting", ActiveState: "inactive", LoadError: "/s/a.service:3: unknown key\nb\nc\n"}},
		{"a removed file of a running service", "a: its unit file is gone; it runs on until it is stopped",
			unitStatus{LoadState: "not-found", ActiveState: "active", Supervised: true}},
		{"a removed file of a stopped service", "a: its unit file is gone; `diakonos forget a` drops its logs and its record",
			unitStatus{LoadState: "not-found", ActiveState: "inactive"}},
		{"a failure with a reason", "a: failed: start limit hit: 5 starts in 10s",
			unitStatus{LoadState: "loaded", ActiveState: "failed", Reason: "start limit hit: 5 starts in 10s"}},
	} {
		row.s.Name = "a"
		v, buf := testView(0)
		v.listScreen([]unitStatus{row.s})
		if got := flushed(v, buf); !strings.HasSuffix(got, "\n\n"+row.want+"\n") {
			t.Errorf("%s: got:\n%s\nwant: %s", row.why, got, row.want)
		}
	}
}

func TestManyFootnotesDoNotHideTheTable(t *testing.T) {
	units := make([]unitStatus, 1000)
	for i := range units {
		units[i] = unitStatus{Name: fmt.Sprint("u", i), LoadState: "loaded", ActiveState: "failed", SubState: "failed"}
	}
	v, buf := testView(0)
	v.listScreen(units)
	got := flushed(v, buf)
	if n := strings.Count(got, "\n"); n != 1+1000+1+footnoteLines+1 || !strings.HasSuffix(got, "\nand 990 more like this\n") {
		t.Errorf("%d lines, end %q", n, got[len(got)-40:])
	}
}

// ---- the status screens

func TestStatusScreen(t *testing.T) {
	s := unitStatus{Name: "worker", Description: "Worker service", UnitFile: "/srv/services/worker.service", LoadState: "loaded",
		ActiveState: "active", SubState: "running", Result: "signal", Reason: "restarted after SIGKILL", Supervised: true,
		MainPID: 4711, Restarts: 3, StateSince: new("2026-11-22T18:00:00Z"), ExitSignal: new("SIGKILL"), Enabled: true,
		ChangedOnDisk: true, MemoryBytes: new(int64(1_300_000)), CPUSeconds: new(0.123456), StatusText: "waiting\x07 for work",
		InvocationID: "0123456789abcdef0123456789abcdef"}
	procs := []procInfo{{PID: 4711, PPID: 1, Command: "worker --queue main"}, {PID: 4712, PPID: 4711, Command: "sh -c \x1b]0;x", State: 'D'},
		{PID: 4714, PPID: 4711, Command: "job"}, {PID: 4713, PPID: 4712, Command: "sleep 10"}, {PID: 5000, PPID: 1, Command: "stray", State: 'Z'}}
	v, buf := testView(0)
	v.statusScreen(&s, procs)
	sameText(t, flushed(v, buf), `● worker - Worker service
     Loaded: loaded (/srv/services/worker.service; enabled)
       Note: its unit file has changed; `+"`diakonos restart worker`"+` applies it
      State: active (running) since Sun 2026-11-22 18:00:00 UTC, 5min 3s ago
     Reason: restarted after SIGKILL
   Last end: killed by SIGKILL (signal)
   Main PID: 4711 (worker --queue main)
       Tree: 4711 worker --queue main
             ├─ 4712 sh -c ^[]0;x (in uninterruptible sleep)
             │  └─ 4713 sleep 10
             └─ 4714 job
             5000 stray (zombie)
     Memory: 1.2M
        CPU: 0.123s
   Restarts: 3
     Status: "waiting^G for work"
 Invocation: 0123456789abcdef0123456789abcdef
`)
}

func TestStatusScreenOfABrokenUnit(t *testing.T) {
	s := unitStatus{Name: "web", UnitFile: "/s/web.service", LoadState: "bad-setting", LoadError: "/s/web.service:3: unknown key\n/s/web.service:4: bad size",
		ActiveState: "failed", SubState: "failed", Result: "exit-code", ExitCode: new(203), StateSince: new("2026-11-22T18:00:00Z"), Supervised: true}
	v, buf := testView(0)
	v.ascii = true
	v.statusScreen(&s, nil)
	sameText(t, flushed(v, buf), `* web
     Loaded: bad-setting (/s/web.service; disabled)
             /s/web.service:3: unknown key
             /s/web.service:4: bad size
      State: failed (failed) since Sun 2026-11-22 18:00:00 UTC, 5min 3s ago
   Last end: exit code 203/EXEC (exit-code)
`)
}

func TestStatusSaysWhenTheNextStartIs(t *testing.T) {
	s := unitStatus{Name: "web", ActiveState: "activating", SubState: "auto-restart", NextStart: new("2026-11-22T18:05:05.500Z"), Supervised: true}
	v, buf := testView(0)
	v.statusScreen(&s, nil)
	if got := flushed(v, buf); !strings.Contains(got, "Next start: in 2s, Sun 2026-11-22 18:05:05 UTC\n") {
		t.Errorf("got:\n%s", got)
	}
}

func TestTreeWithACircleOrAThousandProcessesEnds(t *testing.T) {
	v, buf := testView(0)
	v.tree([]procInfo{{PID: 1, PPID: 1}, {PID: 2, PPID: 3}, {PID: 3, PPID: 2}})
	if n := strings.Count(flushed(v, buf), "\n"); n != 1 {
		t.Errorf("%d lines", n)
	}
	v, buf = testView(0)
	procs := make([]procInfo, 1000)
	for i := range procs {
		procs[i] = procInfo{PID: 10 + i, PPID: 9 + i}
	}
	v.tree(procs)
	if got := flushed(v, buf); strings.Count(got, "\n") != treeLines+1 || !strings.HasSuffix(got, "and 950 more\n") {
		t.Errorf("got:\n%s", got)
	}
}

func TestDaemonScreen(t *testing.T) {
	v, buf := testView(0)
	v.daemonScreen(&daemonStatus{Running: true, Version: "1.2.3", PID: 99, Mode: modeAuto, Home: "/root/.diakonos", StartedAt: new("2026-11-20T16:00:00Z"),
		Units: 12, Active: 10, Failed: 1, Weaker: []string{"no cgroup: a tree is followed by its parents", "no PIDFD_INFO_EXIT"}, ServiceDir: "/s"})
	sameText(t, flushed(v, buf), `● diakonosd is running
    Version: 1.2.3
         Up: 2d 2h, since Fri 2026-11-20 16:00:00 UTC
        PID: 99
       Mode: auto (started by a command; its shims revive it)
       Home: /root/.diakonos
   Services: /s
      Units: 12, 10 active, 1 failed
    Missing: no cgroup: a tree is followed by its parents
             no PIDFD_INFO_EXIT
`)
}

func TestSmallTexts(t *testing.T) {
	for _, row := range []struct{ got, want string }{
		{ageText(0), "now"},
		{ageText(59 * time.Second), "59s ago"},
		{ageText(119 * time.Minute), "1h ago"},
		{ageText(47 * time.Hour), "47h ago"},
		{ageText(49 * time.Hour), "2d ago"},
		{spanText(-time.Second), "0ms"},
		{spanText(1500 * time.Millisecond), "1s"},
		{spanText(time.Hour), "1h"},
		{spanText(time.Hour + 59*time.Second), "1h"},
		{spanText(26*time.Hour + 3*time.Minute), "1d 2h"},
		{millis(3), "3 ms"},
		{millis(1234), "1.2 s"},
		{millis(61_000), "1min 1s"},
		{byteText(1023), "1023B"},
		{byteText(1024), "1.0K"},
		{byteText(10 << 20), "10M"},
		{byteText(1<<30 - 1), "1.0G"},
		{byteText(3 << 40), "3.0T"},
		{cpuText(0.5), "0.5s"},
		{cpuText(3661), "1h 1min"},
		{exitCodeMeaning(200), "/CHDIR"},
		{exitCodeMeaning(137), ", as a shell reports SIGKILL"},
		{exitCodeMeaning(1), ""},
	} {
		if row.got != row.want {
			t.Errorf("got %q, want %q", row.got, row.want)
		}
	}
}

// ---- control characters

// TestNothingOfAServiceReachesTheTerminal sends every character below U+3000, and every single byte, through
// each screen.
func TestNothingOfAServiceReachesTheTerminal(t *testing.T) {
	var all []byte
	for r := range rune(0x3000) {
		all = append(all, string(r)...)
	}
	for c := range 256 {
		all = append(all, byte(c), 'x')
	}
	evil := string(all)
	s := unitStatus{Name: evil, Description: evil, UnitFile: evil, LoadState: "bad-setting", LoadError: evil, ActiveState: "failed", SubState: evil,
		Result: evil, Reason: evil, StatusText: evil, InvocationID: evil, Cgroup: evil, MainPID: 1, ExitSignal: &evil}
	rec := logRecord{Time: testNow, Stream: "stderr", Text: all}
	for _, row := range []struct {
		what string
		show func(v *view)
	}{
		{"list", func(v *view) { v.listScreen([]unitStatus{s}) }},
		{"empty list", func(v *view) { v.noUnits(evil) }},
		{"status", func(v *view) { v.statusScreen(&s, []procInfo{{PID: 1, Command: evil}}) }},
		{"daemon-status", func(v *view) {
			v.daemonScreen(&daemonStatus{Running: true, Version: evil, Mode: evil, Home: evil, Cgroup: evil, Weaker: []string{evil}, ServiceDir: evil})
		}},
		{"jobs", func(v *view) {
			v.line(v.jobText(&jobLine{Unit: evil, Verb: evil, Outcome: "failed", Text: evil, Culprit: evil}, 8))
			v.line(v.jobText(&jobLine{Unit: evil, Outcome: "dependency", Culprit: evil}, 8))
		}},
		{"logs", func(v *view) { newLogPrinter(v, []string{"a"}).write("a", rec) }},
		{"logs as JSON", func(v *view) { v.logJSON("a", rec) }},
		{"list as JSON", func(v *view) { jsonArray(v, []unitStatus{s}) }},
	} {
		v, buf := testView(1 << 20)
		row.show(v)
		got := flushed(v, buf)
		for i, r := range got {
			if r != '\n' && r != '\t' && hidden(r) {
				t.Errorf("%s: %U passes at %d", row.what, r, i)
				break
			}
		}
	}
}

func TestJSONStaysTheSameValue(t *testing.T) {
	const text = "<\x1b\u009b\u202e\x7f\U000e0041&日本"
	var back string
	if err := json.Unmarshal(jsonText(text), &back); err != nil || back != text {
		t.Errorf("got %q, %v", back, err)
	}
}

// ---- logs

func TestLogsForAProgramAreTheExactBytes(t *testing.T) {
	h := home{t.TempDir()}
	t.Setenv("TZ", "UTC")
	writeLog(t, h, "web", criLine(1, "stdout", "F", "hello \x1b[31m\xff\tworld"), criLine(2, "stderr", "F", "oops"),
		criLine(3, "stdout", "P", "long "), criLine(3, "stdout", "F", "line"))
	code, out, errs := runCommand(t, "--home", h.path, "logs", "web")
	stamp := func(s int) string {
		return time.Date(2026, 11, 22, 18, 0, s, 123e6, time.UTC).Local().Format(logStamp)
	}
	sameText(t, out, stamp(1)+"   hello \x1b[31m\xff\tworld\n"+stamp(2)+" ! oops\n"+stamp(3)+"   long line\n")
	if code != exitOK || errs != "" {
		t.Errorf("code %d, stderr %q", code, errs)
	}
}

func TestLogsOfSeveralNamesAndBrokenUpLines(t *testing.T) {
	v, buf := testView(80)
	p := newLogPrinter(v, []string{"web", "database"})
	at := func(s int) time.Time { return time.Date(2026, 11, 2, 18, 0, s, 0, time.UTC) }
	for _, r := range []struct {
		name string
		logRecord
	}{
		{"web", logRecord{at(1), "stdout", true, false, []byte("half")}},
		{"database", logRecord{at(2), "stderr", false, false, []byte("between\x1b")}},
		{"web", logRecord{at(3), "stdout", false, false, []byte(" rest")}},
		{"web", logRecord{at(4), "stdout", false, true, []byte("3 lines lost")}},
		{"web", logRecord{at(5), "stdout", true, false, []byte("never ended")}},
	} {
		if err := p.write(r.name, r.logRecord); err != nil {
			t.Fatal(err)
		}
	}
	p.finish()
	sameText(t, flushed(v, buf), `Nov 02 18:00:01.000 web        half
Nov 02 18:00:02.000 database ! between^[
Nov 02 18:00:03.000 web         rest
Nov 02 18:00:04.000 web      # 3 lines lost
Nov 02 18:00:05.000 web        never ended
`)
}

func TestLogsAsJSONLines(t *testing.T) {
	h := home{t.TempDir()}
	writeLog(t, h, "web", criLine(1, "stdout", "F", "a\"b"), criLine(2, "stderr", "F", "\xff"))
	_, out, _ := runCommand(t, "--home", h.path, "logs", "--json", "web")
	sameText(t, out, `{"time":"2026-11-22T18:00:01.123456789Z","name":"web","stream":"stdout","text":"a\"b","partial":false,"gap":false}
{"time":"2026-11-22T18:00:02.123456789Z","name":"web","stream":"stderr","text":"`+"\uFFFD"+`","partial":false,"gap":false}
`)
}

func TestLogsQuery(t *testing.T) {
	for _, row := range []struct {
		why  string
		call clientCall
		want logQuery
	}{
		{"everything", clientCall{lines: -1}, logQuery{Lines: -1}},
		{"the last three", clientCall{lines: 3}, logQuery{Lines: 3}},
		{"since a minute", clientCall{lines: -1, since: "1min"}, logQuery{Lines: -1, Since: testNow.Add(-time.Minute)}},
		{"only what comes", clientCall{lines: 0, follow: true}, logQuery{}},
	} {
		c := &client{clientCall: row.call}
		if got, err := c.logQuery(testNow); err != nil || got != row.want {
			t.Errorf("%s: got %+v, %v; want %+v", row.why, got, err, row.want)
		}
	}
}

func TestLogsOfAnUnknownUnit(t *testing.T) {
	h := home{t.TempDir()}
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "web.service"), []byte("[service]\nExecStart = \"x\"\n"), 0o600)
	code, out, errs := runCommand(t, "--home", h.path, "--service-dir", dir, "logs", "wep")
	if code != exitNoUnit || out != "" {
		t.Errorf("code %d, stdout %q", code, out)
	}
	sameText(t, errs, "diakonos: no unit \"wep\"\nhint: did you mean `web`?\n")
	if code, _, errs := runCommand(t, "--home", h.path, "--service-dir", dir, "logs", "web"); code != exitOK {
		t.Errorf("a unit that never wrote: code %d, %s", code, errs)
	}
}

// TestListTellsWhatItCannotRead: units of a directory that cannot be read are not just missing.
func TestListTellsWhatItCannotRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		why, dir, flag, want string
	}{
		{"no directory", file, "", "cannot read service directory " + file + ": not a directory"},
		{"one that was asked for and is not there", "/nonexistent", "/nonexistent", "cannot read service directory /nonexistent: no such file or directory"},
		{"one that was not asked for and is not there", "/nonexistent", "", ""},
	} {
		f := newFake(t, dyingDaemon(helloReply, doneReply(exitOK)))
		f.client.dir = row.dir
		f.clientCall = clientCall{verb: "list", lines: -1, dirFlag: row.flag}
		t.Setenv("DIAKONOS_SERVICE_DIR", "")
		code := f.runList()
		errs := flushed(f.client.err, f.err)
		if code != exitOK || (row.want == "") != (errs == "") || !strings.Contains(errs, row.want) {
			t.Errorf("%s: code %d, stderr %q", row.why, code, errs)
		}
	}
}

// TestVersionAndInstallAsJSON: what needs no daemon has a document too.
func TestVersionAndInstallAsJSON(t *testing.T) {
	var facts map[string]any
	code, out, errs := runCommand(t, "version", "--json")
	if err := json.Unmarshal([]byte(out), &facts); err != nil || code != exitOK || errs != "" || facts["version"] != version || facts["go"] == "" {
		t.Errorf("version: code %d, %v, stdout %q, stderr %q", code, err, out, errs)
	}
	dir := t.TempDir()
	for range 2 { // links that are there are made anew
		var links []string
		code, out, errs = runCommand(t, "--json", "install", dir)
		if err := json.Unmarshal([]byte(out), &links); err != nil || code != exitOK || errs != "" || len(links) != 5 {
			t.Errorf("install: code %d, %v, stdout %q, stderr %q", code, err, out, errs)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out, errs = runCommand(t, "--json", "install", file); code != exitFailed || out != "[]\n" || !strings.Contains(errs, "cannot install: ") {
		t.Errorf("install where nothing can be: code %d, stdout %q, stderr %q", code, out, errs)
	}
}

func TestLogsIntoAClosedPipeEndQuietly(t *testing.T) {
	h := home{t.TempDir()}
	lines := make([]string, 2000)
	for i := range lines {
		lines[i] = criLine(i%60, "stdout", "F", strings.Repeat("x", 100))
	}
	writeLog(t, h, "web", lines...)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	errs, err := os.Create(filepath.Join(t.TempDir(), "err"))
	if err != nil {
		t.Fatal(err)
	}
	code := clientMain([]string{"--home", h.path, "logs", "web"}, w, errs)
	text, _ := os.ReadFile(errs.Name())
	if code != exitOK || len(text) > 0 {
		t.Errorf("code %d, stderr %q", code, text)
	}
}

func TestAFullDiskIsNoSuccess(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	errs, err := os.Create(filepath.Join(t.TempDir(), "err"))
	if err != nil {
		t.Fatal(err)
	}
	code := clientMain([]string{"help"}, full, errs)
	text, _ := os.ReadFile(errs.Name())
	if code != exitFailed || !strings.HasPrefix(string(text), "diakonos: cannot write output: ") {
		t.Errorf("code %d, stderr %q", code, text)
	}
}

func TestFollowEndsAtCtrlC(t *testing.T) {
	f := newFake(t)
	writeLog(t, f.client.home, "web", criLine(1, "stdout", "F", "line"))
	f.interrupt <- syscall.SIGINT
	f.clientCall = clientCall{verb: "logs", args: []string{"web"}, lines: -1, follow: true}
	if code := f.runLogs(); code != exitOK {
		t.Errorf("code %d", code)
	}
	if got := flushed(f.client.out, f.out); !strings.HasSuffix(got, "   line\n") {
		t.Errorf("got %q", got)
	}
}

// ---- conversations

func TestStartShowsJobsAsTheyEnd(t *testing.T) {
	f := newFake(t, func(_ request, say func(reply)) {
		say(helloReply)
		say(jobReply("start", "database", "done", "", 4711, 3))
		say(jobReply("start", "a-longer-name", "skipped", "already active", 12, 0))
		say(jobReply("start", "web", "done", "", 0, 1234))
		say(doneReply(exitOK))
	})
	code, out, errs := f.run("start", "web", "database.service", "web")
	sameText(t, out, `started    database  pid 4711  3 ms
unchanged  a-longer-name  pid 12  already active
started    web            1.2 s
`)
	if code != exitOK || errs != "" {
		t.Errorf("code %d, stderr %q", code, errs)
	}
	req := <-f.asked
	if req.Verb != "start" || !slices.Equal(req.Names, []string{"web", "database"}) || req.ServiceDir != f.dir || req.Proto != protocolVersion {
		t.Errorf("asked %+v", req)
	}
}

func TestFailedStartShowsReasonLogAndHints(t *testing.T) {
	bin := t.TempDir()
	os.WriteFile(filepath.Join(bin, "uvicorn"), nil, 0o755)
	t.Setenv("PATH", "/nonexistent:"+bin)
	f := newFake(t, func(_ request, say func(reply)) {
		say(helloReply)
		say(reply{Job: &jobLine{Unit: "database", Verb: "start", Outcome: "failed", Text: "exec: no such file", Missing: "uvicorn", Millis: 5}})
		say(reply{Job: &jobLine{Unit: "web", Verb: "start", Outcome: "dependency", Culprit: "database", Millis: 6}})
		say(doneReply(exitFailed))
	})
	recent := time.Now().Add(time.Hour).UTC().Format("2006-01-02T15:04:05.000000000Z")
	writeLog(t, f.client.home, "database", criLine(1, "stdout", "F", "of an earlier run"), recent+" stderr F no \x1bdisk")
	code, out, errs := f.run("start", "web")
	if code != exitFailed || out != "" {
		t.Errorf("code %d, stdout %q", code, out)
	}
	at, _ := time.Parse(time.RFC3339Nano, recent)
	sameText(t, errs, "failed     database  start: exec: no such file  5 ms\n"+
		"    "+at.Format(logStamp)+" ! no ^[disk\n"+
		"hint: \"uvicorn\" is at "+bin+"/uvicorn on your PATH, which services do not get: write the full path into the unit\n"+
		"failed     web       start: requires \"database\", which failed  6 ms\n"+
		"hint: `diakonos status database` shows more, `diakonos logs database` all that was written\n")
}

func TestStopNamesTheProcessesLeft(t *testing.T) {
	f := newFake(t, func(_ request, say func(reply)) {
		say(helloReply)
		say(reply{Job: &jobLine{Unit: "web", Verb: "stop", Outcome: "failed", Text: "in uninterruptible sleep", Left: []int{7, 8}, Millis: 90_000}})
		say(reply{Done: &outcome{Code: exitFailed, Error: "one\ntwo", Hints: []string{"three"}}})
	})
	code, _, errs := f.run("stop", "web")
	if code != exitFailed {
		t.Errorf("code %d", code)
	}
	sameText(t, errs, `failed     web       stop: in uninterruptible sleep  processes left: 7 8  1min 30s
hint: `+"`diakonos status web` shows more, `diakonos logs web`"+` all that was written
diakonos: one
diakonos: two
hint: three
`)
}

func TestJobsAsJSONLines(t *testing.T) {
	f := newFake(t, func(_ request, say func(reply)) {
		say(helloReply)
		say(jobReply("start", "web", "failed", "why", 0, 2))
		say(doneReply(exitFailed))
	})
	f.json = true
	code, out, errs := f.run("start", "web")
	sameText(t, out, `{"unit":"web","verb":"start","outcome":"failed","text":"why","main_pid":0,"millis":2}`+"\n")
	if code != exitFailed || errs != "" {
		t.Errorf("code %d, stderr %q", code, errs)
	}
}

func TestEnableIsConfirmed(t *testing.T) {
	f := newFake(t, dyingDaemon(helloReply, jobReply("enable", "web", "done", "", 0, 0), jobReply("enable", "database", "done", "", 0, 0), doneReply(exitOK)))
	_, out, _ := f.run("enable", "web", "database")
	sameText(t, out, "enabled    web       0 ms\nenabled    database  0 ms\n")
}

// dyingDaemon plays a daemon that is killed in the middle of its answer.
func dyingDaemon(replies ...reply) fakeScript {
	return func(_ request, say func(reply)) {
		for _, p := range replies {
			say(p)
		}
	}
}

func TestStartGoesOnWithTheNextDaemon(t *testing.T) {
	f := newFake(t, dyingDaemon(helloReply, jobReply("start", "database", "done", "", 1, 1)), dyingDaemon(),
		dyingDaemon(helloReply, jobReply("start", "database", "skipped", "already active", 1, 0), jobReply("start", "web", "done", "", 2, 9), doneReply(exitOK)))
	code, out, errs := f.run("start", "web", "database")
	sameText(t, out, "started    database  pid 1  1 ms\nstarted    web       pid 2  9 ms\n")
	if code != exitOK || errs != "" || len(f.asked) != 3 {
		t.Errorf("code %d, stderr %q, asked %d times", code, errs, len(f.asked))
	}
}

func TestRestartIsNotAskedTwice(t *testing.T) {
	f := newFake(t, dyingDaemon(helloReply), dyingDaemon(helloReply, doneReply(exitOK)))
	code, _, errs := f.run("restart", "web")
	sameText(t, errs, "diakonos: lost the connection to the daemon; the restart of web goes on\nhint: `diakonos status web` shows how it ended\n")
	if code != exitFailed || len(f.asked) != 1 {
		t.Errorf("code %d, asked %d times", code, len(f.asked))
	}
}

func TestADaemonThatAlwaysDiesIsGivenUp(t *testing.T) {
	f := newFake(t, slices.Repeat([]fakeScript{dyingDaemon(helloReply)}, 2*resendLimit)...)
	code, _, errs := f.run("stop", "web")
	if code != exitFailed || len(f.asked) != resendLimit || !strings.Contains(errs, "ends the connection again and again") {
		t.Errorf("code %d, asked %d times, stderr %q", code, len(f.asked), errs)
	}
}

// silentDaemon plays a stopped daemon: it takes the request and answers nothing until the test ends.
func silentDaemon(t *testing.T, replies ...reply) fakeScript {
	end := make(chan struct{})
	t.Cleanup(func() { close(end) })
	return func(_ request, say func(reply)) {
		for _, p := range replies {
			say(p)
		}
		<-end
	}
}

func TestASilentDaemonIsNoHang(t *testing.T) {
	f := newFake(t, silentDaemon(t))
	f.patience = time.Millisecond
	code, out, errs := f.run("start", "web")
	sameText(t, errs, "diakonos: the daemon does not answer within 1ms; services are not affected\nhint: see "+f.client.home.path+"/daemon.log\n")
	if code != exitFailed || out != "" {
		t.Errorf("code %d, stdout %q", code, out)
	}
	f = newFake(t, silentDaemon(t))
	f.patience = time.Millisecond
	boot, pidns, _ := bootIdentity()
	if err := f.client.home.writeDaemon(daemonRecord{Boot: boot, PIDNS: pidns, Started: 1, Daemon: refOf(os.Getpid())}); err != nil {
		t.Fatal(err)
	}
	if _, _, errs := f.run("start", "web"); !strings.Contains(errs, fmt.Sprintf("`kill -CONT %d` lets it go on", os.Getpid())) {
		t.Errorf("a daemon that can be named: stderr %q", errs)
	}
}

func TestListFallsBackToTheFiles(t *testing.T) {
	f := newFake(t, silentDaemon(t, helloReply))
	f.patience = 50 * time.Millisecond
	os.WriteFile(filepath.Join(f.dir, "web.service"), []byte("[unit]\nDescription = \"Front end\"\n[service]\nExecStart = \"x\"\n"), 0o600)
	code, out, errs := f.run("list")
	sameText(t, errs, "diakonos: warning: the daemon does not answer within 50ms; this is from the files in "+f.client.home.path+
		"\nhint: see "+f.client.home.path+"/daemon.log\n")
	if code != exitOK || !strings.Contains(out, "web   inactive/dead    -         0       -  -      Front end\n") {
		t.Errorf("code %d, stdout:\n%s", code, out)
	}
}

func TestListWithoutADaemonAndWithoutUnits(t *testing.T) {
	f := newFake(t)
	code, out, _ := f.run("list")
	sameText(t, out, "no units in "+f.dir+"\n\nA first one, as "+f.dir+`/hello.service:

    [service]
    ExecStart = "sleep 1000"

Then: diakonos start hello
`)
	if code != exitOK {
		t.Errorf("code %d", code)
	}
	f = newFake(t)
	f.json = true
	_, out, _ = f.run("list")
	sameText(t, out, "[]\n")
}

func TestCtrlCLeavesTheJobRunning(t *testing.T) {
	f := newFake(t, silentDaemon(t, helloReply, jobReply("start", "database", "done", "", 1, 1)))
	f.interrupt <- syscall.SIGINT
	code, _, errs := f.run("start", "web")
	sameText(t, errs, "diakonos: interrupted; the start of web goes on\nhint: `diakonos status web` shows it\n")
	if code != exitFailed {
		t.Errorf("code %d", code)
	}
}

func TestAnotherProtocolIsSaidOnce(t *testing.T) {
	other := reply{Proto: protocolVersion + 1}
	f := newFake(t, dyingDaemon(other, doneReply(exitOK)))
	code, _, errs := f.run("start", "web")
	sameText(t, errs, "diakonos: warning: the daemon speaks protocol 2, this client 1: some of its answers may be missing here\n")
	if code != exitOK {
		t.Errorf("code %d", code)
	}
}

func TestRubbishFromTheDaemon(t *testing.T) {
	for _, row := range []struct{ line, want string }{
		{"no json\n", "cannot read the daemon's answer: invalid character"},
		{strings.Repeat("x", maxFrame+1<<17) + "\n", "a line of more than 1048576 bytes"},
		{"", errLost.Error()},
		{`{"done":{}`, errLost.Error()},
	} {
		var p reply
		err := readReply(bufio.NewReaderSize(strings.NewReader(row.line), 64<<10), &p)
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%.20q: got %v, want %q", row.line, err, row.want)
		}
	}
	long := reply{Warn: strings.Repeat("w", 300_000)}
	b, _ := json.Marshal(long)
	var p reply
	if err := readReply(bufio.NewReaderSize(bytes.NewReader(append(b, '\n')), 64<<10), &p); err != nil || p.Warn != long.Warn {
		t.Errorf("a long line: %v", err)
	}
}

// TestUnitLinesReadTheSameBothWays holds the quick decoder to encoding/json.
func TestUnitLinesReadTheSameBothWays(t *testing.T) {
	plain := testUnits()[0]
	encode := func(s unitStatus) string {
		b, err := json.Marshal(reply{Unit: &s})
		if err != nil {
			t.Fatal(err)
		}
		return string(b) + "\n"
	}
	full := unitStatus{Name: "n", Description: "d ü", Documentation: "man:a(1)", UnitFile: "u", LoadState: "ls", LoadError: "le", ActiveState: "a", SubState: "s", Result: "r", Reason: "re",
		StatusText: "st", MainPID: 1, ControlPID: 2, ShimPID: 3, ShimOutdated: true, Supervised: true, Restarts: 4, StateSince: new("5"), StartedAt: new("6"), NextStart: new("7"),
		ExitCode: new(8), ExitSignal: new("9"), MemoryBytes: new(int64(10)), CPUSeconds: new(11.0), Enabled: true, ChangedOnDisk: true, InvocationID: "12", Cgroup: "13"}
	for _, row := range []struct {
		why, line string
		quick     bool
	}{
		{"a running unit", encode(plain), true},
		{"every field", encode(full), true},
		{"nothing set", encode(unitStatus{}), true},
		{"an escape", encode(unitStatus{Description: "a\"b"}), false},
		{"a fraction", encode(unitStatus{CPUSeconds: new(0.5)}), false},
		{"a negative number", encode(unitStatus{ExitCode: new(-1)}), false},
		{"a field from the future", `{"unit":{"name":"a","colour":"red"}}` + "\n", false},
		{"another field beside it", `{"unit":{"name":"a"},"proto":1}`, false},
		{"bytes that are no UTF-8", "{\"unit\":{\"name\":\"\xff\"}}", false},
	} {
		var quick, slow unitStatus
		if got := decodeUnitLine([]byte(row.line), &quick); got != row.quick {
			t.Errorf("%s: quick is %v", row.why, got)
		}
		if !row.quick {
			continue
		}
		if err := json.Unmarshal([]byte(row.line), &reply{Unit: &slow}); err != nil || !bytes.Equal(jsonText(&quick), jsonText(&slow)) {
			t.Errorf("%s: %v\nquick %s\nslow  %s", row.why, err, jsonText(&quick), jsonText(&slow))
		}
	}
	whole := encode(full)
	for i := range len(whole) - len("}\n") {
		if decodeUnitLine([]byte(whole[:i]), new(unitStatus)) {
			t.Fatalf("accepted when cut at %d", i)
		}
	}
	for _, line := range []string{`{"unit":{}}`, `{"unit":{"name":"a",}}`, `{"unit":{"name":"a"}} x`, `{"unit":{"main_pid":01}}`, `{"unit":{"main_pid":}}`, `{"unit":{"enabled":tru}}`} {
		if decodeUnitLine([]byte(line), new(unitStatus)) {
			t.Errorf("%s: accepted", line)
		}
	}
}

func TestStatusExitCodes(t *testing.T) {
	active := unitStatus{Name: "a", LoadState: "loaded", ActiveState: "active", SubState: "running", Supervised: true}
	reloading := unitStatus{Name: "r", LoadState: "loaded", ActiveState: "reloading", Supervised: true}
	dead := unitStatus{Name: "d", LoadState: "loaded", ActiveState: "inactive"}
	removed := unitStatus{Name: "g", LoadState: "not-found", ActiveState: "inactive", StateSince: new("2026-11-22T18:00:00Z")}
	none := unitStatus{Name: "n", LoadState: "not-found", ActiveState: "inactive"}
	for _, row := range []struct {
		why   string
		units []unitStatus
		want  int
	}{
		{"all active", []unitStatus{active, reloading}, exitOK},
		{"one is not", []unitStatus{active, dead}, exitNotActive},
		{"one ran and lost its file", []unitStatus{removed}, exitNotActive},
		{"one is unknown", []unitStatus{none, active, dead}, exitNoUnit},
		{"one is unknown, at the end", []unitStatus{dead, none}, exitNoUnit},
	} {
		f := newFake(t, func(_ request, say func(reply)) {
			say(helloReply)
			for i := range row.units {
				say(reply{Unit: &row.units[i]})
			}
			say(doneReply(exitOK))
		})
		code, out, errs := f.run("status", "x")
		if code != row.want {
			t.Errorf("%s: code %d, want %d", row.why, code, row.want)
		}
		if (row.want == exitNoUnit) != strings.Contains(errs, "no unit \"n\"") || strings.Contains(out, "\n\n\n") {
			t.Errorf("%s: stderr %q, stdout:\n%s", row.why, errs, out)
		}
	}
}

func TestStatusAsJSONIsAnArray(t *testing.T) {
	s := unitStatus{Name: "web", LoadState: "loaded", ActiveState: "active", Supervised: true}
	f := newFake(t, dyingDaemon(helloReply, reply{Unit: &s}, doneReply(exitOK)))
	f.json = true
	_, out, _ := f.run("status", "web")
	var got []map[string]any
	if err := json.Unmarshal([]byte(out), &got); err != nil || len(got) != 1 || got[0]["name"] != "web" {
		t.Fatalf("%v in %s", err, out)
	}
	for _, field := range []string{"name", "description", "unit_file", "load_state", "load_error", "active_state", "sub_state", "result", "main_pid",
		"shim_pid", "restarts", "started_at", "exit_code", "exit_signal", "memory_bytes", "cpu_seconds", "enabled", "changed_on_disk", "invocation_id"} {
		if _, ok := got[0][field]; !ok {
			t.Errorf("no field %s", field)
		}
	}
}

// TestListAsksForWhatItShows: CPU time is dear, for the kernel sums it up when it is asked, and the table has no column for it.
func TestListAsksForWhatItShows(t *testing.T) {
	cgroup := t.TempDir()
	for name, text := range map[string]string{"memory.current": "2097152\n", "cpu.stat": "usage_usec 1500000\nuser_usec 1\n"} {
		if err := os.WriteFile(filepath.Join(cgroup, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	watch, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(watch)
	if _, err := unix.InotifyAddWatch(watch, cgroup, unix.IN_OPEN); err != nil {
		t.Fatal(err)
	}
	s := unitStatus{Name: "web", LoadState: "loaded", ActiveState: "active", Supervised: true, MainPID: os.Getpid(), Cgroup: cgroup}
	for _, row := range []struct {
		json bool
		want string // in what is printed
		cpu  bool   // cpu.stat is read
	}{{false, "2.0M", false}, {true, `"memory_bytes":2097152,"cpu_seconds":1.5,`, true}} {
		f := newFake(t, dyingDaemon(helloReply, reply{Unit: &s}, doneReply(exitOK)))
		f.json = row.json
		if _, out, _ := f.run("list"); !strings.Contains(out, row.want) {
			t.Errorf("%q is not in:\n%s", row.want, out)
		}
		events := make([]byte, 4096)
		n, _ := unix.Read(watch, events)
		if got := bytes.Contains(events[:max(n, 0)], []byte("cpu.stat")); got != row.cpu {
			t.Errorf("json %v: cpu.stat is read: %v", row.json, got)
		}
	}
}

func TestStatusShowsTheLastTenLogLines(t *testing.T) {
	s := unitStatus{Name: "web", LoadState: "loaded", ActiveState: "active", Supervised: true}
	f := newFake(t, dyingDaemon(helloReply, reply{Unit: &s}, doneReply(exitOK)))
	var lines []string
	for i := range 20 {
		lines = append(lines, criLine(i, "stdout", "F", fmt.Sprint("line ", i)))
	}
	writeLog(t, f.client.home, "web", lines...)
	_, out, _ := f.run("status", "web")
	if strings.Contains(out, "line 9\n") || !strings.Contains(out, "\n\nNov 22 18:00:10.123   line 10\n") || !strings.HasSuffix(out, "line 19\n") {
		t.Errorf("got:\n%s", out)
	}
}

func TestDaemonStatusExitCodes(t *testing.T) {
	f := newFake(t)
	code, out, errs := f.run("daemon-status")
	sameText(t, out, "○ diakonosd is not running\n       Home: "+f.client.home.path+"\n")
	if code != exitNotActive || errs != "" {
		t.Errorf("code %d, stderr %q", code, errs)
	}
	f = newFake(t, dyingDaemon(helloReply, reply{Daemon: &daemonStatus{Running: true, Version: version, Home: "/h"}}, doneReply(exitOK)))
	f.json = true
	code, out, errs = f.run("daemon-status")
	var got daemonStatus
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != exitOK || !got.Running || got.Weaker == nil || errs != "" {
		t.Errorf("code %d, %v, stdout %s, stderr %q", code, err, out, errs)
	}
	f = newFake(t, silentDaemon(t))
	f.patience = time.Millisecond
	if code, out, _ := f.run("daemon-status"); code != exitFailed || out != "" {
		t.Errorf("a silent daemon: code %d, stdout %q", code, out)
	}
}

func TestKillWithoutADaemonAndOverADyingOne(t *testing.T) {
	t.Cleanup(func() { // `kill` makes this process a subreaper, and what other tests orphan is not to come here
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0); err != nil {
			t.Error(err)
		}
	})
	f := newFake(t, dyingDaemon(helloReply, jobReply("stop", "web", "done", "", 0, 4)))
	code, out, errs := f.run("kill")
	sameText(t, out, "stopped    web       4 ms\n")
	if code != exitOK || errs != "" {
		t.Errorf("code %d, stderr %q", code, errs)
	}
}

func TestWithoutAutostartNothingIsStarted(t *testing.T) {
	t.Setenv("DIAKONOS_NO_AUTOSTART", "1")
	f := newFake(t)
	code, _, errs := f.run("start", "web")
	sameText(t, errs, "diakonos: no daemon runs for "+f.client.home.path+", and DIAKONOS_NO_AUTOSTART forbids to start one\n"+
		"hint: `diakonos daemon` runs one in the foreground\n")
	if code != exitFailed {
		t.Errorf("code %d", code)
	}
}

func TestNotPermitted(t *testing.T) {
	f := newFake(t)
	f.connectOrStart = func() (*os.File, error) { return nil, &os.PathError{Op: "connect", Path: "/h", Err: syscall.EACCES} }
	f.client.home = home{"/nonexistent"} // as is all of a home that cannot be entered
	for _, verb := range []string{"start", "status"} {
		if code, _, errs := f.run(verb, "web"); code != exitNotPermit || !strings.Contains(errs, "permission denied") {
			t.Errorf("%s: code %d, stderr %q", verb, code, errs)
		}
	}
}

// ---- check

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name+".service")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	web := write("web", "[unit]\nRequires = [\"database\"]\n[service]\nExecStart = \"x\"\n")
	database := write("database", "[service]\nExecStart = \"x\"\n")
	code, out, errs := runCommand(t, "--service-dir", dir, "check")
	sameText(t, out, database+": ok\n"+web+": ok\n")
	if code != exitOK || errs != "" {
		t.Errorf("code %d, stderr %q", code, errs)
	}

	write("database", "[service]\nExecStart = \"x\"\nExecStrat = \"x\"\n")
	code, out, errs = runCommand(t, "check", web)
	sameText(t, out, web+": ok\n")
	if code != exitFailed || !strings.HasPrefix(errs, database+":3: ") || strings.Count(errs, "\n") != 1 {
		t.Errorf("a broken requirement: code %d, stderr %q", code, errs)
	}

	os.Remove(database)
	code, _, errs = runCommand(t, "--service-dir", dir, "check", "web")
	if code != exitFailed || !strings.Contains(errs, "database") {
		t.Errorf("a missing requirement: code %d, stderr %q", code, errs)
	}

	code, out, _ = runCommand(t, "--service-dir", dir, "--json", "check", "web")
	var got []checkMistake
	if err := json.Unmarshal([]byte(out), &got); err != nil || len(got) != 1 || code != exitFailed {
		t.Errorf("as JSON: code %d, %v, %s", code, err, out)
	}
	if code, _, errs := runCommand(t, "--service-dir", dir, "check", "none"); code != exitNoUnit || errs == "" {
		t.Errorf("an unknown unit: code %d, stderr %q", code, errs)
	}
}
