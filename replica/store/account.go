package store

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"understudy/replica/meta"
	"understudy/replica/row"
	"understudy/replica/turn"
)

// account is one user's place in memory. It stays the same for as long as the
// process lives; what it holds is now, which is nil if there is no such account.
type account struct {
	turn turn.Turn // held by who changes it, also while the disk works
	now  atomic.Pointer[state]

	// Of the one who has the turn.
	seal    bool // the standby must not change it
	unsure  bool // nobody knows whether the last batch is durable
	clock   uint64
	touched map[row.MailboxID]map[uint32]uint64

	mu    sync.Mutex
	watch map[chan struct{}]struct{}
}

func newAccount() *account {
	return &account{turn: turn.New(), touched: map[row.MailboxID]map[uint32]uint64{},
		watch: map[chan struct{}]struct{}{}}
}

// box is a mailbox as it is now, or nil.
func (a *account) box(id row.MailboxID) *box {
	if st := a.now.Load(); st != nil {
		return st.byID(id)
	}
	return nil
}

// tell wakes the watchers.
func (a *account) tell() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for ch := range a.watch {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// state is an account at one moment. It never changes: a commit puts another one in
// its place.
type state struct {
	info  row.Account
	boxes []*box // by ID
	names []*box // by name
}

// box is a mailbox at one moment; only what the cache keeps of it comes and goes.
type box struct {
	row.Mailbox
	rev  meta.Rev // of its row, which every change of its messages changes, too
	kept          // its messages, if they are in memory
}

func newState(info row.Account, boxes []*box) *state {
	slices.SortFunc(boxes, func(a, b *box) int { return compareID(a, b.ID) })
	st := &state{info: info, boxes: boxes}
	st.sortNames()
	return st
}

func compareID(b *box, id row.MailboxID) int { return cmp.Compare(b.ID, id) }

func (st *state) sortNames() {
	st.names = slices.Clone(st.boxes)
	slices.SortStableFunc(st.names, func(a, b *box) int { return strings.Compare(a.Name, b.Name) })
}

func (st *state) byID(id row.MailboxID) *box {
	i, ok := slices.BinarySearchFunc(st.boxes, id, compareID)
	if ok {
		return st.boxes[i]
	}
	return nil
}

func (st *state) byName(name string) *box {
	i, ok := slices.BinarySearchFunc(st.names, name, func(b *box, name string) int {
		return strings.Compare(b.Name, name)
	})
	if ok {
		return st.names[i]
	}
	return nil
}

// loadState reads an account as it is on the disk; nil if there is none.
func loadState(sn meta.Snap, name string) (*state, error) {
	b, _, err := sn.Get(meta.AccountKey(name))
	if err != nil || b == nil {
		return nil, err
	}
	var info row.Account
	if err := json.Unmarshal(b, &info); err != nil {
		return nil, fmt.Errorf("account row: %w", err)
	}
	var boxes []*box
	for k, v := range sn.Scan(meta.Range(meta.MailboxesOf(name))) {
		m := &box{}
		if err := json.Unmarshal(v, &m.Mailbox); err != nil {
			return nil, fmt.Errorf("mailbox row: %w", err)
		}
		if _, m.rev, err = sn.Get(k); err != nil {
			return nil, err
		}
		boxes = append(boxes, m)
	}
	return newState(info, boxes), sn.Err()
}
