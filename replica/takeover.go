package replica

import (
	"context"

	"understudy/replica/doubt"
	"understudy/replica/row"
	"understudy/replica/store"
)

// BeginActing hands an account to the standby. The mailboxes as they stand
// become the base of the later merge; the first UID that the standby gives is
// gap above UIDNEXT, for what production may have stored unseen. Doing it again
// changes nothing.
func (r *Replica) BeginActing(ctx context.Context, user string, gap uint32) error {
	return r.Update(ctx, user, store.ByKeeper, func(tx *store.Tx) error {
		if tx.Home() == row.Standby {
			return nil
		}
		if err := r.Doubts.TakeOver(tx); err != nil {
			return err
		}
		for _, m := range tx.Boxes() {
			m.UIDNext = max(m.UIDNext, m.SyncedNext)
			// Changes that the wire told, and no sync since, have MODSEQs that
			// clients may have seen and the replica has not.
			for _, x := range tx.Rows(m.ID) {
				if x.Unsettled {
					m.ModSeq += 2
				}
			}
			tx.SetBaseBox(*m)
			if !m.NoSelect {
				m.Gap = gap
			}
			tx.Put(m)
		}
		if tx.Box("INBOX") == nil {
			tx.Make("INBOX", nil)
		}
		tx.SetHome(row.Standby)
		return nil
	})
}

// EndActing hands an account back to production, which then holds the same as
// the replica. The base is dropped.
func (r *Replica) EndActing(ctx context.Context, user string) error {
	return r.Update(ctx, user, store.ByKeeper, func(tx *store.Tx) error {
		if tx.Home() == row.Production {
			return nil
		}
		for _, m := range tx.Boxes() {
			for _, x := range tx.Rows(m.ID) {
				if x.Fresh || x.Tail != 0 {
					c := *x
					c.Fresh, c.Tail, c.Unsettled = false, 0, true
					tx.PutRow(m.ID, &c)
				}
			}
			m.Born, m.SyncedModSeq, m.Gap = false, 0, 0
			tx.Put(m)
		}
		tx.DropBase()
		doubt.HandBack(tx)
		tx.SetHome(row.Production)
		return nil
	})
}
