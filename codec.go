// Role: JSON <-> the structs that a shim handles, without reflection.
// Runs in: client, daemon, shim.
// Owns: nothing; pure.
// Uses: nothing.

package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// What is written is byte for byte what encoding/json writes, and what both read means the same to both. encoding/json itself costs each
// process that uses it 0.25 ms and 150 KB (measured), which a shim is too small for. This reader is the stricter one: a name may stand in
// an object once, and nesting and length have bounds.
const (
	maxJSONDepth = 32
	maxJSONBytes = 8 << 20 // a unit file of maxUnitBytes, each byte written as \u00XX
)

// record is a struct with a codec. Its one method calls, for each field, the function below for the field's type; this serves both
// directions.
type record interface{ fields(c *codec) }

// keep tells what becomes of an empty field when it is written.
type keep bool

const (
	always keep = true
	ifSet  keep = false
)

type number interface {
	~int | ~int64 | ~uint32 | ~uint64
}

// codec writes or reads one text.
type codec struct {
	reading bool
	text    []byte // written so far, or to be read
	pos     int    // of the next byte to be read
	depth   int
	err     error // first mistake in what is read; then nothing more is read
	at      member
}

// member is the member of an object that is being read.
type member struct {
	name  []byte
	fold  bool   // take it by a name that differs in case, as encoding/json does when there is none that is the same
	taken bool   // its field was found
	field int    // number of fields that were asked
	seen  uint64 // fields that were taken before, as bits
}

// encode appends the JSON text of r to dst.
func encode(dst []byte, r record) []byte {
	c := codec{text: dst}
	c.writeObject(r)
	return c.text
}

// decode reads the JSON text of r. Fields that it does not name stay as they are, names that r does not know are skipped.
func decode(text []byte, r record) error {
	c := codec{reading: true, text: text}
	if len(text) > maxJSONBytes {
		return errors.New("text is too long")
	}
	if !c.null() {
		c.readObject(r)
	}
	if c.space(); c.pos < len(text) {
		c.fail("end of text")
	}
	return c.err
}

// ---- fields

func textField[T ~string](c *codec, name string, k keep, p *T) {
	if !c.member(name, k, *p == "") {
		return
	}
	if !c.reading {
		c.writeText(string(*p))
	} else if !c.null() {
		*p = T(c.readText())
	}
}

func numberField[T number](c *codec, name string, k keep, p *T) {
	if !c.member(name, k, *p == 0) {
		return
	}
	if !c.reading {
		writeNumber(c, *p)
	} else if !c.null() {
		*p = readNumber[T](c)
	}
}

func flagField(c *codec, name string, k keep, p *bool) {
	if !c.member(name, k, !*p) {
		return
	}
	if !c.reading {
		c.text = strconv.AppendBool(c.text, *p)
	} else if !c.null() {
		*p = c.readFlag()
	}
}

func textsField(c *codec, name string, k keep, p *[]string) {
	listField(c, name, k, p, func(s *string) {
		if !c.reading {
			c.writeText(*s)
		} else if !c.null() {
			*s = string(c.readText())
		}
	})
}

func numbersField[T number](c *codec, name string, k keep, p *[]T) {
	listField(c, name, k, p, func(n *T) {
		if !c.reading {
			writeNumber(c, *n)
		} else if !c.null() {
			*n = readNumber[T](c)
		}
	})
}

// recordOf is a pointer to T that is a record.
type recordOf[T any] interface {
	*T
	record
}

func recordsField[T any, P recordOf[T]](c *codec, name string, k keep, p *[]T) {
	listField(c, name, k, p, func(r *T) {
		if !c.reading {
			c.writeObject(P(r))
		} else if !c.null() {
			c.readObject(P(r))
		}
	})
}

// recordField: a record counts as empty when none of its fields is written.
func recordField(c *codec, name string, k keep, r record) {
	before := len(c.text)
	if !c.member(name, k, false) {
		return
	}
	if c.reading {
		if !c.null() {
			c.readObject(r)
		}
		return
	}
	start := len(c.text)
	c.writeObject(r)
	if k == ifSet && len(c.text) == start+len("{}") {
		c.text = c.text[:before]
	}
}

// pointerField: nil is empty.
func pointerField[T any, P recordOf[T]](c *codec, name string, k keep, p **T) {
	if !c.member(name, k, *p == nil) {
		return
	}
	switch {
	case !c.reading && *p == nil:
		c.text = append(c.text, "null"...)
	case !c.reading:
		c.writeObject(P(*p))
	case c.null():
		*p = nil
	default:
		*p = new(T)
		c.readObject(P(*p))
	}
}

// listField writes or reads each item by the same function. nil is null.
func listField[T any](c *codec, name string, k keep, p *[]T, item func(*T)) {
	if !c.member(name, k, len(*p) == 0) {
		return
	}
	if c.reading {
		*p = nil
		if !c.null() {
			*p = []T{}
			for c.open('['); c.more(']', len(*p)); {
				*p = append(*p, *new(T))
				item(&(*p)[len(*p)-1])
			}
		}
		return
	}
	if *p == nil {
		c.text = append(c.text, "null"...)
		return
	}
	c.text = append(c.text, '[')
	for i := range *p {
		c.comma()
		item(&(*p)[i])
	}
	c.text = append(c.text, ']')
}

// member says whether the value of this field is to be written, or read, now.
func (c *codec) member(name string, k keep, empty bool) bool {
	if c.reading {
		return c.take(name)
	}
	if empty && k == ifSet {
		return false
	}
	c.comma()
	c.writeText(name)
	c.text = append(c.text, ':')
	return true
}

func (c *codec) take(name string) bool {
	m := &c.at
	bit := uint64(1) << m.field
	m.field++
	if m.taken || string(m.name) != name && !(m.fold && strings.EqualFold(string(m.name), name)) {
		return false
	}
	if m.seen&bit != 0 {
		c.fail("each name once")
	}
	m.taken, m.seen = true, m.seen|bit
	return c.err == nil
}

// ---- writing

func (c *codec) writeObject(r record) {
	c.text = append(c.text, '{')
	r.fields(c)
	c.text = append(c.text, '}')
}

// comma separates what follows from an item before it.
func (c *codec) comma() {
	if last := c.text[len(c.text)-1]; last != '{' && last != '[' {
		c.text = append(c.text, ',')
	}
}

func writeNumber[T number](c *codec, n T) {
	if n < 0 {
		c.text = strconv.AppendInt(c.text, int64(n), 10)
		return
	}
	c.text = strconv.AppendUint(c.text, uint64(n), 10)
}

func (c *codec) writeText(s string) {
	c.text = append(c.text, '"')
	plain := 0 // s[plain:i] waits to be copied as it is
	for i := 0; i < len(s); {
		if b := s[i]; b >= ' ' && b < utf8.RuneSelf && b != '"' && b != '\\' && b != '<' && b != '>' && b != '&' {
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if escape := escapeOf(r, n); escape != "" {
			c.text = append(append(c.text, s[plain:i]...), escape...)
			plain = i + n
		}
		i += n
	}
	c.text = append(append(c.text, s[plain:]...), '"')
}

// escapeOf is how encoding/json writes a character of n bytes; "" = as it is. It escapes what could end a script in a web page, too.
func escapeOf(r rune, n int) string {
	const controls = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
	switch {
	case r == utf8.RuneError && n == 1:
		return `\ufffd`
	case r == '"':
		return `\"`
	case r == '\\':
		return `\\`
	case r == '\b':
		return `\b`
	case r == '\f':
		return `\f`
	case r == '\n':
		return `\n`
	case r == '\r':
		return `\r`
	case r == '\t':
		return `\t`
	case r < ' ':
		return `\u00` + controls[2*r:2*r+2]
	case r == '<':
		return `\u003c`
	case r == '>':
		return `\u003e`
	case r == '&':
		return `\u0026`
	case r == '\u2028':
		return `\u2028`
	case r == '\u2029':
		return `\u2029`
	}
	return ""
}

// ---- reading

// fail notes the first mistake and goes to the end of the text, where every reader stops.
func (c *codec) fail(want string) {
	if c.err == nil {
		c.err = fmt.Errorf("want %s at byte %d", want, c.pos)
	}
	c.pos = len(c.text)
}

func (c *codec) space() {
	for c.pos < len(c.text) && (c.text[c.pos] == ' ' || c.text[c.pos] == '\n' || c.text[c.pos] == '\t' || c.text[c.pos] == '\r') {
		c.pos++
	}
}

// peek returns the next byte that is no white space; 0 at the end.
func (c *codec) peek() byte {
	if c.space(); c.pos < len(c.text) {
		return c.text[c.pos]
	}
	return 0
}

// word skips w if it comes next.
func (c *codec) word(w string) bool {
	c.space()
	if len(c.text)-c.pos < len(w) || string(c.text[c.pos:c.pos+len(w)]) != w {
		return false
	}
	c.pos += len(w)
	return true
}

// null skips a null, which leaves a field as it is.
func (c *codec) null() bool { return c.word("null") }

// open enters an object or a list.
func (c *codec) open(bracket byte) {
	c.depth++
	if c.depth > maxJSONDepth {
		c.fail("fewer levels")
	}
	c.want(bracket)
}

func (c *codec) want(b byte) {
	if c.peek() != b {
		c.fail(strconv.QuoteRune(rune(b)))
		return
	}
	c.pos++
}

// more goes to the next item after n items were read, or leaves the object or list.
func (c *codec) more(bracket byte, n int) bool {
	if c.peek() == bracket {
		c.pos++
		c.depth--
		return false
	}
	if n > 0 {
		c.want(',')
	}
	return c.err == nil
}

func (c *codec) readObject(r record) {
	outer := c.at
	c.at = member{}
	c.open('{')
	for n := 0; c.more('}', n); n++ {
		c.at = member{name: c.readText(), seen: c.at.seen}
		c.want(':')
		r.fields(c)
		if !c.at.taken {
			c.at.fold, c.at.field = true, 0
			r.fields(c)
		}
		if !c.at.taken {
			c.skip()
		}
	}
	c.at = outer
}

// skip reads a value that nobody asked for.
func (c *codec) skip() {
	switch b := c.peek(); {
	case b == '"':
		c.readText()
	case b == '{':
		c.readObject(nobody{})
	case b == '[':
		c.open('[')
		for n := 0; c.more(']', n); n++ {
			c.skip()
		}
	case b == 't' || b == 'f':
		c.readFlag()
	case b == 'n':
		if !c.null() {
			c.fail("a value")
		}
	default:
		c.literal()
	}
}

// nobody is a record that knows no name.
type nobody struct{}

func (nobody) fields(*codec) {}

func (c *codec) readFlag() bool {
	if c.word("true") {
		return true
	}
	if !c.word("false") {
		c.fail("true or false")
	}
	return false
}

// readNumber reads a whole number that T can hold.
func readNumber[T number](c *codec) T {
	text := c.literal()
	n, err := strconv.ParseInt(string(text), 10, 64)
	if err == nil && int64(T(n)) == n && (T(n) < 0) == (n < 0) {
		return T(n)
	}
	u, err := strconv.ParseUint(string(text), 10, 64)
	if err == nil && uint64(T(u)) == u && T(u) >= 0 {
		return T(u)
	}
	c.fail("a number that fits")
	return 0
}

// literal reads the text of any JSON number: -? (0 | [1-9][0-9]*) (.[0-9]+)? ([eE][+-]?[0-9]+)?
func (c *codec) literal() []byte {
	c.space()
	start := c.pos
	c.skipAny("-", 1)
	if c.skipAny("0", 1) == 0 && c.skipAny("0123456789", 0) == 0 {
		c.fail("a value")
		return nil
	}
	if c.skipAny(".", 1) == 1 && c.skipAny("0123456789", 0) == 0 {
		c.fail("a digit")
	}
	if c.skipAny("eE", 1) == 1 {
		c.skipAny("+-", 1)
		if c.skipAny("0123456789", 0) == 0 {
			c.fail("a digit")
		}
	}
	return c.text[start:c.pos]
}

// skipAny skips bytes of set, at most most (0: all there are), and tells how many.
func (c *codec) skipAny(set string, most int) int {
	start := c.pos
	for c.pos < len(c.text) && (most == 0 || c.pos-start < most) && strings.IndexByte(set, c.text[c.pos]) >= 0 {
		c.pos++
	}
	return c.pos - start
}

// readText reads a string. The result is a part of the text where that has neither escapes nor characters beyond ASCII.
func (c *codec) readText() []byte {
	c.want('"')
	start := c.pos
	for ; c.pos < len(c.text); c.pos++ {
		switch b := c.text[c.pos]; {
		case b == '"':
			c.pos++
			return c.text[start : c.pos-1]
		case b == '\\' || b < ' ' || b >= utf8.RuneSelf:
			return c.readEscaped(append(make([]byte, 0, 2*(c.pos-start)+16), c.text[start:c.pos]...))
		}
	}
	c.fail("the end of a string")
	return nil
}

// readEscaped reads the rest of a string and appends it to s.
func (c *codec) readEscaped(s []byte) []byte {
	for c.pos < len(c.text) {
		r, n := utf8.DecodeRune(c.text[c.pos:])
		c.pos += n
		switch {
		case r == '"':
			return s
		case r < ' ':
			c.fail("the end of a string")
		case r == '\\':
			s = utf8.AppendRune(s, c.readEscape())
		default:
			s = utf8.AppendRune(s, r) // what is no character becomes U+FFFD
		}
	}
	c.fail("the end of a string")
	return nil
}

// readEscape reads what follows a backslash. Half of a surrogate pair becomes U+FFFD.
func (c *codec) readEscape() rune {
	const escapes, meanings = `"\/bfnrt`, "\"\\/\b\f\n\r\t"
	if c.pos == len(c.text) {
		return 0
	}
	b := c.text[c.pos]
	c.pos++
	if i := strings.IndexByte(escapes, b); i >= 0 {
		return rune(meanings[i])
	}
	if b != 'u' {
		c.fail("an escape")
		return 0
	}
	r := c.readHex()
	if !utf16.IsSurrogate(r) {
		return r
	}
	if rest := c.text[c.pos:]; len(rest) >= 6 && rest[0] == '\\' && rest[1] == 'u' {
		back := c.pos
		c.pos += 2
		if pair := utf16.DecodeRune(r, c.readHex()); pair != utf8.RuneError {
			return pair
		}
		if c.err == nil {
			c.pos = back // the other is a character of its own
		}
	}
	return utf8.RuneError
}

func (c *codec) readHex() rune {
	if len(c.text)-c.pos >= 4 {
		n, err := strconv.ParseUint(string(c.text[c.pos:c.pos+4]), 16, 16)
		if err == nil {
			c.pos += 4
			return rune(n)
		}
	}
	c.fail("four hexadecimal digits")
	return 0
}
