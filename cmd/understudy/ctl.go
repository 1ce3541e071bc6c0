package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"understudy/console/api"
	"understudy/replica/row"
)

// ctl are the flags of the commands that talk to a running Understudy.
type ctl struct {
	socket, config *string
	asJSON         *bool
}

func ctlFlags(fs *flag.FlagSet) ctl {
	return ctl{fs.String("socket", "", "control socket; empty: the settings file tells"), configFlag(fs), fs.Bool("json", false, "print JSON")}
}

func (c ctl) client() (api.Client, error) {
	if *c.socket != "" {
		return api.Client{Socket: *c.socket}, nil
	}
	cfg, err := readConfig(*c.config)
	if err != nil {
		return api.Client{}, err
	}
	return api.Client{Socket: controlPath(cfg)}, nil
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// read runs a reading command: one call, printed as JSON or as text.
func read[T any](e env, name, path string, text func(io.Writer, T)) error {
	fs := e.flags(name, "")
	c := ctlFlags(fs)
	query := url.Values{}
	switch name {
	case "tasks":
		fs.Func("job", "only this job (sweep, ordered, last-sweep, copy-back/ACCOUNT)", func(v string) error { query.Set("job", v); return nil })
	case "fingerprint":
		fs.Func("account", "whose", func(v string) error { query.Set("account", v); return nil })
	}
	if err := e.parse(fs, 0); err != nil {
		return err
	}
	cl, err := c.client()
	if err != nil {
		return err
	}
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	var v T
	if err := cl.Get(e.ctx, path, &v); err != nil {
		return err
	}
	if *c.asJSON {
		return printJSON(e.out, v)
	}
	text(e.out, v)
	return nil
}

// order runs a changing command.
func order(e env, name, args string, n int, dry bool) error {
	fs := e.flags(name, args)
	c := ctlFlags(fs)
	o := api.Order{}
	fs.BoolVar(&o.Wait, "wait", true, "return when it is done")
	if dry {
		fs.BoolVar(&o.DryRun, "dry-run", false, "say what would be done, and do nothing")
	}
	if err := e.parse(fs, n); err != nil {
		return err
	}
	o.Accounts = fs.Args()
	if len(o.Accounts) == 0 {
		o.Accounts = nil
	}
	return c.tell(e, name, o)
}

// tell gives an order and prints the answer.
func (c ctl) tell(e env, name string, o api.Order) error {
	cl, err := c.client()
	if err != nil {
		return err
	}
	a, err := cl.Do(e.ctx, name, o)
	if err != nil {
		return err
	}
	if *c.asJSON {
		return printJSON(e.out, a)
	}
	fmt.Fprintln(e.out, a.Text)
	return nil
}

func takeover(e env) error    { return order(e, "takeover", "", 0, true) }
func handback(e env) error    { return order(e, "handback", "[account …]", -1, true) }
func acknowledge(e env) error { return order(e, "acknowledge", "", 0, false) }
func scrub(e env) error       { return order(e, "scrub", "", 0, false) }
func syncNow(e env) error     { return order(e, "sync", "[account …]", -1, false) }

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
	row("changes", "%d settled from the wire, %d by a sync; bodies: %d fetched, %d known from the wire", s.Wire, s.BySync, s.Fetched, s.FromWire)
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
			row("", "%d connections ran past the box in the last two minutes; `understudy network gather` has them come back through it", n.Past)
		}
	}
	if p := s.Tap; p != nil {
		row("mirror port", "%d sessions, %d of them with TLS; %d changes, %d messages; %d gaps, %d frames lost", p.Sessions, p.TLS, p.Changes, p.Messages, p.Gaps, p.Lost)
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

func accounts(e env) error {
	return read(e, "accounts", "/v1/accounts", func(w io.Writer, l []api.Account) {
		tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		fmt.Fprintln(tw, "ACCOUNT\tANSWERING\tMAILBOXES\tMESSAGES\tSYNCED\tPROBLEM")
		for _, a := range l {
			fmt.Fprintf(tw, "%s\t%s\t%d\t%d\t%s\t%s\n", a.Name, a.Answering, a.Mailboxes, a.Messages, when(a.LastSync), a.LastErr)
		}
		_ = tw.Flush()
	})
}

func routes(e env) error {
	return read(e, "routes", "/v1/routes", func(w io.Writer, l []row.Route) {
		tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		fmt.Fprintln(tw, "RECIPIENT\tACCOUNT\tMAILBOX\tLEARNED")
		for _, r := range l {
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", r.Recipient, r.Account, r.Mailbox, when(r.Learned))
		}
		_ = tw.Flush()
	})
}

func tasks(e env) error {
	return read(e, "tasks", "/v1/tasks", func(w io.Writer, l []row.Task) {
		tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		fmt.Fprintln(tw, "JOB\tTASK\tKIND\tSTATE\tACCOUNT\tMAILBOX\tUID\tDONE\tTRY\tERROR")
		totals := map[row.TaskState]int{}
		for _, t := range l {
			totals[t.State]++
			fmt.Fprintf(tw, "%s\t%d\t%s\t%s\t%s\t%s\t%d\t%d/%d\t%d\t%s\n", t.Job, t.Seq, t.Kind, t.State, t.Account, t.Mailbox, t.UID, t.Done, t.Total, t.Attempt, t.Err)
		}
		_ = tw.Flush()
		var sum []string
		for _, s := range []row.TaskState{row.TaskQueued, row.TaskLeased, row.TaskRetry, row.TaskParked, row.TaskDone, row.TaskSkipped} {
			if totals[s] > 0 {
				sum = append(sum, fmt.Sprintf("%d %s", totals[s], s))
			}
		}
		fmt.Fprintln(w, strings.Join(sum, ", "))
	})
}

func fingerprint(e env) error {
	return read(e, "fingerprint", "/v1/fingerprint", func(w io.Writer, l []string) {
		for _, line := range l {
			fmt.Fprintln(w, line)
		}
	})
}
