package mirror

import (
	"maps"
	"slices"
	"sync"
)

// unread holds the mailboxes that are known to have changed and were not read
// since. A change while a mailbox is being read keeps it in.
type unread struct {
	mu    sync.Mutex
	since map[string]map[string]uint64 // account → mailbox → number of the change
	n     uint64
}

func (u *unread) add(account, mailbox string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.n++
	if u.since[account] == nil {
		u.since[account] = map[string]uint64{}
	}
	u.since[account][mailbox] = u.n
}

// now is a mark for done.
func (u *unread) now() uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.n
}

// done takes a mailbox out that was read from a mark on.
func (u *unread) done(account, mailbox string, from uint64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.since[account][mailbox] <= from {
		delete(u.since[account], mailbox)
	}
}

// Unread lists the mailboxes of an account that are known to have changed on
// production and were not read since.
func (m *Mirror) Unread(account string) []string {
	m.unread.mu.Lock()
	defer m.unread.mu.Unlock()
	return slices.Sorted(maps.Keys(m.unread.since[account]))
}
