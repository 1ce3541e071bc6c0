package imapwire

// Verb names a command, in upper case. UID is not part of it where the command
// has that form (RFC 9051 section 6.4.9); before any other word it is.
type Verb string

// The commands that the house speaks of. Any other word is a Verb, too.
const (
	Append         Verb = "APPEND"
	Authenticate   Verb = "AUTHENTICATE"
	Capability     Verb = "CAPABILITY"
	Check          Verb = "CHECK"
	Close          Verb = "CLOSE"
	Compress       Verb = "COMPRESS"
	Copy           Verb = "COPY"
	Create         Verb = "CREATE"
	Delete         Verb = "DELETE"
	Enable         Verb = "ENABLE"
	Examine        Verb = "EXAMINE"
	Expunge        Verb = "EXPUNGE"
	Fetch          Verb = "FETCH"
	ID             Verb = "ID"
	Idle           Verb = "IDLE"
	List           Verb = "LIST"
	Login          Verb = "LOGIN"
	Logout         Verb = "LOGOUT"
	LSub           Verb = "LSUB"
	Move           Verb = "MOVE"
	Namespace      Verb = "NAMESPACE"
	Noop           Verb = "NOOP"
	Notify         Verb = "NOTIFY"
	Rename         Verb = "RENAME"
	Search         Verb = "SEARCH"
	Select         Verb = "SELECT"
	Sort           Verb = "SORT"
	StartTLS       Verb = "STARTTLS"
	Status         Verb = "STATUS"
	Store          Verb = "STORE"
	Subscribe      Verb = "SUBSCRIBE"
	Thread         Verb = "THREAD"
	Unauthenticate Verb = "UNAUTHENTICATE"
	Unselect       Verb = "UNSELECT"
	Unsubscribe    Verb = "UNSUBSCRIBE"
	XClient        Verb = "XCLIENT"
)

// maxVerb bounds a verb, in bytes; a longer word is none.
const maxVerb = 32

// verbOf spells a word as a Verb; those that come often cost no memory.
func verbOf(word []byte) Verb {
	if len(word) > maxVerb {
		return ""
	}
	var up [maxVerb]byte
	for i, c := range word {
		if c >= 'a' && c <= 'z' {
			c -= 'a' - 'A'
		}
		up[i] = c
	}
	switch w := up[:len(word)]; string(w) {
	case "FETCH":
		return Fetch
	case "STORE":
		return Store
	case "NOOP":
		return Noop
	case "IDLE":
		return Idle
	case "SELECT":
		return Select
	case "SEARCH":
		return Search
	case "STATUS":
		return Status
	case "APPEND":
		return Append
	default:
		return Verb(w)
	}
}

// takesUID reports whether a command has a form with UID before it.
func (v Verb) takesUID() bool {
	switch v {
	case Copy, Expunge, Fetch, Move, Search, Sort, Store, Thread:
		return true
	}
	return false
}

// TakesLiteral reports whether the arguments of a command may be literals. On
// any other command a server does not consume them.
func (v Verb) TakesLiteral() bool {
	switch v {
	case Append, Create, Delete, Rename, Subscribe, Unsubscribe, Select, Examine, List, LSub, Status, Copy, Move,
		Search, Fetch, ID, Sort, Thread, Login, "GETQUOTAROOT", "GETQUOTA", "SETQUOTA", "GETMETADATA", "SETMETADATA",
		"GETACL", "SETACL", "DELETEACL", "LISTRIGHTS", "MYRIGHTS":
		return true
	}
	return false
}

// Changes reports whether a command may change what is stored.
func (v Verb) Changes() bool {
	switch v {
	case Append, Store, Copy, Move, Expunge, Close, Create, Delete, Rename, Subscribe, Unsubscribe:
		return true
	}
	return false
}

// Opens reports whether a command opens a mailbox.
func (v Verb) Opens() bool { return v == Select || v == Examine }

// Leaves reports whether a command closes the open mailbox and opens none.
func (v Verb) Leaves() bool { return v == Close || v == Unselect }

// MovesOrCopies reports whether a command puts messages into another mailbox.
func (v Verb) MovesOrCopies() bool { return v == Copy || v == Move }

// Expunges reports whether a command takes messages out of the open mailbox,
// and tells of each.
func (v Verb) Expunges() bool { return v == Expunge || v == Move }

// OfFolders reports whether a command changes the list of mailboxes.
func (v Verb) OfFolders() bool {
	switch v {
	case Create, Delete, Rename, Subscribe, Unsubscribe:
		return true
	}
	return false
}
