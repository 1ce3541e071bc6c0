package copyback

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"testing"
	"time"

	"understudy/replica/imapc"
)

// N13: which messages a server may refuse, and which refusals are about them.
func TestRegular(t *testing.T) {
	for text, want := range map[string]bool{
		"Subject: a\r\n\r\nbody\r\n":              true,
		"Subject: a\r\n folded\r\nX-Y: b\r\n\r\n": true,
		"Subject : a\r\n\r\n":                     true,
		"\r\nbody only\r\n":                       false,
		"no colon\r\n\r\n":                        false,
		" folded: first\r\n\r\n":                  false,
		"Sub ject: a\r\n\r\n":                     false,
		"Subject: a\n\nbody\n":                    false,
		"Subject: a\r\n\r\nbare\rreturn":          false,
		"Subject: a\r\n\r\n\x00":                  false,
		"":                                        false,
	} {
		if got := regular([]byte(text)); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
	for code, want := range map[string]bool{"": true, "CANNOT": true,
		"OVERQUOTA": false, "TOOBIG": false, "UNAVAILABLE": false} {
		if got := refusesMessage(&imapc.NoError{Command: "APPEND", Name: "NO", Code: code}); got != want {
			t.Errorf("[%s]: %v", code, got)
		}
	}
	if refusesMessage(io.EOF) || refusesMessage(nil) ||
		!refusesMessage(errors.Join(io.EOF, &imapc.NoError{Name: "BAD"})) {
		t.Error("a lost connection is no refusal, and BAD is one")
	}
}

// A message that is wrapped can be got back byte for byte.
func TestWrapped(t *testing.T) {
	msg := []byte("no header at all\x00\rwith anything\n in it \xff")
	b := wrapped(msg, "0123456789abcdef", time.Unix(1_700_000_000, 0))
	if !regular(b) || !bytes.Equal(b, wrapped(msg, "0123456789abcdef", time.Unix(1_700_000_000, 0))) {
		t.Errorf("not regular, or not the same twice: %q", b)
	}
	m, err := mail.ReadMessage(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	_, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	r := multipart.NewReader(m.Body, params["boundary"])
	for n := 0; ; n++ {
		p, err := r.NextPart()
		if err != nil {
			t.Fatal(err)
		}
		if n == 1 {
			got, err := io.ReadAll(base64.NewDecoder(base64.StdEncoding, p))
			if err != nil || !bytes.Equal(got, msg) {
				t.Errorf("%q, %v", got, err)
			}
			return
		}
	}
}
