// Role: what planning costs.
// Runs in: go test -bench.
// Owns: nothing.
// Uses: deps, unit.

package main

import (
	"fmt"
	"testing"
)

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
