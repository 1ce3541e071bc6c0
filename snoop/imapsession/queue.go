package imapsession

import (
	"slices"

	"understudy/replica/row"
	"understudy/snoop/imapwire"
)

// queue holds the exchanges of a session that are not over.
type queue struct {
	cur      *Exchange   // the client is still sending it
	pending  []*Exchange // that are owed an answer, oldest first
	settling *Exchange   // its answer is held back
}

// Outstanding returns the commands that wait for their answer, oldest first.
func (s *queue) Outstanding() []*Exchange { return slices.Clone(s.pending) }

// Oldest returns the command that the server is believed to work on, or nil.
func (s *queue) Oldest() *Exchange {
	if len(s.pending) == 0 {
		return nil
	}
	return s.pending[0]
}

// waiting returns the exchange whose client waits for the server's word: only the
// newest can.
func (s *queue) waiting() *Exchange {
	if n := len(s.pending); n > 0 && s.pending[n-1].state == Waiting {
		return s.pending[n-1]
	}
	return nil
}

// Opening reports whether the server is believed to open a mailbox, so that
// numbers are those of no view yet.
func (s *queue) Opening() bool {
	ex := s.Oldest()
	return ex != nil && ex.Verb.Opens()
}

// Unclear returns the commands of which it has to be found out whether a lost upstream
// had done them.
func (s *queue) Unclear() (list []*Exchange) {
	for _, ex := range s.pending {
		if ex.state == Asked && (ex.Verb == imapwire.Append || ex.Verb.MovesOrCopies()) {
			list = append(list, ex)
		}
	}
	return list
}

// Undone is a command that production has left without an answer.
type Undone struct {
	Changes bool       // it may have changed something
	Doubt   *row.Doubt // to be noted
	Release Kept       // its Intent: what became of it is kept elsewhere
}

// Unanswered returns what an upstream that was lost has left.
func (s *queue) Unanswered(production bool) (list []Undone) {
	for _, ex := range s.pending {
		u := Undone{Changes: production && ex.Whole && ex.Verb.Changes()}
		if d, ok := ex.Doubt(); ok && u.Changes {
			u.Doubt = &d
		}
		u.Release.Intent, ex.Kept.Intent = ex.Kept.Intent, Intent{}
		list = append(list, u)
	}
	return list
}

// End returns all that is attached to commands of a session that is over.
func (s *queue) End() (list []Kept) {
	for _, ex := range append(s.Outstanding(), s.cur, s.settling) {
		if ex != nil {
			list = append(list, ex.Kept)
			ex.Kept = Kept{}
		}
	}
	return list
}

// busy reports whether the session waits for an answer to a command that was
// received whole; idle ones count if all is set, else only changes do.
func (s *queue) busy(all bool) bool {
	return s.settling != nil || slices.ContainsFunc(s.pending, func(ex *Exchange) bool {
		return ex.Whole && (ex.Verb.Changes() || all && ex.Verb != imapwire.Idle)
	})
}

// begin begins an exchange.
func (s *queue) begin() {
	s.cur = &Exchange{}
	s.pending = append(s.pending, s.cur)
}

// take takes the oldest command with a tag off; nil if there is none.
func (s *queue) take(tag string) *Exchange {
	for i, ex := range s.pending {
		if ex.Tag == tag {
			s.pending = slices.Delete(s.pending, i, i+1)
			return ex
		}
	}
	return nil
}

// changing returns the last command before the newest that changes which mailbox is
// selected, nil if none does.
func (s *queue) changing() *Exchange {
	for i := len(s.pending) - 2; i >= 0; i-- {
		if ex := s.pending[i]; ex.Verb.Opens() || ex.Verb.Leaves() {
			return ex
		}
	}
	return nil
}
