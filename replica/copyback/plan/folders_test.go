package plan

import (
	"fmt"
	"slices"
	"testing"

	"understudy/replica/row"
)

func box(id row.MailboxID, name string) row.Mailbox {
	return row.Mailbox{ID: id, Name: name, Sep: '/', UIDValidity: uint32(id), UIDNext: 10}
}

func folder(id uint32, name string) Folder { return Folder{Name: name, UIDValidity: id} }

func told(steps []FolderStep) (out []string) {
	for _, s := range steps {
		text := fmt.Sprintf("%s %s", s.Do, s.Name)
		if s.To != "" {
			text += " " + s.To
		}
		out = append(out, text)
	}
	return out
}

// E11: renames are repeated, parents first and with their children; names are freed.
func TestE11_Renames(t *testing.T) {
	for _, c := range []struct {
		name       string
		base, now  []row.Mailbox
		production []Folder
		want       []string
	}{
		{"none", []row.Mailbox{box(1, "A")}, []row.Mailbox{box(1, "A")}, []Folder{folder(1, "A")}, nil},
		{"with its child", []row.Mailbox{box(1, "A"), box(2, "A/x")}, []row.Mailbox{box(2, "B/x"), box(1, "B")},
			[]Folder{folder(1, "A"), folder(2, "A/x")}, []string{"rename A B"}},
		{"exchanged", []row.Mailbox{box(1, "A"), box(2, "B")}, []row.Mailbox{box(1, "B"), box(2, "A")},
			[]Folder{folder(1, "A"), folder(2, "B")}, []string{"rename B B-moving", "rename A B", "rename B-moving A"}},
		{"done before", []row.Mailbox{box(1, "A")}, []row.Mailbox{box(1, "B")}, []Folder{folder(1, "B")}, nil},
		{"production made one of that name", []row.Mailbox{box(1, "A")}, []row.Mailbox{box(1, "B")},
			[]Folder{folder(1, "A"), folder(9, "B")}, nil},
		{"made by the standby", nil, []row.Mailbox{box(1, "B")}, nil, nil},
	} {
		got := told(Renames(Folders{Base: c.base, Standby: c.now, Production: c.production}))
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// E11: only what a client deleted is deleted, and only if production holds nothing
// in it that the standby never saw.
func TestE11_Removals(t *testing.T) {
	in := Folders{Base: []row.Mailbox{box(1, "INBOX"), box(2, "A"), box(3, "A/x"), box(4, "got"), box(5, "gone"),
		box(6, "another"), box(7, "kept")}, Standby: []row.Mailbox{box(7, "kept")},
		Production: []Folder{folder(1, "INBOX"), folder(2, "A"), folder(3, "A/x"), folder(4, "got"),
			folder(99, "another"), folder(7, "kept"), folder(8, "own")},
		Got: map[row.MailboxID]bool{4: true}}
	want := map[row.MailboxID]FolderStep{
		1: {Do: DropBase, Why: FolderGone}, 2: {Do: Delete, Why: FolderDeleted}, 3: {Do: Delete, Why: FolderDeleted},
		4: {Do: DropBase, Why: FolderGot}, 5: {Do: DropBase, Why: FolderGone}, 6: {Do: DropBase, Why: FolderOther},
	}
	steps := Removals(in)
	for i, s := range steps {
		if w := want[s.ID]; s.Do != w.Do || s.Why != w.Why {
			t.Errorf("%+v, want %+v", s, w)
		}
		if s.ID == 2 && !slices.ContainsFunc(steps[:i], func(c FolderStep) bool { return c.ID == 3 }) {
			t.Error("a parent goes before its child")
		}
	}
	if len(steps) != len(want) {
		t.Errorf("%q", told(steps))
	}
	for _, b := range Doubted(in) {
		if want[b.ID].Do != Delete && want[b.ID].Why != FolderGot && b.ID != 1 {
			t.Errorf("%s is looked into", b.Name)
		}
	}
}

// E11: one without messages of its own on the standby, which is a mailbox on
// production, may have mail there.
func TestE11_RemovalOfNoSelect(t *testing.T) {
	b := row.Mailbox{ID: 1, Name: "A", Sep: '/', NoSelect: true}
	for _, f := range []Folder{folder(5, "A"), {Name: "A", NoSelect: true}} {
		in := Folders{Base: []row.Mailbox{b}, Production: []Folder{f}}
		if doubted := len(Doubted(in)) == 1; doubted == f.NoSelect {
			t.Errorf("%+v: looked into: %v", f, doubted)
		}
	}
}

// E11: mailboxes that production lacks are made, and subscriptions repeated.
func TestE11_Additions(t *testing.T) {
	sub := func(b row.Mailbox) row.Mailbox { b.Subscribed = true; return b }
	subscribed := func(f Folder) Folder { f.Subscribed = true; return f }
	in := Folders{
		Base: []row.Mailbox{sub(box(1, "off")), box(2, "on"), sub(box(3, "theirs")), sub(box(4, "lost"))},
		Standby: []row.Mailbox{box(1, "off"), sub(box(2, "on")), sub(box(3, "theirs")), sub(box(4, "lost")),
			sub(box(5, "new"))},
		Production: []Folder{subscribed(folder(1, "off")), folder(2, "on"), folder(3, "theirs"), folder(9, "own")},
	}
	got := told(Additions(in))
	want := []string{"create lost", "create new", "unsubscribe off", "subscribe on", "subscribe lost", "subscribe new"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
