package imap

import (
	"bufio"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"understudy/proxy/seam"
	"understudy/proxy/upstream"
	"understudy/replica/row"
)

// A view is certain only where the replica cannot lack what production had.
func TestView(t *testing.T) {
	for _, c := range []struct {
		name string
		sn   *row.Snapshot
		side seam.Side
		st   boxState
		ok   bool
	}{
		{"unknown mailbox", nil, seam.Production, boxState{1, 1, 0}, false},
		{"as at the last sync", snapshot(10, 10, 1, 2, 9), seam.Production, boxState{7, 10, 3}, true},
		{"one fewer on production", snapshot(10, 10, 1, 2, 9), seam.Production, boxState{7, 10, 2}, false},
		{"one more than known", snapshot(10, 10, 1, 2, 9), seam.Production, boxState{7, 11, 4}, false},
		{"another mailbox", snapshot(10, 10, 1, 2, 9), seam.Production, boxState{8, 10, 3}, false},
		{"appended through the box since", snapshot(10, 12, 1, 10, 11), seam.Production, boxState{7, 12, 3}, true},
		{"one in between was not seen, and an old one is gone", snapshot(10, 12, 1, 2, 11), seam.Production, boxState{7, 12, 3}, false},
		{"never copied whole", snapshot(0, 3, 1, 2), seam.Production, boxState{7, 3, 2}, false},
		{"the standby knows itself", snapshot(0, 12, 1, 2, 11), seam.Standby, boxState{7, 12, 3}, true},
		{"the standby went on", snapshot(0, 12, 1, 2, 11), seam.Standby, boxState{7, 13, 3}, false},
	} {
		uids, ok := view(c.sn, c.side, c.st)
		if ok != c.ok || ok && !slices.Equal(uids, c.sn.UIDs) {
			t.Errorf("%s: %v %v", c.name, uids, ok)
		}
	}
}

func snapshot(synced, next uint32, uids ...uint32) *row.Snapshot {
	return &row.Snapshot{Mailbox: row.Mailbox{UIDValidity: 7, UIDNext: next, SyncedNext: synced, Synced: synced > 0}, UIDs: uids}
}

// B2: Cyrus leaves a message that another session has expunged out of a search
// while it still numbers it; the list is taken when both agree.
func TestB2_SearchAheadOfNumbers(t *testing.T) {
	ours, theirs := net.Pipe()
	defer func() { _ = ours.Close() }()
	go func() {
		defer func() { _ = theirs.Close() }()
		answers := map[string][]string{
			"UID SEARCH ALL": {"* SEARCH 9 4", "* SEARCH 9 4\r\n* 3 EXISTS", "* SEARCH 11 9 4"},
			"NOOP":           {"* 2 EXPUNGE", "* OK still here"},
		}
		for r := bufio.NewScanner(theirs); r.Scan(); {
			tag, text, _ := strings.Cut(r.Text(), " ")
			if len(answers[text]) == 0 {
				return
			}
			_, _ = fmt.Fprintf(theirs, "%s\r\n%s OK done\r\n", answers[text][0], tag)
			answers[text] = answers[text][1:]
		}
	}()
	ic := upstream.NewIMAP(ours, nil)
	if uids, err := listUIDs(ic, 3); err != nil || !slices.Equal(uids, []uint32{4, 9, 11}) {
		t.Errorf("%v, %v", uids, err)
	}
}
