// Role: fuzz targets of the formats that cross processes, and of what /proc says.
// Runs in: go test.
// Owns: nothing.
// Uses: codec, wire, sys.

package main

import (
	"bytes"
	"os"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzSlots: no file makes a record of what was not written as one; a good slot survives any neighbour that is older or broken.
func FuzzSlots(f *testing.F) {
	good, _ := newSlot(5, encode(nil, &wantNew))
	f.Add([]byte("x"), uint16(0))
	f.Add(good, uint16(slotBytes))
	f.Add(good[:100], uint16(20))
	f.Fuzz(func(t *testing.T, noise []byte, at uint16) {
		file := make([]byte, 2*slotBytes)
		copy(file, noise)
		var got wantRecord
		_, err := decodeSlots(file, &got)
		if err != nil && got != (wantRecord{}) && !strings.Contains(err.Error(), "want ") {
			t.Errorf("%+v beside %v", got, err)
		}
		copy(file, good)
		copy(file[slotBytes:], noise)
		if n := int(at) % slotBytes; len(noise) > 0 {
			file[slotBytes+n] ^= noise[0]
		}
		got = wantRecord{}
		if seq, err := decodeSlots(file, &got); err != nil || seq == 5 && got != wantNew || seq < 5 {
			if _, _, other := slotBody(file[slotBytes:]); !other {
				t.Errorf("%d %+v, %v", seq, got, err)
			}
		}
	})
}

// FuzzStageOrder: no order makes the stage panic or take more memory than the order has; what is read is written the same.
func FuzzStageOrder(f *testing.F) {
	f.Add(encodeStageOrder(stageOrder{Path: "/x", Argv: []string{"x"}, Env: []string{"A=b"}, Dir: "/", UID: 1, GID: -1, Groups: []int{3}})[4:])
	f.Add([]byte("p\x002000000000\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := decodeStageOrder(bytes.Clone(b))
		if err != nil {
			return
		}
		again, err := decodeStageOrder(encodeStageOrder(o)[4:])
		if err != nil || !reflect.DeepEqual(again, o) {
			t.Errorf("%v\nfrom %+v\nto   %+v", err, o, again)
		}
	})
}

// FuzzNotify: no datagram makes a PID or a text that could not be.
func FuzzNotify(f *testing.F) {
	for _, text := range []string{"READY=1\nSTATUS=x\nMAINPID=7", "STATUS=\xff", "MAINPID=99999999999999999999", "\n=\n\x00"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := parseNotify(b)
		if m.MainPID < 0 || !utf8.ValidString(m.Status) || strings.Contains(m.Status, "\n") || m.Ready && !bytes.Contains(b, []byte("READY=1")) {
			t.Errorf("%q: %+v", b, m)
		}
	})
}

// FuzzControlFrame: whatever comes over a socket in whatever pieces, the reader takes line by line, ends, and panics at nothing.
func FuzzControlFrame(f *testing.F) {
	f.Add([]byte(`{"op":"hello","proto":1}`+"\n"+`{"op":"exit","exit":{"ref":{"pid":1},"exit":{}}}`+"\n"), uint8(3))
	f.Add([]byte("\n\n{}\n[1]\nnull\n\"\\ud800\"\n{\"state\":{\"starts\":[1,2]}}\n{"), uint8(1))
	f.Add([]byte(`{"verb":"start","names":["a","b"],"no_block":true}`+"\nx"), uint8(200))
	f.Fuzz(func(t *testing.T, b []byte, piece uint8) {
		if len(b) > 1<<14 {
			return
		}
		lines := bytes.Count(b, []byte("\n"))
		ours, theirs := testPair(t)
		go func() {
			defer theirs.Close()
			for len(b) > 0 {
				n := min(len(b), int(piece)+1)
				if _, err := theirs.Write(b[:n]); err != nil {
					return
				}
				b = b[n:]
			}
		}()
		c := newConn(ours)
		defer c.close()
		for n := 0; ; n++ {
			if n > lines {
				t.Fatalf("more frames than the %d lines", lines)
			}
			line, err := c.readLine()
			if err != nil {
				if n != lines {
					t.Fatalf("%d of %d lines, then %v", n, lines, err)
				}
				return
			}
			readBoth(line)
		}
	})
}

// readBoth reads a line as either side of both control protocols would.
func readBoth(line []byte) {
	whole := append(bytes.Clone(line), '\n')
	_ = (&conn{buf: whole}).readFrame(new(shimFrame))
	for _, v := range []any{new(request), new(reply)} {
		_ = (&conn{buf: whole}).readJSON(v)
	}
}

// FuzzStat: no process name confuses the reader of /proc/PID/stat.
func FuzzStat(f *testing.F) {
	own, _ := os.ReadFile("/proc/self/stat")
	f.Add(own)
	f.Add([]byte("1 (a) b) (c) S 0 1 1 0 -1 4194560 1 1 1 1 1 1 1 1 20 0 1 0 9 1 1 1"))
	f.Add([]byte(") ("))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseStat(b)
		if err == nil && (s.state == 0 || !bytes.Contains(b, []byte("("+s.comm+")"))) {
			t.Errorf("%q: %+v", b, s)
		}
	})
}

// FuzzMountinfo: what is found as the mount of cgroup v2 stands in the text.
func FuzzMountinfo(f *testing.F) {
	own, _ := os.ReadFile("/proc/self/mountinfo")
	f.Add(own)
	f.Add([]byte("30 23 0:26 /a\\040b /sys/fs\\134cgroup rw - cgroup2 cgroup2 rw\n"))
	f.Add([]byte("x - cgroup2 y\n1 2 3 4\\04 \\ - cgroup2 z"))
	f.Fuzz(func(t *testing.T, b []byte) {
		mount, root := cgroupMount(b)
		if mount == "" && root != "" || mount != "" && !bytes.Contains(b, []byte(" - cgroup2 ")) {
			t.Errorf("%q: %q %q", b, mount, root)
		}
		if !strings.Contains(mount, `\`) && mount != "" && !bytes.Contains(b, []byte(`\`)) && !bytes.Contains(b, []byte(mount)) {
			t.Errorf("%q: %q", b, mount)
		}
	})
}
