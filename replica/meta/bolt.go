package meta

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"iter"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

var (
	rows = []byte("rows")
	crcs = crc32.MakeTable(crc32.Castagnoli)
)

const (
	valueHead = 12  // revision and CRC
	maxMerge  = 512 // batches in one transaction
)

// Bolt is the embedded driver.
type Bolt struct {
	db   *bbolt.DB
	reqs chan *request
	quit chan struct{}
	done sync.WaitGroup
	once sync.Once
}

type request struct {
	b    Batch
	rev  Rev
	err  error
	done chan struct{}
}

// OpenBolt opens or makes the file at path. A second process that holds it
// gives an error after a second.
func OpenBolt(path string) (*Bolt, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("open %s: another process holds it; is Understudy already running on %s?",
			path, filepath.Dir(path))
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	if err := db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(rows)
		return err
	}); err != nil {
		return nil, errors.Join(fmt.Errorf("prepare %s: %w", path, err), db.Close())
	}
	s := &Bolt{db: db, reqs: make(chan *request, maxMerge), quit: make(chan struct{})}
	s.done.Go(s.run)
	return s, nil
}

// Close waits for running commits; later ones get ErrClosed.
func (s *Bolt) Close() error {
	s.once.Do(func() { close(s.quit) })
	s.done.Wait()
	return s.db.Close()
}

// Commit implements Store.
func (s *Bolt) Commit(ctx context.Context, b Batch) (Rev, error) {
	r := &request{b: b, done: make(chan struct{})}
	select {
	case s.reqs <- r:
	case <-s.quit:
		return 0, ErrClosed
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	// Once queued the batch is on its way: its outcome is waited for.
	select {
	case <-r.done:
		return r.rev, r.err
	case <-s.quit:
		s.done.Wait()
		select {
		case <-r.done:
			return r.rev, r.err
		default:
			return 0, ErrClosed
		}
	}
}

func (s *Bolt) run() {
	for {
		select {
		case r := <-s.reqs:
			s.apply(s.gather(r))
		case <-s.quit:
			return
		}
	}
}

func (s *Bolt) gather(r *request) []*request {
	group := []*request{r}
	for len(group) < maxMerge {
		select {
		case r := <-s.reqs:
			group = append(group, r)
		default:
			return group
		}
	}
	return group
}

func (s *Bolt) apply(group []*request) {
	err := s.db.Update(func(tx *bbolt.Tx) error {
		bk := tx.Bucket(rows)
		for _, r := range group {
			if r.err = check(bk, r.b.If); r.err != nil {
				continue
			}
			rev, err := bk.NextSequence()
			if err != nil {
				return err
			}
			r.rev = Rev(rev)
			for _, op := range r.b.Do {
				if err := do(bk, op, rev); err != nil {
					return err
				}
			}
		}
		return nil
	})
	for _, r := range group {
		if err != nil {
			r.err = fmt.Errorf("commit metadata: %w", err)
		}
		close(r.done)
	}
}

func check(bk *bbolt.Bucket, conds []Cond) error {
	for _, c := range conds {
		_, rev, err := decode(bk.Get(c.Key))
		if err != nil {
			return err
		}
		if rev != c.Rev {
			return fmt.Errorf("%w: %q", ErrConflict, c.Key)
		}
	}
	return nil
}

func do(bk *bbolt.Bucket, op Op, rev uint64) error {
	switch {
	case op.Del && op.End != nil:
		c := bk.Cursor()
		for k, _ := c.Seek(op.Key); k != nil && bytes.Compare(k, op.End) < 0; k, _ = c.Seek(op.Key) {
			if err := bk.Delete(k); err != nil {
				return err
			}
		}
		return nil
	case op.Del:
		return bk.Delete(op.Key)
	}
	v := make([]byte, valueHead, valueHead+len(op.Val))
	binary.BigEndian.PutUint64(v, rev)
	v = append(v, op.Val...)
	binary.BigEndian.PutUint32(v[8:], crc32.Update(crc32.Checksum(v[:8], crcs), crcs, op.Val))
	return bk.Put(op.Key, v)
}

func decode(v []byte) ([]byte, Rev, error) {
	if v == nil {
		return nil, 0, nil
	}
	if len(v) < valueHead ||
		crc32.Update(crc32.Checksum(v[:8], crcs), crcs, v[valueHead:]) != binary.BigEndian.Uint32(v[8:]) {
		return nil, 0, ErrCorrupt
	}
	return v[valueHead:], Rev(binary.BigEndian.Uint64(v)), nil
}

// View implements Store.
func (s *Bolt) View(f func(Snap) error) error {
	return s.db.View(func(tx *bbolt.Tx) error {
		sn := &boltSnap{bk: tx.Bucket(rows)}
		return errors.Join(f(sn), sn.err)
	})
}

type boltSnap struct {
	bk  *bbolt.Bucket
	err error
}

func (s *boltSnap) Err() error { return s.err }

func (s *boltSnap) Get(key []byte) ([]byte, Rev, error) {
	v, rev, err := decode(s.bk.Get(key))
	if err != nil {
		err = fmt.Errorf("row %q: %w", key, err)
	}
	return v, rev, err
}

func (s *boltSnap) Scan(from, to []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		c := s.bk.Cursor()
		for k, raw := c.Seek(from); k != nil && (to == nil || bytes.Compare(k, to) < 0); k, raw = c.Next() {
			v, _, err := decode(raw)
			if err != nil {
				s.err = fmt.Errorf("row %q: %w", k, err)
				return
			}
			if !yield(k, v) {
				return
			}
		}
	}
}
