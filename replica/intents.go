package replica

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"understudy/replica/row"
)

// A MOVE that production has done, and that nobody was told of because this
// process was ended in between, must not be taken for mail that production lost
// here and got by itself there. So each is noted in a file before it is sent, and
// struck off when it is answered. The file is written and not synced, as that of
// unanswered mail (replied.go): it outlives the process, and costs no wait.

// intent is a line of the file: a MOVE, or with Done that it was answered.
type intent struct {
	ID      uint64
	Done    bool      `json:",omitempty"`
	Account string    `json:",omitempty"`
	Doubt   row.Doubt `json:",omitzero"`
}

// maxIntents is at which size the file is begun anew, in bytes.
const maxIntents = 1 << 20

// intents is that file.
type intents struct {
	mu   sync.Mutex
	f    *os.File
	size int64
	next uint64
	open map[uint64]intent
}

// openIntents returns the file, and what an earlier process left in it.
func openIntents(dir string) (*intents, []intent, error) {
	path := filepath.Join(dir, "intents")
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("moves without an answer: %w", err)
	}
	var left []intent
	for line := range bytes.Lines(text) {
		var i intent
		if json.Unmarshal(line, &i) != nil {
			continue // cut off when the process was ended
		}
		left = slices.DeleteFunc(left, func(o intent) bool { return o.ID == i.ID })
		if !i.Done {
			left = append(left, i)
		}
	}
	n := &intents{open: map[uint64]intent{}}
	if n.f, err = os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return nil, nil, fmt.Errorf("moves without an answer: %w", err)
	}
	return n, left, nil
}

// settleIntents makes doubts of what was left, and begins the file anew.
func (s *Store) settleIntents(left []intent) error {
	for _, i := range left {
		// A mailbox that is gone has nothing to be mistaken.
		if err := s.NoteDoubt(context.Background(), i.Account, i.Doubt); err != nil && !errors.Is(err, ErrNoMailbox) && !errors.Is(err, ErrNoAccount) {
			return fmt.Errorf("moves without an answer: %w", err)
		}
	}
	return s.intents.renew()
}

// renew begins the file anew with what is open. mu is held, or nobody else there.
func (n *intents) renew() error {
	if err := n.f.Truncate(0); err != nil {
		return fmt.Errorf("moves without an answer: %w", err)
	}
	n.size = 0
	for _, i := range n.open {
		n.write(i)
	}
	return nil
}

// write appends a line. That it fails is no reason not to send a command.
func (n *intents) write(i intent) {
	if b, err := json.Marshal(i); err == nil {
		k, _ := n.f.Write(append(b, '\n'))
		n.size += int64(k)
	}
}

// Intend notes a MOVE that is about to be sent to production. answered has to be
// called when its outcome is known, or kept elsewhere.
func (s *Store) Intend(account string, d row.Doubt) (answered func()) {
	n := s.intents
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.size > maxIntents {
		_ = n.renew()
	}
	n.next++
	i := intent{ID: n.next, Account: account, Doubt: d}
	n.open[i.ID] = i
	n.write(i)
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.open, i.ID)
		n.write(intent{ID: i.ID, Done: true})
	}
}
