package store

import (
	"context"
	"encoding/json"
	"fmt"

	"understudy/replica/meta"
)

// LoadJSON reads a single value, such as the failover state; ok is false if
// it was never saved.
func (s *Store) LoadJSON(key string, v any) (ok bool, err error) {
	err = s.opt.Meta.View(func(sn meta.Snap) error {
		b, _, err := sn.Get(meta.StateKey(key))
		if err != nil || b == nil {
			return err
		}
		ok = true
		return json.Unmarshal(b, v)
	})
	if err != nil {
		err = fmt.Errorf("read %s: %w", key, err)
	}
	return ok, err
}

// SaveJSON stores a single value, durably.
func (s *Store) SaveJSON(ctx context.Context, key string, v any) error {
	return s.SaveState(ctx, key, v, 0)
}

// SaveState stores a single value, durably, that belongs to an epoch, or with 0 to
// none. With a higher epoch than there was, all other writers are refused from then
// on, in the same batch.
func (s *Store) SaveState(ctx context.Context, key string, v any, epoch uint64) error {
	b, err := json.Marshal(v)
	if err == nil {
		err = s.opt.Meta.Advance(ctx, epoch, meta.Batch{Do: []meta.Op{{Key: meta.StateKey(key), Val: b}}})
	}
	if err != nil {
		return fmt.Errorf("save %s: %w", key, err)
	}
	return nil
}

// Epoch is the one that this store writes in.
func (s *Store) Epoch() uint64 { return s.opt.Meta.Epoch() }
