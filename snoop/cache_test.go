package snoop

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"understudy/replica/row"
)

// replica is all that the cache changes.
type replica interface {
	Mailboxes
	Moves
	Deliveries
}

// fake is a replica with one mailbox, and a production that cannot be read.
type fake struct {
	replica
	synced bool
	hints  int
	held   row.Held
	before bool // the message was left by a process before
	owed   uint64

	holding   int  // holds under way
	delivered bool // the message is in a mailbox
	forgotten bool
}

var errDown = errors.New("production is down")

func (f *fake) Snapshot(string, string) (*row.Snapshot, error) {
	return &row.Snapshot{Mailbox: row.Mailbox{Synced: f.synced}}, nil
}
func (f *fake) LearnExpunge(context.Context, string, string, []uint32) error { return nil }
func (f *fake) SyncMailbox(context.Context, string, string) error            { return errDown }
func (f *fake) SyncFolders(context.Context, string) error                    { return errDown }
func (f *fake) Hint(string, string)                                          { f.hints++ }
func (f *fake) Later(string, string)                                         { f.hints++ }
func (f *fake) Expect(string, string)                                        {}
func (f *fake) Expunge(context.Context, string, string, []uint32) error      { return errDown }

func (f *fake) Again(row.Envelope, row.Ref) (time.Time, bool, bool) {
	return time.Now(), f.before, true
}
func (f *fake) Holding(row.Envelope, row.Ref) (row.Held, bool) { return f.held, true }
func (f *fake) Owe(_ context.Context, id uint64) error         { f.owed = id; return nil }

func (f *fake) BeginHold() func() { f.holding++; return func() { f.holding-- } }
func (f *fake) Hold(_ context.Context, h row.Held) (row.Held, error) {
	if f.holding != 1 {
		return h, errDown
	}
	h.ID = 7
	return h, nil
}
func (f *fake) Confirm(uint64) error                            { return nil }
func (f *fake) RouteOf(string) (row.Route, bool)                { return row.Route{}, false }
func (f *fake) Delivered(row.Envelope, row.Ref, time.Time) bool { return f.delivered }
func (f *fake) Found(_ context.Context, id uint64) error        { f.forgotten = id == 7; return nil }

type noSpool struct{ row.Spool }

func (noSpool) Start()                   {}
func (noSpool) Commit() (row.Ref, error) { return row.Ref{}, nil }

// T10: a message that production was seen to take is held, unless the mirror has
// read it before it could be.
func TestT10_Overheard(t *testing.T) {
	for _, delivered := range []bool{false, true} {
		f := &fake{delivered: delivered}
		cache := New(Options{Mailboxes: f, Moves: f, Deliveries: f, Syncer: f, Log: slog.New(slog.DiscardHandler),
			Local: func(string) bool { return true }})
		err := cache.Overheard(t.Context(), row.Envelope{Rcpts: []string{"a@here"}}, noSpool{})
		if err != nil || f.forgotten != delivered || f.holding != 0 {
			t.Errorf("in a mailbox %v: %v, forgotten %v, %d holds under way", delivered, err, f.forgotten, f.holding)
		}
	}
}

// N18: a message that comes again is taken for the one that is held only if all
// its recipients are known here: for others nobody would have it.
func TestN18_Repeated(t *testing.T) {
	for _, c := range []struct {
		name   string
		rcpts  []string
		before bool
		held   row.HeldState
		again  bool
		owed   uint64
	}{
		{"production may have it", []string{"a@here"}, true, row.HeldAccepted, true, 7},
		{"production answered", []string{"a@here"}, false, row.HeldAccepted, true, 0},
		{"the standby has it", []string{"a@here"}, true, row.HeldOurs, true, 0},
		{"one recipient is elsewhere", []string{"a@here", "b@there"}, true, row.HeldAccepted, false, 0},
	} {
		f := &fake{before: c.before, held: row.Held{ID: 7, State: c.held}}
		cache := New(Options{Mailboxes: f, Moves: f, Deliveries: f, Syncer: f, Log: slog.New(slog.DiscardHandler),
			Local: func(a string) bool { return strings.HasSuffix(a, "@here") }})
		again, err := cache.Repeated(t.Context(), row.Envelope{Rcpts: c.rcpts}, row.Ref{})
		if err != nil || again != c.again || f.owed != c.owed {
			t.Errorf("%s: %v, %v, owed %d", c.name, again, err, f.owed)
		}
	}
}
