// Role: the dependency graph, jobs and transactions: which units a command concerns, in which order, and what a result means for others.
// Runs in: daemon (its owner goroutine); the client for `check`.
// Owns: the queue of jobs (type jobs). Pure: no clock, no I/O, no goroutine; the same calls give the same answers.
// Uses: unit.

package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Ordering has two halves that never wait for each other in a circle. Stops wait only for stops; starts (and reloads) wait for stops and
// for starts. So there are two graphs, each over the same edges: starts run along After, stops against it, and every stop of two units
// that are ordered or in conflict comes before the start of the other. A cycle among starts refuses the transaction. A cycle among
// stops is broken with a warning, since nothing may keep an operator from stopping.

// ---- graph

// graph holds the edges among units. It is made whole from the catalogue and replaced when a unit changes.
type graph struct {
	ids   map[string]int32
	nodes []node // sorted by name, then those that node added
}

// node is one name: a unit, or a name that some unit mentions. All lists are sorted and without repetition.
type node struct {
	name   string
	unit   *unit // nil = not loaded
	broken error // its file cannot be used now; unit may be what it was before

	requires   []int32 // Requires and BindsTo
	wants      []int32
	conflicts  []int32 // both directions
	after      []int32 // explicit and implied
	before     []int32
	requiredBy []int32
	stopsWith  []int32 // who Requires, BindsTo or is PartOf this
	boundBy    []int32
}

type pair struct{ from, to int32 }

// pulledIn lists what must be loaded before u can be started. Other relations concern only units that are loaded anyway.
func pulledIn(u *unit) []string {
	return slices.Concat(u.Requires, u.BindsTo, u.Wants)
}

// newGraph builds the graph of all loaded units. broken tells why a file cannot be used; a name in neither map does not exist.
// A name in both runs as units has it, and cannot be started.
func newGraph(units map[string]*unit, broken map[string]error) *graph {
	g := &graph{}
	g.number(units, broken)
	g.connect()
	return g
}

// number gives each name that occurs its id, in the order of names.
func (g *graph) number(units map[string]*unit, broken map[string]error) {
	g.ids = make(map[string]int32, len(units))
	for name := range broken {
		g.ids[name] = 0
	}
	for name, u := range units {
		g.ids[name] = 0
		for _, list := range [...][]string{u.After, u.Before, u.Requires, u.Wants, u.BindsTo, u.PartOf, u.Conflicts} {
			for _, other := range list {
				g.ids[other] = 0
			}
		}
	}
	names := make([]string, 0, len(g.ids))
	for name := range g.ids {
		names = append(names, name)
	}
	slices.Sort(names)
	g.nodes = make([]node, len(names))
	for i, name := range names {
		g.ids[name] = int32(i)
		g.nodes[i] = node{name: name, unit: units[name], broken: broken[name]}
	}
}

func (g *graph) connect() {
	var requires, binds, wants, part, conflicts, order []pair
	for i := range g.nodes {
		u, id := g.nodes[i].unit, int32(i)
		if u == nil {
			continue
		}
		requires = g.pairs(requires, id, u.Requires)
		binds = g.pairs(binds, id, u.BindsTo)
		wants = g.pairs(wants, id, u.Wants)
		part = g.pairs(part, id, u.PartOf)
		conflicts = g.pairs(conflicts, id, u.Conflicts)
		order = g.pairs(order, id, u.After)
		order = append(order, reversed(g.pairs(nil, id, u.Before))...)
	}
	requires = append(requires, binds...)
	g.fill(order, func(n *node) *[]int32 { return &n.after })
	order = g.imply(order, requires)
	order = g.imply(order, wants)
	g.fill(order, func(n *node) *[]int32 { return &n.after })
	g.fill(reversed(order), func(n *node) *[]int32 { return &n.before })
	g.fill(requires, func(n *node) *[]int32 { return &n.requires })
	g.fill(wants, func(n *node) *[]int32 { return &n.wants })
	g.fill(slices.Concat(conflicts, reversed(conflicts)), func(n *node) *[]int32 { return &n.conflicts })
	g.fill(reversed(requires), func(n *node) *[]int32 { return &n.requiredBy })
	g.fill(reversed(slices.Concat(requires, part)), func(n *node) *[]int32 { return &n.stopsWith })
	g.fill(reversed(binds), func(n *node) *[]int32 { return &n.boundBy })
}

// pairs appends id -> each of names to list. A unit has no relation with itself.
func (g *graph) pairs(list []pair, id int32, names []string) []pair {
	for _, name := range names {
		if to := g.ids[name]; to != id {
			list = append(list, pair{id, to})
		}
	}
	return list
}

func reversed(list []pair) []pair {
	back := make([]pair, len(list))
	for i, p := range list {
		back[i] = pair{p.to, p.from}
	}
	return back
}

// imply adds the order that pulling in means, except where an explicit order (the present after lists) says the opposite.
func (g *graph) imply(order, pulls []pair) []pair {
	for _, p := range pulls {
		if _, opposite := slices.BinarySearch(g.nodes[p.to].after, p.from); !opposite {
			order = append(order, p)
		}
	}
	return order
}

// fill sets one list of every node, all of them cut from one array.
func (g *graph) fill(list []pair, field func(*node) *[]int32) {
	count := make([]int32, len(g.nodes))
	for _, p := range list {
		count[p.from]++
	}
	all := make([]int32, len(list))
	for i := range g.nodes {
		n := count[i]
		*field(&g.nodes[i]) = all[:0:n]
		all = all[n:]
	}
	for _, p := range list {
		l := field(&g.nodes[p.from])
		*l = append(*l, p.to)
	}
	for i := range g.nodes {
		l := field(&g.nodes[i])
		slices.Sort(*l)
		*l = slices.Compact(*l)
	}
}

// node returns the id of name, which may be one that the graph does not know: a unit without file can still be stopped.
func (g *graph) node(name string) int32 {
	id, ok := g.ids[name]
	if !ok {
		id = int32(len(g.nodes))
		g.ids[name] = id
		g.nodes = append(g.nodes, node{name: name})
	}
	return id
}

// bindingBroken lists the units that must stop because name went down without a stop job: all that are up and bound to it, directly or
// through others.
func (g *graph) bindingBroken(name string, up func(string) bool) []string {
	id, ok := g.ids[name]
	if !ok {
		return nil
	}
	var names []string
	seen := map[int32]bool{id: true}
	for queue := []int32{id}; len(queue) > 0; queue = queue[1:] {
		for _, b := range g.nodes[queue[0]].boundBy {
			if seen[b] {
				continue
			}
			seen[b] = true
			queue = append(queue, b)
			if other := g.nodes[b].name; up(other) {
				names = append(names, other)
			}
		}
	}
	slices.Sort(names)
	return names
}

// ---- cycles

// colours is the memory of a depth-first search: 0 or an older epoch = not seen, -epoch = on the path, epoch = done.
type colours struct {
	seen  []int32
	epoch int32
}

func newColours(n int) *colours { return &colours{seen: make([]int32, n), epoch: 1} }

// forget makes every node unseen.
func (c *colours) forget() { c.epoch++ }

func nodeAfter(n *node) []int32  { return n.after }
func nodeBefore(n *node) []int32 { return n.before }

// cycles searches from roots along next, among the nodes that in admits. Each cycle is a path whose last node leads back to its first;
// without those closing edges what was searched has no cycle.
func (g *graph) cycles(roots []int32, next func(*node) []int32, in func(int32) bool, c *colours) [][]int32 {
	type frame struct {
		id   int32
		edge int
	}
	var found [][]int32
	var path []frame
	push := func(id int32) {
		c.seen[id] = -c.epoch
		path = append(path, frame{id: id})
	}
	for _, root := range roots {
		if c.seen[root] != c.epoch {
			push(root)
		}
		for len(path) > 0 {
			top := &path[len(path)-1]
			edges := next(&g.nodes[top.id])
			if top.edge == len(edges) {
				c.seen[top.id] = c.epoch
				path = path[:len(path)-1]
				continue
			}
			id := edges[top.edge]
			top.edge++
			switch {
			case c.seen[id] == c.epoch || !in(id):
			case c.seen[id] == -c.epoch:
				var cycle []int32
				for i := len(path) - 1; len(cycle) == 0 || cycle[len(cycle)-1] != id; i-- {
					cycle = append(cycle, path[i].id)
				}
				slices.Reverse(cycle)
				found = append(found, cycle)
			default:
				push(id)
			}
		}
	}
	return found
}

// cycleText reads a cycle aloud, along after and beginning with the first name.
func (g *graph) cycleText(cycle []int32) string {
	for i, id := range cycle {
		next := cycle[(i+1)%len(cycle)]
		if _, after := slices.BinarySearch(g.nodes[id].after, next); !after { // it was found along before
			cycle = slices.Clone(cycle)
			slices.Reverse(cycle)
			break
		}
	}
	names := make([]string, len(cycle))
	for i, id := range cycle {
		names[i] = g.nodes[id].name
	}
	first := slices.Index(names, slices.Min(names))
	names = slices.Concat(names[first:], names[:first+1])
	return "ordering cycle: " + strings.Join(names, " after ")
}

// problem is one finding of `check`.
type problem struct {
	Unit string
	Text string
}

// problems lists each requirement that cannot be met and the ordering cycles of all loaded units. A missing wanted unit is none.
func (g *graph) problems() []problem {
	var list []problem
	var roots []int32
	for i := range g.nodes {
		if g.nodes[i].unit == nil {
			continue
		}
		roots = append(roots, int32(i))
		for _, id := range g.nodes[i].requires {
			if g.nodes[id].unit == nil || g.nodes[id].broken != nil {
				list = append(list, problem{g.nodes[i].name, g.link(int32(i), id) + ", which " + g.reason(id)})
			}
		}
	}
	all := func(int32) bool { return true }
	for _, cycle := range g.cycles(roots, nodeAfter, all, newColours(len(g.nodes))) {
		list = append(list, problem{g.nodes[slices.Min(cycle)].name, g.cycleText(cycle)})
	}
	return list
}

// link names the relation by which one unit needs another: `requires "b"`.
func (g *graph) link(from, to int32) string {
	n, name := &g.nodes[from], g.nodes[to].name
	switch _, hard := slices.BinarySearch(n.requires, to); {
	case !hard:
		return fmt.Sprintf("wants %q", name)
	case slices.Contains(n.unit.BindsTo, name):
		return fmt.Sprintf("is bound to %q", name)
	}
	return fmt.Sprintf("requires %q", name)
}

// reason tells why a unit cannot be started, as the end of a sentence that began with its name.
func (g *graph) reason(id int32) string {
	if err := g.nodes[id].broken; err != nil {
		return fmt.Sprintf("cannot be used: %v", err)
	}
	return "does not exist"
}

// ---- jobs

type jobKind string

const (
	startJob   jobKind = "start"
	stopJob    jobKind = "stop"
	restartJob jobKind = "restart"
	reloadJob  jobKind = "reload"
)

// Who is behind a job.
const (
	byUser       = "user"
	byDependency = "dependency"
	byEnabled    = "enabled"
	byKill       = "kill"
	byBoot       = "boot" // of a container: all that it starts, and its end
)

type jobResult string

const (
	jobDone       jobResult = "done"
	jobSkipped    jobResult = "skipped" // there was nothing to do
	jobFailed     jobResult = "failed"
	jobCanceled   jobResult = "canceled"   // another job took its place
	jobDependency jobResult = "dependency" // what it needs has failed
)

// job is the work to be done on one unit; a unit has at most one. A restart has two stages. It is given to the shim whole when no other
// job depends on what lies between them, else as a stop and, once everything in between is done, a start.
type job struct {
	ID      string
	Unit    string
	Kind    jobKind
	By      string
	For     string // byDependency: the unit that it goes with
	Waiters []waiter

	id      int32 // in jobs.g
	stage   jobStage
	running jobKind // the verb that is being carried out; "" = waiting
	doomed  string  // the unit whose failure forbids the start stage of this restart
	then    *job    // a reload that came too late to be part of this
	batch   int     // the demand that last touched it
	stop    step
	start   step
}

type jobStage int

const (
	stopStage jobStage = iota
	startStage
)

// step is one stage of a job as a node of the order among jobs.
type step struct {
	job    *job
	waits  int     // how many steps are still to be done before
	blocks []*step // who waits for it
}

// waiter is somebody who wants to hear of a job. Token is the caller's, and comparable.
type waiter struct {
	Token  any
	Anchor bool // it asked for this very unit; else the job is a consequence
}

func (j *job) hasStop() bool {
	return j.stage == stopStage && (j.Kind == stopJob || j.Kind == restartJob)
}
func (j *job) hasStart() bool { return j.Kind != stopJob }

// startPending: the job has a start stage and nobody works on it yet.
func (j *job) startPending() bool {
	return j.hasStart() && (j.running == "" || j.Kind == restartJob && j.running == stopJob)
}

// step is the stage that the job is in.
func (j *job) step() *step {
	if j.stage == stopStage {
		return &j.stop
	}
	return &j.start
}

// hear adds a waiter. The jobs of one demand are touched one after the other, so only the last can be the same.
func (j *job) hear(w waiter) {
	if w.Token == nil {
		return
	}
	if n := len(j.Waiters); n > 0 && j.Waiters[n-1].Token == w.Token {
		j.Waiters[n-1].Anchor = j.Waiters[n-1].Anchor || w.Anchor
		return
	}
	j.Waiters = append(j.Waiters, w)
}

// ended tells of a job that left the queue.
type ended struct {
	Job     *job
	Result  jobResult
	Culprit string // dependency: the unit whose failure began it
	Text    string
}

// order asks the caller to carry out one verb on one unit and to report it with finished. A start may come while an earlier stop of the
// same unit still runs, and a stop or restart while a start does: who carries it out lets the later one win.
type order struct {
	Job  *job
	Verb jobKind
}

// jobs is the queue of installed jobs. It has one user, the daemon's owner goroutine.
type jobs struct {
	// set once
	isUp   func(string) bool // active or reloading: a start has nothing to do
	isDown func(string) bool // inactive or failed: a stop has nothing to do

	// owned by loop
	g      *graph
	byUnit map[string]*job
	at     []*job // by id in g
	ready  []*job // may hold jobs that are no longer ready
	out    []ended
	batch  int
}

func newJobs(isUp, isDown func(string) bool) *jobs {
	q := &jobs{isUp: isUp, isDown: isDown, byUnit: map[string]*job{}}
	q.use(newGraph(nil, nil))
	return q
}

// use makes g the graph from now on. Waiting jobs are ordered anew; a cycle that the change has made among them is broken, and told.
func (q *jobs) use(g *graph) (warnings []string) {
	all := q.list() // in the old order, so that names which g lacks get their ids in that order
	q.g = g
	for _, j := range all {
		j.id = g.node(j.Unit)
	}
	q.at = make([]*job, len(g.nodes))
	for _, j := range all {
		q.at[j.id] = j
	}
	return q.relink()
}

// job returns the job of a unit, or nil.
func (q *jobs) job(unit string) *job { return q.byUnit[unit] }

// list returns all jobs in the order of their units.
func (q *jobs) list() []*job {
	all := make([]*job, 0, len(q.byUnit))
	for _, j := range q.byUnit {
		all = append(all, j)
	}
	slices.SortFunc(all, func(a, b *job) int { return int(a.id - b.id) })
	return all
}

// relink derives the order among jobs from the graph. Doing it anew after each change of the queue leaves nothing to keep in step.
func (q *jobs) relink() (warnings []string) {
	all := q.list()
	for _, j := range all {
		j.stop = step{job: j, blocks: j.stop.blocks[:0]}
		j.start = step{job: j, blocks: j.start.blocks[:0]}
	}
	cutStarts, warnings := q.cut(all, nodeAfter, (*job).startPending)
	cutStops, more := q.cut(all, nodeBefore, (*job).hasStop)
	for _, j := range all {
		q.linkStart(j, cutStarts)
		q.linkStop(j, cutStops)
	}
	q.ready = q.ready[:0]
	for _, j := range all {
		q.offer(j)
	}
	return append(warnings, more...)
}

// cut finds the edges to leave out so that the steps picked by has wait for each other in no circle.
func (q *jobs) cut(all []*job, next func(*node) []int32, has func(*job) bool) (cut map[pair]bool, warnings []string) {
	var roots []int32
	for _, j := range all {
		if has(j) {
			roots = append(roots, j.id)
		}
	}
	if len(roots) < 2 {
		return nil, nil
	}
	in := func(id int32) bool { return q.at[id] != nil && has(q.at[id]) }
	for _, cycle := range q.g.cycles(roots, next, in, newColours(len(q.g.nodes))) {
		if cut == nil {
			cut = map[pair]bool{}
		}
		last, first := len(cycle)-1, cycle[0]
		cut[pair{cycle[last], first}] = true
		waiting, awaited := q.g.nodes[cycle[last]].name, q.g.nodes[first].name
		warnings = append(warnings, fmt.Sprintf("%s; %q does not wait for %q", q.g.cycleText(cycle), waiting, awaited))
	}
	return cut, warnings
}

func (q *jobs) linkStart(j *job, cut map[pair]bool) {
	if !j.startPending() {
		return
	}
	n := &q.g.nodes[j.id]
	for _, id := range n.after {
		if k := q.at[id]; k != nil && k.hasStart() && !cut[pair{j.id, id}] {
			k.start.precede(&j.start)
		}
	}
	for _, list := range [...][]int32{n.after, n.before, n.conflicts} {
		for _, id := range list {
			if k := q.at[id]; k != nil && k.hasStop() {
				k.stop.precede(&j.start)
			}
		}
	}
	if j.hasStop() {
		j.stop.precede(&j.start)
	}
}

func (q *jobs) linkStop(j *job, cut map[pair]bool) {
	if !j.hasStop() || j.running != "" {
		return
	}
	for _, id := range q.g.nodes[j.id].before {
		if k := q.at[id]; k != nil && k.hasStop() && !cut[pair{j.id, id}] {
			k.stop.precede(&j.stop)
		}
	}
}

func (s *step) precede(later *step) {
	s.blocks = append(s.blocks, later)
	later.waits++
}

// offer puts a job on the ready list if nothing holds it back.
func (q *jobs) offer(j *job) {
	if q.byUnit[j.Unit] == j && j.running == "" && j.step().waits == 0 {
		q.ready = append(q.ready, j)
	}
}

// release lets those go on that waited for s.
func (q *jobs) release(s *step) {
	for _, later := range s.blocks {
		later.waits--
		if later.waits == 0 && later.job.step() == later {
			q.offer(later.job)
		}
	}
	s.blocks = s.blocks[:0]
}

// dispatch hands out all work that may begin now, in the order of names, and counts it as running.
func (q *jobs) dispatch() []order {
	var orders []order
	for _, j := range q.ready {
		if q.byUnit[j.Unit] != j || j.running != "" || j.step().waits > 0 {
			continue
		}
		j.running = j.verb()
		orders = append(orders, order{j, j.running})
	}
	q.ready = q.ready[:0]
	slices.SortFunc(orders, func(a, b order) int { return strings.Compare(a.Job.Unit, b.Job.Unit) })
	return orders
}

// stopsBehind tells of each job that stops how many other stops have to follow, one after the other.
func (q *jobs) stopsBehind() map[*job]int {
	longest := make(map[*job]int, len(q.byUnit))
	var count func(j *job) int
	count = func(j *job) int {
		n, known := longest[j]
		if known {
			return n
		}
		for _, s := range j.stop.blocks {
			if s == &s.job.stop {
				n = max(n, 1+count(s.job))
			}
		}
		longest[j] = n
		return n
	}
	for _, j := range q.byUnit {
		if j.hasStop() {
			count(j)
		}
	}
	return longest
}

// verb is what is to be done for the present stage. A restart is whole if only its own start waits for its stop and for nothing else.
func (j *job) verb() jobKind {
	switch {
	case j.Kind != restartJob:
		return j.Kind
	case j.stage == startStage:
		return startJob
	case len(j.stop.blocks) == 1 && j.start.waits == 1:
		return restartJob
	}
	return stopJob
}

// finished reports that an order was carried out; result is jobDone, jobSkipped, jobFailed or jobCanceled. A report of an order that
// is no longer wanted is ignored. It returns all jobs that end by it, the reported one first.
func (q *jobs) finished(unit, id string, verb jobKind, result jobResult, text string) []ended {
	j := q.byUnit[unit]
	if j == nil || j.ID != id || j.running == "" || j.running != verb {
		return nil
	}
	j.running = ""
	good := result == jobDone || result == jobSkipped
	if good && verb == stopJob && j.Kind == restartJob {
		q.stopped(j)
		return q.take()
	}
	q.end(j, result, "", text)
	if !good {
		q.cascade(j, verb, j.Unit, text)
	}
	return q.take()
}

// stopped moves a restart from its first stage to its second.
func (q *jobs) stopped(j *job) {
	j.stage = startStage
	q.release(&j.stop)
	if j.doomed != "" {
		q.end(j, jobDependency, j.doomed, fmt.Sprintf("%q failed", j.doomed))
		q.cascade(j, startJob, j.doomed, "")
	}
}

// end takes a job out of the queue. A reload that waits for it comes next, if the unit is now up.
func (q *jobs) end(j *job, result jobResult, culprit, text string) {
	delete(q.byUnit, j.Unit)
	q.at[j.id] = nil
	q.out = append(q.out, ended{j, result, culprit, text})
	q.release(&j.stop)
	q.release(&j.start)
	next := j.then
	switch {
	case next == nil:
	case result == jobDone || result == jobSkipped:
		next.id = j.id
		q.byUnit[next.Unit], q.at[next.id] = next, next
		q.relink()
	case result == jobCanceled:
		q.out = append(q.out, ended{next, jobCanceled, "", text})
	default:
		q.out = append(q.out, ended{next, jobDependency, j.Unit, fmt.Sprintf("%q failed", j.Unit)})
	}
}

// abandon fails a job that could not be begun.
func (q *jobs) abandon(unit, text string) []ended {
	j := q.byUnit[unit]
	if j == nil {
		return nil
	}
	q.end(j, jobFailed, "", text)
	q.cascade(j, startJob, unit, text)
	return q.take()
}

// waitedFor counts the jobs that token waits for, those included that come after the one that their unit has now.
func (q *jobs) waitedFor(token any) (n int) {
	for _, j := range q.byUnit {
		for ; j != nil; j = j.then {
			if slices.ContainsFunc(j.Waiters, func(w waiter) bool { return w.Token == token }) {
				n++
			}
		}
	}
	return n
}

func (q *jobs) take() []ended {
	out := q.out
	q.out = nil
	return out
}

// cascade ends the waiting starts that a failure makes pointless: of units that require the failed one, through any number of others, and
// of units in conflict with one that could not be stopped. Wants and plain order do not matter here. verb is what failed for j.
func (q *jobs) cascade(j *job, verb jobKind, culprit, text string) {
	why := fmt.Sprintf("%q failed", culprit)
	if text != "" {
		why += ": " + text
	}
	var failed []int32
	if verb == stopJob {
		for _, id := range q.g.nodes[j.id].conflicts {
			failed = q.failStart(failed, id, culprit, why)
		}
	}
	if j.Kind == startJob || j.Kind == restartJob {
		failed = append(failed, j.id)
	}
	for len(failed) > 0 {
		id := failed[0]
		failed = failed[1:]
		for _, by := range q.g.nodes[id].requiredBy {
			failed = q.failStart(failed, by, culprit, why)
		}
	}
}

// failStart ends one waiting start because of culprit; a restart first ends its stop. It appends id to failed if it did so now.
func (q *jobs) failStart(failed []int32, id int32, culprit, why string) []int32 {
	j := q.at[id]
	if j == nil || !j.startPending() || j.Kind == reloadJob {
		return failed
	}
	if j.stage == stopStage {
		j.doomed = culprit
		return failed
	}
	q.end(j, jobDependency, culprit, why)
	return append(failed, id)
}

// ---- installing

// demand is what one command asks for. Each name is a transaction of its own, installed whole or not at all; the order holds across them.
type demand struct {
	Kind   jobKind
	Names  []string
	By     string                               // byUser, byDependency, byEnabled, byKill
	For    string                               // byDependency: the unit that the names go with
	Origin func(unit string) (by, other string) // in place of By and For where each name has its own; nil = none has
	Waiter any                                  // put on all jobs that come of it; nil = nobody waits
	NewID  func(unit string) string
}

// answer tells what became of one name.
type answer struct {
	Name     string
	Err      error // nothing was installed
	Skipped  bool  // nothing to do for the unit itself; others may have jobs
	Warnings []string
}

// submission tells what became of a demand.
type submission struct {
	Answers  []answer // one for each name, in their order
	Ended    []ended  // jobs that had to give way
	Warnings []string // cycles among stops, broken
}

// submit plans the demand and installs what can be done.
func (q *jobs) submit(d demand) submission {
	b := q.newBatch(d)
	var s submission
	for _, name := range d.Names {
		a := answer{Name: name}
		t, err := b.plan(q.g.ids[name])
		if err != nil {
			a.Err = fmt.Errorf("cannot %s %q: %v", d.Kind, name, err)
		} else {
			a.Skipped, a.Warnings = t.entries[0].idle, t.warnings
			t.install()
		}
		t.leave()
		s.Answers = append(s.Answers, a)
	}
	q.renew(d.NewID)
	warnings := q.relink()
	if d.Kind == stopJob || d.Kind == restartJob {
		s.Warnings = warnings
	}
	s.Ended = q.take()
	return s
}

// renew makes a whole restart of each start whose unit is not down, or on its way up, while what it requires is about to be stopped for a
// restart: the stop that would have ended it was replaced, or it began only a moment ago.
func (q *jobs) renew(newID func(unit string) string) {
	restarts := slices.DeleteFunc(q.list(), func(j *job) bool { return j.Kind != restartJob || j.stage != stopStage })
	for i := 0; i < len(restarts); i++ {
		for _, by := range q.g.nodes[restarts[i].id].requiredBy {
			k := q.at[by]
			if k != nil && k.stage == startStage && (k.Kind == startJob || k.Kind == restartJob) && (k.running != "" || !q.isDown(k.Unit)) {
				q.again(k, restartJob, stopStage, newID)
				restarts = append(restarts, k)
			}
		}
	}
}

// put installs or merges one entry of a transaction, by the table of systemd's job.c: start and reload go up in restart, a stop and
// anything else exclude each other and the later wins. What already runs is left alone if it covers the new wish, else done again.
func (q *jobs) put(e entry, t *transaction) {
	j := q.at[e.id]
	if j != nil && (j.Kind == stopJob) != (e.kind == stopJob) {
		q.end(j, jobCanceled, "", t.replaces(e))
		j = nil
	}
	switch {
	case j == nil:
		j = q.add(e, t)
	case e.kind == restartJob:
		q.mergeRestart(j, t)
	case e.kind == reloadJob:
		j = q.mergeReload(j, e, t)
	case e.kind == startJob && j.Kind == reloadJob: // the unit is not up: there is nothing to reload
		q.again(j, startJob, startStage, t.b.d.NewID)
	}
	if by, other := t.by(e); by != byDependency {
		j.By, j.For = by, other
	}
	j.batch, j.doomed = q.batch, ""
	j.hear(waiter{t.b.d.Waiter, e.id == t.anchor})
}

func (q *jobs) add(e entry, t *transaction) *job {
	j := q.newJob(e, t)
	q.byUnit[j.Unit], q.at[j.id] = j, j
	return j
}

func (q *jobs) newJob(e entry, t *transaction) *job {
	name := q.g.nodes[e.id].name
	j := &job{ID: t.b.d.NewID(name), Unit: name, Kind: e.kind, id: e.id, stage: startStage}
	j.By, j.For = t.by(e)
	if e.kind == stopJob || e.kind == restartJob && !q.isDown(name) {
		j.stage = stopStage
	}
	return j
}

func (q *jobs) mergeRestart(j *job, t *transaction) {
	switch {
	case j.Kind == restartJob && j.startPending(): // the start is still to come
	case j.running == "" && q.isDown(j.Unit):
		q.again(j, restartJob, startStage, t.b.d.NewID)
	default:
		q.again(j, restartJob, stopStage, t.b.d.NewID)
	}
}

// mergeReload returns the job that does the reload: one whose start is still to come, or a second one after what runs now, since the
// service may have read its files already.
func (q *jobs) mergeReload(j *job, e entry, t *transaction) *job {
	if j.startPending() {
		return j
	}
	if j.then == nil {
		j.then = q.newJob(e, t)
	}
	return j.then
}

// reloadAfter puts a reload behind the job that a unit has, as mergeReload does when that runs already. false: it has none.
func (q *jobs) reloadAfter(unit, by, id string) bool {
	j := q.byUnit[unit]
	if j != nil && j.then == nil {
		j.then = &job{ID: id, Unit: unit, Kind: reloadJob, By: by, stage: startStage}
	}
	return j != nil
}

// again turns j into another kind. If something runs for it, that order is void and gets a new ID as its successor.
func (q *jobs) again(j *job, kind jobKind, stage jobStage, newID func(unit string) string) {
	if j.running != "" {
		j.ID, j.running = newID(j.Unit), ""
	}
	j.Kind, j.stage = kind, stage
	if j.then != nil {
		for _, w := range j.then.Waiters {
			j.hear(w)
		}
		j.then = nil
	}
}

// ---- transactions

// batch is what the transactions of one demand share. Nothing changes outside while it is worked on, so what one of them has closed over
// need not be walked again by the next: 1,000 names of one chain cost 1,000 steps.
type batch struct {
	q        *jobs
	d        demand
	at       []int32 // by id: index + 1 in the entries of the present transaction
	closed   map[jobKind][]bool
	faults   []int32 // by id; nil = all units can be started
	searched *colours
}

func (q *jobs) newBatch(d demand) *batch {
	q.batch++
	for _, name := range d.Names {
		q.g.node(name)
	}
	n := len(q.g.nodes)
	q.at = append(q.at, make([]*job, n-len(q.at))...)
	b := &batch{q: q, d: d, at: make([]int32, n), searched: newColours(n)}
	b.closed = map[jobKind][]bool{startJob: make([]bool, n), stopJob: make([]bool, n), restartJob: make([]bool, n), reloadJob: make([]bool, n)}
	b.faults = b.findFaults(nil)
	return b
}

// noFault marks a unit that can be started.
const noFault = -1

// findFaults gives for each unit that cannot be started the requirement that is at fault: itself, or the next on the way to the culprit.
// A unit that is up is not to be started, so its file does not matter.
func (b *batch) findFaults(banned map[int32]string) []int32 {
	g := b.q.g
	var queue []int32
	for i := range g.nodes {
		n := &g.nodes[i]
		_, out := banned[int32(i)]
		if out || (n.unit == nil || n.broken != nil) && !b.q.isUp(n.name) {
			queue = append(queue, int32(i))
		}
	}
	if len(queue) == 0 {
		return nil
	}
	faults := slices.Repeat([]int32{noFault}, len(g.nodes))
	for _, id := range queue {
		faults[id] = id
	}
	for ; len(queue) > 0; queue = queue[1:] {
		for _, by := range g.nodes[queue[0]].requiredBy {
			if faults[by] == noFault {
				faults[by] = queue[0]
				queue = append(queue, by)
			}
		}
	}
	return faults
}

// transaction is the work that follows from one name, its anchor.
type transaction struct {
	b        *batch
	anchor   int32
	entries  []entry // the anchor first
	soft     []wish  // what to pull in after all that is needed
	warnings []string
	faults   []int32
	banned   map[int32]string // units that nobody needs and that would make it fail, and why
}

// entry is one unit in a transaction.
type entry struct {
	id     int32
	kind   jobKind
	needed bool // the anchor is nothing without it
	idle   bool // the unit is as it should be: no job
}

// wish is a start that from wants of to, or a restart that from hands on to to.
type wish struct {
	from, to int32
	kind     jobKind
}

// errAgain: a unit was banned, plan once more.
var errAgain = errors.New("internal error: planned again")

// plan builds the transaction of one anchor. If it fails because of units that are merely wanted, they are left out.
func (b *batch) plan(anchor int32) (*transaction, error) {
	t := &transaction{b: b, anchor: anchor, faults: b.faults}
	for {
		err := t.build()
		if err != errAgain {
			return t, err
		}
		t.leave()
		t.entries, t.soft, t.warnings = nil, nil, nil
		t.faults = b.findFaults(t.banned)
	}
}

func (t *transaction) build() error {
	switch t.b.d.Kind {
	case stopJob:
		t.stop(t.anchor)
		return nil
	case reloadJob:
		if err := t.reload(); err != nil {
			return err
		}
		return t.checkOrder()
	}
	if err := t.usable(); err != nil {
		return err
	}
	t.pull(t.anchor, t.b.d.Kind, true)
	t.pullSoft()
	if err := t.stopConflicts(); err != nil {
		return err
	}
	return t.checkOrder()
}

// leave clears what the transaction wrote into the batch.
func (t *transaction) leave() {
	for _, e := range t.entries {
		t.b.at[e.id] = 0
	}
}

// install puts all entries into the queue.
func (t *transaction) install() {
	for _, e := range t.entries {
		if !e.idle {
			t.b.q.put(e, t)
		}
		t.b.closed[e.kind][e.id] = true
		if e.kind == restartJob {
			t.b.closed[startJob][e.id] = true
		}
	}
}

// by tells who is behind an entry; of a dependency also the unit that it goes with.
func (t *transaction) by(e entry) (by, other string) {
	switch d := t.b.d; {
	case e.id != t.anchor:
		return byDependency, t.name(t.anchor)
	case d.Origin != nil:
		return d.Origin(t.name(e.id))
	default:
		return d.By, d.For
	}
}

// replaces tells the owner of a job why it is gone.
func (t *transaction) replaces(e entry) string {
	if e.id == t.anchor {
		return fmt.Sprintf("replaced by %s asked by %s", e.kind, t.b.d.By)
	}
	return fmt.Sprintf("replaced by %s that goes with %s of %q asked by %s", e.kind, t.b.d.Kind, t.name(t.anchor), t.b.d.By)
}

func (t *transaction) name(id int32) string { return t.b.q.g.nodes[id].name }

// entry returns the entry of a unit, or nil.
func (t *transaction) entry(id int32) *entry {
	if i := t.b.at[id]; i > 0 {
		return &t.entries[i-1]
	}
	return nil
}

// add makes an entry. It reports whether the relations of the unit are still to be followed.
func (t *transaction) add(id int32, kind jobKind, needed bool) bool {
	if e := t.entry(id); e != nil {
		if e.kind == kind || e.kind == restartJob {
			return false
		}
		e.kind, e.idle = kind, false
		return true
	}
	closed := t.b.closed[kind][id]
	if closed && id != t.anchor {
		return false
	}
	t.entries = append(t.entries, entry{id, kind, needed, t.idle(id, kind)})
	t.b.at[id] = int32(len(t.entries))
	return !closed
}

// idle reports whether a unit already is as a job of that kind would make it, and stays so.
func (t *transaction) idle(id int32, kind jobKind) bool {
	q, j := t.b.q, t.b.q.at[id]
	switch kind {
	case startJob:
		return (j == nil || j.Kind == reloadJob) && q.isUp(t.name(id))
	case stopJob:
		return j == nil && q.isDown(t.name(id))
	}
	return false
}

// pull adds a unit and all that it requires; what is wanted on the way is remembered, as are those that a restart takes along.
func (t *transaction) pull(root int32, kind jobKind, needed bool) {
	if !t.add(root, kind, needed) {
		return
	}
	g := t.b.q.g
	for todo := []int32{root}; len(todo) > 0; {
		id := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, other := range g.nodes[id].requires {
			if t.add(other, startJob, needed) {
				todo = append(todo, other)
			}
		}
		for _, other := range g.nodes[id].wants {
			t.soft = append(t.soft, wish{id, other, startJob})
		}
	}
	if kind == restartJob {
		for _, other := range g.nodes[root].stopsWith {
			t.soft = append(t.soft, wish{root, other, restartJob})
		}
	}
}

// pullSoft fulfils the wishes as far as it can; what cannot be had is left out with a warning.
func (t *transaction) pullSoft() {
	for i := 0; i < len(t.soft); i++ {
		w := t.soft[i]
		e := t.entry(w.to)
		switch {
		case e != nil && (e.kind == w.kind || e.kind == restartJob):
		case w.kind == restartJob && !t.restartable(w.to):
		case t.faulty(w.to, w.kind):
			t.warnings = append(t.warnings, t.excuse(w))
		default:
			t.pull(w.to, w.kind, false)
		}
	}
}

// restartable reports whether a restart is handed on to a unit: it runs, and nobody wants it stopped.
func (t *transaction) restartable(id int32) bool {
	j := t.b.q.at[id]
	return !t.b.q.isDown(t.name(id)) && (j == nil || j.Kind != stopJob)
}

// faulty reports whether a unit cannot be started; one that is up needs no file for a start, but for a restart.
func (t *transaction) faulty(id int32, kind jobKind) bool {
	if t.faults != nil && t.faults[id] != noFault {
		return true
	}
	n := &t.b.q.g.nodes[id]
	return kind == restartJob && (n.unit == nil || n.broken != nil)
}

// usable tells why the anchor of a start or restart cannot be had. Its file is read now, so it must be good even if the unit is up.
func (t *transaction) usable() error {
	n := &t.b.q.g.nodes[t.anchor]
	switch {
	case n.broken != nil:
		return n.broken
	case n.unit == nil:
		return errors.New("no such unit")
	case t.faulty(t.anchor, t.b.d.Kind):
		return errors.New("it " + t.why(t.anchor))
	}
	return nil
}

// longChain is how many links of a chain of requirements are told.
const longChain = 12

// why tells why a unit cannot be started, as the end of a sentence: `requires "a", which requires "b", which does not exist`.
func (t *transaction) why(id int32) string {
	g := t.b.q.g
	var links []string
	for t.faults != nil && t.faults[id] != noFault && t.faults[id] != id {
		links = append(links, g.link(id, t.faults[id]))
		id = t.faults[id]
	}
	if cut := len(links) - longChain; cut > 0 {
		links = slices.Replace(links, longChain/2, longChain/2+cut, fmt.Sprintf("requires (%d units)", cut))
	}
	reason := g.reason(id)
	if left := t.banned[id]; left != "" {
		reason = "is left out: " + left
	}
	return strings.Join(append(links, reason), ", which ")
}

// excuse tells why a wish is not fulfilled.
func (t *transaction) excuse(w wish) string {
	if w.kind == restartJob {
		return fmt.Sprintf("%q is not restarted with %q: it %s", t.name(w.to), t.name(w.from), t.why(w.to))
	}
	return fmt.Sprintf("%q wants %q, which %s", t.name(w.from), t.name(w.to), t.why(w.to))
}

// reload concerns the one unit alone.
func (t *transaction) reload() error {
	q, n := t.b.q, &t.b.q.g.nodes[t.anchor]
	j := q.at[t.anchor]
	switch {
	case n.broken != nil:
		return n.broken
	case n.unit == nil:
		return errors.New("no such unit")
	case len(n.unit.ExecReload) == 0:
		return errors.New("it has no ExecReload")
	case j != nil && j.Kind == stopJob:
		return errors.New("it is being stopped")
	case j == nil && !q.isUp(n.name):
		return errors.New("it is not active")
	}
	t.add(t.anchor, reloadJob, true)
	return nil
}

// noClash: a stop hits no unit that is to be started.
const noClash = -1

// stop adds the stop of a unit and of all that cannot be without it. It returns a unit that must be started all the same, or noClash.
func (t *transaction) stop(root int32) int32 {
	if t.starts(root) {
		return root
	}
	if !t.add(root, stopJob, true) {
		return noClash
	}
	for todo := []int32{root}; len(todo) > 0; {
		id := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, other := range t.b.q.g.nodes[id].stopsWith {
			if t.starts(other) {
				return other
			}
			if t.add(other, stopJob, true) {
				todo = append(todo, other)
			}
		}
	}
	return noClash
}

// starts reports whether this transaction, or an earlier one of the same demand, starts the unit or needs it up.
func (t *transaction) starts(id int32) bool {
	e := t.entry(id)
	return e != nil && e.kind != stopJob || t.b.closed[startJob][id]
}

// stopConflicts adds stops for all that conflicts with what is started, as far as it is up or about to be.
func (t *transaction) stopConflicts() error {
	q := t.b.q
	for i := 0; i < len(t.entries); i++ {
		e := t.entries[i]
		if e.kind == stopJob {
			continue
		}
		for _, other := range q.g.nodes[e.id].conflicts {
			if j := q.at[other]; !t.starts(other) && q.isDown(t.name(other)) && (j == nil || j.Kind == stopJob) {
				continue
			}
			if hit := t.stop(other); hit != noClash {
				return t.clash(e, other, hit)
			}
		}
	}
	return nil
}

// clash settles that the start of e stops other and thereby hit, which is to be started too: what nobody needs gives way.
func (t *transaction) clash(e entry, other, hit int32) error {
	first, second, third := t.name(e.id), t.name(other), t.name(hit)
	h := t.entry(hit)
	switch {
	case h != nil && !h.needed:
		return t.ban(hit, fmt.Sprintf("it cannot be up together with %q", first))
	case !e.needed:
		return t.ban(e.id, fmt.Sprintf("it cannot be up together with %q", third))
	case hit != other:
		return fmt.Errorf("%q conflicts with %q, and %q, which is to be started too, stops with that one", first, second, third)
	case h == nil:
		return fmt.Errorf("%q conflicts with %q, which the same command starts", first, second)
	case e.id == t.anchor:
		return fmt.Errorf("it conflicts with %q, which it needs", second)
	}
	return fmt.Errorf("it needs both %q and %q, which conflict", first, second)
}

// ban leaves a unit out of the next attempt.
func (t *transaction) ban(id int32, why string) error {
	if t.banned == nil {
		t.banned = map[int32]string{}
	}
	t.banned[id] = why
	return errAgain
}

// checkOrder refuses a cycle among the starts of this transaction and of all that waits in the queue. A cycle through a unit that nobody
// needs costs only that unit.
func (t *transaction) checkOrder() error {
	b, g := t.b, t.b.q.g
	var roots []int32
	for _, e := range t.entries {
		if j := b.q.at[e.id]; t.willStart(e.id) && (j == nil || !j.startPending()) {
			roots = append(roots, e.id)
		}
	}
	if t.awaited(roots) {
		b.searched.forget()
	}
	var err error
	for _, cycle := range g.cycles(roots, nodeAfter, t.willStart, b.searched) {
		if again := t.spare(cycle); again == nil {
			err = errors.New(g.cycleText(cycle))
			break
		}
		err = errAgain
	}
	if err != nil {
		b.searched.forget()
	}
	return err
}

// willStart reports whether the unit has a start that is yet to begin, once the transaction is installed.
func (t *transaction) willStart(id int32) bool {
	j := t.b.q.at[id]
	pending := j != nil && (j.startPending() || j.then != nil)
	e := t.entry(id)
	switch {
	case e == nil || e.idle:
		return pending
	case e.kind == startJob && j != nil && j.Kind != stopJob && j.Kind != reloadJob:
		return pending
	}
	return e.kind != stopJob
}

// awaited reports whether a job that is in the queue already will wait for one of the new starts. If none does, what was searched for
// earlier transactions of the demand is still free of cycles.
func (t *transaction) awaited(roots []int32) bool {
	for _, id := range roots {
		for _, later := range t.b.q.g.nodes[id].before {
			if t.b.q.at[later] != nil && t.willStart(later) {
				return true
			}
		}
	}
	return false
}

// spare bans the last unit of a cycle that nobody needs; nil = there is none.
func (t *transaction) spare(cycle []int32) error {
	for _, id := range cycle {
		if t.entry(id) != nil && t.banned[id] != "" { // by another cycle of this attempt
			return errAgain
		}
	}
	for _, id := range slices.Backward(cycle) {
		if e := t.entry(id); e != nil && !e.needed && !e.idle {
			return t.ban(id, t.b.q.g.cycleText(cycle))
		}
	}
	return nil
}
