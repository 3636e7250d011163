// Role: all benchmarks.
// Runs in: go test -bench.
// Owns: nothing.
// Uses: client, codec, deps, log, pump, state, supervise, sys, sys_log, unit, wire; client_test, pump_test.

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ---- planning

// benchUnits makes n units: ten layers, each unit requires two of the layer below and wants a third.
func benchUnits(n int) map[string]*unit {
	units := make(map[string]*unit, n)
	width := n / 10
	name := func(i int) string { return fmt.Sprintf("unit-%05d", i) }
	for i := range n {
		u := &unit{Name: name(i)}
		if below := i - width; below >= 0 {
			first := below / width * width
			u.Requires = []string{name(below), name(first + (below+1)%width)}
			u.Wants = []string{name(first + (below+7)%width)}
		}
		units[u.Name] = u
	}
	return units
}

// BenchmarkTransaction plans, installs and carries out 10,000 units: as names of one command, and pulled in by one.
func BenchmarkTransaction(b *testing.B) {
	units := benchUnits(10000)
	all := &unit{Name: "all"}
	var names []string
	for name := range units {
		names = append(names, name)
	}
	all.Requires = names
	units["all"] = all
	down := func(string) bool { return true }
	up := func(string) bool { return false }
	id := func(string) string { return "x" }
	g := newGraph(units, nil)
	for _, tt := range []struct {
		name  string
		names []string
	}{{"anchors", names}, {"pulled", []string{"all"}}} {
		b.Run(tt.name, func(b *testing.B) {
			for b.Loop() {
				q := newJobs(up, down)
				q.use(g)
				q.submit(demand{Kind: startJob, Names: tt.names, By: byUser, NewID: id})
			}
		})
	}
	b.Run("carryout", func(b *testing.B) {
		for b.Loop() {
			q := newJobs(up, down)
			q.use(g)
			q.submit(demand{Kind: startJob, Names: names, By: byUser, NewID: id})
			for orders := q.dispatch(); len(orders) > 0; orders = q.dispatch() {
				for _, o := range orders {
					q.finished(o.Job.Unit, o.Job.ID, o.Verb, jobDone, "")
				}
			}
		}
	})
	for _, n := range []int{1000, 10000} {
		units := benchUnits(n)
		b.Run(fmt.Sprintf("graph/%d", n), func(b *testing.B) {
			for b.Loop() {
				newGraph(units, nil)
			}
		})
	}
}

// BenchmarkChain installs 1,000 names of one chain with one command, each name a transaction.
func BenchmarkChain(b *testing.B) {
	units := map[string]*unit{}
	var names []string
	for i := range 1000 {
		name := fmt.Sprintf("u%04d", i)
		u := &unit{Name: name}
		if i > 0 {
			u.After = []string{fmt.Sprintf("u%04d", i-1)}
		}
		units[name], names = u, append(names, name)
	}
	g := newGraph(units, nil)
	for b.Loop() {
		q := newJobs(func(string) bool { return false }, func(string) bool { return true })
		q.use(g)
		q.submit(demand{Kind: startJob, Names: names, By: byUser, NewID: func(string) string { return "x" }})
	}
}

// ---- the pump, and reading logs

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

func BenchmarkLogFraming(b *testing.B) {
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

// ---- the state machine, frames, records

// BenchmarkStep is one start and stop of a simple service: six events.
func BenchmarkStep(b *testing.B) {
	u, err := parseUnit("bench.service", []byte("[service]\nExecStart = \"main\"\n"), place{})
	if err != nil {
		b.Fatal(err)
	}
	round := []event{evJob{id: "1", verb: verbStart, unit: u}, evSpawned{roleMain}, evJob{id: "2", verb: verbStop}, evExit{role: roleMain, exit: exitStatus{exitKilled, 15}}, evTree{}, evDrained{}}
	now := instant{boot: boottime(time.Hour), wall: 1e18, fresh: "0123456789abcdef0123456789abcdef"}
	s := newService(u, runRecord{})
	for b.Loop() {
		for _, ev := range round {
			now.boot++
			s.step(now, ev)
			if ev, ok := ev.(evJob); ok && ev.verb == verbStart {
				s.Main = pidRef{PID: 100, Start: 7} // what the shim records before the stage runs on
			}
		}
		if s.Sub != dead || s.Job.Outcome == "" {
			b.Fatalf("ended %s with job %+v, want dead and an answer", s.Sub, s.Job)
		}
	}
}

// benchRecord is a record as a running service has it.
func benchRecord() runRecord {
	return runRecord{Version: protocolVersion, Boot: "7d1d9d36-6f1c-4b0e-b54a-3f7ad5ec6d15", PIDNS: 4026531836, Sub: "running", Result: "success",
		Since: 1e18, Started: 1e18, RunBegan: 1e13, Invocation: "0123456789abcdef0123456789abcdef", Main: pidRef{PID: 12345, Start: 987654, Ino: 4321},
		Job: jobRecord{ID: "0123456789abcdef", Verb: "start", Outcome: "done"}, ShimPID: 12344}
}

// BenchmarkFrameRoundTrip sends a shim's state frame over a socket and reads it, in one goroutine.
func BenchmarkFrameRoundTrip(b *testing.B) {
	left, right, err := socketPair()
	if err != nil {
		b.Fatal(err)
	}
	from, to := newConn(os.NewFile(uintptr(left), "left")), newConn(os.NewFile(uintptr(right), "right"))
	defer from.close()
	defer to.close()
	record := benchRecord()
	for b.Loop() {
		var f shimFrame
		if err := from.send(shimFrame{Op: opState, State: &record}); err != nil {
			b.Fatal(err)
		}
		if err := to.readFrame(&f); err != nil || f.State.Main != record.Main {
			b.Fatalf("got %+v, %v", f, err)
		}
	}
}

// BenchmarkSlotWrite is one write of `state` or `want` in place.
func BenchmarkSlotWrite(b *testing.B) {
	r, err := openRecord(filepath.Join(b.TempDir(), "state"))
	if err != nil {
		b.Fatal(err)
	}
	defer r.close()
	record := benchRecord()
	for b.Loop() {
		if err := r.write(encode(nil, &record)); err != nil {
			b.Fatal(err)
		}
	}
}

// ---- what people see

// BenchmarkListThousand is what `list` of 1,000 units costs daemon and client, less the connection.
func BenchmarkListThousand(b *testing.B) {
	var units []unitStatus
	for i := range 1000 {
		s := testUnits()[0]
		s.Name = fmt.Sprintf("service-%04d", i)
		s.UnitFile, s.InvocationID, s.StartedAt = "/srv/services/"+s.Name+".service", "0123456789abcdef0123456789abcdef", s.StateSince
		units = append(units, s)
	}
	var wire bytes.Buffer
	encode := func() {
		wire.Reset()
		for i := range units {
			line, err := json.Marshal(reply{Unit: &units[i]})
			if err != nil {
				b.Fatal(err)
			}
			wire.Write(append(line, '\n'))
		}
	}
	encode()
	b.Run("encode", func(b *testing.B) {
		b.SetBytes(int64(wire.Len()))
		for b.Loop() {
			encode()
		}
	})
	b.Run("show", func(b *testing.B) {
		b.SetBytes(int64(wire.Len()))
		for b.Loop() {
			showList(b, wire.Bytes())
		}
	})
}

// showList reads the daemon's lines and lays out the table.
func showList(b *testing.B, wire []byte) {
	r := bufio.NewReaderSize(bytes.NewReader(wire), 64<<10)
	var units []unitStatus
	for {
		var p reply
		if err := readReply(r, &p); err != nil {
			if !errors.Is(err, errLost) {
				b.Fatal(err)
			}
			break
		}
		units = append(units, *p.Unit)
	}
	v, _ := testView(0)
	v.listScreen(units)
	v.w.Flush()
}

// ---- the binary

// shippedBinary builds the program as it is shipped: the test binary is larger and starts slower.
func shippedBinary(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp("", "diakonos-bench-") // shorter than b.TempDir: sockets lie in it
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	binary := filepath.Join(dir, "diakonos")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	return binary
}

// BenchmarkBinaryStart is one process that prints the version; MB is the size of the binary.
func BenchmarkBinaryStart(b *testing.B) {
	binary := shippedBinary(b)
	st, err := os.Stat(binary)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := exec.Command(binary, "--version").Run(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(st.Size())/1e6, "MB")
}

// BenchmarkInit is a first process that runs `true`, and what one that waits has of its own; floor is `true` without one, tini and dumb-init are
// Debian's.
func BenchmarkInit(b *testing.B) {
	ours := filepath.Join(filepath.Dir(shippedBinary(b)), initName)
	if err := os.Symlink("diakonos", ours); err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct{ name, command string }{
		{"floor", "true"}, {"ours", ours + " -s true"}, {"tini", "/usr/bin/tini -s true"}, {"dumb-init", "/usr/bin/dumb-init true"},
	} {
		b.Run(c.name, func(b *testing.B) {
			words := strings.Fields(c.command)
			if _, err := exec.LookPath(words[0]); err != nil {
				b.Skip(err)
			}
			for b.Loop() {
				if err := exec.Command(words[0], words[1:]...).Run(); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			if c.name == "floor" {
				return
			}
			words[len(words)-1] = "sleep"
			waits := exec.Command(words[0], append(words[1:], "1000")...)
			waits.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			if err := waits.Start(); err != nil {
				b.Fatal(err)
			}
			if !eventually(testPatience, func() bool { pids, _ := children(waits.Process.Pid); return len(pids) == 1 }) {
				b.Fatal("it starts nothing")
			}
			kB := memoryKB(b, waits.Process.Pid, "Anonymous:")
			_ = waits.Process.Signal(syscall.SIGTERM)
			_ = waits.Wait()
			b.ReportMetric(float64(kB), "anonymous-kB")
		})
	}
}

// benchHome runs the shipped binary in a home of its own, with services s0, s1, … that do nothing.
type benchHome struct {
	b     *testing.B
	dir   string
	names []string
}

// newBenchHome makes n services; more is added to their [unit] section, with %d for the number of the one before.
func newBenchHome(b *testing.B, n int, more string) *benchHome {
	b.Helper()
	h := &benchHome{b: b, dir: filepath.Dir(shippedBinary(b))}
	if err := os.Mkdir(filepath.Join(h.dir, "services"), 0o755); err != nil {
		b.Fatal(err)
	}
	for i := range n {
		unit := ""
		if more != "" && i > 0 {
			unit = "[unit]\n" + fmt.Sprintf(more, i-1) + "\n"
		}
		h.names = append(h.names, fmt.Sprintf("s%d", i))
		writeFile(b, filepath.Join(h.dir, "services", h.names[i]+".service"), unit+"[service]\nExecStart = \"sleep 3600\"\n")
	}
	b.Cleanup(func() { h.diakonos("kill") })
	return h
}

// diakonos runs one command, which must succeed, and returns how long it took.
func (h *benchHome) diakonos(args ...string) time.Duration {
	h.b.Helper()
	cmd := exec.Command(filepath.Join(h.dir, "diakonos"), args...)
	cmd.Dir, cmd.Env = h.dir, append(os.Environ(), "DIAKONOS_HOME="+filepath.Join(h.dir, "h"))
	began := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		h.b.Fatalf("diakonos %v: %v\n%s", args, err, out)
	}
	return time.Since(began)
}

// bareStarts is what the processes of n starts cost alone: each service, its shim and its stage is one exec, as many at once as there are processors.
func (h *benchHome) bareStarts(n int) time.Duration {
	h.b.Helper()
	began := time.Now()
	todo := make(chan *exec.Cmd)
	var workers sync.WaitGroup
	for range runtime.NumCPU() {
		workers.Go(func() {
			for cmd := range todo {
				if err := cmd.Run(); err != nil {
					h.b.Error(err)
				}
			}
		})
	}
	for range n {
		todo <- exec.Command(filepath.Join(h.dir, "diakonos"), "--version")
		todo <- exec.Command(filepath.Join(h.dir, "diakonos"), "--version")
		todo <- exec.Command("sleep", "0")
	}
	close(todo)
	workers.Wait()
	return time.Since(began)
}

// BenchmarkTwoHundred is a day of 200 services, by one command each: started with the daemon up, listed, stopped. x-bare is the start as a
// multiple of what its processes cost alone.
func BenchmarkTwoHundred(b *testing.B) {
	h := newBenchHome(b, 200, "")
	h.diakonos("list") // the daemon is up
	var start, list, stop, bare time.Duration
	for b.Loop() {
		bare += h.bareStarts(len(h.names))
		start += h.diakonos(append([]string{"start"}, h.names...)...)
		list += h.diakonos("list")
		stop += h.diakonos(append([]string{"stop"}, h.names...)...)
	}
	each := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 / float64(b.N) }
	b.ReportMetric(each(start), "ms/start")
	b.ReportMetric(float64(start)/float64(bare), "x-bare")
	b.ReportMetric(each(list), "ms/list")
	b.ReportMetric(each(stop), "ms/stop")
}

// BenchmarkServiceChain starts 50 services of which each requires the one before.
func BenchmarkServiceChain(b *testing.B) {
	h := newBenchHome(b, 50, "Requires = [\"s%d\"]")
	h.diakonos("list")
	var start time.Duration
	for b.Loop() {
		start += h.diakonos("start", h.names[len(h.names)-1])
		h.diakonos(append([]string{"stop"}, h.names...)...)
	}
	b.ReportMetric(float64(start.Microseconds())/1000/float64(b.N*len(h.names)), "ms/step")
}

// BenchmarkShimMemory starts ten services that do nothing; kB/shim is the private memory of a shim, its log writer included.
func BenchmarkShimMemory(b *testing.B) {
	h := newBenchHome(b, 10, "")
	var kilobytes int
	for b.Loop() {
		h.diakonos(append([]string{"start"}, h.names...)...)
		for _, name := range h.names {
			kilobytes += privateMemory(b, filepath.Join(h.dir, "h/run", name, "shim.pid"))
		}
		h.diakonos("kill")
	}
	b.ReportMetric(float64(kilobytes)/float64(len(h.names)*b.N), "kB/shim")
}

// privateMemory is that of the process that a PID file names.
func privateMemory(b *testing.B, pidFile string) (kilobytes int) {
	b.Helper()
	text, err := os.ReadFile(pidFile)
	if err != nil {
		b.Fatal(err)
	}
	return memoryKB(b, parsePIDFile(text), "Private_")
}

// memoryKB adds up the fields of smaps_rollup (proc_pid_smaps_rollup(5)) that begin so.
func memoryKB(b *testing.B, pid int, field string) (kilobytes int) {
	b.Helper()
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(rollup)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[0], field) {
			n, _ := strconv.Atoi(f[1])
			kilobytes += n
		}
	}
	return kilobytes
}

// BenchmarkContainer: the first process of a PID namespace with services: from its exec to the first instruction of the first service, what it and its
// daemon keep in private memory, and from SIGTERM to its end with fifty services. Beside it, as far as they are installed, what only starts
// one command (tini, dumb-init) and what supervises (s6-svscan, runsvdir) with the same service.
func BenchmarkContainer(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("only root can make a PID namespace")
	}
	program := shippedBinary(b)
	dir := b.TempDir()
	stamper := filepath.Join(dir, "stamper")
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", stamper, "./testdata/static")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	ours := filepath.Join(dir, initName)
	if err := os.Link(program, ours); err != nil {
		if err := copyFile(program, ours); err != nil {
			b.Fatal(err)
		}
	}
	services := filepath.Join(dir, "services")
	must := func(err error) {
		if err != nil {
			b.Helper()
			b.Fatal(err)
		}
	}
	write := func(path, text string, mode os.FileMode) {
		must(os.MkdirAll(filepath.Dir(path), 0o755))
		must(os.WriteFile(path, []byte(text), mode))
	}
	for i := range 50 {
		write(fmt.Sprintf("%s/s%d.service", services, i), "[service]\nExecStart = \""+stamper+"\"\n", 0o644)
	}
	write(dir+"/s6/one/run", "#!/bin/sh\nexec "+stamper+"\n", 0o755)
	write(dir+"/runit/one/run", "#!/bin/sh\nexec "+stamper+"\n", 0o755)
	for _, c := range []struct{ name, command string }{
		{"ours", ours + " --start s0 --service-dir " + services}, {"ours-command", ours + " -- " + stamper}, {"tini", "/usr/bin/tini-static " + stamper},
		{"dumb-init", "/usr/bin/dumb-init " + stamper}, {"s6-svscan", "s6-svscan " + dir + "/s6"}, {"runsvdir", "runsvdir " + dir + "/runit"},
		{"ours-50", ours + " --service-dir " + services},
	} {
		b.Run(c.name, func(b *testing.B) {
			words := strings.Fields(c.command)
			path, err := exec.LookPath(words[0])
			if err != nil {
				b.Skip(err)
			}
			want := 1
			if c.name == "ours-50" {
				want = 50
			}
			var first, stop time.Duration
			var kB, anonymous, daemonKB int
			for n := range b.N {
				r, w, err := os.Pipe()
				must(err)
				cmd := exec.Command(path, words[1:]...)
				cmd.Env = append(os.Environ(), "DIAKONOS_HOME="+filepath.Join(dir, fmt.Sprintf("h%d-%s-%d", b.N, c.name, n)))
				cmd.Stdout, cmd.Stderr = w, w
				cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
				began := time.Now()
				must(cmd.Start())
				w.Close()
				out := bufio.NewScanner(r)
				for up := 0; up < want && out.Scan(); {
					if _, rest, ok := strings.Cut(out.Text(), "at "); ok {
						ns, _ := strconv.ParseInt(rest, 10, 64)
						if up == 0 {
							first += time.Unix(0, ns).Sub(began)
						}
						up++
					}
				}
				go func() { _, _ = io.Copy(io.Discard, r) }()
				kB += memoryKB(b, cmd.Process.Pid, "Private_")
				anonymous += memoryKB(b, cmd.Process.Pid, "Anonymous:")
				if list, _ := children(cmd.Process.Pid); strings.HasPrefix(c.name, "ours") {
					for _, pid := range list {
						if st, err := readStat(pid); err == nil && st.comm == daemonName {
							daemonKB += memoryKB(b, pid, "Private_")
						}
					}
				}
				told := time.Now()
				_ = cmd.Process.Signal(syscall.SIGTERM)
				if c.name == "runsvdir" {
					_ = cmd.Process.Signal(syscall.SIGHUP) // it stops its services only then
				}
				end := time.AfterFunc(testPatience, func() { _ = cmd.Process.Kill() })
				_ = cmd.Wait()
				end.Stop()
				stop += time.Since(told)
				r.Close()
			}
			b.ReportMetric(float64(first.Microseconds())/float64(b.N)/1000, "first-ms")
			b.ReportMetric(float64(stop.Microseconds())/float64(b.N)/1000, "end-ms")
			b.ReportMetric(float64(kB)/float64(b.N), "private-kB")
			b.ReportMetric(float64(anonymous)/float64(b.N), "anonymous-kB")
			if daemonKB > 0 {
				b.ReportMetric(float64(daemonKB)/float64(b.N), "daemon-kB")
			}
		})
	}
}
