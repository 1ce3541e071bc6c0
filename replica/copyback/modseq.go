package copyback

import (
	"fmt"
	"slices"

	"understudy/replica/row"
)

// HIGHESTMODSEQ is raised to what clients were shown by giving a message a flag
// that it does not have, and taking it away, as often as needed. The message is
// one of the mailbox, which ends as it was; without any there is nothing that a
// client could miss. Message and flag are noted before, so that a flag that is
// left by one that was cut off is taken away later; a flag that a client has set
// is never touched.

// maxBump bounds the changes made to raise HIGHESTMODSEQ.
const maxBump = 20_000

// raise raises production's HIGHESTMODSEQ to the replica's.
func (b *box) raise() error {
	sn, err := b.opt.Store.SnapshotByID(b.name, b.todo.ID)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	sel, err := b.c.Select(b.sn.Name, false)
	if err != nil || sel.ModSeq >= sn.ModSeq || len(sn.Rows) == 0 {
		return err
	}
	uid, flag, err := b.pick(sn)
	if err == nil && uid != 0 {
		err = b.bump(uid, flag, sn.ModSeq-sel.ModSeq)
	}
	if err != nil {
		return fmt.Errorf("raise HIGHESTMODSEQ: %w", err)
	}
	return nil
}

// pick returns a message and a flag that it has on neither side, and notes them;
// 0 if there is none.
func (b *box) pick(sn *row.Snapshot) (uid uint32, flag string, err error) {
	if d, ok := b.bumped[b.todo.ID]; ok {
		if m := sn.Find(d.UIDs[0]); m != nil && b.lacks(m, d.Flag) {
			return m.UID, d.Flag, nil
		}
	}
	for _, m := range slices.Backward(sn.Rows) {
		if m.Fresh {
			continue
		}
		spare := []string{`\Flagged`, `\Answered`, `\Draft`, ownFlag}
		i := slices.IndexFunc(spare, func(f string) bool { return b.lacks(m, f) })
		d := row.FlagDoubt(b.todo.ID, m.UID, spare[i])
		b.bumped[b.todo.ID] = d
		_, err := b.opt.Ledgers.BeginCopy(b.ctx, b.name, d)
		return m.UID, d.Flag, err
	}
	return 0, "", nil
}

// ownFlag is one that no client sets.
const ownFlag = "$Bumped"

// lacks reports whether a message has no such flag, now and on production.
func (b *box) lacks(m *row.Message, flag string) bool {
	was := b.rows[m.UID]
	return flag == ownFlag || !m.HasFlag(flag) && (was == nil || !was.HasFlag(flag))
}

func (b *remote) bump(uid uint32, flag string, by uint64) error {
	by = min((by+1)&^1, maxBump)
	var tags []string
	for i := range by {
		op := "+"
		if i%2 == 1 {
			op = "-"
		}
		tags = append(tags, b.c.Send(fmt.Sprintf(`UID STORE %d %sFLAGS.SILENT (%s)`, uid, op, flag)))
		if len(tags) < 200 && i+1 < by {
			continue
		}
		for _, t := range tags {
			if _, err := b.c.Wait(t, nil); err != nil {
				return err
			}
		}
		tags = tags[:0]
	}
	return nil
}
