// Package vault keeps what proves a user's password without production:
// verifiers learned from logins that production accepted (argon2id), never a
// password.
package vault

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/crypto/argon2"

	"understudy/replica/meta"
)

// Outcomes of Check.
var (
	ErrUnknown = errors.New("no verifier was learned for this login")
	ErrWrong   = errors.New("wrong password")
)

// Cost of argon2id: RFC 9106's second choice is 64 MiB; 19 MiB and two passes
// are the smallest that are held to be enough, and let a small box verify many.
const (
	passes  = 2
	memory  = 19 << 10 // KiB
	threads = 1
	keyLen  = 32
)

type verifier struct {
	Salt, Key []byte
	Account   string
	Learned   time.Time
}

// Vault keeps verifiers in a metadata store. Expire is the age at which one is
// no longer believed; 0 is never.
type Vault struct {
	Meta   meta.Store
	Expire time.Duration

	mu    sync.Mutex
	seen  map[string][sha256.Size]byte // of passwords known to match, keyed by secret
	key   [32]byte
	slots chan struct{}
}

// New returns a vault over a store.
func New(m meta.Store, expire time.Duration) *Vault {
	v := &Vault{Meta: m, Expire: expire, seen: map[string][32]byte{}, slots: make(chan struct{}, 2)}
	_, _ = rand.Read(v.key[:])
	return v
}

func (v *Vault) digest(login, password string) [sha256.Size]byte {
	m := hmac.New(sha256.New, v.key[:])
	fmt.Fprintf(m, "%d/%s/%s", len(login), login, password)
	return [32]byte(m.Sum(nil))
}

func (v *Vault) remembered(login string, d [32]byte) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	got, ok := v.seen[login]
	return ok && subtle.ConstantTimeCompare(got[:], d[:]) == 1
}

func (v *Vault) remember(login string, d [32]byte) {
	v.mu.Lock()
	v.seen[login] = d
	v.mu.Unlock()
}

// Known reports whether Learn of the same would change nothing.
func (v *Vault) Known(login, password string) bool {
	return v.remembered(login, v.digest(login, password))
}

// Learn stores a verifier after production accepted a password; account is
// whose mailbox production gave. The same password again costs nothing.
func (v *Vault) Learn(ctx context.Context, login, password, account string) error {
	d := v.digest(login, password)
	if v.remembered(login, d) {
		return nil
	}
	if a, err := v.verify(login, password); err == nil && a == account {
		v.remember(login, d)
		return nil
	}
	rec := verifier{Salt: make([]byte, 16), Account: account, Learned: time.Now()}
	_, _ = rand.Read(rec.Salt)
	rec.Key = v.hash(password, rec.Salt)
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	if _, err := v.Meta.Commit(ctx, meta.Batch{Do: []meta.Op{{Key: meta.VerifierKey(login), Val: b}}}); err != nil {
		return fmt.Errorf("store verifier: %w", err)
	}
	v.remember(login, d)
	return nil
}

func (v *Vault) hash(password string, salt []byte) []byte {
	v.slots <- struct{}{}
	defer func() { <-v.slots }()
	return argon2.IDKey([]byte(password), salt, passes, memory, threads, keyLen)
}

// Check verifies a password and returns the account it opens.
func (v *Vault) Check(login, password string) (account string, err error) {
	return v.verify(login, password)
}

func (v *Vault) verify(login, password string) (string, error) {
	var rec verifier
	err := v.Meta.View(func(s meta.Snap) error {
		b, _, err := s.Get(meta.VerifierKey(login))
		if err != nil || b == nil {
			return errors.Join(err, ErrUnknown)
		}
		return json.Unmarshal(b, &rec)
	})
	if err != nil {
		return "", err
	}
	if v.Expire > 0 && time.Since(rec.Learned) > v.Expire {
		return "", ErrUnknown
	}
	d := v.digest(login, password)
	if !v.remembered(login, d) {
		if subtle.ConstantTimeCompare(v.hash(password, rec.Salt), rec.Key) != 1 {
			return "", ErrWrong
		}
		v.remember(login, d)
	}
	return rec.Account, nil
}

// Forget drops a verifier, after production refused the login it was for.
func (v *Vault) Forget(ctx context.Context, login string) error {
	v.mu.Lock()
	delete(v.seen, login)
	v.mu.Unlock()
	_, err := v.Meta.Commit(ctx, meta.Batch{Do: []meta.Op{{Key: meta.VerifierKey(login), Del: true}}})
	return err
}

// Count returns the number of verifiers.
func (v *Vault) Count() (n int, err error) {
	err = v.Meta.View(func(s meta.Snap) error {
		for range s.Scan(meta.Range(meta.Verifiers())) {
			n++
		}
		return nil
	})
	return n, err
}
