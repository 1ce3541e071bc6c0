package copyback

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy/failover/imapd"
	"understudy/replica"
	"understudy/replica/imapc"
	"understudy/replica/row"
	"understudy/replica/store"
)

const user = "u"

// pair is an account on production and on the standby, with a copier between them.
type pair struct {
	t         *testing.T
	prod, box *replica.Replica
	*Copier

	read    func() // called once, when an account was read and before anything is done
	rebased func() // called once, after the base was moved along
	appends bool   // copy-back has noted that it is about to append
	cut     bool   // break off after that
}

func newPair(t *testing.T) *pair {
	t.Helper()
	p := &pair{t: t, prod: openReplica(t, true), box: openReplica(t, false)}
	_, err := p.prod.EnsureAccount(t.Context(), user, row.Standby)
	_, berr := p.box.EnsureAccount(t.Context(), user, row.Production)
	p.must(err, berr)
	p.Copier = New(Options{Store: accounts{p.box, p}, Ledgers: ledgers{p.box, p}, Messages: p.box.Blobs,
		Log: slog.New(slog.DiscardHandler), Dial: p.dial})
	return p
}

func openReplica(t *testing.T, primary bool) *replica.Replica {
	t.Helper()
	r, err := replica.Open(replica.Options{Dir: t.TempDir(), Primary: primary})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func (p *pair) must(errs ...error) {
	p.t.Helper()
	if err := errors.Join(errs...); err != nil {
		p.t.Fatal(err)
	}
}

// accounts and ledgers are those of the standby, and let something happen in between.
type accounts struct {
	*replica.Replica
	p *pair
}

var errCut = errors.New("cut off")

func (a accounts) SnapshotByID(name string, id row.MailboxID) (*row.Snapshot, error) {
	if a.p.cut && a.p.appends {
		return nil, errCut
	}
	return a.Replica.SnapshotByID(name, id)
}

func (a accounts) Rebase(ctx context.Context, name string, f func(*Tx)) error {
	err := a.Replica.Rebase(ctx, name, f)
	if f := a.p.rebased; f != nil {
		a.p.rebased = nil
		f()
	}
	return err
}

type ledgers struct {
	*replica.Replica
	p *pair
}

func (l ledgers) BeginCopy(ctx context.Context, name string, d row.Doubt) ([]byte, error) {
	l.p.appends = true
	return l.Replica.BeginCopy(ctx, name, d)
}

// dial connects to production, which is our own engine.
func (p *pair) dial(ctx context.Context, _ string) (*imapc.Conn, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer func() { _ = l.Close() }()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return nil, err
	}
	server, err := l.Accept()
	if err != nil {
		return nil, err
	}
	caps := strings.Join(imapd.Caps(), " ")
	if _, err := fmt.Fprintf(server, "* PREAUTH [CAPABILITY %s] ready\r\n", caps); err != nil {
		return nil, err
	}
	srv := imapd.New(imapd.Options{Store: p.prod})
	go func() {
		_ = srv.ServeConn(context.WithoutCancel(ctx), server, imapd.Session{User: user})
		_ = server.Close()
	}()
	return imapc.New(ctx, client, imapc.Options{})
}

func (p *pair) add(r *replica.Replica, mailbox, text string) uint32 {
	p.t.Helper()
	ref, err := r.PutMessage([]byte("Subject: " + text + "\r\n\r\n" + text + "\r\n"))
	p.must(err)
	_, uids, err := r.Append(p.t.Context(), user, mailbox, []row.New{{Ref: ref, Date: time.Unix(1_700_000_000, 0)}})
	p.must(err)
	return uids[0]
}

// mailbox makes one on both sides, as it is when the standby takes over.
func (p *pair) mailbox(name string, messages int) {
	p.t.Helper()
	p.must(p.prod.Create(p.t.Context(), user, name, nil))
	for i := range messages {
		p.add(p.prod, name, fmt.Sprint(name, i))
	}
	sn, err := p.prod.Snapshot(user, name)
	p.must(err)
	p.must(p.box.Update(p.t.Context(), user, store.ByMirror, func(tx *store.Tx) error {
		m := sn.Mailbox
		m.Messages, m.SyncedNext = 0, m.UIDNext
		to := tx.Add(m)
		for _, r := range sn.Rows {
			raw, err := p.prod.Message(r.Ref)
			if err != nil {
				return err
			}
			if _, err := p.box.PutMessage(raw); err != nil {
				return err
			}
			c := *r
			tx.PutRow(to.ID, &c)
		}
		return nil
	}))
}

func (p *pair) takeOver() { p.t.Helper(); p.must(p.box.BeginActing(p.t.Context(), user, 0)) }

func (p *pair) uids(r *replica.Replica, mailbox string) []uint32 {
	p.t.Helper()
	sn, err := r.Snapshot(user, mailbox)
	p.must(err)
	return sn.UIDs
}

func (p *pair) handOver() error {
	defer func() { _ = p.box.Seal(user, false) }()
	return p.HandOver(p.t.Context(), user, func() error { return p.box.Seal(user, true) })
}

// DoubtsOf is asked when copy-back begins, when it reads an account, and after that.
func (l ledgers) DoubtsOf(name string) ([]row.Doubt, error) {
	d, err := l.Replica.DoubtsOf(name)
	if l.p.read != nil {
		l.p.read()
	}
	return d, err
}

// at has f called at the last of these questions.
func (p *pair) at(f func()) {
	n := 0
	p.read = func() {
		if n++; n == 3 {
			p.read = nil
			f()
		}
	}
}

// E11: a client deletes mailboxes after copy-back has read them: one that production is
// to get, and one whose flags are to be set here. The box goes on, and both are gone.
func TestE11_DeletedMeanwhile(t *testing.T) {
	p := newPair(t)
	p.mailbox("INBOX", 1)
	p.mailbox("Old", 2)
	p.takeOver()
	old, err := p.prod.Snapshot(user, "Old")
	p.must(err, p.box.Create(t.Context(), user, "New", nil))
	p.add(p.box, "New", "fresh")
	_, err = p.prod.SetFlags(t.Context(), user, row.FlagChange{Mailbox: old.ID, UIDs: old.UIDs, Op: row.Add,
		Flags: []string{`\Seen`}})
	p.must(err)
	p.at(func() { p.must(p.box.Delete(t.Context(), user, "New"), p.box.Delete(t.Context(), user, "Old")) })
	if _, err := p.Account(t.Context(), user); err != nil {
		t.Error(err)
	}
	p.must(p.handOver())
	boxes, err := p.prod.Mailboxes(user)
	p.must(err)
	for _, m := range boxes {
		if m.Name == "Old" || m.Name == "New" && m.Messages > 0 {
			t.Errorf("production has %s with %d messages", m.Name, m.Messages)
		}
	}
}

// N12: production is lost again just after it got back what it had lost before. What
// the standby then takes gets none of those UIDs.
func TestN12_CutOffAfterRestore(t *testing.T) {
	p := newPair(t)
	p.mailbox("INBOX", 20)
	p.takeOver()
	in, err := p.prod.Snapshot(user, "INBOX")
	p.must(err)
	_, err = p.prod.SetFlags(t.Context(), user, row.FlagChange{Mailbox: in.ID, UIDs: in.UIDs[:10], Op: row.Add,
		Flags: []string{`\Deleted`}})
	p.must(err, p.prod.Expunge(t.Context(), user, in.ID, nil))
	p.cut = true
	if err := p.handOver(); !errors.Is(err, errCut) {
		t.Fatal(err)
	}
	p.cut = false
	restored := p.uids(p.prod, "INBOX")
	uid := p.add(p.box, "INBOX", "taken after that")
	if len(restored) != 20 || slices.Contains(restored, uid) || uid < slices.Max(restored) {
		t.Errorf("production has %v, and the standby gave %d", restored, uid)
	}
	p.must(p.handOver())
	if a, b := p.uids(p.prod, "INBOX"), p.uids(p.box, "INBOX"); len(a) != 21 || !slices.Equal(a, b) {
		t.Errorf("production has %v, the standby %v", a, b)
	}
}

// D9: a mailbox is deleted on the standby after production got mail in it that waits
// there to be taken: the standby never had that, so it stays.
func TestD9_DeletedWithLateMail(t *testing.T) {
	p := newPair(t)
	p.mailbox("INBOX", 1)
	p.mailbox("Lists", 2)
	p.mailbox("Read", 2)
	p.takeOver()
	late := p.add(p.prod, "Lists", "late")
	if _, err := p.Account(t.Context(), user); err != nil {
		t.Error(err)
	}
	p.must(p.box.Delete(t.Context(), user, "Lists"), p.box.Delete(t.Context(), user, "Read"))
	p.must(p.handOver())
	if !slices.Contains(p.uids(p.prod, "Lists"), late) {
		t.Error("mail that nobody has seen is gone")
	}
	if _, err := p.prod.Snapshot(user, "Read"); err == nil {
		t.Error("a mailbox that a client deleted is still there")
	}
}

// E11: a client renames a mailbox while copy-back repeats what became of others.
func TestE11_RenamedMeanwhile(t *testing.T) {
	p := newPair(t)
	for _, name := range []string{"INBOX", "A", "B"} {
		p.mailbox(name, 1)
	}
	p.takeOver()
	p.must(p.box.Delete(t.Context(), user, "B"))
	p.rebased = func() { p.must(p.box.Rename(t.Context(), user, "A", "C")) }
	_, _ = p.Account(t.Context(), user) // it may break off, and comes again
	p.must(p.handOver())
	boxes, err := p.prod.Mailboxes(user)
	p.must(err)
	if len(boxes) != 2 || boxes[0].Name != "C" || boxes[0].Messages != 1 {
		t.Errorf("production has %+v", boxes)
	}
}
