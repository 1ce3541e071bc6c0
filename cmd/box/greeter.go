package box

import (
	"context"
	"log/slog"
	"time"

	"understudy/failover"
	"understudy/failover/keeper"
	"understudy/proxy"
	"understudy/proxy/seam"
	"understudy/replica"
)

// saveGreeting is the pause between two saves of the greeting.
const saveGreeting = 5 * time.Second

// greeter learns how production greets, and keeps it for the time without it.
type greeter struct {
	keeper *keeper.Keeper
	store  *replica.Replica
	proxy  *proxy.Proxy
	judge  *judge
	limit  time.Duration // of a conversation
	log    *slog.Logger
}

// load reads what production said of itself.
func (g *greeter) load() error {
	var said seam.Greeting
	ok, err := g.store.LoadJSON("greeting", &said)
	if ok {
		g.proxy.Greet(said)
	}
	return err
}

// introduce asks production, once it answers, before the first client has to wait
// for that.
func (g *greeter) introduce(ctx context.Context) error {
	for {
		if g.keeper.State().Duties().Follow == failover.Believed {
			intro, cancel := context.WithTimeout(ctx, g.limit)
			err := g.proxy.Introduce(intro)
			cancel()
			if err == nil {
				return nil
			}
		}
		select {
		case <-g.judge.healthy:
		case <-ctx.Done():
			return nil
		}
	}
}

// save keeps what was learned.
func (g *greeter) save(ctx context.Context) error {
	for {
		select {
		case <-g.proxy.GreetingChanged():
		case <-ctx.Done():
			return nil
		}
		if err := g.store.SaveJSON(ctx, "greeting", g.proxy.Greeting()); err != nil && ctx.Err() == nil {
			g.log.Error("save greeting", "err", err)
		}
		select {
		case <-time.After(saveGreeting):
		case <-ctx.Done():
			return nil
		}
	}
}
