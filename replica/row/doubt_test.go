package row

import (
	"encoding/json"
	"reflect"
	"slices"
	"testing"
)

// Every event in every state that a kind can be in is a rule or is quiet, and not
// both; no rule leads where its kind cannot be.
func TestEveryDoubtPairIsDecided(t *testing.T) {
	quiet := doubtQuiet()
	for _, k := range DoubtKinds() {
		for _, s := range DoubtStates(k) {
			for _, e := range DoubtEvents() {
				ruled := slices.ContainsFunc(DoubtRules(),
					func(r DoubtRule) bool { return r.From == s && r.On == e && slices.Contains(r.Kinds, k) })
				if ruled == slices.Contains(quiet[k][s], e) {
					t.Errorf("%s, %s / %s: ruled %v, quiet %v", k, s, e, ruled, !ruled)
				}
			}
		}
	}
	for _, r := range DoubtRules() {
		if len(r.WhoMay) == 0 || r.OnDisk == "" || r.Why == "" || (r.If == "") != (r.Cond == nil) {
			t.Errorf("%s / %s does not say all: %+v", r.From, r.On, r)
		}
		for _, k := range r.Kinds {
			if !slices.Contains(DoubtStates(k), r.From) || !slices.Contains(DoubtStates(k), r.To) {
				t.Errorf("%s cannot go from %s to %s", k, r.From, r.To)
			}
		}
	}
}

// The committed diagram is that of the table.
func TestDoubtDiagram(t *testing.T) { sameAsCommitted(t, "doubt", DoubtDiagram()) }

func someDoubts() []Doubt {
	a, b := RefOf([]byte("a")), RefOf([]byte("b"))
	return []Doubt{MoveDoubt("INBOX", "Filed", []uint32{1, 2}, 9), RepeatedDoubt("Sent", a, b), AppendDoubt(3, a),
		BehindDoubt(3, a, a, b), FlagDoubt(3, 7, `\Flagged`)}
}

// Nobody makes a transition that the table does not let them make.
func TestOnlyWhoMayMovesDoubts(t *testing.T) {
	for _, d := range someDoubts() {
		for _, r := range DoubtRules() {
			if !slices.Contains(r.Kinds, d.Kind) {
				continue
			}
			d.State = r.From
			for _, who := range everybody {
				e := DoubtHappened{Event: r.On, By: who}
				if r.Cond != nil {
					e.Refs = []Ref{{}}
				}
				if next, _, ok := d.Step(e); ok != slices.Contains(r.WhoMay, who) || !ok &&
					!reflect.DeepEqual(next, d) {
					t.Errorf("%s, %s / %s by %s: %v", d.Kind, r.From, r.On, who, ok)
				}
			}
		}
	}
}

// B5, M16: the life of a MOVE whose answer is lost: it is noted before it is sent,
// a restart notes it for good, a takeover leaves what was not moved, the hand-back
// ends it.
func TestB5_LifeOfAMove(t *testing.T) {
	left := RefOf([]byte("left"))
	for _, c := range []struct {
		name string
		then []DoubtHappened
		want DoubtState
		refs int
	}{
		{"answered",
			[]DoubtHappened{{Event: DoubtIntend, By: ByCache}, {Event: DoubtArrive, By: ByCache},
				{Event: DoubtAnswer, By: ByCache}}, DoubtSettled, 0},
		{"lost",
			[]DoubtHappened{{Event: DoubtIntend, By: ByCache}, {Event: DoubtRestarted, By: ByLoad},
				{Event: DoubtTakeover, By: ByKeeper, Refs: []Ref{left}}}, DoubtBased, 1},
		{"all had moved", []DoubtHappened{{Event: DoubtUnanswered, By: ByCache}, {Event: DoubtTakeover, By: ByKeeper}},
			DoubtDropped, 0},
		{"handed back",
			[]DoubtHappened{{Event: DoubtUnanswered, By: ByCache},
				{Event: DoubtTakeover, By: ByKeeper, Refs: []Ref{left}}, {Event: DoubtHandback, By: ByKeeper}},
			DoubtSettled, 1},
		{"of a mailbox that is gone",
			[]DoubtHappened{{Event: DoubtIntend, By: ByCache}, {Event: DoubtNowhere, By: ByLoad}}, DoubtDropped, 0},
	} {
		d := MoveDoubt("INBOX", "Filed", []uint32{1}, 9)
		for _, e := range c.then {
			var ok bool
			if d, _, ok = d.Step(e); !ok {
				t.Fatalf("%s: %s is quiet", c.name, e.Event)
			}
		}
		if d.State != c.want || len(d.Refs) != c.refs {
			t.Errorf("%s: %+v", c.name, d)
		}
	}
}

// Each kind tells what it has to, and answers for nothing else.
func TestDoubtQuestions(t *testing.T) {
	a := RefOf([]byte("a"))
	for _, d := range someDoubts() {
		if !d.valid() {
			t.Errorf("%s is not valid as it is made", d.Kind)
		}
		d.State = DoubtIntended
		if got, want := d.Departing("INBOX"), d.Kind == DoubtMove; got != want || d.Departing("Filed") {
			t.Errorf("%s departs from INBOX: %v", d.Kind, got)
		}
		for _, in := range []struct {
			id   MailboxID
			name string
			of   []DoubtKind
		}{{3, "Trash", []DoubtKind{DoubtAppend, DoubtBehind}}, {4, "Filed", []DoubtKind{DoubtMove}},
			{4, "Sent", []DoubtKind{DoubtRepeated}}, {0, "", nil}} {
			if got, want := d.Into(in.id, in.name), slices.Contains(in.of, d.Kind); got != want {
				t.Errorf("%s puts messages into %d %s: %v", d.Kind, in.id, in.name, got)
			}
		}
		if got := d.Copies(a); (got == 2) != (d.Kind == DoubtBehind) {
			t.Errorf("%s leaves %d copies", d.Kind, got)
		}
	}
	d := MoveDoubt("INBOX", "Filed", []uint32{1}, 0)
	if d.State = DoubtArrived; d.Departing("INBOX") {
		t.Error("what has arrived may depart")
	}
}

// Rows and lines that older versions wrote keep their meaning.
func TestDoubtOldRows(t *testing.T) {
	r, _ := json.Marshal(RefOf([]byte("x")))
	ref := string(r)
	for text, want := range map[string]struct {
		k DoubtKind
		s DoubtState
	}{
		`{"From":"INBOX","To":"Filed","UIDs":[1,2],"Dst":null,"Mark":7,"Refs":[` + ref +
			`]}`: {DoubtMove, DoubtNoted},
		`{"From":"INBOX","To":"Filed","UIDs":[1],"Dst":[5],"Mark":0,"Refs":null}`: {DoubtMove,
			DoubtNoted},
		`{"From":"","To":"Sent","UIDs":null,"Dst":null,"Mark":0,"Refs":[` + ref +
			`]}`: {DoubtRepeated, DoubtNoted},
		`{"From":"","To":"","UIDs":null,"Dst":null,"Mark":0,"Refs":[` + ref +
			`],"Box":3}`: {DoubtAppend, DoubtIntended},
		`{"From":"","To":"","UIDs":null,"Dst":null,"Mark":0,"Refs":[` + ref +
			`],"Box":3,"Moving":true}`: {DoubtBehind, DoubtIntended},
		`{"From":"","To":"","UIDs":[9],"Dst":null,"Mark":0,"Refs":null,"Box":3,"Flag":"\\Flagged"}`: {DoubtFlag,
			DoubtIntended},
		`{"Kind":"move","State":"in base","From":"INBOX","To":"Filed","UIDs":[1],"Refs":[` + ref +
			`]}`: {DoubtMove, DoubtBased},
	} {
		var d, again Doubt
		if err := json.Unmarshal([]byte(text), &d); err != nil || d.Kind != want.k || d.State != want.s {
			t.Errorf("%s: %+v, %v", text, d, err)
		}
		b, err := json.Marshal(d)
		if err == nil {
			err = json.Unmarshal(b, &again)
		}
		if err != nil || !reflect.DeepEqual(again, d) {
			t.Errorf("%s: written as %s, %v", text, b, err)
		}
	}
	for _, bad := range []string{`{"Kind":"flag","State":"intended","Box":3}`,
		`{"Kind":"repeated","State":"arrived","To":"x"}`, `{"Kind":"of a later version","State":"noted"}`} {
		if err := json.Unmarshal([]byte(bad), new(Doubt)); err == nil {
			t.Errorf("%s is read", bad)
		}
	}
}
