package lab

import (
	"encoding/base64"
	"fmt"
	"testing"
	"time"

	"understudy/lab/hosts"
	"understudy/lab/site"
	"understudy/replica/imapc"
)

// T7, T10 by a mirror port: with sweeps off, the replica follows what clients do
// with production directly; passwords are learned; what is lost is read.
func TestT7_MirrorPort(t *testing.T) {
	n := newNetwork(t)
	n.serve(t, 3)
	check(t, hosts.Cable(n.box, "tap0", n.cable, "mirror"))
	u := n.site.Users
	fill(t, n.site, u[0], 20)
	more := quick()
	for k, v := range map[string]string{"network.tap": `"tap0"`, "mirror.sweep": `"0s"`, "mirror.idle": "0"} {
		more[k] = v
	}
	early := func() *imapc.Conn {
		// Its beginning is not seen.
		check(t, n.lan.Unplug("box"))
		check(t, hosts.Cable(n.cable, "up", n.lan, "down"))
		check(t, n.lan.Join("down"))
		check(t, n.cable.Join("up"))
		return login(t, n.client, server4, u[2])
	}()
	off, err := n.cable.Mirror("mirror", "server", "up")
	check(t, err)
	check(t, hosts.Cable(n.box, "eth0", n.lan, "box2"))
	check(t, n.lan.Join("box2"))
	check(t, n.box.Addr("eth0", false, boxAddr4+"/24", boxAddr6+"/64"))
	for k, v := range map[string]string{"network.mode": `"one-arm"`, "network.lan": `"eth0"`, "network.server": `""`,
		"network.own": "[]", "failover.fence_command": `["true"]`} {
		more[k] = v
	}
	n.plug(t, more)
	waitPhase(t, n.b, "protecting")
	same(t, n.site, n.b, u[0], 5*time.Second)
	fetched := must(n.b.Status(t.Context()))(t).Fetched

	// All that is said of one account goes over the tapped wire.
	c := login(t, n.client, server4, u[0])
	do(t, c, "SELECT INBOX")
	for i := range 3 {
		if _, _,
			err := c.Append(imapc.Appending{Mailbox: "INBOX", Flags: []string{`\Seen`},
			Body: message(fmt.Sprint("tapped", i), 5000)}); err != nil {
			t.Fatal(err)
		}
	}
	do(t, c, "CREATE Tapped")
	do(t, c, "UID STORE 1:5 +FLAGS (\\Flagged)")
	do(t, c, "UID COPY 2 Tapped")
	do(t, c, "UID MOVE 3 Tapped")
	do(t, c, "UID STORE 4 +FLAGS (\\Deleted)")
	do(t, c, "EXPUNGE")
	same(t, n.site, n.b, u[0], 5*time.Second)
	n.until(t, 5*time.Second, "settled", func() bool { return must(n.b.Status(t.Context()))(t).Tap.Changes >= 9 })
	st := must(n.b.Status(t.Context()))(t)
	if st.Fetched > fetched+1 { // a sync may have been quicker
		t.Errorf("%d bodies were fetched, though they crossed the wire", st.Fetched-fetched)
	}
	if st.Tap == nil || st.Tap.Sessions < 1 || st.Tap.Changes < 9 || st.Tap.Abandoned != 0 || st.Tap.Gaps != 0 {
		t.Errorf("the mirror port counts %+v", st.Tap)
	}
	t.Logf("%+v; %d of the changes settled from the wire, %d by a sync", *st.Tap, st.Wire, st.BySync)

	// Other ways to log in, with IPv6 and behind the router.
	play(t, n.remote, at(server6, 143), script{{"", `^\* OK`}, {"a AUTHENTICATE LOGIN\r\n", `^\+`},
		{base64.StdEncoding.EncodeToString([]byte(u[1])) + "\r\n", `^\+`},
		{base64.StdEncoding.EncodeToString([]byte(site.Password(u[1]))) + "\r\n", "^a OK"}, {"b LOGOUT\r\n", "^b "}})
	play(t, n.remote, at(server4, 587),
		script{{"", "^220"}, {"EHLO c.test\r\n", "^250 "}, {"AUTH PLAIN\r\n", "^334"}, {plain(u[2]) + "\r\n", "^235"},
			{"MAIL FROM:<" + u[2] + ">\r\nRCPT TO:<" + u[1] + ">\r\nDATA\r\n", "^354"},
			{"Message-ID: <submitted@other.test>\r\nSubject: x\r\n\r\n..dot\r\n.\r\nQUIT\r\n", "^221"}})
	n.until(t, 5*time.Second, "learned", func() bool {
		s := must(n.b.Status(t.Context()))(t)
		return s.Verifiers == 3 && s.Tap.Messages == 1 && s.Held == 0
	})
	same(t, n.site, n.b, u[1], 5*time.Second)

	// What was not seen is read, not guessed.
	check(t, off())
	if _, _, err := c.Append(imapc.Appending{Mailbox: "INBOX", Body: message("unseen", 9000)}); err != nil {
		t.Fatal(err)
	}
	_, err = n.cable.Mirror("mirror", "server", "up")
	check(t, err)
	if _, _, err := c.Append(imapc.Appending{Mailbox: "INBOX", Body: message("after", 9000)}); err != nil {
		t.Fatal(err)
	}
	same(t, n.site, n.b, u[0], 20*time.Second)
	do(t, early, "NOOP")
	n.until(t, 5*time.Second, "a gap", func() bool {
		tap := must(n.b.Status(t.Context()))(t).Tap
		return tap.Gaps+tap.Abandoned >= 1 && tap.Midway > 0
	})

	// It was worth something: in an outage the users can log in.
	n.site.Kill()
	waitPhase(t, n.b, "serving")
	for _, x := range u {
		check(t, served(n.client, server4, x, 5*time.Second))
	}
}
