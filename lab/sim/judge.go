package sim

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"understudy/lab/check"
	"understudy/lab/load"
)

// judgement is what is wrong at the end of a seed, and what would be if there were
// no excuse for it, with how often.
type judgement struct {
	faults  []string
	excused map[string]int
}

func (j *judgement) fault(format string, a ...any) {
	j.faults = append(j.faults, fmt.Sprintf(format, a...))
}

func (j *judgement) excuse(what string, n int) {
	if n > 0 {
		j.excused[what] += n
	}
}

// judge compares what clients were told with what production holds, that with what
// the box shows, and looks at what was legal on the wire.
func (w *world) judge(l *load.Ledger, book *check.Book) *judgement {
	j := &judgement{excused: map[string]int{}}
	stores := map[string]map[string]load.Found{}
	for _, u := range w.users {
		if err := w.living().Sync(context.Background(), []string{u}); err != nil {
			j.fault("%v", err)
		}
		found, differ := w.look(u)
		if stores[u] = found; differ != "" {
			j.fault("through the box %s differs: %s", u, differ)
		}
	}
	v := l.Judge(stores)
	if !v.OK() || v.Confirmed == 0 {
		j.fault("%s %v", v, v.Where)
	}
	// That a sender sends again what was not answered is no excuse for a double.
	if len(v.Repeated) > 0 {
		j.fault("repeated %v %v", v.Repeated, v.Where)
	}
	broken := int(l.Broken.Load())
	if w.died {
		j.excuse("sessions broke when the Understudy ended", broken)
		j.excuse("commands were not answered when the Understudy ended", v.Unanswered)
	} else if broken > 0 || v.Unanswered > 0 {
		j.fault("%d sessions broke, %d commands were not answered: %v", broken, v.Unanswered, l.Breaks())
	}
	j.faults = append(j.faults, book.Faults()...)
	return j
}

// look reads an account in both ways.
func (w *world) look(user string) (found map[string]load.Found, differ string) {
	var all [2]map[string]load.Found
	for i, to := range []func(context.Context, string) (net.Conn, error){w.direct, w.toBox} {
		c, err := w.dial(user, to)
		if err == nil {
			all[i], err = load.Look(c)
			c.Close()
		}
		if err != nil {
			return nil, err.Error()
		}
	}
	if fmt.Sprint(all[0]) != fmt.Sprint(all[1]) {
		differ = fmt.Sprintf("%v\n%v", all[0], all[1])
	}
	return all[0], differ
}

// settle waits until what is owed was given again.
func (w *world) settle() {
	for range 1200 {
		if w.living().Store().HeldCount() == 0 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// keep leaves what is needed to find out why a seed failed.
func (w *world) keep(seed uint64, book *check.Book) {
	if w.opt.logs == "" {
		return
	}
	_ = os.WriteFile(filepath.Join(w.opt.logs, fmt.Sprintf("sim-%d.history", seed)), book.History(), 0o600)
	_ = os.WriteFile(filepath.Join(w.opt.logs, fmt.Sprintf("sim-%d.log", seed)), []byte(w.text.String()), 0o600)
}
