package delivery

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"understudy/replica/match"
	"understudy/replica/meta"
	"understudy/replica/row"
)

// twins are the messages that the standby has delivered in production's place, and of
// which production may still deliver its copy. They are shown as they are on disk.
type twins struct {
	rows     meta.Store
	messages Messages

	mu sync.Mutex
	m  map[uint64]row.Twin
}

func newTwins(rows meta.Store, messages Messages) twins {
	return twins{rows: rows, messages: messages, m: map[uint64]row.Twin{}}
}

// replace has these twins in place of all others.
func (t *twins) replace(m map[uint64]row.Twin) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.m = m
}

// replaceOf makes the twins of one content those that were read again.
func (t *twins) replaceOf(ref row.Ref, m map[uint64]row.Twin) {
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.m, func(_ uint64, w row.Twin) bool { return w.Ref == ref })
	maps.Copy(t.m, m)
}

// MatchTwin looks for the message that the standby has delivered to an account in
// production's place.
func (t *twins) MatchTwin(account string, msg []byte) (row.Twin, bool) {
	found := match.Read(msg)
	key := match.Key(found.BodyLen())
	for _, w := range t.Twins(account) {
		if w.Key == key && delivers(t.messages, found, w.Ref) {
			return w, true
		}
	}
	return row.Twin{}, false
}

// Twins lists the messages of an account whose copy production may still deliver,
// oldest first.
func (t *twins) Twins(account string) (out []row.Twin) {
	t.mu.Lock()
	for _, w := range t.m {
		if w.Account == account {
			out = append(out, w)
		}
	}
	t.mu.Unlock()
	slices.SortFunc(out, func(a, b row.Twin) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// expect shows a twin that is durable; one without a number is none.
func (t *twins) expect(w row.Twin) {
	if w.ID == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.m[w.ID] = w
}

// ForgetTwins drops twins: production's copy came, or it never will.
func (t *twins) ForgetTwins(ctx context.Context, gone func(row.Twin) bool) error {
	t.mu.Lock()
	all := make([]row.Twin, 0, len(t.m))
	for _, w := range t.m {
		all = append(all, w)
	}
	t.mu.Unlock()
	var b meta.Batch
	all = slices.DeleteFunc(all, func(w row.Twin) bool { return !gone(w) })
	for _, w := range all {
		b.Delete(meta.TwinKey(w.ID))
	}
	if len(all) == 0 {
		return nil
	}
	if _, err := t.rows.Commit(ctx, b); err != nil {
		return fmt.Errorf("forget twins: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, w := range all {
		delete(t.m, w.ID)
	}
	return nil
}
