package delivery

import (
	"slices"
	"time"

	"understudy/replica/match"
	"understudy/replica/row"
)

// enough is the evidence by which a message that was read whole is a held one, a twin,
// or one that was delivered.
const enough = match.Whole

// Arrival is a message found in a mailbox, of which only the header was read.
type Arrival struct {
	Header []byte
	Size   int64 // of the whole message
}

// MatchHeld looks for the held message that an arrival is. It returns the whole message
// as it arrived.
func (d *Deliveries) MatchHeld(a Arrival) (h row.Held, msg []byte, ok bool) {
	for _, h := range d.alike(match.Key(a.Size - int64(len(a.Header)))) {
		sent, err := d.opt.Messages.Get(h.Ref)
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
func (d *Deliveries) MatchHeldBody(msg []byte) (h row.Held, ok bool) {
	found := match.Read(msg)
	for _, h := range d.alike(match.Key(found.BodyLen())) {
		if delivers(d.opt.Messages, found, h.Ref) {
			return h, true
		}
	}
	return row.Held{}, false
}

// delivers reports whether a message is what became of one that was sent.
func delivers(in Messages, found *match.Text, sent row.Ref) bool {
	orig, err := in.Get(sent)
	return err == nil && match.Compare(match.Read(orig), found, enough) != 0
}

// Holding finds the held message of an envelope, among those that count as accepted.
func (d *Deliveries) Holding(e row.Envelope, ref row.Ref) (row.Held, bool) {
	to := sortedFold(e.Rcpts)
	other := func(rcpt string) bool { return !slices.Contains(to, rcpt) }
	for _, h := range d.HeldAll() {
		if h.Ref == ref && h.From == e.From && h.MayDeliver() && !slices.ContainsFunc(sortedFold(h.Rcpts), other) {
			return h, true
		}
	}
	return row.Held{}, false
}

// Bounds of what Delivered looks at.
const (
	deliveredSkew = 24 * time.Hour // of production's clock
	deliveredRows = 500            // the newest of each mailbox
	deliveredHead = 16 << 10       // bytes that a server may add
)

// Delivered reports whether a message is in a mailbox of every recipient, since a
// time.
func (d *Deliveries) Delivered(e row.Envelope, ref row.Ref, since time.Time) bool {
	for _, rcpt := range e.Rcpts {
		to, ok := d.opt.Routes.RouteOf(rcpt)
		if !ok || !d.has(to.Account, ref, since) {
			return false
		}
	}
	return len(e.Rcpts) > 0
}

func (d *Deliveries) has(account string, ref row.Ref, since time.Time) bool {
	boxes, err := d.opt.Accounts.Mailboxes(account)
	if err != nil {
		return false
	}
	for _, m := range boxes {
		sn, err := d.opt.Accounts.SnapshotByID(account, m.ID)
		if err != nil {
			continue
		}
		for _, r := range sn.Rows[max(0, len(sn.Rows)-deliveredRows):] {
			if r.Size < ref.Size || r.Size > ref.Size+deliveredHead || r.Date.Before(since.Add(-deliveredSkew)) {
				continue
			}
			if msg, err := d.opt.Messages.Get(r.Ref); err == nil && delivers(d.opt.Messages, match.Read(msg), ref) {
				return true
			}
		}
	}
	return false
}
