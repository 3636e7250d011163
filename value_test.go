// Role: tests of value.go.
// Runs in: go test.
// Owns: nothing.
// Uses: value.

package main

import (
	"math"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestParseDuration(t *testing.T) {
	const day = 24 * time.Hour
	for _, c := range []struct {
		in   any
		want time.Duration
	}{
		{int64(5), 5 * time.Second},
		{int64(0), 0},
		{1.5, 1500 * time.Millisecond},
		{math.Inf(1), infinity},
		{"5", 5 * time.Second},
		{"5s", 5 * time.Second},
		{"500ms", 500 * time.Millisecond},
		{"500 msec", 500 * time.Millisecond},
		{"2min 30s", 150 * time.Second},
		{"2min30s", 150 * time.Second},
		{" 1 hour  3 minutes ", 63 * time.Minute},
		{"1h", time.Hour},
		{"10us", 10 * time.Microsecond},
		{"10µs", 10 * time.Microsecond},
		{"10μs", 10 * time.Microsecond},
		{"1.5h", 90 * time.Minute},
		{".5s", 500 * time.Millisecond},
		{"2d", 2 * day},
		{"2 weeks", 14 * day},
		{"1M", 2629800 * time.Second},
		{"1m", time.Minute},
		{"1y", 31557600 * time.Second},
		{"infinity", infinity},
	} {
		if got, err := parseDuration(c.in); err != nil || got != c.want {
			t.Errorf("parseDuration(%v) = %v, %v; want %v", c.in, got, err, c.want)
		}
	}
}

func TestParseDurationRefuses(t *testing.T) {
	for _, c := range []struct {
		in   any
		want string
	}{
		{"", "empty"},
		{"soon", "unknown unit"},
		{"5x", `unknown unit "x"`},
		{"-5s", "unknown unit"},
		{"s", "expected a number"},
		{"1.2.3s", "expected a number"},
		{"5s infinity", "unknown unit"},
		{int64(-1), "negative"},
		{-0.5, "negative"},
		{math.NaN(), "negative"},
		{math.Inf(-1), "negative"},
		{int64(math.MaxInt64), "too large"},
		{1e300, "too large"},
		{"300y", "too large"},
		{"200y 200y", "too large"},
		{"99999999999999999999s", "too large"},
		{true, "not a boolean"},
		{[]any{"5s"}, "not an array"},
	} {
		if got, err := parseDuration(c.in); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("parseDuration(%v) = %v, %v; want an error with %q", c.in, got, err, c.want)
		}
	}
}

func TestParseSize(t *testing.T) {
	for _, c := range []struct {
		in   any
		want int64
	}{
		{int64(65536), 65536}, {"65536", 65536}, {"10K", 10 << 10}, {"512M", 512 << 20}, {"1.5G", 3 << 29},
		{"2T", 2 << 40}, {"100B", 100}, {" 1 M ", 1 << 20}, {int64(math.MaxInt64 - 1024), math.MaxInt64 - 1024},
	} {
		if got, err := parseSize(c.in); err != nil || got != c.want {
			t.Errorf("parseSize(%v) = %v, %v; want %v", c.in, got, err, c.want)
		}
	}
	for _, in := range []any{"", "M", "10m", "10MB", "-1", "1e3", int64(-1), "99999999T", 1.5, true} {
		if got, err := parseSize(in); err == nil {
			t.Errorf("parseSize(%v) = %v; want an error", in, got)
		}
	}
}

func TestParseBool(t *testing.T) {
	for _, c := range []struct {
		in   any
		want bool
	}{
		{true, true}, {false, false}, {"yes", true}, {"No", false}, {"on", true}, {"OFF", false}, {"1", true}, {"0", false},
	} {
		if got, err := parseBool(c.in); err != nil || got != c.want {
			t.Errorf("parseBool(%v) = %v, %v; want %v", c.in, got, err, c.want)
		}
	}
	for _, in := range []any{"", "maybe", int64(1), []any{}} {
		if got, err := parseBool(in); err == nil {
			t.Errorf("parseBool(%v) = %v; want an error", in, got)
		}
	}
}

func TestParseSignal(t *testing.T) {
	for _, c := range []struct {
		in   any
		want syscall.Signal
	}{
		{"SIGTERM", syscall.SIGTERM}, {"TERM", syscall.SIGTERM}, {int64(15), syscall.SIGTERM}, {"15", syscall.SIGTERM},
		{"SIGRTMIN+3", 37}, {"RTMIN", 34}, {"RTMAX-1", 63}, {"SIGWINCH", syscall.SIGWINCH},
	} {
		if got, err := parseSignal(c.in); err != nil || got != c.want {
			t.Errorf("parseSignal(%v) = %v, %v; want %v", c.in, got, err, c.want)
		}
	}
	for _, in := range []any{"", "SIG", "SIGSIGTERM", "term", "QUIET", int64(0), int64(65), int64(-9), "RTMIN+31", "RTMIN-1", 1.0} {
		if got, err := parseSignal(in); err == nil {
			t.Errorf("parseSignal(%v) = %v; want an error", in, got)
		}
	}
}

func TestParseExitSet(t *testing.T) {
	for _, c := range []struct {
		in   any
		want exitSet
	}{
		{[]any{int64(0), int64(255)}, exitSet{Codes: []int{0, 255}}},
		{"1 2 SIGKILL", exitSet{Codes: []int{1, 2}, Signals: []syscall.Signal{syscall.SIGKILL}}},
		{[]any{"TEMPFAIL", "TERM", int64(3)}, exitSet{Codes: []int{75, 3}, Signals: []syscall.Signal{syscall.SIGTERM}}},
		{[]any{"75 TEMPFAIL", int64(75)}, exitSet{Codes: []int{75}}},
		{int64(3), exitSet{Codes: []int{3}}},
		{"CHDIR BPF EXCEPTION", exitSet{Codes: []int{200, 245, 255}}},
		{[]any{}, exitSet{}},
		{"", exitSet{}},
	} {
		if got, err := parseExitSet(c.in); err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("parseExitSet(%v) = %v, %v; want %v", c.in, got, err, c.want)
		}
	}
	for _, in := range []any{int64(256), int64(-1), "256", "tempfail", "SIGNOPE", 1.5, []any{[]any{}}} {
		if got, err := parseExitSet(in); err == nil {
			t.Errorf("parseExitSet(%v) = %v; want an error", in, got)
		}
	}
}

func TestParseUMask(t *testing.T) {
	for _, c := range []struct {
		in   any
		raw  string
		want uint32
	}{
		{"0022", "", 0o022}, {"077", "", 0o077}, {"0", "", 0}, {int64(0o027), "0o027\n", 0o027}, {int64(0), "0", 0},
	} {
		if got, err := parseUMask(c.in, c.raw); err != nil || got != c.want {
			t.Errorf("parseUMask(%v, %q) = %o, %v; want %o", c.in, c.raw, got, err, c.want)
		}
	}
	if _, err := parseUMask(int64(22), "22"); err == nil || !strings.Contains(err.Error(), `"0022"`) {
		t.Errorf("parseUMask(22) = %v; want a hint at \"0022\"", err)
	}
	for _, in := range []any{"", "8", "01000", "-1", "u=rwx", 0.5, false} {
		if got, err := parseUMask(in, ""); err == nil {
			t.Errorf("parseUMask(%v) = %o; want an error", in, got)
		}
	}
}

// TestShown: a long word is cut between characters, also one that has none: arguments need not be UTF-8.
func TestShown(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"short", `"short"`},
		{strings.Repeat("x", 80), `"` + strings.Repeat("x", 80) + `"`},
		{strings.Repeat("x", 81), `"` + strings.Repeat("x", 80) + `..."`},
		{strings.Repeat("x", 78) + "日本", `"` + strings.Repeat("x", 78) + `..."`},
		{strings.Repeat("\x80", 90), `"` + strings.Repeat(`\x80`, 80) + `..."`},
	} {
		if got := shown(c.text); got != c.want {
			t.Errorf("%q: got %s, want %s", c.text, got, c.want)
		}
	}
}

func TestNearest(t *testing.T) {
	verbs := []string{"start", "stop", "status", "restart", "reload", "list", "logs", "daemon-status"}
	for _, c := range []struct {
		word    string
		choices []string
		want    string
	}{
		{"START", verbs, "start"},
		{"sotp", verbs, "stop"},
		{"statsu", verbs, "status"},
		{"lits", verbs, "list"},
		{"log", verbs, "logs"},
		{"daemon", verbs, "daemon-status"},
		{"re", verbs, ""},
		{"fly", verbs, ""},
		{"", verbs, ""},
		{"x", []string{"y"}, ""},
		{strings.Repeat("s", 100_000), verbs, ""},
		{"webb", []string{"web-2", "web-1"}, "web-2"},
		{"web", []string{"web-2", "web-1"}, ""},
		{"worker", nil, ""},
	} {
		if got := nearest(c.word, c.choices); got != c.want {
			t.Errorf("nearest(%.20q) = %q; want %q", c.word, got, c.want)
		}
	}
}

// scanned lists KEY:LINE of all keys of a text, sections included.
func scanned(t *testing.T, text string) []string {
	t.Helper()
	_, places, wrong := readTOML([]byte(text))
	if wrong != nil {
		t.Fatalf("readTOML(%q): line %d: %s", text, wrong.Line, wrong.Text)
	}
	var got []string
	for _, p := range places {
		got = append(got, strings.Join(p.path, ".")+":"+string(rune('0'+p.line)))
	}
	return got
}

func TestLinesOfKeys(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"plain", "[a]\nx = 1\n\ny = 2", "a:1 a.x:2 a.y:4"},
		{"comments", "# [no]\n[a] # x = 1\n#y = 2\nz = 3 # = \"\n", "a:2 a.z:4"},
		{"dotted", "a.x = 1\na . \"y\" = 2", "a.x:1 a.y:2"},
		{"quoted", "'a b' = 1\n\"c\\u0064\" = 2\n[\"e]\"]\n", "a b:1 cd:2 e]:3"},
		{"strings", "a = \"x # \\\" [\"\nb = 'c:\\'\nc = 1", "a:1 b:2 c:3"},
		{"long strings", "a = \"\"\"\nx = 1\n\\\"\"\"\"\"\nb = '''\n[c]\n''''\nd = 1", "a:1 b:4 d:7"},
		{"line joined in a string", "a = \"\"\"x \\\n  y\"\"\"\nb = 1", "a:1 b:3"},
		{"arrays", "a = [\n 1, # ]\n [\"]\"],\n]\nb = [] \nc = 1", "a:1 b:5 c:6"},
		{"inline table", "a = { x = 1, y.z = [2] }\nb = 1", "a:1 a.x:1 a.y.z:1 b:2"},
		{"array of tables", "[[a]]\nx = 1\n[[a]]\nx = 2", "a:1 a.x:2 a:3 a.x:4"},
		{"dates", "a = 1979-05-27 07:32:00\nb = 07:32:00 # x\nc=1", "a:1 b:2 c:3"},
		{"carriage returns", "[a]\r\nx = 1\r\ny = \"\"\"\r\n\"\"\"\r\nz = 1\r\n", "a:1 a.x:2 a.y:3 a.z:5"},
		{"byte order mark", "\xef\xbb\xbfa = 1\nb = 2", "a:1 b:2"},
		{"empty", "", ""},
	} {
		if got := strings.Join(scanned(t, c.text), " "); got != c.want {
			t.Errorf("%s: got %s; want %s", c.name, got, c.want)
		}
	}
}

func TestReadTOMLRefuses(t *testing.T) {
	var keys strings.Builder
	for i := range maxKeys + 1 {
		keys.WriteString("k" + strings.Repeat("x", i%200) + time.Duration(i).String() + " = 1\n")
	}
	for _, c := range []struct {
		name, text string
		line       int
		want       string
	}{
		{"no value", "\na =\n", 2, "expected value"},
		{"open string", "a = 1\nb = \"x\nc = 1", 2, "newlines"},
		{"twice", "[a]\nx = 1\nx = 2", 3, "already been defined"},
		{"deep arrays", "a = 1\nb = " + strings.Repeat("[", 1<<20), 2, "nested too deeply"},
		{"deep tables", "a = " + strings.Repeat("{a=", 300_000), 1, "key is too long"},
		{"deep tables in arrays", "a = " + strings.Repeat("[{a=", 300_000), 1, "nested too deeply"},
		{"long dotted key", strings.Repeat("a.", 500_000) + "a = 1", 1, "key is too long"},
		{"long dotted section", "\n[" + strings.Repeat("a.", 500_000) + "a]", 2, "key is too long"},
		{"long dotted key in a long section", "[" + strings.Repeat("a.", 10) + "a]\n" + strings.Repeat("a.", 10) + "a = 1", 2, "key is too long"},
		{"long key", strings.Repeat("a", 500_000) + " = 1", 1, "key is too long"},
		{"many keys", keys.String(), maxKeys + 1, "more than 1000 keys"},
		{"huge number", "a = " + strings.Repeat("1", 1000), 1, "1..."},
		{"not UTF-8", "a = 1\nb = \"\xff\"", 2, "UTF-8"},
		{"NUL", "\x00\x00", 1, "NULL"},
	} {
		_, _, wrong := readTOML([]byte(c.text))
		if wrong == nil || wrong.Line != c.line || !strings.Contains(wrong.Text, c.want) || len(wrong.Text) > 300 {
			t.Errorf("%s: got %v; want line %d with %q", c.name, wrong, c.line, c.want)
		}
	}
}

func TestExitCodeNamesAreUnique(t *testing.T) {
	var names []string
	for _, c := range exitCodeNames {
		if slices.Contains(names, c.name) {
			t.Errorf("%s stands twice", c.name)
		}
		names = append(names, c.name)
	}
}
