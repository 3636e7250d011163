// Role: unit file -> immutable, validated unit; the table of all keys.
// Runs in: client, daemon, shim.
// Owns: nothing; a unit is never changed once it is made, only replaced whole.
// Uses: codec, command, value.

package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// unit is one validated unit file. It is immutable. It travels to the shim as JSON (run/NAME/unit.json), so all its
// fields are plain values. The zero value of a field is not always its default: parseUnit fills defaults in.
type unit struct {
	Name    string // without .service
	Path    string // absolute path of the file
	ModTime int64  // of the file as read, ns
	Size    int64  // of the file as read, bytes
	Inode   uint64 // of the file as read

	Description   string
	Documentation []string
	After         []string // names without .service, as are all below
	Before        []string
	Requires      []string
	Wants         []string
	BindsTo       []string
	PartOf        []string
	Conflicts     []string

	FailureAction    unitAction
	SuccessAction    unitAction
	StartLimitAction unitAction

	Type          serviceType
	ExecStartPre  []command
	ExecStart     []command
	ExecStartPost []command
	ExecReload    []command
	ExecStop      []command
	ExecStopPost  []command

	PIDFile         string // absolute
	GuessMainPID    bool
	RemainAfterExit bool
	NotifyAccess    notifyAccess

	Restart                  restartPolicy
	RestartSec               time.Duration // omitted (negative) = the growing default delay
	RestartMaxDelaySec       time.Duration
	RestartPreventExitStatus exitSet
	RestartForceExitStatus   exitSet
	SuccessExitStatus        exitSet
	StartLimitBurst          int // 0 = no limit
	StartLimitIntervalSec    time.Duration
	TimeoutStartSec          time.Duration // infinity = none
	TimeoutStopSec           time.Duration // infinity = none
	RuntimeMaxSec            time.Duration // infinity = none

	KillSignal  syscall.Signal
	KillMode    killMode
	SendSIGKILL bool

	WorkingDirectory    string // absolute; "~" = the user's home; "" = / for root's daemon, else the user's home
	WorkingDirectorySet bool   // the file names it: then failing to enter it is an error
	Environment         []string
	EnvironmentFile     []environmentFile
	PassEnvironment     []string
	UnsetEnvironment    []string
	User                string
	Group               string
	UMask               uint32

	LogMaxSize  int64 // bytes
	LogMaxFiles int   // rotated files kept, beside current
}

func (u *unit) fields(c *codec) {
	textField(c, "Name", always, &u.Name)
	textField(c, "Path", always, &u.Path)
	numberField(c, "ModTime", always, &u.ModTime)
	numberField(c, "Size", always, &u.Size)
	numberField(c, "Inode", always, &u.Inode)
	textField(c, "Description", always, &u.Description)
	textsField(c, "Documentation", always, &u.Documentation)
	textsField(c, "After", always, &u.After)
	textsField(c, "Before", always, &u.Before)
	textsField(c, "Requires", always, &u.Requires)
	textsField(c, "Wants", always, &u.Wants)
	textsField(c, "BindsTo", always, &u.BindsTo)
	textsField(c, "PartOf", always, &u.PartOf)
	textsField(c, "Conflicts", always, &u.Conflicts)
	textField(c, "FailureAction", always, &u.FailureAction)
	textField(c, "SuccessAction", always, &u.SuccessAction)
	textField(c, "StartLimitAction", always, &u.StartLimitAction)
	textField(c, "Type", always, &u.Type)
	recordsField(c, "ExecStartPre", always, &u.ExecStartPre)
	recordsField(c, "ExecStart", always, &u.ExecStart)
	recordsField(c, "ExecStartPost", always, &u.ExecStartPost)
	recordsField(c, "ExecReload", always, &u.ExecReload)
	recordsField(c, "ExecStop", always, &u.ExecStop)
	recordsField(c, "ExecStopPost", always, &u.ExecStopPost)
	textField(c, "PIDFile", always, &u.PIDFile)
	flagField(c, "GuessMainPID", always, &u.GuessMainPID)
	flagField(c, "RemainAfterExit", always, &u.RemainAfterExit)
	textField(c, "NotifyAccess", always, &u.NotifyAccess)
	textField(c, "Restart", always, &u.Restart)
	numberField(c, "RestartSec", always, &u.RestartSec)
	numberField(c, "RestartMaxDelaySec", always, &u.RestartMaxDelaySec)
	recordField(c, "RestartPreventExitStatus", always, &u.RestartPreventExitStatus)
	recordField(c, "RestartForceExitStatus", always, &u.RestartForceExitStatus)
	recordField(c, "SuccessExitStatus", always, &u.SuccessExitStatus)
	numberField(c, "StartLimitBurst", always, &u.StartLimitBurst)
	numberField(c, "StartLimitIntervalSec", always, &u.StartLimitIntervalSec)
	numberField(c, "TimeoutStartSec", always, &u.TimeoutStartSec)
	numberField(c, "TimeoutStopSec", always, &u.TimeoutStopSec)
	numberField(c, "RuntimeMaxSec", always, &u.RuntimeMaxSec)
	numberField(c, "KillSignal", always, &u.KillSignal)
	textField(c, "KillMode", always, &u.KillMode)
	flagField(c, "SendSIGKILL", always, &u.SendSIGKILL)
	textField(c, "WorkingDirectory", always, &u.WorkingDirectory)
	flagField(c, "WorkingDirectorySet", always, &u.WorkingDirectorySet)
	textsField(c, "Environment", always, &u.Environment)
	recordsField(c, "EnvironmentFile", always, &u.EnvironmentFile)
	textsField(c, "PassEnvironment", always, &u.PassEnvironment)
	textsField(c, "UnsetEnvironment", always, &u.UnsetEnvironment)
	textField(c, "User", always, &u.User)
	textField(c, "Group", always, &u.Group)
	numberField(c, "UMask", always, &u.UMask)
	numberField(c, "LogMaxSize", always, &u.LogMaxSize)
	numberField(c, "LogMaxFiles", always, &u.LogMaxFiles)
}

// maxStartLimit bounds StartLimitBurst: the start times of the interval lie in the record of the service, which has a fixed size.
const maxStartLimit = 100

// omitted marks RestartSec that the file does not give.
const omitted = time.Duration(-1)

// environmentFile is one entry of EnvironmentFile.
type environmentFile struct {
	Path     string // absolute
	Optional bool   // prefix -
}

func (f *environmentFile) fields(c *codec) {
	textField(c, "Path", always, &f.Path)
	flagField(c, "Optional", always, &f.Optional)
}

// unitAction is what the end of a service does to all of them; "" = none, as in units of older versions.
type unitAction string

const (
	actionNone unitAction = ""
	actionExit unitAction = "exit" // stop everything, and end with the exit code of the service
)

type serviceType string

const (
	typeSimple  serviceType = "simple"
	typeExec    serviceType = "exec"
	typeForking serviceType = "forking"
	typeOneshot serviceType = "oneshot"
	typeNotify  serviceType = "notify"
)

type restartPolicy string

const (
	restartNo         restartPolicy = "no"
	restartAlways     restartPolicy = "always"
	restartOnSuccess  restartPolicy = "on-success"
	restartOnFailure  restartPolicy = "on-failure"
	restartOnAbnormal restartPolicy = "on-abnormal"
	restartOnAbort    restartPolicy = "on-abort"
	restartOnWatchdog restartPolicy = "on-watchdog"
)

type killMode string

const (
	killControlGroup killMode = "control-group"
	killMixed        killMode = "mixed"
	killProcess      killMode = "process"
	killNone         killMode = "none"
)

type notifyAccess string

const (
	notifyNone notifyAccess = "none"
	notifyMain notifyAccess = "main"
	notifyExec notifyAccess = "exec"
	notifyAll  notifyAccess = "all"
)

// place is what the meaning of a unit file depends on beside its text.
type place struct {
	EUID       int    // effective user of the daemon that will run it
	RuntimeDir string // base of a relative PIDFile: /run for root, $XDG_RUNTIME_DIR else; "" = there is none
	Kept       bool   // a container keeps the daemon: logs are small, for they are copied to its standard output
	Shared     bool   // the service directory is $DIAKONOS_HOME/services or /etc/diakonos: no project around it
}

// placeOf makes the place of the units in dir. runtimeDir is $XDG_RUNTIME_DIR; root does not need it.
func placeOf(dir, home string, euid int, runtimeDir string, kept bool) place {
	if euid == 0 {
		runtimeDir = "/run"
	}
	dir = filepath.Clean(dir)
	return place{euid, runtimeDir, kept, dir == "/etc/diakonos" || dir == filepath.Join(home, "services")}
}

// unitError holds all mistakes of one unit file, by line.
type unitError struct {
	Path     string
	Mistakes []mistake
}

func (e unitError) Error() string {
	lines := make([]string, 0, len(e.Mistakes))
	for _, m := range e.Mistakes {
		if m.Line == 0 {
			lines = append(lines, e.Path+": "+m.Text)
			continue
		}
		lines = append(lines, fmt.Sprintf("%s:%d: %s", e.Path, m.Line, m.Text))
	}
	return strings.Join(lines, "\n")
}

// ---- names and files

const unitSuffix = ".service"

// unitNameBytes is the longest name with its suffix, as in systemd; a file name could not be longer either.
const unitNameBytes = 255

// unitName turns NAME or NAME.service into NAME.
func unitName(arg string) (string, error) {
	name := strings.TrimSuffix(arg, unitSuffix)
	switch {
	case name == "":
		return "", errors.New("a unit name cannot be empty")
	case name == "." || name == ".." || strings.HasSuffix(name, unitSuffix):
		return "", fmt.Errorf("%s is not a unit name", shown(arg))
	case len(name)+len(unitSuffix) > unitNameBytes:
		return "", fmt.Errorf("unit name %s is longer than %d bytes", shown(arg), unitNameBytes-len(unitSuffix))
	}
	for _, r := range name {
		if !isNameByte(byte(r)) && !strings.ContainsRune(`:.\@-`, r) || r > 0x7f {
			return "", fmt.Errorf("unit name %s contains %q; allowed are letters, digits and : _ . \\ @ -", shown(arg), r)
		}
	}
	return name, nil
}

// unitPath is the file of a unit.
func unitPath(dir, name string) string { return filepath.Join(dir, name+unitSuffix) }

// findUnits reads the names of all units of a service directory, sorted. Files that begin with a dot are
// leftovers of editors.
func findUnits(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot read service directory: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() || strings.HasPrefix(e.Name(), ".") || !strings.HasSuffix(e.Name(), unitSuffix) {
			continue
		}
		if name, err := unitName(e.Name()); err == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// maxUnitBytes bounds a unit file: reading garbage must cost neither memory nor time. Nobody can override it.
const maxUnitBytes = 1 << 20

// loadUnit reads a unit file. What is wrong with the file is a unitError; errors of reading it can be
// compared with fs.ErrNotExist.
func loadUnit(path string, at place) (*unit, error) {
	full, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read unit file %s: %w", path, err)
	}
	text, info, err := readUnitFile(full, at.EUID)
	if err != nil {
		return nil, renamed(err, path)
	}
	u, err := parseUnit(full, text, at)
	if err != nil {
		return nil, renamed(err, path)
	}
	u.ModTime, u.Size, u.Inode = info.ModTime().UnixNano(), info.Size(), info.Sys().(*syscall.Stat_t).Ino
	return u, nil
}

// renamed makes mistakes show the path that the user gave.
func renamed(err error, path string) error {
	var wrong unitError
	if errors.As(err, &wrong) {
		wrong.Path = path
		return wrong
	}
	return err
}

func readUnitFile(path string, euid int) ([]byte, fs.FileInfo, error) {
	// Looked at before it is opened: opening a device can have effects.
	info, err := os.Stat(path)
	if err != nil {
		if target, noLink := os.Readlink(path); noLink == nil && errors.Is(err, fs.ErrNotExist) {
			return nil, nil, fileMistake(path, "a link to %s, which is not there", shown(target))
		}
		return nil, nil, fmt.Errorf("cannot read unit file: %w", err)
	}
	if err := checkUnitFile(path, info, euid); err != nil {
		return nil, nil, err
	}
	// Nothing may block, whatever the path has become since.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot read unit file: %w", err)
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return nil, nil, fmt.Errorf("cannot read unit file: %w", err)
	}
	if err := checkUnitFile(path, info, euid); err != nil {
		return nil, nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxUnitBytes+1))
	if err != nil {
		return nil, nil, fmt.Errorf("cannot read unit file: %w", err)
	}
	if len(text) > maxUnitBytes {
		return nil, nil, fileMistake(path, tooLarge)
	}
	return text, info, nil
}

const tooLarge = "the file is larger than 1 MiB, this is not a unit"

func fileMistake(path, format string, args ...any) error {
	return unitError{path, []mistake{{0, fmt.Sprintf(format, args...)}}}
}

// checkUnitFile refuses what is no plain file of bounded size, and for root what another user could change:
// it names programs that run as root.
func checkUnitFile(path string, info fs.FileInfo, euid int) error {
	if !info.Mode().IsRegular() {
		return fileMistake(path, "not a regular file")
	}
	if info.Size() > maxUnitBytes {
		return fileMistake(path, tooLarge)
	}
	if euid != 0 {
		return nil
	}
	owner := info.Sys().(*syscall.Stat_t)
	mode := info.Mode().Perm()
	switch {
	case owner.Uid != 0:
		return fileMistake(path, "owned by user %d, not by root; run `chown root` on it", owner.Uid)
	case mode&0o002 != 0:
		return fileMistake(path, "writable by all users; run `chmod o-w` on it")
	case mode&0o020 != 0 && owner.Gid != 0:
		return fileMistake(path, "writable by group %d; run `chmod g-w` on it", owner.Gid)
	}
	return nil
}

// ---- text -> unit

// parseUnit turns the text of a unit file into a unit with all defaults. path must be absolute: it gives the
// name and the default working directory. An error is a unitError.
func parseUnit(path string, text []byte, at place) (*unit, error) {
	base := filepath.Base(path)
	name, err := unitName(base)
	if err == nil && !strings.HasSuffix(base, unitSuffix) {
		err = fmt.Errorf("the name of a unit file ends in %s", unitSuffix)
	}
	if err != nil {
		return nil, fileMistake(path, "%v", err)
	}
	doc, places, wrong := readTOML(text)
	if wrong != nil {
		return nil, unitError{path, []mistake{*wrong}}
	}
	p := &unitParser{u: defaultUnit(name, path), at: at, places: places, given: map[string]int{}}
	if at.Kept {
		p.u.LogMaxSize, p.u.LogMaxFiles = keptLogMaxSize, keptLogMaxFiles
	}
	if !at.Shared {
		p.u.WorkingDirectory = filepath.Dir(filepath.Dir(path))
	}
	p.sections(doc)
	p.check()
	if len(p.mistakes) == 0 {
		return p.u, nil
	}
	slices.SortStableFunc(p.mistakes, func(a, b mistake) int { return cmp.Compare(a.Line, b.Line) })
	return nil, unitError{path, p.mistakes}
}

// Defaults (systemd-system.conf(5); restart delay and logs are ours).
const (
	defaultTimeout         = 90 * time.Second
	defaultRestartMaxDelay = time.Minute
	defaultStartLimit      = 10 * time.Second
	defaultLogMaxSize      = 10 << 20 // bytes
	defaultLogMaxFiles     = 5
	keptLogMaxSize         = 1 << 20 // in a container
	keptLogMaxFiles        = 1       // beside current
	defaultUMask           = 0o022
)

func defaultUnit(name, path string) *unit {
	return &unit{
		Name: name, Path: path,
		Type: typeSimple, GuessMainPID: true, NotifyAccess: notifyNone,
		Restart: restartNo, RestartSec: omitted, RestartMaxDelaySec: defaultRestartMaxDelay,
		StartLimitIntervalSec: defaultStartLimit,
		TimeoutStartSec:       defaultTimeout, TimeoutStopSec: defaultTimeout, RuntimeMaxSec: infinity,
		KillSignal: syscall.SIGTERM, KillMode: killControlGroup, SendSIGKILL: true,
		UMask: defaultUMask, LogMaxSize: defaultLogMaxSize, LogMaxFiles: defaultLogMaxFiles,
	}
}

// unitParser fills one unit. Its value methods read the value of the present key and note what is wrong.
type unitParser struct {
	u        *unit
	at       place
	places   []keyPlace
	given    map[string]int // line of each key that the file has
	mistakes []mistake

	// of the present key
	key   string
	val   any
	raw   string
	line  int
	stuck bool // it holds what is no value at all: enough is said
}

// wrongAt notes a mistake.
func (p *unitParser) wrongAt(line int, format string, args ...any) {
	p.mistakes = append(p.mistakes, mistake{line, fmt.Sprintf(format, args...)})
}

// wrong notes a mistake in the value of the present key.
func (p *unitParser) wrong(err error) {
	if err != nil && !p.stuck {
		p.wrongAt(p.line, "%s: %v", p.key, err)
	}
}

// find returns where a key or section stands; a table without a header of its own, where its first key is.
func (p *unitParser) find(path ...string) keyPlace {
	for _, at := range p.places {
		if len(at.path) >= len(path) && slices.Equal(at.path[:len(path)], path) {
			return at
		}
	}
	if len(path) > 1 {
		return p.find(path[:len(path)-1]...)
	}
	return keyPlace{path, 1, ""}
}

const (
	sectionUnit    = "unit"
	sectionService = "service"
)

func (p *unitParser) sections(doc map[string]any) {
	for _, name := range slices.Sorted(maps.Keys(doc)) {
		at := p.find(name)
		keys, isTable := doc[name].(map[string]any)
		section := strings.ToLower(name)
		known := section == sectionUnit || section == sectionService
		switch {
		case known && !isTable:
			p.wrongAt(at.line, "%s must be a section: [%s]", name, section)
			p.given[section] = at.line
			p.mistook("ExecStart", at.line)
		case known:
			if name != section {
				p.wrongAt(at.line, "unknown section [%s]: sections are lower case, write [%s]", name, section)
			}
			p.given[section] = at.line
			p.section(name, section, keys)
		case !isTable:
			p.wrongAt(at.line, "%s", strayKey(name))
		case section == "install":
			p.wrongAt(at.line, "unknown section [%s]: run `diakonos enable %s` instead", name, p.u.Name)
		default:
			p.unknownSection(at.line, name)
		}
	}
}

func (p *unitParser) unknownSection(line int, name string) {
	near := nearest(name, []string{sectionUnit, sectionService})
	if near == sectionService {
		p.given[near] = line
		p.mistook("ExecStart", line)
	}
	p.wrongAt(line, "unknown section [%s]%s", shortName(name), meant(near, "[%s]"))
}

// section reads the keys of a section, which the file may spell in another case.
func (p *unitParser) section(spelled, section string, keys map[string]any) {
	for _, name := range slices.Sorted(maps.Keys(keys)) {
		at := p.find(spelled, name)
		k := findKey(section, name)
		if k == nil {
			p.unknownKey(at.line, section, name)
			continue
		}
		p.key, p.val, p.raw, p.line, p.stuck = name, keys[name], at.raw, at.line, false
		p.given[name] = at.line
		k.read(p)
	}
}

func findKey(section, name string) *unitKey {
	for i := range unitKeys {
		if unitKeys[i].section == section && unitKeys[i].name == name {
			return &unitKeys[i]
		}
	}
	return nil
}

func keyNames(section string) []string {
	var names []string
	for _, k := range unitKeys {
		if k.section == section {
			names = append(names, k.name)
		}
	}
	return names
}

func otherSection(section string) string {
	if section == sectionUnit {
		return sectionService
	}
	return sectionUnit
}

func (p *unitParser) unknownKey(line int, section, name string) {
	other := otherSection(section)
	if findKey(other, name) != nil {
		p.mistook(name, line)
		p.wrongAt(line, "key %q belongs in [%s], not in [%s]", name, other, section)
		return
	}
	near, format := nearest(name, keyNames(section)), "%q"
	if near == "" {
		near, format = nearest(name, keyNames(other)), "%q in ["+other+"]"
	}
	p.mistook(near, line)
	p.wrongAt(line, "unknown key %s in [%s]%s", shown(name), section, meant(near, format))
}

// mistook notes that the file has the one required key after all, if in a wrong place or spelling: one
// mistake is to be told once.
func (p *unitParser) mistook(key string, line int) {
	if key == "ExecStart" {
		p.given[key] = line
	}
}

func strayKey(name string) string {
	for _, section := range []string{sectionUnit, sectionService} {
		if findKey(section, name) != nil {
			return fmt.Sprintf("key %q stands outside of a section, it belongs in [%s]", name, section)
		}
	}
	return fmt.Sprintf("unknown key %s outside of a section", shown(name))
}

// shortName is a section's name for a message: quoted only when it needs to be.
func shortName(name string) string {
	if q := shown(name); q != strconv.Quote(name) || q[1:len(q)-1] != name {
		return q
	}
	return name
}

// ---- values of keys

func (p *unitParser) text() string {
	s, ok := p.val.(string)
	if !ok {
		p.wrong(fmt.Errorf("want a string, not %s", typeText(p.val)))
		p.stuck = true
	}
	if strings.IndexByte(s, 0) >= 0 {
		p.wrong(errors.New("NUL bytes are not allowed"))
		p.stuck = true
	}
	return s
}

// items reads an array of strings, or one string, which is one item.
func (p *unitParser) items() []string {
	whole, isArray := p.val.([]any)
	if !isArray {
		return []string{p.text()}
	}
	var list []string
	for _, p.val = range bounded(p, whole) {
		list = append(list, p.text())
	}
	return list
}

// maxItems bounds a list: comparing its items with each other must not cost time. Nobody can override it.
const maxItems = 4096

// bounded returns list, or nothing of it if it is too long.
func bounded[T any](p *unitParser, list []T) []T {
	if len(list) <= maxItems {
		return list
	}
	p.wrong(fmt.Errorf("a list of more than %d items", maxItems))
	return nil
}

// words reads an array of strings, or one string of words.
func (p *unitParser) words() []string {
	var list []string
	if _, isArray := p.val.([]any); isArray {
		list = p.items()
	} else {
		list = bounded(p, strings.Fields(p.text()))
	}
	var once []string
	for _, w := range list {
		if !slices.Contains(once, w) {
			once = append(once, w)
		}
	}
	return once
}

// names reads a list of units.
func (p *unitParser) names() []string {
	var names []string
	for _, w := range p.words() {
		name, err := unitName(w)
		if err == nil && name == p.u.Name {
			err = errors.New("a unit cannot name itself here")
		}
		if err != nil {
			p.wrong(err)
			continue
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// valueOf reads the present value with one of the parsers of single values.
func valueOf[T any](p *unitParser, parse func(any) (T, error)) T {
	v, err := parse(p.val)
	p.wrong(err)
	return v
}

func (p *unitParser) flag() bool          { return valueOf(p, parseBool) }
func (p *unitParser) commands() []command { return valueOf(p, parseCommands) }
func (p *unitParser) exits() exitSet      { return valueOf(p, parseExitSet) }
func (p *unitParser) span() time.Duration { return valueOf(p, parseDuration) }

// finite reads a duration that must have an end.
func (p *unitParser) finite() time.Duration {
	d := p.span()
	if d == infinity {
		p.wrong(errors.New("cannot be infinity"))
	}
	return d
}

// timeout reads a duration of which 0 means none, as in systemd.
func (p *unitParser) timeout() time.Duration {
	if d := p.span(); d > 0 {
		return d
	}
	return infinity
}

func (p *unitParser) count(least, most int64) int {
	n, ok := p.val.(int64)
	if !ok || n < least || n > most {
		p.wrong(fmt.Errorf("want a whole number from %d to %d", least, most))
		return 0
	}
	return int(n)
}

func (p *unitParser) umask() uint32 {
	mask, err := parseUMask(p.val, p.raw)
	p.wrong(err)
	return mask
}

// logSize: smaller files than this would be rotated for nearly every record.
func (p *unitParser) logSize() int64 {
	const least = 4096 // bytes
	n, err := parseSize(p.val)
	if err == nil && n < least {
		err = fmt.Errorf("want at least %d bytes", least)
	}
	p.wrong(err)
	return n
}

// choice reads one of a few words.
func choice[T ~string](p *unitParser, choices ...T) T {
	word := T(p.text())
	if slices.Contains(choices, word) {
		return word
	}
	words := make([]string, 0, len(choices))
	for _, c := range choices {
		words = append(words, string(c))
	}
	near := nearest(string(word), words)
	if near == "" {
		p.wrong(fmt.Errorf("unknown value %s, choose one of %s", shown(string(word)), strings.Join(words, ", ")))
		return word
	}
	p.wrong(fmt.Errorf("unknown value %s%s", shown(string(word)), meant(near, "%q")))
	return word
}

func (p *unitParser) action() unitAction {
	if word := choice(p, "none", actionExit); word != "none" {
		return word
	}
	return actionNone
}

// account reads the name or number of a user or group; whether it exists is seen at each start.
func (p *unitParser) account() string {
	if n, ok := p.val.(int64); ok {
		p.val = strconv.FormatInt(n, 10)
	}
	s := p.text()
	// systemd.exec(5) and user_names(7): not 2^16-1 and 2^32-1, which mean "no user".
	if n, err := strconv.ParseInt(s, 10, 64); err == nil && (n < 0 || n == 0xffff || n >= 0xffffffff) {
		p.wrong(fmt.Errorf("%d is not the number of an account", n))
		return s
	}
	odd := func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune(":/,", r) }
	if s == "" || s == "." || s == ".." || s[0] == '-' || len(s) > 256 || strings.IndexFunc(s, odd) >= 0 {
		p.wrong(fmt.Errorf("%s is neither the name nor the number of an account", shown(s)))
	}
	return s
}

// directory reads an absolute path or ~; behind a - it may be missing.
func (p *unitParser) directory() {
	path, optional := strings.CutPrefix(p.text(), "-")
	p.u.WorkingDirectorySet = !optional
	if path != "~" && !filepath.IsAbs(path) {
		p.wrong(fmt.Errorf("want an absolute path or \"~\", not %s", shown(path)))
		return
	}
	p.u.WorkingDirectory = filepath.Clean(path)
}

func (p *unitParser) pidFile() string {
	path := p.text()
	switch {
	case path == "" || strings.HasSuffix(path, "/"):
		p.wrong(errors.New("want the path of a file"))
	case !filepath.IsAbs(path) && p.at.RuntimeDir == "":
		p.wrong(errors.New("want an absolute path, as XDG_RUNTIME_DIR is not set"))
	case !filepath.IsAbs(path):
		return filepath.Join(p.at.RuntimeDir, path)
	}
	return filepath.Clean(path)
}

// environment reads NAME=value entries. Messages never show a value: it may be secret.
func (p *unitParser) environment() []string {
	list := p.items()
	for _, entry := range list {
		name, _, found := strings.Cut(entry, "=")
		if !found {
			p.wrong(errors.New("an entry is not of the form NAME=value"))
		} else if !validName(name) {
			p.wrong(fmt.Errorf("%s is not the name of a variable", shown(name)))
		}
	}
	return list
}

// variables reads names of environment variables.
func (p *unitParser) variables() []string {
	list := p.unwanted()
	for _, entry := range list {
		if strings.Contains(entry, "=") {
			p.wrong(errors.New("want names alone, without ="))
		}
	}
	return list
}

// unwanted reads what UnsetEnvironment takes: names, and NAME=value for a variable of just that value.
func (p *unitParser) unwanted() []string {
	list := p.words()
	for _, entry := range list {
		if name, _, _ := strings.Cut(entry, "="); !validName(name) {
			p.wrong(fmt.Errorf("%s is not the name of a variable", shown(name)))
		}
	}
	return list
}

func (p *unitParser) environmentFiles() []environmentFile {
	var list []environmentFile
	for _, item := range p.items() {
		path, optional := strings.CutPrefix(item, "-")
		switch {
		case path == "":
			p.wrong(errors.New("want the path of a file"))
		case !filepath.IsAbs(path) && p.at.Shared:
			p.wrong(fmt.Errorf("want an absolute path, not %s: this service directory belongs to no project", shown(path)))
		case !filepath.IsAbs(path):
			path = filepath.Join(filepath.Dir(filepath.Dir(p.u.Path)), path)
		}
		list = append(list, environmentFile{filepath.Clean(path), optional})
	}
	return list
}

// ---- combinations

// givenAt is the line of the first of these keys that the file has; else that of [service].
func (p *unitParser) givenAt(keys ...string) int {
	for _, k := range keys {
		if line := p.given[k]; line > 0 {
			return line
		}
	}
	return max(p.given[sectionService], 1)
}

// check refuses what systemd refuses, and fills in defaults that hang on other keys.
func (p *unitParser) check() {
	p.checkCommands()
	p.checkRestart()
	p.checkRelations()
	u := p.u
	if u.Type == typeNotify && u.NotifyAccess == notifyNone {
		u.NotifyAccess = notifyMain
	}
	if u.Type == typeOneshot {
		u.RuntimeMaxSec = infinity // systemd.service(5): no effect on oneshot
		if p.given["TimeoutStartSec"] == 0 {
			u.TimeoutStartSec = infinity
		}
	}
}

func (p *unitParser) checkCommands() {
	u, line := p.u, p.givenAt("ExecStart")
	if slices.ContainsFunc(p.mistakes, func(m mistake) bool { return m.Line == p.given["ExecStart"] }) {
		return // what is wrong with it is told already
	}
	switch {
	case p.given[sectionService] == 0:
		p.wrongAt(1, "section [service] is missing")
	case u.Type != typeOneshot && len(u.ExecStart) == 0:
		p.wrongAt(line, "ExecStart is missing")
	case u.Type != typeOneshot && len(u.ExecStart) > 1:
		p.wrongAt(line, "ExecStart: %d commands, but only Type = \"oneshot\" may have several%s", len(u.ExecStart), exactHint(u.ExecStart))
	case len(u.ExecStart) == 0 && len(u.ExecStop) == 0:
		p.wrongAt(line, "ExecStart is missing, and there is no ExecStop either")
	case len(u.ExecStart) == 0 && !u.RemainAfterExit:
		p.wrongAt(line, "ExecStart is missing; without it Type = \"oneshot\" needs RemainAfterExit = true")
	}
}

// exactHint tells how to write one command of exact arguments, if these commands were meant to be that: each
// is a single word.
func exactHint(commands []command) string {
	const most = 5 // arguments; a longer list makes no readable hint
	var words []string
	for _, c := range commands {
		if len(c.Argv) != 1 || strings.ContainsAny(c.Path, whitespace) {
			return ""
		}
		words = append(words, shown(c.String()))
	}
	if len(words) > most {
		words = []string{`"sleep"`, `"10"`}
	}
	return "; one command of exact arguments is ExecStart = [[" + strings.Join(words, ", ") + "]]"
}

func (p *unitParser) checkRestart() {
	u := p.u
	if u.Type == typeOneshot && (u.Restart == restartAlways || u.Restart == restartOnSuccess) {
		p.wrongAt(p.givenAt("Restart"), "Restart = %q cannot be combined with Type = \"oneshot\"", u.Restart)
	}
	switch {
	case p.given["RestartMaxDelaySec"] == 0:
		u.RestartMaxDelaySec = max(u.RestartMaxDelaySec, u.RestartSec)
	case u.RestartMaxDelaySec < u.RestartSec:
		p.wrongAt(p.givenAt("RestartMaxDelaySec"), "RestartMaxDelaySec is smaller than RestartSec")
	case u.RestartMaxDelaySec == 0:
		p.wrongAt(p.givenAt("RestartMaxDelaySec"), "RestartMaxDelaySec cannot be 0: it bounds how fast a crashing service is restarted")
	}
	switch {
	case p.given["StartLimitIntervalSec"] == 0:
	case u.StartLimitIntervalSec == 0:
		u.StartLimitBurst = 0 // systemd.unit(5): 0 switches the limit off
	case p.given["StartLimitBurst"] == 0:
		p.wrongAt(p.givenAt("StartLimitIntervalSec"), "StartLimitIntervalSec has no effect without StartLimitBurst")
	}
}

// checkRelations refuses lists that contradict each other.
func (p *unitParser) checkRelations() {
	u := p.u
	for _, rule := range []struct {
		key   string
		names []string
		other string
		list  []string
	}{
		{"Conflicts", u.Conflicts, "Requires", u.Requires},
		{"Conflicts", u.Conflicts, "BindsTo", u.BindsTo},
		{"Conflicts", u.Conflicts, "Wants", u.Wants},
		{"Before", u.Before, "After", u.After},
	} {
		for _, name := range rule.names {
			if slices.Contains(rule.list, name) {
				p.wrongAt(p.givenAt(rule.key), "%s: %q is in %s too", rule.key, name, rule.other)
			}
		}
	}
}

// ---- the table of keys

// unitKey is one key of a unit file. The parser, `help keys` and docs/units.md all read this one table.
type unitKey struct {
	section string
	name    string
	kind    string // of value
	def     string // default, as one would write it in a file; "" = none, or told in doc
	doc     string
	read    func(p *unitParser)
}

// Kinds of values, explained in docs/units.md.
const (
	kindText     = "text"
	kindWord     = "word"
	kindBool     = "boolean"
	kindCount    = "number"
	kindDuration = "duration"
	kindSize     = "size"
	kindCommand  = "commands"
	kindOne      = "command"
	kindUnits    = "units"
	kindList     = "list"
	kindExits    = "exit statuses"
	kindSignal   = "signal"
	kindPath     = "path"
	kindAccount  = "account"
	kindMode     = "octal number"
)

var unitKeys = []unitKey{
	{sectionUnit, "Description", kindText, "",
		"What the service is, in a few words; shown by `list` and `status`.",
		func(p *unitParser) { p.u.Description = p.text() }},
	{sectionUnit, "Documentation", kindList, "",
		"Where to read about the service: URIs, shown by `status`.",
		func(p *unitParser) { p.u.Documentation = p.words() }},
	{sectionUnit, "After", kindUnits, "",
		"If these units are started too, start this one after them, and stop it before them. Orders only.",
		func(p *unitParser) { p.u.After = p.names() }},
	{sectionUnit, "Before", kindUnits, "",
		"The reverse of After: these units are started after this one, and stopped before it. Orders only.",
		func(p *unitParser) { p.u.Before = p.names() }},
	{sectionUnit, "Requires", kindUnits, "",
		"Start these units first; if one fails, this one is not started. It is stopped and restarted with them.",
		func(p *unitParser) { p.u.Requires = p.names() }},
	{sectionUnit, "Wants", kindUnits, "",
		"Start these units first, but start this one whatever becomes of them.",
		func(p *unitParser) { p.u.Wants = p.names() }},
	{sectionUnit, "BindsTo", kindUnits, "",
		"As Requires; besides, this unit is stopped as soon as one of these is no longer active, for whatever reason.",
		func(p *unitParser) { p.u.BindsTo = p.names() }},
	{sectionUnit, "PartOf", kindUnits, "",
		"When one of these units is stopped or restarted, so is this one. Starts nothing and orders no starts.",
		func(p *unitParser) { p.u.PartOf = p.names() }},
	{sectionUnit, "Conflicts", kindUnits, "",
		"Starting this unit stops these, and starting one of them stops this one.",
		func(p *unitParser) { p.u.Conflicts = p.names() }},
	{sectionUnit, "FailureAction", kindWord, `"none"`,
		"What happens when the service has failed for good: `none`, or `exit`: everything is stopped, and the daemon ends; a container ends, with the exit code of the main process, or 128 + the number of the signal that ended it.",
		func(p *unitParser) { p.u.FailureAction = p.action() }},
	{sectionUnit, "SuccessAction", kindWord, `"none"`,
		"What happens when the service has ended well, also when it was told to stop: `none` or `exit`, as FailureAction.",
		func(p *unitParser) { p.u.SuccessAction = p.action() }},
	{sectionService, "Type", kindWord, `"simple"`,
		"When the service counts as started. `simple`, `exec`: its program runs. `forking`: the command has ended and left a daemon behind. `oneshot`: all commands have ended. `notify`: it sent READY=1 (sd_notify(3)).",
		func(p *unitParser) { p.u.Type = choice(p, typeSimple, typeExec, typeForking, typeOneshot, typeNotify) }},
	{sectionService, "ExecStartPre", kindCommand, "",
		"Commands that run before ExecStart, one after the other. If one fails, the start fails.",
		func(p *unitParser) { p.u.ExecStartPre = p.commands() }},
	{sectionService, "ExecStart", kindOne, "",
		"The command of the service. Required; only `oneshot` may have several, or none if it has ExecStop and RemainAfterExit.",
		func(p *unitParser) { p.u.ExecStart = p.commands() }},
	{sectionService, "ExecStartPost", kindCommand, "",
		"Commands that run once the service has started. If one fails, the service is stopped and has failed.",
		func(p *unitParser) { p.u.ExecStartPost = p.commands() }},
	{sectionService, "ExecReload", kindCommand, "",
		"Commands that make the service read its configuration again; `$MAINPID` is its main process.",
		func(p *unitParser) { p.u.ExecReload = p.commands() }},
	{sectionService, "ExecStop", kindCommand, "",
		"Commands that ask the service to stop; `$MAINPID` is its main process. What is left when they have ended gets KillSignal.",
		func(p *unitParser) { p.u.ExecStop = p.commands() }},
	{sectionService, "ExecStopPost", kindCommand, "",
		"Commands that run after the service has stopped, also when it failed or never started. They get SERVICE_RESULT, EXIT_CODE and EXIT_STATUS.",
		func(p *unitParser) { p.u.ExecStopPost = p.commands() }},
	{sectionService, "PIDFile", kindPath, "",
		"File in which a `forking` service writes the PID of its main process. A relative path lies under `/run`, or `$XDG_RUNTIME_DIR` for a user other than root.",
		func(p *unitParser) { p.u.PIDFile = p.pidFile() }},
	{sectionService, "GuessMainPID", kindBool, "true",
		"Whether to guess the main process of a `forking` service without PIDFile.",
		func(p *unitParser) { p.u.GuessMainPID = p.flag() }},
	{sectionService, "RemainAfterExit", kindBool, "false",
		"Whether the service stays active when all its processes have ended successfully.",
		func(p *unitParser) { p.u.RemainAfterExit = p.flag() }},
	{sectionService, "NotifyAccess", kindWord, `"none"`,
		"Whose messages to NOTIFY_SOCKET count: `none`, `main` process, `exec` (all processes started by Exec keys) or `all`. With Type `notify`, `none` means `main`.",
		func(p *unitParser) { p.u.NotifyAccess = choice(p, notifyNone, notifyMain, notifyExec, notifyAll) }},
	{sectionService, "Restart", kindWord, `"no"`,
		"When to start the service again after it has ended by itself: `no`, `always`, `on-success`, `on-failure`, `on-abnormal`, `on-abort`, `on-watchdog`. Not after a `stop`.",
		func(p *unitParser) {
			p.u.Restart = choice(p, restartNo, restartAlways, restartOnSuccess, restartOnFailure, restartOnAbnormal, restartOnAbort, restartOnWatchdog)
		}},
	{sectionService, "RestartSec", kindDuration, "",
		"Pause before an automatic restart. Omitted, it begins with 100 ms and doubles up to RestartMaxDelaySec while runs are shorter than 10 s.",
		func(p *unitParser) { p.u.RestartSec = p.finite() }},
	{sectionService, "RestartMaxDelaySec", kindDuration, `"1min"`,
		"The longest pause before an automatic restart.",
		func(p *unitParser) { p.u.RestartMaxDelaySec = p.finite() }},
	{sectionService, "RestartPreventExitStatus", kindExits, "",
		"Ends of the main process after which it is never restarted.",
		func(p *unitParser) { p.u.RestartPreventExitStatus = p.exits() }},
	{sectionService, "RestartForceExitStatus", kindExits, "",
		"Ends of the main process after which it is restarted whatever Restart says.",
		func(p *unitParser) { p.u.RestartForceExitStatus = p.exits() }},
	{sectionService, "SuccessExitStatus", kindExits, "",
		"Ends of the main process that count as success, beside exit code 0 and the signals HUP, INT, TERM and PIPE.",
		func(p *unitParser) { p.u.SuccessExitStatus = p.exits() }},
	{sectionService, "StartLimitBurst", kindCount, "0",
		"How often the service may start within StartLimitIntervalSec; then it has failed until it is started by hand. 0 = no limit.",
		func(p *unitParser) { p.u.StartLimitBurst = p.count(0, maxStartLimit) }},
	{sectionService, "StartLimitIntervalSec", kindDuration, "",
		"The time over which StartLimitBurst counts: 10 s if omitted. 0 switches the limit off.",
		func(p *unitParser) { p.u.StartLimitIntervalSec = p.span() }},
	{sectionService, "StartLimitAction", kindWord, `"none"`,
		"What happens when StartLimitBurst is reached: `none` or `exit`, as FailureAction, which holds then too.",
		func(p *unitParser) { p.u.StartLimitAction = p.action() }},
	{sectionService, "TimeoutStartSec", kindDuration, `"90s"`,
		"How long a start or reload may take. Omitted, `oneshot` has no limit. 0 or `infinity` = no limit.",
		func(p *unitParser) { p.u.TimeoutStartSec = p.timeout() }},
	{sectionService, "TimeoutStopSec", kindDuration, `"90s"`,
		"How long each step of a stop may take before SIGKILL. 0 or `infinity` = no limit.",
		func(p *unitParser) { p.u.TimeoutStopSec = p.timeout() }},
	{sectionService, "RuntimeMaxSec", kindDuration, `"infinity"`,
		"How long the service may run; then it is stopped and has failed. No effect on `oneshot`.",
		func(p *unitParser) { p.u.RuntimeMaxSec = p.timeout() }},
	{sectionService, "KillSignal", kindSignal, `"SIGTERM"`,
		"The signal that asks processes to end.",
		func(p *unitParser) { p.u.KillSignal = valueOf(p, parseSignal) }},
	{sectionService, "KillMode", kindWord, `"control-group"`,
		"Who gets the signals of a stop. `control-group`: all processes. `mixed`: KillSignal to the main process, SIGKILL to all. `process`: only the main process. `none`: nobody.",
		func(p *unitParser) { p.u.KillMode = choice(p, killControlGroup, killMixed, killProcess, killNone) }},
	{sectionService, "SendSIGKILL", kindBool, "true",
		"Whether SIGKILL follows when TimeoutStopSec has run out.",
		func(p *unitParser) { p.u.SendSIGKILL = p.flag() }},
	{sectionService, "WorkingDirectory", kindPath, "",
		"The directory of the service's processes: an absolute path, or `~` for the home of its user; behind a `-` it may be missing. Omitted: the directory that holds the service directory.",
		func(p *unitParser) { p.directory() }},
	{sectionService, "Environment", kindList, "",
		"Variables for the service, each `NAME=value`. A single string is one variable, spaces and all.",
		func(p *unitParser) { p.u.Environment = p.environment() }},
	{sectionService, "EnvironmentFile", kindPath, "",
		"Files with lines `NAME=value`, read before each start; they override Environment. `*`, `?` and `[…]` name several, in the order of their names. A relative path begins at the directory that holds the service directory; behind a `-` the file may be missing.",
		func(p *unitParser) { p.u.EnvironmentFile = p.environmentFiles() }},
	{sectionService, "PassEnvironment", kindList, "",
		"Names of variables to hand on from the daemon's own environment.",
		func(p *unitParser) { p.u.PassEnvironment = p.variables() }},
	{sectionService, "UnsetEnvironment", kindList, "",
		"Variables to remove at last: a name, or `NAME=value` to remove it only if it has that value.",
		func(p *unitParser) { p.u.UnsetEnvironment = p.unwanted() }},
	{sectionService, "User", kindAccount, "",
		"The user that the service runs as, by name or number; only root's daemon can change it.",
		func(p *unitParser) { p.u.User = p.account() }},
	{sectionService, "Group", kindAccount, "",
		"The group that the service runs as, by name or number. Omitted: that of User.",
		func(p *unitParser) { p.u.Group = p.account() }},
	{sectionService, "UMask", kindMode, `"0022"`,
		"Permissions that files made by the service do not get.",
		func(p *unitParser) { p.u.UMask = p.umask() }},
	{sectionService, "LogMaxSize", kindSize, `"10M"`,
		"Size at which the log file is rotated; at least 4096 bytes. In a container that diakonos-init keeps: 1M if omitted.",
		func(p *unitParser) { p.u.LogMaxSize = p.logSize() }},
	{sectionService, "LogMaxFiles", kindCount, "5",
		"How many rotated log files are kept beside the current one; at least 1. In a container that diakonos-init keeps: 1 if omitted.",
		func(p *unitParser) { p.u.LogMaxFiles = p.count(1, 100_000) }},
}

// keyReference is the text of `diakonos help keys`, from the table that the parser reads by.
func keyReference() string {
	var b strings.Builder
	section := ""
	for _, k := range unitKeys {
		if k.section != section {
			section = k.section
			fmt.Fprintf(&b, "[%s]\n", section)
		}
		fmt.Fprintf(&b, "  %s = %s", k.name, k.kind)
		if k.def != "" {
			fmt.Fprintf(&b, "   (default %s)", k.def)
		}
		fmt.Fprintf(&b, "\n      %s\n", k.doc)
	}
	return b.String()
}
