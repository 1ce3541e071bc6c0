// Package snoop is the transaction cache: it makes what crosses the wire
// durable in the replica before a client is told OK, holds inbound mail until
// it is seen in a mailbox, and asks for a targeted sync where the wire alone
// did not tell enough.
//
// Implementation notes. A change is settled in one of two ways: from what the
// wire told (UIDs by APPENDUID, COPYUID, or the session's view), or, where that
// is not certain, by a sync of the mailbox that begins after production's OK
// was seen. If neither works the caller must not pass the OK on. What was
// settled from the wire is refined soon after by a sync that was only hinted
// at: INTERNALDATE, RFC822.SIZE and MODSEQ as production states them.
package snoop

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"understudy/replica/row"
	"understudy/snoop/imapsession"
	"understudy/snoop/imapwire"
)

// Replica is what the cache changes.
type Replica interface {
	Snapshot(user, mailbox string) (*row.Snapshot, error)
	Mailboxes(user string) ([]row.Mailbox, error)
	LearnAppend(ctx context.Context, user string, n row.AppendOf) error
	LearnFlags(ctx context.Context, user, mailbox string, c row.FlagChange, told []row.FlagsOf) error
	LearnExpunge(ctx context.Context, user, mailbox string, uids []uint32) error
	LearnCopy(ctx context.Context, user string, c row.CopyOf) error
	BeginHold() (ended func())
	Hold(ctx context.Context, h row.Held) (row.Held, error)
	NoteDoubt(ctx context.Context, user string, d row.Doubt) error
	Intend(user string, d row.Doubt) (arrived, over func())
	Confirm(id uint64)
	Owe(ctx context.Context, id uint64) error
	Forget(ctx context.Context, id uint64) error
	RouteOf(rcpt string) (row.Route, bool)
	Again(e row.Envelope, ref row.Ref) (since time.Time, before, ok bool)
	Holding(e row.Envelope, ref row.Ref) (row.Held, bool)
	Delivered(e row.Envelope, ref row.Ref, since time.Time) bool
}

// Syncer reads from production.
type Syncer interface {
	// SyncMailbox returns when the replica holds all that production held of
	// a mailbox at the time of the call.
	SyncMailbox(ctx context.Context, account, mailbox string) error
	// SyncFolders does so for the list of mailboxes.
	SyncFolders(ctx context.Context, account string) error
	// Hint asks for a sync of a mailbox soon.
	Hint(account, mailbox string)
	// Later asks for a sync that is not urgent: the wire told what matters.
	Later(account, mailbox string)
	// Expect asks for syncs of a mailbox until a delivery has arrived.
	Expect(account, mailbox string)
	// Expunge removes messages from production.
	Expunge(ctx context.Context, account, mailbox string, uids []uint32) error
}

// Options of New.
type Options struct {
	Replica Replica
	Syncer  Syncer
	// Local reports whether mail for an address stays on production.
	Local func(addr string) bool
	Log   *slog.Logger
}

// Cache is the transaction cache.
type Cache struct {
	opt   Options
	told  told
	late  chan lateCopy
	asked sync.Map // MOVE (*imapsession.Cmd) → func(), to be called when it is known where it arrived

	wire, synced, held atomic.Int64
}

// New returns a cache.
func New(o Options) *Cache { return &Cache{opt: o, late: make(chan lateCopy, maxLate)} }

// Counts tells how many changes were settled from the wire, how many by a
// sync, and how many messages were held.
func (c *Cache) Counts() (wire, synced, held int64) {
	return c.wire.Load(), c.synced.Load(), c.held.Load()
}

// syncLimit bounds a sync that a client's OK waits for.
const syncLimit = 30 * time.Second

// followLimit bounds how long an answer waits for the replica to have the new
// messages that the client was told of with it.
const followLimit = time.Second

// Follow waits until the replica has what production has of a mailbox, as long as
// that may hold up an answer.
func (c *Cache) Follow(ctx context.Context, account, mailbox string) {
	ctx, cancel := context.WithTimeout(ctx, followLimit)
	defer cancel()
	if err := c.opt.Syncer.SyncMailbox(ctx, account, mailbox); err != nil {
		c.opt.Log.Debug("a client is told of messages that are not in the replica yet", "account", account, "mailbox", mailbox, "err", err)
		c.opt.Syncer.Hint(account, mailbox)
	}
}

// Hint tells that a mailbox changed in a way that was not followed.
func (c *Cache) Hint(account, mailbox string) { c.opt.Syncer.Hint(account, mailbox) }

// moving is the doubt that an unanswered MOVE leaves; ok is false for other
// commands.
func moving(cmd *imapsession.Cmd) (d row.Doubt, ok bool) {
	if cmd.Verb != "MOVE" && cmd.Verb != "UID MOVE" || len(cmd.UIDs) == 0 {
		return d, false
	}
	r := cmd.Args()
	r.Set()
	r.SP()
	to := r.Mailbox()
	return row.Doubt{From: cmd.Mailbox, To: to, UIDs: cmd.UIDs, Mark: cmd.Mark}, r.Err() == nil
}

// Asking notes a command that is about to be sent to production, if it matters
// should this process end before its answer. answered, which may be nil, has to be
// called when it was answered, or Unanswered told of.
func (c *Cache) Asking(account string, cmd *imapsession.Cmd) (answered func()) {
	d, ok := moving(cmd)
	if !ok {
		return nil
	}
	arrived, over := c.opt.Replica.Intend(account, d)
	c.asked.Store(cmd, arrived)
	return func() {
		c.asked.Delete(cmd)
		over()
	}
}

// Unanswered tells of a command that production did not answer before the
// session was lost.
func (c *Cache) Unanswered(account string, cmd *imapsession.Cmd) {
	d, ok := moving(cmd)
	if !ok {
		return
	}
	if _, src, dst, err := copyUID(cmd.CopyUID); err == nil {
		d.UIDs, d.Dst = src, dst
	}
	if err := c.opt.Replica.NoteDoubt(context.Background(), account, d); err != nil {
		c.opt.Log.Error("keep an unanswered MOVE", "account", account, "err", err)
	}
}

// Virtual returns what a mailbox's UIDVALIDITY is shown as, 0 if as it is.
func (c *Cache) Virtual(account, mailbox string) uint32 {
	boxes, err := c.opt.Replica.Mailboxes(account)
	if err != nil {
		return 0
	}
	for _, m := range boxes {
		if m.Name == mailbox && m.ProdUIDValidity != 0 {
			return m.UIDValidity
		}
	}
	return 0
}

// Settle makes durable what an accepted command changed.
func (c *Cache) Settle(ctx context.Context, account string, cmd *imapsession.Cmd, ok imapwire.Response, sp row.Spool) error {
	ctx, cancel := context.WithTimeout(ctx, syncLimit)
	defer cancel()
	err := c.fromWire(ctx, account, cmd, ok, sp)
	if err == nil {
		c.wire.Add(1)
		return nil
	}
	if !errors.Is(err, errUnclear) {
		c.opt.Log.Debug("change is not clear from the wire", "account", account, "command", cmd.Verb, "err", err)
	}
	c.synced.Add(1)
	if err := c.bySync(ctx, account, cmd); err != nil {
		c.Unanswered(account, cmd)
		return err
	}
	return nil
}

var errUnclear = errors.New("the wire does not tell enough")

func (c *Cache) fromWire(ctx context.Context, account string, cmd *imapsession.Cmd, ok imapwire.Response, sp row.Spool) error {
	if cmd.Unknown {
		return errUnclear
	}
	var err error
	switch cmd.Verb {
	case "APPEND":
		err = c.appended(ctx, account, cmd, ok, sp)
	case "STORE", "UID STORE":
		err = c.stored(ctx, account, cmd, ok)
	case "EXPUNGE", "UID EXPUNGE":
		if cmd.Rerun {
			return errUnclear // what it did the first time was not told
		}
		err = c.opt.Replica.LearnExpunge(ctx, account, cmd.Mailbox, cmd.Expunged)
	case "COPY", "UID COPY", "MOVE", "UID MOVE":
		return c.copied(ctx, account, cmd)
	default:
		return errUnclear
	}
	if err == nil {
		c.opt.Syncer.Later(account, cmd.Mailbox)
	}
	return err
}

// bySync settles by reading from production what became of a command.
func (c *Cache) bySync(ctx context.Context, account string, cmd *imapsession.Cmd) error {
	switch cmd.Verb {
	case "CREATE", "DELETE", "RENAME", "SUBSCRIBE", "UNSUBSCRIBE":
		return c.opt.Syncer.SyncFolders(ctx, account)
	case "CLOSE":
		sn, err := c.opt.Replica.Snapshot(account, cmd.Mailbox)
		if err == nil && !slices.ContainsFunc(sn.Rows, func(m *row.Message) bool { return m.HasFlag(`\Deleted`) }) {
			c.opt.Syncer.Hint(account, cmd.Mailbox)
			return nil
		}
	case "COPY", "UID COPY", "MOVE", "UID MOVE":
		r := cmd.Args()
		r.Set()
		r.SP()
		if to := r.Mailbox(); r.Err() == nil {
			if err := c.syncBox(ctx, account, to); err != nil {
				return err
			}
		}
		// Where a MOVE arrived is known: that it departed may be, too.
		if arrived, ok := c.asked.Load(cmd); ok {
			arrived.(func())()
		}
	}
	if cmd.Mailbox == "" {
		return nil // nothing was selected, nothing was changed
	}
	return c.syncBox(ctx, account, cmd.Mailbox)
}

// seedLimit bounds how long an OK waits for a mailbox that is still being
// copied for the first time.
const seedLimit = time.Second

// syncBox syncs a mailbox. One whose first copy is not done yet cannot be made
// whole while a client waits: its changes are on production alone until then.
func (c *Cache) syncBox(ctx context.Context, account, mailbox string) error {
	if sn, err := c.opt.Replica.Snapshot(account, mailbox); err == nil && sn.Synced {
		return c.opt.Syncer.SyncMailbox(ctx, account, mailbox)
	}
	ctx, cancel := context.WithTimeout(ctx, seedLimit)
	defer cancel()
	if err := c.opt.Syncer.SyncMailbox(ctx, account, mailbox); err != nil {
		c.opt.Log.Debug("change in a mailbox that is not copied yet", "account", account, "mailbox", mailbox, "err", err)
		c.opt.Syncer.Hint(account, mailbox)
	}
	return nil
}

func (c *Cache) appended(ctx context.Context, account string, cmd *imapsession.Cmd, ok imapwire.Response, sp row.Spool) error {
	if ok.Code != "APPENDUID" || cmd.Extra || sp == nil {
		return errUnclear
	}
	code := imapwire.NewReader(ok.Arg)
	validity := code.Number32()
	code.SP()
	uid := code.Number32()
	code.End()
	r := cmd.Args()
	r.Mailbox()
	r.SP()
	n := row.AppendOf{Mailbox: cmd.Mailbox, UIDValidity: validity, UID: uid, New: row.New{Date: time.Now()}}
	if r.Peek() == '(' {
		n.Flags = r.Flags()
		r.SP()
	}
	if r.Peek() == '"' {
		d, err := imapwire.ParseDateTime(r.String())
		if err != nil {
			return err
		}
		n.Date = d
		r.SP()
	}
	if code.Err() != nil || r.Err() != nil || r.Peek() != '{' && r.Peek() != '~' {
		return errUnclear
	}
	var err error
	if n.Ref, err = sp.Commit(); err != nil {
		return err
	}
	if err := c.opt.Replica.LearnAppend(ctx, account, n); err != nil {
		return err
	}
	c.told.add(account, n.Mailbox, uid)
	if cmd.Rerun {
		c.expectLate(lateCopy{account: account, mailbox: n.Mailbox, told: map[uint32]row.Ref{uid: n.Ref}, mark: cmd.Mark})
	}
	c.opt.Syncer.Hint(account, cmd.Mailbox) // for the date that production gave it
	return nil
}

func (c *Cache) stored(ctx context.Context, account string, cmd *imapsession.Cmd, ok imapwire.Response) error {
	ch := row.FlagChange{UIDs: cmd.UIDs}
	r := cmd.Args()
	r.Set()
	r.SP()
	switch {
	case r.Accept('+'):
		ch.Op = row.Add
	case r.Accept('-'):
		ch.Op = row.Remove
	}
	if !strings.HasPrefix(strings.ToUpper(r.Atom()), "FLAGS") || ok.Code == "MODIFIED" {
		return errUnclear // UNCHANGEDSINCE, too
	}
	r.SP()
	if r.Peek() == '(' {
		ch.Flags = r.Flags()
	} else {
		ch.Flags = append(ch.Flags, r.Flag())
		for r.Accept(' ') {
			ch.Flags = append(ch.Flags, r.Flag())
		}
	}
	if r.Err() != nil {
		return errUnclear
	}
	told := make([]row.FlagsOf, 0, len(cmd.Fetched))
	for _, f := range cmd.Fetched {
		told = append(told, row.FlagsOf{UID: f.UID, Flags: f.Flags})
	}
	return c.opt.Replica.LearnFlags(ctx, account, cmd.Mailbox, ch, told)
}

func (c *Cache) copied(ctx context.Context, account string, cmd *imapsession.Cmd) error {
	r := cmd.Args()
	r.Set()
	r.SP()
	cp := row.CopyOf{From: cmd.Mailbox, To: r.Mailbox(), Move: strings.HasSuffix(cmd.Verb, "MOVE")}
	if r.Err() != nil {
		return errUnclear
	}
	var err error
	if cp.UIDValidity, cp.Src, cp.Dst, err = copyUID(cmd.CopyUID); err != nil {
		return err
	}
	if err := c.opt.Replica.LearnCopy(ctx, account, cp); err != nil {
		return err
	}
	c.told.add(account, cp.To, cp.Dst...)
	if cmd.Rerun {
		c.expectCopies(account, cp, cmd.Mark)
	}
	c.opt.Syncer.Later(account, cp.To)
	if cp.Move {
		c.opt.Syncer.Later(account, cp.From)
	}
	return nil
}

// copyUID reads the argument of a COPYUID code (RFC 4315).
func copyUID(arg []byte) (validity uint32, src, dst []uint32, err error) {
	r := imapwire.NewReader(arg)
	validity = r.Number32()
	r.SP()
	from := r.Set()
	r.SP()
	to := r.Set()
	if r.Err() != nil {
		return 0, nil, nil, errUnclear
	}
	if src, err = from.Numbers(1 << 20); err == nil {
		dst, err = to.Numbers(1 << 20)
	}
	return validity, src, dst, err
}

// Arrival is a message between its end-of-data and production's answer. It is
// held in parallel with production's work on it: if this process ends just then,
// the message counts as accepted, since a double is better than a loss.
type Arrival struct {
	c      *Cache
	ctx    context.Context
	h      row.Held
	others []string
	done   chan error
}

// Arriving begins to hold a message for those of its recipients whose mailboxes
// are on production.
func (c *Cache) Arriving(ctx context.Context, m row.Envelope, sp row.Spool) *Arrival {
	a := &Arrival{c: c, ctx: context.WithoutCancel(ctx), done: make(chan error, 1), h: row.Held{From: m.From, Params: m.Params, Arrived: time.Now(), Open: true}}
	for _, r := range m.Rcpts {
		if c.opt.Local(r) {
			a.h.Rcpts = append(a.h.Rcpts, r)
		} else {
			a.others = append(a.others, r)
		}
	}
	if len(a.h.Rcpts) == 0 {
		a.done <- nil
		return a
	}
	sp.Start()
	ended := c.opt.Replica.BeginHold()
	go func() {
		err := a.hold(sp)
		ended()
		a.done <- err
	}()
	return a
}

func (a *Arrival) hold(sp row.Spool) error {
	var err error
	if a.h.Ref, err = sp.Commit(); err != nil {
		return err
	}
	a.h, err = a.c.opt.Replica.Hold(a.ctx, a.h)
	return err
}

// Accepted returns when the message is durable: its 250 may be passed on.
func (a *Arrival) Accepted() error {
	if err := <-a.done; err != nil || len(a.h.Rcpts) == 0 {
		return err
	}
	a.c.opt.Replica.Confirm(a.h.ID)
	a.expect()
	return nil
}

func (a *Arrival) expect() {
	a.c.held.Add(1)
	for _, r := range a.h.Rcpts {
		if rt, ok := a.c.opt.Replica.RouteOf(r); ok {
			a.c.opt.Syncer.Expect(rt.Account, rt.Mailbox)
		}
	}
}

// Overheard holds a message that production was seen to take. Other than after
// Arriving the mirror may have read it before it was held; it is looked for.
func (c *Cache) Overheard(ctx context.Context, m row.Envelope, sp row.Spool) error {
	a := c.Arriving(ctx, m, sp)
	if err := a.Accepted(); err != nil || len(a.h.Rcpts) == 0 {
		return err
	}
	for _, r := range a.h.Rcpts {
		if rt, ok := c.opt.Replica.RouteOf(r); ok {
			// After this, syncs that began before the message was held are over.
			if err := c.opt.Syncer.SyncMailbox(ctx, rt.Account, rt.Mailbox); err != nil {
				return err
			}
		}
	}
	if !c.opt.Replica.Delivered(row.Envelope{Rcpts: a.h.Rcpts}, a.h.Ref, a.h.Arrived) {
		return nil
	}
	return c.opt.Replica.Forget(ctx, a.h.ID)
}

// Owe keeps a message of which nobody knows whether production has it, for the
// recipients whose mailboxes are there: it is given to production again unless
// it is seen in a mailbox before long, or delivered by the standby. It returns
// the other recipients.
func (a *Arrival) Owe() (others []string, err error) {
	if err := <-a.done; err != nil || len(a.h.Rcpts) == 0 {
		return a.others, err
	}
	defer a.expect()
	a.c.opt.Log.Info("production was lost before it answered for a message; it is owed", "held", a.h.ID, "recipients", len(a.h.Rcpts))
	return a.others, a.c.opt.Replica.Owe(a.ctx, a.h.ID)
}

// Refused forgets the message: production refused it, or gave no answer, and
// the sender will come again.
func (a *Arrival) Refused() {
	if err := <-a.done; err != nil || len(a.h.Rcpts) == 0 {
		return
	}
	if err := a.c.opt.Replica.Forget(a.ctx, a.h.ID); err != nil {
		a.c.opt.Log.Error("forget a refused message", "held", a.h.ID, "err", err)
	}
}

// repeatWait is how long a sender that comes again waits for what production may
// have in its queue.
const repeatWait = 5 * time.Second

// Repeated reports whether a message was taken before and its sender not
// answered. If it is held, and production may not have it, it is owed from now on;
// else it is looked for in the mailboxes. For recipients at other sites nobody can
// tell, so a message to one of them goes to production again.
func (c *Cache) Repeated(ctx context.Context, e row.Envelope, ref row.Ref) (bool, error) {
	if slices.ContainsFunc(e.Rcpts, func(r string) bool { return !c.opt.Local(r) }) {
		return false, nil
	}
	since, before, ok := c.opt.Replica.Again(e, ref)
	if !ok {
		return false, nil
	}
	for end := time.Now().Add(repeatWait); ; {
		if h, ok := c.opt.Replica.Holding(e, ref); ok {
			c.opt.Log.Info("a sender that was not answered came again; the message is held", "held", h.ID)
			if h.Standby || !before {
				return true, nil
			}
			return true, c.opt.Replica.Owe(ctx, h.ID)
		}
		for _, r := range e.Rcpts {
			if rt, ok := c.opt.Replica.RouteOf(r); ok {
				// Without production what the replica has decides.
				sync, cancel := context.WithTimeout(ctx, repeatWait/2)
				_ = c.opt.Syncer.SyncMailbox(sync, rt.Account, rt.Mailbox)
				cancel()
			}
		}
		if c.opt.Replica.Delivered(e, ref, since) {
			c.opt.Log.Info("a sender that was not answered came again; the message was delivered")
			return true, nil
		}
		if time.Now().After(end) {
			return false, nil
		}
		select {
		case <-time.After(repeatWait / 10):
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}
