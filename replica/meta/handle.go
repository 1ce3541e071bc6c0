package meta

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

// ErrEpoch refuses a batch for good: another handle has advanced the epoch since this
// one was loaded.
var ErrEpoch = errors.New("another one has taken over; this one must not write")

// Handle is one writer's hold on a store, and the only way that rows are changed by:
// each batch carries as a condition that the epoch row is as this handle knows it.
//
// Implementation notes. The row says who wrote it: a name that each Load makes anew.
// When a batch is refused, the row is read. Is it as it was, then a condition of the
// batch itself failed. Was it written under this handle's name, then this handle has
// advanced meanwhile (or an Advance failed and is there all the same): the batch goes
// again, for nobody else has written, and who changes what the batch changes still has
// its turn. Else another one has taken over, and no batch of this one is committed
// any more before it is loaded again. Directories without the row are at epoch 0.
type Handle struct {
	Store
	now atomic.Pointer[reign]
}

// reign is what a handle knows from one Load to the next.
type reign struct {
	name string

	mu    sync.Mutex
	epoch uint64
	rev   Rev
	lost  bool
}

// epochRow is the value of EpochKey.
type epochRow struct {
	Epoch uint64
	By    string
}

// NewHandle returns a handle on a store. It has to be loaded.
func NewHandle(s Store) *Handle {
	h := &Handle{Store: s}
	h.now.Store(&reign{lost: true})
	return h
}

// Load reads the epoch. What was begun before is refused if another one advanced in
// between.
func (h *Handle) Load(sn Snap) error {
	e, rev, err := readEpoch(sn)
	if err == nil {
		h.now.Store(&reign{name: rand.Text(), epoch: e.Epoch, rev: rev})
	}
	return err
}

func readEpoch(sn Snap) (e epochRow, rev Rev, err error) {
	b, rev, err := sn.Get(EpochKey())
	if err == nil && b != nil {
		err = json.Unmarshal(b, &e)
	}
	if err != nil {
		err = fmt.Errorf("epoch: %w", err)
	}
	return e, rev, err
}

// Epoch is the last one that this handle knows.
func (h *Handle) Epoch() uint64 {
	r := h.now.Load()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.epoch
}

// Commit implements Store: durable on return, ErrConflict if a condition of the batch
// does not hold, ErrEpoch if another one has taken over.
func (h *Handle) Commit(ctx context.Context, b Batch) (Rev, error) {
	return h.commit(ctx, h.now.Load(), b, 0)
}

// Advance commits a batch and raises the epoch with it; all batches of handles that do
// not know of it are refused from then on. In the epoch that is, the batch alone is
// committed, and with 0 in whatever epoch is; an older one is refused.
func (h *Handle) Advance(ctx context.Context, epoch uint64, b Batch) error {
	_, err := h.commit(ctx, h.now.Load(), b, epoch)
	return err
}

// commit commits a batch in a reign, and raises the epoch to one that is not 0.
func (h *Handle) commit(ctx context.Context, r *reign, b Batch, to uint64) (Rev, error) {
	for {
		r.mu.Lock()
		epoch, known, lost := r.epoch, r.rev, r.lost
		r.mu.Unlock()
		if lost {
			return 0, ErrEpoch
		}
		if to != 0 && to < epoch {
			return 0, fmt.Errorf("%w: epoch %d is over, this is %d", ErrEpoch, to, epoch)
		}
		next := Batch{If: append(slices.Clip(b.If), Cond{Key: EpochKey(), Rev: known}), Do: b.Do}
		begin := epochRow{Epoch: to, By: r.name}
		if to > epoch {
			v, err := json.Marshal(begin)
			if err != nil {
				return 0, err
			}
			next.Do = append(slices.Clip(b.Do), Op{Key: EpochKey(), Val: v})
		}
		rev, err := h.Store.Commit(ctx, next)
		if err == nil && to > epoch {
			r.know(begin, rev)
		}
		if !errors.Is(err, ErrConflict) {
			return rev, err
		}
		if err := h.again(r, known, err); err != nil {
			return 0, err
		}
	}
}

// again looks why a batch met a conflict while the epoch row was thought to be at a
// revision: nil if it has to be tried again.
func (h *Handle) again(r *reign, known Rev, conflict error) error {
	var e epochRow
	var is Rev
	if err := h.View(func(sn Snap) (err error) { e, is, err = readEpoch(sn); return err }); err != nil {
		return errors.Join(conflict, err)
	}
	switch {
	case is == known:
		return conflict
	case e.By != r.name || h.now.Load() != r:
		r.lose()
		return ErrEpoch
	}
	r.know(e, is)
	return nil
}

// know takes note of an epoch that this handle has begun.
func (r *reign) know(e epochRow, rev Rev) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if rev > r.rev {
		r.epoch, r.rev = e.Epoch, rev
	}
}

func (r *reign) lose() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lost = true
}
