package box

import (
	"context"
	"errors"
	"io"
	"net"

	"understudy/failover/imapd"
	"understudy/failover/smtpd"
	"understudy/proxy/seam"
	"understudy/proxy/smtp"
	"understudy/replica"
	"understudy/replica/vault"
	"understudy/snoop/smtpwire"
)

// standby serves IMAP and SMTP from the replica.
type standby struct {
	imap  *imapd.Server
	smtp  *smtpd.Server
	vault *vault.Vault
	store *replica.Replica
	names names
}

// check verifies a password against the learned verifiers.
func (s standby) check(login, password string) (string, error) {
	account, err := s.vault.Check(s.names.key(login), password)
	switch {
	case errors.Is(err, vault.ErrWrong):
		return "", seam.ErrDenied
	case err != nil:
		return "", errors.Join(seam.ErrUnavailable, err)
	}
	name, ok := s.store.Resolve(account)
	if !ok {
		return "", seam.ErrUnavailable
	}
	return name, nil
}

func (s standby) Authenticate(_ context.Context, l seam.Login) (string, error) {
	if !s.names.own(l) {
		return "", seam.ErrUnavailable
	}
	return s.check(l.User, l.Password)
}

func (s standby) ServeIMAP(ctx context.Context, conn net.Conn, account string, caps []string) error {
	return s.imap.ServeConn(ctx, conn, imapd.Session{User: account, Caps: caps})
}

func (s standby) NewSMTP(ctx context.Context, c seam.Client) smtp.Upstream {
	addr := ""
	if c.Addr.IsValid() {
		addr = c.Addr.String()
	}
	return SMTPUpstream{s.smtp.Session(ctx, addr, c.Submission)}
}

// SMTPUpstream lets the standby's SMTP session stand where production's would.
type SMTPUpstream struct{ Session *smtpd.Session }

// Greeting is the standby's own.
func (u SMTPUpstream) Greeting() (smtpwire.Reply, error) { return u.Session.Greeting(), nil }

// Hello greets in the client's name.
func (u SMTPUpstream) Hello(c seam.Client) (smtpwire.Reply, error) {
	return u.Session.Hello(c.Helo, c.ESMTP), nil
}

// Auth checks a password; the standby can check nothing else, and for nobody else.
func (u SMTPUpstream) Auth(l seam.Login) (smtpwire.Reply, error) {
	if l.Token() || l.User != l.AuthUser {
		return smtpwire.NewReply(454, "4.7.0 Temporary authentication failure"), nil
	}
	return u.Session.Auth(l.User, l.Password, seam.ErrDenied), nil
}

// Command runs a command that is neither of the others'.
func (u SMTPUpstream) Command(verb, line string) (smtpwire.Reply, error) {
	return u.Session.Command(verb, line), nil
}

// Data begins a message; w is nil if it is refused.
func (u SMTPUpstream) Data() (io.Writer, smtpwire.Reply, error) {
	w, no := u.Session.Data()
	if no != nil {
		return nil, *no, nil
	}
	return w, smtpwire.Reply{Code: 354}, nil
}

// Finish answers for the message, which is durable if that is a 250.
func (u SMTPUpstream) Finish() (smtpwire.Reply, error) { return u.Session.Finish(), nil }

// Close does nothing: there is no connection.
func (u SMTPUpstream) Close() {}
