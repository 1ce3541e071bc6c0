package lab

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"understudy/lab/site"
)

// relay stands between the box and production, and can lose a command: the line
// with a trap's tag reaches production no more, what the trap does in its place
// is all that becomes of it, and the connection breaks.
type relay struct {
	to    string
	mu    sync.Mutex
	traps map[string]func()
	mute  string // the answer to a line with this word is lost, and all that follow
	cut   chan struct{}
	shut  bool   // nobody is let through
	hates string // an APPEND of a message with this word is refused
}

func newRelay(t *testing.T, to string) (r *relay, addr string) {
	t.Helper()
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { _ = l.Close() })
	r = &relay{to: to, traps: map[string]func(){}}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go r.carry(c)
		}
	}()
	return r, l.Addr().String()
}

func (r *relay) set(tag string, trap func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.traps[tag] = trap
}

func (r *relay) carry(c net.Conn) {
	defer func() { _ = c.Close() }()
	r.mu.Lock()
	shut := r.shut
	r.mu.Unlock()
	p, err := net.Dial("tcp", r.to)
	if err != nil || shut {
		return
	}
	defer func() { _ = p.Close() }()
	var muted atomic.Bool
	var wmu sync.Mutex // writes to c
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := p.Read(buf)
			if err != nil {
				_ = c.Close()
				return
			}
			if !muted.Load() {
				wmu.Lock()
				_, _ = c.Write(buf[:n])
				wmu.Unlock()
			}
		}
	}()
	br := bufio.NewReader(c)
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return
		}
		tag, _, _ := strings.Cut(line, " ")
		r.mu.Lock()
		trap := r.traps[tag]
		delete(r.traps, tag)
		mute := r.mute != "" && strings.Contains(line, r.mute)
		if mute {
			muted.Store(true)
			r.mute, r.shut = "", true
			time.AfterFunc(500*time.Millisecond, func() { _ = p.Close(); close(r.cut) })
		}
		r.mu.Unlock()
		if trap != nil {
			if n := literalSize("*" + strings.Replace(strings.TrimSpace(line), "+}", "}", 1)); n > 0 {
				_, _ = io.CopyN(io.Discard, br, int64(n)+2)
			}
			trap()
			return
		}
		if n := literalSize("*" + strings.Replace(strings.TrimSpace(line), "+}", "}", 1)); n > 0 && r.hates != "" &&
			strings.Contains(line, " APPEND ") {
			body := make([]byte, n+2)
			if _, err := io.ReadFull(br, body); err != nil {
				return
			}
			if bytes.Contains(body, []byte(r.hates)) {
				wmu.Lock()
				_, _ = fmt.Fprintf(c, "%s NO Message contains invalid header\r\n", tag)
				wmu.Unlock()
				continue
			}
			line += string(body)
		}
		if _, err := io.WriteString(p, line); err != nil {
			return
		}
	}
}

// lostCommand is a command that production does not answer, what it had done of
// it, and how many copies of the case's messages are there when it is done once.
type lostCommand struct {
	name, command string // @ and @@ are UIDs of two messages, # makes a name the case's own
	done          []string
	inbox, filed  int
}

var lostCommands = []lostCommand{
	{"MOVE, nothing", "UID MOVE @ Filed", nil, 1, 1},
	{"MOVE, all", "UID MOVE @ Filed", []string{"UID MOVE @ Filed"}, 1, 1},
	{"MOVE, half", "UID MOVE @ Filed", []string{"UID COPY @ Filed"}, 1, 1},
	{"MOVE of two, one whole, one half", "UID MOVE @,@@ Filed", []string{"UID COPY @@ Filed", "UID MOVE @ Filed"}, 0,
		2},
	{"MOVE of two, half of one", "UID MOVE @,@@ Filed", []string{"UID COPY @ Filed"}, 0, 2},
	{"COPY, nothing", "UID COPY @,@@ Filed", nil, 2, 2},
	{"COPY, all", "UID COPY @,@@ Filed", []string{"UID COPY @,@@ Filed"}, 2, 2},
	{"STORE, nothing", `UID STORE @ +FLAGS (\Flagged)`, nil, 2, 0},
	{"STORE, all", `UID STORE @ +FLAGS (\Flagged)`, []string{`UID STORE @ +FLAGS (\Flagged)`}, 2, 0},
	{"EXPUNGE, nothing", "UID EXPUNGE @", nil, 1, 0},
	{"EXPUNGE, all", "UID EXPUNGE @", []string{"UID EXPUNGE @"}, 1, 0},
	{"APPEND, nothing", "APPEND Filed", nil, 2, 1},
	{"APPEND, all", "APPEND Filed", []string{"APPEND Filed"}, 2, 1},
	{"CREATE, all", "CREATE New#", []string{"CREATE New#"}, 2, 0},
	{"CREATE, nothing", "CREATE New#", nil, 2, 0},
	{"RENAME, all", "RENAME Old# New#", []string{"RENAME Old# New#"}, 2, 0},
	{"RENAME, nothing", "RENAME Old# New#", nil, 2, 0},
	{"DELETE, all", "DELETE Old#", []string{"DELETE Old#"}, 2, 0},
	{"DELETE, nothing", "DELETE Old#", nil, 2, 0},
}

// B5, T9, N17: whatever production had done of commands that it did not answer,
// nothing, all or half, each gets one OK, and the outcome is that of the command
// done once; whether production lives on or the standby answers.
func TestB5_UnansweredCommands(t *testing.T) {
	for _, dies := range []bool{false, true} {
		t.Run(fmt.Sprintf("production dies %v", dies), func(t *testing.T) { unanswered(t, newSite(t, 1), dies) })
	}
}

func unanswered(t *testing.T, s *site.Site, dies bool) {
	u := s.Users[0]
	r, addr := newRelay(t, direct(s))
	settings := map[string]string{"production.imap": fmt.Sprintf("%q", addr), "failover.auto_handback": "false"}
	if !dies {
		settings["failover.hold"] = `"20s"`
	} else {
		// Of what is moved, the departure is seen and the arrival is not.
		settings["mirror.idle"], settings["mirror.sweep"] = "1", `"1h"`
	}
	behind := rawLogin(t, direct(s), u)
	behind.do("c CREATE Filed")
	behind.do("s SELECT INBOX")
	say := func(r *raw, tag, command string, i int) {
		command = strings.NewReplacer("@@", fmt.Sprint(2*i+2), "@", fmt.Sprint(2*i+1), "#",
			fmt.Sprint(i)).Replace(command)
		if command == "APPEND Filed" {
			text := textOf(fmt.Sprintf("case%d.app", i), 700)
			r.send("%s APPEND Filed {%d+}\r\n%s\r\n", tag, len(text), text)
			return
		}
		r.send("%s %s\r\n", tag, command)
	}
	for i, k := range lostCommands {
		behind.append("INBOX", textOf(fmt.Sprintf("case%d.one", i), 900))
		behind.append("INBOX", textOf(fmt.Sprintf("case%d.two", i), 900))
		if strings.Contains(k.command, "Old#") {
			behind.do("o CREATE Old%d", i)
		}
		if strings.Contains(k.name, "EXPUNGE") {
			behind.do("d UID STORE %d +FLAGS (\\Deleted)", 2*i+1)
		}
	}
	b := newBox(t, s, settings)
	waitPhase(t, b, "protecting")
	order(t, b, "sync")
	clients := make([]*raw, len(lostCommands))
	trapped := make(chan struct{})
	dead := make(chan struct{})
	for i, k := range lostCommands {
		c := rawLogin(t, b.IMAP, u)
		c.do("s SELECT INBOX")
		clients[i] = c
		r.set(fmt.Sprintf("k%d", i), func() {
			behind.do("n NOOP")
			for _, d := range k.done {
				say(behind, "x", d, i)
				behind.until("x OK")
			}
			trapped <- struct{}{}
			if dies {
				<-dead
			}
		})
		say(c, fmt.Sprintf("k%d", i), k.command, i)
		<-trapped
	}
	if dies {
		time.Sleep(time.Second)
		s.Kill()
		close(dead)
		waitPhase(t, b, "serving")
	}
	for i, k := range lostCommands {
		tag := fmt.Sprintf("k%d ", i)
		if out := clients[i].until(tag); !strings.HasPrefix(out[len(out)-1], tag+"OK") {
			t.Errorf("%s: answered %q", k.name, out)
		}
	}
	judge := func(where, addr string) {
		c := rawLogin(t, addr, u)
		for i, k := range lostCommands {
			count := func(mailbox string) int {
				c.do("e EXAMINE %s", mailbox)
				return len(strings.Fields(c.do("c SEARCH HEADER Subject case%d.", i)[0])) - 2
			}
			if inbox, filed := count("INBOX"), count("Filed"); inbox != k.inbox || filed != k.filed {
				t.Errorf("%s, %s: %d in INBOX, %d in Filed, want %d and %d", where, k.name, inbox, filed, k.inbox,
					k.filed)
			}
			c.do("e EXAMINE INBOX")
			if strings.Contains(k.name, "STORE") &&
				!strings.Contains(strings.Join(c.do("f UID FETCH %d (FLAGS)", 2*i+1), ""), `\Flagged`) {
				t.Errorf("%s, %s: no flag", where, k.name)
			}
			list := strings.Join(c.do("l LIST \"\" *%d", i), "")
			if strings.Contains(list, fmt.Sprintf("Old%d", i)) ||
				strings.Contains(k.command, "New#") != strings.Contains(list, fmt.Sprintf("New%d", i)) {
				t.Errorf("%s, %s: mailboxes %q", where, k.name, list)
			}
		}
	}
	if dies {
		judge("on the standby", b.IMAP)
		check(t, s.Start(t.Context()))
		waitPhase(t, b, "returning")
		order(t, b, "handback")
		waitPhase(t, b, "protecting")
	} else if st := must(b.Status(t.Context()))(t); st.Epoch != 0 {
		t.Errorf("a takeover took place: epoch %d", st.Epoch)
	}
	judge("on production", direct(s))
	order(t, b, "sync")
	for l := range strings.Lines(fingerprint(t, direct(s), u).Diff(fingerprint(t, b.IMAP, u))) {
		if !strings.Contains(l, " New") { // born on the standby: it keeps the UIDVALIDITY that clients saw
			t.Errorf("through the box it differs: %s", l)
		}
	}
	// Every session has the same view as a new one.
	want := rawLogin(t, b.IMAP, u).do("s SELECT INBOX")
	for i, k := range lostCommands {
		clients[i].do("n NOOP")
		if out := clients[i].do("v UID SEARCH ALL"); len(strings.Fields(out[len(out)-2]))-2 != exists(want) {
			t.Errorf("%s: the session sees %q, a new one %d messages", k.name, out, exists(want))
		}
	}
}

func exists(lines []string) (n int) {
	for _, l := range lines {
		if strings.HasSuffix(l, " EXISTS") {
			_, _ = fmt.Sscanf(l, "* %d", &n)
		}
	}
	return n
}

// N08, E7: copy-back loses its connection when production has stored messages and
// not answered; what clients do with those messages meanwhile stays done.
func TestN08_CutCopyBack(t *testing.T) {
	s := newSite(t, 1)
	u := s.Users[0]
	r, addr := newRelay(t, direct(s))
	r.cut = make(chan struct{})
	seed := rawLogin(t, direct(s), u)
	seed.do("c CREATE Filed")
	seed.append("INBOX", textOf("old", 800))
	b := newBox(t, s,
		map[string]string{"production.imap": fmt.Sprintf("%q", addr), "failover.auto_handback": "true",
			"failover.return_probes": "1"})
	waitPhase(t, b, "protecting")
	order(t, b, "sync")
	c := rawLogin(t, b.IMAP, u)
	c.do("s SELECT INBOX")
	s.Kill()
	waitPhase(t, b, "serving")
	r.mute = "$Cut"
	for _, id := range []string{"deleted", "moved", "kept"} {
		m := textOf(id, 900)
		c.send("ap APPEND INBOX ($Cut) {%d+}\r\n%s\r\n", len(m), m)
		c.until("ap OK")
	}
	check(t, s.Start(t.Context()))
	<-r.cut // production has stored them by now
	uids := strings.Fields(c.do("u UID SEARCH KEYWORD $Cut")[0])[2:]
	c.do("d UID STORE %s +FLAGS (\\Deleted)", uids[0])
	c.do("x UID EXPUNGE %s", uids[0])
	c.do("m UID MOVE %s Filed", uids[1])
	if n := exists(rawLogin(t, direct(s), u).do("s SELECT INBOX")); n < 4 {
		t.Errorf("production has stored %d messages: the cut came too early", n)
	}
	waitPhase(t, b, "serving", "returning")
	r.mu.Lock()
	r.shut = false
	r.mu.Unlock()
	waitPhase(t, b, "protecting")
	order(t, b, "sync")
	for mailbox, want := range map[string]string{"INBOX": "kept", "Filed": "moved"} {
		p := rawLogin(t, direct(s), u)
		p.do("s EXAMINE %s", mailbox)
		out := strings.Join(p.do("f FETCH 1:* (BODY.PEEK[HEADER.FIELDS (SUBJECT)])"), "")
		if strings.Count(out, "Subject: "+want) != 1 ||
			strings.Count(out, "deleted")+strings.Count(out, "moved")+strings.Count(out, "kept") != 1 {
			t.Errorf("%s: %q", mailbox, out)
		}
	}
	if diff := fingerprint(t, direct(s), u).Diff(fingerprint(t, b.IMAP, u)); diff != "" {
		t.Errorf("through the box it differs:\n%s", diff)
	}
}

// N13: production refuses a message that the standby took, as some servers do
// with odd headers. It is put there as an attachment, under its own UID, and the
// hand-back takes place.
func TestN13_MessageRefused(t *testing.T) {
	s := newSite(t, 1)
	u := s.Users[0]
	r, addr := newRelay(t, direct(s))
	r.hates = "poison"
	b := newBox(t, s,
		map[string]string{"production.imap": fmt.Sprintf("%q", addr), "failover.auto_handback": "true",
			"failover.return_probes": "1"})
	waitPhase(t, b, "protecting")
	c := rawLogin(t, b.IMAP, u)
	c.do("s SELECT INBOX")
	s.Kill()
	waitPhase(t, b, "serving")
	poison := []byte("this is no header poison\r\n\r\n\x01 bytes\r\n")
	c.append("INBOX", textOf("before", 500))
	c.append("INBOX", poison)
	c.append("INBOX", textOf("after", 500))
	uids := c.do("u UID SEARCH ALL")
	check(t, s.Start(t.Context()))
	waitPhase(t, b, "protecting")
	p := rawLogin(t, direct(s), u)
	p.do("s SELECT INBOX")
	if got := p.do("u UID SEARCH ALL"); got[0] != uids[0] {
		t.Errorf("UIDs: %q, were %q", got[0], uids[0])
	}
	out := strings.Join(p.do("f FETCH 2 (BODY.PEEK[2])"), "")
	if !strings.Contains(out, base64.StdEncoding.EncodeToString(poison)) {
		t.Errorf("the refused message: %q", out)
	}
	c.do("n NOOP")
	if st := must(b.Status(t.Context()))(t); !strings.Contains(fmt.Sprint(st), "attachment") {
		t.Errorf("the report does not name it: %+v", st)
	}
}
