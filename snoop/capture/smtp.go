package capture

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"strconv"
	"strings"

	"understudy/replica/row"
	"understudy/snoop/smtpwire"
)

// said is a command of a client that waits for its reply.
type said struct {
	verb, arg string
	last      bool // BDAT LAST, or the end of DATA
}

// smtpDialogue follows an SMTP session.
type smtpDialogue struct {
	t        *Tap
	in, out  []byte
	pending  []said // oldest first; the server speaks first, so it begins with a greeting
	mail     row.Envelope
	body     []byte
	keeping  bool  // body is complete so far
	data     bool  // the client is within DATA
	chunk    int64 // what is left of a BDAT
	user     string
	sasl     string
	answers  [][]byte
	prompted bool // the client's next line belongs to an AUTH
	w        *worker
}

func newSMTP(t *Tap) *smtpDialogue {
	return &smtpDialogue{t: t, pending: []said{{verb: "greeting"}}, w: t.work()}
}

func (d *smtpDialogue) client(b []byte) error {
	if len(d.in) > maxWindow {
		return errWindow
	}
	d.in = append(d.in, b...)
	return d.read()
}

// stopped reports whether the client's next bytes depend on the server's word.
func (d *smtpDialogue) stopped() bool {
	for _, s := range d.pending {
		switch s.verb {
		case "DATA", "AUTH", "STARTTLS":
			return true
		}
	}
	return false
}

func (d *smtpDialogue) read() error {
	for len(d.in) > 0 {
		switch {
		case d.chunk > 0:
			k := min(int64(len(d.in)), d.chunk)
			d.add(d.in[:k])
			d.in, d.chunk = d.in[k:], d.chunk-k
			continue
		case !d.data && !d.prompted && d.stopped():
			return nil
		}
		i := bytes.IndexByte(d.in, '\n')
		if i < 0 {
			if len(d.in) > maxWindow/2 {
				return errWindow
			}
			return nil
		}
		line := d.in[:i+1]
		d.in = d.in[i+1:]
		if d.data {
			// As smtpwire.CopyBody has it: only a dot between two CRLFs ends a body.
			end := string(line) == ".\r\n" && (len(d.body) == 0 && d.keeping || bytes.HasSuffix(d.body, []byte("\r\n")))
			if !d.keeping && string(line) == ".\r\n" {
				end = true // it is not kept anyway
			}
			d.add(line)
			if end {
				d.data = false
				d.pending = append(d.pending, said{verb: "end", last: true})
			}
			continue
		}
		if d.prompted {
			d.answers, d.prompted = append(d.answers, bytes.Clone(bytes.TrimRight(line, "\r\n"))), false
			continue
		}
		if err := d.command(string(bytes.TrimRight(line, "\r\n"))); err != nil {
			return err
		}
	}
	return nil
}

// add keeps a part of a body, as long as there is room.
func (d *smtpDialogue) add(b []byte) {
	if !d.keeping {
		return
	}
	if len(d.body)+len(b) > maxBody || d.t.bodies+int64(len(b)) > maxBodies {
		d.forget()
		return
	}
	d.t.bodies += int64(len(b))
	d.body = append(d.body, b...)
}

func (d *smtpDialogue) forget() {
	d.t.bodies -= int64(len(d.body))
	d.body, d.keeping = nil, false
}

func (d *smtpDialogue) command(line string) error {
	verb, arg, _ := strings.Cut(line, " ")
	s := said{verb: strings.ToUpper(verb), arg: arg}
	switch s.verb {
	case "BDAT":
		f := strings.Fields(arg)
		if len(f) == 0 {
			return errors.New("BDAT without a size")
		}
		k, err := strconv.ParseInt(f[0], 10, 64)
		if err != nil || k < 0 {
			return errors.New("BDAT without a size")
		}
		d.chunk, s.last = k, len(f) > 1 && strings.EqualFold(f[1], "LAST")
		// Chunks are binary; they are found by the sweep.
		d.forget()
	case "AUTH":
		f := strings.Fields(arg)
		d.sasl, d.answers = "", nil
		if len(f) > 0 {
			d.sasl = strings.ToUpper(f[0])
		}
		if len(f) > 1 {
			d.answers = append(d.answers, []byte(f[1]))
		}
	}
	if len(d.pending) > 1000 {
		return errWindow
	}
	d.pending = append(d.pending, s)
	return nil
}

func (d *smtpDialogue) server(b []byte) error {
	if len(d.out) > maxWindow {
		return errWindow
	}
	d.out = append(d.out, b...)
	for {
		i := bytes.IndexByte(d.out, '\n')
		if i < 0 {
			return nil
		}
		line := d.out[:i+1]
		d.out = d.out[i+1:]
		if len(line) < 4 {
			return errors.New("a reply without a code")
		}
		if line[3] == '-' {
			continue
		}
		code, err := strconv.Atoi(string(line[:3]))
		if err != nil {
			return errors.New("a reply without a code")
		}
		if err := d.reply(code); err != nil {
			return err
		}
	}
}

func (d *smtpDialogue) reply(code int) error {
	if len(d.pending) == 0 {
		if code == 421 {
			return errOpaque // it ends
		}
		return errors.New("a reply to nothing")
	}
	s := d.pending[0]
	if s.verb == "AUTH" && code == 334 {
		d.prompted = true
		return d.read()
	}
	d.pending = d.pending[1:]
	ok := code/100 == 2
	switch s.verb {
	case "STARTTLS":
		if ok {
			d.t.n.tls.Add(1)
			return errOpaque
		}
	case "HELO", "EHLO", "RSET":
		d.mail = row.Envelope{}
	case "MAIL":
		if p, err := smtpwire.ParsePath("FROM", s.arg); ok && err == nil {
			d.mail = row.Envelope{From: p.Addr, Params: p.Params, User: d.user}
		}
	case "RCPT":
		if p, err := smtpwire.ParsePath("TO", s.arg); ok && err == nil {
			d.mail.Rcpts = append(d.mail.Rcpts, p.Addr)
		}
	case "DATA":
		if d.data = code == 354; d.data {
			d.body, d.keeping = nil, true
		}
	case "AUTH":
		if ok {
			d.loggedIn()
		}
	case "end":
		if ok {
			d.accepted()
		}
		d.forget()
		d.mail = row.Envelope{}
	}
	return d.read()
}

func (d *smtpDialogue) loggedIn() {
	l := saslLogin(d.sasl, d.answers)
	d.answers = nil
	if l.User == "" {
		return
	}
	d.user = l.User
	if _, err := d.t.opt.LoggedIn(d.t.ctx, l); err != nil {
		d.t.opt.Log.Debug("note a login of the mirror port", "err", err)
	}
}

// accepted keeps the message that production has just taken.
func (d *smtpDialogue) accepted() {
	if !d.keeping || len(d.mail.Rcpts) == 0 {
		return
	}
	raw, mail := d.body, d.mail
	if !d.w.do(func(ctx context.Context) {
		sp := d.t.opt.NewSpool()
		defer sp.Discard()
		if _, err := smtpwire.CopyBody(sp, bufio.NewReader(bytes.NewReader(raw)), 0); err != nil {
			return
		}
		if err := d.t.opt.Accepted(ctx, mail, sp); err != nil {
			d.t.opt.Log.Debug("keep a message of the mirror port", "err", err)
			return
		}
		d.t.n.messages.Add(1)
	}) {
		d.t.opt.Log.Debug("too many messages at once on the mirror port; the sweep will find it")
	}
}

// gap: what was accepted meanwhile is found by the sweep.
func (d *smtpDialogue) gap() {}

func (d *smtpDialogue) end() {
	d.forget()
	d.w.end()
	d.in, d.out = nil, nil
}
