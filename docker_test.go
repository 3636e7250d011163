// Role: tests of images on a real Docker engine, which they start for themselves: run, stop, kill, logs, exec, and what a container may lack.
// Runs in: go test.
// Owns: the engine, its directory, and all containers.
// Uses: root_test, failcall, observe, script.

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// dockerEngine is an engine without network, with a socket and directories of its own.
type dockerEngine struct {
	t   *testing.T
	dir string
}

const (
	dockerClient   = "/usr/bin/docker"
	dockerPatience = time.Minute // for the engine and its containers
	dockerImage    = "diakonos-test"
)

// startDocker starts an engine that ends with the test.
func startDocker(t *testing.T) *dockerEngine {
	t.Helper()
	engine, err := exec.LookPath("dockerd")
	if err != nil || !exists(dockerClient) {
		skip(t, "there is no Docker engine (package docker.io)")
	}
	if os.Geteuid() != 0 {
		skip(t, "only root can start a Docker engine")
	}
	dir, err := os.MkdirTemp("", "diakonos-docker-")
	if err != nil {
		t.Fatal(err)
	}
	d := &dockerEngine{t: t, dir: dir}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(engine, "--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=vfs", "--data-root="+dir+"/data", "--exec-root="+dir+"/exec",
		"--pidfile="+dir+"/pid", "--host=unix://"+dir+"/sock", "--exec-opt=native.cgroupdriver=cgroupfs")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(dockerPatience):
			syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-ended
		}
		log.Close()
		os.RemoveAll(dir)
	})
	if !eventually(dockerPatience, func() bool { _, err := d.try("version"); return err == nil }) {
		text, _ := os.ReadFile(log.Name())
		skip(t, fmt.Sprintf("the Docker engine does not come up here: %s", lastLines(string(text), 5)))
	}
	return d
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func (d *dockerEngine) command(args ...string) *exec.Cmd {
	cmd := exec.Command(dockerClient, append([]string{"--host", "unix://" + d.dir + "/sock"}, args...)...)
	cmd.Env = append(os.Environ(), "DOCKER_BUILDKIT=0", "DOCKER_CONFIG="+d.dir+"/config")
	return cmd
}

func (d *dockerEngine) try(args ...string) (string, error) {
	out, err := d.command(args...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (d *dockerEngine) must(args ...string) string {
	d.t.Helper()
	out, err := d.try(args...)
	if err != nil {
		d.t.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// build makes an image from scratch: the program, a static service, units.
func (d *dockerEngine) build() {
	d.t.Helper()
	root := emptyRoot(d.t)
	units := map[string]string{
		"base": "[service]\nExecStart = \"/service\"\n",
		"web":  "[unit]\nRequires = [\"base\"]\n[service]\nExecStart = \"/service\"\n",
		"ends": "[unit]\nRequires = [\"base\"]\nFailureAction = \"exit\"\n[service]\nType = \"oneshot\"\nExecStart = \"/diakonos-init -- /nowhere\"\n",
	}
	for name, text := range units {
		if err := os.WriteFile(filepath.Join(root, "etc/diakonos", name+".service"), []byte(text), 0o644); err != nil {
			d.t.Fatal(err)
		}
	}
	const file = "FROM scratch\nCOPY diakonos-init /diakonos-init\nCOPY diakonos-init /diakonos\nCOPY service /service\nCOPY etc /etc\nENTRYPOINT [\"/diakonos-init\"]\n"
	if err := os.WriteFile(filepath.Join(root, "Dockerfile"), []byte(file), 0o644); err != nil {
		d.t.Fatal(err)
	}
	d.must("build", "-q", "-t", dockerImage, root)
}

// run starts a container and waits until web says that it is up.
func (d *dockerEngine) run(name string, args ...string) {
	d.t.Helper()
	d.must(append([]string{"run", "-d", "--network", "none", "--name", name}, args...)...)
	d.t.Cleanup(func() { d.try("rm", "-f", "-v", name) })
}

func (d *dockerEngine) says(name, text string) {
	d.t.Helper()
	var out string
	if !eventually(dockerPatience, func() bool { out, _ = d.try("logs", name); return strings.Contains(out, text) }) {
		d.t.Fatalf("%s does not say %q:\n%s", name, text, out)
	}
}

func (d *dockerEngine) exitCode(name string) string {
	d.t.Helper()
	return d.must("wait", name)
}

// TestDocker: the container does under a real engine what it does in our own namespaces.
func TestDocker(t *testing.T) {
	d := startDocker(t)
	d.build()
	t.Run("run, exec, logs and stop", func(t *testing.T) {
		d.run("plain", dockerImage, "--start", "web")
		d.says("plain", "web | up")
		out := d.must("exec", "plain", "/diakonos", "--json", "list")
		var list []unitStatus
		if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 3 || list[2].ActiveState != active {
			t.Errorf("list: %v\n%s", err, out)
		}
		d.must("exec", "plain", "/diakonos", "restart", "web")
		var followed bytes.Buffer
		follow := d.command("logs", "-f", "plain")
		follow.Stdout = &followed
		if err := follow.Start(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		d.must("stop", "-t", "30", "plain")
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("stop takes %v", took)
		}
		if err := follow.Wait(); err != nil || strings.Count(followed.String(), "web | down") != 2 || strings.Count(followed.String(), "base | down") != 1 {
			t.Errorf("logs -f: %v\n%s", err, followed.String())
		}
		if code := d.exitCode("plain"); code != "0" {
			t.Errorf("it ends with %s", code)
		}
	})
	for _, x := range []struct {
		name string
		args []string
	}{
		{"read-only", []string{"--read-only", "--tmpfs", "/run"}},
		{"user", []string{"--user", "12345:54321", "--tmpfs", "/run:mode=1777"}},
		{"bare", []string{"--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--read-only", "--tmpfs", "/tmp", "--user", "12345", "-e", "DIAKONOS_HOME=/tmp/h"}},
		{"limited", []string{"--memory", "64m", "--pids-limit", "100"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			d.run(x.name, append(x.args, dockerImage, "--start", "web")...)
			d.says(x.name, "web | up")
			out := d.must("exec", x.name, "/diakonos", "status", "web", "base")
			if !strings.Contains(out, "active (running)") {
				t.Errorf("status:\n%s", out)
			}
			d.must("kill", "-s", "INT", x.name)
			if code := d.exitCode(x.name); code != "0" {
				out, _ := d.try("logs", x.name)
				t.Errorf("it ends with %s\n%s", code, out)
			}
		})
	}
	t.Run("exit codes", func(t *testing.T) {
		d.run("ends", dockerImage, "--start", "ends")
		if code := d.exitCode("ends"); code != "127" {
			t.Errorf("an essential service that ends with 127 ends the container with %s", code)
		}
		out, err := d.try("run", "--rm", "--network", "none", dockerImage, "--start", "base", "--", "/nowhere")
		if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 127 {
			t.Errorf("a command that is not there: %v\n%s", err, out)
		}
		out, err = d.try("run", "--rm", "--network", "none", dockerImage, "--", "/diakonos", "version")
		if err != nil || !strings.Contains(out, version) {
			t.Errorf("a command alone: %v\n%s", err, out)
		}
	})
	t.Run("kept volume", func(t *testing.T) {
		kept := t.TempDir()
		d.run("kept", "-v", kept+":/data", "-e", "DIAKONOS_HOME=/data/h", dockerImage, "--start", "web")
		for boot := 1; boot <= 3; boot++ {
			var out string
			if !eventually(dockerPatience, func() bool { out, _ = d.try("logs", "kept"); return strings.Count(out, "web | up") == boot }) {
				t.Fatalf("boot %d:\n%s", boot, out)
			}
			d.must("kill", "kept")
			d.exitCode("kept")
			if boot < 3 {
				d.must("start", "kept")
			}
		}
	})
	t.Run("an archive that was made without an engine", func(t *testing.T) {
		units := t.TempDir()
		if err := os.WriteFile(filepath.Join(units, "job.service"), []byte("[service]\nType = \"oneshot\"\nExecStart = \"/diakonos version\"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		archive := filepath.Join(d.dir, "image.tar")
		script := exec.Command("images/make-oci", filepath.Join(releasedProgram(t), "diakonos"), units, archive)
		script.Env = append(os.Environ(), "NAME=made:here")
		if out, err := script.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		d.must("load", "-i", archive)
		out, err := d.try("run", "--rm", "--network", "none", "made:here", "--exit-when-idle")
		if err != nil || !strings.Contains(out, "job | diakonos "+version) {
			t.Errorf("%v\n%s", err, out)
		}
	})
}
