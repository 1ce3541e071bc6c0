package imapsession

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"strings"

	"understudy/snoop/imapwire"
)

// Unit is a response with literals that the client has got a part of.
type Unit struct {
	UID  uint32 // of a FETCH; 0 if not known
	Size int64  // of the literal
	Got  int64  // bytes of it that the client has
	Sum  uint32 // CRC-32C of them

	open bool
	part bool // in the middle of a line
	drop bool // not for the client
	ex   *Exchange
	line []byte // that announced the literal
	head []byte // all lines so far
}

// Castagnoli returns the table of the Sum of a Unit.
func Castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// Open reports whether the client waits for the rest.
func (u *Unit) Open() bool { return u.open && !u.drop }

// Known reports whether the rest of the unit can be got from elsewhere.
func (u *Unit) Known() bool { return !u.part && u.UID != 0 && section(u.line) != "" }

// begin notes which message a unit is about.
func (u *Unit) begin(r *imapwire.Response, box *Box, oldest *Exchange) {
	u.UID, u.ex = 0, nil
	if r.Name == "FETCH" && box != nil && r.Num > 0 && int(r.Num) <= len(box.View) {
		u.UID, u.ex = box.View[r.Num-1], oldest
	}
}

// piece follows a piece of a unit.
func (u *Unit) piece(p imapwire.Piece, b []byte) {
	switch p.Kind {
	case imapwire.Part:
		u.open, u.part = true, true
	case imapwire.Body:
		u.Got += int64(p.N)
		if u.UID != 0 && !u.drop {
			u.Sum = crc32.Update(u.Sum, Castagnoli(), b)
		}
	case imapwire.Line:
		if !p.Lit.Present {
			*u = Unit{}
			return
		}
		u.open, u.part = true, false
		u.line = bytes.Clone(b)
		u.head = append(u.head, b...)
		u.Size, u.Got, u.Sum = p.Lit.Size, 0, 0
	}
}

// Ask is the item with which the literal is fetched again.
func (u *Unit) Ask() string {
	ask := section(u.line)
	if strings.IndexByte(ask, '<') >= 0 {
		ask = strings.TrimSuffix(ask, ">") + fmt.Sprintf(".%d>", u.Size)
	}
	return ask
}

// section is the body section whose literal a line of a FETCH announces, as
// one asks for it.
func section(line []byte) string {
	line = line[:max(0, bytes.LastIndexByte(line, '{'))]
	up := strings.ToUpper(strings.TrimRight(string(line), "~ "))
	switch up[strings.LastIndexAny(up, " (")+1:] {
	case "RFC822.HEADER":
		return "BODY.PEEK[HEADER]"
	case "RFC822.TEXT":
		return "BODY.PEEK[TEXT]"
	case "RFC822":
		return "BODY.PEEK[]"
	}
	i := strings.LastIndex(up, "BODY[")
	if i < 0 || strings.ContainsAny(up[i:], "{}\"") || !strings.HasSuffix(up, "]") && !strings.HasSuffix(up, ">") {
		return ""
	}
	return "BODY.PEEK" + up[i+len("BODY"):]
}
