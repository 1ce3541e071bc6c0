package capture

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"strings"
	"time"

	"understudy/snoop/imapsession"
	"understudy/snoop/imapwire"
)

// imapDialogue follows an IMAP session.
type imapDialogue struct {
	t       *Tap
	c, s    imapwire.Scanner
	in, out []byte // of the client, of the server, not yet understood
	state   *imapsession.Session
	waiting *imapsession.Exchange // the client waits for the server's word on it
	saying  bool                  // the next line of the client belongs to waiting: IDLE, AUTHENTICATE
	login   Login                 // of the command that logs in
	answers [][]byte              // of the client in an AUTHENTICATE
	account string                // "" before the login
	w       *worker
}

func newIMAP(t *Tap) *imapDialogue {
	return &imapDialogue{t: t, state: imapsession.New(""),
		c: imapwire.Scanner{Side: imapwire.Client}, s: imapwire.Scanner{Side: imapwire.Server}}
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
		taken, err := d.state.Client(p, b, time.Time{}, true)
		if err != nil {
			return err
		}
		if err := d.keep(taken, b); err != nil {
			return err
		}
		if d.account == "" && taken.Exchange.Whole {
			d.noteLogin(taken.Exchange)
		}
		if taken.Wait {
			d.waiting = taken.Exchange
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
	if d.waiting.Verb == imapwire.Authenticate {
		d.answers = append(d.answers, line)
		return nil // the server has the word
	}
	d.state.EndIdle(d.waiting, line, time.Time{})
	d.waiting = nil
	return d.read()
}

// keep writes the message of an APPEND to a spool.
func (d *imapDialogue) keep(t imapsession.Taken, b []byte) error {
	t.Release.Release()
	if d.account == "" {
		return nil
	}
	if t.Needs.Spool {
		t.Exchange.Attach(imapsession.Kept{Spool: d.t.opt.NewSpool()})
	}
	if !t.Write {
		return nil
	}
	_, err := t.Exchange.Kept.Spool.Write(b)
	return err
}

func (d *imapDialogue) noteLogin(ex *imapsession.Exchange) {
	switch args := ex.Args.(type) {
	case imapwire.LoginArgs:
		d.login = Login{args.User, args.User, args.Password}
	case imapwire.AuthArgs:
		d.answers = [][]byte{}
		d.login = Login{}
		if args.Has {
			d.answers = append(d.answers, bytes.TrimSpace(args.Initial))
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
	dec := d.state.Server(line, true)
	if d.state.Doubt != "" {
		dec.Release.Release()
		return errors.New(d.state.Doubt)
	}
	if dec.Hint != "" && d.account != "" {
		d.t.opt.Hint(d.account, dec.Hint)
	}
	ex := dec.Exchange
	if ex == nil {
		if d.waiting == nil || dec.Response.Tag != "+" {
			return nil
		}
		if d.waiting.State() == imapsession.Talking {
			d.saying = true
			return d.said()
		}
		d.waiting = nil
		return d.read()
	}
	release := dec.Release
	if !dec.Done {
		_, release = d.state.Finish(ex)
	}
	if err := d.answered(ex, dec.Response, release); err != nil {
		return err
	}
	if d.waiting == ex {
		if dec.Wake == imapsession.Refuse {
			d.c.Cancel()
		}
		d.waiting, d.saying = nil, false
		return d.read()
	}
	return nil
}

// answered follows an answer; kept is what was attached to the command.
func (d *imapDialogue) answered(ex *imapsession.Exchange, r imapwire.Response, kept imapsession.Kept) error {
	ok := r.Name == "OK"
	verb := ex.Verb
	switch {
	case ok && d.account == "" && verb == imapwire.StartTLS:
		d.t.n.tls.Add(1)
		return errOpaque
	case ok && d.account == "" && (verb == imapwire.Login || verb == imapwire.Authenticate):
		return d.loggedIn(ex)
	case ok && verb == imapwire.Compress:
		d.gap()
		return errOpaque
	case ok && d.account != "" && verb.Changes():
		ex.Kept = kept
		d.settle(ex, r)
		return nil
	}
	kept.Release()
	return nil
}

func (d *imapDialogue) loggedIn(ex *imapsession.Exchange) error {
	if args, ok := ex.Args.(imapwire.AuthArgs); ok {
		d.login = d.plain(args.Mechanism)
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
	d.account, d.state = account, imapsession.New(account)
	d.w = d.t.work()
	return nil
}

// settle has the replica follow a change. The session goes on meanwhile, so what
// the job needs of the command does not change any more.
func (d *imapDialogue) settle(ex *imapsession.Exchange, ok imapwire.Response) {
	account := d.account
	ok.Arg, ok.Rest = bytes.Clone(ok.Arg), nil
	queued := d.w.do(func(ctx context.Context) {
		if err := d.t.opt.Settle(ctx, account, ex, ok); err != nil {
			d.t.opt.Log.Debug("settle a change of the mirror port", "account", account, "command", ex.Name(), "err",
				err)
			d.t.opt.Sweep(account)
		}
		d.t.n.changes.Add(1)
		ex.Kept.Release()
	})
	if !queued {
		d.t.opt.Sweep(account)
		ex.Kept.Release()
	}
}

func (d *imapDialogue) gap() {
	if d.account != "" {
		d.t.opt.Sweep(d.account)
	}
}

func (d *imapDialogue) end() {
	for _, k := range d.state.End() {
		k.Release()
	}
	if d.w != nil {
		d.w.end()
	}
	d.in, d.out = nil, nil
}
