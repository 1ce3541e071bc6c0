package imap

import (
	"slices"

	"understudy/proxy/seam"
	"understudy/replica/row"
	"understudy/snoop/imapsession"
)

// boxState identifies a state of a mailbox.
type boxState struct {
	UIDValidity, UIDNext uint32
	Exists               int
}

// view tells the UIDs of a mailbox in the state st that a side told of it, if
// sn, which the replica held before the mailbox was opened, proves them.
//
// The replica forgets a message only after production did: one that production
// had when it was opened, and that is older than the last sync, was in sn. So sn
// holds all of them, if every UID given since the last sync is in it, and no
// other, if there are as many. A snapshot that is taken later proves nothing: it
// may lack a message that was expunged since, and have one that was expunged
// unseen before.
func view(sn *row.Snapshot, side seam.Side, st boxState) (uids []uint32, ok bool) {
	if !same(sn, side, st) || sn.UIDNext != st.UIDNext || len(sn.UIDs) != st.Exists {
		return nil, false
	}
	if side == seam.Production {
		old, _ := slices.BinarySearch(sn.UIDs, sn.SyncedNext)
		if !sn.Synced || sn.SyncedNext == 0 || uint32(len(sn.UIDs)-old) != st.UIDNext-min(sn.SyncedNext, st.UIDNext) {
			return nil, false
		}
	}
	return sn.UIDs, true
}

// same reports whether sn is of the mailbox that a side opened.
func same(sn *row.Snapshot, side seam.Side, st boxState) bool {
	if sn == nil {
		return false
	}
	if side == seam.Production {
		return sn.OnProduction() == st.UIDValidity
	}
	return sn.UIDValidity == st.UIDValidity
}

// opens notes what the replica holds before a command opens a mailbox; mu is held.
func (s *session) opens(c *imapsession.Cmd) {
	if c.Verb == "SELECT" || c.Verb == "EXAMINE" {
		s.before[c] = s.srv.opt.Replica.Known(s.account, c.Mailbox)
	}
}

// seed gives the tracker the view of the mailbox that was opened, if it is certain.
func (s *session) seed(up *link, mailbox string, sn *row.Snapshot) {
	s.mu.Lock()
	box := s.track.Box
	st := boxState{UIDValidity: box.UIDValidity, UIDNext: box.UIDNext, Exists: len(box.View)}
	s.mu.Unlock()
	shown := s.shown(up, mailbox, st.UIDValidity)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.track.Box != box {
		return
	}
	box.Shown = shown
	if same(sn, up.lease.Side, st) {
		box.ModSeq = sn.ModSeq
	}
	if uids, ok := view(sn, up.lease.Side, st); ok {
		s.track.Seed(uids)
	}
}

// shown is the UIDVALIDITY that clients see of a mailbox.
func (s *session) shown(up *link, mailbox string, validity uint32) uint32 {
	if up.lease.Side == seam.Production {
		if v := s.srv.opt.Replica.Virtual(s.account, mailbox); v != 0 {
			return v
		}
	}
	return validity
}

// ahead returns the selected mailbox if the client was told UIDs of messages that
// the replica has not got yet: were production lost now, they would be gone.
func (s *session) ahead() (mailbox string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	box := s.track.Box
	if box == nil || len(box.View) == 0 {
		return ""
	}
	last := box.View[len(box.View)-1]
	if last <= box.Held {
		return ""
	}
	sn := s.srv.opt.Replica.Known(s.account, box.Name)
	if sn == nil || !sn.Synced || sn.OnProduction() != box.UIDValidity {
		return "" // it is still being copied
	}
	for i := len(box.View) - 1; i >= 0 && (box.View[i] == 0 || box.View[i] >= sn.SyncedNext); i-- {
		if u := box.View[i]; u > box.Held && sn.Find(u) == nil {
			box.Held = last
			return box.Name
		}
	}
	box.Held = last
	return ""
}
