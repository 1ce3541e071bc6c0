// Package row holds the replica's data as plain values: accounts, mailboxes,
// messages, held deliveries, routes, queued mail and tasks, with the codec of
// the numerous ones. It is pure, so that every part of the house may speak of
// mail in the same words.
package row

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"time"
)

// ErrCorrupt tells a stored value that cannot be read.
var ErrCorrupt = errors.New("corrupt row")

// Ref names an immutable message by the SHA-256 of its bytes.
type Ref struct {
	Sum  [sha256.Size]byte
	Size int64 // bytes
}

// RefOf computes the name of b.
func RefOf(b []byte) Ref { return Ref{sha256.Sum256(b), int64(len(b))} }

// IsZero reports whether r names nothing.
func (r Ref) IsZero() bool { return r == Ref{} }

// Compare orders references.
func (r Ref) Compare(o Ref) int {
	if c := bytes.Compare(r.Sum[:], o.Sum[:]); c != 0 {
		return c
	}
	return cmp.Compare(r.Size, o.Size)
}

// String is the hexadecimal sum.
func (r Ref) String() string { return hex.EncodeToString(r.Sum[:]) }

// MailboxID names a mailbox within its account for its whole life, renames
// included.
type MailboxID uint32

// Account is one user of production.
type Account struct {
	Name     string    // as production knows it
	LastSync time.Time // end of the last complete sweep
	LastErr  string    // of the last sweep, "" if it went well
	NextID   MailboxID
	Home     Home // which side answers for the account
}

// Home says which side may change an account.
type Home uint8

// The two sides.
const (
	Production Home = iota
	Standby
)

// Mailbox is one folder. Counters are those that clients see.
//
// Large: it is one row on disk, whose format may only grow, and has no state beside it.
type Mailbox struct {
	ID          MailboxID
	Name        string // as on the wire (modified UTF-7)
	Sep         byte   // hierarchy separator, 0 for none
	Attrs       []string
	Subscribed  bool
	NoSelect    bool
	UIDValidity uint32
	UIDNext     uint32
	ModSeq      uint64 // highest
	Messages    int

	// ProdUIDValidity is production's own number where it differs from the
	// one that clients see; 0 means that there is no difference.
	ProdUIDValidity uint32
	// SyncedModSeq is production's HIGHESTMODSEQ at the last sync, 0 if none.
	SyncedModSeq uint64
	SyncedNext   uint32 // production's UIDNEXT at the last sync
	Synced       bool   // was copied whole at least once
	// Born: made by the standby; production has to make it at copy-back.
	Born bool
	// Gap is added to UIDNext when the standby assigns its first UID: production
	// may have stored messages unseen just before it died.
	Gap uint32
	// Keywords production says clients may keep (PERMANENTFLAGS).
	Permanent []string
}

// OnProduction is the UIDVALIDITY that production has for m.
func (m Mailbox) OnProduction() uint32 {
	if m.ProdUIDValidity != 0 {
		return m.ProdUIDValidity
	}
	return m.UIDValidity
}

// TakeUID assigns the next UID.
func (m *Mailbox) TakeUID() uint32 {
	m.UIDNext += m.Gap
	m.Gap = 0
	m.UIDNext++
	return m.UIDNext - 1
}

// Message is one message of a mailbox.
type Message struct {
	UID    uint32
	Flags  []string // sorted; no \Recent
	ModSeq uint64
	Date   time.Time // INTERNALDATE, to the second, in its own zone
	Size   int64     // RFC822.SIZE as production states it
	Ref    Ref
	// Unsettled: learned from the wire; date, size and modseq are not yet as
	// production states them.
	Unsettled bool
	// Fresh: made by the standby and not yet on production.
	Fresh bool
	// Tail is set of what the standby delivered by SMTP: the length of the
	// message as its sender gave it, without the headers prepended here.
	Tail int64
}

// SetFlags stores flags sorted, without doubles and without \Recent.
func (m *Message) SetFlags(flags []string) { m.Flags = NormalFlags(flags) }

// NormalFlags returns flags sorted, system flags in their usual spelling.
func NormalFlags(flags []string) []string {
	out := make([]string, 0, len(flags))
	for _, f := range flags {
		if strings.HasPrefix(f, `\`) {
			f = canonical(f)
		}
		if f != `\Recent` {
			out = append(out, f)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func canonical(f string) string {
	for _, s := range []string{`\Seen`, `\Answered`, `\Flagged`, `\Deleted`, `\Draft`, `\Recent`} {
		if strings.EqualFold(s, f) {
			return s
		}
	}
	return f
}

// HasFlag reports whether m carries f, in any case.
func (m *Message) HasFlag(f string) bool {
	return slices.ContainsFunc(m.Flags, func(g string) bool { return strings.EqualFold(f, g) })
}

const messageV1 = 1

// Encode writes m for the store.
func (m *Message) Encode() []byte {
	b := make([]byte, 0, 96+16*len(m.Flags))
	b = append(b, messageV1)
	b = binary.AppendUvarint(b, uint64(m.UID))
	b = binary.AppendUvarint(b, m.ModSeq)
	b = binary.AppendVarint(b, m.Date.Unix())
	_, zone := m.Date.Zone()
	b = binary.AppendVarint(b, int64(zone))
	b = binary.AppendVarint(b, m.Size)
	b = append(b, m.Ref.Sum[:]...)
	b = binary.AppendVarint(b, m.Ref.Size)
	b = binary.AppendVarint(b, m.Tail)
	var bits byte
	if m.Unsettled {
		bits |= 1
	}
	if m.Fresh {
		bits |= 2
	}
	b = append(b, bits)
	return append(b, strings.Join(m.Flags, " ")...)
}

// DecodeMessage reads what Encode wrote.
func DecodeMessage(b []byte) (*Message, error) {
	if len(b) < 1 || b[0] != messageV1 {
		return nil, ErrCorrupt
	}
	d := decoder{b: b[1:]}
	m := &Message{UID: uint32(d.uvarint()), ModSeq: d.uvarint()}
	sec, zone := d.varint(), d.varint()
	m.Date = time.Unix(sec, 0).In(time.FixedZone("", int(zone)))
	m.Size = d.varint()
	copy(m.Ref.Sum[:], d.bytes(sha256.Size))
	m.Ref.Size, m.Tail = d.varint(), d.varint()
	bits := d.bytes(1)
	if d.bad {
		return nil, ErrCorrupt
	}
	m.Unsettled, m.Fresh = bits[0]&1 != 0, bits[0]&2 != 0
	m.Flags = strings.Fields(string(d.b))
	return m, nil
}

type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) advance(n int) {
	if n <= 0 {
		d.bad, d.b = true, nil
		return
	}
	d.b = d.b[n:]
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	d.advance(n)
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	d.advance(n)
	return v
}

func (d *decoder) bytes(n int) []byte {
	if len(d.b) < n {
		d.bad, d.b = true, nil
		return make([]byte, n)
	}
	out := d.b[:n]
	d.b = d.b[n:]
	return out
}
