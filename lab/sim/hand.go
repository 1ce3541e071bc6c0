package sim

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"understudy/replica/imapc"
	"understudy/snoop/smtpwire"
)

// hand is a mail client that does what it is told.
type hand struct {
	w *world
	*imapc.Conn
}

// hand logs a user in.
func (w *world) hand(user string, to func(context.Context, string) (net.Conn, error)) hand {
	w.t.Helper()
	c, err := w.dial(user, to)
	if err != nil {
		w.t.Fatal(user, err)
	}
	return hand{w, c}
}

// do has commands done, one after the other.
func (h hand) do(commands ...string) hand {
	h.w.t.Helper()
	for _, c := range commands {
		if _, err := h.Do(c, nil); err != nil {
			h.w.t.Errorf("%s: %v", c, err)
		}
	}
	return h
}

// add appends letters.
func (h hand) add(mailbox string, ids ...string) hand {
	h.w.t.Helper()
	for i, id := range ids {
		zone := time.FixedZone("", 3600*i)
		a := imapc.Appending{Mailbox: mailbox, Flags: []string{}, Body: letter(id), Date: time.Now().In(zone)}
		if i%2 == 1 {
			a.Flags = []string{`\Seen`, "$Forwarded"}
		}
		if _, _, err := h.Append(a); err != nil {
			h.w.t.Errorf("append %s to %s: %v", id, mailbox, err)
		}
	}
	return h
}

// letter is a message with a Message-ID.
func letter(id string) []byte {
	more := strings.Repeat("It goes on.\r\n", len(id)%7)
	return fmt.Appendf(nil, "From: a@other.test\r\nSubject: %[1]s\r\nMessage-ID: <%[1]s>\r\n\r\n"+
		"This is the letter %[1]s.\r\n%[2]s",
		id, more)
}

// offered is a message that the box has asked for the text of.
type offered struct {
	net.Conn
	br *bufio.Reader
}

// offer begins to give a message to the box; user, if any, submits it.
func (w *world) offer(port, from, to, user string) offered {
	w.t.Helper()
	conn, err := w.toBox(context.Background(), port)
	if err != nil {
		w.t.Fatal(err)
	}
	lines := []string{"", "EHLO a.test"}
	if user != "" {
		secret := []byte("\x00" + user + "\x00" + password(user))
		lines = append(lines, "AUTH PLAIN "+base64.StdEncoding.EncodeToString(secret))
	}
	o := offered{conn, bufio.NewReader(conn)}
	for _, line := range append(lines, "MAIL FROM:<"+from+">", "RCPT TO:<"+to+">", "DATA") {
		if line != "" {
			_, _ = io.WriteString(conn, line+"\r\n")
		}
		if r, err := smtpwire.ReadReply(o.br); err != nil || r.Code >= 400 {
			w.t.Errorf("%q: %s %v", line, r, err)
		}
	}
	return o
}

// text sends a letter.
func (o offered) text(id string) { _, _ = io.WriteString(o, string(letter(id))+".\r\n") }

// answer is the code of the answer to it; 0 if there is none.
func (o offered) answer() int {
	r, err := smtpwire.ReadReply(o.br)
	if err != nil {
		return 0
	}
	return r.Code
}

// send gives a letter to the box.
func (w *world) send(port, from, to, id, user string) {
	w.t.Helper()
	o := w.offer(port, from, to, user)
	o.text(id)
	if code := o.answer(); code != 250 {
		w.t.Errorf("%s to %s: %d", id, to, code)
	}
	_ = o.Close()
}
