package lab

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"understudy/replica/row"
)

// B6, M12, M14: mail that reached production past the box just before it died:
// what the box knew of is named at the takeover, and what really was lacking is
// listed when production is back, each once, and is in the mailboxes once.
func TestB6_LedgerOfLoss(t *testing.T) {
	s := newSite(t, 2)
	quiet, watched := s.Users[0], s.Users[1]
	b := newBox(t, s, map[string]string{"mirror.sweep": `"1h"`, "mirror.idle": "0", "failover.auto_handback": "true"})
	waitPhase(t, b, "protecting")
	order(t, b, "sync")
	losses := func() (l row.Loss) {
		t.Helper()
		check(t, json.Unmarshal([]byte(order(t, b, "losses", "--json")), &l))
		return l
	}
	if l := losses(); l.Epoch != 0 || !strings.Contains(order(t, b, "losses"), "no takeover") {
		t.Errorf("before any takeover: %+v", l)
	}
	idle := rawLogin(t, b.IMAP, watched)
	idle.do("a SELECT INBOX")
	idle.send("i IDLE\r\n")
	idle.until("+")
	var want []string
	past := func(u, id string) {
		r := rawLogin(t, direct(s), u)
		r.append("INBOX", message(id, 400))
		_ = r.Close()
		want = append(want, u+" <"+id+"@other.test>")
	}
	shoot := s.Aim()
	past(quiet, "unseen0")
	past(quiet, "unseen1")
	past(watched, "seen")
	idle.until("* 1 EXISTS")
	shoot()
	s.Kill()
	waitPhase(t, b, "serving")
	l := losses()
	t.Log(order(t, b, "losses"))
	there := slices.ContainsFunc(must(b.Replica(t.Context(), watched))(t).Lines,
		func(line string) bool { return strings.Contains(line, "INBOX 1") })
	named := slices.ContainsFunc(l.May,
		func(m row.MayLack) bool { return m.Account == watched && m.Mailbox == "INBOX" })
	if l.Epoch != 1 || l.Planned || !named && !there {
		t.Errorf("what was seen is neither there nor named: %+v", l)
	}
	if slices.ContainsFunc(l.May, func(m row.MayLack) bool { return m.Account == quiet }) || len(l.Seen) != 2 ||
		l.Seen[0].Until.IsZero() {
		t.Errorf("named without a reason, or not dated: %+v", l)
	}
	check(t, s.Start(t.Context()))
	waitPhase(t, b, "protecting")
	var got []string
	for _, x := range losses().Lacked {
		got = append(got, x.Account+" "+x.MessageID)
	}
	if there {
		want = want[:2]
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("listed %q, lacked %q", got, want)
	}
	order(t, b, "sync")
	for u, found := range look(t, to(b.IMAP), s.Users) {
		for id, f := range found {
			if f.Count != 1 {
				t.Errorf("%s of %s is there %d times", id, u, f.Count)
			}
		}
	}
	if n := len(look(t, to(b.IMAP), []string{quiet})[quiet]); n != 2 {
		t.Errorf("%d of 2 messages were imported", n)
	}
	// A planned takeover lacks nothing.
	past(quiet, "late")
	order(t, b, "takeover")
	waitPhase(t, b, "serving", "returning", "copying back")
	if l := losses(); !l.Planned || len(l.May) != 0 {
		t.Errorf("planned: %+v", l)
	}
	waitFor(t, "the message that came last",
		func() bool { return len(look(t, to(b.IMAP), []string{quiet})[quiet]) == 3 })
}
