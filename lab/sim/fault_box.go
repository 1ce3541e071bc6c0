package sim

import "time"

// restartBox: the box is ended in order, and started again.
func (w *world) restartBox() {
	w.died = true
	w.stopBox()
	time.Sleep(w.some(2 * time.Second))
	w.startBox()
}
