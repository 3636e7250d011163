// Role: what lies in the home: paths, records, wishes, PID files, locks; finding and starting a daemon.
// Runs in: client, daemon, shim.
// Owns: the files of the home; each record has one writer at a time, the holder of the lock beside it.
// Uses: codec, visible, unit, wire, sys, supervise.

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Environment variables of ours.
const (
	homeVariable      = "DIAKONOS_HOME"
	dirVariable       = "DIAKONOS_SERVICE_DIR"
	noStartVariable   = "DIAKONOS_NO_AUTOSTART"
	scopeVariable     = "DIAKONOS_SCOPE"  // ids of the services that a process belongs to, outermost first
	orderVariable     = "DIAKONOS_ORDER"  // what the first process of a container asks of its daemon: a bootOrder
	keeperVariable    = "DIAKONOS_KEEPER" // the PID of the first process, for daemon and shims that it keeps
	startedVariable   = "DIAKONOS_START"  // set by the starter of a daemon: descriptors 3 and 4 are its lock and its ready pipe
	cgroupVariable    = "DIAKONOS_CGROUP" // of shims: directory for services' cgroups
	outerVariable     = "DIAKONOS_OUTER"  // of shims: the scope that the daemon itself runs in
	sunLimit          = sunPathBytes
	daemonName        = "diakonosd"
	shimName          = "diakonos-run"
	initName          = "diakonos-init"
	socketName        = "daemon.sock"
	shimSocketName    = "shim.sock"
	lockFD            = 3 // in a daemon that was started by one of us
	readyFD           = 4
	startLimit        = 30 * time.Second       // of connectOrStart
	bindPatience      = 200 * time.Millisecond // for a daemon to bind its socket, before it is asked to do it anew
	otherStarterLimit = 5 * time.Second        // wait for a daemon that something else keeps alive
	healFirst         = 100 * time.Millisecond // pause of shim and daemon before they look after a lost other; it doubles
	healMost          = 10 * time.Second
	healNewer         = 3 // starts in a row of a newer file, which may be broken, before our own program is taken
	healAsks          = 3 // of a client inside a service, before it starts the daemon itself
)

// home is $DIAKONOS_HOME, absolute and clean.
type home struct{ path string }

func (h home) runRoot() string              { return h.path + "/run" }
func (h home) runDir(name string) string    { return h.path + "/run/" + name }
func (h home) logDir(name string) string    { return h.path + "/log/" + name }
func (h home) enabledDir() string           { return h.path + "/enabled" }
func (h home) enabledFile(n string) string  { return h.path + "/enabled/" + n }
func (h home) daemonFile() string           { return h.path + "/daemon.json" }
func (h home) daemonLog() string            { return h.path + "/daemon.log" }
func (h home) unitFile(name string) string  { return h.runDir(name) + "/unit.json" }
func (h home) wantFile(name string) string  { return h.runDir(name) + "/want" }
func (h home) stateFile(name string) string { return h.runDir(name) + "/state" }
func (h home) shimPID(name string) string   { return h.runDir(name) + "/shim.pid" }

func (h home) historyFile(name string) string { return h.runDir(name) + "/history" }

// findHome resolves the home: flag, DIAKONOS_HOME, else the first of homePlaces, or another one of them that is in use in its stead.
func findHome(flag string) (home, error) {
	path := flag
	if path == "" {
		path = os.Getenv(homeVariable)
	}
	if path == "" {
		path = usedHome(homePlaces())
	}
	if path == "" {
		return home{}, errors.New("cannot find a home directory: set DIAKONOS_HOME or give --home DIR")
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return home{}, fmt.Errorf("cannot resolve home %s: %v", path, err)
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		abs = real
	}
	return home{abs}, nil
}

// homePlaces are where the home may lie if none is named: ~/.diakonos, or a runtime directory for users without a home; then, for a container
// whose file system cannot be written, the usual places of a tmpfs. The first is "" for who has neither.
func homePlaces() []string {
	first := ""
	if d := os.Getenv("HOME"); d != "" && d != "/" {
		first = d + "/.diakonos"
	} else if os.Geteuid() == 0 {
		first = "/run/diakonos"
	} else if d := os.Getenv("XDG_RUNTIME_DIR"); d != "" {
		first = d + "/diakonos"
	}
	own := "/diakonos-" + strconv.Itoa(os.Geteuid())
	return []string{first, "/run" + own, "/dev/shm" + own, "/tmp" + own}
}

// usedHome is the first of places, or where that is not there, another one that a daemon of this user's has used.
func usedHome(places []string) string {
	for _, p := range places {
		var st unix.Stat_t
		if p != "" && sysLstat(p, &st) == nil && int(st.Uid) == os.Geteuid() && st.Mode&(unix.S_IFMT|0o077) == unix.S_IFDIR &&
			sysAccess(home{p}.daemonFile(), unix.F_OK) == nil {
			return p
		}
	}
	return places[0]
}

// makeHome makes the home of a container: what is named, else the first of homePlaces that can be made.
func makeHome(flag string) (home, error) {
	h, err := findHome(flag)
	if err == nil {
		err = h.make()
	}
	if err == nil || flag != "" || os.Getenv(homeVariable) != "" {
		return h, err
	}
	for _, p := range homePlaces()[1:] {
		other := home{p}
		why := other.make()
		if why == nil {
			return other, nil
		}
		err = fmt.Errorf("%w; %w", err, why)
	}
	return h, err
}

// findServiceDir is the order of DESIGN.md section 5; the result is absolute: the daemon's directory is /.
func findServiceDir(flag string, h home) (string, error) {
	dir := flag
	if dir == "" {
		dir = os.Getenv("DIAKONOS_SERVICE_DIR")
	}
	if dir == "" {
		dir = "/etc/diakonos"
		for _, d := range []string{"services", filepath.Join(h.path, "services")} {
			if st, err := os.Stat(d); err == nil && st.IsDir() {
				dir = d
				break
			}
		}
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("cannot find service directory %q: %w", dir, err)
	}
	return abs, nil
}

// make creates what the home needs; it may exist.
func (h home) make() error {
	reach("home.make")
	if err := os.MkdirAll(h.path, 0o700); err != nil {
		return fmt.Errorf("cannot make home: %w", err)
	}
	if isNetworkFileSystem(h.path) {
		return fmt.Errorf("cannot use home %s: it lies on a network file system, where locks of other machines would mix with ours", h.path)
	}
	var st unix.Stat_t
	if err := sysStat(h.path, &st); err != nil {
		return fmt.Errorf("cannot use home %s: %w", h.path, err)
	}
	if int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("cannot use home %s: it belongs to user %d: %w", h.path, st.Uid, fs.ErrPermission)
	}
	if st.Mode&0o077 != 0 {
		if foreign := h.foreign(); foreign != "" { // /tmp, say: nobody else could use it any more
			return fmt.Errorf("cannot use home %s: it is open to others, and %s; name a directory of its own, or `chmod 700` it", h.path, foreign)
		}
		reach("home.mode")
		if err := os.Chmod(h.path, 0o700); err != nil {
			return fmt.Errorf("cannot close home %s to others: %w", h.path, err)
		}
	}
	for _, d := range []string{h.enabledDir(), h.path + "/log"} {
		reach("home.fill")
		if err := os.Mkdir(d, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("cannot make home: %w", err)
		}
	}
	return h.makeRunRoot()
}

// foreign tells why a directory looks like one that others use. "" = it does not.
// A fresh tmpfs, which is open to all, may be a home.
func (h home) foreign() string {
	entries, err := os.ReadDir(h.path)
	if err != nil {
		return ""
	}
	for _, e := range entries {
		switch name := strings.TrimSuffix(e.Name(), temporarySuffix); name {
		case socketName, "daemon.pid", "daemon.json", "daemon.log", "enabled", "run", "log", "services", "lost+found":
		default:
			return fmt.Sprintf("it holds %q, which is not ours", name)
		}
	}
	return ""
}

// memoryLeast is what a tmpfs must have free (bytes): a service takes 0.2 MB there, and containers often have one of 64 MB.
const memoryLeast = 128 << 20

// memoryDirectory is where root's run/ lies: 1,000 starts take 1.4 s there, 1.8 s on ext4 (measured). "" = there is no tmpfs that does.
func memoryDirectory() string {
	if os.Geteuid() != 0 {
		return ""
	}
	for _, dir := range []string{"/run", "/dev/shm"} {
		if isTmpfs(dir) && freeBytes(dir) >= memoryLeast && sysAccess(dir, unix.W_OK|unix.X_OK) == nil {
			return dir
		}
	}
	return ""
}

// makeRunRoot makes run/; for root on a machine with a tmpfs, a link to a directory there. Of many at once one makes the link, and all use that.
func (h home) makeRunRoot() error {
	if base := memoryDirectory(); base != "" {
		fresh := base + "/diakonos/" + invocationText(randomBytes())[:16] // never that of a home that was deleted
		reach("run.link")
		_ = os.Symlink(fresh, h.runRoot()) // refused when run/ is there, as a link or a directory: it is used as it is
	}
	target, err := os.Readlink(h.runRoot())
	if err != nil {
		target = h.runRoot() // a plain directory does
	}
	reach("run.parent")
	if err := os.MkdirAll(filepath.Dir(target), 0o711); err != nil {
		return fmt.Errorf("cannot make run directory: %w", err)
	}
	reach("run.make")
	if err := os.Mkdir(target, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("cannot make run directory: %w", err)
	}
	var st unix.Stat_t
	if err := sysLstat(target, &st); err != nil || int(st.Uid) != os.Geteuid() || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("cannot use run directory %s: it is not a directory of ours", target)
	}
	return nil
}

// notifyDir is where notify sockets lie that run/ is too long for, or closed to the service's user. "" = there is no such place.
func (h home) notifyDir() string {
	base := os.Getenv("XDG_RUNTIME_DIR")
	if os.Geteuid() == 0 {
		base = "/run"
	}
	if base == "" {
		return ""
	}
	return base + "/diakonos-" + h.id()
}

// tidy removes what lies outside of a home of which nothing runs. What is not empty stays: the records of units do until `forget`.
func (h home) tidy() {
	reach("tidy.notify")
	_ = sysRmdir(h.notifyDir())
	if target, err := os.Readlink(h.runRoot()); err == nil {
		reach("tidy.run")
		_ = sysRmdir(target) // makeRunRoot makes it again
	}
}

// placeOf is what unit files in dir depend on.
func (h home) placeOf(dir string) place {
	return placeOf(dir, h.path, os.Geteuid(), os.Getenv("XDG_RUNTIME_DIR"), keeperPID() != 0)
}

// id names this home within a boot: it is short, survives a rename, and is a valid file name.
func (h home) id() string {
	var st unix.Stat_t
	if sysStat(h.path, &st) != nil {
		return "0"
	}
	return strconv.FormatUint(st.Dev, 16) + "-" + strconv.FormatUint(st.Ino, 16)
}

// scopeID is what a service of this home carries in DIAKONOS_SCOPE, whose separator is the colon.
func (h home) scopeID(name string) string {
	return h.id() + "/" + strings.ReplaceAll(name, ":", "%3A")
}

// serviceOf returns the service of this home that a process with this DIAKONOS_SCOPE belongs to. "" = none.
func (h home) serviceOf(scope string) string {
	for id := range strings.SplitSeq(scope, ":") {
		if name, ok := strings.CutPrefix(id, h.id()+"/"); ok {
			return strings.ReplaceAll(name, "%3A", ":")
		}
	}
	return ""
}

// runNames lists the services that have a directory in run/, sorted.
func (h home) runNames() ([]string, error) {
	entries, err := os.ReadDir(h.runRoot())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// ---- records in slots

// recordFile is an open record: two slots, overwritten in turn. One owner.
type recordFile struct {
	fd   int
	made bool // there was none before
	seq  uint64
	room []byte // for both slots
}

// openRecord opens a record for writing.
func openRecord(path string) (*recordFile, error) {
	fd, made, err := openSlots(path, 2*slotBytes)
	if err != nil {
		return nil, err
	}
	r := openedRecord(fd)
	r.made = made
	return r, nil
}

// openedRecord goes on with a record that is open for writing.
func openedRecord(fd int) *recordFile {
	r := &recordFile{fd: fd, room: make([]byte, 2*slotBytes)}
	if n, err := sysPread(fd, r.room, 0); err == nil {
		_, r.seq, _ = newestSlot(r.room[:n]) // unreadable slots: begin at 0, both are overwritten
	}
	return r
}

// openSlots opens a file of slots and allocates those of a new one, so that a later write needs no space. made: they were not there.
func openSlots(path string, size int64) (fd int, made bool, err error) {
	reach("record.create")
	fd, err = openRetry(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return -1, false, fmt.Errorf("cannot open record %s: %w", path, err)
	}
	var st unix.Stat_t
	if err = sysFstat(fd, &st); err == nil && st.Size < size {
		made = true
		reach("record.allocate")
		if err = again(func() error { return unix.Fallocate(fd, 0, 0, size) }); err == unix.EOPNOTSUPP || err == unix.ENOSYS {
			_, err = sysPwrite(fd, make([]byte, size), 0)
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, false, fmt.Errorf("cannot allocate record %s: %w", path, err)
	}
	return fd, made, nil
}

// read reads what the record says now.
func (r *recordFile) read(v record) error {
	n, err := sysPread(r.fd, r.room, 0)
	if err != nil {
		return err
	}
	_, err = decodeSlots(r.room[:n], v)
	return err
}

// write replaces the older slot by one with this JSON text.
func (r *recordFile) write(body []byte) error {
	slot := r.room[:slotBytes]
	if err := encodeSlot(slot, r.seq+1, body); err != nil {
		return err
	}
	n, err := sysPwrite(r.fd, slot, int64((r.seq+1)%2)*slotBytes)
	if err == nil && n < len(slot) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return fmt.Errorf("cannot write record: %w", err)
	}
	r.seq++
	return nil
}

func (r *recordFile) close() { unix.Close(r.fd) }

// readRecord reads a record that somebody else may own. errNoRecord or fs.ErrNotExist tell why there is none.
func readRecord(path string, v record) error {
	fd, err := openRetry(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r := recordFile{fd: fd, room: make([]byte, 2*slotBytes)}
	return r.read(v)
}

// writeRecord writes a record once.
func writeRecord(path string, v record) error {
	r, err := openRecord(path)
	if err != nil {
		return err
	}
	defer r.close()
	reach("record.write")
	return r.write(encode(nil, v))
}

// readState reads run/NAME/state as far as it is of this boot; zero and an error otherwise.
func (h home) readState(name, boot string) (runRecord, error) {
	var rec runRecord
	err := readRecord(h.stateFile(name), &rec)
	return ofBoot(rec, err, boot)
}

// ofBoot passes on a record that was read, if it is of this boot.
func ofBoot(rec runRecord, err error, boot string) (runRecord, error) {
	if err == nil && (rec.Boot != boot || otherNamespace(rec.PIDNS)) {
		err = errOtherBoot
	}
	if err != nil {
		return runRecord{}, err
	}
	return rec, nil
}

// otherNamespace: the PIDs of a record mean nothing in our PID namespace. 0 = it was hidden there, or is here.
func otherNamespace(pidns uint64) bool {
	own := pidNamespace()
	return pidns != 0 && own != 0 && pidns != own
}

// errOtherBoot: the record was written before the machine or container was started anew, so it means nothing now.
var errOtherBoot = errors.New("record of another boot")

func (h home) readWant(name, boot string) (wantRecord, error) {
	var w wantRecord
	if err := readRecord(h.wantFile(name), &w); err != nil {
		return wantRecord{}, err
	}
	if w.Boot != boot {
		return wantRecord{}, errOtherBoot
	}
	return w, nil
}

// makeRunDir makes run/NAME with its allocated records. A `state` that somebody has deleted since is left to the shim, which looks for
// what it told of.
func (h home) makeRunDir(name string) error {
	reach("service.make")
	err := os.Mkdir(h.runDir(name), 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot make run directory: %w", err)
	}
	fd, _, err := openSlots(h.stateFile(name), 2*slotBytes)
	if err != nil {
		return err
	}
	unix.Close(fd)
	return nil
}

// maxText bounds one text in a record (bytes), so that the record fits its slot.
const maxText = 512

func cutText(t string) string { return cutTo(t, maxText) }

func cutTo(t string, most int) string {
	if len(t) <= most {
		return t
	}
	return strings.ToValidUTF8(t[:most], "")
}

// ---- records that are replaced

// temporarySuffix is for names of files that are about to be renamed. No unit name has it: a file of enabled/ is named after its unit.
const temporarySuffix = "~"

// replaceFile writes a file under a temporary name and renames it, so that a reader sees the old or the new content.
func replaceFile(path string, content []byte) error {
	tmp := path + temporarySuffix
	reach("file.create")
	fd, err := openRetry(tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	for len(content) > 0 && err == nil { // a disk that fills up takes a part first
		var n int
		reach("file.write")
		n, err = sysWrite(fd, content)
		content = content[max(n, 0):]
	}
	unix.Close(fd)
	if err == nil {
		reach("file.rename")
		err = sysRename(tmp, path)
	}
	if err != nil {
		reach("file.undo")
		_ = sysUnlink(tmp)
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return nil
}

// rewriteFile is replaceFile for what must be written on a full disk too: where there is no room for a second file, the content goes over
// that of the old one.
func rewriteFile(path string, content []byte) error {
	err := replaceFile(path, content)
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	fd, openErr := openRetry(path, unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if openErr != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if sysFstat(fd, &st) != nil {
		return err
	}
	blanks := bytes.Repeat([]byte{' '}, max(0, int(st.Size)-len(content))) // over the rest of the old content, should we be killed before the cut
	reach("file.overwrite")
	if n, _ := sysPwrite(fd, append(slices.Clip(content), blanks...), 0); n < len(content) {
		return err
	}
	reach("file.cut")
	return sysFtruncate(fd, int64(len(content)))
}

// syncFile makes a replaced file and its name durable: enabled/ must outlive a power cut.
func syncFile(path string) error {
	for _, p := range []string{path, filepath.Dir(path)} {
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		err = f.Sync()
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func writeJSON(path string, v record) error { return replaceFile(path, append(encode(nil, v), '\n')) }

func (h home) readUnit(name string) (*unit, error) {
	b, err := readSmall(h.unitFile(name))
	if err != nil {
		return nil, err
	}
	u := new(unit)
	if err := decode(b, u); err != nil {
		return nil, fmt.Errorf("cannot read %s: %v", h.unitFile(name), err)
	}
	return u, nil
}

// isDaemon: pid is that of our daemon. Its PID file may be missing on a full disk.
func (h home) isDaemon(pid int) bool {
	b, _ := readSmall(h.path + "/daemon.pid")
	if parsePIDFile(b) == pid {
		return true
	}
	d, up := h.liveDaemon()
	return up && d.Daemon.PID == pid
}

// liveDaemon is the daemon that daemon.json names, if it has come up and lives.
func (h home) liveDaemon() (daemonRecord, bool) {
	d, err := h.readDaemon()
	if err != nil || d.Started == 0 || otherNamespace(d.PIDNS) {
		return d, false
	}
	boot, _, err := bootIdentity()
	return d, err == nil && d.Boot == boot && processAlive(d.Daemon)
}

func (h home) readDaemon() (daemonRecord, error) {
	var d daemonRecord
	b, err := readSmall(h.daemonFile())
	if err != nil {
		return d, err
	}
	err = decode(b, &d)
	return d, err
}

func (h home) writeDaemon(d daemonRecord) error {
	return rewriteFile(h.daemonFile(), append(encode(nil, &d), '\n'))
}

// enabledUnits maps the names in enabled/ to their files.
func (h home) enabledUnits() (map[string]string, error) {
	entries, err := os.ReadDir(h.enabledDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	units := map[string]string{}
	for _, e := range entries {
		if name, err := unitName(e.Name()); err != nil || name != e.Name() {
			continue // a temporary file, or nothing of ours
		}
		b, err := readSmall(h.enabledFile(e.Name()))
		if err == nil {
			units[e.Name()] = strings.TrimSuffix(string(b), "\n")
		}
	}
	return units, nil
}

// ---- a daemon: finding it

// errNoDaemon: none runs, and none may be started.
var errNoDaemon = errors.New("no daemon is running")

// connect connects to the running daemon, and never starts one.
func (h home) connect() (*os.File, error) {
	reach("daemon.connect")
	f, err := dialAt(h.path, socketName)
	if err == nil {
		return f, nil
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("cannot connect to the daemon of %s: %w", h.path, err)
	}
	if errors.Is(err, unix.EAGAIN) {
		return nil, fmt.Errorf("the daemon of %s does not answer (its queue is full; is it stopped?)", h.path)
	}
	return nil, errNoDaemon
}

// connectOrStart connects to the daemon, and starts one where there is none. Whoever is refused the home's lock tries to connect and
// to take the lock in turn.
func (h home) connectOrStart() (*os.File, error) {
	f, err := h.connect()
	if err == nil || !errors.Is(err, errNoDaemon) {
		return f, err
	}
	if os.Getenv(noStartVariable) == "1" {
		return nil, fmt.Errorf("%w, and %s=1 forbids to start one", errNoDaemon, noStartVariable)
	}
	if err := h.make(); err != nil {
		return nil, err
	}
	return h.startAndConnect()
}

// startAndConnect starts the daemon, unless somebody else does. A client inside a service has its shim do that: started by the client, the
// daemon would belong to the tree of that service, and end with it.
func (h home) startAndConnect() (*os.File, error) {
	s := h.search()
	service, asked := h.serviceOf(os.Getenv(scopeVariable)), 0
	for {
		f, lock, err := s.next()
		if f != nil || err != nil {
			return f, err
		}
		if h.someoneElseStarts() && time.Since(s.began) < otherStarterLimit {
			unix.Close(lock)
			s.wait()
			continue
		}
		if service != "" && asked < healAsks {
			unix.Close(lock) // the shim takes it
			h.askShimToHeal(service)
			asked++
			continue
		}
		closeInherited(3) // a pipe or a lock of our caller must not live as long as the daemon
		err = h.startDaemon(lock, launch{env: daemonEnvironment(os.Environ())}, nil)
		unix.Close(lock)
		if err != nil {
			return nil, err
		}
	}
}

// search looks for the daemon and for the home's lock in turn: whoever is refused the one tries the other.
type search struct {
	home    home
	began   time.Time
	pause   time.Duration
	hurried bool
}

func (h home) search() *search { return &search{home: h, began: time.Now(), pause: time.Millisecond} }

// next returns a connection to the daemon, or the lock, which is then the caller's.
func (s *search) next() (conn *os.File, lock int, err error) {
	for time.Since(s.began) < startLimit {
		f, err := s.home.connect()
		if err == nil || !errors.Is(err, errNoDaemon) {
			return f, -1, err
		}
		reach("home.lock")
		lock, err := lockDirectory(s.home.path)
		if err == nil {
			return nil, lock, nil
		}
		if err != unix.EWOULDBLOCK {
			return nil, -1, fmt.Errorf("cannot lock home %s: %w", s.home.path, err)
		}
		if !s.hurried && time.Since(s.began) > bindPatience {
			s.hurried = true
			s.home.askToBindAnew()
		}
		s.wait()
	}
	return nil, -1, fmt.Errorf("the daemon of %s holds its lock but does not answer", s.home.path)
}

// wait: a client waits for another process here; there is nothing to be woken by.
func (s *search) wait() {
	time.Sleep(s.pause)
	s.pause = min(2*s.pause, 50*time.Millisecond)
}

// someoneElseStarts: the last daemon was kept alive by something else, which may be about to start it again.
func (h home) someoneElseStarts() bool {
	d, err := h.readDaemon()
	return err == nil && d.Wanted == wantedRunning && d.Mode != modeAuto
}

// askToBindAnew tells a daemon whose socket was deleted to make it again: SIGHUP, only to the identity that it wrote itself.
func (h home) askToBindAnew() {
	if d, up := h.liveDaemon(); up {
		reach("daemon.hang-up")
		_ = signalProcess(d.Daemon, syscall.SIGHUP) // best effort: the caller goes on trying
	}
}

// signalShim sends a signal to the shim that holds the lock of a service: SIGHUP makes it bind its socket again. pid is what its record says,
// which may be that of its predecessor; then shim.pid knows better. A shim is known by its name and by its working directory, which no
// other process has under that name. false: there is none that we can see.
func (h home) signalShim(name string, pid int, sig syscall.Signal) bool {
	b, _ := readSmall(h.shimPID(name))
	for _, pid := range []int{pid, parsePIDFile(b)} {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		sent := false
		if h.isShim(name, pid) {
			reach("shim.signal")
			sent = pidfdSignal(fd, sig) == nil
		}
		unix.Close(fd)
		if sent {
			return true
		}
	}
	return false
}

func (h home) isShim(name string, pid int) bool {
	var dir, cwd unix.Stat_t
	st, err := readStat(pid)
	return err == nil && st.comm == shimName && sysStat(h.runDir(name), &dir) == nil &&
		sysStat("/proc/"+strconv.Itoa(pid)+"/cwd", &cwd) == nil && dir.Ino == cwd.Ino && dir.Dev == cwd.Dev
}

// askShimToHeal lets the shim of the service that we run in start the daemon, and waits until it has, or cannot.
func (h home) askShimToHeal(name string) {
	reach("heal.connect")
	f, err := dialAt(h.runDir(name), shimSocketName)
	if err != nil {
		return
	}
	defer f.Close()
	c := newConn(f)
	reach("heal.greet")
	if c.send(shimFrame{Op: opHello, Proto: protocolVersion, Role: "client"}) == nil {
		reach("heal.ask")
		_ = c.send(shimFrame{Op: opHeal})
		_ = f.SetReadDeadline(time.Now().Add(connectTimeout))
		for c.readFrame(new(shimFrame)) == nil { // until the shim closes: the daemon is started, or cannot be
		}
	}
}

// ---- a daemon: starting it

// keeperPID is the PID of the first process, for one of us that it keeps; 0 = there is none.
func keeperPID() int {
	pid, _ := strconv.Atoi(os.Getenv(keeperVariable))
	return pid
}

// daemonEnvironment drops from env what belongs to a service that we may run in.
func daemonEnvironment(env []string) []string {
	keep := make([]string, 0, len(env)+2)
	outer := ""
	for _, e := range env {
		name, val, _ := strings.Cut(e, "=")
		switch {
		case name == scopeVariable || name == outerVariable && outer == "":
			outer = val
		case name == "INVOCATION_ID", name == "NOTIFY_SOCKET", strings.HasPrefix(name, "LISTEN_"), strings.HasPrefix(name, "WATCHDOG_"),
			name == startedVariable, name == cgroupVariable, name == homeVariable, name == outerVariable, name == orderVariable, name == keeperVariable:
		default:
			keep = append(keep, e)
		}
	}
	if outer != "" {
		keep = append(keep, outerVariable+"="+outer)
	}
	return keep
}

// bareEnvironment spares the Go runtime of stages and shims a look for time zone and CPU limits, and all but one processor: 0.2 ms and two
// threads of each start (measured). A service gets none of it: its environment is built.
var bareEnvironment = [...]string{"TZ=", "GOMAXPROCS=1"}

// savedPrefix keeps what bareEnvironment replaces in a shim's environment, which PassEnvironment and a healed daemon are to see.
const savedPrefix = "DIAKONOS_SAVED_"

// bare returns env with bareEnvironment in it; unbare undoes that in the process that was started with it.
func bare(env []string) []string {
	out := make([]string, 0, len(env)+2*len(bareEnvironment))
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		if slices.ContainsFunc(bareEnvironment[:], func(b string) bool { return strings.HasPrefix(b, name+"=") }) {
			e = savedPrefix + e
		}
		out = append(out, e)
	}
	return append(out, bareEnvironment[:]...)
}

func unbare() {
	for _, b := range bareEnvironment {
		name, _, _ := strings.Cut(b, "=")
		_ = os.Unsetenv(name) // cannot fail for a valid name
		if v, ok := os.LookupEnv(savedPrefix + name); ok {
			_ = os.Setenv(name, v)
			_ = os.Unsetenv(savedPrefix + name)
		}
	}
}

// shimArguments is the command line of a shim, as a process list shows it.
func shimArguments(name string) []string {
	if strings.HasPrefix(name, "-") {
		return []string{shimName, "--", name}
	}
	return []string{shimName, name}
}

// startDaemon starts a daemon that inherits lock, and waits until it answers. l says how: its environment, program and parent. hangups is
// who takes our own SIGHUP, nil = nobody: it is ignored for the moment of the start.
func (h home) startDaemon(lock int, l launch, hangups chan<- os.Signal) error {
	reach("daemon.log")
	log, err := openRetry(h.daemonLog(), unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NOCTTY, 0o600)
	if err != nil {
		return fmt.Errorf("cannot start the daemon: cannot open its log: %w", err)
	}
	defer unix.Close(log)
	null, err := openNothing()
	if err != nil {
		return fmt.Errorf("cannot start the daemon: %w", err)
	}
	defer unix.Close(null)
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("cannot start the daemon: %w", err)
	}
	defer r.Close()
	ignored := signal.Ignored(syscall.SIGHUP)
	signal.Ignore(syscall.SIGHUP) // inherited: until its handlers stand, a SIGHUP must not end it
	l.argv = []string{daemonName}
	l.env = append(l.env, homeVariable+"="+h.path, startedVariable+"="+modeAuto)
	l.files = []uintptr{uintptr(null), uintptr(log), uintptr(log), uintptr(lock), w.Fd()}
	l.dir, l.setsid, l.cgroup = "/", true, -1
	reach("daemon.start")
	_, pidfd, err := l.start()
	switch {
	case hangups != nil:
		signal.Notify(hangups, syscall.SIGHUP)
	case !ignored:
		signal.Reset(syscall.SIGHUP)
	}
	w.Close()
	if err != nil {
		return fmt.Errorf("cannot start the daemon: %w", err)
	}
	unix.Close(pidfd)
	said, _ := io.ReadAll(r) // ends when it answers, or dies
	if text := strings.TrimSpace(string(said)); text != "ok" {
		if text == "" {
			text = "it died at once; see " + h.daemonLog()
		}
		return fmt.Errorf("cannot start the daemon: %s", text)
	}
	return nil
}

// newerBinary returns the program that daemon.json names, if a daemon may be started from it: one that is trusted and not older than our
// own. "" = use our own.
func (d daemonRecord) newerBinary() string {
	var own unix.Stat_t
	st, err := trustedProgram(d.Binary)
	if err != nil || sysStat(selfExe(), &own) != nil || st.Mtim.Nano() < own.Mtim.Nano() {
		return ""
	}
	return d.Binary
}

// trustedProgram looks at a program that we are to start or to become: a regular file of ours or root's that nobody else can write.
func trustedProgram(path string) (st unix.Stat_t, err error) {
	if err = sysStat(path, &st); err != nil {
		return st, fmt.Errorf("cannot use program %s: %w", path, err)
	}
	if ours := st.Uid == 0 || int(st.Uid) == os.Geteuid(); !ours || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o022 != 0 {
		return st, fmt.Errorf("cannot use program %s: it has to be a file of ours or root's that others cannot write", path)
	}
	return st, nil
}

// ---- our own messages

const (
	ownLogLines = 64                     // that wait for a disk which hangs
	ownLogEnd   = 100 * time.Millisecond // for the last of them when the process ends
)

// ownLog writes our own lines, to daemon.log or stderr, in a goroutine of its own, which begins with the first: the disk may hang, and the
// terminal be stopped. Its owner never waits; lines that find no room are dropped and counted.
type ownLog struct {
	files   []int
	lines   chan string // nil = none was written yet
	written chan struct{}
	dropped int
}

func (l *ownLog) write(line string) {
	if l.lines == nil {
		l.lines, l.written = make(chan string, ownLogLines), make(chan struct{})
		go l.run(l.lines)
	}
	line = string(appendVisible(nil, line, "\t\n")) // it may name a path, or what a service says
	if l.dropped > 0 {
		line = fmt.Sprintf("%d messages could not be written and are missing here\n", l.dropped) + line
	}
	select {
	case l.lines <- line:
		l.dropped = 0
	default:
		l.dropped++
	}
}

func (l *ownLog) run(lines <-chan string) {
	for line := range lines {
		for _, fd := range l.files {
			reach("message.write")
			_, _ = sysWrite(fd, []byte(line)) // a full disk must stop nobody
		}
	}
	close(l.written)
}

// end is the last call: it waits until all is written, or no longer than ownLogEnd.
func (l *ownLog) end() (written bool) {
	if l.lines == nil {
		return true
	}
	close(l.lines)
	select {
	case <-l.written:
		return true
	case <-time.After(ownLogEnd):
		return false
	}
}

// ---- status from records

// statusFacts is what a status needs beside unit and record.
type statusFacts struct {
	loadState, loadError string
	path                 string // of the file that would be read
	shimAlive            bool
	outdated             bool // the shim runs another program than who tells the status
	enabled, changed     bool
}

// statusOf composes the public object. u may be nil.
func statusOf(name string, u *unit, rec runRecord, x statusFacts) unitStatus {
	sub := rec.Sub
	if sub == "" {
		sub = dead
	}
	s := unitStatus{Name: name, LoadState: x.loadState, LoadError: x.loadError, ActiveState: activeOf(sub), SubState: sub, Result: rec.Result,
		Reason: rec.Reason, StatusText: rec.StatusText, MainPID: rec.Main.PID, ControlPID: rec.Control.PID,
		Restarts: rec.Restarts, Enabled: x.enabled, ChangedOnDisk: x.changed, InvocationID: rec.Invocation, Cgroup: rec.Cgroup}
	if s.Result == "" {
		s.Result = resultSuccess
	}
	if u == nil && x.loadState == "bad-setting" {
		s.UnitFile = x.path
	}
	if u != nil {
		s.Description, s.Documentation, s.UnitFile = u.Description, strings.Join(u.Documentation, " "), u.Path
	}
	if x.shimAlive {
		s.ShimPID, s.ShimOutdated = rec.ShimPID, x.outdated
	}
	s.Supervised = x.shimAlive || rec.Main.zero() && rec.Control.zero() && (sub == dead || sub == failed || sub == exited)
	s.StateSince, s.StartedAt = stamp(rec.Since), stamp(rec.Started)
	if sub == autoRestart && rec.Deadline != 0 {
		s.NextStart = stamp(time.Now().UnixNano() + int64(rec.Deadline-bootNow()))
	}
	switch rec.Exit.How {
	case exitExited:
		s.ExitCode = &rec.Exit.Status
	case exitKilled, exitDumped:
		n := signalName(syscall.Signal(rec.Exit.Status))
		s.ExitSignal = &n
	}
	return s
}

// stamp formats wall clock nanoseconds as RFC 3339; nil for 0.
func stamp(ns int64) *string {
	if ns == 0 {
		return nil
	}
	t := time.Unix(0, ns).UTC().Format(time.RFC3339Nano)
	return &t
}

// changedOnDisk tells whether the file of u is no longer what was read. gone: there is no such file any more.
func changedOnDisk(u *unit) (changed, gone bool) {
	var st unix.Stat_t
	if err := sysStat(u.Path, &st); err != nil {
		return false, err == unix.ENOENT || err == unix.ENOTDIR
	}
	return st.Mtim.Nano() != u.ModTime || st.Size != u.Size || st.Ino != u.Inode, false
}

// statusFromFiles answers for `list` and `status` where no daemon can be had.
func (h home) statusFromFiles(name, serviceDir string) unitStatus {
	var rec runRecord
	boot, _, err := bootIdentity()
	if err == nil {
		rec, err = h.readState(name, boot)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist) && hasMainPID(h.runDir(name)):
		rec = runRecord{Sub: unknown, Reason: "its state was deleted"}
	case err == nil, errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR), errors.Is(err, errOtherBoot), errors.Is(err, errNeverWritten):
	default:
		rec = runRecord{Sub: unknown, Reason: fmt.Sprintf("its state cannot be read: %v", err)}
	}
	x := statusFacts{loadState: "loaded", path: unitPath(serviceDir, name), shimAlive: lockIsTaken(h.runDir(name))}
	u, err := h.readUnit(name)
	if err != nil {
		u, err = loadUnit(x.path, h.placeOf(serviceDir))
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		x.loadState = "not-found"
	case err != nil:
		x.loadState, x.loadError = "bad-setting", err.Error()
	default:
		changed, gone := changedOnDisk(u)
		x.changed = changed
		if gone {
			x.loadState = "not-found"
		}
	}
	_, enabledErr := os.Lstat(h.enabledFile(name))
	x.enabled = enabledErr == nil
	if !x.shimAlive {
		rec = withoutDead(rec)
	} else if own := programOf("self"); own != (programID{}) {
		other := programOf(strconv.Itoa(rec.ShimPID))
		x.outdated = other != own && other != (programID{})
	}
	return statusOf(name, u, rec, x)
}

// hasMainPID: a main process was started, and nobody has seen its end.
func hasMainPID(dir string) bool {
	b, _ := readSmall(dir + "/main.pid")
	return parsePIDFile(b) != 0
}

// withoutDead takes from a record that no shim keeps what lives no more. A run of which nothing is left has ended; the next shim finds
// out how.
func withoutDead(rec runRecord) runRecord {
	recorded := !rec.Main.zero() || !rec.Control.zero()
	for _, p := range []*pidRef{&rec.Main, &rec.Control} {
		if !p.zero() && !processAlive(*p) {
			*p = pidRef{}
		}
	}
	if recorded && rec.Main.zero() && rec.Control.zero() {
		rec.Sub, rec.Result, rec.Exit = failed, resultLost, exitStatus{How: exitLost}
		rec.Reason = "it has ended, and nothing of ours was there to see it; the next daemon deals with it"
	}
	return rec
}

// daemonStatusFromFiles answers `daemon-status` when none runs.
func (h home) daemonStatusFromFiles() daemonStatus {
	d, _ := h.readDaemon()
	return daemonStatus{Home: h.path, Version: d.Build, Mode: d.Mode}
}
