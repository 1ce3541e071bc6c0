package imapsession

import (
	"slices"
	"testing"

	"understudy/replica/row"
)

// A view is certain only where the replica cannot lack what production had.
func TestProves(t *testing.T) {
	for _, c := range []struct {
		name       string
		sn         *row.Snapshot
		production bool
		st         BoxState
		ok         bool
	}{
		{"unknown mailbox", nil, true, BoxState{1, 1, 0}, false},
		{"as at the last sync", snapshot(10, 10, 1, 2, 9), true, BoxState{7, 10, 3}, true},
		{"one fewer on production", snapshot(10, 10, 1, 2, 9), true, BoxState{7, 10, 2}, false},
		{"one more than known", snapshot(10, 10, 1, 2, 9), true, BoxState{7, 11, 4}, false},
		{"another mailbox", snapshot(10, 10, 1, 2, 9), true, BoxState{8, 10, 3}, false},
		{"appended through the box since", snapshot(10, 12, 1, 10, 11), true, BoxState{7, 12, 3}, true},
		{"one in between was not seen, and an old one is gone", snapshot(10, 12, 1, 2, 11), true, BoxState{7, 12, 3},
			false},
		{"never copied whole", snapshot(0, 3, 1, 2), true, BoxState{7, 3, 2}, false},
		{"the standby knows itself", snapshot(0, 12, 1, 2, 11), false, BoxState{7, 12, 3}, true},
		{"the standby went on", snapshot(0, 12, 1, 2, 11), false, BoxState{7, 13, 3}, false},
	} {
		uids, ok := Proves(c.sn, c.production, c.st)
		if ok != c.ok || ok && !slices.Equal(uids, c.sn.UIDs) {
			t.Errorf("%s: %v %v", c.name, uids, ok)
		}
	}
}

func snapshot(synced, next uint32, uids ...uint32) *row.Snapshot {
	return &row.Snapshot{Mailbox: row.Mailbox{UIDValidity: 7, UIDNext: next, SyncedNext: synced, Synced: synced > 0},
		UIDs: uids}
}
