package box

import (
	"fmt"
	"slices"
	"syscall"

	"understudy/console/api"
	"understudy/console/config"
	"understudy/failover/keeper"
	"understudy/proxy/inline"
	"understudy/replica"
	"understudy/replica/mirror"
	"understudy/replica/row"
	"understudy/replica/vault"
	"understudy/snoop"
)

// service answers the commands.
type service struct {
	cfg    config.Config
	keeper *keeper.Keeper
	store  *replica.Replica
	vault  *vault.Vault
	mirror *mirror.Mirror
	cache  *snoop.Cache
	actor  *actor
	losses *losses
	judge  *judge
	wire   *inline.Wire
	port   *mirrorPort
}

// Status implements api.Service.
func (v *service) Status() (api.Status, error) {
	st := v.keeper.State()
	duties := st.Duties()
	s := api.Status{Phase: string(st.Phase), Since: st.Since, Why: st.Why, Epoch: st.Epoch,
		Mode: v.cfg.Failover.Mode, Asked: st.Asked, Held: v.store.HeldCount(),
		Seeded: duties.Complete || v.seeded(), Routes: len(v.store.AllRoutes())}
	s.Health = v.judge.verdict()
	s.Answering = duties.Answering
	if st.Mixed {
		s.Answering = fmt.Sprintf("standby for %d accounts, production for the others", len(v.actor.ours(nil)))
	}
	if st.Stuck != "" {
		s.Problems = append(s.Problems, "tried again: "+st.Stuck)
	}
	for i, acc := range v.store.Accounts() {
		s.Accounts++
		if i == 0 || acc.LastSync.Before(s.LastSync) {
			s.LastSync = acc.LastSync
		}
		if acc.LastErr != "" {
			s.Problems = append(s.Problems, acc.Name+": "+acc.LastErr)
		}
		boxes, err := v.store.Mailboxes(acc.Name)
		if err != nil {
			return s, err
		}
		for _, m := range boxes {
			s.Mailboxes++
			s.Messages += m.Messages
		}
	}
	q, err := v.store.Queued()
	if err != nil {
		return s, err
	}
	s.Queued = len(q)
	if s.Verifiers, err = v.vault.Count(); err != nil {
		return s, err
	}
	s.Blobs, s.Bytes = v.store.Blobs.Stats()
	ms := v.mirror.Stats()
	s.Fetched, s.FromWire = ms.Fetched.Load(), ms.FromWire.Load()
	s.Wire, s.BySync, _ = v.cache.Counts()
	for _, e := range v.keeper.History() {
		s.History = append(s.History, api.Entry{At: e.At, Phase: string(e.Phase), Epoch: e.Epoch, Why: e.Why})
	}
	s.CopyBack = v.actor.copier.Report()
	s.Tap = v.port.counts()
	if v.wire != nil {
		n := api.Network(v.wire.State())
		if s.Network = &n; n.Problem != "" {
			s.Problems = append(s.Problems, n.Problem)
		}
	}
	var fs syscall.Statfs_t
	if syscall.Statfs(v.cfg.Data, &fs) == nil {
		s.DiskFree = int64(fs.Bavail) * fs.Bsize
	}
	return s, nil
}

// seeded reports whether the first copy is done, though nobody was told yet.
func (v *service) seeded() bool {
	select {
	case <-v.mirror.Seeded():
		return true
	default:
		return false
	}
}

// Accounts implements api.Service.
func (v *service) Accounts() ([]api.Account, error) {
	var out []api.Account
	for _, acc := range v.store.Accounts() {
		x := api.Account{Account: acc, Answering: "production"}
		if acc.Home == row.Standby {
			x.Answering = "standby"
		}
		boxes, err := v.store.Mailboxes(acc.Name)
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
func (v *service) Tasks(job string) ([]row.Task, error) { return v.store.TasksOf(job) }

// Losses implements api.Service.
func (v *service) Losses() (row.Loss, error) { return v.losses.Last(), nil }

// Routes implements api.Service.
func (v *service) Routes() ([]row.Route, error) { return v.store.AllRoutes(), nil }

// Fingerprint implements api.Service.
func (v *service) Fingerprint(account string) ([]string, error) {
	boxes, err := v.store.Mailboxes(account)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, m := range boxes {
		if m.NoSelect {
			out = append(out, m.Name+" noselect")
			continue
		}
		sn, err := v.store.SnapshotByID(account, m.ID)
		if err != nil {
			return nil, err
		}
		out = append(out, fmt.Sprintf("%s uidvalidity=%d subscribed=%v", m.Name, m.UIDValidity, m.Subscribed))
		for _, r := range sn.Rows {
			date := r.Date.UTC().Format("2006-01-02T15:04:05")
			out = append(out,
				fmt.Sprintf("%s uid=%d %v %s size=%d %s", m.Name, r.UID, r.Flags, date, r.Size, r.Ref.String()[:16]))
		}
	}
	slices.Sort(out)
	return out, nil
}
