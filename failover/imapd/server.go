// Package imapd is the standby's IMAP server (RFC 3501, RFC 9051 where they
// agree): the authenticated part of a session, served from the replica.
//
// Implementation notes. One goroutine a session. The session's view is a list
// of message rows as the client was told them; rows are immutable and bytes
// are never collected while a session may ask for them, so a message that
// another client has expunged can still be fetched until this client was told
// (RFC 9051 section 7.5.1). Changes are told by comparing the view with the
// mailbox's newest snapshot, at the end of a command and in IDLE; EXPUNGE is
// never told during FETCH, STORE or SEARCH by number. Framing comes from
// imapwire; a client error that leaves the position in the stream uncertain
// ends the session. Messages of the replica may be of any shape: nothing here
// may panic on one.
package imapd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"time"

	"understudy/replica/row"
	"understudy/snoop/imapwire"
)

// Store is what a session needs of the replica.
type Store interface {
	Mailboxes(user string) ([]row.Mailbox, error)
	Snapshot(user, mailbox string) (*row.Snapshot, error)
	SnapshotByID(user string, id row.MailboxID) (*row.Snapshot, error)
	Message(ref row.Ref) ([]byte, error)
	PutMessage(b []byte) (row.Ref, error)
	Watch(user string) (<-chan struct{}, func(), error)
	Writer
}

// Writer is the changing half of Store.
type Writer interface {
	Append(ctx context.Context, user, mailbox string, msgs []row.New) (validity uint32, uids []uint32, err error)
	SetFlags(ctx context.Context, user string, c row.FlagChange) (modified []uint32, err error)
	Expunge(ctx context.Context, user string, id row.MailboxID, only []uint32) error
	Copy(ctx context.Context, user string, c row.CopyCmd) (row.Copied, error)
	Create(ctx context.Context, user, name string, attrs []string) error
	Delete(ctx context.Context, user, name string) error
	Rename(ctx context.Context, user, from, to string) error
	Subscribe(ctx context.Context, user, name string, on bool) error
	// Code names an error of the store as a response code, "" if it is none
	// that a client could understand.
	Code(err error) string
}

// Caps is what the standby does exactly, and so all that clients are ever
// shown, from production too.
var caps = []string{"IMAP4rev1", "SASL-IR", "LITERAL+", "ID", "ENABLE", "IDLE", "NAMESPACE", "UIDPLUS", "MOVE",
	"UNSELECT",
	"CHILDREN", "SPECIAL-USE", "LIST-EXTENDED", "LIST-STATUS", "ESEARCH", "STATUS=SIZE", "CONDSTORE"}

// Caps returns the capabilities of an authenticated session.
func Caps() []string { return append([]string(nil), caps...) }

// Options of New.
type Options struct {
	Store      Store
	Log        *slog.Logger
	MaxMessage int64         // bytes of an APPEND; 0 is 50 MiB
	KeepAlive  time.Duration // of IDLE; 0 is 2 minutes, as Dovecot
	Timeout    time.Duration // without a command; 0 is 30 minutes
}

// Server serves sessions.
type Server struct{ opt Options }

// New returns a server.
func New(o Options) *Server {
	if o.MaxMessage == 0 {
		o.MaxMessage = 50 << 20
	}
	if o.KeepAlive == 0 {
		o.KeepAlive = 2 * time.Minute
	}
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{o}
}

// Session is what ServeConn needs to know of a session that has logged in.
type Session struct {
	User string // account of the replica
	Caps []string
}

// session is one that has logged in.
//
// Large: it has a method for each command; what it shows of a mailbox is in selected.
type session struct {
	*Server
	Session
	ctx  context.Context // its end ends the session between two commands
	work context.Context // of a command, which is always finished
	conn net.Conn
	br   *bufio.Reader
	w    *bufio.Writer
	sc   imapwire.Scanner

	sel       *selected
	condstore bool
	bye       bool
}

// command is one whole command.
type command struct {
	imapwire.Command
	args    *imapwire.Reader // what Args does not tell of, and where the first error is
	message []byte           // of an APPEND
	tooBig  bool             // a literal was over its limit, and is not kept
}

// errBye ends a session whose stream is out of step.
type errBye struct{ text string }

func (e errBye) Error() string { return e.text }

// ServeConn serves an authenticated session until its end. It closes nothing.
func (s *Server) ServeConn(ctx context.Context, conn net.Conn, in Session) error {
	ses := &session{Server: s, Session: in, ctx: ctx, work: context.WithoutCancel(ctx), conn: conn,
		br: bufio.NewReaderSize(conn, imapwire.MaxLine+4096), w: bufio.NewWriterSize(conn, 32<<10)}
	if ses.Caps == nil {
		ses.Caps = Caps()
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	err := ses.run()
	var bye errBye
	if errors.As(err, &bye) {
		ses.line("* BYE %s", bye.text)
	}
	_ = ses.w.Flush()
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (s *session) run() error {
	for !s.bye {
		if s.br.Buffered() == 0 {
			if err := s.w.Flush(); err != nil {
				return err
			}
		}
		if s.ctx.Err() != nil {
			return errBye{"Server is shutting down"}
		}
		_ = s.conn.SetReadDeadline(time.Now().Add(s.opt.Timeout))
		if s.ctx.Err() != nil {
			return errBye{"Server is shutting down"}
		}
		c, err := s.read()
		if err != nil {
			return err
		}
		if c != nil {
			s.dispatch(c)
		}
	}
	return nil
}

// read reads one command; nil if the line was no command and was answered.
func (s *session) read() (*command, error) {
	c := &command{}
	for !c.Whole {
		line, p, err := s.readLine()
		if err != nil {
			return nil, err
		}
		if p.First && !imapwire.ParseHead(line).Valid() {
			s.line("* BAD Error in IMAP command: no tag or no command")
			return nil, nil
		}
		lit := p.Lit
		if c.tooBig && !c.Message {
			// What is behind a name that was not kept means nothing.
			line, p.Lit = nil, imapwire.Literal{}
		}
		if err = c.Receive(p, line); err != nil && !c.overLimit(lit) {
			return nil, errBye{"Command too long"}
		}
		if !lit.Present {
			break
		}
		if refused, err := s.literal(c, lit); err != nil || refused {
			return nil, err
		}
	}
	c.args = c.Tail()
	return c, nil
}

// overLimit reports whether a literal is too large for what is not a message.
func (c *command) overLimit(lit imapwire.Literal) bool {
	return lit.Present && !c.Message && lit.Size > imapwire.MaxLiteral
}

func (s *session) readLine() ([]byte, imapwire.Piece, error) {
	line, err := s.br.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return nil, imapwire.Piece{}, errBye{"Command line too long"}
	}
	if err != nil {
		if s.ctx.Err() != nil {
			err = errBye{"Server is shutting down"}
		}
		return nil, imapwire.Piece{}, err
	}
	p, err := s.sc.Next(line)
	if err != nil {
		return nil, imapwire.Piece{}, errBye{"Cannot follow: " + err.Error()}
	}
	return append([]byte(nil), line...), p, nil
}

// literal reads an announced literal: the message of an APPEND, or a part of the
// command. refused tells that a synchronising one was answered with NO, and none
// follows.
func (s *session) literal(c *command, lit imapwire.Literal) (refused bool, err error) {
	limit := int64(imapwire.MaxLiteral)
	if c.Message {
		limit = s.opt.MaxMessage
	}
	if lit.Size > limit {
		if !lit.NonSync {
			s.sc.Cancel()
			s.line("%s NO [TOOBIG] Literal of %d bytes is over the limit of %d", c.Tag, lit.Size, limit)
			return true, nil
		}
		if lit.Size > 4*limit {
			return false, errBye{"Literal too large"}
		}
		c.tooBig = true
	}
	if !lit.NonSync {
		s.line("+ OK")
		if err := s.w.Flush(); err != nil {
			return false, err
		}
	}
	_ = s.conn.SetReadDeadline(time.Now().Add(s.opt.Timeout))
	if c.tooBig {
		_, err = io.CopyN(io.Discard, s.br, lit.Size)
		s.sc.Took(lit.Size)
		return false, err
	}
	b := make([]byte, lit.Size)
	_, err = io.ReadFull(s.br, b)
	s.sc.Took(lit.Size)
	if err != nil {
		return false, err
	}
	if c.Message {
		c.message = b
	} else if c.Receive(imapwire.Piece{Kind: imapwire.Body, N: len(b)}, b) != nil {
		return false, errBye{"Command too long"}
	}
	return false, nil
}

// line writes one line; errors show at the next flush.
func (s *session) line(format string, a ...any) {
	fmt.Fprintf(s.w, format, a...)
	_, _ = s.w.WriteString("\r\n")
}

func (s *session) ok(c *command, format string, a ...any) {
	s.line(c.Tag+" OK "+format, a...)
}

func (s *session) no(c *command, format string, a ...any) {
	s.line(c.Tag+" NO "+format, a...)
}

// fail answers NO for an error of the store. What a client cannot understand
// is logged and told as UNAVAILABLE (RFC 5530).
func (s *session) fail(c *command, err error) {
	code := s.opt.Store.Code(err)
	if code == "" {
		s.opt.Log.Error("command failed", "account", s.User, "command", string(c.Verb), "err", err)
		s.no(c, "[UNAVAILABLE] Not possible at the moment")
		return
	}
	s.no(c, "[%s] %s", code, oneLine(err.Error()))
}

func oneLine(t string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f {
			return '?'
		}
		return r
	}, t)
}

// bad answers BAD if the arguments were wrong.
func (s *session) bad(c *command) bool {
	c.args.End()
	if err := c.args.Err(); err != nil {
		s.refuse(c, err)
		return true
	}
	return false
}

// refuse answers BAD: the arguments are wrong.
func (s *session) refuse(c *command, err error) {
	s.line("%s BAD %s", c.Tag, oneLine(err.Error()))
}
