package store

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"understudy/replica/meta"
	"understudy/replica/row"
)

func benchStore(b *testing.B, n, boxes int, home row.Home) *Store {
	b.Helper()
	m, err := meta.OpenBolt(filepath.Join(b.TempDir(), "meta.db"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = m.Close() })
	h := meta.NewHandle(m)
	s := New(Options{Meta: h, FoldCase: true})
	if err := errors.Join(m.View(h.Load), m.View(s.Load)); err != nil {
		b.Fatal(err)
	}
	ctx := b.Context()
	if _, err := s.EnsureAccount(ctx, "ada", row.Production); err != nil {
		b.Fatal(err)
	}
	err = s.Update(ctx, "ada", ByMirror, func(tx *Tx) error {
		m := tx.Add(row.Mailbox{Name: "INBOX", Sep: '/', UIDValidity: 9, UIDNext: uint32(n) + 1, Synced: true})
		for uid := range uint32(n) {
			tx.PutRow(m.ID, &row.Message{UID: uid + 1, Flags: []string{`\Seen`}, Date: time.Unix(1, 0)})
		}
		for i := range boxes {
			tx.Add(row.Mailbox{Name: "Box" + string(rune('a'+i%26)) + string(rune('a'+i/26)), Sep: '/',
				UIDValidity: 9, UIDNext: 1, Synced: true})
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	if home == row.Standby {
		if err := s.Update(ctx, "ada", ByKeeper,
			func(tx *Tx) error { tx.SetHome(row.Standby); return nil }); err != nil {
			b.Fatal(err)
		}
	}
	return s
}

func BenchmarkUpdate(b *testing.B) {
	for _, c := range []struct {
		name     string
		n, boxes int
	}{{"small", 10, 5}, {"large", 20_000, 100}} {
		b.Run("append-"+c.name, func(b *testing.B) {
			s := benchStore(b, c.n, c.boxes, row.Standby)
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := s.Acting().Append(b.Context(), "ada", "INBOX", []row.New{{Date: time.Unix(1,
					0)}}); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("store-"+c.name, func(b *testing.B) {
			s := benchStore(b, c.n, c.boxes, row.Standby)
			sn, _ := s.Snapshot("ada", "INBOX")
			b.ReportAllocs()
			op := row.Add
			for i := 0; b.Loop(); i++ {
				if _, err := s.Acting().SetFlags(b.Context(), "ada", row.FlagChange{Mailbox: sn.ID,
					UIDs: []uint32{uint32(i/2%c.n) + 1}, Op: op, Flags: []string{"x"}}); err != nil {
					b.Fatal(err)
				}
				op = -op
			}
		})
		b.Run("learn-"+c.name, func(b *testing.B) {
			s := benchStore(b, c.n, c.boxes, row.Production)
			b.ReportAllocs()
			for i := uint32(c.n) + 1; b.Loop(); i++ {
				if err := s.Wire().LearnAppend(b.Context(), "ada", row.AppendOf{Mailbox: "INBOX", UIDValidity: 9,
					UID: i, New: row.New{Date: time.Unix(1, 0)}}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkSnapshot(b *testing.B) {
	s := benchStore(b, 20_000, 100, row.Production)
	b.Run("warm", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.Snapshot("ada", "INBOX"); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				if _, err := s.Snapshot("ada", "INBOX"); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
	b.Run("mailboxes", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.Mailboxes("ada"); err != nil {
				b.Fatal(err)
			}
		}
	})
}
