package box

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	"understudy/console/config"
	"understudy/proxy"
	"understudy/proxy/seam"
	"understudy/proxy/upstream"
	"understudy/replica/imapc"
	"understudy/snoop/smtpwire"
)

// Production is the mail server behind the box, as the settings name it.
type Production struct {
	cfg      config.Config
	log      *slog.Logger
	target   upstream.Target
	password string // of the master
	names    names
}

// NewProduction reads what the settings name; via makes the connections, nil is
// the network's.
func NewProduction(cfg config.Config, log *slog.Logger, via Dialer) (*Production, error) {
	p := &Production{cfg: cfg, log: log, names: names{cfg.Master.Separator, !cfg.Accounts.ExactCase}}
	var err error
	if p.password, err = masterPassword(cfg.Master); err != nil {
		return nil, err
	}
	if p.target, err = target(cfg.Production); err != nil {
		return nil, err
	}
	p.dialBy(via)
	return p, nil
}

func (p *Production) dialBy(via Dialer) {
	p.target.IMAP.Via, p.target.SMTP.Via, p.target.Submission.Via = via, via, via
}

// Certificates are those that clients are shown; nil: none.
func Certificates(cfg config.Config, log *slog.Logger) (*proxy.Certificates, error) {
	if len(cfg.Certificates) == 0 {
		return nil, nil
	}
	var pairs []proxy.Pair
	for _, c := range cfg.Certificates {
		pairs = append(pairs, proxy.Pair(c))
	}
	return proxy.LoadCertificates(pairs, log)
}

// ErrMaster is a master password that cannot be read.
var ErrMaster = errors.New("master.password_file")

func masterPassword(m config.Master) (string, error) {
	if m.PasswordFile == "" {
		return m.Password, nil
	}
	b, err := os.ReadFile(m.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrMaster, err)
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

func target(p config.Production) (upstream.Target, error) {
	var pool *x509.CertPool
	if p.CA != "" {
		pem, err := os.ReadFile(p.CA)
		if err != nil {
			return upstream.Target{}, fmt.Errorf("production.ca: %w", err)
		}
		pool = x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return upstream.Target{}, fmt.Errorf("production.ca: %s holds no certificate", p.CA)
		}
	}
	ep := func(addr, sec string) upstream.Endpoint {
		host, _, _ := net.SplitHostPort(addr)
		if p.ServerName != "" {
			host = p.ServerName
		}
		return upstream.Endpoint{Addr: addr, Security: upstream.Security(sec), ProxyProtocol: p.ProxyProtocol,
			TLS: &tls.Config{ServerName: host, RootCAs: pool, InsecureSkipVerify: p.Insecure,
				ClientSessionCache: tls.NewLRUClientSessionCache(64)}}
	}
	t := upstream.Target{IMAP: ep(p.IMAP, p.IMAPSecurity), SMTP: ep(p.SMTP, p.SMTPSecurity),
		Submission: ep(p.Submission, p.SubmissionSecurity),
		XClient:    p.XClient, ClientID: p.ClientID, Timeout: p.Timeout.D()}
	if p.Submission == "" {
		t.Submission = t.SMTP
	}
	return t, nil
}

// DialMaster opens a connection that is logged in as an account.
func (p *Production) DialMaster(ctx context.Context, account string) (*imapc.Conn, error) {
	c, err := p.DialIMAP(ctx)
	if err != nil {
		return nil, err
	}
	l := p.masterLogin(account)
	stop := context.AfterFunc(ctx, c.Close)
	defer stop()
	if err := c.Login(l.User, l.AuthUser, l.Password); err != nil {
		c.Close()
		return nil, fmt.Errorf("log in to production as master for %s: %w", account, err)
	}
	return c, nil
}

// masterLogin is the login as somebody else.
func (p *Production) masterLogin(account string) seam.Login {
	user, auth := account, p.cfg.Master.User
	if p.cfg.Master.Separator != "" {
		user = account + p.cfg.Master.Separator + p.cfg.Master.User
		auth = user
	}
	return seam.Login{User: user, AuthUser: auth, Password: p.password}
}

// DialIMAP opens a connection that nobody is logged in on.
func (p *Production) DialIMAP(ctx context.Context) (*imapc.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Production.Timeout.D())
	defer cancel()
	conn, err := p.target.IMAP.Dial(ctx)
	if err != nil {
		return nil, err
	}
	o := imapc.Options{}
	if p.target.IMAP.Security == upstream.StartTLS {
		o.StartTLS = p.target.IMAP.TLS
	}
	return imapc.New(ctx, conn, o)
}

// Accounts returns the configured accounts and those that the command prints.
func (p *Production) Accounts(ctx context.Context) ([]string, error) {
	list := p.cfg.Accounts.List
	if c := p.cfg.Accounts.Command; len(c) > 0 {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		out, err := exec.CommandContext(ctx, c[0], c[1:]...).Output()
		if err != nil {
			p.log.Error("accounts.command failed; the accounts known so far are kept", "command", c[0], "err", err)
			return list, nil
		}
		for l := range strings.Lines(string(out)) {
			if l = strings.TrimSpace(l); l != "" {
				list = append(list[:len(list):len(list)], l)
			}
		}
	}
	return list, nil
}

// probeDeep logs in to an account and reads a little.
func (p *Production) probeDeep(ctx context.Context, account string) error {
	c, err := p.DialMaster(ctx, account)
	if err != nil {
		return err
	}
	defer c.Logout()
	defer context.AfterFunc(ctx, c.Close)()
	sel, err := c.Select("INBOX", true)
	if err == nil && sel.Exists > 0 {
		_, err = c.Do("FETCH 1 (UID FLAGS)", nil)
	}
	return err
}

// probeIMAP asks for nothing but an answer.
func (p *Production) probeIMAP(ctx context.Context) error {
	c, err := p.DialIMAP(ctx)
	if err != nil {
		return err
	}
	defer c.Logout()
	defer context.AfterFunc(ctx, c.Close)()
	_, err = c.Do("CAPABILITY", nil)
	return err
}

// ProbeSMTP greets and leaves.
func (p *Production) ProbeSMTP(ctx context.Context) error {
	conn, err := p.target.SMTP.Dial(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if dl, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(dl)
	}
	br := bufio.NewReader(conn)
	for _, cmd := range []string{"", "EHLO understudy.invalid\r\n", "QUIT\r\n"} {
		if cmd != "" {
			if _, err := conn.Write([]byte(cmd)); err != nil {
				return err
			}
		}
		r, err := smtpwire.ReadReply(br)
		if err != nil {
			return err
		}
		if !r.OK() {
			return fmt.Errorf("%s: %s", strings.TrimSpace(cmd), r)
		}
	}
	return nil
}
