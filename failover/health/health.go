// Package health finds out whether production is alive and capable: full
// conversations that leave no junk in its log, run on a beat and whenever real
// traffic met trouble.
package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"syscall"
	"time"
)

// Check is one conversation with production.
type Check struct {
	Name string
	Run  func(ctx context.Context) error
}

// Verdict is the outcome of all checks.
type Verdict struct {
	OK     bool
	Cause  string        // what failed, in words
	Silent bool          // it did not answer, rather than refuse
	Own    bool          // this machine could not ask: nothing is known of production
	Took   time.Duration // of the slowest check
}

// Prober runs checks.
type Prober struct {
	Checks   []Check
	Beat     time.Duration // between rounds; 0 is one second
	Timeout  time.Duration // of a round; 0 is two seconds
	Failures int           // silent rounds in a row that count as failed; 0 is 2
	// Trouble wakes the prober.
	Trouble <-chan error
	Tell    func(Verdict)
	Log     *slog.Logger
}

// Run probes until ctx ends.
func (p *Prober) Run(ctx context.Context) error {
	beat, failures := p.Beat, p.Failures
	if beat == 0 {
		beat = time.Second
	}
	if failures == 0 {
		failures = 2
	}
	bad, own := 0, false
	for {
		v := p.Probe(ctx)
		if ctx.Err() != nil {
			return nil
		}
		switch {
		case v.OK:
			bad, own = 0, false
			p.Tell(v)
		case v.Own:
			// No reason for a takeover, which would not help.
			if !own {
				p.Log.Error("production cannot be asked whether it lives: this machine lacks what it takes", "err",
					v.Cause)
			}
			own = true
			p.Tell(v)
		default:
			if bad++; !v.Silent || bad >= failures {
				p.Tell(v)
			}
		}
		select {
		case <-time.After(beat):
		case err := <-p.Trouble:
			p.Log.Debug("real traffic met trouble", "err", err)
			// Not more often than ten times a second.
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// Probe runs every check once, side by side.
func (p *Prober) Probe(ctx context.Context) Verdict {
	limit := p.Timeout
	if limit == 0 {
		limit = 2 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	start := time.Now()
	type result struct {
		name string
		err  error
	}
	ch := make(chan result, len(p.Checks))
	for _, c := range p.Checks {
		go func() {
			err := c.Run(ctx)
			if err != nil && ctx.Err() != nil {
				err = ctx.Err() // however it shows: there was no answer in time
			}
			ch <- result{c.Name, err}
		}()
	}
	v := Verdict{OK: true}
	for range p.Checks {
		var r result
		select {
		case r = <-ch:
		case <-ctx.Done():
			// A check that hangs counts as one that got no answer.
			select {
			case r = <-ch:
			default:
				r = result{"no answer", ctx.Err()}
			}
		}
		if r.err == nil {
			continue
		}
		silent := Silent(r.err)
		own := Own(r.err)
		if v.OK || v.Own && !own || v.Silent && !silent && !own {
			v.Cause, v.Silent, v.Own = fmt.Sprintf("%s: %v", r.name, r.err), silent, own
		}
		v.OK = false
	}
	v.Took = time.Since(start)
	return v
}

// Own reports whether an error is this machine's own: it has no file descriptor,
// port or memory left, or its packet filter forbids the connection. (EACCES may be
// the word of a router.)
func Own(err error) bool {
	return slices.ContainsFunc([]error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM,
		syscall.EADDRNOTAVAIL, syscall.EPERM},
		func(e error) bool { return errors.Is(err, e) })
}

// Silent reports whether an error means that nobody answered, in place of a
// refusal or a broken connection.
func Silent(err error) bool {
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		errors.Is(err, io.EOF) {
		return false
	}
	var ne net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &ne) && ne.Timeout()
}
