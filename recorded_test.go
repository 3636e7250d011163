// Role: what released versions wrote is read for ever: records, frames, wills, slots, stage orders and intents, kept in testdata/wire/VERSION.
// Runs in: go test.
// Owns: testdata/wire.
// Uses: codec, wire, log; codec_test, unit_test, wire_test.

package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// A directory testdata/wire/VERSION holds
//
//	commit     the commit whose program TestUpgrade takes as the old one
//	texts      lines `TYPE JSON`: one of each type, with all fields that it had
//	slots      a record file of two slots; the newer one is the line wantRecord of texts
//	stage      a stage's order, without its length; it is the line stageOrder of texts
//	intent     the header of the pump file with an intent; what it says stands in intent.txt
//
// That of the present version is written by `go test -run TestRecorded -update` until it is released. Others never change.

// recordedTypes are the types of texts by name.
func recordedTypes() map[string]any {
	types := map[string]any{"request": new(request), "reply": new(reply), "stageOrder": new(stageOrder)}
	for _, r := range records() {
		types[reflect.TypeOf(r).Elem().Name()] = r
	}
	return types
}

// sampleOf has all fields set.
func sampleOf(v any) any {
	sample := reflect.New(reflect.TypeOf(v).Elem())
	fill(sample.Elem(), 4)
	return sample.Interface()
}

// sampleIntent carries a gap, begun lines and flags.
func sampleIntent() intent {
	return intent{flags: intentEnd, stream: streamErr, n: 100, text: 90, max: 4096, begun: 3, next: 5, stamp: 1763834400123456789, fifo: 11, file: 12, off: 13, length: 140}
}

func writeRecorded(t *testing.T, dir string) {
	t.Helper()
	var texts strings.Builder
	for _, name := range slices.Sorted(maps.Keys(recordedTypes())) {
		text, err := json.Marshal(sampleOf(recordedTypes()[name]))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&texts, "%s %s\n", name, text)
	}
	want, order := sampleOf(new(wantRecord)).(*wantRecord), sampleOf(new(stageOrder)).(*stageOrder)
	slots := slotFile(map[uint64][]byte{4: slotOf(t, 4, wantRecord{}), 5: slotOf(t, 5, *want)})
	header := make([]byte, 4096)
	copy(header, pumpMagic)
	sampleIntent().put(header)
	binary.LittleEndian.PutUint32(header[pumpFlagsAt:], sampleIntent().flags)
	for name, content := range map[string][]byte{"texts": []byte(texts.String()), "slots": slots, "stage": encodeStageOrder(*order)[4:], "intent": header,
		"intent.txt": fmt.Appendf(nil, "%+v\n", sampleIntent())} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRecorded(t *testing.T) {
	present := filepath.Join("testdata/wire", version)
	if *updateDocs {
		writeRecorded(t, present)
	}
	dirs, err := filepath.Glob("testdata/wire/*")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no version is recorded: %v", err)
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) { replayRecorded(t, dir) })
	}
	if missing := unrecorded(t, present); missing != "" {
		t.Errorf("%s lacks %s: `go test -run TestRecorded -update`", present, missing)
	}
}

// replayRecorded reads all that a version wrote: nothing of it is refused, forgotten or understood in another way.
func replayRecorded(t *testing.T, dir string) {
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	texts := recordedTexts(t, dir)
	for name, text := range texts {
		v := recordedTypes()[name]
		if v == nil {
			t.Errorf("%s: this program has no such type any more", name)
			continue
		}
		if missing := notKept(text, reread(t, v, text)); missing != "" {
			t.Errorf("%s: %s", name, missing)
		}
	}
	var want wantRecord
	if seq, err := decodeSlots(read("slots"), &want); err != nil || seq != 5 || notKept(texts["wantRecord"], encode(nil, &want)) != "" {
		t.Errorf("slots: %d %+v, %v", seq, want, err)
	}
	order, err := decodeStageOrder(read("stage"))
	text, _ := json.Marshal(order)
	if err != nil || notKept(texts["stageOrder"], text) != "" {
		t.Errorf("stage: %s, %v; want %s", text, err, texts["stageOrder"])
	}
	header := read("intent")
	in, err := getIntent(header)
	if err != nil || !bytes.HasPrefix(header, []byte(pumpMagic)) {
		t.Errorf("intent: %v", err)
	}
	got := strings.Fields(strings.Trim(fmt.Sprintf("%+v", in), "{}"))
	for _, field := range strings.Fields(strings.Trim(string(read("intent.txt")), "{}\n")) {
		if !slices.Contains(got, field) {
			t.Errorf("intent: got %s, want %s", got, field)
		}
	}
}

func recordedTexts(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "texts"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	texts := map[string][]byte{}
	for line := range strings.Lines(string(b)) {
		name, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		texts[name] = []byte(text)
	}
	return texts
}

// reread reads a text as this program does, and writes it again.
func reread(t *testing.T, v any, text []byte) []byte {
	t.Helper()
	if r, ok := v.(record); ok {
		if err := decode(text, r); err != nil {
			t.Errorf("%T: %v", v, err)
		}
		return encode(nil, r)
	}
	if err := json.Unmarshal(text, v); err != nil {
		t.Errorf("%T: %v", v, err)
	}
	again, err := json.Marshal(v)
	if err != nil {
		t.Errorf("%T: %v", v, err)
	}
	return again
}

// notKept names what the old text says and the new one does not; "" = nothing.
func notKept(before, after []byte) string {
	var a, b any
	if err := errors.Join(json.Unmarshal(before, &a), json.Unmarshal(after, &b)); err != nil {
		return err.Error()
	}
	return lostWithin("", a, b)
}

func lostWithin(at string, a, b any) string {
	switch a := a.(type) {
	case map[string]any:
		b, _ := b.(map[string]any)
		for key := range a {
			if lost := lostWithin(at+"."+key, a[key], b[key]); lost != "" {
				return lost
			}
		}
		return ""
	case []any:
		b, _ := b.([]any)
		if len(a) != len(b) {
			return fmt.Sprintf("%s had %d items, has %d", at, len(a), len(b))
		}
		for i := range a {
			if lost := lostWithin(fmt.Sprintf("%s[%d]", at, i), a[i], b[i]); lost != "" {
				return lost
			}
		}
		return ""
	}
	if !reflect.DeepEqual(a, b) {
		return fmt.Sprintf("%s was %v, is %v", at, a, b)
	}
	return ""
}

// unrecorded names a type or field of this program that its own version's texts lack; "" = none.
func unrecorded(t *testing.T, dir string) string {
	texts := recordedTexts(t, dir)
	for name, v := range recordedTypes() {
		full, err := json.Marshal(sampleOf(v))
		if err != nil {
			t.Fatal(err)
		}
		if texts[name] == nil {
			return name
		}
		if missing := notKept(full, texts[name]); missing != "" {
			return name + missing
		}
	}
	return ""
}

func TestNotKept(t *testing.T) {
	for _, c := range []struct{ before, after, want string }{
		{`{"a":1,"b":[{"c":"x"}]}`, `{"b":[{"c":"x","d":2}],"a":1,"e":null}`, ""},
		{`{"a":1}`, `{"a":2}`, ".a was 1, is 2"},
		{`{"a":1}`, `{}`, ".a was 1, is <nil>"},
		{`{"b":[{"c":"x"}]}`, `{"b":[{"d":"x"}]}`, ".b[0].c was x, is <nil>"},
		{`{"b":[1]}`, `{"b":[]}`, ".b had 1 items, has 0"},
	} {
		if got := notKept([]byte(c.before), []byte(c.after)); got != c.want {
			t.Errorf("%s, %s: got %q, want %q", c.before, c.after, got, c.want)
		}
	}
}
