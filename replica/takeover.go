package replica

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"math/rand/v2"

	"understudy/replica/meta"
	"understudy/replica/row"
)

// BeginActing hands an account to the standby. The mailboxes as they stand
// become the base of the later merge; the first UID that the standby gives is
// gap above UIDNEXT, for what production may have stored unseen. Doing it again
// changes nothing.
func (s *Store) BeginActing(ctx context.Context, user string, gap uint32) error {
	return s.Update(ctx, user, Keeper, func(tx *Tx) error {
		if tx.info.Home == row.Standby {
			return nil
		}
		doubts, err := s.Doubts(tx.Name())
		if err != nil {
			return err
		}
		p := doubtPrefix(tx.Name())
		tx.batch.DeleteRange(p, meta.PrefixEnd(p))
		for i, d := range doubts {
			tx.resolve(d)
			if tx.unmoved(&d); len(d.Refs) > 0 {
				tx.putJSON(doubtKey(tx.Name(), 1<<63|uint64(i)), d)
			}
		}
		for _, m := range tx.Boxes() {
			m.UIDNext = max(m.UIDNext, m.SyncedNext)
			// Changes that the wire told, and no sync since, have MODSEQs that
			// clients may have seen and the replica has not.
			for _, r := range tx.Rows(m.ID) {
				if r.Unsettled {
					m.ModSeq += 2
				}
			}
			tx.putJSON(baseKey(tx.Name(), m.ID), m)
			if !m.NoSelect {
				m.Gap = gap
			}
			tx.Put(m)
		}
		if tx.Box("INBOX") == nil {
			tx.make("INBOX", tx.sep(), nil)
		}
		tx.info.Home, tx.infoChanged = row.Standby, true
		return nil
	})
}

// BaseBoxes returns an account's mailboxes as they stood at the takeover.
func (s *Store) BaseBoxes(user string) ([]row.Mailbox, error) {
	name, ok := s.Resolve(user)
	if !ok {
		return nil, ErrNoAccount
	}
	var out []row.Mailbox
	err := s.Meta.View(func(sn meta.Snap) error {
		p := boxPrefix(name)
		p[0] = 'B'
		for _, v := range sn.Scan(p, meta.PrefixEnd(p)) {
			var m row.Mailbox
			if err := json.Unmarshal(v, &m); err != nil {
				return err
			}
			out = append(out, m)
		}
		return sn.Err()
	})
	return out, err
}

// BaseRows returns the messages of a mailbox that the standby changed or
// deleted since the takeover, as they were. Read after a snapshot it may be
// newer than that, which a merge takes for no change; read before, a change in
// between would look like production's.
func (s *Store) BaseRows(user string, id row.MailboxID) (map[uint32]*row.Message, error) {
	name, ok := s.Resolve(user)
	if !ok {
		return nil, ErrNoAccount
	}
	rows, err := s.rows('b', name, id)
	out := make(map[uint32]*row.Message, len(rows))
	for _, m := range rows {
		out[m.UID] = m
	}
	return out, err
}

func doubtPrefix(name string) []byte { return []byte("z/" + name + "\x00") }

func doubtKey(name string, id uint64) []byte {
	return binary.BigEndian.AppendUint64(doubtPrefix(name), id)
}

// NoteDoubt keeps a command whose OK was not passed on, for takeover and
// copy-back. The messages of a MOVE are found in its mailbox.
func (s *Store) NoteDoubt(ctx context.Context, user string, d row.Doubt) error {
	name, _ := s.Resolve(user)
	if d.From != "" {
		sn, err := s.Snapshot(user, d.From)
		if err != nil {
			return err
		}
		for _, u := range d.UIDs {
			if m := sn.Find(u); m != nil {
				d.Refs = append(d.Refs, m.Ref)
			}
		}
	}
	_, err := s.putDoubt(ctx, name, d)
	return err
}

func (s *Store) putDoubt(ctx context.Context, name string, d row.Doubt) (key []byte, err error) {
	b, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	key = doubtKey(name, rand.Uint64()>>1)
	_, err = s.Meta.Commit(ctx, meta.Batch{Do: []meta.Op{{Key: key, Val: b}}})
	return key, err
}

// BeginCopy keeps what copy-back is about to put into a mailbox of production,
// until EndCopy: if the answers are lost, and a client deletes the messages on
// the standby, they are known all the same.
func (s *Store) BeginCopy(ctx context.Context, user string, d row.Doubt) (key []byte, err error) {
	name, _ := s.Resolve(user)
	return s.putDoubt(ctx, name, d)
}

// EndCopy forgets it.
func (tx *Tx) EndCopy(key []byte) { tx.batch.Delete(key) }

// resolve ends a MOVE that production did, of which the replica has seen the
// arrival but not the departure.
func (tx *Tx) resolve(d row.Doubt) {
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

// unmoved leaves of a doubt the messages that are where they were: with those
// the standby begins, so that one that is gone later was removed by a client.
func (tx *Tx) unmoved(d *row.Doubt) {
	d.Refs = nil
	from := tx.Box(d.From)
	if from == nil {
		return
	}
	for _, uid := range d.UIDs {
		if m := tx.Find(from.ID, uid); m != nil {
			d.Refs = append(d.Refs, m.Ref)
		}
	}
}

// Doubts lists an account's MOVEs that production did not answer.
func (s *Store) Doubts(user string) ([]row.Doubt, error) {
	name, _ := s.Resolve(user)
	var out []row.Doubt
	err := s.Meta.View(func(sn meta.Snap) error {
		p := doubtPrefix(name)
		for _, v := range sn.Scan(p, meta.PrefixEnd(p)) {
			var d row.Doubt
			if err := json.Unmarshal(v, &d); err != nil {
				return err
			}
			out = append(out, d)
		}
		return sn.Err()
	})
	return out, err
}

// EndActing hands an account back to production, which then holds the same as
// the replica. The base is dropped.
func (s *Store) EndActing(ctx context.Context, user string) error {
	return s.Update(ctx, user, Keeper, func(tx *Tx) error {
		if tx.info.Home == row.Production {
			return nil
		}
		for _, m := range tx.Boxes() {
			for _, r := range tx.Rows(m.ID) {
				if r.Fresh || r.Tail != 0 {
					c := *r
					c.Fresh, c.Tail, c.Unsettled = false, 0, true
					tx.PutRow(m.ID, &c)
				}
			}
			m.Born, m.SyncedModSeq, m.Gap = false, 0, 0
			tx.Put(m)
		}
		for _, kind := range []byte{'b', 'B'} {
			p := boxPrefix(tx.Name())
			p[0] = kind
			tx.batch.DeleteRange(p, meta.PrefixEnd(p))
		}
		p := doubtPrefix(tx.Name())
		tx.batch.DeleteRange(p, meta.PrefixEnd(p))
		tx.info.Home, tx.infoChanged = row.Production, true
		return nil
	})
}

// Rebase makes a mailbox or message of the base equal to what production now
// holds after one step of copy-back, so that a copy-back that is killed goes on
// where it was.
func (s *Store) Rebase(ctx context.Context, user string, f func(tx *Tx)) error {
	return s.Update(ctx, user, Keeper, func(tx *Tx) error {
		f(tx)
		return nil
	})
}

// SetBaseBox stores a mailbox of the base.
func (tx *Tx) SetBaseBox(m row.Mailbox) { tx.putJSON(baseKey(tx.Name(), m.ID), m) }

// DropBaseBox forgets a mailbox of the base and its messages.
func (tx *Tx) DropBaseBox(id row.MailboxID) {
	tx.batch.Delete(baseKey(tx.Name(), id))
	p := rowPrefix('b', tx.Name(), id)
	tx.batch.DeleteRange(p, meta.PrefixEnd(p))
}

// SetBaseRow stores a message of the base.
func (tx *Tx) SetBaseRow(id row.MailboxID, m *row.Message) {
	tx.batch.Put(rowKey('b', tx.Name(), id, m.UID), m.Encode())
}

// DropBaseRow forgets what a message was: from now on it is what it is.
func (tx *Tx) DropBaseRow(id row.MailboxID, uid uint32) {
	tx.batch.Delete(rowKey('b', tx.Name(), id, uid))
}

// SaveTask stores a task.
func (s *Store) SaveTask(ctx context.Context, t row.Task) error {
	b, err := json.Marshal(t)
	if err != nil {
		return err
	}
	_, err = s.Meta.Commit(ctx, meta.Batch{Do: []meta.Op{{Key: taskKey(t.Job, t.Seq), Val: b}}})
	return err
}

func taskKey(job string, seq int) []byte {
	return binary.BigEndian.AppendUint64([]byte("t/"+job+"\x00"), uint64(seq))
}

// PlanTasks replaces all tasks of a job, in one batch.
func (s *Store) PlanTasks(ctx context.Context, job string, tasks []row.Task) error {
	var b meta.Batch
	p := []byte("t/" + job + "\x00")
	b.DeleteRange(p, meta.PrefixEnd(p))
	for _, t := range tasks {
		v, err := json.Marshal(t)
		if err != nil {
			return err
		}
		b.Put(taskKey(job, t.Seq), v)
	}
	_, err := s.Meta.Commit(ctx, b)
	return err
}

// Tasks lists the tasks of a job, or with "" of all jobs.
func (s *Store) Tasks(job string) ([]row.Task, error) {
	p := []byte("t/")
	if job != "" {
		p = []byte("t/" + job + "\x00")
	}
	var out []row.Task
	err := s.Meta.View(func(sn meta.Snap) error {
		for _, v := range sn.Scan(p, meta.PrefixEnd(p)) {
			var t row.Task
			if err := json.Unmarshal(v, &t); err != nil {
				return err
			}
			out = append(out, t)
		}
		return sn.Err()
	})
	return out, err
}
