package imapc

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"understudy/snoop/imapwire"
)

// Message is what a FETCH told of one message.
type Message struct {
	UID      uint32
	Flags    []string
	HasFlags bool
	ModSeq   uint64
	Date     time.Time
	Size     int64
	Body     []byte // of the last BODY[…] item
	HasBody  bool
}

// ParseFetch reads a FETCH unit of the items that Message has.
func ParseFetch(unit []byte) (Message, error) {
	var m Message
	r := imapwire.NewReader(unit)
	r.Expect('*')
	r.SP()
	r.Number32()
	r.SP()
	r.Atom()
	r.SP()
	r.Expect('(')
	for n := 0; r.Err() == nil && !r.Accept(')'); n++ {
		if n > 0 {
			r.SP()
		}
		item(r, &m)
	}
	return m, r.Err()
}

func item(r *imapwire.Reader, m *Message) {
	name := strings.ToUpper(r.Word("["))
	if r.Accept('[') {
		for r.Err() == nil && !r.Accept(']') {
			switch r.Peek() {
			case 0:
				r.Failf("section without end")
			case '"': // a name of a header field may hold a bracket
				_ = r.String()
				continue
			}
			r.Advance(1)
		}
		if r.Accept('<') {
			r.Number()
			r.Expect('>')
		}
		name = "BODY["
	}
	r.SP()
	switch name {
	case "UID":
		m.UID = r.Number32()
	case "FLAGS":
		m.Flags, m.HasFlags = r.Flags(), true
	case "MODSEQ":
		r.Expect('(')
		m.ModSeq = r.Number()
		r.Expect(')')
	case "INTERNALDATE":
		d, err := imapwire.ParseDateTime(r.String())
		if err != nil {
			r.Failf("bad date")
		}
		m.Date = d
	case "RFC822.SIZE":
		m.Size = int64(r.Number())
	case "BODY[":
		s, _ := r.NString()
		m.Body, m.HasBody = []byte(s), true
	default:
		r.Skip()
	}
}

// Selected is what SELECT or EXAMINE told.
type Selected struct {
	UIDValidity, UIDNext uint32
	Exists               int
	ModSeq               uint64
	Permanent            []string
}

// Select opens a mailbox; with readOnly by EXAMINE.
func (c *Conn) Select(mailbox string, readOnly bool) (Selected, error) {
	cmd := "SELECT "
	if readOnly {
		cmd = "EXAMINE "
	}
	cmd += c.Name(mailbox)
	if c.Has("CONDSTORE") {
		cmd += " (CONDSTORE)"
	}
	var s Selected
	_, err := c.Do(cmd, func(r imapwire.Response, _ []byte) error {
		n, _ := strconv.ParseUint(string(r.Arg), 10, 64)
		switch {
		case r.Name == "EXISTS":
			s.Exists = int(r.Num)
		case r.Code == "UIDVALIDITY":
			s.UIDValidity = uint32(n)
		case r.Code == "UIDNEXT":
			s.UIDNext = uint32(n)
		case r.Code == "HIGHESTMODSEQ":
			s.ModSeq = n
		case r.Code == "PERMANENTFLAGS":
			s.Permanent = imapwire.NewReader(r.Arg).Flags()
		}
		return nil
	})
	c.selected = err == nil
	return s, err
}

// Leave closes the selected mailbox without expunging: a server may answer
// STATUS of a selected mailbox from what the session has been told.
func (c *Conn) Leave() error {
	if !c.selected {
		return nil
	}
	c.selected = false
	if c.Has("UNSELECT") {
		_, err := c.Do("UNSELECT", nil)
		return err
	}
	// A SELECT that fails leaves none selected (RFC 3501 section 6.3.1).
	_, err := c.Do(`EXAMINE "understudy-no-such-mailbox"`, nil)
	var no *NoError
	if errors.As(err, &no) {
		return nil
	}
	return err
}

// Name writes a mailbox name as an argument.
func (c *Conn) Name(mailbox string) string {
	s := imapwire.AString(mailbox)
	if strings.HasPrefix(s, "{") && c.Has("LITERAL+") {
		return imapwire.NonSyncString(mailbox)
	}
	return s
}

// Fetch runs a UID FETCH and hands out each message.
func (c *Conn) Fetch(set, items string, on func(Message) error) error {
	return c.FetchWait(c.Send("UID FETCH "+set+" "+items), on)
}

// FetchWait reads the answer of a UID FETCH that was sent.
func (c *Conn) FetchWait(tag string, on func(Message) error) error {
	_, err := c.Wait(tag, func(r imapwire.Response, unit []byte) error {
		if r.Name != "FETCH" {
			return nil
		}
		m, err := ParseFetch(unit)
		if err != nil || m.UID == 0 {
			return err
		}
		return on(m)
	})
	return err
}

// SearchAll returns the UIDs of the selected mailbox, in order.
func (c *Conn) SearchAll() ([]uint32, error) {
	var out []uint32
	cmd := "UID SEARCH ALL"
	if c.Has("ESEARCH") {
		cmd = "UID SEARCH RETURN (ALL) ALL"
	}
	_, err := c.Do(cmd, func(r imapwire.Response, _ []byte) error {
		switch r.Name {
		case "SEARCH":
			for f := range strings.FieldsSeq(string(r.Rest)) {
				n, err := strconv.ParseUint(f, 10, 32)
				if err != nil {
					break
				}
				out = append(out, uint32(n))
			}
		case "ESEARCH":
			if i := strings.Index(strings.ToUpper(string(r.Rest)), " ALL "); i >= 0 {
				word, _, _ := strings.Cut(string(r.Rest[i+5:]), " ")
				set, err := imapwire.ParseSet(word)
				if err != nil {
					return err
				}
				out, err = set.Resolve(imapwire.Star).Numbers(1 << 26)
				return err
			}
		}
		return nil
	})
	return out, err
}

// Listed is one mailbox of List.
type Listed struct {
	Name       string
	Sep        byte
	Attrs      []string
	Subscribed bool
	Status     *Selected // Exists, UIDValidity, UIDNext and ModSeq
}

// NoSelect reports whether the mailbox can hold no messages.
func (l Listed) NoSelect() bool {
	for _, a := range l.Attrs {
		if strings.EqualFold(a, `\Noselect`) || strings.EqualFold(a, `\NonExistent`) {
			return true
		}
	}
	return false
}

// List returns all mailboxes with their subscription and status.
func (c *Conn) List() ([]Listed, error) {
	if err := c.Leave(); err != nil {
		return nil, err
	}
	items := "MESSAGES UIDNEXT UIDVALIDITY"
	if c.Has("CONDSTORE") {
		items += " HIGHESTMODSEQ"
	}
	extended := c.Has("LIST-EXTENDED") && c.Has("LIST-STATUS")
	cmd := `LIST "" "*"`
	if extended {
		use := ""
		if c.Has("SPECIAL-USE") {
			use = "SPECIAL-USE "
		}
		cmd += " RETURN (SUBSCRIBED " + use + "STATUS (" + items + "))"
	}
	boxes := map[string]*Listed{}
	var order []*Listed
	on := func(r imapwire.Response, unit []byte) error {
		switch r.Name {
		case "LIST":
			l, err := parseList(r.Rest)
			if err != nil {
				return err
			}
			if boxes[l.Name] == nil {
				boxes[l.Name] = &l
				order = append(order, &l)
			}
		case "LSUB":
			if l, err := parseList(r.Rest); err == nil && boxes[l.Name] != nil {
				boxes[l.Name].Subscribed = true
			}
		case "STATUS":
			name, st, err := parseStatus(r.Rest)
			if l := boxes[name]; err == nil && l != nil {
				l.Status = &st
			}
		}
		return nil
	}
	if _, err := c.Do(cmd, on); err != nil {
		return nil, err
	}
	if !extended {
		if _, err := c.Do(`LSUB "" "*"`, on); err != nil {
			return nil, err
		}
		for _, l := range order {
			if l.NoSelect() {
				continue
			}
			if _, err := c.Do("STATUS "+c.Name(l.Name)+" ("+items+")", on); err != nil {
				return nil, err
			}
		}
	}
	out := make([]Listed, 0, len(order))
	for _, l := range order {
		out = append(out, *l)
	}
	return out, nil
}

func parseList(rest []byte) (Listed, error) {
	var l Listed
	r := imapwire.NewReader(rest)
	l.Attrs = r.Flags()
	r.SP()
	if sep, ok := r.NString(); ok && len(sep) == 1 {
		l.Sep = sep[0]
	}
	r.SP()
	l.Name = r.Mailbox()
	for _, a := range l.Attrs {
		l.Subscribed = l.Subscribed || strings.EqualFold(a, `\Subscribed`)
	}
	return l, r.Err()
}

func parseStatus(rest []byte) (string, Selected, error) {
	var s Selected
	r := imapwire.NewReader(rest)
	name := r.Mailbox()
	r.SP()
	r.Expect('(')
	for n := 0; r.Err() == nil && !r.Accept(')'); n++ {
		if n > 0 {
			r.SP()
		}
		item := strings.ToUpper(r.Atom())
		r.SP()
		v := r.Number()
		switch item {
		case "MESSAGES":
			s.Exists = int(v)
		case "UIDNEXT":
			s.UIDNext = uint32(v)
		case "UIDVALIDITY":
			s.UIDValidity = uint32(v)
		case "HIGHESTMODSEQ":
			s.ModSeq = v
		}
	}
	return name, s, r.Err()
}
