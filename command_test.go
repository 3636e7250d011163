// Role: tests of command.go.
// Runs in: go test.
// Owns: nothing.
// Uses: command.

package main

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

func words(w ...string) []string { return w }

func TestSplitCommand(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"words", "python3 -m  http.server\t8080", words("python3", "-m", "http.server", "8080")},
		{"double quotes", `sh -c "echo a  b"`, words("sh", "-c", "echo a  b")},
		{"single quotes", `sh -c 'echo "a"'`, words("sh", "-c", `echo "a"`)},
		{"quotes inside a word", `prog --name="a b"c`, words("prog", "--name=a bc")},
		{"empty argument", `prog "" ''`, words("prog", "", "")},
		{"C escapes", `prog \a\b\f\n\r\t\v\\\"\'`, words("prog", "\a\b\f\n\r\t\v\\\"'")},
		{"a space by escape", `prog a\sb`, words("prog", "a b")},
		{"escapes inside quotes", `prog "a\tb" 'c\td'`, words("prog", "a\tb", "c\td")},
		{"code points", `prog \x41 \101 \u00e9 \U0001F600`, words("prog", "A", "A", "é", "😀")},
		{"bytes that make a character", `prog \xc3\xa9`, words("prog", "é")},
		{"unknown escapes stay", `grep '\.log$' \d \x4`, words("grep", `\.log$`, `\d`, `\x4`)},
		{"escaped semicolon", `find . -exec rm {} \;`, words("find", ".", "-exec", "rm", "{}", ";")},
		{"quoted semicolon", `prog ";" a;b ;c`, words("prog", ";", "a;b", ";c")},
		{"no shell", "prog | tee > out && x & <in", words("prog", "|", "tee", ">", "out", "&&", "x", "&", "<in")},
		{"lines", "prog a\n  b", words("prog", "a", "b")},
		{"joined lines", "prog a\\\n b 'c\\\nd' \\\\\n", words("prog", "a", "b", "c d", `\`)},
		{"variables stay", "prog $X ${Y} $$", words("prog", "$X", "${Y}", "$$")},
		{"relative path", "./bin/server", words("./bin/server")},
	} {
		got, err := parseCommands(c.text)
		if err != nil || len(got) != 1 {
			t.Errorf("%s: %q gives %v, %v; want one command", c.name, c.text, got, err)
			continue
		}
		if want := (command{Argv: c.want, Path: c.want[0]}); !reflect.DeepEqual(got[0], want) {
			t.Errorf("%s: %q gives %q; want %q", c.name, c.text, got[0], want)
		}
	}
}

func TestParseCommands(t *testing.T) {
	sh := command{Argv: words("sh", "-c", "echo $HOME"), Path: "sh", Verbatim: true}
	for _, c := range []struct {
		name string
		in   any
		want []command
	}{
		{"prefix -", "-false x", []command{{Argv: words("false", "x"), Path: "false", IgnoreFailure: true}}},
		{"prefix :", ":echo $X", []command{{Argv: words("echo", "$X"), Path: "echo", Verbatim: true}}},
		{"prefix @", "@/bin/sh -sh -c x", []command{{Argv: words("-sh", "-c", "x"), Path: "/bin/sh"}}},
		{"all prefixes", "@:-p q", []command{{Argv: words("q"), Path: "p", IgnoreFailure: true, Verbatim: true}}},
		{"other order", "-@:p q", []command{{Argv: words("q"), Path: "p", IgnoreFailure: true, Verbatim: true}}},
		{"a prefix twice is part of the name", "--p", []command{{Argv: words("-p"), Path: "-p", IgnoreFailure: true}}},
		{"quoted program", `"/opt/my app/run" x`, []command{{Argv: words("/opt/my app/run", "x"), Path: "/opt/my app/run"}}},
		{"prefix before quotes", `-"my prog"`, []command{{Argv: words("my prog"), Path: "my prog", IgnoreFailure: true}}},
		{"verbatim program with a dollar", ":/opt/$x", []command{{Argv: words("/opt/$x"), Path: "/opt/$x", Verbatim: true}}},
		{"two in a string", "a 1 ; -b 2;", []command{{Argv: words("a", "1"), Path: "a"}, {Argv: words("b", "2;"), Path: "b", IgnoreFailure: true}}},
		{"stray semicolons", "; a ; ; b ;", []command{{Argv: words("a"), Path: "a"}, {Argv: words("b"), Path: "b"}}},
		{"array", []any{"mkdir -p data", []any{"sh", "-c", "echo $HOME"}}, []command{{Argv: words("mkdir", "-p", "data"), Path: "mkdir"}, sh}},
		{"exact arguments", []any{[]any{"-@p", "name", " a b ", `\n`, "", ";", "-x"}},
			[]command{{Argv: words("name", " a b ", `\n`, "", ";", "-x"), Path: "p", IgnoreFailure: true, Verbatim: true}}},
		{"exact program with a dollar", []any{[]any{"$x"}}, []command{{Argv: words("$x"), Path: "$x", Verbatim: true}}},
		{"empty array", []any{}, nil},
	} {
		if got, err := parseCommands(c.in); err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %q, %v; want %q", c.name, got, err, c.want)
		}
	}
}

func TestParseCommandsRefuses(t *testing.T) {
	for _, c := range []struct {
		in   any
		want string
	}{
		{"", "empty"},
		{" ; ", "empty"},
		{[]any{""}, "empty"},
		{[]any{[]any{}}, "empty"},
		{[]any{[]any{""}}, "names no program"},
		{"-", "names no program"},
		{`"" x`, "names no program"},
		{"+x", `prefix "+"`},
		{"-!x", `prefix "!"`},
		{"!!x", `prefix "!"`},
		{"|x", `prefix "|"`},
		{[]any{[]any{"+x"}}, `prefix "+"`},
		{"@x", "second word"},
		{"x 'a", "never closed"},
		{`x "a\"`, "never closed"},
		{`x a\`, "lone backslash"},
		{"$X y", "variable"},
		{"/bin/${X}", "variable"},
		{"a$$b", "variable"},
		{"/bin/", "directory"},
		{".", "directory"},
		{`"a\nb"`, "control characters"},
		{`x \xff`, "UTF-8"},
		{`x \400`, "not a byte"},
		{`x \Uffffffff`, "not a character"},
		{`x \ud800`, "not a character"},
		{[]any{[]any{"x", "a\x00b"}}, "NUL"},
		{[]any{[]any{"x", int64(10)}}, "must be strings, not a number"},
		{[]any{int64(10)}, "not a number"},
		{int64(10), "not a number"},
		{true, "not a boolean"},
	} {
		if got, err := parseCommands(c.in); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("parseCommands(%q) = %q, %v; want an error with %q", c.in, got, err, c.want)
		}
	}
}

func testLookup(name string) (string, bool) {
	switch name {
	case "ONE":
		return "1", true
	case "TWO":
		return ` a  "b c" d'e f' \"g `, true
	case "OPEN":
		return `x "y z`, true
	case "EMPTY":
		return "", true
	}
	return "", false
}

func TestExpandCommand(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"a word splits", "p $TWO", words("p", "a", "b c", "de f", `"g`)},
		{"braces never split", "p ${TWO}", words("p", ` a  "b c" d'e f' \"g `)},
		{"braces inside a word", "p a${ONE}b${ONE}", words("p", "a1b1")},
		{"unclosed quote in a value", "p $OPEN", words("p", "x", "y z")},
		{"undefined word vanishes", "p $NONE x", words("p", "x")},
		{"undefined braces are an empty argument", "p ${NONE} x", words("p", "", "x")},
		{"empty word vanishes", "p $EMPTY ${EMPTY}", words("p", "")},
		{"dollar", "p $$ $$ONE a$$b $${ONE}", words("p", "$", "$ONE", "a$b", "${ONE}")},
		{"no variable", "p $ $1 $ONE-x a$ONE $/ ${ONE", words("p", "$", "$1", "$ONE-x", "a$ONE", "$/", "${ONE")},
		{"quotes do not protect", `p "$ONE" '${ONE}'`, words("p", "1", "1")},
		{"verbatim", ":p $ONE ${ONE} $$", words("p", "$ONE", "${ONE}", "$$")},
		{"own name", "@p ${ONE} x", words("1", "x")},
	} {
		cmds, err := parseCommands(c.text)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := expandCommand(cmds[0], testLookup); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q expands to %q; want %q", c.name, c.text, got, c.want)
		}
	}
}

func TestCommandString(t *testing.T) {
	for _, text := range []string{
		"sleep 10", `-:@p "a b" ";" "" "\x0a" "\"" "\\" 'é' $X`, `"-my prog" --x`, "--x", `"p\\q"`, "@p p2 p",
	} {
		cmds, err := parseCommands(text)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		again, err := parseCommands(cmds[0].String())
		if err != nil || !reflect.DeepEqual(cmds, again) {
			t.Errorf("%q is shown as %q, which reads as %q, %v", text, cmds[0].String(), again, err)
		}
	}
	if got := (command{Argv: words("sleep", "10"), Path: "sleep"}).String(); got != "sleep 10" {
		t.Errorf("got %q; want sleep 10", got)
	}
}

func TestParseEnvironmentFile(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"lines", "A=1\nB=2", words("A=1", "B=2")},
		{"comments and blank lines", "# x\n\n ; y=1\n\tA=1\n#", words("A=1")},
		{"no comment behind a value", "A=1 # x", words("A=1 # x")},
		{"spaces around", "  A  =  x y  \n", words("A=x y")},
		{"empty", "A=\nB=  \nC=''", words("A=", "B=", "C=")},
		{"equals signs", "A=b=c", words("A=b=c")},
		{"single quotes", `A='a "b" \n $c'`, words(`A=a "b" \n $c`)},
		{"backslashes in single quotes stay", `A='\"\\'`, words(`A=\"\\`)},
		{"double quotes", `A="a 'b' \" \\ \$ \n"`, words(`A=a 'b' " \ $ \n`)},
		{"quotes span lines", "A='x\ny'\nB=\"x\ny\"", words("A=x\ny", "B=x\ny")},
		{"quoted parts join", `A="a" 'b' c`, words("A=abc")},
		{"quotes in a plain value stay", `A=a"b" 'c'`, words(`A=a"b" 'c'`)},
		{"a quoted end keeps its space", "A='x ' \nB=1", words("A=x ", "B=1")},
		{"continued lines", "A=x \\\ny\nB=\"x\\\ny\"\n", words("A=x y", "B=xy")},
		{"escapes in a plain value", `A=a\nb\ \\`, words(`A=anb \`)},
		{"an escaped end keeps its space", `A=a\   `, words("A=a ")},
		{"backslash at the end", `A=a\`, words("A=a")},
		{"carriage returns", "A=1\r\nB=x\r\n", words("A=1", "B=x")},
		{"twice", "A=1\nA=2", words("A=1", "A=2")},
		{"nothing", "", nil},
	} {
		if got, err := parseEnvironmentFile([]byte(c.text)); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %q gives %q, %v; want %q", c.name, c.text, got, err, c.want)
		}
	}
}

func TestParseEnvironmentFileRefuses(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"no assignment", "A=1\ns3cret\n", "line 2: expected NAME=value"},
		{"no assignment at the end", "A=1\n\ns3cret", "line 3: expected"},
		{"export", "export S=s3cret", `line 1: expected NAME=value, without "export"`},
		{"bad name", "\ns3-cret=s3cret", "line 2: the name"},
		{"digit first", "1s3cret=1", "line 1: the name"},
		{"no name", "=s3cret", "line 1: the name"},
		{"open quote", "A=1\nB=\"s3cret\nC=1", "line 2: a quote"},
		{"open quote behind a backslash", `B="s3cret\`, "line 1: a quote"},
		{"lines inside quotes count", "A='\n\n'\ns3cret", "line 4:"},
		{"NUL", "A=s3cret\x00", "NUL"},
		{"not UTF-8", "A=s3cret\xff", "UTF-8"},
	} {
		got, err := parseEnvironmentFile([]byte(c.text))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %q, %v; want an error with %q", c.name, got, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "cret") {
			t.Errorf("%s: error %q shows a secret", c.name, err)
		}
	}
}
