// Role: random graphs and commands against the queue of jobs.
// Runs in: go test.
// Owns: nothing.
// Uses: deps, unit.

package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// gauntlet is one random run: the input decides the units, the commands and what fails. Input that ends reads as zeros.
type gauntlet struct {
	t     *testing.T
	input []byte
	w     *world
	open  map[*job]bool // installed and not yet ended
	ended map[*job]bool
	log   strings.Builder

	acyclic bool // the present graph has no ordering cycle at all
	changed bool // units were read again, which can make a cycle among waiting jobs
}

const fuzzUnits = 7

func (f *gauntlet) byte() int {
	if len(f.input) == 0 {
		return 0
	}
	b := f.input[0]
	f.input = f.input[1:]
	return int(b)
}

func (f *gauntlet) unit() string { return string(rune('a' + f.byte()%fuzzUnits)) }

// catalogue makes units with up to three relations each; some are missing, some broken.
func (f *gauntlet) catalogue() string {
	relations := []string{"after", "before", "requires", "wants", "bindsto", "partof", "conflicts"}
	var units strings.Builder
	for i := range fuzzUnits {
		b := f.byte()
		if b == 255 {
			continue
		}
		fmt.Fprintf(&units, "%c", 'a'+i)
		if b == 254 {
			units.WriteString(" broken\n")
			continue
		}
		for n := range b % 4 {
			if n > 0 {
				units.WriteString(",")
			}
			fmt.Fprintf(&units, " %s %s", relations[f.byte()%len(relations)], f.unit())
		}
		units.WriteString("\n")
	}
	return units.String()
}

func (f *gauntlet) run() string {
	f.w = newWorld(f.catalogue(), "")
	f.judge()
	f.open, f.ended = map[*job]bool{}, map[*job]bool{}
	for len(f.input) > 0 {
		switch f.byte() % 16 {
		case 0:
			f.w.load(f.catalogue())
			f.changed = true
			f.judge()
		case 1, 2:
			f.w.up[f.unit()] = f.byte()%2 == 0
		case 3, 4, 5, 6:
			f.dispatch()
		case 7, 8, 9, 10:
			f.finish(f.byte())
		default:
			f.ask()
		}
		f.check()
	}
	for range 20 * fuzzUnits {
		f.dispatch()
		f.finish(1)
		f.check()
	}
	for j := range f.open {
		f.t.Errorf("dead-lock: %s of %s never ended", j.Kind, j.Unit)
	}
	return f.log.String()
}

func (f *gauntlet) judge() { f.acyclic = !strings.Contains(fmt.Sprint(f.w.q.g.problems()), "cycle") }

func (f *gauntlet) ask() {
	kinds := []jobKind{startJob, startJob, stopJob, restartJob, reloadJob}
	d := demand{Kind: kinds[f.byte()%len(kinds)], By: byUser, Waiter: &f.log, NewID: f.w.newID}
	for range 1 + f.byte()%3 {
		d.Names = append(d.Names, f.unit())
	}
	s := f.w.q.submit(d)
	fmt.Fprintln(&f.log, d.Kind, d.Names)
	for _, a := range s.Answers {
		fmt.Fprintln(&f.log, a)
		if a.Err != nil && d.Kind == stopJob {
			f.t.Errorf("stop of %s refused: %v", a.Name, a.Err)
		}
		if a.Err == nil && !a.Skipped && f.w.q.job(a.Name) == nil {
			f.later(a.Name, d, s)
		}
	}
	f.note(s.Ended)
}

// later: an anchor without a job is right only if a later name of the same demand took it.
func (f *gauntlet) later(name string, d demand, s submission) {
	for _, e := range s.Ended {
		if e.Job.Unit == name {
			return
		}
	}
	f.t.Errorf("%s %s was accepted, but has no job", d.Kind, name)
}

// note counts what ended: each job once.
func (f *gauntlet) note(list []ended) {
	fmt.Fprintln(&f.log, tell(list))
	for _, e := range list {
		if f.ended[e.Job] {
			f.t.Errorf("%s of %s ended twice", e.Job.Kind, e.Job.Unit)
		}
		if e.Result == jobDependency && e.Culprit == "" {
			f.t.Errorf("%s of %s: dependency without a culprit", e.Job.Kind, e.Job.Unit)
		}
		f.ended[e.Job] = true
		delete(f.open, e.Job)
	}
}

// check looks at the queue after each step.
func (f *gauntlet) check() {
	for _, j := range f.w.q.list() {
		f.open[j] = true
		if f.ended[j] || f.w.q.byUnit[j.Unit] != j || f.w.q.at[j.id] != j {
			f.t.Errorf("%s of %s: not installed as it should be", j.Kind, j.Unit)
		}
	}
	for j := range f.open {
		if f.w.q.job(j.Unit) != j {
			f.t.Errorf("%s of %s is gone and was not told", j.Kind, j.Unit)
		}
	}
}

// dispatch checks each order against the graph: nothing that comes first may still be open.
func (f *gauntlet) dispatch() {
	orders := f.w.q.dispatch()
	for _, o := range orders {
		fmt.Fprintln(&f.log, "dispatch", o.Verb, o.Job.Unit)
		f.ordered(o)
	}
}

func (f *gauntlet) ordered(o order) {
	q := f.w.q
	n := &q.g.nodes[o.Job.id]
	if f.changed && !f.acyclic {
		return
	}
	if o.Verb != startJob && o.Verb != reloadJob {
		f.orderedStop(o)
		return
	}
	for _, id := range n.after {
		if k := q.at[id]; k != nil && k.hasStart() {
			f.t.Errorf("%s of %s before %s of %s", o.Verb, o.Job.Unit, k.Kind, k.Unit)
		}
	}
	for _, id := range slices.Concat(n.after, n.before, n.conflicts) {
		if k := q.at[id]; k != nil && k.hasStop() && k != o.Job {
			f.t.Errorf("%s of %s before the stop of %s", o.Verb, o.Job.Unit, k.Unit)
		}
	}
}

// orderedStop: cycles among stops are broken, so only a graph without any keeps the order for sure.
func (f *gauntlet) orderedStop(o order) {
	q := f.w.q
	for _, id := range q.g.nodes[o.Job.id].before {
		if k := q.at[id]; f.acyclic && k != nil && k.hasStop() {
			f.t.Errorf("%s of %s before the stop of %s", o.Verb, o.Job.Unit, k.Unit)
		}
	}
}

// finish ends one of the running orders; how says which and how.
func (f *gauntlet) finish(how int) {
	var running []*job
	for _, j := range f.w.q.list() {
		if j.running != "" {
			running = append(running, j)
		}
	}
	if len(running) == 0 {
		return
	}
	j := running[how/8%len(running)]
	verb, result := j.running, jobDone
	if how%8 == 0 {
		result = jobFailed
	}
	if result == jobDone && verb != reloadJob {
		f.w.up[j.Unit] = verb != stopJob
	}
	f.note(f.w.q.finished(j.Unit, j.ID, verb, result, ""))
}

// FuzzTransaction: order is kept, every job ends once, nothing dead-locks, and the same input says the same.
func FuzzTransaction(f *testing.F) {
	f.Add([]byte("\x01\x02\x01\x01\x02\x02\x00\x00\x00\x00\x02\x03\x01"))
	f.Add([]byte("\x03\x00\x01\x02\x02\x06\x03\x02\x00\x02\x01\x03\x04\x00\x05\x01\x00\x00\x02\x00\x01\x02\x02\x03\x00\x01\x02\x02\x00\x02\x03"))
	f.Fuzz(func(t *testing.T, input []byte) {
		if len(input) > 300 {
			return
		}
		first := (&gauntlet{t: t, input: input}).run()
		second := (&gauntlet{t: t, input: input}).run()
		if first != second {
			t.Errorf("the same input said first\n%s\nthen\n%s", first, second)
		}
	})
}
