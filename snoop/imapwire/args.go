package imapwire

import (
	"bytes"
	"fmt"
	"strings"
	"time"
)

// Args are the arguments of a command, of the type that its verb has; nil for
// a verb of which the house reads none. Text that stands behind what is named
// here is not looked at: the server says what is wrong with it. Whoever answers
// himself looks at Tail.
type Args interface{ args() }

type (
	// Unreadable stands for arguments that are not what the verb takes.
	Unreadable struct{ Err error }

	// MailboxArgs are those of CREATE, DELETE, SUBSCRIBE, UNSUBSCRIBE and STATUS.
	MailboxArgs struct {
		Mailbox string
		Tail    []byte // STATUS: what is asked for
	}
	// SelectArgs are those of SELECT and EXAMINE.
	SelectArgs struct {
		Mailbox string
		Params  []byte // as they were sent
	}
	// RenameArgs are those of RENAME.
	RenameArgs struct {
		From, To string
		Tail     []byte
	}
	// CopyArgs are those of COPY and MOVE.
	CopyArgs struct {
		Set    Set
		Target string
		Tail   []byte
	}
	// StoreArgs are those of STORE.
	StoreArgs struct {
		Set            Set
		Op             FlagOp
		Silent         bool
		Flags          []string
		Conditional    bool   // (UNCHANGEDSINCE n), RFC 7162 section 3.1.3
		UnchangedSince uint64 // n
		Tail           []byte
	}
	// SetArgs are those of UID EXPUNGE.
	SetArgs struct {
		Set  Set
		Tail []byte
	}
	// FetchArgs are those of FETCH.
	FetchArgs struct {
		Set   Set
		Items []byte // as they were sent, modifiers included
	}
	// SearchArgs are those of SEARCH, SORT and THREAD.
	SearchArgs struct{ Keys []byte }
	// EnableArgs are those of ENABLE. Err is of what is more than words with a
	// space between each.
	EnableArgs struct {
		Words []string
		Err   error
	}
	// LoginArgs are those of LOGIN.
	LoginArgs struct {
		User, Password string
		Tail           []byte
	}
	// AuthArgs are those of AUTHENTICATE.
	AuthArgs struct {
		Mechanism string // in upper case
		Initial   []byte // the first response, as it was sent
		Has       bool   // there is one
	}
	// AppendArgs are those of APPEND, up to its first message.
	AppendArgs struct {
		Mailbox string
		Flags   []string
		Date    time.Time // zero: none was given, or see Form
		Form    Form
		Message Literal // as it was announced
		Err     error   // Odd: what is wrong with it
	}
)

func (Unreadable) args()  {}
func (MailboxArgs) args() {}
func (SelectArgs) args()  {}
func (RenameArgs) args()  {}
func (CopyArgs) args()    {}
func (StoreArgs) args()   {}
func (SetArgs) args()     {}
func (FetchArgs) args()   {}
func (SearchArgs) args()  {}
func (EnableArgs) args()  {}
func (LoginArgs) args()   {}
func (AuthArgs) args()    {}
func (AppendArgs) args()  {}

// FlagOp is how STORE changes flags.
type FlagOp int8

// The three forms of STORE.
const (
	RemoveFlags  FlagOp = -1
	ReplaceFlags FlagOp = 0
	AddFlags     FlagOp = 1
)

// Form is how the message of an APPEND is given.
type Form uint8

// The forms: Plain is {n} or ~{n}, UTF8 is UTF8 (~{n} … ) of RFC 6855, Catenate
// is RFC 4469's. Odd has something between mailbox and message that is not
// understood, as a date that is none.
const (
	Plain Form = iota
	UTF8
	Catenate
	Odd
)

// readArgs reads the arguments of a whole command.
func (c *Command) readArgs() Args {
	r := NewReader(c.Text[c.args:])
	a := c.argsOf(r)
	if r.Err() != nil {
		return Unreadable{r.Err()}
	}
	c.read = r.i
	return a
}

func (c *Command) argsOf(r *Reader) Args {
	switch c.Verb {
	case Create, Delete, Subscribe, Unsubscribe, Status:
		name := r.Mailbox()
		return MailboxArgs{name, r.Rest()}
	case Select, Examine:
		name := r.Mailbox()
		return SelectArgs{name, r.Rest()}
	case Rename:
		from := r.Mailbox()
		r.SP()
		to := r.Mailbox()
		return RenameArgs{from, to, r.Rest()}
	case Copy, Move:
		set := r.Set()
		r.SP()
		to := r.Mailbox()
		return CopyArgs{set, to, r.Rest()}
	case Store:
		return readStore(r)
	case Expunge:
		if !c.ByUID {
			return nil
		}
		set := r.Set()
		return SetArgs{set, r.Rest()}
	case Fetch:
		set := r.Set()
		return FetchArgs{set, bytes.TrimPrefix(r.Rest(), []byte{' '})}
	case Search, Sort, Thread:
		return SearchArgs{r.Rest()}
	case Enable:
		return readEnable(r)
	case Login:
		user := r.AString()
		r.SP()
		password := r.AString()
		return LoginArgs{user, password, r.Rest()}
	case Authenticate:
		a := AuthArgs{Mechanism: strings.ToUpper(r.Atom())}
		if a.Has = r.Accept(' '); a.Has {
			a.Initial = r.Rest()
		}
		return a
	case Append:
		if a, ok := c.readAppend(r, Literal{}).(AppendArgs); ok {
			r.err = a.Err
		}
		r.Failf("expected a message")
	}
	return nil
}

// readEnable takes all words, also of a list that is not well formed: whoever
// passes it on must not let one through that he has not seen.
func readEnable(r *Reader) Args {
	a := EnableArgs{Words: strings.Fields(string(r.Rest()))}
	strict := *r
	for strict.Atom(); strict.Accept(' '); {
		strict.Atom()
	}
	strict.End()
	a.Err = strict.Err()
	return a
}

// readStore reads "set [(UNCHANGEDSINCE n)] [+|-]FLAGS[.SILENT] flags".
func readStore(r *Reader) Args {
	a := StoreArgs{Set: r.Set()}
	r.SP()
	if r.Accept('(') {
		if a.Conditional = strings.EqualFold(r.Atom(), "UNCHANGEDSINCE"); !a.Conditional {
			r.Failf("unknown modifier")
		}
		r.SP()
		a.UnchangedSince = r.Number()
		r.Expect(')')
		r.SP()
	}
	switch {
	case r.Accept('+'):
		a.Op = AddFlags
	case r.Accept('-'):
		a.Op = RemoveFlags
	}
	switch strings.ToUpper(r.Atom()) {
	case "FLAGS":
	case "FLAGS.SILENT":
		a.Silent = true
	default:
		r.Failf("expected FLAGS")
	}
	r.SP()
	if r.Peek() == '(' {
		a.Flags = r.Flags()
	} else {
		a.Flags = append(a.Flags, r.Flag())
		for r.Accept(' ') {
			a.Flags = append(a.Flags, r.Flag())
		}
	}
	a.Tail = r.Rest()
	return a
}

// readAppend reads an APPEND whose text ends with the announcement of its
// message: all its arguments stand before it.
func (c *Command) readAppend(r *Reader, lit Literal) Args {
	a := AppendArgs{Mailbox: r.Mailbox(), Message: lit}
	r.SP()
	if r.Err() != nil {
		return Unreadable{r.Err()}
	}
	if r.Peek() == '(' {
		a.Flags = r.Flags()
		r.SP()
	}
	if r.Peek() == '"' {
		a.Date, a.Err = readDate(r)
		r.SP()
	}
	marker := func() bool { return (r.Peek() == '{' || r.Peek() == '~') && onlyMarker(r.Rest()) }
	switch {
	case r.AcceptWord("CATENATE"):
		a.Form = Catenate
	case a.Err != nil:
		a.Form = Odd
	case r.AcceptWord("UTF8") && r.Accept(' ') && r.Accept('(') && marker():
		a.Form = UTF8
	case !marker():
		a.Form = Odd
	}
	if a.Form == Odd && a.Err == nil {
		r.Failf("expected a message")
		a.Err = r.Err()
	}
	return a
}

// readDate reads the date of an APPEND.
func readDate(r *Reader) (time.Time, error) {
	text := r.String()
	if r.Err() != nil {
		return time.Time{}, r.Err()
	}
	d, err := ParseDateTime(text)
	if err != nil {
		err = fmt.Errorf("%w: bad date", ErrSyntax)
	}
	return d, err
}

// onlyMarker reports whether b is one marker and nothing else.
func onlyMarker(b []byte) bool { return bytes.Count(b, []byte{'{'}) == 1 && b[len(b)-1] == '}' }

// EnablesCondStore reports whether a client has enabled CONDSTORE with a command
// that is taken (RFC 7162 section 3.1), as far as may be.
func (c *Command) EnablesCondStore() bool {
	var text []byte
	switch a := c.Args.(type) {
	case EnableArgs:
		text = []byte(strings.Join(a.Words, " "))
	case SelectArgs:
		text = a.Params
	case FetchArgs:
		text = a.Items
	case StoreArgs:
		return a.Conditional
	case SearchArgs:
		text = a.Keys
	case MailboxArgs:
		text = a.Tail
	case Unreadable:
		text = c.Text
	}
	return containsFold(text, "CONDSTORE") || containsFold(text, "MODSEQ") || containsFold(text, "CHANGEDSINCE")
}

// SetsSeen reports whether a FETCH may set \Seen: it asks for a body, or part of
// one, without PEEK.
func (c *Command) SetsSeen() bool {
	text := c.Text
	if a, ok := c.Args.(FetchArgs); ok {
		text = a.Items
	}
	up := " " + strings.ToUpper(string(TrimEOL(text)))
	return strings.Contains(up, "BODY[") || strings.Contains(up, "BINARY[") || strings.Contains(up, "RFC822.TEXT") ||
		strings.Contains(up, "RFC822 ") || strings.Contains(up, "RFC822)") || strings.HasSuffix(up, "RFC822")
}

// containsFold reports whether b holds word, which is in upper case, in any case.
func containsFold(b []byte, word string) bool {
	for i := 0; i+len(word) <= len(b); i++ {
		j := 0
		for j < len(word) && (b[i+j] == word[j] || b[i+j] >= 'a' && b[i+j] <= 'z' && b[i+j]-'a'+'A' == word[j]) {
			j++
		}
		if j == len(word) {
			return true
		}
	}
	return false
}
