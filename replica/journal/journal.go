// Package journal keeps what is under way in a file: a line is written when something
// begins, and another one when it is over. It is written and not synced, so it
// outlives the process and not the machine, and costs no wait.
//
// Implementation notes. Whoever uses a journal has its turn, also to read what is
// open: a line is written under it. What an earlier process left is there when the
// file is opened; Renew begins the file anew with what is open then.
package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"understudy/replica/turn"
)

// Journal is one file.
type Journal[T any] struct {
	turn.Turn
	what string // in errors
	f    *os.File
	size int64
	next uint64
	open map[uint64]T
}

type line[T any] struct {
	ID   uint64
	Over bool `json:",omitempty"`
	Item T    `json:",omitzero"`
}

// maxJournal is at which size a journal is begun anew, in bytes.
const maxJournal = 1 << 20

// Open opens the file name.journal in a directory, and returns with it what an
// earlier process left under way, which stays so.
func Open[T any](dir, name, what string) (*Journal[T], error) {
	path := filepath.Join(dir, name+".journal")
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	j := &Journal[T]{Turn: turn.New(), what: what, open: map[uint64]T{}}
	for b := range bytes.Lines(text) {
		var l line[T]
		if json.Unmarshal(b, &l) != nil {
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

// Renew begins the file anew with what is under way.
func (j *Journal[T]) Renew() error {
	if err := j.f.Truncate(0); err != nil {
		return fmt.Errorf("%s: %w", j.what, err)
	}
	j.size = 0
	for id, item := range j.open {
		j.write(line[T]{ID: id, Item: item})
	}
	return nil
}

// write appends a line. That it fails is no reason not to go on.
func (j *Journal[T]) write(l line[T]) {
	if b, err := json.Marshal(l); err == nil {
		n, _ := j.f.Write(append(b, '\n'))
		j.size += int64(n)
	}
}

// Begin notes that something is about to begin.
func (j *Journal[T]) Begin(item T) (id uint64) {
	if j.size > maxJournal {
		_ = j.Renew()
	}
	j.next++
	j.open[j.next] = item
	j.write(line[T]{ID: j.next, Item: item})
	return j.next
}

// End notes that it is over.
func (j *Journal[T]) End(id uint64) {
	delete(j.open, id)
	j.write(line[T]{ID: id, Over: true})
}

// Last is the number of the last thing that began.
func (j *Journal[T]) Last() uint64 { return j.next }

// Item is something under way; ok is false if it is over.
func (j *Journal[T]) Item(id uint64) (item T, ok bool) {
	item, ok = j.open[id]
	return item, ok
}

// Set changes something under way. The file tells of it only once it is renewed: it
// must mean the same after a restart.
func (j *Journal[T]) Set(id uint64, item T) {
	if _, ok := j.open[id]; ok {
		j.open[id] = item
	}
}

// Open are the numbers of what is under way, in order.
func (j *Journal[T]) Open() []uint64 { return slices.Sorted(maps.Keys(j.open)) }

// Drop forgets what is under way and is to be left out when the file is renewed.
func (j *Journal[T]) Drop(gone func(T) bool) {
	maps.DeleteFunc(j.open, func(_ uint64, item T) bool { return gone(item) })
}

// Close closes the file.
func (j *Journal[T]) Close() error { return j.f.Close() }
