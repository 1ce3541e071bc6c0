package delivery

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"understudy/replica/row"
)

// N18: a message that was about to be taken when the process was ended is known
// when its sender comes again, once; one whose sender was answered is not.
func TestN18_SenderComesAgain(t *testing.T) {
	dir := t.TempDir()
	open := func() *Senders {
		t.Helper()
		s, err := OpenSenders(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	s := open()
	e := row.Envelope{From: "x@y", Rcpts: []string{"ada@d.test", "Bob@d.test"}}
	ref := func(text string) row.Ref { return row.RefOf([]byte("Subject: x\r\n\r\n" + text)) }
	lost, answered, left := ref("not answered"), ref("answered"), ref("its session ended")
	s.Await(e, lost)
	s.Replied(s.Await(e, answered))
	if s.Unanswered() {
		t.Error("a session that is at work is no sender that comes again")
	}
	s.Unreplied(s.Await(e, left))
	again := func(e row.Envelope, r row.Ref, want bool, why string) {
		t.Helper()
		if _, before, ok := s.Again(e, r); ok != want || ok && before != (r == lost) {
			t.Errorf("%s: %v, before %v", why, ok, before)
		}
	}
	again(e, left, true, "the session ended")
	again(e, left, false, "twice")
	f, err := os.OpenFile(filepath.Join(dir, "unanswered.journal"), os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(`{"ID":9,"Item":{"From":"cut of`)
		_ = f.Close()
	}
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time from the file begun anew
		s = open()
		again(row.Envelope{From: "x@y", Rcpts: []string{"ada@d.test"}}, lost, false, "other recipients")
		again(e, answered, false, "answered")
		again(e, left, false, "a third time")
		if !s.Unanswered() {
			t.Error("forgotten by a restart")
		}
		_ = s.Close()
	}
	s = open()
	for i := range maxLeft - 1 { // more would push it out
		s.Unreplied(s.Await(e, ref(fmt.Sprint(i))))
	}
	again(row.Envelope{From: "x@y", Rcpts: []string{"bob@d.test", "ada@D.test"}}, lost, true, "not answered")
	again(e, lost, false, "not answered, a second time")
}
