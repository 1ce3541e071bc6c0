package sim

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"understudy/failover"
	"understudy/replica"
	"understudy/replica/imapc"
	"understudy/replica/replicatest"
)

const fixtures = "../../replica/testdata"

// openOld is a world that goes on with what an earlier revision left.
func openOld(t *testing.T, file string) *world {
	w := fixtureWorld(t)
	w.cfg.owed = 0
	if err := replicatest.Unpack(file, w.dir); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Hour) // later than all that was left
	return w
}

// Data directories of earlier revisions, in an outage and out of one, are gone on
// with: senders that were not answered come again, passwords open, there is an outage,
// production comes back as it stood, and in the end each message is where the
// revision that left it would have put it, with its UID, once.
func TestGoOnFromEarlierRevisions(t *testing.T) {
	goOn := map[string]func(*world){"protecting": goOnProtecting, "serving": goOnServing}
	for name, on := range goOn {
		files, err := filepath.Glob(filepath.Join(fixtures, "*", name+".tar.gz"))
		if err != nil || len(files) == 0 {
			t.Errorf("no %s: %v", name, err)
		}
		for _, file := range files {
			t.Run(filepath.Base(filepath.Dir(file))+"/"+name, func(t *testing.T) {
				want, err := os.ReadFile(strings.TrimSuffix(file, ".tar.gz") + ".end.txt")
				if err != nil {
					t.Fatal(err)
				}
				synctest.Test(t, func(t *testing.T) {
					w := openOld(t, file)
					defer w.end()
					on(w)
					sameLines(t, strings.Split(strings.TrimSpace(string(want)), "\n"), w.outcome())
				})
			})
		}
	}
}

func goOnProtecting(w *world) {
	w.start() // and delivers what it had accepted
	w.startBox()
	time.Sleep(10 * time.Second)
	w.wait(failover.Protecting)
	w.useAll("after1.", 3, "after")
	w.tell(failover.Happened{Event: failover.Takeover})
	w.wait(failover.Serving)
	w.kill()
	w.useAll("after2.", 4, "later")
	w.start()
	w.wait(failover.Protecting)
}

func goOnServing(w *world) {
	w.startBox()
	w.wait(failover.Serving)
	w.useAll("after1.", 3, "after")
	w.start()
	w.wait(failover.Protecting)
}

// useAll has each user append a letter and set a keyword. The first time the sender
// that was not answered is there before.
func (w *world) useAll(prefix string, uid int, keyword string) {
	again := map[failover.Phase]string{failover.Protecting: "unanswered1", failover.Serving: "unanswered4"}
	if prefix == "after1." {
		w.send("smtp", stranger, anna, again[w.phase()], "")
	}
	for _, u := range w.users {
		store := fmt.Sprintf("UID STORE %d +FLAGS (%s)", uid, keyword)
		w.hand(u, w.toBox).do("SELECT INBOX").add("INBOX", prefix+u).do(store).Close()
	}
}

// outcome lists what clients see, which production holds as well, and what is not
// delivered yet.
func (w *world) outcome() (lines []string) {
	time.Sleep(3 * time.Minute) // what is owed is given
	say := func(format string, a ...any) { lines = append(lines, fmt.Sprintf(format, a...)) }
	mine := w.living()
	for _, u := range w.users {
		if err := mine.Sync(w.t.Context(), []string{u}); err != nil {
			w.t.Error(err)
		}
		if _, differ := w.look(u); differ != "" {
			w.t.Errorf("through the box %s differs: %s", u, differ)
		}
		c := w.hand(u, w.toBox)
		list, err := c.List()
		if err != nil {
			w.t.Error(err)
		}
		slices.SortFunc(list, func(a, b imapc.Listed) int { return strings.Compare(a.Name, b.Name) })
		for _, b := range list {
			c.tell(u, b, say)
		}
		c.Close()
	}
	return append(lines, waiting(w.t, mine.Store(), w.users)...)
}

// waiting lists what is not delivered.
func waiting(t *testing.T, r *replica.Replica, users []string) (lines []string) {
	for _, h := range r.HeldAll() {
		lines = append(lines, fmt.Sprintf("held to %s %.12s", h.Rcpts, h.Ref))
	}
	for _, u := range users {
		for _, x := range r.Twins(u) {
			lines = append(lines, fmt.Sprintf("twin %s %.12s", u, x.Ref))
		}
	}
	queue, err := r.Queued()
	if err != nil {
		t.Error(err)
	}
	for _, q := range queue {
		lines = append(lines, fmt.Sprintf("queued to %s %.12s", q.Rcpts, q.Ref))
	}
	return lines
}

// tell lists a mailbox.
func (h hand) tell(user string, b imapc.Listed, say func(string, ...any)) {
	if b.NoSelect() {
		say("%s %s is no mailbox", user, b.Name)
		return
	}
	sel, err := h.Select(b.Name, true)
	if err != nil {
		h.w.t.Error(err)
	}
	say("%s %s attrs %s validity %d", user, b.Name, b.Attrs, sel.UIDValidity)
	if sel.Exists == 0 {
		return
	}
	err = h.Fetch("1:*", "(UID FLAGS INTERNALDATE BODY.PEEK[HEADER.FIELDS (MESSAGE-ID)])", func(m imapc.Message) error {
		slices.Sort(m.Flags)
		say("%s %s %d %s %s", user, b.Name, m.UID, m.Flags, strings.TrimSpace(string(m.Body)))
		return nil
	})
	if err != nil {
		h.w.t.Error(err)
	}
}

func sameLines(t *testing.T, want, got []string) {
	t.Helper()
	count := map[string]int{}
	for _, l := range want {
		count[l]--
	}
	for _, l := range got {
		count[l]++
	}
	for l, n := range count {
		switch {
		case n < 0:
			t.Errorf("missing: %s", l)
		case n > 0:
			t.Errorf("too much: %s", l)
		}
	}
}

// Writes a fixture with this revision's code (replica/testdata/README.md), into the
// directory that UNDERSTUDY_FIXTURE names; without, into one that is thrown away, so
// that the code which makes them is known to work.
func TestMakeFixtures(t *testing.T) {
	dir := os.Getenv("UNDERSTUDY_FIXTURE")
	if dir == "" {
		dir = t.TempDir()
	} else if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	makeFixtures(t, func(w *world, name string) { keepFixture(w, filepath.Join(dir, name)) })
	for name, on := range map[string]func(*world){"protecting": goOnProtecting, "serving": goOnServing} {
		synctest.Test(t, func(t *testing.T) {
			w := openOld(t, filepath.Join(dir, name+".tar.gz"))
			defer w.end()
			on(w)
			writeLines(t, filepath.Join(dir, name+".end.txt"), w.outcome())
		})
	}
}

// keepFixture writes what is on the disks of production and box, and what this
// revision says of it.
func keepFixture(w *world, file string) {
	dir := w.t.TempDir()
	for from, to := range map[string]string{w.path("prod"): "prod", w.boxDir(): "box"} {
		if err := os.CopyFS(filepath.Join(dir, to), os.DirFS(from)); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := replicatest.Pack(dir, file+".tar.gz"); err != nil {
		w.t.Fatal(err)
	}
	box := filepath.Join(dir, "box")
	r, err := replica.Open(replica.Options{Dir: box, FoldCase: true, Domains: []string{"sim.test"}})
	if err != nil {
		w.t.Fatal(err)
	}
	passwords := map[string]string{}
	for _, u := range w.users {
		passwords[u] = password(u)
	}
	lines, err := replicatest.Describe(r, passwords)
	if err != nil {
		w.t.Error(err)
	}
	if err := r.Close(); err != nil {
		w.t.Error(err)
	}
	writeLines(w.t, file+".txt", lines)
}

func writeLines(t *testing.T, path string, lines []string) {
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}
