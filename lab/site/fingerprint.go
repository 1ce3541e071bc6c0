package site

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"sort"
	"strings"

	"understudy/replica/imapc"
	"understudy/replica/row"
)

// Fingerprint is a store as one text: a line for each mailbox with its
// UIDVALIDITY and subscription, and one for each message with UID, flags, date,
// size and digest. Two stores agree when their texts are equal.
type Fingerprint struct {
	Lines []string
	// Bodies counts each digest over all mailboxes.
	Bodies map[string]int
}

// String is the text.
func (f Fingerprint) String() string { return strings.Join(f.Lines, "\n") }

// Diff tells the first differences of two fingerprints, "" if there are none.
func (f Fingerprint) Diff(g Fingerprint) string {
	have := map[string]bool{}
	for _, l := range g.Lines {
		have[l] = true
	}
	mine := map[string]bool{}
	var out []string
	for _, l := range f.Lines {
		mine[l] = true
		if !have[l] {
			out = append(out, "- "+l)
		}
	}
	for _, l := range g.Lines {
		if !mine[l] {
			out = append(out, "+ "+l)
		}
	}
	if len(out) > 40 {
		out = append(out[:40], fmt.Sprintf("… and %d more", len(out)-40))
	}
	return strings.Join(out, "\n")
}

// Take reads the fingerprint of an account, bodies included.
func Take(c *imapc.Conn) (Fingerprint, error) {
	f := Fingerprint{Bodies: map[string]int{}}
	list, err := c.List()
	if err != nil {
		return f, err
	}
	for _, l := range list {
		if l.NoSelect() {
			f.Lines = append(f.Lines, fmt.Sprintf("%s noselect", l.Name))
			continue
		}
		sel, err := c.Select(l.Name, true)
		if err != nil {
			return f, err
		}
		f.Lines = append(f.Lines, fmt.Sprintf("%s uidvalidity=%d subscribed=%v", l.Name, sel.UIDValidity, l.Subscribed))
		if sel.Exists == 0 {
			continue
		}
		err = c.Fetch("1:*", "(UID FLAGS INTERNALDATE RFC822.SIZE BODY.PEEK[])", func(m imapc.Message) error {
			sum := sha256.Sum256(m.Body)
			digest := hex.EncodeToString(sum[:8])
			f.Bodies[digest]++
			flags := row.NormalFlags(m.Flags)
			f.Lines = append(f.Lines,
				fmt.Sprintf("%s uid=%d %v %s size=%d %s", l.Name, m.UID, flags,
					m.Date.UTC().Format("2006-01-02T15:04:05"), m.Size, digest))
			return nil
		})
		if err != nil {
			return f, err
		}
	}
	sort.Strings(f.Lines)
	return f, nil
}
