// Role: tests of the graph, of transactions and of the queue of jobs.
// Runs in: go test.
// Owns: nothing.
// Uses: deps, unit.

package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// world is a catalogue, what is up, and the queue; it plays the daemon and the shims.
type world struct {
	q      *jobs
	up     map[string]bool
	broken map[string]error
	fails  map[string]bool // "start db": this order fails
	ids    int
}

// newWorld reads units, one a line: `worker requires db cache, after net`. `x broken` is a file with a mistake. up names what is up.
func newWorld(units, up string) *world {
	w := &world{up: map[string]bool{}, broken: map[string]error{}, fails: map[string]bool{}}
	w.q = newJobs(func(n string) bool { return w.up[n] }, func(n string) bool { return !w.up[n] })
	w.load(units)
	for _, name := range strings.Fields(up) {
		w.up[name] = true
	}
	return w
}

func (w *world) load(units string) []string {
	all := map[string]*unit{}
	for line := range strings.Lines(units) {
		name, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if name == "" {
			continue
		}
		if rest == "broken" {
			w.broken[name] = errors.New(name + ".service:3: unknown key")
			continue
		}
		all[name] = readUnit(name, rest)
	}
	return w.q.use(newGraph(all, w.broken))
}

func readUnit(name, rest string) *unit {
	u := &unit{Name: name, ExecReload: []command{{Path: "true"}}}
	for part := range strings.SplitSeq(rest, ",") {
		words := strings.Fields(part)
		if len(words) == 0 {
			continue
		}
		names := words[1:]
		switch words[0] {
		case "after":
			u.After = names
		case "before":
			u.Before = names
		case "requires":
			u.Requires = names
		case "wants":
			u.Wants = names
		case "bindsto":
			u.BindsTo = names
		case "partof":
			u.PartOf = names
		case "conflicts":
			u.Conflicts = names
		case "noreload":
			u.ExecReload = nil
		default:
			panic("unknown relation " + words[0])
		}
	}
	return u
}

// ask submits `start a b` and returns what was said, one thing a line: errors, warnings, skipped, and jobs that ended.
func (w *world) ask(command string) string {
	words := strings.Fields(command)
	s := w.q.submit(demand{Kind: jobKind(words[0]), Names: words[1:], By: byUser, Waiter: command, NewID: w.newID})
	var said []string
	for _, a := range s.Answers {
		if a.Err != nil {
			said = append(said, a.Err.Error())
		}
		if a.Skipped {
			said = append(said, a.Name+" skipped")
		}
		said = append(said, a.Warnings...)
	}
	said = append(append(said, tell(s.Ended)...), s.Warnings...)
	return strings.Join(said, "\n")
}

func (w *world) newID(unit string) string {
	w.ids++
	return unit + "-" + strconv.Itoa(w.ids)
}

func tell(list []ended) (said []string) {
	for _, e := range list {
		line := fmt.Sprintf("%s %s: %s", e.Job.Kind, e.Job.Unit, e.Result)
		if e.Culprit != "" {
			line += " of " + e.Culprit
		}
		if e.Text != "" {
			line += " (" + e.Text + ")"
		}
		said = append(said, line)
	}
	return said
}

// begin dispatches once: `start a, start b`.
func (w *world) begin() string {
	var said []string
	for _, o := range w.q.dispatch() {
		said = append(said, string(o.Verb)+" "+o.Job.Unit)
	}
	return strings.Join(said, ", ")
}

// finish reports the running order of a unit, which fails if fails says so.
func (w *world) finish(unit string) []string {
	j := w.q.job(unit)
	result, text := jobDone, ""
	if w.fails[string(j.running)+" "+unit] {
		result, text = jobFailed, "exit code 1"
	}
	if result == jobDone && j.running != reloadJob {
		w.up[unit] = j.running != stopJob
	}
	return tell(w.q.finished(unit, j.ID, j.running, result, text))
}

// run carries all out, wave by wave: `start a, start b | start c`; failures are told behind the wave: `start a: failed`.
func (w *world) run() string {
	var waves []string
	for wave := w.begin(); wave != ""; wave = w.begin() {
		for order := range strings.SplitSeq(wave, ", ") {
			_, unit, _ := strings.Cut(order, " ")
			for _, line := range w.finish(unit) {
				if !strings.HasSuffix(line, ": done") {
					wave += "; " + line
				}
			}
		}
		waves = append(waves, wave)
	}
	if n := len(w.q.list()); n > 0 {
		waves = append(waves, fmt.Sprintf("STUCK with %d jobs", n))
	}
	return strings.Join(waves, " | ")
}

func same(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s\n got: %s\nwant: %s", what, got, want)
	}
}

func TestTransaction(t *testing.T) {
	const chain = "worker requires db\ndb requires disk\ndisk\n"
	tests := []struct{ name, units, up, ask, said, run string }{
		{"a start pulls in what is required, in order", chain, "", "start worker", "", "start disk | start db | start worker"},
		{"a start goes past what is up", chain, "disk", "start worker", "", "start db | start worker"},
		{"a start of what is up still pulls in what is down", chain, "worker db", "start worker", "worker skipped", "start disk"},
		{"starts run in parallel where nothing orders them", "a wants b c\nb\nc", "", "start a", "", "start b, start c | start a"},
		{"After alone pulls nothing in", "a after b\nb", "", "start a", "", "start a"},
		{"After orders two names of one command", "a after b\nb", "", "start a b", "", "start b | start a"},
		{"Before orders as After does", "a before b\nb", "", "start a b", "", "start a | start b"},
		{"an explicit Before turns the order of Requires round", "a requires b, before b\nb", "", "start a", "", "start a | start b"},
		{"the other's After turns it round too", "a requires b\nb after a", "", "start a", "", "start a | start b"},
		{"BindsTo pulls in and orders", "a bindsto b\nb", "", "start a", "", "start b | start a"},
		{"PartOf pulls nothing in", "a partof b\nb", "", "start a", "", "start a"},

		{"a missing unit is named", "a", "", "start x", `cannot start "x": no such unit`, ""},
		{"a broken unit is named with its mistake", "x broken", "", "start x", `cannot start "x": x.service:3: unknown key`, ""},
		{"a missing requirement fails all, with the chain", "a requires b\nb bindsto c", "", "start a",
			`cannot start "a": it requires "b", which is bound to "c", which does not exist`, ""},
		{"a broken requirement fails all, with its mistake", "a requires b\nb broken", "", "start a",
			`cannot start "a": it requires "b", which cannot be used: b.service:3: unknown key`, ""},
		{"a broken requirement that is up does no harm", "a requires b\nb broken", "b", "start a", "", "start a"},
		{"a missing wanted unit is a warning", "a wants b", "", "start a", `"a" wants "b", which does not exist`, "start a"},
		{"a wanted unit that lacks a requirement is a warning", "a wants b\nb requires c", "", "start a",
			`"a" wants "b", which requires "c", which does not exist`, "start a"},
		{"each name fails alone", "a\nb requires x\nc", "", "start a b c", `cannot start "b": it requires "x", which does not exist`,
			"start a, start c"},

		{"a stop takes along who requires it, in reverse", chain, "worker db disk", "stop disk", "",
			"stop worker | stop db | stop disk"},
		{"a stop reaches through what is down", chain, "worker disk", "stop disk", "", "stop disk, stop worker"},
		{"a stop takes along what is bound to it or part of it", "a bindsto c\nb partof c\nc", "a b c", "stop c", "",
			"stop a, stop b | stop c"},
		{"a stop leaves who only wants it", "a wants b\nb", "a b", "stop b", "", "stop b"},
		{"a stop leaves what it requires", chain, "worker db disk", "stop worker", "", "stop worker"},
		{"a stop of what is down does nothing", "a", "", "stop a", "a skipped", ""},
		{"a stop needs no unit", "", "gone", "stop gone", "", "stop gone"},

		{"a restart alone is one order", "a", "a", "restart a", "", "restart a"},
		{"a restart of what is down starts it", "a", "", "restart a", "", "start a"},
		{"a restart takes along who requires it", chain, "worker db disk", "restart db", "",
			"stop worker | stop db | start db | start worker"},
		{"a restart starts no dependent that is down", chain, "db disk", "restart db", "", "restart db"},
		{"a restart starts a requirement that is down", chain, "db", "restart db", "", "stop db | start disk | start db"},
		{"a restart of two ordered units stops both before it starts any", "a after b\nb", "a b", "restart a b", "",
			"stop a | stop b | start b | start a"},

		{"a reload concerns one unit", chain, "worker db disk", "reload db", "", "reload db"},
		{"a reload of what is down is refused", "a", "", "reload a", `cannot reload "a": it is not active`, ""},
		{"a reload needs ExecReload", "a noreload", "a", "reload a", `cannot reload "a": it has no ExecReload`, ""},

		{"a start stops what it conflicts with, first", "a conflicts b\nb", "b", "start a", "", "stop b | start a"},
		{"a conflict works both ways", "a conflicts b\nb", "a", "start b", "", "stop a | start b"},
		{"a conflict with what is down is nothing", "a conflicts b\nb\nc requires b", "c", "start a", "", "start a"},
		{"a conflict stops the dependents of the other", "a conflicts b\nb\nc requires b", "b c", "start a", "",
			"stop c | stop b | start a"},
		{"two requirements in conflict are an error", "a requires b c\nb conflicts c\nc", "", "start a",
			`cannot start "a": it needs both "b" and "c", which conflict`, ""},
		{"a requirement in conflict with its dependent is an error", "a requires b, conflicts b\nb", "", "start a",
			`cannot start "a": it conflicts with "b", which it needs`, ""},
		{"two names in conflict: the second fails", "a conflicts b\nb", "", "start a b",
			`cannot start "b": "b" conflicts with "a", which the same command starts`, "start a"},
		{"a wanted unit in conflict is left out", "a requires b, wants c\nb conflicts c\nc", "", "start a",
			`"a" wants "c", which is left out: it cannot be up together with "b"`, "start b | start a"},
		{"a wanted unit in conflict with another name is left out", "a wants c\nb\nc conflicts b", "", "start b a",
			`"a" wants "c", which is left out: it cannot be up together with "b"`, "start a, start b"},

		{"a cycle is told whole", "a after b, requires b c\nb after c\nc after a", "", "start a",
			`cannot start "a": ordering cycle: a after b after c after a`, ""},
		{"units that require each other are a cycle", "a requires b\nb requires a", "", "start b",
			`cannot start "b": ordering cycle: a after b after a`, ""},
		{"unless one order is explicit", "a requires b, after b\nb requires a", "", "start b", "", "start b | start a"},
		{"a cycle outside of the transaction does no harm", "a after b\nb after c\nc after a", "", "start a", "", "start a"},
		{"a cycle across names fails the one that closes it", "a after b\nb after a\nc", "", "start a b c",
			`cannot start "b": ordering cycle: a after b after a`, "start a, start c"},
		{"a cycle through a wanted unit costs that unit", "a wants b\nb wants c d\nc after d\nd after c, requires e\ne", "", "start a",
			`"b" wants "d", which is left out: ordering cycle: c after d after c`, "start c | start b | start a"},
		{"a cycle does not keep from stopping", "a after b\nb after c\nc after a", "a b c", "stop a b c",
			`ordering cycle: a after b after c after a; "b" does not wait for "a"`, "stop b | stop c | stop a"},
		{"nor do two", "a after b\nb after a\nc after d\nd after c", "a b c d", "stop a b c d",
			"ordering cycle: a after b after a; \"b\" does not wait for \"a\"\nordering cycle: c after d after c; \"d\" does not wait for \"c\"",
			"stop b, stop d | stop a, stop c"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(tt.units, tt.up)
			said := w.ask(tt.ask)
			same(t, tt.ask, said, tt.said)
			same(t, "run", w.run(), tt.run)
		})
	}
}

// Steps against one queue: `> command` asks, `? ` dispatches, `. unit` finishes its order, `! unit` fails it, `run` carries out the rest. What
// comes of it stands behind the arrow.
func TestQueue(t *testing.T) {
	tests := []struct {
		name, units, up string
		steps           []string
	}{
		{"two clients that start the same share one job", "a requires b\nb", "", []string{
			"> start a -> ", "> start a -> ", "run -> start b | start a"}},
		{"a stop replaces a waiting start and who waits for it", "a requires b\nb", "", []string{
			"> start a -> ", "? -> start b",
			`> stop b -> start b: canceled (replaced by stop asked by user) / start a: canceled (replaced by stop that goes with stop of "b" asked by user)`,
			"? -> stop a", ". a -> stop a: done", "run -> stop b"}},
		{"a start replaces a running stop", "a", "a", []string{
			"> stop a -> ", "? -> stop a", "> start a -> stop a: canceled (replaced by start asked by user)", "run -> start a"}},
		{"a late report of a replaced order is ignored", "a", "", []string{
			"> start a -> ", "? -> start a", "> stop a -> start a: canceled (replaced by stop asked by user)", "late a a-1 start -> ", "run -> stop a"}},
		{"a late report of the same verb is told by its ID", "a", "a", []string{
			"> stop a -> ", "? -> stop a", "> start a -> stop a: canceled (replaced by start asked by user)",
			"> stop a -> start a: canceled (replaced by stop asked by user)", "? -> stop a", "late a a-1 stop -> ", ". a -> stop a: done"}},
		{"a start waits for all that it comes after", "a after b c\nb\nc", "", []string{
			"> start a b c -> ", "? -> start b, start c", ". b -> start b: done", "? -> ", ". c -> start c: done", "run -> start a"}},
		{"work that becomes ready is handed out by name", "a after d\nb after c\nc\nd", "", []string{
			"> start a b c d -> ", "? -> start c, start d", ". c -> start c: done", ". d -> start d: done", "? -> start a, start b"}},
		{"a restart takes over a waiting start", "a requires b\nb", "", []string{
			"> start a -> ", "? -> start b", "> restart a -> ", ". b -> start b: done", "run -> start a"}},
		{"a restart interrupts a running start", "a", "", []string{
			"> start a -> ", "? -> start a", "> restart a -> ", "? -> restart a", ". a -> restart a: done", "run -> "}},
		{"a start joins a running restart", "a", "a", []string{
			"> restart a -> ", "? -> restart a", "> start a -> ", ". a -> restart a: done", "run -> "}},
		{"a reload joins a start that is still to come", "a requires b\nb", "", []string{
			"> start a -> ", "? -> start b", "> reload a -> ", ". b -> start b: done", "run -> start a"}},
		{"a reload follows a running reload", "a", "a", []string{
			"> reload a -> ", "? -> reload a", "> reload a -> ", "? -> ", ". a -> reload a: done", "run -> reload a"}},
		{"a reload after a start that fails has nothing to reload", "a", "", []string{
			"> start a -> ", "? -> start a", "> reload a -> ",
			`! a -> start a: failed (exit code 1) / reload a: dependency of a ("a" failed)`, "run -> "}},
		{"a reload that follows goes with what replaces the first", "a", "a", []string{
			"> reload a -> ", "? -> reload a", "> reload a -> ",
			"> stop a -> reload a: canceled (replaced by stop asked by user) / reload a: canceled (replaced by stop asked by user)", "run -> stop a"}},
		{"a reload of what is being stopped is refused", "a", "a", []string{
			"> stop a -> ", `> reload a -> cannot reload "a": it is being stopped`, "run -> stop a"}},
		{"a restart of a requirement leaves alone what is being stopped", "a requires b\nb", "a b", []string{
			"> stop a -> ", "> restart b -> ", "run -> stop a | restart b"}},
		{"a restart of a requirement takes along what is being started", "a requires b\nb", "b", []string{
			"> start a -> ", "? -> start a", "> restart b -> ", "run -> stop a | stop b | start b | start a"}},
		{"a restart of a requirement takes along what a restart is starting", "a requires b\nb", "a b", []string{
			"> restart b -> ", "? -> stop a", ". a -> ", "? -> stop b", ". b -> ", "? -> start b", ". b -> restart b: done", "? -> start a",
			"> restart b -> ", "run -> stop a | stop b | start b | start a"}},
		{"what is started again while its requirement is to be restarted is restarted", "a requires b\nb\nc requires a", "a b c", []string{
			"> stop a -> ", "? -> stop c", "> restart b -> ",
			"> start c -> stop c: canceled (replaced by start asked by user) / stop a: canceled (replaced by start that goes with start of \"c\" asked by user)",
			"run -> stop c | stop a | stop b | start b | start a | start c"}},
		{"what is down waits for the restart of its requirement", "a requires b\nb", "b", []string{
			"> restart b -> ", "> start a -> ", "run -> stop b | start b | start a"}},
		{"a failed start fails who requires it, with the first culprit", "a requires b\nb requires c\nc", "", []string{
			"> start a -> ", "? -> start c",
			`! c -> start c: failed (exit code 1) / start b: dependency of c ("c" failed: exit code 1) / start a: dependency of c ("c" failed: exit code 1)`,
			"run -> "}},
		{"a failed start does not matter to who wants it or comes after", "a wants c\nb after c\nc", "", []string{
			"> start a b -> ", "? -> start c", "! c -> start c: failed (exit code 1)", "run -> start a, start b"}},
		{"a failed stop fails the start that needed it", "a conflicts b\nb", "b", []string{
			"> start a -> ", "? -> stop b", `! b -> stop b: failed (exit code 1) / start a: dependency of b ("b" failed: exit code 1)`, "run -> "}},
		{"a failed stop does not keep others from stopping", "a requires b\nb", "a b", []string{
			"> stop b -> ", "? -> stop a", "! a -> stop a: failed (exit code 1)", "run -> stop b"}},
		{"a failed restart fails the restart of who requires it", "a requires b\nb", "a b", []string{
			"> restart b -> ", "? -> stop a", ". a -> ", "? -> stop b", ". b -> ", "? -> start b",
			`! b -> restart b: failed (exit code 1) / restart a: dependency of b ("b" failed: exit code 1)`, "run -> "}},
		{"a requirement that fails while a restart still stops ends it there", "a requires b\nb", "a", []string{
			"> start b -> ", "? -> start b", "> restart a -> ", "? -> stop a", "! b -> start b: failed (exit code 1)",
			`. a -> restart a: dependency of b ("b" failed)`, "run -> "}},
		{"a stop is ordered before the start of another command", "a after b\nb", "b", []string{
			"> stop b -> ", "> start a -> ", "run -> stop b | start a"}},
		{"a start is ordered after the start of another command", "a after b\nb", "", []string{
			"> start b -> ", "? -> start b", "> start a -> ", "? -> ", ". b -> start b: done", "run -> start a"}},
		{"a start that would dead-lock with waiting ones is refused", "a after b\nb after c, requires x\nc after a\nx", "", []string{
			"> start x -> ", "? -> start x", "> start a b -> ", `> start c -> cannot start "c": ordering cycle: a after b after c after a`,
			". x -> start x: done", "run -> start b | start a"}},
		{"a wanted unit is left out if a waiting job closes its cycle", "a wants c d\nc after d\nd after c x\nx", "", []string{
			"> start x d -> ", "? -> start x",
			`> start a -> "a" wants "c", which is left out: ordering cycle: c after d after c / "a" wants "d", which is left out: ordering cycle: c after d after c`,
			". x -> start x: done", "run -> start d | start a"}},
		{"a cycle that a changed unit makes among waiting jobs is broken", "a after b\nb after x\nx", "", []string{
			"> start x a b -> ", "? -> start x", `load a after b;b after x a;x -> ordering cycle: a after b after a; "b" does not wait for "a"`,
			". x -> start x: done", "run -> start b | start a"}},
		{"a conflict between two commands: the later wins", "a conflicts b\nb after x\nx", "", []string{
			"> start x b -> ", "? -> start x", `> start a -> start b: canceled (replaced by stop that goes with start of "a" asked by user)`,
			"? -> stop b", ". b -> stop b: done", "? -> start a"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(tt.units, tt.up)
			for _, step := range tt.steps {
				do, want, _ := strings.Cut(step, " -> ")
				same(t, do, strings.TrimSuffix(w.step(do), " / "), want)
			}
		})
	}
}

func (w *world) step(do string) string {
	verb, rest, _ := strings.Cut(do, " ")
	switch verb {
	case ">":
		return strings.ReplaceAll(w.ask(rest), "\n", " / ")
	case "?":
		return w.begin()
	case ".":
		return strings.Join(w.finish(rest), " / ")
	case "!":
		w.fails[string(w.q.job(rest).running)+" "+rest] = true
		return strings.Join(w.finish(rest), " / ")
	case "late":
		f := strings.Fields(rest)
		return strings.Join(tell(w.q.finished(f[0], f[1], jobKind(f[2]), jobDone, "")), " / ")
	case "load":
		return strings.Join(w.load(strings.ReplaceAll(rest, ";", "\n")), " / ")
	}
	return w.run()
}

func TestRestartLeavesBrokenDependentAlone(t *testing.T) {
	w := newWorld("a requires b\nb", "a b")
	w.broken["a"] = errors.New("a.service:1: bad")
	w.load("a requires b\nb")
	same(t, "restart b", w.ask("restart b"), `"a" is not restarted with "b": it cannot be used: a.service:1: bad`)
	same(t, "run", w.run(), "restart b")
}

func TestWaitersHearOfEveryJob(t *testing.T) {
	w := newWorld("a requires b\nb requires c\nc", "")
	w.ask("start a")
	w.ask("start b")
	a, b := w.q.job("a"), w.q.job("b")
	if want := []waiter{{"start a", true}}; !slices.Equal(a.Waiters, want) {
		t.Errorf("waiters of a: got %v, want %v", a.Waiters, want)
	}
	if want := []waiter{{"start a", false}, {"start b", true}}; !slices.Equal(b.Waiters, want) {
		t.Errorf("waiters of b: got %v, want %v", b.Waiters, want)
	}
	w.ask("stop c b") // b is named, after it was taken along or not
	if n := len(w.q.job("b").Waiters); n != 1 {
		t.Errorf("waiters of b after one command: got %d, want 1", n)
	}
	if a.By != byUser || b.By != byUser {
		t.Errorf("asked by: got %s and %s, want user for both", a.By, b.By)
	}
	w = newWorld("a requires b\nb", "b")
	w.ask("start a")
	w.begin()
	w.ask("reload b")
	w.begin()
	w.q.submit(demand{Kind: reloadJob, Names: []string{"b"}, By: byUser, Waiter: "reload b again", NewID: w.newID}) // after the one that runs
	for token, want := range map[string]int{"start a": 1, "reload b": 1, "reload b again": 1, "nobody": 0} {
		if got := w.q.waitedFor(token); got != want {
			t.Errorf("%s: waits for %d jobs, want %d", token, got, want)
		}
	}
}

// TestWhoIsBehindAJob: who asked for the command, or the unit that a job goes with.
func TestWhoIsBehindAJob(t *testing.T) {
	w := newWorld("web requires db\ndb requires disk\ndisk\nother", "")
	check := func(want string) {
		t.Helper()
		var said []string
		for _, name := range []string{"web", "db", "disk", "other"} {
			if j := w.q.job(name); j != nil {
				said = append(said, strings.TrimRight(fmt.Sprintf("%s %s by %s %s", j.Kind, name, j.By, j.For), " "))
			}
		}
		if got := strings.Join(said, ", "); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	w.ask("start web")
	check("start web by user, start db by dependency web, start disk by dependency web")
	w.ask("start db")
	check("start web by user, start db by user, start disk by dependency web")
	w.ask("stop disk")
	check("stop web by dependency disk, stop db by dependency disk, stop disk by user")
	w = newWorld("web requires db\ndb", "web db")
	w.ask("stop db")
	check("stop web by dependency db, stop db by user")
	w = newWorld("web requires db\ndb\nother", "")
	w.q.submit(demand{Kind: startJob, Names: []string{"db", "other", "web"}, By: byUser, NewID: w.newID, Origin: func(name string) (by, other string) {
		if name == "db" {
			return byDependency, "web"
		}
		return byEnabled, ""
	}})
	check("start web by enabled, start db by dependency web, start other by enabled")
	w.q.submit(demand{Kind: stopJob, Names: []string{"other"}, By: byDependency, For: "db", NewID: w.newID})
	check("start web by enabled, start db by dependency web, stop other by dependency db")
}

func TestReplacedOrderHasNewID(t *testing.T) {
	w := newWorld("a", "")
	w.ask("start a")
	w.begin()
	old := w.q.job("a").ID
	w.ask("restart a")
	if j := w.q.job("a"); j.ID == old || len(j.Waiters) != 2 {
		t.Errorf("after a restart of a running start: got ID %s and waiters %v, want a new ID and both waiters", j.ID, j.Waiters)
	}
}

func TestBindingBroken(t *testing.T) {
	g := newGraph(map[string]*unit{"a": {BindsTo: []string{"b"}}, "b": {BindsTo: []string{"c"}}, "c": {}, "d": {Requires: []string{"c"}}}, nil)
	up := map[string]bool{"a": true, "d": true}
	got := g.bindingBroken("c", func(n string) bool { return up[n] })
	same(t, "bound to c", strings.Join(got, " "), "a")
}

func TestProblems(t *testing.T) {
	units := map[string]*unit{
		"a": readUnit("a", "after b, requires gone, wants nothing"), "b": readUnit("b", "after c"), "c": readUnit("c", "requires a"),
		"d": readUnit("d", "bindsto bad"), "e": readUnit("e", "requires a"),
	}
	var got []string
	for _, p := range newGraph(units, map[string]error{"bad": errors.New("bad.service:1: no")}).problems() {
		got = append(got, p.Unit+": "+p.Text)
	}
	same(t, "problems", strings.Join(got, "\n"), strings.Join([]string{
		`a: requires "gone", which does not exist`,
		`d: is bound to "bad", which cannot be used: bad.service:1: no`,
		"a: ordering cycle: a after b after c after a",
	}, "\n"))
}

func TestLongChainIsToldShort(t *testing.T) {
	var units strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&units, "u%04d requires u%04d\n", i, i+1)
	}
	said := newWorld(units.String(), "").ask("start u0000")
	if len(said) > 500 || !strings.HasSuffix(said, `requires "u1000", which does not exist`) || !strings.Contains(said, "(988 units)") {
		t.Errorf("error of a long chain: got %s", said)
	}
}

// A chain of 1,000 is no deeper than the code can go, also when each of its units is named.
func TestDeepAndWide(t *testing.T) {
	var chain, names strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&chain, "u%04d requires u%04d\n", i, i+1)
		fmt.Fprintf(&names, " u%04d", i)
	}
	chain.WriteString("u1000\n")
	w := newWorld(chain.String(), "")
	same(t, "start", w.ask("start"+names.String()), "")
	if got := strings.Count(w.run(), "|"); got != 1000 {
		t.Errorf("waves: got %d, want 1000", got)
	}
	w.ask("stop" + names.String())
	same(t, "first stop", w.begin(), "stop u0000")
}

// TestStopsBehind: how many stops have to follow decides what a shutdown leaves to each.
func TestStopsBehind(t *testing.T) {
	w := newWorld("a\nb requires a\nc requires b\nd requires a\nlone\n", "a b c d lone")
	w.q.submit(demand{Kind: stopJob, Names: []string{"a", "b", "c", "d", "lone"}, NewID: func(n string) string { return n }})
	got := map[string]int{}
	for j, n := range w.q.stopsBehind() {
		got[j.Unit] = n
	}
	if want := map[string]int{"a": 0, "b": 1, "c": 2, "d": 1, "lone": 0}; !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
