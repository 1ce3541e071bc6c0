package lab

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"understudy/lab/hosts"
	"understudy/replica/imapc"
)

// visit is one new connection to a port, and who answered.
type visit struct {
	began, ended time.Time
	who          string // direct, box, standby, or what went wrong
}

// visitor makes new connections to an address's IMAP port, one after another.
type visitor struct {
	name   string
	mu     sync.Mutex
	visits []visit
	stop   context.CancelFunc
	done   chan struct{}
}

// who tells from a greeting who sent it: the box hides a capability of Dovecot.
func who(greeting string, err error) string {
	switch {
	case err != nil:
		return "failed: " + err.Error()
	case strings.Contains(greeting, "LOGIN-REFERRALS"):
		return "direct"
	case strings.HasPrefix(greeting, "* OK"):
		return "box"
	}
	return "failed: " + greeting
}

func visiting(h *hosts.Host, addr string, every time.Duration) *visitor {
	ctx, cancel := context.WithCancel(context.Background())
	v := &visitor{name: h.Name + " " + addr, stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(v.done)
		var all sync.WaitGroup
		defer all.Wait()
		for ctx.Err() == nil {
			one := make(chan struct{})
			all.Go(func() {
				defer close(one)
				x := visit{began: time.Now()}
				x.who = who(greeting(h, at(addr, 143), 5*time.Second))
				x.ended = time.Now()
				v.mu.Lock()
				v.visits = append(v.visits, x)
				v.mu.Unlock()
			})
			select {
			case <-one:
			case <-time.After(50 * time.Millisecond): // it hangs; others need not
			}
			select {
			case <-time.After(every):
			case <-ctx.Done():
			}
		}
	}()
	return v
}

func (v *visitor) all() []visit {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.visits)
}

func (v *visitor) end() []visit {
	v.stop()
	<-v.done
	return v.all()
}

// firstAfter is the first good visit by somebody that began after a moment, or was
// under way then; failed counts what went wrong before it.
func firstAfter(vs []visit, at time.Time, by string) (good time.Duration, failed int, ok bool) {
	for _, x := range vs {
		if x.ended.Before(at) {
			continue
		}
		if x.who == by {
			return x.ended.Sub(at), failed, true
		}
		if strings.HasPrefix(x.who, "failed") {
			failed++
		}
	}
	return 0, failed, false
}

// waitFor waits until somebody answers a visitor.
func (v *visitor) waitFor(t *testing.T, at time.Time, by string, limit time.Duration) (time.Duration, int) {
	t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
		vs := v.all()
		if d, failed, ok := firstAfter(vs, at, by); ok {
			return d, failed
		}
		if time.Now().After(end) {
			t.Fatalf("%s: nothing of %q within %s; last %+v", v.name, by, limit, vs[max(0, len(vs)-3):])
		}
	}
}

// T4, B12: a killed box is a cable within milliseconds, a frozen one within two
// seconds; a planned bypass and the way back cost nobody anything; started again it
// snoops on, and what went past it is in the replica.
func TestT4_FailToWire(t *testing.T) {
	n := newNetwork(t)
	n.serve(t, 2)
	n.plug(t, nil)
	n.armed(t)
	waitPhase(t, n.b, "protecting")
	u := n.site.Users[0]
	vs := []*visitor{visiting(n.client, server4, 2*time.Millisecond), visiting(n.other, server6, 2*time.Millisecond),
		visiting(n.remote, server4, 2*time.Millisecond)}
	for _, v := range vs {
		v.waitFor(t, time.Now(), "box", 10*time.Second)
	}

	t.Run("bypass", func(t *testing.T) {
		held := login(t, n.client, server4, u)
		do(t, held, "SELECT INBOX")
		start := time.Now()
		order(t, n.b, "network", "bypass", "on")
		for _, v := range vs {
			v.waitFor(t, time.Now(), "direct", 5*time.Second)
		}
		do(t, held, "NOOP")
		direct := login(t, n.client, server4, u)
		do(t, direct, "SELECT INBOX")
		order(t, n.b, "network", "bypass", "off")
		for _, v := range vs {
			v.waitFor(t, time.Now(), "box", 5*time.Second)
		}
		do(t, held, "NOOP")
		do(t, direct, "NOOP")
		for _, v := range vs {
			if _, failed, _ := firstAfter(v.all(), start, "nobody"); failed > 0 {
				t.Errorf("%s: %d connections failed: %v", v.name, failed, v.all())
			}
		}
	})

	t.Run("stop and start", func(t *testing.T) {
		start := time.Now()
		check(t, n.b.Stop())
		for _, v := range vs {
			v.waitFor(t, time.Now(), "direct", 5*time.Second)
		}
		check(t, n.b.Start(t.Context()))
		for _, v := range vs {
			v.waitFor(t, time.Now(), "box", 10*time.Second)
			if _, failed, _ := firstAfter(v.all(), start, "nobody"); failed > 0 {
				t.Errorf("%s: %d connections failed", v.name, failed)
			}
		}
	})

	for i := range times("UNDERSTUDY_ROUNDS", 2) {
		t.Run(fmt.Sprint("kill -9/", i), func(t *testing.T) {
			held := login(t, n.client, server4, u)
			ended := make(chan time.Duration, 1)
			at := time.Now()
			_ = syscall.Kill(n.b.Pid(), syscall.SIGKILL)
			go func() {
				_, err := held.Do("NOOP", nil)
				if err != nil {
					ended <- time.Since(at)
				}
			}()
			for _, v := range vs {
				d, failed := v.waitFor(t, at, "direct", 5*time.Second)
				t.Logf("%s: the first direct greeting %.1f ms after the kill, %d connections failed", v.name, ms(d),
					failed)
			}
			n.b.Kill() // it is dead; this waits
			select {
			case d := <-ended:
				t.Logf("an open session was told of its end after %.1f ms", ms(d))
			case <-time.After(5 * time.Second):
				t.Error("an open session hangs after the kill")
			}
			// Past the box:
			c := login(t, n.client, server6, u)
			id := fmt.Sprint("gap", i)
			if _, _, err := c.Append(imapc.Appending{Mailbox: "INBOX", Body: message(id, 500)}); err != nil {
				t.Fatal(err)
			}
			at = time.Now()
			if err := n.b.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, v := range vs {
				d, failed := v.waitFor(t, at, "box", 20*time.Second)
				t.Logf("%s: the box again %.1f ms after its start, %d connections failed", v.name, ms(d), failed)
			}
			same(t, n.site, n.b, u, 20*time.Second)
			// What began past the box goes on there, until it is gathered.
			n.until(t, 10*time.Second, "counted", func() bool {
				do(t, c, "NOOP")
				return must(n.b.Status(t.Context()))(t).Network.Past > 0
			})
			order(t, n.b, "network", "gather")
			asked := time.Now()
			if _, err := c.Do("NOOP", nil); err == nil || time.Since(asked) > 2*time.Second {
				t.Errorf("a gathered connection: %v after %s", err, time.Since(asked))
			}
			check(t, served(n.client, server6, u, 5*time.Second))
		})
	}

	t.Run("SIGSTOP", func(t *testing.T) {
		at := time.Now()
		_ = syscall.Kill(n.b.Pid(), syscall.SIGSTOP)
		for _, v := range vs {
			d, failed := v.waitFor(t, at, "direct", 10*time.Second)
			t.Logf("%s: direct %.0f ms after SIGSTOP, %d connections failed", v.name, ms(d), failed)
		}
		at = time.Now()
		_ = syscall.Kill(n.b.Pid(), syscall.SIGCONT)
		for _, v := range vs {
			v.waitFor(t, at, "box", 10*time.Second)
		}
	})
	for _, v := range vs {
		v.end()
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
