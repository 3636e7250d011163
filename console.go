// Role: the console of a container: copies the logs of all services to standard output, from their files, which stay the truth.
// Runs in: init (a process of its own, which the first process keeps).
// Owns: run/NAME/console: how far the log of a service has been copied.
// Uses: visible, wire, log, sys, state, render.

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"time"

	"github.com/mattn/go-isatty"
	"golang.org/x/sys/unix"
)

const (
	consoleFlag  = "-console" // the first argument of this process; FORMAT HOME SINCE (nanoseconds) follow
	consoleChunk = 32 << 10   // bytes that are written, and may be written again if this process is killed

	consoleText = "text" // formats
	consoleJSON = "json"
)

// console copies to one output.
type console struct {
	home    home
	json    bool
	shown   bool      // it is a terminal: control characters are shown, not sent
	since   time.Time // of this boot: what is older was copied then, or never
	sources map[string]*consoleSource
	names   map[int32]string // of sources, by watch descriptor
	watch   *consoleWatch
	weak    bool  // not all can be watched: all are looked at every followEvery
	root    int32 // watch descriptor of the directory of logs
	stale   bool  // which has to be read
	out     []byte
}

// consoleSource is the log of one service.
type consoleSource struct {
	cursor  *logCursor
	done    logPlace // what was given to the output, or stands in out
	saved   logPlace // as on disk
	last    time.Time
	begun   bool  // its first look is done
	changed bool  // there may be more in the log
	wd      int32 // of its watch
	gap     bool  // files were removed before they were copied
}

// consoleMain is the process.
func consoleMain(args []string) int {
	if len(args) != 3 {
		return exitUsage
	}
	ns, _ := strconv.ParseInt(args[2], 10, 64)
	c := &console{json: args[0] == consoleJSON, home: home{args[1]}, since: time.Unix(0, ns), sources: map[string]*consoleSource{}, names: map[int32]string{}, stale: true,
		shown: isatty.IsTerminal(1)}
	unix.Umask(0o077)
	signal.Ignore(unix.SIGINT, unix.SIGHUP, unix.SIGPIPE, unix.SIGTTOU)
	stop := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // the first process closes it, or has ended
		close(stop)
	}()
	if err := c.follow(stop); err != nil {
		fmt.Fprintf(os.Stderr, "%s: cannot write the services' output: %s\n", initName, visible(err.Error()))
		return exitFailed
	}
	return exitOK
}

// follow copies until it is told to stop, and then what is there.
func (c *console) follow(stop <-chan struct{}) error {
	c.watch = startConsoleWatch()
	defer c.watch.close()
	for {
		c.find()
		if err := c.copy(); err != nil {
			return err
		}
		if !c.wait(stop) {
			c.find()
			for _, s := range c.sources {
				s.changed = true
			}
			return c.copy()
		}
	}
}

// wait waits until logs have changed, and notes which; false = stop is closed.
func (c *console) wait(stop <-chan struct{}) bool {
	var tick <-chan time.Time
	if c.watch.file == nil || c.weak {
		t := time.NewTimer(followEvery)
		defer t.Stop()
		tick = t.C
	}
	var list []int32
	select {
	case <-stop:
		return false
	case <-tick:
		list = []int32{anyWatch}
	case list = <-c.watch.changed:
	}
	for _, wd := range list {
		if wd == anyWatch || wd == c.root {
			c.stale = true
		}
		if wd == anyWatch {
			for _, s := range c.sources {
				s.changed = true
			}
		} else if s := c.sources[c.names[wd]]; s != nil {
			s.changed = true
		}
	}
	return true
}

// find looks for logs that are new, and forgets those that are gone. A log is watched before it is looked at, so that nothing comes between.
func (c *console) find() {
	if !c.stale {
		return
	}
	root := filepath.Dir(c.home.logDir("x"))
	wd, ok := c.watch.add(root)
	c.root, c.weak = wd, !ok
	entries, err := os.ReadDir(root)
	if err != nil {
		c.weak = true // not there yet
		return
	}
	c.stale = false
	there := map[string]bool{}
	for _, e := range entries {
		name := e.Name()
		if !e.IsDir() {
			continue
		}
		there[name] = true
		wd, ok := c.watch.add(c.home.logDir(name))
		c.weak = c.weak || !ok
		s := c.sources[name]
		if s != nil && ok && s.wd != wd { // it was forgotten and made anew
			c.drop(name)
			s = nil
		}
		if s == nil && !c.open(name, wd) {
			c.stale, c.weak = true, true // it is tried again
		}
	}
	for name := range c.sources {
		if !there[name] {
			c.drop(name)
		}
	}
}

func (c *console) drop(name string) {
	s := c.sources[name]
	s.cursor.close()
	delete(c.names, s.wd)
	delete(c.sources, name)
}

// open begins with a log where the copy of it was left.
func (c *console) open(name string, wd int32) bool {
	place, known := readLogPlace(c.placeFile(name))
	q := logQuery{Lines: -1}
	if !known {
		q.Since = c.since
	}
	s := &consoleSource{cursor: newCursor(logSource{Name: name, Dir: c.home.logDir(name)}, q), wd: wd, changed: true}
	if s.cursor.begin(q, holdTail) != nil {
		s.cursor.close()
		return false
	}
	if known {
		s.gap = !s.cursor.goTo(place)
		s.done, s.saved = place, place
	} else {
		s.gap = len(s.cursor.files) > 1 // it was rotated before we came to it, so more may have been there
	}
	c.sources[name], c.names[wd] = s, name
	return true
}

func (c *console) placeFile(name string) string { return c.home.runDir(name) + "/console" }

// copy writes what has changed, by time.
func (c *console) copy() error {
	var cursors []*logCursor
	for _, s := range c.sources {
		if !s.changed {
			continue
		}
		s.changed = false
		if s.begun { // else open has found what there is
			s.gap = s.gap || s.cursor.lost()
			if err := s.cursor.catchUp(); err != nil {
				return c.startOver()
			}
		}
		s.begun = true
		cursors = append(cursors, s.cursor)
	}
	err := mergeLogs(cursors, -1, func(name string, r logRecord) error {
		s := c.sources[name]
		if s.gap || s.cursor.missed {
			s.gap, s.cursor.missed = false, false
			c.append(name, logRecord{Time: r.Time, Gap: true, Text: gapOnConsole(s.last)})
		}
		s.last = r.Time
		c.append(name, r)
		if p, ok := s.cursor.place(); ok {
			s.done = p
		}
		if len(c.out) >= consoleChunk {
			return c.flush()
		}
		return nil
	})
	switch {
	case errors.Is(err, errNoReader):
		return err
	case err != nil:
		return c.startOver()
	}
	return c.flush()
}

// errNoReader: the output cannot be written.
var errNoReader = errors.New("cannot write")

// startOver: a log could not be read. All are begun anew where the copy of them was left, after a pause.
func (c *console) startOver() error {
	if err := c.flush(); err != nil {
		return err
	}
	for name := range c.sources {
		c.drop(name)
	}
	c.stale, c.weak = true, true
	return nil
}

func gapOnConsole(last time.Time) []byte {
	text := "diakonos: the console was not read in time: lines up to here may be missing, and are gone from the log too"
	if !last.IsZero() {
		text = "diakonos: the console was not read in time: lines since " + last.UTC().Format(time.RFC3339Nano) + " may be missing here, and are gone from the log too"
	}
	return []byte(text)
}

// append adds a record to the output, as one line.
func (c *console) append(name string, r logRecord) {
	if c.json {
		c.out = append(append(c.out, logJSON(name, r)...), '\n')
		return
	}
	c.out = append(append(c.out, name...), " | "...)
	if c.shown {
		c.out = appendVisible(c.out, string(r.Text), "\t")
	} else {
		c.out = append(c.out, r.Text...)
	}
	c.out = append(c.out, '\n')
}

// flush writes, waiting as long as the reader does, and then notes how far it is.
func (c *console) flush() error {
	for len(c.out) > 0 {
		n, err := unix.Write(1, c.out)
		switch {
		case err == unix.EAGAIN: // somebody has made it non-blocking
			_, _ = sysPoll([]unix.PollFd{{Fd: 1, Events: unix.POLLOUT}}, -1)
		case err != nil && err != unix.EINTR:
			return fmt.Errorf("%w: %w", errNoReader, err)
		}
		c.out = c.out[max(n, 0):]
	}
	c.out = c.out[:0]
	for name, s := range c.sources {
		if s.done != s.saved && writeLogPlace(c.placeFile(name), s.done) == nil {
			s.saved = s.done
		}
	}
	return nil
}

// ---- what has changed

// anyWatch stands for all of them.
const anyWatch = -1

// consoleWatch tells which directories have changed (man 7 inotify).
type consoleWatch struct {
	file    *os.File     // nil = there is no inotify
	changed chan []int32 // watch descriptors
}

func startConsoleWatch() *consoleWatch {
	w := &consoleWatch{changed: make(chan []int32)}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return w
	}
	w.file = os.NewFile(uintptr(fd), "inotify")
	go w.listen()
	return w
}

// add watches a directory; one that is watched already keeps its descriptor.
func (w *consoleWatch) add(dir string) (wd int32, ok bool) {
	if w.file == nil {
		return 0, false
	}
	conn, err := w.file.SyscallConn()
	if err != nil {
		return 0, false
	}
	n := 0
	cerr := conn.Control(func(fd uintptr) {
		n, err = unix.InotifyAddWatch(int(fd), dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_MOVED_FROM|unix.IN_DELETE|unix.IN_ONLYDIR)
	})
	return int32(n), err == nil && cerr == nil
}

// listen hands on what has changed. As long as nobody takes it, the kernel keeps more, and says so when that was too much.
func (w *consoleWatch) listen() {
	buf := make([]byte, 16<<10)
	for {
		n, err := w.file.Read(buf)
		if err != nil {
			return
		}
		var list []int32
		for rest := buf[:n]; len(rest) >= unix.SizeofInotifyEvent; {
			wd := int32(binary.NativeEndian.Uint32(rest)) // -1 = too much
			if len(list) == 0 || list[len(list)-1] != wd {
				list = append(list, wd)
			}
			rest = rest[min(len(rest), unix.SizeofInotifyEvent+int(binary.NativeEndian.Uint32(rest[12:]))):]
		}
		w.changed <- list
	}
}

func (w *consoleWatch) close() {
	if w.file != nil {
		w.file.Close()
	}
}

// ---- places

const logPlaceBytes = 16 + prefixBytes // inode 8, offset 8, little endian; the beginning of the file

func writeLogPlace(path string, p logPlace) error {
	var b [logPlaceBytes]byte
	binary.LittleEndian.PutUint64(b[0:], p.inode)
	binary.LittleEndian.PutUint64(b[8:], uint64(p.offset))
	copy(b[16:], p.first[:])
	fd, err := openRetry(path, unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Pwrite(fd, b[:], 0)
	return err
}

func readLogPlace(path string) (p logPlace, known bool) {
	b, err := readSmall(path)
	if err != nil || len(b) != logPlaceBytes {
		return p, false
	}
	p = logPlace{inode: binary.LittleEndian.Uint64(b[0:]), offset: int64(binary.LittleEndian.Uint64(b[8:]))}
	copy(p.first[:], b[16:])
	return p, true
}

// consoleArguments is the command line of the process.
func consoleArguments(format string, h home, since time.Time) []string {
	return []string{initName, consoleFlag, format, h.path, strconv.FormatInt(since.UnixNano(), 10)}
}
