// Role: how the first process of a container is called and what it says: as diakonos-init, as tini, as dumb-init.
// Runs in: init.
// Owns: nothing.
// Uses: visible, wire, value, sys, unit, state, console.

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
)

const (
	tiniName     = "tini"
	dumbInitName = "dumb-init"

	tiniVersion     = "0.19.0" // whose behaviour is ours under that name
	dumbInitVersion = "1.2.5"
)

// initCall is one call of the first process.
type initCall struct {
	name        string // as it was called
	dialect     *dialect
	command     []string
	group       bool // signals go to the command's process group
	place       commandPlace
	subreaper   bool           // orphans come to us also where we are not PID 1
	tellsReaped bool           // -w
	verbosity   int            // what is said: say* with a level below it
	parentDeath syscall.Signal // that we get when our parent ends; 0 = none
	success     [256]bool      // exit codes of the command that become 0
	rewrite     [lastRTSignal + 1]syscall.Signal

	// as supervisor
	keeps     bool     // there is a daemon below us
	starts    []string // units by name that are started at first; none = the enabled ones, else all
	homeFlag  string
	dirFlag   string
	grace     time.Duration // for the end of all
	whenIdle  bool          // the container ends when nothing runs any more
	logFormat string        // of the console
}

// commandPlace is where the command runs.
type commandPlace int

const (
	ownGroup   commandPlace = iota // it leads a process group of our session
	ownSession                     // it leads a session
	ourGroup
)

// dialect is what differs between the programs whose places we take.
type dialect struct {
	name           string
	parse          func(c *initCall, args []string) *initAnswer
	begin          func(level int) string // of a line
	says           [sayings]saying
	noExec         func(err syscall.Errno) int // exit code when the command cannot be executed
	leaves         [lastRTSignal + 1]bool      // signals that are not for the command
	tellsAll       bool                        // it tells of the end of each child
	deafToTerminal bool                        // SIGTTIN and SIGTTOU do nothing to it
	suspends       bool                        // it stops itself when it is told to stop by the terminal's signals
	parting        bool                        // when the command has ended, SIGTERM goes to its group
	toRoot         bool                        // it leaves its directory, which could keep a mount busy
	strict         bool                        // a signal that cannot be sent is the end
}

// initAnswer is a call that ends at once.
type initAnswer struct {
	out, err string
	code     int
}

// Levels of what is said. -v raises the verbosity.
const (
	levelFatal = iota
	levelWarn
	levelInfo
	levelDebug
	levelTrace
)

// What an init can say.
const (
	sayNoReaper     = iota // nothing
	sayExec                // program, error
	sayPrepare             // error
	sayDebug               // nothing: it says more
	sayShared              // nothing: the command gets no session of its own
	saySubreaper           // nothing
	sayStarted             // PID, program
	sayUntied              // error: the terminal was not ours
	sayLed                 // nothing: as leader of the session
	sayNotLed              // nothing
	sayNoTerminal          // error
	saySession             // nothing
	sayChild               // nothing: a child has ended
	sayGot                 // number, name
	sayHandOff             // number: it comes of the terminal's hand-off
	sayRewritten           // number, number
	sayDropped             // number
	saySent                // number
	sayNoCommand           // nothing: the command is dead already
	sayNotSent             // error
	sayStopped             // nothing
	sayReaped              // PID
	sayOrphan              // PID
	sayExit                // PID, code
	saySignal              // PID, number, name
	sayEnded               // code
	sayNothing             // nothing is left to reap
	sayNoneYet             // nothing has ended
	sayBye                 // nothing
	sayNoDaemon            // error
	sayDaemonKilled        // signal's name
	sayDaemonEnded         // code
	sayNotUp               // program
	sayOvertime            // nothing
	sayConsole             // nothing
	sayings
)

// saying is a line at a level; "" = it is not said. The verbs of its format count the arguments from 1.
type saying struct {
	level  int
	format string
}

// tells whether something is said at all: who asks first allocates nothing for what is not said.
func (c *initCall) tells(what int) bool {
	s := &c.dialect.says[what]
	return s.format != "" && s.level <= c.verbosity
}

// say writes one line.
func (c *initCall) say(what int, args ...any) {
	if !c.tells(what) {
		return
	}
	s := &c.dialect.says[what]
	if c.keeps && !canWrite(2) {
		return // nobody reads it, and who keeps services must not wait for that
	}
	out := os.Stderr
	if c.dialect.name == tiniName && s.level >= levelInfo {
		out = os.Stdout
	}
	_, _ = fmt.Fprint(out, c.dialect.begin(s.level), fmt.Sprintf(s.format, args...), "\n")
}

// errorText is an error in the words of strerror(3).
func errorText(err error) string { return upperFirst(err.Error()) }

// signalText is a signal in the words of strsignal(3).
func signalText(sig syscall.Signal) string { return upperFirst(sig.String()) }

func upperFirst(s string) string {
	if s == "" {
		return s
	}
	return string(unicode.ToUpper(rune(s[0]))) + s[1:]
}

// usualExec is the shell's way: 127 = there is no such program, 126 = it cannot be executed.
func usualExec(err syscall.Errno) int {
	if err == syscall.ENOENT {
		return 127
	}
	return 126
}

// newInitCall: every signal is sent on as it is.
func newInitCall(name string, d *dialect) *initCall {
	c := &initCall{name: name, dialect: d}
	for i := range c.rewrite {
		c.rewrite[i] = syscall.Signal(i)
	}
	return c
}

func dialectOf(name string) *dialect {
	switch name {
	case tiniName:
		return tiniDialect()
	case dumbInitName:
		return dumbInitDialect()
	}
	return ownDialect()
}

// ---- options

// option is one option of a command line, with its value.
type option struct {
	letter byte
	value  string
}

// optionSet is what getopt_long(3) is told.
type optionSet struct {
	letters string          // each followed by `:` if it takes a value
	long    map[string]byte // by name
	mixed   bool            // options may stand behind arguments, as glibc has it unless POSIXLY_CORRECT is set
}

// parse splits a command line as getopt_long(3) does. wrong is what it would write.
func (o optionSet) parse(args []string) (list []option, rest []string, wrong string) {
	for len(args) > 0 {
		a := args[0]
		switch {
		case a == "--":
			return list, append(rest, args[1:]...), ""
		case len(a) > 2 && a[:2] == "--" && o.long != nil:
			args = args[1:]
			var one option
			if one, args, wrong = o.parseLong(a[2:], args); wrong != "" {
				return nil, nil, wrong
			}
			list = append(list, one)
		case len(a) > 1 && a[0] == '-':
			args = args[1:]
			for i := 1; i < len(a); i++ {
				at := strings.IndexByte(o.letters, a[i])
				if at < 0 || a[i] == ':' {
					return nil, nil, fmt.Sprintf("invalid option -- '%s'", visible(a[i:i+1]))
				}
				one := option{letter: a[i]}
				if at+1 < len(o.letters) && o.letters[at+1] == ':' {
					if one.value = a[i+1:]; one.value == "" {
						if len(args) == 0 {
							return nil, nil, fmt.Sprintf("option requires an argument -- '%c'", a[i])
						}
						one.value, args = args[0], args[1:]
					}
					i = len(a)
				}
				list = append(list, one)
			}
		case o.mixed:
			rest, args = append(rest, a), args[1:]
		default:
			return list, args, ""
		}
	}
	return list, rest, ""
}

// parseLong takes `name` or `name=value`; a beginning that only one option has is enough.
func (o optionSet) parseLong(text string, args []string) (option, []string, string) {
	name, value, given := strings.Cut(text, "=")
	letter, ok := o.long[name]
	if !ok {
		var found []string
		for long := range o.long {
			if strings.HasPrefix(long, name) {
				found = append(found, long)
			}
		}
		if len(found) != 1 {
			return option{}, nil, fmt.Sprintf("unrecognized option '--%s'", visible(name))
		}
		name, letter = found[0], o.long[found[0]]
	}
	takes := strings.Contains(o.letters, string(letter)+":")
	switch {
	case given && !takes:
		return option{}, nil, fmt.Sprintf("option '--%s' doesn't allow an argument", name)
	case takes && !given && len(args) == 0:
		return option{}, nil, fmt.Sprintf("option '--%s' requires an argument", name)
	case takes && !given:
		value, args = args[0], args[1:]
	}
	return option{letter, value}, args, ""
}

// ---- diakonos-init

const initUsage = `Usage: diakonos-init [OPTION]... [--] COMMAND [ARGUMENT]...
       diakonos-init [OPTION]... [--start UNIT,...] [-- COMMAND [ARGUMENT]...]

The first process of a container: starts COMMAND, sends it all signals, reaps what is left to it, and ends as COMMAND ends: with its
exit code, 128 + the signal's number, 127 where there is no such program, 126 where it cannot be executed.

Without COMMAND, or with units to start before it, it keeps services running: the units of --start, else the enabled ones, else all of the
service directory. SIGTERM, SIGINT, SIGPWR and SIGRTMIN+3 stop all in order, a second one in haste; SIGHUP reads the units again.

  --start UNIT,...      units to start at first, with what they require (DIAKONOS_START)
  --grace TIME          for the end of all: seconds, or 1min and such; 10s if not given
  --exit-when-idle      end when nothing runs any more
  --log-format FORMAT   of the services' output on our standard output: text (NAME | line) or json, a line each
  --home DIR            as of the other commands (DIAKONOS_HOME)
  --service-dir DIR     likewise (DIAKONOS_SERVICE_DIR)

  -g         send signals to COMMAND's process group
  -s         reap orphans also where this is not PID 1 (PR_SET_CHILD_SUBREAPER)
  -w         tell of each orphan that is reaped
  -p SIGNAL  get SIGNAL when the parent ends (PR_SET_PDEATHSIG)
  -e CODE    exit with 0 where COMMAND ends with CODE; can be given again
  -r A:B     send signal B in the place of A; B = 0: send none; can be given again
  -v         tell more; can be given again
  -h         this text
  --version  the version

Called as tini or as dumb-init it takes that program's place.
`

func ownDialect() *dialect {
	d := &dialect{name: initName, parse: parseOwn, noExec: usualExec, suspends: true,
		begin: func(int) string { return initName + ": " },
		says: [sayings]saying{
			sayNoReaper: {levelWarn, "this is not PID 1, so orphans do not come here and stay zombies (-s makes them come)"},
			sayExec:     {levelFatal, "cannot execute %[1]s: %[2]s"},
			sayPrepare:  {levelFatal, "cannot begin: %[1]s"},
			sayStarted:  {levelInfo, "process %[1]d is %[2]s"},
			sayGot:      {levelDebug, "got %[2]s"},
			sayDropped:  {levelDebug, "signal %[1]d is not sent on"},
			saySent:     {levelDebug, "sent signal %[1]d"},
			sayNoCommand: {levelWarn,
				"the command has ended, so a signal could not be sent on"},
			sayNotSent:      {levelWarn, "cannot send the signal on: %[1]s"},
			sayStopped:      {levelInfo, "stops itself too"},
			sayOrphan:       {levelWarn, "reaped process %[1]d"},
			sayExit:         {levelInfo, "process %[1]d ended with code %[2]d"},
			saySignal:       {levelInfo, "process %[1]d was ended by signal %[2]d (%[3]s)"},
			sayNoDaemon:     {levelWarn, "cannot start the daemon: %[1]s"},
			sayDaemonKilled: {levelWarn, "the daemon was killed (%[1]s) and is started again; services run on"},
			sayDaemonEnded:  {levelWarn, "the daemon has ended with code %[1]d and is started again; services run on"},
			sayNotUp:        {levelWarn, "%[1]s is not started: what is to run before it did not start"},
			sayConsole:      {levelWarn, "what copies the services' output to here has ended; their logs go on"},
			sayOvertime:     {levelWarn, "the time for the end is over (--grace): what still runs is killed"},
		}}
	return d
}

func parseOwn(c *initCall, args []string) *initAnswer {
	c.verbosity = levelWarn
	if len(args) == 1 && args[0] == "--version" {
		return &initAnswer{out: "diakonos " + version + "\n"}
	}
	set := optionSet{letters: "gswhvp:e:r:" + ownLetters, long: map[string]byte{"help": 'h', "start": optStart, "grace": optGrace, "exit-when-idle": optIdle,
		"home": optHome, "service-dir": optDir, "log-format": optFormat}}
	list, rest, wrong := set.parse(args)
	c.grace, c.logFormat = defaultGrace, consoleText
	starts, homeFlag, dirFlag := os.Getenv(startVariable), "", ""
	for _, o := range list {
		if wrong != "" {
			break
		}
		switch o.letter {
		case 'h':
			return &initAnswer{out: initUsage}
		case 'g':
			c.group = true
		case 's':
			c.subreaper = true
		case 'w':
			c.tellsReaped = true
		case 'v':
			c.verbosity++
		case 'p':
			sig, err := parseSignal(o.value)
			if err != nil {
				wrong = "-p: " + err.Error()
			}
			c.parentDeath = sig
		case 'e':
			wrong = c.addSuccess(o.value)
		case 'r':
			wrong = c.addRewrite(o.value)
		case optStart:
			starts = o.value
		case optGrace:
			d, err := parseDuration(o.value)
			if n, nerr := strconv.Atoi(o.value); nerr == nil {
				d, err = time.Duration(n)*time.Second, nil
			}
			if err != nil || d <= 0 || d == infinity {
				wrong = fmt.Sprintf("--grace wants a time such as 10s, not %q", o.value)
			}
			c.grace = d
		case optIdle:
			c.whenIdle = true
		case optHome:
			homeFlag = o.value
		case optDir:
			dirFlag = o.value
		case optFormat:
			if c.logFormat = o.value; o.value != consoleText && o.value != consoleJSON {
				wrong = fmt.Sprintf("--log-format is text or json, not %q", o.value)
			}
		}
	}
	c.command = rest
	if wrong == "" {
		wrong = c.supervise(starts, homeFlag, dirFlag)
	}
	if wrong != "" {
		return &initAnswer{err: fmt.Sprintf("%s: %s\nTry '%s -h'.\n", initName, visible(wrong), initName), code: exitUsage}
	}
	return nil
}

// Options that have no letter.
const (
	optStart = iota + 1
	optGrace
	optIdle
	optHome
	optDir
	optFormat

	ownLetters = "\x01:\x02:\x03\x04:\x05:\x06:"
)

const (
	startVariable = "DIAKONOS_START" // for users: as --start
	defaultGrace  = 10 * time.Second // as of docker stop
)

// supervise tells whether services are to be kept. With a command that takes a unit that is named or enabled.
func (c *initCall) supervise(starts, homeFlag, dirFlag string) (wrong string) {
	for word := range strings.FieldsFuncSeq(starts, func(r rune) bool { return r == ',' || r == ' ' }) {
		name, err := unitName(word)
		if err != nil {
			return "--start: " + err.Error()
		}
		c.starts = append(c.starts, name)
	}
	if len(c.command) > 0 && len(c.starts) == 0 {
		h, err := findHome(homeFlag)
		if units, _ := h.enabledUnits(); err != nil || len(units) == 0 {
			return ""
		}
	}
	if len(c.command) > 0 && c.whenIdle {
		return "--exit-when-idle is for services alone: a container ends with its command"
	}
	if len(c.command) == 0 && os.Getpid() != 1 && !c.subreaper {
		return "no command is given, and only the first process of a container (PID 1), or one with -s, keeps services"
	}
	c.keeps, c.homeFlag, c.dirFlag = true, homeFlag, dirFlag
	return ""
}

func (c *initCall) addSuccess(text string) (wrong string) {
	code, err := strconv.Atoi(text)
	if err != nil || code < 0 || code > 255 {
		return fmt.Sprintf("-e wants an exit code from 0 to 255, not %q", text)
	}
	c.success[code] = true
	return ""
}

func (c *initCall) addRewrite(text string) (wrong string) {
	from, to, ok := strings.Cut(text, ":")
	if !ok {
		return fmt.Sprintf("-r wants two signals, such as TERM:INT, not %q", text)
	}
	a, err := parseSignal(from)
	if err != nil {
		return "-r: " + err.Error()
	}
	if to == "0" {
		c.rewrite[a] = 0
		return ""
	}
	b, err := parseSignal(to)
	if err != nil {
		return "-r: " + err.Error()
	}
	c.rewrite[a] = b
	return ""
}

// ---- tini

func tiniUsage(name string) string {
	return fmt.Sprintf(`%[1]s (tini version %[2]s)
Usage: %[1]s [OPTIONS] PROGRAM -- [ARGS] | --version

Takes the place of tini (diakonos %[3]s).

  --version    print the version
  -h           print this text
  -s           become a child subreaper, so that orphans come here
  -p SIGNAL    get SIGNAL (such as SIGKILL) when the parent dies
  -v           say more; up to three times
  -w           warn when an orphan is reaped
  -g           send signals to the program's process group
  -e EXIT_CODE make this exit code (0 to 255) of the program 0
  -l           print the license

Environment: TINI_SUBREAPER (as -s), TINI_KILL_PROCESS_GROUP (as -g), TINI_VERBOSITY (default 1).

`, filepath.Base(name), tiniVersion, version)
}

func tiniDialect() *dialect {
	d := &dialect{name: tiniName, parse: parseTini, strict: true, deafToTerminal: true,
		begin: func(level int) string {
			names := [...]string{"FATAL", "WARN ", "INFO ", "DEBUG", "TRACE"}
			return fmt.Sprintf("[%s tini (%d)] ", names[level], os.Getpid())
		},
		noExec: func(err syscall.Errno) int {
			switch err {
			case syscall.ENOENT:
				return 127
			case syscall.EACCES:
				return 126
			}
			return 1
		},
		says: [sayings]saying{
			sayNoReaper: {levelWarn, "Tini is not running as PID 1 and isn't registered as a child subreaper.\n" +
				"Zombie processes will not be re-parented to Tini, so zombie reaping won't work.\n" +
				"To fix the problem, use the -s option or set the environment variable TINI_SUBREAPER to register Tini as a child subreaper, or run Tini as PID 1."},
			sayExec:      {levelFatal, "exec %[1]s failed: %[2]s"},
			sayPrepare:   {levelFatal, "cannot begin: %[1]s"},
			saySubreaper: {levelTrace, "Registered as child subreaper"},
			sayStarted:   {levelInfo, "Spawned child process '%[2]s' with pid '%[1]d'"},
			sayChild:     {levelDebug, "Received SIGCHLD"},
			sayGot:       {levelDebug, "Passing signal: '%[2]s'"},
			sayNoCommand: {levelWarn, "Child was dead when forwarding signal"},
			sayNotSent:   {levelFatal, "Unexpected error when forwarding signal: '%[1]s'"},
			sayReaped:    {levelDebug, "Reaped child with pid: '%[1]d'"},
			sayOrphan:    {levelWarn, "Reaped zombie process with pid=%[1]d"},
			sayExit:      {levelInfo, "Main child exited normally (with status '%[2]d')"},
			saySignal:    {levelInfo, "Main child exited with signal (with signal '%[3]s')"},
			sayNothing:   {levelTrace, "No child to wait"},
			sayNoneYet:   {levelTrace, "No child to reap"},
			sayBye:       {levelTrace, "Exiting: child has exited"},
		}}
	for _, sig := range [...]syscall.Signal{syscall.SIGFPE, syscall.SIGILL, syscall.SIGSEGV, syscall.SIGBUS, syscall.SIGABRT, syscall.SIGTRAP, syscall.SIGSYS} {
		d.leaves[sig] = true // it has their default action
	}
	return d
}

func parseTini(c *initCall, args []string) *initAnswer {
	c.verbosity = levelWarn
	if len(args) == 1 && args[0] == "--version" {
		return &initAnswer{out: "tini version " + tiniVersion + "\n"}
	}
	set := optionSet{letters: "p:hvwgle:s", mixed: os.Getenv("POSIXLY_CORRECT") == ""}
	list, rest, wrong := set.parse(args)
	if wrong != "" {
		return &initAnswer{err: c.name + ": " + wrong + "\n" + tiniUsage(c.name), code: 1}
	}
	fatal := func(option, value string) *initAnswer {
		return &initAnswer{err: c.dialect.begin(levelFatal) + fmt.Sprintf("Not a valid option for -%s: %s\n", option, visible(value)), code: 1}
	}
	for _, o := range list {
		switch o.letter {
		case 'h':
			return &initAnswer{out: tiniUsage(c.name)}
		case 'l':
			return &initAnswer{out: "This is diakonos in the place of tini; see the LICENSE of diakonos (MIT).\n"}
		case 's':
			c.subreaper = true
		case 'v':
			c.verbosity++
		case 'w':
			c.tellsReaped = true
		case 'g':
			c.group = true
		case 'p':
			name, ok := strings.CutPrefix(o.value, "SIG")
			if c.parentDeath = signalNamed(name); !ok || c.parentDeath == 0 {
				return fatal("p", o.value)
			}
		case 'e':
			if c.addSuccess(o.value) != "" {
				return fatal("e", o.value)
			}
		}
	}
	if len(rest) == 0 {
		return &initAnswer{err: tiniUsage(c.name), code: 1}
	}
	_, reaper := os.LookupEnv("TINI_SUBREAPER")
	_, group := os.LookupEnv("TINI_KILL_PROCESS_GROUP")
	c.subreaper, c.group = c.subreaper || reaper, c.group || group
	if text, ok := os.LookupEnv("TINI_VERBOSITY"); ok {
		c.verbosity, _ = strconv.Atoi(text) // 0 for what is no number, as atoi(3)
	}
	c.command = rest
	return nil
}

// ---- dumb-init

const dumbInitSignals = 31 // which it knows

const dumbInitRewriteUsage = `Usage: -r option takes <signum>:<signum>, where <signum> is between 1 and 31.
This option can be specified multiple times.
Use --help for full usage.
`

func dumbInitUsage(name string) string {
	return fmt.Sprintf(`dumb-init v%[2]s
Usage: %[1]s [option] command [[arg] ...]

Takes the place of dumb-init (diakonos %[3]s).

   -c, --single-child   send signals to the command alone, not to its session
   -r, --rewrite s:r    send signal r in the place of s, none where r is 0; can be given again
   -v, --verbose        tell on stderr what happens
   -h, --help           print this text
   -V, --version        print the version

Environment: DUMB_INIT_DEBUG=1 (as -v), DUMB_INIT_SETSID=0 (as -c).
`, name, dumbInitVersion, version)
}

func dumbInitDialect() *dialect {
	return &dialect{name: dumbInitName, parse: parseDumbInit, suspends: true, tellsAll: true, parting: true, toRoot: true,
		noExec: func(syscall.Errno) int { return 2 },
		begin:  func(int) string { return "[dumb-init] " },
		says: [sayings]saying{
			sayExec:       {levelFatal, "%[1]s: %[2]s"},
			sayPrepare:    {levelFatal, "Unable to setsid (%[1]s). Exiting."},
			sayDebug:      {levelDebug, "Running in debug mode."},
			sayShared:     {levelDebug, "Not running in setsid mode."},
			sayUntied:     {levelDebug, "Unable to detach from controlling tty (errno=%[1]d %[2]s)."},
			sayLed:        {levelDebug, "Detached from controlling tty, ignoring the first SIGHUP and SIGCONT we receive."},
			sayNotLed:     {levelDebug, "Detached from controlling tty, but was not session leader."},
			sayStarted:    {levelDebug, "Child spawned with PID %[1]d."},
			sayNoTerminal: {levelDebug, "Unable to attach to controlling tty (errno=%[1]d %[2]s)."},
			saySession:    {levelDebug, "setsid complete."},
			sayChild:      {levelDebug, "Received signal 17."},
			sayGot:        {levelDebug, "Received signal %[1]d."},
			sayHandOff:    {levelDebug, "Ignoring tty hand-off signal %[1]d."},
			sayRewritten:  {levelDebug, "Translating signal %[1]d to %[2]d."},
			sayDropped:    {levelDebug, "Not forwarding signal %[1]d to children (ignored)."},
			saySent:       {levelDebug, "Forwarded signal %[1]d to children."},
			sayStopped:    {levelDebug, "Suspending self due to TTY signal."},
			sayExit:       {levelDebug, "A child with PID %[1]d exited with exit status %[2]d."},
			saySignal:     {levelDebug, "A child with PID %[1]d was terminated by signal %[2]d."},
			sayEnded:      {levelDebug, "Child exited with status %[1]d. Goodbye."},
		}}
}

func parseDumbInit(c *initCall, args []string) *initAnswer {
	c.place = ownSession
	set := optionSet{letters: "chvVr:", long: map[string]byte{"single-child": 'c', "rewrite": 'r', "verbose": 'v', "help": 'h', "version": 'V'}}
	list, rest, wrong := set.parse(args)
	given := [dumbInitSignals + 1]bool{}
	for _, o := range list {
		switch o.letter {
		case 'h':
			return &initAnswer{err: dumbInitUsage(c.name)}
		case 'V':
			return &initAnswer{err: "dumb-init v" + dumbInitVersion + "\n"}
		case 'v':
			c.verbosity = levelDebug
		case 'c':
			c.place = ourGroup
		case 'r':
			from, to, ok := strings.Cut(o.value, ":")
			a, err1 := strconv.Atoi(from)
			b, err2 := strconv.Atoi(to)
			if !ok || err1 != nil || err2 != nil || a < 1 || a > dumbInitSignals || b < 0 || b > dumbInitSignals {
				return &initAnswer{err: dumbInitRewriteUsage, code: 1}
			}
			c.rewrite[a], given[a] = syscall.Signal(b), true
		}
	}
	if wrong != "" {
		return &initAnswer{err: c.name + ": " + wrong + "\n", code: 1}
	}
	if len(rest) == 0 {
		return &initAnswer{err: fmt.Sprintf("Usage: %[1]s [option] program [args]\nTry %[1]s --help for full usage.\n", c.name), code: 1}
	}
	if os.Getenv("DUMB_INIT_DEBUG") == "1" {
		c.verbosity = levelDebug
		c.say(sayDebug)
	}
	if os.Getenv("DUMB_INIT_SETSID") == "0" {
		c.place = ourGroup
		c.say(sayShared)
	}
	c.group = c.place == ownSession
	for _, sig := range [...]syscall.Signal{syscall.SIGTSTP, syscall.SIGTTOU, syscall.SIGTTIN} {
		if c.group && !given[sig] { // a process group without a parent in its session does not stop of these
			c.rewrite[sig] = syscall.SIGSTOP
		}
	}
	c.command = rest
	return nil
}
