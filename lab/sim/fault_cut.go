package sim

import "time"

// cutSome: connections to production break, production lives.
func (w *world) cutSome() { w.server().cut(1 + w.below(3)) }

// late: the same, and production goes on with what it had received.
func (w *world) late() { w.cutLate(w.some(150 * time.Millisecond)) }

// cutLate breaks all connections to production, which after a time goes on with
// what it had received by them.
func (w *world) cutLate(after time.Duration) {
	stall := make(chan struct{})
	w.mu.Lock()
	s := w.prod
	s.mu.Lock()
	for _, g := range s.gates {
		g.stall = stall
	}
	s.mu.Unlock()
	w.mu.Unlock()
	time.Sleep(50 * time.Millisecond)
	s.cut(1)
	time.Sleep(after)
	close(stall)
}
