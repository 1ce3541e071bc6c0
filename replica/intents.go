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
	arrived bool // in the replica, too
}

// openIntents makes doubts of what an earlier process left.
func (s *Replica) openIntents() (err error) {
	if s.intents, err = openJournal[intent](s.opt.Dir, "moves", "moves without an answer"); err != nil {
		return err
	}
	for _, i := range s.intents.open {
		// A mailbox that is gone has nothing to be mistaken.
		if err := s.NoteDoubt(context.Background(), i.Account, i.Doubt); err != nil && !errors.Is(err, store.ErrNoMailbox) && !errors.Is(err, store.ErrNoAccount) {
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
	id := j.begin(intent{Account: account, Doubt: d})
	arrived = func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		if i, ok := j.open[id]; ok {
			i.arrived = true
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
		if name, _ := s.Resolve(i.Account); name == account && i.Doubt.From == mailbox && !i.arrived {
			uids = append(uids, i.Doubt.UIDs...)
		}
	}
	return uids
}
