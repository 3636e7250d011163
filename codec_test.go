// Role: tests of codec.go and of all fields methods: they are held to encoding/json.
// Runs in: go test.
// Owns: nothing.
// Uses: codec, wire, value, command, unit.

package main

import (
	"bytes"
	"encoding/json"
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
)

// records makes one empty value of each struct that has a codec.
func records() []record {
	return []record{new(pidRef), new(exitStatus), new(jobRecord), new(wantRecord), new(runRecord), new(daemonRecord), new(shimFrame),
		new(exitNote), new(historyEvent), new(unit), new(command), new(environmentFile), new(exitSet),
		new(shimWill), new(daemonWill), new(serviceWill), new(clientWill), new(askerWill), new(waitWill)}
}

// TestCodecKnowsEveryField fails for a struct with a field that its fields method forgets, or names or omits otherwise than its tag says.
func TestCodecKnowsEveryField(t *testing.T) {
	for _, r := range records() {
		v := reflect.ValueOf(r).Elem()
		if v.NumField() > 64 {
			t.Errorf("%v has more than 64 fields: the codec could not see a name that comes twice", v.Type())
		}
		checkRecord(t, r) // all empty
		for i := range v.NumField() {
			v.SetZero()
			fill(v.Field(i), 3)
			checkRecord(t, r)
		}
	}
}

// checkRecord holds the codec to encoding/json: the same text, and the same value back.
func checkRecord(t *testing.T, r record) {
	t.Helper()
	want, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if got := encode([]byte("before "), r); string(got) != "before "+string(want) {
		t.Fatalf("%T is written as\n%s\nwant\n%s", r, got, want)
	}
	back, slow := newOf(r), newOf(r)
	if err := json.Unmarshal(want, slow); err != nil {
		t.Fatal(err)
	}
	if err := decode(want, back); err != nil || !reflect.DeepEqual(back, slow) {
		t.Fatalf("%s\nis read as %+v, %v\nwant %+v", want, back, err, slow)
	}
}

func newOf(r record) record { return reflect.New(reflect.TypeOf(r).Elem()).Interface().(record) }

// fill sets a value to something that is not empty, down to some level.
func fill(v reflect.Value, depth int) {
	switch v.Kind() {
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(-7)
	case reflect.Uint32, reflect.Uint64:
		v.SetUint(7)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), depth)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), depth-1)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(1), depth-1)
	}
}

func TestCodecAgreesOnRandomRecords(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		for _, r := range records() {
			randomize(reflect.ValueOf(r).Elem(), rnd)
			checkRecord(t, r)
		}
	}
}

// randomTexts hold every way in which a character can be written.
var randomTexts = []string{"", "sleep", "a \"quoted\" \\ word", "<script>&amp;", "\x00\x01\x1f\x7f\b\f\n\r\t", "äöü €", "\u2028\u2029\ufeff\ufffd",
	"\U0001f600", "\xff\xc3(\xed\xa0\x80\xf0\x9f\x98", "/", strings.Repeat("long", 300)}

func randomize(v reflect.Value, rnd *rand.Rand) {
	if rnd.IntN(3) == 0 {
		v.SetZero()
		return
	}
	numbers := []int64{0, 1, -1, 255, math.MaxInt32, math.MinInt32, math.MaxInt64, math.MinInt64, rnd.Int64()}
	switch v.Kind() {
	case reflect.String:
		v.SetString(randomTexts[rnd.IntN(len(randomTexts))] + randomTexts[rnd.IntN(len(randomTexts))])
	case reflect.Bool:
		v.SetBool(rnd.IntN(2) == 0)
	case reflect.Int, reflect.Int64:
		v.SetInt(numbers[rnd.IntN(len(numbers))])
	case reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(numbers[rnd.IntN(len(numbers))]))
	case reflect.Struct:
		for i := range v.NumField() {
			randomize(v.Field(i), rnd)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		randomize(v.Elem(), rnd)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), rnd.IntN(4), 8))
		for i := range v.Len() {
			randomize(v.Index(i), rnd)
		}
	}
}

// codecRows are texts of a runRecord. Fuzzing begins with them, too.
var codecRows = []struct {
	why, text string
	ok        bool
}{
	{"an empty object", `{}`, true},
	{"null", ` null `, true},
	{"white space everywhere", " {\t\"v\" :\r\n1 , \"starts\" : [ 1 , 2 ] } \n", true},
	{"any order of fields", `{"shim":9,"left":[1],"sub":"running","v":1}`, true},
	{"fields of a newer writer", `{"new":{"a":[1,-0.5e+3,null,true,false,"\u00e9\"",{}],"b":{}},"v":1,"also":[]}`, true},
	{"names in another case", `{"SUB":"running","Boot":"b"}`, true},
	{"an escaped name", `{"s\u0075b":"running"}`, true},
	{"null leaves a field as it is", `{"v":null,"sub":null,"main":null,"left":null,"killed":null,"starts":[null,2]}`, true},
	{"null is a value, not an item's end", `{"orphans":[null,{"pid":1}]}`, true},
	{"escapes", `{"sub":"\"\\\/\b\f\n\r\t\u20ac\ud83d\ude00"}`, true},
	{"halves of surrogate pairs", `{"sub":"\ud83d \ude00 \ud83d\ud83d\ude00 \ud83dx"}`, true},
	{"bytes that are no characters", "{\"sub\":\"\xff\xc3(\xed\xa0\x80\"}", true},
	{"the greatest numbers", `{"pidns":18446744073709551615,"since":9223372036854775807,"step":-9223372036854775808}`, true},
	{"a number that does not fit", `{"since":9223372036854775808}`, false},
	{"a negative number without sign", `{"pidns":-1}`, false},
	{"a fraction", `{"v":1.0}`, false},
	{"an exponent", `{"v":1e3}`, false},
	{"a leading zero", `{"v":01}`, false},
	{"a plus", `{"v":+1}`, false},
	{"a bare minus", `{"new":-}`, false},
	{"a bare point", `{"new":1.}`, false},
	{"a bare exponent", `{"new":1e+}`, false},
	{"a text for a number", `{"v":"1"}`, false},
	{"a number for a text", `{"sub":1}`, false},
	{"a text for a list", `{"left":"1"}`, false},
	{"a list for a record", `{"main":[]}`, false},
	{"a number for a flag", `{"killed":1}`, false},
	{"a word that is none", `{"new":nul}`, false},
	{"a comma at the end", `{"v":1,}`, false},
	{"a comma at the end of a list", `{"left":[1,]}`, false},
	{"no comma", `{"v":1 "sub":"x"}`, false},
	{"no colon", `{"v" 1}`, false},
	{"no name", `{:1}`, false},
	{"a control character in a text", "{\"sub\":\"\n\"}", false},
	{"a control character after an escape", "{\"sub\":\"\\n\n\"}", false},
	{"an unknown escape", `{"sub":"\x41"}`, false},
	{"half an escape", `{"sub":"\u12"}`, false},
	{"a wrong bracket", `{"left":[1}`, false},
	{"an open object", `{"v":1`, false},
	{"an open text", `{"sub":"x`, false},
	{"an open escape", `{"sub":"\`, false},
	{"text behind the end", `{} {}`, false},
	{"nothing", ``, false},
	{"a list", `[]`, false},
	{"NUL", "{\"v\":1}\x00", false},
}

func TestDecode(t *testing.T) {
	for _, row := range codecRows {
		var got, want runRecord
		err := decode([]byte(row.text), &got)
		slow := json.Unmarshal([]byte(row.text), &want)
		switch {
		case (err == nil) != row.ok:
			t.Errorf("%s: %q gives error %v", row.why, row.text, err)
		case (slow == nil) != row.ok:
			t.Errorf("%s: encoding/json gives error %v", row.why, slow)
		case row.ok && !reflect.DeepEqual(got, want):
			t.Errorf("%s: %q is read as %+v, want %+v", row.why, row.text, got, want)
		}
	}
}

func TestDecodeIsStricterThanEncodingJSON(t *testing.T) {
	deep := func(n int) string {
		return `{"new":` + strings.Repeat("[", n) + strings.Repeat("]", n) + `,"v":1}`
	}
	for _, row := range []struct{ why, text string }{
		{"a name twice", `{"v":1,"v":2}`},
		{"a name twice, in another case", `{"v":1,"sub":"x","V":2}`},
		{"too many levels", deep(maxJSONDepth)},
		{"too long", `{"v":1` + strings.Repeat(" ", maxJSONBytes) + `}`},
	} {
		if err := decode([]byte(row.text), new(runRecord)); err == nil {
			t.Errorf("%s is accepted", row.why)
		}
	}
	var r runRecord
	if err := decode([]byte(deep(maxJSONDepth-1)), &r); err != nil || r.Version != 1 {
		t.Errorf("as many levels as are allowed: %v", err)
	}
	if err := decode([]byte(`{"main":{"pid":1},"control":{"pid":1},"new":1,"new":2}`), &r); err != nil {
		t.Errorf("the same name in two records, and an unknown one twice: %v", err)
	}
}

func TestDecodeSaysWhere(t *testing.T) {
	err := decode([]byte(`{"v":true,"sub":7}`), new(runRecord))
	if err == nil || err.Error() != "want a value at byte 5" {
		t.Errorf("got %v", err)
	}
}

// FuzzCodec: no text makes the codec panic, and what it and encoding/json both accept, both read alike.
func FuzzCodec(f *testing.F) {
	for _, row := range codecRows {
		f.Add([]byte(row.text))
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 5 {
		for _, r := range records() {
			randomize(reflect.ValueOf(r).Elem(), rnd)
			f.Add(encode(nil, r))
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, fast := range records() {
			before := bytes.Clone(text)
			err := decode(text, fast)
			if !bytes.Equal(before, text) {
				t.Fatal("the text was changed")
			}
			slow := newOf(fast)
			if err != nil || json.Unmarshal(text, slow) != nil {
				continue
			}
			if !reflect.DeepEqual(fast, slow) {
				t.Fatalf("%q\nis read as %+v\nwant %+v", text, fast, slow)
			}
			checkRecord(t, fast)
		}
	})
}
