// Role: failpoints: what an effect is, that each has a failpoint, and what a process does at one that it has orders for.
// Runs in: go test; watchFailpoints in daemons, shims, stages, helpers and clients that tests start.
// Owns: nothing.
// Uses: layer, sys, state.

package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ---- effects in the source

// effects are the calls by which a process does something that outlives it or that another one sees, as written or as
// TYPE.METHOD. The last group are functions of ours whose first effect has its name where they are called.
//
// What the end of a process does too (close, shutdown of a connection), what it does to itself alone (limits, session, credentials) and
// what only power cuts can tell from nothing (fsync) is no effect: to be killed right before it is to be killed elsewhere.
var effects = strings.Fields(`
unix.Write unix.Pwrite unix.Ftruncate unix.Fallocate unix.Rename unix.Renameat2 unix.Link unix.Symlink unix.Unlink unix.Rmdir unix.Mkdir
unix.Mkfifo unix.Chmod unix.Fchmod unix.Chown unix.Fchown unix.Lchown unix.Flock unix.FcntlFlock unix.Bind unix.Listen unix.Connect
unix.Sendmsg unix.SendmsgN unix.Sendto unix.PidfdSendSignal unix.Kill unix.Wait4
syscall.ForkExec syscall.StartProcess syscall.Exec syscall.Kill
os.Mkdir os.MkdirAll os.MkdirTemp os.Remove os.RemoveAll os.WriteFile os.Create os.CreateTemp os.Symlink os.Link os.Chmod os.Chown os.Lchown
os.Rename os.Truncate os.StartProcess io.WriteString io.Copy fmt.Fprint fmt.Fprintf fmt.Fprintln .Write

enterCgroup lockDirectory lockByte waitByte dropDatagram reapChild pidfdSignal signalProcess signalAndContinue dialAt replaceFile rewriteFile writeJSON writeRecord
sysRead sysReadPipe sysWrite sysPwrite sysMkdir sysMkfifo sysUnlink sysRmdir sysRename sysChmod sysFchmod sysLchown sysFchown sysFtruncate sysFlock
sysFcntlFlock sysBind sysConnect sysRenameNew sysAllocate sysZero home.writeDaemon launch.start conn.send conn.sendJSON conn.sendLine recordFile.write
pump.setWord kernel.write kernel.truncate kernel.allocate kernel.rename
`)

// openToCreate is the effect of an open with O_CREAT.
const openToCreate = "open"

// noEffects are calls that only look like one, or stand in for one before: `FUNCTION EFFECT` or, of several in a function, `FUNCTION
// EFFECT N`.
var noEffects = map[string]string{
	"openSlots sysPwrite":            "in place of Fallocate, which the file system lacks",
	"sysAllocate sysZero":            "likewise",
	"sysReadPipe sysRead 2":          "likewise of the first",
	"sysRenameNew sysRename":         "in place of Renameat2, which kernel or file system lacks",
	"shim.announce conn.send 2":      "in place of the first, which was refused whole",
	"conn.sendLine .Write":           "of a RawConn: it runs what it is given",
	"setOOMScore sysWrite":           "changes the process alone",
	"setProcessName sysWrite":        "likewise",
	"openProcess unix.Kill":          "asks whether there is such a process",
	"readToEnd sysRead":              "takes nothing away",
	"shim.readPIDFile sysRead":       "likewise",
	"readFull sysRead":               "reads a pipe of the process's own",
	"pump.readScratch sysReadPipe":   "reads a pipe of the process's own",
	"shim.notifyPath io.WriteString": "into a hash",
	"realKernel sysWrite":            "not called here",
	"realKernel sysFtruncate":        "not called here",
	"realKernel sysAllocate":         "not called here",
	"realKernel sysRenameNew":        "not called here",
}

// noEffectFiles: a client ends with its request; what it does for a daemon stands in state.go. The end of PID 1 is the end of its container. What the console writes
// stands in the logs too.
var noEffectFiles = []string{"client.go", "render.go", "main.go", "init.go", "keep.go", "dialect.go", "console.go"}

var failpointName = regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+)*\.[a-z][a-z0-9]*(-[a-z0-9]+)*$`)

// failpoints are the names in the source, sorted.
func failpoints(t *testing.T) []string {
	t.Helper()
	s := scanEffects(t, productSources(t))
	slices.Sort(s.names)
	return s.names
}

// TestEffectsHaveFailpoints: right before each effect stands its failpoint, whose name is used once.
func TestEffectsHaveFailpoints(t *testing.T) {
	s := scanEffects(t, productSources(t))
	for _, m := range s.mistakes {
		t.Error(m)
	}
	for key := range noEffects {
		if !s.excused[key] {
			t.Errorf("noEffects[%q] excuses nothing", key)
		}
	}
	t.Logf("%d failpoints", len(s.names))
}

func TestScanEffectsSees(t *testing.T) {
	const head = "package main\n\nfunc reach(string) {}\n\ntype launch struct{}\n\nfunc (l launch) start() { syscall.ForkExec() }\n\n"
	for _, c := range []struct{ why, body, want string }{
		{"an effect with its failpoint", `func f() { reach("a.b"); unix.Unlink("x") }`, ""},
		{"none", `func f() { unix.Unlink("x") }`, "f: unix.Unlink has no failpoint"},
		{"a method of ours", `func f(l launch) { l.start() }`, "f: launch.start has no failpoint"},
		{"a method of a type that is not ours", `func f(w io.Writer) { w.Write(nil) }`, "f: .Write has no failpoint"},
		{"a function as a value", `func f() { g(unix.Unlink) }; func g(any) {}`, "f: unix.Unlink has no failpoint"},
		{"an open that creates", `func f() { open("x", unix.O_RDWR|unix.O_CREAT) }; func open(string, int) {}`, "f: open has no failpoint"},
		{"an open that does not", `func f() { open("x", unix.O_RDWR) }; func open(string, int) {}`, ""},
		{"one failpoint for two effects", `func f() { reach("a.b"); unix.Unlink("x"); unix.Unlink("y") }`, "f: unix.Unlink 2 has no failpoint"},
		{"a failpoint behind it", `func f() { unix.Unlink("x"); reach("a.b") }`, "f: unix.Unlink has no failpoint"},
		{"a failpoint in a branch", `func f() { if true { reach("a.b") }; unix.Unlink("x") }`, "f: unix.Unlink has no failpoint"},
		{"a failpoint around a branch", `func f() { reach("a.b"); for { if true { unix.Unlink("x") } } }`, ""},
		{"a failpoint outside of a goroutine", `func f() { reach("a.b"); go func() { unix.Unlink("x") }() }`, ""},
		{"in a case", `func f() { switch { case true: reach("a.b"); unix.Unlink("x"); default: unix.Unlink("y") } }`, "f: unix.Unlink 2 has no failpoint"},
		{"a message on stderr", `func f() { fmt.Fprintln(os.Stderr, "x") }`, ""},
		{"into a text", `func f() { var b strings.Builder; fmt.Fprintln(&b, "x") }`, ""},
		{"a line into something else", `func f() { fmt.Fprintln(pipe, "x") }; var pipe any`, "f: fmt.Fprintln has no failpoint"},
		{"a name twice", `func f() { reach("a.b"); unix.Unlink("x"); reach("a.b"); unix.Unlink("y") }`, `failpoint "a.b" stands twice`},
		{"a name that is none", `func f() { reach("A"); unix.Unlink("x") }`, `failpoint "A": not AREA.EFFECT`},
		{"a name that is computed", `func f(s string) { reach(s); unix.Unlink("x") }`, "f: the name of a failpoint is not a literal"},
		{"a failpoint in an expression", `func f() { defer reach("a.b") }`, "f: reach is not a statement of its own"},
		{"who sets it", `var failpoint func(string); func f() { failpoint = nil }`, "f: uses failpoint"},
		{"who begins with it", `var failpoint = func(string) {}`, "failpoint is set"},
	} {
		s := scanEffects(t, map[string]string{"x.go": head + c.body})
		switch {
		case c.want == "" && len(s.mistakes) > 0:
			t.Errorf("%s: got %q, want no mistake", c.why, s.mistakes)
		case c.want != "" && (len(s.mistakes) != 1 || !strings.Contains(s.mistakes[0], c.want)):
			t.Errorf("%s: got %q, want one with %q", c.why, s.mistakes, c.want)
		}
	}
}

// productSources are the files of the program itself.
func productSources(t *testing.T) map[string]string {
	t.Helper()
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	sources := map[string]string{}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		sources[name] = string(text)
	}
	return sources
}

// effectScan is what a look through the source has found.
type effectScan struct {
	fset     *token.FileSet
	info     *types.Info
	names    []string
	mistakes []string
	excused  map[string]bool // keys of noEffects

	function string
	seen     map[string]int // effects of the function so far
}

func scanEffects(t *testing.T, sources map[string]string) *effectScan {
	t.Helper()
	s := &effectScan{fset: token.NewFileSet(), excused: map[string]bool{},
		info: &types.Info{Uses: map[*ast.Ident]types.Object{}, Selections: map[*ast.SelectorExpr]*types.Selection{}}}
	var files []*ast.File
	for name, text := range sources {
		f, err := parser.ParseFile(s.fset, name, text, 0)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	conf := types.Config{Importer: emptyPackages{}, Error: func(error) {}, FakeImportC: true}
	_, _ = conf.Check("diakonos", s.fset, files, s.info) // errors of the empty imports do not matter
	for _, f := range files {
		if slices.Contains(noEffectFiles, s.fset.Position(f.Package).Filename) {
			continue
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Body != nil {
				s.scanFunction(fn)
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if v, ok := n.(*ast.ValueSpec); ok && v.Names[0].Name == "failpoint" && len(v.Values) > 0 {
				s.mistakes = append(s.mistakes, "failpoint is set where it is declared")
			}
			return true
		})
	}
	return s
}

func (s *effectScan) mistake(format string, args ...any) {
	s.mistakes = append(s.mistakes, s.function+": "+fmt.Sprintf(format, args...))
}

// guard is a failpoint that stands before; it is good for one effect.
type guard struct{ used bool }

func (s *effectScan) scanFunction(fn *ast.FuncDecl) {
	name := fn.Name.Name
	if fn.Recv != nil {
		name = types.ExprString(fn.Recv.List[0].Type) + "." + name
	}
	name = strings.TrimPrefix(name, "*")
	s.function, s.seen = name, map[string]int{}
	switch {
	case name == "reach": // the seam itself
	case slices.Contains(effects, name):
		s.statements(fn.Body.List, &guard{}) // its caller's
	default:
		s.statements(fn.Body.List, nil)
	}
}

// statements goes through a list in order. before is the failpoint in force at its beginning, nil = none.
func (s *effectScan) statements(list []ast.Stmt, before *guard) {
	for _, st := range list {
		if call := reachCall(st); call != nil {
			s.note(call)
			before = &guard{}
			continue
		}
		s.node(st, before)
	}
}

// reachCall is the call of a statement `reach(…)`.
func reachCall(st ast.Stmt) *ast.CallExpr {
	e, ok := st.(*ast.ExprStmt)
	if !ok {
		return nil
	}
	call, ok := e.X.(*ast.CallExpr)
	if id, isName := callee(call); ok && isName && id.Name == "reach" {
		return call
	}
	return nil
}

func callee(call *ast.CallExpr) (*ast.Ident, bool) {
	if call == nil {
		return nil, false
	}
	id, ok := call.Fun.(*ast.Ident)
	return id, ok
}

// note takes the name of a failpoint.
func (s *effectScan) note(call *ast.CallExpr) {
	lit, ok := call.Args[0].(*ast.BasicLit)
	if !ok {
		s.mistake("the name of a failpoint is not a literal")
		return
	}
	name, _ := strconv.Unquote(lit.Value)
	switch {
	case slices.Contains(s.names, name):
		s.mistake("failpoint %q stands twice", name)
	case !failpointName.MatchString(name):
		s.mistake("failpoint %q: not AREA.EFFECT", name)
	}
	s.names = append(s.names, name)
}

// node looks for effects below n; blocks have failpoints of their own.
func (s *effectScan) node(n ast.Node, before *guard) {
	ast.Inspect(n, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.BlockStmt:
			s.statements(n.List, before)
			return false
		case *ast.CaseClause:
			for _, e := range n.List {
				s.node(e, before)
			}
			s.statements(n.Body, before)
			return false
		case *ast.CommClause:
			if n.Comm != nil {
				s.node(n.Comm, before)
			}
			s.statements(n.Body, before)
			return false
		case *ast.CallExpr:
			if createsFile(n) {
				s.effect(openToCreate, before)
			}
			if sel, ok := n.Fun.(*ast.SelectorExpr); ok && isText(sel, n) {
				for _, a := range n.Args {
					s.node(a, before)
				}
				return false
			}
		case *ast.SelectorExpr:
			if name := s.selected(n); slices.Contains(effects, name) {
				s.effect(name, before)
			}
			s.node(n.X, before)
			return false
		case *ast.Ident:
			s.identifier(n, before)
		}
		return true
	})
}

func (s *effectScan) identifier(id *ast.Ident, before *guard) {
	switch obj := s.info.Uses[id].(type) {
	case *types.Func:
		switch {
		case id.Name == "reach":
			s.mistake("reach is not a statement of its own")
		case slices.Contains(effects, id.Name):
			s.effect(id.Name, before)
		}
	case *types.Var:
		if id.Name == "failpoint" && obj.Parent() == obj.Pkg().Scope() {
			s.mistake("uses failpoint")
		}
	}
}

// selected names what x.Sel is: package.Name, TYPE.METHOD of ours, or .METHOD of something else.
func (s *effectScan) selected(sel *ast.SelectorExpr) string {
	if of := s.info.Selections[sel]; of != nil {
		recv := types.TypeString(of.Recv(), func(*types.Package) string { return "" })
		return strings.TrimPrefix(recv, "*") + "." + sel.Sel.Name
	}
	if id, ok := sel.X.(*ast.Ident); ok {
		if _, isPackage := s.info.Uses[id].(*types.PkgName); isPackage || s.info.Uses[id] == nil {
			return id.Name + "." + sel.Sel.Name
		}
	}
	return "." + sel.Sel.Name
}

func (s *effectScan) effect(name string, before *guard) {
	s.seen[name]++
	key := s.function + " " + name
	numbered := fmt.Sprintf("%s %d", key, s.seen[name])
	for _, k := range []string{key, numbered} {
		if noEffects[k] != "" {
			s.excused[k] = true
			return
		}
	}
	if before == nil || before.used {
		if s.seen[name] > 1 {
			name = fmt.Sprintf("%s %d", name, s.seen[name])
		}
		s.mistake("%s has no failpoint right before it", name)
		return
	}
	before.used = true
}

// createsFile: an argument has O_CREAT.
func createsFile(call *ast.CallExpr) (found bool) {
	for _, a := range call.Args {
		ast.Inspect(a, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok && (sel.Sel.Name == "O_CREAT" || sel.Sel.Name == "O_CREATE") {
				found = true
			}
			_, nested := n.(*ast.CallExpr)
			return !nested
		})
	}
	return found
}

// isText: it prints a message to who started the process, or into a text.
func isText(sel *ast.SelectorExpr, call *ast.CallExpr) bool {
	if name, ok := packageCall(sel); !ok || !strings.HasPrefix(name, "fmt.Fprint") || len(call.Args) == 0 {
		return false
	}
	name, ok := packageCall(call.Args[0])
	_, address := call.Args[0].(*ast.UnaryExpr)
	return ok && name == "os.Stderr" || address
}

// ---- a process with orders

// ordersFile lies beside the binary of a process that looks out for failpoints. No environment would do: a stage is started with none of
// ours. It is mapped, so that a process without descriptors, or as another user, sees it and can say what it came to:
//
//	0     text of the orders, lines `ROLE POINT NTH ACTION`, ends in NUL
//	4096  for each order: how often it was looked at, who carried it out (PID) (uint32 each)
//	8192  length of what follows (uint32), then lines `ROLE POINT`: all failpoints that were reached while there were orders
const ordersFile = "failpoint.orders"

const (
	ordersBytes = 4096
	traceAt     = 8192
	watchBytes  = 16 << 20
)

// Roles of processes.
const (
	roleClient = "client"
	roleDaemon = "daemon"
	roleShim   = "shim"
	roleStage  = "stage"
	roleHelper = "helper"
)

// Actions at a failpoint; sabotages are others, which are taken each time.
const (
	actKill  = "kill"  // SIGKILL to itself
	actStop  = "stop"  // SIGSTOP to itself
	actAll   = "all"   // SIGKILL to daemon, shims and itself
	actWatch = "watch" // nothing
)

// failOrder tells a process what to do when it comes to a failpoint for the nth time; processes of a role count together.
type failOrder struct {
	role, point string
	nth         int
	action      string
}

func (o failOrder) String() string {
	return fmt.Sprintf("%s %s %d %s", o.role, o.point, o.nth, o.action)
}

// failWatch is the file of orders, in who gives them and in who looks out for them.
type failWatch struct {
	beside string // directory of the binary
	m      []byte
	role   string
}

// openWatch maps the orders beside a binary.
func openWatch(dir string) (*failWatch, error) {
	f, err := os.OpenFile(filepath.Join(dir, ordersFile), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, watchBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return &failWatch{beside: dir, m: m}, err
}

// watchFailpoints sets the failpoint of this process, if there are orders beside its binary.
func watchFailpoints() {
	exe, err := os.Executable()
	if err != nil {
		return // without /proc
	}
	if w, err := openWatch(filepath.Dir(exe)); err == nil {
		w.role = processRole(os.Args)
		failpoint = w.reached
	}
}

func processRole(args []string) string {
	second := ""
	if len(args) > 1 {
		second = args[1]
	}
	switch name := filepath.Base(args[0]); {
	case name == daemonName, name == "diakonos" && second == "daemon":
		return roleDaemon
	case name == shimName && second == "-exec":
		return roleStage
	case name == shimName && second == "-detach":
		return roleHelper
	case name == shimName:
		return roleShim
	}
	return roleClient
}

func (w *failWatch) word(at int) *atomic.Uint32 { return (*atomic.Uint32)(unsafe.Pointer(&w.m[at])) }

// looked counts how often an order was looked at, and pid is who carried it out, 0 = nobody.
func (w *failWatch) looked(number int) *atomic.Uint32 { return w.word(ordersBytes + 8*number) }
func (w *failWatch) pid(number int) *atomic.Uint32    { return w.word(ordersBytes + 8*number + 4) }

// give replaces the orders; none end the watch.
func (w *failWatch) give(orders ...failOrder) {
	w.m[0] = 0
	var text strings.Builder
	for i, o := range orders {
		fmt.Fprintln(&text, o)
		w.looked(i).Store(0)
		w.pid(i).Store(0)
	}
	b := append([]byte(text.String()), 0)
	copy(w.m[1:ordersBytes], b[1:])
	w.m[0] = b[0]
}

func (w *failWatch) orders() (list []failOrder) {
	text := unix.ByteSliceToString(w.m[:ordersBytes])
	for line := range strings.Lines(text) {
		var o failOrder
		if n, _ := fmt.Sscan(line, &o.role, &o.point, &o.nth, &o.action); n == 4 {
			list = append(list, o)
		}
	}
	return list
}

// reached is the failpoint. It is called from any goroutine.
func (w *failWatch) reached(point string) {
	orders := w.orders()
	if len(orders) == 0 {
		return
	}
	line := w.role + " " + point + "\n"
	if to := int(w.word(traceAt).Add(uint32(len(line)))); traceAt+4+to <= len(w.m) {
		copy(w.m[traceAt+4+to-len(line):], line)
	}
	for i, o := range orders {
		switch {
		case o.role != w.role || o.point != point:
		case sabotages[o.action] != nil:
			sabotages[o.action]()
		case int(w.looked(i).Add(1)) == o.nth:
			w.act(i, o)
		}
	}
}

func (w *failWatch) act(number int, o failOrder) {
	if o.action == actWatch {
		return
	}
	w.pid(number).Store(uint32(os.Getpid()))
	switch o.action {
	case actStop: // this very thread: if another one took the signal, this one might come to an execve before it stops, which ends the stop
		runtime.LockOSThread()
		_ = unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGSTOP)
		runtime.UnlockOSThread()
		return
	case actAll:
		for _, p := range readProcesses() {
			exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.pid))
			if p.pid == os.Getpid() || filepath.Dir(exe) != w.beside || p.command == "" {
				continue
			}
			switch processRole(strings.Fields(p.command)) {
			case roleDaemon, roleShim, roleHelper:
				_ = unix.Kill(p.pid, unix.SIGKILL)
			}
		}
	}
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}

// passage is a role that comes to a failpoint.
type passage struct{ role, point string }

// passages counts how often each role came to each failpoint.
func (w *failWatch) passages() map[passage]int {
	to := min(traceAt+4+int(w.word(traceAt).Load()), len(w.m))
	count := map[passage]int{}
	for line := range strings.Lines(string(w.m[traceAt+4 : to])) {
		if role, point, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " "); ok {
			count[passage{role, point}]++
		}
	}
	return count
}
