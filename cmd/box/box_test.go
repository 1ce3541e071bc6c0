package box

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"understudy/console/api"
	"understudy/console/config"
	"understudy/proxy/seam"
	"understudy/replica/row"
)

const anna = "anna@box.test"

// alone runs f beside a box whose production refuses every connection.
func alone(t *testing.T, change func(*config.Config), f func(t *testing.T, b *Box)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := config.Default()
		c.Data, c.Hostname = dir, "mail.box.test"
		c.Production.IMAP, c.Production.SMTP = "prod:143", "prod:25"
		c.Master = config.Master{User: "master", Password: "secret"}
		c.Accounts.List, c.Accounts.Domains = []string{anna}, []string{"box.test"}
		c.Failover.Mode = "confirm"
		if change != nil {
			change(&c)
		}
		ready := make(chan struct{})
		b, err := New(Options{Config: c, Log: slog.New(slog.DiscardHandler), NoListeners: true,
			Dial: func(context.Context, seam.Client, string) (net.Conn, error) {
				return nil, errors.New("connection refused")
			},
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

// hold puts a message for anna into what is held.
func hold(t *testing.T, b *Box, arrived time.Time, owed bool) {
	t.Helper()
	ref, err := b.Store().PutMessage([]byte("Message-ID: <1@other.test>\r\n\r\nhello\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	h, err := b.Store().Hold(t.Context(), row.Held{From: "x@other.test", Rcpts: []string{anna}, Ref: ref, Arrived: arrived})
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
	alone(t, nil, func(t *testing.T, b *Box) {
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
	alone(t, func(c *config.Config) { c.Standby.HoldFor = config.Duration(time.Minute) }, func(t *testing.T, b *Box) {
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
