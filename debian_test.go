// Role: runs the units of testdata/debian for real, on the programs of Debian's packages.
// Runs in: go test.
// Owns: each test's home, data directory and services.
// Uses: edge, observe, script, wire.

package main

import (
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// exampleData is where the units of testdata/debian keep their data; a test puts its own directory there.
const exampleData = "/srv/diakonos-example"

// debianService is one unit of testdata/debian that runs in a test.
type debianService struct {
	*testHome
	name string
}

// startDebian starts the unit with its data in a test directory that belongs to the user.
func startDebian(t *testing.T, name, program, owner string) *debianService {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "the unit changes user: root only")
	}
	if _, err := os.Stat(program); err != nil {
		skip(t, program+" is not installed")
	}
	d := &debianService{newTestHome(t), name}
	account, err := user.Lookup(owner)
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(account.Uid)
	gid, _ := strconv.Atoi(account.Gid)
	data := d.data("")
	text, err := os.ReadFile(filepath.Join("testdata/debian", name+".service"))
	if err != nil {
		t.Fatal(err)
	}
	unit := strings.ReplaceAll(string(text), exampleData, filepath.Join(d.dir, "data"))
	for _, err := range []error{
		os.MkdirAll(data, 0o755),
		os.Chmod(data, 0o700),
		os.Chown(data, uid, gid),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	d.unit(name, unit)
	d.diakonos("start", name)
	return d
}

// data is a path in the service's data directory.
func (d *debianService) data(file string) string { return filepath.Join(d.dir, "data", d.name, file) }

// ask sends a request to a Unix socket and returns what comes back until the other side closes or want came.
func (d *debianService) ask(socket, request, want string) string {
	d.t.Helper()
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		d.t.Fatal(err)
	}
	conn := os.NewFile(uintptr(fd), socket)
	defer conn.Close()
	if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: socket}); err != nil {
		d.t.Fatalf("cannot connect to %s: %v", socket, err)
	}
	if _, err := io.WriteString(conn, request); err != nil {
		d.t.Fatal(err)
	}
	var got strings.Builder
	buf := make([]byte, 4096)
	for !strings.Contains(got.String(), want) {
		n, err := conn.Read(buf)
		got.Write(buf[:n])
		if err != nil {
			d.t.Fatalf("%s answers %q (%v), want %q", socket, got.String(), err, want)
		}
	}
	return got.String()
}

func TestDebianNginx(t *testing.T) {
	d := startDebian(t, "nginx", "/usr/sbin/nginx", "www-data")
	st := d.status(d.name)
	if st["active_state"] != "active" || st["main_pid"] == 0.0 {
		t.Fatalf("not active: %v", st)
	}
	pid, err := os.ReadFile(d.data("nginx.pid"))
	if err != nil || parsePIDFile(pid) != int(st["main_pid"].(float64)) {
		t.Errorf("nginx.pid holds %q (%v), main_pid is %v", pid, err, st["main_pid"])
	}
	d.ask(d.data("http.sock"), "GET /index.html HTTP/1.0\r\n\r\n", "served by Diakonos")
	if !eventually(testPatience, func() bool { return strings.Contains(d.diakonos("logs", "nginx"), "GET /index.html") }) {
		t.Error("the access log of a worker is not in the log")
	}
	d.diakonos("reload", "nginx")
	if now := d.status(d.name); now["main_pid"] != st["main_pid"] {
		t.Errorf("reload changed the main process: %v, then %v", st["main_pid"], now["main_pid"])
	}
	d.ask(d.data("http.sock"), "GET / HTTP/1.0\r\n\r\n", "served by Diakonos")
	d.diakonos("stop", "nginx")
	if st := d.status(d.name); st["active_state"] != "inactive" || st["result"] != "success" {
		t.Errorf("after stop: %v", st)
	}
}

func TestDebianRedis(t *testing.T) {
	d := startDebian(t, "redis", "/usr/bin/redis-server", "redis")
	d.ask(d.data("redis.sock"), "SET key value\r\n", "+OK")
	before := d.status(d.name)
	text, err := os.ReadFile(filepath.Join(d.dir, "h/run/redis/shim.pid"))
	if err != nil {
		t.Fatal(err)
	}
	syscall.Kill(parsePIDFile(text), syscall.SIGKILL)
	if got := d.ask(d.data("redis.sock"), "GET key\r\n", "value"); !strings.Contains(got, "value") {
		t.Errorf("after its shim was killed: %q", got)
	}
	ok := eventually(testPatience, func() bool {
		now := d.status(d.name)
		return now["main_pid"] == before["main_pid"] && now["shim_pid"] != before["shim_pid"] && now["shim_pid"] != 0.0
	})
	if !ok {
		t.Errorf("not adopted: %v, then %v", before, d.status(d.name))
	}
	d.diakonos("restart", "redis")
	d.ask(d.data("redis.sock"), "GET key\r\n", "value") // redis saves on SIGTERM: the stop was orderly
	d.diakonos("stop", "redis")
}

func TestDebianPostgreSQL(t *testing.T) {
	d := startDebian(t, "postgresql", "/usr/lib/postgresql/15/bin/postgres", "postgres")
	st := d.status(d.name)
	if st["active_state"] != "active" {
		t.Errorf("not active: %v", st)
	}
	query := func(text string) string {
		t.Helper()
		cmd := exec.Command("psql", "-h", d.data(""), "-U", "postgres", "-Atc", text)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("psql: %v\n%s", err, out)
		}
		return strings.TrimSpace(string(out))
	}
	// It is asked at once: READY came when it served.
	if got := query("create table t as select 40 + 2 as n; select n from t"); !strings.HasSuffix(got, "42") {
		t.Errorf("got %q, want 42", got)
	}
	d.diakonos("reload", "postgresql")
	d.diakonos("restart", "postgresql")
	if got := query("select n from t"); got != "42" {
		t.Errorf("after restart: got %q, want 42", got)
	}
	d.diakonos("stop", "postgresql")
	if st := d.status(d.name); st["active_state"] != "inactive" || st["result"] != "success" {
		t.Errorf("after stop: %v", st)
	}
}
