// Role: tests of what is made visible.
// Runs in: go test.
// Owns: nothing.
// Uses: visible.

package main

import "testing"

func TestVisible(t *testing.T) {
	for _, row := range []struct{ text, want string }{
		{"plain ~ text", "plain ~ text"},
		{"grüße 日本 🙂", "grüße 日本 🙂"},
		{"👩\u200d💻", "👩\u200d💻"},
		{"\x1b[31mred", "^[[31mred"},
		{"a\r\nb\x00\x7f", "a^M^Jb^@^?"},
		{"\u009b31m", `\x9b31m`},
		{"\x9b31m\xff", `\x9b31m\xff`},
		{"user\u202etxt.exe\u2066", `user\u202etxt.exe\u2066`},
		{"\ufeffa\u200eb\u00adc\u2028d", `\ufeffa\u200eb\u00adc\u2028d`},
	} {
		if got := visible(row.text); got != row.want {
			t.Errorf("%q: got %q, want %q", row.text, got, row.want)
		}
	}
}
