package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"understudy/replica/meta"
	"understudy/replica/row"
)

// disk is a metadata store with trouble.
type disk struct {
	meta.Store
	mu     sync.Mutex
	slow   []byte        // batches that touch a key that contains this …
	at     chan struct{} // … tell so here, …
	go_    chan struct{} // … and wait for this
	late   bool          // after they are durable, in place of before
	broken error         // what commits end in, after they are durable
}

func (d *disk) Commit(ctx context.Context, b meta.Batch) (meta.Rev, error) {
	d.mu.Lock()
	hit, late, broken := false, d.late, d.broken
	for _, op := range b.Do {
		hit = hit || d.slow != nil && bytes.Contains(op.Key, d.slow)
	}
	at, go_ := d.at, d.go_
	d.mu.Unlock()
	wait := func(now bool) {
		if hit && now {
			at <- struct{}{}
			<-go_
		}
	}
	wait(!late)
	rev, err := d.Store.Commit(ctx, b)
	wait(late)
	return rev, errors.Join(err, broken)
}

// hold makes the commits of an account wait. reached tells that one does.
func (d *disk) hold(account string, late bool) (reached <-chan struct{}, release func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.slow, d.late, d.at, d.go_ = []byte("/"+account), late, make(chan struct{}, 10), make(chan struct{})
	go_ := d.go_
	return d.at, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.slow = nil
		close(go_)
	}
}

func onDisk(t *testing.T) (*disk, *Store) {
	t.Helper()
	d := &disk{Store: open(t, t.TempDir()).opt.Meta.Store}
	return d, over(t, d)
}

func put(t *testing.T, s *Store, user, mailbox string, uid uint32) error {
	return s.Update(t.Context(), user, ByMirror, func(tx *Tx) error {
		m := tx.Box(mailbox)
		if m == nil {
			m = tx.Add(row.Mailbox{Name: mailbox, Sep: '/', UIDValidity: 9, UIDNext: 1})
		}
		m.ModSeq++
		m.UIDNext = max(m.UIDNext, uid+1)
		tx.PutRow(m.ID, &row.Message{UID: uid, ModSeq: m.ModSeq, Date: time.Unix(1, 0)})
		tx.Put(m)
		return nil
	})
}

// Readers of an account see it as it was while a commit of it is under way, at once,
// also mailboxes that are not in memory; another account's commit goes through.
func TestSlowDisk(t *testing.T) {
	for _, late := range []bool{false, true} {
		t.Run(fmt.Sprintf("durable already %v", late), func(t *testing.T) {
			d, s := onDisk(t)
			seed(t, s, "Ada")
			seed(t, s, "Bob")
			for _, box := range []string{"Cold", "Changed"} {
				if err := put(t, s, "ada", box, 1); err != nil {
					t.Fatal(err)
				}
			}
			s = over(t, d) // nothing is in memory
			told, stop, err := s.Watch("ada")
			if err != nil {
				t.Fatal(err)
			}
			defer stop()
			reached, release := d.hold("Ada", late)
			done := make(chan error)
			go func() {
				done <- s.Update(t.Context(), "ada", ByMirror, func(tx *Tx) error {
					m := tx.Box("Changed")
					m.Subscribed = true
					tx.Put(m)
					tx.PutRow(tx.Box("INBOX").ID, &row.Message{UID: 9})
					tx.SetHome(row.Standby)
					tx.Add(row.Mailbox{Name: "New"})
					return nil
				})
			}()
			<-reached
			look(t, s, 3, false, row.Production, 3)
			select {
			case <-told:
				t.Error("watchers are told of what is not shown")
			default:
			}
			if err := put(t, s, "bob", "INBOX", 9); err != nil {
				t.Error(err)
			}
			if sn, err := s.Snapshot("bob", "INBOX"); err != nil || len(sn.Rows) != 4 {
				t.Error("another account's change waits", err)
			}
			release()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			<-told
			look(t, s, 4, true, row.Standby, 4)
		})
	}
}

func look(t *testing.T, s *Store, inbox int, subscribed bool, home row.Home, boxes int) {
	t.Helper()
	in, err := s.Snapshot("ada", "INBOX")
	if err != nil || len(in.Rows) != inbox || in.Messages != inbox {
		t.Errorf("INBOX: %v, %v, want %d", in, err, inbox)
	}
	if sn, err := s.Snapshot("ada", "Cold"); err != nil || len(sn.Rows) != 1 {
		t.Errorf("a mailbox that was not in memory: %v", err)
	}
	if sn, err := s.Snapshot("ada", "Changed"); err != nil || len(sn.Rows) != 1 || sn.Subscribed != subscribed {
		t.Errorf("a mailbox of which the row alone changes: %+v, %v", sn, err)
	}
	if h, err := s.Home("ADA"); err != nil || h != home {
		t.Errorf("home %v, %v", h, err)
	}
	if all, err := s.Mailboxes("ada"); err != nil || len(all) != boxes {
		t.Errorf("%d mailboxes, %v", len(all), err)
	}
	if len(s.Accounts()) != 2 {
		t.Error("accounts are missing")
	}
	if n, ok := s.Resolve("aDA"); !ok || n != "Ada" {
		t.Error("the account is not found")
	}
}

// Who waits for an account's turn gives up with its context.
func TestTurnIsGivenUp(t *testing.T) {
	d, s := onDisk(t)
	seed(t, s, "Ada")
	reached, release := d.hold("Ada", false)
	done := make(chan error)
	go func() { done <- put(t, s, "ada", "INBOX", 9) }()
	<-reached
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := s.Update(ctx, "ada", ByMirror, func(*Tx) error {
		t.Error("two changes of an account at a time")
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	release()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// When a commit fails, and is durable all the same, the account is shown as it is.
func TestUnsureCommit(t *testing.T) {
	d, s := onDisk(t)
	seed(t, s, "Ada")
	broken := errors.New("the disk did not answer")
	d.broken = broken
	if err := put(t, s, "ada", "INBOX", 9); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	d.broken = nil
	if sn, err := s.Snapshot("ada", "INBOX"); err != nil || len(sn.Rows) != 4 {
		t.Errorf("%v %v", sn, err)
	}
	if err := put(t, s, "ada", "INBOX", 10); err != nil {
		t.Fatal(err)
	}
	if sn, _ := s.Snapshot("ada", "INBOX"); !slices.Equal(sn.UIDs, []uint32{1, 2, 3, 9, 10}) {
		t.Errorf("%v", sn.UIDs)
	}
}

// A mailbox that cannot be read is not taken for an empty one: nothing is changed.
func TestUnreadable(t *testing.T) {
	d, s := onDisk(t)
	id := seed(t, s, "Ada")
	var b meta.Batch
	b.Put(meta.RowKey("Ada", id, 2), []byte("?"))
	if _, err := d.Commit(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	s = over(t, d)
	err := s.Update(t.Context(), "ada", ByMirror, func(tx *Tx) error {
		tx.Rows(id)
		tx.PutRow(id, &row.Message{UID: 1})
		return nil
	})
	if !errors.Is(err, row.ErrCorrupt) {
		t.Errorf("changed what cannot be read: %v", err)
	}
	if _, err := s.Snapshot("ada", "INBOX"); !errors.Is(err, row.ErrCorrupt) {
		t.Error(err)
	}
}

// N readers and writers: every snapshot is whole, and none is older than one seen
// before; the cache holds what it may.
func TestSnapshotsUnderLoad(t *testing.T) {
	d, s := onDisk(t)
	s.cache.limit = 60
	boxes := []string{"INBOX", "A", "B", "C"}
	for _, u := range []string{"Ada", "Bob"} {
		seed(t, s, u)
		for _, b := range boxes {
			if err := put(t, s, u, b, 20); err != nil {
				t.Fatal(err)
			}
		}
	}
	var stop atomic.Bool
	var readers, writers sync.WaitGroup
	for r := range 6 {
		readers.Go(func() {
			user := []string{"ada", "bob"}[r%2]
			seen := map[string]*row.Snapshot{}
			for !stop.Load() {
				b := boxes[rand.IntN(len(boxes))]
				sn, err := s.Snapshot(user, b)
				if err != nil {
					t.Error(err)
					return
				}
				whole(t, sn, seen[b])
				seen[b] = sn
			}
		})
	}
	for w := range 4 {
		writers.Go(func() {
			user := []string{"ada", "bob"}[w%2]
			for range 80 {
				change := func(tx *Tx) error { return anything(tx, boxes) }
				if err := s.Update(t.Context(), user, ByMirror, change); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	stop.Store(true)
	readers.Wait()
	bounded(t, s)
	again := over(t, d)
	for _, u := range []string{"ada", "bob"} {
		for _, b := range boxes {
			x, _ := s.Snapshot(u, b)
			y, err := again.Snapshot(u, b)
			if err != nil || !slices.Equal(x.UIDs, y.UIDs) || x.ModSeq != y.ModSeq || x.Messages != y.Messages {
				t.Errorf("%s %s: in memory %v, on disk %v, %v", u, b, x, y, err)
			}
		}
	}
}

// anything changes a mailbox somehow.
func anything(tx *Tx, boxes []string) error {
	m := tx.Box(boxes[rand.IntN(len(boxes))])
	m.ModSeq++
	rows := tx.Rows(m.ID)
	switch n := rand.IntN(4); {
	case n == 0 && len(rows) > 10:
		tx.DeleteRow(m.ID, rows[rand.IntN(len(rows))].UID)
	case n == 1 && len(rows) > 0:
		r := *rows[rand.IntN(len(rows))]
		r.ModSeq = m.ModSeq
		tx.PutRow(m.ID, &r)
	case n == 2:
	default:
		tx.PutRow(m.ID, &row.Message{UID: max(m.UIDNext, 30), ModSeq: m.ModSeq})
		m.UIDNext = max(m.UIDNext, 30) + 1
	}
	tx.Put(m)
	return nil
}

func whole(t *testing.T, sn, before *row.Snapshot) {
	t.Helper()
	if sn.Messages != len(sn.Rows) || len(sn.Rows) != len(sn.UIDs) {
		t.Errorf("%d messages, %d rows, %d UIDs", sn.Messages, len(sn.Rows), len(sn.UIDs))
	}
	for i, r := range sn.Rows {
		if r.UID != sn.UIDs[i] || i > 0 && sn.UIDs[i-1] >= r.UID || r.ModSeq > sn.ModSeq {
			t.Errorf("row %d of %v is %+v, HIGHESTMODSEQ %d", i, sn.UIDs, r, sn.ModSeq)
		}
	}
	if before != nil && (sn.ModSeq < before.ModSeq ||
		sn.ModSeq == before.ModSeq && !slices.Equal(sn.UIDs, before.UIDs)) {
		t.Errorf("HIGHESTMODSEQ %d after %d", sn.ModSeq, before.ModSeq)
	}
}

// bounded checks that the cache counts what it holds.
func bounded(t *testing.T, s *Store) {
	t.Helper()
	s.cache.mu.Lock()
	defer s.cache.mu.Unlock()
	rows, n := 0, 0
	for b := s.cache.hand; b != nil && n < 1000; b = b.next {
		m := b.mem.Load()
		if m == nil || b.gone || b.pins != 0 {
			t.Errorf("mailbox %s is in the cache without a right", b.Name)
		} else {
			rows += len(m.Rows) + 1
		}
		if n++; b.next == s.cache.hand {
			break
		}
	}
	if rows != s.cache.rows || n != s.cache.boxes || rows > s.cache.limit {
		t.Errorf("the cache counts %d rows of %d mailboxes, and holds %d of %d; at most %d", s.cache.rows,
			s.cache.boxes, rows, n, s.cache.limit)
	}
}

// Accounts whose names differ in case only are one, also when they come at once.
func TestEnsureAccountOnce(t *testing.T) {
	_, s := onDisk(t)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if _, err := s.EnsureAccount(t.Context(), []string{"Ada", "ada", "ADA"}[i%3], row.Production); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	n := 0
	_ = s.opt.Meta.View(func(sn meta.Snap) error {
		for range sn.Scan(meta.Range(meta.Accounts())) {
			n++
		}
		return nil
	})
	if n != 1 || len(s.Accounts()) != 1 {
		t.Errorf("%d rows, %d accounts", n, len(s.Accounts()))
	}
}

// A store can be loaded again: what another one wrote meanwhile is there, what is
// gone is gone, and watchers are told.
func TestLoadAgain(t *testing.T) {
	d, s := onDisk(t)
	seed(t, s, "Ada")
	seed(t, s, "Bob")
	if _, err := s.Snapshot("ada", "INBOX"); err != nil {
		t.Fatal(err)
	}
	told, stop, _ := s.Watch("ada")
	defer stop()
	other := over(t, d)
	if err := put(t, other, "ada", "INBOX", 9); err != nil {
		t.Fatal(err)
	}
	seed(t, other, "Cy")
	var b meta.Batch
	b.Delete(meta.AccountKey("Bob"))
	if _, err := d.Commit(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if err := s.Alone(t.Context(), func() error { return d.View(s.Load) }); err != nil {
		t.Fatal(err)
	}
	<-told
	if sn, err := s.Snapshot("ada", "INBOX"); err != nil || len(sn.Rows) != 4 {
		t.Errorf("%v %v", sn, err)
	}
	if _, err := s.Snapshot("bob", "INBOX"); !errors.Is(err, ErrNoAccount) {
		t.Error(err)
	}
	if _, err := s.Snapshot("cy", "INBOX"); err != nil {
		t.Error(err)
	}
	if err := put(t, s, "ada", "INBOX", 10); err != nil {
		t.Error(err)
	}
	bounded(t, s)
}
