// Role: the pump of a shim: carries the service's output from its FIFOs into the log (log protocol L of DESIGN.md,
// section 3), whatever is killed and whatever the disk does.
// Runs in: shim.
// Owns: run/NAME/out, err and pump; log/NAME; all descriptors of them. One goroutine does all of it; two waiters
// report output; one more goroutine empties the FIFOs while the disk hangs.
// Uses: sys, sys_log, log.

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// pumpConfig says what a pump works on.
type pumpConfig struct {
	RunDir    string // run/NAME, exists
	LogDir    string // log/NAME, made when needed
	MaxSize   int64  // bytes of one log file
	MaxFiles  int    // rotated files kept, beside current
	FIFOOwner int    // uid, -1 = ours
}

// pumpNote is what a pump tells the owner of the shim. Exactly one of its facts is set, beside Hung and Text.
type pumpNote struct {
	Drained uint64 // this drain is done
	Retired bool   // new FIFOs are in place; Text says why not
	Buried  bool   // the last retired FIFO has come to its end
	Stopped bool   // the pump is gone
	Halted  bool   // the pump stands still
	Settled bool   // what was kept in memory is in the log
	Hung    bool   // with Drained: the FIFOs are empty, but the disk hangs and the log lacks the end
	Text    string // worth a line in our own log; sent on change only
}

const (
	hungAfter = 5 * time.Second // a batch that takes longer: the disk hangs (DESIGN.md, section 3)
	ringBytes = 256 << 10       // of output kept while it does
)

// pump is one shim's pump.
type pump struct {
	// immutable
	cfg      pumpConfig
	k        kernel
	notes    chan<- pumpNote
	patience time.Duration

	// any goroutine
	wake       chan struct{} // one token: something is ready or asked
	asked      atomic.Bool   // one of the channels below has something; each holds the latest wish only
	drainAsk   chan uint64
	limitAsk   chan [2]int64
	retireAsk  chan struct{}
	stopAsk    chan struct{}
	haltAsk    chan struct{}
	goesOn     chan struct{}
	handles    [2]atomic.Int32 // of out and err; -1 = none at present
	retirees   atomic.Int32    // retired FIFOs that somebody still writes into
	watch      atomic.Uint32   // pumpFree, pumpAtDisk, pumpRelieved
	inMemory   atomic.Bool     // from the beginning of a relief until all that it kept is in the log
	reliefStop chan struct{}
	reliefDone chan lostCount

	// owned by the pump goroutine; by the relief while it runs
	fifos []*fifo

	// owned by the pump goroutine
	log      logWriter
	timer    *time.Timer
	m        []byte // the pump file; see log.go
	private  bool   // m is not a file: a kill may lose or repeat a batch
	mapTried int64  // ns
	out      []byte // records of a batch
	scratch  [2]int // pipe that the window is copied through; 0 = not made
	noTee    bool
	outbox   []pumpNote
	said     [saidCount]string
	stopping bool
	touched  int   // bytes of the largest batch since memory was given back
	touchAt  int64 // ns: when the map's pages were last made present
	touchTo  int   // bytes of want and area that were
	givenAt  int64 // ns
	credit   int
}

// fifo is one output FIFO.
type fifo struct {
	// immutable
	stream logStream
	path   string
	fd     int
	file   *os.File // of fd, for the poller
	ino    uint64

	ready atomic.Bool // set by its waiter

	// owned by the pump goroutine; by the relief while it runs
	old     bool   // retired: open for reading only, ends with its last writer
	gone    bool   // its end was read
	direct  []byte // read without tee(2), not in the log yet
	ring    []byte // what the relief read
	dropped bool   // the ring was full before its end
}

// stands: it is there under its name.
func (f *fifo) stands() bool {
	var st unix.Stat_t
	return f.path != "" && sysLstat(f.path, &st) == nil && st.Ino == f.ino
}

// Values of pump.watch.
const (
	pumpFree     uint32 = iota // the pump goroutine owns the FIFOs
	pumpAtDisk                 // so it does, but it may hang
	pumpRelieved               // it hangs; the relief owns them
)

// Kinds of text that are sent on change only.
const (
	saidLog = iota
	saidMap
	saidTee
	saidFIFO
	saidHung
	saidCount
)

var fifoNames = [2]string{"out", "err"}

// retiredMark is between the name of a FIFO and the number of a retired one: out.old.1.
const retiredMark = ".old."

// ---- what the owner of the shim calls; nothing of it waits

// startPump makes and opens the FIFOs and starts the pump, which first finishes what a predecessor left half done.
func startPump(cfg pumpConfig, notes chan<- pumpNote) (*pump, error) {
	return startPumpOn(cfg, notes, realKernel(), hungAfter)
}

func startPumpOn(cfg pumpConfig, notes chan<- pumpNote, k kernel, patience time.Duration) (*pump, error) {
	p := &pump{
		cfg: cfg, k: k, notes: notes, patience: patience,
		wake:       make(chan struct{}, 1),
		drainAsk:   make(chan uint64, 1),
		limitAsk:   make(chan [2]int64, 1),
		retireAsk:  make(chan struct{}, 1),
		stopAsk:    make(chan struct{}, 1),
		haltAsk:    make(chan struct{}, 1),
		goesOn:     make(chan struct{}, 1),
		reliefStop: make(chan struct{}),
		reliefDone: make(chan lostCount),
		credit:     giveCredit,
	}
	p.log = newLogWriter(cfg, &p.k)
	for s := range p.handles {
		p.handles[s].Store(-1)
	}
	p.openRetired()
	fresh, err := p.makeFIFOs()
	p.fifos = append(p.fifos, fresh...)
	if err != nil {
		for _, f := range p.fifos {
			f.file.Close()
		}
		return nil, err
	}
	p.showHandles()
	p.countRetired()
	for _, f := range p.fifos {
		go p.waitFor(f)
	}
	go p.loop()
	return p, nil
}

// fifo returns the descriptor of a stream's FIFO, to be sent to the daemon that holds it; -1 = none at present.
// It belongs to the pump and is good until the caller asks for retire or stop.
func (p *pump) fifo(s logStream) int { return int(p.handles[s].Load()) }

// drain asks for a note as soon as all output that is in the FIFOs by then is in the log. Last pieces without newline
// are ended. A later drain replaces one that is not done. token is not 0.
func (p *pump) drain(token uint64) { ask(p, p.drainAsk, token) }

// configure sets new limits.
func (p *pump) configure(maxSize int64, maxFiles int) {
	ask(p, p.limitAsk, [2]int64{maxSize, int64(maxFiles)})
}

// retired tells whether leftovers of an earlier run still write into a retired FIFO.
func (p *pump) retired() bool { return p.retirees.Load() > 0 }

// owes tells whether output is in memory, because the disk hangs or did a moment ago. A note with Settled tells the end of that.
func (p *pump) owes() bool { return p.inMemory.Load() }

// retire renames the FIFOs away, which are pumped until their last writer is gone, and makes new ones. Until the
// note, fifo returns -1. Whoever else holds the old FIFOs open (the daemon) must close them then.
func (p *pump) retire() {
	for s := range p.handles {
		p.handles[s].Store(-1)
	}
	ask(p, p.retireAsk, struct{}{})
}

// stop ends the pump between two batches. What is in the FIFOs stays there.
func (p *pump) stop() {
	for s := range p.handles {
		p.handles[s].Store(-1)
	}
	ask(p, p.stopAsk, struct{}{})
}

// halt asks the pump to stand still between two batches, which a note tells, until goOn. What is asked meanwhile comes after that.
func (p *pump) halt() { ask(p, p.haltAsk, struct{}{}) }

// goOn ends the halt of a pump that stands still.
func (p *pump) goOn() { p.goesOn <- struct{}{} }

// outputs are the descriptors of all FIFOs of a pump that stands still: who goes on with them by their names, in another program, must not let
// them be without a reader. An error: something of the output is known to this program alone.
func (p *pump) outputs() (fds []int, err error) {
	if p.private {
		return nil, errors.New("it cannot keep its pump file")
	}
	for _, f := range p.fifos {
		switch {
		case len(f.direct) > 0:
			return nil, errors.New("output is in memory")
		case !f.stands():
			return nil, errors.New("a FIFO that is written into was deleted or replaced")
		}
		fds = append(fds, f.fd)
	}
	return fds, nil
}

// ask puts a wish into a channel of one place, instead of the one that may be in it. There is one asker, so it never waits.
func ask[T any](p *pump, c chan T, v T) {
	select {
	case <-c:
	default:
	}
	c <- v
	p.asked.Store(true)
	p.poke()
}

func (p *pump) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// ---- the goroutine

func (p *pump) loop() {
	p.recover()
	for !p.stopping {
		moved := p.round()
		p.obey()
		p.tell()
		if !moved && !p.stopping {
			p.giveBack()
			p.rest()
		}
	}
	p.end()
}

// round takes one batch from each FIFO that may have one.
func (p *pump) round() (moved bool) {
	for _, f := range p.fifos {
		if f.ready.Swap(false) && p.batch(f) > 0 {
			f.ready.Store(true)
			moved = true
		}
	}
	p.bury()
	return moved
}

// rest waits until something is ready or asked.
func (p *pump) rest() {
	if len(p.outbox) == 0 {
		<-p.wake
		return
	}
	select {
	case <-p.wake:
	case p.notes <- p.outbox[0]:
		p.outbox = p.outbox[1:]
		p.poke() // there may be more
	}
}

// tell hands over notes as far as they are taken.
func (p *pump) tell() {
	for len(p.outbox) > 0 {
		select {
		case p.notes <- p.outbox[0]:
			p.outbox = p.outbox[1:]
		default:
			return
		}
	}
	p.outbox = nil
}

// say reports a condition when it changes; "" = it is over, in which case nothing is sent unless over is given.
func (p *pump) say(what int, text, over string) {
	if p.said[what] == text {
		return
	}
	p.said[what] = text
	if text == "" {
		text = over
	}
	p.outbox = append(p.outbox, pumpNote{Text: text})
}

func (p *pump) obey() {
	if !p.asked.Swap(false) {
		return
	}
	select {
	case l := <-p.limitAsk:
		p.setLimits(l[0], int(l[1]))
	default:
	}
	select {
	case token := <-p.drainAsk:
		p.drainNow(token)
	default:
	}
	select {
	case <-p.retireAsk:
		p.retireNow()
	default:
	}
	select {
	case <-p.stopAsk:
		p.stopping = true
	default:
	}
	select {
	case <-p.haltAsk:
		p.standStill()
	default:
	}
}

// standStill may wait for the owner of the shim, which waits for it.
func (p *pump) standStill() {
	for _, n := range append(p.outbox, pumpNote{Halted: true}) {
		p.notes <- n
	}
	p.outbox = nil
	<-p.goesOn
}

func (p *pump) setLimits(maxSize int64, maxFiles int) {
	p.enter()
	p.log.maxSize, p.log.maxFiles = maxSize, maxFiles
	p.log.prune()
	p.relieved(p.leave())
}

// end gives all back.
func (p *pump) end() {
	p.tellLost()
	for _, f := range p.fifos {
		f.file.Close()
	}
	p.log.close()
	if p.scratch[0] != 0 {
		unix.Close(p.scratch[0])
		unix.Close(p.scratch[1])
	}
	sysUnmap(p.m)
	sysUnmap(p.out)
	p.m, p.out = nil, nil
	for _, n := range append(p.outbox, pumpNote{Stopped: true}) {
		p.notes <- n
	}
}

// waitFor marks its FIFO as ready whenever something was written to it. The poller waits for edges, so bytes that
// stay in the FIFO on purpose cause nothing.
func (p *pump) waitFor(f *fifo) {
	conn, err := f.file.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Read(func(uintptr) bool {
		f.ready.Store(true)
		p.poke()
		return false
	})
}

// ---- FIFOs

// makeFIFOs opens out and err, and makes those that are missing.
func (p *pump) makeFIFOs() (list []*fifo, err error) {
	for s, name := range fifoNames {
		path := filepath.Join(p.cfg.RunDir, name)
		fd, err := sysMakeFIFO(path, p.cfg.FIFOOwner)
		if err != nil {
			return list, fmt.Errorf("cannot make output FIFO: %v", err)
		}
		f, err := newFIFO(logStream(s), path, fd, false)
		if err != nil {
			return list, err
		}
		list = append(list, f)
	}
	return list, nil
}

func (p *pump) showHandles() {
	for _, f := range p.fifos {
		if !f.old {
			p.handles[f.stream].Store(int32(f.fd))
		}
	}
}

// newFIFO takes a FIFO that is open; it owns fd.
func newFIFO(s logStream, path string, fd int, old bool) (*fifo, error) {
	file, err := pollable(fd, "output")
	if err != nil {
		return nil, err
	}
	f := &fifo{stream: s, path: path, fd: fd, file: file, old: old}
	var st unix.Stat_t
	if sysFstat(fd, &st) == nil {
		f.ino = st.Ino
	}
	return f, nil
}

// openRetired opens the retired FIFOs of a predecessor.
func (p *pump) openRetired() {
	d, err := os.Open(p.cfg.RunDir)
	if err != nil {
		return
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	for _, name := range names {
		for s, base := range fifoNames {
			if !strings.HasPrefix(name, base+retiredMark) {
				continue
			}
			path := filepath.Join(p.cfg.RunDir, name)
			fd, err := sysOpenFIFO(path, unix.O_RDONLY)
			if err != nil {
				continue
			}
			if f, err := newFIFO(logStream(s), path, fd, true); err == nil {
				p.fifos = append(p.fifos, f)
			}
		}
	}
}

// retireNow renames out and err away. A retired FIFO is kept open for reading only: when its last writer is gone, its
// guard is free and the poller reports the hang-up.
func (p *pump) retireNow() {
	for _, f := range p.fifos {
		if !f.old {
			p.endLine(f.stream)
		}
	}
	was := p.fifos
	p.fifos = nil // a relief has nothing to do meanwhile
	p.enter()
	var kept, fresh []*fifo
	var failed error
	for _, f := range was {
		if f.old {
			kept = append(kept, f)
			continue
		}
		old, err := p.retireOne(f)
		if err != nil {
			failed = err
			continue
		}
		fresh = append(fresh, old)
	}
	made, err := p.makeFIFOs()
	if err != nil {
		failed = err
	}
	hung := p.leave()
	fresh = append(fresh, made...)
	p.fifos = append(kept, fresh...)
	p.showHandles()
	p.countRetired()
	for _, f := range fresh {
		go p.waitFor(f)
	}
	p.relieved(hung)
	note := pumpNote{Retired: true}
	if failed != nil {
		note.Text = fmt.Sprintf("cannot retire output FIFO: %v", failed)
	}
	p.outbox = append(p.outbox, note)
}

// retireOne closes a FIFO and returns the same, retired.
func (p *pump) retireOne(f *fifo) (*fifo, error) {
	defer f.file.Close()
	for i := 1; i < 1<<16; i++ {
		path := f.path + retiredMark + strconv.Itoa(i)
		reach("fifo.retire")
		err := sysRenameNew(f.path, path)
		if err == unix.EEXIST {
			continue
		}
		if err != nil { // deleted by a third party: it lives on through its descriptors
			path = "/proc/self/fd/" + strconv.Itoa(f.fd)
			fd, err := openRetry(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, err
			}
			return f.retired("", fd)
		}
		fd, err := sysOpenFIFO(path, unix.O_RDONLY)
		if err != nil {
			return nil, err
		}
		return f.retired(path, fd)
	}
	return nil, errors.New("too many retired ones")
}

// retired is the same FIFO, open for reading only.
func (f *fifo) retired(path string, fd int) (*fifo, error) {
	old, err := newFIFO(f.stream, path, fd, true)
	if err == nil {
		old.direct = f.direct
	}
	return old, err
}

// bury forgets retired FIFOs that came to their end.
func (p *pump) bury() {
	if !slices.ContainsFunc(p.fifos, func(f *fifo) bool { return f.gone }) {
		return
	}
	kept := p.fifos[:0]
	for _, f := range p.fifos {
		if !f.gone {
			kept = append(kept, f)
			continue
		}
		f.file.Close()
		if f.path != "" {
			reach("fifo.bury")
			_ = sysUnlink(f.path)
		}
	}
	clear(p.fifos[len(kept):])
	p.fifos = kept
	if p.countRetired(); !p.retired() {
		p.outbox = append(p.outbox, pumpNote{Buried: true})
	}
}

func (p *pump) countRetired() {
	n := int32(0)
	for _, f := range p.fifos {
		if f.old {
			n++
		}
	}
	p.retirees.Store(n)
}

// ---- one batch: protocol L

// batch carries one window of f into the log and returns how many bytes left the FIFO. The FIFO is emptied before the
// pump rests: a writer that blocks on a full pipe, into which it wrote while it was not empty, wakes no reader
// (pipe(7); fs/pipe.c wakes on empty only), so a begun line must not wait there. It is carried over in the pump file.
func (p *pump) batch(f *fifo) int {
	m := p.window(f)
	if m <= 0 {
		return 0
	}
	p.enter()
	in := p.intend(f, m)
	was := p.leave()
	p.consume(f, in, was)
	p.commit(in)
	p.relieved(was)
	return in.n
}

// window copies the head of the FIFO into the scratch pipe (step 1) and returns its length.
func (p *pump) window(f *fifo) int {
	if len(f.direct) > 0 { // before the FIFO is looked at, which may be empty
		return len(f.direct)
	}
	if p.scratch[0] == 0 && !p.noTee {
		if sysReadable(f.fd) == 0 && !f.old {
			return 0 // a silent service costs nothing
		}
		p.openScratch()
	}
	if p.scratch[0] == 0 || p.noTee {
		return p.windowByReading(f)
	}
	m, err := p.k.tee(f.fd, p.scratch[1], batchBytes)
	switch {
	case err == nil && m == 0:
		f.gone = f.old
		return 0
	case err == nil:
		return m
	case err == unix.EAGAIN:
		return 0
	}
	p.noTee = true
	p.say(saidTee, fmt.Sprintf("cannot copy output in the kernel: tee: %v; a killed shim may now lose lines", err), "")
	return p.windowByReading(f)
}

// openScratch makes the scratch pipe, at the first output.
func (p *pump) openScratch() {
	if err := unix.Pipe2(p.scratch[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		p.scratch = [2]int{}
		p.say(saidTee, fmt.Sprintf("cannot make a pipe: %v; a killed shim may now lose lines", err), "")
		return
	}
	p.say(saidTee, "", "output is copied in the kernel again")
}

// windowByReading is the weaker way: what is read is in no safe place until it is in the log.
func (p *pump) windowByReading(f *fifo) int {
	b := make([]byte, batchBytes)
	reach("pump.read")
	n, err := sysReadPipe(f.fd, b)
	if err == nil && n == 0 {
		f.gone = f.old
	}
	f.direct = b[:max(0, n)]
	return len(f.direct)
}

// intend takes the window and brings it into the log (steps 1 to 3).
func (p *pump) intend(f *fifo, m int) intent {
	p.openMap()
	p.touch(m)
	want := p.m[pumpWantAt:][:m]
	in := intent{stream: f.stream, fifo: f.ino}
	if f.old {
		in.flags = intentOld | intentEnd // its stream goes on in another FIFO
	}
	if len(f.direct) > 0 {
		in.flags |= intentMem
		in = p.submit(in, copy(want, f.direct))
		f.direct = f.direct[in.n:]
		return in
	}
	return p.submit(in, p.readScratch(want))
}

func (p *pump) readScratch(want []byte) (got int) {
	for got < len(want) {
		n, err := sysReadPipe(p.scratch[0], want[got:])
		if err != nil || n == 0 { // what is left in it must not come before the next window
			unix.Close(p.scratch[0])
			unix.Close(p.scratch[1])
			p.scratch = [2]int{}
			break
		}
		got += n
	}
	return got
}

// submit brings the begun line of the stream and the first m bytes of want into the log (steps 2 and 3). The result
// tells how much of it the intent covers.
func (p *pump) submit(in intent, m int) intent {
	in.max = maxRecordText
	in.stamp = time.Now().UnixNano()
	if in.flags&intentOld == 0 {
		in.begun = carryWord(p.word(begunAt(in.stream)))
	}
	data := p.data(in, m)
	in.text = takeable(data, in.max)
	if in.flags&intentEnd != 0 {
		in.text = len(data)
	}
	return p.submitData(in, data)
}

// submitData does so with data, of which in.text bytes are to become records.
func (p *pump) submitData(in intent, data []byte) intent {
	var out []byte
	var failed error
	in.n = len(data) - in.begun.length()
	if in.gap = getLost(p.m[pumpLostAt:]); in.text > 0 || in.flags&(intentClose|intentTell) != 0 {
		var taken int
		failed = p.log.ready()
		if out, taken = p.makeRecords(in, data[:in.text], &failed); taken < in.text {
			in.text, in.n = taken, taken-in.begun.length()
			in.flags &^= intentEnd
			data = data[:taken]
		}
		in.file, in.off = p.log.ino, p.log.size
	} else {
		in.gap = lostCount{} // told with the next records
	}
	in.length = len(out)
	rest := data[in.text:]
	in.next = in.begun
	if in.flags&intentOld == 0 {
		in.next = in.begun.after(len(rest))
		copy(p.m[carryAt(in.stream, in.next):], rest)
	}
	p.touched = max(p.touched, len(data), len(out))
	complement(p.m[pumpAreaAt:][:in.n], p.m[pumpWantAt:][:in.n])
	reach("pump.intend")
	p.setWord(pumpFlagsAt, in.flags)
	in.put(p.m)
	reach("pump.phase1")
	p.setWord(pumpPhaseAt, 1)
	p.appendOut(&in, out, 0, failed)
	return in
}

// data is the begun line followed by the first m bytes of want.
func (p *pump) data(in intent, m int) []byte {
	c := in.begun.length()
	copy(p.m[pumpWantAt-c:pumpWantAt], p.m[carryAt(in.stream, in.begun):])
	return p.m[pumpWantAt-c : pumpWantAt+m]
}

// covered is the part of the data that is in the intent's records.
func (p *pump) covered(in intent) []byte { return p.data(in, in.n)[:in.text] }

// begunAt is where the carryWord of a stream lies.
func begunAt(s logStream) int { return pumpBegunAt + 4*int(s) }

// makeRecords makes the records that fit into the present log file, else into a new one.
func (p *pump) makeRecords(in intent, data []byte, failed *error) (out []byte, taken int) {
	if *failed != nil {
		return in.records(p.out[:0], data, outBytes)
	}
	limit := func() int { return int(min(outBytes, max(0, p.log.maxSize-p.log.size))) }
	if out, taken = in.records(p.out[:0], data, limit()); len(out) > 0 && (len(data) == 0 || taken > 0) {
		return out, taken
	}
	if p.log.size > 0 {
		if err := p.log.rotate(in.stamp); err != nil {
			if p.log.fd < 0 {
				*failed = err
			} // else the present file grows on
			return in.records(p.out[:0], data, outBytes)
		}
	}
	if out, taken = in.records(p.out[:0], data, limit()); len(out) > 0 && (len(data) == 0 || taken > 0) {
		return out, taken
	}
	// The limit is smaller than one record: take little more than one.
	return in.records(p.out[:0], data, in.max+4*prefixBytes+len(gapText(in.gap)))
}

// appendOut writes out[from:] to the log (step 3). What cannot be written is cut back to whole records and counted.
func (p *pump) appendOut(in *intent, out []byte, from int, failed error) {
	done := from
	for failed == nil && done < len(out) {
		reach("pump.append")
		n, err := p.k.write(p.log.fd, out[done:])
		if err == nil && n <= 0 {
			err = io.ErrShortWrite
		}
		failed = err
		done += max(0, n)
	}
	if len(out) > 0 {
		p.log.size = in.off + int64(done)
		p.log.last = max(p.log.last, in.stamp)
	}
	if failed == nil {
		if len(out) == 0 {
			return
		}
		p.say(saidLog, "", fmt.Sprintf("log %q is written again", p.log.path))
		return
	}
	p.say(saidLog, fmt.Sprintf("cannot write log %q: %v; output that does not fit is dropped and counted", p.log.path, failed), "")
	p.drop(in, out, done)
}

// drop makes the intent one whose rest is lost.
func (p *pump) drop(in *intent, out []byte, done int) {
	keep := wholeRecords(out[:done])
	if done > keep {
		p.log.cut(in.off + int64(keep))
	}
	lost, _ := in.lostFrom(out[:0], p.covered(*in), keep)
	putLost(p.m[pumpDropAt:], lost)
	in.flags |= intentDrop
	reach("pump.drop")
	p.setWord(pumpFlagsAt, in.flags)
}

// consume takes the bytes of the intent out of the FIFO (step 4).
func (p *pump) consume(f *fifo, in intent, was *lostCount) {
	if in.n == 0 || in.flags&intentMem != 0 {
		return
	}
	area := p.m[pumpAreaAt:][:in.n]
	at := 0
	if was != nil { // the first that the relief read are ours
		sysTouch(area)
		at = copy(area, f.ring)
		f.ring = f.ring[at:]
	}
	for at < len(area) {
		reach("pump.consume")
		n, err := sysReadPipe(f.fd, area[at:])
		if err != nil || n <= 0 {
			break // a service that reads its own output
		}
		at += n
	}
}

// commit ends the intent (step 5). All that it writes can be written twice.
func (p *pump) commit(in intent) {
	if p.m == nil || p.word(pumpPhaseAt) == 0 {
		return
	}
	open := p.word(pumpOpenAt)
	bit := uint32(1) << in.stream
	var lost lostCount
	if in.flags&intentDrop != 0 {
		lost, open = getLost(p.m[pumpDropAt:]), 0
	} else {
		if !in.gap.zero() {
			open = 0 // for readers a gap ends all lines
		}
		if in.flags&intentClose != 0 {
			open &^= bit
		}
		if in.text > 0 && in.flags&intentOld == 0 {
			open &^= bit
			if in.framing().open(p.covered(in)) {
				open |= bit
			}
		}
	}
	if in.length == 0 && in.flags&intentDrop == 0 {
		lost = getLost(p.m[pumpLostAt:]) // nothing was told
	}
	if in.flags&intentOld == 0 {
		reach("pump.begin-line")
		p.setWord(begunAt(in.stream), uint32(in.next))
	}
	putLost(p.m[pumpLostAt:], lost)
	reach("pump.open-line")
	p.setWord(pumpOpenAt, open)
	reach("pump.phase0")
	p.setWord(pumpPhaseAt, 0)
}

// word and setWord are atomic, and with them all that was written before is written.
func (p *pump) word(at int) uint32 { return atomic.LoadUint32((*uint32)(unsafe.Pointer(&p.m[at]))) }
func (p *pump) setWord(at int, v uint32) {
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&p.m[at])), v)
}

// complement makes dst differ from src in every byte. Both begin at a word and have room up to the end of one.
func complement(dst, src []byte) {
	if len(src) == 0 {
		return
	}
	words := (len(src) + 7) / 8
	d := unsafe.Slice((*uint64)(unsafe.Pointer(&dst[0])), words)
	s := unsafe.Slice((*uint64)(unsafe.Pointer(&src[0])), words)
	for i := range d {
		d[i] = ^s[i]
	}
}

// ---- batches that do not come from a FIFO

// endLine ends the line of a stream that has begun, be it that parts of it are in the log or not.
func (p *pump) endLine(s logStream) {
	if p.m == nil {
		return
	}
	in := intent{flags: intentMem | intentEnd, stream: s}
	if carryWord(p.word(begunAt(s))).length() == 0 {
		if p.word(pumpOpenAt)&(1<<s) == 0 {
			return
		}
		in.flags |= intentClose
	}
	p.enter()
	in = p.submit(in, 0)
	was := p.leave()
	p.commit(in)
	p.relieved(was)
}

// tellLost writes the gap record if one is due.
func (p *pump) tellLost() {
	if p.m == nil || getLost(p.m[pumpLostAt:]).zero() {
		return
	}
	p.enter()
	in := p.submitData(intent{flags: intentMem | intentOld | intentTell, max: maxRecordText, stamp: time.Now().UnixNano()}, nil)
	was := p.leave()
	p.commit(in)
	p.relieved(was)
}

// addLost counts what the relief dropped.
func (p *pump) addLost(l lostCount) {
	in := intent{flags: intentMem | intentOld | intentDrop, max: maxRecordText}
	putLost(p.m[pumpDropAt:], getLost(p.m[pumpLostAt:]).plus(l))
	reach("pump.count-intend")
	p.setWord(pumpFlagsAt, in.flags)
	in.put(p.m)
	reach("pump.count-phase1")
	p.setWord(pumpPhaseAt, 1)
	p.commit(in)
}

// drainNow takes all that is in out and err at this moment. What others write meanwhile is not waited for.
func (p *pump) drainNow(token uint64) {
	for i := 0; i < len(p.fifos); i++ {
		f := p.fifos[i]
		if f.old {
			continue
		}
		for left := sysReadable(f.fd) + len(f.direct); left > 0; {
			n := p.batch(f)
			if n <= 0 {
				break
			}
			left -= n
		}
		p.endLine(f.stream)
		f.ready.Store(true)
	}
	if p.m != nil && sysAccess(filepath.Join(p.cfg.RunDir, "pump"), unix.F_OK) == unix.ENOENT {
		p.private, p.mapTried = true, 0 // deleted by a third party: the next output makes it again
	}
	p.poke()
	p.tellLost()
	p.outbox = append(p.outbox, pumpNote{Drained: token})
}

// ---- the hung disk

// enter: from here on the pump goroutine may hang at the disk. It does not touch the FIFOs until leave.
func (p *pump) enter() {
	p.watch.Store(pumpAtDisk)
	if p.timer == nil {
		p.timer = time.AfterFunc(p.patience, p.relief)
		return
	}
	p.timer.Reset(p.patience)
}

// leave ends what enter began. The result is what the relief lost; nil = there was none.
func (p *pump) leave() *lostCount {
	if p.watch.CompareAndSwap(pumpAtDisk, pumpFree) {
		p.timer.Stop()
		return nil
	}
	p.reliefStop <- struct{}{}
	lost := <-p.reliefDone
	p.watch.Store(pumpFree)
	return &lost
}

// relief empties the FIFOs while the pump goroutine hangs; it touches neither log nor map. It runs in a goroutine of
// its own.
func (p *pump) relief() {
	if !p.watch.CompareAndSwap(pumpAtDisk, pumpRelieved) {
		return
	}
	p.inMemory.Store(true)
	var lost lostCount
	hung := pumpNote{Text: fmt.Sprintf("the disk of log %q hangs; output is kept in memory, then dropped and counted", p.log.path)}
	pending := []pumpNote{hung}
	for {
		for _, f := range p.fifos {
			f.ready.Store(false)
			p.relieve(f, &lost)
		}
		var notes chan<- pumpNote
		var first pumpNote
		if len(pending) > 0 {
			notes, first = p.notes, pending[0]
		}
		select {
		case <-p.reliefStop:
			p.outbox = append(p.outbox, pending...)
			p.reliefDone <- lost
			return
		case token := <-p.drainAsk:
			pending = append(pending, pumpNote{Drained: token, Hung: true})
		case notes <- first:
			pending = pending[1:]
		case <-p.wake:
		}
	}
}

// relieve empties one FIFO into its ring, and drops what does not fit. The ring has room for an intent beside what
// it is to keep: the first bytes that are read may belong to one.
func (p *pump) relieve(f *fifo, lost *lostCount) {
	var buf []byte
	for {
		if buf == nil {
			buf = make([]byte, batchBytes)
		}
		reach("pump.relieve")
		n, err := sysReadPipe(f.fd, buf)
		if err != nil || n <= 0 {
			return
		}
		keep := 0
		if !f.dropped {
			keep = min(n, max(0, ringBytes+batchBytes-p.ringed()))
		}
		f.ring = append(f.ring, buf[:keep]...)
		if keep < n {
			now := time.Now().UnixNano()
			if !f.dropped { // what is kept ends at a line's end, but never within an intent
				f.dropped = true
				if whole := wholeRecords(f.ring); whole >= batchBytes {
					*lost = lost.plus(countLost(f.ring[whole:], now))
					f.ring = f.ring[:whole]
				}
			}
			*lost = lost.plus(countLost(buf[keep:n], now))
		}
	}
}

func (p *pump) ringed() (n int) {
	for _, f := range p.fifos {
		n += len(f.ring)
	}
	return n
}

// countLost counts lines and bytes that were lost at one moment.
func countLost(b []byte, ns int64) lostCount {
	l := lostCount{bytes: uint64(len(b)), from: ns, to: ns}
	for _, c := range b {
		if c == '\n' {
			l.lines++
		}
	}
	return l
}

// relieved takes over from the relief: what it kept goes into the log, what it lost is counted.
func (p *pump) relieved(was *lostCount) {
	if was == nil {
		return
	}
	lost := *was
	for again := true; again; {
		again = false
		for i := 0; i < len(p.fifos); i++ {
			f := p.fifos[i]
			f.ready.Store(true)
			if len(f.direct) > 0 {
				f.ring, f.direct = append(f.direct, f.ring...), nil
			}
			if len(f.ring) > 0 {
				again = true
				more := p.restore(f)
				lost = lost.plus(more)
			}
			f.dropped = false
		}
	}
	if !lost.zero() {
		p.openMap()
		p.addLost(lost)
		p.tellLost()
	}
	p.inMemory.Store(false)
	p.outbox = append(p.outbox, pumpNote{Settled: true, Text: fmt.Sprintf("the disk of log %q works again", p.log.path)})
	p.poke()
}

// restore writes the ring of f. The result is what was lost if the disk hung again meanwhile.
func (p *pump) restore(f *fifo) (lost lostCount) {
	data, dropped := f.ring, f.dropped
	f.ring, f.dropped = nil, false
	for len(data) > 0 {
		w := data[:min(len(data), batchBytes)]
		in := intent{flags: intentMem, stream: f.stream}
		if f.old {
			in.flags |= intentOld
		}
		if f.old || dropped && len(w) == len(data) {
			in.flags |= intentEnd
		}
		p.enter()
		p.openMap()
		in = p.submit(in, copy(p.m[pumpWantAt:], w))
		if was := p.leave(); was != nil {
			lost = lost.plus(*was)
		}
		p.commit(in)
		data = data[in.n:]
	}
	return lost
}

// ---- memory

// Memory goes back when the FIFOs are empty after a large batch, without a timer. It costs the next large batch its
// page faults (about 30 us), so a busy service may do it only so often: there is credit for a few times, refilled
// one by one.
const (
	giveAbove  = 16 << 10
	giveCredit = 32
	giveRefill = 100 * time.Millisecond
)

func (p *pump) giveBack() {
	if p.touched <= giveAbove {
		return
	}
	now := time.Now().UnixNano()
	if p.credit < giveCredit {
		p.credit = min(giveCredit, p.credit+int((now-p.givenAt)/int64(giveRefill)))
	}
	if p.credit <= 0 {
		return
	}
	p.credit--
	p.givenAt = now
	sysGiveBack(p.m[pumpCarryAt:pumpWantAt])
	sysGiveBack(p.m[pumpWantAt+4096 : pumpAreaAt])
	sysGiveBack(p.m[pumpAreaAt+4096:])
	sysGiveBack(p.out[8192:])
	p.touched, p.touchTo = 0, 4096
}

// touch makes the pages of a batch present, where that was not done within a second: the kernel takes write access
// away when it writes pages out, and the fault would then happen outside a system call.
func (p *pump) touch(m int) {
	now := time.Now().UnixNano()
	if m <= p.touchTo && now-p.touchAt < int64(time.Second) && now >= p.touchAt {
		return
	}
	to := (max(m, p.touchTo) + 4095) &^ 4095
	sysTouch(p.m[:pumpWantAt+to])
	sysTouch(p.m[pumpAreaAt:][:to])
	p.touchAt, p.touchTo = now, to
}

// openMap maps the pump file, which is made at the first output. Where it cannot be had, private memory serves:
// reading must never stop. It is tried again once a second.
func (p *pump) openMap() {
	if p.m != nil && !p.private {
		return
	}
	now := time.Now().UnixNano()
	if p.m != nil && now-p.mapTried < int64(time.Second) {
		return
	}
	p.mapTried = now
	if p.out == nil {
		p.out = memory(outBytes)
	}
	m, err := p.mapFile()
	switch {
	case err == nil && p.m != nil: // keep what is lost, open and begun
		copy(m[pumpLostAt:pumpWantAt], p.m[pumpLostAt:pumpWantAt])
		sysUnmap(p.m)
		p.m, p.private = m, false
	case err == nil:
		p.m, p.private = m, false
	case p.m == nil:
		p.m, p.private = memory(pumpFileSize), true
	}
	if err != nil {
		p.say(saidMap, fmt.Sprintf("cannot keep the pump file: %v; a killed shim may now lose or repeat lines", err), "")
		return
	}
	p.say(saidMap, "", "the pump file is kept again")
}

func memory(size int) []byte {
	m, err := sysMapMemory(size)
	if err != nil {
		return make([]byte, size)
	}
	return m
}

func (p *pump) mapFile() ([]byte, error) {
	path := filepath.Join(p.cfg.RunDir, "pump")
	reach("pump.create")
	fd, err := p.k.open(path, unix.O_RDWR|unix.O_CREAT|unix.O_NONBLOCK, 0o600)
	if err == unix.ELOOP || err == unix.EISDIR || err == unix.ENXIO {
		if err = sysMoveAway(path); err == nil {
			reach("pump.create-again")
			fd, err = p.k.open(path, unix.O_RDWR|unix.O_CREAT|unix.O_NONBLOCK, 0o600)
		}
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	reach("pump.allocate")
	if err := p.k.allocate(fd, pumpFileSize); err != nil {
		return nil, err
	}
	m, err := sysMapFile(fd, pumpFileSize)
	if err != nil {
		return nil, err
	}
	if string(m[:len(pumpMagic)]) != pumpMagic {
		clear(m[:4096])
		copy(m, pumpMagic)
	}
	return m, nil
}

// ---- recovery

// recover finishes what a predecessor left at phase 1. It may itself be killed at any point.
func (p *pump) recover() {
	var head [4096]byte
	path := filepath.Join(p.cfg.RunDir, "pump")
	fd, err := sysOpen(path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return
	}
	n, _ := sysPread(fd, head[:], 0)
	unix.Close(fd)
	le := binary.LittleEndian
	if n < len(head) || string(head[:len(pumpMagic)]) != pumpMagic {
		return
	}
	stands := le.Uint32(head[pumpPhaseAt:]) == 1
	begun := carryWord(le.Uint32(head[begunAt(streamOut):])).length() + carryWord(le.Uint32(head[begunAt(streamErr):])).length()
	if !stands && begun == 0 && getLost(head[pumpLostAt:]).zero() && le.Uint32(head[pumpOpenAt:]) == 0 {
		return // nothing to know: the file is mapped at the first output
	}
	p.enter()
	p.openMap()
	if !stands || p.private {
		p.relieved(p.leave())
		return
	}
	p.finish()
}

// finish carries an intent to its end. Called between enter and leave, and leaves.
func (p *pump) finish() {
	in, err := getIntent(p.m)
	if err != nil {
		p.say(saidMap, err.Error(), "")
		reach("pump.void")
		p.setWord(pumpPhaseAt, 0)
		p.relieved(p.leave())
		return
	}
	if in.flags&intentDrop == 0 && in.length > 0 {
		p.appendRest(&in)
	}
	was := p.leave()
	p.consumeRest(in, was)
	p.commit(in)
	p.relieved(was)
}

// appendRest appends what is missing of the intent's records, the same bytes again.
func (p *pump) appendRest(in *intent) {
	out, _ := in.records(p.out[:0], p.covered(*in), outBytes)
	found, err := p.log.openAt(in.file)
	if err != nil {
		p.appendOut(in, out, 0, err)
		return
	}
	done := p.log.size - in.off
	if found && done >= int64(len(out)) {
		return
	}
	if !found || done < 0 { // deleted or cut by a third party: rather twice than never
		in.file, in.off, done = p.log.ino, p.log.size, 0
		in.put(p.m)
	}
	p.appendOut(in, out, int(done), nil)
}

// consumeRest reads away what is left of the intent in its FIFO. The head of the FIFO must be those very bytes: where
// it is not, they were read by a relief whose shim was killed, or went with the FIFO.
func (p *pump) consumeRest(in intent, was *lostCount) {
	f := p.byInode(in.fifo)
	if f == nil || in.flags&intentMem != 0 {
		return
	}
	want, area := p.m[pumpWantAt:][:in.n], p.m[pumpAreaAt:][:in.n]
	at := consumed(want, area)
	if was != nil {
		n := min(len(f.ring), len(want)-at)
		if string(f.ring[:n]) != string(want[at:at+n]) {
			return
		}
		at += copy(area[at:], f.ring[:n])
		f.ring = f.ring[n:]
	}
	for at < in.n {
		m := p.window(f)
		if m <= 0 {
			return
		}
		if len(f.direct) > 0 {
			n := min(m, in.n-at)
			if string(f.direct[:n]) != string(want[at:at+n]) {
				return
			}
			at += copy(area[at:], f.direct[:n])
			f.direct = f.direct[n:]
			continue
		}
		head := p.out[:m]
		head = head[:p.readScratch(head)]
		n := min(len(head), in.n-at)
		if n == 0 || string(head[:n]) != string(want[at:at+n]) {
			return
		}
		reach("pump.consume-rest")
		n, err := sysReadPipe(f.fd, area[at:at+n])
		if err != nil || n <= 0 {
			return
		}
		at += n
	}
}

func (p *pump) byInode(ino uint64) *fifo {
	for _, f := range p.fifos {
		if f.ino == ino {
			return f
		}
	}
	return nil
}

// ---- the log file

// logWriter is the log that is written: current, and the list of rotated files.
type logWriter struct {
	k        *kernel
	dir      string
	path     string // of current
	cpath    []byte // the same, ends in NUL
	maxSize  int64
	maxFiles int

	fd      int // -1 = closed
	dev     uint64
	ino     uint64
	size    int64
	torn    bool  // what is behind size could not be cut off
	last    int64 // newest stamp in current, ns
	listed  bool
	rotated []int64 // oldest first
	newest  int64   // newest name ever seen
	st      unix.Stat_t
}

func newLogWriter(cfg pumpConfig, k *kernel) logWriter {
	path := filepath.Join(cfg.LogDir, currentName)
	return logWriter{
		k: k, dir: cfg.LogDir, path: path, cpath: append([]byte(path), 0),
		maxSize: cfg.MaxSize, maxFiles: cfg.MaxFiles, fd: -1,
	}
}

func (l *logWriter) close() {
	if l.fd >= 0 {
		unix.Close(l.fd)
	}
	l.fd, l.ino = -1, 0
}

// ready makes sure that current is the file that is open, and knows its size. It costs one system call a batch, and
// sees that current was deleted, moved or replaced.
func (l *logWriter) ready() error {
	if l.fd < 0 || sysLstatText(&l.cpath[0], &l.st) != nil || l.st.Ino != l.ino || l.st.Dev != l.dev {
		return l.open()
	}
	if l.torn {
		reach("log.cut-again")
		if err := l.k.truncate(l.fd, l.size); err != nil {
			return err
		}
		l.torn = false
		return nil
	}
	l.size = l.st.Size
	return nil
}

// cut takes away what is behind the last whole record.
func (l *logWriter) cut(size int64) {
	l.size = size
	reach("log.cut")
	l.torn = l.k.truncate(l.fd, size) != nil
}

// open opens or makes current, which then ends at a record's end.
func (l *logWriter) open() error {
	if err := l.openFile(); err != nil {
		return err
	}
	return l.secure()
}

// secure makes sure that current is our own file and ends at a record's end.
func (l *logWriter) secure() error {
	if l.st.Nlink > 1 { // it has another name, perhaps that of a file of somebody else
		if err := l.moveCurrent(time.Now().UnixNano()); err != nil {
			return err
		}
		if err := l.openFile(); err != nil {
			return err
		}
	}
	return l.mend()
}

// openAt opens current for recovery: as it is. found = it is the file with that inode.
func (l *logWriter) openAt(ino uint64) (found bool, err error) {
	if err := l.openFile(); err != nil {
		return false, err
	}
	if l.ino == ino {
		return true, nil
	}
	return false, l.secure()
}

// openFile opens current and nothing but a regular file: never through a link, and what else stands there is put aside.
func (l *logWriter) openFile() error {
	l.close()
	l.torn = false
	var err error
	for range 8 {
		var fd int
		reach("log.create")
		fd, err = l.k.open(l.path, unix.O_RDWR|unix.O_APPEND|unix.O_CREAT|unix.O_NONBLOCK, 0o600)
		switch err {
		case nil:
			if err = sysFstat(fd, &l.st); err != nil {
				unix.Close(fd)
				return err
			}
			if l.st.Mode&unix.S_IFMT == unix.S_IFREG {
				l.fd, l.dev, l.ino, l.size = fd, l.st.Dev, l.st.Ino, l.st.Size
				return l.list()
			}
			unix.Close(fd)
			err = sysMoveAway(l.path)
		case unix.ENOENT:
			l.listed = false
			reach("log.directory")
			err = os.MkdirAll(l.dir, 0o700)
		case unix.ELOOP, unix.EISDIR, unix.ENXIO, unix.ENODEV:
			err = sysMoveAway(l.path)
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("cannot open %s: it is replaced again and again", l.path)
}

// list reads the directory once.
func (l *logWriter) list() error {
	if l.listed {
		return nil
	}
	list, err := listRotated(l.dir)
	if err != nil {
		return err
	}
	l.rotated, l.listed = list, true
	if len(list) > 0 {
		l.newest = max(l.newest, list[len(list)-1])
	}
	return nil
}

// mend cuts an unfinished record off the end of current: power was lost, or a third party wrote.
func (l *logWriter) mend() error {
	l.last = 0
	if l.size == 0 {
		return nil
	}
	tail := make([]byte, min(l.size, int64(2*maxRecordText+prefixBytes)))
	n, err := sysPread(l.fd, tail, l.size-int64(len(tail)))
	if err != nil {
		return err
	}
	tail = tail[:n]
	whole := wholeRecords(tail)
	if whole > 0 {
		line := tail[wholeRecords(tail[:whole-1]) : whole-1]
		if r, ok := parseRecord(line); ok {
			l.last = r.ns
		}
	}
	switch {
	case whole == len(tail):
		return nil
	case whole > 0 || int64(len(tail)) == l.size:
		reach("log.mend")
		if err := l.k.truncate(l.fd, l.size-int64(len(tail)-whole)); err != nil {
			return err
		}
		l.size -= int64(len(tail) - whole)
		return nil
	}
	reach("log.end-record")
	if _, err := l.k.write(l.fd, []byte{'\n'}); err != nil { // no record of ours is that long
		return err
	}
	l.size++
	return nil
}

// rotate gives current its name and begins a new one. Between the two steps there is no current, which is as good as
// an empty one.
func (l *logWriter) rotate(now int64) error {
	if err := l.moveCurrent(now); err != nil {
		return err
	}
	if err := l.open(); err != nil {
		return err
	}
	l.prune()
	return nil
}

// moveCurrent renames current. The name is never earlier than the newest there is, nor than a stamp in the file.
func (l *logWriter) moveCurrent(now int64) error {
	ns := max(now, l.newest+1, l.last)
	for range 1000 {
		reach("log.rotate")
		err := l.k.rename(l.path, filepath.Join(l.dir, rotatedName(ns)))
		switch err {
		case nil:
			l.rotated = append(l.rotated, ns)
			l.newest = ns
			return nil
		case unix.EEXIST:
			ns++
		case unix.ENOENT:
			return nil
		default:
			return err
		}
	}
	return unix.EEXIST
}

// prunePerRotation bounds the deletions at one time, so that a limit that was lowered by thousands stalls nothing.
const prunePerRotation = 16

func (l *logWriter) prune() {
	for range prunePerRotation {
		if len(l.rotated) <= l.maxFiles {
			return
		}
		reach("log.prune")
		err := sysUnlink(filepath.Join(l.dir, rotatedName(l.rotated[0])))
		if err != nil && err != unix.ENOENT {
			return
		}
		l.rotated = l.rotated[1:]
	}
}
