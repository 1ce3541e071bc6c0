package replica

import (
	"context"
	"errors"
	"fmt"

	"understudy/replica/row"
	"understudy/replica/store"
)

// A MOVE that production has done, and that nobody was told of because this
// process was ended in between, must not be taken for mail that production lost
// here and got by itself there. So each is noted in a journal before it is sent,
// and struck off when it is answered.

type intent struct {
	Account string
	Doubt   row.Doubt
}

// tell hands a MOVE under way an event; j.mu is held.
func (i *intent) tell(e row.DoubtEvent) {
	i.Doubt, _, _ = i.Doubt.Step(row.DoubtHappened{Event: e, By: row.ByCache})
}

// openIntents makes doubts of what an earlier process left.
func (s *Replica) openIntents() (err error) {
	if s.intents, err = openJournal[intent](s.opt.Dir, "moves", "moves without an answer"); err != nil {
		return err
	}
	for _, i := range s.intents.open {
		if i.Doubt.State != row.DoubtArrived {
			i.Doubt.State = row.DoubtIntended // lines of older versions tell no state
		}
		// A mailbox that is gone has nothing to be mistaken.
		e := row.DoubtHappened{Event: row.DoubtRestarted, By: row.ByLoad}
		if err := s.noteDoubt(context.Background(), i.Account, i.Doubt, e); err != nil && !errors.Is(err, store.ErrNoMailbox) && !errors.Is(err, store.ErrNoAccount) {
			return fmt.Errorf("moves without an answer: %w", err)
		}
	}
	clear(s.intents.open)
	return s.intents.renew()
}

// Intend notes a MOVE that is about to be sent to production. arrived has to be
// called when the replica has what the MOVE put into its other mailbox, and over when
// its outcome is known, or kept elsewhere.
func (s *Replica) Intend(account string, d row.Doubt) (arrived, over func()) {
	j := s.intents
	j.mu.Lock()
	defer j.mu.Unlock()
	i := intent{Account: account, Doubt: d}
	i.tell(row.DoubtIntend)
	id := j.begin(i)
	arrived = func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		if i, ok := j.open[id]; ok {
			i.tell(row.DoubtArrive)
			j.open[id] = i
		}
	}
	over = func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.end(id)
	}
	return arrived, over
}

// Moving lists the messages of a mailbox that MOVEs under way take away. That they
// are gone from there is no news before it is known where they arrived: should production be lost in between, they would be nowhere.
func (s *Replica) Moving(account, mailbox string) (uids []uint32) {
	j := s.intents
	j.mu.Lock()
	defer j.mu.Unlock()
	account, _ = s.Resolve(account)
	for _, i := range j.open {
		if name, _ := s.Resolve(i.Account); name == account && i.Doubt.Departing(mailbox) {
			uids = append(uids, i.Doubt.UIDs...)
		}
	}
	return uids
}
