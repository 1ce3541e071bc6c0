package snoop

import (
	"context"
	"errors"
	"slices"
	"time"

	"understudy/replica/row"
	"understudy/snoop/imapsession"
	"understudy/snoop/imapwire"
)

// Mailboxes is what the wire tells of mailboxes.
type Mailboxes interface {
	Snapshot(user, mailbox string) (*row.Snapshot, error)
	Mailboxes(user string) ([]row.Mailbox, error)
	LearnAppend(ctx context.Context, user string, n row.AppendOf) error
	LearnFlags(ctx context.Context, user, mailbox string, c row.FlagChange, told []row.FlagsOf) error
	LearnExpunge(ctx context.Context, user, mailbox string, uids []uint32) error
	LearnCopy(ctx context.Context, user string, c row.CopyOf) error
}

// Moves keeps the MOVEs, and what production may have done unseen.
type Moves interface {
	NoteDoubt(ctx context.Context, user string, d row.Doubt) error
	Intend(user string, d row.Doubt) (arrived, over func())
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
		c.opt.Log.Debug("a client is told of messages that are not in the replica yet",
			"account", account, "mailbox", mailbox, "err", err)
		c.opt.Syncer.Hint(account, mailbox)
	}
}

// Intend notes a MOVE that is about to be sent to production: should this process end
// before its answer, it is a doubt.
func (c *Cache) Intend(account string, d row.Doubt) imapsession.Intent {
	arrived, over := c.opt.Moves.Intend(account, d)
	return imapsession.Intent{Arrived: arrived, Over: over}
}

// Unanswered keeps what a MOVE may have done that production did not answer before
// the session was lost.
func (c *Cache) Unanswered(account string, d row.Doubt) {
	if err := c.opt.Moves.NoteDoubt(context.Background(), account, d); err != nil {
		c.opt.Log.Error("keep an unanswered MOVE", "account", account, "err", err)
	}
}

// Settle makes durable what an accepted command changed.
func (c *Cache) Settle(ctx context.Context, account string, ex *imapsession.Exchange, ok imapwire.Response) error {
	ctx, cancel := context.WithTimeout(ctx, syncLimit)
	defer cancel()
	err := c.fromWire(ctx, account, ex, ok)
	if err == nil {
		c.wire.Add(1)
		return nil
	}
	if !errors.Is(err, errUnclear) {
		c.opt.Log.Debug("change is not clear from the wire", "account", account, "command", ex.Name(), "err", err)
	}
	c.synced.Add(1)
	if err := c.bySync(ctx, account, ex); err != nil {
		if d, ok := ex.Doubt(); ok {
			c.Unanswered(account, d)
		}
		return err
	}
	return nil
}

var errUnclear = errors.New("the wire does not tell enough")

func (c *Cache) fromWire(ctx context.Context, account string, ex *imapsession.Exchange, ok imapwire.Response) error {
	if ex.Unknown {
		return errUnclear
	}
	err := errUnclear
	switch args := ex.Args.(type) {
	case imapwire.AppendArgs:
		err = c.appended(ctx, account, ex, args, ok)
	case imapwire.StoreArgs:
		err = c.stored(ctx, account, ex, args, ok)
	case imapwire.CopyArgs:
		return c.copied(ctx, account, ex)
	default:
		// What an EXPUNGE did the first time was not told.
		if ex.Verb == imapwire.Expunge && !ex.Tries.Again {
			err = c.opt.Mailboxes.LearnExpunge(ctx, account, ex.Mailbox, ex.Heard.Expunged)
		}
	}
	if err == nil {
		c.opt.Syncer.Later(account, ex.Mailbox)
	}
	return err
}

// bySync settles by reading from production what became of a command.
func (c *Cache) bySync(ctx context.Context, account string, ex *imapsession.Exchange) error {
	_, unreadable := ex.Args.(imapwire.Unreadable)
	switch {
	case ex.Verb.OfFolders():
		return c.opt.Syncer.SyncFolders(ctx, account)
	case unreadable && (ex.Verb == imapwire.Append || ex.Verb.MovesOrCopies()):
		return c.syncAll(ctx, account) // production knows where, and nobody here
	case ex.Verb == imapwire.Close:
		sn, err := c.opt.Mailboxes.Snapshot(account, ex.Mailbox)
		if err == nil && !slices.ContainsFunc(sn.Rows, func(m *row.Message) bool { return m.HasFlag(`\Deleted`) }) {
			c.opt.Syncer.Hint(account, ex.Mailbox)
			return nil
		}
	case ex.Verb.MovesOrCopies():
		if err := c.syncBox(ctx, account, ex.Target()); err != nil {
			return err
		}
		// Where a MOVE arrived is known: that it departed may be, too.
		if arrived := ex.Kept.Intent.Arrived; arrived != nil {
			arrived()
		}
	}
	if ex.Mailbox == "" {
		return nil // nothing was selected, nothing was changed
	}
	return c.syncBox(ctx, account, ex.Mailbox)
}

// syncAll syncs all mailboxes of an account.
func (c *Cache) syncAll(ctx context.Context, account string) error {
	if err := c.opt.Syncer.SyncFolders(ctx, account); err != nil {
		return err
	}
	boxes, err := c.opt.Mailboxes.Mailboxes(account)
	for _, m := range boxes {
		if err == nil && !m.NoSelect {
			err = c.syncBox(ctx, account, m.Name)
		}
	}
	return err
}

// seedLimit bounds how long an OK waits for a mailbox that is still being
// copied for the first time.
const seedLimit = time.Second

// syncBox syncs a mailbox. One whose first copy is not done yet cannot be made
// whole while a client waits: its changes are on production alone until then.
func (c *Cache) syncBox(ctx context.Context, account, mailbox string) error {
	if sn, err := c.opt.Mailboxes.Snapshot(account, mailbox); err == nil && sn.Synced {
		return c.opt.Syncer.SyncMailbox(ctx, account, mailbox)
	}
	ctx, cancel := context.WithTimeout(ctx, seedLimit)
	defer cancel()
	if err := c.opt.Syncer.SyncMailbox(ctx, account, mailbox); err != nil {
		c.opt.Log.Debug("change in a mailbox that is not copied yet", "account", account, "mailbox", mailbox, "err",
			err)
		c.opt.Syncer.Hint(account, mailbox)
	}
	return nil
}

func (c *Cache) appended(ctx context.Context, account string, ex *imapsession.Exchange,
	args imapwire.AppendArgs, ok imapwire.Response) error {
	sp := ex.Kept.Spool
	if ok.Code != "APPENDUID" || ex.Extra || sp == nil || args.Form != imapwire.Plain {
		return errUnclear
	}
	code := imapwire.NewReader(ok.Arg)
	validity := code.Number32()
	code.SP()
	uid := code.Number32()
	code.End()
	if code.Err() != nil {
		return errUnclear
	}
	n := row.AppendOf{Mailbox: ex.Mailbox, UIDValidity: validity, UID: uid}
	n.Flags, n.Date = args.Flags, args.Date
	if n.Date.IsZero() {
		n.Date = time.Now()
	}
	var err error
	if n.Ref, err = sp.Commit(); err != nil {
		return err
	}
	if err := c.opt.Mailboxes.LearnAppend(ctx, account, n); err != nil {
		return err
	}
	c.told.add(account, n.Mailbox, uid)
	if ex.Tries.Again {
		c.expectLate(lateCopy{account: account, mailbox: n.Mailbox, told: map[uint32]row.Ref{uid: n.Ref},
			mark: ex.Kept.Mark})
	}
	c.opt.Syncer.Hint(account, ex.Mailbox) // for the date that production gave it
	return nil
}

func (c *Cache) stored(ctx context.Context, account string, ex *imapsession.Exchange,
	args imapwire.StoreArgs, ok imapwire.Response) error {
	if args.Conditional || ok.Code == "MODIFIED" {
		return errUnclear
	}
	ch := row.FlagChange{UIDs: ex.UIDs, Op: row.FlagOp(args.Op), Flags: args.Flags}
	told := make([]row.FlagsOf, 0, len(ex.Heard.Fetched))
	for _, f := range ex.Heard.Fetched {
		told = append(told, row.FlagsOf{UID: f.UID, Flags: f.Flags})
	}
	return c.opt.Mailboxes.LearnFlags(ctx, account, ex.Mailbox, ch, told)
}

func (c *Cache) copied(ctx context.Context, account string, ex *imapsession.Exchange) error {
	cp := row.CopyOf{From: ex.Mailbox, To: ex.Target(), Move: ex.Verb == imapwire.Move}
	var err error
	if cp.UIDValidity, cp.Src, cp.Dst, err = imapsession.ParseCopyUID(ex.Heard.CopyUID); err != nil {
		return errUnclear
	}
	if err := c.opt.Mailboxes.LearnCopy(ctx, account, cp); err != nil {
		return err
	}
	c.told.add(account, cp.To, cp.Dst...)
	if ex.Tries.Again {
		c.expectCopies(account, cp, ex.Kept.Mark)
	}
	c.opt.Syncer.Later(account, cp.To)
	if cp.Move {
		c.opt.Syncer.Later(account, cp.From)
	}
	return nil
}
