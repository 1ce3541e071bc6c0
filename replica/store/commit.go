package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"understudy/replica/meta"
	"understudy/replica/row"
)

// overlay makes changes to the messages of a mailbox: uid → message, nil if it is
// deleted. If grow, new messages at the end go into the room behind those that are
// there, which only the next version may have.
func overlay(was *messages, ch map[uint32]*row.Message, grow bool) (rows []*row.Message, uids []uint32) {
	if len(ch) == 0 {
		return was.Rows, was.UIDs
	}
	changed := slices.Sorted(maps.Keys(ch))
	last := uint32(0)
	if n := len(was.UIDs); n > 0 {
		last = was.UIDs[n-1]
	}
	if changed[0] <= last {
		return merge(was, changed, ch)
	}
	rows, uids = was.Rows, was.UIDs
	if grow {
		rows, uids = was.room, was.roomUIDs
	}
	for _, u := range changed {
		if ch[u] != nil {
			rows, uids = append(rows, ch[u]), append(uids, u)
		}
	}
	return rows, uids
}

// merge is overlay where old messages change.
func merge(was *messages, changed []uint32, ch map[uint32]*row.Message) (rows []*row.Message, uids []uint32) {
	if rows = replaced(was, changed, ch); rows != nil {
		return rows, was.roomUIDs
	}
	rows, uids = make([]*row.Message, 0, len(was.Rows)+len(changed)), make([]uint32, 0, len(was.UIDs)+len(changed))
	i := 0
	for _, u := range changed {
		n, same := slices.BinarySearch(was.UIDs[i:], u)
		rows, uids = append(rows, was.Rows[i:i+n]...), append(uids, was.UIDs[i:i+n]...)
		if i += n; same {
			i++
		}
		if m := ch[u]; m != nil {
			rows, uids = append(rows, m), append(uids, u)
		}
	}
	return append(rows, was.Rows[i:]...), append(uids, was.UIDs[i:]...)
}

// replaced is merge if no message comes or goes, else nil.
func replaced(was *messages, changed []uint32, ch map[uint32]*row.Message) []*row.Message {
	at := make([]int, len(changed))
	for i, u := range changed {
		n, ok := slices.BinarySearch(was.UIDs, u)
		if !ok || ch[u] == nil {
			return nil
		}
		at[i] = n
	}
	rows := slices.Clone(was.Rows)
	for i, u := range changed {
		rows[at[i]] = ch[u]
	}
	return rows
}

// commit stores what was collected, and shows it.
func (tx *Tx) commit(ctx context.Context) error {
	next := tx.collect()
	if tx.err != nil {
		return tx.err
	}
	if len(tx.batch.Do) == 0 {
		tx.done()
		return nil
	}
	for id, m := range tx.read {
		if b := tx.was.byID(id); tx.rows[id] != nil || tx.dropped[id] {
			tx.s.cache.pin(b, m)
			defer tx.s.cache.unpin(b)
		}
	}
	rev, err := tx.s.opt.Meta.Commit(ctx, tx.batch)
	if err != nil {
		tx.lost(err)
		return fmt.Errorf("store changes of %s: %w", tx.Name(), err)
	}
	tx.show(rev, next)
	tx.done()
	tx.a.tell()
	return nil
}

// collect adds all changes to the batch, and returns the messages of the mailboxes
// in which some changed.
func (tx *Tx) collect() map[row.MailboxID]*messages {
	name := tx.Name()
	for id := range tx.dropped {
		tx.batch.DeleteRange(meta.Range(meta.RowsOf(name, id)))
		tx.batch.Delete(meta.MailboxKey(name, id))
	}
	next := map[row.MailboxID]*messages{}
	for id, ch := range tx.rows {
		m := tx.BoxByID(id)
		if m == nil {
			continue
		}
		for uid, r := range ch {
			if r == nil {
				tx.batch.Delete(meta.RowKey(name, id, uid))
			} else {
				tx.batch.Put(meta.RowKey(name, id, uid), r.Encode())
			}
		}
		rows, uids := overlay(tx.before(id), ch, true)
		m.Messages = len(rows)
		tx.boxes[id] = m
		next[id] = newMessages(*m, rows, uids)
	}
	for id, m := range tx.boxes {
		if next[id] == nil {
			if m.Messages = 0; !tx.dropped[id] && tx.was.byID(id) != nil {
				m.Messages = tx.was.byID(id).Messages
			}
		}
		putJSON(&tx.batch, meta.MailboxKey(name, id), m)
	}
	if tx.infoChanged {
		putJSON(&tx.batch, meta.AccountKey(name), tx.info)
	}
	return next
}

// lost takes note of a commit that failed: unless it was refused, nobody knows
// whether it is durable, and the account is read again.
func (tx *Tx) lost(err error) {
	if errors.Is(err, meta.ErrConflict) || errors.Is(err, meta.ErrEpoch) || errors.Is(err, meta.ErrClosed) {
		return
	}
	tx.a.unsure = true
	_ = tx.s.reload(tx.a, tx.Name()) // or by the next Update
}

// show puts the committed state in place.
func (tx *Tx) show(rev meta.Rev, next map[row.MailboxID]*messages) {
	st := &state{info: tx.info, boxes: slices.Clone(tx.was.boxes), names: slices.Clone(tx.was.names)}
	renamed := len(tx.dropped) > 0
	for id := range tx.dropped {
		old := tx.was.byID(id)
		if old == nil {
			continue
		}
		st.boxes = slices.DeleteFunc(st.boxes, func(b *box) bool { return b == old })
		tx.s.cache.replace(old, nil, nil)
	}
	for id, m := range tx.boxes {
		b := &box{Mailbox: *m, rev: rev}
		old, now := st.byID(id), next[id]
		if old == nil {
			if now == nil {
				now = newMessages(*m, nil, nil)
			}
			i, _ := slices.BinarySearchFunc(st.boxes, id, compareID)
			st.boxes, renamed = slices.Insert(st.boxes, i, b), true
		} else {
			if was := old.get(); now == nil && was != nil {
				now = newMessages(*m, was.room, was.roomUIDs)
			}
			st.boxes[slices.Index(st.boxes, old)] = b
			if renamed = renamed || old.Name != b.Name; !renamed {
				st.names[slices.Index(st.names, old)] = b
			}
		}
		tx.s.cache.replace(old, b, now)
	}
	if renamed {
		st.sortNames()
	}
	tx.a.now.Store(st)
}

// done calls what was given to OnCommit.
func (tx *Tx) done() {
	for _, f := range tx.then {
		f()
	}
}
