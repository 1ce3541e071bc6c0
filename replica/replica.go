// Package replica keeps the whole mail store of production: it opens the metadata
// store (rows), the message store (bytes), the accounts (store) and the ledgers of
// what is in flight (held deliveries, queued mail, doubts, routes and tasks), and
// wires them together.
//
// Implementation notes. Messages are stored before rows refer to them. A change of
// a ledger that belongs to one of an account is staged into that account's batch:
// of two batches the second could be lost. Lock order: heldMu before an account's
// before mu.
package replica

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"understudy/replica/blob"
	"understudy/replica/meta"
	"understudy/replica/row"
	"understudy/replica/store"
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

// Replica is all of it.
type Replica struct {
	*store.Store
	store.Acting
	store.Wire
	Meta  *meta.Handle // all that changes rows goes through it
	Blobs *blob.Store

	opt Options

	heldMu sync.Mutex // changes of held deliveries

	mu      sync.Mutex
	held    map[uint64]*row.Held
	holding map[chan struct{}]struct{} // holds under way
	routes  map[string]row.Route
	twins   map[uint64]row.Twin
	answers *answers
	intents *journal[intent]
	nextID  uint64
	bells   bells
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
	s := &Replica{Store: st, Acting: st.Acting(), Wire: st.Wire(), Meta: m, Blobs: blobs, opt: o,
		held: map[uint64]*row.Held{}, holding: map[chan struct{}]struct{}{}, routes: map[string]row.Route{}, twins: map[uint64]row.Twin{}, bells: newBells()}
	if err := m.View(s.load); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if s.answers, err = openAnswers(o.Dir); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.openIntents(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close closes both stores.
func (s *Replica) Close() error {
	err := errors.Join(s.Meta.Close(), s.Blobs.Close())
	if s.answers != nil {
		err = errors.Join(err, s.answers.f.Close())
	}
	if s.intents != nil {
		err = errors.Join(err, s.intents.f.Close())
	}
	return err
}

func (s *Replica) load(sn meta.Snap) error {
	if err := errors.Join(s.Meta.Load(sn), s.Load(sn)); err != nil {
		return err
	}
	for _, v := range sn.Scan(meta.Range(meta.Held())) {
		h := &row.Held{}
		if err := json.Unmarshal(v, h); err != nil {
			return fmt.Errorf("held delivery row: %w", err)
		}
		if next, _, ok := h.Step(row.HeldHappened{Event: row.HeldRestarted, By: row.ByLoad}); ok {
			h = &next
		}
		s.held[h.ID] = h
		s.nextID = max(s.nextID, h.ID)
	}
	for _, v := range sn.Scan(meta.Range(meta.Twins())) {
		var w row.Twin
		if err := json.Unmarshal(v, &w); err != nil {
			return fmt.Errorf("twin row: %w", err)
		}
		s.twins[w.ID] = w
		s.nextID = max(s.nextID, w.ID)
	}
	for k := range sn.Scan(meta.Range(meta.Queue())) {
		s.nextID = max(s.nextID, meta.QueueID(k))
	}
	for _, v := range sn.Scan(meta.Range(meta.Routes())) {
		var r row.Route
		if err := json.Unmarshal(v, &r); err != nil {
			return fmt.Errorf("route row: %w", err)
		}
		s.routes[r.Recipient] = r
	}
	return sn.Err()
}

// Message reads the bytes of a message.
func (s *Replica) Message(ref row.Ref) ([]byte, error) { return s.Blobs.Get(ref) }

// PutMessage stores the bytes of a message, durably.
func (s *Replica) PutMessage(b []byte) (row.Ref, error) { return s.Blobs.Put(b) }

// Code names an error as an IMAP response code.
func (s *Replica) Code(err error) string { return store.Code(err) }

func putJSON(b *meta.Batch, key []byte, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain structs of ours
	}
	b.Put(key, text)
}
