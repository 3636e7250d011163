// Role: tests of log records: framing, stamps, names, reading, merging and following.
// Runs in: tests.
// Owns: nothing.
// Uses: log.

package main

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const day0 = 1795370400_000000000 // 2026-11-22T18:00:00Z, ns

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func appendFile(t testing.TB, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// rec makes the line of a record, at so many seconds after day0.
func rec(second int, stream, tag, text string) string {
	return string(appendStamp(nil, day0+int64(second)*1e9)) + " " + stream + " " + tag + " " + text + "\n"
}

func sampleLog(lines int) string {
	var b strings.Builder
	for i := range lines {
		b.WriteString(rec(i, "stdout", "F", benchLine[:99]))
	}
	return b.String()
}

func TestStamps(t *testing.T) {
	for _, c := range []struct {
		ns   int64
		want string
	}{
		{0, "1970-01-01T00:00:00.000000000Z"},
		{day0 + 123456789, "2026-11-22T18:00:00.123456789Z"},
		{day0 - 1, "2026-11-22T17:59:59.999999999Z"},
	} {
		if got := string(appendStamp(nil, c.ns)); got != c.want {
			t.Errorf("stamp of %d is %s, want %s", c.ns, got, c.want)
		}
		if ns, ok := parseStamp([]byte(c.want)); !ok || ns != c.ns {
			t.Errorf("%s is %d, want %d", c.want, ns, c.ns)
		}
	}
	for _, bad := range []string{"", "2026", "2026-11-22 18:00:00.123456789Z", "2026-13-22T18:00:00.123456789Z", "9999-11-22T18:00:00.123456789Z", "2026-11-22T18:00:00.12345678xZ"} {
		if _, ok := parseStamp([]byte(bad)); ok {
			t.Errorf("%q passes as a stamp", bad)
		}
	}
}

func TestRotatedNames(t *testing.T) {
	if got := rotatedName(day0 + 123456789); got != "20261122T180000.123456789Z" {
		t.Errorf("name is %s", got)
	}
	last := ""
	for range 1000 {
		ns := rand.Int64N(8e18)
		name := rotatedName(ns)
		if back, ok := parseRotatedName(name); !ok || back != ns {
			t.Errorf("%s is %d, want %d", name, back, ns)
		}
		if later := rotatedName(ns + 1); later <= name {
			t.Errorf("%s is not after %s", later, name)
		}
		last = name
	}
	for _, bad := range []string{"current", "", last + "x", last[1:], "2026112aT180000.123456789Z"} {
		if _, ok := parseRotatedName(bad); ok {
			t.Errorf("%q passes as a rotated file", bad)
		}
	}
}

func TestFrame(t *testing.T) {
	for _, c := range []struct {
		name  string
		data  string
		end   bool
		limit int
		want  []string // tag and text
		taken int
	}{
		{"nothing makes nothing", "", false, 1000, nil, 0},
		{"lines", "a\n\nb\n", false, 1000, []string{"F a", "F ", "F b"}, 5},
		{"a piece is a part", "a\nb", false, 1000, []string{"F a", "P b"}, 3},
		{"a piece at the end is a line", "a\nb", true, 1000, []string{"F a", "F b"}, 3},
		{"a line of the longest text", "12345678\n", false, 1000, []string{"F 12345678"}, 9},
		{"a longer line is cut", "123456789\n", false, 1000, []string{"P 12345678", "F 9"}, 10},
		{"a piece of the longest text", "12345678", false, 1000, []string{"P 12345678"}, 8},
		{"what does not fit is left", "a\nb\n", false, prefixBytes + 2, []string{"F a"}, 2},
		{"a first record that does not fit", "a\n", false, prefixBytes + 1, nil, 0},
	} {
		fr := framing{stamp: day0, stream: streamErr, max: 8, end: c.end}
		out, taken := fr.frame(nil, []byte(c.data), c.limit)
		var got []string
		for line := range strings.Lines(string(out)) {
			got = append(got, strings.TrimSuffix(strings.TrimPrefix(line, "2026-11-22T18:00:00.000000000Z stderr "), "\n"))
		}
		if !slices.Equal(got, c.want) || taken != c.taken {
			t.Errorf("%s: got %q of %d bytes, want %q of %d", c.name, got, taken, c.want, c.taken)
		}
	}
}

func TestTakeable(t *testing.T) {
	long := strings.Repeat("x", maxRecordText)
	for _, c := range []struct {
		name string
		data string
		want int
	}{
		{"nothing", "", 0},
		{"a begun line is carried over", "abc", 0},
		{"complete lines are taken", "a\nb\nc", 4},
		{"whole parts of a long line are taken", "a\n" + long + "rest", 2 + len(long)},
		{"what is too long to carry is taken", long[:carryBytes+1], carryBytes + 1},
		{"what can be carried is not", long[:carryBytes], 0},
	} {
		if got := takeable([]byte(c.data), maxRecordText); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

func TestGapText(t *testing.T) {
	l := lostCount{12, 3456, day0, day0 + 5e9}
	text := gapText(l)
	if want := "diakonos: lost 12 lines, 3456 bytes, from 2026-11-22T18:00:00.000000000Z to 2026-11-22T18:00:05.000000000Z"; string(text) != want {
		t.Errorf("got %s, want %s", text, want)
	}
	if back, ok := parseGap(text); !ok || back != l {
		t.Errorf("%s is read as %+v", text, back)
	}
	for i := range text {
		if _, ok := parseGap(text[:i]); ok {
			t.Errorf("%q passes as a gap", text[:i])
		}
	}
}

func TestIntentSurvivesTheHeader(t *testing.T) {
	in := intent{stream: streamErr, n: 5, text: 6, max: 7, begun: carryWord(0).after(9), next: carryWord(3), stamp: 10, fifo: 11, file: 12, off: 13, length: 14, gap: lostCount{15, 16, 17, 18}}
	header := make([]byte, 4096)
	in.put(header)
	if got, err := getIntent(header); err != nil || got != in {
		t.Errorf("got %+v, %v, want %+v", got, err, in)
	}
	if !bytes.Equal(header[pumpLostAt:], make([]byte, 4096-pumpLostAt)) {
		t.Error("the intent reaches into what follows it")
	}
}

// readAll reads with a query, as "NAME: text" with marks.
func readAll(t *testing.T, q logQuery, sources ...logSource) (list []string) {
	t.Helper()
	if err := readLogs(sources, q, collect(&list)); err != nil {
		t.Fatal(err)
	}
	return list
}

func collect(list *[]string) func(string, logRecord) error {
	return func(name string, r logRecord) error {
		text := name + ": " + string(r.Text)
		if r.Partial {
			text += " [part]"
		}
		if r.Gap {
			text += " [gap]"
		}
		*list = append(*list, text)
		return nil
	}
}

func wantLines(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got  %.500q\nwant %.500q", got, want)
	}
}

func TestReadLogs(t *testing.T) {
	all := logQuery{Lines: -1}
	gap := string(gapText(lostCount{1, 2, day0, day0}))
	for _, c := range []struct {
		name    string
		rotated []string
		current string
		q       logQuery
		want    []string
	}{
		{"no log", nil, "", all, nil},
		{"files in the order of age", []string{rec(1, "stdout", "F", "a"), rec(2, "stdout", "F", "b")}, rec(3, "stdout", "F", "c"), all, []string{"x: a", "x: b", "x: c"}},
		{"parts are joined, streams apart", nil, rec(1, "stdout", "P", "a") + rec(1, "stderr", "P", "1") + rec(1, "stdout", "F", "b") + rec(1, "stderr", "F", "2"), all, []string{"x: ab", "x: 12"}},
		{"parts are joined across files", []string{rec(1, "stdout", "P", "a")}, rec(2, "stdout", "F", "b"), all, []string{"x: ab"}},
		{"a part without its end", nil, rec(1, "stdout", "P", "a"), all, []string{"x: a [part]"}},
		{"a gap ends a line", nil, rec(1, "stdout", "P", "a") + rec(2, "stderr", "F", gap) + rec(3, "stdout", "F", "b"), all, []string{"x: a [part]", "x: " + gap + " [gap]", "x: b"}},
		{"what has no newline is not there yet", nil, rec(1, "stdout", "F", "a") + "2026-11-22T18:00", all, []string{"x: a"}},
		{"what is no record is shown as it is", nil, rec(1, "stdout", "F", "a") + "oops\n\n" + rec(2, "stdout", "F", "b"), all, []string{"x: a", "x: oops", "x: b"}},
		{"the last none", nil, rec(1, "stdout", "F", "a"), logQuery{Lines: 0}, nil},
		{"the last one", nil, rec(1, "stdout", "F", "a") + rec(2, "stdout", "F", "b"), logQuery{Lines: 1}, []string{"x: b"}},
		{"the last two, from two files", []string{rec(0, "stdout", "F", "z") + rec(1, "stdout", "F", "a")}, rec(2, "stdout", "F", "b"), logQuery{Lines: 2}, []string{"x: a", "x: b"}},
		{"the last of more than there are", nil, rec(1, "stdout", "F", "a"), logQuery{Lines: 9}, []string{"x: a"}},
		{"the last one has its first part far before", []string{rec(1, "stdout", "F", "0") + rec(1, "stdout", "P", "a") + rec(1, "stderr", "F", "e")}, rec(2, "stderr", "F", "f") + rec(3, "stdout", "F", "b"), logQuery{Lines: 1}, []string{"x: ab"}},
		{"the last two across a gap", nil, rec(1, "stdout", "P", "a") + rec(2, "stderr", "F", gap) + rec(3, "stdout", "F", "b"), logQuery{Lines: 2}, []string{"x: " + gap + " [gap]", "x: b"}},
		{"since", []string{rec(1, "stdout", "F", "a")}, rec(2, "stdout", "F", "b") + rec(3, "stdout", "F", "c"), logQuery{Lines: -1, Since: time.Unix(0, day0+3e9)}, []string{"x: c"}},
		{"the last since", nil, rec(1, "stdout", "F", "a") + rec(2, "stdout", "F", "b") + rec(3, "stdout", "F", "c"), logQuery{Lines: 5, Since: time.Unix(0, day0+2e9)}, []string{"x: b", "x: c"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "x")
			for i, text := range c.rotated {
				writeFile(t, filepath.Join(dir, rotatedName(day0+int64(i+1)*1e9)), text)
			}
			if c.current != "" {
				writeFile(t, filepath.Join(dir, currentName), c.current)
			}
			wantLines(t, readAll(t, c.q, logSource{"x", dir}), c.want...)
		})
	}
}

func TestReadLogsMergesByTime(t *testing.T) {
	dir := t.TempDir()
	a, b := logSource{"a", dir + "/a"}, logSource{"b", dir + "/b"}
	writeFile(t, a.Dir+"/current", rec(1, "stdout", "F", "1")+rec(3, "stdout", "F", "3")+rec(4, "stdout", "F", "4"))
	writeFile(t, b.Dir+"/current", rec(2, "stdout", "F", "2")+rec(4, "stdout", "F", "4")+rec(5, "stdout", "F", "5"))
	wantLines(t, readAll(t, logQuery{Lines: -1}, a, b), "a: 1", "b: 2", "a: 3", "a: 4", "b: 4", "b: 5")
	wantLines(t, readAll(t, logQuery{Lines: 3}, a, b), "a: 4", "b: 4", "b: 5")
}

func TestReadLastLinesEqualsTheEndOfAll(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	for round := range 100 {
		dir := t.TempDir()
		var text strings.Builder
		for i := range 300 {
			stream := []string{"stdout", "stderr"}[rng.IntN(2)]
			tag := []string{"F", "F", "P"}[rng.IntN(3)]
			text.WriteString(rec(i, stream, tag, strings.Repeat("y", rng.IntN(1500))+fmt.Sprint(i)))
			if rng.IntN(80) == 0 {
				writeFile(t, filepath.Join(dir, rotatedName(day0+int64(i)*1e9)), text.String())
				text.Reset()
			}
		}
		text.WriteString(rec(300, "stdout", "F", "end") + rec(300, "stderr", "F", "end"))
		writeFile(t, dir+"/current", text.String())
		s := logSource{"x", dir}
		all := readAll(t, logQuery{Lines: -1}, s)
		for _, n := range []int{1, 2, 10, 100, 150} {
			got := readAll(t, logQuery{Lines: n}, s)
			if want := all[max(0, len(all)-n):]; !slices.Equal(got, want) {
				t.Fatalf("round %d: the last %d are\n%.300q, want\n%.300q", round, n, got, want)
			}
		}
	}
}

func TestReadLogsStopsWhenToldTo(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir+"/current", sampleLog(10))
	n, full := 0, errors.New("enough")
	err := readLogs([]logSource{{"x", dir}}, logQuery{Lines: -1}, func(string, logRecord) error { n++; return full })
	if n != 1 || !errors.Is(err, full) {
		t.Errorf("%d records, %v", n, err)
	}
}

func TestReadLogsBoundsJoinedLines(t *testing.T) {
	dir := t.TempDir()
	part := strings.Repeat("z", maxRecordText)
	writeFile(t, dir+"/current", strings.Repeat(rec(1, "stdout", "P", part), 200)+rec(1, "stdout", "F", ""))
	total, parts := 0, 0
	err := readLogs([]logSource{{"x", dir}}, logQuery{Lines: -1}, func(_ string, r logRecord) error {
		total += len(r.Text)
		parts++
		if len(r.Text) > joinBytes+maxRecordText {
			t.Errorf("a record of %d bytes", len(r.Text))
		}
		return nil
	})
	if err != nil || total != 200*len(part) || parts != 4 {
		t.Errorf("%d bytes in %d parts, %v", total, parts, err)
	}
}

func TestReadLogsWhileRetentionDeletes(t *testing.T) {
	dir := t.TempDir()
	for i := range 5 {
		writeFile(t, filepath.Join(dir, rotatedName(day0+int64(i))), rec(i, "stdout", "F", fmt.Sprint(i)))
	}
	writeFile(t, dir+"/current", rec(9, "stdout", "F", "9"))
	var got []string
	add := collect(&got)
	err := readLogs([]logSource{{"x", dir}}, logQuery{Lines: -1}, func(name string, r logRecord) error {
		if len(got) == 1 { // meanwhile: two old files go, current is rotated
			os.Remove(filepath.Join(dir, rotatedName(day0+1)))
			os.Remove(filepath.Join(dir, rotatedName(day0+2)))
			os.Rename(dir+"/current", filepath.Join(dir, rotatedName(day0+100)))
			writeFile(t, dir+"/current", rec(10, "stdout", "F", "10"))
		}
		return add(name, r)
	})
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(got, "x: 10") || len(got) < 4 || !slices.IsSorted(got) || got[len(got)-1] != "x: 9" {
		t.Errorf("got %q", got)
	}
}

// follower runs followLogs and gives its records through a channel.
type follower struct {
	t     *testing.T
	lines chan string
	stop  chan struct{}
	done  chan error
}

func follow(t *testing.T, q logQuery, sources ...logSource) *follower {
	f := &follower{t, make(chan string, 1<<16), make(chan struct{}), make(chan error, 1)}
	go func() {
		f.done <- followLogs(sources, q, func(name string, r logRecord) error {
			f.lines <- name + ": " + string(r.Text)
			return nil
		}, f.stop)
	}()
	return f
}

func (f *follower) want(lines ...string) {
	f.t.Helper()
	for _, want := range lines {
		select {
		case got := <-f.lines:
			if got != want {
				f.t.Fatalf("got %.100q, want %.100q", got, want)
			}
		case <-time.After(20 * time.Second):
			f.t.Fatalf("nothing came, want %.100q", want)
		}
	}
}

func (f *follower) end() {
	f.t.Helper()
	close(f.stop)
	if err := <-f.done; err != nil {
		f.t.Error(err)
	}
	if len(f.lines) > 0 {
		f.t.Errorf("one more: %.100q", <-f.lines)
	}
}

func TestFollowLogs(t *testing.T) {
	dir := t.TempDir()
	a, b := logSource{"a", dir + "/a"}, logSource{"b", dir + "/b"}
	cur := a.Dir + "/current"
	writeFile(t, cur, rec(1, "stdout", "F", "1")+rec(2, "stdout", "F", "2"))
	f := follow(t, logQuery{Lines: 1}, a, b)
	f.want("a: 2")
	appendFile(t, cur, rec(3, "stdout", "F", "3"))
	f.want("a: 3")
	appendFile(t, cur, rec(4, "stdout", "P", "4")+rec(5, "stderr", "F", "5")) // the part waits for its end
	f.want("a: 5")
	half := rec(6, "stdout", "F", "6")
	appendFile(t, cur, half[:20])
	appendFile(t, cur, half[20:])
	f.want("a: 46")
	os.Rename(cur, filepath.Join(a.Dir, rotatedName(day0+7e9)))
	appendFile(t, cur, rec(7, "stdout", "F", "7"))
	f.want("a: 7")
	writeFile(t, b.Dir+"/current", rec(8, "stdout", "F", "8")) // a directory that did not exist
	f.want("b: 8")
	os.RemoveAll(b.Dir)
	writeFile(t, b.Dir+"/current", rec(9, "stdout", "F", "9"))
	f.want("b: 9")
	os.Truncate(cur, 0)
	appendFile(t, cur, rec(1, "stdout", "F", ""))
	f.want("a: ")
	f.end()
}

func TestFollowLogsAcrossManyRotations(t *testing.T) {
	b := newPumpBed(t)
	b.cfg.MaxSize, b.cfg.MaxFiles = 2000, 1<<20
	p := b.start()
	f := follow(t, logQuery{Lines: -1}, logSource{"x", b.cfg.LogDir})
	const total = 20000
	go func() {
		for i := range total {
			writeAll(b.out, fmt.Sprintf("%d\n", i))
		}
	}()
	for i := range total {
		f.want(fmt.Sprintf("x: %d", i))
	}
	f.end()
	b.stop(p)
}

// turningLog is a log with one record in every file, which rotates in the middle of a listing. Of the files rotated
// then the listing has the last alone, as the kernel may show it: it gives a directory in pieces.
type turningLog struct {
	t      *testing.T
	source logSource
	n      int   // records
	last   int64 // newest rotated file
	during int   // rotations in the middle of the next listing
	begun  bool  // current is there after them
}

func newTurningLog(t *testing.T) *turningLog {
	return &turningLog{t: t, source: logSource{"x", t.TempDir()}}
}

func (l *turningLog) write() {
	l.n++
	writeFile(l.t, filepath.Join(l.source.Dir, currentName), rec(l.n, "stdout", "F", fmt.Sprint(l.n)))
}

func (l *turningLog) rotate() {
	l.t.Helper()
	l.last = day0 + int64(l.n)*1e9
	if err := os.Rename(filepath.Join(l.source.Dir, currentName), filepath.Join(l.source.Dir, rotatedName(l.last))); err != nil {
		l.t.Fatal(err)
	}
}

func (l *turningLog) list(dir string) ([]int64, error) {
	list, err := listRotated(dir)
	if l.during == 0 {
		return list, err
	}
	for ; l.during > 0; l.during-- {
		if _, err := os.Lstat(filepath.Join(dir, currentName)); err != nil {
			l.write()
		}
		l.rotate()
	}
	if l.begun {
		l.write()
	}
	return append(list, l.last), err
}

// cursor gives a reader of this log.
func (l *turningLog) cursor() *logCursor {
	c := newCursor(l.source, logQuery{Lines: -1})
	c.list = l.list
	l.t.Cleanup(c.close)
	return c
}

// first is what a reader of the first n records gets.
func (l *turningLog) first(n int) (list []string) {
	for i := range n {
		list = append(list, fmt.Sprintf("x: %d", i+1))
	}
	return list
}

// drain appends to list what c has.
func (l *turningLog) drain(c *logCursor, list *[]string) {
	l.t.Helper()
	if err := mergeLogs([]*logCursor{c}, -1, collect(list)); err != nil {
		l.t.Fatal(err)
	}
}

func TestRotationsInTheMiddleOfAListing(t *testing.T) {
	for _, c := range []struct {
		name    string
		current bool // before
		during  int
		begun   bool // current is there afterwards
	}{
		{"current is rotated once", true, 1, true},
		{"current is rotated, and there is none", true, 1, false},
		{"current is rotated, and its successor too", true, 2, true},
		{"current is rotated, and two successors too", true, 3, false},
		{"there was no current, one is begun and rotated", false, 1, true},
		{"there was no current, two are begun and rotated", false, 2, true},
		{"there is no current before and after two rotations", false, 2, false},
		{"there is no current before and after five rotations", false, 5, false},
	} {
		turn := func(l *turningLog) (there int) {
			l.rotate()
			if c.current {
				l.write()
			}
			l.during, l.begun = c.during, c.begun
			return l.n
		}
		t.Run(c.name+": a reader gets what was there, without a hole", func(t *testing.T) {
			l := newTurningLog(t)
			l.write()
			there := turn(l)
			reader := l.cursor()
			if err := reader.begin(logQuery{Lines: -1}, joinTail); err != nil {
				t.Fatal(err)
			}
			var got []string
			l.drain(reader, &got)
			wantLines(t, got, l.first(max(there, len(got)))...)
		})
		t.Run(c.name+": a follower gets all", func(t *testing.T) {
			l := newTurningLog(t)
			l.write()
			follower := l.cursor()
			if err := follower.begin(logQuery{Lines: -1}, holdTail); err != nil {
				t.Fatal(err)
			}
			var got []string
			l.drain(follower, &got)
			turn(l)
			for range 2 {
				if err := follower.catchUp(); err != nil {
					t.Fatal(err)
				}
				l.drain(follower, &got)
			}
			wantLines(t, got, l.first(l.n)...)
		})
	}
}

func TestReadLogsWhileTheLogRotates(t *testing.T) {
	b := newPumpBed(t)
	b.cfg.MaxSize, b.cfg.MaxFiles = 20_000, 3
	p := b.start()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				writeAll(b.out, fmt.Sprintf("%d\n", i))
			}
		}
	}()
	for range 200 {
		next := -1
		err := readLogs([]logSource{{"x", b.cfg.LogDir}}, logQuery{Lines: -1}, func(_ string, r logRecord) error {
			var n int
			if _, err := fmt.Sscan(string(r.Text), &n); err != nil || n <= next {
				return fmt.Errorf("%q after %d", r.Text, next)
			}
			next = n
			return nil
		})
		if err != nil {
			t.Error(err)
			break
		}
	}
	close(stop)
	<-done
	b.drain(p)
	b.stop(p)
}
