package imapsession

import (
	"os"
	"slices"
	"testing"

	"understudy/snoop/imapwire"
)

// Every pair of state and event is a rule or is quiet, and not both.
func TestEveryPairIsDecided(t *testing.T) {
	q := quiet()
	for _, s := range States() {
		for _, e := range Events() {
			ruled := slices.ContainsFunc(Rules(), func(r Rule) bool { return r.From == s && r.On == e })
			if ruled == slices.Contains(q[s], e) {
				t.Errorf("%s / %s: ruled %v, quiet %v", s, e, ruled, !ruled)
			}
		}
	}
}

// Rules with a condition are followed by one without: a pair is decided in any case,
// but for a command that does not go on by the server's word.
func TestRulesAreWhole(t *testing.T) {
	for i, r := range Rules() {
		if r.Cond == nil {
			continue
		}
		if !slices.ContainsFunc(Rules()[i+1:], func(x Rule) bool {
			return x.From == r.From && x.On == r.On &&
				x.Cond == nil
		}) {
			t.Errorf("%s / %s is decided only if %s", r.From, r.On, r.If)
		}
	}
}

// Each way of a command, event by event.
func TestWays(t *testing.T) {
	for _, c := range []struct {
		name  string
		cmd   imapwire.Command
		steps []Event
		want  []State
	}{
		{"NOOP", imapwire.Command{}, []Event{Received, Lost, Answered}, []State{Asked, Asked, Told}},
		{"a literal", imapwire.Command{}, []Event{Announced, Lost, Called, Received, Accepted, Settled},
			[]State{Waiting,
				Waiting, Receiving, Asked, Settling, Told}},
		{"a literal that is refused", imapwire.Command{}, []Event{Announced, Answered}, []State{Waiting, Told}},
		{"not settled", imapwire.Command{}, []Event{Received, Accepted, Unsettled, Accepted, Settled}, []State{Asked,
			Settling, Asked, Settling, Told}},
		{"done by a lost one", imapwire.Command{}, []Event{Received, Lost, Discovered, Lost, Answered}, []State{Asked,
			Asked, Found, Found, Told}},
		{"refused in the middle", imapwire.Command{}, []Event{Answered, Received}, []State{Refused, Told}},
		{"refused, and lost", imapwire.Command{}, []Event{Answered, Lost, Received}, []State{Refused, Orphaned, Told}},
		{"IDLE", imapwire.Command{Head: imapwire.Head{Verb: imapwire.Idle}, Whole: true},
			[]Event{Received, Called, Called,
				Lost, Ended, Answered},
			[]State{Waiting, Talking, Talking, Talking, Ending, Told}},
		{"IDLE that is not taken", imapwire.Command{Head: imapwire.Head{Verb: imapwire.Idle}, Whole: true},
			[]Event{Received, Answered, Ended}, []State{Waiting, Told, Told}},
	} {
		ex := &Exchange{Command: c.cmd}
		for i, e := range c.steps {
			if ex.step(e); ex.State() != c.want[i] {
				t.Errorf("%s: %s after %s, want %s", c.name, ex.State(), e, c.want[i])
			}
		}
	}
}

// The diagram in the documentation is that of the table.
func TestDiagram(t *testing.T) {
	b, err := os.ReadFile("../../docs/imapsession.mmd")
	if err != nil || string(b) != Diagram() {
		t.Errorf("docs/imapsession.mmd is not of the table (make gen): %v", err)
	}
}
