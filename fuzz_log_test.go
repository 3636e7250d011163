// Role: fuzz targets of the log.
// Runs in: tests.
// Owns: nothing.
// Uses: log.

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// FuzzRecord: whatever stands in a log file, reading gives no panic, and the last N are the end of all.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(rec(1, "stdout", "P", "a")+rec(2, "stderr", "F", "b")+"oops\n"), uint8(1))
	f.Add([]byte(rec(1, "stderr", "F", string(gapText(lostCount{1, 2, 3, 4})))+"\n\n"), uint8(2))
	f.Fuzz(func(t *testing.T, text []byte, n uint8) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, currentName), text, 0o600); err != nil {
			t.Fatal(err)
		}
		count := func(lines int) (k int) {
			err := readLogs([]logSource{{"x", dir}}, logQuery{Lines: lines}, func(_ string, r logRecord) error {
				k++
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			return k
		}
		if all, last := count(-1), count(int(n)); last != min(all, int(n)) {
			t.Errorf("%d records, the last %d are %d", all, n, last)
		}
	})
}

// FuzzFrame: framing keeps every byte, and the same bytes in two steps make the same records.
func FuzzFrame(f *testing.F) {
	f.Add([]byte("a\nbb\n\nccc"), uint8(3), uint16(100), true)
	f.Fuzz(func(t *testing.T, data []byte, most uint8, limit uint16, end bool) {
		fr := framing{stamp: day0, max: max(1, int(most)), end: end}
		whole, taken := fr.frame(nil, data, 1<<30)
		if taken != len(data) {
			t.Fatalf("%d of %d bytes taken", taken, len(data))
		}
		var back []byte
		for line := range bytes.Lines(whole) {
			r, ok := parseRecord(bytes.TrimSuffix(line, []byte("\n")))
			if !ok || len(r.text) > fr.max {
				t.Fatalf("bad record %q", line)
			}
			if back = append(back, r.text...); !r.partial {
				back = append(back, '\n')
			}
		}
		want := data
		if end && len(data) > 0 && data[len(data)-1] != '\n' {
			want = append(bytes.Clone(data), '\n')
		}
		if !bytes.Equal(back, want) {
			t.Errorf("%q became %q", want, back)
		}
		first, n := fr.frame(nil, data, int(limit))
		rest, _ := fr.frame(nil, data[n:], 1<<30)
		if !bytes.Equal(append(first, rest...), whole) {
			t.Error("two steps make other records")
		}
	})
}

// FuzzIntent: no header makes a reader panic, and what passes survives being written.
func FuzzIntent(f *testing.F) {
	f.Add(make([]byte, pumpLostAt))
	f.Fuzz(func(t *testing.T, head []byte) {
		header := make([]byte, 4096)
		copy(header, head)
		in, err := getIntent(header)
		if err != nil {
			return
		}
		again := make([]byte, 4096)
		in.put(again)
		copy(again[pumpFlagsAt:pumpIntentAt], header[pumpFlagsAt:])
		if back, err := getIntent(again); err != nil || back != in {
			t.Errorf("%+v became %+v, %v", in, back, err)
		}
	})
}
