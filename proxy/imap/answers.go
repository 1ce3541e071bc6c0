package imap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
	"time"

	"understudy/proxy/seam"
	"understudy/replica/row"
	"understudy/snoop/imapsession"
	"understudy/snoop/imapwire"
)

// unit is a response with literals that the client has got a part of.
type unit struct {
	open bool
	cmd  *imapsession.Cmd
	uid  uint32 // of a FETCH
	line []byte // that announced the literal
	head []byte // all lines so far
	size int64
	got  int64
	sum  uint32 // CRC of what was got
	part bool   // in the middle of a line
	drop bool   // not for the client
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// known reports whether the rest of the unit can be got from elsewhere.
func (u *unit) known() bool { return !u.part && u.uid != 0 && section(u.line) != "" }

// begin notes which message a unit is about.
func (u *unit) begin(r imapwire.Response, box *imapsession.Box, oldest *imapsession.Cmd) {
	u.uid, u.cmd = 0, nil
	if r.Name == "FETCH" && box != nil && r.Num > 0 && int(r.Num) <= len(box.View) {
		u.uid, u.cmd = box.View[r.Num-1], oldest
	}
}

// piece follows a piece of a unit.
func (u *unit) piece(p imapwire.Piece, b []byte) {
	switch p.Kind {
	case imapwire.Part:
		u.open, u.part = true, true
	case imapwire.Body:
		u.got += int64(p.N)
		if u.uid != 0 {
			u.sum = crc32.Update(u.sum, castagnoli, b)
		}
	case imapwire.Line:
		u.part = false
		if u.open = p.Lit.Present; !u.open {
			u.head, u.line, u.uid, u.cmd, u.drop = nil, nil, 0, nil, false
			return
		}
		u.line = bytes.Clone(b)
		u.head = append(u.head, b...)
		u.size, u.got, u.sum = p.Lit.Size, 0, 0
	}
}

// section is the body section whose literal a line of a FETCH announces, as
// one asks for it.
func section(line []byte) string {
	line = bytes.TrimRight(imapwire.TrimEOL(line), "0123456789{}+~ ")
	up := strings.ToUpper(string(line))
	for word, ask := range map[string]string{"RFC822.HEADER": "BODY.PEEK[HEADER]", "RFC822.TEXT": "BODY.PEEK[TEXT]", "RFC822": "BODY.PEEK[]"} {
		if strings.HasSuffix(up, " "+word) || strings.HasSuffix(up, "("+word) {
			return ask
		}
	}
	i := strings.LastIndex(up, "BODY[")
	if i < 0 || strings.ContainsAny(up[i:], "{}\"") || !strings.HasSuffix(up, "]") && !strings.HasSuffix(up, ">") {
		return ""
	}
	return "BODY.PEEK" + up[i+len("BODY"):]
}

// fromServer is the upstream's pump.
func (s *session) fromServer(ctx context.Context, up *link) error {
	sc := imapwire.Scanner{Side: imapwire.Server}
	win := window{max: lineMax}
	src := &buffered{up.Conn, up.R}
	for {
		if err := s.units(ctx, up, &sc, &win); err != nil {
			return err
		}
		if err := win.fill(src); err != nil {
			return err
		}
	}
}

// units follows and forwards what the window holds. What was followed is
// forwarded, whatever comes then.
func (s *session) units(ctx context.Context, up *link, sc *imapwire.Scanner, win *window) (err error) {
	from := win.r
	flush := func() error {
		out := win.b[from:win.r]
		from = win.r
		return s.forward(out)
	}
	defer func() {
		if ferr := flush(); err == nil {
			err = ferr
		}
	}()
	for win.r < win.w {
		b := win.b[win.r:win.w]
		piece, err := sc.Next(b)
		if err != nil {
			return err
		}
		if piece.Kind == imapwire.More {
			if !win.full() {
				return nil
			}
			if piece = sc.Long(b); piece.N == 0 {
				return nil
			}
		}
		b = b[:piece.N]
		v := verdict{}
		if piece.Kind != imapwire.Body && piece.First {
			if v, err = s.serverUnit(ctx, up, b, flush); err != nil {
				return err
			}
		}
		drop := s.unit.drop || v.drop
		if piece.Kind != imapwire.Line || piece.Lit.Present || s.unit.open {
			s.mu.Lock()
			s.unit.piece(piece, b)
			s.unit.drop = s.unit.open && drop
			s.mu.Unlock()
		}
		if drop || v.line != nil || v.before != nil {
			if err := flush(); err != nil {
				return err
			}
			if err := s.forward(v.before); err != nil {
				return err
			}
			if v.line == nil && !drop {
				v.line = b
			}
			if err := s.forward(v.line); err != nil {
				return err
			}
			from += piece.N
		}
		win.r += piece.N
	}
	return nil
}

func (s *session) forward(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	return s.toClient(b)
}

// Reasons for which a session ends that are nobody's fault.
var (
	// errUnsettled ends a session whose last change could not be made durable; it
	// gets no OK.
	errUnsettled = errors.New("change is not durable")
	// errLogout is production ending a session by its own rules.
	errLogout = errors.New("production ended the session")
)

// verdict is what becomes of a unit's first line: dropped, replaced by line,
// or, with both nil and false, forwarded as it is. before goes ahead of it.
type verdict struct {
	before, line []byte
	drop         bool
}

// serverUnit follows the first line of a unit. flush forwards what came before.
func (s *session) serverUnit(ctx context.Context, up *link, line []byte, flush func() error) (verdict, error) {
	var v verdict
	production := up.lease.Side == seam.Production
	s.mu.Lock()
	moved, hide := s.clientNumbers(line)
	if hide {
		s.mu.Unlock()
		return verdict{drop: true}, nil
	}
	if moved != nil {
		line, v.line = moved, moved
	}
	v.before = s.tellExists()
	oldest := s.track.Oldest()
	ev := s.track.Server(line)
	box := s.track.Box
	sp, before := s.spools[ev.Cmd], s.before[ev.Cmd]
	delete(s.spools, ev.Cmd)
	delete(s.before, ev.Cmd)
	signal := s.waiting != nil && (ev.Resp.Tag == "+" || ev.Cmd == s.waiting)
	if signal {
		s.waiting = nil
	}
	if ev.Resp.Tag == "+" {
		v.drop = s.continued(oldest, signal)
	}
	s.unit.begin(ev.Resp, box, oldest)
	if ev.Selected {
		s.numbers, s.news = imapsession.Numbers{}, news{}
	}
	s.settles = production && ev.Cmd != nil
	bye, heard := s.bye, s.heard
	s.mu.Unlock()
	defer func() {
		if sp != nil {
			sp.Discard()
		}
	}()
	if ev.Resp.Name == "BYE" && ev.Resp.Tag == "*" && !bye {
		if production && time.Since(heard) > autologout {
			_ = flush()
			_ = s.toClient(line)
			return v, errLogout
		}
		// A dying server's; whether the client must know is not its to say.
		return v, errors.New("upstream said BYE " + string(ev.Resp.Rest))
	}
	if ev.Hint && box != nil && production {
		s.srv.opt.Mailboxes.Hint(s.account, box.Name)
	}
	if ev.Selected {
		s.seed(up, ev.Cmd.Mailbox, before)
	}
	if again, err := s.doneBefore(ctx, &ev, production); err != nil {
		return v, err
	} else if again != nil {
		v.line = again
	}
	if production && ev.Cmd != nil {
		if err := s.settleAnswer(ctx, &ev, &sp, flush); err != nil {
			return v, err
		}
		s.known(ev.Cmd)
	}
	if out := s.rewrite(ev, line, production); out != nil {
		v.line = out
	}
	if signal {
		s.proceed <- ev.Resp.Tag == "+"
	}
	if ev.Cmd != nil {
		s.mu.Lock()
		v.before, s.settles = append(v.before, s.tellNews(ev.Cmd.Verb)...), false
		s.mu.Unlock()
		select {
		case s.calm <- struct{}{}:
		default:
		}
	}
	return v, nil
}

// continued notes that the client is told "+", and reports whether it was told
// before; mu is held.
func (s *session) continued(oldest *imapsession.Cmd, awaited bool) (before bool) {
	c := s.track.Current()
	if c == nil {
		c = oldest
	}
	switch {
	case c != nil && awaited:
		c.Continued = true
	case c != nil && c.Verb == "IDLE" && c.Continued:
		return true
	default:
		s.track.Doubt = "continuation that nobody waits for"
	}
	return false
}

// settleAnswer sees to it that the replica has what a client is told is done, and
// the messages that it was told of.
func (s *session) settleAnswer(ctx context.Context, ev *imapsession.Event, sp *row.Spool, flush func() error) error {
	changed, mailbox := ev.Resp.Name == "OK" && imapsession.Changes(ev.Cmd.Verb), s.ahead()
	if !changed && mailbox == "" {
		return nil
	}
	if err := flush(); err != nil {
		return err
	}
	if changed {
		if err := s.settleChange(ctx, ev, sp); err != nil {
			return err
		}
	}
	if mailbox != "" {
		s.srv.opt.Mailboxes.Follow(ctx, s.account, mailbox)
	}
	return nil
}

// maxReopened is how often a change is asked for again because it could not be made
// durable.
const maxReopened = 3

// settleChange makes a change durable that production accepted. If that fails,
// production may have been lost meanwhile: whoever answers next is asked what became
// of it, and for the change, with the message that sp holds.
func (s *session) settleChange(ctx context.Context, ev *imapsession.Event, sp *row.Spool) error {
	err := s.srv.opt.Changes.Settle(ctx, s.account, ev.Cmd, ev.Resp, *sp)
	if err == nil {
		return nil
	}
	if ev.Cmd.Reopened == maxReopened {
		s.srv.opt.Log.Error("an accepted change could not be made durable; the session ends without its OK",
			"account", s.account, "command", ev.Cmd.Verb, "err", err)
		return errors.Join(errUnsettled, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.track.Reopen(ev.Cmd)
	if *sp != nil {
		s.spools[ev.Cmd], *sp = *sp, nil
	}
	return fmt.Errorf("%s was accepted and is not durable: %w", ev.Cmd.Verb, err)
}

// doneBefore makes an OK of the refusal of a command that the lost upstream had
// done already: what it asks for is so. (Not every server says why it refuses.) It
// returns the line that the client gets.
func (s *session) doneBefore(ctx context.Context, ev *imapsession.Event, production bool) ([]byte, error) {
	c := ev.Cmd
	if c == nil || !c.Rerun || ev.Resp.Name != "NO" || c.Verb != "CREATE" && c.Verb != "DELETE" && c.Verb != "RENAME" {
		return nil, nil
	}
	if production {
		if err := s.settleChange(ctx, ev, new(row.Spool)); err != nil {
			return nil, err
		}
	}
	there := func(mailbox string) bool { return s.srv.opt.Replica.Known(s.account, mailbox) != nil }
	args := c.Args()
	name := args.Mailbox()
	done := there(name) == (c.Verb == "CREATE")
	if c.Verb == "RENAME" {
		args.SP()
		done = done && there(args.Mailbox())
	}
	if !done || args.Err() != nil {
		return nil, nil
	}
	ev.Resp.Name, ev.Resp.Code = "OK", ""
	return []byte(c.Tag + " OK Completed\r\n"), nil
}

// rewrite returns a line with its capability list cut, and its UIDVALIDITY
// replaced; nil if it stays.
func (s *session) rewrite(ev imapsession.Event, line []byte, production bool) []byte {
	r := &ev.Resp
	if !production {
		return nil
	}
	if r.Name == "CAPABILITY" && r.Tag == "*" {
		return []byte("* CAPABILITY " + s.srv.cut(string(r.Rest)) + "\r\n")
	}
	if r.Code == "CAPABILITY" {
		return []byte(r.Tag + " " + r.Name + " [CAPABILITY " + s.srv.cut(string(r.Arg)) + "] " + string(r.Rest) + "\r\n")
	}
	word, mailbox := "", ""
	switch {
	case r.Code == "UIDVALIDITY", r.Code == "APPENDUID", r.Code == "COPYUID":
		word, mailbox = "["+r.Code+" ", s.concerned(ev)
	case r.Name == "STATUS":
		word, mailbox = "UIDVALIDITY ", imapwire.NewReader(r.Rest).Mailbox()
	}
	if mailbox == "" {
		return nil
	}
	if v := s.srv.opt.Replica.Virtual(s.account, mailbox); v != 0 {
		return replaceNumber(line, word, v)
	}
	return nil
}

// concerned is the mailbox whose UIDVALIDITY a response code tells.
func (s *session) concerned(ev imapsession.Event) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := ev.Cmd
	if out := s.track.Outstanding(); c == nil && len(out) > 0 {
		c = out[0]
	}
	switch {
	case c == nil:
	case ev.Resp.Code == "COPYUID":
		r := c.Args()
		r.Set()
		r.SP()
		return r.Mailbox()
	case c.Verb == "SELECT", c.Verb == "EXAMINE", c.Verb == "APPEND":
		return c.Mailbox
	}
	return ""
}

// replaceNumber replaces the number behind the last occurrence of word.
func replaceNumber(line []byte, word string, with uint32) []byte {
	i := bytes.LastIndex(bytes.ToUpper(line), []byte(word))
	if i < 0 {
		return nil
	}
	i += len(word)
	j := i
	for j < len(line) && line[j] >= '0' && line[j] <= '9' {
		j++
	}
	out := append([]byte(nil), line[:i]...)
	out = strconv.AppendUint(out, uint64(with), 10)
	return append(out, line[j:]...)
}
