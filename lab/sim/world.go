// Package sim runs whole sites in one process under virtual time: a mail server that
// can be killed, frozen and cut off, the real Understudy before it, and clients. A
// seed decides what happens, a judge whether all that anybody was told holds.
//
// Implementation notes. Everything of a world runs in one bubble of testing/synctest,
// where time passes only while all wait: connections are pipes (conn.go), production
// answers with delays (gate.go), disks take their time (box.go). A mutex that is
// held over a disk or a peer stops the clock, and the test ends by its own. Disks are real
// directories, so a kill leaves what it would leave. The world's lock is never held
// over anything that waits. A fault is a row of a table (fault.go) and a file of its
// own; a seed chooses among them, and UNDERSTUDY_FAULT narrows the choice. Production
// is server.go (lab/maild), the appliance is box.go (cmd/box), its clients are
// lab/load's, and those of tests hand.go's; judge.go compares.
package sim

import (
	"context"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy/failover"
	"understudy/replica/imapc"
)

// world is one site. Its production and its box are started and ended by one
// goroutine, the one that has the faults happen.
//
// Large: it is what is drawn from one seed, and each fault is a method of it.
type world struct {
	t     *testing.T
	opt   options
	rng   *rand.Rand // mu guards it
	dir   string
	users []string
	log   *slog.Logger
	text  *strings.Builder // of log
	cfg   settings
	terse bool // production does not tell where a MOVE led to, nor why it refuses

	mu     sync.Mutex
	prod   *server       // nil: dead
	box    *appliance    // nil: dead
	boxes  int           // that were killed
	frozen chan struct{} // closed when production goes on
	plan   []string      // the faults
	died   bool          // the Understudy itself was ended: sessions may break
	ending meanwhile     // of boxes that were killed
	lively time.Time     // until then clients are busy whatever the phase
}

// settings are those of the appliance that tests change.
type settings struct {
	silent time.Duration // the hold of a silent production; 0 is two seconds
	owed   time.Duration // after which what is owed is given again; 0 is 20 seconds
	learn  bool          // logins are learned
}

const master, masterPassword = "master", "master-secret"

func password(user string) string { return "pw-" + user }

func newWorld(t *testing.T, o options, seed uint64) *world {
	base := ""
	if fi, err := os.Stat("/dev/shm"); err == nil && fi.IsDir() {
		base = "/dev/shm"
	}
	dir, err := os.MkdirTemp(base, "understudy-sim-")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, opt: o, dir: dir, terse: seed%4 == 0, text: &strings.Builder{}}
	w.rng = rand.New(rand.NewPCG(seed, 1))
	w.users = []string{"anna@sim.test", "bert@sim.test"}
	if o.brief {
		w.users = w.users[:1]
	}
	w.log = slog.New(slog.NewTextHandler(&lockedWriter{w: w.text}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	return w
}

// end ends what runs, and removes the disks.
func (w *world) end() {
	w.stopBox()
	w.kill()
	w.ending.Wait()
	if err := os.RemoveAll(w.dir); err != nil {
		w.t.Error(err)
	}
}

// meanwhile is what goes on beside.
type meanwhile = sync.WaitGroup

type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p) //lock: to memory, or a file of the test
}

// some is a random time below a limit.
func (w *world) some(limit time.Duration) time.Duration { return time.Duration(w.below(int(limit))) }

// below is a random number below n.
func (w *world) below(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rng.IntN(n)
}

// pace is the pause of a client between two commands: short around a fault and
// while anything moves, long while nothing happens.
func (w *world) pace() time.Duration {
	w.mu.Lock()
	b, lively := w.box, time.Now().Before(w.lively)
	w.mu.Unlock()
	if b != nil && !lively {
		switch b.State().Phase {
		case failover.Protecting, failover.Serving:
			return 300 * time.Millisecond
		}
	}
	return 20 * time.Millisecond
}

// liven makes clients busy for some time.
func (w *world) liven(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if end := time.Now().Add(d); end.After(w.lively) {
		w.lively = end
	}
}

// wait waits for a phase, for a minute of virtual time. What was handed back in
// part is handed back whole on the way.
func (w *world) wait(phases ...failover.Phase) bool {
	for range 1200 {
		st := w.state()
		if slices.Contains(phases, st.Phase) {
			return true
		}
		if st.Phase == failover.Returning && st.Mixed {
			w.tell(failover.Happened{Event: failover.Handback})
		}
		time.Sleep(50 * time.Millisecond)
	}
	w.t.Errorf("still %s, not %s", w.phase(), phases)
	stacks := make([]byte, 4<<20)
	w.log.Error("stuck", "stacks", string(stacks[:runtime.Stack(stacks, true)]))
	return false
}

func (w *world) state() failover.State { return w.living().State() }

func (w *world) phase() failover.Phase { return w.state().Phase }

func (w *world) tell(h failover.Happened) { w.living().Tell(h) }

func (w *world) living() *appliance {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.box
}

func (w *world) server() *server {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.prod
}

// dial logs a user in.
func (w *world) dial(user string, to func(context.Context, string) (net.Conn, error)) (*imapc.Conn, error) {
	conn, err := to(context.Background(), "imap")
	if err != nil {
		return nil, err
	}
	c, err := imapc.New(context.Background(), conn, imapc.Options{})
	if err != nil {
		return nil, err
	}
	return c, c.Login(user, "", password(user))
}

// path is a place on the world's disks.
func (w *world) path(name string) string { return filepath.Join(w.dir, name) }
