// Role: tests of environ.go: what a service sees, and as whom it runs.
// Runs in: go test.
// Owns: nothing.
// Uses: environ, unit, wire.

package main

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestEnvironmentPrecedence: ours and what belongs to the process, PassEnvironment, Environment, EnvironmentFile, UnsetEnvironment, the scope.
func TestEnvironmentPrecedence(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "env")
	if err := os.WriteFile(file, []byte("C=file\nD=file\nE=file\nINVOCATION_ID=mine\nDIAKONOS_SCOPE=mine\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"A", "B", "C", "D", "SECRET"} {
		t.Setenv(name, "daemon")
	}
	t.Setenv("LANG", "C.UTF-8")
	u := &unit{PassEnvironment: words("A", "B", "C", "D", "NOT_THERE"), Environment: words("B=unit", "C=unit", "D=unit", "F=1", "G=1", "PATH=/p"),
		EnvironmentFile: []environmentFile{{file, false}, {dir + "/none", true}}, UnsetEnvironment: words("E", "F=1", "G=2", "HOME", "NOTIFY_SOCKET", "DIAKONOS_SCOPE")}
	a := account{name: "joe", uid: 1000, home: "/home/joe", shell: "/bin/zsh"}
	e, wrong := buildEnvironment(u, a, "1-2/web", words("INVOCATION_ID=abc", "MAINPID=4", "NOTIFY_SOCKET=/run/x"))
	if wrong != nil {
		t.Fatal(wrong)
	}
	got := slices.Sorted(slices.Values(e.list))
	want := words("A=daemon", "B=unit", "C=file", "D=file", "DIAKONOS_SCOPE=1-2/web", "G=1", "INVOCATION_ID=mine", "LANG=C.UTF-8", "LOGNAME=joe",
		"MAINPID=4", "PATH=/p", "SHELL=/bin/zsh", "USER=joe")
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestEnvironmentPath(t *testing.T) {
	for _, c := range []struct {
		who  account
		want string
	}{
		{account{uid: 0, home: "/root"}, rootPath},
		{account{uid: 7, home: "/home/x"}, "/home/x/.local/bin:/home/x/bin:" + rootPath},
		{account{uid: 7, home: "/"}, rootPath},
		{account{uid: 7}, rootPath},
	} {
		e, _ := buildEnvironment(&unit{}, c.who, "", nil)
		if got, _ := e.get("PATH"); got != c.want {
			t.Errorf("%+v: %s, want %s", c.who, got, c.want)
		}
	}
}

// TestEnvironmentFilePattern: the files that a pattern names are read in the order of their names; one that names none is a missing file.
func TestEnvironmentFilePattern(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"20.env": "A=20\n", "10.env": "A=10\nB=10\n", "x[1]": "C=odd\n", "other": "D=no\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		files []environmentFile
		want  string
		wrong bool
	}{
		{[]environmentFile{{dir + "/*.env", false}}, "A=20 B=10", false},
		{[]environmentFile{{dir + "/1?.env", false}}, "A=10 B=10", false},
		{[]environmentFile{{dir + "/[2-9]0.env", false}}, "A=20", false},
		{[]environmentFile{{dir + "/x[1]", false}}, "C=odd", false}, // a file of just that name
		{[]environmentFile{{dir + "/*.none", true}}, "", false},
		{[]environmentFile{{dir + "/*.none", false}}, "", true},
	} {
		e, wrong := buildEnvironment(&unit{EnvironmentFile: c.files}, account{}, "", nil)
		if (wrong != nil) != c.wrong {
			t.Errorf("%v: %+v", c.files, wrong)
		}
		if wrong != nil {
			continue
		}
		var got []string
		for _, name := range words("A", "B", "C", "D") {
			if v, ok := e.get(name); ok {
				got = append(got, name+"="+v)
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%v: %q, want %q", c.files, got, c.want)
		}
	}
}

func TestEnvironmentFileMistakes(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/bad", []byte("A=1\nhunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(dir+"/bad", 12); err != nil {
		t.Fatal(err)
	}
	big, err := os.Create(dir + "/big")
	if err != nil {
		t.Fatal(err)
	}
	defer big.Close()
	if err := big.Truncate(maxEnvironmentFile + 1); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		file environmentFile
		says string
	}{
		{"not there", environmentFile{dir + "/none", false}, "no such file"},
		{"not there, optional", environmentFile{dir + "/none", true}, ""},
		{"no assignment, even if optional", environmentFile{dir + "/bad", true}, "cannot read EnvironmentFile"},
		{"too large", environmentFile{dir + "/big", false}, "at most 1 MiB"},
		{"a directory", environmentFile{dir, false}, "not a regular file"},
		{"a device that never ends", environmentFile{"/dev/zero", true}, "not a regular file"},
	} {
		_, wrong := buildEnvironment(&unit{EnvironmentFile: []environmentFile{c.file}}, account{}, "", nil)
		switch {
		case c.says == "" && wrong != nil:
			t.Errorf("%s: %+v", c.name, wrong)
		case c.says != "" && (wrong == nil || wrong.stage != "" || !strings.Contains(wrong.text, c.says)):
			t.Errorf("%s: %+v, want %q", c.name, wrong, c.says)
		case wrong != nil && strings.Contains(wrong.text, "hunter2"):
			t.Errorf("%s: a secret is shown: %s", c.name, wrong.text)
		}
	}
}

func TestAccounts(t *testing.T) {
	self := os.Geteuid()
	a, wrong := accountOf(&unit{})
	if wrong != nil || a.uid != self || a.gid != os.Getegid() || a.switched || a.home == "" || a.shell == "" {
		t.Errorf("nobody named: %+v, %+v", a, wrong)
	}
	if a, wrong := accountOf(&unit{User: strconv.Itoa(self)}); wrong != nil || a.uid != self {
		t.Errorf("ourselves by number: %+v, %+v", a, wrong)
	}
	for _, c := range []struct {
		u     unit
		stage setupStage
	}{{unit{User: "no-such-user"}, stageUser}, {unit{Group: "no-such-group"}, stageGroup}, {unit{User: "-1"}, stageUser}, {unit{Group: "-1"}, stageGroup}} {
		if _, wrong := accountOf(&c.u); wrong == nil || wrong.stage != c.stage {
			t.Errorf("%s/%s: %+v", c.u.User, c.u.Group, wrong)
		}
	}
	if self != 0 {
		if _, wrong := accountOf(&unit{User: "root"}); wrong == nil || wrong.stage != stageUser || !strings.Contains(wrong.text, "needs root") {
			t.Errorf("another user without root: %+v", wrong)
		}
		return
	}
	for _, c := range []struct {
		u        unit
		uid, gid int
		home     string
	}{
		{unit{User: "nobody"}, 65534, 65534, "/nonexistent"},
		{unit{User: "65534"}, 65534, 65534, "/nonexistent"},
		{unit{User: "424242"}, 424242, 424242, "/"}, // no file knows it: its group is never root's
		{unit{User: "424242", Group: "777"}, 424242, 777, "/"},
		{unit{User: "nobody", Group: "root"}, 65534, 0, "/nonexistent"},
		{unit{Group: "424243"}, 0, 424243, ""},
	} {
		a, wrong := accountOf(&c.u)
		if wrong != nil || a.uid != c.uid || a.gid != c.gid || !a.switched || c.home != "" && a.home != c.home || !slices.Contains(a.groups, c.gid) {
			t.Errorf("User=%s Group=%s: %+v, %+v", c.u.User, c.u.Group, a, wrong)
		}
		if c.gid != 0 && slices.Contains(a.groups, 0) && c.uid != 0 {
			t.Errorf("User=%s Group=%s stays in root's group: %v", c.u.User, c.u.Group, a.groups)
		}
	}
}

func TestSearchPath(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"a", "b", "c/x"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, mode := range map[string]os.FileMode{"a/plain": 0o644, "b/plain": 0o755, "a/both": 0o755, "b/both": 0o755} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	path := ":" + dir + "/none:" + dir + "/c:" + dir + "/a:" + dir + "/b:"
	for name, want := range map[string]string{
		"both": dir + "/a/both", "plain": dir + "/b/plain", // that in a cannot be executed
		"x":    "", // a directory
		"none": "", "/any/thing": "/any/thing", "./rel": "./rel",
	} {
		if got := searchPath(name, path); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}
