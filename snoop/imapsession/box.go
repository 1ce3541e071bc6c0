package imapsession

import (
	"slices"

	"understudy/replica/row"
	"understudy/snoop/imapwire"
)

// Box is a selected mailbox as the client sees it.
type Box struct {
	Name        string
	ReadOnly    bool
	UIDValidity uint32 // as the server told it
	Shown       uint32 // as the client was told it
	UIDNext     uint32
	ModSeq      uint64   // of the replica, up to which the client was told flags; 0 if not known
	View        []uint32 // UID of each number, 0 where it is not known
	Held        uint32   // up to this UID the replica was seen to have what the client knows
	blind       bool     // data was told of a message whose UID is not known
	shared      bool     // View belongs to somebody else: copy before a change
}

// BoxState identifies a state of a mailbox.
type BoxState struct {
	UIDValidity, UIDNext uint32
	Exists               int
}

// Proves tells the UIDs of a mailbox in the state st that production or the
// standby told of it, if sn, which the replica held before the mailbox was opened,
// proves them.
//
// The replica forgets a message only after production did: one that production
// had when it was opened, and that is older than the last sync, was in sn. So sn
// holds all of them, if every UID given since the last sync is in it, and no
// other, if there are as many. A snapshot that is taken later proves nothing: it
// may lack a message that was expunged since, and have one that was expunged
// unseen before.
func Proves(sn *row.Snapshot, production bool, st BoxState) (uids []uint32, ok bool) {
	if !Same(sn, production, st) || sn.UIDNext != st.UIDNext || len(sn.UIDs) != st.Exists {
		return nil, false
	}
	if production {
		old, _ := slices.BinarySearch(sn.UIDs, sn.SyncedNext)
		if !sn.Synced || sn.SyncedNext == 0 || uint32(len(sn.UIDs)-old) != st.UIDNext-min(sn.SyncedNext, st.UIDNext) {
			return nil, false
		}
	}
	return sn.UIDs, true
}

// Same reports whether sn is of the mailbox that production or the standby opened.
func Same(sn *row.Snapshot, production bool, st BoxState) bool {
	if sn == nil {
		return false
	}
	if production {
		return sn.OnProduction() == st.UIDValidity
	}
	return sn.UIDValidity == st.UIDValidity
}

// own makes View this box's own before it is changed.
func (b *Box) own() {
	if b.shared {
		b.View, b.shared = slices.Clone(b.View), false
	}
}

// seed gives the view of a mailbox that has just been selected. The slice stays the
// caller's and is not changed.
func (b *Box) seed(uids []uint32) {
	if len(uids) == len(b.View) {
		b.View, b.shared = uids, true
	}
}

// forget takes a message out that the client is being told is gone.
func (b *Box) forget(n int) {
	b.own()
	b.View = slices.Delete(b.View, n-1, n)
}

// grow adds messages.
func (b *Box) grow(uids []uint32) {
	b.own()
	b.View = append(b.View, uids...)
}

// appended gives the message that was told last its UID, if it can be no other.
func (b *Box) appended(arg []byte) {
	r := imapwire.NewReader(arg)
	validity := r.Number32()
	r.SP()
	uid := r.Number32()
	n := len(b.View)
	if r.Err() != nil || validity != b.UIDValidity || n == 0 || b.View[n-1] != 0 {
		return
	}
	if n == 1 || b.View[n-2] != 0 && b.View[n-2] < uid {
		b.own()
		b.View[n-1] = uid
	}
}

// Fill finds the UIDs that the view lacks among those of another server's view
// of the same mailbox. Where the client was told no more than that there is a
// message at that place, with some flags, any that can be there will do; one
// that is left over keeps the UID 0 and is gone. It returns the UIDs that it
// found, and fails where more was told and the choice would be a guess.
func (b *Box) Fill(server []uint32) (filled []uint32, err error) {
	if !slices.Contains(b.View, 0) {
		return nil, nil
	}
	b.own()
	for i := 0; i < len(b.View); i++ {
		if b.View[i] != 0 {
			continue
		}
		j, low, high := i, uint32(0), ^uint32(0)
		for j < len(b.View) && b.View[j] == 0 {
			j++
		}
		if i > 0 {
			low = b.View[i-1]
		}
		if j < len(b.View) {
			high = b.View[j]
		}
		from, _ := slices.BinarySearch(server, low+1)
		to, _ := slices.BinarySearch(server, high)
		if n := to - from; n != j-i && b.blind {
			return nil, notAdoptable("%d messages without a known UID, and %d to choose from", j-i, n)
		}
		n := copy(b.View[i:j], server[from:to])
		filled = append(filled, b.View[i:i+n]...)
		i = j
	}
	return filled, nil
}

// uids resolves a set; unknown tells that not all of it could be.
func (b *Box) uids(set imapwire.Set, byUID bool) (uids []uint32, unknown bool) {
	last := uint32(len(b.View))
	if byUID {
		last = 0
		if n := len(b.View); n > 0 {
			last = b.View[n-1]
		}
		for _, r := range set {
			unknown = unknown || last == 0 && (r.From == imapwire.Star || r.To == imapwire.Star) && len(b.View) > 0
		}
	}
	set = set.Resolve(last)
	if byUID {
		if set.Size() <= 1000 {
			uids, _ = set.Numbers(1000)
			return uids, unknown
		}
		for _, u := range b.View {
			if u == 0 {
				unknown = true
			} else if set.Contains(u) {
				uids = append(uids, u)
			}
		}
		return uids, unknown
	}
	nums, err := set.Numbers(maxNumbers)
	if err != nil {
		return nil, true
	}
	for _, n := range nums {
		if n == 0 || int(n) > len(b.View) || b.View[n-1] == 0 {
			unknown = true
			continue
		}
		uids = append(uids, b.View[n-1])
	}
	return uids, unknown
}

// lacks reports whether sn lacks a message of which the client was told.
func (b *Box) lacks(sn *row.Snapshot) bool {
	last := b.View[len(b.View)-1]
	for i := len(b.View) - 1; i >= 0 && (b.View[i] == 0 || b.View[i] >= sn.SyncedNext); i-- {
		if u := b.View[i]; u > b.Held && sn.Find(u) == nil {
			b.Held = last
			return true
		}
	}
	b.Held = last
	return false
}
