package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Pair names the PEM files of a certificate chain and its key.
type Pair struct{ Cert, Key string }

// Certificates serves the site's certificates by SNI name, and reads the files
// again when they change: a renewed certificate is shown within 10 seconds. A
// pair that cannot be read leaves the last good one in place.
type Certificates struct {
	pairs []Pair
	log   *slog.Logger

	mu      sync.Mutex
	checked time.Time
	stamp   []time.Time
	certs   []*tls.Certificate
}

const recheck = 10 * time.Second

// LoadCertificates reads all pairs; each must be usable.
func LoadCertificates(pairs []Pair, log *slog.Logger) (*Certificates, error) {
	c := &Certificates{pairs: pairs, log: log, stamp: make([]time.Time, len(pairs)), certs: make([]*tls.Certificate, len(pairs))}
	for i, p := range pairs {
		if err := c.load(i, p); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *Certificates) load(i int, p Pair) error {
	fi, err := os.Stat(p.Cert)
	if err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	cert, err := tls.LoadX509KeyPair(p.Cert, p.Key)
	if err != nil {
		return fmt.Errorf("certificate %s with key %s: %w", p.Cert, p.Key, err)
	}
	if cert.Leaf == nil {
		if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return fmt.Errorf("certificate %s: %w", p.Cert, err)
		}
	}
	c.certs[i], c.stamp[i] = &cert, fi.ModTime()
	return nil
}

// Leaves returns the certificates that are in use, for checks.
func (c *Certificates) Leaves() []*x509.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*x509.Certificate
	for _, cert := range c.certs {
		out = append(out, cert.Leaf)
	}
	return out
}

func (c *Certificates) get(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.checked) > recheck {
		c.checked = time.Now()
		for i, p := range c.pairs {
			if fi, err := os.Stat(p.Cert); err == nil && !fi.ModTime().Equal(c.stamp[i]) {
				if err := c.load(i, p); err != nil {
					c.log.Error("new certificate cannot be used; the old one stays", "err", err)
				} else {
					c.log.Info("certificate reloaded", "file", p.Cert, "expires", c.certs[i].Leaf.NotAfter)
				}
			}
		}
	}
	for _, cert := range c.certs {
		if h.ServerName != "" && cert.Leaf.VerifyHostname(h.ServerName) == nil && h.SupportsCertificate(cert) == nil {
			return cert, nil
		}
	}
	if len(c.certs) == 0 {
		return nil, errors.New("no certificate")
	}
	return c.certs[0], nil
}

// Config is the TLS configuration of listeners.
func (c *Certificates) Config() *tls.Config {
	return &tls.Config{GetCertificate: c.get, MinVersion: tls.VersionTLS12}
}
