package delivery_test

import (
	"testing"

	"understudy/replica/meta"
	"understudy/replica/row"
)

// A message whose 250 could not be noted is not one that counts as accepted, and its
// sender must not be told: the standby would leave it alone.
func TestConfirmFails(t *testing.T) {
	d := newDisk()
	s := newSite(t, d, &messages{m: map[row.Ref][]byte{}})
	ref, err := s.m.Put([]byte("Subject: a\r\n\r\na\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	h, err := s.l.Hold(t.Context(), row.Held{Rcpts: []string{"ada@d.test"}, Ref: ref})
	if err != nil {
		t.Fatal(err)
	}
	// Nobody knows what is on disk of messages like it, and it cannot be read.
	d.fail = func() (before, after bool) { return false, true }
	if _, err := s.l.Hold(t.Context(), row.Held{Rcpts: []string{"ada@d.test"}, Ref: ref}); err == nil {
		t.Fatal("a disk in trouble")
	}
	d.fail = nil
	bad := string(meta.HeldKey(99))
	d.rows[bad] = rev{[]byte("{"), 1}
	accepted := func() bool {
		for _, x := range s.l.HeldAll() {
			if x.ID == h.ID {
				return x.MayDeliver()
			}
		}
		return false
	}
	if err := s.l.Confirm(h.ID); err == nil || accepted() {
		t.Errorf("confirmed: %v, counts as accepted: %v", err, accepted())
	}
	delete(d.rows, bad)
	if err := s.l.Confirm(h.ID); err != nil || !accepted() {
		t.Errorf("confirmed: %v, counts as accepted: %v", err, accepted())
	}
}
