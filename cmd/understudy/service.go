package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"understudy/console/api"
	"understudy/failover"
	"understudy/failover/health"
	"understudy/proxy"
	"understudy/replica/row"
	"understudy/snoop/smtpwire"
)

// checks are the conversations by which production is judged: its greeting on
// every beat; a login, SELECT and FETCH now and then, and always while it is to
// prove that it is back.
func (a *app) checks() []health.Check {
	var beat atomic.Int64
	cs := []health.Check{{Name: "IMAP", Run: func(ctx context.Context) error {
		n := beat.Add(1)
		if p := a.keeper.State().Phase; n%10 == 1 || p != failover.Protecting && p != failover.Seeding {
			if acc := a.store.Accounts(); len(acc) > 0 {
				return a.deepIMAP(ctx, acc[int(n)%len(acc)].Name)
			}
		}
		c, err := a.dialIMAP(ctx)
		if err != nil {
			return err
		}
		defer c.Logout()
		defer context.AfterFunc(ctx, c.Close)()
		_, err = c.Do("CAPABILITY", nil)
		return err
	}}}
	if a.cfg.Production.SMTP != "" {
		cs = append(cs, health.Check{Name: "SMTP", Run: func(ctx context.Context) error { return probeSMTP(ctx, a.target.SMTP) }})
	}
	return cs
}

func (a *app) deepIMAP(ctx context.Context, account string) error {
	c, err := a.dialMaster(ctx, account)
	if err != nil {
		return err
	}
	defer c.Logout()
	defer context.AfterFunc(ctx, c.Close)()
	sel, err := c.Select("INBOX", true)
	if err == nil && sel.Exists > 0 {
		_, err = c.Do("FETCH 1 (UID FLAGS)", nil)
	}
	return err
}

func probeSMTP(ctx context.Context, e proxy.Endpoint) error {
	conn, err := e.Dial(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if dl, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(dl)
	}
	br := bufio.NewReader(conn)
	for _, cmd := range []string{"", "EHLO understudy.invalid\r\n", "QUIT\r\n"} {
		if cmd != "" {
			if _, err := conn.Write([]byte(cmd)); err != nil {
				return err
			}
		}
		r, err := smtpwire.ReadReply(br)
		if err != nil {
			return err
		}
		if !r.OK() {
			return fmt.Errorf("%s: %s", strings.TrimSpace(cmd), r)
		}
	}
	return nil
}

// verdict hands a probe's outcome to the keeper.
func (a *app) verdict(v health.Verdict) {
	a.hmu.Lock()
	a.health = api.Health{OK: v.OK, Cause: v.Cause, At: time.Now()}
	a.hmu.Unlock()
	if v.Own {
		return // nothing is known of production
	}
	h := failover.Happened{Event: failover.Healthy}
	if !v.OK {
		h = failover.Happened{Event: failover.Failed, Detail: v.Cause, Silent: v.Silent}
	}
	a.keeper.Tell(h)
}

// Status implements api.Service.
func (a *app) Status() (api.Status, error) {
	st := a.keeper.State()
	s := api.Status{Phase: string(st.Phase), Since: st.Since, Why: st.Why, Epoch: st.Epoch, Mode: a.cfg.Failover.Mode, Asked: st.Asked,
		Held: a.store.HeldCount(), Seeded: a.mirror.Seeded() || st.Phase != failover.Seeding, Routes: len(a.store.Routes())}
	a.hmu.Lock()
	s.Health = a.health
	a.hmu.Unlock()
	s.Answering = answering(st.Phase)
	if st.Mixed {
		s.Answering = fmt.Sprintf("standby for %d accounts, production for the others", len(a.actor.ours(nil)))
	}
	for i, acc := range a.store.Accounts() {
		s.Accounts++
		if i == 0 || acc.LastSync.Before(s.LastSync) {
			s.LastSync = acc.LastSync
		}
		if acc.LastErr != "" {
			s.Problems = append(s.Problems, acc.Name+": "+acc.LastErr)
		}
		boxes, err := a.store.Mailboxes(acc.Name)
		if err != nil {
			return s, err
		}
		for _, m := range boxes {
			s.Mailboxes++
			s.Messages += m.Messages
		}
	}
	q, err := a.store.Queue()
	if err != nil {
		return s, err
	}
	s.Queued = len(q)
	if s.Verifiers, err = a.vault.Count(); err != nil {
		return s, err
	}
	s.Blobs, s.Bytes = a.store.Blobs.Stats()
	ms := a.mirror.Stats()
	s.Fetched, s.FromWire = ms.Fetched.Load(), ms.FromWire.Load()
	s.Wire, s.BySync, _ = a.cache.Counts()
	for _, e := range a.keeper.History() {
		s.History = append(s.History, api.Entry{At: e.At, Phase: string(e.Phase), Epoch: e.Epoch, Why: e.Why})
	}
	s.CopyBack = a.actor.copier.Report()
	s.Tap = a.mirrorPort.counts()
	if a.wire != nil {
		n := api.Network(a.wire.State())
		if s.Network = &n; n.Problem != "" {
			s.Problems = append(s.Problems, n.Problem)
		}
	}
	var fs syscall.Statfs_t
	if syscall.Statfs(a.cfg.Data, &fs) == nil {
		s.DiskFree = int64(fs.Bavail) * fs.Bsize
	}
	return s, nil
}

func answering(p failover.Phase) string {
	switch p {
	case failover.Seeding, failover.Protecting:
		return "production"
	case failover.Serving, failover.Returning, failover.CopyingBack:
		return "standby"
	}
	return "nobody: sessions wait"
}

// Accounts implements api.Service.
func (a *app) Accounts() ([]api.Account, error) {
	var out []api.Account
	for _, acc := range a.store.Accounts() {
		x := api.Account{Account: acc, Answering: "production"}
		if acc.Home == row.Standby {
			x.Answering = "standby"
		}
		boxes, err := a.store.Mailboxes(acc.Name)
		if err != nil {
			return nil, err
		}
		for _, m := range boxes {
			x.Mailboxes++
			x.Messages += m.Messages
		}
		out = append(out, x)
	}
	return out, nil
}

// Tasks implements api.Service.
func (a *app) Tasks(job string) ([]row.Task, error) { return a.store.Tasks(job) }

// Losses implements api.Service.
func (a *app) Losses() (row.Loss, error) { return a.losses.Last(), nil }

// Routes implements api.Service.
func (a *app) Routes() ([]row.Route, error) { return a.store.Routes(), nil }

// Fingerprint implements api.Service.
func (a *app) Fingerprint(account string) ([]string, error) {
	boxes, err := a.store.Mailboxes(account)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, m := range boxes {
		if m.NoSelect {
			out = append(out, m.Name+" noselect")
			continue
		}
		sn, err := a.store.SnapshotByID(account, m.ID)
		if err != nil {
			return nil, err
		}
		out = append(out, fmt.Sprintf("%s uidvalidity=%d subscribed=%v", m.Name, m.UIDValidity, m.Subscribed))
		for _, r := range sn.Rows {
			out = append(out, fmt.Sprintf("%s uid=%d %v %s size=%d %s", m.Name, r.UID, r.Flags, r.Date.UTC().Format("2006-01-02T15:04:05"), r.Size, r.Ref.String()[:16]))
		}
	}
	slices.Sort(out)
	return out, nil
}

// Takeover implements api.Service.
func (a *app) Takeover(ctx context.Context, o api.Order) (api.Answer, error) {
	st := a.keeper.State()
	switch st.Phase {
	case failover.Seeding, failover.Protecting, failover.Holding:
	default:
		return api.Answer{}, fmt.Errorf("a takeover makes no sense while %s", st.Phase)
	}
	if o.DryRun {
		s, err := a.Status()
		return api.Answer{Text: fmt.Sprintf("would take over %d accounts with %d messages; production is healthy: %v; replica complete: %v; learned logins: %d; held deliveries: %d",
			s.Accounts, s.Messages, s.Health.OK, s.Seeded, s.Verifiers, s.Held)}, err
	}
	a.keeper.Tell(failover.Happened{Event: failover.Takeover, Detail: "by command"})
	return a.await(ctx, o, "the standby answers", failover.Serving, failover.Returning)
}

// Handback implements api.Service.
func (a *app) Handback(ctx context.Context, o api.Order) (api.Answer, error) {
	st := a.keeper.State()
	if st.Phase != failover.Serving && st.Phase != failover.Returning {
		return api.Answer{}, fmt.Errorf("a hand-back makes no sense while %s", st.Phase)
	}
	a.hmu.Lock()
	h := a.health
	a.hmu.Unlock()
	if !h.OK {
		return api.Answer{}, fmt.Errorf("production is not capable yet: %s", h.Cause)
	}
	only, err := a.handable(o.Accounts)
	if err != nil {
		return api.Answer{}, err
	}
	if o.DryRun {
		return api.Answer{Text: fmt.Sprintf("would copy back %d accounts and hand them over", len(a.actor.ours(only)))}, nil
	}
	a.keeper.Tell(failover.Happened{Event: failover.Handback, Detail: "by command", Accounts: only})
	if only == nil {
		return a.await(ctx, o, "production answers", failover.Protecting)
	}
	ans, err := a.await(ctx, o, "production answers for these accounts", failover.Protecting, failover.Returning)
	if err == nil && o.Wait && slices.ContainsFunc(only, func(n string) bool { return !a.actor.OnProduction(n) }) {
		return ans, fmt.Errorf("the accounts could not be handed back: %s", a.keeper.State().Why)
	}
	return ans, err
}

// handable checks the accounts that are to be handed back; none are all.
func (a *app) handable(names []string) (only []string, err error) {
	for _, n := range names {
		name, ok := a.store.Resolve(n)
		if !ok {
			return nil, fmt.Errorf("no account %s; see `understudy accounts`", n)
		}
		if a.actor.OnProduction(name) {
			return nil, fmt.Errorf("production answers for %s already", name)
		}
		only = append(only, name)
	}
	return only, nil
}

// await waits, if wanted, until a phase is reached, or another end.
func (a *app) await(ctx context.Context, o api.Order, text string, want ...failover.Phase) (api.Answer, error) {
	if !o.Wait {
		return api.Answer{Text: "ordered; see `understudy status`"}, nil
	}
	start := a.keeper.State()
	moved := false
	for {
		st := a.keeper.State()
		moved = moved || st.Phase != start.Phase
		for _, p := range want {
			if st.Phase == p && moved {
				return api.Answer{Text: text + " (" + st.Why + ")"}, nil
			}
		}
		if moved && (st.Phase == failover.Protecting || st.Phase == failover.Holding || st.Phase == start.Phase && st.Since != start.Since) {
			return api.Answer{}, errors.New(st.Why)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return api.Answer{}, ctx.Err()
		}
	}
}

// Sync implements api.Service.
func (a *app) Sync(ctx context.Context, o api.Order) (api.Answer, error) {
	if p := a.keeper.State().Phase; p != failover.Protecting && p != failover.Seeding {
		return api.Answer{}, fmt.Errorf("no sync while %s", p)
	}
	start := time.Now()
	if err := a.mirror.SyncAll(ctx, "ordered", o.Accounts); err != nil {
		return api.Answer{}, err
	}
	return api.Answer{Text: fmt.Sprintf("synced in %s", time.Since(start).Round(time.Millisecond))}, nil
}

// Acknowledge implements api.Service.
func (a *app) Acknowledge(context.Context, api.Order) (api.Answer, error) {
	a.keeper.Tell(failover.Happened{Event: failover.Acknowledge})
	return api.Answer{Text: "the last takeover is acknowledged"}, nil
}

// Scrub implements api.Service.
func (a *app) Scrub(context.Context, api.Order) (api.Answer, error) {
	var bad []string
	n := a.store.Blobs.Scrub(func(sum string, err error) { bad = append(bad, fmt.Sprintf("%s: %v", sum, err)) })
	if len(bad) > 0 {
		return api.Answer{}, fmt.Errorf("%d of %d messages are damaged: %s", len(bad), n, strings.Join(bad, "; "))
	}
	return api.Answer{Text: fmt.Sprintf("%d messages read, none damaged", n)}, nil
}
