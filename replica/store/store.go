// Package store keeps the accounts of the replica, with their mailboxes and
// messages, as rows of a metadata store.
//
// Implementation notes. The account is the partition. What it holds is a value that
// never changes (state), behind an atomic pointer: readers take it, and wait neither
// for a commit nor for each other. Every change goes through Update: it waits for
// the account's turn, a channel, collects one batch, commits it durably, puts the
// next state in place, calls what ledgers gave OnCommit, and wakes the watchers, in
// this order, all before it gives up the turn. So nothing is shown that is not
// durable, and one account's commit delays no other.
//
// Messages of a mailbox are read when they are asked for and kept in memory as long
// as there is room (cache). A reader that finds none reads the mailbox with its
// messages in one view, and keeps them only for the version that they are of: the
// revision of the mailbox's row tells, for it changes with each of its messages. What
// a commit replaces stays in memory until it is replaced, so that a mailbox being
// changed is read as it was.
//
// All goes through a meta.Handle, so each batch carries the epoch: what was begun
// before another one took over is refused (meta.ErrEpoch).
//
// Ledgers that are no part of an account join its batch by Tx.Stage. Who may write is
// a field of the account, Home: the mirror and the transaction cache (Wire) write
// while it is Production, the standby (Acting) while it is Standby; the other side
// gets ErrNotHome, so a late result of one can never overwrite the other's. While
// Home is Standby the first change of a row saves what it was (the base of the
// three-way merge). Messages' bytes are stored before rows refer to them.
//
// Order: an account's turn, then Store.mu, account.mu or cache.mu, which are held for
// an instant, never over another one and never over the disk. Nobody takes two turns
// but Alone.
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
	"understudy/replica/turn"
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
	Meta *meta.Handle
	// Primary: the store is nobody's replica but a server's own; the standby
	// engine may always write and no base is kept.
	Primary bool
	// FoldCase: user names that differ in case only are one account.
	FoldCase bool
}

// Store holds the accounts.
type Store struct {
	Values
	opt   Options
	cache cache

	alone turn.Turn

	mu       sync.Mutex
	accounts map[string]*account
}

// New returns a store without accounts; Load reads them.
func New(o Options) *Store {
	return &Store{Values: Values{o.Meta}, opt: o, cache: cache{limit: maxCached}, alone: turn.New(),
		accounts: map[string]*account{}}
}

// Load reads all accounts and their mailboxes, and puts them in the place of those
// in memory. Nobody may be changing an account: see Alone.
func (s *Store) Load(sn meta.Snap) error {
	there := map[*account]bool{}
	for k := range sn.Scan(meta.Range(meta.Accounts())) {
		name := string(k[len(meta.Accounts()):])
		st, err := loadState(sn, name)
		if err != nil {
			return err
		}
		a := s.place(name)
		there[a] = true
		s.show(a, st)
	}
	if err := sn.Err(); err != nil {
		return err
	}
	for _, a := range s.all() {
		if !there[a] {
			s.show(a, nil)
		}
	}
	return nil
}

// show puts a state that was read in the place of an account's.
func (s *Store) show(a *account, st *state) {
	if old := a.now.Swap(st); old != nil {
		for _, b := range old.boxes {
			s.cache.replace(b, nil, nil)
		}
	}
	a.unsure = false
	a.tell()
}

// Alone runs f while nobody changes an account. f takes no turn.
func (s *Store) Alone(ctx context.Context, f func() error) error {
	if err := s.alone.Take(ctx); err != nil {
		return err
	}
	defer s.alone.Leave()
	held := map[*account]bool{}
	defer func() {
		for a := range held {
			a.turn.Leave()
		}
	}()
	for more := true; more; {
		more = false
		for _, a := range s.all() {
			if held[a] {
				continue
			}
			if err := a.turn.Take(ctx); err != nil { //lock: one caller at a time takes all
				return err
			}
			held[a], more = true, true
		}
	}
	return f()
}

func (s *Store) fold(name string) string {
	if s.opt.FoldCase {
		return strings.ToLower(name)
	}
	return name
}

// place is where an account of a name is in memory, once there is one.
func (s *Store) place(name string) *account {
	key, fresh := s.fold(name), newAccount()
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.accounts[key]; a != nil {
		return a
	}
	s.accounts[key] = fresh
	return fresh
}

func (s *Store) all() []*account {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*account, 0, len(s.accounts))
	for _, a := range s.accounts {
		out = append(out, a)
	}
	return out
}

// account finds an account, and what it holds now.
func (s *Store) account(name string) (*account, *state, error) {
	key := s.fold(name)
	s.mu.Lock()
	a := s.accounts[key]
	s.mu.Unlock()
	if a != nil {
		if st := a.now.Load(); st != nil {
			return a, st, nil
		}
	}
	return nil, nil, fmt.Errorf("%w: %q", ErrNoAccount, name)
}

// Resolve returns the account's own spelling of a user name.
func (s *Store) Resolve(user string) (string, bool) {
	_, st, err := s.account(user)
	if err != nil {
		return "", false
	}
	return st.info.Name, true
}

// EnsureAccount adds an account unless it is there, and returns its spelling.
func (s *Store) EnsureAccount(ctx context.Context, name string, home row.Home) (string, error) {
	if name == "" || strings.ContainsRune(name, 0) || len(name) > 512 {
		return "", fmt.Errorf("%w: bad name", ErrNoAccount)
	}
	if n, ok := s.Resolve(name); ok {
		return n, nil
	}
	// Of several that add it, in whatever spelling, one does.
	a := s.place(name)
	if err := a.turn.Take(ctx); err != nil {
		return "", err
	}
	defer a.turn.Leave()
	if st := a.now.Load(); st != nil {
		return st.info.Name, nil
	}
	info := row.Account{Name: name, NextID: 1, Home: home}
	b, err := json.Marshal(info)
	if err != nil {
		return "", err
	}
	key := meta.AccountKey(name)
	_, err = s.opt.Meta.Commit(ctx, meta.Batch{If: []meta.Cond{{Key: key}}, Do: []meta.Op{{Key: key, Val: b}}})
	if errors.Is(err, meta.ErrConflict) { // it is there, and not in memory
		if err := s.reload(a, name); err != nil {
			return "", fmt.Errorf("add account %s: %w", name, err)
		}
		return name, nil
	}
	if err != nil {
		return "", fmt.Errorf("add account %s: %w", name, err)
	}
	a.now.Store(newState(info, nil))
	return name, nil
}

// reload reads one account again. The turn is held.
func (s *Store) reload(a *account, name string) error {
	return s.opt.Meta.View(func(sn meta.Snap) error {
		st, err := loadState(sn, name)
		if err == nil {
			s.show(a, st)
		}
		return err
	})
}

// Accounts lists all accounts by name.
func (s *Store) Accounts() []row.Account {
	var out []row.Account
	for _, a := range s.all() {
		if st := a.now.Load(); st != nil {
			out = append(out, st.info)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// Home says which side answers for an account.
func (s *Store) Home(name string) (row.Home, error) {
	_, st, err := s.account(name)
	if err != nil {
		return 0, err
	}
	return st.info.Home, nil
}

// Mailboxes lists an account's mailboxes by name.
func (s *Store) Mailboxes(name string) ([]row.Mailbox, error) {
	_, st, err := s.account(name)
	if err != nil {
		return nil, err
	}
	out := make([]row.Mailbox, 0, len(st.names))
	for _, b := range st.names {
		out = append(out, b.Mailbox)
	}
	return out, nil
}

// Snapshot returns a mailbox as it is now.
func (s *Store) Snapshot(user, mailbox string) (*row.Snapshot, error) {
	a, st, err := s.account(user)
	if err != nil {
		return nil, err
	}
	b := st.byName(mailbox)
	if b == nil {
		return nil, fmt.Errorf("%w: %q", ErrNoMailbox, mailbox)
	}
	return s.snapshot(a, st, b)
}

// SnapshotByID is Snapshot for a mailbox that may have been renamed.
func (s *Store) SnapshotByID(user string, id row.MailboxID) (*row.Snapshot, error) {
	a, st, err := s.account(user)
	if err != nil {
		return nil, err
	}
	b := st.byID(id)
	if b == nil {
		return nil, ErrNoMailbox
	}
	return s.snapshot(a, st, b)
}

func (s *Store) snapshot(a *account, st *state, b *box) (*row.Snapshot, error) {
	if m := b.get(); m != nil {
		return &m.Snapshot, nil
	}
	return s.read(a, st.info.Name, b.ID)
}

// Watch returns a channel that gets a value after every change of an account;
// changes that come close together may share one. Call stop when done.
func (s *Store) Watch(user string) (c <-chan struct{}, stop func(), err error) {
	a, _, err := s.account(user)
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
