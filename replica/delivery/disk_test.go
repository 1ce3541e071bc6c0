package delivery_test

import (
	"context"
	"errors"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"understudy/replica/delivery"
	"understudy/replica/meta"
	"understudy/replica/meta/metatest"
	"understudy/replica/route"
	"understudy/replica/row"
	"understudy/replica/store"
)

// disk is a metadata store in memory, with trouble.
type disk struct {
	mu   sync.Mutex
	rows map[string]rev
	last meta.Rev

	closed bool

	fail func() (before, after bool) // a commit fails, before or after it is durable
	slow string                      // batches with a key that contains this …
	at   chan struct{}               // … say so, …
	go_  chan struct{}               // … and wait
}

type rev struct {
	val []byte
	rev meta.Rev
}

var errDisk = errors.New("the disk is in trouble")

func newDisk() *disk { return &disk{rows: map[string]rev{}} }

func (d *disk) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	return nil
}

func (d *disk) Commit(ctx context.Context, b meta.Batch) (meta.Rev, error) {
	hit := func(o meta.Op) bool { return strings.Contains(string(o.Key), d.slow) }
	if d.slow != "" && slices.ContainsFunc(b.Do, hit) {
		d.at <- struct{}{}
		<-d.go_
	}
	before, after := false, false
	if d.fail != nil {
		before, after = d.fail()
	}
	if before {
		return 0, errDisk
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return 0, meta.ErrClosed
	}
	for _, c := range b.If {
		if d.rows[string(c.Key)].rev != c.Rev {
			return 0, meta.ErrConflict
		}
	}
	d.last++
	for _, o := range b.Do {
		switch {
		case o.Del && o.End != nil:
			maps.DeleteFunc(d.rows, func(k string, _ rev) bool { return k >= string(o.Key) && k < string(o.End) })
		case o.Del:
			delete(d.rows, string(o.Key))
		default:
			d.rows[string(o.Key)] = rev{slices.Clone(o.Val), d.last}
		}
	}
	if after {
		return 0, errDisk
	}
	return d.last, nil
}

func (d *disk) View(f func(meta.Snap) error) error {
	d.mu.Lock()
	s := snap(maps.Clone(d.rows))
	d.mu.Unlock()
	return f(s)
}

type snap map[string]rev

func (s snap) Err() error { return nil }

func (s snap) Get(key []byte) ([]byte, meta.Rev, error) {
	r := s[string(key)]
	return r.val, r.rev, nil
}

func (s snap) Scan(from, to []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		for _, k := range slices.Sorted(maps.Keys(s)) {
			if k >= string(from) && (to == nil || k < string(to)) && !yield([]byte(k), s[k].val) {
				return
			}
		}
	}
}

// The disk in memory does what a real one does.
func TestDisk(t *testing.T) { metatest.Run(t, func(*testing.T) meta.Store { return newDisk() }) }

// bytes are the messages.
type messages struct {
	mu sync.Mutex
	m  map[row.Ref][]byte
}

func (m *messages) Get(ref row.Ref) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b, ok := m.m[ref]; ok {
		return b, nil
	}
	return nil, errDisk
}

func (m *messages) Put(b []byte) (row.Ref, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	ref := row.RefOf(b)
	m.m[ref] = b
	return ref, nil
}

// site is a ledger with what it stands on.
type site struct {
	d  *disk
	m  *messages
	st *store.Store
	l  *delivery.Deliveries
}

func newSite(t *testing.T, d *disk, m *messages) *site {
	t.Helper()
	h := meta.NewHandle(d)
	s := &site{d: d, m: m, st: store.New(store.Options{Meta: h})}
	routes := route.New(s.st, []string{"d.test"})
	s.l = delivery.New(delivery.Options{Rows: h, Accounts: s.st, Messages: m, Routes: routes})
	for _, load := range []func(meta.Snap) error{h.Load, s.st.Load, routes.Load, s.l.Load} {
		if err := d.View(load); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// user adds an account with an INBOX, with the standby.
func (s *site) user(t *testing.T, name string) {
	t.Helper()
	if _, err := s.st.EnsureAccount(t.Context(), name, row.Standby); err != nil {
		t.Fatal(err)
	}
	if err := s.st.Acting().Create(t.Context(), name, "INBOX", nil); err != nil {
		t.Fatal(err)
	}
}
