package copyback

import (
	"context"
	"errors"

	"understudy/replica/delivery"
	"understudy/replica/doubt"
	"understudy/replica/row"
	"understudy/replica/store"
)

// What copy-back needs of the replica. This file is the only one that names it.

// Tx is one change of an account, with its base.
type Tx = store.Tx

// Accounts are the mailboxes and messages, and the base of the merge.
type Accounts interface {
	Mailboxes(account string) ([]row.Mailbox, error)
	SnapshotByID(account string, id row.MailboxID) (*row.Snapshot, error)
	BaseBoxes(account string) ([]row.Mailbox, error)
	BaseRows(account string, id row.MailboxID) (map[uint32]*row.Message, error)
	Rebase(ctx context.Context, account string, f func(*Tx)) error
}

// Ledgers are what is in flight, and what is told of it.
type Ledgers interface {
	DoubtsOf(account string) ([]row.Doubt, error)
	BeginCopy(ctx context.Context, account string, d row.Doubt) (key []byte, err error)
	Twins(account string) []row.Twin
	ForgetTwins(ctx context.Context, gone func(row.Twin) bool) error
	AwaitHolds(ctx context.Context) error
	MatchHeldBody(msg []byte) (row.Held, bool)
	Land(ctx context.Context, by store.Writer, in delivery.Landed, f func(*Tx) error) error
	PlanTasks(ctx context.Context, job string, tasks []row.Task) error
}

// Messages are the bytes. What was added is durable after Sync.
type Messages interface {
	Get(row.Ref) ([]byte, error)
	Add(msg []byte) (row.Ref, error)
	Sync() error
}

// gone reports whether a mailbox is not there any more: a client has deleted it.
func gone(err error) bool { return errors.Is(err, store.ErrNoMailbox) }

// endCopy forgets what BeginCopy kept, with the change that it was for.
func endCopy(tx *Tx, key []byte) { doubt.EndCopy(tx, key) }

// land changes an account by f, and records with it that held deliveries were seen
// in a mailbox of it.
func (a *account) land(mailbox string, held []row.Held, f func(*Tx) error) error {
	return a.opt.Ledgers.Land(a.ctx, store.ByKeeper, delivery.Landed{Account: a.name, Mailbox: mailbox, Held: held}, f)
}
