// Role: the history of a service: a ring of its last events that a crash, or a full disk, leaves readable.
// Runs in: shim, client; daemon for services that have no shim.
// Owns: run/NAME/history; it has one writer, the holder of the lock beside it.
// Uses: codec, wire, sys, state.

package main

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	historySlots     = 64  // the last 50 are shown; those beyond may be overwritten while somebody reads
	historySlotBytes = 256 // a divisor of the page, which the kernel copies whole; the file takes 16 KiB of root's tmpfs
	historyBytes     = historySlots * historySlotBytes
	historyShown     = 50
)

// everyEvent as the number of the last event: what the record would say is not known.
const everyEvent = math.MaxUint64

// historyFile is a history open for writing. One owner.
type historyFile struct {
	path string
	boot string
	fd   int // 0 = not open yet
}

// write writes events, the last of which has the number last. They count from when the record of the service carries that number: before, a
// successor of ours writes the same numbers again.
func (f *historyFile) write(last uint64, events []historyEvent) (err error) {
	if len(events) == 0 {
		return nil
	}
	if f.fd == 0 {
		fd, _, err := openSlots(f.path, historyBytes)
		if err != nil {
			return err
		}
		f.fd = fd
	}
	slot := make([]byte, historySlotBytes)
	for i := range events {
		seq := last - uint64(len(events)-1-i)
		encodeEvent(slot, f.boot, seq, events[i])
		reach("history.write")
		n, e := sysPwrite(f.fd, slot, int64(seq%historySlots)*historySlotBytes)
		if e == nil && n < len(slot) {
			e = io.ErrShortWrite
		}
		if e != nil {
			err = fmt.Errorf("cannot write history: %w", e)
		}
	}
	return err
}

func (f *historyFile) close() {
	if f.fd != 0 {
		unix.Close(f.fd)
	}
}

// encodeEvent fills one slot. Text that does not fit is cut.
func encodeEvent(slot []byte, boot string, seq uint64, e historyEvent) {
	body := encode(nil, &e)
	for over := len(body) - (len(slot) - slotHeader); over > 0; over = len(body) - (len(slot) - slotHeader) {
		longest := &e.Text
		if len(e.For) > len(e.Text) {
			longest = &e.For
		}
		if *longest == "" { // only the words of a record that somebody else wrote could be so long
			e = historyEvent{Time: e.Time, Kind: "unknown"}
		}
		*longest = cutTo(*longest, max(0, len(*longest)-max(1, over/6))) // an escape takes up to six bytes
		body = encode(body[:0], &e)
	}
	_ = encodeSlot(slot, seq, body) // it fits
	sealSlot(slot, boot)
}

// sealSlot binds the checksum of a slot to a boot, and takes it off again: a slot of another boot is unreadable.
func sealSlot(slot []byte, boot string) {
	sum := slot[slotHeader-4 : slotHeader]
	binary.LittleEndian.PutUint32(sum, binary.LittleEndian.Uint32(sum)^addSum(0, boot))
}

// decodeHistory returns the events of a file up to number last, oldest first. What cannot be read is left out.
func decodeHistory(file []byte, boot string, last uint64) (events []historyEvent) {
	for at := 0; at+historySlotBytes <= len(file); at += historySlotBytes {
		slot := slices.Clone(file[at : at+historySlotBytes])
		sealSlot(slot, boot)
		body, seq, ok := slotBody(slot)
		if !ok || seq > last || int(seq%historySlots) != at/historySlotBytes {
			continue
		}
		e := historyEvent{}
		if decode(body, &e) != nil {
			continue
		}
		e.Seq = seq
		events = append(events, e)
	}
	slices.SortFunc(events, func(a, b historyEvent) int { return cmp.Compare(a.Seq, b.Seq) })
	if n := len(events); n > 0 {
		newest := last
		if last == everyEvent {
			newest = events[n-1].Seq
		}
		events = slices.DeleteFunc(events, func(e historyEvent) bool { return newest-e.Seq >= historySlots }) // its slot could not be written since
	}
	return events
}

// readEvents reads the events of a service up to number last.
func readEvents(path, boot string, last uint64) ([]historyEvent, error) {
	fd, err := openRetry(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	room := make([]byte, historyBytes)
	n, err := sysPread(fd, room, 0)
	if err != nil {
		return nil, err
	}
	return decodeHistory(room[:n], boot, last), nil
}

// lastEvent is the number of the newest event in a history, for one whose record is lost.
func lastEvent(path, boot string) uint64 {
	events, err := readEvents(path, boot, everyEvent)
	if err != nil || len(events) == 0 {
		return 0
	}
	return events[len(events)-1].Seq
}
