package imapd

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"understudy/replica/row"
	"understudy/snoop/imapwire"
)

func (s *session) sep() byte {
	boxes, _ := s.opt.Store.Mailboxes(s.User)
	for _, m := range boxes {
		if m.Sep != 0 {
			return m.Sep
		}
	}
	return '/'
}

func sepString(sep byte) string {
	if sep == 0 {
		return "NIL"
	}
	return string(imapwire.AppendString(nil, string([]byte{sep})))
}

func (s *session) create(c *command) {
	a, _ := c.Args.(imapwire.MailboxArgs)
	var attrs []string
	if c.args.Accept(' ') {
		c.args.Expect('(')
		if !c.args.AcceptWord("USE") {
			c.args.Failf("expected USE")
		}
		c.args.SP()
		attrs = c.args.Flags()
		c.args.Expect(')')
	}
	if s.bad(c) {
		return
	}
	if err := s.opt.Store.Create(s.work, s.User, a.Mailbox, attrs); err != nil {
		s.fail(c, err)
		return
	}
	s.ok(c, "Create completed")
}

func (s *session) delete(c *command) {
	a, _ := c.Args.(imapwire.MailboxArgs)
	if s.bad(c) {
		return
	}
	if err := s.opt.Store.Delete(s.work, s.User, a.Mailbox); err != nil {
		s.fail(c, err)
		return
	}
	if s.sel != nil && s.sel.name == a.Mailbox {
		s.sel = nil
	}
	s.ok(c, "Delete completed")
}

func (s *session) rename(c *command) {
	a, _ := c.Args.(imapwire.RenameArgs)
	if s.bad(c) {
		return
	}
	if err := s.opt.Store.Rename(s.work, s.User, a.From, a.To); err != nil {
		s.fail(c, err)
		return
	}
	s.tell(true)
	s.ok(c, "Rename completed")
}

func (s *session) subscribe(c *command) {
	a, _ := c.Args.(imapwire.MailboxArgs)
	if s.bad(c) {
		return
	}
	if err := s.opt.Store.Subscribe(s.work, s.User, a.Mailbox, c.Verb == imapwire.Subscribe); err != nil {
		s.fail(c, err)
		return
	}
	s.ok(c, "%s completed", c.Verb)
}

// listing is a LIST or LSUB command.
type listing struct {
	lsub, extended                      bool
	ref                                 string
	patterns                            []string
	onlySubscribed, recursive, onlyUse  bool
	tellSubscribed, tellUse, tellStatus bool
	items                               []string
}

func (s *session) parseList(c *command) listing {
	l := listing{lsub: c.Verb == imapwire.LSub}
	if c.args.Peek() == '(' && !l.lsub {
		l.extended = true
		c.args.List(func() {
			switch o := strings.ToUpper(c.args.Atom()); o {
			case "SUBSCRIBED":
				l.onlySubscribed, l.tellSubscribed = true, true
			case "RECURSIVEMATCH":
				l.recursive = true
			case "SPECIAL-USE":
				l.onlyUse, l.tellUse = true, true
			case "REMOTE":
			default:
				c.args.Failf("unknown selection option %s", o)
			}
		})
		c.args.SP()
	}
	l.ref = c.args.AString()
	c.args.SP()
	if c.args.Peek() == '(' {
		c.args.List(func() { l.patterns = append(l.patterns, c.args.ListMailbox()) })
	} else {
		l.patterns = []string{c.args.ListMailbox()}
	}
	if c.args.Accept(' ') {
		l.extended = true
		if !c.args.AcceptWord("RETURN") {
			c.args.Failf("expected RETURN")
		}
		c.args.SP()
		c.args.List(func() { s.listReturn(c, &l) })
	}
	return l
}

func (s *session) listReturn(c *command, l *listing) {
	switch o := strings.ToUpper(c.args.Atom()); o {
	case "SUBSCRIBED":
		l.tellSubscribed = true
	case "CHILDREN":
	case "SPECIAL-USE":
		l.tellUse = true
	case "STATUS":
		l.tellStatus = true
		c.args.SP()
		l.items = s.statusItems(c)
	default:
		c.args.Failf("unknown return option %s", o)
	}
}

func (s *session) list(c *command) {
	l := s.parseList(c)
	if s.bad(c) {
		return
	}
	boxes, err := s.opt.Store.Mailboxes(s.User)
	if err != nil {
		s.fail(c, err)
		return
	}
	sep := s.sep()
	if len(l.patterns) == 1 && l.patterns[0] == "" && !l.lsub {
		s.line(`* LIST (\Noselect) %s ""`, sepString(sep))
		s.ok(c, "List completed")
		return
	}
	for _, m := range boxes {
		if !l.matches(m, sep) {
			continue
		}
		s.line("* %s %s %s %s", c.Verb, imapwire.FormatFlags(l.attrs(m, boxes, sep)), sepString(sep),
			imapwire.AString(m.Name))
		if l.tellStatus && !m.NoSelect {
			s.statusLine(m.Name, l.items)
		}
	}
	s.ok(c, "%s completed", c.Verb)
}

func (l *listing) matches(m row.Mailbox, sep byte) bool {
	if (l.lsub || l.onlySubscribed) && !m.Subscribed || l.onlyUse && len(specialUse(m)) == 0 {
		return false
	}
	return slices.ContainsFunc(l.patterns, func(p string) bool {
		full := l.ref + p
		if m.Name == "INBOX" && imapwire.MatchList(strings.ToUpper(full), "INBOX", sep) {
			return true
		}
		return imapwire.MatchList(full, m.Name, sep)
	})
}

// specialUse returns the attributes of RFC 6154.
func specialUse(m row.Mailbox) []string {
	var out []string
	for _, a := range m.Attrs {
		switch strings.ToLower(a) {
		case `\all`, `\archive`, `\drafts`, `\flagged`, `\junk`, `\sent`, `\trash`, `\important`:
			out = append(out, a)
		}
	}
	return out
}

func (l *listing) attrs(m row.Mailbox, boxes []row.Mailbox, sep byte) []string {
	var out []string
	if m.NoSelect {
		out = append(out, `\Noselect`)
	}
	child := `\HasNoChildren`
	for _, o := range boxes {
		if strings.HasPrefix(o.Name, m.Name+string([]byte{sep})) {
			child = `\HasChildren`
		}
	}
	out = append(out, child)
	if l.tellSubscribed && m.Subscribed {
		out = append(out, `\Subscribed`)
	}
	if l.extended && !l.tellUse {
		return out
	}
	return append(out, specialUse(m)...)
}

func (s *session) statusItems(c *command) []string {
	var items []string
	c.args.List(func() {
		it := strings.ToUpper(c.args.Atom())
		switch it {
		case "MESSAGES", "RECENT", "UIDNEXT", "UIDVALIDITY", "UNSEEN", "SIZE":
		case "HIGHESTMODSEQ":
			s.condstore = true
		default:
			c.args.Failf("unknown item %s", it)
		}
		items = append(items, it)
	})
	return items
}

func (s *session) status(c *command) {
	a, _ := c.Args.(imapwire.MailboxArgs)
	c.args.SP()
	items := s.statusItems(c)
	if s.bad(c) {
		return
	}
	if err := s.statusLine(a.Mailbox, items); err != nil {
		s.fail(c, err)
		return
	}
	s.ok(c, "Status completed")
}

func (s *session) statusLine(name string, items []string) error {
	sn, err := s.opt.Store.Snapshot(s.User, name)
	if err != nil {
		return err
	}
	var unseen int
	var size int64
	for _, m := range sn.Rows {
		size += m.Size
		if !m.HasFlag(`\Seen`) {
			unseen++
		}
	}
	var out []string
	for _, it := range items {
		var v any
		switch it {
		case "MESSAGES":
			v = len(sn.Rows)
		case "RECENT":
			v = 0
		case "UIDNEXT":
			v = sn.UIDNext
		case "UIDVALIDITY":
			v = sn.UIDValidity
		case "UNSEEN":
			v = unseen
		case "SIZE":
			v = size
		case "HIGHESTMODSEQ":
			v = max(sn.ModSeq, 1)
		}
		out = append(out, fmt.Sprintf("%s %d", it, v))
	}
	s.line("* STATUS %s (%s)", imapwire.AString(name), strings.Join(out, " "))
	return nil
}

// append serves APPEND of one message (RFC 9051 section 6.3.12, UIDPLUS).
func (s *session) append(c *command) {
	a, _ := c.Args.(imapwire.AppendArgs)
	n := row.New{Flags: a.Flags, Date: a.Date}
	if n.Date.IsZero() {
		n.Date = time.Now()
	}
	err := c.args.Err()
	switch {
	case err != nil:
	case a.Form == imapwire.Odd:
		err = a.Err
	case a.Form != imapwire.Plain:
		c.args.Failf("expected a message")
		err = c.args.Err()
	case c.Extra:
		c.args.Failf("one message in an APPEND, and nothing behind it")
		err = c.args.Err()
	}
	if err != nil {
		s.refuse(c, err)
		return
	}
	if c.tooBig {
		s.no(c, "[TOOBIG] Message is over the limit of %d bytes", s.opt.MaxMessage)
		return
	}
	if _, err := s.opt.Store.Snapshot(s.User, a.Mailbox); err != nil {
		s.no(c, "[TRYCREATE] Mailbox doesn't exist: %s", oneLine(a.Mailbox))
		return
	}
	ref, err := s.opt.Store.PutMessage(c.message)
	if err != nil {
		s.fail(c, err)
		return
	}
	n.Ref = ref
	validity, uids, err := s.opt.Store.Append(s.work, s.User, a.Mailbox, []row.New{n})
	if err != nil {
		s.fail(c, err)
		return
	}
	s.tell(true)
	s.ok(c, "[APPENDUID %d %d] Append completed.", validity, uids[0])
}
