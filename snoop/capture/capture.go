// Package capture snoops passively: it reads the frames of a mirror port, puts
// TCP connections to production together, and follows those without TLS as the
// proxy follows its own sessions.
//
// Implementation notes. Everything runs in one goroutine (Run), but what settles
// a change, which waits for production: that is done per session, in order, beside
// it. Nothing is guessed: connections whose beginning was not seen, TLS, and
// whatever a session does after a gap are not followed; a gap, a frame that was
// lost, and more work than can be kept only mark accounts to be read from
// production. Memory is bounded by the limits below.
package capture

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/reassembly"

	"understudy/replica/row"
	"understudy/snoop/imapsession"
	"understudy/snoop/imapwire"
)

// Limits.
const (
	maxSessions = 20_000
	maxWindow   = 256 << 10 // bytes of one direction that wait to be understood
	maxBody     = 16 << 20  // of a message that is kept from SMTP
	maxBodies   = 128 << 20 // of all such messages
	maxJobs     = 256       // changes of one session that wait to be settled
	maxPages    = 60_000    // of reordered data, 1,900 bytes each, of all connections
	gapAfter    = 2 * time.Second
	idleAfter   = 3 * time.Hour
)

// Kind is what a port speaks.
type Kind uint8

// The kinds of port.
const (
	IMAP Kind = iota
	SMTP
	TLS
)

// Source is where frames come from.
type Source interface {
	// Read reads one frame.
	Read(b []byte) (int, error)
	SetReadDeadline(t time.Time) error
	// Lost is the number of frames lost since it was last asked.
	Lost() (int, error)
}

// Login is what a client proved who it is with.
type Login struct{ User, AuthUser, Password string }

// Options of New.
type Options struct {
	Source Source
	Ports  map[uint16]Kind
	Addrs  []netip.Addr // of production
	Own    []netip.Addr // of the box: its connections are its own
	// LoggedIn tells that production accepted a login, and returns the account.
	LoggedIn func(ctx context.Context, l Login) (account string, err error)
	NewSpool func() row.Spool
	// Settle has the replica follow a change that production accepted.
	Settle func(ctx context.Context, account string, ex *imapsession.Exchange, ok imapwire.Response) error
	// Accepted keeps a message that production took by SMTP.
	Accepted func(ctx context.Context, m row.Envelope, sp row.Spool) error
	// Hint marks a mailbox to be read; Sweep an account, or with "" all of them.
	Hint  func(account, mailbox string)
	Sweep func(account string)
	Log   *slog.Logger
}

// Counts are what was seen.
type Counts struct {
	Sessions  int64 // connections followed from their beginning
	TLS       int64 // of these, with TLS from some moment on: not followed any more
	Midway    int64 // packets of connections whose beginning was not seen
	Gaps      int64 // connections that lost data
	Lost      int64 // frames that were lost before they could be read
	Changes   int64 // settled
	Messages  int64 // kept from SMTP
	Abandoned int64 // sessions that were not understood
}

type counts struct {
	sessions, tls, midway, gaps, lost, changes, messages, abandoned atomic.Int64
}

// Tap reads a mirror port.
type Tap struct {
	opt    Options
	n      counts
	open   int
	bodies int64
	jobs   sync.WaitGroup
	ctx    context.Context // of Run
}

// New checks the options.
func New(o Options) (*Tap, error) {
	if o.Source == nil || len(o.Addrs) == 0 || len(o.Ports) == 0 {
		return nil, errors.New("capture: a source, production's addresses and its ports are needed")
	}
	return &Tap{opt: o}, nil
}

// Counts tells what was seen so far.
func (t *Tap) Counts() Counts {
	n := &t.n
	return Counts{n.sessions.Load(), n.tls.Load(), n.midway.Load(), n.gaps.Load(), n.lost.Load(), n.changes.Load(),
		n.messages.Load(), n.abandoned.Load()}
}

// Run reads until ctx ends.
func (t *Tap) Run(ctx context.Context) error {
	t.ctx = ctx
	defer t.jobs.Wait()
	a := reassembly.NewAssembler(reassembly.NewStreamPool(t))
	a.MaxBufferedPagesTotal, a.MaxBufferedPagesPerConnection = maxPages, maxPages/8
	defer context.AfterFunc(ctx, func() { _ = t.opt.Source.SetReadDeadline(time.Unix(1, 0)) })()
	d := newDecoder()
	buf := make([]byte, 256<<10)
	last := time.Now()
	for {
		_ = t.opt.Source.SetReadDeadline(time.Now().Add(time.Second))
		if ctx.Err() != nil {
			return nil
		}
		k, err := t.opt.Source.Read(buf)
		now := time.Now()
		switch {
		case err == nil:
			if flow, ok := d.decode(buf[:k]); ok && t.ours(flow, &d.tcp) {
				a.AssembleWithContext(flow, &d.tcp, stamp(now))
			}
		case !errors.Is(err, os.ErrDeadlineExceeded):
			if ctx.Err() != nil {
				return nil
			}
			t.opt.Log.Warn("read the mirror port", "err", err)
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
				return nil
			}
		}
		if now.Sub(last) > time.Second/2 {
			last = now
			a.FlushWithOptions(reassembly.FlushOptions{T: now.Add(-gapAfter), TC: now.Add(-idleAfter)})
			if err := t.lost(); err != nil {
				return err
			}
		}
	}
}

// lost asks whether frames were lost; nobody knows whose.
func (t *Tap) lost() error {
	k, err := t.opt.Source.Lost()
	if err != nil {
		return fmt.Errorf("mirror port: %w", err)
	}
	if k > 0 {
		t.n.lost.Add(int64(k))
		t.opt.Log.Warn("frames of the mirror port were lost; all accounts are read", "frames", k)
		t.opt.Sweep("")
	}
	return nil
}

// decoder takes frames apart.
type decoder struct {
	eth  layers.Ethernet
	tag  layers.Dot1Q
	ip4  layers.IPv4
	ip6  layers.IPv6
	tcp  layers.TCP
	pars *gopacket.DecodingLayerParser
	got  []gopacket.LayerType
}

func newDecoder() *decoder {
	d := &decoder{}
	d.pars = gopacket.NewDecodingLayerParser(layers.LayerTypeEthernet, &d.eth, &d.tag, &d.ip4, &d.ip6, &d.tcp)
	d.pars.IgnoreUnsupported = true
	return d
}

func (d *decoder) decode(frame []byte) (flow gopacket.Flow, ok bool) {
	if d.pars.DecodeLayers(frame, &d.got) != nil {
		return flow, false
	}
	for _, l := range d.got {
		switch l {
		case layers.LayerTypeIPv4:
			flow = d.ip4.NetworkFlow()
		case layers.LayerTypeIPv6:
			flow = d.ip6.NetworkFlow()
		case layers.LayerTypeTCP:
			return flow, true
		}
	}
	return flow, false
}

func (t *Tap) is(e gopacket.Endpoint, port layers.TCPPort) (Kind, bool) {
	k, ok := t.opt.Ports[uint16(port)]
	a, valid := netip.AddrFromSlice(e.Raw())
	return k, ok && valid && slices.Contains(t.opt.Addrs, a)
}

func (t *Tap) ours(flow gopacket.Flow, tcp *layers.TCP) bool {
	_, to := t.is(flow.Dst(), tcp.DstPort)
	_, from := t.is(flow.Src(), tcp.SrcPort)
	client := flow.Src()
	if from {
		client = flow.Dst()
	}
	a, _ := netip.AddrFromSlice(client.Raw())
	return (to || from) && !slices.Contains(t.opt.Own, a)
}

type stamp time.Time

// GetCaptureInfo implements reassembly.AssemblerContext.
func (s stamp) GetCaptureInfo() gopacket.CaptureInfo {
	return gopacket.CaptureInfo{Timestamp: time.Time(s)}
}

// dialogue follows what the two sides of a connection say.
type dialogue interface {
	client(b []byte) error
	server(b []byte) error
	// gap ends it: something that was said is not known.
	gap()
	end()
}

// errOpaque ends a dialogue that goes on in a way that cannot be followed.
var errOpaque = errors.New("not followed from here")

// stream is one connection.
type stream struct {
	t *Tap
	d dialogue // nil: not followed
}

// New implements reassembly.StreamFactory.
func (t *Tap) New(flow, _ gopacket.Flow, tcp *layers.TCP, _ reassembly.AssemblerContext) reassembly.Stream {
	kind, ok := t.is(flow.Dst(), tcp.DstPort)
	s := &stream{t: t}
	switch {
	case !ok || !tcp.SYN || tcp.ACK || t.open >= maxSessions:
		return s
	case kind == TLS:
		t.n.tls.Add(1)
	case kind == IMAP:
		s.d = newIMAP(t)
	default:
		s.d = newSMTP(t)
	}
	t.n.sessions.Add(1)
	if s.d != nil {
		t.open++
	}
	return s
}

// Accept implements reassembly.Stream.
func (s *stream) Accept(_ *layers.TCP, _ gopacket.CaptureInfo, _ reassembly.TCPFlowDirection, _ reassembly.Sequence,
	_ *bool, _ reassembly.AssemblerContext) bool {
	if s.d == nil {
		s.t.n.midway.Add(1)
	}
	return s.d != nil
}

// ReassembledSG implements reassembly.Stream.
func (s *stream) ReassembledSG(sg reassembly.ScatterGather, _ reassembly.AssemblerContext) {
	dir, _, _, skip := sg.Info()
	k, _ := sg.Lengths()
	if s.d == nil {
		return
	}
	if skip != 0 {
		s.t.n.gaps.Add(1)
		s.d.gap()
		s.close()
		return
	}
	b := sg.Fetch(k)
	if len(b) == 0 {
		return
	}
	f := s.d.client
	if dir == reassembly.TCPDirServerToClient {
		f = s.d.server
	}
	switch err := f(b); {
	case errors.Is(err, errOpaque):
		s.close()
	case err != nil:
		s.t.n.abandoned.Add(1)
		s.t.opt.Log.Debug("a session of the mirror port is not understood", "err", err)
		s.d.gap()
		s.close()
	}
}

func (s *stream) close() {
	if s.d != nil {
		s.d.end()
		s.d = nil
		s.t.open--
	}
}

// ReassemblyComplete implements reassembly.Stream.
func (s *stream) ReassemblyComplete(reassembly.AssemblerContext) bool {
	s.close()
	return true
}

// worker does a session's jobs in order, beside the capture.
type worker struct {
	ch chan func(context.Context)
}

func (t *Tap) work() *worker {
	w := &worker{make(chan func(context.Context), maxJobs)}
	t.jobs.Go(func() {
		for f := range w.ch {
			f(t.ctx)
		}
	})
	return w
}

// do queues a job, or reports that there are too many.
func (w *worker) do(f func(context.Context)) bool {
	select {
	case w.ch <- f:
		return true
	default:
		return false
	}
}

func (w *worker) end() { close(w.ch) }
