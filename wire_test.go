// Role: tests of the slots of wire.go.
// Runs in: go test.
// Owns: nothing.
// Uses: codec, wire.

package main

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"strings"
	"testing"
)

// slotsOf is a record file whose slots hold these two wishes; "" = blank.
func slotsOf(t *testing.T, first, second string) []byte {
	t.Helper()
	file := make([]byte, 2*slotBytes)
	for i, job := range []string{first, second} {
		slot := file[i*slotBytes:][:slotBytes]
		if err := encodeSlot(slot, uint64(i+1), encode(nil, &wantRecord{Job: job})); job != "" && err != nil {
			t.Fatal(err)
		}
		if job == "" {
			clear(slot)
		}
	}
	return file
}

func TestSlots(t *testing.T) {
	for _, row := range []struct {
		why    string
		file   []byte
		damage int // offset of a byte that changes; -1 = none
		want   string
		err    error
	}{
		{"the newer slot counts", slotsOf(t, "a", "b"), -1, "b", nil},
		{"one slot is enough", slotsOf(t, "a", ""), -1, "a", nil},
		{"a damaged body leaves the older slot", slotsOf(t, "a", "b"), slotBytes + slotHeader + 3, "a", nil},
		{"a damaged sequence number, too", slotsOf(t, "a", "b"), slotBytes + 4, "a", nil},
		{"a length beyond the slot, too", slotsOf(t, "a", "b"), slotBytes + 14, "a", nil},
		{"an unknown layout, too", slotsOf(t, "a", "b"), slotBytes + 3, "a", nil},
		{"what lies behind the body does not matter", slotsOf(t, "a", "b"), 2*slotBytes - 1, "b", nil},
		{"both damaged", slotsOf(t, "a", ""), slotHeader, "", errNoRecord},
		{"never written", slotsOf(t, "", ""), -1, "", errNeverWritten},
		{"cut short", slotsOf(t, "a", "b")[:100], -1, "", errNoRecord},
	} {
		if row.damage >= 0 {
			row.file[row.damage] ^= 0x55
		}
		var w wantRecord
		if err := decodeSlots(row.file, &w); !errors.Is(err, row.err) || w.Job != row.want {
			t.Errorf("%s: got %q, %v", row.why, w.Job, err)
		}
	}
}

// TestSlotLayout: the layout is that of all versions of this protocol.
func TestSlotLayout(t *testing.T) {
	slot := []byte(strings.Repeat("x", slotBytes)) // used before
	if err := encodeSlot(slot, 7, []byte(`{"v":1}`)); err != nil {
		t.Fatal(err)
	}
	sum := crc32.ChecksumIEEE([]byte("DKS\x01\x07\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00" + `{"v":1}`))
	want := "DKS\x01\x07\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00" + string(binary.LittleEndian.AppendUint32(nil, sum)) + `{"v":1}`
	if string(slot) != want+strings.Repeat("\x00", slotBytes-len(want)) {
		t.Errorf("got %q", slot[:64])
	}
	if encodeSlot(slot, 8, make([]byte, slotBytes-slotHeader)) != nil || encodeSlot(slot, 8, make([]byte, slotBytes-slotHeader+1)) == nil {
		t.Error("a body may fill the slot, and no more")
	}
}
