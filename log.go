// Role: log records: CRI framing, stamps, names of rotated files, reading, merging and following; the pure
// parts of the log protocol (DESIGN.md, section 3, L).
// Runs in: shim (framing, intents), client and daemon (reading).
// Owns: nothing; readers hold their own descriptors.
// Uses: nothing.

package main

import (
	"bytes"
	"container/heap"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ---- records

// logRecord is one record as it is shown: the parts of a long line are joined.
type logRecord struct {
	Time    time.Time
	Stream  string // stdout or stderr; "" = a line of the file that is no record, shown as it is
	Partial bool   // the line goes on in a later record, or its end is not there
	Gap     bool   // our own mark: lines were lost here
	Text    []byte // without newline; valid until the next record
}

// logStream is the number of a stream in the protocol.
type logStream uint32

const (
	streamOut logStream = 0
	streamErr logStream = 1
)

func (s logStream) String() string {
	if s == streamErr {
		return "stderr"
	}
	return "stdout"
}

// A record is stamp, stream, tag and text: `2026-11-22T18:00:00.123456789Z stdout F text`. Tag P: the line goes
// on in the next record of that stream (the CRI log format of Kubernetes).
const (
	stampBytes  = len("2026-11-22T18:00:00.123456789Z")
	prefixBytes = stampBytes + len(" stdout F ")
	tagAt       = prefixBytes - 2
)

// maxRecordText bounds the text of one record (bytes), as the container runtimes have it.
const maxRecordText = 16 << 10

// appendStamp appends a time in ns since 1970 as RFC 3339 in UTC, always stampBytes long.
func appendStamp(b []byte, ns int64) []byte {
	t := time.Unix(0, ns).UTC()
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	b = appendDigits(b, year, 4)
	b = appendDigits(append(b, '-'), int(month), 2)
	b = appendDigits(append(b, '-'), day, 2)
	b = appendDigits(append(b, 'T'), hour, 2)
	b = appendDigits(append(b, ':'), minute, 2)
	b = appendDigits(append(b, ':'), second, 2)
	b = appendDigits(append(b, '.'), t.Nanosecond(), 9)
	return append(b, 'Z')
}

func appendDigits(b []byte, n, width int) []byte {
	b = append(b, "000000000"[:width]...)
	for i := len(b) - 1; n > 0; i-- {
		b[i] = byte('0' + n%10)
		n /= 10
	}
	return b
}

// parseStamp reads what appendStamp wrote.
func parseStamp(b []byte) (ns int64, ok bool) {
	const form = "dddd-dd-ddTdd:dd:dd.dddddddddZ"
	return parseTime(b, form)
}

// parseTime reads digits where the form has d, and wants the form's own byte elsewhere. The digits are year,
// month, day, hour, minute, second and nanoseconds, in this order.
func parseTime(b []byte, form string) (ns int64, ok bool) {
	if len(b) != len(form) {
		return 0, false
	}
	var digits [23]byte
	n := 0
	for i, c := range b {
		if form[i] != 'd' {
			if c != form[i] {
				return 0, false
			}
			continue
		}
		if c < '0' || c > '9' {
			return 0, false
		}
		digits[n] = c - '0'
		n++
	}
	num := func(from, to int) (v int) {
		for _, d := range digits[from:to] {
			v = v*10 + int(d)
		}
		return v
	}
	year, month, day := num(0, 4), num(4, 6), num(6, 8)
	hour, minute, second := num(8, 10), num(10, 12), num(12, 14)
	if year < 1970 || year > 2261 || month < 1 || month > 12 || day < 1 || day > 31 || hour > 23 || minute > 59 || second > 59 {
		return 0, false // beyond 2261 a time in ns does not fit
	}
	return time.Date(year, time.Month(month), day, hour, minute, second, num(14, 23), time.UTC).UnixNano(), true
}

// rawRecord is one line of a log file.
type rawRecord struct {
	ns      int64
	stream  logStream
	partial bool
	text    []byte
}

// parseRecord reads one line of a log file, without its newline.
func parseRecord(line []byte) (r rawRecord, ok bool) {
	if len(line) < prefixBytes || line[stampBytes] != ' ' || line[tagAt-1] != ' ' || line[tagAt+1] != ' ' {
		return r, false
	}
	switch string(line[stampBytes+1 : tagAt-1]) {
	case "stdout":
	case "stderr":
		r.stream = streamErr
	default:
		return r, false
	}
	switch line[tagAt] {
	case 'F':
	case 'P':
		r.partial = true
	default:
		return r, false
	}
	r.ns, ok = parseStamp(line[:stampBytes])
	r.text = line[prefixBytes:]
	return r, ok
}

// framing says how bytes become records. With the bytes it is all that the records depend on, so that a successor
// makes the same ones.
type framing struct {
	stamp  int64
	stream logStream
	max    int  // bytes of text in one record
	end    bool // a last piece without newline ends its line
}

func (fr framing) prefix() (p [prefixBytes]byte) {
	b := appendStamp(p[:0], fr.stamp)
	b = append(append(b, ' '), fr.stream.String()...)
	_ = append(b, " F "...)
	return p
}

// frame appends the records of data to out, as long as out stays within limit bytes. It returns out and the number
// of bytes of data that are in it.
func (fr framing) frame(out, data []byte, limit int) (_ []byte, taken int) {
	p := fr.prefix()
	for taken < len(data) {
		text, step, tag := fr.piece(data[taken:])
		if len(out)+len(p)+len(text)+1 > limit {
			break
		}
		p[tagAt] = tag
		out = append(out, p[:]...)
		out = append(out, text...)
		out = append(out, '\n')
		taken += step
	}
	return out, taken
}

// piece takes the first record's text from rest, which is not empty.
func (fr framing) piece(rest []byte) (text []byte, step int, tag byte) {
	head := rest[:min(len(rest), fr.max+1)]
	if i := bytes.IndexByte(head, '\n'); i >= 0 {
		return rest[:i], i + 1, 'F'
	}
	if len(rest) > fr.max {
		return rest[:fr.max], fr.max, 'P'
	}
	if fr.end {
		return rest, len(rest), 'F'
	}
	return rest, len(rest), 'P'
}

// endRecord is the empty record that ends a line of which only parts are in the log.
func (fr framing) endRecord(out []byte) []byte {
	p := fr.prefix()
	return append(append(out, p[:]...), '\n')
}

// open reports whether the last record of data leaves its line open.
func (fr framing) open(data []byte) bool {
	return len(data) > 0 && !fr.end && data[len(data)-1] != '\n'
}

// takeable says how many bytes of data become records now: all complete lines, and of the rest what is too long to
// be carried over to the next batch.
func takeable(data []byte, most int) int {
	n := bytes.LastIndexByte(data, '\n') + 1
	n += (len(data) - n) / most * most
	if len(data)-n > carryBytes {
		return len(data)
	}
	return n
}

// ---- what was lost

// lostCount counts output that could not be written.
type lostCount struct {
	lines, bytes uint64
	from, to     int64 // ns
}

func (l lostCount) zero() bool { return l.lines == 0 && l.bytes == 0 }

// plus joins two counts, the older first.
func (l lostCount) plus(m lostCount) lostCount {
	switch {
	case m.zero():
		return l
	case l.zero():
		return m
	}
	return lostCount{l.lines + m.lines, l.bytes + m.bytes, min(l.from, m.from), max(l.to, m.to)}
}

const gapStart = "diakonos: lost "

// gapText is the text of the record that stands where lines were lost; parseGap reads it. It is an ordinary record
// on stderr, so that every reader of CRI logs shows it.
func gapText(l lostCount) []byte {
	b := strconv.AppendUint([]byte(gapStart), l.lines, 10)
	b = strconv.AppendUint(append(b, " lines, "...), l.bytes, 10)
	b = appendStamp(append(b, " bytes, from "...), l.from)
	return appendStamp(append(b, " to "...), l.to)
}

func parseGap(text []byte) (l lostCount, ok bool) {
	rest, ok := bytes.CutPrefix(text, []byte(gapStart))
	if !ok {
		return l, false
	}
	lines, rest, ok1 := bytes.Cut(rest, []byte(" lines, "))
	size, rest, ok2 := bytes.Cut(rest, []byte(" bytes, from "))
	from, to, ok3 := bytes.Cut(rest, []byte(" to "))
	if !ok1 || !ok2 || !ok3 {
		return l, false
	}
	var err1, err2 error
	l.lines, err1 = strconv.ParseUint(string(lines), 10, 64)
	l.bytes, err2 = strconv.ParseUint(string(size), 10, 64)
	l.from, ok1 = parseStamp(from)
	l.to, ok2 = parseStamp(to)
	return l, err1 == nil && err2 == nil && ok1 && ok2
}

func appendGap(out []byte, l lostCount, stamp int64) []byte {
	p := framing{stamp: stamp, stream: streamErr}.prefix()
	out = append(out, p[:]...)
	return append(append(out, gapText(l)...), '\n')
}

// ---- names

// currentName is the file that is written to; rotated ones stand beside it.
const currentName = "current"

// rotatedName is the name of a file that was rotated at ns: 20261122T180000.123456789Z. Name order is age order.
func rotatedName(ns int64) string {
	s := appendStamp(make([]byte, 0, stampBytes), ns)
	return string(s[:4]) + string(s[5:7]) + string(s[8:13]) + string(s[14:16]) + string(s[17:])
}

func parseRotatedName(name string) (ns int64, ok bool) {
	return parseTime([]byte(name), "ddddddddTdddddd.dddddddddZ")
}

// listRotated reads the times of the rotated files in dir, oldest first.
func listRotated(dir string) ([]int64, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var list []int64
	for {
		names, err := d.Readdirnames(512)
		for _, name := range names {
			if ns, ok := parseRotatedName(name); ok {
				list = append(list, ns)
			}
		}
		if err == io.EOF {
			slices.Sort(list)
			return list, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// ---- intents: what the pump writes down before it appends

// The pump file: a header; for each stream two places for the begun line that is carried over, used in turn; room to
// put one in front of the window; the window of the FIFO as it was seen; the area into which it is consumed.
const (
	batchBytes   = 64 << 10
	carryBytes   = 4 << 10
	pumpCarryAt  = 4096
	pumpFrontAt  = pumpCarryAt + 4*carryBytes
	pumpWantAt   = pumpFrontAt + carryBytes
	pumpAreaAt   = pumpWantAt + batchBytes
	pumpFileSize = pumpAreaAt + batchBytes

	pumpMagic    = "DKP\x01"
	pumpPhaseAt  = 4 // uint32, atomic: 1 = the intent stands
	pumpFlagsAt  = 8 // uint32, atomic
	pumpIntentAt = 16
	pumpLostAt   = 128 // lostCount: not yet told by a gap record
	pumpDropAt   = 160 // lostCount: what pumpLostAt becomes when a dropped intent is done
	pumpOpenAt   = 192 // uint32: bit per stream, the last record left its line open
	pumpBegunAt  = 196 // two carryWords
)

// carryWord says where the begun line of a stream is, and how long: it changes in one store.
type carryWord uint32

// length is 0 for what no pump wrote.
func (w carryWord) length() int {
	if n := int(w & 0xffff); n <= carryBytes {
		return n
	}
	return 0
}

func (w carryWord) place() int { return int(w >> 31) }

// after is the word for n bytes in the other place.
func (w carryWord) after(n int) carryWord { return (w>>31^1)<<31 | carryWord(n) }

// carryAt is where the begun line of a stream lies in the pump file.
func carryAt(s logStream, w carryWord) int { return pumpCarryAt + (2*int(s)+w.place())*carryBytes }

const (
	intentEnd   = 1 << 0 // a last piece without newline ends its line
	intentDrop  = 1 << 1 // what is not in the log is lost, and counted
	intentMem   = 1 << 2 // the window does not come from the FIFO: nothing to consume
	intentClose = 1 << 3 // ends an open line with an empty record
	intentTell  = 1 << 5 // only the gap record
	intentOld   = 1 << 4 // from a FIFO that is retired: leaves begun and open lines alone
)

// intent is one batch on its way from a FIFO to the log.
type intent struct {
	flags  uint32
	stream logStream
	n      int       // bytes of the window that it consumes
	text   int       // bytes of the data that are in the records; the data is begun line + window
	max    int       // bytes of text in one record
	begun  carryWord // the begun line before the window
	next   carryWord // the begun line that remains
	stamp  int64
	fifo   uint64 // inode
	file   uint64 // inode of the log file
	off    int64  // where the records begin
	length int    // bytes of the records
	gap    lostCount
}

func (in intent) framing() framing {
	return framing{in.stamp, in.stream, in.max, in.flags&intentEnd != 0}
}

// records makes the bytes that the intent appends, as far as limit allows, and says how many bytes of data are in them.
func (in intent) records(out, data []byte, limit int) (_ []byte, taken int) {
	if !in.gap.zero() {
		if out = appendGap(out, in.gap, in.stamp); len(out) > limit {
			return out[:0], 0
		}
	}
	if in.flags&intentClose != 0 {
		if out = in.framing().endRecord(out); len(out) > limit {
			return out[:0], 0
		}
	}
	return in.framing().frame(out, data, limit)
}

// put writes the intent into a header; its flags and the phase go separately.
func (in intent) put(header []byte) {
	b := header[pumpIntentAt:pumpLostAt]
	le := binary.LittleEndian
	le.PutUint32(b[0:], uint32(in.stream))
	le.PutUint32(b[4:], uint32(in.n))
	le.PutUint32(b[8:], uint32(in.max))
	le.PutUint32(b[12:], uint32(in.length))
	le.PutUint64(b[16:], uint64(in.stamp))
	le.PutUint64(b[24:], in.fifo)
	le.PutUint64(b[32:], in.file)
	le.PutUint64(b[40:], uint64(in.off))
	putLost(b[48:], in.gap)
	le.PutUint32(b[80:], uint32(in.text))
	le.PutUint32(b[84:], uint32(in.begun))
	le.PutUint32(b[88:], uint32(in.next))
}

var errBadIntent = errors.New("cannot read the pump file: not ours")

// getIntent reads the intent of a header whose phase is 1, and checks it.
func getIntent(header []byte) (in intent, err error) {
	b := header[pumpIntentAt:pumpLostAt]
	le := binary.LittleEndian
	in = intent{
		flags:  le.Uint32(header[pumpFlagsAt:]),
		stream: logStream(le.Uint32(b[0:])),
		n:      int(le.Uint32(b[4:])),
		max:    int(le.Uint32(b[8:])),
		length: int(le.Uint32(b[12:])),
		stamp:  int64(le.Uint64(b[16:])),
		fifo:   le.Uint64(b[24:]),
		file:   le.Uint64(b[32:]),
		off:    int64(le.Uint64(b[40:])),
		gap:    getLost(b[48:]),
		text:   int(le.Uint32(b[80:])),
		begun:  carryWord(le.Uint32(b[84:])),
		next:   carryWord(le.Uint32(b[88:])),
	}
	if in.stream > streamErr || in.n > batchBytes || in.max < 1 || in.max > batchBytes || in.off < 0 ||
		in.length > outBytes || in.begun.length() > carryBytes || in.next.length() > carryBytes ||
		in.text > in.begun.length()+in.n {
		return in, errBadIntent
	}
	return in, nil
}

func putLost(b []byte, l lostCount) {
	le := binary.LittleEndian
	le.PutUint64(b[0:], l.lines)
	le.PutUint64(b[8:], l.bytes)
	le.PutUint64(b[16:], uint64(l.from))
	le.PutUint64(b[24:], uint64(l.to))
}

func getLost(b []byte) lostCount {
	le := binary.LittleEndian
	return lostCount{le.Uint64(b[0:]), le.Uint64(b[8:]), int64(le.Uint64(b[16:])), int64(le.Uint64(b[24:]))}
}

// outBytes bounds the records of one batch: 64 KiB of short lines would become megabytes.
const outBytes = 256 << 10

// wholeRecords says how many of the first written bytes of out are whole records.
func wholeRecords(out []byte) int { return bytes.LastIndexByte(out, '\n') + 1 }

// lostFrom counts the part of an intent that is not among the first keep bytes of its records. scratch is overwritten.
func (in intent) lostFrom(scratch, data []byte, keep int) (l lostCount, taken int) {
	told := !in.gap.zero() && keep > 0
	_, taken = in.records(scratch[:0], data, keep)
	if rest := data[taken:]; len(rest) > 0 {
		l = lostCount{uint64(bytes.Count(rest, []byte{'\n'})), uint64(len(rest)), in.stamp, in.stamp}
		if in.flags&intentEnd != 0 && rest[len(rest)-1] != '\n' {
			l.lines++
		}
	}
	if told {
		return l, taken
	}
	return in.gap.plus(l), taken
}

// consumed says how many bytes were read from the FIFO into area, which began as the complement of want.
func consumed(want, area []byte) int {
	for i := range want {
		if want[i] != area[i] {
			return i
		}
	}
	return len(want)
}

// ---- reading

// logSource is the log of one unit.
type logSource struct {
	Name string
	Dir  string // log/NAME
}

// logQuery selects records.
type logQuery struct {
	Lines int       // the last so many over all sources; below 0 = all
	Since time.Time // zero = from the beginning
}

const (
	readBlock = 64 << 10
	joinBytes = 1 << 20 // a joined line longer than this is shown in parts
)

// readLogs gives the records of the sources, oldest first; several sources are merged by time. It shows what was
// there when it was called.
func readLogs(sources []logSource, q logQuery, emit func(name string, r logRecord) error) error {
	cursors := make([]*logCursor, len(sources))
	for i, s := range sources {
		cursors[i] = newCursor(s, q)
		defer cursors[i].close()
		if err := cursors[i].begin(q, joinTail); err != nil {
			return err
		}
	}
	return mergeLogs(cursors, q.Lines, emit)
}

// tailRule says what happens to a line whose end is not written yet.
type tailRule int

const (
	joinTail tailRule = iota // it is shown
	holdTail                 // it waits for its end
)

// logPart is one file of a source, from a position on.
type logPart struct {
	rotated int64    // 0 = current, or a file whose name is not known
	file    *os.File // nil = not open yet
	from    int64
	to      int64 // -1 = its size when it is opened
	count   int   // records that -n counted in it
}

// logCursor reads one source forward.
type logCursor struct {
	source logSource
	since  int64
	files  []logPart // yet to be read; the first is being read
	newest int64     // newest rotated file that was ever in files
	live   *os.File  // current, as far as it was read
	liveAt int64     // position after the last newline read in live
	tail   tailRule
	missed bool                              // a file was removed before it was read
	placed *os.File                          // that at0 is of
	at0    logPlace                          // its beginning
	list   func(dir string) ([]int64, error) // listRotated; a test rotates in the middle of it

	buf    []byte // unread bytes of the file being read
	held   []byte // what buf is cut from
	at     int64  // position in the file of the end of buf
	chain  [2]chain
	turn   int
	ns     int64 // stamp of the last record
	skip   int   // finished records to leave out: they lie before the last N
	left   int   // records that -n counted and that were not given yet
	queued []logRecord
}

// chain is a line that is being joined from its parts.
type chain struct {
	open bool
	text []byte
	ns   int64 // of its last part
	turn int   // grows with every part
}

func newCursor(s logSource, q logQuery) *logCursor {
	c := &logCursor{source: s, list: listRotated}
	if !q.Since.IsZero() {
		c.since = q.Since.UnixNano()
	}
	return c
}

func (c *logCursor) close() {
	for i := range c.files {
		if f := c.files[i].file; f != nil && f != c.live {
			f.Close()
		}
	}
	if c.live != nil {
		c.live.Close()
	}
}

// begin takes stock of the files and finds where the query starts.
func (c *logCursor) begin(q logQuery, tail tailRule) error {
	c.tail = tail
	if err := c.survey(); err != nil {
		return err
	}
	if c.since > 0 {
		// A file is never named earlier than a stamp in it.
		c.files = slices.DeleteFunc(c.files, func(f logPart) bool { return f.rotated != 0 && f.rotated < c.since })
	}
	if q.Lines < 0 {
		return nil
	}
	return c.seekLast(q.Lines)
}

// survey appends to files what came since the last survey: rotated files that are newer than any seen, and current.
// It opens current first: a rotation in between shows it in the directory, under its inode. In the middle of a
// rotation there is no current.
func (c *logCursor) survey() error {
	for {
		cur, err := openLog(filepath.Join(c.source.Dir, currentName))
		if err != nil {
			return err
		}
		again, err := c.surveyWith(cur)
		if err != nil || !again {
			return err
		}
	}
}

// surveyWith: again = current was rotated meanwhile, and the listing has it not, or not any more.
func (c *logCursor) surveyWith(cur *os.File) (again bool, err error) {
	list, err := c.listNewer()
	if err == nil && cur == nil && len(list) > 0 {
		list, err = c.listNewerTo(list[len(list)-1])
	}
	if err != nil {
		closeFile(cur)
		return false, err
	}
	if cur != nil && !sameFile(cur, filepath.Join(c.source.Dir, currentName)) {
		at := c.findRotated(cur, list)
		if at < 0 {
			cur.Close()
			return true, nil
		}
		list = list[:at]
	}
	if len(list) > 0 {
		c.newest = list[len(list)-1]
	}
	if c.live != nil {
		// The file that was current until now may be among them: it is read already.
		if at := c.findRotated(c.live, list); at >= 0 {
			list = slices.Delete(list, at, at+1)
		}
	}
	c.adopt(list, cur)
	return false, nil
}

// listNewer reads the times of the rotated files that are newer than any seen. The kernel gives a directory in
// pieces: of the files that are rotated meanwhile one may be missing and a later one be there. What was rotated before
// the listing began is there, and so is all that is older than a current which was opened before.
func (c *logCursor) listNewer() ([]int64, error) {
	list, err := c.list(c.source.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	i, _ := slices.BinarySearch(list, c.newest+1)
	return list[i:], nil
}

// listNewerTo lists again, for want of a current that shows how far a listing is complete: this one is complete up to
// the newest name of the one before. What is newer came after the survey began, and is left to the next one.
func (c *logCursor) listNewerTo(newest int64) ([]int64, error) {
	list, err := c.listNewer()
	i, _ := slices.BinarySearch(list, newest+1)
	return list[:i], err
}

func (c *logCursor) adopt(list []int64, cur *os.File) {
	for _, ns := range list {
		c.files = append(c.files, logPart{rotated: ns, to: -1})
	}
	if cur == nil {
		return
	}
	size := int64(0)
	if st, err := cur.Stat(); err == nil {
		size = st.Size()
	}
	c.files = append(c.files, logPart{file: cur, to: size})
	unread := func(f logPart) bool { return f.file == c.live }
	if c.live != nil && !slices.ContainsFunc(c.files, unread) {
		c.live.Close()
	}
	c.live, c.liveAt = cur, 0
}

// findRotated looks for an open file under a rotated name, newest first.
func (c *logCursor) findRotated(f *os.File, list []int64) int {
	for i := len(list) - 1; i >= 0; i-- {
		if sameFile(f, filepath.Join(c.source.Dir, rotatedName(list[i]))) {
			return i
		}
	}
	return -1
}

func sameFile(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}

// openLog opens a regular file for reading, never through a link. nil = there is none.
func openLog(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENXIO) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, nil
	}
	return f, nil
}

func closeFile(f *os.File) {
	if f != nil {
		f.Close()
	}
}

// openNext makes sure that the first of files is open. false = no file is left. A file that retention deleted
// meanwhile is passed over.
func (c *logCursor) openNext() (bool, error) {
	for len(c.files) > 0 {
		f := &c.files[0]
		if f.file == nil {
			file, err := openLog(filepath.Join(c.source.Dir, rotatedName(f.rotated)))
			if err != nil {
				return false, err
			}
			if file == nil {
				c.left -= f.count
				c.files, c.missed = c.files[1:], true
				continue
			}
			f.file = file
		}
		if f.to < 0 {
			st, err := f.file.Stat()
			if err != nil {
				return false, err
			}
			f.to = st.Size()
		}
		return true, nil
	}
	return false, nil
}

// ---- reading: the last N

// seekLast moves the cursor to where the last n records begin. It reads from the end.
func (c *logCursor) seekLast(n int) error {
	shown := c.tail == joinTail
	last := lastCount{want: n, since: c.since, cut: [2]bool{shown, shown}}
	for i := len(c.files) - 1; i >= 0; i-- {
		f := &c.files[i]
		if f.file == nil {
			file, err := openLog(filepath.Join(c.source.Dir, rotatedName(f.rotated)))
			if err != nil {
				return err
			}
			if file == nil {
				continue
			}
			f.file = file
			if st, err := file.Stat(); err == nil {
				f.to = st.Size()
			}
		}
		before := last.count
		at, done, err := linesBack(f.file, f.to, last.see)
		f.count = last.count - before
		if err != nil {
			return err
		}
		if done {
			c.dropBefore(i, at)
			break
		}
		if f.rotated != 0 {
			f.file.Close()
			f.file = nil
		}
	}
	c.skip, c.left = last.extra, last.count
	return nil
}

// dropBefore forgets the files before number i, and what lies before at in that one.
func (c *logCursor) dropBefore(i int, at int64) {
	c.files = c.files[i:]
	c.files[0].from = at
}

// lastCount counts finished records from the end of a log, and goes on to the beginning of the lines that they end.
type lastCount struct {
	want  int
	since int64

	count  int     // records counted
	extra  int     // records that are finished between the start and the first one counted
	cut    [2]bool // by stream: a part met now is the last of its line, whose end is missing
	need   [2]bool // by stream: parts met now belong to a line that is counted
	beyond int     // bytes read beyond the last record counted
}

// see gets the lines one by one, last first. It reports whether enough was seen: the line is then left out.
func (l *lastCount) see(line []byte) (enough bool) {
	r, ok := parseRecord(line)
	switch {
	case !ok && len(line) == 0:
		return false
	case ok && l.since > 0 && r.ns < l.since:
		return true
	}
	begins := !ok || !r.partial || l.cut[r.stream]
	counting := l.count < l.want
	if counting {
		if begins {
			l.count++
		}
	} else if l.beyond += len(line); !l.goOn(r, ok) || l.beyond > joinBytes {
		return true
	} else if begins {
		l.extra++
	}
	l.note(r, ok, counting)
	return false
}

// goOn: all are counted; is the line wanted as a part of one of them, or does such a part lie before it?
func (l *lastCount) goOn(r rawRecord, ok bool) bool {
	need := l.need
	switch {
	case isGap(r, ok):
		return false
	case ok && !r.partial:
		need[r.stream] = false
	}
	return need[0] || need[1]
}

func (l *lastCount) note(r rawRecord, ok, counted bool) {
	switch {
	case !ok:
	case isGap(r, ok): // ends all open lines
		l.cut, l.need = [2]bool{true, true}, [2]bool{}
	default:
		l.need[r.stream] = counted || r.partial && l.need[r.stream]
		l.cut[r.stream] = false
	}
}

func isGap(r rawRecord, ok bool) bool {
	if !ok || r.stream != streamErr || r.partial {
		return false
	}
	_, gap := parseGap(r.text)
	return gap
}

// linesBack calls see with the lines of f that end before to, last first. It returns the position after the line at
// which see had enough, or 0. Bytes after the last newline are no line.
func linesBack(f *os.File, to int64, see func(line []byte) bool) (at int64, done bool, err error) {
	size := int64(readBlock)
	buf := make([]byte, readBlock)
	end, first := to, true
	for end > 0 {
		start := max(0, end-size)
		if int64(len(buf)) < end-start {
			buf = make([]byte, end-start)
		}
		b := buf[:end-start]
		if n, err := f.ReadAt(b, start); err != nil && err != io.EOF {
			return 0, false, err
		} else if n < len(b) { // cut by a third party
			end = start + int64(n)
			continue
		}
		cut := len(b)
		if first {
			cut = bytes.LastIndexByte(b, '\n') + 1
			first = cut == 0
		}
		for cut > 0 {
			i := bytes.LastIndexByte(b[:cut-1], '\n') + 1
			if i == 0 && start > 0 {
				break
			}
			if see(b[i : cut-1]) {
				return start + int64(cut), true, nil
			}
			cut = i
		}
		switch {
		case cut == len(b) && size < joinBytes: // one line is longer than the block
			size *= 2
		case cut == len(b): // far too long for a record: give it up in pieces
			if see(b[:cut-1]) {
				return start + int64(cut), true, nil
			}
			end = start
		case cut == 0 && first:
			end = start
		default:
			end, size = start+int64(cut), readBlock
		}
	}
	return 0, false, nil
}

// ---- reading: forward

// next returns the next record, or false at the end of what survey found.
func (c *logCursor) next() (logRecord, bool, error) {
	for len(c.queued) == 0 {
		line, ok, err := c.line()
		if err != nil {
			return logRecord{}, false, err
		}
		if !ok {
			if c.tail == holdTail || !c.flushTails() {
				return logRecord{}, false, nil
			}
			continue
		}
		c.take(line)
	}
	r := c.queued[0]
	c.queued = c.queued[1:]
	return r, true, nil
}

// line returns the next line. Its bytes are valid until the next call.
func (c *logCursor) line() ([]byte, bool, error) {
	for {
		if i := bytes.IndexByte(c.buf, '\n'); i >= 0 {
			line := c.buf[:i]
			c.buf = c.buf[i+1:]
			return line, true, nil
		}
		ok, err := c.openNext()
		if !ok || err != nil {
			return nil, false, err
		}
		more, err := c.fill()
		if err != nil {
			return nil, false, err
		}
		if len(c.buf) == len(c.held) && len(c.held) > 0 && bytes.IndexByte(c.buf, '\n') < 0 {
			line := c.buf // no record is that long: give it up in pieces
			c.buf = nil
			return line, true, nil
		}
		if !more {
			c.leaveFile()
		}
	}
}

// fill reads more of the first of files behind what is left in buf.
func (c *logCursor) fill() (more bool, err error) {
	f := &c.files[0]
	if c.held == nil {
		c.held = make([]byte, readBlock)
	}
	if c.at < f.from {
		c.at = f.from
	}
	n := copy(c.held, c.buf)
	room := c.held[n:min(int64(len(c.held)), int64(n)+max(0, f.to-c.at))]
	m, err := f.file.ReadAt(room, c.at)
	if err != nil && err != io.EOF {
		return false, err
	}
	c.buf = c.held[:n+m]
	c.at += int64(m)
	return m > 0, nil
}

// leaveFile ends the first of files. What follows its last newline is not written yet, if it is current.
func (c *logCursor) leaveFile() {
	f := c.files[0]
	if f.file == c.live {
		c.liveAt = c.at - int64(len(c.buf))
	} else {
		f.file.Close()
	}
	c.buf, c.at = nil, 0
	c.files = c.files[1:]
	if len(c.files) == 0 {
		c.files, c.held = nil, nil
	}
}

// take joins one line of a file to what is open, and queues what is finished.
func (c *logCursor) take(line []byte) {
	r, ok := parseRecord(line)
	if !ok {
		if len(line) > 0 {
			c.give(logRecord{Time: time.Unix(0, c.ns), Text: line})
		}
		return
	}
	c.ns = r.ns
	if isGap(r, ok) {
		c.flushTails()
		c.give(logRecord{Time: time.Unix(0, r.ns), Stream: r.stream.String(), Gap: true, Text: r.text})
		return
	}
	ch := &c.chain[r.stream]
	out := logRecord{Time: time.Unix(0, r.ns), Stream: r.stream.String(), Partial: r.partial, Text: r.text}
	if !ch.open && !r.partial {
		c.give(out)
		return
	}
	ch.open = true
	ch.text = append(ch.text, r.text...)
	c.turn++
	ch.ns, ch.turn = r.ns, c.turn
	if r.partial && len(ch.text) < joinBytes {
		return
	}
	out.Text = ch.text
	c.give(out)
	ch.open, ch.text = r.partial, nil
}

// flushTails queues lines whose end is missing, in the order of their last parts.
func (c *logCursor) flushTails() (found bool) {
	order := [2]logStream{streamOut, streamErr}
	if c.chain[streamErr].turn < c.chain[streamOut].turn {
		order = [2]logStream{streamErr, streamOut}
	}
	for _, s := range order {
		ch := c.chain[s]
		c.chain[s] = chain{}
		if len(ch.text) > 0 {
			found = true
			c.give(logRecord{Time: time.Unix(0, ch.ns), Stream: s.String(), Partial: true, Text: ch.text})
		}
	}
	return found
}

// give queues a record, unless the query leaves it out.
func (c *logCursor) give(r logRecord) {
	if c.skip > 0 {
		c.skip--
		return
	}
	if c.since > 0 && r.Time.UnixNano() < c.since {
		return
	}
	if len(c.queued) == 0 {
		c.queued = nil
	}
	c.queued = append(c.queued, r)
}

// logPlace is a place in a log, at the beginning of a record.
type logPlace struct {
	inode  uint64
	offset int64
	first  [prefixBytes]byte // the beginning of the file: the inode of one that was removed comes again
}

// place is where the cursor is, if all that lies before it was given.
func (c *logCursor) place() (p logPlace, ok bool) {
	if len(c.queued) > 0 || c.chain[streamOut].open || c.chain[streamErr].open {
		return p, false
	}
	f, at := c.live, c.liveAt
	if len(c.files) > 0 {
		f, at = c.files[0].file, c.at-int64(len(c.buf))
	}
	if f == nil {
		return p, false
	}
	if f != c.placed {
		st, err := f.Stat()
		if err != nil {
			return p, false
		}
		p.inode = st.Sys().(*syscall.Stat_t).Ino
		if _, err = f.ReadAt(p.first[:], 0); err != nil && err != io.EOF {
			return p, false
		}
		c.placed, c.at0 = f, p
	}
	p = c.at0
	p.offset = at
	return p, true
}

// goTo leaves out what lies before a place; false = the file of that place is gone.
func (c *logCursor) goTo(p logPlace) bool {
	for i := range c.files {
		f := &c.files[i]
		if f.file == nil {
			f.file, _ = openLog(filepath.Join(c.source.Dir, rotatedName(f.rotated)))
		}
		if f.file == nil {
			continue
		}
		st, err := f.file.Stat()
		if err != nil || st.Sys().(*syscall.Stat_t).Ino != p.inode {
			continue
		}
		var first [prefixBytes]byte
		if _, err := f.file.ReadAt(first[:], 0); err != nil && err != io.EOF || first != p.first || st.Size() < p.offset {
			continue
		}
		for _, old := range c.files[:i] {
			closeFile(old.file)
		}
		c.dropBefore(i, p.offset)
		return true
	}
	return false
}

// lost tells, before catchUp, whether files may have been removed that the cursor has not come to: the one that it has read last is.
func (c *logCursor) lost() bool {
	if c.missed {
		c.missed = false
		return true
	}
	if c.live == nil {
		return false
	}
	st, err := c.live.Stat()
	return err == nil && st.Sys().(*syscall.Stat_t).Nlink == 0
}

// ---- reading: merging

// mergeItem is a source with its next record.
type mergeItem struct {
	c *logCursor
	i int // number of the source: equal times keep the order of the sources
	r logRecord
}

type mergeHeap []mergeItem

func (h mergeHeap) Len() int { return len(h) }
func (h mergeHeap) Less(i, j int) bool {
	if d := h[i].r.Time.Compare(h[j].r.Time); d != 0 {
		return d < 0
	}
	return h[i].i < h[j].i
}
func (h mergeHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *mergeHeap) Push(x any)   { *h = append(*h, x.(mergeItem)) }
func (h *mergeHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

// mergeLogs gives what the cursors have, by time; of a bounded query the last n.
func mergeLogs(cursors []*logCursor, n int, emit func(name string, r logRecord) error) error {
	var h mergeHeap
	for i, c := range cursors {
		r, ok, err := c.next()
		if err != nil {
			return err
		}
		if ok {
			h = append(h, mergeItem{c, i, r})
		}
	}
	heap.Init(&h)
	for len(h) > 0 {
		top := &h[0]
		if n < 0 || stillCounted(cursors) <= n {
			if err := emit(top.c.source.Name, top.r); err != nil {
				return err
			}
		}
		top.c.left--
		r, ok, err := top.c.next()
		if err != nil {
			return err
		}
		if !ok {
			heap.Pop(&h)
			continue
		}
		top.r = r
		heap.Fix(&h, 0)
	}
	return nil
}

// stillCounted is the number of records that are yet to come of those that -n counted.
func stillCounted(cursors []*logCursor) (n int) {
	for _, c := range cursors {
		n += max(0, c.left)
	}
	return n
}

// ---- following

// followEvery is how often directories are looked at where inotify cannot be had.
const followEvery = 250 * time.Millisecond

// followLogs gives what readLogs gives, and then new records as they come, until stop is closed.
func followLogs(sources []logSource, q logQuery, emit func(name string, r logRecord) error, stop <-chan struct{}) error {
	w := startLogWatch(sources)
	defer w.close()
	cursors := make([]*logCursor, len(sources))
	for i, s := range sources {
		cursors[i] = newCursor(s, q)
		defer cursors[i].close()
		if err := cursors[i].begin(q, holdTail); err != nil {
			return err
		}
	}
	if err := mergeLogs(cursors, q.Lines, emit); err != nil {
		return err
	}
	for _, c := range cursors {
		c.skip = 0
	}
	for {
		for _, c := range cursors {
			if err := c.catchUp(); err != nil {
				return err
			}
		}
		if err := mergeLogs(cursors, -1, emit); err != nil {
			return err
		}
		if !w.wait(stop) {
			return nil
		}
	}
}

// catchUp finds what was written since the cursor came to the end.
func (c *logCursor) catchUp() error {
	cur := filepath.Join(c.source.Dir, currentName)
	if c.live != nil && sameFile(c.live, cur) {
		c.addLive()
		return nil
	}
	// No longer current: its writer has left it, so what it holds now is all.
	if c.live != nil {
		c.addLive()
	}
	return c.survey()
}

// addLive queues the new part of current for reading.
func (c *logCursor) addLive() {
	st, err := c.live.Stat()
	if err != nil || st.Size() == c.liveAt {
		return
	}
	if st.Size() < c.liveAt { // cut by a third party
		c.liveAt = 0
	}
	c.files = append(c.files, logPart{file: c.live, from: c.liveAt, to: st.Size()})
}

// logWatch tells that something may have changed in the directories of sources.
type logWatch struct {
	sources []logSource
	file    *os.File      // inotify; nil = look every followEvery
	events  chan struct{} // one token at most
	weak    bool          // some directory is not watched
}

func startLogWatch(sources []logSource) *logWatch {
	w := &logWatch{sources: sources, events: make(chan struct{}, 1)}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return w
	}
	w.file = os.NewFile(uintptr(fd), "inotify")
	w.add()
	go w.listen()
	return w
}

// add watches each source's directory, and the one above for those that do not exist yet. Adding twice does no harm.
func (w *logWatch) add() {
	conn, err := w.file.SyscallConn()
	if err != nil {
		return
	}
	w.weak = false
	_ = conn.Control(func(fd uintptr) {
		for _, s := range w.sources {
			w.addOne(int(fd), s.Dir)
		}
	})
}

func (w *logWatch) addOne(fd int, dir string) {
	const above = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_ONLYDIR
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(dir), above); err != nil {
		w.weak = true
	}
	const mask = unix.IN_MODIFY | unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_DELETE | unix.IN_ONLYDIR
	if _, err := unix.InotifyAddWatch(fd, dir, mask); err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.weak = true
	}
}

// listen turns events into tokens. What they say does not matter: every cursor looks for itself.
func (w *logWatch) listen() {
	buf := make([]byte, 16<<10)
	for {
		if _, err := w.file.Read(buf); err != nil {
			return
		}
		select {
		case w.events <- struct{}{}:
		default:
		}
	}
}

// wait returns true when it is time to look again, false when stop is closed.
func (w *logWatch) wait(stop <-chan struct{}) bool {
	var tick <-chan time.Time
	if w.file == nil || w.weak {
		t := time.NewTimer(followEvery)
		defer t.Stop()
		tick = t.C
	}
	select {
	case <-stop:
		return false
	case <-tick:
	case <-w.events:
	}
	if w.file != nil {
		w.add()
	}
	return true
}

func (w *logWatch) close() {
	if w.file != nil {
		w.file.Close()
	}
}
