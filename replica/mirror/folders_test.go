package mirror

import (
	"maps"
	"slices"
	"testing"

	"understudy/replica/imapc"
	"understudy/replica/row"
)

func listed(name string, validity, next uint32) imapc.Listed {
	return imapc.Listed{Name: name, Status: &imapc.Selected{UIDValidity: validity, UIDNext: next}}
}

// A mailbox that vanished is the one that appeared with its UIDVALIDITY, if nothing else could be meant.
func TestRenames(t *testing.T) {
	box := func(id row.MailboxID, name string, validity, next uint32) *row.Mailbox {
		return &row.Mailbox{ID: id, Name: name, UIDValidity: validity, SyncedNext: next}
	}
	folder := box(4, "folder", 0, 0)
	folder.NoSelect = true
	for _, c := range []struct {
		name string
		have []*row.Mailbox
		list []imapc.Listed
		want map[row.MailboxID]string
	}{
		{"nothing changed", []*row.Mailbox{box(1, "a", 7, 5)}, []imapc.Listed{listed("a", 7, 5)}, nil},
		{"renamed", []*row.Mailbox{box(1, "a", 7, 5)}, []imapc.Listed{listed("b", 7, 5)},
			map[row.MailboxID]string{1: "b"}},
		{"renamed, and mail came", []*row.Mailbox{box(1, "a", 7, 5)}, []imapc.Listed{listed("b", 7, 9)},
			map[row.MailboxID]string{1: "b"}},
		{"another one: fewer were ever in it", []*row.Mailbox{box(1, "a", 7, 5)}, []imapc.Listed{listed("b", 7, 4)},
			nil},
		{"another UIDVALIDITY", []*row.Mailbox{box(1, "a", 7, 5)}, []imapc.Listed{listed("b", 8, 5)}, nil},
		{"no UIDVALIDITY", []*row.Mailbox{box(1, "a", 0, 0)}, []imapc.Listed{listed("b", 0, 5)}, nil},
		{"the old one is there, too", []*row.Mailbox{box(1, "a", 7, 5)},
			[]imapc.Listed{listed("a", 7, 5), listed("b", 7, 5)}, nil},
		{"two could be meant", []*row.Mailbox{box(1, "a", 7, 5)},
			[]imapc.Listed{listed("b", 7, 5), listed("c", 7, 5)}, nil},
		{"two are gone", []*row.Mailbox{box(1, "a", 7, 5), box(2, "b", 7, 5)}, []imapc.Listed{listed("c", 7, 5)}, nil},
		{"two renames", []*row.Mailbox{box(1, "a", 7, 5), box(2, "b", 8, 5)},
			[]imapc.Listed{listed("y", 8, 5), listed("x", 7, 5)}, map[row.MailboxID]string{1: "x", 2: "y"}},
		{"a swap is none: both names are there", []*row.Mailbox{box(1, "a", 7, 5), box(2, "b", 8, 5)},
			[]imapc.Listed{listed("a", 8, 5), listed("b", 7, 5)}, nil},
		{"without a status", []*row.Mailbox{box(1, "a", 7, 5)}, []imapc.Listed{{Name: "b"}}, nil},
		{"a folder without mail", []*row.Mailbox{folder}, []imapc.Listed{listed("b", 0, 1)}, nil},
	} {
		if got := renames(c.have, c.list); !maps.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestAttrs(t *testing.T) {
	got := attrs(imapc.Listed{
		Attrs: []string{`\HasNoChildren`, `\Sent`, `\NoInferiors`, `\Subscribed`, `\Marked`, `\Junk`}})
	if want := []string{`\Sent`, `\Junk`}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// Mailboxes that were never copied come first, then large ones; otherwise the order stays.
func TestOrder(t *testing.T) {
	tasks := []row.Task{
		{Kind: "sync-mailbox", Mailbox: "s1", Total: 1}, {Kind: "copy-mailbox", Mailbox: "c5", Total: 5},
		{Kind: "sync-mailbox", Mailbox: "s9", Total: 9}, {Kind: "copy-mailbox", Mailbox: "c9", Total: 9},
		{Kind: "copy-mailbox", Mailbox: "c5b", Total: 5},
	}
	order(tasks)
	var got []string
	for _, t := range tasks {
		got = append(got, t.Mailbox)
	}
	if want := []string{"c9", "c5", "c5b", "s9", "s1"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// A mailbox is passed over only where its status proves that nothing changed.
func TestSame(t *testing.T) {
	sn := func(change func(*row.Snapshot)) *row.Snapshot {
		s := &row.Snapshot{Rows: []*row.Message{{UID: 1}, {UID: 2}}}
		s.Synced, s.SyncedModSeq, s.SyncedNext, s.UIDValidity = true, 40, 3, 7
		if change != nil {
			change(s)
		}
		return s
	}
	st := imapc.Selected{UIDValidity: 7, UIDNext: 3, Exists: 2, ModSeq: 40}
	if !same(sn(nil), &st) {
		t.Error("what is the same is not seen as such")
	}
	for name, change := range map[string]func(*row.Snapshot){
		"never copied whole":  func(s *row.Snapshot) { s.Synced = false },
		"flags changed":       func(s *row.Snapshot) { s.SyncedModSeq = 39 },
		"mail came":           func(s *row.Snapshot) { s.SyncedNext = 2 },
		"made anew":           func(s *row.Snapshot) { s.UIDValidity = 6 },
		"a message is gone":   func(s *row.Snapshot) { s.Rows = append(s.Rows, &row.Message{UID: 3}) },
		"one is not settled":  func(s *row.Snapshot) { s.Rows[1].Unsettled = true },
		"without any message": func(s *row.Snapshot) { s.Rows = nil },
	} {
		if same(sn(change), &st) {
			t.Errorf("%s: seen as the same", name)
		}
	}
	without := st
	without.ModSeq = 0
	if same(sn(func(s *row.Snapshot) { s.SyncedModSeq = 0 }), &without) {
		t.Error("without MODSEQ flags may have changed unseen")
	}
}
