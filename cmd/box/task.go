package box

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
)

// task is one part of the running appliance.
type task struct {
	name string
	// run returns when ctx has ended, or with an error that ends the appliance; nil
	// before is the end of a task that has done its work.
	run func(ctx context.Context) error
	// ready is closed when the part does what it is for; nil: at once.
	ready <-chan struct{}
}

// runTasks begins the tasks in order, each when the one before is ready, calls
// ready when all are, and returns when all have ended.
func runTasks(ctx context.Context, tasks []task, ready func() error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, t := range tasks {
		g.Go(func() error {
			if err := t.run(ctx); err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
			return nil
		})
		if t.ready == nil {
			continue
		}
		select {
		case <-t.ready:
		case <-ctx.Done():
			return g.Wait()
		}
	}
	g.Go(ready)
	return g.Wait()
}
