// Role: the daemon that the first process of a container keeps: what it starts, what it hears from there and says, the end of all in time.
// Runs in: daemon.
// Owns: the daemon's end of the connection to the first process.
// Uses: codec, wire, sys, unit, deps, supervise, state, daemon, api.

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const keeperFD = 3 // in a daemon that the first process has started

// stopShare is what each unit gets at least of a shutdown's time, as far as there is so much.
const stopShare = time.Second

// keeper is the first process, as its daemon sees it.
type keeper struct {
	bootOrder
	ref     pidRef // of the first process
	f       *os.File
	taken   chan struct{} // the packet that was handed on is taken
	units   []string      // that are started at first
	refused bool          // one of them cannot be started at all, or had not come up when all was stopped
	told    bool          // it knows how that went
	ending  bool          // a daemon before us was asked for the shutdown
	until   boottime      // when a shutdown has to be over; 0 = none was asked for
	killer  *asker        // `kill`, until the first process asks for the shutdown
	behind  map[*job]int  // of jobs.stopsBehind, in this round
}

// msgKeeper is a packet of the first process; msgKeeperGone its end.
type (
	msgKeeper     struct{ f keeperFrame }
	msgKeeperGone struct{}
)

// joinKeeper takes the connection to the first process.
func joinKeeper(fd int) (*keeper, error) {
	k := &keeper{ref: refOf(keeperPID()), taken: make(chan struct{})}
	if err := decode([]byte(os.Getenv(orderVariable)), &k.bootOrder); err != nil {
		return nil, fmt.Errorf("cannot read what the first process asks for: %w", err)
	}
	unix.CloseOnExec(fd)
	_ = unix.SetNonblock(fd, true)
	var err error
	k.f, err = pollable(fd, "keeper")
	return k, err
}

// look returns the first packet and leaves it where it is: only what was acted on is taken.
func (k *keeper) look(wait bool) (f keeperFrame, err error) {
	raw, err := k.f.SyscallConn()
	if err != nil {
		return f, err
	}
	var b [keeperFrameBytes]byte
	n := 0
	rerr := raw.Read(func(fd uintptr) bool {
		n, err = peekPacket(int(fd), b[:])
		return !wait || err != unix.EAGAIN
	})
	if err = errors.Join(rerr, err); err == nil && n == 0 {
		err = unix.EPIPE
	}
	if err == nil {
		f.parse(b[:n]) // a packet of another length says nothing
	}
	return f, err
}

func (k *keeper) take() {
	raw, err := k.f.SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) {
			reach("keeper.take")
			_ = dropDatagram(int(fd))
		})
	}
}

// say tells the first process, which reads at once.
func (k *keeper) say(f keeperFrame) {
	var b [keeperFrameBytes]byte
	f.put(&b)
	raw, err := k.f.SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) {
			reach("keeper.say")
			_ = unix.Sendto(int(fd), b[:], unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
		})
	}
}

// readKeeper hands on one packet after the other.
func (m *manager) readKeeper() {
	for {
		f, err := m.keeper.look(true)
		if err != nil {
			m.inbox <- msgKeeperGone{}
			return
		}
		m.inbox <- msgKeeper{f}
		<-m.keeper.taken
	}
}

// hearKeeper acts on what came before there was a loop.
func (m *manager) hearKeeper() {
	for {
		f, err := m.keeper.look(false)
		if err != nil {
			return
		}
		m.onKeeper(f)
	}
}

// onKeeper acts on a packet, then takes it.
func (m *manager) onKeeper(f keeperFrame) {
	switch f.Op {
	case keeperExit:
		m.onOrphan(f)
	case keeperStop:
		m.shutDown(f.Time)
	case keeperReload:
		m.readAgain()
	}
	m.keeper.take()
}

// onOrphan: the first process has reaped what may be the main or control process of a service whose shims have died.
func (m *manager) onOrphan(f keeperFrame) {
	same := func(ref pidRef) bool {
		return ref.PID == f.Ref.PID && (ref.Start == 0 || f.Ref.Start == 0 || ref.Start == f.Ref.Start) && (ref.Ino == 0 || f.Ref.Ino == 0 || ref.Ino == f.Ref.Ino)
	}
	if e := m.serviceOf(same); e != nil {
		m.handExit(e, same, exitOf(unix.WaitStatus(f.Status)))
	}
}

// ---- the start

// bootUnits are the units that a boot starts: those that the first process of a container names, else the enabled ones, else, in a
// container, all of the service directory.
func (m *manager) bootUnits() (names []string) {
	k := m.keeper
	if k != nil && len(k.Start) > 0 {
		return m.loadNamed(k.Start, k.ServiceDir)
	}
	units, err := m.home.enabledUnits()
	if err != nil {
		m.say("cannot read %s: %v", m.home.enabledDir(), err)
	}
	for name, path := range units {
		m.loadClosure([]string{name}, filepath.Dir(path))
		names = append(names, name)
	}
	if k != nil && len(names) == 0 && !k.Command {
		all, err := findUnits(k.ServiceDir)
		if err != nil {
			m.say("%v", err)
			k.refused = true
		}
		return m.loadNamed(all, k.ServiceDir)
	}
	slices.Sort(names)
	return names
}

// loadNamed loads units, says which cannot be used, and returns the others.
func (m *manager) loadNamed(names []string, dir string) (good []string) {
	m.loadClosure(names, dir)
	for _, name := range names {
		if refused := m.usable(name, request{Verb: verbStart, ServiceDir: dir}); refused != nil {
			m.say("%s", refused.text)
			m.keeper.refused = true
			continue
		}
		good = append(good, name)
	}
	return good
}

// startBoot starts what a boot starts.
func (m *manager) startBoot(names []string) {
	if len(names) == 0 {
		return
	}
	by := byEnabled
	if m.keeper != nil {
		by = byBoot
	}
	m.stale = true
	for _, a := range m.submit(demand{Kind: startJob, Names: names, By: by}).Answers {
		if a.Err != nil {
			m.say("%v", a.Err)
			if m.keeper != nil {
				m.keeper.refused = true
			}
		}
	}
}

// tellKeeper lets the first process know how the start went, once it is through, and when nothing is left to be done.
func (m *manager) tellKeeper() {
	k := m.keeper
	if k == nil || k.until != 0 || len(m.adopting) > 0 || m.boots() {
		return
	}
	if !k.told {
		for _, name := range k.units {
			if m.jobs.job(name) != nil {
				return
			}
		}
		k.told = true
		op := keeperUp
		if m.startFailed(m.say) {
			op = keeperFailed
		}
		k.say(keeperFrame{Op: op})
	}
	if failed := m.startFailed(nil); (k.WhenIdle || failed) && !k.Command && m.isIdle() {
		code := exitOK
		if failed || m.anyFailed() {
			code = exitFailed
		}
		m.endContainer(code)
	}
}

// startFailed: one of the units that are started at first did not come up, nor has it since. say is told which and why; nil = nobody is.
func (m *manager) startFailed(say func(format string, args ...any)) bool {
	bad := m.keeper.refused
	for _, name := range m.keeper.units {
		r := &m.entry(name).record
		if r.Job.Verb == verbStart && (r.Job.Outcome == outcomeFailed || r.Job.Outcome == outcomeDependency) && !isUp(r.Sub) {
			bad = true
			if say != nil {
				say("%q did not start: %s", name, r.Job.Text)
			}
		}
	}
	return bad
}

func (m *manager) anyFailed() bool {
	for _, e := range m.services {
		if e.record.Sub == failed {
			return true
		}
	}
	return false
}

// isIdle: nothing runs, and nothing is going to by itself.
func (m *manager) isIdle() bool {
	if len(m.jobs.byUnit) > 0 || m.killer != nil {
		return false
	}
	for _, e := range m.services {
		if !e.orderly() {
			return false
		}
	}
	return true
}

// ---- the end

// endContainer asks the first process to end the container with an exit code: it asks us for the shutdown then, and goes on with that
// whatever becomes of us.
func (m *manager) endContainer(code int) {
	m.keeper.say(keeperFrame{Op: keeperEnd, Status: uint32(code)})
}

// shutDown stops all until then; asked again, sooner.
func (m *manager) shutDown(until boottime) {
	k := m.keeper
	if k.until != 0 && until >= k.until {
		return
	}
	k.until = until
	switch {
	case m.killer != nil:
		m.hurryStops()
	case len(m.adopting) == 0:
		m.beginShutdown()
	}
}

// ends tells whether the container ends, so that nothing is resumed: only some of the wishes of a shutdown may have been recorded. The first
// process has asked us for the shutdown, or asked a daemon before us and is about to ask us.
func (m *manager) ends() bool {
	k := m.keeper
	if k.until == 0 && !k.ending {
		return false
	}
	k.units = m.bootUnits()
	if k.until != 0 && m.killer == nil {
		m.beginShutdown()
	}
	return true
}

// beginShutdown runs once all shims have told their state.
func (m *manager) beginShutdown() {
	a := m.keeper.killer
	if a == nil {
		a = &asker{verb: verbStop}
	}
	m.keeper.refused = m.startFailed(nil) // the stops take the place of what tells that
	m.stopAll(a, byBoot, "")
}

// hurryStops gives the stops under way the time that is left now.
func (m *manager) hurryStops() {
	for _, j := range m.jobs.list() {
		e := m.entry(j.Unit)
		if e.order == nil || e.order.verb != stopJob {
			continue
		}
		w := e.want
		if w.Until = m.stopUntil(j); w.Until == e.want.Until {
			continue
		}
		if err := m.writeWant(e, w); err != nil {
			m.say("%v", err)
		} else if e.link != nil {
			m.poke(e, e.wantFrame())
		}
	}
}

// stopUntil is when the stop of a job has to be over, in a shutdown; 0 = no bound.
func (m *manager) stopUntil(j *job) boottime {
	if m.keeper == nil || m.keeper.until == 0 {
		return 0
	}
	if m.keeper.behind == nil {
		m.keeper.behind = m.jobs.stopsBehind()
	}
	return stopUntil(bootNow(), m.keeper.until, m.keeper.behind[j])
}

// stopUntil leaves a share of the time to each of the stops that have to follow, one after the other; where there is not enough, to the last
// one, and the rest in equal parts.
func stopUntil(now, end boottime, behind int) boottime {
	if behind == 0 || now >= end {
		return end
	}
	if by := end - boottime(behind)*boottime(stopShare); by >= now+boottime(stopShare) {
		return by
	}
	return now + max(end-boottime(stopShare)-now, 0)/boottime(behind)
}
