// Role: the rule that no control character of a service, a path or a caller reaches a terminal or our own log.
// Runs in: client, daemon, shim.
// Owns: nothing; pure.
// Uses: nothing.

package main

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// hidden tells whether a terminal might act on r, or show nothing or something else for it: C0, C1, bidi marks
// and all other format characters except the joiners that scripts and emoji need.
func hidden(r rune) bool {
	switch {
	case r < 0x20 || r >= 0x7f && r < 0xa0:
		return true
	case r < 0x300:
		return r == 0xad
	case r == 0x200c || r == 0x200d:
		return false
	}
	return unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp)
}

// appendVisible appends text with every hidden character and invalid byte spelled out: ^[ \x9b \u202e \xff.
// Characters in keep pass.
func appendVisible(b []byte, text string, keep string) []byte {
	for i := 0; i < len(text); {
		c := text[i]
		if c >= 0x20 && c < 0x7f {
			b = append(b, c)
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			b = fmt.Appendf(b, `\x%02x`, c)
		case strings.ContainsRune(keep, r) || !hidden(r):
			b = append(b, text[i:i+n]...)
		case r < 0x80:
			b = append(b, '^', c^0x40)
		case r < 0xa0:
			b = fmt.Appendf(b, `\x%02x`, r)
		default:
			b = fmt.Appendf(b, `\u%04x`, r)
		}
		i += n
	}
	return b
}

// visible is text that may go to a terminal, and is one line.
func visible(text string) string {
	for i := range len(text) {
		if text[i] < 0x20 || text[i] >= 0x7f {
			return string(appendVisible(nil, text, ""))
		}
	}
	return text
}
