// Role: what a kill campaign has come to: a line for the log, and a report to which the parts of a long run are added.
// Runs in: go test.
// Owns: the file of -report.
// Uses: campaign, truth, sys.

package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var campaignReport = flag.String("report", "", "file to which TestKillCampaign writes what it has come to, and adds it where there is one; "+
	"a re-attach p99 of 500 ms or more, or a state that is wrong for over 1 s, is a failure then")

const attachLimit = 500 * time.Millisecond // for 99 of 100 re-attaches, from the start of the next daemon

// campaignFigures are those of one part, or the sum of several. Fields are those of the report's raw figures.
type campaignFigures struct {
	Commit   string `json:"commit"`
	Kernel   string `json:"kernel"`
	CPUs     int    `json:"cpus"`
	Began    string `json:"began"`
	Seed     uint64 `json:"seed"`
	Services int    `json:"services"`

	Rounds     int `json:"rounds"`
	Daemons    int `json:"daemons_killed"`
	Shims      int `json:"shims_killed"`
	Stages     int `json:"stages_killed"`
	Helpers    int `json:"helpers_killed"`
	Fired      int `json:"struck_at_failpoints"`
	Failpoints int `json:"failpoints"` // different ones
	Frozen     int `json:"stopped_for_a_while"`
	Heals      int `json:"healed_by_shims"`
	Commands   int `json:"commands"`
	Reloads    int `json:"reloads"`
	Upgrades   int `json:"upgrades"`
	Again      int `json:"commands_again"`
	Lines      int `json:"lines"`
	Unseen     int `json:"ends_unseen"`
	Excused    int `json:"lines_of_ends_unseen"`
	Looks      int `json:"looks_at_states"`
	Faults     int `json:"faults"`
	Seconds    int `json:"seconds"`
	WrongMS    int `json:"longest_wrong_state_ms"`

	// Milliseconds and how often.
	AttachDaemon map[int]int `json:"reattach_after_daemon_ms"`
	AttachShim   map[int]int `json:"reattach_after_shim_ms"`
}

func (c *campaign) figures() campaignFigures {
	f := campaignFigures{
		Commit: commitOfTree(), Kernel: kernelRelease(), CPUs: runtime.NumCPU(), Began: c.began.UTC().Format(time.RFC3339),
		Seed: c.seed, Services: len(c.subjects), Rounds: c.strikes, Daemons: c.daemons, Shims: c.shims, Stages: c.stages, Helpers: c.helpers,
		Fired: c.fired, Failpoints: len(c.hit), Frozen: c.frozen, Heals: c.heals, Commands: c.commands, Reloads: c.reloads, Upgrades: c.upgrades, Again: c.again,
		Lines: c.lines, Excused: c.excused, Looks: c.truth.looks, Faults: c.faults, Seconds: int(time.Since(c.began).Seconds()),
		WrongMS: int(c.truth.longest.Milliseconds()), AttachDaemon: histogram(c.attachDaemon), AttachShim: histogram(c.attachShim),
	}
	for _, s := range c.subjects {
		f.Unseen += len(s.unseen())
	}
	return f
}

func histogram(list []time.Duration) map[int]int {
	h := map[int]int{}
	for _, d := range list {
		h[int(d.Milliseconds())]++
	}
	return h
}

// percentile is that of a histogram, 100 = the greatest.
func percentile(h map[int]int, percent int) int {
	n := 0
	for _, count := range h {
		n += count
	}
	rank := max(1, (n*percent+99)/100)
	for _, ms := range slices.Sorted(maps.Keys(h)) {
		if rank -= h[ms]; rank <= 0 {
			return ms
		}
	}
	return 0
}

func commitOfTree() string {
	out, err := exec.Command("git", "rev-parse", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	commit := strings.TrimSpace(string(out))
	if out, err := exec.Command("git", "status", "--porcelain", "--untracked-files=no", "*.go").Output(); err != nil || len(out) > 0 {
		commit += " with changes"
	}
	return commit
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:]) + " " + unix.ByteSliceToString(u.Machine[:])
}

// plus adds another part.
func (f campaignFigures) plus(g campaignFigures) campaignFigures {
	f.Rounds, f.Daemons, f.Shims, f.Stages, f.Helpers = f.Rounds+g.Rounds, f.Daemons+g.Daemons, f.Shims+g.Shims, f.Stages+g.Stages, f.Helpers+g.Helpers
	f.Fired, f.Frozen, f.Heals, f.Commands, f.Reloads = f.Fired+g.Fired, f.Frozen+g.Frozen, f.Heals+g.Heals, f.Commands+g.Commands, f.Reloads+g.Reloads
	f.Again, f.Lines, f.Unseen, f.Excused, f.Looks = f.Again+g.Again, f.Lines+g.Lines, f.Unseen+g.Unseen, f.Excused+g.Excused, f.Looks+g.Looks
	f.Faults, f.Seconds, f.WrongMS = f.Faults+g.Faults, f.Seconds+g.Seconds, max(f.WrongMS, g.WrongMS)
	f.Failpoints, f.Upgrades = max(f.Failpoints, g.Failpoints), f.Upgrades+g.Upgrades
	f.AttachDaemon, f.AttachShim = sumOf(f.AttachDaemon, g.AttachDaemon), sumOf(f.AttachShim, g.AttachShim)
	return f
}

func sumOf(a, b map[int]int) map[int]int {
	sum := maps.Clone(a)
	if sum == nil {
		sum = map[int]int{}
	}
	for ms, n := range b {
		sum[ms] += n
	}
	return sum
}

func (f campaignFigures) kills() int { return f.Daemons + f.Shims + f.Stages + f.Helpers + f.Fired }

func (f campaignFigures) summary() string {
	return fmt.Sprintf("seed %d: %d rounds with %d kills (daemon %d, shim %d, stage %d, helper %d; at %d failpoints %d), stopped for a while %d, "+
		"over %d services; %d commands (%d reloads; %d again), %d upgrades, daemon healed by shims %d times; %d lines checked, "+
		"%d ends that nobody was left to see, with %d lines; re-attached %d ms p50, %d ms p99 from the start of the next daemon, "+
		"%d ms p99 after the death of shims alone; states wrong for at most %d ms; %d faults; %d s",
		f.Seed, f.Rounds, f.kills(), f.Daemons, f.Shims, f.Stages, f.Helpers, f.Failpoints, f.Fired, f.Frozen,
		f.Services, f.Commands, f.Reloads, f.Again, f.Upgrades, f.Heals, f.Lines,
		f.Unseen, f.Excused, percentile(f.AttachDaemon, 50), percentile(f.AttachDaemon, 99),
		percentile(f.AttachShim, 99), f.WrongMS, f.Faults, f.Seconds)
}

const (
	rawBegins = "```jsonl\n"
	rawEnds   = "```\n"
)

// report adds this part to the report. An error also if the sum is not good enough.
func (f campaignFigures) report(file string) error {
	text, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parts, err := readReport(string(text))
	if err != nil {
		return fmt.Errorf("%s: %v", file, err)
	}
	parts = append(parts, f)
	if err := os.WriteFile(file+".new", []byte(reportText(parts)), 0o644); err != nil {
		return err
	}
	if err := os.Rename(file+".new", file); err != nil {
		return err
	}
	if p99 := time.Duration(percentile(sumOfParts(parts).AttachDaemon, 99)) * time.Millisecond; p99 >= attachLimit {
		return fmt.Errorf("re-attach p99 is %v from the start of the next daemon, want less than %v", p99, attachLimit)
	}
	return nil
}

func sumOfParts(parts []campaignFigures) (sum campaignFigures) {
	for _, p := range parts {
		sum = sum.plus(p)
	}
	return sum
}

// readReport finds the parts that a report tells of.
func readReport(text string) (parts []campaignFigures, err error) {
	if text == "" {
		return nil, nil
	}
	_, raw, ok := strings.Cut(text, rawBegins)
	raw, _, end := strings.Cut(raw, rawEnds)
	if !ok || !end {
		return nil, errors.New("is no report of a kill campaign")
	}
	for line := range strings.Lines(raw) {
		var f campaignFigures
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			return nil, err
		}
		parts = append(parts, f)
	}
	return parts, nil
}

func reportText(parts []campaignFigures) string {
	sum := sumOfParts(parts)
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	first := parts[0]
	p("# Kill campaign\n\n")
	p("Written by the test itself; [reliability.md](reliability.md) tells what it does. Each part can be repeated with its seed and the last part's number of rounds:\n\n")
	p("    go test -run '^TestKillCampaign$' . -v -timeout 0 -kills %d -seed %d -services %d -report FILE\n\n", sum.Rounds, first.Seed, first.Services)
	p("| | |\n|---|---|\n")
	for _, row := range []struct {
		what  string
		value any
	}{
		{"commit", strings.Join(distinct(parts, func(f campaignFigures) string { return "`" + f.Commit + "`" }), ", ")},
		{"kernel", strings.Join(distinct(parts, func(f campaignFigures) string { return fmt.Sprintf("%s, %d CPUs", f.Kernel, f.CPUs) }), ", ")},
		{"begun", first.Began},
		{"seeds", fmt.Sprintf("%d to %d, %d parts", first.Seed, parts[len(parts)-1].Seed, len(parts))},
		{"services", strings.Join(distinct(parts, func(f campaignFigures) string { return fmt.Sprint(f.Services) }), ", ")},
		{"rounds, each with at least one SIGKILL", sum.Rounds},
		{"SIGKILLs by us", fmt.Sprintf("%d: daemon %d, shims %d, stages %d, detach helpers %d, at failpoints %d", sum.kills(), sum.Daemons, sum.Shims, sum.Stages, sum.Helpers, sum.Fired)},
		{"SIGSTOPs", sum.Frozen},
		{"different failpoints in one part, at most", sum.Failpoints},
		{"commands", fmt.Sprintf("%d, of which %d reloads; %d attempts were broken by a kill and repeated", sum.Commands, sum.Reloads, sum.Again)},
		{"upgrades in place, under the kills", sum.Upgrades},
		{"daemons that shims started", sum.Heals},
		{"**faults**: services that ran twice, were lost or restarted, lost or repeated lines, foreign signals, processes left, wishes lost", fmt.Sprintf("**%d**", sum.Faults)},
		{"lines checked", sum.Lines},
		{"ends of services at a time when daemon and shim may both have been dead, counted apart", fmt.Sprintf("%d, with which %d unread lines went", sum.Unseen, sum.Excused)},
		{"re-attach from the start of the next daemon, ms", attachText(sum.AttachDaemon)},
		{"re-attach after the death of shims alone, ms", attachText(sum.AttachShim)},
		{"longest disagreement of `list` with the process table", fmt.Sprintf("%d ms, in %d looks", sum.WrongMS, sum.Looks)},
		{"seconds", sum.Seconds},
	} {
		p("| %s | %v |\n", row.what, row.value)
	}
	p("\nRe-attached means: a client was told, and the process table agrees, that each service which shall run has its process and one live shim; the\ntime of the client that asks is included.\n")
	p("\n## Raw figures\n\nOne line for each part; `ms: how often` for times.\n\n%s", rawBegins)
	for _, f := range parts {
		line, _ := json.Marshal(f)
		p("%s\n", line)
	}
	p("%s", rawEnds)
	return b.String()
}

func attachText(h map[int]int) string {
	n := 0
	for _, count := range h {
		n += count
	}
	return fmt.Sprintf("p50 %d, p90 %d, p99 %d, most %d, of %d", percentile(h, 50), percentile(h, 90), percentile(h, 99), percentile(h, 100), n)
}

// distinct are the different texts of the parts, in order.
func distinct(parts []campaignFigures, text func(campaignFigures) string) (list []string) {
	for _, f := range parts {
		if s := text(f); !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return list
}

// TestReport: parts add up, and a report that was read and written again is the same.
func TestReport(t *testing.T) {
	parts := []campaignFigures{
		{Commit: "a", Kernel: "k", Seed: 1, Services: 50, Rounds: 3, Daemons: 2, Shims: 4, Lines: 10, WrongMS: 30, AttachDaemon: map[int]int{10: 98, 700: 1}, AttachShim: map[int]int{5: 1}},
		{Commit: "a", Kernel: "k", Seed: 2, Services: 50, Rounds: 4, Fired: 1, Faults: 1, Lines: 5, WrongMS: 20, AttachDaemon: map[int]int{20: 150}},
	}
	text := reportText(parts)
	again, err := readReport(text)
	if err != nil || reportText(again) != text {
		t.Fatalf("%v; got\n%s\nwant\n%s", err, reportText(again), text)
	}
	sum := sumOfParts(again)
	if sum.Rounds != 7 || sum.kills() != 7 || sum.Faults != 1 || sum.Lines != 15 || sum.WrongMS != 30 {
		t.Errorf("got %+v", sum)
	}
	for percent, want := range map[int]int{1: 10, 39: 10, 40: 20, 99: 20, 100: 700} {
		if got := percentile(sum.AttachDaemon, percent); got != want {
			t.Errorf("p%d: got %d, want %d", percent, got, want)
		}
	}
	if _, err := readReport("something else"); err == nil {
		t.Error("a foreign file is taken for a report")
	}
	file := filepath.Join(t.TempDir(), "r.md")
	for _, p := range parts {
		if err := p.report(file); (err != nil) != (p.Seed == 1) { // the first one alone is too slow
			t.Errorf("part %d: %v", p.Seed, err)
		}
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != text {
		t.Errorf("%v; in two steps: got\n%s", err, got)
	}
}
