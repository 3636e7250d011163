// Diakonos keeps services running. One static binary, several personalities:
//
//	diakonos, diakonosctl   client   one request, prints, exits
//	diakonosd               daemon   the planner: catalogue, dependency graph, jobs, client API
//	diakonos-run NAME       shim     one per running service: its supervisor
//	diakonos-run -exec      stage    the service's own process just before execve
//	diakonos-run -detach    helper   starts a batch of shims and ends
//	diakonos-init CMD ARGS  init     the first process of a container: one command, as tini and dumb-init have it, or a daemon with services
//	diakonos-init -console  console  copies the services' logs to the standard output of a container
//
// The daemon plans and owns nothing that it cannot rebuild; the shim supervises, also while no daemon runs. Layers, lowest first:
//
//	codec visible wire value sys sys_log formats; safe texts; values of unit files; kernel calls
//	command unit log                     command lines; unit files; log records
//	deps supervise                       pure: jobs and order; the state machine of a service
//	state history environ tree child pump  the home; what happened; who a service is; its processes; the stage; its output
//	succession                           a process becomes another program
//	shim spawn renew                     the loop of a shim
//	daemon api upgrade kept action       the loop of the daemon
//	render why client                    what people see
//	console dialect init keep main       PID 1: what it shows, how it is called, one command, a daemon that it keeps
//
// On disk, below $DIAKONOS_HOME: daemon.sock daemon.pid daemon.json daemon.log, enabled/NAME, run/NAME/ (want state history unit.json shim.pid
// main.pid shim.sock out err pump notify console) and log/NAME/. docs/protocols.md tells what each file means, and the protocols P and L.
//
// Words: a *unit* is a parsed unit file; a *service* is its runtime object; a *run* is one start with its end; a *wish* is what was asked
// for last; a *job* is the work on one unit; a *stage* is a service's process before execve; the *guard* is a lock that lives as long as
// a process of the start has its standard output; to *hold* is to keep a descriptor open for a shim's successor.
//
// Role: the personality table.
// Runs in: all personalities.
// Owns: nothing.
// Uses: visible, wire, sys, state, environ, succession, shim, daemon, dialect, init, client.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// personalities are the names that the binary is called by; install makes links of those that are ours alone.
var personalities = [...]struct {
	name string
	main func(args []string) int
}{
	{"diakonos", diakonosMain},
	{"diakonosctl", diakonosMain},
	{"diakonosd", diakonosdMain},
	{"diakonos-run", shimMain},
	{initName, initMain},
	{tiniName, initMain},
	{dumbInitName, initMain},
}

// handDownBinary: without /proc the first of our processes finds out where the binary is, for all that come after it.
func handDownBinary(called string) {
	if sysAccess(ownLink, unix.X_OK) == nil || os.Getenv(binaryVariable) != "" {
		return
	}
	found := searchPath(called, os.Getenv("PATH"))
	if path, err := filepath.Abs(found); found != "" && err == nil {
		_ = os.Setenv(binaryVariable, path) // cannot fail for a path
	}
}

func main() {
	runtime.MemProfileRate = 0 // nobody reads the profile, and each process would pay for it
	handDownBinary(os.Args[0])
	run, args := personality(os.Args)
	os.Exit(run(args))
}

// personality tells who is called: by the name of the program, or, where that is `diakonos` or no name of ours, by the first argument.
func personality(argv []string) (run func(args []string) int, args []string) {
	find := func(name string) func([]string) int {
		for _, p := range personalities {
			if p.name == name {
				return p.main
			}
		}
		return nil
	}
	name := filepath.Base(argv[0])
	if run := find(name); run != nil && name != personalities[0].name {
		return run, argv[1:]
	}
	if len(argv) > 1 {
		if run := find(argv[1]); run != nil {
			return run, argv[2:]
		}
	}
	return diakonosMain, argv[1:]
}

// diakonosMain is the client, but for the one verb that it does not have.
func diakonosMain(args []string) int {
	call, err := parseCall(args)
	if err == nil && call.verb == "daemon" && !call.help && call.check() == nil {
		return runDaemon(call)
	}
	return clientMain(args, os.Stdout, os.Stderr)
}

func diakonosdMain(args []string) int {
	started := os.Getenv(startedVariable)
	switch {
	case os.Getpid() == 1:
		return initMain(args)
	case started == modeAuto || started == modeInit || os.Getenv(willVariable) != "": // started by one of us: no flags, and no time to lose
		return daemonMain(home{os.Getenv(homeVariable)}, "")
	}
	return diakonosMain(append([]string{"daemon"}, args...))
}

// runDaemon is the daemon in the foreground.
func runDaemon(call clientCall) int {
	h, err := findHome(call.homeFlag)
	if err != nil {
		fmt.Fprintln(os.Stderr, "diakonos:", visible(err.Error()))
		return exitFailed
	}
	dir, err := findServiceDir(call.dirFlag, h)
	if err != nil {
		fmt.Fprintln(os.Stderr, "diakonos:", visible(err.Error()))
		return exitFailed
	}
	return daemonMain(h, dir)
}
