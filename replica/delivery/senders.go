package delivery

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"time"

	"understudy/replica/journal"
	"understudy/replica/row"
)

// A sender whose message was taken and who was not answered comes again with the
// same message, which must not be taken for another one. So before anybody may
// take a message it is noted in a journal, and struck off when its sender is
// answered. What is left when this process is ended is looked for when mail
// arrives. After a fall of the whole machine a message may be there twice, as RFC
// 5321 section 6.1 allows.

// unanswered is a message whose sender was not answered yet.
type unanswered struct {
	From string
	To   string // digest of the recipients
	Ref  row.Ref
	At   time.Time
}

const (
	// repeatLimit is how long senders try: RFC 5321 section 4.5.4.1 says four to
	// five days.
	repeatLimit = 6 * 24 * time.Hour
	// maxLeft bounds the messages whose sessions ended; the oldest are forgotten.
	maxLeft = 1000
)

func recipients(rcpts []string) string {
	sum := sha256.Sum256([]byte(strings.Join(sortedFold(rcpts), "\n")))
	return hex.EncodeToString(sum[:16])
}

func sortedFold(rcpts []string) []string {
	out := make([]string, 0, len(rcpts))
	for _, r := range rcpts {
		out = append(out, strings.ToLower(r))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Senders are those that were not answered. Its fields are of the one who has the
// journal's turn, which is held for a line of it and nothing else.
type Senders struct {
	journal *journal.Journal[unanswered]
	left    []uint64 // their sessions ended; in order
	before  uint64   // up to this one they are of processes before this one
}

// OpenSenders opens the journal in a directory.
func OpenSenders(dir string) (*Senders, error) {
	j, err := journal.Open[unanswered](dir, "unanswered", "messages without an answer")
	if err != nil {
		return nil, err
	}
	j.Drop(func(u unanswered) bool { return time.Since(u.At) > repeatLimit })
	s := &Senders{journal: j, before: j.Last(), left: j.Open()}
	s.trim()
	return s, j.Renew()
}

// Close closes the journal.
func (s *Senders) Close() error { return s.journal.Close() }

// trim forgets the oldest of too many.
func (s *Senders) trim() {
	for len(s.left) > maxLeft {
		s.journal.End(s.left[0])
		s.left = s.left[1:]
	}
}

// Await notes that a message is about to be taken. Replied or Unreplied must
// follow.
func (s *Senders) Await(e row.Envelope, ref row.Ref) (id uint64) {
	u := unanswered{From: e.From, To: recipients(e.Rcpts), Ref: ref, At: time.Now()}
	s.journal.Do(func() { id = s.journal.Begin(u) })
	return id
}

// Replied records that the sender was answered, with whatever.
func (s *Senders) Replied(id uint64) { s.journal.Do(func() { s.journal.End(id) }) }

// Unreplied records that the session ended before that.
func (s *Senders) Unreplied(id uint64) {
	s.journal.Do(func() {
		s.left = append(s.left, id)
		s.trim()
	})
}

// Unanswered reports whether there are messages at all whose senders may come
// again.
func (s *Senders) Unanswered() (some bool) {
	s.journal.Do(func() { some = len(s.left) > 0 })
	return some
}

// Again reports whether a message was about to be taken before, and its sender
// not answered, since when, and whether that was before this process began: then
// nobody knows what production answered. It says so once.
func (s *Senders) Again(e row.Envelope, ref row.Ref) (since time.Time, before, ok bool) {
	to := recipients(e.Rcpts)
	s.journal.Do(func() {
		i := slices.IndexFunc(s.left, func(id uint64) bool {
			u, _ := s.journal.Item(id)
			return u.Ref == ref && u.From == e.From && u.To == to && time.Since(u.At) < repeatLimit
		})
		if i < 0 {
			return
		}
		id := s.left[i]
		u, _ := s.journal.Item(id)
		s.left = slices.Delete(s.left, i, i+1)
		s.journal.End(id)
		since, before, ok = u.At, id <= s.before, true
	})
	return since, before, ok
}
