package row

import (
	"io"
	"sort"
	"time"
)

// Snapshot is a mailbox at one moment. It is shared and must not be changed.
type Snapshot struct {
	Mailbox
	Rows []*Message // by UID
	UIDs []uint32   // of Rows
}

// Find returns the message with a UID, or nil.
func (s *Snapshot) Find(uid uint32) *Message {
	if i := sort.Search(len(s.UIDs), func(i int) bool { return s.UIDs[i] >= uid }); i < len(s.UIDs) &&
		s.UIDs[i] == uid {
		return s.Rows[i]
	}
	return nil
}

// New is a message to be added.
type New struct {
	Ref   Ref
	Flags []string
	Date  time.Time
	Tail  int64
}

// FlagOp is how STORE changes flags.
type FlagOp int8

// The three forms of STORE.
const (
	Remove  FlagOp = -1
	Replace FlagOp = 0
	Add     FlagOp = 1
)

// Apply returns the flags that op makes of old.
func (op FlagOp) Apply(old, arg []string) []string {
	switch op {
	case Add:
		return NormalFlags(append(append([]string(nil), old...), arg...))
	case Remove:
		drop := Message{Flags: arg}
		var keep []string
		for _, f := range old {
			if !drop.HasFlag(f) {
				keep = append(keep, f)
			}
		}
		return NormalFlags(keep)
	}
	return NormalFlags(arg)
}

// FlagChange is a STORE.
type FlagChange struct {
	Mailbox        MailboxID
	UIDs           []uint32
	Op             FlagOp
	Flags          []string
	UnchangedSince uint64 // 0: no condition. RFC 7162 section 3.1.3
}

// FlagsOf are the flags that a message has now.
type FlagsOf struct {
	UID   uint32
	Flags []string
}

// CopyCmd is a COPY or MOVE that the standby is to do.
type CopyCmd struct {
	From MailboxID
	UIDs []uint32
	To   string
	Move bool
}

// Copied is the outcome of a COPY or MOVE: paired UIDs.
type Copied struct {
	UIDValidity uint32 // of the target
	Src, Dst    []uint32
}

// AppendOf is an APPEND that production did.
type AppendOf struct {
	Mailbox          string
	UIDValidity, UID uint32
	New
}

// CopyOf is a COPY or MOVE that production did.
type CopyOf struct {
	From, To string
	Move     bool
	Copied
}

// Spool keeps a message whose length is not known yet. Start begins to store
// it once it is whole; Commit returns when it is durable.
type Spool interface {
	io.Writer
	Start()
	Commit() (Ref, error)
	// Bytes returns what was written so far.
	Bytes() ([]byte, error)
	Discard()
}

// Envelope is that of an SMTP transaction.
type Envelope struct {
	From   string
	Params []string // of MAIL
	Rcpts  []string
	User   string // authenticated submitter, or ""
}

// Held is an inbound message that its sender was told 250 for, or is about to be,
// and that is not yet seen in every mailbox that it is for. See HeldState.
type Held struct {
	ID      uint64
	State   HeldState
	From    string
	Rcpts   []string // still to be seen, as the client wrote them
	Params  []string // of MAIL
	Ref     Ref
	Arrived time.Time // here, or when it was last given to production
	Key     string    // of the content, by which it is looked for
	Seen    []string  // accounts that it was seen in
	// Before and BeforeArrived are what it was before it was given (HeldGiving).
	Before        HeldState `json:",omitempty"`
	BeforeArrived time.Time `json:",omitzero"`
}

// Twin is a message that production had accepted and that the standby delivered
// in its place. Production's own copy may still come, from its queue.
type Twin struct {
	ID        uint64
	Account   string
	Ref       Ref    // as the sender gave it
	Key       string // of the content
	Delivered time.Time
}

// Route says where mail for a recipient lands.
type Route struct {
	Recipient string // lower case
	Account   string
	Mailbox   string
	Learned   time.Time
}

// Queued is outbound mail of the standby.
type Queued struct {
	ID      uint64
	From    string
	Rcpts   []string
	Ref     Ref
	Arrived time.Time
	Tries   int
	Next    time.Time
	LastErr string
}

// TaskState is where a task stands.
type TaskState string

// The states of a task; only Done, Skipped and Cancelled are never redone.
const (
	TaskQueued    TaskState = "queued"
	TaskLeased    TaskState = "leased"
	TaskDone      TaskState = "done"
	TaskSkipped   TaskState = "skipped"
	TaskRetry     TaskState = "retry"
	TaskParked    TaskState = "parked"
	TaskCancelled TaskState = "cancelled"
)

// Task is one unit of a job: a mailbox to copy in, or a message to copy,
// delete or flag on the way back.
type Task struct {
	Job     string
	Seq     int
	Kind    string // copy-mailbox, copy, delete, flags …
	Account string
	Mailbox string
	UID     uint32 `json:",omitempty"`
	State   TaskState
	Attempt int
	Done    int   // messages
	Total   int   // messages
	Bytes   int64 // moved
	Started time.Time
	Ended   time.Time
	Err     string `json:",omitempty"`
	Why     string `json:",omitempty"` // it was to be done
}

// Finished reports whether the task needs no more work.
func (t Task) Finished() bool {
	return t.State == TaskDone || t.State == TaskSkipped || t.State == TaskCancelled
}
