package replica

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"

	"understudy/replica/meta"
	"understudy/replica/row"
	"understudy/replica/store"
)

// BeginActing hands an account to the standby. The mailboxes as they stand
// become the base of the later merge; the first UID that the standby gives is
// gap above UIDNEXT, for what production may have stored unseen. Doing it again
// changes nothing.
func (s *Replica) BeginActing(ctx context.Context, user string, gap uint32) error {
	return s.Update(ctx, user, store.ByKeeper, func(tx *store.Tx) error {
		if tx.Home() == row.Standby {
			return nil
		}
		doubts, err := s.Doubts(tx.Name())
		if err != nil {
			return err
		}
		dropDoubts(tx)
		for i, d := range doubts {
			resolve(tx, d)
			d, _, ok := d.Step(row.DoubtHappened{Event: row.DoubtTakeover, By: row.ByKeeper, Refs: unmoved(tx, d)})
			if ok && !d.State.Ended() {
				tx.Stage(func(b *meta.Batch) { putJSON(b, meta.DoubtKey(tx.Name(), 1<<63|uint64(i)), d) })
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

// NoteDoubt keeps a command whose OK was not passed on, for takeover and
// copy-back. The messages of a MOVE are found in its mailbox.
func (s *Replica) NoteDoubt(ctx context.Context, user string, d row.Doubt) error {
	return s.noteDoubt(ctx, user, d, row.DoubtHappened{Event: row.DoubtUnanswered, By: row.ByCache})
}

func (s *Replica) noteDoubt(ctx context.Context, user string, d row.Doubt, e row.DoubtHappened) error {
	name, _ := s.Resolve(user)
	if d.Kind == row.DoubtMove {
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
	_, err := s.putDoubt(ctx, name, d, e)
	return err
}

func (s *Replica) putDoubt(ctx context.Context, name string, d row.Doubt, e row.DoubtHappened) (key []byte, err error) {
	d, _, ok := d.Step(e)
	if !ok {
		return nil, fmt.Errorf("note a doubt of kind %s, which is %s", d.Kind, d.State)
	}
	b, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	key = meta.DoubtKey(name, rand.Uint64()>>1)
	_, err = s.Meta.Commit(ctx, meta.Batch{Do: []meta.Op{{Key: key, Val: b}}})
	return key, err
}

// BeginCopy keeps what copy-back is about to do to a mailbox of production, until
// EndCopy or the hand-back: if the answers are lost, and a client deletes the
// messages on the standby, they are known all the same.
func (s *Replica) BeginCopy(ctx context.Context, user string, d row.Doubt) (key []byte, err error) {
	name, _ := s.Resolve(user)
	return s.putDoubt(ctx, name, d, row.DoubtHappened{Event: row.DoubtIntend, By: row.ByCopyBack})
}

// EndCopy forgets it.
func EndCopy(tx *store.Tx, key []byte) { tx.Stage(func(b *meta.Batch) { b.Delete(key) }) }

func dropDoubts(tx *store.Tx) {
	tx.Stage(func(b *meta.Batch) { b.DeleteRange(meta.Range(meta.DoubtsOf(tx.Name()))) })
}

// resolve ends a MOVE that production did, of which the replica has seen the
// arrival but not the departure.
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

// unmoved are the messages of a MOVE that are where they were: with those the
// standby begins, so that one that is gone later was removed by a client.
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

// Doubts lists what is doubted of an account.
func (s *Replica) Doubts(user string) ([]row.Doubt, error) {
	name, _ := s.Resolve(user)
	var out []row.Doubt
	err := s.Meta.View(func(sn meta.Snap) error {
		for _, v := range sn.Scan(meta.Range(meta.DoubtsOf(name))) {
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
func (s *Replica) EndActing(ctx context.Context, user string) error {
	return s.Update(ctx, user, store.ByKeeper, func(tx *store.Tx) error {
		if tx.Home() == row.Production {
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
		tx.DropBase()
		dropDoubts(tx)
		tx.SetHome(row.Production)
		return nil
	})
}

// SaveTask stores a task.
func (s *Replica) SaveTask(ctx context.Context, t row.Task) error {
	b, err := json.Marshal(t)
	if err != nil {
		return err
	}
	_, err = s.Meta.Commit(ctx, meta.Batch{Do: []meta.Op{{Key: meta.TaskKey(t.Job, t.Seq), Val: b}}})
	return err
}

// PlanTasks replaces all tasks of a job, in one batch.
func (s *Replica) PlanTasks(ctx context.Context, job string, tasks []row.Task) error {
	var b meta.Batch
	b.DeleteRange(meta.Range(meta.TasksOf(job)))
	for _, t := range tasks {
		v, err := json.Marshal(t)
		if err != nil {
			return err
		}
		b.Put(meta.TaskKey(job, t.Seq), v)
	}
	_, err := s.Meta.Commit(ctx, b)
	return err
}

// Tasks lists the tasks of a job, or with "" of all jobs.
func (s *Replica) Tasks(job string) ([]row.Task, error) {
	p := meta.Tasks()
	if job != "" {
		p = meta.TasksOf(job)
	}
	var out []row.Task
	err := s.Meta.View(func(sn meta.Snap) error {
		for _, v := range sn.Scan(meta.Range(p)) {
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
