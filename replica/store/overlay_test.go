package store

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"understudy/replica/row"
)

// Whatever is put and deleted, the messages are those of a plain map, and no older
// version changes.
func TestOverlay(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		model := map[uint32]*row.Message{}
		now := newMessages(row.Mailbox{}, nil, nil)
		type version struct {
			*messages
			uids []uint32
		}
		var all []version
		for range 30 {
			ch := map[uint32]*row.Message{}
			for range 1 + r.IntN(5) {
				u := 1 + uint32(r.IntN(30))
				if r.IntN(2) == 0 {
					u += 30 * uint32(len(all))
				}
				if ch[u] = nil; r.IntN(3) > 0 {
					ch[u] = &row.Message{UID: u}
				}
			}
			for u, m := range ch {
				if m == nil {
					delete(model, u)
				} else {
					model[u] = m
				}
			}
			if rows, _ := overlay(now, ch, false); len(rows) != len(model) {
				t.Fatalf("seed %d: %d messages, want %d", seed, len(rows), len(model))
			}
			rows, uids := overlay(now, ch, true)
			now = newMessages(row.Mailbox{}, rows, uids)
			if !slices.Equal(now.UIDs, slices.Sorted(maps.Keys(model))) || now.Messages != len(model) {
				t.Fatalf("seed %d: %v, want %v", seed, now.UIDs, slices.Sorted(maps.Keys(model)))
			}
			all = append(all, version{now, slices.Clone(now.UIDs)})
			for _, m := range now.Rows {
				if m != model[m.UID] {
					t.Fatalf("seed %d: message %d is another one", seed, m.UID)
				}
			}
			for _, v := range all {
				if !slices.Equal(v.UIDs, v.uids) || len(v.Rows) != len(v.uids) {
					t.Fatalf("seed %d: an older version changed", seed)
				}
				for i, m := range v.Rows {
					if m.UID != v.uids[i] {
						t.Fatalf("seed %d: message %d of an older version changed", seed, m.UID)
					}
				}
			}
		}
	}
}
