package imapsession

import (
	"testing"

	"understudy/snoop/imapwire"
)

// B2: by what a literal that was cut is fetched again; "" where it cannot be.
func TestB2_Section(t *testing.T) {
	for line, want := range map[string]string{
		"* 1 FETCH (BODY[] {10}":                       "BODY.PEEK[]",
		"* 1 FETCH (UID 3 BODY[1.2] ~{10}":             "BODY.PEEK[1.2]",
		"* 1 FETCH (RFC822 {10}":                       "BODY.PEEK[]",
		"* 1 FETCH (FLAGS () RFC822.HEADER {10}":       "BODY.PEEK[HEADER]",
		"* 1 FETCH (FLAGS () RFC822.TEXT {10}":         "BODY.PEEK[TEXT]",
		"* 1 FETCH (BODY[]<5> {10}":                    "BODY.PEEK[]<5.10>",
		"* 1 FETCH (BODY[HEADER.FIELDS (A B)] {10}":    "BODY.PEEK[HEADER.FIELDS (A B)]",
		"* 1 FETCH (BODY[HEADER.FIELDS (\"A]\")] {10}": "",
		"* 1 FETCH (ENVELOPE ({10}":                    "",
		" BODY[] {3}":                                  "BODY.PEEK[]",
	} {
		u := Unit{}
		b := []byte(line + "\r\n")
		u.piece(imapwire.Piece{Kind: imapwire.Line, N: len(b), Lit: imapwire.ParseMarker(b)}, b)
		u.UID = 3
		if got := u.Ask(); got != want || u.Known() != (want != "") {
			t.Errorf("%s: %q", line, got)
		}
	}
}
