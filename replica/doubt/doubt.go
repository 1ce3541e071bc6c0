// Package doubt keeps what nobody knows whether production did: commands of clients
// that it did not answer, and what copy-back is about to do (row.Doubt and its table).
//
// Implementation notes. Doubts are rows of their account and are read when they are
// asked for. A MOVE that production has done, and that nobody was told of because this
// process was ended in between, must not be taken for mail that production lost here
// and got by itself there: so each is noted in a journal before it is sent, struck off
// when it is answered, and made a row by the next start if it is not. The journal's
// turn is held for its line and nothing else.
package doubt

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"

	"understudy/replica/journal"
	"understudy/replica/meta"
	"understudy/replica/row"
	"understudy/replica/store"
)

// Accounts is what the ledger needs of the accounts.
type Accounts interface {
	Resolve(user string) (name string, ok bool)
	Snapshot(user, mailbox string) (*row.Snapshot, error)
}

// Doubts is the ledger.
type Doubts struct {
	rows     meta.Store
	accounts Accounts
	moves    *journal.Journal[intent]
}

// intent is a MOVE under way.
type intent struct {
	Account string
	Doubt   row.Doubt
}

func (i *intent) tell(e row.DoubtEvent) {
	i.Doubt, _, _ = i.Doubt.Step(row.DoubtHappened{Event: e, By: row.ByCache})
}

// Open opens the journal in a directory, and makes doubts of what an earlier process
// left. The accounts are loaded.
func Open(dir string, rows meta.Store, accounts Accounts) (*Doubts, error) {
	d := &Doubts{rows: rows, accounts: accounts}
	var err error
	if d.moves, err = journal.Open[intent](dir, "moves", "moves without an answer"); err != nil {
		return nil, err
	}
	if err := d.restart(); err != nil {
		return nil, errors.Join(fmt.Errorf("moves without an answer: %w", err), d.moves.Close())
	}
	return d, nil
}

// restart notes the MOVEs that nobody was told the outcome of.
func (d *Doubts) restart() error {
	for _, id := range d.moves.Open() {
		i, _ := d.moves.Item(id)
		err := d.note(context.Background(), i.Account, i.Doubt.UnderWay(),
			row.DoubtHappened{Event: row.DoubtRestarted, By: row.ByLoad})
		if err != nil && !errors.Is(err, store.ErrNoMailbox) && !errors.Is(err, store.ErrNoAccount) {
			return err
		} // a mailbox that is gone has nothing to be mistaken
	}
	d.moves.Drop(func(intent) bool { return true })
	return d.moves.Renew()
}

// Close closes the journal.
func (d *Doubts) Close() error { return d.moves.Close() }

// Intend notes a MOVE that is about to be sent to production. arrived has to be
// called when the replica has what the MOVE put into its other mailbox, and over when
// its outcome is known, or kept elsewhere.
func (d *Doubts) Intend(account string, x row.Doubt) (arrived, over func()) {
	i := intent{Account: account, Doubt: x}
	i.tell(row.DoubtIntend)
	var id uint64
	d.moves.Do(func() { id = d.moves.Begin(i) })
	arrived = func() {
		d.moves.Do(func() {
			if i, ok := d.moves.Item(id); ok {
				i.tell(row.DoubtArrive)
				d.moves.Set(id, i)
			}
		})
	}
	over = func() { d.moves.Do(func() { d.moves.End(id) }) }
	return arrived, over
}

// Moving lists the messages of a mailbox that MOVEs under way take away. That they are
// gone from there is no news before it is known where they arrived: should production
// be lost in between, they would be nowhere.
func (d *Doubts) Moving(account, mailbox string) (uids []uint32) {
	var under []intent
	d.moves.Do(func() {
		for _, id := range d.moves.Open() {
			i, _ := d.moves.Item(id)
			under = append(under, i)
		}
	})
	account, _ = d.accounts.Resolve(account)
	for _, i := range under {
		if name, _ := d.accounts.Resolve(i.Account); name == account && i.Doubt.Departing(mailbox) {
			uids = append(uids, i.Doubt.UIDs...)
		}
	}
	return uids
}

// NoteDoubt keeps a command whose OK was not passed on, for takeover and copy-back.
// The messages of a MOVE are found in its mailbox.
func (d *Doubts) NoteDoubt(ctx context.Context, user string, x row.Doubt) error {
	return d.note(ctx, user, x, row.DoubtHappened{Event: row.DoubtUnanswered, By: row.ByCache})
}

func (d *Doubts) note(ctx context.Context, user string, x row.Doubt, e row.DoubtHappened) error {
	name, _ := d.accounts.Resolve(user)
	if x.Kind == row.DoubtMove {
		sn, err := d.accounts.Snapshot(user, x.From)
		if err != nil {
			return err
		}
		for _, u := range x.UIDs {
			if m := sn.Find(u); m != nil {
				x.Refs = append(x.Refs, m.Ref)
			}
		}
	}
	_, err := d.put(ctx, name, x, e)
	return err
}

func (d *Doubts) put(ctx context.Context, name string, x row.Doubt, e row.DoubtHappened) (key []byte, err error) {
	x, r, ok := x.Step(e)
	if !ok || r.OnDisk != row.RowFirst {
		return nil, fmt.Errorf("note a doubt of kind %q, which is %q", x.Kind, x.State)
	}
	var b meta.Batch
	key = meta.DoubtKey(name, rand.Uint64()>>1)
	b.PutJSON(key, x)
	_, err = d.rows.Commit(ctx, b)
	return key, err
}

// BeginCopy keeps what copy-back is about to do to a mailbox of production, until
// EndCopy or the hand-back: if the answers are lost, and a client deletes the messages
// on the standby, they are known all the same.
func (d *Doubts) BeginCopy(ctx context.Context, user string, x row.Doubt) (key []byte, err error) {
	name, _ := d.accounts.Resolve(user)
	return d.put(ctx, name, x, row.DoubtHappened{Event: row.DoubtIntend, By: row.ByCopyBack})
}

// EndCopy forgets it, with what the base then has.
func EndCopy(tx *store.Tx, key []byte) { tx.Stage(func(b *meta.Batch) { b.Delete(key) }) }

// DoubtsOf lists what is doubted of an account.
func (d *Doubts) DoubtsOf(user string) (out []row.Doubt, err error) {
	name, _ := d.accounts.Resolve(user)
	_, out, err = d.read(name)
	return out, err
}

func (d *Doubts) read(name string) (keys [][]byte, out []row.Doubt, err error) {
	err = d.rows.View(func(sn meta.Snap) error {
		for k, v := range sn.Scan(meta.Range(meta.DoubtsOf(name))) {
			var x row.Doubt
			if err := json.Unmarshal(v, &x); err != nil {
				return fmt.Errorf("doubt of %s: %w", name, err)
			}
			keys, out = append(keys, bytes.Clone(k)), append(out, x)
		}
		return sn.Err()
	})
	return keys, out, err
}
