// Role: tests of unit.go; keeps docs/units.md equal to the table of keys.
// Runs in: go test.
// Owns: the part of docs/units.md between its markers.
// Uses: unit, command, value.

package main

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

var updateDocs = flag.Bool("update", false, "rewrite docs/units.md from the table of keys, and testdata/wire of this version")

// testPlace: an ordinary user with a project.
var testPlace = place{EUID: 1000, RuntimeDir: "/run/user/1000"}

const testPath = "/srv/app/services/web.service"

func parseTest(t *testing.T, text string) *unit {
	t.Helper()
	u, err := parseUnit(testPath, []byte(text), testPlace)
	if err != nil {
		t.Fatalf("%s\n%v", text, err)
	}
	return u
}

func TestUnitOfTheExample(t *testing.T) {
	got := parseTest(t, `
[unit]
Description = "Worker service"
Requires = ["database"]
After = ["database"]

[service]
Type = "simple"
ExecStart = "sleep 10"
Environment = ["LOG_LEVEL=info", "WORKER_ID=1"]
Restart = "on-failure"
RestartSec = 3
`)
	want := &unit{
		Name: "web", Path: testPath,
		Description: "Worker service", Requires: words("database"), After: words("database"),
		Type: typeSimple, ExecStart: []command{{Argv: words("sleep", "10"), Path: "sleep"}},
		GuessMainPID: true, NotifyAccess: notifyNone,
		Restart: restartOnFailure, RestartSec: 3 * time.Second, RestartMaxDelaySec: time.Minute,
		StartLimitIntervalSec: 10 * time.Second,
		TimeoutStartSec:       90 * time.Second, TimeoutStopSec: 90 * time.Second, RuntimeMaxSec: infinity,
		KillSignal: syscall.SIGTERM, KillMode: killControlGroup, SendSIGKILL: true,
		WorkingDirectory: "/srv/app", Environment: words("LOG_LEVEL=info", "WORKER_ID=1"),
		UMask: 0o022, LogMaxSize: 10 << 20, LogMaxFiles: 5,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestShippedUnits(t *testing.T) {
	names, err := findUnits("testdata/services")
	if err != nil || !slices.Contains(names, "worker") || !slices.Contains(names, "database") {
		t.Fatalf("got %q, %v; want worker and database", names, err)
	}
	for _, name := range names {
		if _, err := loadUnit(unitPath("testdata/services", name), testPlace); err != nil {
			t.Error(err)
		}
	}
}

// TestUnitKeys sets each key to something else than its default and looks at the field of the same name.
func TestUnitKeys(t *testing.T) {
	sh := command{Argv: words("sh", "-c", "x y"), Path: "sh", Verbatim: true}
	run := []command{{Argv: words("run", "$X"), Path: "run", IgnoreFailure: true}, sh}
	two := words("a", "b@1")
	set := exitSet{Codes: []int{7, 75}, Signals: []syscall.Signal{syscall.SIGUSR1}}
	for _, c := range []struct {
		key, value string
		want       any
	}{
		{"Description", `"A b"`, "A b"},
		{"Documentation", `"man:a(1) https://b"`, words("man:a(1)", "https://b")},
		{"After", `["a", "b@1.service", "a"]`, two},
		{"Before", `"a b@1"`, two},
		{"Requires", `["a", "b@1"]`, two},
		{"Wants", `["a", "b@1"]`, two},
		{"BindsTo", `["a", "b@1"]`, two},
		{"PartOf", `["a", "b@1"]`, two},
		{"Conflicts", `["a", "b@1"]`, two},
		{"Type", `"forking"`, typeForking},
		{"ExecStartPre", `["-run $X", ["sh", "-c", "x y"]]`, run},
		{"ExecStart", `[["sh", "-c", "x y"]]`, []command{sh}},
		{"ExecStartPost", `["-run $X", ["sh", "-c", "x y"]]`, run},
		{"ExecReload", `["-run $X", ["sh", "-c", "x y"]]`, run},
		{"ExecStop", `["-run $X", ["sh", "-c", "x y"]]`, run},
		{"ExecStopPost", `["-run $X", ["sh", "-c", "x y"]]`, run},
		{"PIDFile", `"web/web.pid"`, "/run/user/1000/web/web.pid"},
		{"GuessMainPID", `false`, false},
		{"RemainAfterExit", `"yes"`, true},
		{"NotifyAccess", `"all"`, notifyAll},
		{"Restart", `"on-abnormal"`, restartOnAbnormal},
		{"RestartSec", `0`, time.Duration(0)},
		{"RestartMaxDelaySec", `"5min"`, 5 * time.Minute},
		{"RestartPreventExitStatus", `[7, "TEMPFAIL", "USR1"]`, set},
		{"RestartForceExitStatus", `"7 75 SIGUSR1"`, set},
		{"SuccessExitStatus", `["7 TEMPFAIL", "SIGUSR1"]`, set},
		{"StartLimitBurst", `3`, 3},
		{"TimeoutStartSec", `0`, infinity},
		{"TimeoutStopSec", `1.5`, 1500 * time.Millisecond},
		{"RuntimeMaxSec", `"1h"`, time.Hour},
		{"KillSignal", `"INT"`, syscall.SIGINT},
		{"KillMode", `"mixed"`, killMixed},
		{"SendSIGKILL", `"no"`, false},
		{"WorkingDirectory", `"/var/lib/web/"`, "/var/lib/web"},
		{"Environment", `["A=b c", "D="]`, words("A=b c", "D=")},
		{"EnvironmentFile", `["web.env", "-/etc/web.env"]`, []environmentFile{{"/srv/app/web.env", false}, {"/etc/web.env", true}}},
		{"PassEnvironment", `"HTTP_PROXY TZ"`, words("HTTP_PROXY", "TZ")},
		{"UnsetEnvironment", `["LANG", "TZ=UTC"]`, words("LANG", "TZ=UTC")},
		{"User", `"www-data"`, "www-data"},
		{"Group", `33`, "33"},
		{"UMask", `0o027`, uint32(0o027)},
		{"LogMaxSize", `4096`, int64(4096)},
		{"LogMaxFiles", `1`, 1},
	} {
		k := findKey(sectionUnit, c.key)
		if k == nil {
			k = findKey(sectionService, c.key)
		}
		if k == nil {
			t.Errorf("%s is not in the table", c.key)
			continue
		}
		text := k.section + "." + c.key + " = " + c.value + "\n"
		if c.key != "ExecStart" {
			text += "service.ExecStart = \"x\"\n"
		}
		u := parseTest(t, text)
		got := reflect.ValueOf(u).Elem().FieldByName(c.key).Interface()
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s = %s: got %v; want %v", c.key, c.value, got, c.want)
		}
		checkRoundTrip(t, u)
	}
}

// checkRoundTrip: a unit travels to its shim as JSON.
func checkRoundTrip(t *testing.T, u *unit) {
	t.Helper()
	checkTravels(t, u)
}

// TestKeyDefaults: writing a default into the file changes nothing.
func TestKeyDefaults(t *testing.T) {
	const start = "service.ExecStart = \"x\"\n"
	plain := parseTest(t, start)
	for _, k := range unitKeys {
		if k.def == "" {
			continue
		}
		if u := parseTest(t, start+k.section+"."+k.name+" = "+k.def); !reflect.DeepEqual(u, plain) {
			t.Errorf("%s = %s is not the default\ngot  %+v\nwant %+v", k.name, k.def, u, plain)
		}
	}
}

func TestUnitCombinations(t *testing.T) {
	for _, c := range []struct {
		name, text string
		holds      func(u *unit) bool
	}{
		{"oneshot starts without limit", `Type = "oneshot"
ExecStart = "x"`, func(u *unit) bool { return u.TimeoutStartSec == infinity }},
		{"oneshot keeps a limit that is given", `Type = "oneshot"
TimeoutStartSec = 5
ExecStart = "x"`, func(u *unit) bool { return u.TimeoutStartSec == 5*time.Second }},
		{"RuntimeMaxSec has no effect on oneshot", `Type = "oneshot"
RuntimeMaxSec = 5
ExecStart = "x"`, func(u *unit) bool { return u.RuntimeMaxSec == infinity }},
		{"oneshot may have several commands", `Type = "oneshot"
ExecStart = ["a", "b"]`, func(u *unit) bool { return len(u.ExecStart) == 2 }},
		{"oneshot needs no ExecStart", `Type = "oneshot"
RemainAfterExit = true
ExecStop = "x"`, func(u *unit) bool { return u.ExecStart == nil }},
		{"notify hears the main process", `Type = "notify"
NotifyAccess = "none"
ExecStart = "x"`, func(u *unit) bool { return u.NotifyAccess == notifyMain }},
		{"notify hears more on request", `Type = "notify"
NotifyAccess = "all"
ExecStart = "x"`, func(u *unit) bool { return u.NotifyAccess == notifyAll }},
		{"a start limit has 10 s", `StartLimitBurst = 5
ExecStart = "x"`, func(u *unit) bool { return u.StartLimitBurst == 5 && u.StartLimitIntervalSec == 10*time.Second }},
		{"an interval of 0 is no start limit", `StartLimitBurst = 5
StartLimitIntervalSec = 0
ExecStart = "x"`, func(u *unit) bool { return u.StartLimitBurst == 0 }},
		{"a long RestartSec raises the default maximum", `RestartSec = "5min"
ExecStart = "x"`, func(u *unit) bool { return u.RestartMaxDelaySec == 5*time.Minute }},
		{"infinity is no timeout", `TimeoutStopSec = "infinity"
ExecStart = "x"`, func(u *unit) bool { return u.TimeoutStopSec == infinity }},
		{"a directory that is given", `WorkingDirectory = "/x"
ExecStart = "x"`, func(u *unit) bool { return u.WorkingDirectorySet }},
		{"a directory that may be missing", `WorkingDirectory = "-/x"
ExecStart = "x"`, func(u *unit) bool { return u.WorkingDirectory == "/x" && !u.WorkingDirectorySet }},
		{"the home of the user", `WorkingDirectory = "~"
ExecStart = "x"`, func(u *unit) bool { return u.WorkingDirectory == "~" && u.WorkingDirectorySet }},
		{"one variable as a string", `Environment = "A=b C=d"
ExecStart = "x"`, func(u *unit) bool { return slices.Equal(u.Environment, words("A=b C=d")) }},
	} {
		u := parseTest(t, "[service]\n"+c.text)
		if !c.holds(u) {
			t.Errorf("%s: it does not in %+v", c.name, u)
		}
		checkRoundTrip(t, u)
	}
}

func TestUnitPlaces(t *testing.T) {
	for _, c := range []struct {
		dir, home string
		euid      int
		want      place
	}{
		{"/srv/app/services", "/home/x/.diakonos", 1000, place{1000, "/run/user/1000", false, false}},
		{"/home/x/.diakonos/services/", "/home/x/.diakonos", 1000, place{1000, "/run/user/1000", false, true}},
		{"/etc/diakonos", "/run/diakonos", 0, place{0, "/run", false, true}},
	} {
		if got := placeOf(c.dir, c.home, c.euid, "/run/user/1000", false); got != c.want {
			t.Errorf("placeOf(%q, %q, %d) = %+v; want %+v", c.dir, c.home, c.euid, got, c.want)
		}
	}
	kept, err := parseUnit("/srv/app/services/web.service", []byte("[service]\nExecStart = \"x\"\n"), place{Kept: true})
	if err != nil || kept.LogMaxSize != 1<<20 || kept.LogMaxFiles != 1 {
		t.Errorf("in a container logs have %d bytes and %d rotated files, %v", kept.LogMaxSize, kept.LogMaxFiles, err)
	}
	text := "[service]\nExecStart = \"x\"\nPIDFile = \"x.pid\"\n"
	u, err := parseUnit("/etc/diakonos/web.service", []byte(text), place{0, "/run", false, true})
	if err != nil || u.PIDFile != "/run/x.pid" || u.WorkingDirectory != "" || u.WorkingDirectorySet {
		t.Errorf("got %+v, %v; want /run/x.pid and no working directory", u, err)
	}
	for at, text := range map[place]string{
		{EUID: 1000}:   text,
		{Shared: true}: "[service]\nExecStart = \"x\"\nEnvironmentFile = \"x.env\"\n",
	} {
		if _, err := parseUnit(testPath, []byte(text), at); err == nil || !strings.Contains(err.Error(), ":3: ") || !strings.Contains(err.Error(), "absolute path") {
			t.Errorf("%+v: got %v; want line 3 to ask for an absolute path", at, err)
		}
	}
}

// mistakesOf returns the error of a unit, one mistake a line, as LINE: text.
func mistakesOf(text string) []string {
	_, err := parseUnit(testPath, []byte(text), testPlace)
	if err == nil {
		return nil
	}
	return strings.Split(strings.ReplaceAll(err.Error(), testPath+":", ""), "\n")
}

func TestUnitMistakes(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"syntax error alone", "[unit]\nRubbish = 1\n[service\n", words("3: expected")},
		{"unknown key", "[service]\nExecStrat = \"x\"", words(`2: unknown key "ExecStrat" in [service], did you mean "ExecStart"?`)},
		{"key in the wrong case", "[service]\nexecstart = \"x\"", words(`2: unknown key "execstart" in [service], did you mean "ExecStart"?`)},
		{"key of the other section", "[unit]\nStartLimitBurst = 3\n[service]\nExecStart = \"x\"",
			words(`2: key "StartLimitBurst" belongs in [service], not in [unit]`)},
		{"ExecStart in the wrong section", "[unit]\nExecStart = \"x\"\n[service]\n", words(`2: key "ExecStart" belongs in [service], not in [unit]`)},
		{"misspelled key of the other section", "[service]\nExecStart = \"x\"\nRequire = \"y\"",
			words(`3: unknown key "Require" in [service], did you mean "Requires" in [unit]?`)},
		{"key before any section", "Type = \"simple\"\n[service]\nExecStart = \"x\"", words(`1: key "Type" stands outside of a section, it belongs in [service]`)},
		{"unknown key before any section", "Nice = 1\n[service]\nExecStart = \"x\"", words(`1: unknown key "Nice" outside of a section`)},
		{"sections in the wrong case", "[Unit]\nDescription = \"x\"\n[Service]\nExecStrt = \"x\"", words(
			"1: unknown section [Unit]: sections are lower case, write [unit]",
			"3: unknown section [Service]: sections are lower case, write [service]",
			`4: unknown key "ExecStrt" in [service], did you mean "ExecStart"?`)},
		{"section Install", "[service]\nExecStart = \"x\"\n[Install]\nWantedBy = \"multi-user.target\"",
			words("3: unknown section [Install]: run `diakonos enable web` instead")},
		{"misspelled section", "[services]\nExecStart = \"x\"", words("1: unknown section [services], did you mean [service]?")},
		{"unknown section", "[service]\nExecStart = \"x\"\n[timer]", words("3: unknown section [timer]")},
		{"odd section", "[service]\nExecStart = \"x\"\n[\"a\\n\"]", words(`3: unknown section ["a\n"]`)},
		{"array of sections", "[[service]]\nExecStart = \"x\"", words("1: service must be a section: [service]")},
		{"section within a section", "[service]\nExecStart = \"x\"\n[service.Environment]\nA = \"b\"", words("3: Environment: want a string, not a table")},
		{"no section", "", words("1: section [service] is missing")},
		{"no ExecStart", "[unit]\n\n[service]\nType = \"exec\"", words("3: ExecStart is missing")},
		{"empty ExecStart", "[service]\nExecStart = []", words("2: ExecStart is missing")},
		{"oneshot without commands", "[service]\nType = \"oneshot\"", words("1: ExecStart is missing, and there is no ExecStop either")},
		{"oneshot with ExecStop only", "[service]\nType = \"oneshot\"\nExecStop = \"x\"", words("1: ExecStart is missing; without it Type = \"oneshot\" needs RemainAfterExit = true")},
		{"exact arguments misread", "[service]\nExecStart = [\"sleep\", \"10\"]",
			words(`2: ExecStart: 2 commands, but only Type = "oneshot" may have several; one command of exact arguments is ExecStart = [["sleep", "10"]]`)},
		{"several commands", "[service]\nExecStart = \"a 1; b\"\n", nil},
		{"several commands by semicolon", "[service]\nExecStart = \"a 1 ; b\"\n", words(`2: ExecStart: 2 commands, but only Type = "oneshot" may have several`)},
		{"oneshot that always restarts", "[service]\nExecStart = \"x\"\nRestart = \"always\"\nType = \"oneshot\"",
			words(`3: Restart = "always" cannot be combined with Type = "oneshot"`)},
		{"oneshot that restarts on success", "[service]\nExecStart = \"x\"\nRestart = \"on-success\"\nType = \"oneshot\"",
			words(`3: Restart = "on-success" cannot be combined with Type = "oneshot"`)},
		{"maximum below the pause", "[service]\nExecStart = \"x\"\nRestartSec = 5\nRestartMaxDelaySec = 4", words("4: RestartMaxDelaySec is smaller than RestartSec")},
		{"no maximum", "[service]\nExecStart = \"x\"\nRestartMaxDelaySec = 0", words("3: RestartMaxDelaySec cannot be 0")},
		{"endless pause", "[service]\nExecStart = \"x\"\nRestartSec = \"infinity\"\nRestartMaxDelaySec = \"infinity\"",
			words("3: RestartSec: cannot be infinity", "4: RestartMaxDelaySec: cannot be infinity")},
		{"interval without burst", "[service]\nExecStart = \"x\"\nStartLimitIntervalSec = 5", words("3: StartLimitIntervalSec has no effect without StartLimitBurst")},
		{"unit that requires itself", "[unit]\nRequires = \"web\"\nAfter = [\"a\", \"web.service\"]\n[service]\nExecStart = \"x\"",
			words("2: Requires: a unit cannot name itself here", "3: After: a unit cannot name itself here")},
		{"conflict with a requirement", "[unit]\nRequires = \"a b\"\nConflicts = [\"b\"]\n[service]\nExecStart = \"x\"", words(`3: Conflicts: "b" is in Requires too`)},
		{"conflict with a binding", "[unit]\nBindsTo = \"b\"\nConflicts = [\"b\"]\n[service]\nExecStart = \"x\"", words(`3: Conflicts: "b" is in BindsTo too`)},
		{"before and after", "[unit]\nBefore = \"b\"\nAfter = [\"b\"]\n[service]\nExecStart = \"x\"", words(`2: Before: "b" is in After too`)},
		{"bad unit names", "[unit]\nAfter = [\"a/b\", \"\"]\nBefore = [\"a/b\", 1]\n[service]\nExecStart = \"x\"",
			words(`2: After: unit name "a/b" contains '/'`, "2: After: a unit name cannot be empty", "3: Before: want a string, not a number")},
		{"all at once, by line", "[service]\nType = \"simpel\"\nRestart = 1\nKillMode = \"all\"\n\nRestartSec = \"5x\"\nExecStart = \"\"\nFoo = [\n]\nBar = 1", words(
			`2: Type: unknown value "simpel", did you mean "simple"?`,
			`3: Restart: want a string, not a number`,
			`4: KillMode: unknown value "all", choose one of control-group, mixed, process, none`,
			`6: RestartSec: cannot read duration "5x": unknown unit "x"`,
			`7: ExecStart: the command is empty`,
			`8: unknown key "Foo" in [service]`,
			`10: unknown key "Bar" in [service]`)},
		{"bad values", "[service]\nExecStart = \"x\"\nSendSIGKILL = 1\nKillSignal = \"KILLL\"\nUMask = 22\nLogMaxSize = 4095\nLogMaxFiles = 0\nStartLimitBurst = -1\nSuccessExitStatus = 256", words(
			`3: SendSIGKILL: want true or false, not a number`,
			`4: KillSignal: unknown signal "KILLL"`,
			`5: UMask: a plain number is not octal, write "0022" or 0o022`,
			`6: LogMaxSize: want at least 4096 bytes`,
			`7: LogMaxFiles: want a whole number from 1 to 100000`,
			`8: StartLimitBurst: want a whole number from 0 to 100`,
			`9: SuccessExitStatus: exit code "256" is not between 0 and 255`)},
		{"endless lists", "[unit]\nAfter = \"" + strings.Repeat("a ", maxItems+1) + "\"\n[service]\nExecStart = \"x\"\nEnvironment = [" + strings.Repeat("'A=1',", maxItems+1) + "]", words(
			"2: After: a list of more than 4096 items", "5: Environment: a list of more than 4096 items")},
		{"bad paths", "[service]\nExecStart = \"x\"\nWorkingDirectory = \"data\"\nPIDFile = \"\"\nEnvironmentFile = [\"-\"]", words(
			`3: WorkingDirectory: want an absolute path or "~", not "data"`,
			`4: PIDFile: want the path of a file`,
			`5: EnvironmentFile: want the path of a file`)},
		{"bad accounts", "[service]\nExecStart = \"x\"\nUser = \"a b\"\nGroup = 65535", words(
			`3: User: "a b" is neither the name nor the number of an account`,
			`4: Group: 65535 is not the number of an account`)},
		{"one mistake a value", "[service]\nExecStart = \"x\"\nUser = -1\nLogMaxSize = \"1X\"", words(
			`3: User: -1 is not the number of an account`,
			`4: LogMaxSize: cannot read size "1X"`)},
		{"signals in lower case", "[service]\nExecStart = \"x\"\nKillSignal = \"sigint\"\nSuccessExitStatus = \"1 rtmin+3\"", words(
			`3: KillSignal: unknown signal "sigint", did you mean "SIGINT"?`,
			`4: SuccessExitStatus: "rtmin+3" is neither an exit code nor a signal, did you mean "RTMIN+3"?`)},
		{"NUL", "[service]\nExecStart = \"x\"\nEnvironment = \"A=\\u0000\"\nUser = \"a\\u0000b\"", words("3: Environment: NUL bytes", "4: User: NUL bytes")},
		{"bad variables", "[service]\nExecStart = \"x\"\nEnvironment = [\"hidden\", \"1A=hidden\"]\nPassEnvironment = \"A=hidden\"\nUnsetEnvironment = [\"A-B=hidden\"]", words(
			`3: Environment: an entry is not of the form NAME=value`,
			`3: Environment: "1A" is not the name of a variable`,
			`4: PassEnvironment: want names alone, without =`,
			`5: UnsetEnvironment: "A-B" is not the name of a variable`)},
		{"lines behind long values", "[service]\nExecStart = [\n  # comment = 1\n  [\"sh\", '''\nFoo = 1\n'''],\n]\nservice = 1\n\"Fo\\u006f\" = 2", words(
			`8: unknown key "service" in [service]`, `9: unknown key "Foo" in [service]`)},
	} {
		got := mistakesOf(c.text)
		same := slices.EqualFunc(got, c.want, strings.HasPrefix)
		if !same {
			t.Errorf("%s: got\n  %s\nwant\n  %s", c.name, strings.Join(got, "\n  "), strings.Join(c.want, "\n  "))
		}
		if strings.Contains(strings.Join(got, ""), "hidden") {
			t.Errorf("%s: a message shows a value of the environment: %s", c.name, got)
		}
	}
}

// TestKeysOfSystemd: keys that we do not have lead to no wrong guess.
func TestKeysOfSystemd(t *testing.T) {
	for _, key := range []string{
		"ExecCondition", "ExecStartPreX", "TimeoutSec", "TimeoutAbortSec", "RestartMode", "RestartSteps", "WatchdogSec",
		"LimitNOFILE", "Nice", "OOMPolicy", "StandardOutput", "Slice", "Sockets", "SupplementaryGroups", "Requisite",
		"Upholds", "OnFailure", "ConditionPathExists", "ReloadSignal", "FinalKillSignal", "BusName",
	} {
		got := mistakesOf("[service]\nExecStart = \"x\"\n" + key + " = 1")
		want := fmt.Sprintf("3: unknown key %q in [service]", key)
		if key == "ExecStartPreX" {
			want += `, did you mean "ExecStartPre"?` // the test sees guesses
		}
		if !slices.Equal(got, []string{want}) {
			t.Errorf("got %q; want %q", got, want)
		}
	}
}

func TestUnitErrorHasMistakes(t *testing.T) {
	_, err := parseUnit(testPath, []byte("[service]\nX = 1\nY = 2"), testPlace)
	var wrong unitError
	if !errors.As(err, &wrong) || wrong.Path != testPath || len(wrong.Mistakes) != 3 {
		t.Fatalf("got %#v; want three mistakes of %s", err, testPath)
	}
	if wrong.Mistakes[2] != (mistake{3, `unknown key "Y" in [service]`}) {
		t.Errorf("got %+v", wrong.Mistakes[2])
	}
}

func TestUnitName(t *testing.T) {
	long := strings.Repeat("x", 247)
	for arg, want := range map[string]string{
		"web": "web", "web.service": "web", "a-b_c:d.e@f\\x2d": "a-b_c:d.e@f\\x2d", long: long, long + ".service": long,
		"web.socket": "web.socket", "..x": "..x",
	} {
		if got, err := unitName(arg); err != nil || got != want {
			t.Errorf("unitName(%q) = %q, %v; want %q", arg, got, err, want)
		}
	}
	for _, arg := range []string{
		"", ".service", ".", "..", "..service", "...service", "a/b", "../a", "a b", "a\n", "é", "a\x00", "a\xff", "a*",
		long + "x", long + "x.service", "a.service.service", "\u0161", "\u2d2d",
	} {
		if got, err := unitName(arg); err == nil {
			t.Errorf("unitName(%q) = %q; want an error", arg, got)
		}
	}
}

func TestFindUnits(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"b.service", "b-1.service", "a@1.service", ".hidden.service", "c.service~", "d.socket", "e f.service", ".service"} {
		writeTest(t, filepath.Join(dir, name), "")
	}
	if err := os.Mkdir(filepath.Join(dir, "g.service"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("b.service", filepath.Join(dir, "l.service")); err != nil {
		t.Fatal(err)
	}
	got, err := findUnits(dir)
	if want := words("a@1", "b", "b-1", "l"); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	if _, err := findUnits(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v; want an error that says the directory does not exist", err)
	}
	if got := unitPath("/a", "b@1"); got != "/a/b@1.service" {
		t.Errorf("got %q; want /a/b@1.service", got)
	}
}

func writeTest(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

const smallUnit = "[service]\nExecStart = \"x\"\n"

func TestLoadUnit(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "web.service")
	writeTest(t, path, smallUnit)
	u, err := loadUnit(path, testPlace)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if u.Path != path || u.Name != "web" || u.Size != int64(len(smallUnit)) || u.ModTime != info.ModTime().UnixNano() ||
		u.Inode != info.Sys().(*syscall.Stat_t).Ino || u.WorkingDirectory != filepath.Dir(dir) {
		t.Errorf("got %+v of %s", u, path)
	}
}

func TestLoadUnitShowsThePathAsGiven(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	writeTest(t, "web.service", "[service]\n")
	_, err := loadUnit("web.service", testPlace)
	if want := "web.service:1: ExecStart is missing"; err == nil || err.Error() != want {
		t.Errorf("got %v; want %s", err, want)
	}
	writeTest(t, "web.service", smallUnit)
	u, err := loadUnit("web.service", testPlace)
	if err != nil || !filepath.IsAbs(u.Path) {
		t.Errorf("got %+v, %v; want an absolute path", u, err)
	}
}

func TestLoadUnitRefuses(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	writeTest(t, at("large.service"), strings.Repeat("x", maxUnitBytes+1))
	if err := os.Truncate(at("large.service"), 10<<20); err != nil {
		t.Fatal(err)
	}
	writeTest(t, at("large-comment.service"), smallUnit+strings.Repeat("#", maxUnitBytes-len(smallUnit)+1))
	writeTest(t, at("unit.toml"), smallUnit)
	writeTest(t, at("a b.service"), smallUnit)
	for _, err := range []error{
		os.Mkdir(at("directory.service"), 0o755),
		syscall.Mkfifo(at("fifo.service"), 0o600),
		os.Symlink("/dev/zero", at("device.service")),
		os.Symlink("loop.service", at("loop.service")),
		os.Symlink("nowhere", at("dangling.service")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"large.service":         "larger than 1 MiB",
		"large-comment.service": "larger than 1 MiB",
		"directory.service":     "not a regular file",
		"fifo.service":          "not a regular file",
		"device.service":        "not a regular file",
		"loop.service":          "cannot read unit file",
		"dangling.service":      `a link to "nowhere", which is not there`,
		"unit.toml":             "ends in .service",
		"a b.service":           "contains ' '",
	} {
		if _, err := loadUnit(at(name), testPlace); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), at(name)) {
			t.Errorf("%s: got %v; want %q and the path", name, err, want)
		}
	}
	if _, err := loadUnit(at("none.service"), testPlace); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v; want an error that says the file does not exist", err)
	}
	// The largest file that is allowed.
	writeTest(t, at("full.service"), smallUnit+strings.Repeat("#", maxUnitBytes-len(smallUnit)))
	if _, err := loadUnit(at("full.service"), testPlace); err != nil {
		t.Error(err)
	}
}

// fakeInfo is a file of any owner and mode.
type fakeInfo struct {
	fs.FileInfo
	mode fs.FileMode
	stat syscall.Stat_t
}

func (f fakeInfo) Mode() fs.FileMode { return f.mode }
func (f fakeInfo) Size() int64       { return 1 }
func (f fakeInfo) Sys() any          { return &f.stat }

func TestUnitFilesOfRoot(t *testing.T) {
	for _, c := range []struct {
		name     string
		euid     int
		mode     fs.FileMode
		uid, gid uint32
		want     string
	}{
		{"plain", 0, 0o644, 0, 0, ""},
		{"writable by root's group", 0, 0o664, 0, 0, ""},
		{"read by another group", 0, 0o640, 0, 50, ""},
		{"writable by all", 0, 0o646, 0, 0, "writable by all users"},
		{"writable by a group", 0, 0o664, 0, 50, "writable by group 50"},
		{"of a user", 0, 0o600, 1000, 0, "owned by user 1000"},
		{"of a user, for a user", 1000, 0o666, 1001, 50, ""},
	} {
		err := checkUnitFile("/x.service", fakeInfo{mode: c.mode, stat: syscall.Stat_t{Uid: c.uid, Gid: c.gid}}, c.euid)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v; want %q", c.name, err, c.want)
		}
	}
	path := filepath.Join(t.TempDir(), "web.service")
	writeTest(t, path, smallUnit)
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := loadUnit(path, place{EUID: 0, RuntimeDir: "/run"}); err == nil {
		t.Error("root's daemon loads a file that all may write")
	}
	if _, err := loadUnit(path, testPlace); err != nil {
		t.Errorf("a user's daemon: %v", err)
	}
}

// ---- the table of keys

// TestKeyTable: the table and the fields of unit are the same keys.
func TestKeyTable(t *testing.T) {
	own := words("Name", "Path", "ModTime", "Size", "Inode", "WorkingDirectorySet")
	var fields, names []string
	for f := range reflect.TypeFor[unit]().Fields() {
		if !slices.Contains(own, f.Name) {
			fields = append(fields, f.Name)
		}
	}
	for _, k := range unitKeys {
		names = append(names, k.name)
		if k.kind == "" || !strings.HasSuffix(k.doc, ".") || k.read == nil {
			t.Errorf("%s: kind, doc or reader is missing", k.name)
		}
	}
	slices.Sort(fields)
	slices.Sort(names)
	if !slices.Equal(fields, names) {
		t.Errorf("fields of unit\n%q\ntable\n%q", fields, names)
	}
}

const docsBegin, docsEnd = "<!-- keys: made from the table in unit.go by go test -run UnitDocs -update -->\n", "<!-- end of keys -->\n"

func TestUnitDocs(t *testing.T) {
	const path = "docs/units.md"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), docsBegin)
	_, after, ok2 := strings.Cut(rest, docsEnd)
	if !ok || !ok2 {
		t.Fatalf("%s has no markers %q and %q", path, docsBegin, docsEnd)
	}
	want := before + docsBegin + keyTables() + docsEnd + after
	if want == string(text) {
		return
	}
	if !*updateDocs {
		t.Fatalf("%s is not what the table of keys says; run go test -run UnitDocs -update", path)
	}
	if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

func keyTables() string {
	var b strings.Builder
	for _, section := range []string{sectionUnit, sectionService} {
		fmt.Fprintf(&b, "\n## Keys of `[%s]`\n\n| key | value | default | |\n|---|---|---|---|\n", section)
		for _, k := range unitKeys {
			if k.section != section {
				continue
			}
			def := ""
			if k.def != "" {
				def = "`" + k.def + "`"
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", k.name, k.kind, def, strings.ReplaceAll(k.doc, "|", `\|`))
		}
	}
	return b.String() + "\n"
}

// checkTravels: a unit reaches the shim as it was, by the codec that carries it there.
func checkTravels(t *testing.T, u *unit) {
	t.Helper()
	var back unit
	if err := decode(encode(nil, u), &back); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(u, &back) {
		t.Errorf("the codec changes the unit\nfrom %+v\nto   %+v", u, &back)
	}
}
