package imap

import (
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

	"understudy/proxy/seam"
	"understudy/proxy/upstream"
	"understudy/replica/row"
	"understudy/snoop/imapsession"
	"understudy/snoop/imapwire"
)

// news is what the client has still to be told of its mailbox.
type news struct {
	exists bool
	flags  []row.FlagsOf
}

// standby makes the standby the upstream.
func (s *session) standby(lease seam.Lease) *link {
	caps := s.srv.banner.Show().Caps
	near, far := net.Pipe()
	up := &link{IMAP: upstream.NewIMAP(near, caps), lease: lease,
		lost: make(chan struct{}), ended: make(chan struct{})}
	s.srv.far.Go(func() {
		defer close(up.ended)
		err := s.srv.opt.Standby.ServeIMAP(s.life, far, s.account, caps)
		_ = far.Close()
		s.srv.opt.Log.Debug("standby session", "account", s.account, "err", err)
	})
	return up
}

// next waits for whoever answers now, and brings it to the session's state.
func (s *session) next(ctx context.Context) *link {
	ctx, cancel := context.WithTimeout(ctx, parkLimit)
	defer cancel()
	for {
		lease, err := s.srv.opt.Gate.Enter(ctx, s.login.User)
		if err != nil {
			return nil
		}
		up, err := s.attach(ctx, lease)
		if err == nil {
			return up
		}
		lease.Release()
		s.srv.opt.Log.Debug("session is not adopted yet", "account", s.account, "err", err)
		if errors.Is(err, imapsession.ErrNotAdoptable) || errors.As(err, &errClient{}) {
			s.giveUp(err)
			return nil
		}
		if lease.Side == seam.Production && ctx.Err() == nil {
			s.srv.opt.Gate.Trouble(err)
		}
		select {
		case <-time.After(seam.RetryPause):
		case <-ctx.Done():
			return nil
		}
	}
}

// attach makes an upstream and brings it to the session's state.
func (s *session) attach(ctx context.Context, lease seam.Lease) (*link, error) {
	work, cancel := upstream.LeaseContext(ctx, lease)
	defer cancel()
	var up *link
	var err error
	if lease.Side == seam.Standby {
		up = s.standby(lease)
	} else if up, err = s.relogin(work, lease); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(work, func() { _ = up.Close() })
	_ = up.SetDeadline(time.Now().Add(upstream.AnswerTimeout))
	if lease.Side == seam.Production {
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
		err = seam.ErrLost
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
func (s *session) outlast(ctx context.Context) {
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
func (s *session) inTurn(ctx context.Context, side seam.Side, f func() error) error {
	if side == seam.Production {
		return f()
	}
	select {
	case s.srv.turns <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.srv.turns }()
	return f()
}

// relogin logs in to production as the client did, or as its master.
func (s *session) relogin(ctx context.Context, lease seam.Lease) (*link, error) {
	select {
	case s.srv.again <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-s.srv.again }()
	logins := []seam.Login{s.login}
	if s.srv.opt.Master != nil {
		logins = append(logins, s.srv.opt.Master(s.account))
	}
	for _, l := range logins {
		ic, r, err := s.srv.opt.Target.LoginIMAP(ctx, s.who, l)
		if err == nil && r.Name == "OK" && ic.Caps == nil {
			_, err = ic.Command("U4", "CAPABILITY")
		}
		if err == nil && r.Name == "OK" {
			return &link{IMAP: ic, lease: lease, lost: make(chan struct{})}, nil
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
func (s *session) restore(up *link) error {
	s.mu.Lock()
	condstore, box := s.track.CondStore, s.track.Box
	if s.track.Opening() {
		box = nil
	}
	s.numbers, s.news = imapsession.Numbers{}, news{}
	// Sent again without a second answer: only as a non-synchronising literal.
	asked := slices.ContainsFunc(s.track.Outstanding(), func(c *imapsession.Cmd) bool { return c.Continued && c.Verb != "IDLE" })
	s.mu.Unlock()
	if asked && !up.Caps.Has("LITERAL+") {
		return fmt.Errorf("%w: upstream has no LITERAL+", imapsession.ErrNotAdoptable)
	}
	if condstore && up.Caps.Has("CONDSTORE") && up.Caps.Has("ENABLE") {
		if _, err := up.Command("UA1", "ENABLE CONDSTORE"); err != nil {
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
		s.news.flags = s.srv.opt.Replica.Changes(s.account, box.Name, box.ModSeq, filled)
	}
	box.UIDValidity, box.UIDNext = st.UIDValidity, st.UIDNext
	if modseq > 0 {
		box.ModSeq = modseq
	}
	return nil
}

// reopen selects the mailbox and returns its UIDs.
func (s *session) reopen(up *link, box *imapsession.Box) (st boxState, uids []uint32, modseq uint64, err error) {
	verb := "SELECT "
	if box.ReadOnly {
		verb = "EXAMINE "
	}
	sn := s.srv.opt.Replica.Known(s.account, box.Name)
	r, err := up.Ask("UA2", verb+imapwire.AString(box.Name), func(r imapwire.Response) {
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
	uids, err = listUIDs(up.IMAP, st.Exists)
	return st, uids, modseq, err
}

// listUIDs lists the open mailbox, which has count messages. It asks until the list is
// what the server numbers: a message that another session has expunged may be left
// out of a search before this session is told that it is gone (Cyrus does so), and
// all numbers behind it would be taken for others.
func listUIDs(ic *upstream.IMAP, count int) (uids []uint32, err error) {
	changed := false
	ask := func(text string) error {
		r, err := ic.Ask("UA3", text, func(r imapwire.Response) {
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

// finishUnit gives the client the rest of a literal that was cut.
func (s *session) finishUnit(up *link) error {
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
func (s *session) restOfLiteral(up *link, u *unit) error {
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
		line, err := up.ReadLine()
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
		if _, err := io.CopyN(h, up.R, u.got); err != nil {
			return err
		}
		if h.Sum32() != u.sum {
			return fmt.Errorf("%w: section %s of UID %d differs", imapsession.ErrNotAdoptable, ask, u.uid)
		}
		n, err := io.CopyN(writerFunc(s.toClient), up.R, u.size-u.got)
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
