package copyback

import (
	"errors"
	"fmt"
	"slices"

	"understudy/replica/copyback/plan"
	"understudy/replica/imapc"
	"understudy/replica/row"
)

// folders makes production's mailboxes those of the standby: renames, then
// deletions, then new ones and subscriptions. What production made by itself stays.
func (a *account) folders() error {
	var f plan.Folders
	// The standby is read once: a mailbox that a client renames in between would be
	// missed on production under its new name, and be made there beside the old one.
	var err error
	if f.Standby, err = a.opt.Store.Mailboxes(a.name); err != nil {
		return err
	}
	stale := true
	for _, stage := range []func(*plan.Folders) ([]plan.FolderStep, error){
		func(f *plan.Folders) ([]plan.FolderStep, error) { return plan.Renames(*f), nil },
		a.removals,
		func(f *plan.Folders) ([]plan.FolderStep, error) { return plan.Additions(*f), nil },
	} {
		if stale {
			if err := a.gatherFolders(&f); err != nil {
				return err
			}
		}
		todo, err := stage(&f)
		if err != nil {
			return err
		}
		stale = len(todo) > 0
		for _, s := range todo {
			if err := a.folderStep(s); err != nil {
				return fmt.Errorf("%s %s: %w", s.Do, s.Name, err)
			}
		}
	}
	return nil
}

func (a *account) gatherFolders(f *plan.Folders) (err error) {
	*f = plan.Folders{Standby: f.Standby}
	if f.Base, err = a.opt.Store.BaseBoxes(a.name); err != nil {
		return err
	}
	list, err := a.c.List()
	for _, l := range list {
		p := plan.Folder{Name: l.Name, NoSelect: l.NoSelect(), Subscribed: l.Subscribed}
		if l.Status != nil {
			p.UIDValidity = l.Status.UIDValidity
		}
		f.Production = append(f.Production, p)
	}
	return err
}

// removals notes where mailboxes are now, and looks into those that would go.
func (a *account) removals(f *plan.Folders) ([]plan.FolderStep, error) {
	if renamed := plan.Renamed(*f); len(renamed) > 0 {
		err := a.opt.Store.Rebase(a.ctx, a.name, func(tx *Tx) {
			for _, b := range renamed {
				tx.SetBaseBox(b)
			}
		})
		if err != nil {
			return nil, err
		}
	}
	f.Got = map[row.MailboxID]bool{}
	for _, b := range plan.Doubted(*f) {
		got, err := a.gotMail(b)
		if err != nil {
			return nil, err
		}
		f.Got[b.ID] = got
	}
	return plan.Removals(*f), nil
}

// gotMail reports whether a mailbox has a message that the standby never had. Numbers
// do not tell: UIDNEXT of the base is moved along past what waits there to be taken.
func (a *account) gotMail(b row.Mailbox) (bool, error) {
	had, err := a.opt.Store.BaseRows(a.name, b.ID)
	if err != nil {
		return false, err
	}
	if _, err := a.c.Select(b.Name, true); err != nil {
		return false, err
	}
	uids, err := a.c.SearchAll()
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(uids, func(u uint32) bool { return had[u] == nil }), a.c.Leave()
}

func (a *account) folderStep(s plan.FolderStep) error {
	var err error
	switch s.Do {
	case plan.Rename:
		_, err = a.c.Do("RENAME "+a.c.Name(s.Name)+" "+a.c.Name(s.To), nil)
		a.count(func(r *Report) { r.Renamed++ })
	case plan.Delete:
		_, err = a.c.Do("DELETE "+a.c.Name(s.Name), nil)
		if refusedWith(err, "NONEXISTENT", s.NoSelect) {
			err = nil
		}
		a.count(func(r *Report) { r.Removed++ })
	case plan.DropBase:
		if s.Why != plan.FolderGone {
			a.tell("mailbox %s of %s: %s", s.Name, a.name, s.Why)
		}
	case plan.Create:
		name := s.Name
		if s.NoSelect && s.Sep != 0 {
			name += string([]byte{s.Sep})
		}
		_, err = a.c.Do("CREATE "+a.c.Name(name), nil)
		if refusedWith(err, "ALREADYEXISTS", s.NoSelect) {
			err = nil
		}
		a.count(func(r *Report) { r.Created++ })
	case plan.Subscribe:
		_, err = a.c.Do("SUBSCRIBE "+a.c.Name(s.Name), nil)
	case plan.Unsubscribe:
		_, err = a.c.Do("UNSUBSCRIBE "+a.c.Name(s.Name), nil)
	}
	if err != nil {
		return err
	}
	a.folderTask(s)
	return a.folderBase(s)
}

// refusedWith reports whether a command was refused with a code, or in any way.
func refusedWith(err error, code string, any bool) bool {
	var no *imapc.NoError
	return errors.As(err, &no) && (any || no.Code == code)
}

func (a *account) folderTask(s plan.FolderStep) {
	switch s.Do {
	case plan.Rename:
		a.task(string(s.Do), s.To, 0, s.Why)
	case plan.Subscribe, plan.Unsubscribe:
		a.task(string(plan.Subscribe), s.Name, 0, s.Why)
	case plan.Delete, plan.Create:
		a.task(string(s.Do), s.Name, 0, s.Why)
	}
}

// folderBase moves the base along with a step. That of renames comes when it is
// seen which mailboxes they took along.
func (a *account) folderBase(s plan.FolderStep) error {
	switch s.Do {
	case plan.Delete, plan.DropBase:
		return a.opt.Store.Rebase(a.ctx, a.name, func(tx *Tx) { tx.DropBaseBox(s.ID) })
	case plan.Subscribe, plan.Unsubscribe:
		if !s.InBase {
			return nil
		}
		base, err := a.opt.Store.BaseBoxes(a.name)
		if err != nil {
			return err
		}
		return a.opt.Store.Rebase(a.ctx, a.name, func(tx *Tx) {
			for _, b := range base {
				if b.ID == s.ID {
					b.Subscribed = s.Do == plan.Subscribe
					tx.SetBaseBox(b)
				}
			}
		})
	}
	return nil
}
