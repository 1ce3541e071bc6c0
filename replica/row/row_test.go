package row

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"
)

func randomMessage(rng *rand.Rand) *Message {
	m := &Message{UID: rng.Uint32(), ModSeq: rng.Uint64(), Size: rng.Int64() >> rng.IntN(63),
		Tail: rng.Int64() >> rng.IntN(63), Unsettled: rng.IntN(2) == 0, Fresh: rng.IntN(2) == 0, Flags: []string{}}
	m.Ref = RefOf(fmt.Append(nil, rng.Uint64()))
	m.Ref.Size = rng.Int64() >> rng.IntN(63)
	zone := time.FixedZone("", (rng.IntN(28*4)-14*4)*15*60)
	m.Date = time.Unix(rng.Int64N(1<<34)-1<<32, 0).In(zone)
	for range rng.IntN(5) {
		m.Flags = append(m.Flags, []string{`\Seen`, `\Answered`, "$Label1", "größe", "a(b"}[rng.IntN(5)])
	}
	return m
}

// What was encoded is decoded again, zone and all; what is cut short is corrupt or has
// fewer flags, and never anything else.
func TestMessageCodec(t *testing.T) {
	for seed := range uint64(2000) {
		rng := rand.New(rand.NewPCG(seed, 1))
		m := randomMessage(rng)
		b := m.Encode()
		got, err := DecodeMessage(b)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if !got.Date.Equal(m.Date) || got.Date.Format(time.RFC3339) != m.Date.Format(time.RFC3339) {
			t.Fatalf("seed %d: date %v, want %v", seed, got.Date, m.Date)
		}
		whole := *got
		whole.Date = m.Date
		if len(m.Flags) == 0 {
			whole.Flags = m.Flags
		}
		if !reflect.DeepEqual(&whole, m) {
			t.Fatalf("seed %d: %+v, want %+v", seed, whole, m)
		}
		for n := range b {
			cut, err := DecodeMessage(b[:n])
			if err != nil {
				if !errors.Is(err, ErrCorrupt) {
					t.Fatalf("seed %d, %d bytes: %v", seed, n, err)
				}
				continue
			}
			cut.Flags = got.Flags
			if !reflect.DeepEqual(cut, got) || len(m.Flags) == 0 && n < len(b) {
				t.Fatalf("seed %d, %d of %d bytes: %+v", seed, n, len(b), cut)
			}
		}
		b[0]++
		if _, err := DecodeMessage(b); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("another version: %v", err)
		}
	}
}

// Bytes that nobody encoded are refused or decoded, and what is decoded is encoded so
// that it is decoded to the same.
func TestMessageCodecGarbage(t *testing.T) {
	for seed := range uint64(5000) {
		rng := rand.New(rand.NewPCG(seed, 2))
		b := make([]byte, rng.IntN(120))
		for i := range b {
			b[i] = byte(rng.Uint32() >> rng.IntN(24))
		}
		if len(b) > 0 {
			b[0] = messageV1
		}
		m, err := DecodeMessage(b)
		if err != nil {
			continue
		}
		again, err := DecodeMessage(m.Encode())
		if err != nil || again.UID != m.UID || again.Ref != m.Ref || len(again.Flags) != len(m.Flags) {
			t.Fatalf("seed %d: %+v, then %+v: %v", seed, m, again, err)
		}
	}
}
