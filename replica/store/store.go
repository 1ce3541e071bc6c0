// Package store keeps the accounts of the replica, with their mailboxes and
// messages, as rows of a metadata store.
//
// Implementation notes. The account is the partition: every change goes
// through Update, which holds the account's lock, collects one batch, commits
// it durably, and only then shows it to readers and watchers. Ledgers that are
// no part of an account join its batch by Tx.Stage, and show what they staged by
// Tx.OnCommit. Readers take immutable snapshots and hold no lock. Who may write is
// a field of the account, Home: the mirror and the transaction cache (Wire) write
// while it is Production, the standby (Acting) while it is Standby; the other side
// gets ErrNotHome, so a late result of one can never overwrite the other's. While
// Home is Standby the first change of a row saves what it was (Base, for the
// three-way merge). Messages are stored before rows refer to them. Lock order:
// account.mu before Store.mu.
package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strings"
	"sync"
	"time"

	"understudy/replica/meta"
	"understudy/replica/row"
)

// Errors of the store; the standby turns them into protocol answers.
var (
	ErrNotHome   = errors.New("the other side answers for this account")
	ErrNoAccount = errors.New("no such account")
	ErrNoMailbox = errors.New("no such mailbox")
	ErrExists    = errors.New("mailbox exists")
	ErrName      = errors.New("bad mailbox name")
)

// Options of New.
type Options struct {
	Meta meta.Store
	// Primary: the store is nobody's replica but a server's own; the standby
	// engine may always write and no base is kept.
	Primary bool
	// FoldCase: user names that differ in case only are one account.
	FoldCase bool
}

// Store holds the accounts.
type Store struct {
	opt Options

	mu       sync.Mutex
	accounts map[string]*account
	cached   int // rows in snapshots
}

type account struct {
	name  string // never changes
	mu    sync.Mutex
	info  row.Account
	seal  bool // the standby must not change it
	boxes map[row.MailboxID]*row.Mailbox
	snaps map[row.MailboxID]*row.Snapshot
	watch map[chan struct{}]struct{}

	clock   uint64
	touched map[row.MailboxID]map[uint32]uint64
}

// maxCached bounds the message rows that snapshots keep in memory (about 300
// bytes each).
const maxCached = 400_000

// New returns a store without accounts; Load reads them.
func New(o Options) *Store { return &Store{opt: o, accounts: map[string]*account{}} }

// Load reads all accounts and their mailboxes, in place of those in memory.
func (s *Store) Load(sn meta.Snap) error {
	accounts := map[string]*account{}
	for _, v := range sn.Scan(meta.Range(meta.Accounts())) {
		var info row.Account
		if err := json.Unmarshal(v, &info); err != nil {
			return fmt.Errorf("account row: %w", err)
		}
		a := newAccount(info)
		for _, v := range sn.Scan(meta.Range(meta.MailboxesOf(a.name))) {
			m := &row.Mailbox{}
			if err := json.Unmarshal(v, m); err != nil {
				return fmt.Errorf("mailbox row: %w", err)
			}
			a.boxes[m.ID] = m
		}
		accounts[s.fold(a.name)] = a
	}
	if err := sn.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accounts = accounts
	return nil
}

func newAccount(info row.Account) *account {
	return &account{name: info.Name, info: info, boxes: map[row.MailboxID]*row.Mailbox{}, snaps: map[row.MailboxID]*row.Snapshot{}, watch: map[chan struct{}]struct{}{}, touched: map[row.MailboxID]map[uint32]uint64{}}
}

func (s *Store) fold(name string) string {
	if s.opt.FoldCase {
		return strings.ToLower(name)
	}
	return name
}

// Resolve returns the account's own spelling of a user name.
func (s *Store) Resolve(user string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a, ok := s.accounts[s.fold(user)]; ok {
		return a.name, true
	}
	return "", false
}

func (s *Store) account(name string) (*account, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a, ok := s.accounts[s.fold(name)]; ok {
		return a, nil
	}
	return nil, fmt.Errorf("%w: %q", ErrNoAccount, name)
}

// EnsureAccount adds an account unless it is there, and returns its spelling.
func (s *Store) EnsureAccount(ctx context.Context, name string, home row.Home) (string, error) {
	if name == "" || strings.ContainsRune(name, 0) || len(name) > 512 {
		return "", fmt.Errorf("%w: bad name", ErrNoAccount)
	}
	if n, ok := s.Resolve(name); ok {
		return n, nil
	}
	info := row.Account{Name: name, NextID: 1, Home: home}
	b, err := json.Marshal(info)
	if err != nil {
		return "", err
	}
	key := meta.AccountKey(name)
	_, err = s.opt.Meta.Commit(ctx, meta.Batch{If: []meta.Cond{{Key: key}}, Do: []meta.Op{{Key: key, Val: b}}})
	if err != nil && !errors.Is(err, meta.ErrConflict) {
		return "", fmt.Errorf("add account %s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if a, ok := s.accounts[s.fold(name)]; ok {
		return a.name, nil
	}
	s.accounts[s.fold(name)] = newAccount(info)
	return name, nil
}

// Accounts lists all accounts by name.
func (s *Store) Accounts() []row.Account {
	s.mu.Lock()
	all := make([]*account, 0, len(s.accounts))
	for _, a := range s.accounts {
		all = append(all, a)
	}
	s.mu.Unlock()
	out := make([]row.Account, 0, len(all))
	for _, a := range all {
		a.mu.Lock()
		out = append(out, a.info)
		a.mu.Unlock()
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// Home says which side answers for an account.
func (s *Store) Home(name string) (row.Home, error) {
	a, err := s.account(name)
	if err != nil {
		return 0, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.info.Home, nil
}

// Mailboxes lists an account's mailboxes by name.
func (s *Store) Mailboxes(name string) ([]row.Mailbox, error) {
	a, err := s.account(name)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]row.Mailbox, 0, len(a.boxes))
	for _, m := range a.boxes {
		out = append(out, *m)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out, nil
}

func (a *account) byName(name string) *row.Mailbox {
	for _, m := range a.boxes {
		if m.Name == name {
			return m
		}
	}
	return nil
}

// Snapshot returns a mailbox as it is now.
func (s *Store) Snapshot(user, mailbox string) (*row.Snapshot, error) {
	a, err := s.account(user)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	m := a.byName(mailbox)
	if m == nil {
		return nil, fmt.Errorf("%w: %q", ErrNoMailbox, mailbox)
	}
	return s.snapshot(a, m)
}

// SnapshotByID is Snapshot for a mailbox that may have been renamed.
func (s *Store) SnapshotByID(user string, id row.MailboxID) (*row.Snapshot, error) {
	a, err := s.account(user)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	m := a.boxes[id]
	if m == nil {
		return nil, ErrNoMailbox
	}
	return s.snapshot(a, m)
}

// snapshot loads or returns the cached one; a.mu is held.
func (s *Store) snapshot(a *account, m *row.Mailbox) (*row.Snapshot, error) {
	if sn := a.snaps[m.ID]; sn != nil {
		return sn, nil
	}
	sn := &row.Snapshot{Mailbox: *m}
	rows, err := s.rows(meta.RowsOf(a.name, m.ID))
	if err != nil {
		return nil, fmt.Errorf("read mailbox %s of %s: %w", m.Name, a.name, err)
	}
	sn.Rows = rows
	sn.UIDs = make([]uint32, len(rows))
	for i, r := range rows {
		sn.UIDs[i] = r.UID
	}
	s.mu.Lock()
	s.cached += len(rows)
	full := s.cached > maxCached
	if full {
		s.cached = 0
	}
	s.mu.Unlock()
	if full {
		clear(a.snaps)
	}
	a.snaps[m.ID] = sn
	return sn, nil
}

func (s *Store) rows(prefix []byte) ([]*row.Message, error) {
	var out []*row.Message
	err := s.opt.Meta.View(func(v meta.Snap) error {
		for _, b := range v.Scan(meta.Range(prefix)) {
			m, err := row.DecodeMessage(b)
			if err != nil {
				return err
			}
			out = append(out, m)
		}
		return v.Err()
	})
	return out, err
}

// Watch returns a channel that gets a value after every change of an account;
// changes that come close together may share one. Call stop when done.
func (s *Store) Watch(user string) (c <-chan struct{}, stop func(), err error) {
	a, err := s.account(user)
	if err != nil {
		return nil, nil, err
	}
	ch := make(chan struct{}, 1)
	a.mu.Lock()
	a.watch[ch] = struct{}{}
	a.mu.Unlock()
	return ch, func() {
		a.mu.Lock()
		delete(a.watch, ch)
		a.mu.Unlock()
	}, nil
}

// LoadJSON reads a single value, such as the failover state; ok is false if
// it was never saved.
func (s *Store) LoadJSON(key string, v any) (ok bool, err error) {
	err = s.opt.Meta.View(func(sn meta.Snap) error {
		b, _, err := sn.Get(meta.StateKey(key))
		if err != nil || b == nil {
			return err
		}
		ok = true
		return json.Unmarshal(b, v)
	})
	if err != nil {
		err = fmt.Errorf("read %s: %w", key, err)
	}
	return ok, err
}

// SaveJSON stores a single value, durably.
func (s *Store) SaveJSON(ctx context.Context, key string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if _, err := s.opt.Meta.Commit(ctx, meta.Batch{Do: []meta.Op{{Key: meta.StateKey(key), Val: b}}}); err != nil {
		return fmt.Errorf("save %s: %w", key, err)
	}
	return nil
}

// MarkSync records the outcome of an account's sweep.
func (s *Store) MarkSync(ctx context.Context, user string, when time.Time, problem string) error {
	return s.Update(ctx, user, ByMirror, func(tx *Tx) error {
		if problem == "" {
			tx.info.LastSync = when
		}
		tx.info.LastErr = problem
		tx.infoChanged = true
		return nil
	})
}

// Code names an error as an IMAP response code (RFC 5530), "" if it is none
// that a client could understand.
func Code(err error) string {
	switch {
	case errors.Is(err, ErrNoMailbox), errors.Is(err, ErrNoAccount):
		return "NONEXISTENT"
	case errors.Is(err, ErrExists):
		return "ALREADYEXISTS"
	case errors.Is(err, ErrName):
		return "CANNOT"
	}
	return ""
}
