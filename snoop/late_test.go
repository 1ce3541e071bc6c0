package snoop

import (
	"context"
	"log/slog"
	"slices"
	"testing"

	"understudy/replica/row"
)

// lateFake is a mailbox of a production that can be read, and what was expunged.
type lateFake struct {
	fake
	rows     []*row.Message
	expunged []uint32
}

func (f *lateFake) Snapshot(string, string) (*row.Snapshot, error) {
	sn := &row.Snapshot{Rows: f.rows}
	for _, m := range f.rows {
		sn.UIDs = append(sn.UIDs, m.UID)
	}
	return sn, nil
}
func (f *lateFake) SyncMailbox(context.Context, string, string) error { return nil }
func (f *lateFake) Expunge(_ context.Context, _, _ string, uids []uint32) error {
	f.expunged = uids
	return nil
}

// B5: a late copy is taken out while the one that the client was told of is there;
// what anybody was told of stays, whatever else is remembered.
func TestB5_LateCopies(t *testing.T) {
	same := row.Ref{Size: 7}
	for _, c := range []struct {
		name string
		uids []uint32 // of equal messages
		want []uint32
	}{
		{"one more, before or after", []uint32{10, 11, 12}, []uint32{10, 12}},
		{"none", []uint32{11}, nil},
		{"older than the command", []uint32{4, 11}, nil},
		{"its own was moved away, and one is back", []uint32{13}, nil},
		{"another client's", []uint32{11, 20}, nil},
	} {
		f := &lateFake{}
		for _, u := range c.uids {
			f.rows = append(f.rows, &row.Message{UID: u, Ref: same})
		}
		cache := New(Options{Mailboxes: f, Moves: f, Deliveries: f, Syncer: f, Log: slog.New(slog.DiscardHandler)})
		cache.told.add("a", "Filed", 20)
		if err := cache.dropLate(t.Context(),
			lateCopy{account: "a", mailbox: "Filed", told: map[uint32]row.Ref{11: same},
				mark: 10}); err != nil || !slices.Equal(f.expunged, c.want) {
			t.Errorf("%s: expunged %v, %v", c.name, f.expunged, err)
		}
	}
}
