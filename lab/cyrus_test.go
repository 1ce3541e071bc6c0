package lab

import (
	"fmt"
	"testing"
	"time"

	"understudy/lab/load"
	"understudy/lab/site"
)

// newCyrus starts a site with Cyrus IMAP in Dovecot's place.
func newCyrus(t *testing.T, n int) *site.Site {
	t.Helper()
	s := preparedSite(t, n)
	if err := s.UseCyrus("../bin/cyrus"); err != nil {
		t.Fatal(err)
	}
	return started(t, s)
}

// B5, T9, N17: another vendor's server answers otherwise: refusals without a
// reason, searches that are ahead of the message numbers.
func TestCyrus_Unanswered(t *testing.T) {
	for _, dies := range []bool{false, true} {
		t.Run(fmt.Sprintf("production dies %v", dies), func(t *testing.T) { unanswered(t, newCyrus(t, 1), dies) })
	}
}

// B5, T27, M6, N18: killed, and taken over on purpose, under load.
func TestCyrus_UnderLoad(t *testing.T) {
	s := newCyrus(t, 2)
	b := newBox(t, s, map[string]string{"failover.auto_handback": "true"})
	waitPhase(t, b, "protecting")
	under(t, s, b, func(*load.Ledger) {
		for range kills(2) {
			time.Sleep(500 * time.Millisecond)
			s.Kill()
			waitPhase(t, b, "serving")
			time.Sleep(300 * time.Millisecond)
			check(t, s.Start(t.Context()))
			waitPhase(t, b, "protecting")
			time.Sleep(500 * time.Millisecond)
			order(t, b, "takeover")
			waitPhase(t, b, "serving", "returning", "copying back", "handing back")
			waitPhase(t, b, "protecting")
		}
	})
}
