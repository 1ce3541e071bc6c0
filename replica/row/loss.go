package row

import "time"

// Loss is the ledger of one takeover: what the standby may lack that production
// had, and, once production is back, what it did lack.
type Loss struct {
	Epoch   uint64    `json:"epoch"`
	At      time.Time `json:"at"`
	Planned bool      `json:"planned"` // everything was read before
	May     []MayLack `json:"may_lack"`
	Seen    []SeenTo  `json:"seen_until"`
	Lacked  []Lacked  `json:"lacked"`
	More    int       `json:"more,omitempty"` // that were lacked and are not listed
}

// MayLack is one thing that was seen and is not, or not whole, in the replica.
type MayLack struct {
	Account   string `json:"account"`
	Mailbox   string `json:"mailbox,omitempty"`
	MessageID string `json:"message_id,omitempty"`
	Why       string `json:"why"`
}

// SeenTo says up to when all of an account was read. What reached production
// later and not through this box, nobody can know before it is back.
type SeenTo struct {
	Account string    `json:"account"`
	Until   time.Time `json:"until"` // zero: never whole
}

// Lacked is one thing that production turned out to have; it is in the replica
// now.
type Lacked struct {
	Account   string    `json:"account"`
	Mailbox   string    `json:"mailbox"`
	UID       uint32    `json:"uid"`
	MessageID string    `json:"message_id,omitempty"`
	From      string    `json:"from,omitempty"`
	Subject   string    `json:"subject,omitempty"`
	Size      int64     `json:"size,omitempty"`
	Date      time.Time `json:"date"`
	What      string    `json:"what"` // message, flags
}
