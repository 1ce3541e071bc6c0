// Package replica keeps the whole mail store of production: it opens the metadata
// store (rows), the message store (bytes), the accounts (store) and the ledgers of
// what is in flight, each in a package of its own, and wires them together.
//
// Implementation notes. Messages are stored before rows refer to them. A change of
// a ledger that belongs to one of an account is staged into that account's batch:
// of two batches the second could be lost. All batches go through Meta, which lets
// none through once another replica has taken over. Order of what is waited for: a
// message's turn (delivery), an account's turn (store), and mutexes, which are held
// for maps alone.
package replica

import (
	"errors"
	"path/filepath"

	"understudy/replica/blob"
	"understudy/replica/delivery"
	"understudy/replica/doubt"
	"understudy/replica/meta"
	"understudy/replica/queue"
	"understudy/replica/route"
	"understudy/replica/row"
	"understudy/replica/store"
	"understudy/replica/task"
)

// Options of Open.
type Options struct {
	Dir string
	// Meta is the metadata store; nil is a file in Dir.
	Meta meta.Store
	// Primary: the store is nobody's replica but a server's own; the standby
	// engine may always write and no base is kept.
	Primary bool
	// FoldCase: user names that differ in case only are one account.
	FoldCase bool
	// Domains whose local parts are account names, in lower case.
	Domains []string
}

// Replica is all of it. What a part does is called on the part (r.Deliveries.Land), or
// on the whole where somebody needs several.
type Replica struct {
	*store.Store // accounts
	store.Acting // their changes by the standby
	store.Wire   // and those that the wire told

	*delivery.Deliveries // held messages and twins
	*delivery.Senders    // that were not answered
	*doubt.Doubts
	*queue.Queue // outbound
	*route.Routes
	*task.Tasks

	Meta  *meta.Handle
	Blobs *blob.Store
}

// Open opens or makes the replica in a directory.
func Open(o Options) (*Replica, error) {
	blobs, err := blob.Open(filepath.Join(o.Dir, "messages"))
	if err != nil {
		return nil, err
	}
	if o.Meta == nil {
		if o.Meta, err = meta.OpenBolt(filepath.Join(o.Dir, "meta.db")); err != nil {
			return nil, errors.Join(err, blobs.Close())
		}
	}
	m := meta.NewHandle(o.Meta)
	st := store.New(store.Options{Meta: m, Primary: o.Primary, FoldCase: o.FoldCase})
	r := &Replica{Store: st, Acting: st.Acting(), Wire: st.Wire(), Meta: m, Blobs: blobs,
		Queue: queue.New(m), Routes: route.New(st, o.Domains), Tasks: task.New(m)}
	r.Deliveries = delivery.New(delivery.Options{Rows: m, Accounts: st, Messages: blobs, Routes: r.Routes,
		Primary: o.Primary})
	if err := m.View(r.Load); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	if r.Senders, err = delivery.OpenSenders(o.Dir); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	if r.Doubts, err = doubt.Open(o.Dir, m, st); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// Load reads everything that is in memory of the rows anew, as after a change of
// leadership; the epoch, too.
func (r *Replica) Load(sn meta.Snap) error {
	for _, load := range []func(meta.Snap) error{r.Meta.Load, r.Store.Load, r.Routes.Load, r.Deliveries.Load,
		r.Queue.Load} {
		if err := load(sn); err != nil {
			return err
		}
	}
	return nil
}

// Close closes both stores and the journals.
func (r *Replica) Close() error {
	err := errors.Join(r.Meta.Close(), r.Blobs.Close())
	if r.Senders != nil {
		err = errors.Join(err, r.Senders.Close())
	}
	if r.Doubts != nil {
		err = errors.Join(err, r.Doubts.Close())
	}
	return err
}

// Message reads the bytes of a message.
func (r *Replica) Message(ref row.Ref) ([]byte, error) { return r.Blobs.Get(ref) }

// PutMessage stores the bytes of a message, durably.
func (r *Replica) PutMessage(b []byte) (row.Ref, error) { return r.Blobs.Put(b) }

// Code names an error as an IMAP response code.
func (r *Replica) Code(err error) string { return store.Code(err) }
