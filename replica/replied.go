package replica

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"understudy/replica/row"
)

// A sender whose message was taken and who was not answered comes again with the
// same message, which must not be taken for another one. So before anybody may
// take a message it is noted in a file, and struck off when its sender is
// answered. What is left when this process is ended is looked for when mail
// arrives. The file is written and not synced: it outlives the process, and not
// the machine, after whose fall a message may be there twice, as RFC 5321 section
// 6.1 allows; that costs no wait.

// unanswered is a line of the file: a message, or with Done that its sender was
// answered.
type unanswered struct {
	ID   uint64
	Done bool      `json:",omitempty"`
	From string    `json:",omitempty"`
	To   string    `json:",omitempty"` // digest of the recipients
	Ref  row.Ref   `json:",omitzero"`
	At   time.Time `json:",omitzero"`

	before bool // of a process before this one
}

const (
	// repeatLimit is how long senders try: RFC 5321 section 4.5.4.1 says four to
	// five days.
	repeatLimit = 6 * 24 * time.Hour
	// maxUnanswered is at which size the file is begun anew, in bytes.
	maxUnanswered = 1 << 20
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

// answers is that file.
type answers struct {
	mu   sync.Mutex // of its own: the disk may be slow
	f    *os.File
	size int64
	next uint64
	open map[uint64]unanswered // sessions are at work on them
	left []unanswered          // their sessions ended
}

func openAnswers(dir string) (*answers, error) {
	path := filepath.Join(dir, "unanswered")
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("messages without an answer: %w", err)
	}
	a := &answers{open: map[uint64]unanswered{}}
	for line := range bytes.Lines(text) {
		var u unanswered
		if json.Unmarshal(line, &u) != nil {
			continue // cut off when the process was ended
		}
		a.next = max(a.next, u.ID)
		if delete(a.open, u.ID); !u.Done && time.Since(u.At) < repeatLimit {
			a.open[u.ID] = u
		}
	}
	for _, u := range a.open {
		u.before = true
		a.left = append(a.left, u)
	}
	clear(a.open)
	slices.SortFunc(a.left, func(x, y unanswered) int { return cmp.Compare(x.ID, y.ID) })
	a.left = a.left[max(0, len(a.left)-maxLeft):]
	if a.f, err = os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return nil, fmt.Errorf("messages without an answer: %w", err)
	}
	return a, a.renew()
}

// renew begins the file anew with what is still needed.
func (a *answers) renew() error {
	if err := a.f.Truncate(0); err != nil {
		return fmt.Errorf("messages without an answer: %w", err)
	}
	a.size = 0
	for _, u := range a.left {
		a.write(u)
	}
	for _, u := range a.open {
		a.write(u)
	}
	return nil
}

// write appends a line. That it fails is no reason not to take a message.
func (a *answers) write(u unanswered) {
	if b, err := json.Marshal(u); err == nil {
		n, _ := a.f.Write(append(b, '\n'))
		a.size += int64(n)
	}
}

// Await notes that a message is about to be taken. Replied or Unreplied must
// follow.
func (s *Store) Await(e row.Envelope, ref row.Ref) (id uint64) {
	a := s.answers
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.size > maxUnanswered {
		_ = a.renew()
	}
	a.next++
	u := unanswered{ID: a.next, From: e.From, To: recipients(e.Rcpts), Ref: ref, At: time.Now()}
	a.open[u.ID] = u
	a.write(u)
	return u.ID
}

// Replied records that the sender was answered, with whatever.
func (s *Store) Replied(id uint64) {
	a := s.answers
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.open, id)
	a.write(unanswered{ID: id, Done: true})
}

// Unreplied records that the session ended before that.
func (s *Store) Unreplied(id uint64) {
	a := s.answers
	a.mu.Lock()
	defer a.mu.Unlock()
	if u, ok := a.open[id]; ok {
		delete(a.open, id)
		a.left = append(a.left, u)
		a.left = a.left[max(0, len(a.left)-maxLeft):]
	}
}

// Unanswered reports whether there are messages at all whose senders may come
// again.
func (s *Store) Unanswered() bool {
	s.answers.mu.Lock()
	defer s.answers.mu.Unlock()
	return len(s.answers.left) > 0
}

// Again reports whether a message was about to be taken before, and its sender
// not answered, since when, and whether that was before this process began: then
// nobody knows what production answered. It says so once.
func (s *Store) Again(e row.Envelope, ref row.Ref) (since time.Time, before, ok bool) {
	to := recipients(e.Rcpts)
	a := s.answers
	a.mu.Lock()
	defer a.mu.Unlock()
	i := slices.IndexFunc(a.left, func(u unanswered) bool {
		return u.Ref == ref && u.From == e.From && u.To == to && time.Since(u.At) < repeatLimit
	})
	if i < 0 {
		return time.Time{}, false, false
	}
	u := a.left[i]
	a.left = slices.Delete(a.left, i, i+1)
	a.write(unanswered{ID: u.ID, Done: true})
	return u.At, u.before, true
}

// Holding finds the held delivery of a message.
func (s *Store) Holding(e row.Envelope, ref row.Ref) (row.Held, bool) {
	to := sortedFold(e.Rcpts)
	for _, h := range s.HeldAll() {
		if h.Ref == ref && h.From == e.From && !h.Open && !slices.ContainsFunc(sortedFold(h.Rcpts), func(r string) bool { return !slices.Contains(to, r) }) {
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
func (s *Store) Delivered(e row.Envelope, ref row.Ref, since time.Time) bool {
	for _, rcpt := range e.Rcpts {
		route, ok := s.RouteOf(rcpt)
		if !ok || !s.holds(route.Account, ref, since) {
			return false
		}
	}
	return len(e.Rcpts) > 0
}

func (s *Store) holds(account string, ref row.Ref, since time.Time) bool {
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
			if msg, err := s.Message(r.Ref); err == nil && s.delivers(msg, HeaderLen(msg), ref) {
				return true
			}
		}
	}
	return false
}
