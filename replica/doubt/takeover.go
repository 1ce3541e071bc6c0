package doubt

import (
	"understudy/replica/meta"
	"understudy/replica/row"
	"understudy/replica/store"
)

// TakeOver takes an account's doubts into the base with which the standby begins: what
// production has moved is moved, and what it has not is kept. It is part of the batch
// that hands the account over.
func (d *Doubts) TakeOver(tx *store.Tx) error {
	keys, doubts, err := d.read(tx.Name())
	if err != nil {
		return err
	}
	for i := range doubts {
		// No more than was read: one may be noted just now.
		tx.Stage(func(b *meta.Batch) { b.Delete(keys[i]) })
	}
	for i, x := range doubts {
		resolve(tx, x)
		x, _, ok := x.Step(row.DoubtHappened{Event: row.DoubtTakeover, By: row.ByKeeper, Refs: unmoved(tx, x)})
		if ok && !x.State.Ended() {
			tx.Stage(func(b *meta.Batch) { b.PutJSON(meta.DoubtKey(tx.Name(), 1<<63|uint64(i)), x) })
		}
	}
	return nil
}

// HandBack ends all doubts of an account, in the batch that hands it back: both sides
// are equal then.
func HandBack(tx *store.Tx) {
	tx.Stage(func(b *meta.Batch) { b.DeleteRange(meta.Range(meta.DoubtsOf(tx.Name()))) })
}

// resolve ends a MOVE that production did, of which the replica has seen the arrival
// but not the departure.
func resolve(tx *store.Tx, d row.Doubt) {
	from, to := tx.Box(d.From), tx.Box(d.To)
	if from == nil || to == nil {
		return
	}
	arrived := map[row.Ref]int{}
	if len(d.Dst) != len(d.UIDs) && d.Mark > 0 {
		for _, m := range tx.Rows(to.ID) {
			if m.UID >= d.Mark {
				arrived[m.Ref]++
			}
		}
	}
	for i, uid := range d.UIDs {
		src := tx.Find(from.ID, uid)
		if src == nil {
			continue
		}
		if len(d.Dst) == len(d.UIDs) {
			if dst := tx.Find(to.ID, d.Dst[i]); dst != nil && src.Ref == dst.Ref {
				tx.DeleteRow(from.ID, uid)
			}
		} else if arrived[src.Ref] > 0 {
			arrived[src.Ref]--
			tx.DeleteRow(from.ID, uid)
		}
	}
}

// unmoved are the messages of a MOVE that are where they were: with those the standby
// begins, so that one that is gone later was removed by a client.
func unmoved(tx *store.Tx, d row.Doubt) (refs []row.Ref) {
	from := tx.Box(d.From)
	if from == nil {
		return nil
	}
	for _, uid := range d.UIDs {
		if m := tx.Find(from.ID, uid); m != nil {
			refs = append(refs, m.Ref)
		}
	}
	return refs
}
