package seam

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestSASL(t *testing.T) {
	for _, c := range []struct {
		name      string
		l         Login
		mechanism string
		response  string
	}{
		{"own password", Login{User: "anna", AuthUser: "anna", Password: "p w"}, "PLAIN", "\x00anna\x00p w"},
		{"as somebody else", Login{User: "anna", AuthUser: "master", Password: "pw"}, "PLAIN", "anna\x00master\x00pw"},
		{"token", Login{User: "anna", AuthUser: "anna", Mechanism: "XOAUTH2", Response: []byte("user=anna\x01")},
			"XOAUTH2", "user=anna\x01"},
	} {
		mech, resp := c.l.SASL()
		if mech != c.mechanism || string(resp) != c.response || c.l.Token() != (mech != "PLAIN") {
			t.Errorf("%s: %s %q", c.name, mech, resp)
		}
	}
}

func TestCaps(t *testing.T) {
	have := Caps{"IMAP4rev1", "idle", "X-ODD", "AUTH=PLAIN"}
	if !have.Has("IDLE") || !have.Has("auth=plain") || have.Has("X") || have.Has("") {
		t.Error("words are not found as such")
	}
	if got := have.Cut(Caps{"IDLE", "IMAP4REV1", "MOVE"}); !slices.Equal(got, Caps{"IMAP4rev1", "idle"}) ||
		got.String() != "IMAP4rev1 idle" {
		t.Errorf("cut to %q", got)
	}
	if got := have.Cut(nil); got != nil || got.String() != "" {
		t.Errorf("nothing is allowed: %q", got)
	}
}

func TestLease(t *testing.T) {
	revoked := make(chan struct{})
	l := Lease{Revoked: revoked}
	if l.IsRevoked() || l.Grace() != 0 {
		t.Error("a lease without patience has none")
	}
	l.Patience = func() time.Duration { return time.Second }
	close(revoked)
	if !l.IsRevoked() || l.Grace() != time.Second {
		t.Error("a revoked lease tells its patience")
	}
}

// One who waits for a turn is seen waiting, so that virtual time goes on.
func TestTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turn, begin := NewTurn(), time.Now()
		turn.Lock()
		got := make(chan time.Duration)
		go func() {
			turn.Lock()
			defer turn.Unlock()
			got <- time.Since(begin)
		}()
		synctest.Wait()
		time.Sleep(time.Hour)
		if turn.TryLock() {
			t.Error("a turn that is taken")
		}
		turn.Unlock()
		if d := <-got; d != time.Hour {
			t.Errorf("waited %v", d)
		}
		synctest.Wait()
		if !turn.TryLock() {
			t.Error("a turn that nobody has")
		}
	})
}
