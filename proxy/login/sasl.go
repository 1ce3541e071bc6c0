package login

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"

	"understudy/proxy/seam"
	"understudy/snoop/imapwire"
)

// Limits of what a client may call itself, and prove it by, in bytes.
const (
	maxUser     = 512
	maxPassword = 4096
)

// New refuses what SASL PLAIN cannot carry.
func New(authz, user, pass string) (seam.Login, error) {
	control := func(r rune) bool { return r < 0x20 || r == 0x7f }
	if user == "" || len(user)+len(authz) > maxUser || len(pass) > maxPassword ||
		strings.ContainsFunc(authz+user, control) ||
		strings.ContainsRune(pass, 0) {
		return seam.Login{}, fmt.Errorf("%w: user name or password", imapwire.ErrSyntax)
	}
	if authz == "" {
		authz = user
	}
	return seam.Login{User: authz, AuthUser: user, Password: pass}, nil
}

// SASL runs the server's side of a SASL exchange; ask sends a base64
// challenge and returns the answer's line.
func SASL(mech, initial string, has bool, ask func(challenge string) (string, error)) (seam.Login, error) {
	next := func(challenge string) ([]byte, error) {
		line := initial
		if !has {
			var err error
			if line, err = ask(challenge); err != nil {
				return nil, err
			}
		}
		has = false
		if line == "*" {
			return nil, fmt.Errorf("%w: cancelled", imapwire.ErrSyntax)
		}
		if line == "=" {
			line = ""
		}
		b, err := base64.StdEncoding.DecodeString(line)
		if err != nil {
			return nil, fmt.Errorf("%w: bad base64", imapwire.ErrSyntax)
		}
		return b, nil
	}
	switch mech {
	case "PLAIN":
		b, err := next("")
		if err != nil {
			return seam.Login{}, err
		}
		f := bytes.Split(b, []byte{0})
		if len(f) != 3 {
			return seam.Login{}, fmt.Errorf("%w: bad PLAIN response", imapwire.ErrSyntax)
		}
		return New(string(f[0]), string(f[1]), string(f[2]))
	case "LOGIN":
		user, err := next("VXNlcm5hbWU6")
		if err != nil {
			return seam.Login{}, err
		}
		pass, err := next("UGFzc3dvcmQ6")
		if err != nil {
			return seam.Login{}, err
		}
		return New("", string(user), string(pass))
	case "XOAUTH2", "OAUTHBEARER":
		b, err := next("")
		if err != nil {
			return seam.Login{}, err
		}
		return token(mech, b)
	}
	return seam.Login{}, fmt.Errorf("%w: unknown mechanism", imapwire.ErrSyntax)
}

// token takes the user out of an XOAUTH2 or OAUTHBEARER response.
func token(mech string, b []byte) (seam.Login, error) {
	field, prefix := "", "user="
	if mech == "XOAUTH2" {
		head, _, _ := bytes.Cut(b, []byte{1})
		field = string(head)
	} else if parts := strings.SplitN(string(b), ",", 3); len(parts) == 3 {
		field, prefix = parts[1], "a="
	}
	user, ok := strings.CutPrefix(field, prefix)
	if !ok {
		return seam.Login{}, fmt.Errorf("%w: token without a user", imapwire.ErrSyntax)
	}
	l, err := New("", user, "")
	l.Mechanism, l.Response = mech, b
	return l, err
}
