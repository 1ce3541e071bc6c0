package sim

import (
	"time"

	"understudy/failover"
)

// planned: a takeover is ordered while production lives.
func (w *world) planned() {
	w.wait(failover.Protecting)
	w.tell(failover.Happened{Event: failover.Takeover})
	time.Sleep(w.some(5 * time.Second))
}
