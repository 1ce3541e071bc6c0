package lab

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy/lab/hosts"
	"understudy/lab/site"
)

// script is what a client sends, step by step, and what ends the answer to each.
type script []struct{ send, until string }

// play runs a script and returns every line that came back.
func play(t *testing.T, h *hosts.Host, addr string, sc script) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := must(h.Dial(ctx, addr))(t)
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	br := bufio.NewReader(c)
	var out []string
	for _, s := range sc {
		if _, err := io.WriteString(c, s.send); err != nil {
			t.Fatalf("%.60q: %v", s.send, err)
		}
		for end := regexp.MustCompile(s.until); s.until != ""; {
			l, err := br.ReadString('\n')
			if err != nil {
				t.Fatalf("%.60q: %v after %q", s.send, err, out)
			}
			if l = strings.TrimRight(l, "\r\n"); len(l) > 0 {
				out = append(out, l)
			}
			if end.MatchString(l) {
				break
			}
		}
	}
	return out
}

func imapScript(user string, first bool) script {
	msg := message("transcript", 2000)
	lit := func(tag, plus string) string {
		return fmt.Sprintf("%s APPEND INBOX (\\Seen) \"02-Nov-2026 10:00:00 +0100\" {%d%s}\r\n", tag, len(msg), plus)
	}
	big, wrong := message("big", 3<<20), ""
	if first {
		wrong = "a1 LOGIN " + user + " wrong\r\n" // it takes a while
	}
	return script{
		{"", `^\* OK`},
		{wrong + "a2 LOGIN " + user + " " + site.Password(user) + "\r\n", "^a2 "},
		{"a3 CAPABILITY\r\n", "^a3 "},
		{"a4 LIST \"\" *\r\na5 CREATE Work\r\na6 SUBSCRIBE Work\r\na7 STATUS INBOX (MESSAGES UIDNEXT)\r\n", "^a7 "},
		{lit("b1", ""), `^\+`},
		{string(msg) + "\r\n", "^b1 "},
		{lit("b2", "+") + string(msg) + "\r\n", "^b2 "},
		{fmt.Sprintf("b3 APPEND Work {%d+}\r\n%s\r\n", len(big), big), "^b3 "},
		{"c1 SELECT INBOX\r\nc2 FETCH 1:* (UID FLAGS RFC822.SIZE BODY[HEADER.FIELDS (SUBJECT)])\r\nc3 NOOP\r\n",
			"^c3 "},
		{"c4 IDLE\r\n", `^\+`},
		{"DONE\r\n", "^c4 "},
		{"c5 STORE 1 +FLAGS (\\Flagged $Junk)\r\nc6 COPY 1 Work\r\nc7 STORE 2 +FLAGS (\\Deleted)\r\nc8 EXPUNGE\r\n",
			"^c8 "},
		{"c9 UID FETCH 1:* BODY[]\r\n", "^c9 "},
		{"d1 UID SEARCH SUBJECT transcript\r\nd2 NONSENSE\r\nd3 FETCH 99 FLAGS\r\n", "^d3 "},
		{"d4 EXAMINE Work\r\nd5 FETCH 1 BODY[]<100.2000>\r\nd6 CLOSE\r\nd7 DELETE Work\r\nd8 LOGOUT\r\n", "^d8 "},
	}
}

func smtpScript(user string) script {
	return script{
		{"", "^220 "},
		{"EHLO client.other.test\r\n", "^250 "},
		{"NOOP\r\n", "^250 "},
		{"BOGUS\r\n", "^5"},
		{"RCPT TO:<" + user + ">\r\n", "^503 "},
		{"MAIL FROM:<a@other.test> SIZE=1000 BODY=8BITMIME\r\nRCPT TO:<" + user +
			">\r\nRCPT TO:<nobody@example.test>\r\nRCPT TO:<x@elsewhere.test>\r\nDATA\r\n", "^(354|503)"},
		{"Subject: one\r\nMessage-ID: <one@other.test>\r\n\r\n..dot\r\nend\r\n.\r\n", "^250 "},
		{"RSET\r\n", "^250 "},
		{"MAIL FROM:<>\r\n", "^250 "},
		{"RCPT TO:<" + user + ">\r\n", "^250 "},
		{"DATA\r\n", "^354 "},
		{"Subject: two\r\nMessage-ID: <two@other.test>\r\n\r\ntwo\r\n.\r\nQUIT\r\n", "^221 "},
	}
}

var changing = regexp.MustCompile(
	`(UIDVALIDITY|UIDNEXT|APPENDUID|COPYUID|HIGHESTMODSEQ|queued as|MODSEQ) ?\(?[0-9A-Za-z:, ]+|\(0\.\d+ \+ \d\.\d+[^)]*\)|user\d\d@|Message-ID: <[^>]*>`)

// normalized leaves out what differs between two runs of the same script on two
// accounts of one server, and what the box says it hides.
func normalized(lines []string) []string {
	hidden := []string{"LOGIN-REFERRALS", "SORT", "SORT=DISPLAY", "THREAD=REFERENCES", "THREAD=REFS",
		"THREAD=ORDEREDSUBJECT", "MULTIAPPEND", "URL-PARTIAL", "CATENATE", "I18NLEVEL=1", "QRESYNC", "ESORT",
		"SEARCHRES", "WITHIN", "CONTEXT=SEARCH",
		"LIST-STATUS", "BINARY", "SNIPPET=FUZZY", "PREVIEW=FUZZY", "PREVIEW", "LITERAL+", "NOTIFY", "LIST-EXTENDED",
		"CHILDREN", "SAVEDATE", "STATUS=SIZE", "COMPRESS=DEFLATE"}
	var out []string
	for _, l := range lines {
		if strings.Contains(l, "CAPABILITY") {
			words := strings.Fields(strings.NewReplacer("[", " ", "]", " ").Replace(l))
			words = slices.DeleteFunc(words, func(w string) bool { return slices.Contains(hidden, w) })
			slices.Sort(words)
			l = strings.Join(words, " ")
		}
		if strings.Contains(l, "[HIGHESTMODSEQ") {
			continue // the server counts from when somebody first asked
		}
		if l = strings.Replace(l, "250-", "250 ", 1); l == "250 CHUNKING" || l == "250 VRFY" || l == "250 ETRN" {
			continue
		}
		if l[0] == '5' && l[3] == ' ' {
			l = l[:3] // what the box refuses itself it refuses in its own words
		}
		out = append(out, changing.ReplaceAllString(l, "…"))
	}
	return out
}

// T1, T2, N22: a client on the same network and one behind a router, with IPv4
// and IPv6, see the same as directly; the server logs their addresses; frames
// bear the addresses that both sides know.
func TestT1_Transcripts(t *testing.T) {
	n := newNetwork(t)
	n.serve(t, 8)
	n.unplugged(t, nil)
	t.Logf("the plan:\n%.600s …", order(t, n.b, "network", "plan"))
	order(t, n.b, "network", "apply")
	if out := order(t, n.b, "network", "apply"); !strings.Contains(out, "nothing to do") {
		t.Fatalf("applied twice, it still finds something to do:\n%s", out)
	}
	type way struct {
		name string
		h    *hosts.Host
		addr string
		ip   string
	}
	ways := []way{{"IPv4", n.client, server4, client4}, {"IPv6", n.client, server6, client6},
		{"IPv4 routed", n.remote, server4, remote4}, {"IPv6 routed", n.remote, server6, remote6}}
	u := n.site.Users
	var direct [][]string
	for i, w := range ways {

		direct = append(direct,
			append(play(t, w.h, at(w.addr, 143), imapScript(u[i], i == 0)),
				play(t, w.h, at(w.addr, 25), smtpScript(u[i]))...))
	}
	if err := n.b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	endBox(t, n.b)
	n.armed(t)
	waitPhase(t, n.b, "protecting")
	clients, servers := must(n.client.Capture("eth0"))(t), must(n.server.Capture("eth0"))(t)
	before, mail := len(n.site.Log()), len(n.site.PostfixLog())
	for i, w := range ways {

		through := append(play(t, w.h, at(w.addr, 143), imapScript(u[4+i], i == 0)),
			play(t, w.h, at(w.addr, 25), smtpScript(u[4+i]))...)
		if d, g := normalized(direct[i]), normalized(through); !slices.Equal(d, g) {
			for k := range max(len(d), len(g)) {
				if k >= len(d) || k >= len(g) || d[k] != g[k] {
					t.Errorf("%s: line %d differs:\ndirect  %.200q\nthrough %.200q", w.name, k, d[k:min(k+3, len(d))],
						g[k:min(k+3, len(g))])
					break
				}
			}
		}
		if l := n.site.Log()[before:]; !strings.Contains(l, "user=<"+u[4+i]+">, method=PLAIN, rip="+w.ip+",") {
			t.Errorf("%s: Dovecot does not log rip=%s:\n%s", w.name, w.ip, l)
		}
		n.until(t, 5*time.Second, "logged by Postfix as client="+w.ip,
			func() bool { return strings.Contains(n.site.PostfixLog()[mail:], "client=unknown["+w.ip+"]") })
	}
	// On the wire: the box is not to be seen.
	sMAC, cMAC, rMAC, bMAC := n.server.MAC("eth0"), n.client.MAC("eth0"), n.router.MAC("eth0"), n.box.MAC("lan0")
	mine := net.ParseIP(boxAddr4)
	for name, c := range map[string][]hosts.Frame{"client": clients.Stop(), "server": servers.Stop()} {
		seen := 0
		for _, f := range c {
			dst, src, ip := f.Data[:6], f.Data[6:12], addresses(f.Data)
			if ip == nil || ip[0].Equal(mine) || ip[1].Equal(mine) || f.Data[12] == 8 && f.Data[23] != 6 ||
				f.Data[12] == 0x86 && f.Data[20] != 6 {
				continue
			}
			seen++
			good := name == "client" && bytes.Equal(src, sMAC) && bytes.Equal(dst, cMAC) ||
				name == "server" && (bytes.Equal(src, cMAC) || bytes.Equal(src, rMAC)) && bytes.Equal(dst, sMAC)
			if bytes.Equal(src, bMAC) && !good {
				t.Errorf("at the %s: a frame from %s to %s with %v → %v", name, net.HardwareAddr(src),
					net.HardwareAddr(dst), ip[0], ip[1])
				break
			}
		}
		if seen < 50 {
			t.Errorf("at the %s only %d frames were captured", name, seen)
		}
	}
	if got := n.client.Neighbour("eth0", server4); got != sMAC.String() {
		t.Errorf("the client has %s for production, which is at %s", got, sMAC)
	}
}

// addresses are source and destination of a frame's IP header.
func addresses(f []byte) []net.IP {
	switch {
	case len(f) >= 34 && f[12] == 8 && f[13] == 0:
		return []net.IP{net.IP(f[26:30]), net.IP(f[30:34])}
	case len(f) >= 54 && f[12] == 0x86 && f[13] == 0xdd:
		return []net.IP{net.IP(f[22:38]), net.IP(f[38:54])}
	}
	return nil
}
