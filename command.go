// Role: command lines and environment text: splitting, prefixes, expansion of variables, display; the
// format of environment files.
// Runs in: client, daemon, shim.
// Owns: nothing; pure.
// Uses: codec, value.

package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// command is one command of an Exec key.
type command struct {
	Argv          []string // as written, before expansion of variables; Argv[0] is the program's argv[0]
	Path          string   // program: a path, or a name to be looked up in the service's PATH
	IgnoreFailure bool     // prefix -
	Verbatim      bool     // prefix :, or an array of exact arguments: nothing is expanded
}

func (cmd *command) fields(c *codec) {
	textsField(c, "Argv", always, &cmd.Argv)
	textField(c, "Path", always, &cmd.Path)
	flagField(c, "IgnoreFailure", always, &cmd.IgnoreFailure)
	flagField(c, "Verbatim", always, &cmd.Verbatim)
}

// whitespace separates words, as in systemd.
const whitespace = " \t\n\r"

// parseCommands reads the value of an Exec key: one string, or an array whose items are strings and arrays
// of exact arguments. A string may hold several commands (systemd.service(5), "Command lines").
func parseCommands(v any) ([]command, error) {
	switch v := v.(type) {
	case string:
		return splitCommands(v)
	case []any:
		var all []command
		for _, item := range v {
			some, err := parseCommandItem(item)
			if err != nil {
				return nil, err
			}
			all = append(all, some...)
		}
		return all, nil
	}
	return nil, fmt.Errorf("want a command or an array of commands, not %s", typeText(v))
}

func parseCommandItem(v any) ([]command, error) {
	switch v := v.(type) {
	case string:
		return splitCommands(v)
	case []any:
		c, err := exactCommand(v)
		return []command{c}, err
	}
	return nil, fmt.Errorf("want a command as a string or an array of arguments, not %s", typeText(v))
}

// exactCommand takes arguments as they are; only the first may begin with prefixes.
func exactCommand(items []any) (command, error) {
	words := make([]string, 0, len(items))
	for _, item := range items {
		word, ok := item.(string)
		if !ok {
			return command{}, fmt.Errorf("exact arguments must be strings, not %s", typeText(item))
		}
		words = append(words, word)
	}
	c, err := makeCommand(words)
	c.Verbatim = true
	return c, err
}

// splitCommands splits text into commands; a lone unquoted ; stands between two.
func splitCommands(text string) ([]command, error) {
	var all []command
	var words []string
	rest := joinLines(text)
	for {
		rest = strings.TrimLeft(rest, whitespace)
		switch {
		case rest == "" || loneToken(rest, ";"):
			if len(words) > 0 {
				c, err := variableCommand(words)
				if err != nil {
					return nil, err
				}
				all, words = append(all, c), nil
			}
			if rest == "" {
				return all, emptyCommand(all)
			}
			rest = rest[1:]
		case len(words) > 0 && loneToken(rest, `\;`):
			words, rest = append(words, ";"), rest[2:]
		default:
			word, after, err := cutWord(rest, unescapeC)
			if err != nil {
				return nil, err
			}
			words, rest = append(words, word), after
		}
	}
}

// joinLines replaces each backslash at the end of a line, with its newline, by a space.
func joinLines(text string) string {
	if !strings.Contains(text, "\\\n") {
		return text
	}
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] != '\\' || i+1 == len(text):
			b.WriteByte(text[i])
		case text[i+1] == '\n':
			b.WriteByte(' ')
			i++
		default:
			b.WriteString(text[i : i+2])
			i++
		}
	}
	return b.String()
}

func emptyCommand(all []command) error {
	if len(all) == 0 {
		return errors.New("the command is empty")
	}
	return nil
}

// loneToken: text begins with token as a word of its own.
func loneToken(text, token string) bool {
	rest, ok := strings.CutPrefix(text, token)
	return ok && (rest == "" || strings.IndexByte(whitespace, rest[0]) >= 0)
}

// variableCommand makes a command in which variables will be expanded, unless its prefix says otherwise.
func variableCommand(words []string) (command, error) {
	c, err := makeCommand(words)
	if err == nil && !c.Verbatim && hasVariable(c.Path) {
		return c, fmt.Errorf("the program %s cannot contain a variable", shown(c.Path))
	}
	return c, err
}

func hasVariable(s string) bool {
	for i := range len(s) - 1 {
		if s[i] == '$' && (s[i+1] == '{' || s[i+1] == '$' || isNameByte(s[i+1])) {
			return true
		}
	}
	return false
}

// makeCommand takes the prefixes off the first word and checks all of them.
func makeCommand(words []string) (command, error) {
	if len(words) == 0 {
		return command{}, errors.New("the command is empty")
	}
	for _, w := range words {
		if strings.IndexByte(w, 0) >= 0 || !utf8.ValidString(w) {
			return command{}, errors.New("a command must be UTF-8 without NUL bytes")
		}
	}
	c, ownName, err := cutPrefixes(words[0])
	if err != nil {
		return command{}, err
	}
	if err := checkProgram(c.Path); err != nil {
		return command{}, err
	}
	c.Argv = append([]string{c.Path}, words[1:]...)
	if !ownName {
		return c, nil
	}
	if len(words) < 2 {
		return command{}, errors.New("prefix \"@\" needs a second word, the name that the program sees as its own")
	}
	c.Argv = c.Argv[1:]
	return c, nil
}

// cutPrefixes reads - @ : in any order, each once. ownName: prefix @, the next word is argv[0].
func cutPrefixes(word string) (c command, ownName bool, err error) {
	for i := range len(word) {
		switch {
		case word[i] == '-' && !c.IgnoreFailure:
			c.IgnoreFailure = true
		case word[i] == ':' && !c.Verbatim:
			c.Verbatim = true
		case word[i] == '@' && !ownName:
			ownName = true
		case word[i] == '+' || word[i] == '!' || word[i] == '|':
			return c, false, fmt.Errorf("prefix %q is not supported, only -, @ and : are", word[i:i+1])
		default:
			c.Path = word[i:]
			return c, ownName, nil
		}
	}
	return c, ownName, nil
}

func checkProgram(path string) error {
	if path == "" {
		return errors.New("the command names no program")
	}
	if strings.HasSuffix(path, "/") || path == "." || path == ".." {
		return fmt.Errorf("the program %s is a directory", shown(path))
	}
	if strings.IndexFunc(path, isControl) >= 0 {
		return fmt.Errorf("the program %s contains control characters", shown(path))
	}
	return nil
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// ---- words

// unescape tells what a backslash in a word means.
type unescape int

const (
	unescapeC   unescape = iota // a C escape, or \s; unbalanced quotes are an error
	unescapeAny                 // the next byte as it is; unbalanced quotes are closed at the end
)

// cutWord reads one word, in which quotes may open anywhere. text is not empty and begins with no space.
func cutWord(text string, how unescape) (word, rest string, err error) {
	var b strings.Builder
	var quote byte
	for i := 0; i < len(text); {
		c := text[i]
		switch {
		case c == '\\':
			n, err := writeEscape(&b, text[i+1:], how)
			if err != nil {
				return "", "", err
			}
			i += n + 1
			continue
		case c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		case quote == 0 && strings.IndexByte(whitespace, c) >= 0:
			return b.String(), text[i:], nil
		default:
			b.WriteByte(c)
		}
		i++
	}
	if quote != 0 && how == unescapeC {
		return "", "", fmt.Errorf("quotes are not balanced: %c is never closed", quote)
	}
	return b.String(), "", nil
}

// writeEscape writes what stands after a backslash and returns how many bytes of it that was. An escape that
// does not exist stays as it is, with its backslash, as in systemd: patterns such as \. need no second one.
func writeEscape(b *strings.Builder, after string, how unescape) (int, error) {
	if how == unescapeAny {
		n := min(1, len(after))
		b.WriteString(after[:n])
		return n, nil
	}
	if after == "" {
		return 0, errors.New("the command ends in a lone backslash")
	}
	if plain := strings.IndexByte(`abfnrtv\"'s`, after[0]); plain >= 0 {
		b.WriteByte("\a\b\f\n\r\t\v\\\"' "[plain])
		return 1, nil
	}
	digits, base, skip := escapeDigits(after[0])
	if len(after) >= skip+digits && digits > 0 {
		n, err := strconv.ParseUint(after[skip:skip+digits], base, 32)
		if err == nil && n > 0 {
			return skip + digits, writeCode(b, n, digits)
		}
	}
	b.WriteByte('\\')
	return 0, nil
}

// escapeDigits: how many digits of which base follow, and after how many bytes.
func escapeDigits(kind byte) (digits, base, skip int) {
	switch {
	case kind == 'x':
		return 2, 16, 1
	case kind == 'u':
		return 4, 16, 1
	case kind == 'U':
		return 8, 16, 1
	case '0' <= kind && kind <= '7':
		return 3, 8, 0
	}
	return 0, 0, 0
}

// writeCode writes a byte (two or three digits) or a code point.
func writeCode(b *strings.Builder, n uint64, digits int) error {
	if digits <= 3 {
		if n > 255 {
			return fmt.Errorf("escape \\%o is not a byte", n)
		}
		b.WriteByte(byte(n))
		return nil
	}
	if n > utf8.MaxRune || !utf8.ValidRune(rune(n)) {
		return fmt.Errorf("escape for %#x is not a character", n)
	}
	b.WriteRune(rune(n))
	return nil
}

// ---- expansion

// expandCommand returns the arguments of c with variables replaced, as systemd.service(5) says: $X as a word
// of its own becomes the words of its value, ${X} becomes its value and never splits, $$ is a dollar sign. A
// variable that is not set is empty.
func expandCommand(c command, lookup func(string) (string, bool)) []string {
	if c.Verbatim {
		return c.Argv
	}
	args := make([]string, 0, len(c.Argv))
	for _, word := range c.Argv {
		if name, ok := strings.CutPrefix(word, "$"); ok && validName(name) {
			value, _ := lookup(name)
			args = append(args, splitValue(value)...)
			continue
		}
		args = append(args, expandWord(word, lookup))
	}
	return args
}

// splitValue splits the value of a variable at white space; quotes are respected, and closed if need be.
func splitValue(value string) []string {
	var words []string
	rest := strings.TrimLeft(value, whitespace)
	for rest != "" {
		var word string
		word, rest, _ = cutWord(rest, unescapeAny)
		words = append(words, word)
		rest = strings.TrimLeft(rest, whitespace)
	}
	return words
}

func expandWord(word string, lookup func(string) (string, bool)) string {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(word, "$")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		end := -1
		if strings.HasPrefix(after, "{") {
			end = strings.IndexAny(after, "}$")
		}
		switch {
		case strings.HasPrefix(after, "$"):
			b.WriteByte('$')
			word = after[1:]
		case end > 0 && after[end] == '}':
			value, _ := lookup(after[1:end])
			b.WriteString(value)
			word = after[end+1:]
		default:
			b.WriteByte('$')
			word = after
		}
	}
}

// String shows the command as a unit file could have it.
func (c command) String() string {
	prefix := ""
	if c.IgnoreFailure {
		prefix += "-"
	}
	if c.Verbatim {
		prefix += ":"
	}
	args := c.Argv
	if len(args) > 0 && args[0] == c.Path {
		args = args[1:]
	} else {
		prefix += "@"
	}
	words := []string{quoteWord(prefix + c.Path)}
	for _, a := range args {
		words = append(words, quoteWord(a))
	}
	return strings.Join(words, " ")
}

// quoteWord writes a word so that cutWord reads it back.
func quoteWord(word string) string {
	special := func(r rune) bool { return isControl(r) || strings.ContainsRune(` "'\`, r) }
	if word != "" && word != ";" && strings.IndexFunc(word, special) < 0 {
		return word
	}
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(word) {
		switch c := word[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case isControl(rune(c)):
			fmt.Fprintf(&b, `\x%02x`, c)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// ---- environment

// validName: the name of an environment variable that services may be given.
func validName(name string) bool {
	if name == "" || name[0] >= '0' && name[0] <= '9' {
		return false
	}
	for i := range len(name) {
		if !isNameByte(name[i]) {
			return false
		}
	}
	return true
}

func isNameByte(c byte) bool {
	return c == '_' || '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z'
}

// parseEnvironmentFile reads the format of EnvironmentFile (systemd.exec(5)): lines NAME=value, comments
// behind # or ;, quotes that may span lines, a backslash that joins two lines. Other than systemd it refuses
// what is no assignment. Errors tell the line and never a word of it: any part of it may be secret.
func parseEnvironmentFile(text []byte) ([]string, error) {
	if strings.IndexByte(string(text), 0) >= 0 || !utf8.Valid(text) {
		return nil, errors.New("an environment file must be UTF-8 without NUL bytes")
	}
	r := environmentReader{text: string(text), line: 1}
	var entries []string
	for r.skipToName() {
		line := r.line
		name, err := r.name()
		if err != nil {
			return nil, fmt.Errorf("line %d: %v", line, err)
		}
		value, err := r.value()
		if err != nil {
			return nil, fmt.Errorf("line %d: %v", line, err)
		}
		entries = append(entries, name+"="+value)
	}
	return entries, nil
}

type environmentReader struct {
	text string // what is left
	line int
}

// next takes one byte.
func (r *environmentReader) next() byte {
	c := r.text[0]
	r.text = r.text[1:]
	if c == '\n' {
		r.line++
	}
	return c
}

// skipToName skips white space and comments. False: nothing is left.
func (r *environmentReader) skipToName() bool {
	for r.text != "" {
		c := r.text[0]
		if c == '#' || c == ';' {
			n := strings.IndexAny(r.text, "\n\r")
			if n < 0 {
				return false
			}
			r.text = r.text[n:]
			continue
		}
		if strings.IndexByte(whitespace, c) < 0 {
			return true
		}
		r.next()
	}
	return false
}

func (r *environmentReader) name() (string, error) {
	n := strings.IndexAny(r.text, "=\n\r")
	if n < 0 || r.text[n] != '=' {
		return "", errors.New("expected NAME=value")
	}
	name := strings.TrimRight(r.text[:n], whitespace)
	r.text = r.text[n+1:]
	if strings.HasPrefix(name, "export ") {
		return "", errors.New("expected NAME=value, without \"export\"")
	}
	if !validName(name) {
		return "", errors.New("the name before = is not that of a variable: letters, digits and _, no digit first")
	}
	return name, nil
}

// value reads up to the end of the line; quoted parts and others follow each other without space.
func (r *environmentReader) value() (string, error) {
	var b strings.Builder
	for r.text != "" {
		switch c := r.next(); {
		case c == '\n' || c == '\r':
			return b.String(), nil
		case c == '\'' || c == '"':
			if err := r.quoted(&b, c); err != nil {
				return "", err
			}
		case strings.IndexByte(whitespace, c) < 0:
			r.plain(&b, c)
			return b.String(), nil
		}
	}
	return b.String(), nil
}

// plain reads the rest of an unquoted value, whose first byte is c; quotes in it are plain bytes.
func (r *environmentReader) plain(b *strings.Builder, c byte) {
	keep := b.Len() // spaces at the end go, escaped ones stay
	for {
		switch {
		case c == '\n' || c == '\r':
			r.chomp(b, keep)
			return
		case c == '\\' && r.text != "":
			if c = r.next(); c != '\n' && c != '\r' {
				b.WriteByte(c)
			}
			keep = b.Len()
		case c != '\\':
			b.WriteByte(c)
			if strings.IndexByte(whitespace, c) < 0 {
				keep = b.Len()
			}
		}
		if r.text == "" {
			r.chomp(b, keep)
			return
		}
		c = r.next()
	}
}

func (r *environmentReader) chomp(b *strings.Builder, keep int) {
	s := b.String()[:keep]
	b.Reset()
	b.WriteString(s)
}

func (r *environmentReader) quoted(b *strings.Builder, quote byte) error {
	for r.text != "" {
		c := r.next()
		if c == quote {
			return nil
		}
		if c != '\\' || quote == '\'' {
			b.WriteByte(c)
			continue
		}
		if r.text == "" {
			break
		}
		// Inside double quotes a backslash escapes only these, as in a shell.
		c = r.next()
		if strings.IndexByte("\"\\`$", c) < 0 && c != '\n' {
			b.WriteByte('\\')
		}
		if c != '\n' {
			b.WriteByte(c)
		}
	}
	return errors.New("a quote is never closed")
}
