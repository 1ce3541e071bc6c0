package row

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"testing"
	"time"
)

var everybody = []Who{ByCache, ByMirror, ByStandby, ByCopyBack, ByKeeper, ByLoad}

// Every pair of state and event is a rule or is quiet, and not both; every rule
// says who may make it, what is on disk, and why.
func TestEveryHeldPairIsDecided(t *testing.T) {
	quiet := heldQuiet()
	for _, s := range HeldStates() {
		for _, e := range HeldEvents() {
			ruled := slices.ContainsFunc(HeldRules(), func(r HeldRule) bool { return r.From == s && r.On == e })
			if ruled == slices.Contains(quiet[s], e) {
				t.Errorf("%s / %s: ruled %v, quiet %v", s, e, ruled, !ruled)
			}
		}
	}
	for _, r := range HeldRules() {
		if len(r.WhoMay) == 0 || r.OnDisk == "" || r.Why == "" || (r.If == "") != (r.Cond == nil) {
			t.Errorf("%s / %s does not say all: %+v", r.From, r.On, r)
		}
	}
}

// The committed diagram is that of the table.
func TestHeldDiagram(t *testing.T) { sameAsCommitted(t, "held", HeldDiagram()) }

func sameAsCommitted(t *testing.T, name, want string) {
	t.Helper()
	got, err := os.ReadFile("../../docs/" + name + ".mmd")
	if err != nil || string(got) != want {
		t.Errorf("docs/%s.mmd is not what the table says (make gen): %v", name, err)
	}
}

// Nobody makes a transition that the table does not let them make.
func TestOnlyWhoMayMovesHeld(t *testing.T) {
	for _, r := range HeldRules() {
		h := Held{State: r.From, Rcpts: []string{"a", "b"}, Before: HeldOwed}
		e := HeldHappened{Event: r.On, Done: []string{"a"}}
		if r.If != moreRecipients {
			e.Done = h.Rcpts
		}
		for _, who := range everybody {
			e.By = who
			if _, _, ok := h.Step(e); ok != slices.Contains(r.WhoMay, who) {
				t.Errorf("%s / %s by %s: %v", r.From, r.On, who, ok)
			}
		}
	}
}

// N18: what is given and surely not taken is what it was; what may have been taken
// is owed from then on.
func TestN18_GivingAndBack(t *testing.T) {
	came, given := time.Unix(100, 0).UTC(), time.Unix(900, 0).UTC()
	for _, c := range []struct {
		name string
		from HeldState
		then []HeldEvent
		want HeldState
		at   time.Time
	}{
		{"ours, not given", HeldOurs, []HeldEvent{HeldGives, HeldNotGiven}, HeldOurs, came},
		{"owed, not given", HeldOwed, []HeldEvent{HeldGives, HeldNotGiven}, HeldOwed, came},
		{"given", HeldOurs, []HeldEvent{HeldGives, HeldGiven}, HeldAccepted, given},
		{"no answer", HeldOurs, []HeldEvent{HeldGives, HeldGivingLost}, HeldOwed, given},
		{"no answer, then not given", HeldOurs, []HeldEvent{HeldGives, HeldGivingLost, HeldGives, HeldNotGiven},
			HeldOwed, given},
		{"nothing noted, then not given", HeldOurs, []HeldEvent{HeldGives, HeldGives, HeldNotGiven}, HeldOwed, given},
		{"restarted", HeldOurs, []HeldEvent{HeldGives, HeldRestarted}, HeldOwed, given},
	} {
		h := Held{State: c.from, Rcpts: []string{"a"}, Arrived: came}
		for _, e := range c.then {
			by := ByStandby
			if e == HeldRestarted {
				by = ByLoad
			}
			var ok bool
			if h, _, ok = h.Step(HeldHappened{Event: e, By: by, At: given}); !ok {
				t.Fatalf("%s: %s is quiet", c.name, e)
			}
		}
		if h.State != c.want || !h.Arrived.Equal(c.at) || h.Before != "" || !h.BeforeArrived.IsZero() {
			t.Errorf("%s: %+v", c.name, h)
		}
	}
}

// Promise 1: whoever was told 250 is never forgotten but by production's or the
// standby's delivery, or after the hold; and what production surely has not got
// has no twin.
func TestHeldIsNotLost(t *testing.T) {
	for seed := range uint64(1000) {
		rng := rand.New(rand.NewPCG(seed, 9))
		h := Held{State: HeldNew, Rcpts: []string{"a", "b"}}
		told, may, got := false, false, 0
		var trail []HeldEvent
		for range 12 {
			e := HeldHappened{Event: HeldEvents()[rng.IntN(len(HeldEvents()))], By: everybody[rng.IntN(len(everybody))],
				At: time.Unix(5, 0)}
			if e.Event == HeldRefused && told {
				continue // a sender is answered once
			}
			if len(h.Rcpts) > 0 {
				e.Done = h.Rcpts[:1]
			}
			next, r, ok := h.Step(e)
			if !ok {
				if !reflect.DeepEqual(next, h) {
					t.Fatalf("seed %d: %s changes something and says it does not", seed, e.Event)
				}
				continue
			}
			trail = append(trail, e.Event)
			may = may || e.Event == HeldArrives || e.Event == HeldGives
			if e.Event == HeldNotGiven && next.State == HeldOurs {
				may = false
			}
			told = told || e.Event == HeldTaken || e.Event == HeldConfirmed || e.Event == HeldUnanswered ||
				e.Event == HeldRestarted
			got += len(h.Rcpts) - len(next.Rcpts)
			if r.Twin && !may {
				t.Fatalf("seed %d %v: a twin of what production never got", seed, trail)
			}
			if e.Event == HeldDelivers && !r.Twin && may {
				t.Fatalf("seed %d %v: no twin of what production may have", seed, trail)
			}
			if next.State == HeldDropped && told && e.Event != HeldExpires {
				t.Fatalf("seed %d %v: dropped, and its sender was told 250", seed, trail)
			}
			if (next.State == HeldLanded || next.State == HeldDelivered) && got < 2 {
				t.Fatalf("seed %d %v: done with %d of 2 recipients", seed, trail, got)
			}
			h = next
		}
	}
}

// Rows that older versions wrote keep their meaning.
func TestHeldOldRows(t *testing.T) {
	ref := RefOf([]byte("x"))
	sum, _ := json.Marshal(ref)
	common := `"ID":7,"From":"x@y","Rcpts":["a@d.test"],"Params":null,"Ref":` + string(sum) +
		`,"Arrived":"2026-01-02T03:04:05Z","Key":"4","Seen":["bob"]`
	for text, want := range map[string]HeldState{
		`{` + common + `,"Standby":false,"Owed":false}`: HeldAccepted,
		`{` + common + `,"Standby":true,"Owed":false}`:  HeldOurs,
		`{` + common + `,"Standby":false,"Owed":true}`:  HeldOwed,
		`{` + common + `,"Standby":true,"Owed":true}`:   HeldOwed, // production may have it
		`{` + common + `,"State":"giving"}`:             HeldGiving,
	} {
		var h Held
		if err := json.Unmarshal([]byte(text), &h); err != nil || h.State != want || h.ID != 7 || h.From != "x@y" ||
			!slices.Equal(h.Rcpts, []string{"a@d.test"}) ||
			h.Ref != ref || h.Key != "4" || !slices.Equal(h.Seen, []string{"bob"}) ||
			!h.Arrived.Equal(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) {
			t.Errorf("%s: %+v, %v", text, h, err)
		}
		b, err := json.Marshal(h)
		var again Held
		if err := json.Unmarshal(b, &again); err != nil || !reflect.DeepEqual(again, h) {
			t.Errorf("%s: written as %s, %v", text, b, err)
		}
		if err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{`{"State":"landed"}`, `{"State":"new"}`, `{"State":"of a later version"}`} {
		if err := json.Unmarshal([]byte(bad), new(Held)); err == nil {
			t.Errorf("%s is read", bad)
		}
	}
}

var never = time.Unix(1<<40, 0)

func ok(at time.Time, ok bool) time.Time {
	if !ok {
		return never
	}
	return at
}

// What each state lets others do.
func TestHeldQuestions(t *testing.T) {
	at := time.Unix(1000, 0)
	for _, c := range []struct {
		s                                             HeldState
		may, has, now, late, give, giveOld, old, days bool
	}{
		{s: HeldArriving, has: true, days: true},
		{s: HeldAccepted, may: true, has: true, now: true, days: true},
		{s: HeldOwed, may: true, has: true, now: true, late: true, giveOld: true, old: true},
		{s: HeldGiving, may: true, has: true, now: true, late: true, giveOld: true, old: true},
		{s: HeldOurs, may: true, now: true, late: true, give: true, giveOld: true},
	} {
		h := Held{State: c.s, Arrived: at}
		for _, q := range []struct {
			name      string
			got, want bool
		}{
			{"may be delivered", h.MayDeliver(), c.may}, {"production may have it", h.ProductionMayHaveIt(), c.has},
			{"to be delivered at once", h.DeliverNow(at.Add(time.Minute), time.Minute), c.now},
			{"later", h.DeliverNow(at.Add(time.Minute+1), time.Minute), c.late},
			{"to be given at once", h.MayGive(at.Add(-1)), c.give}, {"later", h.MayGive(at), c.giveOld},
			{"owed for long", h.OwedSince(at), c.old},
			{"expires", ok(h.ExpiresAt(time.Hour)).Equal(at.Add(time.Hour)), c.days},
			{"is given some time", !ok(h.GiveAt(time.Hour)).Equal(never), c.giveOld},
			{"after a while", ok(h.GiveAt(time.Hour)).Equal(at.Add(time.Hour)), c.old},
		} {
			if q.got != q.want {
				t.Errorf("%s, %s: %v", c.s, q.name, q.got)
			}
		}
	}
}
