package store

import (
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"

	"understudy/replica/meta"
	"understudy/replica/row"
)

// maxCached bounds the message rows that are kept in memory (about 300 bytes each).
const maxCached = 400_000

// cache bounds what is kept of mailboxes. It holds the kept ones in a ring, and when
// there are too many rows takes out those that were not looked at since it came by
// last. What a commit is about to replace stays until it is replaced (pinned):
// readers go on with it.
type cache struct {
	limit int // rows

	mu    sync.Mutex
	rows  int // of the mailboxes in the ring
	boxes int // in the ring
	hand  *box
}

// kept is the cache's part of a box.
type kept struct {
	mem atomic.Pointer[messages]
	hot atomic.Bool // looked at

	// Guarded by the cache's mu.
	prev, next *box // in the ring; nil: not in it
	weight     int
	pins       int
	gone       bool // another version or none has taken its place
}

// messages are those of a mailbox at one moment. The slices of room hold the same,
// and have room behind: there the next version of the mailbox, and only that, may
// put more.
type messages struct {
	row.Snapshot
	room     []*row.Message
	roomUIDs []uint32
}

func newMessages(m row.Mailbox, rows []*row.Message, uids []uint32) *messages {
	m.Messages = len(rows)
	n := len(rows)
	return &messages{Snapshot: row.Snapshot{Mailbox: m, Rows: rows[:n:n], UIDs: uids[:n:n]}, room: rows, roomUIDs: uids}
}

// get returns what is in memory, or nil.
func (b *box) get() *messages {
	m := b.mem.Load()
	if m != nil && !b.hot.Load() {
		b.hot.Store(true)
	}
	return m
}

// keep puts a mailbox's messages into the cache, unless it is not the newest version
// any more or another one did so before.
func (c *cache) keep(b *box, m *messages) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !b.gone && b.mem.Load() == nil {
		c.put(b, m)
	}
}

// put adds b to the ring. mu is held.
func (c *cache) put(b *box, m *messages) {
	b.mem.Store(m)
	b.hot.Store(true)
	b.weight = len(m.Rows) + 1
	c.rows, c.boxes = c.rows+b.weight, c.boxes+1
	if c.hand == nil {
		b.prev, b.next, c.hand = b, b, b
	} else { // where the hand comes last
		b.prev, b.next = c.hand.prev, c.hand
		b.prev.next, b.next.prev = b, b
	}
	c.trim(b)
}

// take takes b out of the ring. mu is held.
func (c *cache) take(b *box) {
	if b.next == nil {
		return
	}
	switch {
	case b.next == b:
		c.hand = nil
	case c.hand == b:
		c.hand = b.next
	}
	b.prev.next, b.next.prev = b.next, b.prev
	b.prev, b.next = nil, nil
	c.rows, c.boxes = c.rows-b.weight, c.boxes-1
}

// trim takes out mailboxes until the limit is kept, but not b, and none that is
// pinned. mu is held.
func (c *cache) trim(b *box) {
	for spared := 0; c.rows > c.limit && spared <= 2*c.boxes; {
		v := c.hand
		if c.hand = v.next; v == b || v.pins > 0 || v.hot.Swap(false) {
			spared++
			continue
		}
		c.take(v)
		v.mem.Store(nil)
		spared = 0
	}
}

// pin keeps the messages of a mailbox in memory.
func (c *cache) pin(b *box, m *messages) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b.pins++
	if b.mem.Load() == nil {
		c.put(b, m)
	}
}

func (c *cache) unpin(b *box) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b.pins--; b.pins == 0 {
		c.trim(nil)
	}
}

// replace puts a version of a mailbox, with its messages if they are known, in the
// place of an older one; either may be nil.
func (c *cache) replace(old, now *box, m *messages) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old != nil {
		c.take(old)
		old.gone = true
	}
	if now != nil && m != nil {
		c.put(now, m)
	}
}

// read reads the messages of a mailbox that the account had a moment ago.
func (s *Store) read(a *account, name string, id row.MailboxID) (*row.Snapshot, error) {
	disk, rev, err := s.readBox(name, id)
	if err != nil {
		return nil, fmt.Errorf("read mailbox %d of %s: %w", id, name, err)
	}
	for {
		cur := a.box(id)
		if cur != nil {
			if m := cur.get(); m != nil {
				return &m.Snapshot, nil
			}
		}
		if rev == 0 { // deleted, or about to be
			return nil, ErrNoMailbox
		}
		if cur == nil || rev < cur.rev { // another version was shown since this was read
			return &disk.Snapshot, nil
		}
		// If the disk has a newer version, which is not shown yet, then with the same
		// messages: a commit that changes those keeps the ones that it replaces in
		// memory until it is shown.
		if rev > cur.rev && a.box(id) != cur {
			continue
		}
		m := newMessages(cur.Mailbox, disk.room, disk.roomUIDs)
		s.cache.keep(cur, m)
		return &m.Snapshot, nil
	}
}

// readBox reads a mailbox and its messages as they are on the disk; rev is 0 if
// there is none.
func (s *Store) readBox(name string, id row.MailboxID) (m *messages, rev meta.Rev, err error) {
	err = s.opt.Meta.View(func(sn meta.Snap) error {
		b, r, err := sn.Get(meta.MailboxKey(name, id))
		if rev = r; err != nil || b == nil {
			return err
		}
		var box row.Mailbox
		if err := json.Unmarshal(b, &box); err != nil {
			return fmt.Errorf("mailbox row: %w", err)
		}
		rows, err := scanRows(sn, meta.RowsOf(name, id))
		m = newMessages(box, rows, uidsOf(rows))
		return err
	})
	return m, rev, err
}

func scanRows(sn meta.Snap, prefix []byte) ([]*row.Message, error) {
	var out []*row.Message
	for _, b := range sn.Scan(meta.Range(prefix)) {
		m, err := row.DecodeMessage(b)
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, sn.Err()
}

func uidsOf(rows []*row.Message) []uint32 {
	uids := make([]uint32, len(rows))
	for i, r := range rows {
		uids[i] = r.UID
	}
	return uids
}
