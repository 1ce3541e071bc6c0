package delivery

import (
	"context"
	"fmt"
	"time"

	"understudy/replica/meta"
	"understudy/replica/row"
)

// Refuse forgets a message that production refused, or whose sender was not answered
// and will come again.
func (d *Deliveries) Refuse(ctx context.Context, id uint64) error {
	return d.tell(ctx, id, row.HeldHappened{Event: row.HeldRefused, By: row.ByCache})
}

// Found forgets a message that was in the mailboxes of all recipients before it was
// held.
func (d *Deliveries) Found(ctx context.Context, id uint64) error {
	return d.tell(ctx, id, row.HeldHappened{Event: row.HeldFound, By: row.ByCache})
}

// Expire forgets a message that nobody waits for any more.
func (d *Deliveries) Expire(ctx context.Context, id uint64) error {
	return d.tell(ctx, id, row.HeldHappened{Event: row.HeldExpires, By: row.ByKeeper})
}

// Confirm records that production answered a held message with 250. Nothing is
// written; where it fails, that 250 must not be passed on: the standby would leave
// the message alone.
func (d *Deliveries) Confirm(id uint64) error {
	return d.tell(context.Background(), id, row.HeldHappened{Event: row.HeldConfirmed, By: row.ByCache})
}

// Owe records that a message counts as accepted though nobody knows production's
// answer.
func (d *Deliveries) Owe(ctx context.Context, id uint64) error {
	return d.tell(ctx, id, row.HeldHappened{Event: row.HeldUnanswered, By: row.ByCache})
}

// Giving records that production is about to be given a message that it may then have,
// whatever becomes of the answer. It returns the message as it was; ok is false if it
// is not due, or not held any more.
func (d *Deliveries) Giving(ctx context.Context, id uint64, now time.Time,
	due func(row.Held) bool) (was row.Held, ok bool, err error) {
	h, leave, err := d.its(ctx, id)
	if err != nil || leave == nil {
		return h, false, err
	}
	defer leave()
	if !due(h) {
		return h, false, nil
	}
	_, ok, err = d.stepInTurn(ctx, h, row.HeldHappened{Event: row.HeldGives, By: row.ByStandby, At: now})
	return h, ok && err == nil, err
}

// NotGiven takes that back: production surely has not got it.
func (d *Deliveries) NotGiven(ctx context.Context, id uint64) error {
	return d.tell(ctx, id, row.HeldHappened{Event: row.HeldNotGiven, By: row.ByStandby})
}

// Given records that production has answered for it.
func (d *Deliveries) Given(ctx context.Context, id uint64) error {
	return d.tell(ctx, id, row.HeldHappened{Event: row.HeldGiven, By: row.ByStandby})
}

// GivingLost records that production did not answer: it may have it.
func (d *Deliveries) GivingLost(ctx context.Context, id uint64) error {
	return d.tell(ctx, id, row.HeldHappened{Event: row.HeldGivingLost, By: row.ByStandby})
}

// tell hands a held message an event; one that is not held any more gets none.
func (d *Deliveries) tell(ctx context.Context, id uint64, e row.HeldHappened) error {
	h, leave, err := d.its(ctx, id)
	if err != nil || leave == nil {
		return err
	}
	defer leave()
	_, _, err = d.stepInTurn(ctx, h, e)
	return err
}

// its waits for the turn of a held message; leave is nil if it is not held.
func (d *Deliveries) its(ctx context.Context, id uint64) (h row.Held, leave func(), err error) {
	h, ok := d.byNumber(id)
	if !ok {
		return h, nil, nil
	}
	if leave, err = d.turn(ctx, h.Ref); err != nil {
		return h, nil, fmt.Errorf("held message %d: %w", id, err)
	}
	if h, ok = d.byNumber(id); !ok {
		leave()
		return h, nil, nil
	}
	return h, leave, nil
}

// step makes one transition of a message that is in no mailbox's batch.
func (d *Deliveries) step(ctx context.Context, h row.Held, e row.HeldHappened) (row.Held, bool, error) {
	leave, err := d.turn(ctx, h.Ref)
	if err != nil {
		return h, false, err
	}
	defer leave()
	return d.stepInTurn(ctx, h, e)
}

func (d *Deliveries) stepInTurn(ctx context.Context, h row.Held, e row.HeldHappened) (row.Held, bool, error) {
	next, r, ok := h.Step(e)
	if !ok {
		return h, false, nil
	}
	if r.OnDisk == row.RowFirst {
		var b meta.Batch
		stage(&b, next)
		if _, err := d.opt.Rows.Commit(ctx, b); err != nil {
			d.failed(err, h.Ref)
			return h, false, fmt.Errorf("held message %d, %s: %w", h.ID, e.Event, err)
		}
	}
	d.show(next)
	return next, true, nil
}

// stage adds a message's row to a batch.
func stage(b *meta.Batch, h row.Held) {
	if h.State.Ended() {
		b.Delete(meta.HeldKey(h.ID))
		return
	}
	b.PutJSON(meta.HeldKey(h.ID), h)
}
