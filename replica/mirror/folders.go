package mirror

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"understudy/replica/imapc"
	"understudy/replica/row"
	"understudy/replica/store"
)

// folders makes the replica's list of mailboxes equal to production's, and
// returns production's list.
func (m *Mirror) folders(ctx context.Context, c *imapc.Conn, account string) ([]imapc.Listed, error) {
	unlock, err := m.locks.take(ctx, account)
	if err != nil {
		return nil, err
	}
	defer unlock()
	list, err := c.List()
	if err != nil {
		return nil, fmt.Errorf("list mailboxes of %s: %w", account, err)
	}
	err = m.opt.Store.Update(ctx, account, store.ByMirror, func(tx *store.Tx) error {
		applyFolders(tx, list)
		return nil
	})
	return list, err
}

// applyFolders is the plan and its execution: renames first, then deletions,
// then additions and attributes.
func applyFolders(tx *store.Tx, list []imapc.Listed) {
	there := map[string]*imapc.Listed{}
	for i := range list {
		there[list[i].Name] = &list[i]
	}
	for old, name := range renames(tx.Boxes(), list) {
		m := tx.BoxByID(old)
		m.Name = name
		tx.Put(m)
	}
	for _, m := range tx.Boxes() {
		if there[m.Name] == nil {
			tx.Drop(m.ID)
		}
	}
	for _, l := range list {
		m := tx.Box(l.Name)
		if m == nil {
			n := row.Mailbox{Name: l.Name, Sep: l.Sep, NoSelect: l.NoSelect(), Subscribed: l.Subscribed,
				Attrs: attrs(l), Synced: l.NoSelect()}
			if l.Status != nil {
				n.UIDValidity, n.UIDNext = l.Status.UIDValidity, max(l.Status.UIDNext, 1)
				// An empty mailbox is whole with its status.
				n.Synced = n.Synced || l.Status.Exists == 0
				n.SyncedNext, n.SyncedModSeq, n.ModSeq = l.Status.UIDNext, l.Status.ModSeq, l.Status.ModSeq
			}
			tx.Add(n)
			continue
		}
		if a := attrs(l); m.Subscribed != l.Subscribed || m.NoSelect != l.NoSelect() || m.Sep != l.Sep ||
			!slices.Equal(a, m.Attrs) {
			m.Subscribed, m.NoSelect, m.Sep, m.Attrs = l.Subscribed, l.NoSelect(), l.Sep, a
			tx.Put(m)
		}
	}
}

// attrs keeps the attributes that belong to the mailbox itself.
func attrs(l imapc.Listed) []string {
	var out []string
	for _, a := range l.Attrs {
		switch strings.ToLower(a) {
		case `\haschildren`, `\hasnochildren`, `\noselect`, `\nonexistent`, `\subscribed`, `\marked`, `\unmarked`,
			`\noinferiors`:
		default:
			out = append(out, a)
		}
	}
	return out
}

// renames finds mailboxes that vanished while another with their UIDVALIDITY
// appeared. Where more than one could be meant there is no rename.
func renames(boxes []*row.Mailbox, list []imapc.Listed) map[row.MailboxID]string {
	have := map[string]bool{}
	for _, m := range boxes {
		have[m.Name] = true
	}
	listed := map[string]bool{}
	fresh := map[uint32][]*imapc.Listed{}
	for i, l := range list {
		listed[l.Name] = true
		if !have[l.Name] && l.Status != nil {
			fresh[l.Status.UIDValidity] = append(fresh[l.Status.UIDValidity], &list[i])
		}
	}
	gone := map[uint32][]*row.Mailbox{}
	for _, m := range boxes {
		if !listed[m.Name] && !m.NoSelect {
			gone[m.OnProduction()] = append(gone[m.OnProduction()], m)
		}
	}
	out := map[row.MailboxID]string{}
	for v, g := range gone {
		if f := fresh[v]; len(g) == 1 && len(f) == 1 && f[0].Status.UIDNext >= g[0].SyncedNext && v != 0 {
			out[g[0].ID] = f[0].Name
		}
	}
	return out
}
