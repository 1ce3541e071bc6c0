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
	"understudy/snoop/imapsession"
	"understudy/snoop/imapwire"
)

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
		up, err := s.adopt(ctx, lease)
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

// adopt makes an upstream and brings it to the session's state.
func (s *session) adopt(ctx context.Context, lease seam.Lease) (*link, error) {
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
	a := adoption{s, up}
	if err = s.outcomes(work, up.production()); err == nil {
		err = s.inTurn(work, lease.Side, a.restore)
	}
	if err == nil {
		err = a.finishUnit()
	}
	if err == nil {
		err = s.answerFound()
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

// adoption brings an upstream to the session's state.
type adoption struct {
	s  *session
	up *link
}

// restore opens the mailbox, and finds out how the client's view of it differs.
func (a adoption) restore() error {
	s, up := a.s, a.up
	s.mu.Lock()
	want := s.state.Resume()
	s.mu.Unlock()
	if want.NonSync && !up.Caps.Has("LITERAL+") {
		return fmt.Errorf("%w: upstream has no LITERAL+", imapsession.ErrNotAdoptable)
	}
	if want.CondStore && up.Caps.Has("CONDSTORE") && up.Caps.Has("ENABLE") {
		if _, err := up.Command("UA1", "ENABLE CONDSTORE"); err != nil {
			return err
		}
	}
	if !want.Open {
		return nil
	}
	st, uids, modseq, err := a.reopen(want)
	if err != nil {
		return err
	}
	s.mu.Lock()
	missed, err := s.state.Reopened(st, uids, modseq)
	s.mu.Unlock()
	if err != nil || !missed.Any {
		return err
	}
	flags := s.srv.opt.Replica.Changes(s.account, want.Mailbox, missed.Since, missed.Also)
	s.mu.Lock()
	s.state.Changed(flags)
	s.mu.Unlock()
	return nil
}

// reopen selects the mailbox and returns its UIDs, and the MODSEQ of the replica up to
// which it is known, 0 if that is not certain.
func (a adoption) reopen(want imapsession.Resume) (st imapsession.BoxState, uids []uint32, modseq uint64, err error) {
	s, up := a.s, a.up
	verb := "SELECT "
	if want.ReadOnly {
		verb = "EXAMINE "
	}
	sn := s.srv.opt.Replica.Known(s.account, want.Mailbox)
	r, err := up.Ask("UA2", verb+imapwire.AString(want.Mailbox), func(r imapwire.Response) {
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
	shown := st.UIDValidity
	if v := up.virtual(s, want.Mailbox); v != 0 {
		shown = v
	}
	if r.Name != "OK" || shown != want.Shown {
		return st, nil, 0, fmt.Errorf("%w: mailbox is another one: %s %s", imapsession.ErrNotAdoptable, r.Name, r.Rest)
	}
	if imapsession.Same(sn, up.production(), st) {
		modseq = sn.ModSeq
	}
	if uids, ok := imapsession.Proves(sn, up.production(), st); ok {
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
func (a adoption) finishUnit() error {
	s := a.s
	s.mu.Lock()
	u, number, there := s.state.Half()
	s.mu.Unlock()
	if !u.Open() {
		return nil
	}
	if u.Got < u.Size {
		if !there {
			return fmt.Errorf("%w: UID %d is gone in the middle of its transfer", imapsession.ErrNotAdoptable, u.UID)
		}
		if err := a.restOfLiteral(&u, number); err != nil {
			return err
		}
	}
	if err := s.toClient([]byte(")\r\n")); err != nil {
		return err
	}
	s.mu.Lock()
	s.state.EndUnit()
	s.mu.Unlock()
	return nil
}

// restOfLiteral fetches the section again, checks that it is the one of which
// the client has the beginning, and forwards the rest.
func (a adoption) restOfLiteral(u *imapsession.Unit, number uint32) error {
	s, up := a.s, a.up
	if _, err := fmt.Fprintf(up.Conn, "UA4 FETCH %d (%s)\r\n", number, u.Ask()); err != nil {
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
			s.state.Grew(r.Num)
			s.mu.Unlock()
		}
		lit := imapwire.ParseMarker([]byte(line + "\r\n"))
		if r.Name != "FETCH" || !lit.Present {
			continue
		}
		if found || lit.Size != u.Size {
			return fmt.Errorf("%w: section %s of UID %d has %d bytes, not %d",
				imapsession.ErrNotAdoptable, u.Ask(), u.UID, lit.Size, u.Size)
		}
		found = true
		if err := a.compare(u); err != nil {
			return err
		}
	}
	if !found {
		return fmt.Errorf("%w: UID %d is gone in the middle of its transfer", imapsession.ErrNotAdoptable, u.UID)
	}
	return nil
}

// compare reads a literal, whose beginning has to be what the client has of it, and
// forwards the rest.
func (a adoption) compare(u *imapsession.Unit) error {
	h := crc32.New(imapsession.Castagnoli())
	if _, err := io.CopyN(h, a.up.R, u.Got); err != nil {
		return err
	}
	if h.Sum32() != u.Sum {
		return fmt.Errorf("%w: section %s of UID %d differs", imapsession.ErrNotAdoptable, u.Ask(), u.UID)
	}
	n, err := io.CopyN(&a.s.client, a.up.R, u.Size-u.Got)
	a.s.mu.Lock()
	a.s.state.Unit.Completed(n)
	a.s.mu.Unlock()
	return err
}
