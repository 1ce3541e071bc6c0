package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"understudy/console/api"
)

func status(e env) error {
	return read(e, "status", "/v1/status", printStatus)
}

func printStatus(w io.Writer, s api.Status) {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	row := func(k, format string, a ...any) { fmt.Fprintf(tw, "%s\t%s\n", k, fmt.Sprintf(format, a...)) }
	row("answering", "%s", s.Answering)
	row("phase", "%s since %s (%s)", s.Phase, s.Since.Format(time.DateTime), s.Why)
	if s.Asked {
		row("", "a takeover waits for your word: `understudy takeover`")
	}
	row("mode", "%s, epoch %d", s.Mode, s.Epoch)
	health := "healthy"
	if !s.Health.OK {
		health = "failing: " + s.Health.Cause
	}
	row("production", "%s (probed %s)", health, when(s.Health.At))
	complete := "complete"
	if !s.Seeded {
		complete = "first copy under way"
	}
	row("replica", "%s: %d accounts, %d mailboxes, %d messages", complete, s.Accounts, s.Mailboxes, s.Messages)
	row("", "oldest account synced %s", when(s.LastSync))
	row("stored", "%d messages in %d MiB; %d MiB free", s.Blobs, s.Bytes>>20, s.DiskFree>>20)
	row("in flight", "%d held deliveries, %d outbound", s.Held, s.Queued)
	row("learned", "%d logins, %d recipients", s.Verifiers, s.Routes)
	row("changes", "%d settled from the wire, %d by a sync; bodies: %d fetched, %d known from the wire", s.Wire,
		s.BySync, s.Fetched, s.FromWire)
	if n := s.Network; n != nil {
		way := "new connections go straight to production"
		if n.Armed {
			way = "new connections come to the box"
		}
		if n.Fenced {
			way = "production is fenced, and the box answers for its address"
		}
		cable := ""
		if !n.Cable {
			cable = "; its cable is out"
		}
		row("wire", "%s; production is at %s%s", way, n.MAC, cable)
		if n.Past > 0 {
			row("", "%d connections ran past the box in the last two minutes; "+
				"`understudy network gather` has them come back through it", n.Past)
		}
	}
	if p := s.Tap; p != nil {
		row("mirror port", "%d sessions, %d of them with TLS; %d changes, %d messages; %d gaps, %d frames lost",
			p.Sessions, p.TLS, p.Changes, p.Messages, p.Gaps, p.Lost)
	}
	for _, p := range s.Problems {
		row("problem", "%s", p)
	}
	_ = tw.Flush()
}

func when(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return time.Since(t).Round(time.Second).String() + " ago"
}
