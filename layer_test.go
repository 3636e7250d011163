// Role: makes layers inside one package: checks declared against real uses between files, their direction, and
// what no file may import or call.
// Runs in: go test.
// Owns: nothing.
// Uses: nothing.

package main

import (
	"fmt"
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"go/types"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// layers is DESIGN.md section 9: each file may use the files behind its colon, which stand above it. A use that
// is missing here is a question of design; the text is not to be changed to make a build pass.
//
// Two loops are too long for one file, and a file of a loop is full of methods of the one value that its owner
// goroutine has: shim and spawn are one unit of the order, and so are daemon and api. Within a unit each file may
// use the other.
const layers = `
codec:
visible:
wire: codec
value: codec
sys: codec wire
sys_log: sys
command: codec value
unit: codec value command
log:
deps: unit
supervise: wire value command unit
state: codec visible wire sys unit supervise
history: codec wire sys state
environ: wire sys command unit state
tree: wire sys state
child: wire sys
pump: log sys sys_log
succession: codec sys
shim+spawn+renew: codec visible wire sys command unit log supervise state history environ tree child pump succession
daemon+api+upgrade+kept+action: codec visible wire value sys unit deps supervise state history tree succession
render: visible wire log tree
why: visible wire sys unit supervise state history render
client: visible wire value sys unit log deps state tree api upgrade render why
console: visible wire log sys state render
dialect: visible wire value sys unit state console
init+keep: codec wire value sys state dialect console
main: visible wire sys state environ succession shim daemon api dialect init client
`

// pureFiles compute only: nothing of the machine, no clock.
var pureFiles = []string{"deps", "supervise"}

// pureNames is what pure files may use of the kernel's packages: the values that unit files and records hold, by
// the beginning of their names.
var pureNames = []string{"syscall.Signal", "syscall.SIG", "syscall.Errno", "unix.SignalName"}

// lockFree files have one owner goroutine each, and no mutex.
var lockFree = []string{"daemon", "api", "upgrade", "kept", "action", "shim", "spawn", "renew"}

// noImports: what each process would pay for at its start (DESIGN.md section 10), and what the shim must not do.
var noImports = []string{"net", "net/http", "os/exec", "os/user", "regexp", "hash/crc32", "log", "log/slog", "text/template", "html/template"}

// noCalls: waiting is done on descriptors, channels and the one timer.
var noCalls = []string{"time.Sleep", "time.Tick", "time.NewTicker"}

// mayCall: a client that finds the home's lock held by a daemon that does not answer yet tries again (DESIGN.md,
// section 2); it has no descriptor to wait on.
var mayCall = []string{"state.wait time.Sleep"}

// clockCalls may not stand in pure files.
var clockCalls = []string{"time.Now", "time.Since", "time.Until", "time.After", "time.AfterFunc", "time.NewTimer"}

func TestLayers(t *testing.T) {
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, arch := range []string{"amd64", "arm64"} {
		ctx := build.Default
		ctx.GOOS, ctx.GOARCH, ctx.CgoEnabled = "linux", arch, false
		sources := map[string]string{}
		for _, name := range names {
			if ok, err := ctx.MatchFile(".", name); err != nil || !ok || strings.HasSuffix(name, "_test.go") {
				continue
			}
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			sources[name] = string(text)
		}
		for _, m := range layerMistakes(sources, layers) {
			t.Errorf("%s: %s", arch, m)
		}
	}
}

func TestLayerMistakes(t *testing.T) {
	const head = "// Role: x.\n// Uses: %s.\n\npackage main\n\n"
	file := func(uses, body string) string { return fmt.Sprintf(head, uses) + body }
	const order = "low:\nsys: low\ndeps: low\nshim+spawn: low sys\nstate:\n"
	for _, c := range []struct {
		why     string
		sources map[string]string
		want    string // part of the one mistake; "" = none
	}{
		{"uses that are declared and allowed",
			map[string]string{"low.go": file("nothing", "const a = 1"), "sys_linux.go": file("low", "const b = a")}, ""},
		{"a header may go on in the next line",
			map[string]string{"low.go": file("nothing", "const a = 1"), "sys_linux.go": file("nothing", "const b = 1"), "shim.go": file("low,\n// sys", "const c = a + b")}, ""},
		{"a use that is not declared",
			map[string]string{"low.go": file("nothing", "const a = 1"), "sys_linux.go": file("nothing", "const b = a")}, "sys uses low (a): not declared"},
		{"a declared use that is none",
			map[string]string{"low.go": file("nothing", "const a = 1"), "sys_linux.go": file("low", "const b = 1")}, "sys declares low"},
		{"a use upwards",
			map[string]string{"low.go": file("sys", "const a = b"), "sys_linux.go": file("nothing", "const b = 1")}, "low may not use sys"},
		{"a use of a neighbour",
			map[string]string{"deps.go": file("nothing", "const a = 1"), "shim.go": file("deps", "const b = a")}, "shim may not use deps"},
		{"a method value of an unknown import hides nothing",
			map[string]string{"low.go": file("nothing", "func a(int) {}"), "shim.go": file("nothing", "import \"x.org/y\"\nfunc b() { a(y.Z(1)) }")}, "shim uses low (a): not declared"},
		{"a local name is no use",
			map[string]string{"low.go": file("nothing", "const a = 1"), "shim.go": file("nothing", "func b(a int) int { return a }")}, ""},
		{"a type in a field",
			map[string]string{"low.go": file("nothing", "type a struct{}"), "shim.go": file("nothing", "type b struct{ f []*a }")}, "shim uses low (a): not declared"},
		{"two files of one unit",
			map[string]string{"shim.go": file("spawn", "const a = b"), "spawn.go": file("shim", "const b, c = 1, a")}, ""},
		{"a use within a unit that is not declared",
			map[string]string{"shim.go": file("nothing", "const a = b"), "spawn.go": file("nothing", "const b = 1")}, "shim uses spawn (b): not declared"},
		{"a file of a unit uses what stands above the unit",
			map[string]string{"low.go": file("nothing", "const a = 1"), "spawn.go": file("low", "const b = a")}, ""},
		{"a file that the order does not know",
			map[string]string{"util.go": file("nothing", "")}, "util stands in no layer"},
		{"no header", map[string]string{"low.go": "package main\n"}, "low has no Uses: line"},
		{"net", map[string]string{"low.go": file("nothing", "import \"net\"\nvar _ net.IP")}, `low imports "net"`},
		{"init", map[string]string{"low.go": file("nothing", "func init() {}")}, "low has func init"},
		{"os in a pure file", map[string]string{"deps.go": file("nothing", "import \"os\"\nvar _ = os.Args")}, `deps imports "os"`},
		{"time as a type in a pure file", map[string]string{"deps.go": file("nothing", "import \"time\"\nvar _ time.Duration")}, ""},
		{"the clock in a pure file", map[string]string{"deps.go": file("nothing", "import \"time\"\nvar _ = time.Now")}, "deps uses time.Now"},
		{"a signal as a value in a pure file", map[string]string{"deps.go": file("nothing", "import \"syscall\"\nvar _ = syscall.SIGTERM")}, ""},
		{"a kernel call in a pure file", map[string]string{"deps.go": file("nothing", "import \"syscall\"\nvar _ = syscall.Getpid")}, "deps uses syscall.Getpid"},
		{"the clock elsewhere", map[string]string{"low.go": file("nothing", "import \"time\"\nvar _ = time.Now")}, ""},
		{"sleep", map[string]string{"low.go": file("nothing", "import \"time\"\nfunc f() { time.Sleep(1) }")}, "low uses time.Sleep"},
		{"sleep where the order says why", map[string]string{"state.go": file("nothing", "import \"time\"\nfunc wait() { time.Sleep(1) }")}, ""},
		{"sleep beside it", map[string]string{"state.go": file("nothing", "import \"time\"\nfunc waits() { time.Sleep(1) }")}, "state uses time.Sleep"},
		{"a mutex in a loop's file", map[string]string{"shim.go": file("nothing", "import \"sync\"\nvar m sync.RWMutex")}, "shim uses sync.RWMutex"},
		{"a mutex elsewhere", map[string]string{"low.go": file("nothing", "import \"sync\"\nvar m sync.Mutex")}, ""},
	} {
		got := layerMistakes(c.sources, order)
		switch {
		case c.want == "" && len(got) > 0:
			t.Errorf("%s: got %q, want none", c.why, got)
		case c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)):
			t.Errorf("%s: got %q, want one with %q", c.why, got, c.want)
		}
	}
	circle := layerMistakes(map[string]string{"low.go": file("sys", "const a = 1\nvar x = d"), "sys_linux.go": file("low", "const b = a\nvar d = 1")}, "low: sys\nsys: low\n")
	if len(circle) != 1 || !strings.Contains(circle[0], "low: sys stands below it") {
		t.Errorf("a circle in the order itself: got %q", circle)
	}
}

// layerMistakes checks the files of one package (by file name) against an order of layers.
func layerMistakes(sources map[string]string, order string) []string {
	allowed, mistakes := readLayers(order)
	fset := token.NewFileSet()
	var files []*ast.File
	for _, name := range slices.Sorted(maps.Keys(sources)) {
		f, err := parser.ParseFile(fset, name, sources[name], parser.ParseComments)
		if err != nil {
			return append(mistakes, err.Error())
		}
		files = append(files, f)
	}
	used := realUses(fset, files)
	for _, f := range files {
		stem := fileStem(fset.Position(f.Package).Filename)
		mistakes = append(mistakes, useMistakes(stem, f, used[stem], allowed)...)
		mistakes = append(mistakes, forbidden(stem, f)...)
	}
	return mistakes
}

// readLayers returns which files each file may use. Only files above it may be named: so there is no circle but
// within a unit of several files (a+b).
func readLayers(order string) (map[string][]string, []string) {
	allowed := map[string][]string{}
	var mistakes []string
	for line := range strings.Lines(order) {
		name, list, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		for _, use := range strings.Fields(list) {
			if _, above := allowed[use]; !above {
				mistakes = append(mistakes, fmt.Sprintf("%s: %s stands below it", name, use))
			}
		}
		group := strings.Split(name, "+")
		for _, file := range group {
			others := slices.DeleteFunc(slices.Clone(group), func(other string) bool { return other == file })
			allowed[file] = append(strings.Fields(list), others...)
		}
	}
	return allowed, mistakes
}

// fileStem: sys_linux.go, sys_linux_arm64.go and sys.go are `sys`.
func fileStem(name string) string {
	stem := strings.TrimSuffix(filepath.Base(name), ".go")
	for _, suffix := range []string{"_amd64", "_arm64", "_linux"} {
		stem = strings.TrimSuffix(stem, suffix)
	}
	return stem
}

// realUses returns for each file the other files whose package-level names it uses, with one such name.
func realUses(fset *token.FileSet, files []*ast.File) map[string]map[string]string {
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
	conf := types.Config{Importer: emptyPackages{}, Error: func(error) {}, FakeImportC: true}
	pkg, _ := conf.Check("diakonos", fset, files, info) // errors of the empty imports do not matter
	uses := map[string]map[string]string{}
	for id, obj := range info.Uses {
		if obj.Pkg() != pkg || obj.Parent() != pkg.Scope() {
			continue
		}
		from, to := fileStem(fset.Position(id.Pos()).Filename), fileStem(fset.Position(obj.Pos()).Filename)
		if from == to {
			continue
		}
		if uses[from] == nil {
			uses[from] = map[string]string{}
		}
		if old := uses[from][to]; old == "" || id.Name < old {
			uses[from][to] = id.Name
		}
	}
	return uses
}

// emptyPackages imports everything as an empty package: only our own names matter.
type emptyPackages struct{}

func (emptyPackages) Import(name string) (*types.Package, error) {
	pkg := types.NewPackage(name, strings.TrimPrefix(path.Base(name), "go-"))
	pkg.MarkComplete()
	return pkg, nil
}

// useMistakes compares the declared, the real and the allowed uses of one file.
func useMistakes(stem string, f *ast.File, real map[string]string, allowed map[string][]string) []string {
	var mistakes []string
	say := func(format string, a ...any) { mistakes = append(mistakes, fmt.Sprintf(format, a...)) }
	may, known := allowed[stem]
	if !known {
		say("%s stands in no layer", stem)
	}
	declared, found := declaredUses(f)
	if !found {
		say("%s has no Uses: line", stem)
	}
	for _, use := range slices.Sorted(maps.Keys(real)) {
		if known && !slices.Contains(may, use) {
			say("%s may not use %s (%s)", stem, use, real[use])
		} else if found && !slices.Contains(declared, use) {
			say("%s uses %s (%s): not declared in its Uses: line", stem, use, real[use])
		}
	}
	for _, use := range declared {
		if real[use] == "" {
			say("%s declares %s and does not use it", stem, use)
		}
	}
	return mistakes
}

// declaredUses reads `// Uses: a, b.` from the comments above the package clause; it may go on in the next lines
// of its block.
func declaredUses(f *ast.File) (uses []string, found bool) {
	for _, group := range f.Comments {
		if group.Pos() > f.Package {
			break
		}
		_, text, ok := strings.Cut("\n"+group.Text(), "\nUses:")
		if !ok {
			continue
		}
		text, _, _ = strings.Cut(text, "\n\n")
		text, _, _ = strings.Cut(text, ".")
		uses = strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' })
		if slices.Equal(uses, []string{"nothing"}) {
			uses = nil
		}
		return uses, true
	}
	return nil, false
}

// forbidden lists what the file imports, declares or calls and may not.
func forbidden(stem string, f *ast.File) []string {
	var mistakes []string
	say := func(format string, a ...any) { mistakes = append(mistakes, fmt.Sprintf(format, a...)) }
	imports := noImports
	calls := noCalls
	if slices.Contains(pureFiles, stem) {
		imports = slices.Concat(imports, []string{"os", "sync", "math/rand", "math/rand/v2"})
		calls = slices.Concat(calls, clockCalls)
	}
	if slices.Contains(lockFree, stem) {
		calls = slices.Concat(calls, []string{"sync.Mutex", "sync.RWMutex"})
	}
	for _, i := range f.Imports {
		if name := strings.Trim(i.Path.Value, `"`); slices.Contains(imports, name) {
			say("%s imports %q", stem, name)
		}
	}
	for _, d := range f.Decls {
		function := ""
		if fn, ok := d.(*ast.FuncDecl); ok {
			function = fn.Name.Name
			if fn.Recv == nil && function == "init" {
				say("%s has func init", stem)
			}
		}
		ast.Inspect(d, func(n ast.Node) bool {
			call, ok := packageCall(n)
			excused := slices.Contains(mayCall, stem+"."+function+" "+call)
			if ok && (slices.Contains(calls, call) && !excused || slices.Contains(pureFiles, stem) && asksKernel(call)) {
				say("%s uses %s", stem, call)
			}
			return true
		})
	}
	return mistakes
}

// packageCall: a node that is written as package.Name.
func packageCall(n ast.Node) (string, bool) {
	s, ok := n.(*ast.SelectorExpr)
	if !ok {
		return "", false
	}
	pkg, ok := s.X.(*ast.Ident)
	if !ok {
		return "", false
	}
	return pkg.Name + "." + s.Sel.Name, true
}

// asksKernel: of the kernel's packages it is more than a value.
func asksKernel(call string) bool {
	of := strings.HasPrefix(call, "syscall.") || strings.HasPrefix(call, "unix.")
	return of && !slices.ContainsFunc(pureNames, func(name string) bool { return strings.HasPrefix(call, name) })
}
