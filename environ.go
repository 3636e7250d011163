// Role: who a service runs as and what environment it gets. The environment is built, never inherited.
// Runs in: shim.
// Owns: nothing.
// Uses: wire, sys, command, unit, state.

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// account is one line of /etc/passwd with the groups of that user.
type account struct {
	name        string
	uid, gid    int
	groups      []int
	home, shell string
	switched    bool // it is not who we are: the stage must change to it
}

const (
	rootPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	noShell  = "/bin/sh"
)

// accountOf resolves User and Group of a unit. Numeric ids work without /etc/passwd and /etc/group.
func accountOf(u *unit) (account, *stageFailureText) {
	self := os.Geteuid()
	a := account{name: strconv.Itoa(self), uid: self, gid: os.Getegid(), home: "/", shell: noShell}
	want := u.User
	if want == "" {
		want = strconv.Itoa(self)
	}
	if !a.lookUp(want) && !a.numeric(want) {
		return a, &stageFailureText{stageUser, "there is no user " + u.User}
	}
	if u.User != "" && self != 0 && a.uid != self {
		return a, &stageFailureText{stageUser, "User=" + u.User + " needs root: this daemon runs as user " + strconv.Itoa(self)}
	}
	if u.Group != "" {
		gid, ok := groupID(u.Group)
		if !ok {
			return a, &stageFailureText{stageGroup, "there is no group " + u.Group}
		}
		if self != 0 && gid != os.Getegid() {
			return a, &stageFailureText{stageGroup, "Group=" + u.Group + " needs root: this daemon runs as user " + strconv.Itoa(self)}
		}
		a.gid = gid
	}
	a.switched = self == 0 && (u.User != "" || u.Group != "")
	if a.switched {
		a.groups = groupsOf(a.name, a.gid)
	}
	if u.User == "" && self == 0 && a.home == "/" {
		a.home = "/root"
	}
	return a, nil
}

// stageFailureText is a set-up step that failed before a stage was started.
type stageFailureText struct {
	stage setupStage
	text  string
}

// lookUp fills a from /etc/passwd (man 5 passwd).
func (a *account) lookUp(user string) bool {
	found := false
	eachLine("/etc/passwd", 7, func(f []string) bool {
		if f[0] != user && f[2] != user {
			return true
		}
		uid, err1 := strconv.Atoi(f[2])
		gid, err2 := strconv.Atoi(f[3])
		if err1 != nil || err2 != nil {
			return true
		}
		a.name, a.uid, a.gid, a.home, a.shell = f[0], uid, gid, f[5], f[6]
		found = true
		return false
	})
	if found && a.shell == "" {
		a.shell = noShell
	}
	return found
}

// numeric takes a uid that no file knows; its group has the same number, never ours.
func (a *account) numeric(user string) bool {
	uid, err := strconv.Atoi(user)
	if err != nil || uid < 0 {
		return false
	}
	if uid != os.Geteuid() {
		a.gid = uid
	}
	a.name, a.uid = user, uid
	return true
}

func groupID(group string) (int, bool) {
	gid, found := 0, false
	eachLine("/etc/group", 4, func(f []string) bool {
		if f[0] != group {
			return true
		}
		n, err := strconv.Atoi(f[2])
		gid, found = n, err == nil
		return !found
	})
	if found {
		return gid, true
	}
	n, err := strconv.Atoi(group)
	return n, err == nil && n >= 0
}

// groupsOf are the supplementary groups of a user (man 3 initgroups).
func groupsOf(user string, gid int) []int {
	groups := []int{gid}
	eachLine("/etc/group", 4, func(f []string) bool {
		if slices.Contains(strings.Split(f[3], ","), user) {
			if n, err := strconv.Atoi(f[2]); err == nil && !slices.Contains(groups, n) {
				groups = append(groups, n)
			}
		}
		return true
	})
	return groups
}

// eachLine calls use with the colon-separated fields of each line that has at least n, until it returns false.
func eachLine(path string, n int, use func(fields []string) bool) {
	b, err := readSmall(path)
	if err != nil {
		return // no such file: nobody is known by name
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), ":")
		if len(f) >= n && !strings.HasPrefix(line, "#") && !use(f) {
			return
		}
	}
}

// environment is a list of NAME=value in which a later value replaces an earlier one.
type environment struct{ list []string }

func (e *environment) set(assignment string) {
	name, _, _ := strings.Cut(assignment, "=")
	for i, old := range e.list {
		if strings.HasPrefix(old, name) && len(old) > len(name) && old[len(name)] == '=' {
			e.list[i] = assignment
			return
		}
	}
	e.list = append(e.list, assignment)
}

func (e *environment) get(name string) (string, bool) {
	for _, old := range e.list {
		if v, ok := strings.CutPrefix(old, name); ok && strings.HasPrefix(v, "=") {
			return v[1:], true
		}
	}
	return "", false
}

func (e *environment) unset(pattern string) {
	e.list = slices.DeleteFunc(e.list, func(a string) bool {
		name, _, _ := strings.Cut(a, "=")
		return name == pattern || a == pattern
	})
}

// buildEnvironment makes the environment of one process, by the precedence of man 5 systemd.exec: ours, with extra for what belongs to this
// very process, PassEnvironment, Environment, EnvironmentFile, UnsetEnvironment. Only the scope cannot be changed: a stop finds by it
// what belongs to the service.
func buildEnvironment(u *unit, a account, scope string, extra []string) (*environment, *stageFailureText) {
	e := &environment{}
	if keeperPID() != 0 {
		e.list = containerEnvironment(os.Environ())
	}
	path := rootPath
	if a.uid != 0 && a.home != "/" && a.home != "" {
		path = a.home + "/.local/bin:" + a.home + "/bin:" + rootPath
	}
	lang, ok := os.LookupEnv("LANG")
	if !ok {
		lang = "C.UTF-8"
	}
	for _, assignment := range []string{"PATH=" + path, "HOME=" + a.home, "USER=" + a.name, "LOGNAME=" + a.name, "SHELL=" + a.shell, "LANG=" + lang} {
		name, _, _ := strings.Cut(assignment, "=")
		ofContainer := !a.switched || name == "PATH" || name == "LANG"
		if _, has := e.get(name); !has || !ofContainer {
			e.set(assignment)
		}
	}
	for _, assignment := range extra {
		e.set(assignment)
	}
	for _, name := range u.PassEnvironment {
		if v, ok := os.LookupEnv(name); ok {
			e.set(name + "=" + v)
		}
	}
	for _, assignment := range u.Environment {
		e.set(assignment)
	}
	for _, file := range u.EnvironmentFile {
		for _, path := range filesOf(file.Path) {
			if text := e.addFile(environmentFile{path, file.Optional}); text != "" {
				return nil, &stageFailureText{text: text} // result resources, as in systemd
			}
		}
	}
	for _, name := range u.UnsetEnvironment {
		e.unset(name)
	}
	e.set(scopeVariable + "=" + scope)
	return e, nil
}

// containerEnvironment is what the services of a container get of its environment: all but what is ours.
func containerEnvironment(env []string) []string {
	return slices.DeleteFunc(daemonEnvironment(env), func(a string) bool { return strings.HasPrefix(a, "DIAKONOS_") })
}

// filesOf are the files that a pattern of glob(7) names, in the order of their names; without any the pattern is a path like others.
func filesOf(path string) []string {
	if strings.ContainsAny(path, "*?[") {
		if files, _ := filepath.Glob(path); len(files) > 0 {
			return files
		}
	}
	return []string{path}
}

// maxEnvironmentFile bounds an EnvironmentFile (bytes): execve takes no more in one string list by default.
const maxEnvironmentFile = 1 << 20

func (e *environment) addFile(file environmentFile) (wrong string) {
	st, err := os.Stat(file.Path)
	if err == nil && (!st.Mode().IsRegular() || st.Size() > maxEnvironmentFile) {
		return fmt.Sprintf("EnvironmentFile %s is not a regular file of at most 1 MiB", file.Path)
	}
	b, err := readSmall(file.Path)
	if err != nil {
		if file.Optional && errors.Is(err, fs.ErrNotExist) {
			return ""
		}
		return fmt.Sprintf("cannot read EnvironmentFile %s: %v", file.Path, err)
	}
	assignments, err := parseEnvironmentFile(b)
	if err != nil {
		return fmt.Sprintf("cannot read EnvironmentFile %s: %v", file.Path, err)
	}
	for _, a := range assignments {
		e.set(a)
	}
	return ""
}

// searchPath finds a program by name. A name with a slash is taken as it is. "" = not found.
func searchPath(name, path string) string {
	if strings.Contains(name, "/") {
		return name
	}
	for dir := range strings.SplitSeq(path, ":") {
		if dir == "" {
			continue
		}
		full := dir + "/" + name
		if st, err := os.Stat(full); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return full
		}
	}
	return ""
}
