package sim

import "time"

// killLong: production is dead for longer than the hold.
func (w *world) killLong() {
	w.kill()
	time.Sleep(w.some(6 * time.Second))
	w.start()
}

// killBoth: in an outage the box is ended, too, and comes back first.
func (w *world) killBoth() {
	w.kill()
	time.Sleep(w.some(6 * time.Second))
	w.died = true
	w.stopBox()
	time.Sleep(w.some(time.Second))
	w.startBox()
	time.Sleep(w.some(4 * time.Second))
	w.start()
}

// restart: production is back within the hold.
func (w *world) restart() {
	w.kill()
	time.Sleep(w.some(500 * time.Millisecond))
	w.start()
}
