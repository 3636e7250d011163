// Role: fuzz targets of unit files, commands and environment files.
// Runs in: go test.
// Owns: nothing.
// Uses: unit, command, value.

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// FuzzUnit: no text makes the parser panic; every mistake has a line of the text; a unit survives JSON; every
// key that TOML sees has a line; a command that is shown reads as the same command.
func FuzzUnit(f *testing.F) {
	shipped, _ := filepath.Glob("testdata/services/*.service")
	for _, path := range shipped {
		if text, err := os.ReadFile(path); err == nil {
			f.Add(text)
		}
	}
	for _, text := range []string{
		"service.ExecStart = [['sh', \"-c\", '''\nx''']]\n[unit]\n\"Aft\\u0065r\" = ['a'] # x",
		"[service]\nExecStart = \"-@:a b \\\\x41 ; c \\\\;\"\nType='oneshot'\nUMask=0o22\nRestartSec=1e3\n",
		"service = { ExecStart = 'x', RestartSec = '2min 3s' }\nunit = {Wants = \"a b\"}",
		"[[service]]\nx = 1979-05-27 07:32:00\n[[service]]\n", "[a.b.c]\n'x'.\"y\" = \"\"\"a\\\n \"\"\"\"\"\n",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 64<<10 {
			return
		}
		checkLines(t, text)
		u, err := parseUnit(testPath, text, testPlace)
		if err != nil {
			checkMistakes(t, err, text)
			return
		}
		checkJSON(t, u)
		checkShownCommands(t, u)
	})
}

func checkLines(t *testing.T, text []byte) {
	doc, places, wrong := readTOML(text)
	if wrong != nil {
		return
	}
	p := unitParser{places: places}
	for section, v := range doc {
		if at := p.find(section); !reflect.DeepEqual(at.path[:1], []string{section}) || at.path == nil {
			t.Errorf("section %q has no line: %+v", section, places)
		}
		keys, _ := v.(map[string]any)
		for key := range keys {
			if at := p.find(section, key); len(at.path) < 2 && !strings.Contains(string(text), `\`) {
				t.Errorf("key %q of %q has no line: %+v", key, section, places)
			}
		}
	}
}

func checkMistakes(t *testing.T, err error, text []byte) {
	wrong, ok := err.(unitError)
	if !ok || len(wrong.Mistakes) == 0 {
		t.Fatalf("error is %#v", err)
	}
	last := strings.Count(string(text), "\n") + 1
	for _, m := range wrong.Mistakes {
		if m.Line < 1 || m.Line > last || m.Text == "" || strings.Contains(m.Text, "BUG") {
			t.Errorf("mistake %+v in a text of %d lines", m, last)
		}
	}
}

func checkJSON(t *testing.T, u *unit) {
	text, err := json.Marshal(u)
	if err != nil {
		t.Fatal(err)
	}
	var back unit
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(u, &back) {
		t.Errorf("JSON changes the unit\nfrom %+v\nto   %+v", u, &back)
	}
}

func checkShownCommands(t *testing.T, u *unit) {
	for _, c := range u.ExecStart {
		again, err := parseCommands(c.String())
		if err != nil || len(again) != 1 || !reflect.DeepEqual(again[0], c) {
			t.Errorf("%+v is shown as %q, which reads as %+v, %v", c, c.String(), again, err)
		}
		expandCommand(c, func(string) (string, bool) { return ` a "b`, true })
	}
}

// FuzzEnvironmentFile: no panic; every entry is an assignment to a valid name; no error shows a word of the file.
func FuzzEnvironmentFile(f *testing.F) {
	for _, text := range []string{"A=1\n# c\nB='x\ny' \"z\"\n", "A=a\\\nb \\ \nexport C=1", "A=\"\\\"\\$\\x\"\r\n;", "A=\\"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		entries, err := parseEnvironmentFile(text)
		if err != nil && entries != nil {
			t.Errorf("entries %q beside error %v", entries, err)
		}
		for _, e := range entries {
			name, _, ok := strings.Cut(e, "=")
			if !ok || !validName(name) {
				t.Errorf("entry %q", e)
			}
		}
	})
}
