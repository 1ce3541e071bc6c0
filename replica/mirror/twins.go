package mirror

import (
	"context"
	"fmt"
	"slices"

	"understudy/replica/imapc"
	"understudy/replica/row"
	"understudy/snoop/imapwire"
)

// findTwins looks among new messages for those that the standby has delivered
// in production's place during an outage: production's queue brings them late.
// They are kept out of the replica, and taken out of production by dropTwins.
// Bodies are compared whole.
func (s *boxSync) findTwins(need []uint32) ([]uint32, error) {
	s.twins = map[uint32]row.Twin{}
	used := map[uint64]bool{}
	err := s.c.Fetch(imapwire.FormatSet(need), "(UID BODY.PEEK[])", func(f imapc.Message) error {
		if !f.HasBody || s.stale[f.UID] {
			return nil // or it is known, and no arrival
		}
		if w, ok := s.m.opt.Deliveries.MatchTwin(s.account, f.Body); ok && !used[w.ID] {
			used[w.ID], s.twins[f.UID] = true, w
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for late doubles: %w", err)
	}
	return slices.DeleteFunc(need, func(u uint32) bool { _, twin := s.twins[u]; return twin }), nil
}

// dropTwins expunges late doubles from production, by their UIDs alone.
func (s *boxSync) dropTwins() error {
	if !s.c.Has("UIDPLUS") {
		return nil
	}
	if _, err := s.c.Select(s.mailbox, false); err != nil {
		return err
	}
	var uids []uint32
	ids := map[uint64]bool{}
	for u, w := range s.twins {
		uids = append(uids, u)
		ids[w.ID] = true
	}
	set := imapwire.FormatSet(uids)
	if err := expunge(s.c, set); err != nil {
		return fmt.Errorf("drop late doubles: %w", err)
	}
	s.m.opt.Log.Info("production delivered what the standby had delivered already; its copies are dropped",
		"account", s.account, "mailbox", s.mailbox, "uids", set)
	return s.m.opt.Deliveries.ForgetTwins(s.ctx, func(w row.Twin) bool { return ids[w.ID] })
}

// expunge removes messages of the selected mailbox from production, and nothing
// but these (RFC 4315).
func expunge(c *imapc.Conn, set string) error {
	if _, err := c.Do("UID STORE "+set+` +FLAGS.SILENT (\Deleted)`, nil); err != nil {
		return err
	}
	_, err := c.Do("UID EXPUNGE "+set, nil)
	return err
}

// Expunge removes messages from production by their UIDs: what a MOVE that was
// done by half has left behind.
func (m *Mirror) Expunge(ctx context.Context, account, mailbox string, uids []uint32) error {
	return m.with(ctx, account, func(c *imapc.Conn) error {
		if !c.Has("UIDPLUS") {
			return fmt.Errorf("expunge from %s: production offers no UIDPLUS", mailbox)
		}
		if _, err := c.Select(mailbox, false); err != nil {
			return err
		}
		if err := expunge(c, imapwire.FormatSet(uids)); err != nil {
			return err
		}
		return c.Leave()
	})
}
