// Package meta keeps the replica's mutable rows: ordered keys and values,
// changed by conditional batches that are durable when Commit returns.
//
// Implementation notes. A batch knows no mail: conditions on revisions, puts
// and deletes. That lets one driver be exchanged for another (bbolt alone now,
// the same batches through a quorum later) without the state machine ever
// meaning something different. Every value carries its revision and a CRC, for
// no engine tried notices bit rot by itself. One committer goroutine merges
// all waiting batches into one transaction, so a single writer pays one sync
// and many writers share it.
package meta

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
)

// Rev is the commit index of a key's last change; 0 means absent.
type Rev uint64

// Errors of a store.
var (
	ErrConflict = errors.New("row changed meanwhile")
	ErrClosed   = errors.New("metadata store is closed")
	ErrCorrupt  = errors.New("metadata value fails its checksum")
)

// Cond demands that a key is at a revision.
type Cond struct {
	Key []byte
	Rev Rev
}

// Op puts Val under Key, or deletes Key, or with End the range [Key, End).
type Op struct {
	Key, End, Val []byte
	Del           bool
}

// Batch is applied whole or not at all.
type Batch struct {
	If []Cond
	Do []Op
}

// Put adds a put to b.
func (b *Batch) Put(key, val []byte) { b.Do = append(b.Do, Op{Key: key, Val: val}) }

// PutJSON adds a put of a plain struct of ours as JSON.
func (b *Batch) PutJSON(key []byte, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // it is a plain struct of ours
	}
	b.Put(key, text)
}

// Delete adds a delete to b.
func (b *Batch) Delete(key []byte) { b.Do = append(b.Do, Op{Key: key, Del: true}) }

// DeleteRange adds a delete of [from, to) to b.
func (b *Batch) DeleteRange(from, to []byte) {
	b.Do = append(b.Do, Op{Key: from, End: to, Del: true})
}

// Snap is a consistent view. Its slices are valid only inside View.
type Snap interface {
	// Get returns a value and its revision, 0 if absent.
	Get(key []byte) ([]byte, Rev, error)
	// Scan yields the rows of [from, to) in order; a corrupt one ends it
	// with its error in Err.
	Scan(from, to []byte) iter.Seq2[[]byte, []byte]
	Err() error
}

// Store is what every driver does; package metatest holds its contract.
type Store interface {
	// Commit is durable on return. ErrConflict if a condition does not hold.
	Commit(ctx context.Context, b Batch) (Rev, error)
	View(f func(Snap) error) error
	Close() error
}

// PrefixEnd is the end of the range of all keys that begin with p.
func PrefixEnd(p []byte) []byte {
	e := append([]byte(nil), p...)
	for i := len(e) - 1; i >= 0; i-- {
		if e[i]++; e[i] != 0 {
			return e[:i+1]
		}
	}
	return nil
}
