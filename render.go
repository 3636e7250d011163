// Role: what a person sees: the list table, the status screens, job lines, log lines; colour, widths, and the
// rule that no control character of a service reaches a terminal.
// Runs in: client.
// Owns: a view's buffer.
// Uses: visible, wire, log, tree.

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/fatih/color"
	"github.com/mattn/go-isatty"
	"golang.org/x/sys/unix"
)

// Rules for all output:
//   - stdout carries what was asked for and nothing else; warnings, errors and hints go to stderr
//   - text of services passes visible, except the bytes of `logs` that do not go to a terminal
//   - messages begin in lower case and end without a full stop
//   - nothing is cut short unless stdout is a terminal

// view is one output and how to write for it.
type view struct {
	w        *bufio.Writer
	terminal bool
	colour   bool
	ascii    bool // draw with ASCII: the locale names another character set
	width    int  // cells; 0 = no limit
	now      time.Time
	zone     *time.Location
}

// viewBytes is the output buffer; lists of 1,000 units are written in a few calls.
const viewBytes = 32 << 10

func newView(f *os.File) *view {
	v := &view{w: bufio.NewWriterSize(f, viewBytes), now: time.Now(), zone: time.Local}
	v.terminal = isatty.IsTerminal(f.Fd())
	v.colour = v.terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	v.ascii = !localeIsUTF8()
	if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); v.terminal && err == nil {
		v.width = int(size.Col)
	}
	return v
}

// localeIsUTF8: containers often set no locale at all while the terminal is UTF-8, so only a locale that
// names something else counts (man 7 locale for the order).
func localeIsUTF8() bool {
	for _, key := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if val := os.Getenv(key); val != "" {
			low := strings.ToLower(val)
			return strings.Contains(low, "utf-8") || strings.Contains(low, "utf8")
		}
	}
	return true
}

func (v *view) print(texts ...string) {
	for _, t := range texts {
		v.w.WriteString(t) // an error stays in the writer until Flush
	}
}

func (v *view) line(texts ...string) {
	v.print(texts...)
	v.w.WriteByte('\n')
}

func (v *view) paint(ink color.Attribute, text string) string {
	if !v.colour || text == "" || ink == inkPlain {
		return text
	}
	c := color.New(ink)
	c.EnableColor()
	return c.Sprint(text)
}

const (
	inkPlain  = color.Reset
	inkGood   = color.FgGreen
	inkBad    = color.FgRed
	inkMoving = color.FgYellow
	inkDim    = color.Faint
	inkStrong = color.Bold
)

// glyph picks the drawing character or its ASCII stand-in.
func (v *view) glyph(drawn, ascii string) string {
	if v.ascii {
		return ascii
	}
	return drawn
}

// ---- JSON

// jsonText is v as JSON in one line, with the hidden characters beyond those that JSON escapes spelled \uXXXX.
func jsonText(v any) []byte {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return []byte("null") // our own types always encode, but for a NaN
	}
	line := bytes.TrimSuffix(buf.Bytes(), []byte("\n"))
	if bytes.IndexFunc(line, hidden) < 0 {
		return line
	}
	var b []byte
	for _, r := range string(line) {
		switch {
		case !hidden(r):
			b = utf8.AppendRune(b, r)
		case r > 0xffff:
			r -= 0x10000
			b = fmt.Appendf(b, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			b = fmt.Appendf(b, `\u%04x`, r)
		}
	}
	return b
}

// jsonArray writes one array, an element a line.
func jsonArray[T any](v *view, all []T) {
	v.print("[")
	for i := range all {
		if i > 0 {
			v.print(",")
		}
		v.line()
		v.w.Write(jsonText(&all[i]))
	}
	if len(all) > 0 {
		v.line()
	}
	v.line("]")
}

// ---- widths

// cells is how many columns of a terminal text takes.
func cells(text string) int {
	n := 0
	for i, r := range text {
		if r >= utf8.RuneSelf {
			return n + wideCells(text[i:])
		}
		n++
	}
	return n
}

func wideCells(text string) int {
	n := 0
	for _, r := range text {
		n += runeCells(r)
	}
	return n
}

// runeCells: the ranges of Unicode's EastAsianWidth W and F, in coarse steps.
func runeCells(r rune) int {
	switch {
	case r < 0x300:
		return 1
	case r == 0x200c || r == 0x200d || unicode.In(r, unicode.Mn, unicode.Me):
		return 0
	case r >= 0x1100 && r <= 0x115f, r >= 0x2e80 && r <= 0xa4cf, r >= 0xac00 && r <= 0xd7a3, r >= 0xf900 && r <= 0xfaff,
		r >= 0xfe30 && r <= 0xfe6f, r >= 0xff00 && r <= 0xff60, r >= 0xffe0 && r <= 0xffe6,
		r >= 0x1f300 && r <= 0x1f64f, r >= 0x1f680 && r <= 0x1faff, r >= 0x20000 && r <= 0x3fffd:
		return 2
	}
	return 1
}

// headCells returns the longest beginning of text that fits into n cells.
func headCells(text string, n int) string {
	for i, r := range text {
		if n -= runeCells(r); n < 0 {
			return text[:i]
		}
	}
	return text
}

// tailCells returns the longest end of text that fits into n cells.
func tailCells(text string, n int) string {
	i := len(text)
	for i > 0 {
		r, size := utf8.DecodeLastRuneInString(text[:i])
		if n -= runeCells(r); n < 0 {
			break
		}
		i -= size
	}
	return text[i:]
}

// cutEnd shortens text to n cells.
func (v *view) cutEnd(text string, n int) string {
	mark := v.glyph("…", "~")
	if cells(text) <= n || n < 1 {
		return text
	}
	return headCells(text, n-1) + mark
}

// cutMiddle shortens text to n cells and keeps both ends: names often differ in their last letters.
func (v *view) cutMiddle(text string, n int) string {
	mark := v.glyph("…", "~")
	if cells(text) <= n || n < 3 {
		return text
	}
	end := (n - 1) / 2
	return headCells(text, n-1-end) + mark + tailCells(text, end)
}

// wrapped writes lead and text, broken between words, or within a longer one, where the terminal ends; further lines begin as deep as lead.
func (v *view) wrapped(lead, text string) {
	indent := inkedCells(lead)
	room := v.room(indent)
	line, used := lead, 0
	for i, word := range strings.Split(text, " ") {
		n := inkedCells(word)
		if i > 0 && used+1+n <= room {
			line, used = line+" ", used+1
		} else if i > 0 {
			v.line(line)
			line, used = spaces(indent), 0
		}
		for ; n > room && !strings.Contains(word, "\x1b"); n = cells(word) {
			head := headCells(word, room)
			v.line(line, head)
			line, word = spaces(indent), word[len(head):]
		}
		line, used = line+word, used+n
	}
	v.line(line)
}

// inkedCells is cells of text that paint has coloured.
func inkedCells(text string) int {
	n := 0
	for i, part := range strings.Split(text, "\x1b[") {
		if i > 0 {
			_, part, _ = strings.Cut(part, "m")
		}
		n += cells(part)
	}
	return n
}

func spaces(n int) string {
	if n <= 0 {
		return ""
	}
	return strings.Repeat(" ", n)
}

func padRight(text string, n int) string { return text + spaces(n-cells(text)) }
func padLeft(text string, n int) string  { return spaces(n-cells(text)) + text }

// ---- small texts

// ageText is how long ago, in one unit: for columns.
func ageText(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < time.Second:
		return "now"
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dmin ago", d/time.Minute)
	case d < 2*day:
		return fmt.Sprintf("%dh ago", d/time.Hour)
	}
	return fmt.Sprintf("%dd ago", d/day)
}

// spanText is a duration in systemd's units, the two largest that count.
func spanText(d time.Duration) string {
	if d < 0 {
		d = 0
	}
	if d < time.Second {
		return fmt.Sprintf("%dms", d.Milliseconds())
	}
	units := []struct {
		size time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "min"}, {time.Second, "s"}}
	var parts []string
	for i, u := range units {
		n := d / u.size
		d %= u.size
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d%s", n, u.name))
		}
		if len(parts) == 2 || len(parts) == 1 && n == 0 && i > 0 {
			break
		}
	}
	return strings.Join(parts, " ")
}

// millis is how long a job took.
func millis(ms int64) string {
	if ms < 1000 {
		return fmt.Sprintf("%d ms", ms)
	}
	if ms < 60_000 {
		return fmt.Sprintf("%.1f s", float64(ms)/1000)
	}
	return spanText(time.Duration(ms) * time.Millisecond)
}

// byteText is a size in powers of 1024, as in unit files.
func byteText(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%dB", n)
	}
	f := float64(n)
	for _, unit := range []string{"K", "M", "G"} {
		f /= 1024
		if f < 9.95 {
			return fmt.Sprintf("%.1f%s", f, unit)
		}
		if f < 1023.5 {
			return fmt.Sprintf("%.0f%s", f, unit)
		}
	}
	return fmt.Sprintf("%.1fT", f/1024)
}

func cpuText(seconds float64) string {
	if seconds < 60 {
		return fmt.Sprintf("%.3gs", seconds)
	}
	return spanText(time.Duration(seconds * float64(time.Second)))
}

// wireTime reads a time of the wire; the zero time for null.
func wireTime(text *string) time.Time {
	if text == nil {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339Nano, *text)
	if err != nil {
		return time.Time{}
	}
	return t
}

func (v *view) clock(t time.Time) string { return t.In(v.zone).Format("Mon 2006-01-02 15:04:05 MST") }

// shownSignal names a signal number.
func shownSignal(n int) string {
	if name := unix.SignalName(unix.Signal(n)); name != "" {
		return name
	}
	return "signal " + strconv.Itoa(n)
}

// endText tells how a main process ended; "" = it has not, or nothing is known.
func endText(s *unitStatus) string {
	switch {
	case s.ExitSignal != nil:
		return "killed by " + visible(*s.ExitSignal) + " (" + visible(s.Result) + ")"
	case s.ExitCode == nil && (s.Result == "" || s.Result == "success"):
		return ""
	case s.ExitCode == nil:
		return visible(s.Result)
	}
	text := "exit code " + strconv.Itoa(*s.ExitCode) + exitCodeMeaning(*s.ExitCode)
	if s.Result == "" {
		return text
	}
	return text + " (" + visible(s.Result) + ")"
}

// exitCodeMeaning: set-up stages as in systemd.exec(5), and what a shell adds for a signal.
func exitCodeMeaning(code int) string {
	for _, c := range setupStageCodes {
		if c.code == code {
			return "/" + strings.ToUpper(string(c.stage))
		}
	}
	if code > 128 && code <= 128+31 {
		return ", as a shell reports " + shownSignal(code-128)
	}
	return ""
}

// ---- states

func stateInk(s *unitStatus) color.Attribute {
	switch {
	case s.LoadState == "bad-setting" && s.ActiveState == "inactive":
		return inkBad
	case s.ActiveState == "active":
		return inkGood
	case s.ActiveState == "failed":
		return inkBad
	case s.ActiveState == "inactive":
		return inkPlain
	}
	return inkMoving
}

// stateDot is the coloured dot before a unit.
func (v *view) stateDot(s *unitStatus) string {
	ink := stateInk(s)
	if ink == inkPlain {
		return v.glyph("○", "o")
	}
	return v.paint(ink, v.glyph("●", "*"))
}

func stateText(s *unitStatus) string {
	if s.LoadState != "loaded" && s.ActiveState == "inactive" {
		return visible(s.LoadState)
	}
	return visible(s.ActiveState + "/" + s.SubState)
}

// unsupervised: something of it lives, or is to be started again, and no shim looks after it.
func unsupervised(s *unitStatus) bool {
	if s.Supervised {
		return false
	}
	if s.MainPID != 0 || s.ControlPID != 0 || s.SubState == "unknown" {
		return true
	}
	return s.ActiveState != "inactive" && s.ActiveState != "failed" && s.SubState != "exited"
}

// ---- list

// listColumn is one column of the list; its cells lie in listRow at the same index.
type listColumn struct {
	title string
	right bool
	width int
}

const (
	colName = iota
	colState
	colPID
	colRestarts
	colMemory
	colSince
	colDescription
	colCount
)

type listRow [colCount]string

// The least that a column is shortened to (cells); below it the column goes.
const (
	leastName        = 16
	leastDescription = 12
)

// listScreen is the whole of `list`.
func (v *view) listScreen(units []unitStatus) {
	v.unsupervisedNotice(units)
	cols := []listColumn{colName: {title: "NAME"}, colState: {title: "STATE"}, colPID: {title: "PID", right: true},
		colRestarts: {title: "RESTARTS", right: true}, colMemory: {title: "MEMORY", right: true}, colSince: {title: "SINCE"},
		colDescription: {title: "DESCRIPTION"}}
	rows := make([]listRow, len(units))
	for c := range cols {
		cols[c].width = len(cols[c].title)
	}
	for i := range units {
		rows[i] = v.listRow(&units[i])
		for c, text := range rows[i] {
			cols[c].width = max(cols[c].width, cells(text))
		}
	}
	if cols[colDescription].width == len(cols[colDescription].title) && !slices.ContainsFunc(units, described) {
		cols[colDescription].width = 0
	}
	v.fit(cols)
	v.listLine(cols, listRow{"NAME", "STATE", "PID", "RESTARTS", "MEMORY", "SINCE", "DESCRIPTION"}, nil)
	for i := range rows {
		v.listLine(cols, rows[i], &units[i])
	}
	v.footnotes(units)
	v.outdatedNotice(units)
}

func described(s unitStatus) bool { return s.Description != "" }

func (v *view) listRow(s *unitStatus) listRow {
	r := listRow{colName: visible(s.Name), colState: stateText(s), colPID: "-", colRestarts: strconv.Itoa(s.Restarts),
		colMemory: "-", colSince: "-", colDescription: visible(s.Description)}
	if s.MainPID != 0 {
		r[colPID] = strconv.Itoa(s.MainPID)
	}
	if s.MemoryBytes != nil {
		r[colMemory] = byteText(*s.MemoryBytes)
	}
	if t := wireTime(s.StateSince); !t.IsZero() {
		r[colSince] = ageText(v.now.Sub(t))
	}
	return r
}

// columnGap is between two columns; dotCells is the dot before the state.
const (
	columnGap = 2
	dotCells  = 2
)

// fit shortens the columns to the terminal: first the description, then names, then columns go, the least
// telling first. A column of width 0 is not shown.
func (v *view) fit(cols []listColumn) {
	if v.terminal {
		cols[colState].width += dotCells
	}
	over := v.overflow(cols)
	if over <= 0 {
		return
	}
	if d := &cols[colDescription]; d.width-over >= leastDescription {
		d.width -= over
		return
	}
	for _, c := range []int{colDescription, colName, colSince, colMemory, colRestarts, colPID} {
		if over = v.overflow(cols); over <= 0 {
			return
		}
		if c == colName {
			cols[c].width = max(cols[c].width-over, min(cols[c].width, leastName))
			continue
		}
		cols[c].width = 0
	}
}

// overflow is by how many cells a row is wider than the terminal.
func (v *view) overflow(cols []listColumn) int {
	if v.width == 0 {
		return 0
	}
	sum := -columnGap
	for _, c := range cols {
		if c.width > 0 {
			sum += c.width + columnGap
		}
	}
	return sum - v.width
}

// listLine writes one row; s is nil for the titles.
func (v *view) listLine(cols []listColumn, r listRow, s *unitStatus) {
	pending := 0 // spaces owed: none are written at the end of a line
	for c, text := range r {
		if cols[c].width == 0 {
			continue
		}
		text, width := v.listCell(c, cols[c].width, text)
		if cols[c].right {
			pending += cols[c].width - width
		}
		if text != "" {
			v.print(spaces(pending), v.listPaint(c, text, s))
			pending = 0
		}
		if !cols[c].right {
			pending += cols[c].width - width
		}
		pending += columnGap
	}
	v.line()
}

// listCell shortens a cell to its column and returns it with its width.
func (v *view) listCell(c, width int, text string) (string, int) {
	n := cells(text)
	if c == colState && v.terminal {
		n += dotCells
	}
	if n <= width {
		return text, n
	}
	if c == colName {
		return v.cutMiddle(text, width), width
	}
	text = v.cutEnd(text, width)
	return text, cells(text)
}

func (v *view) listPaint(c int, text string, s *unitStatus) string {
	switch {
	case s == nil && c == colState && v.terminal:
		return v.paint(inkStrong, text) + spaces(dotCells)
	case s == nil:
		return v.paint(inkStrong, text)
	case c == colState && v.terminal:
		return v.stateDot(s) + " " + v.paint(stateInk(s), text)
	case c == colRestarts && s.Restarts > 0:
		return v.paint(inkMoving, text)
	}
	return text
}

// noticeNames bounds the names, and footnoteLines the lines, that a notice shows: a list of 1,000 broken units
// must not hide its table.
const (
	noticeNames   = 8
	footnoteLines = 10
)

func (v *view) unsupervisedNotice(units []unitStatus) {
	names, count := noticed(units, unsupervised)
	if count == 0 {
		return
	}
	it := "it"
	if count > 1 {
		it = "them"
	}
	v.wrapped("", v.paint(inkBad, "unsupervised: "+names+" (nothing restarts or logs "+it+")"))
	v.line()
}

// outdatedNotice tells of shims that have not followed an upgrade, or whose daemon was started anew from another file.
func (v *view) outdatedNotice(units []unitStatus) {
	names, count := noticed(units, func(s *unitStatus) bool { return s.ShimOutdated })
	if count == 0 {
		return
	}
	v.line()
	v.wrapped("", "shims of another program than the daemon: "+names+" (`diakonos daemon-upgrade` makes all run one)")
}

// noticed are the names of those units for which a notice holds, as far as there is room for them.
func noticed(units []unitStatus, holds func(*unitStatus) bool) (text string, count int) {
	var names []string
	for i := range units {
		if !holds(&units[i]) {
			continue
		}
		if count++; count <= noticeNames {
			names = append(names, visible(units[i].Name))
		}
	}
	text = strings.Join(names, ", ")
	if count > noticeNames {
		text += fmt.Sprintf(" and %d more", count-noticeNames)
	}
	return text, count
}

// footnotes tell what the table has no column for.
func (v *view) footnotes(units []unitStatus) {
	notes := []func(*unitStatus) string{failedNote, loadNote, removedNote, changedNote}
	first := true
	for _, note := range notes {
		count := 0
		for i := range units {
			text := note(&units[i])
			if text == "" {
				continue
			}
			if first {
				v.line()
				first = false
			}
			if count++; count <= footnoteLines {
				v.wrapped("", v.paint(inkStrong, visible(units[i].Name))+": "+text)
			}
		}
		if count > footnoteLines {
			v.line(fmt.Sprintf("and %d more like this", count-footnoteLines))
		}
	}
}

func failedNote(s *unitStatus) string {
	if s.ActiveState != "failed" {
		return ""
	}
	if s.Reason != "" {
		return "failed: " + visible(s.Reason)
	}
	return "failed: " + endText(s)
}

func loadNote(s *unitStatus) string {
	if s.LoadState != "bad-setting" {
		return ""
	}
	first, rest, _ := strings.Cut(strings.TrimSpace(s.LoadError), "\n")
	text := "cannot be loaded: " + visible(first)
	if rest != "" {
		text += fmt.Sprintf(" (and %d more, see `diakonos check %s`)", strings.Count(rest, "\n")+1, visible(s.Name))
	}
	return text
}

func removedNote(s *unitStatus) string {
	switch {
	case s.LoadState != "not-found":
		return ""
	case s.ActiveState == "inactive" || s.ActiveState == "failed":
		return "its unit file is gone; `diakonos forget " + visible(s.Name) + "` drops its logs and its record"
	}
	return "its unit file is gone; it runs on until it is stopped"
}

func changedNote(s *unitStatus) string {
	if !s.ChangedOnDisk || s.LoadState != "loaded" {
		return ""
	}
	return "its unit file has changed; `diakonos restart " + visible(s.Name) + "` applies it"
}

// noUnits is `list` of an empty service directory.
func (v *view) noUnits(dir string) {
	v.line("no units in ", visible(dir))
	v.line()
	v.line("A first one, as ", visible(dir), "/hello.service:")
	v.line()
	v.line("    [service]")
	v.line(`    ExecStart = "sleep 1000"`)
	v.line()
	v.line("Then: diakonos start hello")
}

// ---- status

// labelCells is the width of the labels of a status screen.
const labelCells = 12

// logIndent is how far the excerpts of logs are indented under a job line.
const logIndent = "    "

func (v *view) field(label, text string) {
	if text != "" {
		v.wrapped(v.paint(inkDim, padLeft(label+":", labelCells))+" ", text)
	}
}

// statusScreen is one unit of `status`, without its log lines.
func (v *view) statusScreen(s *unitStatus, procs []procInfo) {
	if unsupervised(s) {
		v.wrapped("", v.paint(inkBad, "unsupervised: "+visible(s.Name)+" (nothing restarts or logs it)"))
	}
	title := visible(s.Name)
	if s.Description != "" {
		title += " - " + visible(s.Description)
	}
	v.wrapped(v.stateDot(s)+" ", v.paint(inkStrong, title))
	v.field("Docs", visible(s.Documentation))
	v.loadFields(s)
	v.stateFields(s)
	v.field("Main PID", v.mainText(s, procs))
	if s.ControlPID != 0 {
		v.field("Control PID", strconv.Itoa(s.ControlPID))
	}
	if len(procs) > 0 {
		v.tree(procs)
	}
	v.costFields(s)
	if s.StatusText != "" {
		v.field("Status", `"`+visible(s.StatusText)+`"`)
	}
	v.field("Invocation", visible(s.InvocationID))
	v.field("Cgroup", visible(s.Cgroup))
}

func (v *view) loadFields(s *unitStatus) {
	enabled := "disabled"
	if s.Enabled {
		enabled = "enabled"
	}
	text := visible(s.LoadState) + " (" + enabled + ")"
	if s.UnitFile != "" {
		text = visible(s.LoadState) + " (" + visible(s.UnitFile) + "; " + enabled + ")"
	}
	if s.LoadState == "bad-setting" {
		text = v.paint(inkBad, text)
	}
	v.field("Loaded", text)
	if s.LoadError != "" {
		for line := range strings.SplitSeq(strings.TrimSpace(s.LoadError), "\n") {
			v.wrapped(spaces(labelCells+1), v.paint(inkBad, visible(line)))
		}
	}
	for _, note := range []string{removedNote(s), changedNote(s)} {
		v.field("Note", v.paint(inkMoving, note))
	}
}

func (v *view) stateFields(s *unitStatus) {
	text := v.paint(stateInk(s), visible(s.ActiveState+" ("+s.SubState+")"))
	if t := wireTime(s.StateSince); !t.IsZero() {
		text += " since " + v.clock(t) + ", " + spanText(v.now.Sub(t)) + " ago"
	}
	v.field("State", text)
	v.field("Reason", visible(s.Reason))
	if t := wireTime(s.NextStart); !t.IsZero() {
		v.field("Next start", "in "+spanText(t.Sub(v.now))+", "+v.clock(t))
	}
	v.field("Last end", endText(s))
}

func (v *view) mainText(s *unitStatus, procs []procInfo) string {
	if s.MainPID == 0 {
		return ""
	}
	for _, p := range procs {
		if p.PID == s.MainPID {
			return strconv.Itoa(p.PID) + " (" + v.cutEnd(visible(p.Command), v.room(labelCells+12)) + ")"
		}
	}
	return strconv.Itoa(s.MainPID)
}

// room is how many cells are left on a line after used ones; without a terminal there is no limit.
func (v *view) room(used int) int {
	if v.width == 0 {
		return 1 << 30
	}
	return max(v.width-used, leastDescription)
}

func (v *view) costFields(s *unitStatus) {
	if s.MemoryBytes != nil {
		v.field("Memory", byteText(*s.MemoryBytes))
	}
	if s.CPUSeconds != nil {
		v.field("CPU", cpuText(*s.CPUSeconds))
	}
	restarts := ""
	if s.Restarts > 0 {
		restarts = v.paint(inkMoving, strconv.Itoa(s.Restarts))
	}
	v.field("Restarts", restarts)
}

// treeLines bounds the processes that a status screen draws.
const treeLines = 50

// tree draws processes with lines; those whose parent is not among them stand at the left.
func (v *view) tree(procs []procInfo) {
	known := make(map[int]bool, len(procs))
	children := make(map[int][]procInfo, len(procs))
	for _, p := range procs {
		known[p.PID] = true
	}
	const top = 0
	for _, p := range procs {
		parent := p.PPID
		if !known[parent] || parent == p.PID {
			parent = top
		}
		children[parent] = append(children[parent], p)
	}
	label, left := padLeft("Tree:", labelCells), treeLines
	var draw func(parent int, indent string)
	draw = func(parent int, indent string) {
		for i, p := range children[parent] {
			if left--; left < 0 {
				return
			}
			branch, below := v.glyph("├─ ", "|- "), v.glyph("│  ", "|  ")
			if i == len(children[parent])-1 {
				branch, below = v.glyph("└─ ", "`- "), "   "
			}
			if parent == top {
				branch, below = "", ""
			}
			text := strconv.Itoa(p.PID) + " " + visible(p.Command) + procNote(p.State)
			v.line(v.paint(inkDim, label), " ", indent, branch, v.cutEnd(text, v.room(labelCells+1+cells(indent+branch))))
			label = spaces(labelCells)
			draw(p.PID, indent+below)
		}
	}
	draw(top, "")
	if left < 0 {
		v.line(spaces(labelCells+1), fmt.Sprintf("and %d more", len(procs)-treeLines))
	}
}

// procNote names the states that explain why a process does nothing (proc_pid_stat(5), field 3).
func procNote(state byte) string {
	switch state {
	case 'Z':
		return " (zombie)"
	case 'D':
		return " (in uninterruptible sleep)"
	case 'T', 't':
		return " (stopped)"
	}
	return ""
}

// daemonScreen is `daemon-status`.
func (v *view) daemonScreen(d *daemonStatus) {
	if !d.Running {
		v.line(v.glyph("○", "o"), " ", v.paint(inkStrong, "diakonosd"), " is not running")
		v.field("Home", visible(d.Home))
		return
	}
	v.line(v.paint(inkGood, v.glyph("●", "*")), " ", v.paint(inkStrong, "diakonosd"), " is running")
	v.field("Version", visible(d.Version))
	if t := wireTime(d.StartedAt); !t.IsZero() {
		v.field("Up", spanText(v.now.Sub(t))+", since "+v.clock(t))
	}
	v.field("PID", strconv.Itoa(d.PID))
	v.field("Mode", modeText(d.Mode))
	v.field("Home", visible(d.Home))
	v.field("Services", visible(d.ServiceDir))
	v.field("Units", fmt.Sprintf("%d, %d active, %d failed", d.Units, d.Active, d.Failed))
	v.field("Cgroups", visible(d.Cgroup))
	for i, text := range d.Weaker {
		label := "Missing"
		if i > 0 {
			v.wrapped(spaces(labelCells+1), v.paint(inkMoving, visible(text)))
			continue
		}
		v.field(label, v.paint(inkMoving, visible(text)))
	}
}

func modeText(mode string) string {
	switch mode {
	case modeAuto:
		return "auto (started by a command; its shims revive it)"
	case modeForeground:
		return "foreground (whatever started it keeps it alive)"
	case modeInit:
		return "init (kept alive by PID 1)"
	}
	return visible(mode)
}

// ---- jobs

// jobWord is the first word of a job's line.
func jobWord(verb, outcome string) string {
	switch outcome {
	case "failed", "dependency":
		return "failed"
	case "canceled":
		return "canceled"
	case "skipped":
		return "unchanged"
	}
	switch verb {
	case "start":
		return "started"
	case "stop":
		return "stopped"
	case "restart":
		return "restarted"
	case "reload":
		return "reloaded"
	case "enable":
		return "enabled"
	case "disable":
		return "disabled"
	case "reset-failed":
		return "reset"
	case "forget":
		return "forgotten"
	case "daemon-upgrade":
		return "upgraded"
	}
	return visible(verb)
}

func jobInk(outcome string) color.Attribute {
	switch outcome {
	case "failed", "dependency":
		return inkBad
	case "canceled":
		return inkMoving
	case "skipped":
		return inkPlain
	}
	return inkGood
}

// jobWordCells is the widest of jobWord's words.
const jobWordCells = len("restarted")

// jobText is the line of one job; names is the width of the name column.
func (v *view) jobText(j *jobLine, names int) string {
	var parts []string
	add := func(text string) {
		if text != "" {
			parts = append(parts, text)
		}
	}
	text := visible(j.Text)
	failed := j.Outcome == "failed" || j.Outcome == "dependency"
	if failed && text == "" && j.Culprit != "" {
		text = `requires "` + visible(j.Culprit) + `", which failed`
	}
	if j.MainPID != 0 && j.Outcome != "canceled" { // then it is about to end
		add("pid " + strconv.Itoa(j.MainPID))
	}
	if failed {
		text = visible(j.Verb) + ": " + text
	}
	add(text)
	if len(j.Left) > 0 {
		add("processes left: " + pidsText(j.Left))
	}
	if j.Millis > 0 || j.Outcome == "done" {
		add(millis(j.Millis))
	}
	word := v.paint(jobInk(j.Outcome), padRight(jobWord(j.Verb, j.Outcome), jobWordCells))
	unit := j.Unit
	if unit == "" {
		unit = "diakonosd"
	}
	return strings.TrimRight(word+"  "+padRight(visible(unit), names)+"  "+strings.Join(parts, "  "), " ")
}

func pidsText(pids []int) string {
	texts := make([]string, len(pids))
	for i, p := range pids {
		texts[i] = strconv.Itoa(p)
	}
	return strings.Join(texts, " ")
}

// ---- logs

// logPrinter writes log records, of one or several services.
type logPrinter struct {
	v      *view
	names  []string // more than one: each line carries its name
	width  int      // of the widest name, cells
	lead   string   // before the first record
	indent string
	exact  bool // the bytes as the service wrote them
	open   string
	line   []byte
}

func newLogPrinter(v *view, names []string) *logPrinter {
	p := &logPrinter{v: v, names: names, exact: !v.terminal}
	for _, n := range names {
		p.width = max(p.width, cells(n))
	}
	return p
}

// logStamp is local time; journalctl's form, with milliseconds.
const logStamp = "Jan 02 15:04:05.000"

// write shows one record. The parts of a long line come out as one line, unless another record comes between.
func (p *logPrinter) write(name string, r logRecord) error {
	key := name + "\x00" + r.Stream
	b := append(p.line[:0], p.lead...)
	p.lead = ""
	if p.open != "" && p.open != key {
		b = append(b, '\n')
	}
	if p.open != key {
		b = p.appendPrefix(b, name, r)
	}
	if p.exact && !r.Gap {
		b = append(b, r.Text...)
	} else {
		b = appendVisible(b, string(r.Text), "\t")
	}
	p.open = key
	if !r.Partial {
		b, p.open = append(b, '\n'), ""
	}
	p.line = b
	_, err := p.v.w.Write(b)
	return err
}

// finish ends a line that is still open.
func (p *logPrinter) finish() {
	if p.open != "" {
		p.v.line()
		p.open = ""
	}
}

func (p *logPrinter) appendPrefix(b []byte, name string, r logRecord) []byte {
	b = append(b, p.indent...)
	if p.v.colour {
		b = append(b, p.v.paint(inkDim, r.Time.In(p.v.zone).Format(logStamp))...)
	} else {
		b = r.Time.In(p.v.zone).AppendFormat(b, logStamp)
	}
	b = append(b, ' ')
	if len(p.names) > 1 {
		b = append(b, p.v.paint(p.nameInk(name), padRight(name, p.width))...)
		b = append(b, ' ')
	}
	return append(b, p.v.logMark(r)...)
}

// logMark tells the streams apart, also without colour.
func (v *view) logMark(r logRecord) string {
	switch {
	case r.Gap:
		return v.paint(inkMoving, "#") + " "
	case r.Stream == "stderr":
		return v.paint(inkBad, "!") + " "
	}
	return "  "
}

// nameInk gives each service its own colour, in the order of the command line.
func (p *logPrinter) nameInk(name string) color.Attribute {
	inks := []color.Attribute{color.FgCyan, color.FgMagenta, color.FgBlue, color.FgGreen, color.FgYellow}
	for i, n := range p.names {
		if n == name {
			return inks[i%len(inks)]
		}
	}
	return inkPlain
}

// logLine is the object of `logs --json`.
type logLine struct {
	Time    string `json:"time"`
	Name    string `json:"name"`
	Stream  string `json:"stream"`
	Text    string `json:"text"`
	Partial bool   `json:"partial"`
	Gap     bool   `json:"gap"`
}

func (v *view) logJSON(name string, r logRecord) error {
	_, err := v.w.Write(append(logJSON(name, r), '\n'))
	return err
}

func logJSON(name string, r logRecord) []byte {
	return jsonText(&logLine{Time: r.Time.UTC().Format(time.RFC3339Nano), Name: name, Stream: r.Stream, Partial: r.Partial, Gap: r.Gap,
		Text: strings.ToValidUTF8(string(r.Text), "\uFFFD")})
}
