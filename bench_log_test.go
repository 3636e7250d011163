// Role: benchmarks of the pump and of reading.
// Runs in: tests.
// Owns: nothing.
// Uses: log, pump, sys_log_linux.

package main

import (
	"bytes"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func benchmarkPump(b *testing.B, chunk []byte) {
	bed := newPumpBed(b)
	p := bed.start()
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		for rest := chunk; len(rest) > 0; {
			n, err := unix.Write(bed.out, rest)
			if err != nil {
				b.Fatal(err)
			}
			rest = rest[n:]
		}
	}
	bed.drain(p)
	bed.stop(p)
}

var benchLine = strings.Repeat("x", 99) + "\n"

func BenchmarkPump64KiBWrites(b *testing.B) {
	benchmarkPump(b, []byte(strings.Repeat(benchLine, 656))[:64<<10])
}

func BenchmarkPumpOneLinePerWrite(b *testing.B) { benchmarkPump(b, []byte(benchLine)) }

func BenchmarkPumpEmptyLines(b *testing.B) { benchmarkPump(b, bytes.Repeat([]byte("\n"), 64<<10)) }

// BenchmarkPumpOneLineAtRest is the price of one line for a service that prints now and then.
func BenchmarkPumpOneLineAtRest(b *testing.B) {
	bed := newPumpBed(b)
	p := bed.start()
	for b.Loop() {
		writeAll(bed.out, benchLine)
		bed.drain(p)
	}
	bed.stop(p)
}

// BenchmarkPumpBursts: bursts that make the buffers large, with rests between that give them back.
func BenchmarkPumpBursts(b *testing.B) {
	bed := newPumpBed(b)
	p := bed.start()
	burst := strings.Repeat(benchLine, 650)
	b.SetBytes(int64(len(burst)))
	for b.Loop() {
		writeAll(bed.out, burst)
		bed.drain(p)
	}
	bed.stop(p)
}

func BenchmarkFrame(b *testing.B) {
	data := []byte(strings.Repeat(benchLine, 650))
	out := make([]byte, 0, outBytes)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		framing{stamp: 1, max: maxRecordText}.frame(out, data, outBytes)
	}
}

func BenchmarkComplement(b *testing.B) {
	src, dst := make([]byte, batchBytes), make([]byte, batchBytes)
	b.SetBytes(batchBytes)
	for b.Loop() {
		complement(dst, src)
	}
}

func BenchmarkReadLogs(b *testing.B) {
	dir := b.TempDir()
	text := sampleLog(100_000)
	writeFile(b, dir+"/current", text)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if err := readLogs([]logSource{{"x", dir}}, logQuery{Lines: -1}, func(string, logRecord) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadLastTen(b *testing.B) {
	dir := b.TempDir()
	writeFile(b, dir+"/current", sampleLog(100_000))
	for b.Loop() {
		if err := readLogs([]logSource{{"x", dir}}, logQuery{Lines: 10}, func(string, logRecord) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
