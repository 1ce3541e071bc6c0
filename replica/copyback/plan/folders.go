package plan

import (
	"slices"
	"sort"
	"strings"

	"understudy/replica/row"
)

// Folder is a mailbox on production.
type Folder struct {
	Name                 string
	NoSelect, Subscribed bool
	UIDValidity          uint32 // 0: it was not told
}

// Folders are the mailboxes of an account, three times.
type Folders struct {
	Base, Standby []row.Mailbox
	Production    []Folder
	// Got are mailboxes of the base that clients deleted, and that have mail on
	// production which was not there at the takeover.
	Got map[row.MailboxID]bool
}

// FolderKind is what is done with a mailbox.
type FolderKind string

// The kinds.
const (
	Rename      FolderKind = "rename"
	Delete      FolderKind = "delete-mailbox"
	DropBase    FolderKind = "forget" // production has not got it, or keeps it
	Create      FolderKind = "create"
	Subscribe   FolderKind = "subscribe"
	Unsubscribe FolderKind = "unsubscribe"
)

// The reasons of what is done with mailboxes.
const (
	FolderRenamed Why = "a client renamed it"
	FolderAside   Why = "another one takes its name, and it has to move on"
	FolderDeleted Why = "a client deleted it"
	FolderGone    Why = "neither side has it"
	FolderGot     Why = "a client deleted it, but it got new mail on production: it stays"
	FolderOther   Why = "production has another one of that name: it stays"
	FolderLacks   Why = "production has not got it"
	FolderChanged Why = "a client changed its subscription"
	FolderLost    Why = "its subscription was lost with it"
)

// FolderStep is what is done with one mailbox.
type FolderStep struct {
	Do       FolderKind
	ID       row.MailboxID
	Name, To string // To: Rename
	NoSelect bool
	Sep      byte
	InBase   bool // Subscribe, Unsubscribe: the base has it, and notes it
	Why      Why
}

func (f Folders) find(name string) *Folder {
	for i := range f.Production {
		if f.Production[i].Name == name {
			return &f.Production[i]
		}
	}
	return nil
}

// Renames repeats renames, parents first; a parent's rename takes its children
// along. A name that is taken by a mailbox which has to move on, too, is freed
// first.
func Renames(f Folders) []FolderStep {
	r := renaming{was: map[row.MailboxID]string{}}
	for _, p := range f.Production {
		r.there = append(r.there, p.Name)
	}
	for _, b := range f.Base {
		r.was[b.ID] = b.Name
	}
	boxes := slices.Clone(f.Standby)
	sort.SliceStable(boxes, func(i, j int) bool { return len(boxes[i].Name) < len(boxes[j].Name) })
	for _, m := range boxes {
		from := r.was[m.ID]
		if from == "" || from == m.Name || !slices.Contains(r.there, from) {
			continue
		}
		if slices.Contains(r.there, m.Name) {
			i := slices.IndexFunc(boxes, func(o row.Mailbox) bool { return r.was[o.ID] == m.Name && o.Name != m.Name })
			if i < 0 {
				continue // production made one of that name by itself
			}
			aside := m.Name + "-moving"
			r.rename(boxes[i], m.Name, aside, FolderAside)
			r.was[boxes[i].ID] = aside
		}
		r.rename(m, from, m.Name, FolderRenamed)
	}
	return r.steps
}

// renaming follows the names on production.
type renaming struct {
	there []string
	was   map[row.MailboxID]string
	steps []FolderStep
}

func (r *renaming) rename(m row.Mailbox, from, to string, why Why) {
	r.steps = append(r.steps, FolderStep{Do: Rename, ID: m.ID, Name: from, To: to, Why: why})
	if strings.EqualFold(from, "INBOX") {
		r.there = append(r.there, to) // INBOX stays, empty (RFC 3501 section 6.3.5)
		return
	}
	for i, name := range r.there {
		if name == from {
			r.there[i] = to
		} else if rest, ok := strings.CutPrefix(name, from+string([]byte{m.Sep})); ok && m.Sep != 0 {
			r.there[i] = to + string([]byte{m.Sep}) + rest
		}
	}
}

// Renamed are the mailboxes of the base that production has under their new names:
// with their parents they may have been renamed, too.
func Renamed(f Folders) []row.Mailbox {
	var out []row.Mailbox
	for _, b := range f.Base {
		i := slices.IndexFunc(f.Standby, func(m row.Mailbox) bool { return m.ID == b.ID })
		if i >= 0 && b.Name != f.Standby[i].Name && f.find(f.Standby[i].Name) != nil {
			b.Name = f.Standby[i].Name
			out = append(out, b)
		}
	}
	return out
}

// Doubted are the mailboxes that Removals would delete, if Got does not tell that
// they have new mail.
func Doubted(f Folders) []row.Mailbox {
	return slices.DeleteFunc(f.gone(), func(b row.Mailbox) bool {
		p := f.find(b.Name)
		return p == nil || p.NoSelect || f.another(b, *p)
	})
}

// another reports whether a mailbox on production is not the one of the base.
func (f Folders) another(b row.Mailbox, p Folder) bool {
	return p.UIDValidity != 0 && p.UIDValidity != b.OnProduction() && !b.NoSelect
}

// gone are the mailboxes that clients deleted, children first.
func (f Folders) gone() []row.Mailbox {
	gone := slices.DeleteFunc(slices.Clone(f.Base), func(b row.Mailbox) bool {
		return slices.ContainsFunc(f.Standby, func(m row.Mailbox) bool { return m.ID == b.ID })
	})
	sort.SliceStable(gone, func(i, j int) bool { return len(gone[i].Name) > len(gone[j].Name) })
	return gone
}

// Removals delete mailboxes that a client deleted on the standby, if production
// holds nothing in them that the standby never saw.
func Removals(f Folders) []FolderStep {
	var out []FolderStep
	for _, b := range f.gone() {
		s := FolderStep{Do: Delete, ID: b.ID, Name: b.Name, NoSelect: b.NoSelect, Why: FolderDeleted}
		switch p := f.find(b.Name); {
		case f.Got[b.ID]:
			s.Do, s.Why = DropBase, FolderGot
		case p == nil || strings.EqualFold(b.Name, "INBOX") || p.NoSelect && !b.NoSelect:
			s.Do, s.Why = DropBase, FolderGone
		case f.another(b, *p):
			s.Do, s.Why = DropBase, FolderOther
		}
		out = append(out, s)
	}
	return out
}

// Additions make mailboxes that production lacks, those born on the standby and
// those that production has lost, and then repeat changes of subscriptions. What
// production made by itself stays.
func Additions(f Folders) []FolderStep {
	var out []FolderStep
	for _, m := range f.Standby {
		if p := f.find(m.Name); p == nil || !m.NoSelect && p.NoSelect {
			out = append(out, FolderStep{Do: Create, ID: m.ID, Name: m.Name, NoSelect: m.NoSelect, Sep: m.Sep,
				Why: FolderLacks})
		}
	}
	for _, m := range f.Standby {
		var b row.Mailbox
		i := slices.IndexFunc(f.Base, func(b row.Mailbox) bool { return b.ID == m.ID })
		if i >= 0 {
			b = f.Base[i]
		}
		p := f.find(m.Name)
		there := p != nil && p.Subscribed
		// On a mailbox that production has lost the subscription is lost, too.
		lost := p == nil || p.UIDValidity != 0 && p.UIDValidity != b.OnProduction()
		if i >= 0 && !lost && b.Subscribed == m.Subscribed || there == m.Subscribed {
			continue
		}
		s := FolderStep{Do: Unsubscribe, ID: m.ID, Name: m.Name, InBase: i >= 0, Why: FolderChanged}
		if m.Subscribed {
			s.Do = Subscribe
		}
		if lost {
			s.Why = FolderLost
		}
		out = append(out, s)
	}
	return out
}
