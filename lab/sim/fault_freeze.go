package sim

import "time"

// freezeLong: production is silent for longer than the hold, and goes on.
func (w *world) freezeLong() {
	w.freeze(true)
	time.Sleep(3*time.Second + w.some(6*time.Second))
	w.freeze(false)
}

// blip: production is silent for a moment.
func (w *world) blip() {
	w.freeze(true)
	time.Sleep(w.some(time.Second))
	w.freeze(false)
}
