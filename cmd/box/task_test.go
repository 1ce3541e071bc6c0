package box

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Tasks begin in order, each when the one before is ready, and all of them are
// when ready is called.
func TestTasksInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		var did []string
		note := func(what string) {
			mu.Lock()
			defer mu.Unlock()
			did = append(did, what)
		}
		slow := make(chan struct{})
		wait := func(name string) func(context.Context) error {
			return func(ctx context.Context) error {
				note(name)
				if name == "slow" {
					time.Sleep(time.Second)
					close(slow)
				}
				<-ctx.Done()
				note("end")
				return nil
			}
		}
		go func() {
			time.Sleep(500 * time.Millisecond)
			note("half a second")
			time.Sleep(time.Second)
			cancel()
		}()
		err := runTasks(ctx, []task{{"slow", wait("slow"), slow}, {"next", wait("next"), nil}}, func() error {
			note("ready")
			return nil
		})
		slices.Sort(did[2:4]) // side by side
		if want := []string{"slow", "half a second", "next", "ready", "end", "end"}; err != nil ||
			!slices.Equal(did, want) {
			t.Errorf("%q, %v", did, err)
		}
	})
}

// A task that fails ends the others, is named, and nobody is told of readiness.
func TestTaskFails(t *testing.T) {
	broken := errors.New("does not work")
	never := make(chan struct{})
	err := runTasks(t.Context(), []task{
		{"sound", func(ctx context.Context) error { <-ctx.Done(); return nil }, nil},
		{"sick", func(context.Context) error { return broken }, never},
		{"later", func(context.Context) error { t.Error("was begun"); return nil }, nil},
	}, func() error { t.Error("is ready"); return nil })
	if !errors.Is(err, broken) || !strings.HasPrefix(err.Error(), "sick: ") {
		t.Error(err)
	}
}

// What is rung before it is heard is heard once, by everybody it is for.
func TestRelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		from, a, b := make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{}, 1)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _ = relay(ctx, from, a, b) }()
		for range 3 {
			ring(from)
			synctest.Wait()
		}
		cancel()
		if len(a) != 1 || len(b) != 1 {
			t.Errorf("%d and %d", len(a), len(b))
		}
	})
}

func TestAlarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a alarm
		if a.wait() != nil {
			t.Error("an alarm that was not set")
		}
		began := time.Now()
		a.by(began.Add(3 * time.Second))
		a.by(began.Add(time.Second))
		a.by(began.Add(2 * time.Second))
		<-a.wait()
		if took := time.Since(began); took != time.Second {
			t.Errorf("heard after %s", took)
		}
		if a.off(); a.wait() != nil {
			t.Error("an alarm that was heard")
		}
	})
}
