package imapwire

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// DateTime is the layout of INTERNALDATE (RFC 9051 date-time).
const DateTime = "_2-Jan-2006 15:04:05 -0700"

// AppendString writes s as a quoted string where it can be one, else as a
// synchronising literal's bytes ("{n}CRLF" and s).
func AppendString(b []byte, s string) []byte {
	if len(s) > 1000 || strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r >= 0x7f }) {
		b = append(b, '{')
		b = strconv.AppendInt(b, int64(len(s)), 10)
		b = append(b, "}\r\n"...)
		return append(b, s...)
	}
	b = append(b, '"')
	for i := 0; i < len(s); i++ {
		if s[i] == '"' || s[i] == '\\' {
			b = append(b, '\\')
		}
		b = append(b, s[i])
	}
	return append(b, '"')
}

// AString writes s as an atom if it is a plain one, else as AppendString.
func AString(s string) string {
	if s != "" && !strings.EqualFold(s, "NIL") && len(s) < 1000 && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= 0x20 || r >= 0x7f || !isAtomByte(byte(r)) || r == ']'
	}) {
		return s
	}
	return string(AppendString(nil, s))
}

// NonSyncString is AppendString with a LITERAL+ marker, for commands.
func NonSyncString(s string) string {
	q := string(AppendString(nil, s))
	if q[0] == '{' {
		return strings.Replace(q, "}\r\n", "+}\r\n", 1)
	}
	return q
}

// FormatFlags writes "(\Seen work)".
func FormatFlags(flags []string) string { return "(" + strings.Join(flags, " ") + ")" }

// ParseDateTime reads an INTERNALDATE.
func ParseDateTime(s string) (time.Time, error) {
	t, err := time.Parse(DateTime, s)
	if err != nil {
		if t, err = time.Parse("2-Jan-2006 15:04:05 -0700", strings.TrimSpace(s)); err != nil {
			return t, fmt.Errorf("%w: bad date %.40q", ErrSyntax, s)
		}
	}
	return t, nil
}

// MatchList reports whether name matches a LIST pattern: "*" matches
// anything, "%" anything but sep. It runs in time len(name)*len(pattern).
func MatchList(pattern, name string, sep byte) bool {
	prev := make([]bool, len(name)+1)
	prev[0] = true
	for i := 0; i < len(pattern); i++ {
		next := make([]bool, len(name)+1)
		c := pattern[i]
		wild := c == '*' || c == '%'
		if wild {
			next[0] = prev[0]
		}
		for j := 0; j < len(name); j++ {
			switch {
			case c == '*', c == '%' && name[j] != sep:
				next[j+1] = prev[j+1] || next[j]
			case wild:
				next[j+1] = prev[j+1]
			default:
				next[j+1] = prev[j] && c == name[j]
			}
		}
		prev = next
	}
	return prev[len(name)]
}
