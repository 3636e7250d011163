// Role: tests of a container whose root holds nothing but the program, its units and a service: read-only, without capabilities, /proc or /dev.
// Runs in: go test.
// Owns: each root.
// Uses: keep, keep_test, failcall, init_test, observe, script, state.

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// emptyRoot makes a root directory: the program, a static service, units, and mount points.
func emptyRoot(t *testing.T) string {
	t.Helper()
	bin := releasedProgram(t)
	root, err := os.MkdirTemp("", "diakonos-root-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"etc/diakonos", "run", "proc", "dev", "tmp", "data"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := copyFile(filepath.Join(bin, "diakonos"), filepath.Join(root, initName)); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", filepath.Join(root, "service"), "./testdata/static")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	units := map[string]string{"base": "[service]\nExecStart = \"/service\"\n", "web": "[unit]\nRequires = [\"base\"]\n[service]\nExecStart = \"/service\"\n"}
	for name, text := range units {
		if err := os.WriteFile(filepath.Join(root, "etc/diakonos", name+".service"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// startIn starts diakonos-init as PID 1 of a sandbox with this root. Options are bubblewrap's.
func (c *container) startIn(root string, options ...string) {
	c.t.Helper()
	args := append([]string{"--unshare-all", "--as-pid-1", "--die-with-parent", "--ro-bind", root, "/", "--clearenv"}, options...)
	c.cmd = exec.Command("bwrap", append(args, "/"+initName)...)
	c.begin()
}

func needBubblewrap(t *testing.T) {
	t.Helper()
	if out, err := exec.Command("bwrap", "--unshare-all", "--ro-bind", "/", "/", "true").CombinedOutput(); err != nil {
		skip(t, fmt.Sprintf("bubblewrap cannot make a sandbox here: %v: %s", err, out))
	}
}

// TestEmptyRoot: in a root with nothing else it starts, supervises, survives and stops, as root without capabilities or as any user, and says
// what it lacks.
func TestEmptyRoot(t *testing.T) {
	needBubblewrap(t)
	root := emptyRoot(t)
	hidden := t.TempDir() // in the place of cgroupfs and all else of /sys: nothing
	for _, x := range []struct {
		name    string
		options []string
		home    string
	}{
		{"root without capabilities", []string{"--cap-drop", "ALL", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/run"}, "/run/diakonos"},
		{"any user", []string{"--cap-drop", "ALL", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/run", "--uid", "12345", "--gid", "54321"}, "/run/diakonos-12345"},
		{"a tmpfs on /tmp alone", []string{"--cap-drop", "ALL", "--proc", "/proc", "--ro-bind", hidden, "/dev", "--tmpfs", "/tmp", "--uid", "12345"}, "/tmp/diakonos-12345"},
		{"no /proc", []string{"--cap-drop", "ALL", "--dev", "/dev", "--tmpfs", "/run", "--uid", "12345"}, "/run/diakonos-12345"},
		{"neither /proc nor /dev", []string{"--cap-drop", "ALL", "--tmpfs", "/run", "--uid", "12345"}, "/run/diakonos-12345"},
		{"root, neither /proc nor /dev", []string{"--cap-drop", "ALL", "--tmpfs", "/run"}, "/run/diakonos"},
		{"a home that is named", []string{"--cap-drop", "ALL", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/data", "--setenv", "DIAKONOS_HOME", "/data/h", "--uid", "7"}, "/data/h"},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			c := &container{t: t}
			c.startIn(root, x.options...)
			c.until("both are up", func() bool {
				return strings.Contains(c.out.String(), "base | up") && strings.Contains(c.out.String(), "web | up")
			})
			inside := func(path string) string { return fmt.Sprintf("/proc/%d/root%s", c.pid1(), path) }
			if !exists(inside(x.home + "/daemon.json")) {
				t.Errorf("the home is not %s", x.home)
			}
			services := c.below("/service")
			for range 3 {
				old := c.below(daemonName)
				list := append(old, c.below(shimName+" ")...)
				for _, pid := range list {
					syscall.Kill(pid, unix.SIGKILL)
				}
				c.until("daemon and shims are there again", func() bool {
					now := c.below(daemonName)
					return len(now) == 1 && !slices.Contains(old, now[0]) && len(c.below(shimName+" ")) == 2 &&
						daemonMode(inside(x.home+"/daemon.json")) == modeInit
				})
			}
			if now := c.below("/service"); !slices.Equal(now, services) {
				t.Errorf("the services were %v and are %v", services, now)
			}
			c.signal(unix.SIGTERM)
			if code := c.wait(); code != 0 || strings.Count(c.out.String(), "| up") != 2 || strings.Count(c.out.String(), "| down") != 2 {
				t.Errorf("it ends with %d\n%s", code, c.out.String())
			}
			if out := c.out.String(); strings.Index(out, "web | down") > strings.Index(out, "base | down") {
				t.Errorf("the order of the end is wrong\n%s", out)
			}
		})
	}
	t.Run("nothing can be written", func(t *testing.T) {
		c := &container{t: t}
		c.startIn(root, "--cap-drop", "ALL", "--proc", "/proc", "--ro-bind", hidden, "/dev", "--uid", "12345")
		if code := c.wait(); code == 0 || !strings.Contains(c.out.String(), "/tmp/diakonos-12345") {
			t.Errorf("it ends with %d\n%s", code, c.out.String())
		}
	})
}

func daemonMode(file string) string {
	var d daemonRecord
	text, _ := os.ReadFile(file)
	_ = json.Unmarshal(text, &d)
	return d.Mode
}

// TestKeptHome: the next container with the home of one that was killed knows it for another boot, with /proc and without: what is to run is
// started, and no process that has a PID of then is taken for it.
func TestKeptHome(t *testing.T) {
	needBubblewrap(t)
	root := emptyRoot(t)
	process := regexp.MustCompile(`web \| up user \d+ process (\d+)`)
	for _, x := range []struct {
		name    string
		options []string
	}{
		{"with /proc", []string{"--proc", "/proc", "--dev", "/dev"}},
		{"without", nil},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			if x.options == nil && refOf(1).Ino == 0 {
				skip(t, "pidfds have no inodes of their own before Linux 6.9")
			}
			kept := t.TempDir()
			for boot := range 3 {
				c := &container{t: t}
				c.startIn(root, append([]string{"--cap-drop", "ALL", "--bind", kept, "/data", "--setenv", "DIAKONOS_HOME", "/data/h"}, x.options...)...)
				c.until("web is up in boot "+strconv.Itoa(boot), func() bool { return process.MatchString(c.out.String()) })
				c.signal(unix.SIGKILL)
				c.wait()
			}
		})
	}
}
