package vault

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"understudy/replica/meta"
)

func open(t *testing.T, path string) meta.Store {
	t.Helper()
	m, err := meta.OpenBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

func learn(t *testing.T, v *Vault, login, password, account string) {
	t.Helper()
	if err := v.Learn(t.Context(), login, password, account); err != nil {
		t.Fatal(err)
	}
}

// Outcomes: the account, wrong, unknown. Wrong is not unknown: only one of them is a denial.
func TestCheck(t *testing.T) {
	m := open(t, filepath.Join(t.TempDir(), "meta"))
	v := New(m, 0)
	learn(t, v, "u", "secret", "u@site")
	// Once as it is remembered, once from what is stored.
	for _, v := range []*Vault{v, New(m, 0)} {
		for _, c := range []struct {
			login, password, account string
			err                      error
		}{
			{"u", "secret", "u@site", nil},
			{"u", "Secret", "", ErrWrong},
			{"u", "", "", ErrWrong},
			{"u", "secret ", "", ErrWrong},
			{"U", "secret", "", ErrUnknown},
			{"", "secret", "", ErrUnknown},
			{"u", "secret", "u@site", nil}, // a wrong one changed nothing
		} {
			if a, err := v.Check(c.login, c.password); a != c.account || !errors.Is(err, c.err) ||
				(err == nil) != (c.err == nil) {
				t.Errorf("%s with %q: %q, %v; want %q, %v", c.login, c.password, a, err, c.account, c.err)
			}
		}
	}
	if n, err := v.Count(); n != 1 || err != nil {
		t.Errorf("%d verifiers, %v", n, err)
	}
}

func TestNewPassword(t *testing.T) {
	m := open(t, filepath.Join(t.TempDir(), "meta"))
	v := New(m, 0)
	learn(t, v, "u", "old", "u")
	if !v.Known("u", "old") || v.Known("u", "new") {
		t.Error("known is not what was learned")
	}
	learn(t, v, "u", "new", "u")
	for _, v := range []*Vault{v, New(m, 0)} {
		if _, err := v.Check("u", "old"); !errors.Is(err, ErrWrong) {
			t.Errorf("the old password: %v", err)
		}
		if a, err := v.Check("u", "new"); a != "u" || err != nil {
			t.Errorf("the new password: %q, %v", a, err)
		}
	}
}

// Production gave the login another mailbox.
func TestAnotherAccount(t *testing.T) {
	m := open(t, filepath.Join(t.TempDir(), "meta"))
	learn(t, New(m, 0), "u", "secret", "before")
	v := New(m, 0)
	learn(t, v, "u", "secret", "after")
	if a, err := v.Check("u", "secret"); a != "after" || err != nil {
		t.Errorf("%q, %v", a, err)
	}
}

func TestForget(t *testing.T) {
	m := open(t, filepath.Join(t.TempDir(), "meta"))
	v := New(m, 0)
	learn(t, v, "u", "secret", "u")
	learn(t, v, "w", "secret", "w")
	if err := v.Forget(t.Context(), "u"); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Check("u", "secret"); !errors.Is(err, ErrUnknown) || v.Known("u", "secret") {
		t.Errorf("forgotten: %v", err)
	}
	if a, err := v.Check("w", "secret"); a != "w" || err != nil {
		t.Errorf("another one: %q, %v", a, err)
	}
	if n, err := v.Count(); n != 1 || err != nil {
		t.Errorf("%d verifiers, %v", n, err)
	}
}

func TestExpire(t *testing.T) {
	m := open(t, filepath.Join(t.TempDir(), "meta"))
	v := New(m, time.Hour)
	learn(t, v, "u", "secret", "u")
	if a, err := v.Check("u", "secret"); a != "u" || err != nil {
		t.Errorf("young: %q, %v", a, err)
	}
	v.Expire = time.Nanosecond // the hash took longer
	if _, err := v.Check("u", "secret"); !errors.Is(err, ErrUnknown) {
		t.Errorf("old: %v, want unknown, not wrong", err)
	}
}

// No password reaches the disk.
func TestNoPasswordOnDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meta")
	m := open(t, path)
	learn(t, New(m, 0), "u", "correct horse battery staple", "u")
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil || len(b) == 0 || bytes.Contains(b, []byte("battery staple")) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}
