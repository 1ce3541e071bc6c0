package lab

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"understudy/replica/imapc"
	"understudy/snoop/imapwire"
)

// spaces between adjacent address lists and body parts are a matter of taste;
// timings and texts of answers are not compared.
var taste = regexp.MustCompile(`\) \(`)

var words = regexp.MustCompile(`(FLAGS|LIST|LSUB|CAPABILITY) ?\(?([^()]*)\)?`)

// normal orders what has no order, and leaves out what a server may tell or not.
func normal(line string) string {
	return words.ReplaceAllStringFunc(line, func(m string) string {
		name, rest, _ := strings.Cut(m, " ")
		f := strings.Fields(strings.Trim(rest, "()"))
		if name != "FLAGS" && name != "CAPABILITY" {
			if !strings.HasPrefix(rest, "(") {
				return m
			}
			f = slices.DeleteFunc(f, func(a string) bool {
				return a == `\UnMarked` || a == `\Marked` || a == `\HasNoChildren` || a == `\HasChildren` ||
					name == "LSUB"
			})
		}
		slices.Sort(f)
		return name + " (" + strings.Join(f, " ") + ")"
	})
}

// transcript runs commands and returns their untagged data, sorted, and the
// outcome of each.
func transcript(t *testing.T, c *imapc.Conn, cmds []string) []string {
	t.Helper()
	var out []string
	for _, cmd := range cmds {
		var lines []string
		r, err := c.Do(cmd, func(r imapwire.Response, unit []byte) error {
			line := string(bytes.TrimSpace(unit))
			if r.Status() {
				line = fmt.Sprintf("* %s [%s %s]", r.Name, r.Code, r.Arg)
			}
			switch {
			case r.Name == "RECENT", r.Code == "", r.Code == "HIGHESTMODSEQ", r.Code == "PERMANENTFLAGS",
				r.Code == "UNSEEN", r.Name == "FLAGS":
				if r.Status() || r.Name == "RECENT" || r.Name == "FLAGS" {
					return nil // told differently, and that is fine
				}
			}
			lines = append(lines, normal(taste.ReplaceAllString(line, ")(")))
			return nil
		})
		slices.Sort(lines)
		outcome := r.Name
		if err != nil {
			outcome = "refused"
		}
		for _, l := range append(lines, outcome) {
			out = append(out, cmd+" ⇒ "+l)
		}
	}
	return out
}

// T19, R2, R3, N15: what a client reads in the outage is what production told.
func TestT19_ReadsAlike(t *testing.T) {
	s := newSite(t, 1)
	u := s.Users[0]
	fill(t, s, u, 50)
	d := dial(t, direct(s), u)
	nested := "From: \"Ada, L.\" <ada@d.test>, Group: b@d.test;\r\nTo: <d@d.test>\r\nCc: (x) e@d.test\r\nSubject: " +
		"=?utf-8?q?Gr=C3=BC=C3=9Fe?= \"x\"\r\nDate: Mon, 02 Nov 2026 10:00:00 +0100\r\nMessage-ID: " +
		"<n@d.test>\r\nIn-Reply-To: <m@d.test>\r\nMIME-Version: 1.0\r\n" +
		"Content-Type: multipart/mixed; boundary=\"b 1\"\r\n\r\npreamble\r\n--b 1\r\nContent-Type: " +
		"multipart/alternative; boundary=b2\r\n\r\n--b2\r\nContent-Type: text/plain; charset=iso-8859-1; " +
		"format=flowed\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\nna=EFve\r\n--b2\r\nContent-Type: " +
		"text/html\r\nContent-ID: <cid@x>\r\n\r\n<p>x</p>\r\n--b2--\r\n" +
		"--b 1\r\nContent-Type: message/rfc822\r\nContent-Disposition: attachment; " +
		"filename=\"m.eml\"\r\n\r\nSubject: inner\r\nFrom: i@d.test\r\n\r\ninner body\r\n\r\n--b 1\r\nContent-Type: " +
		"image/png; name=a.png\r\nContent-Transfer-Encoding: base64\r\nContent-Language: de, " +
		"en\r\nContent-Description: a picture\r\n\r\nAAAA\r\n--b 1--\r\nepilogue\r\n"
	if _, _, err := d.Append(imapc.Appending{Mailbox: "INBOX", Body: []byte(nested)}); err != nil {
		t.Fatal(err)
	}
	do(t, d, "CREATE Trash")
	do(t, d, "SUBSCRIBE Sent")
	do(t, d, "CREATE \"with space/and (parens)\"")
	b := newBox(t, s, nil)
	waitPhase(t, b, "protecting")
	c := dial(t, b.IMAP, u)
	do(t, c, "SELECT INBOX")
	cmds := []string{"CAPABILITY", "NAMESPACE", `LIST "" "*"`, `LIST "" "%"`, `LIST "Archive/" "%"`, `LIST "" ""`,
		`LSUB "" "*"`, `LIST (SUBSCRIBED) "" "*"`,
		`LIST "" "*" RETURN (CHILDREN SPECIAL-USE)`, `LIST (SPECIAL-USE) "" "*"`,
		`LIST "" (INBOX Sent) RETURN (STATUS (MESSAGES UIDNEXT UIDVALIDITY UNSEEN SIZE))`,
		"STATUS Sent (MESSAGES UIDNEXT UIDVALIDITY UNSEEN SIZE)", "STATUS Nope (MESSAGES)", "SELECT Nope",
		"EXAMINE Sent", "SELECT INBOX",
		"FETCH 1:* (UID FLAGS INTERNALDATE RFC822.SIZE)", "UID FETCH 1:* (BODY.PEEK[HEADER])",
		"UID FETCH 1:* (BODY.PEEK[TEXT])", "UID FETCH 1:* (RFC822.HEADER)",
		"UID FETCH 1:* (ENVELOPE)", "UID FETCH 1:* (BODY)", "UID FETCH 1:* (BODYSTRUCTURE)",
		"UID FETCH 1:* (BODY.PEEK[HEADER.FIELDS (Subject FROM)])",
		"UID FETCH 1:* (BODY.PEEK[HEADER.FIELDS.NOT (Subject)])", "UID FETCH 1:* (BODY.PEEK[1])",
		"UID FETCH 1:* (BODY.PEEK[1.1])",
		"UID FETCH 1:* (BODY.PEEK[2])", "UID FETCH 1:* (BODY.PEEK[2.HEADER])", "UID FETCH 1:* (BODY.PEEK[2.TEXT])",
		"UID FETCH 1:* (BODY.PEEK[1.MIME])", "UID FETCH 1:* (BODY.PEEK[3.MIME])", "UID FETCH 1:* (BODY.PEEK[]<10.20>)",
		"UID FETCH 1:* (BODY.PEEK[]<99999.20>)",
		"SEARCH ALL", "SEARCH UNSEEN", "SEARCH FLAGGED", "SEARCH KEYWORD work", "SEARCH LARGER 2000",
		"SEARCH SUBJECT message", "SEARCH FROM other", "SEARCH BODY xxx", "SEARCH TEXT inner",
		"SEARCH HEADER Message-ID n@d",
		"SEARCH SENTSINCE 1-Nov-2026", "SEARCH BEFORE 1-Feb-2025", "SEARCH OR SEEN FLAGGED", "SEARCH 2:3",
		"UID SEARCH UID 3:*", "SEARCH RETURN (MIN MAX COUNT) ALL", "UID SEARCH RETURN (ALL) SEEN",
		"SEARCH CHARSET UTF-8 SUBJECT {7+}\r\nGr\xc3\xbc\xc3\x9fe",
		"COPY 1 Nope", "FETCH 999 FLAGS", "UID FETCH 999 FLAGS", "STORE 999 +FLAGS (x)", "CREATE INBOX", "CREATE Sent",
		"DELETE Nope", "DELETE INBOX", "RENAME Nope X", "RENAME Sent Trash", "SUBSCRIBE Nope/none"}
	// Dovecot lets one subscribe to nothing
	cmds = slices.DeleteFunc(cmds, func(c string) bool { return strings.HasPrefix(c, "SUBSCRIBE Nope") })
	want := transcript(t, c, cmds)
	c.Close()
	s.Kill()
	waitPhase(t, b, "serving")
	c = dial(t, b.IMAP, u)
	do(t, c, "SELECT INBOX")
	got := transcript(t, c, cmds)
	have := map[string]bool{}
	for _, l := range got {
		have[l] = true
	}
	told := map[string]bool{}
	n := 0
	for _, l := range want {
		told[l] = true
		if !have[l] {
			n++
			t.Errorf("production: %.300q", l)
		}
	}
	for _, l := range got {
		if !told[l] {
			t.Errorf("standby:    %.300q", l)
		}
	}
	t.Logf("%d of %d answers differ", n, len(want))
}
