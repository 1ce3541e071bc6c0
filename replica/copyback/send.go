package copyback

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"time"

	"understudy/replica/imapc"
	"understudy/replica/row"
	"understudy/snoop/imapwire"
)

// send appends messages, and returns the UIDs of the first ones: all, or those
// before one that is to be sent alone. If next, the UID that production gives
// next, is not 0, the UIDs before and between the messages are burned in the same
// go, by messages that are to be removed.
func (b *remote) send(rows []*row.Message, next uint32) (uids, burned []uint32, err error) {
	first := next
	var list []imapc.Appending
	var of []*row.Message // what each is; nil: it burns a UID
	for i, r := range rows {
		body, err := b.opt.Messages.Get(r.Ref)
		if err != nil {
			return nil, nil, err
		}
		gap := uint32(0)
		if next != 0 {
			gap, next = r.UID-next, r.UID+1
		}
		if !regular(body) || b.odd(r.Ref) {
			if i > 0 {
				break
			}
			if gap > 0 {
				if err := b.burn(gap); err != nil {
					return nil, nil, err
				}
			}
			uid, err := b.sendAlone(r, body)
			return []uint32{uid}, nil, err
		}
		for range gap {
			list, of = append(list, b.filling()), append(of, nil)
		}
		list, of = append(list, b.appending(r, body)), append(of, r)
	}
	all, err := b.append(list)
	if refusesMessage(err) {
		for _, r := range of[len(all):] {
			if r != nil {
				b.refused(r.Ref) // from now on they are sent alone
			}
		}
		if b.c.AppendsMany() {
			return b.send(rows, first) // none was stored
		}
	}
	for i, uid := range all {
		if of[i] == nil {
			burned = append(burned, uid)
		} else {
			uids = append(uids, uid)
		}
	}
	return uids, burned, err
}

// append appends messages in their order, and returns the UIDs of those up to
// the first that failed: all or none at a time where the server does that.
func (b *remote) append(list []imapc.Appending) (uids []uint32, err error) {
	var tags []string
	n := 1 // messages of one command
	if b.c.AppendsMany() {
		n = len(list)
	}
	for i := 0; i < len(list) && err == nil; i += n {
		var tag string
		tag, err = b.c.SendAppend(list[i], list[i+1:i+n]...)
		tags = append(tags, tag)
	}
	for _, tag := range tags {
		var r imapwire.Response
		if err == nil {
			r, err = b.c.Wait(tag, nil)
		}
		if err != nil {
			return uids, fmt.Errorf("append: %w", err)
		}
		_, some := imapc.AppendUIDs(r)
		if len(some) != n {
			return uids, errNoUID
		}
		uids = append(uids, some...)
	}
	return uids, nil
}

func (b *remote) appending(r *row.Message, body []byte) imapc.Appending {
	flags := r.Flags
	if flags == nil {
		flags = []string{}
	}
	return imapc.Appending{Mailbox: b.mailbox, Flags: flags, Date: r.Date, Body: body}
}

// sendAlone appends a message that production may refuse.
func (b *remote) sendAlone(r *row.Message, body []byte) (uint32, error) {
	_, uid, err := b.c.Append(b.appending(r, body))
	switch {
	case refusesMessage(err):
		return b.sendWrapped(r, body, err)
	case err != nil:
		return 0, fmt.Errorf("append: %w", err)
	case uid == 0:
		return 0, errNoUID
	}
	return uid, nil
}

// sendWrapped appends it as an attachment.
func (b *remote) sendWrapped(r *row.Message, body []byte, why error) (uint32, error) {
	b.tell("mailbox %s of %s: production refuses message %d (%v); it is put there as an attachment",
		b.mailbox, b.name, r.UID, why)
	_, uid, err := b.c.Append(b.appending(r, wrapped(body, r.Ref.String()[:32], r.Date)))
	switch {
	case err != nil:
		return 0, fmt.Errorf("append message %d, which production refuses, as an attachment: %w", r.UID, err)
	case uid == 0:
		return 0, errNoUID
	}
	return uid, nil
}

// A server may refuse a message that the standby took: some look into what they
// store. Such a message is put there as an attachment of another one, byte for
// byte, under its own UID: so nothing is lost, and the others need not wait.

// refusesMessage reports whether an answer to APPEND is about the message, and
// not about the mailbox, the server or the size.
func refusesMessage(err error) bool {
	var no *imapc.NoError
	if !errors.As(err, &no) {
		return false
	}
	switch no.Code {
	case "OVERQUOTA", "LIMIT", "TOOBIG", "UNAVAILABLE", "INUSE", "SERVERBUG", "CONTACTADMIN", "NOPERM", "TRYCREATE",
		"NONEXISTENT", "AUTHORIZATIONFAILED", "READ-ONLY":
		return false
	}
	return true
}

// regular reports whether a message is one that servers surely take: a header of
// fields and nothing else, lines that end in CR LF, no NUL (RFC 5322). Others
// are sent alone, so that a refusal concerns no UID but theirs.
func regular(msg []byte) bool {
	header, _, _ := bytes.Cut(msg, []byte("\r\n\r\n"))
	if len(header) == 0 || bytes.HasPrefix(msg, []byte("\r\n")) || bytes.IndexByte(msg, 0) >= 0 {
		return false
	}
	lf, cr, crlf := bytes.Count(msg, []byte{'\n'}), bytes.Count(msg, []byte{'\r'}), bytes.Count(msg, []byte("\r\n"))
	if lf != crlf || cr != crlf {
		return false
	}
	for i, line := range bytes.Split(header, []byte("\r\n")) {
		if i > 0 && len(line) > 0 && (line[0] == ' ' || line[0] == '\t') {
			continue
		}
		name, _, ok := bytes.Cut(line, []byte{':'})
		odd := func(c byte) bool { return c <= ' ' || c >= 0x7f }
		if name = bytes.TrimRight(name, " \t"); !ok || len(name) == 0 || slices.ContainsFunc(name, odd) {
			return false
		}
	}
	return true
}

// wrapped is a message that holds another one. It is always the same for the
// same message.
func wrapped(msg []byte, id string, date time.Time) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "From: Understudy <understudy@invalid>\r\n"+
		"Subject: A message that the mail server did not take as it was\r\n"+
		"Date: %s\r\nMessage-ID: <%s@understudy.invalid>\r\n"+
		"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=\"=_%s\"\r\n\r\n",
		date.Format(time.RFC1123Z), id, id)
	fmt.Fprintf(&b, "--=_%s\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n"+
		"This message was stored while the mail server was away, and the server does\r\n"+
		"not accept its form. It is attached, byte for byte.\r\n\r\n", id)
	fmt.Fprintf(&b, "--=_%s\r\nContent-Type: application/octet-stream; name=\"message.eml\"\r\n"+
		"Content-Disposition: attachment; filename=\"message.eml\"\r\nContent-Transfer-Encoding: base64\r\n\r\n", id)
	text := base64.StdEncoding.EncodeToString(msg)
	for len(text) > 0 {
		n := min(len(text), 76)
		b.WriteString(text[:n] + "\r\n")
		text = text[n:]
	}
	fmt.Fprintf(&b, "--=_%s--\r\n", id)
	return b.Bytes()
}
