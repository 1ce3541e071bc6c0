package meta

import (
	"encoding/binary"
)

// All rows of the replica, by the prefix of their keys. Numbers are big-endian, so
// that they sort; a name that something follows ends in a zero byte, which no name
// contains. No prefix is the beginning of another one.
//
//	prefix  key                              value
//	a/      account                          row.Account, JSON
//	m/      account 0 mailbox(4)             row.Mailbox, JSON
//	r/      account 0 mailbox(4) UID(4)      row.Message, binary
//	B/      account 0 mailbox(4)             row.Mailbox as production had it at the takeover, JSON
//	b/      account 0 mailbox(4) UID(4)      row.Message as production had it at the takeover, binary
//	z/      account 0 number(8)              row.Doubt, JSON
//	d/      number(8)                        row.Held, JSON
//	x/      number(8)                        row.Twin, JSON
//	q/      number(8)                        row.Queued, JSON
//	rt/     recipient                        row.Route, JSON
//	t/      job 0 number(8)                  row.Task, JSON
//	v/      login                            verifier of the vault, JSON
//	s/      name                             a single value, such as the failover state, JSON
//	e/      "epoch"                          the epoch, and which handle began it, JSON; see Handle
const (
	accounts  = "a/"
	mailboxes = "m/"
	messages  = "r/"
	baseBoxes = "B/"
	baseRows  = "b/"
	doubts    = "z/"
	held      = "d/"
	twins     = "x/"
	queue     = "q/"
	routes    = "rt/"
	tasks     = "t/"
	verifiers = "v/"
	states    = "s/"
	epochs    = "e/"
)

func prefixes() []string {
	return []string{accounts, mailboxes, messages, baseBoxes, baseRows, doubts, held, twins, queue, routes, tasks,
		verifiers, states, epochs}
}

// Range is the range of all keys that begin with a prefix, for Scan and DeleteRange.
func Range(prefix []byte) (from, to []byte) { return prefix, PrefixEnd(prefix) }

func ofName(kind, name string) []byte { return append(append([]byte(kind), name...), 0) }

func ofBox[ID ~uint32](kind, account string, id ID) []byte {
	return binary.BigEndian.AppendUint32(ofName(kind, account), uint32(id))
}

func ofNumber(prefix []byte, n uint64) []byte { return binary.BigEndian.AppendUint64(prefix, n) }

// Accounts is the prefix of all accounts.
func Accounts() []byte { return []byte(accounts) }

// AccountKey is an account's.
func AccountKey(name string) []byte { return []byte(accounts + name) }

// MailboxesOf is the prefix of an account's mailboxes.
func MailboxesOf(account string) []byte { return ofName(mailboxes, account) }

// MailboxKey is a mailbox's.
func MailboxKey[ID ~uint32](account string, id ID) []byte { return ofBox(mailboxes, account, id) }

// RowsOf is the prefix of a mailbox's messages.
func RowsOf[ID ~uint32](account string, id ID) []byte { return ofBox(messages, account, id) }

// RowKey is a message's.
func RowKey[ID ~uint32](account string, id ID, uid uint32) []byte {
	return binary.BigEndian.AppendUint32(RowsOf(account, id), uid)
}

// BaseMailboxesOf is the prefix of the mailboxes of an account's base.
func BaseMailboxesOf(account string) []byte { return ofName(baseBoxes, account) }

// BaseMailboxKey is that of a mailbox of the base.
func BaseMailboxKey[ID ~uint32](account string, id ID) []byte { return ofBox(baseBoxes, account, id) }

// BaseMessagesOf is the prefix of all messages of an account's base.
func BaseMessagesOf(account string) []byte { return ofName(baseRows, account) }

// BaseRowsOf is the prefix of the messages of a mailbox of the base.
func BaseRowsOf[ID ~uint32](account string, id ID) []byte { return ofBox(baseRows, account, id) }

// BaseRowKey is that of a message of the base.
func BaseRowKey[ID ~uint32](account string, id ID, uid uint32) []byte {
	return binary.BigEndian.AppendUint32(BaseRowsOf(account, id), uid)
}

// DoubtsOf is the prefix of an account's doubts.
func DoubtsOf(account string) []byte { return ofName(doubts, account) }

// DoubtKey is a doubt's.
func DoubtKey(account string, n uint64) []byte { return ofNumber(DoubtsOf(account), n) }

// Held is the prefix of all held deliveries.
func Held() []byte { return []byte(held) }

// HeldKey is a held delivery's.
func HeldKey(id uint64) []byte { return ofNumber(Held(), id) }

// Twins is the prefix of all twins.
func Twins() []byte { return []byte(twins) }

// TwinKey is a twin's.
func TwinKey(id uint64) []byte { return ofNumber(Twins(), id) }

// Queue is the prefix of all outbound mail.
func Queue() []byte { return []byte(queue) }

// QueueKey is that of one outbound message.
func QueueKey(id uint64) []byte { return ofNumber(Queue(), id) }

// QueueID reads the number of a QueueKey.
func QueueID(key []byte) uint64 { return binary.BigEndian.Uint64(key[len(queue):]) }

// Routes is the prefix of all routes.
func Routes() []byte { return []byte(routes) }

// RouteKey is that of the route of a recipient, which is in lower case.
func RouteKey(recipient string) []byte { return []byte(routes + recipient) }

// Tasks is the prefix of all tasks.
func Tasks() []byte { return []byte(tasks) }

// TasksOf is the prefix of a job's tasks.
func TasksOf(job string) []byte { return ofName(tasks, job) }

// TaskKey is a task's.
func TaskKey(job string, seq int) []byte { return ofNumber(TasksOf(job), uint64(seq)) }

// Verifiers is the prefix of all verifiers.
func Verifiers() []byte { return []byte(verifiers) }

// VerifierKey is that of a login's verifier.
func VerifierKey(login string) []byte { return []byte(verifiers + login) }

// StateKey is that of a single value.
func StateKey(name string) []byte { return []byte(states + name) }

// EpochKey is that of the epoch.
func EpochKey() []byte { return []byte(epochs + "epoch") }
