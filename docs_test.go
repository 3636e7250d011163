// Role: checks that the documents say what must not be lost: the systemd unit, README; README has the verbs of `help`
// and the states of the state machine; the tests that reliability.md names exist.
// Runs in: go test.
// Owns: nothing.
// Uses: client, supervise.

package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// readSystemdUnit reads `Key=value` lines by section; a key that stands twice keeps its last value.
func readSystemdUnit(t *testing.T, file string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	keys, section := map[string]string{}, ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		key, value, pair := strings.Cut(line, "=")
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
		case line[0] == '[':
			section = strings.Trim(line, "[]")
		case !pair || section == "":
			t.Errorf("%s: not a line of a unit: %q", file, line)
		default:
			keys[section+"."+key] = value
		}
	}
	return keys
}

// TestSystemdUnit: a crash of the daemon must not take the services, nor may systemd's limits.
func TestSystemdUnit(t *testing.T) {
	keys := readSystemdUnit(t, "docs/diakonosd.service")
	for key, want := range map[string]string{
		"Service.KillMode":       "process",
		"Service.OOMPolicy":      "continue",
		"Service.Delegate":       "yes",
		"Service.TasksMax":       "infinity",
		"Service.TimeoutStopSec": "infinity",
		"Service.Restart":        "always",
		"Service.Type":           "simple",
		"Service.ExecStart":      "/usr/local/bin/diakonosd",
		"Install.WantedBy":       "multi-user.target",
	} {
		if keys[key] != want {
			t.Errorf("%s: got %q, want %q", key, keys[key], want)
		}
	}
	if stop := keys["Service.ExecStop"]; !strings.Contains(stop, "stopping") || !strings.Contains(stop, "diakonos kill") {
		t.Errorf("Service.ExecStop: got %q, want `diakonos kill` when the system is stopping only", stop)
	}
}

// TestReadme: the first command builds and runs the main job, the second passes the tests; it stays short.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "\n"); n > 300 {
		t.Errorf("%d lines, want at most 300", n)
	}
	var commands []string
	for line := range strings.Lines(string(text)) {
		if command, ok := strings.CutPrefix(line, "    "); ok && len(commands) < 2 {
			commands = append(commands, strings.TrimSpace(command))
		}
	}
	if len(commands) < 2 || !strings.Contains(commands[0], "go build") || !strings.Contains(commands[0], "testdata/services start worker") {
		t.Errorf("first command: got %q, want one that builds and runs a unit of testdata/services", commands)
	}
	if len(commands) < 2 || !strings.HasPrefix(commands[1], "go test ") {
		t.Errorf("second command: got %q, want the tests", commands)
	}
}

// TestReadmeVerbs: the table of README is the one of `diakonos help`, in its order and its words.
func TestReadmeVerbs(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "\n| verb | what it does |\n|---|---|\n")
	got, _, _ := strings.Cut(rest, "\n\n")
	var want strings.Builder
	for _, v := range clientVerbs() {
		want.WriteString("| `" + strings.TrimSpace(v.name+" "+v.args) + "` | " + v.brief + " |\n")
	}
	if got+"\n" != want.String() {
		t.Errorf("got\n%s\nwant\n%s", got, want.String())
	}
}

// TestReadmeStates: each sub-state stands in the row of its active state, and nothing else does.
func TestReadmeStates(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "\n| state | sub-states | |\n|---|---|---|\n")
	table, _, _ = strings.Cut(table, "\n\n")
	left := slices.Clone(subStates[:])
	for row := range strings.Lines(table) {
		cells := strings.Split(row, "|")
		if len(cells) < 4 {
			t.Fatalf("got row %q, want three cells", row)
		}
		state := strings.Trim(cells[1], " `")
		for sub := range strings.FieldsSeq(strings.ReplaceAll(cells[2], "`", " ")) {
			at := slices.Index(left, sub)
			if at < 0 || activeOf(sub) != state {
				t.Errorf("%s stands under %s, which is wrong", sub, state)
				continue
			}
			left = slices.Delete(left, at, at+1)
		}
	}
	if len(left) > 0 {
		t.Errorf("not in the table: %v", left)
	}
}

// TestReliability: who wants to see a bug finds the test that shows it.
func TestReliability(t *testing.T) {
	text, err := os.ReadFile("docs/reliability.md")
	if err != nil {
		t.Fatal(err)
	}
	var tests strings.Builder
	files, _ := filepath.Glob("*_test.go")
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		tests.Write(source)
	}
	named := regexp.MustCompile("`(Test\\w+)(?:/(\\w+))?`").FindAllStringSubmatch(string(text), -1)
	if len(named) < 15 {
		t.Fatalf("only %d tests are named", len(named))
	}
	for _, name := range named {
		script := "testdata/script/" + name[2] + ".txtar"
		if _, err := os.Stat(script); name[2] != "" && err != nil {
			t.Error(err)
		}
		if !strings.Contains(tests.String(), "\nfunc "+name[1]+"(t *testing.T)") {
			t.Errorf("there is no %s", name[1])
		}
	}
}
