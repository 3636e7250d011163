// Role: tests of the pump: behaviour, faults of the disk, and the kill campaign of the log protocol.
// Runs in: tests.
// Owns: nothing.
// Uses: log, pump, sys, sys_log, observe, script.

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// bench of one pump: its directories, and the descriptors that a service and the daemon would hold.
type pumpBed struct {
	t     testing.TB
	cfg   pumpConfig
	notes chan pumpNote
	out   int
	err   int
	open  []int
}

func newPumpBed(t testing.TB) *pumpBed {
	t.Helper()
	dir := t.TempDir()
	b := &pumpBed{t: t, notes: make(chan pumpNote, 256)}
	b.cfg = pumpConfig{RunDir: filepath.Join(dir, "run"), LogDir: filepath.Join(dir, "log"), MaxSize: 10 << 20, MaxFiles: 5, FIFOOwner: -1}
	if err := os.Mkdir(b.cfg.RunDir, 0o700); err != nil {
		t.Fatal(err)
	}
	b.openFIFOs()
	t.Cleanup(b.closeAll)
	return b
}

func (b *pumpBed) closeAll() {
	for _, fd := range b.open {
		unix.Close(fd)
	}
	b.open = nil
}

func (b *pumpBed) openFIFOs() {
	b.t.Helper()
	for s, fd := range []*int{&b.out, &b.err} {
		path := filepath.Join(b.cfg.RunDir, fifoNames[s])
		made, err := sysMakeFIFO(path, -1)
		if err != nil {
			b.t.Fatal(err)
		}
		unix.Close(made)
		if *fd, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			b.t.Fatal(err)
		}
		b.open = append(b.open, *fd)
	}
}

func (b *pumpBed) start() *pump { b.t.Helper(); return b.startOn(realKernel(), hungAfter) }

func (b *pumpBed) startOn(k kernel, patience time.Duration) *pump {
	b.t.Helper()
	p, err := startPumpOn(b.cfg, b.notes, k, patience)
	if err != nil {
		b.t.Fatal(err)
	}
	return p
}

// until waits for a note.
func (b *pumpBed) until(what string, ok func(pumpNote) bool) pumpNote {
	b.t.Helper()
	limit := time.After(30 * time.Second)
	for {
		select {
		case n := <-b.notes:
			if ok(n) {
				return n
			}
		case <-limit:
			b.t.Fatalf("no note: %s", what)
		}
	}
}

func (b *pumpBed) drain(p *pump) pumpNote {
	b.t.Helper()
	token := rand.Uint64() | 1
	p.drain(token)
	return b.until("drained", func(n pumpNote) bool { return n.Drained == token })
}

func (b *pumpBed) stop(p *pump) {
	b.t.Helper()
	p.stop()
	b.until("stopped", func(n pumpNote) bool { return n.Stopped })
}

func writeAll(fd int, text string) {
	for len(text) > 0 {
		n, err := sysWrite(fd, []byte(text))
		if err != nil {
			panic(err)
		}
		text = text[n:]
	}
}

// lines returns the joined records of the log as "stdout text".
func (b *pumpBed) lines() (list []string) {
	b.t.Helper()
	err := readLogs([]logSource{{"x", b.cfg.LogDir}}, logQuery{Lines: -1}, func(_ string, r logRecord) error {
		list = append(list, r.Stream+" "+string(r.Text))
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return list
}

func (b *pumpBed) want(lines ...string) {
	b.t.Helper()
	got := b.lines()
	if strings.Join(got, "\n") != strings.Join(lines, "\n") {
		b.t.Errorf("log has %.600q, want %.600q", got, lines)
	}
}

func (b *pumpBed) current() string { return filepath.Join(b.cfg.LogDir, currentName) }

func TestPumpWritesWhatTheServiceWrote(t *testing.T) {
	long := strings.Repeat("0123456789", 5000)
	for _, c := range []struct {
		name  string
		write string
		want  []string
	}{
		{"one line", "hello\n", []string{"stdout hello"}},
		{"an empty line", "\n", []string{"stdout "}},
		{"lines in one write", "a\nb\n\nc\n", []string{"stdout a", "stdout b", "stdout ", "stdout c"}},
		{"the same line again and again", "x\nx\nx\n", []string{"stdout x", "stdout x", "stdout x"}},
		{"a last line without newline", "a\nb", []string{"stdout a", "stdout b"}},
		{"any bytes", "\x00\xff\r\x1b[0m\n", []string{"stdout \x00\xff\r\x1b[0m"}},
		{"a line that is longer than a record", long + "\nend\n", []string{"stdout " + long, "stdout end"}},
		{"a long line without newline", long, []string{"stdout " + long}},
		{"a line of exactly one part, without newline", long[:maxRecordText], []string{"stdout " + long[:maxRecordText]}},
		{"a line of exactly one part", long[:maxRecordText] + "\n", []string{"stdout " + long[:maxRecordText]}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newPumpBed(t)
			p := b.start()
			writeAll(b.out, c.write)
			b.drain(p)
			b.want(c.want...)
			writeAll(b.out, "next\n") // a run that ends in the middle of a line does not touch the next
			b.drain(p)
			b.want(append(c.want, "stdout next")...)
			b.stop(p)
		})
	}
}

func TestPumpKeepsStreamsApart(t *testing.T) {
	b := newPumpBed(t)
	p := b.start()
	writeAll(b.out, "to out\n")
	b.drain(p)
	writeAll(b.err, "to err\n")
	b.drain(p)
	b.want("stdout to out", "stderr to err")
	b.stop(p)
}

func TestPumpCostsASilentServiceNothing(t *testing.T) {
	b := newPumpBed(t)
	p := b.start()
	b.drain(p)
	b.stop(p)
	if p.scratch[0] != 0 || p.timer != nil {
		t.Error("a silent service has a scratch pipe or a timer")
	}
	if _, err := os.Stat(filepath.Join(b.cfg.RunDir, "pump")); err == nil {
		t.Error("a silent service has a pump file")
	}
}

func TestPumpIsWokenByABlockedWriterBehindABegunLine(t *testing.T) {
	b := newPumpBed(t)
	p := b.start()
	for range 50 {
		writeAll(b.out, "begun")
		waitUntil(t, "the begun line is taken", func() bool { return sysReadable(b.out) == 0 })
		writeAll(b.out, strings.Repeat("x", 200_000)+"\n") // wakes no reader while the pipe is not empty
	}
	b.drain(p)
	if n := len(b.lines()); n != 50 {
		t.Errorf("%d lines, want 50", n)
	}
	b.stop(p)
}

func TestPumpTakesPiecesFromAFullFIFO(t *testing.T) {
	b := newPumpBed(t)
	if _, err := unix.FcntlInt(uintptr(b.out), unix.F_SETPIPE_SZ, 8192); err != nil {
		t.Skip(err)
	}
	p := b.start()
	long := strings.Repeat("y", 30000)
	writeAll(b.out, long) // blocks for ever if nothing is taken
	for range 40 {        // buffers of one byte each fill a FIFO with little in it
		spliceByte(t, b.out)
	}
	writeAll(b.out, "\n")
	b.drain(p)
	b.want("stdout " + long + strings.Repeat("z", 40))
	b.stop(p)
}

func spliceByte(t *testing.T, to int) {
	t.Helper()
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	writeAll(pipe[1], "z")
	if _, err := unix.Splice(pipe[0], nil, to, nil, 1, 0); err != nil {
		t.Fatal(err)
	}
}

func TestPumpMakesFIFOs(t *testing.T) {
	for _, c := range []struct {
		name string
		put  func(path string) error
	}{
		{"where nothing is", func(string) error { return nil }},
		{"where a file is", func(p string) error { return os.WriteFile(p, nil, 0o600) }},
		{"where a link is", func(p string) error { return os.Symlink("/etc/hostname", p) }},
		{"where a directory is", func(p string) error { return os.MkdirAll(p+"/full", 0o700) }},
		{"where a FIFO with other rights is", func(p string) error { return unix.Mkfifo(p, 0o600) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newPumpBed(t)
			path := filepath.Join(b.cfg.RunDir, "out")
			os.Remove(path)
			if err := c.put(path); err != nil {
				t.Fatal(err)
			}
			p := b.start()
			st, err := os.Lstat(path)
			if err != nil || st.Mode()&os.ModeType != os.ModeNamedPipe || st.Mode().Perm() != 0o622 {
				t.Errorf("out is %v, %v", st.Mode(), err)
			}
			b.stop(p)
		})
	}
}

func TestPumpGivesFIFOsToTheServicesUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	b := newPumpBed(t)
	b.cfg.FIFOOwner = 65534
	p := b.start()
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(b.cfg.RunDir, "err"), &st); err != nil || st.Uid != 65534 || st.Mode&0o777 != 0o622 {
		t.Errorf("err belongs to %d, mode %o, %v", st.Uid, st.Mode, err)
	}
	b.stop(p)
}

func TestPumpLogFileIsReplacedAtRunTime(t *testing.T) {
	decoy := filepath.Join(t.TempDir(), "decoy")
	for _, c := range []struct {
		name string
		do   func(cur string) error
		lost bool // what was written before is gone with the file
	}{
		{"deleted", os.Remove, true},
		{"the directory deleted", func(c string) error { return os.RemoveAll(filepath.Dir(c)) }, true},
		{"by a directory", func(c string) error { os.Remove(c); return os.MkdirAll(c+"/x", 0o700) }, true},
		{"by a link to another file", func(c string) error { os.Remove(c); return os.Symlink(decoy, c) }, true},
		{"by a FIFO", func(c string) error { os.Remove(c); return unix.Mkfifo(c, 0o600) }, true},
		{"moved away", func(c string) error { return os.Rename(c, c+".1") }, true},
		{"emptied", func(c string) error { return os.Truncate(c, 0) }, true},
		{"cut in the middle of a record", func(c string) error { return os.Truncate(c, 10) }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			os.WriteFile(decoy, []byte("precious"), 0o600)
			b := newPumpBed(t)
			p := b.start()
			writeAll(b.out, "before\n")
			b.drain(p)
			if err := c.do(b.current()); err != nil {
				t.Fatal(err)
			}
			writeAll(b.out, "after\n")
			b.drain(p)
			got := b.lines()
			if len(got) == 0 || !strings.HasSuffix(got[len(got)-1], "after") {
				t.Errorf("log has %q, want it to go on", got)
			}
			if text, _ := os.ReadFile(decoy); string(text) != "precious" {
				t.Errorf("wrote through the link: %q", text)
			}
			b.stop(p)
		})
	}
}

func TestPumpRotates(t *testing.T) {
	b := newPumpBed(t)
	b.cfg.MaxSize, b.cfg.MaxFiles = 1000, 3
	future := time.Now().Add(1000 * time.Hour).UnixNano()
	os.MkdirAll(b.cfg.LogDir, 0o700)
	os.WriteFile(filepath.Join(b.cfg.LogDir, rotatedName(future)), nil, 0o600) // a clock that was wrong
	p := b.start()
	for i := range 100 {
		writeAll(b.out, fmt.Sprintf("line %d\n", i))
	}
	b.drain(p)
	b.stop(p)
	list, err := listRotated(b.cfg.LogDir)
	if err != nil || len(list) != 3 || list[0] <= future {
		t.Errorf("rotated files %v, %v: want 3, later than %d", list, err, future)
	}
	for _, ns := range list {
		text, _ := os.ReadFile(filepath.Join(b.cfg.LogDir, rotatedName(ns)))
		if len(text) == 0 || len(text) > 1000 || text[len(text)-1] != '\n' {
			t.Errorf("rotated file of %d bytes does not end at a record's end within the limit", len(text))
		}
	}
	if got := b.lines(); got[len(got)-1] != "stdout line 99" {
		t.Errorf("last line is %q", got[len(got)-1])
	}
}

func TestPumpObeysNewLimits(t *testing.T) {
	b := newPumpBed(t)
	p := b.start()
	writeAll(b.out, strings.Repeat("0123456789\n", 100))
	b.drain(p)
	p.configure(100, 2)
	for range 10 {
		writeAll(b.out, "0123456789\n")
		b.drain(p)
	}
	b.stop(p)
	if list, _ := listRotated(b.cfg.LogDir); len(list) != 2 {
		t.Errorf("%d rotated files, want 2", len(list))
	}
}

func TestPumpRetiresFIFOs(t *testing.T) {
	b := newPumpBed(t)
	p := b.start()
	writeAll(b.out, "first\nhalf")
	waitUntil(t, "all is taken", func() bool { return sysReadable(b.out) == 0 && len(b.lines()) == 1 })
	p.retire()
	b.until("retired", func(n pumpNote) bool { return n.Retired })
	old, open := b.out, b.open
	b.open = nil
	b.openFIFOs()
	writeAll(b.out, "new\n")
	b.drain(p)
	writeAll(old, " done\nlast")
	for _, fd := range open { // the last writers go: no event but the hang-up
		unix.Close(fd)
	}
	waitUntil(t, "the retired FIFO is gone", func() bool {
		names, _ := filepath.Glob(filepath.Join(b.cfg.RunDir, "*"+retiredMark+"*"))
		return len(names) == 0
	})
	b.stop(p)
	b.want("stdout first", "stdout half", "stdout new", "stdout  done", "stdout last")
}

func TestPumpFindsRetiredFIFOsOfAPredecessor(t *testing.T) {
	b := newPumpBed(t)
	p := b.start()
	p.retire()
	b.until("retired", func(n pumpNote) bool { return n.Retired })
	b.stop(p)
	old := b.out
	b.openFIFOs()
	writeAll(old, "from a leftover\n")
	p = b.start()
	waitUntil(t, "the leftover's line is in the log", func() bool { return len(b.lines()) == 1 })
	b.stop(p)
	b.want("stdout from a leftover")
}

func waitUntil(t testing.TB, what string, ok func() bool) {
	t.Helper()
	if !eventually(3*testPatience, ok) {
		t.Fatalf("never: %s", what)
	}
}

// ---- faults of the disk

// faultyDisk fails the writes of the log from a switch on.
type faultyDisk struct {
	kernel
	err  atomic.Pointer[unix.Errno]
	room atomic.Int64 // bytes that still fit
}

func newFaultyDisk() *faultyDisk {
	d := &faultyDisk{kernel: realKernel()}
	d.write = func(fd int, b []byte) (int, error) {
		e := d.err.Load()
		if e == nil {
			return sysWrite(fd, b)
		}
		n := min(int64(len(b)), d.room.Load())
		if n == 0 {
			return 0, *e
		}
		d.room.Add(-n)
		return sysWrite(fd, b[:n])
	}
	return d
}

func (d *faultyDisk) fail(e unix.Errno, room int64) { d.room.Store(room); d.err.Store(&e) }

func TestPumpDropsAndCountsOnABadDisk(t *testing.T) {
	for _, e := range []unix.Errno{unix.ENOSPC, unix.EIO, unix.EROFS, unix.EDQUOT} {
		for _, room := range []int64{0, 10, 100} {
			t.Run(fmt.Sprintf("%v with room for %d bytes", e, room), func(t *testing.T) {
				b := newPumpBed(t)
				d := newFaultyDisk()
				p := b.startOn(d.kernel, hungAfter)
				writeAll(b.out, "good\n")
				b.drain(p)
				d.fail(e, room)
				for range 5 {
					writeAll(b.out, "12345678\n12345678\n12345678\n")
					b.drain(p)
				}
				d.err.Store(nil)
				writeAll(b.err, "back\n")
				b.drain(p)
				b.stop(p)
				checkGap(t, b, 15, 9)
			})
		}
	}
}

// checkGap checks that the log tells exactly how many of n lines of size bytes are missing.
func checkGap(t *testing.T, b *pumpBed, n, size int) {
	t.Helper()
	got := b.lines()
	kept, l := 0, lostCount{}
	for _, line := range got {
		if line == "stdout 12345678" {
			kept++
		}
		if g, ok := parseGap([]byte(strings.TrimPrefix(line, "stderr "))); ok {
			l = l.plus(g)
		}
	}
	if kept+int(l.lines) != n || int(l.bytes) != int(l.lines)*size || l.from > l.to {
		t.Errorf("%d lines in the log and gap %+v, want %d lines in all: %.300q", kept, l, n, got)
	}
	if got[0] != "stdout good" || got[len(got)-1] != "stderr back" {
		t.Errorf("log has %q", got)
	}
}

func TestPumpLostCountSurvivesAKill(t *testing.T) {
	b := newPumpBed(t)
	d := newFaultyDisk()
	p := b.startOn(d.kernel, hungAfter)
	writeAll(b.out, "good\n")
	b.drain(p)
	d.fail(unix.ENOSPC, 0)
	writeAll(b.out, strings.Repeat("12345678\n", 7))
	b.drain(p)
	b.stop(p) // it cannot tell now
	p = b.start()
	writeAll(b.err, "back\n")
	b.drain(p)
	b.stop(p)
	checkGap(t, b, 7, 9)
}

// mountLog puts a small file system under the log.
func mountLog(t *testing.T, b *pumpBed, flags uintptr) {
	t.Helper()
	if err := os.Mkdir(b.cfg.LogDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", b.cfg.LogDir, "tmpfs", flags, "size=256k"); err != nil {
		t.Skipf("cannot mount: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(b.cfg.LogDir, unix.MNT_DETACH) })
}

func TestPumpOnAFullTmpfs(t *testing.T) {
	b := newPumpBed(t)
	mountLog(t, b, 0)
	p := b.start()
	writeAll(b.out, "good\n")
	b.drain(p)
	total := 40000
	for range total / 100 {
		writeAll(b.out, strings.Repeat("12345678\n", 100)) // never blocks
	}
	b.drain(p)
	if err := unix.Mount("", b.cfg.LogDir, "", unix.MS_REMOUNT, "size=16m"); err != nil {
		t.Fatal(err)
	}
	writeAll(b.err, "back\n")
	b.drain(p)
	b.stop(p)
	checkGap(t, b, total, 9)
}

func TestPumpOnAReadOnlyDisk(t *testing.T) {
	b := newPumpBed(t)
	mountLog(t, b, unix.MS_RDONLY)
	p := b.start()
	for range 1000 {
		writeAll(b.out, strings.Repeat("12345678\n", 100)) // never blocks
	}
	b.drain(p)
	if err := unix.Mount("", b.cfg.LogDir, "", unix.MS_REMOUNT, "size=16m"); err != nil {
		t.Fatal(err)
	}
	writeAll(b.err, "back\n")
	b.drain(p)
	b.stop(p)
	got := b.lines()
	if l, ok := parseGap([]byte(strings.TrimPrefix(got[0], "stderr "))); !ok || l.lines != 100_000 || l.bytes != 900_000 {
		t.Errorf("log has %.300q, want a gap of 100000 lines", got)
	}
}

func TestPumpWithoutPumpFileGoesOn(t *testing.T) {
	b := newPumpBed(t)
	k := realKernel()
	k.allocate = func(int, int64) error { return unix.ENOSPC }
	p := b.startOn(k, hungAfter)
	writeAll(b.out, "a\nb")
	b.drain(p)
	b.stop(p)
	b.want("stdout a", "stdout b")
}

func TestPumpWithoutTeeGoesOn(t *testing.T) {
	b := newPumpBed(t)
	k := realKernel()
	k.tee = func(int, int, int) (int, error) { return -1, unix.ENOSYS }
	p := b.startOn(k, hungAfter)
	long := strings.Repeat("q", 70000)
	writeAll(b.out, "a\n"+long+"\nb")
	writeAll(b.err, "c\n")
	b.drain(p)
	b.stop(p)
	var out []string
	for _, l := range b.lines() {
		if strings.HasPrefix(l, "stdout") {
			out = append(out, l)
		}
	}
	if len(out) != 3 || out[1] != "stdout "+long || out[2] != "stdout b" {
		t.Errorf("log has %.200q", out)
	}
}

func TestPumpOnAHungDisk(t *testing.T) {
	b := newPumpBed(t)
	free, hangs := make(chan struct{}), make(chan struct{}, 64)
	var hang atomic.Bool
	k := realKernel()
	k.write = func(fd int, x []byte) (int, error) {
		if hang.Load() {
			hangs <- struct{}{}
			<-free
		}
		return sysWrite(fd, x)
	}
	p := b.startOn(k, 20*time.Millisecond)
	writeAll(b.out, "good\n")
	b.drain(p)
	hang.Store(true)
	total := 100000 // 900 kB: beyond FIFO, intent and ring
	writeAll(b.out, "12345678\n")
	<-hangs
	for range total/100 - 1 {
		writeAll(b.out, strings.Repeat("12345678\n", 100)) // never blocks for good
	}
	writeAll(b.out, strings.Repeat("12345678\n", 99))
	p.configure(20<<20, 5) // nor does the owner
	if n := b.drain(p); !n.Hung {
		t.Error("drained is not marked as hung")
	}
	hang.Store(false)
	close(free)
	b.until("the disk works again", func(n pumpNote) bool { return strings.Contains(n.Text, "works again") })
	writeAll(b.err, "back\n")
	b.drain(p)
	b.stop(p)
	checkGap(t, b, total, 9)
	if n := len(b.lines()); n < ringBytes/9 {
		t.Errorf("only %d lines kept, the ring has room for %d", n, ringBytes/9)
	}
}

// ---- the kill campaign

// line i of a killed service: numbers, the same line again and again, empty and long ones.
func killLine(i int) string {
	switch {
	case i%97 == 0:
		return strings.Repeat(strconv.Itoa(i)+"-", 6000)
	case i%3 == 0:
		return fmt.Sprintf("number %d", i)
	case i%7 == 0:
		return ""
	}
	return "the same"
}

// killBed runs a pump in a process of its own, again and again.
type killBed struct {
	*pumpBed
	grant   chan int // bytes that the writer may write
	written chan int // number of lines written, at the end
}

func newKillBed(t *testing.T) *killBed {
	b := &killBed{pumpBed: newPumpBed(t), grant: make(chan int, 1<<16), written: make(chan int, 1)}
	b.cfg.MaxSize, b.cfg.MaxFiles = 64<<10, 1<<20
	go b.writeLines()
	return b
}

// writeLines is the service: writes of odd sizes, each blocking while nobody reads.
func (b *killBed) writeLines() {
	i := 0
	var pending []byte
	rng := rand.New(rand.NewPCG(1, 2))
	for budget := range b.grant {
		for budget > 0 {
			for len(pending) < 1<<16 {
				pending = append(append(pending, killLine(i)...), '\n')
				i++
			}
			n := min(1+rng.IntN(1<<uint(1+rng.IntN(14))), len(pending))
			writeAll(b.out, string(pending[:n]))
			if rng.IntN(8) == 0 {
				writeAll(b.err, "the same\n")
			}
			pending = pending[n:]
			budget -= n
		}
	}
	writeAll(b.out, strings.TrimSuffix(string(pending), "\n")) // the last line has no newline
	b.written <- i
}

const killEnv = "DIAKONOS_TEST_PUMP"

// spawn starts the pump process with instructions for killing itself, and reports when it is dead.
func (b *killBed) spawn(orders string) (*exec.Cmd, chan struct{}) {
	b.t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestPumpProcess$", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), killEnv+"="+orders+" "+b.cfg.RunDir+" "+b.cfg.LogDir)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	dead := make(chan struct{})
	go func() { cmd.Wait(); close(dead) }()
	return cmd, dead
}

// TestPumpProcess is the pump process of the kill campaign, not a test. Its orders: POINT:N kills it when POINT is
// reached for the Nth time (* = any point), none lets it live; +torn writes half before the Nth write and dies;
// +consume-first and +forget-phase break the protocol on purpose.
func TestPumpProcess(t *testing.T) {
	words := strings.Fields(os.Getenv(killEnv))
	if len(words) != 3 {
		t.Skip("not called by the kill campaign")
	}
	orders := strings.Split(words[0], "+")
	point, nth, _ := strings.Cut(orders[0], ":")
	left, _ := strconv.Atoi(nth)
	die := func() { unix.Kill(os.Getpid(), unix.SIGKILL); select {} }
	failpoint = func(at string) {
		if point == "*" || point == at {
			if left--; left == 0 {
				die()
			}
		}
	}
	k := realKernel()
	var p atomic.Pointer[pump]
	for _, o := range orders[1:] {
		switch o {
		case "torn":
			k.write = func(fd int, b []byte) (int, error) {
				if left--; left == 0 {
					sysWrite(fd, b[:len(b)/2])
					die()
				}
				return sysWrite(fd, b)
			}
		case "consume-first":
			k.write = func(fd int, b []byte) (int, error) {
				if q := p.Load(); q != nil && q.m != nil {
					if in, err := getIntent(q.m); err == nil {
						sysRead(q.byInode(in.fifo).fd, make([]byte, in.n))
					}
				}
				reach("sabotage")
				return sysWrite(fd, b)
			}
		case "forget-phase":
			if f, err := os.OpenFile(filepath.Join(words[1], "pump"), os.O_WRONLY, 0); err == nil {
				f.WriteAt(make([]byte, 4), pumpPhaseAt)
				f.Close()
			}
		}
	}
	cfg := pumpConfig{RunDir: words[1], LogDir: words[2], MaxSize: 64 << 10, MaxFiles: 1 << 20, FIFOOwner: -1}
	notes := make(chan pumpNote, 64)
	q, err := startPumpOn(cfg, notes, k, hungAfter)
	if err != nil {
		t.Fatal(err)
	}
	p.Store(q)
	for range notes {
	}
}

// finish lets the service end, drains the log with a last pump and compares.
func (b *killBed) finish() error {
	b.t.Helper()
	close(b.grant)
	p := b.start()
	lines := <-b.written
	b.drain(p)
	b.stop(p)
	if err := b.checkFiles(); err != nil {
		return err
	}
	next, errs := 0, 0
	err := readLogs([]logSource{{"x", b.cfg.LogDir}}, logQuery{Lines: -1}, func(_ string, r logRecord) error {
		switch {
		case r.Stream == "stderr" && string(r.Text) == "the same":
			errs++
		case r.Stream != "stdout":
			return fmt.Errorf("foreign line %.100q", r.Text)
		case string(r.Text) != killLine(next):
			return fmt.Errorf("line %d is %.100q (%d bytes), want %.100q", next, r.Text, len(r.Text), killLine(next))
		default:
			next++
		}
		return nil
	})
	if err == nil && next != lines {
		err = fmt.Errorf("%d lines in the log, %d written", next, lines)
	}
	return err
}

// checkFiles looks at each byte of the log: whole records only, and no file above the limit.
func (b *killBed) checkFiles() error {
	names, _ := filepath.Glob(filepath.Join(b.cfg.LogDir, "*"))
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil || len(text) > int(b.cfg.MaxSize) {
			return fmt.Errorf("%s: %d bytes, %v", name, len(text), err)
		}
		for line := range bytes.Lines(text) {
			if _, ok := parseRecord(bytes.TrimSuffix(line, []byte("\n"))); !ok || line[len(line)-1] != '\n' {
				return fmt.Errorf("%s: torn record %.100q", name, line)
			}
		}
	}
	return nil
}

// rounds kills n pumps by the orders that next gives.
func (b *killBed) rounds(n int, budget int, next func(i int) string) {
	b.t.Helper()
	for i := range n {
		b.grant <- budget
		orders := next(i)
		cmd, dead := b.spawn(orders)
		select {
		case <-dead:
		case <-time.After(10 * time.Second):
			cmd.Process.Kill()
			b.t.Fatalf("pump with orders %q is still alive", orders)
		}
	}
}

// killRounds is the length of the campaign; DIAKONOS_KILLS asks for more.
func killRounds(normal int) int {
	if n, err := strconv.Atoi(os.Getenv("DIAKONOS_KILLS")); err == nil {
		return n
	}
	return normal
}

func TestPumpKilledAtRandomPoints(t *testing.T) {
	b := newKillBed(t)
	b.rounds(killRounds(200), 256<<10, func(int) string { return fmt.Sprintf("*:%d", 1+rand.IntN(60)) })
	if err := b.finish(); err != nil {
		t.Error(err)
	}
}

func TestPumpKilledAtRandomTimes(t *testing.T) {
	b := newKillBed(t)
	for range killRounds(200) {
		b.grant <- 512 << 10
		size := b.progress()
		cmd, dead := b.spawn("none")
		waitUntil(t, "the pump works", func() bool { return b.progress() != size })
		time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond) // the instant is the fault
		cmd.Process.Kill()
		<-dead
	}
	if err := b.finish(); err != nil {
		t.Error(err)
	}
}

// progress changes whenever something is written to the log.
func (b *killBed) progress() string {
	var st unix.Stat_t
	unix.Stat(b.current(), &st)
	return fmt.Sprint(st.Ino, st.Size)
}

func TestPumpKilledAtEachStep(t *testing.T) {
	for _, point := range []string{
		"pump.intend", "pump.phase1", "pump.append", "pump.consume", "pump.begin-line", "pump.open-line", "pump.phase0", "log.rotate", "log.create",
	} {
		t.Run(point, func(t *testing.T) {
			b := newKillBed(t)
			b.rounds(6, 1<<20, func(i int) string { return fmt.Sprintf("%s:%d", point, i+1) })
			if err := b.finish(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("in the middle of an append", func(t *testing.T) {
		b := newKillBed(t)
		b.rounds(6, 1<<20, func(i int) string { return fmt.Sprintf("none:%d+torn", i+1) })
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestPumpKilledDuringRecovery(t *testing.T) {
	for i, first := range []string{"pump.append:2", "none:2+torn", "pump.consume:2", "pump.begin-line:2", "pump.phase0:2"} {
		for _, second := range []string{"log.create", "pump.append", "pump.consume-rest", "pump.begin-line", "pump.phase0"} {
			if second == "pump.append" && i > 1 || second == "pump.consume-rest" && i > 2 {
				continue // that was done by then
			}
			t.Run(first+" then "+second, func(t *testing.T) {
				b := newKillBed(t)
				orders := []string{first, second + ":1", second + ":1", "none:1+torn", second + ":1"}
				if second == "pump.begin-line" || second == "pump.phase0" {
					orders = []string{first, second + ":1", second + ":1"}
				}
				b.rounds(len(orders), 1<<20, func(i int) string { return orders[i] })
				if err := b.finish(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func TestPumpKillCampaignSeesFaults(t *testing.T) {
	for _, c := range []struct {
		name   string
		orders func(i int) string
	}{
		{"consuming before the append", func(int) string { return "sabotage:2+consume-first" }},
		{"forgetting the phase", func(i int) string { return []string{"pump.consume:3", "pump.begin-line:3"}[i%2] + "+forget-phase" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newKillBed(t)
			b.rounds(6, 1<<20, c.orders)
			if err := b.finish(); err == nil {
				t.Error("the campaign does not notice it")
			} else {
				t.Log(err)
			}
		})
	}
}

func TestPumpRecoversFromForeignHeaders(t *testing.T) {
	b := newPumpBed(t)
	p := b.start()
	writeAll(b.out, "a\n")
	b.drain(p)
	b.stop(p)
	path := filepath.Join(b.cfg.RunDir, "pump")
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, seed))
		text, _ := os.ReadFile(path)
		for range 8 {
			text[pumpFlagsAt+rng.IntN(250)] = byte(rng.Uint32())
		}
		binary.LittleEndian.PutUint32(text[pumpPhaseAt:], 1)
		os.WriteFile(path, text, 0o600)
		p := b.start()
		writeAll(b.out, "still here\n")
		b.drain(p)
		b.stop(p)
		got := b.lines()
		if end := strings.Join(got[max(0, len(got)-4):], "\n"); !strings.Contains(end, "still here") {
			t.Fatalf("seed %d: the log ends with %.100q", seed, end)
		}
	}
}

// TestPumpRecoversBesideAForeignFile: what stands in the place of the log may be another name of somebody else's file. It is put aside, also by a
// successor in the middle of an intent, and nothing is written into it or cut off its end.
func TestPumpRecoversBesideAForeignFile(t *testing.T) {
	b := newPumpBed(t)
	p := b.start()
	writeAll(b.out, "a\n")
	b.drain(p)
	b.stop(p)
	head, err := os.OpenFile(filepath.Join(b.cfg.RunDir, "pump"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer head.Close()
	if _, err := head.WriteAt([]byte{1, 0, 0, 0}, pumpPhaseAt); err != nil { // as if it had been killed before the commit
		t.Fatal(err)
	}
	const text = "no record, and no newline at the end"
	foreign := filepath.Join(t.TempDir(), "foreign")
	current := filepath.Join(b.cfg.LogDir, currentName)
	writeFile(t, foreign, text)
	if err := errors.Join(os.Rename(current, current+".gone"), os.Link(foreign, current)); err != nil {
		t.Fatal(err)
	}
	p = b.start()
	writeAll(b.out, "b\n")
	b.drain(p)
	b.stop(p)
	checkFile(t, foreign, text)
	if lines := b.lines(); !slices.Contains(lines, "stdout a") || !slices.Contains(lines, "stdout b") {
		t.Errorf("the log has %q, want a and b in it", lines)
	}
}
