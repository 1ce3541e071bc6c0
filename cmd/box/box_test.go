package box

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"understudy/console/api"
	"understudy/console/config"
	"understudy/failover"
	"understudy/proxy/seam"
	"understudy/replica"
	"understudy/replica/row"
)

const anna = "anna@box.test"

// with is what a box is tried with.
type with struct {
	change func(*config.Config)
	state  failover.State // that it finds; none: New
	smtp   func(net.Conn) // production's; nil: it refuses connections, as its IMAP does
}

// run runs f beside the box.
func (o with) run(t *testing.T, f func(t *testing.T, b *Box)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		if o.state.Phase != "" {
			found(t, dir, o.state)
		}
		c := config.Default()
		c.Data, c.Hostname = dir, "mail.box.test"
		c.Production.IMAP, c.Production.SMTP = "prod:143", "prod:25"
		c.Master = config.Master{User: "master", Password: "secret"}
		c.Accounts.List, c.Accounts.Domains = []string{anna}, []string{"box.test"}
		c.Failover.Mode = "confirm"
		if o.change != nil {
			o.change(&c)
		}
		dial := func(_ context.Context, _ seam.Client, addr string) (net.Conn, error) {
			if o.smtp == nil || !strings.HasSuffix(addr, ":25") {
				return nil, errors.New("connection refused")
			}
			near, far := net.Pipe()
			go o.smtp(far)
			return near, nil
		}
		ready := make(chan struct{})
		b, err := New(Options{Config: c, Log: slog.New(slog.DiscardHandler), NoListeners: true,
			Dial:  dial,
			Ready: func(map[string]string) { close(ready) }})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- b.Run(ctx) }()
		defer func() {
			cancel()
			if err := errors.Join(<-done, b.Close()); err != nil {
				t.Error(err)
			}
		}()
		<-ready
		time.Sleep(time.Second)
		f(t, b)
	})
}

// found is what an earlier process left.
func found(t *testing.T, dir string, s failover.State) {
	t.Helper()
	r, err := replica.Open(replica.Options{Dir: dir, FoldCase: true})
	if err == nil {
		err = errors.Join(r.SaveJSON(t.Context(), "failover", s), r.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// hold puts a message for anna into what is held.
func hold(t *testing.T, b *Box, arrived time.Time, owed bool) {
	t.Helper()
	ref, err := b.Store().PutMessage([]byte("Message-ID: <1@other.test>\r\n\r\nhello\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	h, err := b.Store().Hold(t.Context(),
		row.Held{From: "x@other.test", Rcpts: []string{anna}, Ref: ref, Arrived: arrived})
	if owed && err == nil {
		err = b.Store().Owe(t.Context(), h.ID)
	}
	if err != nil {
		t.Fatal(err)
	}
	b.Store().Confirm(h.ID)
}

// Orders are given, waited for, and refused, by what the state allows; the ledger
// of the takeover is there at once; held mail is delivered soon after it waits.
func TestOrdersWithoutProduction(t *testing.T) {
	with{}.run(t, func(t *testing.T, b *Box) {
		if _, err := b.service.Handback(t.Context(), api.Order{}); err == nil ||
			!strings.Contains(err.Error(), "makes no sense while seeding") {
			t.Errorf("handed back: %v", err)
		}
		ans, err := b.service.Takeover(t.Context(), api.Order{Wait: true})
		if err != nil || !strings.HasPrefix(ans.Text, "the standby answers") {
			t.Fatalf("%q, %v", ans.Text, err)
		}
		if l, _ := b.service.Losses(); l.Epoch != 1 || len(l.Seen) != 1 {
			t.Errorf("the ledger: %+v", l)
		}
		if s, err := b.service.Status(); err != nil || s.Answering != "standby" || s.Health.OK {
			t.Errorf("%+v, %v", s, err)
		}
		if _, err := b.service.Handback(t.Context(), api.Order{}); err == nil ||
			!strings.Contains(err.Error(), "not capable") {
			t.Errorf("handed back: %v", err)
		}
		if _, err := b.service.Takeover(t.Context(), api.Order{}); err == nil ||
			!strings.Contains(err.Error(), "makes no sense while serving") {
			t.Errorf("taken over twice: %v", err)
		}
		if _, err := b.service.Sync(t.Context(), api.Order{}); err == nil {
			t.Error("read from production that is fenced")
		}
		hold(t, b, time.Now().Add(-time.Hour), true)
		time.Sleep(deliverDelay + time.Second)
		if n := b.Store().HeldCount(); n != 0 {
			t.Errorf("%d messages wait", n)
		}
	})
}

// What never showed up in a mailbox is forgotten when its time has come; what is
// owed is not.
func TestExpiry(t *testing.T) {
	short := func(c *config.Config) { c.Standby.HoldFor = config.Duration(time.Minute) }
	with{change: short}.run(t, func(t *testing.T, b *Box) {
		hold(t, b, time.Now(), false)
		hold(t, b, time.Now(), true)
		time.Sleep(58 * time.Second)
		if n := b.Store().HeldCount(); n != 2 {
			t.Errorf("%d messages are held too early", n)
		}
		time.Sleep(2*time.Second + expiryLeast)
		if all := b.Store().HeldAll(); len(all) != 1 || !all[0].OwedSince(all[0].Arrived) {
			t.Errorf("held: %+v", all)
		}
	})
}

// relayed is an SMTP server that counts what it takes.
func relayed(n *atomic.Int64) func(net.Conn) {
	return func(conn net.Conn) {
		defer func() { _ = conn.Close() }()
		br := bufio.NewReader(conn)
		say := func(text string) { _, _ = io.WriteString(conn, text+"\r\n") }
		say("220 production")
		for data := false; ; {
			line, err := br.ReadString('\n')
			switch verb, _, _ := strings.Cut(strings.TrimSpace(line), " "); {
			case err != nil:
				return
			case data && verb == ".":
				n.Add(1)
				data = false
				say("250 taken")
			case data:
			case verb == "DATA":
				data = true
				say("354 go on")
			default:
				say("250 fine")
			}
		}
	}
}

// What the standby took for production, and what users submitted, is given to
// production soon after it waits there, and when it is due; what is owed is not as
// long as nobody can look whether production has it.
func TestOutgoing(t *testing.T) {
	var n atomic.Int64
	o := with{state: failover.State{Phase: failover.Protecting}, smtp: relayed(&n),
		change: func(c *config.Config) { c.Failover.Mode, c.Failover.Probe = "advise", config.Duration(time.Minute) }}
	o.run(t, func(t *testing.T, b *Box) {
		taken, err := b.Store().PutMessage([]byte("Message-ID: <2@other.test>\r\n\r\nhello\r\n"))
		if err != nil {
			t.Fatal(err)
		}
		h := row.Held{From: "x@other.test", Rcpts: []string{anna}, Ref: taken, Arrived: time.Now()}
		if _, err := b.Store().Take(t.Context(), h); err != nil {
			t.Fatal(err)
		}
		time.Sleep(sendPause)
		if all := b.Store().HeldAll(); n.Load() != 1 || len(all) != 1 || all[0].State != row.HeldAccepted {
			t.Errorf("%d were given, held: %+v", n.Load(), all)
		}
		ref, err := b.Store().PutMessage([]byte("Subject: out\r\n\r\nhello\r\n"))
		if err != nil {
			t.Fatal(err)
		}
		for _, next := range []time.Time{{}, time.Now().Add(10 * time.Minute)} {
			q := row.Queued{From: anna, Rcpts: []string{"x@other.test"}, Ref: ref, Next: next}
			if _, err := b.Store().Enqueue(t.Context(), q); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(sendPause)
		if n.Load() != 2 {
			t.Errorf("%d were given, with one due", n.Load())
		}
		time.Sleep(10*time.Minute - sendPause + time.Second)
		if n.Load() != 3 {
			t.Errorf("%d were given, with both due", n.Load())
		}
		hold(t, b, time.Now().Add(-time.Hour), true)
		time.Sleep(time.Minute)
		if n.Load() != 3 {
			t.Error("given again without a look")
		}
	})
}

// How production greets is kept when it is learned.
func TestGreetingIsKept(t *testing.T) {
	with{}.run(t, func(t *testing.T, b *Box) {
		b.Proxy().Greet(seam.Greeting{Text: "Post office ready."})
		time.Sleep(time.Millisecond)
		var g seam.Greeting
		if ok, err := b.Store().LoadJSON("greeting", &g); !ok || err != nil || g.Text != "Post office ready." {
			t.Errorf("%v, %v, %+v", ok, err, g)
		}
	})
}
