package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"

	"understudy/cmd/box"
	"understudy/console/config"
	"understudy/failover"
	"understudy/failover/imapd"
	"understudy/failover/smtpd"
	"understudy/lab/check"
	"understudy/lab/load"
	"understudy/proxy"
	"understudy/proxy/imap"
	"understudy/proxy/seam"
	"understudy/proxy/smtp"
	"understudy/replica"
	"understudy/replica/imapc"
	"understudy/replica/row"
	"understudy/snoop/smtpwire"
)

// world is a site in one process under virtual time: a mail server that can be
// killed and frozen, the real Understudy before it, and clients. Connections are
// pipes.
type world struct {
	t     *testing.T
	rng   *rand.Rand
	dir   string
	users []string
	log   *slog.Logger
	text  *strings.Builder

	mu     sync.Mutex
	prod   *simServer    // nil: dead
	box    *simBox       // nil: dead
	frozen chan struct{} // closed when production goes on
	silent time.Duration // the hold of a silent production; 0 is two seconds
	plan   []string
	lively time.Time // until then clients are busy whatever the phase
	brief  bool      // one fault, few clients
	terse  bool      // production does not tell where a MOVE led to, nor why it refuses
}

// pace is the pause of a client between two commands: short around a fault and
// while anything moves, long while nothing happens.
func (w *world) pace() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.box != nil && !time.Now().Before(w.lively) {
		switch w.box.app.State().Phase {
		case failover.Protecting, failover.Serving:
			return 300 * time.Millisecond
		}
	}
	return 20 * time.Millisecond
}

// liven makes clients busy for some time.
func (w *world) liven(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if end := time.Now().Add(d); end.After(w.lively) {
		w.lively = end
	}
}

const simMaster, simMasterPassword = "master", "master-secret"

func simPassword(user string) string { return "pw-" + user }

// simServer is production.
type simServer struct {
	front  *proxy.Proxy
	store  *replica.Replica
	cancel context.CancelFunc
	ctx    context.Context
	g      errgroup.Group
	mu     sync.Mutex
	conns  []net.Conn
	gates  []*gated
}

// simBox is the Understudy.
type simBox struct {
	app    *box.Box
	ctx    context.Context
	cancel context.CancelFunc
	g      errgroup.Group
}

func newWorld(t *testing.T, seed uint64) *world {
	base := ""
	if fi, err := os.Stat("/dev/shm"); err == nil && fi.IsDir() {
		base = "/dev/shm"
	}
	dir, err := os.MkdirTemp(base, "understudy-sim-")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 1)), dir: dir, users: []string{"anna@sim.test", "bert@sim.test"}, brief: os.Getenv("UNDERSTUDY_BRIEF") != "", terse: seed%4 == 0, text: &strings.Builder{}}
	if w.brief {
		w.users = w.users[:1]
	}
	w.log = slog.New(slog.NewTextHandler(&lockedWriter{w: w.text}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	return w
}

type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// start starts production on what it has on disk.
func (w *world) start() {
	store, err := replica.Open(replica.Options{Dir: filepath.Join(w.dir, "prod"), Primary: true, FoldCase: true})
	if err != nil {
		panic(err)
	}
	d := demoSite{Domain: "sim.test", Users: map[string]string{}, Master: simMaster, MasterPassword: simMasterPassword}
	s := &simServer{store: store}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	for _, u := range w.users {
		d.Users[u] = simPassword(u)
		if err := d.ensure(s.ctx, store, u); err != nil {
			panic(err)
		}
	}
	quiet := slog.New(slog.DiscardHandler)
	p := &primary{d: d, store: store}
	p.imap = imapd.New(imapd.Options{Store: store, Log: quiet})
	p.smtp = smtpd.New(smtpd.Options{Store: store, NewSpool: func() row.Spool { return store.Blobs.Spool() }, Hostname: "mail.sim.test", MaxSize: 50 << 20, Log: quiet,
		Local: func(addr string) bool { return strings.HasSuffix(addr, "@sim.test") },
		Check: func(user, pw string) (string, error) {
			return p.Authenticate(s.ctx, seam.Login{User: user, AuthUser: user, Password: pw})
		}})
	p.smtp.Replay(s.ctx)
	if s.front, err = proxy.New(proxy.Options{Gate: p, NewSpool: p.NewSpool, PlainOK: true, Log: quiet,
		IMAP: imap.Options{Standby: p, Caps: imapd.Caps()}, SMTP: smtp.Options{Standby: p}}); err != nil {
		panic(err)
	}
	s.front.Greet(seam.Greeting{Text: "Simulated server ready.", Auth: []string{"AUTH=PLAIN", "AUTH=LOGIN"}})
	w.mu.Lock()
	w.prod = s
	w.mu.Unlock()
}

// kill ends production: connections break at any byte; what a command had begun
// is finished without an answer.
func (w *world) kill() {
	w.mu.Lock()
	s := w.prod
	w.prod = nil
	w.mu.Unlock()
	if s == nil {
		return
	}
	s.cut(1)
	s.cancel()
	_ = s.g.Wait()
	if err := s.store.Close(); err != nil {
		w.t.Error(err)
	}
}

// cut breaks every n-th connection.
func (s *simServer) cut(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, c := range s.conns {
		if i%n == 0 {
			_ = c.Close()
		}
	}
}

// cutLate breaks all connections to production, which after a time goes on with
// what it had received by them.
func (w *world) cutLate(after time.Duration) {
	stall := make(chan struct{})
	w.mu.Lock()
	s := w.prod
	s.mu.Lock()
	for _, g := range s.gates {
		g.stall = stall
	}
	s.mu.Unlock()
	w.mu.Unlock()
	time.Sleep(50 * time.Millisecond)
	s.cut(1)
	time.Sleep(after)
	close(stall)
}

// moveCode is where a MOVE led to, and why a mailbox is refused. (Copy-back needs
// COPYUID of its own COPYs.)
var moveCode = regexp.MustCompile(`(\* OK |NO )\[(COPYUID|ALREADYEXISTS|NONEXISTENT)[^]\r\n]*\] `)

// gated is production's end of a connection: slow, in pieces, and stopped while
// production is frozen. What it writes waits in a queue, as in a socket.
type gated struct {
	net.Conn
	w     *world
	queue chan []byte
	end   chan struct{} // closed when nothing more is written
	sent  chan struct{}
	once  sync.Once
	stall chan struct{} // of this one alone, as frozen is of all; the world's lock guards it
}

func newGated(c net.Conn, w *world) *gated {
	g := &gated{Conn: c, w: w, queue: make(chan []byte, 1<<12), end: make(chan struct{}), sent: make(chan struct{})}
	go g.deliver()
	return g
}

func (g *gated) deliver() {
	defer close(g.sent)
	for {
		var p []byte
		select {
		case p = <-g.queue:
		default:
			select {
			case p = <-g.queue:
			case <-g.end:
				return
			}
		}
		g.pass()
		for len(p) > 0 {
			n, err := g.Conn.Write(p[:min(len(p), 7+len(p)/3)])
			if err != nil {
				_ = g.Conn.Close()
				return
			}
			p = p[n:]
		}
	}
}

func (g *gated) pass() {
	g.w.mu.Lock()
	frozen, stall, pause := g.w.frozen, g.stall, time.Duration(g.w.rng.IntN(2000))*time.Microsecond
	g.w.mu.Unlock()
	time.Sleep(pause)
	for _, c := range []chan struct{}{frozen, stall} {
		if c != nil {
			<-c
		}
	}
}

func (g *gated) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	g.pass()
	return n, err
}

// Write implements net.Conn; the server writes from one goroutine at a time, and
// whole lines.
func (g *gated) Write(p []byte) (int, error) {
	said := append([]byte(nil), p...)
	if g.w.terse {
		said = moveCode.ReplaceAll(said, []byte("$1"))
	}
	select {
	case g.queue <- said:
		return len(p), nil
	case <-g.sent:
		return 0, net.ErrClosed
	}
}

func (g *gated) Close() error {
	g.once.Do(func() { close(g.end) })
	<-g.sent
	return g.Conn.Close()
}

var errRefused = errors.New("connection refused")

// toProduction connects to production; addr is host:port.
func (w *world) toProduction(_ context.Context, _ seam.Client, addr string) (net.Conn, error) {
	w.mu.Lock()
	s := w.prod
	w.mu.Unlock()
	if s == nil {
		return nil, errRefused
	}
	kind := proxy.IMAP
	if strings.HasSuffix(addr, ":25") {
		kind = proxy.SMTP
	}
	near, far := net.Pipe()
	g := newGated(far, w)
	s.mu.Lock()
	s.conns, s.gates = append(s.conns, far), append(s.gates, g)
	s.mu.Unlock()
	s.g.Go(func() error {
		s.front.ServeConn(s.ctx, g, kind)
		return nil
	})
	return near, nil
}

// toBox connects a client to the Understudy.
func (w *world) toBox(_ context.Context, addr string) (net.Conn, error) {
	w.mu.Lock()
	b := w.box
	w.mu.Unlock()
	if b == nil {
		return nil, errRefused
	}
	kind := proxy.IMAP
	if addr == "smtp" {
		kind = proxy.SMTP
	}
	near, far := net.Pipe()
	b.g.Go(func() error {
		b.app.Proxy().ServeConn(b.ctx, far, kind)
		return nil
	})
	return near, nil
}

// startBox starts the Understudy on what it has on disk.
func (w *world) startBox() {
	c := config.Default()
	c.Data, c.Hostname = filepath.Join(w.dir, "box"), "mail.sim.test"
	c.Production.IMAP, c.Production.SMTP, c.Production.Timeout = "prod:143", "prod:25", config.Duration(3*time.Second)
	c.Master = config.Master{User: simMaster, Password: simMasterPassword}
	c.Accounts.List, c.Accounts.Domains = w.users, []string{"sim.test"}
	c.Listen.PlainLogin = true
	c.Standby.LearnLogins = false
	c.Mirror.Sweep, c.Mirror.Idle = config.Duration(2*time.Second), 2
	s := config.Duration(time.Second)
	c.Failover = config.Failover{Mode: "automatic", Hold: s, HoldSilent: 2 * s, Probe: s / 4, ProbeTimeout: s, ReturnProbes: 2, AutoHandback: true, OwedAfter: 20 * s}
	if w.silent > 0 {
		c.Failover.HoldSilent = config.Duration(w.silent)
	}
	a, err := box.New(box.Options{Config: c, Log: w.log, Dial: w.toProduction, NoListeners: true,
		Spool: func(sp row.Spool) row.Spool { return slowSpool{sp, w} }})
	if err != nil {
		panic(err)
	}
	b := &simBox{app: a}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.g.Go(func() error { return a.Run(b.ctx) })
	w.mu.Lock()
	w.box = b
	w.mu.Unlock()
}

// slowSpool is a message on a disk that takes its time.
type slowSpool struct {
	row.Spool
	w *world
}

func (s slowSpool) Commit() (row.Ref, error) {
	time.Sleep(s.w.some(30 * time.Millisecond))
	return s.Spool.Commit()
}

func (w *world) stopBox() {
	w.mu.Lock()
	b := w.box
	w.box = nil
	w.mu.Unlock()
	b.cancel()
	_ = b.g.Wait()
	if err := b.app.Close(); err != nil {
		w.t.Error(err)
	}
}

func (w *world) state() failover.State {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.box.app.State()
}

func (w *world) phase() failover.Phase { return w.state().Phase }

func (w *world) tell(h failover.Happened) {
	w.mu.Lock()
	b := w.box
	w.mu.Unlock()
	b.app.Tell(h)
}

// wait waits for a phase, for a minute of virtual time. What was handed back in
// part is handed back whole on the way.
func (w *world) wait(phases ...failover.Phase) bool {
	for range 1200 {
		st := w.state()
		if slices.Contains(phases, st.Phase) {
			return true
		}
		if st.Phase == failover.Returning && st.Mixed {
			w.tell(failover.Happened{Event: failover.Handback})
		}
		time.Sleep(50 * time.Millisecond)
	}
	w.t.Errorf("still %s, not %s", w.phase(), phases)
	stacks := make([]byte, 4<<20)
	w.log.Error("stuck", "stacks", string(stacks[:runtime.Stack(stacks, true)]))
	return false
}

func (w *world) freeze(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case on && w.frozen == nil:
		w.frozen = make(chan struct{})
	case !on && w.frozen != nil:
		close(w.frozen)
		w.frozen = nil
	}
}

func (w *world) some(limit time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Duration(w.rng.Int64N(int64(limit)))
}

// faults does what the seed has in store. It reports whether the Understudy
// itself was ended, when sessions may break.
func (w *world) faults() (boxDied bool) {
	n := 1
	if !w.brief {
		n += int(w.some(3))
	}
	for range n {
		time.Sleep(w.some(2 * time.Second))
		w.liven(600 * time.Millisecond)
		time.Sleep(200 * time.Millisecond)
		all := []string{"kill", "kill", "restart", "freeze", "blip", "cut", "planned", "box", "late", "some", "twice"}
		kind := int(w.some(time.Duration(len(all))))
		for only := os.Getenv("UNDERSTUDY_FAULT"); slices.Contains(all, only) && all[kind] != only; {
			kind = int(w.some(time.Duration(len(all))))
		}
		w.plan = append(w.plan, all[kind])
		switch kind {
		case 0, 1: // long dead; the second time the box, too
			w.kill()
			time.Sleep(w.some(6 * time.Second))
			if kind == 1 {
				boxDied = true
				w.stopBox()
				time.Sleep(w.some(time.Second))
				w.startBox()
				time.Sleep(w.some(4 * time.Second))
			}
			w.start()
		case 2: // inside the hold
			w.kill()
			time.Sleep(w.some(500 * time.Millisecond))
			w.start()
		case 3:
			w.freeze(true)
			time.Sleep(3*time.Second + w.some(6*time.Second))
			w.freeze(false)
		case 4:
			w.freeze(true)
			time.Sleep(w.some(time.Second))
			w.freeze(false)
		case 5:
			w.mu.Lock()
			s := w.prod
			w.mu.Unlock()
			s.cut(1 + int(w.some(3)))
		case 6:
			w.wait(failover.Protecting)
			w.tell(failover.Happened{Event: failover.Takeover})
			time.Sleep(w.some(5 * time.Second))
		case 7:
			boxDied = true
			w.stopBox()
			time.Sleep(w.some(2 * time.Second))
			w.startBox()
		case 8:
			w.cutLate(w.some(150 * time.Millisecond))
		case 9: // one account first
			w.wait(failover.Protecting)
			w.tell(failover.Happened{Event: failover.Takeover})
			w.wait(failover.Serving, failover.Returning)
			w.tell(failover.Happened{Event: failover.Handback, Accounts: w.users[:1]})
			w.liven(4 * time.Second)
			time.Sleep(w.some(4 * time.Second))
		case 10: // again as soon as all is handed back
			for range 2 {
				w.wait(failover.Protecting)
				w.tell(failover.Happened{Event: failover.Takeover})
				w.liven(4 * time.Second)
				w.wait(failover.Serving, failover.Returning)
			}
		}
		w.liven(300 * time.Millisecond)
	}
	return boxDied
}

func (w *world) dial(user string, to func(context.Context, string) (net.Conn, error), addr string) (*imapc.Conn, error) {
	conn, err := to(context.Background(), addr)
	if err != nil {
		return nil, err
	}
	c, err := imapc.New(context.Background(), conn, imapc.Options{})
	if err != nil {
		return nil, err
	}
	return c, c.Login(user, "", simPassword(user))
}

func (w *world) direct(ctx context.Context, addr string) (net.Conn, error) {
	return w.toProduction(ctx, seam.Client{}, addr)
}

// look reads an account in both ways.
func (w *world) look(user string) (found map[string]load.Found, differ string) {
	var all [2]map[string]load.Found
	for i, to := range []func(context.Context, string) (net.Conn, error){w.direct, w.toBox} {
		c, err := w.dial(user, to, "imap")
		if err == nil {
			all[i], err = load.Look(c)
			c.Close()
		}
		if err != nil {
			return nil, err.Error()
		}
	}
	if fmt.Sprint(all[0]) != fmt.Sprint(all[1]) {
		differ = fmt.Sprintf("%v\n%v", all[0], all[1])
	}
	return all[0], differ
}

// simulate runs one seed.
func simulate(t *testing.T, seed uint64, sabotage func(net.Conn) net.Conn) (faults []string) {
	w := newWorld(t, seed)
	defer func() { _ = os.RemoveAll(w.dir) }()
	w.start()
	for _, u := range w.users {
		c, err := w.dial(u, w.direct, "imap")
		if err == nil {
			_, err = c.Do("CREATE Filed", nil)
			c.Close()
		}
		if err != nil {
			t.Error(err)
		}
	}
	w.startBox()
	w.wait(failover.Protecting)
	book, l := check.NewBook(), &load.Ledger{}
	ctx, stop := context.WithCancel(context.Background())
	var clients sync.WaitGroup
	dial := func(ctx context.Context, addr string) (net.Conn, error) {
		c, err := w.toBox(ctx, addr)
		if err == nil && sabotage != nil && addr == "imap" {
			c = sabotage(c)
		}
		return c, err
	}
	perUser := 2
	if w.brief {
		perUser = 1
	}
	clients.Go(func() {
		load.Run(ctx, load.Options{IMAP: "imap", SMTP: "smtp", Users: w.users, Password: simPassword, Seed: seed, Tag: "sim", Pace: w.pace,
			Folder: "Filed", Deletes: true, PerUser: perUser, Dial: dial, Book: book}, l)
	})
	w.liven(600 * time.Millisecond)
	time.Sleep(300 * time.Millisecond) // all have logged in
	boxDied := w.faults()
	time.Sleep(time.Second)
	if !w.wait(failover.Protecting) {
		faults = append(faults, "production does not come back to answer")
	}
	time.Sleep(time.Second)
	stop()
	clients.Wait()
	for range 1200 { // what is owed is given again
		if w.box.app.Store().HeldCount() == 0 {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	stores := map[string]map[string]load.Found{}
	for _, u := range w.users {
		if err := w.box.app.Sync(context.Background(), []string{u}); err != nil {
			faults = append(faults, err.Error())
		}
		found, differ := w.look(u)
		if stores[u] = found; differ != "" {
			faults = append(faults, "through the box "+u+" differs: "+differ)
		}
	}
	v := l.Judge(stores)
	if !v.OK() || v.Confirmed == 0 || len(v.Repeated) > 0 {
		faults = append(faults, v.String(), fmt.Sprint("repeated ", v.Repeated, v.Where))
	}
	if !boxDied && (l.Broken.Load() > 0 || v.Unanswered > 0) {
		faults = append(faults, fmt.Sprintf("%d sessions broke, %d commands were not answered: %v", l.Broken.Load(), v.Unanswered, l.Breaks()))
	}
	faults = append(faults, book.Faults()...)
	w.stopBox()
	w.kill()
	if len(faults) > 0 {
		if dir := os.Getenv("UNDERSTUDY_LOGS"); dir != "" {
			_ = os.WriteFile(filepath.Join(dir, fmt.Sprintf("sim-%d.history", seed)), book.History(), 0o600)
			_ = os.WriteFile(filepath.Join(dir, fmt.Sprintf("sim-%d.log", seed)), []byte(w.text.String()), 0o600)
		}
		faults = append(faults, fmt.Sprintf("seed %d, plan %v", seed, w.plan))
	}
	return faults
}

func number(name string, otherwise uint64) uint64 {
	if n, err := strconv.ParseUint(os.Getenv(name), 10, 64); err == nil {
		return n
	}
	return otherwise
}

// B2, B5, M13, M16, T28: simulated sites under faults of all sorts, one or
// several, the Understudy's own end among them. UNDERSTUDY_SEEDS says how many,
// UNDERSTUDY_SEED which one first; with UNDERSTUDY_BRIEF each is one fault under the
// hands of two clients, and takes a sixth of the time.
func TestB5_SimulatedFaults(t *testing.T) {
	n, first := number("UNDERSTUDY_SEEDS", 5), number("UNDERSTUDY_SEED", uint64(time.Now().UnixNano())%1e9)
	began := time.Now()
	t.Logf("seeds %d to %d", first, first+n-1)
	for seed := first; seed < first+n; seed++ {
		synctest.Test(t, func(t *testing.T) {
			for _, f := range simulate(t, seed, nil) {
				t.Error(f)
			}
		})
		if t.Failed() {
			break
		}
	}
	t.Logf("%.0f seeds a minute", float64(n)/time.Since(began).Minutes())
}

// Promise 1: a message that production took and did not answer for, for minutes,
// is answered 250 at the takeover and is in the mailbox while the standby serves.
func TestB5_LongSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer func() { _ = os.RemoveAll(w.dir) }()
		w.silent = 3 * time.Minute
		w.start()
		w.startBox()
		w.wait(failover.Protecting)
		conn, err := w.toBox(context.Background(), "smtp")
		if err != nil {
			t.Fatal(err)
		}
		br := bufio.NewReader(conn)
		say := func(text string, want int) {
			if text != "" {
				_, _ = io.WriteString(conn, text)
			}
			if r, err := smtpwire.ReadReply(br); err != nil || r.Code != want {
				t.Errorf("%q: %s %v", text, r, err)
			}
		}
		say("", 220)
		say("EHLO a.test\r\n", 250)
		say("MAIL FROM:<a@other.test>\r\n", 250)
		say("RCPT TO:<anna@sim.test>\r\n", 250)
		say("DATA\r\n", 354)
		w.freeze(true)
		say("Message-ID: <late@other.test>\r\n\r\nhello\r\n.\r\n", 250)
		time.Sleep(10 * time.Second)
		if p, n := w.phase(), w.box.app.Store().HeldCount(); p != failover.Serving || n > 0 {
			t.Errorf("%s, and %d accepted messages are in no mailbox", p, n)
		}
		if sn, err := w.box.app.Store().Snapshot("anna@sim.test", "INBOX"); err != nil || len(sn.Rows) != 1 {
			t.Errorf("the mailbox: %+v, %v", sn, err)
		}
		_ = conn.Close()
		w.freeze(false)
		w.stopBox()
		w.kill()
	})
}

// saboteur is between a client and the Understudy and does what a bug would do.
type saboteur struct {
	net.Conn
	kind string
	n    *atomic.Int64
}

// Write drops an APPEND and answers it, or sends one twice.
func (s *saboteur) Write(p []byte) (int, error) {
	if text := string(p); strings.Contains(text, " APPEND ") && strings.HasSuffix(text, "\r\n") {
		n := s.n.Add(1)
		tag, _, _ := strings.Cut(text, " ")
		switch {
		case n != 5:
		case s.kind == "acknowledged and lost":
			_, err := s.Conn.Write([]byte(tag + " NOOP\r\n"))
			return len(p), err
		case s.kind == "stored twice":
			for _, t := range []string{"twin" + text[len(tag):], text} {
				if _, err := s.Conn.Write([]byte(t)); err != nil {
					return 0, err
				}
			}
			return len(p), nil
		}
	}
	return s.Conn.Write(p)
}

// Read changes a UID.
func (s *saboteur) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	if i := strings.Index(string(p[:n]), "FETCH (UID 1"); s.kind == "UID used again" && i >= 0 {
		p[i+len("FETCH (UID ")] = '2'
	}
	return n, err
}

// The simulation finds bugs that are planted between clients and the Understudy.
func TestPlantedBugsInASimulation(t *testing.T) {
	for _, kind := range []string{"acknowledged and lost", "stored twice", "UID used again"} {
		synctest.Test(t, func(t *testing.T) {
			var n atomic.Int64
			faults := simulate(t, 7, func(c net.Conn) net.Conn { return &saboteur{c, kind, &n} })
			if len(faults) == 0 {
				t.Errorf("%s: not found", kind)
			} else {
				t.Logf("%s: %.150s", kind, faults[0])
			}
		})
	}
}
