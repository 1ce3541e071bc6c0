package box

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"understudy/failover"
	"understudy/failover/keeper"
)

// idle is an actor for which everything works.
type idle struct{}

func (idle) Fence(context.Context, uint64) error      { return nil }
func (idle) FenceAgain(context.Context, uint64) error { return nil }
func (idle) Unfence(context.Context, uint64) error    { return nil }
func (idle) Sweep(context.Context) error              { return nil }
func (idle) CatchUp(context.Context) error            { return nil }
func (idle) Replay(context.Context) error             { return nil }
func (idle) CopyBack(context.Context, []string) error { return nil }
func (idle) HandBack(context.Context, []string, func(string) error, func(string)) (bool, error) {
	return false, nil
}
func (idle) Protect()                 {}
func (idle) Rest()                    {}
func (idle) OnProduction(string) bool { return false }

// What was told before an order has its effects first: they are not the order's end.
func TestOrderBehindAVerdict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, err := keeper.New(keeper.Options{Actor: idle{}, Log: slog.New(slog.DiscardHandler),
			Limits: failover.Limits{Mode: failover.Confirm, ReturnProbes: 1},
			Load: func(s *failover.State) (bool, error) {
				*s = failover.State{Phase: failover.Serving, Epoch: 1}
				return true, nil
			},
			Save: func(context.Context, failover.State) error { time.Sleep(10 * time.Millisecond); return nil }})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- k.Run(ctx) }()
		defer func() { cancel(); <-done }()
		time.Sleep(time.Second)
		k.Tell(failover.Happened{Event: failover.Healthy})
		v := &service{keeper: k}
		ans, err := v.order(ctx, failover.Happened{Event: failover.Handback}, true, "production answers",
			func(d failover.Duties) bool { return d.Accounts == failover.Production })
		if err != nil || k.State().Phase != failover.Protecting {
			t.Errorf("%+v, %v: %s", ans, err, k.State().Phase)
		}
	})
}
