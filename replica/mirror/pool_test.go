package mirror

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"understudy/replica/imapc"
)

// dials makes connections to nobody, and counts those that are open.
func dials(open *atomic.Int64) func(context.Context, string) (*imapc.Conn, error) {
	return func(ctx context.Context, _ string) (*imapc.Conn, error) {
		here, there := net.Pipe()
		go func() {
			_, _ = there.Write([]byte("* OK [CAPABILITY IMAP4rev1] hi\r\n"))
			var b [1]byte
			_, _ = there.Read(b[:]) // until it is closed
			open.Add(-1)
		}()
		c, err := imapc.New(ctx, here, imapc.Options{})
		if err == nil {
			open.Add(1)
		}
		return c, err
	}
}

func TestPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var open atomic.Int64
		p := &pool{dial: dials(&open), idle: map[string][]*pooled{}}
		get := func(a string, wantFresh bool) *imapc.Conn {
			t.Helper()
			c, fresh, err := p.get(t.Context(), a)
			if err != nil || fresh != wantFresh {
				t.Fatalf("fresh %v, %v; want %v", fresh, err, wantFresh)
			}
			return c
		}
		holds := func(n int) {
			t.Helper()
			if synctest.Wait(); p.n != n || int(open.Load()) != n {
				t.Fatalf("%d in the pool, %d open, want %d", p.n, open.Load(), n)
			}
		}

		c := get("u", true)
		p.put("u", c)
		if get("u", false) != c {
			t.Error("another connection than the one that was put there")
		}
		p.put("u", c)

		// Two of one account are kept, and the one that was used last comes first.
		a, b, d := get("u", false), get("u", true), get("u", true)
		p.put("u", a)
		p.put("u", b)
		p.put("u", d)
		holds(poolEach)
		if get("u", false) != b {
			t.Error("the last one put there is not the first one taken")
		}
		p.put("u", b)

		// Another account has its own.
		w := get("w", true)
		p.put("w", w)
		holds(poolEach + 1)

		// What is old is closed, and not used.
		time.Sleep(poolAge + time.Second)
		e := get("w", true)
		e.Close()
		p.closeAll()
		holds(0)

		// A full pool lets old ones go, but no young ones.
		for i := range poolSize {
			name := fmt.Sprint("a", i)
			p.put(name, get(name, true))
		}
		holds(poolSize)
		p.put("u", get("u", true))
		holds(poolSize)
		time.Sleep(poolAge + time.Second)
		p.put("u", get("u", true))
		holds(1)
		p.closeAll()
		holds(0)
	})
}
