package copyback

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"understudy/replica/delivery"
	"understudy/replica/row"
	"understudy/replica/store"
)

// chaos lets clients change the account, and production get mail, between any two
// steps of copy-back, and breaks it off there.
type chaos struct {
	*pair
	rnd    *rand.Rand
	n      int
	want   map[string]bool // contents that have to be there in the end
	sealed bool
	busy   bool
	cuts   int
	gone   bool // a client deleted a mailbox; if it is kept on production, with all that is in it
	events int
	log    []string
}

func (c *chaos) say(f string, a ...any) { c.log = append(c.log, fmt.Sprintf(f, a...)) }

func (c *chaos) point(where string) error {
	if c.busy {
		return nil
	}
	c.busy = true
	defer func() { c.busy = false }()
	for c.events > 0 && c.rnd.IntN(4) == 0 {
		c.events--
		if c.sealed || c.rnd.IntN(4) == 0 {
			c.produce()
		} else {
			c.client()
		}
	}
	if c.cuts > 0 && c.rnd.IntN(12) == 0 {
		c.cuts--
		c.say("cut at %s", where)
		return errCut
	}
	return nil
}

func (c *chaos) produce() {
	m := row.Mailbox{Name: []string{"INBOX", "A"}[c.rnd.IntN(2)]}
	c.n++
	text := fmt.Sprint("late", c.n)
	uid := c.add(c.prod, m.Name, text)
	c.want[text] = true
	c.say("production gets %s in %s as %d", text, m.Name, uid)
}

func (c *chaos) textOf(ref row.Ref) string {
	raw, err := c.box.Message(ref)
	if err != nil {
		raw, err = c.prod.Message(ref)
		c.must(err)
	}
	_, body, _ := strings.Cut(string(raw), "\r\n\r\n")
	return strings.TrimSpace(body)
}

func (c *chaos) flag(id row.MailboxID, uids []uint32, op row.FlagOp, flag string) {
	ch := row.FlagChange{Mailbox: id, UIDs: uids, Op: op, Flags: []string{flag}}
	_, err := c.box.SetFlags(c.t.Context(), user, ch)
	c.must(err)
}

func (c *chaos) client() {
	ctx := c.t.Context()
	boxes, err := c.box.Mailboxes(user)
	c.must(err)
	boxes = slices.DeleteFunc(boxes, func(m row.Mailbox) bool { return m.NoSelect })
	m := boxes[c.rnd.IntN(len(boxes))]
	sn, err := c.box.Snapshot(user, m.Name)
	c.must(err)
	var one []uint32
	if len(sn.UIDs) > 0 {
		one = []uint32{sn.UIDs[c.rnd.IntN(len(sn.UIDs))]}
	}
	switch c.rnd.IntN(8) {
	case 0, 1, 2:
		c.n++
		text := fmt.Sprint("client", c.n)
		uid := c.add(c.box, m.Name, text)
		c.want[text] = true
		c.say("client adds %s to %s as %d", text, m.Name, uid)
	case 3:
		if one != nil {
			op := []row.FlagOp{row.Add, row.Remove}[c.rnd.IntN(2)]
			c.flag(m.ID, one, op, `\Seen`)
		}
	case 4:
		if one != nil {
			c.flag(m.ID, one, row.Add, `\Deleted`)
			c.must(c.box.Expunge(ctx, user, m.ID, one))
			text := c.textOf(sn.Find(one[0]).Ref)
			delete(c.want, text)
			c.say("client deletes %s in %s", text, m.Name)
		}
	case 5:
		if to := boxes[c.rnd.IntN(len(boxes))]; one != nil && to.ID != m.ID {
			d, err := c.box.Copy(ctx, user, row.CopyCmd{From: m.ID, UIDs: one, To: to.Name, Move: true})
			c.must(err)
			c.say("client moves %s from %s %d to %s %v", c.textOf(sn.Find(one[0]).Ref), m.Name, one[0], to.Name, d.Dst)
		}
	case 6:
		c.n++
		name := fmt.Sprint("Box", c.n)
		c.must(c.box.Create(ctx, user, name, nil))
		c.say("client creates %s", name)
	case 7:
		if m.Name == "INBOX" || m.Name == "A" {
			return
		}
		if c.rnd.IntN(2) == 0 {
			c.n++
			to := fmt.Sprint("Ren", c.n)
			c.must(c.box.Rename(ctx, user, m.Name, to))
			c.say("client renames %s to %s", m.Name, to)
			return
		}
		c.gone = true
		for _, r := range sn.Rows {
			delete(c.want, c.textOf(r.Ref))
		}
		c.must(c.box.Delete(ctx, user, m.Name))
		c.say("client deletes mailbox %s with %d", m.Name, len(sn.Rows))
	}
}

type randomAccounts struct {
	accounts
	c *chaos
}

func (a randomAccounts) Rebase(ctx context.Context, name string, f func(*Tx)) error {
	if err := a.c.point("before rebase"); err != nil {
		return err
	}
	if err := a.accounts.Rebase(ctx, name, f); err != nil {
		return err
	}
	return a.c.point("after rebase")
}

func (a randomAccounts) BaseRows(name string, id row.MailboxID) (map[uint32]*row.Message, error) {
	rows, err := a.accounts.BaseRows(name, id)
	return rows, errors.Join(err, a.c.point("read"))
}

type randomLedgers struct {
	ledgers
	c *chaos
}

func (l randomLedgers) DoubtsOf(name string) ([]row.Doubt, error) {
	d, err := l.ledgers.DoubtsOf(name)
	return d, errors.Join(err, l.c.point("doubts"))
}

func (l randomLedgers) BeginCopy(ctx context.Context, name string, d row.Doubt) ([]byte, error) {
	key, err := l.ledgers.BeginCopy(ctx, name, d)
	return key, errors.Join(err, l.c.point("begin copy"))
}

func (l randomLedgers) Land(ctx context.Context, by store.Writer, in delivery.Landed, f func(*Tx) error) error {
	if err := l.c.point("before land"); err != nil {
		return err
	}
	if err := l.ledgers.Land(ctx, by, in, f); err != nil {
		return err
	}
	return l.c.point("after land")
}

// E11, N12: whatever clients and production do between two steps of copy-back, and
// wherever it breaks off, in the end each message is there once, on both sides.
func TestN12_AnythingMeanwhile(t *testing.T) {
	for seed := range uint64(15) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { chaosOnce(t, seed) })
	}
}

func chaosOnce(t *testing.T, seed uint64) {
	p := newPair(t)
	c := &chaos{pair: p, rnd: rand.New(rand.NewPCG(seed, 1)), want: map[string]bool{}, cuts: 4, events: 25, busy: true}
	p.Copier.opt.Store = randomAccounts{accounts{p.box, p}, c}
	p.Copier.opt.Ledgers = randomLedgers{ledgers{p.box, p}, c}
	for _, name := range []string{"INBOX", "A", "B"} {
		p.mailbox(name, 4)
		for i := range 4 {
			c.want[fmt.Sprint(name, i)] = true
		}
	}
	p.takeOver()
	for range 10 {
		c.client()
	}
	c.busy = false
	var err error
	for range 40 {
		_, err = p.Account(t.Context(), user)
		if err != nil {
			c.say("pass: %v", err)
		}
		err = p.HandOver(t.Context(), user, func() error { c.sealed = true; return p.box.Seal(user, true) })
		if err == nil {
			break
		}
		c.say("hand over: %v", err)
		c.sealed = false
		p.must(p.box.Seal(user, false))
	}
	c.busy = true
	if err != nil {
		t.Fatalf("%v\n%s", err, strings.Join(c.log, "\n"))
	}
	c.compare()
	if t.Failed() {
		t.Log("\n" + strings.Join(c.log, "\n"))
	}
}

func (c *chaos) compare() {
	boxes, err := c.box.Mailboxes(user)
	c.must(err)
	got := map[string]int{}
	for _, m := range boxes {
		if m.NoSelect {
			continue
		}
		sn, err := c.box.Snapshot(user, m.Name)
		c.must(err)
		pn, err := c.prod.Snapshot(user, m.Name)
		if err != nil {
			c.t.Errorf("production has no %s", m.Name)
			continue
		}
		var a, b []string
		for _, r := range sn.Rows {
			a = append(a, fmt.Sprint(r.UID, " ", c.textOf(r.Ref), r.Flags))
		}
		for _, r := range pn.Rows {
			b = append(b, fmt.Sprint(r.UID, " ", c.textOf(r.Ref), r.Flags))
		}
		if !slices.Equal(a, b) && !c.sealedLate(a, b) {
			c.t.Errorf("%s: standby %q\nproduction %q", m.Name, a, b)
		}
	}
	all, err := c.prod.Mailboxes(user)
	c.must(err)
	for _, m := range all {
		sn, err := c.prod.Snapshot(user, m.Name)
		c.must(err)
		for _, r := range sn.Rows {
			got[c.textOf(r.Ref)]++
		}
	}
	for text := range c.want {
		if got[text] == 0 {
			c.t.Errorf("%s is lost", text)
		}
	}
	for text, n := range got {
		if n > 1 {
			c.t.Errorf("%s is there %d times", text, n)
		} else if !c.want[text] && text != "" && !c.gone {
			c.t.Errorf("%s is there again", text)
		}
	}
}

// sealedLate: production got mail behind the last look.
func (c *chaos) sealedLate(a, b []string) bool {
	return len(b) > len(a) && slices.Equal(a, b[:len(a)])
}
