package snoop

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"

	"understudy/replica/row"
	"understudy/snoop/imapsession"
	"understudy/snoop/imapwire"
)

// command makes text the command of an exchange.
func command(t *testing.T, text string, ex imapsession.Exchange) *imapsession.Exchange {
	t.Helper()
	var err error
	if ex.Command, err = imapwire.ParseCommand([]byte("a " + text + "\r\n")); err != nil {
		t.Fatal(err)
	}
	return &ex
}

// Promise 1: what the wire does not tell and production cannot be asked about is
// not acknowledged, but in a mailbox that is still being copied.
func TestSettle(t *testing.T) {
	for _, c := range []struct {
		name   string
		synced bool
		text   string
		ex     imapsession.Exchange
		want   error
	}{
		{"clear", true, "EXPUNGE",
			imapsession.Exchange{Mailbox: "INBOX", Heard: imapsession.Heard{Expunged: []uint32{3}}},
			nil},
		{"unclear", true, "EXPUNGE", imapsession.Exchange{Mailbox: "INBOX", Unknown: true}, errDown},
		{"asked again", true, "UID EXPUNGE 3", imapsession.Exchange{Mailbox: "INBOX",
			Tries: imapsession.Tries{Again: true}}, errDown},
		{"unclear while seeding", false, "EXPUNGE", imapsession.Exchange{Mailbox: "INBOX", Unknown: true}, nil},
		{"folders", true, "CREATE X", imapsession.Exchange{Mailbox: "X"}, errDown},
		{"append without UID", true, "APPEND INBOX {1+}\r\nx", imapsession.Exchange{Mailbox: "INBOX"}, errDown},
	} {
		f := &fake{synced: c.synced}
		cache := New(Options{Mailboxes: f, Moves: f, Deliveries: f, Syncer: f, Log: slog.New(slog.DiscardHandler)})
		if err := cache.Settle(t.Context(), "a", command(t, c.text, c.ex),
			imapwire.Response{Name: "OK"}); !errors.Is(err,
			c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if c.want == nil && f.hints == 0 {
			t.Errorf("%s: no sync is asked for", c.name)
		}
	}
}

// syncs is a production that can be read, and what was read of it.
type syncs struct {
	fake
	read []string
}

func (s *syncs) SyncFolders(context.Context, string) error { s.read = append(s.read, "*"); return nil }
func (s *syncs) SyncMailbox(_ context.Context, _, mailbox string) error {
	s.read = append(s.read, mailbox)
	return nil
}
func (s *syncs) Mailboxes(string) ([]row.Mailbox, error) {
	return []row.Mailbox{{Name: "INBOX"}, {Name: "tree", NoSelect: true}, {Name: "Filed"}}, nil
}

// Promise 1: production takes a command that is not understood here; whatever it did is
// read before the OK goes on.
func TestSettleUnreadable(t *testing.T) {
	for text, want := range map[string][]string{
		`COPY 1 "a\b"`:                {"*", "INBOX", "Filed"},
		`APPEND "a\b" {1+}` + "\r\nx": {"*", "INBOX", "Filed"},
		"STORE 1 +X (y)":              {"INBOX"},
		"COPY 1 Filed":                {"Filed", "INBOX"},
	} {
		s := &syncs{fake: fake{synced: true}}
		cache := New(Options{Mailboxes: s, Moves: s, Deliveries: s, Syncer: s, Log: slog.New(slog.DiscardHandler)})
		ex := command(t, text, imapsession.Exchange{Mailbox: "INBOX", Unknown: true})
		if err := cache.Settle(t.Context(), "a", ex, imapwire.Response{Name: "OK"}); err != nil || !slices.Equal(s.read,
			want) {
			t.Errorf("%s: %v, read %q", text, err, s.read)
		}
	}
}
