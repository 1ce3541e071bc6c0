package replica

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// journal is a file of what is under way: a line is written when something
// begins, and another one when it is over. It is written and not synced, so it
// outlives the process and not the machine, and costs no wait.
type journal[T any] struct {
	what string // in errors
	mu   sync.Mutex
	f    *os.File
	size int64
	next uint64
	open map[uint64]T
}

type journalLine[T any] struct {
	ID   uint64
	Over bool `json:",omitempty"`
	Item T    `json:",omitzero"`
}

// maxJournal is at which size a journal is begun anew, in bytes.
const maxJournal = 1 << 20

// openJournal opens the file name.journal in a directory, and returns with it what
// an earlier process left under way, which stays so.
func openJournal[T any](dir, name, what string) (*journal[T], error) {
	path := filepath.Join(dir, name+".journal")
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	j := &journal[T]{what: what, open: map[uint64]T{}}
	for line := range bytes.Lines(text) {
		var l journalLine[T]
		if json.Unmarshal(line, &l) != nil {
			continue // cut off when the process was ended
		}
		j.next = max(j.next, l.ID)
		if delete(j.open, l.ID); !l.Over {
			j.open[l.ID] = l.Item
		}
	}
	if j.f, err = os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return j, nil
}

// renew begins the file anew with what is under way. mu is held, or nobody else
// there.
func (j *journal[T]) renew() error {
	if err := j.f.Truncate(0); err != nil {
		return fmt.Errorf("%s: %w", j.what, err)
	}
	j.size = 0
	for id, item := range j.open {
		j.write(journalLine[T]{ID: id, Item: item})
	}
	return nil
}

// write appends a line. That it fails is no reason not to go on.
func (j *journal[T]) write(l journalLine[T]) {
	if b, err := json.Marshal(l); err == nil {
		n, _ := j.f.Write(append(b, '\n'))
		j.size += int64(n)
	}
}

// begin notes that something is about to begin. mu is held.
func (j *journal[T]) begin(item T) (id uint64) {
	if j.size > maxJournal {
		_ = j.renew()
	}
	j.next++
	j.open[j.next] = item
	j.write(journalLine[T]{ID: j.next, Item: item})
	return j.next
}

// end notes that it is over. mu is held.
func (j *journal[T]) end(id uint64) {
	delete(j.open, id)
	j.write(journalLine[T]{ID: id, Over: true})
}
