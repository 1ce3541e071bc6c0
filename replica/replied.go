package replica

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"understudy/replica/meta"
	"understudy/replica/row"
)

// A message that is held is accepted, though its sender may never learn of it:
// this process can be ended between the two. Then the sender comes again with
// the same message, which must not be taken for another one. So a held message
// has a row of its own until its sender was answered; those that are there after
// a restart are looked for when mail arrives. The row goes lazily, with the next
// message: at worst the last sender before a crash was answered after all, and
// one that sends the very same bytes to the same recipients again has delivered
// them once.

// unreplied is such a row.
type unreplied struct {
	ID      uint64
	From    string
	Rcpts   []string
	Ref     row.Ref
	Arrived time.Time
}

// repeatLimit is how long senders try: RFC 5321 section 4.5.4.1 says four to
// five days.
const repeatLimit = 6 * 24 * time.Hour

func (u unreplied) is(e row.Envelope, ref row.Ref) bool {
	return u.Ref == ref && u.From == e.From && slices.Equal(u.Rcpts, sortedFold(e.Rcpts))
}

func sortedFold(rcpts []string) []string {
	out := make([]string, 0, len(rcpts))
	for _, r := range rcpts {
		out = append(out, strings.ToLower(r))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// await adds to the batch that makes h durable what is needed until its sender
// is answered.
func (s *Store) await(b *meta.Batch, h *row.Held) error {
	if s.opt.Primary {
		return nil
	}
	u := unreplied{ID: h.ID, From: h.From, Rcpts: sortedFold(h.Rcpts), Ref: h.Ref, Arrived: h.Arrived}
	v, err := json.Marshal(u)
	if err != nil {
		return err
	}
	b.Put(idKey("u", h.ID), v)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting[h.ID] = u
	for _, id := range s.replied {
		b.Delete(idKey("u", id))
	}
	s.replied = nil
	return nil
}

// Awaiting reports whether senders wait for an answer.
func (s *Store) Awaiting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.waiting) > 0
}

// Replied records that the sender of a message was answered.
func (s *Store) Replied(e row.Envelope, ref row.Ref) {
	rcpts := sortedFold(e.Rcpts)
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, u := range s.waiting {
		if u.Ref == ref && u.From == e.From && !slices.ContainsFunc(u.Rcpts, func(r string) bool { _, ok := slices.BinarySearch(rcpts, r); return !ok }) {
			delete(s.waiting, id)
			s.replied = append(s.replied, id)
		}
	}
}

// Forget drops a held message that was refused: to nobody it is accepted.
func (s *Store) Forget(ctx context.Context, id uint64) error {
	s.heldMu.Lock()
	defer s.heldMu.Unlock()
	var b meta.Batch
	b.Delete(idKey("d", id))
	b.Delete(idKey("u", id))
	if _, err := s.Meta.Commit(ctx, b); err != nil {
		return fmt.Errorf("forget a message: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.held, id)
	delete(s.waiting, id)
	return nil
}

// MayRepeat reports whether there are messages at all whose senders may come
// again.
func (s *Store) MayRepeat() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.crashed) > 0
}

// Repeated reports whether a message was accepted before this process began, and
// its sender not answered. Whether production has it is then not known: if it is
// in no mailbox yet it is owed.
func (s *Store) Repeated(ctx context.Context, e row.Envelope, ref row.Ref) (bool, error) {
	s.mu.Lock()
	i := slices.IndexFunc(s.crashed, func(u unreplied) bool { return u.is(e, ref) && time.Since(u.Arrived) < repeatLimit })
	var u unreplied
	if i >= 0 {
		u = s.crashed[i]
		s.crashed = slices.Delete(s.crashed, i, i+1)
	}
	s.mu.Unlock()
	if i < 0 {
		return false, nil
	}
	err := s.changeHeld(ctx, u.ID, func(h *row.Held) { h.Owed = h.Owed || !h.Standby })
	if err == nil {
		_, err = s.Meta.Commit(ctx, meta.Batch{Do: []meta.Op{{Key: idKey("u", u.ID), Del: true}}})
	}
	return err == nil, err
}

func (s *Store) loadUnreplied(sn meta.Snap) error {
	for _, v := range sn.Scan([]byte("u/"), []byte("u0")) {
		var u unreplied
		if err := json.Unmarshal(v, &u); err != nil {
			return fmt.Errorf("row of an unanswered message: %w", err)
		}
		s.nextID = max(s.nextID, u.ID)
		if time.Since(u.Arrived) < repeatLimit {
			s.crashed = append(s.crashed, u)
		} else {
			s.replied = append(s.replied, u.ID)
		}
	}
	return sn.Err()
}

// flushReplied removes the rows of the messages answered last.
func (s *Store) flushReplied() error {
	s.mu.Lock()
	var b meta.Batch
	for _, id := range s.replied {
		b.Delete(idKey("u", id))
	}
	s.replied = nil
	s.mu.Unlock()
	if len(b.Do) == 0 {
		return nil
	}
	_, err := s.Meta.Commit(context.Background(), b)
	return err
}
