package copyback

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"

	"understudy/replica/imapc"
	"understudy/replica/row"
	"understudy/replica/store"
)

// folders makes production's mailboxes those of the standby: renames, then new
// ones, then deletions, then subscriptions. What production made by itself
// stays.
func (a *account) folders(base []row.Mailbox) error {
	list, err := a.c.List()
	if err != nil {
		return err
	}
	boxes, err := a.opt.Store.Mailboxes(a.name)
	if err != nil {
		return err
	}
	if err := a.renames(base, boxes, &list); err != nil {
		return err
	}
	if err := a.remove(base, boxes, list); err != nil {
		return err
	}
	if list, err = a.c.List(); err != nil {
		return err
	}
	if err := a.create(boxes, list); err != nil {
		return err
	}
	return a.subscriptions(base, boxes, list)
}

func find(list []imapc.Listed, name string) *imapc.Listed {
	for i := range list {
		if list[i].Name == name {
			return &list[i]
		}
	}
	return nil
}

// renames repeats renames, parents first; a parent's rename takes its children
// along. A name that is taken by a mailbox which has to move on, too, is freed
// first.
func (a *account) renames(base []row.Mailbox, boxes []row.Mailbox, list *[]imapc.Listed) error {
	was := map[row.MailboxID]string{}
	for _, b := range base {
		was[b.ID] = b.Name
	}
	sort.Slice(boxes, func(i, j int) bool { return len(boxes[i].Name) < len(boxes[j].Name) })
	for _, m := range boxes {
		from := was[m.ID]
		if from == "" || from == m.Name || find(*list, from) == nil {
			continue
		}
		if find(*list, m.Name) != nil {
			i := slices.IndexFunc(boxes, func(o row.Mailbox) bool { return was[o.ID] == m.Name && o.Name != m.Name })
			if i < 0 {
				continue // production made one of that name by itself
			}
			aside := m.Name + "-moving"
			if err := a.rename(m.Name, aside, list); err != nil {
				return err
			}
			was[boxes[i].ID] = aside
		}
		if err := a.rename(from, m.Name, list); err != nil {
			return err
		}
	}
	return a.opt.Store.Rebase(a.ctx, a.name, func(tx *store.Tx) {
		for _, b := range base {
			if m := tx.BoxByID(b.ID); m != nil && b.Name != m.Name && find(*list, m.Name) != nil {
				b.Name = m.Name
				tx.SetBaseBox(b)
			}
		}
	})
}

func (a *account) rename(from, to string, list *[]imapc.Listed) error {
	if _, err := a.c.Do("RENAME "+a.c.Name(from)+" "+a.c.Name(to), nil); err != nil {
		return fmt.Errorf("rename %s to %s: %w", from, to, err)
	}
	a.count(func(r *Report) { r.Renamed++ })
	a.task("rename", to, 0)
	var err error
	*list, err = a.c.List()
	return err
}

// create makes mailboxes that production lacks: those born on the standby, and
// those that production has lost.
func (a *account) create(boxes []row.Mailbox, list []imapc.Listed) error {
	for _, m := range boxes {
		if l := find(list, m.Name); l != nil && (m.NoSelect || !l.NoSelect()) {
			continue
		}
		name := m.Name
		if m.NoSelect && m.Sep != 0 {
			name += string([]byte{m.Sep})
		}
		_, err := a.c.Do("CREATE "+a.c.Name(name), nil)
		var no *imapc.NoError
		if errors.As(err, &no) && (no.Code == "ALREADYEXISTS" || m.NoSelect) {
			err = nil
		}
		if err != nil {
			return fmt.Errorf("create %s: %w", m.Name, err)
		}
		a.count(func(r *Report) { r.Created++ })
		a.task("create", m.Name, 0)
	}
	return nil
}

// remove deletes mailboxes that a client deleted on the standby, if production
// holds nothing in them that the standby never saw.
func (a *account) remove(base []row.Mailbox, boxes []row.Mailbox, list []imapc.Listed) error {
	var gone []row.Mailbox
	for _, b := range base {
		if !slices.ContainsFunc(boxes, func(m row.Mailbox) bool { return m.ID == b.ID }) {
			gone = append(gone, b)
		}
	}
	// Children first.
	sort.Slice(gone, func(i, j int) bool { return len(gone[i].Name) > len(gone[j].Name) })
	for _, b := range gone {
		l := find(list, b.Name)
		if l != nil && !b.NoSelect && l.Status != nil && l.Status.UIDValidity == b.OnProduction() {
			ok, err := a.onlyKnown(b)
			if err != nil {
				return err
			}
			if !ok {
				a.note("mailbox %s of %s was deleted by a client, but got new mail on production: it stays", b.Name, a.name)
				l = nil
			}
		}
		if l != nil && !strings.EqualFold(b.Name, "INBOX") {
			_, err := a.c.Do("DELETE "+a.c.Name(b.Name), nil)
			var no *imapc.NoError
			if err != nil && !(errors.As(err, &no) && (b.NoSelect || no.Code == "NONEXISTENT")) {
				return fmt.Errorf("delete %s: %w", b.Name, err)
			}
			a.count(func(r *Report) { r.Removed++ })
			a.task("delete-mailbox", b.Name, 0)
		}
		if err := a.opt.Store.Rebase(a.ctx, a.name, func(tx *store.Tx) { tx.DropBaseBox(b.ID) }); err != nil {
			return err
		}
	}
	return nil
}

// onlyKnown reports whether every message of a mailbox was there at the takeover.
func (a *account) onlyKnown(b row.Mailbox) (bool, error) {
	if _, err := a.c.Select(b.Name, true); err != nil {
		return false, err
	}
	uids, err := a.c.SearchAll()
	if err != nil {
		return false, err
	}
	return !slices.ContainsFunc(uids, func(u uint32) bool { return u >= b.UIDNext }), a.c.Leave()
}

// subscriptions repeats changes of subscriptions.
func (a *account) subscriptions(base []row.Mailbox, boxes []row.Mailbox, list []imapc.Listed) error {
	was := map[row.MailboxID]row.Mailbox{}
	for _, b := range base {
		was[b.ID] = b
	}
	for _, m := range boxes {
		b, old := was[m.ID]
		l := find(list, m.Name)
		there := l != nil && l.Subscribed
		// On a mailbox that production has lost the subscription is lost, too.
		lost := l == nil || l.Status != nil && l.Status.UIDValidity != b.OnProduction()
		if old && !lost && b.Subscribed == m.Subscribed || there == m.Subscribed {
			continue
		}
		cmd := "UNSUBSCRIBE "
		if m.Subscribed {
			cmd = "SUBSCRIBE "
		}
		if _, err := a.c.Do(cmd+a.c.Name(m.Name), nil); err != nil {
			return err
		}
		a.task("subscribe", m.Name, 0)
		if old {
			b.Subscribed = m.Subscribed
			if err := a.opt.Store.Rebase(a.ctx, a.name, func(tx *store.Tx) { tx.SetBaseBox(b) }); err != nil {
				return err
			}
		}
	}
	return nil
}
