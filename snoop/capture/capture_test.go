package capture

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"understudy/replica/row"
	"understudy/snoop/imapsession"
	"understudy/snoop/imapwire"
)

// frames is a Source of a list.
type frames struct {
	mu   sync.Mutex
	list [][]byte
	lost int
}

func (f *frames) Read(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.list) == 0 {
		time.Sleep(time.Millisecond)
		return 0, os.ErrDeadlineExceeded
	}
	k := copy(b, f.list[0])
	f.list = f.list[1:]
	return k, nil
}

func (f *frames) SetReadDeadline(time.Time) error { return nil }

func (f *frames) Lost() (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	k := f.lost
	f.lost = 0
	return k, nil
}

func (f *frames) empty() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.list) == 0
}

// talk makes frames of one connection.
type talk struct {
	port     uint16
	seq, ack uint32
	out      [][]byte
}

func (k *talk) frame(fromClient bool, flags string, payload []byte) {
	ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: net.IP{192, 0, 2, 20},
		DstIP: net.IP{192, 0, 2, 10}}
	tcp := &layers.TCP{SrcPort: 40000, DstPort: layers.TCPPort(k.port), Seq: k.seq, Ack: k.ack, ACK: flags != "S",
		SYN: strings.Contains(flags, "S"), FIN: strings.Contains(flags, "F"), Window: 1000}
	grow := &k.seq
	if !fromClient {
		ip.SrcIP, ip.DstIP, tcp.SrcPort, tcp.DstPort, tcp.Seq, tcp.Ack = ip.DstIP, ip.SrcIP, tcp.DstPort, tcp.SrcPort,
			k.ack, k.seq
		grow = &k.ack
	}
	if *grow += uint32(len(payload)); tcp.SYN || tcp.FIN {
		*grow++
	}
	_ = tcp.SetNetworkLayerForChecksum(ip)
	b := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		&layers.Ethernet{SrcMAC: make([]byte, 6), DstMAC: make([]byte, 6), EthernetType: layers.EthernetTypeIPv4}, ip,
		tcp, gopacket.Payload(payload))
	if err != nil {
		panic(err)
	}
	k.out = append(k.out, bytes.Clone(b.Bytes()))
}

// conversation is what is said, in turn: lines that begin with C or S.
func conversation(port uint16, lines ...string) [][]byte {
	k := &talk{port: port, seq: 1000, ack: 5000}
	k.frame(true, "S", nil)
	k.frame(false, "SA", nil)
	k.frame(true, "A", nil)
	for _, l := range lines {
		for p := []byte(l[2:]); len(p) > 0; {
			n := min(len(p), 7)
			k.frame(l[0] == 'C', "A", p[:n])
			p = p[n:]
		}
	}
	k.frame(true, "FA", nil)
	k.frame(false, "FA", nil)
	return k.out
}

type spool struct{ bytes.Buffer }

func (*spool) Start()                   {}
func (*spool) Commit() (row.Ref, error) { return row.Ref{}, nil }
func (s *spool) Bytes() ([]byte, error) { return s.Buffer.Bytes(), nil }
func (*spool) Discard()                 {}

// heard is what a Tap made of frames.
type heard struct {
	mu    sync.Mutex
	lines []string
}

func (h *heard) add(format string, a ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lines = append(h.lines, fmt.Sprintf(format, a...))
}

func (h *heard) options(src Source) Options {
	return Options{Source: src, Ports: map[uint16]Kind{143: IMAP, 25: SMTP, 993: TLS},
		Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.10")}, Log: slog.New(slog.DiscardHandler),
		NewSpool: func() row.Spool { return &spool{} },
		LoggedIn: func(_ context.Context, l Login) (string, error) {
			h.add("login %s/%s %s", l.User, l.AuthUser, l.Password)
			return l.User, nil
		},
		Settle: func(_ context.Context, account string, ex *imapsession.Exchange, ok imapwire.Response) error {
			text := ""
			if sp := ex.Kept.Spool; sp != nil {
				b, _ := sp.Bytes()
				text = string(b)
			}
			h.add("%s %s %s %v %s %s", account, ex.Name(), ex.Mailbox, ex.UIDs, ok.Code, text)
			return nil
		},
		Accepted: func(_ context.Context, m row.Envelope, sp row.Spool) error {
			b, _ := sp.Bytes()
			h.add("mail %s %v %s: %q", m.From, m.Rcpts, m.User, b)
			return nil
		},
		Hint:  func(account, mailbox string) { h.add("hint %s %s", account, mailbox) },
		Sweep: func(account string) { h.add("sweep %q", account) }}
}

// listen gives frames to a Tap; wait is for what takes time.
func listen(t *testing.T, fs [][]byte, lost int, wait time.Duration) ([]string, Counts) {
	t.Helper()
	src, h := &frames{list: fs, lost: lost}, &heard{}
	tap, err := New(h.options(src))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- tap.Run(ctx) }()
	for !src.empty() {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(wait)
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return h.lines, tap.Counts()
}

var imapTalk = []string{
	"S * OK hello\r\n", "C a LOGIN {5}\r\n", "S + go\r\n", "C alice \"s3cret word\"\r\n", "S a OK in\r\n",
	"C b SELECT INBOX\r\n", "S * 3 EXISTS\r\nb OK [READ-WRITE] done\r\n",
	"C c APPEND INBOX {12}\r\n", "S + go\r\n", "C Subject: x\r\n", "C \r\n", "S c OK [APPENDUID 1 4] done\r\n",
	"C d APPEND Big {999}\r\n", "S d NO [LIMIT] too big\r\n", // the literal never comes
	"C e UID STORE 4 +FLAGS (\\Seen)\r\n", "S * 3 FETCH (UID 4 FLAGS (\\Seen))\r\ne OK done\r\n",
	"C f IDLE\r\n", "S + idling\r\n", "C DONE\r\n", "S f OK done\r\n",
	"C g UID MOVE 4 Work\r\n", "S g OK [COPYUID 1 4 9] done\r\n", "C h LOGOUT\r\n", "S * BYE\r\nh OK bye\r\n"}

var imapHeard = []string{"login alice/alice s3cret word", "alice APPEND INBOX [] APPENDUID Subject: x\r\n",
	"alice UID STORE INBOX [4]  ", "alice UID MOVE INBOX [4] COPYUID "}

var smtpTalk = []string{
	"S 220 hello\r\n", "C EHLO c\r\n", "S 250-x\r\n250 AUTH PLAIN\r\n", "C AUTH PLAIN\r\n", "S 334 \r\n",
	"C AGFsaWNlAHMzY3JldA==\r\n", "S 235 ok\r\n",
	"C MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nRCPT TO:<no@y.test>\r\nDATA\r\n",
	"S 250 ok\r\n250 ok\r\n550 no\r\n354 go\r\n",
	"C Subject: y\r\n\r\n..dot\r\n.\r\nQUIT\r\n", "S 250 taken\r\n221 bye\r\n"}

var smtpHeard = []string{"login alice/alice s3cret", `mail a@x.test [b@y.test] alice: "Subject: y\r\n\r\n.dot\r\n"`}

// What is said is understood however it is cut, and though frames come twice and
// in another order.
func TestTap_Reordered(t *testing.T) {
	for name, c := range map[string]struct {
		port  uint16
		talk  []string
		heard []string
	}{"IMAP": {143, imapTalk, imapHeard}, "SMTP": {25, smtpTalk, smtpHeard}} {
		for seed := range uint64(20) {
			rng := rand.New(rand.NewPCG(seed, 1))
			fs := conversation(c.port, c.talk...)
			for i := 3; i < len(fs)-1 && seed > 0; i++ {
				switch rng.IntN(6) {
				case 0: // both of one direction
					if bytes.Equal(fs[i][26:30], fs[i+1][26:30]) && i+1 < len(fs)-2 {
						fs[i], fs[i+1] = fs[i+1], fs[i]
					}
				case 1:
					fs = slices.Insert(fs, i, fs[i])
					i++
				}
			}
			got, n := listen(t, fs, 0, 0)
			if !slices.Equal(got, c.heard) {
				t.Errorf("%s, seed %d: heard %q", name, seed, got)
			}
			if n.Sessions != 1 || n.Gaps != 0 || n.Abandoned != 0 {
				t.Errorf("%s, seed %d: %+v", name, seed, n)
			}
		}
	}
}

// TLS is counted, connections without a beginning are left alone, and what was
// lost is read.
func TestTap_NothingIsGuessed(t *testing.T) {
	if got, n := listen(t,
		conversation(143, "S * OK\r\n", "C a STARTTLS\r\n", "S a OK go\r\n", "C \x16\x03\x01\x02\x00",
			"S \x16\x03\x03"), 0, 0); n.TLS != 1 || n.Abandoned != 0 || len(got) > 0 {
		t.Errorf("STARTTLS: %q %+v", got, n)
	}
	if got, n := listen(t, conversation(993, "C \x16\x03\x01\x02\x00"), 0, 0); n.TLS != 1 || len(got) > 0 {
		t.Errorf("IMAPS: %q %+v", got, n)
	}
	if got, n := listen(t, conversation(143, imapTalk...)[3:], 0, 0); n.Sessions != 0 || n.Midway == 0 || len(got) > 0 {
		t.Errorf("from the middle: %q %+v", got, n)
	}
	if got, _ := listen(t, nil, 3, time.Second); !slices.Equal(got, []string{`sweep ""`}) {
		t.Errorf("lost frames: %q", got)
	}
	fs := conversation(143, imapTalk...)
	got, n := listen(t, slices.Delete(fs, 40, 41), 0, 2*gapAfter)
	if n.Gaps+n.Abandoned != 1 || !slices.Contains(got, `sweep "alice"`) || len(got) > len(imapHeard) {
		t.Errorf("a gap: %q %+v", got, n)
	}
	got, n = listen(t, conversation(143, append(slices.Clone(imapTalk[:7]), "S nonsense OK what\r\n")...), 0, 0)
	if n.Abandoned != 1 || !slices.Contains(got, `sweep "alice"`) {
		t.Errorf("an answer to nothing: %q %+v", got, n)
	}
}

// discarded counts spools that are given back.
type discarded struct {
	spool
	n *int
}

func (s *discarded) Discard() { *s.n++ }

// A message is given back though its answer leaves the conversation in doubt.
func TestTap_GivesSpoolsBack(t *testing.T) {
	made, back := 0, 0
	h := &heard{}
	opt := h.options(&frames{})
	opt.NewSpool = func() row.Spool {
		made++
		return &discarded{n: &back}
	}
	tap, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	tap.ctx = t.Context()
	d := newIMAP(tap)
	for _, l := range slices.Concat(imapTalk[:11], []string{"S c BAD no\r\n"}) {
		take := d.server
		if l[0] == 'C' {
			take = d.client
		}
		if err = take([]byte(l[2:])); err != nil {
			break
		}
	}
	d.end()
	if err == nil || made != 1 || back != 1 {
		t.Errorf("%d spools made, %d given back; %v", made, back, err)
	}
}

// FuzzDialogue: whatever is said, nothing breaks, and memory is bounded.
func FuzzDialogue(f *testing.F) {
	f.Add(true, strings.Join(imapTalk, "\x00"))
	f.Add(false, strings.Join(smtpTalk, "\x00"))
	f.Fuzz(func(t *testing.T, isIMAP bool, text string) {
		h := &heard{}
		tap, err := New(h.options(&frames{}))
		if err != nil {
			t.Fatal(err)
		}
		tap.ctx = context.Background()
		var d dialogue
		if isIMAP {
			d = newIMAP(tap)
		} else {
			d = newSMTP(tap)
		}
		for said := range strings.SplitSeq(text, "\x00") {
			if len(said) < 2 {
				continue
			}
			side := d.client
			if said[0] == 'S' {
				side = d.server
			}
			if side([]byte(said[2:])) != nil {
				break
			}
		}
		d.end()
		tap.jobs.Wait()
		if tap.bodies != 0 {
			t.Fatalf("%d bytes of bodies are left", tap.bodies)
		}
	})
}
