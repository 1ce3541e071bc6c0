package capture

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"strings"

	"understudy/replica/row"
	"understudy/snoop/imapsession"
	"understudy/snoop/imapwire"
)

// imapDialogue follows an IMAP session.
type imapDialogue struct {
	t       *Tap
	c, s    imapwire.Scanner
	in, out []byte // of the client, of the server, not yet understood
	track   *imapsession.Tracker
	waiting *imapsession.Cmd // the client waits for the server's word on it
	saying  bool             // the next line of the client belongs to waiting: IDLE, AUTHENTICATE
	login   Login            // of the command that logs in
	answers [][]byte         // of the client in an AUTHENTICATE
	account string           // "" before the login
	spools  map[*imapsession.Cmd]row.Spool
	w       *worker
}

func newIMAP(t *Tap) *imapDialogue {
	return &imapDialogue{t: t, c: imapwire.Scanner{Side: imapwire.Client}, s: imapwire.Scanner{Side: imapwire.Server}, track: imapsession.New(""),
		spools: map[*imapsession.Cmd]row.Spool{}}
}

var errWindow = errors.New("more is said than can be kept")

func (d *imapDialogue) client(b []byte) error {
	if len(d.in) > maxWindow {
		return errWindow
	}
	d.in = append(d.in, b...)
	return d.read()
}

// read understands what the client said, as far as the server has let it.
func (d *imapDialogue) read() error {
	for len(d.in) > 0 && d.waiting == nil {
		p, err := d.c.Next(d.in)
		if err != nil {
			return err
		}
		if p.Kind == imapwire.More {
			break
		}
		b := d.in[:p.N]
		cmd, done, err := d.track.Client(p, b)
		if err != nil {
			return err
		}
		if err := d.keep(cmd, p, b); err != nil {
			return err
		}
		if d.account == "" && done {
			d.noteLogin(cmd)
		}
		if p.Lit.Present && !p.Lit.NonSync || done && (cmd.Verb == "IDLE" || cmd.Verb == "AUTHENTICATE") {
			d.waiting = cmd
		}
		d.in = d.in[p.N:]
	}
	if d.saying {
		return d.said()
	}
	return nil
}

// said takes a line of the client that is no command.
func (d *imapDialogue) said() error {
	i := bytes.IndexByte(d.in, '\n')
	if i < 0 {
		return nil
	}
	line := bytes.Clone(imapwire.TrimEOL(d.in[:i+1]))
	d.in, d.saying = d.in[i+1:], false
	if d.waiting.Verb == "AUTHENTICATE" {
		d.answers = append(d.answers, line)
		return nil // the server has the word
	}
	d.waiting.Ended, d.waiting = true, nil
	return d.read()
}

// keep writes the message of an APPEND to a spool.
func (d *imapDialogue) keep(c *imapsession.Cmd, p imapwire.Piece, b []byte) error {
	if d.account == "" || !c.Message || c.Extra || c.Answered() {
		return nil
	}
	sp := d.spools[c]
	if sp == nil {
		sp = d.t.opt.NewSpool()
		d.spools[c] = sp
	}
	if p.Kind != imapwire.Body {
		return nil
	}
	_, err := sp.Write(b)
	return err
}

func (d *imapDialogue) noteLogin(c *imapsession.Cmd) {
	r := c.Args()
	switch c.Verb {
	case "LOGIN":
		user := r.AString()
		r.SP()
		pass := r.AString()
		if r.Err() == nil {
			d.login = Login{user, user, pass}
		}
	case "AUTHENTICATE":
		d.answers = [][]byte{}
		d.login = Login{}
		_ = r.Atom()
		if r.Peek() == ' ' {
			d.answers = append(d.answers, bytes.TrimSpace(r.Rest()))
		}
	}
}

// plain reads what was said in an AUTHENTICATE.
func (d *imapDialogue) plain(mechanism string) Login {
	return saslLogin(strings.ToUpper(mechanism), d.answers)
}

// saslLogin finds user and password in the answers of a client (RFC 4616, and
// LOGIN); without a user it was another mechanism.
func saslLogin(mechanism string, answers [][]byte) Login {
	var said []string
	for _, a := range answers {
		b, err := base64.StdEncoding.DecodeString(string(a))
		if err != nil {
			return Login{}
		}
		said = append(said, string(b))
	}
	switch {
	case mechanism == "PLAIN" && len(said) == 1:
		if f := strings.Split(said[0], "\x00"); len(f) == 3 {
			l := Login{f[0], f[1], f[2]}
			if l.User == "" {
				l.User = l.AuthUser
			}
			return l
		}
	case mechanism == "LOGIN" && len(said) == 2:
		return Login{said[0], said[0], said[1]}
	}
	return Login{}
}

func (d *imapDialogue) server(b []byte) error {
	d.out = append(d.out, b...)
	for len(d.out) > 0 {
		p, err := d.s.Next(d.out)
		if err != nil {
			return err
		}
		if p.Kind == imapwire.More {
			if len(d.out) < maxWindow {
				break
			}
			if p = d.s.Long(d.out); p.N == 0 {
				return errWindow
			}
		}
		line := d.out[:p.N]
		d.out = d.out[p.N:]
		if p.Kind != imapwire.Body && p.First {
			if err := d.unit(line); err != nil {
				return err
			}
		}
	}
	return nil
}

// unit follows the first line of what the server says.
func (d *imapDialogue) unit(line []byte) error {
	ev := d.track.Server(line)
	if d.track.Doubt != "" {
		return errors.New(d.track.Doubt)
	}
	if ev.Hint && d.account != "" && d.track.Box != nil {
		d.t.opt.Hint(d.account, d.track.Box.Name)
	}
	if d.waiting != nil && ev.Resp.Tag == "+" {
		if d.waiting.Verb == "IDLE" || d.waiting.Verb == "AUTHENTICATE" {
			d.saying = true
			return d.said()
		}
		d.waiting = nil
		return d.read()
	}
	if ev.Cmd == nil {
		return nil
	}
	if err := d.answered(ev); err != nil {
		return err
	}
	if d.waiting == ev.Cmd {
		if d.waiting.Verb != "IDLE" && d.waiting.Verb != "AUTHENTICATE" {
			d.c.Cancel()
		}
		d.waiting, d.saying = nil, false
		return d.read()
	}
	return nil
}

func (d *imapDialogue) answered(ev imapsession.Event) error {
	sp := d.spools[ev.Cmd]
	delete(d.spools, ev.Cmd)
	ok := ev.Resp.Name == "OK"
	verb := ev.Cmd.Verb
	switch {
	case ok && d.account == "" && (verb == "STARTTLS"):
		d.t.n.tls.Add(1)
		return errOpaque
	case ok && d.account == "" && (verb == "LOGIN" || verb == "AUTHENTICATE"):
		return d.loggedIn(ev.Cmd)
	case ok && verb == "COMPRESS":
		d.gap()
		return errOpaque
	case ok && d.account != "" && imapsession.Changes(verb):
		d.settle(ev, sp)
		return nil
	}
	if sp != nil {
		sp.Discard()
	}
	return nil
}

func (d *imapDialogue) loggedIn(c *imapsession.Cmd) error {
	if c.Verb == "AUTHENTICATE" {
		d.login = d.plain(c.Args().Atom())
	}
	l := d.login
	d.login, d.answers = Login{}, nil
	if l.User == "" {
		return errOpaque // a mechanism that does not tell who it is
	}
	account, err := d.t.opt.LoggedIn(d.t.ctx, l)
	if err != nil {
		return err
	}
	// What was said before the login is of no more use.
	d.account, d.track = account, imapsession.New(account)
	d.w = d.t.work()
	return nil
}

// settle has the replica follow a change. The session goes on meanwhile, so what
// the job needs of the command does not change any more.
func (d *imapDialogue) settle(ev imapsession.Event, sp row.Spool) {
	account, cmd, resp := d.account, ev.Cmd, ev.Resp
	resp.Arg, resp.Rest = bytes.Clone(resp.Arg), nil
	queued := d.w.do(func(ctx context.Context) {
		if err := d.t.opt.Settle(ctx, account, cmd, resp, sp); err != nil {
			d.t.opt.Log.Debug("settle a change of the mirror port", "account", account, "command", cmd.Verb, "err", err)
			d.t.opt.Sweep(account)
		}
		d.t.n.changes.Add(1)
		if sp != nil {
			sp.Discard()
		}
	})
	if !queued {
		d.t.opt.Sweep(account)
		if sp != nil {
			sp.Discard()
		}
	}
}

func (d *imapDialogue) gap() {
	if d.account != "" {
		d.t.opt.Sweep(d.account)
	}
}

func (d *imapDialogue) end() {
	for _, sp := range d.spools {
		sp.Discard()
	}
	if d.w != nil {
		d.w.end()
	}
	d.in, d.out = nil, nil
}
