package sim

import "time"

// fault is one thing that goes wrong. do returns when what it began is over or left
// to the world to mend; production and box run then.
type fault struct {
	name string
	do   func(*world)
}

// faults lists all, each in a file of its own.
func faults() []fault {
	return []fault{
		{"kill", (*world).killLong},
		{"both", (*world).killBoth},
		{"restart", (*world).restart},
		{"freeze", (*world).freezeLong},
		{"blip", (*world).blip},
		{"cut", (*world).cutSome},
		{"planned", (*world).planned},
		{"box", (*world).restartBox},
		{"crash", (*world).crashBox},
		{"fall", (*world).fall},
		{"late", (*world).late},
		{"some", (*world).partial},
		{"twice", (*world).twice},
	}
}

func faultNames(all []fault) (names []string) {
	for _, f := range all {
		names = append(names, f.name)
	}
	return names
}

// fail does what the seed has in store.
func (w *world) fail() {
	n := 1
	if !w.opt.brief {
		n += w.below(3)
	}
	for range n {
		time.Sleep(w.some(2 * time.Second))
		w.liven(600 * time.Millisecond)
		time.Sleep(200 * time.Millisecond)
		f := w.opt.faults[w.below(len(w.opt.faults))]
		w.plan = append(w.plan, f.name)
		f.do(w)
		w.liven(300 * time.Millisecond)
	}
}
