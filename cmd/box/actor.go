package box

import (
	"context"
	"fmt"
	"log/slog"
	"os/exec"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"understudy/proxy/inline"
	"understudy/replica"
	"understudy/replica/copyback"
	"understudy/replica/mirror"
	"understudy/replica/row"
)

// actor performs what the keeper decides.
type actor struct {
	wire   *inline.Wire // nil: not in the wire
	store  *replica.Replica
	mirror *mirror.Mirror
	copier *copyback.Copier
	fence  []string
	log    *slog.Logger

	came, went chan struct{} // rung when accounts came to the standby, and went to production
}

func newActor(a actor) *actor {
	a.came, a.went = make(chan struct{}, 1), make(chan struct{}, 1)
	return &a
}

// Fence isolates production in the wire, and runs the site's fence command.
// Traffic through the proxy is fenced by the saved state alone.
func (a *actor) Fence(ctx context.Context, epoch uint64) error {
	if err := a.fenceWire(epoch); err != nil {
		return err
	}
	return a.fenceSite(ctx, epoch)
}

// FenceAgain implements keeper.Actor. The site's command has worked before the
// restart, and need not work where it has: that it fails is told, and is no reason
// not to go on.
func (a *actor) FenceAgain(ctx context.Context, epoch uint64) error {
	if err := a.fenceWire(epoch); err != nil {
		return err
	}
	if err := a.fenceSite(ctx, epoch); err != nil && ctx.Err() == nil {
		a.log.Error("the fence command, which worked before the restart, does not work again", "err", err)
	}
	return nil
}

func (a *actor) fenceWire(epoch uint64) error {
	if a.wire == nil {
		return nil
	}
	if err := a.wire.Fence(epoch); err != nil {
		return fmt.Errorf("fence in the wire: %w", err)
	}
	return nil
}

// fenceSite runs the site's command, if there is one.
func (a *actor) fenceSite(ctx context.Context, epoch uint64) error {
	if len(a.fence) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, a.fence[0], a.fence[1:]...)
	cmd.Env = append(cmd.Environ(), fmt.Sprintf("UNDERSTUDY_EPOCH=%d", epoch))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("fence command %s: %w: %.200s", a.fence[0], err, out)
	}
	return nil
}

func (a *actor) Unfence(_ context.Context, epoch uint64) error {
	if a.wire == nil {
		return nil
	}
	return a.wire.Release(epoch)
}

func (a *actor) Sweep(ctx context.Context) error {
	return a.mirror.SyncAll(ctx, "before-takeover", nil)
}

func (a *actor) CatchUp(ctx context.Context) error { return a.mirror.CatchUp(ctx) }

// guardGap is how many UIDs production may have given unseen.
func (a *actor) guardGap() uint32 { return uint32(2*a.store.HeldCount() + 8) }

func (a *actor) Replay(ctx context.Context) error {
	gap := a.guardGap()
	var g errgroup.Group
	g.SetLimit(16)
	for _, acc := range a.store.Accounts() {
		if acc.Home == row.Standby {
			continue
		}
		g.Go(func() error { return a.store.BeginActing(ctx, acc.Name, gap) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	ring(a.came)
	return nil
}

// copyStreams is the number of accounts copied back at a time.
const copyStreams = 4

// maxWatched is how many accounts are looked at to see whether production still
// delivers mail by itself.
const maxWatched = 50

func (a *actor) CopyBack(ctx context.Context, only []string) error {
	a.copier.Reset()
	watched := a.ours(only)
	if err := a.copier.Quiet(ctx, watched[:min(len(watched), maxWatched)], time.Second, 20*time.Second); err != nil {
		return err
	}
	return a.each(ctx, only, func(ctx context.Context, name string) error {
		for range 5 {
			// What came in while the account was copied is little after a few runs.
			if steps, err := a.copier.Account(ctx, name); err != nil || steps < 50 {
				return err
			}
		}
		return nil
	})
}

// ours are the accounts that the standby answers for, of those that are named if
// any are.
func (a *actor) ours(only []string) []string {
	var out []string
	for _, acc := range a.store.Accounts() {
		if acc.Home == row.Standby && (only == nil || slices.Contains(only, acc.Name)) {
			out = append(out, acc.Name)
		}
	}
	return out
}

func (a *actor) each(ctx context.Context, only []string, f func(ctx context.Context, account string) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(copyStreams)
	for _, name := range a.ours(only) {
		g.Go(func() error {
			if err := f(ctx, name); err != nil {
				return fmt.Errorf("account %s: %w", name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

func (a *actor) HandBack(ctx context.Context, only []string, block func(string) error,
	unblock func(string)) (left bool, err error) {
	err = a.each(ctx, only, func(ctx context.Context, name string) error {
		var blocked time.Time
		defer unblock(name)
		defer func() { _ = a.store.Seal(name, false) }()
		err := a.copier.HandOver(ctx, name, func() error {
			blocked = time.Now()
			if err := block(name); err != nil {
				return err
			}
			return a.store.Seal(name, true)
		})
		if err != nil {
			return err
		}
		err = a.store.EndActing(ctx, name)
		ring(a.went)
		a.log.Debug("account handed back", "account", name, "blocked", time.Since(blocked), "err", err)
		return err
	})
	return len(a.ours(nil)) > 0, err
}

func (a *actor) Protect() { a.mirror.Pause(false) }

func (a *actor) Rest() { a.mirror.Pause(true) }

func (a *actor) OnProduction(account string) bool {
	h, err := a.store.Home(account)
	return err == nil && h == row.Production
}
