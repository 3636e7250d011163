// Role: tests of the daemon's decisions that need no daemon.
// Runs in: go test.
// Owns: nothing.
// Uses: sys, supervise, state, daemon, script.

package main

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// nextMessage waits for what comes to the loop.
func nextMessage[T any](t *testing.T, m *manager) T {
	t.Helper()
	select {
	case got := <-m.inbox:
		msg, ok := got.(T)
		if !ok {
			t.Fatalf("%T came, want %T", got, msg)
		}
		return msg
	case <-time.After(testPatience):
		t.Fatal("nothing came to the loop")
	}
	panic("unreachable")
}

// A shim that cannot be reached is looked for after a pause. When its connection breaks before its hello, it is replaced: the pause is over.
func TestShimLostBeforeItsHello(t *testing.T) {
	m := &manager{home: home{t.TempDir()}, inbox: make(chan any, 8), services: map[string]*supervised{}, bereaved: map[*supervised]bool{}}
	e := m.entry("web")
	e.record.Sub = running
	if err := os.Mkdir(m.home.runRoot(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := m.home.makeRunDir("web"); err != nil {
		t.Fatal(err)
	}
	lock, err := lockDirectory(m.home.runDir("web"))
	if err != nil {
		t.Fatal(err)
	}
	m.reachLater(e)
	retry := nextMessage[msgRetry](t, m)
	l, err := listenAt(m.home.runDir("web"), shimSocketName)
	if err != nil {
		t.Fatal(err)
	}
	m.handle(retry)
	if e.link == nil {
		t.Fatal("the shim has a socket and is not reached")
	}
	l.Close()
	unix.Close(lock)
	m.handle(nextMessage[msgShimGone](t, m))
	if len(m.pending) != 1 || m.pending[0] != e {
		t.Errorf("%d shims are about to be started, want a successor of this one", len(m.pending))
	}
}
