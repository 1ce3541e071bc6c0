package replica

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"time"

	"understudy/replica/meta"
	"understudy/replica/row"
	"understudy/replica/store"
)

// Hold stores an inbound message that was just accepted, before its 250 is
// passed on.
func (s *Replica) Hold(ctx context.Context, h row.Held) (row.Held, error) {
	msg, err := s.Message(h.Ref)
	if err != nil {
		return h, err
	}
	h.Key = BodyKey(BodyLen(msg))
	s.mu.Lock()
	s.nextID++
	h.ID = s.nextID
	s.mu.Unlock()
	if err := s.putHeld(ctx, &h); err != nil {
		return h, err
	}
	s.mu.Lock()
	s.held[h.ID] = &h
	s.mu.Unlock()
	ring(s.bells.held)
	return h, nil
}

// BeginHold says that a message is about to be given to production, which may
// have it in a mailbox before Hold has stored it here. ended has to be called when
// Hold has returned, or is not called at all.
func (s *Replica) BeginHold() (ended func()) {
	c := make(chan struct{})
	s.mu.Lock()
	s.holding[c] = struct{}{}
	s.mu.Unlock()
	return func() {
		s.mu.Lock()
		delete(s.holding, c)
		s.mu.Unlock()
		close(c)
	}
}

// AwaitHolds waits for the holds that have begun. Whatever production had in its
// mailboxes before the call is then held, if it was to be: who looks for held
// deliveries earlier would find one in a mailbox and not know it.
func (s *Replica) AwaitHolds(ctx context.Context) error {
	s.mu.Lock()
	open := slices.Collect(maps.Keys(s.holding))
	s.mu.Unlock()
	for _, c := range open {
		select {
		case <-c:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (s *Replica) putHeld(ctx context.Context, h *row.Held) error {
	b, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if _, err := s.Meta.Commit(ctx, meta.Batch{Do: []meta.Op{{Key: meta.HeldKey(h.ID), Val: b}}}); err != nil {
		return fmt.Errorf("hold delivery: %w", err)
	}
	return nil
}

// HeldAll lists the held deliveries, oldest first.
func (s *Replica) HeldAll() []row.Held {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]row.Held, 0, len(s.held))
	for _, h := range s.held {
		out = append(out, *h)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].ID < out[j].ID })
	return out
}

// HeldCount is len(HeldAll()).
func (s *Replica) HeldCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held)
}

// DropHeld forgets recipients of a held delivery, and the delivery with its last.
func (s *Replica) DropHeld(ctx context.Context, id uint64, gone func(rcpt string) bool) error {
	s.heldMu.Lock()
	defer s.heldMu.Unlock()
	h, ok := s.heldByID(id)
	if !ok {
		return nil
	}
	n := len(h.Rcpts)
	h.Rcpts = slices.DeleteFunc(slices.Clone(h.Rcpts), gone)
	if len(h.Rcpts) == n {
		return nil
	}
	var b meta.Batch
	h.store(&b)
	if _, err := s.Meta.Commit(ctx, b); err != nil {
		return fmt.Errorf("drop held delivery: %w", err)
	}
	s.showHeld(h)
	return nil
}

// Forget drops a held message that was refused, or that nobody waits for any more.
func (s *Replica) Forget(ctx context.Context, id uint64) error {
	return s.DropHeld(ctx, id, func(string) bool { return true })
}

// Confirm records that production answered a held message with 250.
func (s *Replica) Confirm(id uint64) {
	s.heldMu.Lock()
	defer s.heldMu.Unlock()
	if h, ok := s.heldByID(id); ok {
		h.Open = false
		s.showHeld(h)
	}
}

// Giving records that production is about to be given a message that it may then
// have, whatever becomes of the answer: it is owed from now on. It returns the
// delivery as it was; ok is false if it is not due, or not held any more.
func (s *Replica) Giving(ctx context.Context, id uint64, now time.Time, due func(row.Held) bool) (was row.Held, ok bool, err error) {
	err = s.changeHeld(ctx, id, func(h *row.Held) {
		if was, ok = *h, due(*h); ok {
			h.Standby, h.Owed, h.Arrived = false, true, now
		}
	})
	return was, ok && err == nil, err
}

// NotGiven takes that back: production surely has not got it.
func (s *Replica) NotGiven(ctx context.Context, was row.Held) error {
	return s.changeHeld(ctx, was.ID, func(h *row.Held) { h.Standby, h.Owed, h.Arrived = was.Standby, was.Owed, was.Arrived })
}

// Given records that production has answered for it.
func (s *Replica) Given(ctx context.Context, id uint64) error {
	return s.changeHeld(ctx, id, func(h *row.Held) { h.Standby, h.Owed = false, false })
}

// Owe records that a message counts as accepted though production did not answer.
func (s *Replica) Owe(ctx context.Context, id uint64) error {
	return s.changeHeld(ctx, id, func(h *row.Held) { h.Open, h.Owed = false, true })
}

func (s *Replica) changeHeld(ctx context.Context, id uint64, f func(*row.Held)) error {
	s.heldMu.Lock()
	defer s.heldMu.Unlock()
	h, ok := s.heldByID(id)
	if !ok {
		return nil
	}
	f(&h.Held)
	if err := s.putHeld(ctx, &h.Held); err != nil {
		return err
	}
	s.showHeld(h)
	return nil
}

// heldRow is a delivery whose recipients change; heldMu is held.
type heldRow struct{ row.Held }

func (s *Replica) heldByID(id uint64) (heldRow, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.held[id]; h != nil {
		return heldRow{*h}, true
	}
	return heldRow{}, false
}

// store adds the row's new state to a batch: gone with the last recipient.
func (h heldRow) store(b *meta.Batch) {
	if len(h.Rcpts) == 0 {
		b.Delete(meta.HeldKey(h.ID))
		return
	}
	putJSON(b, meta.HeldKey(h.ID), h.Held)
}

// showHeld publishes what was stored.
func (s *Replica) showHeld(h heldRow) {
	defer ring(s.bells.held)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(h.Rcpts) == 0 {
		delete(s.held, h.ID)
	} else {
		s.held[h.ID] = &h.Held
	}
}

// BodyLen is the length of a message behind its header, by which a delivered
// message is found again: production prepends to headers.
func BodyLen(msg []byte) int64 { return int64(len(msg) - HeaderLen(msg)) }

// HeaderLen is the length of a message's header with its empty line.
func HeaderLen(msg []byte) int {
	if i := bytes.Index(msg, []byte("\r\n\r\n")); i >= 0 {
		return i + 4
	}
	return len(msg)
}

// Arrival is a message found in a mailbox, of which only the header was read.
type Arrival struct {
	Header []byte
	Size   int64 // of the whole message
}

// MatchHeld looks for the held delivery that an arrival is. The header that
// was sent must be the end of the one that arrived, and the bodies of one
// length. It returns the whole message as it arrived.
func (s *Replica) MatchHeld(a Arrival) (h row.Held, msg []byte, ok bool) {
	key := BodyKey(a.Size - int64(len(a.Header)))
	for _, h := range s.HeldAll() {
		if h.Key != key {
			continue
		}
		orig, err := s.Message(h.Ref)
		if err != nil {
			continue
		}
		n := HeaderLen(orig)
		if bytes.HasSuffix(a.Header, orig[:n]) && atLineStart(a.Header, len(a.Header)-n) {
			return h, append(slices.Clone(a.Header), orig[n:]...), true
		}
	}
	return row.Held{}, nil, false
}

// MatchHeldBody is MatchHeld for a message read whole: bodies must be equal,
// and every header line that was sent must be there.
func (s *Replica) MatchHeldBody(msg []byte) (h row.Held, ok bool) {
	key, n := BodyKey(BodyLen(msg)), HeaderLen(msg)
	for _, h := range s.HeldAll() {
		if h.Key == key && s.delivers(msg, n, h.Ref) {
			return h, true
		}
	}
	return row.Held{}, false
}

// delivers reports whether msg, with a header of n bytes, is what became of a
// message on its way into a mailbox.
func (s *Replica) delivers(msg []byte, n int, sent row.Ref) bool {
	orig, err := s.Message(sent)
	if err != nil {
		return false
	}
	o := HeaderLen(orig)
	return bytes.Equal(orig[o:], msg[n:]) && containsLines(msg[:n], orig[:o])
}

// MatchTwin looks for the message that the standby has delivered to an account
// in production's place.
func (s *Replica) MatchTwin(account string, msg []byte) (row.Twin, bool) {
	key, n := BodyKey(BodyLen(msg)), HeaderLen(msg)
	for _, w := range s.Twins(account) {
		if w.Key == key && s.delivers(msg, n, w.Ref) {
			return w, true
		}
	}
	return row.Twin{}, false
}

// Twins lists the messages of an account whose copy production may still
// deliver, oldest first.
func (s *Replica) Twins(account string) []row.Twin {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []row.Twin
	for _, w := range s.twins {
		if w.Account == account {
			out = append(out, w)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].ID < out[j].ID })
	return out
}

// ForgetTwins drops twins: production's copy came, or it never will.
func (s *Replica) ForgetTwins(ctx context.Context, gone func(row.Twin) bool) error {
	s.mu.Lock()
	var b meta.Batch
	var ids []uint64
	for id, w := range s.twins {
		if gone(w) {
			b.Delete(meta.TwinKey(id))
			ids = append(ids, id)
		}
	}
	s.mu.Unlock()
	if len(ids) == 0 {
		return nil
	}
	if _, err := s.Meta.Commit(ctx, b); err != nil {
		return fmt.Errorf("forget twins: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		delete(s.twins, id)
	}
	return nil
}

func atLineStart(b []byte, i int) bool { return i == 0 || i > 0 && b[i-1] == '\n' }

func containsLines(header, lines []byte) bool {
	for l := range bytes.Lines(lines) {
		i := bytes.Index(header, l)
		if i < 0 {
			return false
		}
		header = header[i+len(l):]
	}
	return true
}

// BodyKey is the Key of a held delivery with a body of n bytes.
func BodyKey(n int64) string { return fmt.Sprint(n) }

// Landed are held deliveries that were seen in a mailbox.
type Landed struct {
	Account, Mailbox string
	Held             []row.Held
}

// Land changes an account by f, and records in the same batch that held
// deliveries were seen in a mailbox of it: their recipients that lead there are
// done, and if one alone could have, its route is learned. Once a delivery was
// seen as often as it has recipients, it is done whole. Of two batches the second
// could be lost, and the message be delivered again.
func (s *Replica) Land(ctx context.Context, by store.Writer, in Landed, f func(*store.Tx) error) error {
	if len(in.Held) == 0 {
		return s.Update(ctx, in.Account, by, f)
	}
	s.heldMu.Lock()
	defer s.heldMu.Unlock()
	l := landing{s: s, account: in.Account, mailbox: in.Mailbox, now: map[uint64]heldRow{}}
	return s.Update(ctx, in.Account, by, func(tx *store.Tx) error {
		if err := f(tx); err != nil {
			return err
		}
		for _, h := range in.Held {
			l.seen(h)
		}
		for _, h := range l.now {
			tx.Stage(h.store)
		}
		for _, r := range l.routes {
			tx.Stage(func(b *meta.Batch) { putJSON(b, meta.RouteKey(r.Recipient), r) })
		}
		tx.OnCommit(l.show)
		return nil
	})
}

// landing is what becomes of held deliveries that were seen in a mailbox.
type landing struct {
	s                *Replica
	account, mailbox string
	now              map[uint64]heldRow
	routes           []row.Route
}

// show publishes what was stored.
func (l *landing) show() {
	for _, h := range l.now {
		l.s.showHeld(h)
	}
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	for _, r := range l.routes {
		l.s.routes[r.Recipient] = r
	}
}

// current is a delivery as it stands, or another one of the same message.
func (l *landing) current(h row.Held) (heldRow, bool) {
	for _, x := range append([]row.Held{h}, l.s.HeldAll()...) {
		if x.Ref != h.Ref {
			continue
		}
		if cur, ok := l.now[x.ID]; ok {
			if len(cur.Rcpts) > 0 {
				return cur, true
			}
		} else if cur, ok := l.s.heldByID(x.ID); ok {
			return cur, true
		}
	}
	return heldRow{}, false
}

func (l *landing) seen(h row.Held) {
	cur, ok := l.current(h)
	if !ok {
		return
	}
	var unknown []string
	rest := slices.DeleteFunc(slices.Clone(cur.Rcpts), func(rcpt string) bool {
		r, ok := l.s.RouteOf(rcpt)
		if !ok {
			unknown = append(unknown, rcpt)
		}
		return ok && r.Account == l.account
	})
	switch {
	case len(rest) < len(cur.Rcpts):
		cur.Rcpts = rest
	case len(unknown) == 1:
		l.routes = append(l.routes, row.Route{Recipient: strings.ToLower(unknown[0]), Account: l.account, Mailbox: l.mailbox, Learned: time.Now()})
		cur.Rcpts = slices.DeleteFunc(rest, func(r string) bool { return r == unknown[0] })
	default:
		cur.Seen = append(slices.Clone(cur.Seen), l.account)
		if len(cur.Seen) >= len(cur.Rcpts) {
			cur.Rcpts = nil
		}
	}
	l.now[cur.ID] = cur
}

// RouteOf says where mail for a recipient goes: by a learned route, or to the
// account of that very name.
func (s *Replica) RouteOf(rcpt string) (row.Route, bool) {
	key := strings.ToLower(rcpt)
	s.mu.Lock()
	r, ok := s.routes[key]
	s.mu.Unlock()
	if ok {
		return r, true
	}
	if name, ok := s.Resolve(rcpt); ok {
		return row.Route{Recipient: key, Account: name, Mailbox: "INBOX"}, true
	}
	if local, dom, ok := strings.Cut(rcpt, "@"); ok && slices.Contains(s.opt.Domains, strings.ToLower(dom)) {
		if name, ok := s.Resolve(local); ok {
			return row.Route{Recipient: key, Account: name, Mailbox: "INBOX"}, true
		}
	}
	// user+detail@domain is the user's (RFC 5233), unless it has a route of its own.
	if local, dom, ok := strings.Cut(key, "@"); ok {
		if user, _, ok := strings.Cut(local, "+"); ok {
			return s.RouteOf(user + "@" + dom)
		}
	}
	return row.Route{}, false
}

// Routes lists what was learned.
func (s *Replica) Routes() []row.Route {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]row.Route, 0, len(s.routes))
	for _, r := range s.routes {
		out = append(out, r)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Recipient < out[j].Recipient })
	return out
}

// Enqueue stores outbound mail, durably.
func (s *Replica) Enqueue(ctx context.Context, q row.Queued) (row.Queued, error) {
	if q.ID == 0 {
		s.mu.Lock()
		s.nextID++
		q.ID = s.nextID
		s.mu.Unlock()
	}
	b, err := json.Marshal(q)
	if err != nil {
		return q, err
	}
	_, err = s.Meta.Commit(ctx, meta.Batch{Do: []meta.Op{{Key: meta.QueueKey(q.ID), Val: b}}})
	ring(s.bells.queue)
	return q, err
}

// Dequeue forgets outbound mail that was handed on.
func (s *Replica) Dequeue(ctx context.Context, id uint64) error {
	_, err := s.Meta.Commit(ctx, meta.Batch{Do: []meta.Op{{Key: meta.QueueKey(id), Del: true}}})
	return err
}

// Queue lists the outbound mail.
func (s *Replica) Queue() ([]row.Queued, error) {
	var out []row.Queued
	err := s.Meta.View(func(sn meta.Snap) error {
		for _, v := range sn.Scan(meta.Range(meta.Queue())) {
			var q row.Queued
			if err := json.Unmarshal(v, &q); err != nil {
				return err
			}
			out = append(out, q)
		}
		return sn.Err()
	})
	return out, err
}

// Deliver puts a held message into the mailbox of one of its recipients, and
// strikes the recipient off, in one batch: it can be tried again at any time.
// msg is the message as it is to be stored; its end is what the sender gave.
func (s *Replica) Deliver(ctx context.Context, h row.Held, rcpt string, msg []byte) error {
	route, ok := s.RouteOf(rcpt)
	if !ok {
		return fmt.Errorf("%w: no route for %s", store.ErrNoMailbox, rcpt)
	}
	ref, err := s.PutMessage(msg)
	if err != nil {
		return err
	}
	s.heldMu.Lock()
	defer s.heldMu.Unlock()
	left, ok := s.heldByID(h.ID)
	if !ok || !slices.Contains(left.Rcpts, rcpt) {
		return nil
	}
	left.Rcpts = slices.DeleteFunc(slices.Clone(left.Rcpts), func(r string) bool { return r == rcpt })
	twin := row.Twin{Account: route.Account, Ref: h.Ref, Key: h.Key, Delivered: time.Now()}
	if !left.Standby && !s.opt.Primary {
		s.mu.Lock()
		s.nextID++
		twin.ID = s.nextID
		s.mu.Unlock()
	}
	return s.Update(ctx, route.Account, store.ByStandby, func(tx *store.Tx) error {
		m := tx.Box(route.Mailbox)
		if m == nil || m.NoSelect {
			if m = tx.Box("INBOX"); m == nil {
				return fmt.Errorf("%w: INBOX of %s", store.ErrNoMailbox, route.Account)
			}
		}
		r := &row.Message{UID: m.TakeUID(), ModSeq: m.ModSeq + 1, Date: time.Now().Truncate(time.Second), Size: ref.Size, Ref: ref,
			Fresh: !s.opt.Primary, Tail: h.Ref.Size, Flags: []string{}}
		m.ModSeq++
		tx.PutRow(m.ID, r)
		tx.Put(m)
		if twin.ID != 0 {
			tx.Stage(func(b *meta.Batch) { putJSON(b, meta.TwinKey(twin.ID), twin) })
			tx.OnCommit(func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.twins[twin.ID] = twin
			})
		}
		tx.Stage(left.store)
		tx.OnCommit(func() { s.showHeld(left) })
		return nil
	})
}
