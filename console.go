// Role: the console of a container: copies the logs of all services to standard output, from their files, which stay the truth.
// Runs in: init (a process of its own, which the first process keeps).
// Owns: run/NAME/console: how far the log of a service has been copied.
// Uses: visible, wire, log, sys, state, render.

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
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
	cursors []*logCursor
	list    []logSource // what find has found
	looked  time.Time   // and when the directory was changed before; it is not read again until that changes
	out     []byte
}

// consoleSource is the log of one service.
type consoleSource struct {
	cursor *logCursor
	done   logPlace // what was given to the output, or stands in out
	saved  logPlace // as on disk
	last   time.Time
	begun  bool // its first look is done
	gap    bool // files were removed before they were copied
}

// consoleMain is the process.
func consoleMain(args []string) int {
	if len(args) != 3 {
		return exitUsage
	}
	ns, _ := strconv.ParseInt(args[2], 10, 64)
	c := &console{json: args[0] == consoleJSON, home: home{args[1]}, since: time.Unix(0, ns), sources: map[string]*consoleSource{},
		shown: isatty.IsTerminal(1)}
	unix.Umask(0o077)
	signal.Ignore(unix.SIGINT, unix.SIGHUP, unix.SIGPIPE, unix.SIGTTOU)
	told := make(chan os.Signal, 1)
	signal.Notify(told, unix.SIGTERM)
	stop := make(chan struct{})
	go func() {
		<-told
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
	w := startLogWatch(nil)
	defer w.close()
	for going := true; ; {
		known := len(c.sources)
		w.sources = c.find()
		if w.file != nil {
			w.add()
		}
		if err := c.copy(); err != nil {
			return err
		}
		if len(c.sources) != known {
			continue // what came between the first look at a log and the watch of it
		}
		if !going {
			return nil
		}
		going = w.wait(stop)
	}
}

// find looks for logs that are new. It returns all, and a place that stands for those to come.
func (c *console) find() []logSource {
	root := filepath.Dir(c.home.logDir("x"))
	st, err := os.Stat(root)
	if err == nil && c.list != nil && st.ModTime().Equal(c.looked) {
		return c.list
	}
	list := []logSource{{Dir: root + "/."}}
	if err != nil {
		return list // none is there yet
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return list
	}
	for _, e := range entries {
		name := e.Name()
		list = append(list, logSource{Name: name, Dir: c.home.logDir(name)})
		if c.sources[name] == nil && e.IsDir() {
			c.open(name)
		}
	}
	for name, s := range c.sources { // forgotten ones
		if _, err := os.Stat(c.home.logDir(name)); errors.Is(err, fs.ErrNotExist) {
			s.cursor.close()
			delete(c.sources, name)
		}
	}
	c.cursors = c.cursors[:0]
	for _, s := range c.sources {
		c.cursors = append(c.cursors, s.cursor)
	}
	if len(c.sources) == len(list)-1 { // else one could not be opened
		c.list, c.looked = list, st.ModTime()
	}
	return list
}

// open begins with a log where the copy of it was left.
func (c *console) open(name string) {
	place, known := readLogPlace(c.placeFile(name))
	q := logQuery{Lines: -1}
	if !known {
		q.Since = c.since
	}
	s := &consoleSource{cursor: newCursor(logSource{Name: name, Dir: c.home.logDir(name)}, q)}
	if s.cursor.begin(q, holdTail) != nil {
		s.cursor.close()
		return // it is looked at again
	}
	if known {
		s.gap = !s.cursor.goTo(place)
		s.done, s.saved = place, place
	} else {
		s.gap = len(s.cursor.files) > 1 // it was rotated before we came to it, so more may have been there
	}
	c.sources[name] = s
}

func (c *console) placeFile(name string) string { return c.home.runDir(name) + "/console" }

// copy writes what there is, by time.
func (c *console) copy() error {
	for _, s := range c.sources {
		if s.begun {
			s.gap = s.gap || s.cursor.lost()
			if err := s.cursor.catchUp(); err != nil {
				return err
			}
		}
		s.begun = true
	}
	err := mergeLogs(c.cursors, -1, func(name string, r logRecord) error {
		s := c.sources[name]
		if s.gap {
			s.gap = false
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
	if err != nil {
		return err
	}
	return c.flush()
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
			return err
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

// ---- places

const logPlaceBytes = 16 // inode 8, offset 8, little endian

func writeLogPlace(path string, p logPlace) error {
	var b [logPlaceBytes]byte
	binary.LittleEndian.PutUint64(b[0:], p.inode)
	binary.LittleEndian.PutUint64(b[8:], uint64(p.offset))
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
	return logPlace{binary.LittleEndian.Uint64(b[0:]), int64(binary.LittleEndian.Uint64(b[8:]))}, true
}

// consoleArguments is the command line of the process.
func consoleArguments(format string, h home, since time.Time) []string {
	return []string{initName, consoleFlag, format, h.path, strconv.FormatInt(since.UnixNano(), 10)}
}
