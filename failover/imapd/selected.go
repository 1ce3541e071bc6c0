package imapd

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"understudy/replica/row"
	"understudy/snoop/imapwire"
)

// selected is a mailbox as this client was told it.
type selected struct {
	id       row.MailboxID
	name     string
	readOnly bool
	view     []*row.Message
	told     *row.Snapshot // the newest one that was compared
	keywords map[string]bool
}

// find returns the index of a UID in the view, or -1.
func (b *selected) find(uid uint32) int {
	i := sort.Search(len(b.view), func(i int) bool { return b.view[i].UID >= uid })
	if i < len(b.view) && b.view[i].UID == uid {
		return i
	}
	return -1
}

// indexes resolves a set to positions in the view.
func (b *selected) indexes(set imapwire.Set, byUID bool) ([]int, bool) {
	var out []int
	if !byUID {
		set = set.Resolve(uint32(len(b.view)))
		for _, r := range set {
			if r.From == 0 || int64(r.To) > int64(len(b.view)) {
				return nil, false
			}
		}
		for i := range b.view {
			if set.Contains(uint32(i + 1)) {
				out = append(out, i)
			}
		}
		return out, true
	}
	last := uint32(0)
	if n := len(b.view); n > 0 {
		last = b.view[n-1].UID
	}
	set = set.Resolve(last)
	for i, m := range b.view {
		if set.Contains(m.UID) {
			out = append(out, i)
		}
	}
	return out, true
}

func (b *selected) uids(idx []int) []uint32 {
	out := make([]uint32, len(idx))
	for i, n := range idx {
		out[i] = b.view[n].UID
	}
	return out
}

func (s *session) selectBox(c *command) {
	a, _ := c.Args.(imapwire.SelectArgs)
	if c.args.Accept(' ') {
		c.args.List(func() {
			if p := strings.ToUpper(c.args.Atom()); p == "CONDSTORE" {
				s.condstore = true
			} else {
				c.args.Failf("unknown parameter %s", p)
			}
		})
	}
	if s.bad(c) {
		return
	}
	if s.sel != nil {
		s.sel = nil
		s.line("* OK [CLOSED] Previous mailbox closed.")
	}
	sn, err := s.opt.Store.Snapshot(s.User, a.Mailbox)
	if err != nil {
		s.fail(c, err)
		return
	}
	if sn.NoSelect {
		s.no(c, "[NONEXISTENT] Mailbox cannot be selected")
		return
	}
	b := &selected{id: sn.ID, name: sn.Name, readOnly: c.Verb == imapwire.Examine, view: slices.Clone(sn.Rows),
		told: sn, keywords: map[string]bool{}}
	for _, m := range sn.Rows {
		b.note(m.Flags)
	}
	s.sel = b
	s.line("* FLAGS %s", imapwire.FormatFlags(b.flags()))
	perm := "()"
	if !b.readOnly {
		perm = imapwire.FormatFlags(append(b.flags(), `\*`))
	}
	s.line("* OK [PERMANENTFLAGS %s] Flags permitted.", perm)
	s.line("* %d EXISTS", len(sn.Rows))
	s.line("* 0 RECENT")
	for i, m := range sn.Rows {
		if !m.HasFlag(`\Seen`) {
			s.line("* OK [UNSEEN %d] First unseen.", i+1)
			break
		}
	}
	s.line("* OK [UIDVALIDITY %d] UIDs valid", sn.UIDValidity)
	s.line("* OK [UIDNEXT %d] Predicted next UID", sn.UIDNext)
	s.line("* OK [HIGHESTMODSEQ %d] Highest", max(sn.ModSeq, 1))
	if b.readOnly {
		s.ok(c, "[READ-ONLY] Examine completed")
	} else {
		s.ok(c, "[READ-WRITE] Select completed")
	}
}

var systemFlags = []string{`\Answered`, `\Flagged`, `\Deleted`, `\Seen`, `\Draft`}

func (b *selected) flags() []string {
	var kw []string
	for k := range b.keywords {
		kw = append(kw, k)
	}
	sort.Strings(kw)
	return append(slices.Clone(systemFlags), kw...)
}

// note remembers keywords, and reports whether one was new.
func (b *selected) note(flags []string) (added bool) {
	for _, f := range flags {
		if !strings.HasPrefix(f, `\`) && !b.keywords[f] {
			b.keywords[f], added = true, true
		}
	}
	return added
}

// tell writes what has changed since the client was last told: with expunge
// everything, without it what may come at any time.
func (s *session) tell(expunge bool) {
	b := s.sel
	if b == nil {
		return
	}
	sn, err := s.opt.Store.SnapshotByID(s.User, b.id)
	if err != nil {
		s.line("* BYE Mailbox was deleted")
		s.bye = true
		return
	}
	if sn == b.told {
		return
	}
	if expunge {
		for i := len(b.view) - 1; i >= 0; i-- {
			if sn.Find(b.view[i].UID) == nil {
				b.view = slices.Delete(b.view, i, i+1)
				s.line("* %d EXPUNGE", i+1)
			}
		}
		b.told = sn
	}
	last := uint32(0)
	if n := len(b.view); n > 0 {
		last = b.view[n-1].UID
	}
	before := len(b.view)
	b.view = append(b.view, sn.Rows[sort.Search(len(sn.UIDs), func(i int) bool { return sn.UIDs[i] > last }):]...)
	if len(b.view) > before {
		s.line("* %d EXISTS", len(b.view))
		s.line("* 0 RECENT")
	}
	s.tellFlags(sn, before)
}

func (s *session) tellFlags(sn *row.Snapshot, upTo int) {
	b := s.sel
	j := 0
	for i := 0; i < upTo; i++ {
		old := b.view[i]
		for j < len(sn.Rows) && sn.Rows[j].UID < old.UID {
			j++
		}
		if j == len(sn.Rows) || sn.Rows[j].UID != old.UID || sn.Rows[j] == old {
			continue
		}
		now := sn.Rows[j]
		b.view[i] = now
		if !slices.Equal(old.Flags, now.Flags) || s.condstore && old.ModSeq != now.ModSeq {
			s.flagLine(i, now, false)
		}
	}
}

// flagLine writes a FETCH with the flags of a message.
func (s *session) flagLine(i int, m *row.Message, withUID bool) {
	if s.sel.note(m.Flags) {
		s.line("* FLAGS %s", imapwire.FormatFlags(s.sel.flags()))
	}
	items := "FLAGS " + imapwire.FormatFlags(m.Flags)
	if withUID || s.condstore {
		items = fmt.Sprintf("UID %d %s", m.UID, items)
	}
	if s.condstore {
		items += fmt.Sprintf(" MODSEQ (%d)", max(m.ModSeq, 1))
	}
	s.line("* %d FETCH (%s)", i+1, items)
}

func (s *session) closeBox(c *command) {
	if s.bad(c) {
		return
	}
	if c.Verb == imapwire.Close && !s.sel.readOnly {
		if err := s.opt.Store.Expunge(s.work, s.User, s.sel.id, nil); err != nil {
			s.fail(c, err)
			return
		}
	}
	s.sel = nil
	s.ok(c, "%s completed", c.Verb)
}

// writable answers NO in a mailbox that is open for reading only.
func (s *session) writable(c *command) bool {
	if s.sel.readOnly {
		s.no(c, "[READ-ONLY] Mailbox is open for reading only")
	}
	return !s.sel.readOnly
}

func (s *session) expunge(c *command) {
	var only []uint32
	if c.ByUID {
		a, _ := c.Args.(imapwire.SetArgs)
		if s.bad(c) {
			return
		}
		idx, _ := s.sel.indexes(a.Set, true)
		only = append([]uint32{}, s.sel.uids(idx)...)
	}
	if s.bad(c) || !s.writable(c) {
		return
	}
	if err := s.opt.Store.Expunge(s.work, s.User, s.sel.id, only); err != nil {
		s.fail(c, err)
		return
	}
	s.tell(true)
	if s.condstore {
		s.ok(c, "[HIGHESTMODSEQ %d] Expunge completed", max(s.sel.told.ModSeq, 1))
		return
	}
	s.ok(c, "Expunge completed")
}

func (s *session) store(c *command) {
	a, _ := c.Args.(imapwire.StoreArgs)
	s.condstore = s.condstore || a.Conditional
	ch := row.FlagChange{Mailbox: s.sel.id, Op: row.FlagOp(a.Op), Flags: a.Flags, UnchangedSince: a.UnchangedSince}
	idx, ok := s.sel.indexes(a.Set, c.ByUID)
	if !ok {
		c.args.Failf("no such message")
	}
	if s.bad(c) || !s.writable(c) {
		return
	}
	ch.UIDs = s.sel.uids(idx)
	modified, err := s.opt.Store.SetFlags(s.work, s.User, ch)
	if err != nil {
		s.fail(c, err)
		return
	}
	s.afterStore(c, idx, a.Silent)
	s.tell(c.ByUID)
	if len(modified) > 0 {
		nums := modified
		if !c.ByUID {
			nums = nil
			for _, u := range modified {
				nums = append(nums, uint32(s.sel.find(u)+1))
			}
		}
		s.ok(c, "[MODIFIED %s] Conditional store failed", imapwire.FormatSet(nums))
		return
	}
	s.ok(c, "Store completed")
}

// afterStore answers a STORE, message by message.
func (s *session) afterStore(c *command, idx []int, silent bool) {
	sn, err := s.opt.Store.SnapshotByID(s.User, s.sel.id)
	if err != nil {
		return
	}
	for _, i := range idx {
		now := sn.Find(s.sel.view[i].UID)
		if now == nil {
			continue
		}
		old := s.sel.view[i]
		s.sel.view[i] = now
		switch {
		case !silent:
			s.flagLine(i, now, c.ByUID)
		case s.condstore && old.ModSeq != now.ModSeq:
			s.line("* %d FETCH (UID %d MODSEQ (%d))", i+1, now.UID, max(now.ModSeq, 1))
		}
	}
}

func (s *session) copy(c *command) {
	a, _ := c.Args.(imapwire.CopyArgs)
	idx, ok := s.sel.indexes(a.Set, c.ByUID)
	if !ok {
		c.args.Failf("no such message")
	}
	move := c.Verb == imapwire.Move
	if s.bad(c) || move && !s.writable(c) {
		return
	}
	what := row.CopyCmd{From: s.sel.id, UIDs: s.sel.uids(idx), To: a.Target, Move: move}
	got, err := s.opt.Store.Copy(s.work, s.User, what)
	if err != nil {
		if code := s.opt.Store.Code(err); code == "NONEXISTENT" {
			s.no(c, "[TRYCREATE] Mailbox doesn't exist: %s", oneLine(a.Target))
			return
		}
		s.fail(c, err)
		return
	}
	code := ""
	if len(got.Src) > 0 {
		code = fmt.Sprintf("[COPYUID %d %s %s] ", got.UIDValidity, imapwire.FormatOrdered(got.Src),
			imapwire.FormatOrdered(got.Dst))
	}
	if move {
		if code != "" {
			s.line("* OK %sMoved UIDs.", code)
		}
		s.tell(true)
		s.ok(c, "Move completed")
		return
	}
	s.tell(true)
	s.ok(c, "%sCopy completed", code)
}
