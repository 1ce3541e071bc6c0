package store

import (
	"context"
	"encoding/json"
	"fmt"

	"understudy/replica/meta"
)

// Values are single values, and the epoch that they are saved in.
type Values struct{ rows *meta.Handle }

// LoadJSON reads a single value, such as the failover state; ok is false if
// it was never saved.
func (v Values) LoadJSON(key string, to any) (ok bool, err error) {
	err = v.rows.View(func(sn meta.Snap) error {
		b, _, err := sn.Get(meta.StateKey(key))
		if err != nil || b == nil {
			return err
		}
		ok = true
		return json.Unmarshal(b, to)
	})
	if err != nil {
		err = fmt.Errorf("read %s: %w", key, err)
	}
	return ok, err
}

// SaveJSON stores a single value, durably.
func (v Values) SaveJSON(ctx context.Context, key string, val any) error {
	return v.SaveState(ctx, key, val, 0)
}

// SaveState stores a single value, durably, that belongs to an epoch, or with 0 to
// none. With a higher epoch than there was, all other writers are refused from then
// on, in the same batch.
func (v Values) SaveState(ctx context.Context, key string, val any, epoch uint64) error {
	b, err := json.Marshal(val)
	if err == nil {
		err = v.rows.Advance(ctx, epoch, meta.Batch{Do: []meta.Op{{Key: meta.StateKey(key), Val: b}}})
	}
	if err != nil {
		return fmt.Errorf("save %s: %w", key, err)
	}
	return nil
}

// Epoch is the one that this store writes in.
func (v Values) Epoch() uint64 { return v.rows.Epoch() }
