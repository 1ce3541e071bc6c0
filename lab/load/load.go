// Package load has scripted mail clients and the ledger of what they were told.
// Afterwards the ledger is compared with a store: what was answered OK or 250
// must be there once, what was not answered at most once. The demonstration and
// the lab use it.
package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"understudy/lab/check"
	"understudy/replica/imapc"
	"understudy/snoop/smtpwire"
)

// Known is what a client knows of an outcome.
type Known uint8

// The outcomes: nothing was answered, it was refused, it was confirmed.
const (
	Unknown Known = iota
	No
	Yes
)

// Entry is one message that a client made.
type Entry struct {
	ID      string // its Message-ID
	Account string
	Stored  Known // APPEND OK, or 250
	Deleted Known // No until tried
	Flagged Known // No until tried
	Again   bool  // sent by SMTP once more, after a time without an answer
}

// Ledger is what all clients were told.
type Ledger struct {
	mu      sync.Mutex
	entries []*Entry
	breaks  []string
	gap     time.Duration             // longest time that a client waited for a good answer
	gaps    map[*client]time.Duration // the longest of each since TakeGaps

	Answers atomic.Int64
	Broken  atomic.Int64 // sessions that ended without the client's wish
}

func (l *Ledger) add(e *Entry) *Entry {
	l.mu.Lock()
	l.entries = append(l.entries, e)
	l.mu.Unlock()
	return e
}

// LongestGap is the longest time that a client waited for a good answer.
func (l *Ledger) LongestGap() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.gap
}

// Breaks tells of the first sessions that broke, and why.
func (l *Ledger) Breaks() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.breaks
}

func (l *Ledger) broke(user string, err error) {
	l.Broken.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.breaks) < 10 {
		l.breaks = append(l.breaks, fmt.Sprintf("%s %s: %v", time.Now().Format("15:04:05.000"), user, err))
	}
}

func (l *Ledger) noteGap(c *client, d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gap = max(l.gap, d)
	if l.gaps == nil {
		l.gaps = map[*client]time.Duration{}
	}
	l.gaps[c] = max(l.gaps[c], d)
}

// TakeGaps returns the longest time that each client waited for a good answer
// since the last call.
func (l *Ledger) TakeGaps() []time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := slices.Collect(maps.Values(l.gaps))
	l.gaps = nil
	return out
}

// Options of Run.
type Options struct {
	IMAP, SMTP string // addresses
	Users      []string
	Password   func(user string) string
	Seed       uint64
	Tag        string               // makes the Message-IDs of this run its own
	Pause      time.Duration        // between two commands of a client
	Pace       func() time.Duration // if set, in place of Pause
	Folder     string               // moves go there; it must exist
	Deletes    bool
	PerUser    int // IMAP clients of each user; 0 is one
	// Dial connects; nil is the network's.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Book, if set, judges what IMAP clients are told.
	Book *check.Book
}

func (o Options) dial(ctx context.Context, addr string) (net.Conn, error) {
	if o.Dial != nil {
		return o.Dial(ctx, addr)
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
}

// Run works as several clients until ctx ends: for each user one by IMAP and one
// by SMTP. It returns when all have stopped between two commands.
func Run(ctx context.Context, o Options, l *Ledger) {
	var wg sync.WaitGroup
	for i, u := range o.Users {
		for j := range max(o.PerUser, 1) {
			rng := rand.New(rand.NewPCG(o.Seed, uint64(i+10_000*j)))
			c := &client{o: o, l: l, user: u, name: fmt.Sprint(j), rng: rng, last: time.Now()}
			wg.Go(func() { c.loop(ctx, c.imap) })
		}
		if o.SMTP != "" {
			m := &client{o: o, l: l, user: u, rng: rand.New(rand.NewPCG(o.Seed, uint64(i)+1000)), last: time.Now()}
			wg.Go(func() { m.loop(ctx, m.smtp) })
		}
	}
	wg.Wait()
}

type client struct {
	o    Options
	l    *Ledger
	user string
	name string
	rng  *rand.Rand
	n    int
	mine []*held // in INBOX
	last time.Time

	unsent *Entry // by SMTP, without an answer
	text   []byte
	given  bool // to its last byte
}

type held struct {
	e   *Entry
	uid uint32
}

// pause is the client's own; it does not wait for an answer.
func (c *client) pause() {
	d := c.o.Pause
	if c.o.Pace != nil {
		d = c.o.Pace()
	}
	time.Sleep(d)
	c.last = time.Now()
}

func (c *client) good() {
	now := time.Now()
	c.l.noteGap(c, now.Sub(c.last))
	c.last = now
	c.l.Answers.Add(1)
}

// loop runs sessions, and begins another when one breaks.
func (c *client) loop(ctx context.Context, session func(context.Context) error) {
	for ctx.Err() == nil {
		if err := session(ctx); err != nil && ctx.Err() == nil {
			c.l.broke(c.user, err)
			time.Sleep(20 * time.Millisecond)
		}
	}
}

func (c *client) next(kind string) string {
	c.n++
	return fmt.Sprintf("%s.%s%s.%d.%s", c.o.Tag, kind, c.name, c.n, c.user)
}

// Message makes a message with a Message-ID.
func Message(rng *rand.Rand, id, to string) []byte {
	b := fmt.Appendf(nil,
		"From: Sender <sender@other.test>\r\nTo: <%s>\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?= %s\r\nMessage-ID: "+
			"<%s>\r\nX-Owner: %s\r\nDate: %s\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; "+
			"charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n",
		to, id, id, to, time.Now().Format(time.RFC1123Z))
	for range 1 + rng.IntN(60) {
		b = fmt.Appendf(b, "Zeile %d mit Umlauten äöü und Zufall %016x\r\n", rng.IntN(1000), rng.Uint64())
	}
	return b
}

func (c *client) imap(ctx context.Context) (err error) {
	dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	conn, err := c.o.dial(dctx, c.o.IMAP)
	if err != nil {
		return err
	}
	if c.o.Book != nil {
		w := c.o.Book.Watch(conn, c.user)
		defer func() { w.Done(err == nil) }()
		conn = w
	}
	ic, err := imapc.New(dctx, conn, imapc.Options{Timeout: 30 * time.Second})
	if err != nil {
		return err
	}
	defer ic.Close()
	if err = ic.Login(c.user, "", c.o.Password(c.user)); err != nil {
		return err
	}
	if err = c.look(ic); err != nil {
		return err
	}
	for ctx.Err() == nil {
		if err = c.one(ic); err != nil {
			return err
		}
		c.good()
		c.pause()
	}
	ic.Logout()
	return nil
}

// look opens INBOX and finds the client's messages again by their Message-IDs.
func (c *client) look(ic *imapc.Conn) error {
	sel, err := ic.Select("INBOX", false)
	if err != nil || sel.Exists == 0 || len(c.mine) == 0 {
		return err
	}
	there := map[string]uint32{}
	err = ic.Fetch("1:*", "(UID BODY.PEEK[HEADER.FIELDS (MESSAGE-ID)])", func(m imapc.Message) error {
		there[idOf(m.Body)] = m.UID
		return nil
	})
	if err != nil {
		return err
	}
	var mine []*held
	for _, h := range c.mine {
		if uid, ok := there[h.e.ID]; ok {
			h.uid = uid
			mine = append(mine, h)
		}
	}
	c.mine = mine
	return nil
}

func (c *client) one(ic *imapc.Conn) error {
	k := c.rng.IntN(10)
	if len(c.mine) < 5 {
		k = 0
	}
	switch {
	case k < 4:
		return c.append(ic)
	case k < 7:
		return c.flag(ic)
	case k < 8 && c.o.Deletes:
		return c.delete(ic)
	case k < 9 && c.o.Folder != "":
		return c.move(ic)
	}
	return c.read(ic)
}

// read asks for something that changes nothing.
func (c *client) read(ic *imapc.Conn) error {
	cmd := "NOOP"
	switch k := c.rng.IntN(8); {
	case k == 0:
		cmd = "FETCH 1:* (UID FLAGS)"
	case k == 1:
		cmd = "UID SEARCH UNDELETED"
	case k == 2 && len(c.mine) > 0:
		_, h := c.pick()
		cmd = fmt.Sprintf("UID FETCH %d (FLAGS BODY.PEEK[])", h.uid)
	case k == 3:
		cmd = `LIST "" *`
	case k == 4:
		cmd = "STATUS INBOX (MESSAGES UIDNEXT)"
	}
	_, err := ic.Do(cmd, nil)
	var no *imapc.NoError
	if errors.As(err, &no) && strings.HasPrefix(cmd, "FETCH") {
		return nil // the mailbox is empty
	}
	return err
}

func (c *client) append(ic *imapc.Conn) error {
	e := c.l.add(&Entry{ID: c.next("append"), Account: c.user, Deleted: No, Flagged: No})
	_, uid, err := ic.Append(imapc.Appending{Mailbox: "INBOX", Flags: []string{`\Seen`},
		Body: Message(c.rng, e.ID, c.user)})
	if err != nil {
		return refused(err, &e.Stored)
	}
	e.Stored = Yes
	c.mine = append(c.mine, &held{e, uid})
	return nil
}

// refused keeps a refusal apart from an unknown outcome.
func refused(err error, k *Known) error {
	var no *imapc.NoError
	if errors.As(err, &no) {
		*k = No
	}
	return err
}

func (c *client) pick() (int, *held) {
	i := c.rng.IntN(len(c.mine))
	return i, c.mine[i]
}

func (c *client) flag(ic *imapc.Conn) error {
	_, h := c.pick()
	if h.e.Flagged != Yes {
		h.e.Flagged = Unknown
	}
	if _, err := ic.Do(fmt.Sprintf(`UID STORE %d +FLAGS (\Flagged $Label1)`, h.uid), nil); err != nil {
		return err
	}
	h.e.Flagged = Yes
	return nil
}

func (c *client) move(ic *imapc.Conn) error {
	i, h := c.pick()
	// Found again by look if the move was not done.
	if _, err := ic.Do(fmt.Sprintf(`UID MOVE %d %s`, h.uid, ic.Name(c.o.Folder)), nil); err != nil {
		return err
	}
	c.mine = append(c.mine[:i], c.mine[i+1:]...)
	return nil
}

func (c *client) delete(ic *imapc.Conn) error {
	i, h := c.pick()
	h.e.Deleted = Unknown
	if _, err := ic.Do(fmt.Sprintf(`UID STORE %d +FLAGS.SILENT (\Deleted)`, h.uid), nil); err != nil {
		return err
	}
	if _, err := ic.Do(fmt.Sprintf(`UID EXPUNGE %d`, h.uid), nil); err != nil {
		return err
	}
	h.e.Deleted = Yes
	c.mine = append(c.mine[:i], c.mine[i+1:]...)
	return nil
}

// smtp sends messages to the user, several in a session. A message without an
// answer is sent again, as a mail server would.
func (c *client) smtp(ctx context.Context) error {
	dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	conn, err := c.o.dial(dctx, c.o.SMTP)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	br, w := bufio.NewReader(conn), bufio.NewWriter(conn)
	step := func(line string) (smtpwire.Reply, error) {
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
		if line != "" {
			if _, err := w.WriteString(line + "\r\n"); err != nil {
				return smtpwire.Reply{}, err
			}
			if err := w.Flush(); err != nil {
				return smtpwire.Reply{}, err
			}
		}
		return smtpwire.ReadReply(br)
	}
	for _, line := range []string{"", "EHLO sender.other.test"} {
		if _, err := step(line); err != nil {
			return err
		}
	}
	for ctx.Err() == nil {
		if c.unsent == nil {
			c.unsent = c.l.add(&Entry{ID: c.next("smtp"), Account: c.user, Deleted: No, Flagged: No})
			c.text = Message(c.rng, c.unsent.ID, c.user)
		}
		e := c.unsent
		e.Again = e.Again || c.given
		c.given = false
		for _, line := range []string{"MAIL FROM:<sender@other.test>", "RCPT TO:<" + c.user + ">", "DATA"} {
			r, err := step(line)
			if err != nil || r.Code >= 400 {
				return errors.Join(err, fmt.Errorf("%s: %s", line, r))
			}
		}
		d := &smtpwire.DotWriter{W: w}
		if _, err := d.Write(c.text); err != nil {
			return err
		}
		c.given = true
		if err := d.Close(); err != nil {
			return err
		}
		r, err := step("")
		if err != nil {
			return err
		}
		if r.Code >= 400 {
			return fmt.Errorf("end of data: %s", r)
		}
		e.Stored, c.unsent, c.given = Yes, nil, false
		c.good()
		c.pause()
	}
	_, _ = step("QUIT")
	return nil
}

// Found is how a store holds a message.
type Found struct {
	Count   int
	Flagged bool
	Where   []string // mailbox and UID
}

func idOf(header []byte) string {
	r := string(header)
	for i := 0; i < len(r); i++ {
		if r[i] == '<' {
			for j := i; j < len(r); j++ {
				if r[j] == '>' {
					return r[i+1 : j]
				}
			}
		}
	}
	return ""
}

// Look reads which messages an account holds, by Message-ID.
func Look(ic *imapc.Conn) (map[string]Found, error) {
	list, err := ic.List()
	if err != nil {
		return nil, err
	}
	out := map[string]Found{}
	for _, b := range list {
		if b.NoSelect() {
			continue
		}
		sel, err := ic.Select(b.Name, true)
		if err != nil {
			return nil, err
		}
		if sel.Exists == 0 {
			continue
		}
		err = ic.Fetch("1:*", "(UID FLAGS BODY.PEEK[HEADER.FIELDS (MESSAGE-ID)])", func(m imapc.Message) error {
			id := idOf(m.Body)
			f := out[id]
			f.Count++
			f.Where = append(f.Where, fmt.Sprintf("%s %d", b.Name, m.UID))
			for _, fl := range m.Flags {
				f.Flagged = f.Flagged || fl == `\Flagged`
			}
			out[id] = f
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Verdict is the comparison of a ledger with stores.
type Verdict struct {
	Confirmed, Unanswered int
	Lost, Doubled, Undone []string
	Where                 []string // the doubled ones are
	// Repeated are there twice, and their sender sent them twice: it was not
	// answered the first time.
	Repeated []string
}

// OK reports whether nothing is wrong.
func (v Verdict) OK() bool { return len(v.Lost)+len(v.Doubled)+len(v.Undone) == 0 }

// String is one line.
func (v Verdict) String() string {
	return fmt.Sprintf("%d confirmed, %d unanswered; lost %d %v, doubled %d %v, undone %d %v", v.Confirmed,
		v.Unanswered,
		len(v.Lost), head(v.Lost), len(v.Doubled), head(v.Doubled), len(v.Undone), head(v.Undone))
}

func head(l []string) []string { return l[:min(3, len(l))] }

// Judge compares; stores is what Look found, by account.
func (l *Ledger) Judge(stores map[string]map[string]Found) Verdict {
	var v Verdict
	for _, e := range l.entries {
		f := stores[e.Account][e.ID]
		switch e.Stored {
		case Yes:
			v.Confirmed++
		case Unknown:
			v.Unanswered++
		}
		switch {
		case f.Count == 2 && e.Again:
			v.Repeated = append(v.Repeated, e.ID)
		case f.Count > 1:
			v.Doubled = append(v.Doubled, e.ID)
			v.Where = append(v.Where, fmt.Sprintf("%s: %s", e.ID, strings.Join(f.Where, ", ")))
		case e.Stored == Yes && e.Deleted == No && f.Count == 0:
			v.Lost = append(v.Lost, e.ID)
		case e.Deleted == Yes && f.Count > 0:
			v.Undone = append(v.Undone, e.ID+" (deleted)")
		case f.Count == 1 && e.Flagged == Yes && !f.Flagged:
			v.Undone = append(v.Undone, e.ID+" (flag)")
		}
	}
	return v
}
