package mirror

import (
	"math/rand/v2"
	"slices"
	"testing"

	"understudy/replica/imapc"
)

// Batches are all that is needed, in its order; none is empty, nor larger than it may be
// but for a message that is too large alone, and none could have taken the next message.
func TestSplit(t *testing.T) {
	if got := split(nil, nil); len(got) != 0 {
		t.Errorf("nothing needed: %v", got)
	}
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		most := []int64{100, batchBytes / 300, batchBytes / 3, 2 * batchBytes}[rng.IntN(4)]
		var need []uint32
		remote := map[uint32]imapc.Message{}
		for uid := range uint32(rng.IntN(3 * batchMessages)) {
			if rng.IntN(3) > 0 {
				need = append(need, uid+1)
			}
			remote[uid+1] = imapc.Message{UID: uid + 1, Size: rng.Int64N(most + 1)}
		}
		batches := split(need, remote)
		if got := slices.Concat(batches...); !slices.Equal(got, need) {
			t.Fatalf("seed %d: %d of %d needed", seed, len(got), len(need))
		}
		for i, b := range batches {
			size := int64(0)
			for _, uid := range b {
				size += remote[uid].Size
			}
			if len(b) == 0 || len(b) > batchMessages || size > batchBytes && len(b) > 1 {
				t.Fatalf("seed %d: a batch of %d messages and %d bytes", seed, len(b), size)
			}
			if i+1 < len(batches) && len(b) < batchMessages && size+remote[batches[i+1][0]].Size <= batchBytes {
				t.Fatalf("seed %d: batch %d had room for the next message", seed, i)
			}
		}
	}
}
