// Role: the shim becomes another program, with its PID and its children: when it may, what it brings to rest before, what it hands over.
// Runs in: shim.
// Owns: nothing beside what shim.go owns.
// Uses: wire, sys, state, supervise, succession, shim.

package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// renewal is what the shim does about a program that it is to become. A successor after a SIGKILL goes on from records and FIFOs; so does
// the new program, and in addition it inherits what only a process can have: lock, sockets, children. What this program knows alone must be
// at rest: a start under way, the end of a stop, a drain; a frame that is half read.
type renewal struct {
	program string // "" = none
	inode   uint64 // of its file, as the daemon runs it; 0 = not known
	step    renewalStep
	link    *conn // to the daemon: nothing more is to be read from it, or is
}

type renewalStep int

const (
	renewalWaits renewalStep = iota // for a moment in which nothing is under way
	renewalHalts                    // the pump comes to a halt, which a disk that hangs may hold up
	renewalHalted
	renewalQuiets // the reader of link has been told to end
	renewalQuiet  // it has
)

// renew goes on with the renewal, at the end of a round of the loop: the state is on disk.
func (s *shim) renew() {
	r := &s.renewal
	switch {
	case r.program == "":
	case !s.mayRenew():
		s.postponeRenewal()
	case r.step == renewalWaits && s.pump != nil:
		r.step = renewalHalts
		s.pump.halt()
	case r.step == renewalWaits, r.step == renewalHalted:
		r.step, r.link = renewalQuiets, s.daemon
		_ = r.link.f.SetReadDeadline(time.Unix(1, 0)) // cannot fail for a socket in the poller
	case r.step == renewalQuiet:
		s.become()
	}
}

// mayRenew: the records tell a successor all that there is to know.
func (s *shim) mayRenew() bool {
	switch s.svc.Sub {
	case stopping, stopSigterm, stopSigkill, stopPost, finalSigterm, finalSigkill: // a signal is not sent twice; it is over soon
		return false
	}
	settled := func(p *process) bool { return !p.pending && p.failed == nil && !p.gone }
	return s.daemon != nil && (s.renewal.link == nil || s.renewal.link == s.daemon) && !s.quitting &&
		settled(&s.main) && settled(&s.control) && s.svc.Spawning == "" && s.svc.next == nil && s.waiting == nil && s.owed == nil &&
		!s.retiring && s.undrained == 0 && (s.pump == nil || !s.pump.owes()) && s.outputStands()
}

// postponeRenewal goes back to where the renewal waits: something has begun while things were brought to rest. An answer that is on the
// way comes first, or it would be taken for that of the next try.
func (s *shim) postponeRenewal() {
	r := &s.renewal
	switch r.step {
	case renewalWaits, renewalHalts, renewalQuiets:
		return
	case renewalHalted, renewalQuiet:
		if s.pump != nil {
			s.pump.goOn()
		}
	}
	link := r.link
	r.step, r.link = renewalWaits, nil
	switch link {
	case nil:
	case s.daemon:
		_ = link.f.SetReadDeadline(time.Time{})
		go s.read(link)
	default: // another daemon has come meanwhile
		link.close()
	}
}

// linkEnded: nothing more comes from the daemon that we were to hear no more of. true: it has been told to the renewal.
func (s *shim) linkEnded(m msgClosed) bool {
	r := &s.renewal
	if m.from != r.link || r.step != renewalQuiets {
		return false
	}
	if errors.Is(m.err, os.ErrDeadlineExceeded) {
		r.step = renewalQuiet
		return true
	}
	r.step, r.link = renewalHalted, nil
	return false
}

// become becomes the other program. What cannot be is refused before anything is given up; should the exec itself fail, it becomes its own
// program anew, and that tells why.
func (s *shim) become() {
	x, err := s.succession()
	if err == nil && !s.own.end() {
		err = errors.New("a message cannot be written: the disk hangs, and would hold up the exec")
	}
	s.own = ownLog{files: s.own.files}
	if err != nil {
		s.postponeRenewal()
		s.renewal = renewal{}
		s.refuseRenewal(err.Error())
		return
	}
	err = x.carryOut()
	x.will.(*shimWill).Refused, x.program = err.Error(), selfExe()
	err = x.carryOut()
	s.warn("%v", err)
	s.own.end()
	os.Exit(exitFailed) // the daemon replaces us
}

func (s *shim) refuseRenewal(why string) {
	s.warn("it does not become another program: %s", why)
	if s.daemon == nil {
		return
	}
	reach("shim.refuse")
	if s.daemon.send(shimFrame{Op: opUpgrade, Error: why}) != nil {
		_ = unix.Shutdown(int(s.daemon.f.Fd()), unix.SHUT_RDWR) // its reader tells us that it is closed
	}
}

func (s *shim) succession() (x succession, err error) {
	st, err := trustedProgram(s.renewal.program)
	if err == nil && s.renewal.inode != 0 && st.Ino != s.renewal.inode {
		err = fmt.Errorf("cannot use program %s: it was replaced meanwhile", s.renewal.program)
	}
	if err != nil {
		return x, err
	}
	w := shimWill{Version: protocolVersion, Build: version, LockFD: s.lock, StateFD: s.state.fd, Adopted: s.adopted,
		DaemonFD: int(s.daemon.f.Fd()), Unread: hex.EncodeToString(s.daemon.buf), Received: s.daemon.fds}
	if s.listener != nil {
		w.ListenerFD = int(s.listener.Fd())
	}
	if s.main.fd >= 0 {
		w.MainFD = s.main.fd
	}
	if s.notify.fd >= 0 {
		w.NotifyFD = s.notify.fd
	}
	if s.pump != nil {
		if w.OutputFDs, err = s.pump.outputs(); err != nil {
			return x, err
		}
	}
	x = succession{program: s.renewal.program, argv: shimArguments(s.name), env: bare(os.Environ()), will: &w}
	for _, fd := range slices.Concat([]int{w.LockFD, w.StateFD, w.ListenerFD, w.DaemonFD, w.MainFD, w.NotifyFD}, w.Received, w.OutputFDs) {
		if fd > 0 {
			x.keep = append(x.keep, fd)
		}
	}
	return x, nil
}

// inherit takes what the program before this one has left. The daemon reads on where that stopped.
func (s *shim) inherit() handover {
	h := handover{held: map[string]int{}}
	for label, fd := range map[string]int{heldMain: s.will.MainFD, heldNotify: s.will.NotifyFD} {
		if fd != 0 {
			h.held[label] = fd
		}
	}
	f := inherited(s.will.DaemonFD, "daemon")
	if f == nil { // the daemon connects again
		s.lostDaemon()
		return h
	}
	s.daemon = newConn(f)
	s.daemon.buf, _ = hex.DecodeString(s.will.Unread)
	s.daemon.fds = s.will.Received
	go s.read(s.daemon)
	return h
}

// ownChild: the process that ref names is a child of ours, which it can be only after a renewal. As long as it is not reaped its PID is
// nobody else's.
func (s *shim) ownChild(ref pidRef) bool {
	if !isChild(ref.PID) {
		return false
	}
	st, err := readStat(ref.PID)
	return err != nil || ref.Start == 0 || st.start == ref.Start
}
