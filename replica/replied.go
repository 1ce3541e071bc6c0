package replica

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"time"

	"understudy/replica/match"
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

// answers is that journal.
type answers struct {
	*journal[unanswered]
	left   []uint64 // their sessions ended; in order
	before uint64   // up to this one they are of processes before this one
}

func openAnswers(dir string) (*answers, error) {
	j, err := openJournal[unanswered](dir, "unanswered", "messages without an answer")
	if err != nil {
		return nil, err
	}
	a := &answers{journal: j, before: j.next}
	maps.DeleteFunc(j.open, func(_ uint64, u unanswered) bool { return time.Since(u.At) > repeatLimit })
	a.left = slices.Sorted(maps.Keys(j.open))
	a.trim()
	return a, j.renew()
}

// trim forgets the oldest of too many.
func (a *answers) trim() {
	for len(a.left) > maxLeft {
		a.end(a.left[0])
		a.left = a.left[1:]
	}
}

// Await notes that a message is about to be taken. Replied or Unreplied must
// follow.
func (s *Replica) Await(e row.Envelope, ref row.Ref) (id uint64) {
	a := s.answers
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.begin(unanswered{From: e.From, To: recipients(e.Rcpts), Ref: ref, At: time.Now()})
}

// Replied records that the sender was answered, with whatever.
func (s *Replica) Replied(id uint64) {
	a := s.answers
	a.mu.Lock()
	defer a.mu.Unlock()
	a.end(id)
}

// Unreplied records that the session ended before that.
func (s *Replica) Unreplied(id uint64) {
	a := s.answers
	a.mu.Lock()
	defer a.mu.Unlock()
	a.left = append(a.left, id)
	a.trim()
}

// Unanswered reports whether there are messages at all whose senders may come
// again.
func (s *Replica) Unanswered() bool {
	s.answers.mu.Lock()
	defer s.answers.mu.Unlock()
	return len(s.answers.left) > 0
}

// Again reports whether a message was about to be taken before, and its sender
// not answered, since when, and whether that was before this process began: then
// nobody knows what production answered. It says so once.
func (s *Replica) Again(e row.Envelope, ref row.Ref) (since time.Time, before, ok bool) {
	to := recipients(e.Rcpts)
	a := s.answers
	a.mu.Lock()
	defer a.mu.Unlock()
	i := slices.IndexFunc(a.left, func(id uint64) bool {
		u := a.open[id]
		return u.Ref == ref && u.From == e.From && u.To == to && time.Since(u.At) < repeatLimit
	})
	if i < 0 {
		return time.Time{}, false, false
	}
	id := a.left[i]
	u := a.open[id]
	a.left = slices.Delete(a.left, i, i+1)
	a.end(id)
	return u.At, id <= a.before, true
}

// Holding finds the held delivery of a message.
func (s *Replica) Holding(e row.Envelope, ref row.Ref) (row.Held, bool) {
	to := sortedFold(e.Rcpts)
	for _, h := range s.HeldAll() {
		if h.Ref == ref && h.From == e.From && h.MayDeliver() && !slices.ContainsFunc(sortedFold(h.Rcpts), func(r string) bool { return !slices.Contains(to, r) }) {
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
func (s *Replica) Delivered(e row.Envelope, ref row.Ref, since time.Time) bool {
	for _, rcpt := range e.Rcpts {
		route, ok := s.RouteOf(rcpt)
		if !ok || !s.holds(route.Account, ref, since) {
			return false
		}
	}
	return len(e.Rcpts) > 0
}

func (s *Replica) holds(account string, ref row.Ref, since time.Time) bool {
	boxes, err := s.Mailboxes(account)
	if err != nil {
		return false
	}
	for _, m := range boxes {
		sn, err := s.SnapshotByID(account, m.ID)
		if err != nil {
			continue
		}
		for _, r := range sn.Rows[max(0, len(sn.Rows)-deliveredRows):] {
			if r.Size < ref.Size || r.Size > ref.Size+deliveredHead || r.Date.Before(since.Add(-deliveredSkew)) {
				continue
			}
			if msg, err := s.Message(r.Ref); err == nil && s.delivers(match.Read(msg), ref) {
				return true
			}
		}
	}
	return false
}
