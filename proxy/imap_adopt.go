package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"understudy/replica/row"
	"understudy/snoop/imapsession"
	"understudy/snoop/imapwire"
	"understudy/snoop/smtpwire"
)

// maxAnswer bounds a line that is read while a session is moved: the UIDs of a
// large mailbox.
const maxAnswer = 16 << 20

// news is what the client has still to be told of its mailbox.
type news struct {
	exists bool
	flags  []row.FlagsOf
}

// standby makes the standby the upstream.
func (s *imapSession) standby(lease Lease) *upstream {
	s.p.banner.mu.RLock()
	caps := s.p.banner.caps
	s.p.banner.mu.RUnlock()
	near, far := net.Pipe()
	up := &upstream{imapConn: &imapConn{Conn: near, br: bufio.NewReaderSize(near, 1<<10), caps: caps}, lease: lease,
		lost: make(chan struct{}), ended: make(chan struct{})}
	s.p.far.Go(func() {
		defer close(up.ended)
		err := s.p.opt.IMAP.ServeIMAP(s.life, far, s.account, caps)
		_ = far.Close()
		s.p.opt.Log.Debug("standby session", "account", s.account, "err", err)
	})
	return up
}

// next waits for whoever answers now, and brings it to the session's state.
func (s *imapSession) next(ctx context.Context) *upstream {
	ctx, cancel := context.WithTimeout(ctx, parkLimit)
	defer cancel()
	for {
		lease, err := s.p.opt.Gate.Enter(ctx, s.login.User)
		if err != nil {
			return nil
		}
		up, err := s.attach(ctx, lease)
		if err == nil {
			return up
		}
		lease.Release()
		s.p.opt.Log.Debug("session is not adopted yet", "account", s.account, "err", err)
		if errors.Is(err, imapsession.ErrNotAdoptable) || errors.As(err, &errClient{}) {
			s.giveUp(err)
			return nil
		}
		if lease.Side == Production && ctx.Err() == nil {
			s.p.opt.Gate.Trouble(err)
		}
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
			return nil
		}
	}
}

// attach makes an upstream and brings it to the session's state.
func (s *imapSession) attach(ctx context.Context, lease Lease) (*upstream, error) {
	work, cancel := leaseContext(ctx, lease)
	defer cancel()
	var up *upstream
	var err error
	if lease.Side == Standby {
		up = s.standby(lease)
	} else if up, err = s.relogin(work, lease); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(work, func() { _ = up.Close() })
	_ = up.SetDeadline(time.Now().Add(answerTimeout))
	if lease.Side == Production {
		s.outlast(work)
	}
	// Before the mailbox is opened: of what is taken out of it now the client is
	// told as of what it missed.
	if err = s.outcomes(work, lease.Side); err == nil {
		err = s.inTurn(work, lease.Side, func() error { return s.restore(up) })
	}
	if err == nil {
		err = s.finishUnit(up)
	}
	if err == nil {
		err = s.answerDone()
	}
	if !stop() && err == nil {
		err = errLost
	}
	if err != nil {
		up.shut()
		return nil, err
	}
	_ = up.SetDeadline(time.Time{})
	return up, nil
}

// lateLimit is how long production may go on with what it had received when only
// the connection broke, before it is asked what it has done.
const lateLimit = 200 * time.Millisecond

// outlast waits until production has most likely done what it had received.
func (s *imapSession) outlast(ctx context.Context) {
	if s.unsure.IsZero() {
		return
	}
	select {
	case <-time.After(time.Until(s.unsure.Add(lateLimit))):
		s.unsure = time.Time{}
	case <-ctx.Done():
	}
}

// inTurn runs f, which asks the standby. Thousands of sessions at once would all
// be served last.
func (s *imapSession) inTurn(ctx context.Context, side Side, f func() error) error {
	if side == Production {
		return f()
	}
	select {
	case s.p.turns <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.p.turns }()
	return f()
}

// relogin logs in to production as the client did, or as its master.
func (s *imapSession) relogin(ctx context.Context, lease Lease) (*upstream, error) {
	select {
	case s.p.again <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-s.p.again }()
	logins := []Login{s.login}
	if s.p.opt.Master != nil {
		logins = append(logins, s.p.opt.Master(s.account))
	}
	for _, l := range logins {
		ic, r, err := s.p.opt.Target.loginIMAP(ctx, s.who, l)
		if err == nil && r.Name == "OK" && ic.caps == nil {
			_, err = ic.command("U4", "CAPABILITY")
		}
		if err == nil && r.Name == "OK" {
			return &upstream{imapConn: ic, lease: lease, lost: make(chan struct{})}, nil
		}
		if ic != nil {
			_ = ic.Close()
		}
		if err != nil {
			return nil, err
		}
		if r.Code == "UNAVAILABLE" || r.Code == "SERVERBUG" || r.Code == "INUSE" || r.Name == "BYE" {
			return nil, fmt.Errorf("login: %s %s", r.Name, r.Rest)
		}
	}
	return nil, fmt.Errorf("%w: production does not take its login any more", imapsession.ErrNotAdoptable)
}

// restore opens the mailbox, and finds out how the client's view of it differs.
func (s *imapSession) restore(up *upstream) error {
	s.mu.Lock()
	condstore, box := s.track.CondStore, s.track.Box
	if s.track.Opening() {
		box = nil
	}
	s.numbers, s.news = imapsession.Numbers{}, news{}
	// Sent again without a second answer: only as a non-synchronising literal.
	asked := slices.ContainsFunc(s.track.Outstanding(), func(c *imapsession.Cmd) bool { return c.Continued && c.Verb != "IDLE" })
	s.mu.Unlock()
	if asked && !hasWord(up.caps, "LITERAL+") {
		return fmt.Errorf("%w: upstream has no LITERAL+", imapsession.ErrNotAdoptable)
	}
	if condstore && hasWord(up.caps, "CONDSTORE") && hasWord(up.caps, "ENABLE") {
		if _, err := up.command("UA1", "ENABLE CONDSTORE"); err != nil {
			return err
		}
	}
	if box == nil {
		return nil
	}
	st, uids, modseq, err := s.reopen(up, box)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	filled, err := box.Fill(uids)
	if err != nil {
		return err
	}
	var fresh []uint32
	s.numbers, fresh = imapsession.NewNumbers(box.View, uids)
	s.track.Grow(fresh)
	s.news = news{exists: len(fresh) > 0}
	if box.ModSeq > 0 && modseq > box.ModSeq || len(filled) > 0 {
		s.news.flags = s.p.opt.Tap.Changes(s.account, box.Name, box.ModSeq, filled)
	}
	box.UIDValidity, box.UIDNext = st.UIDValidity, st.UIDNext
	if modseq > 0 {
		box.ModSeq = modseq
	}
	return nil
}

// reopen selects the mailbox and returns its UIDs.
func (s *imapSession) reopen(up *upstream, box *imapsession.Box) (st BoxState, uids []uint32, modseq uint64, err error) {
	verb := "SELECT "
	if box.ReadOnly {
		verb = "EXAMINE "
	}
	sn := s.p.opt.Tap.Known(s.account, box.Name)
	r, err := up.ask("UA2", verb+imapwire.AString(box.Name), func(r imapwire.Response) {
		n, _ := strconv.ParseUint(string(r.Arg), 10, 32)
		switch {
		case r.Name == "EXISTS":
			st.Exists = int(r.Num)
		case r.Code == "UIDVALIDITY":
			st.UIDValidity = uint32(n)
		case r.Code == "UIDNEXT":
			st.UIDNext = uint32(n)
		}
	})
	if err != nil {
		return st, nil, 0, err
	}
	if r.Name != "OK" || s.shown(up, box.Name, st.UIDValidity) != box.Shown {
		return st, nil, 0, fmt.Errorf("%w: mailbox is another one: %s %s", imapsession.ErrNotAdoptable, r.Name, r.Rest)
	}
	if same(sn, up.lease.Side, st) {
		modseq = sn.ModSeq
	}
	if uids, ok := view(sn, up.lease.Side, st); ok {
		return st, uids, modseq, nil
	}
	uids, err = up.uids(st.Exists)
	return st, uids, modseq, err
}

// uids lists the open mailbox, which has count messages. It asks until the list is
// what the server numbers: a message that another session has expunged may be left
// out of a search before this session is told that it is gone (Cyrus does so), and
// all numbers behind it would be taken for others.
func (ic *imapConn) uids(count int) (uids []uint32, err error) {
	changed := false
	ask := func(text string) error {
		r, err := ic.ask("UA3", text, func(r imapwire.Response) {
			switch r.Name {
			case "EXISTS":
				count, changed = int(r.Num), true
			case "EXPUNGE":
				count, changed = count-1, true
			case "SEARCH":
				for _, f := range strings.Fields(string(r.Rest)) {
					n, _ := strconv.ParseUint(f, 10, 32)
					uids = append(uids, uint32(n))
				}
			}
		})
		if err == nil && r.Name != "OK" {
			err = fmt.Errorf("%s: %s", text, r.Name)
		}
		return err
	}
	for range 20 {
		uids, changed = nil, false
		if err := ask("UID SEARCH ALL"); err != nil {
			return nil, err
		}
		if !changed && len(uids) == count {
			slices.Sort(uids)
			return uids, nil
		}
		if err := ask("NOOP"); err != nil {
			return nil, err
		}
	}
	return nil, errors.New("the mailbox changes too fast")
}

// ask sends a command and reads its answers.
func (ic *imapConn) ask(tag, text string, on func(imapwire.Response)) (imapwire.Response, error) {
	if _, err := fmt.Fprintf(ic.Conn, "%s %s\r\n", tag, text); err != nil {
		return imapwire.Response{}, err
	}
	for {
		line, err := smtpwire.ReadLine(ic.br, maxAnswer)
		if err != nil {
			return imapwire.Response{}, err
		}
		r := imapwire.ParseResponse([]byte(line))
		if r.Tag == tag {
			return r, nil
		}
		if r.Name == "BYE" {
			return r, fmt.Errorf("BYE %s", r.Rest)
		}
		on(r)
	}
}

// finishUnit gives the client the rest of a literal that was cut.
func (s *imapSession) finishUnit(up *upstream) error {
	s.mu.Lock()
	u := s.unit
	s.mu.Unlock()
	if !u.open {
		return nil
	}
	if u.got < u.size {
		if err := s.restOfLiteral(up, &u); err != nil {
			return err
		}
	}
	if err := s.toClient([]byte(")\r\n")); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.unit.cmd; c != nil && !holdsAll(c, u.head) {
		c.Undelivered(u.uid)
	}
	s.unit = unit{}
	return nil
}

// holdsAll reports whether a FETCH response that ends after its literal holds
// all that was asked for.
func holdsAll(c *imapsession.Cmd, head []byte) bool {
	r := c.Args()
	r.Set()
	asked := strings.ToUpper(strings.Trim(string(r.Rest()), " ()"))
	got := strings.ToUpper(string(head))
	if i := strings.IndexByte(asked, '['); i >= 0 {
		j := strings.LastIndexByte(asked, ']')
		if j < i || strings.Contains(asked[i+1:j], "[") {
			return false // several sections
		}
		asked = asked[:strings.LastIndexByte(asked[:i], ' ')+1] + strings.TrimLeft(asked[j+1:], "<.0123456789>")
	}
	for _, w := range strings.Fields(asked) {
		if !strings.Contains(got, w+" ") {
			return false
		}
	}
	return true
}

// restOfLiteral fetches the section again, checks that it is the one of which
// the client has the beginning, and forwards the rest.
func (s *imapSession) restOfLiteral(up *upstream, u *unit) error {
	ask := section(u.line)
	if i := strings.IndexByte(ask, '<'); i >= 0 {
		ask = strings.TrimSuffix(ask, ">") + fmt.Sprintf(".%d>", u.size)
	}
	s.mu.Lock()
	// By number: then no EXPUNGE can come in between (RFC 9051 section 7.5.1).
	n, there := s.numbers.Server(uint32(slices.Index(s.track.Box.View, u.uid) + 1))
	s.mu.Unlock()
	if !there {
		return fmt.Errorf("%w: UID %d is gone in the middle of its transfer", imapsession.ErrNotAdoptable, u.uid)
	}
	if _, err := fmt.Fprintf(up.Conn, "UA4 FETCH %d (%s)\r\n", n, ask); err != nil {
		return err
	}
	found := false
	for {
		line, err := smtpwire.ReadLine(up.br, maxAnswer)
		if err != nil {
			return err
		}
		r := imapwire.ParseResponse([]byte(line))
		if r.Tag == "UA4" {
			break
		}
		if r.Name == "EXISTS" {
			s.mu.Lock()
			s.track.Grow(make([]uint32, max(0, int(s.numbers.Exists(r.Num))-len(s.track.Box.View))))
			s.news.exists = true
			s.mu.Unlock()
		}
		lit := imapwire.ParseMarker([]byte(line + "\r\n"))
		if r.Name != "FETCH" || !lit.Present {
			continue
		}
		if found || lit.Size != u.size {
			return fmt.Errorf("%w: section %s of UID %d has %d bytes, not %d", imapsession.ErrNotAdoptable, ask, u.uid, lit.Size, u.size)
		}
		found = true
		h := crc32.New(castagnoli)
		if _, err := io.CopyN(h, up.br, u.got); err != nil {
			return err
		}
		if h.Sum32() != u.sum {
			return fmt.Errorf("%w: section %s of UID %d differs", imapsession.ErrNotAdoptable, ask, u.uid)
		}
		n, err := io.CopyN(writerFunc(s.toClient), up.br, u.size-u.got)
		s.mu.Lock()
		// Should this upstream be lost as well: nothing is sent twice.
		s.unit.got = u.got + n
		s.unit.part = n < u.size-u.got
		s.mu.Unlock()
		if err != nil {
			return err
		}
	}
	if !found {
		return fmt.Errorf("%w: UID %d is gone in the middle of its transfer", imapsession.ErrNotAdoptable, u.uid)
	}
	return nil
}

type writerFunc func([]byte) error

func (f writerFunc) Write(p []byte) (int, error) {
	if err := f(p); err != nil {
		return 0, err
	}
	return len(p), nil
}
