package replica

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"time"

	"understudy/replica/match"
	"understudy/replica/meta"
	"understudy/replica/row"
	"understudy/replica/store"
)

// Hold stores a message that production has before it, before its 250 is passed on.
func (s *Replica) Hold(ctx context.Context, h row.Held) (row.Held, error) {
	return s.hold(ctx, h, row.HeldHappened{Event: row.HeldArrives, By: row.ByCache})
}

// Take stores a message that the standby accepts, before its 250 is given.
func (s *Replica) Take(ctx context.Context, h row.Held) (row.Held, error) {
	return s.hold(ctx, h, row.HeldHappened{Event: row.HeldTaken, By: row.ByStandby})
}

func (s *Replica) hold(ctx context.Context, h row.Held, e row.HeldHappened) (row.Held, error) {
	msg, err := s.Message(h.Ref)
	if err != nil {
		return h, err
	}
	h, _, _ = h.Step(e)
	h.Key = match.Key(match.Read(msg).BodyLen())
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

// Refuse forgets a message that production refused, or whose sender was not
// answered and will come again.
func (s *Replica) Refuse(ctx context.Context, id uint64) error {
	return s.tell(ctx, id, row.HeldHappened{Event: row.HeldRefused, By: row.ByCache})
}

// Found forgets a message that was in the mailboxes of all recipients before it was
// held.
func (s *Replica) Found(ctx context.Context, id uint64) error {
	return s.tell(ctx, id, row.HeldHappened{Event: row.HeldFound, By: row.ByCache})
}

// Expire forgets a message that nobody waits for any more.
func (s *Replica) Expire(ctx context.Context, id uint64) error {
	return s.tell(ctx, id, row.HeldHappened{Event: row.HeldExpires, By: row.ByKeeper})
}

// Confirm records that production answered a held message with 250.
func (s *Replica) Confirm(id uint64) {
	_ = s.tell(context.Background(), id, row.HeldHappened{Event: row.HeldConfirmed, By: row.ByCache}) // nothing is written
}

// Giving records that production is about to be given a message that it may then
// have, whatever becomes of the answer. It returns the delivery as it was; ok is
// false if it is not due, or not held any more.
func (s *Replica) Giving(ctx context.Context, id uint64, now time.Time, due func(row.Held) bool) (was row.Held, ok bool, err error) {
	s.heldMu.Lock()
	defer s.heldMu.Unlock()
	h, ok := s.heldByID(id)
	if !ok || !due(h.Held) {
		return h.Held, false, nil
	}
	ok, err = s.step(ctx, h, row.HeldHappened{Event: row.HeldGives, By: row.ByStandby, At: now})
	return h.Held, ok && err == nil, err
}

// NotGiven takes that back: production surely has not got it.
func (s *Replica) NotGiven(ctx context.Context, id uint64) error {
	return s.tell(ctx, id, row.HeldHappened{Event: row.HeldNotGiven, By: row.ByStandby})
}

// Given records that production has answered for it.
func (s *Replica) Given(ctx context.Context, id uint64) error {
	return s.tell(ctx, id, row.HeldHappened{Event: row.HeldGiven, By: row.ByStandby})
}

// GivingLost records that production did not answer: it may have it.
func (s *Replica) GivingLost(ctx context.Context, id uint64) error {
	return s.tell(ctx, id, row.HeldHappened{Event: row.HeldGivingLost, By: row.ByStandby})
}

// Owe records that a message counts as accepted though nobody knows production's
// answer.
func (s *Replica) Owe(ctx context.Context, id uint64) error {
	return s.tell(ctx, id, row.HeldHappened{Event: row.HeldUnanswered, By: row.ByCache})
}

// tell hands a held message an event; one that is not held any more gets none.
func (s *Replica) tell(ctx context.Context, id uint64, e row.HeldHappened) error {
	s.heldMu.Lock()
	defer s.heldMu.Unlock()
	h, ok := s.heldByID(id)
	if !ok {
		return nil
	}
	_, err := s.step(ctx, h, e)
	return err
}

// step makes one transition, with what has to be on disk first. heldMu is held.
func (s *Replica) step(ctx context.Context, h heldRow, e row.HeldHappened) (ok bool, err error) {
	next, r, ok := h.Step(e)
	if !ok {
		return false, nil
	}
	if r.OnDisk == row.RowFirst {
		var b meta.Batch
		heldRow{next}.store(&b)
		if _, err := s.Meta.Commit(ctx, b); err != nil {
			return false, fmt.Errorf("held message %d, %s: %w", h.ID, e.Event, err)
		}
	}
	s.showHeld(heldRow{next})
	return true, nil
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
	if h.State.Ended() {
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
	if h.State.Ended() {
		delete(s.held, h.ID)
	} else {
		s.held[h.ID] = &h.Held
	}
}

// Arrival is a message found in a mailbox, of which only the header was read.
type Arrival struct {
	Header []byte
	Size   int64 // of the whole message
}

// enough is the evidence by which a message that was read whole is a held one, a
// twin, or one that was delivered.
const enough = match.Whole

// MatchHeld looks for the held delivery that an arrival is. It returns the whole
// message as it arrived.
func (s *Replica) MatchHeld(a Arrival) (h row.Held, msg []byte, ok bool) {
	key := match.Key(a.Size - int64(len(a.Header)))
	for _, h := range s.HeldAll() {
		if h.Key != key {
			continue
		}
		sent, err := s.Message(h.Ref)
		if err != nil {
			continue
		}
		if e, msg := match.Header(match.Read(sent), a.Header, a.Size); e != 0 {
			return h, msg, true
		}
	}
	return row.Held{}, nil, false
}

// MatchHeldBody is MatchHeld for a message read whole.
func (s *Replica) MatchHeldBody(msg []byte) (h row.Held, ok bool) {
	found := match.Read(msg)
	key := match.Key(found.BodyLen())
	for _, h := range s.HeldAll() {
		if h.Key == key && s.delivers(found, h.Ref) {
			return h, true
		}
	}
	return row.Held{}, false
}

// delivers reports whether a message is what became of one that was sent.
func (s *Replica) delivers(found *match.Text, sent row.Ref) bool {
	orig, err := s.Message(sent)
	return err == nil && match.Compare(match.Read(orig), found, enough) != 0
}

// MatchTwin looks for the message that the standby has delivered to an account
// in production's place.
func (s *Replica) MatchTwin(account string, msg []byte) (row.Twin, bool) {
	found := match.Read(msg)
	key := match.Key(found.BodyLen())
	for _, w := range s.Twins(account) {
		if w.Key == key && s.delivers(found, w.Ref) {
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
	e := row.HeldHappened{Event: row.HeldSeen, By: row.ByMirror}
	if by == store.ByKeeper {
		e.By = row.ByCopyBack
	}
	l := landing{s: s, seenBy: e, account: in.Account, mailbox: in.Mailbox, now: map[uint64]heldRow{}}
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
	seenBy           row.HeldHappened
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
			if !cur.State.Ended() {
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
	e := l.seenBy
	for _, rcpt := range cur.Rcpts {
		r, ok := l.s.RouteOf(rcpt)
		if !ok {
			unknown = append(unknown, rcpt)
		} else if r.Account == l.account {
			e.Done = append(e.Done, rcpt)
		}
	}
	switch {
	case len(e.Done) > 0:
	case len(unknown) == 1:
		l.routes = append(l.routes, row.Route{Recipient: strings.ToLower(unknown[0]), Account: l.account, Mailbox: l.mailbox, Learned: time.Now()})
		e.Done = unknown
	default:
		e.In = l.account
	}
	if next, _, ok := cur.Step(e); ok {
		l.now[cur.ID] = heldRow{next}
	}
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
	next, rule, ok := left.Step(row.HeldHappened{Event: row.HeldDelivers, By: row.ByStandby, Done: []string{rcpt}})
	if !ok {
		return nil
	}
	left = heldRow{next}
	twin := row.Twin{Account: route.Account, Ref: h.Ref, Key: h.Key, Delivered: time.Now()}
	if rule.Twin && !s.opt.Primary {
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
