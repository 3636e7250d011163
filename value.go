// Role: TOML text -> values and the lines they stand on; the grammar of single values: durations, sizes,
// signals, exit statuses, booleans; the nearest known word.
// Runs in: client, daemon, shim.
// Owns: nothing; pure.
// Uses: codec.

package main

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
	"golang.org/x/sys/unix"
)

// infinity as a duration: no limit.
const infinity = time.Duration(math.MaxInt64)

// exitSet is a list of exit codes and signals, as in SuccessExitStatus.
type exitSet struct {
	Codes   []int
	Signals []syscall.Signal
}

func (s *exitSet) fields(c *codec) {
	numbersField(c, "Codes", always, &s.Codes)
	numbersField(c, "Signals", always, &s.Signals)
}

// mistake is one thing that is wrong in a unit file. Line 0: with the file as a whole.
type mistake struct {
	Line int
	Text string
}

// ---- TOML text

// Bounds of what is handed to the TOML library, whose time and memory grow with the square of some of them.
// Nobody may override them: a unit has some fifty keys, and no value nests deeper than two arrays.
const (
	maxKeys     = 1000
	maxKeyBytes = 255
	maxKeyParts = 16
	maxNesting  = 16
)

// keyPlace tells where a key stands in its file.
type keyPlace struct {
	path []string
	line int
	raw  string // the text of the file from its value on; "" for a section
}

// readTOML decodes text and finds the line of each of its keys, which the library does not tell.
func readTOML(text []byte) (map[string]any, []keyPlace, *mistake) {
	s := tomlScanner{text: stripBOM(string(text)), line: 1}
	s.file()
	if s.refused != nil {
		return nil, nil, s.refused
	}
	doc, wrong := decodeTOML(string(text))
	return doc, s.keys, wrong
}

func decodeTOML(text string) (doc map[string]any, wrong *mistake) {
	defer func() {
		// The library panics on what it believes cannot happen.
		if r := recover(); r != nil {
			doc, wrong = nil, &mistake{1, fmt.Sprintf("cannot read TOML: %v", r)}
		}
	}()
	_, err := toml.Decode(text, &doc)
	if err == nil {
		return doc, nil
	}
	var at toml.ParseError
	if errors.As(err, &at) {
		return nil, &mistake{syntaxLine(at, text), clipped(at.Message, maxMessage)}
	}
	return nil, &mistake{1, clipped(err.Error(), maxMessage)}
}

// syntaxLine: where the line itself ends too early the library may name the line behind it.
func syntaxLine(at toml.ParseError, text string) int {
	start := min(at.Position.Start, len(text))
	if strings.Contains(at.Message, `'\n'`) && start >= 0 {
		return 1 + strings.Count(text[:start], "\n")
	}
	return max(at.Position.Line, 1)
}

func stripBOM(text string) string {
	for _, bom := range []string{"\xff\xfe", "\xfe\xff", "\xef\xbb\xbf"} {
		if rest, ok := strings.CutPrefix(text, bom); ok {
			return rest
		}
	}
	return text
}

// tomlScanner walks through a TOML text and notes where keys stand. It accepts more than TOML does: what it
// cannot follow, the library refuses. Its methods return false when they cannot go on.
type tomlScanner struct {
	text    string
	pos     int
	line    int
	keys    []keyPlace
	refused *mistake
}

func (s *tomlScanner) file() bool {
	var section []string
	for s.skipBlank() {
		if s.peek() != '[' {
			if !s.pair(section, 0) {
				return false
			}
			continue
		}
		line := s.line
		s.pos++
		if s.peek() == '[' {
			s.pos++
		}
		path, ok := s.path(']')
		if !ok || !s.note(path, line, "") {
			return false
		}
		if s.peek() == ']' {
			s.pos++
		}
		section = path
	}
	return true
}

// pair reads KEY = VALUE.
func (s *tomlScanner) pair(section []string, nesting int) bool {
	line := s.line
	path, ok := s.path('=')
	if !ok {
		return false
	}
	s.skipSpaces()
	full := slices.Concat(section, path)
	return s.note(full, line, s.text[s.pos:]) && s.value(full, nesting)
}

func (s *tomlScanner) value(path []string, nesting int) bool {
	if nesting > maxNesting {
		return s.refuse(s.line, "arrays or tables are nested too deeply")
	}
	switch s.peek() {
	case '"', '\'':
		_, ok := s.quoted()
		return ok
	case '[':
		return s.items(']', func() bool { return s.value(path, nesting+1) })
	case '{':
		return s.items('}', func() bool { return s.pair(path, nesting+1) })
	}
	n := strings.IndexAny(s.text[s.pos:], ",]}#\n")
	if n < 0 {
		n = len(s.text) - s.pos
	}
	s.pos += n
	return n > 0
}

// items reads an array or an inline table up to its closing byte.
func (s *tomlScanner) items(closing byte, item func() bool) bool {
	s.pos++
	for s.skipBlank() {
		switch s.peek() {
		case closing:
			s.pos++
			return true
		case ',':
			s.pos++
		default:
			if !item() {
				return false
			}
		}
	}
	return false
}

// path reads a key with its dots, and the byte that ends it.
func (s *tomlScanner) path(end byte) ([]string, bool) {
	var path []string
	for {
		s.skipSpaces()
		part, ok := s.part()
		if !ok {
			return nil, false
		}
		path = append(path, part)
		if len(path) > maxKeyParts || len(part) > maxKeyBytes {
			return nil, s.refuse(s.line, "key is too long")
		}
		s.skipSpaces()
		c := s.peek()
		s.pos++
		if c == end {
			return path, true
		}
		if c != '.' {
			return nil, false
		}
	}
}

// part reads one part of a key, bare or quoted.
func (s *tomlScanner) part() (string, bool) {
	if c := s.peek(); c == '"' || c == '\'' {
		raw, ok := s.quoted()
		if !ok {
			return "", false
		}
		if plain, err := strconv.Unquote(raw); c == '"' && err == nil {
			return plain, true
		}
		return raw[1 : len(raw)-1], true
	}
	n := strings.IndexAny(s.text[s.pos:], ".=]#\"' \t\r\n")
	if n < 1 {
		return "", false
	}
	s.pos += n
	return s.text[s.pos-n : s.pos], true
}

// quoted reads a string of any of the four kinds and returns it as it is written.
func (s *tomlScanner) quoted() (string, bool) {
	start, quote := s.pos, s.text[s.pos:s.pos+1]
	if strings.HasPrefix(s.text[s.pos:], strings.Repeat(quote, 3)) {
		quote = strings.Repeat(quote, 3)
	}
	s.pos += len(quote)
	for s.pos < len(s.text) && !strings.HasPrefix(s.text[s.pos:], quote) {
		c := s.text[s.pos]
		if c == '\n' {
			if len(quote) == 1 {
				return "", false
			}
			s.line++
		}
		if c == '\\' && quote[0] == '"' && s.pos+1 < len(s.text) && s.text[s.pos+1] != '\n' {
			s.pos++
		}
		s.pos++
	}
	if s.pos >= len(s.text) {
		return "", false
	}
	s.pos += len(quote)
	// A multi-line string may end in one or two quotes of its own.
	for n := 0; len(quote) == 3 && n < 2 && s.peek() == quote[0]; n++ {
		s.pos++
	}
	return s.text[start:s.pos], true
}

func (s *tomlScanner) note(path []string, line int, raw string) bool {
	if len(s.keys) >= maxKeys {
		return s.refuse(line, fmt.Sprintf("more than %d keys", maxKeys))
	}
	if len(path) > maxKeyParts {
		return s.refuse(line, "key is too long")
	}
	s.keys = append(s.keys, keyPlace{path, line, raw})
	return true
}

func (s *tomlScanner) refuse(line int, text string) bool {
	s.refused = &mistake{line, text}
	return false
}

// peek returns the next byte, 0 at the end.
func (s *tomlScanner) peek() byte {
	if s.pos < len(s.text) {
		return s.text[s.pos]
	}
	return 0
}

func (s *tomlScanner) skipSpaces() {
	for s.peek() == ' ' || s.peek() == '\t' {
		s.pos++
	}
}

// skipBlank goes to the next byte that is neither white space nor part of a comment. False: there is none.
func (s *tomlScanner) skipBlank() bool {
	for s.pos < len(s.text) {
		switch s.text[s.pos] {
		case '\n':
			s.line++
		case ' ', '\t', '\r':
		case '#':
			n := strings.IndexByte(s.text[s.pos:], '\n')
			if n < 0 {
				return false
			}
			s.pos += n
			continue
		default:
			return true
		}
		s.pos++
	}
	return false
}

// ---- single values, as TOML gives them

// typeText names the TOML type of a value in a message.
func typeText(v any) string {
	switch v.(type) {
	case string:
		return "a string"
	case int64, float64:
		return "a number"
	case bool:
		return "a boolean"
	case []any:
		return "an array"
	case map[string]any, []map[string]any:
		return "a table"
	}
	return "a date"
}

// Bounds of what a message repeats of a file, in bytes.
const (
	maxMessage = 200
	maxShown   = 80
)

func clipped(s string, most int) string {
	if len(s) <= most {
		return s
	}
	for cut := most; cut > most-utf8.UTFMax; cut-- {
		if utf8.RuneStart(s[cut]) {
			return s[:cut] + "..."
		}
	}
	return s[:most] + "..." // no UTF-8
}

// shown quotes a word of the file for a message.
func shown(s string) string { return strconv.Quote(clipped(s, maxShown)) }

// parseDuration reads a time span of systemd.time(7): a number of seconds, or text with units.
func parseDuration(v any) (time.Duration, error) {
	switch v := v.(type) {
	case int64:
		return spanOf(float64(v), v, time.Second)
	case float64:
		if math.IsInf(v, 1) {
			return infinity, nil
		}
		return spanOf(v, 0, time.Second)
	case string:
		return parseSpan(v)
	}
	return 0, fmt.Errorf("want a duration such as 5 or \"2min 30s\", not %s", typeText(v))
}

func parseSpan(text string) (time.Duration, error) {
	rest := strings.TrimSpace(text)
	if rest == "infinity" {
		return infinity, nil
	}
	if rest == "" {
		return 0, errors.New("the duration is empty")
	}
	var sum time.Duration
	for rest != "" {
		number, after := cutRun(rest, "0123456789.")
		word, after := cutUnit(strings.TrimLeft(after, " \t\n"))
		d, err := parseSpanPart(number, word)
		if err != nil {
			return 0, fmt.Errorf("cannot read duration %s: %v", shown(text), err)
		}
		if sum > infinity-1-d {
			return 0, fmt.Errorf("duration %s is too large", shown(text))
		}
		sum, rest = sum+d, strings.TrimLeft(after, " \t\n")
	}
	return sum, nil
}

func parseSpanPart(number, word string) (time.Duration, error) {
	unit := spanUnit(word)
	if unit == 0 {
		return 0, fmt.Errorf("unknown unit %s", shown(word))
	}
	if n, err := strconv.ParseInt(number, 10, 64); err == nil {
		return spanOf(float64(n), n, unit)
	}
	f, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return 0, errors.New("expected a number")
	}
	return spanOf(f, 0, unit)
}

// spanOf multiplies; whole, unless 0, is number without loss.
func spanOf(number float64, whole int64, unit time.Duration) (time.Duration, error) {
	if math.IsNaN(number) || number < 0 {
		return 0, errors.New("a duration cannot be negative")
	}
	span := number * float64(unit)
	if span >= float64(infinity) {
		return 0, errors.New("the duration is too large; \"infinity\" means no limit")
	}
	if whole != 0 {
		return time.Duration(whole) * unit, nil
	}
	return time.Duration(math.Round(span)), nil
}

// spanUnit: the units of systemd.time(7); a month is 30.44 days, a year 365.25. 0 = no such unit.
func spanUnit(word string) time.Duration {
	const day = 24 * time.Hour
	switch word {
	case "us", "usec", "\u00b5s", "\u03bcs":
		return time.Microsecond
	case "ms", "msec":
		return time.Millisecond
	case "", "s", "sec", "second", "seconds":
		return time.Second
	case "m", "min", "minute", "minutes":
		return time.Minute
	case "h", "hr", "hour", "hours":
		return time.Hour
	case "d", "day", "days":
		return day
	case "w", "week", "weeks":
		return 7 * day
	case "M", "month", "months":
		return 2629800 * time.Second
	case "y", "year", "years":
		return 31557600 * time.Second
	}
	return 0
}

func cutRun(s, set string) (run, rest string) {
	n := len(s) - len(strings.TrimLeft(s, set))
	return s[:n], s[n:]
}

func cutUnit(s string) (word, rest string) {
	n := strings.IndexAny(s, "0123456789. \t\n")
	if n < 0 {
		n = len(s)
	}
	return s[:n], s[n:]
}

// parseSize reads bytes, or text with a unit of 1024: K, M, G, T.
func parseSize(v any) (int64, error) {
	switch v := v.(type) {
	case int64:
		return sizeOf(float64(v), v)
	case string:
		number, unit := cutRun(strings.TrimSpace(v), "0123456789.")
		factor := sizeUnit(strings.TrimSpace(unit))
		f, err := strconv.ParseFloat(number, 64)
		if err != nil || factor == 0 {
			return 0, fmt.Errorf("cannot read size %s, want bytes or text such as \"512M\"", shown(v))
		}
		return sizeOf(f*float64(factor), 0)
	}
	return 0, fmt.Errorf("want a size such as 65536 or \"512M\", not %s", typeText(v))
}

func sizeUnit(word string) int64 {
	switch word {
	case "", "B":
		return 1
	case "K":
		return 1 << 10
	case "M":
		return 1 << 20
	case "G":
		return 1 << 30
	case "T":
		return 1 << 40
	}
	return 0
}

// sizeOf bounds a size; whole, unless 0, is the same without loss.
func sizeOf(bytes float64, whole int64) (int64, error) {
	if bytes < 0 {
		return 0, errors.New("a size cannot be negative")
	}
	if bytes >= math.MaxInt64 {
		return 0, errors.New("the size is too large")
	}
	if whole != 0 {
		return whole, nil
	}
	return int64(bytes), nil
}

// parseBool reads a TOML boolean, or systemd's words for one.
func parseBool(v any) (bool, error) {
	switch v := v.(type) {
	case bool:
		return v, nil
	case string:
		switch strings.ToLower(v) {
		case "1", "yes", "y", "true", "t", "on":
			return true, nil
		case "0", "no", "n", "false", "f", "off":
			return false, nil
		}
		return false, fmt.Errorf("want true or false, not %s", shown(v))
	}
	return false, fmt.Errorf("want true or false, not %s", typeText(v))
}

// parseUMask reads octal text such as "0022". A number counts only when raw, the text of the file from the
// value on, shows that it was written in octal: 22 would mean 026.
func parseUMask(v any, raw string) (uint32, error) {
	switch v := v.(type) {
	case string:
		n, err := strconv.ParseUint(v, 8, 32)
		if err != nil || n > 0o777 {
			return 0, fmt.Errorf("want an octal number from 0000 to 0777, not %s", shown(v))
		}
		return uint32(n), nil
	case int64:
		if v != 0 && !strings.HasPrefix(raw, "0o") {
			return 0, fmt.Errorf("a plain number is not octal, write \"%04d\" or 0o%03d", v, v)
		}
		if v < 0 || v > 0o777 {
			return 0, errors.New("want an octal number from 0000 to 0777")
		}
		return uint32(v), nil
	}
	return 0, fmt.Errorf("want octal text such as \"0022\", not %s", typeText(v))
}

// Real-time signals as glibc numbers them: it keeps the kernel's first two for itself.
const (
	firstRTSignal = 34
	lastRTSignal  = 64
)

// parseSignal reads a signal as systemd does: 15, "15", "SIGTERM", "TERM", "RTMIN+3".
func parseSignal(v any) (syscall.Signal, error) {
	var text string
	switch v := v.(type) {
	case int64:
		text = strconv.FormatInt(v, 10)
	case string:
		text = v
	default:
		return 0, fmt.Errorf("want a signal such as \"SIGTERM\", not %s", typeText(v))
	}
	if n, err := strconv.Atoi(text); err == nil && 1 <= n && n <= lastRTSignal {
		return syscall.Signal(n), nil
	}
	if sig := signalNamed(strings.TrimPrefix(text, "SIG")); sig != 0 {
		return sig, nil
	}
	return 0, fmt.Errorf("unknown signal %s%s", shown(text), meantSignal(text))
}

// meantSignal: systemd has signals in upper case only.
func meantSignal(text string) string {
	upper := strings.ToUpper(text)
	if signalNamed(strings.TrimPrefix(upper, "SIG")) == 0 {
		return ""
	}
	return meant(upper, "%q")
}

// signalNamed takes a name without SIG. 0 = unknown.
func signalNamed(name string) syscall.Signal {
	if rest, ok := strings.CutPrefix(name, "RTMIN"); ok {
		return rtSignal(firstRTSignal, rest, "+")
	}
	if rest, ok := strings.CutPrefix(name, "RTMAX"); ok {
		return rtSignal(lastRTSignal, rest, "-")
	}
	return unix.SignalNum("SIG" + name)
}

func rtSignal(base int, offset, sign string) syscall.Signal {
	if offset == "" {
		return syscall.Signal(base)
	}
	n, err := strconv.Atoi(offset)
	if err != nil || !strings.HasPrefix(offset, sign) || base+n < firstRTSignal || base+n > lastRTSignal {
		return 0
	}
	return syscall.Signal(base + n)
}

// parseExitSet reads exit codes and signals, as an array or as words of one string.
func parseExitSet(v any) (exitSet, error) {
	var set exitSet
	var items []any
	switch v := v.(type) {
	case []any:
		items = v
	default:
		items = []any{v}
	}
	for _, item := range items {
		if err := set.add(item); err != nil {
			return exitSet{}, err
		}
	}
	return set, nil
}

func (s *exitSet) add(v any) error {
	switch v := v.(type) {
	case int64:
		return s.addWord(strconv.FormatInt(v, 10))
	case string:
		for word := range strings.FieldsSeq(v) {
			if err := s.addWord(word); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("want exit codes and signals, not %s", typeText(v))
}

func (s *exitSet) addWord(word string) error {
	code, err := strconv.Atoi(word)
	if err == nil && (code < 0 || code > 255) {
		return fmt.Errorf("exit code %s is not between 0 and 255", shown(word))
	}
	if err != nil {
		code = exitCodeNamed(word)
	}
	if code >= 0 {
		if !slices.Contains(s.Codes, code) {
			s.Codes = append(s.Codes, code)
		}
		return nil
	}
	sig := signalNamed(strings.TrimPrefix(word, "SIG"))
	if sig == 0 {
		return fmt.Errorf("%s is neither an exit code nor a signal%s", shown(word), meantSignal(word))
	}
	if !slices.Contains(s.Signals, sig) {
		s.Signals = append(s.Signals, sig)
	}
	return nil
}

// exitCodeNames: systemd.exec(5), "Process Exit Codes"; those from 64 on are of sysexits.h(3head).
var exitCodeNames = []struct {
	name string
	code int
}{
	{"SUCCESS", 0}, {"FAILURE", 1}, {"INVALIDARGUMENT", 2}, {"NOTIMPLEMENTED", 3}, {"NOPERMISSION", 4},
	{"NOTINSTALLED", 5}, {"NOTCONFIGURED", 6}, {"NOTRUNNING", 7},
	{"USAGE", 64}, {"DATAERR", 65}, {"NOINPUT", 66}, {"NOUSER", 67}, {"NOHOST", 68}, {"UNAVAILABLE", 69},
	{"SOFTWARE", 70}, {"OSERR", 71}, {"OSFILE", 72}, {"CANTCREAT", 73}, {"IOERR", 74}, {"TEMPFAIL", 75},
	{"PROTOCOL", 76}, {"NOPERM", 77}, {"CONFIG", 78},
	{"CHDIR", 200}, {"NICE", 201}, {"FDS", 202}, {"EXEC", 203}, {"MEMORY", 204}, {"LIMITS", 205},
	{"OOM_ADJUST", 206}, {"SIGNAL_MASK", 207}, {"STDIN", 208}, {"STDOUT", 209}, {"CHROOT", 210},
	{"IOPRIO", 211}, {"TIMERSLACK", 212}, {"SECUREBITS", 213}, {"SETSCHEDULER", 214}, {"CPUAFFINITY", 215},
	{"GROUP", 216}, {"USER", 217}, {"CAPABILITIES", 218}, {"CGROUP", 219}, {"SETSID", 220}, {"CONFIRM", 221},
	{"STDERR", 222}, {"PAM", 224}, {"NETWORK", 225}, {"NAMESPACE", 226}, {"NO_NEW_PRIVILEGES", 227},
	{"SECCOMP", 228}, {"SELINUX_CONTEXT", 229}, {"PERSONALITY", 230}, {"APPARMOR_PROFILE", 231},
	{"ADDRESS_FAMILIES", 232}, {"RUNTIME_DIRECTORY", 233}, {"CHOWN", 235}, {"SMACK_PROCESS_LABEL", 236},
	{"KEYRING", 237}, {"STATE_DIRECTORY", 238}, {"CACHE_DIRECTORY", 239}, {"LOGS_DIRECTORY", 240},
	{"CONFIGURATION_DIRECTORY", 241}, {"NUMA_POLICY", 242}, {"CREDENTIALS", 243}, {"BPF", 245},
	{"EXCEPTION", 255},
}

// exitCodeNamed: -1 = no such name.
func exitCodeNamed(name string) int {
	for _, c := range exitCodeNames {
		if c.name == name {
			return c.code
		}
	}
	return -1
}

// ---- the nearest word

// nearest returns the choice that word was probably meant to be: the same in another case, else the closest
// within two slips of the finger (one in a short word), else the only one that begins with it. "" = none.
func nearest(word string, choices []string) string {
	const longest = 64 // bytes; a longer word is no misspelling
	if word == "" || len(word) > longest {
		return ""
	}
	for _, c := range choices {
		if strings.EqualFold(c, word) {
			return c
		}
	}
	most := 2
	if len(word) <= 3 {
		most = 1
	}
	best, bestSlips := "", most+1
	for _, c := range choices {
		if len(c) > longest || len(c)-len(word) > most || len(word)-len(c) > most {
			continue
		}
		if n := slips(strings.ToLower(word), strings.ToLower(c)); n < bestSlips && n < len(c) {
			best, bestSlips = c, n
		}
	}
	if best != "" {
		return best
	}
	return onlyWithPrefix(word, choices)
}

func meant(near, format string) string {
	if near == "" {
		return ""
	}
	return ", did you mean " + fmt.Sprintf(format, near) + "?"
}

func onlyWithPrefix(word string, choices []string) string {
	const shortest = 3 // bytes
	only := ""
	for _, c := range choices {
		if len(word) < shortest || len(c) <= len(word) || !strings.EqualFold(c[:len(word)], word) {
			continue
		}
		if only != "" {
			return ""
		}
		only = c
	}
	return only
}

// slips counts the insertions, deletions, replacements and swaps of neighbours between two words.
func slips(a, b string) int {
	before, above := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range above {
		above[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			differ := 1
			if a[i-1] == b[j-1] {
				differ = 0
			}
			row[j] = min(above[j]+1, row[j-1]+1, above[j-1]+differ)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, above = above, row
	}
	return above[len(b)]
}
