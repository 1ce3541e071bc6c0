package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"understudy/proxy/seam"
)

// Pair names the PEM files of a certificate chain and its key.
type Pair struct{ Cert, Key string }

// Certificates serves the site's certificates by SNI name, and reads the files
// again when they change: a renewed certificate is shown within 10 seconds. A
// pair that cannot be read leaves the last good one in place.
type Certificates struct {
	pairs []Pair
	log   *slog.Logger
	now   atomic.Pointer[loaded]
	turn  seam.Turn // to read the files again; who finds it taken shows what is there
}

// loaded is what was read of the pairs; it is replaced whole.
type loaded struct {
	checked time.Time
	stamp   []time.Time
	certs   []*tls.Certificate
}

const recheck = 10 * time.Second

// LoadCertificates reads all pairs; each must be usable.
func LoadCertificates(pairs []Pair, log *slog.Logger) (*Certificates, error) {
	c := &Certificates{pairs: pairs, log: log, turn: seam.NewTurn()}
	l := &loaded{}
	for _, p := range pairs {
		cert, stamp, err := p.load()
		if err != nil {
			return nil, err
		}
		l.certs, l.stamp = append(l.certs, cert), append(l.stamp, stamp)
	}
	c.now.Store(l)
	return c, nil
}

func (p Pair) load() (*tls.Certificate, time.Time, error) {
	fi, err := os.Stat(p.Cert)
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("certificate: %w", err)
	}
	cert, err := tls.LoadX509KeyPair(p.Cert, p.Key)
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("certificate %s with key %s: %w", p.Cert, p.Key, err)
	}
	if cert.Leaf == nil {
		if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return nil, time.Time{}, fmt.Errorf("certificate %s: %w", p.Cert, err)
		}
	}
	return &cert, fi.ModTime(), nil
}

// Leaves returns the certificates that are in use, for checks.
func (c *Certificates) Leaves() []*x509.Certificate {
	var out []*x509.Certificate
	for _, cert := range c.now.Load().certs {
		out = append(out, cert.Leaf)
	}
	return out
}

// fresh returns what is to be shown, read again if it is time.
func (c *Certificates) fresh() *loaded {
	old := c.now.Load()
	if time.Since(old.checked) <= recheck || !c.turn.TryLock() {
		return old
	}
	defer c.turn.Unlock()
	next := &loaded{time.Now(), slices.Clone(old.stamp), slices.Clone(old.certs)}
	for i, p := range c.pairs {
		if fi, err := os.Stat(p.Cert); err != nil || fi.ModTime().Equal(old.stamp[i]) {
			continue
		}
		cert, stamp, err := p.load()
		if err != nil {
			c.log.Error("new certificate cannot be used; the old one stays", "err", err)
			continue
		}
		next.certs[i], next.stamp[i] = cert, stamp
		c.log.Info("certificate reloaded", "file", p.Cert, "expires", cert.Leaf.NotAfter)
	}
	c.now.Store(next)
	return next
}

func (c *Certificates) get(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
	certs := c.fresh().certs
	for _, cert := range certs {
		if h.ServerName != "" && cert.Leaf.VerifyHostname(h.ServerName) == nil && h.SupportsCertificate(cert) == nil {
			return cert, nil
		}
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate")
	}
	return certs[0], nil
}

// Config is the TLS configuration of listeners.
func (c *Certificates) Config() *tls.Config {
	return &tls.Config{GetCertificate: c.get, MinVersion: tls.VersionTLS12}
}
