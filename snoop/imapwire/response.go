package imapwire

import (
	"bytes"
	"strings"
)

// Response is the head of a server unit.
type Response struct {
	Tag  string // "*", "+" or a command's tag
	Name string // OK, NO, BAD, BYE, FETCH, EXISTS …, in upper case
	Num  uint32 // of EXISTS, EXPUNGE, RECENT, FETCH
	Code string // response code's name, in upper case, of a status
	Arg  []byte // of the code, without its brackets
	Rest []byte // what follows the name, or the code
}

// Status reports whether r is a status response.
func (r Response) Status() bool {
	switch r.Name {
	case "OK", "NO", "BAD", "BYE", "PREAUTH":
		return true
	}
	return false
}

// ParseResponse reads the head of a line. Its slices point into line.
func ParseResponse(line []byte) Response {
	b := TrimEOL(line)
	var r Response
	tag, rest, ok := bytes.Cut(b, []byte{' '})
	r.Tag = string(tag)
	if r.Tag == "+" || !ok {
		r.Rest = rest
		return r
	}
	if r.Tag == "*" && len(rest) > 0 && rest[0] >= '0' && rest[0] <= '9' {
		i := 0
		for i < len(rest) && rest[i] >= '0' && rest[i] <= '9' && i < 10 {
			r.Num = r.Num*10 + uint32(rest[i]-'0')
			i++
		}
		rest = bytes.TrimPrefix(rest[i:], []byte{' '})
	}
	word, rest, _ := bytes.Cut(rest, []byte{' '})
	r.Name, r.Rest = strings.ToUpper(string(word)), rest
	if !r.Status() || len(rest) == 0 || rest[0] != '[' {
		return r
	}
	if end := bytes.IndexByte(rest, ']'); end > 0 {
		code, arg, _ := bytes.Cut(rest[1:end], []byte{' '})
		r.Code, r.Arg = strings.ToUpper(string(code)), arg
		r.Rest = bytes.TrimPrefix(rest[end+1:], []byte{' '})
	}
	return r
}

// FetchItems holds what the proxy and the mirror follow of a FETCH response.
type FetchItems struct {
	UID      uint32
	Flags    []string
	HasFlags bool
	ModSeq   uint64
}

// ParseFetchHead reads UID, FLAGS and MODSEQ out of the first line of a FETCH
// response, as far as it goes; items in literals are not looked for.
func ParseFetchHead(rest []byte) FetchItems {
	var it FetchItems
	r := NewReader(rest)
	if !r.Accept('(') {
		return it
	}
	for !r.AtEnd() && r.Peek() != ')' {
		name := strings.ToUpper(r.take(func(c byte) bool { return c > 0x20 && c != '(' && c != ')' && c != '[' }))
		if r.Peek() == '[' {
			for !r.AtEnd() && !r.Accept(']') {
				r.i++
			}
			r.take(func(c byte) bool { return c != ' ' })
		}
		if !r.Accept(' ') {
			break
		}
		switch name {
		case "UID":
			it.UID = r.Number32()
		case "FLAGS":
			it.Flags, it.HasFlags = r.Flags(), true
		case "MODSEQ":
			r.Expect('(')
			it.ModSeq = r.Number()
			r.Expect(')')
		default:
			if r.Peek() == '{' || r.Peek() == '~' {
				return it
			}
			r.Skip()
		}
		if !r.Accept(' ') {
			break
		}
	}
	if r.Err() != nil {
		it.HasFlags = false
	}
	return it
}
